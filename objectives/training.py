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
from objectives.prompt import Prompt, prompted_features

IMAGE_BATCH = 128
CLASSES_A_STEP = 64
PROMPT_RATE = 1e-2
ADAPTER_RATE = 6e-3
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
        self._teacher_image = functional.normalize(self._data.teacher_image_features, dim=-1)
        self._teacher_text = functional.normalize(self._data.teacher_text_features, dim=-1)
        self._generator = torch.Generator().manual_seed(seed)
        self.prompt: Prompt | None = None
        self.adapter: Adapter | None = None
        if recovery.context_length:
            self.prompt = Prompt(model, recovery.context_length, self._generator)
        if recovery.reduction:
            shape = AdapterShape.of(recovery, model.feature_width, quantizer)
            self.adapter = Adapter(shape, self._generator).to(model.device)
        self._text = self._first_text_features()
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
        order = torch.randperm(len(self._data.labels), generator=self._generator)
        loss = self.loss(order[:IMAGE_BATCH].to(self._model.device))
        # Not backward(): the model's own weights must not collect gradients.
        gradients = torch.autograd.grad(loss, self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self._steps += 1
        return float(loss.detach())

    def loss(self, samples: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss of some samples: the prompt's part, and the adapter's.

        A class under a prompt costs a pass through the text tower, so the prompt's part is
        over at most `CLASSES_A_STEP` classes. The adapter's part is over all classes, each
        with the text feature that the prompt gave it last.
        """
        image = self._data.image_features[samples]
        if self.adapter is not None:
            image = self.adapter(image)
        parts = []
        if self.prompt is not None:
            chosen, classes = self._choose(samples)
            text = self.prompt(self._model, self._data.tokens[classes])
            self._text[classes] = text.detach()
            kept = image.detach()[torch.isin(samples, chosen)]
            parts.append(self._part(kept, chosen, text, classes))
        if self.adapter is not None:
            everything = torch.arange(len(self._text), device=samples.device)
            parts.append(self._part(image, samples, self._text, everything))
        return torch.stack(parts).sum()

    def _part(self, image: Tensor, samples: Tensor, text: Tensor, classes: Tensor) -> Tensor:
        """The loss of samples among some classes, which hold the samples' own."""
        scale, labels = self._data.scale, self._data.labels[samples]
        student = scale * functional.normalize(image, dim=-1) @ text.T
        teacher = scale * self._teacher_image[samples] @ self._teacher_text[classes].T
        place = torch.zeros(len(self._data.tokens), dtype=torch.long, device=classes.device)
        place[classes] = torch.arange(len(classes), device=classes.device)
        return p4q_loss(student, teacher, place[labels], self._recovery.distillation)

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

    def _choose(self, samples: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " c"]]:
        """The classes of one step, at most `CLASSES_A_STEP`, and the samples that have them.

        Classes of the samples come first, then others at random; samples of classes for
        which there is no room are left out.
        """
        order = torch.randperm(len(self._data.tokens), generator=self._generator)
        classes = order.to(samples.device)
        labels = self._data.labels[samples]
        absent = ~torch.isin(classes, labels)
        classes = classes[absent.to(torch.int8).argsort(stable=True)][:CLASSES_A_STEP]
        return samples[torch.isin(labels, classes)], classes

    def _first_text_features(self) -> Float[Tensor, "classes d"]:
        """The text features of all classes before training, of length 1."""
        if self.prompt is None:
            return functional.normalize(self._data.text_features, dim=-1)
        if self.adapter is None:
            return torch.zeros_like(self._data.text_features)
        return prompted_features(self._model, self._data.tokens, self.prompt.context.detach())
