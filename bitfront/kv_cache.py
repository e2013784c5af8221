"""What a decoder keeps of earlier tokens: places of its KV cache, their formats and bytes."""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, Self

from bitfront.errors import SpecError

KV_BITS: Final = (2, 3, 4, 8, 16)
_END_NBYTES: Final = 2  # float16
_OUTLIER_NBYTES: Final = 2 + 4  # float16 and its place
_TEXT: Final = re.compile(r"kv([0-9]{1,2})(k)?(r)?(?:o(0\.[0-9]+))?")


class Kept(StrEnum):
    """What of a token is kept."""

    KEYS = "keys"
    VALUES = "values"


@dataclass(frozen=True, slots=True, order=True)
class KvFormat:
    """How the keys or the values of one layer are stored.

    Attributes:
        bits: Of a code; 16 stores no codes.
        outliers: The share of a vector that is kept apart, half of it at each end.
        is_uniform: Whether levels are equally far apart; others are stored beside the codes.
        is_rotated: Whether keys are rounded after the rotary embedding, and not before.
    """

    bits: int
    outliers: float = 0.0
    is_uniform: bool = True
    is_rotated: bool = False

    def __post_init__(self) -> None:
        if self.bits not in KV_BITS:
            known = ", ".join(map(str, KV_BITS))
            raise SpecError(f"bits of a KV cache must be among {known}, got {self.bits}")
        if not 0 <= self.outliers < 1:
            raise SpecError(f"the share of outliers must be in [0, 1), got {self.outliers}")

    def __str__(self) -> str:
        """The short form, such as `kv4`, or `kv3kro0.01`.

        `k` are levels by k-means, `r` keys after the rotary embedding, `o` outliers apart.
        """
        levels = "" if self.is_uniform else "k"
        side = "r" if self.is_rotated else ""
        return f"kv{self.bits}{levels}{side}{f'o{self.outliers}' if self.outliers else ''}"

    @classmethod
    @lru_cache(maxsize=4096)  # a study names a few formats in thousands of plans
    def parse(cls, text: str) -> Self:
        """The format whose short form is `text`.

        Raises:
            SpecError: `text` is not a short form of a format.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise SpecError(
                f"{text[:40]!r} is not a format of a KV cache: write it like kv4 or kv3ko0.01"
            )
        bits, fitted, rotated, outliers = match.groups()
        return cls(int(bits), float(outliers or 0), fitted is None, rotated is not None)

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text is meant for a format, and not for the precision of a layer."""
        return text.startswith("kv")


KV_FULL: Final = KvFormat(16)


@dataclass(frozen=True, slots=True)
class KvPlace:
    """The keys or the values of one attention.

    Attributes:
        attention: The name of its module.
        kept: Which of the two.
        channels: Of a token, over all heads that are kept.
        window: The tokens that it looks back at most; None where it looks at all.
    """

    attention: str
    kept: Kept
    channels: int
    window: int | None = None

    @property
    def name(self) -> str:
        """Such as `model.layers.0.self_attn:keys`: no weight has such a name."""
        return f"{self.attention}:{self.kept}"

    def nbytes(self, form: KvFormat, tokens: int) -> int:
        """Bytes of one sequence's tokens.

        Codes are stored token by token, each token filled up to whole bytes. Beside them are two
        ends of each channel of keys or of each token of values in float16, the levels where they
        are not uniform, and of each vector as many outliers as the share says at most.
        """
        held = tokens if self.window is None else min(tokens, self.window)
        if form.bits == 16:
            return 2 * self.channels * held
        codes = held * -(-self.channels * form.bits // 8)
        by_channel = (self.channels, held)
        vectors, length = by_channel if self.kept is Kept.KEYS else by_channel[::-1]
        levels = 0 if form.is_uniform else 2 * 2**form.bits
        outliers = vectors * 2 * int(form.outliers * length / 2) * _OUTLIER_NBYTES
        return codes + 2 * _END_NBYTES * vectors + levels + outliers


def names_cache(name: str) -> bool:
    """Whether a name is that of a place of the cache, and not of a layer."""
    return ":" in name


def names_keys(place: str) -> bool:
    """Whether a place, given by its name, holds keys."""
    return place.endswith(f":{Kept.KEYS}")


def projection(place: str) -> str:
    """The layer whose output is kept at a place, given by its name."""
    attention = place.rpartition(":")[0]
    return f"{attention}.{'k_proj' if names_keys(place) else 'v_proj'}.weight"


def place_behind(layer: str) -> str | None:
    """The name of the place where a layer's output is kept, if it is one of a cache."""
    for kept, ending in ((Kept.KEYS, ".k_proj.weight"), (Kept.VALUES, ".v_proj.weight")):
        if layer.endswith(ending):
            return f"{layer.removesuffix(ending)}:{kept}"
    return None
