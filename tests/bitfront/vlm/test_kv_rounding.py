"""Keys and values that pass through codes, on the bundled LLaVA."""

import pytest
import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor
from torch.nn import functional

from bitfront.errors import SpecError
from bitfront.quant.kv_cache import KvFormat
from bitfront.spec import DataSpec, ModelSpec
from bitfront.vlm import GenerativeModel, QuestionBatch, load_model
from bitfront.vlm.kv_rounding import Kept, KvSettings, fit_cache, show_cache, touched_cache
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
def batches(model: GenerativeModel) -> list[QuestionBatch]:
    samples = {"calibration": 16, "tuning": 1, "selection": 1, "test": 1}
    data = DataSpec.model_validate({"source": "reference", "samples": samples})
    split = load_questions(data, model).split(SplitName.CALIBRATION)
    return [split.read(number) for number in range(len(split.batches))]


def losses(model: GenerativeModel, batches: list[QuestionBatch]) -> list:  # type: ignore[type-arg]
    def of(batch: QuestionBatch) -> Tensor:
        logits = model.answer_logits(batch).flatten(0, 1)
        return functional.cross_entropy(logits, batch.answers.flatten())

    return [lambda batch=batch: of(batch) for batch in batches]


def logits_under(
    model: GenerativeModel, batches: list[QuestionBatch], settings: KvSettings
) -> Tensor:
    shown = show_cache(model, losses(model, batches), is_rotated=settings.is_rotated)
    rounding = fit_cache(shown, settings)
    with rounding.on(model), torch.no_grad():
        return torch.cat([model.answer_logits(batch).flatten() for batch in batches])


def full_logits(model: GenerativeModel, batches: list[QuestionBatch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.answer_logits(batch).flatten() for batch in batches])


@pytest.mark.parametrize("is_rotated", [False, True])
def test_sixteen_bits_change_nothing_and_fewer_change_more(
    model: GenerativeModel, batches: list[QuestionBatch], *, is_rotated: bool
) -> None:
    full = full_logits(model, batches)

    assert torch.equal(logits_under(model, batches, KvSettings(FULL, FULL, is_rotated)), full)
    changes = [
        float(
            (logits_under(model, batches, KvSettings(form, form, is_rotated)) - full).square().sum()
        )
        for form in map(KvFormat, (2, 4, 8))
    ]
    assert changes[0] > changes[1] > changes[2] > 0
    assert torch.equal(full_logits(model, batches), full)


def test_keys_after_the_rotary_embedding_are_those_before_it_turned(
    model: GenerativeModel, batches: list[QuestionBatch]
) -> None:
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    turns: list[tuple[Tensor, Tensor]] = []
    rotate = llama.apply_rotary_pos_emb

    def record(is_rotated: bool):  # type: ignore[no-untyped-def]
        def touch(_name: str, kept: Kept, given: Tensor) -> Tensor:
            if kept is Kept.KEYS:
                seen[is_rotated].append(given)
            return given

        return touch

    embedding = next(m for n, m in model.module.named_modules() if n.endswith("rotary_emb"))
    hook = embedding.register_forward_hook(lambda _m, _args, output: turns.append(output))
    with torch.no_grad():
        for is_rotated in (False, True):
            with touched_cache(model, record(is_rotated), is_rotated=is_rotated):
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
    model: GenerativeModel, batches: list[QuestionBatch], outliers: float, *, is_rotated: bool
) -> None:
    form = KvFormat(3, outliers, is_uniform=False)
    shown = show_cache(model, losses(model, batches), is_rotated=is_rotated)
    rounding = fit_cache(shown, KvSettings(form, form, is_rotated))
    batch = batches[0].pick(slice(4))

    with rounding.on(model), torch.no_grad():
        written = model.generate(batch, 3)
        for row, tokens in enumerate(written):
            one = batch.pick(slice(row, row + 1))
            taught = QuestionBatch(one.prompts, torch.tensor([tokens]), one.pixels, one.sizes)
            assert model.answer_logits(taught).argmax(dim=-1).tolist() == [tokens]


def test_levels_of_k_means_and_outliers_apart_lose_less(
    model: GenerativeModel, batches: list[QuestionBatch]
) -> None:
    full = full_logits(model, batches)

    def change(form: KvFormat) -> float:
        return float((logits_under(model, batches, KvSettings(form, form)) - full).square().sum())

    assert change(KvFormat(3, 0.1, is_uniform=False)) < change(KvFormat(3))


def test_all_is_as_before_where_a_run_fails(
    model: GenerativeModel, batches: list[QuestionBatch]
) -> None:
    full, rotate = full_logits(model, batches), llama.apply_rotary_pos_emb

    def fail(*_: object) -> Tensor:
        raise SpecError("it fails")

    for is_rotated in (False, True):
        with (
            pytest.raises(SpecError, match="it fails"),
            touched_cache(model, fail, is_rotated=is_rotated),
        ):
            model.answer_logits(batches[0])
    assert llama.apply_rotary_pos_emb is rotate
    assert torch.equal(full_logits(model, batches), full)
