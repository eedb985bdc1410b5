"""Extrapolation along one number: a polynomial through the nearest solutions.

The order, 0 to 4, is the one that would have predicted the nearest solution best from the others;
so noise is not extrapolated. Interpolation by Neville's scheme (Stoer and Bulirsch 2002, 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from warmstart.predictors import Problem, Solved, Vector

__all__ = ["apart", "predict"]

_HIGHEST = 4
_FARTHEST = 2.0
"""Steps of the path beyond its end up to which it is extrapolated."""


def predict(problem: Problem, known: Sequence[Solved]) -> Vector | None:
    """Return the extrapolated solution; None if fewer than two lie on one path with this fit."""
    path = _path(problem, known)
    if len(path) < 2:
        return None
    places, solutions = [place for place, _ in path], [x for _, x in path]
    spacing = min(abs(a - b) for i, a in enumerate(places) for b in places[:i])
    if abs(places[0]) > _FARTHEST * max(spacing, abs(places[1] - places[0])):
        return None
    order = _best_order(places, solutions)
    return _value(places, solutions, order, 0.0)


def _path(problem: Problem, known: Sequence[Solved]) -> list[tuple[float, Vector]]:
    """Return the solutions that differ in one number alone, the nearest first, by how much."""
    ours = problem.place.numbers
    paths: dict[str, dict[float, Vector]] = {}
    for solved in known:
        theirs = solved.neighbour.place.numbers
        differing = [name for name in ours if theirs[name] != ours[name]]
        if solved.neighbour.shared == 1.0 and len(differing) == 1:
            (name,) = differing
            paths.setdefault(name, {}).setdefault(apart(theirs[name], ours[name]), solved.x)
    longest = max(paths.values(), key=len, default={})
    return sorted(longest.items(), key=lambda item: abs(item[0]))


def apart(theirs: float, ours: float) -> float:
    """Return how far a number is from ours: in its logarithm, where that is possible."""
    if (theirs > 0.0 and ours > 0.0) or (theirs < 0.0 and ours < 0.0):
        return math.log(abs(theirs)) - math.log(abs(ours))
    return theirs - ours


def _value(places: Sequence[float], solutions: Sequence[Vector], order: int, at: float) -> Vector:
    """Return the polynomial through the first points, at a place."""
    values = [solution.copy() for solution in solutions[: order + 1]]
    for width in range(1, order + 1):
        for i in range(order + 1 - width):
            left, right = places[i], places[i + width]
            values[i] = ((at - right) * values[i] - (at - left) * values[i + 1]) / (left - right)
    return values[0]


def _best_order(places: Sequence[float], solutions: Sequence[Vector]) -> int:
    """Return the order that predicts the nearest solution best from the others."""
    orders = range(min(_HIGHEST, len(places) - 2) + 1)
    errors = [
        float(np.linalg.norm(_value(places[1:], solutions[1:], order, places[0]) - solutions[0]))
        for order in orders
    ]
    # With two points there is nothing to compare with: a line.
    return int(np.argmin(errors)) if len(places) > 2 else 1
