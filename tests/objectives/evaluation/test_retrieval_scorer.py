"""Retrieval, against CLIP_benchmark's own function and against the definition by loops."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitfront.errors import SpecError
from bitfront.layers import Block
from bitfront.objective import Objective
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec, ModelSpec
from bitfront.vlm import DualEncoder, load_model
from objectives.data.retrieval import RetrievalTask, load_retrieval
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.registry import load_family
from objectives.evaluation.families.retrieval import RetrievalFamily
from objectives.evaluation.retrieval_scorer import misses, shares
from objectives.execution.similarity import divergence_nats
from objectives.profiling.calibration import calibrate
from objectives.profiling.cells import CellMeter
from tests.support.scene_models import scene_spec, untrained_encoder

SPLIT = SplitName.SELECTION
BENCHMARK = Path(__file__).parents[2] / "support" / "clip_benchmark_zeroshot_retrieval.txt"


@pytest.fixture(scope="module")
def benchmark() -> Callable[..., dict[str, float]]:
    """`evaluate` of clip_benchmark 1.6.2's `metrics/zeroshot_retrieval.py`, as it is there."""
    found: Callable[..., dict[str, float]] = runpy.run_path(str(BENCHMARK))["evaluate"]
    return found


def job(**data: object) -> JobSpec:
    samples = {"calibration": 12, "tuning": 4, "selection": 40, "test": 10}
    known = {"source": "reference", "task": "retrieval", "samples": samples, "batch_size": 16}
    return scene_spec(data={**known, **data})


def evaluator(**data: object) -> Evaluator:
    spec = job(**data)
    family = RetrievalFamily(load_retrieval(spec.data, untrained_encoder()))
    return Evaluator(spec, family, calibrate(family.task, (1.0,)))


@pytest.fixture(scope="module")
def loaded() -> Evaluator:
    return evaluator()


@pytest.fixture(scope="module")
def plan(loaded: Evaluator) -> Plan:
    return Plan.uniform([layer.name for layer in loaded.model.layers], Precision(3, 8))


class Clip:
    """A model as CLIP_benchmark calls it, with features that are known."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, texts

    def encode_image(self, places: Tensor) -> Tensor:
        return self.images[places]

    def encode_text(self, places: Tensor) -> Tensor:
        return self.texts[places]


def their_recalls(
    benchmark: Callable[..., dict[str, float]], images: Tensor, texts: Tensor, counts: list[int]
) -> dict[str, float]:
    starts = np.cumsum([0, *counts])

    def batches() -> Iterator[tuple[Tensor, list[list[int]]]]:
        for start in range(0, len(images), 7):
            places = range(start, min(start + 7, len(images)))
            own = [list(range(starts[place], starts[place + 1])) for place in places]
            yield torch.tensor(list(places)), own

    model = Clip(images, texts)
    return benchmark(model, batches(), torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])


@pytest.mark.parametrize("seed", range(8))
def test_recall_is_that_of_clip_benchmark_to_the_last_digit(
    benchmark: Callable[..., dict[str, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, 60).tolist()
    owners = torch.arange(60).repeat_interleave(torch.tensor(counts))
    images = torch.from_numpy(rng.standard_normal((60, 8)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal((len(owners), 8)).astype(np.float32))
    texts = images[owners] + 1.3 * noise
    unit = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)

    theirs = their_recalls(benchmark, images, texts, counts)

    for depth in (1, 5, 10):
        without_text, without_image = misses(*unit, owners, depth)
        assert float((~without_image).float().mean()) == theirs[f"image_retrieval_recall@{depth}"]
        assert float((~without_text).float().mean()) == theirs[f"text_retrieval_recall@{depth}"]
    assert 0 < theirs["image_retrieval_recall@1"] < theirs["image_retrieval_recall@10"] < 1


def test_a_model_is_scored_as_clip_benchmark_scores_it(
    benchmark: Callable[..., dict[str, float]],
) -> None:
    """The bundled model with its trained weights, through both from pixels and captions on."""
    spec = job()
    model = load_model(ModelSpec.model_validate({"source": "reference", "device": "cpu"}))
    assert isinstance(model, DualEncoder)
    family = load_family(spec.data, model)
    task = family.task
    assert isinstance(task, RetrievalTask)
    split = task.split(SPLIT)
    pixels, size = split.read(0, len(split)), spec.data.batch_size
    batches = [
        (pixels[start : start + size], list(split.captions[start : start + size]))
        for start in range(0, len(split), size)
    ]
    theirs = benchmark(
        _Model(model), batches, model.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )

    ours = Evaluator(spec, family, calibrate(task, (1.0,))).evaluate(Configuration(Plan(())), SPLIT)

    for name, value in theirs.items():
        assert ours.metrics[name.replace("@", "_at_")] == value
    both = theirs["image_retrieval_recall@1"], theirs["text_retrieval_recall@1"]
    assert ours.values["error"] == pytest.approx(1 - sum(both) / 2, abs=1e-7)
    assert ours.values["error"] < 0.5


class _Model:
    def __init__(self, model: DualEncoder) -> None:
        self.encode_image, self.encode_text = model.encode_images, model.encode_texts


def by_hand(task: RetrievalTask, images: Tensor, texts: Tensor, depth: int) -> np.ndarray:
    """Each image's share in the error, by loops over the queries."""
    owners = task.split(SPLIT).owners.tolist()
    scores = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    found = np.zeros(len(images))
    for image, row in enumerate(scores):
        near = row.argsort(descending=True)[:depth].tolist()
        found[image] += all(owners[place] != image for place in near) / len(images) / 2
    for text, row in enumerate(scores.T):
        near = row.argsort(descending=True)[:depth].tolist()
        found[owners[text]] += (owners[text] not in near) / len(texts) / 2
    return found * len(images)


@pytest.mark.parametrize("measure", ["recall_at_1", "recall_at_5", "recall_at_10"])
def test_the_error_and_its_samples_are_those_of_the_definition(measure: str, plan: Plan) -> None:
    loaded = evaluator(measure=measure)
    task = loaded.task
    assert isinstance(task, RetrievalTask)

    found = loaded.evaluate(Configuration(plan), SPLIT)

    loaded.switch.to(plan)
    with torch.no_grad():
        split = task.split(SPLIT)
        images = task.model.encode_images(split.read(0, len(split)))
        texts = task.model.encode_texts(split.tokens)
    wanted = by_hand(task, images, texts, int(measure.rpartition("_")[2]))
    assert found.samples is not None
    assert found.samples.errors == pytest.approx(wanted, abs=1e-6)
    assert found.values["error"] == pytest.approx(wanted.mean())
    assert found.metrics["error_se"] == pytest.approx(wanted.std() / 40**0.5, rel=1e-5)


def test_the_divergence_is_over_the_candidates_of_both_directions(
    loaded: Evaluator, plan: Plan
) -> None:
    task = loaded.task
    assert isinstance(task, RetrievalTask)

    found = loaded.evaluate(Configuration(plan), SPLIT)

    def scores(of: Plan) -> Tensor:
        loaded.switch.to(of)
        split = task.split(SPLIT)
        with torch.no_grad():
            images = functional.normalize(
                task.model.encode_images(split.read(0, len(split))), dim=-1
            )
            texts = functional.normalize(task.model.encode_texts(split.tokens), dim=-1)
        return task.model.logit_scale * images @ texts.T

    full, changed = scores(Plan(())), scores(plan)
    wanted = (divergence_nats(full, changed) + divergence_nats(full.T, changed.T)) / 2
    assert found.metrics["divergence"] == pytest.approx(wanted, rel=1e-4)
    own = functional.cross_entropy(changed.T.double(), task.split(SPLIT).owners)
    images = torch.stack(
        [
            changed[image].double().log_softmax(-1)[task.split(SPLIT).owners == image].logsumexp(-1)
            for image in range(len(changed))
        ]
    )
    assert found.metrics["loss_nats"] == pytest.approx(float(own - images.mean()) / 2, rel=1e-4)


def test_cells_are_measured_by_the_divergence_of_both_directions(loaded: Evaluator) -> None:
    task = loaded.task
    assert isinstance(task, RetrievalTask)
    layer = loaded.model.layers[0]
    block, option = Block("b", layer.tower, (layer.name,)), Option((Precision(2, 16),))
    meter = CellMeter(task, loaded.cell_switch, loaded.spec)

    cell = meter.measure(block, option)

    def scores(of: Plan) -> Tensor:
        loaded.switch.to(of)
        split = task.split(SplitName.CALIBRATION)
        with torch.no_grad():
            images = functional.normalize(
                task.model.encode_images(split.read(0, len(split))), dim=-1
            )
            texts = functional.normalize(task.model.encode_texts(split.tokens), dim=-1)
        return task.model.logit_scale * images @ texts.T

    full, changed = scores(Plan(())), scores(Plan.from_options([(block, option)]))
    rows = len(full), len(full.T)
    parts = divergence_nats(full, changed), divergence_nats(full.T, changed.T)
    wanted = np.average(parts, weights=rows)
    assert cell.error == pytest.approx(wanted, rel=1e-3)


def test_shares_have_the_mean_of_both_directions() -> None:
    images, captions = torch.tensor([True, False]), torch.tensor([True, True, False, False, False])
    owners = torch.tensor([0, 0, 1, 1, 1])

    found = shares(images, captions, owners)

    assert found.tolist() == pytest.approx([(1 + 2 * 2 / 5) / 2, 0])
    assert float(found.mean()) == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_a_recovery_is_refused(loaded: Evaluator) -> None:
    recovery = Recovery(reduction=2)

    for call in (
        lambda: loaded.evaluate(Configuration(Plan(()), recovery)),
        lambda: loaded.scorer.begin(Configuration(Plan(()), recovery)),
        lambda: loaded.scorer.keep(Configuration(Plan(()), recovery), {}),
        lambda: loaded.scorer.stored(Configuration(Plan(()), recovery)),
    ):
        with pytest.raises(SpecError, match=r"P4Q is trained .* and retrieval has neither"):
            call()


def test_pictures_are_not_classified(loaded: Evaluator) -> None:
    with pytest.raises(SpecError, match="the study is of retrieval, and has no classes"):
        loaded.scorer.classify(Configuration(Plan(())), [], 3)


def test_fewer_candidates_than_are_looked_at_are_all_found(loaded: Evaluator) -> None:
    found = loaded.evaluate(Configuration(Plan(())), SplitName.TEST).metrics

    assert found["image_retrieval_recall_at_10"] == 1.0
    assert found["image_retrieval_recall_at_1"] < 1.0


def test_an_image_is_timed_and_what_is_counted_is_there() -> None:
    spec = job().model_copy(update={"objectives": (Objective.ERROR, Objective.LATENCY_S)})
    family = RetrievalFamily(load_retrieval(spec.data, untrained_encoder()))
    found = Evaluator(spec, family, calibrate(family.task, (1.0,))).evaluate(
        Configuration(Plan(()))
    )

    assert found.values["latency_s"] > 0
    assert found.metrics["nbytes"] > 0
