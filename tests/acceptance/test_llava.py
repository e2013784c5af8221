"""A generative model's study, as a person runs it: vision tower, clips, cells, trials, front."""

import json
from pathlib import Path

import pytest

from tests.support.studies import Study

JOB = """
model: {source: reference, name: digit-llava}
data:
  source: reference
  samples: {calibration: 8, tuning: 1, selection: 32, test: 32}
space: {weight_bits: [3, 8], activation_bits: [4], clips: [1.0, 0.99]}
partition: {granularity: layer}
profile: {cells: adaptive, vision: {samples: 8, epochs: 1}}
search: {budgets: 3, workers: 2}
"""


pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(600)]


def test_a_killed_study_keeps_what_it_learned_and_ends_with_clipped_plans(tmp_path: Path) -> None:
    study = Study(tmp_path, "questions", trials=9, job=JOB)
    clips = "SELECT COUNT(*) FROM stage_artefact WHERE kind = 'clips'"
    bounds = "SELECT key, content, created_at FROM stage_artefact WHERE kind = 'bounds'"

    study.kill_when(study.start("submit", str(study.job)), lambda: study.count(clips) > 3)
    learned = study.rows(bounds)
    searched = study.rows("SELECT key, created_at FROM stage_artefact WHERE kind = 'clips'")
    assert study.start("resume", "questions").wait() == 0

    assert study.rows("SELECT state FROM study") == [("complete",)]
    assert len(learned) == 1
    assert study.rows(bounds) == learned
    later = study.rows("SELECT key, created_at FROM stage_artefact WHERE kind = 'clips'")
    assert set(searched) <= set(later)
    assert len(later) > len(searched)
    plans = study.rows("SELECT configuration FROM trial WHERE state = 'complete'")
    assert len(plans) == 9
    assert any("c0.99" in str(plan) for plan in plans)
    tested = study.rows(
        "SELECT trial.test_error FROM front JOIN trial ON trial.id = front.trial_id"
    )
    assert tested
    assert all(0 <= float(str(error)) <= 1 for (error,) in tested)
    (bounds,) = (json.loads(str(content)) for _, content, _ in learned)
    assert all("vision_tower" in layer for layer in bounds)
