"""Running a stream under a plan part by part, so that a trial may stop on the way."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.plan import Plan
from bitfront.samples import RACE_SHARES
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import Stream, StreamPart

_SEED = 0


@dataclass(slots=True)
class _Begun:
    """What a plan gave so far, by the number of the batch."""

    plan: Plan
    outputs: dict[int, Tensor] = field(default_factory=dict)


class PartedRunner:
    """Runs a stream whole, or part by part: the same batches, so the same bits.

    What a plan gave in its first parts is kept until it is run whole, or another plan begins.
    """

    def __init__(self, runner: StreamRunner) -> None:
        self._runner = runner
        self._begun: dict[str, _Begun] = {}

    def course(
        self, given: Stream, plan: Plan, *, keep: bool = True
    ) -> Iterator[tuple[tuple[int, ...], Float[Tensor, "rows d"]]]:
        """After each part but the last: the batches that have run so far, and their outputs.

        Nothing where there are too few batches for parts, or where samples are not independent.
        """
        begun = self._begun[given.key] = _Begun(plan)
        for part in parts(given)[:-1]:
            self._advance(part, begun, keep=keep)
            batches = tuple(sorted(begun.outputs))
            yield batches, torch.cat([begun.outputs[batch] for batch in batches])

    def run(self, given: Stream, plan: Plan, *, keep: bool = True) -> Float[Tensor, "rows d"]:
        """What the model gives for all samples: of a plan that has begun, only the rest is run."""
        begun = self._begun.pop(given.key, None)
        if begun is None or begun.plan != plan or not begun.outputs:
            return self._runner.run(given, plan, keep=keep)
        for part in parts(given):
            if not begun.outputs.keys() >= set(part.batches):
                self._advance(part, begun, keep=keep)
        return torch.cat([begun.outputs[batch] for batch in range(len(given.sizes))])

    def _advance(self, part: StreamPart, begun: _Begun, *, keep: bool) -> None:
        found = torch.split(self._runner.run(part, begun.plan, keep=keep), list(part.rows))
        begun.outputs |= zip(part.batches, found, strict=True)


def parts(given: Stream) -> list[StreamPart]:
    """The parts of a stream, which end where `RACE_SHARES` of its batches have run, and all.

    Which batches come first is drawn once and for all: questions are in batches by their length.
    """
    count = len(given.sizes)
    if not given.are_independent:
        return [StreamPart(given, range(count))]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED)).tolist()
    ends = sorted({*(math.ceil(share * count) for share in RACE_SHARES), count})
    starts = [0, *ends[:-1]]
    return [
        StreamPart(given, sorted(order[start:end])) for start, end in zip(starts, ends, strict=True)
    ]


def rows_of(batches: Sequence[int], sizes: Sequence[int]) -> Int[Tensor, " rows"]:
    """The rows of some batches, where all batches lie one after the other with such sizes."""
    starts = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
    return torch.cat([torch.arange(starts[batch], starts[batch + 1]) for batch in batches])
