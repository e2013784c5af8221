"""The sections `constraints`, `search` and `stop`: what is looked for, how, and how long."""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from bitfront.objective import FIGURES
from bitfront.spec.section import AUTO, ErrorShare, Nbytes, Section


class ConstraintSpec(Section):
    """Upper limits that every configuration on the front must hold: one for each figure."""

    max_nbytes: Nbytes | None = None
    max_error: ErrorShare | None = None
    max_bits: float | None = Field(None, gt=0, le=16)
    max_bit_operations: float | None = Field(None, gt=0)
    max_latency_s: float | None = Field(None, gt=0)
    max_token_s: float | None = Field(None, gt=0)
    max_activation_nbytes: Nbytes | None = None
    max_kv_nbytes: Nbytes | None = None
    max_memory_nbytes: Nbytes | None = None
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


class AllocatorKind(StrEnum):
    """Who makes plans of cells.

    The exact program, the same with what neighbouring blocks do together, or a greedy walk.
    """

    PROGRAM = "program"
    PAIRWISE = "pairwise"
    GREEDY = "greedy"


MOST_WORKERS: Final = 4096


class SearchSpec(Section):
    """The sampler, its seed, and the pruning of its space.

    `allocator`: who makes plans of cells; what is proven is always about the program. With
    `pairwise` the options of neighbouring blocks are measured together too, a cell each.
    `epsilon`: an option stays in the space if some plan that uses it is within this share
    of the optimal proxy error at some budget.
    `from_bits` and `to_bits`: the budget axis, in mean bits per searched weight.
    `correct_cells`: the plans that were measured correct cells that rank them badly, and the
    program is solved again.
    `gpus_per_worker`: a share of a GPU, or whole ones; `auto` takes what the model's memory asks
    for where the cluster has GPUs, and none elsewhere.
    `early_stop`: a recovery in training ends when it cannot reach the front any more.
    `race`: a proposal of the sampler, or of `refine`, is evaluated part by part, and ends where
    one that costs no more is surely better.
    `refine`: around the best plans, swaps of two or three blocks at no larger a size are tried:
    at the job's limits, or where it has none at every budget in turn.
    `checkpoint_s`: seconds between two checkpoints of a recovery in training.
    `history`: the trials that the sampler learns from at most, those near the front and the
    latest; an ask takes time in proportion to it. None for all.
    `warm_start`: earlier studies of the same model, whose fronts are tried first.
    """

    allocator: AllocatorKind = AllocatorKind.PROGRAM
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
    race: bool = False
    refine: bool = False
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
