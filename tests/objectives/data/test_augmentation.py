"""Augmented views: crops of known seeds, whatever the batches."""

import pytest
import torch
from torch import Tensor

from objectives.data.augmentation import SMALLEST_CROP, Augmentation


def ramps(count: int, side: int = 16) -> Tensor:
    """Pictures whose first channel is x and whose second is y, both from -1 to 1."""
    centres = (2 * torch.arange(side) + 1) / side - 1
    x, y = centres.expand(side, side), centres[:, None].expand(side, side)
    return torch.stack([x, y]).expand(count, 2, side, side).contiguous()


def test_a_view_is_a_crop_of_the_picture() -> None:
    views = Augmentation(0, horizontal_flip=False).view(ramps(50), 1, 0)

    steps = views[:, 0].diff(dim=-1)[:, :, 1:-2] / (2 / 16)
    sizes = steps.mean(dim=(1, 2))
    # The crop's width is the slope of x, the same in all rows; nothing is turned around.
    torch.testing.assert_close(steps, sizes[:, None, None].expand_as(steps), rtol=0, atol=1e-4)
    assert (sizes >= SMALLEST_CROP - 1e-4).all()
    assert (sizes <= 1 + 1e-4).all()
    assert sizes.std() > 0.02
    assert views.abs().max() <= 1
    centres = views.mean(dim=(2, 3))
    assert (centres.abs() <= 1 - sizes[:, None] + 1e-3).all()
    assert (centres.std(dim=0) > 0.005).all()


@pytest.mark.parametrize("flip", [False, True])
def test_pictures_are_mirrored_only_where_that_is_allowed(flip: bool) -> None:
    views = Augmentation(0, horizontal_flip=flip).view(ramps(100), 1, 0)

    falls = (views[:, 0, 0, 4] > views[:, 0, 0, 12]).sum()
    rises = views[:, 1, 4, 0] < views[:, 1, 12, 0]
    assert rises.all()
    assert (30 < falls < 70) if flip else falls == 0


def test_a_view_depends_on_its_number_the_seed_and_the_pictures_place_only() -> None:
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    augmentation = Augmentation(3, horizontal_flip=True)
    before = torch.get_rng_state()

    whole = augmentation.view(pixels, 1, 10)
    parts = [augmentation.view(pixels[:2], 1, 10), augmentation.view(pixels[2:], 1, 12)]

    torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(augmentation.view(pixels, 2, 10), whole)
    assert not torch.allclose(Augmentation(4, horizontal_flip=True).view(pixels, 1, 10), whole)
