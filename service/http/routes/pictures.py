"""What the pictures of a study are drawn from."""

import json
from http import HTTPStatus
from typing import Final, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from bitfront.samples import SampleResults
from bitfront.trial import Measured, TrialState
from search.comparison import error_interval
from search.estimate import Estimate
from service.http.models.points import Point, Points
from service.http.models.profile import LayerErrors, ProxyPoint, Sensitivity
from service.http.parameters import StudyName
from service.http.problems import Refused
from service.http.routes.queries import kept_front
from service.http.routes.trials import baseline_names_of
from service.http.service import Service, ServiceDependency
from service.views.sensitivity import layer_sensitivities, proxy_pairs
from storage.records import ShownTrial

router = APIRouter(tags=["pictures"])

_MOST_POINTS: Final = 2000


@router.get("/studies/{study}/points", response_model=Points)
def points(request: Request, study: StudyName, service: ServiceDependency) -> Response:
    """The complete trials as points, those on the front marked."""
    return service.answers.response(request, study, "points", lambda: study_points(service, study))


def study_points(service: Service, study: str) -> Points:
    """The complete trials of a study as points."""
    store = service.store
    names = baseline_names_of(service, study)
    on_front = {one.trial.number for one in kept_front(service, study).trials}
    known = service.known_of(study)
    measured = {} if known is None else {one.number: one for one in known.trials}
    estimates = {} if known is None else known.estimates
    complete, shown = store.spread(study, _MOST_POINTS, on_front | names.keys())
    objectives = cast("list[str]", json.loads(store.study(study).spec_json)["objectives"])
    return Points(
        objectives=tuple(objectives),
        complete=complete,
        points=tuple(
            _point(
                trial,
                measured.get(trial.number),
                estimates.get((study, trial.number)),
                names.get(trial.number),
                is_on_front=trial.number in on_front,
            )
            for trial in shown
        ),
    )


def _point(
    trial: ShownTrial,
    measured: Measured | None,
    estimate: Estimate | None,
    name: str | None,
    *,
    is_on_front: bool,
) -> Point:
    samples: SampleResults | None = None if measured is None else measured.samples
    low, high = (None, None) if samples is None else error_interval(samples)
    return Point(
        trial=trial.number,
        origin=trial.origin,
        baseline=name,
        has_recovery=trial.has_recovery,
        on_front=is_on_front,
        values=dict(trial.values),
        low=low,
        high=high,
        estimate=None if estimate is None else estimate.error,
        test_error=trial.test_values.get("error"),
    )


@router.get("/studies/{study}/sensitivity", response_model=Sensitivity)
def sensitivity(request: Request, study: StudyName, service: ServiceDependency) -> Response:
    """How much each layer suffers from few bits, and the proxy beside the measured errors."""
    return service.answers.response(
        request, study, "sensitivity", lambda: study_sensitivity(service, study)
    )


def study_sensitivity(service: Service, study: str) -> Sensitivity:
    """How much each layer of a study's model suffers from few bits."""
    store = service.store
    record, profile = store.study(study), store.load_profile(study)
    if profile is None:
        raise Refused(
            HTTPStatus.NOT_FOUND, f"study {study!r} has not measured its model yet: ask again later"
        )
    options = store.options(study)
    trials = store.trials_page(study, {TrialState.COMPLETE}, limit=_MOST_POINTS)
    return Sensitivity(
        measure=json.loads(record.spec_json)["profile"]["measure"],
        layers=tuple(
            LayerErrors(layer=one.layer, tower=one.tower, block=one.block, errors=dict(one.errors))
            for one in layer_sensitivities(profile, options)
        ),
        pairs=tuple(
            ProxyPoint(trial=one.trial, proxy=one.proxy, error=one.error)
            for one in proxy_pairs(profile, options, trials)
        ),
        correlation=record.correlation,
    )
