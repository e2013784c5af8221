"""The learnable vectors of a P4Q prompt, and the text features that classes have under them."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bitfront.errors import InvalidModel
from bitfront.plan import ClassPosition
from bitfront.vlm import DualEncoder
from bitfront.vlm.models.captions import ClassNames

CLASS_BATCH = 256
CONTEXT_KEY = "context"
FIRST_WORDS = "a photo of a"
NOISE = 0.02


class Context(nn.Module):
    """Vectors that stand among a text tower's or a decoder's embedded tokens.

    They are a registered parameter, so that the optimiser gets them and a checkpoint holds
    them. They start as given vectors, over and over, with a little noise: a random context
    costs accuracy at first that few steps do not win back.

    Args:
        first: `(n, width)` vectors to start from.
        length: Vectors.
        copies: 0 for one context, or the number of classes that have one each.
        generator: Where the noise comes from.
    """

    def __init__(
        self,
        first: Float[Tensor, "n width"],
        length: int,
        copies: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        vectors = first.float().repeat(-(-length // len(first)), 1)[:length]
        if copies:
            vectors = vectors.expand(copies, -1, -1)
        noise = torch.randn(vectors.shape, generator=generator).to(vectors)
        self.context = nn.Parameter(vectors + NOISE * noise)

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the vectors in float16."""
        return {CONTEXT_KEY: self.context.detach().to(torch.float16)}


def stored_context(stored: Mapping[str, Tensor]) -> Tensor:
    """The vectors that a checkpoint holds, in float32.

    Raises:
        InvalidModel: It holds none.
    """
    if CONTEXT_KEY not in stored:
        raise InvalidModel("the stored recovery has no context, but its prompt needs one")
    return stored[CONTEXT_KEY].float()


def prompted_features(
    model: DualEncoder, names: ClassNames, context: Tensor, position: ClassPosition
) -> Float[Tensor, "classes d"]:
    """The text features of all classes under a stored context, of length 1, as constants.

    Args:
        model: The model, with its plan on.
        names: The classes.
        context: `(length, width)` for all classes, or `(classes, length, width)`.
        position: Where a class's name stands.
    """
    vectors = context.to(device=model.device, dtype=torch.float32)
    features = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(names)), CLASS_BATCH):
            own = vectors[rows.to(vectors.device)] if vectors.ndim == 3 else vectors
            features.append(model.encode_prompts(names.pick(rows), own, position))
    return functional.normalize(torch.cat(features), dim=-1)
