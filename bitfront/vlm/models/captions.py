"""Where a caption lies in its row of tokens, and the names of classes as such rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from bitfront.errors import InvalidModel

Tokenize = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, slots=True)
class CaptionLayout:
    """How a tokenizer lays captions out.

    Attributes:
        start: Start tokens in front of the caption: 1 for CLIP, 0 for SigLIP.
        end: The token after the caption: end of text, or padding where there is none.
    """

    start: int
    end: int

    @classmethod
    def of(cls, tokenize: Tokenize, captions: Sequence[str]) -> "CaptionLayout":
        """The layout that a tokenizer shows on captions beside an empty one.

        Raises:
            InvalidModel: A caption gets no tokens, or they do not all begin at one place.
        """
        *rows, empty = tokenize([*captions, ""])
        starts: dict[int, str] = {}
        for caption, row in zip(captions, rows, strict=True):
            differs = row != empty
            if not differs.any():
                raise InvalidModel(
                    f"the tokenizer makes no tokens of {caption!r}, so it cannot be told from an "
                    "empty caption: is it the model's own?"
                )
            starts.setdefault(int(differs.int().argmax()), caption)
        if len(starts) > 1:
            (first, one), (second, two), *_ = starts.items()
            raise InvalidModel(
                f"the tokenizer lets {one!r} begin at token {first} and {two!r} at token {second}: "
                "a prompt cannot be put before them"
            )
        start = next(iter(starts))
        return cls(start, int(empty[start]))

    def ends(self, tokens: Int[Tensor, "n length"]) -> Int[Tensor, " n"]:
        """The position of each row's end token; the row's length where it has none."""
        is_end = tokens == self.end
        is_end[:, : self.start] = False
        position = is_end.int().argmax(dim=1)
        return torch.where(is_end.any(dim=1), position, tokens.shape[1])


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Classes as they stand in a learnable prompt.

    Attributes:
        tokens: `(classes, length)` int64: each name and what follows it, as captions.
        name_lengths: `(classes,)` int64: how many tokens after the start token are the name's.
        layout: How these rows are laid out.
    """

    tokens: Int[Tensor, "classes length"]
    name_lengths: Int[Tensor, " classes"]
    layout: CaptionLayout

    @classmethod
    def of(cls, names: Sequence[str], tail: str, tokenize: Tokenize) -> "ClassNames":
        """The classes of these names, each followed by the tail.

        Where a tokenizer joins name and tail, the whole caption counts as the name.

        Raises:
            InvalidModel: A name gets no tokens, or names do not all begin at one place.
        """
        layout = CaptionLayout.of(tokenize, names)
        tokens = tokenize([name + tail for name in names])
        bare = tokenize(names)
        ends = layout.ends(bare)
        after = torch.arange(tokens.shape[1]) >= ends[:, None]
        apart = ((tokens == bare) | after).all(dim=1)
        lengths = torch.where(apart, ends, layout.ends(tokens)) - layout.start
        return cls(tokens, lengths, layout)

    def __len__(self) -> int:
        return len(self.tokens)

    def pick(self, rows: Int[Tensor, " some"]) -> "ClassNames":
        """Some of the classes, in the order of `rows`."""
        return ClassNames(self.tokens[rows], self.name_lengths[rows], self.layout)

    def to(self, device: torch.device) -> "ClassNames":
        """The same classes on the device."""
        return ClassNames(self.tokens.to(device), self.name_lengths.to(device), self.layout)
