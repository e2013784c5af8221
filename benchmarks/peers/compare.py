"""Weights of one width in groups, as bitfront and as others quantize them, by one evaluator.

    for name in hqq llmcompressor modelopt nncf; do
        python3.11 -m venv peers/$name
        peers/$name/bin/pip install -r benchmarks/peers/requirements-$name.txt
    done
    OMP_NUM_THREADS=1 python -m benchmarks.peers.compare --environments peers --out compare.json

Every `nn.Linear` has codes, and nothing else has; inputs stay in 16 bits. All get the same
calibration samples, which the seed draws, and the same held-out ones judge them. What `--out`
already holds is not run again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

import click
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.p4q import interval
from benchmarks.peers.calling import call_peer
from benchmarks.peers.exchange import MODELS, linear_layers, write_exchange
from benchmarks.rounding import PICTURES
from benchmarks.three_models import prepare, sections
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.vlm import LayeredModel, load_model
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.registry import load_family
from objectives.profiling.calibration import calibrate

GROUP: Final = 32
BITS: Final = (2, 3, 4)


@dataclass(frozen=True)
class Peer:
    """How a method is called, and what its codes take.

    Attributes:
        environment: The virtual environment that it runs in.
        scheme: Of its levels.
        zero_nbytes: What it stores as the zero point of a group.
        bits: The widths that it has.
    """

    environment: str
    scheme: str
    zero_nbytes: int
    bits: tuple[int, ...] = BITS


PEERS: Final = {
    "hqq": Peer("hqq", "asymmetric", 2),
    "quanto": Peer("hqq", "asymmetric", 2, (2, 4)),
    "llmcompressor-rtn": Peer("llmcompressor", "asymmetric", 1),
    "llmcompressor-gptq": Peer("llmcompressor", "asymmetric", 1),
    "modelopt-max": Peer("modelopt", "symmetric", 0),
    "modelopt-mse": Peer("modelopt", "symmetric", 0),
    "modelopt-awq": Peer("modelopt", "symmetric", 0),
    "modelopt-gptq": Peer("modelopt", "symmetric", 0),
    "nncf-scale": Peer("nncf", "asymmetric", 1, (4,)),
}
OWN: Final = {
    f"bitfront, {rounding}, {scheme}": (rounding, scheme)
    for scheme in ("asymmetric", "symmetric")
    for rounding in ("nearest", "auto")
}


@dataclass(frozen=True)
class Figures:
    """What a method brought at one width.

    Attributes:
        nbytes: Of the codes with their scales and zero points.
        accuracy: In per cent of the test samples.
        divergence: From full precision, in nats a sample.
        seconds: Processor time of the quantizer, its calibration passes included.
    """

    nbytes: float
    accuracy: float
    divergence: float
    seconds: float


def job(model: str, seed: int, test: int, shapes: Path, rounding: str, scheme: str) -> JobSpec:
    """A job with samples of a seed."""
    samples = {"calibration": 128, "tuning": 4, "selection": 64, "test": test}
    return JobSpec.model_validate(
        {
            "study": "peers",
            **sections(model, shapes, samples, seed),
            "quantizer": {"rounding": rounding, "scheme": scheme},
            "space": {"groups": [GROUP], "activation_bits": [16]},
        }
    )


def nbytes(model: LayeredModel, bits: int, zero_nbytes: int) -> float:
    """What the linear layers take, with a float16 scale a group."""
    named = set(linear_layers(model).values())
    layers = [layer for layer in model.layers if layer.name in named]
    codes = sum(layer.rows * layer.columns for layer in layers) * bits / 8
    groups = sum(layer.rows * -(-layer.columns // GROUP) for layer in layers)
    return codes + groups * (2 + zero_nbytes)


def judged(spec: JobSpec, bits: int, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """What a model is worth with those weights in the place of its own, by layer name."""
    model = load_model(spec.model)
    family = load_family(spec.data, model)
    evaluator = Evaluator(spec, family, calibrate(family.task, [1.0]), cache_nbytes=0)
    plan = Plan.uniform(list(weights), Precision(bits, group=GROUP))

    def given(layer: str, _precision: Precision) -> Tensor:
        weight = weights[layer]
        assert weight.shape == model.weight(layer).shape
        return weight

    with patch.object(evaluator.switch, "fake_quantized_weight", given):
        return dict(evaluator.evaluate(Configuration(plan), SplitName.TEST).metrics)


def own(spec: JobSpec, bits: int) -> Figures:
    """What bitfront makes of the same layers."""
    started_s = time.process_time()
    evaluator = Evaluator.from_spec(spec)
    names = list(linear_layers(evaluator.model).values())
    plan = Plan.uniform(names, Precision(bits, group=GROUP))
    evaluator.switch.to(plan)
    seconds = time.process_time() - started_s
    found = evaluator.evaluate(Configuration(plan), SplitName.TEST).metrics
    zero = 1 if spec.quantizer.scheme == "asymmetric" else 0
    size = nbytes(evaluator.model, bits, zero)
    return Figures(size, 100 * (1 - found["error"]), found["divergence"], seconds)


def call(folder: Path, environment: Path, wanted: Sequence[tuple[str, int]]) -> None:
    """Lets peers of one environment quantize the model of an exchange folder."""
    jobs = [f"{name}:{bits}:{PEERS[name].scheme}" for name, bits in wanted]
    call_peer(environment, "quantize", folder, [str(GROUP), *jobs])


def theirs(spec: JobSpec, name: str, bits: int, folder: Path) -> Figures | str:
    """What a peer made of the layers; what it said where it failed."""
    written = folder / f"{name}-{bits}.safetensors"
    if not written.exists():
        return written.with_suffix(".txt").read_text()
    model = load_model(spec.model)
    names = linear_layers(model)
    with safe_open(written, "pt") as file:
        seconds = float(file.metadata()["seconds"])
        weights = {names[key]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    found = judged(spec, bits, weights)
    size = nbytes(model, bits, PEERS[name].zero_nbytes)
    return Figures(size, 100 * (1 - found["error"]), found["divergence"], seconds)


def table(known: Mapping[str, object], model: str, bits: int) -> str:
    """A row a method: means over the seeds with 95 % intervals."""
    lines = ["| method | bytes | accuracy in % | divergence | seconds |", "|---" * 5 + "|"]
    for name in [*OWN, *PEERS]:
        runs = [
            run
            for key, run in known.items()
            if key.split("/")[:3] == [model, str(bits), name] and isinstance(run, dict)
        ]
        if runs:
            nats = interval([1000 * run["divergence"] for run in runs])
            accuracy = interval([run["accuracy"] for run in runs])
            seconds = float(np.mean([run["seconds"] for run in runs]))
            cells = [name, f"{runs[0]['nbytes']:,.0f}", accuracy, nats, f"{seconds:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--environments", type=click.Path(path_type=Path), required=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--methods", default=";".join([*OWN, *PEERS]), help="Separated by semicolons.")
@click.option("--seeds", default="10,11,12,13,14", show_default=True)
@click.option("--test", default=2000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("compare.json"))
def main(environments: Path, models: str, methods: str, seeds: str, test: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, object] = json.loads(out.read_text()) if out.exists() else {}
    shapes, folder = out.parent / "shapes", out.parent / "exchange"

    def keep(key: str, found: Figures | str) -> None:
        known[key] = found if isinstance(found, str) else asdict(found)
        out.write_text(json.dumps(known, indent=1))
        click.echo(f"{key}: {known[key]}", err=True)

    def run(model: str, seed: int) -> None:
        prepare(model, shapes, PICTURES)
        plain = job(model, seed, test, shapes, "nearest", "asymmetric")
        chosen = methods.split(";")
        for name in set(chosen) & OWN.keys():
            for bits in BITS:
                if (key := f"{model}/{bits}/{name}/{seed}") not in known:
                    keep(key, own(job(model, seed, test, shapes, *OWN[name]), bits))
        missing: dict[str, list[tuple[str, int]]] = {}
        for name in set(chosen) & PEERS.keys():
            for bits in PEERS[name].bits:
                if f"{model}/{bits}/{name}/{seed}" not in known:
                    missing.setdefault(PEERS[name].environment, []).append((name, bits))
        if missing:
            task = load_family(plain.data, load_model(plain.model)).task
            write_exchange(task, model, shapes, folder)
        for environment, wanted in missing.items():
            call(folder, environments / environment, wanted)
            for name, bits in wanted:
                keep(f"{model}/{bits}/{name}/{seed}", theirs(plain, name, bits, folder))

    named: Sequence[str] = models.split(",")
    for seed in map(int, seeds.split(",")):
        for model in named:
            run(model, seed)
    for model in named:
        for bits in BITS:
            click.echo(f"\n{model}, {bits} bits in groups of {GROUP}\n")
            click.echo(table(known, model, bits))


if __name__ == "__main__":
    main()
