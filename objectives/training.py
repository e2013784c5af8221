"""The training of a recovery, step by step, on image features that were computed once."""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bitfront.plan import Recovery
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder
from objectives.adapter import Adapter, AdapterShape
from objectives.distillation import p4q_loss
from objectives.prompt import Prompt

IMAGE_BATCH = 128
CLASSES_A_STEP = 64
PROMPT_RATE = 1e-2
ADAPTER_RATE = 3e-3
ADAPTER_DECAY = 1e-2


@dataclass(frozen=True)
class RecoveryData:
    """What a recovery is trained on; the features were computed once and are constants.

    Attributes:
        image_features: `(n, d)` of the quantized vision tower on the tuning split, of any
            length.
        labels: `(n,)` classes of the samples.
        teacher_image_features: `(n, d)` of the full-precision vision tower on the same
            samples.
        teacher_text_features: `(classes, d)` of the full-precision text tower: the normalised
            ensemble over the templates.
        text_features: `(classes, d)` of the quantized text tower, for recoveries without a
            prompt.
        tokens: `(classes, context_length)` captions that the context goes before.
        scale: What cosines are multiplied with to become logits; frozen.
    """

    image_features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    teacher_image_features: Float[Tensor, "n d"]
    teacher_text_features: Float[Tensor, "classes d"]
    text_features: Float[Tensor, "classes d"]
    tokens: Int[Tensor, "classes context_length"]
    scale: float

    def on(self, device: torch.device) -> Self:
        """A copy on the device that autograd accepts, wherever the features came from."""
        tensors = {
            field.name: getattr(self, field.name).detach().clone().to(device)
            for field in fields(self)
            if field.name != "scale"
        }
        return type(self)(**tensors, scale=self.scale)


class Training:
    """A recovery in training: the prompt, the adapter, their optimiser and its generator.

    The plan is on the model for as long as steps are taken; nothing of the model changes.
    """

    def __init__(
        self,
        model: DualEncoder,
        recovery: Recovery,
        quantizer: QuantizerSpec,
        data: RecoveryData,
        seed: int,
    ) -> None:
        self._model = model
        self._recovery = recovery
        self._data = data.on(model.device)
        self._student_text = functional.normalize(self._data.text_features, dim=-1)
        self._teacher_image = functional.normalize(self._data.teacher_image_features, dim=-1)
        self._teacher_text = functional.normalize(self._data.teacher_text_features, dim=-1)
        self._generator = torch.Generator().manual_seed(seed)
        self.prompt: Prompt | None = None
        self.adapter: Adapter | None = None
        if recovery.context_length:
            prompt = Prompt(recovery.context_length, model.text_width, self._generator)
            self.prompt = prompt.to(model.device)
        if recovery.reduction:
            shape = AdapterShape.of(recovery, model.feature_width, quantizer)
            self.adapter = Adapter(shape, self._generator).to(model.device)
        self._parameters = [
            parameter
            for module in (self.prompt, self.adapter)
            if module is not None
            for parameter in module.parameters()
        ]
        self._optimizer = torch.optim.AdamW(self._groups())
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._steps = 0

    def step(self) -> float:
        """Take one optimiser step; the loss before it, in nats."""
        if self.adapter is not None and self._steps == self._recovery.steps // 2:
            self.adapter.quantize(self._data.image_features)
        samples, classes = self._draw()
        loss = self.loss(samples, classes)
        # Not backward(): the model's own weights must not collect gradients.
        gradients = torch.autograd.grad(loss, self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self._steps += 1
        return float(loss.detach())

    def loss(self, samples: Int[Tensor, " n"], classes: Int[Tensor, " c"]) -> Float[Tensor, ""]:
        """The loss of some samples among some classes, which hold the samples' own."""
        data = self._data
        image = data.image_features[samples]
        if self.adapter is not None:
            image = self.adapter(image)
        if self.prompt is not None:
            text = self.prompt(self._model, data.tokens[classes])
        else:
            text = self._student_text[classes]
        student = data.scale * functional.normalize(image, dim=-1) @ text.T
        teacher = data.scale * self._teacher_image[samples] @ self._teacher_text[classes].T
        place = torch.zeros(len(data.tokens), dtype=torch.long, device=classes.device)
        place[classes] = torch.arange(len(classes), device=classes.device)
        return p4q_loss(student, teacher, place[data.labels[samples]], self._recovery.distillation)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint of the finished recovery holds."""
        modules = [module for module in (self.prompt, self.adapter) if module is not None]
        return {name: tensor for module in modules for name, tensor in module.stored().items()}

    def _groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = []
        if self.prompt is not None:
            parameters = list(self.prompt.parameters())
            groups.append({"params": parameters, "lr": PROMPT_RATE, "weight_decay": 0.0})
        if self.adapter is not None:
            parameters = list(self.adapter.parameters())
            groups.append({"params": parameters, "lr": ADAPTER_RATE, "weight_decay": ADAPTER_DECAY})
        return groups

    def _rate(self, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / self._recovery.steps))

    def _draw(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " c"]]:
        """Samples of one step and the classes that they are told apart from.

        Without a prompt the text features are constants, and all classes take part. With one,
        each class costs a pass through the text tower: classes of the samples first, then
        others at random, up to `CLASSES_A_STEP`; samples of classes beyond that sit out.
        """
        labels = self._data.labels.cpu()
        samples = torch.randperm(len(labels), generator=self._generator)[:IMAGE_BATCH]
        classes = torch.randperm(len(self._data.tokens), generator=self._generator)
        if self.prompt is not None and len(classes) > CLASSES_A_STEP:
            absent = ~torch.isin(classes, labels[samples])
            order = absent.to(torch.int8).argsort(stable=True)
            classes = classes[order][:CLASSES_A_STEP]
            samples = samples[torch.isin(labels[samples], classes)]
        device = self._model.device
        return samples.to(device), classes.to(device)
