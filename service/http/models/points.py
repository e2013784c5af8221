"""The complete trials of a study as points of a picture."""

from bitfront.trial import Origin
from service.http.models.content import Content, Values


class Point(Content):
    """A complete trial in the plane of two figures.

    `low` and `high` are the ends of the 95 % interval of its error on the selection split.
    """

    trial: int
    origin: Origin
    baseline: str | None
    has_recovery: bool
    on_front: bool
    values: Values
    low: float | None
    high: float | None
    estimate: float | None
    test_error: float | None


class Points(Content):
    """The complete trials of a study, by number; of very many, the front and some of the others."""

    objectives: tuple[str, ...]
    complete: int
    points: tuple[Point, ...]
