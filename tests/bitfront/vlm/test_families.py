"""Every known family, as a small model with random weights that its library saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from bitfront.layers import LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.spec import ModelSource, QuantizerSpec
from bitfront.vlm import (
    DualEncoder,
    GenerativeModel,
    LayeredModel,
    PlanSwitch,
    QuestionBatch,
    load_model,
)
from bitfront.vlm.models.layered import LeftReason
from tests.support.families import SMALL_MODELS, SmallModel
from tests.support.llava_models import photo

DYNAMIC = QuantizerSpec(scale_search=False, activations="dynamic")
CAPTIONS = ("a photo of two dogs", "one photo")
QUESTION = "USER: <image>\nwhat is there? ASSISTANT:"

# What is looked up or added, by the end of a parameter's name, and what routes tokens to experts.
NOT_MULTIPLIED = (
    *("positional_embedding", "position_embedding.weight", "position_embeddings.weight"),
    *("position_embeddings", "pos_embed", "pos_embed.weight", "attn_pool.query", "mlp.gate.weight"),
    *("token_type_embeddings.weight", "probe", "latent"),
)
# Parts that a family has for other uses.
LEFT = {
    "open_clip CoCa": ("text_decoder.", LeftReason.NOT_REACHED),
    "LLaVA-OneVision": ("model.vision_tower.head.", LeftReason.WITHOUT_EFFECT),
}


class Case:
    """A family's model, loaded as a job would, and what it gives of some samples."""

    def __init__(self, small: SmallModel, folder: Path) -> None:
        self.small, self.folder = small, folder
        small.save(folder)
        self.model: LayeredModel = load_model(small.spec(folder))
        self.give: Callable[[], tuple[Tensor, ...]] = self._features
        if isinstance(self.model, GenerativeModel):
            self.batch = questions(self.model)
            self.give = self._logits

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, ...]:
        assert isinstance(self.model, DualEncoder)
        pixels = torch.stack([self.model.preprocess(photo(seed, 40, 30)) for seed in range(2)])
        texts = self.model.tokenize(list(CAPTIONS))
        return self.model.encode_images(pixels), self.model.encode_texts(texts)

    @torch.no_grad()
    def _logits(self) -> tuple[Tensor, ...]:
        assert isinstance(self.model, GenerativeModel)
        return (self.model.answer_logits(self.batch),)


def questions(model: GenerativeModel) -> QuestionBatch:
    prompts = [model.prepare(QUESTION, photo(seed, 40, 30)) for seed in range(2)]
    answers = model.encode_answer("a red cat")[None].expand(2, -1)
    return QuestionBatch.of(prompts, answers)


@pytest.fixture(scope="module", params=SMALL_MODELS, ids=lambda small: small.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("model"))


def stock(case: Case) -> Any:  # noqa: ANN401  # a class a family
    """The model as its library loads it, not rewritten."""
    if case.small.source is ModelSource.OPEN_CLIP:
        from bitfront.vlm.loaders.open_clip import _create

        return _create(case.small.spec(case.folder)).eval()
    if case.small.writes:
        written: Any = transformers.AutoModelForImageTextToText.from_pretrained(case.folder)
        return written.eval()
    return transformers.AutoModel.from_pretrained(case.folder).eval()


def test_every_parameter_is_in_a_layer_or_kept(case: Case) -> None:
    sizes = {name: p.numel() for name, p in stock(case).named_parameters()}
    if case.small.name.startswith("LLaVA 1.5") or case.small.name == "LLaVA-NeXT":
        # Layers after the features that are used are dropped, not kept.
        sizes = {
            n: count for n, count in sizes.items() if n in case.model.kept or n in layers(case)
        }

    found = dict(case.model.kept)
    for layer in case.model.layers:
        name = layer.name if layer.name in sizes else layer.name.rpartition(".")[0]
        found[name] = found.get(name, 0) + layer.weights

    assert found == sizes


def layers(case: Case) -> set[str]:
    return {layer.name for layer in case.model.layers}


def test_matrices_that_are_left_are_looked_up_added_or_of_parts_that_are_not_run(
    case: Case,
) -> None:
    prefix, reason = LEFT.get(case.small.name, ("nothing", None))
    for left in case.model.left:
        if left.name.startswith(prefix):
            assert left.reason is reason
        else:
            assert left.reason is LeftReason.NOT_MULTIPLIED
            assert left.name.endswith(NOT_MULTIPLIED)
    assert (reason is None) == all(x.reason is LeftReason.NOT_MULTIPLIED for x in case.model.left)


def test_layers_have_the_towers_of_their_kind_of_model_in_order(case: Case) -> None:
    towers = [layer.tower for layer in case.model.layers]
    wanted = [Tower.VISION, Tower.TEXT]
    if case.small.writes:
        wanted = [Tower.VISION, Tower.PROJECTOR, Tower.LANGUAGE]

    assert list(dict.fromkeys(towers)) == wanted
    assert towers == sorted(towers, key=wanted.index)
    kinds = [layer.kind for layer in case.model.layers]
    assert kinds.count(LayerKind.EMBEDDING) <= 1
    assert len({layer.scope for layer in case.model.layers}) >= 4


@torch.no_grad()
def test_the_model_gives_what_its_library_gives(case: Case) -> None:
    plain = stock(case)
    found = case.give()

    if isinstance(case.model, DualEncoder):
        wanted = dual_outputs(case, plain)
        assert torch.isfinite(found[0]).all()
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        return
    for row in range(2):
        logits = plain_logits(case, plain, row)
        torch.testing.assert_close(found[0][row], logits, rtol=1e-4, atol=1e-4)


def dual_outputs(case: Case, plain: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    assert isinstance(case.model, DualEncoder)
    if case.small.source is ModelSource.OPEN_CLIP:
        pixels = torch.stack([case.model.preprocess(photo(seed, 40, 30)) for seed in range(2)])
        texts = case.model.tokenize(list(CAPTIONS))
        return (
            plain.encode_image(pixels, normalize=False),
            plain.encode_text(texts, normalize=False),
        )
    images = transformers.AutoImageProcessor.from_pretrained(case.folder)  # type: ignore[no-untyped-call]  # theirs
    given = images(images=[photo(seed, 40, 30) for seed in range(2)], return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    length = case.model.context_length
    padded = tokenizer(list(CAPTIONS), padding="max_length", max_length=length, return_tensors="pt")
    assert not torch.equal(*padded["input_ids"])
    words = {"input_ids": padded["input_ids"]}
    if plain.config.model_type in ("altclip", "chinese_clip"):
        words["attention_mask"] = padded["attention_mask"]
    return (
        plain.get_image_features(**given).pooler_output,
        plain.get_text_features(**words).pooler_output,
    )


def inputs(case: Case, row: int) -> dict[str, Tensor]:
    """What the library's own processor makes of a question."""
    processor = transformers.AutoProcessor.from_pretrained(case.folder)  # type: ignore[no-untyped-call]  # theirs
    mark = getattr(processor, "boi_token", None) or processor.image_token
    if "Qwen" in case.small.name:
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    text = QUESTION.replace("<image>", mark)
    given = dict(processor(images=photo(row, 40, 30), text=text, return_tensors="pt"))
    given.pop("labels", None)
    return given


def plain_logits(case: Case, plain: Any, row: int) -> Tensor:  # noqa: ANN401
    given = inputs(case, row)
    answer = case.batch.answers[row : row + 1, :-1]
    given["input_ids"] = torch.cat([given["input_ids"], answer], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in given:
            # What PaliGemma writes is a suffix; for the others it is text.
            written = torch.full_like(answer, int(case.small.name == "PaliGemma"))
            given[name] = torch.cat([given[name], written], dim=1)
    logits: Tensor = plain(**given, use_cache=False).logits[0, -case.batch.answers.shape[1] :]
    return logits


@torch.no_grad()
def test_generated_answers_are_the_librarys_greedy_ones(case: Case) -> None:
    if not isinstance(case.model, GenerativeModel):
        pytest.skip("compares pictures with texts")
    plain = stock(case)

    written = case.model.generate(case.batch, 6)

    for row, tokens in enumerate(written):
        given = inputs(case, row)
        wanted = plain.generate(**given, max_new_tokens=6, do_sample=False)
        answer = wanted[0, given["input_ids"].shape[1] :].tolist()
        assert tokens == answer


def test_plans_go_on_and_off_exactly_and_each_layer_has_an_effect(case: Case) -> None:
    switch = PlanSwitch(case.model, DYNAMIC, {})
    before = case.give()

    # Every layer of small models, some of those with more.
    for layer in case.model.layers[:: 1 + len(case.model.layers) // 60]:
        switch.to(Plan(((layer.name, Precision(2, 16)),)))
        changed = any(not torch.equal(a, b) for a, b in zip(case.give(), before, strict=True))
        # Few tokens may pass an expert by.
        assert changed or ".experts." in layer.name, layer.name
    switch.to(Plan.uniform([layer.name for layer in case.model.layers], Precision(4, 8)))
    assert not any(torch.equal(a, b) for a, b in zip(case.give(), before, strict=True))
    switch.clear()

    assert all(torch.equal(a, b) for a, b in zip(case.give(), before, strict=True))
