"""Which trials `build` takes, before anything is loaded."""

from dataclasses import replace

import pytest

from bitfront.errors import SpecError
from bitfront.kv_cache import KvFormat
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.trial import Origin, Trial, TrialState
from service.study.build import check_trial

LAYER = "decoder.layers.0.self_attn.k_proj.weight"


def complete(plan: Plan) -> Trial:
    trial = Trial("chat", 3, Configuration(plan), Origin.PROGRAM)
    return replace(trial, state=TrialState.COMPLETE)


def test_a_trial_that_rounds_its_kv_cache_is_refused_with_both_ways_out() -> None:
    plan = Plan.of({LAYER: Precision(4, 16)})
    check_trial("chat", complete(plan))

    coded = plan.with_cache({"decoder.layers.0.self_attn:keys": KvFormat(3)})
    with pytest.raises(SpecError, match="trial 3 of study 'chat' rounds its KV cache") as refusal:
        check_trial("chat", complete(coded))

    assert "'apply'" in str(refusal.value)
    assert "without space.kv_cache" in str(refusal.value)
