"""Whatever stands in a row, a spooled file or a checkpoint: an answer, or one of our own errors."""

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import SQLAlchemyError

from bitfront.attempt import AttemptResult, Evaluated, Failed, Pruned
from bitfront.errors import BitfrontError, InvalidModel
from bitfront.identity.identities import CellKey
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.profile import Cell, LayerEntropy, StageArtefactKind
from bitfront.trial import Cause, Evaluation, FrontChange, Origin, StudyState, Trial
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint
from service.cli import main
from service.database_url import file_url
from storage.records import Limits, OptionRecord
from storage.store import Store, open_store
from tests.support.store_samples import complete, fail, job, show
from workers.scheduling.spool import Spool

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUICK = settings(RELAXED, max_examples=60, derandomize=True)
LONG = settings(RELAXED, max_examples=10_000)

REFUSED: tuple[type[Exception], ...] = (
    *(BitfrontError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, SQLAlchemyError),
)
"""What reading a row may raise."""

LAYERS = tuple(
    Layer(f"layer{n}", Tower.VISION, LayerKind.LINEAR, 10, 100, 1, f"source{n}", "scope")
    for n in range(4)
)
BLOCKS = (
    Block("b0", Tower.VISION, ("layer0", "layer1")),
    Block("b1", Tower.VISION, ("layer2", "layer3")),
)
PAIR = Option((Precision(4, 8), Precision(2, 8)))
KEY = CellKey.of("model", "data", "quantizer", BLOCKS[0], PAIR)
CELL = Cell("b0", PAIR, 1_000, 5.0, 0.25)


def configuration(bits: int, recovery: Recovery | None = None) -> Configuration:
    names = [layer.name for layer in LAYERS]
    return Configuration(Plan.uniform(names, Precision(bits, 8)), recovery)


def fill(store: Store) -> None:
    """One study with a row of every kind, and one that has only begun."""
    store.create_study(job("first"), {"model": "abc", "torch": "2"})
    lease = store.acquire("first", "host:1", 60)
    store.save_profile(lease, LAYERS, BLOCKS, [LayerEntropy("layer0", 0.5, 0.25)], fixed_nbytes=100)
    store.put_cells(lease, [(KEY, CELL, 0.5)])
    store.save_options(lease, [OptionRecord(CELL, survives=True, certificate={"bound": 1.0})])
    store.put_stage_artefact(lease, "artefact", StageArtefactKind.CLIPS, {"a": [1.0]}, 0.5)
    store.set_reference(lease, {"error": 1.0, "nbytes": 4000.0})
    store.set_correlation(lease, 0.5)
    store.set_state(lease, StudyState.RUNNING)
    for number, bits in enumerate((2, 3, 4, 8)):
        recovery = Recovery(context_length=4) if bits == 3 else None
        origin = Origin.BASELINE if bits != 3 else Origin.SAMPLER
        store.start_trial(
            lease, Trial(lease.name, number, configuration(bits, recovery), origin, {"x": bits})
        )
        show(store, lease, number, 1, 0, 0.5)
        complete(
            store,
            lease,
            number,
            {"error": 0.5 - bits / 20, "nbytes": bits * 500.0},
            metrics={"bits_per_weight": 3},
            constraints={"max_nbytes": -0.5},
            front=FrontChange((number,), (), 0.5),
            key=f"key {number}",
        )
    store.start_trial(lease, Trial(lease.name, 4, configuration(5), Origin.SAMPLER, {}))
    fail(store, lease, 4, 1, Cause.OUT_OF_MEMORY, "12 GB", "a trace", retry=False)
    store.start_trial(lease, Trial(lease.name, 5, configuration(6), Origin.PROGRAM, {"x": 1.5}))
    store.save_test_values(lease, {0: {"error": 0.5, "nbytes": 1000.0}})
    store.release(lease, StudyState.STOPPED, "enough")
    store.create_study(job("empty"), {})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "studies.db"
    with open_store(file_url(path)) as store:
        fill(store)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return path


def columns(path: Path) -> list[tuple[str, str]]:
    """Every column of every table."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return sorted(
            (table, row[1])
            for (table,) in tables.fetchall()
            for row in connection.execute(f"PRAGMA table_info({table})")
            if not table.startswith("sqlite_")
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
json_texts = json_values.map(json.dumps) | st.sampled_from(
    [
        *("{", "[]", "{}", "null", "1", '"x"', "NaN", '{"plan": {}}', '{"model": 1}', "1e400"),
        *('{"plan": {"layer0": "w4a8"}, "recovery": null}', "[" * 2_000, '["error"]', "[1, 2]"),
        '{"plan": {"layer0": 4}, "recovery": {"blend": "x"}}',
    ]
)
values = st.one_of(
    json_texts,
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6),
    st.sampled_from(["complete", "running", "vision", "2026-99-99 00:00:00", "9" * 400, "w4a8"]),
)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[int, str, object]]:
    """What is done to which column, and what is put there; None deletes the rows."""
    number = st.integers(0, 10_000)
    return draw(
        st.lists(
            st.tuples(number, st.sampled_from(["one", "all", "gone"]), values),
            min_size=1,
            max_size=3,
        )
    )


def damage(path: Path, changes: Sequence[tuple[int, str, object]]) -> None:
    """Does by plain SQL what the schema's own rules let through."""
    known = columns(path)
    with closing(sqlite3.connect(path)) as connection:
        for index, how, value in changes:
            table, column = known[index % len(known)]
            statement = {
                "gone": f"DELETE FROM {table} WHERE rowid % 2 = {index % 2}",  # noqa: S608  # names of the schema
                "all": f"UPDATE {table} SET {column} = ?",  # noqa: S608
                "one": f"UPDATE {table} SET {column} = ? WHERE rowid = 1 + {index % 3}",  # noqa: S608
            }[how]
            with suppress(sqlite3.Error):
                connection.execute(statement, () if how == "gone" else (value,))
        connection.commit()


READS: dict[str, Callable[[Store, str], object]] = {
    "study": lambda store, name: store.study(name).spec.digest,
    "planned": lambda store, name: store.study(name).planned_trials + 1,
    "studies": lambda store, _: store.studies(),
    "log": lambda store, name: store.log(name),
    "log of a trial": lambda store, name: store.log(name, trial=4),
    "all of the trials": lambda store, name: store.trials(name),
    "model fronts": lambda store, _: store.model_fronts("digit-clip"),
    "profile": lambda store, name: store.load_profile(name),
    "cells": lambda store, _: store.cells([KEY]),
    "stage_artefacts": lambda store, _: store.stage_artefacts(["artefact"]),
    "options": lambda store, name: store.options(name),
    "trials": lambda store, name: [trial.is_feasible for trial in store.trials(name)],
    "attempts": lambda store, name: store.attempts(name),
    "evaluation": lambda store, _: store.evaluation("key 0"),
    "intermediates": lambda store, name: store.intermediates(name),
    "front": lambda store, name: [row.configuration for row in store.front(name)],
    "best": lambda store, name: store.best(name, Limits(max_nbytes=1500)),
    "best of model": lambda store, _: store.best(None, model="digit-clip"),
    "nearest": lambda store, name: store.nearest(name, Limits(max_nbytes=1)),
    "status": lambda store, name: store.status(name).progress,
}


def check_reads(path: Path) -> None:
    """Every reading method of the store answers or refuses."""
    try:
        opened = open_store(file_url(path), create=False)
    except REFUSED as error:
        check_message(error)
        return
    with opened as store:
        for name, read in READS.items():
            try:
                read(store, "first")
            except REFUSED as error:
                check_message(error)
            except Exception as error:
                raise AssertionError(f"reading {name}: {error!r}") from error


def check_message(error: Exception) -> None:
    """One of our own errors is a sentence of one line."""
    assert str(error)
    assert "\n" not in str(error) or not isinstance(error, BitfrontError)


COMMANDS = (
    *(["list"], ["list", "--format", "json"], ["status", "first"], ["stop", "first"]),
    *(["status", "first", "--format", "json"], ["front", "first"]),
    *(["front", "first", "--format", "csv"], ["front", "first", "--format", "json"]),
    *(["front", "--model", "digit-clip"], ["best", "--model", "digit-clip"]),
    *(["best", "first"], ["best", "first", "--format", "json"], ["logs", "first"]),
    *(["best", "first", "--max-nbytes", "1kB"], ["best", "first", "--max-nbytes", "1"]),
    *(["logs", "first", "--format", "json"], ["logs", "first", "--trial", "4"]),
    *(["export", "first"], ["export", "first", "--format", "json"]),
)


def check_commands(path: Path) -> None:
    """Every command that reads ends with an exit code of ours, and no traceback."""
    for words in COMMANDS:
        result = CliRunner().invoke(main, [*words, "--db", str(path)])
        if result.exception is not None and not isinstance(
            result.exception, (SystemExit, *REFUSED)
        ):
            raise AssertionError(f"{words}: {result.exception!r}") from result.exception
        assert result.exit_code in (0, 1, 2)


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of the filled database."""
    numbers = itertools.count()

    def fresh() -> Path:
        for old in tmp_path.glob("*.db*"):
            old.unlink()
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copy(filled, path)
        return path

    return fresh


def test_every_read_answers_from_rows_that_nobody_touched(filled: Path) -> None:
    with open_store(file_url(filled), create=False) as store:
        for read in READS.values():
            assert read(store, "first") is not None


@given(changes=damages())
@QUICK
def test_damaged_rows_are_read_or_refused(
    copy: Callable[[], Path], changes: list[tuple[int, str, object]]
) -> None:
    path = copy()
    damage(path, changes)

    check_reads(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(changes=damages())
@LONG
def test_many_damaged_rows_are_read_or_refused(
    copy: Callable[[], Path], changes: list[tuple[int, str, object]]
) -> None:
    path = copy()
    damage(path, changes)

    check_reads(path)


@given(changes=damages())
@settings(QUICK, max_examples=20)
def test_commands_on_damaged_rows_end_with_a_sentence(
    copy: Callable[[], Path], changes: list[tuple[int, str, object]]
) -> None:
    path = copy()
    damage(path, changes)

    check_commands(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(changes=damages())
@settings(LONG, max_examples=2_000)
def test_many_commands_on_damaged_rows_end_with_a_sentence(
    copy: Callable[[], Path], changes: list[tuple[int, str, object]]
) -> None:
    path = copy()
    damage(path, changes)

    check_commands(path)


RESULTS = (
    Evaluated(
        Evaluation({"error": 0.5, "nbytes": 1e30}, {"seconds": 1.5}), seconds=1.0, worker="host:1"
    ),
    Failed(Cause.OUT_OF_MEMORY, "12 GB", "line 1\nline 2", seconds=1e-30, worker="höst:1"),
    Pruned(seconds=2.0, worker="host:1"),
)


@st.composite
def bitten(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file after a disk or a person had their way with it."""
    content = bytearray(whole)
    how = draw(st.sampled_from(["flip", "cut", "put", "new", "twice"]))
    if how == "new":
        return draw(st.binary(max_size=64))
    if how == "twice":
        return whole + whole
    if how == "cut":
        start = draw(st.integers(0, len(whole)))
        return whole[:start] + whole[draw(st.integers(start, len(whole))) :]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content) - 1))
        content[at] = draw(st.integers(0, 255)) if how == "put" else content[at] ^ 1 << at % 8
    return bytes(content)


@given(data=st.data(), result=st.sampled_from(RESULTS))
@QUICK
def test_a_spooled_file_gives_its_result_or_none(
    tmp_path: Path, data: st.DataObject, result: AttemptResult
) -> None:
    spool = Spool(tmp_path)
    spool.write(3, 1, result)
    file = tmp_path / "000003-1.json"

    file.write_bytes(data.draw(bitten(file.read_bytes())))

    assert spool.read(3, 1) in (None, result)


FORM, IDENTITY = "bitfront.test.v1", "what it depends on"
CONTENT = {"step": 12, "loss": 1e30, "rate": 1e-05}
TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.float16),
    "count": torch.tensor([7]),
}


def check_checkpoint(path: Path) -> None:
    """The checkpoint is read as it was written, or refused."""
    try:
        content, tensors = read_checkpoint(path, FORM, IDENTITY)
    except InvalidModel as error:
        check_message(error)
        return
    assert content == CONTENT
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())
    assert all(tensor.dtype == TENSORS[name].dtype for name, tensor in tensors.items())


@given(data=st.data())
@QUICK
def test_a_checkpoint_is_read_as_it_was_written_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, FORM, IDENTITY, CONTENT, TENSORS)

    path.write_bytes(data.draw(bitten(path.read_bytes())))

    check_checkpoint(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(data=st.data())
@LONG
def test_many_checkpoints_are_read_as_they_were_written_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, FORM, IDENTITY, CONTENT, TENSORS)

    path.write_bytes(data.draw(bitten(path.read_bytes())))

    check_checkpoint(path)


def headed(header: bytes, tail: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    return len(header).to_bytes(8, "little") + header + tail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        headed(b"{}"),
        headed(b'{"__metadata__": {"bitfront.test.v1": "[]"}}'),
    ],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)

    with pytest.raises(InvalidModel):
        read_checkpoint(path, FORM, IDENTITY)
