"""transformers' CLIP and SigLIP: what they are built with, and under which names."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import open_clip
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    SiglipModel,
)

from bitfront.artefact.architectures.architecture import Architecture, checked, refuse
from bitfront.artefact.architectures.pictures import processed_pictures
from bitfront.artefact.runtime import clip
from bitfront.vlm.models.settings import ModelSettings

_OF_BOTH: Final = (
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_model.final_layer_norm", "ln_final"),
)
_OF_CLIP: Final = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("visual_projection", "visual.proj"),
)
_OF_SIGLIP: Final = (
    ("vision_model.head.attention", "visual.pool.attn"),
    ("vision_model.head.layernorm", "visual.pool.ln"),
    ("vision_model.head", "visual.pool"),
    ("text_model.head", "text_projection"),
)
_PARTS: Final = (
    (".self_attn", ".attn"),
    (".layer_norm1", ".ln_1"),
    (".layer_norm2", ".ln_2"),
    (".mlp.fc1", ".mlp.c_fc"),
    (".mlp.fc2", ".mlp.c_proj"),
)
_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_OLD_END: Final = 2
"""As `eos_token_id`, it means to transformers that the largest token ends a text."""


def own_name(name: str, *, pools: bool) -> str:
    """The name in `runtime/clip.py` of a module or tensor of transformers.

    Args:
        name: Its name there.
        pools: Whether it is of a SigLIP.
    """
    for theirs, ours in (*_OF_BOTH, *(_OF_SIGLIP if pools else _OF_CLIP)):
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _PARTS:
        name = name.replace(theirs, ours)
    return name


def their_names(name: str) -> tuple[str, ...]:
    """The names in a CLIP of transformers of a tensor of `runtime/clip.py`.

    They are three for what projects to query, key and value at once: its rows in this order.
    """
    for theirs, ours in (*_OF_BOTH, *_OF_CLIP):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for theirs, ours in _PARTS:
        name = name.replace(ours, theirs)
    if ".self_attn.in_proj." in name:
        return tuple(name.replace("in_proj", f"{part}_proj") for part in "qkv")
    return (name,)


def their_clip(module: open_clip.CLIP | CLIPModel, config: Mapping[str, Any]) -> CLIPModel:
    """The model as transformers builds it, without weights.

    Args:
        module: The model.
        config: What `runtime/clip.py` is built with.

    Raises:
        InvalidModel: transformers has none like it.
    """
    with torch.device("meta"):
        if isinstance(module, CLIPModel):
            known = CLIPConfig(**module.config.to_dict())
            text: Any = known.text_config
            text.eos_token_id = module.text_model.eos_token_id
            return CLIPModel(known)
        return CLIPModel(_clip_config(config))


def _clip_config(config: Mapping[str, Any]) -> CLIPConfig:
    """The configuration of a CLIP that open_clip built; the largest token ends its texts."""
    height, width = config["preprocessing"]["size"]
    if height != width:
        refuse(f"its pictures have {height} x {width} pixels, and transformers' are squares")
    text, vision = (
        {
            "hidden_size": tower["width"],
            "intermediate_size": tower["hidden"],
            "num_hidden_layers": tower["layers"],
            "num_attention_heads": tower["heads"],
            "hidden_act": tower["activation"],
            "layer_norm_eps": tower["eps"],
            "projection_dim": config["features"],
        }
        for tower in (config["text"], config["vision"])
    )
    return CLIPConfig(
        text_config=CLIPTextConfig(
            **text,
            vocab_size=config["text"]["vocabulary"],
            max_position_embeddings=config["text"]["positions"],
            bos_token_id=0,
            eos_token_id=_OLD_END,
        ),
        vision_config=CLIPVisionConfig(
            **vision, image_size=width, patch_size=config["vision"]["patch"]
        ),
        projection_dim=config["features"],
    )


def transformers_architecture(
    module: CLIPModel | SiglipModel, settings: ModelSettings | None
) -> Architecture:
    """The architecture of a CLIP or SigLIP.

    Raises:
        InvalidModel: It is of another architecture.
    """
    assert settings is not None
    pools = isinstance(module, SiglipModel)
    config = _config(module) | {
        "preprocessing": processed_pictures(json.loads(settings.preprocessing)),
        "words": None,
    }
    rename = partial(own_name, pools=pools)
    return checked(module, clip.Clip, Architecture("clip.py", config, rename=rename))


def _config(module: CLIPModel | SiglipModel) -> dict[str, object]:
    vision: Any = module.config.vision_config
    text: Any = module.config.text_config
    pools = isinstance(module, SiglipModel)
    end: int | str = "last"
    if not isinstance(module, SiglipModel):
        found = module.text_model.eos_token_id
        end = "largest" if found == _OLD_END else found
    elif not module.vision_model.use_head:
        refuse("its vision tower is not pooled")
    scalars = {
        name: list(parameter.shape)
        for name, parameter in module.named_parameters()
        if name.startswith("logit_")
    }
    return {
        "vision": {
            **_transformer(vision),
            "patch": vision.patch_size,
            "positions": module.vision_model.embeddings.num_positions,
            "pool": "attention" if pools else "class",
        },
        "text": {
            **_transformer(text),
            "vocabulary": text.vocab_size,
            "positions": text.max_position_embeddings,
            "end": end,
            "causal": not pools,
            "projection_bias": pools,
        },
        "features": text.projection_size if pools else module.config.projection_dim,
        "scalars": scalars,
    }


def _transformer(config: PreTrainedConfig) -> dict[str, object]:
    if config.hidden_act not in _ACTIVATIONS:
        refuse(f"its activation is {config.hidden_act}")
    return {
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "hidden": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "eps": config.layer_norm_eps,
        "activation": _ACTIVATIONS[config.hidden_act],
        "apart": True,
    }
