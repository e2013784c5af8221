from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import ClipChoice
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from service.study.clip_search import Clipping, has_clips
from storage.records import Lease
from storage.store import Store
from tests.support.reporters import NullReporter
from tests.support.store_samples import identities, job, running
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import Footprint

SPACE = {"weight_bits": [2, 3, 8], "activation_bits": [4, 8], "clips": [1.0, 0.99, 0.98]}
TOWERS = {"a": Tower.VISION, "b": Tower.VISION, "c": Tower.LANGUAGE, "t": Tower.TEXT}
LAYERS = tuple(
    Layer(name, tower, LayerKind.LINEAR, 8, 8, 4, name, tower.value)
    for name, tower in TOWERS.items()
)
BLOCKS = tuple(Block(layer.name, layer.tower, (layer.name,)) for layer in LAYERS)


def clipped(option: Option, clip: float) -> Option:
    return Option(tuple(replace(precision, clip=clip) for precision in option.precisions))


@dataclass
class Pool:
    """Gives every option the clip 0.98, and the prefix 0.99; notes what it was asked."""

    chains: list[list[tuple[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    prefixes: list[Plan] = field(default_factory=list)

    def walk_clips(
        self, chains: Sequence[Sequence[tuple[Block, Option]]]
    ) -> list[list[ClipChoice]]:
        self.chains += [[(block.name, str(option)) for block, option in chain] for chain in chains]
        return [
            [ClipChoice(clipped(option, 0.99), 0.1, 3) for _, option in chain] for chain in chains
        ]

    def clips(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        prefix: Plan,
        on_choice: Callable[[Block, tuple[Option, ClipChoice]], None],
    ) -> None:
        self.prefixes.append(prefix)
        for block, options in work:
            for option in options:
                self.asked.append((block.name, str(option)))
                on_choice(block, (option, ClipChoice(clipped(option, 0.98), 0.2, 5)))


def model_info(model: str = "model") -> ModelInfo:
    return ModelInfo(LAYERS, 0, (), Evaluation({}, {}), Footprint(0, 0), identities(model), {})


def clipping(store: Store, lease: Lease, pool: Pool, told: ModelInfo | None = None) -> Clipping:
    spec = job(space=SPACE)
    return Clipping(spec, store, lease, pool, told or model_info(), NullReporter())


def wanted(*texts: str) -> dict[str, list[Option]]:
    return {block.name: [Option.parse(text) for text in texts] for block in BLOCKS}


@pytest.mark.parametrize(
    ("space", "quantizer", "expected"),
    [
        (SPACE, {}, True),
        ({**SPACE, "clips": [0.99]}, {}, False),
        ({**SPACE, "activation_bits": [16]}, {}, False),
        (SPACE, {"activations": "dynamic"}, False),
    ],
)
def test_clips_are_searched_where_there_are_several_static_ones(
    space: dict[str, object], quantizer: dict[str, object], *, expected: bool
) -> None:
    spec: JobSpec = job(space=space, quantizer=quantizer)

    assert has_clips(spec) is expected


def test_every_option_gets_its_clips_in_its_place(store: Store) -> None:
    pool = Pool()

    chosen = clipping(store, running(store), pool).choose(BLOCKS, wanted("w2a4", "w3a16", "w8a8"))

    assert [str(option) for option in chosen["a"]] == ["w2a4c0.98", "w3a16", "w8a8c0.98"]
    assert ("c", "w3a16") not in pool.asked


def test_the_prefix_has_the_narrowest_inputs_and_is_walked_chain_by_chain(store: Store) -> None:
    pool = Pool()

    clipping(store, running(store), pool).choose(BLOCKS, wanted("w2a4"))

    assert pool.chains == [[("a", "w3a4"), ("b", "w3a4"), ("c", "w3a4")], [("t", "w3a4")]]
    assert set(dict(pool.prefixes[0]).values()) == {Precision(3, 4, 0, 0.99)}


def test_what_was_searched_is_not_searched_again(store: Store) -> None:
    lease, first, second, other = running(store), Pool(), Pool(), Pool()
    clipping(store, lease, first).choose(BLOCKS, wanted("w2a4"))

    again = clipping(store, lease, second).choose(BLOCKS, wanted("w2a4", "w8a8"))
    clipping(store, lease, other, model_info("another model")).choose(BLOCKS, wanted("w2a4"))

    assert second.chains == []
    assert second.asked == [(block.name, "w8a8") for block in BLOCKS]
    assert [str(option) for option in again["b"]] == ["w2a4c0.98", "w8a8c0.98"]
    assert other.asked == first.asked
