"""Configurations on models that a person loaded: what they do there, and that nothing stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bitfront.errors import InvalidModel
from bitfront.plan import Configuration, Distillation, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.digit_clip import tokenize
from bitfront.vlm.attached import AttachedPlan
from bitfront.vlm.loaders.load import load_model
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from bitfront.vlm.plan_switch import ShownLayer
from objectives.data.classification import ClassificationTask, load_classification
from objectives.data.split_name import SplitName
from objectives.evaluation.attachment import Attachment
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.profiling.calibration import calibrate
from tests.support.clip_models import folder_spec, save_transformers
from tests.support.scene_models import all_pixels, scene_spec, untrained_clip

ADAPTER = Recovery(context_length=2, reduction=4, steps=3)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """On a model of its own."""
    spec = scene_spec()
    model = open_clip_encoder(untrained_clip(), preprocess=preprocess_picture, tokenize=tokenize)
    task = load_classification(spec.data, model)
    return Evaluator(spec, ClassificationFamily(task), calibrate(task, (1.0,)))


@pytest.fixture(scope="module")
def attachment(evaluator: Evaluator) -> Attachment:
    return Attachment.of(evaluator, mixed(evaluator))


def mixed(evaluator: Evaluator, recovery: Recovery | None = None) -> Configuration:
    widths = (Precision(3, 8), Precision(2, 4), Precision(16, 16), Precision(8, 8))
    names = [layer.name for layer in evaluator.model.layers]
    plan = {name: widths[place % len(widths)] for place, name in enumerate(names)}
    return Configuration(Plan.of(plan), recovery)


def task_of(evaluator: Evaluator) -> ClassificationTask:
    task = evaluator.task
    assert isinstance(task, ClassificationTask)
    return task


def everything(model: nn.Module) -> dict[str, object]:
    """All that a person could see of a model: names, objects, bytes, hooks and modes, in order."""
    return {
        "parameters": [(name, id(p)) for name, p in model.named_parameters()],
        "modules": [(name, id(m), m.training) for name, m in model.named_modules()],
        "bytes": [(name, t.clone().numpy().tobytes()) for name, t in model.state_dict().items()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for _, m in model.named_modules()
        ],
        "gradients": [p.requires_grad for p in model.parameters()],
    }


@pytest.mark.parametrize("distil", [None, Distillation(steps=3)])
def test_the_model_gives_what_was_measured_and_then_what_it_gave_before(
    evaluator: Evaluator, distil: Distillation | None
) -> None:
    configuration, mine = mixed(evaluator), untrained_clip()
    configuration = Configuration(replace(configuration.plan, distil=distil))
    attachment = Attachment.of(evaluator, configuration)
    pixels = all_pixels(task_of(evaluator), SplitName.SELECTION)
    tokens = tokenize(["a three left of a seven"])
    before, features = everything(mine), (mine.encode_image(pixels), mine.encode_text(tokens))

    with attachment.put_on(mine) as attached:
        images, texts = mine.encode_image(pixels), mine.encode_text(tokens)
        both = mine(pixels, tokens)

    evaluator.switch.to(configuration.plan)
    assert torch.equal(images, task_of(evaluator).model.encode_images(pixels))
    assert torch.equal(texts, task_of(evaluator).model.encode_texts(tokens))
    assert torch.equal(both[0], nn.functional.normalize(images, dim=-1))
    assert not torch.equal(images, features[0])
    assert attached.classes == tuple(task_of(evaluator).classes)
    assert everything(mine) == before
    assert torch.equal(mine.encode_image(pixels), features[0])
    assert torch.equal(mine.encode_text(tokens), features[1])


def test_a_recovery_adapts_images_and_has_features_of_its_classes(evaluator: Evaluator) -> None:
    configuration, mine = mixed(evaluator, ADAPTER), untrained_clip()
    pixels = all_pixels(task_of(evaluator), SplitName.SELECTION)
    before = everything(mine)

    attached = Attachment.of(evaluator, configuration).put_on(mine)
    assert attached.text_features is not None
    scores = mine.encode_image(pixels, normalize=True) @ attached.text_features.T
    attached.undo()
    attached.undo()

    expected = evaluator.scorer.logits(configuration, pixels)  # type: ignore[attr-defined]  # of classes
    scale = task_of(evaluator).model.logit_scale
    torch.testing.assert_close(scale * scores, expected)
    assert everything(mine) == before


def test_an_error_meanwhile_takes_the_plan_off(attachment: Attachment) -> None:
    mine = untrained_clip()
    before = everything(mine)

    with pytest.raises(ZeroDivisionError), attachment.put_on(mine):
        raise ZeroDivisionError

    assert everything(mine) == before


@pytest.mark.parametrize("case", ["other weights", "another dtype", "a plan on it"])
def test_another_model_is_refused_and_left_alone(attachment: Attachment, case: str) -> None:
    mine = untrained_clip(seed=1 if case == "other weights" else 0)
    if case == "another dtype":
        mine = mine.double()
    if case == "a plan on it":
        attachment.put_on(mine)
    before = everything(mine)

    with pytest.raises(InvalidModel, match="this is not the model that was measured"):
        attachment.put_on(mine)

    assert everything(mine) == before


def test_own_weights_follow_a_model_that_moved_meanwhile(attachment: Attachment) -> None:
    mine, other = untrained_clip(), untrained_clip().double()

    with attachment.put_on(mine):
        mine.double()

    assert {p.dtype for p in mine.parameters()} == {torch.float64}
    for (name, mine_has), other_has in zip(
        mine.named_parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(mine_has, other_has), name


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_of_transformers_are_adapted_wherever_their_features_are_asked_for(
    tmp_path: Path, kind: str
) -> None:
    mine = save_transformers(kind, tmp_path)
    measured = load_model(folder_spec(tmp_path))
    layers = {
        layer.name: ShownLayer(measured.weight(layer.name).round(decimals=2), None)
        for layer in measured.layers
    }
    pixels = torch.rand(2, 3, 24, 24)
    before, full = everything(mine), mine.get_image_features(pixel_values=pixels).pooler_output

    attached = AttachedPlan(
        mine, layers, identity=measured.weights_identity, adapt=lambda features: 2 * features
    )
    adapted = mine.get_image_features(pixel_values=pixels).pooler_output
    attached.take_off()

    for layer in measured.layers:
        measured.put_weight(layer.name, layers[layer.name].weight)
    expected = 2 * measured.encode_images(pixels)  # type: ignore[attr-defined]  # a dual encoder
    torch.testing.assert_close(adapted, expected)
    assert not torch.allclose(adapted, 2 * full)
    assert everything(mine) == before
