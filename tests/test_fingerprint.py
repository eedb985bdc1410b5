"""Keys of values: equal values agree in any process, different ones never do."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.optimize as so
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import ArgumentError, Fingerprint, Fingerprinter, FingerprintError, FitSpec, Level
from warmstart.fingerprint import Difference
from warmstart.values import Encoder


def key(value):
    return Fingerprinter().absorb("v", value).digest()


ODD_NAN = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\x7f")[0]


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: float
    y: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: float


class TestFingerprint:
    """32 bytes with one spelling."""

    def test_text_goes_round(self):
        """`str` and `parse` are inverse; bytes too."""
        made = Fingerprint(bytes(range(32)))
        assert Fingerprint.parse(str(made)) == made
        assert bytes(made) == bytes(range(32))

    @pytest.mark.parametrize(
        "text",
        ["", "0" * 63, "0" * 65, "G" + "0" * 63, "A" * 64, " " + "0" * 63, "0x" + "0" * 62, 7],
    )
    def test_parsing_is_strict(self, text):
        """Only 64 lowercase hexadecimal digits are a fingerprint."""
        with pytest.raises(ArgumentError, match="64 lowercase"):
            Fingerprint.parse(text)

    @pytest.mark.parametrize("digest", [b"", b"x" * 31, b"x" * 33, "x" * 32, None])
    def test_only_32_bytes_make_one(self, digest):
        """Anything but 32 bytes is refused."""
        with pytest.raises(ArgumentError, match="32 bytes"):
            Fingerprint(digest)

    def test_order_is_that_of_the_bytes(self):
        """Fingerprints sort as their bytes do, and serve as dict keys."""
        some = [Fingerprint(bytes([n]) * 32) for n in (3, 1, 2)]
        assert sorted(some) == [some[1], some[2], some[0]]
        assert {some[0]: "a"}[Fingerprint(b"\3" * 32)] == "a"


# A reader of the frames of plain values: if it gives back what was written for whatever was
# written, no two values can have written the same.


def read_frame(data, at=0):
    code, at = data[at : at + 1], at + 1
    if code in b"N10":
        return {b"N": None, b"1": True, b"0": False}[code], at
    if code == b"i":
        return struct.unpack_from("<q", data, at)[0], at + 8
    if code == b"f":
        return struct.unpack_from("<d", data, at)[0], at + 8
    if code == b"c":
        return complex(*struct.unpack_from("<dd", data, at)), at + 16
    (size,) = struct.unpack_from("<Q", data, at)
    at += 8
    if code == b"I":
        return int.from_bytes(data[at : at + size], "little", signed=True), at + size
    if code == b"s":
        return data[at : at + size].decode("utf-8", "surrogatepass"), at + size
    if code == b"b":
        return data[at : at + size], at + size
    items = []
    for _ in range(size):
        item, at = read_frame(data, at)
        if code == b"d":
            value, at = read_frame(data, at)
            item = (item, value)
        items.append(item)
    makers = {b"t": tuple, b"l": list, b"d": dict, b"S": set, b"Z": frozenset}
    return makers[code](items), at


def spelled(value):
    """Return a value as text that shows every type and every bit."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{spelled(k)}:{spelled(v)}" for k, v in value.items())) + "}"
    if isinstance(value, (set, frozenset)):
        return type(value).__name__ + ",".join(sorted(map(spelled, value)))
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + "(" + ",".join(map(spelled, value)) + ")"
    if isinstance(value, complex):
        return f"c{spelled(value.real)}{spelled(value.imag)}"
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    return f"{type(value).__name__}:{value!r}"


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
hashables = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4
).filter(lambda v: v == v)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.sets(hashables, max_size=3)
        | st.frozensets(hashables, max_size=3)
    ),
    max_leaves=10,
)


class TestInjective:
    """No two different values produce the same stream."""

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(values)
    def test_a_stream_can_be_read_back(self, value):
        """From the frames of any plain value that value can be read, bit for bit, to the end."""
        data = Encoder().encode(value)
        back, end = read_frame(data)
        assert end == len(data)
        assert spelled(back) == spelled(value)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(values, values)
    def test_different_values_differ(self, one, other):
        """Two values have equal keys exactly if they are equal in every type and bit."""
        assert (key(one) == key(other)) == (spelled(one) == spelled(other))

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_look_alikes_differ(self):
        """Values that Python, numpy or concatenation could confuse have keys of their own."""
        alike = [
            1, True, 1.0, 1 + 0j, "1", b"1", (1,), [1], {1}, frozenset({1}), {1: None}, {"1": None},
            np.int64(1), np.int32(1), np.float64(1), np.bool_(True), np.array(1), np.array([1]),
            np.array([[1]]), np.array([1], dtype=">i8"), np.array([True]), np.array("1"),
            np.array([1.0]), np.array([1], dtype=object), bytearray(b"1"),
            fractions.Fraction(1), decimal.Decimal(1), range(1), slice(1), Color.RED, Point(1),
            0.0, -0.0, math.nan, ODD_NAN, math.inf, -math.inf,
            None, False, 0, "", b"", (), [], {}, set(), frozenset(), ((),), [[]], ([],), [()],
            ("a", "bc"), ("ab", "c"), ("abc",), "abc", ("a", ("b", "c")), (("a", "b"), "c"),
            {"a": 1, "b": 2}, {"a": 2, "b": 1}, [("a", 1), ("b", 2)],
            np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(6), np.zeros((1, 6)), np.zeros((0, 3)),
            np.zeros((3, 0)), np.zeros(6, np.float32), np.zeros(6, np.int64), np.zeros((6, 1)),
            np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00"), np.timedelta64(1, "s"),
            dt.date(2020, 1, 1), dt.datetime(2020, 1, 1), pathlib.PurePosixPath("a"),
            re.compile("a"), re.compile("a", re.IGNORECASE), 2**63, -(2**63), 2**64, 2**200,
            np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 2], [0, 0]),
            np.matrix([[1]]), int, float, np.float64, len, sum, np.sin, np.cos, ..., NotImplemented,
        ]  # fmt: skip
        keys = [key(value) for value in alike]
        twins = [
            (alike[i], alike[j]) for i in range(len(keys)) for j in range(i) if keys[i] == keys[j]
        ]
        assert twins == []

    def test_the_border_between_tag_and_value_counts(self):
        """Tags, values and their order are told apart."""
        streams = [
            [("a", "bc")],
            [("ab", "c")],
            [("a", "b"), ("c", "")],
            [("c", ""), ("a", "b")],
            [("", "abc")],
            [("a", ("b", "c"))],
        ]
        digests = set()
        for stream in streams:
            printer = Fingerprinter()
            for tag, value in stream:
                printer.absorb(tag, value)
            digests.add(printer.digest())
        assert len(digests) == len(streams)

    def test_a_value_is_not_confused_with_its_digest(self):
        """Long values stand by their digest; a short value equal to it is another value."""
        from blake3 import blake3

        long = b"x" * 5000
        assert key(long) != key(blake3(long).digest())
        array = np.arange(5000.0)
        digest = np.frombuffer(blake3(array.tobytes()).digest(), dtype=np.float64)
        assert key(array) != key(digest)


class TestAgreement:
    """What is equal agrees, however it is laid out or put together."""

    @pytest.mark.parametrize("shape", [(7,), (5, 6), (200, 300), (3, 4, 5), (2, 300, 300)])
    @pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "c16", "?", "U3", "M8[s]", "O", "g", "S2"])
    def test_layout_does_not_count(self, shape, dtype):
        """C, Fortran, strided, reversed, read-only, broadcast and mapped arrays agree."""
        rng = np.random.default_rng(0)
        base = rng.integers(0, 2, size=shape).astype(dtype)
        wide = np.zeros([2 * n for n in shape], dtype)
        strided = wide[tuple(slice(None, None, 2) for _ in shape)]
        strided[...] = base
        frozen = base.copy()
        frozen.flags.writeable = False
        reverse = tuple(slice(None, None, -1) for _ in shape)
        layouts = [np.asfortranarray(base), strided, base[reverse].copy()[reverse], frozen]
        assert {key(layout) for layout in layouts} == {key(base)}

    def test_broadcast_and_mapped_arrays_agree(self, tmp_path):
        """Arrays that do not own what they show count by what they show."""
        base = np.ones((300, 40))
        assert key(np.broadcast_to(1.0, (300, 40))) == key(base)
        mapped = np.memmap(tmp_path / "m", dtype="f8", mode="w+", shape=(300, 40))
        mapped[...] = 1.0
        assert key(mapped) == key(base)

    def test_hidden_bytes_do_not_count(self):
        """Padding of structured and extended types, and what a mask hides, are no content."""
        packed = np.dtype([("a", "i1"), ("b", "f8")], align=True)
        one, other = np.zeros(2, packed), np.zeros(2, packed)
        other.view(np.uint8)[...] = 255
        one["a"], other["a"], one["b"], other["b"] = 1, 1, 2.0, 2.0
        assert one.tobytes() != other.tobytes()
        assert key(one) == key(other)
        masked = [np.ma.masked_array([1.0, v], [False, True]) for v in (5.0, 6.0)]
        assert key(masked[0]) == key(masked[1])
        raw = np.zeros(3, np.longdouble)
        dirty = raw.copy()
        dirty.view(np.uint8).reshape(3, -1)[:, 12:] = 7
        assert key(raw) == key(dirty)

    def test_insertion_order_does_not_count(self):
        """Dicts and sets agree in any order, ordered dicts count it."""
        assert key({"a": 1, 2: "b", (3,): None}) == key({(3,): None, 2: "b", "a": 1})
        assert key({1, "a", (2,)}) == key({(2,), 1, "a"})
        ordered = collections.OrderedDict
        assert key(ordered(a=1, b=2)) != key(ordered(b=2, a=1))
        assert key(collections.Counter("aab")) == key(collections.Counter("baa"))

    def test_identity_of_containers_does_not_count(self):
        """The same list twice is two equal lists."""
        shared = [1.0]
        assert key([shared, shared]) == key([[1.0], [1.0]])

    @pytest.mark.parametrize("form", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
    def test_sparse_of_every_format(self, form):
        """Equal sparse arrays agree, formats and values are told apart, order of setting not."""
        rng = np.random.default_rng(1)
        dense = rng.integers(0, 2, (6, 6)).astype(float)
        kinds = [getattr(sp, f"{form}_{kind}") for kind in ("array", "matrix")]
        keys = {key(kind(dense)) for kind in kinds}
        assert len(keys) == 2
        assert key(kinds[0](dense)) in keys
        assert key(kinds[0](dense + np.eye(6))) not in keys
        if form in {"dok", "lil"}:
            one, other = kinds[0]((6, 6)), kinds[0]((6, 6))
            for i, j in ((0, 1), (3, 2), (5, 5)):
                one[i, j] = 1.0
            for i, j in ((5, 5), (0, 1), (3, 2)):
                other[i, j] = 1.0
            assert key(one) == key(other)

    def test_pandas_and_polars(self):
        """Frames and series agree with equal ones, and differ in any value, name, type or index."""
        import pandas as pd
        import polars as pl

        def frame(**changes):
            columns = {
                "a": [1, 2],
                "s": ["x", None],
                "c": pd.Categorical(["u", "v"]),
                "t": pd.to_datetime(["2020-01-01", None], utc=True),
                "n": pd.array([1, None], dtype="Int64"),
                "b": [True, False],
            }
            return pd.DataFrame(columns | changes)

        assert key(frame()) == key(frame())
        others = [
            frame(a=[1, 3]),
            frame(a=[1.0, 2.0]),
            frame(s=["x", "y"]),
            frame(c=pd.Categorical(["u", "v"], categories=["u", "v", "w"])),
            frame(t=pd.to_datetime(["2020-01-02", None], utc=True)),
            frame(n=pd.array([1, 0], dtype="Int64")),
            frame().rename(columns={"a": "z"}),
            frame().set_index(pd.Index([5, 6])),
            frame().set_index(["a", "b"]),
            frame()["a"],
            frame().index,
        ]
        assert len({key(f) for f in [frame(), *others]}) == len(others) + 1
        polars = [
            pl.DataFrame({"a": [1, 2], "s": ["x", None]}),
            pl.DataFrame({"a": [1, 2], "s": ["x", "y"]}),
            pl.DataFrame({"a": [1.0, 2.0], "s": ["x", None]}),
            pl.DataFrame({"b": [1, 2], "s": ["x", None]}),
            pl.Series("a", [1, 2]),
            pl.Series("a", [1, None]),
        ]
        assert len({key(f) for f in polars}) == len(polars)
        assert key(pl.DataFrame({"a": [1, 2], "s": ["x", None]})) == key(polars[0])

    def test_random_generators_count_by_state(self):
        """Generators agree in equal states, and a draw changes them."""
        for make in (np.random.default_rng, np.random.RandomState):
            one, other = make(5), make(5)
            assert key(one) == key(other)
            one.random()
            assert key(one) != key(other)
            other.random()
            assert key(one) == key(other)
        assert key(np.random.Generator(np.random.MT19937(1))) != key(np.random.default_rng(1))

    def test_scipy_objects(self):
        """Bounds and constraints count by content; a strategy by what it was made with."""
        assert key(so.Bounds([0], [1])) == key(so.Bounds([0], [1]))
        assert key(so.Bounds([0], [1])) != key(so.Bounds([0], [2]))
        one = so.LinearConstraint(np.eye(2), 0, 1)
        assert key(one) == key(so.LinearConstraint(np.eye(2), 0, 1))
        assert key(one) != key(so.LinearConstraint(np.eye(2), 0, 2))
        assert key(so.NonlinearConstraint(np.sin, 0, 1)) != key(
            so.NonlinearConstraint(np.cos, 0, 1)
        )
        strategy = so.BFGS()
        before = key(strategy)
        so.minimize(so.rosen, [1.3, 0.7], method="trust-constr", hess=strategy)
        assert key(strategy) == before
        assert key(so.BFGS(min_curvature=0.1)) != before
        assert key(so.SR1()) != before

    def test_instances_count_by_content(self):
        """Dataclasses, enums, named tuples and plain objects count by class and state."""
        assert key(Point(1.0)) == key(Point(1.0))
        assert key(Point(1.0)) != key(Point(2.0))
        assert key(Slotted(1.0)) == key(Slotted(1.0))
        assert key(Slotted(1.0)) != key(Point(1.0))
        assert key(Color.RED) != key(Color.BLUE)
        pair = collections.namedtuple("pair", "a b")
        assert key(pair(1, 2)) != key((1, 2))
        assert key(functools.partial(sum, [1])) != key(functools.partial(sum, [2]))

    def test_cycles_end(self):
        """Containers and objects that contain themselves have keys, and equal ones agree."""

        def knot():
            inner: list = [1]
            inner.append(inner)
            return inner

        assert key(knot()) == key(knot())
        assert key(knot()) != key([1, [1]])
        one, other = Point(1.0), Point(1.0)
        one.y, other.y = one, other
        assert key(one) == key(other)

    def test_sharing_costs_no_explosion(self):
        """Fifty levels of an object held twice by the next take no time."""
        deep = Point(0.0)
        for _ in range(50):
            deep = Point(deep, deep)
        assert key(deep) == key(deep)

    def test_in_any_process(self, tmp_path):
        """Other hash seeds, folders and interpreters give the same keys."""
        script = textwrap.dedent(
            """
            import numpy as np
            from warmstart import Fingerprinter, FitSpec
            def helper(x): return {"a", "b", "c"} and x + SCALE
            SCALE = 2.0
            def fun(x): return helper(x) ** 2
            spec = FitSpec(model=fun, data={"b": {"x", "y", "z"}, "a": np.arange(3)})
            print(spec.key)
            """
        )
        seen = set()
        for number, seed in enumerate(("0", "1", "777")):
            folder = tmp_path / str(number)
            folder.mkdir()
            file = folder / f"script{number}.py"
            file.write_text("\n" * number + script)
            run = subprocess.run(
                [sys.executable, str(file)],
                env={**os.environ, "PYTHONHASHSEED": seed},
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
            seen.add(run.stdout)
        assert len(seen) == 1

    def test_optional_libraries_are_not_imported(self):
        """Hashing arrays and dicts imports neither pandas nor polars."""
        code = (
            "import sys, numpy as np; from warmstart.fingerprint import Fingerprinter;"
            "Fingerprinter().absorb('a', {'x': np.ones(3)});"
            "assert not {'pandas', 'polars', 'sklearn'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize(
        ("value", "hexadecimal"),
        [
            (None, "be9dad4dc4aaa0acf3a3c4ec8ab69786e11f0223c229298af51f38bd9e06e6e1"),
            (
                (1, -1.5, "é", b"\0", True),
                "130ab553c261e09d984bce979deacc174c0d5df99c2d5196892a95008b8ad769",
            ),
            (
                {"b": [2**70], "a": {1, 2}},
                "0522b21c1dc131b0e88872398493a3aa146cac904d7743f4987fde5d6958ca72",
            ),
            (
                np.arange(6, dtype="<f8").reshape(2, 3),
                "c8629bd9d4ca330d36be3daf825cc26843a968f44a4fbcc0e0a0526ab7615f85",
            ),
            (
                np.arange(1000, dtype="<i4"),
                "cbfe57c714ce147d5da4df09c7f7f21f08997db73321d18ce909bf232af3c8cd",
            ),
        ],
    )
    def test_golden_digests(self, value, hexadecimal):
        """Keys of plain values are part of the format of a store: they do not change."""
        assert str(key(value)) == hexadecimal


class TestRefusal:
    """What cannot be identified raises, and says where it stands and what to do."""

    @pytest.mark.parametrize("make", ["lock", "file", "generator", "socket", "database"])
    def test_things_without_content(self, make, tmp_path):
        """Locks, files, generators, sockets and connections have no identity."""
        import socket
        import sqlite3
        import threading

        made = {
            "lock": threading.Lock,
            "file": lambda: open(tmp_path / "f", "w"),
            "generator": lambda: (i for i in ()),
            "socket": socket.socket,
            "database": lambda: sqlite3.connect(":memory:"),
        }[make]()
        try:
            with pytest.raises(FingerprintError, match="model="):
                key({"deep": [1, (made,)]})
            with pytest.raises(FingerprintError, match=re.escape("v['deep'][1][0]")):
                key({"deep": [1, (made,)]})
        finally:
            if hasattr(made, "close"):
                made.close()

    def test_too_deep(self):
        """Nesting beyond Python's stack is an error of ours, not a crash."""
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(FingerprintError, match="too deeply"):
            key(deep)
        while deep:
            deep = deep.pop()

    def test_a_tag_is_text(self):
        """Tags of another type are refused."""
        with pytest.raises(ArgumentError, match="tag"):
            Fingerprinter().absorb(b"a", 1)


class TestFitSpec:
    """Four parts, one key, and the ladder."""

    BASE = {
        "model": "m",
        "data": {"y": np.arange(3.0)},
        "hyper": {"alpha": 0.1},
        "settings": {"method": "BFGS", "x0": [1.0], "bounds": None, "rng": 1, "tol": 1e-8},
    }

    @pytest.mark.parametrize(
        ("part", "name", "other", "shared"),
        [
            ("model", None, "n", []),
            ("data", "y", np.arange(4.0), ["sibling-data", "family"]),
            ("hyper", "alpha", 0.2, ["sibling-hyper", "family"]),
            (
                "settings",
                "tol",
                1e-6,
                ["journal", "problem", "sibling-data", "sibling-hyper", "family"],
            ),
            ("settings", "method", "CG", ["problem", "sibling-data", "sibling-hyper", "family"]),
            ("settings", "x0", [2.0], ["problem", "sibling-data", "sibling-hyper", "family"]),
            ("settings", "rng", 2, ["problem", "sibling-data", "sibling-hyper", "family"]),
            ("settings", "bounds", [(0, 1)], ["sibling-data", "sibling-hyper", "family"]),
            ("settings", "x0", [1.0, 2.0], []),
        ],
    )
    def test_each_level_depends_on_its_parts(self, part, name, other, shared):
        """A change of one argument leaves exactly the levels that do not hold it."""
        changed = other if name is None else {**self.BASE[part], name: other}
        one, two = FitSpec(**self.BASE), FitSpec(**{**self.BASE, part: changed})
        same = [level.value for level in Level if one.level_key(level) == two.level_key(level)]
        assert same == shared
        (difference, *_rest) = [d for d in one.explain(two) if d.part == part]
        assert difference.name == (name or "model")

    def test_levels_never_share_a_key(self):
        """The keys of different levels of one fit differ, so that they can share a table."""
        spec = FitSpec(model="m")
        assert len({spec.level_key(level) for level in Level}) == len(Level)

    def test_arrays_in_functions_are_data(self):
        """Data in a closure is data: two data sets share the model, and explain names them."""

        def make(y, scale):
            return lambda x: ((x * scale - y) ** 2).sum()

        one, two = (FitSpec(model={"fun": make(np.full(3, v), 2.0)}) for v in (1.0, 2.0))
        assert one.key != two.key
        assert one.level_key(Level.FAMILY) == two.level_key(Level.FAMILY)
        (difference,) = one.explain(two)
        assert difference.part == "data"
        assert difference.name == "fun.__closure__['y']"
        three = FitSpec(model={"fun": make(np.full(3, 1.0), 3.0)})
        assert one.level_key(Level.FAMILY) != three.level_key(Level.FAMILY)

    def test_the_number_of_parameters_is_in_every_level(self):
        """Fits of other sizes share nothing."""
        one, two = (FitSpec(model="m", parameters=n) for n in (3, 4))
        assert not any(one.level_key(level) == two.level_key(level) for level in Level)

    def test_it_is_what_the_fit_was_given(self):
        """A generator that is drawn from and an array that is overwritten later do not count."""
        rng, y = np.random.default_rng(0), np.arange(3.0)
        spec = FitSpec(model="m", data=y, settings={"rng": rng})
        before = spec.key
        rng.random()
        y[0] = 9.0
        assert spec.level_key(Level.EXACT) == before
        assert FitSpec(model="m", data=y, settings={"rng": rng}).key != before

    def test_wrong_parts_are_refused(self):
        """Hyper and settings are mappings, explain takes a spec, parts have names."""
        with pytest.raises(ArgumentError, match="hyper is a mapping"):
            FitSpec(model="m", hyper=[0.1])
        with pytest.raises(ArgumentError, match="settings is a mapping"):
            FitSpec(model="m", settings="BFGS")
        with pytest.raises(ArgumentError, match="FitSpec"):
            FitSpec(model="m").explain("m")
        with pytest.raises(ArgumentError, match="parts"):
            FitSpec(model="m").part("x")

    def test_a_difference_reads_well(self):
        """Differences are sentences with both values, also where one is missing."""
        assert str(Difference("settings", "tol", "0.1", "0.2")) == (
            "settings: tol is 0.1 here and 0.2 there"
        )
        assert "absent there" in str(Difference("settings", "tol", "0.1", None))
        assert str(Difference("data", "y", "a", "a")) == "data: y differs (a)"
