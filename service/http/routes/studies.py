"""Studies: their list, one's status, and what can be asked of its driver."""

import tempfile
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from bitfront.errors import UnusableSpool
from bitfront.job import Examined
from bitfront.trial import StudyState
from service.database_url import file_folder
from service.http.job_files import JSON_TYPES, Checked, examine, mistakes_of, refused, write_job
from service.http.models.studies import Asked, Resume, Studies, StudyLine, StudyStatus, Submitted
from service.http.parameters import StudyName
from service.http.problems import Refused
from service.http.remaining import remaining_s
from service.http.service import Service, ServiceDependency
from service.study.background import start_driver
from service.study.spools import study_spool
from service.study.submission import is_cluster
from service.views.status import is_driven
from service.views.watching import best_error_at_budget
from storage.records import Request, Status

router = APIRouter(tags=["studies"])

_CONSEQUENCES = {
    Request.PAUSE: "finishes what runs and waits; resume continues it",
    Request.STOP: "finishes what runs, then stops; resume continues it later",
    Request.CANCEL: "ends now; resume continues it later",
}


@router.get("/studies")
def list_studies(service: ServiceDependency) -> Studies:
    """All studies, the newest first."""
    return Studies(studies=tuple(map(StudyLine.of, service.store.studies())))


@router.post(
    "/studies",
    status_code=HTTPStatus.CREATED,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A job file, as `bitfront submit` takes it.",
            "content": {
                "application/yaml": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "object"}},
            },
        }
    },
)
async def submit(
    request: HttpRequest,
    service: ServiceDependency,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
) -> Submitted:
    """Checks a job and starts its study, which runs on after this server has ended.

    Everything that is wrong with the job is told at once, in `mistakes`.
    """
    body = await request.body()
    media_type = content_type.partition(";")[0].strip().lower()
    return await run_in_threadpool(submit_job, service, body, media_type)


def submit_job(service: Service, body: bytes, media_type: str) -> Submitted:
    """Checks a job and starts its study.

    Raises:
        Refused: Something is wrong with it; all is told.
        BitfrontError: Its driver does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bitfront-job-") as folder:
        path = Path(folder) / "job.yaml"
        write_job(body, media_type, path)
        examined = examine(path, elsewhere=is_cluster(service.settings.address))
        checked = _checked(service, examined, has_lines=media_type not in JSON_TYPES)
    if checked.mistakes:
        raise refused(checked.mistakes)
    spec = examined.sound()
    # What `--trust` leaves out was done above.
    settings = service.settings
    start_driver(settings.url, spec.study, ["submit", "--trust"], spec, address=settings.address)
    return Submitted(study=spec.study, warnings=checked.warnings, notes=checked.notes)


def _checked(service: Service, examined: Examined, *, has_lines: bool) -> Checked:
    spec = examined.spec
    if spec is not None and not examined.mistakes:
        service.store.replace_untried(spec.study)
        if any(study.name == spec.study for study in service.store.studies()):
            raise Refused(
                HTTPStatus.CONFLICT,
                f"a study named {spec.study!r} exists already: resume or delete it, or give the "
                "job another name in 'study'",
            )
    settings = service.settings
    if spec is None or is_cluster(settings.address):
        return Checked(mistakes_of(examined, has_lines=has_lines))
    return service.checker.check(examined, file_folder(settings.url), has_lines=has_lines)


@router.get("/studies/{study}")
def status(study: StudyName, service: ServiceDependency) -> StudyStatus:
    """How far a study is."""
    return study_status(service, study)


def study_status(service: Service, study: str) -> StudyStatus:
    """How far a study is; its counts are kept until its next event, its driver's state is not."""
    store = service.store
    record = store.study(study)

    def look() -> tuple[Status, float | None]:
        return store.status(study), best_error_at_budget(store, record)

    if record.state is StudyState.PROFILING:  # cells are measured without an event
        found, best = look()
    else:
        found, best = service.answers.of(study, ("status", record.state), look)
    found = replace(found, study=record)
    return StudyStatus.of(found, best, remaining_s(found))


@router.delete("/studies/{study}", status_code=HTTPStatus.NO_CONTENT)
def delete(study: StudyName, service: ServiceDependency) -> None:
    """Deletes a study with its trials and its front; what it measured stays for others."""
    delete_study(service, study)


def delete_study(service: Service, study: str) -> None:
    """Deletes a study, and the files of its trials as far as they can be reached.

    Raises:
        LeaseHeld: A driver runs it.
    """
    spool = study_spool(service.settings.url, service.store.study(study))
    service.store.delete_study(study)
    try:
        spool.remove()
    except UnusableSpool:
        return  # the study is gone all the same, and the spool's own log line names the folder


@router.post("/studies/{study}/pause")
def pause(study: StudyName, service: ServiceDependency) -> Asked:
    """Lets a study finish the trials that run, and wait."""
    return ask(service, study, Request.PAUSE)


@router.post("/studies/{study}/stop")
def stop(study: StudyName, service: ServiceDependency) -> Asked:
    """Lets a study finish the trials that run and start no more."""
    return ask(service, study, Request.STOP)


@router.post("/studies/{study}/cancel")
def cancel(study: StudyName, service: ServiceDependency) -> Asked:
    """Ends a study now; complete trials are kept."""
    return ask(service, study, Request.CANCEL)


def ask(service: Service, study: str, request: Request) -> Asked:
    """Asks a study's driver for something.

    Raises:
        Refused: Nobody runs the study.
    """
    record = service.store.study(study)
    if not is_driven(record):
        raise Refused(
            HTTPStatus.CONFLICT,
            f"study {study!r} is {record.state}, and nobody runs it: resume goes on with it",
        )
    service.store.request(study, request)
    return Asked(study=study, request=request, consequence=_CONSEQUENCES[request])


@router.post("/studies/{study}/resume")
def resume(study: StudyName, service: ServiceDependency, wanted: Resume | None = None) -> Asked:
    """Goes on with a study where it ended, however it ended; or where it was paused."""
    return resume_study(service, study, wanted or Resume())


def resume_study(service: Service, study: str, wanted: Resume) -> Asked:
    """Goes on with a study.

    Raises:
        Refused: There is nothing to go on with, or somebody runs it.
        BitfrontError: Its driver does not start.
    """
    store = service.store
    found = store.status(study)
    record = found.study
    if is_driven(record):
        if record.request is not Request.PAUSE:
            raise Refused(HTTPStatus.CONFLICT, f"study {study!r} runs already, by {record.owner}")
        store.withdraw_request(study)
        return Asked(study=study, request=None, consequence="goes on")
    is_done = record.state is StudyState.COMPLETE and not wanted.accept_changes
    if is_done and found.finished >= (wanted.trials or record.planned_trials):
        raise Refused(
            HTTPStatus.CONFLICT,
            f"study {study!r} is complete: {found.finished} trials are done, and trials of "
            f"{found.finished + 1} or more adds to them",
        )
    options = {"--trials": wanted.trials, "--workers": wanted.workers}
    words = [word for name, n in options.items() if n is not None for word in (name, str(n))]
    flags = ["--accept-changes"] if wanted.accept_changes else []
    settings = service.settings
    start_driver(settings.url, study, ["resume", study, *words, *flags], address=settings.address)
    return Asked(study=study, request=None, consequence="goes on")
