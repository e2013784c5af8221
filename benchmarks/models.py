"""Every known family: a search of a few trials end to end on a small model with random weights.

The model is saved as its library saves it and named by a job; the study goes from its profile to
the front on the test split, with its database and spool, in this process.

    OMP_NUM_THREADS=1 python -m benchmarks.models --seed 0
    OMP_NUM_THREADS=1 python -m benchmarks.models --rounding gptq --input-bits 8
    OMP_NUM_THREADS=1 python -m benchmarks.models --only Qwen
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from benchmarks.in_process import search
from bitfront.spec import JobSpec
from bitfront.trial import TrialState
from storage.store import open_store
from tests.support.families import SMALL_MODELS, SmallModel
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

_QUESTIONS = ("what is there?", "is there a cat?", "how many?", "is the picture red?")
_ANSWERS = ("red", "yes", "two", "no")
_CLASSES = ("one", "two")
_SAMPLES = {"calibration": 6, "tuning": 2, "selection": 8, "test": 8}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is searched, and how often."""

    trials: int
    seed: int
    rounding: str
    input_bits: int


def job(small: SmallModel, folder: Path, settings: Settings) -> JobSpec:
    """A search with a layer a block: weights of 3 or 8 bits."""
    data: dict[str, object] = {"samples": _SAMPLES, "seed": settings.seed, "batch_size": 8}
    if small.writes:
        data |= {"source": "questions", "path": str(folder / "questions.jsonl"), "answer_tokens": 4}
    else:
        data |= {"source": "image_folder", "path": str(folder / "images")}
    return JobSpec.model_validate(
        {
            "study": "small",
            "model": small.spec(folder / "model").model_dump(mode="json"),
            "data": data,
            "quantizer": {"rounding": settings.rounding, "scale_search": False},
            "partition": {"granularity": "layer"},
            "space": {"weight_bits": [3, 8], "activation_bits": [settings.input_bits]},
            "search": {"seed": settings.seed, "workers": 1},
            "stop": {"trials": settings.trials},
        }
    )


def save_samples(folder: Path, seed: int) -> None:
    """Pictures of random squares: in folders of two classes, and with questions about them."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(sum(_SAMPLES.values()) + 8):
        path = folder / "images" / _CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        squares.resize((40, 30), Image.Resampling.NEAREST).save(path)
        kind = number % len(_QUESTIONS)
        lines.append(
            json.dumps(
                {
                    "image": str(path.relative_to(folder)),
                    "question": _QUESTIONS[kind],
                    "answers": [_ANSWERS[kind]],
                }
            )
        )
    (folder / "questions.jsonl").write_text("\n".join(lines))


def row(small: SmallModel, settings: Settings) -> str:
    """A family's line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        small.save(folder / "model")
        save_samples(folder, settings.seed)
        spec, url = job(small, folder, settings), f"sqlite:///{folder}/bitfront.db"
        started_s = time.perf_counter()
        search(spec, url)
        seconds = time.perf_counter() - started_s
        with open_store(url) as store:
            states = [trial.state for trial in store.trials(spec.study)]
            front = len(store.front(spec.study))
        model = model_cache.evaluator(WorkerConfig(spec)).model
        found = sum(layer.weights for layer in model.layers)
        kept = sum(model.kept.values())
        matrices = sum(left.weights for left in model.left)
    complete = states.count(TrialState.COMPLETE)
    return (
        f"| {small.name} | {len(model.layers)} | {found:,} | {kept:,} | {matrices:,} "
        f"| {complete} of {len(states)} | {front} | {seconds:.1f} |"
    )


@click.command()
@click.option("--trials", default=10, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of samples and search.")
@click.option("--rounding", default="nearest", show_default=True, help="How codes are chosen.")
@click.option("--input-bits", default=16, show_default=True, type=click.IntRange(2, 16))
@click.option("--only", default="", help="Families whose names contain this.")
def main(trials: int, seed: int, rounding: str, input_bits: int, only: str) -> None:
    """Prints a line a family: layers, weights found and left, trials, the front, and seconds."""
    header = (
        *("family", "layers", "weights in layers", "left at 16 bits", "of these matrices"),
        *("trials", "on the front", "seconds"),
    )
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    settings = Settings(trials, seed, rounding, input_bits)
    for small in SMALL_MODELS:
        if only in small.name:
            click.echo(row(small, settings))


if __name__ == "__main__":
    main()
