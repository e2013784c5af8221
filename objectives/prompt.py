"""The learnable text prompt of P4Q: one context for all classes, before the class's name."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from bitfront.vlm import DualEncoder

CLASS_BATCH = 256
CONTEXT_KEY = "context"


class Prompt(nn.Module):
    """A context of `length` vectors right after the start token; the class's name comes last.

    The context is a registered parameter, so that the optimiser gets it and a checkpoint
    holds it.
    """

    def __init__(self, length: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        # CoOp and P4Q draw the context like CLIP draws its token embeddings.
        self.context = nn.Parameter(0.02 * torch.randn(length, width, generator=generator))

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
