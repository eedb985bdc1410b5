"""A curve's model to second order: what it is around a solution, without a call of it.

About the point at which the Jacobian was taken, with ``x = at + basis @ z``,

    values + jacobian @ basis @ z + z' second z / 2,

where a `z` of length one is about a standard error, so that sloppy directions are seen as far as
replicates go in them (the coordinates of Bates and Watts 1988, section 7.2). Taking the second
derivatives costs n (n + 1) / 2 evaluations, once; from then on replicates are predicted by
minimizing the model, and near them it stands in for Jacobians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warmstart.predictors import Curve, Curved, Linearized, Problem, Solved, Vector
from warmstart.predictors.gauss_newton import match, misfit

__all__ = ["build", "jacobian", "predict", "price", "values"]

_STEP = 0.1
"""Standard errors by which differences are taken."""
_RANK = 1e-13
"""Singular values, relative to the largest, below which the data say nothing."""
_NOISE = 1e-6
"""Part of the values that residuals are taken to have at least."""
_CURVED = 0.5
"""Second-order part, relative to the first, beyond which the third is not small either."""
_LARGEST = 250_000
"""Numbers that are kept: 2 MB."""


def price(size: int) -> int:
    """Return how many evaluations the second derivatives take, for so many parameters."""
    return size * (size + 1) // 2


def build(
    function: Callable[[Vector], Vector], linear: Linearized, weights: Vector, y: Vector
) -> Curved | None:
    """Take the second derivatives of a model by forward differences.

    Parameters
    ----------
    function : callable
        The model's values at a point.
    linear : Linearized
        The model about the point, its rows in the order of the values.
    weights, y : (m,) arrays
        As `Curve` has them.

    Returns
    -------
    Curved or None
        None if the model has no more to say than its Jacobian: it fails near by, is not finite,
        or is too large to be kept.
    """
    count, size = linear.jacobian.shape
    if count * size * size > _LARGEST or count <= size:
        return None
    residuals = weights * (linear.values - y)
    level = max(
        float(np.linalg.norm(residuals)) / np.sqrt(count - size),
        _NOISE * float(np.linalg.norm(weights * linear.values)) / np.sqrt(count),
    )
    # Columns of very different sizes are first made alike.
    scale = np.linalg.norm(weights[:, None] * linear.jacobian, axis=0)
    if not (np.isfinite(scale).all() and np.all(scale > 0.0) and level > 0.0):
        return None
    _, singular, right = np.linalg.svd(weights[:, None] * linear.jacobian / scale)
    if singular[-1] <= _RANK * singular[0]:
        return None
    basis = level * (right.T / singular) / scale[:, None]
    slopes = linear.jacobian @ basis
    second = np.empty((count, size, size))
    steps = _STEP * basis.T
    try:
        ahead = [np.asarray(function(linear.at + step), float) for step in steps]
        for i in range(size):
            second[:, i, i] = (ahead[i] - linear.values - _STEP * slopes[:, i]) * 2.0
            for j in range(i):
                both = np.asarray(function(linear.at + steps[i] + steps[j]), float)
                second[:, i, j] = second[:, j, i] = both - ahead[i] - ahead[j] + linear.values
    except Exception:  # noqa: BLE001 (the user's function, where scipy might never have gone)
        return None
    second /= _STEP**2
    return Curved(linear, basis, second) if np.isfinite(second).all() else None


def _coordinates(model: Curved, x: Vector) -> Vector:
    return np.asarray(np.linalg.solve(model.basis, x - model.linear.at))


def values(model: Curved, x: Vector) -> Vector:
    """Return the model's values at a point."""
    z = _coordinates(model, x)
    linear = model.linear
    return np.asarray(linear.values + linear.jacobian @ (x - linear.at) + model.second @ z @ z / 2)


def jacobian(model: Curved, x: Vector) -> Vector:
    """Return its Jacobian at a point."""
    turned = model.second @ _coordinates(model, x)
    return np.asarray(model.linear.jacobian + np.linalg.solve(model.basis.T, turned.T).T)


def taken(model: Curved, places: NDArray[np.intp]) -> Curved:
    """Return the model of some of the rows."""
    linear = model.linear
    rows = linear._replace(
        rows=linear.rows[places], values=linear.values[places], jacobian=linear.jacobian[places]
    )
    return Curved(rows, model.basis, model.second[places])


def predict(problem: Problem, known: Sequence[Solved]) -> Vector | None:
    """Return the minimum of the sum of squares, to second order; None where nothing is known.

    Gauss-Newton steps from the minimum to first order, each halved until it improves; never
    further than twice the first step, in the metric of the Jacobian.
    """
    curve = problem.curve
    if curve is None:
        return None
    for solved in sorted(known, key=lambda one: misfit(curve, one)):
        if solved.curved is None or solved.neighbour.distance > 0.0:
            continue
        places, there = match(solved.curved.linear, curve)
        if there.all() and there.sum() >= problem.size:
            return _minimum(taken(solved.curved, places), curve)
    return None


def _minimum(model: Curved, curve: Curve) -> Vector | None:
    linear, weights = model.linear, curve.weights
    slopes = weights[:, None] * (linear.jacobian @ model.basis)
    offset = weights * (linear.values - curve.y)
    second = weights[:, None, None] * model.second

    def residuals(z: Vector) -> Vector:
        return np.asarray(offset + slopes @ z + second @ z @ z / 2)

    z = np.zeros(slopes.shape[1])
    radius = np.inf
    left = residuals(z)
    for _ in range(30):
        step, *_ = np.linalg.lstsq(slopes + second @ z, -left, rcond=None)
        if not np.isfinite(step).all():
            return None
        if radius == np.inf:
            radius = 2.0 * float(np.linalg.norm(slopes @ step))
        for _ in range(8):
            moved = z + step
            there = residuals(moved)
            inside = np.linalg.norm(slopes @ moved) <= radius
            if inside and there @ there <= left @ left:
                break
            step = step / 2.0
        else:
            return None
        z, left = moved, there
        if np.linalg.norm(slopes @ step) <= 1e-6 * radius:
            break
    else:
        return None
    if np.linalg.norm(second @ z @ z / 2) > _CURVED * np.linalg.norm(slopes @ z):
        return None
    return np.asarray(linear.at + model.basis @ z)
