"""Records: what goes in comes out bit for bit, and any bytes give an entry or one error."""

from __future__ import annotations

import contextlib
import struct
import threading
import tracemalloc

import msgspec
import numpy as np
import pytest
import scipy.optimize as so
import scipy.sparse as sp
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from warmstart import ArgumentError, CodecError, Entry, EntryKind, Fingerprint, RecordError, Start
from warmstart.codec import decode_payload, encode_payload
from warmstart.errors import RecordVersionError
from warmstart.record import (
    HEAD_SIZE,
    decode_record,
    encode_record,
    producer_tag,
    read_head,
    seal,
    unseal,
)

KEY = Fingerprint(bytes(range(32)))
RUN = "0123456789abcdef" * 2


def entry(payload, **changes):
    options = {
        "key": KEY,
        "run": RUN,
        "kind": EntryKind.FINAL,
        "objective": 1.5,
        "iteration": 7,
        "nfev": 9,
        "producer": "numpy 2.0",
        "written": 1.75e9,
    }
    return Entry(payload=payload, **(options | changes))


def round_trip(payload):
    data, dropped = encode_record(entry(payload))
    back = decode_record(data, sequence=5)
    assert back.sequence == 5
    return back.payload, dropped


def same(one, other, path="payload"):
    """Assert equality of type, dtype, memory order and every bit."""
    assert type(one) is type(other), (path, type(one), type(other))
    if isinstance(one, np.ma.MaskedArray):
        same(np.asarray(one.data), np.asarray(other.data), path)
        same(np.ma.getmaskarray(one), np.ma.getmaskarray(other), path)
        same(np.asarray(one.fill_value), np.asarray(other.fill_value), path)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        assert one.dtype.str == other.dtype.str, path
        fortran = one.flags.f_contiguous and not one.flags.c_contiguous
        assert (other.flags.f_contiguous and not other.flags.c_contiguous) == fortran, path
        assert other.flags.writeable, path
        if one.dtype == object:
            same(one.ravel().tolist(), other.ravel().tolist(), path)
        elif one.dtype.char in "gG":
            np.testing.assert_array_equal(one, other)
        else:
            assert one.tobytes() == other.tobytes(), path
    elif isinstance(one, (sp.sparray, sp.spmatrix)):
        assert (one.format, one.shape, one.dtype) == (other.format, other.shape, other.dtype), path
        a, b = one.tocoo(), other.tocoo()
        same(a.data, b.data, path)
        same(list(a.coords), list(b.coords), path)
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{path}[{i}]")
    elif isinstance(one, so.LbfgsInvHessProduct):
        for name in ("sk", "yk", "rho", "n_corrs", "shape", "dtype"):
            same(getattr(one, name), getattr(other, name), f"{path}.{name}")
    elif isinstance(one, so.Bounds):
        same([one.lb, one.ub, one.keep_feasible], [other.lb, other.ub, other.keep_feasible], path)
    elif isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", other), path
    elif isinstance(one, complex):
        same([one.real, one.imag], [other.real, other.imag], path)
    elif isinstance(one, np.longdouble):
        assert one == other or (np.isnan(one) and np.isnan(other)), path
    elif isinstance(one, np.generic):
        assert one.dtype == other.dtype, path
        assert one.tobytes() == other.tobytes(), path
    else:
        assert one == other, path


PLAIN = [
    None, True, 0, -1, 2**63 - 1, -(2**63), 2**63, -(2**200), 1.5, -0.0, float("nan"),
    struct.unpack("<d", b"\1\2\3\4\5\6\xf8\x7f")[0], 1 - 2j, "", "é", "a\ud800b", b"", b"x", b"x" * 5000,
    [], (), {}, [1, (2, [3])], {"a": 1, 2: "b", None: 3, (1, "x"): 4, 1.5: 5, b"k": 6, True: 7},
    np.float16(1.5), np.float32(1.5), np.float64(-0.0), np.longdouble("1.1"), np.complex64(1j),
    np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.str_("é"), np.bytes_(b"x"),
    np.datetime64("2020-01-01"), np.datetime64("NaT"), np.timedelta64(3, "ns"), np.str_(""),
    np.array(3.0), np.array([]), np.zeros((0, 3)), np.zeros((3, 0), order="F"), np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(24.0).reshape(2, 3, 4).T,
    np.array([1, 2], dtype=">i4"), np.array([1.5], dtype=">f8"), np.array(["a", "bc"]), np.array([b"a", b"bc"]),
    np.array(["a"], dtype=">U3"), np.array([True, False]), np.array([1 + 2j], dtype="c8"),
    np.array(["2020", "NaT"], dtype="M8[D]"), np.array([1.1, np.nan, np.inf], dtype=np.longdouble),
    np.array([None, "a", 1.5, np.arange(2)], dtype=object), np.array([[1, None]], dtype=object),
    np.array([], dtype="U0"), np.ma.masked_array([1.0, 2.0], [True, False], fill_value=7.0),
    np.ma.masked_array([1, 2]), so.Bounds([0.0, 1.0], np.inf, keep_feasible=True),
    np.zeros(200_000), np.linspace(0.0, 1.0, 50_000), np.random.default_rng(0).random(20_000),
    np.random.default_rng(0).integers(0, 9, (300, 300)), np.repeat(np.arange(9, dtype="i2"), 9000),
]  # fmt: skip
SPARSE = [
    getattr(sp, f"{form}_{kind}")(np.array([[1.0, 0, 2], [0, 0, 3]]))
    for form in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for kind in ("array", "matrix")
]


class TestRoundTrip:
    """What a payload may hold."""

    @pytest.mark.parametrize(
        "payload", PLAIN + SPARSE, ids=lambda v: f"{type(v).__name__} {v!r:.30}"
    )
    def test_values(self, payload):
        """Every supported value comes back with the same type, dtype, order and bits."""
        back, dropped = round_trip(payload)
        same(payload, back)
        assert dropped == ()

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.complex_numbers()
            | st.text(max_size=5)
            | st.binary(max_size=5)
            | hnp.arrays(
                hnp.scalar_dtypes().filter(lambda d: d.char not in "gG"),
                hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
            ),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.lists(inner, max_size=3).map(tuple)
                | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(so.OptimizeResult)
            ),
            max_leaves=10,
        )
    )
    def test_trees(self, payload):
        """Any tree of supported values comes back equal."""
        back, dropped = round_trip(payload)
        same(payload, back)
        assert dropped == ()

    def test_arrays_are_the_readers_own(self):
        """Decoded arrays own their memory: writing to one changes no other and no record."""
        data, _ = encode_record(entry([np.arange(3.0), np.arange(3.0)]))
        first = decode_record(data).payload
        first[0][:] = 9.0
        same(decode_record(data).payload, [np.arange(3.0), np.arange(3.0)])

    def test_the_entry_comes_back_whole(self):
        """All attributes of an entry survive, and NaN as an objective is unknown."""
        start = Start("near", run="f" * 32, level="family", distance=0.25)
        for made in (
            entry(b"x", start=start),
            entry(b"x", objective=None, iteration=None, nfev=None, kind=EntryKind.CHECKPOINT),
        ):
            assert decode_record(encode_record(made)[0]) == made
        for bad in (np.nan, np.inf, -np.inf):
            assert decode_record(encode_record(entry(b"x", objective=bad))[0]).objective is None

    def test_the_head_says_what_the_record_says(self):
        """Kind, objective, time and producer can be read from the first bytes alone."""
        data, _ = encode_record(entry(np.arange(100.0)))
        head = read_head(data[:HEAD_SIZE])
        assert (head.kind, head.objective, head.written) == (EntryKind.FINAL, 1.5, 1.75e9)
        assert head.producer_tag == producer_tag("numpy 2.0")
        assert read_head(encode_record(entry(b"", objective=None))[0]).objective is None

    def test_compressible_arrays_shrink_and_others_do_not_grow(self):
        """Zstd is used where a sample pays, and nowhere else."""
        rng = np.random.default_rng(0)
        noise, smooth = rng.random(100_000), np.cumsum(np.repeat(rng.random(1000), 100))
        assert len(encode_record(entry(noise))[0]) <= noise.nbytes + 512
        assert len(encode_record(entry(smooth))[0]) < 0.6 * smooth.nbytes
        assert len(encode_record(entry(np.ones(10)))[0]) < 400


def rosen_results():
    quadratic = {"jac": lambda x: 2 * (x - 1), "hess": lambda x: 2 * np.eye(2)}

    def bowl(x):
        return float(((x - 1) ** 2).sum())

    for method in (
        "Nelder-Mead",
        "Powell",
        "CG",
        "BFGS",
        "L-BFGS-B",
        "TNC",
        "COBYLA",
        "COBYQA",
        "SLSQP",
    ):
        yield method, lambda m=method: so.minimize(so.rosen, [1.3, 0.7], method=m)
    for method in (
        "Newton-CG",
        "dogleg",
        "trust-ncg",
        "trust-exact",
        "trust-krylov",
        "trust-constr",
    ):
        yield method, lambda m=method: so.minimize(bowl, [1.3, 0.7], method=m, **quadratic)
    yield (
        "trust-constr with constraints",
        lambda: so.minimize(
            so.rosen,
            [0.3, 0.7],
            method="trust-constr",
            hess=so.BFGS(),
            constraints=so.LinearConstraint(sp.csr_matrix([[1, 1]]), -1, 1),
        ),
    )
    for method in ("trf", "dogbox", "lm"):
        yield (
            f"least_squares {method}",
            lambda m=method: so.least_squares(lambda x: x - 1, [1.0, 2], method=m),
        )
    x = np.arange(5.0)
    for full in (False, True):
        yield (
            f"curve_fit {full}",
            lambda full=full: so.curve_fit(
                lambda x, a, b: a * x + b, x, x + x % 2, full_output=full
            ),
        )
    yield "leastsq", lambda: so.leastsq(lambda p: p - 1, [1.0, 2.0], full_output=True)
    for method in (
        "hybr",
        "lm",
        "broyden1",
        "broyden2",
        "anderson",
        "linearmixing",
        "diagbroyden",
        "excitingmixing",
        "krylov",
        "df-sane",
    ):
        yield (
            f"root {method}",
            lambda m=method: so.root(lambda x: 0.5 * x - 1, [1.0, 1.0], method=m),
        )
    box = [(0, 2)] * 2
    yield "root_scalar", lambda: so.root_scalar(lambda x: x * x - 2, bracket=[0, 3])
    yield "minimize_scalar", lambda: so.minimize_scalar(lambda x: x * x)
    yield (
        "differential_evolution",
        lambda: so.differential_evolution(so.rosen, box, maxiter=3, rng=1),
    )
    yield "dual_annealing", lambda: so.dual_annealing(so.rosen, box, maxiter=3, rng=1)
    yield "basinhopping", lambda: so.basinhopping(so.rosen, [1.0, 1.0], niter=2, rng=1)
    yield "shgo", lambda: so.shgo(so.rosen, box)
    yield "direct", lambda: so.direct(so.rosen, box)
    yield "brute", lambda: so.brute(so.rosen, ((0, 1), (0, 1)), full_output=True, Ns=3, finish=None)
    yield "linprog", lambda: so.linprog([1, 2], A_ub=[[1, 1]], b_ub=[1])
    yield "milp", lambda: so.milp([1, 2])
    yield "lsq_linear", lambda: so.lsq_linear(np.eye(2), [1, 2])
    yield "quadratic_assignment", lambda: so.quadratic_assignment(np.eye(3), np.eye(3))


class TestScipyResults:
    """Everything that scipy puts into its results."""

    @pytest.mark.filterwarnings(
        "ignore::RuntimeWarning",
        "ignore::FutureWarning",
        "ignore::scipy.optimize.OptimizeWarning",
        "ignore::UserWarning",
    )
    @pytest.mark.parametrize(
        ("name", "make"), list(rosen_results()), ids=lambda v: v if isinstance(v, str) else ""
    )
    def test_results_come_back_bit_for_bit(self, name, make):
        """The result of each optimizer and method survives, with nothing dropped."""
        result = make()
        if name == "COBYLA":  # a view of its own workspace, of which only the values are kept
            result.x = np.ascontiguousarray(result.x)
        back, dropped = round_trip(result)
        same(result, back)
        assert dropped == ()


class TestDropping:
    """What is not known is left out and named."""

    def test_paths_of_what_is_dropped(self):
        """Unknown values vanish from dicts, become None in sequences, and are named."""
        lock = threading.Lock()
        payload = {
            "x": np.ones(2),
            "hess": lock,
            "list": [1, lock, 3],
            "deep": {"inner": (lock,)},
            5: lock,
            "structured": np.zeros(2, [("a", "f8")]),
        }
        back, dropped = round_trip(payload)
        assert dropped == ("hess", "list[1]", "deep.inner[0]", "[5]", "structured")
        same(back, {"x": np.ones(2), "list": [1, None, 3], "deep": {"inner": (None,)}})
        assert decode_record(encode_record(entry(payload))[0]).dropped == dropped

    def test_an_unknown_payload_is_refused(self):
        """A payload that as a whole cannot be kept raises, and says what can."""
        for payload in (object(), threading.Lock(), {1, 2}, np.zeros(2, [("a", "f8")])):
            with pytest.raises(CodecError, match="tree of arrays"):
                encode_record(entry(payload))

    def test_a_payload_in_itself_is_refused(self):
        """Cycles and bottomless nesting raise instead of never ending."""
        loop: list = []
        loop.append(loop)
        with pytest.raises(CodecError, match="nested more than"):
            encode_record(entry(loop))

    @pytest.mark.parametrize(
        "changes",
        [
            {"key": b"x" * 32},
            {"run": "abc"},
            {"run": "A" * 32},
            {"kind": "final"},
            {"objective": "small"},
            {"iteration": 1.5},
            {"nfev": "3"},
            {"producer": None},
            {"start": "cold"},
            {"written": None},
            {"dropped": ["a"]},
        ],
    )
    def test_wrong_attributes_are_refused(self, changes):
        """An entry with an attribute of the wrong type is not written."""
        with pytest.raises(ArgumentError, match=next(iter(changes))):
            encode_record(entry(b"x", **changes))
        with pytest.raises(ArgumentError, match="source"):
            Start("elsewhere")


SMALL, _ = encode_record(entry({"x": np.arange(4.0), "n": 3, "t": (1, "a")}))


def forge(tree=None, table=(), body=b"", header=None, **prefix):
    """Return a record with a right digest around whatever is given."""
    if header is None:
        header = msgspec.msgpack.encode(
            [
                KEY.digest,
                bytes(16),
                None,
                None,
                "",
                ("cold", None, None, None),
                [],
                list(table),
                tree,
            ]
        )
    fields = {
        "magic": b"WSrc",
        "version": 1,
        "kind": 2,
        "flags": 1,
        "objective": 0.0,
        "written": 0.0,
    } | prefix
    head = struct.pack(
        "<4sHBBdd8sIIQ",
        *fields.values(),
        producer_tag(""),
        len(header),
        0,
        len(body),
    )
    data = head + header + bytes(-(len(head) + len(header)) % 16) + body
    return data + blake3(data).digest()


class TestTotal:
    """Any bytes give an entry or one typed error."""

    def test_every_truncation(self):
        """A record cut anywhere is refused."""
        for length in range(len(SMALL)):
            with pytest.raises(RecordError):
                decode_record(SMALL[:length])
        with pytest.raises(RecordError):
            decode_record(SMALL + b"\0")

    def test_every_bit_flip(self):
        """A record with any one bit flipped is refused."""
        for place in range(len(SMALL)):
            for bit in range(8):
                data = bytearray(SMALL)
                data[place] ^= 1 << bit
                with pytest.raises(RecordError):
                    decode_record(bytes(data))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.binary(max_size=300))
    def test_random_bytes(self, data):
        """Random bytes are no record, with or without its first bytes."""
        for junk in (data, SMALL[:HEAD_SIZE] + data):
            with pytest.raises(RecordError):
                decode_record(junk)

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-3, 20)
            | st.floats()
            | st.text(max_size=3)
            | st.binary(max_size=9)
            | st.sampled_from(
                ["<f8", "|b1", ">i4", "<U2", "|S1", "<M8[s]", "|O8", "csr", "dok", "f"]
            ),
            lambda inner: (
                st.lists(inner, max_size=6)
                | st.tuples(st.integers(0, 16), inner, inner, inner, inner).map(list)
                | st.dictionaries(st.text(max_size=2), inner, max_size=2)
            ),
            max_leaves=12,
        ),
        st.lists(st.integers(-1, 40), max_size=8),
    )
    def test_forged_trees(self, tree, table):
        """Any tree and table under a right digest give a payload or `RecordError`."""
        with contextlib.suppress(RecordError):
            decode_record(forge(tree, table, bytes(48)))

    @pytest.mark.parametrize(
        ("tree", "table"),
        [
            ([99], []),
            ([-1], []),
            (["list"], []),
            ([True, 1], []),
            ([4, "<f8", 0, [2], 0], []),
            ([4, "<f8", 0, [2], 0], [0, 16, 17, 0]),
            ([4, "<f8", 0, [3], 0], [0, 16, 16, 0]),
            ([4, "<f8", 0, [2**61, 8], 0], [0, 16, 16, 0]),
            ([4, "<f8", 0, [0, 2**61], 0], [0, 0, 0, 0]),
            ([4, "<f8", 0, [-2], 0], [0, 16, 16, 0]),
            ([4, "<f8", 0, [2], 0], [40, 16, 16, 0]),
            ([4, "<f8", 0, [2], 0], [-16, 16, 16, 0]),
            ([4, "<f8", 0, [2], 0], [0, 16, 16, 7]),
            ([4, "<f8", 0, [2], 0], [0, 16, 16]),
            ([4, "|O8", 0, [2], 0], [0, 16, 16, 0]),
            ([4, "<V8", 0, [2], 0], [0, 16, 16, 0]),
            ([4, "float64; import os", 0, [2], 0], [0, 16, 16, 0]),
            ([4, "<f7", 0, [2], 0], [0, 16, 16, 0]),
            ([4, "<f8", 0, [1] * 100, 0], [0, 8, 8, 0]),
            ([5, "<f8", b"1234567"], []),
            ([2, "a"], []),
            ([2, [0], 1], []),
            ([9, 1, 2], []),
            ([10, 1], []),
            ([11, "csr", True, [2, 2], 1, 2, 3], []),
            ([11, "os", True, [2, 2]], []),
            ([13, [5], 1], []),
            ([13, [2**40]], []),
            ([15, 5], []),
        ],
    )
    def test_hostile_nodes(self, tree, table):
        """Nodes that no encoder writes are refused, whatever they declare."""
        with pytest.raises(RecordError):
            decode_record(forge(tree, table, bytes(48)))

    def test_deep_nesting(self):
        """A tree nested a million deep is refused without a crash."""
        depth = 1_000_000
        header = msgspec.msgpack.encode(
            [KEY.digest, bytes(16), None, None, "", ("cold", None, None, None), [], []]
        )
        header = b"\x99" + header[1:] + b"\x91" * depth + b"\xc0"
        with pytest.raises(RecordError):
            decode_record(forge(header=header))

    @pytest.mark.parametrize(
        "bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    )
    def test_declared_counts_allocate_nothing(self, bomb):
        """A header that declares four billion items costs no memory."""
        header = msgspec.msgpack.encode(
            [KEY.digest, bytes(16), None, None, "", ("cold", None, None, None), [], []]
        )
        data = forge(header=b"\x99" + header[1:] + bomb)
        tracemalloc.start()
        try:
            with pytest.raises(RecordError):
                decode_record(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    def test_a_zstd_bomb_is_refused(self):
        """A frame of some 6 KB that declares 200 MiB is refused before anything is allocated."""
        bomb = zstandard.ZstdCompressor(level=1).compress(bytes(200 << 20))
        assert len(bomb) < 30_000
        tree = [4, "<f8", 0, [25 << 20], 0]
        data = forge(tree, [0, len(bomb), 200 << 20, 1], bomb)
        tracemalloc.start()
        try:
            with pytest.raises(RecordError, match="refused"):
                decode_record(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        # and one that declares little and would unpack to much
        data = forge([4, "<f8", 0, [100], 0], [0, len(bomb), 800, 1], bomb)
        with pytest.raises(RecordError, match="two lengths"):
            decode_record(data)

    def test_what_the_encoder_would_not_compress_so_far_it_keeps_raw(self):
        """Zeros that shrink more than a reader would believe are stored as they are."""
        zeros = np.zeros(1 << 20)
        data, _ = encode_record(entry(zeros))
        same(decode_record(data).payload, zeros)

    def test_the_reader_may_set_a_limit(self):
        """A payload larger than `max_bytes` is refused."""
        data, _ = encode_record(entry(np.arange(1000.0)))
        with pytest.raises(RecordError, match="refused"):
            decode_record(data, max_bytes=7999)
        decode_record(data, max_bytes=8000)

    def test_a_newer_version_is_told_apart(self):
        """A record of a later format raises its own error, so that nobody deletes it."""
        with pytest.raises(RecordVersionError, match="upgrade"):
            decode_record(forge(version=2))
        with pytest.raises(RecordVersionError):
            read_head(forge(version=2))
        for wrong in (
            {"version": 0},
            {"kind": 3},
            {"flags": 2},
            {"magic": b"XXXX"},
            {"objective": np.nan},
        ):
            with pytest.raises(RecordError):
                read_head(forge(**wrong))

    def test_the_schema_is_closed(self):
        """A header with a field too many, too few or of another type is refused."""
        fields = [KEY.digest, bytes(16), None, None, "", ("cold", None, None, None), [], [], None]
        for header in (fields[:-1], [*fields, 1], [1, *fields[1:]], fields[::-1], {}, 5):
            with pytest.raises(RecordError):
                decode_record(forge(header=msgspec.msgpack.encode(header)))
        for start in (("x", None, None, None), ("cold", None, None), ("cold", "text", None, None)):
            forged = [*fields[:5], start, *fields[6:]]
            with pytest.raises(RecordError):
                decode_record(forge(header=msgspec.msgpack.encode(forged)))

    def test_payloads_decode_without_a_record(self):
        """The codec stands by itself."""
        made = encode_payload([np.arange(3.0), "a"])
        same(
            decode_payload(
                msgspec.msgpack.decode(msgspec.msgpack.encode(made.tree)),
                made.table,
                memoryview(b"".join(made.body)),
            ),
            [np.arange(3.0), "a"],
        )


class TestGolden:
    """The format is a promise."""

    CHECKPOINT = (
        "5753726301000101000000000000f83f00000060b813da41f0668fe94de1488d5e0000000000000010000000"
        "0000000099c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc410012345"
        "6789abcdef0123456789abcdef07c0a96e756d707920322e3094a4636f6c64c0c0c09094001010009302a178"
        "9504a33c6638009102000000000000000000f03f00000000000004c02905992106fccacd3c272f5bf3463614"
        "5bad802f3748081f08d1501f44b25468"
    )
    FINAL = (
        "5753726301000201000000000000f83f00000060b813da41f0668fe94de1488ddc0000000000000020000000"
        "0000000099c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc410012345"
        "6789abcdef0123456789abcdef0709a96e756d707920322e3094aa636865636b706f696e74c4100123456789"
        "abcdef0123456789abcdefa56578616374cb0000000000000000909800080800101010009702a6726573756c"
        "749b08a1789504a33c663800910100a366756e9305a33c6638c408000000000000e03fa773756363657373c3"
        "a36e697403a76d657373616765a26f6ba16e9206c409000000000000000040a56f726465729504a33c693401"
        "9202020100000000000000000000f03f0000000000000000010000000000000000000000010000005f3dc81f"
        "7077dc06dd8b0d7ad883e94f75efb5e8f50b92695e1e0d228b3f367d"
    )

    @staticmethod
    def checkpoint():
        return entry({"x": np.array([1.0, -2.5])}, kind=EntryKind.CHECKPOINT, nfev=None)

    @staticmethod
    def final():
        result = so.OptimizeResult(
            x=np.array([1.0]), fun=np.float64(0.5), success=True, nit=3, message="ok"
        )
        return entry(
            {"result": result, "n": 2**70, "order": np.asfortranarray(np.eye(2, dtype="i4"))},
            start=Start("checkpoint", run=RUN, level="exact", distance=0.0),
        )

    @pytest.mark.parametrize("name", ["checkpoint", "final"])
    def test_bytes_do_not_change(self, name):
        """What this version writes is pinned, and is read back equal."""
        made, golden = getattr(self, name)(), getattr(self, name.upper())
        data, _ = encode_record(made)
        assert data.hex() == golden
        back = decode_record(bytes.fromhex(golden))
        same(back.payload, made.payload)
        assert (back.run, back.start, back.kind) == (made.run, made.start, made.kind)


class TestSeal:
    """Small rows with a digest behind them."""

    def test_only_what_was_sealed_is_unsealed(self):
        """A flipped bit or a cut is noticed."""
        sealed = seal(b"body")
        assert unseal(sealed) == b"body"
        for place in range(len(sealed)):
            damaged = bytearray(sealed)
            damaged[place] ^= 1
            with pytest.raises(RecordError):
                unseal(bytes(damaged))
            with pytest.raises(RecordError):
                unseal(sealed[:place])
