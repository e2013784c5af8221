"""A precision: how many bits a layer's weights and inputs get, and how their ranges are cut."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from bitfront.errors import SpecError

WEIGHT_BITS = (2, 3, 4, 5, 6, 8, 16)
ACTIVATION_BITS = (4, 6, 8, 16)

_TEXT = re.compile(r"w([0-9]{1,2})a([0-9]{1,2})(?:g([0-9]{1,9}))?(?:c(0\.[0-9]+|1\.0))?")


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
    """

    weight_bits: int
    activation_bits: int = 16
    group: int = 0
    clip: float = 1.0

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

    def __str__(self) -> str:
        """The short form, such as `w4a8`, `w4a16g32` or `w3a8c0.99`."""
        group = f"g{self.group}" if self.group else ""
        clip = f"c{self.clip}" if self.clip < 1.0 else ""
        return f"w{self.weight_bits}a{self.activation_bits}{group}{clip}"

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
        weight, activation, group, clip = match.groups()
        return cls(int(weight), int(activation), int(group or 0), float(clip or 1.0))

    @property
    def quantizes_weight(self) -> bool:
        """Whether the weight gets codes; otherwise it stays in 16 bits."""
        return self.weight_bits < 16

    @property
    def quantizes_input(self) -> bool:
        """Whether the input gets codes."""
        return self.activation_bits < 16


FULL = Precision(16, 16)
