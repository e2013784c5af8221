"""Options, plans, recoveries and configurations: what a trial evaluates, and its identity."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self, cast

from bitfront.errors import SpecError
from bitfront.kv_cache import KV_FULL, KvFormat, names_cache, names_keys, projection
from bitfront.layers import Block, Layer
from bitfront.precision import ACTIVATION_BITS, FULL, WEIGHT_BITS, Precision

# How often a recovery in training is looked at, its start included.
RUNGS = 4


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, only finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class Option:
    """One joint assignment of precisions to the layers of a block, in the block's order.

    Attributes:
        precisions: Of the layers; empty for a place of the KV cache.
        form: Of a place of the KV cache; None for layers.
    """

    precisions: tuple[Precision, ...]
    form: KvFormat | None = None

    def __post_init__(self) -> None:
        if bool(self.precisions) == (self.form is not None):
            raise SpecError("an option has precisions of layers, or a format of a KV cache")

    def __str__(self) -> str:
        """The short form, such as `w4a8+w3a8` or `kv4`."""
        if self.form is not None:
            return str(self.form)
        return "+".join(str(precision) for precision in self.precisions)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The option whose short form is `text`.

        Raises:
            SpecError: `text` is not a short form of an option.
        """
        if KvFormat.is_one(text):
            return cls((), KvFormat.parse(text))
        return cls(tuple(Precision.parse(part) for part in text.split("+")))

    @property
    def bits(self) -> tuple[int, ...]:
        """The width of each layer's weights, or that of a place's codes."""
        if self.form is not None:
            return (self.form.bits,)
        return tuple(precision.weight_bits for precision in self.precisions)


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Distillation:
    """How a plan's stored tensors are trained: towards the outputs of full precision.

    Trained are the scales, zero points and input ranges of quantized layers, norms and biases:
    what a checkpoint holds anyway, so its bytes stay what they are.

    Attributes:
        steps: Optimiser steps of training.
        share: Of the quantized layers, the share that is trained: those that move the output most.
        codes: Whether the codes of weights are trained too.
        learning_rate_multiplier: What the optimiser's learning rates are multiplied with.
        until: After how many of the steps the tensors are taken; None for all.
    """

    steps: int = 100
    share: float = 1.0
    codes: bool = False
    learning_rate_multiplier: float = 1.0
    until: int | None = None

    def __post_init__(self) -> None:
        """What was stored as JSON may be anything."""
        until = self.steps if self.until is None else self.until
        for name in ("steps",) if self.until is None else ("steps", "until"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 2**31:
                raise SpecError(f"a distillation's {name} must be a positive whole number")
        if until > self.steps:
            raise SpecError(f"a distillation of {self.steps} steps has no step {until}")
        for name, most in (("share", 1.0), ("learning_rate_multiplier", sys.float_info.max)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= most
            ):
                raise SpecError(f"a distillation's {name} must be above 0 and at most {most:g}")
        if not isinstance(self.codes, bool):
            raise SpecError("a distillation's codes must be true or false")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content; `from_dict` reads it back."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """The distillation that `to_dict` wrote.

        Raises:
            SpecError: The content is none.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise SpecError(f"a distillation has no other settings than {', '.join(sorted(known))}")
        return cls(**cast("dict[str, Any]", content))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The optimiser steps after which a trial's error is looked at: each quarter's start."""
        return _quarters(self.steps)


def _quarters(steps: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(steps * quarter // RUNGS for quarter in range(RUNGS)))


@dataclass(frozen=True, slots=True)
class Plan:
    """A precision for each layer, sorted by layer name; equal plans have equal content.

    Attributes:
        assignments: The layers with their precisions.
        distil: How the tensors that rounding gives are trained; None where they stay.
        cache: The places of the KV cache that hold codes with their formats, sorted by name;
            all others hold 16 bits.
    """

    assignments: tuple[tuple[str, Precision], ...]
    distil: Distillation | None = None
    cache: tuple[tuple[str, KvFormat], ...] = ()

    def __post_init__(self) -> None:
        for parts in (self.assignments, self.cache):
            names = [name for name, _ in parts]
            if names != sorted(set(names)):
                raise SpecError("a plan's layers must be sorted and named once: use Plan.of")
        if any(form.bits == KV_FULL.bits for _, form in self.cache):
            raise SpecError("a plan names the places of its cache that hold codes only")
        if self.distil is not None and self.cache:
            raise SpecError(
                "plans that round the KV cache are not distilled, since training would not see its "
                "codes: leave the distillation or the codes out"
            )
        if self.distil is not None and any(one.format for _, one in self.assignments):
            raise SpecError(
                "plans with weight formats other than integers are not distilled, since training "
                "moves the zero points of integers: leave the distillation or the formats out"
            )
        if any(form.is_rotated and not names_keys(name) for name, form in self.cache):
            raise SpecError("only keys pass a rotary embedding: values of a cache have no 'r'")

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
        places: dict[str, KvFormat] = {}
        for block, option in choices:
            if option.form is not None and block.is_cache:
                places[block.name] = option.form
                continue
            if len(option.precisions) != len(block.layers) or block.is_cache:
                raise SpecError(
                    f"block {block.name} has {len(block.layers)} layers, "
                    f"but option {option} has {len(option.precisions)} precisions"
                )
            precisions.update(zip(block.layers, option.precisions, strict=True))
        return cls.of(precisions).with_cache(places)

    def with_cache(self, places: Mapping[str, KvFormat]) -> Self:
        """The same layers with another cache: every other place holds 16 bits."""
        coded = {name: form for name, form in places.items() if form.bits < KV_FULL.bits}
        return replace(self, cache=tuple(sorted(coded.items())))

    @classmethod
    def from_dict(cls, texts: Mapping[str, str]) -> Self:
        """The plan that `to_dict` wrote."""
        places = {name: text for name, text in texts.items() if names_cache(name)}
        layers = {name: text for name, text in texts.items() if name not in places}
        plan = cls.of({name: Precision.parse(text) for name, text in layers.items()})
        return plan.with_cache({name: KvFormat.parse(text) for name, text in places.items()})

    def to_dict(self) -> dict[str, str]:
        """Names of layers to precisions, and of places to formats, in their short forms."""
        return {name: str(own) for name, own in (*self.assignments, *self.cache)}

    def __iter__(self) -> Iterator[tuple[str, Precision]]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    def precision(self, layer: str) -> Precision:
        """The layer's precision; full precision where the plan does not name it."""
        return dict(self.assignments).get(layer, FULL)

    def option(self, block: Block) -> Option:
        """What it gives a block."""
        if block.is_cache:
            return Option((), dict(self.cache).get(block.name, KV_FULL))
        precisions = dict(self.assignments)
        return Option(tuple(precisions.get(name, FULL) for name in block.layers))

    def part(self, layers: Iterable[str]) -> "Plan":
        """The plan restricted to some layers and to what is kept of their outputs.

        A distilled one stays whole, as it was trained.
        """
        if self.distil is not None:
            return self
        wanted = frozenset(layers)
        return Plan(
            tuple(pair for pair in self.assignments if pair[0] in wanted),
            cache=tuple(pair for pair in self.cache if projection(pair[0]) in wanted),
        )

    @property
    def rounded(self) -> "Plan":
        """The plan with the tensors that rounding gives."""
        return replace(self, distil=None)

    @property
    def digest(self) -> str:
        """The hash of the plan's canonical JSON."""
        if self.distil is None:
            return digest(self.to_dict())
        return digest([self.to_dict(), self.distil.to_dict()])


class ClassPosition(StrEnum):
    """Where the class's name stands in a learnable prompt (CoOp, CLASS_TOKEN_POSITION)."""

    END = "end"
    MIDDLE = "middle"
    FRONT = "front"


class TeacherText(StrEnum):
    """What the teacher reads: hand-written templates, or a prompt learnt in full precision."""

    TEMPLATES = "templates"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Recovery:
    """P4Q settings: a learnable prompt, a low-bit adapter, and how they are trained.

    A dual encoder has its prompt beside the class names and its adapter after the image
    feature; a generative model has its prompt at the start of what its decoder reads and its
    adapter after the projector, and knows no classes.

    Attributes:
        context_length: Learnable context vectors; 0 for no prompt.
        class_position: Where the class's name stands among them.
        class_specific: Whether each class has a context of its own.
        reduction: The adapter's hidden width is the feature width divided by this; 0 for
            no adapter.
        adapter_bits: Bits of the adapter's weights and inputs; 16 leaves it unquantized.
        blend: Share of the adapter's output in the image feature, in [0, 1].
        distillation: Weight of the teacher's cross-entropy beside the label's.
        teacher: What the teacher reads.
        shots: Tuning samples of each class, or of each answer; 0 for all.
        views: Augmented views of each tuning sample beside the sample itself.
        steps: Optimiser steps of training.
        learning_rate_multiplier: What the optimiser's learning rates, one for the prompt and one
            for the adapter, are multiplied with.
    """

    context_length: int = 8
    class_position: ClassPosition = ClassPosition.END
    class_specific: bool = False
    reduction: int = 4
    adapter_bits: int = 8
    blend: float = 0.2
    distillation: float = 1.0
    teacher: TeacherText = TeacherText.TEMPLATES
    shots: int = 0
    views: int = 0
    steps: int = 100
    learning_rate_multiplier: float = 1.0

    def __post_init__(self) -> None:
        self._read_names()
        self._check_kinds()
        if self.context_length == 0 and self.reduction == 0:
            raise SpecError("a recovery needs a prompt (context_length) or an adapter (reduction)")
        if self.adapter_bits not in WEIGHT_BITS or self.adapter_bits not in ACTIVATION_BITS:
            raise SpecError(f"adapter_bits must be 4, 6, 8 or 16, got {self.adapter_bits}")
        if self.blend > 1:
            raise SpecError(f"blend must be in [0, 1], got {self.blend}")
        if self.steps < 1:
            raise SpecError("a recovery's steps must be positive")
        if not self.learning_rate_multiplier:
            raise SpecError("a recovery's learning_rate_multiplier must be positive")

    def _check_kinds(self) -> None:
        """What was stored as JSON may be anything."""
        for name in ("context_length", "reduction", "shots", "views", "adapter_bits", "steps"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**31:
                raise SpecError(f"a recovery's {name} must be a whole number, and not negative")
        for name in ("blend", "distillation", "learning_rate_multiplier"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or not 0 <= share <= sys.float_info.max:
                raise SpecError(f"a recovery's {name} must be a finite number, and not negative")
        for name in ("class_specific",):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"a recovery's {name} must be true or false")

    def _read_names(self) -> None:
        """JSON knows the choices by their names only."""
        try:
            object.__setattr__(self, "class_position", ClassPosition(self.class_position))
            object.__setattr__(self, "teacher", TeacherText(self.teacher))
        except ValueError as error:
            raise SpecError(
                f"a recovery's setting is none of its choices: {error!s:.80}"
            ) from error

    @property
    def canonical(self) -> "Recovery":
        """The recovery with the settings of what it does not have at their defaults.

        Without an adapter its bits and its blend change nothing, without a prompt its form
        does not, and without distillation there is no teacher: equal recoveries must have
        equal hashes.
        """
        default = Recovery()
        idle: tuple[str, ...] = ()
        if not self.reduction:
            idle += ("adapter_bits", "blend")
        if not self.context_length:
            idle += ("class_position", "class_specific")
        if not self.distillation:
            idle += ("teacher",)
        return replace(self, **{name: getattr(default, name) for name in idle})

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content.

        A learning rate that is not multiplied is left out, as it was before it could be: what
        was stored then keeps its hash.
        """
        content = asdict(self)
        if self.learning_rate_multiplier == 1:
            del content["learning_rate_multiplier"]
        return content

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """The recovery that `to_dict` wrote.

        Raises:
            SpecError: The content is no recovery.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise SpecError(f"a recovery has no other settings than {', '.join(sorted(known))}")
        return cls(**cast("dict[str, Any]", content))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The optimiser steps after which a trial's error is looked at: each quarter's start."""
        return _quarters(self.steps)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A plan and, where wanted, a recovery: everything that a trial evaluates."""

    plan: Plan
    recovery: Recovery | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content; `from_dict` reads it back.

        A distillation is named only where there is one: other configurations keep their hashes.
        """
        recovery = None if self.recovery is None else self.recovery.to_dict()
        content: dict[str, object] = {"plan": self.plan.to_dict(), "recovery": recovery}
        if self.plan.distil is not None:
            content["distil"] = self.plan.distil.to_dict()
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Self:
        """The configuration that `to_dict` wrote.

        Raises:
            SpecError: The content is not a configuration.
        """
        try:
            plan = Plan.from_dict(cast("Mapping[str, str]", content["plan"]))
            settings, distil = content["recovery"], content.get("distil")
            recovery = None if settings is None else Recovery.from_dict(settings)
            if distil is not None:
                plan = replace(plan, distil=Distillation.from_dict(distil))
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"this is not a configuration: {error!s:.80}") from error
        return cls(plan, recovery)

    @property
    def trained_by(self) -> tuple[str, ...]:
        """The kinds of training that it asks for, in their order; empty where it has none."""
        asked = {"distil": self.plan.distil, "p4q": self.recovery}
        return tuple(kind for kind, settings in asked.items() if settings is not None)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps after which a trial's error is looked at: of the distillation, then of P4Q."""
        distil = self.plan.distil
        first = () if distil is None else distil.rungs
        before = 0 if distil is None else distil.steps
        return (
            *first,
            *(() if self.recovery is None else (before + n for n in self.recovery.rungs)),
        )

    @property
    def digest(self) -> str:
        """The hash of the canonical JSON: the identity of the configuration."""
        return digest(self.to_dict())


def full_precision(layers: Iterable[Layer]) -> Configuration:
    """The configuration that quantizes nothing."""
    return Configuration(Plan.uniform([layer.name for layer in layers], FULL))
