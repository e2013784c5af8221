"""Small LLaVAs with random weights, saved to a folder as transformers saves them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from bitfront.spec import ModelSource, ModelSpec
from bitfront.vlm import GenerativeModel, load_model
from bitfront.vlm.llava_models import Llava

WORDS = (
    *("<pad>", "<s>", "<unk>", "</s>", "<image>", "USER", "ASSISTANT", ":", ".", "?", ","),
    *("what", "is", "there", "the", "a", "how", "many", "cat", "dog", "bird", "red", "blue"),
    *("green", "yes", "no", "one", "two", "three", "answer", "A", "B", "C", "D"),
)
END = WORDS.index("</s>")
SIDE, PATCH = 24, 8
GRID = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
}
_DECODERS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@dataclass(frozen=True, slots=True)
class Build:
    """A way to put a LLaVA together."""

    kind: str = "llava"
    vision: str = "clip"
    decoder: str = "llama"
    features: int | tuple[int, ...] = -2
    is_tied: bool = False

    def __str__(self) -> str:
        tied = "-tied" if self.is_tied else ""
        features = str(self.features).replace(" ", "")
        return f"{self.kind}-{self.vision}-{self.decoder}{tied}-{features}"


def build_llava(build: Build = Build(), seed: int = 0) -> Llava:
    """The model with weights in which every part matters, on the CPU in evaluation mode."""
    is_clip = build.vision == "clip"
    vision = CLIPVisionConfig(**_VISION) if is_clip else SiglipVisionConfig(**_VISION)
    text: dict[str, Any] = {**_TEXT, "tie_word_embeddings": build.is_tied}
    content: dict[str, Any] = {
        "vision_config": vision,
        "text_config": _DECODERS[build.decoder](**text),
        "image_token_index": WORDS.index("<image>"),
        "image_seq_length": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "vision_feature_layer": (
            build.features if isinstance(build.features, int) else list(build.features)
        ),
        "tie_word_embeddings": build.is_tied,
    }
    model: Llava
    with torch.random.fork_rng(devices=[]):
        if build.kind == "llava":
            model = LlavaForConditionalGeneration(LlavaConfig(**content))
        else:
            config = LlavaNextConfig(**content, image_grid_pinpoints=GRID)
            model = LlavaNextForConditionalGeneration(config)
    _fill(model, seed)
    model.generation_config.eos_token_id = END
    model.eval()  # type: ignore[no-untyped-call]  # transformers hides torch's signature
    return model


def _fill(model: Llava, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and "weight" in name else 0))


def tokenizer() -> PreTrainedTokenizerFast:
    """Words and marks, with a start before every text."""
    codes = {word: code for code, word in enumerate(WORDS)}
    model = Tokenizer(WordLevel(codes, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # theirs
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def processor(build: Build = Build()) -> LlavaProcessor | LlavaNextProcessor:
    """What belongs to the model of the same build."""
    is_clip = build.vision == "clip"
    settings: dict[str, Any] = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "num_additional_image_tokens": int(is_clip),
    }
    crop = {"height": SIDE, "width": SIDE}
    if build.kind == "llava_next":
        tiles = LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=crop, image_grid_pinpoints=GRID
        )
        return LlavaNextProcessor(tiles, tokenizer(), **settings)  # type: ignore[no-untyped-call]  # theirs
    if is_clip:
        crops = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)
        return LlavaProcessor(crops, tokenizer(), **settings)  # type: ignore[no-untyped-call]  # theirs
    whole = SiglipImageProcessor(size=crop)
    return LlavaProcessor(whole, tokenizer(), **settings)  # type: ignore[no-untyped-call]  # theirs


def save_llava(
    folder: Path, build: Build = Build(), *, seed: int = 0, model: Llava | None = None
) -> Llava:
    """Saves a model in several shards with its processor, and returns it."""
    model = build_llava(build, seed) if model is None else model
    model.save_pretrained(folder, max_shard_size="20KB")
    processor(build).save_pretrained(folder)
    return model


def llava_spec(folder: Path, **changes: object) -> ModelSpec:
    """The specification of a saved model, on the CPU."""
    content = {"source": ModelSource.TRANSFORMERS, "name": str(folder), "device": "cpu"}
    return ModelSpec.model_validate({**content, **changes})


def load_llava(folder: Path, **changes: object) -> GenerativeModel:
    """A saved model, loaded as a job would."""
    model = load_model(llava_spec(folder, **changes))
    assert isinstance(model, GenerativeModel)
    return model


def photo(seed: int, width: int = 30, height: int = 30) -> Image.Image:
    """An image of random colours in coarse squares."""
    rng = np.random.default_rng(seed)
    squares = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return squares.resize((width, height), Image.Resampling.NEAREST)
