"""Local linear regression from numbers to solutions, for several numbers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from warmstart.predictors import Problem, Solved, Vector
from warmstart.predictors.path import apart

__all__ = ["predict"]

_RIDGE = 1e-6
_FARTHEST = 1.5


def predict(problem: Problem, known: Sequence[Solved]) -> Vector | None:
    """Return the plane through the near solutions, here; None where they are too few or far.

    Weights fall with the square of the distance; the ridge is relative to the largest singular
    value.
    """
    names = sorted(problem.place.numbers)
    usable = [s for s in known if s.neighbour.shared == 1.0 and s.neighbour.distance > 0.0]
    if len(usable) < len(names) + 2 or len(names) < 2:
        return None
    ours = problem.place.numbers
    places = np.array(
        [[apart(s.neighbour.place.numbers[name], ours[name]) for name in names] for s in usable]
    )
    sizes = np.linalg.norm(places, axis=1)
    center = places.mean(axis=0)
    if np.linalg.norm(center) > _FARTHEST * np.linalg.norm(places - center, axis=1).max():
        return None
    weights = 1.0 / (sizes + 0.1 * sizes.max())
    design = np.column_stack([np.ones(len(usable)), places]) * weights[:, None]
    targets = np.array([s.x for s in usable]) * weights[:, None]
    gram = design.T @ design
    gram[np.diag_indices_from(gram)] += _RIDGE * np.linalg.norm(gram, 2)
    return np.asarray(np.linalg.solve(gram, design.T @ targets)[0])
