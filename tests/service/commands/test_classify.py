"""The commands that put a stored configuration to work on a person's own pictures."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.reference.digit_clip import load_clip, tokenize
from bitfront.reference.digit_llava import load_llava
from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import CLASSES, draw_scenes, picture
from bitfront.trial import Origin, Trial
from bitfront.vlm import LayeredModel
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import digit_llava_model, preprocess_picture
from service.cli import main
from storage.store import open_store
from tests.support.store_samples import complete, job

SAMPLES = {"calibration": 4, "tuning": 1, "selection": 1, "test": 1}
DATA = {"source": "reference", "samples": SAMPLES}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies of the bundled models, each with an 8-bit trial of 5 kB and a 2-bit one."""
    path = tmp_path_factory.mktemp("pictures") / "bitfront.db"
    models: dict[str, LayeredModel] = {
        "digit-llava": digit_llava_model(load_llava()),
        "digit-clip": open_clip_encoder(
            load_clip(), preprocess=preprocess_picture, tokenize=tokenize
        ),
    }
    with open_store(f"sqlite:///{path}") as store:
        for name, model in models.items():
            layers = [layer.name for layer in model.layers]
            spec = job(
                name, model={"source": "reference", "name": name, "device": "cpu"}, data=DATA
            )
            store.create_study(spec, {})
            lease = store.acquire(name, "driver", 60)
            for number, (bits, nbytes, error) in enumerate([(8, 5000, 0.1), (2, 3000, 0.2)]):
                plan = Plan.uniform(layers, Precision(bits))
                store.start_trial(
                    lease, Trial(lease.name, number, Configuration(plan), Origin.BASELINE, {})
                )
                assert complete(store, lease, number, {"error": error, "nbytes": nbytes})
    return path


def run(database: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(database)])


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, str, str]:
    """A picture of four digits, a question about it, and the answer."""
    drawn = draw_questions("test", 1, seed=5, kinds=("place",))
    path = tmp_path / "photo.png"
    picture(drawn.images[0]).resize((240, 240)).save(path)
    return path, drawn.questions[0], drawn.answers[0]


def test_a_question_is_answered_by_the_best_configuration(
    database: Path, photo: tuple[Path, str, str]
) -> None:
    path, question, answer = photo

    result = run(database, "ask", str(path), f"{question}?", "--study", "digit-llava")

    assert (result.exit_code, result.stdout) == (0, f"{answer}\n")
    assert result.stderr == "trial 0 of study digit-llava\n"


def test_limits_pick_the_configuration(database: Path, photo: tuple[Path, str, str]) -> None:
    path, question, _ = photo
    asked = ("ask", str(path), question, "--study", "digit-llava")

    small = run(database, *asked, "--max-nbytes", "4kB")
    none = run(database, *asked, "--max-nbytes", "1kB")

    assert small.stderr == "trial 1 of study digit-llava\n"
    assert none.exit_code == 1
    assert "has no trial with size at most 1.00 kB: the nearest is trial 1" in none.stderr


def test_pictures_are_classified_in_their_order(database: Path, tmp_path: Path) -> None:
    scenes = draw_scenes("test", 3, seed=1)
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, image in zip(paths, scenes.images, strict=True):
        picture(image).save(path)

    result = run(
        database,
        "classify",
        *map(str, paths),
        "--study",
        "digit-clip",
        "--trial",
        "0",
        "--top",
        "2",
    )

    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(map(str, paths))
    assert all(line.count(" %") == 2 for line in lines)
    named = [line.partition(": ")[2] for line in lines]
    hits = [
        text.startswith(CLASSES[label])
        for text, label in zip(named, scenes.labels.tolist(), strict=True)
    ]
    assert sum(hits) >= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("classify", "PHOTO", "--study", "digit-llava"), "use 'bitfront ask'"),
        (("ask", "PHOTO", "how many", "--study", "digit-clip"), "use 'bitfront classify'"),
        (("ask", "PHOTO", "what", "--study", "digit-llava", "--trial", "7"), "has no trial 7"),
        (("ask", "PHOTO", "who is it", "--study", "digit-llava"), "has the word 'who'"),
        (("ask", "TEXT", "what", "--study", "digit-llava"), "cannot be read"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_a_sentence(
    arguments: tuple[str, ...],
    sentence: str,
    database: Path,
    photo: tuple[Path, str, str],
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    places = {"PHOTO": str(photo[0]), "TEXT": str(text)}

    result = run(database, *(places.get(argument, argument) for argument in arguments))

    assert result.exit_code == 2
    assert sentence in result.stderr
