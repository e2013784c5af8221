"""Artefacts: what was built from a study's trials, to be listed and downloaded."""

from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.responses import StreamingResponse

from bitfront.job.allowed_roots import is_allowed
from bitfront.plan import digest
from service.http.archive import tar_stream
from service.http.models.artefacts import Artefact, Artefacts
from service.http.parameters import StudyName
from service.http.problems import Refused
from service.http.service import Service, ServiceDependency
from storage.artefacts import ArtefactRecord

router = APIRouter(tags=["artefacts"])

ArtefactName = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{16}$")]


@router.get("/studies/{study}/artefacts")
def artefacts(study: StudyName, service: ServiceDependency) -> Artefacts:
    """What was built from the study's trials, oldest first."""
    return Artefacts(artefacts=tuple(study_artefacts(service, study)))


def study_artefacts(service: Service, study: str) -> list[Artefact]:
    """What was built from a study's trials."""
    return [
        Artefact.of(artefact_name(record), record, is_available=_folder(record) is not None)
        for record in service.store.artefacts(study)
    ]


@router.get(
    "/studies/{study}/artefacts/{artefact}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {"schema": {"type": "string"}}}}},
)
def download(
    study: StudyName, artefact: ArtefactName, service: ServiceDependency
) -> StreamingResponse:
    """The files of an artefact as a tar archive: those that were built, and no others."""
    records = {artefact_name(record): record for record in service.store.artefacts(study)}
    record = records.get(artefact)
    if record is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"study {study!r} has no artefact {artefact}")
    folder = _folder(record)
    if folder is None:
        raise Refused(
            HTTPStatus.NOT_FOUND,
            f"the folder of artefact {artefact} is not on this machine, or outside of the folders "
            "that it gives to jobs (BITFRONT_ROOTS): build it again",
        )
    stem = f"{study}-{record.trial}-{record.target}"
    return StreamingResponse(
        tar_stream(folder, sorted(record.files), stem),
        media_type="application/x-tar",
        headers={"content-disposition": f'attachment; filename="{stem}.tar"'},
    )


def artefact_name(record: ArtefactRecord) -> str:
    """The name of an artefact in addresses: it says nothing of where its folder is."""
    return digest([record.trial, record.target, record.path])[:16]


def _folder(record: ArtefactRecord) -> Path | None:
    """The folder of an artefact, if it may be read and still has the files that were built."""
    folder = Path(record.path)
    if not folder.is_absolute() or not is_allowed(folder):
        return None
    return (
        folder if record.files and all(_is_inside(folder, name) for name in record.files) else None
    )


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file is really inside a folder, and not a link to a place outside it."""
    path = folder / name
    return name == path.name and path.is_file() and not path.is_symlink()
