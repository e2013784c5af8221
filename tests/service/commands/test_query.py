"""What the commands print about a stored study, on both streams, with their exit codes."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.attempt import Evaluated, IntermediateValue
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import DataSource, DataSpec, JobSpec, ModelSource, ModelSpec, StopSpec
from bitfront.trial import Cause, Evaluation, FrontChange, Origin, StudyState, Trial
from service.api.database import open_database
from service.cli import main
from service.commands.demo import demo_job, show
from service.database_url import file_url
from storage.records import Request
from storage.store import open_store
from tests.support.store_samples import attempt, complete, fail, prune

SCOPE = "visual.transformer.resblocks.0"
LAYERS = tuple(
    Layer(name, tower, LayerKind.LINEAR, 10, 100, 1, name, scope)
    for name, tower, scope in (
        ("visual.conv1.weight", Tower.VISION, "vision"),
        (f"{SCOPE}.attn.in_proj_weight", Tower.VISION, SCOPE),
        (f"{SCOPE}.mlp.c_fc.weight", Tower.VISION, SCOPE),
        ("text_projection", Tower.TEXT, "text"),
    )
)
BLOCKS = (
    Block("vision.0", Tower.VISION, tuple(layer.name for layer in LAYERS[:3])),
    Block("text.0", Tower.TEXT, (LAYERS[3].name,)),
)
MIXED = Plan.of(
    {
        LAYERS[0].name: Precision(8, 8),
        LAYERS[1].name: Precision(3, 8),
        LAYERS[2].name: Precision(2, 8),
        LAYERS[3].name: Precision(4, 8),
    }
)
RECOVERY = Recovery(context_length=4, reduction=4)


def uniform(bits: int) -> Configuration:
    precision = Precision(bits, 8 if bits < 16 else 16)
    return Configuration(Plan.uniform([layer.name for layer in LAYERS], precision))


# configuration, who proposed it, error, bytes, whether it is on the front
TRIALS = (
    (uniform(16), Origin.BASELINE, 0.05, 8000, True),
    (uniform(2), Origin.BASELINE, 0.60, 1000, True),
    (uniform(3), Origin.BASELINE, 0.30, 1500, False),
    (uniform(4), Origin.BASELINE, 0.10, 2000, False),
    (Configuration(MIXED), Origin.PROGRAM, 0.20, 1450, True),
    (Configuration(MIXED, RECOVERY), Origin.SAMPLER, 0.08, 1900, True),
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "studies.db"
    spec = JobSpec(
        study="first",
        model=ModelSpec(source=ModelSource.REFERENCE),
        data=DataSpec(source=DataSource.REFERENCE),
        stop=StopSpec(trials=8),
    )
    with open_store(file_url(path)) as store:
        store.create_study(spec, {"model": "abc"})
        lease = store.acquire("first", "host:1", 60.0)
        store.save_profile(lease, LAYERS, BLOCKS, [], fixed_nbytes=100)
        store.set_reference(lease, {"error": 1.0, "nbytes": 8000.0})
        for number, (configuration, origin, error, nbytes, on_front) in enumerate(TRIALS):
            store.start_trial(lease, Trial(lease.name, number, configuration, origin, {}))
            evaluation = Evaluation(
                {"error": error, "nbytes": nbytes}, {"bits_per_weight": nbytes / 500}
            )
            change = FrontChange((number,) if on_front else (), (), 100.0 + number)
            store.finish_attempt(
                lease,
                attempt(number, key=f"key-{number}"),
                Evaluated(evaluation, seconds=1.5),
                front=change,
            )
        store.save_test_values(lease, {5: {"error": 0.09, "nbytes": 1900.0}})
        store.start_trial(lease, Trial(lease.name, 6, uniform(8), Origin.SAMPLER, {}))
        fail(store, lease, 6, 1, Cause.OUT_OF_MEMORY, "12 GB asked for", retry=False)
        hopeless = Configuration(MIXED, Recovery(context_length=8))
        store.start_trial(lease, Trial(lease.name, 7, hopeless, Origin.SAMPLER, {}))
        store.report(lease, attempt(7), IntermediateValue(0, 0.01))
        prune(store, lease, 7, 1, seconds=60.0)
        store.release(lease, StudyState.COMPLETE, "8 trials")
        store.create_study(spec.model_copy(update={"study": "empty"}), {})
    return path


def run(database: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(database)])


def test_list_shows_every_study(database: Path) -> None:
    result = run(database, "list")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].split() == [
        "study",
        "state",
        "trials",
        "front",
        "lowest",
        "error",
        "model",
        "updated",
    ]
    assert lines[1].split()[:5] == ["empty", "interrupted", "0/8", "0", "-"]
    assert lines[2].split()[:6] == ["first", "complete", "8/8", "4", "5.0", "%"]


def test_list_as_json_is_an_object_a_line(database: Path) -> None:
    lines = run(database, "list", "--format", "json").stdout.splitlines()

    assert [json.loads(line)["study"] for line in lines] == ["empty", "first"]


def test_status_counts_trials_and_tells_failures(database: Path) -> None:
    result = run(database, "status", "first")

    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "state complete" in shown
    assert "trials 8 of 8 (6 complete, 1 failed, 1 pruned)" in shown
    assert "failures 1 x out_of_memory: 12 GB asked for" in shown


def test_counts_by_state_name_every_state(database: Path) -> None:
    status = json.loads(run(database, "status", "first", "--format", "json").stdout)
    lines = run(database, "list", "--format", "json").stdout.splitlines()

    counts = {"running": 0, "complete": 6, "failed": 1, "cancelled": 0, "pruned": 1}
    assert status["trials"] == counts
    assert json.loads(lines[1])["trials"] == counts
    assert [failure["cause"] for failure in status["failures"]] == ["out_of_memory"]


def test_status_says_that_nobody_runs_an_unfinished_study(database: Path) -> None:
    text = run(database, "status", "empty").stdout
    content = json.loads(run(database, "status", "empty", "--format", "json").stdout)

    assert "interrupted while profiling: 'bitfront resume empty' continues it" in text
    assert content["interrupted"] is True


def test_front_is_a_table_with_named_baselines(database: Path) -> None:
    result = run(database, "front", "first")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == (
        "trial   error  test error     size  bits/weight  recovery              origin\n"
        "    0   5.0 %           -  8.00 kB        16.00  -                     baseline 16 bits\n"
        "    5   8.0 %       9.0 %  1.90 kB         3.80  prompt 4, adapter /4  sampler\n"
        "    4  20.0 %           -  1.45 kB         2.90  -                     program\n"
        "    1  60.0 %           -  1.00 kB         2.00  -                     baseline w2\n"
        "\nfull precision, trial 0: error 5.0 %\n"
    )


def test_every_format_of_the_front_has_the_same_trials(database: Path, tmp_path: Path) -> None:
    objects = [
        json.loads(line)
        for line in run(database, "front", "first", "--format", "json").stdout.splitlines()
    ]
    text = run(database, "front", "first", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    file = tmp_path / "front.parquet"
    written = run(database, "front", "first", "--format", "parquet", "--out", str(file))

    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(file).to_pylist()
    assert written.stdout == ""
    assert [o["trial"] for o in objects] == [0, 5, 4, 1]
    assert [int(row["trial"]) for row in rows] == [0, 5, 4, 1]
    assert [row["error"] for row in table] == [o["error"] for o in objects]
    assert Configuration.from_dict(objects[1]["configuration"]) == TRIALS[5][0]
    assert Configuration.from_dict(json.loads(rows[1]["configuration"])) == TRIALS[5][0]


def test_bytes_are_whole_numbers_in_exports(database: Path) -> None:
    text = run(database, "front", "first", "--format", "csv").stdout
    lines = run(database, "front", "first", "--format", "json").stdout

    sizes = [row["nbytes"] for row in csv.DictReader(io.StringIO(text))]
    assert sizes == ["8000", "1900", "1450", "1000"]
    assert '"nbytes": 1900,' in lines


def test_an_empty_front_says_so_on_stderr(database: Path) -> None:
    result = run(database, "front", "empty", "--format", "csv")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "study empty has no complete trial yet: see 'bitfront status'\n"


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ((), 0),
        (("--max-nbytes", "1.9kB"), 5),
        (("--max-nbytes", "1899"), 4),
        (("--max-nbytes", "2kB", "--max-bits", "3"), 4),
        (("--max-error", "0.25"), 4),
        (("--max-error", "25%"), 4),
        (("--max-error", "25 %"), 4),
        (("--max-error", "0.25", "--max-nbytes", "2KB", "--max-bits", "4"), 5),
    ],
)
def test_best_holds_any_mix_of_limits(database: Path, limits: tuple[str, ...], number: int) -> None:
    result = run(database, "best", "first", "--format", "json", *limits)

    assert json.loads(result.stdout)["trial"] == number


def test_best_prints_the_whole_configuration(database: Path) -> None:
    result = run(database, "best", "first", "--max-nbytes", "1.9kB")

    assert result.stdout == (
        "trial        5 (sampler)\n"
        "error        8.0 %\n"
        "test error   9.0 %\n"
        "size         1.90 kB (1,900 bytes)\n"
        "bits/weight  3.80\n"
        "recovery     a prompt of 4 vectors, an adapter of width/4 in 8 bits, blend 0.2, "
        "distillation 1, 100 steps\n"
        "targets      torch (--to packed), onnxruntime (--to onnx), openvino (--to openvino; no "
        "kernel for 1 of 4 layers)\n"
        "\n"
        "precision of each layer\n"
        "vision\n"
        "  visual.conv1 w8a8\n"
        "  visual.transformer.resblocks.0: attn.in_proj w3a8, mlp.c_fc w2a8\n"
        "text\n"
        "  text_projection w4a8\n"
    )


@pytest.mark.parametrize(
    ("study", "limits", "message"),
    [
        (
            "first",
            ("--max-nbytes", "900"),
            "Error: study 'first' has no trial with size at most 900 B: "
            "the nearest is trial 1 with 1.00 kB (11 % over), error 60.0 %\n",
        ),
        (
            "first",
            ("--max-nbytes", "1kB", "--max-error", "0.4"),
            "Error: study 'first' has no trial with size at most 1.00 kB and error at most "
            "40.0 %: the nearest is trial 4 with 1.45 kB (45 % over), error 20.0 %\n",
        ),
        (
            "first",
            ("--max-latency-s", "0.5"),
            "Error: study 'first' has no trial with a measured latency\n",
        ),
        (
            "empty",
            (),
            "Error: study 'empty' is still measuring cells, and its trials come after them: "
            "see 'bitfront status empty'\n",
        ),
    ],
)
def test_best_says_when_nothing_fits_and_what_comes_nearest(
    database: Path, study: str, limits: tuple[str, ...], message: str
) -> None:
    result = run(database, "best", study, *limits)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("front", "frist"),
            "Error: there is no study 'frist': did you mean 'first'?\n",
        ),
        (
            ("best", "first", "--max-nbytes", "12 parsecs"),
            "Invalid value for '--max-nbytes': '12 parsecs' is not a valid size: "
            "write it like 4096, 40MB or 1.5GiB\n",
        ),
        (
            ("best", "first", "--max-nbytes", "0"),
            "Invalid value for '--max-nbytes': '0' is not a valid size: "
            "it must be at least one byte\n",
        ),
        (
            ("best", "first", "--max-error", "5"),
            "Invalid value for '--max-error': 5.0 is not in the range 0<x<=1.\n",
        ),
        (
            ("best", "first", "--max-error", "nan"),
            "Error: max_error must be a positive number, got nan\n",
        ),
        (
            ("best", "first", "--max-bits", "inf"),
            "Error: max_bits must be a positive number, got inf\n",
        ),
        (
            ("plot", "first", "--trial", "6"),
            "Error: study 'first' has no complete trial 6: see 'bitfront front'\n",
        ),
        (
            ("plot", "first", "--trial", "7"),
            "Error: study 'first' has no complete trial 7: see 'bitfront front'\n",
        ),
        (("plot", "empty"), "Error: study 'empty' has no complete trial to draw yet\n"),
        (
            ("front", "first", "--format", "csv", "--out", "/nowhere/front.csv"),
            "Error: /nowhere/front.csv cannot be written: No such file or directory\n",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    database: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(database, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(message)


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"

    result = run(missing, "list")

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: there is no database at {missing}")
    assert not missing.exists()


def test_the_database_comes_from_the_environment(database: Path) -> None:
    result = CliRunner().invoke(main, ["list"], env={"BITFRONT_DB": file_url(database)})

    assert result.exit_code == 0
    assert "first" in result.stdout


def test_plot_writes_two_pictures_as_png_and_svg_and_a_page(database: Path, tmp_path: Path) -> None:
    result = run(database, "plot", "first", "--out", str(tmp_path / "pictures"))

    names = [
        *("front.png", "front.svg", "bits.png", "bits.svg", "front.html", "plotly.min.js"),
    ]
    assert result.stdout.split() == [str(tmp_path / "pictures" / name) for name in names]
    page = (tmp_path / "pictures" / "front.html").read_text()
    assert "first, trial 5: bits of each layer" in page  # the best in a quarter of 8 kB


@pytest.mark.parametrize(
    "model",
    [
        {"source": "reference"},
        {"source": "reference", "name": "digit-llava"},
        {"source": "open_clip", "name": "ViT-B-32", "weights": "/nowhere/moved.pt"},
    ],
    ids=["classifier", "generative", "moved"],
)
def test_a_study_without_a_feasible_trial_is_drawn_with_its_most_accurate_one(
    tmp_path: Path, model: dict[str, str]
) -> None:
    path = tmp_path / "studies.db"
    data = {"source": "reference"}
    with open_store(file_url(path)) as store:
        store.create_study(
            JobSpec.model_validate({"study": "tight", "model": model, "data": data}), {}
        )
        lease = store.acquire("tight", "host:1", 60.0)
        store.save_profile(lease, LAYERS, BLOCKS, [], fixed_nbytes=100)
        for number, (bits, error) in enumerate(((2, 0.6), (4, 0.1), (3, 0.3))):
            store.start_trial(lease, Trial("tight", number, uniform(bits), Origin.BASELINE))
            complete(
                store,
                lease,
                number,
                {"error": error, "nbytes": 500.0 * bits},
                constraints={"max_nbytes": 0.5},
                front=FrontChange((), (), 0.0),
            )

    result = run(path, "plot", "tight", "--out", str(tmp_path / "pictures"))

    assert (result.exit_code, result.stderr) == (0, "")
    page = (tmp_path / "pictures" / "front.html").read_text()
    assert "tight, trial 1: bits of each layer" in page
    assert "3 quantized configurations, 0 of them on the front" in page


def test_stopping_a_study_that_nobody_runs_changes_nothing(database: Path) -> None:
    result = run(database, "stop", "first")

    assert result.exit_code == 0
    assert result.stderr == "study first is complete, and nobody runs it\n"


@pytest.mark.parametrize(("command", "asked"), [("stop", Request.STOP), ("cancel", Request.CANCEL)])
def test_a_request_reaches_the_driver(tmp_path: Path, command: str, asked: Request) -> None:
    path = tmp_path / "studies.db"
    spec = JobSpec(
        study="busy",
        model=ModelSpec(source=ModelSource.REFERENCE),
        data=DataSpec(source=DataSource.REFERENCE),
    )
    with open_store(file_url(path)) as store:
        store.create_study(spec, {})
        lease = store.acquire("busy", "host:1", 60.0)

        result = run(path, command, "busy")

        assert store.heartbeat(lease) is asked
    assert f"'bitfront resume busy --db {path}' continues it later" in result.stderr


def test_watching_a_finished_study_shows_it_and_ends(database: Path) -> None:
    result = run(database, "watch", "first")

    assert result.exit_code == 0
    assert "8 of 8, best error at the budget 8.0 %, hypervolume" in result.stderr
    assert result.stderr.endswith("study first is complete: 8 trials\n")


def test_status_and_watch_name_the_same_best_error(database: Path) -> None:
    status = run(database, "status", "first").stdout.splitlines()
    watched = run(database, "watch", "first").stderr

    (line,) = [line for line in status if line.startswith("best error at the budget")]
    shown = line.removeprefix("best error at the budget").strip()
    assert f"best error at the budget {shown}, " in watched


def test_resuming_a_complete_study_loads_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.study.driver.run_study", None)  # it is not called

    result = run(database, "resume", "first")

    assert result.exit_code == 0, result.output
    assert (
        "study first is complete: 8 trials are done, and --trials 9 or more adds" in result.stderr
    )


def test_watching_a_study_that_nobody_runs_does_not_wait_for_ever(database: Path) -> None:
    result = run(database, "watch", "empty")

    assert result.exit_code == 1
    assert "nobody runs study empty: 'bitfront resume empty --db" in result.stderr


def test_a_query_answers_without_loading_what_it_does_not_need(database: Path) -> None:
    heavy = "{'torch', 'ray', 'optuna', 'matplotlib', 'plotly', 'pandas', 'pulp', 'pydantic'}"
    code = (
        "import sys; from service.cli import main\n"
        f"words = ['best', 'first', '--max-nbytes', '2kB', '--db', {str(database)!r}]\n"
        "main(words, standalone_mode=False)\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )

    assert finished.returncode == 0, finished.stderr


def test_the_demo_takes_the_next_free_name(database: Path, tmp_path: Path) -> None:
    with open_database(tmp_path / "demo.db") as studies:
        store = studies.connection.store(create=True)
        first = demo_job(studies, {"stop.trials": 5, "search.seed": 3})
        store.create_study(first, {})
        second = demo_job(studies, {})

    assert (first.study, first.stop.trials, first.search.seed) == ("demo", 5, 3)
    assert second.study == "demo-2"


def test_the_demo_sets_its_front_beside_uniform_precision(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_database(database) as studies:
        show(studies.study("first"), tmp_path)

    shown = capsys.readouterr().out
    assert (
        "uniform     size   error  test error   search     size   error  test error\n"
        "w2       1.00 kB  60.0 %           -  trial 1  1.00 kB  60.0 %           -\n"
        "w3       1.50 kB  30.0 %           -  trial 4  1.45 kB  20.0 %           -\n"
        "w4       2.00 kB  10.0 %           -  trial 5  1.90 kB   8.0 %       9.0 %\n"
    ) in shown
    assert "The best within the size of uniform 3 bits, 1.50 kB:\n\ntrial        4" in shown
    assert f"  {tmp_path / 'front.png'}\n" in shown
    assert f"  bitfront best first --max-error 0.1 --db {tmp_path / 'bitfront.db'}\n" in shown


def test_the_demo_ends_with_the_way_to_a_model_of_ones_own(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_database(database) as studies:
        show(studies.study("first"), tmp_path)

    *_, hint, _, first, command = capsys.readouterr().out.splitlines()
    assert hint.startswith("For a model of your own, 'init' asks for model, data and budget")
    assert first == "  bitfront init job.yaml"
    assert command == "  bitfront submit job.yaml"
