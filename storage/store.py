"""The store: every study, trial and measurement, kept in one SQL database."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from bitfront.attempt import (
    Attempt,
    AttemptResult,
    Evaluated,
    Failed,
    IntermediateValue,
    Pruned,
)
from bitfront.identity.identities import CellKey
from bitfront.layers import Block, Layer
from bitfront.profile import Cell, LayerEntropy, StageArtefactKind
from bitfront.samples import SampleResults
from bitfront.trial import Evaluation, FrontChange, StudyState, Trial, TrialState
from bitfront.tuning import TuningSample
from storage import artefacts, attempts, leases, profiles, queries, studies, trials, tunings
from storage.artefacts import ArtefactRecord
from storage.engine import Database
from storage.records import (
    AttemptRecord,
    Difference,
    Lease,
    Limits,
    LogLine,
    MeasuredTrials,
    ModelFronts,
    OptionRecord,
    ProfileRecord,
    Request,
    ShownTrial,
    Status,
    StudyRecord,
    StudySummary,
    StudyVersion,
)
from storage.schema import open_database
from storage.tunings import TuningRecord

if TYPE_CHECKING:
    from bitfront.spec import JobSpec

_NO_LIMITS = Limits()


def open_store(url: str, *, create: bool = True, patience_s: float = 30.0) -> "Store":
    """The store in the database at `url`.

    Args:
        url: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.
        create: Makes the tables of an empty database, and upgrades an older one.
        patience_s: How long a transaction is tried again when the connection breaks.

    Raises:
        DatabaseError: It cannot be reached, is foreign, damaged or newer; or it is missing,
            empty or older, and `create` is not set.
    """
    return Store(open_database(url, create=create, patience_s=patience_s))


class Store:
    """Everything that bitfront keeps. Each method is one transaction.

    A method that takes a `Lease` writes only while that lease holds and raises `LeaseLost`
    otherwise; one that takes a study's name raises `UnknownStudy` if there is none. All raise
    `DatabaseError` when the database cannot be reached for `patience_s` seconds. What a
    method has returned from is on the disk. A store may be shared by threads.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def __str__(self) -> str:
        """Where the store is, without its password."""
        return str(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def on_wait(self, hear: Callable[[float], None]) -> None:
        """Lets `hear` be called with the seconds of each transaction, back-off included."""
        self._database.on_wait = hear

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()

    # Studies

    def create_study(self, spec: "JobSpec", provenance: Mapping[str, str]) -> StudyRecord:
        """Makes the study that the job names, in the state `PROFILING`; nobody runs it yet.

        Raises:
            DuplicateStudy: There is one of that name.
        """
        return self._database.write_once(studies.create, spec, provenance)

    def study(self, name: str) -> StudyRecord:
        """The study of that name."""
        return self._database.read(studies.read, name)

    def studies(self) -> list[StudySummary]:
        """Every study with its counts, the newest first."""
        return self._database.read(studies.summaries)

    def delete_study(self, name: str) -> None:
        """Deletes a study with its trials; measured cells and evaluations stay for others.

        Raises:
            LeaseHeld: A driver runs it.
        """
        self._database.write(studies.remove, name)

    def replace_untried(self, name: str) -> None:
        """Deletes a study that failed or was cancelled before its first trial, if that is one.

        Its name is free again; measured cells stay. A study with a trial is left as it is.
        """
        self._database.write(studies.remove_untried, name)

    def set_provenance(
        self,
        lease: Lease,
        provenance: Mapping[str, str],
        *,
        results: Collection[str] = (),
        accept: bool = False,
    ) -> list[Difference]:
        """Records what the study is made of; `model` is the hash that links it to its model.

        Args:
            lease: The right to write to the study.
            provenance: What was found, by name.
            results: The names of what results depend on. Where one of these differs, nothing
                is recorded, or with `accept` all trials until now become outdated.
            accept: Whether what differs replaces the record.

        Returns:
            What differs from the record. That keeps its old value, unless `accept` is set.
        """
        return self._database.write(studies.set_provenance, lease, provenance, results, accept)

    def replace_spec(self, lease: Lease, spec: "JobSpec", *, changes_results: bool = False) -> None:
        """Gives the study another specification.

        With `changes_results`, all trials until now become outdated.
        """
        self._database.write(studies.replace_spec, lease, spec, changes_results)

    def set_state(self, lease: Lease, state: StudyState, message: str | None = None) -> None:
        """Moves the study to a state."""
        self._database.write(studies.set_state, lease, state, message)

    def set_reference(self, lease: Lease, reference: Mapping[str, float]) -> None:
        """Records the hypervolume's reference point, objective name to value."""
        self._database.write(studies.set_reference, lease, reference)

    def set_correlation(self, lease: Lease, correlation: float | None) -> None:
        """Records the rank correlation of proxy and measured error; NaN counts as unknown."""
        self._database.write(studies.set_correlation, lease, correlation)

    def log(
        self, name: str, after_id: int = 0, *, trial: int | None = None, limit: int = 1000
    ) -> list[LogLine]:
        """The study's log after the event `after_id` with the attempts it is about.

        Args:
            name: The study.
            after_id: The last event that is known.
            trial: Only what is about this trial, with tracebacks.
            limit: How many lines at most.
        """
        return self._database.read(studies.log, name, after_id, limit, trial)

    def last_event(self, name: str) -> int:
        """The number of the study's last event, as `log` takes it; 0 where there is none."""
        return self._database.read(queries.last_event, name)

    # Leases

    def acquire(
        self, name: str, owner: str, lease_s: float, *, dead_owner: str | None = None
    ) -> Lease:
        """Takes the study for `owner`, which must be unique to this process.

        The lease holds until `lease_s` seconds pass without a heartbeat, by the database's
        clock; after that anybody may take the study over. A pending request is cleared.

        Args:
            name: The study.
            owner: Who takes it.
            lease_s: How long it stays held without a heartbeat.
            dead_owner: An owner whose process is known to be gone: its lease does not count.

        Raises:
            LeaseHeld: The lease of another owner holds.
        """
        return self._database.write(leases.acquire, name, owner, lease_s, dead_owner)

    def heartbeat(self, lease: Lease) -> Request | None:
        """Renews the lease; what a client asks of the driver, as long as it asks."""
        return self._database.write(leases.heartbeat, lease)

    def release(
        self,
        lease: Lease,
        state: StudyState,
        message: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Ends the lease and leaves the study in a state; a traceback goes to its log only."""
        self._database.write_once(leases.release, lease, state, message, traceback)

    def request(self, name: str, asked: Request) -> None:
        """Asks the study's driver for something; a later request replaces it."""
        self._database.write(leases.request, name, asked)

    def withdraw_request(self, name: str) -> None:
        """Takes back what was asked of the study's driver: a paused one goes on."""
        self._database.write(leases.withdraw, name)

    # Profiles

    def save_profile(
        self,
        lease: Lease,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        entropies: Sequence[LayerEntropy],
        *,
        fixed_nbytes: int,
    ) -> None:
        """Records layers, blocks and entropies; another profile replaces the one before."""
        record = ProfileRecord(tuple(layers), tuple(blocks), tuple(entropies), fixed_nbytes)
        self._database.write(profiles.save, lease, record)

    def load_profile(self, name: str) -> ProfileRecord | None:
        """The study's layers, blocks and entropies; None until they are recorded."""
        return self._database.read(profiles.load, name)

    def cells(self, keys: Sequence[CellKey]) -> dict[str, Cell]:
        """The cells that any study has measured, by the digest of their key.

        A cell carries the name its block had when it was measured.
        """
        return self._database.read(profiles.cells, keys)

    def put_cells(self, lease: Lease, measured: Sequence[tuple[CellKey, Cell, float]]) -> None:
        """Records measured cells with their seconds; a known key keeps its first cell."""
        self._database.write(profiles.put_cells, lease, measured)

    def stage_artefacts(self, keys: Sequence[str]) -> dict[str, dict[str, object]]:
        """What any study has found out under these keys."""
        return self._database.read(profiles.stage_artefacts, keys)

    def put_stage_artefact(
        self,
        lease: Lease,
        key: str,
        kind: StageArtefactKind,
        content: Mapping[str, object],
        seconds: float,
    ) -> None:
        """Records a stage's artefact, which is plain JSON; a known key keeps its first content."""
        self._database.write(profiles.put_stage_artefact, lease, key, kind, content, seconds)

    def save_options(self, lease: Lease, records: Iterable[OptionRecord]) -> None:
        """Records what each block may still take, in place of what was recorded before."""
        self._database.write(profiles.save_options, lease, tuple(records))

    def options(self, name: str) -> list[OptionRecord]:
        """Every option of the study's blocks, block by block."""
        return self._database.read(profiles.options, name)

    # Trials

    def start_trial(self, lease: Lease, trial: Trial) -> None:
        """Records a new trial as running, before it is dispatched; safe to repeat.

        Raises:
            DatabaseError: Its number or its configuration belongs to another trial.
        """
        self._database.write(trials.start, lease, trial)

    def finish_attempt(
        self,
        lease: Lease,
        attempt: Attempt,
        result: AttemptResult,
        *,
        constraints: Mapping[str, float] = MappingProxyType({}),
        front: FrontChange | None = None,
        retry: bool = False,
    ) -> bool:
        """Ends an attempt with all that follows from its result.

        An evaluation completes the trial, with its place on the front and its entry in the
        cache of evaluations. A failure starts the next attempt or fails the trial.

        Args:
            lease: The right to write to the study.
            attempt: What ended.
            result: How it ended.
            constraints: Of an evaluation: constraint name to its excess, at most 0 where it holds.
            front: What an evaluation does to the front; None leaves the front as it is.
            retry: Whether a failure is followed by another attempt.

        Returns:
            Whether this call ended it; False if the attempt is no longer the one that runs, in
            which case nothing is written.

        Raises:
            InvalidMetric: An objective of the job is missing, or a number is not finite.
        """
        write = self._database.write_once
        match result:
            case Evaluated():
                return write(attempts.complete, lease, attempt, result, constraints, front)
            case Failed():
                return write(attempts.fail, lease, attempt, result, retry)
            case Pruned():
                return write(attempts.prune, lease, attempt, result)

    def report(self, lease: Lease, attempt: Attempt, shown: IntermediateValue) -> bool:
        """Records what a recovery in training showed.

        Returns:
            Whether it is recorded; False if the attempt is no longer the one that runs.

        Raises:
            InvalidMetric: The value is not finite.
        """
        return self._database.write(attempts.report, lease, attempt, shown)

    def intermediates(self, name: str) -> dict[int, dict[int, float]]:
        """Trial number to optimiser step to the error shown there, in rising order."""
        return self._database.read(attempts.intermediates, name)

    def fence(self, lease: Lease) -> list[Trial]:
        """Starts a new attempt of what a driver's death or a cancel left without a result.

        Returns:
            Those trials, now running, to be dispatched again; older results are refused.
        """
        return self._database.write(trials.fence, lease)

    def cancel_running(self, lease: Lease) -> int:
        """Ends every running trial without a result; how many there were."""
        return self._database.write(trials.cancel_running, lease)

    def trials(self, name: str, states: Collection[TrialState] | None = None) -> list[Trial]:
        """The study's trials by number; only those in `states`, if given."""
        return self._database.read(trials.read, name, states)

    def trials_page(
        self,
        name: str,
        states: Collection[TrialState] | None = None,
        *,
        after: int = -1,
        limit: int = 100,
    ) -> list[Trial]:
        """At most `limit` of the study's trials numbered above `after`, by number."""
        return self._database.read(queries.trials_page, name, states, after, limit)

    def attempts(self, name: str, numbers: Collection[int] | None = None) -> list[AttemptRecord]:
        """Every attempt at the study's trials, or at those numbered, in order."""
        return self._database.read(attempts.attempts, name, numbers)

    def evaluation(self, key: str) -> Evaluation | None:
        """The evaluation under a key, whichever study it was made for."""
        return self._database.read(attempts.find_evaluation, key)

    def save_test_values(
        self,
        lease: Lease,
        values: Mapping[int, Mapping[str, float]],
        samples: Mapping[int, SampleResults] = MappingProxyType({}),
    ) -> None:
        """Records what complete trials, by number, reach on the test split.

        `samples` is what came out for each sample of the split, where it is known.
        """
        self._database.write(trials.save_test_values, lease, values, samples)

    # Tunings

    def begin_tuning(
        self, lease: Lease, digest: str, settings: Mapping[str, object]
    ) -> TuningRecord:
        """The experiment of that digest, made now or known already."""
        return self._database.write(tunings.begin, lease, digest, settings)

    def tunings(self, name: str) -> list[TuningRecord]:
        """The study's experiments over the settings of a recovery, oldest first."""
        return self._database.read(tunings.read, name)

    def start_sample(self, lease: Lease, tuning_id: int, sample: TuningSample) -> None:
        """Records a new sample as running, before it is dispatched; safe to repeat.

        Raises:
            DatabaseError: Its number belongs to another sample.
        """
        self._database.write(tunings.start, lease, tuning_id, sample)

    def report_sample(
        self, lease: Lease, tuning_id: int, number: int, attempt: int, step: int, error: float
    ) -> bool:
        """Records the error that a sample showed after `step` optimiser steps; safe to repeat.

        Returns:
            Whether it is recorded; False if the attempt is no longer the one that runs.

        Raises:
            InvalidMetric: The error is not finite.
        """
        return self._database.write(tunings.report, lease, tuning_id, number, attempt, step, error)

    def finish_sample(
        self,
        lease: Lease,
        tuning_id: int,
        number: int,
        attempt: int,
        state: TrialState,
        message: str | None = None,
    ) -> bool:
        """Ends a sample's attempt; safe to repeat.

        Returns:
            Whether it ended so; False if the attempt is no longer the one that runs.
        """
        return self._database.write(
            tunings.finish, lease, tuning_id, number, attempt, state, message
        )

    def fence_samples(self, lease: Lease, tuning_id: int) -> None:
        """Starts a new attempt of the samples that a driver's death left without a result."""
        self._database.write(tunings.fence, lease, tuning_id)

    def samples(self, tuning_id: int) -> dict[int, TuningSample]:
        """The experiment's samples by number, with every error that was reported."""
        return self._database.read(tunings.samples, tuning_id)

    def save_sample_test_error(
        self, lease: Lease, tuning_id: int, number: int, error: float
    ) -> None:
        """Records what the chosen sample reaches on the test split."""
        self._database.write(tunings.save_test_error, lease, tuning_id, number, error)

    # Artefacts

    def put_artefact(self, name: str, record: ArtefactRecord) -> None:
        """Records a model that was built from a trial of the study; safe to repeat.

        What lay in the same folder before is forgotten.
        """
        self._database.write(artefacts.put, name, record)

    def artefacts(self, name: str) -> list[ArtefactRecord]:
        """The models that were built from the study's trials, oldest first."""
        return self._database.read(artefacts.read, name)

    # Queries

    def front(self, name: str) -> list[Trial]:
        """The study's non-dominated trials, the lowest error first."""
        return self._database.read(queries.front, name)

    def model_fronts(self, model: str, limits: Limits = _NO_LIMITS) -> ModelFronts:
        """The fronts of all studies of a model, by its name or hash.

        Args:
            model: Name or hash of the model.
            limits: What the fronts are to be limited by; all their trials come back.

        Raises:
            SpecError: The model is unknown or ambiguous, or its studies measured their errors
                on different selection data, or latencies that are limited on different devices.
        """
        return self._database.read(queries.model_fronts, model, limits)

    def best(
        self, name: str | None, limits: Limits = _NO_LIMITS, *, model: str | None = None
    ) -> Trial | None:
        """The best trial within the limits; None if nothing fits.

        It minimises the study's first objective that is not limited (the first one if all
        are), then its others in their order, then bytes. Trials that break a constraint of
        the job do not count, and neither do those where a limited value was not measured.
        Over the studies of a model, the first objective is the error, then come bytes.

        Args:
            name: The study; None for all studies of `model`.
            limits: Upper limits.
            model: Name or hash of a model, where `name` is None.

        Raises:
            SpecError: The model is unknown or ambiguous, or its studies measured their errors
                on different selection data, or latencies that are limited on different devices.
        """
        return self._database.read(queries.best, name, limits, model)

    def measured(
        self, name: str | None, limits: Limits = _NO_LIMITS, *, model: str | None = None
    ) -> MeasuredTrials | None:
        """What a choice among the trials of a study, or of a model's studies, looks at.

        None where no trial has results by sample: then `best` and `front` say all that is known.

        Args:
            name: The study; None for all studies of `model`.
            limits: What the choice is to be limited by; all trials come back.
            model: Name or hash of a model, where `name` is None.

        Raises:
            SpecError: As `best` does.
        """
        return self._database.read(queries.measured, name, limits, model)

    def baselines(self, name: str) -> list[Trial]:
        """The study's complete baselines, by number: full precision among them."""
        return self._database.read(queries.baselines, name)

    def sample_results(self, name: str, number: int) -> dict[str, SampleResults]:
        """What came out for each sample of a trial, by the split: `selection` and `test`."""
        return self._database.read(queries.sample_results, name, number)

    def hypervolumes(self, name: str) -> list[tuple[int, float]]:
        """The front's hypervolume after so many complete trials, in rising order."""
        return self._database.read(queries.hypervolumes, name)

    def version(self, name: str) -> StudyVersion:
        """What differs whenever a query of the study's trials may have another answer."""
        return self._database.read(queries.version, name)

    def spread(
        self, name: str, most: int, also: Collection[int] = ()
    ) -> tuple[int, list[ShownTrial]]:
        """How many of the study's trials are complete, and those of them that a picture shows.

        Args:
            name: The study.
            most: Of more than so many, only some at equal distances come back, by number.
            also: Numbers of trials that come back too.
        """
        return self._database.read(queries.spread, name, most, also)

    def trials_at(self, places: Sequence[tuple[str, int]]) -> list[Trial]:
        """The trials at some studies and numbers, in that order."""
        return self._database.read(queries.trials_at, places)

    def nearest(
        self, name: str | None, limits: Limits, *, model: str | None = None
    ) -> Trial | None:
        """The trial that exceeds the limits by the smallest sum of shares (`value/limit - 1`)."""
        return self._database.read(queries.nearest, name, limits, model)

    def status(self, name: str) -> Status:
        """How far the study is."""
        return self._database.read(queries.status, name)
