"""The Python interface: its names, its limits, and what it refuses, in the command line's words."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import bitfront as bf
from bitfront.objective import BY_LIMIT
from service.api.limits import LimitOptions
from service.cli import main
from storage.store import open_store
from tests.support.store_samples import complete, running, trial

ROOT = Path(__file__).parents[3]

WHOLE = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"
# What is added to a whole job, or replaces it.
MISTAKES = {
    "an unknown section": WHOLE + "serach: {seed: 1}\n",
    "an unknown key": WHOLE + "search: {sede: 1}\n",
    "an impossible width": WHOLE + "space: {weight_bits: [2, 7]}\n",
    "a word for a number": WHOLE + "search: {workers: many}\n",
    "several mistakes": WHOLE + "search: {seed: -1, sampler: tpee}\nstop: {trials: 0}\n",
    "an unknown unit": WHOLE + "constraints: {max_nbytes: 40XB}\n",
    "an error above 1": WHOLE + "constraints: {max_error: 5}\n",
    "an objective twice": WHOLE + "objectives: [error, error]\n",
    "an unknown objective": WHOLE + "objectives: [error, speed]\n",
    "no model": "study: first\ndata: {source: reference}\n",
    "a missing folder": "study: first\nmodel: {source: reference}\n"
    "data: {source: image_folder, path: nowhere}\n",
    "a missing checkpoint": "study: first\n"
    "model: {source: open_clip, name: ViT-B-32, weights: best.pt}\ndata: {source: reference}\n",
    "a name with a space": WHOLE.replace("first", "my study"),
    "clips of dynamic inputs": WHOLE
    + "quantizer: {activations: dynamic}\nspace: {clips: [1.0, 0.9]}\n",
    "more trials than the disk holds": WHOLE + "stop: {trials: 1000000000000}\n",
    "a latency without a kernel": WHOLE
    + "objectives: [error, latency_s]\nspace: {weight_bits: [3]}\n",
}


@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES)
def test_a_bad_job_is_refused_in_the_same_sentences_whoever_submits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    job, database = tmp_path / "job.yaml", tmp_path / "a.db"
    job.write_text(text)

    typed = CliRunner().invoke(main, ["submit", str(job), "--db", str(database)])
    with bf.open(database) as db:
        with pytest.raises(bf.SpecError) as of_file:
            db.submit(job)
        with pytest.raises(bf.SpecError) as of_mapping:
            db.submit(yaml.safe_load(text))

    sentences = str(of_file.value)
    assert typed.exit_code == 2
    assert typed.stderr.endswith(f"Error: {sentences}\n")
    plain = sorted(line.split(": ", 1)[1] for line in sentences.splitlines())
    assert sorted(str(of_mapping.value).splitlines()) == plain
    if database.exists():
        with open_store(f"sqlite:///{database}") as store:
            assert store.studies() == []


def test_a_path_of_a_mapping_may_be_a_path_and_starts_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = {
        "study": "first",
        "model": {"source": "reference"},
        "data": {"source": "image_folder", "path": Path("pets")},
    }

    with bf.open("a.db") as db, pytest.raises(bf.SpecError) as caught:
        db.submit(job)

    assert str(caught.value) == f"data.path: the folder {tmp_path / 'pets'} does not exist"


def test_a_job_that_holds_itself_or_is_none_is_refused(tmp_path: Path) -> None:
    endless: dict[str, object] = {"study": "first"}
    endless["model"] = endless

    with bf.open(tmp_path / "a.db") as db:
        with pytest.raises(bf.SpecError, match="nested deeper than 20 levels"):
            db.submit(endless)
        with pytest.raises(bf.SpecError, match="a job is the path of its file, a mapping or"):
            db.submit(7)  # type: ignore[arg-type]  # what no type checker has seen


def test_a_script_is_not_run_again_by_the_processes_that_check_its_job(tmp_path: Path) -> None:
    for place, name in enumerate(("one", "ant")):  # the bundled model knows no ants
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(150):  # enough that they are opened in parallel
            shade = (number, 90 * place, 0)
            Image.new("RGB", (4, 4), shade).save(tmp_path / "pictures" / name / f"{number}.png")
    samples = dict.fromkeys(("calibration", "tuning", "selection", "test"), 70)
    data = {"source": "image_folder", "path": "pictures", "samples": samples}
    job = {"study": "first", "model": {"source": "reference"}, "data": data}
    script = tmp_path / "script.py"
    script.write_text(
        f"import bitfront as bf\nprint('the script runs')\nbf.open('a.db').submit({job!r})\n"
    )

    finished = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "BITFRONT_CACHE": str(tmp_path / "cache")},
        check=False,
        capture_output=True,
        text=True,
    )

    assert finished.stdout == "the script runs\n", finished.stderr
    assert "SpecError: 'a photo of an ant.' has the word 'ant'" in finished.stderr
    assert "bootstrapping" not in finished.stderr


def test_importing_bitfront_loads_nothing_of_the_interface() -> None:
    code = (
        "import sys; before = set(sys.modules); import bitfront\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not loaded & {'service', 'storage', 'pydantic', 'torch', 'pandas'}, loaded\n"
        "import bitfront.plan\n"
        "assert 'service' not in sys.modules\n"
        "bitfront.open\n"
        "assert 'service.api.database' in sys.modules"
    )

    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)

    assert finished.returncode == 0, finished.stderr.decode()


def test_editors_are_told_the_names_that_there_are() -> None:
    tree = ast.parse((ROOT / "bitfront" / "__init__.pyi").read_text())
    told = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert {*told, "__version__"} == {name for name in dir(bf) if name in told} | {"__version__"}
    assert told == set(bf.__all__)
    for name in told:
        assert getattr(bf, name).__module__.partition(".")[0] in ("service", "bitfront")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bitfront' has no attribute 'stduy'"):
        bf.stduy  # type: ignore[attr-defined]  # noqa: B018  # that is the test


def test_every_figure_has_its_limit() -> None:
    assert set(LimitOptions.__annotations__) == set(BY_LIMIT)


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"max_nbytes": "40XB"}, "max_nbytes is a size, such as 4096 or 40MB, not '40XB'"),
        ({"max_error": "5"}, "max_error is a share of at most 1, such as 0.15 or 15%, not '5'"),
        ({"max_bits": "few"}, "max_bits is a number, not 'few'"),
        ({"max_bits": -1}, "max_bits must be a positive number, got -1.0"),
        ({"max_size": 1}, "max_size is not a limit: there are max_error, max_nbytes, max_bits"),
    ],
)
def test_a_limit_that_is_none_is_a_sentence(
    tmp_path: Path, limit: dict[str, str | float], sentence: str
) -> None:
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        lease = running(store)
        store.start_trial(lease, trial(0))
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": 4000})

    with bf.open(tmp_path / "a.db") as db, pytest.raises(bf.SpecError) as caught:
        db.study("digits").best(**limit)  # type: ignore[arg-type]  # what no checker has seen

    assert str(caught.value).startswith(sentence)


def test_a_database_without_a_name_is_that_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_DB", str(tmp_path / "mine.db"))

    assert repr(bf.open()) == f"<bitfront database sqlite:///{tmp_path / 'mine.db'}>"
    with pytest.raises(bf.BitfrontError, match=r"no database at .*mine\.db: submit a job"):
        bf.open().studies  # noqa: B018  # it reads


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(bf.open("postgresql://ann:secret@host/bitfront"))


def test_a_trial_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        running(store)

    with bf.open(tmp_path / "a.db") as db:
        with pytest.raises(bf.SpecError, match="study 'digits' has no trial 3"):
            db.study("digits").trial(3)
        with pytest.raises(bf.SpecError, match="study 'digits' has no trial 3"):
            db.study("digits").log(trial=3)
        assert db.study("digits").trials_dataframe().empty
