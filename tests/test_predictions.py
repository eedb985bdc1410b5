"""Predictions that use more than a point: second derivatives, scores, Hessians, populations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.datasets import load_breast_cancer

from warmstart import ArgumentError, NearError, Store, Warm, optimize, using
from warmstart.fingerprint import Fingerprint, Level
from warmstart.nearby import Neighbour, Place
from warmstart.predictors import Curve, Linearized, Problem, Scored, Solved, influence, quadratic
from warmstart.recipes import fit_folds, jackknife

RNG = np.random.default_rng(0)
PLACE = Place(family=b"", rows=None, numbers={}, same=b"")


def solved(x, **more):
    near = Neighbour(Fingerprint(bytes(32)), PLACE, Level.SIBLING_DATA, 1.0, 0.0)
    return Solved(near, np.asarray(x, float), **more)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


class Counted:
    """A function that counts its calls, which are no part of what it is."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __reduce__(self):
        return Counted, (self.function,)

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


class TestSecondOrder:
    """A curve's model to second order."""

    def parabolas(self, rows=25, size=3):
        """Return a model that is quadratic in its parameters, and what it is about a point."""
        linear, second = RNG.normal(size=(rows, size)), RNG.normal(size=(rows, size, size))
        second = 0.05 * (second + second.transpose(0, 2, 1))
        at = RNG.normal(size=size)

        def model(x):
            return linear @ x + second @ x @ x / 2.0

        jacobian = linear + second @ at
        return model, Linearized(np.arange(rows, dtype=np.uint64), at, model(at), jacobian)

    def test_a_quadratic_model_is_known_everywhere(self):
        model, linear = self.parabolas()
        y = linear.values + 0.1 * RNG.normal(size=25)
        calls = Counted(model)
        curved = quadratic.build(calls, linear, np.ones(25), y)
        assert calls.calls == quadratic.price(3) == 6
        x = linear.at + RNG.normal(size=3)
        np.testing.assert_allclose(quadratic.values(curved, x), model(x), atol=1e-8)
        step = 1e-5 * np.eye(3)
        slopes = np.array([(model(x + h) - model(x - h)) / 2e-5 for h in step]).T
        np.testing.assert_allclose(quadratic.jacobian(curved, x), slopes, atol=1e-6)

    @pytest.mark.parametrize("drawn", [np.arange(25), np.arange(3, 25), RNG.integers(0, 25, 25)])
    def test_its_minimum_is_found_without_an_evaluation(self, drawn):
        """New values and weights, rows left out or drawn again."""
        model, linear = self.parabolas()
        y = linear.values[drawn] + 0.2 * RNG.normal(size=25)[: len(drawn)]
        weights = RNG.uniform(0.5, 2.0, len(drawn))
        curved = quadratic.build(model, linear, np.ones(25), linear.values + 0.2)
        exact = scipy.optimize.least_squares(
            lambda x: weights * (model(x)[drawn] - y), linear.at, xtol=1e-15, ftol=1e-15
        ).x
        known = [solved(linear.at, linearized=linear, curved=curved)]
        problem = Problem(PLACE, 3, Curve(linear.rows[drawn], y, weights))
        np.testing.assert_allclose(quadratic.predict(problem, known), exact, atol=1e-5)

    def test_what_it_cannot_know_it_does_not_say(self):
        model, linear = self.parabolas()
        curved = quadratic.build(model, linear, np.ones(25), linear.values + 0.2)
        known = [solved(linear.at, linearized=linear, curved=curved)]
        other = Curve(linear.rows + np.uint64(1), linear.values, np.ones(25))
        assert quadratic.predict(Problem(PLACE, 3, other), known) is None
        assert quadratic.predict(Problem(PLACE, 3), known) is None
        # So far away that third derivatives would count, if there were any.
        far = Curve(linear.rows, linear.values + 1e4 * RNG.normal(size=25), np.ones(25))
        assert quadratic.predict(Problem(PLACE, 3, far), known) is None

    def test_models_without_second_derivatives(self):
        """Rows that do not determine the parameters; failures; too many numbers."""
        _, linear = self.parabolas()
        y = linear.values + 0.2

        def broken(_x):
            raise ValueError("not here")

        ones = np.ones(25)
        assert quadratic.build(broken, linear, ones, y) is None
        assert quadratic.build(lambda x: np.full(25, np.nan), linear, ones, y) is None
        flat = linear._replace(jacobian=np.repeat(linear.jacobian[:, :1], 3, axis=1))
        assert quadratic.build(lambda x: y, flat, ones, y) is None
        few = Linearized(*(np.asarray(part)[:3] for part in linear))
        assert quadratic.build(lambda x: y[:3], few, ones[:3], y[:3]) is None

    def test_replicates_of_a_curve(self, store):
        """Two evaluations for a replicate, whatever the number of parameters; the same minimum."""
        t = np.linspace(0.0, 5.0, 60)

        def decay(t, a, b, c, d):
            return a * np.exp(-b * t) + c * np.exp(-d * t)

        rng = np.random.default_rng(4)
        y = decay(t, 3.0, 0.3, 2.0, 2.0) + 0.01 * rng.normal(size=60)
        function, begin = Counted(decay), [2.0, 0.2, 1.0, 1.0]

        def fit(t, y):
            return optimize.curve_fit(function, t, y, p0=begin)

        with using(store=store):
            found = jackknife(fit, (t, y))
        by = [report.near.predictor for report in found.reports]
        assert by.count("quadratic") > 50
        assert np.median(found.nfev) <= 3
        for left in (0, 30, 59):
            kept = np.arange(60) != left
            exact, _ = scipy.optimize.curve_fit(decay, t[kept], y[kept], p0=begin, xtol=1e-12)
            np.testing.assert_allclose(found.x[left], exact, rtol=1e-4)

    def test_bought_when_replicates_have_paid(self, store):
        """Without a word about what follows: not for the second fit, but soon."""
        t = np.linspace(0.0, 5.0, 60)

        def decay(t, a, b):
            return a * np.exp(-b * t)

        rng = np.random.default_rng(4)
        with using(store=store, near=True) as reports:
            for _ in range(8):
                y = decay(t, 3.0, 0.3) + 0.1 * rng.normal(size=60)
                optimize.curve_fit(decay, t, y, p0=[2.0, 0.2])
        ways = [report.near.predictor if report.near else "" for report in reports]
        assert ways[1] == "gauss-newton"
        assert ways[-1] == "quadratic"
        assert reports[-1].evaluations < reports[1].evaluations


X, LABELS = load_breast_cancer(return_X_y=True)
X = np.column_stack([np.ones(len(X)), (X - X.mean(axis=0)) / X.std(axis=0)])[:, :8]
SIGNS = 2.0 * LABELS - 1.0


def loss(w, x, signs, averaged):
    """Logistic loss with a ridge, and its gradient."""
    z = signs * (x @ w)
    p = scipy.special.expit(-z)
    over = len(x) if averaged else 1.0
    value = np.logaddexp(0.0, -z).sum() / over + 0.05 * w @ w
    return value, -(x.T @ (signs * p)) / over + 0.1 * w


def hessian(w, x, signs, averaged):
    p = scipy.special.expit(x @ w)
    over = len(x) if averaged else 1.0
    return (x.T * (p * (1.0 - p))) @ x / over + 0.1 * np.eye(x.shape[1])


def scores(w, x, signs, _averaged):
    return -x * (signs * scipy.special.expit(-signs * (x @ w)))[:, None]


class TestScores:
    """The gradient at the neighbour's solution, from the rows that differ."""

    @pytest.mark.parametrize("averaged", [False, True])
    @pytest.mark.parametrize("drawn", [np.arange(1, 50), RNG.integers(0, 50, 50)])
    def test_a_newton_step_by_the_rows_that_differ(self, averaged, drawn):
        """Exact for a quadratic: weighted means with a ridge."""
        rows = np.arange(50, dtype=np.uint64)
        values = RNG.normal(size=(50, 2))
        over = (50, len(drawn)) if averaged else (1, 1)

        def minimum(kept, over):
            return kept.sum(axis=0) / over / (len(kept) / over + 0.3)

        x = minimum(values, over[0])
        known = solved(
            x,
            metric=np.eye(2) / (len(drawn) / over[1] + 0.3),
            scored=Scored(rows, np.zeros(2), x - values),
        )
        problem = Problem(PLACE, 2, rows=rows[drawn], averaged=averaged)
        found = influence.predict(problem, [known])
        np.testing.assert_allclose(found, minimum(values[drawn], over[1]), rtol=1e-10)

    def test_rows_that_are_new_have_no_scores(self):
        rows = np.arange(50, dtype=np.uint64)
        known = solved([0.0], metric=np.eye(1), scored=Scored(rows, np.zeros(1), np.ones((50, 1))))
        assert influence.predict(Problem(PLACE, 1, rows=rows + np.uint64(1)), [known]) is None
        assert influence.predict(Problem(PLACE, 1), [known]) is None

    @pytest.mark.parametrize("averaged", [False, True])
    def test_folds_of_a_regression(self, store, averaged):
        """All folds are predicted from the fit to all of the data, and take fewer evaluations."""
        function = Counted(loss)

        def fit(x, signs):
            return optimize.minimize(
                function, np.zeros(8), args=(x, signs, averaged), jac=True, options={"gtol": 1e-4}
            )

        counts = {}
        for told in ({}, {"scores": scores, "averaged": averaged}):
            with using(store=Store(":memory:"), **told):
                found = fit_folds(fit, 40, (X, SIGNS), refit=True)
            counts[bool(told)] = found.nfev.sum()
        whole = scipy.optimize.minimize(loss, np.zeros(8), (X, SIGNS, averaged), jac=True)
        np.testing.assert_allclose(found.estimate, whole.x, atol=1e-3)
        assert {report.near.predictor for report in found.reports} == {"influence"}
        assert counts[True] < counts[False]

    @pytest.mark.parametrize("wrong", [np.ones(3), None, np.ones((8, 8))])
    def test_scores_of_a_wrong_shape(self, store, wrong):
        """Refused with the shape that is right; what was evaluated is not lost."""
        with pytest.raises(ArgumentError, match=r"scores returns .* 569 rows and 8 columns, not"):
            optimize.minimize(
                loss,
                np.zeros(8),
                (X, SIGNS, True),
                jac=True,
                warm=Warm(store=store, near=True, scores=lambda *_: wrong, journal=True),
            )
        again = optimize.minimize(
            loss,
            np.zeros(8),
            (X, SIGNS, True),
            jac=True,
            warm=Warm(store=store, near=True, journal=True),
        )
        assert again.warm.source == "journal"
        with pytest.raises(ArgumentError, match="scores is a function of x and args, not int"):
            Warm(scores=1)


class TestOtherMethods:
    """What methods take besides a point."""

    @pytest.mark.parametrize(
        "method", ["trust-ncg", "trust-exact", "trust-krylov", "dogleg", "Newton-CG"]
    )
    def test_hessians_that_are_given(self, store, method):
        """The caller's own Hessian at the last solution makes the next one's step."""
        with using(store=store, near=True):
            function = Counted(loss)
            first = optimize.minimize(
                function, np.zeros(8), (X[1:], SIGNS[1:], True), method, jac=True, hess=hessian
            )
            function.calls = 0
            found = optimize.minimize(
                function, np.zeros(8), (X, SIGNS, True), method, jac=True, hess=hessian
            )
        cold = scipy.optimize.minimize(
            loss, np.zeros(8), (X, SIGNS, True), method, jac=True, hess=hessian
        )
        asset = store.best(Fingerprint(bytes.fromhex(first.warm.key))).payload["near"]
        exact = np.linalg.inv(hessian(first.x, X[1:], SIGNS[1:], True))
        np.testing.assert_allclose(asset["metric"], exact, rtol=0.05, atol=1e-3)
        assert found.warm.near.used
        assert function.calls < cold.nfev
        assert found.fun <= cold.fun + 1e-6

    @pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
    def test_without_constraints(self, store, method):
        """Curvature descends for them, too."""
        with using(store=store, near=True):
            optimize.minimize(loss, np.zeros(8), (X[3:], SIGNS[3:], True), method, jac=True)
            found = optimize.minimize(loss, np.zeros(8), (X, SIGNS, True), method, jac=True)
        cold = scipy.optimize.minimize(loss, np.zeros(8), (X, SIGNS, True), method, jac=True)
        assert found.nfev < cold.nfev
        assert found.fun <= cold.fun + 1e-6

    @pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
    @pytest.mark.parametrize("method", ["SLSQP", "trust-constr", "COBYLA", "COBYQA"])
    def test_with_constraints(self, store, method):
        ball = {"type": "ineq", "fun": lambda x: 1.0 - x @ x}
        jac = {} if method.startswith("COB") else {"jac": True}

        def objective(*args):
            return loss(*args) if jac else loss(*args)[0]

        def fit(module, rows):
            return module.minimize(
                objective,
                np.zeros(8),
                (X[rows:], SIGNS[rows:], True),
                method,
                constraints=[ball],
                **jac,
            )

        with using(store=store, near=True):
            fit(optimize, 3)
            found = fit(optimize, 0)
        cold = fit(scipy.optimize, 0)
        assert found.warm.source == "near"
        assert found.fun <= cold.fun + 1e-3
        assert found.x @ found.x <= 1.0 + 1e-4
        if method == "trust-constr":
            assert found.nfev < cold.nfev

    def test_directions(self, store):
        """Powell's method goes on along the neighbour's conjugate directions."""
        root = RNG.normal(size=(4, 4))

        def bowl(x, at):
            return np.sum((root @ (x - at)) ** 2) + 0.1 * np.sum((x - at) ** 4)

        def fit(module, at):
            return module.minimize(bowl, np.zeros(4), (at,), "Powell", tol=1e-8)

        with using(store=store, near=True):
            fit(optimize, 1.0)
            found = fit(optimize, 1.05)
        cold = fit(scipy.optimize, 1.05)
        assert found.warm.near is not None
        assert found.nfev < cold.nfev
        np.testing.assert_allclose(found.x, cold.x, atol=1e-3)

    def test_populations(self, store):
        """Differential evolution goes on with the neighbour's population."""

        def waves(x, at):
            return 10.0 * x.size + np.sum((x - at) ** 2 - 10.0 * np.cos(2.0 * np.pi * (x - at)))

        def fit(module, at, **options):
            bounds = [(-5.0, 5.0)] * 3
            return module.differential_evolution(waves, bounds, (at,), rng=1, **options)

        with using(store=store, near=True):
            first = fit(optimize, 0.5)
            found = fit(optimize, 0.52)
            fit(optimize, 0.53, init=first.population)  # what is given stays
        cold = fit(scipy.optimize, 0.52)
        assert 5 * found.nfev < cold.nfev
        assert found.fun <= cold.fun + 1e-6

    def test_required_means_used(self, store):
        """A start that was found and given up raises, too; the result is remembered."""

        def well(x, at):
            return np.sum(np.log1p((x - at) ** 2))

        far, here = np.full(2, 50.0), np.zeros(2)
        with using(store=store, near=True):
            optimize.minimize(well, far, (far,))
            with pytest.raises(NearError, match=r"own start is better .*The result is remembered"):
                optimize.minimize(well, here, (here,), warm=Warm(required=True))
            assert optimize.minimize(well, here, (here,)).warm.source == "final"


class TestResiduals:
    """Least squares whose residuals only the call describes."""

    @staticmethod
    def fit(module, function, t, y, **options):
        begin = [2.0, 0.2, 1.0, 1.0]
        if module.__name__.endswith("leastsq"):
            return module(function, begin, args=(t, y), **options)
        return module(function, begin, args=(t, y), method="lm", **options)

    @pytest.mark.parametrize("name", ["least_squares", "leastsq"])
    def test_rows_left_out(self, store, name):
        """Residuals that did not change are known: as cheap as curves."""
        rng = np.random.default_rng(4)
        t = np.linspace(0.0, 5.0, 60)
        y = 3.0 * np.exp(-0.3 * t) + 2.0 * np.exp(-2.0 * t) + 0.01 * rng.normal(size=60)

        def residuals(x, t, y):
            return x[0] * np.exp(-x[1] * t) + x[2] * np.exp(-x[3] * t) - y

        function = Counted(residuals)
        with using(store=store):
            found = jackknife(
                lambda t, y: self.fit(getattr(optimize, name), function, t, y), (t, y)
            )
        assert [report.near.predictor for report in found.reports].count("quadratic") > 50
        assert np.median(found.nfev) <= 4
        kept = np.arange(60) != 7
        exact = self.fit(getattr(scipy.optimize, name), residuals, t[kept], y[kept])
        exact = exact[0] if name == "leastsq" else exact.x
        np.testing.assert_allclose(found.x[7], exact, rtol=1e-4)

    @pytest.mark.parametrize("method", ["lm", "trf", "dogbox"])
    def test_other_values(self, store, method):
        """Replicates whose rows are all new: the Jacobian is still what it was."""
        rng = np.random.default_rng(4)
        t = np.linspace(0.0, 5.0, 60)

        def residuals(x, t, y):
            return x[0] * np.exp(-x[1] * t) - y

        function = Counted(residuals)
        cold = near = 0
        for _ in range(6):
            y = 3.0 * np.exp(-0.3 * t) + 0.1 * rng.normal(size=60)
            function.calls = 0
            plain = scipy.optimize.least_squares(function, [1.0, 1.0], args=(t, y), method=method)
            cold += function.calls
            function.calls = 0
            with using(store=store, near=True):
                found = optimize.least_squares(function, [1.0, 1.0], args=(t, y), method=method)
            near += function.calls
            np.testing.assert_allclose(found.x, plain.x, rtol=1e-4)
        assert found.warm.near.predictor == "nearest"
        assert cold > 1.5 * near

    def test_residuals_that_are_not_of_rows(self, store):
        """Their promise does not come true; the answer is right all the same."""
        t = np.linspace(0.0, 5.0, 40)

        def residuals(x, t, y):
            smooth = np.cumsum(x[0] * np.exp(-x[1] * t) - y)
            return smooth - smooth.mean()

        y = 3.0 * np.exp(-0.3 * t)
        with using(store=store, near=True, expect=5):
            for left in range(6):
                kept = np.arange(40) != 5 * left
                found = optimize.least_squares(
                    residuals, [2.5, 0.2], args=(t[kept], y[kept]), method="lm"
                )
                np.testing.assert_allclose(found.x, [3.0, 0.3], rtol=1e-6)
