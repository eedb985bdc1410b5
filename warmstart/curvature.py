"""What is known of an objective besides its value: curvature gathered, carried, and descended by.

An inverse Hessian comes from the points and gradients that a fit went through (BFGS updates in
their order, Nocedal and Wright 2006, section 6.1), from differences of gradients, or from
another fit. `descend` minimizes with one, and watches whether what it promises comes true.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Descent", "Evaluator", "Gathered", "descend", "differences", "inverse", "updated"]

Vector = NDArray[np.float64]

_LARGEST = 700
"""Parameters up to which a matrix is kept: 4 MB."""
_KEPT = 48
"""Points and gradients that are remembered while a fit runs."""
_ARMIJO = 1e-4


def updated(metric: Vector, step: Vector, change: Vector) -> Vector:
    """Return an inverse Hessian that maps `change` of the gradient to `step` (BFGS).

    The same matrix, if the two contradict a minimum.
    """
    product = float(step @ change)
    if product <= 1e-10 * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return metric
    moved = metric @ change
    weight = (1.0 + float(change @ moved) / product) / product
    made = metric + weight * np.outer(step, step)
    made -= (np.outer(moved, step) + np.outer(step, moved)) / product
    return np.asarray((made + made.T) / 2.0)


class Gathered:
    """The last points and gradients of a fit, and the inverse Hessian that they make.

    Parameters
    ----------
    size : int
        Number of parameters; none are kept beyond 700.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: OrderedDict[bytes, tuple[Vector, Vector]] = OrderedDict()

    def add(self, x: Vector, gradient: Vector) -> None:
        """Note the gradient at a point."""
        if self._size <= _LARGEST and np.all(np.isfinite(gradient)):
            self._seen[x.tobytes()] = (x.copy(), gradient.copy())
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)

    def metric(self) -> Vector | None:
        """Return the inverse Hessian that the pairs make."""
        points = list(self._seen.values())
        pairs = [(x2 - x, g2 - g) for (x, g), (x2, g2) in itertools.pairwise(points)]
        pairs = [(step, change) for step, change in pairs if step @ change > 0.0]
        if not pairs:
            return None
        # Directions in which nothing was seen are as flat as the flattest that was: scaled by
        # the first pair, as is usual, a next fit took 49 evaluations, so 11 (cold 25; logistic
        # regression, 31 parameters, 2026-11).
        metric = np.eye(self._size) * max(float(s @ c) / float(c @ c) for s, c in pairs)
        for step, change in pairs:
            metric = updated(metric, step, change)
        return metric if np.all(np.isfinite(metric)) else None


def differences(
    gradient: Callable[[Vector], Vector], x: Vector, at: Vector, limits: tuple[Any, Any]
) -> Vector | None:
    """Return the inverse Hessian at a point by as many differences of gradients as parameters.

    Parameters
    ----------
    gradient : callable
        Of the objective.
    x, at : (n,) arrays
        The point, and the gradient there.
    limits : tuple
        Lower and upper bounds; steps are taken inside.

    Returns
    -------
    (n, n) array or None
        None where it is not positive definite.
    """
    steps = np.sqrt(np.finfo(float).eps) * np.maximum(1.0, np.abs(x)) * 10.0
    steps = np.where(x + steps > limits[1], -steps, steps)
    rows = []
    for place, step in enumerate(steps):
        moved = x.copy()
        moved[place] += step
        rows.append((gradient(moved) - at) / (moved[place] - x[place]))
    return inverse(np.array(rows))


def inverse(hessian: Vector) -> Vector | None:
    """Return the inverse of a Hessian's symmetric part; None if that is not positive definite."""
    try:
        factor = np.linalg.inv(np.linalg.cholesky((hessian + hessian.T) / 2.0))
    except np.linalg.LinAlgError:
        return None
    made = np.asarray(factor.T @ factor)
    return made if np.isfinite(made).all() else None


class Evaluator:
    """An objective and its gradient, evaluated once at a point; the points in memory are few.

    Parameters
    ----------
    both : callable
        Returns the objective and the gradient at a point.
    """

    def __init__(self, both: Callable[[Vector], tuple[float, Vector]]) -> None:
        self._both = both
        self._known: OrderedDict[bytes, tuple[float, Vector]] = OrderedDict()
        self.evaluations = 0

    def __call__(self, x: Vector) -> tuple[float, Vector]:
        """Return both; counted only where they were not known."""
        name = x.tobytes()
        if name not in self._known:
            self.evaluations += 1
            try:
                value, gradient = self._both(x)
                self._known[name] = float(value), np.array(gradient, float)
            except Exception:  # noqa: BLE001
                # At a point that a cold fit might never have seen. If it raises everywhere, scipy
                # will call it in a moment.
                self._known[name] = np.inf, np.full_like(x, np.nan)
            if len(self._known) > 8:
                self._known.popitem(last=False)
        value, gradient = self._known[name]
        return value, gradient.copy()


class Descent(NamedTuple):
    """Where a descent ended.

    Parameters
    ----------
    x : (n,) array
        The best point.
    value : float
        The objective there.
    metric : (n, n) array or None
        The inverse Hessian there; None if it was given up.
    iterations : int
        Steps taken.
    why : str or None
        Why it was given up before its end.
    """

    x: Vector
    value: float
    metric: Vector | None
    iterations: int
    why: str | None


def descend(
    evaluate: Callable[[Vector], tuple[float, Vector]],
    x: Vector,
    metric: Vector,
    *,
    limits: tuple[Any, Any],
    tolerance: float,
    patience: int = 3,
    longest: int = 200,
) -> Descent:
    """Minimize by a quasi-Newton method with a given inverse Hessian, as long as that is true.

    Parameters
    ----------
    evaluate : callable
        The objective and its gradient.
    x : (n,) array
        Where to begin, within the bounds.
    metric : (n, n) array
        The inverse Hessian, symmetric and positive definite.
    limits : tuple
        Lower and upper bounds.
    tolerance : float
        Of the largest component of the projected gradient.
    patience : int
        Evaluations within which the predicted decrease has to come true by half.
    longest : int
        Steps, at most.

    Returns
    -------
    Descent
        Given up if the first step has to be cut below a tenth; if the decrease that the given
        matrix predicts (the root of g'Hg, H fixed) does not come; or if nothing is finite.
    """
    lower, upper = limits
    value, gradient = evaluate(x)
    if not (np.isfinite(value) and np.all(np.isfinite(gradient))):
        return Descent(x, np.inf, None, 0, "the objective is not finite at the start")
    given, calls, iterations = metric, 0, 0
    promised = _promise(given, x, gradient, limits)
    while iterations < longest:
        if _projected(x, gradient, limits) <= tolerance:
            return Descent(x, value, metric, iterations, None)
        free = ~(((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0)))
        direction = np.zeros_like(x)
        direction[free] = -_restricted(metric, free) @ gradient[free]
        slope = float(direction @ gradient)
        if not slope < 0.0:
            return Descent(x, value, None, iterations, "the curvature is not that of a minimum")
        length = 1.0
        while True:
            trial = np.clip(x + length * direction, lower, upper)
            value2, gradient2 = evaluate(trial)
            calls += 1
            finite = np.isfinite(value2) and np.all(np.isfinite(gradient2))
            noise = 1e-15 * max(abs(value), 1e-300)
            if finite and value2 <= value + _ARMIJO * float(gradient @ (trial - x)) + noise:
                break
            cut = 0.1
            if finite:  # the minimum of the parabola through what is known
                cut = -slope * length / (2.0 * (value2 - value - slope * length))
            length *= min(max(cut, 0.1), 0.5)
            if length < 0.1 and iterations == 0:
                return Descent(x, value, None, iterations, "the first step had to be cut")
            if length < 1e-4:
                return Descent(x, value, metric, iterations, "no decrease")
        metric = updated(metric, trial - x, gradient2 - gradient)
        x, value, gradient, iterations = trial, value2, gradient2, iterations + 1
        if calls >= patience:
            kept = _promise(given, x, gradient, limits)
            if kept > promised / 2.0:
                return Descent(x, value, None, iterations, "the predicted decrease did not come")
            promised, calls = kept, 0
    return Descent(x, value, metric, iterations, "too many steps")


def _restricted(metric: Vector, free: NDArray[np.bool_]) -> Vector:
    """Return the inverse Hessian of the free parameters, the others held."""
    if free.all():
        return metric
    # The inverse of a block of the Hessian, by the Schur complement of its inverse.
    held = ~free
    cross = metric[np.ix_(free, held)]
    inner, *_ = np.linalg.lstsq(metric[np.ix_(held, held)], cross.T, rcond=None)
    return np.asarray(metric[np.ix_(free, free)] - cross @ inner)


def _projected(x: Vector, gradient: Vector, limits: tuple[Any, Any]) -> float:
    moved = np.clip(x - gradient, *limits) - x
    return float(np.abs(moved).max(initial=0.0))


def _promise(metric: Vector, x: Vector, gradient: Vector, limits: tuple[Any, Any]) -> float:
    lower, upper = limits
    free = ~(((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0)))
    left = np.where(free, gradient, 0.0)
    return float(np.sqrt(max(float(left @ metric @ left), 0.0)))
