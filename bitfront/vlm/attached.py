"""A plan on a model that a person loaded: put on in place, and taken off exactly."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitfront.errors import InvalidModel, SpecError
from bitfront.vlm.kv_rounding import FittedPlace, rounded_cache
from bitfront.vlm.layers.rewrite import call_every_weight
from bitfront.vlm.models.weights_digest import model_identity
from bitfront.vlm.plan_switch import ShownLayer, input_hook

Adapt = Callable[[Tensor], Tensor]

# What gives a dual encoder's image features: transformers' CLIP, open_clip, transformers' SigLIP.
_IMAGE_FEATURES: Final = ("visual_projection", "visual", "vision_model")


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a module held before: its parameters and modules in their order, and its mode."""

    module: nn.Module
    parameters: Mapping[str, nn.Parameter | None]
    modules: Mapping[str, nn.Module | None]
    plain: Mapping[str, object]
    training: bool

    @classmethod
    def of(cls, module: nn.Module) -> "_Saved":
        held = vars(module)
        plain = {key: held[key] for key in ("qkv_bias_separate",) if key in held}
        parameters, modules = dict(held["_parameters"]), dict(held["_modules"])
        return cls(module, parameters, modules, plain, module.training)

    def restore(self) -> None:
        held = vars(self.module)
        for key, saved in (("_parameters", self.parameters), ("_modules", self.modules)):
            held[key].clear()
            held[key].update(saved)
        held.update(self.plain)
        self.module.training = self.training


class AttachedPlan:
    """A plan that is on a model from its construction until `take_off`.

    The model keeps its identity: whoever holds it sees the quantized weights, and inputs are
    quantized where they are multiplied. Attention whose weights are handed to functions is
    replaced meanwhile by modules that compute the same and can be watched. The model is in eval
    mode, for that is how it was measured.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, ShownLayer],
        *,
        vectors: Mapping[str, Tensor] = MappingProxyType({}),
        identity: str,
        adapt: Adapt | None = None,
        cache: Mapping[str, FittedPlace] = MappingProxyType({}),
    ) -> None:
        """Puts the plan on.

        Args:
            model: The model as its library loads it.
            layers: What each layer has under the plan, by the name of its weight.
            vectors: What norms and biases have, by name; the others keep their own.
            identity: What `model_identity` gives for the model that was measured.
            adapt: What the image features go through afterwards; None for nothing.
            cache: What keys and values pass through, by the places of the KV cache.

        Raises:
            InvalidModel: It is another model, has other weights, or has a plan on already.
        """
        if model_identity(model) != identity:
            raise InvalidModel(
                "this is not the model that was measured: its architecture, its weights or their "
                "dtype differ, or it has a plan on already, which has to be taken off first"
            )
        self._saved = [_Saved.of(module) for module in model.modules()]
        self._data = [(parameter, parameter.data) for parameter in model.parameters()]
        self._handles: list[RemovableHandle] = []
        self._kept = ExitStack()
        # A parameter that stays the model's own tells where the model is moved to.
        self._witness = next(model.parameters())
        self._place = (self._witness.device, self._witness.dtype)
        try:
            model.eval()
            self._put(call_every_weight(model), layers)
            for name, values in vectors.items():
                parameter = model.get_parameter(name)
                parameter.data = values.to(parameter)
            own = {id(parameter) for parameter, _ in self._data}
            self._witness = next(p for p in model.parameters() if id(p) in own)
            self._place = (self._witness.device, self._witness.dtype)
            if adapt is not None:
                self._handles.append(_adapting(model, adapt))
            self._kept.enter_context(rounded_cache(model, cache))
        except BaseException:
            self.take_off()
            raise

    def _put(self, names: Mapping[nn.Module, str], layers: Mapping[str, ShownLayer]) -> None:
        for module, name in names.items():
            shown = layers.get(name)
            if shown is None:
                continue
            parameter = module.get_parameter("weight")
            parameter.data = shown.weight.to(parameter.device).view_as(parameter)
            if shown.quantize is not None and not isinstance(module, nn.Embedding):
                hook = input_hook(shown.quantize, module)
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def take_off(self) -> None:
        """Gives the model everything back that it had; a second call changes nothing.

        Where the model was moved to another device or dtype meanwhile, its own weights follow.
        """
        self._kept.close()
        for handle in self._handles:
            handle.remove()
        for saved in reversed(self._saved):
            saved.restore()
        place = (self._witness.device, self._witness.dtype)
        for parameter, data in self._data:
            parameter.data = data if place == self._place else data.to(*place)
        self._saved, self._data, self._handles = [], [], []


def _adapting(model: nn.Module, adapt: Adapt) -> RemovableHandle:
    """Lets the model's image features go through `adapt`, whichever of its methods gives them."""
    found = dict(model.named_children())
    source = next((found[name] for name in _IMAGE_FEATURES if name in found), None)
    if source is None:
        raise SpecError(
            f"a P4Q adapter works on image features, and it is not known which module of a "
            f"{type(model).__name__} gives them: 'bitfront build' writes a model with it"
        )

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        with torch.no_grad():
            if isinstance(output, Tensor):
                return adapt(output)
            pooled = getattr(output, "pooler_output", None)
            if not isinstance(pooled, Tensor):
                raise SpecError("the vision tower gives more than features: its adapter is off")
            output.pooler_output = adapt(pooled)  # type: ignore[attr-defined]  # seen to have it
            return output

    return source.register_forward_hook(hook)
