"""What a model sees of a text and a picture is part of its identity."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bitfront.vlm import DualEncoder, load_model
from tests.support.clip_models import edit_json, save_transformers
from tests.support.llava_models import llava_spec, save_llava
from tests.support.model_folders import load_saved, save_model


def mean_of_processor(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])


def mean_of_llava(folder: Path) -> None:
    path = folder / "processor_config.json"
    inner = json.loads(path.read_text())["image_processor"]
    edit_json(path, image_processor={**inner, "image_mean": [0.1, 0.2, 0.3]})


def interpolation_of_open_clip(folder: Path) -> None:
    edit_json(folder / "open_clip_config.json", preprocess_cfg={"interpolation": "bilinear"})


def swapped_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["one"], words["two"] = words["two"], words["one"]
    path.write_text(json.dumps(content))


def lower_case(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", normalizer={"type": "Lowercase"})


def clean(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())["model_cfg"]
    text = {**config["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}
    edit_json(path, model_cfg={**config, "text_cfg": text})


def rotation(folder: Path) -> None:
    path = folder / "config.json"
    text = json.loads(path.read_text())["text_config"]
    edit_json(
        path, text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 5}}
    )


@pytest.mark.parametrize(
    ("kind", "change", "part"),
    [
        ("clip", mean_of_processor, "preprocessing"),
        ("siglip", mean_of_processor, "preprocessing"),
        ("open_clip", interpolation_of_open_clip, "preprocessing"),
        ("llava", mean_of_llava, "preprocessing"),
        ("clip", swapped_words, "tokenizer"),
        ("siglip", lower_case, "tokenizer"),
        ("open_clip", clean, "tokenizer"),
        ("llava", swapped_words, "tokenizer"),
        ("llava", rotation, "config"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_changed_setting_makes_another_model(
    tmp_path: Path, kind: str, change: Callable[[Path], None], part: str
) -> None:
    save_model(tmp_path, kind)
    before = load_saved(tmp_path, kind)

    change(tmp_path)
    after = load_saved(tmp_path, kind)

    assert before.weights_identity == after.weights_identity
    assert before.identity != after.identity
    assert [name for name in before.parts if before.parts[name] != after.parts[name]] == [part]


def test_settings_do_not_depend_on_what_was_tokenized(tmp_path: Path) -> None:
    save_transformers("clip", tmp_path)
    model = load_saved(tmp_path, "clip")
    assert isinstance(model, DualEncoder)

    model.tokenize(["a photo of two dogs"])

    assert load_saved(tmp_path, "clip").parts == model.parts


def test_settings_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    for kind in ("clip", "open_clip", "llava"):
        folders = (tmp_path / f"{kind} here", tmp_path / f"{kind} there")
        for folder in folders:
            folder.mkdir()
            save_model(folder, kind)
        here, there = (load_saved(folder, kind) for folder in folders)

        assert here.identity == there.identity


def test_preprocessing_is_readable(tmp_path: Path) -> None:
    save_llava(tmp_path)

    settings = json.loads(load_model(llava_spec(tmp_path)).parts["preprocessing"])

    assert settings["patch_size"] == 8
    assert settings["crop_size"] == {"height": 24, "width": 24}
