"""Studies: created once, found by name, and what is recorded about them as a whole."""

import math
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RowMapping, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from bitfront.errors import DuplicateStudy, InvalidMetric
from bitfront.plan import canonical_json
from bitfront.trial import StudyState, TrialState
from storage import tables
from storage.access import find_id, guard, lock_free
from storage.events import add_event, insert_new, read_log, storable
from storage.records import (
    Difference,
    EventKind,
    Lease,
    LogLine,
    Request,
    StudyRecord,
    StudySummary,
)
from storage.tables import Now, Study
from storage.trials import outdate

if TYPE_CHECKING:
    from bitfront.spec import JobSpec

_COLUMNS = (*Study.__table__.c, Now().label("now"))


def create(
    connection: Connection, again: bool, spec: "JobSpec", provenance: Mapping[str, str]
) -> StudyRecord:
    """Makes the study that the job names; nobody runs it yet."""
    query = select(Study.spec_digest).where(Study.name == spec.study)
    stored = connection.scalar(query)
    if stored is not None:
        if again and stored == spec.digest:
            return read(connection, spec.study)
        raise DuplicateStudy(spec.study)
    row = {"name": spec.study, "state": StudyState.PROFILING, "epoch": 0, **_spec_columns(spec)}
    try:
        study_id = connection.execute(insert(Study).returning(Study.id), row).scalar_one()
    except IntegrityError as error:
        raise DuplicateStudy(spec.study) from error
    _add_provenance(connection, study_id, provenance)
    add_event(connection, study_id, EventKind.CREATED)
    return read(connection, spec.study)


def read(connection: Connection, name: str) -> StudyRecord:
    """The study of that name."""
    study_id = find_id(connection, name)
    query = select(*_COLUMNS).where(Study.id == study_id)
    row = connection.execute(query).mappings().one()
    pairs = select(tables.Provenance.name, tables.Provenance.value).where(
        tables.Provenance.study_id == study_id
    )
    provenance = {pair.name: pair.value for pair in connection.execute(pairs)}
    return _record(row, provenance)


def summaries(connection: Connection) -> list[StudySummary]:
    """Every study, the newest first."""
    trial, front = tables.Trial, tables.Front
    counts: dict[int, dict[TrialState, int]] = {}
    by_state = select(trial.study_id, trial.state, func.count()).group_by(
        trial.study_id, trial.state
    )
    for study_id, state, count in connection.execute(by_state):
        counts.setdefault(study_id, {})[TrialState(state)] = count
    per_study = select(front.study_id, func.count()).group_by(front.study_id)
    sizes = {row[0]: row[1] for row in connection.execute(per_study)}
    eligible = and_(trial.state == TrialState.COMPLETE, trial.feasible)
    lowest = select(trial.figure("error")).where(trial.study_id == Study.id, eligible)
    best_error = lowest.order_by(trial.figure("error")).limit(1).scalar_subquery()
    columns = select(*_COLUMNS, best_error.label("best_error"))
    return [
        StudySummary(
            name=row.name,
            state=StudyState(row.state),
            model=str(row.spec["model"]["name"]),
            owner=row.owner,
            lease_s=row.lease_s,
            heartbeat_age_s=_age_s(row.heartbeat_at, row.now),
            created_at=row.created_at,
            updated_at=row.updated_at,
            updated_age_s=(row.now - row.updated_at).total_seconds(),
            planned_trials=int(row.spec["stop"]["trials"]),
            counts={state: counts.get(row.id, {}).get(state, 0) for state in TrialState},
            best_error=row.best_error,
            front_size=sizes.get(row.id, 0),
        )
        for row in connection.execute(columns.order_by(Study.created_at.desc(), Study.id.desc()))
    ]


def remove(connection: Connection, name: str) -> None:
    """Deletes the study with its trials; measured cells and evaluations stay for others."""
    study_id, _ = lock_free(connection, name)
    connection.execute(delete(Study).where(Study.id == study_id))


def remove_untried(connection: Connection, name: str) -> None:
    """Deletes the study if it ended in failure without a trial, and nobody runs it."""
    ended = Study.state.in_((StudyState.FAILED, StudyState.CANCELLED))
    has_trials = select(tables.Trial.id).where(tables.Trial.study_id == Study.id).exists()
    untried = delete(Study).where(
        Study.name == storable(name), ended, Study.owner.is_(None), ~has_trials
    )
    connection.execute(untried)


def set_state(connection: Connection, lease: Lease, state: StudyState, message: str | None) -> None:
    """Moves the study to a state."""
    text = None if message is None else storable(message)
    _change(connection, lease, state=state, message=text)
    add_event(connection, lease.study_id, EventKind.STATE, {"state": state, "message": text})


def set_reference(connection: Connection, lease: Lease, reference: Mapping[str, float]) -> None:
    """Records the reference point that every hypervolume of the study is measured from."""
    for objective, value in reference.items():
        if not math.isfinite(value):
            raise InvalidMetric(f"reference {objective}", str(value))
    _change(connection, lease, reference=dict(reference))


def set_correlation(connection: Connection, lease: Lease, correlation: float | None) -> None:
    """Records the rank correlation between the proxy and the measured error."""
    known = None if correlation is None or not math.isfinite(correlation) else correlation
    _change(connection, lease, correlation=known)


def replace_spec(
    connection: Connection, lease: Lease, spec: "JobSpec", changes_results: bool
) -> None:
    """Gives the study another specification of the same name."""
    _change(connection, lease, **_spec_columns(spec))
    content: dict[str, object] = {"spec_digest": spec.digest}
    if changes_results:
        content["outdated"] = outdate(connection, lease)
    add_event(connection, lease.study_id, EventKind.CHANGED, content)


def set_provenance(
    connection: Connection,
    lease: Lease,
    found: Mapping[str, str],
    results: Collection[str],
    accept: bool,
) -> list[Difference]:
    """Records what is not recorded yet; what differs is returned, and kept unless accepted."""
    guard(connection, lease)
    table = tables.Provenance
    pairs = select(table.name, table.value).where(table.study_id == lease.study_id)
    recorded = {row.name: row.value for row in connection.execute(pairs)}
    differences = [
        Difference(name, recorded[name], storable(value))
        for name, value in sorted(found.items())
        if name in recorded and recorded[name] != storable(value)
    ]
    new = {name: value for name, value in found.items() if name not in recorded}
    changes_results = any(difference.name in results for difference in differences)
    if changes_results and not accept:
        return differences
    if accept and differences:
        changed = {difference.name: difference.found for difference in differences}
        same_study = table.study_id == lease.study_id
        connection.execute(delete(table).where(same_study, table.name.in_(changed)))
        new |= changed
        content: dict[str, object] = {"differences": [str(d) for d in differences]}
        if changes_results:
            content["outdated"] = outdate(connection, lease)
        add_event(connection, lease.study_id, EventKind.CHANGED, content)
    _add_provenance(connection, lease.study_id, new)
    return differences


def log(
    connection: Connection, name: str, after_id: int, limit: int, trial: int | None
) -> list[LogLine]:
    """The study's log after an event with the attempts it is about; of one trial if named."""
    return read_log(connection, find_id(connection, name), after_id, limit, trial)


def _add_provenance(connection: Connection, study_id: int, pairs: Mapping[str, str]) -> None:
    rows = [
        {"study_id": study_id, "name": storable(name), "value": storable(value)}
        for name, value in pairs.items()
    ]
    insert_new(connection, tables.Provenance, rows)
    if "model" in pairs:
        _link_model(connection, study_id, storable(pairs["model"]))


def _link_model(connection: Connection, study_id: int, identity: str) -> None:
    of_spec = Study.spec["model"]
    query = select(of_spec["source"].as_string(), of_spec["name"].as_string())
    source, name = connection.execute(query.where(Study.id == study_id)).one()
    insert_new(connection, tables.Model, [{"identity": identity, "source": source, "name": name}])
    model = select(tables.Model.id).where(tables.Model.identity == identity).scalar_subquery()
    connection.execute(update(Study).where(Study.id == study_id).values(model_id=model))


def _change(connection: Connection, lease: Lease, **columns: object) -> None:
    guard(connection, lease)
    connection.execute(update(Study).where(Study.id == lease.study_id).values(**columns))


def _spec_columns(spec: "JobSpec") -> dict[str, object]:
    content = spec.model_dump(mode="json")
    objectives = content["objectives"]
    return {"spec": content, "spec_digest": spec.digest, "objectives": objectives}


def _age_s(then: datetime | None, now: datetime) -> float | None:
    return None if then is None else (now - then).total_seconds()


def _record(row: RowMapping, provenance: Mapping[str, str]) -> StudyRecord:
    return StudyRecord(
        name=row["name"],
        state=StudyState(row["state"]),
        spec_json=canonical_json(row["spec"]),
        provenance=provenance,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        epoch=row["epoch"],
        owner=row["owner"],
        lease_s=row["lease_s"],
        heartbeat_at=row["heartbeat_at"],
        heartbeat_age_s=_age_s(row["heartbeat_at"], row["now"]),
        request=None if row["request"] is None else Request(row["request"]),
        message=row["message"],
        reference=row["reference"],
        correlation=row["correlation"],
    )
