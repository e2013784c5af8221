"""What a configuration makes of each sample of a split, packed."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # a query that needs no samples does not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SampleResults:
    """Whether each sample comes out right, and how far its prediction is from full precision's.

    Attributes:
        packed: The number of samples (4 bytes, little endian), a bit for each that is right (least
            significant first, filled up to bytes), and each divergence as a little-endian float32.
    """

    packed: bytes

    def __post_init__(self) -> None:
        if len(self.packed) < _COUNT.size or len(self.packed) != _nbytes(len(self)):
            raise ValueError("these are not the results of samples: their length is wrong")

    @classmethod
    def of(cls, right: Sequence[bool], divergence: Sequence[float]) -> Self:
        """The results of samples in the split's order; divergences are in nats.

        Args:
            right: Whether each sample comes out right.
            divergence: Each sample's share in the divergence, so that their mean is the split's.
        """
        import numpy as np

        bits = np.packbits(np.asarray(right, dtype=bool), bitorder="little")
        nats = np.asarray(divergence, dtype="<f4")
        return cls(_COUNT.pack(len(right)) + bits.tobytes() + nats.tobytes())

    def __len__(self) -> int:
        return int(_COUNT.unpack_from(self.packed)[0])

    @property
    def right(self) -> "NDArray[np.bool_]":
        """Whether each sample comes out right."""
        import numpy as np

        count = len(self)
        bits = np.frombuffer(self.packed, np.uint8, -(-count // 8), _COUNT.size)
        return np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_)

    @property
    def divergence(self) -> "NDArray[np.float64]":
        """Each sample's share in the divergence, in nats, as precise as float32."""
        import numpy as np

        count = len(self)
        start = _COUNT.size + -(-count // 8)
        return np.frombuffer(self.packed, "<f4", count, start).astype(np.float64)

    @property
    def standard_errors(self) -> dict[str, float]:
        """The standard errors of `error` and `divergence`; empty for fewer than two samples."""
        count = len(self)
        if count < 2:
            return {}
        share = float(self.right.mean())
        spread = float(self.divergence.std(ddof=1))
        return {
            "error_se": math.sqrt(share * (1 - share) / count),
            "divergence_se": spread / math.sqrt(count),
        }


def _nbytes(count: int) -> int:
    return _COUNT.size + -(-count // 8) + 4 * count
