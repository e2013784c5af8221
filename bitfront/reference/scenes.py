"""Digit scenes: two real handwritten digits on a noisy canvas, and the relation between them.

The digits are the 1797 scans of scikit-learn's `load_digits`, kept in `digits.safetensors`: to
import scikit-learn would take a fifth of a worker's start. A scan belongs to one split only, so
no split shows a scan that another one has seen.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

SplitTitle = Literal["train", "calibration", "tuning", "selection", "test"]

SPLIT_SCANS: dict[SplitTitle, int] = {
    "train": 1097,
    "calibration": 100,
    "tuning": 150,
    "selection": 200,
    "test": 250,
}
SIDE = 24
MEAN, STD = 0.25, 0.25
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "above")
TEMPLATES = ("a picture of {}",)

_SCANS = Path(__file__).with_name("digits.safetensors")
_SPLIT_SEED = 8
_SCAN_SIDE = 8
_EDGE = 5.0  # a scan's centre keeps this far from the border


def name_digit(digit: int) -> str:
    """The digit with its article, such as `a three` or `an eight`."""
    return f"{'an' if digit == 8 else 'a'} {WORDS[digit]}"


CLASSES = tuple(
    f"{name_digit(first)} {relation} {name_digit(second)}"
    for relation in RELATIONS
    for first in range(10)
    for second in range(10)
)


@dataclass(frozen=True, slots=True)
class Jitter:
    """The ranges that a scene's free choices are drawn from, each uniformly.

    Attributes:
        scale: Size of a scan, where 1 is a canvas pixel for each of its pixels.
        rotation: Largest rotation either way, in radians.
        ink: Brightness that a scan adds to the background, of at most 1.
        background: Brightness of the canvas.
        noise: Standard deviation of the Gaussian noise on every pixel.
    """

    scale: tuple[float, float] = (1.0, 1.25)
    rotation: float = 0.1
    ink: tuple[float, float] = (0.5, 0.8)
    background: tuple[float, float] = (0.0, 0.25)
    noise: tuple[float, float] = (0.04, 0.12)

    def towards(self, other: "Jitter", share: float) -> "Jitter":
        """The jitter a share of the way from this one to another."""

        def mix(here: float, there: float) -> float:
            return here + share * (there - here)

        def mix_range(here: tuple[float, float], there: tuple[float, float]) -> tuple[float, float]:
            return mix(here[0], there[0]), mix(here[1], there[1])

        return Jitter(
            scale=mix_range(self.scale, other.scale),
            rotation=mix(self.rotation, other.rotation),
            ink=mix_range(self.ink, other.ink),
            background=mix_range(self.background, other.background),
            noise=mix_range(self.noise, other.noise),
        )


NATURAL = Jitter()


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """Some scenes, `n` of them.

    Attributes:
        images: `(n, 3, 24, 24)` float32, normalised by `MEAN` and `STD`, with equal channels.
        labels: `(n,)` int64, indices into `CLASSES`.
        scans: `(n, 2)` int64, the scans' indices in `load_digits`.
        centres: `(n, 2, 2)` float64, row and column of each scan's centre.
    """

    images: Tensor
    labels: Tensor
    scans: Tensor
    centres: Tensor

    @property
    def identities(self) -> tuple[str, ...]:
        """The scans of each scene, such as `17+1203`."""
        return tuple(f"{first}+{second}" for first, second in self.scans.tolist())


@cache
def digit_scans() -> tuple[Tensor, NDArray[np.int64]]:
    """All scans `(1797, 8, 8)`, float64 in [0, 1], and the digit that each one shows."""
    scans = load_file(_SCANS)
    return scans["images"].double() / 16.0, scans["digits"].numpy().astype(np.int64)


@cache
def split_scans(split: SplitTitle) -> NDArray[np.int64]:
    """The indices of a split's scans; every digit has about an equal share."""
    _, digits = digit_scans()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits))
    rank = np.empty(len(digits), dtype=np.int64)
    for digit in range(10):
        members = order[digits[order] == digit]
        rank[members] = np.arange(len(members))
    dealt = np.lexsort((digits, rank))
    start = 0
    for title in get_args(SplitTitle):
        if title == split:
            break
        start += SPLIT_SCANS[title]
    return dealt[start : start + SPLIT_SCANS[split]]


def draw_scenes(split: SplitTitle, count: int, seed: int, *, jitter: Jitter = NATURAL) -> Scenes:
    """Scenes made of a split's scans, with every class equally often, give or take one.

    Equal arguments give equal scenes.
    """
    rng = np.random.default_rng([get_args(SplitTitle).index(split), seed])
    rounds = -(-count // len(CLASSES))
    labels = rng.permuted(np.tile(np.arange(len(CLASSES)), (rounds, 1)), axis=1).ravel()[:count]
    shown = np.stack([labels // 10 % 10, labels % 10], axis=1)
    scans = _choose_scans(split_scans(split), shown, rng)
    centres = _place(labels // 100, rng)
    pixels = render(digit_scans()[0][torch.from_numpy(scans)], centres, rng, jitter)
    return Scenes(
        images=normalise(pixels),
        labels=torch.from_numpy(labels),
        scans=torch.from_numpy(scans),
        centres=torch.from_numpy(centres),
    )


def _choose_scans(
    pool: NDArray[np.int64], shown: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    _, digits = digit_scans()
    chosen = np.empty_like(shown)
    for digit in range(10):
        wanted = shown == digit
        chosen[wanted] = rng.choice(pool[digits[pool] == digit], size=int(wanted.sum()))
    return chosen


def _place(relations: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres `(n, 2, 2)`: 9 to 12 pixels apart along the relation, at most 3 across it."""
    count = len(relations)
    offsets = np.stack([rng.uniform(9.0, 12.0, count), rng.uniform(-3.0, 3.0, count)], axis=1)
    reach = (SIDE / 2 - _EDGE) - np.abs(offsets) / 2
    middles = SIDE / 2 + rng.uniform(-1.0, 1.0, (count, 2)) * reach
    centres = np.stack([middles - offsets / 2, middles + offsets / 2], axis=1)
    # Along and across are (row, column) for "above", (column, row) for "left of".
    sideways = (relations == RELATIONS.index("left of"))[:, None, None]
    return np.where(sideways, centres[:, :, ::-1], centres)


def render(
    scans: Tensor, centres: NDArray[np.float64], rng: np.random.Generator, jitter: Jitter
) -> Tensor:
    """Pixels `(n, 24, 24)` uint8 of `scans` `(n, k, 8, 8)` float64 laid at their centres."""
    count, shown = scans.shape[:2]
    angle = rng.uniform(-jitter.rotation, jitter.rotation, (count, shown))
    scale = rng.uniform(*jitter.scale, (count, shown))
    ink = torch.from_numpy(rng.uniform(*jitter.ink, (count, shown, 1, 1)))
    background = torch.from_numpy(rng.uniform(*jitter.background, (count, 1, 1)))
    noise = rng.uniform(*jitter.noise, (count, 1, 1)) * rng.standard_normal((count, SIDE, SIDE))

    # Where in the scan, in [-1, 1], each canvas pixel looks: the inverse of the scan's pose.
    axis = np.arange(SIDE) + 0.5
    down = axis[:, None] - centres[:, :, 0, None, None]
    right = axis[None, :] - centres[:, :, 1, None, None]
    cosine, sine = np.cos(angle)[..., None, None], np.sin(angle)[..., None, None]
    reach = scale[..., None, None] * _SCAN_SIDE / 2
    grid = np.stack([cosine * right + sine * down, cosine * down - sine * right], axis=-1)
    laid = functional.grid_sample(
        scans.reshape(count * shown, 1, _SCAN_SIDE, _SCAN_SIDE),
        torch.from_numpy(grid / reach[..., None]).reshape(count * shown, SIDE, SIDE, 2),
        align_corners=False,
    ).reshape(count, shown, SIDE, SIDE)

    canvas = background + (laid * ink).amax(dim=1) + torch.from_numpy(noise)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def normalise(pixels: Tensor) -> Tensor:
    """The model's input `(n, 3, 24, 24)` float32 of `pixels` `(n, 24, 24)` uint8."""
    grey = (pixels.float() / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def picture(image: Tensor) -> Image.Image:
    """The picture whose normalised pixels are `image` `(3, 24, 24)`."""
    grey = ((image[0] * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(grey.numpy())
