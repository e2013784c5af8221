"""An exported LLaVA in ONNX Runtime GenAI's own runner of several models."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitfront.artefact.onnx.products import ROUNDED
from bitfront.artefact.runtime.exported_model import Answerer, load
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_LLAVA
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from tests.support.artefacts import evaluator, llava_folder

genai: Any = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai")
pytestmark = pytest.mark.runtime

STEPS = 6


@pytest.fixture(scope="module", params=["bundled", "own"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    if request.param == "bundled":
        return evaluator(REFERENCE_LLAVA, rounding="nearest", scheme="symmetric")
    return Evaluator.from_spec(llava_folder(tmp_path_factory.mktemp("own")))


@pytest.fixture(scope="module")
def folder(kept: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    layers = [layer.name for layer in kept.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(4, 16)))
    write_onnx(kept, configuration, made, {}, accuracy_level=ROUNDED)
    return made


def opened(folder: Path) -> Answerer:
    answerer = load(folder, threads=1)
    assert isinstance(answerer, Answerer)
    return answerer


def written(folder: Path, tokens: NDArray[Any], pixels: NDArray[Any] | None, code: int) -> Any:  # noqa: ANN401
    """The tokens that GenAI writes after a prompt `(1, length)`, by the file that lies there."""
    model = genai.Model(os.fspath(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=tokens.shape[1] + STEPS)
    generator = genai.Generator(model, settings)
    given = genai.NamedTensors()
    given["input_ids"] = tokens.astype(np.int32)
    if pixels is not None:
        given["pixel_values"] = pixels
        given["num_image_tokens"] = np.array([(tokens == code).sum()], np.int64)
    generator.set_inputs(given)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def test_genai_answers_a_question_about_a_picture_as_the_exported_model_does(
    kept: Evaluator, folder: Path
) -> None:
    answerer = opened(folder)
    assert isinstance(kept.task, QuestionTask)
    batch = kept.task.split(SplitName.TEST).read(0)
    assert batch.pixels is not None

    for row in range(len(batch.prompts)):
        tokens, pixels = batch.prompts[row : row + 1].numpy(), batch.pixels[row : row + 1].numpy()
        (wanted,) = answerer.generate(tokens, pixels, STEPS)

        assert written(folder, tokens, pixels, answerer.card["image_code"]) == wanted


def test_genai_answers_a_question_without_a_picture(folder: Path) -> None:
    answerer = opened(folder)
    tokens = np.array([[3, 10, 11, 12, 7]])
    (wanted,) = answerer.generate(tokens, None, STEPS)

    assert written(folder, tokens, None, answerer.card["image_code"]) == wanted


def test_a_learned_prompt_has_no_place_in_genai_and_leaves_its_files_out(
    kept: Evaluator, tmp_path: Path
) -> None:
    layers = [layer.name for layer in kept.model.layers]
    recovery = Recovery(context_length=3, reduction=0, steps=2)
    plan = Plan.uniform(layers, Precision(4, 16))

    write_onnx(kept, Configuration(plan, recovery), tmp_path, {}, accuracy_level=ROUNDED)

    names = {path.name for path in tmp_path.iterdir()}
    assert "context.npy" in names
    assert not names & {"embedding.onnx", "genai_config.json"}
