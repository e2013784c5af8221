"""Trains the generative checkpoint: `python -m bitfront.reference.train_llava`.

Calm pictures with easy questions first, then every kind of question, while the pictures grow
wilder. A linear probe reads the four places from the projected image tokens: without it the
decoder learns to talk long before there is anything to see. The checkpoint leaves it out.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlavaForConditionalGeneration

from bitfront.reference.digit_llava import (
    CHECKPOINT,
    IMAGE,
    IMAGE_TOKENS,
    PAD,
    build_llava,
    encode_answer,
    encode_prompt,
)
from bitfront.reference.questions import KINDS, PLACES, Questions, draw_questions
from bitfront.reference.scenes import SplitTitle
from bitfront.reference.train import CALM, WIDE

logger = logging.getLogger(__name__)

EASY = ("place", "line")
# A kind that is named several times is drawn as often: what takes two steps is learnt late.
MIXED = ("count", "presence", "presence", "neighbour", "neighbour", "neighbour", "place", "line")
IGNORED = -100  # what torch's cross-entropy skips


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        easy_steps: Steps of the first phase, with easy questions on calm pictures.
        ramp_steps: Steps of the second phase, until the pictures are wild.
        wild_steps: Steps of the last phase.
        batch_size: Pictures in a step, each with one question.
        peak_rate: The learning rate after warm-up, at the top of its cosine.
        decay: Weight decay.
        averaging: Share of the averaged weights that a step keeps.
        probing: Weight of the probe's loss beside the answer's.
        interval: Steps between two checkpoints.
    """

    easy_steps: int = 600
    ramp_steps: int = 2000
    wild_steps: int = 8400
    batch_size: int = 160
    peak_rate: float = 2e-3
    decay: float = 0.1
    averaging: float = 0.998
    probing: float = 0.5
    interval: int = 500

    @property
    def steps(self) -> int:
        """The steps of all phases."""
        return self.easy_steps + self.ramp_steps + self.wild_steps

    def wildness(self, step: int) -> float:
        """How far the jitter is from calm to wide at a step, in [0, 1]."""
        return min(max((step - self.easy_steps) / self.ramp_steps, 0.0), 1.0)


def encode_pairs(questions: Questions) -> tuple[Tensor, Tensor]:
    """Tokens `(n, length)` int64 of prompts with their answers, and what each one predicts.

    The rows are filled up after their ends, where a causal decoder cannot look.
    """
    prompts = [encode_prompt(f"<image> {text}") for text in questions.questions]
    answers = [encode_answer(text) for text in questions.answers]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(prompts), length), PAD)
    targets = torch.full((len(prompts), length), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.cat([prompt, answer])
        targets[row, len(prompt) - 1 : end - 1] = answer
    return tokens, targets


def train(schedule: Schedule, seed: int) -> Iterator[tuple[int, LlavaForConditionalGeneration]]:
    """The steps so far and the averaged model, once an interval and at the end."""
    rng = np.random.default_rng(seed)
    model = build_llava(seed).train()
    width = model.config.text_config.hidden_size
    probe = nn.Parameter(torch.zeros(width, 11))
    averaging = get_ema_multi_avg_fn(schedule.averaging)  # type: ignore[no-untyped-call]  # torch's
    averaged = AveragedModel(model, multi_avg_fn=averaging)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.decay},
        {"params": [*vectors, probe], "weight_decay": 0.0},
    ]
    optimiser = AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.98))
    rates = OneCycleLR(optimiser, schedule.peak_rate, schedule.steps, pct_start=0.08)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, schedule.steps + 1):
        batch = draw_questions(
            "train",
            schedule.batch_size,
            seed=int(rng.integers(2**31)),
            jitter=CALM.towards(WIDE, schedule.wildness(step - 1)),
            kinds=EASY if step <= schedule.easy_steps else MIXED,
        )
        answer, seen = losses_of(model, probe, batch)
        optimiser.zero_grad()
        (answer + schedule.probing * seen).backward()  # type: ignore[no-untyped-call]  # torch's
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        averaged.update_parameters(model)
        losses.append(answer.item())
        if step % 100 == 0:
            elapsed = time.monotonic() - started
            logger.info(
                "step %d: loss %.3f, probe %.3f, %.0f s",
                *(step, np.mean(losses[-100:]), seen.item(), elapsed),
            )
        if step % schedule.interval == 0 or step == schedule.steps:
            averaged.module.eval()
            yield step, cast("LlavaForConditionalGeneration", averaged.module)


def losses_of(
    model: LlavaForConditionalGeneration, probe: Tensor, batch: Questions
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the answers' tokens, and that of the probe, in nats."""
    tokens, targets = encode_pairs(batch)
    seen = model.model.get_image_features(pixel_values=batch.images, return_dict=True).pooler_output
    features = torch.stack(list(seen))
    embedded = model.get_input_embeddings()(tokens)
    embedded = embedded.masked_scatter((tokens == IMAGE)[..., None], features)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False)[0]
    wanted = targets != IGNORED
    answer = functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
    return answer, functional.cross_entropy(
        (by_place(features) @ probe).flatten(0, 1), batch.contents.flatten()
    )


def by_place(features: Tensor) -> Tensor:
    """The mean `(n, 4, d)` of the image tokens `(n, tokens, d)` of each place."""
    half = int(IMAGE_TOKENS**0.5) // 2
    grid = features.reshape(len(features), 2, half, 2, half, -1)
    return grid.mean(dim=(2, 4)).reshape(len(features), len(PLACES), -1)


@torch.no_grad()
def measure_accuracy(
    model: LlavaForConditionalGeneration, split: SplitTitle, count: int, *, seed: int = 0
) -> dict[str, float]:
    """The share of answers that greedy decoding gets right, for each kind and for all.

    Greedy decoding gives an answer exactly if each of its tokens has the highest logit after
    the ones before it.
    """
    questions = draw_questions(split, count, seed)
    tokens, targets = encode_pairs(questions)
    right = []
    for start in range(0, count, 500):
        part = slice(start, start + 500)
        logits = model(
            input_ids=tokens[part], pixel_values=questions.images[part], use_cache=False
        ).logits
        hits = (logits.argmax(dim=-1) == targets[part]) | (targets[part] == IGNORED)
        right.append(hits.all(dim=1))
    hit = torch.cat(right).float()
    shares = {kind: float(hit[questions.kinds == n].mean()) for n, kind in enumerate(KINDS)}
    return {**shares, "all": float(hit.mean())}


def save(model: LlavaForConditionalGeneration, out: Path, notes: Mapping[str, object]) -> None:
    """Write the model's weights in float16, each once, with the notes as metadata."""
    weights = {name: weight.half() for name, weight in model.named_parameters()}
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
    """Train the generative reference and write its checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for step, averaged in train(Schedule(), seed):
        model = copy.deepcopy(averaged)
        nn.Module.float(nn.Module.half(model))
        shares = measure_accuracy(model, "selection", 2000)
        notes = {"seed": seed, "steps": step, "selection_exact_match": shares["all"]}
        save(model, out, notes)
        logger.info("step %d: %s", step, {kind: round(share, 4) for kind, share in shares.items()})


if __name__ == "__main__":
    main()
