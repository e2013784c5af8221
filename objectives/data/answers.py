"""Reading answers: what a model's text says, and whether it is right."""

import re
import string
from collections.abc import Collection

_EDGES = string.punctuation + string.whitespace


def normalise(answer: str) -> str:
    """An answer without case, outer punctuation and repeated spaces."""
    return " ".join(answer.casefold().split()).strip(_EDGES)


def parse(text: str, pattern: str | None) -> str | None:
    """The answer in a text, normalised; None where there is none.

    Args:
        text: What the model wrote, up to its end.
        pattern: A regular expression, of which the first group counts where it has one; None
            takes the whole text.
    """
    if pattern is not None:
        match = re.search(pattern, text)
        if match is None:
            return None
        text = match.group(1) if match.re.groups else match.group()
    return normalise(text or "") or None


def is_right(answer: str | None, accepted: Collection[str]) -> bool:
    """Whether a parsed answer is among the accepted ones."""
    return answer is not None and answer in map(normalise, accepted)
