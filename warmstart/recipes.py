"""Loops of nearly equal fits: paths, folds, bootstrap and jackknife replicates, profiles.

Each takes a function that does one fit by `warmstart.optimize`, with whatever of scipy.optimize it
likes, and calls it in an order in which each fit is near one that was done before. All of it is
remembered: the same loop again, or a longer one, does only what is new.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.progress import track
from scipy.optimize import OptimizeResult

from warmstart import optimize
from warmstart.errors import ArgumentError
from warmstart.session import Within, here, within
from warmstart.warm import FitReport, options_of, using

__all__ = ["Fits", "Replicates", "bootstrap", "fit_folds", "fit_path", "jackknife", "profile"]

Fit = Callable[..., Any]


@dataclass(frozen=True, repr=False)
class Fits:
    """The results of a loop, in the order in which they were asked for.

    Parameters
    ----------
    index : (k,) array
        The grid's values, or the numbers of the folds or replicates.
    x : (k, n) array
        The solutions.
    fun : (k,) array
        The objective at each; NaN where the result does not say.
    nfev : (k,) array of int
        Calls of the user's functions that each took now; 0 for one that was remembered, or
        if nobody counted.
    results : list
        What each fit returned.
    reports : list of FitReport
        How each began, and what it saved.
    scores : (k,) array or None
        Of the folds, if a score was asked for.
    estimate : (n,) array or None
        The solution of all of the data, where that was fitted as well.
    """

    index: NDArray[Any]
    x: NDArray[np.float64]
    fun: NDArray[np.float64]
    nfev: NDArray[np.int64]
    results: list[Any]
    reports: list[FitReport]
    scores: NDArray[np.float64] | None = None
    estimate: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        sources = Counter(report.source for report in self.reports)
        counts = ", ".join(f"{count:,} {source}" for source, count in sources.items())
        fits = f"{len(self.x):,} fits of {self.x.shape[1]:,} parameters"
        lines = [f"{fits}: {counts}; {self.nfev.sum():,} evaluations"]
        with np.printoptions(precision=5, threshold=6, edgeitems=3, linewidth=10_000):
            for name in ("scores", "estimate", "standard_error", "bias"):
                value = getattr(self, name, None)
                if value is not None:
                    lines.append(f"{name:>14}  {value}")
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row a fit.

        Returns
        -------
        pandas.DataFrame
            ``x0``, ``x1``, ...; ``fun``, ``nfev``, ``source``, and ``score`` if there is one.

        Raises
        ------
        ArgumentError
            Without pandas.
        """
        try:
            import pandas as pd  # noqa: PLC0415 (optional)
        except ImportError:
            raise ArgumentError("a DataFrame needs pandas: pip install pandas") from None

        columns: dict[str, Any] = {f"x{i}": self.x[:, i] for i in range(self.x.shape[1])}
        columns |= {"fun": self.fun, "nfev": self.nfev}
        columns["source"] = [report.source for report in self.reports]
        if self.scores is not None:
            columns["score"] = self.scores
        return pd.DataFrame(columns, index=pd.Index(self.index, name="index"))


@dataclass(frozen=True, repr=False)
class Replicates(Fits):
    """Solutions of resampled data.

    Parameters
    ----------
    standard_error, bias : (n,) arrays
        Of the estimate.
    """

    standard_error: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    bias: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def confidence_interval(self, level: float = 0.95) -> NDArray[np.float64]:
        """Return lower and upper limits, (2, n), by percentiles of the replicates.

        Efron and Tibshirani 1993, chapter 13. For bootstrap replicates.

        Parameters
        ----------
        level : float
            Between 0 and 1.

        Returns
        -------
        (2, n) array
            Lower and upper limits.
        """
        if not isinstance(level, (int, float)) or not 0.0 < level < 1.0:
            raise ArgumentError(f"level is a number between 0 and 1, not {level!r:.60}")
        tail = (1.0 - level) / 2.0
        return np.asarray(np.quantile(self.x, [tail, 1.0 - tail], axis=0))


def _solution(result: Any) -> tuple[NDArray[np.float64], float]:
    """Return the solution and the objective of whatever a function of scipy.optimize returns."""
    value: Any = math.nan
    if isinstance(result, OptimizeResult):
        x, value = result.get("x"), result.get("cost", result.get("fun", math.nan))
    else:
        x = result[0] if isinstance(result, tuple) else result
    try:
        solution = np.atleast_1d(np.asarray(x, float))
    except (TypeError, ValueError):
        raise ArgumentError(
            f"the fit returns what a function of scipy.optimize returns, not "
            f"{type(result).__name__}"
        ) from None
    return solution, float(value) if np.size(value) == 1 else math.nan


def _loop(
    fit: Fit,
    calls: Sequence[tuple[Any, ...]],
    *,
    n_jobs: int | None,
    progress: bool,
    description: str,
) -> list[tuple[Any, FitReport]]:
    """Do one fit a call, in turn or in as many processes; each begins near those before it."""
    if not isinstance(progress, bool):
        raise ArgumentError(f"progress is True or False, not {progress!r:.60}")
    if n_jobs is not None and (not _is_count(n_jobs) or n_jobs == 0):
        raise ArgumentError(f"n_jobs is a number of processes or -1 for all, not {n_jobs!r:.60}")
    if n_jobs is None or n_jobs == 1:
        shown: Iterable[tuple[Any, ...]] = (
            track(calls, description=description) if progress else calls
        )
        return [_one(fit, call) for call in shown]
    try:
        from joblib import Parallel, delayed, effective_n_jobs  # noqa: PLC0415 (optional)
    except ImportError:
        raise ArgumentError("n_jobs needs joblib: pip install joblib") from None
    asked = options_of(None)
    options = {name.name: getattr(asked, name.name) for name in dataclasses.fields(asked)}

    # Neighbours stay together, so that each process has a chain of its own to go along.
    parts = np.array_split(np.arange(len(calls)), effective_n_jobs(n_jobs))
    run = Parallel(n_jobs=n_jobs)
    chains = run(
        delayed(_chain)(fit, [calls[i] for i in part], options, here())
        for part in parts
        if len(part)
    )
    return [answer for chain in chains for answer in chain]


def _chain(
    fit: Fit, calls: list[tuple[Any, ...]], options: dict[str, Any], inside: Within | None
) -> list[tuple[Any, FitReport]]:
    with using(**options), within(inside):  # context variables do not cross to other processes
        return [_one(fit, call) for call in calls]


def _one(fit: Fit, call: tuple[Any, ...], expect: int = 0) -> tuple[Any, FitReport]:
    if not callable(fit):
        raise ArgumentError(f"fit is a function that does one fit, not {type(fit).__name__}")
    with using(near=True, expect=expect) as reports:
        result = fit(*call)
    if not reports:
        raise ArgumentError(
            "the fit did not call a function of warmstart.optimize: "
            "write from warmstart import optimize"
        )
    return result, reports[-1]


def _gather(
    answers: list[tuple[Any, FitReport]], index: NDArray[Any], scores: list[float] | None = None
) -> dict[str, Any]:
    solutions = [_solution(result) for result, _ in answers]
    return {
        "index": index,
        "x": np.array([x for x, _ in solutions]),
        "fun": np.array([value for _, value in solutions]),
        "nfev": np.array([report.evaluations or 0 for _, report in answers]),
        "results": [result for result, _ in answers],
        "reports": [report for _, report in answers],
        "scores": None if scores is None else np.array(scores),
    }


def fit_path(
    fit: Fit, grid: ArrayLike, *, n_jobs: int | None = None, progress: bool = False
) -> Fits:
    """Fit along a grid of a hyperparameter.

    Parameters
    ----------
    fit : callable
        ``fit(value)`` does one fit and returns its result. The value must reach the function
        that is fitted as one of ``args=``, or be named in ``using(hyper={...})``.
    grid : (k,) array
        In any order; the fits go along it from one end to the other.
    n_jobs : int, optional
        Processes (joblib), each with a part of the path.
    progress : bool
        Show a bar.

    Returns
    -------
    Fits
        In the order of the grid.

    Examples
    --------
    >>> import numpy as np
    >>> from warmstart import Store, optimize, using
    >>> from warmstart.recipes import fit_path
    >>> def objective(x, penalty):
    ...     return np.sum((x - 1.0) ** 2) + penalty * np.sum(x**2)
    >>> with using(store=Store(":memory:")):
    ...     found = fit_path(
    ...         lambda penalty: optimize.minimize(objective, np.zeros(2), args=(penalty,)),
    ...         [0.1, 1.0, 10.0],
    ...     )
    >>> found.x[:, 0].round(3).tolist()
    [0.909, 0.5, 0.091]
    """
    values = np.asarray(grid)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iuf":
        raise ArgumentError(f"grid is a list of numbers, not {grid!r:.60}")
    # From the large end: that is where regularisation makes fits easy.
    order = np.argsort(values)[::-1]
    calls = [(values[i].item(),) for i in order]
    found = _loop(fit, calls, n_jobs=n_jobs, progress=progress, description="path")
    answers = [found[place] for place in np.argsort(order)]
    return Fits(**_gather(answers, values))


def fit_folds(
    fit: Fit,
    cv: Any,
    data: Sequence[ArrayLike],
    *,
    score: Callable[..., float] | None = None,
    refit: bool = False,
    n_jobs: int | None = None,
    progress: bool = False,
) -> Fits:
    """Fit the training set of each fold of a cross-validation.

    Parameters
    ----------
    fit : callable
        ``fit(*training)`` does one fit and returns its result.
    cv : int or splitter or iterable of (train, test)
        A number of folds (consecutive rows), one of scikit-learn's splitters, or indices.
    data : sequence of arrays
        With a first axis in common.
    score : callable, optional
        ``score(x, *test)`` of the solution on the rows that were left out.
    refit : bool
        Fit all of the data, too, and first, so that the folds start from that: `estimate`.
    n_jobs, progress
        As in `fit_path`.

    Returns
    -------
    Fits
        A row a fold, with `scores`.
    """
    if score is not None and not callable(score):
        raise ArgumentError(
            f"score is a function of a solution and the rows left out, not {type(score).__name__}"
        )
    arrays = _rows(data)
    splits = _splits(cv, arrays)
    calls = [tuple(array[train] for array in arrays) for train, _ in splits]
    whole = _one(fit, tuple(arrays), expect=len(calls)) if refit else None
    answers = _loop(fit, calls, n_jobs=n_jobs, progress=progress, description="folds")
    scores = None
    if score is not None:
        scores = [
            float(score(_solution(result)[0], *(array[test] for array in arrays)))
            for (result, _), (_, test) in zip(answers, splits, strict=True)
        ]
    found = _gather(answers, np.arange(len(splits)), scores)
    return Fits(**found, estimate=_solution(whole[0])[0] if whole is not None else None)


def bootstrap(
    fit: Fit,
    data: Sequence[ArrayLike],
    n: int = 200,
    rng: Any = None,
    *,
    n_jobs: int | None = None,
    progress: bool = False,
) -> Replicates:
    """Fit resampled rows, as often as asked (Efron 1979).

    Parameters
    ----------
    fit : callable
        ``fit(*data)`` does one fit and returns its result.
    data : sequence of arrays
        With a first axis in common; rows are drawn with replacement.
    n : int
        Replicates.
    rng : int, Generator or None
        What decides the draws; an int for the same ones again, which are then remembered.
    n_jobs, progress
        As in `fit_path`.

    Returns
    -------
    Replicates
        Standard errors are those of the replicates, the bias their mean less the estimate.
    """
    arrays = _rows(data)
    if not _is_count(n) or n < 1:
        raise ArgumentError(f"n is a number of replicates from 1 up, not {n!r:.60}")
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as reason:
        raise ArgumentError(
            f"rng is a number from 0 up, a Generator or None, not {rng!r:.60}: {reason}"
        ) from None
    count = len(arrays[0])
    # Sorted, so that a model of neighbouring rows (a time series) sees them in their order.
    draws = [np.sort(generator.integers(0, count, count)) for _ in range(n)]
    made = _replicates(fit, arrays, draws, n_jobs=n_jobs, progress=progress)
    x, estimate = made["x"], made["estimate"]
    error = x.std(axis=0, ddof=1) if n > 1 else np.full_like(estimate, math.nan)
    return Replicates(**made, standard_error=error, bias=x.mean(axis=0) - estimate)


def jackknife(
    fit: Fit, data: Sequence[ArrayLike], *, n_jobs: int | None = None, progress: bool = False
) -> Replicates:
    """Fit the data with each row left out in turn (Quenouille 1956, Tukey 1958).

    Parameters
    ----------
    fit, data, n_jobs, progress
        As in `bootstrap`.

    Returns
    -------
    Replicates
        With the jackknife's standard error and bias.
    """
    arrays = _rows(data)
    count = len(arrays[0])
    kept = [np.delete(np.arange(count), row) for row in range(count)]
    made = _replicates(fit, arrays, kept, n_jobs=n_jobs, progress=progress)
    x, estimate = made["x"], made["estimate"]
    mean = x.mean(axis=0)
    error = np.sqrt((count - 1) / count * np.sum((x - mean) ** 2, axis=0))
    return Replicates(**made, standard_error=error, bias=(count - 1) * (mean - estimate))


def _replicates(
    fit: Fit,
    arrays: list[NDArray[Any]],
    rows: list[NDArray[np.intp]],
    *,
    n_jobs: int | None,
    progress: bool,
) -> dict[str, Any]:
    whole, _ = _one(fit, tuple(arrays), expect=len(rows))
    calls = [tuple(array[drawn] for array in arrays) for drawn in rows]
    answers = _loop(fit, calls, n_jobs=n_jobs, progress=progress, description="replicates")
    return _gather(answers, np.arange(len(rows))) | {"estimate": _solution(whole)[0]}


class _Held:
    """An objective with one parameter held."""

    def __init__(self, function: Callable[..., Any], place: int) -> None:
        self.function = function
        self.place = place

    def __call__(self, others: NDArray[np.float64], value: float, *args: Any) -> Any:
        return self.function(np.insert(others, self.place, value), *args)


def profile(
    fun: Callable[..., float],
    x0: ArrayLike,
    parameter: int | str,
    grid: ArrayLike,
    args: tuple[Any, ...] = (),
    *,
    n_jobs: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Fits:
    """Minimize over all parameters but one, which is held at each value of a grid.

    Parameters
    ----------
    fun : callable
        The objective, ``fun(x, *args)``: a negative log-likelihood, for its profile.
    x0 : (n,) array
        Where a first fit begins.
    parameter : int or str
        Which one is held: its place, or its name in ``using(parameters=[...])``.
    grid : (k,) array
        Its values.
    args : tuple
        More arguments of the objective.
    n_jobs, progress
        As in `fit_path`.
    **options
        For `scipy.optimize.minimize`: ``method``, ``tol``, ``options``.

    Returns
    -------
    Fits
        `fun` is the profile; `x` has all parameters, the held one included.
    """
    start = np.asarray(x0, float)
    if start.ndim != 1 or start.size < 2:
        raise ArgumentError("x0 is a vector of at least two parameters: one of them is held")
    names = options_of(None).names or ()
    if isinstance(parameter, str) and parameter in names:
        parameter = names.index(parameter)
    if not isinstance(parameter, int) or not 0 <= parameter < start.size:
        raise ArgumentError(
            f"parameter is a number from 0 to {start.size - 1}, or one of the names in "
            f"using(parameters=[...]), not {parameter!r}"
        )
    held, others = _Held(fun, parameter), np.delete(start, parameter)

    left = tuple(name for place, name in enumerate(names) if place != parameter) or None

    def fit(value: float) -> Any:
        with using(parameters=left):
            return optimize.minimize(held, others, args=(value, *args), **options)

    found = fit_path(fit, grid, n_jobs=n_jobs, progress=progress)
    whole = np.insert(found.x, parameter, found.index, axis=1)
    return Fits(found.index, whole, found.fun, found.nfev, found.results, found.reports)


def _rows(data: Sequence[ArrayLike]) -> list[NDArray[Any]]:
    if not isinstance(data, (list, tuple)) or not data:
        raise ArgumentError(
            f"data is a tuple of arrays with a first axis in common, not {type(data).__name__}: "
            "write data=(x, y)"
        )
    arrays = [np.asarray(array) for array in data]
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    if len(set(lengths)) != 1 or lengths[0] < 2:
        raise ArgumentError(
            "data is a tuple of arrays with a first axis in common, of two rows or more: "
            f"write data=(x, y); these have {', '.join(map(str, lengths[:8]))} rows"
        )
    return arrays


def _splits(cv: Any, arrays: list[NDArray[Any]]) -> list[tuple[Any, Any]]:
    count = len(arrays[0])
    if _is_count(cv):
        if not 2 <= cv <= count:
            raise ArgumentError(f"cv is a number of folds from 2 to {count}, not {cv}")
        tests = np.array_split(np.arange(count), cv)
        return [(np.setdiff1d(np.arange(count), test), test) for test in tests]
    if not isinstance(cv, str) and hasattr(cv, "split"):
        return list(cv.split(*arrays[:2]))
    try:
        return [(np.arange(count)[train], np.arange(count)[test]) for train, test in cv]
    except (IndexError, TypeError, ValueError) as error:
        raise ArgumentError(
            "cv is a number of folds, a splitter, or pairs (train, test) of row numbers, "
            f"not {cv!r:.60}: {error}"
        ) from None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
