"""A near fit on its way: between scipy and the user's functions, which are under watch already.

It gathers curvature for the fits to come, begins at the predicted point, descends with the
neighbour's curvature, and drops both if they do not keep their promise. scipy's own optimizer
has the last word: it is started where that ends, in the caller's variables and with the caller's
tolerances, and what was evaluated already is not evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult

from warmstart.curvature import descend, differences
from warmstart.derivatives import Smooth, Tangents
from warmstart.errors import ArgumentError
from warmstart.predictors import Curve, Curved, Scored, quadratic
from warmstart.starts import LARGEST, Plan, calls_a_gradient, curve_of
from warmstart.surfaces import Surface

__all__ = ["Challenger", "Follower", "Spent"]

Vector = NDArray[np.float64]

_TOLERANCE = {
    **dict.fromkeys(("bfgs", "l-bfgs-b", "cg", "newton-cg", "tnc", "slsqp", "trust-krylov"), 1e-5),
    **dict.fromkeys(("dogleg", "trust-ncg", "trust-exact"), 1e-4),
    "trust-constr": 1e-8,
}
"""Methods of `minimize` whose way a descent may shorten, if there are no constraints; and for the
norm of the gradient, what they are content with (about that, where it is not what they ask)."""
_STEPS = {"bfgs": 2.0**-26, "cg": 2.0**-26, "slsqp": 2.0**-26, "l-bfgs-b": 1e-8, "tnc": 1e-8}
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
_PAYS = 4
"""Gradients that a fit is spared, at least, by scores together with an inverse Hessian."""
_DEARER = 4
"""Times what second derivatives took that must be lost before they are taken again."""
_FAIR_CURVE = 4
"""Evaluations that a curve fit takes where the model to second order is true."""


_SKEWED = 1e6
"""Condition beyond which directions are as good as linearly dependent."""
_POPULATION = 5
"""Members that differential evolution asks for."""
_NARROW = {
    "initial_tr_radius": 0.05,
    "initial_barrier_parameter": 1e-4,
    "initial_barrier_tolerance": 1e-4,
}
"""With which trust-constr stays where it begins (25 evaluations for 42; with its own defaults 43:
six parameters, a sphere as constraint, 2026-11)."""


_DIFFERENCES = {"jac", "epsfcn", "Dfun", "diff_step", "jac_sparsity", "x_scale"}
"""Arguments with which the caller says how derivatives are taken."""


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
    expect : int
        Near fits that the caller expects to follow.
    scores : callable, optional
        As `Warm` has it, under watch.
    rows : array of uint64, optional
        Hashes of the rows of data, if their scores are to be asked for.
    """

    def __init__(
        self,
        surface: Surface,
        bound: Mapping[str, Any],
        plan: Plan | None,
        count: Callable[[], int],
        *,
        expect: int = 0,
        scores: Callable[..., Any] | None = None,
        rows: NDArray[np.uint64] | None = None,
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
        self._plain: Callable[..., Any] = bound[str(surface.function)]
        self._function = self._plain
        self.spent = Spent(used=plan is not None, why=None)
        default = "bfgs" if bound.get("bounds") is None else "l-bfgs-b"
        method = bound.get("method", default)
        self._method = method.lower() if isinstance(method, str) else ""
        self._bought = False
        self._expect, self._scores, self._rows = expect, scores, rows
        self._scored: tuple[Vector, Vector] | None = None
        """The gradient and the scores at the solution."""
        self._curve: Curve | None = None
        self._curved: Curved | None = None
        """The model to second order that was bought."""
        self._smooth: Smooth | None = None
        self._tangents: Tangents | None = None
        # A curve with gaps is not what scipy fits: it leaves rows out.
        whole = surface.kind == "curve" and curve_of(surface, bound) is not None
        self._is_least_squares = whole or surface.kind == "residuals"
        # Functions that go to other processes stay as they are.
        stays = "workers" not in bound and "workers" not in (bound.get("options") or {})
        if surface.name == "minimize" and stays and self._is_smooth():
            step = _STEPS.get(self._method, 0.0)
            self._smooth = Smooth(self._bound, step, surface.limits(bound))
        elif self._is_least_squares and stays:
            self._curve = curve_of(surface, bound)
            self._tangents = Tangents(self._curve, plan.model() if plan is not None else None)

    def _is_smooth(self) -> bool:
        bound = self._bound
        jac = bound.get("jac")
        numeric = jac is None and self._method in _STEPS
        plain = not bound.get("constraints") and np.ndim(bound.get("x0", 0.0)) == 1
        scale = not (bound.get("options") or {}).keys() & {"eps", "finite_diff_rel_step", "norm"}
        known = jac is True or callable(jac) or (numeric and scale)
        return plain and known and self._method in _TOLERANCE

    def run(self, call: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Do the fit.

        Parameters
        ----------
        call : callable
            Calls scipy with some arguments replaced.
        """
        result = self._follow(call)
        plan = self._plan
        if plan is not None and self.challenger is None:
            # A fit that fails from near may well come to its end from the caller's own start.
            failed = isinstance(result, OptimizeResult) and result.get("success") is False
            if plan.challenge or failed:
                result = self._challenge(call, result)
        self._buy_second(result)
        self._score(result)
        return result

    def _score(self, result: Any) -> None:
        """Ask for the scores at the solution.

        Raises
        ------
        ArgumentError
            If they are no matrix of a row for each row of data and a column for each parameter.
        """
        x, smooth = _x_of(result), self._smooth
        if x is None or smooth is None or self._scores is None or self._rows is None:
            return
        if self._plan is not None and self._plan.predictor == "influence":
            return  # the fit that it was predicted from has the scores of more rows
        count = len(self._rows)
        given = self._bound.get("args", ())
        scores = self._scores(x, *(given if isinstance(given, tuple) else (given,)))
        if not isinstance(scores, np.ndarray) or scores.shape != (count, x.size):
            raise ArgumentError(
                f"scores returns the gradient of each row's term, an array of {count} rows "
                f"and {x.size} columns, not {_described(scores)}"
            )
        _, gradient = smooth.evaluate(x)
        if np.isfinite(scores).all():
            self._scored = gradient, np.asarray(scores, float)
        # The prediction is as good as the curvature.
        if self._plan is None and x.size <= _PAYS * self._expect:
            made = differences(
                lambda at: smooth.evaluate(at)[1], x, gradient, self._surface.limits(self._bound)
            )
            self._bought = made is not None
            smooth.descended = made

    def _buy_second(self, result: Any) -> None:
        """Take second derivatives at the end, if they are likely to be paid for (rent or buy)."""
        x, curve, tangents = _x_of(result), self._curve, self._tangents
        if x is None or curve is None or tangents is None:
            return
        if self._plan is not None and self._plan.shared < 1.0:
            return  # the next fit would have rows, too, that this one lacks
        _, rent, bought = self._rent()
        # Where it was bought before and fits are dear all the same, it is of little help.
        price = quadratic.price(x.size) * _DEARER**bought
        expected = self._expect * x.size if self._plan is None or self._plan.curved is None else 0
        linear = tangents.linearized(x, curve.rows)
        if linear is None or price > max(rent, expected):
            return

        def model(at: Vector) -> Any:
            return self._plain(*self._given(at))

        self._curved = quadratic.build(model, linear, curve.weights, curve.y)
        self._bought = True

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
            changes |= self._tangent_for_scipy() | self._shape_for_scipy(plan, start)
        result = call(changes)
        if self._extra and isinstance(result, OptimizeResult) and "nfev" in result:
            result["nfev"] += self._extra
        if plan is None or not self._is_least_squares or plan.challenge:
            return result
        return self._challenge(call, result) if self._is_suspect(plan, result) else result

    def _shape_for_scipy(self, plan: Plan, x: Vector) -> dict[str, Any]:
        """Return what a method takes besides a point: a simplex, a population, directions, radii.

        Nothing that the caller has given is replaced, except a simplex, which is moved.
        """
        bound, surface = self._bound, self._surface.name
        options = dict(bound.get("options") or {})
        if surface == "fmin":
            return {"initial_simplex": self._simplex(bound.get("initial_simplex"), x)}
        if surface == "differential_evolution":
            population = plan.spread()
            enough = population is not None and len(population) >= _POPULATION
            if population is None or not enough or not isinstance(bound.get("init", ""), str):
                return {}
            return {"init": np.clip(population, *self._surface.limits(bound))}
        if surface != "minimize":
            return {}
        if self._method == "nelder-mead":
            simplex = self._simplex(options.get("initial_simplex"), x)
            return {"options": options | {"initial_simplex": simplex}}
        if self._method == "powell" and (directions := _unit(plan.spread())) is not None:
            return {"options": {"direc": directions} | options}
        if self._method == "trust-constr":
            return {"options": _NARROW | options}
        return {}

    def _simplex(self, given: Any, x: Vector) -> Vector:
        """Return a simplex about a point for Nelder and Mead's method, as large as a cold one's.

        scipy makes one of 5 % of x; about an x of zeros it would be smaller than the tolerance,
        and the fit over at once.
        """
        if given is not None:
            return np.asarray(np.asarray(given, float) - np.asarray(given, float)[0] + x)
        start = np.array(self._bound[str(self._surface.start)], float)
        sizes = 0.05 * np.maximum(np.abs(x), np.abs(start))
        return np.vstack([x, x + np.diag(np.where(sizes > 0.0, sizes, 0.00025))])

    def _tangent_for_scipy(self) -> dict[str, Any]:
        """Return a Jacobian for scipy, which near a minimum needs few, where it takes differences.

        For MINPACK's Levenberg-Marquardt; for the others if they have second derivatives.
        """
        bound, curve, tangents = self._bound, self._curve, self._tangents
        if tangents is None or curve is None or _DIFFERENCES & bound.keys():
            return {}
        function, y = self._function, curve.y
        bounded = not _is_free(self._surface.limits(bound))
        if self._surface.kind == "curve":
            # curve_fit takes no Jacobian beside one standard deviation for all (scipy 1.17).
            plain = bound.get("method", "lm") == "lm" and np.ndim(bound.get("sigma", ())) == 1

            def jac(xdata: Any, *x: float) -> Vector:
                return tangents.jacobian(lambda at: function(xdata, *at), np.array(x, float), y)

            return {"jac": jac} if plain and not bounded else {}

        def slope(x: Vector, *args: Any) -> Vector:
            return tangents.jacobian(lambda at: function(at, *args), np.array(x, float), y)

        if bounded or not tangents.curved:
            return {}
        return {{"leastsq": "Dfun", "least_squares": "jac"}[self._surface.name]: slope}

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
        x = self._stepped(plan)
        at = value(x)
        if not np.array_equal(x, plan.point()) and not at < value(plan.point()):
            x = plan.point()
            at = value(x)
            self._extra -= 1  # it was known
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

    def _stepped(self, plan: Plan) -> Vector:
        """Return where a Gauss-Newton step with the near fit's Jacobian leads.

        Its rows were other ones, but new values beside old predictors, such as a replicate's,
        leave the Jacobian what it was: only the residuals are asked for.
        """
        model, x = plan.linearized(), plan.point()
        if model is None:
            return x
        self._extra += 1
        try:
            residuals = np.asarray(self._function(*self._given(model.at)), float)
            step, *_ = np.linalg.lstsq(model.jacobian, -residuals, rcond=None)
        except (ArithmeticError, TypeError, ValueError, np.linalg.LinAlgError):
            return x
        moved = np.clip(model.at + step, *self._surface.limits(self._bound))
        return np.asarray(moved) if np.isfinite(moved).all() else x

    def _given(self, x: Vector) -> tuple[Any, ...]:
        """Return the arguments with which scipy calls the function at a point."""
        if self._surface.kind == "curve":
            xdata = self._bound["xdata"]
            if isinstance(xdata, (list, tuple, np.ndarray)):
                xdata = np.asarray(xdata, float)  # as curve_fit does
            return (xdata, *x)
        args = self._bound.get("args", ())
        return (x, *(args if isinstance(args, tuple) else (args,)))

    def _run_smooth(self, smooth: Smooth, call: Callable[[Mapping[str, Any]], Any]) -> Any:
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

    def _buy(self, smooth: Smooth, x: Vector, known: Vector) -> Vector:
        """Return the inverse Hessian at a point, or the known one where that is no minimum's."""
        limits = self._surface.limits(self._bound)
        _, gradient = smooth.evaluate(x)
        made = differences(lambda at: smooth.evaluate(at)[1], x, gradient, limits)
        self._bought = made is not None
        return known if made is None else made

    def _tolerance(self) -> float:
        options = self._bound.get("options") or {}
        given = options.get("gtol", self._bound.get("tol"))
        return float(given) if given is not None else _TOLERANCE[self._method]

    def asset(self, result: Any) -> dict[str, Any] | None:
        """Return what the fits to come may use, or None if this one failed."""
        x = _x_of(result)
        if x is None:
            return None
        asset: dict[str, Any] = {"x": x}
        if self._smooth is not None:
            if self._scored is not None and self._rows is not None:
                asset["scored"] = Scored(self._rows, *self._scored)._asdict()
            elif self._plan is not None and self._plan.scored_in is not None:
                asset["scored_in"] = self._plan.scored_in
            metric = self._smooth.metric(x)
            if metric is not None and metric.shape == (x.size, x.size):
                asset["metric"] = metric
                asset["rent"] = self._rent()
        spread = _spread_of(result)
        if spread is not None and spread.shape[1] == x.size:
            asset["spread"] = spread
        if self._tangents is not None and self._curve is not None:
            model = self._tangents.linearized(x, self._curve.rows)
            if model is not None:
                asset["linearized"] = model._asdict()
            asset["rent"] = self._rent()
            if self._curved is not None:
                linear = self._curved.linear._asdict()
                asset["curved"] = {**self._curved._asdict(), "linear": linear}
            elif self._plan is not None and self._plan.curved_in is not None:
                asset["curved_in"] = self._plan.curved_in
        return asset

    def _rent(self) -> tuple[float, float, int]:
        """Return what this fit and those before it have paid, for the next."""
        plan, spent, fair = self._plan, float(self._calls()), float(_FAIR_CURVE)
        if self._smooth is not None:
            spent = float(max(self._smooth.counts().values()))
            fair = float(_FAIR * calls_a_gradient(self._bound, self._smooth.size))
        if plan is None or self._bought:
            before = 0 if plan is None else plan.bought
            return spent, 0.0, before + self._bought
        return spent, plan.rent + max(0.0, spent - fair), plan.bought


def _spread_of(result: Any) -> Vector | None:
    """Return the population, or the directions, with which a search ended."""
    if not isinstance(result, OptimizeResult):
        return None
    found = result.get("population", result.get("direc"))
    fits = isinstance(found, np.ndarray) and found.ndim == 2 and found.size <= LARGEST
    return np.array(found, float) if fits and np.isfinite(found).all() else None


def _unit(directions: Vector | None) -> Vector | None:
    """Return Powell's directions at length one, None if they do not reach everywhere.

    The last ones of a fit are as short as its last steps, from which a search does not get far.
    """
    if directions is None or directions.shape[0] != directions.shape[1]:
        return None
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if not lengths.all():
        return None
    unit = directions / lengths
    return unit if np.linalg.cond(unit) < _SKEWED else None


def _is_free(limits: tuple[Any, Any]) -> bool:
    return bool(np.all(np.isneginf(limits[0])) and np.all(np.isposinf(limits[1])))


def _described(value: Any) -> str:
    return f"one of {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


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
