"""A study with a trial in every state, for the tests of what is exported."""

from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Recovery
from bitfront.profile import Cell
from bitfront.trial import Cause, Origin, Trial
from storage.records import Lease, OptionRecord
from storage.store import Store
from tests.support.store_samples import (
    complete,
    configuration,
    fail,
    finished,
    job,
    prune,
    show,
    trial,
)

LAYERS = tuple(
    Layer(f"layer{n}", Tower.VISION, LayerKind.LINEAR, 4, 4, 1, f"layer{n}", "all")
    for n in range(4)
)
BLOCKS = (
    Block("vision.0", Tower.VISION, ("layer0", "layer1")),
    Block("vision.1", Tower.VISION, ("layer2",)),
)
SPACE = {"recovery": {"context_length": [0, 4, 8], "reduction": [0, 4], "blend": [0.2, 0.5]}}


def started(store: Store) -> Lease:
    """A study with blocks, their measured options, and a recovery."""
    store.create_study(job(space=SPACE), {})
    lease = store.acquire("digits", "me", 60)
    store.save_profile(lease, LAYERS, BLOCKS, [], fixed_nbytes=10)
    sizes = {"w8a16": 8, "w2a16": 2, "w3a16": 3}
    pairs = {f"{one}+{other}": sizes[one] + sizes[other] for one in sizes for other in sizes}
    store.save_options(
        lease,
        [
            OptionRecord(
                Cell(block, Option.parse(text), nbytes, 1.0, 0.1), survives=True, certificate={}
            )
            for block, options in (("vision.0", pairs), ("vision.1", sizes))
            for text, nbytes in options.items()
        ],
    )
    return lease


def searched(store: Store) -> Lease:
    """A study with a trial in every state."""
    lease = started(store)
    finished(store, lease, 0, error=0.25, nbytes=100)
    recovering = Configuration(configuration(1).plan, Recovery(context_length=4, reduction=0))
    store.start_trial(lease, Trial(lease.name, 1, recovering, Origin.PROGRAM, {}))
    values = {"error": 0.125, "nbytes": 200.0}
    constraints = {"max_nbytes": 0.5}
    complete(store, lease, 1, values, metrics={"bits_per_weight": 3.5}, constraints=constraints)
    for number in range(2, 6):
        store.start_trial(lease, trial(number))
    fail(store, lease, 2, 1, Cause.NODE_LOST, "gone", retry=True)
    fail(store, lease, 2, 2, Cause.USER_ERROR, "bad batch", "Traceback", retry=False)
    show(store, lease, 3, 1, 0, 0.5)
    show(store, lease, 3, 1, 25, 0.375)
    prune(store, lease, 3, 1, seconds=2.0)
    store.save_test_values(lease, {0: {"error": 0.26}})
    return lease
