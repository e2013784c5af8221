"""Sizes, shares and durations as people write them."""

import math
from typing import Final

_SIZES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def size_unit(nbytes: float) -> tuple[int, str]:
    """The decimal unit in which a size reads best, as its bytes and its symbol."""
    return next((unit for unit in _SIZES if nbytes >= unit[0]), _SIZES[-1])


def size_text(nbytes: float) -> str:
    """A size with three significant digits at most, such as `312 kB` or `1.5 MB`."""
    scale, symbol = size_unit(nbytes)
    value = nbytes / scale
    if symbol == "B":
        return f"{value:.0f} B"
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:.{decimals}f}"
    if text == "1000" and symbol != "GB":
        return size_text(scale * 1000)
    return f"{text} {symbol}"


def percent_text(share: float) -> str:
    """A share in per cent with one decimal, such as `4.1 %`."""
    return f"{100 * share:.1f} %"


def duration_text(seconds: float) -> str:
    """A duration in its two largest units, such as `1 min 20 s`."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
