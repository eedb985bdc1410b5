"""``from warmstart import optimize``: scipy's results, remembered."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import warmstart
from warmstart import (
    ArgumentError,
    EntryKind,
    Store,
    StoreError,
    Warm,
    WarmstartWarning,
    optimize,
    patch,
    replaying,
    using,
)
from warmstart.surfaces import SURFACES

X = np.linspace(0.0, 4.0, 30)
Y = 2.5 * np.exp(-1.3 * X) + 0.5
CALLS = []
"""Grows by one a call. Named like a constant, and hidden from keys by living in a module."""


class Counter:
    """Counts without being part of anybody's key."""

    def __init__(self):
        self.count = 0

    def __reduce__(self):
        return Counter, ()

    def tick(self):
        self.count += 1


COUNTER = Counter()


def noisy(x, rng):
    return optimize.rosen(x) + 1e-3 * rng.normal()


class Noise:
    """Draws from a generator that no key sees."""

    def __init__(self, rng):
        self.rng = rng

    def __reduce__(self):
        return Noise, (None,)

    def __call__(self, x):
        return noisy(x, self.rng)


class Scaled:
    """Has an attribute that a method may ask for."""

    scale = 3.0

    def __call__(self, x):
        return self.scale * optimize.rosen(x)


def curve(x, a, b, c):
    COUNTER.tick()
    return a * np.exp(-b * x) + c


def residuals(p):
    COUNTER.tick()
    return p[0] * np.exp(-p[1] * X) + p[2] - Y


def objective(p, scale=1.0):
    COUNTER.tick()
    return scale * float(np.sum((p[0] * np.exp(-p[1] * X) + p[2] - Y) ** 2))


def bowl(p):
    return float(np.sum((np.asarray(p, float) - 0.7) ** 2))


def bowl_gradient(p):
    return 2.0 * (np.asarray(p, float) - 0.7)


def with_gradient(p):
    COUNTER.tick()
    return float(np.sum((p - 1.0) ** 2)), 2.0 * (p - 1.0)


FITS = {
    **{
        f"minimize {method}": ("minimize", (objective, [1.0, 1.0, 0.0]), {"method": method})
        for method in ("Nelder-Mead", "Powell", "CG", "BFGS", "L-BFGS-B", "TNC", "COBYLA", "SLSQP")
    },
    "minimize default": ("minimize", (objective, np.array([1, 1, 0])), {}),
    "minimize args": ("minimize", (objective, [1.0, 1.0, 0.0], (2.0,)), {"tol": 1e-6}),
    "minimize jac=True": ("minimize", (with_gradient, [3.0, 4.0]), {"jac": True}),
    "minimize bounds": (
        "minimize",
        (objective, [1.0, 1.0, 0.0]),
        {"bounds": [(0, 3), (None, 2), (0, None)], "options": {"maxiter": 50}},
    ),
    "minimize constrained": (
        "minimize",
        (objective, [1.0, 1.0, 0.0]),
        {"constraints": [{"type": "ineq", "fun": lambda p: 3.0 - p[0]}]},
    ),
    "minimize stops early": ("minimize", (objective, [1.0, 1.0, 0.0]), {"options": {"maxiter": 2}}),
    "least_squares": ("least_squares", (residuals, [1.0, 1.0, 0.0]), {}),
    "least_squares lm": ("least_squares", (residuals, [1.0, 1.0, 0.0]), {"method": "lm"}),
    "least_squares robust": (
        "least_squares",
        (residuals, [1.0, 1.0, 0.0]),
        {"loss": "soft_l1", "bounds": ([0, 0, 0], [9, 9, 9])},
    ),
    "leastsq": ("leastsq", (residuals, [1.0, 1.0, 0.0]), {}),
    "leastsq full": ("leastsq", (residuals, [1.0, 1.0, 0.0]), {"full_output": True}),
    "curve_fit": ("curve_fit", (curve, X, Y), {}),
    "curve_fit full": (
        "curve_fit",
        (curve, X, Y),
        {"p0": [1.0, 1.0, 0.0], "sigma": np.full(30, 0.1), "full_output": True},
    ),
    "curve_fit bounds": ("curve_fit", (curve, X, Y), {"bounds": (0, [9, 9, 9]), "ftol": 1e-9}),
    "differential_evolution": (
        "differential_evolution",
        (objective, [(0, 5), (0, 5), (0, 5)]),
        {"rng": 3, "maxiter": 15},
    ),
    "differential_evolution seed": (
        "differential_evolution",
        (objective, [(0, 5), (0, 5), (0, 5)]),
        {"seed": 3, "maxiter": 15, "polish": False},
    ),
    "differential_evolution vectorized": (
        "differential_evolution",
        (lambda p: np.sum((p - 1.0) ** 2, axis=0), [(0, 5), (0, 5)]),
        {"rng": 3, "maxiter": 15, "vectorized": True, "updating": "deferred"},
    ),
}


def same(one, other):
    assert type(one) is type(other) or isinstance(one, tuple)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            if key != "execution_time":
                same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, scipy.optimize.LbfgsInvHessProduct):
        np.testing.assert_array_equal(one.todense(), other.todense())
    else:
        assert one == other


@pytest.fixture
def store():
    with Store(":memory:") as store:
        yield store


@pytest.fixture
def folder(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


class TestTransparency:
    """With default settings a wrapped call returns what scipy returns."""

    @pytest.mark.parametrize("name", FITS)
    def test_result_and_hit_are_scipys(self, name, folder):
        """A first fit equals plain scipy's in every field; so does the hit, without one call."""
        function, args, options = FITS[name]
        plain = getattr(scipy.optimize, function)(*args, **options)
        wrapped = getattr(optimize, function)
        with using(store=folder):
            first = wrapped(*args, **options)
            assert first.warm.source == "cold"
            assert first.warm.key is not None
            before = COUNTER.count
            hit = wrapped(*args, **options)
        assert COUNTER.count == before
        assert hit.warm.source == "final"
        assert hit.warm.evaluations == 0
        assert hit.warm.evaluations_saved > 0
        same(plain, first)
        same(plain, hit)

    def test_every_name_of_scipy_is_here(self):
        """All public names of scipy.optimize are names of warmstart.optimize."""
        for name in scipy.optimize.__all__:
            assert hasattr(optimize, name), name
        assert set(scipy.optimize.__all__) <= set(dir(optimize))
        assert optimize.rosen is scipy.optimize.rosen
        with pytest.raises(AttributeError):
            optimize.no_such_name  # noqa: B018

    @pytest.mark.parametrize("name", SURFACES)
    def test_signatures_are_scipys_plus_warm(self, name):
        """Each wrapped function has scipy's signature and one keyword-only `warm` more."""
        try:
            plain = inspect.signature(attrgetter(name)(scipy.optimize)).parameters
        except ValueError:  # compiled, in scipy before 1.18
            assert name == "linear_sum_assignment"
            return
        wrapped = dict(inspect.signature(attrgetter(name)(optimize)).parameters)
        warm = wrapped.pop("warm")
        assert (warm.kind, warm.default) == (warm.KEYWORD_ONLY, None)
        assert {n: (p.kind, repr(p.default)) for n, p in wrapped.items()} == {
            n: (p.kind, repr(p.default)) for n, p in plain.items()
        }

    @pytest.mark.parametrize(
        "call",
        [
            lambda module: module.minimize(),
            lambda module: module.minimize(objective),
            lambda module: module.minimize(objective, [1.0], no_such=1),
            lambda module: module.minimize(objective, [1.0, 1.0, 0.0], x0=[1.0]),
            lambda module: module.minimize(objective, [1.0, 1.0, 0.0], method="none"),
            lambda module: module.minimize("text", [1.0]),
            lambda module: module.least_squares(residuals, [1.0, 1.0, 0.0], bounds=(5, 4)),
            lambda module: module.curve_fit(curve, X, Y[:3]),
            lambda module: module.curve_fit(curve, X, Y, maxfev=1),
            lambda module: module.differential_evolution(objective, [(0, 1)], maxiter="x"),
        ],
    )
    def test_exceptions_are_scipys(self, call, store):
        """Wrong calls raise what scipy raises, with its type and text."""
        with pytest.raises(Exception) as plain:
            call(scipy.optimize)
        with pytest.raises(plain.type) as wrapped, using(store=store):
            call(optimize)
        assert str(wrapped.value) == str(plain.value)

    def test_exceptions_of_the_objective_pass(self, store):
        """An exception of the user's function comes out, marks the run, and remembers nothing."""

        def broken(_x):
            raise ZeroDivisionError("mine")

        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="mine"), using(store=store):
                optimize.minimize(broken, [1.0])
        assert list(store.keys()) == []

    def test_warnings_are_scipys_also_on_a_hit(self, store):
        """What scipy warns it warns again when the result comes from the store."""
        calls = [
            lambda: optimize.minimize(
                objective, [1.0, 1.0, 0.0], method="Nelder-Mead", options={"foo": 1}
            ),
            lambda: optimize.curve_fit(lambda x, a: 0.0 * a * x, X, Y),
        ]
        for call in calls:
            seen = []
            for _ in range(3):
                with warnings.catch_warnings(record=True) as log, using(store=store):
                    warnings.simplefilter("always")
                    call()
                seen.append([(w.category, str(w.message)) for w in log])
            assert seen[0] == seen[1] == seen[2]
            assert len(seen[0]) == 1

    @pytest.mark.parametrize("action", ["ignore", "always"])
    def test_it_is_told_that_warnings_were_ignored(self, store, action):
        """A hit of a fit that nobody heard says so, since it cannot say what it warned of."""
        with warnings.catch_warnings(), using(store=store):
            warnings.simplefilter(action)
            warnings.filterwarnings("always", message="something else")
            assert optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.why is None
        with using(store=store):
            why = optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.why
        assert (why is not None and "ignored" in why) == (action == "ignore")

    @pytest.mark.parametrize("action", ["always", "default", "module"])
    @pytest.mark.parametrize(
        "options", [{}, {"refit": True}, {"enabled": False}, {"hyper": {"a": threading.Lock()}}]
    )
    def test_warnings_point_to_the_caller(self, store, action, options):
        """They are shown as often as scipy's are under each filter, and for the same lines."""

        def there(module, log):
            def flat(x, a):
                return 0.0 * a * x

            for _ in range(3):
                module.curve_fit(flat, X, Y)
            module.curve_fit(flat, X, Y)
            return [(Path(w.filename).name, w.lineno, str(w.message)) for w in log]

        shown = []
        for module in (scipy.optimize, optimize, optimize):
            with (
                warnings.catch_warnings(record=True) as log,
                using(store=store, **options),
            ):
                warnings.simplefilter(action)
                warnings.simplefilter("ignore", WarmstartWarning)  # that it has no key
                shown.append(there(module, log))
        assert shown[0] == shown[1] == shown[2]
        assert {name for name, _, _ in shown[0]} == {Path(__file__).name}
        assert len(shown[0]) == {"always": 4, "default": 2, "module": 1}[action]

    def test_what_it_tells_itself_points_to_the_caller(self):
        """A fit that cannot be identified is told of at the line that does it."""
        lock = threading.Lock()
        with pytest.warns(WarmstartWarning, match="lock") as log:
            optimize.minimize(lambda x: (lock, x @ x)[1], [1.0, 2.0])
        assert {Path(w.filename).name for w in log} == {Path(__file__).name}

    @pytest.mark.parametrize(
        ("name", "given", "settings"),
        [
            *((n, {"maxiter": 1}, "disp") for n in ("fmin", "fmin_powell", "fmin_cg", "fmin_bfgs")),
            ("fmin_ncg", {"maxiter": 1, "fprime": scipy.optimize.rosen_der}, "disp"),
            ("fmin_l_bfgs_b", {"approx_grad": True}, "disp"),
            ("fmin_l_bfgs_b", {"approx_grad": True}, "iprint"),
            (
                "brute",
                {"ranges": ((-2, 2),), "Ns": 3, "finish": lambda *_, **__: ([0.0], 1)},
                "disp",
            ),
        ],
    )
    def test_what_is_told_decides_what_is_warned(self, store, name, given, settings):
        """Where ``disp`` or ``iprint`` decides about a warning, a hit warns as scipy does."""
        seen = []
        for module in (scipy.optimize, optimize, optimize):
            with using(store=store, journal=False) as fits:
                for value in ({settings: 0}, {settings: 1}, {}, {settings: 2}):
                    start = {} if name == "brute" else {"x0": [-1.2, 1.0]}
                    function = {SURFACES[name].function: scipy.optimize.rosen}
                    with warnings.catch_warnings(record=True) as log:
                        warnings.simplefilter("always")
                        getattr(module, name)(**function, **start, **given, **value)
                    seen.append([(w.category, str(w.message)) for w in log])
        assert seen[:4] == seen[4:8] == seen[8:]
        assert any(seen)
        assert [fit.source for fit in fits] == ["final"] * 4

    def test_the_hook_for_warnings_leaves_no_trace(self, store):
        """After a fit `warnings.showwarning` is what it was."""
        before = warnings.showwarning
        with using(store=store):
            optimize.minimize(objective, [1.0, 1.0, 0.0])
        assert warnings.showwarning is before

    def test_the_report_is_beside_the_result(self, store):
        """`warm` is an attribute, not one of the result's keys; it survives pickling."""
        import pickle

        with using(store=store):
            result = optimize.minimize(objective, [1.0, 1.0, 0.0])
            popt, pcov = optimize.curve_fit(curve, X, Y)
        assert "warm" not in result
        assert "warm" not in repr(result)
        assert pickle.loads(pickle.dumps(result)).warm == result.warm
        assert popt.shape == (3,)
        assert pcov.shape == (3, 3)

    def test_generators_end_where_scipy_leaves_them(self, store):
        """After a hit a passed generator, and the global one, are in the state after the fit."""
        box = [(0, 2), (0, 2)]

        def fit(module, rng):
            module.differential_evolution(optimize.rosen, box, maxiter=5, rng=rng)
            return rng.random()

        plain = fit(scipy.optimize, np.random.default_rng(7))
        with using(store=store) as fits:
            assert fit(optimize, np.random.default_rng(7)) == plain
            assert fit(optimize, np.random.default_rng(7)) == plain
            assert fit(optimize, np.random.default_rng(8)) != plain
        assert [f.source for f in fits] == ["cold", "final", "cold"]
        state = np.random.get_state()
        try:
            after = []
            for module in (scipy.optimize, optimize, optimize):
                np.random.seed(11)
                with using(store=store) as fits:
                    module.differential_evolution(optimize.rosen, box, maxiter=5)
                after.append(np.random.random())
            assert after[0] == after[1] == after[2]
            assert fits[0].source == "final"
        finally:
            np.random.set_state(state)

    def test_the_module_stands_for_the_global_generator(self, store):
        """``seed=np.random`` is what numpy's global generator will draw, not a name."""
        state = np.random.get_state()
        try:
            found = []
            for module, seed in ((scipy.optimize, 1), (optimize, 1), (optimize, 2), (optimize, 1)):
                np.random.seed(seed)
                with using(store=store):
                    fit = module.differential_evolution(
                        optimize.rosen, [(0, 2)] * 2, maxiter=3, polish=False, seed=np.random
                    )
                found.append((fit.fun, np.random.random()))
            assert found[0] == found[1] == found[3] != found[2]
            assert fit.warm.source == "final"
        finally:
            np.random.set_state(state)

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # scipy's, of a seeded generator
    @pytest.mark.parametrize(
        "given",
        [
            {"method": "2opt"},
            {"method": "2opt", "options": {"rng": np.random}},
            {"options": {"P0": "randomized"}},
            {"options": {"shuffle_input": True}},
        ],
    )
    def test_an_assignment_draws_from_a_seeded_generator(self, store, given):
        """What a seeded global generator decides is not answered from another state of it."""
        a, b = np.random.default_rng(5).random((2, 24, 24))
        state = np.random.get_state()
        try:
            found = []
            for module, seed in ((scipy.optimize, 1), (optimize, 1), (optimize, 2), (optimize, 1)):
                np.random.seed(seed)
                with using(store=store):
                    fit = module.quadratic_assignment(a, b, **given)
                found.append((fit.col_ind.tolist(), np.random.random()))
            assert found[0] == found[1] == found[3] != found[2]
        finally:
            np.random.set_state(state)

    @pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState])
    def test_generators_among_the_arguments_end_where_the_fit_left_them(self, store, kind):
        """Those that the objective is given are advanced by a hit, in the arguments' arguments too."""
        method = {"method": "Nelder-Mead", "options": {"maxfev": 40}}

        def fit(module):
            rng = kind(3)
            module.minimize(noisy, [1.0, 2.0], args=(rng,), **method)
            local = kind(4)
            module.basinhopping(
                noisy, [1.0, 2.0], niter=1, rng=5, minimizer_kwargs={**method, "args": (local,)}
            )
            return rng.uniform(), local.uniform()

        plain = fit(scipy.optimize)
        with using(store=store) as fits:
            assert fit(optimize) == fit(optimize) == fit(optimize) == plain
        assert [f.source for f in fits] == ["cold"] * 2 + ["final"] * 4

    def test_bit_generators_end_where_the_fit_left_them(self, store):
        """The same for what numpy's generators are made of."""

        def fit(module):
            bits = np.random.PCG64(3)
            module.differential_evolution(optimize.rosen, [(0, 2)] * 2, maxiter=3, rng=bits)
            return bits.random_raw()

        plain = fit(scipy.optimize)
        with using(store=store) as fits:
            assert fit(optimize) == fit(optimize) == fit(optimize) == plain
        assert [f.source for f in fits] == ["cold", "final", "final"]

    def test_tracked_generators_end_where_the_fit_left_them(self, store):
        """A hit advances them, and a fit that did not know of them is done again."""

        def fit(*, tracked):
            rng = np.random.default_rng(3)
            warm = Warm(track=[rng] if tracked else [])
            optimize.minimize(Noise(rng), [1.0, 2.0], method="COBYLA", warm=warm)
            return rng.random()

        with using(store=store) as fits:
            after = {fit(tracked=tracked) for tracked in (False, True, True, True)}
        assert len(after) == 1
        assert [f.source for f in fits] == ["cold", "cold", "final", "final"]
        assert "tracked" in fits[1].why

    @pytest.mark.parametrize("name", [3, None, "\ud800", "<lambda>"])
    def test_functions_have_any_name(self, store, name):
        """A `__name__` that is no text loses nothing, and switches nothing off."""

        class Odd:
            def __init__(self):
                self.__name__ = name

            def __getattr__(self, attribute):
                if name is not None:  # else it has every attribute
                    raise AttributeError(attribute)

            def __call__(self, x):
                return optimize.rosen(x)

        with using(store=store) as fits:
            for _ in range(3):
                optimize.minimize(Odd(), [1.3, 0.7], options={"maxiter": 3})
                optimize.minimize(optimize.rosen, [1.3, 0.7], callback=Odd())
        assert [f.source for f in fits] == ["cold", "cold", "final", "cold", "final", "cold"]
        assert replaying() is False

    def test_own_methods_see_the_function(self, store):
        """They find its attributes, copy it and pickle it, and may return what they like."""
        import copy
        import pickle

        def method(fun, x0, args, **_options):
            assert not hasattr(fun, "no_such")
            again = [copy.copy(fun), copy.deepcopy(fun), pickle.loads(pickle.dumps(fun))]
            at = [f(np.array(x0)) for f in again]
            return scipy.optimize.OptimizeResult(x=x0, fun="n/a", at=at, scale=fun.scale)

        with using(store=store) as fits:
            for _ in range(2):
                result = optimize.minimize(Scaled(), [1.3, 0.7], method=method)
                assert (result.fun, result.scale, len(set(result.at))) == ("n/a", 3.0, 1)
        assert [f.source for f in fits] == ["cold", "final"]

    def test_switched_off_it_is_scipy(self, store):
        """With ``enabled=False`` nothing is keyed, stored or reported."""
        with using(store=store, enabled=False) as fits:
            result = optimize.minimize(objective, [1.0, 1.0, 0.0])
        assert not hasattr(result, "warm")
        assert fits == []
        assert list(store.keys()) == []


def bent(p):
    return np.asarray(p, float) ** 2 - 0.7


def line(x, a, b):
    return np.asarray(a, float) * x + np.asarray(b, float)


FROM_A_START = {
    **{
        f"minimize {method}": ("minimize", bowl, {"method": method, "jac": jac})
        for method, jac in [
            *(("Nelder-Mead", None), ("Powell", None), ("CG", None), ("BFGS", None), ("TNC", None)),
            *(("L-BFGS-B", None), ("COBYLA", None), ("SLSQP", None), ("Newton-CG", bowl_gradient)),
        ]
    },
    **{f"least_squares {m}": ("least_squares", bent, {"method": m}) for m in ("trf", "lm")},
    **{f"curve_fit {m}": ("curve_fit", line, {"method": m}) for m in ("trf", "lm")},
    **{
        f"root {method}": ("root", bent, {"method": method}) for method in ("hybr", "lm", "df-sane")
    },
    **{name: (name, bent, {}) for name in ("leastsq", "fsolve", "broyden1", "newton_krylov")},
    "root broyden1": ("root", bent, {"method": "broyden1"}),
    "fixed_point": ("fixed_point", lambda p: np.cos(np.asarray(p, float)), {}),
    **{
        name: (name, bowl, {"disp": 0})
        for name in ("fmin", "fmin_powell", "fmin_cg", "fmin_bfgs", "fmin_cobyla", "fmin_slsqp")
    },
    "fmin_ncg": ("fmin_ncg", bowl, {"fprime": bowl_gradient, "disp": 0}),
    "fmin_l_bfgs_b": ("fmin_l_bfgs_b", bowl, {"approx_grad": True}),
    "fmin_tnc": ("fmin_tnc", bowl, {"approx_grad": True, "messages": 0}),
    "differential_evolution": ("differential_evolution", bowl, {"rng": 1, "maxiter": 2}),
    "dual_annealing": ("dual_annealing", bowl, {"rng": 1, "maxiter": 3}),
    "basinhopping": ("basinhopping", bowl, {"rng": 1, "niter": 2}),
    "basinhopping Powell": (
        "basinhopping",
        bowl,
        {"rng": 1, "niter": 2, "minimizer_kwargs": {"method": "Powell"}},
    ),
}


class TestStarts:
    """Starts agree only where scipy makes the same of them."""

    @staticmethod
    def kinds():
        yield from ([1.0, 2.0], (1.0, 2.0), np.array([1.0, 2.0]), [1, 2], np.array([1, 2]))
        yield from (np.array([1, 2], kind) for kind in ("u1", "i2", "f4", "f2", ">f8", "g"))
        yield np.ma.masked_array([1.0, 2.0], [False, False])

    @pytest.mark.parametrize("name", FROM_A_START)
    @pytest.mark.filterwarnings("ignore")
    def test_starts_with_one_key_are_one_fit(self, name):
        """Of two starts with one key scipy makes the same calls, by type and bits, and results."""
        function, fun, options = FROM_A_START[name]
        surface, seen = SURFACES[function], {}
        shared = 0
        for x0 in self.kinds():
            calls = []

            def watched(*args, calls=calls):
                point = args[-1] if function != "curve_fit" else args[1]
                calls.append((type(point), np.asarray(point).dtype, np.asarray(point).tobytes()))
                return fun(*args)

            args = {surface.function: fun, surface.start: x0, **options}
            if function == "curve_fit":
                args |= {"xdata": X, "ydata": 2.0 * X}
            if function in {"differential_evolution", "dual_annealing"}:
                args["bounds"] = [(-5, 5)] * 2
            if function == "fmin_cobyla":
                args["cons"] = ()
            settings = surface.parts(surface.bind((), args))[2]
            key = str(warmstart.FitSpec(model="f", settings=settings).key)
            try:
                result = surface.scipy(**{**args, surface.function: watched})
            except Exception as error:
                result = repr(error)
            shared += key in seen
            before, expected = seen.setdefault(key, (calls, result))
            assert calls == before
            same(expected, result)
        assert shared >= 2  # a list, a tuple and an array at the least


def bowl_with(p, *_args):
    p = np.asarray(p)
    return p - 0.7 if p.ndim == 0 else bowl(p)


class AttributesOfItems(dict):
    __getattr__ = dict.__getitem__


class OddShape:
    shape = 3.5


class NoShape:
    @property
    def shape(self):
        raise OSError


def looking_like(get):
    """Return a callable object of a class with this ``__getattr__``."""
    members = {"__getattr__": get, "__call__": lambda _self, p: bowl_with(p)}
    return type("Odd", (), members)()


def raising(_self, name):
    raise KeyError(name)


def itself(depth=1):
    made = [1.0]
    made.append(made)
    for _ in range(depth):
        made = {"a": made}
        made["b"] = made
    return made


def shared(made, depth=40):
    for _ in range(depth):
        made = [made, made]
    return made


def nested(depth):
    made = []
    for _ in range(depth):
        made = [made]
    return made


ODD = {
    "items as attributes": lambda: AttributesOfItems(a=1),
    "a shape that is a number": OddShape,
    "a shape that raises": NoShape,
    "attributes that raise": lambda: looking_like(raising),
    "attributes that are None": lambda: looking_like(lambda _self, _name: None),
    "attributes that are itself": lambda: looking_like(lambda self, _name: self),
    "a list in itself": itself,
    "one list many times": lambda: shared([1.0]),
    "deep": lambda: nested(100_000),
    "labels": lambda: pd.Series([1.0, 2.0], index=["names", "nlevels"]),
    "more labels": lambda: pd.Series([1.0, 2.0, 3.0], index=["levels", "index", "name"]),
}


class TestMemory:
    """What makes a fit the same fit."""

    def fit(self, store, *args, **options):
        warm = options.pop("warm", Warm())
        with using(store=store):
            return optimize.minimize(*args, **options, warm=warm).warm

    def test_changes_are_misses(self, store):
        """Another x0, argument, option, method or function is another fit."""
        base = (objective, [1.0, 1.0, 0.0])
        calls = [
            (base, {}),
            ((objective, [1.0, 1.0, 0.1]), {}),
            ((*base, (2.0,)), {}),
            (base, {"tol": 1e-3}),
            (base, {"method": "CG"}),
            (base, {"options": {"gtol": 1e-3}}),
            ((lambda p: objective(p) + 0.0, base[1]), {}),
        ]
        keys = {self.fit(store, *args, **options).key for args, options in calls}
        assert len(keys) == len(calls)
        assert all(self.fit(store, *a, **o).source == "final" for a, o in calls)

    def test_spelling_does_not_count(self, store):
        """Positional or by name, defaults written out, list or array: the same fit."""
        x0 = [1, 1, 0]
        assert self.fit(store, objective, x0).source == "cold"
        for args, options in [
            ((), {"x0": np.array(x0, float), "fun": objective}),
            ((objective, tuple(x0), ()), {"method": None, "tol": None, "options": None}),
            ((objective,), {"x0": x0, "constraints": ()}),
        ]:
            assert self.fit(store, *args, **options).source == "final"

    def test_data_in_a_closure_counts_at_the_call(self, store):
        """Data that a function captures is part of the fit, as it is when it is called."""
        y = np.array([1.0, 2.0])

        def fun(p):
            return float(((p - y) ** 2).sum())

        assert self.fit(store, fun, [0.0, 0.0]).source == "cold"
        assert self.fit(store, fun, [0.0, 0.0]).source == "final"
        y[0] = 5.0
        assert self.fit(store, fun, [0.0, 0.0]).source == "cold"

    @pytest.mark.parametrize("name", ODD)
    def test_odd_values_do_not_fail_a_fit(self, store, name):
        """Attributes that raise, lists that hold themselves: the fit is done, and quickly."""
        value = ODD[name]()
        fun = value if callable(value) else bowl_with
        args = () if callable(value) else (value,)
        with warnings.catch_warnings(), using(store=store):
            warnings.simplefilter("ignore", WarmstartWarning)
            for _ in range(2):
                result = optimize.minimize(fun, [1.0, 2.0], args=args)
                assert abs(optimize.brentq(fun, -1.0, 3.0, args=args) - 0.7) < 1e-9
        same(scipy.optimize.minimize(fun, [1.0, 2.0], args=args), result)
        assert result.warm.source == ("off" if name == "deep" else "final")

    def test_what_cannot_be_identified_is_one_warning(self, store):
        """The warning says what, where and what to do; the fit runs, and says why in its report."""
        lock = threading.Lock()

        def fun(p):
            with lock:
                return float((p**2).sum())

        with (
            pytest.warns(WarmstartWarning, match=r"__closure__\['lock'\].*model="),
            using(store=store),
        ):
            result = optimize.minimize(fun, [1.0, 2.0])
        assert result.success
        assert result.warm.source == "off"
        assert "lock" in result.warm.why
        run = store.get_run(result.warm.run).info
        assert (run.key, run.status, run.what) == ("", "completed", "minimize fun")
        assert run.evaluations == result.nfev == result.warm.evaluations
        named = Warm(store=store, model="with-lock")
        assert [optimize.minimize(fun, [1.0, 2.0], warm=named).warm.source for _ in "ab"] == [
            "cold",
            "final",
        ]

    def test_a_failed_fit_says_so_before_the_store_does(self, tmp_path):
        """What a caller hears of is the fit's own exception, though a strict store has another."""
        (tmp_path / "file").write_text("not a folder")
        strict, lock = Store(tmp_path / "file", strict=True), threading.Lock()

        def fun(p):
            with lock:
                raise ZeroDivisionError

        with pytest.warns(WarmstartWarning), using(store=strict):
            with pytest.raises(ZeroDivisionError):
                optimize.minimize(fun, [1.0, 2.0])
            with pytest.raises(StoreError):
                optimize.minimize(lambda p: (lock.locked(), p @ p)[1], [1.0, 2.0])

    def test_a_named_model_with_edited_code_is_a_start(self, store):
        """Under a name, the result of other code is a start and no answer."""
        warm = Warm(store=store, model="mine", data=Y)
        assert (
            optimize.minimize(lambda p: ((p - 1) ** 2).sum(), [5.0], warm=warm).warm.source
            == "cold"
        )
        report = optimize.minimize(lambda p: ((p - 2) ** 2).sum(), [5.0], warm=warm)
        assert report.warm.source == "checkpoint"
        assert report.x == pytest.approx([2.0], abs=1e-5)

    def test_hyper_and_data_are_part_of_the_key(self, store):
        """What `Warm` adds to the key separates fits."""
        options = [{}, {"hyper": {"alpha": 0.1}}, {"hyper": {"alpha": 0.2}}, {"data": Y}]
        keys = {self.fit(store, objective, [1.0, 1.0, 0.0], warm=Warm(**o)).key for o in options}
        assert len(keys) == 4

    def test_refit_runs_again(self, store):
        """``refit=True`` runs a remembered fit and remembers it anew."""
        for expected in ("cold", "cold"):
            warm = Warm(refit=True)
            assert self.fit(store, objective, [1.0, 1.0, 0.0], warm=warm).source == expected
        assert self.fit(store, objective, [1.0, 1.0, 0.0]).source == "final"

    def test_callbacks_are_called_unless_skipped(self, store):
        """A fit with a callback runs, so that the callback sees it; "skip" returns the result."""
        seen = Counter()

        def callback(_x, seen=seen):
            seen.tick()

        warm = Warm(journal=False)  # a slow machine's journal would be replayed
        for _ in range(2):
            report = self.fit(store, objective, [1.0, 1.0, 0.0], callback=callback, warm=warm)
            assert report.evaluations > 0
        assert "callback" in report.why
        before = seen.count
        skip = Warm(callbacks="skip")
        report = self.fit(store, objective, [1.0, 1.0, 0.0], callback=callback, warm=skip)
        assert (report.source, seen.count) == ("final", before)

    def test_callbacks_inside_arguments_are_called(self, store):
        """Those of the local minimizer are called by a remembered fit as well."""
        seen = Counter()

        def callback(_x, seen=seen):
            seen.tick()

        def fit(**options):
            before = seen.count
            report = optimize.basinhopping(
                optimize.rosen,
                [1.3, 0.7],
                niter=2,
                rng=3,
                minimizer_kwargs={"callback": callback, "method": "BFGS"},
                warm=Warm(store=store, **options),
            ).warm
            return report.source, seen.count - before

        source, called = fit()
        assert called
        assert fit() == (source, called)
        assert fit(callbacks="skip") == ("final", 0)

    def test_hits_are_independent(self, store):
        """Changing a returned result changes no later one."""
        with using(store=store):
            optimize.minimize(objective, [1.0, 1.0, 0.0])
            first = optimize.minimize(objective, [1.0, 1.0, 0.0])
            expected = first.x.copy()
            first.x[:] = 0.0
            first["fun"] = None
            second = optimize.minimize(objective, [1.0, 1.0, 0.0])
        np.testing.assert_array_equal(second.x, expected)
        assert second.fun is not None

    def test_nested_fits_are_the_outermost(self, store):
        """A wrapped call inside another's objective is part of that one."""

        def outer(p):
            return optimize.minimize(lambda q: float(((q - p) ** 2).sum()), [0.0]).fun + p[0] ** 2

        with using(store=store) as fits:
            optimize.minimize(outer, [1.0], method="Nelder-Mead")
        assert len(fits) == 1

    def test_threads_have_their_own_options(self, store):
        """`using` in one thread does not reach another."""
        other = Store(":memory:")
        done = threading.Event()

        def work():
            with using(store=other):
                done.wait(10)
                optimize.minimize(objective, [1.0, 1.0, 0.0])

        thread = threading.Thread(target=work)
        thread.start()
        with using(store=store):
            done.set()
            optimize.minimize(objective, [2.0, 1.0, 0.0])
        thread.join()
        assert len(list(store.keys())) == len(list(other.keys())) == 1


class TestRanking:
    """The objective of a result that does not tell it is the lowest of all evaluations."""

    @pytest.mark.parametrize("sigma", [None, np.linspace(0.5, 2.0, 40)])
    @pytest.mark.parametrize("shape", [np.asarray, list], ids=["array", "list"])
    def test_curves(self, sigma, shape):
        """Half the sum of squares, to the last bit, whether ranked at once or one by one."""
        t, seen = np.linspace(0.0, 3.0, 40), []
        y = 2.0 * np.exp(-t) + 0.1 * np.cos(7.0 * t)

        def curve(t, a, b):
            values = a * np.exp(-b * t)
            far = values - y if sigma is None else (values - y) / sigma
            seen.append(0.5 * float(np.dot(far, far)))
            return shape(values)

        store = Store(":memory:")
        with using(store=store, model="decay"):
            fit = optimize.curve_fit(curve, t, y, [1.0, 2.0], sigma=sigma)
        assert store.run_info(fit.warm.run).objective == min(seen)


class TestLaw2:
    """The store never fails a fit."""

    def test_a_place_that_cannot_be_used(self, tmp_path):
        """A broken place is one warning, and scipy's result."""
        (tmp_path / "file").write_text("")
        broken = Store(tmp_path / "file")
        with using(store=broken):
            with pytest.warns(WarmstartWarning, match="go on without"):
                first = optimize.minimize(objective, [1.0, 1.0, 0.0])
            second = optimize.minimize(objective, [1.0, 1.0, 0.0])
        same(scipy.optimize.minimize(objective, [1.0, 1.0, 0.0]), first)
        assert second.warm.source == "cold"
        assert "kept" in second.warm.why

    def test_a_damaged_final_is_a_miss(self, folder):
        """A record with a flipped bit is no answer: the fit runs again."""
        from warmstart.backends import Batch

        with using(store=folder):
            optimize.minimize(objective, [1.0, 1.0, 0.0])
            (item,) = folder.backend.scan(b"e")
            value = bytearray(item.value)
            value[len(value) // 2] ^= 4
            folder.backend.apply(Batch({item.key: bytes(value)}))
            assert optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.source == "cold"

    def test_a_result_that_cannot_be_kept(self, store):
        """A result that contains itself is returned as it is, and the report says why not kept."""
        loop = []
        loop.append(loop)

        def method(fun, x0, args, **_options):
            return scipy.optimize.OptimizeResult(x=x0, fun=fun(x0), success=True, loop=loop)

        with using(store=store):
            for _ in range(2):
                result = optimize.minimize(objective, [1.0, 1.0, 0.0], method=method)
                assert result.loop is loop
                assert "nested" in result.warm.why

    @pytest.mark.parametrize("part", [{1, 2}, print, object()])
    def test_a_result_is_kept_whole_or_not_at_all(self, folder, part):
        """A result of which a part has no bytes is made anew; its run says that it was completed."""

        def method(fun, x0, args, **_options):
            return scipy.optimize.OptimizeResult(x=x0, fun=fun(x0), deep=[{"part": part}])

        with using(store=folder):
            for _ in range(3):
                result = optimize.minimize(objective, [1.0, 1.0, 0.0], method=method)
                assert result.deep[0]["part"] is part
                assert "result.deep[0].part" in result.warm.why
                assert folder.run_info(result.warm.run).status == "completed"

    def test_operators_of_a_result_do_not_vanish(self, folder):
        """A Jacobian that is an operator is in the result each time."""
        from scipy.sparse.linalg import LinearOperator, aslinearoperator

        def jacobian(p):
            slope = np.exp(-p[1] * X)
            return aslinearoperator(np.stack([slope, -p[0] * X * slope, np.ones(30)], 1))

        with using(store=folder):
            for _ in range(3):
                result = optimize.least_squares(residuals, [1.0, 1.0, 0.0], jac=jacobian)
                assert isinstance(result.jac, LinearOperator)


SLOW = """
import os, sys, time
import numpy as np
from warmstart import Store, optimize, using
def fun(p):
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return optimize.rosen(p)
def fit():
    with using(store=Store(sys.argv[1]), interval=0.0):
        return optimize.minimize(fun, [-1.2, 1.0, -0.5, 0.8], method="Nelder-Mead", tol=1e-9)
if __name__ == "__main__":
    result = fit()
    print(result.warm.source, result.warm.evaluations, result.warm.evaluations_saved, *result.x)
"""


class TestResume:
    """A fit that was killed goes on: by its journal, or else from its best point."""

    def test_a_killed_fit_resumes(self, tmp_path):
        """SIGKILL in the middle; the next run goes on by the journal, says so, and ends right."""
        script = tmp_path / "slow.py"
        script.write_text(SLOW)
        place = tmp_path / "store"
        command = [sys.executable, str(script), str(place)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        store = Store(place)
        found = None
        try:
            while found is None:
                assert child.poll() is None, "the fit ended before it could be killed"
                if place.exists():
                    found = next((store.best(key) for key in store.keys()), None)
                os.sched_yield()
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert found.kind is EntryKind.CHECKPOINT
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        source, evaluations, saved, *x = done.stdout.split()
        assert source == "journal"
        assert int(evaluations) > 0
        assert int(saved) > 0
        np.testing.assert_allclose([float(v) for v in x], 1.0, atol=1e-4)
        again = subprocess.run(command, capture_output=True, text=True, check=True)
        assert again.stdout.split()[:2] == ["final", "0"]
        store.close()

    @pytest.mark.parametrize(
        "name", ["minimize BFGS", "least_squares", "curve_fit bounds", "differential_evolution"]
    )
    def test_every_surface_starts_from_a_checkpoint(self, name, store):
        """A checkpoint's point is handed to each optimizer as its start, inside the bounds."""
        function, args, options = FITS[name]
        with using(store=store):
            key = getattr(optimize, function)(*args, **options).warm.key
            key = warmstart.Fingerprint.parse(key)
            store.delete(key)
            with store.session(key) as session:
                session.checkpoint(
                    {"x": np.array([2.5, 1.3, 0.5]), "evaluations": 7, "seconds": 1.0}, 0.0
                )
            result = getattr(optimize, function)(*args, **options)
        assert result.warm.source == "checkpoint"
        assert result.warm.evaluations_saved == 7
        assert result.warm.start_run == session.run_id
        x = result[0] if isinstance(result, tuple) else result.x
        np.testing.assert_allclose(x, [2.5, 1.3, 0.5], atol=1e-3)

    @pytest.mark.parametrize(
        ("payload", "why"),
        [
            ({"x": np.ones(5)}, "5 parameters"),
            ({"x": np.array([1.0, np.nan, 1.0])}, "no usable point"),
            ({"x": "text"}, "no usable point"),
            (b"bytes", "no usable point"),
        ],
    )
    def test_an_unusable_checkpoint_is_told(self, payload, why, store):
        """A start of the wrong size or kind is refused with a reason, and the fit runs cold."""
        with using(store=store):
            key = warmstart.Fingerprint.parse(
                optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.key
            )
            store.delete(key)
            with store.session(key) as session:
                session.checkpoint(payload, 0.0)
            report = optimize.minimize(objective, [1.0, 1.0, 0.0]).warm
            assert report.source == "cold"
            assert why in report.why
            assert optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.source == "final"

    def test_resume_can_be_declined(self, store):
        """``resume=False`` starts from the caller's x0."""
        with using(store=store, resume=False):
            key = warmstart.Fingerprint.parse(
                optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.key
            )
            store.delete(key)
            with store.session(key) as session:
                session.checkpoint({"x": np.ones(3)}, 0.0)
            assert "resume=False" in optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.why


class TestOptions:
    """`Warm` and `using`."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": ""}, "model is a name"),
            ({"model": 7}, "model is a name"),
            ({"hyper": [1]}, "hyper is a mapping"),
            ({"hyper": {1: 2.0}}, "hyper is a mapping of names"),
            ({"callbacks": "never"}, "callbacks is"),
            ({"refit": "yes"}, "refit is True or False"),
            ({"enabled": 1}, "enabled is True or False"),
            ({"resume": None}, "resume is True or False"),
            ({"interval": -1}, "interval is a number"),
            ({"store": 7}, "folder"),
            ({"store": "mysql://x"}, "not a kind of store"),
        ],
    )
    def test_wrong_values_are_refused(self, options, message):
        """Each option says what it expects, in `Warm` and in `using`."""
        with pytest.raises(ArgumentError, match=message):
            Warm(**options)
        with pytest.raises(ArgumentError, match=message), using(**options):
            pass

    @pytest.mark.parametrize("given", ["fits", Warm(near=True)])
    def test_options_of_a_block_have_names(self, given):
        """What is given without one is refused with what to write."""
        with pytest.raises(ArgumentError, match=r"write using\(store="), using(given):
            pass

    def test_unknown_options_are_refused_by_name(self):
        """A misspelled option is named with the one that may have been meant."""
        with pytest.raises(ArgumentError, match="did you mean 'store'"), using(stor="x"):
            pass
        with pytest.raises(ArgumentError, match="no option 'zzz'"), using(zzz=1):
            pass
        with pytest.raises(TypeError, match="stor"):
            Warm(stor="x")

    def test_warm_takes_options(self):
        """Anything but a `Warm` as ``warm=`` is refused with what to write."""
        with pytest.raises(ArgumentError, match=r"warm=Warm\(store="):
            optimize.minimize(objective, [1.0, 1.0, 0.0], warm="store")

    def test_calls_go_before_blocks(self, store):
        """What a call's own options say wins over the block's, the rest stays."""
        other = Store(":memory:")
        with using(store=store, hyper={"a": 1}):
            optimize.minimize(objective, [1.0, 1.0, 0.0], warm=Warm(store=other))
            optimize.minimize(objective, [1.0, 1.0, 0.0])
        assert list(store.keys()) == list(other.keys())

    def test_the_environment_names_the_default_store(self, tmp_path, monkeypatch):
        """Without options the store of ``$WARMSTART_STORE`` is used."""
        monkeypatch.setenv("WARMSTART_STORE", str(tmp_path / "env"))
        assert optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.source == "cold"
        assert optimize.minimize(objective, [1.0, 1.0, 0.0]).warm.source == "final"
        warmstart.warm.store_of(Warm()).close()
        assert (tmp_path / "env" / "FORMAT").exists()


class TestPatch:
    """Redirecting scipy for code that does not know."""

    def test_it_reaches_names_imported_before_and_is_undone(self, store):
        """Calls by module and by imported name remember inside, and are scipy's own after."""
        namespace = type(sys)("somebody")
        namespace.minimize = scipy.optimize.minimize
        sys.modules["somebody"] = namespace
        plain = scipy.optimize.minimize
        try:
            with patch(store=store) as patched:
                namespace.minimize(objective, [1.0, 1.0, 0.0])
                scipy.optimize.minimize(objective, [1.0, 1.0, 0.0])
            assert [fit.source for fit in patched.fits] == ["cold", "final"]
            assert namespace.minimize is plain
            assert scipy.optimize.minimize is plain
        finally:
            del sys.modules["somebody"]

    def test_it_is_a_decorator_and_starts_and_stops(self, store):
        """As `unittest.mock.patch` it decorates, and is started and stopped."""

        @patch(store=store)
        def work():
            return scipy.optimize.least_squares(residuals, [1.0, 1.0, 0.0]).warm.source

        assert [work(), work()] == ["cold", "final"]
        patched = patch(store=store).start()
        with pytest.raises(RuntimeError, match="on already"):
            patched.start()
        patched.stop()
        patched.stop()
        with pytest.raises(ArgumentError, match="no option"):
            patch(stor=1)

    @pytest.mark.parametrize("name", SURFACES)
    def test_every_function_is_redirected_wherever_it_is(self, store, name):
        """In scipy.optimize, in the module that defines it, and undone without a trace."""
        public = attrgetter(name)(scipy.optimize)
        home = sys.modules[public.__module__]
        last = name.rpartition(".")[2]
        before = {module: dict(vars(module)) for module in (scipy.optimize, home)}
        with patch(store=store):
            redirected = attrgetter(name)(scipy.optimize)
            assert redirected is not public
            assert vars(home)[last] is redirected
            assert redirected.__name__ == last
            assert redirected.__wrapped__ is public
            late = type(sys)("imported_late")
            late.function = redirected
            sys.modules["imported_late"] = late
        assert sys.modules.pop("imported_late").function is public
        assert {module: dict(vars(module)) for module in before} == before

    def test_curve_fit_lives_in_two_modules(self, store):
        """The private module's name is redirected too; both remember the same fit."""
        from scipy.optimize import _minpack_py

        with patch(store=store) as patched:
            _minpack_py.curve_fit(curve, X, Y, p0=[1.0, 1.0, 0.0])
            scipy.optimize.curve_fit(curve, X, Y, p0=[1.0, 1.0, 0.0])
        assert [fit.source for fit in patched.fits] == ["cold", "final"]

    def test_scipys_own_search_for_roots_is_left_alone(self, store):
        """scipy.stats asks for roots by the thousand; a caller's own root is remembered."""
        import scipy.stats

        class Odd(scipy.stats.rv_continuous):
            def _cdf(self, x):
                return x**3

        with patch(store=store, journal=True) as patched:
            assert Odd(a=0.0, b=1.0).ppf(0.125) == pytest.approx(0.5)
            assert patched.fits == []
            assert scipy.optimize.brentq(lambda x: x - 0.5, 0.0, 1.0) == 0.5
        assert [fit.source for fit in patched.fits] == ["cold"]

    def test_nested_calls_are_one_fit(self, store):
        """What basinhopping, or an objective, minimizes inside is part of the outer fit."""

        def inner(x):
            return scipy.optimize.minimize_scalar(lambda t: (t - x[0]) ** 2 + x[1] ** 2).fun

        with patch(store=store, journal=True) as patched:
            scipy.optimize.basinhopping(objective, [1.0, 1.0, 0.0], niter=2, rng=1)
            scipy.optimize.minimize(inner, [1.0, 1.0], method="Nelder-Mead")
        assert [fit.source for fit in patched.fits] == ["cold", "cold"]

    def test_reports_of_all_threads_are_gathered(self, store):
        """Fits of other threads are counted too."""
        with patch(store=store) as patched:
            thread = threading.Thread(
                target=lambda: scipy.optimize.curve_fit(curve, X, Y, p0=[1.0, 1.0, 0.0])
            )
            thread.start()
            thread.join()
        assert [fit.source for fit in patched.fits] == ["cold"]


class TestArrays:
    """Functions without a function of the user's: hits alone, from a size where they pay."""

    def calls(self):
        rng = np.random.default_rng(0)
        tall, right = rng.normal(size=(300, 150)), rng.normal(size=300)
        square = rng.random((250, 250))
        return {
            "linprog": ((-np.ones(8),), {"A_ub": rng.random((8, 8)), "b_ub": np.ones(8)}),
            "milp": (
                (-np.ones(5),),
                {
                    "integrality": np.ones(5),
                    "constraints": scipy.optimize.LinearConstraint(rng.random((5, 5)), ub=2.0),
                },
            ),
            "lsq_linear": ((tall, right), {"bounds": (-1, 1)}),
            "nnls": ((tall, right), {}),
            "quadratic_assignment": ((square[:30, :30], square[30:60, :30]), {}),
            "linear_sum_assignment": ((square,), {"maximize": True}),
            "isotonic_regression": ((np.cumsum(rng.normal(size=100_000)),), {}),
        }

    @pytest.mark.parametrize("name", [n for n, surface in SURFACES.items() if not surface.function])
    def test_hits(self, store, name):
        """The second call returns what the first did, in every field; other data are a miss."""
        args, options = self.calls()[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            plain = getattr(scipy.optimize, name)(*args, **options)
        with warnings.catch_warnings(), using(store=store) as fits:
            warnings.simplefilter("ignore", FutureWarning)  # of quadratic_assignment's generator
            results = [getattr(optimize, name)(*args, **options) for _ in range(2)]
            getattr(optimize, name)(*[2.0 * item for item in args], **options)
        assert [fit.source for fit in fits] == ["cold", "final", "cold"]
        assert [fit.evaluations for fit in fits] == [None, 0, None]
        assert str(fits[0]) == f"cold {fits[0].key[:12]}"
        for result in results:
            same(plain, result)

    def test_ragged_constraints(self, store):
        """A matrix beside its bounds is no array; what scipy refuses it refuses here too."""
        a, c = np.random.default_rng(0).random((4, 7)), -np.ones(7)
        given = {"constraints": (a, -np.inf, np.ones(4)), "bounds": (0, 1), "integrality": 1}
        plain = scipy.optimize.milp(c, **given)
        with using(store=store) as fits:
            for _ in range(2):
                same(plain, optimize.milp(c, **given))
            with pytest.raises(ValueError, match="constraints"):
                optimize.milp(c, constraints=(a, [1, 2]))
        assert [fit.source for fit in fits] == ["cold", "final"]

    def test_small_and_random_ones_are_scipys(self, store):
        """Below the size where a hit pays, or with a generator in `options`: not looked up."""
        with using(store=store) as fits:
            optimize.nnls(np.eye(3), np.ones(3))
            optimize.linear_sum_assignment(np.eye(3))
            square = np.random.default_rng(0).random((30, 30))
            rng = np.random.default_rng(1)
            optimize.quadratic_assignment(square, square, "2opt", options={"rng": rng})
        assert fits == []


LIBRARIES = {
    "lmfit": """
        import lmfit
        model = lmfit.models.ExponentialModel()
        x = np.linspace(0, 3, 40)
        y = 3 * np.exp(-x / 0.7) + 0.01 * np.cos(40 * x)
        fit = model.fit(y, x=x, amplitude=1.0, decay=1.0, method="least_squares")
        print(*sorted(fit.best_values.items()))
        """,
    "lmfit default": """
        import lmfit
        def residual(p, x, y):
            return p["a"] * np.exp(-p["b"] * x) - y
        x = np.linspace(0, 3, 40)
        y = 3 * np.exp(-x / 0.7) + 0.01 * np.cos(40 * x)
        fit = lmfit.minimize(residual, lmfit.create_params(a=1.0, b=1.0), args=(x, y))
        print(fit.params["a"].value, fit.params["b"].stderr, fit.chisqr)
        """,
    "statsmodels": """
        import statsmodels.api as sm
        rng = np.random.default_rng(0)
        x = sm.add_constant(rng.normal(size=(80, 2)))
        y = (rng.random(80) < 0.5).astype(float)
        fit = sm.Logit(y, x).fit(method="minimize", min_method="BFGS", disp=False)
        print(*fit.params)
        """,
    "sklearn": """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, WhiteKernel
        x = np.arange(12.0)[:, None]
        gp = GaussianProcessRegressor(RBF() + WhiteKernel(), random_state=0).fit(x, np.sin(x[:, 0]))
        print(gp.kernel_, gp.log_marginal_likelihood_value_)
        """,
}


class TestRun:
    """``warmstart run SCRIPT``."""

    def run(self, tmp_path, script, *args, json=True):
        options = ["--store", str(tmp_path / "store"), *(["--json"] if json else [])]
        return subprocess.run(
            [sys.executable, "-m", "warmstart", "run", *options, str(script), *args],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,  # or what is tested is imported from here, and not as by the script
        )

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_libraries_are_remembered_unchanged(self, library, tmp_path):
        """A script's second run prints the same and fits nothing, whatever library it uses."""
        script = tmp_path / "script.py"
        script.write_text(
            "import warnings\nwarnings.simplefilter('ignore')\nimport numpy as np\n"
            + textwrap.dedent(LIBRARIES[library])
        )
        plain = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=True
        )
        import json

        counts = []
        for _ in range(2):
            done = self.run(tmp_path, script)
            assert done.returncode == 0, done.stderr
            assert done.stdout == plain.stdout
            counts.append(json.loads(done.stderr.splitlines()[-1]))
        assert set(counts[0]["fits"]) == {"fitted"}
        assert set(counts[1]["fits"]) == {"hit"}
        assert counts[1]["evaluations_saved"] == counts[0]["evaluations"] > 0

    def test_the_script_is_run_as_python_runs_it(self, tmp_path):
        """Arguments, name, folder and exit code are those of a plain run."""
        script = tmp_path / "script.py"
        (tmp_path / "beside.py").write_text("VALUE = 5\n")
        script.write_text(
            "import sys, beside\nprint(__name__, sys.argv[1:], beside.VALUE)\nsys.exit(7)\n"
        )
        done = self.run(tmp_path, script, "--flag", "x")
        assert done.stdout == "__main__ ['--flag', 'x'] 5\n"
        assert done.returncode == 7
        assert self.run(tmp_path, tmp_path / "missing.py").returncode == 2

    def test_people_see_a_table(self, tmp_path):
        """Without --json a table says what was hit, resumed, fitted and saved."""
        script = tmp_path / "script.py"
        script.write_text(
            "from scipy.optimize import minimize, rosen\nfor _ in range(3): minimize(rosen, [1.3, 0.7])\n"
        )
        done = self.run(tmp_path, script, json=False)
        assert "3 fits" in done.stderr
        assert "hit" in done.stderr
        assert "fitted" in done.stderr

    def test_a_fit_is_one_fit(self, tmp_path):
        """The summary is a line of its own above the table, and counts as people do."""
        script = tmp_path / "script.py"
        script.write_text(
            "from scipy.optimize import minimize, rosen\nminimize(rosen, [1.3, 0.7])\n"
        )
        said = self.run(tmp_path, script, json=False).stderr.splitlines()
        assert said[0].startswith("warmstart: 1 fit in ")
        assert said[0].endswith(" s saved")

    @pytest.mark.parametrize(
        "line",
        [
            "open('missing.csv')",
            "raise ConnectionRefusedError('nobody is there')",
            "import warmstart; warmstart.Warm(interval='x')",
            "1 / 0",
            "exec('def (')",
        ],
    )
    def test_an_error_is_shown_as_python_shows_it(self, tmp_path, line):
        """The traceback begins with the script, whatever it raises; the exit code is python's."""
        script = tmp_path / "script.py"
        script.write_text(f"def work():\n    {line}\n\nwork()\n")
        plain = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False
        )
        done = self.run(tmp_path, script, json=False)
        assert done.returncode == plain.returncode == 1
        assert done.stderr == plain.stderr

    def test_a_script_that_does_not_parse(self, tmp_path):
        """Nothing but python's own message, and no store is made."""
        script = tmp_path / "script.py"
        script.write_text("def (\n")
        plain = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False
        )
        done = self.run(tmp_path, script, json=False)
        assert (done.stdout, done.stderr, done.returncode) == ("", plain.stderr, 1)
        assert not (tmp_path / "store").exists()

    def test_an_interrupted_fit_says_how_to_go_on(self, tmp_path):
        """What is recorded is told, python ends as it does, and the same command goes on."""
        script, once = tmp_path / "script.py", tmp_path / "once"
        script.write_text(
            "import os\nfrom scipy.optimize import minimize, rosen\n"
            "class Interrupted:\n"
            "    count = 0\n"
            "    def __call__(self, x):\n"
            "        Interrupted.count += 1\n"
            f"        if Interrupted.count == 60 and not os.path.exists({str(once)!r}):\n"
            f"            open({str(once)!r}, 'w').close()\n"
            "            raise KeyboardInterrupt\n"
            "        return rosen(x)\n"
            "print(minimize(Interrupted(), [-1.2, 1.0], method='Nelder-Mead').warm.source)\n"
        )
        done = self.run(tmp_path, script, json=False)
        assert done.returncode == -signal.SIGINT
        *trace, last = done.stderr.splitlines()
        assert last == (
            "warmstart: 1 fit interrupted, 59 evaluations recorded; the same command goes on"
        )
        assert trace.count("KeyboardInterrupt") == 1
        assert trace[-1] == "KeyboardInterrupt"
        assert "runpy" not in done.stderr
        assert self.run(tmp_path, script, json=False).stdout == "journal\n"

    def test_options_are_for_direct_calls_too(self, tmp_path):
        """Scripts that import from warmstart get the options, in all threads; theirs go before."""
        script = tmp_path / "script.py"
        script.write_text(
            "from threading import Thread\n"
            "from warmstart import Warm, optimize, using\n"
            "def fit(**more):\n"
            "    print(optimize.minimize(optimize.rosen, [1.3, 0.7], **more).warm.source)\n"
            "fit()\nfit()\n"
            "thread = Thread(target=fit)\nthread.start()\nthread.join()\n"
            f"with using(store={str(tmp_path / 'other')!r}): fit()\n"
            f"with using(refit=False): fit(warm=Warm(store={str(tmp_path / 'other')!r}))\n"
        )
        assert self.run(tmp_path, script).stdout.split() == [
            "cold",
            *["final"] * 2,
            "cold",
            "final",
        ]
        again = self.run(tmp_path, "--refit", script).stdout.split()
        assert again == ["cold"] * 4 + ["final"]
        assert self.run(tmp_path, script).stdout.split() == ["final"] * 5

    def test_children_are_not_counted(self, tmp_path):
        """Where a script did all of its fits in other processes, the summary says why it has none."""
        script = tmp_path / "script.py"
        script.write_text(
            "import multiprocessing as mp\n"
            "if __name__ == '__main__':\n"
            "    child = mp.get_context('fork').Process(target=int)\n"
            "    child.start()\n    child.join()\n"
        )
        assert "from warmstart import optimize" in self.run(tmp_path, script, json=False).stderr
        script.write_text("import multiprocessing\n")
        said = self.run(tmp_path, script, json=False).stderr
        assert said == "warmstart: the script has done no fit that could be remembered\n"
