"""What bitfront promises about code, statements, paths and secrets, as far as tests can hold it."""

import ast
import functools
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bitfront.errors import BitfrontError, DatabaseError, InvalidModel, InvalidSample, SpecError
from bitfront.job import load_job
from bitfront.spec import DataSource, DataSpec, JobSpec, ModelSource, ModelSpec
from bitfront.vlm.loaders.load import load_model
from objectives.data.question_sources import JsonQuestions
from service.cli import main
from storage.store import open_store
from tests.support.store_samples import job

ROOT = Path(__file__).parents[2]
PACKAGES = ("bitfront", "objectives", "search", "service", "storage", "workers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "jsonpickle"}
RUN_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
STATEMENTS = {
    *("execute", "executemany", "executescript", "exec_driver_sql", "text", "literal_column"),
    *("scalar", "scalars"),
}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def dotted(node: ast.expr) -> str:
    """The name that is called, such as `torch.load`; of anything else, its last part."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def keyword(call: ast.Call, name: str) -> str:
    """What is given for a keyword, as it is written; nothing where it is not given."""
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), "")


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 100


def test_nothing_is_unpickled() -> None:
    found = []
    for path in SOURCES:
        tree = parsed(path)
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            elif isinstance(node, ast.Attribute):
                # The name of torch's refusal is all that pickle is good for.
                if dotted(node).startswith("pickle.") and node.attr != "UnpicklingError":
                    found.append(f"{place(path, node)} {dotted(node)}")
                continue
            allowed = {"pickle"} if isinstance(node, ast.Import) else set()
            found += [f"{place(path, node)} {n}" for n in names if n in UNSAFE_MODULES - allowed]

    assert found == []


def test_no_text_is_run_as_code() -> None:
    found = []
    for path in SOURCES:
        for call in calls(parsed(path)):
            name = dotted(call.func)
            is_shell = keyword(call, "shell") not in ("", "False")
            if name in RUN_CODE or name in ("os.system", "os.popen") or is_shell:
                found.append(f"{place(path, call)} {name}")

    assert found == []


def test_yaml_is_read_by_the_safe_loader_only() -> None:
    allowed = {"yaml.SafeLoader", "yaml.safe_load", "yaml.safe_dump", "yaml.MarkedYAMLError"}
    allowed |= {"yaml.Mark", "yaml.reader", "yaml.reader.ReaderError", "yaml.YAMLError"}
    found = [
        f"{place(path, node)} {dotted(node)}"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and dotted(node).startswith("yaml.")
        if dotted(node) not in allowed
    ]

    assert found == []


def test_arrays_and_weights_are_read_without_code() -> None:
    found = []
    for path in SOURCES:
        for call in calls(parsed(path)):
            name = dotted(call.func)
            is_weights = name in ("torch.load", "open_clip.create_model")
            if is_weights and keyword(call, "weights_only") != "True":
                found.append(f"{place(path, call)} {name}")
            if keyword(call, "allow_pickle") not in ("", "False"):
                found.append(f"{place(path, call)} {name}")

    assert found == []


def test_models_of_the_hub_bring_no_code() -> None:
    found = []
    loads = 0
    for path in SOURCES:
        called = {call.func for call in calls(parsed(path))}
        for node in ast.walk(parsed(path)):  # handed on, its arguments would not be seen here
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                found += [] if node in called else [f"{place(path, node)} is not called"]
        for call in calls(parsed(path)):
            name = dotted(call.func)
            trusted = keyword(call, "trust_remote_code")
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                loads += 1
                if trusted != "False" and name != "AutoModel.from_pretrained":
                    found.append(f"{place(path, call)} {name}")
            is_model = name.endswith(".from_pretrained") and name.startswith("AutoModel")
            if is_model and keyword(call, "use_safetensors") != "True":
                found.append(f"{place(path, call)} {name}")
            if trusted not in ("", "False"):
                found.append(f"{place(path, call)} {name}")

    assert loads >= 5
    assert found == []


def is_put_together(node: ast.expr) -> bool:
    """Whether a text is made of others: formatted, added or joined."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        return not all(isinstance(part, ast.BinOp) and is_number(part.right) for part in parts)
    if isinstance(node, ast.BinOp):
        return any(
            isinstance(part, ast.Constant | ast.JoinedStr) and not is_number(part)
            for part in (node.left, node.right)
        )
    if isinstance(node, ast.IfExp):
        return is_put_together(node.body) or is_put_together(node.orelse)
    return isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in (
        "format",
        "join",
        "replace",
    )


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def test_no_statement_is_put_together_from_text() -> None:
    found = [
        place(path, call)
        for path in SOURCES
        for call in calls(parsed(path))
        if dotted(call.func).rpartition(".")[2] in STATEMENTS
        if any(is_put_together(argument) for argument in call.args[:1])
    ]

    assert found == []


def test_the_walk_finds_what_it_looks_for() -> None:
    bad = 'connection.execute(text(f"DELETE FROM {name}"))\ntext("a" + name)\ntext("%s" % name)'

    found = [
        call
        for call in calls(ast.parse(bad))
        if dotted(call.func).rpartition(".")[2] in STATEMENTS
        if any(is_put_together(argument) for argument in call.args[:1])
    ]

    assert len(found) == 3


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {}, "code": pytest.raises}, path)
    spec = ModelSpec(source=ModelSource.OPEN_CLIP, name="ViT-B-32", weights=str(path), device="cpu")

    with pytest.raises(InvalidModel, match="without running code from it"):
        load_model(spec)


NAMES = ("..", ".", "../up", "a/b", "/etc", "a\\b", "a\n", "a\x00", "", "~", "-rf", "a" * 65, "ä")


@pytest.mark.parametrize("name", NAMES)
def test_a_study_name_that_could_leave_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="study"):
        JobSpec.model_validate(
            {"study": name, "model": {"source": "reference"}, "data": {"source": "reference"}}
        )
    path = tmp_path / "job.yaml"
    path.write_text("study: first\nmodel: {source: reference}\ndata: {source: reference}\n")
    with pytest.raises(SpecError, match="study"):
        load_job(path, {"study": name})


def questions(folder: Path, image: str) -> JsonQuestions:
    path = folder / "questions.jsonl"
    path.write_text(f'{{"image": "{image}", "question": "what?", "answers": ["x"]}}\n')
    return JsonQuestions(DataSpec(source=DataSource.QUESTIONS, path=str(path)))


@pytest.mark.parametrize(
    "image",
    [
        *("../secret.png", "/etc/passwd", "link.png", "links/secret.png", "a/../../secret.png"),
        *("~/secret.png", "missing.png", ".", "", "a" * 5000),
    ],
)
def test_the_image_of_a_question_lies_beside_it_or_is_refused(tmp_path: Path, image: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "links").symlink_to(tmp_path)

    source = questions(folder, image)

    with pytest.raises(InvalidSample) as caught:
        source.content(0)
    assert "secret" not in str(caught.value).replace("secret.png", "")


SECRET = "pa55w0rd"
NOBODY = "127.0.0.1:1/none"  # no server listens on port 1
URLS = (
    f"postgresql://me:{SECRET}@{NOBODY}",
    f"postgres://me:{SECRET}@{NOBODY}",
    f"postgresql+psycopg://me:{SECRET}@{NOBODY}",
    f"postgresql://me:%40%2F{SECRET}%3A@{NOBODY}",
    f"postgresql://me@{NOBODY}?password={SECRET}",
    f"postgresql://me@{NOBODY}?password={SECRET}&sslmode=disable",
    f"postgresql://me@{NOBODY}?sslpassword={SECRET}",
    f"postgresql://me@{NOBODY}?password={SECRET}1&password={SECRET}2",
    f"postgresql://me:{SECRET}@host:port/none",
    f"postgresql://me:a@{SECRET}@{NOBODY}",
    f"postgresql://me:{SECRET}@[::1/none",
    f"mysql://me:{SECRET}@{NOBODY}",
    f"nonsense://me:{SECRET}@{NOBODY}",
)


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_in_no_error_and_no_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    with pytest.raises(DatabaseError) as caught:
        open_store(url, patience_s=0)

    shown = [str(caught.value), repr(caught.value), caplog.text]
    shown += traceback.format_exception(caught.value)
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize("url", [URLS[0], URLS[5], URLS[8]])
def test_a_password_is_in_nothing_that_a_command_prints(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = CliRunner().invoke(main, ["list", "--db", url])
    monkeypatch.setenv("BITFRONT_DB", url)
    taken = CliRunner().invoke(main, ["status", "first"])
    helped = CliRunner().invoke(main, ["list", "--help"])

    assert (given.exit_code, taken.exit_code, helped.exit_code) == (2, 2, 0)
    assert SECRET not in given.output + taken.output + helped.output


def test_an_open_store_shows_no_password(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}password={SECRET}"

    with open_store(url) as store:
        store.create_study(job("secret"), {})
        shown = [str(store), repr(store), str(vars(store)), str(store.study("secret"))]
        with pytest.raises(BitfrontError) as caught:
            store.create_study(job("secret"), {})
        store.delete_study("secret")

    shown += traceback.format_exception(caught.value)
    assert not [text for text in [*shown, caplog.text] if SECRET in text]
