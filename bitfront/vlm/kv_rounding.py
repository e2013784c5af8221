"""Rounding what a decoder keeps of earlier tokens: its keys and values pass through codes."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.quant.kv_cache import (
    KvFormat,
    fitted_levels,
    normalised,
    round_keys,
    round_values,
    uniform_levels,
    vector_ends,
)
from bitfront.vlm.models.generative import GenerativeModel

_KEYS = ".k_proj.weight"
_ROTARY = "apply_rotary_pos_emb"  # what transformers' decoders call it, in the file of each


class Kept(StrEnum):
    """What of a token is kept."""

    KEYS = "keys"
    VALUES = "values"


Touch: TypeAlias = Callable[[str, Kept, Float[Tensor, "n tokens channels"]], Tensor]
"""Takes the name of an attention, which of the two it is, and what it is; gives what is kept."""


@dataclass(frozen=True, slots=True)
class KvSettings:
    """How the keys and the values of all layers are stored.

    Attributes:
        keys: Of the keys, by channel.
        values: Of the values, by token.
        is_rotated: Whether keys are rounded after the rotary embedding, and not before.
    """

    keys: KvFormat
    values: KvFormat
    is_rotated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class KvRounding:
    """Settings with what calibration found for each attention.

    Attributes:
        settings: The settings.
        ends: The lowest and the highest key of each channel.
        levels: Of keys and of values.
    """

    settings: KvSettings
    ends: Mapping[str, tuple[Tensor, Tensor]]
    levels: Mapping[tuple[str, Kept], Tensor]

    @contextmanager
    def on(self, model: GenerativeModel) -> Iterator[None]:
        """Within it the model attends to keys and values as they are read back."""
        with touched_cache(model, self._round, is_rotated=self.settings.is_rotated):
            yield

    def _round(self, name: str, kept: Kept, given: Tensor) -> Tensor:
        levels = self.levels[name, kept]
        if kept is Kept.VALUES:
            form = self.settings.values
            return given if form.bits == 16 else round_values(given, levels, form.outliers)
        form = self.settings.keys
        if form.bits == 16:
            return given
        low, high = self.ends[name]
        return round_keys(given, low, high, levels, keeps_outliers=form.outliers > 0)


@dataclass(frozen=True, slots=True, eq=False)
class ShownCache:
    """What calibration showed of each attention's keys and values.

    Attributes:
        is_rotated: Whether keys are those after the rotary embedding.
        tokens: `(tokens, channels)`, of all batches.
        weights: The squared gradient of the loss at each value.
    """

    is_rotated: bool
    tokens: Mapping[tuple[str, Kept], Tensor]
    weights: Mapping[tuple[str, Kept], Tensor]


def show_cache(
    model: GenerativeModel, losses: Sequence[Callable[[], Tensor]], *, is_rotated: bool = False
) -> ShownCache:
    """The keys and values of some batches, with the squared gradients of their losses.

    Args:
        model: The model, in full precision.
        losses: Each runs a batch and gives its loss.
        is_rotated: Whether keys are taken after the rotary embedding.

    Raises:
        SpecError: The model's attention is of another kind.
    """
    shown: dict[tuple[str, Kept], list[Tensor]] = {}

    def show(name: str, kept: Kept, given: Tensor) -> Tensor:
        leaf = given.detach().requires_grad_()
        shown.setdefault((name, kept), []).append(leaf)
        return leaf

    with torch.enable_grad(), touched_cache(model, show, is_rotated=is_rotated):
        for loss in losses:
            loss().backward()  # type: ignore[no-untyped-call]  # torch does not type it
    tokens, weights = {}, {}
    for place, parts in shown.items():
        tokens[place] = torch.cat([part.detach().flatten(0, 1) for part in parts])
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in parts]
        weights[place] = torch.cat([one.flatten(0, 1) for one in gradients]).square()
    return ShownCache(is_rotated, tokens, weights)


def fit_cache(shown: ShownCache, settings: KvSettings) -> KvRounding:
    """The ends of the keys' channels and the levels, on what calibration showed.

    Levels that are not uniform weigh each value by the squared gradient of the loss, the diagonal
    of the empirical Fisher information (KVQuant, section 3.2).

    Raises:
        SpecError: The keys that were shown are turned and those of the settings not, or the other
            way round.
    """
    if shown.is_rotated != settings.is_rotated:
        raise SpecError("keys are fitted on the same side of the rotary embedding")
    ends, levels = {}, {}
    for (name, kept), tokens in shown.tokens.items():
        are_keys = kept is Kept.KEYS
        form = settings.keys if are_keys else settings.values
        weights = shown.weights[name, kept]
        if are_keys:
            tokens, weights = tokens.T.contiguous(), weights.T.contiguous()  # noqa: PLW2901
        low, high = vector_ends(tokens, form.outliers)
        if are_keys:
            ends[name] = low, high
        levels[name, kept] = uniform_levels(form.bits) if form.bits < 16 else torch.empty(0)
        if not form.is_uniform:
            inside = (tokens >= low[:, None]) & (tokens <= high[:, None])
            places = normalised(tokens, low, high)
            levels[name, kept] = fitted_levels(places[inside], weights[inside], form.bits)
    return KvRounding(settings, ends, levels)


@contextmanager
def touched_cache(model: GenerativeModel, touch: Touch, *, is_rotated: bool) -> Iterator[None]:
    """Within it the keys and values of every decoder layer are what `touch` makes of them.

    Args:
        model: The model.
        touch: Gets the outputs of the layers' key and value projections.
        is_rotated: Whether it gets keys after the rotary embedding, their heads side by side.

    Raises:
        SpecError: The decoder has no attention with `k_proj` and `v_proj`, or no rotary embedding.
    """
    modules = dict(model.module.named_modules())
    names = [
        layer.name.removesuffix(_KEYS)
        for layer in model.layers
        if layer.tower is Tower.LANGUAGE and layer.name.endswith(_KEYS)
    ]
    if not names or any(f"{name}.v_proj" not in modules for name in names):
        raise SpecError(
            "the decoder has no attention with k_proj and v_proj: its cache is not rounded"
        )
    with ExitStack() as stack:
        for name in names:
            kinds = {Kept.VALUES: "v_proj"} | ({} if is_rotated else {Kept.KEYS: "k_proj"})
            for kept, projection in kinds.items():
                hook = _after(touch, name, kept)
                module = modules[f"{name}.{projection}"]
                stack.callback(module.register_forward_hook(hook).remove)
        if is_rotated:
            stack.enter_context(_after_rotation({modules[name]: name for name in names}, touch))
        yield


def _after(touch: Touch, name: str, kept: Kept) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _module, _args, output: touch(name, kept, output)


@contextmanager
def _after_rotation(attentions: Mapping[nn.Module, str], touch: Touch) -> Iterator[None]:
    """Within it keys are touched after the function that turns them."""
    running: list[str] = []
    files = {sys.modules[type(module).__module__] for module in attentions}
    if any(not hasattr(file, _ROTARY) for file in files):
        raise SpecError("the decoder has no rotary embedding: its keys are rounded as they are")

    def begin(module: nn.Module, _args: object) -> None:
        running[:] = [attentions[module]]

    def turned(rotate: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., object]:
        def both(*args: object, **settings: object) -> tuple[Tensor, Tensor]:
            queries, keys = rotate(*args, **settings)
            side_by_side = keys.transpose(1, 2).flatten(2)  # heads are the second dimension
            kept = touch(running[0], Kept.KEYS, side_by_side)
            return queries, kept.view(keys.transpose(1, 2).shape).transpose(1, 2)

        return both

    with ExitStack() as stack:
        for module in attentions:
            stack.callback(module.register_forward_pre_hook(begin).remove)
        for file in files:
            rotate = getattr(file, _ROTARY)
            setattr(file, _ROTARY, turned(rotate))
            stack.callback(setattr, file, _ROTARY, rotate)
        yield
