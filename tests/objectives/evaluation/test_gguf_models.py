"""A configuration as gguf files: llama.cpp computes what was measured, from the folder alone."""

import ctypes
import re
import subprocess
import sys
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.example import EXAMPLE
from bitfront.artefact.gguf.limits import refuse_other_formats
from bitfront.errors import FailedBuild, InvalidModel
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Profile
from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import MEAN, STD, picture
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA, ConstraintSpec, JobSpec
from bitfront.targets import DeploymentTarget
from objectives.cost.costs import kept_nbytes
from objectives.evaluation.artefact_process import ArtefactProcess
from objectives.evaluation.card import write_card
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.gguf_models import write_gguf
from objectives.evaluation.verification import verify
from objectives.profiling.cells import CellMeter
from search.resources import job_limits
from tests.support.artefacts import SAMPLES, evaluator, llava_folder
from tests.support.llava_models import photo

pytestmark = pytest.mark.runtime

MIX = tuple(
    map(Precision.parse, ("w4a16g32", "w8a16", "w5a16", "w3a16", "w6a16", "w4a16", "w2a16"))
)


WIDE = tuple(map(Precision.parse, ("w6a16", "w3a16g256", "w8a16", "w2a16")))


def symmetric(spec: JobSpec) -> JobSpec:
    quantizer = spec.quantizer.model_copy(update={"scheme": "symmetric", "rounding": "nearest"})
    return spec.model_copy(update={"quantizer": quantizer})


@pytest.fixture(scope="module")
def bundled() -> Evaluator:
    """The bundled LLaVA, measured as llama.cpp computes."""
    content = {
        "study": "gguf",
        "model": {"source": "reference", "name": REFERENCE_LLAVA, "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES},
        "quantizer": {"scheme": "symmetric", "rounding": "nearest", "scale_search": False},
        "target": "gguf",
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """A LLaVA of transformers with an untied head, searched for no target."""
    return Evaluator.from_spec(symmetric(llava_folder(tmp_path_factory.mktemp("own"))))


def mixed(kept: Evaluator) -> Configuration:
    """Every width, on layers that have a block type of that width and on some that do not."""
    wide, narrow = cycle(WIDE), cycle(MIX)
    layers = [x for x in kept.model.layers if x.kind is not LayerKind.CONVOLUTION]
    chosen = {x.name: next(narrow if x.columns % 256 else wide) for x in layers}
    return Configuration(Plan.of(chosen))


@pytest.fixture(scope="module")
def written(
    bundled: Evaluator, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, write_gguf(bundled, mixed(bundled), folder, {})


def test_llama_cpp_computes_what_was_measured(
    bundled: Evaluator, written: tuple[Path, dict[str, object]]
) -> None:
    folder, card = written
    configuration = mixed(bundled)
    measured = bundled.evaluate(configuration).values["error"]

    found = verify(bundled, configuration, folder, measured, "gguf")

    found.check()
    assert found.mean_difference < 0.005 * found.spread  # where a code of an input flips
    assert found.same_predictions > 0.98
    assert found.error == measured
    types = card["types"]
    assert isinstance(types, dict)
    assert {"Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "F16"} <= set(types.values())


def test_the_files_take_the_bytes_that_the_search_counted(
    bundled: Evaluator, written: tuple[Path, dict[str, object]]
) -> None:
    folder, card = written

    promised = sum(bundled.nbytes(mixed(bundled)).values())

    assert card["stored_nbytes"] == promised
    files = sum(path.stat().st_size for path in folder.glob("*.gguf"))
    assert promised < files < promised + 20_000  # names, settings and alignment


def test_a_cell_costs_blocks_and_its_key_holds_the_runtime(bundled: Evaluator) -> None:
    layer = next(x for x in bundled.model.layers if x.name.endswith("0.mlp.down_proj.weight"))
    meter = CellMeter(bundled.task, bundled.cell_switch, bundled.spec)
    other = bundled.spec.model_copy(update={"target": DeploymentTarget.ANY})

    block = Block("a", layer.tower, (layer.name,))
    cell = meter.measure(block, Option((Precision(3),)))

    assert cell.nbytes == layer.rows * 110
    assert meter.identity != CellMeter(bundled.task, bundled.cell_switch, other).identity


def test_a_limit_on_mean_bits_counts_what_no_plan_changes_once(bundled: Evaluator) -> None:
    kept = kept_nbytes(bundled.model, is_blocked=True)
    profile = Profile(bundled.model.layers, (), (), kept)
    limited = ConstraintSpec(max_bits=5)

    (limit,) = job_limits(bundled.spec.model_copy(update={"constraints": limited}), profile)

    assert limit.fixed == 16 * bundled.model.fixed_nbytes / 2


def test_a_trial_that_was_searched_for_no_target_says_what_changes(
    own: Evaluator, tmp_path: Path
) -> None:
    layers = [x.name for x in own.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(8)))
    measured = own.evaluate(configuration).values["error"]

    card = write_gguf(own, configuration, tmp_path, {})
    found = verify(own, configuration, tmp_path, measured, "gguf")

    assert found.mean_difference < 0.02 * found.spread
    said = " ".join(map(str, card["changes"]))  # type: ignore[call-overload]  # a list
    assert "their values are stored in 32 bits; space.keep: 16 for them saves half" in said
    assert "target: gguf counts that" in said
    assert "decoder.gguf has no tokenizer" in said
    assert re.search(r"rounds the inputs of \d+ layers to 8 bits, in blocks of 32 or 256", said)


ALONE = """
import runpy, sys
for name in ("bitfront", "objectives", "service", "storage", "torch", "transformers", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_printed_script_answers_from_the_folder_alone(
    written: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    folder, _ = written
    drawn = draw_questions("test", 1, 0)
    picture(drawn.images[0]).save(tmp_path / "scene.png")

    script = folder / EXAMPLE
    asked = [str(script), str(tmp_path / "scene.png"), drawn.questions[0]]
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, *asked], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == drawn.answers[0]
    assert len(script.read_text().splitlines()) <= 15


def test_a_model_of_ones_own_answers_with_its_tokenizer(own: Evaluator, tmp_path: Path) -> None:
    layers = [x.name for x in own.model.layers]
    write_gguf(own, Configuration(Plan.uniform(layers, Precision(8))), tmp_path, {})
    photo(3).save(tmp_path / "photo.png")

    asked = [str(tmp_path / EXAMPLE), str(tmp_path / "photo.png"), "what is there?"]
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, *asked], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr


def test_a_flipped_byte_is_refused(bundled: Evaluator, tmp_path: Path) -> None:
    write_gguf(bundled, mixed(bundled), tmp_path, {})
    path = tmp_path / "decoder.gguf"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))

    with pytest.raises(FailedBuild, match="is damaged"), ArtefactProcess(tmp_path, "gguf"):
        pass


def test_what_llama_cpp_cannot_load_is_one_sentence(bundled: Evaluator, tmp_path: Path) -> None:
    card = write_gguf(bundled, mixed(bundled), tmp_path, {})
    (tmp_path / "decoder.gguf").write_bytes(b"GGUF")
    card.pop("files")
    write_card(card, tmp_path)

    said = r"llama\.cpp refuses .*decoder\.gguf"
    with pytest.raises(FailedBuild, match=said), ArtefactProcess(tmp_path, "gguf"):
        pass


LAYERS = (Layer("layer.weight", Tower.LANGUAGE, LayerKind.LINEAR, 4, 96, 1, "a", "a"),)


@pytest.mark.parametrize(
    ("is_symmetric", "text", "recovery", "said"),
    [
        (False, "w4a16", False, "search with quantizer.scheme: symmetric"),
        (True, "w4a8", False, r"search with space\.activation_bits: \[16\]"),
        (True, "w4a16", True, "choose a trial without one"),
        (True, "w4a16g24", False, r"search with space\.groups: \[0\] or multiples of 32"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_setting_that_avoids_it(
    is_symmetric: bool, text: str, recovery: bool, said: str
) -> None:
    plan = {"layer.weight": Precision.parse(text)}

    with pytest.raises(InvalidModel, match=said):
        refuse_other_formats(plan, symmetric=is_symmetric, recovery=recovery, layers=LAYERS)


def test_a_model_that_is_none_of_transformers_is_refused(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")

    with pytest.raises(InvalidModel, match="is for transformers' LLaVA, and this is a CLIP"):
        write_gguf(kept, Configuration(Plan(())), tmp_path, {})


def test_a_tower_that_is_unpacked_once_computes_the_same(
    written: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(RUNTIME)
    runtime: Any = import_module("gguf_model")
    tokens = np.array([[1, *[2] * 16, 40, 3]])
    pixels = np.random.default_rng(0).normal(size=(1, 3, 24, 24)).astype(np.float32)

    packed, unpacked = (
        runtime.load(written[0], 1, unpack=unpack).logits(tokens, pixels, 2)
        for unpack in (False, True)
    )

    assert packed.shape == (1, 2, 48)
    assert np.array_equal(packed, unpacked)


def test_another_layout_of_settings_is_one_sentence(
    written: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(RUNTIME)
    runtime: Any = import_module("gguf_model")
    known = runtime._CONTEXT_DEFAULTS
    monkeypatch.setattr(runtime, "_CONTEXT_DEFAULTS", {**known, runtime._FLASH: 7})

    with pytest.raises(OSError, match=r"another interface .* 'pip install xllamacpp=="):
        runtime.Decoder(written[0] / runtime.DECODER, 1)


class _Part(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("bitmap", ctypes.c_void_p))


def encoded_by_llama_cpp(
    decoder: Any,  # noqa: ANN401  # of a module that travels
    projector: Path,
    pixels: np.ndarray,
) -> np.ndarray:
    """What llama.cpp's multimodal library makes of a picture `(h, w, 3)` of bytes."""
    pointer, call, settings = ctypes.c_void_p, decoder._call, gguf_settings(decoder)
    context = call("mtmd_init_from_file", pointer, ctypes.c_char_p, pointer, type(settings))(
        str(projector).encode(), decoder._model, settings
    )
    assert context is not None
    high, wide, _ = pixels.shape
    make = call("mtmd_bitmap_init", pointer, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p)
    parts = (ctypes.POINTER(_Part) * 1)(
        ctypes.pointer(_Part(None, make(wide, high, pixels.tobytes())))
    )
    chunks = call("mtmd_input_chunks_init", pointer)()
    cut = call(
        "mtmd_tokenize_from_parts", ctypes.c_int32, *[pointer] * 3, ctypes.c_size_t, ctypes.c_bool
    )
    assert cut(context, chunks, parts, 1, 0) == 0
    chunk = call("mtmd_input_chunks_get", pointer, pointer, ctypes.c_size_t)(chunks, 0)
    assert call("mtmd_encode_chunk", ctypes.c_int32, pointer, pointer)(context, chunk) == 0
    count = call("mtmd_input_chunk_get_n_tokens", ctypes.c_size_t, pointer)(chunk)
    found = call("mtmd_get_output_embd", ctypes.POINTER(ctypes.c_float), pointer)(context)
    return np.ctypeslib.as_array(found, (count, 96)).copy()


def gguf_settings(decoder: Any) -> Any:  # noqa: ANN401  # of a module that travels
    """Those of the multimodal library: no GPU, one thread, no flash attention, no warming up."""
    settings = decoder._defaults("mtmd_context_params_default", {5: 4, 10: -1, 11: 1})
    for place, value in {0: 0, 5: 1, 10: 0, 11: 0}.items():
        settings.words[place] = value
    return settings


def test_llama_cpp_itself_loses_the_first_patch_of_a_picture(
    bundled: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why NumPy runs the tower. A llama.cpp that mends this fails here: then it can run it."""
    monkeypatch.syspath_prepend(RUNTIME)
    runtime: Any = import_module("gguf_model")
    write_gguf(bundled, Configuration(Plan(())), tmp_path, {})
    tower = runtime.Tower(tmp_path / runtime.PROJECTOR)
    decoder = runtime.Decoder(tmp_path / runtime.DECODER, 1)
    drawn = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    pixels = ((drawn / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)

    found = encoded_by_llama_cpp(decoder, tmp_path / runtime.PROJECTOR, drawn)

    patches, class_token = tower._patches(pixels), tower._weight("v.class_embd")[None]
    as_documented = tower._projected(tower._encoded(np.concatenate([patches, class_token]))[1:])
    right = tower.features(pixels)
    assert np.abs(found - as_documented).max() < 0.02 * right.std()
    assert np.abs(found - right).mean() > 0.2 * right.std()
