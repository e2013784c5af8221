"""Models that were built from trials."""

from datetime import datetime
from typing import Self

from pydantic import JsonValue, TypeAdapter

from service.http.models.content import Content
from storage.artefacts import ArtefactRecord

_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Artefact(Content):
    """A model that was built from a trial.

    `available` says whether its folder is on this machine, within the folders that are given to
    jobs, so that it can be downloaded.
    """

    id: str
    trial: int
    target: str
    nbytes: int
    files: dict[str, str]
    verification: dict[str, JsonValue]
    created_at: datetime | None
    available: bool

    @classmethod
    def of(cls, name: str, record: ArtefactRecord, *, is_available: bool) -> Self:
        """What is said of an artefact."""
        return cls(
            id=name,
            trial=record.trial,
            target=record.target,
            nbytes=record.nbytes,
            files=dict(record.files),
            verification=_JSON.validate_python(dict(record.verification)),
            created_at=record.created_at,
            available=is_available,
        )


class Artefacts(Content):
    """What was built from a study's trials, oldest first."""

    artefacts: tuple[Artefact, ...]
