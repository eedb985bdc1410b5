"""A Gauss-Newton step from a near curve fit, on the rows that both have: no evaluation at all.

What the model was at a row does not change with the data that it is compared with: new values,
new weights, rows that were drawn twice or left out are all known from the near fit's model and
Jacobian (Bjorck 1996, section 9.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warmstart.predictors import Curve, Linearized, Problem, Solved, Vector

__all__ = ["match", "misfit", "predict"]

_SHARED = 0.5
"""Of the rows, at least."""


def match(model: Linearized, curve: Curve) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where in a model each row of a curve stands, and whether it is there at all."""
    order = np.argsort(model.rows)
    places = np.searchsorted(model.rows[order], curve.rows)
    places = order[np.minimum(places, len(order) - 1)]
    return places, model.rows[places] == curve.rows


def misfit(curve: Curve, solved: Solved) -> tuple[float, float]:
    """Return how badly a near fit explains this curve.

    Returns
    -------
    tuple of (float, float)
        The part of the rows that it does not know, and the mean square of the residuals that it
        leaves on the others.
    """
    if solved.linearized is None:
        return 1.0, np.inf
    places, there = match(solved.linearized, curve)
    if not there.any():
        return 1.0, np.inf
    left = (curve.weights * (solved.linearized.values[places] - curve.y))[there]
    return 1.0 - float(there.mean()), float(left @ left) / len(left)


def predict(problem: Problem, known: Sequence[Solved]) -> Vector | None:
    """Return the minimum of the linearized problem; None without one that shares the rows."""
    curve = problem.curve
    if curve is None:
        return None
    for solved in sorted(known, key=lambda one: misfit(curve, one)):
        model = solved.linearized
        if model is None or solved.neighbour.distance > 0.0:
            continue
        places, there = match(model, curve)
        if there.mean() < _SHARED or there.sum() < problem.size:
            continue
        weights = curve.weights[there]
        residuals = weights * (model.values[places[there]] - curve.y[there])
        jacobian = weights[:, None] * model.jacobian[places[there]]
        if not (np.isfinite(jacobian).all() and np.isfinite(residuals).all()):
            continue
        step, *_ = np.linalg.lstsq(jacobian, -residuals, rcond=None)
        return np.asarray(model.at + step)
    return None
