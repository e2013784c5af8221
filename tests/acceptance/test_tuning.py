"""`bitfront tune --samples` on Ray: to its end on a cluster, and killed on its way."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, best_sample
from objectives.evaluation.evaluator import Evaluator
from tests.support.clusters import head
from tests.support.contract import read_witness
from tests.support.tunings import Tuning, trained_here

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(1800)]


def job(model: Mapping[str, str]) -> JobSpec:
    samples = {"calibration": 16, "tuning": 64, "selection": 64, "test": 32}
    return JobSpec.model_validate(
        {
            "study": "digits",
            "model": {"source": "reference", "device": "cpu", **model},
            "data": {"source": "reference", "samples": samples},
            "quantizer": {"rounding": "nearest"},
            "search": {"workers": 2, "checkpoint_s": 0.1},
        }
    )


def check(tuning: Tuning, printed: str) -> dict[int, TuningSample]:
    """The samples of an experiment that went to its end, with all that holds of each."""
    samples = tuning.stored()
    assert sorted(samples) == list(range(tuning.samples))
    assert {s.state for s in samples.values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    evaluator = Evaluator.from_spec(tuning.spec)
    for number, sample in samples.items():
        configuration = sample.on(tuning.plan)
        checkpoint = tuning.folder / f"here-{number}"
        here = trained_here(evaluator, configuration, sorted(sample.errors), checkpoint)
        assert sample.errors == here
        assert sample.nbytes == sum(evaluator.nbytes(configuration).values())
    shown = [
        (line["number"], line["step"])
        for line in read_witness(tuning.witness)
        if line["event"] == "sample showed"
    ]
    assert len(shown) == len(set(shown)), "a step was trained twice"
    assert set(shown) == {(n, step) for n, sample in samples.items() for step in sample.errors}
    best = best_sample(samples)
    assert best is not None
    card = json.loads((tuning.out / "card.json").read_text())
    assert card["configuration"] == best.on(tuning.plan).to_dict()
    assert card["selection_error"]["tuned"] == best.error
    assert best.test_error is not None
    assert [n for n, sample in samples.items() if sample.test_error is not None] == [best.number]
    assert printed.count(" steps\n") == tuning.samples
    assert "error on the test split: " in printed
    return samples


def test_a_killed_tuning_resumes_with_all_that_it_stored(tmp_path: Path) -> None:
    tuning = Tuning.of(tmp_path, job({}), Precision(2, 8), samples=6, steps=27)
    before = tuning.kill_when(
        lambda stored: sum(s.state is not TrialState.RUNNING for s in stored) >= 2
    )

    printed = tuning.run()

    samples = check(tuning, printed)
    assert len(before) < tuning.samples
    for number, sample in before.items():
        after = samples[number]
        assert after.recovery == sample.recovery
        assert after.errors.items() >= sample.errors.items()
        if sample.state is TrialState.RUNNING:
            assert after.attempt == 2
        else:
            assert (after.state, after.attempt, after.errors) == (sample.state, 1, sample.errors)


@pytest.mark.slow
def test_a_generative_model_is_tuned_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    tuning = Tuning.of(tmp_path, job({"name": "digit-llava"}), Precision(2, 8), samples=3, steps=9)

    with head({"BITFRONT_WITNESS": str(tuning.witness)}) as cluster:
        printed = tuning.run("--address", cluster.address)

    check(tuning, printed)
