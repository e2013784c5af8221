import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bitfront.layers import LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import input_levels
from bitfront.spec import QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import QuestionStream
from tests.support.llava_models import (
    BUILDS,
    DYNAMIC,
    END,
    STATIC,
    WORDS,
    Build,
    built,
    decode_plainly,
    every_layer,
    plain_logits,
    questions,
    ranges_of,
    without_image,
)


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("has_image", [True, False])
def test_each_answers_token_is_predicted_from_the_ones_before_it(
    build: Build, has_image: bool
) -> None:
    model = built(build)
    batch = questions(model, 3)
    batch = batch if has_image else without_image(model, batch)

    logits = model.answer_logits(batch)

    assert logits.shape == (3, 4, len(WORDS))
    for step in range(4):
        tokens = torch.cat([batch.prompts, batch.answers[:, :step]], dim=1)
        torch.testing.assert_close(logits[:, step], plain_logits(model, batch, tokens))


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("precision", [None, Precision(4, 8), Precision(8, 4)], ids=str)
@pytest.mark.parametrize("has_image", [True, False])
def test_greedy_decoding_is_that_of_a_plain_loop(
    build: Build, precision: Precision | None, has_image: bool
) -> None:
    model = built(build, seed=2)  # it writes no <image>, which the plain loop cannot read back
    batch = questions(model, 4)
    ranges = ranges_of(model, [batch])
    batch = batch if has_image else without_image(model, batch)
    if precision is not None:
        PlanSwitch(model, STATIC, ranges).to(every_layer(model, precision))

    written = model.generate(batch, 7)

    assert written == decode_plainly(model, batch, 7)


def test_decoding_ends_at_the_limit_or_at_the_end() -> None:
    model = built(Build())
    batch = questions(model, 6)
    parameter = model.module.get_parameter("lm_head.weight")
    base = parameter.data.clone()
    lengths = set()

    for scale in (1.0, 2.0, 4.0):  # the longer the row of the end, the likelier it is
        parameter.data = base.clone()
        parameter.data[END] *= scale
        for limit in (1, 2, 9):
            for tokens in model.generate(batch, limit):
                assert 1 <= len(tokens) <= limit
                assert END not in tokens[:-1]
                assert len(tokens) == limit or tokens[-1] == END
                assert model.has_ended(tokens) == (tokens[-1] == END)
                lengths.add(len(tokens))

    assert len(lengths) > 3


def test_text_after_the_end_does_not_count() -> None:
    model = built(Build())
    words = [WORDS.index(word) for word in ("a", "red", "bird")]

    assert model.decode([*words, END, *words]) == "a red bird"
    assert model.decode(words) == "a red bird"
    assert model.decode([END]) == model.decode([]) == ""
    assert [model.has_ended(t) for t in (words, [*words, END], [])] == [False, True, False]


def test_rows_are_picked_with_all_that_belongs_to_them() -> None:
    model = built(Build(kind="llava_next"))
    batch = questions(model, 4)
    logits = model.answer_logits(batch)

    some = batch.pick(torch.tensor([True, False, False, True]))

    assert len(some) == 2
    torch.testing.assert_close(model.answer_logits(some), logits[[0, 3]])
    assert batch.pixels is not None
    other = batch.without_pixels()
    assert other.pixels is not None
    assert torch.equal(other.pixels, torch.ones_like(batch.pixels))
    assert torch.equal(other.prompts, batch.prompts)


class Levels:
    """The distinct values of every layer's input, over all calls."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.widest: dict[str, int] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        known = self.values.get(name, torch.empty(0))
        self.values[name] = torch.unique(torch.cat([known, x.flatten()]))
        self.calls[name] = self.calls.get(name, 0) + 1
        tokens = x.flatten(1) if x.ndim == 4 else x.flatten(0, -2)
        widest = max(len(torch.unique(token)) for token in tokens)
        self.widest[name] = max(self.widest.get(name, 0), widest)


def multiplying(model: GenerativeModel) -> list[str]:
    return [layer.name for layer in model.layers if layer.kind is not LayerKind.EMBEDDING]


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("decodes", [False, True])
def test_every_input_is_quantized_whenever_a_plan_asks_for_it(
    build: Build, bits: int, decodes: bool
) -> None:
    model = built(build)
    batch = questions(model, 4)
    ranges = ranges_of(model, [batch])
    switch = PlanSwitch(model, STATIC, ranges)
    plain, rounded = Levels(), Levels()

    for plan, levels in ((Plan(()), plain), (every_layer(model, Precision(8, bits)), rounded)):
        switch.to(plan)
        with model.watch_inputs(levels), torch.no_grad():
            model.generate(batch, 5) if decodes else model.answer_logits(batch)

    names = multiplying(model)
    assert sorted(plain.values) == sorted(rounded.values) == sorted(names)
    for name in names:
        allowed = input_levels(ranges[name][1.0], bits)
        assert 2 < len(rounded.values[name]) <= 2**bits < len(plain.values[name])
        assert torch.isin(rounded.values[name], allowed).all()
    if decodes:
        steps = {tower: set[int]() for tower in Tower}
        for layer in model.layers:
            steps[layer.tower].add(rounded.calls.get(layer.name, 5))
        assert (steps[Tower.VISION], steps[Tower.LANGUAGE]) == ({1}, {5})


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_dynamic_ranges_give_every_token_few_values(build: Build) -> None:
    model = built(build)
    batch = questions(model, 4)
    PlanSwitch(model, DYNAMIC, {}).to(every_layer(model, Precision(8, 4)))
    levels = Levels()

    with model.watch_inputs(levels):
        model.generate(batch, 3)

    assert sorted(levels.widest) == sorted(multiplying(model))
    assert max(levels.widest.values()) <= 2**4
    assert min(levels.widest.values()) > 2


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_only_the_layers_of_a_plan_have_their_inputs_quantized(build: Build) -> None:
    model = built(build)
    batch = questions(model, 4)
    switch = PlanSwitch(model, STATIC, ranges_of(model, [batch]))

    for chosen in multiplying(model)[::5] + multiplying(model)[-1:]:
        levels = Levels()
        switch.to(Plan.of({chosen: Precision(16, 4)}))
        with model.watch_inputs(levels), torch.no_grad():
            model.answer_logits(batch)
        assert [n for n, x in levels.values.items() if len(x) <= 16] == [chosen]


def stream_of(model: GenerativeModel, batches: Sequence[QuestionBatch]) -> QuestionStream:
    shapes = [(len(batch), batch.answers.shape[1]) for batch in batches]
    return QuestionStream(model, "questions", shapes, lambda number: batches[number])


def plans(model: GenerativeModel, seed: int) -> list[Plan]:
    """Plans that change one tower after the other, the last layer (the tied one), and all."""
    rng = random.Random(seed)
    found = [every_layer(model, Precision(4, 8))]
    towers = [Tower.LANGUAGE, Tower.PROJECTOR, Tower.VISION]
    for tower in (*towers, Tower.LANGUAGE, None, Tower.VISION):
        layers = [layer.name for layer in model.layers if layer.tower is tower]
        for name in (*rng.sample(layers, min(2, len(layers))), model.layers[-1].name):
            changed = {name: Precision(rng.choice((2, 3, 6)), rng.choice((4, 8)))}
            found.append(Plan.of({**dict(rng.choice(found)), **changed}))
    return [*found, Plan(()), found[0], found[3]]


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("quantizer", [STATIC, DYNAMIC], ids=lambda q: q.activations)
def test_logits_are_the_same_to_the_last_bit_whatever_is_kept(
    build: Build, quantizer: QuantizerSpec
) -> None:
    model = built(build)
    batches = [
        questions(model, 3),
        questions(model, 2, width=48, answer="yes"),
        without_image(model, questions(model, 2)),
    ]
    switch = PlanSwitch(model, quantizer, ranges_of(model, batches))
    given = stream_of(model, batches)
    plain, keeping = StreamRunner(model, switch, 0), StreamRunner(model, switch)
    small = StreamRunner(model, switch, 30_000)

    for plan in plans(model, seed=1):
        logits = plain.run(given, plan)
        assert torch.equal(keeping.run(given, plan), logits)
        assert torch.equal(small.run(given, plan), logits)
        switch.to(plan)
        with torch.no_grad():
            parts = [model.answer_logits(batch).flatten(0, 1) for batch in batches]
        assert torch.equal(torch.cat(parts), logits)
    assert keeping.cache.hits > 3
    assert small.cache.nbytes <= 30_000


def test_a_change_after_the_vision_tower_does_not_run_it_again() -> None:
    model = built(Build(is_tied=True))
    given = stream_of(model, [questions(model, 3)])
    switch = PlanSwitch(model, DYNAMIC, {})
    runner = StreamRunner(model, switch)
    base = every_layer(model, Precision(4, 8))
    runner.run(given, base)
    seen: set[str] = set()

    with model.watch_inputs(lambda name, _: seen.add(name)):
        last = "model.language_model.layers.1.mlp.down_proj.weight"
        runner.run(given, Plan.of({**dict(base), last: Precision(2, 8)}))

    assert last in seen
    assert not any("encoder.layers" in name or "layers.0." in name for name in seen)


def test_a_change_of_the_tied_layer_runs_the_decoder_again_but_not_the_vision_tower() -> None:
    model = built(Build(is_tied=True))
    given = stream_of(model, [questions(model, 3)])
    runner = StreamRunner(model, PlanSwitch(model, DYNAMIC, {}))
    base = every_layer(model, Precision(4, 8))
    before = runner.run(given, base)
    seen: set[str] = set()

    with model.watch_inputs(lambda name, _: seen.add(name)):
        tied = model.layers[-1].name
        after = runner.run(given, Plan.of({**dict(base), tied: Precision(2, 8)}))

    assert not torch.equal(before, after)
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in seen
