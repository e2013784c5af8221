"""Tries a loaded model's tokenizer and preprocessing on one caption and one picture."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitfront.errors import InvalidModel, MissingModel
from bitfront.vlm.models.dual_encoder import DualEncoder

CAPTION = "a photo of a cat."
PICTURE_SIZE = (40, 30)


def picture() -> Image.Image:
    """A picture that is not square, in one colour."""
    return Image.new("RGB", PICTURE_SIZE, "orange")


def check_tokens(name: str, texts: Sequence[str], tokens: Tensor, rows: int) -> None:
    """Refuses tokens that the model's embedding does not have.

    Raises:
        InvalidModel: One is out of range: tokenizer and weights are of different models.
    """
    outside = (tokens < 0) | (tokens >= rows)
    if outside.any():
        text = texts[int(outside.any(dim=-1).nonzero()[0])]
        raise InvalidModel(
            f"the tokenizer of {name} gives the token {int(tokens[outside][0])} for {text!r}, but "
            f"the weights know tokens 0 to {rows - 1}: they are of different models"
        )


def refuse_empty(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that knows no words: transformers invents one where there is none.

    Raises:
        MissingModel: It knows special tokens only.
    """
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if not words:
        raise MissingModel(
            f"{name} has no tokenizer: copy tokenizer.json, or what the tokenizer was saved as, "
            "from where the weights came from"
        )


def check_dual_encoder(name: str, model: DualEncoder) -> None:
    """Refuses a dual encoder that cannot take its own tokenizer's or preprocessing's output.

    Raises:
        InvalidModel: Pixels or tokens have another shape, or the features are not finite.
    """
    pixels = model.preprocess(picture())
    if tuple(pixels.shape) != model.image_shape:
        raise InvalidModel(
            f"the preprocessing of {name} makes images of {_size(tuple(pixels.shape))}, but its "
            f"vision tower reads {_size(model.image_shape)}: its preprocessing is of another model"
        )
    tokens = model.tokenize([CAPTION])
    if tuple(tokens.shape) != (1, model.context_length):
        raise InvalidModel(
            f"the tokenizer of {name} makes rows of {tokens.shape[-1]} tokens, but its text tower "
            f"reads {model.context_length}: the tokenizer is of another model"
        )
    with torch.no_grad():
        features = (model.encode_images(pixels[None]), model.encode_texts(tokens))
    if not all(one.isfinite().all() for one in features):
        raise InvalidModel(f"the features of {name} are not finite: its weights are damaged")
    if features[0].shape != features[1].shape:
        raise InvalidModel(
            f"{name} gives images {features[0].shape[-1]} features and texts "
            f"{features[1].shape[-1]}, so they cannot be compared"
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
