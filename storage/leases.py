"""Leases: one driver a study, fenced by an epoch that goes up with every driver."""

from sqlalchemy import Connection, select, update

from bitfront.errors import LeaseLost
from bitfront.trial import StudyState
from storage.access import find_id, held_by, lock_free
from storage.events import add_event, storable
from storage.records import EventKind, Lease, Request
from storage.tables import Now, Study


def acquire(
    connection: Connection, name: str, owner: str, lease_s: float, dead_owner: str | None
) -> Lease:
    """Takes the study, with a new epoch; its pending request is cleared."""
    study_id, previous = lock_free(connection, name, owner, dead_owner)
    epoch = connection.scalar(
        update(Study)
        .where(Study.id == study_id)
        .values(epoch=Study.epoch + 1, owner=owner, lease_s=lease_s, request=None)
        .values(heartbeat_at=Now(), updated_at=Now())
        .returning(Study.epoch)
    )
    assert epoch is not None, "lock_free holds the study's row"
    kind = EventKind.ACQUIRED if previous is None else EventKind.TAKEN_OVER
    content = {"owner": owner, "epoch": epoch, "previous": previous}
    add_event(connection, study_id, kind, content)
    return Lease(study_id, name, owner, epoch)


def heartbeat(connection: Connection, lease: Lease) -> Request | None:
    """Renews the lease; what a client asks meanwhile."""
    statement = held_by(lease).values(heartbeat_at=Now()).returning(Study.request)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise LeaseLost(lease.name, lease.epoch)
    return None if row.request is None else Request(row.request)


def release(
    connection: Connection,
    again: bool,
    lease: Lease,
    state: StudyState,
    message: str | None,
    traceback: str | None = None,
) -> None:
    """Leaves the study in a state, for anybody to take."""
    text = None if message is None else storable(message)
    free = {"owner": None, "lease_s": None, "heartbeat_at": None, "request": None}
    statement = held_by(lease).values(**free, state=state, message=text, updated_at=Now())
    if connection.execute(statement).rowcount == 0:
        if again and _is_free(connection, lease):
            return
        raise LeaseLost(lease.name, lease.epoch)
    content = {"owner": lease.owner, "state": state, "message": text}
    if traceback:
        content["traceback"] = storable(traceback)
    add_event(connection, lease.study_id, EventKind.RELEASED, content)


def request(connection: Connection, name: str, asked: Request) -> None:
    """Asks the study's driver for something; it reads that with its next heartbeat."""
    study_id = find_id(connection, name)
    connection.execute(update(Study).where(Study.id == study_id).values(request=asked))
    add_event(connection, study_id, EventKind.REQUESTED, {"request": asked})


def withdraw(connection: Connection, name: str) -> None:
    """Takes back what was asked of the study's driver."""
    study_id = find_id(connection, name)
    connection.execute(update(Study).where(Study.id == study_id).values(request=None))
    add_event(connection, study_id, EventKind.REQUESTED, {"request": None})


def _is_free(connection: Connection, lease: Lease) -> bool:
    query = select(Study.epoch, Study.owner).where(Study.id == lease.study_id)
    row = connection.execute(query).one_or_none()
    return row is not None and row.epoch == lease.epoch and row.owner is None
