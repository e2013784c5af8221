"""Kills builds at random moments: nothing half-made has the folder's name, and a build goes again.

    OMP_NUM_THREADS=1 python -m benchmarks.kill_build --to onnx --rounds 10 --seed 0

Each round starts `bitfront build` of a measured trial of a bundled model and kills its process
group after a time drawn between nothing and what a whole build took. Afterwards there is no
folder, or the build had just ended and it is whole. Then the same build must succeed, and nothing
else may be left beside it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import click

from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Trial
from objectives.evaluation.evaluator import Evaluator
from storage.store import open_store
from tests.support.store_samples import complete

STUDY = "killed"
WEIGHTS_ALONE = ("compressed-tensors", "gguf")
SAMPLES = {"calibration": 16, "tuning": 16, "selection": 40, "test": 4}


def prepare(url: str, name: str, target: str) -> None:
    """A study of a bundled model with one measured trial."""
    inputs = 16 if target in WEIGHTS_ALONE else 8
    content = {
        "target": target if target == "gguf" else "any",
        "study": STUDY,
        "model": {"source": "reference", "name": name, "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES},
        "space": {"weight_bits": [4], "activation_bits": [inputs], "clips": [1.0]},
        "quantizer": {"scale_search": False, "rounding": "nearest", "scheme": "symmetric"},
    }
    spec = JobSpec.model_validate(content)
    evaluator = Evaluator.from_spec(spec)
    layers = [layer.name for layer in evaluator.model.layers]
    found = Configuration(Plan.uniform(layers, Precision(4, inputs)))
    with open_store(url) as store:
        store.create_study(spec, {})
        lease = store.acquire(STUDY, "driver", 60)
        store.start_trial(lease, Trial(STUDY, 0, found, Origin.BASELINE, {}))
        complete(store, lease, 0, evaluator.evaluate(found).values)


def command(out: Path, url: str, target: str) -> list[str]:
    """What builds the trial."""
    chosen = ["--trial", "0", "--to", target, "--out", str(out), "--db", url]
    return [sys.executable, "-m", "service", "build", STUDY, *chosen]


def killed_after(arguments: list[str], seconds: float) -> bool:
    """Starts a command and kills its process group; whether it had not ended by itself."""
    process = subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def state(out: Path, url: str) -> str:
    """What `bitfront artefacts` says of a folder; `unknown` where it was not recorded."""
    listed = [sys.executable, "-m", "service", "artefacts", STUDY, "--format", "json", "--db", url]
    ran = subprocess.run(listed, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    return next((row["state"] for row in rows if row["path"] == str(out)), "unknown")


@click.command()
@click.option("--to", "target", default="onnx", show_default=True)
@click.option("--model", "name", default="digit-clip", show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(target: str, name: str, rounds: int, seed: int) -> None:
    """Run the rounds; ends with 1 if something was half-made."""
    draw, wrong = Random(seed), 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "artefacts"
        folder.mkdir()
        url = f"sqlite:///{made}/bitfront.db"
        prepare(url, name, target)
        started = time.monotonic()
        subprocess.run(command(folder / "first", url, target), check=True, capture_output=True)
        whole_s = time.monotonic() - started
        click.echo(f"a whole build takes {whole_s:.1f} s")
        for number in range(rounds):
            out = folder / f"model{number}"
            seconds = draw.uniform(0, whole_s)
            was_killed = killed_after(command(out, url, target), seconds)
            left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
            is_good = not out.exists() or state(out, url) == "whole"
            subprocess.run(
                command(out, url, target) if not out.exists() else ["true"],
                check=True,
                capture_output=True,
            )
            is_good = is_good and state(out, url) == "whole"
            after = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            is_good = is_good and not after
            wrong += not is_good
            click.echo(
                f"round {number}: {'killed' if was_killed else 'ended'} after {seconds:.1f} s, "
                f"left {left or 'nothing'}; built again: {'whole' if is_good else 'WRONG'}"
            )
    click.echo(f"{rounds} rounds, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
