"""Whatever a person asks for: an answer, or one sentence; and nothing changes by asking."""

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitfront.errors import SpecError, UnknownStudy
from bitfront.units import duration_text, percent_text, size_text
from service.cli import main
from service.database_url import file_url
from storage.records import Limits
from storage.store import Store, open_store
from tests.fuzz.test_rows import fill
from tests.support.store_samples import job

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUICK = settings(RELAXED, max_examples=100, derandomize=True)
LONG = settings(RELAXED, max_examples=10_000)

READING = ("list", "status", "front", "best", "logs", "export", "history", "options")
"""Commands that only read, as far as there are some of that name."""

# They say where the answer goes, or wait for more of it.
LEFT_OUT = {"url", "out", "follow", "help"}

study_names = st.sampled_from(
    [
        *("first", "empty", "First", "first ", " first", "firs", "frist", "", "*", "%", "_____"),
        *("'", "''", '"', "first'--", "' OR '1'='1", "'; DROP TABLE study; --", "first\x00"),
        *("\x00", "\\", "../first", "/etc/passwd", "-1", "--", "ñ", "\udcff", "\U0001f600"),
        *("\u202efirst", "a\nb", "\x1b[2J", "x" * 5_000, ":name", "%s", "{}", "$1", "?"),
    ]
) | st.text(max_size=8)
option_values = st.sampled_from(
    [
        *(
            "1kB",
            "2000",
            "1.5GiB",
            "0",
            "-1",
            "-5MB",
            "40XB",
            "",
            " ",
            "nan",
            "inf",
            "-inf",
            "1e400",
        ),
        *("0.1", "0.3", "1", "5", "1e-320", "1e308", "9" * 400, "9" * 5_000, "9" * 5_000 + "kB"),
        *("table", "json", "csv", "parquet", "xml", "abc", "digit-clip", "'; --", "\x00", "\udcff"),
        *("1_000", "0x10", "٣", "½", "first", "complete", "3"),
    ]
) | st.text(max_size=6)


def commands() -> dict[str, click.Command]:
    """The commands that only read."""
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in READING}
    return {name: command for name, command in found.items() if command is not None}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments for what it takes, and now and then for what it does not."""
    name, command = draw(st.sampled_from(sorted(commands().items())))
    words = [name]
    for parameter in command.params:
        if parameter.name in LEFT_OUT:
            continue
        if isinstance(parameter, click.Argument):
            if draw(st.integers(0, 9)):
                words.append(draw(study_names))
        elif draw(st.booleans()):
            words.append(parameter.opts[-1])
            if not (isinstance(parameter, click.Option) and parameter.is_flag):
                words.append(draw(option_values))
    if not draw(st.integers(0, 9)):
        words.append(draw(option_values))
    return words


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "studies.db"
    with open_store(file_url(path)) as store:
        fill(store)
    return path


def dump(path: Path) -> list[str]:
    """The whole database as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def check_command(path: Path, words: Sequence[str]) -> None:
    """A command ends with an exit code of ours and, if it is not 0, with a sentence."""
    result = CliRunner().invoke(main, [words[0], "--db", str(path), *words[1:]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{words}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 1, 2), words
    assert "Traceback" not in result.output or "--verbose" in words
    if result.exit_code:
        last = result.stderr.rstrip("\n").splitlines()[-1]
        assert last, words
        assert result.stdout == "", words


@given(words=command_lines())
@QUICK
def test_a_question_has_an_answer_or_one_sentence(filled: Path, words: list[str]) -> None:
    check_command(filled, words)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(words=command_lines())
@LONG
def test_many_questions_have_answers_or_one_sentence(filled: Path, words: list[str]) -> None:
    check_command(filled, words)


@pytest.mark.parametrize("name", sorted(commands()))
def test_asking_changes_nothing(filled: Path, name: str) -> None:
    before = dump(filled)

    for study in ("first", "empty", "'; DROP TABLE study; --", "first' OR '1'='1"):
        check_command(filled, [name, study] if name != "list" else [name])

    assert dump(filled) == before


@pytest.mark.parametrize("name", ["\U0001f600", "'", "x" * 100_000])
def test_a_name_that_no_study_can_have_is_an_unknown_study(store: Store, name: str) -> None:
    for ask in (store.study, store.status, store.front, store.best, store.trials, store.log):
        with pytest.raises(UnknownStudy) as caught:
            ask(name)
        assert caught.value.study == name


@dataclass(frozen=True)
class Row:
    """What a complete trial came to."""

    error: float
    nbytes: float
    bits_per_weight: float | None
    latency_s: float | None
    bit_operations: float | None
    feasible: bool


# Few different values, so that limits are met exactly and trials tie.
figures = st.sampled_from([0.0, 1e-300, 0.1, 0.25, 0.5, 1.0, 2.0, 1e300]) | st.floats(0, 1)
rows = st.builds(
    Row,
    error=figures,
    nbytes=figures,
    bits_per_weight=st.none() | figures,
    latency_s=st.none() | figures,
    bit_operations=figures,
    feasible=st.integers(0, 3).map(bool),
)
limits = st.none() | st.floats(0, 1, exclude_min=True) | figures.filter(bool)
OBJECTIVES = (["error", "nbytes"], ["error", "nbytes", "bit_operations"])
LIMITED = {
    "max_error": "error",
    "max_nbytes": "nbytes",
    "max_bits": "bits_per_weight",
    "max_latency_s": "latency_s",
    "max_bit_operations": "bit_operations",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Store]]:
    """A database with a study of each set of objectives, whose trials are put in by SQL."""
    path = tmp_path_factory.mktemp("measured") / "studies.db"
    with open_store(file_url(path)) as store:
        for index, objectives in enumerate(OBJECTIVES):
            store.create_study(job(f"study{index}", objectives=objectives), {})
        yield path, store


def put(path: Path, study: int, found: Sequence[Row]) -> None:
    """Replaces the complete trials of the database by those of one study."""
    columns = (
        *("study_id", "number", "state", "attempt", "origin", "configuration_digest", "cached"),
        *("finished_at", "created_at", "params", "configuration"),
        *("error", "nbytes", "bits_per_weight", "latency_s", "bit_operations", "feasible"),
    )
    places = ", ".join("?" * len(columns))
    statement = f"INSERT INTO trial ({', '.join(columns)}) VALUES ({places})"  # noqa: S608  # constants
    now = "2026-01-01 00:00:00.000000"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM trial")
        connection.executemany(
            statement,
            [
                (
                    *(study + 1, number, "complete", 1, "sampler", f"digest {number}", 0),
                    *(now, now, "{}", '{"plan": {}, "recovery": null}'),
                    *(row.error, row.nbytes, row.bits_per_weight, row.latency_s),
                    *(row.bit_operations, row.feasible),
                )
                for number, row in enumerate(found)
            ],
        )


def brute_force(
    found: Sequence[Row], objectives: Sequence[str], asked: Mapping[str, float]
) -> int | None:
    """The number of the best row within the limits, by the words of the documentation."""
    limited = [LIMITED[name] for name in asked]
    free = [name for name in objectives if name not in limited]
    order = [*(free[:1] or objectives[:1]), *objectives, "nbytes"]

    def fits(row: Row) -> bool:
        pairs = ((getattr(row, LIMITED[name]), limit) for name, limit in asked.items())
        return row.feasible and all(v is not None and v <= limit for v, limit in pairs)

    ranked = sorted(
        (tuple(getattr(row, name) for name in order), number)
        for number, row in enumerate(found)
        if fits(row)
    )
    return ranked[0][1] if ranked else None


def check_best(
    measured: tuple[Path, Store], study: int, found: Sequence[Row], asked: Mapping[str, float]
) -> None:
    path, store = measured
    put(path, study, found)

    best = store.best(f"study{study}", Limits(**asked))

    assert (None if best is None else best.number) == brute_force(found, OBJECTIVES[study], asked)


asked_limits = st.fixed_dictionaries(dict.fromkeys(LIMITED, limits)).map(
    lambda asked: {name: limit for name, limit in asked.items() if limit is not None}
)


@given(study=st.integers(0, 1), found=st.lists(rows, max_size=12), asked=asked_limits)
@QUICK
def test_the_best_trial_is_that_of_brute_force(
    measured: tuple[Path, Store], study: int, found: list[Row], asked: dict[str, float]
) -> None:
    check_best(measured, study, found, asked)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(study=st.integers(0, 1), found=st.lists(rows, max_size=40), asked=asked_limits)
@LONG
def test_the_best_trial_is_that_of_brute_force_for_many(
    measured: tuple[Path, Store], study: int, found: list[Row], asked: dict[str, float]
) -> None:
    check_best(measured, study, found, asked)


@given(found=st.lists(rows, min_size=1, max_size=12), asked=asked_limits)
@QUICK
def test_the_nearest_trial_exceeds_the_limits_by_no_more_than_any_other(
    measured: tuple[Path, Store], found: list[Row], asked: dict[str, float]
) -> None:
    path, store = measured
    put(path, 0, found)

    nearest = store.nearest("study0", Limits(**asked))

    def excess(row: Row) -> float:
        pairs = ((getattr(row, LIMITED[name]), limit) for name, limit in asked.items())
        return math.fsum(max(0.0, value / limit - 1) for value, limit in pairs)

    known = [
        row
        for row in found
        if row.feasible and all(getattr(row, LIMITED[name]) is not None for name in asked)
    ]
    assert (nearest is None) == (not known)
    if nearest is not None:
        lowest = min(map(excess, known))
        assert excess(found[nearest.number]) == pytest.approx(lowest)


numbers = st.floats(min_value=0, allow_infinity=False) | st.integers(0, 10**30).map(float)


@given(nbytes=numbers)
@QUICK
def test_a_size_is_short_and_within_half_a_per_cent(nbytes: float) -> None:
    text = size_text(nbytes)

    value, unit = text.split(" ")
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    assert abs(float(value) * scale - nbytes) <= max(0.5, 0.0051 * nbytes)
    assert unit == "GB" or len(value) <= 4


@given(seconds=st.floats(), share=st.floats())
@QUICK
def test_durations_and_shares_are_one_line(seconds: float, share: float) -> None:
    assert duration_text(seconds).isprintable()
    assert percent_text(share).endswith(" %")


@given(asked=st.dictionaries(st.sampled_from(sorted(LIMITED)), st.floats() | st.integers()))
@QUICK
def test_a_limit_is_a_positive_number_or_is_refused(asked: dict[str, float]) -> None:
    limits: Limits | None = None
    refusal = ""
    try:
        limits = Limits(**asked)
    except SpecError as error:
        refusal = str(error)

    assert refusal.isprintable()
    assert (limits is None) == any(not 0 < limit < math.inf for limit in asked.values())
