"""A configuration as a checkpoint of transformers, with the codes that a trial measured."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitfront.artefact.architectures.transformers_clip import their_clip
from bitfront.artefact.compressed_tensors import refuse_other_formats
from bitfront.errors import InvalidModel
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision, weight_precision
from bitfront.spec import REFERENCE_CLIP
from bitfront.targets import COMPRESSED_TENSORS, Ranges
from objectives.evaluation.compressed_models import write_compressed
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.verification import verify
from tests.support.artefacts import (
    dual_encoder_folder,
    evaluator,
    llava_folder,
    round_weights,
)
from tests.support.clip_models import tiny_clip
from tests.support.llava_models import SIDE, Build

pytestmark = pytest.mark.runtime

MIX = tuple(
    map(Precision.parse, ("w2a16", "w3a16g8", "w4a16g8", "w5a16", "w6a16", "w8a16", "w16a16"))
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    spec = llava_folder(tmp_path_factory.mktemp("own"))
    symmetric = spec.quantizer.model_copy(update={"scheme": "symmetric"})
    return Evaluator.from_spec(spec.model_copy(update={"quantizer": symmetric}))


def mixed(kept: Evaluator) -> Configuration:
    layers = kept.model.layers
    return Configuration(Plan.of({x.name: MIX[n % len(MIX)] for n, x in enumerate(layers)}))


def test_transformers_computes_what_was_measured_from_packed_codes(
    own: Evaluator, tmp_path: Path
) -> None:
    configuration = mixed(own)
    measured = own.evaluate(configuration).values["error"]

    card = write_compressed(own, configuration, tmp_path, {})
    found = verify(own, configuration, tmp_path, measured, "compressed-tensors")

    found.check()
    # Its norms are not exact in the 16 bits that they are stored in.
    assert found.largest_difference < 5e-3
    assert found.error == measured
    changes = card["changes"]
    assert isinstance(changes, list)
    assert "their values are stored in 32 bits" in changes[0]
    assert "transformers loads that, vLLM does not" in changes[1]


def test_the_loaded_weights_are_those_of_the_trial_bit_for_bit(
    own: Evaluator, tmp_path: Path
) -> None:
    from transformers import LlavaForConditionalGeneration

    configuration = mixed(own)
    write_compressed(own, configuration, tmp_path, {})

    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.full((1, 9), loaded.config.image_token_id)
    loaded(input_ids=tokens, pixel_values=torch.zeros(1, 3, SIDE, SIDE))  # unpacks the weights

    own.switch.to(configuration.plan)
    own_weights = dict(own.model.module.named_parameters())
    linears = [x.name for x in own.model.layers if x.kind is LayerKind.LINEAR]
    for name in linears:
        given = loaded.get_parameter(name)
        assert torch.equal(given.detach(), own_weights[name]), name


FLOATS = sorted(COMPRESSED_TENSORS.number_formats)


def floats(kept: Evaluator) -> Configuration:
    """Every number format that these checkpoints hold, turn by turn; integers between them."""
    names = [*FLOATS, "fp8_e4m3-g8", "int4-g8"]
    layers = kept.model.layers
    plan = {x.name: weight_precision(names[n % len(names)]) for n, x in enumerate(layers)}
    return Configuration(Plan.of(plan))


def test_number_formats_are_loaded_bit_for_bit(own: Evaluator, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    configuration = floats(own)
    measured = own.evaluate(configuration).values["error"]

    card = write_compressed(own, configuration, tmp_path, {})
    found = verify(own, configuration, tmp_path, measured, "compressed-tensors")

    found.check()
    assert found.error == measured
    changes = card["changes"]
    assert isinstance(changes, list)
    assert any("unpacks number formats to bfloat16" in one for one in changes)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.register_forward_pre_hook(lambda module, _: torch.nn.Module.float(module) and None)
    tokens = torch.full((1, 9), loaded.config.image_token_id)
    loaded(input_ids=tokens, pixel_values=torch.zeros(1, 3, SIDE, SIDE))  # unpacks the weights
    own.switch.to(configuration.plan)
    own_weights = dict(own.model.module.named_parameters())
    for layer in own.model.layers:
        if layer.kind is LayerKind.LINEAR:
            given = loaded.get_parameter(layer.name).detach()
            assert torch.equal(given, own_weights[layer.name]), configuration.plan.precision(
                layer.name
            )


@pytest.mark.parametrize("name", ["digit-clip", "digit-llava"])
def test_bundled_models_keep_their_answers_in_number_formats(name: str, tmp_path: Path) -> None:
    kept = evaluator(name, rounding="nearest", scheme="symmetric")
    configuration = floats(kept)
    measured = kept.evaluate(configuration).values["error"]

    write_compressed(kept, configuration, tmp_path, {})
    found = verify(kept, configuration, tmp_path, measured, "compressed-tensors")

    found.check()
    assert found.same_predictions == 1
    assert found.error == measured


@pytest.mark.parametrize(
    ("symmetric", "text", "ranges", "recovery", "said"),
    [
        (False, "w4a16", "static", False, "search with quantizer.scheme: symmetric"),
        (True, "w4a8", "static", False, r"layer\.weight, have static ranges, .* dynamic_symmetric"),
        (True, "w4a8", "dynamic", False, r"or space\.activation_bits: \[16\]"),
        (True, "w4a16", "static", True, "choose a trial without one"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_setting_that_avoids_it(
    symmetric: bool, text: str, ranges: Ranges, recovery: bool, said: str
) -> None:
    plan = {"layer.weight": Precision.parse(text)}

    with pytest.raises(InvalidModel, match=said):
        refuse_other_formats(plan, symmetric=symmetric, ranges=ranges, recovery=recovery)


@pytest.fixture(scope="module", params=["bundled", "open_clip", "clip"])
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    if request.param == "bundled":
        return evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")
    spec = dual_encoder_folder(tmp_path_factory.mktemp("dual"), request.param)
    symmetric = spec.quantizer.model_copy(update={"scheme": "symmetric"})
    return Evaluator.from_spec(spec.model_copy(update={"quantizer": symmetric}))


@pytest.mark.parametrize("is_full", [False, True])
def test_transformers_computes_the_logits_of_a_clip(
    is_full: bool, dual: Evaluator, tmp_path: Path
) -> None:
    configuration = Configuration(Plan(())) if is_full else mixed(dual)
    measured = dual.evaluate(configuration).values["error"]

    card = write_compressed(dual, configuration, tmp_path, {})
    found = verify(dual, configuration, tmp_path, measured, "compressed-tensors")

    found.check()
    assert found.largest_difference < 1e-5 * max(1.0, found.spread)
    assert found.same_predictions == 1
    assert found.text_cosine == pytest.approx(1, abs=1e-5)
    assert found.error == measured
    assert card["how_to_load"] == "transformers.CLIPModel.from_pretrained(FOLDER)"


FLIPS = 0.05  # of the spread: single codes of inputs flip with the last bit before them
PROJECTION = re.compile(r"^visual\.proj|^text_projection|visual_projection")
ROUNDED = tuple(
    map(
        Precision.parse,
        ("w2a8", "w3a8g8", "w4a8g8", "w4a16", "w8a8", "w8a8g8", "w16a8", "w4a4", "w16a16"),
    )
)


def by_token(kept: Evaluator) -> Configuration:
    """Every form of a layer whose inputs are rounded, turn by turn."""
    plan = {}
    for number, layer in enumerate(kept.model.layers):
        one = ROUNDED[number % len(ROUNDED)]
        if not kept.spec.quantizer.rounds(layer.kind):
            one = Precision(one.weight_bits, 16, one.group)
        plan[layer.name] = one
    return Configuration(Plan.of(plan))


@pytest.fixture(scope="module", params=["digit-clip", "digit-llava", "clip", "tied"])
def rounding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """Models whose inputs have a symmetric range in each token."""
    settings = {"scheme": "symmetric", "activations": "dynamic_symmetric"}
    if request.param.startswith("digit"):
        return evaluator(request.param, rounding="nearest", **settings)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tied":
        spec = llava_folder(folder, Build(is_tied=True))
        round_weights(folder / "llava")
    else:
        spec = dual_encoder_folder(folder, request.param)
    quantizer = spec.quantizer.model_copy(update=settings)
    return Evaluator.from_spec(spec.model_copy(update={"quantizer": quantizer}))


def test_transformers_rounds_inputs_token_by_token_as_the_trial_did(
    rounding: Evaluator, tmp_path: Path
) -> None:
    configuration = by_token(rounding)
    measured = rounding.evaluate(configuration).values["error"]

    card = write_compressed(rounding, configuration, tmp_path, {})
    found = verify(rounding, configuration, tmp_path, measured, "compressed-tensors")

    found.check()
    assert found.same_predictions == 1
    assert found.error == measured
    assert found.mean_difference < FLIPS * found.spread
    changes = card["changes"]
    assert isinstance(changes, list)
    assert any("vLLM, where this was not run, rounds inputs by 127 steps" in x for x in changes)
    rows = any("a bare forward of transformers rounds a whole batch" in x for x in changes)
    projections = [one for name, one in configuration.plan if PROJECTION.search(name)]
    assert rows == any(one.quantizes_input for one in projections)


def test_rounded_inputs_are_said_for_each_group_and_bytes_lie_as_vllm_takes_them(
    tmp_path: Path,
) -> None:
    settings = {"scheme": "symmetric", "activations": "dynamic_symmetric"}
    kept = evaluator("digit-llava", rounding="nearest", **settings)

    write_compressed(kept, by_token(kept), tmp_path, {})

    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    tensors = load_file(tmp_path / "model.safetensors")
    inputs = {"type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert said["format"] == "mixed-precision"
    for group in said["config_groups"].values():
        weights, own = group["weights"], group["input_activations"]
        assert own in (None, {"num_bits": 8, **inputs}, {"num_bits": 4, **inputs})
        codes = tensors.get(f"{group['targets'][0]}.weight")
        if weights is None:
            assert group["format"] == "dense"
            assert codes is not None
            assert codes.is_floating_point()
        elif own is not None and (weights["num_bits"], weights["strategy"]) == (8, "channel"):
            assert group["format"] == "int-quantized"
            assert codes is not None
            assert codes.dtype == torch.int8
        else:
            assert group["format"] == "pack-quantized"
            assert codes is None


def test_query_key_and_value_of_open_clip_share_a_precision_as_vllm_wants(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")

    card = write_compressed(kept, mixed(kept), tmp_path, {})

    changes = card["changes"]
    assert isinstance(changes, list)
    assert not any("vLLM" in change for change in changes)
    groups = json.loads((tmp_path / "config.json").read_text())["quantization_config"][
        "config_groups"
    ].values()
    targets = [set(group["targets"]) for group in groups]
    queries = {path for paths in targets for path in paths if path.endswith("q_proj")}
    assert queries
    for query in queries:
        fused = {query.replace("q_proj", f"{part}_proj") for part in "qkv"}
        assert any(fused <= paths for paths in targets)


def test_a_clip_whose_pictures_are_no_squares_is_refused(tmp_path: Path) -> None:
    config = {
        "preprocessing": {"size": [24, 32]},
        "vision": {},
        "text": {},
    }

    with pytest.raises(InvalidModel, match="24 x 32 pixels, and transformers' are squares"):
        their_clip(tiny_clip(), config)


def test_a_siglip_is_refused_with_the_targets_that_take_it(tmp_path: Path) -> None:
    spec = dual_encoder_folder(tmp_path, "siglip")
    symmetric = spec.quantizer.model_copy(update={"scheme": "symmetric"})
    kept = Evaluator.from_spec(spec.model_copy(update={"quantizer": symmetric}))
    out = tmp_path / "out"
    out.mkdir()

    with pytest.raises(InvalidModel, match="into a SigLIP, whose weights it initialises first: bu"):
        write_compressed(kept, mixed(kept), out, {})

    assert list(out.iterdir()) == []
