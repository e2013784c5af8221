"""Clip percentiles of a block's inputs, searched jointly for the block's output error.

Q-VLM searches the rounding functions of a block together (Eq 3): how far one layer's range is
cut decides what the next one has to round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from torch import Tensor

from bitfront.layers import Block, Tower, input_groups
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import ClipChoice
from bitfront.vlm import PlanSwitch
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import Stream
from objectives.profiling.full_precision import FULL_PLAN


class ClipSearch:
    """Searches clips block by block, on inputs from the quantized blocks before.

    Args:
        task: One of its splits is what errors are measured on.
        switch: The model's switch; it has static ranges for every clip.
        clips: The candidates, such as Q-VLM's 1.0, 0.995, 0.99, 0.985 and 0.98.
        cache_nbytes: How much of the activations between transformer blocks to keep; what
            leaves the block before the searched one is enough.
        split: The split.

    Attributes:
        runner: What runs the split's streams.
    """

    def __init__(
        self,
        task: Task,
        switch: PlanSwitch,
        clips: Sequence[float],
        cache_nbytes: int = 1 << 30,
        split: SplitName = SplitName.CALIBRATION,
    ) -> None:
        self._model = task.model
        self._switch = switch
        self._clips = tuple(clips)
        self._layers = {layer.name: layer for layer in task.model.layers}
        self._streams = task.streams(split)
        self.runner = StreamRunner(task.model, switch, cache_nbytes)
        self._full: tuple[tuple[str, ...], dict[str, list[Tensor]]] = ((), {})

    def joint(self, block: Block, option: Option, prefix: Plan) -> ClipChoice:
        """The best clips of all layers together, by the block's output error.

        Layers of the block's last input group share their input and do not see each other, so their
        clips are told apart within the same runs: a block of `d` layers with `s` of them in
        the last group takes `c^(d - s + 1)` runs for `c` candidates, and the result is that of
        all `c^d`.

        Args:
            block: The block; its layers are in order of execution.
            option: Its precisions; the clips in it do not matter.
            prefix: What the layers before the block have. Others in it do not matter.
        """
        try:
            return self._joint(block, option, prefix)
        finally:
            self._switch.to(FULL_PLAN)

    def sequential(self, block: Block, option: Option, prefix: Plan) -> ClipChoice:
        """The best clips group by group, each by its own output error: the baseline (Eq 2)."""
        try:
            chosen = dict(zip(block.layers, option.precisions, strict=True))
            evaluations, error = 0, 0.0
            for group in input_groups(block, self._layers):
                part = Option(tuple(chosen[name] for name in group.layers))
                found = self._joint(group, part, prefix)
                evaluations, error = evaluations + found.evaluations, found.error
                chosen |= dict(zip(group.layers, found.option.precisions, strict=True))
                prefix = Plan.of({**dict(prefix), **chosen})
            return ClipChoice(
                Option(tuple(chosen[name] for name in block.layers)), error, evaluations
            )
        finally:
            self._switch.to(FULL_PLAN)

    def error(self, block: Block, option: Option, prefix: Plan) -> float:
        """The block's output error under an option with its clips."""
        assigned = dict(zip(block.layers, option.precisions, strict=True))
        plan = Plan.of({**dict(prefix), **assigned})
        try:
            return sum(
                self._errors(block, input_groups(block, self._layers)[-1].layers, plan).values()
            )
        finally:
            self._switch.to(FULL_PLAN)

    def stream(self, tower: Tower) -> Stream:
        """The samples that run through a tower."""
        return next(stream for stream in self._streams if tower in stream.towers)

    def _joint(self, block: Block, option: Option, prefix: Plan) -> ClipChoice:
        given = dict(zip(block.layers, option.precisions, strict=True))
        last = input_groups(block, self._layers)[-1].layers
        earlier = [name for name in block.layers if name not in last]
        best: tuple[float, dict[str, Precision]] | None = None
        evaluations = 0
        for combination in product(*(self._candidates(name, given[name]) for name in earlier)):
            fixed = dict(zip(earlier, combination, strict=True))
            found: dict[str, tuple[float, Precision]] = {}
            for precisions in _side_by_side([self._candidates(n, given[n]) for n in last]):
                assigned = {**fixed, **dict(zip(last, precisions, strict=True))}
                errors = self._errors(block, last, Plan.of({**dict(prefix), **assigned}))
                evaluations += 1
                for name, error in errors.items():
                    if name not in found or error < found[name][0]:
                        found[name] = error, assigned[name]
            total = sum(error for error, _ in found.values())
            if best is None or total < best[0]:
                best = total, {**fixed, **{name: p for name, (_, p) in found.items()}}
        assert best is not None, "a block without layers"
        chosen = Option(tuple(best[1][name] for name in block.layers))
        return ClipChoice(chosen, best[0], evaluations)

    def _candidates(self, layer: str, precision: Precision) -> list[Precision]:
        """The precision under every clip; a layer without quantized input has only one."""
        if not precision.quantizes_input or not self._model.multiplying(layer):
            return [replace(precision, clip=1.0)]
        return [replace(precision, clip=clip) for clip in self._clips]

    def _errors(self, block: Block, outputs: Sequence[str], plan: Plan) -> dict[str, float]:
        """Each output layer's squared change from full precision over its squared output."""
        stream = self.stream(block.tower)
        full = self._full_outputs(stream, tuple(outputs))
        changed = self.runner.observe(stream, plan, outputs)
        errors = {}
        for name in outputs:
            pairs = list(zip(full[name], changed[name], strict=True))
            change = sum(float((new.float() - old.float()).square().sum()) for old, new in pairs)
            size = sum(float(old.float().square().sum()) for old, _ in pairs)
            errors[name] = change / size if size > 0 else change
        return errors

    def _full_outputs(self, stream: Stream, layers: tuple[str, ...]) -> dict[str, list[Tensor]]:
        if self._full[0] != layers:
            self._full = layers, self.runner.observe(stream, FULL_PLAN, layers)
        return self._full[1]


def _side_by_side(candidates: Sequence[Sequence[Precision]]) -> list[tuple[Precision, ...]]:
    """The first candidates of all, the second ones, and so on; short lists repeat their last."""
    longest = max(map(len, candidates))
    return [tuple(own[min(n, len(own) - 1)] for own in candidates) for n in range(longest)]


def walk(
    search: ClipSearch,
    blocks: Sequence[Block],
    options: Mapping[str, Option],
    *,
    joint: bool = True,
) -> dict[str, ClipChoice]:
    """Searches the blocks in order, each after the ones before it with the clips they got.

    Args:
        search: Measures the errors.
        blocks: All blocks of the model, in order of execution.
        options: Each block's precisions, by its name.
        joint: Whether the layers of a block are searched together.

    Returns:
        The choice of each block, by its name.
    """
    chosen: dict[str, ClipChoice] = {}
    prefix = Plan(())
    for block in blocks:
        find = search.joint if joint else search.sequential
        chosen[block.name] = find(block, options[block.name], prefix)
        prefix = prefix_after(prefix, block, chosen[block.name].option)
    return chosen


def prefix_after(prefix: Plan, block: Block, option: Option) -> Plan:
    """The prefix with one more block."""
    return Plan.of({**dict(prefix), **dict(zip(block.layers, option.precisions, strict=True))})
