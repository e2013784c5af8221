"""A decoder of half a billion parameters in llama.cpp: bytes, memory and time beside 16 bits.

    python -m benchmarks.gguf --seed 0

Random weights. The mix gives the layers 2, 3, 4, 5, 6 and 8 bits in turn. Both files are loaded
in one process and timed in turns, with one thread: medians of the repeats' ratios.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.gguf.files import DECODER, read_files
from bitfront.artefact.runtime.llava import Llava
from bitfront.artefact.runtime.serve import resident_nbytes
from bitfront.precision import Precision
from bitfront.quant.packing import packed_weight
from bitfront.spec import QuantizerSpec

WIDTHS = (2, 3, 4, 5, 6, 8)
TEXT: Mapping[str, Any] = {
    "vocabulary": 32064,
    "width": 1536,
    "hidden": 4096,
    "heads": 12,
    "groups": 12,
    "head_width": 128,
    "layers": 16,
    "eps": 1e-5,
    "theta": 10000.0,
}
VISION: Mapping[str, Any] = {
    "width": 32,
    "hidden": 32,
    "heads": 1,
    "layers": 1,
    "patch": 8,
    "positions": 10,
    "eps": 1e-5,
}
CONFIG: Mapping[str, Any] = {
    "text": TEXT,
    "vision": VISION,
    "tied": False,
    "preprocessing": {"size": [24, 24], "mean": [0.5], "std": [0.5]},
}
PROMPT, STEPS = 128, 16
QUANTIZER = QuantizerSpec(scheme="symmetric", scale_search=False)


def write(plan: str, folder: Path, seed: int) -> tuple[int, float]:
    """Writes a decoder of random weights: its tensors' bytes, and the mean width of a weight."""
    with torch.device("meta"):
        module = Llava(dict(CONFIG))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    bits = weights = 0
    for name, parameter in module.named_parameters():
        if not name.startswith(("model.language_model", "lm_head")):
            continue
        if parameter.ndim == 1:
            tensors[name] = torch.ones(parameter.shape, dtype=torch.float16)
            continue
        width = WIDTHS[len(entries) % len(WIDTHS)] if plan == "mix" else 16
        weight = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
        own = packed_weight(weight, Precision(width), QUANTIZER)
        entries[name] = {
            "weight_bits": width,
            "group": 0,
            "shape": list(parameter.shape),
            "modules": [name.removesuffix(".weight")],
            "tensors": [f"{name}.{part}" for part in own],
        }
        tensors |= {f"{name}.{part}": tensor for part, tensor in own.items()}
        bits += width * weight.numel()
        weights += weight.numel()
    files = read_files(CONFIG, entries, tensors)
    files.write(CONFIG, 2048, folder)
    click.echo(f"{plan}: {weights:,} weights of {bits / weights:.2f} bits in the mean")
    return files.nbytes, bits / weights


def opened(path: Path) -> Any:  # noqa: ANN401  # of a module that travels
    """llama.cpp's decoder of a file, with one thread."""
    sys.path.insert(0, str(RUNTIME))
    return import_module("gguf_model").Decoder(path, 1)


def held_nbytes(path: Path) -> int:
    """The memory that a decoder takes beside its mapped file, in a process of its own."""
    import_module("xllamacpp")
    before = resident_nbytes()
    decoder = opened(path)
    decoder.feed(np.zeros(PROMPT, np.int32), 1)
    return resident_nbytes() - before


def timed(decoder: Any, seed: int) -> tuple[float, float]:  # noqa: ANN401  # of a module that travels
    """Seconds of a prompt, and of each token after it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TEXT["vocabulary"], PROMPT, dtype=np.int32)
    decoder.start(PROMPT + STEPS)
    prompt_s = seconds(lambda: decoder.feed(tokens, 1))
    token_s = seconds(lambda: [decoder.feed(tokens[:1], 1) for _ in range(STEPS)])
    return prompt_s, token_s / STEPS


def seconds(call: Callable[[], object]) -> float:
    """Of a call, by the processor: other work on the machine counts little."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--repeats", default=7, show_default=True)
def main(seed: int, repeats: int) -> None:
    """Measure the mix beside 16 bits."""
    with tempfile.TemporaryDirectory() as made:
        decoders = {}
        for plan in ("16 bits", "mix"):
            folder = Path(made) / plan
            folder.mkdir()
            nbytes, _ = write(plan, folder, seed)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                held = fresh.submit(held_nbytes, folder / DECODER).result()
            decoders[plan] = opened(folder / DECODER)
            size = (folder / DECODER).stat().st_size
            click.echo(f"{plan}: tensors {nbytes:,}, file {size:,} (mapped), beside it {held:,}")
        times: dict[str, list[tuple[float, float]]] = {plan: [] for plan in decoders}
        for _ in range(repeats + 1):
            for plan, decoder in decoders.items():
                times[plan].append(timed(decoder, seed))
        for place, what in enumerate((f"a prompt of {PROMPT}", "a token")):
            full, own = ([pair[place] for pair in times[plan][1:]] for plan in ("16 bits", "mix"))
            shares = sorted(one / of for one, of in zip(full, own, strict=True))
            click.echo(
                f"{what}: {statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) "
                f"times as fast as the {1000 * statistics.median(full):.3g} ms of 16 bits"
            )


if __name__ == "__main__":
    main()
