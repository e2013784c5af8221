"""The pictures as an interactive HTML page, with Plotly's script beside it."""

import html
from importlib.resources import files
from pathlib import Path
from typing import Final

import plotly.graph_objects as go

from service.views.plot import palette
from service.views.plot.charts import FONT, bits_chart, front_chart
from service.views.plot.records import BitsPicture, FrontPicture

SCRIPT: Final = "plotly.min.js"

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ margin: 0 auto; max-width: 1060px; padding: 28px 24px 48px; background: {paper};
         color: {ink}; font-family: {font}; }}
  h1 {{ font-size: 22px; margin: 0 0 4px; }}
  h2 {{ font-size: 18px; margin: 36px 0 4px; }}
  p {{ margin: 0 0 8px; color: {quiet}; }}
</style>
<script src="{script}"></script>
</head>
<body>
<h1>{heading}</h1>
<p>{summary}</p>
{front}
{bits}
</body>
</html>
"""
_CONFIG: Final = {
    "displaylogo": False,
    "responsive": True,
    "plotlyServerURL": "",  # nothing leaves the page
    "modeBarButtonsToRemove": ["sendChartToCloud", "lasso2d", "select2d"],
}


def write_page(front: FrontPicture, bits: BitsPicture | None, path: Path) -> list[Path]:
    """Writes a page with both pictures, which needs no network, and Plotly's script beside it.

    Returns:
        The page and the script.
    """
    page = _PAGE.format(
        title=html.escape(f"{front.study}: front"),
        heading=html.escape(f"{front.study}: error against size"),
        summary=html.escape(front.summary),
        script=SCRIPT,
        front=_division(front_chart(front)),
        bits="" if bits is None else _bits_section(bits),
        paper=palette.PAPER,
        ink=palette.INK,
        quiet=palette.QUIET,
        font=FONT,
    )
    path.write_text(page, encoding="utf-8")
    script = path.with_name(SCRIPT)
    script.write_bytes(files("plotly.package_data").joinpath(SCRIPT).read_bytes())
    return [path, script]


def _bits_section(picture: BitsPicture) -> str:
    heading, words = html.escape(picture.title), html.escape(picture.subtitle)
    figure = _division(bits_chart(picture))
    return f"<h2>{heading}</h2>\n<p>{words}</p>\n{figure}"


def _division(figure: go.Figure) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)
    return text
