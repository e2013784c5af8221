"""What takes a person by the hand: init, schema, doctor, completion, examples, nearest words."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

import bitfront as bf
from bitfront.job import load_job
from bitfront.job.json_schema import SCHEMA_FILE, job_schema
from bitfront.spec import JobSpec, Samples
from bitfront.tasks import CHOICE, RETRIEVAL
from bitfront.trial import FrontChange
from service.cli import main
from service.commands.examples import EXAMPLES
from storage.store import open_store
from tests.service.api.test_interface import MISTAKES
from tests.support.examples import parse
from tests.support.store_samples import complete, job, running, trial
from tests.support.studies import JOB

ROOT = Path(__file__).parents[3]
SHIPPED = [*ROOT.glob("examples/*.yaml"), *ROOT.glob("service/commands/*.yaml")]
CHECK = jsonschema.Draft202012Validator(job_schema())
# What only a look at several keys, paths, or the disk shows.
BEYOND = {
    "an objective twice",
    "a missing folder",
    "a missing checkpoint",
    "clips of dynamic inputs",
    "more trials than the disk holds",
    "a latency without a kernel",
}


def run(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(main, list(arguments), **options)  # type: ignore[arg-type]  # input


def pictures(folder: Path, count: int = 20) -> Path:
    for shade, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 90 * shade, 0)).save(folder / name / f"{number}.png")
    return folder


# init


def test_a_first_job_of_the_bundled_model_runs_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "digits.yaml"
    given = ("--model", "bundled", "--data", "bundled", "--max-nbytes", "240kB", "--trials", "7")

    result = run("init", str(path), *given)

    assert (result.exit_code, result.stdout) == (0, "")
    assert f"bitfront submit {path}" in result.stderr
    spec = load_job(path)
    assert (spec.study, spec.stop.trials, spec.constraints.max_nbytes) == ("digits", 7, 240_000)
    assert path.read_text().count("#") > 5


def test_what_is_not_given_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    answers = f"ViT-B-32\nlaion2b_s34b_b79k\n{pictures(tmp_path / 'pets')}\n60MB\n"

    result = run("init", str(path), "--study", "pets", input=answers)

    assert result.exit_code == 0, result.output
    spec = load_job(path)
    assert (spec.study, spec.model.source, spec.model.weights) == (
        "pets",
        "open_clip",
        "laion2b_s34b_b79k",
    )
    assert (spec.data.source, spec.constraints.max_nbytes) == ("image_folder", 60_000_000)
    assert sum(spec.data.samples.model_dump().values()) <= 40


@pytest.mark.parametrize(
    ("model", "source", "name"),
    [
        ("bundled", "reference", "digit-clip"),
        ("digit-llava", "reference", "digit-llava"),
        ("openai/clip-vit-base-patch32", "transformers", "openai/clip-vit-base-patch32"),
        ("hf-hub:laion/CLIP-ViT-B-32", "open_clip", "hf-hub:laion/CLIP-ViT-B-32"),
        ("FOLDER", "transformers", "FOLDER"),
        ("OPEN_CLIP", "open_clip", "local-dir:OPEN_CLIP"),
    ],
)
def test_a_model_is_recognised_by_its_name_or_its_folder(
    tmp_path: Path, model: str, source: str, name: str
) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "OPEN_CLIP").mkdir()
    (tmp_path / "OPEN_CLIP" / "open_clip_config.json").write_text("{}")
    place = str(tmp_path / model) if model.isupper() else model
    data = "bundled" if source == "reference" else str(pictures(tmp_path / "pets"))
    path = tmp_path / "job.yaml"

    result = run("init", str(path), "--model", place, "--data", data, "--yes")

    assert result.exit_code == 0, result.output
    spec = load_job(path)
    assert spec.model.source == source
    assert spec.model.name == name.replace(model, place)


def test_questions_are_recognised_and_many_samples_take_the_usual_splits(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("{}\n" * 3000)
    path = tmp_path / "job.yaml"

    result = run(
        "init", str(path), "--model", "a/llava", "--data", str(tmp_path / "q.jsonl"), "--yes"
    )

    assert result.exit_code == 0, result.output
    assert load_job(path).data.source == "questions"
    assert load_job(path).data.samples == Samples()


def test_questions_with_options_are_multiple_choice(tmp_path: Path) -> None:
    path, data = tmp_path / "job.yaml", tmp_path / "q.jsonl"
    line = {"question": "?", "options": ["yes", "no"], "answer": "A"}
    data.write_text(f"{json.dumps(line)}\n" * 3000)

    result = run("init", str(path), "--model", "a/llava", "--data", str(data), "--yes")

    assert result.exit_code == 0, result.output
    assert load_job(path).task is CHOICE


def test_pictures_without_classes_are_taken_where_that_is_said(tmp_path: Path) -> None:
    path, folder = tmp_path / "job.yaml", tmp_path / "photos"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.png").write_bytes(b"")
    given = ("init", str(path), "--model", "a/llava", "--data", str(folder), "--yes")

    assert "--task agreement takes images without classes" in run(*given).output
    result = run(*given, "--task", "agreement")

    assert result.exit_code == 0, result.output
    assert load_job(path).data.source == "images"
    assert sum(load_job(path).data.samples.model_dump().values()) <= 50


@pytest.mark.parametrize("form", ["lines", "coco", "written out"])
def test_captions_are_recognised_and_counted_by_their_images(tmp_path: Path, form: str) -> None:
    path, data = tmp_path / "job.yaml", tmp_path / "captions.json"
    lines = [{"image": f"{n % 100}.png", "captions": [f"{n}"]} for n in range(200)]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(100)],
        "annotations": [{"image_id": n % 100, "caption": "a cat"} for n in range(200)],
    }
    data.write_text(
        "\n".join(map(json.dumps, lines))
        if form == "lines"
        else json.dumps(coco, indent=None if form == "coco" else 1)
    )

    result = run("init", str(path), "--model", "a/clip", "--data", str(data), "--yes")

    assert result.exit_code == 0, result.output
    spec = load_job(path)
    assert spec.data.source == "captions"
    assert 90 <= sum(spec.data.samples.model_dump().values()) <= 100
    assert "recovery" not in path.read_text()


def test_a_bundled_task_gets_as_many_samples_as_it_has(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"

    result = run(
        "init", str(path), *["--model", "bundled", "--data", "bundled", "--task", "retrieval", "-y"]
    )

    assert result.exit_code == 0, result.output
    spec = load_job(path)
    assert (spec.data.task, spec.data.samples.test) == ("retrieval", 200)
    assert spec.task is RETRIEVAL


@pytest.mark.parametrize(
    ("name", "source"),
    [("pets.csv", "table"), ("pets.parquet", "table"), ("0.tar", "webdataset"), ("", "webdataset")],
)
def test_tables_and_shards_are_known_by_their_names(name: str, source: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / (name or "0.tar")).write_text("image,label\n")
    path = tmp_path / "job.yaml"

    given = ["--model", "ViT-B-32", "--weights", "laion2b_s34b_b79k", "--data", str(folder / name)]
    result = run("init", str(path), *given, "--yes")

    assert result.exit_code == 0, result.output
    assert load_job(path).data.source == source


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "--model bundled --data bundled --task answering --yes",
            "data.task: data of source reference and this model are not for answering",
        ),
        (
            "--model ViT-B-32 --data PETS --yes",
            "ViT-B-32 has no weights of its own: give --weights",
        ),
        ("--model a/b --data nowhere --yes", "there are no data at "),
        ("--model a/b --data EMPTY --yes", "EMPTY has no sub-folders: a folder of images has one"),
        ("--model a/b --data FEW --yes", "FEW has 2 images in 2 classes: a search needs at least"),
        ("--model a/b --data bundled --yes", "the bundled data are for the bundled models"),
        ("--model ./none --data PETS --yes", "model.name: the file or folder "),
        ("--data PETS --yes", "--yes asks nothing: give --model and --data"),
        ("", "there is nobody to ask: give --model, --data"),
        ("--model bundled --data bundled --study a/b --yes", "study: 'a/b' is not possible"),
    ],
)
def test_what_is_no_job_is_a_sentence_and_writes_nothing(
    tmp_path: Path, given: str, sentence: str
) -> None:
    pictures(tmp_path / "PETS")
    pictures(tmp_path / "FEW", count=1)
    (tmp_path / "EMPTY").mkdir()
    words = [str(tmp_path / word) if word.isupper() else word for word in shlex.split(given)]
    path = tmp_path / "job.yaml"

    result = run("init", str(path), *words)

    assert result.exit_code == 2, result.output
    assert sentence in result.stderr.split("Error: ", 1)[1]
    assert not path.exists()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("mine")

    result = run("init", str(path), "--model", "bundled", "--data", "bundled", "--yes")

    assert result.exit_code == 2
    assert f"{path} is there already" in result.stderr
    assert path.read_text() == "mine"


# schema


def test_the_schema_that_is_shipped_is_the_one_that_is_printed() -> None:
    remedy = "bitfront schema > bitfront/job/job.schema.json"
    assert json.loads(SCHEMA_FILE.read_text()) == job_schema(), remedy
    assert json.loads(run("schema").stdout) == job_schema()
    assert run("schema", "--path").stdout.strip() == str(SCHEMA_FILE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_job_holds_the_schema(path: Path) -> None:
    assert SHIPPED
    CHECK.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        f"study: first{JOB}",
        "study: a\nmodel: {source: reference}\ndata: {source: reference}\n"
        "constraints: {max_nbytes: 40MB, max_error: 15%, max_activation_nbytes: 1.5 GiB}\n",
        "study: a\nmodel: {source: reference}\ndata: {source: reference, classes: ImageNet}\n"
        "search: {gpus_per_worker: auto, history: null}\n",
        "study: a\nmodel: {source: reference}\ndata: {source: reference, classes: {a: b}}\n"
        "space: {keep: {'*.conv1': 8}, recovery: {}}\n",
    ],
)
def test_jobs_that_are_taken_hold_the_schema(text: str) -> None:
    content = yaml.safe_load(text)

    JobSpec.model_validate(content)
    CHECK.validate(content)


def test_a_specification_written_out_holds_the_schema() -> None:
    CHECK.validate(job().model_dump(mode="json"))


@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - BEYOND))
def test_what_shows_in_one_value_is_no_job_by_the_schema_either(name: str) -> None:
    assert not CHECK.is_valid(yaml.safe_load(MISTAKES[name]))


# help, words, completion, quiet


@pytest.mark.parametrize("name", list(main.commands))
def test_every_help_ends_with_examples_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)

    shown = run(name, "--help").stdout

    assert 1 <= len(EXAMPLES[name]) <= 3
    for example in EXAMPLES[name]:
        assert f"  bitfront {example}\n" in shown
        assert parse(example).info_name == name


def test_no_examples_are_left_over() -> None:
    assert set(EXAMPLES) == set(main.commands)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("shwo", "pets", "3"), "there is no command 'shwo': did you mean 'show'?"),
        (("best", "pets", "--max-nbyte", "3"), "--max-nbytes"),
        (("quite-other",), "No such command 'quite-other'"),
    ],
)
def test_a_mistyped_word_is_refused_with_the_nearest(words: tuple[str, ...], sentence: str) -> None:
    result = run(*words)

    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    result = run("completion", shell)

    assert result.exit_code == 0, result.output
    assert "_BITFRONT_COMPLETE" in result.stdout
    assert f"{shell}_complete" in result.stdout


@pytest.mark.parametrize("words", [("--quiet", "list"), ("list", "-q")])
def test_quiet_leaves_data_and_errors(tmp_path: Path, words: tuple[str, ...]) -> None:
    database = str(tmp_path / "a.db")
    with open_store(f"sqlite:///{database}"):
        pass

    told, quiet = run("list", "--db", database), run(*words, "--db", database)
    wrong = run(*words, "--db", str(tmp_path / "none.db"))

    assert "there are no studies yet" in told.stderr
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert wrong.stderr.startswith("Error: there is no database at ")
    assert "there are no studies yet" in run("list", "--db", database).stderr


PRINTS_NO_DATA = {
    *("demo", "init", "validate", "resume", "pause", "stop", "cancel", "delete", "watch", "tune"),
    *("schema", "completion", "serve", "export-optuna", "export-mlflow"),
}


@pytest.mark.parametrize("name", sorted(main.commands.keys() - PRINTS_NO_DATA))
def test_every_command_that_prints_data_prints_json(name: str) -> None:
    options = {option.name: option for option in main.commands[name].params}

    form = options["form"].type
    assert isinstance(form, click.Choice)
    assert "json" in form.choices


def test_a_shell_completes_the_names_of_studies(database: str) -> None:
    def completed(*words: str) -> list[str]:
        environment = {
            "COMP_WORDS": shlex.join(["bitfront", *words]),
            "COMP_CWORD": str(len(words)),
            "_BITFRONT_COMPLETE": "bash_complete",
            "BITFRONT_DB": database,
        }
        result = CliRunner().invoke(
            main, prog_name="bitfront", complete_var="_BITFRONT_COMPLETE", env=environment
        )
        return [line.partition(",")[2] for line in result.stdout.split()]

    assert completed("status", "f") == ["first"]
    assert completed("compare", "first", "") == ["second", "first"]
    assert completed("show", "none") == []
    assert "show" in completed("sh")


# show, compare


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Two studies, the second with one more trial and another seed."""
    path = str(tmp_path / "studies.db")
    with open_store(f"sqlite:///{path}") as store:
        for name, errors in (("first", (0.4, 0.1)), ("second", (0.4, 0.2, 0.05))):
            lease = running(store, name)
            store.set_reference(lease, {"error": 1.0, "nbytes": 4000.0})
            for number, error in enumerate(errors):
                store.start_trial(lease, replace(trial(number), study=name))
                values = {"error": error, "nbytes": 1000.0 * (number + 1)}
                complete(
                    store,
                    lease,
                    number,
                    values,
                    front=FrontChange((number,), (), 0.5),
                    key=f"{name}-{number}",
                )
    return path


def test_two_studies_are_compared_at_every_size(database: str) -> None:
    shown = json.loads(
        run("compare", "first", "second", "--format", "json", "--db", database).stdout
    )

    assert shown["studies"] == ["first", "second"]
    assert [at["max_nbytes"] for at in shown["sizes"]] == [1000, 2000, 3000]
    assert [at["errors"] for at in shown["sizes"]] == [[0.4, 0.4], [0.1, 0.2], [0.1, 0.05]]
    # (0.4, 1/4), (0.1, 1/2) up to (1, 1), and (0.4, 1/4), (0.2, 1/2), (0.05, 3/4).
    first = 0.6 * 0.75 + 0.3 * 0.5
    second = 0.6 * 0.75 + 0.2 * 0.5 + 0.15 * 0.25
    assert shown["hypervolumes"] == pytest.approx([first, second])


def test_a_comparison_says_what_differs_and_what_cannot_be_compared(database: str) -> None:
    with open_store(f"sqlite:///{database}") as store:
        spec = job("third", search={"seed": 3})
        store.create_study(spec, {"selection": "other"})

    result = run("compare", "first", "third", "--db", database)

    assert result.exit_code == 0, result.output
    assert "search.seed: 0 | 3" in result.stdout
    assert "careful: their selection samples differ" in result.stdout
    assert "study:" not in result.stdout.partition("What differs")[2]


def test_everything_about_a_trial_is_shown(database: str) -> None:
    shown = run("show", "first", "1", "--db", database).stdout
    content = json.loads(run("show", "first", "1", "--format", "json", "--db", database).stdout)

    for words in ("error", "10.0 %", "attempts", "precision of each layer", "what reproduces it"):
        assert words in shown
    assert "bitfront build first --trial 1 --out FOLDER" in shown
    assert content["error"] == 0.1
    assert content["on_front"] is True
    assert len(content["attempts"]) == 1
    assert content["digest"] in shown


def test_a_trial_that_is_not_there_is_a_sentence(database: str) -> None:
    result = run("show", "first", "9", "--db", database)

    assert result.exit_code == 2
    assert "study 'first' has no trial 9" in result.stderr


# doctor


def test_a_machine_that_works_is_said_to(tmp_path: Path) -> None:
    result = run("doctor", "--db", str(tmp_path / "a.db"), "--format", "json")

    found = {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 0, result.output
    for name in ("bitfront", "packages", "cpu", "database", "spool", "disk", "memory", "cluster"):
        assert found[name]["health"] in ("ok", "warning"), found[name]
    assert not (tmp_path / "a.db").exists()


def test_what_stands_beside_a_name_never_touches_it(tmp_path: Path) -> None:
    shown = run("doctor", "--db", str(tmp_path / "a.db")).stdout
    told = run("doctor", "--db", str(tmp_path / "a.db"), "--format", "json").stdout

    for line in map(json.loads, told.splitlines()):
        assert f" {line['name']} " in shown


def test_what_does_not_work_is_said_with_what_to_do(tmp_path: Path) -> None:
    foreign, occupied = tmp_path / "foreign.db", tmp_path / "file"
    foreign.write_text("this is no database")
    occupied.write_text("")
    environment = {"BITFRONT_CACHE": str(occupied / "cache")}

    result = CliRunner().invoke(
        main, ["doctor", "--db", str(foreign), "--address", "http://127.0.0.1:1"], env=environment
    )

    assert result.exit_code == 1
    for name in ("database", "cache", "cluster"):
        assert any(line.startswith(f"FAILS    {name}") for line in result.stdout.splitlines()), name
    assert "set BITFRONT_CACHE to another one" in result.stdout
    assert "3 of these keep bitfront from working" in result.stderr
    assert foreign.read_text() == "this is no database"


def test_the_schema_of_a_database_is_told(database: str) -> None:
    result = run("doctor", "--db", database)

    assert "studies.db, schema " in result.stdout
    assert "; studies: 2" in result.stdout


def test_version_is_that_of_the_package() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "service", "--version"], check=True, capture_output=True, text=True
    )

    assert finished.stdout.split()[-1] == bf.__version__
