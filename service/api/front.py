"""The front of a study, or of all studies of a model: a sequence that can draw itself."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, overload

from bitfront.errors import SpecError
from service.api.connection import Connection
from service.api.found import FoundConfiguration
from service.views.choosing import Answer, FullPrecision, ShownFront
from service.views.describe import trial_names
from service.views.html import png_html, table_html
from service.views.render import (
    cross_study_front_table,
    flat,
    front_cells,
    front_rows,
    front_table,
    full_text,
)

if TYPE_CHECKING:
    from pandas import DataFrame

_WIDTH = 640


class Front(Sequence[FoundConfiguration]):
    """The configurations of a front, the lowest error first.

    Attributes:
        studies: The studies that it is of.
        objectives: What they are compared by; empty for one study.
        full_precision: Full precision beside it; None where it was not measured, or for several
            studies.
    """

    def __init__(
        self,
        connection: Connection,
        shown: ShownFront,
        full: FullPrecision | None = None,
        study: str | None = None,
    ) -> None:
        """Takes what was read.

        Args:
            connection: The database.
            shown: The trials and their estimates.
            full: Full precision as the study measured it.
            study: The study; None for several.
        """
        self._connection = connection
        self._shown = shown
        self._study = study
        self.full_precision = full
        self.studies = shown.studies if study is None else (study,)
        self.objectives = shown.objectives

    def __len__(self) -> int:
        return len(self._shown.trials)

    @overload
    def __getitem__(self, place: int) -> FoundConfiguration: ...

    @overload
    def __getitem__(self, place: slice) -> list[FoundConfiguration]: ...

    def __getitem__(self, place: int | slice) -> FoundConfiguration | list[FoundConfiguration]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        trial = self._shown.trials[place]
        answer = Answer(trial, self._shown.estimates.get((trial.study, trial.number)))
        return FoundConfiguration(self._connection, answer, across=self._study is None)

    def rows(self) -> list[dict[str, object]]:
        """Each configuration's figures under stable names, as `bitfront front` exports them."""
        return front_rows(self._shown)

    def to_dataframe(self) -> "DataFrame":
        """`rows` as a table of pandas; a configuration is its canonical JSON text."""
        import pandas as pd

        return pd.DataFrame(flat(self.rows()))

    def __str__(self) -> str:
        if self._study is None:
            return cross_study_front_table(self._shown)
        return front_table(self._shown, trial_names(self._shown.trials), self.full_precision)

    def __repr__(self) -> str:
        return str(self) if self else f"<an empty front of {', '.join(self.studies) or 'nothing'}>"

    def png(self) -> bytes:
        """The picture of the study's trials and its front, as a PNG.

        Raises:
            SpecError: There is no trial to draw, or it is the front of several studies.
        """
        if self._study is None:
            raise SpecError("a front of several studies has no picture: draw that of one study")
        from service.views.pictures import write_front_picture

        with TemporaryDirectory() as folder:
            path = Path(folder) / "front.png"
            write_front_picture(self._connection.store(), self._study, path)
            return path.read_bytes()

    def _repr_html_(self) -> str:
        title = f"the front of {', '.join(self.studies)}"
        if self._study is None or not self:
            return f"<pre>{title}</pre>" if not self else self._table_html(title)
        below = "" if self.full_precision is None else f"<p>{full_text(self.full_precision)}</p>"
        picture = png_html(self.png(), f"error against size: {title}", _WIDTH)
        return f"{picture}{self._table_html(title)}{below}"

    def _table_html(self, title: str) -> str:
        header, rows = front_cells(self._shown, trial_names(self._shown.trials))
        return table_html(header, rows, left=(len(header) - 2, len(header) - 1), title=title)
