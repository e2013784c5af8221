"""Refinement at one size: swaps around the program's plan, against its plans at further budgets.

For each model, seed and mean width the size of the program's plan is the limit. From the same
seeds on, so many swaps, or plans of the program, are tried, each raced on the selection samples as
`search.race` does; what each ends with is judged on samples that no choice saw. Weights only,
symmetric, one scale a channel, a block a layer, as in `benchmarks.choice`.

    OMP_NUM_THREADS=1 python -m benchmarks.refine --out refine.json

Runs that `--out` already holds are read from it, so an interrupted run resumes.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from benchmarks.choice import SELECTION, job
from benchmarks.in_process import profile
from benchmarks.p4q import interval
from benchmarks.three_models import MODELS, prepare
from bitfront.plan import Configuration
from bitfront.profile import Profile
from bitfront.samples import RACE_SHARES, SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Proposal, Trial, TrialState
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from search.race import Race, Rival
from search.refine import MeasuredPlan, incumbent
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

HELD_OUT: Final = 1536

Run = dict[str, dict[str, float]]


@dataclass
class Study:
    """The trials of one study without Ray and database, every one of them raced.

    Attributes:
        evaluator: Measures them.
        most: What a plan may take, in bytes.
        trials: Those that finished.
        samples: What came out for each selection sample, by the trial's number.
        passes: The samples that were seen, as a multiple of the split.
    """

    evaluator: Evaluator
    most: float
    trials: list[Trial] = field(default_factory=list)
    samples: dict[int, SampleResults] = field(default_factory=dict)
    passes: float = 0.0
    _race: Race = field(default_factory=Race)

    def measure(self, proposal: Proposal) -> None:
        """Evaluates a proposal as far as it keeps up."""
        evaluation = self.evaluator.evaluate(proposal.configuration)
        assert evaluation.samples is not None
        costs = (evaluation.metrics["nbytes"],)
        nats = evaluation.samples.divergence
        for share in RACE_SHARES if proposal.origin.is_raced else ():
            seen = math.ceil(share * len(nats))
            if self._race.loses_to(costs, np.arange(seen), nats[:seen]) is not None:
                self.passes += share
                return
        self.passes += 1
        number = len(self.trials)
        values = {name: evaluation.metrics[name] for name in ("error", "nbytes", "divergence")}
        trial = Trial.of("study", number, proposal)
        self.trials.append(replace(trial, state=TrialState.COMPLETE, values=values))
        self.samples[number] = evaluation.samples
        self._race = Race.of([*self._race.rivals, Rival(number, costs, evaluation.samples)])

    def answer(self) -> Configuration:
        """The plan within the limit that nothing later is surely better than."""
        within = [t for t in self.trials if t.values["nbytes"] <= self.most]
        best = incumbent([MeasuredPlan({}, self.samples[trial.number]) for trial in within])
        (found,) = [t for t in within if self.samples[t.number] is best.samples]
        return found.configuration

    def held_out(self) -> dict[str, float]:
        """What the answer is worth on samples that no choice saw."""
        metrics = self.evaluator.evaluate(self.answer(), SplitName.TEST).metrics
        return {name: metrics[name] for name in ("error", "divergence")} | {"passes": self.passes}


def run(spec: JobSpec, measured: Profile, evaluator: Evaluator, bits: float, further: int) -> Run:
    """What the program's plan, its plans at further budgets, and swaps around it end with."""
    limited = replace_search(spec, to_bits=bits, from_bits=None, refine=True)
    plan = ProxySearch(limited, measured).program_seeds()[-1]
    most = float(sum(evaluator.nbytes(plan.configuration).values()))
    limited = JobSpec.model_validate(
        {**limited.model_dump(mode="json"), "constraints": {"max_nbytes": math.ceil(most)}}
    )
    search = ProxySearch(limited, measured)

    def begun() -> Study:
        study = Study(evaluator, most)
        for seed in search.program_seeds():
            study.measure(seed)
        study.passes = 0.0
        return study

    def ended(study: Study, proposals: Iterator[Proposal]) -> dict[str, float]:
        for proposal in islice(proposals, further):
            study.measure(proposal)
        return study.held_out()

    gaps, swaps = begun(), begun()
    return {
        "program": begun().held_out(),
        "further budgets": ended(gaps, search.further_seeds()),
        "swaps": ended(swaps, search.refinements(lambda: swaps.trials, lambda: swaps.samples)),
    }


def replace_search(spec: JobSpec, **changes: object) -> JobSpec:
    """The job with other settings of its search."""
    content = spec.model_dump(mode="json")
    content["search"] |= changes
    return JobSpec.model_validate(content)


def with_splits(spec: JobSpec) -> JobSpec:
    """The job with a selection split of the usual size, and samples to judge by."""
    splits = spec.data.samples.model_copy(update={"selection": SELECTION, "test": HELD_OUT})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"samples": splits})})


def report(model: str, runs: Sequence[dict[str, Run]]) -> None:
    """Prints the table of a model: a row a width, means and 95 % intervals over the seeds."""
    click.echo(f"\n{model}, {len(runs)} seeds; held-out divergence in nats times 1,000\n")
    click.echo(
        "| bits | program | further budgets, change | swaps, change | error, change | passes |"
    )
    click.echo("|---" * 6 + "|")
    for bits in runs[0]:
        rows = [one[bits] for one in runs if bits in one]
        base = [row["program"]["divergence"] for row in rows]
        changes = [
            interval(
                [
                    100 * (row[way]["divergence"] / own - 1)
                    for row, own in zip(rows, base, strict=True)
                ]
            )
            + " %"
            for way in ("further budgets", "swaps")
        ]
        errors = [100 * (row["swaps"]["error"] - row["program"]["error"]) for row in rows]
        passes = float(np.mean([row["swaps"]["passes"] for row in rows]))
        cells = [bits, interval([1000 * own for own in base]), *changes, interval(errors)]
        click.echo("| " + " | ".join([*cells, f"{passes:.1f}"]) + " |")


@click.command()
@click.option("--seeds", default="400,401,402,403,404", show_default=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--widths", default="2.5,3", show_default=True, help="Mean bits a weight.")
@click.option("--further", default=60, help="Trials after the seeds.")
@click.option("--steps", default=1400, help="Training steps of the third model.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("refine.json"))
def main(seeds: str, models: str, widths: str, further: int, steps: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, dict[str, Run]] = json.loads(out.read_text()) if out.exists() else {}
    folder = out.parent / "shapes"
    named = models.split(",")
    for seed in seeds.split(","):
        for model in named:
            name = f"{model}-{seed}"
            rows = known.setdefault(name, {})
            missing = [bits for bits in map(float, widths.split(",")) if f"{bits:g}" not in rows]
            if missing:
                prepare(model, folder, 80, steps=steps)
                spec = with_splits(job(model, int(seed), folder))
                measured, _ = profile(spec)
                evaluator = model_cache.evaluator(WorkerConfig(spec))
                for bits in missing:
                    rows[f"{bits:g}"] = run(spec, measured, evaluator, bits, further)
                    out.write_text(json.dumps(known))
                click.echo(f"{name} is done", err=True)
                model_cache.release()
    for model in named:
        runs = [own for name, own in known.items() if name.rpartition("-")[0] == model]
        if runs:
            report(model, runs)


if __name__ == "__main__":
    main()
