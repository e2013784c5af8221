import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.samples import RACE_SHARES
from bitfront.vlm import PlanSwitch
from objectives.data.split_name import SplitName
from objectives.execution.parted import PartedRunner, parts, rows_of
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import Rows, Stream
from objectives.profiling.calibration import calibrate
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder


class Numbers(Stream):
    """Batches of numbers; a batch may have several rows a sample."""

    key = "numbers"
    towers = frozenset({Tower.VISION})

    def __init__(self, sizes: Sequence[int], each: int = 1, *, independent: bool = True) -> None:
        self.sizes = tuple(sizes)
        self.rows = tuple(size * each for size in sizes)
        self.are_independent = independent

    def run(self, batch: int, *, rows: Rows = slice(None), stand_in: bool = False) -> Tensor:
        del stand_in
        start = sum(self.rows[:batch])
        return torch.arange(start, start + self.rows[batch])[rows]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_parts_hold_every_batch_once_and_end_at_their_shares(count: int) -> None:
    found = parts(Numbers([3] * count))

    batches = [batch for part in found for batch in part.batches]
    assert sorted(batches) == list(range(count))
    ends = torch.tensor([len(part.batches) for part in found]).cumsum(0).tolist()
    assert all(any(end >= share * count > end - 1 for end in ends) for share in RACE_SHARES)
    assert parts(Numbers([3] * count))[0].batches == found[0].batches


def test_what_is_not_independent_has_one_part() -> None:
    assert len(parts(Numbers([3] * 8, independent=False))) == 1


def test_a_part_gives_the_rows_of_its_batches() -> None:
    whole = Numbers([3, 1, 4, 2, 5], each=2)
    for part in parts(whole):
        found = torch.cat([part.run(batch) for batch in range(len(part.sizes))])

        assert found.tolist() == rows_of(part.batches, whole.rows).tolist()
        assert part.sizes == tuple(whole.sizes[batch] for batch in part.batches)


def test_parts_give_the_bits_of_the_whole_and_only_the_rest_is_run() -> None:
    spec = scene_spec()
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"batch_size": 2})})
    model = untrained_encoder()
    own = copy.deepcopy(model)
    task = scene_task(spec, model)
    stream = task.streams(SplitName.CALIBRATION)[0]
    names = [layer.name for layer in model.layers]
    plans = [Plan.uniform(names, Precision(bits, 8)) for bits in (4, 3)]
    ranges = calibrate(task, (1.0,))
    alone = StreamRunner(model, PlanSwitch(model, spec.quantizer, ranges), 0)
    whole = [alone.run(stream, plan) for plan in plans]
    again = scene_task(spec, own)
    stream = again.streams(SplitName.CALIBRATION)[0]
    runner = StreamRunner(own, PlanSwitch(own, spec.quantizer, ranges))
    parted = PartedRunner(runner)
    asked: list[int] = []
    run = stream.run

    def counted(batch: int, *, rows: Rows = slice(None), stand_in: bool = False) -> Tensor:
        asked.append(batch)
        return run(batch, rows=rows, stand_in=stand_in)

    stream.run = counted  # type: ignore[method-assign]

    for plan, expected in zip(plans, whole, strict=True):
        seen = 0
        for batches, outputs in parted.course(stream, plan):
            assert torch.equal(outputs, expected[rows_of(batches, stream.rows)])
            seen = len(batches)
        assert 0 < seen < len(stream.sizes)
        asked.clear()
        assert torch.equal(parted.run(stream, plan), expected)
        assert len(set(asked)) == len(stream.sizes) - seen

    halfway = parted.course(stream, plans[0])
    next(halfway)
    assert torch.equal(parted.run(stream, plans[1]), whole[1]), "another plan begins anew"
