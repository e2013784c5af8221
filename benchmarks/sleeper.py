"""A trial worker that sleeps and makes its values up.

It stands alone, for every worker process imports it: here is neither Optuna nor a database.
"""

import time
from collections.abc import Iterator

from bitfront.attempt import AttemptResult, Evaluated, IntermediateValue
from bitfront.plan import Configuration
from bitfront.trial import Evaluation
from workers.process.trial_worker import TrialWorker
from workers.scheduling.failures import worker_name

WEIGHTS = 65_536


def made_up(configuration: Configuration) -> dict[str, float]:
    """Values that behave like a model's: error falls fourfold a bit, some layers matter more."""
    error = nbytes = 0.0
    for place, (_, precision) in enumerate(configuration.plan):
        bits = precision.weight_bits
        error += (1 + 7 * (place * 5 % 11) / 10) * 4.0 ** (2 - bits)
        nbytes += bits * WEIGHTS / 8
    error /= 4.5 * len(configuration.plan)
    recovery = configuration.recovery
    if recovery is not None:
        share = 0.02 * recovery.context_length + 0.1 * (recovery.reduction == 2) + 0.1
        error *= 1 - share * (1 - abs(recovery.blend - 0.2))
        nbytes += 4096 * recovery.context_length + WEIGHTS // max(recovery.reduction, 1)
    return {"error": error, "nbytes": nbytes}


def sleeping_worker(seconds: float) -> type[TrialWorker]:
    """A trial worker that uses no processor time: it loads no model and sleeps."""

    class SleepingWorker(TrialWorker):
        def _run(self) -> Iterator[IntermediateValue | AttemptResult]:
            started_s = time.time()
            values = made_up(self._task.attempt.configuration)
            time.sleep(seconds)
            evaluation = Evaluation(values, {"started_s": started_s, "ended_s": time.time()})
            yield Evaluated(evaluation, seconds=seconds, worker=worker_name())

    return SleepingWorker
