"""A study starts from the fronts of earlier ones of its model."""

import pytest

from bitfront.errors import SpecError, UnknownStudy
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation, FrontChange, Origin
from service.study.warm_start import warm_seeds
from storage.store import Store
from tests.support.store_samples import complete, identities, job, running, trial
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import Footprint

REPORT = ModelInfo((), 0, (), Evaluation({}), Footprint(0, 0), identities("m"), {})


def later(*studies: str) -> JobSpec:
    spec = job()
    return spec.model_copy(
        update={
            "study": "later",
            "search": spec.search.model_copy(update={"warm_start": studies}),
        }
    )


def test_the_front_of_the_earlier_study_comes_first(store: Store) -> None:
    lease = running(store)
    store.set_provenance(lease, {"model": "m"})
    for number, values in enumerate([(0.5, 8.0), (0.25, 16.0), (0.6, 16.0)]):
        store.start_trial(lease, trial(number))
        added = FrontChange((number,) if number < 2 else (), (), 0.5)
        complete(
            store, lease, number, dict(zip(("error", "nbytes"), values, strict=True)), front=added
        )

    seeds = warm_seeds(store, later("digits"), REPORT)

    assert [seed.configuration for seed in seeds] == [
        trial(1).configuration,
        trial(0).configuration,
    ]
    assert {seed.origin for seed in seeds} == {Origin.WARM_START}
    assert warm_seeds(store, later(), REPORT) == []


def test_a_study_of_another_model_is_refused(store: Store) -> None:
    store.set_provenance(running(store), {"model": "another"})

    with pytest.raises(SpecError, match="study 'digits' searched another model"):
        warm_seeds(store, later("digits"), REPORT)
    with pytest.raises(UnknownStudy):
        warm_seeds(store, later("nowhere"), REPORT)
