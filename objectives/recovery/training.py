"""The training of a recovery, step by step: its optimiser, its schedule, and its state.

A training that loads a saved state resumes to the same bits on a CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.plan import Recovery
from objectives.recovery.adapter import Adapter
from objectives.recovery.optimisation import Group, Optimisation
from objectives.recovery.prompt import Context

SAMPLES_A_STEP = 128
ADAPTER_DECAY = 1e-2


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
        groups, multiplier = [], recovery.learning_rate_multiplier
        if context is not None:
            groups.append(Group(list(context.parameters()), self.prompt_rate * multiplier))
        if adapter is not None:
            rate = self.adapter_rate * multiplier
            groups.append(Group(list(adapter.parameters()), rate, ADAPTER_DECAY))
        self._optimisation = Optimisation(groups, recovery.steps)

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
            chosen = order[: self.samples_a_step].to(self._device)
            loss = self._optimisation.backward(self.losses(chosen))
        self._optimisation.step(self.steps)
        self.steps += 1
        return loss

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
            **self._optimisation.state(),
        }
        if self.adapter is not None:
            tensors |= {f"format.{name}": t for name, t in self.adapter.formats().items()}
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
            values = self._optimisation.read(state, steps)
            formats = _under("format.", state)
            if self.adapter is not None and steps > self.recovery.steps // 2:
                self.adapter.take_formats(formats)
        except (KeyError, RuntimeError) as error:
            raise InvalidModel(
                f"this is not a state of the recovery in training: {error}"
            ) from error
        self._generator, self.steps, self._carried = generator, steps, carried
        self._optimisation.put(values, steps)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
