"""The sections `partition` and `profile`: the blocks, and how their cells are measured."""

from enum import StrEnum

from pydantic import Field

from bitfront.spec.section import ActivationBits, Section, WeightBits


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
    LOSS_DELTA = "loss_delta"
    LIM = "lim"
    ZD = "zd"
    MASKED = "masked"
    RELEVANCE = "relevance"


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
