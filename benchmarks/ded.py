"""DED, the discretization error difference: what searching two neighbours jointly is worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from bitfront.layers import Block, Layer, LayerKind
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from objectives.profiling.clips import ClipSearch, prefix_after


@dataclass(frozen=True, slots=True)
class Ded:
    """The measured dependency of one step on the one before (Q-VLM, section 3.2).

    Attributes:
        before: The first layer of the earlier step.
        after: The first layer of the later step.
        sequential: The later step's output error, both steps' clips searched one by one.
        joint: The same, searched together; never above `sequential`.
        evaluations: Runs of the probe set through the pair that the joint search took.
    """

    before: str
    after: str
    sequential: float
    joint: float
    evaluations: int

    @property
    def difference(self) -> float:
        """`sequential - joint`: the larger, the more the later step depends on the earlier."""
        return self.sequential - self.joint


def list_pairs(layers: Sequence[Layer]) -> Iterator[tuple[Block, Block]]:
    """Neighbouring steps that run through the model one after the other.

    A step is the layers that share one input. Embeddings take none and are left out. A text
    tower never sees the vision tower; projector and decoder do.
    """
    steps = []
    multiplying = [layer for layer in layers if layer.kind is not LayerKind.EMBEDDING]
    for (tower, source), members in groupby(multiplying, key=lambda x: (x.tower, x.source)):
        steps.append(Block(source, tower, tuple(layer.name for layer in members)))
    for before, after in pairwise(steps):
        if before.tower.sees_images is after.tower.sees_images:
            yield before, after


def measure_ded(search: ClipSearch, layers: Sequence[Layer], precision: Precision) -> list[Ded]:
    """The DED of all neighbouring steps, each after a prefix that was searched one by one.

    Args:
        search: Its split is the probe set.
        layers: All layers, in order of execution.
        precision: What every layer is rounded to.
    """
    found: list[Ded] = []
    prefix = Plan(())
    for before, after in list_pairs(layers):
        pair = Block(before.name, after.tower, (*before.layers, *after.layers))
        option = Option((precision,) * len(pair.layers))
        sequential = search.sequential(pair, option, prefix)
        joint = search.joint(pair, option, prefix)
        found.append(
            Ded(before.layers[0], after.layers[0], sequential.error, joint.error, joint.evaluations)
        )
        chosen = Option(sequential.option.precisions[: len(before.layers)])
        prefix = prefix_after(prefix, before, chosen)
    return found
