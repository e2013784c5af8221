"""The pictures as PNG and SVG files, drawn without a screen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bitfront.layers import Tower
from service.views.plot import palette
from service.views.plot.records import (
    BitsPicture,
    FrontPicture,
    Point,
    full_label,
    is_wide,
    short_names,
    staircase_line,
)

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DPI: Final = 200
_STYLE: "Final[dict[RcKeyType, object]]" = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": palette.QUIET,
    "axes.labelcolor": palette.INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": palette.GRID,
    "text.color": palette.INK,
    "xtick.color": palette.QUIET,
    "ytick.color": palette.QUIET,
    "xtick.labelcolor": palette.INK,
    "ytick.labelcolor": palette.INK,
    "svg.hashsalt": "bitfront",
}

_METADATA: Final = {
    ".png": {"Software": "bitfront"},
    ".svg": {"Creator": "bitfront", "Date": None},  # the same picture is the same file
}
_HALO: Final = (withStroke(linewidth=3, foreground=palette.PAPER),)


def write_front(picture: FrontPicture, *paths: Path) -> None:
    """Writes a study's trials, its front and its baselines, as PNG or SVG by the file's name."""
    with _figure(8.6, 5.4, paths) as figure:
        axes = figure.add_subplot()
        _draw_axes(axes, picture)
        _draw_front(axes, picture)
        _draw_others(axes, picture)
        _draw_full_precision(axes, picture)
        axes.set_title(f"{picture.study}: error against size", loc="left", pad=26, weight="bold")
        axes.annotate(
            picture.summary,
            (0, 1),
            (0, 9),
            xycoords="axes fraction",
            textcoords="offset points",
            color=palette.QUIET,
        )
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=9,
            handletextpad=0.4,
            columnspacing=1.8,
        )


def write_bits(picture: BitsPicture, *paths: Path) -> None:
    """Writes the weight bits of every layer, one panel a tower, as PNG or SVG."""
    height = 1.7 + 0.24 * picture.rows
    with _figure(8.6, height, paths) as figure:
        layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.66 / height), wspace=0.07)
        figure.set_layout_engine(layout)
        panels = figure.subplots(1, max(1, len(picture.towers)), squeeze=False)[0]
        for axes, tower in zip(panels, picture.towers, strict=False):
            _draw_tower(axes, picture, tower)
        title_y, subtitle_y = (1 - inches / height for inches in (0.13, 0.40))
        figure.text(0.008, title_y, picture.title, va="top", weight="bold", fontsize=12)
        figure.text(0.008, subtitle_y, picture.subtitle, va="top", color=palette.QUIET)


@contextmanager
def _figure(width: float, height: float, paths: Sequence[Path]) -> Iterator[Figure]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=palette.PAPER)
        FigureCanvasAgg(figure)
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for all files alike
        for path in paths:
            figure.savefig(path, dpi=DPI, metadata=_METADATA[path.suffix])


def _draw_axes(axes: Axes, picture: FrontPicture) -> None:
    scale, symbol = picture.unit
    axes.set_xlabel(f"size of the packed checkpoint ({symbol})")
    axes.set_ylabel("error (1 - accuracy)")
    axes.grid(visible=True, linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    if is_wide([point.nbytes for point in picture.points]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    errors = picture.errors
    if is_wide(errors):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * min(errors), 1.25 * max(errors))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(8))
        axes.set_ylim(0, 1.06 * max(*errors, 0.01))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _draw_front(axes: Axes, picture: FrontPicture) -> None:
    front, line = picture.front, staircase_line(picture)
    if not line:
        return
    corners = tuple(zip(*line, strict=True))
    axes.plot(*corners, drawstyle="steps-post", color=palette.FRONT, linewidth=2.2, zorder=4)
    tested = [p for p in front if p.test_error is not None]
    axes.scatter(
        [p.nbytes for p in front],
        [p.error for p in front],
        s=42,
        color=palette.FRONT,
        edgecolors=palette.PAPER,
        linewidths=1.2,
        zorder=6,
        label="front",
    )
    if tested:
        axes.vlines(
            [p.nbytes for p in tested],
            [p.error for p in tested],
            [p.test_error or 0.0 for p in tested],
            color=palette.TEST,
            linewidth=1.3,
            zorder=5,
        )
        axes.scatter(
            [p.nbytes for p in tested],
            [p.test_error or 0.0 for p in tested],
            s=24,
            facecolors=palette.PAPER,
            edgecolors=palette.TEST,
            linewidths=1.3,
            zorder=5,
            label="front, on the test split",
        )


def _draw_others(axes: Axes, picture: FrontPicture) -> None:
    faint = [p for p in picture.points if not p.is_front and not p.label]
    if faint:
        axes.scatter(
            [p.nbytes for p in faint],
            [p.error for p in faint],
            s=18,
            color=palette.TRIAL,
            alpha=0.55,
            linewidths=0,
            zorder=2,
            label="other trials",
        )
    if picture.baselines:
        _draw_baselines(axes, picture.baselines)


def _draw_baselines(axes: Axes, baselines: Sequence[Point]) -> None:
    axes.scatter(
        [p.nbytes for p in baselines],
        [p.error for p in baselines],
        s=58,
        marker="D",
        color=palette.BASELINE,
        edgecolors=palette.PAPER,
        linewidths=1.2,
        zorder=7,
        label="uniform precision",
    )
    for point in baselines:
        axes.annotate(
            str(point.label),
            (point.nbytes, point.error),
            (7, 6),
            textcoords="offset points",
            color=palette.BASELINE,
            weight="bold",
            fontsize=9.5,
            zorder=8,
            path_effects=_HALO,
        )


def _draw_full_precision(axes: Axes, picture: FrontPicture) -> None:
    full = picture.full
    if full is None:
        return
    if full.interval is not None:
        axes.axhspan(*full.interval, color=palette.INK, alpha=0.07, linewidth=0, zorder=0.5)
    axes.axhline(
        full.error,
        label=full_label(full),
        color=palette.INK,
        linewidth=1.1,
        linestyle=(0, (5, 3)),
        zorder=3,
    )


def _draw_tower(axes: Axes, picture: BitsPicture, tower: Tower) -> None:
    layers = picture.tower(tower)
    names = short_names([layer.layer for layer in layers])
    rows = range(len(layers))
    widest = max(layer.weight_bits for layer in picture.layers)
    for row, shaded in zip(rows, picture.shaded(tower), strict=True):
        if shaded:
            axes.axhspan(row - 0.5, row + 0.5, color=palette.GRID, alpha=0.6, linewidth=0)
    color = palette.TOWERS[tower]
    bars = axes.barh(rows, [layer.weight_bits for layer in layers], height=0.66, color=color)
    axes.bar_label(bars, picture.labels(tower), padding=4, fontsize=9)
    axes.set_title(str(tower), loc="left", fontsize=10.5, weight="bold", color=color, pad=6)
    axes.yaxis.set_major_locator(FixedLocator(list(rows)))
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.set_ylim(picture.rows - 0.4, -0.6)
    room = 0.06 * max(len(label) for label in picture.labels(tower))
    axes.set_xlim(0, widest * (1.06 + room))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlabel("weight bits")
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_bounds(-0.5, len(layers) - 0.5)
