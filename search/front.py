"""The Pareto front and its hypervolume; every objective is minimised."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitfront.trial import FrontChange

Matrix = NDArray[np.float64]


def pareto_front(values: Matrix) -> list[int]:
    """The rows that no other row dominates, in ascending order of index.

    Args:
        values: `(n, m)`, finite. A row dominates another if it is nowhere larger and
            somewhere smaller; equal rows do not dominate each other, so both stay.
    """
    unique, members = np.unique(values, axis=0, return_inverse=True)
    # Sorted lexicographically, a row can only be dominated by one above it.
    kept = np.ones(len(unique), dtype=bool)
    if unique.shape[1] == 2:
        best_before = np.minimum.accumulate(unique[:, 1])
        kept[1:] = unique[1:, 1] < best_before[:-1]
    else:
        for index, row in enumerate(unique):
            if kept[index]:
                kept[index + 1 :] &= (unique[index + 1 :] < row).any(axis=1)
    return [int(index) for index in np.flatnonzero(kept[members.reshape(-1)])]


def hypervolume(values: Matrix, reference: Sequence[float]) -> float:
    """The volume that the rows dominate, as a share of the box from 0 to the reference.

    Args:
        values: `(n, m)`, non-negative. Rows that do not improve on the reference in every
            objective add nothing.
        reference: `(m,)`, positive: the worst value of each objective that still counts.
    """
    scaled = values / np.asarray(reference, dtype=np.float64)
    inside = scaled[(scaled < 1).all(axis=1)]
    if not len(inside):
        return 0.0
    return _volume(inside[pareto_front(inside)])


def _volume(front: Matrix) -> float:
    """The volume between the rows of a front and the all-ones corner.

    Slices along the last objective and sums area times height, down to two objectives.
    """
    if front.shape[1] == 1:
        return float(1 - front.min())
    if front.shape[1] == 2:
        ordered = front[np.argsort(front[:, 0], kind="stable")]
        ceilings = np.minimum.accumulate(np.concatenate(([1.0], ordered[:-1, 1])))
        return float(((1 - ordered[:, 0]) * np.maximum(ceilings - ordered[:, 1], 0)).sum())
    ordered = front[np.argsort(front[:, -1], kind="stable")]
    floors = np.append(ordered[1:, -1], 1.0)
    total = 0.0
    for count, (low, high) in enumerate(zip(ordered[:, -1], floors, strict=True), start=1):
        if high > low:
            slab = ordered[:count, :-1]
            total += float(high - low) * _volume(slab[pareto_front(slab)])
    return total


class Front:
    """The front of the trials seen so far, by trial number."""

    def __init__(self, reference: Sequence[float]) -> None:
        self.reference = tuple(reference)
        self._rows: dict[int, tuple[float, ...]] = {}
        self.hypervolume = 0.0

    @property
    def numbers(self) -> tuple[int, ...]:
        """The trials on the front, in ascending order."""
        return tuple(sorted(self._rows))

    @property
    def points(self) -> tuple[tuple[float, ...], ...]:
        """The values of the trials on the front."""
        return tuple(self._rows.values())

    def add(self, number: int, values: Sequence[float]) -> FrontChange:
        """Takes in one feasible trial, and tells what changes."""
        row = np.asarray(values, dtype=np.float64)
        numbers = list(self._rows)
        front = np.array(list(self._rows.values())).reshape(len(numbers), len(row))
        if ((front <= row).all(axis=1) & (front < row).any(axis=1)).any():
            return FrontChange((), (), self.hypervolume)
        beaten = (row <= front).all(axis=1) & (row < front).any(axis=1)
        removed = tuple(numbers[index] for index in np.flatnonzero(beaten))
        for old in removed:
            del self._rows[old]
        self._rows[number] = tuple(float(value) for value in row)
        # Round-off in the sum must not let the recorded volume fall.
        volume = hypervolume(np.array(list(self._rows.values())), self.reference)
        self.hypervolume = max(self.hypervolume, volume)
        return FrontChange((number,), removed, self.hypervolume)
