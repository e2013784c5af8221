"""The section `space`: what the search may choose."""

from enum import StrEnum
from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bitfront.kv_cache import KV_BITS
from bitfront.plan import ClassPosition, TeacherText
from bitfront.precision import FULL, Precision, weight_precision
from bitfront.spec.section import (
    ActivationBits,
    KvBits,
    Percentile,
    Section,
    WeightBits,
    WeightFormatName,
    check_repeated,
)


class DistilSpace(Section):
    """The settings of a distillation that may be chosen from; see `bitfront.plan.Distillation`."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = (100,)
    share: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    codes: tuple[bool, ...] = (False,)
    learning_rate_multiplier: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in type(self).model_fields:
            if not getattr(self, name):
                raise ValueError(f"recovery.distil.{name} has no value to choose from")
        return self


class RecoverySpace(Section):
    """The P4Q settings that the sampler may choose from; see `bitfront.plan.Recovery`.

    With `distil`, plans may be distilled too, and P4Q is trained on distilled ones. Where `distil`
    is all that is named, there is no P4Q.

    `class_position`, `class_specific`, `teacher` and `views` are for models that tell classes
    apart. `shots` and `views` of 0 take every tuning sample, and only as it is.
    """

    context_length: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0, 4, 8)
    class_position: tuple[ClassPosition, ...] = (ClassPosition.END,)
    class_specific: tuple[bool, ...] = (False,)
    reduction: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0, 2, 4)
    adapter_bits: tuple[Literal[4, 6, 8, 16], ...] = (8,)
    blend: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.2, 0.5)
    distillation: tuple[Annotated[float, Field(ge=0)], ...] = (4.0,)
    teacher: tuple[TeacherText, ...] = (TeacherText.TEMPLATES,)
    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    views: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (0,)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (60,)
    learning_rate_multiplier: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    distil: DistilSpace | None = None

    @model_validator(mode="before")
    @classmethod
    def _leaves_p4q_out(cls, content: object) -> object:
        if (
            isinstance(content, dict)
            and content.keys() == {"distil"}
            and content["distil"] is not None
        ):
            return {**content, "context_length": (0,), "reduction": (0,)}
        return content

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in type(self).model_fields:
            if name != "distil" and not getattr(self, name):
                raise ValueError(f"recovery.{name} has no value to choose from")
        if not self.has_p4q and self.distil is None:
            raise ValueError(
                "a recovery needs a context_length or a reduction above 0, or distil: {}"
            )
        return self

    @property
    def has_p4q(self) -> bool:
        """Whether a prompt or an adapter can be chosen."""
        return any(self.context_length) or any(self.reduction)


class KvLevels(StrEnum):
    """How the levels of a KV cache's codes are found."""

    UNIFORM = "uniform"
    KMEANS = "kmeans"


class KeySide(StrEnum):
    """On which side of the rotary embedding keys are rounded."""

    BEFORE = "before"
    AFTER = "after"


class KvCacheSpace(Section):
    """How the keys and the values of each decoder layer may be stored; see `KvFormat`.

    `outliers` are shares of a vector that are kept apart, `levels: kmeans` are fitted on
    calibration samples, and `rotary` is about keys only.
    """

    bits: tuple[KvBits, ...] = KV_BITS
    levels: tuple[KvLevels, ...] = (KvLevels.UNIFORM,)
    outliers: tuple[Annotated[float, Field(ge=0, le=0.5)], ...] = (0.0,)
    rotary: tuple[KeySide, ...] = (KeySide.BEFORE,)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if not values:
                raise ValueError(f"kv_cache.{name} has no value to choose from")
            check_repeated(f"kv_cache.{name}", values)
        return self


class SpaceSpec(Section):
    """What the search may choose: each layer's precision, the KV cache and the recovery.

    `keep` maps patterns of layer names (shell wildcards, with or without the `weight` at a name's
    end) to a fixed weight width: those layers are not variable, and nothing measured breaks it.
    Each pattern must match a layer, and no layer may have two widths.

    `formats` replaces `weight_bits` and `groups`: each entry is a weight format, with its group
    size where it has one to choose, such as `int4-g128`, `nvfp4` or `fp8`; see `bitfront.formats`.

    `clips` are the percentiles that static input ranges may be cut at; several are no further
    options, but searched for each option (see `profile.clip_search`).

    Without `kv_cache`, the keys and values of earlier tokens stay in 16 bits.
    """

    weight_bits: tuple[WeightBits, ...] = (2, 3, 4, 6, 8)
    activation_bits: tuple[ActivationBits, ...] = (8,)
    groups: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    formats: tuple[WeightFormatName, ...] = ()
    clips: tuple[Percentile, ...] = (1.0,)
    keep: dict[str, WeightBits] = Field({})
    recovery: RecoverySpace | None = None
    kv_cache: KvCacheSpace | None = None

    @property
    def p4q(self) -> RecoverySpace | None:
        """What P4Q may choose from; None without it."""
        return self.recovery if self.recovery is not None and self.recovery.has_p4q else None

    @property
    def distil(self) -> DistilSpace | None:
        """What a distillation may choose from; None where no plan is distilled."""
        return None if self.recovery is None else self.recovery.distil

    @property
    def weights(self) -> tuple[Precision, ...]:
        """What a weight may be stored as, with inputs in 16 bits, the narrowest first."""
        if self.formats:
            named = map(weight_precision, self.formats)
            return tuple(sorted(named, key=lambda one: one.weight_bits))
        return tuple(chain.from_iterable(map(self.of_width, sorted(self.weight_bits))))

    @property
    def uniform_weights(self) -> tuple[Precision, ...]:
        """Those that uniform plans have: every format, and of `weight_bits` the first group."""
        if self.formats:
            return self.weights
        return tuple(self.of_width(bits)[0] for bits in sorted(self.weight_bits))

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that are searched, the narrowest first."""
        return tuple(sorted({one.weight_bits for one in self.weights}))

    @property
    def width_setting(self) -> str:
        """The setting that says which widths these are."""
        return "formats" if self.formats else "weight_bits"

    @property
    def kept_weights(self) -> tuple[Precision, ...]:
        """What the weights of layers that `keep` names are stored as."""
        return tuple(chain.from_iterable(map(self.of_width, sorted({*self.keep.values()}))))

    def of_width(self, bits: int) -> tuple[Precision, ...]:
        """Integer weights of one width in every group, or the one in 16 bits."""
        if bits == FULL.weight_bits:
            return (FULL,)
        return tuple(Precision(bits, group=group) for group in self.groups)

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        for name in ("weight_bits", "groups"):
            if self.formats and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"space.formats stands in the place of space.{name}: leave {name} out, and "
                    "write formats such as int4 or int4-g128"
                )
        return self

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        for name in ("weight_bits", "activation_bits", "groups", "formats", "clips"):
            values = getattr(self, name)
            if not values and name != "formats":
                raise ValueError(f"space.{name} is empty: there is nothing to search")
            check_repeated(f"space.{name}", values)
        return self
