"""The two files of a LLaVA for llama.cpp: its decoder, and its tower with projector."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from bitfront.artefact.gguf.codes import packed_blocks
from bitfront.artefact.gguf.names import place_of
from bitfront.artefact.gguf.vocabulary import Vocabulary
from bitfront.precision import Precision
from bitfront.quant.blocks import block_type
from bitfront.quant.packing import unpack_codes

DECODER, PROJECTOR = "decoder.gguf", "mmproj.gguf"

_MATRIX: Final = 2  # dimensions of what has blocks; a convolution has four


@dataclass(slots=True, eq=False)
class Files:
    """What both files hold.

    Attributes:
        tensors: By file and name: the array as it is stored, and its type.
        types: Of each layer, by its name: the block type, `F16`, or `F32` where values of codes are
            stored.
        wider: Layers whose codes lie in blocks of wider ones.
    """

    tensors: dict[tuple[str, str], tuple[np.ndarray, GGMLQuantizationType]] = field(
        default_factory=dict
    )
    types: dict[str, str] = field(default_factory=dict)
    wider: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(array.nbytes for array, _ in self.tensors.values())

    def write(
        self,
        config: Mapping[str, Any],
        context: int,
        folder: Path,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Writes both files.

        Args:
            config: What the file of `runtime` is built with.
            context: How many positions the decoder was made for.
            folder: Where to.
            vocabulary: The decoder's; None where whoever runs it makes the tokens.

        Raises:
            OSError: One cannot be written.
        """
        for name, architecture in ((DECODER, "llama"), (PROJECTOR, "clip")):
            writer = GGUFWriter(folder / name, architecture)
            if name == DECODER:
                _describe_decoder(writer, config["text"], context)
                _describe_words(writer, vocabulary)
            else:
                _describe_projector(writer, config)
            for (file, tensor), (array, kind) in self.tensors.items():
                if file == name:
                    writer.add_tensor(tensor, array, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()


def read_files(
    config: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
) -> Files:
    """The files of a model whose layers have symmetric codes.

    Args:
        config: What the file of `runtime` is built with.
        entries: Its layers, as a card of a packed checkpoint has them.
        tensors: Those of the packed checkpoint.
    """
    files, heads = Files(), config["text"]
    layers = {key for entry in entries.values() for key in entry["tensors"]}
    for name, tensor in tensors.items():
        if name not in layers:
            _put(files, name, tensor.float().numpy(), GGMLQuantizationType.F32)
    for name, entry in entries.items():
        own = {key.removeprefix(f"{name}."): tensors[key] for key in entry["tensors"]}
        path = f"{entry['modules'][0]}.weight"
        order = _rows(path, entry["shape"][0], heads)
        array, kind, is_wider = _held(entry, own, order)
        files.types[name] = kind.name
        if is_wider:
            files.wider.append(name)
        _put(files, path, array, kind)
    return files


def _put(files: Files, parameter: str, array: np.ndarray, kind: GGMLQuantizationType) -> None:
    place = place_of(parameter)
    file = DECODER if place.decodes else PROJECTOR
    files.tensors[file, place.name] = array, kind


def _rows(parameter: str, count: int, text: Mapping[str, Any]) -> Tensor:
    """The order of a weight's rows: llama.cpp rotates neighbours, transformers halves."""
    order = torch.arange(count)
    rotated = place_of(parameter).rotates
    if not rotated:
        return order
    heads = text["heads"] if rotated == "q" else text["groups"]
    return order.view(heads, 2, -1).transpose(1, 2).flatten()


def _held(
    entry: Mapping[str, Any], own: Mapping[str, Tensor], order: Tensor
) -> tuple[np.ndarray, GGMLQuantizationType, bool]:
    """A layer's weight as it is stored, its type, and whether that is wider than its codes."""
    shape = tuple(entry["shape"])
    precision = Precision(entry["weight_bits"], 16, entry["group"])
    if not precision.quantizes_weight:
        values = own["weight"][order].view(shape)
        return values.numpy(), GGMLQuantizationType.F16, False
    bits, rows = precision.weight_bits, shape[0]
    columns = int(np.prod(shape[1:]))
    codes = unpack_codes(own["codes"], bits, rows * columns).view(rows, columns)[order]
    scale = own["scale"][order]
    held = block_type(bits, precision.group, columns) if len(shape) == _MATRIX else None
    if held is None:
        spread = _spread(scale, precision.group, columns, 1)
        values = (codes.float() - 2 ** (bits - 1)) * spread.float()
        return values.view(shape).numpy(), GGMLQuantizationType.F32, False
    scales = _spread(scale, precision.group, columns, held.size)
    blocks = packed_blocks(codes.numpy(), scales.numpy(), bits, held)
    return blocks, GGMLQuantizationType[held.name], held.bits > bits


def _spread(scale: Tensor, group: int, columns: int, size: int) -> Tensor:
    """The scales `(rows, groups)` for every run of `size` columns."""
    width = min(group or columns, columns)
    return scale.repeat_interleave(width // size, dim=1)[:, : columns // size]


def _describe_decoder(writer: GGUFWriter, text: Mapping[str, Any], context: int) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(text["width"])
    writer.add_block_count(text["layers"])
    writer.add_feed_forward_length(text["hidden"])
    writer.add_head_count(text["heads"])
    writer.add_head_count_kv(text["groups"])
    writer.add_key_length(text["head_width"])
    writer.add_value_length(text["head_width"])
    writer.add_rope_dimension_count(text["head_width"])
    writer.add_rope_freq_base(text["theta"])
    writer.add_layer_norm_rms_eps(text["eps"])
    writer.add_vocab_size(text["vocabulary"])


def _describe_words(writer: GGUFWriter, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        vocabulary.write(writer)


def _describe_projector(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    vision, pictures = config["vision"], config["preprocessing"]
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(pictures["size"][0])
    writer.add_vision_patch_size(vision["patch"])
    writer.add_vision_embedding_length(vision["width"])
    writer.add_vision_feed_forward_length(vision["hidden"])
    writer.add_vision_projection_dim(config["text"]["width"])
    writer.add_vision_block_count(vision["layers"])
    writer.add_vision_head_count(vision["heads"])
    writer.add_vision_attention_layernorm_eps(vision["eps"])
    writer.add_vision_image_mean(_three(pictures["mean"]))
    writer.add_vision_image_std(_three(pictures["std"]))
    writer.add_array("clip.vision.feature_layer", [vision["layers"]])


def _three(values: list[float]) -> list[float]:
    return values * 3 if len(values) == 1 else values
