"""What a configuration is judged by: one row for each figure, which everything else reads.

A figure is measured for every trial and can be limited. An objective is a figure that a search can
minimise. Columns of the database, limits of a job and of a query, options of the command line,
and columns of tables, logs and exports all follow from the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, Self

from bitfront.units import latency_text, percent_text, size_text


class Objective(StrEnum):
    """What is minimised."""

    ERROR = "error"
    NBYTES = "nbytes"
    BIT_OPERATIONS = "bit_operations"
    LATENCY_S = "latency_s"
    TOKEN_S = "token_s"
    ACTIVATION_NBYTES = "activation_nbytes"
    KV_NBYTES = "kv_nbytes"
    MEMORY_NBYTES = "memory_nbytes"
    DIVERGENCE = "divergence"


class Quantity(Enum):
    """What a figure's number is, and so how a person may write a limit for it."""

    SHARE = "share"
    """At most 1, such as 0.15 or 15%."""
    NBYTES = "nbytes"
    """Whole bytes, such as 4096 or 40MB."""
    NUMBER = "number"
    """A positive number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a trial; lower is better.

    Attributes:
        name: Its name in a job, in evaluations and exports, and its column in the database.
        label: Its name in tables.
        limit: The limit's name in a job and in queries, such as `max_nbytes`.
        limit_help: What the limit's command-line option says.
        quantity: What the number is.
        metavar: What stands for the limit in the option's help.
        write: How a table writes it.
        unit: What follows the written number in a sentence, if it does not say it itself.
        per_split: Whether it depends on the samples, so that the test split has its own value.
        per_device: Whether it compares only between studies of the same device.
        is_additive: Whether it is a sum over layers plus a constant, so that the integer program
            can hold its limit as a constraint.
        on_demand: Whether it is measured only for a job that minimises or limits it.
        is_tabled: Whether the table of a front has a column for it.
    """

    name: str
    label: str
    limit: str
    limit_help: str
    quantity: Quantity
    metavar: str
    write: Callable[[float], str]
    unit: str = ""
    per_split: bool = False
    per_device: bool = False
    is_additive: bool = False
    on_demand: bool = False
    is_tabled: bool = True

    @property
    def is_objective(self) -> bool:
        """Whether a job can minimise it."""
        return self.name in set(Objective)

    @property
    def test_name(self) -> str:
        """Its name and column for the value on the test split."""
        return f"test_{self.name}"

    @property
    def option(self) -> str:
        """The command-line option of its limit, such as `--max-nbytes`."""
        return f"--{self.limit.replace('_', '-')}"

    def text(self, value: float) -> str:
        """A value as a sentence writes it, such as `3.10 bits a weight`."""
        return f"{self.write(value)} {self.unit}".rstrip()

    def exported(self, value: float | None) -> float | int | None:
        """A value for other programs: bytes are whole numbers."""
        is_whole = value is not None and self.quantity is Quantity.NBYTES and value == int(value)
        return int(value) if value is not None and is_whole else value


FIGURES: Final = (
    Figure(
        name="error",
        label="error",
        limit="max_error",
        limit_help="Highest error on the selection split, such as 0.1 or 10%.",
        quantity=Quantity.SHARE,
        metavar="SHARE",
        write=percent_text,
        per_split=True,
    ),
    Figure(
        name="nbytes",
        label="size",
        limit="max_nbytes",
        limit_help="Largest checkpoint, such as 40kB or 8GB.",
        quantity=Quantity.NBYTES,
        metavar="SIZE",
        write=size_text,
        is_additive=True,
    ),
    Figure(
        name="bits_per_weight",
        label="bits/weight",
        limit="max_bits",
        limit_help="Mean bits of a weight.",
        quantity=Quantity.NUMBER,
        metavar="BITS",
        write=lambda bits: f"{bits:.2f}",
        unit="bits a weight",
        is_additive=True,
    ),
    Figure(
        name="bit_operations",
        label="bit operations",
        limit="max_bit_operations",
        limit_help="Multiply-accumulates of a sample, times bits of weights and of inputs.",
        quantity=Quantity.NUMBER,
        metavar="COUNT",
        write=lambda count: f"{count:.4g}",
        unit="bit operations",
        is_additive=True,
        is_tabled=False,
    ),
    Figure(
        name="latency_s",
        label="latency",
        limit="max_latency_s",
        limit_help="Time of an image, or of reading a prompt.",
        quantity=Quantity.NUMBER,
        metavar="SECONDS",
        write=latency_text,
        per_split=True,
        per_device=True,
        is_additive=True,
        on_demand=True,
    ),
    Figure(
        name="token_s",
        label="token",
        limit="max_token_s",
        limit_help="Time of writing a further token.",
        quantity=Quantity.NUMBER,
        metavar="SECONDS",
        write=latency_text,
        unit="a token",
        per_split=True,
        per_device=True,
        is_additive=True,
        on_demand=True,
    ),
    Figure(
        name="activation_nbytes",
        label="activations",
        limit="max_activation_nbytes",
        limit_help="Peak memory of a batch's activations, such as 200MB.",
        quantity=Quantity.NBYTES,
        metavar="SIZE",
        write=size_text,
        unit="of activations",
        on_demand=True,
    ),
    Figure(
        name="kv_nbytes",
        label="KV cache",
        limit="max_kv_nbytes",
        limit_help="Largest KV cache of one sequence of context_tokens, such as 2GB.",
        quantity=Quantity.NBYTES,
        metavar="SIZE",
        write=size_text,
        unit="of KV cache",
        is_additive=True,
        on_demand=True,
    ),
    Figure(
        name="memory_nbytes",
        label="memory",
        limit="max_memory_nbytes",
        limit_help="Largest checkpoint and KV cache together, such as 24GB.",
        quantity=Quantity.NBYTES,
        metavar="SIZE",
        write=size_text,
        unit="of weights and KV cache",
        is_additive=True,
        on_demand=True,
    ),
    Figure(
        name="divergence",
        label="divergence",
        limit="max_divergence",
        limit_help="Highest mean KL from full precision on the selection split, in nats.",
        quantity=Quantity.NUMBER,
        metavar="NATS",
        write=lambda nats: f"{nats:.3g}",
        unit="nats from full precision",
        per_split=True,
    ),
)
"""Every figure, in the order of tables and exports."""

TIMES: Final = (Objective.LATENCY_S, Objective.TOKEN_S)
"""The figures that are measured by a clock."""

CACHE_SIZES: Final = (Objective.KV_NBYTES, Objective.MEMORY_NBYTES)
"""The figures that count the KV cache of a context of some length."""

OBJECTIVES: Final = tuple(figure for figure in FIGURES if figure.is_objective)
"""The figures that a job can minimise; each has a second column for the test split."""

BY_NAME: Final[Mapping[str, Figure]] = {figure.name: figure for figure in FIGURES}
BY_LIMIT: Final[Mapping[str, Figure]] = {figure.limit: figure for figure in FIGURES}


@dataclass(frozen=True, slots=True)
class Budget:
    """Where the best error of a study is read off.

    Attributes:
        figure: What is limited.
        most: The limit.
    """

    figure: str
    most: float

    @classmethod
    def of(
        cls, objectives: Sequence[str], limits: Mapping[str, float], full: Mapping[str, float]
    ) -> Self | None:
        """The job's limit on its second objective, or a quarter of what full precision takes.

        Args:
            objectives: The job's, the error first.
            limits: The job's limits, by the name of the figure.
            full: What the full-precision model takes; empty as long as it is not known.
        """
        figure = objectives[1]
        if figure in limits:
            return cls(figure, limits[figure])
        return cls(figure, full[figure] / 4) if figure in full else None

    @property
    def limits(self) -> dict[str, float]:
        """The budget as the limits of a query, such as `max_nbytes`."""
        return {BY_NAME[self.figure].limit: self.most}

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether a trial's values are within the budget."""
        return values[self.figure] <= self.most
