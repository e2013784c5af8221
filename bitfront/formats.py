"""Number formats of weights beside integers: the values of their codes, and how scales are stored.

- `fp8_e4m3`, `fp8_e5m2`: 8-bit floating point (https://arxiv.org/abs/2209.05433), as OCP has it.
- `mxfp8_e4m3`, `mxfp8_e5m2`, `mxfp6_e3m2`, `mxfp6_e2m3`, `mxfp4`: OCP Microscaling Formats 1.0,
  blocks of 32 with scales that are powers of two.
- `nvfp4`: blocks of 16 with scales in E4M3, times one float32 scale of the tensor.
- `nf4`: NormalFloat (QLoRA, https://arxiv.org/abs/2305.14314, appendix E).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

NAN: Final = math.nan


class ScaleType(StrEnum):
    """The type in which a scale is stored, as torch spells it."""

    FLOAT16 = "float16"
    E4M3 = "float8_e4m3fn"
    E8M0 = "float8_e8m0fnu"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A number format of weights: `level * scale`, where a code stands for a level.

    Attributes:
        name: What a job and the short form of a precision call it.
        element: The type of a code, as `ml_dtypes` spells it; `nf4` has none there.
        bits: Width of a code.
        levels: The value of each code; NaN for codes that stand for no finite number, and are
            never written.
        scale: How a scale is stored.
        block: Neighbouring input columns that share a scale; 0 where a job chooses.
        default_block: What they are where a job does not say; 0 is a whole row.
        scales_tensor: Whether a float32 scale of the whole tensor multiplies the others.
    """

    name: str
    element: str
    bits: int
    levels: tuple[float, ...]
    scale: ScaleType
    block: int = 0
    default_block: int = 0
    scales_tensor: bool = False

    @property
    def finite(self) -> dict[float, int]:
        """Each finite level with its code, in order of the levels; zero has the code of +0."""
        found = {
            level + 0.0: code  # -0 is the level 0
            for code, level in reversed(list(enumerate(self.levels)))
            if not math.isnan(level)
        }
        return dict(sorted(found.items()))

    @property
    def largest(self) -> float:
        """The largest level."""
        return max(self.finite)

    @property
    def scale_nbytes(self) -> int:
        """The bytes of one scale."""
        return 2 if self.scale is ScaleType.FLOAT16 else 1

    @property
    def tensor_nbytes(self) -> int:
        """The bytes of what a whole tensor shares."""
        return 4 if self.scales_tensor else 0


def _minifloat(exponent_bits: int, mantissa_bits: int, *, top: int = 0) -> Iterator[float]:
    """The values of a binary floating-point format with a sign bit, in order of its codes.

    The bias is `2**(exponent_bits - 1) - 1`, and an exponent of zero is for zero and subnormal
    numbers. The last `top` codes of each sign stand for infinity and NaN, which are NaN here.
    """
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    magnitudes = 2 ** (exponent_bits + mantissa_bits)
    for sign in (1.0, -1.0):
        for code in range(magnitudes):
            exponent, mantissa = divmod(code, steps)
            place = mantissa / steps + (exponent > 0)
            value = math.ldexp(place, max(exponent, 1) - bias)
            yield NAN if code >= magnitudes - top else sign * value


_E4M3: Final = tuple(_minifloat(4, 3, top=1))  # no infinity: OCP's E4M3
_E5M2: Final = tuple(_minifloat(5, 2, top=4))
_E3M2: Final = tuple(_minifloat(3, 2))
_E2M3: Final = tuple(_minifloat(2, 3))
_E2M1: Final = tuple(_minifloat(2, 1))
_NF4: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_MX_BLOCK: Final = 32
_NV_BLOCK: Final = 16
_NF_BLOCK: Final = 64  # QLoRA's

_ALL: Final = (
    WeightFormat("fp8_e4m3", "float8_e4m3fn", 8, _E4M3, ScaleType.FLOAT16),
    WeightFormat("fp8_e5m2", "float8_e5m2", 8, _E5M2, ScaleType.FLOAT16),
    WeightFormat("mxfp8_e4m3", "float8_e4m3fn", 8, _E4M3, ScaleType.E8M0, _MX_BLOCK, _MX_BLOCK),
    WeightFormat("mxfp8_e5m2", "float8_e5m2", 8, _E5M2, ScaleType.E8M0, _MX_BLOCK, _MX_BLOCK),
    WeightFormat("mxfp6_e3m2", "float6_e3m2fn", 6, _E3M2, ScaleType.E8M0, _MX_BLOCK, _MX_BLOCK),
    WeightFormat("mxfp6_e2m3", "float6_e2m3fn", 6, _E2M3, ScaleType.E8M0, _MX_BLOCK, _MX_BLOCK),
    WeightFormat("mxfp4", "float4_e2m1fn", 4, _E2M1, ScaleType.E8M0, _MX_BLOCK, _MX_BLOCK),
    WeightFormat(
        "nvfp4",
        "float4_e2m1fn",
        4,
        _E2M1,
        ScaleType.E4M3,
        _NV_BLOCK,
        _NV_BLOCK,
        scales_tensor=True,
    ),
    WeightFormat("nf4", "", 4, _NF4, ScaleType.FLOAT16, default_block=_NF_BLOCK),
)

FORMATS: Final[Mapping[str, WeightFormat]] = MappingProxyType({one.name: one for one in _ALL})
"""The formats by name."""
