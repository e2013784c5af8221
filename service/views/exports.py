"""Trials as a file or a stream that other programs read."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from bitfront.errors import SpecError
from service.views.render import csv_text, flat, json_lines

FORMATS: Final = ("csv", "json", "parquet")
_SUFFIXES: Final = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "table",
}


def chosen_format(form: str | None, out: Path | None, usual: str) -> str:
    """The format that was asked for: by name, or else by the suffix of the file.

    Raises:
        SpecError: The suffix is not known, or is that of another format.
    """
    suffix = "" if out is None else out.suffix.lower()
    implied = _SUFFIXES.get(suffix)
    if form is None and suffix and implied is None:
        raise SpecError(
            f"--out {out}: {suffix} is not the suffix of a known format: "
            f"use one of {', '.join(_SUFFIXES)}, or say which with --format"
        )
    if form is not None and implied is not None and form not in (implied, "table"):
        raise SpecError(f"--format {form} contradicts --out {out}: leave one of them out")
    return form or implied or usual


def write_rows(rows: Sequence[Mapping[str, object]], form: str, out: Path | None) -> None:
    """Writes rows in one of `FORMATS` to a file, or to stdout where `out` is None.

    Raises:
        SpecError: The file cannot be written, or parquet would go to a terminal.
    """
    if form == "parquet":
        write(_parquet(flat(rows)), out)
    else:
        text = csv_text(flat(rows)) if form == "csv" else json_lines(rows)
        write(text.encode("utf-8", "backslashreplace"), out)


def write(content: bytes, out: Path | None) -> None:
    """Writes a file, or to stdout where `out` is None.

    Raises:
        SpecError: The file cannot be written, or is not text and would go to a terminal.
    """
    if out is None:
        if b"\0" in content and sys.stdout.isatty():
            raise SpecError("parquet is not text: name a file with --out FILE, or use a pipe")
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
