"""Resources in whole units, and the job's upper limits on them as the program holds them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitfront.errors import SpecError
from bitfront.objective import BY_NAME, Objective
from bitfront.profile import Cell, Profile, Resource
from bitfront.spec import JobSpec

# Amounts are summed as 64-bit integers: bytes, bits and operations as they are, times in
# picoseconds.
_PICOSECONDS = 1e12
_FULL_BITS = 16

_OF_FIGURE = {
    "nbytes": Resource.NBYTES,
    "bits_per_weight": Resource.WEIGHT_BITS,
    "bit_operations": Resource.BIT_OPERATIONS,
    "latency_s": Resource.LATENCY_S,
    "token_s": Resource.TOKEN_S,
    "kv_nbytes": Resource.KV_NBYTES,
    "memory_nbytes": Resource.MEMORY_NBYTES,
}
"""The resource behind every figure that is additive."""


def whole_amount(cell: Cell, resource: Resource) -> int:
    """What a cell takes of a resource in whole units; part of an operation counts as one.

    Raises:
        SpecError: It was not measured.
    """
    amount = cell.amount(resource)
    if amount is None:
        raise SpecError(f"{resource} of {cell.option} in {cell.block} is not measured")
    if resource.is_time:
        return round(amount * _PICOSECONDS)
    return math.ceil(amount)


def amount_of(units: int, resource: Resource) -> float:
    """Whole units as an amount of the resource."""
    return units / _PICOSECONDS if resource.is_time else units


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper limit on a resource, as the job writes it.

    Attributes:
        name: What the job calls it, such as `max_bit_operations`.
        resource: What it limits.
        value: The limit of the whole model.
        fixed: What no option changes, in the unit of the resource.
        per: Amounts are divided by this before they are compared with the value: the weights
            of the model, where the limit is on their mean width.
    """

    name: str
    resource: Resource
    value: float
    fixed: float = 0.0
    per: float = 1.0

    @property
    def most(self) -> int:
        """What is left for the options, in whole units; negative where the rest is too much."""
        left = self.value * self.per - self.fixed
        if self.resource.is_time:
            return round(left * _PICOSECONDS)
        return math.floor(left)

    def total(self, units: int) -> float:
        """The value of a whole model whose options take so many units."""
        return (amount_of(units, self.resource) + self.fixed) / self.per

    def __str__(self) -> str:
        return f"{self.name} {self.value:,g}"


def job_limits(spec: JobSpec, profile: Profile) -> list[Limit]:
    """The job's limits on what options add up to, each with the part that no option changes."""
    fixed_weights = profile.fixed_nbytes // (4 if spec.is_blocked else 2)
    fixed = {
        Resource.NBYTES: float(profile.fixed_nbytes),
        Resource.WEIGHT_BITS: float(_FULL_BITS * fixed_weights),
        Resource.KV_NBYTES: float(profile.fixed_kv_nbytes),
        Resource.MEMORY_NBYTES: float(profile.fixed_nbytes + profile.fixed_kv_nbytes),
        **{Resource(name): seconds for name, seconds in profile.fixed_times.items()},
    }
    weights = fixed_weights + sum(layer.weights for layer in profile.layers)
    per = {Resource.WEIGHT_BITS: float(weights)}
    return [
        Limit(
            BY_NAME[name].limit, resource, value, fixed.get(resource, 0.0), per.get(resource, 1.0)
        )
        for name, value in spec.constraints.limits.items()
        if (resource := _OF_FIGURE.get(name)) is not None
    ]


def axis_resource(objectives: Sequence[Objective]) -> Resource:
    """What the program's budgets are about: the first objective that options add up to.

    Bytes, where no objective is a sum over options.
    """
    return next((_OF_FIGURE[name] for name in objectives if name in _OF_FIGURE), Resource.NBYTES)


def counted_resources(spec: JobSpec) -> tuple[Resource, ...]:
    """Every resource that the job minimises or limits, the axis first."""
    named = [*spec.objectives, *spec.constraints.limits]
    counted = [_OF_FIGURE[name] for name in named if name in _OF_FIGURE]
    return tuple(dict.fromkeys([axis_resource(spec.objectives), *counted]))


def measured_cells(cells: Iterable[Cell], resources: Sequence[Resource]) -> list[Cell]:
    """The cells whose resources are all known: a precision without a kernel has no latency."""
    return [
        cell for cell in cells if all(cell.amount(resource) is not None for resource in resources)
    ]
