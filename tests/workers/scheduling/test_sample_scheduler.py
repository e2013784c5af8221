from collections.abc import Callable
from pathlib import Path

import pytest

from bitfront.errors import LeaseLost
from bitfront.plan import Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import RecoverySpace
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, rungs
from storage.records import Lease
from storage.store import Store, open_store
from tests.support.store_samples import running
from workers.scheduling.rung_file import RungFile
from workers.scheduling.sample_scheduler import Experiment, SampleScheduler

SPACE = RecoverySpace(
    context_length=(0, 2, 4),
    reduction=(0, 2, 4),
    blend=(0.1, 0.2, 0.5),
    learning_rate_multiplier=(0.5, 1.0, 2.0),
    steps=(9, 18),
)
FIRST = Recovery(context_length=2, reduction=2, blend=0.2, distillation=4.0, steps=18)
EXPERIMENT = Experiment(
    plan=Plan.of({"a": Precision(2, 8)}),
    space=SPACE,
    first=FIRST,
    max_nbytes=None,
    seed=3,
    reduction_factor=3,
    grace_steps=2,
)


def nbytes(recovery: Recovery) -> int:
    return 100 * recovery.context_length + (1000 // recovery.reduction if recovery.reduction else 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'bitfront.db'}")


def scheduler(
    store: Store,
    lease: Lease,
    limit: int = 8,
    max_nbytes: int | None = None,
    is_winding_down: Callable[[], bool] = lambda: False,
) -> SampleScheduler:
    experiment = Experiment(
        EXPERIMENT.plan, SPACE, FIRST, max_nbytes, 3, reduction_factor=3, grace_steps=2
    )
    tuning = store.begin_tuning(lease, "digest", experiment.to_dict()).id
    return SampleScheduler(
        store, lease, tuning, experiment, limit, nbytes, is_winding_down=is_winding_down
    )


def finished(tuning: SampleScheduler, sample: TuningSample, error: float) -> None:
    tuning.report(sample.number, sample.recovery.steps, error)
    tuning.finish(sample.number)


def test_the_recovery_that_is_trained_without_a_search_comes_first(store: Store) -> None:
    tuning = scheduler(store, running(store), limit=3)

    samples = [tuning.next() for _ in range(4)]

    assert samples[0] is not None
    assert samples[0].recovery == FIRST
    assert samples[3] is None
    recoveries = {s.recovery for s in samples if s is not None}
    assert len(recoveries) == 3
    assert tuning.running == 3


def test_rungs_are_those_of_successive_halving() -> None:
    assert EXPERIMENT.rungs == (2, 6)
    assert rungs(200, 3, 23) == (23, 69)
    assert rungs(1, 3, 1) == ()


def test_a_sample_that_took_all_its_steps_is_complete_and_another_one_pruned(
    store: Store,
) -> None:
    tuning = scheduler(store, running(store))
    first, second = tuning.next(), tuning.next()
    assert first is not None
    assert second is not None

    tuning.report(first.number, 2, 0.5)
    tuning.report(first.number, 18, 0.25)
    tuning.report(first.number, 18, 0.75)
    tuning.finish(first.number)
    tuning.report(second.number, 2, 0.5)
    tuning.finish(second.number)

    stored = store.samples(tuning.tuning_id)
    assert stored == tuning.samples
    assert stored[0].errors == {2: 0.5, 18: 0.25}
    assert [s.state for s in stored.values()] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_no_sample_is_larger_than_the_limit(store: Store) -> None:
    tuning = scheduler(store, running(store), limit=200, max_nbytes=450)

    sizes = []
    while (sample := tuning.next()) is not None:
        sizes.append(sample.nbytes)
        finished(tuning, sample, 0.5)

    assert max(sizes) <= 450
    allowed = {
        (length, reduction)
        for length in SPACE.context_length
        for reduction in SPACE.reduction
        if (length or reduction)
        and nbytes(Recovery(context_length=length, reduction=reduction)) <= 450
    }
    found = {(s.recovery.context_length, s.recovery.reduction) for s in tuning.samples.values()}
    assert found == allowed


def test_a_new_driver_runs_what_was_running_and_nothing_that_was_finished(store: Store) -> None:
    lease = running(store)
    before = scheduler(store, lease, limit=4)
    samples = [before.next() for _ in range(3)]
    assert all(sample is not None for sample in samples)
    finished(before, before.samples[0], 0.25)
    before.fail(1, "out of luck")
    before.report(2, 2, 0.5)

    after = scheduler(store, store.acquire("digits", "another", 60, dead_owner=lease.owner), 4)
    again, new = after.next(), after.next()

    assert again is not None
    assert (again.number, again.attempt) == (2, 2)
    assert again.recovery == before.samples[2].recovery
    assert again.errors == {2: 0.5}
    assert new is not None
    assert new.number == 3
    assert new.recovery not in {s.recovery for s in before.samples.values()}
    assert after.next() is None
    assert after.samples[0] == before.samples[0]
    assert after.samples[1].message == "out of luck"
    with pytest.raises(LeaseLost):
        before.report(2, 6, 0.4)


def test_more_samples_may_be_asked_for_later(store: Store) -> None:
    lease = running(store)
    few = scheduler(store, lease, limit=1)
    sample = few.next()
    assert sample is not None
    finished(few, sample, 0.5)

    more = scheduler(store, lease, limit=2)

    second = more.next()
    assert second is not None
    assert second.number == 1
    assert more.next() is None


def test_nothing_new_is_started_while_the_driver_ends(store: Store) -> None:
    assert scheduler(store, running(store), is_winding_down=lambda: True).next() is None


def test_a_space_that_is_exhausted_ends_the_experiment(store: Store) -> None:
    lease = running(store)
    space = RecoverySpace(context_length=(2,), reduction=(0,), steps=(9, 18))
    experiment = Experiment(EXPERIMENT.plan, space, FIRST, None, 0)
    tuning = store.begin_tuning(lease, "digest", experiment.to_dict()).id
    small = SampleScheduler(store, lease, tuning, experiment, 100, nbytes)

    count = 0
    while (sample := small.next()) is not None:
        finished(small, sample, 0.5)
        count += 1

    assert count == 3
    assert not small.has_more


def test_a_rung_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = RungFile(tmp_path / "0.rungs", "identity")
    assert file.read() == {}

    file.write({6: 0.25, 2: 0.5})

    assert list(file.read().items()) == [(2, 0.5), (6, 0.25)]
    assert RungFile(tmp_path / "0.rungs", "another").read() == {}


@pytest.mark.parametrize("content", [b"", b"nothing", b"0\n{}", b"\xff\n\xff"])
def test_a_damaged_rung_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.rungs").write_bytes(content)

    assert RungFile(tmp_path / "0.rungs", "identity").read() == {}
