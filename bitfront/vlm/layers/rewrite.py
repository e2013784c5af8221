"""Replaces weights that functions use by modules that are called, in place."""

from collections.abc import Iterator, Mapping

from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention as OpenClipAttention
from torch import nn

from bitfront.vlm.layers.attention import (
    CalledAttention,
    CalledAttentionPool,
    CalledOpenClipAttention,
    Projection,
)
from bitfront.vlm.layers.experts import called_experts, is_packed_mixture, packed_parameters
from bitfront.vlm.layers.patches import CalledPatches, is_patch_projection

# What open_clip multiplies as `x @ self.proj`, and Gemma 3 with torch.matmul.
_BARE_PROJECTIONS = ("proj", "text_projection", "mm_input_projection_weight")


def call_every_weight(model: nn.Module) -> dict[nn.Module, str]:
    """Rewrites the model so that its matrices belong to called modules.

    Returns:
        Every Linear, Conv2d and Embedding of the rewritten model with the name that its weight
        had in the original; a tied weight has one name, and so do the modules that share it. A
        packed weight of experts has as many names as experts, each with the expert's number.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first_names = {id(parameter): name for name, parameter in reversed(parameters.items())}
    names: dict[nn.Module, str] = {}
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            new = replaced.get(child) or _replacement(child)
            if new is not None:
                if child not in replaced:
                    names.update(_renamed(child, new, first_names))
                replaced[child] = new
                setattr(parent, key, new)
        names.update(_project_bare(parent, first_names))
        if "qkv_bias_separate" in vars(parent):  # timm then calls its qkv instead of F.linear
            parent.qkv_bias_separate = True  # type: ignore[assignment]  # timm's, not torch's
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        known = weight is not None and id(weight) in first_names
        if known and isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            names[module] = first_names[id(weight)]
    return names


def _replacement(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.MultiheadAttention):
        return CalledAttention(module)
    if isinstance(module, OpenClipAttention):
        return CalledOpenClipAttention(module)
    if isinstance(module, AttentionPool2d):
        return CalledAttentionPool(module)
    if is_patch_projection(module):
        return CalledPatches(module)
    if is_packed_mixture(module):
        return called_experts(module)
    return None


def _renamed(
    old: nn.Module, new: nn.Module, names: Mapping[int, str]
) -> Iterator[tuple[nn.Module, str]]:
    """The called modules whose weights are views of what another module held, with their names."""
    if isinstance(new, CalledPatches):
        yield new.linear, names[id(old.get_parameter("weight"))]
    elif is_packed_mixture(old):
        for key, packed in packed_parameters(old):
            for expert, module in new.get_submodule(key).named_children():
                yield module, f"{names[id(packed)]}.{expert}"


def _project_bare(module: nn.Module, names: Mapping[int, str]) -> Iterator[tuple[nn.Module, str]]:
    """Turns each matrix that is a bare parameter of `module` into a Linear of its own."""
    for key, parameter in list(module.named_parameters(recurse=False)):
        if key in _BARE_PROJECTIONS and parameter.ndim == 2:
            delattr(module, key)
            projection = Projection(parameter)
            setattr(module, key, projection)
            yield projection, names[id(parameter)]
