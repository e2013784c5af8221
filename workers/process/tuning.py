"""What a worker does for a tuning beside training: looks at the plan, finishes the best sample."""

from collections.abc import Sequence

from bitfront.errors import SpecError
from bitfront.files import SharedPath
from bitfront.plan import Configuration, Plan, Recovery
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.rungs import climb
from objectives.evaluation.tuned import recovery_errors, tuned_files
from workers.process import model_cache
from workers.scheduling.tuning_pool import RecoveryShape, TunedRecovery, TuningInfo
from workers.scheduling.worker_config import WorkerConfig


def look_at(config: WorkerConfig, plan: Plan, shapes: Sequence[RecoveryShape]) -> TuningInfo:
    """Loads the model and returns what the driver plans with."""
    evaluator = model_cache.evaluator(config)
    # Its memory is seen at work.
    evaluator.scorer.figures(Configuration(plan), SplitName.SELECTION)
    model = evaluator.model
    return TuningInfo(
        layers=model.layers,
        footprint=model_cache.footprint(model.device),
        model=model.identity,
        weights=model.weights_identity,
        identity=evaluator.identity,
        knows_classes=evaluator.family.knows_classes,
        nbytes=_nbytes(evaluator, plan, shapes),
    )


def _nbytes(
    evaluator: Evaluator, plan: Plan, shapes: Sequence[RecoveryShape]
) -> dict[RecoveryShape, int]:
    """The bytes with each recovery whose prompt fits the model."""
    longest = _longest_context(evaluator, plan, {shape.context_length for shape in shapes})
    found = {}
    for shape in shapes:
        if shape.context_length <= longest and (shape.context_length or shape.reduction):
            configuration = Configuration(plan, _recovery(shape))
            found[shape] = sum(evaluator.nbytes(configuration).values())
    return found


def _recovery(shape: RecoveryShape) -> Recovery:
    return Recovery(
        context_length=shape.context_length,
        class_specific=shape.class_specific,
        reduction=shape.reduction,
        adapter_bits=shape.adapter_bits,
    )


def _longest_context(evaluator: Evaluator, plan: Plan, lengths: set[int]) -> int:
    """The longest prompt that fits beside the longest caption."""
    for length in sorted(lengths - {0}, reverse=True):
        recovery = Recovery(context_length=length, steps=1)
        try:
            evaluator.scorer.begin(Configuration(plan, recovery))
        except SpecError:
            continue
        return length
    return 0


def finish(
    config: WorkerConfig, configuration: Configuration, checkpoint: SharedPath
) -> TunedRecovery:
    """The recovery of a sample: it is in its checkpoint, or is trained once more."""
    evaluator = model_cache.evaluator(config)
    for _ in climb(evaluator, configuration, (), checkpoint):
        pass
    selection = recovery_errors(evaluator, configuration, SplitName.SELECTION)
    files = tuned_files(evaluator, configuration, selection, model_cache.package_versions())
    return TunedRecovery(
        files=files,
        nbytes=evaluator.nbytes(configuration),
        selection_error=selection,
        test_error=recovery_errors(evaluator, configuration, SplitName.TEST),
    )
