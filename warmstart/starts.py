"""Where a fit begins that was never done, but nearly: neighbours, and a prediction.

The `Plan` is made before the fit from what the store has, without a call of the user's functions,
and is written into the journal's header, so that a fit that is killed goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from warmstart.fingerprint import Fingerprint, FitSpec
from warmstart.nearby import Neighbour, Place, neighbour, neighbours, place_of
from warmstart.packing import dumps, loads
from warmstart.predictors import (
    Curve,
    Curved,
    Linearized,
    Predictor,
    Problem,
    Scored,
    Solved,
    gauss_newton,
    influence,
    nearest,
    path,
    quadratic,
    regression,
)
from warmstart.sketch import row_hashes, rows_of
from warmstart.store import Store
from warmstart.surfaces import Surface

__all__ = [
    "LARGEST",
    "Names",
    "Plan",
    "calls_a_gradient",
    "curve_of",
    "place_for",
    "plan_of",
    "propose",
]

Vector = NDArray[np.float64]

ORDER: tuple[tuple[str, Predictor], ...] = (
    ("quadratic", quadratic.predict),
    ("gauss-newton", gauss_newton.predict),
    ("influence", influence.predict),
    ("path", path.predict),
    ("regression", regression.predict),
    ("nearest", nearest.predict),
)
_OUTLIER = 5.0
"""Times the lower sums of squares among near fits above which one is left out."""
LARGEST = 20_000
"""Rows up to which what each has to say is kept."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fit is to begin, and with which curvature.

    Parameters
    ----------
    x, nearest : bytes
        The predicted point, and the nearest solution, float64.
    metric : bytes or None
        The inverse Hessian of a near fit, float64, by rows.
    value, usual : float or None
        The objective of the near fit, and the median of all that were found.
    run, level, predictor : str
        Whose it was, what it shares, and what made the prediction.
    shared, distance : float
        See `Neighbour`.
    candidates : int
        Near fits that were found.
    buy : bool
        Whether a new inverse Hessian is to be bought at the predicted point.
    rent : float
        Evaluations spent, since one was bought last, beyond what a good one would have cost.
    bought : int
        How often one was bought in this chain of fits.
    curved : bytes or None
        The model to second order, of the rows of this fit.
    curved_in, scored_in : bytes or None
        The keys of the fits that have that model, and scores, for those that follow.
    linear : bytes or None
        Residuals and Jacobian of a near fit to other values, one for each of this fit's.
    population : bytes or None
        The population of the near fit, or its directions, float64, by rows.
    challenge : bool
        Whether a cold fit is to be run as well, and the better one returned.
    """

    x: bytes
    nearest: bytes
    metric: bytes | None
    value: float | None
    usual: float | None
    run: str
    level: str
    predictor: str
    shared: float
    distance: float
    candidates: int
    buy: bool
    rent: float
    bought: int
    curved: bytes | None = None
    curved_in: bytes | None = None
    scored_in: bytes | None = None
    population: bytes | None = None
    linear: bytes | None = None
    challenge: bool = False

    @property
    def way(self) -> str:
        """By which the ledger knows it."""
        return f"{self.level} {self.predictor}"

    def point(self) -> Vector:
        """Return the predicted point."""
        return np.frombuffer(self.x).copy()

    def model(self) -> Curved | None:
        """Return the model to second order."""
        return None if self.curved is None else _curved(loads(self.curved), len(self.x) // 8)

    def linearized(self) -> Linearized | None:
        """Return the residuals to first order."""
        return None if self.linear is None else _linearized(loads(self.linear), len(self.x) // 8)

    def spread(self) -> Vector | None:
        """Return the population or the directions."""
        if self.population is None:
            return None
        return np.frombuffer(self.population).reshape(-1, len(self.x) // 8).copy()

    def inverse_hessian(self) -> Vector | None:
        """Return the curvature."""
        if self.metric is None:
            return None
        size = len(self.x) // 8
        return np.frombuffer(self.metric).reshape(size, size).copy()


def plan_of(raw: bytes) -> Plan:
    """Return a plan from a journal's header.

    Raises
    ------
    ValueError
        If it is none.
    """
    plan = msgspec.msgpack.decode(raw, type=Plan)
    if np.frombuffer(plan.nearest).shape != plan.point().shape:
        raise ValueError("a plan of points of two sizes")
    plan.inverse_hessian()
    plan.model()
    plan.linearized()
    plan.spread()
    return plan


Names = tuple[str, ...] | None
"""Of the parameters, in the order of x."""


def place_for(surface: Surface, spec: FitSpec, names: Names = None) -> Place:
    """Return where a call stands among those of its model."""
    rows_in = "xdata" if surface.kind == "curve" else None
    return place_of(spec, rows_in, named=names is not None)


def propose(
    store: Store,
    surface: Surface,
    place: Place,
    bound: Mapping[str, Any],
    *,
    names: Names = None,
    rows: NDArray[np.uint64] | None = None,
    averaged: bool = False,
) -> tuple[Plan | None, str]:
    """Return where to begin, or None and why not.

    Parameters
    ----------
    store : Store
        Whose finals are searched.
    surface : Surface
        The function of scipy.optimize.
    place : Place
        Where the fit stands.
    bound : mapping of str to object
        The call's arguments.
    names : tuple of str, optional
        Of the parameters.
    rows : array of uint64, optional
        Hashes of the rows of its data, where their scores are given.
    averaged : bool
        Whether the objective is a mean over them.
    """
    if surface.start is None:
        return None, f"{surface.name} takes no start"
    given = bound.get(surface.start)
    remembered = _remembered(store, place, given, names)
    if names is not None and remembered:  # those that know the most of the parameters
        most = max(one.known for one in remembered)
        remembered = [one for one in remembered if one.known == most]
    if surface.kind in {"curve", "residuals"}:
        remembered = _without_outliers(remembered)
    curve = curve_of(surface, bound)
    if curve is not None:
        remembered.sort(key=lambda one: gauss_newton.misfit(curve, one.solved))
    if not remembered:
        return None, "nothing near is remembered"
    known = [one.solved for one in remembered]
    problem = Problem(place, known[0].x.size, curve, rows, averaged)
    predictor, x = _predict(problem, known, surface.limits(bound), given)
    if x is None:
        return None, "no near solution is within the bounds"
    metric, rent = _curvature(remembered)
    curved, curved_in = _model(problem, remembered)
    if curve is not None:  # the second derivatives of a curve are bought when it is over
        rent = max(remembered, key=lambda one: one.run).rent
    price = problem.size * calls_a_gradient(bound, problem.size)
    # An inverse Hessian is bought where it costs no more than the neighbour's own fit, which it
    # about halves at once; and again whenever the lack of one has cost as much (rent or buy).
    affordable = price <= (rent.rent if rent.bought else rent.evaluations)
    first = remembered[0]
    values = [one.value for one in remembered if one.value is not None]
    linear = None
    if surface.kind == "residuals" and predictor == "nearest" and curve is not None:
        linear = known[0].linearized
        if linear is not None and len(linear.rows) != len(curve.rows):
            linear = None
    return Plan(
        x=x.tobytes(),
        nearest=_pulled(known[0].x, given, surface.limits(bound)).tobytes(),
        metric=None if metric is None else metric.tobytes(),
        value=first.value,
        usual=float(np.median(values)) if values else None,
        run=first.run,
        level=known[0].neighbour.level.value,
        predictor=predictor,
        shared=known[0].neighbour.shared,
        distance=known[0].neighbour.distance,
        candidates=len(known),
        buy=affordable and metric is not None and not callable(bound.get("hess")),
        rent=rent.rent,
        bought=rent.bought,
        curved=curved,
        curved_in=curved_in,
        scored_in=next((one.scored_in for one in remembered if one.scored_in), None),
        linear=None if linear is None else dumps(linear._asdict()),
        population=None if first.spread is None else first.spread.astype(float).tobytes(),
    ), ""


class _Rent(NamedTuple):
    """What a chain of near fits has paid."""

    evaluations: float = 0.0
    rent: float = 0.0
    bought: int = 0


class _Remembered(NamedTuple):
    """A near fit, as the store has it."""

    solved: Solved
    value: float | None
    run: str
    rent: _Rent
    known: int
    """How many of the parameters it knows, where they have names."""
    curved_in: bytes | None
    """The key of the fit that has the model to second order."""
    scored_in: bytes | None
    """The key of the fit whose scores it was predicted from, or its own."""
    spread: Vector | None
    """Its population, or its directions."""


def _remembered(store: Store, place: Place, start: Any, names: Names) -> list[_Remembered]:
    """Return the near fits with as many parameters, or named ones, the nearest first."""
    owners: dict[bytes, Any] = {}
    # An infinite hyperparameter, or one that is no number, is as far from all others as can be.
    near = [
        one
        for one in neighbours(store.backend, place)
        if np.isfinite(one.distance) and np.isfinite(one.apart)
    ]
    found = [_remember(store, one, start, names, owners) for one in near]
    # Among many that are equally near, the one that has the scores of all rows is soon not among
    # the newest: those that were predicted from it know it.
    listed = {one.key.digest for one in near}
    missing = {one.scored_in for one in found if one and one.scored_in} - listed
    for key in sorted(missing):
        base = neighbour(store.backend, Fingerprint(key), place)
        if base is not None:
            found.append(_remember(store, base, start, names, owners))
    usable = [one for one in found if one is not None]
    return sorted(usable, key=lambda one: one.solved.neighbour.apart) if missing else usable


def _remember(
    store: Store, near: Neighbour, start: Any, names: Names, owners: dict[bytes, Any]
) -> _Remembered | None:
    """Return a near fit, if it has as many parameters, or named ones."""
    size = None if start is None else int(np.size(start))
    entry = store.best(near.key)
    asset = entry.payload.get("near") if entry and isinstance(entry.payload, dict) else None
    if names is not None and asset is not None and size is not None:
        asset = _by_name(asset, names, np.ravel(np.asarray(start, float)))
    if entry is None or not isinstance(asset, dict):
        return None
    solved = _solved(near, asset, size)
    if solved is None:
        return None
    owner, solved = _with_curved(store, solved, asset, owners)
    spent = asset.get("rent")
    rent = _Rent(*spent) if isinstance(spent, tuple) and len(spent) == 3 else _Rent()
    known = len(set(asset.get("names") or ()) & set(names or ()))
    scored_in = near.key.digest if solved.scored is not None else asset.get("scored_in")
    if not isinstance(scored_in, bytes) or len(scored_in) != len(near.key.digest):
        scored_in = None
    spread = asset.get("spread")
    if not isinstance(spread, np.ndarray) or spread.shape[1:] != solved.x.shape:
        spread = None
    return _Remembered(solved, entry.objective, entry.run, rent, known, owner, scored_in, spread)


def _with_curved(
    store: Store, solved: Solved, asset: dict[str, Any], owners: dict[bytes, Any]
) -> tuple[bytes | None, Solved]:
    """Add the model to second order that a fit has, or that of another to which it points."""
    owner, raw = solved.neighbour.key.digest, asset.get("curved")
    pointer = asset.get("curved_in")
    if raw is None and isinstance(pointer, bytes) and len(pointer) == len(owner):
        owner = pointer
        if owner not in owners:
            entry = store.best(Fingerprint(owner))
            payload = entry.payload if entry and isinstance(entry.payload, dict) else {}
            theirs = payload.get("near")
            owners[owner] = theirs.get("curved") if isinstance(theirs, dict) else None
        raw = owners[owner]
    curved, linear = _curved(raw, solved.x.size), solved.linearized
    if curved is None:
        return None, solved
    if linear is not None and np.array_equal(linear.rows, curved.linear.rows):
        curved = curved._replace(linear=linear)  # nearer; second derivatives change little
    return owner, solved._replace(curved=curved)


_BY_PLACE = {"metric", "linearized", "curved", "curved_in", "scored", "scored_in", "spread"}
"""What a near fit has left in the order of its own parameters."""


def _by_name(asset: Any, names: tuple[str, ...], start: Vector) -> dict[str, Any] | None:
    """Return what a near fit has left, in the order of these parameters.

    One that it lacks begins at x0; curvature is of use where both have the same ones.
    """
    theirs = asset.get("names") if isinstance(asset, dict) else None
    x = asset.get("x") if theirs else None
    if not isinstance(theirs, tuple) or not isinstance(x, np.ndarray) or len(theirs) != x.size:
        return None
    known = dict(zip(theirs, x, strict=True))
    if known.keys().isdisjoint(names) or len(names) != start.size:
        return None
    moved = {name: asset[name] for name in asset if name not in _BY_PLACE}
    moved["x"] = np.array([known.get(name, at) for name, at in zip(names, start, strict=True)])
    metric, model = asset.get("metric"), asset.get("linearized")
    if known.keys() == set(names):
        order = [theirs.index(name) for name in names]
        if isinstance(metric, np.ndarray) and metric.shape == (x.size, x.size):
            moved["metric"] = metric[np.ix_(order, order)]
        linearized = _linearized(model, x.size)
        if linearized is not None:
            at, jacobian = linearized.at[order], linearized.jacobian[:, order]
            moved["linearized"] = linearized._replace(at=at, jacobian=jacobian)._asdict()
    return moved


def _without_outliers(remembered: list[_Remembered]) -> list[_Remembered]:
    """Leave out fits whose sums of squares are many times those of the better ones."""
    values = [one.value for one in remembered if one.value is not None]
    if not values:
        return remembered
    edge = _OUTLIER * float(np.quantile(values, 0.25, method="lower"))
    return [one for one in remembered if one.value is None or one.value <= edge]


def _solved(neighbour: Neighbour, asset: dict[str, Any], size: int | None) -> Solved | None:
    """Return what a final left, if it fits: another number of parameters is no neighbour."""
    x, metric, model = asset.get("x"), asset.get("metric"), asset.get("linearized")
    if not isinstance(x, np.ndarray) or x.ndim != 1 or x.dtype != float:
        return None
    if not np.isfinite(x).all() or (size is not None and x.size != size):
        return None
    if not isinstance(metric, np.ndarray) or not _is_metric(metric, x.size):
        metric = None
    scored = _scored(asset.get("scored"), x.size)
    return Solved(neighbour, x, metric, _linearized(model, x.size), scored=scored)


def _is_metric(metric: Vector, size: int) -> bool:
    square = metric.shape == (size, size) and metric.dtype == float
    return square and bool(np.isfinite(metric).all()) and bool(np.all(np.diag(metric) > 0.0))


def _linearized(model: Any, size: int) -> Linearized | None:
    if not isinstance(model, dict) or model.keys() != set(Linearized._fields):
        return None
    made = Linearized(**model)
    if not all(isinstance(item, np.ndarray) for item in made):
        return None
    count = len(made.rows)
    shapes = [item.shape for item in made]
    return made if shapes == [(count,), (size,), (count,), (count, size)] else None


def _scored(raw: Any, size: int) -> Scored | None:
    if not isinstance(raw, dict) or raw.keys() != set(Scored._fields):
        return None
    made = Scored(**raw)
    if not all(isinstance(item, np.ndarray) for item in made):
        return None
    count = len(made.rows)
    fits = [item.shape for item in made] == [(count,), (size,), (count, size)]
    return made if fits and np.isfinite(made.scores).all() else None


def _curved(raw: Any, size: int) -> Curved | None:
    if not isinstance(raw, dict) or raw.keys() != set(Curved._fields):
        return None
    linear = _linearized(raw["linear"], size)
    basis, second = raw["basis"], raw["second"]
    if linear is None or not (isinstance(basis, np.ndarray) and isinstance(second, np.ndarray)):
        return None
    shapes = basis.shape, second.shape
    fits = shapes == ((size, size), (len(linear.rows), size, size))
    if not fits or not (np.isfinite(basis).all() and np.linalg.matrix_rank(basis, 0.0) == size):
        return None
    return Curved(linear, basis, second)


def _model(
    problem: Problem, remembered: Sequence[_Remembered]
) -> tuple[bytes | None, bytes | None]:
    """Return the model to second order of this fit's rows, and whose it is."""
    curve = problem.curve
    for one in remembered:
        curved = one.solved.curved
        if curve is None or curved is None or one.solved.neighbour.distance > 0.0:
            continue
        places, there = gauss_newton.match(curved.linear, curve)
        if there.all():
            ours = quadratic.taken(curved, places)
            raw = {**ours._asdict(), "linear": ours.linear._asdict()}
            return dumps(raw), one.curved_in
    return None, None


def _pulled(x: Vector, start: Any, limits: tuple[Any, Any]) -> Vector:
    """Return a point within the bounds, in which what is next to nothing is nothing.

    scipy's trust regions begin with the size of x: from a solution of 1e-23 instead of 0 they
    take steps of 1e-23, and end there, content (least_squares, scipy 1.17).
    """
    if start is not None and np.shape(start) == x.shape:
        x = np.where(np.abs(x) < 1e-8 * np.abs(np.asarray(start, float)), 0.0, x)
    return np.asarray(np.clip(x, *limits), float)


def _predict(
    problem: Problem, known: Sequence[Solved], limits: tuple[Any, Any], start: Any
) -> tuple[str, Vector | None]:
    """Return the first predictor that has an answer, and that."""
    for name, predict in ORDER:
        x = predict(problem, known)
        if x is not None and np.isfinite(x).all():
            return name, _pulled(x, start, limits)
    return "", None


def _curvature(remembered: Sequence[_Remembered]) -> tuple[Vector | None, _Rent]:
    """Return the curvature to use, and what the fits that it comes from have paid.

    That of the nearest, or of the newest of those about as near, since it was handed on and
    improved; one that was bought goes before.
    """
    edge = 2.0 * remembered[0].solved.neighbour.apart + 0.05
    usable = [one for one in remembered if one.solved.metric is not None]
    close = [one for one in usable if one.solved.neighbour.apart <= edge] or usable[:1]
    if not close:
        return None, _Rent()
    best = max(close, key=lambda one: (one.rent.bought, one.run))
    return best.solved.metric, best.rent


def calls_a_gradient(bound: Mapping[str, Any], size: int) -> int:
    """Return how many evaluations a gradient takes."""
    return 1 if bound.get("jac") is not None else size + 1


def curve_of(surface: Surface, bound: Mapping[str, Any]) -> Curve | None:
    """Return the data of a curve, where it is one of numbers.

    Residuals that depend on rows of arguments, one each, are a curve that is fitted to zero;
    whether they do is seen when their Jacobian is kept.
    """
    if surface.kind == "residuals" and bound.get("loss", "linear") == "linear":
        given = bound.get("args", ())
        arrays = rows_of(given if isinstance(given, tuple) else (given,))
        if bound.get("kwargs") or not arrays or len(arrays[0]) > LARGEST:
            return None
        count = len(arrays[0])
        return Curve(row_hashes(arrays), np.zeros(count), np.ones(count))
    if surface.kind != "curve":
        return None
    try:
        y = np.asarray(bound["ydata"], float)
        xdata = np.asarray(bound["xdata"])
        sigma = np.asarray(1.0 if bound.get("sigma") is None else bound["sigma"], float)
        if y.ndim != 1 or sigma.ndim > 1 or len(y) > LARGEST:
            return None
        # Predictors of a model may stand by columns: (k, m) for m values.
        rows = xdata.T if xdata.ndim == 2 and xdata.shape[1] == len(y) else xdata
        if len(rows) != len(y) or not np.isfinite(y).all():
            return None
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            return None  # scipy may leave out such rows
        return Curve(row_hashes([rows]), y, np.broadcast_to(1.0 / sigma, y.shape))
    except (TypeError, ValueError, KeyError):
        return None
