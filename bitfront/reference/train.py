"""Trains the reference checkpoint: `python -m bitfront.reference.train`.

First calm single digits, then scenes that grow wilder: without the first stage the loss stays
where the relation is known and the digits are not.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bitfront.reference.digit_clip import (
    CHECKPOINT,
    CONTEXT_LENGTH,
    FILLERS,
    build_clip,
    tokenize,
)
from bitfront.reference.scenes import (
    CLASSES,
    SIDE,
    TEMPLATES,
    Jitter,
    SplitTitle,
    digit_scans,
    draw_scenes,
    name_digit,
    normalise,
    render,
    split_scans,
)

logger = logging.getLogger(__name__)

DIGITS = tuple(name_digit(digit) for digit in range(10))
CALM = Jitter(
    scale=(1.0, 1.2), rotation=0.1, ink=(0.6, 0.8), background=(0.0, 0.1), noise=(0.02, 0.05)
)
WIDE = Jitter(
    scale=(0.85, 1.4), rotation=0.3, ink=(0.3, 0.8), background=(0.0, 0.3), noise=(0.03, 0.18)
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        digit_steps: Steps of the first stage, on single digits.
        scene_steps: Steps of the second stage, on scenes.
        ramp_steps: Steps of the second stage until its jitter is wide and its captions long.
        batch_size: Images in a step.
        peak_rate: The learning rate after warm-up, at the top of its cosine.
        decay: Weight decay.
        averaging: Share of the averaged weights that a step keeps.
    """

    digit_steps: int = 300
    scene_steps: int = 6000
    ramp_steps: int = 800
    batch_size: int = 128
    peak_rate: float = 1.5e-3
    decay: float = 0.05
    averaging: float = 0.999

    @property
    def steps(self) -> int:
        """The steps of both stages."""
        return self.digit_steps + self.scene_steps

    def wildness(self, step: int) -> float:
        """How far the jitter is from calm to wide at a step, in [0, 1]."""
        return min(max((step - self.digit_steps) / self.ramp_steps, 0.0), 1.0)


def mix_jitter(wildness: float) -> Jitter:
    """The jitter between `CALM` at 0 and `WIDE` at 1."""

    def mix(calm: float, wide: float) -> float:
        return calm + wildness * (wide - calm)

    def mix_range(calm: tuple[float, float], wide: tuple[float, float]) -> tuple[float, float]:
        return mix(calm[0], wide[0]), mix(calm[1], wide[1])

    return Jitter(
        scale=mix_range(CALM.scale, WIDE.scale),
        rotation=mix(CALM.rotation, WIDE.rotation),
        ink=mix_range(CALM.ink, WIDE.ink),
        background=mix_range(CALM.background, WIDE.background),
        noise=mix_range(CALM.noise, WIDE.noise),
    )


def draw_digits(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Normalised canvases `(count, 3, 24, 24)` with one training scan each, and their digits."""
    scans, digits = digit_scans()
    chosen = rng.choice(split_scans("train"), size=count)
    centres = rng.uniform(5.0, SIDE - 5.0, (count, 1, 2))
    pixels = render(scans[torch.from_numpy(chosen)][:, None], centres, rng, CALM)
    return normalise(pixels), torch.from_numpy(digits[chosen])


def draw_captions(names: Sequence[str], wildness: float, rng: np.random.Generator) -> Tensor:
    """One caption a name after random words, equally many, so that every position is trained.

    There are more of them the wilder it gets, and none in a third of the draws.
    """
    longest = max(len(name.split()) for name in names)
    room = int(wildness * (CONTEXT_LENGTH - 2 - longest))
    count = int(rng.integers(0, room + 1)) if rng.random() > 1 / 3 else 0
    tokens = tokenize([" ".join([*rng.choice(FILLERS, size=count), name]) for name in names])
    return tokens[:, : count + longest + 2]


def train(schedule: Schedule, seed: int) -> open_clip.CLIP:
    """The averaged model after all steps."""
    rng = np.random.default_rng(seed)
    model = build_clip(seed).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.averaging))
    optimiser = AdamW(_groups(model, schedule.decay), lr=schedule.peak_rate, betas=(0.9, 0.98))
    rates = OneCycleLR(optimiser, schedule.peak_rate, schedule.steps, pct_start=0.08)
    started = time.monotonic()
    for step in range(schedule.steps):
        wildness = schedule.wildness(step)
        if step < schedule.digit_steps:
            images, labels = draw_digits(schedule.batch_size, rng)
            captions = draw_captions(DIGITS, 0.0, rng)
        else:
            seed_drawn, jitter = int(rng.integers(2**31)), mix_jitter(wildness)
            drawn = draw_scenes("train", schedule.batch_size, seed_drawn, jitter=jitter)
            classes, labels = drawn.labels.unique(return_inverse=True)
            images = drawn.images
            captions = draw_captions([CLASSES[index] for index in classes], wildness, rng)
        loss = contrast(model, images, labels, captions)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        model.logit_scale.data.clamp_(max=np.log(100))
        averaged.update_parameters(model)
        if (step + 1) % 100 == 0:
            elapsed = time.monotonic() - started
            logger.info("step %d: loss %.3f, %.0f s", step + 1, loss.item(), elapsed)
    return averaged.module.eval()


def _groups(model: open_clip.CLIP, decay: float) -> list[dict[str, object]]:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def encode_captions(model: open_clip.CLIP, captions: Tensor) -> Tensor:
    """What `model.encode_text` gives, of captions `(n, length)` cut to any length.

    The text tower is causal, so the padding that open_clip insists on is wasted work.
    """
    length = captions.shape[1]
    hidden = model.token_embedding(captions) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    ends = model.ln_final(hidden)[torch.arange(len(captions)), captions.argmax(dim=1)]
    return ends @ model.text_projection


def contrast(model: open_clip.CLIP, images: Tensor, labels: Tensor, captions: Tensor) -> Tensor:
    """Cross-entropy of each image's similarity to every caption, against its own caption."""
    image_features = model.encode_image(images, normalize=True)
    text_features = functional.normalize(encode_captions(model, captions), dim=-1)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    return functional.cross_entropy(logits, labels)


@torch.no_grad()
def measure_accuracy(
    model: open_clip.CLIP, split: SplitTitle, count: int, *, template: str = TEMPLATES[0]
) -> float:
    """Zero-shot accuracy over all captions on `count` scenes of a split."""
    scenes = draw_scenes(split, count, seed=0)
    captions = tokenize([template.format(name) for name in CLASSES])
    text_features = model.encode_text(captions, normalize=True)
    hits = 0
    for images, labels in zip(
        scenes.images.split(500), scenes.labels.split(500), strict=True
    ):
        similarity = model.encode_image(images) @ text_features.T
        hits += int((similarity.argmax(dim=1) == labels).sum())
    return hits / count


@click.command()
@click.option("--seed", default=0, show_default=True, help="Seed of weights and data.")
@click.option("--steps", type=int, help="Scene steps; fewer train a worse model sooner.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CHECKPOINT,
    show_default=True,
    help="Where the checkpoint goes.",
)
def main(seed: int, steps: int | None, out: Path) -> None:
    """Train the reference model and write its checkpoint in float16."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    schedule = Schedule() if steps is None else Schedule(scene_steps=steps)
    model = train(schedule, seed).half().float()
    accuracy = measure_accuracy(model, "selection", 4000)
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    content = {"seed": seed, "steps": schedule.steps, "selection_accuracy": accuracy}
    save_file(weights, out, metadata={name: str(value) for name, value in content.items()})
    logger.info("selection accuracy %.4f; wrote %s", accuracy, out)


if __name__ == "__main__":
    main()
