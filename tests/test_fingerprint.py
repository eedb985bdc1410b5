"""Keys of values: unique readability, what counts and what does not, and the ladder of a fit."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import textwrap
import threading
import types
import uuid

import numpy as np
import pytest
import scipy.optimize
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import ArgumentError, Fingerprint, Fingerprinter, FingerprintError, FitSpec, Level
from warmstart.fingerprint import Difference, SpecSummary, code_fingerprint, environment
from warmstart.values import Encoder

steadily = settings(derandomize=True, deadline=None, max_examples=300)


def key(value):
    return Fingerprinter().absorb("", value).digest()


def frame(value):
    return Encoder().encode(value)


# Plain values, and the proof that their frames can be read in one way only

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs"]), max_size=3),
    st.binary(max_size=8),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.floats()), inner, max_size=3
        ),
        st.sets(st.one_of(st.integers(), st.text(max_size=2), st.binary(max_size=2)), max_size=3),
    ),
    max_leaves=12,
)


def canon(value):
    """Return a text that two values share only if they are the same, bit by bit and type by type."""
    kind = type(value).__name__
    if isinstance(value, float):
        return f"{kind}:{struct.pack('<d', value).hex()}"
    if isinstance(value, complex):
        return f"{kind}:{struct.pack('<dd', value.real, value.imag).hex()}"
    if isinstance(value, dict):
        pairs = sorted(f"{canon(k)}={canon(v)}" for k, v in value.items())
        return f"{kind}{{{','.join(pairs)}}}"
    if isinstance(value, (set, frozenset)):
        return f"{kind}{{{','.join(sorted(map(canon, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"{kind}[{','.join(map(canon, value))}]"
    return f"{kind}:{value!r}"


class Reader:
    """Reads frames of plain values back; it was written from the table of frames, not the code."""

    def __init__(self, stream):
        self.stream, self.at = stream, 0

    def take(self, size):
        piece = self.stream[self.at : self.at + size]
        assert len(piece) == size
        self.at += size
        return piece

    def u64(self):
        return int.from_bytes(self.take(8), "little")

    def sized(self):
        size = self.u64()
        assert size <= 1024, "a digest cannot be read back"
        return self.take(size)

    def many(self):
        inner = Reader(self.sized())
        values = []
        while inner.at < len(inner.stream):
            values.append(inner.value())
        return values

    def value(self):
        code = self.take(1)
        match code:
            case b"N":
                return None
            case b"0" | b"1":
                return code == b"1"
            case b"i":
                return int.from_bytes(self.take(8), "little", signed=True)
            case b"I":
                return int.from_bytes(self.sized(), "little", signed=True)
            case b"f":
                return struct.unpack("<d", self.take(8))[0]
            case b"c":
                return complex(*struct.unpack("<dd", self.take(16)))
            case b"s":
                return self.sized().decode("utf-8", "surrogatepass")
            case b"b":
                return self.sized()
            case b"t":
                return tuple(self.many())
            case b"l":
                return self.many()
            case b"S":
                return set(self.many())
            case b"d":
                flat = self.many()
                return dict(zip(flat[::2], flat[1::2], strict=True))
        raise AssertionError(code)


class TestUniqueReadability:
    """No two different inputs make the same stream."""

    @steadily
    @given(plain)
    def test_a_frame_reads_back_as_its_value(self, value):
        """Reading a frame gives the value back bit for bit and leaves nothing over."""
        stream = frame(value)
        if len(stream) > 1000:
            return
        reader = Reader(stream)
        assert canon(reader.value()) == canon(value)
        assert reader.at == len(stream)

    @steadily
    @given(st.lists(st.tuples(st.text(max_size=4), plain), max_size=4))
    def test_a_stream_of_tagged_frames_reads_back(self, named):
        """What a `Fingerprinter` digests reads back as its tags and values, in their order."""
        printer = Fingerprinter()
        for tag, value in named:
            printer.absorb(tag, value)
        stream = b"".join(printer._frames)
        assert printer.digest() == Fingerprint(blake3(stream).digest())
        if len(stream) > 1000:
            return
        reader, found = Reader(stream), []
        while reader.at < len(stream):
            tag = reader.value()
            content = Reader(reader.take(reader.u64()))
            found.append((tag, content.value()))
            assert content.at == len(content.stream)
        assert canon(found) == canon(named)

    @steadily
    @given(plain, plain)
    def test_keys_agree_exactly_where_values_do(self, a, b):
        """Two values have one key if and only if types and bits agree."""
        assert (key(a) == key(b)) == (canon(a) == canon(b))
        assert (key([a, b]) == key([b, a])) == (canon(a) == canon(b))

    @pytest.mark.parametrize(
        "values",
        [
            [1, True, 1.0, np.int64(1), np.int32(1), np.float64(1), np.float32(1), np.bool_(True),
             "1", b"1", bytearray(b"1"), 1 + 0j, np.complex128(1), np.str_("1"), np.bytes_(b"1"),
             decimal.Decimal(1), fractions.Fraction(1), np.array(1), np.array([1]), [1], (1,), {1},
             frozenset({1}), {1: None}, range(1), np.datetime64(1, "s"), np.timedelta64(1, "s"),
             np.longdouble(1)],
            [0.0, -0.0, 0, False, None, "", b"", (), [], {}, set(), frozenset(), 0j, -0j,
             complex(0.0, -0.0), np.zeros(0), np.zeros((0, 1)), np.zeros((1, 0)), np.zeros(0, "f4")],
            [("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ["a", "bc"], ("a", ("bc",))],
            [[], [[]], [[], []], [[[]]], ((),), ([],), [()], {"": []}, {"": {}}],
            [{1: 2}, {"1": 2}, {1.0: 2}, {True: 2}, {1: 2.0}, {(1,): 2}, {(1, 2): None}],
            [[1, [2, 3]], [[1, 2], 3], [1, 2, 3], [[1, 2, 3]]],
            [float("nan"), -float("nan"), struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0],
             float("inf"), -float("inf")],
            [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**64 + 1, float(2**63), 10**400],
            ["\ud800", "\udc00", "\ud800\udc00", "\U00010000", "\\ud800"],
            [range(3), range(0, 3, 2), slice(3), slice(0, 3), [0, 1, 2], (0, 3, 1)],
            [..., None, NotImplemented, "Ellipsis"],
            [int, float, bool, type, object, np.float64, np.dtype("f8"), np.dtype("f4"),
             np.dtype(">f8"), np.dtype([("a", "f8")]), np.dtype([("b", "f8")]), "f8"],
            [collections.OrderedDict(a=1), {"a": 1}, collections.Counter(a=1),
             collections.defaultdict(int, a=1), collections.defaultdict(float, a=1),
             types.MappingProxyType({"a": 1}), types.SimpleNamespace(a=1)],
        ],
    )  # fmt: skip
    def test_crafted_neighbors_differ(self, values):
        """Values that other hashes confuse have different keys."""
        keys = [key(value) for value in values]
        assert len(set(keys)) == len(values)
        assert keys == [key(value) for value in values]

    def test_the_border_between_tag_and_value_counts(self):
        """A tag cannot lend bytes to its value, and no frame can pose as two."""
        digests = {
            Fingerprinter().absorb("ab", "c").digest(),
            Fingerprinter().absorb("a", "bc").digest(),
            Fingerprinter().absorb("a", "b").absorb("c", "").digest(),
            Fingerprinter().absorb("a", "b").absorb("", "c").digest(),
            Fingerprinter().absorb("", "a").absorb("b", "c").digest(),
            Fingerprinter().absorb("b", "c").absorb("", "a").digest(),
            Fingerprinter().absorb("", ("a", "b", "c")).digest(),
            Fingerprinter().digest(),
            Fingerprinter().absorb("", b"").digest(),
            Fingerprinter().absorb("", b"".join(Fingerprinter().absorb("", "")._frames)).digest(),
        }
        assert len(digests) == 10

    @pytest.mark.parametrize("make", [bytes, lambda raw: raw.decode("latin1"), list, tuple])
    def test_a_digest_cannot_pose_as_content(self, make):
        """A long value stands by its digest, and a value equal to that digest differs from it."""
        long = make(b"\x00" * 5000)
        inner = frame(long)
        assert len(inner) < 100
        digest = inner[-32:]
        assert key(make(digest)) != key(long)
        assert key(digest) != key(long)
        assert key(make(b"\x00" * 4999)) != key(long)

    @pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 1023, 1024, 1025, 5000])
    def test_every_size_around_the_inline_threshold(self, size):
        """Bytes, strings, arrays and lists of each size differ from those one longer."""
        for make in (bytes, lambda n: "x" * n, np.zeros, lambda n: [0] * n):
            assert key(make(size)) == key(make(size))
            assert key(make(size)) != key(make(size + 1))


GOLDEN = {
    "none": (None, "eccd912e7a49443b26ff3943996682cd"),
    "true": (True, "b53aff3d31c336e0093ebd0ef5f74257"),
    "one": (1, "2af5112af1cacf39b9d28bfe56c04d71"),
    "big": (-(2**100), "b62d68dd54f584805d3afc3fdc19866d"),
    "float": (0.1, "eefd989ce2679082a90068dcfb32b20d"),
    "minus zero": (-0.0, "cff18c9b798c6457b7c2f5479e902deb"),
    "complex": (1 - 2j, "f6ba62c8f9961bb95ca3822fca0d1c00"),
    "text": ("Übung \ud800", "ee69c1102ecbeb1462d3a42e8c71206c"),
    "long text": ("x" * 5000, "444f85f6fe8ea0a741019d0e6c4c376e"),
    "bytes": (b"\x00\xff", "0a738fbda9f26ff1a81c9c2f48bc6244"),
    "tuple": ((1, "a", None), "79351dd02e99d51eead9741e0324fd9b"),
    "list": ([1.5, [2]], "d685c9c9ebf16fb98981ba5ee1240a4e"),
    "dict": ({"b": 1, "a": [2]}, "15ca612554bac7cf075ef63a21a9f73b"),
    "mixed dict": ({1: "a", "b": 2.0, (3,): None}, "011eb447d61a93505e6f21c24a2bf7dc"),
    "set": ({1, "a", b"b"}, "2ad2e1d4ac2dd4929a4b57edded0345c"),
    "long list": (list(range(1000)), "44b49b57c0d3ccf35426404404752dd1"),
    "vector": (np.arange(3.0), "df46ec9c5851712d321d446202a463a6"),
    "matrix": (np.asfortranarray(np.arange(6, dtype="i4").reshape(2, 3)), "5b3e04e2317d3e300fc31688fca2807d"),
    "long vector": (np.arange(1000.0), "76b521a825a5cfd279ae63e6a40998c9"),
    "scalar": (np.float32(1.5), "58379c45f9f79643bbd943964c71dda5"),
    "structured": (np.array([(1, 2.5)], dtype=[("n", "<i4"), ("x", "<f8")]), "a88b40d7335ce4f1bae9478b0dea2ba9"),
    "masked": (np.ma.masked_array([1.0, 2.0], mask=[False, True]), "16d72ff3f6107038b454960b48b56738"),
    "objects": (np.array([1, "a", None], dtype=object), "11c7bafbeaa93f2326b60618565e37e7"),
    "generator": (np.random.Generator(np.random.PCG64(1)), "a28f9e632a828da304394743aa5d5d0e"),
    "bounds": (scipy.optimize.Bounds([0.0], [1.0]), "9e251bc9a9e0f963ed4e1c02f5d13406"),
    "date": (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "813f21fe080eeb56472ca3ee1408a90a"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_of_plain_values_never_change(name):
    """Keys are written into stores that live for years: the bytes are pinned."""
    value, digest = GOLDEN[name]
    assert str(key(value))[:32] == digest


class TestFingerprint:
    """The 32 bytes."""

    @steadily
    @given(st.binary(min_size=32, max_size=32))
    def test_text_and_bytes_round_trip(self, digest):
        """A fingerprint comes back from its 64 hexadecimal digits and from its bytes."""
        print_ = Fingerprint(digest)
        assert Fingerprint.parse(str(print_)) == print_
        assert bytes(print_) == digest
        assert re.fullmatch("[0-9a-f]{64}", str(print_))

    @pytest.mark.parametrize(
        "text",
        ["", "0" * 63, "0" * 65, "A" * 64, "0x" + "0" * 62, " " + "0" * 63, "0" * 63 + "\n",
         "g" * 64, "٠" * 64, b"0" * 64, None, 0],
    )  # fmt: skip
    def test_parsing_is_strict(self, text):
        """Whatever ``str`` would not write is refused with an error that shows it."""
        with pytest.raises(ArgumentError, match="64 lowercase hexadecimal digits"):
            Fingerprint.parse(text)

    @pytest.mark.parametrize("digest", [b"", b"x" * 31, b"x" * 33, "x" * 32, None, bytearray(32)])
    def test_only_32_bytes_are_a_fingerprint(self, digest):
        """Anything but 32 bytes is refused."""
        with pytest.raises(ArgumentError, match="32 bytes"):
            Fingerprint(digest)

    def test_it_is_ordered_as_bytes_and_a_dict_key(self):
        """Fingerprints sort as their bytes do, are equal by content, immutable and hashable."""
        keys = [key(i) for i in range(50)]
        assert sorted(keys) == sorted(keys, key=bytes)
        assert {Fingerprint(bytes(k)): k for k in keys}[keys[7]] == keys[7]
        assert keys[0] <= keys[0]
        assert keys[0] != bytes(keys[0])
        with pytest.raises(AttributeError):
            keys[0].digest = b"x" * 32


class TestFingerprinter:
    """The stream."""

    def test_a_digest_may_be_taken_on_the_way(self):
        """Taking a digest changes nothing in what follows."""
        one = Fingerprinter().absorb("a", 1)
        first = one.digest()
        assert one.digest() == first
        one.absorb("b", 2)
        assert one.digest() == Fingerprinter().absorb("a", 1).absorb("b", 2).digest()

    def test_a_refused_value_leaves_it_as_it_was(self):
        """After an error the stream is what it was before."""
        printer = Fingerprinter().absorb("a", 1)
        with pytest.raises(FingerprintError):
            printer.absorb("b", [1, threading.Lock()])
        assert printer.digest() == Fingerprinter().absorb("a", 1).digest()

    def test_a_tag_is_a_string(self):
        """Another tag is a wrong argument."""
        with pytest.raises(ArgumentError, match="a tag is a str"):
            Fingerprinter().absorb(1, 1)

    def test_frames_do_not_depend_on_what_came_before(self):
        """An object absorbed twice has the same frame each time."""
        thing = types.SimpleNamespace(a=1)
        one, two = Fingerprinter().absorb("a", thing).absorb("b", thing)._frames
        assert one[10:] == two[10:]


@dataclasses.dataclass
class Point:
    x: float
    y: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: float
    y: object = None


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Bits(enum.Flag):
    A = 1
    B = 2


class Slotted:
    __slots__ = ("__dict__", "a", "b")


Pair = collections.namedtuple("Pair", "a b")


class TestValues:
    """What counts, and what does not."""

    @steadily
    @given(st.dictionaries(st.one_of(st.text(), st.integers()), st.integers()), st.randoms())
    def test_insertion_order_does_not_count(self, value, rnd):
        """Dicts and sets are the same in whatever order they were filled."""
        pairs = list(value.items())
        rnd.shuffle(pairs)
        assert key(dict(pairs)) == key(value)
        assert key(set(dict(pairs))) == key(set(value))

    def test_kinds_of_dict(self):
        """The order of an OrderedDict counts, that of a defaultdict or Counter does not."""
        for make in (dict, collections.Counter, lambda p: collections.defaultdict(int, p)):
            assert key(make({"a": 1, "b": 2})) == key(make({"b": 2, "a": 1}))
        one = collections.OrderedDict([("a", 1), ("b", 2)])
        assert key(one) != key(collections.OrderedDict([("b", 2), ("a", 1)]))

    def test_sets_of_mixed_types(self):
        """Items that cannot be compared with each other make no trouble."""
        mixed = {1, "a", b"a", None, (1, "x"), 2.5, frozenset({1, "b"}), Color.RED}
        assert key(mixed) == key(set(reversed(list(mixed))))
        assert key(mixed) != key(mixed - {None})

    def test_instances(self):
        """Class and attributes of dataclasses, slotted classes, named tuples and namespaces count."""
        slotted = [Slotted(), Slotted(), Slotted(), Slotted()]
        slotted[1].a = 1
        slotted[2].b = 1
        slotted[3].c = 1
        things = [Point(1.0), Point(1), Point(1.0, [2]), Frozen(1.0), Frozen(1.0, [2]), Pair(1, 2),
                  (1, 2), Pair(2, 1), Color.RED, Color.GREEN, 1, Bits.A, Bits.B, Bits.A | Bits.B,
                  Bits(0), *slotted, types.SimpleNamespace(x=1.0)]  # fmt: skip
        keys = [key(thing) for thing in things]
        assert len(set(keys)) == len(things)
        assert keys == [key(thing) for thing in things]
        assert key(Point(1.0, [2])) == key(Point(1.0, [2]))

    def test_plain_library_values_count_by_content(self):
        """Dates, decimals, paths, patterns: equal values agree, one object or two."""
        makers = [
            lambda i: datetime.datetime(2026, 1, 1 + i, tzinfo=datetime.UTC),
            lambda i: datetime.timedelta(1, i),
            lambda i: decimal.Decimal(f"1.{i}"),
            lambda i: fractions.Fraction(1, 2 + i),
            lambda i: pathlib.PurePosixPath(f"/a{i}"),
            lambda i: re.compile(f"a{i}"),
            lambda i: collections.deque([i], 3),
            lambda i: uuid.UUID(int=i),
            lambda i: random.Random(i),
            lambda i: np.polynomial.Polynomial([1.0, i]),
            lambda i: np.random.SeedSequence(i),
        ]
        for make in makers:
            assert key(make(0)) == key(make(0)) != key(make(1))
        for make in makers[:6]:
            one = make(0)
            assert key([one, one]) == key([make(0), make(0)])

    def test_equal_containers_may_be_one_object_or_two(self):
        """Sharing of plain containers and arrays does not count, long or short."""
        for make in (list, lambda n: list(range(900)), np.ones, lambda n: {"a": [1] * 2000}):
            one = make(1000) if make is np.ones else make([])
            again = make(1000) if make is np.ones else make([])
            assert key([one, one, 1]) == key([one, again, 1])

    def test_random_generators_count_by_state(self):
        """Same state, same key; a draw changes it; kinds differ; hashing does not draw."""
        for make in (np.random.default_rng, np.random.RandomState,
                     lambda seed: np.random.Generator(np.random.MT19937(seed))):  # fmt: skip
            rng = make(1)
            before = key(rng)
            assert before == key(make(1)) == key(rng)
            assert before != key(make(2))
            rng.random(3)
            assert key(rng) != before
        assert key(np.random.default_rng(1)) != key(np.random.RandomState(1))

    def test_unseen_kinds_of_keys(self):
        """Keys without an order work; keys that cannot be told apart are refused, not guessed."""
        a, b = object(), object()
        assert key({a: 1}) == key({b: 1})
        with pytest.raises(FingerprintError, match="cannot be told apart"):
            key({a: 1, b: 2})
        assert key({Frozen(1.0): 1, Frozen(2.0): 2}) == key({Frozen(2.0): 2, Frozen(1.0): 1})


class TestShape:
    """Cycles, depth and sharing."""

    def test_a_container_in_itself(self):
        """Lists and dicts that hold themselves have keys that depend on where they do."""
        a = [1]
        a.append(a)
        b = [1]
        b.append([1, b])
        c = [2]
        c.append(c)
        d = {"a": 1}
        d["d"] = d
        keys = [key(v) for v in (a, b, c, d)]
        assert len(set(keys)) == 4
        again = [1]
        again.append(again)
        assert key(again) == keys[0]

    def test_objects_that_know_each_other(self):
        """Mutual objects end, and what hangs on them counts."""

        def couple(value):
            a, b = types.SimpleNamespace(), types.SimpleNamespace(value=value)
            a.other, b.other, a.all = b, a, {1: [a, b], 2: None}
            return a

        assert key(couple(1)) == key(couple(1)) != key(couple(2))

    @pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v},
                                      lambda v: {1: v}, lambda v: frozenset([v]),
                                      lambda v: types.SimpleNamespace(a=v)])  # fmt: skip
    def test_depth_is_refused_in_words(self, wrap):
        """A hundred levels are fine; 100,000 are a FingerprintError, not a crash."""
        value = 0
        for _ in range(60):
            value = wrap(value)
        assert key(value) == key(value)
        chain = []
        for _ in range(20_000):
            value = wrap(value) if not isinstance(value, frozenset) else (value,)
            chain.append(value)
        with pytest.raises(FingerprintError, match="nested too deeply"):
            key(value)
        while chain:  # let it go from the outside in: freeing it at once overflows the stack
            value = chain.pop()

    @pytest.mark.parametrize(
        "wrap",
        [lambda v: [v, v], lambda v: (v, v), lambda v: {"a": v, "b": v}, lambda v: {1: v, 2: v},
         lambda v: frozenset([v, (v,)]), lambda v: types.SimpleNamespace(a=v, b=v),
         lambda v: [types.SimpleNamespace(a=v), v, v]],
    )  # fmt: skip
    def test_sharing_does_not_explode(self, wrap):
        """Sixty levels of twice the same thing, 2**60 on paper, take no time."""
        value = (1, "a")
        for _ in range(60):
            value = wrap(value)
        assert key(value) == key(value)

    def test_many_small_values(self):
        """A hundred thousand items of a list are no trouble, and the last one counts."""
        items = [[i, str(i)] for i in range(100_000)]
        before = key(items)
        items[-1][1] = "x"
        assert key(items) != before


UNKNOWABLE = {
    "lock": threading.Lock,
    "event": threading.Event,
    "file": lambda: sys.__stderr__,
    "generator": lambda: (i for i in [1]),
    "iterator of a file": lambda: map(str, sys.__stderr__),
    "ufunc of one's own": lambda: np.frompyfunc(lambda x: x, 1, 1),
    "memory": lambda: memoryview(b"abc"),
    "frame": sys._getframe,
}


class TestRefusals:
    """What has no identity."""

    @pytest.mark.parametrize("name", UNKNOWABLE)
    def test_it_is_refused_with_its_path_and_the_way_out(self, name):
        """The message names the place inside the argument, the reason and what to write."""
        with pytest.raises(FingerprintError) as caught:
            Fingerprinter().absorb("args", ({"db": [1, UNKNOWABLE[name]()]},))
        assert str(caught.value).startswith("args[0]['db'][1]")
        assert str(caught.value).startswith(f"{caught.value.path}: ")
        assert "model=" in str(caught.value)
        assert isinstance(caught.value, TypeError)

    def test_a_path_reads_as_python(self):
        """Attributes, slots, keys, sets, partials and object arrays appear in the path."""
        lock = threading.Lock()
        cases = {
            "x.y": Point(1, lock),
            "x.y['a'].x": Point(1, {"a": Point(lock)}),
            "x[(1, 2)]": {(1, 2): lock},
            "x[0]": np.array([lock], dtype=object),
            "x.keywords['a']": __import__("functools").partial(print, a=lock),
            "x{...}": {lock},
        }
        for path, value in cases.items():
            with pytest.raises(FingerprintError) as caught:
                Fingerprinter().absorb("x", value)
            assert caught.value.path == path

    def test_an_object_that_fails_to_say_what_it_is(self):
        """An error in a user's __reduce__ or __getstate__ becomes a FingerprintError with it."""

        class Sour:
            def __getstate__(self):
                raise ZeroDivisionError("sour")

        with pytest.raises(FingerprintError, match="sour") as caught:
            key(Sour())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def spec(**changes):
    parts = {
        "model": {"fun": "decay"},
        "data": {"t": np.arange(3.0)},
        "hyper": {"alpha": 0.1},
        "settings": {"method": "BFGS", "x0": np.ones(2), "bounds": None, "rng": 1, "tol": 1e-8},
    }
    for name, change in changes.items():
        parts[name] = change if not isinstance(change, dict) else {**parts[name], **change}
    return FitSpec(**parts)


ALL = set(Level)
LADDER = {
    "model": ({"model": {"fun": "growth"}}, set()),
    "parameters": ({"parameters": 3}, set()),
    "data": ({"data": {"t": np.zeros(3)}}, {Level.SIBLING_DATA, Level.FAMILY}),
    "hyper": ({"hyper": {"alpha": 0.2}}, {Level.SIBLING_HYPER, Level.FAMILY}),
    "method": ({"settings": {"method": "CG"}}, ALL - {Level.EXACT, Level.JOURNAL}),
    "x0": ({"settings": {"x0": np.zeros(2)}}, ALL - {Level.EXACT, Level.JOURNAL}),
    "rng": ({"settings": {"rng": 2}}, ALL - {Level.EXACT, Level.JOURNAL}),
    "bounds": (
        {"settings": {"bounds": [(0, 1)]}},
        ALL - {Level.EXACT, Level.JOURNAL, Level.PROBLEM},
    ),
    "tol": ({"settings": {"tol": 1e-9}}, ALL - {Level.EXACT}),
    "another": ({"settings": {"options": {}}}, ALL - {Level.EXACT}),
}


class TestFitSpec:
    """Four parts, one key, and the ladder."""

    @pytest.mark.parametrize("name", LADDER)
    def test_each_level_shares_exactly_its_parts(self, name):
        """A change in one argument changes the levels that it stands in, and no others."""
        change, kept = LADDER[name]
        one, two = spec(), spec(**change)
        assert {level for level in Level if one.level_key(level) == two.level_key(level)} == kept
        assert one.key == one.level_key(Level.EXACT)
        [difference] = one.explain(two)
        assert difference.name == {"another": "options", "data": "t", "model": "fun",
                                   "hyper": "alpha"}.get(name, name)  # fmt: skip

    def test_levels_and_parts_have_keys_of_their_own(self):
        """No two levels or parts share a key, even where they are made of the same parts."""
        for one in (spec(), FitSpec(model="a")):
            keys = [one.level_key(level) for level in Level]
            keys += [one.part(part) for part in ("model", "data", "hyper", "settings")]
            assert len(set(keys)) == len(keys)

    def test_the_number_of_parameters_is_in_every_level(self):
        """Fits with two and three parameters share nothing."""
        one, two = spec(), spec(settings={"x0": np.ones(3)})
        assert not [level for level in Level if one.level_key(level) == two.level_key(level)]

    def test_parameters_may_be_names(self):
        """Names count, list or tuple; by default the size of x0 stands for them."""

        def named(value):
            return FitSpec(model="m", parameters=value).key

        assert named(["a", "b"]) == named(("a", "b")) != named(("b", "a"))
        assert named(2) == FitSpec(model="m", parameters=2).key
        with_x0 = FitSpec(model="m", settings={"x0": [1.0, 2.0]})
        assert with_x0.level_key(Level.FAMILY) == FitSpec(model="m", parameters=2).level_key(
            Level.FAMILY
        )
        assert FitSpec(model="m", settings={"x0": [[1.0], [2.0, 3.0]]}).key  # scipy will complain

    def test_names_of_arguments_count_and_their_order_does_not(self):
        """Swapped values, renamed arguments and moved borders differ; the order of naming not."""
        same = (
            FitSpec(model="m", hyper={"a": 1, "b": 2}),
            FitSpec(model="m", hyper={"b": 2, "a": 1}),
        )
        assert same[0].key == same[1].key
        others = [
            {"hyper": {"a": 2, "b": 1}},
            {"hyper": {"a": 1}, "settings": {"b": 2}},
            {"data": {"a": 1, "b": 2}},
            {"data": {"a": 1}, "hyper": {"b": 2}},
            {"settings": {"a": 1, "b": 2}},
            {"hyper": {"ab": 12}},
            {},
        ]
        keys = {same[0].key, *(FitSpec(model="m", **other).key for other in others)}
        assert len(keys) == len(others) + 1

    def test_wrong_parts_are_refused(self):
        """A part of the wrong type, an unknown part, a reserved name: each has its message."""
        for part in ("hyper", "settings"):
            for wrong in ([1], "a", {1: 2}):
                with pytest.raises(ArgumentError, match=f"{part} is a mapping"):
                    FitSpec(model="m", **{part: wrong})
        with pytest.raises(ArgumentError, match="a fit has the parts"):
            spec().part("rng")
        with pytest.raises(ArgumentError, match="parameters"):
            FitSpec(model={"parameters": 1})
        for wrong in (None, 3, True, 2.5):
            with pytest.raises(ArgumentError, match=f"model is what is fitted.*not {wrong}"):
                FitSpec(model=wrong)
        for wrong in (3.5, "xy", [1, 2], True):
            with pytest.raises(ArgumentError, match="parameters is how many"):
                FitSpec(model="m", parameters=wrong)
        with pytest.raises(ArgumentError, match="FitSpec"):
            spec().explain("key")
        with pytest.raises(FingerprintError, match=r"^options\['a'\]: "):
            FitSpec(model="m", settings={"options": {"a": threading.Lock()}})

    def test_later_changes_do_not_reach_it(self):
        """What a fit does to arrays, generators and dicts afterwards changes no key."""
        data, rng, options = np.zeros(500), np.random.default_rng(1), {"maxiter": 1}
        one = FitSpec(model="m", data=data, settings={"rng": rng, "options": options})
        keys = [one.level_key(level) for level in Level]
        data += 1
        rng.random()
        options["maxiter"] = 2
        assert [one.level_key(level) for level in Level] == keys

    def test_explain_tells_people(self):
        """Each difference names part, argument and both values, absent ones too."""
        one = spec(hyper={"alpha": 0.1, "old": 1})
        two = spec(hyper={"alpha": 0.2}, settings={"x0": np.zeros(7)})
        told = [str(difference) for difference in one.explain(two)]
        assert told == [
            "model: parameters is 2 here and 7 there",
            "hyper: alpha is 0.1 here and 0.2 there",
            "hyper: old is 1 here and absent there",
            "settings: x0 is array([1.0, 1.0]) here and float64[7] there",
        ]
        assert one.explain(one) == []

    def test_explain_looks_into_functions(self):
        """A number that a helper reads is named, so is edited code; what else differs is said."""

        def made(scale=2.0, more="", table=(1,), secret="s3cret"):
            names = {"__name__": "cell", "SCALE": scale, "TABLE": [*table], "TOKEN": secret}
            source = f"""if True:
                def helper(x): return SCALE * x{more}
                def fun(x, power=2): return sum(helper(x) ** power) + len(TABLE) + len(TOKEN)
            """
            exec(source, names)
            return FitSpec(model={"fun": names["fun"]})

        one = made()
        told = "model: fun.helper.SCALE is 2.0 here and 3.0 there"
        assert [str(difference) for difference in one.explain(made(3.0))] == [told]
        [difference] = one.explain(made(more="+1"))
        assert re.fullmatch(r"code [0-9a-f]{6}", difference.ours)
        assert (difference.name, difference.ours != difference.theirs) == ("fun.helper", True)
        for other in (made(table=[1, 2]), made(secret="other")):
            told = "model: fun differs (cell.fun, in its code or what it holds)"
            assert [str(difference) for difference in one.explain(other)] == [told]
        assert "s3cret" not in repr(one.summary())
        many = {f"n{i}": i for i in range(100)}
        exec(f"def fun(x): return x + {' + '.join(many)}", many)
        inside = FitSpec(model={"fun": many["fun"]}).summary().arguments["inside"]
        assert 5 < len(inside) <= 8

    def test_labels_are_short_and_cost_little(self):
        """A label has at most 60 characters, no address, and spells out no million numbers."""

        class Rude:
            def __repr__(self):
                raise RuntimeError

        data = {"a": list(range(10**6)), "b": "x" * 10**6, "c": Rude(), "d": print,
                "e": {str(i): i for i in range(1000)}, "f": types.SimpleNamespace(a=1),
                "g": np.zeros((3, 4)), "h": object()}  # fmt: skip
        labels = FitSpec(model="m", data=data).summary().arguments["data"]
        assert all(len(label) <= 60 and " at 0x" not in label for _, label in labels.values())
        assert labels["g"][1] == "float64[3, 4]"
        assert labels["c"][1] == "<Rude instance>"

    def test_a_label_never_raises(self):
        """Whatever an object's attributes do, it has a label, and what cannot be read is refused."""

        class Raises:
            def __getattr__(self, name):
                raise KeyError(name)

            @property
            def shape(self):
                raise OSError

        assert FitSpec(model="m", data=Raises()).summary().arguments["data"]["data"][1] == "Raises"

        class Refuses(dict):
            def keys(self):
                raise OSError("gone")

        with pytest.raises(FingerprintError, match="OSError: gone"):
            key([types.MappingProxyType(Refuses())])

    def test_what_holds_itself_many_times_ends(self, monkeypatch):
        """Shared nesting that no number stands for is given up, after a number of containers."""
        monkeypatch.setattr("warmstart.values._MAX_CONTAINERS", 2000)
        held = [1.0]
        held.append(held)
        for _ in range(40):
            held = [held, held]
        with pytest.raises(FingerprintError, match="million containers"):
            key(held)

    def test_a_summary_explains_without_the_values(self):
        """The summary that a store keeps finds the same differences."""
        one, two = spec(), spec(hyper={"alpha": 0.2})
        assert one.summary().explain(two.summary()) == one.explain(two)
        assert one.explain(two) == [Difference("hyper", "alpha", "0.1", "0.2")]
        assert SpecSummary({}).explain(one.summary())

    def test_environment_names_the_libraries(self):
        """What makes a final an answer: numpy, scipy, and Python's minor version."""
        assert re.fullmatch(r"numpy \S+ scipy \S+ python 3\.\d+", environment())


SCRIPT = '''
import sys, enum, dataclasses
import numpy as np
from warmstart import Fingerprinter, FitSpec
class C(enum.Enum):
    A = "a"
@dataclasses.dataclass
class P:
    x: object
    def area(self): return self.x
def helper(x):
    """Says."""
    return {1, "a", None} and x * SCALE if x in {"u", "v", "w"} else x
SCALE = {"b": 2.0, "a": {"x", "y", "z"}}
def fun(x):
    try:
        return [helper(v) for v in x if v in SCALE["a"]]
    except* ValueError:
        x = lambda: P
value = {"a": {1, "b", b"c", (1, "d"), C.A}, "f": fun, "p": P({"u", "v"}), "m": P(1).area,
         "n": np.arange(5.0), "t": frozenset("abcdef"), 7: type(P(1)), "e": ValueError("x")}
print(Fingerprinter().absorb("v", value).digest(),
      FitSpec(model={"fun": fun, "p": P(np.ones(3))}, settings={"x0": [1.0]}).key)
'''


class TestElsewhere:
    """The same key in any process."""

    def test_hash_seed_folder_path_and_optimization_do_not_count(self, tmp_path):
        """Scripts of any name in any folder, with any PYTHONHASHSEED, print one key."""
        found = set()
        for seed, folder, flags in (("0", "a", []), ("1", "b/c", []), ("2", "d", ["-B"]),
                                    ("random", "a", ["-s"])):  # fmt: skip
            place = tmp_path / folder
            place.mkdir(parents=True, exist_ok=True)
            script = place / f"s{seed}.py"
            script.write_text(SCRIPT if seed == "0" else "# a comment\n\n" + SCRIPT)
            done = subprocess.run(
                [sys.executable, *flags, str(script)],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=place, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found.add(done.stdout)
        assert len(found) == 1

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_forked_child_finds_the_same_keys(self):
        """After the parent hashed with several threads, its child hashes on and agrees."""
        big = np.arange(5_000_000.0)
        expected = key(big)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, bytes(key(big)))
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 32) == bytes(expected)
        os.close(read)
        os.close(write)

    def test_nothing_heavy_is_imported(self):
        """Importing and using the room imports no pandas, polars, or other library."""
        script = textwrap.dedent("""
            import sys
            import warmstart.fingerprint as f
            import numpy as np
            f.FitSpec(model=lambda x: x, data=[np.ones(3), {1: 2}])
            heavy = {"pandas", "polars", "sklearn", "matplotlib", "joblib"}
            print(sorted(heavy & set(sys.modules)))
        """)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.stdout.strip() == "[]"

    def test_threads_hash_at_once(self):
        """Eight threads that start together find what one finds alone."""
        values = [spec, {"a": [1, {2, 3}]}, Point(1.0), np.arange(1000.0), Color, key, Frozen]
        expected = [code_fingerprint(value) for value in values]
        start = threading.Barrier(8)
        wrong = []

        def work():
            start.wait()
            for _ in range(50):
                wrong.extend(v for v, k in zip(values, expected, strict=True) if key(v) != k)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
