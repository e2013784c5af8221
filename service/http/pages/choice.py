"""A configuration: the best within limits, or a trial's with all that reproduces it."""

import json
from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from bitfront.objective import BY_NAME, FIGURES
from search.choice import Ranking
from service.http.bits import BitsTable, bits_tables
from service.http.models.results import Best, Front, RankedTrial
from service.http.models.trials import AttemptRow
from service.http.pages.rendering import job_text, page
from service.http.parameters import LimitsDependency, StudyName, TrialNumber
from service.http.routes.artefacts import study_artefacts
from service.http.routes.queries import best_within, kept_front
from service.http.routes.trials import baseline_names_of
from service.http.routes.trials import trial as trial_row
from service.http.service import Service, ServiceDependency
from service.views.refusal import refusal

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def shown_value(ranked: RankedTrial, name: str) -> float | None:
    """A figure of a trial, its estimated error in place of the measured one."""
    if name == "error" and ranked.estimate is not None:
        return ranked.estimate.error
    return ranked.trial.values.get(name)


@router.get("/studies/{study}/choice")
def choice(
    request: Request, study: StudyName, service: ServiceDependency, limits: LimitsDependency
) -> HTMLResponse:
    """The best configuration within limits, and what the next ones would cost."""
    question = ("best", Ranking.ESTIMATE, tuple(sorted(limits.given.items())))
    found = service.answers.of(
        study, question, lambda: best_within(service, study, limits, Ranking.ESTIMATE)
    )
    if found is None:
        nearest = service.store.nearest(study, limits)
        sentence = refusal(f"study {study!r}", limits, nearest, way_out=f"status {study}")
        return page(request, "choice.html", study=study, found=None, sentence=sentence)
    smaller, better = _neighbours(kept_front(service, study), found)
    asked = " ".join(
        f"{BY_NAME[name].option} {BY_NAME[name].exported(most)}"
        for name, most in limits.given.items()
    )
    return page(
        request,
        "choice.html",
        study=study,
        found=found,
        smaller=smaller,
        better=better,
        figures=_figure_rows(found.best),
        tables=_tables(service, study, found.best.trial.configuration.plan),
        names=baseline_names_of(service, study),
        command=f"bitfront best {study} {asked}",
        shown_value=shown_value,
    )


def _neighbours(front: Front, found: Best) -> tuple[RankedTrial | None, RankedTrial | None]:
    """The largest of the front that is smaller, and the smallest that is estimated better."""
    sizes = [(shown_value(one, "nbytes"), shown_value(one, "error"), one) for one in front.trials]
    own_size, own_error = shown_value(found.best, "nbytes"), shown_value(found.best, "error")
    known = [(size, error, one) for size, error, one in sizes if size is not None]
    smaller = [(size, one) for size, _, one in known if own_size is not None and size < own_size]
    better = [
        (size, one)
        for size, error, one in known
        if error is not None and own_error is not None and error < own_error
    ]
    return (
        max(smaller, key=lambda pair: pair[0])[1] if smaller else None,
        min(better, key=lambda pair: pair[0])[1] if better else None,
    )


def _figure_rows(ranked: RankedTrial) -> list[tuple[str, str, str, str]]:
    """Each figure that is known: its label, its value on both splits, and the bare number."""
    trial = ranked.trial
    rows = []
    for figure in FIGURES:
        value = trial.values.get(figure.name)
        if value is None:
            continue
        tested = trial.test_values.get(figure.name) if figure.per_split else None
        exact = figure.exported(value)
        rows.append(
            (
                "divergence (nats)" if figure.name == "divergence" else figure.label,
                figure.write(value),
                "" if tested is None else figure.write(tested),
                f"{exact:,}" if isinstance(exact, int) else f"{exact:.6g}",
            )
        )
    return rows


def _tables(service: Service, study: str, plan: Mapping[str, str]) -> list[BitsTable]:
    profile = service.store.load_profile(study)
    layers = () if profile is None else profile.layers
    return bits_tables(layers, plan)


@router.get("/studies/{study}/trials/{number}")
def configuration(
    request: Request, study: StudyName, number: TrialNumber, service: ServiceDependency
) -> HTMLResponse:
    """A trial, with everything to reproduce it."""
    row = trial_row(study, number, service)
    record = service.store.study(study)
    spec = json.loads(record.spec_json)
    front = {one.trial.number: one for one in kept_front(service, study).trials}
    ranked = front.get(number, RankedTrial(trial=row, estimate=None))
    return page(
        request,
        "trial.html",
        study=study,
        trial=row,
        estimate=ranked.estimate,
        on_front=number in front,
        figures=_figure_rows(ranked),
        tables=_tables(service, study, row.configuration.plan),
        attempts=[AttemptRow.of(one) for one in service.store.attempts(study, [number])],
        artefacts=[one for one in study_artefacts(service, study) if one.trial == number],
        seeds={"search.seed": spec["search"]["seed"], "data.seed": spec["data"]["seed"]},
        digests={"configuration": row.configuration.digest, "job": record.spec.digest},
        provenance=dict(sorted(record.provenance.items())),
        spec=job_text(record),
    )
