"""Running a stream under a plan, from the deepest transformer block that is known already.

Plans of a search share beginnings: what leaves a transformer block depends on the samples and
on the layers up to it only. So the activations between blocks are kept by the plan's part up
to there, and a run starts after the last block whose part it shares with an earlier one.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.quant.inputs import InputQuantizer
from bitfront.vlm import LayeredModel, PlanSwitch
from objectives.execution.lockstep import Arrival, Lockstep
from objectives.execution.mapped import mapped
from objectives.execution.section import Section
from objectives.execution.streams import Stream
from objectives.execution.tensor_cache import TensorCache

_PROBED_SAMPLES = 2
_NEAR = 1e-4  # rounding errors: products' last bits may depend on where in memory a tensor is
FULL_PLAN = Plan(())


@dataclass(frozen=True, slots=True)
class _Joint:
    """The place after a transformer block.

    Attributes:
        modules: The blocks of the same tower up to here; the last one gives what is kept.
        before: The blocks of the towers before it.
        layers: All layers that act up to here.
        sample_nbytes: Bytes of what leaves the block for one sample.
    """

    modules: tuple[nn.Module, ...]
    before: tuple[nn.Module, ...]
    layers: frozenset[str]
    sample_nbytes: int

    @contextmanager
    def skipped(self, output: Tensor) -> Iterator[None]:
        """Within it all blocks up to here compute nothing, and the last one gives `output`."""
        for module in self.before:
            module.forward = lambda hidden, *_args, **_kwargs: hidden
        for module in self.modules:
            module.forward = lambda *_args, **_kwargs: output
        try:
            yield
        finally:
            # A block whose layers do not all run in a row is there more than once.
            for module in {*self.before, *self.modules}:
                del module.forward


class _Reached(Exception):
    """Ends a run whose observed layers have all been seen."""


class _Ending:
    """Counts the calls of the observed layers in a batch, and ends its run after the last."""

    def __init__(self, expected: int) -> None:
        self._left = expected

    def note(
        self, outputs: list[Tensor], _module: nn.Module, _args: object, output: Tensor
    ) -> None:
        """A forward hook that keeps a layer's output."""
        outputs.append(output)
        self._left -= 1
        if self._left == 0:
            raise _Reached


class StreamRunner:
    """Runs streams under plans; equal arguments give equal bits, whatever was run before.

    Args:
        model: The model.
        switch: Its switch.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps none. Of a model
            that is read block by block they are kept on disk, as much as a quarter of what is free.
    """

    def __init__(
        self, model: LayeredModel, switch: PlanSwitch, cache_nbytes: int = 1 << 30
    ) -> None:
        self._model = model
        self._switch = switch
        self._joints: dict[frozenset[Tower], list[_Joint]] = {}
        self._calls: dict[frozenset[Tower], Mapping[str, int]] = {}
        self._is_blockwise = model.residency is not None
        if self._is_blockwise:
            cache_nbytes = shutil.disk_usage(tempfile.gettempdir()).free // 4
        self.cache = TensorCache(cache_nbytes)

    def run(
        self,
        given: Stream,
        plan: Plan,
        *,
        keep: bool = True,
        watched: Collection[str] = (),
    ) -> Float[Tensor, "n d"]:
        """What the model gives for all samples under a plan, without gradients.

        Args:
            given: The samples.
            plan: The precisions; those of towers that they do not run through do not matter.
            keep: Whether later plans are likely to share a beginning with this one.
            watched: Layers that must run, since hooks look at them.
        """
        self._switch.to(plan)
        joints = self._joints_of(given)
        keys = [(given.key, depth, plan.part(joint.layers)) for depth, joint in enumerate(joints)]
        start, begun = -1, None
        for depth in reversed(range(len(joints))):
            if keys[depth] in self.cache and joints[depth].layers.isdisjoint(watched):
                start, begun = depth, self.cache.get(keys[depth])
                break
        kept: dict[int, list[Tensor]] = {}
        if keep:
            kept = {depth: [] for depth in self._admitted(keys, joints, start, sum(given.sizes))}
        if self._is_blockwise:
            features = self._by_blocks(given, start, begun, kept)
            for depth, outputs in kept.items():
                self.cache.put(keys[depth], outputs)
            return torch.cat(features)
        features = []
        for batch in range(len(given.sizes)):
            with ExitStack() as stack:
                if begun is not None:
                    stack.enter_context(joints[start].skipped(begun[batch]))
                for depth, outputs in kept.items():
                    hook = joints[depth].modules[-1].register_forward_hook(partial(_note, outputs))
                    stack.callback(hook.remove)
                with torch.no_grad():
                    features.append(given.run(batch, stand_in=begun is not None))
            for outputs in kept.values():
                if len(outputs) == batch:  # a block that these samples do not pass
                    outputs.append(torch.empty(0))
        for depth, outputs in kept.items():
            self.cache.put(keys[depth], outputs)
        return torch.cat(features)

    def _by_blocks(
        self,
        given: Stream,
        start: int,
        begun: Sequence[Tensor] | None,
        kept: dict[int, list[Tensor]],
    ) -> list[Tensor]:
        """The output of each batch, all batches passing a transformer block while it is there.

        Args:
            given: The samples.
            start: The depth of the joint that is begun after; -1 for the beginning.
            begun: What leaves that joint for each batch.
            kept: Filled with what leaves each of its depths.
        """
        passing: Sequence[Tensor | None] = begun or [None] * len(given.sizes)
        outputs: list[Tensor] = []
        for depth, section in enumerate(self.sections(given)[start + 1 :], start + 1):
            with self.resident(section), torch.no_grad():
                outputs = [section.run(given, batch, entry) for batch, entry in enumerate(passing)]
            if section.end is not None:
                outputs = [mapped(output) for output in outputs]
            if depth in kept:
                kept[depth] += outputs
            passing = outputs
        return outputs

    def sections(self, given: Stream) -> list[Section]:
        """What the samples run through, cut so that each part is in memory alone.

        One part, where all of the model is in memory.
        """
        if not self._is_blockwise:
            layers = frozenset(x.name for x in self._model.layers if x.tower in given.towers)
            return [Section(layers, (), None, None, ())]
        return self._sections(self._joints_of(given), given.towers)

    def resident(self, section: Section) -> AbstractContextManager[None]:
        """Within it the transformer blocks of a section are in memory."""
        residency = self._model.residency
        return nullcontext() if residency is None else residency.held(section.blocks)

    def entries(self, given: Stream, number: int) -> Sequence[Tensor | None]:
        """What enters the section of that number in full precision, batch by batch.

        None at the beginning. What is not kept runs.
        """
        if number == 0:
            return [None] * len(given.sizes)
        joint = self._joints_of(given)[number - 1]
        key = (given.key, number - 1, FULL_PLAN.part(joint.layers))
        kept = self.cache.get(key)
        if kept is None:
            self.run(given, FULL_PLAN)
            kept = self.cache.get(key)
        if kept is None:
            raise SpecError(
                "what the calibration samples give between transformer blocks takes more than a "
                "quarter of the free disk: set data.samples.calibration lower, or TMPDIR to a "
                "larger disk"
            )
        return kept

    def observe(self, given: Stream, plan: Plan, layers: Sequence[str]) -> dict[str, list[Tensor]]:
        """What some layers give under a plan, call by call; nothing after them runs.

        A run starts after the last transformer block that holds none of the layers, and what
        leaves that block is kept: until another plan differs before it, it runs once.

        Args:
            given: The samples.
            plan: The precisions; those after the layers do not matter.
            layers: All of one stream. An embedding's output is observed only where its weight
                multiplies nothing.
        """
        self._switch.to(plan)
        joints = self._joints_of(given)
        inside = [layer for layer in layers if not self._model.acts_from_the_start(layer)]
        usable = [n for n, joint in enumerate(joints) if joint.layers.isdisjoint(inside)]
        keys = {n: (given.key, n, plan.part(joints[n].layers)) for n in usable}
        start = next((n for n in reversed(usable) if keys[n] in self.cache), -1)
        begun = self.cache.get(keys[start]) if start >= 0 else None
        last = usable[-1] if usable else -1
        passed: list[Tensor] = []
        calls: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        expected = sum(self._calls_of(given)[layer] for layer in layers)
        for batch in range(len(given.sizes)):
            with ExitStack() as stack:
                if begun is not None:
                    stack.enter_context(joints[start].skipped(begun[batch]))
                if last > start:
                    hook = joints[last].modules[-1].register_forward_hook(partial(_note, passed))
                    stack.callback(hook.remove)
                ending = _Ending(expected)
                for layer, outputs in calls.items():
                    for module in self._watchable(layer):
                        watch = partial(ending.note, outputs)
                        stack.callback(module.register_forward_hook(watch).remove)
                with suppress(_Reached), torch.no_grad():
                    given.run(batch, stand_in=begun is not None)
            if last > start and len(passed) == batch:  # these samples do not pass the block
                passed.append(torch.empty(0))
        if last > start:
            self.cache.put(keys[last], passed)
        return calls

    def walk(
        self,
        given: Stream,
        plan: Plan,
        undecided: Collection[str],
        quantizer: Callable[[str], InputQuantizer | None],
        decide: Callable[[str, Sequence[Arrival]], None],
    ) -> None:
        """Runs the samples side by side, and decides layers of a plan where they reach them.

        The weights of the plan's other layers are on the model already, and no switch's input
        quantizers. A run starts after the last transformer block that is known to the cache and
        holds no undecided layer.

        Args:
            given: The samples.
            plan: The precisions of all layers, decided or not.
            undecided: Layers of the stream; those that no sample reaches stay undecided.
            quantizer: What the input of a decided layer goes through.
            decide: See `Lockstep.run`.
        """
        joints = self._joints_of(given)
        keys = [(given.key, depth, plan.part(joint.layers)) for depth, joint in enumerate(joints)]
        before = [n for n, joint in enumerate(joints) if joint.layers.isdisjoint(undecided)]
        start = next((n for n in reversed(before) if keys[n] in self.cache), -1)
        begun = self.cache.get(keys[start]) if start >= 0 else None
        layers = [x.name for x in self._model.layers if x.tower in given.towers]
        last = max(undecided, key=layers.index)
        passed: dict[int, dict[int, Tensor]] = {
            depth: {}
            for depth in self._admitted(keys, joints, start, sum(given.sizes))
            if last not in joints[depth].layers
        }

        def started(batch: int) -> AbstractContextManager[None]:
            return nullcontext() if begun is None else joints[start].skipped(begun[batch])

        stand_in = begun is not None
        Lockstep(self._model, layers, undecided, quantizer).run(
            [partial(given.run, batch, stand_in=stand_in) for batch in range(len(given.sizes))],
            decide,
            started,
            {joints[depth].modules[-1]: outputs.__setitem__ for depth, outputs in passed.items()},
        )
        for depth, outputs in passed.items():
            filled = [outputs.get(batch, torch.empty(0)) for batch in range(len(given.sizes))]
            self.cache.put(keys[depth], filled)

    def _watchable(self, layer: str) -> tuple[nn.Module, ...]:
        return self._model.multiplying(layer) or self._model.modules(layer)

    def _calls_of(self, given: Stream) -> Mapping[str, int]:
        """How often each layer of a stream runs for a batch."""
        if given.towers not in self._calls:
            calls: dict[str, int] = {}

            def count(layer: str, *_: object) -> None:
                calls[layer] = calls.get(layer, 0) + 1

            with ExitStack() as stack:
                for layer in self._model.layers:
                    for module in self._watchable(layer.name):
                        hook = module.register_forward_hook(partial(count, layer.name))
                        stack.callback(hook.remove)
                with torch.no_grad():
                    given.run(0, rows=slice(1))
            self._calls[given.towers] = calls
        return self._calls[given.towers]

    def _admitted(
        self, keys: Sequence[tuple[str, int, Plan]], joints: Sequence[_Joint], start: int, n: int
    ) -> Iterator[int]:
        """The depths after `start` whose activations are kept, the shallow ones first."""
        pending = 0
        for depth in range(start + 1, len(joints)):
            nbytes = joints[depth].sample_nbytes * n
            if self.cache.request(keys[depth], nbytes, pending):
                pending += nbytes
                yield depth

    def _joints_of(self, given: Stream) -> list[_Joint]:
        if given.towers not in self._joints:
            skips = self.cache.limit_nbytes > 0
            self._joints[given.towers] = self._find_joints(given) if skips else []
        return self._joints[given.towers]

    @torch.no_grad()
    def _find_joints(self, given: Stream) -> list[_Joint]:
        """The places where a run can be taken up again, each one tried on some samples.

        A place counts if a run that starts there gives the same bits as a whole one, twice, and
        raises nothing.
        """
        candidates = self._candidates(given.towers)
        if self._is_blockwise:
            return self._checked(given, candidates)
        seen: dict[nn.Module, list[Tensor]] = {joint.modules[-1]: [] for joint in candidates}
        with ExitStack() as stack:
            for module, outputs in seen.items():
                stack.callback(module.register_forward_hook(partial(_note, outputs)).remove)
            whole = given.run(0, rows=slice(_PROBED_SAMPLES))
        samples = min(_PROBED_SAMPLES, given.sizes[0])
        joints = []
        for joint in candidates:
            outputs = seen[joint.modules[-1]]
            if len(outputs) != 1 or len(outputs[0]) % samples:
                continue
            probed = slice(_PROBED_SAMPLES)
            try:
                with joint.skipped(outputs[0]):
                    again = [given.run(0, rows=probed, stand_in=True) for _ in range(2)]
            except (RuntimeError, TypeError, ValueError):
                continue  # a block that takes or gives more than one tensor of one shape
            if all(torch.equal(features, whole) for features in again):
                joints.append(replace(joint, sample_nbytes=outputs[0].nbytes // samples))
        return joints

    def _sections(self, joints: Sequence[_Joint], towers: frozenset[Tower]) -> list[Section]:
        """What lies before, between and after some places.

        A layer that is tied to an embedding is in each, for it may run in several.
        """
        layers = [layer.name for layer in self._model.layers if layer.tower in towers]
        tied = frozenset(filter(self._model.acts_from_the_start, layers))
        ends = [joint.modules[-1] for joint in joints]
        found: list[Section] = []
        known: frozenset[str] = frozenset()
        skipping = None
        for depth, joint in enumerate(joints):
            inside = (joint.layers - known) | tied
            found.append(Section(inside, (ends[depth],), skipping, ends[depth], ends[depth + 1 :]))
            known, skipping = joint.layers, joint.skipped
        return [*found, Section((frozenset(layers) - known) | tied, (), skipping, None, ())]

    def _checked(self, given: Stream, candidates: list[_Joint]) -> list[_Joint]:
        """All places, each seen to give on a sample what a whole run gives at the next one.

        A whole run and the sections' are all that it takes, where every block is read from disk.

        Raises:
            SpecError: One gives something else.
        """
        probed = slice(1)
        outputs: dict[nn.Module, list[Tensor]] = {joint.modules[-1]: [] for joint in candidates}
        with ExitStack() as stack:
            for module, own in outputs.items():
                watch = partial(_note_mapped, own)
                stack.callback(module.register_forward_hook(watch).remove)
            whole = given.run(0, rows=probed)
        expected = [own[0] if len(own) == 1 else None for own in outputs.values()] + [whole]
        entry: Tensor | None = None
        sections = self._sections(candidates, given.towers)
        for section, wanted in zip(sections, expected, strict=True):
            found = section.run(given, 0, entry, probed)
            if wanted is None or not torch.allclose(found, wanted, _NEAR, _NEAR):
                raise SpecError(
                    "the transformer blocks of this model pass on more than one tensor, so it "
                    "cannot be read block by block: leave resources.memory out"
                )
            entry = wanted
        sizes = [own[0].nbytes for own in outputs.values()]
        return [
            replace(joint, sample_nbytes=size)
            for joint, size in zip(candidates, sizes, strict=True)
        ]

    def _candidates(self, towers: frozenset[Tower]) -> list[_Joint]:
        """The places after the towers' transformer blocks, their sizes not known yet."""
        modules = dict(self._model.module.named_modules())
        layers = [layer for layer in self._model.layers if layer.tower in towers]
        names = [layer.name for layer in layers if self._model.acts_from_the_start(layer.name)]
        found: list[_Joint] = []
        before: tuple[nn.Module, ...] = ()
        for tower, members in groupby(layers, key=lambda layer: layer.tower):
            own: tuple[nn.Module, ...] = ()
            for scope, part in groupby(members, key=lambda layer: layer.scope):
                names += [layer.name for layer in part]
                if scope != tower.value and scope in modules:
                    own += (modules[scope],)
                    found.append(_Joint(own, before, frozenset(names), sample_nbytes=0))
            # What a projector gives has another shape than what it takes, so it always runs.
            before += () if tower is Tower.PROJECTOR else own
        return found


def _note_mapped(outputs: list[Tensor], _module: nn.Module, _args: object, output: object) -> None:
    """As `_note`, on disk."""
    if isinstance(output, Tensor):
        outputs.append(mapped(output))


def _note(outputs: list[Tensor], _module: nn.Module, _args: object, output: object) -> None:
    """A forward hook that keeps a block's output, if it is one tensor."""
    if isinstance(output, Tensor):
        outputs.append(output)
