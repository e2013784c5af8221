"""open_clip's CLIP with a vision transformer, the bundled one too."""

from typing import Final

import open_clip
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import nn

from bitfront.artefact.architectures.architecture import Architecture, checked, refuse
from bitfront.artefact.architectures.pictures import grey_pictures, open_clip_pictures
from bitfront.artefact.runtime import clip
from bitfront.reference import digit_clip
from bitfront.vlm.layers.attention import CalledAttention
from bitfront.vlm.models.settings import ModelSettings

_EPSILON: Final = 1e-5
_ACTIVATIONS: Final = {nn.GELU: "gelu", QuickGELU: "quick_gelu"}


def open_clip_architecture(module: open_clip.CLIP, settings: ModelSettings | None) -> Architecture:
    """The architecture of a CLIP.

    Args:
        module: The model, rewritten.
        settings: What makes its pixels; None for the bundled model.

    Raises:
        InvalidModel: It is of another architecture.
    """
    config = _config(module)
    if settings is None:
        config |= {"preprocessing": grey_pictures(), "words": _bundled_words()}
    else:
        config |= {"preprocessing": open_clip_pictures(settings), "words": None}
    return checked(module, clip.Clip, Architecture("clip.py", config))


def _config(module: open_clip.CLIP) -> dict[str, object]:
    visual = module.visual
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None
    if not plain:
        refuse(f"its vision tower is a {type(visual).__name__}")
    if visual.pool_type != "tok" or visual.final_ln_after_pool:
        refuse("its vision tower is not pooled at its class token")
    if module.text_pool_type != "argmax" or module.attn_mask is None:
        refuse("its text tower is not causal, or not pooled at the largest token")
    blocks = [*visual.transformer.resblocks, *module.transformer.resblocks]
    kinds = {type(block.mlp.gelu) for block in blocks}
    if not all(isinstance(b, ResidualAttentionBlock) for b in blocks) or len(kinds) > 1:
        refuse("its blocks are not of one kind")
    if not kinds <= _ACTIVATIONS.keys():
        refuse(f"its activation is {kinds.pop().__name__}")
    if any(m.eps != _EPSILON for m in module.modules() if isinstance(m, nn.LayerNorm)):
        refuse("its norms have another epsilon")
    shared = {"eps": _EPSILON, "activation": _ACTIVATIONS[kinds.pop()], "apart": False}
    text = _transformer(module.transformer) | {
        **shared,
        "vocabulary": module.token_embedding.num_embeddings,
        "positions": module.positional_embedding.shape[0],
        "end": "largest",
        "causal": True,
        "projection_bias": False,
    }
    vision = _transformer(visual.transformer) | {
        **shared,
        "pool": "class",
        "patch": visual.conv1.kernel_size[0],
        "positions": visual.positional_embedding.shape[0],
    }
    return {
        "vision": vision,
        "text": text,
        "features": visual.proj.out_features,
        "scalars": {"logit_scale": list(module.logit_scale.shape)},
    }


def _transformer(transformer: nn.Module) -> dict[str, object]:
    blocks = list(transformer.get_submodule("resblocks").children())
    attention = blocks[0].get_submodule("attn")
    first = blocks[0].get_submodule("mlp.c_fc")
    assert isinstance(attention, CalledAttention)
    assert isinstance(first, nn.Linear)
    return {
        "width": attention.width,
        "heads": attention.heads,
        "hidden": first.out_features,
        "layers": len(blocks),
    }


def _bundled_words() -> dict[str, object]:
    vocabulary = digit_clip.VOCABULARY
    return {
        "vocabulary": list(vocabulary),
        "length": digit_clip.CONTEXT_LENGTH,
        "start": vocabulary.index("<start>"),
        "end": vocabulary.index("<end>"),
    }
