"""The plans that are chosen without labels, against those that labels choose.

Both choose among the same trials of the studies of `benchmarks.choice`, by the same 512 selection
samples: once as a study of agreement with full precision does, whose error is `1 - exp(-KL)` of
each prediction, and once as a study with labels does. The other samples of the pool judge.

    OMP_NUM_THREADS=1 python -m benchmarks.choice --calibrations 5 --out choice.json
    python -m benchmarks.label_free --studies choice.json
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import numpy as np
from scipy.stats import t as student

from benchmarks.choice import BUDGETS, SELECTION, PoolTrial, Row, drawn
from benchmarks.made_up_trials import OBJECTIVES
from bitfront.samples import SampleResults
from bitfront.trial import Measured, Origin
from search.choice import Ranking, choose

MODELS: Final = ("digit-clip", "digit-llava")
AT: Final = (2.25, 2.5, 3.0)


def without_labels(row: Row) -> Measured:
    """A trial as a study of agreement has it: its errors are distances from full precision."""
    samples = row.measured.samples
    assert samples is not None
    shares = -np.expm1(-samples.divergence)
    own = SampleResults.of_shares(shares.tolist(), samples.divergence.tolist())
    values = {**row.measured.values, "error": float(shares.mean())}
    return replace(row.measured, values=values, samples=own)


def chosen(rows: Sequence[Row], limit_nbytes: float) -> dict[str, Row]:
    """What each way of choosing takes of the trials up to a size."""
    trials = [row.measured for row in rows]
    unlabelled = [without_labels(row) for row in rows]
    answers = {
        "without": choose(unlabelled, OBJECTIVES, {"nbytes": limit_nbytes}),
        "with": choose(trials, OBJECTIVES, {"nbytes": limit_nbytes}),
        "alone": choose(trials, OBJECTIVES, {"nbytes": limit_nbytes}, Ranking.ERROR),
    }
    found = {}
    for name, choice in answers.items():
        assert choice is not None
        found[name] = rows[choice.answer.number]
    return found


def budgets(rows: Sequence[Row]) -> dict[float, float]:
    """The bytes of each budget: the program's smallest and largest plan have the first and last."""
    own = [row.measured.values["nbytes"] for row in rows if row.origin is Origin.PROGRAM]
    sizes = np.interp(AT, (BUDGETS[0], BUDGETS[-1]), (min(own), max(own)))
    return dict(zip(AT, sizes.tolist(), strict=True))


def interval(values: Sequence[float]) -> str:
    """The mean with its 95 % interval, in percentage points."""
    table = 100 * np.asarray(values)
    half = student.ppf(0.975, len(table) - 1) * table.std(ddof=1) / np.sqrt(len(table))
    return f"{table.mean():+.2f} ({table.mean() - half:+.2f} to {table.mean() + half:+.2f})"


def read(path: Path, model: str) -> list[list[PoolTrial]]:
    """The studies of a model that a run of `benchmarks.choice` left."""
    return [
        [
            PoolTrial(
                Origin(row["origin"]),
                row["nbytes"],
                row["proxy"],
                SampleResults(bytes.fromhex(row["samples"])),
            )
            for row in rows
        ]
        for name, rows in json.loads(path.read_text()).items()
        if name.rpartition("-")[0] == model
    ]


@click.command()
@click.option("--studies", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--draws", default=40, show_default=True, help="Of selection samples, of each study.")
def main(studies: Path, draws: int) -> None:
    """Prints a row for each model and budget: means of the draws, intervals over the studies."""
    header = (
        *("", "bits a weight", "fit", "the same plan", "without labels", "with labels"),
        *("with labels less without", "by labels alone", "less without"),
    )
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for model in MODELS:
        pools = read(studies, model)
        for bits in AT:
            accuracies: dict[str, list[float]] = {"without": [], "with": [], "alone": []}
            same, fit = [], []
            for pool in pools:
                found = []
                for draw in range(draws):
                    rows = drawn(pool, draw)
                    limit = budgets(rows)[bits]
                    fit.append(sum(row.measured.values["nbytes"] <= limit for row in rows))
                    found.append(chosen(rows, limit))
                same += [own["without"] is own["with"] for own in found]
                for name, each in accuracies.items():
                    each.append(1 - float(np.mean([own[name].error for own in found])))
            base = np.asarray(accuracies["without"])
            means = {name: 100 * np.mean(each) for name, each in accuracies.items()}
            cells = (
                *(model, f"{bits:g}", f"{np.mean(fit):.1f}", f"{np.mean(same):.0%}"),
                *(f"{means['without']:.2f}", f"{means['with']:.2f}"),
                interval((np.asarray(accuracies["with"]) - base).tolist()),
                *(f"{means['alone']:.2f}",),
                interval((np.asarray(accuracies["alone"]) - base).tolist()),
            )
            click.echo(f"| {' | '.join(cells)} |")
        click.echo(f"{model}: {len(pools)} studies, {SELECTION} selection samples", err=True)


if __name__ == "__main__":
    main()
