"""Finds the trade-off between quality, memory and speed of a quantized vision-language model.

    import bitfront as bf

    study = bf.open().study("pets")
    study.best(max_nbytes="40MB").build("model")

`docs/python.md` goes through it. The names below are loaded when they are first used: this package
is the one that all others import, and the interface is the one that imports all others.
"""

import importlib
from typing import Final

_PLACES: Final = {
    "open": ("service.api.database", "open_database"),
    "Database": ("service.api.database", "Database"),
    "Study": ("service.api.study", "Study"),
    "Front": ("service.api.front", "Front"),
    "FoundConfiguration": ("service.api.found", "FoundConfiguration"),
    "JobSpec": ("bitfront.spec", "JobSpec"),
    "BitfrontError": ("bitfront.errors", "BitfrontError"),
    "NothingFits": ("bitfront.errors", "NothingFits"),
    "SpecError": ("bitfront.errors", "SpecError"),
}

__all__ = [
    "BitfrontError",
    "Database",
    "FoundConfiguration",
    "Front",
    "JobSpec",
    "NothingFits",
    "SpecError",
    "Study",
    "open",
]


def __getattr__(name: str) -> object:
    """One of the names of the interface."""
    if name == "__version__":
        from importlib.metadata import version

        return version("bitfront")
    if name not in _PLACES:
        raise AttributeError(f"module 'bitfront' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The names of the interface beside what is loaded."""
    return sorted({*globals(), *_PLACES, "__version__"})
