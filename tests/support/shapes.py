"""Checks the shapes and data types of tensors wherever an annotation names them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ROOT = Path(__file__).parents[2]
PACKAGES = ("bitfront/quant", "bitfront/vlm", "objectives")


def checked_modules() -> Iterator[str]:
    """The modules of these packages that name shapes: every checked function takes some time."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "from jaxtyping import" in path.read_text():
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def check_shapes(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function with its tensors checked; mypy has checked the other annotations already."""
    shaped = {name: hint for name, hint in function.__annotations__.items() if names_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def names_shape(hint: object) -> bool:
    """Whether a tensor's shape occurs somewhere in an annotation."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_shape(part) for part in get_args(hint))
