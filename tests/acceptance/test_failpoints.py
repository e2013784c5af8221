"""A process is killed at each step of the protocol; the study resumes and keeps its contract.

Most points are passed by a driver without Ray: the real store, scheduler and spool, with a made-up
evaluation in place of a worker. One process imports all that once, and forks a driver for each
line that it reads:

    python -m tests.acceptance.test_failpoints
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bitfront.attempt import Attempt, AttemptResult, Evaluated, Failed, IntermediateValue, Pruned
from bitfront.failpoints import witness
from bitfront.identity.identities import CellKey
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.objective import Budget
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import FULL, Precision
from bitfront.profile import Cell, LayerEntropy, StageArtefactKind
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Evaluation, Origin, Proposal, StudyState, TrialState
from search.space import SearchSpace
from service.study.heartbeat import take
from storage.records import Lease, OptionRecord
from storage.store import Store, open_store
from tests.support.contract import (
    StudyRows,
    read_snapshot,
    read_witness,
    redone,
    unfinished,
    violations,
)
from tests.support.databases import DIALECTS, Databases
from tests.support.studies import Study
from workers.scheduling.result_json import to_json
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler

NAME = "points"
SPEC = JobSpec.model_validate(
    {
        "study": NAME,
        "model": {"source": "reference"},
        "data": {"source": "reference"},
        "constraints": {"max_nbytes": 20},
        "search": {"sampler": "random"},
        "stop": {"trials": 9},
    }
)
LAYERS = [Layer(f"l{n}", Tower.VISION, LayerKind.LINEAR, 8, 8, 1, "x", "b") for n in range(4)]
BLOCKS = [Block(f"b{n}", Tower.VISION, (layer.name,)) for n, layer in enumerate(LAYERS)]
OPTIONS = {b.name: [Option((Precision(bits, 8),)) for bits in (2, 3, 4, 8)] for b in BLOCKS}
SEED = Proposal(
    Configuration(Plan.uniform([layer.name for layer in LAYERS], FULL)), Origin.BASELINE
)
REFERENCE = {"error": 1.0, "nbytes": 80.0}

# What happens to the first attempt at a trial of that number.
STOPS_EARLY, RAISES, IS_LOST, IS_LOST_BUT_SPOOLED, IS_INVALID = 3, 4, 5, 6, 7

PROFILE = (
    *(
        "create",
        "acquire",
        "set_provenance",
        "save",
        "put_cells",
        "put_stage_artefact",
        "save_options",
    ),
    *("set_state", "set_reference", "heartbeat"),
)
TRIALS = ("fence", "start", "report", "complete", "fail", "prune")
END = ("set_correlation", "save_test_values", "release")
"""What a driver writes on its way, in the names of the functions of the store."""

CANCEL = "cancel_running"
CLIENTS = ("remove", "remove_untried", "request", "withdraw", "replace_spec")
"""What is written on a person's wish, or where they resume with another job."""

TUNING = ("begin", "save_test_error")
"""What else `bitfront tune --samples` writes; `tests/storage/test_crashes.py` kills its writer."""

BUILD = ("put",)
"""What `bitfront build` writes; `tests/service/commands/test_build.py` kills it there."""

PLACES = ("before", "before_commit", "after_commit")


def places(*names: str) -> tuple[str, ...]:
    """All places of some functions, in their order."""
    return tuple(f"{name}.{place}" for name in names for place in PLACES)


CHAINS = {
    "the profile": places(*PROFILE),
    **{name: places(name) for name in TRIALS},
    "the end": places(*END),
    "the spool": ("spool.before", "spool.after", "spool.before:2", "spool.after:2"),
    "the sampler": ("tell.after", "tell.after:2"),
    "a later start": ("start.after_commit:4",),
    "a later result": ("complete.before_commit:3",),
    "a take-over": ("spool.before:4", "acquire.before_commit", "acquire.after_commit"),
    "a fence": ("spool.before:4", *places("fence")),
    "a recorded fence": ("start.after_commit:2", "fence.after_commit", "fence.after_commit"),
    "a spooled result": ("spool.after:3", *places("complete")),
    "a spooled stop": ("spool.after:4", *places("prune")),
}
"""The points at which one process after the other is killed, until one gets through."""


def drive(url: str, folder: Path, *, cancel: bool = False) -> None:
    """Goes the way of a driver, from wherever the study stands, to its end.

    Args:
        url: The database, with its tables.
        folder: Where the spool is.
        cancel: Ends the study with a trial in the air, as a cancel does.
    """
    with open_store(url, create=False) as store:
        if not any(summary.name == NAME for summary in store.studies()):
            store.create_study(SPEC, {})
        lease = take(store, NAME)
        _profile(store, lease)
        spool = Spool(folder / "spool")
        scheduler = TrialScheduler(
            store,
            lease,
            SPEC,
            SearchSpace(BLOCKS, OPTIONS, {}, None),
            [SEED],
            spool,
            lambda configuration, _halvings: configuration.digest,
            reference=list(REFERENCE.values()),
            budget=Budget("nbytes", 20),
            is_winding_down=lambda: False,
            review=lambda _: None,
            on_progress=lambda _: None,
        )
        while (attempt := scheduler.next()) is not None:
            if cancel and attempt.trial.number == 2:
                store.cancel_running(lease)
                store.release(lease, StudyState.CANCELLED)
                return
            _attempt(scheduler, spool, attempt)
        store.set_correlation(lease, 0.5)
        _test(store, lease)
        store.release(lease, StudyState.COMPLETE, scheduler.stop_reason)


def _profile(store: Store, lease: Lease) -> None:
    store.set_provenance(lease, {"model": "m", "device": "d"})
    entropies = [LayerEntropy(layer.name, 0.5, None) for layer in LAYERS]
    store.save_profile(lease, LAYERS, BLOCKS, entropies, fixed_nbytes=1)
    records = []
    for block in BLOCKS:
        for option in OPTIONS[block.name]:
            cell = Cell(block.name, option, option.precisions[0].weight_bits, 1.0, 0.5)
            records.append((CellKey.of("m", "d", "q", block, option), cell))
    for known in range(0, len(records), 8):
        store.put_cells(lease, [(key, cell, 0.1) for key, cell in records[known : known + 8]])
    store.put_stage_artefact(lease, "k", StageArtefactKind.CLIPS, {"clips": [1.0]}, 0.1)
    options = [OptionRecord(cell, survives=True, certificate={}) for _, cell in records]
    store.save_options(lease, options)
    store.set_state(lease, StudyState.RUNNING)
    store.set_reference(lease, REFERENCE)
    store.heartbeat(lease)


def _attempt(scheduler: TrialScheduler, spool: Spool, attempt: Attempt) -> None:
    """Does what a worker does, and what Ray tells the scheduler of it."""
    facts = {
        "number": attempt.trial.number,
        "attempt": attempt.number,
        "configuration": attempt.configuration.to_dict(),
    }
    witness("attempt started", **facts)
    is_first = attempt.number == 1
    scheduler.report(attempt, IntermediateValue(0, 0.5))
    if attempt.trial.number == IS_LOST and is_first:
        scheduler.lose(attempt)
        return
    result = _result(attempt)
    spool.write(attempt.trial.number, attempt.number, result)
    witness("attempt ended", **facts, outcome=json.loads(to_json(result)))
    if attempt.trial.number == IS_LOST_BUT_SPOOLED and is_first:
        scheduler.lose(attempt)
    else:
        scheduler.finish(attempt, result)


def _result(attempt: Attempt) -> AttemptResult:
    if attempt.trial.number == STOPS_EARLY:
        return Pruned(seconds=0.1, worker="w")
    if attempt.trial.number == IS_INVALID:
        return Failed(Cause.INVALID_METRIC, "error is nan", seconds=0.1, worker="w")
    if attempt.trial.number == RAISES and attempt.number == 1:
        return Failed(Cause.USER_ERROR, "no such file", seconds=0.1, worker="w")
    bits = [precision.weight_bits for _, precision in attempt.configuration.plan]
    error = sum(2.0**-width * place for place, width in enumerate(bits, start=1)) / 10
    return Evaluated(
        Evaluation({"error": error, "nbytes": float(sum(bits))}), seconds=0.1, worker="w"
    )


def _test(store: Store, lease: Lease) -> None:
    on_front = {row.number for row in store.front(NAME)}
    for trial in store.trials(NAME, {TrialState.COMPLETE}):
        is_wanted = trial.number in on_front or trial.origin is Origin.BASELINE
        if is_wanted and not trial.test_values:
            store.save_test_values(lease, {trial.number: {"error": trial.values["error"]}})


def nursery() -> None:
    """Forks a driver for each line of JSON, and prints the status that it ends with."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ |= order["environment"]
            drive(order["url"], Path(order["folder"]), cancel=order["cancel"])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


class Nursery:
    """Drivers as processes of their own, which need not import anything any more."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.test_failpoints"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def drive(self, url: str, folder: Path, failpoint: str = "", *, cancel: bool = False) -> int:
        """The exit code of a driver; negative for a signal."""
        environment = {
            "BITFRONT_FAILPOINT": failpoint,
            "BITFRONT_WITNESS": str(folder / "witness.jsonl"),
        }
        order = {"url": url, "folder": str(folder), "cancel": cancel, "environment": environment}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def drivers() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


def check(url: str, folder: Path) -> StudyRows:
    snapshot = read_snapshot(url)
    study = snapshot.studies[NAME]
    twice = redone(study, read_witness(folder / "witness.jsonl"))

    assert violations(snapshot) == []
    assert unfinished(study) == []
    assert twice.completed == twice.unrecorded == twice.contradictions == []
    return study


@pytest.mark.parametrize("killed_at", CHAINS.values(), ids=CHAINS)
def test_a_study_outlives_processes_that_end_in(
    drivers: Nursery, databases: Databases, tmp_path: Path, killed_at: Sequence[str]
) -> None:
    url = databases.ready()
    before = read_snapshot(url)
    for failpoint in killed_at:
        assert drivers.drive(url, tmp_path, failpoint) == -signal.SIGKILL, failpoint
        now = read_snapshot(url)
        assert violations(now, before) == [], failpoint
        before = now

    assert drivers.drive(url, tmp_path) == 0

    study = check(url, tmp_path)
    assert violations(read_snapshot(url), before) == []
    states = [row["state"] for row in study.trials]
    ends = {STOPS_EARLY: "pruned", IS_INVALID: "failed"}
    assert states == [ends.get(number, "complete") for number in range(9)]


@pytest.mark.parametrize("place", PLACES)
def test_a_cancelled_study_outlives_a_process_that_ends_while_it_cancels(
    drivers: Nursery, databases: Databases, tmp_path: Path, place: str
) -> None:
    url = databases.ready()
    point = f"{CANCEL}.{place}"

    assert drivers.drive(url, tmp_path, point, cancel=True) == -signal.SIGKILL
    assert violations(read_snapshot(url)) == []

    assert drivers.drive(url, tmp_path) == 0
    check(url, tmp_path)


@pytest.mark.parametrize("databases", DIALECTS[:1], indirect=True)
def test_an_attempt_that_died_with_its_driver_has_that_cause(
    drivers: Nursery, databases: Databases, tmp_path: Path
) -> None:
    url = databases.ready()

    drivers.drive(url, tmp_path, "spool.before:3")
    drivers.drive(url, tmp_path)

    causes = [row["cause"] for row in check(url, tmp_path).attempts[2]]
    assert causes == ["driver_restart", None]


def test_there_is_a_point_for_everything_that_is_written() -> None:
    source = (Path(__file__).parents[2] / "storage" / "store.py").read_text()
    written = set(re.findall(r"write(?:_once)?\(\w+\.(\w+)", source))

    assert written == {*PROFILE, *TRIALS, *END, CANCEL, *CLIENTS, *TUNING, *BUILD}


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "killed_at",
    ["complete.before_commit:3", pytest.param("fence.after_commit", marks=pytest.mark.slow)],
)
def test_a_study_on_ray_outlives_a_driver_that_ends_at(
    tmp_path: Path, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path, NAME, trials=8)
    monkeypatch.setenv("BITFRONT_WITNESS", str(tmp_path / "witness.jsonl"))
    monkeypatch.setenv("BITFRONT_FAILPOINT", killed_at)
    driver = study.start("submit", str(study.job))
    assert driver.wait(timeout=240) == -signal.SIGKILL, study.log.read_text()

    monkeypatch.delenv("BITFRONT_FAILPOINT")
    assert study.start("resume", NAME).wait(timeout=240) == 0, study.log.read_text()

    check(f"sqlite:///{study.database}", tmp_path)


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_ends_once_its_result_is_spooled_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path, NAME, trials=8)
    monkeypatch.setenv("BITFRONT_WITNESS", str(tmp_path / "witness.jsonl"))
    monkeypatch.setenv("BITFRONT_FAILPOINT", "spool.after:4")

    assert study.start("submit", str(study.job)).wait(timeout=400) == 0, study.log.read_text()

    rows = check(f"sqlite:///{study.database}", tmp_path)
    assert [row["attempt"] for row in rows.trials] == [1] * 8
    events = [line["event"] for line in read_witness(tmp_path / "witness.jsonl")]
    # Who dies at this point cannot write that the attempt ended.
    assert events.count("attempt ended") < events.count("attempt started") == 8


if __name__ == "__main__":
    nursery()
