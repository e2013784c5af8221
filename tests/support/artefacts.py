"""Evaluators and configurations that artefacts are built of."""

import json
import random
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, Precision
from bitfront.spec import JobSpec
from objectives.evaluation.evaluator import Evaluator
from tests.support.clip_models import (
    folder_spec,
    save_open_clip,
    save_pictures,
    save_transformers,
)
from tests.support.llava_models import BUILDS, Build, llava_spec, photo, save_llava

SAMPLES = {"calibration": 16, "tuning": 24, "selection": 24, "test": 16}


@cache
def evaluator(name: str, **quantizer: str) -> Evaluator:
    """Kept for all tests: its calibration is the same for all of them."""
    content = {
        "study": "packed",
        "model": {"source": "reference", "name": name, "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES},
        "space": {"clips": [1.0, 0.999]},
        "quantizer": {"scale_search": False, **quantizer},
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


def random_configuration(
    loaded: Evaluator, seed: int, recovery: Recovery | None, *, of: int = 1
) -> Configuration:
    """Every `of`-th layer with a format of its own; a tenth of them without one."""
    draw, quantizer = random.Random(seed), loaded.spec.quantizer
    plan = {}
    for layer in loaded.model.layers[::of]:
        inputs = ACTIVATION_BITS if quantizer.rounds(layer.kind) else (16,)
        bits, group = draw.choice(WEIGHT_BITS), draw.choice((0, 8, 24, 32))
        clip = draw.choice((1.0, 0.999))
        if draw.random() < 0.9:
            plan[layer.name] = Precision(bits, draw.choice(inputs), group, clip)
    return Configuration(Plan.of(plan), recovery)


def round_weights(model: Path) -> None:
    """Makes a model exact in 16 bits, so that what no plan changes is stored as it was measured."""
    for path in model.glob("*.safetensors"):
        halves = {name: tensor.half().float() for name, tensor in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})


def dual_encoder_folder(folder: Path, kind: str = "open_clip") -> JobSpec:
    """A model of one's own and pictures: open_clip's, or `clip` or `siglip` of transformers."""
    model = folder / "model"
    model.mkdir()
    source = "open_clip" if kind == "open_clip" else "transformers"
    if source == "open_clip":
        save_open_clip(model)
    else:
        save_transformers(kind, model)
    round_weights(model)
    pictures = folder / "pictures"
    save_pictures(pictures, {"one": 14, "two": 14})
    return JobSpec.model_validate(
        {
            "study": "own",
            "model": folder_spec(model, source).model_dump(),
            "data": {
                "source": "image_folder",
                "path": str(pictures),
                "samples": {"calibration": 8, "tuning": 4, "selection": 8, "test": 4},
            },
            "space": {"clips": [1.0, 0.999]},
            "quantizer": {"scale_search": False, "rounding": "nearest"},
        }
    )


def llava_folder(folder: Path, build: Build = BUILDS[0]) -> JobSpec:
    """A LLaVA of transformers with random weights, and questions about photos."""
    model = folder / "llava"
    model.mkdir()
    save_llava(model, build)
    (folder / "images").mkdir()
    lines = []
    for seed, answer in enumerate(("a red bird", "one", "two", "a cat") * 6):
        photo(seed).save(folder / "images" / f"{seed}.png")
        line = {"question": "what is there?", "answers": [answer], "image": f"images/{seed}.png"}
        lines.append(json.dumps(line))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return JobSpec.model_validate(
        {
            "study": "own",
            "model": llava_spec(model).model_dump(),
            "data": {
                "source": "questions",
                "path": str(folder / "questions.jsonl"),
                "samples": {"calibration": 8, "tuning": 4, "selection": 8, "test": 4},
                "batch_size": 4,
            },
            "space": {"clips": [1.0, 0.999]},
            "quantizer": {"scale_search": False, "rounding": "nearest"},
        }
    )
