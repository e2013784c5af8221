"""The command that tunes a recovery for one plan, and the pictures that it is used on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import draw_scenes, picture
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Trial
from objectives.data.images import read_image
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.tuned import read_tuned
from service.cli import main
from storage.store import open_store
from tests.support.store_samples import complete, job

SAMPLES = {"calibration": 32, "tuning": 128, "selection": 256, "test": 8}
FAST = ("--steps", "12", "--context-length", "2", "--reduction", "4")
# Of so few steps some do not help.
KEPT = (*FAST, "--keep-worse")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    content = {
        "study": "tuned",
        "model": {"source": "reference", "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES},
        "quantizer": {"rounding": "nearest"},
        "search": {"checkpoint_s": 0.01},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def tuned(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("out") / "tuned"
    return folder, run("tune", "--job", job_file, "--plan", "w2a8", "--out", folder, *FAST)


def test_tuning_says_what_it_wins_and_what_it_weighs(tuned: tuple[Path, Result]) -> None:
    folder, result = tuned

    assert result.exit_code == 0, result.output
    share = r"(\d+\.\d) %"
    found = re.match(
        f"error on the selection split: {share} quantized, {share} tuned, {share} in full precision"
        r"\n\S+ \S+, of which prompt \d+ B and adapter \S+ \S+\n$",
        result.stdout,
    )
    assert found is not None, result.stdout
    quantized, won, full = (float(share) for share in found.groups())
    assert full < won < quantized
    assert "tune: 12 of 12" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "recovery.safetensors"]


def test_the_card_tells_what_the_tensors_are(tuned: tuple[Path, Result], job_file: Path) -> None:
    folder, _ = tuned
    card = json.loads((folder / "card.json").read_text())
    tensors = load_file(folder / "recovery.safetensors")

    configuration = Configuration.from_dict(card["configuration"])
    assert configuration.recovery == Recovery(
        context_length=2, reduction=4, distillation=4.0, steps=12
    )
    assert {str(precision) for _, precision in configuration.plan} == {"w2a8", "w2a16"}
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert card["nbytes"]["prompt"] + card["nbytes"]["adapter"] == stored
    assert set(card["selection_error"]) == {"full_precision", "quantized", "tuned"}
    assert card["job"]["study"] == "tuned"
    assert {"torch", "bitfront"} <= card["versions"].keys()


def test_what_was_measured_is_what_was_written(tuned: tuple[Path, Result]) -> None:
    folder, _ = tuned
    card = json.loads((folder / "card.json").read_text())

    evaluator, configuration = read_tuned(folder)
    evaluation = evaluator.evaluate(configuration)

    assert evaluation.values["error"] == card["selection_error"]["tuned"]
    assert evaluation.metrics["hits.recovery"] == 1


def test_pictures_are_classified_with_what_was_tuned(
    tuned: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, _ = tuned
    photo = tmp_path / "photo.png"
    picture(draw_scenes("test", 1, 3).images[0]).save(photo)

    result = run("classify", photo, "--tuned", folder, "--top", 1)

    assert result.exit_code == 0, result.output
    evaluator, configuration = read_tuned(folder)
    ((best,),) = evaluator.scorer.classify(configuration, [read_image(photo)], 1)
    assert result.stdout == f"{photo}: {best[0]} {100 * best[1]:.1f} %\n"


def test_either_a_study_or_a_tuned_folder_is_named(
    tuned: tuple[Path, Result], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    picture(draw_scenes("test", 1, 3).images[0]).save(photo)

    for arguments in ((), ("--study", "a", "--tuned", tuned[0])):
        result = run("classify", photo, *arguments)
        assert result.exit_code == 2
        assert "either --study NAME, or --tuned FOLDER" in result.stderr


def test_a_studys_trial_is_tuned(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bitfront.db'}"
    spec = job(model={"source": "reference"}, data={"source": "reference", "samples": SAMPLES})
    with open_store(url) as store:
        store.create_study(spec, {})
        lease = store.acquire("digits", "driver", 60)
        evaluator = Evaluator.from_spec(spec)
        plan = Plan.uniform([layer.name for layer in evaluator.model.layers], Precision(3))
        nbytes = sum(evaluator.nbytes(Configuration(plan)).values())
        store.start_trial(lease, Trial(lease.name, 0, Configuration(plan), Origin.BASELINE, {}))
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": nbytes})
    options = ("digits", "--max-nbytes", nbytes + 1200, "--db", tmp_path / "bitfront.db")

    result = run("tune", *options, "--out", tmp_path / "tuned", *FAST)
    large = run("tune", *options, "--out", tmp_path / "large")

    assert result.exit_code == 0, result.output
    assert "trial 0 of study digits" in result.stderr
    _, configuration = read_tuned(tmp_path / "tuned")
    assert configuration.plan == plan
    assert large.exit_code == 2
    assert f"above --max-nbytes {nbytes + 1200:,}: give a larger --reduction" in large.stderr


def test_settings_that_are_not_given_are_those_of_the_trial(tmp_path: Path) -> None:
    spec = job(model={"source": "reference"}, data={"source": "reference", "samples": SAMPLES})
    recovery = Recovery(context_length=0, reduction=8, adapter_bits=4, blend=0.3, steps=5)
    with open_store(f"sqlite:///{tmp_path / 'bitfront.db'}") as store:
        store.create_study(spec, {})
        lease = store.acquire("digits", "driver", 60)
        configuration = Configuration(Plan.of({"visual.proj": Precision(2, 8)}), recovery)
        store.start_trial(lease, Trial(lease.name, 0, configuration, Origin.SAMPLER, {}))
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": 5000})

    result = run(
        *("tune", "digits", "--out", tmp_path / "tuned", "--blend", 0.5),
        *("--db", tmp_path / "bitfront.db"),
    )

    assert result.exit_code == 0, result.output
    _, tuned = read_tuned(tmp_path / "tuned")
    assert tuned == Configuration(configuration.plan, replace(recovery, blend=0.5, steps=200))


def test_a_plan_may_come_from_a_file(job_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"visual.proj": "w2a8"}')

    result = run("tune", "--job", job_file, "--plan", plan, "--out", tmp_path / "out", *KEPT)

    assert result.exit_code == 0, result.output
    _, configuration = read_tuned(tmp_path / "out")
    assert configuration.plan.to_dict() == {"visual.proj": "w2a8"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to tune: a study, or --job FILE with --plan PLAN"),
        (("--job", "JOB"), "--job needs --plan, such as --plan w4a8"),
        (("a", "--job", "JOB", "--plan", "w4a8"), "and no study"),
        (("--job", "JOB", "--plan", "w9a8"), "got 9"),
        (("--job", "JOB", "--plan", "JOB"), "holds no plan"),
        (("--job", "JOB", "--plan", "w4a8", "--context-length", "0", "--reduction", "0"), "prompt"),
        (("--job", "JOB", "--plan", "w4a8", "--context-length", "60"), "do not fit"),
        (("--job", "JOB", "--plan", "w4a8", "--blend", "2"), "blend"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(
    job_file: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    given = [str(job_file) if argument == "JOB" else argument for argument in arguments]

    result = run("tune", *given, "--out", tmp_path / "out")

    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert not (tmp_path / "out" / "card.json").exists()


def test_what_was_tuned_is_not_overwritten_unasked(
    tuned: tuple[Path, Result], job_file: Path
) -> None:
    folder, _ = tuned
    before = (folder / "recovery.safetensors").read_bytes()
    arguments = ("tune", "--job", job_file, "--plan", "w2a8", "--out", folder, *FAST)

    refused = run(*arguments)

    assert refused.exit_code == 2
    assert "give --overwrite, or another --out" in refused.stderr
    assert run(*arguments, "--overwrite").exit_code == 0
    assert (folder / "recovery.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["no card", "no tensors", "other tensors", "another card"])
def test_a_folder_that_holds_no_tuned_recovery_is_refused(
    tuned: tuple[Path, Result], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("card.json", "recovery.safetensors"):
        (folder / name).write_bytes((tuned[0] / name).read_bytes())
    if damage == "no card":
        (folder / "card.json").unlink()
    elif damage == "no tensors":
        (folder / "recovery.safetensors").unlink()
    elif damage == "other tensors":
        (folder / "recovery.safetensors").write_bytes(b"something else")
    else:
        (folder / "card.json").write_text('{"format": "something else"}')
    photo = tmp_path / "photo.png"
    picture(draw_scenes("test", 1, 3).images[0]).save(photo)

    result = run("classify", photo, "--tuned", folder)

    assert result.exit_code == 2
    assert "tune" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_killed_tuning_goes_on_to_the_same_bytes(job_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "tune", "--job", str(job_file), "--plan", "w2a8"]
    command += ["--steps", "80", "--context-length", "2", "--keep-worse"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, env=environment)

    first = subprocess.Popen([*command, "--out", str(killed)], env=environment)
    deadline_s = time.monotonic() + 120
    while not (killed / "checkpoint.safetensors").exists() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (killed / "card.json").exists()
    again = subprocess.run(
        [*command, "--out", str(killed)], check=True, env=environment, capture_output=True
    )

    assert b"trained from its start" not in again.stderr
    ours, theirs = (folder / "recovery.safetensors" for folder in (killed, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not (killed / "checkpoint.safetensors").exists()


def test_a_generative_model_is_tuned_and_asked(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    content = {
        "study": "tuned",
        "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES},
    }
    path.write_text(yaml.safe_dump(content))
    drawn = draw_questions(SplitName.TEST.value, 1, seed=5, kinds=("place",))
    photo = tmp_path / "photo.png"
    picture(drawn.images[0]).save(photo)

    result = run("tune", "--job", path, "--plan", "w3a8", "--out", tmp_path / "out", *KEPT)
    asked = run("ask", photo, drawn.questions[0], "--tuned", tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert asked.exit_code == 0, asked.output
    assert asked.stdout == f"{drawn.answers[0]}\n"


def test_a_recovery_that_does_not_help_is_kept_only_if_asked_for(
    job_file: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"visual.proj": "w8a8"}')  # nearly full precision: nothing to win back
    arguments = ("tune", "--job", job_file, "--plan", plan, "--out", tmp_path / "out")
    harmful = ("--steps", 3, "--reduction", 0, "--learning-rate-multiplier", 1000)

    refused = run(*arguments, *harmful)
    kept = run(*arguments, *harmful, "--keep-worse")

    assert refused.exit_code == 1
    assert "does not help" in refused.stderr
    assert "give --keep-worse" in refused.stderr
    assert kept.exit_code == 0, kept.output
    assert "tune: 0 of 3" not in kept.stderr, "what was trained is not trained again"
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["selection_error"]["tuned"] > card["selection_error"]["quantized"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "card.json",
        "recovery.safetensors",
    ]


GENERATIVE = {"source": "reference", "name": "digit-llava"}


def _study(
    folder: Path, trials: int, sections: Mapping[str, object], model_identity: str | None = None
) -> tuple[str, ...]:
    """The options that name a study with so many trials of no consequence."""
    data = {"source": "reference", "samples": SAMPLES}
    spec = JobSpec.model_validate(
        {"study": "digits", "model": {"source": "reference"}, "data": data, **sections}
    )
    with open_store(f"sqlite:///{folder / 'bitfront.db'}") as store:
        store.create_study(spec, {})
        lease = store.acquire("digits", "driver", 60)
        if model_identity is not None:
            store.set_provenance(lease, {"model": model_identity})
        for number in range(trials):
            plan = Plan.of({"visual.proj": Precision(2 + number, 8)})
            trial = Trial("digits", number, Configuration(plan), Origin.BASELINE)
            store.start_trial(lease, trial)
            assert complete(store, lease, number, {"error": 0.1, "nbytes": 5000})
    return "digits", "--db", str(folder / "bitfront.db")


@pytest.mark.parametrize(
    ("trials", "sections", "sentence"),
    [
        (0, {}, "study 'digits' is still measuring cells, and its trials come after them: see"),
        (0, {"model": GENERATIVE}, "study 'digits' is still measuring cells"),
        (
            0,
            {"model": GENERATIVE, "profile": {"vision": {}}},
            "study 'digits' is still measuring cells",
        ),
        (
            1,
            {"model": GENERATIVE, "profile": {"vision": {}}},
            "the study has not recorded its model, since it never loaded its model",
        ),
        (
            1,
            {"model": {"source": "transformers", "name": "/moved/away"}},
            "the model of study 'digits' is missing: there is no transformers model at "
            "/moved/away: the folder does not exist",
        ),
        (
            1,
            {"model": {"source": "open_clip", "name": "ViT-B-32", "weights": "/moved/away.pt"}},
            "the model of study 'digits' is missing: the file /moved/away.pt "
            "with the weights of ViT-B-32 does not exist",
        ),
    ],
)
def test_a_study_that_cannot_be_tuned_is_refused_in_one_sentence(
    tmp_path: Path, trials: int, sections: dict[str, object], sentence: str
) -> None:
    named = _study(tmp_path, trials, sections)

    result = run("tune", *named, "--out", tmp_path / "out")

    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    *_, error = result.stderr.strip().splitlines()
    assert error.startswith("Error: ")
    assert sentence in error
    assert len(error) < 300
    assert not (tmp_path / "out").exists()


def test_another_model_than_that_of_the_study_is_not_tuned(tmp_path: Path) -> None:
    named = _study(tmp_path, 1, {}, "0" * 64)

    result = run("tune", *named, "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert "study 'digits' was measured with another model than digit-clip is now" in (
        result.stderr
    )
    assert not (tmp_path / "out").exists()
