"""Which fits are near: sketches of rows, the index, and what a look-up costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart import FitSpec, Level, Store, Warm, optimize, using
from warmstart.backends import Batch
from warmstart.backends.memory import MemoryBackend
from warmstart.nearby import distance, forget, index, neighbours, place_of, sweep
from warmstart.sketch import SMALLEST, RowSketch, row_hashes, rows_of


def sketch(*arrays):
    return RowSketch.of(row_hashes(arrays))


class TestSketches:
    """How much two data sets share."""

    @pytest.mark.parametrize("rows", [200, 20_000])
    @pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_overlap(self, rows, part):
        """Rows in both over rows in either, to 5 %; exactly for small sets."""
        rng = np.random.default_rng(rows)
        x, y = rng.normal(size=(rows, 3)), rng.integers(0, 2, rows)
        one = rng.random(rows) < 0.7
        other = np.where(rng.random(rows) < part, one, rng.random(rows) < 0.5)
        truth = (one & other).sum() / (one | other).sum()
        found = sketch(x[one], y[one]).shares(sketch(x[other], y[other]))
        assert found == pytest.approx(truth, abs=0.05 if rows > SMALLEST else 1e-12)

    def test_order_and_layout_do_not_count(self):
        """A data set is a bag of rows."""
        rng = np.random.default_rng(0)
        x, order = rng.normal(size=(50, 4)), rng.permutation(50)
        assert sketch(x) == sketch(x[order])
        assert sketch(x) == sketch(np.asfortranarray(x))
        assert sketch(x) != sketch(x[:, ::-1])

    def test_repeated_rows_count(self):
        """Replicates share what both drew as often."""
        x = np.arange(40.0)
        twice = np.concatenate([x[:20], x[:20]])
        assert sketch(x).shares(sketch(twice)) == pytest.approx(20 / 60)
        assert sketch(twice).shares(sketch(twice)) == 1.0

    @given(st.lists(st.floats(), min_size=1, max_size=30), st.integers(0, 29))
    def test_any_change_of_a_bit_is_another_row(self, values, place):
        x = np.array(values)
        changed = x.copy()
        changed.view(np.uint8).reshape(len(x), 8)[place % len(x), 0] ^= 1
        assert (row_hashes([x]) != row_hashes([changed])).sum() == 1

    def test_widths_that_are_no_words(self):
        """Booleans, bytes, text: rows of any width."""
        for array in (np.array([True, False]), np.array(["ab", "c"]), np.ones((2, 3), np.int16)):
            assert len(row_hashes([array])) == 2

    def test_rows_in_common(self):
        """The arrays with the first axis that most share are the data."""
        x, y, grid = np.ones((30, 2)), np.ones(30), np.ones(100)
        assert [a.shape for a in rows_of([x, grid, y, 3.0, "text", None])] == [(30, 2), (30,)]
        assert rows_of([1.0, object()]) == []

    def test_sets_meet_in_buckets(self):
        """Those that share much in a narrow one, those that share a third in a wide one."""
        rng = np.random.default_rng(1)
        x = rng.normal(size=(4000, 2))
        for part, width in ((0.97, 4), (0.5, 1)):
            kept = rng.random(4000) < part
            both = set(sketch(x).buckets()) & set(sketch(x[kept]).buckets())
            assert any(bucket[0] >= width for bucket in both)


def spec(rows, lam, more=None):
    return FitSpec(model="m", data={"args": (*rows, lam)}, hyper=more, settings={"x0": np.ones(3)})


class TestIndex:
    """Which finals are found, in which order, at what cost."""

    X = np.random.default_rng(2).normal(size=(300, 3))

    def fill(self, backend, specs):
        for one in specs:
            backend.apply(Batch(index(one.key, place_of(one))))

    def test_the_nearest_number_of_many(self):
        """Among ten thousand hyperparameters the neighbours on either side, the nearest first."""
        backend = MemoryBackend()
        grid = np.geomspace(1e-4, 1e4, 2000)
        by_key = {}
        rng = np.random.default_rng(0)
        for lam in rng.permutation(grid):
            one = spec((self.X,), float(lam))
            by_key[one.key] = lam
            self.fill(backend, [one])
        asked = float(np.sqrt(grid[700] * grid[701]) * 1.0001)
        found = neighbours(backend, place_of(spec((self.X,), asked)))
        assert [n.level for n in found] == [Level.SIBLING_HYPER] * 8
        assert sorted(by_key[n.key] for n in found[:2]) == [grid[700], grid[701]]
        assert [n.distance for n in found] == sorted(n.distance for n in found)

    def test_the_largest_overlap(self):
        """Folds of one data set: that with the most rows in common comes first."""
        backend = MemoryBackend()
        rng = np.random.default_rng(0)
        masks = [rng.random(300) < part for part in (0.3, 0.5, 0.6, 0.7, 0.8)]
        specs = [spec((self.X[mask],), 1.0) for mask in masks]
        self.fill(backend, specs)
        found = neighbours(backend, place_of(spec((self.X,), 1.0)))
        assert found[0].key == specs[-1].key
        assert found[0].level is Level.SIBLING_DATA
        assert found[0].shared == pytest.approx(masks[-1].mean())

    def test_other_families_are_not_found(self):
        """Another category, model, number of parameters, width of rows."""
        backend = MemoryBackend()
        self.fill(
            backend,
            [
                spec((self.X,), 1.0, {"kind": "l1"}),
                spec((self.X[:, :2],), 1.0),
                FitSpec(model="m", data={"args": (self.X, 1.0)}, settings={"x0": np.ones(4)}),
                FitSpec(model="n", data={"args": (self.X, 1.0)}, settings={"x0": np.ones(3)}),
            ],
        )
        assert neighbours(backend, place_of(spec((self.X,), 1.1))) == []
        assert len(neighbours(backend, place_of(spec((self.X,), 1.1, {"kind": "l1"})))) == 1

    def test_what_nothing_is_shared_with_is_the_last_resort(self):
        """All rows new: any of the family will do."""
        backend = MemoryBackend()
        self.fill(backend, [spec((self.X,), 1.0)])
        (found,) = neighbours(backend, place_of(spec((self.X + 1.0,), 1.0)))
        assert (found.level, found.shared) == (Level.SIBLING_DATA, 0.0)

    def test_a_look_up_does_not_grow(self):
        """The same number of reads, whatever the number of entries."""

        class Counted(MemoryBackend):
            reads = 0

            def get(self, key):
                self.reads += 1
                return super().get(key)

            def scan(self, *args, **options):
                self.reads += 1
                return super().scan(*args, **options)

        reads = []
        for number in (50, 1000):
            backend = Counted()
            self.fill(backend, [spec((self.X,), float(lam)) for lam in range(1, number)])
            backend.reads = 0
            assert len(neighbours(backend, place_of(spec((self.X,), 7.5)))) == 8
            reads.append(backend.reads)
        assert reads[1] <= reads[0] <= 60

    def test_damage_and_forgetting(self):
        """Rows that cannot be read are not there; a forgotten fit leaves none."""
        backend = MemoryBackend()
        one, other = spec((self.X,), 1.0), spec((self.X,), 1.2)
        self.fill(backend, [one, other])
        asked = place_of(spec((self.X,), 1.1))
        backend.apply(Batch({b"o" + one.key.digest: b"nonsense"}))
        assert [n.key for n in neighbours(backend, asked)] == [other.key]
        both = backend.scan(b"n")
        sweep(backend, {one.key.digest, other.key.digest})
        assert len(backend.scan(b"n")) == len(both) / 2
        assert [n.key for n in neighbours(backend, asked)] == [other.key]
        forget(backend, other.key.digest)
        assert backend.scan(b"n") == backend.scan(b"o") == []
        self.fill(backend, [one, other])
        rows = backend.scan(b"n")
        sweep(backend, {one.key.digest, other.key.digest})
        assert backend.scan(b"n") == rows
        sweep(backend, {one.key.digest})
        assert [n.key for n in neighbours(backend, asked)] == [one.key]
        assert len(backend.scan(b"n")) == len(rows) / 2

    @given(
        st.dictionaries(st.sampled_from("ab"), st.floats(-1e9, 1e9), min_size=2, max_size=2),
        st.dictionaries(st.sampled_from("ab"), st.floats(-1e9, 1e9), min_size=2, max_size=2),
    )
    def test_distances(self, one, other):
        """Symmetric, zero for the same numbers only."""
        assert distance(one, other) == pytest.approx(distance(other, one))
        assert (distance(one, other) == 0.0) == (one == other)


def test_a_store_forgets_the_index_with_the_fit(tmp_path):
    """Deleted or evicted, nothing of a fit is left in the index."""
    with Store(tmp_path) as store, using(store=store, near=True) as fits:
        for lam in (1.0, 1.5):
            optimize.minimize(lambda x, lam: lam * x @ x + x.sum(), np.ones(3), args=(lam,))
        rows = len(store.backend.scan(b"n"))
        first, second = (store.resolve(fit.key) for fit in fits)
        store.delete(first)
        assert 0 < len(store.backend.scan(b"n")) < rows
        store.backend.apply(Batch(deletes=[i.key for i in store.backend.scan(b"e")]))
        store.gc()
        assert store.backend.scan(b"n") == store.backend.scan(b"o") == []
        assert second != first


def test_a_fit_that_is_run_again_is_listed_once(tmp_path):
    """Its rows take the place of those before."""
    with Store(tmp_path) as store, using(store=store, near=True):
        counts = []
        for _ in range(3):
            optimize.minimize(lambda x: x @ x, np.ones(3), warm=Warm(refit=True))
            counts.append(len(store.backend.scan(b"n")))
        assert counts[0] == counts[1] == counts[2] > 0
