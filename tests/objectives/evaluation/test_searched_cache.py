"""Configurations that round the KV cache, evaluated: against hooks by hand on the bundled LLaVA."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.kv_cache import KvFormat
from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.quant.kv_cache import uniform_levels
from bitfront.reference.digit_llava import load_llava
from bitfront.spec import JobSpec
from bitfront.vlm.kv_rounding import rounded_cache
from objectives.data.split_name import SplitName
from objectives.evaluation.attachment import Attachment
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling.cells import CellMeter

ATTENTION = "model.language_model.layers.{}.self_attn"
CHANNELS, LAYERS, TOKENS = 48, 4, 300


def job(**sections: object) -> JobSpec:
    content: dict[str, object] = {
        "study": "chat",
        "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
        "data": {
            "source": "reference",
            "samples": {"calibration": 8, "tuning": 8, "selection": 12, "test": 4},
            "batch_size": 8,
        },
        "space": {"activation_bits": [16], "kv_cache": {"bits": [2, 4, 16]}},
        "objectives": ["error", "memory_nbytes"],
        "context_tokens": TOKENS,
    }
    return JobSpec.model_validate({**content, **sections})


def place(number: int, kept: str) -> str:
    return f"{ATTENTION.format(number)}:{kept}"


def both(bits: int, number: int) -> dict[str, KvFormat]:
    return {place(number, kept): KvFormat(bits) for kept in ("keys", "values")}


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator.from_spec(job())


def logits(evaluator: Evaluator, split: SplitName = SplitName.SELECTION) -> Tensor:
    (stream,) = evaluator.task.streams(split)
    with torch.no_grad():
        return torch.cat([stream.run(batch) for batch in range(len(stream.sizes))])


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, object]) -> Iterator[None]:
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(modules[name].register_forward_hook(hook).remove)
        yield


def nearest(row: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Each value of a row on the nearest of the levels between two ends."""
    levels = low + (high - low) * (uniform_levels(bits) + 1) / 2
    return levels[(row[:, None] - levels).abs().argmin(dim=1)]


def test_a_trial_attends_to_keys_by_channel_and_values_by_token(evaluator: Evaluator) -> None:
    attention = ATTENTION.format(1)
    seen: list[Tensor] = []
    keep = {f"{attention}.k_proj": lambda _m, _a, output: seen.append(output.flatten(0, 1))}
    evaluator.switch.clear()
    with hooked(evaluator.model.module, keep):
        logits(evaluator, SplitName.CALIBRATION)
    keys = torch.cat(seen)
    lows, highs = (end.half().float() for end in (keys.amin(dim=0), keys.amax(dim=0)))

    def by_channel(_module: object, _args: object, output: Tensor) -> Tensor:
        read = [nearest(output[..., c].flatten(), lows[c], highs[c], 4) for c in range(CHANNELS)]
        return torch.stack(read, dim=-1).view_as(output)

    def by_token(_module: object, _args: object, output: Tensor) -> Tensor:
        read = [
            nearest(row, row.min().half().float(), row.max().half().float(), 4)
            for row in output.flatten(0, 1)
        ]
        return torch.stack(read).view_as(output)

    with hooked(
        evaluator.model.module,
        {f"{attention}.k_proj": by_channel, f"{attention}.v_proj": by_token},
    ):
        expected = logits(evaluator)
    evaluator.switch.to(Plan(()).with_cache(both(4, 1)))
    found = logits(evaluator)
    evaluator.switch.clear()

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(evaluator), rtol=1e-4, atol=1e-4)


def test_the_bytes_are_those_of_the_stated_context(evaluator: Evaluator) -> None:
    layers = [layer.name for layer in evaluator.model.layers]
    plan = Plan.uniform(layers, Precision(8, 16))
    full = evaluator.evaluate(Configuration(plan)).metrics
    rounded = evaluator.evaluate(Configuration(plan.with_cache(both(4, 0)))).metrics

    assert full["kv_nbytes"] == 2 * 2 * CHANNELS * TOKENS * LAYERS
    codes, ends = CHANNELS * TOKENS // 2, 2 * 2
    layer = (codes + ends * CHANNELS) + (codes + ends * TOKENS)
    assert rounded["kv_nbytes"] == full["kv_nbytes"] * 3 / 4 + layer
    for one in (full, rounded):
        assert one["memory_nbytes"] == one["nbytes"] + one["kv_nbytes"]
    assert rounded["nbytes"] == full["nbytes"]


def test_nothing_that_was_evaluated_before_changes_a_result(evaluator: Evaluator) -> None:
    layers = [layer.name for layer in evaluator.model.layers]
    base = Plan.uniform(layers, Precision(4, 16))
    plans = [
        base.with_cache(both(2, 3)),
        base.with_cache(both(2, 0)),
        base,
        base.with_cache(both(2, 0) | both(4, 3)),
    ]
    bare = Evaluator(job(), evaluator.family, evaluator.ranges, cache_nbytes=0)

    together = [evaluator.evaluate(Configuration(plan)).values for plan in plans]
    alone = [bare.evaluate(Configuration(plan)).values for plan in reversed(plans)]
    divergences = [evaluator.evaluate(Configuration(p)).metrics["divergence"] for p in plans]

    assert together == alone[::-1]
    assert len(set(divergences)) == len(plans)


@pytest.mark.parametrize("form", [KvFormat(3, is_uniform=False), KvFormat(3, 0.1)])
def test_formats_outside_of_the_space_are_fitted_too(evaluator: Evaluator, form: KvFormat) -> None:
    keys = replace(form, is_rotated=True)
    plan = Plan(()).with_cache({place(2, "keys"): keys, place(2, "values"): form})

    first = evaluator.evaluate(Configuration(plan))
    again = Evaluator(job(), evaluator.family, evaluator.ranges).evaluate(Configuration(plan))

    assert first.values == again.values
    assert 0 < first.metrics["divergence"] < 1


def test_cells_cost_nothing_of_the_weights_and_fewer_bits_err_more(evaluator: Evaluator) -> None:
    meter = CellMeter(evaluator.task, evaluator.cell_switch, evaluator.spec)
    block = Block.of_place(place(0, "values"))

    cells = [meter.measure(block, Option((), KvFormat(bits))) for bits in (2, 4, 8, 16)]

    errors = [cell.error for cell in cells]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[1] > errors[-1] == 0
    assert all((c.nbytes, c.bit_operations, c.weight_bits) == (0, 0, 0) for c in cells)


def test_a_recovery_is_trained_with_the_codes_on(evaluator: Evaluator) -> None:
    recovery = Recovery(context_length=2, reduction=0, steps=4)
    bare, rounded = Plan(()), Plan(()).with_cache(both(2, 0) | both(2, 1))
    kept = [evaluator.scorer.stored(Configuration(plan, recovery)) for plan in (bare, rounded)]

    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert all(bool(tensor.isfinite().all()) for tensor in kept[1].values())


def test_weights_that_follow_others_follow_the_cache_too() -> None:
    quantizer = {"rounding": "gptq", "target": "output"}
    spec = job(quantizer=quantizer)
    one = Evaluator.from_spec(spec)
    layers = [layer.name for layer in one.model.layers]
    base = Plan.uniform(layers, Precision(3, 16))
    plans = [base, base.with_cache(both(2, 1))]

    together = [one.evaluate(Configuration(plan)).metrics["divergence"] for plan in plans]
    other = Evaluator.from_spec(spec)
    alone = [other.evaluate(Configuration(plan)).metrics["divergence"] for plan in plans[::-1]]

    assert together == alone[::-1]
    names = [f"model.language_model.layers.{n}.mlp.up_proj.weight" for n in (0, 1)]
    shown = [{n: other.switch.shown(plan)[n].weight.clone() for n in names} for plan in plans]
    assert torch.equal(shown[0][names[0]], shown[1][names[0]])
    assert not torch.equal(shown[0][names[1]], shown[1][names[1]])


def test_an_attached_configuration_rounds_the_cache_of_a_persons_model(
    evaluator: Evaluator,
) -> None:
    plan = Plan(()).with_cache(both(2, 0) | {place(3, "keys"): KvFormat(3, is_rotated=True)})
    attachment = Attachment.of(evaluator, Configuration(plan))
    expected = logits(evaluator)
    evaluator.switch.clear()
    full = logits(evaluator)

    cache = attachment.cache
    with rounded_cache(evaluator.model.module, cache):
        assert torch.equal(logits(evaluator), expected)
    assert torch.equal(logits(evaluator), full)
    person = load_llava()
    with attachment.put_on(person):
        attention = person.get_submodule(f"{ATTENTION.format(0)}.v_proj")
        assert attention._forward_hooks
    assert not attention._forward_hooks


def test_a_plan_of_another_model_is_refused(evaluator: Evaluator) -> None:
    plan = Plan(()).with_cache({"decoder.layers.9.self_attn:keys": KvFormat(4)})

    with pytest.raises(SpecError, match=r"no KV cache 'decoder.layers.9.self_attn:keys'"):
        evaluator.evaluate(Configuration(plan))


def test_a_model_without_a_cache_is_refused_where_its_job_is_read() -> None:
    spec = job(model={"source": "reference", "device": "cpu"}, data={"source": "reference"})

    with pytest.raises(SpecError, match="only a model that answers questions keeps keys"):
        Evaluator.from_spec(spec)
