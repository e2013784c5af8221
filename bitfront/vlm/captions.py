"""Where a caption lies in its row of tokens, and how prompt vectors go in front of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.errors import SpecError

Tokenize = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, slots=True)
class CaptionLayout:
    """How a tokenizer lays captions out.

    Attributes:
        start: Start tokens in front of the caption: 1 for CLIP, 0 for SigLIP.
        end: The token behind the caption: end of text, or padding where there is none.
    """

    start: int
    end: int

    @classmethod
    def of(cls, tokenize: Tokenize) -> "CaptionLayout":
        """The layout that a tokenizer shows on two different words and an empty caption."""
        one, two, empty = tokenize(["one", "two", ""])
        start = int((one != two).int().argmax())
        return cls(start, int(empty[start]))

    def ends(self, tokens: Int[Tensor, "n length"]) -> Int[Tensor, " n"]:
        """The position of each row's end token; the row's length where it has none."""
        is_end = tokens == self.end
        is_end[:, : self.start] = False
        position = is_end.int().argmax(dim=1)
        return torch.where(is_end.any(dim=1), position, tokens.shape[1])

    def make_room(self, tokens: Int[Tensor, "n length"], count: int) -> Int[Tensor, "n length"]:
        """The rows with the captions moved right by `count` positions, behind the start token.

        The free positions repeat a row's first token: it is neither an end token nor padding,
        so pooling by either still finds the right place.

        Raises:
            SpecError: A caption and its end token do not fit any more.
        """
        length = tokens.shape[1]
        longest = int(self.ends(tokens).max())
        if longest + count >= length:
            raise SpecError(
                f"{count} prompt vectors do not fit: the longest caption takes {longest} of the "
                f"text tower's {length} positions and its end token one more; "
                "use a smaller context_length or shorter captions"
            )
        room = tokens[:, :1].expand(-1, count)
        return torch.cat([tokens[:, : self.start], room, tokens[:, self.start : -count]], dim=1)

    def fill(
        self, embedded: Float[Tensor, "n length d"], context: Float[Tensor, "m d"]
    ) -> Float[Tensor, "n length d"]:
        """The embedded tokens with the context vectors in the room made for them."""
        behind = self.start + len(context)
        vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, : self.start], vectors, embedded[:, behind:]], dim=1)
