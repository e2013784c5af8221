"""How a model's pictures are prepared, where Pillow alone can do the same."""

import json
from typing import Any

from bitfront.artefact.architectures.architecture import refuse
from bitfront.reference import scenes
from bitfront.vlm.models.settings import ModelSettings

_METHODS = {2: "bilinear", 3: "bicubic"}


def grey_pictures() -> dict[str, object]:
    """Those of the bundled models."""
    return {
        "size": [scenes.SIDE, scenes.SIDE],
        "mode": "L",
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": [scenes.MEAN],
        "std": [scenes.STD],
    }


def open_clip_pictures(settings: ModelSettings) -> dict[str, object]:
    """What open_clip's transform does.

    Raises:
        InvalidModel: It does something else.
    """
    given = json.loads(settings.preprocessing)
    size = given["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = given["resize_mode"] or "shortest"
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        refuse(f"its pictures are resized by {mode!r} to {height} x {width}")
    if given["interpolation"] not in _METHODS.values():
        refuse(f"its pictures are resized with {given['interpolation']!r} interpolation")
    return {
        "size": [height, width],
        "mode": given["mode"],
        "resize": mode,
        "interpolation": given["interpolation"],
        "mean": list(given["mean"]),
        "std": list(given["std"]),
    }


def processed_pictures(given: dict[str, Any]) -> dict[str, object]:
    """What an image processor of transformers does.

    Args:
        given: Its settings.

    Raises:
        InvalidModel: It does something else.
    """
    size, crop = given["size"] or {}, given.get("crop_size") or {}
    crops = given.get("do_center_crop")
    side = crop.get("height") if crops else size.get("height")
    is_cut = crops and size.get("shortest_edge") == side == crop.get("width")
    is_squashed = not crops and side is not None
    plain = all(given[name] for name in ("do_resize", "do_rescale", "do_normalize"))
    if not plain or not (is_cut or is_squashed) or given.get("do_pad"):
        refuse(f"its pictures are resized to {size} and cut to {crop}")
    if given["resample"] not in _METHODS or abs(given["rescale_factor"] * 255 - 1) > 1e-6:
        refuse(f"its pictures are resized with method {given['resample']}")
    return {
        "size": [side, crop["width"] if is_cut else size["width"]],
        "mode": "RGB",
        "resize": "shortest" if is_cut else "squash",
        "interpolation": _METHODS[given["resample"]],
        "mean": given["image_mean"],
        "std": given["image_std"],
    }
