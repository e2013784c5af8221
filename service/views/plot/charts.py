"""The pictures as interactive charts."""

import html
import math
from collections.abc import Callable, Sequence
from typing import Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bitfront.layers import Tower
from bitfront.units import percent_text, size_text
from service.views.plot import palette
from service.views.plot.records import (
    BitsPicture,
    FrontPicture,
    LayerBits,
    Point,
    full_label,
    is_wide,
    short_names,
    staircase_line,
)

FONT: Final = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def front_chart(picture: FrontPicture) -> go.Figure:
    """All trials, the front as a step line, uniform baselines, and the unquantized model."""
    figure = go.Figure()
    scale = picture.unit[0]
    others = [p for p in picture.points if not p.is_front and not p.label]
    if others:
        figure.add_trace(_markers("other trials", others, scale, palette.TRIAL, 7, opacity=0.6))
    _add_steps(figure, picture)
    if any(p.test_error is not None for p in picture.front):
        figure.add_trace(_test_markers(picture.front, scale))
    figure.add_trace(_markers("front", picture.front, scale, palette.FRONT, 10))
    if picture.baselines:
        figure.add_trace(_baselines(picture, scale))
    if picture.full is not None:
        _add_full_precision(figure, picture.full)
    _dress_front(figure, picture)
    return figure


def _add_steps(figure: go.Figure, picture: FrontPicture) -> None:
    line = staircase_line(picture)
    if line:
        scale = picture.unit[0]
        figure.add_trace(
            go.Scatter(
                x=[nbytes / scale for nbytes, _ in line],
                y=[error for _, error in line],
                mode="lines",
                line={"color": palette.FRONT, "width": 2.5, "shape": "hv"},
                hoverinfo="skip",
                showlegend=False,
            )
        )


def _markers(
    name: str, points: list[Point], scale: int, color: str, size: int, *, opacity: float = 1.0
) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=[p.nbytes / scale for p in points],
        y=[p.error for p in points],
        mode="markers",
        marker={
            "color": color,
            "size": size,
            "opacity": opacity,
            "line": {"color": palette.PAPER, "width": 1.2},
        },
        text=[_details(p) for p in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _test_markers(front: list[Point], scale: int) -> go.Scatter:
    tested = [p for p in front if p.test_error is not None]
    return go.Scatter(
        name="front, on the test split",
        x=[p.nbytes / scale for p in tested],
        y=[p.test_error for p in tested],
        mode="markers",
        marker={
            "color": palette.PAPER,
            "size": 7,
            "line": {"color": palette.TEST, "width": 1.6},
        },
        text=[_details(p) for p in tested],
        hovertemplate="%{text}<extra></extra>",
    )


def _baselines(picture: FrontPicture, scale: int) -> go.Scatter:
    trace = _markers("uniform precision", picture.baselines, scale, palette.BASELINE, 12)
    labels = [f"<b>{html.escape(str(p.label))}</b>" for p in picture.baselines]
    details = [_details(p) for p in picture.baselines]
    return trace.update(
        mode="markers+text",
        marker={"symbol": "diamond"},
        text=labels,
        textposition="top right",
        textfont={"color": palette.BASELINE, "size": 13},
        customdata=details,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _details(point: Point) -> str:
    lines = [f"<b>trial {point.trial}</b> ({point.label or point.origin})"]
    lines.append(f"error {percent_text(point.error)}")
    if point.test_error is not None:
        lines[-1] += f", on the test split {percent_text(point.test_error)}"
    lines.append(size_text(point.nbytes))
    if point.bits_per_weight is not None:
        lines[-1] += f", {point.bits_per_weight:.2f} bits a weight"
    lines.append(f"recovery: {html.escape(point.recovery)}")
    return "<br>".join(lines)


def _add_full_precision(figure: go.Figure, full: Point) -> None:
    line = {"color": palette.INK, "width": 1.2, "dash": "dash"}
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=full.error, y1=full.error, line=line)
    if full.interval is not None:
        low, high = full.interval
        band = {"fillcolor": palette.INK, "opacity": 0.07, "line_width": 0, "layer": "below"}
        figure.add_shape(type="rect", xref="paper", x0=0, x1=1, y0=low, y1=high, **band)
    # A shape has no place in the legend, and a label at the line would lie on points.
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=line, name=full_label(full)))


def _dress_front(figure: go.Figure, picture: FrontPicture) -> None:
    scale, symbol = picture.unit
    sizes = [p.nbytes / scale for p in picture.points]
    grid: dict[str, object] = {"gridcolor": palette.GRID, "zeroline": False}
    errors = picture.errors
    if is_wide(errors):
        vertical = _log_axis(errors, lambda error: f"{100 * error:.3g}%")
    else:
        vertical = {"tickformat": ".0%", "range": [0, 1.06 * max(*errors, 0.01)]}
    horizontal = _log_axis(sizes, lambda size: f"{size:g}") if is_wide(sizes) else {}
    figure.update_layout(
        **_layout(),
        height=560,
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.14, "yanchor": "top"},
        xaxis={"title": f"size of the packed checkpoint ({symbol})", **grid, **horizontal},
        yaxis={"title": "error (1 - accuracy)", **grid, **vertical},
    )


def _log_axis(values: Sequence[float], text: Callable[[float], str]) -> dict[str, object]:
    """A logarithmic axis around the values, with ticks at 1, 2 and 5 of each decade."""
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.1
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": inside,
        "ticktext": [text(tick) for tick in inside],
    }


def bits_chart(picture: BitsPicture) -> go.Figure:
    """A bar for each layer, one panel a tower, in order of execution from the top."""
    towers = picture.towers
    figure = make_subplots(cols=max(1, len(towers)), horizontal_spacing=0.16)
    for column, tower in enumerate(towers, start=1):
        _add_tower(figure, picture, tower, column)
    figure.update_layout(**_layout(), height=110 + 26 * picture.rows, showlegend=False, bargap=0.34)
    widest = max((layer.weight_bits for layer in picture.layers), default=16)
    figure.update_xaxes(
        range=[0, widest * 1.12], title="weight bits", showgrid=False, zeroline=False, dtick=2
    )
    return figure


def _add_tower(figure: go.Figure, picture: BitsPicture, tower: Tower, column: int) -> None:
    layers = picture.tower(tower)
    rows = list(range(len(layers)))
    bars = go.Bar(
        x=[layer.weight_bits for layer in layers],
        y=rows,
        orientation="h",
        marker={"color": palette.TOWERS[tower]},
        text=picture.labels(tower),
        textposition="outside",
        cliponaxis=False,
        customdata=[_layer_details(layer) for layer in layers],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_trace(bars, row=1, col=column)
    names = short_names([layer.layer for layer in layers])
    figure.update_yaxes(
        tickvals=rows, ticktext=names, range=[picture.rows - 0.4, -0.6], zeroline=False, col=column
    )
    axis = "" if column == 1 else str(column)
    figure.add_annotation(
        text=f"<b>{tower}</b>",
        font={"color": palette.TOWERS[tower]},
        x=0,
        y=1,
        xref=f"x{axis} domain",
        yref=f"y{axis} domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
    )
    for row, shaded in enumerate(picture.shaded(tower)):
        if shaded:
            figure.add_hrect(
                y0=row - 0.5,
                y1=row + 0.5,
                fillcolor=palette.GRID,
                opacity=0.6,
                line_width=0,
                layer="below",
                row=1,
                col=column,
            )


def _layer_details(layer: LayerBits) -> str:
    lines = [f"<b>{html.escape(layer.layer)}</b>"]
    lines.append(f"{layer.weight_bits} bits a weight, {layer.activation_bits} an input")
    if layer.block:
        lines.append(f"block {html.escape(layer.block)}")
    return "<br>".join(lines)


def _layout() -> dict[str, object]:
    return {
        "template": "none",
        "font": {"family": FONT, "size": 13, "color": palette.INK},
        "paper_bgcolor": palette.PAPER,
        "plot_bgcolor": palette.PAPER,
        "margin": {"l": 130, "r": 20, "t": 36, "b": 60},
        "hoverlabel": {"bgcolor": palette.PAPER, "font": {"color": palette.INK}},
    }
