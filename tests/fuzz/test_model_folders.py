"""Model folders that were damaged in any way: each is read as its library reads it, or refused.

A folder is copied from a sound one and changed: files are missing, cut, swapped, renamed, or of
another model; settings are dropped or have other values; tensors are gone, of another size or not
finite. What still loads must give the features that the library itself gives; what does not, ends
in one sentence of ours.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

from bitfront.errors import BitfrontError
from bitfront.vlm import DualEncoder, GenerativeModel
from tests.support.llava_models import photo, questions
from tests.support.model_folders import load_saved, save_model

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUICK = settings(RELAXED, max_examples=40, derandomize=True)
LONG = settings(RELAXED, max_examples=2_000)

KINDS = ("open_clip", "clip", "siglip", "llava", "llava_next")
LLAVAS: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
}
CAPTIONS = ["a photo of two dogs", "one", "a"]
VALUES: tuple[object, ...] = (None, 0, -1, 2, 7, 576, 0.5, True, "x", "24", [], [1], {}, {"x": 1})
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"

Choices = Any


@cache
def sound(kind: str) -> Path:
    """A folder that loads, made once."""
    folder = Path(tempfile.mkdtemp(prefix=f"bitfront-{kind}-"))
    save_model(folder, kind)
    return folder


def any_file(choices: Choices, folder: Path, suffix: str = "") -> Path | None:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    return choices.draw(st.sampled_from(files)) if files else None


def remove(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder)
    if path is not None:
        path.unlink()


def cut(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder)
    if path is not None:
        content = path.read_bytes()
        path.write_bytes(content[: choices.draw(st.integers(0, len(content)))])


def overwrite(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder)
    if path is not None:
        content = st.sampled_from([LFS.encode(), b"<html></html>", b"{}", b"[]", b"null", b"\x80"])
        path.write_bytes(choices.draw(content | st.binary(max_size=40)))


def rename(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder)
    if path is not None:
        names = st.sampled_from(
            [f"{path.stem}.bin", f"{path.stem}.pt", f"old_{path.name}", f"{path.name}.bak"]
        )
        path.rename(folder / choices.draw(names))


def swap(choices: Choices, folder: Path) -> None:
    first, second = any_file(choices, folder), any_file(choices, folder)
    if first is not None and second is not None:
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)


def take_from_another(choices: Choices, folder: Path) -> None:
    path = any_file(choices, sound(choices.draw(st.sampled_from(KINDS))))
    if path is not None:
        shutil.copy(path, folder / path.name)


def edit(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder, ".json")
    try:
        content = None if path is None else json.loads(path.read_text())
    except ValueError:
        return
    place: Any = content
    while isinstance(place, dict) and place:
        key = choices.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and choices.draw(st.booleans()):
            place = place[key]
            continue
        if choices.draw(st.booleans()):
            del place[key]
        else:
            place[key] = choices.draw(st.sampled_from(VALUES))
        break
    if path is not None:
        path.write_text(json.dumps(content))


def change_tensor(choices: Choices, folder: Path) -> None:
    path = any_file(choices, folder, ".safetensors")
    try:
        tensors = {} if path is None else load_file(path)
    except Exception:  # noqa: BLE001  # an earlier change made it unreadable
        return
    if path is None or not tensors:
        return
    name = choices.draw(st.sampled_from(sorted(tensors)))
    changes: list[Callable[[Tensor], Tensor | None]] = [
        lambda _: None,
        lambda tensor: tensor[..., :1].contiguous() if tensor.ndim else tensor[None],
        lambda tensor: tensor[None].contiguous(),
        lambda tensor: torch.full_like(tensor, float("nan")),
        lambda tensor: tensor.half(),
        lambda tensor: tensor * 1e30,
        torch.zeros_like,
    ]
    changed = choices.draw(st.sampled_from(changes))(tensors.pop(name))
    if changed is not None:
        tensors[choices.draw(st.sampled_from([name, f"{name}.old"]))] = changed
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGES = (remove, cut, overwrite, rename, swap, take_from_another, edit, edit, edit, change_tensor)


def picture() -> Image.Image:
    return Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3))


def stock_features(kind: str, folder: Path) -> tuple[Tensor, Tensor] | None:
    """Features of a picture and of captions by the library alone; None where it gives none."""
    try:
        if kind == "open_clip":
            model, _, transform = open_clip.create_model_and_transforms(
                f"local-dir:{folder}", require_pretrained=True
            )
            model.eval()
            tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
            return model.encode_image(transform(picture())[None]), model.encode_text(tokens)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        images = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]  # theirs
        words = AutoTokenizer.from_pretrained(folder)
        pixels = images(images=picture(), return_tensors="pt")["pixel_values"]
        length = model.config.text_config.max_position_embeddings
        given = words(CAPTIONS, padding="max_length", max_length=length, truncation=True)
        tokens = torch.tensor(given["input_ids"])
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        return seen, model.get_text_features(input_ids=tokens).pooler_output
    except Exception:  # noqa: BLE001  # then there is nothing to compare with
        return None


def names_its_end(folder: Path) -> bool:
    """Whether a CLIP of transformers says at which token captions are pooled."""
    content = json.loads((folder / "config.json").read_text())
    return (content.get("text_config") or content).get("eos_token_id") is not None


def check_features(kind: str, folder: Path, model: DualEncoder) -> None:
    pixels, tokens = model.preprocess(picture())[None], model.tokenize(CAPTIONS)
    found = model.encode_images(pixels), model.encode_texts(tokens)
    assert all(one.isfinite().all() for one in found)
    wanted = stock_features(kind, folder)
    if wanted is None:
        return
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    if kind != "clip" or names_its_end(folder):
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)


def check_logits(kind: str, folder: Path, model: GenerativeModel) -> None:
    batch = questions(model, 2)
    found = model.answer_logits(batch)
    tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
    try:
        stock = LLAVAS[kind].from_pretrained(folder, dtype=torch.float32)
        stock.train(mode=False)
        words = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]  # theirs
        text = "USER: <image>\nwhat is there? ASSISTANT:"
        given = words(images=photo(0, 30, 30), text=text, return_tensors="pt")
        sizes = {} if batch.sizes is None else {"image_sizes": batch.sizes}
        shown = {"pixel_values": batch.pixels, **sizes}
        wanted = stock(input_ids=tokens, **shown, use_cache=False).logits
    except Exception:  # noqa: BLE001  # then there is nothing to compare with
        return
    assert batch.pixels is not None
    torch.testing.assert_close(batch.pixels[0], given["pixel_values"][0])
    wanted = wanted[:, -batch.answers.shape[1] :]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@torch.no_grad()
def try_folder(choices: Choices) -> None:
    kind = choices.draw(st.sampled_from(KINDS))
    damages = choices.draw(st.lists(st.sampled_from(DAMAGES), max_size=3))
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place) / "model"
        shutil.copytree(sound(kind), folder)
        for damage in damages:
            damage(choices, folder)
        try:
            model = load_saved(folder, kind)
        except BitfrontError as error:
            told = str(error)
            assert damages, told
            assert told.strip()
            assert "\n" not in told
            assert len(told) < 2_000
            return
        if isinstance(model, DualEncoder):
            check_features(kind, folder, model)
        else:
            assert isinstance(model, GenerativeModel)
            check_logits(kind, folder, model)


@pytest.fixture(autouse=True)
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@given(choices=st.data())
@QUICK
def test_a_damaged_folder_is_read_right_or_refused_in_one_sentence(choices: Choices) -> None:
    try_folder(choices)


@pytest.mark.slow
@given(choices=st.data())
@LONG
def test_many_damaged_folders_are_read_right_or_refused_in_one_sentence(choices: Choices) -> None:
    try_folder(choices)
