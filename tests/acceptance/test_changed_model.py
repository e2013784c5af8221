"""A model folder that changes between two runs of a study."""

import subprocess
from pathlib import Path

import pytest

from tests.support.clip_models import edit_json, save_pictures, save_transformers
from tests.support.studies import Study

JOB = """
model: {{source: transformers, name: {model}, device: cpu}}
data:
  source: image_folder
  path: {pictures}
  templates: ["{{}}"]
  samples: {{calibration: 8, tuning: 8, selection: 16, test: 8}}
space: {{weight_bits: [3, 8]}}
partition: {{granularity: layer}}
search: {{budgets: 2, workers: 1}}
"""


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.timeout(600)
def test_another_preprocessing_is_named_and_measured_anew(tmp_path: Path) -> None:
    model, pictures = tmp_path / "model", tmp_path / "pictures"
    save_transformers("clip", model)
    save_pictures(pictures, {"one": 20, "two": 20})
    study = Study(tmp_path, "changed", 6, JOB.format(model=model, pictures=pictures))
    assert run(study, "submit", str(study.job)) == 0, study.log.read_text()
    first = study.rows("SELECT error FROM cell ORDER BY id")

    edit_json(model / "preprocessor_config.json", image_mean=[3.0, 3.0, 3.0])
    assert run(study, "resume", "changed", "--trials", "7") == 2
    refusal = study.log.read_text().splitlines()[-1]
    assert refusal.startswith(
        "Error: study 'changed' was started with something else "
        "(preprocessing.image_mean was [0.48145466, 0.4578275, 0.40821073], is [3.0, 3.0, 3.0])"
    )
    assert study.rows("SELECT DISTINCT state FROM trial") == [("complete",)]

    accepted = ("resume", "changed", "--accept-changes", "--trials", "6")
    assert run(study, *accepted) == 0, study.log.read_text()
    counts = study.rows("SELECT state, count(*) FROM trial GROUP BY state ORDER BY state")
    assert counts == [("complete", 6), ("outdated", 6)]
    joined = "SELECT count(*) FROM front JOIN trial ON trial.id = trial_id WHERE state = 'outdated'"
    assert study.count(joined) == 0
    cells = study.rows("SELECT error FROM cell ORDER BY id")
    assert len(cells) == 2 * len(first)


def run(study: Study, *arguments: str) -> int:
    driver: subprocess.Popen[bytes] = study.start(*arguments)
    return driver.wait(timeout=240)
