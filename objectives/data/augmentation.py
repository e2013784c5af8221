"""Augmented views of pictures: random crops of known seeds, mirrored where that is allowed."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SMALLEST_CROP = 0.85


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How a view is made of a picture.

    A crop has at least `SMALLEST_CROP` of the picture's width and height, lies anywhere in it,
    and is brought back to its size bilinearly.

    Attributes:
        seed: A view of a picture is the same whenever it is asked for under one seed.
        horizontal_flip: Whether every second crop, by chance, is mirrored.
    """

    seed: int
    horizontal_flip: bool

    def view(
        self, pixels: Float[Tensor, "n c h w"], number: int, first: int
    ) -> Float[Tensor, "n c h w"]:
        """A view of some pictures.

        Args:
            pixels: The pictures, as the model takes them.
            number: Which view, from 1 on.
            first: The place of the first picture in its split.
        """
        draws = [
            np.random.default_rng((self.seed, number, first + place)).random(4)
            for place in range(len(pixels))
        ]
        share, across, down, mirror = torch.tensor(np.array(draws)).unbind(dim=1)
        size = SMALLEST_CROP + (1 - SMALLEST_CROP) * share
        turn = torch.ones_like(size)
        if self.horizontal_flip:
            turn = 1 - 2 * (mirror < 0.5).to(size)
        zero = torch.zeros_like(size)
        # Rows of an affine map from the view's coordinates in [-1, 1] to the picture's.
        rows = [
            torch.stack([turn * size, zero, (1 - size) * (2 * across - 1)], dim=1),
            torch.stack([zero, size, (1 - size) * (2 * down - 1)], dim=1),
        ]
        grid = functional.affine_grid(
            torch.stack(rows, dim=1).to(pixels), list(pixels.shape), align_corners=False
        )
        return functional.grid_sample(
            pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
