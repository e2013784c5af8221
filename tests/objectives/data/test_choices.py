"""Questions with options: files, what is wrong with them, and what a written answer names."""

import json
from pathlib import Path

import pytest

from bitfront.errors import InvalidSample, SpecError
from bitfront.reference.questions import KINDS, OPTIONS, draw_options, draw_questions
from bitfront.spec import DataSpec, Samples
from bitfront.vlm import GenerativeModel
from objectives.data.choice_sources import ListedChoices
from objectives.data.choices import ChoiceTask, chosen_option, load_choices
from objectives.data.inspection import Inspector
from objectives.data.preview import preview_data
from objectives.data.split_name import SplitName
from tests.support.llava_models import Build, load_llava, photo, save_llava

FEW = Samples(calibration=3, tuning=2, selection=4, test=3)
COUNT = 12
OPTION_TEXTS = ("yes", "no", "two", "a red bird")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GenerativeModel:
    path = tmp_path_factory.mktemp("llava")
    save_llava(path, Build(is_tied=True))
    return load_llava(path)


def lines_of(count: int) -> list[dict[str, object]]:
    return [
        {
            "image": f"{number}.png",
            "question": f"what is there? {OPTION_TEXTS[number % 4]}",
            "options": OPTION_TEXTS[: 2 + number % 3],
            "answer": number % 2,
        }
        for number in range(count)
    ]


def write(root: Path, lines: list[dict[str, object]]) -> Path:
    for number in range(len(lines)):
        photo(number).save(root / f"{number}.png")
    path = root / "choices.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def spec_of(path: Path, **changes: object) -> DataSpec:
    content = {"source": "questions", "task": "choice", "path": str(path), "samples": FEW}
    return DataSpec.model_validate({**content, **changes})


@pytest.mark.parametrize(
    ("answer", "right"),
    [(0, 0), (2, 2), ("two", 2), (" Two.", 2), ("A", 0), ("b", 1), ("(C)", 2), ("D.", 3)],
)
def test_an_answer_is_an_option_its_letter_or_its_place(
    tmp_path: Path, answer: object, right: int
) -> None:
    line = {"question": "?", "options": OPTION_TEXTS, "answer": answer}

    source = ListedChoices(spec_of(write(tmp_path, [line])))

    assert source.right(0) == right
    assert source.answers(0) == (OPTION_TEXTS[right],)
    assert source.options(0) == OPTION_TEXTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 4}, "answer 4 is none of the options: write an option, its letter"),
        ({"answer": "E"}, "answer 'E' is none of the options"),
        ({"answer": -1}, "answer -1 is none of the options"),
        ({"answer": "three"}, "answer 'three' is none of the options"),
        ({"options": ["yes"], "answer": 0}, "options must be 2 to 26 texts"),
        ({"options": ["yes", " "], "answer": 0}, "options must be 2 to 26 texts"),
        ({"options": ["yes", "Yes."], "answer": 0}, "two options are the same"),
        ({"options": None}, r"options: .*; write \{\"image\": \"cat.jpg\""),
    ],
)
def test_a_question_without_a_choice_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    lines = lines_of(3)
    lines[1] |= changes

    with pytest.raises(InvalidSample, match=rf"line 2 of .* is not a question: .*{message}"):
        ListedChoices(spec_of(write(tmp_path, lines)))


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        ("yes", 0),
        ("a red bird", 3),
        ("a", 0),
        ("b", 1),
        ("c. two", 2),
        ("(d) a red bird", 3),
        ("the answer is b", 1),
        ("answer: c", 2),
        ("option d", 3),
        ("a bird", None),
        ("because", None),
        ("e", None),
        (None, None),
    ],
)
def test_a_written_answer_names_an_option_by_its_words_or_its_letter(
    written: str | None, chosen: int | None
) -> None:
    assert chosen_option(written, OPTION_TEXTS) == chosen


def test_options_are_listed_for_letters_only(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(COUNT))

    likelihood = load_choices(spec_of(path), model)
    letter = load_choices(spec_of(path, measure="letter"), model)
    plain = load_choices(spec_of(path, measure="letter", option_format=""), model)

    for name in SplitName:
        rights = [options[right] for options, right in likelihood.choices[name]]
        assert [answers[0] for answers in likelihood.split(name).accepted] == rights
        assert [answers[0] for answers in plain.split(name).accepted] == rights
        assert [answers[0] for answers in letter.split(name).accepted] == [
            "AB"[right] for _, right in letter.choices[name]
        ]
    identities = {task.identity for task in (likelihood, letter)}
    assert len(identities) == 2


def test_every_option_is_an_answer_of_its_question(tmp_path: Path, model: GenerativeModel) -> None:
    task = load_choices(spec_of(write(tmp_path, lines_of(COUNT))), model)

    for name in SplitName:
        known = [option for options, _ in task.choices[name] for option in options]
        assert [answers[0] for answers in task.options[name].accepted] == known


def test_no_letter_is_longer_than_answers_may_be(tmp_path: Path, model: GenerativeModel) -> None:
    path = write(tmp_path, lines_of(COUNT))

    with pytest.raises(SpecError, match=r"data.answer_tokens: .* raise it to"):
        load_choices(spec_of(path, measure="letter", answer_tokens=1), model)
    assert isinstance(load_choices(spec_of(path, answer_tokens=1), model), ChoiceTask)


def test_a_prompt_without_an_image_is_refused(tmp_path: Path, model: GenerativeModel) -> None:
    with pytest.raises(SpecError, match=r"data\.prompt has no <image>"):
        load_choices(spec_of(write(tmp_path, lines_of(COUNT)), prompt="{}"), model)


def test_bundled_options_hold_the_answer_once_among_others_of_its_kind() -> None:
    questions = draw_questions("test", 200, 3)

    found = draw_options(questions, "test", 3)

    for kind, answer, options in zip(
        questions.kinds.tolist(), questions.answers, found, strict=True
    ):
        assert options.count(answer) == 1
        assert len(set(options)) == len(options)
        assert len(options) == {"presence": 2, "count": 5}.get(KINDS[kind], OPTIONS)
        assert len({len(option.split()) for option in options}) == 1
    places = [
        options.index(answer) for answer, options in zip(questions.answers, found, strict=True)
    ]
    assert len(set(places)) == 5
    assert draw_options(questions, "test", 3) == found


def test_a_preview_reads_options(tmp_path: Path) -> None:
    path = write(tmp_path, lines_of(COUNT))

    assert preview_data(spec_of(path), Inspector()).notes == (
        f"question file {path}: {COUNT} questions",
    )
    path.write_text(json.dumps({"question": "?", "options": ["a"], "answer": 0}))
    with pytest.raises(InvalidSample, match="options must be 2 to 26 texts"):
        preview_data(spec_of(path), None)
