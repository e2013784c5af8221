"""A LLaVA larger than the memory it is given, profiled, solved and evaluated from disk.

    OMP_NUM_THREADS=2 python -m benchmarks.large make --shape 7b FOLDER
    OMP_NUM_THREADS=2 python -m benchmarks.large make --shape 1b FOLDER
    OMP_NUM_THREADS=2 python -m benchmarks.large study FOLDER --memory 4GB

Weights are random, drawn tensor by tensor from a seed and written in shards of bfloat16, so that
making a model takes no more memory than its largest tensor and a shard.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]  # it has none
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from benchmarks.large_llava import WORDS, processor
from bitfront.plan import Configuration, Plan
from bitfront.profile import Cell, Resource
from bitfront.spec import JobSpec
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling.cells import CellMeter
from search.options import block_options
from search.partition import partition
from search.program import Program

SHARD_NBYTES: Final = 1 << 30
SHAPES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    # LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels and Vicuna 7B.
    "7b": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
        },
    ),
    # A decoder of Llama-3.2-1B's shape with a small vocabulary, and CLIP ViT-B/32.
    "1b": (
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 32,
        },
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32064,
        },
    ),
}


def make(folder: Path, shape: str, pictures: int, seed: int) -> int:
    """Writes a model with its processor and questions; how many weights it has."""
    vision, text = SHAPES[shape]
    places = (vision["image_size"] // vision["patch_size"]) ** 2
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            **text, pad_token_id=0, bos_token_id=1, eos_token_id=3, max_position_embeddings=2048
        ),
        image_token_index=WORDS.index("<image>"),
        image_seq_length=places,
    )
    with init_empty_weights(include_buffers=False):
        model = LlavaForConditionalGeneration(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    ends = GenerationConfig(eos_token_id=3)  # type: ignore[no-untyped-call]  # theirs
    ends.save_pretrained(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _write_shards(folder, _drawn(shapes, seed))
    own = processor(vision["image_size"], vision["patch_size"], text["vocab_size"])
    own.save_pretrained(folder)
    (folder / "pictures").mkdir(exist_ok=True)
    draw, side = np.random.default_rng(seed), vision["image_size"]
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(pictures):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
            row = {"image": f"pictures/{number}.png", "question": "what is there ?"}
            file.write(json.dumps({**row, "answers": [f"word{100 + number}"]}) + "\n")
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Weights that keep the size of what passes them: norms of one, matrices over their inputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if len(shape) > 1:
            scale = float(np.prod(shape[1:])) ** -0.5
            yield name, torch.empty(shape).normal_(0, scale, generator=generator).bfloat16()
        elif "norm" in name and name.endswith("weight"):
            yield name, torch.ones(shape, dtype=torch.bfloat16)
        else:
            yield name, torch.zeros(shape, dtype=torch.bfloat16)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    count = 0

    def write() -> None:
        name = f"model-{count:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > SHARD_NBYTES:
            write()
            count += 1
        shard[name] = tensor
    write()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@click.group()
def main() -> None:
    """Make a model, and search it from disk."""


@main.command("make")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True)
@click.option("--pictures", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
def make_command(folder: Path, shape: str, pictures: int, seed: int) -> None:
    """Write a model with random weights, and questions."""
    click.echo(f"{make(folder, shape, pictures, seed):,} weights")


def job(folder: Path, memory: str, calibration: int, selection: int) -> JobSpec:
    """A search of the weights of a saved model, 8 bits for inputs, in some memory."""
    return JobSpec.model_validate(
        {
            "study": "large",
            "model": {"source": "transformers", "name": str(folder), "device": "cpu"},
            "data": {
                "source": "questions",
                "path": str(folder / "questions.jsonl"),
                "prompt": "<image> {}",
                "samples": {
                    "calibration": calibration,
                    "tuning": 1,
                    "selection": selection,
                    "test": 1,
                },
                "batch_size": 2,
                "answer_tokens": 2,
            },
            "quantizer": {"scheme": "symmetric", "rounding": "nearest", "scale_search": False},
            "space": {"weight_bits": [3, 4, 8], "activation_bits": [8]},
            "partition": {"granularity": "layer"},
            "profile": {"cells": "adaptive"},
            "resources": {"memory": memory},
        }
    )


def tell(what: str, since: float) -> float:
    """Says how long something took, and the memory so far; the time now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = dict(re.findall(r"(RssAnon|RssFile|VmHWM):\s+(\d+) kB", status))
    sizes = ", ".join(f"{name} {int(kib) / 1e6 * 1.024:.2f} GB" for name, kib in held.items())
    now = time.perf_counter()
    click.echo(f"{what}: {now - since:.1f} s; {sizes}")
    return now


@main.command("study")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--memory", default="4GB", show_default=True)
@click.option("--bits", default=4.0, show_default=True)
@click.option("--calibration", default=2, show_default=True)
@click.option("--selection", default=2, show_default=True)
@click.option("--cells", default=12, show_default=True, help="Measured at most.")
def study_command(
    folder: Path, memory: str, bits: float, calibration: int, selection: int, cells: int
) -> None:
    """Profile a model, solve for a mean of bits, and evaluate the plan."""
    started = now = time.perf_counter()
    spec = job(folder, memory, calibration, selection)
    loaded = Evaluator.from_spec(spec)
    residency = loaded.model.residency
    if residency is None:
        raise click.ClickException("the model fits: give it less memory")
    click.echo(
        f"resident {residency.resident_nbytes / 1e9:.2f} GB, "
        f"largest block {residency.block_nbytes / 1e9:.2f} GB, {len(loaded.model.layers)} layers"
    )
    now = tell("load, hash and calibrate", now)
    profile = spec.profile.model_copy(update={"measure": spec.profile.score})
    scores = CellMeter(
        loaded.task, loaded.cell_switch, spec.model_copy(update={"profile": profile})
    )
    now = tell("full precision", now)
    blocks = partition(loaded.model.layers, (), spec.partition)
    options = {
        block.name: block_options(block, loaded.model.layers, spec.space, spec.quantizer)
        for block in blocks
    }
    scored = [scores.measure(block, one) for block in blocks for one in options[block.name]]
    now = tell(f"{len(scored)} scores in one backward pass", now)
    del scores
    chosen = solved(scored, bits, loaded)
    now = tell(f"the program, {len(chosen)} blocks", now)
    meter = CellMeter(loaded.task, loaded.cell_switch, spec)
    now = tell("full precision of the cells", now)
    measured = [(cell, block) for cell in chosen for block in blocks if block.name == cell.block]
    for cell, block in measured[:: max(1, len(measured) // cells)]:
        found = meter.measure(block, cell.option)
        click.echo(f"{block.name} {cell.option}: score {cell.error:.3g}, cell {found.error:.3g}")
        now = tell("a cell", now)
    del meter
    by_name = {block.name: block for block in blocks}
    plan = Plan.from_options([(by_name[cell.block], cell.option) for cell in chosen])
    worth = loaded.evaluate(Configuration(plan))
    click.echo(f"plan: {worth.values}, divergence {worth.metrics['divergence']:.4g}")
    tell("the plan's evaluation", now)
    tell("all", started)


def solved(cells: Sequence[Cell], bits: float, loaded: Evaluator) -> list[Cell]:
    """The cells of the plan with the least sum of errors whose weights have a mean of bits."""
    weights = sum(layer.weights for layer in loaded.model.layers)
    by_block: dict[str, list[Cell]] = {}
    for cell in cells:
        by_block.setdefault(cell.block, []).append(cell)
    program = Program.of(by_block, Resource.WEIGHT_BITS)
    return list(program.solve(int(bits * weights)).choice.values())


if __name__ == "__main__":
    main()
