"""Job files become specifications."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitfront.errors import SpecError
from bitfront.job import load_job
from bitfront.precision import WEIGHT_BITS
from bitfront.spec import (
    ConstraintSpec,
    DataSource,
    DataSpec,
    JobSpec,
    ModelSource,
    ModelSpec,
    SpaceSpec,
    StopSpec,
)

SHORT = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SHORT)
    return path


def test_a_short_job_takes_every_default(job: Path) -> None:
    assert load_job(job) == JobSpec(
        study="first",
        model=ModelSpec(source=ModelSource.REFERENCE),
        data=DataSpec(source=DataSource.REFERENCE),
    )


@given(
    bits=st.lists(st.sampled_from(WEIGHT_BITS), min_size=1, unique=True),
    study=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    trials=st.integers(1, 10**6),
    share=st.floats(0.01, 1.0),
)
def test_a_written_specification_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    bits: list[int],
    study: str,
    trials: int,
    share: float,
) -> None:
    spec = JobSpec(
        study=study,
        model=ModelSpec(source=ModelSource.REFERENCE),
        data=DataSpec(source=DataSource.REFERENCE, templates=("a {}", "ein {} — ñ")),
        space=SpaceSpec(weight_bits=tuple(bits), keep={"visual.*: #1": 8}),
        constraints=ConstraintSpec(max_error=share),
        stop=StopSpec(trials=trials),
    )
    path = tmp_path_factory.mktemp("written") / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json"), allow_unicode=True))

    assert load_job(path) == spec


def test_what_the_command_line_gives_wins(job: Path) -> None:
    spec = load_job(job, {"study": "second", "stop.trials": 3, "search.workers": 8})

    assert (spec.study, spec.stop.trials, spec.search.workers) == ("second", 3, 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "study",
            "a b",
            "on the command line: study: 'a b' is not possible: use 1 to 64 letters, digits, "
            "'.', '_' and '-', starting with a letter or digit",
        ),
        (
            "stop.trials",
            0,
            "on the command line: stop.trials: 0 is not possible: it must be at least 1",
        ),
    ],
)
def test_a_mistake_of_the_command_line_is_not_put_on_the_file(
    job: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_job(job, {key: value})

    assert str(caught.value) == message


def test_relative_paths_start_at_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs" / "photos").mkdir(parents=True)
    (tmp_path / "jobs" / "best.pt").touch()
    job = tmp_path / "jobs" / "job.yaml"
    job.write_text(
        "study: first\n"
        "model: {source: open_clip, name: ViT-B-32, weights: best.pt}\n"
        "data: {source: image_folder, path: photos}\n"
    )
    monkeypatch.chdir(tmp_path)

    spec = load_job(Path("jobs/job.yaml"))

    assert spec.data.path == str((tmp_path / "jobs" / "photos").resolve())
    assert spec.model.weights == str((tmp_path / "jobs" / "best.pt").resolve())


@pytest.mark.parametrize(
    ("source", "name", "weights"),
    [
        ("open_clip", "ViT-B-32", "laion2b_s34b_b79k"),
        ("transformers", "openai/clip-vit-base-patch32", None),
    ],
)
def test_names_of_a_hub_stay_as_they_are(
    tmp_path: Path, source: str, name: str, weights: str | None
) -> None:
    job = tmp_path / "job.yaml"
    content = {"source": source, "name": name, "weights": weights}
    job.write_text(
        yaml.safe_dump({"study": "s", "model": content, "data": {"source": "reference"}})
    )

    model = load_job(job).model

    assert (model.name, model.weights) == (name, weights)


def test_an_alias_stands_for_its_value(job: Path) -> None:
    job.write_text(SHORT + "space: {weight_bits: &bits [4, 6], activation_bits: *bits}\n")

    assert load_job(job).space.activation_bits == (4, 6)


def test_a_byte_order_mark_is_no_content(job: Path) -> None:
    job.write_bytes(b"\xef\xbb\xbf" + SHORT.encode())

    assert load_job(job).study == "first"


@pytest.mark.parametrize(
    "name",
    [
        "service/commands/demo-clip.yaml",
        "service/commands/demo-llava.yaml",
        "examples/reference.yaml",
    ],
)
def test_the_jobs_we_ship_are_valid(name: str) -> None:
    assert load_job(ROOT / name).model.source is ModelSource.REFERENCE


@pytest.mark.parametrize("name", ["open_clip", "transformers", "llava", "retrieval"])
def test_examples_miss_nothing_but_the_data(name: str) -> None:
    with pytest.raises(SpecError, match=r"data\.path: the (folder|file) .* does not exist"):
        load_job(ROOT / "examples" / f"{name}.yaml")


def test_a_file_of_classes_lies_beside_the_job(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    (tmp_path / "images").mkdir()
    text = (
        "study: s\nmodel: {source: open_clip, name: ViT-B-32}\n"
        "data:\n  source: image_folder\n  path: images\n  classes: names.json\n"
    )
    job.write_text(text)

    with pytest.raises(
        SpecError, match=r"job.yaml, line 6: data.classes: the file .*names.* does not exist"
    ):
        load_job(job)
    (tmp_path / "names.json").write_text("{}")
    assert load_job(job).data.classes == str(tmp_path / "names.json")
    with pytest.raises(SpecError, match=r"line 6: data.classes: 'names.json' starts at this mach"):
        load_job(job_with(job, "path: images", f"path: {tmp_path / 'images'}"), elsewhere=True)
    for named in ("cifar10", "CIFAR-10"):
        assert load_job(job_with(job, "names.json", named)).data.classes == "cifar10"


def test_the_file_of_a_mirror_lies_beside_the_job(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "study: s\nmodel: {source: reference}\ndata: {source: reference}\n"
        "tracking:\n  mlflow: sqlite:///kept/m.db\n"
    )

    with pytest.raises(SpecError, match=r"line 5: tracking.mlflow: the folder .*kept does not"):
        load_job(job)
    (tmp_path / "kept").mkdir()
    assert load_job(job).tracking.mlflow == f"sqlite:///{tmp_path}/kept/m.db"
    with pytest.raises(SpecError, match=r"line 5: tracking.mlflow: 'kept/m.db' starts at this m"):
        load_job(job, elsewhere=True)
    uri = "http://127.0.0.1:5000"
    assert (
        load_job(job_with(job, "sqlite:///kept/m.db", uri), elsewhere=True).tracking.mlflow == uri
    )


def job_with(job: Path, old: str, new: str) -> Path:
    job.write_text(job.read_text().replace(old, new))
    return job


def write_open_clip(folder: Path, name: str, weights: str = "") -> Path:
    job = folder / "job.yaml"
    further = f", weights: {weights}" if weights else ""
    job.write_text(
        "study: first\n"
        f"model: {{source: open_clip, name: '{name}'{further}}}\n"
        "data: {source: reference}\n"
    )
    return job


def test_a_folder_of_open_clip_starts_at_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir("/")
    job = write_open_clip(tmp_path, "local-dir:model")

    assert load_job(job).model.name == f"local-dir:{tmp_path / 'model'}"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("local-dir:gone", "", r"line 2: model\.name: the folder .*/gone does not exist"),
        ("local-dir:.", "x.pt", r"line 2: model\.weights: .*has its own weights: leave these out"),
    ],
)
def test_a_folder_of_open_clip_is_one_source_of_weights_that_exists(
    tmp_path: Path, name: str, weights: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_job(write_open_clip(tmp_path, name, weights))


def test_a_relative_folder_of_open_clip_is_not_sent_to_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.name: 'model' starts at this machine's folder"):
        load_job(write_open_clip(tmp_path, "local-dir:model"), elsewhere=True)


@pytest.mark.parametrize(
    ("text", "trials", "patience"),
    [
        ("stop:\n  <<: {trials: 3}\n  patience: 4\n", 3, 4),
        ("stop:\n  trials: 5\n  <<: [{trials: 3, patience: 2}, {patience: 9}]\n", 5, 2),
        ("stop:\n  <<: {<<: {trials: 7}, patience: 1}\n", 7, 1),
    ],
)
def test_a_merge_key_brings_in_what_is_not_given(
    job: Path, text: str, trials: int, patience: int
) -> None:
    job.write_text(SHORT + text)

    stop = load_job(job).stop

    assert (stop.trials, stop.patience) == (trials, patience)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stop:\n  <<: 3\n", "line 5: '<<' takes in only '3': write an alias of a mapping"),
        ("stop: &a\n  <<: *a\n", "the file merges mappings more than 100 times"),
        ("search: {warm_start: [no]}\n", r"search.warm_start must be text \(put it in quotes\)"),
        (
            "stop: {trials: 010}\n",
            "line 4: 010 is 8 in YAML, where a 0 in front means octal: write 10 or 8",
        ),
        (
            "search: {warm_start: first}\n",
            r"search.warm_start must be a list, such as \['first', 'second'\], not 'first'",
        ),
        ("objectives: error\n", r"objectives must be a list, such as \[error, nbytes\], not"),
        (
            "space: {recovery: {teacher: [a picture of {}]}}\n",
            "line 4: this is not valid YAML: text with {} in it needs quotes",
        ),
    ],
)
def test_yaml_that_means_something_else_is_refused(job: Path, text: str, message: str) -> None:
    job.write_text(SHORT + text)

    with pytest.raises(SpecError, match=message):
        load_job(job)


def test_paths_expand_the_home_and_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("PICTURES", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    job = tmp_path / "job.yaml"
    for path in ("$PICTURES/photos", "${PICTURES}/photos", "~/photos"):
        job.write_text(
            "study: s\nmodel: {source: reference}\n"
            f"data: {{source: image_folder, path: '{path}'}}\n"
        )

        assert load_job(job).data.path == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("source", "data", "message"),
    [
        ("reference", "$NO_SUCH/photos", "data.path: .* the variable NO_SUCH is not set"),
        ("reference", "${NO_SUCH}/photos", "data.path: .* the variable NO_SUCH is not set"),
        ("reference", "https://host/photos.zip", "data.path: .* is an address, and what a job"),
        ("reference", "s3://bucket/photos", "data.path: .* is an address, and what a job reads"),
        ("transformers, name: https://host/openai/clip", ".", "model.name: .* is an address, and"),
        ("open_clip, name: ViT-B-32, weights: file:///w.pt", ".", "model.weights: .* is an addr"),
    ],
)
def test_a_place_that_no_disk_has_is_named(
    tmp_path: Path, source: str, data: str, message: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"study: s\nmodel: {{source: {source}}}\ndata: {{source: image_folder, path: '{data}'}}\n"
    )

    with pytest.raises(SpecError, match=message):
        load_job(job)


def test_no_path_sends_control_characters_to_a_terminal(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "study: s\nmodel: {source: reference}\n"
        'data: {source: image_folder, path: "a\\x1b[31m\\nb"}\n'
    )

    with pytest.raises(SpecError, match=r"a\\x1b\[31m\\nb does not exist"):
        load_job(job)


def test_a_pattern_whose_set_python_may_read_anew_is_taken_quietly() -> None:
    data = DataSpec.model_validate({"source": "reference", "answer_pattern": "[[a]+"})

    assert data.answer_pattern == "[[a]+"


def test_a_folder_may_be_called_like_a_variable(tmp_path: Path) -> None:
    (tmp_path / "$photos").mkdir()
    job = tmp_path / "job.yaml"
    job.write_text(
        "study: s\nmodel: {source: reference}\ndata: {source: image_folder, path: $photos}\n"
    )

    assert load_job(job).data.path == str(tmp_path / "$photos")


def test_a_job_without_templates_is_refused(job: Path) -> None:
    job.write_text(SHORT.replace("data: {source: ref", "data: {templates: [], source: ref"))

    with pytest.raises(SpecError, match=r"line 3: data.templates is empty: give one, such as"):
        load_job(job)


def test_the_paths_of_splits_and_images_lie_beside_the_job(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "photos").mkdir()
    job = tmp_path / "job.yaml"
    text = (
        "study: s\nmodel: {source: reference}\ndata:\n  source: captions\n  path: train.jsonl\n"
        "  images: photos\n  splits: {test: test.jsonl}\n"
    )
    job.write_text(text)

    found = load_job(job).data

    assert found.images == str(tmp_path / "photos")
    assert found.splits.given == {"test": str(tmp_path / "test.jsonl")}
    job.write_text(text.replace("test.jsonl", "none.jsonl"))
    with pytest.raises(SpecError, match=r"line 7: data.splits: the file .*none.jsonl does not ex"):
        load_job(job)
    job.write_text(text)
    with pytest.raises(SpecError, match=r"line 7: data.splits.test: 'test.jsonl' starts at this"):
        load_job(job, elsewhere=True)
