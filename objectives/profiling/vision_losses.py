"""The loss of visual-encoder optimisation (Q-VLM, Eqs 8 to 10), from one run of the model.

Eq 8 as printed adds `sum p log p`, minus the entropy, which would raise the entropy; here the
entropy itself is added, as the paper's text wants it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bitfront.layers import Tower
from bitfront.spec import VisionSpec
from bitfront.vlm import GenerativeModel, QuestionBatch
from objectives.profiling.calibration import Ranges
from objectives.profiling.entropy import (
    CHANNELS,
    InputGroup,
    list_input_groups,
    soft_assignment,
    spaced_channels,
)

# Values of an input group's input in one batch that its entropy is estimated from.
ENTROPY_VALUES = 1 << 13


def soft_entropy(values: Float[Tensor, " n"], levels: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """The entropy of the mean soft assignment of values to levels, divided by `log m`.

    In [0, 1], and differentiable everywhere: a level that no value comes near has no gradient.
    Q-VLM, Eq 5, with the exponent of `objectives.profiling.entropy.soft_assignment`.
    """
    share = soft_assignment(values, levels).mean(dim=0)
    surprise = -share.clamp(min=torch.finfo(share.dtype).tiny).log()
    return (share * surprise).sum() / math.log(len(levels))


def sample_values(inputs: Float[Tensor, "*shape"], quota: int) -> Float[Tensor, " n"]:
    """About `quota` values at fixed strides: at most `CHANNELS` channels of some tokens."""
    rows = inputs.flatten(0, -2)
    width = min(CHANNELS, rows.shape[-1])
    stride = max(1, math.ceil(len(rows) * width / quota))
    # A stride that shares a factor with the tokens of a sample would see some places only.
    while inputs.ndim > 2 and stride > 1 and math.gcd(stride, inputs.shape[-2]) > 1:
        stride += 1
    return spaced_channels(rows[::stride], width).flatten().float()


def relative_error(
    quantized: Float[Tensor, "*shape"], exact: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """The norm of the difference as a share of the exact tensor's norm (Q-VLM, Eq 9)."""
    exact = exact.float()
    norm = torch.linalg.vector_norm(exact).clamp(min=torch.finfo(exact.dtype).tiny)
    error: Tensor = torch.linalg.vector_norm(quantized.float() - exact) / norm
    return error


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Questions of one shape, and what full precision makes of them, on the CPU.

    Attributes:
        batch: The questions.
        tower: What goes into the projector, all of it in one row.
        logits: At the answers' tokens.
    """

    batch: QuestionBatch
    tower: Float[Tensor, " values"]
    logits: Float[Tensor, "n answer vocabulary"]


@dataclass(frozen=True, slots=True, eq=False)
class LossParts:
    """What one run adds to the loss.

    Attributes:
        language: L_reg, the mean cross-entropy of the answers' tokens in nats.
        entropies: H_k of every input group, in [0, 1].
        tower_error: The relative error of what goes into the projector.
        output_error: The relative error of the logits.
    """

    language: Float[Tensor, ""]
    entropies: Float[Tensor, " groups"]
    tower_error: Float[Tensor, ""]
    output_error: Float[Tensor, ""]


class VisionLoss:
    """Runs a model on questions and takes the parts of the loss from what it sees.

    Args:
        model: The model.
        ranges: Of every layer after the vision tower; the widest clip counts.
        spec: The weights of the parts, and the bits of the levels.

    Attributes:
        groups: The inputs of the projector and of the decoder, in order of execution.
    """

    def __init__(self, model: GenerativeModel, ranges: Ranges, spec: VisionSpec) -> None:
        self._model = model
        self._spec = spec
        after = [layer for layer in model.layers if layer.tower is not Tower.VISION]
        groups = list_input_groups(after, ranges, spec.activation_bits)
        self.groups: tuple[InputGroup, ...] = tuple(
            group for group in groups if group.levels is not None
        )
        self._levels = [
            group.levels.to(model.device) for group in self.groups if group.levels is not None
        ]
        self._places = {group.lead.name: place for place, group in enumerate(self.groups)}
        self._entry = next(layer.name for layer in after if layer.tower is Tower.PROJECTOR)

    @torch.no_grad()
    def sample(self, batch: QuestionBatch) -> Sample:
        """The questions with what the model makes of them now, in full precision."""
        tower: list[Tensor] = []

        def note(name: str, inputs: Tensor) -> None:
            if name == self._entry:
                tower.append(inputs.flatten().cpu())

        with self._model.watch_inputs(note):
            logits = self._model.answer_logits(batch)
        return Sample(batch, torch.cat(tower), logits.cpu())

    def parts(self, sample: Sample) -> LossParts:
        """The parts of the loss; gradients flow to whatever the vision tower depends on."""
        tower: list[Tensor] = []
        values: list[list[Tensor]] = [[] for _ in self.groups]

        def note(name: str, inputs: Tensor) -> None:
            if name == self._entry:
                tower.append(inputs.flatten())
            if name in self._places:
                values[self._places[name]].append(sample_values(inputs, ENTROPY_VALUES))

        logits = self._run(sample, note)
        answers = sample.batch.answers.to(logits.device)
        return LossParts(
            functional.cross_entropy(logits.flatten(0, 1).float(), answers.flatten()),
            torch.stack([self._entropy(place, parts) for place, parts in enumerate(values)]),
            relative_error(torch.cat(tower), sample.tower.to(logits.device)),
            relative_error(logits, sample.logits.to(logits.device)),
        )

    def total(
        self, parts: LossParts, influences: Float[Tensor, " groups"], entropy_weight: float
    ) -> Float[Tensor, ""]:
        """The loss (Q-VLM, Eq 10): `L_reg + lambda1 * L_ent + lambda2 * L_err`.

        Args:
            parts: Its parts.
            influences: The w_k of Eq 8, constants.
            entropy_weight: lambda1.
        """
        error = parts.tower_error + self._spec.output_weight * parts.output_error
        entropy = influences @ parts.entropies
        return parts.language + entropy_weight * entropy + self._spec.error_weight * error

    def influences(self, samples: Iterable[Sample], leaf: Tensor) -> Float[Tensor, " groups"]:
        """How much each group's input weighs in the output's quantization error, 1 on average.

        The w_k of Q-VLM, Eq 8: the norm of `dE / dX_k` over all samples, with E the squared
        error of the logits. All are 1 where there is no error.

        Args:
            samples: What E is summed over.
            leaf: What the vision tower depends on; the gradients are taken on the way to it.
        """
        squares = torch.zeros(len(self.groups), device=self._model.device)

        def add(place: int, gradient: Tensor) -> None:
            squares[place] += gradient.float().square().sum()

        def note(name: str, inputs: Tensor) -> None:
            if name in self._places and inputs.requires_grad:
                place = self._places[name]
                inputs.register_hook(partial(add, place))  # type: ignore[no-untyped-call]  # theirs

        for sample in samples:
            logits = self._run(sample, note)
            error = (logits.float() - sample.logits.to(logits.device).float()).square().sum()
            torch.autograd.grad(error, leaf)
        norms = squares.sqrt()
        mean = norms.mean()
        return norms / mean if float(mean) > 0 else torch.ones_like(norms)

    def _run(self, sample: Sample, note: Callable[[str, Tensor], None]) -> Tensor:
        with self._model.watch_inputs(note):
            return self._model.answer_logits(sample.batch)

    def _entropy(self, place: int, values: list[Tensor]) -> Tensor:
        # Computed again on the way back: the assignments of all groups would fill the memory.
        entropy: Tensor = checkpoint(
            soft_entropy,
            torch.cat(values),
            self._levels[place],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return entropy
