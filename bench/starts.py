"""Near starts on families of fits to real data: evaluations of the user's function, all counted.

Run ``python bench/starts.py`` (some minutes), or with ``--quick`` (fewer fits, for CI).
``--json FILE`` writes all figures, ``--only TEXT`` chooses scenarios. Instead, ``--look-up``
measures how a look-up grows with the store, ``--search`` a grid search of scikit-learn's. It fails,
exit code 1, if a fit with one minimum ends higher than scipy's by more than its tolerance allows,
never on a figure.

Each scenario is a sequence of fits that a person would run one after the other: folds,
replicates, paths, windows; those of the NIST problems begin with the data themselves, from the
nearer of NIST's two starts, and go on from the farther one. It is run three times:

- *cold*: plain scipy, each fit from its own default start;
- *x only*: plain scipy, each fit from the solution of the one before, the usual trick;
- *near*: ``warmstart`` with ``near=True`` and an empty store: the first fit is cold, too, and
  what it takes, what curvature takes and what challengers take is counted.

Fits in which plain scipy ended in a higher minimum than the near one (*better*) are left out of
the ratios: it is no saving to stop early in the wrong place.

A call of the objective is one evaluation, with its gradient or without; a Jacobian by differences
is as many as it has columns. Nothing but scipy's own call is told to ``warmstart``: no rows, no
order, no names. Of the curves of NIST's problems it is told how many replicates are to come
(``expect``); and in the scenarios "with scores" the gradient of each row's loss, each call of which
is counted as one of the objective.
"""

from __future__ import annotations

# isort: off
from timing import machine
# isort: on

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.signal
import scipy.special
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import warmstart.optimize
from warmstart import Fingerprint, Store, using
from warmstart.backends import Batch
from warmstart.nearby import Place, index, neighbours
from warmstart.sketch import RowSketch, row_hashes
from warmstart.sklearn import WarmStarted


class Counted:
    """A function that counts its calls; the count is no part of what is fitted."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take the function."""
        self.function = function
        self.calls = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Counted, (self.function,)

    def __call__(self, *args: Any) -> Any:
        """Count, and evaluate."""
        self.calls += 1
        return self.function(*args)


@dataclass
class Fit:
    """One fit: what is counted, how to run it, and what it minimizes."""

    counted: Counted
    run: Callable[[Any, Any], Any]
    """Given a module like scipy.optimize and a start (None for the default one)."""
    value: Callable[[Any], float]
    """The objective at a result."""


@dataclass
class Scenario:
    """A family of fits.

    Parameters
    ----------
    name : str
        As it is shown.
    fits : callable
        Makes them, given how many.
    number : int
        How many.
    goal : float, optional
        To be reached.
    told : str
        What warmstart sees of the data: ``"call"``, ``"scores"`` or ``"curve"``.
    tolerance : float
        By how much an objective may be higher than the cold one's, relative. At loose
        tolerances cold fits themselves end that much above the minimum.
    convex : bool
        Whether there is one minimum; else a warm start may be a trap, and a cold one too.
    options : dict
        For warmstart.
    """

    name: str
    fits: Callable[[int], Iterator[Fit]]
    number: int
    goal: float | None = None
    told: str = "call"
    tolerance: float = 1e-5
    convex: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    better: int = 0
    sources: dict[str, int] = field(default_factory=dict)


# The objectives


def logistic(w, x, signs, lam):
    """Mean logistic loss with a ridge, and its gradient; the first column is the intercept."""
    z = signs * (x @ w)
    penalty = lam * np.r_[0.0, w[1:]]
    p = scipy.special.expit(-z)
    return np.logaddexp(0.0, -z).mean() + 0.5 * penalty @ w, -(x.T @ (signs * p)) / len(x) + penalty


def logistic_scores(w, x, signs, _lam):
    """Return the gradient of each row's loss."""
    return -x * (signs * scipy.special.expit(-signs * (x @ w)))[:, None]


SCORES = Counted(logistic_scores)


def multinomial(w, x, labels, classes, lam):
    """Mean multinomial loss with a ridge, and its gradient."""
    w = w.reshape(classes, -1)
    scores = x @ w.T
    top = scipy.special.logsumexp(scores, axis=1)
    p = np.exp(scores - top[:, None])
    p[np.arange(len(x)), labels] -= 1.0
    slopes = w.copy()
    slopes[:, 0] = 0.0
    value = (top - scores[np.arange(len(x)), labels]).mean() + 0.5 * lam * np.sum(slopes**2)
    return value, (p.T @ x / len(x) + lam * slopes).ravel()


def ridge(w, x, y, lam):
    """Mean squared error with a ridge, without its gradient."""
    left = x @ w - y
    return 0.5 * (left @ left) / len(y) + 0.5 * lam * (w[1:] @ w[1:])


def garch(theta, r):
    """Negative log-likelihood of GARCH(1, 1) in unbounded parameters, and its gradient."""
    omega, alpha, beta = (
        np.exp(theta[0]),
        scipy.special.expit(theta[1]),
        scipy.special.expit(theta[2]),
    )
    squares = r * r
    source = np.empty((3, len(r)))
    source[0, :], source[1, 0], source[2, 0] = omega, 0.0, 0.0
    h = np.empty(len(r))
    h[0] = squares.mean()
    lagged = scipy.signal.lfilter(
        [1.0], [1.0, -beta], omega + alpha * squares[:-1], zi=[beta * h[0]]
    )
    h[1:] = lagged[0]
    source[0, 1:], source[1, 1:], source[2, 1:] = omega, alpha * (1 - alpha) * squares[:-1], 0.0
    source[2, 1:] = beta * (1 - beta) * h[:-1]
    source[0, 0] = 0.0
    slopes = scipy.signal.lfilter([1.0], [1.0, -beta], source, axis=1)
    weight = 0.5 * (1.0 / h - squares / h**2)
    return 0.5 * np.mean(np.log(h) + squares / h), slopes @ weight / len(r)


def gaussian_process(theta, x, y):
    """Negative log marginal likelihood with one length scale a column, and its gradient."""
    theta = np.clip(theta, -15.0, 15.0)
    scales, amplitude, noise = np.exp(theta[:-2]), np.exp(theta[-2]), np.exp(theta[-1])
    apart = (x[:, None, :] - x[None, :, :]) / scales
    kernel = amplitude * np.exp(-0.5 * np.sum(apart**2, axis=2))
    try:
        factor = np.linalg.cholesky(kernel + (noise + 1e-8) * np.eye(len(x)))
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    weights = scipy.linalg.cho_solve((factor, True), y)
    inner = np.outer(weights, weights) - scipy.linalg.cho_solve((factor, True), np.eye(len(x)))
    gradient = [-0.5 * np.sum(inner * kernel * apart[:, :, j] ** 2) for j in range(x.shape[1])]
    gradient += [-0.5 * np.sum(inner * kernel), -0.5 * noise * np.trace(inner)]
    value = 0.5 * y @ weights + np.sum(np.log(np.diag(factor)))
    return value, np.array(gradient)


def scaled(x):
    """Return standardized columns, after one of ones."""
    x = np.asarray(x, float)
    spread = x.std(axis=0)
    return np.column_stack(
        [np.ones(len(x)), (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)]
    )


CANCER, BENIGN = datasets.load_breast_cancer(return_X_y=True)
CANCER, BENIGN = scaled(CANCER), 2.0 * BENIGN - 1.0


# The scenarios


def minimize(function, x0, args, tolerance=1e-6, **given) -> Fit:
    """Return a fit by L-BFGS-B with the gradient."""
    counted = Counted(function)
    given = {"jac": True, "method": "L-BFGS-B"} | given
    options = {"gtol": tolerance, "ftol": 1e-15, "maxiter": 5000, "maxfun": 100_000}

    def run(module, start):
        begin = x0 if start is None else start
        return module.minimize(counted, begin, args=args, options=options, **given)

    return Fit(counted, run, lambda result: float(result.fun))


def folds(x, y, number, seed=0):
    """Yield the rows of each fold's training set."""
    order = np.random.default_rng(seed).permutation(len(x))
    for fold in np.array_split(order, number):
        kept = np.setdiff1d(order, fold)
        yield x[kept], y[kept]


def logistic_folds(tolerance):
    def fits(number):
        for x, y in folds(CANCER, BENIGN, number):
            yield minimize(logistic, np.zeros(31), (x, y, 1.0 / 512), tolerance)

    return fits


def logistic_path(number):
    for lam in np.geomspace(1.0, 1e-4, number):
        yield minimize(logistic, np.zeros(31), (CANCER, BENIGN, lam))


def digits_folds(number):
    x, labels = datasets.load_digits(return_X_y=True)
    x = scaled(x / 16.0)
    for x_kept, kept in folds(x, labels, number):
        lam = 1.0 / len(x_kept)
        yield minimize(multinomial, np.zeros(10 * 65), (x_kept, kept, 10, lam), 1e-4)


def wine_path(number):
    x, labels = datasets.load_wine(return_X_y=True)
    x = scaled(x)
    for lam in np.geomspace(1.0, 1e-4, number):
        yield minimize(multinomial, np.zeros(3 * 14), (x, labels, 3, lam))


def diabetes_path(number):
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = scaled(x), (y - y.mean()) / y.std()
    for lam in np.geomspace(10.0, 1e-3, number):
        yield minimize(ridge, np.zeros(11), (x, y, lam), 1e-5, jac=None)


def logistic_bootstrap(number):
    rng = np.random.default_rng(1)
    for _ in range(number):
        drawn = np.sort(rng.integers(0, len(CANCER), len(CANCER)))
        yield minimize(logistic, np.zeros(31), (CANCER[drawn], BENIGN[drawn], 1.0 / 512), 1e-5)


def logistic_jackknife(number):
    for left in range(number):
        kept = np.arange(len(CANCER)) != left
        yield minimize(logistic, np.zeros(31), (CANCER[kept], BENIGN[kept], 1.0 / 512), 1e-5)


def with_all_first(scenario):
    """Return a scenario that fits all rows first, as whoever gives their scores would."""

    def fits(number):
        yield minimize(logistic, np.zeros(31), (CANCER, BENIGN, 1.0 / 512))
        yield from scenario(number)

    return fits


def returns():
    """Return daily returns of the S&P 500 in per cent, 1999 to 2018, from the package arch."""
    place = Path(find_spec("arch").submodule_search_locations[0]) / "data/sp500/sp500.csv.gz"
    rows = gzip.decompress(place.read_bytes()).decode().splitlines()[1:]
    prices = np.array([float(row.split(",")[5]) for row in rows])
    return 100.0 * np.diff(np.log(prices))


def garch_rolling(step):
    def fits(number):
        r = returns()
        for begin in range(0, number * step, step):
            yield minimize(garch, np.array([-3.0, -2.0, 2.0]), (r[begin : begin + 1000],), 1e-6)

    return fits


def rows_appended(number):
    for count in range(300, 300 + 10 * number, 10):
        yield minimize(logistic, np.zeros(31), (CANCER[:count], BENIGN[:count], 1.0 / 512), 1e-5)


def gaussian_processes(number):
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = scaled(x)[:, 1:], (y - y.mean()) / y.std()
    for count in range(100, 100 + 5 * number, 5):
        yield minimize(gaussian_process, np.zeros(12), (x[:count], y[:count]), 1e-4)


def nist(name):
    """Return the model, x, y, both starts and the certified values of a NIST problem."""
    from refnx.analysis.tests import NISTModels  # noqa: PLC0415

    function, _, _ = NISTModels.NIST_Models[name]
    found = NISTModels.ReadNistData(name, start="start1")
    other = NISTModels.ReadNistData(name, start="start2")
    x, y = found["x"], found["y"]
    if name == "Nelson":
        y = np.log(y)
    starts = [np.array([p.value for p in one["start"]]) for one in (found, other)]

    def model(x, *b):
        return function(x, b)

    return model, x, y, starts, found["cert_values"]


def curve(model, x, y, start) -> Fit:
    """Return a fit by `curve_fit`."""
    counted = Counted(model)

    def run(module, given):
        begin = start if given is None else given
        try:
            return module.curve_fit(counted, x, y, p0=begin, maxfev=20_000)
        except RuntimeError:
            return None

    def value(result):
        if result is None:
            return math.inf
        return float(np.sum((model(x, *result[0]) - y) ** 2))

    return Fit(counted, run, value)


def nist_bootstrap(name):
    def fits(number):
        model, x, y, (start, close), certified = nist(name)
        yield curve(model, x, y, close)
        fitted = model(x, *certified)
        rng = np.random.default_rng(2)
        for _ in range(number):
            drawn = fitted + rng.choice(y - fitted, len(y)) * np.sqrt(
                len(y) / (len(y) - len(start))
            )
            yield curve(model, x, drawn, start)

    return fits


def nist_jackknife(name):
    def fits(number):
        model, x, y, (start, close), _ = nist(name)
        yield curve(model, x, y, close)
        for left in range(min(number, len(y))):
            kept = np.arange(len(y)) != left
            yield curve(model, x[kept], y[kept], start)

    return fits


NIST = (
    *("Bennett5", "BoxBOD", "Chwirut1", "Chwirut2", "DanWood", "ENSO", "Eckerle4", "Gauss1"),
    *("Gauss2", "Gauss3", "Hahn1", "Kirby2", "Lanczos3", "MGH09", "MGH10", "MGH17", "Misra1a"),
    *("Misra1b", "Misra1c", "Misra1d", "Nelson", "Rat42", "Rat43", "Roszman1", "Thurber"),
)


def scenarios(*, quick: bool) -> list[Scenario]:
    """Return all scenarios."""
    part = 4 if quick else 1
    found = [
        Scenario("10-fold logistic, 1e-4", logistic_folds(1e-4), 10, tolerance=1e-4),
        Scenario("10-fold logistic, 1e-6", logistic_folds(1e-6), 10, goal=4.0),
        Scenario("10-fold multinomial digits", digits_folds, 10 // part, 4.0, tolerance=5e-4),
        Scenario("logistic path", logistic_path, 60 // part, goal=5.0),
        Scenario("multinomial wine path", wine_path, 60 // part, goal=5.0),
        Scenario("ridge path, differences", diabetes_path, 60 // part, goal=5.0),
        Scenario("logistic bootstrap", logistic_bootstrap, 50 // part),
        Scenario("logistic jackknife", logistic_jackknife, 100 // part, goal=8.0),
        Scenario("GARCH, window moves by 1", garch_rolling(1), 100 // part, goal=4.0),
        Scenario("GARCH, window moves by 50", garch_rolling(50), 40 // part, goal=4.0),
        Scenario("logistic, 10 rows appended", rows_appended, 25 // part),
        Scenario("Gaussian process, 5 rows more", gaussian_processes, 40 // part, convex=False),
        Scenario(
            "the same, every 5th challenged",
            gaussian_processes,
            40 // part,
            convex=False,
            options={"challenge": 5},
        ),
    ]
    for name, make, number in (
        ("10-fold logistic, with scores", logistic_folds(1e-6), 10),
        ("logistic jackknife, with scores", logistic_jackknife, 100 // part),
    ):
        options = {"scores": SCORES, "averaged": True, "expect": number}
        found.append(Scenario(name, with_all_first(make), number, told="scores", options=options))
    names = NIST[::6] if quick else NIST
    seen = {"told": "curve", "convex": False}
    for kind, make, number in (
        ("bootstrap", nist_bootstrap, 50 // part),
        ("jackknife", nist_jackknife, 40 // part),
    ):
        options = {"expect": number}
        found += [
            Scenario(f"{kind} {name}", make(name), number, options=options, **seen)
            for name in names
        ]
    return found


def x_of(result: Any) -> Any:
    """Return the solution of a result."""
    if result is None:
        return None
    return result[0] if isinstance(result, tuple) else result.x


def run(scenario: Scenario) -> None:
    """Run a scenario three times."""
    values: dict[str, list[float]] = {}
    for way in ("cold", "x only", "near"):
        counts = scenario.counts[way] = []
        found = values[way] = []
        last = None
        begin = time.perf_counter()
        with (
            warnings.catch_warnings(),
            using(store=Store(":memory:"), near=True, **scenario.options) as reports,
        ):
            warnings.simplefilter("ignore")
            for fit in scenario.fits(scenario.number):
                module = warmstart.optimize if way == "near" else scipy.optimize
                SCORES.calls = 0
                result = fit.run(module, last if way == "x only" else None)
                counts.append(fit.counted.calls + SCORES.calls)
                found.append(fit.value(result))
                last = x_of(result) if x_of(result) is not None else last
        scenario.seconds[way] = time.perf_counter() - begin
    for report in reports:
        by = report.source if report.near is None else report.near.predictor
        scenario.sources[by] = scenario.sources.get(by, 0) + 1
    cold, near = np.array(values["cold"]), np.array(values["near"])
    with np.errstate(invalid="ignore"):
        slack = scenario.tolerance * np.abs(cold) + 1e-12
        scenario.failures = int(np.sum(near > cold + slack))
        worse_cold = near < cold - 0.01 * np.abs(cold) - 1e-12
        scenario.better = int(np.sum(worse_cold))
    for way, counts in scenario.counts.items():
        kept = zip(counts, worse_cold, strict=True)
        scenario.counts[way] = [count for count, lost in kept if not lost]


def ratio(scenario: Scenario, way: str) -> float:
    """Return how many times fewer evaluations than cold; NaN where cold nearly always failed."""
    if len(scenario.counts["cold"]) < 5:
        return math.nan
    return sum(scenario.counts["cold"]) / max(1, sum(scenario.counts[way]))


def geometric(values: list[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.nanmean(np.log(values)))) if values else math.nan


def show(console: Console, found: list[Scenario]) -> None:
    """Print the tables."""
    table = Table(title="Evaluations, cold over warm", title_justify="left", title_style="bold")
    table.add_column("scenario", no_wrap=True)
    for name in ("fits", "cold", "x only", "near", "worst fit", "worse", "better", "goal", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        cold, near = one.counts["cold"], one.counts["near"]
        reached = ratio(one, "near")
        verdict = "" if one.goal is None else "[green]met" if reached >= one.goal else "[red]missed"
        table.add_row(
            one.name,
            str(len(cold)),
            f"{np.mean(cold):,.1f}" if cold else "",
            f"{ratio(one, 'x only'):.2f}",
            f"{'[red]' if reached < 1.0 else ''}{reached:.2f}",
            f"{max((n / max(c, 1) for n, c in zip(near, cold, strict=True)), default=0.0):.2f}",
            f"[red]{one.failures}" if one.failures else "0",
            str(one.better),
            "" if one.goal is None else f"{one.goal:g}",
            verdict,
        )
    console.print(table)
    for name in ("call", "scores", "curve"):
        group = [one for one in found if one.told == name]
        if group:
            console.print(
                f"{len(group)} scenarios of which it sees the {name}: geometric mean "
                f"{geometric([ratio(one, 'near') for one in group]):.2f} "
                f"(x only {geometric([ratio(one, 'x only') for one in group]):.2f})"
            )
    for kind, goal in (("bootstrap", 8.0), ("jackknife", 8.0)):
        group = [ratio(one, "near") for one in found if one.name.startswith(kind + " ")]
        if group:
            console.print(f"{kind} of NIST problems: {geometric(group):.2f}, goal {goal:g}")
    everything = geometric([ratio(one, "near") for one in found])
    console.print(f"all {len(found)}: geometric mean {everything:.2f}, goal 5")


def look_up(console: Console, largest: int) -> None:
    """Measure look-ups in stores of more and more fits: of other rows, and of other numbers."""
    rng = np.random.default_rng(0)
    rows = RowSketch.of(row_hashes([rng.normal(size=(200, 3))]))

    def place() -> Place:
        numbers = {"lam": float(np.exp(rng.normal()))}
        return Place(family=bytes(16), rows=rows, numbers=numbers, same=bytes(8))

    console.print("a look-up of the eight nearest: fits in the store, median us, p99 us")
    with tempfile.TemporaryDirectory() as folder, Store(folder, size_budget=1 << 36) as store:
        made, size = 0, 1000
        while size <= largest:
            while made < size:
                puts: dict[bytes, bytes] = {}
                for _ in range(1000):
                    puts |= index(Fingerprint(rng.bytes(32)), place())
                store.backend.apply(Batch(puts))
                made += 1000
            times = []
            for _ in range(300):
                asked = place()
                begin = time.perf_counter()
                assert len(neighbours(store.backend, asked)) == 8
                times.append(1e6 * (time.perf_counter() - begin))
            console.print(f"{size:>12,} {np.median(times):8.0f} {np.percentile(times, 99):8.0f}")
            size *= 10


def search(console: Console, *, quick: bool) -> bool:
    """Search the penalty of a logistic regression on the digits, plain and `WarmStarted`."""
    x, labels = datasets.load_digits(return_X_y=True)
    x = scaled(x / 16.0)[:, 1:]
    if quick:
        x, labels = x[:400], labels[:400]
    estimator = LogisticRegression(max_iter=2000, tol=1e-5)
    grid = np.geomspace(1e-3, 1.0, 4 if quick else 10)
    console.print("GridSearchCV of LogisticRegression on digits: fits, iterations, best C, seconds")
    best = []
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "plain": (estimator, "C"),
            "near": (WarmStarted(estimator, store=folder), "estimator__C"),
        }
        for way, (model, name) in ways.items():
            iterations: list[int] = []

            def score(fitted: Any, x: Any, y: Any, seen: list[int] = iterations) -> float:
                seen.append(int(np.sum(fitted.n_iter_)))
                return float(fitted.score(x, y))

            begin = time.perf_counter()
            found = GridSearchCV(model, {name: grid}, cv=5, scoring=score, refit=False).fit(
                x, labels
            )
            seconds = time.perf_counter() - begin
            best.append(found.best_params_[name])
            count = f"{len(iterations)} {sum(iterations):>8,}"
            console.print(f"{way:>8} {count} {best[-1]:10.4g} {seconds:8.1f}")
    return best[0] == best[1]


def main() -> int:
    """Run the scenarios, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer fits")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--look-up", action="store_true", help="how a look-up grows")
    parser.add_argument("--search", action="store_true", help="a grid search on digits")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{name} {value or 'no'}" for name, value in machine().items()))
    if given.look_up:
        look_up(console, 10_000 if given.quick else 1_000_000)
        return 0
    if given.search:
        return 0 if search(console, quick=given.quick) else 1
    found = [one for one in scenarios(quick=given.quick) if given.only in one.name]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for one in bar.track(found, description="scenarios"):
            run(one)
    show(console, found)
    if given.json:
        rows = [
            {"name": o.name, "counts": o.counts, "seconds": o.seconds, "worse": o.failures}
            | {"better": o.better, "predictors": o.sources}
            for o in found
        ]
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 1 if any(one.failures for one in found if one.convex) else 0


if __name__ == "__main__":
    sys.exit(main())
