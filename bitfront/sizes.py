"""Sizes as people write them."""

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_nbytes(size: object) -> object:
    """The bytes that `40MB`, `1.5 GiB` or `4096` stand for; anything else comes back as it is.

    Raises:
        ValueError: The text has no number or no known unit.
    """
    if not isinstance(size, str):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{size!r} is no size: write it like 4096, 40MB or 1.5GiB")
    nbytes = float(match[1]) * _UNITS[match[2].lower()]
    if nbytes == float("inf"):
        raise ValueError("no size is that large")
    return int(nbytes)
