"""A configuration that a study found: what it is worth, what reproduces it, and how it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bitfront.objective import FIGURES
from bitfront.plan import Configuration, Recovery
from bitfront.precision import Precision
from bitfront.trial import Trial, TrialState
from service.api.connection import Connection
from service.views.choosing import Answer
from service.views.describe import trial_names
from service.views.html import pairs_html
from service.views.render import best_dict, best_pairs, best_text
from service.views.targets import Deployable, deployable


@dataclass(frozen=True)
class FoundConfiguration:
    """A trial's configuration with all that was measured of it.

    Attributes:
        connection: The database that it is in.
        answer: The trial, with its estimate and what cannot be told from it.
        across: Whether it was asked for among several studies.
    """

    connection: Connection
    answer: Answer
    across: bool = False

    @property
    def trial(self) -> Trial:
        """The trial that measured it."""
        return self.answer.trial

    @property
    def study(self) -> str:
        """The name of its study."""
        return self.trial.study

    @property
    def number(self) -> int:
        """The number of the trial."""
        return self.trial.number

    @property
    def configuration(self) -> Configuration:
        """The plan and the recovery themselves."""
        return self.trial.configuration

    @property
    def precisions(self) -> dict[str, Precision]:
        """The precision of each layer, by the name of its weight."""
        return dict(self.configuration.plan)

    @property
    def recovery(self) -> Recovery | None:
        """Its P4Q settings; None without."""
        return self.configuration.recovery

    @property
    def values(self) -> Mapping[str, float]:
        """What was measured on the selection split, by the name of the figure."""
        return self.trial.values

    @property
    def test_values(self) -> Mapping[str, float]:
        """What was measured on the test split; empty where it was not."""
        return self.trial.test_values

    @property
    def error(self) -> float:
        """The estimated error, or the measured one where there is no estimate.

        Raises:
            KeyError: It was not measured to its end.
        """
        found = self.answer.estimate
        return self.values["error"] if found is None else found.error

    @property
    def nbytes(self) -> int:
        """Bytes of the packed checkpoint.

        Raises:
            KeyError: It was not measured to its end.
        """
        return int(self.values["nbytes"])

    @cached_property
    def targets(self) -> list[Deployable]:
        """The runtimes that it can be built for, with the layers that each has no kernel for."""
        return deployable(self.connection.store(), self.trial)

    @cached_property
    def _names(self) -> dict[int, str]:
        """The uniform baselines of its study by name, and its own if it is one."""
        baselines = trial_names(self.connection.store().baselines(self.study))
        return {**baselines, **trial_names([self.trial])}

    def to_dict(self) -> dict[str, object]:
        """Everything about it as plain JSON content, as `bitfront best --format json` prints it."""
        return best_dict(self.answer, self._names, self.targets)

    def __str__(self) -> str:
        profile = self.connection.store().load_profile(self.study)
        return best_text(self.answer, self._names, profile, self.targets, across=self.across)

    def __repr__(self) -> str:
        known = [
            f"{figure.label} {figure.write(self.values[figure.name])}"
            for figure in FIGURES
            if figure.name in ("error", "nbytes", "bits_per_weight") and figure.name in self.values
        ]
        if self.trial.state is not TrialState.COMPLETE:
            known.insert(0, str(self.trial.state))
        return f"<trial {self.number} of study {self.study}: {', '.join(known)}>"

    def _repr_html_(self) -> str:
        pairs = best_pairs(self.answer, self._names, self.targets, across=self.across)
        return pairs_html(pairs, f"{self.study}, trial {self.number}")
