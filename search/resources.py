"""Resources in whole units, and the job's upper limits on them as the program holds them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitfront.errors import SpecError
from bitfront.layers import Layer
from bitfront.profile import Cell, Profile, Resource
from bitfront.spec import ConstraintSpec, Objective

# Amounts are summed as 64-bit integers: bytes, bits and operations as they are, latencies in
# picoseconds.
_PICOSECONDS = 1e12
_FULL_BITS = 16

_OF_OBJECTIVE = {
    Objective.NBYTES: Resource.NBYTES,
    Objective.BIT_OPERATIONS: Resource.BIT_OPERATIONS,
    Objective.LATENCY_S: Resource.LATENCY_S,
}


def whole_amount(cell: Cell, resource: Resource) -> int:
    """What a cell takes of a resource in whole units; part of an operation counts as one.

    Raises:
        SpecError: It was not measured.
    """
    amount = cell.amount(resource)
    if amount is None:
        raise SpecError(f"{resource} of {cell.option} in {cell.block} is not measured")
    if resource is Resource.LATENCY_S:
        return round(amount * _PICOSECONDS)
    return math.ceil(amount)


def amount_of(units: int, resource: Resource) -> float:
    """Whole units as an amount of the resource."""
    return units / _PICOSECONDS if resource is Resource.LATENCY_S else units


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
        if self.resource is Resource.LATENCY_S:
            return round(left * _PICOSECONDS)
        return math.floor(left)

    def total(self, units: int) -> float:
        """The value of a whole model whose options take so many units."""
        return (amount_of(units, self.resource) + self.fixed) / self.per

    def __str__(self) -> str:
        return f"{self.name} {self.value:,g}"


def job_limits(constraints: ConstraintSpec, profile: Profile) -> list[Limit]:
    """The job's limits on what options add up to, each with the part that no option changes."""
    fixed_weights = profile.fixed_nbytes // 2
    weights = fixed_weights + sum(layer.weights for layer in profile.layers)
    limits = [
        (constraints.max_nbytes, Resource.NBYTES, "max_nbytes", profile.fixed_nbytes, 1),
        (
            constraints.max_bits,
            Resource.WEIGHT_BITS,
            "max_bits",
            _FULL_BITS * fixed_weights,
            weights,
        ),
        (constraints.max_bit_operations, Resource.BIT_OPERATIONS, "max_bit_operations", 0, 1),
        (
            constraints.max_latency_s,
            Resource.LATENCY_S,
            "max_latency_s",
            profile.fixed_latency_s,
            1,
        ),
    ]
    return [
        Limit(name, resource, value, fixed, per)
        for value, resource, name, fixed, per in limits
        if value is not None
    ]


def objective_resources(objectives: Sequence[Objective]) -> list[Resource]:
    """The resources among some objectives, in their order."""
    return [_OF_OBJECTIVE[objective] for objective in objectives if objective in _OF_OBJECTIVE]


def weight_bits(layers: Sequence[Layer], widths: Sequence[int]) -> int:
    """The weights of some layers, each times its width."""
    return sum(layer.weights * bits for layer, bits in zip(layers, widths, strict=True))
