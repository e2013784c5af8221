"""Checks the shapes and data types of tensors wherever an annotation names them."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from functools import wraps
from importlib.util import cache_from_source
from pathlib import Path
from typing import ParamSpec, TypeVar, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, _import_hook, install_import_hook
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ROOT = Path(__file__).parents[2]
PACKAGES = ("bitfront/quant", "bitfront/vlm", "objectives")
# A function in an inner loop is called a million times with the same shapes.
CHECKS_OF_EQUAL_CALLS = 10

_tagged = _import_hook._optimized_cache_from_source
_jaxtyped = jaxtyping.jaxtyped


def _bytecode_of(typechecker_hash: str, /, path: str, debug_override: bool | None = None) -> str:
    """Where a module's bytecode lies: that of checked modules apart from what others have.

    jaxtyping's hook looks there for all that a checked module imports too: without this, every test
    process compiles PyTorch, torchvision and transformers from their sources.
    """
    if Path(path).is_relative_to(ROOT) and "site-packages" not in path:
        found: str = _tagged(typechecker_hash, path, debug_override)  # type: ignore[no-untyped-call] # jaxtyping's
        return found
    return cache_from_source(path, debug_override)


def check_imports() -> None:
    """From now on the modules that name shapes are imported with their checks."""
    _import_hook._optimized_cache_from_source = _bytecode_of
    # The hook decorates each function and class of such a module with this.
    jaxtyping.jaxtyped = _checked_until_equal  # type: ignore[assignment] # keyword only
    install_import_hook(list(checked_modules()), "tests.support.shapes.check_shapes")


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


def _checked_until_equal(
    *, typechecker: Callable[[Callable[..., object]], Callable[..., object]]
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """jaxtyping's decorator, which leaves out calls that equal many that were checked."""

    def decorate(target: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        checked = _jaxtyped(target, typechecker=typechecker)
        if isinstance(target, type):
            return checked
        if not any(names_shape(hint) for hint in target.__annotations__.values()):
            return target
        calls: Counter[Hashable] = Counter()

        @wraps(target)
        def check_new_shapes(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            call = (*map(_looks, args), *((name, _looks(kwargs[name])) for name in kwargs))
            calls[call] += 1
            return (checked if calls[call] <= CHECKS_OF_EQUAL_CALLS else target)(*args, **kwargs)

        return check_new_shapes

    return decorate


def _looks(argument: object) -> Hashable:
    """What a check sees of an argument: a tensor's shape and data type, of another its type."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype
    return type(argument).__qualname__
