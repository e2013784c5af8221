"""How an artefact rebuilds a model's modules: which source file travels with it, and its settings.

A model is taken only if the source builds exactly its tensors, under the same names and in the
same shapes; whether it computes the same is verified once the artefact is written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

from bitfront.artefact.runtime import clip, llava
from bitfront.errors import InvalidModel
from bitfront.reference import digit_clip, digit_llava, scenes
from bitfront.vlm.layers.attention import CalledAttention
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.layered import LayeredModel

RUNTIME = Path(__file__).with_name("runtime")

_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Architecture:
    """What rebuilds a model without its weights.

    Attributes:
        source: The file of `RUNTIME` that travels as `architecture.py`.
        config: What its `build` takes, plain JSON content.
        requires: The packages that it needs beside torch, safetensors and Pillow.
        files: Further files of the folder, by name: a tokenizer's, a processor's.
    """

    source: str
    config: Mapping[str, object]
    requires: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def describe(model: LayeredModel) -> Architecture:
    """The architecture of a model.

    Raises:
        InvalidModel: No source file builds it.
    """
    module = model.module
    is_bundled = model.settings is None
    if isinstance(module, open_clip.CLIP):
        config = _clip_config(module)
        config |= _digit_clip_words() if is_bundled else _open_clip_words(model)
        _check(module, clip.Clip, config)
        return Architecture("clip.py", config)
    if isinstance(module, LlavaForConditionalGeneration):
        assert isinstance(model, GenerativeModel)
        config = _llava_config(module)
        if is_bundled:
            config |= _digit_llava_words()
            _check(module, llava.Llava, config)
            return Architecture("llava.py", config)
        config |= _llava_words(model)
        _check(module, llava.Llava, config)
        assert model.tokenizer_json is not None
        files = {"tokenizer.json": model.tokenizer_json.encode()}
        return Architecture("llava.py", config, ("tokenizers",), files)
    raise InvalidModel(
        f"nothing can be built of a {type(module).__name__} yet: what rebuilds models knows "
        "open_clip's CLIP with a vision transformer, LLaVA with a CLIP and a Llama decoder, and "
        "the bundled models"
    )


def _check(
    module: nn.Module, kind: type[clip.Clip] | type[llava.Llava], config: dict[str, object]
) -> None:
    with torch.device("meta"):
        built = kind(config)
    wanted, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (module.state_dict(), built.state_dict())
    )
    if wanted != found:
        differ = sorted(wanted.items() ^ found.items())
        _refuse(f"its {differ[0][0]} has no counterpart there")


def _refuse(reason: str) -> NoReturn:
    raise InvalidModel(
        f"what is built cannot rebuild this model: {reason}; it knows CLIP's plain "
        "vision transformer and causal text transformer, and LLaVA of a CLIP and a Llama decoder"
    )


def _clip_config(module: open_clip.CLIP) -> dict[str, object]:
    visual = module.visual
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None
    if not plain:
        _refuse(f"its vision tower is a {type(visual).__name__}")
    if visual.pool_type != "tok" or visual.final_ln_after_pool:
        _refuse("its vision tower is not pooled at its class token")
    if module.text_pool_type != "argmax" or module.attn_mask is None:
        _refuse("its text tower is not causal, or not pooled at the largest token")
    blocks = [*visual.transformer.resblocks, *module.transformer.resblocks]
    kinds = {type(block.mlp.gelu) for block in blocks}
    if not all(isinstance(b, ResidualAttentionBlock) for b in blocks) or len(kinds) > 1:
        _refuse("its blocks are not of one kind")
    if not kinds <= {nn.GELU, QuickGELU}:
        _refuse(f"its activation is {kinds.pop().__name__}")
    if any(m.eps != _NORM_EPSILON for m in module.modules() if isinstance(m, nn.LayerNorm)):
        _refuse("its norms have another epsilon")
    text = _transformer(module.transformer) | {
        "vocabulary": module.token_embedding.num_embeddings,
        "positions": module.positional_embedding.shape[0],
    }
    vision = _transformer(visual.transformer) | {
        "patch": visual.conv1.kernel_size[0],
        "positions": visual.positional_embedding.shape[0],
    }
    return {
        "vision": vision,
        "text": text,
        "features": visual.proj.out_features,
        "quick_gelu": kinds == {QuickGELU},
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


def _digit_clip_words() -> dict[str, object]:
    vocabulary = digit_clip.VOCABULARY
    words = {
        "vocabulary": list(vocabulary),
        "length": digit_clip.CONTEXT_LENGTH,
        "start": vocabulary.index("<start>"),
        "end": vocabulary.index("<end>"),
    }
    return {"preprocessing": _grey_preprocessing(), "words": words}


def _grey_preprocessing() -> dict[str, object]:
    return {
        "size": [scenes.SIDE, scenes.SIDE],
        "mode": "L",
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": [scenes.MEAN],
        "std": [scenes.STD],
    }


def _open_clip_words(model: LayeredModel) -> dict[str, object]:
    assert model.settings is not None
    given = json.loads(model.settings.preprocessing)
    size = given["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = given["resize_mode"] or "shortest"
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        _refuse(f"its pictures are resized by {mode!r} to {height} x {width}")
    if given["interpolation"] not in ("bicubic", "bilinear"):
        _refuse(f"its pictures are resized with {given['interpolation']!r} interpolation")
    preprocessing = {
        "size": [height, width],
        "mode": given["mode"],
        "resize": mode,
        "interpolation": given["interpolation"],
        "mean": list(given["mean"]),
        "std": list(given["std"]),
    }
    return {"preprocessing": preprocessing, "words": None}


def _llava_config(module: LlavaForConditionalGeneration) -> dict[str, object]:
    config = module.config
    vision, text = config.vision_config, config.get_text_config()
    if not isinstance(vision, CLIPVisionConfig):
        _refuse(f"its vision tower is of a {type(vision).__name__}")
    if not isinstance(text, LlamaConfig):
        _refuse(f"its decoder is of a {type(text).__name__}")
    rope = text.rope_parameters or {}
    known = {
        "vision_config.hidden_act": (vision.hidden_act, "quick_gelu"),
        "text_config.hidden_act": (text.hidden_act, "silu"),
        "text_config.rope_parameters.rope_type": (rope.get("rope_type"), "default"),
        "projector_hidden_act": (config.projector_hidden_act, "gelu"),
    }
    for name, (found, wanted) in known.items():
        if found != wanted:
            _refuse(f"its {name} is {found!r} instead of {wanted!r}")
    if not isinstance(config.vision_feature_layer, int):
        _refuse(f"its vision_feature_layer is {config.vision_feature_layer} instead of one")
    tower = module.model.vision_tower
    return {
        "vision": {
            "width": vision.hidden_size,
            "hidden": vision.intermediate_size,
            "heads": vision.num_attention_heads,
            "layers": len(tower.encoder.layers),
            "patch": vision.patch_size,
            "positions": tower.embeddings.num_positions,
            "eps": vision.layer_norm_eps,
        },
        "text": {
            "vocabulary": text.vocab_size,
            "width": text.hidden_size,
            "hidden": text.intermediate_size,
            "heads": text.num_attention_heads,
            "groups": text.num_key_value_heads,
            "head_width": text.head_dim or text.hidden_size // text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "eps": text.rms_norm_eps,
            "theta": rope["rope_theta"],
        },
        "tied": bool(config.tie_word_embeddings),
        "drops_first": config.vision_feature_select_strategy == "default",
        "image_code": config.image_token_id,
    }


def _digit_llava_words() -> dict[str, object]:
    return {
        "ends": [digit_llava.END],
        "preprocessing": _grey_preprocessing(),
        "words": {
            "vocabulary": list(digit_llava.VOCABULARY),
            "image_tokens": digit_llava.IMAGE_TOKENS,
            "start": digit_llava.START,
            "answer": digit_llava.ANSWER,
        },
    }


def _llava_words(model: GenerativeModel) -> dict[str, object]:
    """What transformers' processor does, where Pillow and tokenizers can do the same."""
    assert model.settings is not None
    if model.tokenizer_json is None:
        _refuse("its tokenizer is not one of the package tokenizers")
    given = json.loads(model.settings.preprocessing)
    size, crop = given["size"] or {}, given["crop_size"] or {}
    side = crop.get("height") if given["do_center_crop"] else size.get("height")
    is_cut = given["do_center_crop"] and size.get("shortest_edge") == side == crop.get("width")
    is_squashed = not given["do_center_crop"] and side is not None
    plain = all(given[name] for name in ("do_resize", "do_rescale", "do_normalize"))
    if not plain or not (is_cut or is_squashed) or given.get("do_pad"):
        _refuse(f"its pictures are resized to {size} and cut to {crop}")
    methods = {2: "bilinear", 3: "bicubic"}
    if given["resample"] not in methods or abs(given["rescale_factor"] * 255 - 1) > 1e-6:
        _refuse(f"its pictures are resized with method {given['resample']}")
    return {
        "ends": given["ends"],
        "preprocessing": {
            "size": [side, crop["width"] if is_cut else size["width"]],
            "mode": "RGB",
            "resize": "shortest" if is_cut else "squash",
            "interpolation": methods[given["resample"]],
            "mean": given["image_mean"],
            "std": given["image_std"],
        },
        "words": {"image_tokens": model.tile_tokens, "image_token": model.image_token},
    }
