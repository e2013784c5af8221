"""A configuration that a study found: what it is worth, what reproduces it, and how it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bitfront.errors import SpecError
from bitfront.objective import FIGURES
from bitfront.plan import Configuration, Recovery
from bitfront.precision import Precision
from bitfront.targets import TARGETS
from bitfront.trial import Trial, TrialState
from service.api.connection import Connection
from service.views.choosing import Answer, shown_front
from service.views.describe import trial_names
from service.views.dossier import dossier_dict, dossier_text
from service.views.html import pairs_html
from service.views.render import best_dict, best_pairs, best_text
from service.views.targets import Deployable, deployable

if TYPE_CHECKING:
    from objectives.evaluation.attachment import Attached, Attachment, TorchModel
    from objectives.evaluation.evaluator import Evaluator
    from service.api.tuning import Tuned
    from service.study.build import Built

# What works on a model takes seconds to import, which no question about a configuration needs.


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

    def apply(self, model: "TorchModel") -> "Attached":
        """Puts the configuration onto a model that you loaded, in place, and can take it off again.

        The model must be the one that was measured: the same architecture and weights. It gets the
        quantized weights, its inputs are quantized where they are multiplied, and a P4Q adapter
        works on its image features; the features of the study's classes, under a P4Q prompt where
        there is one, are on what comes back. The first call loads the study's model and data, and
        trains a P4Q recovery as its trial did; later ones are quick. Meanwhile the model is in
        eval mode.

            with configuration.apply(model) as attached:
                images = functional.normalize(model.encode_image(pixels), dim=-1)
                nearest = (images @ attached.text_features.T).argmax(dim=-1)

        Args:
            model: What open_clip or transformers loaded.

        Returns:
            What takes it off: at the end of a `with` block, or by `undo()`.

        Raises:
            InvalidModel: The model is another one, or has a configuration on already.
            BitfrontError: The study's model or data are not there, or not the same any more.
        """
        return self._attachment.put_on(model)

    @cached_property
    def _attachment(self) -> "Attachment":
        from objectives.evaluation.attachment import Attachment

        return Attachment.of(self.load(), self.configuration)

    def build(
        self,
        out: Path | str,
        *,
        to: str = "packed",
        accuracy_level: int = 4,
        reference: bool = True,
        on_start: Callable[[], None] = lambda: None,
    ) -> "Built":
        """Builds a model that runs without bitfront, and verifies it before it gets its name.

        Args:
            out: The folder to make; it must not be there.
            to: What to build, as for `bitfront build --to`.
            accuracy_level: Of `onnx`: 4 lets the runtime round inputs to 8 bits, 0 does not.
            reference: Whether the model at full precision is written too, timed in turns with what
                is built, and removed: that takes its disk, memory and time.
            on_start: Called as soon as the work begins.

        Raises:
            BitfrontError: It cannot be built, or is not what was measured.
        """
        from service.study.build import build_artefact, check_place, check_trial, writer

        known = [target.artefact for target in TARGETS]
        if to not in known:
            raise SpecError(f"to: {to!r} is not possible: write {' or '.join(known)}")
        store = self.connection.store()
        record = store.study(self.study)
        if (task := record.spec.task) is not None and not task.is_built:
            raise SpecError(task.without_artefact)
        place = Path(out)
        write = writer(to, accuracy_level)
        check_trial(self.study, self.trial)
        check_place(place)
        on_start()
        return build_artefact(
            self.load(),
            record,
            self.trial,
            place,
            store,
            target=to,
            write=write,
            reference=reference,
        )

    def tune(
        self,
        out: Path | str,
        *,
        samples: int | None = None,
        max_nbytes: float | str | None = None,
        keep_worse: bool = False,
        overwrite: bool = False,
        workers: int | None = None,
        address: str | None = None,
        **settings: object,
    ) -> "Tuned":
        """Wins back what the plan lost: trains a P4Q prompt and an adapter for it.

            result = configuration.tune("tuned", context_length=0, reduction=2, steps=400)
            result.selection_error["tuned"], result.folder

        A tuning that was ended resumes when it is asked for again.

        Args:
            out: The folder for tensors and card.
            samples: Searches the settings that are not given, with so many recoveries on
                workers; None trains one here.
            max_nbytes: What plan and recovery may take together.
            keep_worse: Keeps a recovery even where the plan does no worse without it.
            overwrite: Replaces what is in the folder.
            workers: Samples that are trained side by side; None for what the job says.
            address: A Ray cluster for a search; None runs on this machine.
            settings: Of the recovery, such as `reduction=2`; the others are the trial's own, or
                the usual ones.

        Raises:
            SpecError: There is no such setting, the folder holds a recovery, or the plan takes
                too much with it.
            Interrupted: A search was told to end.
        """
        from service.api.tuning import (
            check_recovers,
            chosen_recovery,
            refuse_full_folder,
            search_recovery,
            train_here,
        )
        from service.views.limits import read_limits
        from workers.process.cache_folder import feature_folder

        folder = Path(out)
        check_recovers(self.connection.store().study(self.study).spec)
        most = read_limits({"max_nbytes": max_nbytes}).given.get("nbytes")
        refuse_full_folder(folder, overwrite=overwrite)
        recovery = chosen_recovery(self.recovery, settings)
        wanted = Configuration(self.configuration.plan, recovery)
        if samples is None:
            evaluator = self.load(feature_folder())
            return train_here(evaluator, wanted, folder, max_nbytes=most, keep_worse=keep_worse)
        return search_recovery(
            self.connection,
            self.study,
            wanted,
            folder,
            samples=samples,
            fixed=settings.keys() - {"steps"},
            max_nbytes=most,
            keep_worse=keep_worse,
            workers=workers,
            address=address,
        )

    def load(self, features: Path | None = None) -> "Evaluator":
        """The study's model at its task, in full precision; what evaluates any configuration.

        Args:
            features: Folder for features that memory has no room for.

        Raises:
            BitfrontError: Model or data are not there, or not the same any more.
        """
        from service.study.stored_configuration import bounds_of, load_evaluator

        store = self.connection.store()
        record = store.study(self.study)
        return load_evaluator(record, bounds_of(store, record), features)

    def to_dict(self) -> dict[str, object]:
        """Everything about it as plain JSON content, as `bitfront best --format json` prints it."""
        return best_dict(self.answer, self._names, self.targets)

    def details(self) -> str:
        """Everything that is known of it, as `bitfront show` prints it."""
        store = self.connection.store()
        return dossier_text(
            self.answer,
            self._names,
            store.study(self.study),
            store.load_profile(self.study),
            store.attempts(self.study, [self.number]),
            self.targets,
            is_on_front=self._is_on_front,
        )

    def details_dict(self) -> dict[str, object]:
        """The same as plain JSON content."""
        store = self.connection.store()
        return dossier_dict(
            self.answer,
            self.to_dict(),
            store.study(self.study),
            store.load_profile(self.study),
            store.attempts(self.study, [self.number]),
            is_on_front=self._is_on_front,
        )

    @cached_property
    def _is_on_front(self) -> bool:
        shown = shown_front(self.connection.store(), self.study)
        return self.number in {trial.number for trial in shown.trials}

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
