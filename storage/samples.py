"""What came out for each sample: one row a trial and split, written once."""

from typing import Literal

from sqlalchemy import ColumnElement, Connection, and_, exists, select

from bitfront.errors import DatabaseError
from bitfront.samples import SampleResults
from bitfront.trial import Measured, TrialState
from storage.events import insert_new
from storage.tables import Study, Trial, TrialSamples

_SELECTION = and_(TrialSamples.trial_id == Trial.id, TrialSamples.split == "selection")


def add_samples(
    connection: Connection, trial_id: int, split: Literal["selection", "test"], own: SampleResults
) -> None:
    """Records what came out for the samples of a split; what is recorded stays."""
    row = {"trial_id": trial_id, "split": split, "results": own.packed}
    insert_new(connection, TrialSamples, [row])


def read_samples(packed: bytes) -> SampleResults:
    """What a row holds.

    Raises:
        DatabaseError: It is damaged.
    """
    try:
        return SampleResults(packed)
    except ValueError as error:
        raise DatabaseError(f"a row of the database is damaged: {error}") from error


def are_known(connection: Connection, scope: ColumnElement[bool]) -> bool:
    """Whether what came out for each selection sample is known of some trial."""
    query = select(Trial.id).join(TrialSamples, _SELECTION).where(scope)
    return bool(connection.scalar(select(exists(query))))


def measured(
    connection: Connection, scope: ColumnElement[bool], figures: tuple[str, ...]
) -> list[Measured]:
    """The complete trials that hold their job's limits, as a choice sees them, by number."""
    columns = [Trial.figure(name) for name in figures]
    recovery = Trial.configuration["recovery"].as_string()
    distil = Trial.configuration["distil"].as_string()
    query = (
        select(
            *(Study.name.label("study"), Trial.number.label("trial")),
            *(recovery.label("recovery"), distil.label("distil"), TrialSamples.results, *columns),
        )
        .join(Study, Study.id == Trial.study_id)
        .outerjoin(TrialSamples, _SELECTION)
        .where(scope, Trial.state == TrialState.COMPLETE, Trial.feasible)
        .order_by(Trial.study_id, Trial.number)
    )
    return [
        Measured(
            row.study,
            row.trial,
            {name: value for name in figures if (value := getattr(row, name)) is not None},
            has_recovery=row.recovery is not None or row.distil is not None,
            samples=None if row.results is None else read_samples(row.results),
        )
        for row in connection.execute(query)
    ]


def of_trial(connection: Connection, wanted: ColumnElement[bool]) -> dict[str, SampleResults]:
    """What came out for each sample of one trial, by the split."""
    query = select(TrialSamples.split, TrialSamples.results)
    query = query.join(Trial, Trial.id == TrialSamples.trial_id).where(wanted)
    return {row.split: read_samples(row.results) for row in connection.execute(query)}
