import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from bitfront.errors import SpecError
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.lockstep import Arrival, Lockstep
from objectives.execution.streams import Stream
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder


@pytest.fixture(scope="module")
def task() -> Task:
    return scene_task(scene_spec(), untrained_encoder())


def images(task: Task) -> Stream:
    return task.streams(SplitName.CALIBRATION)[0]


def layers_of(task: Task, stream: Stream) -> list[str]:
    return [layer.name for layer in task.model.layers if layer.tower in stream.towers]


def walk(task: Task, decide: object, undecided: Sequence[str]) -> dict[int, Tensor]:
    """Runs the images side by side; returns what each batch gave in the end, if it got there."""
    stream, given = images(task), {}

    def run(batch: int) -> None:
        given[batch] = stream.run(batch)

    Lockstep(task.model, layers_of(task, stream), undecided, lambda _layer: None).run(
        [partial(run, batch) for batch in range(len(stream.sizes))],
        decide,  # type: ignore[arg-type]  # the tests' own
        lambda _batch: nullcontext(),
        {},
    )
    return given


def test_batches_wait_at_every_layer_in_order_with_the_inputs_of_a_plain_run(task: Task) -> None:
    stream = images(task)
    layers = layers_of(task, stream)
    plain: dict[str, list[Tensor]] = {}
    with (
        torch.no_grad(),
        task.model.watch_inputs(lambda name, x: plain.setdefault(name, []).append(x)),
    ):
        for batch in range(len(stream.sizes)):
            stream.run(batch)
    seen: dict[str, list[Arrival]] = {}

    walk(task, lambda layer, arrivals: seen.update({layer: list(arrivals)}), layers)

    assert list(seen) == layers
    assert len(stream.sizes) > 1
    for layer, arrivals in seen.items():
        assert [arrival.batch for arrival in arrivals] == list(range(len(stream.sizes)))
        assert all(map(torch.equal, (arrival.inputs for arrival in arrivals), plain[layer]))
        writes = task.model.stream(layer) is not None
        assert all((arrival.stream is not None) is writes for arrival in arrivals)


def test_runs_end_once_every_layer_is_decided(task: Task) -> None:
    threads, first = threading.active_count(), layers_of(task, images(task))[0]

    ended = walk(task, lambda _layer, _arrivals: None, [first])

    assert ended == {}
    assert threading.active_count() == threads
    assert not any(module._forward_pre_hooks for module in task.model.module.modules())


def test_runs_that_never_reach_an_undecided_layer_end_by_themselves(task: Task) -> None:
    stream = images(task)
    elsewhere = [x.name for x in task.model.layers if x.tower not in stream.towers]

    ended = walk(task, lambda _layer, _arrivals: pytest.fail("not reached"), elsewhere)

    with torch.no_grad():
        assert all(torch.equal(out, stream.run(batch)) for batch, out in ended.items())
    assert len(ended) == len(stream.sizes)


@pytest.mark.parametrize("place", ["deciding", "running"])
def test_an_error_ends_every_run_and_is_raised(task: Task, place: str) -> None:
    threads, layers = threading.active_count(), layers_of(task, images(task))

    def fail(*_args: object) -> None:
        raise SpecError("on the way")

    module = task.model.multiplying(layers[2])[0]
    hook = module.register_forward_hook(fail) if place == "running" else None
    try:
        with pytest.raises(SpecError, match="on the way"):
            walk(task, fail if hook is None else lambda _layer, _arrivals: None, layers)
    finally:
        if hook is not None:
            hook.remove()

    assert threading.active_count() == threads
