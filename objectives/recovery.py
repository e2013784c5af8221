"""P4Q: train a text prompt and an image adapter that win back what quantization lost.

The plan is on the model and stays: only the prompt and the adapter are trained, on image
features that were computed once.
"""

from collections.abc import Mapping
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bitfront.errors import InvalidModel
from bitfront.plan import Recovery
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder
from objectives.adapter import AdapterShape, StoredAdapter
from objectives.prompt import CONTEXT_KEY, prompted_features
from objectives.training import RecoveryData, Training

__all__ = ["Recovered", "RecoveryData", "recover"]


class Recovered:
    """A finished recovery, as a checkpoint holds it: what is measured is what is stored."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        text_features: Float[Tensor, "classes d"],
        adapter: StoredAdapter | None,
    ) -> None:
        self._state = dict(state)
        self._text_features = text_features
        self._adapter = adapter

    @classmethod
    def load(
        cls,
        state: Mapping[str, Tensor],
        recovery: Recovery,
        quantizer: QuantizerSpec,
        model: DualEncoder,
        data: RecoveryData,
    ) -> Self:
        """The recovery that `state` describes; the plan it was trained under is on the model.

        Raises:
            InvalidModel: A tensor is missing, or does not fit the recovery.
        """
        device = model.device
        placed = {name: tensor.to(device) for name, tensor in state.items()}
        if recovery.context_length:
            if CONTEXT_KEY not in placed:
                raise InvalidModel("the stored recovery has no context, but its prompt needs one")
            text_features = prompted_features(model, data.tokens, placed[CONTEXT_KEY])
        else:
            text_features = functional.normalize(data.text_features.to(device), dim=-1)
        adapter = None
        if recovery.reduction:
            shape = AdapterShape.of(recovery, model.feature_width, quantizer)
            adapter = StoredAdapter(placed, shape)
        return cls(state, text_features, adapter)

    def text_features(self) -> Float[Tensor, "classes d"]:
        """The features of all classes, of length 1."""
        return self._text_features

    def adapt(self, image_features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The features after the adapter, not normalised; unchanged where there is none."""
        if self._adapter is None:
            return image_features
        with torch.no_grad():
            return self._adapter(image_features)

    def state(self) -> dict[str, Tensor]:
        """The tensors to store: the context, and the packed adapter."""
        return dict(self._state)


def recover(
    model: DualEncoder,
    recovery: Recovery,
    quantizer: QuantizerSpec,
    data: RecoveryData,
    seed: int,
) -> Recovered:
    """Train the recovery under the plan that is on the model, and return what is stored of it.

    Nothing of the model changes, gradient mode included; the result depends on the seed and
    not on torch's global generator.
    """
    # Features may come from inference mode, whose tensors autograd refuses.
    with torch.inference_mode(mode=False), torch.enable_grad():
        training = Training(model, recovery, quantizer, data, seed)
        for _ in range(recovery.steps):
            training.step()
        return Recovered.load(training.state(), recovery, quantizer, model, data)
