"""Copies of remembered results."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.optimize
from fits import FITS, differences

from warmstart import Store, optimize, using
from warmstart.copies import copier
from warmstart.wrapping import _pack, _unpack

MATRIX = np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
ARRAYS = {
    "linprog": lambda m: m.linprog([1.0, 2.0], A_ub=[[-1.0, -1.0]], b_ub=[-1.0]),
    "milp": lambda m: m.milp([1.0, 2.0], integrality=[1, 1]),
    "lsq_linear": lambda m: m.lsq_linear(MATRIX, [1.0, 2.0, 3.0]),
    "nnls": lambda m: m.nnls(MATRIX, [1.0, 2.0, 3.0]),
    "quadratic_assignment": lambda m: m.quadratic_assignment(MATRIX, MATRIX),
    "linear_sum_assignment": lambda m: m.linear_sum_assignment(MATRIX),
    "isotonic_regression": lambda m: m.isotonic_regression([1.0, 3.0, 2.0]),
}


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays_in(item)


@pytest.mark.parametrize(
    "call", [fit.call for fit in FITS.values() if not fit.pool] + list(ARRAYS.values()),
    ids=[name for name, fit in FITS.items() if not fit.pool] + list(ARRAYS),
)  # fmt: skip
def test_every_result_of_scipy_is_copied(call):
    """What any function of scipy returns is copied with its type and bits, and shares nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call(scipy.optimize)
    copied = copier(_pack(result))
    assert copied is not None
    one, other = _unpack(copied()), _unpack(copied())
    for copy in (one, other):
        if not hasattr(result, "_fields"):  # a class that scipy makes anew in each call
            assert type(copy) is type(result)
            assert list(differences(result, copy)) == []
    for array in arrays_in(one):
        assert not any(np.shares_memory(array, a) for a in [*arrays_in(result), *arrays_in(other)])


@pytest.mark.parametrize(
    ("function", "given"),
    [
        *(("root_scalar", {"method": method}) for method in ("brentq", "toms748", "bisect")),
        *((name, {"full_output": True}) for name in ("bisect", "brentq", "brenth", "ridder")),
        ("newton", {"full_output": True, "x0": 1.0}),
    ],
)
def test_roots_are_returned_again_and_again(tmp_path, function, given):
    """Each hit of one process gives the root finder's result, and the store stays in use."""

    def wave(x):
        return np.cos(x) - x

    if function != "newton":
        ends = {"bracket": (0.0, 2.0)} if function == "root_scalar" else {"a": 0.0, "b": 2.0}
        given = {**given, **ends}
    plain = getattr(scipy.optimize, function)(wave, **given)
    with Store(tmp_path / "store", strict=True) as store, using(store=store, journal=True) as fits:
        for _ in range(4):
            result = getattr(optimize, function)(wave, **given)
            assert list(differences(plain, result)) == []
    assert [fit.source for fit in fits] == ["cold", *["final"] * 3]


def test_what_cannot_be_copied_is_decoded_again(tmp_path, monkeypatch):
    """A result that refuses to be copied does not put the store out of use."""

    def refuse():
        raise TypeError

    assert copier({"result": {"x": type("Odd", (), {"__deepcopy__": lambda *_: 1 / 0})()}}) is None
    monkeypatch.setattr("warmstart.copies._dict_copier", lambda *_: refuse)
    with Store(tmp_path / "store") as store, using(store=store) as fits:
        for _ in range(4):
            result = optimize.minimize(scipy.optimize.rosen, [1.3, 0.7])
            assert result.x == pytest.approx([1.0, 1.0], abs=1e-4)
    assert [fit.source for fit in fits] == ["cold", *["final"] * 3]
