"""Rounding what a decoder keeps of earlier tokens: its keys and values pass through codes."""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.kv_cache import Kept, KvFormat, KvPlace, projection
from bitfront.layers import Tower
from bitfront.quant.kv_cache import (
    fitted_levels,
    normalised,
    round_keys,
    round_values,
    uniform_levels,
    vector_ends,
)
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.layered import LayeredModel

_KEYS = ".k_proj.weight"
_ROTARY = "apply_rotary_pos_emb"  # what transformers' decoders call it, in the file of each
_MOST_VALUES = 1 << 20  # that levels are fitted to

Touch: TypeAlias = Callable[[Float[Tensor, "n tokens channels"]], Tensor]
"""Takes the keys or the values of an attention, and gives what is kept of them."""


def cache_places(model: LayeredModel) -> tuple[KvPlace, ...]:
    """The keys and values of every attention of a decoder, in order of execution.

    Raises:
        SpecError: It is no decoder whose attention has layers `k_proj` and `v_proj`.
    """
    if not isinstance(model, GenerativeModel):
        raise SpecError(
            "only a model that answers questions keeps keys and values of earlier tokens: leave "
            "space.kv_cache and context_tokens out"
        )
    modules, layers = dict(model.module.named_modules()), {x.name: x for x in model.layers}
    decoder = [name for name, layer in layers.items() if layer.tower is Tower.LANGUAGE]
    attentions = [name.removesuffix(_KEYS) for name in decoder if name.endswith(_KEYS)]
    found = [
        KvPlace(name, kept, layers[layer].rows, _window(modules[name]))
        for name in attentions
        for kept in Kept
        if (layer := projection(f"{name}:{kept}")) in layers
    ]
    if not found or len(found) < 2 * len(attentions):
        raise SpecError(
            "the decoder has no attention with layers k_proj and v_proj, as transformers' decoders "
            "have it, so its KV cache is neither counted nor rounded: leave space.kv_cache and "
            "context_tokens out"
        )
    return tuple(found)


def _window(attention: nn.Module) -> int | None:
    tokens = getattr(attention, "sliding_window", None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None


@dataclass(frozen=True, slots=True)
class FittedPlace:
    """A format with what calibration found for a place.

    Attributes:
        kept: Keys or values.
        form: The format.
        levels: Between -1 and 1; empty for 16 bits.
        ends: The lowest and the highest key of each channel; None for values.
    """

    kept: Kept
    form: KvFormat
    levels: Tensor
    ends: tuple[Tensor, Tensor] | None = None

    def __call__(self, given: Float[Tensor, "n tokens channels"]) -> Tensor:
        """What is read back; gradients pass as if nothing were rounded."""
        if self.form.bits == 16:
            return given
        with torch.no_grad():
            read = self._read(given)
        if not (given.requires_grad and torch.is_grad_enabled()):
            return read
        passed: Tensor = _StraightThrough.apply(given, read)
        return passed

    def _read(self, given: Tensor) -> Tensor:
        if self.ends is None:
            return round_values(given, self.levels, self.form.outliers)
        low, high = self.ends
        return round_keys(given, low, high, self.levels, keeps_outliers=self.form.outliers > 0)


class _StraightThrough(torch.autograd.Function):
    """A tensor in another's place, whose gradient it gets."""

    @staticmethod
    def forward(_ctx: object, _given: Tensor, read: Tensor) -> Tensor:
        return read.clone()

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@dataclass(frozen=True, slots=True, eq=False)
class ShownPlace:
    """What calibration showed of an attention's keys or values.

    Attributes:
        tokens: `(tokens, channels)`, of all batches.
        weights: The squared gradient of the loss at each value, with gradients on.
    """

    tokens: Float[Tensor, "tokens channels"]
    weights: Float[Tensor, "tokens channels"]


def show_cache(
    model: nn.Module,
    run: Callable[[], None],
    places: Collection[str],
    rotated: Collection[str] = (),
    *,
    repeats: int = 1,
) -> dict[str, ShownPlace]:
    """What is kept at some places while samples run, with the squared gradients that come back.

    Args:
        model: The model, in full precision.
        run: Runs the samples, and where levels are to be fitted sends gradients back.
        places: Names of the places.
        rotated: Those whose keys are taken after the rotary embedding.
        repeats: How often it runs the same samples; squared gradients are means over them.

    Raises:
        SpecError: The model's attention is of another kind.
    """
    shown: dict[str, list[Tensor]] = {place: [] for place in places}

    def showing(place: str) -> Touch:
        def show(given: Tensor) -> Tensor:
            leaf = given.detach().requires_grad_(torch.is_grad_enabled())
            shown[place].append(leaf)
            return leaf

        return show

    with touched_cache(model, {place: showing(place) for place in places}, rotated):
        run()
    return {place: _shown(parts, repeats) for place, parts in shown.items()}


def _shown(parts: Sequence[Tensor], repeats: int) -> ShownPlace:
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in parts]
    each = len(parts) // repeats
    squares = torch.cat([one.flatten(0, 1) for one in gradients]).square()
    return ShownPlace(
        torch.cat([part.detach().flatten(0, 1) for part in parts[:each]]),
        squares.view(repeats, -1, squares.shape[-1]).mean(dim=0),
    )


def fit_place(kept: Kept, form: KvFormat, shown: ShownPlace) -> FittedPlace:
    """The ends of the keys' channels and the levels, on what calibration showed.

    Levels that are not uniform weigh each value by the squared gradient of the loss, the diagonal
    of the Fisher information (KVQuant, section 3.2); of more than a million values, so many that
    are evenly spread.
    """
    if form.bits == 16:
        return FittedPlace(kept, form, torch.empty(0))
    are_keys = kept is Kept.KEYS
    tokens, weights = (x.T.contiguous() if are_keys else x for x in (shown.tokens, shown.weights))
    low, high = vector_ends(tokens, form.outliers)
    levels = uniform_levels(form.bits)
    if not form.is_uniform:
        inside = (tokens >= low[:, None]) & (tokens <= high[:, None])
        values, own = normalised(tokens, low, high)[inside], weights[inside]
        step = -(-len(values) // _MOST_VALUES) if len(values) else 1
        levels = fitted_levels(values[::step], own[::step], form.bits)
    return FittedPlace(kept, form, levels, (low, high) if are_keys else None)


@contextmanager
def touched_cache(
    model: nn.Module, touches: Mapping[str, Touch], rotated: Collection[str] = ()
) -> Iterator[None]:
    """Within it what is kept at some places is what their `touches` make of it.

    Args:
        model: The model, as its library has it or rewritten.
        touches: What gets the output of the place's projection, by the place's name.
        rotated: Places that get keys after the rotary embedding, their heads side by side.

    Raises:
        SpecError: The decoder has no such place, or no rotary embedding.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for place, touch in touches.items():
            projected = modules.get(projection(place).removesuffix(".weight"))
            if projected is None:
                raise SpecError(f"the model has no KV cache {place!r}: it is of another model")
            if place in rotated:
                attention = modules[place.rpartition(":")[0]]
                stack.enter_context(_touched_after_rotation(attention, touch))
            else:
                stack.callback(projected.register_forward_hook(_after(touch)).remove)
        yield


@contextmanager
def rounded_cache(model: nn.Module, fitted: Mapping[str, FittedPlace]) -> Iterator[None]:
    """Within it a model attends to what is read back at some places, given by their names."""
    rotated = {place for place, own in fitted.items() if own.form.is_rotated}
    with touched_cache(model, fitted, rotated):
        yield


def refuse_rotated(model: GenerativeModel) -> None:
    """Refuses a decoder whose rotary embedding is not known.

    Raises:
        SpecError: It is not.
    """
    modules = dict(model.module.named_modules())
    for place in cache_places(model):
        if not hasattr(_file_of(modules[place.attention]), _ROTARY):
            raise SpecError(
                "space.kv_cache.rotary: the decoder turns its keys in a way that is not known, if "
                "at all: write [before]"
            )


def _after(touch: Touch) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _module, _args, output: touch(output)


def _file_of(module: nn.Module) -> ModuleType:
    return sys.modules[type(module).__module__]


class _Turning:
    """Stands in for the function of a file that turns queries and keys.

    Attributes:
        touches: What the keys of some attentions go through afterwards.
    """

    def __init__(self, rotate: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.rotate = rotate
        self.touches: dict[nn.Module, Touch] = {}
        self._running = threading.local()

    def begin(self, module: nn.Module, _args: object) -> None:
        """A forward pre-hook of an attention: what is turned next is its own."""
        self._running.module = module

    def end(self, _module: nn.Module, _args: object, _output: object) -> None:
        """A forward hook of an attention: what is turned next is another's."""
        self._running.module = None

    def __call__(self, *args: object, **settings: object) -> tuple[Tensor, Tensor]:
        queries, keys = self.rotate(*args, **settings)
        touch = self.touches.get(getattr(self._running, "module", None))  # type: ignore[arg-type]
        if touch is None:
            return queries, keys
        by_token = keys.transpose(1, 2)  # heads are the second dimension
        return queries, touch(by_token.flatten(2)).view(by_token.shape).transpose(1, 2)


_TURNING: dict[ModuleType, _Turning] = {}


@contextmanager
def _touched_after_rotation(attention: nn.Module, touch: Touch) -> Iterator[None]:
    """Within it an attention's keys are touched after the function that turns them.

    The function belongs to a file and so to all its models: it is put back with the last touch.
    """
    file = _file_of(attention)
    if not hasattr(file, _ROTARY):
        raise SpecError("the decoder has no rotary embedding: its keys are rounded as they are")
    if file not in _TURNING:
        _TURNING[file] = _Turning(getattr(file, _ROTARY))
        setattr(file, _ROTARY, _TURNING[file])
    turning = _TURNING[file]
    turning.touches[attention] = touch
    hooks = [
        attention.register_forward_pre_hook(turning.begin),
        attention.register_forward_hook(turning.end, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del turning.touches[attention]
        if not turning.touches:
            setattr(file, _ROTARY, turning.rotate)
            del _TURNING[file]
