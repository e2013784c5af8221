"""Rows of class names among learnable vectors, and a causal text tower that runs them packed.

A causal text tower that is pooled at one token needs nothing after that token, and has the same
hidden states wherever rows begin alike. So the rows of many classes run as one: the beginning
that all share stands there once, then follow each row's own tokens, and a mask lets every token
see its own row only. The tower's layers run as they are, on far fewer positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.plan import ClassPosition
from bitfront.vlm.models.captions import CaptionLayout, ClassNames

# Attention costs more the longer the packed row is, and several packs repeat the shared
# beginning: around this length neither is much (ViT-B/32's text tower on a CPU).
PACK_LENGTH = 384


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of tokens in which vectors take some of the places.

    Attributes:
        tokens: `(rows, length)`. Where a vector goes stands the row's first token: it is
            neither an end token nor padding, so pooling by either finds the right place.
        slots: `(rows, length)` int64: the vector that goes there, counted through the contexts
            of all rows; -1 where the token itself stays.
    """

    tokens: Int[Tensor, "rows length"]
    slots: Int[Tensor, "rows length"]

    @classmethod
    def of(
        cls,
        names: ClassNames,
        context: Float[Tensor, "m d"] | Float[Tensor, "classes m d"],
        position: ClassPosition,
    ) -> "PromptRows":
        """The rows of classes with a context, as CoOp has them (https://arxiv.org/abs/2109.01134).

        Args:
            names: The classes.
            context: The vectors, for all classes or for each its own.
            position: Where the name stands; in the middle, the second half of an odd number of
                vectors is the longer one.

        Raises:
            SpecError: A caption, the vectors and the end token do not fit.
        """
        count, tokens, layout = context.shape[-2], names.tokens, names.layout
        _check_room(layout, tokens, count)
        before = {
            ClassPosition.END: count,
            ClassPosition.MIDDLE: count // 2,
            ClassPosition.FRONT: 0,
        }[position]
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        in_name = place >= layout.start
        after_name = place >= layout.start + names.name_lengths[:, None]
        moved = place + before * in_name + (count - before) * after_name

        rows, length = tokens.shape
        longer = tokens[:, :1].repeat(1, length + count).scatter(1, moved, tokens)
        free = torch.ones_like(longer, dtype=torch.bool).scatter(1, moved, value=False)
        slots = free.cumsum(dim=1) - 1
        if context.ndim == 3:
            slots += count * torch.arange(rows, device=slots.device)[:, None]
        return cls(longer[:, :length], torch.where(free, slots, -1)[:, :length])

    def shared(self, ends: Int[Tensor, " rows"]) -> int:
        """How many first places are alike in all rows, and in front of each row's end."""
        alike = (self.tokens == self.tokens[:1]) & (self.slots == self.slots[:1])
        return min(int(alike.all(dim=0).int().cumprod(dim=0).sum()), int(ends.min()))


def _check_room(layout: CaptionLayout, tokens: Int[Tensor, "n length"], count: int) -> None:
    length = tokens.shape[1]
    longest = int(layout.ends(tokens).max())
    if count and longest + count >= length:
        raise SpecError(
            f"{count} prompt vectors do not fit: the longest caption takes {longest} of the "
            f"text tower's {length} positions and its end token one more; "
            "use a smaller context_length or shorter captions"
        )


def fill(
    embedded: Float[Tensor, "*places d"],
    slots: Int[Tensor, "*places"],
    context: Float[Tensor, "*rows m d"],
) -> Float[Tensor, "*places d"]:
    """The embedded tokens with the context's vectors in their slots; gradients reach them."""
    free = slots >= 0
    vectors = context.flatten(0, -2).to(embedded.dtype)
    return embedded.index_put((free,), vectors[slots[free]])


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows packed into one: what they share, then what each has of its own up to its end.

    Attributes:
        rows: `(n,)` the row that each packed place comes from.
        places: `(n,)` where it stands in that row.
        ends: `(rows,)` which packed place is each row's end.
        seen: `(n, n)` whether a packed place, by rows, sees another, by columns.
    """

    rows: Int[Tensor, " n"]
    places: Int[Tensor, " n"]
    ends: Int[Tensor, " rows"]
    seen: Bool[Tensor, "n n"]

    @classmethod
    def of(cls, ends: Int[Tensor, " rows"], shared: int) -> "Packing":
        """The packing of rows with these ends, whose first `shared` places are alike."""
        place = torch.arange(int(ends.max()) + 1, device=ends.device)
        taken = (place >= shared) & (place <= ends[:, None])
        taken[0, :shared] = True
        rows, places = taken.nonzero(as_tuple=True)
        seen = ((places < shared) | (rows == rows[:, None])) & (places <= places[:, None])
        return cls(rows, places, (places == ends[rows]).nonzero()[:, 0], seen)

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """What is added to attention scores: 0 where a place sees another, else minus infinity."""
        mask = torch.zeros(self.seen.shape, dtype=dtype, device=self.seen.device)
        return mask.masked_fill_(~self.seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class CausalText:
    """A text tower in which no token sees a later one, pooled at one token of each row.

    Attributes:
        pooled: `(rows, length)` tokens to the `(rows,)` places that are pooled.
        encode: `(n, d)` embedded tokens, packed, to `(rows, out)` features, not normalised.
    """

    pooled: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor, Packing], Tensor]

    def encode_rows(
        self,
        rows: PromptRows,
        context: Float[Tensor, "*classes m d"],
        token_embedding: nn.Embedding,
    ) -> Float[Tensor, "rows out"]:
        """The features of the rows, in packs of about `PACK_LENGTH` or less."""
        ends = self.pooled(rows.tokens)
        shared = rows.shared(ends)
        own = int((ends + 1 - shared).sum())
        packs = -(-own // max(1, PACK_LENGTH - shared))
        rows_a_pack = -(-len(ends) // packs)
        features = []
        for some in torch.split(torch.arange(len(ends), device=ends.device), rows_a_pack):
            packing = Packing.of(ends[some], shared)
            chosen = some[packing.rows], packing.places
            embedded = token_embedding(rows.tokens[chosen])
            features.append(self.encode(fill(embedded, rows.slots[chosen], context), packing))
        return torch.cat(features)
