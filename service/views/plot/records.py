"""What the pictures show, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitfront.layers import Tower
from bitfront.trial import Origin
from bitfront.units import percent_text, size_text, size_unit

LOG_RANGE = 20.0
"""An axis is logarithmic where its values span more than this factor."""

_DROPPED = frozenset(
    {
        "visual",
        "transformer",
        "resblocks",
        "weight",
        "vision_model",
        "text_model",
        "model",
        "encoder",
        "layers",
        "embeddings",
        "trunk",
        "blocks",
    }
)


@dataclass(frozen=True, slots=True)
class Point:
    """One complete trial in the plane of size and error.

    Attributes:
        trial: Its number.
        error: On the selection split.
        test_error: On the test split; None before the front is finished.
        nbytes: Size of the packed checkpoint.
        origin: Who proposed it.
        is_front: Whether no other trial dominates it.
        label: The name of a uniform baseline, such as `w4`; None for any other trial.
        bits_per_weight: Mean over all weights; None if it was not measured.
        recovery: A few words about its P4Q settings.
        interval: The 95 % interval of its error on the selection split; None if it is not known.
        test_interval: The same on the test split.
    """

    trial: int
    error: float
    test_error: float | None
    nbytes: float
    origin: Origin
    is_front: bool
    label: str | None = None
    bits_per_weight: float | None = None
    recovery: str = "none"
    interval: tuple[float, float] | None = None
    test_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class FrontPicture:
    """All trials of a study.

    Attributes:
        study: Its name.
        points: Complete trials of quantized configurations.
        full: The trial of the unquantized model, if there is one.
    """

    study: str
    points: tuple[Point, ...]
    full: Point | None = None

    @property
    def front(self) -> list[Point]:
        """The front, smallest first."""
        return sorted((p for p in self.points if p.is_front), key=lambda p: (p.nbytes, p.error))

    @property
    def baselines(self) -> list[Point]:
        """The labelled uniform baselines, smallest first."""
        return sorted((p for p in self.points if p.label), key=lambda p: p.nbytes)

    @property
    def errors(self) -> list[float]:
        """Every error that the picture has to show, that of the full model included."""
        full = () if self.full is None else (self.full,)
        return [point.error for point in (*self.points, *full)]

    @property
    def summary(self) -> str:
        """How many configurations there are, and how many on the front."""
        trials, front = len(self.points), len(self.front)
        return f"{trials} quantized configurations, {front} of them on the front"

    @property
    def unit(self) -> tuple[int, str]:
        """The unit of the size axis, as its bytes and its symbol."""
        return size_unit(max((p.nbytes for p in self.points), default=1.0))


@dataclass(frozen=True, slots=True)
class LayerBits:
    """The precision of one layer in a configuration; `block` may be empty."""

    layer: str
    tower: Tower
    weight_bits: int
    activation_bits: int
    block: str = ""


@dataclass(frozen=True, slots=True)
class BitsPicture:
    """The bits of every layer of one configuration, in order of execution."""

    title: str
    subtitle: str
    layers: tuple[LayerBits, ...]

    @property
    def towers(self) -> list[Tower]:
        """The towers in order of execution."""
        return list(dict.fromkeys(layer.tower for layer in self.layers))

    def tower(self, tower: Tower) -> list[LayerBits]:
        """The layers of one tower."""
        return [layer for layer in self.layers if layer.tower == tower]

    @property
    def rows(self) -> int:
        """The layers of the longest tower."""
        return max((len(self.tower(tower)) for tower in self.towers), default=1)

    def labels(self, tower: Tower) -> list[str]:
        """The figure at each bar; with the input's bits where those differ between layers."""
        if len({layer.activation_bits for layer in self.layers}) == 1:
            return [str(layer.weight_bits) for layer in self.tower(tower)]
        return [f"{layer.weight_bits}, a{layer.activation_bits}" for layer in self.tower(tower)]

    def shaded(self, tower: Tower) -> list[bool]:
        """Whether each layer has a band behind it: neighbouring blocks alternate."""
        blocks = list(dict.fromkeys(layer.block for layer in self.tower(tower)))
        return [blocks.index(layer.block) % 2 == 1 for layer in self.tower(tower)]


def full_label(full: Point) -> str:
    """What the legend says of full precision: its errors with their intervals, and its size."""
    text = f"16 bits: {_with_ends(full.error, full.interval)}"
    if full.test_error is not None:
        text += f", test {_with_ends(full.test_error, full.test_interval)}"
    return f"{text} at {size_text(full.nbytes)}"


def _with_ends(error: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return percent_text(error)
    low, high = interval
    return f"{percent_text(error)} ({100 * low:.1f} to {100 * high:.1f})"


def staircase(front: Sequence[Point]) -> list[Point]:
    """The points of a front that are non-dominated in size and error alone, smallest first.

    With more than two objectives a front has others; the line goes through these.
    """
    steps: list[Point] = []
    for point in sorted(front, key=lambda p: (p.nbytes, p.error)):
        if not steps or point.error < steps[-1].error:
            steps.append(point)
    return steps


def staircase_line(picture: FrontPicture) -> list[tuple[float, float]]:
    """The corners (size, error) of the front's line, from the highest trial to the widest."""
    steps = staircase(picture.front)
    if not steps:
        return []
    highest = max(point.error for point in picture.points)
    widest = max(point.nbytes for point in picture.points)
    corners = [(point.nbytes, point.error) for point in steps]
    return [(steps[0].nbytes, highest), *corners, (widest, steps[-1].error)]


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values span so much that their axis should be logarithmic."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > LOG_RANGE


def short_names(layers: Sequence[str]) -> list[str]:
    """Layer names without what all models repeat; the full ones if those would be ambiguous."""
    short = [_short(name) for name in layers]
    return short if len(set(short)) == len(short) else list(layers)


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _DROPPED]
    return ".".join(parts).removesuffix("_weight") or name
