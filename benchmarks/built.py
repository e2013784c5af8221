"""What each target makes of each model: parity, size, memory, and times beside full precision.

    OMP_NUM_THREADS=1 BITFRONT_RUNTIME_THREADS=1 python -m benchmarks.built --model ViT-B-32 \
        --to packed --to onnx --seed 0

Each artefact is written and verified as `bitfront build` does it, in a process of its own where the
model at full precision takes turns with it, with one thread's processor time. ViT-B-32 is a whole
CLIP of that shape, and large-llava the one of `benchmarks.large_llava`; both have random weights.
The plan is the target's own: integer kernels where it has them (static inputs for towers, inputs in
groups for decoders), and otherwise widths that are drawn from 2, 4 and 8 bits, 4 in the mean. A row
says for each artefact: largest and mean difference, of the logits' spread; equal predictions; error
in the runtime, and measured; `nbytes`, the models' files, memory; milliseconds, and how many times
as fast it is as each form of full precision.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

import click
import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import large_llava
from benchmarks.large_llava import mixed
from benchmarks.onnx_models import configuration
from benchmarks.runtimes import bundled
from bitfront.errors import BitfrontError
from bitfront.plan import Configuration, Plan
from bitfront.spec import JobSpec
from objectives.evaluation import artefact_process, verification
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.verification import Verification, verify
from service.study.build import writer

MODELS: Final = ("digit-clip", "digit-llava", "ViT-B-32", "large-llava")
TARGETS: Final = ("packed", "onnx", "openvino", "compressed-tensors", "gguf")
INTEGER: Final = ("onnx", "openvino")
GROUPS: Final = {"onnx": 128, "openvino": 32}
SIDE: Final = 224
PICTURES: Final = 12


def save_clip(folder: Path, seed: int) -> None:
    """Saves a CLIP of ViT-B/32's shape with random weights, and pictures of two classes."""
    torch.manual_seed(seed)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    halves = {name: value.half().float().contiguous() for name, value in model.state_dict().items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32")}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    draw = np.random.default_rng(seed)
    for name in ("one", "two"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(PICTURES):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")


def clip_evaluator(folder: Path) -> Evaluator:
    """The saved CLIP with symmetric weights and static inputs, calibrated."""
    content = {
        "study": "built",
        "model": {"source": "open_clip", "name": f"local-dir:{folder}", "device": "cpu"},
        "data": {
            "source": "image_folder",
            "path": str(folder / "pictures"),
            "samples": {"calibration": 8, "tuning": 2, "selection": 8, "test": 2},
            "batch_size": 4,
        },
        "quantizer": {"scheme": "symmetric", "rounding": "nearest", "scale_search": False},
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


def loaded(model: str, target: str, folder: Path, seed: int) -> Evaluator:
    """The model's evaluator, with inputs as the target's plan wants them."""
    answers = model.endswith("llava")
    activations = "grouped" if target in INTEGER and answers else "static"
    if model.startswith("digit"):
        return bundled(model, target, activations)
    folder.mkdir()
    if model == "ViT-B-32":
        save_clip(folder, seed)
        return clip_evaluator(folder)
    large_llava.save(folder, seed)
    return large_llava.evaluator(folder, activations, GROUPS.get(target, 32), target)


def chosen(kept: Evaluator, model: str, target: str, seed: int) -> Configuration:
    """The target's plan."""
    if target not in INTEGER:
        return mixed(kept, 16, seed)
    return mixed(kept, 8, seed) if model == "large-llava" else configuration(kept, "w4a8", 0)


def told(found: Verification, models: int) -> str:
    """A row of what was found."""
    times = {f"batch {size}": s for size, s in found.latency_s.items()}
    if found.token_s is not None:
        times["token"] = found.token_s
    parts = [
        f"{found.largest_difference:.2g}",
        f"{found.mean_difference:.2g} of {found.spread:.3g}",
        f"{100 * found.same_predictions:.1f} %",
        f"{100 * found.error:.2f} % ({100 * found.measured_error:.2f})",
        f"{found.tensors_nbytes:,}",
        f"{models:,}",
        f"{found.resident_nbytes / 1e6:.1f} MB",
        ", ".join(f"{name}: {1000 * s:.3g} ms" for name, s in times.items()),
    ]
    for one in found.references:
        ratios = [
            f"{figure}: {x.median:.2f} ({x.low:.2f} to {x.high:.2f})"
            for figure, x in one.speedup.items()
        ]
        parts.append(f"{one.dtype}: {', '.join(ratios)}")
    parts.append(f"repeats {dict(found.repeats)}")
    return " | ".join(parts)


def measured(model: str, target: str, made: Path, seed: int) -> str:
    """Builds and verifies a model for a target."""
    kept = loaded(model, target, made / "source", seed)
    write = writer(target, accuracy_level=4)
    plan = chosen(kept, model, target, seed)
    folder = made / "model"
    folder.mkdir()
    write(kept, plan, folder, {})
    reference = partial(_full, kept, target)
    error = kept.evaluate(plan).values["error"]
    found = verify(kept, plan, folder, error, target, reference)
    files = [p.stat().st_size for p in folder.iterdir() if p.suffix not in (".py", ".json")]
    return told(found, sum(files))


def _full(kept: Evaluator, target: str, folder: Path) -> Mapping[str, object]:
    card = writer(target, accuracy_level=4)(kept, Configuration(Plan(())), folder, {})
    nbytes = sum(p.stat().st_size for p in folder.iterdir() if p.suffix not in (".py", ".json"))
    click.echo(f"full precision, {target}: models {nbytes:,}")
    return card


@click.command()
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, required=True)
@click.option("--to", "targets", type=click.Choice(TARGETS), multiple=True, default=TARGETS)
@click.option("--seed", default=0, show_default=True)
def main(models: tuple[str, ...], targets: tuple[str, ...], seed: int) -> None:
    """Build, verify and time."""
    for model in models:
        sizes = (1,) if model == "large-llava" else (1, 32)
        for target in targets:
            with (
                tempfile.TemporaryDirectory() as made,
                mock.patch.object(verification, "_TIMED_BATCHES", sizes),
                mock.patch.object(artefact_process, "_MOST_S", 3600.0),  # seven repeats in any case
            ):
                try:
                    row = measured(model, target, Path(made), seed)
                except BitfrontError as error:
                    row = f"not possible: {error}"
            click.echo(f"{model} | {target} | {row}")


if __name__ == "__main__":
    main()
