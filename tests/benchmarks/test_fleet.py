"""The simulation of a fleet agrees with what can be worked out by hand."""

import math
from dataclasses import replace

import pytest

from benchmarks.fleet import Fleet, Result, Simulation, largest

IDEAL = Fleet(
    workers=20,
    gpus=1,
    hours=10,
    life_s=math.inf,
    ramp_s=0,
    start_s=0,
    detect_s=0,
    evaluation_s=60,
    recoveries=0,
    spread=0,
    save_s=0,
    ask_s=0,
    start_trial_s=0,
    complete_s=0,
    report_s=0,
    lose_s=0,
    wait_s=0,
    spool_s=0,
)


def run(fleet: Fleet, seed: int = 0) -> Result:
    return Simulation(fleet, seed).run()


def test_workers_that_nothing_holds_up_work_all_the_time() -> None:
    result = run(IDEAL)

    assert result.throughput == pytest.approx(1)
    assert result.trials_s == pytest.approx(20 / 60, rel=0.01)


@pytest.mark.parametrize(("workers", "rate"), [(8, 8 / 62), (200, 1 / 2)])
def test_a_driver_hands_out_no_more_than_it_has_time_for(workers: int, rate: float) -> None:
    fleet = replace(IDEAL, workers=workers, ask_s=1.5, complete_s=0.5)

    result = run(fleet)

    assert result.trials_s == pytest.approx(rate, rel=0.01)
    assert result.busy == pytest.approx(2 * rate, rel=0.01)


def test_the_queue_of_a_driver_is_as_long_as_theory_says() -> None:
    fleet = replace(
        IDEAL, workers=2000, evaluation_s=1000, spread=1.0, ask_s=0.25, ramp_s=5000, hours=20
    )

    result = run(fleet)

    # So many workers are a Poisson stream to a server with a fixed time (M/D/1).
    busy = 2000 * 0.25 / 1000
    assert result.busy == pytest.approx(busy, rel=0.03)
    assert result.wait_ms == pytest.approx(250 * busy / (2 * (1 - busy)), rel=0.1)


def test_nodes_are_there_for_the_share_of_their_life() -> None:
    fleet = replace(IDEAL, workers=100, life_s=600, absence_s=200, evaluation_s=20)

    assert run(fleet).away == pytest.approx(200 / 800, rel=0.05)


def test_an_evaluation_that_starts_anew_costs_what_restarts_without_memory_cost() -> None:
    fleet = replace(IDEAL, workers=100, life_s=600, absence_s=1, evaluation_s=120)

    result = run(fleet)

    # To get through a length D at a rate r of losses takes (exp(rD) - 1) / r of work.
    rate = 1 / 600
    work_s = math.expm1(rate * 120) / rate
    assert 1 - result.lost == pytest.approx(120 / work_s, rel=0.01)


@pytest.mark.parametrize("checkpoint_s", [10.0, 100.0, 1000.0])
def test_a_loss_costs_what_was_trained_since_the_last_checkpoint(checkpoint_s: float) -> None:
    fleet = replace(
        IDEAL,
        workers=200,
        life_s=600,
        absence_s=1,
        recoveries=1,
        recovery_s=1e9,
        checkpoint_s=checkpoint_s,
    )
    simulation = Simulation(fleet, 0)

    simulation.run()

    # The time since the last of the checkpoints at c, 2c, ..., if it ends at a rate r.
    rate = 1 / 600
    mean_s = 1 / rate - checkpoint_s / math.expm1(rate * checkpoint_s)
    assert simulation.totals.lost_s / simulation.totals.losses == pytest.approx(mean_s, rel=0.03)


def test_a_notice_saves_what_is_trained() -> None:
    fleet = replace(
        IDEAL, workers=50, life_s=600, recoveries=1, recovery_s=1e9, checkpoint_s=100, notice=1
    )

    assert run(fleet).lost == 0


def test_a_recovery_is_taken_up_where_it_was_saved() -> None:
    fleet = replace(
        IDEAL,
        workers=50,
        life_s=600,
        absence_s=1,
        recoveries=1,
        recovery_s=1200,
        evaluation_s=0.001,
        checkpoint_s=1,
    )

    result = run(fleet)

    # Two lives on average for each recovery, and still hardly anything is done twice.
    assert result.lost < 0.002
    assert result.trials_s == pytest.approx(50 / 1200, rel=0.04)


def test_all_time_of_the_workers_is_accounted_for() -> None:
    result = run(Fleet(hours=2, gpus=8))

    parts = (result.throughput, result.away, result.starting, result.saving, result.waiting)
    worked = result.throughput / (1 - result.lost)
    assert sum(parts) + result.lost * worked == pytest.approx(1)
    assert 0 < result.waiting < 0.01


def test_the_size_at_which_a_driver_has_no_time_left_is_found_by_the_means_alone() -> None:
    fleet = replace(IDEAL, recoveries=0.5, recovery_s=60, ask_s=0.3, report_s=0.05, hours=20)

    size = round(largest(fleet, 0.5))

    assert run(replace(fleet, workers=size)).busy == pytest.approx(0.5, rel=0.03)
