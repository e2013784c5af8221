import math
from dataclasses import replace

import pytest

from bitfront.errors import InvalidMetric
from bitfront.identity.identities import CellKey
from bitfront.kv_cache import KvFormat
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell, LayerEntropy
from bitfront.trial import StudyState
from storage.records import OptionRecord, ProfileRecord
from storage.store import Store
from tests.support.store_samples import events, running


def layer(name: str, tower: Tower = Tower.VISION) -> Layer:
    return Layer(name, tower, LayerKind.LINEAR, 8, 16, 49, f"{name} input", str(tower))


LAYERS = (*(layer(name) for name in "zyxw"), layer("t", Tower.TEXT))
BLOCKS = (
    Block("front", Tower.VISION, ("z", "y")),
    Block("back", Tower.VISION, ("x",)),
    Block("words", Tower.TEXT, ("t",)),
)
ENTROPIES = (LayerEntropy("z", 0.5, 0.25), LayerEntropy("y", 0.1, None))
OPTION = Option((Precision(4, 8), Precision(3, 16, 32, 0.99)))


def key(name: str) -> CellKey:
    return CellKey("model", "data", "quantizer", name)


def cell(error: float = 0.5, block: str = "front") -> Cell:
    return Cell(block, OPTION, 2**40, 1.5e12, error)


def test_a_profile_comes_back_in_its_order(store: Store) -> None:
    lease = running(store)
    assert store.load_profile("digits") is None

    store.save_profile(lease, LAYERS, BLOCKS, ENTROPIES, fixed_nbytes=2**33)

    profile = ProfileRecord(LAYERS, BLOCKS, ENTROPIES, 2**33)
    assert store.load_profile("digits") == profile


def test_a_place_of_the_cache_is_a_block_of_its_own(store: Store) -> None:
    lease = running(store)
    blocks = (*BLOCKS, Block.of_place("z.self_attn:keys"))
    store.save_profile(lease, LAYERS, blocks, ENTROPIES, fixed_nbytes=1)
    held = Cell("z.self_attn:keys", Option((), KvFormat(3, 0.01)), 0, 0.0, 0.5, kv_nbytes=2**40)
    record = OptionRecord(held, survives=True, certificate={})

    store.save_options(lease, [record])

    profile = store.load_profile("digits")
    assert profile is not None
    assert profile.blocks == blocks
    assert store.options("digits") == [record]


def test_saving_a_profile_again_keeps_its_options(store: Store) -> None:
    lease = running(store)
    store.save_profile(lease, LAYERS, BLOCKS, ENTROPIES, fixed_nbytes=1)
    store.save_options(lease, [OptionRecord(cell(), survives=True, certificate={})])

    store.save_profile(lease, LAYERS, BLOCKS, ENTROPIES, fixed_nbytes=1)
    assert len(store.options("digits")) == 1
    store.save_profile(lease, LAYERS, BLOCKS[1:], ENTROPIES, fixed_nbytes=1)

    assert store.load_profile("digits") == ProfileRecord(LAYERS, BLOCKS[1:], ENTROPIES, 1)
    assert store.options("digits") == []


def test_a_cell_is_found_by_every_study_under_its_key(store: Store) -> None:
    first, second = running(store, "first"), running(store, "second")

    store.put_cells(first, [(key("a"), cell(0.5), 0.1), (key("b"), cell(0.0), 0.1)])

    assert store.cells([key("a"), key("b"), key("c")]) == {
        key("a").digest: cell(0.5),
        key("b").digest: cell(0.0),
    }
    assert store.status("first").cells == 2
    store.release(first, StudyState.COMPLETE)
    store.delete_study("first")
    store.put_cells(second, [(key("a"), cell(0.9), 0.1)])
    assert store.cells([key("a")]) == {key("a").digest: cell(0.5)}


def test_a_cell_keeps_its_latency_or_that_it_has_none(store: Store) -> None:
    lease = running(store)
    timed = replace(cell(), latency_s=1.25e-6)

    store.save_profile(lease, LAYERS, BLOCKS, ENTROPIES, fixed_nbytes=1)
    store.put_cells(lease, [(key("a"), timed, 0.1), (key("b"), cell(), 0.1)])
    store.save_options(lease, [OptionRecord(timed, survives=True, certificate={})])

    assert store.cells([key("a"), key("b")]) == {key("a").digest: timed, key("b").digest: cell()}
    assert [record.cell for record in store.options("digits")] == [timed]
    with pytest.raises(InvalidMetric):
        store.put_cells(lease, [(key("c"), replace(cell(), latency_s=math.inf), 0.1)])


def test_an_option_keeps_that_its_error_is_an_estimate(store: Store) -> None:
    lease = running(store)
    store.save_profile(lease, LAYERS, BLOCKS, ENTROPIES, fixed_nbytes=1)
    estimated = replace(cell(), is_estimate=True)
    told = OptionRecord(estimated, survives=True, certificate={"estimated_by": "gauss_newton"})

    store.save_options(lease, [told])

    assert store.options("digits") == [told]


def test_any_number_of_cells_is_looked_up_at_once(store: Store) -> None:
    lease = running(store)
    keys = [key(str(number)) for number in range(1203)]

    store.put_cells(lease, [(one, cell(n / 7), 0.0) for n, one in enumerate(keys)])

    found = store.cells(keys)
    assert [found[one.digest].error for one in keys] == [n / 7 for n in range(1203)]
    assert store.cells([]) == {}


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_cell_without_a_finite_error_is_refused_with_its_whole_batch(
    store: Store, error: float
) -> None:
    lease = running(store)

    with pytest.raises(InvalidMetric, match=r"error of front w4a8\+w3a16g32c0.99"):
        store.put_cells(lease, [(key("a"), cell(), 0.1), (key("b"), cell(error), 0.1)])

    assert store.cells([key("a"), key("b")]) == {}


def test_options_are_replaced_and_come_back_block_by_block(store: Store) -> None:
    lease = running(store)
    store.save_profile(lease, LAYERS, BLOCKS, (), fixed_nbytes=1)
    other = Option((Precision(2), Precision(2)))
    kept = OptionRecord(cell(block="back"), survives=True, certificate={"bound": 0.1})
    gone = OptionRecord(
        Cell("front", other, 5, 1.0, 3.0), survives=False, certificate={"budgets": [[1, 2.5]]}
    )
    store.save_options(lease, [kept])

    store.save_options(lease, [kept, gone])

    assert store.options("digits") == [gone, kept]
    assert events(store, "digits")[-1].content == {"survivors": 1, "removed": 1}
