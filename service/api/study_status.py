"""How far a study is, as a program sees it."""

from dataclasses import dataclass

from bitfront.trial import StudyState
from service.views.html import pairs_html
from service.views.status import status_dict, status_pairs, status_text
from storage.records import Status


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is.

    Attributes:
        status: The counts and figures.
        best_error_at_budget: The lowest error within the job's budget; None where there is none.
    """

    status: Status
    best_error_at_budget: float | None

    @property
    def state(self) -> StudyState:
        """Where the study stands."""
        return self.status.study.state

    @property
    def progress(self) -> float:
        """The share of the planned trials that is finished, in [0, 1]."""
        return self.status.progress

    @property
    def finished(self) -> int:
        """Trials that will not change any more."""
        return self.status.finished

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content, as `bitfront status --format json` prints it."""
        return status_dict(self.status)

    def __str__(self) -> str:
        return status_text(self.status, self.best_error_at_budget)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        pairs = status_pairs(self.status, self.best_error_at_budget)
        return pairs_html(pairs, f"study {self.status.study.name}")
