"""What a notebook shows in place of text: small tables and pictures, without any script."""

import base64
from collections.abc import Sequence
from html import escape

_CELL = "text-align:{};padding:2px 10px 2px 0;white-space:nowrap"


def table_html(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (), title: str
) -> str:
    """A table with its title; numbers to the right, the columns in `left` to the left."""

    def cells(kind: str, row: Sequence[str]) -> str:
        aligned = ("left" if column in left else "right" for column in range(len(row)))
        return "".join(
            f'<{kind} style="{_CELL.format(side)}">{escape(cell)}</{kind}>'
            for side, cell in zip(aligned, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f"<p><b>{escape(title)}</b></p>"
        f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"
    )


def pairs_html(pairs: Sequence[tuple[str, str]], title: str) -> str:
    """Names and values, one pair a line, with a title."""
    rows = "".join(
        f'<tr><th style="{_CELL.format("left")}">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in pairs
    )
    return f"<p><b>{escape(title)}</b></p><table><tbody>{rows}</tbody></table>"


def png_html(content: bytes, text: str, width: int) -> str:
    """A PNG within the page, with a text for those who cannot see it; `width` in CSS pixels."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(text)}" width="{width}" src="data:image/png;base64,{data}">'
