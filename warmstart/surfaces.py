"""The table of scipy.optimize: which argument is which part of a fit, and what a call returns.

A function is one row; `wrapping` does the rest for all of them. What an argument is, follows
from its name, which scipy uses with one meaning throughout (``ROLES``); a row says what is
particular to its function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize
from scipy.optimize import LinearConstraint, NonlinearConstraint, OptimizeResult, RootResults

from warmstart.randomness import draws_seeded, identity, states

__all__ = ["SURFACES", "Function", "Point", "Surface", "first"]

_PLAIN = (bool, int, float, str, tuple)

# How a user's function takes the point at which it is called.
ONE, TWO, REST, COLUMNS = "one", "two", "rest", "columns"

ROLES: dict[str, str] = {
    **dict.fromkeys(("jac", "fprime", "fprime2", "Dfun", "hess", "fhess"), ONE),
    **dict.fromkeys(("f_eqcons", "f_ieqcons", "fprime_eqcons", "fprime_ieqcons"), ONE),
    **dict.fromkeys(("hessp", "fhess_p"), TWO),
}
"""Arguments that are functions of the user's: of x, or of x and a vector."""
GROUPS = frozenset({"constraints", "cons", "eqcons", "ieqcons"})
"""Arguments that hold such functions in a sequence, a dict or a NonlinearConstraint."""
BAGS = frozenset({"minimizer_kwargs", "options"})
"""Arguments that are dicts of further arguments."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the user's, as found in a call.

    Parameters
    ----------
    label : str
        Where it stands: ``fun``, ``constraints[0].jac``, ``minimizer_kwargs.hess``.
    call : callable
        The function.
    takes : {"one", "two", "rest", "columns"}
        The point is its first argument, its first two, all but the first, or it is many
        points as columns.
    primary : bool
        Whether it is what is minimized, or solved.
    between : tuple or None
        Between what its values have to be, if it is a constraint.
    """

    label: str
    call: Callable[..., Any]
    takes: str
    primary: bool
    between: tuple[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """The best point of a fit that was stopped.

    Parameters
    ----------
    x : ndarray or float
        As the user's function took it.
    value : object
        What the function returned there.
    number : float or None
        What points were ranked by.
    evaluations : int
        Calls so far, replayed ones included.
    message : str
        Why it was stopped.
    """

    x: Any
    value: Any
    number: float | None
    evaluations: int
    message: str

    @property
    def scalar(self) -> Any:
        """The objective, without a gradient beside it."""
        return self.value[0] if isinstance(self.value, tuple) else self.value


STOPPED = -99
"""``status``, ``ier`` or ``warnflag`` of a fit that was stopped; scipy uses none below -4."""


def _result(point: Point, _bound: Mapping[str, Any]) -> OptimizeResult:
    return OptimizeResult(
        x=point.x,
        fun=point.scalar,
        success=False,
        status=STOPPED,
        message=point.message,
        nfev=point.evaluations,
    )


def _least_squares(point: Point, bound: Mapping[str, Any]) -> OptimizeResult:
    result = _result(point, bound)
    result["cost"] = point.number
    return result


def _root_results(point: Point, _bound: Mapping[str, Any]) -> RootResults:
    made = RootResults(point.x, point.evaluations, point.evaluations, STOPPED, "")
    made.flag = point.message
    return made


def _only_x(point: Point, _bound: Mapping[str, Any]) -> Any:
    return point.x


def _x_or(full: Callable[[Point], tuple[Any, ...]]) -> Callable[[Point, Mapping[str, Any]], Any]:
    """Return x, or with ``full_output`` a tuple that begins with it."""

    def partial(point: Point, bound: Mapping[str, Any]) -> Any:
        return (point.x, *full(point)) if bound.get("full_output") else point.x

    return partial


def _bracketed(point: Point, bound: Mapping[str, Any]) -> Any:
    return (point.x, _root_results(point, bound)) if bound.get("full_output") else point.x


def _leastsq(point: Point, bound: Mapping[str, Any]) -> tuple[Any, ...]:
    if not bound.get("full_output"):
        return point.x, STOPPED
    return point.x, None, {"fvec": point.value, "nfev": point.evaluations}, point.message, STOPPED


def _curve_fit(point: Point, bound: Mapping[str, Any]) -> tuple[Any, ...]:
    covariance = np.full((point.x.size, point.x.size), np.inf)
    if not bound.get("full_output"):
        return point.x, covariance
    return point.x, covariance, {"nfev": point.evaluations}, point.message, STOPPED


_Partial = Callable[[Point, Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One function of scipy.optimize.

    Parameters
    ----------
    name : str
        Its name there, ``elementwise.`` included.
    function : str or None
        The argument that is the user's function; None for what has none.
    kind : str
        What that function returns: ``"objective"``, a number to minimize (or a pair with the
        gradient); ``"residuals"``; ``"curve"``, a model's values at ``xdata`` given the
        parameters one by one; ``"equations"``, values that are to vanish; ``"scalar"``, the
        same of one variable; ``"map"``, the next point; ``"elementwise"``, values for many
        problems at once. ``"arrays"`` where there is no function.
    start : str or None
        The argument that can be replaced by a point to start from.
    casts : str
        Kinds of numbers in `start` that scipy turns into floats before it calls anything; where
        it does not, the user's function is called with integers.
    place : tuple of str
        Arguments that say where it starts otherwise: an interval, a grid.
    data : tuple of str
        Arguments that are what is fitted to. User's functions are the model; all others are
        settings.
    hidden : tuple of str
        Settings that cannot change the result.
    loud : tuple of str
        Settings that decide whether scipy warns: of theirs only the truth counts.
    random : bool
        Whether it takes ``rng`` or, from before scipy 1.15, ``seed``.
    quick : bool
        Mostly done in less time than a look-up takes: remembered only if it was not.
    worth : int
        Array elements from which a call without a function is worth remembering.
    partial : callable or None
        Makes what a stopped fit returns from a `Point`; None where there is no best point.
    """

    name: str
    function: str | None
    kind: str
    start: str | None = None
    casts: str = ""
    place: tuple[str, ...] = ()
    data: tuple[str, ...] = ("args",)
    hidden: tuple[str, ...] = ()
    loud: tuple[str, ...] = ()
    random: bool = False
    quick: bool = False
    worth: int = 0
    partial: _Partial | None = _result
    scipy: Callable[..., Any] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        function = lookup(scipy.optimize, self.name)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # compiled; scipy 1.17's linear_sum_assignment
            parameters = [
                inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                for name in self.data
            ]
        by_place = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        positional = tuple(p.name for p in parameters if p.kind in by_place)
        object.__setattr__(self, "scipy", function)
        object.__setattr__(self, "names", positional)
        object.__setattr__(self, "defaults", {p.name: p.default for p in parameters})

    # Arguments

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments by name, without those that repeat a default.

        Returns
        -------
        dict or None
            None for a call that scipy itself will refuse, or that is too small to remember.
        """
        if len(args) > len(self.names):
            return None
        bound = dict(zip(self.names, args, strict=False))
        if not bound.keys().isdisjoint(kwargs):
            return None
        if self.random and "rng" in bound:
            bound["seed"] = bound.pop("rng")  # by position it is what it was before scipy 1.15
        bound.update(kwargs)
        if self.function is None:
            if sum(_size(bound[name]) for name in self.data if name in bound) < self.worth:
                return None
            if self._moves_a_generator(bound):
                return None  # a hit would not leave the generator as the computation does
        elif not callable(bound.get(self.function)):
            return None
        default_of = self.defaults.get
        return {
            name: value
            for name, value in bound.items()
            if type(value) is not type(default := default_of(name, _NO_DEFAULT))
            or not _same(value, default)
            or name == "rng"
        }

    def _moves_a_generator(self, bound: Mapping[str, Any]) -> bool:
        """Whether a computation draws from a generator whose state decides it."""
        options = bound.get("options")
        options = options if isinstance(options, dict) else {}
        if states(list(options.values())):
            return True
        draws = "P0" in options or "shuffle_input" in options or bound.get("method", "faq") != "faq"
        return self.name == "quadratic_assignment" and draws and draws_seeded(options.get("rng"))

    def substitute(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the call with some arguments replaced where they stood.

        By position where they were by position: ``rng`` means different things in scipy by
        position and by name.
        """
        positional, named = list(args), dict(kwargs)
        for name, value in changes.items():
            place = self.names.index(name) if name in self.names else len(positional)
            if place < len(positional):
                positional[place] = value
            else:
                named[name] = value
        return positional, named

    def limits(self, bound: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the lower and upper bounds on the parameters."""
        bounds = bound.get("bounds")
        if bounds is None:
            return -np.inf, np.inf
        if isinstance(bounds, scipy.optimize.Bounds):
            return bounds.lb, bounds.ub
        if self.kind != "objective":  # a pair of vectors or numbers
            lower, upper = bounds
            return lower, upper
        pairs = np.array([[np.nan if v is None else v for v in pair] for pair in bounds], float)
        return (
            np.where(np.isnan(pairs[:, 0]), -np.inf, pairs[:, 0]),
            np.where(np.isnan(pairs[:, 1]), np.inf, pairs[:, 1]),
        )

    # Key

    def parts(self, bound: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Sort the arguments into model, data and settings."""
        model: dict[str, Any] = {"kind": self.kind}
        data: dict[str, Any] = {}
        settings: dict[str, Any] = {"method": self.name}
        place: dict[str, Any] = {}
        for name, value in bound.items():
            if name == self.function or name in GROUPS or name in ROLES:
                model[name] = value
            elif name in self.data:
                data[name] = value
            elif name == self.start:
                settings["x0"] = _initial_guess(value, self.casts)
            elif name in self.place:
                place[name] = value
            elif name == "method":
                settings["method"] = (self.name, value)
            elif name == "workers":
                if self.random and value != 1:  # changes how differential evolution updates
                    settings["workers"] = "many"
            elif name in BAGS and isinstance(value, dict):
                self._open(name, value, (model, data, settings))
            elif name in self.loud:
                if bool(value) != bool(self.defaults[name]):
                    settings[name] = bool(value)
            elif name not in self.hidden and name not in _RANDOM:
                settings[name] = value
        if place:
            settings["x0"] = (settings.get("x0"), place)
        if self.random:
            settings["rng"] = identity(bound)
        return model, data, settings

    def _open(self, name: str, bag: dict[str, Any], parts: tuple[dict[str, Any], ...]) -> None:
        """Sort a dict of arguments: functions are the model, workers are nobody's business."""
        model, data, settings = parts
        rest = {}
        for key, value in bag.items():
            if key in GROUPS or (key in ROLES and callable(value)):
                model[f"{name}.{key}"] = value
            elif key in self.data:
                data[f"{name}.{key}"] = value
            elif key != "workers":
                rest[key] = value
        settings[name] = rest

    # Functions

    def instrument(
        self,
        bound: Mapping[str, Any],
        wrap: Callable[[Function], Any],
        *,
        workers: Callable[[Any], Any],
        callback: Callable[[str, Any], Any],
    ) -> dict[str, Any]:
        """Return the arguments to replace so that every function of the user's is wrapped.

        Parameters
        ----------
        bound : mapping of str to object
            The call's arguments.
        wrap : callable
            Wraps a `Function`.
        workers : callable
            Wraps what was given as ``workers``.
        callback : callable
            Wraps a callback, given its label.
        """

        def walk(name: str, value: Any, label: str) -> Any:
            if name in ROLES and callable(value) and not isinstance(value, type):
                takes = REST if self.kind == "curve" else ROLES[name]
                return wrap(Function(label, value, takes, primary=False))
            if name in GROUPS:
                return group(value, label)
            if name in BAGS and isinstance(value, dict):
                return {key: walk(key, item, f"{label}.{key}") for key, item in value.items()}
            if name == "workers" and not _same(value, 1) and value is not None:
                return workers(value)
            if name == "callback" and callable(value):
                return callback(label, value)
            return value

        def group(value: Any, label: str) -> Any:
            if isinstance(value, (list, tuple)):
                items = [group(item, f"{label}[{i}]") for i, item in enumerate(value)]
                return items if isinstance(value, list) else tuple(items)
            if isinstance(value, dict):
                between = (0.0, 0.0 if value.get("type") == "eq" else np.inf)
                return {
                    key: wrap(
                        Function(
                            f"{label}.{key}",
                            item,
                            ONE,
                            primary=False,
                            between=between if key == "fun" else None,
                        )
                    )
                    if key in {"fun", "jac"} and callable(item)
                    else item
                    for key, item in value.items()
                }
            if type(value) is NonlinearConstraint:
                return _constraint(value, label, wrap)
            if callable(value):  # fmin_cobyla's: not below zero
                return wrap(Function(label, value, ONE, primary=False, between=(0.0, np.inf)))
            return value

        changes = {}
        for name, value in bound.items():
            if name == self.function:
                takes = REST if self.kind == "curve" else ONE
                takes = COLUMNS if bound.get("vectorized") else takes
                changed = wrap(Function(name, value, takes, primary=True))
            else:
                changed = walk(name, value, name)
            if changed is not value:
                changes[name] = changed
        return changes

    # Ranking

    def target(self, bound: Mapping[str, Any]) -> Callable[[Any], Any] | None:
        """Return what computes the number to rank points by from the function's value.

        Returns
        -------
        callable or None
            None where a lower value of the function does not mean a better point: where
            constraints or a loss decide as well.
        """
        if any(bound.get(name) is not None for name in GROUPS) or "loss" in bound:
            return None
        if self.kind in {"map", "elementwise"}:
            return None
        if self.kind == "curve":
            data, sigma = bound.get("ydata"), bound.get("sigma")
            if sigma is None or np.ndim(sigma) != 1:
                return lambda value: _half_squares(np.asarray(value) - data)
            weight = np.asarray(sigma)
            return lambda value: _half_squares((np.asarray(value) - data) / weight)
        if self.kind in {"residuals", "equations"}:
            if bound.get("jac") is True or bound.get("fprime") is True:
                return lambda value: _half_squares(value[0])
            return _half_squares
        if self.kind == "scalar":
            return lambda value: abs(value[0] if isinstance(value, tuple) else value)
        return first


def first(value: Any) -> Any:
    """Return the objective, without a gradient beside it."""
    return value[0] if type(value) is tuple else value


def _half_squares(residuals: Any) -> float:
    flat = residuals if type(residuals) is np.ndarray else np.asarray(residuals)
    flat = flat.ravel() if flat.ndim != 1 else flat
    return 0.5 * float(np.dot(flat, flat))


def _constraint(
    given: NonlinearConstraint, label: str, wrap: Callable[[Function], Any]
) -> NonlinearConstraint:
    def part(name: str, takes: str) -> Any:
        value = getattr(given, name)
        if not callable(value) or isinstance(value, type):
            return value
        between = (given.lb, given.ub) if name == "fun" else None
        return wrap(Function(f"{label}.{name}", value, takes, primary=False, between=between))

    return NonlinearConstraint(
        part("fun", ONE),
        given.lb,
        given.ub,
        jac=part("jac", ONE),
        hess=part("hess", TWO),
        keep_feasible=given.keep_feasible,
        finite_diff_rel_step=given.finite_diff_rel_step,
        finite_diff_jac_sparsity=given.finite_diff_jac_sparsity,
    )


def _size(value: Any) -> int:
    """Return the number of elements of an argument; constraints are ragged sequences of arrays."""
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return int(np.size(value.A if isinstance(value, LinearConstraint) else value))


_NO_DEFAULT: Any = object()


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) or not isinstance(value, _PLAIN):
        return False
    if isinstance(value, tuple):
        return len(value) == len(default) and all(map(_same, value, default))
    return bool(value == default)


_ORDINARY = frozenset({list, tuple, bool, int, float, complex, np.ndarray})


def _initial_guess(value: Any, casts: str) -> Any:
    """Return x0 as scipy takes it, so that a list and an array of the same numbers agree."""
    if type(value) not in _ORDINARY and not isinstance(value, np.generic):
        return value  # a masked array or a matrix: some functions keep its class
    array = np.asarray(value)
    return array.astype(float) if array.dtype.kind in casts else array


def lookup(module: Any, name: str) -> Any:
    """Return a function by its dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


_RANDOM = frozenset({"rng", "seed"})


def _minimizers() -> Sequence[Surface]:
    full5 = _x_or(lambda p: (p.scalar, p.evaluations, p.evaluations, STOPPED))
    objective: dict[str, Any] = {"kind": "objective"}
    return (
        Surface(name="minimize", function="fun", start="x0", casts="bi", **objective),
        Surface(
            name="differential_evolution",
            function="func",
            start="x0",
            casts="biu",
            hidden=("disp",),
            random=True,
            **objective,
        ),
        Surface(name="dual_annealing", function="func", start="x0", random=True, **objective),
        Surface(
            name="basinhopping",
            function="func",
            start="x0",
            casts="bi",
            hidden=("disp",),
            random=True,
            **objective,
        ),
        Surface(name="shgo", function="func", **objective),
        Surface(name="direct", function="func", **objective),
        Surface(
            name="brute",
            function="func",
            place=("ranges",),
            loud=("disp",),
            partial=_x_or(lambda p: (p.scalar, None, None)),
            **objective,
        ),
        Surface(
            name="minimize_scalar",
            function="fun",
            place=("bracket", "bounds"),
            quick=True,
            **objective,
        ),
        Surface(
            name="fmin",
            function="func",
            start="x0",
            casts="biu",
            loud=("disp",),
            partial=full5,
            **objective,
        ),
        Surface(
            name="fmin_powell",
            function="func",
            start="x0",
            loud=("disp",),
            partial=_x_or(lambda p: (p.scalar, None, p.evaluations, p.evaluations, STOPPED)),
            **objective,
        ),
        Surface(
            name="fmin_cg",
            function="f",
            start="x0",
            casts="biu",
            loud=("disp",),
            partial=full5,
            **objective,
        ),
        Surface(
            name="fmin_bfgs",
            function="f",
            start="x0",
            casts="biu",
            loud=("disp",),
            partial=_x_or(lambda p: (p.scalar, None, None, p.evaluations, p.evaluations, STOPPED)),
            **objective,
        ),
        Surface(
            name="fmin_ncg",
            function="f",
            start="x0",
            loud=("disp",),
            partial=_x_or(lambda p: (p.scalar, p.evaluations, p.evaluations, 0, STOPPED)),
            **objective,
        ),
        Surface(
            name="fmin_l_bfgs_b",
            function="func",
            start="x0",
            casts="biu",
            partial=lambda p, _: (
                p.x,
                p.scalar,
                {"task": p.message, "warnflag": STOPPED, "funcalls": p.evaluations},
            ),
            **objective,
        ),
        Surface(
            name="fmin_tnc",
            function="func",
            start="x0",
            casts="biu",
            hidden=("disp", "messages"),
            partial=lambda p, _: (p.x, p.evaluations, STOPPED),
            **objective,
        ),
        Surface(
            name="fmin_cobyla",
            function="func",
            start="x0",
            casts="biu",
            data=("args", "consargs"),
            hidden=("disp",),
            partial=_only_x,
            **objective,
        ),
        Surface(
            name="fmin_slsqp",
            function="func",
            start="x0",
            casts="biu",
            hidden=("disp", "iprint"),
            partial=_x_or(lambda p: (p.scalar, p.evaluations, STOPPED, p.message)),
            **objective,
        ),
        Surface(
            name="fminbound",
            function="func",
            place=("x1", "x2"),
            loud=("disp",),
            quick=True,
            partial=_x_or(lambda p: (p.scalar, STOPPED, p.evaluations)),
            **objective,
        ),
        Surface(
            name="brent",
            function="func",
            place=("brack",),
            quick=True,
            partial=_x_or(lambda p: (p.scalar, p.evaluations, p.evaluations)),
            **objective,
        ),
        Surface(
            name="golden",
            function="func",
            place=("brack",),
            quick=True,
            partial=_x_or(lambda p: (p.scalar, p.evaluations)),
            **objective,
        ),
        Surface(
            name="elementwise.find_minimum",
            function="f",
            kind="elementwise",
            place=("init",),
            partial=None,
        ),
    )


def _solvers() -> Sequence[Surface]:
    equations: dict[str, Any] = {"kind": "equations"}
    scalar: dict[str, Any] = {"function": "f", "kind": "scalar", "quick": True}
    return (
        Surface(
            name="least_squares",
            function="fun",
            kind="residuals",
            start="x0",
            casts="biu",
            data=("args", "kwargs"),
            hidden=("verbose",),
            partial=_least_squares,
        ),
        Surface(
            name="curve_fit",
            function="f",
            kind="curve",
            start="p0",
            data=("xdata", "ydata", "sigma"),
            partial=_curve_fit,
        ),
        Surface(name="leastsq", function="func", kind="residuals", start="x0", partial=_leastsq),
        Surface(name="root", function="fun", start="x0", **equations),
        Surface(
            name="fsolve",
            function="func",
            start="x0",
            partial=_x_or(lambda p: ({"fvec": p.value, "nfev": p.evaluations}, STOPPED, p.message)),
            **equations,
        ),
        Surface(
            name="fixed_point",
            function="func",
            kind="map",
            start="x0",
            casts="biu",
            quick=True,
            partial=_only_x,
        ),
        *(
            Surface(
                name=name,
                function="F",
                start="xin",
                casts="biu",
                hidden=("verbose",),
                partial=_only_x,
                **equations,
            )
            for name in (
                "broyden1",
                "broyden2",
                "anderson",
                "linearmixing",
                "diagbroyden",
                "excitingmixing",
                "newton_krylov",
            )
        ),
        Surface(name="root_scalar", place=("bracket", "x0", "x1"), partial=_root_results, **scalar),
        Surface(
            name="newton",
            function="func",
            kind="scalar",
            quick=True,
            place=("x0", "x1"),
            partial=_bracketed,
        ),
        *(
            Surface(name=name, place=("a", "b"), partial=_bracketed, **scalar)
            for name in ("bisect", "brentq", "brenth", "ridder", "toms748")
        ),
        Surface(
            name="elementwise.find_root",
            function="f",
            kind="elementwise",
            place=("init",),
            partial=None,
        ),
    )


# Sizes from which a computation takes a millisecond, twice what it takes to keep its result and
# twenty times a hit (dense random problems, 2026-11). An integer program may take for ever.
_ARRAYS: dict[str, tuple[tuple[str, ...], int]] = {
    "linprog": (("c", "A_ub", "b_ub", "A_eq", "b_eq"), 50),
    "milp": (("c", "constraints", "bounds"), 1),
    "lsq_linear": (("A", "b"), 10_000),
    "nnls": (("A", "b"), 40_000),
    "quadratic_assignment": (("A", "B"), 500),
    "linear_sum_assignment": (("cost_matrix", "maximize"), 40_000),
    "isotonic_regression": (("y", "weights"), 100_000),
}

SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        *_minimizers(),
        *_solvers(),
        *(
            Surface(name=name, function=None, kind="arrays", data=data, worth=worth, partial=None)
            for name, (data, worth) in _ARRAYS.items()
        ),
    )
}
