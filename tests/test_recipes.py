"""Loops of nearly equal fits: their results, their economy, what they refuse."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.optimize
from sklearn.datasets import load_diabetes
from sklearn.model_selection import KFold

from warmstart import ArgumentError, Store, optimize, using
from warmstart.recipes import bootstrap, fit_folds, fit_path, jackknife, profile

X, Y = load_diabetes(return_X_y=True)
X = np.column_stack([np.ones(len(X)), 20.0 * X])[:120, :4]
Y = (Y[:120] - Y.mean()) / Y.std()


def loss(w, x, y, penalty):
    left = x @ w - y
    return 0.5 * left @ left / len(y) + 0.5 * penalty * w @ w, x.T @ left / len(y) + penalty * w


def solve(x, y, penalty=0.01):
    return np.linalg.solve(x.T @ x / len(y) + penalty * np.eye(4), x.T @ y / len(y))


def fit(x, y, penalty=0.01):
    return optimize.minimize(
        loss, np.zeros(4), args=(x, y, penalty), jac=True, options={"gtol": 1e-9}
    )


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store, using(store=store):
        yield store


class TestPaths:
    """Along a hyperparameter."""

    GRID = np.array([0.1, 3.0, 1.0, 0.3, 10.0, 0.03])

    def test_in_the_order_of_the_grid(self, store):
        """Each solution is that of its value, wherever in the grid that stands."""
        found = fit_path(lambda penalty: fit(X, Y, penalty), self.GRID)
        for value, x, fun in zip(found.index, found.x, found.fun, strict=True):
            np.testing.assert_allclose(x, solve(X, Y, value), atol=1e-7)
            assert fun == pytest.approx(loss(x, X, Y, value)[0])
        sources = {
            value: report.source for value, report in zip(self.GRID, found.reports, strict=True)
        }
        assert sources.pop(10.0) == "cold"
        assert set(sources.values()) == {"near"}

    def test_again_and_longer(self, store):
        """The same loop is remembered; a finer one does only what is new."""
        first = fit_path(lambda penalty: fit(X, Y, penalty), self.GRID)
        again = fit_path(lambda penalty: fit(X, Y, penalty), self.GRID)
        assert again.nfev.tolist() == [0] * 6
        assert np.array_equal(first.x, again.x)
        finer = fit_path(lambda penalty: fit(X, Y, penalty), [*self.GRID, 0.5])
        assert [report.source for report in finer.reports] == ["final"] * 6 + ["near"]

    def test_processes(self, store, tmp_path):
        """As in one process, in two that share the store."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import sys
                import numpy as np
                from warmstart import Store, optimize, using
                from warmstart.recipes import fit_path

                def objective(x, penalty):
                    return np.sum((x - 1.0) ** 2) + penalty * np.sum(x**2)

                def fit(penalty):
                    return optimize.minimize(objective, np.zeros(2), args=(penalty,))

                if __name__ == "__main__":
                    store = Store(sys.argv[1])
                    with using(store=store), store.run() as run:
                        for _ in range(2):
                            found = fit_path(fit, [0.1, 3.0, 1.0, 0.3, 10.0], n_jobs=2)
                    assert len(store.runs(parent=run.id)) == 5
                    assert [report.source for report in found.reports] == ["final"] * 5
                    print(*found.x[:, 0].round(4))
                """
            )
        )
        command = [sys.executable, str(script), str(tmp_path / "two")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        exact = [1.0 / (1.0 + penalty) for penalty in (0.1, 3.0, 1.0, 0.3, 10.0)]
        np.testing.assert_allclose(list(map(float, done.stdout.split())), exact, atol=2e-4)

    def test_as_a_table(self, store):
        frame = fit_path(lambda penalty: fit(X, Y, penalty), self.GRID).to_frame()
        assert frame.shape == (6, 7)
        assert frame.index.tolist() == self.GRID.tolist()
        assert list(frame.columns) == ["x0", "x1", "x2", "x3", "fun", "nfev", "source"]

    def test_printed_they_are_a_few_lines(self, store):
        """How many fits, from where, at what cost, and what was estimated; no array in full."""
        shown = repr(fit_path(lambda penalty: fit(X, Y, penalty), self.GRID))
        assert re.fullmatch(r"6 fits of 4 parameters: 5 near, 1 cold; \d+ evaluations", shown)
        replicates = repr(bootstrap(fit, (X, Y), n=20, rng=0)).splitlines()
        assert replicates[0].startswith("20 fits of 4 parameters: ")
        words = [line.split()[0] for line in replicates[1:]]
        assert words == ["estimate", "standard_error", "bias"]
        assert max(map(len, replicates)) < 100

    def test_profiles(self, store):
        """Held at each value, minimized over the rest."""

        def objective(x, a):
            return (x[0] - 1.0) ** 2 + (x[1] - a * x[0]) ** 2 + (x[2] - x[1]) ** 2

        found = profile(objective, np.zeros(3), 1, np.linspace(-1, 1, 5), args=(2.0,))
        for held, x, fun in zip(found.index, found.x, found.fun, strict=True):
            first = (1.0 + 2.0 * held) / 5.0
            np.testing.assert_allclose(x, [first, held, held], atol=1e-4)
            assert fun == pytest.approx((first - 1.0) ** 2 + (held - 2.0 * first) ** 2, abs=1e-8)
        with using(parameters=["slope", "held", "rest"]):
            by_name = profile(objective, np.zeros(3), "held", [-1.0, 0.5], args=(2.0,))
        np.testing.assert_allclose(by_name.x[0], found.x[0], atol=1e-4)
        with pytest.raises(ArgumentError, match="one of the names in using"):
            profile(objective, np.zeros(3), "held", [1.0])


class TestResampling:
    """Folds and replicates."""

    def test_folds(self, store):
        """Numbers, splitters and indices; scores on what was left out."""

        def score(x, rows, y):
            return np.mean((rows @ x - y) ** 2)

        splitter = KFold(5)
        by_splitter = fit_folds(fit, splitter, (X, Y), score=score)
        by_number = fit_folds(fit, 5, (X, Y), score=score)
        by_indices = fit_folds(fit, list(splitter.split(X)), (X, Y))
        assert np.array_equal(by_splitter.x, by_number.x)
        assert np.array_equal(by_number.x, by_indices.x)
        assert set(by_number.nfev) == set(by_indices.nfev) == {0}
        assert by_indices.scores is None
        for (train, test), x, scored in zip(
            splitter.split(X), by_splitter.x, by_splitter.scores, strict=True
        ):
            np.testing.assert_allclose(x, solve(X[train], Y[train]), atol=1e-7)
            assert scored == pytest.approx(score(x, X[test], Y[test]))
        assert "score" in by_number.to_frame().columns

    def test_bootstrap(self, store):
        """The spread of the same draws' exact solutions; the same draws are remembered."""
        found = bootstrap(fit, (X, Y), 40, rng=7)
        rng = np.random.default_rng(7)
        rows = [np.sort(rng.integers(0, 120, 120)) for _ in range(40)]
        exact = np.array([solve(X[r], Y[r]) for r in rows])
        np.testing.assert_allclose(found.x, exact, atol=1e-6)
        np.testing.assert_allclose(found.estimate, solve(X, Y), atol=1e-7)
        np.testing.assert_allclose(found.standard_error, exact.std(axis=0, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(found.bias, exact.mean(axis=0) - solve(X, Y), atol=1e-6)
        lower, upper = found.confidence_interval(0.9)
        np.testing.assert_allclose(lower, np.quantile(exact, 0.05, axis=0), atol=1e-5)
        assert np.all(lower < upper)
        assert not bootstrap(fit, (X, Y), 40, rng=7).nfev.any()
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            found.confidence_interval(95)
        with pytest.raises(ArgumentError, match="between 0 and 1, not 'x'"):
            found.confidence_interval("x")

    def test_jackknife(self, store):
        """For a mean: the textbook's standard error, and no bias."""
        y = np.random.default_rng(0).normal(size=15)

        def mean(y):
            return optimize.minimize(lambda m, y: np.sum((y - m) ** 2), [0.0], args=(y,))

        found = jackknife(mean, (y,))
        assert found.standard_error == pytest.approx([y.std(ddof=1) / np.sqrt(15)], rel=1e-5)
        assert found.bias == pytest.approx([0.0], abs=1e-5)

    def test_curves(self, store):
        """Any function of scipy.optimize: a tuple's first item is the solution."""
        t = np.linspace(0.0, 3.0, 40)
        y = 2.0 * np.exp(-t) + 0.05 * np.cos(40.0 * t)

        def decay(t, a, b):
            return a * np.exp(-b * t)

        found = bootstrap(lambda t, y: optimize.curve_fit(decay, t, y), (t, y), 10, rng=0)
        assert found.x.shape == (10, 2)
        assert np.isnan(found.fun).all()
        assert {report.near.predictor for report in found.reports} <= {"quadratic", "gauss-newton"}


class TestRefusals:
    """Wrong input is refused with what to write instead."""

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: fit_path(fit, [[1.0]]), "grid is a list of numbers"),
            (lambda: fit_path(fit, []), "grid is a list of numbers"),
            (lambda: fit_path(fit, ["a"]), "grid is a list of numbers"),
            (lambda: fit_path("fit", [1.0]), "fit is a function that does one fit, not str"),
            (lambda: fit_path(lambda v: v, [1.0]), "from warmstart import optimize"),
            (lambda: fit_folds(fit, 1, (X, Y)), "number of folds from 2 to 120, not 1"),
            (lambda: fit_folds(fit, 2.5, (X, Y)), "cv is a number of folds, a splitter"),
            (lambda: fit_folds(fit, 3, X), r"write data=\(x, y\)"),
            (lambda: bootstrap(fit, (X, Y[:5]), 3), "first axis in common"),
            (lambda: bootstrap(fit, (X, Y), 0), "n is a number of replicates from 1 up, not 0"),
            (lambda: bootstrap(fit, (X, Y), 3, rng="x"), "rng is a number from 0 up"),
            (lambda: jackknife(fit, ()), "first axis in common"),
            (lambda: jackknife(fit, (X[:1],)), "two rows or more.*these have 1 rows"),
            (lambda: fit_folds(fit, "5", (X, Y)), "cv is a number of folds.*not '5'"),
            (lambda: fit_folds(fit, [1, 2], (X, Y)), r"pairs \(train, test\) of row numbers"),
            (lambda: fit_folds(fit, [([0, 500], [1])], (X, Y)), "500 is out of bounds"),
            (lambda: fit_folds(fit, 3, (X, Y), score=3), "score is a function.*not int"),
            (lambda: fit_path(fit, [1.0], n_jobs="x"), "n_jobs is a number of processes"),
            (lambda: fit_path(fit, [1.0], n_jobs=0), "n_jobs is a number of processes"),
            (lambda: fit_path(fit, [1.0], progress="x"), "progress is True or False"),
            (lambda: profile(np.sum, [1.0], 0, [1.0]), "at least two parameters"),
            (
                lambda: profile(np.sum, [1.0, 2.0], 2, [1.0]),
                "a number from 0 to 1, or one of the names",
            ),
        ],
    )
    def test_arguments(self, store, call, message):
        with pytest.raises(ArgumentError, match=message):
            call()

    def test_results(self, store):
        def odd(value):
            optimize.minimize(lambda x, v: np.sum((x - v) ** 2), [0.0], args=(value,))
            return "nothing"

        with pytest.raises(ArgumentError, match=r"returns what a function of scipy\.optimize"):
            fit_path(odd, [1.0, 2.0])

    def test_plain_scipy_is_noticed(self, store):
        with pytest.raises(ArgumentError, match="did not call a function of warmstart"):
            fit_path(lambda v: scipy.optimize.minimize(lambda x: x @ x, [v]), [1.0])
