"""Sizes, shares and durations as people write and read them."""

import math
import re
from typing import Final, TypeVar

T = TypeVar("T")

_SIZES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")


def parse_nbytes(size: object) -> object:
    """The bytes that `40MB`, `1.5 GiB` or `4096` stand for; anything else comes back as it is.

    Raises:
        ValueError: The text has no number or no known unit.
    """
    if not isinstance(size, str):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{size!r} is not a valid size: write it like 4096, 40MB or 1.5GiB")
    nbytes = float(match[1]) * _UNITS[match[2].lower()]
    if nbytes == float("inf"):
        raise ValueError("no size is that large")
    return int(nbytes)


def parse_share(share: T) -> T | float:
    """The share that `15%` or `15 %` stands for; anything else comes back as it is."""
    match = _PERCENT.fullmatch(share.strip()) if isinstance(share, str) else None
    return share if match is None else float(match[1]) / 100


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


def latency_text(seconds: float) -> str:
    """The time of one sample: in seconds from a tenth on, in milliseconds below."""
    return f"{seconds:g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


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
