"""scikit-learn's estimators, remembered and started near: its own checks, and its own tools."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import scipy.optimize
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    Lasso,
    LogisticRegression,
    MultiTaskElasticNet,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from warmstart.errors import ArgumentError, WarmstartWarning
from warmstart.sklearn import WarmStarted
from warmstart.store import Store
from warmstart.warm import using

X, Y = load_breast_cancer(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "store")


CHECKED = [
    (LogisticRegression(), True),
    (Lasso(alpha=0.01), True),
    (ElasticNet(alpha=0.01), True),
    (MultiTaskLasso(alpha=0.01), True),
    (MultiTaskElasticNet(alpha=0.01), True),
    (HuberRegressor(), True),
    (PoissonRegressor(), True),
    (GaussianProcessRegressor(), True),
    (GaussianProcessClassifier(), True),
    # Gamma and Tweedie regressions share Poisson's code, and its checks take a quarter of a minute.
    (Ridge(), True),
    # These end where they end, before their minimum: another start is another answer.
    (SGDClassifier(random_state=0), False),
    (SGDRegressor(random_state=0), False),
    (MLPClassifier(max_iter=50, random_state=0), False),
    (MLPRegressor(max_iter=50, random_state=0), False),
]


def failures(estimator):
    """Return scikit-learn's checks that an estimator fails, and how many there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    return failed, len(results)


@pytest.mark.parametrize(("estimator", "near"), CHECKED, ids=[type(e).__name__ for e, _ in CHECKED])
def test_scikit_learns_own_checks(estimator, near, folder):
    """Whatever the wrapped estimator passes the wrapper passes."""
    expected, count = failures(estimator)
    found, ours = failures(WarmStarted(estimator, store=folder, near=near))
    assert found <= expected
    assert ours > 0.6 * count


class TestFits:
    """Remembered, started near, or said to be neither."""

    def test_the_same_data_are_not_fitted_again(self, folder, monkeypatch):
        """All that was learned comes back, bit for bit; nothing is fitted."""
        first = WarmStarted(LogisticRegression(C=0.5), store=folder).fit(X, Y)
        plain = LogisticRegression(C=0.5).fit(X, Y)
        monkeypatch.setattr(LogisticRegression, "fit", None)
        again = WarmStarted(LogisticRegression(C=0.5), store=folder).fit(X.copy(), list(Y))
        assert (first.warm_.source, again.warm_.source) == ("cold", "final")
        for name in ("coef_", "intercept_", "classes_", "n_iter_", "n_features_in_"):
            assert np.array_equal(getattr(again, name), getattr(plain, name))
        assert np.array_equal(again.predict_proba(X), plain.predict_proba(X))
        assert again.score(X, Y) == plain.score(X, Y)

    @pytest.mark.parametrize(
        "change",
        [
            lambda: (LogisticRegression(C=0.6), X, Y, {}),
            lambda: (LogisticRegression(C=0.5), X + 1e-9, Y, {}),
            lambda: (LogisticRegression(C=0.5), X, 1 - Y, {}),
            lambda: (LogisticRegression(C=0.5), X, Y, {"sample_weight": np.ones(len(Y))}),
            lambda: (LogisticRegression(C=0.5, solver="newton-cg"), X, Y, {}),
        ],
    )
    def test_anything_else_is_another_fit(self, folder, change):
        """Parameters, data, labels, weights, solvers."""
        WarmStarted(LogisticRegression(C=0.5), store=folder, near=False).fit(X, Y)
        estimator, x, y, params = change()
        found = WarmStarted(estimator, store=folder, near=False).fit(x, y, **params)
        assert found.warm_.source == "cold"

    @pytest.mark.parametrize(
        "estimator",
        [
            *(
                LogisticRegression(solver=solver, max_iter=5000, tol=1e-6)
                for solver in ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga")
            ),
            Lasso(alpha=0.001, tol=1e-8, max_iter=100_000),
            ElasticNet(alpha=0.001, tol=1e-8, max_iter=100_000),
            PoissonRegressor(alpha=0.1, tol=1e-6, max_iter=1000),
        ],
        ids=lambda e: f"{type(e).__name__} {getattr(e, 'solver', '')}",
    )
    def test_near_fits_take_fewer_iterations(self, folder, estimator):
        """A few rows less: from there, to the same solution."""
        model = WarmStarted(estimator, store=folder)
        model.fit(X, Y)
        near = clone(model).fit(X[5:], Y[5:])
        plain = clone(estimator).fit(X[5:], Y[5:])
        assert near.warm_.source == "near"
        assert near.warm_.start_run == model.warm_.run
        assert np.sum(near.n_iter_) <= np.sum(plain.n_iter_)
        np.testing.assert_allclose(near.coef_, plain.coef_, atol=2e-2)
        assert not near.estimator_.warm_start

    def test_without_warm_start_there_is_no_near(self, folder):
        """Nor where it means something else: a forest would grow."""
        for estimator in (Ridge(), RandomForestClassifier(n_estimators=3, random_state=0)):
            for rows in (slice(None), slice(3, None)):
                model = WarmStarted(estimator, store=folder).fit(X[rows], Y[rows])
                assert model.warm_.source == "cold"

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    @pytest.mark.parametrize("classes", [0, 2, 3])
    @pytest.mark.parametrize("kernel", [None, 1.0 * RBF(2.0) + WhiteKernel(0.1)])
    def test_gaussian_processes(self, folder, classes, kernel):
        """Remembered with their kernels; those of numbers and of two classes start near."""
        x, y = load_iris(return_X_y=True)
        x, y = (x[::2, :2], x[::2, 3]) if not classes else (x[::3, :2], y[::3])
        kind = GaussianProcessClassifier if classes else GaussianProcessRegressor
        if classes == 2:
            x, y = x[y > 0], y[y > 0]
        model = WarmStarted(kind(kernel, random_state=0), store=folder)
        cold, again = clone(model).fit(x, y), clone(model).fit(x, y)
        assert [cold.warm_.source, again.warm_.source] == ["cold", "final"]
        assert np.array_equal(cold.predict(x), again.predict(x))
        if classes:
            assert np.array_equal(cold.predict_proba(x), again.predict_proba(x))
        else:
            deviations = [one.estimator_.predict(x, return_std=True)[1] for one in (cold, again)]
            assert np.array_equal(*deviations)
        assert str(cold.estimator_.kernel_) == str(again.estimator_.kernel_)
        near = clone(model).fit(x[3:], y[3:])
        plain = clone(model.estimator).fit(x[3:], y[3:])
        assert near.warm_.source == "near"
        if classes != 3:
            value = near.estimator_.log_marginal_likelihood_value_
            expected = plain.log_marginal_likelihood_value_
            assert value >= expected - 1e-4 * max(1.0, abs(expected))
        assert near.estimator_.optimizer == "fmin_l_bfgs_b"

    def test_gaussian_processes_begin_where_others_ended(self, folder):
        """Through the optimizer hook: fewer likelihoods, and the caller's own optimizer is used."""
        x, y = load_iris(return_X_y=True)[0][:, :2], load_iris().data[:, 3]
        calls = []

        class Optimizer:
            def __call__(self, objective, begin, bounds):
                def counted(theta):
                    calls.append(theta)
                    return objective(theta)

                found = scipy.optimize.minimize(counted, begin, jac=True, bounds=bounds)
                return found.x, found.fun

        counts = []
        kernel = 1.0 * RBF(2.0) + WhiteKernel(0.1)
        for rows in (slice(None), slice(2, None)):
            estimator = GaussianProcessRegressor(kernel, optimizer=Optimizer())
            model = WarmStarted(estimator, store=folder).fit(x[rows], y[rows])
            counts.append(len(calls))
            calls.clear()
        assert model.warm_.source == "near"
        assert counts[1] < counts[0]

    @pytest.mark.parametrize("estimator", [RandomForestClassifier(n_estimators=3)])
    def test_what_cannot_be_stored_is_said(self, folder, estimator):
        """Fitted as ever; no pickle is made of it."""
        for _ in range(2):
            model = WarmStarted(estimator, store=folder).fit(X[:40], Y[:40])
            assert str(model.warm_) == (
                f"cold {model.warm_.key[:12]} (RandomForestClassifier is not remembered: its "
                "estimator, of type DecisionTreeClassifier, is not made of numbers, arrays and text)"
            )
        assert model.predict(X[:3]).shape == (3,)

    def test_a_store_that_cannot_be_used_is_said(self, tmp_path):
        """The estimator is fitted, and nobody has to guess why it is not remembered."""
        (tmp_path / "file").write_text("not a folder")
        model = WarmStarted(LogisticRegression(max_iter=1000), store=tmp_path / "file")
        with pytest.warns(WarmstartWarning, match="is a file"):
            model.fit(X, Y)
        assert model.warm_.why == "the result could not be kept"

    def test_text_labels_and_frames(self, folder):
        """Classes of text; column names, which come back."""
        import pandas as pd

        iris = load_iris(as_frame=True)
        labels = iris.target_names[iris.target]
        models = [
            WarmStarted(LogisticRegression(max_iter=1000), store=folder).fit(iris.data, labels)
            for _ in range(2)
        ]
        assert [model.warm_.source for model in models] == ["cold", "final"]
        assert list(models[1].feature_names_in_) == list(iris.data.columns)
        assert set(models[1].predict(pd.DataFrame(iris.data))) == set(iris.target_names)

    def test_other_classes_are_not_started_from(self, folder):
        """Another number of classes, of outputs: as ever."""
        x, y = load_iris(return_X_y=True)
        WarmStarted(LogisticRegression(), store=folder).fit(x[:100], y[:100])
        model = WarmStarted(LogisticRegression(), store=folder).fit(x[20:], y[20:])
        np.testing.assert_allclose(
            model.coef_, LogisticRegression().fit(x[20:], y[20:]).coef_, atol=1e-2
        )

    @pytest.mark.parametrize("estimator", [MLPClassifier(max_iter=30, random_state=0)])
    def test_networks(self, folder, estimator):
        """Layers, label binarizer and loss curve come back."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            plain = clone(estimator).fit(X, Y)
            for _ in range(2):
                model = WarmStarted(estimator, store=folder).fit(X, Y)
        assert model.warm_.source == "final"
        assert np.array_equal(model.predict_proba(X), plain.predict_proba(X))
        assert model.loss_curve_ == plain.loss_curve_

    def test_warnings_come_back(self, folder):
        """What the fit warned of the remembered one warns of, too."""
        for source in ("cold", "final"):
            with pytest.warns(ConvergenceWarning, match="failed to converge"):
                model = WarmStarted(LogisticRegression(max_iter=2), store=folder).fit(X, Y)
            assert model.warm_.source == source

    def test_the_store_in_force(self):
        """Without a store of its own, that of `using`."""
        store = Store(":memory:")
        with using(store=store) as fits:
            for _ in range(2):
                WarmStarted(LogisticRegression()).fit(X, Y)
        assert [fit.source for fit in fits] == ["cold", "final"]


class TestTools:
    """scikit-learn's own."""

    def test_grid_search_in_two_processes(self, folder):
        """The same best parameters and scores; a second search fits nothing."""
        grid = {"logisticregression__estimator__C": np.geomspace(1e-3, 1.0, 6)}
        plain = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-6)),
            {"logisticregression__C": np.geomspace(1e-3, 1.0, 6)},
            cv=4,
        ).fit(X, Y)
        warm = WarmStarted(LogisticRegression(max_iter=1000, tol=1e-6), store=folder)
        named = make_pipeline(StandardScaler(), warm)
        named.steps[-1] = ("logisticregression", warm)
        for _ in range(2):
            search = GridSearchCV(named, grid, cv=4, n_jobs=2).fit(X, Y)
            np.testing.assert_allclose(
                search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
            )
        assert list(search.best_params_.values()) == list(plain.best_params_.values())
        assert search.best_estimator_[-1].warm_.source == "final"

    def test_cross_validation(self, folder):
        model = WarmStarted(LogisticRegression(tol=1e-6, max_iter=1000), store=folder)
        with using() as fits:
            scores = cross_val_score(model, X, Y, cv=5)
        expected = cross_val_score(LogisticRegression(tol=1e-6, max_iter=1000), X, Y, cv=5)
        np.testing.assert_allclose(scores, expected)
        assert [fit.source for fit in fits] == ["cold"] + ["near"] * 4

    def test_arguments(self, folder):
        """What is wrong is said when the estimator is fitted, as scikit-learn has it."""
        with pytest.raises(ArgumentError, match="near is True or False, not 'x'"):
            WarmStarted(LogisticRegression(), store=folder, near="x").fit(X, Y)
        with pytest.raises(ArgumentError, match="a store is at a folder"):
            WarmStarted(LogisticRegression(), store=3).fit(X, Y)

    def test_metadata_routing(self, folder):
        """Weights reach the fit that requests them, through a cross-validation."""
        weights = np.where(Y == 1, 1.0, 3.0)
        with config_context(enable_metadata_routing=True):
            inner = LogisticRegression(tol=1e-6, max_iter=1000).set_fit_request(sample_weight=True)
            inner.set_score_request(sample_weight=False)
            model = WarmStarted(inner, store=folder, near=False)
            scores = cross_val_score(model, X, Y, cv=3, params={"sample_weight": weights})
            expected = cross_val_score(inner, X, Y, cv=3, params={"sample_weight": weights})
            np.testing.assert_allclose(scores, expected)
            model.fit(X, Y, sample_weight=weights)
            plain = clone(inner).fit(X, Y, sample_weight=weights)
            assert np.array_equal(model.coef_, plain.coef_)
            silent = LogisticRegression().set_fit_request(sample_weight=False)
            with pytest.raises(TypeError, match="sample_weight"):
                WarmStarted(silent, store=folder).fit(X, Y, sample_weight=weights)

    def test_clones_and_pickles(self, folder):
        """A clone is unfitted, and has the same store; a pickle is fitted."""
        model = WarmStarted(LogisticRegression(), store=folder).fit(X, Y)
        with pytest.raises(NotFittedError):
            clone(model).predict(X)
        with pytest.raises(AttributeError, match="no attribute 'coef_'"):
            _ = clone(model).coef_
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.predict(X), model.predict(X))
        in_memory = WarmStarted(LogisticRegression(), store=Store(":memory:"))
        assert clone(in_memory).store is in_memory.store
        changed = clone(model).set_params(estimator__C=3.0)
        assert changed.fit(X, Y).estimator_.C == 3.0

    def test_methods_are_those_of_the_estimator(self):
        assert hasattr(WarmStarted(LogisticRegression()), "predict_proba")
        assert not hasattr(WarmStarted(Ridge()), "predict_proba")
        assert not hasattr(WarmStarted(Ridge()), "transform")
