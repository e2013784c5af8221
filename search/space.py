"""The space that the sampler searches: a surviving option for each block, and the recovery."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.spec import RecoverySpace

Params = Mapping[str, int | float | str]

_RECOVERY_FIELDS = tuple(field.name for field in fields(Recovery))


@dataclass(frozen=True, slots=True)
class Variable:
    """An ordered choice: the sampler picks an index from 0 to `size - 1`."""

    name: str
    size: int


class SearchSpace:
    """Maps the sampler's indices to configurations and back.

    The options of a block are ordered by size, so that neighbouring indices are alike.

    Attributes:
        variables: What every configuration has: an option a block, and whether it recovers.
        conditional: The settings of a recovery, which mean nothing where there is none.
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
            recovery: What P4Q may choose from, or None for no recovery.
            always_recovers: Whether every configuration has a recovery.
        """
        self.blocks = tuple(blocks)
        self.options = {block.name: tuple(options[block.name]) for block in blocks}
        self._indices = {
            name: {option: index for index, option in enumerate(choices)}
            for name, choices in self.options.items()
        }
        self._kept = dict(kept)
        self._recovery = recovery
        self._always_recovers = always_recovers
        self.variables = self._list_variables()
        self.conditional = self._list_conditional()

    @classmethod
    def of_recoveries(cls, plan: Plan, recovery: RecoverySpace) -> Self:
        """The space of one plan's recoveries: their settings are all that is searched."""
        return cls((), {}, dict(plan), recovery, always_recovers=True)

    def _list_variables(self) -> tuple[Variable, ...]:
        variables = [
            Variable(f"block:{block.name}", len(self.options[block.name]))
            for block in self.blocks
            if len(self.options[block.name]) > 1
        ]
        if self._always_recovers:
            return (*variables, *self._settings())
        if self._recovery is not None:
            variables.append(Variable("recovery", 2))
        return tuple(variables)

    def _list_conditional(self) -> tuple[Variable, ...]:
        return () if self._always_recovers else self._settings()

    def _settings(self) -> tuple[Variable, ...]:
        if self._recovery is None:
            return ()
        sizes = {field: len(getattr(self._recovery, field)) for field in _RECOVERY_FIELDS}
        return tuple(Variable(f"recovery.{field}", n) for field, n in sizes.items() if n > 1)

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
        precisions = {**self._kept, **dict(Plan.from_options(chosen))}
        return Configuration(Plan.of(precisions), self._recover(params))

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
        precisions = dict(configuration.plan)
        for block in self.blocks:
            option = Option(tuple(precisions.get(layer, FULL) for layer in block.layers))
            index = self._indices[block.name].get(option)
            if index is None:
                return None
            if len(self.options[block.name]) > 1:
                params[f"block:{block.name}"] = index
        recovery = self._recovery_params(configuration.recovery)
        if recovery is None:
            return None
        params |= recovery
        return params if self.configuration(params) == configuration else None

    def _recovery_params(self, recovery: Recovery | None) -> dict[str, int] | None:
        if self._recovery is None:
            return {} if recovery is None else None
        if recovery is None:
            return None if self._always_recovers else {"recovery": 0}
        params = {} if self._always_recovers else {"recovery": 1}
        for field in _RECOVERY_FIELDS:
            choices = getattr(self._recovery, field)
            value = getattr(recovery, field)
            if value not in choices:
                value = choices[0]
            if len(choices) > 1:
                params[f"recovery.{field}"] = choices.index(value)
        return params

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
