"""Activation memory against closed forms, and against what PyTorch's profiler sees allocated."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.reference.digit_clip import build_clip, tokenize
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, LayeredModel, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from objectives.cost.activations import ActivationMemory, peak_nbytes, trace_lifetimes
from objectives.execution.streams import CaptionStream, ImageStream

FLOAT = 4


class Tiny(nn.Module):
    """A vision part that is given, and an embedding beside it."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.words = nn.Embedding(2, 2)


class Layers(LayeredModel):
    """A model without a recovery."""

    feature_width = adapter_rows = text_width = 0
    prompted_towers: frozenset[Tower] = frozenset()


class Residual(nn.Module):
    """Adds to its input what a layer makes of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        added: Tensor = hidden + self.second(hidden)
        return added


def layered(vision: nn.Module, width: int) -> LayeredModel:
    model = Tiny(vision)
    runs: dict[Tower, Callable[[], object]] = {
        Tower.VISION: lambda: vision(torch.zeros(1, width)),
        Tower.TEXT: lambda: model.words(torch.zeros(1, dtype=torch.long)),
    }
    return Layers(model, model.words, runs)


def peak(vision: nn.Module, samples: int, width: int, bits: dict[str, int]) -> int:
    model = layered(vision, width)
    with torch.no_grad(), trace_lifetimes(model) as lifetimes:
        vision(torch.zeros(samples, width))
    return peak_nbytes(lifetimes, {name: Precision(8, b) for name, b in bits.items()})


sizes = st.integers(1, 9)
QUICK = settings(max_examples=30)


@given(samples=sizes, width=sizes, hidden=sizes, out=sizes, bits=st.sampled_from([4, 6, 8, 16]))
@QUICK
def test_an_mlp_holds_two_neighbouring_tensors(
    samples: int, width: int, hidden: int, out: int, bits: int
) -> None:
    mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))

    found = peak(mlp, samples, width, {"vision.2.weight": bits})

    before, after = samples * hidden * FLOAT, samples * out * FLOAT
    codes = before if bits == 16 else -(-samples * hidden * bits // 8)
    assert found == max(before + codes, codes + after)


@given(samples=sizes, width=sizes, bits=st.sampled_from([4, 6, 8, 16]))
@QUICK
def test_what_a_residual_adds_to_stays_whole(samples: int, width: int, bits: int) -> None:
    found = peak(Residual(width), samples, width, {"vision.second.weight": bits})

    assert found == 3 * samples * width * FLOAT


def test_a_tensor_has_the_bits_of_its_widest_reader() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            stem: Tensor = self.stem(x)
            left: Tensor = self.left(stem.view(-1, 8))
            right: Tensor = self.right(stem)
            return left + right

    narrow = {"vision.left.weight": 4, "vision.right.weight": 4}
    wide = {"vision.left.weight": 4, "vision.right.weight": 8}

    assert peak(Fork(), 2, 8, narrow) == 16 * (4 + 4 + 4)  # both halves and their sum
    # At the right half: the stem, and the left half and its own.
    assert peak(Fork(), 2, 8, wide) == max(16 * (1 + 4 + 4), 16 * (4 + 4 + 4))


def test_a_change_in_place_needs_no_second_tensor() -> None:
    mlp = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))

    assert peak(mlp, 2, 3, {}) == 2 * (5 + 4) * FLOAT


@pytest.fixture(scope="module")
def clip() -> DualEncoder:
    return open_clip_encoder(build_clip(), preprocess=preprocess_picture, tokenize=tokenize)


def memory(model: DualEncoder, batch: int) -> ActivationMemory:
    images = ImageStream(
        model, "images", [1, batch], lambda n: torch.zeros((1, batch)[n], *model.image_shape)
    )
    captions = CaptionStream(model, [model.tokenize(["a picture of seven"] * batch)])
    return ActivationMemory(
        model, [images, captions], PlanSwitch(model, QuantizerSpec(activations="dynamic"), {})
    )


def uniform(model: DualEncoder, precision: Precision) -> Plan:
    return Plan.uniform([layer.name for layer in model.layers], precision)


def test_narrower_inputs_never_take_more_and_weights_change_nothing(clip: DualEncoder) -> None:
    measured = memory(clip, 4)

    peaks = [measured.peak_nbytes(uniform(clip, Precision(8, bits))) for bits in (16, 8, 6, 4)]

    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]
    assert measured.peak_nbytes(uniform(clip, Precision(2, 8))) == peaks[1]
    assert measured.peak_nbytes(Plan(())) == peaks[0]


def test_the_memory_is_the_same_in_every_run_and_grows_with_the_batch(clip: DualEncoder) -> None:
    plan = uniform(clip, Precision(4, 8))

    small, large = (memory(clip, batch).peak_nbytes(plan) for batch in (4, 8))

    assert memory(clip, 4).peak_nbytes(plan) == small
    assert large == pytest.approx(2 * small, rel=0.01)


def test_the_model_has_the_plan_after_it_was_measured(clip: DualEncoder) -> None:
    switch = PlanSwitch(clip, QuantizerSpec(activations="dynamic"), {})
    captions = CaptionStream(clip, [clip.tokenize(["a picture of seven"])])
    plan = uniform(clip, Precision(4, 8))

    ActivationMemory(clip, [captions], switch).peak_nbytes(plan)

    assert switch.to(plan) == 0


def test_eager_execution_takes_at_least_the_peak(clip: DualEncoder) -> None:
    """Python keeps tensors a little longer than until their last reader."""
    pixels = torch.zeros(16, *clip.image_shape)
    PlanSwitch(clip, QuantizerSpec(), {}).clear()
    with torch.no_grad(), trace_lifetimes(clip) as lifetimes:
        clip.encode_images(pixels)

    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        clip.encode_images(pixels)

    live = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    assert 0.5 * most <= peak_nbytes(lifetimes, {}) <= most
