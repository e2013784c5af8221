import itertools
import math
import random
import re
from pathlib import Path

import pytest
from sqlalchemy import text

from bitfront.errors import SpecError, UnknownStudy
from bitfront.trial import Cause, FrontChange, StudyState, Trial, TrialState
from storage.records import Limits
from storage.store import Store, open_store
from tests.support.databases import Databases
from tests.support.store_samples import (
    complete,
    configuration,
    fail,
    finished,
    hypervolumes,
    job,
    prune,
    running,
    show,
    trial,
)

MEASURES = {
    "max_error": "error",
    "max_nbytes": "nbytes",
    "max_bits": "bits_per_weight",
    "max_bit_operations": "bit_operations",
    "max_latency_s": "latency_s",
}
CHOICES = {
    "max_error": (None, 0.2, 1e-6),
    "max_nbytes": (None, 40.0, 1.0),
    "max_bits": (None, 4.0),
    "max_bit_operations": (None, 3.0),
    "max_latency_s": (None, 0.5, 0.01),
}


def fill(store: Store, count: int) -> list[Trial]:
    """Completes trials of random values: ties, missing ones and broken constraints among them."""
    generator = random.Random(7)
    lease = running(store)
    for number in range(count):
        store.start_trial(lease, trial(number))
        values = {"error": generator.randrange(20) / 20, "nbytes": float(generator.randrange(99))}
        metrics = {"bits_per_weight": generator.randrange(2, 17) / 2}
        if generator.random() < 0.7:
            metrics["latency_s"] = generator.random()
            metrics["bit_operations"] = generator.randrange(9) / 2
        excess = {"max_nbytes": generator.choice([-1.0, 0.0, 0.1])}
        complete(store, lease, number, values, metrics=metrics, constraints=excess)
    store.start_trial(lease, trial(count))
    return store.trials("digits")


def measured(stored: Trial, name: str) -> float | None:
    return stored.values.get(name, stored.metrics.get(name))


def number(result: Trial | None) -> int | None:
    return None if result is None else result.number


def brute_best(trials: list[Trial], limits: dict[str, float]) -> int | None:
    def fits(stored: Trial) -> bool:
        values = [(measured(stored, MEASURES[name]), limit) for name, limit in limits.items()]
        return all(value is not None and value <= limit for value, limit in values)

    by_size = "max_error" in limits and "max_nbytes" not in limits
    order = ("nbytes", "error") if by_size else ("error", "nbytes")
    ranked = sorted(
        (*(stored.values[name] for name in order), stored.number)
        for stored in trials
        if stored.state is TrialState.COMPLETE and stored.is_feasible and fits(stored)
    )
    return int(ranked[0][-1]) if ranked else None


def brute_excess(stored: Trial, limits: dict[str, float]) -> float | None:
    total = 0.0
    for name, limit in limits.items():
        value = measured(stored, MEASURES[name])
        if value is None:
            return None
        total += max(0.0, value / limit - 1)
    return total


def test_best_and_nearest_agree_with_brute_force_under_every_mix_of_limits(store: Store) -> None:
    trials = fill(store, 80)
    eligible = [t for t in trials if t.state is TrialState.COMPLETE and t.is_feasible]

    for combination in itertools.product(*CHOICES.values()):
        limits = {k: v for k, v in zip(CHOICES, combination, strict=True) if v is not None}

        best = number(store.best("digits", Limits(**limits)))
        nearest = store.nearest("digits", Limits(**limits))

        assert best == brute_best(trials, limits), limits
        assert nearest is not None
        excesses = [brute_excess(stored, limits) for stored in eligible]
        least = min(excess for excess in excesses if excess is not None)
        found = brute_excess(trials[nearest.number], limits)
        assert found == pytest.approx(least, abs=1e-12), limits


def test_the_objective_that_is_not_limited_is_minimised(store: Store) -> None:
    store.create_study(job(objectives=["error", "bit_operations", "latency_s"]), {})
    lease = store.acquire("digits", "me", 60)
    rows = [(0.1, 9.0, 1.0), (0.2, 5.0, 3.0), (0.3, 5.0, 2.0), (0.4, 7.0, 0.5)]
    for count, (error, operations, latency) in enumerate(rows):
        store.start_trial(lease, trial(count))
        values = {"error": error, "bit_operations": operations, "latency_s": latency}
        complete(store, lease, count, values)

    assert number(store.best("digits")) == 0
    assert number(store.best("digits", Limits(max_error=0.5))) == 1
    assert number(store.best("digits", Limits(max_error=0.5, max_bit_operations=9))) == 3
    everything = Limits(max_error=0.5, max_bit_operations=8, max_latency_s=2)
    assert number(store.best("digits", everything)) == 2
    assert store.best("digits", Limits(max_nbytes=10)) is None
    assert store.nearest("digits", Limits(max_nbytes=10)) is None


def test_a_model_is_asked_by_name_or_hash_over_all_its_studies(store: Store) -> None:
    for name, model, error in (("a", "m1", 0.3), ("b", "m1", 0.2), ("c", "m2", 0.1)):
        lease = running(store, name)
        store.set_provenance(lease, {"model": model})
        finished(store, lease, 0, error=error, nbytes=10)

    best = store.best(None, model="m1")
    assert best is not None
    assert (best.study, best.values["error"]) == ("b", 0.2)
    nearest = store.nearest(None, Limits(max_error=0.25, max_nbytes=5), model="m1")
    assert nearest is not None
    assert nearest.study == "b"
    with pytest.raises(SpecError, match="several models: name one of m1, m2"):
        store.best(None, model="digit-clip")
    with pytest.raises(SpecError, match="searched are: digit-clip"):
        store.best(None, model="resnet")
    with pytest.raises(SpecError, match="name a study, or a model"):
        store.best(None)


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, math.inf])
def test_a_limit_is_a_positive_number(limit: float) -> None:
    with pytest.raises(SpecError, match="max_nbytes must be a positive number"):
        Limits(max_nbytes=limit)


def test_a_limit_of_no_figure_is_refused() -> None:
    with pytest.raises(SpecError, match="max_speed is not a limit: there are max_error, "):
        Limits(max_speed=1)


@pytest.mark.parametrize("name", ["digits\x00", "\udcff", "\x00"])
def test_a_name_that_no_database_can_hold_is_that_of_no_study(store: Store, name: str) -> None:
    running(store)

    with pytest.raises(UnknownStudy):
        store.best(name)


def test_an_empty_study_has_no_best_and_an_empty_front(store: Store) -> None:
    running(store)

    assert store.best("digits") is None
    assert store.nearest("digits", Limits(max_error=0.5)) is None
    assert store.front("digits") == []
    assert hypervolumes(store) == []
    assert store.status("digits").best_error is None


def test_the_front_is_sorted_by_error(store: Store) -> None:
    lease = running(store)
    for count, error in enumerate((0.3, 0.1, 0.2)):
        store.start_trial(lease, trial(count))
        values = {"error": error, "nbytes": 10 - 10 * error}
        complete(store, lease, count, values, front=FrontChange((count,), (), count / 10))
    store.save_test_values(lease, {1: {"error": 0.15}})

    front = store.front("digits")

    assert [point.number for point in front] == [1, 2, 0]
    assert [point.test_values.get("error") for point in front] == [0.15, None, None]
    assert front[0].configuration == configuration(1)


def test_status_tells_how_far_a_study_is(store: Store) -> None:
    store.create_study(job(stop={"trials": 8}), {})
    lease = store.acquire("digits", "me", 60)
    for count in range(6):
        store.start_trial(lease, trial(count))
    complete(store, lease, 0, {"error": 0.2, "nbytes": 9}, front=FrontChange((0,), (), 0.4))
    complete(store, lease, 1, {"error": 0.1, "nbytes": 9}, constraints={"max_nbytes": 1.0})
    fail(store, lease, 2, 1, Cause.NODE_LOST, "first", retry=True)
    fail(store, lease, 2, 2, Cause.NODE_LOST, "second", retry=False)
    fail(store, lease, 3, 1, Cause.USER_ERROR, "bad batch", retry=False)
    show(store, lease, 4, 1, 0, 0.05)
    prune(store, lease, 4, 1, seconds=0.25)

    status = store.status("digits")

    assert status.study == store.study("digits")
    assert status.counts == {
        TrialState.RUNNING: 1,
        TrialState.COMPLETE: 2,
        TrialState.FAILED: 2,
        TrialState.CANCELLED: 0,
        TrialState.PRUNED: 1,
        TrialState.OUTDATED: 0,
    }
    assert (status.finished, status.progress) == (5, 0.625)
    assert (status.best_error, status.front_size, status.hypervolume) == (0.2, 1, 0.4)
    assert status.seconds == 1.25
    failures = [(failure.cause, failure.count, failure.message) for failure in status.failures]
    assert failures == [(Cause.NODE_LOST, 2, "second"), (Cause.USER_ERROR, 1, "bad batch")]


@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(max_nbytes=10), Limits(max_error=0.5), Limits(max_nbytes=1, max_error=1)],
)
def test_best_reads_no_row_but_its_answer(sqlite_databases: Databases, limits: Limits) -> None:
    statements: list[str] = []
    with open_store(sqlite_databases.ready()) as store:
        fill(store, 20)
        with store._database.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.set_trace_callback(statements.append)
        store.best("digits", limits)

        with store._database.engine.connect() as connection:
            (query,) = [statement for statement in statements if "LIMIT" in statement]
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()

    reads = [row.detail for row in plan if "SEARCH trial" in row.detail]
    assert len(reads) == 2
    assert sum("USING INTEGER PRIMARY KEY" in read for read in reads) == 1
    assert sum("USING COVERING INDEX" in read for read in reads) == 1


EXAMPLES = re.findall(
    r"```sql\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "schema.md").read_text(),
    re.DOTALL,
)


def test_the_schema_is_shown_by_at_least_three_queries() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("query", EXAMPLES)
def test_the_queries_in_the_documentation_answer(store: Store, query: str) -> None:
    lease = running(store)
    store.set_provenance(lease, {"model": "m1", "selection": "d1", "device": "cpu"})
    for count in range(3):
        store.start_trial(lease, trial(count))
        values = {"error": 0.3 - count / 10, "nbytes": 10_000_000.0 * (count + 1)}
        change = FrontChange((count,), (), count / 10)
        complete(store, lease, count, values, metrics={"bits_per_weight": 4.0}, front=change)
    store.start_trial(lease, trial(3))
    fail(store, lease, 3, 1, Cause.OUT_OF_MEMORY, "out of memory", retry=True)
    store.start_trial(lease, trial(4))
    show(store, lease, 4, 1, 0, 0.5)
    prune(store, lease, 4, 1, seconds=1.0)
    store.release(lease, StudyState.STOPPED)

    with store._database.engine.connect() as connection:
        rows = connection.execute(text(query)).all()

    assert rows


def test_trials_are_read_a_page_at_a_time(store: Store) -> None:
    lease = running(store)
    for number in range(5):
        store.start_trial(lease, trial(number))
    complete(store, lease, 3, {"error": 0.1, "nbytes": 1})

    first = store.trials_page("digits", limit=2)
    rest = store.trials_page("digits", after=first[-1].number, limit=100)
    done = store.trials_page("digits", {TrialState.COMPLETE})

    assert [found.number for found in first] == [0, 1]
    assert [found.number for found in rest] == [2, 3, 4]
    assert [found.number for found in done] == [3]
    assert first + rest == store.trials("digits")


def test_the_history_of_the_hypervolume_is_in_rising_order(store: Store) -> None:
    lease = running(store)
    for number, share in enumerate((0.25, 0.5)):
        store.start_trial(lease, trial(number))
        change = FrontChange((number,), (), share)
        complete(store, lease, number, {"error": 0.1, "nbytes": 1}, front=change)

    assert store.hypervolumes("digits") == [(1, 0.25), (2, 0.5)]


def test_a_picture_of_many_trials_has_some_at_equal_distances_and_those_named(store: Store) -> None:
    lease = running(store)
    for number in range(9):
        store.start_trial(lease, trial(number))
        complete(store, lease, number, {"error": 0.1, "nbytes": 1})
    store.start_trial(lease, trial(9))

    whole = store.trials("digits", {TrialState.COMPLETE})
    assert [
        (t.number, t.origin, t.values, t.has_recovery) for t in store.spread("digits", 9)[1]
    ] == [(t.number, t.origin, t.values, t.configuration.recovery is not None) for t in whole]
    count, found = store.spread("digits", 4, also=[4, 5, 77])
    assert (count, [one.number for one in found]) == (9, [0, 3, 4, 5, 6])


def test_a_version_changes_with_what_a_query_shows_and_not_with_a_heartbeat(store: Store) -> None:
    lease = running(store)
    versions = [store.version("digits")]
    store.heartbeat(lease)
    assert store.version("digits") == versions[0]

    store.start_trial(lease, trial(0))
    versions.append(store.version("digits"))
    complete(store, lease, 0, {"error": 0.1, "nbytes": 1})
    versions.append(store.version("digits"))
    store.save_test_values(lease, {0: {"error": 0.2}})
    versions.append(store.version("digits"))
    store.release(lease, StudyState.STOPPED)
    store.delete_study("digits")
    running(store)
    versions.append(store.version("digits"))

    assert len(set(versions)) == len(versions)
