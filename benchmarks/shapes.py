"""A third model, not ours to tune on: a small transformers CLIP, trained here on drawn shapes.

Another architecture than the bundled models (CLIP of transformers, with q, k and v apart) and other
data: one coloured shape on a noisy ground, named by colour and shape.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

SIDE: Final = 32
COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES: Final = ("circle", "ring", "square", "frame", "triangle", "cross")
CLASSES: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
_WORDS: Final = ("<pad>", "<start>", "<unk>", "<end>", "a", *COLOURS, *SHAPES)
_LENGTH: Final = 6


def draw(label: int, rng: np.random.Generator) -> Image.Image:
    """A picture of a class: its place, size, hue and ground are drawn from the generator."""
    colour, shape = divmod(label, len(SHAPES))
    hue = (colour + rng.normal(0, 0.22)) / len(COLOURS)
    paint = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.75, 0.8))
    big = Image.new("RGB", (4 * SIDE, 4 * SIDE), tuple(rng.integers(40, 216, 3).tolist()))
    pen = ImageDraw.Draw(big)
    size = int(rng.integers(9, 14)) * 4
    x, y = (int(rng.integers(size // 2, 4 * SIDE - size // 2)) for _ in range(2))
    box = [x - size // 2, y - size // 2, x + size // 2, y + size // 2]
    match SHAPES[shape]:
        case "circle":
            pen.ellipse(box, fill=paint)
        case "ring":
            pen.ellipse(box, outline=paint, width=size // 5)
        case "square":
            pen.rectangle(box, fill=paint)
        case "frame":
            pen.rectangle(box, outline=paint, width=size // 5)
        case "triangle":
            pen.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=paint)
        case _:
            third = size // 5
            pen.rectangle([x - third // 2, box[1], x + third // 2, box[3]], fill=paint)
            pen.rectangle([box[0], y - third // 2, box[2], y + third // 2], fill=paint)
    pixels = np.asarray(big.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    noisy = pixels + rng.normal(0, 26, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def save_pictures(folder: Path, each: int, seed: int) -> None:
    """A folder for every class with so many pictures."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            draw(label, rng).save(folder / name / f"{number:04}.png")


def _tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: n for n, word in enumerate(_WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    ends = [("<start>", 1), ("<end>", 3)]
    model.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # theirs
        tokenizer_object=model,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=_LENGTH,
    )


def _model() -> CLIPModel:
    tower = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4}
    text = {**tower, "num_hidden_layers": 2, "vocab_size": len(_WORDS)}
    text |= {"max_position_embeddings": _LENGTH}
    text |= {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**tower, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))


def train(folder: Path, seed: int, steps: int, batch: int = 96) -> list[float]:
    """Trains the model from a seed and saves it as transformers does; the losses on the way."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(1_000_000 + seed)
    model, tokenizer = _model(), _tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    captions = torch.tensor([tokenizer(f"a {name}")["input_ids"] for name in CLASSES])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        labels = rng.integers(0, len(CLASSES), batch)
        pixels = _pixels([draw(int(label), rng) for label in labels], images)
        scores = model(input_ids=captions, pixel_values=pixels).logits_per_image
        loss = functional.cross_entropy(scores, torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    model.train(mode=False)
    for saved in (model, images, tokenizer):
        saved.save_pretrained(folder)
    return losses


def _pixels(pictures: Sequence[Image.Image], images: CLIPImageProcessor) -> torch.Tensor:
    values: torch.Tensor = images(images=list(pictures), return_tensors="pt")["pixel_values"]
    return values
