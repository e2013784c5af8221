"""The space that the sampler searches: a surviving option for each block, and the recovery."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from bitfront.layers import Block
from bitfront.plan import Configuration, Distillation, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import DistilSpace, RecoverySpace

Params = Mapping[str, int | float | str]

_RECOVERY_FIELDS = tuple(field.name for field in fields(Recovery))
_DISTIL_FIELDS = tuple(DistilSpace.model_fields)


@dataclass(frozen=True, slots=True)
class Variable:
    """An ordered choice: the sampler picks an index from 0 to `size - 1`."""

    name: str
    size: int

    @property
    def part(self) -> str:
        """What it belongs to, such as `recovery`, whose variable says whether there is one."""
        return self.name.partition(".")[0]


class SearchSpace:
    """Maps the sampler's indices to configurations and back.

    The options of a block are ordered by size, so that neighbouring indices are alike.

    Attributes:
        variables: What every configuration has: an option a block, whether it is distilled, and
            whether it recovers.
        conditional: The settings of these two, which mean nothing where there is neither.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        options: Mapping[str, Sequence[Option]],
        kept: Mapping[str, Precision],
        recovery: RecoverySpace | None,
        *,
        always_recovers: bool = False,
    ) -> None:
        """Takes the surviving options of each block, smallest first.

        Args:
            blocks: The partition.
            options: Block name to its options.
            kept: Layers outside of every block, and their fixed precisions.
            recovery: What P4Q and a distillation may choose from, or None for neither.
            always_recovers: Whether every configuration has a recovery.
        """
        self.blocks = tuple(blocks)
        self.options = {block.name: tuple(options[block.name]) for block in blocks}
        self._indices = {
            name: {option: index for index, option in enumerate(choices)}
            for name, choices in self.options.items()
        }
        self._kept = dict(kept)
        self._recovery = recovery if recovery is not None and recovery.has_p4q else None
        self._distil = None if recovery is None else recovery.distil
        self._given = Plan(())
        self._always_recovers = always_recovers
        self.variables = self._list_variables()
        self.conditional = self._list_conditional()

    @classmethod
    def of_recoveries(cls, plan: Plan, recovery: RecoverySpace) -> Self:
        """The space of one plan's recoveries: their settings are all that is searched."""
        space = cls((), {}, dict(plan), recovery, always_recovers=True)
        space._given = plan
        return space

    def _list_variables(self) -> tuple[Variable, ...]:
        variables = [
            Variable(f"block:{block.name}", len(self.options[block.name]))
            for block in self.blocks
            if len(self.options[block.name]) > 1
        ]
        if self._always_recovers:
            return (*variables, *self._settings())
        if self._distil is not None:
            variables.append(Variable("distil", 2))
        if self._recovery is not None:
            variables.append(Variable("recovery", 2))
        return tuple(variables)

    def _list_conditional(self) -> tuple[Variable, ...]:
        return () if self._always_recovers else self._settings()

    def _settings(self) -> tuple[Variable, ...]:
        spaces = (
            ("distil", self._distil, _DISTIL_FIELDS),
            ("recovery", self._recovery, _RECOVERY_FIELDS),
        )
        sizes = {
            f"{part}.{field}": len(getattr(space, field))
            for part, space, known in spaces
            for field in (() if space is None else known)
        }
        return tuple(Variable(name, n) for name, n in sizes.items() if n > 1)

    @property
    def log10_size(self) -> float:
        """The logarithm of the number of plans (recovery aside)."""
        return sum(math.log10(len(options)) for options in self.options.values())

    def configuration(self, params: Params) -> Configuration:
        """The configuration that a choice of indices stands for."""
        chosen = [
            (block, self.options[block.name][int(params.get(f"block:{block.name}", 0))])
            for block in self.blocks
        ]
        searched = Plan.from_options(chosen)
        plan = replace(
            Plan.of({**self._kept, **dict(searched)}),
            distil=self._distilled(params),
            cache=self._given.cache or searched.cache,
        )
        return Configuration(plan, self._recover(params))

    def _distilled(self, params: Params) -> Distillation | None:
        if self._distil is None or not int(params.get("distil", 0)):
            return self._given.distil
        return Distillation(
            **{
                field: getattr(self._distil, field)[int(params.get(f"distil.{field}", 0))]
                for field in _DISTIL_FIELDS
            }
        )

    def _recover(self, params: Params) -> Recovery | None:
        if self._recovery is None or not int(params.get("recovery", self._always_recovers)):
            return None
        settings = {
            field: getattr(self._recovery, field)[int(params.get(f"recovery.{field}", 0))]
            for field in _RECOVERY_FIELDS
        }
        if not settings["context_length"] and not settings["reduction"]:
            return None
        return Recovery(**settings).canonical

    def params(self, configuration: Configuration) -> dict[str, int] | None:
        """The indices of a configuration, or None where it lies outside of the space."""
        params: dict[str, int] = {}
        for block in self.blocks:
            index = self._indices[block.name].get(configuration.plan.option(block))
            if index is None:
                return None
            if len(self.options[block.name]) > 1:
                params[f"block:{block.name}"] = index
        recovery = self._recovery_params(configuration.recovery)
        if recovery is None:
            return None
        params |= recovery | self._distil_params(configuration.plan.distil)
        return params if self.configuration(params) == configuration else None

    def _recovery_params(self, recovery: Recovery | None) -> dict[str, int] | None:
        if self._recovery is None:
            return {} if recovery is None else None
        if recovery is None:
            return None if self._always_recovers else {"recovery": 0}
        params = {} if self._always_recovers else {"recovery": 1}
        return params | _indices("recovery", _RECOVERY_FIELDS, self._recovery, recovery)

    def _distil_params(self, distil: Distillation | None) -> dict[str, int]:
        if self._distil is None:
            return {}
        if distil is None:
            return {"distil": 0}
        return {"distil": 1} | _indices("distil", _DISTIL_FIELDS, self._distil, distil)

    def seed_distillation(self) -> Distillation | None:
        """How the first trials distil: the middle of each list of choices."""
        if self._distil is None:
            return None
        choices = {field: getattr(self._distil, field) for field in _DISTIL_FIELDS}
        return Distillation(**{name: known[len(known) // 2] for name, known in choices.items()})

    def seed_recoveries(self) -> list[Recovery]:
        """The recoveries that the first trials try: the middle of each list of choices."""
        if self._recovery is None:
            return []
        settings = {}
        for field in _RECOVERY_FIELDS:
            choices = getattr(self._recovery, field)
            settings[field] = choices[len(choices) // 2]
        if not settings["context_length"] and not settings["reduction"]:
            settings["reduction"] = max(self._recovery.reduction)
            settings["context_length"] = max(self._recovery.context_length)
        return [Recovery(**settings).canonical]


def _indices(
    part: str, names: Sequence[str], space: DistilSpace | RecoverySpace, chosen: object
) -> dict[str, int]:
    """The places of settings among several choices; the first where one is not among them."""
    found = {}
    for name in names:
        choices, value = getattr(space, name), getattr(chosen, name)
        if len(choices) > 1:
            found[f"{part}.{name}"] = choices.index(value) if value in choices else 0
    return found
