"""The program over a job's own resources and limits, from a profile made by hand."""

import math
from dataclasses import replace
from itertools import islice, product

import pytest

from bitfront.errors import InfeasibleBudget, UnavailableDevice
from bitfront.kv_cache import Kept, KvFormat, KvPlace
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell, Profile, Resource
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal, Trial, TrialState
from service.study.proxy_search import ProxySearch
from service.views.describe import baseline_names

WEIGHTS = 64 * 32
FIXED_NBYTES = 1000
SCALES = 64 * 2
BITS = (2, 3, 4, 8)


def make_layer(name: str, kind: LayerKind = LayerKind.LINEAR) -> Layer:
    positions = 0 if kind is LayerKind.EMBEDDING else int(name[1:]) + 1
    return Layer(name, Tower.VISION, kind, 64, 32, positions, name, "vision")


LAYERS = (*(make_layer(f"l{n}") for n in range(4)), make_layer("e9", LayerKind.EMBEDDING))
BLOCKS = tuple(Block(layer.name, layer.tower, (layer.name,)) for layer in LAYERS)


def make_cell(layer: Layer, precision: Precision, *, latency: bool) -> Cell:
    weight, inputs = precision.weight_bits, precision.activation_bits
    importance = 1.0 + int(layer.name[1:])
    return Cell(
        block=layer.name,
        option=Option((precision,)),
        nbytes=WEIGHTS * weight // 8 + SCALES,
        bit_operations=float(WEIGHTS * layer.positions * weight * inputs),
        error=importance * (4.0**-weight + 4.0**-inputs),
        weight_bits=WEIGHTS * weight,
        latency_s=1e-6 * layer.positions * (weight + inputs) if latency else None,
    )


def make_profile(*, latency: bool = False, no_kernel: int | None = None) -> Profile:
    cells = [
        make_cell(layer, Precision(*widths), latency=latency and widths[0] != no_kernel)
        for layer in LAYERS
        for widths in product(
            (8,) if layer.kind is LayerKind.EMBEDDING else BITS,
            (16,) if layer.kind is LayerKind.EMBEDDING else (4, 8),
        )
    ]
    return Profile(
        LAYERS, BLOCKS, tuple(cells), FIXED_NBYTES, {"latency_s": 5e-6} if latency else {}
    )


def make_spec(**sections: object) -> JobSpec:
    space = {"weight_bits": list(BITS), "activation_bits": [4, 8], "keep": {"e9": 8}}
    common = {"study": "s", "model": {"source": "reference"}, "data": {"source": "reference"}}
    return JobSpec.model_validate({**common, "space": space, **sections})


def objectives(*costs: str) -> list[str]:
    return ["error", *costs]


def searched_bits(search: ProxySearch, number: int) -> float:
    """The mean width of the four searched layers in a solution."""
    choice = search.solutions[number].choice
    return sum(choice[f"l{n}"].option.precisions[0].weight_bits for n in range(4)) / 4


def test_the_axis_is_bounded_in_bits_of_the_searched_weights_alone() -> None:
    spec = make_spec(search={"from_bits": 2.5, "to_bits": 4, "budgets": 9})

    search = ProxySearch(spec, make_profile())

    kept = WEIGHTS + SCALES  # the embedding at 8 bits
    assert search.pruned is not None
    assert search.pruned.from_budget == 4 * (WEIGHTS * 2.5 / 8 + SCALES) + kept
    assert search.pruned.to_budget == 4 * (WEIGHTS * 4 / 8 + SCALES) + kept
    assert searched_bits(search, 0) == 2.5
    assert searched_bits(search, -1) == 4


def test_bits_that_no_plan_can_have_are_named() -> None:
    spec = make_spec(search={"to_bits": 1.5})

    with pytest.raises(InfeasibleBudget, match=r"no plan holds search.to_bits 1.5: .* is 2$"):
        ProxySearch(spec, make_profile())


@pytest.mark.parametrize(
    ("objective", "resource"),
    [("bit_operations", Resource.BIT_OPERATIONS), ("latency_s", Resource.LATENCY_S)],
)
def test_without_bytes_the_axis_runs_over_the_objective(objective: str, resource: Resource) -> None:
    spec = make_spec(objectives=objectives(objective), search={"from_bits": 2.5, "to_bits": 8})

    search = ProxySearch(spec, make_profile(latency=True))

    amounts = [solution.amount(resource) for solution in search.solutions]
    errors = [solution.error for solution in search.solutions]
    assert len(amounts) > 3
    assert amounts == sorted(amounts)
    assert errors == sorted(errors, reverse=True)
    assert search.pruned is not None
    assert search.pruned.resource is resource
    assert search.notes == []
    assert search.widened().log10_size >= 0
    assert {seed.origin for seed in search.seeds()} == {Origin.BASELINE, Origin.PROGRAM}


@pytest.mark.parametrize(
    "constraints",
    [
        {"max_bit_operations": 300_000.0},
        {"max_bits": 5.5},
        {"max_latency_s": 1.2e-4},
        {"max_nbytes": 7000, "max_bit_operations": 300_000.0, "max_latency_s": 1.2e-4},
    ],
)
def test_every_plan_of_the_program_holds_the_limits(constraints: dict[str, float]) -> None:
    search = ProxySearch(make_spec(constraints=constraints), make_profile(latency=True))

    weights = FIXED_NBYTES // 2 + WEIGHTS * len(LAYERS)
    for solution in search.solutions:
        bits = solution.amount(Resource.WEIGHT_BITS) + 16 * (FIXED_NBYTES // 2)
        figures = {
            "max_nbytes": solution.amount(Resource.NBYTES) + FIXED_NBYTES,
            "max_bits": bits / weights,
            "max_bit_operations": solution.amount(Resource.BIT_OPERATIONS),
            "max_latency_s": solution.amount(Resource.LATENCY_S) + 5e-6,
        }
        for name, limit in constraints.items():
            assert figures[name] <= limit * (1 + 1e-12)
    unlimited = ProxySearch(make_spec(), make_profile(latency=True))
    assert unlimited.solutions[-1].error < search.solutions[-1].error


def test_a_limit_that_no_plan_holds_is_named_with_the_least_of_the_whole_model() -> None:
    spec = make_spec(constraints={"max_nbytes": 2000})
    least = FIXED_NBYTES + 4 * (WEIGHTS // 4 + SCALES) + WEIGHTS + SCALES

    with pytest.raises(InfeasibleBudget, match=f"max_nbytes 2,000: .* is {least:,}$"):
        ProxySearch(spec, make_profile())


def test_with_three_objectives_nothing_is_pruned_and_a_note_says_so() -> None:
    spec = make_spec(objectives=objectives("nbytes", "bit_operations"))

    search = ProxySearch(spec, make_profile())

    assert search.pruned is None
    assert len(search.notes) == 1


def test_an_option_without_a_kernel_is_left_out_where_latency_counts() -> None:
    spec = make_spec(objectives=objectives("latency_s"))

    search = ProxySearch(spec, make_profile(latency=True, no_kernel=3))

    left_out = [
        record for record in search.option_records() if record.certificate == {"kind": "no_kernel"}
    ]
    assert {r.cell.option.precisions[0].weight_bits for r in left_out} == {3}
    assert not any(record.survives for record in left_out)
    with pytest.raises(UnavailableDevice, match="block l0 has kernels"):
        ProxySearch(spec, make_profile())


def test_certificates_tell_their_resource_and_the_limits() -> None:
    spec = make_spec(
        objectives=objectives("bit_operations"),
        constraints={"max_nbytes": 6000},
        search={"epsilon": 0.0},
    )

    search = ProxySearch(spec, make_profile())

    certificates = [r.certificate for r in search.option_records() if "bounds" in r.certificate]
    assert certificates
    for certificate in certificates:
        assert certificate["resource"] == "bit_operations"
        assert certificate["limits"] == ["max_nbytes 6,000"]


def test_kept_layers_are_kept_in_every_seed_and_baselines_have_names() -> None:
    spec = make_spec()
    search = ProxySearch(spec, make_profile())

    seeds = search.seeds()

    assert {seed.configuration.plan.precision("e9").weight_bits for seed in seeds} == {8}
    baselines = [seed.configuration for seed in seeds if seed.origin is Origin.BASELINE]
    names = baseline_names(dict(enumerate(baselines)))
    assert names[0] == "16 bits"
    assert set(names.values()) >= {"w2a4", "w2a8", "w4a4"}
    assert len(names) == len(baselines)


def test_further_plans_are_the_optima_of_their_sizes_and_never_come_twice() -> None:
    spec = make_spec(search={"budgets": 3, "prune": False})
    search = ProxySearch(spec, make_profile())
    dense = make_spec(search={"budgets": 2000, "prune": False})
    every = {
        seed.configuration.digest for seed in ProxySearch(dense, make_profile()).program_seeds()
    }

    further = [seed.configuration.digest for seed in search.further_seeds()]

    first = {seed.configuration.digest for seed in search.program_seeds()}
    assert len(further) == len(set(further))
    assert first.isdisjoint(further)
    assert first | set(further) == every


def options_of(plan: Plan) -> dict[str, Option]:
    return {b.name: Option(tuple(plan.precision(name) for name in b.layers)) for b in BLOCKS}


def test_trials_correct_the_cells_and_the_program_is_solved_once_more() -> None:
    """Where l0 counts for ten times its cell beside others, the best plans are found after all."""
    settings = {"budgets": 12, "prune": False, "correct_cells": True}
    spec = make_spec(search=settings, objectives=objectives("nbytes"))
    profile = make_profile()
    search = ProxySearch(spec, profile)
    true = {
        (cell.block, cell.option): cell.error * (10 if cell.block == "l0" else 1)
        for cell in profile.cells
    }
    informed = ProxySearch(
        spec,
        replace(
            profile, cells=tuple(replace(c, error=true[c.block, c.option]) for c in profile.cells)
        ),
    )

    def trial(seed: Proposal, number: int) -> Trial:
        options = options_of(seed.configuration.plan)
        if any(place not in true for place in options.items()):
            values = {"error": 0.0}  # full precision has no cells
        else:
            divergence = sum(true[place] for place in options.items())
            values = {"error": divergence / 10, "divergence": divergence}
        return replace(Trial.of("s", number, seed), state=TrialState.COMPLETE, values=values)

    trials = [trial(seed, number) for number, seed in enumerate(search.seeds())]
    resolved = [
        seed.configuration.plan
        for seed in islice(search.further_seeds(lambda: trials), len(search.solutions))
    ]

    def excess(plans: list[Plan]) -> float:
        """By how much the true errors exceed the least of their sizes, as a mean share."""
        least = [informed._program.solve(solution.cost).error for solution in search.solutions]
        own = [sum(true[place] for place in options_of(plan).items()) for plan in plans]
        return sum(a / b - 1 for a, b in zip(own, least, strict=True)) / len(plans)

    unasked = ProxySearch(make_spec(search={**settings, "correct_cells": False}), profile)
    assert unasked.correction(trials) is None
    before = excess([search._plan(solution) for solution in search.solutions])
    assert before > 0.5
    assert excess(resolved) < before / 2


@pytest.mark.parametrize("limited", [True, False])
def test_swaps_find_what_the_cells_could_not_say(limited: bool) -> None:
    """Where l0 beside l1 errs much more than its cell says, a plan of the same size is better."""
    limits = {"constraints": {"max_nbytes": 7000}} if limited else {}
    spec = make_spec(search={"budgets": 3, "refine": True, "prune": False}, **limits)
    profile = make_profile()
    search = ProxySearch(spec, profile)
    errors = {(cell.block, cell.option): cell.error for cell in profile.cells}
    sizes = {(cell.block, cell.option): cell.nbytes for cell in profile.cells}

    def true(plan: Plan) -> float:
        options = options_of(plan)
        own = {name: errors[name, option] for name, option in options.items()}
        return sum(own.values()) + 20 * own["l0"] + 20 * own["l1"]

    trials: list[Trial] = []
    samples: dict[int, SampleResults] = {}

    def measure(seed: Proposal) -> float:
        plan, number = seed.configuration.plan, len(trials)
        if any(place not in errors for place in options_of(plan).items()):
            return math.inf
        values = {"error": 0.1, "divergence": true(plan)}
        trials.append(
            replace(Trial.of("s", number, seed), state=TrialState.COMPLETE, values=values)
        )
        samples[number] = SampleResults.of(
            [True] * 8, [true(plan) * (1 + n / 99) for n in range(8)]
        )
        return true(plan)

    def size(plan: Plan) -> int:
        return sum(sizes[place] for place in options_of(plan).items())

    for seed in {seed.configuration.digest: seed for seed in search.seeds()}.values():
        measure(seed)
    before = list(trials)
    for seed in islice(search.refinements(lambda: trials, lambda: samples), 60):
        assert seed.origin is Origin.REFINEMENT
        measure(seed)

    plans = [trial.configuration.plan for trial in trials]
    assert len(set(plans)) == len(plans), "nothing is tried twice"
    most = size(search._plan(search.solutions[-1]))
    largest = 7000 - FIXED_NBYTES if limited else most
    assert all(size(plan) <= largest for plan in plans[len(before) :])

    def least(some: list[Trial]) -> float:
        return min(
            true(t.configuration.plan) for t in some if size(t.configuration.plan) <= largest
        )

    everything = [
        Plan.from_options(zip(BLOCKS, chosen, strict=True))
        for chosen in product(*[[o for name, o in errors if name == b.name] for b in BLOCKS])
    ]
    best = min(true(plan) for plan in everything if size(plan) <= largest)
    assert least(trials) < least(before) or math.isclose(least(before), best)
    if limited:
        assert math.isclose(least(trials), best), "sixty swaps find the best of all plans"


def test_the_widest_gap_is_halved_first() -> None:
    search = ProxySearch(make_spec(search={"budgets": 3, "prune": False}), make_profile())
    sizes = sorted(solution.cost for solution in search.solutions)
    wide = max(range(1, len(sizes)), key=lambda n: sizes[n] / sizes[n - 1])

    seed = next(search.further_seeds())

    blocks = make_profile().blocks
    options = {(cell.block, cell.option): cell.nbytes for cell in make_profile().cells}
    plan = seed.configuration.plan
    size = sum(
        options[block.name, Option(tuple(plan.precision(layer) for layer in block.layers))]
        for block in blocks
    )
    assert sizes[wide - 1] < size < sizes[wide]


@pytest.mark.parametrize(
    ("recovery", "kinds"),
    [
        (None, [()]),
        ({"reduction": [2]}, [(), ("p4q",)]),
        ({"distil": {}}, [(), ("distil",)]),
        ({"distil": {}, "reduction": [2]}, [(), ("distil",), ("distil", "p4q")]),
    ],
)
def test_what_is_trained_comes_after_what_is_not(
    recovery: dict[str, object] | None, kinds: list[tuple[str, ...]]
) -> None:
    spec = make_spec()
    space = {**spec.space.model_dump(), "recovery": recovery}
    search = ProxySearch(
        JobSpec.model_validate({**spec.model_dump(), "space": space}), make_profile()
    )

    trained = [seed.configuration.trained_by for seed in search.seeds()]

    assert list(dict.fromkeys(trained)) == kinds
    assert trained == sorted(trained, key=kinds.index)


def test_the_greedy_walk_makes_the_plans_where_it_is_asked_for() -> None:
    settings = {"budgets": 9, "prune": False}
    profile = make_profile()
    exact = ProxySearch(make_spec(search=settings), profile)
    search = ProxySearch(make_spec(search={**settings, "allocator": "greedy"}), profile)

    assert search._budgets == exact._budgets
    assert [s.choice for s in search.solutions] != [s.choice for s in exact.solutions]
    assert not any(solution.proven for solution in search.solutions)
    for solution in search.solutions:
        assert exact._program.solve(solution.cost).error <= solution.error * (1 + 1e-9)
    further = [seed.configuration.digest for seed in search.further_seeds()]
    walked = {
        Configuration(search._plan(search._allocator(exact._program).solve(b))).digest
        for b in range(exact._program.floor, exact._program.ceiling + 1)
    }
    assert further
    assert set(further) <= walked


PLACES = [KvPlace(f"l{n}.self_attn", kept, 16) for n in range(2) for kept in Kept]


def with_cache(profile: Profile, *, is_searched: bool) -> Profile:
    """The profile with a cache of 100 tokens; keys of later layers err more than values."""
    forms = [KvFormat(bits) for bits in (2, 4, 16)]
    if not is_searched:
        return replace(
            profile, fixed_kv_nbytes=sum(place.nbytes(KvFormat(16), 100) for place in PLACES)
        )
    cells = [
        Cell(
            place.name,
            Option((), form),
            0,
            0.0,
            0.0 if form.bits == 16 else (3.0 + number) * 4.0**-form.bits,
            0,
            kv_nbytes=place.nbytes(form, 100),
        )
        for number, place in enumerate(PLACES)
        for form in forms
    ]
    counted = [replace(cell, kv_nbytes=0) for cell in profile.cells]
    blocks = (*profile.blocks, *(Block.of_place(place.name) for place in PLACES))
    return replace(profile, blocks=blocks, cells=(*counted, *cells))


def test_weights_and_cache_share_a_limit_on_the_memory() -> None:
    whole = with_cache(make_profile(), is_searched=True)
    profile = replace(whole, cells=tuple(c for c in whole.cells if "a4" not in str(c.option)))
    spec = make_spec(
        model={"source": "reference", "name": "digit-llava"},
        objectives=objectives("memory_nbytes"),
        constraints={"max_memory_nbytes": 15_000},
        context_tokens=100,
        search={"budgets": 5},
    )

    best = ProxySearch(spec, profile).solutions[-1]

    by_block = [[c for c in profile.cells if c.block == block.name] for block in profile.blocks]
    feasible = [
        sum(cell.error for cell in cells)
        for cells in product(*by_block)
        if sum(cell.memory_nbytes or 0 for cell in cells) + FIXED_NBYTES <= 15_000
    ]
    assert best.error == pytest.approx(min(feasible), rel=1e-12)
    assert best.amount(Resource.MEMORY_NBYTES) + FIXED_NBYTES <= 15_000
    assert best.amount(Resource.KV_NBYTES) > 0


def test_a_cache_that_is_not_searched_takes_its_share_of_the_memory() -> None:
    profile = with_cache(make_profile(), is_searched=False)
    fixed = profile.fixed_kv_nbytes
    profile = replace(profile, cells=tuple(replace(c, kv_nbytes=0) for c in profile.cells))
    spec = make_spec(
        objectives=objectives("memory_nbytes"),
        constraints={"max_memory_nbytes": 20_000},
        context_tokens=100,
    )

    most = max(x.amount(Resource.NBYTES) for x in ProxySearch(spec, profile).solutions)

    assert fixed == 4 * 2 * 16 * 100
    assert most + FIXED_NBYTES + fixed <= 20_000
    small = {**spec.model_dump(mode="json"), "constraints": {"max_memory_nbytes": fixed}}
    with pytest.raises(InfeasibleBudget, match="max_memory_nbytes"):
        ProxySearch(JobSpec.model_validate(small), profile)


def test_the_sampler_chooses_formats_of_the_cache() -> None:
    profile = with_cache(make_profile(), is_searched=True)
    spec = make_spec(objectives=objectives("memory_nbytes"), context_tokens=100)
    space = ProxySearch(spec, profile).space

    params = {variable.name: variable.size - 1 for variable in space.variables}
    plan = space.configuration(params).plan

    chosen = dict(plan.cache)
    assert {place.name for place in PLACES} >= set(chosen)
    assert space.params(space.configuration(params)) == params
    narrow = dict.fromkeys(params, 0)
    assert dict(space.configuration(narrow).plan.cache) == {
        place.name: KvFormat(2) for place in PLACES
    }
