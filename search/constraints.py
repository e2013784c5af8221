"""The job's limits: by how much a configuration exceeds them."""

from bitfront.objective import BY_NAME
from bitfront.spec import ConstraintSpec
from bitfront.trial import Evaluation


def excesses(constraints: ConstraintSpec, evaluation: Evaluation) -> dict[str, float]:
    """Each limit's relative excess by the limit's name; at most 0 where it holds."""
    figures = {**evaluation.metrics, **evaluation.values}
    return {
        BY_NAME[name].limit: figures[name] / limit - 1 for name, limit in constraints.limits.items()
    }
