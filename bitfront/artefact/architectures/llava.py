"""transformers' LLaVA of a CLIP and a Llama, the bundled one too."""

import json

from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

from bitfront.artefact.architectures.architecture import Architecture, checked, refuse
from bitfront.artefact.architectures.pictures import grey_pictures, processed_pictures
from bitfront.artefact.runtime import llava
from bitfront.reference import digit_llava
from bitfront.vlm.models.generative import GenerativeModel


def llava_architecture(
    module: LlavaForConditionalGeneration, model: GenerativeModel
) -> Architecture:
    """The architecture of a LLaVA.

    Raises:
        InvalidModel: It is of another architecture.
    """
    config = _config(module)
    if model.settings is None:
        made = Architecture("llava.py", config | _bundled_words())
        return checked(module, llava.Llava, made)
    config |= _words(model)
    assert model.tokenizer_json is not None
    files = {"tokenizer.json": model.tokenizer_json.encode()}
    made = Architecture("llava.py", config, ("tokenizers",), files)
    return checked(module, llava.Llava, made)


def _config(module: LlavaForConditionalGeneration) -> dict[str, object]:
    config = module.config
    vision, text = config.vision_config, config.get_text_config()
    if not isinstance(vision, CLIPVisionConfig):
        refuse(f"its vision tower is of a {type(vision).__name__}")
    if not isinstance(text, LlamaConfig):
        refuse(f"its decoder is of a {type(text).__name__}")
    rope = text.rope_parameters or {}
    known = {
        "vision_config.hidden_act": (vision.hidden_act, "quick_gelu"),
        "text_config.hidden_act": (text.hidden_act, "silu"),
        "text_config.rope_parameters.rope_type": (rope.get("rope_type"), "default"),
        "projector_hidden_act": (config.projector_hidden_act, "gelu"),
    }
    for name, (found, wanted) in known.items():
        if found != wanted:
            refuse(f"its {name} is {found!r} instead of {wanted!r}")
    if not isinstance(config.vision_feature_layer, int):
        refuse(f"its vision_feature_layer is {config.vision_feature_layer} instead of one")
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


def _bundled_words() -> dict[str, object]:
    return {
        "ends": [digit_llava.END],
        "preprocessing": grey_pictures(),
        "words": {
            "vocabulary": list(digit_llava.VOCABULARY),
            "image_tokens": digit_llava.IMAGE_TOKENS,
            "start": digit_llava.START,
            "answer": digit_llava.ANSWER,
        },
    }


def _words(model: GenerativeModel) -> dict[str, object]:
    """What transformers' processor does, where Pillow and tokenizers can do the same."""
    assert model.settings is not None
    if model.tokenizer_json is None:
        refuse("its tokenizer is not one of the package tokenizers")
    given = json.loads(model.settings.preprocessing)
    return {
        "ends": given["ends"],
        "preprocessing": processed_pictures(given),
        "words": {"image_tokens": model.tile_tokens, "image_token": model.image_token},
    }
