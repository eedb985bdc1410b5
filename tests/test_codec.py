"""The codec: everything that scipy returns comes back bit for bit; no bytes do harm."""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import math
import struct
import threading
import tracemalloc
import warnings
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import scipy.optimize as so
import scipy.sparse as sp
import zstandard
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from warmstart.codec import ALIGNMENT, decode_payload, encode_payload
from warmstart.errors import CodecError

NAN_WITH_PAYLOAD = struct.unpack("<d", bytes.fromhex("efbeadde0000f4ff"))[0]
SIGNALING_NAN = struct.unpack("<d", bytes.fromhex("010000000000f07f"))[0]


def unpack(encoded):
    """Return what decodes: the tree as msgpack gives it back, the table, the body."""
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(encoded.tree))
    return tree, list(encoded.table), memoryview(b"".join(encoded.body))


def round_trip(value, dropped=()):
    encoded = encode_payload(value)
    assert encoded.dropped == tuple(dropped)
    return decode_payload(*unpack(encoded))


def array_bytes(array):
    raw = np.frombuffer(array.astype(array.dtype.newbyteorder("<")).tobytes(), np.uint8)
    if array.dtype.char in "gG":  # the padding of x87 numbers is no content
        return raw.reshape(-1, 16)[:, :10].tobytes()
    return raw.tobytes()


def parts_of(value):
    """Return the arrays and scalars of a value that is not a plain container."""
    if sp.issparse(value):
        if value.format == "dok":
            return [value.shape, value.dtype.str, [(k, v) for k, v in value.items()]]
        if value.format == "lil":
            return [value.shape, value.dtype.str, value.rows.tolist(), value.data.tolist()]
        names = {"coo": ("data", "coords"), "dia": ("data", "offsets")}
        names = names.get(value.format, ("data", "indices", "indptr"))
        return [value.shape, *(getattr(value, name) for name in names)]
    if isinstance(value, so.LbfgsInvHessProduct):
        return [value.sk, value.yk, value.rho, value.n_corrs, value.shape, value.dtype.str]
    if isinstance(value, so.Bounds):
        return [value.lb, value.ub, value.keep_feasible]
    if isinstance(value, np.ma.MaskedArray):
        mask = None if value.mask is np.ma.nomask else value.mask
        return [value.data, mask, np.asarray(value.fill_value), value.hardmask]
    return None


def assert_same(a, b, path="value"):
    """Fail unless both are of one type and equal bit for bit, memory order included."""
    assert type(a) is type(b), path
    parts = parts_of(a)
    if parts is not None:
        loose = sp.issparse(a) and a.format in {"dok", "lil"}
        for i, (x, y) in enumerate(zip(parts, parts_of(b), strict=True)):
            assert x == y if loose else assert_same(x, y, f"{path}.{i}") is None, f"{path}.{i}"
    elif isinstance(a, dict):
        assert len(a) == len(b), path
        for (k, x), (m, y) in zip(a.items(), b.items(), strict=True):
            assert_same(k, m, f"key {path}[{k!r:.30}]")
            assert_same(x, y, f"{path}[{k!r:.30}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        for order in ("c_contiguous", "f_contiguous"):
            assert getattr(b.flags, order) >= getattr(a.flags, order), path
        if a.dtype.kind == "O":
            assert_same(a.ravel().tolist(), b.ravel().tolist(), path)
        else:
            assert array_bytes(a) == array_bytes(b), path
    elif isinstance(a, (np.str_, np.bytes_)):
        assert (len(a), a) == (len(b), b), path
    elif isinstance(a, np.generic):
        assert a.dtype == b.dtype, path
        assert array_bytes(np.asarray(a)) == array_bytes(np.asarray(b)), path
    elif isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b), path
    elif isinstance(a, complex):
        assert_same((a.real, a.imag), (b.real, b.imag), path)
    else:
        assert a == b, path


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    children = parts_of(value)
    if children is None:
        if isinstance(value, dict):
            children = value.values()
        elif isinstance(value, (list, tuple)):
            children = value
        else:
            return
    for child in children:
        yield from arrays_in(child)


# What scipy returns

X0 = np.array([1.2, 0.9, 1.1])
BOX = [(-2.0, 2.0)] * 3
BALL = so.NonlinearConstraint(lambda x: x @ x, 0, 1.5)
PLANE = so.LinearConstraint(np.ones((1, 3)), -10, 1.0)
SPARSE_PLANE = so.LinearConstraint(sp.csr_array(np.ones((1, 3))), -10, 1.0)
MATRIX = np.random.default_rng(3).random((5, 3))
SQUARE = np.random.default_rng(4).random((4, 4))


def residuals(x):
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0], x[2]])


def jacobian(x):
    return np.array([[-20 * x[0], 10, 0], [-1, 0, 0], [0, 0, 1.0]])


def minimize(method, **more):
    known = {"jac": so.rosen_der, "hess": so.rosen_hess}
    if method in {"Nelder-Mead", "Powell", "COBYLA", "COBYQA"}:
        known = {}
    return lambda: so.minimize(so.rosen, X0, method=method, **known | more)


def bowl(method):
    return lambda: so.minimize(
        lambda x: x @ x, X0, method=method, jac=lambda x: 2 * x, hess=lambda x: 2 * np.eye(3)
    )


def least_squares(**more):
    return lambda: so.least_squares(residuals, X0, **more)


def curve_fit(**more):
    t = np.linspace(0, 1, 20)
    y = np.exp(-t) + 0.01 * np.sin(50 * t)
    return lambda: so.curve_fit(lambda t, a, b: a * np.exp(-b * t), t, y, **more)


def root(method):
    brief = {"maxiter": 2} if method.endswith("mixing") else {}
    start = np.array([0.1, 0.2, 0.4])
    return lambda: so.root(lambda x: x + 0.1 * np.sin(x) - 0.3, start, method=method, options=brief)


def root_scalar(method, **more):
    return lambda: so.root_scalar(lambda x: x**3 - 2, method=method, **more)


def linprog(method, **more):
    return lambda: so.linprog(
        [1, 2], A_ub=[[-1, -1]], b_ub=[-1], A_eq=[[1, -1]], b_eq=[0], method=method, **more
    )


DERIVATIVES = {"fprime": lambda x: 3 * x * x, "fprime2": lambda x: 6 * x}
RESULTS = {
    **{
        f"minimize-{method}": minimize(method)
        for method in (
            "Nelder-Mead",
            "Powell",
            "CG",
            "BFGS",
            "Newton-CG",
            "L-BFGS-B",
            "TNC",
            "COBYLA",
            "COBYQA",
            "SLSQP",
            "trust-constr",
            "trust-ncg",
            "trust-exact",
            "trust-krylov",
        )
    },
    "minimize-dogleg": bowl("dogleg"),
    **{
        f"constrained-{method}": minimize(method, constraints=[BALL, PLANE], bounds=BOX)
        for method in ("COBYLA", "COBYQA", "SLSQP", "trust-constr")
    },
    "trust-constr-quasi-newton": minimize("trust-constr", hess=so.BFGS(), constraints=BALL),
    "trust-constr-sparse": minimize(
        "trust-constr", hess=lambda x: sp.csr_array(so.rosen_hess(x)), constraints=SPARSE_PLANE
    ),
    "return_all-simplex": minimize("Nelder-Mead", options={"return_all": True}),
    "return_all-bfgs": minimize("BFGS", options={"return_all": True}),
    **{f"least_squares-{method}": least_squares(method=method) for method in ("trf", "dogbox")},
    "least_squares-lm": least_squares(method="lm"),
    "least_squares-lsmr": least_squares(jac_sparsity=np.ones((3, 3)), tr_solver="lsmr"),
    "least_squares-sparse": least_squares(jac=lambda x: sp.csr_matrix(jacobian(x))),
    **{
        f"curve_fit-{method}": curve_fit(method=method, full_output=True)
        for method in ("lm", "trf", "dogbox")
    },
    "curve_fit": curve_fit(),
    **{
        f"root-{method}": root(method)
        for method in (
            "hybr",
            "lm",
            "broyden1",
            "broyden2",
            "anderson",
            "diagbroyden",
            "krylov",
            "df-sane",
            "linearmixing",
            "excitingmixing",
        )
    },
    **{
        f"root_scalar-{method}": root_scalar(method, bracket=[0, 3])
        for method in ("bisect", "brentq", "brenth", "ridder", "toms748")
    },
    "root_scalar-newton": root_scalar("newton", x0=1.0, **DERIVATIVES),
    "root_scalar-halley": root_scalar("halley", x0=1.0, **DERIVATIVES),
    "root_scalar-secant": root_scalar("secant", x0=1.0, x1=2.0),
    "brentq-full": lambda: so.brentq(lambda x: x**3 - 2, 0, 3, full_output=True),
    **{
        f"minimize_scalar-{method}": functools.partial(
            so.minimize_scalar, lambda x: (x - 1) ** 2, method=method, **more
        )
        for method, more in (("brent", {}), ("golden", {}), ("bounded", {"bounds": (-2, 3)}))
    },
    "differential_evolution": lambda: so.differential_evolution(so.rosen, BOX, rng=1, maxiter=9),
    "differential_evolution-constrained": lambda: so.differential_evolution(
        so.rosen, BOX, rng=1, maxiter=3, constraints=BALL
    ),
    "dual_annealing": lambda: so.dual_annealing(so.rosen, BOX, rng=1, maxiter=9),
    "basinhopping": lambda: so.basinhopping(
        so.rosen, X0, niter=2, rng=1, minimizer_kwargs={"method": "L-BFGS-B"}
    ),
    "shgo": lambda: so.shgo(so.rosen, BOX),
    "direct": lambda: so.direct(so.rosen, BOX),
    **{f"linprog-{method}": linprog(method) for method in ("highs", "highs-ds", "highs-ipm")},
    "linprog-integer": linprog("highs", integrality=[1, 1]),
    "milp": lambda: so.milp(
        [1, 2], integrality=[1, 1], constraints=so.LinearConstraint([[1, 1]], 1, np.inf)
    ),
    "lsq_linear": lambda: so.lsq_linear(MATRIX, np.ones(5)),
    "lsq_linear-trf": lambda: so.lsq_linear(MATRIX, np.ones(5), (-1, 0.1), method="trf"),
    "lsq_linear-bvls": lambda: so.lsq_linear(MATRIX, np.ones(5), (-1, 0.1), method="bvls"),
    "lsq_linear-sparse": lambda: so.lsq_linear(sp.csr_array(MATRIX), np.ones(5), (-1, 0.1)),
    "brute": lambda: so.brute(lambda x: x @ x, BOX[:2], Ns=4, full_output=True),
    "quadratic_assignment-faq": lambda: so.quadratic_assignment(
        SQUARE, SQUARE.T, method="faq", options={"rng": 1}
    ),
    "quadratic_assignment-2opt": lambda: so.quadratic_assignment(
        SQUARE, SQUARE.T, method="2opt", options={"rng": 1}
    ),
    "isotonic_regression": lambda: so.isotonic_regression([1, 3, 2.0]),
    "leastsq": lambda: so.leastsq(residuals, X0, full_output=True),
    "fmin": lambda: so.fmin(so.rosen, X0, full_output=True, disp=0, retall=True),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_scipy_returns_comes_back_bit_for_bit(name):
    """Types, dtypes, memory order, keys and their order, bits: nothing lost, nothing shared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = RESULTS[name]()
    back = round_trip(result)
    assert_same(result, back)
    originals = list(arrays_in(result))
    for array in arrays_in(back):
        assert array.flags.owndata
        assert array.flags.writeable
        assert not any(np.shares_memory(array, original) for original in originals)


# Single values


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        10**5000,
        0.0,
        -0.0,
        math.inf,
        NAN_WITH_PAYLOAD,
        SIGNALING_NAN,
        complex(-0.0, NAN_WITH_PAYLOAD),
        "",
        "é∂🎲",
        "a\ud800b",
        b"",
        b"\0" * 5000,
        [],
        (),
        {},
        {1: 2, "1": 3, 1.5: 4, None: 5, (1, "a"): 6, True is None: 7, b"k": 8},
        {"b": 1, "a": 2, "\udc80": 3, "é": 4},
        so.OptimizeResult(),
        so.Bounds([0, 1.5], [2, 3], keep_feasible=[True, False]),
        np.str_("a\0"),
        np.str_("\ud800"),
        np.bytes_(b"a\0"),
        np.datetime64("NaT"),
        np.datetime64("2026-11-20T12", "25s"),
        np.timedelta64(5, "ns"),
        np.float64(SIGNALING_NAN),
        np.longdouble("1.1"),
        np.clongdouble(1 + 2j),
        *(kind(1) for kind in np.sctypeDict.values() if issubclass(kind, (np.number, np.bool))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_single_values_keep_type_and_bits(value):
    """Every scalar that numpy and Python have, at the edges of its range."""
    back = round_trip(value)
    if isinstance(value, (np.longlong, np.ulonglong)):
        assert back.dtype == value.dtype  # the same 64 bits under numpy's other name for them
    else:
        assert_same(value, back)


DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    *(">i4", ">f8", ">c16", ">g", "S3", "U3", ">U3", "M8[ns]", ">M8[3D]", "m8[us]", "M8"),
]
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3), (2, 3, 4), (1, 1), (2,) * 10]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_dtype_shape_and_memory_order(dtype, shape, order):
    """Every kind of number, text and time, in both byte orders, of any shape."""
    numbers = np.random.default_rng(1).integers(0, 2 if dtype == "?" else 100, shape)
    array = np.asarray(numbers).astype(dtype).copy(order)
    back = round_trip(array)
    assert_same(array, back)
    assert back.flags.owndata
    assert back.flags.writeable
    assert back.dtype.isnative is array.dtype.isnative


@pytest.mark.parametrize("view", ["[::2]", "[::-1]", "[:, 1]", "[1:, ::3]", ".T[:3]", ".real"])
def test_strided_views_come_back_as_their_values(view):
    """A view is stored as what it shows, not as what it looks into."""
    array = np.arange(120.0).reshape(10, 12) * (1 + 2j)
    seen = eval(f"array{view}", {"array": array})
    back = round_trip(seen)
    assert np.array_equal(back, seen)
    assert back.dtype == seen.dtype


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
@pytest.mark.parametrize("dtype", ["?", "b", "i8", "f", "d", "g", "F", "D"])
def test_sparse_of_every_format_comes_back(kind, form, dtype):
    """Format, class, dtype, index dtype and stored zeros."""
    dense = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 1, 0]]).astype(dtype)
    made = getattr(sp, f"{form}_{kind}")(dense)
    assert_same(made, round_trip(made))


def test_wide_indices_unsorted_and_doubled_entries_stay():
    """Nothing of a sparse matrix is tidied up, though scipy's constructor would."""
    made = sp.csr_array(np.eye(3))
    made.indices = np.array([2, 0, 0], np.int64)
    made.indptr = np.array([0, 3, 3, 3], np.int64)
    back = round_trip(made)
    assert_same(made, back)
    assert back.indices.dtype == np.int64
    wide = sp.coo_array(np.ones((2, 2, 2)))
    wide.coords = tuple(place.astype(np.int64) for place in wide.coords)
    assert_same(wide, round_trip(wide))
    for form in ("coo", "csr", "dok"):
        flat = getattr(sp, f"{form}_array")(np.array([0, 1.0, 2]))
        assert_same(flat, round_trip(flat))


@pytest.mark.parametrize("mask", [np.ma.nomask, [True, False], [False, False]], ids=str)
@pytest.mark.parametrize("hard", [False, True])
def test_masked_arrays_come_back_with_what_they_hide(mask, hard):
    """Data under the mask, the mask or its absence, the fill value and the hardness."""
    made = np.ma.MaskedArray([1.5, math.nan], mask, fill_value=7.0, hard_mask=hard)
    assert_same(made, round_trip(made))


@pytest.mark.parametrize("order", ["C", "F"])
def test_object_arrays_are_nested_nodes(order):
    """Items of an object array are payloads of their own; an unknown one becomes None."""
    made = np.empty((2, 3), object, order)
    made.ravel("K")[:] = 0
    made[0, 0], made[0, 1], made[1, 2] = np.ones(2), [1, {"a": (2,)}], np.array(5)
    assert_same(made, round_trip(made))
    made[1, 0] = object()
    assert round_trip(made, ["[3]"])[1, 0] is None


def test_a_curvature_with_a_zero_product_comes_back_silently():
    """LbfgsInvHessProduct divides in its constructor: rho is stored, no warning is raised."""
    with np.errstate(all="ignore"):
        made = so.LbfgsInvHessProduct(np.ones((2, 3)), np.zeros((2, 3)))
    assert_same(made, round_trip(made))


# What cannot be kept


class Color(enum.IntEnum):
    RED = 1


class Awkward:
    def __repr__(self):
        raise RuntimeError("no")


class Pair(NamedTuple):
    a: int
    b: int


UNKNOWN = {
    "function": print,
    "namedtuple": Pair(1, 2),
    "set": {1},
    "enum": Color.RED,
    "dict subclass": collections.OrderedDict(a=1),
    "array subclass": np.ones(2).view(np.recarray),
    "structured": np.zeros(2, [("a", "f8")]),
    "structured with objects": np.zeros(2, [("a", "O")]),
    "void": np.void(b"abc"),
    "generator": np.random.default_rng(1),
    "masked objects": np.ma.MaskedArray(np.array([1, None], object)),
    "masked constant": np.ma.masked,
    "awkward": Awkward(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_value_is_dropped_and_its_path_named(name):
    """Out of a dict, None in a sequence; alone it is refused by its type's name."""
    value = UNKNOWN[name]
    made = so.OptimizeResult(x=np.ones(2), hess=value, jac=[1, value], t=(value, {"k": value}))
    back = round_trip(made, ["hess", "jac[1]", "t[0]", "t[1].k"])
    assert_same(back, so.OptimizeResult(x=np.ones(2), jac=[1, None], t=(None, {})))
    with pytest.raises(CodecError, match="a payload is bytes or a tree"):
        encode_payload(value)


@pytest.mark.parametrize(
    "key",
    [object(), (1, object()), Awkward(), Color.RED],
    ids=["object", "tuple", "awkward", "enum"],
)
def test_an_unknown_key_takes_its_value_along(key):
    """A dict never comes back with another key than it had."""
    encoded = encode_payload({"a": 1, key: 2, "b": [3]})
    assert len(encoded.dropped) == 1
    assert decode_payload(*unpack(encoded)) == {"a": 1, "b": [3]}


def test_what_is_dropped_leaves_no_bytes():
    """A part that fails half-way takes its buffers back, and the others keep their numbers."""
    half = so.Bounds([0.0], [1.0])
    half.ub = object()
    encoded = encode_payload({"a": np.ones(3), "b": half, "c": np.zeros(2)})
    assert encoded.dropped == ("b",)
    assert len(encoded.table) == 8
    assert_same(decode_payload(*unpack(encoded)), {"a": np.ones(3), "c": np.zeros(2)})


def test_paths_are_text_that_utf8_can_hold():
    """Lone surrogates in a name, numbers of 5,000 digits and keys that raise are all named."""
    encoded = encode_payload({"\ud800": print, 10**5000: print, 7: print, "é": {"x": print}})
    assert encoded.dropped == (r"\ud800", "[int]", "[7]", "é.x")


def test_what_contains_itself_is_refused():
    """Cycles and trees that are too deep are errors, not crashes."""
    cycle = []
    cycle.append(cycle)
    ring = so.OptimizeResult(x=1)
    ring.self = {"deep": (ring,)}
    deep = 0
    for _ in range(70):
        deep = [deep]
    for value in (cycle, ring, deep):
        with pytest.raises(CodecError, match="64 deep"):
            encode_payload(value)


def test_what_doubles_with_every_level_is_refused():
    """A tree of shared lists has 2**50 items though it takes 50 lists: counted, not walked."""
    doubled = [1]
    for _ in range(50):
        doubled = [doubled, doubled]
    with pytest.raises(CodecError, match="single values"):
        encode_payload(doubled)


# Buffers


def noise(n):
    return np.frombuffer(np.random.default_rng(1).bytes(8 * n))


def smooth(n):
    return np.cumsum(np.random.default_rng(2).normal(size=n)) * 1e-3 + 100


def test_buffers_are_aligned_and_small_ones_raw():
    """Each buffer begins at a multiple of 16; below 4 KiB none is compressed."""
    encoded = encode_payload([np.zeros(n) for n in (1, 3, 0, 500)])
    table = np.reshape(encoded.table, (-1, 4))
    assert not (table[:, 0] % ALIGNMENT).any()
    assert not table[:, 3].any()


@pytest.mark.parametrize(
    ("array", "how"),
    [
        (noise(10_000), 0),
        (np.arange(10_000) % 50 + 0.5, 1),
        (smooth(10_000), 2),
        (np.random.default_rng(1).random(10_000).astype(np.float32).astype(float), 2),
        (np.zeros(1_000_000), 1),
        (b"word " * 1000, 1),
    ],
    ids=["noise", "repeated", "smooth", "single precision", "zeros", "text"],
)
def test_the_probe_chooses_what_pays(array, how):
    """Raw for noise, zstd for repetition, sorted bytes for smooth numbers; all come back."""
    encoded = encode_payload(array)
    _, stored, length, chosen = encoded.table
    assert chosen == how
    assert stored <= length
    assert length <= 1024 * stored
    assert_same(decode_payload(*unpack(encoded)), array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<i8"])
def test_compressed_arrays_keep_their_layout(order, dtype):
    """Both filters with both memory orders and byte orders."""
    for values in (smooth(10_000), np.arange(10_000) % 50):
        array = (1000 * values).reshape(100, 100).astype(dtype).copy(order)
        encoded = encode_payload({"a": array})
        assert encoded.table[3] != 0
        back = decode_payload(*unpack(encoded))["a"]
        assert_same(array, back)
        assert back.flags.owndata


def test_a_large_array_is_not_copied_to_encode_it():
    """The body of an incompressible array is a view of it."""
    array = noise(100_000)
    (body,) = encode_payload(array).body
    assert np.shares_memory(np.frombuffer(body, np.uint8), array)


def test_equal_extended_floats_give_equal_bytes():
    """The six bytes of padding in an x87 number are not content."""
    a = np.array([1.1, 2.2], np.longdouble)
    b = a.copy()
    if np.finfo(np.longdouble).nmant == 63:
        b.view(np.uint8).reshape(-1, 16)[:, 10:] = 0xAA
    assert unpack(encode_payload(a))[2] == unpack(encode_payload(b))[2]
    assert encode_payload(a[0]).tree == encode_payload(b[0]).tree


def test_threads_do_not_share_contexts_of_zstd():
    """Eight threads that encode and decode at once all get their own values back."""
    wrong = []

    def work(i):
        array = smooth(20_000) + i
        for _ in range(20):
            if not np.array_equal(round_trip(array), array):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Trees at will

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=8),
    st.binary(max_size=300),
    st.floats().map(np.float64),
    st.floats(width=32).map(np.float32),
    st.integers(-128, 127).map(np.int8),
    st.booleans().map(np.bool),
    st.text(max_size=4).map(np.str_),
)
arrays = st.builds(
    lambda shape, dtype, seed, order: (
        np.frombuffer(
            np.random.default_rng(seed).bytes(math.prod(shape) * np.dtype(dtype).itemsize), dtype
        )
        .reshape(shape)
        .copy(order)
    ),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(["<f8", ">f8", "<f4", "<i4", ">u2", "<c16", "<M8[s]", "S5"]),
    st.integers(0, 2**32),
    st.sampled_from("CF"),
)
keys = st.one_of(
    st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.tuples(st.integers())
)
trees = st.recursive(
    scalars | arrays,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
        st.dictionaries(st.text(max_size=5), children, max_size=4).map(so.OptimizeResult),
    ),
    max_leaves=20,
)


@seed(20261120)
@settings(deadline=None, max_examples=300)
@given(trees)
def test_any_tree_comes_back(tree):
    """Whatever can be built of known values comes back bit for bit, and is encoded one way."""
    encoded = encode_payload(tree)
    assert encoded.dropped == ()
    first, second = unpack(encoded), unpack(encode_payload(tree))
    assert msgspec.msgpack.encode(first[0]) == msgspec.msgpack.encode(second[0])
    assert first[1:] == second[1:]
    assert_same(tree, decode_payload(*first))


# Bytes that nobody encoded

F8 = [4, "<f8", 0, [1], 0]
ONE = [0, 8, 8, 0]


def refused(tree, table=(), body=b"", **more):
    with pytest.raises(CodecError) as caught:
        decode_payload(tree, list(table), memoryview(body), **more)
    return str(caught.value)


HOSTILE_TREES = {
    "a map": {"a": 1},
    "an ext": msgspec.msgpack.Ext(5, b"x"),
    "a map inside": [0, {"a": 1}],
    "no tag": [],
    "unknown tag": [20],
    "negative tag": [-1],
    "huge tag": [2**63],
    "tag True": [True],
    "tag float": [1.0],
    "tag list": [[0]],
    "tag str": ["array"],
    "key without value": [2, "a"],
    "key twice": [2, "a", 1, "a", 2],
    "key list": [2, [0], 1],
    "key dict": [2, [2], 1],
    "key array": [2, F8, 1],
    "big int of text": [6, "1"],
    "big int of nothing": [6],
    "complex of int": [7, 1, 2],
    "complex of one": [7, 1.0],
    "text of int": [15, 1],
    "text not utf-8": [15, b"\xff"],
    "float64 of str": [16, "1"],
    "float64 of two": [16, 1.0, 2.0],
    "np.str_ of str": [17, "a"],
    "np.bytes_ of str": [18, "a"],
    "scalar of no dtype": [5, "O", b"x" * 8],
    "scalar of a class": [5, "os.system", b"x" * 8],
    "scalar too short": [5, "<f8", b"x" * 7],
    "scalar of text": [5, "<U1", b"x" * 4],
    "scalar of list": [5, ["<f8"], b"x" * 8],
    "scalar bool of 2": [5, "|b1", b"\2"],
    "objects too few": [13, 0, [2], 1],
    "objects negative": [13, 0, [-1]],
    "objects shape of str": [13, 0, "ab", 1, 2],
    "objects flag": [13, True, [1], 1],
    "lbfgs of ints": [10, 1, 2, 3],
    "lbfgs of one": [10, F8],
    "bounds of ints": [14, 1, 2, True],
    "masked of ints": [12, 1, None, 1, False],
    "sparse of nothing": [11],
    "sparse of no format": [11, "xyz", True, [1, 1], F8],
    "sparse of lists": [11, "csr", True, [1, 1], [0], [0], [0]],
    "buffer of none": [3, 0],
    "buffer of str": [3, "0"],
    "buffer of two": [3, 0, 1],
}


@pytest.mark.parametrize("name", HOSTILE_TREES)
def test_hostile_trees_are_refused(name):
    """Every node of the wrong tag, number, type or value is a CodecError, also deep inside."""
    tree = HOSTILE_TREES[name]
    table, body = (ONE, bytes(16)) if type(tree) is list and F8 in tree else ((), b"")
    refused(tree, table, body)
    refused([0, [1, tree]], table, body)


HOSTILE_ARRAYS = {
    "dtype object": ["|O", 0, [1]],
    "dtype void": ["|V8", 0, [1]],
    "dtype structured": ["f8,i4", 0, [1]],
    "dtype of no size": ["|S0", 0, [1 << 40]],
    "dtype of odd size": ["<f7", 0, [1]],
    "dtype int": [8, 0, [1]],
    "dtype of another machine": ["<f16@112", 0, [1]],
    "dtype extended, unnamed": ["<f16", 0, [1]],
    "dtype unit": ["<M8[xx]", 0, [1]],
    "shape too small": ["<f8", 0, [0]],
    "shape too large": ["<f8", 0, [2]],
    "shape negative": ["<f8", 0, [-1, -1]],
    "shape overflows": ["<f8", 0, [2**32, 2**32]],
    "shape wraps to one": ["<f8", 0, [2**63, 2]],
    "shape bool": ["<f8", 0, [True]],
    "shape float": ["<f8", 0, [1.0]],
    "shape text": ["<f8", 0, ["ab", 1 << 40]],
    "shape nested": ["<f8", 0, [[0], 1 << 40]],
    "shape int": ["<f8", 0, 1],
    "65 dimensions": ["<f8", 0, [1] * 65],
    "flag bool": ["<f8", False, [1]],
    "flag 2": ["<f8", 2, [1]],
    "bool of 2": ["|b1", 0, [8]],
    "text beyond unicode": ["<U2", 0, [1]],
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(name):
    """Dtypes that are none, shapes that do not fit the buffer, items that are none."""
    refused([4, *HOSTILE_ARRAYS[name], 0], ONE, b"\xff" * 16)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [0, 2**80], [0] * 65], ids=str)
def test_empty_arrays_of_huge_shape_allocate_nothing(shape):
    """Whether numpy takes or refuses the shape, it costs no memory."""
    tracemalloc.start()
    try:
        array = decode_payload([4, "<f8", 0, shape, 0], [0, 0, 0, 0], memoryview(b""))
        assert array.size == 0
    except CodecError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "table",
    [
        [],
        [0, 8, 8],
        [0, 8, 8, 0, 0],
        [0, 8, 8, 3],
        [0, 8, 8, -1],
        [0, 8, 16, 0],
        [0, 16, 8, 0],
        [8, 8, 8, 0],
        [-16, 8, 8, 0],
        [0, 32, 32, 0],
        [0, -8, 8, 0],
        [0, 8, -8, 0],
        [0, 2**63, 8, 0],
        [0, 8, 2**63, 1],
        [0, 8, 8, 1],
        [0, 8, 8, 2],
        [0, 8, 8, 0, 16, 0, 0, 0],
    ],
    ids=str,
)
def test_hostile_tables_are_refused(table):
    """Buffers out of range, out of place, of another length, of an unknown filter, unused."""
    refused(F8, table, bytes(16))


def test_no_buffer_serves_twice():
    """One buffer named a million times would be a small record with a large value."""
    refused([0, F8, F8], ONE, bytes(16))
    refused([0, [4, "<f8", 0, [1], 1], F8], ONE * 2, bytes(16))
    refused([0, F8, [4, "<f8", 0, [1], 1]], [0, 8, 8, 0, 0, 8, 8, 0], bytes(16))
    refused(F8, ONE, bytes(32))


def test_a_bomb_is_refused_before_it_is_unpacked():
    """A frame of 6 KB that declares 200 MiB: by ratio, by a false length, by max_bytes."""
    size = 200 << 20
    frame = zstandard.ZstdCompressor(level=19).compress(bytes(size))
    assert len(frame) < 20_000
    body = frame.ljust(len(frame) + -len(frame) % 16, b"\0")
    padded = frame.ljust(size // 1024, b"\0")
    count = size // 8
    tracemalloc.start()
    refused([4, "<f8", 0, [count], 0], [0, len(frame), size, 1], body)
    refused([4, "<f8", 0, [1000], 0], [0, len(frame), 8000, 1], body)
    bomb = [4, "<f8", 0, [count], 0], [0, len(padded), size, 1], padded
    refused(*bomb, max_bytes=size - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_a_frame_that_hides_its_size_is_refused():
    """Without a declared size, zstd would say how much there is only by unpacking it."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8000))
    refused([4, "<f8", 0, [1000], 0], [0, len(frame), 8000, 1], frame.ljust(64, b"\0"))


def test_all_arrays_together_are_bounded():
    """max_bytes counts the sum, not the largest."""
    encoded = encode_payload([np.ones(100), np.ones(100)])
    assert len(decode_payload(*unpack(encoded), max_bytes=1600)) == 2
    with pytest.raises(CodecError, match="refused"):
        decode_payload(*unpack(encoded), max_bytes=1599)


def test_deep_and_wide_trees_are_refused():
    """Nesting beyond 64, and containers of more than two million items, in any tag."""
    for tag, rest in ((0, []), (1, []), (2, ["k"]), (8, ["k"]), (13, [0, [1]])):
        tree = 1
        for _ in range(70):
            tree = [tag, *rest, tree]
        assert "deep" in refused(tree)
    assert "single values" in refused([0] + [None] * (2 << 20 | 1))


def sparse_node(form, shape, *arrays):
    table, body, nodes = [], b"", []
    for array in map(np.asarray, arrays):
        raw = array.tobytes()
        nodes.append([4, array.dtype.str, 0, list(array.shape), len(table) // 4])
        table += [len(body), len(raw), len(raw), 0]
        body += raw + bytes(-len(raw) % 16)
    return [11, form, True, list(shape), *nodes], table, body


@pytest.mark.parametrize(
    ("form", "shape", "data", "indices", "indptr"),
    [
        ("csr", (2, 2), [1.0], [5], [0, 1, 1]),
        ("csr", (2, 2), [1.0], [-1], [0, 1, 1]),
        ("csr", (2, 2), [1.0], [0], [0, 9, 1]),
        ("csr", (2, 2), [1.0], [0], [0, -4, 1]),
        ("csr", (2, 2), [1.0], [0], [0, 1]),
        ("csr", (2**40, 1), [1.0], [0], [0, 1]),
        ("csr", (2, 2), [1.0], [0.0], [0, 1, 1]),
        ("csc", (2, 2), [1.0], [5], [0, 1, 1]),
        ("lil", (2, 2), [1.0], [5], [0, 1, 1]),
        ("lil", (2**40, 1), [1.0], [0], [0, 1]),
        ("bsr", (2, 2), [[[1.0]]], [7], [0, 1, 1]),
    ],
)
def test_sparse_indices_are_checked(form, shape, data, indices, indptr):
    """No index that leads outside is let in: the C++ of scipy follows them blindly."""
    refused(*sparse_node(form, shape, data, indices, indptr))


def test_rows_of_a_list_of_lists_are_paid_for():
    """A lil array takes 128 bytes a row in memory whatever its buffers take."""
    node = sparse_node("lil", (1000, 1), np.zeros(0), np.zeros(0, "i4"), np.zeros(1001, "i4"))
    tree, table, body = node
    made = decode_payload(tree, table, memoryview(body))
    assert made.shape == (1000, 1)
    refused(*node, max_bytes=10_000)


def test_masks_that_do_not_fit_are_refused():
    """A mask of another shape or type is a CodecError; numpy has an exception of its own."""
    numbers = [4, "<f8", 0, [2], 0]
    for mask in ([4, "|b1", 0, [3], 1], [4, "|i1", 0, [2], 1]):
        size = mask[3][0]
        table = [0, 16, 16, 0, 16, size, size, 0, 32, 8, 8, 0]
        refused([12, numbers, mask, [4, "<f8", 0, [], 2], False], table, bytes(48))


@seed(20261120)
@settings(deadline=None, max_examples=500)
@given(
    st.recursive(
        st.none()
        | st.integers(-2, 40)
        | st.binary(max_size=16)
        | st.floats()
        | st.sampled_from(["<f8", "|b1", "csr", "lil", "coo", "dok", "dia", "bsr"])
        | st.booleans(),
        lambda children: st.lists(children, max_size=6).map(
            lambda items: [abs(items[0]) % 19 if items and type(items[0]) is int else 0, *items[1:]]
        ),
        max_leaves=30,
    ),
    st.lists(st.integers(-1, 64), max_size=12),
    st.binary(max_size=64),
)
def test_any_tree_and_table_give_a_value_or_a_codec_error(tree, table, body):
    """Decoding is total: nodes put together at random raise nothing else."""
    with contextlib.suppress(CodecError):
        decode_payload(tree, table, memoryview(body))
