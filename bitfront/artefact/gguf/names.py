"""What llama.cpp calls the tensors of a LLaVA, and which of its two files they lie in."""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_DECODER: Final = MappingProxyType(
    {
        "model.language_model.embed_tokens": "token_embd",
        "model.language_model.norm": "output_norm",
        "lm_head": "output",
    }
)
_DECODER_LAYER: Final = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_TOWER = "model.vision_tower."
_PROJECTOR: Final = MappingProxyType(
    {
        f"{_TOWER}embeddings.patch_embedding": "v.patch_embd",
        f"{_TOWER}embeddings.position_embedding": "v.position_embd",
        f"{_TOWER}pre_layrnorm": "v.pre_ln",
        "model.multi_modal_projector.linear_1": "mm.0",
        "model.multi_modal_projector.linear_2": "mm.2",
    }
)
_TOWER_LAYER: Final = MappingProxyType(
    {
        "layer_norm1": "ln1",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "layer_norm2": "ln2",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
)
_LAYER = re.compile(r"(?P<tower>model\..+?\.)(?:encoder\.)?layers\.(?P<number>\d+)\.(?P<part>.+)")
CLASS_TOKEN: Final = "v.class_embd"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies.

    Attributes:
        decodes: Whether it lies in the decoder's file; else in the projector's.
        name: What it is called there.
    """

    decodes: bool
    name: str

    @property
    def rotates(self) -> str:
        """Which heads' rows are rotated by their position: of `q` or `k`; empty for none."""
        kind = self.name.rpartition("attn_")[2].removesuffix(".weight")
        return kind if self.decodes and kind in ("q", "k") else ""


def place_of(parameter: str) -> Place:
    """The place of a parameter of transformers' LLaVA; what never runs is under its own name."""
    if parameter == f"{_TOWER}embeddings.class_embedding":
        return Place(decodes=False, name=CLASS_TOKEN)
    module, _, kind = parameter.rpartition(".")
    if module in _DECODER:
        return Place(decodes=True, name=f"{_DECODER[module]}.{kind}")
    if module in _PROJECTOR:
        return Place(decodes=False, name=f"{_PROJECTOR[module]}.{kind}")
    match = _LAYER.fullmatch(module)
    if match is not None:
        decodes = match["tower"] != _TOWER
        names, prefix = (_DECODER_LAYER, "") if decodes else (_TOWER_LAYER, "v.")
        if match["part"] in names:
            name = f"{prefix}blk.{match['number']}.{names[match['part']]}.{kind}"
            return Place(decodes=decodes, name=name)
    return Place(decodes=False, name=f"unused.{parameter}")
