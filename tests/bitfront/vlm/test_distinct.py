"""Classes that a model cannot tell apart are named before anything is measured."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.plan import ClassPosition
from bitfront.vlm import DualEncoder
from bitfront.vlm.models.captions import CaptionLayout
from bitfront.vlm.models.distinct import class_problems
from tests.support.model_folders import load_saved, save_model


def load(folder: Path, kind: str) -> DualEncoder:
    save_model(folder, kind)
    model = load_saved(folder, kind)
    assert isinstance(model, DualEncoder)
    return model


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_classes_with_tokens_of_their_own_are_told_apart(tmp_path: Path, kind: str) -> None:
    model = load(tmp_path, kind)

    assert class_problems(model, ["one", "two", "dogs"]) == []
    assert class_problems(model, ["one"]) == []
    assert class_problems(model, ["one", "two"], [["a photo of one", "a photo of two"]]) == []


def test_classes_whose_words_the_tokenizer_does_not_know_are_named(tmp_path: Path) -> None:
    model = load(tmp_path, "clip")

    (problem,) = class_problems(model, ["one", "cat", "bird"])

    assert "'cat' and 'bird' have the same tokens" in problem
    assert "does not know their words" in problem


def test_classes_after_the_end_of_a_long_template_are_named(tmp_path: Path) -> None:
    model = load(tmp_path, "open_clip")
    captions = [f"{'a photo ' * 10} of a {name}" for name in ("cat", "dog")]

    (problem,) = class_problems(model, ["cat", "dog"], [captions])

    assert "'cat' and 'dog' have the same tokens" in problem
    assert "is cut off after 16 tokens; use a shorter template" in problem
    whole = ["a cat", "a dog"]
    assert class_problems(model, ["cat", "dog"], [captions, whole]) == []


def test_a_text_tower_that_does_not_look_at_names_is_named(tmp_path: Path) -> None:
    model = load(tmp_path, "clip")
    weight = model.module.get_parameter("text_model.final_layer_norm.weight")
    weight.data.zero_()
    model.module.get_parameter("text_model.final_layer_norm.bias").data.fill_(1.0)

    (problem,) = class_problems(model, ["one", "two"])

    assert "'one' and 'two' have the same features" in problem


def test_the_layout_is_found_with_words_that_the_tokenizer_knows(tmp_path: Path) -> None:
    model = load(tmp_path, "clip")

    for names in (["photo", "dogs of"], ["cat", "photo of cat"], ["dogs", "dogs of a"]):
        found = model.class_names(names)

        assert found.layout == CaptionLayout(start=1, end=3)
        assert found.name_lengths.tolist() == [len(name.split()) for name in names]
        context = torch.zeros(2, model.text_width)
        assert model.encode_prompts(found, context, ClassPosition.MIDDLE).shape == (2, 16)


def test_a_name_without_tokens_is_refused() -> None:
    def known_only(texts: Sequence[str]) -> Tensor:
        codes = {"cat": 5, "dog": 6}
        rows = [[codes[word] for word in text.split() if word in codes] for text in texts]
        return torch.tensor([[1, *row, 2, *[0] * (4 - len(row))] for row in rows])

    assert CaptionLayout.of(known_only, ["cat", "dog"]) == CaptionLayout(1, 2)
    with pytest.raises(InvalidModel, match="makes no tokens of 'bird'"):
        CaptionLayout.of(known_only, ["cat", "bird"])


def test_names_that_begin_at_several_places_are_refused() -> None:
    def spaced(texts: Sequence[str]) -> Tensor:
        # Long names get a mark of their own before the end.
        return torch.tensor([[1, 9 if len(text) > 3 else 0, len(text), 2] for text in texts])

    with pytest.raises(InvalidModel, match="'horse' begin at token 1 and 'cat' at token 2"):
        CaptionLayout.of(spaced, ["horse", "cat"])
