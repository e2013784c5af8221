"""What a study takes is said before it starts, and nothing is stored."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.reference.digit_clip import load_clip
from bitfront.spec import JobSpec
from service.cli import main
from service.study.dry_run import dry_run
from service.views.dry_run import dry_run_lines

JOB = """
study: later
stop: {trials: 40}
model: {source: reference, device: cpu}
data:
  source: reference
  samples: {calibration: 8, tuning: 8, selection: 8, test: 8}
"""


def spec_of(**changes: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "study": "later",
            "model": {"source": "reference", "device": "cpu"},
            "data": {
                "source": "reference",
                "samples": {"calibration": 8, "tuning": 8, "selection": 8, "test": 8},
            },
            **changes,
        }
    )


def submit(folder: Path, *options: str) -> Result:
    job = folder / "job.yaml"
    job.write_text(JOB)
    command = ["submit", str(job), "--dry-run", "--db", str(folder / "a.db"), *options]
    return CliRunner().invoke(main, command)


def test_a_dry_run_names_size_time_and_room_and_stores_nothing(tmp_path: Path) -> None:
    result = submit(tmp_path, "--trials", "30")

    assert result.exit_code == 0, result.output
    weights = sum(p.numel() for n, p in load_clip().named_parameters() if p.ndim > 1)
    found = re.match(r"(\d+) layers with ([\d,]+) weights, in (\d+) blocks\n", result.stdout)
    assert found is not None
    # The positional embeddings are no layer of their own.
    assert 0.9 * weights < int(found[2].replace(",", "")) <= weights
    for text in ("the profile measures up to", "profile: ", "(30 of ", "a worker; disk: "):
        assert text in result.stdout
    assert not (tmp_path / "a.db").exists()


def test_a_dry_run_on_a_cluster_is_refused(tmp_path: Path) -> None:
    result = submit(tmp_path, "--address", "auto")

    assert result.exit_code == 2
    assert "Error: --dry-run times this machine: leave --address out" in result.stderr


def test_layers_alone_take_a_cell_for_every_precision() -> None:
    spec = spec_of(partition={"granularity": "layer"}, space={"weight_bits": [2, 3, 8]})

    estimate = dry_run(spec, lambda _: None)

    assert estimate.layers == estimate.blocks
    assert estimate.cells == 3 * estimate.layers
    assert estimate.log10_plans == pytest.approx(estimate.layers * 0.47712125, abs=1e-6)
    assert estimate.recovery_s is None


def test_joint_options_are_counted_with_the_layers_that_predict_them() -> None:
    space = {"weight_bits": [3, 8], "recovery": {"steps": [1, 3]}}
    screened = dry_run(spec_of(space=space), lambda _: None)
    whole = dry_run(spec_of(space=space, profile={"slack": 0}), lambda _: None)

    assert screened.cells > whole.cells
    # Layers that are blocks of their own are not measured twice.
    assert screened.cells - whole.cells <= 2 * screened.layers
    assert whole.options == screened.options
    assert screened.recovery_s is not None
    text = "\n".join(dry_run_lines(screened, spec_of(space=space)))
    assert "if all have the longest one" in text
    assert f"up to {screened.cells:,} cells" in text
    assert "not counted" not in text
    clips = spec_of(space={**space, "clips": [1.0, 0.99]})
    assert "not counted: the search of clips" in "\n".join(dry_run_lines(screened, clips))


def test_a_job_with_one_option_a_block_is_timed_too() -> None:
    estimate = dry_run(spec_of(space={"weight_bits": [4]}), lambda _: None)

    assert (estimate.options, estimate.log10_plans) == (1, 0)
    assert estimate.cell_s > 0


def test_a_kept_layer_has_one_option() -> None:
    space = spec_of(space={"weight_bits": [3, 8], "keep": {"visual*": 8}}).space
    estimate = dry_run(
        spec_of(partition={"granularity": "layer"}, space=space.model_dump()), lambda _: None
    )

    assert estimate.cells < 2 * estimate.layers
