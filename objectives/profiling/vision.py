"""Q-VLM's visual-encoder optimisation: learns what the vision tower's input ranges are cut to.

Two factors a layer are trained on the calibration questions; nothing of the model changes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from bitfront.errors import InvalidModel, SpecError
from bitfront.files import SharedPath, is_there
from bitfront.identity.keys import VISION_FORMAT, vision_checkpoint_key
from bitfront.layers import LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import InputRange, LearnedBounds, RangeScale, fake_quantize_input
from bitfront.spec import QuantizerSpec, Rounding, VisionSpec
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.profiling.calibration import Ranges, range_table
from objectives.profiling.vision_losses import LossParts, Sample, VisionLoss
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint

SMALLEST_FACTOR, LARGEST_FACTOR = 0.05, 1.5

_FACTORS, _GENERATOR = "factors", "generator"


@dataclass(frozen=True, slots=True)
class VisionEpoch:
    """What one epoch saw: means over its questions, each before its own step.

    Attributes:
        epoch: Its number, from 1.
        loss: The whole loss.
        language_nats: The cross-entropy of the answers' tokens.
        entropy: The mean entropy of the inputs after the vision tower, in [0, 1]; each counts
            alike, so that epochs compare.
        tower_error: The relative error of what goes into the projector.
        output_error: The relative error of the logits at the answers' tokens.
    """

    epoch: int
    loss: float
    language_nats: float
    entropy: float
    tower_error: float
    output_error: float


def _ignore(_epoch: VisionEpoch) -> None:
    """Does nothing with an epoch."""


def optimise_vision(
    model: GenerativeModel,
    task: QuestionTask,
    ranges: Ranges,
    quantizer: QuantizerSpec,
    spec: VisionSpec,
    seed: int,
    *,
    checkpoint: SharedPath | None = None,
    on_epoch: Callable[[VisionEpoch], None] = _ignore,
) -> LearnedBounds:
    """The factors on the vision tower's input ranges that training finds (Q-VLM, Eqs 8 to 10).

    The vision tower is at `spec.weight_bits` and `spec.activation_bits`, everything else in
    full precision. Each layer's calibrated range (of the widest clip) is scaled by a factor at
    either end; both start at 1, are trained by Adam at a rate that falls to 0 along a cosine,
    and stay in [`SMALLEST_FACTOR`, `LARGEST_FACTOR`]. A bound that calibration found at zero or
    on its far side does not move. Questions without an image are left out; the others are
    held in memory with what full precision makes of them.

    Equal arguments give equal bits on one machine, interrupted or not; torch's global
    generator has no part in them.

    Args:
        model: In full precision; it is left so, without hooks, whatever happens.
        task: Its calibration split's first `spec.samples` questions are trained on.
        ranges: What `calibrate` returned.
        quantizer: How weights and inputs get their codes.
        spec: The settings.
        seed: Of the order of the batches in each epoch.
        checkpoint: A file that the state is written to after each epoch, and from which a
            run with the same `vision_identity` resumes.
        on_epoch: Called after each epoch that runs here, its state already written.

    Returns:
        For every layer of the vision tower that multiplies an input its factors, at
        `spec.activation_bits`.

    Raises:
        SpecError: Inputs are not quantized, or have no static ranges; a range is not known; or
            none of the questions has an image.
        InvalidModel: The loss is not finite; or the checkpoint is damaged, no checkpoint, or
            one of other settings, samples or another model.
    """
    _refuse_unusable(model, ranges, quantizer, spec)
    # Samples may come from inference mode, whose tensors autograd refuses.
    with torch.inference_mode(mode=False), torch.enable_grad():
        batches = _cut(task, spec)
        identity = vision_identity(model, task, ranges, quantizer, spec, seed)
        loss = VisionLoss(model, ranges, spec)
        samples = [loss.sample(batch) for batch in batches]
        bounds = TrainedBounds(model, ranges, spec.activation_bits)
        training = _Training(loss, samples, bounds, spec, seed)
        if checkpoint is not None:
            training.load(checkpoint, identity)
        with bounds.on(model, quantizer, ranges, spec.weight_bits):
            while training.epochs < spec.epochs:
                epoch = training.run_epoch()
                if checkpoint is not None:
                    training.save(checkpoint, identity)
                on_epoch(epoch)
        return bounds.learned()


def vision_identity(
    model: GenerativeModel,
    task: QuestionTask,
    ranges: Ranges,
    quantizer: QuantizerSpec,
    spec: VisionSpec,
    seed: int,
) -> str:
    """The hash of everything that the result depends on: what a checkpoint is known by."""
    split = task.split(SplitName.CALIBRATION)
    return vision_checkpoint_key(
        model=model.identity,
        samples=split.identity,
        batches=[places.tolist() for places in split.batches],
        ranges=range_table(ranges),
        quantizer=quantizer,
        vision=spec,
        seed=seed,
    )


class TrainedBounds:
    """The factors on the vision tower's input ranges, while they are trained.

    Attributes:
        layers: The layers of the vision tower that multiply an input.
        factors: `(layers, 2)`, low and high; float64, so that the bounds are rounded as
            `RangeScale.of` and a quantizer round them.
    """

    def __init__(self, model: GenerativeModel, ranges: Ranges, bits: int) -> None:
        self.layers = [layer for layer in _vision_layers(model) if model.multiplying(layer)]
        widest = [_widest(ranges, layer) for layer in self.layers]
        ends = [[found.low, found.high] for found in widest]
        self._measured = torch.tensor(ends, dtype=torch.float64, device=model.device)
        self._bits = bits
        self.factors: Float64[Tensor, "layers 2"] = torch.ones_like(
            self._measured, requires_grad=True
        )

    def quantize(self, place: int, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input of the layer at a place on the levels between its bounds."""
        first, second = (self.factors[place] * self._measured[place]).unbind()
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        return fake_quantize_input(inputs, low.float(), high.float(), self._bits)

    @contextmanager
    def on(
        self,
        model: GenerativeModel,
        quantizer: QuantizerSpec,
        ranges: Ranges,
        weight_bits: int,
    ) -> Iterator[None]:
        """Quantizes the vision tower inside of the block: its weights, and these inputs.

        Bounds are learned under weights that are rounded to nearest, whatever the job asks for.
        """
        nearest = quantizer.model_copy(update={"rounding": Rounding.NEAREST})
        switch = PlanSwitch(model, nearest, ranges)
        hooks = []
        try:
            switch.to(Plan.uniform(_vision_layers(model), Precision(weight_bits, 16)))
            for place, layer in enumerate(self.layers):
                hook = partial(_quantize_first, partial(self.quantize, place))
                hooks += [
                    module.register_forward_pre_hook(hook, prepend=True)
                    for module in model.multiplying(layer)
                ]
            yield
        finally:
            for handle in hooks:
                handle.remove()
            switch.clear()

    def learned(self) -> LearnedBounds:
        """The factors as they are now."""
        return {
            layer: {self._bits: RangeScale(low, high)}
            for layer, (low, high) in zip(self.layers, self.factors.detach().tolist(), strict=True)
        }


def _quantize_first(
    quantize: Callable[[Tensor], Tensor], _module: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """A forward pre-hook that passes the first argument through `quantize`."""
    return quantize(args[0]), *args[1:]


class _Training:
    """The factors in training, their optimiser, and the generator of the batches' order."""

    def __init__(
        self,
        loss: VisionLoss,
        samples: Sequence[Sample],
        bounds: TrainedBounds,
        spec: VisionSpec,
        seed: int,
    ) -> None:
        self.epochs = 0
        self._loss = loss
        self._samples = samples
        self._factors = bounds.factors
        self._spec = spec
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam([bounds.factors], lr=spec.rate)
        self._entropy_weight: float | None = None

    def run_epoch(self) -> VisionEpoch:
        """One step for every batch, in an order of the generator's."""
        influences = self._loss.influences(self._samples, self._factors)
        if self._entropy_weight is None:
            self._entropy_weight = self._first_entropy_weight(influences)
        order = torch.randperm(len(self._samples), generator=self._generator).tolist()
        sums = torch.zeros(5, dtype=torch.float64)
        for step, place in enumerate(order):
            sample = self._samples[place]
            sums += len(sample.batch) * self._step(step, sample, influences)
        self.epochs += 1
        means = sums / sum(len(sample.batch) for sample in self._samples)
        return VisionEpoch(self.epochs, *means.tolist())

    def _step(self, step: int, sample: Sample, influences: Tensor) -> Float64[Tensor, "5"]:
        """Moves the factors once; the loss and its parts before that."""
        parts = self._loss.parts(sample)
        assert self._entropy_weight is not None
        loss = self._loss.total(parts, influences, self._entropy_weight)
        if not bool(loss.isfinite()):
            raise InvalidModel(
                f"the loss of visual-encoder optimisation came out as {float(loss.detach())}: "
                "check the model's data type, or give the vision tower more bits"
            )
        # Not backward(): the model's own weights must not collect gradients.
        (self._factors.grad,) = torch.autograd.grad(loss, [self._factors])
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        self._optimizer.step()
        with torch.no_grad():
            self._factors.clamp_(SMALLEST_FACTOR, LARGEST_FACTOR)
        return _figures(loss, parts)

    def _rate(self, step: int) -> float:
        done = (self.epochs * len(self._samples) + step) / (self._spec.epochs * len(self._samples))
        return self._spec.rate * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _first_entropy_weight(self, influences: Tensor) -> float:
        """lambda1: the entropy's part is `entropy_share` of the language loss at the start."""
        language = entropy = 0.0
        for sample in self._samples:
            parts = self._loss.parts(sample)
            language += len(sample.batch) * float(parts.language)
            entropy += len(sample.batch) * float(influences @ parts.entropies)
        return self._spec.entropy_share * language / entropy if entropy > 0 else 0.0

    def save(self, path: SharedPath, identity: str) -> None:
        """Writes the state, whole or not at all."""
        tensors = {
            _FACTORS: self._factors.detach(),
            _GENERATOR: self._generator.get_state(),
            **self._optimizer.state[self._factors],
        }
        content = {"epochs": self.epochs, "entropy_weight": self._entropy_weight}
        write_checkpoint(
            path,
            VISION_FORMAT,
            identity,
            content,
            {name: tensor.cpu() for name, tensor in tensors.items()},
        )

    def load(self, path: SharedPath, identity: str) -> None:
        """Goes back to the state that was written; stays where there is no file."""
        if not is_there(path):
            return
        content, tensors = read_checkpoint(path, VISION_FORMAT, identity)
        self.epochs = int(content["epochs"])
        self._entropy_weight = float(content["entropy_weight"])
        self._generator.set_state(tensors.pop(_GENERATOR))
        with torch.no_grad():
            self._factors.copy_(tensors.pop(_FACTORS))
        self._optimizer.state[self._factors] = {
            # Adam keeps its count of steps on the CPU.
            name: tensor if name == "step" else tensor.to(self._factors.device)
            for name, tensor in tensors.items()
        }


def _figures(loss: Tensor, parts: LossParts) -> Float64[Tensor, "5"]:
    entropy = parts.entropies.mean()
    figures = (loss, parts.language, entropy, parts.tower_error, parts.output_error)
    return torch.tensor([float(figure.detach()) for figure in figures], dtype=torch.float64)


def _cut(task: QuestionTask, spec: VisionSpec) -> list[QuestionBatch]:
    """The first questions that have an image, in batches of one shape and nearly one size.

    Raises:
        SpecError: There are none.
    """
    split = task.split(SplitName.CALIBRATION)
    batches = []
    for number, places in enumerate(split.batches):
        rows = (places < spec.samples).nonzero().flatten()
        if not len(rows):
            continue
        questions = split.read(number)
        if questions.pixels is not None:
            parts = torch.tensor_split(rows, math.ceil(len(rows) / spec.batch_size))
            batches += [questions.pick(part) for part in parts]
    if not batches:
        raise SpecError(
            "visual-encoder optimisation needs images, but none of the first "
            f"{spec.samples} calibration questions has one: leave it out of the job"
        )
    return batches


def _refuse_unusable(
    model: GenerativeModel, ranges: Ranges, quantizer: QuantizerSpec, spec: VisionSpec
) -> None:
    if spec.activation_bits == FULL.activation_bits:
        raise SpecError(
            "visual-encoder optimisation learns the ranges of quantized inputs, "
            "but its activation_bits are 16: give 4, 6 or 8"
        )
    if quantizer.activations != "static":
        raise SpecError(
            "visual-encoder optimisation learns static ranges, but quantizer.activations is "
            f"{quantizer.activations}: make it static, or leave the optimisation out"
        )
    for layer in model.layers:
        if layer.kind is not LayerKind.EMBEDDING and not ranges.get(layer.name):
            raise SpecError(
                f"the input range of {layer.name} is not known: calibrate the model first"
            )


def _vision_layers(model: GenerativeModel) -> list[str]:
    return [layer.name for layer in model.layers if layer.tower is Tower.VISION]


def _widest(ranges: Ranges, layer: str) -> InputRange:
    known = ranges[layer]
    return known[max(known)]
