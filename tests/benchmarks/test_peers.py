"""What peers are given, and the program on their scores."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlavaForConditionalGeneration

from benchmarks.peers.compare import nbytes
from benchmarks.peers.exchange import linear_layers, write_exchange
from benchmarks.peers.plans import least
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.vlm import load_model
from objectives.data.split_name import SplitName
from objectives.evaluation.families.registry import load_family


def llava_job() -> JobSpec:
    samples = {"calibration": 12, "tuning": 4, "selection": 4, "test": 4}
    return JobSpec.model_validate(
        {
            "study": "peers",
            "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
            "data": {"source": "reference", "samples": samples, "seed": 3},
        }
    )


def test_a_peer_reads_the_same_model_and_the_same_answers(tmp_path: Path) -> None:
    spec = llava_job()
    task = load_family(spec.data, load_model(spec.model)).task
    write_exchange(task, "digit-llava", tmp_path, tmp_path / "exchange")
    theirs = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "exchange" / "model", trust_remote_code=False, use_safetensors=True
    )
    batches = load_file(tmp_path / "exchange" / "calibration.safetensors")
    (stream,) = task.streams(SplitName.CALIBRATION)
    for number, length in enumerate(stream.rows):
        answers = batches[f"{number}.answers"]
        with torch.no_grad():
            given = {
                name: batches[f"{number}.{name}"]
                for name in ("input_ids", "pixel_values")
                if f"{number}.{name}" in batches
            }
            found = theirs(**given).logits[:, -answers.shape[1] - 1 : -1]
            expected = stream.run(number)
        assert found.flatten(0, 1).shape[0] == length
        torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_every_linear_module_but_a_tied_head_is_asked_for(tmp_path: Path) -> None:
    model = load_model(llava_job().model)
    named = linear_layers(model)
    modules = dict(model.module.named_modules())
    every = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    assert every - named.keys() == {"lm_head"}
    task = load_family(llava_job().data, model).task
    write_exchange(task, "digit-llava", tmp_path, tmp_path / "exchange")
    assert json.loads((tmp_path / "exchange" / "layers.json").read_text()) == list(named)
    weights = sum(modules[name].weight.numel() for name in named)
    groups = sum(modules[name].weight[:, ::32].numel() for name in named)
    assert nbytes(model, 4, 1) == weights / 2 + 3 * groups


@pytest.mark.parametrize("limit", [9.0, 14.0, 30.0])
def test_the_program_on_a_peers_scores_is_the_best_of_all_choices(limit: float) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 2, 1]
    groups = [
        {"layers": [f"m{n}"], "bits": [2, 4, 8], "scores": rng.random(3).tolist()} for n in range(3)
    ]
    names = {f"m{n}": f"l{n}" for n in range(3)}
    found = least(groups, sizes, limit, names)
    assert found.keys() == {"l0", "l1", "l2"}

    def score(choice: tuple[int, ...]) -> float:
        rows = zip(groups, choice, strict=True)
        return float(sum(group["scores"][group["bits"].index(bits)] for group, bits in rows))

    allowed = [
        choice
        for choice in product([2, 4, 8], repeat=3)
        if sum(size * bits for size, bits in zip(sizes, choice, strict=True)) <= limit
    ]
    chosen = tuple(found[f"l{n}"].weight_bits for n in range(3))
    assert chosen in allowed
    assert score(chosen) == pytest.approx(min(map(score, allowed)))
    assert all(isinstance(precision, Precision) for precision in found.values())
