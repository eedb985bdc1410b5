"""Near starts: predictors against their formulas, curvature, and fits that begin near others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import msgspec
import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import in_child
from sklearn.datasets import load_breast_cancer

from warmstart import ArgumentError, FitSpec, NearError, Store, Warm, optimize, using
from warmstart.backends.memory import MemoryBackend
from warmstart.curvature import Gathered, descend, differences, updated
from warmstart.fingerprint import Fingerprint, Level
from warmstart.learned import COLD, Family, load, note, orphans
from warmstart.nearby import Neighbour, Place
from warmstart.predictors import (
    Curve,
    Linearized,
    Problem,
    Solved,
    gauss_newton,
    nearest,
    path,
    regression,
)
from warmstart.starts import place_for, plan_of
from warmstart.surfaces import SURFACES

RNG = np.random.default_rng(0)
FREE = (-np.inf, np.inf)


def place(**numbers):
    return Place(family=b"", rows=None, numbers=numbers, same=b"")


def solved(x, shared=1.0, distance=0.1, **numbers):
    key = Fingerprint(bytes(32))
    near = Neighbour(key, place(**numbers), Level.SIBLING_HYPER, shared, distance)
    return Solved(near, np.asarray(x, float))


class TestPredictors:
    """Each one on a problem whose answer is known."""

    def test_nearest(self):
        known = [solved([1.0, 2.0]), solved([3.0, 4.0])]
        assert nearest.predict(Problem(place(), 2), known).tolist() == [1.0, 2.0]
        assert nearest.predict(Problem(place(), 2), []) is None

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_polynomials_in_the_logarithm_are_continued(self, order):
        """A path of order k through k + 3 points is predicted exactly."""
        coefficients = RNG.normal(size=(order + 1, 4))

        def solution(lam):
            return sum(c * np.log(lam) ** k for k, c in enumerate(coefficients))

        grid = [8.0 / 1.3**k for k in range(1, order + 4)]
        known = [solved(solution(lam), lam=lam) for lam in grid]
        found = path.predict(Problem(place(lam=8.0), 4), known)
        np.testing.assert_allclose(found, solution(8.0), rtol=1e-8)

    def test_two_points_make_a_line_and_one_none(self):
        known = [solved([1.0], t=2.0), solved([3.0], t=4.0)]
        found = path.predict(Problem(place(t=8.0), 1), known[::-1])
        assert found == pytest.approx([5.0])
        assert path.predict(Problem(place(t=8.0), 1), known[:1]) is None

    def test_noise_is_not_continued(self):
        """Where no order predicts the last solution, the last one it is."""
        known = [solved(RNG.normal(size=20), t=1.1**k) for k in range(8, 0, -1)]
        found = path.predict(Problem(place(t=1.1**9), 20), known)
        assert np.array_equal(found, known[0].x)

    def test_far_points_are_not_reached(self):
        known = [solved([1.0], t=1.0), solved([1.1], t=1.1)]
        assert path.predict(Problem(place(t=100.0), 1), known) is None

    def test_other_data_and_two_numbers_are_no_path(self):
        known = [solved([1.0], t=1.0, s=1.0), solved([2.0], t=2.0, s=2.0)]
        assert path.predict(Problem(place(t=3.0, s=3.0), 1), known) is None
        known = [solved([1.0], shared=0.5, t=1.0), solved([2.0], shared=0.5, t=2.0)]
        assert path.predict(Problem(place(t=3.0), 1), known) is None

    def test_planes_are_found(self):
        """Linear in the logarithms of two hyperparameters."""
        slope = RNG.normal(size=(2, 3))

        def at(a, b):
            return np.log([a, b]) @ slope + 1.0

        points = np.exp(0.2 * RNG.normal(size=(6, 2)))
        known = [solved(at(a, b), a=a, b=b) for a, b in points]
        found = regression.predict(Problem(place(a=1.0, b=1.0), 3), known)
        np.testing.assert_allclose(found, at(1.0, 1.0), atol=1e-4)
        assert regression.predict(Problem(place(a=1.0, b=1.0), 3), known[:3]) is None
        assert regression.predict(Problem(place(a=90.0, b=1.0), 3), known) is None

    def linear(self):
        """A linear model, about a wrong point, and data that it was not fitted to."""
        design = RNG.normal(size=(30, 3))
        at = RNG.normal(size=3)
        rows = np.arange(30, dtype=np.uint64)
        return design, Linearized(rows, at, design @ at, design)

    @pytest.mark.parametrize("drawn", [np.arange(30), np.arange(5, 30), RNG.integers(0, 30, 30)])
    def test_linear_least_squares_is_solved_at_once(self, drawn):
        """New values, weights, rows left out or drawn again: the exact solution, no evaluation."""
        design, model = self.linear()
        y, weights = RNG.normal(size=len(drawn)), RNG.uniform(0.5, 2.0, len(drawn))
        known = solved(model.at, distance=0.0)._replace(linearized=model)
        problem = Problem(place(), 3, Curve(model.rows[drawn], y, weights))
        exact, *_ = np.linalg.lstsq(weights[:, None] * design[drawn], weights * y, rcond=None)
        np.testing.assert_allclose(gauss_newton.predict(problem, [known]), exact, rtol=1e-9)

    def test_other_rows_are_unknown(self):
        _, model = self.linear()
        known = solved(model.at, distance=0.0)._replace(linearized=model)
        curve = Curve(model.rows + np.uint64(100), np.ones(30), np.ones(30))
        assert gauss_newton.predict(Problem(place(), 3, curve), [known]) is None
        assert gauss_newton.predict(Problem(place(), 3), [known]) is None


def quadratic(size=6, seed=1):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) + 2.0 * np.eye(size)
    hessian, solution = root @ root.T, rng.normal(size=size)

    def both(x):
        return 0.5 * (x - solution) @ hessian @ (x - solution), hessian @ (x - solution)

    return both, hessian, solution


class TestCurvature:
    """Inverse Hessians, and descending by them."""

    def test_updates_satisfy_the_secant_equation(self):
        _, hessian, _ = quadratic()
        step = RNG.normal(size=6)
        made = updated(np.eye(6), step, hessian @ step)
        np.testing.assert_allclose(made @ hessian @ step, step)
        assert np.array_equal(made, made.T)
        assert np.linalg.eigvalsh(made).min() > 0.0
        assert updated(made, step, -step) is made

    def test_differences_of_gradients(self):
        both, hessian, solution = quadratic()
        x = solution + 1.0
        made = differences(lambda x: both(x)[1], x, both(x)[1], FREE)
        np.testing.assert_allclose(made, np.linalg.inv(hessian), rtol=1e-5)
        saddle = differences(lambda x: x * [1.0, -1.0], np.ones(2), np.array([1.0, -1.0]), FREE)
        assert saddle is None

    def test_differences_stay_within_the_bounds(self):
        both, _, _ = quadratic()
        seen = []
        differences(lambda x: seen.append(x) or both(x)[1], np.ones(6), both(np.ones(6))[1], (0, 1))
        assert np.max(seen) == 1.0

    def test_pairs_of_a_fit(self):
        """The points of conjugate directions make the inverse Hessian of a quadratic."""
        both, hessian, _ = quadratic()
        gathered = Gathered(6)
        _, directions = np.linalg.eigh(hessian)
        x = np.zeros(6)
        for direction in directions.T:
            gathered.add(x, both(x)[1])
            x = x + direction
        gathered.add(x, both(x)[1])
        np.testing.assert_allclose(gathered.metric(), np.linalg.inv(hessian), rtol=1e-8)
        assert Gathered(6).metric() is None

    def test_newton_steps(self):
        """The exact inverse Hessian of a quadratic: one step."""
        both, hessian, solution = quadratic()
        found = descend(both, solution + 1.0, np.linalg.inv(hessian), limits=FREE, tolerance=1e-8)
        np.testing.assert_allclose(found.x, solution)
        assert (found.iterations, found.why) == (1, None)

    def test_bounds(self):
        """As L-BFGS-B finds it, where parameters end on their bounds."""
        both, hessian, solution = quadratic()
        lower = np.where(np.arange(6) % 2, solution + 0.3, -np.inf)
        bounds = scipy.optimize.Bounds(lower, np.inf)
        plain = scipy.optimize.minimize(
            both, lower.clip(-1), jac=True, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9}
        )
        found = descend(
            both, plain.x + 0.1, np.linalg.inv(hessian), limits=(lower, np.inf), tolerance=1e-7
        )
        assert found.why is None
        np.testing.assert_allclose(found.x, plain.x, atol=1e-6)

    @pytest.mark.parametrize(
        ("metric", "why"),
        [
            (1e4 * np.eye(6), "the first step had to be cut"),
            (1e-6 * np.eye(6), "the predicted decrease did not come"),
            (-np.eye(6), "the curvature is not that of a minimum"),
        ],
    )
    def test_what_is_no_curvature_is_given_up(self, metric, why):
        both, _, solution = quadratic()
        calls = []
        found = descend(
            lambda x: calls.append(x) or both(x), solution + 1.0, metric, limits=FREE, tolerance=0.1
        )
        assert found.why == why
        assert found.metric is None
        assert len(calls) <= 10

    def test_what_is_not_finite_is_given_up(self):
        def both(x):
            return np.nan, x

        found = descend(both, np.ones(2), np.eye(2), limits=FREE, tolerance=0.1)
        assert "not finite" in found.why


X, Y = load_breast_cancer(return_X_y=True)
X = np.column_stack([np.ones(len(X)), (X - X.mean(0)) / X.std(0)])
SIGNS = 2.0 * Y - 1.0


class Logistic:
    """A logistic regression; counts its evaluations, and may end at one of them."""

    def __init__(self, at=None, deed=None):
        self.count, self.at, self.deed = 0, at, deed

    def __reduce__(self):
        return Logistic, ()

    def __call__(self, w, x, signs, lam):
        self.count += 1
        if self.count == self.at:
            self.deed()
        z = signs * (x @ w)
        p = scipy.special.expit(-z)
        penalty = lam * np.r_[0.0, w[1:]]
        value = np.logaddexp(0.0, -z).mean() + 0.5 * penalty @ w
        return value, -(x.T @ (signs * p)) / len(x) + penalty


def logistic(module, lam, rows=slice(None), function=None, **options):
    function = function or Logistic()
    result = module.minimize(
        function,
        np.zeros(31),
        args=(X[rows], SIGNS[rows], lam),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-5, "ftol": 1e-14, "maxiter": 500} | options,
    )
    return result, function.count


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


def residuals(x, shift):
    return np.array([x[0] - shift, x[1] - 2.0 * shift, 0.1 * (x[0] - shift) ** 2])


class TestNearFits:
    """Fits that begin where others ended."""

    @pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 1e308])
    def test_hyperparameters_that_are_no_numbers(self, odd):
        """Nothing is near to them; the fit is as scipy's, and nobody hears of it."""

        def bowl(x, a, cap):
            return float(np.sum((x - a) ** 2) + (0.0 if cap > 0.0 else np.sum(x**4)))

        plain = scipy.optimize.minimize(bowl, np.zeros(3), args=(0.1, odd))
        with using(store=":memory:", near=True):
            for cap in (1.0, 10.0, odd, 5.0, odd):
                found = optimize.minimize(bowl, np.zeros(3), args=(0.1, cap))
        np.testing.assert_allclose(found.x, plain.x, atol=1e-4)
        with using(store=":memory:", near=True):
            for p in (1.0, 2.0, odd):
                with using(hyper={"p": p}):
                    optimize.minimize(bowl, np.zeros(3), args=(0.1, 1.0))

    def test_never_unless_asked(self, store):
        """Law 1: what began near is no answer to who did not ask for it; nor are its journals."""
        with using(store=store, journal=True):
            with using(near=True):
                logistic(optimize, 0.01)
                assert logistic(optimize, 0.011)[0].warm.source == "near"
            result, _ = logistic(optimize, 0.011)
        plain, _ = logistic(scipy.optimize, 0.011)
        assert result.warm.source == "cold"
        assert result.x.tobytes() == plain.x.tobytes()
        assert result.nfev == plain.nfev

    def test_hits(self, store):
        """A near fit is remembered; and one that was done cold answers who would take a near."""
        with using(store=store) as fits:
            logistic(optimize, 0.02)
            for lam in (0.02, 0.021, 0.022, 0.022):
                with using(near=True):
                    logistic(optimize, lam)
        assert [fit.source for fit in fits] == ["cold", "final", "cold", "near", "final"]

    def test_a_path(self, store):
        """Fewer evaluations, all of them counted, the same minimum, reported."""
        spent = cold = 0
        with using(store=store, near=True):
            for lam in np.geomspace(1.0, 1e-3, 25):
                plain, count = logistic(scipy.optimize, lam)
                result, calls = logistic(optimize, lam)
                assert result.nfev == result.njev == result.warm.evaluations == calls
                assert result.fun <= plain.fun + 1e-7
                assert np.abs(result.jac).max() <= 1e-5
                assert result.success
                cold, spent = cold + count, spent + calls
        assert cold > 2.0 * spent
        report = result.warm
        assert (report.source, report.near.predictor) == ("near", "path")
        assert (report.near.level, report.near.shared) == ("sibling-hyper", 1.0)
        assert 0.0 < report.near.distance < 0.5
        assert report.near.candidates == 8
        assert report.start_run is not None
        assert str(report).startswith(f"near {report.key[:12]} by path from sibling-hyper: ")

    def test_folds(self, store):
        """Other rows of one data set."""
        spent = cold = 0
        rng = np.random.default_rng(0)
        with using(store=store, near=True):
            for fold in np.array_split(rng.permutation(len(X)), 10):
                kept = np.setdiff1d(np.arange(len(X)), fold)
                plain, count = logistic(scipy.optimize, 1e-3, kept)
                result, calls = logistic(optimize, 1e-3, kept)
                assert result.fun <= plain.fun + 1e-7
                cold, spent = cold + count, spent + calls
        assert cold > 1.5 * spent
        assert result.warm.near.level == "sibling-data"
        assert result.warm.near.shared == pytest.approx(0.8, abs=0.02)

    @pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "CG", "Newton-CG", "TNC", None])
    @pytest.mark.parametrize("jac", ["both", "apart", "differences"])
    def test_methods(self, store, method, jac):
        """With each way to give a gradient: no more evaluations, and the counts are honest."""
        if method == "Newton-CG" and jac == "differences":
            pytest.skip("Newton-CG needs a gradient")
        counts = {"f": 0, "g": 0}

        class Value:
            def __reduce__(self):
                return Value, ()

            def __call__(self, x, a):
                counts["f"] += 1
                value = float(np.sum(np.cosh(x - a) + 0.1 * (x - x.sum()) ** 2))
                return (value, slope(x, a)) if jac == "both" else value

        def slope(x, a):
            left = x - x.sum()
            return np.sinh(x - a) + 0.2 * (left - left.sum())

        class Slope:
            def __reduce__(self):
                return Slope, ()

            def __call__(self, x, a):
                counts["g"] += 1
                return slope(x, a)

        given = {"both": True, "apart": Slope(), "differences": None}[jac]

        def fit(module, a):
            counts.update(f=0, g=0)
            return module.minimize(Value(), np.zeros(4), args=(a,), jac=given, method=method)

        cold = spent = 0
        with using(store=store, near=True):
            for a in np.linspace(1.0, 1.5, 6):
                plain = fit(scipy.optimize, a)
                cold += counts["f"]
                result = fit(optimize, a)
                spent += counts["f"]
                if result.warm.source == "near":
                    assert result.nfev == counts["f"]
                    assert result.get("njev", counts["g"]) == counts["g"] or jac != "apart"
                assert result.fun < plain.fun + 1e-6
        assert result.warm.source == "near"
        assert spent < cold

    def test_curves(self, store):
        """Replicates of a curve: a Gauss-Newton step that takes no evaluation."""
        rng = np.random.default_rng(3)
        x = np.linspace(0.0, 4.0, 60)
        y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * rng.normal(size=60)
        count = 0

        class Decay:
            def __reduce__(self):
                return Decay, ()

            def __call__(self, x, a, b, c):
                nonlocal count
                count += 1
                return a * np.exp(-b * x) + c

        def fit(module, x, y, **options):
            nonlocal count
            count = 0
            return module.curve_fit(Decay(), x, y, **options), count

        cold = spent = 0
        with using(store=store, near=True) as fits:
            fit(optimize, x, y)
            for _ in range(10):
                drawn = np.sort(rng.integers(0, 60, 60))
                (plain, _), count_plain = fit(scipy.optimize, x[drawn], y[drawn])
                (found, _), count_ours = fit(optimize, x[drawn], y[drawn])
                np.testing.assert_allclose(found, plain, rtol=1e-4)
                cold, spent = cold + count_plain, spent + count_ours
            fit(optimize, x, y + 0.01, sigma=np.full(60, 2.0))
        assert {fit.near.predictor for fit in fits[1:]} == {"gauss-newton"}
        assert fits[-1].near.shared == 1.0
        assert cold > 1.5 * spent

    @pytest.mark.parametrize("name", ["least_squares", "leastsq", "root", "Nelder-Mead", "fmin"])
    def test_other_functions(self, store, name):
        """Those without a gradient begin at the predicted point, if it is any good."""
        t = np.linspace(0.0, 1.0, 20)

        class Left:
            def __init__(self):
                self.count = 0

            def __reduce__(self):
                return Left, ()

            def __call__(self, x, a):
                self.count += 1
                left = x[0] * np.exp(-x[1] * t) - a * np.exp(-0.7 * a * t)
                if name == "root":
                    return left[[0, -1]]
                return float(left @ left) if name in {"Nelder-Mead", "fmin"} else left

        def fit(module, a):
            left = Left()
            if name == "Nelder-Mead":
                result = module.minimize(left, [0.1, 0.1], args=(a,), method=name)
            elif name == "fmin":
                result = module.fmin(left, [0.1, 0.1], args=(a,), disp=False)
            else:
                result = getattr(module, name)(left, [0.1, 0.1], args=(a,))
            x = result[0] if isinstance(result, tuple) else getattr(result, "x", result)
            return x, left.count

        cold = spent = 0
        with using(store=store, near=True) as fits:
            for a in np.linspace(2.0, 2.6, 6):
                plain, count = fit(scipy.optimize, a)
                found, calls = fit(optimize, a)
                np.testing.assert_allclose(found, plain, atol=1e-3)
                np.testing.assert_allclose(found, [a, 0.7 * a], atol=1e-3)
                cold, spent = cold + count, spent + calls
        assert [fit.source for fit in fits] == ["cold"] + ["near"] * 5
        assert fits[-1].near.predictor == "path"
        assert spent < cold

    def test_an_objective_that_raises_near_is_not_failed(self, store):
        """A point that a cold fit would not have seen may be one where the objective raises."""

        class Picky:
            def __reduce__(self):
                return Picky, ()

            def __call__(self, x, a):
                if a > 1.0 and x[0] > 0.9:
                    raise ValueError("out of range")
                return float((x - min(a, 0.8)) @ (x - min(a, 0.8))), 2.0 * (x - min(a, 0.8))

        with using(store=store, near=True) as fits:
            for a in (0.7, 1.1):
                result = optimize.minimize(Picky(), np.zeros(2), args=(a,), jac=True)
                poisoned(store, lambda near: near | {"x": near["x"] + 1.0})
        assert fits[-1].source == "near"
        np.testing.assert_allclose(result.x, 0.8, atol=1e-5)

    def test_bad_predictions_of_curves_cost_little(self, store):
        """A near solution that is nonsense: the caller's own start, and told so."""
        x = np.linspace(0.0, 4.0, 60)

        def decay(x, a, b):
            return a * np.exp(-b * x)

        y = decay(x, 2.0, 1.3)
        with using(store=store, near=True):
            optimize.curve_fit(decay, x, y + 0.01, p0=[1.0, 1.0])
            poisoned(store, lambda _: {"x": np.array([1e6, -20.0])})
            found = optimize.curve_fit(decay, x, y, p0=[1.0, 1.0])
        np.testing.assert_allclose(found[0], [2.0, 1.3], rtol=1e-6)
        assert not found.warm.near.used
        assert "the caller's own start is better" in found.warm.why

    def test_a_fit_that_fails_near_is_done_cold(self, store):
        """An optimizer that does not end well from the near start: from the caller's own."""

        class Fussy:
            def __call__(self, fun, x0, args, **_):
                good = float(np.abs(np.asarray(x0) - 3.0).max()) < 1e-9
                x = np.asarray(args[0] if good else x0, float) * np.ones(2)
                return scipy.optimize.OptimizeResult(
                    x=x, fun=fun(x, *args), nfev=1, success=good, message=""
                )

        with using(store=store, near=True) as fits:
            for a in (1.0, 1.1):
                result = optimize.minimize(
                    lambda x, a: float((x - a) @ (x - a)), [3.0, 3.0], args=(a,), method=Fussy()
                )
                assert result.success
                np.testing.assert_allclose(result.x, a)
        assert fits[1].near.challenged

    @pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
    @pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
    def test_complex_steps(self, store, jac, method):
        """A function that is asked at complex points is answered by itself."""

        def left(x, a):
            return np.array([x[0] - a, 10.0 * (x[1] - x[0] ** 2)])

        with using(store=store, near=True):
            for a in (0.9, 1.0, 1.1):
                given = {"args": (a,), "jac": jac, "method": method}
                found = optimize.least_squares(left, [2.0, 2.0], **given)
                np.testing.assert_allclose(found.x, [a, a * a], rtol=1e-6)

    def test_one_standard_deviation(self, store):
        """A sigma that is one number."""
        t = np.linspace(0.0, 2.0, 20)
        with using(store=store, near=True):
            for a in (1.0, 1.1):
                (found,), _ = optimize.curve_fit(
                    lambda t, a: a * t, t, a * t + 0.01 * np.cos(9.0 * t), sigma=0.5
                )
                assert found == pytest.approx(a, abs=0.02)

    def test_curves_in_lists_with_gaps(self, store):
        """Lists, and rows that scipy leaves out, as scipy takes them."""
        x = np.linspace(0.0, 3.0, 30)
        y = 2.0 * np.exp(-x) + 0.01 * np.cos(30.0 * x)
        gaps = y.copy()
        gaps[::7] = np.nan

        def decay(x, a, b):
            return a * np.exp(-b * x)

        with using(store=store, near=True) as fits:
            for shift in (0.0, 0.01):
                plain, _ = scipy.optimize.curve_fit(decay, list(x), list(y + shift))
                found, _ = optimize.curve_fit(decay, list(x), list(y + shift))
                np.testing.assert_allclose(found, plain, rtol=1e-5)
                plain, _ = scipy.optimize.curve_fit(decay, x, gaps + shift, nan_policy="omit")
                found, _ = optimize.curve_fit(decay, x, gaps + shift, nan_policy="omit")
                np.testing.assert_allclose(found, plain, rtol=1e-5)
        assert [fit.source for fit in fits[2:]] == ["near", "near"]

    def test_workers(self, store):
        """Functions that go to other processes go as they are."""
        with using(store=store, near=True) as fits, multiprocessing.Pool(2) as pool:
            for shift in (0.0, 0.1):
                result = optimize.least_squares(
                    residuals, [1.0, 1.0], args=(shift,), workers=pool.map
                )
                np.testing.assert_allclose(result.x, [shift, 2.0 * shift], atol=1e-6)
        assert [fit.source for fit in fits] == ["cold", "near"]

    def test_other_numbers_of_parameters_are_no_neighbours(self, store):
        """Nor is anything that the store has for another model."""
        with using(store=store, near=True) as fits:
            for size in (3, 4):
                optimize.minimize(lambda x, a: a * x @ x + x.sum(), np.ones(size), args=(2.0,))
            optimize.minimize(lambda x, a: a * x @ x - x.sum(), np.ones(4), args=(2.1,))
        assert [fit.source for fit in fits] == ["cold"] * 3
        assert "nothing near" in fits[-1].why

    def test_odd_arguments_are_scipys_business(self, store):
        """What near starts make nothing of does not fail a fit, nor hide scipy's refusal."""
        with using(store=store, near=True):
            for data in ([1.0, [2.0, 3.0]], {"a": object}, np.array([object()]), "text", None):
                for shift in (0.0, 0.5):
                    result = optimize.minimize(
                        lambda x, _, shift: float((x - shift) @ (x - shift)),
                        [1.0, 1.0],
                        args=(data, shift),
                    )
                    np.testing.assert_allclose(result.x, shift, atol=1e-5)
            for _ in range(2):
                with pytest.raises(ValueError, match="x0"):
                    optimize.minimize(lambda x: x @ x, np.ones((2, 2)))
            with pytest.raises(TypeError, match="x0"):
                optimize.minimize(lambda x: x @ x)

    def test_parameters_by_name(self, store):
        """Added, dropped and in another order: those in common begin where they ended."""

        class Named:
            def __init__(self, names, seen):
                self.names, self.seen = names, seen

            def __reduce__(self):
                return Named, ((), ())

            def __call__(self, x, middle):
                self.seen.append(x.copy())
                left = [v - middle * (ord(n) - 96) for n, v in zip(self.names, x, strict=True)]
                return float(np.sum(np.square(left)))

        starts = {}
        with using(store=store, near=True) as fits:
            for names, middle in (("abc", 1.0), ("cab", 1.1), ("ab", 1.2), ("bdc", 1.3), ("xy", 1)):
                seen = []
                result = optimize.minimize(
                    Named(names, seen),
                    np.full(len(names), 0.25),
                    args=(middle,),
                    method="Nelder-Mead",
                    warm=Warm(parameters=list(names)),
                )
                starts[names] = dict(zip(names, seen[0].round(1), strict=True))
                assert result.success
        assert [fit.source for fit in fits] == ["cold", "near", "near", "near", "cold"]
        assert starts["cab"] == {"c": 3.0, "a": 1.0, "b": 2.0}
        assert set(starts["ab"]) == {"a", "b"}
        assert starts["ab"]["b"] == pytest.approx(2.2, abs=0.3)
        assert starts["bdc"]["d"] == 0.2
        assert starts["bdc"]["c"] == pytest.approx(3.9, abs=0.7)

    def test_curvature_follows_the_names(self, store):
        """The same parameters in another order: so are the rows and columns of the metric."""

        class Scaled:
            def __init__(self, order):
                self.order = order

            def __reduce__(self):
                return Scaled, ((),)

            def __call__(self, x, middle):
                weights = np.array([1.0, 100.0, 1e4])[self.order]
                return 0.5 * weights @ (x - middle) ** 2, weights * (x - middle)

        with using(store=store, near=True) as fits:
            for order, middle in (([0, 1, 2], 1.0), ([2, 0, 1], 1.05)):
                names = [("u", "v", "w")[place] for place in order]
                result = optimize.minimize(
                    Scaled(order),
                    np.zeros(3),
                    args=(middle,),
                    jac=True,
                    method="L-BFGS-B",
                    warm=Warm(parameters=names),
                )
                np.testing.assert_allclose(result.x, middle, atol=1e-5)
        assert fits[1].near.curvature
        assert fits[1].evaluations < 0.7 * fits[0].evaluations

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("ab", "is a list of names"),
            ([1], "is a list of names"),
            (3, "is a list of names"),
            (["a", "a"], "have the same name"),
        ],
    )
    def test_names_are_names(self, names, message):
        with pytest.raises(ArgumentError, match=message):
            Warm(parameters=names)

    def test_required(self, store):
        with using(store=store, near=True):
            with pytest.raises(NearError, match=r"nothing near .* Warm\(required=True\)"):
                optimize.minimize(lambda x: x @ x, np.ones(2), warm=Warm(required=True))
            assert optimize.minimize(lambda x: x @ x, np.ones(2)).warm.source == "cold"

    def test_bounds_are_kept(self, store):
        """A prediction beyond a bound is pulled to it; scipy sees no point outside."""
        seen = []

        class Tilted:
            def __reduce__(self):
                return Tilted, ()

            def __call__(self, x, a):
                seen.append(x.copy())
                return float((x - a) @ (x - a)), 2.0 * (x - a)

        with using(store=store, near=True):
            for a in (0.2, 0.6, 0.9, 1.3):
                result = optimize.minimize(
                    Tilted(), np.zeros(3), args=(a,), jac=True, bounds=[(0.0, 1.0)] * 3
                )
                np.testing.assert_allclose(result.x, min(a, 1.0), atol=1e-6)
        assert np.min(seen) >= 0.0
        assert np.max(seen) <= 1.0

    def test_options_that_do_not_fit_the_call(self, store):
        """As many names as parameters; no start is required where none is asked for."""
        with using(store=store):
            with pytest.raises(ArgumentError, match="names 1 of them, and x0 has 2"):
                optimize.minimize(
                    lambda x: x @ x, np.ones(2), warm=Warm(near=True, parameters=["a"])
                )
            with pytest.raises(ArgumentError, match="write near=True as well"):
                optimize.minimize(lambda x: x @ x, np.ones(2), warm=Warm(required=True))

    def test_equations_that_fail_near_are_solved_cold(self, store):
        """Of two results of `root` the one that solves them is returned."""

        def equations(x, a):
            # Solvable from where the caller starts; the near start lies on the far side of a ridge.
            return [np.arctan(x[0] - a) + 0.0 * x[1], x[1] - a]

        with using(store=store, near=True, challenge=0) as fits:
            optimize.root(equations, [0.5, 0.5], args=(0.4,), method="broyden1")
            poisoned(store, lambda near: near | {"x": near["x"] + [3.0, 0.0]})
            found = optimize.root(equations, [1e4, 0.5], args=(0.45,), method="hybr")
        best = scipy.optimize.root(equations, [1e4, 0.5], args=(0.45,), method="hybr")
        assert fits[1].source == "near"
        assert found.success or not best.success
        assert np.abs(found.fun).max() <= np.abs(best.fun).max() + 1e-9

    def test_killed_and_resumed(self, tmp_path):
        """A near fit that was killed goes on with its own plan, bit for bit."""
        whole, _ = self.chain(tmp_path / "one")
        status, _ = in_child(lambda: self.killed(tmp_path / "two"))
        assert status == -signal.SIGKILL
        again, count = self.chain(tmp_path / "two", prepare=False)
        assert again.warm.source == "journal"
        assert again.warm.replay == "exact"
        assert again.warm.near.predictor == whole.warm.near.predictor
        assert again.x.tobytes() == whole.x.tobytes()
        assert again.nfev == whole.nfev
        assert count < whole.nfev

    @pytest.mark.parametrize(
        "lie",
        [
            {"x": b"1234567"},
            {"metric": bytes(24)},
            {"nearest": b""},
            {"shared": "all"},
            {"population": bytes(24)},
            {"curved": b"{}"},
        ],
    )
    def test_plans_that_lie_are_refused(self, lie):
        """A journal's header may be whole and make no sense."""
        plan = {
            "x": bytes(16),
            "nearest": bytes(16),
            "metric": bytes(32),
            "value": 1.0,
            "usual": None,
            "run": "",
            "level": "",
            "predictor": "",
            "shared": 1.0,
            "distance": 0.0,
            "candidates": 1,
            "buy": False,
            "rent": 0.0,
            "bought": 0,
        }
        assert plan_of(msgspec.msgpack.encode(plan)).inverse_hessian().shape == (2, 2)
        with pytest.raises(ValueError, match=r"buffer|reshape|two sizes|Expected|not a payload"):
            plan_of(msgspec.msgpack.encode(plan | lie))

    @staticmethod
    def chain(folder, function=None, *, prepare=True):
        """Fit two problems, and a third that begins near them."""
        with Store(folder) as store, using(store=store, near=True, journal=True):
            if prepare:
                for lam in (0.1, 0.08):
                    logistic(optimize, lam)
            return logistic(optimize, 0.01, function=function)

    @staticmethod
    def killed(folder):
        class Slow(Logistic):
            def __call__(self, *args):
                end = time.perf_counter() + 0.02
                while time.perf_counter() < end:
                    pass
                return super().__call__(*args)

        TestNearFits.chain(folder, Slow(6, lambda: os.kill(os.getpid(), signal.SIGKILL)))


class Wells:
    """Two minima, of which the deeper one changes sides as `a` grows."""

    def __init__(self):
        self.count = 0

    def __reduce__(self):
        return Wells, ()

    def __call__(self, x, a):
        self.count += 1
        return float((x[0] ** 2 - 1.0) ** 2 + 0.3 * (a - 1.0) * x[0] + x[1] ** 2)


class TestChallengers:
    """Every so often a cold fit is run as well, and the ledger keeps count."""

    def chain(self, challenge, cold_start=(-0.2, 1.0)):
        """Follow a minimum along `a` to where the other one is deeper."""
        found = []
        with using(store=Store(":memory:"), near=True, challenge=challenge) as fits:
            for a in np.linspace(0.5, 1.5, 12):
                # From where it starts, a cold fit finds the deeper one.
                x0 = np.array([0.5 if a < 1.0 else -0.5, 1.0])
                found.append(optimize.minimize(Wells(), x0, args=(a,), method="BFGS"))
        return found, fits

    def test_a_better_minimum_is_found_and_told(self):
        """A warm start stays in its basin: the challenger finds the deeper one and takes over."""
        trapped, _ = self.chain(0)
        assert trapped[-1].x[0] > 0.0
        found, fits = self.chain(4)
        assert found[-1].x[0] < 0.0
        assert found[-1].fun < trapped[-1].fun - 0.1
        told = [fit for fit in fits if "a cold challenger found a better minimum" in str(fit.why)]
        assert told
        assert all(fit.near.challenged and not fit.near.used for fit in told)
        first = fits.index(told[0])
        assert fits[first + 1].near.challenged  # from then on each, until they agree

    def test_how_often(self):
        """Every n-th near fit; its evaluations are in the counts."""
        with using(store=Store(":memory:"), near=True, challenge=3) as fits:
            for lam in np.geomspace(0.1, 0.05, 8):
                result, count = logistic(optimize, lam)
                assert result.nfev == count == fits[-1].evaluations
        challenged = [fit.near is not None and fit.near.challenged for fit in fits]
        assert challenged == [False, False, False, True, False, False, True, False]

    def test_a_losing_way_is_switched_off(self, store):
        """After some fits by a predictor that took more than the cold ones: cold, and told."""
        with using(store=store, near=True) as fits:
            logistic(optimize, 0.1)
            place = place_for(SURFACES["minimize"], self.spec(0.1))
            for _ in range(5):
                note(
                    store.backend,
                    place.family,
                    "sibling-hyper nearest",
                    evaluations=500,
                    seconds=1.0,
                )
            result, _ = logistic(optimize, 0.11)
        assert fits[-1].source == "cold"
        assert "have not paid in this family" in fits[-1].why
        assert result.nfev == logistic(scipy.optimize, 0.11)[1]

    def spec(self, lam):
        surface = SURFACES["minimize"]
        kept = {}

        def minimize(*args, **kwargs):
            kept.update(surface.bind(args, kwargs))
            return scipy.optimize.minimize(*args, **kwargs)

        class Module:
            pass

        Module.minimize = staticmethod(minimize)
        logistic(Module, lam)
        model, data, settings = surface.parts(kept)
        return FitSpec(model=model, data=data, settings=settings)

    def test_the_books(self):
        """Means, deviations and quantiles; entries of two writers are both kept."""
        backend = MemoryBackend()
        values = [10, 12, 20, 30, 7]
        for value in values:
            note(backend, b"f" * 16, COLD, evaluations=value, seconds=0.5)
        way = load(backend, b"f" * 16).ways[COLD]
        assert (way.evaluations.count, way.evaluations.mean) == (5, np.mean(values))
        assert way.seconds.mean == 0.5
        assert way.evaluations.deviation == pytest.approx(np.std(values, ddof=1))
        assert way.evaluations.quantile(0.5) == pytest.approx(12.0, rel=0.03)
        assert way.recent == 12.0
        note(backend, b"f" * 16, "w", evaluations=5, seconds=0.1, challenger=11, lost=True)
        ledger = load(backend, b"f" * 16)
        assert (ledger.lost, ledger.every, ledger.near) == (1, 1, 0)
        assert ledger.is_due(50)
        assert ledger.saved(5) == round(np.mean([*values, 11]) - 5)
        note(backend, b"f" * 16, "w", evaluations=5, seconds=0.1, challenger=11)
        assert load(backend, b"f" * 16).every == 2
        assert not Family().is_due(0)
        for _ in range(50):
            note(backend, b"f" * 16, "w", evaluations=5, seconds=0.1)
        assert len(load(backend, b"f" * 16).ways["w"].last) == 20
        assert [item.key for item in orphans(backend)] == [b"l" + b"f" * 16]


def poisoned(store, change):
    """Change what the finals of a store left for others."""
    for key in list(store.keys()):
        for entry in store.entries(key):
            payload = dict(entry.payload)
            payload["near"] = change(dict(payload["near"]))
            store.put(msgspec.structs.replace(entry, payload=payload))


def random_metric(rng):
    root = rng.normal(size=(31, 31))
    return root @ root.T / 31 + 0.1 * np.eye(31)


POISONS = {
    "curvature x 1000": lambda near, _: near | {"metric": near["metric"] * 1000.0},
    "curvature / 1000": lambda near, _: near | {"metric": near["metric"] / 1000.0},
    "random curvature": lambda near, rng: near | {"metric": random_metric(rng)},
    "garbage x": lambda near, rng: near | {"x": 10.0 * rng.normal(size=31)},
    "garbage": lambda near, rng: (
        near | {"x": 10.0 * rng.normal(size=31), "metric": random_metric(rng)}
    ),
    "other signs": lambda near, _: near | {"x": -near["x"]},
    "overflow": lambda near, _: near | {"x": 1e6 * near["x"]},
    "far": lambda near, _: near,
}


class Bowl:
    """A strictly convex quadratic, as an objective with its gradient or as residuals."""

    def __init__(self, root, way):
        self.root, self.way = root, way

    def __reduce__(self):
        return Bowl, (self.root, self.way)

    def __call__(self, x, middle):
        left = self.root @ (x - middle)
        if self.way == "residuals":
            return left
        value = 0.5 * float(left @ left)
        return (value, self.root.T @ left) if self.way == "both" else value


METHODS = {
    **dict.fromkeys(
        ("BFGS", "L-BFGS-B", "CG", "Newton-CG", "TNC", "SLSQP", "trust-constr"), "both"
    ),
    **dict.fromkeys(("Nelder-Mead", "Powell", "COBYQA", "COBYLA"), "value"),
    **dict.fromkeys(("trf", "dogbox", "lm"), "residuals"),
}


@example(method="Powell", seed=66, size=1, spread=0.0, sizes=[0.0, 1e-9, 1.0])
@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 2**16),
    size=st.integers(1, 5),
    spread=st.floats(0.0, 3.0),
    sizes=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 30.0]), min_size=3, max_size=4),
)
def test_near_answers_are_as_good(method, seed, size, spread, sizes):
    """Chains of convex fits, near and far: none ends higher than the cold one, to tolerance."""
    rng = np.random.default_rng(seed)
    root = (
        np.diag(10.0 ** rng.uniform(-spread / 2, spread / 2, size))
        @ np.linalg.qr(rng.normal(size=(size, size)))[0]
    )
    way, x0, direction = METHODS[method], np.ones(size), rng.normal(size=size)

    def fit(module, middle):
        given = {"args": (middle,), "method": method}
        if way == "residuals":
            result = module.least_squares(Bowl(root, way), x0, **given)
            return result, 2.0 * result.cost
        result = module.minimize(Bowl(root, way), x0, jac=way == "both" or None, **given)
        return result, 2.0 * result.fun

    with using(store=Store(":memory:"), near=True):
        for far in sizes:
            middle = far * direction
            begin = float(np.sum((root @ (x0 - middle)) ** 2))
            _, plain = fit(scipy.optimize, middle)
            result, found = fit(optimize, middle)
            slack = 1e-4 if way == "value" or method == "SLSQP" else 1e-7
            assert found <= max(10.0 * plain, slack * begin, 1e-9), result.warm


class TestGuard:
    """A store that is wrong costs little, and is never believed."""

    @pytest.mark.parametrize("name", POISONS)
    def test_poisoned_stores(self, name):
        """The same minimum, at 1.4 times cold on the average and 1.75 times at the worst."""
        rng = np.random.default_rng(5)
        cold = spent = 0
        for lam in np.geomspace(1e-3, 1e-1, 6):
            store = Store(":memory:")
            with using(store=store, near=True):
                for factor in (300.0, 290.0) if name == "far" else (1.15, 1.1):
                    logistic(optimize, lam * factor)
                poisoned(store, lambda near: POISONS[name](near, rng))
                result, calls = logistic(optimize, lam)
            plain, count = logistic(scipy.optimize, lam)
            assert result.fun <= plain.fun + 1e-7
            assert np.abs(result.jac).max() <= 1e-5
            assert calls <= 1.75 * count
            cold, spent = cold + count, spent + calls
        assert spent < 1.4 * cold

    @pytest.mark.parametrize(
        "near",
        [
            None,
            {},
            {"x": "text"},
            {"x": np.full(31, np.nan)},
            {"x": np.zeros(30)},
            {"x": np.zeros(31), "metric": np.eye(30)},
            {"x": np.zeros(31), "metric": np.full((31, 31), np.inf)},
            {"x": np.zeros(31), "metric": -np.eye(31)},
            {"x": np.zeros(31), "rent": ("a",), "linearized": {"rows": 1}},
        ],
    )
    def test_nonsense_is_not_used(self, near):
        """What cannot be what it should be is left out; the fit does not fail."""
        store = Store(":memory:")
        with using(store=store, near=True):
            logistic(optimize, 0.02)
            poisoned(store, lambda _: near)
            result, _ = logistic(optimize, 0.021)
        plain, _ = logistic(scipy.optimize, 0.021)
        assert abs(result.fun - plain.fun) < 1e-7
