"""The solvers' inner loops for the CPU, compiled by numba: torch takes an operation a column.

Rows do not depend on each other. A few at a time share each line of the Hessian, which then
comes from memory once for all of them; a code that stays costs nothing but the look at it.
"""

from collections.abc import Callable
from typing import Final, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

_F = TypeVar("_F", bound=Callable[..., object])
_ROWS: Final = 16


def _compiled(function: _F) -> _F:
    """The function as machine code, kept beside this file or in the person's cache folder."""
    try:
        return cast("_F", njit(cache=True)(function))
    except RuntimeError:  # neither can be written: each process then compiles for itself
        return cast("_F", njit(function))


@_compiled
def nearest(place: float, top: float, points: NDArray[np.float64]) -> float:
    """The point nearest to a place: a whole number up to `top`, or one of `points` in order."""
    if points.size == 0:
        return float(min(max(np.rint(place), 0.0), top))
    above = np.searchsorted(points, place)
    if above == 0:
        return float(points[0])
    if above == points.size or place - points[above - 1] <= points[above] - place:
        return float(points[above - 1])
    return float(points[above])


@_compiled
def sweep(
    gradient: NDArray[np.float64],
    codes: NDArray[np.float64],
    scale: NDArray[np.float64],
    group_of: NDArray[np.int64],
    hessian: NDArray[np.float64],
    order: NDArray[np.int64],
    top: float,
    points: NDArray[np.float64],
) -> bool:
    """Gives each code its best value with the others fixed; whether one changed.

    Args:
        gradient: `(T - Q) H`, `(rows, columns)`; changes with the codes, in place.
        codes: `(rows, columns)`, whole numbers or points; changes in place.
        scale: `(rows, groups)`.
        group_of: The group of each column.
        hessian: `H`, `(columns, columns)`.
        order: The columns as they are visited.
        top: The largest code.
        points: The levels of another format than integers, in order; empty for integers.
    """
    rows, columns = codes.shape
    has_changed = False
    for first in range(0, rows, _ROWS):
        for column in order:
            line, group = hessian[column], group_of[column]
            curvature = line[column]
            for row in range(first, min(first + _ROWS, rows)):
                step, code = scale[row, group], codes[row, column]
                place = code + gradient[row, column] / (curvature * step)
                best = nearest(place, top, points)
                if best != code:
                    moved = (best - code) * step
                    for other in range(columns):
                        gradient[row, other] -= moved * line[other]
                    codes[row, column] = best
                    has_changed = True
    return has_changed


@_compiled
def spread(
    rest: NDArray[np.float64],
    codes: NDArray[np.float64],
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    group_of: NDArray[np.int64],
    order: NDArray[np.int64],
    factor: NDArray[np.float64],
    top: float,
    points: NDArray[np.float64],
) -> None:
    """Gives each code its nearest level, and spreads its error over the columns after it.

    Args:
        rest: What is left of the target, `(rows, columns)`, in the order of `order`; changes in
            place.
        codes: `(rows, columns)`; what is written.
        scale: `(rows, groups)`.
        zero: `(rows, groups)`.
        group_of: The group of each column.
        order: The columns as they are visited.
        factor: The upper Cholesky factor of the inverse Hessian, in the order of `order`.
        top: The largest code.
        points: The levels of another format than integers, in order; empty for integers.
    """
    rows, columns = codes.shape
    for first in range(0, rows, _ROWS):
        for place in range(columns):
            column, line = order[place], factor[place]
            group = group_of[column]
            for row in range(first, min(first + _ROWS, rows)):
                step, level = scale[row, group], zero[row, group]
                code = nearest(rest[row, place] / step + level, top, points)
                codes[row, column] = code
                error = (rest[row, place] - step * (code - level)) / line[place]
                for other in range(place + 1, columns):
                    rest[row, other] -= error * line[other]
