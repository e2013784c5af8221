"""A study as a program sees it: how it stands, what it found, and what it is told to do."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitfront.errors import SpecError
from bitfront.trial import StudyState, Trial, TrialState
from service.api.answers import best_of, front_of
from service.api.connection import Connection
from service.api.found import FoundConfiguration
from service.api.front import Front
from service.api.limits import By, LimitOptions
from service.api.log import Log
from service.api.study_status import StudyStatus
from service.views.choosing import Answer, estimate_of
from service.views.progress import reporter_for
from service.views.status import is_driven, is_interrupted
from service.views.watching import best_error_at_budget, follow_log, tell_log, watch
from storage.artefacts import ArtefactRecord
from storage.records import LogLine, OptionRecord, ProfileRecord, Request, StudyRecord
from workers.observability.logs import messages

if TYPE_CHECKING:
    from pandas import DataFrame

    from bitfront.spec import JobSpec
    from search.optuna_export import OptunaExport

# What reads jobs takes longer to import than a question takes to answer.


class Study:
    """A study of a database.

    Everything is read when it is asked for, so that it tells how the study stands now.

    Attributes:
        name: Its name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        """Names the study.

        Args:
            connection: The database.
            name: The study, which is there.
        """
        self._connection = connection
        self.name = name

    def __repr__(self) -> str:
        return f"<study {self.name}: {self.state_text}>"

    def _repr_html_(self) -> str:
        return self.status._repr_html_()  # notebooks know it by that name

    @property
    def record(self) -> StudyRecord:
        """The study as it is stored."""
        return self._connection.store().study(self.name)

    @property
    def state(self) -> StudyState:
        """Where it stands."""
        return self.record.state

    @property
    def state_text(self) -> str:
        """Where it stands in a word: `interrupted` where it is unfinished and nobody runs it."""
        record = self.record
        return "interrupted" if is_interrupted(record) else str(record.state)

    @property
    def spec(self) -> "JobSpec":
        """Its job."""
        return self.record.spec

    @property
    def status(self) -> StudyStatus:
        """How far it is."""
        store = self._connection.store()
        found = store.status(self.name)
        return StudyStatus(found, best_error_at_budget(store, found.study))

    # What it found

    @property
    def profile(self) -> ProfileRecord | None:
        """Its layers, blocks and entropies; None before they are measured."""
        return self._connection.store().load_profile(self.name)

    @property
    def options(self) -> list[OptionRecord]:
        """The measured options of every block, and whether each survives the pruning."""
        return self._connection.store().options(self.name)

    def front(self, *, by: By = "estimate", **limits: Unpack[LimitOptions]) -> Front:
        """The front, lowest error first, or the part of it that holds the limits.

        Args:
            by: What stands for the error.
            limits: Upper limits, such as `max_nbytes="40MB"`.

        Raises:
            NothingFits: Nothing on the front holds the limits.
            SpecError: A limit is none.
        """
        return front_of(self._connection, self.name, None, by, limits)

    def best(self, *, by: By = "estimate", **limits: Unpack[LimitOptions]) -> FoundConfiguration:
        """The best configuration within limits: the first objective without one is minimised.

        Args:
            by: What stands for the error.
            limits: Upper limits, such as `max_nbytes="40MB"` or `max_error="10%"`.

        Raises:
            NothingFits: No trial holds them; the sentence says what comes nearest.
            SpecError: A limit is none.
        """
        return best_of(self._connection, self.name, None, by, limits)

    def trial(self, number: int) -> FoundConfiguration:
        """The configuration of a trial, in whatever state.

        Raises:
            SpecError: There is no such trial.
        """
        try:
            (trial,) = self._connection.store().trials_at([(self.name, number)])
        except KeyError as error:
            raise SpecError(
                f"study {self.name!r} has no trial {number}: see 'bitfront front {self.name}'"
            ) from error
        estimate = estimate_of(self._connection.store(), trial)
        return FoundConfiguration(self._connection, Answer(trial, estimate))

    def trials(self, states: Collection[TrialState] | None = None) -> list[Trial]:
        """The trials by number; only those in `states`, if given."""
        return self._connection.store().trials(self.name, states)

    def trials_dataframe(self) -> "DataFrame":
        """Every trial as a row, with the columns that Optuna's `trials_dataframe` has.

        They are `number`, `values_` and each objective, `datetime_start`, `datetime_complete`,
        `duration`, `params_` and each block, `user_attrs_` and each further fact, and `state`.
        Times are local ones without a zone, as Optuna's are.
        """
        from service.views.frames import trials_frame

        return trials_frame(self._connection.store(), self.name)

    def log(self, *, trial: int | None = None) -> Log:
        """What happened, oldest first; of a trial with the tracebacks of its attempts."""
        lines: list[LogLine] = []
        self.tell_log(lines.append, trial=trial)
        return Log(lines)

    def tell_log(
        self,
        hear: Callable[[LogLine], None],
        *,
        trial: int | None = None,
        follow: bool = False,
    ) -> StudyRecord:
        """Tells each line of the log, oldest first.

        Args:
            hear: Hears each line once.
            trial: Only what is about this trial, with tracebacks.
            follow: Goes on until the study ends or nobody runs it any more.

        Returns:
            The study as it was before the last look at its log.

        Raises:
            SpecError: There is no such trial.
        """
        store = self._connection.store()
        if trial is not None and not store.attempts(self.name, [trial]):
            raise SpecError(
                f"study {self.name!r} has no trial {trial}: see 'bitfront logs {self.name}'"
            )
        if follow:
            return follow_log(store, self.name, hear, trial=trial)
        record = self.record
        tell_log(store, self.name, hear, trial=trial)
        return record

    @property
    def artefacts(self) -> list[ArtefactRecord]:
        """The models that were built from its trials, oldest first."""
        return self._connection.store().artefacts(self.name)

    def plot(self, out: Path | str = ".", *, trial: int | None = None) -> list[Path]:
        """Draws the front and one trial as PNG, SVG and HTML into a folder.

        Args:
            out: The folder; made if it is missing.
            trial: The trial whose bits are shown; None takes the best one at the job's budget.

        Raises:
            SpecError: There is nothing to draw, or no way to write there.
        """
        from service.views.pictures import write_pictures

        return write_pictures(self._connection.store(), self.name, Path(out), trial)

    def export_optuna(self, target: str) -> "OptunaExport":
        """Writes its finished trials to an Optuna database, those that it lacks.

        Args:
            target: The database, a file or a URL.

        Raises:
            DatabaseError: It is bitfront's own or another program's, or cannot be written.
        """
        from service.database_url import as_url
        from service.views.optuna_export import export_study

        return export_study(self._connection.store(), self.name, as_url(target))

    def export_mlflow(self, uri: str) -> int:
        """Writes its finished trials to MLflow, those that it lacks; how many are new there.

        Args:
            uri: MLflow's tracking URI, a server or `sqlite:///FILE`.

        Raises:
            SpecError: It is no such URI, or MLflow is not installed.
            TrackingError: MLflow does not answer.
        """
        from bitfront.spec import tracking_uri
        from service.study.mlflow_mirror import MlflowMirror

        try:
            mirror = MlflowMirror(self._connection.store(), self.name, tracking_uri(uri))
        except ValueError as error:
            raise SpecError(str(error)) from error
        added = mirror.update()
        mirror.conclude()
        return added

    # What it is told

    def resume(
        self,
        *,
        trials: int | None = None,
        workers: int | None = None,
        address: str | None = None,
        accept_changes: bool = False,
        wait: bool = True,
    ) -> "Study":
        """Goes on where it ended, however it ended, or where it was paused.

        A complete study is left as it is, unless `trials` asks for more.

        Args:
            trials: How many trials in all, from now on.
            workers: Trials that run side by side, from now on.
            address: A Ray cluster; None runs on this machine.
            accept_changes: Goes on although the model or the data changed.
            wait: As for `Database.submit`.

        Raises:
            BitfrontError: It cannot be run; what was measured is kept.
        """
        from service.api.jobs import with_changes
        from service.api.running import resume

        if self.withdraw_pause() or not self.has_work(trials, accept_changes=accept_changes):
            return self
        resume(
            self._connection,
            with_changes(self.spec, trials=trials, workers=workers),
            address=address,
            trials=trials,
            workers=workers,
            accept_changes=accept_changes,
            wait=wait,
        )
        return self

    def withdraw_pause(self) -> bool:
        """Lets a paused driver go on; whether there is one."""
        record, store = self.record, self._connection.store()
        if not (is_driven(record) and record.request is Request.PAUSE):
            return False
        store.withdraw_request(self.name)
        return True

    def has_work(self, trials: int | None = None, *, accept_changes: bool = False) -> bool:
        """Whether a resume would do anything: a complete study has nothing to do."""
        found = self._connection.store().status(self.name)
        wanted = found.study.planned_trials if trials is None else trials
        is_done = found.study.state is StudyState.COMPLETE and found.finished >= wanted
        return accept_changes or not is_done

    def wait(self) -> "Study":
        """Shows the progress of a study that runs elsewhere, until it ends or nobody runs it.

        Ctrl-C ends the waiting, not the study.
        """
        with reporter_for(messages()) as reporter:
            watch(self._connection.store(), self.name, reporter)
        return self

    def pause(self) -> bool:
        """Lets it finish the trials that run, and wait; False where nobody runs it."""
        return self._ask(Request.PAUSE)

    def stop(self) -> bool:
        """Lets it finish the trials that run and start no more; False where nobody runs it."""
        return self._ask(Request.STOP)

    def cancel(self) -> bool:
        """Ends it now; complete trials are kept. False where nobody runs it."""
        return self._ask(Request.CANCEL)

    def _ask(self, asked: Request) -> bool:
        if not is_driven(self.record):
            return False
        self._connection.store().request(self.name, asked)
        return True

    def delete(self) -> None:
        """Deletes it with its trials and its front; what it measured stays for other studies.

        Raises:
            LeaseHeld: A driver runs it.
            UnusableSpool: It is deleted, but its files in flight cannot be.
        """
        from service.study.spools import study_spool

        spool = study_spool(self._connection.url, self.record)
        self._connection.store().delete_study(self.name)
        spool.remove()
