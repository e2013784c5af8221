"""Limits on every figure, alone and together, for the best trial and for the front."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.objective import FIGURES, Quantity
from bitfront.trial import FrontChange
from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.store_samples import complete, running, trial

# Trial 2 is on the front without a latency, and trial 3 is not on the front.
TRIALS: tuple[dict[str, float], ...] = (
    {"error": 0.1, "nbytes": 4000, "bits_per_weight": 8, "bit_operations": 9e9, "latency_s": 0.4},
    {"error": 0.2, "nbytes": 2000, "bits_per_weight": 4, "bit_operations": 5e9, "latency_s": 0.2},
    {"error": 0.4, "nbytes": 1000, "bits_per_weight": 2, "bit_operations": 3e9},
    {"error": 0.5, "nbytes": 5000, "bits_per_weight": 1, "bit_operations": 1e9, "latency_s": 0.1},
)
FRONT = (0, 1, 2)
CHOICES: dict[str, tuple[str | None, ...]] = {
    "error": (None, "20%", "0.4"),
    "nbytes": (None, "2kB", "900"),
    "bits_per_weight": (None, "4"),
    "bit_operations": (None, "5e9", "2e9"),
    "latency_s": (None, "0.3"),
}
NUMBERS = {"20%": 0.2, "2kB": 2000.0}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limits") / "studies.db"
    with open_store(file_url(path)) as store:
        lease = running(store)
        store.set_provenance(lease, {"model": "m", "selection": "s", "device": "cpu"})
        for number, figures in enumerate(TRIALS):
            store.start_trial(lease, trial(number))
            values = {name: figures[name] for name in ("error", "nbytes")}
            front = FrontChange((number,), (), 0.5) if number in FRONT else None
            complete(store, lease, number, values, metrics=figures, front=front)
    return path


def run(database: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(database)])


def holds(number: int, asked: Mapping[str, str]) -> bool:
    figures = TRIALS[number]
    return all(
        name in figures and figures[name] <= (NUMBERS[text] if text in NUMBERS else float(text))
        for name, text in asked.items()
    )


def mixes() -> list[dict[str, str]]:
    """Every mix of limits, from none to all of them."""
    return [
        {name: text for name, text in zip(CHOICES, chosen, strict=True) if text is not None}
        for chosen in itertools.product(*CHOICES.values())
    ]


def options(asked: Mapping[str, str]) -> list[str]:
    named = {figure.name: figure.option for figure in FIGURES}
    return [part for name, text in asked.items() for part in (named[name], text)]


@pytest.mark.parametrize("scope", [("digits",), ("--model", "m")])
def test_the_front_under_limits_is_its_part_that_holds_all(
    database: Path, scope: tuple[str, ...]
) -> None:
    for asked in mixes():
        result = run(database, "front", *scope, "--format", "json", *options(asked))

        expected = [number for number in FRONT if holds(number, asked)]
        shown = [json.loads(line)["trial"] for line in result.stdout.splitlines()]
        assert shown == expected, asked
        assert result.exit_code == (0 if expected else 1), asked
        assert expected or result.stderr.count("\n") == 1, asked
        assert expected or ("over digits has no trial" in result.stderr) == (
            scope[0] == "--model"
        ), asked


def test_the_best_trial_holds_every_mix_of_limits(database: Path) -> None:
    for asked in mixes():
        result = run(database, "best", "digits", "--format", "json", *options(asked))

        fitting = [number for number in range(len(TRIALS)) if holds(number, asked)]
        assert result.exit_code == (0 if fitting else 1), asked
        assert not fitting or json.loads(result.stdout)["trial"] in fitting, asked


def test_a_front_of_which_nothing_fits_says_what_comes_nearest(database: Path) -> None:
    small = run(database, "front", "digits", "--max-nbytes", "900")
    operations = run(
        database, "front", "digits", "--max-bit-operations", "2e9", "--max-latency-s", "0.3"
    )

    assert (small.exit_code, small.stdout) == (1, "")
    assert small.stderr == (
        "Error: the front of study 'digits' has no trial with size at most 900 B: "
        "the nearest is trial 2 with 1.00 kB (11 % over), error 40.0 %\n"
    )
    assert operations.stderr == (
        "Error: the front of study 'digits' has no trial with bit operations at most 2e+09 and "
        "latency at most 0.3 s: the nearest is trial 1 with 5e+09 bit operations (150 % over), "
        "error 20.0 %\n"
    )


def test_the_best_and_the_front_refuse_with_the_same_words(database: Path) -> None:
    limits = ("--max-nbytes", "900", "--max-error", "30%")
    best = run(database, "best", "digits", *limits)
    front = run(database, "front", "digits", *limits)

    assert front.stderr == best.stderr.replace("study", "the front of study")


def test_the_front_of_a_model_names_the_study_that_comes_nearest(database: Path) -> None:
    result = run(database, "front", "--model", "m", "--max-nbytes", "900")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        "Error: the front of model 'm' by error and nbytes over digits has no trial with "
        "size at most 900 B: the nearest is trial 2 of study 'digits' with 1.00 kB (11 % over), "
        "error 40.0 %"
    )


@pytest.mark.parametrize("command", ["best", "front", "tune", "classify", "ask"])
def test_every_command_that_takes_limits_takes_all_of_them(command: str) -> None:
    shown = CliRunner().invoke(main, [command, "--help"]).stdout

    assert all(figure.option in shown for figure in FIGURES)


@pytest.mark.parametrize("text", ["115%", "0%", "0", "-1%", "%", "1 5%", "fifteen", "1e400%"])
def test_what_is_not_a_share_is_refused(database: Path, text: str) -> None:
    result = run(database, "front", "digits", "--max-error", text)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for '--max-error'" in result.stderr


def test_only_bytes_are_written_in_whole_numbers() -> None:
    for figure in FIGURES:
        whole = figure.quantity is Quantity.NBYTES
        assert repr(figure.exported(439639.0)) == ("439639" if whole else "439639.0")
        assert figure.exported(None) is None
