"""Pictures of SigLIP 2's NaFlex towers, which keep their shape, as one tensor each.

A picture is `(1, patches + 1, width)`: a row a patch, those that the picture lacks are zeros; the
last row begins with the height and the width of the grid of patches.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def packed_picture(given: Mapping[str, Tensor]) -> Float[Tensor, "1 rows width"]:
    """One picture of what transformers' image processor gives."""
    patches, shape = given["pixel_values"], given["spatial_shapes"][0]
    last = torch.zeros_like(patches[:, :1])
    last[0, 0, :2] = shape.to(last)
    return torch.cat([patches, last], dim=1)


def unpacked_pictures(pixels: Float[Tensor, "n 1 rows width"]) -> dict[str, Tensor]:
    """What transformers' model takes of pictures; empty ones are squares of as many patches."""
    rows = pixels[:, 0]
    patches, shapes = rows[:, :-1], rows[:, -1, :2].round().long()
    side = math.isqrt(patches.shape[1])
    is_empty = (shapes < 1) | (shapes.prod(dim=1, keepdim=True) > patches.shape[1])
    shapes = torch.where(is_empty.any(dim=1, keepdim=True), side, shapes)
    places = torch.arange(patches.shape[1], device=pixels.device)
    mask = (places < shapes.prod(dim=1)[:, None]).int()
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
