"""Small LLaVAs with random weights, saved to a folder as transformers saves them."""

from collections.abc import Sequence
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
from torch import Tensor
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

from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import ModelSource, ModelSpec, QuantizerSpec
from bitfront.vlm import GenerativeModel, QuestionBatch, load_model
from bitfront.vlm.loaders.llava import Llava, TextProcessor, llava_model
from bitfront.vlm.models.generative import Prompt
from objectives.profiling.calibration import Ranges

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


BUILDS = (
    Build(),
    Build(vision="siglip", decoder="qwen2", is_tied=True),
    Build(decoder="mistral", is_tied=True, features=(-2, -4)),
    Build(kind="llava_next", decoder="llama", is_tied=True),
)
STATIC = QuantizerSpec(scale_search=False)
DYNAMIC = QuantizerSpec(scale_search=False, activations="dynamic")


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


def built(build: Build, seed: int = 0) -> GenerativeModel:
    """A model that needs no folder; its processor makes the prompts."""
    words = processor(build)

    def prepare(text: str, image: object) -> Prompt:
        given = words(images=image, text=text, return_tensors="pt")
        size = given.get("image_sizes")
        return Prompt(
            given["input_ids"][0],
            given["pixel_values"][0],
            None if size is None else (int(size[0][0]), int(size[0][1])),
        )

    def encode(answer: str) -> Tensor:
        return torch.tensor([*words.tokenizer(answer, add_special_tokens=False)["input_ids"], END])

    def decode(tokens: Sequence[int]) -> str:
        return " ".join(WORDS[token] for token in tokens)

    return llava_model(
        build_llava(build, seed), TextProcessor(prepare, encode, decode), frozenset({END})
    )


def questions(
    model: GenerativeModel, count: int, *, width: int = 30, answer: str = "a red bird"
) -> QuestionBatch:
    text = "USER: <image>\nwhat is there? ASSISTANT:"
    prompts = [model.prepare(text, photo(seed, width, 30)) for seed in range(count)]
    return QuestionBatch(
        torch.stack([prompt.tokens for prompt in prompts]),
        model.encode_answer(answer)[None].expand(count, -1),
        torch.stack([prompt.pixels for prompt in prompts if prompt.pixels is not None]),
        torch.tensor([p.size for p in prompts]) if prompts[0].size is not None else None,
    )


def without_image(model: GenerativeModel, batch: QuestionBatch) -> QuestionBatch:
    """The same questions, without their images."""
    image = WORDS.index("<image>")
    prompts = torch.stack([prompt[prompt != image] for prompt in batch.prompts])
    return QuestionBatch(prompts, batch.answers, None, None)


@torch.no_grad()
def plain_logits(model: GenerativeModel, batch: QuestionBatch, tokens: Tensor) -> Tensor:
    """The logits after all of the tokens, without any state."""
    given = {"pixel_values": batch.pixels, "image_sizes": batch.sizes}
    images = {name: value for name, value in given.items() if value is not None}
    logits: Tensor = model.module(input_ids=tokens, **images, use_cache=False).logits[:, -1]
    return logits


def decode_plainly(model: GenerativeModel, batch: QuestionBatch, limit: int) -> list[list[int]]:
    """Greedy decoding, row by row, the whole text anew for every token."""
    answers = []
    for row in range(len(batch)):
        one = batch.pick(slice(row, row + 1))
        tokens = one.prompts
        for _ in range(limit):
            chosen = plain_logits(model, one, tokens).argmax(dim=-1)
            tokens = torch.cat([tokens, chosen[None]], dim=1)
            if int(chosen) == END:
                break
        answers.append(tokens[0, one.prompts.shape[1] :].tolist())
    return answers


def ranges_of(model: GenerativeModel, batches: Sequence[QuestionBatch]) -> Ranges:
    """The minimum and the maximum of every input."""
    ends: dict[str, InputRange] = {}

    def see(name: str, x: Tensor) -> None:
        known = ends.get(name, InputRange(0.0, 0.0))
        ends[name] = InputRange(min(known.low, float(x.min())), max(known.high, float(x.max())))

    with torch.no_grad(), model.watch_inputs(see):
        for batch in batches:
            model.answer_logits(batch)
    return {name: {1.0: found} for name, found in ends.items()}


def every_layer(model: GenerativeModel, precision: Precision) -> Plan:
    return Plan.uniform([layer.name for layer in model.layers], precision)
