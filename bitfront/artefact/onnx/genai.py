"""What ONNX Runtime GenAI is told of a LLaVA's models: `genai_config.json`."""

from collections.abc import Mapping, Sequence
from typing import Final

CONFIG: Final = "genai_config.json"

_KIND: Final = "gemma3"
"""A kind of GenAI's whose runner takes models of these inputs; it has none of LLaVA's name."""


def genai_config(
    text: Mapping[str, object], ends: Sequence[int], context_length: int, files: Mapping[str, str]
) -> dict[str, object]:
    """The content of the file.

    GenAI's runner of that kind gives `pixel_values` to the vision model, its features and the
    tokens to the embedding model, and what that gives to the decoder. Tokens and pixels are the
    caller's: GenAI's own processors of text and pictures belong to other models.

    Args:
        text: The decoder's settings, as an architecture has them.
        ends: Tokens that end an answer.
        context_length: The most positions of the decoder.
        files: The models' files: `vision`, `embedding` and `decoder`.
    """
    decoder = {
        "filename": files["decoder"],
        "head_size": text["head_width"],
        "hidden_size": text["width"],
        "num_attention_heads": text["heads"],
        "num_hidden_layers": text["layers"],
        "num_key_value_heads": text["groups"],
        "session_options": {"provider_options": []},
        "inputs": {
            "inputs_embeds": "inputs_embeds",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": _KIND,
        "vocab_size": text["vocabulary"],
        "context_length": context_length,
        "eos_token_id": list(ends),
        "pad_token_id": ends[0],
        "decoder": decoder,
        "vision": {
            "filename": files["vision"],
            "inputs": {"pixel_values": "pixel_values"},
            "outputs": {"image_features": "image_features"},
        },
        "embedding": {
            "filename": files["embedding"],
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
    }
    search = {
        "max_length": context_length,
        "do_sample": False,
        "past_present_share_buffer": False,
    }
    return {"model": model, "search": search}
