"""gguf's blocks hold the codes and scales of a trial: gguf's own reader gives the weights back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.artefact.gguf.files import read_files
from bitfront.artefact.gguf.names import place_of
from bitfront.precision import Precision
from bitfront.quant.blocks import BLOCK_TYPES, BlockType, block_type
from bitfront.quant.packing import packed_weight, unpacked_weight
from bitfront.spec import QuantizerSpec

WIDTHS = (2, 3, 4, 5, 6, 8)
SYMMETRIC = QuantizerSpec(scheme="symmetric", scale_search=False)
TEXT = {"heads": 2, "groups": 1}
DOWN = "model.language_model.layers.0.mlp.down_proj"


def entry_of(
    path: str, weight: torch.Tensor, precision: Precision
) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """A layer as a card of a packed checkpoint has it, and its tensors."""
    own = packed_weight(weight, precision, SYMMETRIC)
    entry: dict[str, object] = {
        "weight_bits": precision.weight_bits,
        "group": precision.group,
        "shape": list(weight.shape),
        "modules": [path],
        "tensors": [f"{path}.weight.{part}" for part in own],
    }
    return entry, {f"{path}.weight.{part}": tensor for part, tensor in own.items()}


def stored(path: str, weight: torch.Tensor, precision: Precision) -> tuple[str, np.ndarray]:
    """The type of a layer's only tensor, and the values that gguf's reader makes of it."""
    entry, tensors = entry_of(path, weight, precision)
    files = read_files({"text": TEXT}, {f"{path}.weight": entry}, tensors)
    ((array, kind),) = files.tensors.values()
    return kind.name, dequantize(array, kind)


@pytest.mark.parametrize("known", BLOCK_TYPES, ids=lambda known: known.name)
def test_a_block_has_the_size_and_the_bytes_that_gguf_gives_its_type(known: BlockType) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[known.name]] == (known.size, known.nbytes)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(WIDTHS),
    st.sampled_from((0, 32, 64, 96, 256, 1024)),
    st.sampled_from((32, 96, 256, 288, 512)),
    st.integers(0, 2**31),
)
def test_every_width_comes_back_bit_for_bit(bits: int, group: int, columns: int, seed: int) -> None:
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed))
    precision = Precision(bits, 16, group)
    wanted = unpacked_weight(
        packed_weight(weight, precision, SYMMETRIC), 3, columns, precision, SYMMETRIC
    )

    kind, found = stored(DOWN, weight, precision)

    held = block_type(bits, group, columns)
    assert held is not None
    assert kind == held.name
    assert np.array_equal(found, wanted.numpy())


@pytest.mark.parametrize(
    ("text", "columns", "name"),
    [
        ("w2a16", 256, "Q2_K"),
        ("w3a16g256", 512, "Q3_K"),
        ("w4a16", 96, "Q4_0"),
        ("w5a16g32", 256, "Q5_0"),
        ("w6a16", 512, "Q6_K"),
        ("w8a16", 32, "Q8_0"),
        ("w2a16", 96, "Q4_0"),
        ("w3a16g32", 256, "Q4_0"),
        ("w6a16g64", 256, "Q8_0"),
        ("w4a16g24", 48, None),
        ("w8a16", 40, None),
    ],
)
def test_the_smallest_type_is_taken_that_holds_the_codes(
    text: str, columns: int, name: str | None
) -> None:
    precision = Precision.parse(text)

    held = block_type(precision.weight_bits, precision.group, columns)

    assert (None if held is None else held.name) == name


def test_codes_without_blocks_are_stored_as_their_values() -> None:
    weight = torch.randn(4, 3, 3, 5)
    precision = Precision(3, 16, 8)
    wanted = unpacked_weight(
        packed_weight(weight, precision, SYMMETRIC), 4, 45, precision, SYMMETRIC
    )

    kind, found = stored("model.vision_tower.embeddings.patch_embedding", weight, precision)

    assert kind == "F32"
    assert np.array_equal(found, wanted.view(4, 3, 3, 5).numpy())


def test_rows_of_queries_and_keys_lie_as_llama_cpp_rotates_them() -> None:
    weight = torch.arange(8.0)[:, None].expand(8, 32)
    path = "model.language_model.layers.1.self_attn"

    _, queries = stored(f"{path}.q_proj", weight, Precision(16))
    _, keys = stored(f"{path}.k_proj", weight, Precision(16))
    _, values = stored(f"{path}.v_proj", weight, Precision(16))

    assert queries[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert keys[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert values[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("parameter", "decodes", "name"),
    [
        ("model.language_model.layers.3.self_attn.q_proj.weight", True, "blk.3.attn_q.weight"),
        ("model.language_model.embed_tokens.weight", True, "token_embd.weight"),
        ("lm_head.weight", True, "output.weight"),
        ("model.vision_tower.encoder.layers.0.mlp.fc2.bias", False, "v.blk.0.ffn_down.bias"),
        ("model.vision_tower.embeddings.class_embedding", False, "v.class_embd"),
        ("model.multi_modal_projector.linear_2.weight", False, "mm.2.weight"),
        (
            "model.vision_tower.post_layernorm.weight",
            False,
            "unused.model.vision_tower.post_layernorm.weight",
        ),
    ],
)
def test_tensors_have_the_names_that_llama_cpp_looks_for(
    parameter: str, decodes: bool, name: str
) -> None:
    place = place_of(parameter)

    assert (place.decodes, place.name) == (decodes, name)


def test_what_is_written_is_read_from_the_file(tmp_path: Path) -> None:
    weight = torch.randn(4, 256)
    entry, tensors = entry_of(DOWN, weight, Precision(3))
    files = read_files({"text": TEXT}, {f"{DOWN}.weight": entry}, tensors)
    ((array, kind),) = files.tensors.values()
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("a", array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    (found,) = GGUFReader(tmp_path / "one.gguf").tensors

    wanted = unpacked_weight(
        packed_weight(weight, Precision(3), SYMMETRIC), 4, 256, Precision(3), SYMMETRIC
    )
    assert found.tensor_type is GGMLQuantizationType.Q3_K
    assert files.nbytes == found.n_bytes == 4 * 110
    assert np.array_equal(dequantize(found.data, found.tensor_type), wanted.numpy())
