"""Plans by ModelOpt's `auto_quantize`; runs in its environment, without bitfront.

    python -m benchmarks.peers.auto_quantize FOLDER METHOD BITS,BITS,... BUDGET,BUDGET,...

FOLDER is what `exchange` wrote; METHOD is gradient or kl_div. `METHOD.json` in the folder gets the
plan at each budget (effective bits of the layers' weights), the scores with their groups, how many
samples went forward and backward, and the seconds. Weights are symmetric, with one scale a row.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.algorithms import QuantRecipe
from modelopt.torch.quantization.model_quant import auto_quantize
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.reading import Batch, Model, read_exchange

BATCH = 16
State = Any  # what auto_quantize returns of its search


def read(folder: Path) -> tuple[Model, list[Batch]]:
    """The model, and its samples in batches of at most `BATCH`, with their answers."""
    model, whole = read_exchange(folder)
    parts = []
    for batch in whole:
        size = len(batch["answers"])
        for start in range(0, size, BATCH):
            rows = slice(start, start + BATCH)
            parts.append({n: t[rows] if len(t) == size else t for n, t in batch.items()})
    return model, parts


def logits(model: Model, batch: Batch) -> Tensor:
    """The logits of each image's classes, or of each token of the answers."""
    given = {name: tensor for name, tensor in batch.items() if name != "answers"}
    found = model(**given)
    if "logits_per_image" in found:
        scores: Tensor = found.logits_per_image
        return scores
    answers = batch["answers"].shape[1]
    tokens: Tensor = found.logits[:, -answers - 1 : -1]
    return tokens


def loss(output: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy of the right answers."""
    return functional.cross_entropy(output.flatten(0, -2), batch["answers"].flatten())


def main(folder: Path, method: str, bits: Sequence[int], budgets: Sequence[float]) -> None:
    """Scores once, and solves for every budget."""
    model, batches = read(folder)
    layers = json.loads((folder / "layers.json").read_text())
    left = [
        name
        for name, module in model.named_modules()
        if name not in layers and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    formats: list[dict[str, Any] | str] = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {
                    "quantizer_name": "*weight_quantizer",
                    "cfg": {"num_bits": width, "axis": 0},
                    "enable": True,
                },
            ],
            "algorithm": "max",
        }
        for width in bits
    ]
    forward = 0

    def count(_model: Model, _args: object, given: Batch) -> None:
        nonlocal forward
        forward += len(given.get("pixel_values", given["input_ids"]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    started_s = time.process_time()
    model, state = auto_quantize(
        model,
        constraints={"effective_bits": 8.0},  # solved again for each budget
        quantization_formats=formats,
        data_loader=batches,
        forward_step=logits,
        loss_func=loss,
        disabled_layers=left,
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=method,
    )
    seconds = time.process_time() - started_s
    stats = state["candidate_stats"]
    found = {
        "seconds": seconds,
        "samples": forward,
        "plans": {
            str(budget): _plan(state, _effective(budget, stats, layers)) for budget in budgets
        },
        "groups": [
            {
                "layers": one["module_names"],
                "bits": [_bits(recipe) for recipe in one["formats"]],
                "scores": [float(score) for score in one["scores"]],
            }
            for one in stats.values()
        ],
    }
    (folder / f"{method}.json").write_text(json.dumps(found))


def _bits(recipe: QuantRecipe) -> int:
    return 16 if recipe == QuantRecipe(quant_cfg=None) else recipe.num_bits


def _effective(budget: float, stats: State, layers: Sequence[str]) -> float:
    """The effective bits of the whole model that leave so many to each searched weight."""
    sizes = {tuple(one["module_names"]): one["uncompressed_cost"] for one in stats.values()}
    searched = sum(size for names, size in sizes.items() if names[0] in layers)
    whole = sum(sizes.values())
    return float((budget * searched + 16 * (whole - searched)) / whole)


def _plan(state: State, budget: float) -> dict[str, int]:
    """The width of each layer; what is not named stays in 16 bits."""
    config = mtq.get_auto_quantize_config(state, {"effective_bits": budget})
    suffix = ".weight_quantizer"
    return {
        entry["quantizer_name"].removesuffix(suffix): entry["cfg"]["num_bits"]
        for entry in config["quant_cfg"]
        if entry["quantizer_name"].endswith(suffix) and entry.get("enable") and "cfg" in entry
    }


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        [int(text) for text in sys.argv[3].split(",")],
        [float(text) for text in sys.argv[4].split(",")],
    )
