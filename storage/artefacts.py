"""Artefacts: models that were built from trials, where they lie, and what they were seen to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from storage.access import find_id
from storage.tables import Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactRecord:
    """An artefact.

    Attributes:
        trial: The number of the trial that it is of.
        target: What it was built for, such as `packed`.
        path: The folder, on the machine that built it.
        nbytes: Bytes of its tensors.
        files: The SHA-256 of each file, by name.
        verification: What was found when it was verified, plain JSON content.
        created_at: When it was recorded; None before.
    """

    trial: int
    target: str
    path: str
    nbytes: int
    files: Mapping[str, str]
    verification: Mapping[str, object]
    created_at: datetime | None = field(default=None, compare=False)


def put(connection: Connection, name: str, record: ArtefactRecord) -> None:
    """Records an artefact; another one that lay in its folder is forgotten."""
    study_id = find_id(connection, name)
    same = (Artefact.study_id == study_id, Artefact.path == record.path)
    connection.execute(delete(Artefact).where(*same))
    row = {
        "study_id": study_id,
        "trial": record.trial,
        "target": record.target,
        "path": record.path,
        "nbytes": record.nbytes,
        "files": dict(record.files),
        "verification": dict(record.verification),
    }
    connection.execute(insert(Artefact), [row])


def read(connection: Connection, name: str) -> list[ArtefactRecord]:
    """The study's artefacts, oldest first."""
    rows = connection.execute(
        select(Artefact.__table__)
        .where(Artefact.study_id == find_id(connection, name))
        .order_by(Artefact.id)
    )
    return [
        ArtefactRecord(
            trial=row.trial,
            target=row.target,
            path=row.path,
            nbytes=row.nbytes,
            files=row.files,
            verification=row.verification,
            created_at=row.created_at,
        )
        for row in rows
    ]
