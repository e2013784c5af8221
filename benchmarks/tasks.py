"""Every task on the bundled models: what uniform and mixed plans make of it.

For each seed of the samples the model is profiled in this process, the program proposes a plan at
each budget, and all plans are evaluated on the test split: weights only, asymmetric, one scale a
channel, a block a layer.

    OMP_NUM_THREADS=1 python -m benchmarks.tasks --task retrieval --seeds 0,1,2
    OMP_NUM_THREADS=1 python -m benchmarks.tasks --task choice --measure letter --seeds 0,1,2
    OMP_NUM_THREADS=1 python -m benchmarks.tasks --task retrieval --seeds 10,11,12,13,14 --distil

With `--distil` it compares uniform precisions with the same distilled, and with no others.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import click
import numpy as np

from benchmarks.in_process import profile
from bitfront.plan import Configuration, Distillation, Plan
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA, JobSpec
from bitfront.tasks import TASKS
from bitfront.units import size_text
from objectives.data.split_name import SplitName
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

BUDGETS: Final = (2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
UNIFORM: Final = (2, 3, 4, 8)
DISTILLED: Final = ("w2a16", "w2a8", "w3a8", "w4a4")
TUNING: Final = 512
COLUMNS: Final = {
    **{
        f"{kind}, recall at 1, 5, 10 in %": [f"{kind}_retrieval_recall_at_{k}" for k in (1, 5, 10)]
        for kind in ("image", "text")
    },
    "unparsed in %": ["unparsed"],
    "agreement in %": ["agreement"],
}


def job(task: str, measure: str | None, rounding: str, seed: int, tuning: int = 4) -> JobSpec:
    """The job of a task with samples of a seed."""
    asks = next(kind.asks for kind in TASKS if kind.name == task)
    samples = {"calibration": 96, "tuning": tuning, "selection": 200, "test": 500}
    return JobSpec.model_validate(
        {
            "study": f"{task}-{seed}",
            "model": {
                "source": "reference",
                "name": REFERENCE_LLAVA if asks else REFERENCE_CLIP,
                "device": "cpu",
            },
            "data": {
                "source": "reference",
                "task": task,
                "measure": measure,
                "samples": samples,
                "seed": seed,
            },
            "quantizer": {"rounding": rounding},
            "partition": {"granularity": "layer"},
            "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [16]},
            "search": {
                "from_bits": BUDGETS[0],
                "to_bits": BUDGETS[-1],
                "budgets": len(BUDGETS),
                "seed": seed,
            },
        }
    )


def plans(spec: JobSpec) -> Iterator[tuple[str, Configuration]]:
    """Full precision, uniform precisions, and the program's plans, the smallest first."""
    found, _ = profile(spec)
    layers = [layer.name for layer in found.layers]
    yield "full precision", Configuration(Plan(()))
    for bits in UNIFORM:
        yield f"uniform w{bits}", Configuration(Plan.uniform(layers, Precision(bits, 16)))
    for place, seed in enumerate(ProxySearch(spec, found).program_seeds(), 1):
        yield f"program {place}", seed.configuration


def distilled(spec: JobSpec) -> Iterator[tuple[str, Configuration]]:
    """Full precision, and uniform precisions as they are rounded and distilled."""
    layers = [layer.name for layer in model_cache.evaluator(WorkerConfig(spec)).model.layers]
    yield "full precision", Configuration(Plan(()))
    for text in DISTILLED:
        plan = Plan.uniform(layers, Precision.parse(text))
        yield f"uniform {text}", Configuration(plan)
        yield f"uniform {text}, distilled", Configuration(replace(plan, distil=Distillation()))


@click.command()
@click.option("--task", type=click.Choice([str(kind.name) for kind in TASKS[:-1]]), required=True)
@click.option("--measure", help="What the error is of.")
@click.option("--rounding", default="nearest", show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Of the samples, with commas.")
@click.option("--distil", is_flag=True, help="Uniform precisions, and the same distilled.")
def main(task: str, measure: str | None, rounding: str, seeds: str, *, distil: bool) -> None:
    """Prints a row for each plan: means over the seeds, and the deviation of one."""
    rows: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for seed in map(int, seeds.split(",")):
        spec = job(task, measure, rounding, seed, TUNING if distil else 4)
        for name, configuration in (distilled if distil else plans)(spec):
            evaluator = model_cache.evaluator(WorkerConfig(spec))
            rows[name].append(evaluator.evaluate(configuration, SplitName.TEST).metrics)
    columns = {
        title: names for title, names in COLUMNS.items() if names[0] in rows["full precision"][0]
    }
    header = ["", "error in %", "size", *columns, "divergence"]
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, found in rows.items():
        errors = [100 * metrics["error"] for metrics in found]
        spread = f" ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else ""

        def mean(figure: str, found: Sequence[Mapping[str, float]] = found) -> float:
            return float(np.mean([metrics[figure] for metrics in found]))

        shares = (
            ", ".join(f"{100 * mean(one):.2f}" for one in names) for names in columns.values()
        )
        cells = [f"{np.mean(errors):.2f}{spread}", size_text(round(mean("nbytes"))), *shares]
        divergence = f"{mean('divergence'):.4f}"
        click.echo(f"| {' | '.join([name, *cells, divergence])} |")


if __name__ == "__main__":
    main()
