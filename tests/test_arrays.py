"""Arrays and frames: content counts, layout does not."""

from __future__ import annotations

import datetime
import decimal
import threading
import tracemalloc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import warmstart.arrays as arrays_module
from warmstart import FingerprintError
from warmstart.arrays import digest_array, immutable
from warmstart.fingerprint import code_fingerprint as key

steadily = settings(derandomize=True, deadline=None, max_examples=300)

dtypes = st.one_of(
    npst.scalar_dtypes(),
    npst.byte_string_dtypes(max_len=5),
    npst.unicode_string_dtypes(max_len=3),
    npst.array_dtypes(max_size=3),
)
arrays = npst.arrays(
    dtypes, npst.array_shapes(min_dims=0, max_dims=3, max_side=4), fill=st.nothing()
)


def bits(array):
    """Return class, dtype, shape and the bytes of every leaf field of an array."""
    if array.dtype.fields:
        return [(name, bits(array[name])) for name in array.dtype.names]
    raw = np.ascontiguousarray(array)
    if array.dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63:
        native = raw if raw.dtype.isnative else raw.byteswap()
        pieces = native.reshape(-1).view(np.uint8).reshape(-1, np.dtype("g").itemsize)
        return array.dtype.str, array.shape, pieces[:, :10].tobytes()
    return array.dtype.str, array.shape, raw.tobytes()


def layouts(array, tmp_path=None):
    """Yield the same values in other layouts."""
    yield array.copy(order="F")
    yield array.copy(order="C")
    yield array[::-1][::-1] if array.ndim else array
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    yield wide[..., 0]
    backward = np.ascontiguousarray(array[::-1]) if array.ndim else array
    yield backward[::-1] if array.ndim else array
    fixed = array.copy()
    fixed.flags.writeable = False
    yield fixed
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:]
    if not array.dtype.hasobject and array.size and array.dtype.itemsize:
        view = shifted.view(array.dtype).reshape(array.shape)
        view[...] = array
        yield view
    if tmp_path is not None:
        mapped = np.memmap(tmp_path / "m", array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        yield mapped


class TestPlain:
    """numpy arrays."""

    @steadily
    @given(arrays)
    def test_layout_does_not_count(self, array):
        """C, Fortran, strided, reversed, read-only and unaligned arrays of the same values agree."""
        expected = key(array)
        for other in layouts(array):
            assert key(other) == expected

    @steadily
    @given(arrays, arrays)
    def test_content_counts(self, a, b):
        """Two arrays agree exactly if dtype, shape and every bit of every value do."""
        assert (key(a) == key(b)) == (bits(a) == bits(b))

    @steadily
    @given(arrays.filter(lambda a: a.nbytes), st.data())
    def test_any_changed_value_counts(self, array, data):
        """Changing one element changes the key."""
        other = array.copy()
        i = data.draw(st.integers(0, array.size - 1))
        other.flat[i] = data.draw(npst.from_dtype(array.dtype))
        assert (key(other) == key(array)) == (bits(other) == bits(array))

    @pytest.mark.parametrize("shape", [(3, 7), (300, 70), (1 << 19,), (700, 5, 900), (3, 1 << 20),
                                       (2, 2, 1 << 18), (1 << 19, 2)])  # fmt: skip
    def test_large_arrays_in_every_layout(self, shape, tmp_path):
        """Around every threshold of chunks and threads all layouts agree, and the last bit counts."""
        array = np.arange(np.prod(shape), dtype=float).reshape(shape)
        expected = key(array)
        for other in layouts(array, tmp_path):
            assert key(other) == expected
        assert key(array.T) == key(np.ascontiguousarray(array.T))
        array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], 0)
        assert key(array) != expected
        assert key(np.asfortranarray(array)) != expected

    def test_broadcast_arrays(self):
        """A broadcast array agrees with its copy."""
        for shape in ((4, 3), (5000, 3), (400_000, 3)):
            view = np.broadcast_to(np.arange(3.0), shape)
            assert key(view) == key(view.copy())

    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_type_and_shape_count(self):
        """dtype, byte order, shape, dimension and class are part of the value."""
        a = np.arange(6.0)
        things = [a, a.reshape(2, 3), a.reshape(3, 2), a.reshape(1, 6), a.view("i8"), a.view("M8[s]"),
                  a.view("m8[s]"), a.view("M8[D]"), a.view("S8"), a.view("V8"), a.astype(">f8"),
                  a.view(">f8"), a.view([("x", "f8")]), a.view([("y", "f8")]), a.astype("f4"),
                  a.astype("g"), a.astype("c16"), a.astype(object), a.tolist(), tuple(a.tolist()),
                  np.asmatrix(a), a.view(np.recarray), np.ma.masked_array(a), a.tobytes(),
                  a.astype("U"), a.astype(np.dtypes.StringDType()), a[:5], a[:, None],
                  a.view([("x", "f4"), ("y", "f4")]), a.view("2f4")]  # fmt: skip
        assert len({key(thing) for thing in things}) == len(things)

    def test_scalars_and_empty_shapes(self):
        """A 0-d array, a scalar and a vector of one differ; so do empty arrays of other shapes."""
        for kind in ("f8", "M8[s]", "U2", "g", "i1", "?", "V3"):
            one = np.zeros(1, kind)
            assert len({key(one), key(one[0]), key(one.reshape(())), key([one[0]])}) == 4
        void = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
        assert len({key(void), key(void[0]), key(void[0].item())}) == 3
        shapes = [(0,), (0, 1), (1, 0), (0, 0), (0, 5)]
        assert len({key(np.zeros(shape)) for shape in shapes}) == 5

    def test_padding_is_not_content(self):
        """Garbage between the fields of a structure or behind a longdouble does not count."""
        aligned = np.dtype([("a", "i1"), ("b", "f8"), ("c", "g")], align=True)
        for size in (3, 500):
            for order in "<>":
                dtype = aligned.newbyteorder(order)
                one = np.frombuffer(b"\x00" * dtype.itemsize * size, dtype).copy()
                two = np.frombuffer(b"\xff" * dtype.itemsize * size, dtype).copy()
                for name in "abc":
                    one[name] = two[name] = np.arange(1, size + 1) % 100
                assert one.tobytes() != two.tobytes()
                assert key(one) == key(two)
                for name in "abc":
                    three = two.copy()
                    three[name][-1] = 101
                    assert key(three) != key(two)

    def test_extended_precision_counts_to_its_last_bit(self):
        """A longdouble beyond float64, complex too and in either byte order, is told apart."""
        for kind in ("g", "G", ">g", ">G"):
            for size in (1, 500):
                one = np.ones(size, kind)
                two = one.copy()
                two[-1] = np.nextafter(np.longdouble(1), np.longdouble(2))
                assert (key(one) == key(two)) == (bits(one) == bits(two))
                assert key(one) != key(two)
                assert key(np.repeat(two, 2)[::2]) == key(two)

    def test_objects_and_strings(self):
        """Object arrays count by their items, strings of any length by theirs."""
        one = np.array([[1, "a"], [None, [2]]], dtype=object)
        assert key(one) == key(np.asfortranarray(one)) == key(one.copy())
        for other in ([[1.0, "a"], [None, [2]]], [[1, "a"], [None, [3]]]):
            two = np.empty((2, 2), object)
            two[...] = [[*other[0]], [None, None]]
            two[1, 1] = other[1][1]
            assert key(two) != key(one)
        text = np.dtypes.StringDType()
        assert key(np.array(["a", "b" * 2000], text)) != key(np.array(["a", "b" * 2001], text))
        assert key(np.array(["a", "bc"], text)) != key(np.array(["ab", "c"], text))
        structured = np.array([(1, "a"), (2, [3])], dtype=[("n", "i4"), ("o", object)])
        assert key(structured) == key(structured.copy())
        assert key(structured) != key(structured[::-1])

    def test_what_instances_hold_beside_their_content(self):
        """Attributes, in slots too, of arrays, masked arrays, sparse matrices and frames count."""

        class Slotted(np.ndarray):
            __slots__ = ("unit",)

        class Attributed(np.ndarray):
            pass

        class Masked(np.ma.MaskedArray):
            pass

        class Sparse(sp.csr_array):
            pass

        class Frame(pd.DataFrame):
            _metadata = ("unit",)

        class Column(pd.Series):
            _metadata = ("unit",)

        def held(make, unit):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = make()
                made.unit = unit
            return made

        def titled(make, unit):
            made = make()
            made.attrs["unit"] = unit
            return made

        makes = [
            *(lambda c=c: np.zeros(2).view(c) for c in (Slotted, Attributed, Masked)),
            *(
                lambda c=c: c(np.eye(2))
                for c in (Sparse, sp.csr_array, sp.lil_array, sp.coo_matrix)
            ),
            *(lambda c=c: c({"a": [1.0]}) for c in (Frame, pd.DataFrame, Column, pd.Series)),
        ]
        ways = [(held, make) for make in makes]
        ways += [(titled, lambda c=c: c({"a": [1.0]})) for c in (pd.DataFrame, pd.Series)]
        for way, make in ways:
            one, two, other = way(make, 1), way(make, 1), way(make, 2)
            assert key(one) == key(two) != key(other) != key(make())
        used = pd.Series(["a", "b"])
        before = key(used)
        used.str.upper()
        object.__setattr__(used, "str", used.str)  # as pandas 2 does itself
        assert key(used) == before

    def test_masked_arrays(self):
        """What a mask hides counts, since scipy drops the mask; how the mask is stored does not."""

        def masked(data, mask, **options):
            return np.ma.masked_array(data, mask, **options)

        one = masked([1.0, 2.0, 3.0], [0, 1, 0])
        others = [masked([1.0, np.nan, 3.0], [0, 1, 0]),
                  masked([1.0, 2.0, 3.0], [0, 1, 0], hard_mask=True),
                  masked([1.0, 2.0, 3.0], [0, 0, 0]), masked([1.0, 2.0, 3.0], [1, 1, 0]),
                  masked([1.0, 2.0, 4.0], [0, 1, 0]), masked([1, 2, 3], [0, 1, 0]),
                  masked([1.0, 2.0, 3.0], [0, 1, 0], fill_value=5.0)]  # fmt: skip
        assert len({key(other) for other in [one, *others]}) == 8
        assert key(masked([1.0, 2.0], [0, 0])) == key(masked([1.0, 2.0], False))
        fields = masked([(1, 2.0), (3, 4.0)], [(0, 1), (0, 0)], dtype=[("a", "i4"), ("b", "f8")])
        hidden = fields.copy()
        hidden.data["b"][0] = 9
        assert key(hidden) != key(fields) == key(fields.copy())
        assert key(np.ma.masked) == key(np.ma.masked)
        before = one.data.copy()
        key(one)
        assert (one.data == before).all()

    def test_subclasses(self):
        """Attributes and class of a subclass count."""

        class Tagged(np.ndarray):
            pass

        def tagged(unit):
            one = np.arange(3.0).view(Tagged)
            one.unit = unit
            return one

        assert key(tagged("m")) == key(tagged("m")) != key(tagged("s"))
        assert key(tagged("m")) != key(np.arange(3.0))

    def test_memory_is_bounded(self):
        """Hashing 64 MB copies nothing of a contiguous array and a few MiB of any other."""
        array = np.zeros((2000, 4000))
        for other, limit in ((array, 1), (array.T, 8), (array[:, ::2], 8), (array[::2], 8)):
            tracemalloc.start()
            key(other)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < limit << 20


def read(array):
    """Return the digest that is made of all bytes, whatever was seen before."""
    return blake3(np.ascontiguousarray(array).tobytes()).digest()


class TestSeenBefore:
    """The digest of an array that comes again is kept, and never a wrong one."""

    @steadily
    @given(st.data())
    def test_every_change_is_noticed(self, data):
        """Whatever is done to an array in place, its digest is that of its bytes."""
        order = data.draw(st.sampled_from("CF"))
        array = np.zeros((64, 64), order=order)
        for _ in range(data.draw(st.integers(3, 12))):
            what = data.draw(st.sampled_from(["set", "set", "again", "reshape", "lock", "unlock"]))
            if what == "set" and array.flags.writeable:
                place = data.draw(st.integers(0, array.size - 1))
                array.view("f8").flat[place] = data.draw(st.sampled_from([0.0, -0.0, 1.0, np.nan]))
            elif what == "reshape":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    array.shape = array.shape[::-1]
                    array.dtype = data.draw(st.sampled_from(["f8", "i8"]))
            elif what in {"lock", "unlock"}:
                array.flags.writeable = what == "unlock"
            assert digest_array(array) == read(array)

    def test_the_third_time_it_is_not_digested(self, monkeypatch):
        """What is kept is used: BLAKE3 is asked twice, and again after a change."""
        calls = []
        monkeypatch.setattr(arrays_module, "_digest", lambda a: calls.append(1) or read(a))
        for array in (np.zeros(10_000), np.zeros((100, 100), order="F")):
            del calls[:]
            for _ in range(5):
                assert digest_array(array) == read(array)
            assert len(calls) == 2
            array[-1] = 1.0
            for _ in range(3):
                assert digest_array(array) == read(array)
            assert len(calls) == 3

    def test_immutable_memory_is_not_read(self, monkeypatch):
        """Nor is XXH3 asked for memory that cannot change; views are told apart."""
        whole = immutable(np.arange(20_000.0).reshape(100, 200))
        monkeypatch.setattr(arrays_module, "xxh3_128_digest", pytest.fail)
        for view in (whole, whole[10:90], whole[:50], whole.T):
            for _ in range(4):
                assert digest_array(view) == read(view)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            view = whole[10:90]
            digests = {digest_array(view) for _ in range(3)}
            view.dtype = "i8"
            view.shape = (200, 80)
        assert digests == {digest_array(view)} == {read(view)}

    def test_an_array_in_the_place_of_another(self):
        """A new array where a dead one stood in memory has its own digest."""
        for value in range(50):
            array = np.full(5000, float(value))
            for _ in range(3):
                assert digest_array(array) == read(array)
            del array

    def test_threads_and_writers(self):
        """Asked by threads while another writes, no digest is kept that is not of the bytes."""
        array, stop = np.zeros(200_000), threading.Event()

        def write():
            while not stop.is_set():
                array[::1000] += 1.0

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: digest_array(array), range(200)))
        finally:
            stop.set()
            writer.join()
        assert digest_array(array) == digest_array(array) == read(array)

    def test_the_memory_is_bounded(self):
        """Thousands of arrays leave some hundred weak references."""
        kept = [np.zeros(5000) + i for i in range(1500)]
        for array in kept:
            digest_array(array)
        assert len(arrays_module._seen) <= 512
        last = weakref.ref(kept.pop())
        del array
        assert last() is None


class TestSparse:
    """scipy.sparse in every format."""

    @pytest.mark.parametrize("kind", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
    @pytest.mark.parametrize("family", ["array", "matrix"])
    def test_each_format_counts_by_content(self, kind, family):
        """Equal matrices agree; value, place, shape, dtype and format count; nothing is changed."""
        make = getattr(sp, f"{kind}_{family}")
        dense = np.diag([1.0, 2.0, 0.0, 3.0])
        one = make(dense)
        assert key(one) == key(make(dense)) == key(one.copy())
        others = [make(dense * 2), make(dense[:, [1, 0, 2, 3]]), make(dense[:3]),
                  make(dense.astype("f4")), dense,
                  getattr(sp, f"{'csr' if kind != 'csr' else 'csc'}_{family}")(dense),
                  getattr(sp, f"{kind}_{'array' if family == 'matrix' else 'matrix'}")(dense)]  # fmt: skip
        assert len({key(other) for other in [one, *others]}) == 8
        assert (one.toarray() == dense).all()

    def test_order_of_insertion_does_not_count(self):
        """dok, lil and coo agree however they were filled."""
        places = [(0, 1), (2, 0), (1, 1)]
        found = {}
        for order in (places, places[::-1]):
            dok, lil = sp.dok_array((3, 3)), sp.lil_array((3, 3))
            for i, j in order:
                dok[i, j] = lil[i, j] = i + 10.0 * j
            rows, columns = zip(*order, strict=True)
            coo = sp.coo_array(([i + 10.0 * j for i, j in order], (rows, columns)), shape=(3, 3))
            for name, one in (("dok", dok), ("lil", lil), ("coo", coo)):
                found.setdefault(name, set()).add(key(one))
        assert [len(keys) for keys in found.values()] == [1, 1, 1]


FRAMES = {
    "values": {"a": [1.0, 2.0], "b": [1, 2]},
    "another value": {"a": [1.0, 3.0], "b": [1, 2]},
    "another name": {"a": [1.0, 2.0], "c": [1, 2]},
    "another order": {"b": [1, 2], "a": [1.0, 2.0]},
    "another type": {"a": [1.0, 2.0], "b": [1.0, 2.0]},
    "a string": {"a": [1.0, 2.0], "b": ["1", "2"]},
    "longer": {"a": [1.0, 2.0, 2.0], "b": [1, 2, 2]},
    "missing": {"a": [1.0, None], "b": [1, 2]},
    "moved border": {"a": ["x", "yz"], "b": ["xy", "z"]},
    "moved border 2": {"a": ["xy", "z"], "b": ["x", "yz"]},
    "dates": {"a": [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)], "b": [1, 2]},
    "lists": {"a": [[1], [2]], "b": [1, 2]},
    "decimals": {"a": [decimal.Decimal("1.0"), decimal.Decimal("2.0")], "b": [1, 2]},
}


class TestFrames:
    """pandas and polars."""

    @pytest.mark.parametrize("library", [pd, pl])
    def test_frames_differ_where_anything_does(self, library):
        """Names, order, types, values, missing values and lengths count; copies agree."""
        frames = [library.DataFrame(content) for content in FRAMES.values()]
        keys = [key(frame) for frame in frames]
        assert len(set(keys)) == len(frames)
        assert keys == [key(library.DataFrame(content)) for content in FRAMES.values()]
        assert len({key(frame["b"]) for frame in frames if "b" in frame}) < len(frames)
        assert key(frames[0]["a"]) != key(library.DataFrame({"a": [1.0, 2.0]}))

    @pytest.mark.parametrize(
        "values",
        [
            pd.Series([1, None], dtype="Int64"), pd.Series([1, 2], dtype="Int64"),
            pd.Series([1, 0], dtype="Int64"), pd.Series([1.0, None]), pd.Series([True, None], dtype="boolean"),
            pd.Series(["a", None]), pd.Series(["a", None], dtype=object), pd.Series(["a", "b"], dtype="category"),
            pd.Series(pd.Categorical(["a", "b"], ordered=True)),
            pd.Series(pd.Categorical(["a", "b"], categories=["b", "a"])),
            pd.Series(pd.date_range("2026", periods=2)), pd.Series(pd.date_range("2026", periods=2, tz="UTC")),
            pd.Series(pd.date_range("2026", periods=2, tz="Europe/Berlin")),
            pd.Series(pd.to_datetime(["2026-01-01", None], utc=True)),
            pd.Series(pd.period_range("2026", periods=2, freq="D")),
            pd.Series(pd.interval_range(0, 2)), pd.Series(pd.arrays.SparseArray([0.0, 1.0])),
            pd.Series(pd.timedelta_range("1s", periods=2)), pd.Series([1, 2], index=["x", "y"]),
            pd.Series([1, 2], name="n"), pd.Series([1 + 1j, 2]), pd.Series([pd.NA, pd.NaT, np.nan], dtype=object),
            pd.Series([1.5, None], dtype="Float64"), pd.Series([], dtype=float),
            pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["u", "v"]), pd.Index([1, 2], name="i"),
            pd.RangeIndex(3), pd.DatetimeIndex(["2026-01-01"]), pd.DataFrame({"a": [1]}, index=["z"]),
            pd.DataFrame({("a", "b"): [1]}), pd.DataFrame(), pd.DataFrame(np.eye(3)),
            pl.Series([1, None]), pl.Series("n", [1, None]), pl.Series([1, 2], dtype=pl.UInt8),
            pl.Series([[1], [2, 3]]), pl.Series([{"a": 1}]), pl.Series(["a"], dtype=pl.Categorical),
            pl.Series(["a"], dtype=pl.Enum(["a", "b"])), pl.Series([float("nan"), None]), pl.Series([True]),
            pl.Series([datetime.datetime(2026, 1, 1)]), pl.Series([b"a"]), pl.Series([]), pl.DataFrame(),
            pl.Series([datetime.timedelta(1)]), pl.Series([decimal.Decimal("1.5")]),
        ],
        ids=lambda v: f"{type(v).__module__[:6]}-{getattr(v, 'dtype', 'frame')}",
    )  # fmt: skip
    def test_every_kind_of_column(self, values):
        """A column of any type has a key; a copy agrees; a change of the last row shows."""
        copied = values.clone() if type(values).__module__.startswith("polars") else values.copy()
        assert key(values) == key(copied)
        if len(values) > 1:
            assert key(values[:-1]) != key(values)
            assert key(values[::-1]) != key(values)

    def test_how_columns_are_stored_does_not_count(self):
        """Blocks of pandas and chunks of polars are layout."""
        one = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"])
        two = pd.DataFrame({"a": one["a"].to_numpy(copy=True), "b": one["b"].to_numpy(copy=True)})
        assert key(one) == key(two)
        chunked = pl.concat([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})], rechunk=False)
        assert key(chunked) == key(pl.DataFrame({"a": [1, 2]}))

    def test_subclasses_and_lazy_frames(self):
        """A subclass differs from its base; a lazy frame has nothing to identify yet."""

        class Mine(pd.DataFrame):
            pass

        assert key(Mine({"a": [1]})) == key(Mine({"a": [1]})) != key(pd.DataFrame({"a": [1]}))
        with pytest.raises(FingerprintError, match=r"collect\(\)"):
            key(pl.LazyFrame({"a": [1]}))
