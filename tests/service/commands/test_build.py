"""`bitfront build`: from a trial in the database to a folder that runs without bitfront."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import picture
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Origin, Trial
from bitfront.vlm import load_model
from objectives.evaluation.evaluator import Evaluator
from service.cli import main
from storage.store import Store, open_store
from tests.support.store_samples import complete, fail, job

pytestmark = pytest.mark.runtime

SAMPLES = {"calibration": 16, "tuning": 16, "selection": 40, "test": 4}
DATA = {"source": "reference", "samples": SAMPLES}
PRECISIONS = {0: Precision(4, 8), 1: Precision(3, 16, 32)}
CLIP, LLAVA, SYMMETRIC = "digit-clip", "digit-llava", "digit-llava-symmetric"
FINDS = "digit-clip-retrieval"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of the bundled models with measured trials, two of them with a failed one too."""
    path = tmp_path_factory.mktemp("build") / "bitfront.db"
    with open_store(f"sqlite:///{path}") as store:
        for name in (CLIP, LLAVA):
            spec = job(
                name, model={"source": "reference", "name": name, "device": "cpu"}, data=DATA
            )
            _fill(store, name, spec)
        _fill_symmetric(store)
        _fill_retrieval(store)
    return path


def _fill_retrieval(store: Store) -> None:
    """A measured trial that finds scenes by captions."""
    spec = job(
        FINDS,
        model={"source": "reference", "name": CLIP, "device": "cpu"},
        data={**DATA, "task": "retrieval"},
    )
    store.create_study(spec, {})
    lease = store.acquire(FINDS, "driver", 60)
    evaluator = Evaluator.from_spec(spec)
    layers = [layer.name for layer in evaluator.model.layers]
    found = Configuration(Plan.uniform(layers, PRECISIONS[0]))
    store.start_trial(lease, Trial(FINDS, 0, found, Origin.BASELINE, {}))
    assert complete(store, lease, 0, evaluator.evaluate(found).values)


def _fill_symmetric(store: Store) -> None:
    """A trial that a checkpoint of transformers can hold."""
    spec = job(
        SYMMETRIC,
        model={"source": "reference", "name": LLAVA, "device": "cpu"},
        data=DATA,
        quantizer={"scheme": "symmetric", "rounding": "nearest"},
    )
    store.create_study(spec, {})
    lease = store.acquire(SYMMETRIC, "driver", 60)
    layers = [layer.name for layer in load_model(spec.model).layers]
    found = Configuration(Plan.uniform(layers, Precision(4, 16)))
    store.start_trial(lease, Trial(SYMMETRIC, 0, found, Origin.BASELINE, {}))
    assert complete(store, lease, 0, {"error": 0.5, "nbytes": 1.0})
    floats = Configuration(Plan.uniform(layers, Precision.parse("nf4a16g64")))
    store.start_trial(lease, Trial(SYMMETRIC, 1, floats, Origin.BASELINE, {}))
    assert complete(store, lease, 1, {"error": 0.5, "nbytes": 1.0})


def _fill(store: Store, name: str, spec: JobSpec) -> None:
    store.create_study(spec, {})
    lease = store.acquire(name, "driver", 60)
    evaluator = Evaluator.from_spec(spec)
    layers = [layer.name for layer in evaluator.model.layers]
    for number, precision in PRECISIONS.items():
        recovery = Recovery(context_length=2, reduction=8, steps=3) if number else None
        found = Configuration(Plan.uniform(layers, precision), recovery)
        store.start_trial(lease, Trial(name, number, found, Origin.BASELINE, {}))
        assert complete(store, lease, number, evaluator.evaluate(found).values)
    wrong = Configuration(Plan.uniform(layers, Precision(2)))
    store.start_trial(lease, Trial(name, 2, wrong, Origin.BASELINE, {}))
    assert fail(store, lease, 2, 1, Cause.USER_ERROR, "broken", retry=False)
    lie = Configuration(Plan.uniform(layers, Precision(2, 4)))
    store.start_trial(lease, Trial(name, 3, lie, Origin.BASELINE, {}))
    values = evaluator.evaluate(lie).values
    assert complete(store, lease, 3, {**values, "error": 0.999})


def run(database: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(database)])


def listed(database: Path, study: str) -> list[dict[str, object]]:
    result = run(database, "artefacts", study, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def built(database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("built") / "model"
    return out, run(database, "build", CLIP, "--trial", "0", "--out", str(out))


def test_a_build_says_what_it_found_and_how_to_use_it(built: tuple[Path, Result]) -> None:
    out, result = built

    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"trial 0 of study {CLIP}\n"
    assert f"{out} is built, and verified in a process without bitfront" in result.stdout
    assert "as promised to the byte" in result.stdout
    assert "100.0 % of the predictions are the same" in result.stdout
    assert re.search(r"error .* of 40 samples \(.* to .* %\), measured ", result.stdout)
    for label in ("latency", "float32", "bfloat16"):
        assert re.search(rf"\n{label} +.* ms at batch 1, .* ms at batch 32\n", result.stdout)
    for size in (1, 32):
        assert re.search(rf"\nspeed +at batch {size} .* times as fast", result.stdout)
    assert "It needs torch, safetensors, pillow." in result.stdout
    assert result.stdout.endswith((out / "example.py").read_text() + "\n")


def test_the_card_says_where_the_model_comes_from(
    built: tuple[Path, Result], database: Path
) -> None:
    out, _ = built

    card = json.loads((out / "card.json").read_text())

    assert (card["study"], card["trial"]) == (CLIP, 0)
    assert card["verification"]["largest_difference"] < 1e-4
    assert card["verification"]["same_predictions"] == 1
    assert card["verification"]["error"] == card["measured"]["error"]
    assert card["verification"]["tensors_nbytes"] == card["measured"]["nbytes"]
    references = card["verification"]["references"]
    assert [one["dtype"] for one in references] == ["float32", "bfloat16"]
    for one in references:
        assert set(one["latency_s"]) == set(one["speedup"]) == {"1", "32"}
    assert min(card["verification"]["repeats"].values()) >= 7
    assert card["templates"] == ["a picture of {}"]
    assert len(card["classes"]) == 200
    assert names(out) == sorted([*card["files"], "card.json"])
    assert names(out.parent) == ["model"]


def test_what_was_built_is_listed_with_its_digests(
    built: tuple[Path, Result], database: Path, tmp_path: Path
) -> None:
    out, _ = built

    (found,) = [known for known in listed(database, CLIP) if known["path"] == str(out)]
    table = run(database, "artefacts", CLIP).stdout

    assert found["state"] == "whole"
    assert found["trial"] == 0
    assert re.search(r"\d x (float32|bfloat16) +whole", table)
    assert set(found["files"]) == set(names(out))  # type: ignore[call-overload]  # a dict
    assert str(out) in table
    assert "whole" in table


def test_a_flipped_byte_is_found_by_its_digest(
    built: tuple[Path, Result], database: Path, tmp_path: Path
) -> None:
    out, _ = built
    for name in names(out):
        content = (out / name).read_bytes()
        (out / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])

        (found,) = [known for known in listed(database, CLIP) if known["path"] == str(out)]

        assert found["state"] == f"damaged: {name}"
        (out / name).write_bytes(content)
    away = out.rename(tmp_path / "away")
    (found,) = [known for known in listed(database, CLIP) if known["path"] == str(out)]
    away.rename(out)
    assert found["state"] == "missing"


def test_limits_pick_the_trial_as_best_does(database: Path, tmp_path: Path) -> None:
    best = json.loads(run(database, "best", LLAVA, "--format", "json").stdout)
    out = tmp_path / "model"

    result = run(database, "build", LLAVA, "--out", str(out))
    none = run(database, "build", LLAVA, "--max-nbytes", "1kB", "--out", str(tmp_path / "none"))

    assert result.stderr == f"trial {best['trial']} of study {LLAVA}\n"
    assert none.exit_code == 1
    assert "has no trial with size at most 1.00 kB: the nearest is trial" in none.stderr
    assert names(tmp_path) == ["model"]


def test_a_recovered_generative_model_answers_from_the_folder_alone(
    database: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    result = run(database, "build", LLAVA, "--trial", "1", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    drawn = draw_questions("test", 1, seed=5, kinds=("place",))
    photo = tmp_path / "photo.png"
    picture(drawn.images[0]).resize((240, 240)).save(photo)
    asked = (str(photo), drawn.questions[0])
    said = run(database, "ask", *asked, "--study", LLAVA, "--trial", "1").stdout

    ran = run_alone(out / "example.py", *asked)

    assert ran.stdout == said
    assert len((out / "example.py").read_text().splitlines()) <= 16


@pytest.mark.parametrize("target", ["packed", "onnx"])
def test_a_retrieval_study_is_built_and_puts_pictures_in_order(
    target: str, database: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"

    result = run(database, "build", FINDS, "--to", target, "--out", str(out))

    assert result.exit_code == 0, result.stderr
    assert re.search(r"error .* of 40 samples \(.* to .* %\), measured ", result.stdout)
    assert result.stdout.endswith((out / "example.py").read_text() + "\n")
    card = json.loads((out / "card.json").read_text())
    assert card["task"] == "retrieval"
    assert card["verification"]["same_tokens"] == 1
    assert card["verification"]["tensors_nbytes"] == card["measured"]["nbytes"]
    (found,) = listed(database, FINDS)[-1:]
    assert (found["target"], found["state"]) == (target, "whole")
    if target == "onnx":
        return  # it needs NumPy, which a script alone has not here
    photos = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, photo in enumerate(photos):
        picture(draw_questions("test", 1, seed=seed, kinds=("place",)).images[0]).save(photo)
    ran = run_alone(out / "example.py", "a picture of a three left of an eight", *map(str, photos))
    assert sorted(line.split()[1] for line in ran.stdout.splitlines()) == list(map(str, photos))


def test_llama_cpp_takes_no_retrieval_study(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"

    result = run(database, "build", FINDS, "--to", "gguf", "--out", str(out))

    assert result.exit_code == 2
    assert "gguf is for transformers' LLaVA, and this is a CLIP" in result.stderr
    assert not out.exists()


@pytest.fixture(scope="module")
def exported(database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("exported") / "model"
    return out, run(database, "build", CLIP, "--trial", "0", "--to", "onnx", "--out", str(out))


def test_a_model_for_onnxruntime_is_verified_there_and_recorded(
    exported: tuple[Path, Result], database: Path
) -> None:
    out, result = exported
    said = result.stdout

    assert result.exit_code == 0, result.stderr
    assert "It needs onnxruntime, numpy, pillow." in result.stdout
    assert result.stdout.endswith((out / "example.py").read_text() + "\n")
    modules = ["card.json", "example.py", "exported_model.py"]
    assert names(out) == [*modules, "image.onnx", "text.onnx"]
    card = json.loads((out / "card.json").read_text())
    assert card["verification"]["text_cosine"] > 0.99
    assert card["verification"]["error_low"] <= card["measured"]["error"]
    assert set(card["kernels"].values()) == {"MatMulIntegerToFloat"}
    assert [one["dtype"] for one in card["verification"]["references"]] == ["float32"]
    assert re.search(r"float32 .* \(16 bits on disk, which ONNX Runtime computes in 32\)", said)
    assert card["changes"] == []
    (found,) = [known for known in listed(database, CLIP) if known["path"] == str(out)]
    assert (found["target"], found["state"]) == ("onnx", "whole")


def test_what_cannot_be_exported_leaves_nothing(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"

    result = run(database, "build", CLIP, "--trial", "3", "--to", "onnx", "--out", str(out))

    assert result.exit_code == 2
    said = r"the artefact's error is 0\.\d+ \(.*\), but 0.9990 was measured"
    assert re.search(said, result.stderr)
    assert names(tmp_path) == []


def test_a_latency_that_was_predicted_in_the_runtime_stands_beside_the_measured_one(
    tmp_path: Path,
) -> None:
    database = tmp_path / "timed.db"
    spec = job(
        "timed",
        model={"source": "reference", "device": "cpu"},
        data={**DATA, "batch_size": 8},
        objectives=["error", "latency_s"],
        target="onnxruntime",
    )
    with open_store(f"sqlite:///{database}") as store:
        store.create_study(spec, {})
        lease = store.acquire("timed", "driver", 60)
        evaluator = Evaluator.from_spec(spec)
        plan = Plan.uniform([layer.name for layer in evaluator.model.layers], Precision(4, 8))
        store.start_trial(lease, Trial("timed", 0, Configuration(plan), Origin.BASELINE, {}))
        values = evaluator.evaluate(Configuration(plan)).values
        assert complete(store, lease, 0, values)

    said = {
        target: run(
            database,
            "build",
            "timed",
            "--trial",
            "0",
            "--to",
            target,
            "--out",
            f"{tmp_path}/{target}",
        ).stdout
        for target in ("onnx", "packed")
    }

    assert f"predicted  {8000 * values['latency_s']:.3g} ms at batch 8\n" in said["onnx"]
    assert re.search(r"latency .* ms at batch 1, .* ms at batch 8, .* ms at batch 32", said["onnx"])
    assert "predicted" not in said["packed"]


@pytest.mark.parametrize(("target", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_is_told_before_anything_is_loaded(
    target: str, package: str, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    arguments = ("--trial", "0", "--to", target, "--out", str(tmp_path / "model"))

    result = run(database, "build", CLIP, *arguments)

    assert result.exit_code == 2
    assert f"needs {package}: 'pip install bitfront[{package}]'" in result.stderr


def test_a_model_for_openvino_is_verified_there_and_recorded(
    database: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"

    result = run(database, "build", LLAVA, "--trial", "0", "--to", "openvino", "--out", str(out))

    assert result.exit_code == 0, result.stderr
    assert "It needs openvino, numpy, pillow." in result.stdout
    for label in ("latency", "float32", "bfloat16"):
        assert re.search(rf"\n{label} .* ms at batch 32, [0-9.]+ ms a token\n", result.stdout)
    assert re.search(r"\nspeed +writing a token .* times as fast", result.stdout)
    (found,) = [known for known in listed(database, LLAVA) if known["path"] == str(out)]
    assert (found["target"], found["state"]) == ("openvino", "whole")


ALONE = """
import runpy, sys
for name in ("bitfront", "objectives", "service", "storage", "open_clip", "transformers", "numpy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where only torch, safetensors and Pillow can be imported."""
    command = [sys.executable, "-I", "-c", ALONE, str(script), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trial", "9"), "has no trial 9"),
        (("--trial", "2"), "trial 2 of study 'digit-clip' is failed, so nothing is promised"),
    ],
    ids=["unknown", "failed"],
)
def test_a_trial_that_promises_nothing_is_refused(
    database: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = run(database, "build", CLIP, *arguments, "--out", str(tmp_path / "model"))

    assert result.exit_code == 2
    assert said in result.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["onnx", "openvino", "compressed-tensors", "gguf"])
def test_number_formats_that_a_target_has_no_place_for_are_refused(
    database: Path, tmp_path: Path, target: str
) -> None:
    out = tmp_path / "model"

    result = run(database, "build", SYMMETRIC, "--trial", "1", "--to", target, "--out", str(out))

    assert result.exit_code == 2
    assert (
        f"--to {target} has no place for nf4, in which trial 1 has weights: name a trial with "
        "integer weights, or build it with --to packed"
    ) in result.stderr
    assert names(tmp_path) == []


def test_a_folder_that_is_there_is_not_touched(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "mine").write_text("mine")

    result = run(database, "build", CLIP, "--trial", "0", "--out", str(out))

    assert result.exit_code == 2
    assert "is there already: remove it, or name another folder" in result.stderr
    assert (out / "mine").read_text() == "mine"


def test_an_artefact_that_is_not_what_was_measured_gets_no_name(
    database: Path, tmp_path: Path
) -> None:
    before = listed(database, CLIP)

    result = run(database, "build", CLIP, "--trial", "3", "--out", str(tmp_path / "model"))

    assert result.exit_code == 2
    assert re.search(
        r"the artefact's error is 0\.\d+ \(.*\), but 0.9990 was measured", result.stderr
    )
    assert names(tmp_path) == []
    assert listed(database, CLIP) == before


def start(database: Path, out: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service", "build", CLIP, "--trial", "0"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--db", str(database)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("build.written", marks=pytest.mark.slow),
        "build.reference",
        pytest.param("build.verified", marks=pytest.mark.slow),
        "put.before_commit",
        pytest.param("build.recorded", marks=pytest.mark.slow),
    ],
)
def test_a_build_that_was_killed_leaves_no_artefact_and_builds_again(
    database: Path, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "model"
    killed = start(database, out, BITFRONT_FAILPOINT=point)
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    assert not out.exists()
    assert len(names(tmp_path)) == 1

    again = run(database, "build", CLIP, "--trial", "0", "--out", str(out))

    assert again.exit_code == 0, again.stderr
    assert names(tmp_path) == ["model"]
    (found,) = [known for known in listed(database, CLIP) if known["path"] == str(out)]
    assert found["state"] == "whole"


FULL = """
import resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from service.cli import main
main(sys.argv[2:])
"""


def run_on_a_full_disk(nbytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The limit on a file's size stands for the disk: it fails a write in the same place."""
    return subprocess.run(
        [sys.executable, "-c", FULL, str(nbytes), *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )


@pytest.mark.parametrize(
    ("study", "target"),
    [
        (CLIP, "packed"),
        (CLIP, "onnx"),
        (CLIP, "openvino"),
        (LLAVA, "onnx"),
        (SYMMETRIC, "compressed-tensors"),
        (SYMMETRIC, "gguf"),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    database: Path, tmp_path: Path, study: str, target: str
) -> None:
    out = tmp_path / "model"
    arguments = ("build", study, "--trial", "0", "--to", target, "--out", str(out))

    ran = run_on_a_full_disk(100_000, *arguments, "--db", str(database))

    assert ran.returncode == 2, ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: {out} cannot be built: ")
    assert "Traceback" not in ran.stderr
    assert names(tmp_path) == []


def test_a_disk_without_room_for_the_full_model_builds_without_its_times(
    database: Path, tmp_path: Path
) -> None:
    """238 kB are written, and the 828 kB of full precision are not."""
    out = tmp_path / "model"
    small = tmp_path / "small.db"
    small.write_bytes(database.read_bytes())
    arguments = ("build", CLIP, "--trial", "0", "--out", str(out), "--db", str(small))

    ran = run_on_a_full_disk(700_000, *arguments)

    assert ran.returncode == 0, ran.stderr
    assert re.search(
        r"speed +the model at full precision was not timed beside it: .*File too large", ran.stdout
    )
    assert re.search(r"\nlatency +.* ms at batch 1, .* ms at batch 32\n", ran.stdout)
    assert names(tmp_path) == ["model", "small.db"]
    (found,) = [known for known in listed(small, CLIP) if known["path"] == str(out)]
    assert found["state"] == "whole"


def test_times_of_full_precision_can_be_left_out(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    monkeypatch.setenv("BITFRONT_FAILPOINT", "build.reference")  # nothing may come there

    result = run(database, "build", CLIP, "--trial", "0", "--no-reference", "--out", str(out))

    assert result.exit_code == 0, result.stderr
    assert "float32" not in result.stdout
    assert "speed" not in result.stdout
    assert json.loads((out / "card.json").read_text())["verification"]["references"] == []


def test_nothing_built_yet_is_a_sentence(database: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with open_store(f"sqlite:///{other}") as store:
        store.create_study(job("empty"), {})

    result = run(other, "artefacts", "empty")

    assert result.exit_code == 0
    assert "nothing was built from study empty yet: 'bitfront build empty --out" in result.stderr
