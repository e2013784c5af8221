"""What every generative model asks of a prompt, and its tokenizer as a file."""

import json

from PIL.Image import Image
from torch import Tensor

from bitfront.errors import InvalidSample
from bitfront.vlm.models.generative import IMAGE_TOKEN


def check_places(text: str, image: Image | None) -> None:
    """Refuses a prompt with another number of image tokens than its sample has images.

    Raises:
        InvalidSample: It has.
    """
    places = text.count(IMAGE_TOKEN)
    if image is not None and places == 0:
        raise InvalidSample(
            f"the prompt {text!r} has no image token, but its sample has an image: "
            f"put {IMAGE_TOKEN} into data.prompt"
        )
    if image is not None and places > 1:
        raise InvalidSample(
            f"the prompt {text!r} has {places} image tokens, but its sample has one image: "
            f"leave {IMAGE_TOKEN} out of the question"
        )
    if image is None and places:
        raise InvalidSample(f"the prompt {text!r} has an image token, but its sample has no image")


def check_length(text: str, tokens: Tensor, most: int) -> None:
    """Refuses a prompt with more tokens than the decoder has positions.

    Raises:
        InvalidSample: It has.
    """
    if len(tokens) > most:
        raise InvalidSample(
            f"the prompt {text!r:.80} takes {len(tokens)} positions, but the decoder "
            f"has {most}: shorten data.prompt or the question"
        )


def tokenizer_json(tokenizer: object) -> str | None:
    """The tokenizer as the package tokenizers writes it, without padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    return json.dumps({**content, "padding": None, "truncation": None}, ensure_ascii=False)
