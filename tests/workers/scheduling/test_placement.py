"""What a trial worker takes of a node, and what each of several studies gets of a cluster."""

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.spec import JobSpec
from bitfront.targets import DeploymentTarget
from workers.cluster.fair_share import fair_shares
from workers.scheduling.placement import (
    Footprint,
    Placement,
    first_placement,
    placement,
    plan_nbytes,
)

HEAD: Mapping[str, float] = {"memory": 8e9}
CPU_NODE: Mapping[str, float] = {"CPU": 8, "memory": 32e9}
GPU_NODE: Mapping[str, float] = {"CPU": 16, "GPU": 2, "memory": 64e9}
LAYERS = [Layer("w", Tower.VISION, LayerKind.LINEAR, 1000, 1000, 4, "x", "vision")]


def spec(*, latency: bool = False, **search: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "study": "placed",
            "model": {"source": "reference"},
            "data": {"source": "reference"},
            "quantizer": {"rounding": "nearest"},
            "space": {"weight_bits": [2, 4]},
            "objectives": ["error", "latency_s" if latency else "nbytes"],
            "search": search,
        }
    )


def test_without_gpus_a_worker_takes_a_cpu_and_its_memory() -> None:
    found = placement(spec(), [HEAD, CPU_NODE], Footprint(4_000_000_000, 0), LAYERS)

    assert (found.cpus, found.gpus, found.notes) == (1, 0, ())
    assert found.memory_nbytes == 4_000_000_000 + 4 * 2 * 1_000_000
    assert found.slots([HEAD, CPU_NODE]) == 7


def test_kept_weights_and_features_are_counted_up_to_their_limits() -> None:
    huge = [Layer("w", Tower.VISION, LayerKind.LINEAR, 100_000, 100_000, 4, "x", "vision")]
    recovered = spec().model_copy(
        update={
            "space": JobSpec.model_validate(
                {**spec().model_dump(), "space": {"recovery": {}}}
            ).space
        }
    )

    assert plan_nbytes(Footprint(1, 0), huge, spec()) == 1 + (2 << 30)
    assert plan_nbytes(Footprint(1, 0), huge, recovered) == 1 + (2 << 30) + (256 << 20)


@pytest.mark.parametrize(
    ("trials", "tokens", "kept"),
    [
        (10, 4, 2 * 4 * 4 * 1000 * (16 * 10 + 8)),
        (10**6, 4, (1 << 30) + 2 * 4 * 4 * 1000 * 8),
        (10**6, 10**6, 2 << 30),
    ],
)
def test_activations_between_blocks_are_counted_for_evaluator_and_cell_meter(
    trials: int, tokens: int, kept: int
) -> None:
    blocks = [
        Layer(f"{scope}.{name}", Tower.VISION, LayerKind.LINEAR, 1, columns, tokens, "x", scope)
        for scope in ("block.0", "block.1")
        for name, columns in (("in", 1000), ("out", 4000))
    ]
    asked = {"samples": {"calibration": 8, "selection": 16}, "source": "reference"}
    job = {**spec().model_dump(), "data": asked, "stop": {"trials": trials}}
    weights = 4 * 2 * 2 * 5000

    found = plan_nbytes(Footprint(0, 0), blocks, JobSpec.model_validate(job))

    assert found == weights + kept


@pytest.mark.parametrize(
    ("trials", "kept"), [(10, 10 * (10000 + 2 * 4 * 4 * 1000 * 8)), (10**6, 1 << 30)]
)
def test_codes_and_activations_of_weights_that_depend_on_each_other_are_counted(
    trials: int, kept: int
) -> None:
    blocks = [
        Layer(f"{scope}.{name}", Tower.VISION, LayerKind.LINEAR, 1, columns, 4, "x", scope)
        for scope in ("block.0", "block.1")
        for name, columns in (("in", 1000), ("out", 4000))
    ]
    asked = {"samples": {"calibration": 8, "selection": 16}, "source": "reference"}
    job = {**spec().model_dump(), "data": asked, "stop": {"trials": trials}}

    with_them, without = (
        plan_nbytes(
            Footprint(0, 0),
            blocks,
            JobSpec.model_validate({**job, "quantizer": {"rounding": "auto", "target": target}}),
        )
        for target in ("auto", "own")
    )

    assert with_them - without == kept


@pytest.mark.parametrize(("needed", "workers"), [(30e9, 1), (17e9, 2), (8.9e9, 4), (1e6, 8)])
def test_as_many_workers_share_a_gpu_as_fit(needed: float, workers: int) -> None:
    footprint = Footprint(int(needed), 40_000_000_000)

    found = placement(spec(), [HEAD, GPU_NODE], footprint, LAYERS)

    assert int(1 / found.gpus) == workers
    assert found.slots([GPU_NODE]) == 2 * workers


def test_a_model_larger_than_a_gpu_takes_several() -> None:
    found = placement(spec(), [GPU_NODE], Footprint(50_000_000_000, 40_000_000_000), LAYERS)

    assert found.gpus == 2


def test_what_the_job_says_is_what_a_worker_takes() -> None:
    asked = spec(gpus_per_worker=0.5)

    assert first_placement(asked, [GPU_NODE]).gpus == 0.5
    assert placement(asked, [GPU_NODE], Footprint(10, 40_000_000_000), LAYERS).gpus == 0.5
    assert "no node has a GPU yet" in first_placement(asked, [CPU_NODE]).notes[0]


def test_a_latency_is_measured_on_a_whole_device() -> None:
    shared = first_placement(spec(latency=True, gpus_per_worker=0.5), [GPU_NODE])
    alone = first_placement(spec(latency=True), [HEAD, CPU_NODE])

    assert shared.gpus == 1
    assert shared.notes == ("latency is measured on a whole GPU: 0.5 of one becomes 1",)
    assert (alone.cpus, alone.gpus) == (8, 0)
    assert "a worker takes a whole machine" in alone.notes[0]
    measured = placement(spec(latency=True), [GPU_NODE], Footprint(10, 40_000_000_000), LAYERS)
    assert measured.gpus == 1


def test_a_latency_in_a_target_takes_all_processors_of_a_machine_with_a_gpu() -> None:
    timed = spec(latency=True).model_copy(update={"target": DeploymentTarget.ONNXRUNTIME})

    found = first_placement(timed, [GPU_NODE])

    assert (found.cpus, found.gpus) == (GPU_NODE["CPU"], 1)
    assert found.notes == (
        "latency is measured on a CPU, in onnxruntime: a worker takes a whole machine",
    )


def test_more_memory_than_any_node_has_is_said_and_does_not_wait_for_ever() -> None:
    found = placement(spec(), [HEAD, CPU_NODE], Footprint(40_000_000_000, 0), LAYERS)

    assert found.slots([HEAD, CPU_NODE]) == 1
    assert "40.0 GB of memory, and the largest node offers 32.0 GB" in found.notes[0]


def test_tune_and_tasks_ask_for_the_same() -> None:
    place = Placement(1, 0.5, 100)

    assert place.resources == {"CPU": 1, "GPU": 0.5, "memory": 100}
    assert place.options == {"num_cpus": 1, "num_gpus": 0.5, "memory": 100}


def max_min(wanted: Mapping[str, int], slots: int) -> list[int]:
    """The largest sorted vector of shares by brute force: what max-min fairness means."""
    ranges = [range(count + 1) for count in wanted.values()]
    fitting = (shares for shares in product(*ranges) if sum(shares) <= slots)
    return max(sorted(shares) for shares in fitting)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=1),
    st.integers(0, 12),
)
def test_shares_are_max_min_fair(wanted: dict[str, int], slots: int) -> None:
    shares = fair_shares(wanted, slots)

    assert sorted(shares.values()) == sorted(max(1, s) for s in max_min(wanted, slots))
    assert all(share <= max(1, wanted[name]) for name, share in shares.items())
