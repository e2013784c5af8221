"""A LLaVA of half a billion parameters at a mixed plan: how small and how fast it is when built.

    OMP_NUM_THREADS=1 python -m benchmarks.large_llava --to openvino
    OMP_NUM_THREADS=1 python -m benchmarks.large_llava --to onnx
    OMP_NUM_THREADS=1 python -m benchmarks.large_llava --to packed
    OMP_NUM_THREADS=1 python -m benchmarks.large_llava --to compressed-tensors

The model has a CLIP of ViT-B/32's shape, a projector and a Llama decoder with random weights, and
is saved, loaded, calibrated, written and verified as `bitfront build` does it. The mixed plan gives
every layer 2, 4 or 8 bits, drawn from `--seed` so that a weight of the decoder has 4 bits in the
mean. Reading a prompt and writing a token are timed in turns, on one thread's processor time: the
plans in float32 and with inputs in groups, the model in 16 bits in the same runtime (OpenVINO in
bfloat16 too), and in torch in bfloat16 and float32. The processor's limits are measured in the same
process. torch and transformers have no kernel for inputs in groups: there the plan is the mixed one
alone.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import numpy as np
import psutil
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from bitfront.artefact.onnx.products import ROUNDED
from bitfront.artefact.runtime import packed_model
from bitfront.artefact.runtime.exported_model import FLOAT, Answerer, load
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from objectives.evaluation.compressed_models import write_compressed
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from objectives.evaluation.openvino_models import write_openvino
from objectives.evaluation.packed import write_packed
from objectives.evaluation.verification import verify

WORDS: Final = ("<pad>", "<s>", "<unk>", "</s>", "<image>", "what", "is", "there", "?")
VOCABULARY: Final = 8192
SIDE: Final = 224
PATCH: Final = 32
STEPS: Final = 16
PICTURES: Final = 12
WIDTHS: Final = (2, 4, 8)
VISION: Final[dict[str, Any]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}

GROUPED: Final = {32: "groups of 32", 128: "groups of 128"}
"""The names of the plans whose inputs are rounded in groups of so many columns."""
RUNTIMES: Final = ("openvino", "onnx")
"""Those with kernels for integers."""

TORCH: Final = {"torch": torch.bfloat16, "torch float32": torch.float32}

Call = Callable[[], object]


def save(folder: Path, seed: int) -> int:
    """Saves the model with its processor, and a data set; how many parameters the decoder has."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=False),
        image_token_index=WORDS.index("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5
                parameter.normal_(0, scale, generator=generator)
            elif "norm" not in name:
                parameter.normal_(0, 0.1, generator=generator)
    decoder = (model.model.language_model, model.lm_head)
    count: int = sum(p.numel() for part in decoder for p in part.parameters())
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]  # transformers hides torch's
    processor(SIDE, PATCH, VOCABULARY).save_pretrained(folder)
    (folder / "pictures").mkdir()
    draw = np.random.default_rng(seed)
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(PICTURES):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
            row = {"image": f"pictures/{number}.png", "question": "what is there ?"}
            file.write(json.dumps({**row, "answers": ["word7"]}) + "\n")
    return count


def processor(side: int, patch: int, vocabulary: int) -> LlavaProcessor:
    """What belongs to a LLaVA whose words are `WORDS` and made-up ones."""
    codes = {word: code for code, word in enumerate(WORDS)}
    codes |= {f"word{code}": code for code in range(len(WORDS), vocabulary)}
    known = Tokenizer(WordLevel(codes, unk_token="<unk>"))
    known.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # theirs
        tokenizer_object=known,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    crop = {"height": side, "width": side}
    return LlavaProcessor(  # type: ignore[no-untyped-call]  # theirs
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def job(
    folder: Path, activations: str, group: int = 32, target: str = "openvino"
) -> dict[str, Any]:
    """What is said of the saved model, with symmetric weights."""
    return {
        "study": "large",
        "model": {"source": "transformers", "name": str(folder), "device": "cpu"},
        "data": {
            "source": "questions",
            "path": str(folder / "questions.jsonl"),
            "prompt": "<image> {}",
            "samples": {"calibration": 4, "tuning": 1, "selection": 4, "test": 1},
            "batch_size": 2,
            "answer_tokens": 2,
        },
        "quantizer": {
            "scheme": "symmetric",
            "rounding": "nearest",
            "scale_search": False,
            "activations": activations,
            "activation_group": group,
        },
        "target": "gguf" if target == "gguf" else "any",
    }


def evaluator(
    folder: Path, activations: str, group: int = 32, target: str = "openvino"
) -> Evaluator:
    """The saved model with symmetric weights, calibrated."""
    return Evaluator.from_spec(JobSpec.model_validate(job(folder, activations, group, target)))


def mixed(kept: Evaluator, inputs: int, seed: int) -> Configuration:
    """2, 4 or 8 bits for every layer: 4 a weight in the mean, of the decoder and of the rest."""
    draw, chosen = Random(seed), {}
    for is_decoder in (False, True):
        layers = [x for x in kept.model.layers if ("language_model" in x.name) is is_decoder]
        wanted = 4 * sum(layer.weights for layer in layers)
        widths: dict[str, int] = {}
        for _ in range(100_000):  # the draw that comes nearest to the mean from below
            widths = {layer.name: draw.choice(WIDTHS) for layer in layers}
            found = sum(layer.weights * widths[layer.name] for layer in layers)
            if 0.98 * wanted <= found <= wanted:
                break
        for layer in layers:
            rounds = layer.kind is not LayerKind.EMBEDDING
            chosen[layer.name] = Precision(widths[layer.name], inputs if rounds else 16)
    return Configuration(Plan.of(chosen))


def build(kept: Evaluator, chosen: Configuration, target: str, folder: Path, name: str) -> None:
    """Writes an artefact, verifies it, and says what was found."""
    folder.mkdir()
    WRITERS[target](kept, chosen, folder, {})
    found = verify(kept, chosen, folder, kept.evaluate(chosen).values["error"], target)
    models = sum(p.stat().st_size for p in folder.iterdir() if p.suffix not in (".py", ".json"))
    click.echo(
        f"{target} {name}: largest {found.largest_difference:.2g} mean {found.mean_difference:.2g} "
        f"of {found.spread:.3g}, same {100 * found.same_predictions:.1f} %, nbytes "
        f"{found.tensors_nbytes:,}, models {models:,}, resident {found.resident_nbytes:,}"
    )


WRITERS: Final[dict[str, Callable[..., object]]] = {
    "openvino": write_openvino,
    "onnx": partial(write_onnx, accuracy_level=ROUNDED),
    "packed": write_packed,
    "compressed-tensors": write_compressed,
}


def _opened(folder: Path, dtype: str = FLOAT) -> Answerer:
    model = load(folder, 1, dtype)
    assert isinstance(model, Answerer)
    model.ends = frozenset()
    return model


def packed_writer(
    folder: Path, tokens: torch.Tensor, pixels: torch.Tensor, *, unpack: bool = False
) -> Callable[[int], object]:
    """A packed checkpoint, which writes so many tokens."""
    model = packed_model.load(folder, unpack=unpack)
    assert isinstance(model, packed_model.Answerer)
    model.architecture.ends = frozenset()
    return partial(model.generate, tokens, pixels, None)


def transformers_writer(
    folder: Path, tokens: torch.Tensor, pixels: torch.Tensor
) -> Callable[[int], object]:
    """A checkpoint of transformers, which writes so many tokens."""
    sys.path.insert(0, str(folder))
    model = import_module("transformers_model").load(folder)
    sys.path.pop(0)
    model.ends = frozenset()
    return partial(model.generate, tokens, pixels)


def in_torch(
    folder: Path, tokens: torch.Tensor, pixels: torch.Tensor, dtype: torch.dtype
) -> Callable[[int], object]:
    """The model in torch, in a dtype, which writes so many tokens."""
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)

    def write(limit: int) -> object:
        given: dict[str, Any] = {"input_ids": tokens, "pixel_values": pixels.to(dtype)}
        with torch.inference_mode():
            for _ in range(limit):
                found = model(**given, use_cache=True)
                chosen = found.logits[:, -1:].argmax(dim=-1)
                given = {"input_ids": chosen, "past_key_values": found.past_key_values}
        return given

    return write


def tell_times(writers: dict[str, Callable[[int], object]], repeats: int, bases: list[str]) -> None:
    """Runs all in turns; says each one's milliseconds for a prompt and for a token."""
    prompt: dict[str, list[float]] = {name: [] for name in writers}
    token: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(repeats + 1):  # the first one warms up
        for name, write in writers.items():
            seconds = [_seconds(partial(write, limit)) for limit in (1, 1 + STEPS)]
            prompt[name].append(seconds[0])
            token[name].append((seconds[1] - seconds[0]) / STEPS)
    for stage, found in (("prompt", prompt), ("token", token)):
        for name, own in found.items():
            told = [f"{stage} {name}: {1000 * statistics.median(own[1:]):.1f} ms"]
            for base in bases:
                pairs = zip(found[base][1:], own[1:], strict=True)
                ratios = sorted(of / one for of, one in pairs)
                told.append(
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times "
                    f"as fast as {base}"
                )
            click.echo(", ".join(told))


def _seconds(call: Call) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def tell_limits() -> None:
    """What the processor reads, and multiplies in bytes and in bfloat16, on one thread."""
    large = np.ones(256 << 20, np.uint8).view(np.uint64)
    seconds = [_seconds(partial(np.bitwise_or.reduce, large)) for _ in range(7)]
    click.echo(f"reads {large.nbytes / statistics.median(seconds) / 1e9:.1f} GB/s")
    torch.set_num_threads(1)
    side, columns = 512, 4096
    for dtype in (torch.bfloat16, torch.float32, torch.int8):
        left = torch.ones(side, columns).to(dtype)
        right = torch.ones(columns, side).to(dtype)
        product = torch._int_mm if dtype is torch.int8 else torch.mm  # noqa: SLF001
        seconds = [_seconds(partial(product, left, right)) for _ in range(7)]
        rate = 2 * side * side * columns / statistics.median(seconds) / 1e9
        click.echo(f"multiplies {rate:.0f} billion operations a second in {dtype}")


@click.command()
@click.option("--to", "target", type=click.Choice(list(WRITERS)), default="openvino")
@click.option("--repeats", default=9, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(target: str, repeats: int, seed: int) -> None:
    """Build, verify and time."""
    tell_limits()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        folder.mkdir()
        click.echo(f"the decoder has {save(folder, seed):,} parameters")
        kept = evaluator(folder, "static")
        build(kept, Configuration(Plan(())), target, Path(made) / "full", "16 bits")
        build(kept, mixed(kept, 16, seed), target, Path(made) / "mixed", "mixed")
        del kept
        gc.collect()
        if target in RUNTIMES:
            for group, name in GROUPED.items():
                kept = evaluator(folder, "grouped", group)
                grouped = mixed(kept, 8, seed)
                build(kept, grouped, target, Path(made) / name, f"mixed, inputs in {name}")
                del kept
                gc.collect()
        prompt = [1, *[WORDS.index("<image>")] * (SIDE // PATCH) ** 2, 5, 6, 7, 8]
        tokens, pixels = (
            np.array([prompt]),
            np.random.default_rng(seed).normal(size=(1, 3, SIDE, SIDE)),
        )
        pixels = pixels.astype(np.float32)
        given = torch.from_numpy(tokens), torch.from_numpy(pixels)
        writers: dict[str, Callable[[int], object]] = {}
        grouped_names = GROUPED.values() if target in RUNTIMES else ()
        for name in ("full", "mixed", *grouped_names):
            if target in RUNTIMES:
                writers[name] = partial(_opened(Path(made) / name).generate, tokens, pixels)
            elif target == "packed":
                writers[name] = packed_writer(Path(made) / name, *given)
            else:
                writers[name] = transformers_writer(Path(made) / name, *given)
        if target == "packed":
            writers["mixed, unpacked"] = packed_writer(Path(made) / "mixed", *given, unpack=True)
        bases = ["full", *TORCH]
        if target == "openvino":
            writers["bfloat16"] = partial(
                _opened(Path(made) / "full", "bf16").generate, tokens, pixels
            )
            bases.append("bfloat16")
        for name, dtype in TORCH.items():
            writers[name] = in_torch(folder, *given, dtype)
        tell_times(writers, repeats, bases)
        click.echo(f"{psutil.Process().memory_info().rss / 1e9:.1f} GB in the end")


if __name__ == "__main__":
    main()
