"""A study's copy in MLflow: a run for the study, and one below it for each finished trial."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from bitfront.errors import SpecError, TrackingError
from bitfront.layers import Block
from bitfront.passwords import masked
from bitfront.spec import SQLITE
from bitfront.trial import StudyState, Trial, TrialState
from search.optuna_export import FINAL_STATES
from service.views.choosing import shown_front
from service.views.parameters import attributes, parameters
from service.views.pictures import write_front_picture
from service.views.render import csv_text, flat, front_rows
from storage.records import StudyRecord, StudyVersion
from storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STUDY_TAG: Final = "bitfront.study"
"""The tag of all runs of a study: its name, and the moment of its creation."""
TRIAL_TAG: Final = "bitfront.trial"
"""The tag that holds a trial's number; the run of the study itself has none."""
STATE_TAG: Final = "state"
FRONT_TAG: Final = "front"

_PARENT_TAG: Final = "mlflow.parentRunId"
_ARTEFACTS: Final = "mlartifacts"
_PAGE: Final = 500
_PER_REQUEST: Final = 100  # MLflow takes 100 parameters at a time
_LONGEST_NAME: Final = 250
_LONGEST_VALUE: Final = 6000
_STRANGE: Final = re.compile(r"[^\w./ -]")
_STATUS: Final = {
    StudyState.COMPLETE: "FINISHED",
    StudyState.FAILED: "FAILED",
    StudyState.STOPPED: "KILLED",
    StudyState.CANCELLED: "KILLED",
}
# What somebody set is kept. A driver does not wait for minutes, nothing is told to others, and
# the loggers of alembic and SQLAlchemy stay ours.
_SETTINGS: Final = {
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def check_tracking(uri: str) -> None:
    """Makes sure that MLflow is installed and answers at a tracking URI.

    Raises:
        SpecError: It is not installed.
        TrackingError: It does not answer.
    """
    with _answering(uri):
        _client(uri).search_experiments(max_results=1)


@dataclass(slots=True)
class _MirroredTrial:
    """A trial's run, and what it says by now."""

    run: str
    state: str
    is_whole: bool
    is_tested: bool
    is_on_front: bool


class MlflowMirror:
    """Keeps the copy of one study; what is there already is never written twice.

    The experiment has the study's name. What was chosen becomes parameters, what was measured
    metrics, as in `bitfront export`; a trial's plan is the artefact `configuration.json`.
    """

    def __init__(self, store: Store, study: str, uri: str) -> None:
        """Finds the study's runs, or begins them.

        Args:
            store: Where the study is.
            study: Its name.
            uri: MLflow's tracking URI.

        Raises:
            SpecError: MLflow is not installed.
            TrackingError: It does not answer.
        """
        self._store = store
        self._study = study
        self._uri = uri
        self._settled = -1
        self._version: StudyVersion | None = None
        record = store.study(study)
        self._identity = f"{study} of {record.created_at.isoformat()}"
        with _answering(uri):
            self._client = _client(uri)
            self._experiment = self._find_experiment()
            self._trials: dict[int, _MirroredTrial] = {}
            self._run = self._find_runs() or self._begin(record)
            history = self._client.get_metric_history(self._run, "hypervolume")
        self._hypervolume_step = max((entry.step for entry in history), default=-1)

    def update(self) -> int:
        """Adds the trials that have finished; how many are new there.

        Raises:
            TrackingError: MLflow cannot be used; calling again continues from where this stopped.
        """
        version = self._store.version(self._study)
        if version == self._version:
            return 0
        added = 0
        with _answering(self._uri):
            for trial in self._finished():
                known = self._trials.get(trial.number)
                if known is None or not known.is_whole:
                    added += known is None
                    self._add(trial, parameters(trial.configuration, self._blocks))
            self._add_hypervolumes()
        self._version = version
        return added

    @cached_property
    def _blocks(self) -> Sequence[Block]:
        """The study's blocks, which are stored before its first trial."""
        profile = self._store.load_profile(self._study)
        return () if profile is None else profile.blocks

    def conclude(self) -> None:
        """Adds what is known last: test values, the front, artefacts, and the study's state.

        Raises:
            TrackingError: MLflow cannot be used; calling again continues from where this stopped.
        """
        front = {trial.number for trial in self._store.front(self._study)}
        trials = self._store.trials(self._study)
        artefacts = self._store.artefacts(self._study)
        record = self._store.study(self._study)
        with _answering(self._uri):
            for trial in trials:
                if known := self._trials.get(trial.number):
                    self._bring_up_to_date(trial, known, is_on_front=trial.number in front)
            if front:
                self._add_front()
            built = [
                {
                    "trial": one.trial,
                    "target": one.target,
                    "path": one.path,
                    "nbytes": one.nbytes,
                    "files": dict(one.files),
                }
                for one in artefacts
            ]
            if built:
                self._client.log_dict(self._run, {"artefacts": built}, "artefacts.json")
            self._client.set_tag(self._run, STATE_TAG, str(record.state))
            self._client.update_run(self._run, status=_STATUS.get(record.state, "RUNNING"))

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is not None:
            return str(found.experiment_id)
        folder = _artefact_folder(self._uri)
        return str(self._client.create_experiment(self._study, artifact_location=folder))

    def _find_runs(self) -> str | None:
        """The run of the study, if there is one; takes in those of its trials."""
        parent = None
        for run in self._runs():
            number = run.data.tags.get(TRIAL_TAG)
            if number is None:
                parent = run.info.run_id
            elif int(number) in self._trials:  # of two drivers, for a moment
                self._client.delete_run(run.info.run_id)
            else:
                self._trials[int(number)] = _MirroredTrial(
                    run.info.run_id,
                    run.data.tags.get(STATE_TAG, ""),
                    is_whole=run.info.status != "RUNNING",
                    is_tested=any(name.startswith("test_") for name in run.data.metrics),
                    is_on_front=run.data.tags.get(FRONT_TAG) == "true",
                )
        if parent is not None:
            self._client.update_run(parent, status="RUNNING")
        return parent

    def _runs(self) -> "Iterator[Run]":
        """All runs of the study, the oldest first."""
        wanted = f"tags.`{STUDY_TAG}` = '{self._identity}'"
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], wanted, order_by=["attributes.start_time"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _begin(self, record: StudyRecord) -> str:
        """The run of the study, with its job."""
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(record.created_at),
            tags={STUDY_TAG: self._identity, STATE_TAG: str(record.state)},
            run_name=self._study,
        ).info.run_id
        job = json.loads(record.spec_json)
        self._log(run, params=dict(_leaves(job)))
        self._client.log_dict(run, job, "job.yaml")
        return str(run)

    def _finished(self) -> Iterator[Trial]:
        """The trials that will not change, from the first on that may be new here."""
        after = self._settled
        is_settled = True
        while page := self._store.trials_page(self._study, after=after, limit=_PAGE):
            for trial in page:
                if trial.state in FINAL_STATES:
                    yield trial
                elif trial.state is not TrialState.OUTDATED:
                    is_settled = False
                if is_settled:
                    self._settled = trial.number
            after = page[-1].number

    def _add(self, trial: Trial, params: Mapping[str, object]) -> None:
        """A trial's run; one that was begun before is completed."""
        assert trial.started_at is not None, "a stored trial has the time of its start"
        assert trial.finished_at is not None, "the schema gives every finished trial its time"
        known = self._trials.get(trial.number)
        if known is None:
            run = self._client.create_run(
                self._experiment,
                start_time=_milliseconds(trial.started_at),
                tags={
                    STUDY_TAG: self._identity,
                    TRIAL_TAG: str(trial.number),
                    _PARENT_TAG: self._run,
                },
                run_name=f"trial {trial.number}",
            ).info.run_id
            known = _MirroredTrial(
                str(run), str(trial.state), is_whole=False, is_tested=False, is_on_front=False
            )
            self._trials[trial.number] = known
        finished = _milliseconds(trial.finished_at)
        self._log(
            known.run,
            params=params,
            metrics=[(name, value, finished, 0) for name, value in trial.values.items()],
            tags={STATE_TAG: str(trial.state), **attributes(trial)},
        )
        self._client.log_dict(known.run, trial.configuration.to_dict(), "configuration.json")
        status = "FAILED" if trial.state is TrialState.FAILED else "FINISHED"
        self._client.set_terminated(known.run, status=status, end_time=finished)
        known.is_whole = True

    def _bring_up_to_date(self, trial: Trial, known: _MirroredTrial, *, is_on_front: bool) -> None:
        tags: dict[str, object] = {}
        if known.state != trial.state:
            tags[STATE_TAG] = known.state = str(trial.state)
        if known.is_on_front != is_on_front:
            tags[FRONT_TAG] = "true" if is_on_front else "false"
            known.is_on_front = is_on_front
        metrics: list[tuple[str, float, int, int]] = []
        if trial.test_values and not known.is_tested:
            assert trial.finished_at is not None
            moment = _milliseconds(trial.finished_at)
            metrics = [(f"test_{name}", v, moment, 0) for name, v in trial.test_values.items()]
            known.is_tested = True
        if tags or metrics:
            self._log(known.run, metrics=metrics, tags=tags)

    def _add_hypervolumes(self) -> None:
        moment = _milliseconds(self._store.study(self._study).updated_at)
        new = [
            ("hypervolume", value, moment, step)
            for step, value in self._store.hypervolumes(self._study)
            if step > self._hypervolume_step
        ]
        self._log(self._run, metrics=new)
        if new:
            self._hypervolume_step = new[-1][-1]

    def _add_front(self) -> None:
        rows = flat(front_rows(shown_front(self._store, self._study)))
        self._client.log_text(self._run, csv_text(rows), "front.csv")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "front.png"
            write_front_picture(self._store, self._study, path)
            self._client.log_artifact(self._run, str(path))

    def _log(
        self,
        run: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Logs in requests that are as large as MLflow takes them."""
        from mlflow.entities import Metric, Param, RunTag

        waiting = [
            *(Param(_name(name), _value(value)) for name, value in (params or {}).items()),
            *(RunTag(_name(name), _value(value)) for name, value in (tags or {}).items()),
            *(Metric(_name(name), value, moment, step) for name, value, moment, step in metrics),
        ]
        for start in range(0, len(waiting), _PER_REQUEST):
            part = waiting[start : start + _PER_REQUEST]
            self._client.log_batch(
                run,
                params=[one for one in part if isinstance(one, Param)],
                tags=[one for one in part if isinstance(one, RunTag)],
                metrics=[one for one in part if isinstance(one, Metric)],
            )


def _client(uri: str) -> "MlflowClient":
    if find_spec("mlflow") is None:
        raise SpecError("mirroring to MLflow needs its client: pip install 'bitfront[mlflow]'")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if folder := _artefact_folder(uri):
        # Or MLflow makes a folder in whatever folder this process is in.
        os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", folder)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _artefact_folder(uri: str) -> str | None:
    """Where a file of MLflow's has its artefacts: beside it. A server knows a place of its own."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).absolute().parent / _ARTEFACTS).as_uri()


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """What MLflow raises, as one sentence: its own errors, and those of whatever carries it."""
    try:
        yield
    except (SpecError, TrackingError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrackingError(masked(uri), masked(reason[:300])) from error


def _leaves(content: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting of a job that is set, by its dotted name."""
    if isinstance(content, Mapping):
        for name, inner in content.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    elif content is not None:
        yield prefix, content


def _name(text: str) -> str:
    return _STRANGE.sub("_", text)[:_LONGEST_NAME]


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_LONGEST_VALUE]


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
