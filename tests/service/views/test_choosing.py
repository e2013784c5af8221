"""What `best` and `front` print, from a stored study whose luckiest trial is not its best."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bitfront.attempt import Attempt, Evaluated
from bitfront.plan import Configuration, Plan
from bitfront.precision import FULL, Precision
from bitfront.samples import SampleResults
from bitfront.trial import Evaluation, Origin, Proposal, Trial
from search.front import Front
from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.store_samples import running

SAMPLES = 400


def results(wrong: int, at: int, nats: float) -> SampleResults:
    right = np.ones(SAMPLES, dtype=bool)
    right[at : at + wrong] = False
    return SampleResults.of(right.tolist(), (nats * np.linspace(0.5, 1.5, SAMPLES)).tolist())


ROWS = (  # width, wrong, from, divergence, bytes, origin
    (16, 30, 0, 0.0, 1000.0, Origin.BASELINE),
    (4, 33, 10, 0.01, 400.0, Origin.PROGRAM),
    (3, 29, 15, 0.05, 300.0, Origin.BASELINE),
    (2, 90, 0, 0.3, 100.0, Origin.BASELINE),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = tmp_path / "studies.db"
    with open_store(file_url(database)) as store:
        lease, front = running(store), Front((1.0, 1001.0))
        for number, (bits, wrong, at, nats, nbytes, origin) in enumerate(ROWS):
            precision = FULL if bits == 16 else Precision(bits)
            plan = Plan.uniform(["one", "two"], precision)
            if origin is Origin.PROGRAM:
                plan = Plan.of({"one": Precision(4), "two": Precision(3)})
            trial = Trial.of("digits", number, Proposal(Configuration(plan), origin))
            store.start_trial(lease, trial)
            samples = results(wrong, at, nats)
            metrics = {"divergence": nats, **samples.standard_errors}
            values = {"error": wrong / SAMPLES, "nbytes": nbytes}
            done = Evaluated(Evaluation(values, metrics, samples), seconds=1.0, worker="w")
            change = front.add(number, (wrong / SAMPLES, nbytes))
            assert store.finish_attempt(lease, Attempt(trial, f"k{number}"), done, front=change)
        store.save_test_values(lease, {0: {"error": 0.05}}, {0: results(20, 0, 0.0)})
    return database


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", file_url(path)])


def test_best_names_what_cannot_be_told_from_its_answer(path: Path) -> None:
    text = run(path, "best", "digits", "--max-nbytes", "500").stdout
    asked = ("best", "digits", "--max-nbytes", "500")
    content = json.loads(run(path, *asked, "--format", "json").stdout)

    assert "1 (program)" in text
    assert "on these 400 samples its error differs by no more than chance from" in text
    assert "chance from uniform w3 (trial 2) (about" in text
    assert "would tell)" in text
    assert content["trial"] == 1
    assert [peer["trial"] for peer in content["not_told_apart"]] == [2]
    assert content["not_told_apart"][0]["samples_needed"] > SAMPLES
    assert content["error"] == pytest.approx(33 / SAMPLES)
    assert content["estimated_error"] < content["error"]


def test_the_measured_error_answers_on_request(path: Path) -> None:
    found = run(path, "best", "digits", "--max-nbytes", "500", "--by", "error", "--format", "json")

    content = json.loads(found.stdout)
    assert (content["trial"], content["not_told_apart"]) == (2, [])
    assert content["estimated_error"] is None


def test_a_front_shows_estimates_and_full_precision_with_its_intervals(path: Path) -> None:
    lines = run(path, "front", "digits").stdout.splitlines()

    assert "estimate" in lines[0]
    assert "±" in lines[1]
    assert lines[-1] == (
        "full precision, trial 0: error 7.5 % (95 % interval 5.3 % to 10.5 % on 400 samples), "
        "test error 5.0 % (95 % interval 3.3 % to 7.6 % on 400 samples)"
    )


def test_the_front_by_the_measured_error_is_that_of_the_values(path: Path) -> None:
    shown = run(path, "front", "digits", "--by", "error", "--format", "json").stdout
    rows = [json.loads(line) for line in shown.splitlines()]

    assert [row["trial"] for row in rows] == [2, 3]


def test_another_ranking_is_refused(path: Path) -> None:
    result = run(path, "best", "digits", "--by", "luck")

    assert result.exit_code == 2
    assert "'luck' is not one of 'estimate', 'error'" in result.stderr
