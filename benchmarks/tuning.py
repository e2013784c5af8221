"""Whether a search of a recovery's settings is worth its steps, against plain training.

For each seed, which draws its own samples of every split: one uniform plan of the bundled CLIP is
tuned with `--samples`, in a process of its own on real Ray. Against it stand as many trainings
without early stops, each with settings drawn at random from the same space and for an equal part of
the steps that the tuning took in all; and one training of the usual settings for all those steps.
Of each way the recovery with the lowest error on the selection split counts, and is measured once
on the test split.

In the first `--killed` seeds everything is killed with SIGKILL as soon as three samples are over;
the same command then resumes.

    OMP_NUM_THREADS=1 python -m benchmarks.tuning --seeds 5 --samples 16 --steps 54
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import click
from scipy import stats

from bitfront.plan import Configuration, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec, RecoverySpace
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, best_sample
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from service.api.tuning import USUAL
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


@dataclass(frozen=True, slots=True)
class Row:
    """One seed.

    Attributes:
        seed: It.
        ways: What each way of spending the steps came to, by name.
        pruned: Samples of the tuning that stopped early.
        kill: What a kill did; None where there was none.
    """

    seed: int
    ways: Mapping[str, Way]
    pruned: int
    kill: Kill | None


def job(seed: int) -> JobSpec:
    """The study of a seed."""
    return JobSpec.model_validate(
        {
            "study": f"seed-{seed}",
            "model": {"source": "reference", "device": "cpu"},
            "data": {"source": "reference", "samples": SPLITS, "seed": seed},
            "quantizer": {"rounding": "nearest"},
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


def plain(tuning: Tuning, evaluator: Evaluator, recoveries: Sequence[Recovery], name: str) -> Way:
    """Trains recoveries one after the other, each to its end, and measures the best one."""
    configurations = [Configuration(tuning.plan, recovery) for recovery in recoveries]

    def train(number: int) -> float:
        steps = recoveries[number].steps
        checkpoint = tuning.folder / f"{name}-{number}"
        return trained_here(evaluator, configurations[number], [steps], checkpoint)[steps]

    errors = [train(number) for number in range(len(recoveries))]
    best = errors.index(min(errors))
    train(best)  # from its checkpoint: the evaluator may have forgotten it
    test = evaluator.scorer.figures(configurations[best], SplitName.TEST)["error"]
    return Way(errors[best], test, sum(recovery.steps for recovery in recoveries))


def compare(seed: int, folder: Path, *, samples: int, steps: int, kills: bool) -> Row:
    """All ways for one seed."""
    spec = job(seed)
    tuning = Tuning.of(folder, spec, Precision(2, 8), samples=samples, steps=steps)
    found, kill = tune(tuning, kills=kills)
    best = best_sample(found)
    assert best is not None
    assert best.error is not None
    assert best.test_error is not None
    total = sum(sample.step for sample in found.values())
    evaluator = Evaluator.from_spec(spec)
    each = replace(USUAL, steps=max(1, round(total / samples)))
    space = Wish(tuning.plan, {}, each, frozenset({"steps"}), samples, None).space
    random = Random(seed)
    bare = Configuration(tuning.plan)
    selection, test = (
        evaluator.scorer.figures(bare, split)["error"]
        for split in (SplitName.SELECTION, SplitName.TEST)
    )
    return Row(
        seed,
        {
            "quantized": Way(selection, test, 0),
            "tuned": Way(best.error, best.test_error, total),
            "random": plain(
                tuning, evaluator, [drawn(space, random) for _ in range(samples)], "random"
            ),
            "usual": plain(tuning, evaluator, [replace(USUAL, steps=total)], "usual"),
        },
        sum(sample.state is TrialState.PRUNED for sample in found.values()),
        kill,
    )


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--samples", default=16, show_default=True)
@click.option("--steps", default=54, show_default=True)
@click.option("--killed", default=5, show_default=True, help="Of so many seeds the first run dies.")
def main(seeds: int, samples: int, steps: int, killed: int) -> None:
    """Print a line of JSON for each seed, and the means with their 95 % intervals."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            row = compare(seed, Path(folder), samples=samples, steps=steps, kills=seed < killed)
        click.echo(json.dumps(asdict(row)))
        rows.append(row)
    for name in rows[0].ways:
        selection = [100 * row.ways[name].selection for row in rows]
        test = [100 * row.ways[name].test for row in rows]
        click.echo(f"{name}: selection {spread(selection)}, test {spread(test)}")


def spread(values: Sequence[float]) -> str:
    """Mean and half width of the 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{statistics.mean(values):.2f} ± {half:.2f} %"


if __name__ == "__main__":
    main()
