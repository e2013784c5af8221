"""Whether a search of a recovery's settings is worth its steps, against plain training.

For each seed, which draws its own samples of every split: one uniform plan of the bundled CLIP is
tuned with `--samples`, in a process of its own on real Ray; then as many recoveries are trained
without early stops, each for an equal part of the steps that the tuning took in all. Plain ones are
the usual recovery with another seed each time, or settings drawn at random from the same space. Of
each way the recovery with the lowest error on the selection split counts, and is measured once on
the test split.

In the first `--killed` seeds everything is killed with SIGKILL as soon as three samples are over;
the same command then resumes.

    OMP_NUM_THREADS=1 python -m benchmarks.tuning --seeds 5 --samples 16 --steps 54
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import click

from bitfront.plan import Configuration, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec, RecoverySpace
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, best_sample
from objectives.data.task import SplitName
from objectives.evaluation.evaluator import Evaluator
from service.commands.tune import USUAL
from service.study.tuning import Wish
from tests.support.contract import read_witness
from tests.support.tunings import Tuning, trained_here

SPLITS = {"calibration": 64, "tuning": 256, "selection": 512, "test": 2000}


@dataclass(frozen=True, slots=True)
class Kill:
    """What was in the database when everything was killed, and what became of it.

    Attributes:
        results: Errors at rungs that were stored.
        lost: Of them, those that are missing or another number in the end.
        twice: Rungs to which a sample was trained twice.
    """

    results: int
    lost: int
    twice: int


@dataclass(frozen=True, slots=True)
class Way:
    """What one way of spending the steps came to; errors as shares.

    Attributes:
        selection: On the selection split, of the best recovery.
        test: On the test split, of the same one.
        steps: Optimiser steps in all.
    """

    selection: float
    test: float
    steps: int


def job(seed: int) -> JobSpec:
    """The study of a seed."""
    return JobSpec.model_validate(
        {
            "study": f"seed-{seed}",
            "model": {"source": "reference", "device": "cpu"},
            "data": {"source": "reference", "samples": SPLITS, "seed": seed},
            "search": {"workers": 2, "seed": seed, "checkpoint_s": 1},
        }
    )


def tune(tuning: Tuning, *, kills: bool) -> tuple[dict[int, TuningSample], Kill | None]:
    """The samples of a whole tuning, which was killed on its way or not."""
    if not kills:
        tuning.run()
        return tuning.stored(), None
    before = tuning.kill_when(
        lambda stored: sum(s.state is not TrialState.RUNNING for s in stored) >= 3
    )
    tuning.run()
    after = tuning.stored()
    pairs = [
        (error, after[number].errors.get(step))
        for number, sample in before.items()
        for step, error in sample.errors.items()
    ]
    shown = [
        (line["number"], line["step"])
        for line in read_witness(tuning.witness)
        if line["event"] == "sample showed"
    ]
    lost = sum(error != found for error, found in pairs)
    return after, Kill(len(pairs), lost, len(shown) - len(set(shown)))


def drawn(space: RecoverySpace, random: Random) -> Recovery:
    """Settings at random; at least a prompt or an adapter."""
    while True:
        settings = {
            name: random.choice(choices) for name, choices in space if isinstance(choices, tuple)
        }
        if settings["context_length"] or settings["reduction"]:
            return Recovery(**settings).canonical


def best_of(
    tuning: Tuning, trained: Iterator[tuple[Evaluator, Configuration, float]], steps: int
) -> Way:
    """The best of some recoveries by the selection split, measured on the test split."""
    evaluator, configuration, selection = min(trained, key=lambda one: one[2])
    checkpoint = tuning.folder / "best"
    recovery = configuration.recovery
    assert recovery is not None
    again = trained_here(evaluator, configuration, [recovery.steps], checkpoint)
    assert again[recovery.steps] == selection
    test = evaluator.scorer.figures(configuration, SplitName.TEST)["error"]
    return Way(selection, test, steps)


def plain(
    tuning: Tuning, evaluator: Evaluator, recoveries: Mapping[int, Recovery], steps: int
) -> Iterator[tuple[Evaluator, Configuration, float]]:
    """Trains recoveries one after the other, each to its end; by the seed of its training."""
    for number, (seed, recovery) in enumerate(recoveries.items()):
        search = evaluator.spec.search.model_copy(update={"seed": seed})
        spec = evaluator.spec.model_copy(update={"search": search})
        own = Evaluator(spec, evaluator.family, evaluator.ranges)
        configuration = Configuration(tuning.plan, recovery)
        checkpoint = tuning.folder / f"plain-{seed}-{number}"
        errors = trained_here(own, configuration, [steps], checkpoint)
        yield own, configuration, errors[steps]


def compare(seed: int, folder: Path, *, samples: int, steps: int, kills: bool) -> dict[str, object]:
    """All ways for one seed."""
    spec = job(seed)
    tuning = Tuning.of(folder, spec, Precision(2, 8), samples=samples, steps=steps)
    found, kill = tune(tuning, kills=kills)
    best = best_sample(found)
    assert best is not None
    assert best.error is not None
    assert best.test_error is not None
    total = sum(sample.step for sample in found.values())
    each = max(1, round(total / samples))
    evaluator = Evaluator.from_spec(spec)
    split, bare = SplitName.SELECTION, Configuration(tuning.plan)
    usual = Recovery(**{**asdict(USUAL), "steps": each}).canonical
    fixed = frozenset({"steps"})
    wish = Wish(tuning.plan, {}, usual, fixed, samples, None)
    random = Random(seed)
    seeds = [1000 * (seed + 1) + number for number in range(samples)]
    ways = {
        "tuned": Way(best.error, best.test_error, total),
        "usual": best_of(
            tuning,
            plain(tuning, evaluator, dict.fromkeys(seeds, usual), each),
            each * samples,
        ),
        "random": best_of(
            tuning,
            plain(tuning, evaluator, {s: drawn(wish.space, random) for s in seeds}, each),
            each * samples,
        ),
    }
    return {
        "seed": seed,
        "quantized": evaluator.scorer.figures(bare, split)["error"],
        "quantized_test": evaluator.scorer.figures(bare, SplitName.TEST)["error"],
        "ways": {name: asdict(way) for name, way in ways.items()},
        "states": {
            str(state): sum(s.state is state for s in found.values()) for state in TrialState
        },
        "kill": None if kill is None else asdict(kill),
    }


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--samples", default=16, show_default=True)
@click.option("--steps", default=54, show_default=True)
@click.option("--killed", default=5, show_default=True, help="Of so many seeds the first run dies.")
def main(seeds: int, samples: int, steps: int, killed: int) -> None:
    """Print a line of JSON for each seed, and the means."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            row = compare(seed, Path(folder), samples=samples, steps=steps, kills=seed < killed)
        click.echo(json.dumps(row))
        rows.append(row)
    for name in ("tuned", "usual", "random"):
        for split in ("selection", "test"):
            errors = [100 * float(row["ways"][name][split]) for row in rows]  # type: ignore[index]
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            click.echo(f"{name}, {split}: {statistics.mean(errors):.2f} ± {spread:.2f} %")


if __name__ == "__main__":
    main()
