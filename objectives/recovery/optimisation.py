"""Parameters with their optimiser: a state that was saved goes on to the same bits on a CPU."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Group:
    """What the optimiser trains at one rate.

    Attributes:
        parameters: What is trained.
        rate: The rate at first.
        decay: AdamW's weight decay.
    """

    parameters: Sequence[nn.Parameter]
    rate: float
    decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Values:
    """What a saved state holds of every parameter: its value, and its moments after a step."""

    values: Sequence[Tensor]
    moments: Sequence[Mapping[str, Tensor]]


class Optimisation:
    """AdamW, with rates that follow a cosine to zero.

    Args:
        groups: What is trained.
        steps: After how many steps the rates are zero.
    """

    def __init__(self, groups: Sequence[Group], steps: int) -> None:
        self._groups = groups
        self._steps = steps
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters), "weight_decay": group.decay} for group in groups]
        )

    def backward(self, losses: Iterable[Float[Tensor, ""]]) -> float:
        """Gives every parameter the gradient of the losses' sum; returns that sum."""
        total = 0.0
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        for loss in losses:
            total += float(loss.detach())
            # Not backward(): the model's own weights must not collect gradients.
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    sums[place] += gradient
        for parameter, gradient in zip(self.parameters, sums, strict=True):
            parameter.grad = gradient
        return total

    def step(self, taken: int) -> None:
        """Takes the optimiser step after so many others."""
        share = 0.5 * (1 + math.cos(math.pi * taken / self._steps))
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            settings["lr"] = group.rate * share
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """The values and moments of all parameters; `read` takes them in."""
        tensors: dict[str, Tensor] = {}
        for place, parameter in enumerate(self.parameters):
            tensors[f"{place}.value"] = parameter
            moments = self._optimizer.state[parameter]
            tensors |= {f"{place}.{name}": moments[name] for name in _MOMENTS if name in moments}
        return tensors

    def read(self, state: Mapping[str, Tensor], steps: int) -> Values:
        """What a state holds after so many steps; nothing changes yet.

        Raises:
            KeyError: It lacks a tensor.
            RuntimeError: A tensor has another shape.
        """

        def own(place: int, name: str) -> Tensor:
            parameter = self.parameters[place]
            return state[f"{place}.{name}"].to(parameter).view_as(parameter).detach().clone()

        places = range(len(self.parameters))
        return Values(
            [own(place, "value") for place in places],
            [{name: own(place, name) for name in _MOMENTS} if steps else {} for place in places],
        )

    def put(self, read: Values, steps: int) -> None:
        """Takes in what `read` found in a state after so many steps."""
        for parameter, value, known in zip(self.parameters, read.values, read.moments, strict=True):
            parameter.data = value
            if known:
                step = torch.tensor(float(steps))
                self._optimizer.state[parameter] = {"step": step, **known}
