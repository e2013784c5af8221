"""A front as a small picture among text, drawn here as SVG."""

from markupsafe import Markup

from service.http.models.results import Front
from service.views.describe import FULL_NAME

_WIDTH, _HEIGHT, _EDGE = 132, 36, 4


def sparkline(front: Front | None, study: str) -> Markup:
    """The steps of a front in the plane of size and error; nothing for fewer than two trials."""
    if front is None:
        return Markup()
    found: list[tuple[float, float]] = []
    ranked = sorted(
        (one.trial.values["nbytes"], one.trial.values["error"])
        for one in front.trials
        if one.trial.values.keys() >= {"nbytes", "error"} and one.trial.baseline != FULL_NAME
    )
    for size, error in ranked:
        if not found or error < found[-1][1]:
            found.append((size, error))
    if len(found) < 2:
        return Markup()
    sizes, errors = zip(*found, strict=True)
    points = [
        (_scaled(size, sizes, _WIDTH), _HEIGHT - _scaled(error, errors, _HEIGHT))
        for size, error in found
    ]
    steps = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    steps += [f"H{x:.1f}V{y:.1f}" for x, y in points[1:]]
    dots = [Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(x, y) for x, y in points]
    title = f"front of {study}: {len(points)} trials, error against size"
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" role="img" '
        'aria-label="{}"><path d="{}"/>{}</svg>'
    ).format(_WIDTH, _HEIGHT, _WIDTH, _HEIGHT, title, "".join(steps), Markup("").join(dots))


def _scaled(value: float, among: tuple[float, ...], length: int) -> float:
    low, high = min(among), max(among)
    share = 0.5 if high == low else (value - low) / (high - low)
    return _EDGE + share * (length - 2 * _EDGE)
