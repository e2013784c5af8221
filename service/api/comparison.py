"""Two studies side by side: what differs in their jobs, and which of them found more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitfront.errors import NothingFits
from bitfront.objective import BY_NAME
from bitfront.units import percent_text
from search.front import hypervolume
from service.api.found import FoundConfiguration
from service.api.front import Front
from service.api.study import Study
from service.study.spec_diff import spec_differences
from service.views.html import pairs_html, table_html
from service.views.render import MISSING, optional
from service.views.tables import table
from storage.records import StudyRecord

_MOST_SIZES: Final = 8
_SIZE: Final = BY_NAME["nbytes"]
# What two studies must share so that their errors are of the same thing.
_SAME: Final = ("model", "selection")


@dataclass(frozen=True, slots=True)
class AtSize:
    """The best configuration of each study within a size; None where nothing fits.

    Attributes:
        nbytes: The size.
        found: The first study's and the second one's.
    """

    nbytes: int
    found: tuple[FoundConfiguration | None, FoundConfiguration | None]

    @property
    def difference(self) -> float | None:
        """The second error minus the first; None where one is missing."""
        first, second = self.found
        return None if first is None or second is None else second.error - first.error


@dataclass(frozen=True)
class Comparison:
    """Two studies side by side.

    Attributes:
        names: Of the studies.
        job: What differs in their jobs, a line each, the second beside the first.
        caveats: Why their errors are not of the same thing; empty where they are.
        sides: Name of a figure, and what each study has of it.
        objectives: What both minimise, and the hypervolumes are over.
        hypervolumes: Shares of the box up to the worse of both reference points; None where one
            has no front yet.
        sizes: The best of each within sizes of both fronts, the smallest first.
    """

    names: tuple[str, str]
    job: tuple[str, ...]
    caveats: tuple[str, ...]
    sides: tuple[tuple[str, str, str], ...]
    objectives: tuple[str, ...]
    hypervolumes: tuple[float, float] | None
    sizes: tuple[AtSize, ...]

    @classmethod
    def of(cls, first: Study, second: Study) -> "Comparison":
        """The comparison of two studies of a database, as they stand now."""
        records = first.record, second.record
        fronts = first.front(), second.front()
        specs = first.spec, second.spec
        shared = [str(name) for name in specs[0].objectives if name in specs[1].objectives]
        differences = spec_differences(*specs)
        return cls(
            (first.name, second.name),
            tuple(_side_by_side(line) for line in differences if not line.startswith("study ")),
            tuple(_caveats(records)),
            tuple(_sides(first, second, fronts)),
            tuple(shared),
            _hypervolumes(records, fronts, shared),
            tuple(_at_sizes(first, second, fronts)),
        )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content."""
        return {
            "studies": list(self.names),
            "job": list(self.job),
            "caveats": list(self.caveats),
            "figures": {name: list(values) for name, *values in self.sides},
            "objectives": list(self.objectives),
            "hypervolumes": None if self.hypervolumes is None else list(self.hypervolumes),
            "sizes": [
                {
                    "max_nbytes": at.nbytes,
                    "trials": [None if one is None else one.number for one in at.found],
                    "errors": [None if one is None else one.error for one in at.found],
                    "nbytes": [None if one is None else one.nbytes for one in at.found],
                }
                for at in self.sizes
            ],
        }

    def __str__(self) -> str:
        parts = [table(["", *self.names], self._cells(), left=(0,))]
        if self.sizes:
            parts.append(f"The best within a size, by the estimated error:\n\n{self._table()}")
        differences = "\n".join(f"  {line}" for line in self.job) or "  nothing"
        parts.append(f"What differs in the job, {self.names[0]} | {self.names[1]}:\n{differences}")
        if self.caveats:
            parts.append("\n".join(f"careful: {caveat}" for caveat in self.caveats))
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        title = " and ".join(self.names)
        header, rows = self._size_cells()
        left = (0,)
        jobs = pairs_html([(line, "") for line in self.job] or [("nothing", "")], "in the job")
        return (
            table_html(["", *self.names], self._cells(), left=left, title=title)
            + table_html(header, rows, title="the best within a size")
            + jobs
        )

    def _cells(self) -> list[list[str]]:
        volumes = self.hypervolumes
        shown = [MISSING, MISSING] if volumes is None else [f"{share:.4f}" for share in volumes]
        over = f"hypervolume over {' and '.join(self.objectives)}"
        return [*map(list, self.sides), [over, *shown]]

    def _table(self) -> str:
        header, rows = self._size_cells()
        return table(header, rows)

    def _size_cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["size"]
        for name in self.names:
            header += [name, "trial"]
        rows = []
        for at in self.sizes:
            row = [_SIZE.write(at.nbytes)]
            for one in at.found:
                row += (
                    [MISSING, MISSING]
                    if one is None
                    else [percent_text(one.error), str(one.number)]
                )
            gap = at.difference
            rows.append([*row, MISSING if gap is None else f"{100 * gap:+.1f}"])
        return [*header, "points"], rows


def _side_by_side(line: str) -> str:
    """`field was A, is B` of two jobs as `field: A | B`."""
    field, _, rest = line.partition(" was ")
    before, _, after = rest.partition(", is ")
    return f"{field}: {before} | {after}"


def _caveats(records: tuple[StudyRecord, StudyRecord]) -> list[str]:
    first, second = (record.provenance for record in records)
    words = {"model": "their models differ", "selection": "their selection samples differ"}
    return [
        f"{words[fact]}: their errors are not of the same thing"
        for fact in _SAME
        if first.get(fact) != second.get(fact)
    ]


def _sides(first: Study, second: Study, fronts: tuple[Front, Front]) -> list[tuple[str, str, str]]:
    one, two = first.status, second.status

    def lowest(front: Front) -> str:
        return optional(min((found.error for found in front), default=None), percent_text)

    rows = [
        ("state", first.state_text, second.state_text),
        ("trials", str(one.finished), str(two.finished)),
        ("front", str(len(fronts[0])), str(len(fronts[1]))),
        ("lowest error", lowest(fronts[0]), lowest(fronts[1])),
    ]
    budgets = (one.best_error_at_budget, two.best_error_at_budget)
    rows.append(("best error at its budget", *(optional(it, percent_text) for it in budgets)))  # type: ignore[arg-type]  # two of them
    return rows


def _hypervolumes(
    records: tuple[StudyRecord, StudyRecord], fronts: tuple[Front, Front], objectives: Sequence[str]
) -> tuple[float, float] | None:
    first, second = (record.reference or {} for record in records)
    if not all(name in first and name in second for name in objectives) or len(objectives) < 2:
        return None
    reference = [max(first[name], second[name]) for name in objectives]
    if not all(fronts):
        return None

    def volume(front: Front) -> float:
        values = [[found.values[name] for name in objectives] for found in front]
        return hypervolume(np.array(values), reference)

    return volume(fronts[0]), volume(fronts[1])


def _at_sizes(first: Study, second: Study, fronts: tuple[Front, Front]) -> list[AtSize]:
    """At sizes of both fronts, evenly chosen where there are many."""
    known = sorted({found.nbytes for front in fronts for found in front})
    count = min(_MOST_SIZES, len(known))
    places = [place * (len(known) - 1) // max(1, count - 1) for place in range(count)]
    sizes = [known[place] for place in places]
    return [AtSize(nbytes, (_best(first, nbytes), _best(second, nbytes))) for nbytes in sizes]


def _best(study: Study, nbytes: int) -> FoundConfiguration | None:
    try:
        return study.best(max_nbytes=nbytes)
    except NothingFits:
        return None
