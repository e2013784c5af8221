"""The tensors of a packed checkpoint: exactly the bytes that `nbytes` counts."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.grid import saturated
from bitfront.quant.inputs import input_group
from bitfront.vlm import LayeredModel, PlanSwitch

_FULL_BITS = 16


def packed_layers(
    model: LayeredModel, switch: PlanSwitch, plan: Plan
) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    """What a checkpoint holds for the layers, and how its loader reads it.

    Args:
        model: The model.
        switch: Its switch, with the ranges and moments that the plan was measured with.
        plan: The plan; a layer that it does not name is stored in float16.

    Returns:
        Tensors by name, the layer's and that of its part; and for each layer its precision, its
        shape, the modules that hold its weight, and the names of its tensors.
    """
    precisions, stored = dict(plan), switch.packed(plan)
    paths = {module: path for path, module in model.module.named_modules()}
    tensors: dict[str, Tensor] = {}
    entries: dict[str, dict[str, object]] = {}
    ranges = switch.quantizer.activations
    activation_group = input_group(switch.quantizer)
    for layer in model.layers:
        precision = precisions.get(layer.name, Precision(_FULL_BITS))
        own = {f"{layer.name}.{part}": tensor.cpu() for part, tensor in stored[layer.name].items()}
        modules = model.modules(layer.name)
        rounds = precision.quantizes_input and bool(model.multiplying(layer.name))
        entries[layer.name] = {
            "weight_bits": precision.weight_bits,
            "activation_bits": precision.activation_bits,
            "group": precision.group,
            "format": precision.format,
            "activation_group": activation_group if rounds else 0,
            "activation_symmetric": rounds and ranges == "dynamic_symmetric",
            "shape": list(modules[0].get_parameter("weight").shape),
            "modules": [paths[module] for module in modules],
            "tensors": list(own),
        }
        tensors |= own
    return tensors, entries


def format_levels(plan: Plan) -> dict[str, list[float | None]]:
    """What each code stands for in the number formats of a plan; None for no finite number."""
    found = {one.form for _, one in plan if one.form is not None}
    return {
        form.name: [level if isfinite(level) else None for level in form.levels]
        for form in sorted(found, key=lambda one: one.name)
    }


def kept_tensors(model: LayeredModel) -> dict[str, Tensor]:
    """Everything but the layers' weights, in 16 bits, under the names of the rewritten model.

    It is as the model has it: where a plan was distilled, it has to be on.

    A tensor that is not in 16 bits already becomes float16, saturating.
    """
    weights = {
        id(module.get_parameter("weight"))
        for layer in model.layers
        for module in model.modules(layer.name)
    }
    parameters = {
        name: parameter.detach()
        for name, parameter in model.module.named_parameters()
        if id(parameter) not in weights
    }
    known = {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
    buffers = {
        name: tensor
        for name, tensor in model.module.state_dict().items()
        if name not in known and tensor.is_floating_point()
    }
    return {name: _in_16_bits(tensor) for name, tensor in {**parameters, **buffers}.items()}


def tensors_nbytes(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of the tensors' values."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _in_16_bits(tensor: Tensor) -> Tensor:
    exact = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor if exact else saturated(tensor, torch.float16)).cpu().contiguous()
