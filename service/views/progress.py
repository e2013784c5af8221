"""What a person sees of long work: a bar on a terminal, plain lines anywhere else.

On a terminal::

    trials ━━━━━━━━━━━━━━━╸━━━━━━━━ 38/60  error 7.9 %  hypervolume 0.7312  front 11  0:42 left

Elsewhere, a line every few seconds or every tenth of the work::

    trials: 38 of 60, best error at the budget 7.9 %, hypervolume 0.7312, front 11, 42 s left
"""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from bitfront.units import percent_text
from service.views.notebook import NotebookReporter, is_notebook
from service.views.stage import Clock, Stage, hypervolume_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Reporter(Protocol):
    """Hears of the progress of long work, while its context is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def stage(self, name: str, total: int | None) -> None:
        """A stage of `total` units of work begins, None if nobody knows; the last one is over."""
        ...

    def advance(self, n: int = 1) -> None:
        """`n` more units of the stage are done."""
        ...

    def trial(self, done: int, total: int, best_error: float | None, hypervolume: float) -> None:
        """`done` trials are finished; the best error at the budget, and the hypervolume."""
        ...

    def note(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def warn(self, text: str) -> None:
        """Something that the person should act on or keep in mind."""
        ...


class PlainReporter:
    """A line every `every_s` seconds or every tenth of a stage, for logs and pipes."""

    def __init__(
        self, stream: TextIO, *, every_s: float = 5.0, clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._stage = Stage("", None, clock)
        self._shown_s = 0.0
        self._shown_done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is open: every line was written out."""

    def stage(self, name: str, total: int | None) -> None:
        """Says that the stage begins."""
        self._stage = Stage(name, total, self._clock)
        self._show(name if total is None else f"{name}: {total} to do")

    def advance(self, n: int = 1) -> None:
        """Counts on, and says so when it is time."""
        self._stage.reach(self._stage.done + n)
        self._show_if_due()

    def trial(self, done: int, total: int, best_error: float | None, hypervolume: float) -> None:
        """Says how the trials stand when it is time."""
        best = (
            "" if best_error is None else f", best error at the budget {percent_text(best_error)}"
        )
        self._stage.figures = f"{best}, hypervolume {hypervolume_text(hypervolume)}"
        self._stage.reach(done, total)
        self._show_if_due()

    def note(self, text: str) -> None:
        """Says it."""
        self._write(text)

    def warn(self, text: str) -> None:
        """Says it as a warning."""
        self._write(f"warning: {text}")

    def _show_if_due(self) -> None:
        stage = self._stage
        gained = stage.done - self._shown_done
        tenth = stage.total is not None and 10 * gained >= stage.total
        if not gained:
            return
        late = self._clock() - self._shown_s >= self._every_s
        if late or tenth or stage.done == stage.total:
            of = "" if stage.total is None else f" of {stage.total}"
            left = f", {stage.left}" if stage.left else ""
            self._show(f"{stage.name}: {stage.done}{of}{stage.figures}{left}")

    def _show(self, line: str) -> None:
        self._shown_s, self._shown_done = self._clock(), self._stage.done
        self._write(line)

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class RichReporter:
    """A progress bar for each stage, on a terminal."""

    def __init__(self, console: "Console", *, clock: Clock = time.monotonic) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._clock = clock
        self._stage = Stage("", None, clock)
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28 if console.width >= 110 else 12),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[figures]}"),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
            redirect_stdout=False,
            redirect_stderr=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish_stage(reached=error is None)
        self._progress.stop()

    def stage(self, name: str, total: int | None) -> None:
        """Adds a bar for the stage."""
        self._finish_stage(reached=True)
        self._stage = Stage(name, total, self._clock)
        self._task = self._progress.add_task(name, total=total, count="", figures="", left="")
        self._refresh()

    def advance(self, n: int = 1) -> None:
        """Moves the bar."""
        self._stage.reach(self._stage.done + n)
        self._refresh()

    def trial(self, done: int, total: int, best_error: float | None, hypervolume: float) -> None:
        """Moves the bar, with the figures beside it."""
        best = "" if best_error is None else f"error [bold]{percent_text(best_error)}[/bold]  "
        self._stage.figures = f"{best}hypervolume {hypervolume_text(hypervolume)}"
        self._stage.reach(done, total)
        self._refresh()

    def note(self, text: str) -> None:
        """Prints it above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, style="dim")

    def warn(self, text: str) -> None:
        """Prints it above the bars, in colour."""
        self._progress.console.print(
            f"warning: {text}", markup=False, highlight=False, style="yellow"
        )

    def _refresh(self) -> None:
        if self._task is None:
            return
        stage = self._stage
        of = "" if stage.total is None else f"{stage.done}/{stage.total}"
        self._progress.update(
            self._task,
            completed=stage.done,
            total=stage.total,
            count=of,
            figures=stage.figures,
            left=stage.left,
        )

    def _finish_stage(self, *, reached: bool) -> None:
        """Stops the bar; one without a known end is filled if the work went on."""
        if self._task is None:
            return
        if reached and self._stage.total is None:
            self._progress.update(self._task, completed=1, total=1, count="done")
        self._progress.update(self._task, left="")
        self._progress.stop_task(self._task)


def reporter_for(stream: TextIO) -> Reporter:
    """A bar in a notebook or if the stream is a terminal, plain lines otherwise."""
    if is_notebook():
        return NotebookReporter()
    if not stream.isatty():
        return PlainReporter(stream)
    from rich.console import Console

    return RichReporter(Console(file=stream))
