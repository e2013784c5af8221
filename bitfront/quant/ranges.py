"""A layer's input range, searched at both ends for the least error of the layer's output."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.quant.inputs import InputRange, fake_quantize_input

MAX_ROWS: Final = 512
_SHRINKS: Final[Sequence[float]] = tuple(0.9**power for power in range(18))
_STEPS: Final[Sequence[float]] = (1.3, 1.15, 1.07, 0.93, 0.87, 0.77)
_ROUNDS: Final = 2


def evenly_spread(
    inputs: Float[Tensor, "n columns"], count: int = MAX_ROWS
) -> Float[Tensor, "rows columns"]:
    """At most `count` rows, spread evenly; a copy."""
    n = len(inputs)
    places = torch.linspace(0, n - 1, min(count, n), dtype=torch.float64).round().long()
    return inputs[places.to(inputs.device)]


def searched_range(
    inputs: Float[Tensor, "n columns"], weight: Float[Tensor, "rows columns"], bits: int
) -> InputRange:
    """The range whose levels change the outputs `X W^T` least, in mean square.

    Both ends are first drawn in together, from the extremes down to a sixth of them, then each
    by itself, twice. The extremes are the first candidate, so the result is never worse on the
    given inputs. Candidates are judged as the input quantizer rounds.

    Args:
        inputs: `X`, in any floating dtype.
        weight: `W`.
        bits: Of the inputs.

    Raises:
        InvalidModel: There are no inputs, or one is not finite.
    """
    x, w = inputs.float(), weight.float()
    if not len(x) or not bool(x.isfinite().all()):
        raise InvalidModel("a range is searched on inputs, all of them finite")
    low, high = float(x.min().clamp(max=0)), float(x.max().clamp(min=0))
    best = (_error(x, w, low, high, bits), low, high)
    for factor in _SHRINKS[1:]:
        best = min(best, _judged(x, w, low * factor, high * factor, bits))
    for _ in range(_ROUNDS):
        for factor in _STEPS:
            best = min(best, _judged(x, w, max(best[1] * factor, low), best[2], bits))
        for factor in _STEPS:
            best = min(best, _judged(x, w, best[1], min(best[2] * factor, high), bits))
    return InputRange(best[1], best[2])


def _judged(x: Tensor, w: Tensor, low: float, high: float, bits: int) -> tuple[float, float, float]:
    return _error(x, w, low, high, bits), low, high


def _error(x: Tensor, w: Tensor, low: float, high: float, bits: int) -> float:
    bounds = torch.tensor([low, high], device=x.device)
    change = fake_quantize_input(x, bounds[0], bounds[1], bits) - x
    return float((change @ w.T).square().mean())
