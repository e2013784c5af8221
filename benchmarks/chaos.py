"""What is lost when anything is killed at any moment: studies under fire, checked from outside.

Each round kills one thing at a random moment of a study that runs on a Ray cluster of several
nodes: its driver, a worker, a node, the whole cluster, or the database server. Where nobody
drives the study any more it is resumed. Behind each round every point of the durability contract
is checked with plain SQL, against the log that workers keep (see tests/support/contract.py).
A round is over when the next trial is finished; some end sooner, when a new driver was started,
so that the next round strikes while it loads the model, profiles, or restores what is known.

    python -m benchmarks.chaos --rounds 50 --seed 0 --database both --out chaos-output

The command ends with a table, and with the exit code 1 if anything was found.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random

import click
import psutil

from benchmarks.chaos_cluster import RayCluster
from benchmarks.chaos_database import ChaosDatabase, PostgresServer, SqliteFile
from benchmarks.chaos_study import CHECKPOINT_S, ChaosStudy, environment_for, now_s
from tests.support.contract import (
    Interruption,
    Snapshot,
    charged,
    read_snapshot,
    read_witness,
    redone,
    unfinished,
    violations,
)

_POLL_S = 0.05
_STUCK_S = 240
_STUDY_S = 1200
_CLUSTER_ENDS_S = 120
_LONGEST_ABSENCE_S = 10
_NOTICE_S = 5
_SHARE_AT_START = 0.4


class Kind(StrEnum):
    """What a round kills, and how."""

    DRIVER = "driver"
    DRIVER_TERM = "driver, SIGTERM"
    WORKER = "worker"
    WORKER_TERM = "worker, SIGTERM"
    NODE = "node"
    NODE_TERM = "node, SIGTERM"
    CLUSTER = "cluster"
    CLUSTER_AND_DRIVER = "cluster and driver"
    SERVER = "database server"


DECK = (
    *(Kind.DRIVER, Kind.DRIVER, Kind.DRIVER_TERM, Kind.WORKER, Kind.WORKER, Kind.WORKER_TERM),
    *(Kind.NODE, Kind.NODE, Kind.NODE_TERM),
    *(Kind.CLUSTER, Kind.CLUSTER_AND_DRIVER, Kind.CLUSTER_AND_DRIVER),
)
"""Kinds as often as they come, in a random order; then again."""


_ENDS_DRIVER = (Kind.DRIVER, Kind.DRIVER_TERM, Kind.CLUSTER, Kind.CLUSTER_AND_DRIVER)


class Phase(StrEnum):
    """What a study is doing when the round strikes."""

    START = "start"  # a new driver loads the model, and profiles or restores
    TRIALS = "trials"
    TEST = "test split"


# Seconds from the begin of a phase within which a round strikes.
_SPANS = {Phase.START: 20.0, Phase.TRIALS: 6.0, Phase.TEST: 2.5}


@dataclass
class Round:
    """One round, and what came of it.

    Attributes:
        number: Counts from 1.
        database: The kind of database.
        kind: What was killed.
        phase: What the study was doing then.
        delay_s: Seconds into that phase.
        study: The study.
        finished: Trials that were finished since the last round.
        lost: Attempts that ended with a cause since then.
        resumes: Drivers that were started.
        seconds: Seconds from the kill to the next finished trial; None where none followed.
        interruptions: Trainings that went on from a checkpoint.
        late: Results of attempts that had been given up before.
        violations: What breaks the contract.
        completed_redone: Completed trials that were evaluated again.
        unrecorded_redone: Finished attempts that were not recorded yet, and evaluated again.
        took_s: Seconds of the whole round.
    """

    number: int
    database: str
    kind: Kind
    phase: Phase = Phase.START
    delay_s: float = 0.0
    study: str = ""
    finished: int = 0
    lost: int = 0
    resumes: int = 0
    seconds: float | None = None
    interruptions: list[Interruption] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    completed_redone: int = 0
    unrecorded_redone: int = 0
    took_s: float = 0.0


class Chaos:
    """Studies in one database, on one cluster after the other."""

    def __init__(
        self, folder: Path, database: ChaosDatabase, seed: int, *, trials: int, steps: int
    ) -> None:
        """Starts a cluster; `trials` a study, `steps` a training."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._database = database
        self._random = Random(f"{seed} {database.name}")
        self._seed = seed
        self._trials = trials
        self._steps = steps
        self._witness = folder / "witness.jsonl"
        self._environment = environment_for(folder, self._witness)
        self._cluster = RayCluster(self._environment)
        self._study: ChaosStudy | None = None
        self._studies = 0
        self._study_starts = 0
        self._before: Snapshot | None = None
        self._reported: set[str] = set()
        self._may_end = False
        self._is_fresh = False
        self._round = Round(0, database.name, Kind.DRIVER)

    def close(self) -> None:
        """Ends all that still runs."""
        if self._study is not None and self._study.is_driven:
            self._study.kill()
        self._cluster.kill()

    def run(self, number: int, kind: Kind) -> Round:
        """One round; it strikes whatever may be running."""
        started_s = time.monotonic()
        self._round = Round(number, self._database.name, kind)
        while True:
            study = self._reach_moment()
            self._round.study = study.name
            finished = study.finished()
            struck_s = time.monotonic()
            if self._strike(study):
                break
        if self._round.kind in _ENDS_DRIVER and self._random.random() < _SHARE_AT_START:
            # The next round strikes the driver that starts now.
            self._is_fresh = self._keep_driven(study)
        else:
            self._recover(study, finished, struck_s)
        self._check()
        self._round.took_s = time.monotonic() - started_s
        return self._round

    def finish(self) -> list[str]:
        """Lets the last study get to its end undisturbed; what is found then."""
        self._round = Round(0, self._database.name, Kind.DRIVER)
        study = self._study
        assert study is not None
        if not self._wait(lambda: not self._keep_driven(study), _STUDY_S):
            self._round.violations.append(f"{study.name} did not end: {study.last_words()}")
        self._check()
        return self._round.violations

    # The moment

    def _driven(self) -> ChaosStudy:
        """The study, with a driver: the next one once the last is complete."""
        study = self._study
        if study is not None and study.exit_code is not None:
            self._note_exit(study)
        if study is None or study.state() == "complete":
            self._studies += 1
            self._study_starts = self._witness.stat().st_size if self._witness.exists() else 0
            study = self._study = ChaosStudy(
                self._folder,
                self._database,
                self._environment,
                self._studies,
                self._random.randrange(1000),
                trials=self._trials,
                steps=self._steps,
            )
        if not study.is_driven:
            study.drive(self._cluster.address)
            self._round.resumes += 1
        return study

    def _reach_moment(self) -> ChaosStudy:
        """A study at a random moment of its way, with a driver."""
        while True:
            self._is_fresh |= self._study is None or not self._study.is_driven
            study = self._driven()
            phase = self._choose_phase(study)
            self._round.phase = phase
            self._round.delay_s = self._random.uniform(0, _SPANS[phase])
            log_size = self._log_size()
            is_there = self._wait(
                lambda: self._has_reached(study, phase, log_size) or not study.is_driven  # noqa: B023 - called at once
            )
            if not is_there:
                self._round.violations.append(f"nothing happened for {_STUCK_S} s")
                return study
            time.sleep(self._round.delay_s)
            if study.is_driven:
                return study
            self._note_exit(study)
            self._check()

    def _choose_phase(self, study: ChaosStudy) -> Phase:
        is_fresh, self._is_fresh = self._is_fresh, False
        if is_fresh:
            return Phase.START
        is_near_end = study.finished() >= self._trials - 2
        return Phase.TEST if is_near_end and self._random.random() < 0.8 else Phase.TRIALS

    def _has_reached(self, study: ChaosStudy, phase: Phase, log_size: int) -> bool:
        if phase is Phase.START:
            return True
        if phase is Phase.TRIALS and self._log_size() > log_size:
            return True
        return study.finished() >= self._trials

    def _log_size(self) -> int:
        return self._witness.stat().st_size if self._witness.exists() else 0

    # The strike

    def _strike(self, study: ChaosStudy) -> bool:
        """Kills what the round kills; False if there was nothing of that kind."""
        self._may_end = self._round.kind in _ENDS_DRIVER
        match self._round.kind:
            case Kind.DRIVER:
                study.kill()
            case Kind.DRIVER_TERM:
                self._round.violations += study.terminate()
            case Kind.WORKER:
                return self._kill_worker(study, psutil.Process.kill)
            case Kind.WORKER_TERM:
                return self._kill_worker(study, psutil.Process.terminate)
            case Kind.NODE | Kind.NODE_TERM:
                notice_s = _NOTICE_S if self._round.kind is Kind.NODE_TERM else 0
                self._cluster.kill_node(self._random, notice_s)
                time.sleep(self._random.uniform(0, _LONGEST_ABSENCE_S))
                self._cluster.add_node()
            case Kind.CLUSTER | Kind.CLUSTER_AND_DRIVER:
                self._replace_cluster(study)
            case Kind.SERVER:
                self._database.kill()
                time.sleep(self._random.uniform(0, _LONGEST_ABSENCE_S))
                self._database.restart()
        return True

    def _kill_worker(self, study: ChaosStudy, end: Callable[[psutil.Process], None]) -> bool:
        self._wait(lambda: bool(self._cluster.busy_workers()) or not study.is_driven)
        workers = self._cluster.busy_workers()
        if not workers:
            return False
        try:
            end(self._random.choice(workers))
        except psutil.NoSuchProcess:
            return False
        return True

    def _replace_cluster(self, study: ChaosStudy) -> None:
        """A driver of a cluster that is gone must end by itself, unless it is gone as well."""
        self._cluster.kill()
        if self._round.kind is Kind.CLUSTER_AND_DRIVER:
            study.kill()
        elif not study.wait(_CLUSTER_ENDS_S):
            text = f"the driver still ran {_CLUSTER_ENDS_S} s after its cluster was gone"
            self._round.violations.append(text)
            study.kill()
        self._cluster = RayCluster(self._environment)

    # What follows

    def _recover(self, study: ChaosStudy, finished: int, struck_s: float) -> None:
        """Waits until a trial is finished or the study is; resumes it where nobody drives it."""
        went_on = self._wait(lambda: study.finished() > finished or not self._keep_driven(study))
        if not went_on:
            text = f"no trial was finished within {_STUCK_S} s: {study.last_words()}"
            self._round.violations.append(text)
        elif study.finished() > finished:
            self._round.seconds = time.monotonic() - struck_s

    def _keep_driven(self, study: ChaosStudy) -> bool:
        """Whether the study still has a way to go, with somebody who drives it."""
        if study.is_driven:
            return True
        if study.state() == "complete":
            self._note_exit(study)
            return False
        self._note_exit(study)
        study.drive(self._cluster.address)
        self._round.resumes += 1
        return True

    def _note_exit(self, study: ChaosStudy) -> None:
        """A driver may end by itself only when it is done, or when its cluster is gone."""
        may_end, self._may_end = self._may_end, False
        if study.exit_code == 0 or may_end:
            return
        text = f"the driver ended by itself with {study.exit_code}: {study.last_words()}"
        self._round.violations.append(text)

    def _check(self) -> None:
        """Looks at everything in one transaction, and at what the workers wrote until then."""
        assert self._study is not None
        snapshot = read_snapshot(self._database.url)
        read_s = now_s()
        lines = read_witness(self._witness, self._study_starts)
        self._report(violations(snapshot, self._before))
        self._count(snapshot)
        rows = snapshot.studies.get(self._study.name)
        if rows is not None:
            twice = redone(rows, [line for line in lines if line["at_s"] <= read_s])
            self._round.completed_redone += self._report(twice.completed)
            self._round.unrecorded_redone += self._report(twice.unrecorded)
            self._report([*twice.contradictions, *twice.overlaps, *twice.pinned])
            self._report([*twice.beyond(CHECKPOINT_S), *charged(rows)])
            self._round.late += [text for text in twice.late if self._is_new(text)]
            new = (i for i in twice.interruptions if self._is_new(repr(i)))
            self._round.interruptions += new
            if rows.study["state"] == "complete":
                self._report(unfinished(rows))
        self._before = snapshot

    def _count(self, snapshot: Snapshot) -> None:
        """Adds what happened since the last look."""
        for sign, rows in ((1, snapshot), (-1, self._before)):
            if rows is None:
                continue
            states = [row["state"] for row in rows.tables["trial"]]
            self._round.finished += sign * (states.count("complete") + states.count("pruned"))
            causes = [row["cause"] for row in rows.tables["attempt"]]
            self._round.lost += sign * sum(cause is not None for cause in causes)

    def _report(self, texts: Sequence[str]) -> int:
        """Adds what was not found before; how much that is."""
        new = [text for text in texts if self._is_new(text)]
        self._round.violations += new
        return len(new)

    def _is_new(self, text: str) -> bool:
        name = "" if self._study is None else self._study.name
        is_new = f"{name} {text}" not in self._reported
        self._reported.add(f"{name} {text}")
        return is_new

    def _wait(self, is_so: Callable[[], bool], timeout_s: float = _STUCK_S) -> bool:
        """Whether it came to be so in time."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True


def kinds(random: Random, database: str) -> Iterator[Kind]:
    """What the rounds of a database strike: each kind as often as in the deck, for ever."""
    server = (Kind.SERVER,) * 3 if database == PostgresServer.name else ()
    while True:
        deck = [*DECK, *server]
        random.shuffle(deck)
        yield from deck


@contextmanager
def opened(name: str, folder: Path) -> Iterator[ChaosDatabase]:
    """A database of that kind in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    database: ChaosDatabase = (
        SqliteFile(folder) if name == SqliteFile.name else PostgresServer(folder)
    )
    try:
        yield database
    finally:
        database.close()


def run_rounds(
    folder: Path,
    name: str,
    rounds: Iterable[Kind],
    seed: int,
    *,
    trials: int,
    steps: int,
    on_round: Callable[[Round], None],
) -> list[str]:
    """Goes through the rounds on one database; what is wrong after the last one.

    Args:
        folder: Where everything is kept.
        name: `sqlite` or `postgresql`.
        rounds: What each round strikes; the next is asked for after the one before.
        seed: Of the moments, and of the studies.
        trials: Trials of a study.
        steps: Optimiser steps of a training.
        on_round: Called after each round.
    """
    with opened(name, folder) as database:
        chaos = Chaos(folder, database, seed, trials=trials, steps=steps)
        try:
            for number, kind in enumerate(rounds, start=1):
                on_round(chaos.run(number, kind))
            return chaos.finish()
        finally:
            chaos.close()


def table(rounds: Sequence[Round]) -> str:
    """The rounds by database and kind, as markdown."""
    head = (
        "| database | killed | rounds | trials finished | attempts lost | violations "
        "| completed work redone | finished, not recorded, redone "
        "| largest interrupted work redone, s | median s to the next trial |"
    )
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    groups = sorted(
        {(r.database, r.kind) for r in rounds}, key=lambda g: (g[0], list(Kind).index(g[1]))
    )
    for database, kind in groups:
        own = [r for r in rounds if (r.database, r.kind) == (database, kind)]
        lines.append(_line(database, kind, own))
    lines.append(_line("all", "", rounds))
    return "\n".join(lines)


def _line(database: str, kind: str, rounds: Sequence[Round]) -> str:
    seconds = [r.seconds for r in rounds if r.seconds is not None]
    interrupted = [i.seconds for r in rounds for i in r.interruptions]
    cells = (
        database,
        kind,
        len(rounds),
        sum(r.finished for r in rounds),
        sum(r.lost for r in rounds),
        sum(len(r.violations) for r in rounds),
        sum(r.completed_redone for r in rounds),
        sum(r.unrecorded_redone for r in rounds),
        f"{max(interrupted):.2f}" if interrupted else "-",
        f"{statistics.median(seconds):.1f}" if seconds else "-",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--database",
    type=click.Choice(["sqlite", "postgresql", "both"]),
    default="both",
    show_default=True,
    help="Each one gets that many rounds.",
)
@click.option("--trials", default=14, show_default=True, help="Trials of a study.")
@click.option("--steps", default=150, show_default=True, help="Optimiser steps of a training.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("chaos-output"),
    show_default=True,
    help="Folder for databases, logs and results.",
)
def main(rounds: int, seed: int, database: str, trials: int, steps: int, out: Path) -> None:
    """Kill things at random, and check that nothing is lost."""
    done: list[Round] = []
    names = ("sqlite", "postgresql") if database == "both" else (database,)
    bad = False

    def show(played: Round) -> None:
        done.append(played)
        with (out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(asdict(played)) + "\n")
        waited = "-" if played.seconds is None else f"{played.seconds:.1f} s"
        print(
            f"{played.database} round {played.number}: {played.kind} in {played.phase} of "
            f"{played.study}, next trial after {waited}, {played.finished} finished, "
            f"{played.lost} attempts lost, {played.took_s:.0f} s",
            flush=True,
        )
        for text in played.violations:
            print(f"  VIOLATION in round {played.number}, seed {seed}: {text}", flush=True)

    for name in names:
        folder = out / f"{name}-{seed}"
        if folder.exists():
            raise click.UsageError(
                f"{folder} holds another run: remove it, or choose another --out"
            )
        wanted = kinds(Random(seed), name)
        chosen = [next(wanted) for _ in range(rounds)]
        left = run_rounds(folder, name, chosen, seed, trials=trials, steps=steps, on_round=show)
        for text in left:
            print(f"  VIOLATION at the end, seed {seed}: {text}", flush=True)
        bad = bad or bool(left)
    print(table(done))
    sys.exit(1 if bad or any(r.violations for r in done) else 0)


if __name__ == "__main__":
    main()
