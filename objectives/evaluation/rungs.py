"""Training a recovery from rung to rung: at each one it is saved, and its error is shown."""

from collections.abc import Callable, Iterator, Sequence

from bitfront.attempt import IntermediateValue
from bitfront.files import SharedPath
from bitfront.objective import Objective
from bitfront.plan import Configuration
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.recovery.checkpointed_training import advance


def climb(
    evaluator: Evaluator,
    configuration: Configuration,
    rungs: Sequence[int],
    checkpoint: SharedPath,
    is_ending: Callable[[], bool] = lambda: False,
) -> Iterator[IntermediateValue]:
    """Trains a recovery, and shows its error on the selection split at each rung and at the end.

    After the last step the recovery is finished, and the evaluator knows it.

    Args:
        evaluator: What trains and measures.
        configuration: It has a recovery.
        rungs: Optimiser steps in rising order; those above the recovery's own do not count.
        checkpoint: Where the training is saved as it goes and at each rung, and resumes from.
        is_ending: Asked after each step: shall the training be saved at once, and end?

    Raises:
        Interrupted: The training was told to end; it is saved.
    """
    recovery = configuration.recovery
    assert recovery is not None
    saved = evaluator.checkpoint(configuration, checkpoint, is_ending)
    training = evaluator.scorer.begin(configuration)
    saved.resume(training)
    for step in (*(rung for rung in rungs if rung < recovery.steps), recovery.steps):
        if step < training.steps:
            continue  # it was shown before the checkpoint was written
        advance(training, step, saved)
        saved.save(training)
        evaluator.scorer.keep(configuration, training.stored())
        figures = evaluator.scorer.figures(configuration, SplitName.SELECTION)
        yield IntermediateValue(step, figures[Objective.ERROR.value])
        # Whoever looked at the value may have put another plan onto the model.
        evaluator.switch.to(configuration.plan)
