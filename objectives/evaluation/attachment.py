"""A configuration made ready for the model that it was measured on, wherever that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitfront.plan import Configuration
from bitfront.vlm.attached import AttachedPlan
from bitfront.vlm.kv_rounding import FittedPlace
from bitfront.vlm.plan_switch import ShownLayer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.scorer import Outputs

TorchModel = nn.Module
"""A model as its library loads it."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a configuration puts onto its model.

    Attributes:
        layers: What each layer has, by the name of its weight.
        vectors: What trained norms and biases have, by their names in the rewritten model.
        outputs: What it does behind the layers.
        identity: The hash of the architecture and the weights that it is for.
        cache: What keys and values pass through, by the places of the KV cache.
    """

    layers: Mapping[str, ShownLayer]
    vectors: Mapping[str, Tensor]
    outputs: Outputs
    identity: str
    cache: Mapping[str, FittedPlace]

    @classmethod
    def of(cls, evaluator: Evaluator, configuration: Configuration) -> Self:
        """The attachment; a recovery that is not known is trained."""
        with torch.no_grad():
            outputs = evaluator.scorer.outputs(configuration)
            layers = evaluator.switch.shown(configuration.plan)
            cache = evaluator.switch.fitted(configuration.plan)
        identity = evaluator.model.weights_identity
        return cls(layers, evaluator.switch.vectors, outputs, identity, cache)

    def put_on(self, model: TorchModel) -> "Attached":
        """Puts it onto a model.

        Raises:
            InvalidModel: It is another model, has other weights, or has a plan on already.
        """
        return Attached(model, self)


class Attached:
    """A configuration on a model, until `undo` or the end of a `with` block takes it off.

    Attributes:
        model: The model.
        classes: The names of the study's classes; empty for a model that answers questions.
        text_features: `(classes, d)` of those classes, of length 1, under the plan and its P4Q
            prompt if it has one; None for a model that answers questions.
    """

    def __init__(self, model: TorchModel, attachment: Attachment) -> None:
        """Puts an attachment onto a model; see `Attachment.put_on`."""
        outputs = attachment.outputs
        self._plan = AttachedPlan(
            model,
            attachment.layers,
            vectors=attachment.vectors,
            identity=attachment.identity,
            adapt=outputs.adapt,
            cache=attachment.cache,
        )
        self.model = model
        self.classes = outputs.classes
        self.text_features: Float[Tensor, "classes d"] | None = outputs.text_features

    def undo(self) -> None:
        """Takes it off: the model is as it was, bit for bit. A second call changes nothing."""
        self._plan.take_off()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
