"""Builds artefacts, and uses each as a newcomer does: in an environment that has only its runtime.

    python -m benchmarks.newcomer --to onnx --to openvino --pictures 8 --seed 0

Of each bundled model that a target takes, one trial is built. A new virtual environment gets by
`pip install` what `bitfront build` says that the artefact needs, and nothing else; the folder is
moved away from where it was built; and its `example.py` is run on pictures of the test split, as it
was printed. Its first answer must be that of `bitfront classify` or `bitfront ask`. Ends with 1
where one is another.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.reference.questions import draw_questions
from bitfront.reference.scenes import draw_scenes, picture
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Trial
from objectives.data.images import read_image
from objectives.evaluation.evaluator import Evaluator
from storage.store import open_store
from tests.support.store_samples import complete

CLIP, LLAVA = "digit-clip", "digit-llava"
TARGETS: Final = {
    "packed": (CLIP, LLAVA),
    "onnx": (CLIP, LLAVA),
    "openvino": (CLIP, LLAVA),
    "compressed-tensors": (CLIP, LLAVA),
    "gguf": (LLAVA,),
}
"""The bundled models that each target takes."""
SAMPLES: Final = {"calibration": 16, "tuning": 16, "selection": 64, "test": 4}
WIDTHS: Final = (4, 8)
FOREIGN: Final = ("bitfront", "objectives", "storage", "service")


def prepare(url: str) -> dict[str, tuple[Evaluator, Configuration]]:
    """A study of each bundled model, with a measured trial of 4 and 8 bits in turn."""
    known = {}
    for name in (CLIP, LLAVA):
        content = {
            "study": name,
            "model": {"source": "reference", "name": name, "device": "cpu"},
            "data": {"source": "reference", "samples": SAMPLES},
            "quantizer": {"scheme": "symmetric", "rounding": "nearest", "scale_search": False},
        }
        spec = JobSpec.model_validate(content)
        kept = Evaluator.from_spec(spec)
        layers = [layer.name for layer in kept.model.layers]
        plan = {layer: Precision(WIDTHS[n % 2]) for n, layer in enumerate(layers)}
        found = Configuration(Plan.of(plan))
        with open_store(url) as store:
            store.create_study(spec, {})
            lease = store.acquire(name, "driver", 60)
            store.start_trial(lease, Trial(name, 0, found, Origin.BASELINE, {}))
            complete(store, lease, 0, kept.evaluate(found).values)
        known[name] = kept, found
    return known


def bitfront(url: str, *words: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "service", *words, "--db", url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of a new virtual environment with some packages; says which versions came."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *packages]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = {row["name"].lower(): row["version"] for row in json.loads(listed.stdout)}
    wrong = [name for name in FOREIGN if name in versions]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)} came along")
    told = ", ".join(f"{name} {versions.get(name, '?')}" for name in packages)
    click.echo(f"installed {told}; {len(versions)} packages in all")
    return python


def asked(name: str, folder: Path, count: int, seed: int) -> list[tuple[str, ...]]:
    """Pictures, and for a LLaVA a question each, as `example.py` takes them."""
    folder.mkdir(exist_ok=True)
    rows: list[tuple[str, ...]] = []
    questions: list[str] = []
    if name == LLAVA:
        drawn = draw_questions("test", count, seed=seed)
        images, questions = drawn.images, list(drawn.questions)
    else:
        images = draw_scenes("test", count, seed=seed).images
    for number in range(count):
        path = folder / f"{name}{number}.png"
        picture(images[number]).save(path)
        rows.append((str(path), questions[number]) if questions else (str(path),))
    return rows


def expected(kept: Evaluator, found: Configuration, row: tuple[str, ...]) -> str:
    """What `bitfront classify` or `bitfront ask` answers."""
    path, *questions = row
    opened = read_image(Path(path), kept.spec.data.background)
    if questions:
        return str(kept.scorer.answer(found, questions[0], opened))
    ((best, _),) = kept.scorer.classify(found, [opened], 1)[0]
    return str(best)


def answered(python: Path, folder: Path, row: tuple[str, ...]) -> str:
    """What the printed script answers first, run elsewhere and without this environment."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [python, folder / "example.py", *row],
        cwd="/",
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    first = ran.stdout.splitlines()[0]
    return re.sub(r"^ *[\d.]+ %  ", "", first)


@click.command()
@click.option("--to", "targets", type=click.Choice(list(TARGETS)), multiple=True, required=True)
@click.option("--pictures", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(targets: tuple[str, ...], pictures: int, seed: int) -> None:
    """Build, install, run, compare."""
    wrong = 0
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        url = f"sqlite:///{place}/bitfront.db"
        known = prepare(url)
        rows = {name: asked(name, place / "pictures", pictures, seed) for name in (CLIP, LLAVA)}
        wanted = {name: [expected(*known[name], row) for row in rows[name]] for name in rows}
        for target in targets:
            python = None
            for name in TARGETS[target]:
                out = place / "built" / f"{target}-{name}"
                words = ("--trial", "0", "--to", target, "--out", str(out), "--no-reference")
                said = bitfront(url, "build", name, *words)
                (needs,) = re.findall(r"^It needs (.+)\. Use it as", said, re.MULTILINE)
                if python is None:
                    python = environment(place / f"env-{target}", needs.split(", "))
                away = Path(shutil.move(out, place / f"moved-{target}-{name}"))
                found = [answered(python, away, row) for row in rows[name]]
                same = sum(one == other for one, other in zip(found, wanted[name], strict=True))
                wrong += same < pictures
                click.echo(f"{target}, {name}: {same} of {pictures} answers are bitfront's")
            shutil.rmtree(place / f"env-{target}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
