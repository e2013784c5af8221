"""What a configuration makes of each sample of a split, packed."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:  # a query that needs no samples does not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

_COUNT = struct.Struct("<I")

RACE_SHARES: Final = (0.125, 0.25, 0.5)
"""The shares of the selection samples after which a trial that is raced may stop."""


@dataclass(frozen=True, slots=True)
class SampleResults:
    """Each sample's share in the error, and how far its prediction is from full precision's.

    Attributes:
        packed: The number of samples (4 bytes, little endian), what each adds to the error, and
            each divergence as a little-endian float32. Where every sample is right or wrong and
            counts alike, there is a bit for each that is right (least significant first, filled up
            to bytes); elsewhere a little-endian float32 for each.
    """

    packed: bytes

    def __post_init__(self) -> None:
        known = len(self.packed) >= _COUNT.size
        if not known or len(self.packed) not in (_nbytes(len(self)), _shared_nbytes(len(self))):
            raise ValueError("these are not the results of samples: their length is wrong")

    @classmethod
    def of(cls, right: Sequence[bool], divergence: Sequence[float]) -> Self:
        """The results of samples that count alike, in the split's order; see `of_shares`."""
        return cls.of_shares([not one for one in right], divergence)

    @classmethod
    def of_shares(cls, errors: Sequence[float], divergence: Sequence[float]) -> Self:
        """The results of samples in the split's order.

        Args:
            errors: Each sample's share in the error, so that their mean is the split's: 0 for one
                that comes out right, 1 for one that comes out wrong where all count alike.
            divergence: Each sample's share in the divergence, in nats, likewise.
        """
        import numpy as np

        shares = np.asarray(errors, dtype="<f4")
        nats = np.asarray(divergence, dtype="<f4")
        alike = bool(((shares == 0) | (shares == 1)).all())
        kept = np.packbits(shares == 0, bitorder="little") if alike else shares
        return cls(_COUNT.pack(len(errors)) + kept.tobytes() + nats.tobytes())

    def __len__(self) -> int:
        return int(_COUNT.unpack_from(self.packed)[0])

    @property
    def errors(self) -> "NDArray[np.float64]":
        """Each sample's share in the error, whose mean is the split's, as precise as float32."""
        import numpy as np

        count = len(self)
        if len(self.packed) == _shared_nbytes(count):
            return np.frombuffer(self.packed, "<f4", count, _COUNT.size).astype(np.float64)
        bits = np.frombuffer(self.packed, np.uint8, -(-count // 8), _COUNT.size)
        return 1.0 - np.unpackbits(bits, count=count, bitorder="little").astype(np.float64)

    @property
    def right(self) -> "NDArray[np.bool_]":
        """Whether each sample adds nothing to the error."""
        import numpy as np

        return np.equal(self.errors, 0)

    @property
    def divergence(self) -> "NDArray[np.float64]":
        """Each sample's share in the divergence, in nats, as precise as float32."""
        import numpy as np

        count = len(self)
        start = len(self.packed) - 4 * count
        return np.frombuffer(self.packed, "<f4", count, start).astype(np.float64)

    @property
    def standard_errors(self) -> dict[str, float]:
        """The standard errors of `error` and `divergence`; empty for fewer than two samples.

        Of the error it is that of the mean of the samples' shares: of a proportion where all count
        alike.
        """
        count = len(self)
        if count < 2:
            return {}
        return {
            "error_se": float(self.errors.std()) / math.sqrt(count),
            "divergence_se": float(self.divergence.std(ddof=1)) / math.sqrt(count),
        }

    @property
    def effective_count(self) -> float:
        """So many samples that count alike would make the error as sure; see `effective_count`."""
        return effective_count(self.errors)


def effective_count(errors: "NDArray[np.float64]") -> float:
    """How many samples that are right or wrong, and count alike, have a mean as sure as these.

    `n p (1 - p) / v` with `p` the mean of the `n` shares and `v` their variance, which is Kish's
    effective size; `n` where that says nothing.
    """
    share, variance = float(errors.mean()), float(errors.var())
    known = 0 < share < 1 and variance > 0
    return len(errors) * (share * (1 - share) / variance if known else 1.0)


def _nbytes(count: int) -> int:
    return _COUNT.size + -(-count // 8) + 4 * count


def _shared_nbytes(count: int) -> int:
    return _COUNT.size + 8 * count
