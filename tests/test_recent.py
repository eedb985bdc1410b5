"""Calls seen before: the quick way to a key never gives another key than the long one."""

from __future__ import annotations

import itertools
import textwrap
import types
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import Store, optimize, using
from warmstart.recent import Recent, signature

numbers = itertools.count()


def define(source, **names):
    namespace = {"__name__": "__main__", "np": np, **names}
    exec(compile(textwrap.dedent(source), f"<cell {next(numbers)}>", "exec"), namespace)
    return namespace["fun"]


def key(fun, x0=(1.0, 2.0)):
    with using(store=Store(":memory:")):
        return optimize.minimize(
            fun, list(x0), method="Nelder-Mead", options={"maxfev": 3}
        ).warm.key


SUM = "def fun(x):\n    return float((x * x).sum()){}"


class TestChanges:
    """After any change of what a function stands on its key is that of a new function."""

    @pytest.mark.parametrize(
        ("source", "change"),
        [
            ("C = 1\n" + SUM.format(" + C"), lambda f: f.__globals__.update(C=2)),
            ("def g(x):\n    return 1\n" + SUM.format(" + g(x)"),
             lambda f: f.__globals__.update(g=lambda x: 2)),
            ("def g(x):\n    return 1\n" + SUM.format(" + g(x)"),
             lambda f: setattr(f.__globals__["g"], "__code__", (lambda x: 2).__code__)),
            ("D = 1\ndef g(x):\n    return D\n" + SUM.format(" + g(x)"),
             lambda f: f.__globals__.update(D=2)),
            ("def fun(x, a=1):\n    return float((x * x).sum()) + a",
             lambda f: setattr(f, "__defaults__", (2,))),
            ("def fun(x, *, a=1):\n    return float((x * x).sum()) + a",
             lambda f: f.__kwdefaults__.update(a=2)),
            (SUM.format(""), lambda f: setattr(f, "__code__", (lambda x: 2.0 * float((x * x).sum())).__code__)),
            (SUM.format(""), lambda f: setattr(f, "order", 2)),
            (SUM.format(" + len('abc')"), lambda f: f.__globals__.update(len=lambda _: 7)),
            (SUM.format(" + np.exp(0.0)"), lambda f: f.__globals__.update(np=types.SimpleNamespace(exp=lambda x: 5.0))),
            ("L = [1]\n" + SUM.format(" + L[0]"), lambda f: f.__globals__["L"].append(2)),
            ("A = np.ones(2)\n" + SUM.format(" + A[0]"), lambda f: f.__globals__["A"].fill(2.0)),
            ("A = np.ones(3000)\n" + SUM.format(" + A[2999]"), lambda f: f.__globals__["A"].__setitem__(1500, 2.0)),
            ("class K:\n    a = 1\n" + SUM.format(" + K.a"), lambda f: setattr(f.__globals__["K"], "a", 2)),
            ("class K:\n    pass\nk = K()\nk.a = 1\n" + SUM.format(" + k.a"),
             lambda f: setattr(f.__globals__["k"], "a", 2)),
            ("def make(c):\n    def fun(x):\n        return float((x * x).sum()) + c\n    return fun\nfun = make(1)",
             lambda f: setattr(f.__closure__[0], "cell_contents", 2)),
            ("def make():\n    c = [1]\n    def fun(x):\n        return float((x * x).sum()) + c[0]\n    return fun\nfun = make()",
             lambda f: f.__closure__[0].cell_contents.append(2)),
        ],
    )  # fmt: skip
    def test_a_change_is_noticed(self, source, change):
        """Globals, helpers, defaults, closures, lists, arrays, classes and instances."""
        fun = define(source)
        before = [key(fun), key(fun)]
        change(fun)
        assert before[0] == before[1]
        assert key(fun) != before[0]

    def test_a_replaced_builtin_is_noticed(self, monkeypatch):
        """What ``builtins`` offers may be replaced as well."""
        import builtins

        fun = define(SUM.format(" + abs(-1.0)"))
        before = key(fun)
        monkeypatch.setattr(builtins, "abs", lambda _x: 7.0)
        assert key(fun) != before

    def test_changed_back_it_is_the_same_again(self):
        """A global that is set back gives the first key."""
        fun = define("C = 1\n" + SUM.format(" + C"))
        first = key(fun)
        fun.__globals__["C"] = 2
        assert key(fun) != first
        fun.__globals__["C"] = 1
        assert key(fun) == first

    def test_arguments_are_compared_in_full(self):
        """Points that differ in a sign of zero, a type or a last bit are other calls."""
        fun = define(SUM.format(""))
        points = [(0.0, 1.0), (-0.0, 1.0), (0.0, np.nextafter(1.0, 2.0)), (0.0, 1.0, 0.0)]
        assert len({key(fun, p) for p in points}) == len(points)

    def test_hyperparameters_are_compared(self):
        """Fits that differ in a named hyperparameter, or its type, are other fits."""
        fun, keys = define(SUM.format("")), []
        with using(store=Store(":memory:")):
            for hyper in ({"a": 1}, {"a": 1.0}, {"b": 1}, None):
                with using(hyper=hyper):
                    made = [
                        optimize.minimize(fun, [1.0], options={"maxiter": 1}).warm for _ in range(3)
                    ]
                assert [fit.source for fit in made] == ["cold", "final", "final"]
                assert len({fit.key for fit in made}) == 1
                keys.append(made[0].key)
        assert len(set(keys)) == 4


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(["", "a", b"a"]),
    lambda inner: st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.text(max_size=1), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


class TestSignature:
    """What a call was given, in full."""

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(values, values)
    def test_equal_signatures_mean_equal_keys(self, one, other):
        """Whenever two signatures agree, so do the keys of the values."""
        from warmstart import Fingerprinter

        a, b = signature("f", (), {"x": one}), signature("f", (), {"x": other})
        if a == b:
            keys = [Fingerprinter().absorb("x", v).digest() for v in (one, other)]
            assert keys[0] == keys[1]

    def test_arrays(self):
        """Arrays count by type, shape and bits, whatever their size; odd ones have no signature."""
        for n in (1, 1000):
            arrays = [
                np.zeros(2 * n), np.zeros((2 * n, 1)), np.zeros(2 * n, "f4"), np.array([0.0, -0.0] * n),
                np.zeros(2 * n, int), np.zeros(2 * n, ">f8"),
            ]  # fmt: skip
            assert len({signature("f", (), {"x": a}) for a in arrays}) == len(arrays)
            again = [signature("f", (), {"x": np.asfortranarray(a)}) for a in arrays]
            assert again == [signature("f", (), {"x": a}) for a in arrays]
        for value in (
            np.array([None]),
            np.array(["a"]),
            object(),
            {1},
            np.float64(1),
        ):
            assert signature("f", (), {"x": value}) is None

    def test_the_memory_is_bounded(self):
        """Ten thousand calls leave no more than a thousand specs."""
        recent = Recent()
        for n in range(10_000):
            recent.add(("f", n), None)
        assert len(recent._known) <= 1024

    def test_what_functions_hold_is_bounded(self):
        """A thousand closures over a thousand large arrays do not keep all of them alive."""
        recent, alive = Recent(), []
        for _ in range(30):
            array = np.zeros(1 << 20)

            def fun(x, array=array):
                return float(array[0] + x @ x)

            alive.append(weakref.ref(fun))
            recent.add(("f", fun), None)
        del fun, array
        assert sum(function() is not None for function in alive) <= 8
