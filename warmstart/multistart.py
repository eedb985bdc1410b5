"""Local fits from many starts, and all the minima that they find."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.progress import Progress
from scipy.optimize import OptimizeResult
from scipy.stats import qmc

from warmstart import optimize
from warmstart.errors import ArgumentError, FingerprintError
from warmstart.fingerprint import FitSpec
from warmstart.run import Run, create_run
from warmstart.search import find_runs
from warmstart.session import inside_of, within
from warmstart.steps import Policy
from warmstart.store import Store
from warmstart.warm import options_of, store_of, using

__all__ = ["Minima", "Minimum", "multistart"]

Vector = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Minimum:
    """A minimum that was found.

    Parameters
    ----------
    x : (n,) array
        Where it is.
    fun : float
        The objective there.
    count : int
        Starts that ended in it.
    """

    x: Vector
    fun: float
    count: int


class Minima(OptimizeResult):  # type: ignore[misc]
    """The best fit's result, and all minima; printed, it is a row a minimum."""

    def __repr__(self) -> str:
        rows = [
            f"{minimum.fun:>12.6g}  {minimum.count:>6}  {_short(minimum.x)}"
            for minimum in self.minima[:_SHOWN]
        ]
        if len(self.minima) > _SHOWN:
            rows.append(f"and {len(self.minima) - _SHOWN:,} more in .minima")
        head = f"{len(self.minima):,} minima from {len(self.starts):,} starts"
        return "\n".join([head, f"{'fun':>12}  {'starts':>6}  x", *rows])


_SHOWN = 10


def _short(x: Vector) -> str:
    return np.array2string(x, precision=5, threshold=6, edgeitems=3, max_line_width=10_000)


def multistart(
    fun: Callable[..., Any],
    starts: ArrayLike | int,
    bounds: Any = None,
    args: tuple[Any, ...] = (),
    *,
    rng: Any = 0,
    tolerance: float = 1e-4,
    n_jobs: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Minima:
    """Minimize from many starts; killed at any instant, the same call does what is left.

    Parameters
    ----------
    fun : callable
        The objective, ``fun(x, *args)``.
    starts : (k, n) array or int
        Where the fits begin; or how many points of a Sobol sequence between the bounds.
    bounds : sequence or Bounds, optional
        As `scipy.optimize.minimize` takes them; finite if `starts` is a number.
    args : tuple
        More arguments of the objective.
    rng : int, Generator or None
        Which scrambling of the Sobol sequence; an int for the same one again, which is then
        remembered.
    tolerance : float
        Solutions are one minimum if they are no further apart than this, relative to the range of
        the starts, and their objectives, relative to the larger one.
    n_jobs : int, optional
        Processes (joblib).
    progress : bool
        Show a bar.
    **options
        For `scipy.optimize.minimize`: ``method``, ``jac``, ``tol``, ``options`` and the like.

    Returns
    -------
    Minima
        The best fit's OptimizeResult, with ``minima`` (list of `Minimum`, the best first),
        ``starts`` (k, n), ``results`` (one a start), and ``run``, the id of the run of which all
        fits are parts.

    Raises
    ------
    ArgumentError
        For starts that are none, for a number of them without finite bounds, and for a wrong
        `rng`, `tolerance` or `n_jobs`.

    Notes
    -----
    The run's state has the results so far, its active set the starts that are pending; both are
    written after each fit. A fit in flight goes on by its journal, as any other.

    Examples
    --------
    >>> import numpy as np
    >>> from warmstart import Store, using
    >>> from warmstart.multistart import multistart
    >>> def wells(x):
    ...     return float((x[0] ** 2 - 1.0) ** 2 + 0.1 * x[0])
    >>> with using(store=Store(":memory:")):
    ...     found = multistart(wells, 8, bounds=[(-2.0, 2.0)])
    >>> [round(float(minimum.x[0]), 2) for minimum in found.minima]
    [-1.01, 0.99]
    """
    points = _starts(starts, bounds, rng)
    if not callable(fun):
        raise ArgumentError(f"fun is a function of x, not {type(fun).__name__}")
    if not isinstance(tolerance, (int, float)) or not 0.0 < tolerance < 1.0:
        raise ArgumentError(f"tolerance is a number between 0 and 1, not {tolerance!r:.60}")
    if n_jobs is not None and (type(n_jobs) is not int or n_jobs == 0):
        raise ArgumentError(f"n_jobs is a number of processes or -1 for all, not {n_jobs!r:.60}")
    given = {"bounds": bounds, **options}
    store = store_of(options_of(None))
    run = store.attempt(lambda: _run(store, fun, points, args, given), None)
    results: dict[int, Any] = {}
    if run is not None:
        results = store.attempt(lambda: _done(run, len(points)), {})
    pending = [place for place in range(len(points)) if place not in results]
    calls = _Calls(fun, points, args, given, run)
    due = 0.0
    try:
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("starts", total=len(points), completed=len(results))
            for place, result in calls.run(pending, n_jobs):
                results[place] = result
                bar.update(task, completed=len(results))
                begun = time.perf_counter()
                # The state holds all results: it is written for a tenth of the time at most.
                # Fits that it does not tell of are remembered by themselves.
                if run is not None and (begun >= due or len(results) == len(points)):
                    left = {str(i): points[i] for i in pending if i not in results}
                    state = {str(i): _kept(results[i]) for i in results}
                    step = len(results)
                    store.attempt(
                        lambda: run.save_state(step, state, left, policy=_LAST),  # noqa: B023
                        False,
                        writes=True,
                    )
                    done = time.perf_counter()
                    due = done + 10.0 * (done - begun)
    except BaseException as error:
        if run is not None:
            quiet = isinstance(error, (KeyboardInterrupt, SystemExit))
            end, why = run.cancel if quiet else run.fail, f"{type(error).__name__}: {error}"
            store.attempt(lambda: end(why), run, writes=True)
        raise
    if run is not None and run.info.status == "running":
        store.attempt(run.complete, run, writes=True)
    return _gather(points, results, tolerance, run)


def _starts(starts: ArrayLike | int, bounds: Any, rng: Any) -> Vector:
    if isinstance(starts, (int, np.integer)) and not isinstance(starts, bool):
        if starts < 1:
            raise ArgumentError(f"starts is a number from 1 up or a (k, n) array, not {starts}")
        limits = _finite(bounds)
        if limits is None:
            given = "" if bounds is None else f", not {bounds!r:.60}"
            raise ArgumentError(
                f"{starts} starts are drawn between bounds, a finite lower and a higher upper one "
                f"for each parameter{given}: write bounds=[(-1, 1), ...], or give the starts "
                "themselves, a (k, n) array"
            )
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as reason:
            raise ArgumentError(
                f"rng is a number from 0 up, a Generator or None, not {rng!r:.60}: {reason}"
            ) from None
        draws = qmc.Sobol(len(limits[0]), rng=generator)
        unit = draws.random_base2(max(0, int(np.ceil(np.log2(starts)))))[:starts]
        return np.asarray(qmc.scale(unit, *limits))
    try:
        points = np.array(starts, float)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():
        raise ArgumentError(
            f"starts is a number or a (k, n) array of finite points, not {starts!r:.60}"
        )
    return points


def _finite(bounds: Any) -> tuple[Vector, Vector] | None:
    try:
        low, high = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else np.array(bounds, float).T
        low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
    except (TypeError, ValueError):
        return None
    sound = low.ndim == 1 and np.isfinite(low).all() and np.isfinite(high).all()
    return (low, high) if sound and np.all(low < high) else None


_LAST = Policy(last=2)


def _run(
    store: Store, fun: Any, points: Vector, args: tuple[Any, ...], given: dict[str, Any]
) -> Run:
    """Return the run of this call: the one that was not finished, or a new one."""
    settings = {name: value for name, value in given.items() if value is not None}
    spec = FitSpec(model=fun, data=[*args], settings={"starts": points, **settings})
    try:
        key = str(spec.key)
    except FingerprintError:
        key = ""
    for run in find_runs(store, ("key", "eq", key)) if key else ():
        if run.is_dead or run.info.status in {"failed", "cancelled"}:
            return run.resume()
    run = create_run(store, key=key, what=f"multistart {getattr(fun, '__name__', '')}".strip())
    return run.start()


def _done(run: Run, count: int) -> dict[int, Any]:
    """Return the results that an earlier attempt has left."""
    state = run.load_state()
    if state is None or not isinstance(state.state, dict):
        return {}
    found = {int(place): _result(kept) for place, kept in state.state.items() if place.isdigit()}
    return {place: result for place, result in found.items() if place < count and result}


def _kept(result: OptimizeResult) -> dict[str, Any]:
    names = ("x", "fun", "success", "status", "message", "nfev", "njev", "nit", "jac")
    return {name: result[name] for name in names if name in result}


def _result(kept: Any) -> OptimizeResult | None:
    return OptimizeResult(kept) if isinstance(kept, dict) and "x" in kept else None


class _Calls:
    """The fits: here, or in processes."""

    def __init__(
        self,
        fun: Any,
        points: Vector,
        args: tuple[Any, ...],
        given: dict[str, Any],
        run: Run | None,
    ) -> None:
        self._fun, self._points, self._args, self._given = fun, points, args, given
        self._within = None
        if run is not None:
            self._within = inside_of(run.store, run.info.experiment, run.id)
        asked = options_of(None)
        self._options = {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}

    def run(self, pending: Sequence[int], n_jobs: int | None) -> Iterator[tuple[int, Any]]:
        """Iterate over starts and results, as they come."""
        if n_jobs is None or n_jobs == 1:
            yield from map(self.one, pending)
            return
        try:
            from joblib import Parallel, delayed  # noqa: PLC0415 (optional)
        except ImportError:
            raise ArgumentError("n_jobs needs joblib: pip install joblib") from None
        jobs = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
        yield from jobs(delayed(self.one)(place) for place in pending)

    def one(self, place: int) -> tuple[int, Any]:
        """Do one fit."""
        with within(self._within), using(**self._options):
            found = optimize.minimize(
                self._fun, self._points[place], args=self._args, **self._given
            )
        return place, found


def _gather(points: Vector, results: dict[int, Any], tolerance: float, run: Run | None) -> Minima:
    ordered = [results[place] for place in range(len(points))]
    x = np.array([result.x for result in ordered])
    fun = np.array([float(np.ravel(result.fun)[0]) for result in ordered])
    scale = np.maximum(np.ptp(np.vstack([points, x]), axis=0), np.finfo(float).tiny)
    minima: list[Minimum] = []
    for place in np.argsort(fun, kind="stable"):
        if not np.isfinite(fun[place]):
            continue
        for number, known in enumerate(minima):
            close = np.max(np.abs(known.x - x[place]) / scale) <= tolerance
            size = max(abs(known.fun), abs(fun[place]), 1e-300)
            if close and abs(known.fun - fun[place]) <= tolerance * size + 1e-12:
                minima[number] = dataclasses.replace(known, count=known.count + 1)
                break
        else:
            minima.append(Minimum(x[place], float(fun[place]), 1))
    best = Minima(ordered[int(np.nanargmin(np.where(np.isfinite(fun), fun, np.inf)))])
    best.update(minima=minima, starts=points, results=ordered, run=run.id if run else None)
    return best
