"""LLaVA-1.5 at full size: what a search of 13B decides over, and what profiling 7B would take.

    OMP_NUM_THREADS=1 python -m benchmarks.llava

Two parts, both printed as Markdown. The first builds LLaVA-1.5-13B without its weights (on
torch's meta device): layers, blocks, options, and the integer program are real, while entropies
and cell errors are synthetic, drawn from `--seed`. The second times one cell and one weight on
decoder layers of 7B's true width with random weights, on CUDA in bfloat16 where there is one and
on the CPU in float32 with small images otherwise, and multiplies up to the whole profile.
"""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell, LayerEntropy
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import Granularity, JobSpec, PartitionSpec
from bitfront.vlm import GenerativeModel, LayeredModel, PlanSwitch, QuestionBatch
from bitfront.vlm.loaders.llava import TextProcessor, llava_model
from bitfront.vlm.models.generative import Prompt
from objectives.cost.costs import configuration_nbytes, layer_bit_operations, layer_nbytes
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.streams import QuestionStream, Stream
from objectives.profiling.calibration import calibrate
from objectives.profiling.cells import CellMeter
from search.options import block_options, screen, undominated
from search.partition import partition
from search.program import Program
from search.prune import budget_axis

END = 2
VOCABULARY = 32064
IMAGE = 32000
PATCH = 14
RATIOS = (2.78, 4.0)
BUDGETS = 12
MOST_MEMORY_NBYTES = 4 * 10**9
TEXT_TOKENS, ANSWER_TOKENS = 24, 4
CALIBRATION_SAMPLES = 64  # as many as Q-VLM takes

SPEC = JobSpec.model_validate(
    {
        "study": "llava",
        "model": {"source": "transformers", "name": "llava"},
        "data": {"source": "questions", "path": "questions.jsonl"},
        "quantizer": {"rounding": "nearest"},
        "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [8]},
    }
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a LLaVA-1.5: its decoder, and a CLIP ViT-L/14."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vision_layers: int = 24
    features: int = -2
    image_size: int = 336

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        return (self.image_size // PATCH) ** 2

    @property
    def used_vision_layers(self) -> int:
        """Vision layers that the features pass."""
        return self.vision_layers + 1 + self.features


LLAVA_13B = Shape("LLaVA-1.5-13B", 5120, 13824, 40, 40)
LLAVA_7B = Shape("LLaVA-1.5-7B", 4096, 11008, 32, 32)
STACK = replace(LLAVA_7B, name="2 layers of 7B", layers=2, vision_layers=1, features=-1)

Cells = Mapping[str, Sequence[Cell]]


def build(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> GenerativeModel:
    """The model with initial weights, which on the meta device take no memory."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=16,
        image_size=shape.image_size,
        patch_size=PATCH,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        eos_token_id=END,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=shape.image_tokens,
        vision_feature_layer=shape.features,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        model.to(dtype)  # type: ignore[arg-type]  # transformers hides torch's signature
    return llava_model(model, TextProcessor(_no_prompt, _no_answer, _no_text), frozenset({END}))


def _no_prompt(text: str, image: Image | None) -> Prompt:
    raise NotImplementedError("the benchmark draws its tokens")


def _no_answer(answer: str) -> Tensor:
    raise NotImplementedError("the benchmark draws its tokens")


def _no_text(tokens: Sequence[int]) -> str:
    raise NotImplementedError("the benchmark writes no answers")


class Table:
    """Rows of a Markdown table, printed as they come."""

    def __init__(self, title: str) -> None:
        click.echo(f"\n### {title}\n\n| quantity | value |\n|---|---|")

    def row(self, quantity: str, value: str) -> None:
        """Prints one row."""
        click.echo(f"| {quantity} | {value} |")


def synthetic_entropies(layers: Sequence[Layer], rng: np.random.Generator) -> list[LayerEntropy]:
    """Uniform entropies and dependencies; the layers of one input share theirs."""
    drawn: dict[str, tuple[float, float]] = {}
    found = []
    for layer in layers:
        if layer.kind is not LayerKind.EMBEDDING:
            if layer.source not in drawn:
                drawn[layer.source] = (float(rng.uniform()), float(rng.uniform()))
            found.append(LayerEntropy(layer.name, *drawn[layer.source]))
    return found


def synthetic_singles(
    layers: Sequence[Layer], rng: np.random.Generator
) -> dict[str, dict[Option, Cell]]:
    """Single-layer cells whose error is `weights * 4**-bits` times a log-normal factor a layer."""
    singles: dict[str, dict[Option, Cell]] = {}
    for layer in layers:
        factor = float(rng.lognormal(0.0, 1.0))
        block = Block(layer.name, layer.tower, (layer.name,))
        cells = {}
        for option in block_options(block, layers, SPEC.space, SPEC.quantizer):
            (precision,) = option.precisions
            noise = float(rng.lognormal(0.0, 0.1))
            error = factor * noise * layer.weights * 4.0**-precision.weight_bits
            cells[option] = Cell(
                layer.name,
                option,
                layer_nbytes(layer, precision, SPEC.quantizer),
                layer_bit_operations(layer, precision),
                error,
            )
        singles[layer.name] = cells
    return singles


def joint_cell(
    block: Block, option: Option, singles: Mapping[str, Mapping[Option, Cell]], factor: float
) -> Cell:
    """The sum of the layers' cells, the error times a factor."""
    parts = [
        singles[name][Option((precision,))]
        for name, precision in zip(block.layers, option.precisions, strict=True)
    ]
    return Cell(
        block.name,
        option,
        sum(part.nbytes for part in parts),
        sum(part.bit_operations for part in parts),
        factor * sum(part.error for part in parts),
    )


@dataclass(frozen=True, slots=True)
class Search:
    """A partition with its options and synthetic cells.

    Attributes:
        blocks: The blocks.
        options: All joint options.
        screened: Those that `profile.slack` leaves to be measured.
        joint: Those of them that are of several layers.
        cells: The undominated ones among those, by block.
    """

    blocks: tuple[Block, ...]
    options: int
    screened: int
    joint: int
    cells: Cells


def lay_out(model: LayeredModel, granularity: Granularity, seed: int) -> Search:
    """Partitions the model, lists its options, and draws an error for each that is measured."""
    rng = np.random.default_rng(seed)
    entropies = synthetic_entropies(model.layers, rng)
    singles = synthetic_singles(model.layers, rng)
    blocks = partition(model.layers, entropies, PartitionSpec(granularity=granularity))
    counted = screened = joint = 0
    cells = {}
    for block in blocks:
        options = block_options(block, model.layers, SPEC.space, SPEC.quantizer)
        kept = screen(block, options, singles, SPEC.profile.slack)
        factors = rng.lognormal(0.0, 0.1, len(kept)).tolist()
        drawn = [joint_cell(block, o, singles, f) for o, f in zip(kept, factors, strict=True)]
        cells[block.name] = undominated(drawn)
        counted += len(options)
        screened += len(kept)
        joint += len(kept) if len(block.layers) > 1 else 0
    return Search(blocks, counted, screened, joint, cells)


def timed(action: Callable[[], object], repeats: int, device: torch.device | None = None) -> float:
    """The median seconds of an action over some repeats."""
    seconds = []
    for _ in range(repeats):
        _finish(device)
        started_s = time.perf_counter()
        action()
        _finish(device)
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


def _finish(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_nbytes() -> int:
    """The most memory that the process has held so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_13b(seed: int, repeats: int) -> None:
    """Prints what a search of LLaVA-1.5-13B decides over, and how long deciding takes.

    Raises:
        ClickException: It took more memory than `MOST_MEMORY_NBYTES`, or a plan breaks its
            budget.
    """
    started_s = time.perf_counter()
    model = build(LLAVA_13B, torch.device("meta"), torch.float16, seed)
    built_s = time.perf_counter() - started_s
    weights = sum(layer.weights for layer in model.layers)
    full_nbytes = sum(configuration_nbytes(model, Configuration(Plan(())), SPEC.quantizer).values())
    table = Table(f"{LLAVA_13B.name}, on the meta device; synthetic entropies and errors")
    table.row("build and find the layers", f"{built_s:.1f} s")
    table.row("layers", f"{len(model.layers)}")
    for tower in dict.fromkeys(layer.tower for layer in model.layers):
        own = [layer for layer in model.layers if layer.tower is tower]
        count = sum(layer.weights for layer in own)
        table.row(f"layers of the {tower}", f"{len(own)}, {count:,} weights")
    table.row("weights that can be quantized", f"{weights:,}")
    table.row("elements that stay at 16 bits", f"{model.fixed_nbytes // 2:,}")
    table.row("bytes at FP16", f"{full_nbytes:,}")
    for granularity in (Granularity.ENTROPY, Granularity.TRANSFORMER_BLOCK):
        started_s = time.perf_counter()
        search = lay_out(model, granularity, seed)
        laid_out_s = time.perf_counter() - started_s
        sizes = [len(block.layers) for block in search.blocks]
        counts = ", ".join(f"{sizes.count(size)} of {size}" for size in sorted(set(sizes)))
        table.row(f"{granularity}: blocks (layers)", f"{len(sizes)} ({counts})")
        table.row(f"{granularity}: joint options", f"{search.options:,}")
        table.row(f"{granularity}: left by slack {SPEC.profile.slack}", f"{search.screened:,}")
        undominated_count = sum(map(len, search.cells.values()))
        table.row(f"{granularity}: undominated", f"{undominated_count:,}")
        table.row(f"{granularity}: partition, list, screen", f"{laid_out_s:.2f} s")
        _solve(table, granularity, search.cells, full_nbytes, model.fixed_nbytes, repeats)
    peak = peak_nbytes()
    table.row("peak host memory", f"{peak / 1e9:.2f} GB")
    if peak > MOST_MEMORY_NBYTES:
        raise click.ClickException(f"{peak:,} bytes of memory, more than {MOST_MEMORY_NBYTES:,}")


def _solve(
    table: Table,
    granularity: Granularity,
    cells: Cells,
    full_nbytes: int,
    fixed_nbytes: int,
    repeats: int,
) -> None:
    program = Program.of(cells)
    for ratio in RATIOS:
        budget = int(full_nbytes / ratio) - fixed_nbytes
        solution = program.solve(budget)
        solved_s = timed(lambda budget=budget: Program.of(cells).solve(budget), repeats)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        total = fixed_nbytes + solution.cost
        if total > full_nbytes / ratio:
            raise click.ClickException(f"{total:,} bytes are more than FP16/{ratio}")
        proven = "proven optimal" if solution.proven else "not proven"
        table.row(
            f"{granularity}: plan at FP16/{ratio}",
            f"{total:,} bytes ({full_nbytes / total:.4f}x), error {solution.error:.6g}, {proven}",
        )
        table.row(f"{granularity}: solve at FP16/{ratio}", f"{solved_s:.3f} s")
    budgets = budget_axis(program, BUDGETS)
    front_s = timed(lambda: Program.of(cells).proxy_front(budgets), repeats)
    proven_count = sum(solution.proven for solution in program.proxy_front(budgets))
    table.row(
        f"{granularity}: solve at {BUDGETS} budgets",
        f"{front_s:.3f} s, {proven_count} proven optimal",
    )


class RandomQuestions(Task):
    """One batch of questions about random images, drawn from a seed."""

    model: GenerativeModel

    def __init__(self, model: GenerativeModel, shape: Shape, samples: int, seed: int) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(3, IMAGE, (samples, TEXT_TOKENS), generator=generator)
        places = torch.full((samples, shape.image_tokens), IMAGE)
        answers = torch.randint(3, IMAGE, (samples, ANSWER_TOKENS), generator=generator)
        side = shape.image_size
        self._batch = QuestionBatch(
            torch.cat([text[:, :4], places, text[:, 4:]], dim=1),
            answers,
            torch.randn(samples, 3, side, side, generator=generator),
            None,
        )

    @property
    def class_count(self) -> int:
        """Zero: an answer is free text."""
        return 0

    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """The batch, whatever the split."""
        shapes = [(len(self._batch), ANSWER_TOKENS)]
        return (QuestionStream(self.model, name.value, shapes, lambda _: self._batch),)

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits at the answers' tokens."""
        (logits,) = outputs.values()
        return logits

    def split_identity(self, name: SplitName) -> str:
        """The split's name: nothing here is kept."""
        return name.value


def _block(model: LayeredModel, scope: str, parts: Sequence[str]) -> Block:
    names = tuple(f"{scope}.{part}.weight" for part in parts)
    tower = next(layer.tower for layer in model.layers if layer.name == names[0])
    return Block(scope, tower, names)


def time_profile(seed: int, repeats: int, samples: int) -> None:
    """Prints what a cell and a weight of 7B's width take, and what a whole profile would."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = STACK if device.type == "cuda" else replace(STACK, image_size=56)
    model = build(shape, device, dtype, seed)
    task = RandomQuestions(model, shape, samples, seed)
    switch = PlanSwitch(model, SPEC.quantizer, calibrate(task, (1.0,)))
    meter = CellMeter(task, switch, SPEC)
    tokens = shape.image_tokens + TEXT_TOKENS + ANSWER_TOKENS - 1
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table(
        f"Width of {LLAVA_7B.name}: {title}, {str(dtype)[6:]}, {torch.get_num_threads()} threads, "
        f"{samples} samples of {tokens} tokens, medians of {repeats}"
    )
    length = LLAVA_7B.image_tokens + tokens - shape.image_tokens
    if shape.image_size != LLAVA_7B.image_size:
        table.row(
            "images",
            f"{shape.image_size} x {shape.image_size} pixels; at {LLAVA_7B.image_size} a sample "
            f"has {length} tokens, so cells take about {length / tokens:.0f} times as long",
        )
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    decoder = "model.language_model.layers"
    cells = {
        "vision": _block(model, "model.vision_tower.encoder.layers.0", ("mlp.fc1", "mlp.fc2")),
        "first": _block(model, f"{decoder}.0", mlp),
        "last": _block(model, f"{decoder}.1", mlp),
    }
    seconds = {}
    for name, block in cells.items():
        option = Option((Precision(4, 8),) * len(block.layers))
        meter.measure(block, option)  # quantizes the weights, which the switch keeps
        seconds[name] = timed(lambda b=block, o=option: meter.measure(b, o), repeats, device)  # type: ignore[misc]  # mypy cannot infer a lambda's default
    table.row("one cell, vision layer (then 2 decoder layers)", f"{seconds['vision']:.3f} s")
    table.row("one cell, first decoder layer (2 layers run)", f"{seconds['first']:.3f} s")
    table.row("one cell, last decoder layer (1 layer runs)", f"{seconds['last']:.3f} s")
    rates = []
    precision = Precision(4, 8)
    for part in ("self_attn.q_proj", "mlp.up_proj"):
        weight = model.weight(f"{decoder}.0.{part}.weight")
        quantized_s = timed(
            lambda w=weight: fake_quantize_weight(w, precision, SPEC.quantizer),  # type: ignore[misc]  # mypy cannot infer a lambda's default
            repeats,
            device,
        )
        rows, columns = weight.shape
        table.row(f"one weight {rows} x {columns}, 4 bits, searched", f"{quantized_s:.3f} s")
        rates.append(quantized_s / weight.numel())
    _extrapolate(table, seconds, statistics.mean(rates), samples, seed)


def _extrapolate(
    table: Table, seconds: Mapping[str, float], weight_s: float, samples: int, seed: int
) -> None:
    """Prints the whole profile of 7B on samples of the same length, with the arithmetic.

    A cell runs from the block's own layer to the end where the activations before it are kept
    (then the mean over all layers counts), and through the whole model where they are not.
    """
    model = build(LLAVA_7B, torch.device("meta"), torch.float16, seed)
    search = lay_out(model, Granularity.ENTROPY, seed)
    singles = sum(
        len(
            block_options(
                Block(x.name, x.tower, (x.name,)), model.layers, SPEC.space, SPEC.quantizer
            )
        )
        for x in model.layers
    )
    measured = singles + search.joint
    weights = sum(layer.weights for layer in model.layers)
    widths = len(SPEC.space.weight_bits)
    quantize_s = widths * weights * weight_s
    vision_s = max(seconds["vision"] - seconds["first"], 0.0)
    layer_s = max(seconds["first"] - seconds["last"], 0.0)
    rest_s = max(seconds["last"] - layer_s, 0.0)
    table.row("one vision layer (vision - first; 0 if lost in noise)", f"{vision_s:.3f} s")
    table.row("one decoder layer (first - last)", f"{layer_s:.3f} s")
    table.row("all else after it (last - one decoder layer)", f"{rest_s:.3f} s")
    table.row(
        "cells of 7B",
        f"{measured:,} = {singles:,} of single layers + {search.joint:,} joint ones "
        f"(entropy granularity, slack {SPEC.profile.slack}, synthetic errors)",
    )
    table.row(
        "quantize every weight at every width",
        f"{quantize_s / 3600:.2f} h = {widths} widths x {weights:,} weights x "
        f"{weight_s * 1e9:.2f} ns",
    )
    runs = [_layers_run(layer, LLAVA_7B) for layer in model.layers]
    means = [statistics.mean(counts) for counts in zip(*runs, strict=True)]
    whole = [LLAVA_7B.used_vision_layers, LLAVA_7B.layers]
    for (seeing, telling), what in ((means, "activations kept"), (whole, "none kept")):
        cell_s = seeing * vision_s + telling * layer_s + rest_s
        total_s = measured * cell_s * CALIBRATION_SAMPLES / samples + quantize_s
        table.row(
            f"whole profile, {what}",
            f"{total_s / 3600:.2f} h = {measured:,} cells x {CALIBRATION_SAMPLES}/{samples} x "
            f"({seeing:.1f} vision layers x {vision_s:.3f} s + {telling:.1f} decoder layers x "
            f"{layer_s:.3f} s + {rest_s:.3f} s) + quantizing",
        )


def _layers_run(layer: Layer, shape: Shape) -> tuple[int, int]:
    """How many vision and decoder layers run for a cell of one layer."""
    number = layer.scope.rpartition(".")[2]
    place = int(number) if number.isdigit() else 0
    if layer.tower is Tower.VISION:
        return shape.used_vision_layers - place, shape.layers
    if layer.name == "lm_head.weight":
        return 0, 0
    return 0, shape.layers - place


@click.command()
@click.option("--seed", default=0, help="Of entropies, errors, weights and samples.")
@click.option("--repeats", default=3)
@click.option("--samples", default=2, help="Questions in a batch of the second part.")
def main(seed: int, repeats: int, samples: int) -> None:
    """Prints both tables."""
    describe_13b(seed, repeats)
    time_profile(seed, repeats, samples)


if __name__ == "__main__":
    main()
