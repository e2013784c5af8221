"""P4Q for a dual encoder: a prompt for the classes, an adapter after the image features."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bitfront.plan import Recovery
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder
from bitfront.vlm.models.captions import ClassNames
from objectives.recovery.adapter import Adapter, AdapterShape, StoredAdapter, stored_adapter
from objectives.recovery.distillation import p4q_loss
from objectives.recovery.prompt import FIRST_WORDS, Context, prompted_features, stored_context
from objectives.recovery.training import Training

CLASSES_A_STEP = 64
OTHER_CLASSES = 16


@dataclass(frozen=True)
class ClassData:
    """What a recovery is trained on; the features were computed once and are constants.

    Attributes:
        image_features: `(n, d)` of the quantized vision tower on the tuning split, of any
            length.
        labels: `(n,)` classes of the samples.
        teacher_image_features: `(n, d)` of the full-precision vision tower on the same
            samples.
        teacher_text_features: `(classes, d)` of the full-precision text tower.
        text_features: `(classes, d)` of the quantized text tower, for recoveries without a
            prompt.
        names: The classes that the context goes to.
        scale: What cosines are multiplied with to become logits; frozen.
    """

    image_features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    teacher_image_features: Float[Tensor, "n d"]
    teacher_text_features: Float[Tensor, "classes d"]
    text_features: Float[Tensor, "classes d"]
    names: ClassNames
    scale: float

    def on(self, device: torch.device) -> Self:
        """A copy on the device that autograd accepts, wherever the features came from."""

        def placed(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().to(device)

        return replace(
            self,
            image_features=placed(self.image_features),
            labels=placed(self.labels),
            teacher_image_features=functional.normalize(
                placed(self.teacher_image_features), dim=-1
            ),
            teacher_text_features=functional.normalize(placed(self.teacher_text_features), dim=-1),
            text_features=placed(self.text_features),
        )


class ClassTraining(Training):
    """The training of a dual encoder's recovery, on image features that were computed once."""

    def __init__(
        self,
        model: DualEncoder,
        recovery: Recovery,
        quantizer: QuantizerSpec,
        data: ClassData,
        seed: int,
    ) -> None:
        with torch.inference_mode(mode=False):
            self._model = model
            self._data = data.on(model.device)
            generator = torch.Generator().manual_seed(seed)
            context, adapter = None, None
            if recovery.context_length:
                copies = len(data.names) if recovery.class_specific else 0
                words = model.embed_words(FIRST_WORDS)
                context = Context(words, recovery.context_length, copies, generator)
            if recovery.reduction:
                shape = AdapterShape.of(recovery, model.feature_width, quantizer)
                adapter = Adapter(shape, generator).to(model.device)
            samples = len(data.labels)
            super().__init__(recovery, context, adapter, samples, generator, model.device)
            self._carried["text"] = self._first_text_features()

    def losses(self, samples: Int[Tensor, " n"]) -> Iterator[Float[Tensor, ""]]:
        """The loss in one part."""
        yield self.loss(samples)

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
        if self.context is not None:
            chosen, classes = self._choose(samples)
            text = self._prompted(self.context.context, classes)
            self._carried["text"][classes] = text.detach()
            kept = image.detach()[torch.isin(samples, chosen)]
            parts.append(self._part(kept, chosen, text, classes))
        if self.adapter is not None:
            last = self._carried["text"]
            everything = torch.arange(len(last), device=samples.device)
            parts.append(self._part(image, samples, last, everything))
        return torch.stack(parts).sum()

    def quantize_adapter(self) -> None:
        """Fake-quantize from now on, with the input formats of the tuning features."""
        assert self.adapter is not None
        self.adapter.quantize(self._data.image_features)

    def _prompted(self, context: Tensor, classes: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        own = context[classes] if context.ndim == 3 else context
        names = self._data.names.pick(classes.cpu())
        features = self._model.encode_prompts(names, own, self.recovery.class_position)
        return functional.normalize(features, dim=-1)

    def _part(self, image: Tensor, samples: Tensor, text: Tensor, classes: Tensor) -> Tensor:
        """The loss of samples among some classes, which hold the samples' own."""
        data = self._data
        student = data.scale * functional.normalize(image, dim=-1) @ text.T
        teacher_text = data.teacher_text_features[classes]
        teacher = data.scale * data.teacher_image_features[samples] @ teacher_text.T
        place = torch.zeros(len(data.names), dtype=torch.long, device=classes.device)
        place[classes] = torch.arange(len(classes), device=classes.device)
        labels = place[data.labels[samples]]
        return p4q_loss(student, teacher, labels, self.recovery.distillation)

    def _choose(self, samples: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " c"]]:
        """The classes of one step, at most `CLASSES_A_STEP`, and the samples that have them.

        Most are classes of the samples; at least `OTHER_CLASSES` are any, so that a class
        without samples is taught by the teacher too. Samples of classes for which there is no
        room are left out.
        """
        order = torch.randperm(len(self._data.names), generator=self._generator)
        classes = order.to(samples.device)
        labels = self._data.labels[samples]
        is_own = torch.isin(classes, labels)
        own, others = classes[is_own], classes[~is_own]
        room = CLASSES_A_STEP - min(OTHER_CLASSES, len(others))
        chosen = torch.cat([own[:room], others])[:CLASSES_A_STEP]
        return samples[torch.isin(labels, chosen)], chosen

    def _first_text_features(self) -> Float[Tensor, "classes d"]:
        """The text features of all classes before training, of length 1."""
        if self.context is None:
            return functional.normalize(self._data.text_features, dim=-1)
        if self.adapter is None:
            return torch.zeros_like(self._data.text_features)
        context = self.context.context.detach()
        position = self.recovery.class_position
        return prompted_features(self._model, self._data.names, context, position)


class ClassRecovered:
    """A finished recovery, as a checkpoint holds it: what is measured is what is stored.

    Attributes:
        text_features: `(classes, d)`, of length 1.
    """

    def __init__(
        self, text_features: Float[Tensor, "classes d"], adapter: StoredAdapter | None
    ) -> None:
        self.text_features = text_features
        self._adapter = adapter

    @classmethod
    def load(
        cls,
        stored: Mapping[str, Tensor],
        recovery: Recovery,
        quantizer: QuantizerSpec,
        model: DualEncoder,
        names: ClassNames,
        text_features: Float[Tensor, "classes d"],
    ) -> Self:
        """The recovery that `stored` describes; the plan it was trained under is on the model.

        Args:
            stored: What `Training.stored` gave.
            recovery: Its settings.
            quantizer: How the adapter is quantized.
            model: The model.
            names: The classes.
            text_features: `(classes, d)` under the plan, for recoveries without a prompt.

        Raises:
            InvalidModel: A tensor is missing, or does not fit the recovery.
        """
        placed = {name: tensor.to(model.device) for name, tensor in stored.items()}
        text = functional.normalize(text_features.to(model.device), dim=-1)
        if recovery.context_length:
            context = stored_context(placed)
            text = prompted_features(model, names, context, recovery.class_position)
        adapter = stored_adapter(placed, recovery, model.feature_width, quantizer)
        return cls(text, adapter)

    def adapt(self, image_features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The features after the adapter, not normalised; unchanged where there is none."""
        if self._adapter is None:
            return image_features
        with torch.no_grad():
            return self._adapter(image_features)
