"""For each field of a job's specification: which cache keys it enters, or why it enters none.

A test compares this table with the specification's fields and with the recipes: a field that is
missing here, or that enters other keys than the table says, fails it.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bitfront.errors import SpecError
from bitfront.objective import FIGURES
from bitfront.spec import SplitPaths


class Key(StrEnum):
    """The cache keys that take fields of the specification themselves."""

    CELL = "cell"
    CLIPS = "clips"
    BOUNDS = "bounds"
    EVALUATION = "evaluation"
    FEATURES = "features"
    VISION_CHECKPOINT = "vision checkpoint"


class Part(StrEnum):
    """What else a key takes, through which a field may enter it."""

    MODEL = "the identity of the model"
    DEVICE = "the device, and the runtime of latencies"
    SPLITS = "the identities of the splits"
    BATCHES = "the batches of the calibration split"
    RANGES = "the input ranges that calibration measured"
    CONTENT = "the layers and precisions, or the configuration, that the key is of"


@dataclass(frozen=True, slots=True)
class Decision:
    """How a field counts.

    Attributes:
        keys: Those whose recipe takes the field itself.
        through: The parts of keys that follow the field.
        reason: Why it enters no key; empty where it enters one.
    """

    keys: frozenset[Key] = frozenset()
    through: frozenset[Part] = frozenset()
    reason: str = ""

    def __post_init__(self) -> None:
        if bool(self.keys or self.through) == bool(self.reason):
            raise SpecError("a field either enters a key, or has a reason to enter none")


def _enters(*places: Key | Part) -> Decision:
    keys = frozenset(place for place in places if isinstance(place, Key))
    return Decision(keys, frozenset(place for place in places if isinstance(place, Part)))


def _irrelevant(reason: str) -> Decision:
    return Decision(reason=reason)


_EVERY_KEY = _enters(*Key)
_SPLITS = _enters(Part.SPLITS)
_CONTENT = _enters(Part.CONTENT)
_VISION = _enters(Key.BOUNDS, Key.VISION_CHECKPOINT)
_LIMIT = _irrelevant("a limit is held against figures that every evaluation has")
_OPTIONS = _irrelevant("says which options are measured, and a cell's key names its option")
_PROPOSALS = _irrelevant("says which configurations are tried, not what one is worth")
_SCHEDULE = _irrelevant("says where, when or how often work runs, not what comes out")
_END = _irrelevant("says how long a study runs")

DECISIONS: Final = MappingProxyType(
    {
        "study": _irrelevant("names the study, and results are shared between studies"),
        "model.source": _enters(Part.MODEL),
        "model.name": _enters(Part.MODEL),
        "model.weights": _enters(Part.MODEL),
        "model.device": _enters(Part.DEVICE),
        "model.dtype": _enters(Part.MODEL),
        "data.source": _SPLITS,
        "data.task": _SPLITS,
        # Of the errors that tunings keep, too, which know what they belong to by the features' key.
        "data.measure": _enters(Key.EVALUATION, Key.FEATURES),
        "data.path": _SPLITS,
        "data.images": _SPLITS,
        "data.image_column": _SPLITS,
        "data.label_column": _SPLITS,
        "data.question_column": _SPLITS,
        "data.answer_column": _SPLITS,
        "data.caption_column": _SPLITS,
        "data.templates": _SPLITS,
        "data.classes": _SPLITS,
        "data.background": _SPLITS,
        "data.skip_unreadable": _SPLITS,
        "data.prompt": _SPLITS,
        "data.option_format": _SPLITS,
        "data.answer_pattern": _SPLITS,
        "data.answer_tokens": _SPLITS,
        **{f"data.splits.{name}": _SPLITS for name in SplitPaths.model_fields},
        "data.samples.calibration": _SPLITS,
        "data.samples.tuning": _SPLITS,
        "data.samples.selection": _SPLITS,
        "data.samples.test": _SPLITS,
        # Of augmented views.
        "data.horizontal_flip": _enters(Key.EVALUATION, Key.FEATURES),
        # Of the splits, of augmented views, and of the labels that gradients are drawn for.
        "data.seed": _enters(Key.CELL, Key.CLIPS, Key.EVALUATION, Key.FEATURES, Part.SPLITS),
        # Of latencies, of ranges that are cut at a percentile, of the measures that sum within
        # a batch, of the batches that bounds are trained in or plans distilled, and of the moments
        # that a rounding method takes. Elsewhere it moves rounding errors at most: an attempt whose
        # memory ran out goes on with smaller batches.
        "data.batch_size": _enters(
            Key.CELL,
            Key.CLIPS,
            Key.BOUNDS,
            Key.EVALUATION,
            Key.FEATURES,
            Part.BATCHES,
            Part.RANGES,
        ),
        "quantizer.scheme": _EVERY_KEY,
        "quantizer.zero_points": _EVERY_KEY,
        "quantizer.scale_search": _EVERY_KEY,
        "quantizer.activations": _EVERY_KEY,
        "quantizer.activation_group": _EVERY_KEY,
        "quantizer.rounding": _EVERY_KEY,
        # Cells and clips are measured on the inputs of the full model, where the target is `own`;
        # learned bounds with the nearest codes.
        "quantizer.target": _enters(Key.EVALUATION, Key.FEATURES),
        "quantizer.ranges": _enters(Key.CELL, Key.CLIPS, Key.EVALUATION, Key.FEATURES),
        "space.weight_bits": _CONTENT,
        "space.activation_bits": _CONTENT,
        "space.groups": _CONTENT,
        "space.formats": _CONTENT,
        "space.clips": _enters(Key.CLIPS, Part.CONTENT),
        "space.keep": _CONTENT,
        "space.recovery": _CONTENT,
        "space.recovery.context_length": _CONTENT,
        "space.recovery.class_position": _CONTENT,
        "space.recovery.class_specific": _CONTENT,
        "space.recovery.reduction": _CONTENT,
        "space.recovery.adapter_bits": _CONTENT,
        "space.recovery.blend": _CONTENT,
        "space.recovery.distillation": _CONTENT,
        "space.recovery.teacher": _CONTENT,
        "space.recovery.shots": _CONTENT,
        "space.recovery.views": _CONTENT,
        "space.recovery.steps": _CONTENT,
        "space.recovery.learning_rate_multiplier": _CONTENT,
        "space.recovery.distil": _CONTENT,
        "space.recovery.distil.steps": _CONTENT,
        "space.recovery.distil.share": _CONTENT,
        "space.recovery.distil.codes": _CONTENT,
        "space.recovery.distil.learning_rate_multiplier": _CONTENT,
        "space.kv_cache": _CONTENT,
        "space.kv_cache.bits": _CONTENT,
        "space.kv_cache.levels": _CONTENT,
        "space.kv_cache.outliers": _CONTENT,
        "space.kv_cache.rotary": _CONTENT,
        "partition.granularity": _CONTENT,
        "partition.depth": _CONTENT,
        "partition.threshold": _CONTENT,
        # An evaluation with learned bounds depends on them, and so on the cells' identity.
        "profile.measure": _enters(Key.CELL, Key.CLIPS, Key.EVALUATION),
        "profile.cells": _OPTIONS,
        "profile.score": _irrelevant("stands for cells that are not measured, and is not stored"),
        "profile.max_passes": _OPTIONS,
        "profile.slack": _OPTIONS,
        "profile.clip_search": _enters(Key.CLIPS),
        # Learned bounds enter the later keys by their content.
        "profile.vision": _enters(Key.EVALUATION),
        "profile.vision.weight_bits": _VISION,
        "profile.vision.activation_bits": _VISION,
        "profile.vision.samples": _VISION,
        "profile.vision.epochs": _VISION,
        "profile.vision.batch_size": _VISION,
        "profile.vision.rate": _VISION,
        "profile.vision.entropy_share": _VISION,
        "profile.vision.error_weight": _VISION,
        "profile.vision.output_weight": _VISION,
        "objectives": _enters(Key.EVALUATION),
        # Some figures, such as a latency, are measured only where they are asked for.
        **{
            f"constraints.{figure.limit}": _enters(Key.EVALUATION) if figure.on_demand else _LIMIT
            for figure in FIGURES
        },
        "search.allocator": _PROPOSALS,
        "search.sampler": _PROPOSALS,
        # Of trainings.
        "search.seed": _enters(Key.BOUNDS, Key.EVALUATION, Key.FEATURES, Key.VISION_CHECKPOINT),
        "search.workers": _SCHEDULE,
        "search.gpus_per_worker": _SCHEDULE,
        "search.prune": _PROPOSALS,
        "search.epsilon": _PROPOSALS,
        "search.budgets": _PROPOSALS,
        "search.from_bits": _PROPOSALS,
        "search.to_bits": _PROPOSALS,
        "search.min_correlation": _PROPOSALS,
        "search.correct_cells": _PROPOSALS,
        "search.refine": _PROPOSALS,
        "search.max_attempts": _SCHEDULE,
        "search.early_stop": _irrelevant("a trial that is pruned leaves no evaluation"),
        "search.race": _irrelevant(
            "a trial that is pruned leaves no evaluation, and the others have the same batches"
        ),
        "search.checkpoint_s": _irrelevant(
            "a training that resumes from a checkpoint ends as one that was never interrupted"
        ),
        "search.warm_start": _PROPOSALS,
        "search.history": _PROPOSALS,
        "stop.trials": _END,
        "stop.time_s": _END,
        "stop.patience": _END,
        "resources.memory": _irrelevant("says what is in memory at a time, not what comes out"),
        "tracking.mlflow": _irrelevant("says where results are copied to"),
        # Of the bytes of the KV cache, which every evaluation of a job with a context has.
        "context_tokens": _enters(Key.EVALUATION),
        # Of latencies, which are measured in it, and of a runtime that rounds inputs in its own
        # way; else it only refuses jobs.
        "target": _enters(Key.CELL, Key.CLIPS, Key.EVALUATION, Key.FEATURES, Part.DEVICE),
    }
)
