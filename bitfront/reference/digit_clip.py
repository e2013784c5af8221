"""The small open_clip model of the reference: how it is built, its words, its trained weights."""

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file
from torch import Tensor

from bitfront.errors import InvalidSample, MissingModel
from bitfront.reference.scenes import SIDE, WORDS

CHECKPOINT = Path(__file__).with_name("digit_clip.safetensors")
CONTEXT_LENGTH = 28
FILLERS: tuple[str, ...] = (
    *("a", "picture", "photo", "image", "scan", "drawing", "scene", "of", "the", "this"),
    *("is", "shows", "with", "and", "noisy", "small", "handwritten", "grey", "good", "bad"),
)
VOCABULARY = ("<pad>", "<start>", "an", *WORDS, "left", "above", *FILLERS, "<end>")

_CODES = {word: code for code, word in enumerate(VOCABULARY)}
_START, _END = _CODES["<start>"], _CODES["<end>"]


def build_clip(seed: int = 0) -> open_clip.CLIP:
    """The model before training, with the initial weights of a seed."""
    vision = CLIPVisionCfg(layers=5, width=64, head_width=16, patch_size=4, image_size=SIDE)
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=len(VOCABULARY), width=64, heads=4, layers=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)


def load_clip(checkpoint: Path = CHECKPOINT) -> open_clip.CLIP:
    """The trained model, in evaluation mode; its float32 weights are exact in float16.

    Raises:
        MissingModel: There is no such file.
    """
    if not checkpoint.is_file():
        raise MissingModel(
            f"there is no reference checkpoint at {checkpoint}: "
            "train it with 'python -m bitfront.reference.train'"
        )
    model = build_clip()
    weights = {name: weight.float() for name, weight in load_file(checkpoint).items()}
    model.load_state_dict(weights)
    return model.eval()


def tokenize(texts: Sequence[str]) -> Tensor:
    """Word codes `(n, CONTEXT_LENGTH)` int64, between a start and an end, padded with 0.

    Case, commas and full stops do not count. The end has the largest code, so that open_clip
    finds it by argmax.

    Raises:
        InvalidSample: A word is not in `VOCABULARY`, or a text is too long.
    """
    tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.int64)
    for row, text in enumerate(texts):
        codes = [_START, *(_code(word, text) for word in split_words(text)), _END]
        if len(codes) > CONTEXT_LENGTH:
            raise InvalidSample(
                f"{text!r} has {len(codes) - 2} words, "
                f"but the reference reads at most {CONTEXT_LENGTH - 2}"
            )
        tokens[row, : len(codes)] = torch.tensor(codes)
    return tokens


def split_words(text: str) -> list[str]:
    """The words of a text as the vocabulary writes them."""
    return text.lower().replace(".", " ").replace(",", " ").split()


def _code(word: str, text: str) -> int:
    code = _CODES.get(word, 0)
    if not _START < code < _END:
        raise InvalidSample(
            f"{text!r} has the word {word!r}, which the reference does not know; "
            f"its words are {', '.join(VOCABULARY[2:-1])}"
        )
    return code
