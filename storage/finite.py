"""Numbers on their way into the database: only finite ones get there."""

import math
from collections.abc import Mapping

from bitfront.errors import InvalidMetric


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values as plain floats.

    Raises:
        InvalidMetric: One of them is NaN or infinite.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise InvalidMetric(name, str(value))
    return {name: float(value) for name, value in values.items()}
