"""Markdown that generated pages are made of."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, without its empty columns; a bar within a cell does not end it."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    filled = [place for place in range(len(header)) if any(row[place] for row in cells)]
    lines = [header, ["---"] * len(header), *cells]
    return [*(f"| {' | '.join(line[place] for place in filled)} |" for line in lines), ""]


def code(text: object) -> str:
    """The text as code, empty for an empty one."""
    return f"`{text}`" if str(text) else ""
