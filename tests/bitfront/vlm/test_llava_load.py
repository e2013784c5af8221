import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, CLIPVisionConfig, SiglipVisionConfig

from bitfront.errors import InvalidModel, InvalidSample, MissingModel
from bitfront.layers import LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from bitfront.vlm.loaders.llava import LLAVA_KINDS, Llava, llava_model, load_text_processor
from bitfront.vlm.models.generative import Prompt
from tests.support.llava_models import END, WORDS, Build, load_llava, photo, processor, save_llava

BUILDS = (
    Build(),
    Build(decoder="mistral", is_tied=True),
    Build(decoder="qwen2", features=(-2, -4)),
    Build(vision="siglip", decoder="qwen2", is_tied=True),
    Build(vision="siglip", decoder="llama", features=-1),
    Build(kind="llava_next", decoder="mistral"),
    Build(kind="llava_next", vision="siglip", decoder="qwen2", features=(-3, -2)),
    Build(kind="llava_next", decoder="llama", is_tied=True),
)
QUESTIONS = ("what is there?", "how many red?", "is the cat blue?", "A. dog B. bird")
DYNAMIC = QuantizerSpec(activations="dynamic", scale_search=False)
TIED = Build(is_tied=True)
EMBEDDING = "model.language_model.embed_tokens.weight"


def wrap(question: str) -> str:
    return f"USER: <image>\n{question} ASSISTANT:"


def batch_of(model: GenerativeModel, prompts: list[Prompt], answer: str = "yes") -> QuestionBatch:
    pixels = [prompt.pixels for prompt in prompts if prompt.pixels is not None]
    sizes = [prompt.size for prompt in prompts if prompt.size is not None]
    return QuestionBatch(
        torch.stack([prompt.tokens for prompt in prompts]),
        model.encode_answer(answer)[None].expand(len(prompts), -1),
        torch.stack(pixels) if pixels else None,
        torch.tensor(sizes) if sizes else None,
    )


def asked(model: GenerativeModel, width: int = 30, height: int = 30) -> QuestionBatch:
    """Two questions of one length about two images of one size."""
    images = [photo(seed, width, height) for seed in range(2)]
    prompts = [
        model.prepare(wrap(question), image)
        for question, image in zip(("what is there?", "is the cat?"), images, strict=True)
    ]
    return batch_of(model, prompts)


def stock_logits(stock: Llava, batch: QuestionBatch) -> Tensor:
    """The stock model's logits at the answers' tokens."""
    given = {"pixel_values": batch.pixels, "image_sizes": batch.sizes}
    tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
    with torch.no_grad():
        found = stock(
            input_ids=tokens,
            **{name: value for name, value in given.items() if value is not None},
            logits_to_keep=batch.answers.shape[1],
            use_cache=False,
        )
    logits: Tensor = found.logits
    return logits


def generate(stock: Llava, given: Mapping[str, Any], limit: int) -> list[int]:
    """The new tokens of transformers' own greedy decoding."""
    found = stock.generate(**given, do_sample=False, max_new_tokens=limit)  # type: ignore[misc]  # a mixin
    assert isinstance(found, Tensor)
    tokens: list[int] = found[0, given["input_ids"].shape[1] :].tolist()
    return tokens


def stored(folder: Path, build: Build, dtype: torch.dtype = torch.float32) -> Llava:
    """The stock model as transformers loads it."""
    load = cast("Callable[..., Llava]", LLAVA_KINDS[build.kind].from_pretrained)
    model = load(folder, dtype=dtype, use_safetensors=True)
    # Weights that want a gradient take other kernels, whose sums round otherwise.
    model.requires_grad_(requires_grad=False)
    return model


def stock_matrices(stock: Llava, build: Build) -> set[str]:
    """The names of the matrices at work: not those after the features, and no positions."""
    features = [build.features] if isinstance(build.features, int) else build.features
    vision = stock.config.vision_config
    assert isinstance(vision, CLIPVisionConfig | SiglipVisionConfig)
    layers = vision.num_hidden_layers
    used = max(layers + 1 + feature for feature in features)
    unused = tuple(f"vision_tower.encoder.layers.{n}." for n in range(used, layers))
    return {
        name
        for name, parameter in stock.named_parameters()
        if parameter.ndim > 1
        and "position_embedding" not in name
        and not any(part in name for part in (*unused, "vision_tower.head."))
    }


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_saved_model_gives_the_stock_models_logits(build: Build, tmp_path: Path) -> None:
    save_llava(tmp_path, build)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    stock = stored(tmp_path, build)

    model = load_llava(tmp_path)
    batch = asked(model)

    assert torch.equal(model.answer_logits(batch), stock_logits(stock, batch))


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_matrix_at_work_is_one_layer(build: Build, tmp_path: Path) -> None:
    stock = save_llava(tmp_path, build)

    layers = load_llava(tmp_path).layers

    assert Counter(layer.name for layer in layers) == Counter(stock_matrices(stock, build))
    parameters = dict(stock.named_parameters())
    for layer in layers:
        shape = parameters[layer.name].flatten(1).shape
        assert (layer.rows, layer.columns) == tuple(shape)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_layers_come_in_order_with_tower_source_and_scope(build: Build, tmp_path: Path) -> None:
    save_llava(tmp_path, build)

    layers = {layer.name: layer for layer in load_llava(tmp_path).layers}

    towers = [layer.tower for layer in layers.values()]
    assert towers == sorted(towers, key=[Tower.VISION, Tower.PROJECTOR, Tower.LANGUAGE].index)
    for layer in layers.values():
        part = {"vision_tower": "vision", "multi_modal_projector": "projector"}
        assert layer.tower == part.get(layer.name.split(".")[1], "language")
    for tower, parts in (
        ("vision_tower.encoder", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("language_model", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("language_model", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        for number in range(2):
            scope = f"model.{tower}.layers.{number}"
            members = [layers[f"{scope}.{part}.weight"] for part in parts]
            sharing = [name for name, x in layers.items() if x.source == members[0].source]
            assert sharing == [member.name for member in members]
            assert {member.scope for member in members} == {scope}


def test_positions_are_those_of_one_image_and_a_short_question(tmp_path: Path) -> None:
    save_llava(tmp_path)

    found = {layer.name: layer.positions for layer in load_llava(tmp_path).layers}

    assert found["model.vision_tower.embeddings.patch_embedding.weight"] == 9
    assert found["model.vision_tower.encoder.layers.0.mlp.fc1.weight"] == 10
    assert found["model.multi_modal_projector.linear_2.weight"] == 9
    assert found["model.language_model.layers.1.mlp.up_proj.weight"] == 9 + 32
    assert found["lm_head.weight"] == 9 + 32
    assert found[EMBEDDING] == 0


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("ends", [(END,), (END, *range(5, 17))], ids=["one end", "many ends"])
def test_greedy_answers_are_those_of_transformers(
    build: Build, ends: tuple[int, ...], tmp_path: Path
) -> None:
    stock = save_llava(tmp_path, build)
    stock.generation_config.eos_token_id = list(ends)
    stock.generation_config.save_pretrained(tmp_path)
    model, words = load_llava(tmp_path), processor(build)

    for seed, question in enumerate(QUESTIONS):
        image = photo(seed, 40, 30)
        given = words(images=image, text=wrap(question), return_tensors="pt")
        wanted = generate(stock, given, 12)
        written = model.generate(batch_of(model, [model.prepare(wrap(question), image)]), 12)

        (tokens,) = written
        assert tokens == wanted
        assert len(tokens) == 12 or tokens[-1] in ends


def test_rows_of_a_batch_end_each_for_itself(tmp_path: Path) -> None:
    stock = save_llava(tmp_path)
    stock.generation_config.eos_token_id = [END, *range(5, 17)]
    stock.generation_config.save_pretrained(tmp_path)
    model = load_llava(tmp_path)
    prompts = [model.prepare(wrap("what is there?"), photo(seed)) for seed in range(8)]

    together = model.generate(batch_of(model, prompts), 12)

    alone = [model.generate(batch_of(model, [prompt]), 12)[0] for prompt in prompts]
    assert together == alone
    assert len({len(tokens) for tokens in together}) > 2


def test_answers_end_with_a_token_that_ends_them(tmp_path: Path) -> None:
    stock = save_llava(tmp_path)
    stock.generation_config.eos_token_id = [20, 21]
    stock.generation_config.save_pretrained(tmp_path)

    model = load_llava(tmp_path)

    answer = model.encode_answer("yes").tolist()
    assert answer == [WORDS.index("yes"), 20]
    assert model.has_ended(answer)
    assert model.decode([*answer, 7]) == "yes"


def logits_under(model: GenerativeModel, plan: Plan, batch: QuestionBatch) -> Tensor:
    switch = PlanSwitch(model, DYNAMIC, {})
    switch.to(plan)
    logits = model.answer_logits(batch)
    switch.clear()
    return logits


def test_a_tied_head_is_one_linear_layer_that_works_at_both_ends(tmp_path: Path) -> None:
    stock = save_llava(tmp_path, TIED)
    model = load_llava(tmp_path)
    batch = asked(model)
    (tied,) = [layer for layer in model.layers if layer.name == EMBEDDING]

    quantized = logits_under(model, Plan.of({EMBEDDING: Precision(2)}), batch)

    assert tied == model.layers[-1]
    assert tied.kind is LayerKind.LINEAR
    kinds = [type(module) for module in model.modules(EMBEDDING)]
    assert sorted(kinds, key=str) == sorted([nn.Linear, nn.Embedding], key=str)
    full = stock_logits(stock, batch)
    weight = stock.lm_head.weight.detach().clone()
    rounded = fake_quantize_weight(weight, Precision(2), DYNAMIC)
    stock.lm_head.weight.data.copy_(rounded)
    torch.testing.assert_close(quantized, stock_logits(stock, batch))
    stock.model.language_model.embed_tokens.weight = nn.Parameter(weight)
    head_only = stock_logits(stock, batch)
    assert not torch.allclose(quantized, head_only, atol=1e-2)
    assert not torch.allclose(head_only, full, atol=1e-2)


def test_an_untied_head_and_its_embedding_are_two_layers(tmp_path: Path) -> None:
    save_llava(tmp_path)

    layers = {layer.name: layer for layer in load_llava(tmp_path).layers}

    assert layers[EMBEDDING].kind is LayerKind.EMBEDDING
    assert layers["lm_head.weight"].kind is LayerKind.LINEAR


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_full_precision_comes_back_bit_for_bit(build: Build, tmp_path: Path) -> None:
    save_llava(tmp_path, build)
    model = load_llava(tmp_path)
    batch = asked(model)
    names = [layer.name for layer in model.layers]
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    logits = model.answer_logits(batch)

    for bits in (2, 4):
        changed = logits_under(model, Plan.uniform(names, Precision(bits, 8)), batch)
        assert not torch.equal(changed, logits)

    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(model.answer_logits(batch), logits)


def test_bfloat16_works_on_the_cpu(tmp_path: Path) -> None:
    save_llava(tmp_path)
    stock = stored(tmp_path, Build(), torch.bfloat16)
    model = load_llava(tmp_path, dtype="bfloat16")
    batch = asked(model)
    names = [layer.name for layer in model.layers]

    assert batch.pixels is not None
    narrow = batch.pixels.to(torch.bfloat16)

    logits = model.answer_logits(batch)
    quantized = logits_under(model, Plan.uniform(names, Precision(8, 8)), batch)

    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert logits.dtype == quantized.dtype == torch.bfloat16
    assert torch.equal(logits, stock_logits(stock, replace(batch, pixels=narrow)))
    assert (quantized.float() - logits.float()).abs().max() < logits.float().abs().max() / 4
    assert all(len(tokens) == 5 or END in tokens for tokens in model.generate(batch, 5))


def test_images_of_several_sizes_make_batches_of_their_own_shape(tmp_path: Path) -> None:
    build = Build(kind="llava_next")
    stock = save_llava(tmp_path, build)
    model = load_llava(tmp_path)

    wide, tall = asked(model, 48, 20), asked(model, 30, 30)

    assert wide.prompts.shape != tall.prompts.shape
    for batch, tiles in ((wide, 3), (tall, 5)):
        assert batch.pixels is not None
        assert batch.pixels.shape == (2, tiles, 3, 24, 24)
        torch.testing.assert_close(model.answer_logits(batch), stock_logits(stock, batch))


def test_a_prompt_without_a_place_for_its_image_is_refused(tmp_path: Path) -> None:
    save_llava(tmp_path)
    model = load_llava(tmp_path)

    with pytest.raises(InvalidSample, match=r"no image token.*put <image> into data\.prompt"):
        model.prepare("USER: what is there?", photo(0))
    with pytest.raises(InvalidSample, match="has 2 image tokens, but its sample has one image"):
        model.prepare(wrap("<image> what is there?"), photo(0))
    with pytest.raises(InvalidSample, match="has an image token, but its sample has no image"):
        model.prepare(wrap("what is there?"), None)


def test_a_prompt_that_is_longer_than_the_decoder_is_refused(tmp_path: Path) -> None:
    save_llava(tmp_path)
    model = load_llava(tmp_path)

    with pytest.raises(InvalidSample, match=r"takes 2\d\d positions, but the decoder has 128"):
        model.prepare(wrap("what " * 200), photo(0))


def rewrite(folder: Path, name: str, tensor: Tensor | None) -> None:
    """Replaces one tensor of a saved model, or takes it away."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    stored = next(key for key in index["weight_map"] if key.endswith(name))
    shard = folder / index["weight_map"][stored]
    tensors = load_file(shard)
    if tensor is None:
        del tensors[stored], index["weight_map"][stored]
    else:
        tensors[stored] = tensor
    save_file(tensors, shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "linear_1.bias"])
def test_the_identity_follows_the_weights(name: str, tmp_path: Path) -> None:
    stock = save_llava(tmp_path)
    before = load_llava(tmp_path).identity
    again = load_llava(tmp_path).identity
    parameter = next(p for key, p in stock.named_parameters() if key.endswith(name))

    changed = parameter.detach().clone()
    changed.view(-1)[0] += 1e-3
    rewrite(tmp_path, name, changed)

    assert load_llava(tmp_path).identity != before == again


def test_the_identity_does_not_depend_on_folder_or_shards(tmp_path: Path) -> None:
    stock = save_llava(tmp_path / "here")
    save_llava(tmp_path / "there", model=stock)
    stock.save_pretrained(tmp_path / "there", max_shard_size="1GB")

    here, there = (load_llava(tmp_path / place).identity for place in ("here", "there"))

    assert here == there


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.gate_proj.weight", "input_layernorm.weight"])
def test_a_weight_that_is_not_finite_is_refused(name: str, value: float, tmp_path: Path) -> None:
    stock = save_llava(tmp_path)
    parameter = next(p for key, p in stock.named_parameters() if key.endswith(name))
    broken = parameter.detach().clone()
    broken.view(-1)[-1] = value
    rewrite(tmp_path, name, broken)

    with pytest.raises(InvalidModel, match=rf"{name} has values that are NaN or infinite"):
        load_llava(tmp_path)


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "post_attention_layernorm.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(name: str, tmp_path: Path) -> None:
    save_llava(tmp_path)
    rewrite(tmp_path, name, None)

    with pytest.raises(InvalidModel, match=rf"lack 1 tensors, first .*{name}"):
        load_llava(tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_llava(tmp_path)
    rewrite(tmp_path, "linear_1.weight", torch.zeros(3, 3))

    with pytest.raises(InvalidModel, match=r"linear_1\.weight is \(3, 3\), but must be \(32, 24\)"):
        load_llava(tmp_path)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    save_llava(tmp_path)
    shard = next(tmp_path.glob("model-00002-of-*"))
    shard.write_bytes(shard.read_bytes()[:100])

    with pytest.raises(InvalidModel, match=r"cannot be read"):
        load_llava(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_llava(tmp_path)
    shard = next(tmp_path.glob("model-00002-of-*"))
    shard.unlink()

    with pytest.raises(MissingModel, match=shard.name):
        load_llava(tmp_path)


def test_a_missing_folder_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match="the folder does not exist"):
        load_llava(tmp_path / "nowhere")
    save_llava(tmp_path)
    for shard in tmp_path.glob("*.safetensors*"):
        shard.unlink()
    with pytest.raises(MissingModel, match="safetensors"):
        load_llava(tmp_path)


def test_a_missing_processor_is_named(tmp_path: Path) -> None:
    save_llava(tmp_path)
    for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()

    with pytest.raises(MissingModel, match=r"has no tokenizer: copy tokenizer\.json"):
        load_llava(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)

    with pytest.raises(InvalidModel, match="is a 'bert' model, which neither compares"):
        load_llava(tmp_path)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    save_llava(tmp_path)
    edit_json(tmp_path / "generation_config.json", eos_token_id=None)

    with pytest.raises(InvalidModel, match="set eos_token_id in its generation_config"):
        load_llava(tmp_path)


@pytest.mark.parametrize("end", ["x", 0.5, [], -1, [2, 5000]], ids=str)
def test_an_end_that_is_no_token_is_refused(end: object, tmp_path: Path) -> None:
    save_llava(tmp_path)
    edit_json(tmp_path / "generation_config.json", eos_token_id=end)

    with pytest.raises(InvalidModel, match=r"correct eos_token_id in its generation_config"):
        load_llava(tmp_path)


@pytest.mark.parametrize("layer", [-6, 5, [-2, 9]])
def test_features_of_a_layer_that_is_not_there_are_refused(layer: object, tmp_path: Path) -> None:
    save_llava(tmp_path, Build(features=(-2, -3)) if isinstance(layer, list) else Build())
    edit_json(tmp_path / "config.json", vision_feature_layer=layer)

    with pytest.raises(InvalidModel, match=r"vision_feature_layer is .*has 4 layers"):
        load_llava(tmp_path)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_model_without_weights_has_the_same_layers_on_the_meta_device(
    build: Build, tmp_path: Path
) -> None:
    stock = save_llava(tmp_path, build)
    processor_texts = load_text_processor(str(tmp_path), frozenset({END}))
    with torch.device("meta"):
        bare = type(stock)(stock.config)  # type: ignore[arg-type]  # each kind has its own

    model = llava_model(bare, processor_texts, frozenset({END}))

    whole = load_llava(tmp_path)
    assert model.device.type == "meta"
    assert model.layers == whole.layers
    assert model.kept == whole.kept
    assert model.identity != whole.identity
