"""The front as a file or a stream that other programs read."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitfront.errors import SpecError
from service.render import csv_text, flat_rows, front_table, result_json

if TYPE_CHECKING:
    from storage.records import Result

FORMATS = ("table", "json", "csv", "parquet")


def write_results(
    results: Sequence["Result"], names: Mapping[int, str], form: str, out: Path | None
) -> None:
    """Writes trials to a file, or to stdout where `out` is None.

    Raises:
        SpecError: The file cannot be written, or parquet would go to a terminal.
    """
    if form == "parquet":
        _write(_parquet(flat_rows(results, names)), out)
    elif form == "csv":
        _write(csv_text(flat_rows(results, names)).encode(), out)
    elif form == "json":
        lines = [f"{result_json(result, names)}\n" for result in results]
        _write("".join(lines).encode(), out)
    else:
        _write(f"{front_table(results, names)}\n".encode(), out)


def _write(content: bytes, out: Path | None) -> None:
    if out is None:
        if b"\0" in content and sys.stdout.isatty():
            raise SpecError("parquet is no text: name a file with --out FILE, or use a pipe")
        click.echo(content, nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise SpecError(f"{out} cannot be written: {error.strerror}") from error


def _parquet(rows: Sequence[Mapping[str, object]]) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise SpecError(
            "--format parquet needs pyarrow: 'pip install pyarrow', or use --format csv"
        ) from error
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
