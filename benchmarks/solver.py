"""What the solvers of rounding methods take at the width of real models, with random weights.

    OMP_NUM_THREADS=1 python -m benchmarks.solver

A ViT-L block, and a decoder layer of 7B shape. Every matrix is solved for two numbers of rows, each
in a process of its own; rows are independent, so seconds are a line in them: what a matrix costs
whatever its rows (factors of its Hessian), and what a row costs. All its rows, the layer and the
model are that line's, not measured.
"""

import resource
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import click
import torch

from bitfront.precision import Precision
from bitfront.quant.rounding.methods import rounded_target
from bitfront.quant.rounding.problem import damped_hessian
from bitfront.spec import QuantizerSpec

TOKENS: Final = 2048
"""What a second moment is of; its cost is a line in them."""


@dataclass(frozen=True)
class Shape:
    """The matrices of one transformer block, and how many such blocks the model has.

    Attributes:
        matrices: Rows, columns and how many there are, by name.
        blocks: Of the whole model.
    """

    matrices: Mapping[str, tuple[int, int, int]]
    blocks: int


SHAPES: Final = {
    "ViT-L/14, a block": Shape(
        {
            "in_proj": (3072, 1024, 1),
            "out_proj": (1024, 1024, 1),
            "c_fc": (4096, 1024, 1),
            "c_proj": (1024, 4096, 1),
        },
        24,
    ),
    "7B, a decoder layer": Shape(
        {
            "q, k, v, o": (4096, 4096, 4),
            "gate, up": (11008, 4096, 2),
            "down": (4096, 11008, 1),
        },
        32,
    ),
}


def solve(rows: int, columns: int, rounding: str, seed: int) -> tuple[float, float, float]:
    """Processor seconds of the second moment and of the solver, and the peak in bytes."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.empty(columns).log_normal_(0, 1, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    started_s = time.process_time()
    moment = torch.zeros(columns, columns)
    for _ in range(TOKENS // 256):  # a streaming pass
        inputs = torch.randn(256, columns, generator=generator) * scales
        moment.addmm_(inputs.T, inputs, alpha=1 / TOKENS)
    seen_s = time.process_time()
    quantizer = QuantizerSpec.model_validate({"rounding": rounding})
    rounded_target(weight, damped_hessian(moment), Precision(4), quantizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seen_s - started_s, time.process_time() - seen_s, peak


def apart(rows: int, columns: int, rounding: str, seed: int) -> tuple[float, float, float]:
    """The same in a process of its own, in which the loops are compiled before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(solve, 2, 8, rounding, seed).result()
        return pool.submit(solve, rows, columns, rounding, seed).result()


@click.command()
@click.option("--methods", default="gptq,descent", show_default=True)
@click.option("--rows", default="32,96", show_default=True, help="Two numbers of rows.")
@click.option("--seed", default=0, show_default=True)
def main(methods: str, rows: str, seed: int) -> None:
    """Prints a row a matrix, and what the whole model takes."""
    few, more = map(int, rows.split(","))
    for rounding in methods.split(","):
        click.echo(f"\n{rounding}\n")
        click.echo("| matrix | moment, s | fixed, s | a row, s | all rows, s | peak, GB |")
        click.echo("|---|---|---|---|---|---|")
        for title, shape in SHAPES.items():
            whole = 0.0
            for name, (all_rows, columns, count) in shape.matrices.items():
                _, short, _ = apart(few, columns, rounding, seed)
                moment, longer, peak = apart(more, columns, rounding, seed)
                each = (longer - short) / (more - few)
                fixed = short - few * each
                seconds = fixed + all_rows * each
                whole += count * seconds + moment
                cells = [f"{title}: {name}, {all_rows:,} x {columns:,}", f"{moment:.1f}"]
                cells += [f"{fixed:.1f}", f"{each:.3f}", f"{seconds:.0f}", f"{peak / 1e9:.2f}"]
                click.echo(f"| {' | '.join(cells)} |")
            click.echo(
                f"| {title}: all | | | | {whole:.0f} | |\n"
                f"| its {shape.blocks} blocks | | | | {shape.blocks * whole / 3600:.2f} h | |"
            )


if __name__ == "__main__":
    main()
