"""What a study answers: its front, its best trial within limits, how its hypervolume grew."""

import json
from http import HTTPStatus
from typing import cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from search.choice import Ranking
from service.http.models.results import (
    Best,
    EstimatedError,
    Front,
    FullPrecisionRow,
    HypervolumeHistory,
    HypervolumePoint,
    RankedTrial,
)
from service.http.models.trials import TrialRow
from service.http.parameters import By, LimitsDependency, StudyName
from service.http.problems import Refused
from service.http.routes.trials import baseline_names_of
from service.http.service import Service, ServiceDependency
from service.views.choosing import (
    answer_among,
    best_answer,
    front_among,
    full_precision,
    shown_front,
)
from service.views.refusal import refusal
from service.views.targets import deployable
from storage.records import Limits

router = APIRouter(tags=["results"])


@router.get("/studies/{study}/front", response_model=Front)
def front(
    request: Request,
    study: StudyName,
    service: ServiceDependency,
    limits: LimitsDependency,
    by: By = Ranking.ESTIMATE,
) -> Response | Front:
    """The Pareto front, or the part of it that holds the limits, lowest error first."""

    def find() -> Front:
        return study_front(service, study, by)

    if not limits.given:
        return service.answers.response(request, study, ("front", by), find)
    found = service.answers.of(study, ("front", by), find)
    held = tuple(one for one in found.trials if limits.hold(_values(one)))
    return found.model_copy(update={"trials": held})


def _values(ranked: RankedTrial) -> dict[str, float]:
    values = dict(ranked.trial.values)
    return values if ranked.estimate is None else {**values, "error": ranked.estimate.error}


def kept_front(service: Service, study: str) -> Front:
    """The front of a study by the estimate, as it is kept."""
    by = Ranking.ESTIMATE
    return service.answers.of(study, ("front", by), lambda: study_front(service, study, by))


def study_front(service: Service, study: str, by: Ranking) -> Front:
    """The front of a study."""
    store = service.store
    known = None if by is Ranking.ERROR else service.known_of(study)
    shown = shown_front(store, study, Ranking.ERROR) if known is None else front_among(store, known)
    full = full_precision(store, study)
    names = baseline_names_of(service, study)
    objectives = cast("list[str]", json.loads(store.study(study).spec_json)["objectives"])
    return Front(
        by=by,
        objectives=tuple(objectives),
        trials=tuple(
            RankedTrial(
                trial=TrialRow.of(trial, names),
                estimate=EstimatedError.of(shown.estimates.get((trial.study, trial.number))),
            )
            for trial in shown.trials
        ),
        full_precision=None if full is None else FullPrecisionRow.of(full, names),
    )


@router.get("/studies/{study}/best")
def best(
    study: StudyName,
    service: ServiceDependency,
    limits: LimitsDependency,
    by: By = Ranking.ESTIMATE,
) -> Best:
    """The best configuration within limits: the first objective that has none is minimised.

    Where nothing fits, the refusal says what comes nearest.
    """
    question = ("best", by, tuple(sorted(limits.given.items())))
    found = service.answers.of(study, question, lambda: best_within(service, study, limits, by))
    if found is None:
        nearest = service.store.nearest(study, limits)
        sentence = refusal(f"study {study!r}", limits, nearest, way_out=f"status {study}")
        raise Refused(HTTPStatus.NOT_FOUND, sentence)
    return found


def best_within(service: Service, study: str, limits: Limits, by: Ranking) -> Best | None:
    """The best trial of a study within limits; None if nothing fits."""
    store = service.store
    known = None if by is Ranking.ERROR else service.known_of(study)
    if known is None:
        answer = best_answer(store, study, limits, ranking=Ranking.ERROR)
    else:
        answer = answer_among(store, known, limits)
    if answer is None:
        return None
    names = baseline_names_of(service, study)
    return Best.of(answer, by, limits.given, names, deployable(store, answer.trial))


@router.get("/studies/{study}/hypervolume", response_model=HypervolumeHistory)
def hypervolume(request: Request, study: StudyName, service: ServiceDependency) -> Response:
    """How the hypervolume of the front grew."""

    def find() -> HypervolumeHistory:
        reference = service.store.study(study).reference
        return HypervolumeHistory(
            reference=None if reference is None else dict(reference),
            points=tuple(
                HypervolumePoint(completed=completed, hypervolume=value)
                for completed, value in service.store.hypervolumes(study)
            ),
        )

    return service.answers.response(request, study, "hypervolume", find)
