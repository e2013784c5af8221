import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from bitfront.errors import BitfrontError, InvalidSample, MissingData, SpecError
from bitfront.layers import Block, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import Precision
from bitfront.spec import DataSource, DataSpec, ErrorMeasure, JobSpec, Samples
from bitfront.vlm import GenerativeModel, PlanSwitch
from objectives.data.questions import QuestionTask, load_questions
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.families.registry import load_family
from objectives.profiling.calibration import calibrate
from objectives.profiling.cells import CellMeter
from objectives.profiling.entropy import measure_entropies
from tests.support.llava_models import Build, load_llava, photo, save_llava
from tests.support.scene_models import untrained_encoder

FEW = Samples(calibration=5, tuning=2, selection=4, test=3)
COUNT = 14
ASKED = ("what is there?", "how many red?", "is the cat blue?", "A. dog B. bird")
ANSWERS = ("yes", "no", "two", "a red bird", "B")
Line = dict[str, object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    save_llava(path, Build(is_tied=True))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> GenerativeModel:
    return load_llava(folder)


def lines_of(count: int, *, text_only: Sequence[int] = ()) -> list[Line]:
    """Questions that all differ, some without an image."""
    lines: list[Line] = []
    for number in range(count):
        line: Line = {
            "question": f"{ASKED[number % 4]} {ANSWERS[number % 5]}",
            "answers": [ANSWERS[number % 5]],
        }
        if number not in text_only:
            line["image"] = f"images/{number}.png"
        lines.append(line)
    return lines


def write(root: Path, lines: Sequence[Line | str]) -> Path:
    """A question file with an image beside it for every line that names one."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for seed in range(len(lines)):
        photo(seed).save(root / "images" / f"{seed}.png")
    path = root / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def json_spec(file: Path, **changes: object) -> DataSpec:
    content: dict[str, object] = {
        "source": "questions",
        "path": str(file),
        "samples": FEW,
        "batch_size": 3,
    }
    return DataSpec.model_validate({**content, **changes})


def write_dataset(root: Path, lines: Sequence[Line]) -> Path:
    """The same as a dataset, its images inside of it."""

    def image(line: Line) -> dict[str, object] | None:
        if "image" not in line:
            return None
        buffer = io.BytesIO()
        photo(int(Path(str(line["image"])).stem)).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    columns = {
        "image": [image(line) for line in lines],
        "question": [line["question"] for line in lines],
        "answer": [line["answers"] for line in lines],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.List(datasets.Value("string")),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(root))
    return root


def dataset_spec(root: Path, **changes: object) -> DataSpec:
    return json_spec(root, source="datasets", **changes)


Maker = Callable[[Path, list[Line]], DataSpec]


def as_json(root: Path, lines: list[Line]) -> DataSpec:
    return json_spec(write(root, lines))


def as_dataset(root: Path, lines: list[Line]) -> DataSpec:
    return dataset_spec(write_dataset(root / "saved", lines))


def samples_of(task: QuestionTask, name: SplitName) -> list[tuple[object, ...]]:
    """What the model sees of each question of a split, in the split's order."""
    split = task.split(name)
    found: dict[int, tuple[object, ...]] = {}
    for number, places in enumerate(split.batches):
        batch = split.read(number)
        for row, place in enumerate(places.tolist()):
            pixels = None if batch.pixels is None else batch.pixels[row].numpy().tobytes()
            prompt, answer = batch.prompts[row].tolist(), batch.answers[row].tolist()
            found[place] = (tuple(prompt), tuple(answer), pixels, split.accepted[place])
    return [found[place] for place in range(len(split))]


@pytest.mark.parametrize("make", [as_json, as_dataset])
def test_splits_are_disjoint_cover_all_questions_and_depend_on_the_seed(
    make: Maker, tmp_path: Path, model: GenerativeModel
) -> None:
    spec = make(tmp_path, lines_of(COUNT))

    one, again, other = (
        load_questions(spec.model_copy(update={"seed": seed}), model) for seed in (0, 0, 1)
    )

    dealt = [sample for name in SplitName for sample in samples_of(one, name)]
    assert [len(one.split(name)) for name in SplitName] == [5, 2, 4, 3]
    assert len(set(dealt)) == COUNT
    assert dealt == [sample for name in SplitName for sample in samples_of(again, name)]
    assert one.identity == again.identity != other.identity


@pytest.mark.parametrize("make", [as_json, as_dataset])
def test_a_question_comes_as_the_model_reads_it(
    make: Maker, tmp_path: Path, model: GenerativeModel
) -> None:
    lines = lines_of(COUNT, text_only=(3, 8))
    task = load_questions(make(tmp_path, lines), model)

    dealt = {sample for name in SplitName for sample in samples_of(task, name)}

    expected = set()
    for number, line in enumerate(lines):
        place = "<image>\n" if "image" in line else ""
        image = photo(number) if "image" in line else None
        prompt = model.prepare(f"USER: {place}{line['question']} ASSISTANT:", image)
        pixels = None if prompt.pixels is None else prompt.pixels.numpy().tobytes()
        answer = ANSWERS[number % 5]
        tokens = tuple(model.encode_answer(answer).tolist())
        expected.add((tuple(prompt.tokens.tolist()), tokens, pixels, (answer,)))
    assert dealt == expected


def test_another_line_moves_no_other_one(tmp_path: Path, model: GenerativeModel) -> None:
    lines = lines_of(COUNT + 1)
    samples = Samples(calibration=COUNT - 3, tuning=1, selection=1, test=1)
    fewer = json_spec(write(tmp_path, lines[:COUNT]), samples=samples)
    before = samples_of(load_questions(fewer, model), SplitName.CALIBRATION)

    more = json_spec(write(tmp_path, lines), samples=samples)
    after = samples_of(load_questions(more, model), SplitName.CALIBRATION)

    kept = [sample for sample in before if sample in after]
    assert [sample for sample in after if sample in before] == kept
    assert len(kept) >= len(before) - 1


def recolour(root: Path, lines: list[Line]) -> None:
    for number in range(len(lines)):
        photo(100 + number).save(root / "images" / f"{number}.png")


def reword(_root: Path, lines: list[Line]) -> None:
    for line in lines:
        line["question"] = f"{line['question']} there"


def answer_otherwise(_root: Path, lines: list[Line]) -> None:
    for line in lines:
        line["answers"] = ["green"]


def accept_more(_root: Path, lines: list[Line]) -> None:
    for line in lines:
        line["answers"] = [*ANSWERS, "green"]


@pytest.mark.parametrize("change", [recolour, reword, answer_otherwise, accept_more])
def test_the_identity_follows_images_questions_and_answers(
    change: Callable[[Path, list[Line]], None], tmp_path: Path, model: GenerativeModel
) -> None:
    lines = lines_of(COUNT)
    spec = json_spec(write(tmp_path, lines))
    before = [load_questions(spec, model).split_identity(name) for name in SplitName]

    change(tmp_path, lines)
    texts = "\n".join(map(json.dumps, lines))
    Path(str(spec.path)).write_text(texts, encoding="utf-8")
    after = [load_questions(spec, model).split_identity(name) for name in SplitName]

    assert not set(before) & set(after)


@pytest.mark.parametrize(
    "change", [{"prompt": "<image>\nQ: {}"}, {"answer_pattern": "A"}, {"answer_tokens": 9}]
)
def test_the_identity_follows_what_is_asked_for(
    change: dict[str, object], tmp_path: Path, model: GenerativeModel
) -> None:
    path = write(tmp_path, lines_of(COUNT))

    one, other = (load_questions(json_spec(path, **c), model) for c in ({}, change))

    assert one.identity != other.identity


def test_the_identity_does_not_follow_batches_and_folders(
    tmp_path: Path, model: GenerativeModel
) -> None:
    here, there = (write(tmp_path / name, lines_of(COUNT)) for name in ("here", "there"))

    one = load_questions(json_spec(here), model)
    other = load_questions(json_spec(there, batch_size=7), model)

    assert one.identity == other.identity


def test_answers_that_are_longer_than_answers_may_be_are_refused(
    tmp_path: Path, model: GenerativeModel
) -> None:
    lines = [{**line, "answers": ["a red bird"]} for line in lines_of(COUNT)]
    file = write(tmp_path, lines)
    needed = len(model.encode_answer("a red bird"))

    with pytest.raises(SpecError) as caught:
        load_questions(json_spec(file, answer_tokens=needed - 1), model)

    assert str(caught.value).startswith(
        f"data.answer_tokens: 4 of the 4 questions for selection have no right answer of at most "
        f"{needed - 1} tokens, its end included, such as line "
    )
    load_questions(json_spec(file, answer_tokens=needed), model)
    load_questions(json_spec(file, answer_tokens=1, answer_pattern="red"), model)


def test_one_short_answer_among_the_right_ones_is_enough(
    tmp_path: Path, model: GenerativeModel
) -> None:
    lines = [{**line, "answers": ["a red bird", "no"]} for line in lines_of(COUNT)]

    load_questions(json_spec(write(tmp_path, lines), answer_tokens=2), model)


def test_batches_have_one_shape_and_cover_the_split(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(40, text_only=range(0, 40, 3)))
    samples = Samples(calibration=37, tuning=1, selection=1, test=1)
    split = load_questions(json_spec(path, samples=samples), model).split(SplitName.CALIBRATION)

    batches = [split.read(number) for number in range(len(split.batches))]

    places = [place for part in split.batches for place in part.tolist()]
    assert sorted(places) == list(range(37))
    assert all(len(batch) <= 3 for batch in batches)
    with_images = [batch.pixels is not None for batch in batches]
    assert with_images == sorted(with_images, reverse=True)
    assert set(with_images) == {True, False}


@pytest.mark.parametrize("text", ["\ufeff{}", "{}\r", "\n{}\n", " {} "])
def test_harmless_marks_around_a_line_do_not_matter(
    text: str, tmp_path: Path, model: GenerativeModel
) -> None:
    lines = lines_of(COUNT)
    plain = load_questions(json_spec(write(tmp_path / "plain", lines)), model)
    first, *others = [json.dumps(line) for line in lines]

    marked = write(tmp_path / "marked", [text.format(first), *others])

    assert load_questions(json_spec(marked), model).identity == plain.identity


def test_a_line_separator_inside_of_a_question_ends_no_line(
    tmp_path: Path, model: GenerativeModel
) -> None:
    lines = lines_of(COUNT)
    lines[4]["question"] = "what\u2028is there?"
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]

    task = load_questions(json_spec(write(tmp_path, texts)), model)

    assert sum(map(len, map(task.split, SplitName))) == COUNT


def use_all(task: QuestionTask, model: GenerativeModel) -> None:
    """Uses every question, as a study does."""
    for name in SplitName:
        for stream in task.streams(name):
            for batch in range(len(stream.sizes)):
                stream.run(batch)


def broken(number: int, **changes: object) -> list[Line]:
    lines = lines_of(COUNT)
    lines[number].update(changes)
    return lines


def without(number: int, key: str) -> list[Line]:
    lines = lines_of(COUNT)
    del lines[number][key]
    return lines


BAD_LINES: dict[str, tuple[Sequence[Line | str], str]] = {
    "an image that is not there": (
        broken(3, image="images/none.png"),
        r"line 4 of .*questions\.jsonl: the image .*none\.png cannot be read: No such file",
    ),
    "a folder for an image": (
        broken(3, image="images"),
        r"line 4 .*: the image .* cannot be read: Is a directory",
    ),
    "a path without a name": (
        broken(3, image=""),
        r"line 4 .*: the image .* cannot be read: Is a directory",
    ),
    "an image that is none": (
        broken(3, image="questions.jsonl"),
        r"line 4 of .*: the image .* cannot be read: .* or remove it",
    ),
    "a path outside of the folder": (
        broken(2, image="../secret.png"),
        r"line 3 of .* has an image outside of .*: \.\./secret\.png",
    ),
    "an absolute path": (broken(2, image="/etc/passwd"), r"line 3 .* has an image outside of"),
    "no answer": (broken(5, answers=[]), r"line 6 of .* has no answer: give it one, or remove it"),
    "an answer of spaces": (broken(5, answers=["  ", "."]), r"line 6 of .* has no answer"),
    "no JSON": (
        [*lines_of(COUNT), "what is there?"],
        r'line 15 of .* is not a question: the line: Invalid JSON.*write \{"image": "cat\.jpg"',
    ),
    "a number": ([*lines_of(COUNT), "7"], r"line 15 of .* is not a question"),
    "no question": (without(1, "question"), r"line 2 of .*: question: Field required"),
    "no answers": (without(1, "answers"), r"line 2 of .*: answers: Field required"),
    "answers of another kind": (broken(1, answers=[1]), r"line 2 of .*: answers\.0: .*string"),
    "a place for a second image": (
        broken(6, question="<image> what is there?"),
        r"line 7 of .*: the prompt .* has 2 image tokens",
    ),
}


@pytest.mark.parametrize(("lines", "message"), BAD_LINES.values(), ids=list(BAD_LINES))
def test_a_line_that_cannot_be_used_is_named(
    lines: Sequence[Line | str], message: str, tmp_path: Path, model: GenerativeModel
) -> None:
    (tmp_path / "data").mkdir()
    photo(0).save(tmp_path / "secret.png")
    samples = Samples(calibration=len(lines) - 9, tuning=2, selection=4, test=3)
    path = write(tmp_path / "data", lines)

    with pytest.raises(InvalidSample, match=f"(?s){message}"):
        use_all(load_questions(json_spec(path, samples=samples), model), model)


def test_an_image_after_a_link_out_of_the_folder_is_not_read(
    tmp_path: Path, model: GenerativeModel
) -> None:
    path = write(tmp_path / "data", lines_of(COUNT))
    photo(0).save(tmp_path / "secret.png")
    (tmp_path / "data/images/5.png").unlink()
    (tmp_path / "data/images/5.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(InvalidSample, match=r"line 6 of .* has an image outside of"):
        use_all(load_questions(json_spec(path), model), model)


def test_a_truncated_image_is_named(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(COUNT))
    image = tmp_path / "images/7.png"
    image.write_bytes(image.read_bytes()[:60])

    with pytest.raises(InvalidSample, match=r"line 8 of .*: the image .*7\.png cannot be read"):
        use_all(load_questions(json_spec(path), model), model)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, model: GenerativeModel) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InvalidSample, match=r"questions\.jsonl cannot be read.*UTF-8"):
        load_questions(json_spec(path), model)


BAD_SPECS: dict[str, tuple[dict[str, object], type[BitfrontError], str]] = {
    "a file that is not there": (
        {"path": "/no/such"},
        MissingData,
        "the file '/no/such' does not exist",
    ),
    "too few questions": (
        {"samples": Samples(calibration=9, tuning=2, selection=4, test=3)},
        MissingData,
        "has 14 samples, but the splits ask for 18 .*lower data.samples",
    ),
    "a prompt without an image": (
        {"prompt": "USER: {} ASSISTANT:"},
        SpecError,
        r"data\.prompt has no <image>: put it where the image goes",
    ),
    "a folder of images": (
        {"source": DataSource.IMAGE_FOLDER},
        SpecError,
        "a folder of images has no questions.*set data.source to questions or datasets",
    ),
    "a table": (
        {"source": DataSource.TABLE},
        SpecError,
        "a table of labels or captions has no questions.*set data.source to questions",
    ),
    "shards": (
        {"source": DataSource.WEBDATASET},
        SpecError,
        "a webdataset has no questions.*set data.source to questions",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD_SPECS.values(), ids=list(BAD_SPECS))
def test_data_that_do_not_fit_are_refused(
    change: dict[str, object],
    error: type[BitfrontError],
    message: str,
    tmp_path: Path,
    model: GenerativeModel,
) -> None:
    spec = json_spec(write(tmp_path, lines_of(COUNT)), **change)

    with pytest.raises(error, match=message):
        load_family(spec, model)


def test_questions_do_not_fit_a_model_that_tells_classes_apart(tmp_path: Path) -> None:
    spec = json_spec(write(tmp_path, lines_of(COUNT)))

    with pytest.raises(
        SpecError, match="source questions are not for a model that tells classes apart"
    ):
        load_family(spec, untrained_encoder())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_pattern": "(A"}, "data.answer_pattern is not a regular expression"),
        ({"prompt": "<image>"}, "data.prompt needs {} where the question goes"),
        ({"path": None}, "needs a path"),
        ({"answer_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        json_spec(Path("questions.jsonl"), **change)


BAD_ROWS: dict[str, tuple[list[Line], str]] = {
    "no answer": (broken(5, answers=[]), r"row 5 of dataset .* has no answer"),
    "no answers at all": (broken(5, answers=None), r"row 5 of dataset .* has no answer"),
    "a second image": (
        broken(6, question="<image> what?"),
        r"row 6 of dataset .* has 2 image tokens",
    ),
}


@pytest.mark.parametrize(("lines", "message"), BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_a_row_that_cannot_be_used_is_named(
    lines: list[Line], message: str, tmp_path: Path, model: GenerativeModel
) -> None:
    spec = dataset_spec(write_dataset(tmp_path / "saved", lines))

    with pytest.raises(InvalidSample, match=f"(?s){message}"):
        use_all(load_questions(spec, model), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_column": "text"}, "has no column 'text'; its columns are image, question"),
        ({"image_column": "question"}, "column 'question' of .* has no images"),
        ({"question_column": "answer"}, "column 'answer' of .* must hold texts"),
        ({"answer_column": "image"}, "column 'image' of .* must hold texts, or lists of texts"),
    ],
)
def test_columns_of_another_kind_are_refused(
    change: dict[str, object], message: str, tmp_path: Path, model: GenerativeModel
) -> None:
    spec = dataset_spec(write_dataset(tmp_path / "saved", lines_of(COUNT)), **change)

    with pytest.raises(SpecError, match=message):
        load_questions(spec, model)


def job(data: DataSpec, **changes: object) -> JobSpec:
    content: dict[str, object] = {
        "study": "questions",
        "model": {"source": "transformers", "name": "here", "device": "cpu"},
        "data": data,
        "quantizer": {"scale_search": False},
    }
    return JobSpec.model_validate({**content, **changes})


def sequence(model: GenerativeModel) -> list[Configuration]:
    """Plans that differ in one tower each, and returns to the first."""
    names = [layer.name for layer in model.layers]
    base = Plan.uniform(names, Precision(4, 8))
    plans = [base]
    for tower in (Tower.LANGUAGE, Tower.PROJECTOR, Tower.VISION):
        last = [layer.name for layer in model.layers if layer.tower is tower][-2:]
        plans += [Plan.of({**dict(base), name: Precision(2, 8)}) for name in last]
    return [Configuration(plan) for plan in (*plans, Plan(()), base)]


def figures(evaluator: Evaluator, configuration: Configuration) -> dict[str, float]:
    metrics = evaluator.evaluate(configuration).metrics
    return {n: v for n, v in metrics.items() if not n.startswith(("seconds.", "hits."))}


EIGHT = Samples(calibration=8, tuning=8, selection=8, test=8)


@pytest.mark.parametrize("every", [2, 3])
def test_questions_with_and_without_images_give_the_same_bits_with_and_without_caches(
    every: int, tmp_path: Path, folder: Path
) -> None:
    lines = lines_of(32, text_only=[n for n in range(32) if n % every])
    spec = job(json_spec(write(tmp_path, lines), samples=EIGHT))
    keeping, plain = (load_llava(folder) for _ in range(2))
    task = load_questions(spec.data, keeping)
    ranges = calibrate(task, (1.0,))
    evaluators = [
        Evaluator(spec, AnsweringFamily(task), ranges),
        Evaluator(spec, AnsweringFamily(load_questions(spec.data, plain)), ranges, cache_nbytes=0),
    ]
    selection = task.split(SplitName.SELECTION)
    kinds = {selection.read(n).pixels is None for n in range(len(selection.batches))}
    assert kinds == {True, False}

    for configuration in sequence(keeping):
        one, other = (figures(evaluator, configuration) for evaluator in evaluators)
        assert one == other


@pytest.mark.parametrize("kind", ErrorMeasure)
def test_cells_are_measured_on_questions_with_and_without_images(
    kind: ErrorMeasure, tmp_path: Path, folder: Path
) -> None:
    model = load_llava(folder)
    lines = lines_of(32, text_only=range(0, 32, 2))
    spec = job(json_spec(write(tmp_path, lines), samples=EIGHT), profile={"measure": kind.value})
    task = load_questions(spec.data, model)
    ranges = calibrate(task, (1.0,))
    meter = CellMeter(task, PlanSwitch(model, spec.quantizer, ranges), spec)
    vision = [layer.name for layer in model.layers if layer.tower is Tower.VISION]
    language = [layer.name for layer in model.layers if layer.tower is Tower.LANGUAGE]

    for block in (
        Block("vision", Tower.VISION, tuple(vision[-2:])),
        Block("language", Tower.LANGUAGE, tuple(language[-3:-1])),
        Block("tied", Tower.LANGUAGE, (language[-1],)),
    ):
        errors = [
            meter.measure(block, Option((Precision(bits, 8),) * len(block.layers))).error
            for bits in (2, 4, 8)
        ]
        assert errors == sorted(errors, reverse=True)
        # To the all-8-bit model 8 bits add nothing.
        assert (
            errors[-1] > 0 if kind is not ErrorMeasure.LOSS_DELTA else errors[0] > errors[-1] == 0
        )


def test_calibration_without_any_image_is_refused(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(COUNT, text_only=range(COUNT)))
    task = load_questions(json_spec(path), model)

    with pytest.raises(InvalidSample, match="none of the 5 questions for calibration has an image"):
        calibrate(task, (1.0,))


def test_another_split_may_do_without_images(tmp_path: Path, folder: Path) -> None:
    model = load_llava(folder)
    path = write(tmp_path, lines_of(COUNT))
    spec = job(json_spec(path))
    ranges = calibrate(load_questions(spec.data, model), (1.0,))
    bare = tmp_path / "bare.jsonl"
    lines = lines_of(COUNT, text_only=range(COUNT))
    bare.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = load_questions(json_spec(bare), model)

    # Without a walk of the calibration samples: the ranges are those of a split with images.
    nearest = job(json_spec(bare), quantizer={"rounding": "nearest"})
    evaluator = Evaluator(nearest, AnsweringFamily(task), ranges)

    for configuration in sequence(model):
        assert 0 <= figures(evaluator, configuration)["error"] <= 1


@pytest.mark.parametrize("batch_size", [1, 64])
def test_one_sample_is_enough_to_calibrate(
    batch_size: int, tmp_path: Path, model: GenerativeModel
) -> None:
    samples = Samples(calibration=1, tuning=2, selection=4, test=3)
    path = write(tmp_path, lines_of(COUNT))
    task = load_questions(json_spec(path, samples=samples, batch_size=batch_size), model)
    inputs: dict[str, list[torch.Tensor]] = {}
    split = task.split(SplitName.CALIBRATION)

    ranges = calibrate(task, (1.0, 0.9))

    with model.watch_inputs(lambda name, x: inputs.setdefault(name, []).append(x)):
        model.answer_logits(split.read(0))
    multiplying = [x.name for x in model.layers if x.kind is not LayerKind.EMBEDDING]
    assert sorted(ranges) == sorted(multiplying)
    for name, (values,) in inputs.items():
        found, cut = ranges[name][1.0], ranges[name][0.9]
        assert (found.low, found.high) == (float(values.min()), float(values.max()))
        assert found.low <= cut.low <= cut.high <= found.high


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_an_input_that_never_changes_leaves_every_figure_finite(
    value: float, tmp_path: Path, folder: Path
) -> None:
    model = load_llava(folder)
    norms = dict(model.module.named_parameters())
    for part in ("vision_tower.encoder.layers.0.layer_norm1",):
        norms[f"model.{part}.weight"].data.fill_(0.0)
        norms[f"model.{part}.bias"].data.fill_(value)
    norms["model.language_model.layers.1.input_layernorm.weight"].data.fill_(0.0)
    spec = job(json_spec(write(tmp_path, lines_of(COUNT))), space={"clips": [0.9, 1.0]})
    task = load_questions(spec.data, model)

    ranges = calibrate(task, (1.0, 0.9))
    entropies = measure_entropies(task, ranges, 4)

    names = [layer.name for layer in model.layers]
    constant = ranges["model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"][1.0]
    assert constant.low == constant.high == pytest.approx(value)
    assert all(0 <= entry.entropy <= 1 for entry in entropies)
    assert all(0 <= (entry.dependency or 0) <= 1 for entry in entropies)
    evaluator = Evaluator(spec, AnsweringFamily(task), ranges)
    for precision in (Precision(4, 4), Precision(8, 8, clip=0.9)):
        found = figures(evaluator, Configuration(Plan.uniform(names, precision)))
        assert all(torch.tensor(list(found.values())).isfinite())


def test_images_of_any_mode_are_read_as_colours(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(COUNT))
    for number, mode in enumerate(("L", "1", "P", "RGBA", "I;16", "CMYK")):
        kind = "tiff" if mode in ("I;16", "CMYK") else "png"
        image = Image.new(mode, (9, 1)) if mode == "I;16" else photo(number).convert(mode)
        image.save(tmp_path / "images" / f"{number}.png", kind)

    use_all(load_questions(json_spec(path), model), model)
