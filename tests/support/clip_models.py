"""Small dual encoders with random weights, saved as open_clip and transformers save them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from bitfront.spec import ModelSource, ModelSpec

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 24, "layers": 1, "head_width": 6},
    "text_cfg": {"context_length": 16, "width": 24, "heads": 4, "layers": 1},
}


def tiny_clip(seed: int = 0, config: Mapping[str, Any] = CONFIG) -> nn.Module:
    torch.manual_seed(seed)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    model: nn.Module = kind(**settings)
    return model.eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def tokenizer(length: int, *, start: bool) -> PreTrainedTokenizerFast:
    words = ("<pad>", "<start>", "<unk>", "<end>", "one", "two", "a", "photo", "of", "dogs")
    codes = {word: code for code, word in enumerate(words)}
    model = Tokenizer(WordLevel(codes, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(
        single="<start> $A <end>" if start else "$A <end>",
        special_tokens=[("<start>", 1), ("<end>", 3)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # theirs
        tokenizer_object=model,
        bos_token="<start>" if start else None,
        eos_token="<end>",
        pad_token="<pad>" if start else "<end>",
        unk_token="<unk>",
        model_max_length=length,
    )


TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 4}
TEXT = {**TINY, "vocab_size": 10, "max_position_embeddings": 12}
TEXT |= {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
VISION = {**TINY, "image_size": 24, "patch_size": 8}


def save_transformers(kind: str, folder: Path) -> CLIPModel | SiglipModel:
    torch.manual_seed(0)
    model: CLIPModel | SiglipModel
    images: CLIPImageProcessor | SiglipImageProcessor
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
        images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24)
    else:
        text = {**TEXT, "projection_size": 24}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
        images = SiglipImageProcessor(size={"height": 24, "width": 24})
    model.train(mode=False)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer(12, start=kind == "clip").save_pretrained(folder)
    return model


def save_open_clip(folder: Path, seed: int = 0, changes: Mapping[str, Any] | None = None) -> None:
    """An open_clip model with its configuration, as `local-dir:` takes it.

    Args:
        folder: Where to.
        seed: Of its weights.
        changes: Of the towers' settings, and further ones of the model.
    """
    given = dict(changes or {})
    towers = {name: {**CONFIG[name], **given.pop(name, {})} for name in ("vision_cfg", "text_cfg")}
    config = {**CONFIG, **towers, **given}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(weights_of(tiny_clip(seed, config)), folder / "open_clip_model.safetensors")


def folder_spec(folder: Path, source: str = "transformers") -> ModelSpec:
    """The specification of a saved model, on the CPU."""
    name = f"local-dir:{folder}" if source == "open_clip" else str(folder)
    return ModelSpec(source=ModelSource(source), name=name, device="cpu")


def edit_json(path: Path, **changes: object) -> None:
    """Changes entries of a JSON file; one that becomes `...` is taken out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def save_pictures(folder: Path, classes: Mapping[str, int]) -> None:
    """Folders of classes, each with so many pictures of random colours."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
