"""What a notebook shows of long work: a bar that is drawn anew in place."""

import sys
import time
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bitfront.units import percent_text
from service.views.stage import Clock, Stage, hypervolume_text

if TYPE_CHECKING:
    from IPython.display import DisplayHandle


def is_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookReporter:
    """A bar for each stage in the output of a notebook's cell, with what there is to know below."""

    def __init__(self, *, every_s: float = 0.25, clock: Clock = time.monotonic) -> None:
        """Draws nothing yet.

        Args:
            every_s: How often the bars are drawn anew at most.
            clock: Tells seconds.
        """
        self._every_s = every_s
        self._clock = clock
        self._stages: list[Stage] = []
        self._told: list[str] = []
        self._drawn_s = -every_s
        self._handle: DisplayHandle | None = None

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        empty = HTML("")  # type: ignore[no-untyped-call]  # theirs
        self._handle = display(empty, display_id=True)  # type: ignore[no-untyped-call]  # theirs
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Draws how it ended."""
        self._draw()

    def stage(self, name: str, total: int | None) -> None:
        """Adds a bar for the stage."""
        self._stages.append(Stage(name, total, self._clock))
        self._draw()

    def advance(self, n: int = 1) -> None:
        """Moves the bar."""
        if self._stages:
            stage = self._stages[-1]
            stage.reach(stage.done + n)
            self._draw_if_due()

    def trial(self, done: int, total: int, best_error: float | None, hypervolume: float) -> None:
        """Moves the bar, with the figures beside it."""
        if not self._stages:
            self._stages.append(Stage("trials", total, self._clock))
        best = "" if best_error is None else f"error {percent_text(best_error)}, "
        stage = self._stages[-1]
        stage.figures = f"{best}hypervolume {hypervolume_text(hypervolume)}"
        stage.reach(done, total)
        self._draw_if_due()

    def note(self, text: str) -> None:
        """Writes it below the bars."""
        self._told.append(f"<div>{escape(text)}</div>")
        self._draw()

    def warn(self, text: str) -> None:
        """Writes it below the bars, as a warning."""
        self._told.append(f"<div><b>warning: {escape(text)}</b></div>")
        self._draw()

    def _draw_if_due(self) -> None:
        if self._clock() - self._drawn_s >= self._every_s:
            self._draw()

    def _draw(self) -> None:
        if self._handle is None:
            return
        from IPython.display import HTML

        self._drawn_s = self._clock()
        rows = "".join(map(_bar, self._stages))
        text = f"<table>{rows}</table>{''.join(self._told)}"
        page = HTML(text)  # type: ignore[no-untyped-call]  # theirs
        self._handle.update(page)  # type: ignore[no-untyped-call]  # theirs


def _bar(stage: Stage) -> str:
    """A row: the stage's name, its bar, its count, its figures, and what is left."""
    known = "" if stage.total is None else f' value="{stage.done}" max="{stage.total}"'
    count = "" if stage.total is None else f"{stage.done}/{stage.total}"
    bar = f"<progress{known}></progress>"
    shown = (escape(stage.name), bar, count, stage.figures, stage.left)
    cells = "".join(f'<td style="text-align:left">{cell}</td>' for cell in shown)
    return f"<tr>{cells}</tr>"
