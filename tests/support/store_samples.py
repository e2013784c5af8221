"""Small studies for the tests of the store."""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import text

from bitfront.attempt import Attempt, Evaluated, Failed, IntermediateValue, Pruned
from bitfront.identity.identities import Identities
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Evaluation, FrontChange, Origin, Trial
from storage.records import Event, Lease
from storage.store import Store

WIDTHS = (2, 3, 4, 5, 6, 8)


def job(study: str = "digits", **sections: object) -> JobSpec:
    """A job on the reference, with the nearest codes; `sections` replace the defaults."""
    content = {
        "study": study,
        "model": {"source": "reference"},
        "data": {"source": "reference"},
        "quantizer": {"rounding": "nearest"},
    }
    return JobSpec.model_validate({**content, **sections})


def identities(model: str = "model") -> Identities:
    """The identities of a model on some data."""
    return Identities(
        model=model, quantizer="cells", calibration="data", tuning="t", selection="s", test="e"
    )


def configuration(number: int) -> Configuration:
    """One of 6**4 configurations of four layers, another for each number."""
    widths = [WIDTHS[number // 6**digit % 6] for digit in range(4)]
    return Configuration(Plan.of({f"layer{n}": Precision(bits) for n, bits in enumerate(widths)}))


def trial(number: int, study: str = "digits") -> Trial:
    """A new trial."""
    return Trial(study, number, configuration(number), Origin.SAMPLER, {"x": number})


def attempt(number: int, at: int = 1, key: str = "a key") -> Attempt:
    """The attempt `at` at a trial."""
    return Attempt(replace(trial(number), attempts=at), key)


def running(store: Store, study: str = "digits") -> Lease:
    """A new study, and the lease of the driver that runs it."""
    store.create_study(job(study), {})
    return store.acquire(study, f"driver of {study}", 60)


def complete(
    store: Store,
    lease: Lease,
    number: int,
    values: Mapping[str, float],
    *,
    at: int = 1,
    metrics: Mapping[str, float] | None = None,
    constraints: Mapping[str, float] | None = None,
    front: FrontChange | None = None,
    key: str | None = None,
    samples: SampleResults | None = None,
) -> bool:
    """Completes an attempt; what is not named is of no interest."""
    return store.finish_attempt(
        lease,
        attempt(number, at, key or f"{lease.name} {number}"),
        Evaluated(Evaluation(values, metrics or {}, samples), seconds=0.5, worker="a worker"),
        constraints=constraints or {},
        front=front,
    )


def fail(
    store: Store,
    lease: Lease,
    number: int,
    at: int,
    cause: Cause,
    message: str,
    traceback: str = "",
    *,
    retry: bool,
) -> bool:
    """Ends an attempt without a result."""
    failed = Failed(cause, message, traceback)
    return store.finish_attempt(lease, attempt(number, at), failed, retry=retry)


def prune(
    store: Store, lease: Lease, number: int, at: int, *, seconds: float, worker: str = ""
) -> bool:
    """Ends an attempt that stopped early."""
    return store.finish_attempt(lease, attempt(number, at), Pruned(seconds=seconds, worker=worker))


def show(store: Store, lease: Lease, number: int, at: int, step: int, value: float) -> bool:
    """Records what an attempt showed in training."""
    return store.report(lease, attempt(number, at), IntermediateValue(step, value))


def finished(store: Store, lease: Lease, number: int, error: float, nbytes: float) -> None:
    """Runs a trial to its end."""
    store.start_trial(lease, trial(number))
    assert complete(store, lease, number, {"error": error, "nbytes": nbytes})


def hypervolumes(store: Store, study: str = "digits") -> list[tuple[int, float]]:
    """The hypervolume after each trial that was counted, as (trials, hypervolume)."""
    query = text(
        "SELECT completed, hypervolume FROM hypervolume JOIN study ON study.id = study_id "
        "WHERE study.name = :study ORDER BY completed"
    )
    with store._database.engine.connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(query, {"study": study})]


def events(store: Store, study: str, after_id: int = 0, *, limit: int = 1000) -> list[Event]:
    """What happened in a study, oldest first."""
    return [line.event for line in store.log(study, after_id, limit=limit)]
