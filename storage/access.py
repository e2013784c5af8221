"""The ways into a study: by its name to read it, by its lease to write to it."""

from sqlalchemy import Connection, Update, select, update

from bitfront.errors import LeaseHeld, LeaseLost, UnknownStudy
from storage.events import storable
from storage.records import Lease
from storage.tables import Now, Study


def find_id(connection: Connection, name: str) -> int:
    """The study's key.

    Raises:
        UnknownStudy: There is no study of that name.
    """
    # No study is named by what a driver cannot encode, such as half of a surrogate pair.
    study_id = connection.scalar(select(Study.id).where(Study.name == storable(name)))
    if study_id is None:
        known = connection.scalars(select(Study.name).order_by(Study.name))
        raise UnknownStudy(name, tuple(known))
    return study_id


def held_by(lease: Lease) -> Update:
    """An update that reaches the study only while the lease holds."""
    return update(Study).where(
        Study.id == lease.study_id, Study.epoch == lease.epoch, Study.owner == lease.owner
    )


def guard(connection: Connection, lease: Lease) -> None:
    """Locks the study for the rest of the transaction, if the lease still holds.

    Raises:
        LeaseLost: Another driver has the study, or nobody has.
    """
    if connection.execute(held_by(lease).values(updated_at=Now())).rowcount == 0:
        raise LeaseLost(lease.name, lease.epoch)


def lock_free(connection: Connection, name: str, *owners: str | None) -> tuple[int, str | None]:
    """Locks a study that nobody runs but one of `owners`; its key and its last owner.

    Raises:
        UnknownStudy: There is no study of that name.
        LeaseHeld: Another owner's heartbeat is fresh, by the database's clock.
    """
    study_id = find_id(connection, name)
    columns = (Study.owner, Study.lease_s, Study.heartbeat_at, Now().label("now"))
    query = select(*columns).where(Study.id == study_id).with_for_update()
    held = connection.execute(query).one()
    if held.owner not in (None, *owners):
        age_s = (held.now - held.heartbeat_at).total_seconds()
        # A heartbeat from the future is one from before the clock was set back.
        if abs(age_s) < held.lease_s:
            raise LeaseHeld(name, held.owner, age_s)
    return study_id, held.owner
