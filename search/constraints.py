"""The job's limits: by how much a configuration exceeds them."""

from bitfront.spec import ConstraintSpec
from bitfront.trial import Evaluation


def excesses(limits: ConstraintSpec, evaluation: Evaluation) -> dict[str, float]:
    """Each limit's relative excess by name; at most 0 where it holds."""
    figures = {**evaluation.metrics, **evaluation.values}
    named = {
        "max_nbytes": (limits.max_nbytes, "nbytes"),
        "max_error": (limits.max_error, "error"),
        "max_bits": (limits.max_bits, "bits_per_weight"),
        "max_bit_operations": (limits.max_bit_operations, "bit_operations"),
        "max_latency_s": (limits.max_latency_s, "latency_s"),
    }
    return {
        name: figures[figure] / limit - 1
        for name, (limit, figure) in named.items()
        if limit is not None
    }
