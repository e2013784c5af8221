"""Figures for Prometheus, through Ray: how a study stands, and where its seconds go.

Ray's agent on each node offers them under its own prefix: `bitfront_trials` is read as
`ray_bitfront_trials`, and a counter's name ends in `_total`. Without a connection to Ray nothing
is kept, and nothing is imported.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from bitfront.trial import Cause, TrialState

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

# Ray forgets a gauge that nobody has set for 20 s.
_REFRESH_S: Final = 1.0
_STAGE_BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
_DATABASE_BOUNDS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_MEANINGS: Final = {
    "trials": "Trials of the study by state.",
    "front_size": "Trials on the front.",
    "hypervolume": "Hypervolume of the front.",
    "best_error": "Lowest error among trials within the budget.",
    "heartbeat_age_seconds": "Seconds since the driver last renewed its lease.",
    "evaluation_cache_hits": "Trials that were answered by an evaluation known before.",
    "cells_reused": "Cells that another run had measured.",
    "attempt_failures": "Attempts that ended without a result, by cause.",
    "stage_seconds": "Seconds that a stage of the work took.",
    "database_seconds": "Seconds that the driver waited for a transaction.",
}


class StudyMetrics:
    """The figures of a study that its driver shows.

    Within its `with` block the gauges are kept fresh, also while the driver waits: Ray forgets
    the ones that nobody sets. After it they go away within half a minute.
    """

    def __init__(self, study: str) -> None:
        self._study = study
        self._progress: dict[tuple[str, str], float] = {}
        self._last_beat_s: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def progress(
        self,
        counts: Mapping[TrialState, int],
        front: int,
        hypervolume: float,
        best_error: float | None,
    ) -> None:
        """Shows how the trials stand.

        Args:
            counts: Trials by state; a state that is left out has none.
            front: Trials on the front.
            hypervolume: Of the front.
            best_error: Lowest error at the budget; None if there is none yet.
        """
        progress = {("trials", state.value): float(counts.get(state, 0)) for state in TrialState}
        progress["front_size", ""] = float(front)
        progress["hypervolume", ""] = hypervolume
        if best_error is not None:
            progress["best_error", ""] = best_error
        self._progress = progress
        self._show()

    def heartbeat(self, age_s: float = 0.0) -> None:
        """Takes note that the lease was renewed `age_s` seconds ago; the age shown grows on."""
        self._last_beat_s = time.monotonic() - age_s
        self._show()

    def cache_hit(self) -> None:
        """Counts a trial that was answered by a known evaluation."""
        if _is_connected():
            _counter("evaluation_cache_hits").inc(1, {"study": self._study})

    def cells_reused(self, n: int) -> None:
        """Counts cells that were known already."""
        if n > 0 and _is_connected():
            _counter("cells_reused").inc(n, {"study": self._study})

    def failure(self, cause: Cause) -> None:
        """Counts an attempt that ended without a result."""
        if _is_connected():
            tags = {"study": self._study, "cause": cause.value}
            _counter("attempt_failures", "cause").inc(1, tags)

    def database(self, seconds: float) -> None:
        """Adds how long the driver waited for one transaction, back-off included."""
        if _is_connected():
            tags = {"study": self._study}
            _histogram("database_seconds", _DATABASE_BOUNDS_S).observe(seconds, tags)

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_S):
            self._show()

    def _show(self) -> None:
        if not _is_connected():
            return
        for (name, state), value in self._progress.items():
            if state:
                _gauge(name, "state").set(value, {"study": self._study, "state": state})
            else:
                _gauge(name).set(value, {"study": self._study})
        if self._last_beat_s is not None:
            age_s = time.monotonic() - self._last_beat_s
            _gauge("heartbeat_age_seconds").set(age_s, {"study": self._study})


def observe_stage(study: str, stage: str, seconds: float) -> None:
    """Adds how long a stage of a study's work took, on a worker or the driver.

    Args:
        study: The study's name.
        stage: One of few fixed names: `load`, `cells`, `evaluate`, `recovery`, `spool` ...
        seconds: By a monotonic clock.
    """
    if _is_connected():
        tags = {"study": study, "stage": stage}
        _histogram("stage_seconds", _STAGE_BOUNDS_S, "stage").observe(seconds, tags)


@contextmanager
def timed(study: str, stage: str) -> Iterator[None]:
    """Observes the seconds of its `with` block as a stage, however the block ends."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        observe_stage(study, stage, time.perf_counter() - started_s)


def _is_connected() -> bool:
    """Whether this process is connected to Ray; a process without Ray does not import it."""
    ask = getattr(sys.modules.get("ray"), "is_initialized", None)
    return ask is not None and bool(ask())


@cache
def _gauge(name: str, *tags: str) -> "Gauge":
    from ray.util.metrics import Gauge

    return Gauge(f"bitfront_{name}", _MEANINGS[name], ("study", *tags))


@cache
def _counter(name: str, *tags: str) -> "Counter":
    from ray.util.metrics import Counter

    return Counter(f"bitfront_{name}", _MEANINGS[name], ("study", *tags))


@cache
def _histogram(name: str, bounds: tuple[float, ...], *tags: str) -> "Histogram":
    from ray.util.metrics import Histogram

    return Histogram(f"bitfront_{name}", _MEANINGS[name], list(bounds), ("study", *tags))
