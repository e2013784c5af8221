import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
)

from bitfront.errors import InvalidModel, MissingModel, SpecError, UnavailableDevice
from bitfront.reference.scenes import normalise, picture
from bitfront.spec import ModelSource, ModelSpec
from bitfront.vlm import DualEncoder, load_model
from bitfront.vlm.loaders.load import choose_device
from bitfront.vlm.loaders.reference import preprocess_picture
from tests.support.clip_models import CONFIG, save_transformers, tiny_clip, weights_of

NAME = "bitfront-tiny"
PICTURE = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3))


@pytest.fixture(scope="module", autouse=True)
def _known_to_open_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)


@pytest.fixture
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def spec(source: str, name: str, weights: object = None) -> ModelSpec:
    given = None if weights is None else str(weights)
    return ModelSpec(source=ModelSource(source), name=name, weights=given, device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_an_open_clip_model_loads_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    model = tiny_clip()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights_of(model), path)
    else:
        torch.save(model.state_dict(), path)

    encoder = load_model(spec("open_clip", NAME, path))
    assert isinstance(encoder, DualEncoder)
    tokens = encoder.tokenize(["a cat", "two dogs and a bird"])
    pixels = encoder.preprocess(PICTURE)[None]

    assert pixels.shape == (1, 3, 24, 24)
    assert tokens.shape == (2, 16)
    image, text, scale = model(pixels, tokens)
    unit = nn.functional.normalize
    torch.testing.assert_close(unit(encoder.encode_images(pixels), dim=-1), image)
    torch.testing.assert_close(unit(encoder.encode_texts(tokens), dim=-1), text)
    assert encoder.logit_scale == pytest.approx(float(scale))
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_an_open_clip_model_loads_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    save_file(weights_of(tiny_clip()), tmp_path / "open_clip_model.safetensors")
    save_file(weights_of(tiny_clip()), tmp_path / "same.safetensors")

    encoder = load_model(spec("open_clip", f"local-dir:{tmp_path}"))
    assert isinstance(encoder, DualEncoder)

    assert (
        encoder.identity
        == load_model(spec("open_clip", NAME, tmp_path / "same.safetensors")).identity
    )
    words = encoder.embed_words("a cat")
    assert words.shape == (2, 24)


def test_changed_weights_under_the_same_name_have_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    identities = []
    for seed in (0, 1):
        save_file(weights_of(tiny_clip(seed)), path)
        identities.append(load_model(spec("open_clip", NAME, path)).identity)

    assert identities[0] != identities[1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_transformers_model_loads_from_a_folder(tmp_path: Path, kind: str) -> None:
    model = save_transformers(kind, tmp_path)

    encoder = load_model(spec("transformers", str(tmp_path)))
    assert isinstance(encoder, DualEncoder)
    tokens = encoder.tokenize(["two dogs", "a photo of one"])
    pixels = encoder.preprocess(PICTURE.convert("L"))[None]

    assert pixels.shape == (1, 3, 24, 24)
    assert tokens.shape == (2, 12)
    output = model(input_ids=tokens, pixel_values=pixels)
    unit = nn.functional.normalize
    torch.testing.assert_close(unit(encoder.encode_images(pixels), dim=-1), output.image_embeds)
    torch.testing.assert_close(unit(encoder.encode_texts(tokens), dim=-1), output.text_embeds)
    context = encoder.embed_words("a photo of")
    torch.testing.assert_close(
        encoder.encode_prompts(encoder.class_names(["one"]), context),
        encoder.encode_texts(tokens[1:]),
    )


def test_identity_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    folders = (tmp_path / "here", tmp_path / "there")
    for folder in folders:
        save_transformers("clip", folder)

    first, second = (load_model(spec("transformers", str(folder))).identity for folder in folders)

    assert first == second


def test_a_transformers_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    weights = weights_of(save_transformers("clip", tmp_path))
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidModel, match=r"lack 1 tensors, first visual_projection\.weight"):
        load_model(spec("transformers", str(tmp_path)))


def test_pickled_transformers_weights_are_not_read(tmp_path: Path) -> None:
    weights = weights_of(save_transformers("clip", tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")

    with pytest.raises(MissingModel, match="safetensors"):
        load_model(spec("transformers", str(tmp_path)))


def test_another_kind_of_transformers_model_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)

    with pytest.raises(InvalidModel, match="is a 'bert' model"):
        load_model(spec("transformers", str(tmp_path)))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": Trap(trace)}, path)

    with pytest.raises(InvalidModel, match="give a safetensors file"):
        load_model(spec("open_clip", NAME, path))

    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists()


def without(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: without(weights, "visual.proj"), r"they lack visual\.proj"),
        (
            lambda weights: {**weights, "visual.proj": torch.zeros(3, 3)},
            r"visual\.proj is \(3, 3\), but must be \(24, 16\)",
        ),
        (lambda weights: {**weights, "extra": torch.zeros(3)}, "has no place for extra"),
        (
            lambda weights: {**weights, "visual.proj": torch.full((24, 16), float("nan"))},
            r"visual\.proj has values that are NaN",
        ),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(change(weights_of(tiny_clip())), path)

    with pytest.raises(InvalidModel, match=f"(?s){message}"):
        load_model(spec("open_clip", NAME, path))


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights_of(tiny_clip()), path)
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(InvalidModel, match="cannot be read"):
        load_model(spec("open_clip", NAME, path))


@pytest.mark.parametrize(
    ("source", "name", "weights", "message"),
    [
        ("open_clip", "ViT-B-33", "openai", "no model 'ViT-B-33'; nearest are ViT-B-32"),
        ("open_clip", "ViT-B-32", "openia", "'openia' of ViT-B-32 are neither.*laion2b_s34b_b79k"),
        ("open_clip", "ViT-B-32", None, "ViT-B-32 needs weights: .*its tags are openai, "),
        (
            "open_clip",
            "ViT-B-32",
            "/no/such.safetensors",
            "file /no/such.safetensors with the weights of ViT-B-32 does not exist",
        ),
        ("open_clip", "ViT-B-32", "laion2b_e16", "ViT-B-32 with weights laion2b_e16 from the hub"),
        ("open_clip", "local-dir:/no/such", None, "no open_clip model at /no/such"),
        ("open_clip", "hf-hub:no/such", None, "could not get hf-hub:no/such from the hub"),
        (
            "transformers",
            "./no/such",
            None,
            "no transformers model at ./no/such: the folder does not exist",
        ),
        ("transformers", "no/such", None, "could not get 'no/such' as a folder or from the hub"),
    ],
)
@pytest.mark.usefixtures("_without_network")
def test_a_missing_model_says_what_was_looked_for(
    source: str, name: str, weights: str | None, message: str
) -> None:
    with pytest.raises(MissingModel, match=message):
        load_model(spec(source, name, weights))


@pytest.mark.usefixtures("_without_network")
def test_a_tokenizer_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    text = {**CONFIG["text_cfg"], "hf_tokenizer_name": "no/such"}
    config = tmp_path / "bitfront-tiny-words.json"
    config.write_text(json.dumps({**CONFIG, "text_cfg": text}))
    open_clip.add_model_config(config)
    path = tmp_path / "weights.safetensors"
    save_file(weights_of(tiny_clip()), path)

    with pytest.raises(MissingModel, match="make the tokenizer of bitfront-tiny-words: "):
        load_model(spec("open_clip", "bitfront-tiny-words", path))


def test_a_folder_without_weights_is_missing(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))

    with pytest.raises(MissingModel, match="has no weights"):
        load_model(spec("open_clip", f"local-dir:{tmp_path}"))


def test_a_picture_of_a_reference_scene_becomes_the_scene_again() -> None:
    grey = torch.randint(0, 256, (1, 24, 24), generator=torch.Generator().manual_seed(0))
    scene = normalise(grey.to(torch.uint8))[0]

    torch.testing.assert_close(preprocess_picture(picture(scene)), scene)
    assert preprocess_picture(PICTURE).shape == (3, 24, 24)


def test_devices_are_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SpecError, match="'gpu' is none of"):
        choose_device("gpu")
    with pytest.raises(UnavailableDevice, match="cuda:99"):
        choose_device("cuda:99")
