"""Early stopping: who may continue, and what the study has learnt of training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.plan import RUNGS, Configuration, Distillation, Plan, Recovery
from search.pruner import MARGIN, MIN_SEEN, Pruner, TrainingGains

RECOVERED = Configuration(Plan(()), Recovery(steps=8))
DISTILLED = Configuration(Plan((), Distillation(steps=8)))
BOTH = Configuration(DISTILLED.plan, RECOVERED.recovery)
FRONT = ((0.10, 300.0), (0.20, 200.0))


def learnt(
    *runs: tuple[list[float], float], trained: Configuration = RECOVERED
) -> dict[str, tuple[float, ...]]:
    gains = TrainingGains()
    for errors, last in runs:
        gains.add(trained, dict(zip(trained.rungs, errors, strict=True)), last)
    return gains.largest()


def test_the_stages_are_the_quarters_of_training() -> None:
    assert Recovery(steps=60).rungs == (0, 15, 30, 45)
    assert Recovery(steps=2).rungs == (0, 1)
    assert Recovery(steps=1).rungs == (0,)


def test_nothing_is_stopped_before_enough_recoveries_are_finished() -> None:
    few = learnt(*[([0.4, 0.3, 0.3, 0.2], 0.2)] * (MIN_SEEN - 1))

    assert few == {}
    assert Pruner(FRONT, few).allows(RECOVERED, 0, 1.0, [1000.0])


def test_the_largest_share_that_training_took_away_counts() -> None:
    many = [([0.4, 0.4, 0.4, 0.4], 0.3)] * (MIN_SEEN - 1) + [([0.5, 0.25, 0.2, 0.2], 0.2)]

    assert learnt(*many)["p4q"] == pytest.approx((0.6, 0.25, 0.25, 0.25))


def test_training_that_only_did_harm_is_trusted_with_nothing() -> None:
    gains = learnt(*[([0.2, 0.2, 0.2, 0.2], 0.3)] * MIN_SEEN)

    assert gains == {"p4q": (0.0, 0.0, 0.0, 0.0)}


def test_a_perfect_stage_has_nothing_to_take_away() -> None:
    assert learnt(*[([0.0] * RUNGS, 0.0)] * MIN_SEEN) == {"p4q": (0.0,) * RUNGS}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_recovery_too_short_for_all_stages_neither_teaches_nor_stops(steps: int) -> None:
    short = Configuration(Plan(()), Recovery(steps=steps))
    gains = TrainingGains()
    for _ in range(2 * MIN_SEEN):
        gains.add(short, dict.fromkeys(short.rungs, 0.4), 0.1)

    assert gains.largest() == {}
    assert Pruner(FRONT, {"p4q": (0.0,) * RUNGS}).allows(short, 0, 1.0, [1000.0])


def test_a_recovery_without_all_of_its_stages_teaches_nothing() -> None:
    gains = TrainingGains()
    for _ in range(MIN_SEEN):
        gains.add(RECOVERED, {0: 0.4, 2: 0.3}, 0.2)

    assert gains.largest() == {}


def test_a_trial_goes_on_while_it_may_still_beat_the_front_at_its_cost() -> None:
    pruner = Pruner(FRONT, {"p4q": (0.4, 0.2, 0.1, 0.0)})

    # Hoped for at the start: half of the error shown.
    assert pruner.allows(RECOVERED, 0, 0.39, [250.0])
    assert not pruner.allows(RECOVERED, 0, 0.41, [250.0])
    assert pruner.allows(RECOVERED, 0, 0.9, [150.0])
    # Later rungs are trusted with less.
    assert not pruner.allows(RECOVERED, 4, 0.39, [250.0])
    assert pruner.allows(RECOVERED, 6, 0.19, [250.0])
    # As good as the front is not better.
    assert not pruner.allows(RECOVERED, 6, 0.20, [200.0])


def test_a_hurdle_comes_back_from_its_json() -> None:
    pruner = Pruner(FRONT, {"p4q": (0.4, 0.2, 0.1, 0.0)})

    assert Pruner.from_dict(pruner.to_dict()) == pruner
    assert Pruner.from_dict(Pruner().to_dict()) == Pruner()


ERRORS = st.floats(0.01, 1.0)


@given(
    st.lists(st.tuples(st.lists(ERRORS, min_size=4, max_size=4), ERRORS), min_size=5, max_size=8),
    st.lists(st.tuples(ERRORS, st.floats(1, 10)), max_size=6),
    st.integers(0, RUNGS - 1),
    ERRORS,
    st.floats(1, 10),
    st.floats(0, 1),
)
def test_a_trial_that_gains_no_more_than_others_and_reaches_the_front_is_never_stopped(
    runs: list[tuple[list[float], float]],
    front: list[tuple[float, float]],
    rung: int,
    error: float,
    cost: float,
    share: float,
) -> None:
    gains = learnt(*runs)
    last = error * (1 - share * gains["p4q"][rung])
    if any(point[0] <= last and point[1] <= cost for point in front):
        return

    pruner = Pruner(tuple(front), gains)

    assert MARGIN >= 1
    assert pruner.allows(RECOVERED, RECOVERED.rungs[rung], error, [cost])


def test_each_kind_of_training_is_trusted_with_what_its_own_have_taken_away() -> None:
    gains = learnt(*[([0.4, 0.4, 0.4, 0.4], 0.2)] * MIN_SEEN, trained=DISTILLED)
    pruner = Pruner(((0.1, 100.0),), gains)

    assert gains == {"distil": (0.5,) * RUNGS}
    assert not pruner.allows(DISTILLED, 0, 0.5, [200.0])
    assert pruner.allows(DISTILLED, 0, 0.2, [200.0])
    assert pruner.allows(RECOVERED, 0, 0.5, [200.0])
    assert pruner.allows(BOTH, 0, 0.5, [200.0])


def test_a_recovery_on_a_distilled_plan_has_the_rungs_of_both() -> None:
    runs = [([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2], 0.2)] * MIN_SEEN

    gains = learnt(*runs, trained=BOTH)

    assert BOTH.rungs == (0, 2, 4, 6, 8, 10, 12, 14)
    assert gains["distil+p4q"][0] == pytest.approx(0.75)
    assert not Pruner(((0.1, 100.0),), gains).allows(BOTH, 12, 0.15, [200.0])
