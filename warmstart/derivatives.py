"""What a fit shows of its derivatives while it runs: gradients, Hessians, Jacobians.

Each stands between scipy and one function of the user's, notes what is evaluated, and does not
evaluate again what is known. Where scipy takes differences, the derivatives are found in the
sequence of its evaluations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import HessianUpdateStrategy

from warmstart.curvature import Evaluator, Gathered, inverse
from warmstart.predictors import Curve, Curved, Linearized, quadratic
from warmstart.starts import LARGEST

__all__ = ["Smooth", "Tangents"]

Vector = NDArray[np.float64]

_SAME, _EPSILON = 3e-3, 2.0**-26
"""See `Tangents.jacobian`."""
_TRUE = 4e-5
"""Part of the residuals, times the root of the parameters, by which values to second order may
be wrong where their derivatives are trusted."""
_ABOUT = 0.01
"""Relative distance from the solution within which a Jacobian is handed on."""


class Smooth:
    """An objective with its gradient, as `minimize` was given it."""

    def __init__(self, bound: Mapping[str, Any], step: float, limits: tuple[Any, Any]) -> None:
        self._step, self._limits = step, limits
        self._fun: Any = bound["fun"]
        self._jac: Any = bound.get("jac")
        self._hess: Any = bound.get("hess")
        self._hessian: tuple[Vector, Vector] | None = None
        args = bound.get("args", ())
        self._args = args if isinstance(args, tuple) else (args,)
        self.size = int(np.size(bound["x0"]))
        self._gathered = Gathered(self.size)
        self._values: dict[bytes, Any] = {}
        self._gradients: dict[bytes, Any] = {}
        self._differences = Differences(self.size)
        self._count = {"nfev": 0, "njev": 0}
        self.descended: Vector | None = None
        """The inverse Hessian at the end of a descent that kept its promise."""
        self.evaluate = Evaluator(self._both)

    def _value(self, x: Vector, *args: Any) -> Any:
        """Call the user's function; both where it returns both."""
        name = x.tobytes()
        if name in self._values:
            known = self._values[name]
            return (known[0], known[1].copy()) if self._jac is True else known
        self._count["nfev"] += 1
        value = self._fun(x, *args)
        self._keep(self._values, name, value)
        if self._jac is True:
            self._gathered.add(x, np.asarray(value[1], float))
        elif self._jac is None:
            gradient = self._differences.add(x, value)
            if gradient is not None:
                self._gathered.add(*gradient)
        return value

    def _gradient(self, x: Vector, *args: Any) -> Any:
        name = x.tobytes()
        if name in self._gradients:
            return self._gradients[name].copy()
        self._count["njev"] += 1
        gradient = self._jac(x, *args)
        self._keep(self._gradients, name, gradient)
        self._gathered.add(x, np.asarray(gradient, float))
        return gradient

    def _curvature(self, x: Vector, *args: Any) -> Any:
        hessian = self._hess(x, *args)
        if isinstance(hessian, np.ndarray) and hessian.shape == (x.size, x.size):
            self._hessian = x.copy(), hessian.astype(float)
        return hessian

    def _keep(self, known: dict[bytes, Any], name: bytes, value: Any) -> None:
        # scipy overwrites what it is given in places.
        known[name] = (value[0], np.array(value[1])) if self._jac is True else np.copy(value)
        if len(known) > 2 * self.size + 4:
            del known[next(iter(known))]

    def _both(self, x: Vector) -> tuple[float, Vector]:
        value = self._value(x, *self._args)
        if self._jac is True:
            return float(value[0]), np.asarray(value[1], float)
        if self._jac is not None:
            return float(value), np.asarray(self._gradient(x, *self._args), float)
        return float(value), self._forward(x, float(value))

    def _forward(self, x: Vector, value: float) -> Vector:
        """Return the gradient by forward differences, backward at an upper bound."""
        gradient = np.empty_like(x)
        for place, outside in enumerate(x + self._step > self._limits[1]):
            moved = x.copy()
            moved[place] += -self._step if outside else self._step
            there = float(self._value(moved, *self._args))
            gradient[place] = (there - value) / (moved[place] - x[place])
        return gradient

    def functions(self) -> dict[str, Any]:
        """Return the functions for scipy: what is known already is not evaluated again."""
        made: dict[str, Any] = {"fun": self._value}
        if callable(self._jac):
            made["jac"] = self._gradient
        if callable(self._hess) and not isinstance(self._hess, HessianUpdateStrategy):
            made["hess"] = self._curvature
        return made

    def counts(self) -> dict[str, int]:
        """Return the calls of the user's functions so far, by scipy's names for them."""
        if self._jac is None:
            return {"nfev": self._count["nfev"]}
        if self._jac is True:
            return {"nfev": self._count["nfev"], "njev": self._count["nfev"]}
        return self._count

    def metric(self, x: Vector) -> Vector | None:
        """Return the inverse Hessian at a solution."""
        if self._hessian is not None and _is_about(self._hessian[0], x):
            made = inverse(self._hessian[1])
            if made is not None:
                return made
        return self._gathered.metric() if self.descended is None else self.descended


class Differences:
    """Finds the gradients in a sequence of evaluations that take differences."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.base: tuple[Vector, Any] | None = None
        self._columns: dict[int, Any] = {}

    def add(self, x: Vector, value: Any) -> tuple[Vector, Any] | None:
        """Note an evaluation; returns a point and the derivatives there, once all are known."""
        if self.base is not None:
            at, there = self.base
            moved = np.flatnonzero(x != at)
            if len(moved) == 1:
                place = int(moved[0])
                step = x[place] - at[place]
                if abs(step) < 1e-4 * max(1.0, abs(at[place])):
                    with np.errstate(all="ignore"):
                        self._columns[place] = (np.asarray(value, float) - there) / step
                    if len(self._columns) == self._size:
                        made = np.array([self._columns[i] for i in range(self._size)])
                        self._columns = {}
                        return at, made
                    return None
        self.base, self._columns = (x.copy(), np.array(value, float)), {}
        return None


class Tangents:
    """Finds the Jacobians in a sequence of residuals that take differences; keeps the last."""

    def __init__(self, curve: Curve | None, curved: Curved | None) -> None:
        self._curve, self.curved = curve, curved
        self._differences: Differences | None = None
        self._known: dict[bytes, Any] = {}
        self._last: tuple[Vector, Vector, Vector] | None = None

    def watch(self, function: Callable[..., Any], *, curve: bool) -> Callable[..., Any]:
        """Return the function, its evaluations noted."""

        @functools.wraps(function, updated=())
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                given = np.array(args[1:] if curve else args[0])
                if given.dtype.kind not in "iuf":  # complex steps, for one
                    return function(*args, **kwargs)
                x = given.astype(float)
            except (TypeError, ValueError):
                return function(*args, **kwargs)
            # scipy evaluates where it starts twice or three times.
            name = x.tobytes()
            if name in self._known:
                return self._known[name].copy()
            value = function(*args, **kwargs)
            if x.ndim == 1 and type(value) is np.ndarray and value.size <= LARGEST:
                self._known[name] = value.copy()
                if len(self._known) > 4:
                    del self._known[next(iter(self._known))]
                if self._differences is None:
                    self._differences = Differences(x.size)
                found = self._differences.add(x, value)
                base = self._differences.base
                if found is not None and base is not None:
                    self._last = found[0], base[1], found[1]
            return value

        return watched

    def jacobian(self, model: Callable[[Vector], Vector], x: Vector, y: Vector) -> Vector:
        """Return the Jacobian at a point, or a point so near that it makes no difference.

        Forward differences with MINPACK's steps. The last one serves again where the values
        have changed, along it, by less than 0.3 % of the residuals: what is left to gain is then
        about that squared and squared again, less than MINPACK's own tolerance of 1.5e-8 on all
        but the most curved problems.
        """
        values = np.array(model(x), float)
        if (known := self._from_model(x, values, y)) is not None:
            self._last = x.copy(), values, np.ascontiguousarray(known.T)
            return known
        if self._last is not None:
            at, there, columns = self._last
            moved = columns.T @ (x - at)
            if np.linalg.norm(moved) <= _SAME * np.linalg.norm(there - y):
                return np.ascontiguousarray(columns.T)
        columns = np.empty((x.size, y.size))
        for place in range(x.size):
            there = x.copy()
            there[place] += _EPSILON * abs(x[place]) or _EPSILON
            columns[place] = (model(there) - values) / (there[place] - x[place])
        self._last = x.copy(), values, columns
        return np.ascontiguousarray(columns.T)

    def _from_model(self, x: Vector, values: Vector, y: Vector) -> Vector | None:
        """Return a Jacobian by the second derivatives, where they have the values right.

        What they lack of the values, `e`, begins with the third power of the step `z`, so that
        the Jacobian lacks ``3 e / z``. For residuals r that are noise this adds 9 e'e / z'z to
        the minimal r'r, with z'z about n in standard errors: less than MINPACK's own tolerance
        of 1.5e-8 r'r, as long as e is less than 4e-5 of r, times the root of n.
        """
        if self._curve is None or self.curved is None:
            return None
        weights, around = self._curve.weights, [self.curved]
        if self._last is not None:  # about the last one by differences, or made from it
            at, there, columns = self._last
            linear = self.curved.linear._replace(at=at, values=there, jacobian=columns.T)
            around.append(self.curved._replace(linear=linear))
        edge = _TRUE * np.sqrt(x.size) * np.linalg.norm(weights * (values - y))
        for curved in around:
            if np.linalg.norm(weights * (values - quadratic.values(curved, x))) <= edge:
                return np.ascontiguousarray(quadratic.jacobian(curved, x))
        return None

    def linearized(self, x: Vector, rows: NDArray[np.uint64]) -> Linearized | None:
        """Return the model about the last point at which its Jacobian was taken."""
        if self._last is None:
            return None
        at, values, columns = self._last
        if values.shape != rows.shape or at.shape != x.shape:
            return None
        if not _is_about(at, x):
            return None  # of another part of the way
        return Linearized(rows, at, values, np.ascontiguousarray(columns.T))


def _is_about(at: Vector, x: Vector) -> bool:
    return bool(np.abs(x - at).max() <= _ABOUT * np.abs(x).max())
