"""Options, plans, recoveries and configurations: what a trial evaluates, and its identity."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Self, cast

from bitfront.errors import SpecError
from bitfront.layers import Block
from bitfront.precision import ACTIVATION_BITS, FULL, WEIGHT_BITS, Precision


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, only finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class Option:
    """One joint assignment of precisions to the layers of a block, in the block's order."""

    precisions: tuple[Precision, ...]

    def __str__(self) -> str:
        """The short form, such as `w4a8+w3a8`."""
        return "+".join(str(precision) for precision in self.precisions)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The option whose short form is `text`.

        Raises:
            SpecError: `text` is no short form of an option.
        """
        return cls(tuple(Precision.parse(part) for part in text.split("+")))


@dataclass(frozen=True, slots=True)
class Plan:
    """A precision for each layer, sorted by layer name; equal plans have equal content."""

    assignments: tuple[tuple[str, Precision], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.assignments]
        if names != sorted(set(names)):
            raise SpecError("a plan's layers must be sorted and named once: use Plan.of")

    @classmethod
    def of(cls, precisions: Mapping[str, Precision]) -> Self:
        """The plan that gives each named layer its precision."""
        return cls(tuple(sorted(precisions.items())))

    @classmethod
    def uniform(cls, layers: Iterable[str], precision: Precision) -> Self:
        """The plan that gives every layer the same precision."""
        return cls.of(dict.fromkeys(layers, precision))

    @classmethod
    def from_options(cls, choices: Iterable[tuple[Block, Option]]) -> Self:
        """The plan made of one option a block.

        Raises:
            SpecError: An option has another number of precisions than its block has layers.
        """
        precisions: dict[str, Precision] = {}
        for block, option in choices:
            if len(option.precisions) != len(block.layers):
                raise SpecError(
                    f"block {block.name} has {len(block.layers)} layers, "
                    f"but option {option} has {len(option.precisions)} precisions"
                )
            precisions.update(zip(block.layers, option.precisions, strict=True))
        return cls.of(precisions)

    @classmethod
    def from_dict(cls, texts: Mapping[str, str]) -> Self:
        """The plan that `to_dict` wrote."""
        return cls.of({name: Precision.parse(text) for name, text in texts.items()})

    def to_dict(self) -> dict[str, str]:
        """Layer names to precisions in their short form."""
        return {name: str(precision) for name, precision in self.assignments}

    def __iter__(self) -> Iterator[tuple[str, Precision]]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    def precision(self, layer: str) -> Precision:
        """The layer's precision; full precision where the plan does not name it."""
        return dict(self.assignments).get(layer, FULL)

    def part(self, layers: Iterable[str]) -> "Plan":
        """The plan restricted to some layers."""
        wanted = frozenset(layers)
        return Plan(tuple(pair for pair in self.assignments if pair[0] in wanted))

    @property
    def digest(self) -> str:
        """The hash of the plan's canonical JSON."""
        return digest(self.to_dict())


@dataclass(frozen=True, slots=True, order=True)
class Recovery:
    """P4Q settings: a learnable text prompt, an image adapter, and how they are trained.

    Attributes:
        context_length: Learnable context vectors before the class name; 0 for no prompt.
        reduction: The adapter's hidden width is the feature width divided by this; 0 for
            no adapter.
        adapter_bits: Bits of the adapter's weights and inputs; 16 leaves it unquantized.
        blend: Share of the adapter's output in the image feature, in [0, 1].
        distillation: Weight of the teacher's cross-entropy beside the label's.
        steps: Optimiser steps of training.
    """

    context_length: int = 8
    reduction: int = 4
    adapter_bits: int = 8
    blend: float = 0.2
    distillation: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if self.context_length < 0 or self.reduction < 0:
            raise SpecError("a recovery's context_length and reduction must not be negative")
        if self.context_length == 0 and self.reduction == 0:
            raise SpecError("a recovery needs a prompt (context_length) or an adapter (reduction)")
        if self.adapter_bits not in WEIGHT_BITS or self.adapter_bits not in ACTIVATION_BITS:
            raise SpecError(f"adapter_bits must be 4, 6, 8 or 16, got {self.adapter_bits}")
        if not 0.0 <= self.blend <= 1.0:
            raise SpecError(f"blend must be in [0, 1], got {self.blend}")
        if self.distillation < 0 or self.steps < 1:
            raise SpecError("distillation must not be negative, and steps must be positive")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A plan and, where wanted, a recovery: everything that a trial evaluates."""

    plan: Plan
    recovery: Recovery | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content; `from_dict` reads it back."""
        recovery = None if self.recovery is None else asdict(self.recovery)
        return {"plan": self.plan.to_dict(), "recovery": recovery}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Self:
        """The configuration that `to_dict` wrote.

        Raises:
            SpecError: The content is no configuration.
        """
        try:
            plan = Plan.from_dict(cast("Mapping[str, str]", content["plan"]))
            settings = content["recovery"]
            recovery = None if settings is None else Recovery(**cast("dict[str, int]", settings))
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"this is no configuration: {error}") from error
        return cls(plan, recovery)

    @property
    def digest(self) -> str:
        """The hash of the canonical JSON: the identity of the configuration."""
        return digest(self.to_dict())
