import random
from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.reference.digit_clip import CONTEXT_LENGTH, VOCABULARY, tokenize
from bitfront.reference.scenes import SIDE
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from objectives.data.classification import ClassificationTask as Task
from objectives.data.split_name import SplitName
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import ImageStream, Stream
from objectives.execution.tensor_cache import TensorCache
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder

DYNAMIC = QuantizerSpec(activations="dynamic", scale_search=False)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(model: DualEncoder) -> Task:
    whole = scene_task(scene_spec(), model)
    return replace(whole, classes=whole.classes[::8], tokens=whole.tokens[:, ::8])


@pytest.fixture(scope="module")
def switch(model: DualEncoder) -> PlanSwitch:
    return PlanSwitch(model, DYNAMIC, {})


def inputs(task: Task, model: DualEncoder, tower: Tower) -> Stream:
    if tower is Tower.TEXT:
        return replace(task, model=model).caption_stream()
    return replace(task, model=model).images(SplitName.SELECTION)


def plans(model: DualEncoder, count: int, seed: int) -> list[Plan]:
    """Plans as a search proposes them: each changes some layers of an earlier one."""
    rng = random.Random(seed)
    found = [Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))]
    for _ in range(count - 1):
        layers = rng.sample(model.layers, rng.choice((1, 2, 5)))
        changed = {layer.name: Precision(rng.choice((2, 3, 6)), 8) for layer in layers}
        found.append(Plan.of({**dict(rng.choice(found)), **changed}))
    return found


def blocks_run(model: DualEncoder, runner: StreamRunner, given: Stream, plan: Plan) -> int:
    """How many transformer blocks of the reference compute anything during a run."""
    ran: set[nn.Module] = set()
    blocks = [
        module
        for name, module in model.module.named_modules()
        if name.split(".")[-1] == "mlp" and (name[0] == "v") == (Tower.VISION in given.towers)
    ]
    hooks = [
        block.register_forward_hook(lambda module, _args, _out: ran.add(module)) for block in blocks
    ]
    runner.run(given, plan)
    for hook in hooks:
        hook.remove()
    return len(ran)


@pytest.mark.parametrize("tower", [Tower.VISION, Tower.TEXT])
@pytest.mark.parametrize("limit", [300_000, 1 << 30])
def test_features_are_the_same_to_the_last_bit_whatever_is_kept(
    tower: Tower, limit: int, model: DualEncoder, task: Task, switch: PlanSwitch
) -> None:
    given = inputs(task, model, tower)
    plain, keeping = StreamRunner(model, switch, 0), StreamRunner(model, switch, limit)

    for plan in plans(model, 12, seed=limit):
        assert torch.equal(keeping.run(given, plan), plain.run(given, plan))
    assert keeping.cache.hits > 0 or limit < 10**9


@pytest.mark.parametrize("tower", [Tower.VISION, Tower.TEXT])
def test_only_the_blocks_after_the_change_run_again(
    tower: Tower, model: DualEncoder, task: Task, switch: PlanSwitch
) -> None:
    runner, given = StreamRunner(model, switch), inputs(task, model, tower)
    base = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))
    scopes = dict.fromkeys(x.scope for x in model.layers if x.tower is tower and x.scope != tower)
    depth = len(scopes)

    assert blocks_run(model, runner, given, base) == depth
    for place, scope in enumerate(scopes):
        layer = next(layer.name for layer in model.layers if layer.scope == scope)
        changed = Plan.of({**dict(base), layer: Precision(3, 8)})
        assert blocks_run(model, runner, given, changed) == depth - place


def test_a_change_in_one_tower_runs_no_block_of_the_other(
    model: DualEncoder, task: Task, switch: PlanSwitch
) -> None:
    runner, given = StreamRunner(model, switch), inputs(task, model, Tower.VISION)
    base = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))
    runner.run(given, base)

    changed = Plan.of({**dict(base), "token_embedding.weight": Precision(2)})

    assert blocks_run(model, runner, given, changed) == 0


def test_images_of_skipped_blocks_are_not_decoded_again(
    model: DualEncoder, task: Task, switch: PlanSwitch
) -> None:
    reads: list[int] = []
    split = task.split(SplitName.SELECTION)

    def read(batch: int) -> Tensor:
        reads.append(batch)
        return split.read(16 * batch, min(16 * batch + 16, len(split)))

    given = ImageStream(model, "counted", [16, 4], read)
    runner = StreamRunner(model, switch)
    base = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))
    runner.run(given, base)
    reads.clear()

    runner.run(given, Plan.of({**dict(base), "visual.proj": Precision(2, 8)}))

    assert reads == []


def test_watched_layers_run(model: DualEncoder, task: Task, switch: PlanSwitch) -> None:
    runner, given = StreamRunner(model, switch), inputs(task, model, Tower.VISION)
    base = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))
    runner.run(given, base)
    layer = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    seen: list[str] = []

    with model.watch_inputs(lambda name, _: seen.append(name)):
        runner.run(given, base, watched=[layer])

    assert seen.count(layer) == len(given.sizes)
    assert "visual.transformer.resblocks.0.mlp.c_fc.weight" not in seen


class Leaky(nn.Module):
    """A tower whose end still looks at its beginning, past the blocks."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.image_size = SIDE

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.tower(pixels)
        return features + pixels.mean(dim=(1, 2, 3))[:, None]


def test_a_tower_that_cannot_be_taken_up_again_runs_whole(task: Task) -> None:
    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=4, image_size=SIDE)
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=len(VOCABULARY), width=32, heads=4, layers=1
    )
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    clip.visual = Leaky(clip.visual)
    model = open_clip_encoder(clip, preprocess=preprocess_picture, tokenize=tokenize)
    switch = PlanSwitch(model, DYNAMIC, {})
    given = replace(task, model=model).images(SplitName.SELECTION)
    plain, keeping = StreamRunner(model, switch, 0), StreamRunner(model, switch)

    for plan in plans(model, 4, seed=1):
        assert torch.equal(keeping.run(given, plan), plain.run(given, plan))
    assert keeping.cache.nbytes == 0


def group(nbytes: int) -> list[Tensor]:
    return [torch.zeros(nbytes, dtype=torch.uint8)]


def test_the_cache_drops_what_was_used_least_recently() -> None:
    cache = TensorCache(100)
    for key in "ab":
        cache.put(key, group(40))
    cache.get("a")

    cache.put("c", group(40))

    assert ["a" in cache, "b" in cache, "c" in cache] == [True, False, True]
    assert (cache.nbytes, cache.hits, cache.misses) == (80, 1, 0)


def test_the_cache_never_exceeds_its_limit() -> None:
    cache, rng = TensorCache(1000), random.Random(0)
    for _ in range(200):
        cache.put(rng.randrange(20), group(rng.randrange(1, 400)))
        assert cache.nbytes <= 1000

    cache.put("huge", group(1001))

    assert "huge" not in cache


def test_a_full_cache_keeps_only_what_comes_back() -> None:
    cache = TensorCache(100)
    assert cache.request("a", 80)
    cache.put("a", group(80))

    first, second = cache.request("b", 40), cache.request("b", 40)

    assert (first, second) == (False, True)
    assert not cache.request("a", 80)
    assert not cache.request("huge", 101)
