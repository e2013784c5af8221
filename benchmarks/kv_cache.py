"""What rounding the KV cache of the bundled LLaVA costs, before and after the rotary embedding.

For each seed of the samples, channels of keys and levels are fitted on the calibration questions,
and the test questions are answered with keys and values as they are read back; weights and inputs
stay in full precision.

    OMP_NUM_THREADS=1 python -m benchmarks.kv_cache --seeds 0,1,2,3,4
    OMP_NUM_THREADS=1 python -m benchmarks.kv_cache --words 36
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Final

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bitfront.kv_cache import Kept, KvFormat
from bitfront.spec import REFERENCE_LLAVA, DataSpec, ModelSpec
from bitfront.vlm import GenerativeModel, QuestionBatch, load_model
from bitfront.vlm.kv_rounding import (
    FittedPlace,
    cache_places,
    fit_place,
    rounded_cache,
    show_cache,
)
from objectives.data.answers import parse
from objectives.data.questions import REFERENCE_PROMPT, QuestionTask, load_questions
from objectives.data.split_name import SplitName
from objectives.execution.similarity import divergence_nats

BITS: Final = (2, 3, 4, 8)
KINDS: Final = {
    "uniform": (0.0, True),
    "k-means": (0.0, False),
    "k-means, 4 % apart": (0.04, False),
}
CONTEXT_TOKENS: Final = 8000
FILLER: Final = "four"
"""Of the words that the model knows, the one that 36 of before the image confuse it least."""


def form_of(kept: Kept, bits: int, kind: str, *, is_rotated: bool) -> KvFormat:
    """Keys and values alike, but for the rotary embedding."""
    outliers, is_uniform = KINDS[kind]
    return KvFormat(bits, outliers, is_uniform, is_rotated and kept is Kept.KEYS)


def losses_of(model: GenerativeModel, batches: Sequence[QuestionBatch]) -> Callable[[], None]:
    """Sends the gradients of the right answers' cross-entropy back, batch by batch."""

    def run() -> None:
        for batch in batches:
            with torch.enable_grad():
                logits = model.answer_logits(batch).flatten(0, 1)
                functional.cross_entropy(logits, batch.answers.flatten()).backward()  # type: ignore[no-untyped-call]

    return run


def answered(
    task: QuestionTask, cache: Mapping[str, FittedPlace], split: SplitName
) -> tuple[float, Tensor]:
    """The share of questions that are answered wrongly, and the logits at the right answers."""
    model, questions = task.model, task.split(split)
    wrong, logits = 0, []
    with rounded_cache(model.module, cache), torch.no_grad():
        for number, places in enumerate(questions.batches):
            batch = questions.read(number)
            expected = model.answer_logits(batch)
            logits.append(expected.flatten(0, 1))
            # Where each token of the right answer is the most probable, it is what is written.
            others = (expected.argmax(dim=-1) != batch.answers).any(dim=-1).nonzero().flatten()
            written = model.generate(batch.pick(others), task.answer_tokens) if len(others) else []
            for place, tokens in zip(places[others].tolist(), written, strict=True):
                text = model.decode(tokens) if model.has_ended(tokens) else ""
                wrong += not task.judge(split, place, parse(text, task.answer_pattern))
    return wrong / len(questions), torch.cat(logits)


def held_nbytes(model: GenerativeModel, bits: int, kind: str) -> int:
    """Bytes of all layers' caches at the stated length of the context."""
    return sum(
        place.nbytes(form_of(place.kept, bits, kind, is_rotated=False), CONTEXT_TOKENS)
        for place in cache_places(model)
    )


@click.command()
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Of the samples.")
@click.option("--test", default=100, show_default=True, help="Questions that are answered.")
@click.option("--words", default=0, show_default=True, help="Words before the image, for length.")
def main(seeds: str, test: int, words: int) -> None:
    """Prints a row for each setting: means over the seeds, and the deviation of one."""
    torch.set_num_threads(1)
    model = load_model(ModelSpec.model_validate({"source": "reference", "name": REFERENCE_LLAVA}))
    assert isinstance(model, GenerativeModel)
    places = {place.name: place for place in cache_places(model)}
    keys = [name for name, place in places.items() if place.kept is Kept.KEYS]
    found: dict[tuple[str, int, bool], tuple[list[float], list[float]]] = {}
    full: list[float] = []
    for seed in map(int, seeds.split(",")):
        samples = {"calibration": 64, "tuning": 1, "selection": 1, "test": test}
        prompt = " ".join([*[FILLER] * words, REFERENCE_PROMPT])
        data = {"source": "reference", "samples": samples, "seed": seed, "prompt": prompt}
        task = load_questions(DataSpec.model_validate(data), model)
        split = task.split(SplitName.CALIBRATION)
        run = losses_of(model, [split.read(number) for number in range(len(split.batches))])
        error, reference = answered(task, {}, SplitName.TEST)
        full.append(error)
        shown = {
            turned: show_cache(model.module, run, places, keys if turned else ())
            for turned in (False, True)
        }
        for kind, bits, is_rotated in product(KINDS, BITS, (False, True)):
            cache = {
                name: fit_place(
                    place.kept,
                    form_of(place.kept, bits, kind, is_rotated=is_rotated),
                    shown[is_rotated][name],
                )
                for name, place in places.items()
            }
            error, logits = answered(task, cache, SplitName.TEST)
            nats = divergence_nats(reference, logits)
            errors, divergences = found.setdefault((kind, bits, is_rotated), ([], []))
            errors.append(error)
            divergences.append(nats)
    held = held_nbytes(model, 16, "uniform")
    print(f"16 bits | {spread(full)} | | {held}")
    print("levels | bits | keys | error in % | divergence in nats | bytes at 8,000 tokens")
    for (kind, bits, is_rotated), (errors, divergences) in found.items():
        held = held_nbytes(model, bits, kind)
        where = "after" if is_rotated else "before"
        shown_nats = f"{np.mean(divergences):.4f} ± {deviation(divergences):.4f}"
        print(f"{kind} | {bits} | {where} | {spread(errors)} | {shown_nats} | {held}")


def spread(errors: Sequence[float]) -> str:
    """Mean and deviation in percent."""
    return f"{100 * np.mean(errors):.1f} ± {100 * deviation(errors):.1f}"


def deviation(values: Sequence[float]) -> float:
    """That of one; 0 where there is one only."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
