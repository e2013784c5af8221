"""Splitting a person's samples: four disjoint splits, and no image in two of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from bitfront.errors import InvalidSample, MissingData
from bitfront.spec import DataSource, DataSpec, Samples
from objectives.data.inspection import Inspection, Inspector
from objectives.data.sample import LazySamples, Sample
from objectives.data.split_name import SplitName

if TYPE_CHECKING:
    from bitfront.reference.scenes import SplitTitle

# A split's pixels are kept in memory while they take at most so much.
HELD_NBYTES = 512 << 20

_SHOWN: Final = 5


class Source(Protocol):
    """Samples that can be told apart, each with its encoded image."""

    @property
    def title(self) -> str:
        """What a message calls it."""

    @property
    def names(self) -> Sequence[str]:
        """What tells one sample from another, whatever is added or taken away beside it."""

    def group(self, index: int) -> str:
        """What samples share that must not lie in two splits, such as their image's name."""

    def sample(self, index: int) -> Sample | None:
        """The encoded image of a sample; None for one that needs none."""

    def where(self, index: int) -> str:
        """Where a person finds the sample."""


OwnSource = TypeVar("OwnSource", bound=Source)
Sources = Mapping[SplitName, OwnSource]
"""Where each split takes its samples."""


@dataclass(frozen=True)
class Splits:
    """The samples of each split, in a fixed random order.

    Attributes:
        indices: Into the source; no image lies in two splits.
        left_out: What was met on the way and not taken, with how often.
        note: How the splits became smaller than the usual ones; empty where they did not.
    """

    indices: Mapping[SplitName, list[int]]
    left_out: Counter[str]
    note: str = ""


def sources_of(spec: DataSpec, open_source: Callable[[DataSpec], OwnSource]) -> Sources[OwnSource]:
    """The source of each split: that of `data.path`, or of its own path in `data.splits`.

    Splits of one path share a source.

    Raises:
        BitfrontError: As `open_source` does.
    """
    paths = {name: spec.splits.given.get(name.value, spec.path) for name in SplitName}
    opened = {
        path: open_source(spec.model_copy(update={"path": path}))
        for path in dict.fromkeys(paths.values())
    }
    return {name: opened[path] for name, path in paths.items()}


def chosen_sources(
    spec: DataSpec,
    inspector: Inspector,
    drawn: Callable[["SplitTitle", int, int], OwnSource],
    listed: Callable[[DataSpec], OwnSource],
) -> dict[SplitName, tuple[OwnSource, Sequence[int]]]:
    """The source of each split with the samples of it: all that are drawn, or some that are listed.

    Args:
        spec: The job's data.
        inspector: Opens images.
        drawn: Makes the bundled samples of a split: of its name, their number and a seed.
        listed: Opens a person's own.

    Raises:
        BitfrontError: As `listed` and `split_samples` do.
    """
    if spec.source is DataSource.REFERENCE:
        counts = {name: int(getattr(spec.samples, name.value)) for name in SplitName}
        return {name: (drawn(name.value, n, spec.seed), range(n)) for name, n in counts.items()}
    sources = sources_of(spec, listed)
    found = split_samples(sources, spec, inspector).indices
    return {name: (sources[name], indices) for name, indices in found.items()}


def split_samples(sources: Sources[Source], spec: DataSpec, inspector: Inspector) -> Splits:
    """The samples of each split, disjoint, in a random order; each one's image can be read.

    The order depends on the seed and on the samples' names only, so a sample that is added or
    taken away moves no other one. Samples of one group follow each other; a copy of an image
    that lies in another split already is left out. Where a job does not say how many samples it
    takes, and there are fewer than usual, each split takes its share of them.

    Args:
        sources: The samples of each split; splits may share them.
        spec: How many samples each split takes, the seed, and whether unreadable ones are
            left out.
        inspector: Opens each sample that is taken.

    Raises:
        MissingData: There are fewer samples than the splits ask for.
        InvalidSample: Some cannot be read; the message names the first ones and their number.
    """
    owners: dict[str, SplitName] = {}
    indices: dict[SplitName, list[int]] = {}
    left_out: Counter[str] = Counter()
    notes = []
    for source in {id(source): source for source in sources.values()}.values():
        own = [name for name in SplitName if sources[name] is source]
        found = _split_source(source, own, spec, inspector, owners)
        indices |= found.indices
        left_out += found.left_out
        notes += [found.note] if found.note else []
    ordered = {name: indices[name] for name in SplitName}
    return Splits(ordered, left_out, "; ".join(notes))


def _split_source(
    source: Source,
    names: Sequence[SplitName],
    spec: DataSpec,
    inspector: Inspector,
    owners: dict[str, SplitName],
) -> Splits:
    """The splits that a source has; the owners of images that were met become more."""
    wanted = {name: int(getattr(spec.samples, name.value)) for name in names}
    is_usual = spec.samples == Samples()
    usual, count = sum(wanted.values()), len(source.names)
    if is_usual:
        wanted = _at_most(wanted, count)
    _refuse_too_few(source.title, count, wanted, Counter())
    filling = _filled(source, spec, inspector, wanted, owners)
    while is_usual and not filling.is_full and filling.taken >= len(wanted):
        wanted = _at_most(wanted, filling.taken)
        filling = _filled(source, spec, inspector, wanted, owners)
    if not filling.is_full:
        _refuse_too_few(source.title, filling.taken, wanted, filling.left_out)
    owners |= filling.owners
    is_shrunk = sum(wanted.values()) < usual
    note = _shrunk_note(source.title, wanted, usual) if is_shrunk else ""
    return Splits(filling.indices, filling.left_out, note)


def _at_most(wanted: Mapping[SplitName, int], count: int) -> dict[SplitName, int]:
    """Splits that take so many samples at most, in their proportions; each has one at least."""
    total = sum(wanted.values())
    if count >= total:
        return dict(wanted)
    return {name: max(1, number * count // total) for name, number in wanted.items()}


def _shrunk_note(title: str, wanted: Mapping[SplitName, int], usual: int) -> str:
    sizes = ", ".join(f"{name} {number}" for name, number in wanted.items())
    return (
        f"the {title} has fewer than the usual {usual} samples, so the splits are smaller: {sizes} "
        "(data.samples chooses others)"
    )


def _filled(
    source: Source,
    spec: DataSpec,
    inspector: Inspector,
    wanted: Mapping[SplitName, int],
    owners: Mapping[str, SplitName],
) -> "_Filling":
    """The splits with as many readable samples as they want, or as there are.

    Raises:
        InvalidSample: Some cannot be read.
    """
    filling = _Filling(wanted, owners)
    order = _random_order(source, spec.seed)
    start = 0
    while start < len(order) and not filling.is_full:
        window = order[start : start + filling.missing]
        for index, inspection in zip(window, _inspected(source, window, inspector), strict=True):
            if inspection is None or inspection.problem is None:
                filling.take(index, None if inspection is None else inspection.digest)
            elif spec.skip_unreadable:
                filling.left_out["images that cannot be read"] += 1
            else:
                filling.problems.append(_told(source, index, inspection.problem))
        start += len(window)
    if filling.problems:
        raise InvalidSample(_listed(filling.problems))
    return filling


class _Filling:
    """Fills the splits one after the other."""

    def __init__(self, wanted: Mapping[SplitName, int], owners: Mapping[str, SplitName]) -> None:
        self._wanted = wanted
        self.owners = dict(owners)
        self.indices: dict[SplitName, list[int]] = {name: [] for name in wanted}
        self.left_out: Counter[str] = Counter()
        self.problems: list[str] = []

    @property
    def taken(self) -> int:
        return sum(map(len, self.indices.values()))

    @property
    def missing(self) -> int:
        return sum(self._wanted.values()) - self.taken

    @property
    def is_full(self) -> bool:
        return self.missing == 0

    @property
    def _current(self) -> SplitName:
        return next(n for n, own in self.indices.items() if len(own) < self._wanted[n])

    def take(self, index: int, digest: str | None) -> None:
        """Puts a readable sample into the split that is filled now, unless it is in another."""
        current = self._current
        if digest is not None and self.owners.setdefault(digest, current) is not current:
            self.left_out["copies of images in another split"] += 1
            return
        self.indices[current].append(index)


def _inspected(
    source: Source, indices: Sequence[int], inspector: Inspector
) -> list[Inspection | None]:
    """What each sample's image is like; None for a sample that needs none."""

    def sample(index: int) -> Sample:
        own = source.sample(index)
        assert own is not None
        return own

    own = [source.sample(index) is not None for index in indices]
    found = iter(inspector.inspect(LazySamples(sample, list(compress(indices, own)))))
    return [next(found) if has_image else None for has_image in own]


def _told(source: Source, index: int, problem: str) -> str:
    """What is wrong with a sample's image, with the place of the sample where that is another."""
    where = source.where(index)
    return problem if where in problem else f"{where}: {problem}"


def _random_order(source: Source, seed: int) -> list[int]:
    names = source.names
    groups = [source.group(index) for index in range(len(names))]
    shared = {group for group, count in Counter(groups).items() if count > 1}

    def place(text: str) -> bytes:
        # A file's name may be any bytes; Python keeps them as lone surrogates.
        return hashlib.sha256(f"{seed}/{text}".encode(errors="surrogateescape")).digest()

    def key(index: int) -> tuple[bytes, bytes]:
        own = place(names[index])
        return (place(groups[index]) if groups[index] in shared else own, own)

    return sorted(range(len(names)), key=key)


def _refuse_too_few(
    title: str, count: int, wanted: Mapping[SplitName, int], left_out: Counter[str]
) -> None:
    total = sum(wanted.values())
    if count >= total:
        return
    asked = ", ".join(f"{name} {number}" for name, number in wanted.items())
    without = "".join(f", without {number} {what}" for what, number in sorted(left_out.items()))
    raise MissingData(
        f"the {title} has {count} samples{without}, but the splits ask for "
        f"{total} ({asked}): lower data.samples"
    )


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"{len(problems)} samples cannot be used (data.skip_unreadable: true leaves them out): "
        f"{'; '.join(problems[:_SHOWN])}{more}"
    )


def fingerprint(content: bytes, answer: str) -> str:
    """The hash of a sample's content and of what is right for it."""
    return hashlib.sha256(content + f"/{answer}".encode()).hexdigest()
