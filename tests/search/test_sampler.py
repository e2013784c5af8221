"""The search space maps indices to configurations and back; the proposer never repeats itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler

from bitfront.layers import Block, Tower
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import RecoverySpace, Sampler
from bitfront.trial import Origin, Trial, TrialState
from search.sampler import Proposer, Sample, most_telling
from search.space import SearchSpace

BITS = (2, 3, 4)
BLOCKS = [Block(f"b{i}", Tower.VISION, (f"l{i}.0", f"l{i}.1")) for i in range(4)]
OPTIONS = {
    block.name: [Option((Precision(a, 8), Precision(b, 8))) for a in BITS for b in BITS]
    for block in BLOCKS
}
OBJECTIVES = ("error", "nbytes")
KEPT = {"embedding": Precision(8)}


def make_space(recovery: RecoverySpace | None = None) -> SearchSpace:
    return SearchSpace(BLOCKS, OPTIONS, KEPT, recovery)


def measure(configuration: Configuration) -> Trial:
    bits = [precision.weight_bits for _, precision in configuration.plan]
    gain = 0.9 if configuration.recovery else 1.0
    error = gain * sum(2.0**-b * (i + 1) for i, b in enumerate(bits))
    values = {"error": error, "nbytes": float(sum(bits))}
    return replace(
        ended(configuration, TrialState.COMPLETE),
        values=values,
        constraints={"max_nbytes": sum(bits) - 28.0},
    )


def ended(configuration: Configuration, state: TrialState) -> Trial:
    return Trial("sampled", 0, configuration, Origin.SAMPLER, state=state)


@given(st.data())
def test_a_configuration_comes_back_from_its_indices(data: st.DataObject) -> None:
    space = make_space(RecoverySpace())
    params = {
        variable.name: data.draw(st.integers(0, variable.size - 1), label=variable.name)
        for variable in (*space.variables, *space.conditional)
    }

    configuration = space.configuration(params)
    again = space.params(configuration)

    assert again is not None
    assert space.configuration(again) == configuration


def test_kept_layers_are_in_every_plan() -> None:
    assert make_space().configuration({}).plan.precision("embedding") == Precision(8)


def test_a_configuration_outside_of_the_space_has_no_indices() -> None:
    space = make_space()
    outside = Plan.uniform([layer for block in BLOCKS for layer in block.layers], Precision(8, 8))

    assert space.params(Configuration(outside)) is None
    assert space.params(Configuration(space.configuration({}).plan, Recovery())) is None


def test_settings_of_a_missing_adapter_make_no_new_configuration() -> None:
    space = make_space(RecoverySpace(context_length=(4,), reduction=(0, 2), blend=(0.2, 0.5)))

    first = space.configuration({"recovery": 1, "recovery.reduction": 0, "recovery.blend": 0})
    second = space.configuration({"recovery": 1, "recovery.reduction": 0, "recovery.blend": 1})

    assert first == second


@pytest.mark.parametrize("sampler", list(Sampler))
def test_no_configuration_is_proposed_twice(sampler: Sampler) -> None:
    proposer = Proposer(make_space(), OBJECTIVES, sampler, seed=0)
    seen = set()

    for _ in range(80):
        proposal = proposer.propose()
        assert proposal is not None
        assert proposal.configuration.digest not in seen
        seen.add(proposal.configuration.digest)
        proposer.tell(measure(proposal.configuration))


@pytest.mark.parametrize("sampler", list(Sampler))
def test_an_exhausted_space_ends_in_none(sampler: Sampler) -> None:
    block = BLOCKS[0]
    space = SearchSpace([block], {block.name: OPTIONS[block.name]}, {}, None)
    proposer = Proposer(space, OBJECTIVES, sampler, seed=0)
    found = 0

    while (proposal := proposer.propose()) is not None:
        found += 1
        proposer.tell(measure(proposal.configuration))

    assert found <= 9
    assert found >= 5


class Stubborn(Proposer):
    """Its sampler has one favourite."""

    def _make_sampler(self) -> BaseSampler:
        sampler = super()._make_sampler()
        if isinstance(sampler, RandomSampler):
            return sampler
        return PartialFixedSampler({f"block:{block.name}": 4 for block in BLOCKS}, sampler)


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_a_sampler_that_repeats_itself_does_not_end_the_search() -> None:
    proposer = Stubborn(make_space(), OBJECTIVES, Sampler.TPE, seed=0)

    done = run(proposer, 12)

    assert len({trial.configuration.digest for trial in done}) == 12


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_rebuilt_proposer_knows_what_was_done_and_what_runs(sampler: Sampler) -> None:
    first = Proposer(make_space(), OBJECTIVES, sampler, seed=0)
    done = []
    for _ in range(60):
        proposal = first.propose()
        assert proposal is not None
        done.append(measure(proposal.configuration))
        first.tell(done[-1])
    running = first.propose()
    assert running is not None

    second = Proposer(make_space(), OBJECTIVES, sampler, seed=0)
    second.restore(done)
    second.start(running.configuration)
    known = {trial.configuration.digest for trial in done} | {running.configuration.digest}
    proposals = [second.propose() for _ in range(10)]
    second.tell(measure(running.configuration))

    assert all(p is not None and p.configuration.digest not in known for p in proposals)


def test_failed_configurations_are_not_proposed_again() -> None:
    proposer = Proposer(make_space(), OBJECTIVES, Sampler.RANDOM, seed=0)
    failed = set()

    for _ in range(50):
        proposal = proposer.propose()
        assert proposal is not None
        assert proposal.configuration.digest not in failed
        proposer.tell(ended(proposal.configuration, TrialState.FAILED))
        failed.add(proposal.configuration.digest)


@pytest.mark.parametrize("sampler", [Sampler.TPE, Sampler.NSGA2])
def test_a_sampler_learns_from_what_it_is_told(sampler: Sampler) -> None:
    def late_share(kind: Sampler) -> float:
        proposer = Proposer(make_space(), OBJECTIVES, kind, seed=1)
        sums = []
        for _ in range(200):
            proposal = proposer.propose()
            assert proposal is not None
            trial = measure(proposal.configuration)
            proposer.tell(trial)
            sums.append(max(0.0, trial.constraints["max_nbytes"]))
        return sum(excess > 0 for excess in sums[-100:]) / 100

    assert late_share(sampler) < late_share(Sampler.RANDOM)


RECOVERIES = RecoverySpace(context_length=(0, 4, 8), reduction=(2, 4), blend=(0.2, 0.5))


def test_settings_of_a_recovery_are_variables_only_where_there_is_one() -> None:
    space = make_space(RECOVERIES)
    plan = space.configuration({}).plan
    recovery = Recovery(context_length=4, reduction=4, blend=0.5, distillation=4.0, steps=60)

    with_it = space.params(Configuration(plan, recovery))
    without = space.params(Configuration(plan))

    assert with_it is not None
    assert without is not None
    named = {f"recovery.{field}" for field in ("context_length", "reduction", "blend")}
    assert {variable.name for variable in space.conditional} == named
    assert named <= with_it.keys()
    assert named.isdisjoint(without)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_proposals_have_settings_of_a_recovery_where_they_have_one(sampler: Sampler) -> None:
    space = make_space(RECOVERIES)
    proposer = Proposer(space, OBJECTIVES, sampler, seed=0)
    seen = {True: 0, False: 0}

    for _ in range(60):
        proposal = proposer.propose()
        assert proposal is not None
        recovers = proposal.configuration.recovery is not None
        seen[recovers] += 1
        if recovers:
            assert {variable.name for variable in space.conditional} <= proposal.params.keys()
        proposer.tell(measure(proposal.configuration))

    assert min(seen.values()) >= 5


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_pruned_configuration_is_not_proposed_again(sampler: Sampler) -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0)
    digests = []

    for turn in range(50):
        proposal = proposer.propose()
        assert proposal is not None
        digests.append(proposal.configuration.digest)
        if turn % 3:
            proposer.tell(ended(proposal.configuration, TrialState.PRUNED))
        else:
            proposer.tell(measure(proposal.configuration))

    assert len(set(digests)) == 50


def test_a_study_of_nothing_but_pruned_trials_continues() -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, Sampler.TPE, seed=0)

    for _ in range(30):
        proposal = proposer.propose()
        assert proposal is not None
        proposer.tell(ended(proposal.configuration, TrialState.PRUNED))

    assert proposer.propose() is not None


def test_pruned_trials_are_known_to_a_restarted_sampler() -> None:
    first = Proposer(make_space(RECOVERIES), OBJECTIVES, Sampler.TPE, seed=0)
    pruned = []
    for _ in range(20):
        proposal = first.propose()
        assert proposal is not None
        first.tell(ended(proposal.configuration, TrialState.PRUNED))
        pruned.append(proposal.configuration)

    second = Proposer(make_space(RECOVERIES), OBJECTIVES, Sampler.TPE, seed=0)
    for configuration in pruned:
        second.tell(ended(configuration, TrialState.PRUNED))
    again = [second.propose() for _ in range(20)]

    digests = {configuration.digest for configuration in pruned}
    assert all(p is not None and p.configuration.digest not in digests for p in again)


@pytest.mark.parametrize("seed", range(3))
def test_the_sampler_turns_away_from_what_was_pruned(seed: int) -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, Sampler.TPE, seed)
    recovers = []

    for _ in range(80):
        proposal = proposer.propose()
        assert proposal is not None
        recovers.append(proposal.configuration.recovery is not None)
        if recovers[-1]:
            proposer.tell(ended(proposal.configuration, TrialState.PRUNED))
        else:
            proposer.tell(replace(measure(proposal.configuration), constraints={}))

    assert sum(recovers[40:]) < 10


HISTORY = 24


def run(proposer: Proposer, trials: int) -> list[Trial]:
    done = []
    for _ in range(trials):
        proposal = proposer.propose()
        assert proposal is not None
        done.append(measure(proposal.configuration))
        proposer.tell(done[-1])
    return done


@given(
    rows=st.lists(st.none() | st.tuples(*[st.integers(0, 9)] * 2, st.integers(-1, 2)), max_size=40),
    limit=st.integers(1, 24),
)
def test_the_front_and_the_latest_trials_tell_most(
    rows: list[tuple[int, int, int] | None], limit: int
) -> None:
    samples = [Sample(None) if r is None else Sample(r[:2], {"limit": r[2]}) for r in rows]

    kept = most_telling(samples, limit)

    assert kept == sorted(set(kept))
    assert len(kept) == min(limit, len(rows))
    assert set(range(len(rows))[-(limit - limit // 4) :]) <= set(kept)
    feasible = {n: row[:2] for n, row in enumerate(rows) if row is not None and row[2] <= 0}
    front = {
        n
        for n, row in feasible.items()
        if not any(
            other != row and other[0] <= row[0] and other[1] <= row[1]
            for other in feasible.values()
        )
    }
    if len(front) <= limit // 4:
        assert front <= set(kept)


def test_a_large_front_is_kept_from_end_to_end() -> None:
    samples = [Sample((float(n), float(99 - n))) for n in range(100)]
    worse = [Sample((200.0, 200.0 + n)) for n in range(100)]

    kept = most_telling([*samples, *worse], 40)

    near = [place for place in kept if place < 100]
    assert (near[0], near[-1], len(near)) == (0, 99, 10)
    assert max(np.diff(near)) <= 12


@pytest.mark.parametrize("sampler", list(Sampler))
def test_what_a_sampler_has_forgotten_is_not_proposed_again(sampler: Sampler) -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0, history=HISTORY)

    done = run(proposer, 4 * HISTORY)

    assert len({trial.configuration.digest for trial in done}) == len(done)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_sampler_learns_from_no_more_trials_than_it_may(sampler: Sampler) -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0, history=HISTORY)
    running = [proposer.propose() for _ in range(3)]
    sizes = []

    for _ in range(3 * HISTORY):
        run(proposer, 1)
        sizes.append(len(proposer._study.get_trials(deepcopy=False)) - len(running))

    assert max(sizes) == HISTORY
    assert min(sizes[HISTORY:]) >= HISTORY // 2


@pytest.mark.parametrize("sampler", list(Sampler))
def test_what_runs_while_a_sampler_forgets_is_learnt_when_it_ends(sampler: Sampler) -> None:
    proposer = Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0, history=HISTORY)
    running = proposer.propose()
    assert running is not None
    run(proposer, 2 * HISTORY)

    values = {"error": 7.0, "nbytes": 77.0}
    proposer.tell(replace(measure(running.configuration), values=values, constraints={}))

    trials = proposer._study.get_trials(deepcopy=False)
    (told,) = [trial for trial in trials if trial.values == [7.0, 77.0]]
    assert {**told.params, **running.params} == told.params
    assert not any(trial.state.name == "RUNNING" for trial in trials)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_rebuilt_sampler_forgets_but_proposes_nothing_twice(sampler: Sampler) -> None:
    done = run(Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0), 3 * HISTORY)
    again = Proposer(make_space(RECOVERIES), OBJECTIVES, sampler, seed=0, history=HISTORY)

    again.restore(
        [
            ended(trial.configuration, TrialState.PRUNED) if n % 3 else trial
            for n, trial in enumerate(done)
        ]
    )

    assert len(again._study.get_trials(deepcopy=False)) < HISTORY
    known = {trial.configuration.digest for trial in done}
    assert known.isdisjoint(trial.configuration.digest for trial in run(again, HISTORY))


def test_the_seeds_of_a_study_are_parents_of_what_nsga2_proposes() -> None:
    proposer = Proposer(make_space(), OBJECTIVES, Sampler.NSGA2, seed=0)
    low = {f"block:{block.name}": place % 2 for place, block in enumerate(BLOCKS)}
    for n in range(2**4 + 16):
        choice = {name: (n >> place & 1) + 4 * (n >> 4) for place, name in enumerate(low)}
        configuration = make_space().configuration(choice)
        proposer.start(configuration)
        proposer.tell(measure(configuration))

    asked = [proposer.propose() for _ in range(12)]

    seeded = {0, 1, 4, 5}
    shares = [np.mean([v in seeded for v in p.params.values()]) for p in asked if p is not None]
    assert np.mean(shares) > 0.7
