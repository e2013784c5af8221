"""The front of all studies of one model."""

from typing import TYPE_CHECKING

import numpy as np

from search.front import pareto_front

if TYPE_CHECKING:
    from bitfront.trial import Trial
    from storage.records import ModelFronts


def cross_study_front(fronts: "ModelFronts") -> "list[Trial]":
    """The trials that no trial of any study beats in what all studies minimised.

    Returns:
        The lowest error first; trials with equal values are all there.
    """
    if not fronts.trials:
        return []
    rows = [[trial.values[name] for name in fronts.objectives] for trial in fronts.trials]
    kept = pareto_front(np.array(rows, dtype=np.float64))
    return [fronts.trials[index] for index in kept]
