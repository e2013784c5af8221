"""What profiling a model yields: entropies, dependencies, and cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bitfront.layers import Block, Layer
from bitfront.plan import Option


@dataclass(frozen=True, slots=True)
class LayerEntropy:
    """Entropies of one layer's quantized input over the calibration split.

    Attributes:
        layer: The layer's name.
        entropy: Soft-assignment entropy over the quantizer's levels, divided by the log of
            their number, in [0, 1] (Q-VLM, Eq 5).
        dependency: Conditional entropy of the next layer's input given this one's, in
            [0, 1] (Q-VLM, Eq 4); None at the end of a tower.
    """

    layer: str
    entropy: float
    dependency: float | None


class Resource(StrEnum):
    """What the options of a plan use up: the amounts of its cells add up to the plan's."""

    NBYTES = "nbytes"
    WEIGHT_BITS = "weight_bits"
    BIT_OPERATIONS = "bit_operations"
    LATENCY_S = "latency_s"
    TOKEN_S = "token_s"
    KV_NBYTES = "kv_nbytes"
    MEMORY_NBYTES = "memory_nbytes"

    @property
    def is_time(self) -> bool:
        """Whether it is in seconds."""
        return self in (Resource.LATENCY_S, Resource.TOKEN_S)


@dataclass(frozen=True, slots=True)
class Cell:
    """The measured cost and error of one option of a block.

    Attributes:
        block: Name of the block.
        option: The joint assignment.
        nbytes: Bytes of the block's packed layers under the option.
        bit_operations: Multiply-accumulates times weight bits times activation bits, a sample.
        error: Effect on the model's output with all other blocks in full precision (nats for
            an output KL); never negative.
        weight_bits: The block's weights, each times its width; None where it was not counted.
        latency_s: Seconds of a sample in the kernels of the block's layers; None where it was
            not measured, or where a precision has no kernel on the job's device.
        token_s: The same for a token that a model writes.
        kv_nbytes: Bytes of the KV cache at the job's context, where the block is a place of it; 0
            for layers; None where it was not counted.
        is_estimate: Whether the error is a corrected score and no measurement.
    """

    block: str
    option: Option
    nbytes: int
    bit_operations: float
    error: float
    weight_bits: int | None = None
    latency_s: float | None = None
    token_s: float | None = None
    kv_nbytes: int | None = None
    is_estimate: bool = False

    @property
    def memory_nbytes(self) -> int | None:
        """The bytes of both; None where those of the KV cache were not counted."""
        return None if self.kv_nbytes is None else self.nbytes + self.kv_nbytes

    def amount(self, resource: Resource) -> float | None:
        """How much of a resource the option takes; None where it is not known."""
        amount: float | None = getattr(self, resource.value)
        return amount


@dataclass(frozen=True, slots=True)
class PairTerm:
    """What options of two neighbouring blocks do beside one another.

    Attributes:
        first: A cell of one block.
        second: A cell of the next block.
        interaction: By how much the error with both exceeds the sum of their errors, in the
            unit of the cells; negative where they cancel.
    """

    first: Cell
    second: Cell
    interaction: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's layers, blocks and cells.

    Attributes:
        layers: In order of execution, tower by tower.
        blocks: The partition, in order of execution.
        cells: Every cell that was measured or, where so asked, estimated, block by block.
        fixed_nbytes: Bytes that no option changes (norms, biases, positions).
        fixed_times: Seconds that no option changes, by the name of the time that is measured.
        pairs: What options of neighbouring blocks do beside one another, where so asked.
        fixed_kv_nbytes: Bytes of the KV cache at the job's context that no option changes.
    """

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    cells: tuple[Cell, ...]
    fixed_nbytes: int
    fixed_times: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[PairTerm, ...] = ()
    fixed_kv_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class ClipChoice:
    """The clips that a search found for an option of a block.

    Attributes:
        option: The option with its clips.
        error: The block's output error under it: for each layer whose output leaves the
            block, the squared change over the squared output, summed.
        evaluations: Runs of the calibration split through the block that it took.
    """

    option: Option
    error: float
    evaluations: int


class StageArtefactKind(StrEnum):
    """What a stage found out that is not a cell.

    `CLIPS`: the options of some blocks with their searched clips, and the runs that took.
    `BOUNDS`: the learned bounds of the vision tower's inputs, by layer and activation bits.
    """

    CLIPS = "clips"
    BOUNDS = "bounds"
