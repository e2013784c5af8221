"""The job specification: what a person writes in JOB.yaml, valid once built."""

import re
import warnings
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from bitfront.objective import FIGURES, TIMES, Objective
from bitfront.passwords import masked
from bitfront.plan import ClassPosition, TeacherText, digest
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS
from bitfront.targets import DeploymentTarget, Ranges, target_named
from bitfront.tasks import TaskKind, TaskMeasure, TaskName, meant_tasks
from bitfront.units import parse_nbytes, parse_share

STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
AUTO: Final = "auto"
CLASS_LISTS: Final = ("imagenet", "cifar10", "cifar100")
"""Well-known data sets whose class names `data.classes` may name in place of a list."""
SQLITE: Final = "sqlite:///"
REFERENCE_CLIP, REFERENCE_LLAVA = "digit-clip", "digit-llava"
MOST_WORKERS: Final = 4096


def _class_list(named: object) -> object:
    """The name of the class list that is meant, such as by ImageNet or CIFAR-10."""
    plain = named.lower().replace("-", "") if isinstance(named, str) else None
    return plain if plain in CLASS_LISTS else named


def _weight_bits(bits: int) -> int:
    if bits not in WEIGHT_BITS:
        raise ValueError(f"weight bits must be among {', '.join(map(str, WEIGHT_BITS))}")
    return bits


def _refuse_other_colours(text: str) -> None:
    from PIL import ImageColor  # takes a while to import, and few jobs name a colour

    try:
        is_opaque = len(ImageColor.getrgb(text)) == 3
    except ValueError:
        is_opaque = False
    if not is_opaque:
        raise ValueError(
            f"data.background: {text!r} is not an opaque colour: write it as CSS does, such as "
            "white or '#808080'"
        )


def tracking_uri(uri: str) -> str:
    """An address of MLflow, as it was given.

    Raises:
        ValueError: It is none, or holds a password.
    """
    place = uri.removeprefix("http://").removeprefix("https://").removeprefix(SQLITE)
    if place in ("", uri):
        raise ValueError(
            f"{masked(uri)!r} is not an MLflow tracking URI: write http://HOST:PORT for a server, "
            "or sqlite:///FILE"
        )
    if masked(uri) != uri:
        raise ValueError(
            f"the tracking URI {masked(uri)} would show its password to all who read the job: "
            "leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


def _activation_bits(bits: int) -> int:
    if bits not in ACTIVATION_BITS:
        raise ValueError(f"activation bits must be among {', '.join(map(str, ACTIVATION_BITS))}")
    return bits


# What a file may hold where a number is meant, for editors: see `bitfront.job.json_schema`.
_SIZE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^ *[0-9]+(\.[0-9]+)? *([kKmMgG][iI]?)?[bB]? *$"},
    ]
}
_SHARE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^ *[0-9]+(\.[0-9]+)? *% *$"},
    ]
}
_WEIGHT_SCHEMA: Final[dict[str, Any]] = {"enum": list(WEIGHT_BITS)}
_ACTIVATION_SCHEMA: Final[dict[str, Any]] = {"enum": list(ACTIVATION_BITS)}

Nbytes = Annotated[
    int, BeforeValidator(parse_nbytes), Field(gt=0), WithJsonSchema(_SIZE_SCHEMA, "validation")
]
ErrorShare = Annotated[
    float,
    BeforeValidator(parse_share),
    Field(gt=0, le=1),
    WithJsonSchema(_SHARE_SCHEMA, "validation"),
]
WeightBits = Annotated[
    int, BeforeValidator(_weight_bits), WithJsonSchema(_WEIGHT_SCHEMA, "validation")
]
ActivationBits = Annotated[
    int, BeforeValidator(_activation_bits), WithJsonSchema(_ACTIVATION_SCHEMA, "validation")
]
Percentile = Annotated[float, Field(gt=0.5, le=1.0)]


class Section(BaseModel):
    """A part of the specification: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class ModelSource(StrEnum):
    """Which library the model comes from."""

    REFERENCE = "reference"
    OPEN_CLIP = "open_clip"
    TRANSFORMERS = "transformers"


LOCAL_FOLDER: Final = "local-dir:"
"""How open_clip marks the name of a folder."""


class ModelSpec(Section):
    """The model: `name` is an open_clip model name, or a hub name or folder of transformers.

    open_clip also takes `local-dir:FOLDER` and `hf-hub:OWNER/NAME`, which have their own weights.

    A bundled model has the name `digit-clip` or `digit-llava`. `weights` is a checkpoint file
    or an open_clip pretrained tag. `dtype` is what LLaVA's weights are loaded in: by default
    bfloat16 on a GPU and float32 elsewhere; dual encoders are always in float32.
    """

    source: ModelSource
    name: str = REFERENCE_CLIP
    weights: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def asks(self) -> bool | None:
        """Whether it writes answers; None where that shows only when it is loaded."""
        if self.source is ModelSource.REFERENCE:
            return {REFERENCE_CLIP: False, REFERENCE_LLAVA: True}.get(self.name)
        return False if self.source is ModelSource.OPEN_CLIP else None


class DataSource(StrEnum):
    """Where the samples come from."""

    REFERENCE = "reference"
    IMAGE_FOLDER = "image_folder"
    DATASETS = "datasets"
    QUESTIONS = "questions"
    CAPTIONS = "captions"
    IMAGES = "images"

    @property
    def is_file(self) -> bool:
        """Whether the samples are listed in a file, and not in a folder."""
        return self in (DataSource.QUESTIONS, DataSource.CAPTIONS)


class Samples(Section):
    """How many samples each split takes."""

    calibration: int = Field(128, ge=1)
    tuning: int = Field(512, ge=1)
    selection: int = Field(512, ge=1)
    test: int = Field(1024, ge=1)


class SplitPaths(Section):
    """Where single splits take their samples, in place of `data.path`, in the same form."""

    calibration: str | None = None
    tuning: str | None = None
    selection: str | None = None
    test: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The paths that are given, by the name of the split."""
        known: dict[str, str | None] = self.model_dump()
        return {name: path for name, path in known.items() if path is not None}


class DataSpec(Section):
    """The task: images with one class each, with captions, or with questions and their answers.

    `task` says what the model does with them, where model and source leave a choice. `measure` says
    what `error` is 1 less: for classification `accuracy` over all images, or
    `mean_per_class_accuracy`, in which every class counts alike however many images it has; for
    retrieval the mean of the recall in both directions, at 1, 5 or 10; for multiple choice the
    accuracy of the option with the highest `likelihood`, or of the `letter` that the model writes.
    Each option is then listed behind the question as `option_format` says; empty lists none, and
    the model writes the option itself. For `images` without labels it is the agreement with the
    model in full precision: `divergence` counts each prediction by `exp(-KL)`, `agreement` whether
    the same class, or the same token, is the most probable one.

    `path` is a folder with one sub-folder a class, a `datasets` dataset saved to disk, a JSON Lines
    file of questions or captions, or captions as COCO has them. The images of a file lie beside it,
    or in `images`. `splits` names other paths for single splits; pictures that are in two of them
    come into one split only. Captions of classes are made from
    `templates`; a question is put to the model as `prompt`. An answer is what `answer_pattern`
    finds in the model's text (its first group, where it has one); without a pattern it is the
    whole text, which must end within `answer_tokens` tokens. `horizontal_flip` says that a
    mirrored picture keeps its class: then augmented views may be mirrored.

    `classes` says what the classes are called in captions: a mapping from the names that the
    data have, a list in the order of the labels, `imagenet`, `cifar10` or `cifar100`, or a file
    with one of these. `background` is the colour that shows through transparent images, and
    `skip_unreadable` leaves out images that cannot be read instead of refusing the job.
    """

    source: DataSource
    task: TaskName | None = None
    measure: TaskMeasure | None = None
    path: str | None = None
    images: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    question_column: str = "question"
    answer_column: str = "answer"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    prompt: str = "USER: <image>\n{} ASSISTANT:"
    option_format: str = "\n{letter}. {option}"
    answer_pattern: str | None = None
    answer_tokens: int = Field(16, ge=1)
    samples: Samples = Samples()
    splits: SplitPaths = SplitPaths()
    horizontal_flip: bool = False
    classes: Annotated[
        dict[str, str] | tuple[str, ...] | str | None, BeforeValidator(_class_list)
    ] = None
    background: str = "white"
    skip_unreadable: bool = False
    seed: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=1)

    @property
    def is_unlabelled(self) -> bool:
        """Whether nothing is known to be right: then the model in full precision says it."""
        return self.task is TaskName.AGREEMENT or self.source is DataSource.IMAGES

    @property
    def classes_file(self) -> str | None:
        """The file that holds the names of the classes, if they are in one."""
        named = self.classes
        return named if isinstance(named, str) and named not in CLASS_LISTS else None

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if self.source is not DataSource.REFERENCE and not self.path:
            raise ValueError(f"data of source {self.source} needs a path")
        if not self.templates:
            raise ValueError("data.templates is empty: give one, such as 'a photo of a {}.'")
        if any("{}" not in template for template in self.templates):
            raise ValueError("data.templates: each one needs {} where the class name goes")
        if self.option_format and "{option}" not in self.option_format:
            raise ValueError("data.option_format needs {option} where an option goes")
        if "{}" not in self.prompt and self.source is not DataSource.IMAGES:
            raise ValueError("data.prompt needs {} where the question goes")
        if self.background != DataSpec.model_fields["background"].default:
            _refuse_other_colours(self.background)
        if self.answer_pattern is not None:
            try:
                with warnings.catch_warnings(action="ignore", category=FutureWarning):
                    re.compile(self.answer_pattern)  # of sets that a later Python may read anew
            except re.error as error:
                raise ValueError(
                    f"data.answer_pattern is not a regular expression: {error}"
                ) from error
        return self


class Rounding(StrEnum):
    """How the codes of a weight matrix are chosen; the stored format is the same for all.

    `nearest` takes each weight's nearest level. `gptq` and `descent` make the error of the layer's
    outputs small on the calibration samples; see `bitfront.quant.rounding`. `auto` is `descent`
    where it can be had: a layer whose moments are not known has its nearest codes, and where the
    full model's inputs take too much memory the target `auto` is `own`. The other methods are
    refused there.
    """

    AUTO = "auto"
    NEAREST = "nearest"
    GPTQ = "gptq"
    DESCENT = "descent"


class Target(StrEnum):
    """What `gptq` and `descent` fit the codes to; see `bitfront.quant.rounding.targets`.

    `own` is the layer's own weight, on the inputs of the full model. `output` is the full model's
    output, on the inputs that the layer gets from the quantized ones before it. `residual` is
    the same, and layers that write into a residual stream also make good what it has lost before
    them. `auto` is `residual` for layers whose inputs have 8 bits or more, and `own` for others:
    a regression on coarse inputs shrinks the outputs.
    """

    OWN = "own"
    OUTPUT = "output"
    RESIDUAL = "residual"
    AUTO = "auto"


class RangeKind(StrEnum):
    """Where a static input range ends.

    `measured`: at the extremes of the calibration samples, or at the percentile of a clip.
    `searched`: where the output of the layer changes least (where a clip or learned bounds give
    no range already; a convolution with groups keeps its measured range). `auto`: `searched` for
    inputs of fewer than 8 bits where `rounding` is not `nearest`, and else `measured`.
    """

    MEASURED = "measured"
    SEARCHED = "searched"
    AUTO = "auto"


class QuantizerSpec(Section):
    """How weights and inputs are mapped to codes, for all layers alike.

    `target` says what every rounding but `nearest` fits the codes to.
    `ranges` is for static activations.
    `activations` says where the range of an input's codes is from: `static`, from the calibration
    split; `dynamic`, each token's own; `grouped`, each token's own in groups of 32
    columns, symmetric, as the integer kernels of runtimes round.
    """

    scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    scale_search: bool = True
    rounding: Rounding = Rounding.AUTO
    target: Target = Target.AUTO
    ranges: RangeKind = RangeKind.AUTO
    activations: Ranges = "static"

    @property
    def is_sequential(self) -> bool:
        """Whether a layer's weight may depend on the plan of the layers before it."""
        return self.rounding is not Rounding.NEAREST and self.target is not Target.OWN

    @property
    def may_search(self) -> bool:
        """Whether the inputs of some width have searched ranges."""
        return any(self.searches_range(bits) for bits in ACTIVATION_BITS)

    def target_for(self, activation_bits: int) -> Target:
        """What the codes of a layer with inputs of that width are fitted to."""
        if self.target is Target.AUTO:
            return Target.RESIDUAL if activation_bits >= 8 else Target.OWN
        return self.target

    def searches_range(self, activation_bits: int) -> bool:
        """Whether inputs of that width have searched ranges."""
        if self.activations != "static" or activation_bits >= 16:
            return False
        if self.ranges is RangeKind.AUTO:
            return activation_bits < 8 and self.rounding is not Rounding.NEAREST
        return self.ranges is RangeKind.SEARCHED


class DistilSpace(Section):
    """The settings of a distillation that may be chosen from; see `bitfront.plan.Distillation`."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = (100,)
    share: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    codes: tuple[bool, ...] = (False,)
    learning_rate_multiplier: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in type(self).model_fields:
            if not getattr(self, name):
                raise ValueError(f"recovery.distil.{name} has no value to choose from")
        return self


class RecoverySpace(Section):
    """The P4Q settings that the sampler may choose from; see `bitfront.plan.Recovery`.

    With `distil`, plans may be distilled too, and P4Q is trained on distilled ones. Where `distil`
    is all that is named, there is no P4Q.

    `class_position`, `class_specific`, `teacher` and `views` are for models that tell classes
    apart. `shots` and `views` of 0 take every tuning sample, and only as it is.
    """

    context_length: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0, 4, 8)
    class_position: tuple[ClassPosition, ...] = (ClassPosition.END,)
    class_specific: tuple[bool, ...] = (False,)
    reduction: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0, 2, 4)
    adapter_bits: tuple[Literal[4, 6, 8, 16], ...] = (8,)
    blend: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.2, 0.5)
    distillation: tuple[Annotated[float, Field(ge=0)], ...] = (4.0,)
    teacher: tuple[TeacherText, ...] = (TeacherText.TEMPLATES,)
    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    views: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0,)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (60,)
    learning_rate_multiplier: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    distil: DistilSpace | None = None

    @model_validator(mode="before")
    @classmethod
    def _leaves_p4q_out(cls, content: object) -> object:
        if (
            isinstance(content, dict)
            and content.keys() == {"distil"}
            and content["distil"] is not None
        ):
            return {**content, "context_length": (0,), "reduction": (0,)}
        return content

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in type(self).model_fields:
            if name != "distil" and not getattr(self, name):
                raise ValueError(f"recovery.{name} has no value to choose from")
        if not self.has_p4q and self.distil is None:
            raise ValueError(
                "a recovery needs a context_length or a reduction above 0, or distil: {}"
            )
        return self

    @property
    def has_p4q(self) -> bool:
        """Whether a prompt or an adapter can be chosen."""
        return any(self.context_length) or any(self.reduction)


class SpaceSpec(Section):
    """What the search may choose: the precisions of every layer, and the recovery.

    `keep` maps patterns of layer names (shell wildcards, with or without the `weight` at a name's
    end) to a fixed weight width: those layers are not variable, and nothing measured breaks it.
    Each pattern must match a layer, and no layer may have two widths.

    `clips` are the percentiles that static input ranges may be cut at; several are no further
    options, but searched for each option (see `profile.clip_search`).
    """

    weight_bits: tuple[WeightBits, ...] = (2, 3, 4, 6, 8)
    activation_bits: tuple[ActivationBits, ...] = (8,)
    groups: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    clips: tuple[Percentile, ...] = (1.0,)
    keep: dict[str, WeightBits] = {}
    recovery: RecoverySpace | None = None

    @property
    def p4q(self) -> RecoverySpace | None:
        """What P4Q may choose from; None without it."""
        return self.recovery if self.recovery is not None and self.recovery.has_p4q else None

    @property
    def distil(self) -> DistilSpace | None:
        """What a distillation may choose from; None where no plan is distilled."""
        return None if self.recovery is None else self.recovery.distil

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in ("weight_bits", "activation_bits", "groups", "clips"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"space.{name} is empty: there is nothing to search")
            if len(set(values)) != len(values):
                raise ValueError(f"space.{name} names a value twice: {list(values)}")
        return self


class Granularity(StrEnum):
    """How layers are grouped into blocks."""

    ENTROPY = "entropy"
    LAYER = "layer"
    TRANSFORMER_BLOCK = "transformer_block"


class PartitionSpec(Section):
    """The blocks: at most `depth` layers whose mean dependency exceeds `threshold`.

    `threshold` is h0 of Q-VLM, Eq 7; None takes the mean over the model.
    """

    granularity: Granularity = Granularity.ENTROPY
    depth: int = Field(3, ge=1, le=3)
    threshold: float | None = None


class VisionSpec(Section):
    """Visual-encoder optimisation (Q-VLM, Eqs 8 to 10): learns the vision tower's input ranges.

    The bounds of the vision tower's inputs are trained, with the tower at `weight_bits` and
    `activation_bits`, for `epochs` over `samples` calibration samples. The loss is the language
    model's own, plus the entropy of the decoder's inputs weighted by their influence, plus the
    errors at the tower's output and, times `output_weight` (eta), at the model's. `entropy_share`
    sets lambda1: what the entropy's part is of the language loss at the first step; it is large,
    for the entropy hardly moves with the ranges. `error_weight` is lambda2.
    """

    weight_bits: WeightBits = 4
    activation_bits: ActivationBits = 4
    samples: int = Field(64, ge=1)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(8, ge=1)
    rate: float = Field(1e-2, gt=0)
    entropy_share: float = Field(100.0, ge=0)
    error_weight: float = Field(1.0, ge=0)
    output_weight: float = Field(0.5, ge=0)


class ErrorMeasure(StrEnum):
    """What a cell's error measures."""

    OUTPUT_KL = "output_kl"
    GRADIENT = "gradient"
    FISHER = "fisher"
    GAUSS_NEWTON = "gauss_newton"
    ENTROPY = "entropy"


class CellSelection(StrEnum):
    """Which cells are measured: all, or those that the program uses."""

    ALL = "all"
    ADAPTIVE = "adaptive"


class ClipSearchKind(StrEnum):
    """How the clips of a block's inputs are searched: together, or layer by layer."""

    JOINT = "joint"
    SEQUENTIAL = "sequential"


class ProfileSpec(Section):
    """How cells are measured.

    `clip_search`: how the clips of `space.clips` are searched, where there are several, for
    every option that no other one dominates. `vision`: visual-encoder optimisation, for a
    generative model; it runs before everything else.

    `slack`: a joint option is measured only if no other one is at most as large with less
    than `1 / slack` of its error, both predicted by the sum of single-layer errors; 0
    measures every joint option.

    With `cells: adaptive` every option gets the error that `score` estimates, which takes a pass
    or two; then the cells are measured that the program's plans use at some budget, the others
    are corrected by what was learned, and the program is solved again, until all cells that it
    uses are measured, or `max_passes` of them.
    """

    measure: ErrorMeasure = ErrorMeasure.OUTPUT_KL
    cells: CellSelection = CellSelection.ALL
    score: ErrorMeasure = ErrorMeasure.GAUSS_NEWTON
    max_passes: int | None = Field(None, ge=1)
    slack: float = Field(1.5, ge=0)
    clip_search: ClipSearchKind = ClipSearchKind.JOINT
    vision: VisionSpec | None = None


class ConstraintSpec(Section):
    """Upper limits that every configuration on the front must hold: one for each figure."""

    max_nbytes: Nbytes | None = None
    max_error: ErrorShare | None = None
    max_bits: float | None = Field(None, gt=0, le=16)
    max_bit_operations: float | None = Field(None, gt=0)
    max_latency_s: float | None = Field(None, gt=0)
    max_token_s: float | None = Field(None, gt=0)
    max_activation_nbytes: Nbytes | None = None
    max_divergence: float | None = Field(None, gt=0)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the figure."""
        found = {figure.name: getattr(self, figure.limit) for figure in FIGURES}
        return {name: limit for name, limit in found.items() if limit is not None}


class Sampler(StrEnum):
    """Which Optuna sampler proposes configurations."""

    TPE = "tpe"
    NSGA2 = "nsga2"
    RANDOM = "random"


class SearchSpec(Section):
    """The sampler, its seed, and the pruning of its space.

    `epsilon`: an option stays in the space if some plan that uses it is within this share
    of the optimal proxy error at some budget.
    `from_bits` and `to_bits`: the budget axis, in mean bits per searched weight.
    `correct_cells`: the plans that were measured correct cells that rank them badly, and the
    program is solved again.
    `gpus_per_worker`: a share of a GPU, or whole ones; `auto` takes what the model's memory asks
    for where the cluster has GPUs, and none elsewhere.
    `early_stop`: a recovery in training ends when it cannot reach the front any more.
    `checkpoint_s`: seconds between two checkpoints of a recovery in training.
    `history`: the trials that the sampler learns from at most, those near the front and the
    latest; an ask takes time in proportion to it. None for all.
    `warm_start`: earlier studies of the same model, whose fronts are tried first.
    """

    sampler: Sampler = Sampler.TPE
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=1, le=MOST_WORKERS)
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = AUTO
    prune: bool = True
    epsilon: float = Field(0.1, ge=0)
    budgets: int = Field(12, ge=2)
    from_bits: float | None = Field(None, gt=0, le=16)
    to_bits: float | None = Field(None, gt=0, le=16)
    min_correlation: float = Field(0.5, ge=-1, le=1)
    correct_cells: bool = False
    max_attempts: int = Field(3, ge=1)
    early_stop: bool = True
    checkpoint_s: float = Field(10, ge=0)
    warm_start: tuple[str, ...] = ()
    history: int | None = Field(400, ge=100)

    @model_validator(mode="after")
    def _has_a_budget_axis(self) -> Self:
        if self.from_bits and self.to_bits and self.from_bits >= self.to_bits:
            raise ValueError(
                f"search.from_bits ({self.from_bits:g}) must be below to_bits ({self.to_bits:g})"
            )
        return self


class StopSpec(Section):
    """When the study ends: whichever limit is reached first.

    `patience` counts trials without growth of the hypervolume.
    """

    trials: int = Field(100, ge=1)
    time_s: float | None = Field(None, gt=0)
    patience: int | None = Field(None, ge=1)


class TrackingSpec(Section):
    """Where a study is mirrored to while it runs.

    `mlflow` is MLflow's tracking URI: a server (`http://` or `https://`), or `sqlite:///FILE`.
    """

    mlflow: Annotated[str, AfterValidator(tracking_uri)] | None = None

    @property
    def mlflow_file(self) -> str | None:
        """The path in `mlflow` where that is a file."""
        uri = self.mlflow or ""
        return uri.removeprefix(SQLITE) if uri.startswith(SQLITE) else None


class JobSpec(Section):
    """A whole search job.

    `target` is the runtime that the results are for: what it has no kernel for is refused,
    latencies are measured in it, and for gguf bytes are counted and inputs rounded as llama.cpp
    does it.
    """

    study: str = Field(pattern=STUDY_NAME)
    model: ModelSpec
    data: DataSpec
    quantizer: QuantizerSpec = QuantizerSpec()
    space: SpaceSpec = SpaceSpec()
    partition: PartitionSpec = PartitionSpec()
    profile: ProfileSpec = ProfileSpec()
    objectives: tuple[Objective, ...] = (Objective.ERROR, Objective.NBYTES)
    constraints: ConstraintSpec = ConstraintSpec()
    search: SearchSpec = SearchSpec()
    stop: StopSpec = StopSpec()
    tracking: TrackingSpec = TrackingSpec()
    target: DeploymentTarget = DeploymentTarget.ANY

    @model_validator(mode="after")
    def _has_objectives(self) -> Self:
        if len(self.objectives) < 2 or self.objectives[0] is not Objective.ERROR:
            raise ValueError("objectives must start with error and name at least one more")
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives name one twice")
        return self

    def needs(self, objective: Objective) -> bool:
        """Whether the job minimises or limits it, and so has to measure it."""
        return objective in self.objectives or objective in self.constraints.limits

    @property
    def is_timed(self) -> bool:
        """Whether the job has to measure a time."""
        return any(map(self.needs, TIMES))

    @property
    def timed_in(self) -> DeploymentTarget | None:
        """The target that latencies are measured in; None for torch's kernels, or for none."""
        target = target_named(self.target)
        return self.target if target is not None and target.is_timed and self.is_timed else None

    @property
    def is_blocked(self) -> bool:
        """Whether bytes are counted and inputs rounded in blocks, as the target does it."""
        target = target_named(self.target)
        return target is not None and target.is_blocked

    def with_halved_batch(self, times: int) -> Self:
        """The job as an attempt runs it after memory ran out so many times."""
        batch_size = max(1, self.data.batch_size >> times)
        smaller = self.data.model_copy(update={"batch_size": batch_size})
        return self.model_copy(update={"data": smaller})

    @property
    def asks(self) -> bool:
        """Whether the model is known, without loading it, to answer questions."""
        return self.model.asks is True or any(x.asks for x in self._named)

    @property
    def compares(self) -> bool:
        """Whether the model is known, without loading it, to compare images with texts."""
        return self.model.asks is False or any(not x.asks for x in self._named)

    @property
    def tasks(self) -> tuple[TaskKind, ...]:
        """The tasks that may be meant, as far as is known without loading the model.

        None where task, source and model do not go together.
        """
        data = self.data
        return meant_tasks(data.source, data.task, asks=self.model.asks)

    @property
    def task(self) -> TaskKind | None:
        """The task that is meant; None where only the loaded model decides."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    def may_be(self, task: TaskKind) -> bool:
        """Whether a task may be meant, as far as is known without loading the model."""
        return task in self.tasks

    @property
    def _named(self) -> tuple[TaskKind, ...]:
        """The task that the data are for, whatever the model; none where they leave a choice."""
        found = meant_tasks(self.data.source, self.data.task, asks=None)
        return found if len(found) == 1 else ()

    @property
    def is_bundled(self) -> bool:
        """Whether model and data are bitfront's own, so that nothing of a person's is read."""
        return (
            self.model.source is ModelSource.REFERENCE and self.data.source is DataSource.REFERENCE
        )

    @property
    def digest(self) -> str:
        """The hash of the whole specification."""
        return digest(self.model_dump(mode="json"))
