"""``warmstart demo``: the main job on real data, checked against published answers."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.special import expit

from warmstart import optimize
from warmstart.errors import WarmstartError
from warmstart.fingerprint import Fingerprint
from warmstart.store import Store
from warmstart.warm import using

__all__ = ["DemoRow", "run_demo"]

# Flights before the Challenger accident: launch temperature in degrees Fahrenheit, and whether
# an O-ring was damaged. Rogers Commission report (1986); the estimates are those published by
# S. R. Dalal, E. B. Fowlkes and B. Hoadley, J. Am. Stat. Assoc. 84 (1989) 945-957.
_TEMPERATURE = np.array(
    [66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75, 76, 58.0]
)
_DAMAGE = np.array([0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1.0])
_PUBLISHED = np.array([15.0429, -0.2322])

_KILL_AFTER = 4000
"""Bytes in the journal: some sixty evaluations."""
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One line of the demo's table.

    Parameters
    ----------
    fit, what : str
        Which problem, and what was done with it.
    source : str
        What `FitReport` says of it, or ``"killed"``.
    evaluations, saved : int
        Calls of the objective made, and not made.
    seconds : float
        Wall time of the call.
    digits : float or None
        Digits in which the worst parameter agrees with the published value.
    """

    fit: str
    what: str
    source: str
    evaluations: int
    saved: int
    seconds: float
    digits: float | None


@dataclass(frozen=True, slots=True)
class _Nist:
    """A data set of NIST's StRD: start 1 or 2, certified parameters, data."""

    starts: NDArray[np.float64]
    certified: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def _load(name: str) -> _Nist:
    text = resources.files("warmstart").joinpath("data", f"{name}.dat").read_text("ascii")
    number = r"\s+([-+0-9.Ee]+)"
    rows = re.findall(rf"^ +b\d+ ={number}{number}{number}{number}", text, re.MULTILINE)
    parameters = np.array(rows, dtype=float)
    y, x = np.array(text.rpartition("Data:")[2].split()[2:], dtype=float).reshape(-1, 2).T
    return _Nist(parameters[:, :2].T, parameters[:, 2], x, y)


def thurber(x: NDArray[np.float64], *b: float) -> NDArray[np.float64]:
    """Return electron mobility by log density, a rational function of order 3/3."""
    return np.asarray(np.polyval(b[3::-1], x) / np.polyval((*b[:3:-1], 1.0), x))


def negative_log_likelihood(beta: NDArray[np.float64]) -> float:
    """Return that of damaged O-rings by launch temperature, a logistic regression."""
    linear = beta[0] + beta[1] * _TEMPERATURE
    return float(np.sum(np.logaddexp(0.0, linear) - _DAMAGE * linear))


def negative_score(beta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gradient of `negative_log_likelihood`."""
    excess = expit(beta[0] + beta[1] * _TEMPERATURE) - _DAMAGE
    return np.array([excess.sum(), excess @ _TEMPERATURE])


def growth_misfit(p: NDArray[np.float64], t: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the sum of squares of Richards' growth equation, integrated numerically.

    References
    ----------
    F. J. Richards, J. Exp. Bot. 10 (1959) 290-301. The solution is the model of StRD's Rat43
    with ``b1 = limit``, ``b3 = rate`` and ``b4 = shape``.
    """
    limit, rate, shape, first = p
    if min(p) <= 0.0:
        return 1e12
    solution = solve_ivp(
        lambda _, size: rate / shape * size * (1.0 - (size / limit) ** shape),
        (t[0], t[-1]),
        [first],
        method="DOP853",
        t_eval=t,
        rtol=1e-10,
        atol=1e-10,
    )
    if solution.y.shape[1] != t.size or not np.isfinite(solution.y).all():
        return 1e12
    return float(np.sum((solution.y[0] - y) ** 2))


def _fit_growth(minimize: Callable[..., Any]) -> Any:
    data = _load("Rat43")
    return minimize(
        growth_misfit,
        [700.0, 0.75, 1.3, 15.0],
        args=(data.x, data.y),
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-6, "maxiter": 4000, "maxfev": 8000},
    )


def _child(store: Store) -> None:
    with using(store=store, journal=True):  # whatever the disk does meanwhile
        _fit_growth(optimize.minimize)


def _digits(found: Sequence[float], published: NDArray[np.float64]) -> float:
    """Return the least number of digits in which two vectors agree, at most 11."""
    relative = np.max(np.abs((np.asarray(found) - published) / published))
    return float(-np.log10(max(relative, 1e-11)))


def run_demo(store: Store | None = None, note: Callable[[str], None] = print) -> list[DemoRow]:
    """Fit, fit again, kill a fit and resume it.

    Parameters
    ----------
    store : Store, optional
        A folder to keep; by default one that is deleted in the end.
    note : callable
        Told what is going on.

    Returns
    -------
    list of DemoRow
        One a step.

    Raises
    ------
    WarmstartError
        If an answer disagrees with the published one, or a step did not do what it is for.
    """
    with ExitStack() as stack:
        if store is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warmstart-demo-"))
            store = stack.enter_context(Store(folder))
        rows = [*_thurber(store, note), *_oring(store, note), *_growth(store, note)]
    for row in rows:
        if row.digits is not None and row.digits < 3.5:
            raise WarmstartError(f"{row.fit}, {row.what}: only {row.digits:.1f} digits agree")
    return rows


def _timed(
    fit: str, what: str, call: Callable[[], Any], parameters: Callable[[Any], float]
) -> DemoRow:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    report = result.warm
    return DemoRow(
        fit,
        what,
        report.source,
        report.evaluations or 0,
        report.evaluations_saved,
        seconds,
        parameters(result),
    )


def _thurber(store: Store, note: Callable[[str], None]) -> list[DemoRow]:
    note("NIST StRD Thurber: 7 parameters, curve_fit")
    data = _load("Thurber")

    def fit() -> Any:
        with using(store=store):
            return optimize.curve_fit(
                thurber, data.x, data.y, p0=data.starts[0], maxfev=5000, ftol=1e-14, xtol=1e-14
            )

    return [
        _timed("NIST Thurber", what, fit, lambda result: _digits(result[0], data.certified))
        for what in ("first time", "again")
    ]


def _oring(store: Store, note: Callable[[str], None]) -> list[DemoRow]:
    note("O-rings: logistic regression, minimize(method='BFGS')")

    def fit() -> Any:
        with using(store=store):
            return optimize.minimize(
                negative_log_likelihood, [0.0, 0.0], jac=negative_score, method="BFGS"
            )

    return [
        _timed("O-ring logistic", what, fit, lambda result: _digits(result.x, _PUBLISHED))
        for what in ("first time", "again")
    ]


def _growth(store: Store, note: Callable[[str], None]) -> list[DemoRow]:
    note("NIST StRD Rat43 as a simulator: a child process fits it, and is killed by SIGKILL")
    data = _load("Rat43")
    certified = data.certified[[0, 2, 3]]
    killed = _kill_a_fit(store)
    note("the same fit again, in this process")
    label = "Rat43 simulator"

    def fit() -> Any:
        with using(store=store, journal=True):
            results.append(_fit_growth(optimize.minimize))
        return results[-1]

    results: list[Any] = []
    rows = [
        _timed(label, what, fit, lambda result: _digits(result.x[:3], certified))
        for what in ("resumed", "again")
    ]
    for row, source in zip(rows, ("journal", "final"), strict=True):
        if row.source != source:
            raise WarmstartError(f"{label}, {row.what}: came from {row.source}, not {source}")
    note("and by scipy alone, to compare")
    plain = _fit_growth(scipy.optimize.minimize)
    for result in results:
        if result.x.tobytes() != plain.x.tobytes() or result.nfev != plain.nfev:
            raise WarmstartError(f"{label}: the resumed fit is not scipy's, bit for bit")
    return [killed, *rows]


def _kill_a_fit(store: Store) -> DemoRow:
    """Start the fit in a child, and kill that when some of it is in its journal."""
    shelf = store.journals
    assert shelf is not None
    before = set(shelf.paths())
    start = time.perf_counter()
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(store,))
    child.start()
    try:
        size, path = 0, None
        while size < _KILL_AFTER or path is None:
            if not child.is_alive() or time.perf_counter() - start > _PATIENCE:
                raise WarmstartError(
                    "the child process was done before it could be killed, or has not begun: "
                    "run the demo again"
                )
            child.join(0.02)
            for path in set(shelf.paths()) - before:
                size = path.stat().st_size
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    finally:
        child.kill()
    seconds = time.perf_counter() - start
    fit = Fingerprint(bytes.fromhex(path.parent.name))
    journal = shelf.find(fit, fit).journal
    evaluations = 0
    if journal is not None:
        evaluations = journal.count
        journal.close()
    return DemoRow("Rat43 simulator", "killed", "killed", evaluations, 0, seconds, None)
