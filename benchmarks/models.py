"""Every known family: a search of a few trials end to end on a small model with random weights.

The model is saved as its library saves it and named by a job; the study goes from its profile to
the front on the test split, with its database and spool, in this process.

    OMP_NUM_THREADS=1 python -m benchmarks.models --seed 0
    OMP_NUM_THREADS=1 python -m benchmarks.models --only Qwen
"""

import json
import tempfile
import time
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


def job(small: SmallModel, folder: Path, trials: int, seed: int) -> JobSpec:
    """A search with a layer a block: weights of 3 or 8 bits, inputs of 16."""
    data: dict[str, object] = {"samples": _SAMPLES, "seed": seed, "batch_size": 8}
    if small.writes:
        data |= {"source": "questions", "path": str(folder / "questions.jsonl"), "answer_tokens": 4}
    else:
        data |= {"source": "image_folder", "path": str(folder / "images")}
    return JobSpec.model_validate(
        {
            "study": "small",
            "model": small.spec(folder / "model").model_dump(mode="json"),
            "data": data,
            "quantizer": {"rounding": "nearest", "scale_search": False},
            "partition": {"granularity": "layer"},
            "space": {"weight_bits": [3, 8], "activation_bits": [16]},
            "search": {"seed": seed, "workers": 1},
            "stop": {"trials": trials},
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


def row(small: SmallModel, trials: int, seed: int) -> str:
    """A family's line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        small.save(folder / "model")
        save_samples(folder, seed)
        spec, url = job(small, folder, trials, seed), f"sqlite:///{folder}/bitfront.db"
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
@click.option("--only", default="", help="Families whose names contain this.")
def main(trials: int, seed: int, only: str) -> None:
    """Prints a line a family: layers, weights found and left, trials, the front, and seconds."""
    header = (
        *("family", "layers", "weights in layers", "left at 16 bits", "of these matrices"),
        *("trials", "on the front", "seconds"),
    )
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for small in SMALL_MODELS:
        if only in small.name:
            click.echo(row(small, trials, seed))


if __name__ == "__main__":
    main()
