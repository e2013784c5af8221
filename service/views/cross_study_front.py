"""The front of all studies of one model."""

from typing import TYPE_CHECKING

import numpy as np

from search.front import pareto_front

if TYPE_CHECKING:
    from storage.records import ModelFronts, Result


def cross_study_front(fronts: "ModelFronts") -> "list[Result]":
    """The trials that no trial of any study beats in what all studies minimised.

    Returns:
        The lowest error first; trials with equal values are all there.
    """
    if not fronts.results:
        return []
    rows = [[result.values[name] for name in fronts.objectives] for result in fronts.results]
    kept = pareto_front(np.array(rows, dtype=np.float64))
    return [fronts.results[index] for index in kept]
