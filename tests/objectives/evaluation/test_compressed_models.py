"""A configuration as a checkpoint of transformers, with the codes that a trial measured."""

from pathlib import Path

import pytest
import torch

from bitfront.artefact.compressed_tensors import refuse_other_formats
from bitfront.errors import InvalidModel
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_CLIP
from objectives.evaluation.compressed_models import write_compressed
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.verification import verify
from tests.support.artefacts import evaluator, llava_folder
from tests.support.llava_models import SIDE

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


@pytest.mark.parametrize(
    ("symmetric", "text", "recovery", "said"),
    [
        (False, "w4a16", False, "search with quantizer.scheme: symmetric"),
        (True, "w4a8", False, r"search with space\.activation_bits: \[16\]"),
        (True, "w4a16", True, "choose a trial without one"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_setting_that_avoids_it(
    symmetric: bool, text: str, recovery: bool, said: str
) -> None:
    plan = {"layer.weight": Precision.parse(text)}

    with pytest.raises(InvalidModel, match=said):
        refuse_other_formats(plan, symmetric=symmetric, recovery=recovery)


def test_a_model_that_is_none_of_transformers_is_refused(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")

    with pytest.raises(InvalidModel, match="is for transformers' LLaVA, and this is a CLIP"):
        write_compressed(kept, Configuration(Plan(())), tmp_path, {})
