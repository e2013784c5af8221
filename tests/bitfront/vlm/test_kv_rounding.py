"""Keys and values that pass through codes, on the bundled LLaVA."""

from collections.abc import Callable, Iterable

import pytest
import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor, nn
from torch.nn import functional

from bitfront.errors import SpecError
from bitfront.kv_cache import Kept, KvFormat, KvPlace
from bitfront.spec import DataSpec, ModelSpec
from bitfront.vlm import GenerativeModel, LayeredModel, QuestionBatch, load_model
from bitfront.vlm.kv_rounding import (
    FittedPlace,
    ShownPlace,
    cache_places,
    fit_place,
    rounded_cache,
    show_cache,
    touched_cache,
)
from objectives.data.questions import load_questions
from objectives.data.split_name import SplitName

FULL = KvFormat(16)


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    spec = {"source": "reference", "name": "digit-llava", "device": "cpu"}
    found = load_model(ModelSpec.model_validate(spec))
    assert isinstance(found, GenerativeModel)
    return found


@pytest.fixture(scope="module")
def places(model: GenerativeModel) -> dict[str, KvPlace]:
    return {place.name: place for place in cache_places(model)}


@pytest.fixture(scope="module")
def batches(model: GenerativeModel) -> list[QuestionBatch]:
    samples = {"calibration": 16, "tuning": 1, "selection": 1, "test": 1}
    data = DataSpec.model_validate({"source": "reference", "samples": samples})
    split = load_questions(data, model).split(SplitName.CALIBRATION)
    return [split.read(number) for number in range(len(split.batches))]


def backward(model: GenerativeModel, batches: list[QuestionBatch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            with torch.enable_grad():
                logits = model.answer_logits(batch).flatten(0, 1)
                functional.cross_entropy(logits, batch.answers.flatten()).backward()  # type: ignore[no-untyped-call]

    return run


def fitted(
    model: GenerativeModel,
    batches: list[QuestionBatch],
    form: KvFormat,
    places: Iterable[KvPlace],
) -> dict[str, FittedPlace]:
    """The same bits for all places; values know no rotary embedding."""
    by_name = {place.name: place for place in places}
    rotated = {n for n, x in by_name.items() if form.is_rotated and x.kept is Kept.KEYS}
    plain = KvFormat(form.bits, form.outliers, form.is_uniform)
    shown = show_cache(model.module, backward(model, batches), by_name, rotated)
    return {
        name: fit_place(by_name[name].kept, form if name in rotated else plain, own)
        for name, own in shown.items()
    }


def logits_under(
    model: GenerativeModel, batches: list[QuestionBatch], cache: dict[str, FittedPlace]
) -> Tensor:
    with rounded_cache(model.module, cache), torch.no_grad():
        return torch.cat([model.answer_logits(batch).flatten() for batch in batches])


def test_every_decoder_layer_keeps_keys_and_values(
    model: GenerativeModel, places: dict[str, KvPlace]
) -> None:
    layers = {layer.name: layer for layer in model.layers}

    assert len(places) == 8
    for number in range(4):
        attention = f"model.language_model.layers.{number}.self_attn"
        assert places[f"{attention}:keys"].channels == layers[f"{attention}.k_proj.weight"].rows
        assert places[f"{attention}:values"].channels == layers[f"{attention}.v_proj.weight"].rows


def test_a_model_that_answers_nothing_has_no_cache() -> None:
    clip = load_model(ModelSpec.model_validate({"source": "reference", "device": "cpu"}))

    with pytest.raises(SpecError, match="only a model that answers questions keeps keys"):
        cache_places(clip)


def test_a_decoder_without_projections_of_its_own_is_refused(
    model: GenerativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tuple(
        x for x in model.layers if not x.name.endswith("layers.2.self_attn.v_proj.weight")
    )
    monkeypatch.setattr(model, "layers", layers)

    with pytest.raises(SpecError, match="no attention with layers k_proj and v_proj"):
        cache_places(model)


@pytest.mark.parametrize("is_rotated", [False, True])
def test_sixteen_bits_change_nothing_and_fewer_change_more(
    model: GenerativeModel,
    batches: list[QuestionBatch],
    places: dict[str, KvPlace],
    *,
    is_rotated: bool,
) -> None:
    full = logits_under(model, batches, {})

    def under(bits: int) -> Tensor:
        form = KvFormat(bits, is_rotated=is_rotated)
        return logits_under(model, batches, fitted(model, batches, form, places.values()))

    assert torch.equal(under(16), full)
    changes = [float((under(bits) - full).square().sum()) for bits in (2, 4, 8)]
    assert changes[0] > changes[1] > changes[2] > 0
    assert torch.equal(logits_under(model, batches, {}), full)


def test_keys_after_the_rotary_embedding_are_those_before_it_turned(
    model: GenerativeModel, batches: list[QuestionBatch], places: dict[str, KvPlace]
) -> None:
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    turns: list[tuple[Tensor, Tensor]] = []
    rotate = llama.apply_rotary_pos_emb
    keys = [name for name, place in places.items() if place.kept is Kept.KEYS]

    def record(is_rotated: bool) -> Callable[[Tensor], Tensor]:
        def touch(given: Tensor) -> Tensor:
            seen[is_rotated].append(given)
            return given

        return touch

    embedding = next(m for n, m in model.module.named_modules() if n.endswith("rotary_emb"))
    hook = embedding.register_forward_hook(lambda _m, _args, output: turns.append(output))
    with torch.no_grad():
        for is_rotated in (False, True):
            touches = dict.fromkeys(keys, record(is_rotated))
            with touched_cache(model.module, touches, keys if is_rotated else ()):
                model.answer_logits(batches[0])
    hook.remove()

    assert len(seen[False]) == len(seen[True]) == 4
    cos, sin = turns[0]
    for before, after in zip(seen[False], seen[True], strict=True):
        heads = before.view(*before.shape[:2], -1, cos.shape[-1]).transpose(1, 2)
        _, turned = rotate(heads, heads, cos, sin)
        torch.testing.assert_close(after, turned.transpose(1, 2).flatten(2))
    assert llama.apply_rotary_pos_emb is rotate


@pytest.mark.parametrize("is_rotated", [False, True])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_what_is_written_token_by_token_is_what_a_whole_row_predicts(
    model: GenerativeModel,
    batches: list[QuestionBatch],
    places: dict[str, KvPlace],
    outliers: float,
    *,
    is_rotated: bool,
) -> None:
    form = KvFormat(3, outliers, is_uniform=False, is_rotated=is_rotated)
    cache = fitted(model, batches, form, places.values())
    batch = batches[0].pick(slice(4))

    with rounded_cache(model.module, cache), torch.no_grad():
        written = model.generate(batch, 3)
        for row, tokens in enumerate(written):
            one = batch.pick(slice(row, row + 1))
            taught = QuestionBatch(one.prompts, torch.tensor([tokens]), one.pixels, one.sizes)
            assert model.answer_logits(taught).argmax(dim=-1).tolist() == [tokens]


def test_levels_of_k_means_and_outliers_apart_lose_less(
    model: GenerativeModel, batches: list[QuestionBatch], places: dict[str, KvPlace]
) -> None:
    full = logits_under(model, batches, {})

    def change(form: KvFormat) -> float:
        cache = fitted(model, batches, form, places.values())
        return float((logits_under(model, batches, cache) - full).square().sum())

    assert change(KvFormat(3, 0.1, is_uniform=False)) < change(KvFormat(3))


@pytest.mark.parametrize("is_rotated", [False, True])
def test_one_place_alone_is_rounded(
    model: GenerativeModel,
    batches: list[QuestionBatch],
    places: dict[str, KvPlace],
    *,
    is_rotated: bool,
) -> None:
    name = next(n for n in places if n.endswith("layers.1.self_attn:keys"))
    form = KvFormat(2, is_rotated=is_rotated)
    cache = fitted(model, batches, form, [places[name]])
    others = [n for n in places if n != name]

    def seen() -> dict[str, ShownPlace]:
        with torch.no_grad():
            run = lambda: [model.answer_logits(batch) for batch in batches]  # noqa: E731
            return show_cache(model.module, run, others)  # type: ignore[arg-type]

    before = seen()
    with rounded_cache(model.module, cache):
        after = seen()

    for other in others:
        is_later = "layers.2" in other or "layers.3" in other
        assert torch.equal(before[other].tokens, after[other].tokens) is not is_later


def test_gradients_pass_as_if_nothing_were_rounded(
    model: GenerativeModel, batches: list[QuestionBatch], places: dict[str, KvPlace]
) -> None:
    cache = fitted(model, batches, KvFormat(4), places.values())
    keys, values = (next(x for n, x in cache.items() if n.endswith(f":{k}")) for k in Kept)
    given = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()

    for place in (keys, values):
        read = place(given)
        with torch.no_grad():
            assert torch.equal(read, place(given))
        (gradient,) = torch.autograd.grad(read.square().sum(), given)
        assert torch.equal(gradient, 2 * read)


def test_samples_that_run_several_times_count_once(
    model: GenerativeModel, batches: list[QuestionBatch], places: dict[str, KvPlace]
) -> None:
    run = backward(model, batches)

    def thrice() -> None:
        for _ in range(3):
            run()

    once = show_cache(model.module, run, places)
    several = show_cache(model.module, thrice, places, repeats=3)

    for name in places:
        assert torch.equal(once[name].tokens, several[name].tokens)
        torch.testing.assert_close(once[name].weights, several[name].weights)
        assert float(once[name].weights.sum()) > 0


class Twice:
    """Two models of one file, each with keys that are touched after the rotary embedding."""

    def __init__(self, one: LayeredModel, other: nn.Module, place: str) -> None:
        self.calls: list[str] = []

        def touch(name: str) -> Callable[[Tensor], Tensor]:
            def called(given: Tensor) -> Tensor:
                self.calls.append(name)
                return given

            return called

        self.first = touched_cache(one.module, {place: touch("first")}, [place])
        self.second = touched_cache(other, {place: touch("second")}, [place])


def test_two_models_of_one_file_are_told_apart_and_taken_off_in_any_order(
    model: GenerativeModel, batches: list[QuestionBatch], places: dict[str, KvPlace]
) -> None:
    spec = {"source": "reference", "name": "digit-llava", "device": "cpu"}
    other = load_model(ModelSpec.model_validate(spec))
    assert isinstance(other, GenerativeModel)
    rotate = llama.apply_rotary_pos_emb
    both = Twice(model, other.module, next(name for name in places if name.endswith(":keys")))

    both.first.__enter__()
    both.second.__enter__()
    with torch.no_grad():
        other.answer_logits(batches[0])
        both.first.__exit__(None, None, None)
        model.answer_logits(batches[0])
        other.answer_logits(batches[0])
    both.second.__exit__(None, None, None)

    assert both.calls == ["second", "second"]
    assert llama.apply_rotary_pos_emb is rotate


@pytest.mark.parametrize("is_rotated", [False, True])
def test_all_is_as_before_where_a_run_fails(
    model: GenerativeModel,
    batches: list[QuestionBatch],
    places: dict[str, KvPlace],
    *,
    is_rotated: bool,
) -> None:
    full, rotate = logits_under(model, batches, {}), llama.apply_rotary_pos_emb
    keys = [name for name in places if name.endswith(":keys")]

    def fail(_: Tensor) -> Tensor:
        raise SpecError("it fails")

    with (
        pytest.raises(SpecError, match="it fails"),
        touched_cache(model.module, dict.fromkeys(keys, fail), keys if is_rotated else ()),
    ):
        model.answer_logits(batches[0])
    assert llama.apply_rotary_pos_emb is rotate
    assert torch.equal(logits_under(model, batches, {}), full)
