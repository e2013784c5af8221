"""The durability contract, checked from outside: plain SQL, and the log that workers keep.

Nothing here knows the store. A snapshot is every row of one transaction; a rule looks at the rows
of one study and says in a sentence what it finds broken.
"""

import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]

_STATEMENTS = {
    "study": "SELECT * FROM study ORDER BY id",
    "trial": "SELECT * FROM trial ORDER BY study_id, number",
    "attempt": "SELECT * FROM attempt ORDER BY trial_id, number",
    "front": "SELECT * FROM front ORDER BY trial_id",
    "hypervolume": "SELECT * FROM hypervolume ORDER BY study_id, completed",
    "event": "SELECT * FROM event ORDER BY id",
    "intermediate": "SELECT * FROM intermediate ORDER BY trial_id, step",
    "cell": "SELECT * FROM cell ORDER BY id",
    "evaluation": "SELECT * FROM evaluation ORDER BY key",
    "stage_artefact": "SELECT * FROM stage_artefact ORDER BY key",
}
_JSON = frozenset(
    {"spec", "objectives", "reference", "content", "params", "constraints", "metrics"}
    | {"configuration"}
)
_TIMES = frozenset({"at", "since"})
_MEASURED = ("complete", "pruned")
_FINISHED = (*_MEASURED, "failed")
_OWN_FAILURES = ("user_error", "out_of_memory", "invalid_metric")
# Round-off of sums in another order.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Snapshot:
    """Every row of the database at one moment; table name to rows, times in seconds."""

    tables: Mapping[str, Sequence[Row]]

    @property
    def studies(self) -> dict[str, "StudyRows"]:
        """The rows of each study by its name."""
        return {row["name"]: StudyRows.of(self, row) for row in self.tables["study"]}


@dataclass(frozen=True)
class StudyRows:
    """The rows of one study; attempts by trial number."""

    study: Row
    trials: Sequence[Row]
    attempts: Mapping[int, Sequence[Row]]
    front: frozenset[int]
    volumes: Sequence[Row]
    events: Sequence[Row]

    @classmethod
    def of(cls, snapshot: Snapshot, study: Row) -> "StudyRows":
        """Picks the rows that belong to a study."""
        trials = [row for row in snapshot.tables["trial"] if row["study_id"] == study["id"]]
        numbers = {row["id"]: row["number"] for row in trials}
        attempts: dict[int, list[Row]] = {number: [] for number in numbers.values()}
        for row in snapshot.tables["attempt"]:
            if row["trial_id"] in numbers:
                attempts[numbers[row["trial_id"]]].append(row)
        own = {
            table: [row for row in snapshot.tables[table] if row["study_id"] == study["id"]]
            for table in ("front", "hypervolume", "event")
        }
        front = frozenset(numbers.get(row["trial_id"], -1) for row in own["front"])
        return cls(study, trials, attempts, front, own["hypervolume"], own["event"])

    @property
    def complete(self) -> list[Row]:
        """The trials that have a result."""
        return [row for row in self.trials if row["state"] == "complete"]

    @property
    def planned(self) -> int:
        """How many trials the job asks for."""
        return int(self.study["spec"]["stop"]["trials"])

    def values(self, trial: Row) -> tuple[float, ...]:
        """A trial's objectives, in the order of the study."""
        return tuple(float(trial[name]) for name in self.study["objectives"])


_HAS_NO_TABLES = re.compile(r"no such table|does not exist")


def read_snapshot(url: str) -> Snapshot:
    """Every row of `sqlite:///PATH` or `postgresql://...`, in one transaction.

    A database without tables, as a driver leaves it that is killed at its start, has none.
    """
    try:
        return _read(url)
    except (sqlite3.OperationalError, psycopg.errors.UndefinedTable) as error:
        if not _HAS_NO_TABLES.search(str(error)):
            raise
        return Snapshot({name: [] for name in _STATEMENTS})


def _read(url: str) -> Snapshot:
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as file:
            file.row_factory = sqlite3.Row
            file.execute("BEGIN")
            found = {name: file.execute(text).fetchall() for name, text in _STATEMENTS.items()}
            return Snapshot({name: [_row(dict(row)) for row in found[name]] for name in found})
    with psycopg.connect(url, row_factory=dict_row) as server:
        server.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        rows = {name: server.execute(text).fetchall() for name, text in _STATEMENTS.items()}
        return Snapshot({name: [_row(row) for row in rows[name]] for name in rows})


def _row(row: Row) -> Row:
    """The row as both databases would give it."""
    return {name: _value(name, value) for name, value in row.items()}


def _value(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return value.timestamp()
    if not isinstance(value, str):
        return value
    if name in _JSON:
        return json.loads(value)
    if name in _TIMES or name.endswith("_at"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
    return value


def violations(now: Snapshot, before: Snapshot | None = None) -> list[str]:
    """What breaks the contract in the rows, whatever runs at the moment.

    Args:
        now: The rows.
        before: Rows of an earlier moment, of which nothing finished may be missing or changed.
    """
    found = [] if before is None else list(_kept(before, now))
    for name, study in now.studies.items():
        found += [f"study {name}: {text}" for rule in RULES for text in rule(study)]
    return found


def charged(study: StudyRows) -> list[str]:
    """What was recorded as the job's own failure, where only processes were killed."""
    return [
        f"attempt {row['number']} at trial {number} ended with {row['cause']}: {row['message']}"
        for number, attempts in study.attempts.items()
        for row in attempts
        if row["cause"] in _OWN_FAILURES
    ]


def unfinished(study: StudyRows) -> list[str]:
    """What is left open in a study that ended complete."""
    return [f"study {study.study['name']}: {text}" for text in _left_open(study)]


def _left_open(study: StudyRows) -> Iterator[str]:
    if study.study["state"] != "complete":
        yield f"it is {study.study['state']}: {study.study['message']}"
    if study.study["owner"] is not None:
        yield f"{study.study['owner']} still has its lease"
    for trial in study.trials:
        if trial["state"] not in _FINISHED:
            yield f"trial {trial['number']} is {trial['state']}"
    if len(study.trials) != study.planned:
        yield f"it has {len(study.trials)} of {study.planned} trials"
    for trial in study.complete:
        wanted = trial["number"] in study.front or trial["origin"] == "baseline"
        if wanted and trial["test_error"] is None:
            yield f"trial {trial['number']} was not tested"


def _kept(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """What was there for good, and is missing or changed."""
    yield from _same(before, now, "event", lambda row: row["id"])
    yield from _same(before, now, "cell", lambda row: row["digest"])
    yield from _same(before, now, "evaluation", lambda row: row["key"])
    yield from _same(before, now, "stage_artefact", lambda row: row["key"])
    yield from _same(before, now, "hypervolume", lambda row: (row["study_id"], row["completed"]))
    finished = {row["id"] for row in before.tables["trial"] if row["state"] in _FINISHED}
    yield from _same(
        before, now, "trial", lambda row: (row["study_id"], row["number"]), _has_ended, _untested
    )
    yield from _same(before, now, "attempt", lambda row: row["id"], _has_stopped)
    yield from _same(
        before,
        now,
        "intermediate",
        lambda row: (row["trial_id"], row["step"]),
        lambda row: row["trial_id"] in finished,
    )
    yield from _tests_kept(before, now)


def _has_ended(row: Row) -> bool:
    return row["state"] in _FINISHED


def _has_stopped(row: Row) -> bool:
    return row["finished_at"] is not None


def _untested(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("test_")}


def _same(
    before: Snapshot,
    now: Snapshot,
    table: str,
    key: Callable[[Row], object],
    counts: Callable[[Row], bool] = lambda _: True,
    shown: Callable[[Row], Row] = lambda row: row,
) -> Iterator[str]:
    """The rows that counted and are gone or are others now."""
    present = {key(row): row for row in now.tables[table]}
    for row in filter(counts, before.tables[table]):
        other = present.get(key(row))
        if other is None:
            yield f"the {table} {key(row)} is gone: {row}"
        elif shown(other) != shown(row):
            changed = {n: (v, other[n]) for n, v in shown(row).items() if other[n] != v}
            yield f"the {table} {key(row)} has changed: {changed}"


def _tests_kept(before: Snapshot, now: Snapshot) -> Iterator[str]:
    present = {row["id"]: row for row in now.tables["trial"]}
    for row in before.tables["trial"]:
        for name, value in row.items():
            is_known = name.startswith("test_") and value is not None
            if is_known and row["id"] in present and present[row["id"]][name] != value:
                yield f"{name} of trial {row['number']} has changed from {value}"


def _is_numbered_once(study: StudyRows) -> Iterator[str]:
    numbers = [row["number"] for row in study.trials]
    if numbers != list(range(len(numbers))):
        yield f"its trials are not numbered once each from 0: {numbers}"
    digests = Counter(row["configuration_digest"] for row in study.trials)
    for digest, count in digests.items():
        if count > 1:
            yield f"configuration {digest} is counted {count} times"


def _has_one_result_a_trial(study: StudyRows) -> Iterator[str]:
    results = Counter(row["trial"] for row in study.events if row["kind"] == "completed")
    for trial in study.trials:
        number, expected = trial["number"], int(trial["state"] == "complete")
        if results[number] != expected:
            yield f"trial {number} is {trial['state']}, and has {results[number]} results"
    counted = [row["completed"] for row in study.volumes]
    if counted != list(range(1, len(study.complete) + 1)):
        yield f"{len(study.complete)} trials are complete, but results were counted as {counted}"
    tested = Counter(
        n for row in study.events if row["kind"] == "tested" for n in row["content"]["trials"]
    )
    for number, count in tested.items():
        if count > 1:
            yield f"trial {number} was tested {count} times"


def _gives_causes(study: StudyRows) -> Iterator[str]:
    """One successful attempt a measured trial; every other one that ended has a cause."""
    for trial in study.trials:
        number, state = trial["number"], trial["state"]
        attempts = study.attempts[number]
        if [row["number"] for row in attempts] != list(range(1, trial["attempt"] + 1)):
            yield f"trial {number} is at attempt {trial['attempt']}, but has {len(attempts)}"
            continue
        *earlier, last = attempts
        for row in earlier:
            if row["cause"] is None or row["finished_at"] is None:
                yield f"attempt {row['number']} at trial {number} ended without a cause"
        if (last["cause"] is None) != (state in ("running", *_MEASURED)):
            yield f"trial {number} is {state}, but its last attempt's cause is {last['cause']}"
        if (last["finished_at"] is None) != (state == "running"):
            yield f"trial {number} is {state}, but its last attempt ended: {last['finished_at']}"


def _has_the_front_of_its_trials(study: StudyRows) -> Iterator[str]:
    points = {row["number"]: study.values(row) for row in study.complete if row["feasible"]}
    expected = {
        number
        for number, point in points.items()
        if not any(_dominates(other, point) for other in points.values())
    }
    if study.front != expected:
        missing, wrong = sorted(expected - study.front), sorted(study.front - expected)
        yield f"its front lacks trials {missing}, and has trials {wrong} too many"


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _has_hypervolumes_that_grow(study: StudyRows) -> Iterator[str]:
    """Each is that of the trials complete so far, so the last one is that of the front."""
    recorded = [row["hypervolume"] for row in study.volumes]
    if any(later < earlier for earlier, later in pairwise(recorded)):
        yield f"its hypervolume falls: {recorded}"
    trials = {row["number"]: row for row in study.complete}
    order = [row["trial"] for row in study.events if row["kind"] == "completed"]
    points: list[tuple[float, ...]] = []
    for position, (number, volume) in enumerate(zip(order, recorded, strict=False), start=1):
        trial = trials.get(number)
        if trial is not None and trial["feasible"]:
            points.append(study.values(trial))
        exact = hypervolume(
            points, [study.study["reference"][n] for n in study.study["objectives"]]
        )
        if not math.isclose(volume, exact, abs_tol=_TOLERANCE):
            yield f"the hypervolume of its first {position} results is {exact}, recorded {volume}"


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """The share of the box up to the reference that some point dominates, cell by cell."""
    scaled = [[v / r for v, r in zip(point, reference, strict=True)] for point in points]
    inside = [point for point in scaled if all(value < 1 for value in point)]
    edges = [sorted({point[axis] for point in inside} | {1.0}) for axis in range(len(reference))]
    total = 0.0
    for cell in product(*(pairwise(axis) for axis in edges)):
        corner = [low for low, _ in cell]
        if any(all(v <= c for v, c in zip(point, corner, strict=True)) for point in inside):
            total += math.prod(high - low for low, high in cell)
    return total


def _has_epochs_that_grow(study: StudyRows) -> Iterator[str]:
    taken = [row for row in study.events if row["kind"] in ("acquired", "taken_over")]
    epochs = [row["content"]["epoch"] for row in taken]
    if epochs != list(range(1, len(epochs) + 1)):
        yield f"its drivers had the epochs {epochs}"
    if study.study["epoch"] != len(epochs):
        yield f"its epoch is {study.study['epoch']} after {len(epochs)} drivers"


def _follows_from_its_events(study: StudyRows) -> Iterator[str]:
    """Replaying the log gives the state and the attempt of each trial."""
    replayed: dict[int, tuple[str, int]] = {}
    for row in study.events:
        step = _STEPS.get(row["kind"])
        if step is None:
            continue
        number = row["trial"]
        state, attempt = replayed.get(number, ("", 0))
        expected, state, more = step
        if row["kind"] == "restarted" and row["content"]["attempt"] != attempt + 1:
            yield f"trial {number} restarts as attempt {row['content']['attempt']}"
        if replayed.get(number, ("", 0))[0] not in expected:
            yield f"trial {number} is {row['kind']} while {replayed.get(number, ('new',))[0]}"
        replayed[number] = (state, attempt + more)
    stored = {row["number"]: (row["state"], row["attempt"]) for row in study.trials}
    for number in sorted(stored.keys() | replayed.keys()):
        if stored.get(number) != replayed.get(number):
            yield f"trial {number} is {stored.get(number)}, its events say {replayed.get(number)}"


# What happened to a trial: the states it may have had, the state it has then, further attempts.
_STEPS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "started": (("",), "running", 1),
    "restarted": (("running", "cancelled"), "running", 1),
    "attempt_failed": (("running",), "running", 1),
    "completed": (("running",), "complete", 0),
    "stopped_early": (("running",), "pruned", 0),
    "failed": (("running",), "failed", 0),
    "cancelled": (("running",), "cancelled", 0),
}

RULES: tuple[Callable[[StudyRows], Iterator[str]], ...] = (
    _is_numbered_once,
    _has_one_result_a_trial,
    _gives_causes,
    _has_the_front_of_its_trials,
    _has_hypervolumes_that_grow,
    _has_epochs_that_grow,
    _follows_from_its_events,
)


def read_witness(path: Path, start: int = 0) -> list[Row]:
    """The lines that workers added to their log after so many bytes; a torn last one is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Interruption:
    """A recovery that was taken up again: what was trained a second time.

    Attributes:
        trial: The trial's number.
        steps: Optimiser steps that were taken again.
        seconds: How long they had taken, up to the last one.
        bound_s: The same without the last step, which the checkpoint's interval must cover.
    """

    trial: int
    steps: int
    seconds: float
    bound_s: float


@dataclass
class Redone:
    """Work that was done twice.

    Attributes:
        completed: Attempts that began after their trial was complete in the database.
        unrecorded: Attempts that began although an earlier one had spooled its result before
            the next one was written to the database.
        late: The same, where the earlier one came too late: it had been given up already.
        contradictions: Results in the database that no worker reported so.
        overlaps: Trials that two processes trained at the same time.
        pinned: Attempts that were lost, and begun again by the process that had lost them.
        interruptions: Trainings that were taken up again.
    """

    completed: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    interruptions: list[Interruption] = field(default_factory=list)

    def beyond(self, checkpoint_s: float) -> list[str]:
        """The interruptions that cost more than a checkpoint's interval and one step."""
        return [
            f"trial {i.trial} lost {i.steps} steps of {i.seconds:.2f} s of training, "
            f"{i.bound_s:.2f} s without the last step; checkpoints are {checkpoint_s} s apart"
            for i in self.interruptions
            if i.bound_s > checkpoint_s
        ]


def redone(study: StudyRows, lines: Sequence[Row]) -> Redone:
    """What the log of the workers, of this study alone, says against its rows."""
    found = Redone()
    for trial in study.trials:
        own = [line for line in lines if line.get("number") == trial["number"]]
        _find_redone_attempts(found, study, trial, own)
        _find_contradictions(found, study, trial, own)
        _find_pinned(found, study.attempts[trial["number"]], own)
    training = [line for line in lines if line["event"].startswith("training")]
    for name in sorted({line["checkpoint"] for line in training}):
        runs = list(_runs([line for line in training if line["checkpoint"] == name]))
        _find_interruptions(found, int(Path(name).stem), runs)
    return found


def _find_redone_attempts(found: Redone, study: StudyRows, trial: Row, lines: list[Row]) -> None:
    number = trial["number"]
    given_up_s = {row["number"]: row["finished_at"] for row in study.attempts[number]}
    ended: dict[int, float] = {}
    for line in lines:
        attempt, at_s = line["attempt"], line["at_s"]
        if line["event"] == "attempt ended" and "cause" not in line["outcome"]:
            ended.setdefault(attempt, at_s)
        if line["event"] != "attempt started":
            continue
        text = f"attempt {attempt} at trial {number} began at {at_s:.3f}"
        if trial["state"] in _MEASURED and at_s > trial["finished_at"]:
            found.completed.append(f"{text}, the trial was {trial['state']} already")
        for earlier, ended_s in ended.items():
            if earlier >= attempt:
                continue
            in_time = ended_s < (given_up_s.get(earlier) or math.inf)
            text = f"{text}, attempt {earlier} had its result at {ended_s:.3f}"
            (found.unrecorded if in_time else found.late).append(text)


def _find_contradictions(found: Redone, study: StudyRows, trial: Row, lines: list[Row]) -> None:
    """A worker must have begun what is complete, and have found what is recorded."""
    number, attempt = trial["number"], trial["attempt"]
    if trial["state"] != "complete" or trial["cached"]:
        return
    own = [line for line in lines if line["attempt"] == attempt]
    begun = [line for line in own if line["event"] == "attempt started"]
    if not begun:
        found.contradictions.append(f"no worker began attempt {attempt} at trial {number}")
    if any(line["configuration"] != trial["configuration"] for line in begun):
        found.contradictions.append(f"trial {number} was begun with another configuration")
    for line in own:
        if line["event"] != "attempt ended":
            continue
        values = line["outcome"].get("values", {})
        reported = tuple(values.get(name) for name in study.study["objectives"])
        if reported != study.values(trial):
            text = f"trial {number} has {study.values(trial)}, its worker reported {reported}"
            found.contradictions.append(text)


def _find_pinned(found: Redone, attempts: Sequence[Row], lines: list[Row]) -> None:
    started = {line["attempt"]: line for line in lines if line["event"] == "attempt started"}
    for row in attempts:
        lost, again = started.get(row["number"]), started.get(row["number"] + 1)
        if row["cause"] != "node_lost" or lost is None or again is None:
            continue
        if lost["pid"] == again["pid"]:
            text = f"attempt {again['attempt']} at trial {again['number']} began where the last"
            found.pinned.append(f"{text} one was lost: in process {again['pid']}")


def _runs(lines: Iterable[Row]) -> Iterator[list[Row]]:
    """A trial's trainings, each from where it began, by the order in which they began."""
    runs: list[list[Row]] = []
    current: dict[int, list[Row]] = {}
    for line in lines:
        run = current.get(line["pid"])
        goes_back = run is not None and line["step"] < run[-1]["step"]
        if run is None or goes_back or line["event"] == "training resumed":
            run = current[line["pid"]] = []
            runs.append(run)
        run.append(line)
    yield from runs


def _find_interruptions(found: Redone, number: int, runs: Sequence[Sequence[Row]]) -> None:
    for place, run in enumerate(runs[1:], start=1):
        first = run[0]
        from_step = first["step"] if first["event"] == "training resumed" else 0
        before = [
            line
            for earlier in runs[:place]
            for line in earlier
            if line["at_s"] <= first["at_s"] and line["event"] != "training resumed"
        ]
        if any(line["at_s"] > first["at_s"] for earlier in runs[:place] for line in earlier):
            found.overlaps.append(f"trial {number} was trained by {_pids(runs)} at once")
        lost = sorted(
            (line["step"], line["at_s"])
            for line in runs[place - 1]
            if line in before and line["event"] == "training stepped" and line["step"] > from_step
        )
        if not lost:
            continue
        kept = [line["at_s"] for line in before if line["step"] == from_step]
        since_s = max(kept, default=runs[place - 1][0]["at_s"])
        *_, last = [since_s, *(at_s for _, at_s in lost[:-1])]
        interruption = Interruption(number, len(lost), lost[-1][1] - since_s, last - since_s)
        found.interruptions.append(interruption)


def _pids(runs: Sequence[Sequence[Row]]) -> str:
    return ", ".join(sorted({str(run[0]["pid"]) for run in runs}))
