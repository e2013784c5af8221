"""Folders of small models of every kind, as a job names them."""

from pathlib import Path

from bitfront.vlm import LayeredModel, load_model
from tests.support.clip_models import folder_spec, save_open_clip, save_transformers
from tests.support.llava_models import Build, save_llava

_LLAVAS = ("llava", "llava_next")


def save_model(folder: Path, kind: str) -> None:
    """Saves a model: `open_clip`, `clip` or `siglip` of transformers, `llava` or `llava_next`."""
    if kind == "open_clip":
        save_open_clip(folder)
    elif kind in _LLAVAS:
        save_llava(folder, Build(kind=kind))
    else:
        save_transformers(kind, folder)


def load_saved(folder: Path, kind: str) -> LayeredModel:
    """A saved model of a kind, loaded as a job would."""
    return load_model(folder_spec(folder, "open_clip" if kind == "open_clip" else "transformers"))
