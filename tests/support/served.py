"""A stored study to be served, and a client of the application that serves it, in this process."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from bitfront.attempt import Attempt, Evaluated
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.profile import Cell, LayerEntropy
from bitfront.samples import SampleResults
from bitfront.trial import Cause, Evaluation, Origin, Proposal, StudyState, Trial
from search.front import Front
from service.database_url import file_url
from service.http.app import make_app
from service.http.settings import Settings
from storage.artefacts import ArtefactRecord
from storage.records import Lease, OptionRecord
from storage.store import Store, open_store
from tests.support.store_samples import fail, running, trial

SAMPLES = 400
NAMES = ("visual.one", "visual.two", "text.three")
LAYERS = tuple(
    Layer(
        name,
        Tower.TEXT if name.startswith("text") else Tower.VISION,
        LayerKind.LINEAR,
        8,
        16,
        49,
        f"{name} input",
        name.partition(".")[0],
    )
    for name in NAMES
)
BLOCKS = (
    Block("visual.one..two", Tower.VISION, NAMES[:2]),
    Block("text.three", Tower.TEXT, NAMES[2:]),
)


def make_study(url: str, folder: Path) -> None:
    """Stores a study `digits` with trials, a profile, a failure and an artefact; nobody runs it."""
    with open_store(url) as store:
        lease = running(store)
        store.set_reference(lease, {"error": 1.0, "nbytes": 1001.0})
        entropies = [LayerEntropy(name, 0.5, None) for name in NAMES]
        store.save_profile(lease, LAYERS, BLOCKS, entropies, fixed_nbytes=10)
        options = [
            Option((Precision(bits),) * len(block.layers)) for block in BLOCKS for bits in (2, 4, 8)
        ]
        owners = [block.name for block in BLOCKS for _ in range(3)]
        store.save_options(
            lease,
            [
                OptionRecord(
                    Cell(owner, option, 10 * option.precisions[0].weight_bits, 1e6, 0.1 / n),
                    survives=n > 1,
                    certificate={},
                )
                for n, (owner, option) in enumerate(zip(owners, options, strict=True), start=1)
            ],
        )
        _add_trials(store, lease)
        store.set_state(lease, StudyState.RUNNING)
        store.release(lease, StudyState.COMPLETE, "4 trials are done")
        _add_artefact(store, folder)


def _add_trials(store: Store, lease: Lease) -> None:
    front = Front((1.0, 1001.0))
    rows = ((16, 30, 0, 0.0), (4, 33, 10, 0.01), (3, 50, 15, 0.05), (2, 90, 0, 0.3))
    for number, (bits, wrong, at, nats) in enumerate(rows):
        plan = Plan.uniform(NAMES, FULL if bits == 16 else Precision(bits))
        recovery = Recovery() if bits == 3 else None
        origin = Origin.SAMPLER if bits == 3 else Origin.BASELINE
        proposed = Trial.of("digits", number, Proposal(Configuration(plan, recovery), origin))
        store.start_trial(lease, proposed)
        right = np.ones(SAMPLES, dtype=bool)
        right[at : at + wrong] = False
        nats_each = nats * np.linspace(0.5, 1.5, SAMPLES)
        samples = SampleResults.of(right.tolist(), nats_each.tolist())
        values = {"error": wrong / SAMPLES, "nbytes": 60.0 * bits}
        metrics = {"divergence": nats, "bits_per_weight": float(bits), **samples.standard_errors}
        done = Evaluated(Evaluation(values, metrics, samples), seconds=1.0, worker="w")
        change = front.add(number, (values["error"], values["nbytes"]))
        assert store.finish_attempt(lease, Attempt(proposed, f"k{number}"), done, front=change)
    store.save_test_values(lease, {0: {"error": 0.05}})
    store.start_trial(lease, trial(9))
    said = "<b>no</b> memory"
    fail(store, lease, 9, 1, Cause.OUT_OF_MEMORY, said, "Traceback: <i>x</i>", retry=False)


def _add_artefact(store: Store, folder: Path) -> None:
    folder.mkdir()
    files = {"card.json": b"{}", "model.safetensors": bytes(1500)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    record = ArtefactRecord(
        trial=1,
        target="packed",
        path=str(folder),
        nbytes=1500,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        verification={"error": 0.08, "latency_s": {"1": 0.5}},
    )
    store.put_artefact("digits", record)


@contextmanager
def served(tmp_path: Path, token: str | None = None) -> Iterator[TestClient]:
    """A client of the application on a database with `make_study`'s study."""
    database = tmp_path / "studies.db"
    if not database.exists():
        make_study(file_url(database), tmp_path / "artefact")
    url = file_url(database)
    with open_store(url, create=False) as store:
        app = make_app(Settings(url, token), store)
        with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
            yield client
