"""How fast an artefact is, and how fast the model at full precision is in the same runtime.

The reference is the model of the same study that no plan changes, written for the same target in 16
bits. It is loaded into the artefact's process, in each number format that the runtime can compute
it in (`REFERENCES`), and takes turns with the artefact.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from safetensors import SafetensorError
from torch import Tensor

from bitfront.artefact.runtime.serve import ARTEFACT
from bitfront.errors import InvalidModel
from objectives.evaluation.artefact_process import ArtefactProcess, RefusedModel, Seconds

TOKEN: Final = "token"
"""What a speed-up in writing one more token is called; the others have a batch size."""
TOKENS: Final = 8
"""How many more tokens are written when writing is timed."""
_FOLDER: Final = "reference"

WriteReference = Callable[[Path], object]
"""What writes the model at full precision into an empty folder."""

_Figures = dict[str, Seconds]


class Timed(Protocol):
    """Samples that an artefact is timed with."""

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""

    def writing(self) -> dict[str, Tensor] | None:
        """A prompt with the `limits` 1 and 1 + `TOKENS`; None for a model that writes nothing."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast the artefact is.

    Attributes:
        median: Of the repeats, in each of which both ran one after the other.
        low: The lowest of them.
        high: The highest.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reference:
    """The model at full precision, as it was timed in turns with the artefact.

    Attributes:
        dtype: What the runtime computed it in.
        latency_s: Seconds of a forward by batch size, the median.
        token_s: Seconds of one more token, likewise; None for a model that writes none.
        speedup: Of the artefact over it, by batch size, and `token` for writing one. What was too
            short to be told from nothing has none.
    """

    dtype: str
    latency_s: dict[str, float]
    token_s: float | None
    speedup: dict[str, Speedup]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast an artefact is.

    Attributes:
        latency_s: Seconds of a forward by batch size, the median.
        token_s: Seconds of one more token, likewise; None for a model that writes none.
        references: The model at full precision in the same runtime; empty where it was not timed.
        untimed: Why it was not timed; None where it was, or was not asked for.
        repeats: How many the medians are of, by batch size, and `token` for writing one.
    """

    latency_s: dict[str, float]
    token_s: float | None
    references: tuple[Reference, ...]
    untimed: str | None
    repeats: dict[str, int]


def take_times(
    process: ArtefactProcess,
    samples: Timed,
    sizes: Iterable[int],
    folder: Path,
    kind: str,
    write_reference: WriteReference | None,
) -> Speed:
    """Times the artefact in a folder, and the model at full precision in turns with it.

    A reference that cannot be written, loaded or run takes nothing from the artefact, which is then
    timed alone.

    Args:
        process: Has loaded the artefact, with the folder that `reference_folder` gives.
        samples: What it is timed with.
        sizes: Of the batches.
        folder: The artefact. The reference lies in it until it has been timed.
        kind: What it is built as, such as `packed`.
        write_reference: Writes the reference; None times the artefact alone.

    Raises:
        FailedBuild: The artefact cannot be run.
    """
    sizes = list(sizes)
    if write_reference is None:
        return _speed(_figures(process, samples, sizes, beside=False), None)
    try:
        with _written(write_reference, folder):
            return _speed(_figures(process, samples, sizes, beside=True), None)
    except RefusedModel as error:
        reason = error.reason
    except OSError as error:
        reason = error.strerror or str(error)
    except (SafetensorError, InvalidModel) as error:
        reason = str(error)
    with ArtefactProcess(folder, kind) as alone:
        return _speed(_figures(alone, samples, sizes, beside=False), reason)


def reference_folder(folder: Path) -> Path:
    """Where the reference of an artefact lies while it is timed."""
    return folder / _FOLDER


@contextmanager
def _written(write: WriteReference, folder: Path) -> Iterator[None]:
    """A reference that is there, and gone afterwards."""
    place = reference_folder(folder)
    place.mkdir()
    try:
        write(place)
        yield
    finally:
        shutil.rmtree(place)


def _figures(
    process: ArtefactProcess, samples: Timed, sizes: Iterable[int], *, beside: bool
) -> _Figures:
    """Seconds by batch size, and of a token; each by model `(repeats,)`."""
    found = {
        str(size): _with_rows(process.time(samples.sample(size), beside=beside), _only)
        for size in sizes
    }
    writing = samples.writing()
    if writing is not None:
        found[TOKEN] = _with_rows(process.time(writing, beside=beside), _further_token)
    return found


def _with_rows(seconds: Seconds, change: Callable[[Tensor], Tensor]) -> Seconds:
    return {name: change(rows) for name, rows in seconds.items()}


def _only(rows: Tensor) -> Tensor:
    return rows[:, 0]


def _further_token(rows: Tensor) -> Tensor:
    return ((rows[:, 1] - rows[:, 0]) / TOKENS).clamp_min(0)


def _speed(figures: _Figures, untimed: str | None) -> Speed:
    medians = {
        name: {figure: float(seconds[name].median()) for figure, seconds in figures.items()}
        for name in next(iter(figures.values()))
    }
    references = [
        Reference(name, *_by_stage(own), _speedups(figures, name))
        for name, own in medians.items()
        if name != ARTEFACT
    ]
    repeats = {figure: len(seconds[ARTEFACT]) for figure, seconds in figures.items()}
    return Speed(*_by_stage(medians[ARTEFACT]), tuple(references), untimed, repeats)


def _by_stage(own: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
    latency_s = {figure: value for figure, value in own.items() if figure != TOKEN}
    return latency_s, own.get(TOKEN)


def _speedups(figures: _Figures, name: str) -> dict[str, Speedup]:
    found = {}
    for figure, seconds in figures.items():
        own, its = seconds[ARTEFACT], seconds[name]
        ratios = (its / own)[(own > 0) & (its > 0)]
        if len(ratios):
            found[figure] = Speedup(*map(float, (ratios.median(), ratios.min(), ratios.max())))
    return found
