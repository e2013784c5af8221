"""The profile of a study's model: sensitivities of layers, cells of blocks."""

from http import HTTPStatus

from fastapi import APIRouter

from service.http.models.profile import Profile
from service.http.parameters import StudyName
from service.http.problems import Refused
from service.http.service import ServiceDependency

router = APIRouter(tags=["results"])


@router.get("/studies/{study}/profile")
def profile(study: StudyName, service: ServiceDependency) -> Profile:
    """Layers with their entropies, and every option of each block with its cost and its error."""
    found = service.store.load_profile(study)
    if found is None:
        raise Refused(
            HTTPStatus.NOT_FOUND, f"study {study!r} has not measured its model yet: ask again later"
        )
    return Profile.of(found, service.store.options(study))
