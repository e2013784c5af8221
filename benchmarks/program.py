"""How long the integer program and the pruning take: 30 to 1000 blocks of 6 options, 20 budgets.

    OMP_NUM_THREADS=1 python -m benchmarks.program --repeats 3

`real` instances look like a model: sizes log-normal, errors falling about fourfold a bit.
`hard` instances have errors that are nearly a function of size, where bounds decide little.
"""

import statistics
import time
from collections.abc import Mapping

import click
import numpy as np

from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell
from search.program import Program
from search.prune import budget_axis, prune
from tests.support.certificates import verify

BITS = (2, 3, 4, 5, 6, 8)
BUDGETS = 20


def instance(blocks: int, seed: int, *, hard: bool) -> Mapping[str, list[Cell]]:
    """A random profile."""
    rng = np.random.default_rng(seed)
    cells: dict[str, list[Cell]] = {}
    for number in range(blocks):
        name = f"block {number}"
        weights = int(rng.lognormal(13, 1))
        sensitivity = float(rng.lognormal(-4, 1.2))
        cells[name] = []
        for bits in BITS:
            noise = float(rng.lognormal(0, 0.02 if hard else 0.3))
            error = (8.5 - bits) * weights * 1e-9 if hard else sensitivity * 4.0 ** (2 - bits)
            option = Option((Precision(bits, 8),))
            cells[name].append(Cell(name, option, weights * bits // 8, 0.0, error * noise))
    return cells


def measure(
    blocks: int, seed: int, epsilon: float, *, hard: bool
) -> tuple[float, float, float, float]:
    """Seconds to solve, seconds to prune, log10 of the space before and after."""
    cells = instance(blocks, seed, hard=hard)
    budgets = budget_axis(Program.of(cells), BUDGETS)
    started_s = time.perf_counter()
    program = Program.of(cells)
    program.proxy_front(budgets)
    solved_s = time.perf_counter()
    space = prune(program, budgets, epsilon)
    pruned_s = time.perf_counter()
    if not verify(space, program):
        raise click.ClickException(f"a certificate is wrong: blocks {blocks}, seed {seed}")
    return solved_s - started_s, pruned_s - solved_s, space.log10_before, space.log10_after


@click.command()
@click.option("--repeats", default=3)
@click.option("--blocks", "sizes", multiple=True, type=int, default=(30, 100, 300, 1000))
@click.option("--epsilon", "epsilons", multiple=True, type=float, default=(0.5, 0.01, 0.001))
def main(repeats: int, sizes: tuple[int, ...], epsilons: tuple[float, ...]) -> None:
    """Prints medians over seeds 0, 1, ... and the exponent with which time grows."""
    for hard in (False, True):
        for epsilon in epsilons:
            click.echo(f"{'hard' if hard else 'real'} instances, {BUDGETS} budgets, ε = {epsilon}")
            totals = [_line(blocks, repeats, epsilon, hard=hard) for blocks in sizes]
            if len(sizes) > 1:
                growth = float(np.polyfit(np.log(sizes), np.log(totals), 1)[0])
                click.echo(f"time grows as blocks^{growth:.2f}")


def _line(blocks: int, repeats: int, epsilon: float, *, hard: bool) -> float:
    """Prints one size's figures; returns the median seconds in all."""
    rows = [measure(blocks, seed, epsilon, hard=hard) for seed in range(repeats)]
    solve, prune_s, before, after = (statistics.median(c) for c in zip(*rows, strict=True))
    worst = max(row[0] + row[1] for row in rows)
    click.echo(
        f"{blocks:5d} blocks: solve {solve:7.3f} s, prune {prune_s:7.3f} s, "
        f"worst {worst:7.3f} s, space 10^{before:.0f} -> 10^{after:.0f}"
    )
    return float(solve + prune_s)


if __name__ == "__main__":
    main()
