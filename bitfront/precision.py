"""A precision: how many bits a layer's weights and inputs get, and how their ranges are cut."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from bitfront.errors import SpecError
from bitfront.formats import FORMATS, WeightFormat

WEIGHT_BITS = (2, 3, 4, 5, 6, 8, 16)
ACTIVATION_BITS = (4, 6, 8, 16)

_TEXT = re.compile(
    rf"(?:w([0-9]{{1,2}})|({'|'.join(FORMATS)}))"
    r"a([0-9]{1,2})(?:g([0-9]{1,9}))?(?:c(0\.[0-9]+|1\.0))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """The numeric format of one layer.

    Attributes:
        weight_bits: Width of a weight's code; 16 leaves the weight in float16.
        activation_bits: Width of an input's code; 16 leaves the input as it is.
        group: Neighbouring input columns that share a weight scale; 0 is one scale a row
            (per output channel).
        clip: The static input range runs from the quantile `1 - clip` to the quantile `clip`
            of the calibration inputs; 1.0 is the minimum to the maximum.
        format: The number format of weights, one of `bitfront.formats.FORMATS`; empty for
            integers. It fixes the width, and where its blocks have a fixed size the group.
    """

    weight_bits: int
    activation_bits: int = 16
    group: int = 0
    clip: float = 1.0
    format: str = ""

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise SpecError(f"weight bits must be one of {WEIGHT_BITS}, got {self.weight_bits}")
        if self.activation_bits not in ACTIVATION_BITS:
            raise SpecError(
                f"activation bits must be one of {ACTIVATION_BITS}, got {self.activation_bits}"
            )
        if self.group < 0:
            raise SpecError(f"a weight group must not be negative, got {self.group}")
        if not 0.5 < self.clip <= 1.0:
            raise SpecError(f"a clip percentile must be in (0.5, 1.0], got {self.clip}")
        if self.format:
            self._check_format()

    def __str__(self) -> str:
        """The short form, such as `w4a8`, `w4a16g32`, `w3a8c0.99` or `nvfp4a16`."""
        is_chosen = self.group and not (self.form and self.form.block)
        group = f"g{self.group}" if is_chosen else ""
        clip = f"c{self.clip}" if self.clip < 1.0 else ""
        return f"{self.format or f'w{self.weight_bits}'}a{self.activation_bits}{group}{clip}"

    @classmethod
    @lru_cache(maxsize=4096)  # a study names a few precisions in thousands of plans
    def parse(cls, text: str) -> Self:
        """The precision whose short form is `text`.

        Raises:
            SpecError: `text` is not a short form of a precision.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise SpecError(
                f"{text[:40]!r} is not a precision: write it like w4a8, w4a16g32 or w3a8c0.99"
            )
        weight, form, activation, group, clip = match.groups()
        inputs, cut = int(activation), float(clip or 1.0)
        if form is None:
            return cls(int(weight), inputs, int(group or 0), cut)
        found = FORMATS[form]
        return cls(found.bits, inputs, found.block if group is None else int(group), cut, form)

    @property
    def form(self) -> WeightFormat | None:
        """The number format of weights; None for integers and weights in 16 bits."""
        return FORMATS[self.format] if self.format else None

    @property
    def quantizes_weight(self) -> bool:
        """Whether the weight gets codes; otherwise it stays in 16 bits."""
        return self.weight_bits < 16

    @property
    def quantizes_input(self) -> bool:
        """Whether the input gets codes."""
        return self.activation_bits < 16

    def _check_format(self) -> None:
        form = FORMATS.get(self.format)
        if form is None:
            known = ", ".join(FORMATS)
            raise SpecError(f"{self.format!r} is not a weight format: it must be one of {known}")
        if self.weight_bits != form.bits:
            raise SpecError(f"{form.name} has {form.bits} bits a weight, not {self.weight_bits}")
        if form.block and self.group != form.block:
            raise SpecError(f"blocks of {form.name} have {form.block} columns, not {self.group}")


FULL = Precision(16, 16)

_STORED = re.compile(rf"(?:int([0-9]{{1,2}})|(float16)|({'|'.join(FORMATS)}))(?:-g([0-9]{{1,9}}))?")
_SHORT = {"fp8": "fp8_e4m3", "mxfp8": "mxfp8_e4m3"}


def weight_precision(text: str) -> Precision:
    """What a weight is stored as, with inputs in 16 bits: of `int4-g128`, `nvfp4` or `float16`.

    Raises:
        SpecError: `text` names no format, or a group for one whose blocks have a fixed size.
    """
    name, dash, group = text.partition("-")
    match = _STORED.fullmatch(_SHORT.get(name, name) + dash + group)
    if match is None:
        raise SpecError(
            f"{text[:40]!r} is not a weight format: write int2 to int8, followed by -g128 for "
            f"groups of 128 columns, float16, or {', '.join(FORMATS)}"
        )
    bits, full, form, columns = match.groups()
    if bits:
        return Precision(int(bits), group=int(columns or 0))
    if full or FORMATS[form].block:
        if columns:
            raise SpecError(f"{text}: {full or form} has no groups to choose: leave {dash}{group}")
        return FULL if full else Precision.parse(f"{form}a16")
    chosen = FORMATS[form].default_block if columns is None else int(columns)
    return Precision(FORMATS[form].bits, group=chosen, format=form)


def weight_text(precision: Precision) -> str:
    """The name of what a weight is stored as: what `weight_precision` reads."""
    form = precision.form
    if not precision.quantizes_weight:
        return "float16"
    group = precision.group
    if form is None:
        return f"int{precision.weight_bits}{f'-g{group}' if group else ''}"
    return form.name if group == form.default_block else f"{form.name}-g{group}"
