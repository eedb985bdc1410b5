"""Data sets: they cannot change, are not read twice, and their rows make their keys."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from warmstart import ArgumentError, Dataset, FingerprintError, Store, dataset, optimize, using
from warmstart.fingerprint import code_fingerprint as key
from warmstart.recent import signature

steadily = settings(derandomize=True, deadline=None, max_examples=200)
tables = npst.arrays(
    st.sampled_from(["f8", "i4", "?", "c16", "M8[s]", "S3", "U2", ">f4", "g"]),
    npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
)


def loss(w, x, y):
    return float(np.sum((x @ w - y) ** 2)), 2.0 * x.T @ (x @ w - y)


def table(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.normal(size=n)


class TestKeys:
    """What stands for data in a key."""

    @steadily
    @given(tables)
    def test_the_whole_is_the_array(self, array):
        """A data set has the key of an equal array, in whatever layout and however large."""
        large = np.resize(array, (500, *array.shape[1:]))
        for values in (array, large, np.asfortranarray(array)):
            assert key(dataset(values)) == key(values)
            assert key((dataset(values), 1)) == key((values, 1))

    @steadily
    @given(tables, st.data())
    def test_rows_count_by_content_and_order(self, array, data):
        """Rows of other data sets have the same key if they are equal, and only then."""
        rows = st.lists(st.integers(-len(array), len(array) - 1), max_size=6)
        one, other = data.draw(rows), data.draw(rows)
        longer = np.concatenate([array[::-1], array], dtype=array.dtype)
        ours, same = (
            dataset(array)[one],
            dataset(longer)[[i % len(array) + len(array) for i in one]],
        )
        assert key(ours) == key(same) == key(same.take(slice(None)))
        assert key(ours) != key(array[one])
        np.testing.assert_array_equal(ours, array[one])
        theirs = dataset(array)[other]
        equal = len(one) == len(other) and array[one].tobytes() == array[other].tobytes()
        assert (key(ours) == key(theirs)) == equal or array.dtype == "g"

    def test_dtype_and_shape_count(self):
        """Equal bytes of another type, or in rows of another form, are other data."""
        made = [
            dataset(np.zeros(shape, dtype))[:1]
            for shape, dtype in (((2, 2), "f8"), ((2, 2), "i8"), ((2, 4), "f4"), ((2, 2, 1), "f8"))
        ]
        assert len({key(part) for part in made}) == len(made)

    def test_rows_of_rows(self):
        """Rows of a fold are rows of the whole, and keep its values alive alone."""
        x, _ = table()
        data = dataset(x)
        fold = data[10:30]
        assert key(fold[[1, 3]]) == key(data[[11, 13]])
        assert key(fold[np.arange(20) % 2 == 0]) == key(data[10:30:2])
        np.testing.assert_array_equal(fold[[1, 3]], x[[11, 13]])

    def test_other_processes_have_the_same_keys(self):
        """Pickled, forked or spawned, a data set and its rows keep their keys."""
        x, _ = table()
        for data in (dataset(x), dataset(x)[5:9], dataset(x)[[3, 1]]):
            again = pickle.loads(pickle.dumps(data))
            assert isinstance(again, Dataset)
            assert key(again) == key(data)
            assert key(again[:2]) == key(data[:2])
            for way in ("fork", "spawn"):
                with multiprocessing.get_context(way).Pool(1) as pool:
                    assert pool.apply(key, (data,)) == key(data)

    def test_signatures(self):
        """Calls are recognized by data sets as by what their keys are made of."""
        x, _ = table()
        signed = {
            signature("f", (), {"x": data})
            for data in (dataset(x), dataset(x.copy()), dataset(x)[:5], dataset(x[:7])[:5], x)
        }
        assert len(signed) == 3


class TestUse:
    """In fits, and as an array."""

    def test_hits_carry_over(self):
        """A fit to arrays answers the same fit to data sets of them, and the other way round."""
        x, y = table()
        with using(store=Store(":memory:")) as fits:
            first = optimize.minimize(loss, np.zeros(3), args=(x, y), jac=True)
            second = optimize.minimize(loss, np.zeros(3), args=(dataset(x), dataset(y)), jac=True)
            optimize.minimize(loss, np.ones(3), args=(dataset(x), y), jac=True)
            optimize.minimize(loss, np.ones(3), args=(x, dataset(y)), jac=True)
        assert [fit.source for fit in fits] == ["cold", "final", "cold", "final"]
        np.testing.assert_array_equal(first.x, second.x)

    def test_functions_get_arrays(self):
        """In ``args``, ``xdata`` and ``ydata`` the user's functions see arrays, not data sets."""
        x, y = table()
        seen = []

        def watched(w, x, y):
            seen.append(type(x))
            return loss(w, x, y)

        def line(t, a, b):
            seen.append(type(t))
            return a * t + b

        with using(store=Store(":memory:")):
            optimize.minimize(watched, np.zeros(3), args=(dataset(x), dataset(y)[:]), jac=True)
            optimize.curve_fit(line, dataset(x[:, 0]), dataset(y))
        assert set(seen) == {np.ndarray}

    def test_a_hit_on_a_fold_reads_nothing(self, monkeypatch):
        """Once the rows are digested, a fold that was fitted before is not even copied."""
        x, y = table()
        module = sys.modules[Dataset.__module__]
        data, target = dataset(x), dataset(y)
        folds = np.array_split(np.arange(40), 4)
        with using(store=Store(":memory:")) as fits:
            for turn in range(2):
                if turn:
                    monkeypatch.setattr(module, "immutable", pytest.fail)
                    monkeypatch.setattr(module, "content_of", pytest.fail)
                for fold in folds:
                    rows = np.setdiff1d(np.arange(40), fold)
                    args = data[rows], target[rows]
                    optimize.minimize(loss, np.zeros(3), args=args, jac=True)
        assert [fit.source for fit in fits] == ["cold"] * 4 + ["final"] * 4

    def test_in_a_closure(self):
        """A function that captures a data set is known by it, and computes with it."""
        x, y = table()

        def made(x, y):
            return lambda w: loss(w, x, y)

        with using(store=Store(":memory:")) as fits:
            for data in (dataset(x), dataset(x.copy()), dataset(2.0 * x), dataset(x)[:20]):
                optimize.minimize(made(data, y[: len(data)]), np.zeros(3), jac=True)
        assert [fit.source for fit in fits] == ["cold", "final", "cold", "cold"]

    def test_near_starts_see_the_rows(self):
        """Folds of a data set are near each other, as folds of an array are."""
        x, y = table(60)
        data, target = dataset(x), dataset(y)
        with using(store=Store(":memory:"), near=True) as fits:
            for left_out in range(5):
                rows = np.delete(np.arange(60), left_out)
                optimize.minimize(loss, np.zeros(3), args=(data[rows], target[rows]), jac=True)
        assert [fit.source for fit in fits] == ["cold"] + ["near"] * 4

    def test_as_an_array(self):
        """Numpy and operators take it as the array that it is."""
        x, y = table()
        data = dataset(x)
        for ours, theirs in (
            (np.asarray(data), x),
            (data @ np.ones(3), x @ np.ones(3)),
            (2.0 * data - 1.0, 2.0 * x - 1.0),
            (np.exp(data), np.exp(x)),
            (np.linalg.lstsq(data, y, rcond=None)[0], np.linalg.lstsq(x, y, rcond=None)[0]),
            (data.sum(axis=0), x.sum(axis=0)),
            (data.T, x.T),
            (data[:, 1], x[:, 1]),
            (data[3], x[3]),
            (np.asarray(list(data)), x),
            (data[x[:, 0] > 0.0], x[x[:, 0] > 0.0]),
            (data < 0.5, x < 0.5),
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert (data.shape, data.ndim, data.dtype, len(data), data.size) == (
            (40, 3),
            2,
            x.dtype,
            40,
            120,
        )
        assert copy.deepcopy(data) is data
        assert repr(data[:2]) == "<Dataset float64[2, 3]>"
        with pytest.raises(AttributeError):
            _ = data.nonsense


class TestSafety:
    """Nothing changes it; what is no data is refused."""

    def test_it_cannot_be_written_to(self):
        """Neither through the array it was made of nor through any view of its own."""
        x, _ = table()
        data = dataset(x)
        before = data.array.copy(), key(data)
        x[:] = 0.0
        for view in (data.array, data.array.T, data.array.reshape(-1), data[2:4].array, data[:, 0]):
            with pytest.raises(ValueError, match="read-only"):
                view[...] = 1.0
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True
        with pytest.raises(ArgumentError, match="cannot be written to"):
            data += 1.0
        with pytest.raises(ArgumentError, match="cannot be written to"):
            data[0] = 1.0
        data.array.shape = (120,)
        assert data.array.shape == (40, 3)
        np.testing.assert_array_equal(data, before[0])
        assert key(dataset(data.array)) == before[1]

    def test_it_is_made_once(self):
        """A data set of a data set is itself; immutable memory is not copied."""
        data = dataset(np.arange(6.0))
        assert dataset(data) is data
        assert np.shares_memory(dataset(data.array).array, data.array)

    @pytest.mark.parametrize(
        "value", [3.0, [object()], np.array([None]), np.zeros(2, "f8,i4"), [[1], [2, 3]], {"a": 1}]
    )
    def test_what_is_no_data_is_refused(self, value):
        """At once, with what would do."""
        with pytest.raises(ArgumentError, match="data set is made of an array"):
            dataset(value)

    def test_a_mask_is_refused(self):
        """It would be lost."""
        with pytest.raises(ArgumentError, match="has no mask"):
            dataset(np.ma.array([1.0, 2.0], mask=[0, 1]))

    @pytest.mark.parametrize("rows", [[0.5], np.zeros((2, 2), int), ["a"], None])
    def test_what_are_no_rows_is_refused(self, rows):
        """At once, with what would do."""
        with pytest.raises(ArgumentError, match="rows are chosen by"):
            dataset(np.arange(3.0)).take(rows)
        with pytest.raises(IndexError):
            dataset(np.arange(3.0)).take([3])

    def test_empty_ones(self):
        """No rows are rows, too."""
        data = dataset(np.zeros((3, 2)))
        assert data[[]].shape == (0, 2)
        assert key(data[[]]) == key(data[:0]) != key(dataset(np.zeros((3, 1)))[:0])
        assert key(dataset(np.zeros((0, 2)))) == key(np.zeros((0, 2)))
        assert key(pickle.loads(pickle.dumps(data[:0]))) == key(data[:0])

    def test_what_stands_beside_it_is_identified(self):
        """What cannot be identified beside a data set is still refused."""
        with pytest.raises(FingerprintError):
            key((dataset(np.zeros(3)), threading.Lock()))
