"""Questions to all studies of one model, against brute force, and what is never compared."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.errors import SpecError
from bitfront.trial import TrialState
from search.front import Front
from service.cli import main
from service.database_url import file_url
from service.views.cross_study_front import cross_study_front
from storage.records import Limits
from storage.store import Store, open_store
from tests.support.store_samples import complete, finished, job, running, trial

Point = tuple[str, int, tuple[float, ...]]


def search(
    store: Store,
    name: str,
    rows: Sequence[Sequence[float]],
    provenance: Mapping[str, str],
    objectives: Sequence[str] = ("error", "nbytes"),
) -> None:
    """A study that found these rows; every fifth one breaks a constraint."""
    store.create_study(job(name, objectives=list(objectives)), {})
    lease = store.acquire(name, "me", 60)
    store.set_provenance(lease, provenance)
    front = Front([1e9] * len(objectives))
    for number, row in enumerate(rows):
        store.start_trial(lease, trial(number))
        feasible = number % 5 != 4
        complete(
            store,
            lease,
            number,
            dict(zip(objectives, row, strict=True)),
            metrics={} if "nbytes" in objectives else {"nbytes": 7.0},
            constraints={"max_bits": 0.0 if feasible else 1.0},
            front=front.add(number, row) if feasible else None,
        )


def rows_of(generator: random.Random, count: int, width: int) -> list[tuple[float, ...]]:
    """Random rows with many ties."""
    return [tuple(float(generator.randrange(1, 9)) / 8 for _ in range(width)) for _ in range(count)]


def brute_front(store: Store, names: Sequence[str], objectives: Sequence[str]) -> set[Point]:
    points = [
        (name, stored.number, tuple(stored.values[objective] for objective in objectives))
        for name in names
        for stored in store.trials(name)
        if stored.state is TrialState.COMPLETE and stored.is_feasible
    ]

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return {point for point in points if not any(beats(p[2], point[2]) for p in points)}


def joint(store: Store, model: str) -> tuple[tuple[str, ...], set[Point]]:
    fronts = store.model_fronts(model)
    found = cross_study_front(fronts)
    errors = [trial.values["error"] for trial in found]
    assert errors == sorted(errors)
    return fronts.objectives, {
        (trial.study, trial.number, tuple(trial.values[o] for o in fronts.objectives))
        for trial in found
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_joint_front_agrees_with_brute_force_over_all_trials(store: Store, seed: int) -> None:
    generator = random.Random(seed)
    for name in ("a", "b", "c"):
        search(store, name, rows_of(generator, 12, 2), {"model": "m", "selection": "s"})
    search(store, "other", [(0.001, 0.001)], {"model": "another", "selection": "s"})
    running(store, "empty")

    objectives, found = joint(store, "m")

    assert objectives == ("error", "nbytes")
    assert found == brute_front(store, ("a", "b", "c"), objectives)


def test_three_shared_objectives_are_compared_together(store: Store) -> None:
    generator = random.Random(3)
    names = ("error", "nbytes", "latency_s")
    for name in ("a", "b"):
        facts = {"model": "m", "selection": "s", "device": "cpu"}
        search(store, name, rows_of(generator, 12, 3), facts, names)

    objectives, found = joint(store, "m")

    assert objectives == names
    assert found == brute_front(store, ("a", "b"), names)


def test_an_objective_that_one_study_lacks_does_not_count(store: Store) -> None:
    generator = random.Random(4)
    facts = {"model": "m", "selection": "s"}
    search(store, "a", rows_of(generator, 10, 3), facts, ("error", "nbytes", "bit_operations"))
    search(store, "b", rows_of(generator, 10, 2), facts)

    objectives, found = joint(store, "m")

    assert objectives == ("error", "nbytes")
    best = {values for _, _, values in found}
    assert best == {values for _, _, values in brute_front(store, ("a", "b"), objectives)}


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ({"device": "cpu"}, {"device": "H200"}, "on different devices"),
        ({}, {"latency": "onnxruntime 1.32.0 on a cpu"}, "in different runtimes"),
    ],
    ids=["device", "runtime"],
)
def test_latencies_of_two_devices_or_runtimes_are_not_compared(
    store: Store, first: dict[str, str], second: dict[str, str], difference: str
) -> None:
    names = ("error", "nbytes", "latency_s")
    shared = {"model": "m", "selection": "s", "device": "cpu"}
    for name, facts, row in (("a", first, (0.1, 10, 5.0)), ("b", second, (0.2, 20, 0.1))):
        search(store, name, [row], {**shared, **facts}, names)

    objectives, found = joint(store, "m")

    assert objectives == ("error", "nbytes")
    assert found == {("a", 0, (0.1, 10.0))}
    fast = Limits(max_latency_s=1.0)
    refusal = rf"measured their latency {difference} \(a \| b\): name one of them as STUDY"
    with pytest.raises(SpecError, match=refusal):
        store.best(None, fast, model="m")
    with pytest.raises(SpecError, match=refusal):
        store.nearest(None, fast, model="m")
    by_error = store.best(None, model="m")
    assert by_error is not None
    assert by_error.study == "a"


def test_errors_on_different_selection_data_are_never_compared(store: Store) -> None:
    for name, selection in (("a", "s1"), ("b", "s2"), ("c", "s1")):
        search(store, name, [(0.1, 10)], {"model": "m", "selection": selection})

    refusal = (
        r"the studies of model 'm' measured their errors on different selection data "
        r"\(a, c \| b\): name one of them as STUDY"
    )
    with pytest.raises(SpecError, match=refusal):
        store.best(None, model="m")
    with pytest.raises(SpecError, match=refusal):
        store.nearest(None, Limits(max_nbytes=1), model="m")
    with pytest.raises(SpecError, match=refusal):
        store.model_fronts("m")
    alone = store.best("b")
    assert alone is not None
    assert alone.study == "b"


def test_unknown_selection_data_count_as_different(store: Store) -> None:
    search(store, "a", [(0.1, 10)], {"model": "m", "selection": "s"})
    search(store, "b", [(0.2, 10)], {"model": "m"})

    with pytest.raises(SpecError, match=r"\(a \| b\)"):
        store.best(None, model="m")


def test_a_study_without_results_is_no_obstacle(store: Store) -> None:
    search(store, "a", [(0.1, 10)], {"model": "m", "selection": "s1"})
    search(store, "b", [], {"model": "m", "selection": "s2"})

    found = store.best(None, model="m")

    assert found is not None
    assert store.model_fronts("m").studies == ("a",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two studies of a model, and one on other data."""
    database = tmp_path / "studies.db"
    facts = {"model": "m", "selection": "s"}
    with open_store(file_url(database)) as store:
        search(store, "left", [(0.1, 2000), (0.3, 1000)], facts)
        search(store, "right", [(0.2, 1500), (0.4, 900), (0.5, 1900)], facts)
        search(store, "elsewhere", [(0.01, 10)], {"model": "n", "selection": "t"})
    return database


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(path)])


def test_the_front_of_a_model_names_the_study_of_each_trial(path: Path) -> None:
    result = run(path, "front", "--model", "m")

    assert result.exit_code == 0
    assert result.stderr == "by error and nbytes over the studies left, right\n"
    assert result.stdout == (
        "study  trial   error  test error     size  bits/weight  recovery  origin\n"
        "left       0  10.0 %           -  2.00 kB            -  -         sampler\n"
        "right      0  20.0 %           -  1.50 kB            -  -         sampler\n"
        "left       1  30.0 %           -  1.00 kB            -  -         sampler\n"
        "right      1  40.0 %           -    900 B            -  -         sampler\n"
    )


def test_the_front_of_a_model_as_json_holds_studies_and_configurations(path: Path) -> None:
    text = run(path, "front", "--model", "m", "--format", "json").stdout

    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["study"], row["trial"]) for row in rows] == [
        ("left", 0),
        ("right", 0),
        ("left", 1),
        ("right", 1),
    ]
    assert rows[1]["configuration"] == trial(0).configuration.to_dict()


def test_the_best_of_a_model_names_its_study(path: Path) -> None:
    result = run(path, "best", "--model", "m", "--max-nbytes", "1.9kB")
    content = run(path, "best", "--model", "m", "--max-error", "0.25", "--format", "json").stdout

    assert result.stdout.startswith("study        right\ntrial        0 (sampler)\n")
    assert json.loads(content)["study"] == "right"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("best",), 2, "Error: name a STUDY, or all studies of a model with --model NAME\n"),
        (("front",), 2, "Error: name a STUDY, or all studies of a model with --model NAME\n"),
        (("best", "left", "--model", "m"), 2, "Error: name a STUDY or a --model, not both\n"),
        (("front", "left", "--model", "m"), 2, "Error: name a STUDY or a --model, not both\n"),
        (
            ("front", "--model", "resnet"),
            2,
            "Error: no study has searched a model 'resnet'; searched are: digit-clip\n",
        ),
        (
            ("front", "--model", "digit-clip"),
            2,
            "Error: the name 'digit-clip' stands for several models: name one of m, n\n",
        ),
        (
            ("best", "--model", "m", "--max-nbytes", "850"),
            1,
            "Error: model 'm' has no trial with size at most 850 B: the nearest is trial 1 of "
            "study 'right' with 900 B (6 % over), error 40.0 %\n",
        ),
        (
            ("best", "--model", "m", "--max-latency-s", "1"),
            1,
            "Error: model 'm' has no trial with a measured latency\n",
        ),
    ],
)
def test_a_question_without_an_answer_is_one_sentence(
    path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run(path, *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_a_model_whose_studies_found_nothing_yet_has_an_empty_front(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    with open_store(file_url(path)) as store:
        lease = running(store)
        store.set_provenance(lease, {"model": "m", "selection": "s"})

    front = run(path, "front", "--model", "m", "--format", "csv")
    best = run(path, "best", "--model", "m")

    assert (front.exit_code, front.stdout) == (0, "")
    assert front.stderr == "model m has no complete trial yet: see 'bitfront list'\n"
    assert best.stderr == "Error: model 'm' has no complete trial yet: see 'bitfront list'\n"


def test_ties_between_studies_are_broken_alike_in_every_database(store: Store) -> None:
    for name in ("b", "a"):
        lease = running(store, name)
        store.set_provenance(lease, {"model": "m"})
        finished(store, lease, 0, error=0.5, nbytes=9)

    best = store.best(None, model="m")

    assert best is not None
    assert best.study == "b"
