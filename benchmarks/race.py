"""Racing: the passes that it saves, and whether the answers are still those of all samples.

The studies of `benchmarks.choice` are gone through again in their order, on selection samples
that are drawn over and over: a trial of the sampler stops where an earlier one is surely better.
Then `best` is asked at each budget, with and without the trials that stopped, and with as many
samples more as the same passes buy.

    OMP_NUM_THREADS=1 python -m benchmarks.race --studies choice.json
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.choice import BUDGETS, SELECTION, PoolTrial
from benchmarks.made_up_trials import OBJECTIVES
from benchmarks.p4q import interval
from benchmarks.three_models import MODELS
from bitfront.samples import RACE_SHARES, SampleResults
from bitfront.trial import Measured, Origin
from search.choice import choose
from search.race import Race, Rival

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Course:
    """What became of the trials of a study.

    Attributes:
        finished: The numbers of those that saw all samples.
        passes: The samples that all trials saw together.
        raced: The trials that could have been stopped.
    """

    finished: tuple[int, ...]
    passes: int
    raced: int


def run(trials: Sequence[PoolTrial], chosen: Places, *, everyone: bool) -> Course:
    """Races the trials on some samples of the pool, one after the other."""
    race = Race()
    finished, passes, raced = [], 0, 0
    order = np.arange(len(chosen))
    for number, trial in enumerate(trials):
        costs = (trial.nbytes,)
        nats = trial.samples.divergence[chosen]
        may_stop = trial.origin is Origin.SAMPLER or (everyone and trial.origin is Origin.PROGRAM)
        raced += may_stop
        seen = len(chosen)
        for share in RACE_SHARES if may_stop else ():
            end = math.ceil(share * len(chosen))
            if race.loses_to(costs, order[:end], nats[:end]) is not None:
                seen = end
                break
        passes += seen
        if seen == len(chosen):
            finished.append(number)
            samples = SampleResults.of([True] * seen, nats.tolist())
            race = Race.of([*race.rivals, Rival(number, costs, samples)])
    return Course(tuple(finished), passes, raced)


def answers(
    trials: Sequence[PoolTrial], numbers: Sequence[int], chosen: Places, others: Places
) -> list[float]:
    """The held-out divergence of what `best` answers at each budget."""
    measured = []
    for number in numbers:
        trial = trials[number]
        right, nats = trial.samples.right[chosen], trial.samples.divergence[chosen]
        values = {
            "error": 1 - float(right.mean()),
            "nbytes": trial.nbytes,
            "divergence": float(nats.mean()),
        }
        own = SampleResults.of(right.tolist(), nats.tolist())
        measured.append(Measured("study", number, values, samples=own))
    sizes = [trial.nbytes for trial in trials if trial.origin is Origin.PROGRAM]
    found = []
    for most in np.linspace(min(sizes), max(sizes), len(BUDGETS)):
        choice = choose(measured, OBJECTIVES, {"nbytes": float(most)})
        assert choice is not None
        answer = trials[choice.answer.number]
        found.append(float(answer.samples.divergence[others].mean()))
    return found


def compare(
    trials: Sequence[PoolTrial], draws: int, samples: int, *, everyone: bool
) -> dict[str, float]:
    """The means over draws of what racing saves and costs in one study."""
    rows: list[dict[str, float]] = []
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(trials[0].samples))
        others = order[2 * samples :]
        course = run(trials, order[:samples], everyone=everyone)
        saved = 1 - course.passes / (samples * len(trials))
        more = order[: min(2 * samples, round(samples / (1 - saved)))]
        sharper = run(trials, more, everyone=everyone)
        whole = answers(trials, range(len(trials)), order[:samples], others)
        raced = answers(trials, course.finished, order[:samples], others)
        equal = answers(trials, sharper.finished, more, others)
        rows.append(
            {
                "raced": course.raced / len(trials),
                "stopped": 1 - len(course.finished) / len(trials),
                "passes saved": saved,
                "all": float(np.mean(whole)),
                "raced, less all": float(np.mean(raced) - np.mean(whole)),
                "equal passes, less all": float(np.mean(equal) - np.mean(whole)),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def report(found: Sequence[Mapping[str, float]]) -> str:
    """The cells of a row: means over the studies with 95 % intervals."""
    shares = ("raced", "stopped", "passes saved")
    cells = [interval([100 * one[name] for one in found]) + " %" for name in shares]
    nats = [name for name in found[0] if name not in shares]
    return " | ".join([*cells, *(interval([1000 * one[name] for one in found]) for name in nats)])


@click.command()
@click.option("--studies", type=click.Path(path_type=Path), default=Path("choice.json"))
@click.option("--draws", default=20, help="Draws of selection samples from each pool.")
@click.option("--samples", default=SELECTION, help="Selection samples.")
def main(studies: Path, draws: int, samples: int) -> None:
    """Prints a row for each model: divergences in nats times 1,000, means over the budgets."""
    known = json.loads(studies.read_text())
    for model in MODELS:
        own = [rows for name, rows in known.items() if name.rpartition("-")[0] == model]
        pools = [
            [
                PoolTrial(
                    Origin(row["origin"]),
                    row["nbytes"],
                    row["proxy"],
                    SampleResults(bytes.fromhex(row["samples"])),
                )
                for row in rows
            ]
            for rows in own
        ]
        for everyone in (False, True):
            if pools:
                found = [compare(pool, draws, samples, everyone=everyone) for pool in pools]
                if not everyone:
                    click.echo(f"{model}, {len(pools)} studies: " + " | ".join(found[0]))
                who = "and of the program" if everyone else "of the sampler"
                click.echo(f"| {model}, trials {who} | {report(found)} |")


if __name__ == "__main__":
    main()
