"""From stored trials to pictures on the disk."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bitfront.errors import SpecError
from bitfront.trial import Trial, TrialState
from bitfront.units import percent_text, size_text
from service.views.choosing import best_answer, full_precision, shown_front
from service.views.describe import FULL_NAME, recovery_text, reported_budget, trial_names
from service.views.plot.images import write_bits, write_front
from service.views.plot.page import write_page
from service.views.plot.records import BitsPicture, FrontPicture, LayerBits, Point
from storage.records import Limits
from storage.store import Store

_NAMES: Final = ("front", "bits")


def write_pictures(store: Store, study: str, out: Path, number: int | None = None) -> list[Path]:
    """Writes the front and the bits of a study into a folder, as PNG, as SVG, and as a page.

    Args:
        store: Where the study is.
        study: Its name.
        out: The folder; made if it is missing.
        number: The trial whose bits are shown; None takes the best one at the job's budget, or
            the most accurate one where none is feasible.

    Raises:
        SpecError: There is nothing to draw, no such complete trial, or no way to write there.
    """
    trials = {trial.number: trial for trial in store.trials(study, {TrialState.COMPLETE})}
    front = front_picture(store, study, list(trials.values()))
    chosen = _default_trial(store, study, front) if number is None else number
    if chosen not in trials:
        raise SpecError(f"study {study!r} has no complete trial {chosen}: see 'bitfront front'")
    bits = bits_picture(store, study, trials[chosen])
    fronts, rows = ([out / f"{name}.{kind}" for kind in ("png", "svg")] for name in _NAMES)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_front(front, *fronts)
        write_bits(bits, *rows)
        page = write_page(front, bits, out / "front.html")
    except OSError as error:
        raise SpecError(f"the pictures cannot be written to {out}: {error.strerror}") from error
    return [*fronts, *rows, *page]


def write_front_picture(store: Store, study: str, path: Path) -> None:
    """Writes the picture of a study's front alone; its format is the suffix of the file.

    Raises:
        SpecError: There is no trial to draw.
    """
    trials = store.trials(study, {TrialState.COMPLETE})
    write_front(front_picture(store, study, trials), path)


def front_picture(store: Store, study: str, trials: Sequence[Trial]) -> FrontPicture:
    """The picture of a study's complete trials.

    Raises:
        SpecError: There are none with a size.
    """
    names = trial_names(trials)
    numbers = {result.number for result in shown_front(store, study).trials}
    points = [point for trial in trials if (point := _point(trial, names, trial.number in numbers))]
    full = next((point for point in points if point.label == FULL_NAME), None)
    quantized = tuple(point for point in points if point is not full)
    measured = full_precision(store, study)
    if full is not None and measured is not None and measured.trial.number == full.trial:
        ends, test_ends = measured.interval("selection"), measured.interval("test")
        full = replace(full, interval=ends, test_interval=test_ends)
    if not quantized:
        raise SpecError(f"study {study!r} has no complete trial to draw yet")
    return FrontPicture(study, quantized, full)


def _point(trial: Trial, names: Mapping[int, str], is_front: bool) -> Point | None:
    nbytes = trial.values.get("nbytes", trial.metrics.get("nbytes"))
    if nbytes is None:
        return None
    return Point(
        trial=trial.number,
        error=trial.values["error"],
        test_error=trial.test_values.get("error"),
        nbytes=nbytes,
        origin=trial.origin,
        is_front=is_front,
        label=names.get(trial.number),
        bits_per_weight=trial.metrics.get("bits_per_weight"),
        recovery=recovery_text(trial.configuration),
    )


def _default_trial(store: Store, study: str, picture: FrontPicture) -> int:
    budget = reported_budget(store.study(study))
    best = None if budget is None else best_answer(store, study, Limits(**budget.limits))
    if best is not None:
        return best.trial.number
    on_front = shown_front(store, study).trials
    if on_front:
        return on_front[0].number
    return min(picture.points, key=lambda point: (point.error, point.nbytes)).trial


def bits_picture(store: Store, study: str, trial: Trial) -> BitsPicture:
    """The picture of one trial's precisions, in order of execution."""
    profile = store.load_profile(study)
    if profile is None:
        raise SpecError(f"the layers of study {study!r} are not recorded: resume it first")
    blocks = {layer: block.name for block in profile.blocks for layer in block.layers}
    layers = []
    for layer in profile.layers:
        precision = trial.configuration.plan.precision(layer.name)
        layers.append(
            LayerBits(
                layer=layer.name,
                tower=layer.tower,
                weight_bits=precision.weight_bits,
                activation_bits=precision.activation_bits,
                block=blocks.get(layer.name, ""),
            )
        )
    words = [f"{percent_text(trial.values['error'])} error"]
    nbytes = trial.values.get("nbytes", trial.metrics.get("nbytes"))
    if nbytes is not None:
        words[0] += f" at {size_text(nbytes)}"
    if "bits_per_weight" in trial.metrics:
        words.append(f"{trial.metrics['bits_per_weight']:.2f} bits a weight on average")
    words.append("bands mark blocks that were searched together")
    title = f"{study}, trial {trial.number}: bits of each layer"
    return BitsPicture(title, ", ".join(words), tuple(layers))
