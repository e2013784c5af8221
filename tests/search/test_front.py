"""The front and the hypervolume against brute force and Optuna's own implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna._hypervolume.wfg import compute_hypervolume

from search.front import Front, Matrix, hypervolume, pareto_front

coarse = st.integers(0, 8).map(lambda n: n / 8)


def matrices(columns: int) -> st.SearchStrategy[Matrix]:
    return st.integers(1, 12).flatmap(
        lambda rows: arrays(np.float64, (rows, columns), elements=coarse)
    )


def brute_force(values: Matrix) -> list[int]:
    def dominates(a: Matrix, b: Matrix) -> bool:
        return bool((a <= b).all() and (a < b).any())

    return [i for i, b in enumerate(values) if not any(dominates(a, b) for a in values)]


@given(st.integers(2, 4).flatmap(matrices))
def test_the_front_is_the_brute_force_front(values: Matrix) -> None:
    assert pareto_front(values) == brute_force(values)


@given(st.integers(2, 4).flatmap(matrices))
def test_hypervolume_is_optunas(values: Matrix) -> None:
    reference = np.ones(values.shape[1])

    ours = hypervolume(values, reference.tolist())

    assert ours == pytest.approx(compute_hypervolume(values, reference), abs=1e-12)


def test_hypervolume_is_a_share_of_the_reference_box() -> None:
    assert hypervolume(np.array([[5.0, 200.0]]), (10.0, 400.0)) == pytest.approx(0.25)


def test_points_beyond_the_reference_add_nothing() -> None:
    assert hypervolume(np.array([[0.5, 2.0], [1.0, 0.0]]), (1.0, 1.0)) == 0.0


@given(st.integers(2, 3).flatmap(matrices))
def test_a_front_grown_trial_by_trial_is_the_front_of_all(values: Matrix) -> None:
    front = Front(np.ones(values.shape[1]).tolist())
    members: set[int] = set()
    volumes = [0.0]

    for number, row in enumerate(values):
        change = front.add(number, row.tolist())
        members = (members - set(change.removed)) | set(change.added)
        volumes.append(change.hypervolume)

    assert sorted(members) == brute_force(values) == list(front.numbers)
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(hypervolume(values, front.reference), abs=1e-12)
