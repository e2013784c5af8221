"""Entropies of the layers' quantized inputs, and how much neighbouring layers leave open.

Q-VLM (Eq 4 and 5) in a form that depends neither on the number of tokens nor on the width:
every distribution is a mean over elements, and every entropy is divided by the log of the
number of levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.layers import Layer, LayerKind
from bitfront.profile import LayerEntropy
from bitfront.quant.inputs import input_levels
from objectives.data.task import Task
from objectives.profiling.calibration import Ranges, calibration_batches, watch_calibration

# Below 1, since the blur of the assignment is uncertainty too: at 1 two copies of one tensor
# would leave half of the range open at 4 bits.
TEMPERATURE = 0.25
CHANNELS = 64
SAMPLED_VALUES = 1 << 15

_CHUNK = 1 << 20


def soft_assignment(
    values: Float[Tensor, " n"], levels: Float[Tensor, " m"], temperature: float = TEMPERATURE
) -> Float[Tensor, "n m"]:
    """The probability of each level for each value (Q-VLM, Eq 5).

    `softmax_m(-(x - q_m)^2 / (temperature * step^2))`. The paper divides by the step; its
    square makes the assignment the same whatever unit the values have.

    Args:
        values: Finite.
        levels: Evenly spaced, in increasing order.
        temperature: Towards 0 the assignment becomes that of the nearest level.
    """
    distance = (values[:, None] - levels) / (levels[1] - levels[0])
    return torch.softmax(-distance.square() / temperature, dim=-1)


def entropy_nats(probabilities: Float[Tensor, "*shape"]) -> float:
    """The entropy of a distribution of any shape that sums to 1; never negative."""
    nats = -float(torch.special.xlogy(probabilities, probabilities).sum())
    return max(0.0, nats)


def measure_entropies(
    task: Task,
    ranges: Ranges,
    bits: int,
    *,
    temperature: float = TEMPERATURE,
) -> list[LayerEntropy]:
    """The entropy and the dependency of every layer, in order of execution.

    With `p_i` the soft assignment of element `i` to the `M = 2**bits` levels of its layer:

    * entropy: `H(mean_i p_i) / log M`.
    * dependency: `H(X' | X) / log M`, the conditional entropy of the next layer's input under
      the joint distribution `mean_i p_i p'_i`, over pairs of the same token and of the same
      place among at most `CHANNELS` evenly spaced channels. Where the next layer sees other
      tokens (after pooling, or after a patch embedding) there are no pairs, and it is the
      next layer's own entropy, the upper bound.

    Layers that share their input (q, k and v) are one input group: each has the dependency
    of that group on the next. An embedding has no quantized input: its entropy is 0. The last
    layer of a tower has no dependency.

    At most about `SAMPLED_VALUES` values a layer enter, picked at fixed strides, so memory
    does not grow with the split, and equal runs give equal numbers.

    Args:
        task: Its calibration split runs once through its model, which is in full precision.
        ranges: What `calibrate` returned; the widest clip counts.
        bits: Width of the codes, at most 8; 4 bits need few samples and tell layers apart.
        temperature: See `soft_assignment`.

    Raises:
        SpecError: `bits` is not in [2, 8].
    """
    if not 2 <= bits <= 8:
        raise SpecError(f"entropies are over codes of 2 to 8 bits, got {bits}")
    layers = task.model.layers
    chain = Chain(list_input_groups(layers, ranges, bits), temperature)
    batches = calibration_batches(task)
    quotas = {layer.name: max(1, SAMPLED_VALUES // batches[layer.tower]) for layer in layers}
    watch_calibration(task, lambda name, x: chain.add(name, x, quotas[name]))
    return chain.entropies()


@dataclass(frozen=True, slots=True)
class InputGroup:
    """Neighbouring layers that share their input; no levels where it is not a number."""

    layers: tuple[Layer, ...]
    levels: Tensor | None

    @property
    def lead(self) -> Layer:
        """The layer whose calls count."""
        return self.layers[0]


def list_input_groups(layers: Sequence[Layer], ranges: Ranges, bits: int) -> list[InputGroup]:
    """The layers' inputs in order of execution, with the levels of their widest range."""
    groups = []
    for _, members in groupby(layers, key=lambda layer: (layer.tower, layer.source)):
        shared = tuple(members)
        levels = None
        if shared[0].kind is not LayerKind.EMBEDDING:
            known = ranges[shared[0].name]
            levels = input_levels(known[max(known)], bits)
        groups.append(InputGroup(shared, levels))
    return groups


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some tokens of an input, `(rows, channels)`, and how many tokens there were."""

    tokens: int
    rows: Tensor


def _sample(inputs: Tensor, kind: LayerKind, quota: int) -> _Sample:
    """About `quota` values at fixed strides: at most `CHANNELS` channels of some tokens."""
    last = inputs.movedim(1, -1) if kind is LayerKind.CONVOLUTION else inputs
    rows = last.flatten(0, -2)
    stride = max(1, math.ceil(len(rows) * CHANNELS / quota))
    # A stride that shares a factor with the tokens of a sample would see some places only.
    while last.ndim > 2 and stride > 1 and math.gcd(stride, last.shape[-2]) > 1:
        stride += 1
    picked = spaced_channels(rows[::stride], min(CHANNELS, rows.shape[-1]))
    return _Sample(len(rows), picked.detach().float())


def spaced_channels(rows: Float[Tensor, "n c"], width: int) -> Float[Tensor, "n width"]:
    """`width` evenly spaced channels."""
    channels = rows.shape[-1]
    places = (torch.arange(width, device=rows.device) * channels + channels // 2) // width
    return rows[:, places.clamp(max=channels - 1)]


class Chain:
    """Accumulates each input group's distribution, and its joint one with the next group."""

    def __init__(self, groups: Sequence[InputGroup], temperature: float) -> None:
        self._groups = groups
        self._temperature = temperature
        self._places = {group.lead.name: place for place, group in enumerate(groups)}
        self._marginals: dict[int, Tensor] = {}
        self._joints: dict[int, Tensor] = {}
        self._before: tuple[int, _Sample] | None = None

    def add(self, name: str, inputs: Tensor, quota: int) -> None:
        """Takes in about `quota` values of a layer's input; only a group's first layer counts."""
        place = self._places.get(name)
        if place is None:
            return
        sample = _sample(inputs, self._groups[place].lead.kind, quota)
        for values in torch.split(sample.rows.flatten(), self._chunk(place)):
            _accumulate(self._marginals, place, self._assign(place, values).sum(dim=0))
        if self._before is not None:
            earlier, before = self._before
            if (
                earlier == place - 1
                and before.tokens == sample.tokens
                and self._groups[earlier].lead.tower is self._groups[place].lead.tower
            ):
                self._pair(earlier, before.rows, sample.rows)
        self._before = place, sample

    def _pair(self, place: int, before: Tensor, after: Tensor) -> None:
        width = min(before.shape[-1], after.shape[-1])
        chunk = self._chunk(place)
        firsts = torch.split(spaced_channels(before, width).flatten(), chunk)
        seconds = torch.split(spaced_channels(after, width).flatten(), chunk)
        for first, second in zip(firsts, seconds, strict=True):
            joint = self._assign(place, first).T @ self._assign(place + 1, second)
            _accumulate(self._joints, place, joint)

    def _levels(self, place: int) -> Tensor:
        levels = self._groups[place].levels
        assert levels is not None, "an embedding's input was shown"
        return levels

    def _chunk(self, place: int) -> int:
        return max(1, _CHUNK // len(self._levels(place)))

    def _assign(self, place: int, values: Tensor) -> Tensor:
        levels = self._levels(place).to(values.device)
        return soft_assignment(values, levels, self._temperature)

    def entropies(self) -> list[LayerEntropy]:
        """What the accumulated distributions amount to."""
        result = []
        for place, group in enumerate(self._groups):
            entropy, dependency = self._entropy(place), self._dependency(place)
            result += [LayerEntropy(layer.name, entropy, dependency) for layer in group.layers]
            following = self._groups[place + 1 : place + 2]
            if not following or following[0].lead.tower is not group.lead.tower:
                result[-1] = LayerEntropy(group.layers[-1].name, entropy, None)
        return result

    def _entropy(self, place: int) -> float:
        marginal = self._marginals.get(place)
        if marginal is None:
            return 0.0
        return _share(entropy_nats(marginal / marginal.sum()), len(marginal))

    def _dependency(self, place: int) -> float:
        """`H(X' | X)`; within the last group of a tower, whose layers share X, `H(X)`."""
        if place not in self._joints:
            following = self._groups[place + 1 : place + 2]
            same = following and following[0].lead.tower is self._groups[place].lead.tower
            return self._entropy(place + 1 if same else place)
        joint = self._joints[place] / self._joints[place].sum()
        conditional = entropy_nats(joint) - entropy_nats(joint.sum(dim=1))
        return _share(conditional, len(joint))


def _share(nats: float, levels: int) -> float:
    return min(1.0, max(0.0, nats / math.log(levels)))


def _accumulate(sums: dict[int, Tensor], place: int, part: Tensor) -> None:
    part = part.double().cpu()
    sums[place] = sums[place] + part if place in sums else part
