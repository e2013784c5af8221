"""An exported decoder in ONNX Runtime GenAI's own runner, where that is installed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import compose

from bitfront.artefact.onnx.products import ROUNDED
from bitfront.artefact.runtime.exported_model import Answerer, load
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_LLAVA
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from tests.support.artefacts import evaluator

genai: Any = pytest.importorskip(
    "onnxruntime_genai",
    reason="pip install onnxruntime-genai, which is not in the development group",
)
pytestmark = pytest.mark.runtime

STEPS = 6
TEXT = "text.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    kept = evaluator(REFERENCE_LLAVA, rounding="nearest", scheme="symmetric")
    layers = [layer.name for layer in kept.model.layers]
    plan = Plan.uniform(layers, Precision(4, 16))
    write_onnx(kept, Configuration(plan), made, {}, accuracy_level=ROUNDED)
    describe(made, kept, **TEXT_ONLY)
    return made


TEXT_ONLY: dict[str, Any] = {"type": "llama", "filename": TEXT, "given": "input_ids"}


def describe(
    folder: Path,
    kept: Evaluator,
    *,
    type: str,
    filename: str,
    given: str,
    **parts: object,
) -> None:
    """GenAI's description of the decoder's inputs and outputs, which have Optimum's names."""
    config: Any = kept.model.module.config
    text = config.get_text_config()
    decoder = {
        "filename": filename,
        "head_size": text.head_dim,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "session_options": {"provider_options": []},
        "inputs": {
            given: given,
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
        "type": type,
        "vocab_size": text.vocab_size,
        "context_length": 256,
        "bos_token_id": 1,
        "eos_token_id": text.vocab_size - 1,
        "pad_token_id": 0,
        "decoder": decoder,
        **parts,
    }
    search = {"max_length": 64, "do_sample": False, "past_present_share_buffer": False}
    content = json.dumps({"model": model, "search": search})
    (folder / "genai_config.json").write_text(content)


def merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the embedding before the decoder: GenAI gives a decoder tokens."""
    monkeypatch.chdir(folder)  # where onnx looks for the tensors beside the models
    embed, decoder = (
        onnx.load(folder / f"{name}.onnx", load_external_data=False)
        for name in ("embed_tokens", "decoder_model_merged")
    )
    embed = compose.add_prefix(embed, "embed_", rename_inputs=False, rename_outputs=False)
    onnx.save(
        compose.merge_models(embed, decoder, io_map=[("inputs_embeds", "inputs_embeds")]),
        folder / TEXT,
    )


def test_genai_writes_the_tokens_that_the_exported_model_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(folder, monkeypatch)
    tokens = np.array([[3, 10, 11, 12, 7]])
    answerer = load(folder, threads=1)
    assert isinstance(answerer, Answerer)
    answerer.ends = frozenset()
    (wanted,) = answerer.generate(tokens, None, STEPS)

    model = genai.Model(os.fspath(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=tokens.shape[1] + STEPS)
    generator = genai.Generator(model, settings)
    generator.append_tokens(tokens.astype(np.int32))
    written = []
    for _ in range(STEPS):
        generator.generate_next_token()
        written.append(int(generator.get_next_tokens()[0]))

    assert written == wanted


def test_genai_loads_all_three_models_but_wants_an_embedding_that_takes_features(
    folder: Path,
) -> None:
    """What keeps its multimodal runner from running a LLaVA of Optimum's layout."""
    kept = evaluator(REFERENCE_LLAVA, rounding="nearest", scheme="symmetric")
    vision = {
        "filename": "vision_encoder.onnx",
        "inputs": {"pixel_values": "pixel_values"},
        "outputs": {"image_features": "image_features"},
    }
    embedding = {
        "filename": "embed_tokens.onnx",
        "inputs": {"input_ids": "input_ids"},
        "outputs": {"inputs_embeds": "inputs_embeds"},
    }
    describe(
        folder,
        kept,
        type="gemma3",
        filename="decoder_model_merged.onnx",
        given="inputs_embeds",
        vision=vision,
        embedding=embedding,
    )

    model = genai.Model(os.fspath(folder))

    with pytest.raises(RuntimeError, match="Model input was not found: image_features"):
        genai.Generator(model, genai.GeneratorParams(model)).append_tokens(
            np.array([[3, 10]], dtype=np.int32)
        )
