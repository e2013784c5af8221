"""The training of a recovery, step by step: its optimiser, its schedule, and its state.

A training that loads a saved state resumes to the same bits on a CPU.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitfront.errors import InvalidModel
from bitfront.plan import Recovery
from objectives.recovery.adapter import Adapter
from objectives.recovery.prompt import Context

SAMPLES_A_STEP = 128
ADAPTER_DECAY = 1e-2

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Group:
    """What the optimiser trains at one rate."""

    module: nn.Module
    rate: float
    decay: float


class Training(ABC):
    """A recovery in training: the context, the adapter, their optimiser and its generator.

    The plan is on the model for as long as steps are taken; nothing of the model changes.

    Attributes:
        recovery: The settings.
        context: The prompt's vectors; None without a prompt.
        adapter: None without one.
        steps: Steps taken so far.
        samples_a_step: Samples of one step.
        prompt_rate: The optimiser's rate for the context at first.
        adapter_rate: That for the adapter.
    """

    samples_a_step = SAMPLES_A_STEP
    prompt_rate = 1e-2
    adapter_rate = 6e-3

    def __init__(
        self,
        recovery: Recovery,
        context: Context | None,
        adapter: Adapter | None,
        samples: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        """Takes what is trained.

        Args:
            recovery: The settings.
            context: The prompt's vectors, on the device.
            adapter: The adapter, on the device.
            samples: Samples that a step's are drawn from.
            generator: Where they are drawn with.
            device: Where the model is.
        """
        self.recovery = recovery
        self.context = context
        self.adapter = adapter
        self.steps = 0
        self._samples = samples
        self._generator = generator
        self._device = device
        # What else the further steps depend on.
        self._carried: dict[str, Tensor] = {}
        self._groups = []
        if context is not None:
            self._groups.append(_Group(context, self.prompt_rate, 0.0))
        if adapter is not None:
            self._groups.append(_Group(adapter, self.adapter_rate, ADAPTER_DECAY))
        self._optimizer = torch.optim.AdamW(
            [
                {"params": list(group.module.parameters()), "weight_decay": group.decay}
                for group in self._groups
            ]
        )
        self._parameters = [p for group in self._groups for p in group.module.parameters()]

    @abstractmethod
    def losses(self, samples: Int[Tensor, " n"]) -> Iterator[Float[Tensor, ""]]:
        """Parts whose sum is the loss of some samples, in nats.

        Gradients flow to what is trained; a part's graph is let go before the next one's.
        """

    @abstractmethod
    def quantize_adapter(self) -> None:
        """Fake-quantize the adapter from now on."""

    def step(self) -> float:
        """Take one optimiser step; the loss before it, in nats.

        The rates follow a cosine to zero; the adapter is quantized from the middle on.
        """
        # Features may come from inference mode, whose tensors autograd refuses.
        with torch.inference_mode(mode=False), torch.enable_grad():
            if self.adapter is not None and self.steps == self.recovery.steps // 2:
                self.quantize_adapter()
            order = torch.randperm(self._samples, generator=self._generator)
            loss = self._backward(order[: self.samples_a_step].to(self._device))
        share = 0.5 * (1 + math.cos(math.pi * self.steps / self.recovery.steps))
        share *= self.recovery.learning_rate_multiplier
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            settings["lr"] = group.rate * share
        self._optimizer.step()
        self.steps += 1
        return loss

    def _backward(self, samples: Int[Tensor, " n"]) -> float:
        """Gives every parameter its gradient; returns the loss."""
        total = 0.0
        sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        for loss in self.losses(samples):
            total += float(loss.detach())
            # Not backward(): the model's own weights must not collect gradients.
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    sums[place] += gradient
        for parameter, gradient in zip(self._parameters, sums, strict=True):
            parameter.grad = gradient
        return total

    def stored(self) -> dict[str, Tensor]:
        """What is kept of the recovery as it is now: the context, and the packed adapter."""
        modules = [module for module in (self.context, self.adapter) if module is not None]
        return {name: tensor for module in modules for name, tensor in module.stored().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """All that the further steps depend on, on the CPU."""
        tensors = {
            "generator": self._generator.get_state(),
            "steps": torch.tensor(self.steps),
            **self._carried,
        }
        if self.adapter is not None:
            tensors |= {f"format.{name}": t for name, t in self.adapter.formats().items()}
        for place, parameter in enumerate(self._parameters):
            tensors[f"{place}.value"] = parameter
            moments = self._optimizer.state[parameter]
            tensors |= {f"{place}.{name}": moments[name] for name in _MOMENTS if name in moments}
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the training into a state that `state_dict` gave; an unusable one changes nothing.

        Raises:
            InvalidModel: The state is that of another training.
        """
        try:
            generator = torch.Generator()
            generator.set_state(state["generator"])
            steps = int(state["steps"])
            carried = {
                name: state[name].to(tensor).view_as(tensor).clone()
                for name, tensor in self._carried.items()
            }
            values = [self._read(state, place, "value") for place in range(len(self._parameters))]
            moments = [
                {name: self._read(state, place, name) for name in _MOMENTS} if steps else {}
                for place in range(len(self._parameters))
            ]
            formats = _under("format.", state)
            if self.adapter is not None and steps > self.recovery.steps // 2:
                self.adapter.take_formats(formats)
        except (KeyError, RuntimeError) as error:
            raise InvalidModel(
                f"this is not a state of the recovery in training: {error}"
            ) from error
        self._generator, self.steps, self._carried = generator, steps, carried
        for parameter, value, known in zip(self._parameters, values, moments, strict=True):
            parameter.data = value
            if known:
                step = torch.tensor(float(steps))
                self._optimizer.state[parameter] = {"step": step, **known}

    def _read(self, state: Mapping[str, Tensor], place: int, name: str) -> Tensor:
        """What a state holds for a parameter, in its shape."""
        parameter = self._parameters[place]
        return state[f"{place}.{name}"].to(parameter).view_as(parameter).detach().clone()


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
