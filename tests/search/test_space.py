"""The sampler's space: indices to configurations and back, with what may be trained."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.layers import Block, Tower
from bitfront.plan import Configuration, Distillation, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import RecoverySpace, Sampler
from search.sampler import Proposer
from search.space import SearchSpace

BLOCK = Block("b", Tower.VISION, ("x",))
OPTIONS = {"b": [Option((Precision(bits, 8),)) for bits in (2, 4)]}
DISTIL = {"steps": [20, 40], "codes": [False, True]}
PLAN = Plan.of({"x": Precision(2, 8)})


def space(recovery: dict[str, object] | None) -> SearchSpace:
    given = None if recovery is None else RecoverySpace.model_validate(recovery)
    return SearchSpace([BLOCK], OPTIONS, {}, given)


ALONE = space({"distil": DISTIL})
BOTH = space({"distil": DISTIL, "context_length": [4], "reduction": [0, 2]})
SPACES = {"none": space(None), "p4q": space({"reduction": [2]}), "distil": ALONE, "both": BOTH}


@pytest.mark.parametrize("made", SPACES.values(), ids=SPACES)
@given(data=st.data())
def test_indices_lead_to_a_configuration_and_back(made: SearchSpace, data: st.DataObject) -> None:
    names = {v.name: v.size for v in (*made.variables, *made.conditional)}
    params = {name: data.draw(st.integers(0, size - 1)) for name, size in names.items()}

    configuration = made.configuration(params)

    found = made.params(configuration)
    assert found is not None
    assert made.configuration(found) == configuration
    assert found.keys() <= params.keys()


def test_a_space_has_what_its_job_lets_it_train() -> None:
    names = {
        name: [v.name for v in (*made.variables, *made.conditional)]
        for name, made in SPACES.items()
    }

    assert names["none"] == ["block:b"]
    assert "distil" not in names["p4q"]
    assert names["distil"] == ["block:b", "distil", "distil.steps", "distil.codes"]
    assert {"recovery", "distil"} <= {*names["both"]}


def test_a_configuration_outside_of_the_space_has_no_indices() -> None:
    distilled = Configuration(replace(PLAN, distil=Distillation(steps=20)))
    longer = Configuration(replace(PLAN, distil=Distillation(steps=21)))

    assert ALONE.params(distilled) is not None
    assert ALONE.params(longer) is None
    assert SPACES["p4q"].params(distilled) is None
    assert ALONE.params(Configuration(PLAN, Recovery(steps=60))) is None


@pytest.mark.parametrize("sampler", [Sampler.TPE, Sampler.NSGA2])
def test_the_sampler_proposes_every_mixture_once(sampler: Sampler) -> None:
    proposer = Proposer(BOTH, ["error", "nbytes"], sampler, 0)
    seen = []
    while (proposal := proposer.propose()) is not None:
        seen.append(proposal.configuration)

    assert len(set(seen)) == len(seen)
    assert {one.trained_by for one in seen} == {(), ("distil",), ("p4q",), ("distil", "p4q")}
    assert {one.plan.distil.steps for one in seen if one.plan.distil is not None} == {20, 40}


def test_a_recovery_of_a_distilled_plan_keeps_it_distilled() -> None:
    plan = replace(PLAN, distil=Distillation(steps=20))
    made = SearchSpace.of_recoveries(plan, RecoverySpace(reduction=(2, 4), context_length=(0,)))

    configuration = made.configuration({"recovery.reduction": 1})

    assert configuration.plan == plan
    assert made.params(configuration) == {
        name: 1 if name == "recovery.reduction" else 0 for name in (v.name for v in made.variables)
    }


def test_the_first_distillation_is_the_middle_of_each_list() -> None:
    assert BOTH.seed_distillation() == Distillation(steps=40, codes=True)
    assert SPACES["p4q"].seed_distillation() is None
    assert ALONE.seed_recoveries() == []
