"""What the default rounding costs a trial: a search's sequence with it, and with nearest codes.

Both ways evaluate each configuration in turn in one process, with everything that earlier trials
left in their caches.

    OMP_NUM_THREADS=1 python -m benchmarks.trial_time --trials 60
"""

import statistics
import time

import click
import torch

from benchmarks.evaluation import searched
from benchmarks.search import SPEC
from bitfront.spec import JobSpec
from objectives.evaluation.evaluator import Evaluator

WAYS = ("nearest", "auto")


def job(rounding: str) -> JobSpec:
    """The job of `benchmarks.search` with a rounding method."""
    return JobSpec.model_validate({**SPEC, "quantizer": {"rounding": rounding}})


@click.command()
@click.option("--trials", default=60)
def main(trials: int) -> None:
    """Prints the processor seconds of a trial: quartiles each way, and of the ratio."""
    torch.set_num_threads(1)
    configurations = searched(job("auto"), trials)
    evaluators = {way: Evaluator.from_spec(job(way)) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    walks = 0
    for configuration in configurations:
        for way, evaluator in evaluators.items():
            started_s = time.process_time()
            found = evaluator.evaluate(configuration)
            seconds[way].append(time.process_time() - started_s)
            walks += found.metrics.get("hits.rounding") == 0
    ratios = [a / b for a, b in zip(seconds["auto"], seconds["nearest"], strict=True)]
    for name, values in (*seconds.items(), ("ratio", ratios)):
        low, middle, high = statistics.quantiles(values, n=4)
        click.echo(f"{name:8s} median {middle:.2f}, quartiles {low:.2f} and {high:.2f}")
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    click.echo(f"ratio of the medians {medians['auto'] / medians['nearest']:.2f}")
    click.echo(f"{walks} of {len(configurations)} trials walked the calibration samples")


if __name__ == "__main__":
    main()
