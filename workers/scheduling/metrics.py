"""What a study tells whoever watches its figures; `workers/observability/metrics.py` shows them."""

from collections.abc import Mapping
from typing import Protocol

from bitfront.trial import Cause, TrialState


class Metrics(Protocol):
    """Hears of a study's progress, cache hits and failures; nothing depends on its answer."""

    def progress(
        self,
        counts: Mapping[TrialState, int],
        front: int,
        hypervolume: float,
        best_error: float | None,
    ) -> None:
        """The trials by state, the front's size and hypervolume, and the best error if any."""

    def cache_hit(self) -> None:
        """A trial was answered by a known evaluation."""

    def cells_reused(self, n: int) -> None:
        """So many cells were known already."""

    def failure(self, cause: Cause) -> None:
        """An attempt ended without a result."""


class NullMetrics:
    """Shows nothing."""

    def progress(
        self,
        counts: Mapping[TrialState, int],
        front: int,
        hypervolume: float,
        best_error: float | None,
    ) -> None:
        """Shows nothing."""

    def cache_hit(self) -> None:
        """Counts nothing."""

    def cells_reused(self, n: int) -> None:
        """Counts nothing."""

    def failure(self, cause: Cause) -> None:
        """Counts nothing."""
