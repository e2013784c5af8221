"""The models that figures are for: both bundled ones, and a third that nothing was tuned on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks import shapes

MODELS: Final = ("digit-clip", "shapes-clip", "digit-llava")


def prepare(model: str, folder: Path, pictures: int, seed: int = 0, steps: int = 1400) -> None:
    """Trains the third model and draws its pictures, so many a class, where they are wanted.

    The training's seed is 0; `seed` is that of the pictures.
    """
    if model == "shapes-clip" and not (folder / "pictures").exists():
        shapes.train(folder / "model", 0, steps)
        shapes.save_pictures(folder / "pictures", pictures, seed)


def sections(
    model: str, folder: Path, samples: Mapping[str, int], seed: int
) -> dict[str, dict[str, object]]:
    """The sections `model` and `data` of a job, whose samples the seed draws or splits."""
    data: dict[str, object] = {"source": "reference", "samples": dict(samples), "seed": seed}
    source: dict[str, object] = {"source": "reference", "name": model, "device": "cpu"}
    if model == "shapes-clip":
        source = {"source": "transformers", "name": str(folder / "model"), "device": "cpu"}
        data |= {"source": "image_folder", "path": str(folder / "pictures")}
        data["templates"] = ["a {}"]
    return {"model": source, "data": data}
