"""Dealing a person's samples out to the four splits."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from bitfront.errors import MissingData
from bitfront.spec import DataSpec
from objectives.data.task import SplitName

# A split's pixels are kept in memory while they take at most so much.
HELD_NBYTES = 512 << 20


def split_samples(names: Sequence[str], title: str, spec: DataSpec) -> dict[SplitName, list[int]]:
    """The samples of each split, disjoint, in a random order.

    The order depends on the seed and on the samples' names only, so a sample that is added or
    taken away moves no other one.

    Args:
        names: What tells one sample from another.
        title: What a message calls their source.
        spec: How many samples each split takes, and the seed.

    Raises:
        MissingData: There are fewer samples than the splits ask for.
    """
    wanted = {name: int(getattr(spec.samples, name.value)) for name in SplitName}
    total = sum(wanted.values())
    if len(names) < total:
        asked = ", ".join(f"{name} {count}" for name, count in wanted.items())
        raise MissingData(
            f"the {title} has {len(names)} samples, but the splits ask for "
            f"{total} ({asked}): lower data.samples"
        )
    order = sorted(
        range(len(names)),
        key=lambda index: hashlib.sha256(f"{spec.seed}/{names[index]}".encode()).digest(),
    )
    dealt, start = {}, 0
    for name, count in wanted.items():
        dealt[name] = order[start : start + count]
        start += count
    return dealt


def fingerprint(content: bytes, answer: str) -> str:
    """The hash of a sample's content and of what is right for it."""
    return hashlib.sha256(content + f"/{answer}".encode()).hexdigest()


def first_of_each(kinds: Sequence[Hashable], count: int) -> Int[Tensor, " n"]:
    """The places of the first few samples of each kind, in order; a count of 0 takes all."""
    seen: Counter[Hashable] = Counter()
    places = []
    for place, kind in enumerate(kinds):
        if not count or seen[kind] < count:
            places.append(place)
        seen[kind] += 1
    return torch.tensor(places)
