"""What a study's task shows, and what it refuses, before any model is loaded."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bitfront as bf
from service.cli import main
from storage.store import open_store
from tests.support.store_samples import complete, job, trial

METRICS = {"image_retrieval_recall_at_1": 0.875, "text_retrieval_recall_at_10": 1.0}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with open_store(f"sqlite:///{path}") as store:
        data = {"source": "reference", "task": "retrieval"}
        store.create_study(job("finds", data=data), {})
        lease = store.acquire("finds", "a driver", 60)
        store.start_trial(lease, trial(0, "finds"))
        values = {"error": 0.1, "nbytes": 1000.0}
        assert complete(store, lease, 0, values, metrics={**values, **METRICS})
    return path


def test_a_retrieval_study_can_go_to_every_target_of_a_dual_encoder(database: Path) -> None:
    with bf.open(database) as db:
        found = db.study("finds").trial(0)

        names = [target.artefact for target in found.targets]
        assert names == ["packed", "onnx", "openvino"]  # asymmetric, with static ranges
        assert "torch (--to packed" in str(found)


def test_a_task_of_ones_own_is_not_built(tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    with open_store(f"sqlite:///{path}") as store:
        store.create_study(job("ranks", data={"source": "package", "task": "ranks"}), {})
        lease = store.acquire("ranks", "a driver", 60)
        store.start_trial(lease, trial(0, "ranks"))
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": 1000.0})
    with bf.open(path) as db:
        found = db.study("ranks").trial(0)

        assert found.targets == []
        with pytest.raises(bf.SpecError, match="models for ranks are not built yet"):
            found.build(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_recovery_for_retrieval_is_refused_in_a_sentence(database: Path, tmp_path: Path) -> None:
    with bf.open(database) as db:
        found = db.study("finds").trial(0)

        with pytest.raises(bf.SpecError, match=r"P4Q is trained .* retrieval has neither"):
            found.tune(tmp_path / "tuned")


def test_a_job_of_ones_own_is_not_tuned_either(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        json.dumps(job("finds").model_dump(mode="json")).replace(
            '"task": null', '"task": "retrieval"'
        )
    )

    result = CliRunner().invoke(
        main, ["tune", "--job", str(path), "--plan", "w4a8", "--out", str(tmp_path / "tuned")]
    )

    assert result.exit_code != 0
    assert "P4Q is trained on classes or on answers" in result.output


def test_all_shares_of_what_was_found_are_shown(database: Path) -> None:
    with bf.open(database) as db:
        found = db.study("finds").trial(0)

        shown = " ".join(found.details().split())
        assert "image retrieval recall at 1 87.5 %" in shown
        assert "text retrieval recall at 10 100.0 %" in shown
        assert METRICS.items() <= dict(found.details_dict()["metrics"]).items()  # type: ignore[call-overload]  # a mapping
