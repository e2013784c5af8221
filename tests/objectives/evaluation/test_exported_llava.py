"""A LLaVA as exported models: it computes what was measured, and answers from the folder alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from bitfront.artefact.example import EXAMPLE
from bitfront.artefact.onnx.products import EXACT, ROUNDED
from bitfront.artefact.runtime.exported_model import Answerer, DamagedArtefact, load
from bitfront.errors import FailedBuild, InvalidModel
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_LLAVA
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.artefact_process import ArtefactProcess
from objectives.evaluation.card import write_card
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import WEIGHTS, write_onnx
from objectives.evaluation.packed import write_packed
from tests.support.artefacts import evaluator, llava_folder, random_configuration
from tests.support.llava_models import Build

pytestmark = pytest.mark.runtime

RECOVERY = Recovery(context_length=3, reduction=4, steps=2, adapter_bits=8)


def llava(**quantizer: str) -> Evaluator:
    """The bundled LLaVA; how codes are chosen does not matter here."""
    return evaluator(REFERENCE_LLAVA, rounding="nearest", **quantizer)


def uniform(kept: Evaluator, text: str) -> Configuration:
    layers = [layer.name for layer in kept.model.layers]
    return Configuration(Plan.uniform(layers, Precision.parse(text)))


def differences(kept: Evaluator, configuration: Configuration, model: Answerer) -> torch.Tensor:
    """Of the logits of the calibration questions' answers."""
    assert isinstance(kept.task, QuestionTask)
    assert isinstance(kept.scorer, AnswerScorer)
    split, found = kept.task.split(SplitName.CALIBRATION), []
    for number in range(len(split.batches)):
        batch = split.read(number)
        wanted = kept.scorer.logits(configuration, batch)
        tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1).numpy()
        pixels = None if batch.pixels is None else batch.pixels.numpy()
        given = torch.from_numpy(model.logits(tokens, pixels, wanted.shape[1]))
        found.append((given - wanted).abs().flatten())
    return torch.cat(found)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("text", ["w8a16", "w3a16g32", "w16a16"])
def test_weights_alone_are_computed_as_they_were_measured(
    text: str, scheme: str, tmp_path: Path
) -> None:
    kept = llava(scheme=scheme)
    configuration = uniform(kept, text)

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)

    assert float(differences(kept, configuration, opened(tmp_path)).max()) < 1e-4


@pytest.mark.parametrize(
    ("scheme", "activations"),
    [
        ("symmetric", "static"),
        ("asymmetric", "dynamic"),
        ("symmetric", "grouped"),
        ("symmetric", "dynamic_symmetric"),
    ],
)
def test_any_mix_and_a_recovery_are_computed_but_for_single_flipped_codes(
    scheme: str, activations: str, tmp_path: Path
) -> None:
    kept = llava(scheme=scheme, activations=activations)
    configuration = random_configuration(kept, 3, RECOVERY, of=4)

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)

    assert float(differences(kept, configuration, opened(tmp_path)).mean()) < 0.1


def opened(folder: Path) -> Answerer:
    model = load(folder, threads=1)
    assert isinstance(model, Answerer)
    return model


def test_one_token_after_the_other_is_what_all_at_once_are(tmp_path: Path) -> None:
    kept = llava(scheme="symmetric")
    write_onnx(kept, uniform(kept, "w4a16"), tmp_path, {}, accuracy_level=EXACT)
    model = opened(tmp_path)
    assert isinstance(kept.task, QuestionTask)
    batch = kept.task.split(SplitName.TEST).read(0)
    assert batch.pixels is not None
    tokens, pixels = batch.prompts.numpy(), batch.pixels.numpy()
    model.ends = frozenset()

    written = np.array(model.generate(tokens, pixels, 6))

    told = np.concatenate([tokens, written[:, :-1]], axis=1)
    assert (model.logits(told, pixels, 6).argmax(axis=-1) == written).all()


def test_the_decoder_has_the_inputs_and_outputs_that_runners_expect(tmp_path: Path) -> None:
    kept = llava()
    write_onnx(kept, uniform(kept, "w4a16"), tmp_path, {}, accuracy_level=ROUNDED)

    graph = onnx.load(tmp_path / "decoder_model_merged.onnx", load_external_data=False).graph

    cache = [f"{number}.{part}" for number in range(4) for part in ("key", "value")]
    inputs = ["inputs_embeds", "attention_mask", "position_ids"]
    assert [x.name for x in graph.input] == [*inputs, *(f"past_key_values.{x}" for x in cache)]
    assert [x.name for x in graph.output] == ["logits", *(f"present.{name}" for name in cache)]


def test_the_files_hold_what_was_promised_and_little_more(tmp_path: Path) -> None:
    kept = llava(scheme="symmetric")
    configuration = uniform(kept, "w4a16")

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=ROUNDED)

    promised = sum(kept.nbytes(configuration).values())
    assert (tmp_path / WEIGHTS).stat().st_size <= promised
    graphs = sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    assert graphs < 100_000


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """A LLaVA of transformers with random weights, and questions about photos."""
    return Evaluator.from_spec(llava_folder(tmp_path_factory.mktemp("own")))


ALONE = """
import runpy, sys
own = ("bitfront", "objectives", "service", "storage")
for name in (*own, "onnx", "transformers", *sys.argv[1].split()):
    sys.modules[name] = None
sys.argv = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def answered(folder: Path, without: str, picture: Path, question: str) -> str:
    command = [sys.executable, "-I", "-c", ALONE, without, str(folder / EXAMPLE)]
    ran = subprocess.run(
        [*command, str(picture), question], cwd="/", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.removesuffix("\n")


@pytest.mark.parametrize("kind", ["onnx", "packed"])
def test_a_llava_of_transformers_answers_from_its_folder_as_bitfront_does(
    kind: str, own: Evaluator, tmp_path: Path
) -> None:
    # Inputs stay as they are: one flipped code would be another word of a model of random weights.
    layers = [layer.name for layer in own.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(4, group=8)), RECOVERY)
    if kind == "onnx":
        write_onnx(own, configuration, tmp_path, {}, accuracy_level=EXACT)
    else:
        write_packed(own, configuration, tmp_path, {})
    photo = tmp_path / "photo.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(photo)

    said = answered(tmp_path, "torch" if kind == "onnx" else "", photo, "what is there?")

    with Image.open(photo) as picture:
        assert said == own.scorer.answer(configuration, "what is there?", picture)


def test_a_llava_of_transformers_is_computed_as_it_was_measured(
    own: Evaluator, tmp_path: Path
) -> None:
    configuration = uniform(own, "w4a16g32")

    write_onnx(own, configuration, tmp_path, {}, accuracy_level=EXACT)

    # Its norms are not exact in the 16 bits that they are stored in.
    assert float(differences(own, configuration, opened(tmp_path)).max()) < 5e-3


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (Build(vision="siglip", decoder="qwen2"), "its vision tower is of a SiglipVisionConfig"),
        (Build(decoder="mistral"), "its decoder is of a MistralConfig"),
        (Build(features=(-2, -4)), "its vision_feature_layer is"),
        (Build(kind="llava_next"), "nothing can be built of a LlavaNextForConditionalGeneration"),
    ],
    ids=str,
)
def test_another_architecture_is_refused_in_a_sentence(
    build: Build, said: str, tmp_path: Path
) -> None:
    loaded = Evaluator.from_spec(llava_folder(tmp_path, build))
    out = tmp_path / "out"
    out.mkdir()

    with pytest.raises(InvalidModel, match=said):
        write_onnx(loaded, Configuration(Plan(())), out, {}, accuracy_level=EXACT)

    assert list(out.iterdir()) == []


def test_a_flipped_byte_is_found_when_the_folder_is_loaded(tmp_path: Path) -> None:
    kept = llava()
    write_onnx(kept, uniform(kept, "w4a16"), tmp_path, {}, accuracy_level=EXACT)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(bytes([content[0] ^ 1]) + content[1:])

    with pytest.raises(DamagedArtefact, match=r"model\.onnx_data is damaged, its digest is not"):
        load(tmp_path)


def test_a_runtime_that_refuses_an_operator_is_one_sentence(tmp_path: Path) -> None:
    kept = llava()
    card = write_onnx(kept, uniform(kept, "w4a16"), tmp_path, {}, accuracy_level=EXACT)
    path = tmp_path / "embed_tokens.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    write_card(card, tmp_path)

    with pytest.raises(FailedBuild) as caught, ArtefactProcess(tmp_path, "onnx"):
        pass

    said = str(caught.value)
    assert said.startswith("onnx refuses the model, in a process of its own: ")
    assert "NoSuchOperator" in said
    assert said.endswith("--to packed takes every plan")
    assert "\n" not in said


def test_it_is_run_where_neither_torch_nor_onnx_can_be_imported(tmp_path: Path) -> None:
    kept = llava()
    write_onnx(kept, uniform(kept, "w4a16"), tmp_path, {}, accuracy_level=EXACT)
    assert isinstance(kept.task, QuestionTask)
    batch = kept.task.split(SplitName.TEST).read(0)
    assert batch.pixels is not None

    with ArtefactProcess(tmp_path, "onnx") as runner:
        given = {"tokens": batch.prompts, "pixels": batch.pixels, "limit": torch.tensor(5)}
        written = runner.run(given)
        longer = runner.run({**given, "endless": torch.tensor(1)})

    assert longer.shape[1] == 5
    assert written.shape[1] <= 5
    assert runner.resident_nbytes > 0
