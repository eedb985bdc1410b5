"""A near fit on its way: between scipy and the user's functions, which are under watch already.

It gathers curvature for the fits to come, begins at the predicted point, descends with the
neighbour's curvature, and drops both if they do not keep their promise. scipy's own optimizer
has the last word: it is started where that ends, in the caller's variables and with the caller's
tolerances, and what was evaluated already is not evaluated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult

from warmstart.curvature import Evaluator, Gathered, descend, differences
from warmstart.predictors import Linearized
from warmstart.starts import Plan, calls_a_gradient, curve_of
from warmstart.surfaces import Surface

__all__ = ["Challenger", "Follower", "Spent"]

Vector = NDArray[np.float64]

_GRADIENT_METHODS = frozenset({"bfgs", "l-bfgs-b", "cg", "newton-cg", "tnc"})
"""Methods of `minimize` without constraints, whose way a descent may shorten."""
_STEPS = {"bfgs": 2.0**-26, "cg": 2.0**-26, "l-bfgs-b": 1e-8, "tnc": 1e-8}
"""By which scipy takes differences, if not told otherwise; the same, so that it finds them done."""
_FAIR = 5
"""Gradients that a near fit takes with a good inverse Hessian."""
_PATIENCE, _PATIENCE_FOR_BOUGHT = 4, 6
"""Evaluations after which what the curvature promised must have come true by half."""
_BETTER = 1e-5
"""By which part of the objective a minimum must be lower to be another one."""
_SUSPECT = 3.0
"""Times the usual sum of squares that errors which are not normal may well bring."""
_NOTHING = 1e-8
"""Part of the objective at the start that is as good as zero."""
_FAR = 10.0
"""Times the neighbour's objective at which a predicted point is compared with the default one."""
_SAME, _EPSILON = 3e-3, 2.0**-26
"""See `_Tangents.jacobian`."""
_ABOUT = 0.01
"""Relative distance from the solution within which a Jacobian is handed on."""
_ROWS = 20_000
"""Residuals up to which Jacobians are kept."""


class Spent(NamedTuple):
    """What a plan came to."""

    used: bool
    """Whether it was followed to the end."""
    why: str | None


class Challenger(NamedTuple):
    """A cold fit that was run besides a near one."""

    evaluations: int
    lost: bool
    """Whether the near one lost to it."""
    regular: bool
    """Whether it was its turn; else the near fit looked suspect."""


class Follower:
    """Stands between scipy and the user's functions (already under watch), for a near fit.

    Parameters
    ----------
    surface : Surface
        The function of scipy.optimize.
    bound : mapping of str to object
        The call's arguments, the functions in it those under watch.
    plan : Plan or None
        Where to begin; without one, curvature is gathered.
    count : callable
        Returns how often the user's functions were called so far.
    """

    def __init__(
        self,
        surface: Surface,
        bound: Mapping[str, Any],
        plan: Plan | None,
        count: Callable[[], int],
    ) -> None:
        self._calls = count
        self.challenger: Challenger | None = None
        self._surface = surface
        self._bound = dict(bound)
        self._plan = plan
        self._residuals = 1
        self._scale = 0.0
        """Of the objective, where the fit began."""
        self._extra = 0
        """Evaluations that were made before scipy began, and that it does not count."""
        self._function: Callable[..., Any] = bound[str(surface.function)]
        self.spent = Spent(used=plan is not None, why=None)
        default = "bfgs" if bound.get("bounds") is None else "l-bfgs-b"
        method = bound.get("method", default)
        self._method = method.lower() if isinstance(method, str) else ""
        self._bought = False
        self._smooth: _Smooth | None = None
        self._tangents: _Tangents | None = None
        # A curve with gaps is not what scipy fits: it leaves rows out.
        whole = surface.kind == "curve" and curve_of(surface, bound) is not None
        self._is_least_squares = whole or surface.kind == "residuals"
        # Functions that go to other processes stay as they are.
        stays = "workers" not in bound and "workers" not in (bound.get("options") or {})
        if surface.name == "minimize" and stays and self._is_smooth():
            step = _STEPS.get(self._method, 0.0)
            self._smooth = _Smooth(self._bound, step, surface.limits(bound))
        elif self._is_least_squares and stays:
            self._tangents = _Tangents()

    def _is_smooth(self) -> bool:
        bound = self._bound
        jac = bound.get("jac")
        numeric = jac is None and self._method in _STEPS
        plain = not bound.get("constraints") and np.ndim(bound.get("x0", 0.0)) == 1
        scale = not (bound.get("options") or {}).keys() & {"eps", "finite_diff_rel_step", "norm"}
        known = jac is True or callable(jac) or (numeric and scale)
        return plain and known and self._method in _GRADIENT_METHODS

    def run(self, call: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Do the fit.

        Parameters
        ----------
        call : callable
            Calls scipy with some arguments replaced.
        """
        result = self._follow(call)
        plan = self._plan
        if plan is None or self.challenger is not None:
            return result
        # A fit that fails from near may well come to its end from the caller's own start.
        failed = isinstance(result, OptimizeResult) and result.get("success") is False
        return self._challenge(call, result) if plan.challenge or failed else result

    def _challenge(self, call: Callable[[Mapping[str, Any]], Any], result: Any) -> Any:
        """Run a cold fit as well; returns the better result, with the evaluations of both."""
        before = self._calls()
        cold = call({})
        ours, theirs = self._objective(result), self._objective(cold)
        lost = theirs is not None and (
            ours is None or theirs < ours - _BETTER * abs(ours) - _NOTHING * self._scale
        )
        regular = self._plan is not None and self._plan.challenge
        self.challenger = Challenger(self._calls() - before, lost=lost, regular=regular)
        winner, other = (cold, result) if lost else (result, cold)
        if lost:  # what was gathered belongs to another minimum
            self._smooth = self._tangents = None
        for name in ("nfev", "njev"):
            if isinstance(winner, OptimizeResult) and winner.get(name) is not None:
                winner[name] += other.get(name) or 0
        if lost:
            why = "a cold challenger found a better minimum"
            self.spent = Spent(used=False, why=why)
        return winner

    def _objective(self, result: Any) -> float | None:
        """Return what was minimized, at a result."""
        x = _x_of(result)
        if x is None:
            return None
        if isinstance(result, OptimizeResult):
            value = result.get("cost", result.get("fun"))
            if np.size(value) > 1:  # equations: how far from solved
                value = np.sum(np.square(np.abs(value)))
        else:
            target = self._surface.target(self._bound)
            if target is None:
                return None
            found = self._function(*self._given(x))
            self._residuals = int(np.size(found))
            value = target(found)
        return float(value) if np.size(value) == 1 and np.isfinite(value) else None

    def _follow(self, call: Callable[[Mapping[str, Any]], Any]) -> Any:
        plan = self._plan
        if self._smooth is not None:
            return self._run_smooth(self._smooth, call)
        changes: dict[str, Any] = {}
        if self._tangents is not None:
            curve = self._surface.kind == "curve"
            self._function = self._tangents.watch(self._function, curve=curve)
            changes[str(self._surface.function)] = self._function
        if plan is not None and (start := self._checked(plan)) is not None:
            changes[str(self._surface.start)] = start
            changes |= self._tangent_for_scipy() | self._simplex_for_scipy(start)
        result = call(changes)
        if self._extra and isinstance(result, OptimizeResult) and "nfev" in result:
            result["nfev"] += self._extra
        if plan is None or not self._is_least_squares or plan.challenge:
            return result
        return self._challenge(call, result) if self._is_suspect(plan, result) else result

    def _simplex_for_scipy(self, x: Vector) -> dict[str, Any]:
        """Return a simplex about a point for Nelder and Mead's method, as large as a cold one's.

        scipy makes one of 5 % of x; about an x of zeros it would be smaller than the tolerance,
        and the fit over at once.
        """
        options = dict(self._bound.get("options") or {})
        legacy = self._surface.name == "fmin"
        if not legacy and not (self._surface.name == "minimize" and self._method == "nelder-mead"):
            return {}
        name = "initial_simplex"
        given = self._bound.get(name) if legacy else options.get(name)
        start = np.array(self._bound[str(self._surface.start)], float)
        if given is not None:
            simplex = np.asarray(given, float) - np.asarray(given, float)[0] + x
        else:
            sizes = 0.05 * np.maximum(np.abs(x), np.abs(start))
            sides = np.diag(np.where(sizes > 0.0, sizes, 0.00025))
            simplex = np.vstack([x, x + sides])
        return {name: simplex} if legacy else {"options": options | {name: simplex}}

    def _tangent_for_scipy(self) -> dict[str, Any]:
        """Return a Jacobian for MINPACK's Levenberg-Marquardt, which near a minimum needs few."""
        bound, curve = self._bound, curve_of(self._surface, self._bound)
        plain = bound.get("method", "lm") == "lm" and bound.get("bounds") is None
        # curve_fit takes no Jacobian beside one standard deviation for all (scipy 1.17).
        plain = plain and np.ndim(bound.get("sigma", ())) == 1
        if self._tangents is None or curve is None or not plain or {"jac", "epsfcn"} & bound.keys():
            return {}
        function, y, tangents = self._function, curve.y, self._tangents

        def jac(xdata: Any, *x: float) -> Vector:
            return tangents.jacobian(lambda at: function(xdata, *at), np.array(x, float), y)

        return {"jac": jac}

    def _is_suspect(self, plan: Plan, result: Any) -> bool:
        """Whether the sum of squares is larger than those of the near fits let expect.

        For normal errors it would be once in a thousand fits.
        """
        value = self._objective(result)
        if value is None:
            return True
        freedom = max(1, self._residuals - len(plan.x) // 8)
        usual, rare = scipy.special.chdtri(freedom, [0.5, 0.001])
        if plan.usual is None or value <= _NOTHING * self._scale:
            return False
        return bool(value > plan.usual * max(_SUSPECT, rare / usual))

    def _checked(self, plan: Plan) -> Vector | None:
        """Return the predicted point, or a better one if it is bad; None for the caller's own.

        The predicted point alone is evaluated, as long as it is as good as it should be.
        """
        target = self._surface.target(self._bound)
        gaps = self._surface.kind == "curve" and not self._is_least_squares
        if target is None or plan.value is None or gaps:
            return plan.point()

        def value(x: Vector) -> float:
            self._extra += 1
            try:
                found = float(target(self._function(*self._given(x))))
            except Exception:  # noqa: BLE001 (where cold might never have gone)
                return np.inf
            return found if np.isfinite(found) else np.inf

        edge = plan.value + _FAR * abs(plan.value)
        x, at = plan.point(), value(plan.point())
        self._scale = at if np.isfinite(at) else 0.0
        if self._tangents is not None:
            self._extra -= 1  # scipy will find it known
        start = self._bound.get(str(self._surface.start))
        if at <= edge or start is None:
            return x
        default = value(np.array(start, float))
        if at < default:
            return x
        x = np.frombuffer(plan.nearest).copy()
        if plan.nearest != plan.x and value(x) < default:
            self.spent = Spent(used=True, why="the prediction was bad: from the near solution")
            return x
        why = "the caller's own start is better than the predicted one"
        self.spent = Spent(used=False, why=why)
        return None

    def _given(self, x: Vector) -> tuple[Any, ...]:
        """Return the arguments with which scipy calls the function at a point."""
        if self._surface.kind == "curve":
            xdata = self._bound["xdata"]
            if isinstance(xdata, (list, tuple, np.ndarray)):
                xdata = np.asarray(xdata, float)  # as curve_fit does
            return (xdata, *x)
        args = self._bound.get("args", ())
        return (x, *(args if isinstance(args, tuple) else (args,)))

    def _run_smooth(self, smooth: _Smooth, call: Callable[[Mapping[str, Any]], Any]) -> Any:
        plan, before, steps = self._plan, None, 0
        start = np.array(self._bound["x0"], float)
        if plan is not None:
            x, metric = plan.point(), plan.inverse_hessian()
            value, _ = smooth.evaluate(x)
            self._scale = abs(value) if np.isfinite(value) else 0.0
            edge = np.inf if plan.value is None else plan.value + _FAR * abs(plan.value)
            looks_far = not value <= edge
            if looks_far and not value < smooth.evaluate(start)[0]:
                why = "the caller's own start is better than the predicted one"
                self.spent = Spent(used=False, why=why)
                x, metric = start, None
            if plan.buy and metric is not None:
                metric = self._buy(smooth, x, metric)
            if metric is not None:
                before = descend(
                    smooth.evaluate,
                    x,
                    metric,
                    limits=self._surface.limits(self._bound),
                    tolerance=self._tolerance(),
                    patience=_PATIENCE_FOR_BOUGHT if self._bought else _PATIENCE,
                )
                x, steps = before.x, before.iterations
                # Of where scipy will find itself done; else it goes on to another point.
                smooth.descended = before.metric if before.why is None else None
                self.spent = Spent(used=before.why is None, why=before.why)
                if before.metric is None and not before.value < smooth.evaluate(start)[0]:
                    x = start
            start = x
        result = call({"x0": start, **smooth.functions()})
        if plan is not None and isinstance(result, OptimizeResult):
            # Honest counts: what was spent before scipy began, and not what it found known.
            for name, count in smooth.counts().items():
                if name in result:
                    result[name] = count
            if "nit" in result:
                result["nit"] += steps
        return result

    def _buy(self, smooth: _Smooth, x: Vector, known: Vector) -> Vector:
        """Return the inverse Hessian at a point, or the known one where that is no minimum's."""
        limits = self._surface.limits(self._bound)
        _, gradient = smooth.evaluate(x)
        made = differences(lambda at: smooth.evaluate(at)[1], x, gradient, limits)
        self._bought = made is not None
        return known if made is None else made

    def _tolerance(self) -> float:
        options = self._bound.get("options") or {}
        given = options.get("gtol", self._bound.get("tol"))
        return float(given) if given is not None else 1e-5

    def asset(self, result: Any, bound: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the fits to come may use, or None if this one failed."""
        x = _x_of(result)
        if x is None:
            return None
        asset: dict[str, Any] = {"x": x}
        if self._smooth is not None:
            metric = self._smooth.metric()
            if metric is not None and metric.shape == (x.size, x.size):
                asset["metric"] = metric
                asset["rent"] = self._rent(self._smooth)
        curve = curve_of(self._surface, bound)
        if self._tangents is not None and curve is not None:
            model = self._tangents.linearized(x, curve.rows)
            if model is not None:
                asset["linearized"] = model._asdict()
        return asset

    def _rent(self, smooth: _Smooth) -> tuple[float, float, bool]:
        """Return what this fit and those before it have paid, for the next."""
        plan, spent = self._plan, float(max(smooth.counts().values()))
        if plan is None or self._bought:
            return spent, 0.0, self._bought
        fair = _FAIR * calls_a_gradient(self._bound, len(plan.x) // 8)
        return spent, plan.rent + max(0.0, spent - fair), plan.bought


class _Smooth:
    """An objective with its gradient, as `minimize` was given it."""

    def __init__(self, bound: Mapping[str, Any], step: float, limits: tuple[Any, Any]) -> None:
        self._step, self._limits = step, limits
        self._fun: Any = bound["fun"]
        self._jac: Any = bound.get("jac")
        args = bound.get("args", ())
        self._args = args if isinstance(args, tuple) else (args,)
        self._size = int(np.size(bound["x0"]))
        self._gathered = Gathered(self._size)
        self._values: dict[bytes, Any] = {}
        self._gradients: dict[bytes, Any] = {}
        self._differences = _Differences(self._size)
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

    def _keep(self, known: dict[bytes, Any], name: bytes, value: Any) -> None:
        # scipy overwrites what it is given in places.
        known[name] = (value[0], np.array(value[1])) if self._jac is True else np.copy(value)
        if len(known) > 2 * self._size + 4:
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
        return made

    def counts(self) -> dict[str, int]:
        """Return the calls of the user's functions so far, by scipy's names for them."""
        if self._jac is None:
            return {"nfev": self._count["nfev"]}
        if self._jac is True:
            return {"nfev": self._count["nfev"], "njev": self._count["nfev"]}
        return self._count

    def metric(self) -> Vector | None:
        """Return the inverse Hessian at the end."""
        return self._gathered.metric() if self.descended is None else self.descended


class _Differences:
    """Finds the gradients in a sequence of evaluations that take differences."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._base: tuple[Vector, Any] | None = None
        self._columns: dict[int, Any] = {}

    def add(self, x: Vector, value: Any) -> tuple[Vector, Any] | None:
        """Note an evaluation; returns a point and the derivatives there, once all are known."""
        if self._base is not None:
            at, there = self._base
            moved = np.flatnonzero(x != at)
            if len(moved) == 1:
                place = int(moved[0])
                step = x[place] - at[place]
                if abs(step) < 1e-4 * max(1.0, abs(at[place])):
                    self._columns[place] = (np.asarray(value, float) - there) / step
                    if len(self._columns) == self._size:
                        made = np.array([self._columns[i] for i in range(self._size)])
                        self._columns = {}
                        return at, made
                    return None
        self._base, self._columns = (x.copy(), np.array(value, float)), {}
        return None


class _Tangents:
    """Finds the Jacobians in a sequence of residuals that take differences; keeps the last."""

    def __init__(self) -> None:
        self._differences: _Differences | None = None
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
            if x.ndim == 1 and type(value) is np.ndarray and value.size <= _ROWS:
                self._known[name] = value.copy()
                if len(self._known) > 4:
                    del self._known[next(iter(self._known))]
                if self._differences is None:
                    self._differences = _Differences(x.size)
                found = self._differences.add(x, value)
                base = self._differences._base  # noqa: SLF001
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
        if self._last is not None:
            at, values, columns = self._last
            moved = columns.T @ (x - at)
            if np.linalg.norm(moved) <= _SAME * np.linalg.norm(values - y):
                return np.ascontiguousarray(columns.T)
        values = np.array(model(x), float)
        columns = np.empty((x.size, y.size))
        for place in range(x.size):
            there = x.copy()
            there[place] += _EPSILON * abs(x[place]) or _EPSILON
            columns[place] = (model(there) - values) / (there[place] - x[place])
        self._last = x.copy(), values, columns
        return np.ascontiguousarray(columns.T)

    def linearized(self, x: Vector, rows: NDArray[np.uint64]) -> Linearized | None:
        """Return the model about the last point at which its Jacobian was taken."""
        if self._last is None:
            return None
        at, values, columns = self._last
        if values.shape != rows.shape or at.shape != x.shape:
            return None
        if np.abs(x - at).max() > _ABOUT * np.abs(x).max():
            return None  # of another part of the way
        return Linearized(rows, at, values, np.ascontiguousarray(columns.T))


def _x_of(result: Any) -> Vector | None:
    if isinstance(result, OptimizeResult):
        if not result.get("success", True):
            return None
        x = result.get("x")
    else:
        x = result[0] if isinstance(result, tuple) else result
    if not isinstance(x, np.ndarray) or x.ndim != 1 or not np.isfinite(x).all():
        return None
    return np.array(x, float)
