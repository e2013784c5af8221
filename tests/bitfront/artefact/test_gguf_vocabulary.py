"""llama.cpp makes the same tokens of a text as the tokenizer that the model came with."""

import ctypes
import json
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.gguf.files import DECODER, read_files
from bitfront.artefact.gguf.vocabulary import Vocabulary, read_vocabulary
from bitfront.artefact.runtime.llava import Llava

pytestmark = pytest.mark.runtime

TEXTS = (
    "what is on the table?",
    "two cats and a dog, and another dog",
    "  spaces   stay  ",
    "the rates are 12.5 % of 100",
    "Ünïcode — bytes ☃ where nothing is known",
    "",
)
SIZE = 640
FIRST, END = 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One as Llama has it: pieces in the order in which they are joined, and bytes for the rest."""
    trained = Tokenizer(BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.train_from_iterator(
        list(TEXTS[:4]) * 3, BpeTrainer(vocab_size=160, show_progress=False)
    )
    content = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    letters = [text for text in content["vocab"] if text not in {a + b for a, b in merges}]
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *(a + b for a, b in merges)]
    vocabulary = {text: place for place, text in enumerate([*pieces, *letters])}
    own = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    own.normalizer = trained.normalizer
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    own.add_special_tokens(special)
    own.add_tokens(["<image>"])
    own.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", FIRST)])
    return own


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    found = read_vocabulary(tokenizer.to_str().encode(), SIZE, END)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def decoder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401  # of a module that travels
    """A small decoder in llama.cpp, with that tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    text: dict[str, Any] = {"vocabulary": SIZE, "width": 32, "hidden": 32, "heads": 1, "groups": 1}
    text |= {"head_width": 32, "layers": 1, "eps": 1e-5, "theta": 1e4}
    vision = {"width": 32, "hidden": 32, "heads": 1, "layers": 1, "patch": 8, "positions": 10}
    config = {"text": text, "vision": {**vision, "eps": 1e-5}, "tied": True}
    config["preprocessing"] = {"size": [24, 24], "mean": [0.5], "std": [0.5]}
    entries, tensors = {}, {}
    for name, parameter in Llava(config).named_parameters():
        values = torch.zeros(parameter.shape, dtype=torch.float16)
        if parameter.ndim == 1:
            tensors[name] = values
            continue
        module = name.removesuffix(".weight")
        entries[name] = {
            "weight_bits": 16,
            "group": 0,
            "shape": list(values.shape),
            "modules": [module],
            "tensors": [f"{name}.weight"],
        }
        tensors[f"{name}.weight"] = values.flatten(1)
    files = read_files(config, entries, tensors)
    files.write(config, 64, folder, vocabulary_of(tokenizer))
    sys.path.insert(0, str(RUNTIME))
    try:
        runtime: Any = import_module("gguf_model")
    finally:
        sys.path.remove(str(RUNTIME))
    return runtime.Decoder(folder / DECODER, 1)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_becomes_the_same_tokens(tokenizer: Tokenizer, decoder: Any, text: str) -> None:  # noqa: ANN401  # of a module that travels
    pointer, call = ctypes.c_void_p, decoder._call
    words = call("llama_model_get_vocab", pointer, pointer)(decoder._model)
    cut = call(
        "llama_tokenize",
        ctypes.c_int32,
        *(pointer, ctypes.c_char_p, ctypes.c_int32),
        *(pointer, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    )
    found, content = (ctypes.c_int32 * 256)(), text.encode()

    count = cut(words, content, len(content), found, 256, 1, 1)

    assert list(found[:count]) == tokenizer.encode(text).ids


def test_a_vocabulary_fills_the_rows_of_the_embedding(tokenizer: Tokenizer) -> None:
    found = vocabulary_of(tokenizer)

    assert len(found.tokens) == len(found.scores) == len(found.types) == SIZE
    assert found.special == {"eos": END, "unk": 0, "bos": FIRST}
    assert len(set(found.tokens)) == SIZE
    assert found.prefixes_space


def test_words_that_llama_cpp_has_no_pieces_for_are_left_to_the_folders_module() -> None:
    words = Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))

    assert read_vocabulary(words.to_str().encode(), 2, 0) is None
