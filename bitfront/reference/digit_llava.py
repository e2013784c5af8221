"""The small LLaVA of the reference: how it is built, its words, its trained weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from bitfront.errors import InvalidSample, MissingModel
from bitfront.reference.questions import NOTHING, PLURALS
from bitfront.reference.scenes import SIDE, WORDS

CHECKPOINT = Path(__file__).with_name("digit_llava.safetensors")
PATCH = 6
IMAGE_TOKENS = (SIDE // PATCH) ** 2
VOCABULARY = (
    *("<pad>", "<start>", "<image>", "<answer>", "<end>"),
    *(*WORDS, *PLURALS, NOTHING, "yes", "no"),
    *("how", "many", "are", "there", "is", "what", "a", "an", "at", "in", "the"),
    *("above", "below", "left", "right", "of", "top", "bottom", "row", "column"),
)

_CODES = {word: code for code, word in enumerate(VOCABULARY)}
PAD, START, IMAGE, ANSWER, END = range(5)


def build_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """The model before training, with the initial weights of a seed."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def load_llava(checkpoint: Path = CHECKPOINT) -> LlavaForConditionalGeneration:
    """The trained model, in evaluation mode; its float32 weights are exact in float16.

    Raises:
        MissingModel: There is no such file.
    """
    if not checkpoint.is_file():
        raise MissingModel(
            f"there is no reference checkpoint at {checkpoint}: "
            "train it with 'python -m bitfront.reference.train_llava'"
        )
    model = build_llava()
    weights = {name: weight.float() for name, weight in load_file(checkpoint).items()}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.eval()  # type: ignore[no-untyped-call]  # transformers hides torch's signature
    return model


def encode_prompt(text: str) -> Tensor:
    """Codes `(length,)` int64: a start, the words, and `<answer>`.

    The word `<image>` becomes the image's tokens; case and punctuation do not count.

    Raises:
        InvalidSample: A word is not in `VOCABULARY`.
    """
    codes = [START]
    for word in split_words(text):
        codes += [IMAGE] * IMAGE_TOKENS if word == VOCABULARY[IMAGE] else [_code(word, text)]
    return torch.tensor([*codes, ANSWER])


def encode_answer(answer: str) -> Tensor:
    """Codes `(length,)` int64 of an answer and the end after it.

    Raises:
        InvalidSample: A word is not in `VOCABULARY`.
    """
    return torch.tensor([*(_code(word, answer) for word in split_words(answer)), END])


def decode(tokens: Sequence[int]) -> str:
    """The words of some tokens, up to the end."""
    words = []
    for token in tokens:
        if token == END:
            break
        words.append(VOCABULARY[token])
    return " ".join(words)


def split_words(text: str) -> list[str]:
    """The words of a text as the vocabulary writes them."""
    return "".join(" " if letter in ".,?!" else letter for letter in text.lower()).split()


def _code(word: str, text: str) -> int:
    code = _CODES.get(word, 0)
    if code <= END:
        raise InvalidSample(
            f"{text!r} has the word {word!r}, which the reference does not know; "
            f"its words are {', '.join(VOCABULARY[END + 1 :])}"
        )
    return code
