"""Who proposes the next trial: each origin's share of the trials follows what it brought."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from bitfront.trial import Origin
from search.front import pareto_front


class Shares:
    """Shares trials out between origins.

    An origin's weight is `(k + 1) / (n + 2)`, where `k` of its `n` finished trials are on the
    front: Laplace's estimate of how often one reaches it. The next trial goes to the origin
    that is furthest behind its weight's share of all trials, so that none is ever shut out.
    """

    def __init__(self) -> None:
        self._proposed: Counter[Origin] = Counter()
        self._finished: Counter[Origin] = Counter()
        self._measured: list[tuple[Origin, tuple[float, ...]]] = []

    def propose(self, origin: Origin) -> None:
        """Takes in that a trial of an origin begins."""
        self._proposed[origin] += 1

    def finish(self, origin: Origin, values: Sequence[float] | None) -> None:
        """Takes in how a trial ended: its objectives, all minimised; None where it has none."""
        self._finished[origin] += 1
        if values is not None:
            self._measured.append((origin, tuple(values)))

    def next(self, origins: Collection[Origin]) -> Origin:
        """Which of some origins proposes; the first of those that are equally far behind."""
        reached: Counter[Origin] = Counter()
        if self._measured:
            places = pareto_front(np.array([values for _, values in self._measured]))
            reached.update(self._measured[place][0] for place in places)
        weights = {
            origin: (reached[origin] + 1) / (self._finished[origin] + 2) for origin in origins
        }
        return min(origins, key=lambda origin: (self._proposed[origin] + 1) / weights[origin])
