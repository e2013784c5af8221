"""What a study, or all studies of a model, answer to limits; or why nothing fits."""

from dataclasses import replace

from bitfront.errors import NothingFits
from bitfront.trial import StudyState
from search.choice import Ranking
from service.api.connection import Connection
from service.api.found import FoundConfiguration
from service.api.front import Front
from service.api.limits import By, LimitOptions
from service.views.choosing import best_answer, full_precision, shown_front, shown_joint_front
from service.views.limits import read_limits
from service.views.refusal import nearest_of, refusal


def best_of(
    connection: Connection, study: str | None, model: str | None, by: By, given: LimitOptions
) -> FoundConfiguration:
    """The best configuration of a study, or of a model's studies, within limits.

    Raises:
        NothingFits: No trial holds them; the sentence says what comes nearest.
        SpecError: A limit is none, or as `Store.best` raises it.
    """
    limits, store = read_limits(given), connection.store()
    found = best_answer(store, study, limits, model=model, ranking=Ranking(by))
    if found is not None:
        return FoundConfiguration(connection, found, across=study is None)
    nearest = store.nearest(study, limits, model=model)
    if nearest is None and study is not None and store.study(study).state is StudyState.PROFILING:
        raise NothingFits(
            f"study {study!r} is still measuring cells, and its trials come after them: "
            f"see 'bitfront status {study}'"
        )
    way_out = f"status {study}" if study else "list"
    scope = _scope(study, model)
    raise NothingFits(refusal(scope, limits, nearest, way_out=way_out, across=study is None))


def front_of(
    connection: Connection, study: str | None, model: str | None, by: By, given: LimitOptions
) -> Front:
    """The front of a study, or of a model's studies, or the part of it within limits.

    Raises:
        NothingFits: There is a front, and nothing of it holds the limits.
        SpecError: A limit is none, or as `Store.model_fronts` raises it.
    """
    limits, store = read_limits(given), connection.store()
    if study is not None:
        shown, full = shown_front(store, study, Ranking(by)), full_precision(store, study)
    else:
        shown, full = shown_joint_front(store, str(model), limits, Ranking(by)), None
    trials = [trial for trial in shown.trials if limits.hold(shown.values(trial))]
    if shown.trials and not trials:
        nearest = nearest_of(shown.trials, limits)
        scope = f"the front of {_scope(study, model)}"
        if study is None:
            scope += f" by {' and '.join(shown.objectives)} over {', '.join(shown.studies)}"
        raise NothingFits(refusal(scope, limits, nearest, way_out="list", across=study is None))
    return Front(connection, replace(shown, trials=tuple(trials)), full, study)


def _scope(study: str | None, model: str | None) -> str:
    return f"study {study!r}" if model is None else f"model {model!r}"
