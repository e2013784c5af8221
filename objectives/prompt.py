"""The learnable text prompt of P4Q: one context for all classes, before the class's name."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from bitfront.vlm import DualEncoder

CLASS_BATCH = 256
CONTEXT_KEY = "context"
FIRST_WORDS = "a photo of a"
NOISE = 0.02


class Prompt(nn.Module):
    """A context of `length` vectors right after the start token; the class's name comes last.

    The context is a registered parameter, so that the optimiser gets it and a checkpoint
    holds it. It starts as words that the text tower knows, over and over, with a little
    noise: a random context costs accuracy at first that few steps do not win back.
    """

    def __init__(self, model: DualEncoder, length: int, generator: torch.Generator) -> None:
        super().__init__()
        words = model.embed_words(FIRST_WORDS)
        first = words.repeat(-(-length // len(words)), 1)[:length]
        noise = torch.randn(first.shape, generator=generator).to(first)
        self.context = nn.Parameter(first + NOISE * noise)

    def forward(
        self, model: DualEncoder, tokens: Int[Tensor, "classes context_length"]
    ) -> Float[Tensor, "classes d"]:
        """The text features of the classes, of length 1; gradients flow to the context."""
        return functional.normalize(model.encode_texts(tokens, context=self.context), dim=-1)

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the context in float16."""
        return {CONTEXT_KEY: self.context.detach().to(torch.float16)}


def prompted_features(
    model: DualEncoder,
    tokens: Int[Tensor, "classes context_length"],
    context: Float[Tensor, "length width"],
) -> Float[Tensor, "classes d"]:
    """The text features of all classes under a stored context, of length 1, as constants."""
    vectors = context.to(device=model.device, dtype=torch.float32)
    with torch.no_grad():
        features = [
            model.encode_texts(part.to(model.device), context=vectors)
            for part in torch.split(tokens, CLASS_BATCH)
        ]
    return functional.normalize(torch.cat(features), dim=-1)
