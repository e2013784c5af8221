"""Model folders as people have them: each loads with its meaning, or one sentence says why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitfront.errors import BitfrontError, InvalidModel, MissingModel
from bitfront.spec import ModelSource, ModelSpec
from bitfront.vlm import DualEncoder, load_model
from tests.support.clip_models import (
    CONFIG,
    edit_json,
    save_open_clip,
    save_transformers,
    tiny_clip,
    weights_of,
)
from tests.support.llava_models import Build, load_llava, questions, save_llava, tokenizer
from tests.support.model_folders import load_saved, save_model

Change = Callable[[Path], object]

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 605157884\n"
OPEN_CLIP = "open_clip_model.safetensors"


def pointer(name: str) -> Change:
    return lambda folder: (folder / name).write_text(LFS)


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def cut(name: str, length: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def edited(name: str, **changes: object) -> Change:
    return lambda folder: edit_json(folder / name, **changes)


def section(name: str, key: str, **changes: object) -> Change:
    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text())[key], **changes}
        edit_json(folder / name, **{key: {k: v for k, v in content.items() if v is not ...}})

    return change


def open_clip_section(part: str, **changes: object) -> Change:
    changed = {**CONFIG, part: {**CONFIG[part], **changes}}
    return lambda folder: edit_json(folder / "open_clip_config.json", model_cfg=changed)


def saved(content: object, name: str = "epoch_10.pt") -> Change:
    def change(folder: Path) -> None:
        (folder / OPEN_CLIP).unlink()
        torch.save(content, folder / name)

    return change


def scripted(folder: Path) -> None:
    (folder / OPEN_CLIP).unlink()
    with pytest.warns(FutureWarning):
        script = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(str(folder / "open_clip_model.bin"))  # type: ignore[no-untyped-call]  # theirs


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return rewrite


def of_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", backend=..., tokenizer_class="SiglipTokenizer")
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")


def of_another_model(folder: Path) -> None:
    tokenizer().save_pretrained(folder)


def linked_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")


def two_checkpoints(folder: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(weights_of(tiny_clip()), folder / name)
    (folder / OPEN_CLIP).unlink()


BROKEN: tuple[tuple[str, Change, str], ...] = (
    ("open_clip", pointer(OPEN_CLIP), r"safetensors is a Git LFS pointer.*run 'git lfs pull'"),
    ("open_clip", pointer("open_clip_config.json"), r"config\.json is a Git LFS pointer"),
    ("open_clip", scripted, r"bin is a TorchScript archive.*save its state_dict"),
    ("open_clip", saved({}), r"epoch_10\.pt holds no weights: its state dict is empty"),
    ("open_clip", saved([1]), r"epoch_10\.pt holds a list, not the state dict"),
    ("open_clip", saved({"epoch": 3}), r"its entry 'epoch' is a int, not a tensor"),
    ("open_clip", cut(OPEN_CLIP, 2000), r"safetensors cannot be read.*fetch it again"),
    ("open_clip", cut(OPEN_CLIP, 0), r"safetensors is empty: fetch it again"),
    ("open_clip", cut("open_clip_config.json", 40), r"config\.json is not valid JSON"),
    ("open_clip", text("open_clip_config.json", "{}"), r"its model_cfg must have vision_cfg"),
    ("open_clip", text("open_clip_config.json", "[1]"), r"holds no JSON object, but a list"),
    (
        "open_clip",
        open_clip_section("text_cfg", width=32),
        r"positional_embedding is \(16, 24\), but must be \(16, 32\)",
    ),
    (
        "open_clip",
        open_clip_section("vision_cfg", image_size=48),
        r"visual\.positional_embedding is \(10, 24\), but must be \(37, 24\)",
    ),
    ("open_clip", open_clip_section("text_cfg", heads=5), r"build .*divisible by num_heads"),
    (
        "open_clip",
        edited("open_clip_config.json", preprocess_cfg={"interpolation": "sharp"}),
        r"could not make the preprocessing .*sharp",
    ),
    ("open_clip", open_clip_section("text_cfg", hf_tokenizer_name="x"), r"has no tokenizer: copy"),
    ("open_clip", two_checkpoints, r"several checkpoints \(a\.safetensors, b\.safetensors\)"),
    ("open_clip", without("open_clip_config.json"), r"no open_clip_config\.json; .*model\.weights"),
    ("clip", pointer("model.safetensors"), r"is a Git LFS pointer"),
    ("clip", pointer("tokenizer.json"), r"tokenizer\.json is a Git LFS pointer"),
    ("clip", text("model.safetensors", "<!DOCTYPE html><html>"), r"is a web page, not a model's"),
    ("clip", linked_to_nothing, r"model\.safetensors cannot be read: it is a link to nothing"),
    ("clip", cut("model.safetensors", 20_000), r"it is cut off, 20000 of \d+ bytes are there"),
    ("clip", cut("tokenizer.json", 100), r"tokenizer\.json is not valid JSON"),
    ("clip", without("tokenizer.json", "tokenizer_config.json"), r"has no tokenizer: copy"),
    ("clip", without("tokenizer_config.json"), r"vocabulary lacks its own unknown token"),
    ("siglip", without("tokenizer_config.json"), r"do not say which tokenizer it has"),
    ("clip", without("preprocessor_config.json"), r"has no preprocessor_config\.json"),
    ("clip", without("config.json"), r"has no config\.json with a model_type"),
    ("clip", without("model.safetensors"), r"has no weights, but must have model\.safetensors"),
    (
        "clip",
        section("config.json", "vision_config", intermediate_size=40),
        r"layers\.0\.mlp\.fc1\.bias is \(48,\), but must be \(40,\)",
    ),
    (
        "siglip",
        section("config.json", "text_config", max_position_embeddings=20),
        r"position_embedding\.weight is \(12, 24\), but must be \(20, 24\)",
    ),
    (
        "clip",
        rewritten(lambda weights: {**weights, "vision_model.encoder.layers.1.x": torch.ones(1)}),
        r"hold 1 tensors that its config\.json has no place for, first .*layers\.1\.x",
    ),
    ("siglip", edited("tokenizer_config.json", pad_token=...), r"has no padding token: set pad_to"),
    (
        "clip",
        edited("preprocessor_config.json", size={"shortest_edge": 32}, crop_size=32),
        r"makes images of 3 x 32 x 32, but its vision tower reads 3 x 24 x 24",
    ),
    ("clip", section("config.json", "text_config", eos_token_id=5), r"correct text_config\.eos"),
    ("siglip", of_sentencepiece, r"needs the package sentencepiece"),
    ("siglip", of_another_model, r"gives the token 15 .*tokens 0 to 9: they are of different"),
    ("clip", edited("config.json", model_type="nope"), r"names the model type nope"),
    ("clip", edited("config.json", model_type="x", auto_map={"AutoConfig": "a.B"}), r"never run"),
    ("llava", pointer("model-00002-of-00010.safetensors"), r"00002.*is a Git LFS pointer"),
    ("llava", without("model-00002-of-00010.safetensors"), r"lacks model-00002-of-00010\.safe"),
    ("llava", cut("model.safetensors.index.json", 60), r"index\.json is not valid JSON"),
    ("llava", edited("processor_config.json", patch_size=4), r"36 tokens, but the model makes 9"),
    ("llava", edited("config.json", image_token_index=3), r"puts no token 3 into a prompt"),
    (
        "llava",
        section("processor_config.json", "image_processor", crop_size=32),
        r"makes images of 32 x 32, but its vision tower reads 24 x 24",
    ),
)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    BROKEN,
    ids=[f"{number}-{kind}" for number, (kind, _, _) in enumerate(BROKEN)],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(
    tmp_path: Path, kind: str, change: Change, message: str
) -> None:
    save_model(tmp_path, kind)
    change(tmp_path)

    with pytest.raises(BitfrontError, match=message) as caught:
        load_saved(tmp_path, kind)

    assert isinstance(caught.value, InvalidModel | MissingModel)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        edited("tokenizer_config.json", pad_token=...),
        section("config.json", "text_config", eos_token_id=...),
        section("config.json", "text_config", eos_token_id=None),
    ],
    ids=["no padding", "no end", "null as end"],
)
@torch.no_grad()
def test_what_can_only_mean_one_thing_gives_the_same_features(
    tmp_path: Path, change: Change
) -> None:
    save_transformers("clip", tmp_path)
    stock = load_saved(tmp_path, "clip")
    assert isinstance(stock, DualEncoder)

    change(tmp_path)
    model = load_saved(tmp_path, "clip")

    assert isinstance(model, DualEncoder)
    captions = ["a photo of two dogs", "one"]
    wanted = stock.encode_texts(stock.tokenize(captions))
    torch.testing.assert_close(model.encode_texts(model.tokenize(captions)), wanted)


@pytest.mark.parametrize("content", ["whole", "bare"])
@torch.no_grad()
def test_a_checkpoint_of_open_clips_training_loads(tmp_path: Path, content: str) -> None:
    save_open_clip(tmp_path)
    stock = load_saved(tmp_path, "open_clip")
    state = weights_of(tiny_clip())
    kept = {"epoch": 10, "name": "run", "optimizer": {"state": {}}}
    distributed = {f"module.{name}": tensor for name, tensor in state.items()}
    saved({**kept, "state_dict": distributed} if content == "whole" else state)(tmp_path)
    torch.save({"state_dict": weights_of(tiny_clip(1))}, tmp_path / "epoch_9.pt")

    model = load_saved(tmp_path, "open_clip")

    assert model.identity == stock.identity


def test_two_sources_of_weights_are_refused(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    both = {"name": f"local-dir:{tmp_path}", "weights": str(tmp_path / OPEN_CLIP)}

    with pytest.raises(InvalidModel, match=r"has its own weights, but weights: .* beside it"):
        load_model(ModelSpec(source=ModelSource.OPEN_CLIP, device="cpu", **both))


@pytest.mark.parametrize("build", [Build(), Build(vision="siglip", decoder="qwen2")], ids=str)
def test_a_llavas_processor_takes_from_the_model_what_it_does_not_say(
    tmp_path: Path, build: Build
) -> None:
    save_llava(tmp_path, build)
    batch = questions(load_llava(tmp_path), 2)

    for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        edit_json(tmp_path / "processor_config.json", **{name: ...})
    model = load_llava(tmp_path)

    assert torch.equal(questions(model, 2).prompts, batch.prompts)


@pytest.mark.parametrize("length", [576, ...], ids=["wrong", "missing"])
def test_the_length_of_an_image_is_counted_not_read(tmp_path: Path, length: object) -> None:
    save_llava(tmp_path)
    layers = load_llava(tmp_path).layers

    edit_json(tmp_path / "config.json", image_seq_length=length)

    assert load_llava(tmp_path).layers == layers
