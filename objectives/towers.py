"""Running a tower under a plan, from the deepest transformer block that is known already.

Plans of a search share beginnings: what leaves a transformer block depends on the samples and
on the layers up to it only. So the activations between blocks are kept by the plan's part up
to there, and a run starts behind the last block whose part it shares with an earlier one.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cache import TensorCache
from objectives.data import SplitName, Task

_PROBED_SAMPLES = 2


@dataclass(frozen=True)
class TowerInput:
    """The batches that go through a tower, always cut in the same way.

    Attributes:
        key: What tells them from others.
        tower: The tower that they go through.
        sizes: Samples in each batch.
        read: A batch by its number.
        stand_for: What may stand for a batch where the first blocks are skipped: empty
            images, which need no decoding. Captions stay, for the positions of their tokens
            count to the end.
    """

    key: str
    tower: Tower
    sizes: tuple[int, ...]
    read: Callable[[int], Tensor]
    stand_for: Callable[[int], Tensor]

    @classmethod
    def images(cls, task: Task, name: SplitName, model: DualEncoder) -> "TowerInput":
        """The images of a split."""
        split, size = task.split(name), task.batch_size
        starts = range(0, len(split), size)

        def read(batch: int) -> Tensor:
            return split.read(starts[batch], min(starts[batch] + size, len(split)))

        def stand_for(batch: int) -> Tensor:
            return torch.zeros(sizes[batch], *model.image_shape)

        sizes = tuple(min(size, len(split) - start) for start in starts)
        return cls(name.value, Tower.VISION, sizes, read, stand_for)

    @classmethod
    def captions(cls, task: Task) -> "TowerInput":
        """All captions of the task, template by template."""
        batches = list(task.caption_batches())
        read = batches.__getitem__
        return cls("captions", Tower.TEXT, tuple(map(len, batches)), read, read)


@dataclass(frozen=True, slots=True)
class _Joint:
    """The place behind a transformer block.

    Attributes:
        modules: The blocks up to here; the last one gives what is kept.
        layers: All layers of the tower up to here.
        sample_nbytes: Bytes of what leaves the block for one sample.
    """

    modules: tuple[nn.Module, ...]
    layers: frozenset[str]
    sample_nbytes: int


class TowerRunner:
    """Runs towers under plans; equal arguments give equal bits, whatever was run before.

    Args:
        model: The model.
        switch: Its switch.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps none.
    """

    def __init__(self, model: DualEncoder, switch: PlanSwitch, cache_nbytes: int = 1 << 30) -> None:
        self._model = model
        self._switch = switch
        self._joints: dict[Tower, list[_Joint]] = {}
        self.cache = TensorCache(cache_nbytes)

    def run(
        self,
        given: TowerInput,
        plan: Plan,
        *,
        keep: bool = True,
        watched: Collection[str] = (),
    ) -> Float[Tensor, "n d"]:
        """The features of all samples under a plan, not normalised, without gradients.

        Args:
            given: The samples.
            plan: The precisions; those of the other tower do not matter.
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
        features = []
        for batch in range(len(given.sizes)):
            with ExitStack() as stack:
                if begun is not None:
                    stack.enter_context(_skipped(joints[start].modules, begun[batch]))
                for depth, outputs in kept.items():
                    hook = joints[depth].modules[-1].register_forward_hook(partial(_note, outputs))
                    stack.callback(hook.remove)
                samples = given.read(batch) if begun is None else given.stand_for(batch)
                features.append(self._encode(given.tower, samples))
        for depth, outputs in kept.items():
            self.cache.put(keys[depth], outputs)
        return torch.cat(features)

    def _encode(self, tower: Tower, samples: Tensor) -> Tensor:
        with torch.no_grad():
            if tower is Tower.VISION:
                return self._model.encode_images(samples)
            return self._model.encode_texts(samples)

    def _admitted(
        self, keys: Sequence[tuple[str, int, Plan]], joints: Sequence[_Joint], start: int, n: int
    ) -> Iterator[int]:
        """The depths behind `start` whose activations are kept, the shallow ones first."""
        pending = 0
        for depth in range(start + 1, len(joints)):
            nbytes = joints[depth].sample_nbytes * n
            if self.cache.admits(keys[depth], nbytes, pending):
                pending += nbytes
                yield depth

    def _joints_of(self, given: TowerInput) -> list[_Joint]:
        if given.tower not in self._joints:
            skips = self.cache.limit_nbytes > 0
            self._joints[given.tower] = self._find_joints(given) if skips else []
        return self._joints[given.tower]

    def _find_joints(self, given: TowerInput) -> list[_Joint]:
        """The places where the tower can be taken up again, each one tried on some samples.

        A place counts if a run that starts there gives the same bits as a whole one, twice.
        """
        samples = given.read(0)[:_PROBED_SAMPLES]
        seen: dict[nn.Module, list[Tensor]] = {}
        candidates = self._candidates(given.tower)
        with ExitStack() as stack:
            for module, _ in candidates:
                outputs = seen[module] = []
                hook = module.register_forward_hook(partial(_note, outputs))
                stack.callback(hook.remove)
            whole = self._encode(given.tower, samples)
        samples = given.stand_for(0)[:_PROBED_SAMPLES]
        joints = []
        for place, (module, layers) in enumerate(candidates):
            outputs = seen[module]
            if len(outputs) != 1 or len(outputs[0]) != len(samples):
                continue
            modules = tuple(module for module, _ in candidates[: place + 1])
            with _skipped(modules, outputs[0]):
                again = [self._encode(given.tower, samples) for _ in range(2)]
            if all(torch.equal(features, whole) for features in again):
                joints.append(_Joint(modules, layers, outputs[0][0].nbytes))
        return joints

    def _candidates(self, tower: Tower) -> list[tuple[nn.Module, frozenset[str]]]:
        """The tower's transformer blocks, each with all layers up to its end."""
        modules = dict(self._model.module.named_modules())
        layers = [layer for layer in self._model.layers if layer.tower is tower]
        found, names = [], []
        for scope, members in groupby(layers, key=lambda layer: layer.scope):
            names += [layer.name for layer in members]
            if scope != tower.value and scope in modules:
                found.append((modules[scope], frozenset(names)))
        return found


def _note(outputs: list[Tensor], _module: nn.Module, _args: object, output: object) -> None:
    """A forward hook that keeps a block's output, if it is one tensor."""
    if isinstance(output, Tensor):
        outputs.append(output)


@contextmanager
def _skipped(modules: Sequence[nn.Module], output: Tensor) -> Iterator[None]:
    """Within it the modules compute nothing, and the last one gives `output`."""
    for module in modules:
        module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        for module in modules:
            del module.forward
