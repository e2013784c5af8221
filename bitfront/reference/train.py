"""Trains the reference checkpoint: `python -m bitfront.reference.train`.

First calm single digits, then scenes that grow wilder: without the first phase the loss stays
where the relation is known and the digits are not. A linear probe that reads the digits and the
relation from the image feature shortens the way further; the checkpoint leaves it out.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
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

FACTS = (10, 10, 2)  # outcomes of the first digit, the second one, and the relation
DIGITS = tuple(name_digit(digit) for digit in range(10))
CALM = Jitter(
    scale=(1.0, 1.2), rotation=0.1, ink=(0.6, 0.8), background=(0.0, 0.1), noise=(0.02, 0.05)
)
WIDE = Jitter(
    scale=(0.9, 1.4), rotation=0.25, ink=(0.4, 0.85), background=(0.0, 0.3), noise=(0.02, 0.15)
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        digit_steps: Steps of the first phase, on single digits.
        calm_steps: Steps of the second phase, on scenes that are as calm.
        ramp_steps: Steps of the third phase, until the scenes are wild and the captions long.
        wild_steps: Steps of the last phase.
        batch_size: Images in a step.
        peak_rate: The learning rate after warm-up, at the top of its cosine.
        decay: Weight decay.
        averaging: Share of the averaged weights that a step keeps.
        probing: Weight of the probe's loss beside the contrast's.
        interval: Steps between two checkpoints.
    """

    digit_steps: int = 300
    calm_steps: int = 600
    ramp_steps: int = 1000
    wild_steps: int = 2100
    batch_size: int = 128
    peak_rate: float = 2e-3
    decay: float = 0.2
    averaging: float = 0.998
    probing: float = 0.5
    interval: int = 500

    @property
    def steps(self) -> int:
        """The steps of all phases."""
        return self.digit_steps + self.calm_steps + self.ramp_steps + self.wild_steps

    def wildness(self, step: int) -> float:
        """How far the jitter is from calm to wide at a step, in [0, 1]."""
        ramped = (step - self.digit_steps - self.calm_steps) / self.ramp_steps
        return min(max(ramped, 0.0), 1.0)


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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step sees.

    Attributes:
        images: `(n, 3, 24, 24)` float32, normalised.
        captions: `(m, length)` int64, each caption once.
        targets: `(n,)` int64, the caption of each image.
        facts: `(n, 1)` or `(n, 3)` int64, the first digit, the second one, and the relation.
    """

    images: Tensor
    captions: Tensor
    targets: Tensor
    facts: Tensor


def draw_batch(schedule: Schedule, step: int, rng: np.random.Generator) -> Batch:
    """The batch of a step."""
    if step < schedule.digit_steps:
        images, digits = draw_digits(schedule.batch_size, rng)
        return Batch(images, draw_captions(DIGITS, 0.0, rng), digits, digits[:, None])
    wildness = schedule.wildness(step)
    scenes = draw_scenes(
        "train",
        schedule.batch_size,
        seed=int(rng.integers(2**31)),
        jitter=CALM.towards(WIDE, wildness),
    )
    labels = scenes.labels
    classes, targets = np.unique(labels.numpy(), return_inverse=True)
    captions = draw_captions([CLASSES[index] for index in classes], wildness, rng)
    facts = torch.stack([labels // 10 % 10, labels % 10, labels // 100], dim=1)
    return Batch(scenes.images, captions, torch.from_numpy(targets), facts)


def train(schedule: Schedule, seed: int) -> Iterator[tuple[int, open_clip.CLIP]]:
    """The steps so far and the averaged model, once an interval and at the end."""
    rng = np.random.default_rng(seed)
    model = build_clip(seed).train()
    probe = nn.Parameter(torch.zeros(model.visual.output_dim, sum(FACTS)))
    averaging = get_ema_multi_avg_fn(schedule.averaging)  # type: ignore[no-untyped-call]  # torch's
    averaged = AveragedModel(model, multi_avg_fn=averaging)
    groups = [*_groups(model, schedule.decay), {"params": [probe], "weight_decay": 0.0}]
    optimiser = AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.98))
    rates = OneCycleLR(optimiser, schedule.peak_rate, schedule.steps, pct_start=0.08)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, schedule.steps + 1):
        batch = draw_batch(schedule, step - 1, rng)
        features = model.encode_image(batch.images)
        contrast = contrast_loss(model, features, batch)
        optimiser.zero_grad()
        total = contrast + schedule.probing * probe_loss(features @ probe, batch.facts)
        total.backward()  # type: ignore[no-untyped-call]  # torch's
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        averaged.update_parameters(model)
        losses.append(contrast.item())
        if step % 100 == 0:
            elapsed = time.monotonic() - started
            logger.info("step %d: loss %.3f, %.0f s", step, np.mean(losses[-100:]), elapsed)
        if step % schedule.interval == 0 or step == schedule.steps:
            yield step, averaged.module.eval()


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
    features: Tensor = ends @ model.text_projection
    return features


def contrast_loss(model: open_clip.CLIP, features: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each image's similarity to every caption, against its own caption."""
    text_features = functional.normalize(encode_captions(model, batch.captions), dim=-1)
    similarity = functional.normalize(features, dim=-1) @ text_features.T
    return functional.cross_entropy(model.logit_scale.exp() * similarity, batch.targets)


def probe_loss(logits: Tensor, facts: Tensor) -> Tensor:
    """Summed cross-entropy of the facts, whose logits `(n, 22)` lie side by side."""
    parts = torch.split(logits, list(FACTS), dim=1)
    losses = [
        functional.cross_entropy(part, fact)
        for part, fact in zip(parts, facts.unbind(dim=1), strict=False)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def measure_accuracy(
    model: open_clip.CLIP, split: SplitTitle, count: int, *, template: str = TEMPLATES[0]
) -> float:
    """Zero-shot accuracy over all captions on `count` scenes of a split."""
    scenes = draw_scenes(split, count, seed=0)
    captions = tokenize([template.format(name) for name in CLASSES])
    text_features = model.encode_text(captions, normalize=True)
    hits = 0
    for start in range(0, count, 500):
        images, labels = scenes.images[start : start + 500], scenes.labels[start : start + 500]
        similarity = model.encode_image(images) @ text_features.T
        hits += int((similarity.argmax(dim=1) == labels).sum())
    return hits / count


def save(model: open_clip.CLIP, out: Path, notes: Mapping[str, object]) -> None:
    """Write the model's weights in float16, with the notes as metadata."""
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(weights, out, metadata={name: str(note) for name, note in notes.items()})


@click.command()
@click.option("--seed", default=0, show_default=True, help="Seed of weights and data.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CHECKPOINT,
    show_default=True,
    help="Where the checkpoint goes; it is rewritten as training goes on.",
)
def main(seed: int, out: Path) -> None:
    """Train the reference model and write its checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for step, averaged in train(Schedule(), seed):
        model = copy.deepcopy(averaged).half().float()
        accuracy = measure_accuracy(model, "selection", 2000)
        save(model, out, {"seed": seed, "steps": step, "selection_accuracy": accuracy})
        logger.info("step %d: selection accuracy %.4f, wrote %s", step, accuracy, out)


if __name__ == "__main__":
    main()
