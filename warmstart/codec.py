"""Payloads: trees of arrays and scalars to bytes, and back bit for bit.

A payload becomes a *tree* and *buffers*. None, bool, 64-bit int, float, str and bytes stand in
the tree as msgpack has them; all else is a *node*, an array whose first item is a number below.
Nothing is ever looked up by a stored name, and a number that is not in the table is an error.

====  =====================  ===================================================================
tag   value                  what follows the tag
====  =====================  ===================================================================
0, 1  list, tuple            items
2     dict                   key, value, key, value, in insertion order
3     long bytes             buffer
4     array                  dtype, 1 if in Fortran order else 0, shape, buffer
5     numpy scalar           dtype, bytes
6     int beyond 64 bits     two's complement, little-endian
7     complex                real, imaginary
8, 9  OptimizeResult,        as 2
      RootResults
10    LbfgsInvHessProduct    sk, yk, rho
11    scipy.sparse           format, whether an array (or a matrix), shape, its parts
12    masked array           data, mask or None, fill value, whether the mask is hard
13    array of objects       1 if in Fortran order else 0, shape, items in C order
14    Bounds                 lb, ub, keep_feasible
15    str with surrogates    UTF-8, surrogates passed
16    np.float64             float
17    np.str_                as 15
18    np.bytes_              bytes
19    results of scipy's     as 2
      elementwise functions
====  =====================  ===================================================================

The *table* has four numbers for a buffer: offset, stored length, length, filter (0 raw, 1 zstd,
2 the bytes of 8-byte items sorted by their place in the item, then zstd). Buffers follow each
other in the order in which the tree names them, each once, zeros between them up to a multiple
of 16. A dtype is numpy's ``dtype.str``; the extended floats, which differ between machines in
more than size, have ``@`` and the bits of their mantissa behind it.

References
----------
msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md; Zstandard: RFC 8878; dtypes:
the array interface of numpy; sorting bytes: the shuffle filter of HDF5.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import zstandard
from scipy.optimize import Bounds, LbfgsInvHessProduct, OptimizeResult, RootResults

from warmstart.errors import CodecError

__all__ = [
    "ALIGNMENT",
    "MAX_DECODED",
    "Encoded",
    "RichResult",
    "decode_payload",
    "encode_payload",
]

RichResult: Any = OptimizeResult.__base__
"""What all results of scipy.optimize are; it has no public name."""
ALIGNMENT = 16
"""Buffers begin at multiples of so many bytes."""
MAX_DECODED = 1 << 34
"""Bytes that the arrays of one payload may have."""
_MAX_DEPTH = 64
_MAX_NODES = 1 << 20
"""Items of containers, all together: [a, a] of [a, a] of ... would double with every level."""
_MAX_RATIO = 1024
"""Lengths per stored length: what a small record can make a reader allocate."""
_INLINE_BYTES = 256
_COMPRESS_FROM = 4096
_SAMPLE = 65536
_WORTH = 0.9
_LIL_ROW = 128  # bytes that Python takes for a row of a lil array: two lists, two references

(_LIST, _TUPLE, _DICT, _BUFFER, _ARRAY, _SCALAR, _BIG_INT, _COMPLEX, _RESULT) = range(9)
_ROOT_RESULTS, _LBFGS, _SPARSE, _MASKED, _OBJECTS = range(9, 14)
_BOUNDS, _TEXT, _FLOAT64, _STR_, _BYTES_, _RICH = range(14, 20)
_RAW, _ZSTD, _SHUFFLED = range(3)

_INT64 = range(-(1 << 63), 1 << 63)
_PADDING = [bytes(n) for n in range(ALIGNMENT)]
_DTYPE = re.compile(
    r"(?P<name>[<>|](?:[biufc]\d{1,2}|[SU][1-9]\d{0,7}"
    r"|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?))(?:@(?P<bits>\d{1,3}))?"
)
_EXTENDED_BITS = int(np.finfo(np.longdouble).nmant)
_X87 = 63  # its mantissa: 10 bytes of value, the rest is whatever was there
_thread = threading.local()  # contexts of zstandard must not be shared between threads


class Encoded(NamedTuple):
    """An encoded payload.

    Parameters
    ----------
    tree : object
        For msgpack.
    table : list of int
        For each buffer its offset, stored length, length and filter.
    body : list of bytes-like
        The buffers with the padding behind each; large ones are views of the payload's arrays.
    dropped : tuple of str
        Paths of what could not be kept.
    """

    tree: Any
    table: list[int]
    body: list[Any]
    dropped: tuple[str, ...]


class _UnknownError(Exception):
    """A value of a type that is not in the table."""


def encode_payload(payload: Any) -> Encoded:
    """Encode a payload.

    Parameters
    ----------
    payload : object
        None, numbers of any kind, str, bytes, lists, tuples, dicts, numpy scalars and arrays
        (no structured ones), masked arrays, scipy.sparse arrays and matrices, OptimizeResult
        and what scipy puts into it, nested at will.

    Returns
    -------
    Encoded
        A part of another type is left out (in a sequence None takes its place) and its path
        is named in ``dropped``. Subclasses are other types.

    Raises
    ------
    CodecError
        If the payload itself is of another type, contains itself, is nested more than 64
        deep, or has more than a million items that are not in arrays.

    Notes
    -----
    About 5 us for an OptimizeResult of 10 parameters. Large contiguous arrays are not copied.
    Buffers of 4 KiB and more are compressed where a sample of 64 KiB shrinks by a tenth or
    more. Safe in threads, as long as nobody changes the payload meanwhile.

    Examples
    --------
    >>> encode_payload({"nit": 3, "callback": print}).dropped
    ('callback',)
    """
    writer = _Writer()
    try:
        tree = writer.node(payload, "", 0)
    except _UnknownError as error:
        raise CodecError(
            f"a payload is bytes or a tree of arrays, numbers and strings (in dicts, lists, tuples "
            f"or an OptimizeResult), not {error}: convert it first"
        ) from None
    return Encoded(tree, writer.table, writer.body, tuple(writer.dropped))


class _Writer:
    __slots__ = ("body", "dropped", "end", "left", "table")

    def __init__(self) -> None:
        self.table: list[int] = []
        self.body: list[Any] = []
        self.dropped: list[str] = []
        self.end = 0
        self.left = _MAX_NODES

    def node(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind in _NATIVE:
            return value
        encode = _WRITERS.get(kind)
        if encode is None:
            raise _UnknownError(f"{kind.__module__}.{kind.__qualname__}")
        if depth > _MAX_DEPTH:
            raise CodecError(f"{path[:60]}... is nested more than {_MAX_DEPTH} deep, or in itself")
        return encode(self, value, path, depth + 1)

    def part(self, value: Any, path: str, depth: int) -> tuple[bool, Any]:
        """Encode a part; where that cannot be, leave no trace but its path."""
        state = len(self.body), len(self.table), len(self.dropped), self.end
        try:
            return True, self.node(value, path, depth)
        except _UnknownError:
            body, table, dropped, self.end = state
            del self.body[body:], self.table[table:], self.dropped[dropped:]
            self.drop(path)
            return False, None

    def drop(self, path: str) -> None:
        self.dropped.append(path.removeprefix(".").encode("utf-8", "backslashreplace").decode())

    def items(self, tag: int, values: Iterable[Any], size: int, path: str, depth: int) -> list[Any]:
        self.count(size)
        node: list[Any] = [tag]
        for i, value in enumerate(values):
            if type(value) in _NATIVE:
                node.append(value)
            else:
                node.append(self.part(value, f"{path}[{i}]", depth)[1])
        return node

    def count(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise CodecError(f"a payload has at most {_MAX_NODES} single values: use arrays")

    def buffer(self, raw: Any, size: int, itemsize: int) -> int:
        """Add a buffer of bytes; returns its number."""
        stored, length, how = raw, size, _RAW
        if size >= _COMPRESS_FROM:
            stored, length, how = _pack(memoryview(raw), itemsize)
        number = len(self.table) // 4
        self.table += (self.end, length, size, how)
        self.body.append(stored)
        self.end += length
        padding = -self.end % ALIGNMENT
        if padding:
            self.body.append(_PADDING[padding])
            self.end += padding
        return number


def _pack(raw: memoryview, itemsize: int) -> tuple[Any, int, int]:
    """Compress a buffer if a sample of it says that it pays.

    Small and hot records are not worth it: x of 10 floats grows, and reading takes 17 to 34
    times as long at 100,000 floats; level 3 gains 2 % over level 1 at half the speed (2026-11).
    """
    size = raw.nbytes
    compress = _compressor().compress
    sample = raw[:_SAMPLE]
    how, best = _ZSTD, len(compress(sample))
    if itemsize == 8 and size % 8 == 0:
        shuffled = len(compress(_shuffle(sample)))
        if shuffled < best:
            how, best = _SHUFFLED, shuffled
    if best > _WORTH * len(sample):
        return raw, size, _RAW
    packed = compress(_shuffle(raw) if how == _SHUFFLED else raw)
    # Zeros shrink 32,000-fold. No reader takes a small record's word for a large array, so zeros
    # behind the frame (which readers of zstd ignore) pay for what it declares.
    packed = packed.ljust(-(-size // _MAX_RATIO), b"\0")
    if len(packed) > _WORTH * size:
        return raw, size, _RAW
    return packed, len(packed), how


def _compressor() -> Any:
    found = getattr(_thread, "compressor", None)
    if found is None:
        found = _thread.compressor = zstandard.ZstdCompressor(level=1)
    return found


def _shuffle(raw: memoryview) -> bytes:
    return np.frombuffer(raw, np.uint8).reshape(-1, 8).T.tobytes()


class _Format(NamedTuple):
    """A dtype that can be stored."""

    name: str
    dtype: np.dtype[Any]
    little: np.dtype[Any]
    plain: bool
    """The bytes in memory are those that are stored."""


@functools.lru_cache(maxsize=256)
def _format_of(dtype: np.dtype[Any]) -> _Format:
    extended = dtype.char in "gG"
    name = f"{dtype.str}@{_EXTENDED_BITS}" if extended else dtype.str
    if not _DTYPE.fullmatch(name):
        raise _UnknownError(f"an array of dtype {dtype}")
    little = dtype.newbyteorder("<")
    return _Format(name, dtype, little, little == dtype and not extended)


@functools.lru_cache(maxsize=256)
def _format_named(name: str) -> _Format:
    match = _DTYPE.fullmatch(name)
    found = _format_of(np.dtype(match["name"])) if match else None
    if found is None or found.name != name:
        raise CodecError(f"there is no dtype {name!r:.40} on this machine")
    return found


def _raw_of(value: np.ndarray[Any, Any], form: _Format, order: Any) -> Any:
    """Return an array's little-endian bytes; a view where that is possible and pays."""
    if not form.plain:
        value = value.astype(form.little)
        if form.dtype.char in "gG" and _EXTENDED_BITS == _X87:
            parts = np.frombuffer(value.tobytes(order), np.uint8).reshape(-1, 16).copy()
            parts[:, 10:] = 0  # equal numbers give equal bytes
            return parts.reshape(-1)
    if value.nbytes < _COMPRESS_FROM:
        return value.tobytes(order)
    flat = np.ascontiguousarray(value.T if order == "F" else value)
    return flat.reshape(-1).view(np.uint8)


def _is_fortran(value: np.ndarray[Any, Any]) -> bool:
    return value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous


def _write_int(_w: _Writer, value: int, _path: str, _depth: int) -> Any:
    if value in _INT64:
        return value
    return [_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def _write_complex(_w: _Writer, value: complex, _path: str, _depth: int) -> Any:
    return [_COMPLEX, value.real, value.imag]


def _write_str(_w: _Writer, value: str, _path: str, _depth: int) -> Any:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, as in names of undecodable files
        return [_TEXT, value.encode("utf-8", "surrogatepass")]
    return value


def _write_bytes(w: _Writer, value: bytes, _path: str, _depth: int) -> Any:
    size = len(value)
    return value if size <= _INLINE_BYTES else [_BUFFER, w.buffer(value, size, 1)]


def _write_list(w: _Writer, value: list[Any], path: str, depth: int) -> Any:
    return w.items(_LIST, value, len(value), path, depth)


def _write_tuple(w: _Writer, value: tuple[Any, ...], path: str, depth: int) -> Any:
    return w.items(_TUPLE, value, len(value), path, depth)


def _write_pairs(tag: int) -> Callable[[_Writer, Any, str, int], Any]:
    def write(w: _Writer, value: dict[Any, Any], path: str, depth: int) -> Any:
        w.count(len(value))
        node: list[Any] = [tag]
        for key, item in value.items():
            plain = type(key) is str and key.isascii()
            kind = type(item)
            if plain and (kind in _NATIVE or (kind is int and item in _INT64)):
                node += (key, item)
                continue
            place = f"{path}.{key}" if plain else path + _step(key)
            if not plain:
                before = len(w.dropped)
                known, stored = w.part(key, place, depth)
                if len(w.dropped) > before:  # with another key it would be another dict
                    del w.dropped[before + 1 :]
                    w.dropped[before] = place.encode("utf-8", "backslashreplace").decode()
                    continue
            else:
                known, stored = True, key
            mark = len(node)
            node.append(stored)
            known, stored = w.part(item, place, depth)
            if known:
                node.append(stored)
            else:
                del node[mark:]
        return node

    return write


def _step(key: Any) -> str:
    if type(key) is str:
        return f".{key}"
    try:
        return f"[{key!r:.40}]"
    except Exception:  # noqa: BLE001 (a key's __repr__ may raise anything; this is only a label)
        return f"[{type(key).__name__}]"


def _write_array(w: _Writer, value: np.ndarray[Any, Any], path: str, depth: int) -> Any:
    dtype = value.dtype
    fortran = _is_fortran(value)
    if dtype.kind == "O":
        items = value.ravel(order="C").tolist()
        node = w.items(_OBJECTS, items, len(items), path, depth)
        node[1:1] = (int(fortran), value.shape)
        return node
    form = _format_of(dtype)
    raw = _raw_of(value, form, "F" if fortran else "C")
    number = w.buffer(raw, value.nbytes, dtype.itemsize)
    return [_ARRAY, form.name, int(fortran), value.shape, number]


def _write_scalar(_w: _Writer, value: Any, _path: str, _depth: int) -> Any:
    form = _format_of(value.dtype)
    raw = value.tobytes() if form.plain else bytes(_raw_of(np.asarray(value), form, "C"))
    return [_SCALAR, form.name, raw]


def _write_float64(_w: _Writer, value: np.float64, _path: str, _depth: int) -> Any:
    return [_FLOAT64, float(value)]


def _write_numpy_str(_w: _Writer, value: np.str_, _path: str, _depth: int) -> Any:
    return [_STR_, value.encode("utf-8", "surrogatepass")]  # str() would cut zeros at the end


def _write_numpy_bytes(_w: _Writer, value: np.bytes_, _path: str, _depth: int) -> Any:
    return [_BYTES_, bytes(value)]


def _write_masked(w: _Writer, value: np.ma.MaskedArray[Any, Any], path: str, depth: int) -> Any:
    if value.dtype.kind == "O":
        raise _UnknownError("a masked array of objects")
    mask = None if value.mask is np.ma.nomask else np.ma.getmaskarray(value)
    fill = np.asarray(value.fill_value, value.dtype)
    parts = (np.asarray(value.data), mask, fill, bool(value.hardmask))
    return [_MASKED, *(w.node(part, path, depth) for part in parts)]


def _write_lbfgs(w: _Writer, value: Any, path: str, depth: int) -> Any:
    parts = (value.sk, value.yk, value.rho)
    return [_LBFGS, *(w.node(part, path, depth) for part in parts)]


def _write_bounds(w: _Writer, value: Any, path: str, depth: int) -> Any:
    parts = (value.lb, value.ub, value.keep_feasible)
    return [_BOUNDS, *(w.node(part, path, depth) for part in parts)]


_COMPRESSED = ("data", "indices", "indptr")
_SPARSE_PARTS = {
    "bsr": _COMPRESSED,
    "coo": ("data", "coords"),
    "csc": _COMPRESSED,
    "csr": _COMPRESSED,
    "dia": ("data", "offsets"),
    "dok": ("data", "coords"),
    "lil": _COMPRESSED,
}


def _write_sparse(w: _Writer, value: Any, path: str, depth: int) -> Any:
    form = value.format
    # A dict or lists of items: their coordinates, in their order. The rows of a lil array are
    # in memory, so a form with a number for each row keeps what is declared honest.
    source = value.tocoo() if form == "dok" else value.tocsr() if form == "lil" else value
    parts = [getattr(source, name) for name in _SPARSE_PARTS[form]]
    nodes = (w.node(part, path, depth) for part in parts)
    return [_SPARSE, form, type(value) in _SPARSE_ARRAYS, value.shape, *nodes]


_SPARSE_ARRAYS = {getattr(scipy.sparse, f"{form}_array") for form in _SPARSE_PARTS}
_SPARSE_MATRICES = {getattr(scipy.sparse, f"{form}_matrix") for form in _SPARSE_PARTS}
_SCALARS = {
    kind
    for kind in np.sctypeDict.values()
    if issubclass(kind, (np.number, np.bool, np.datetime64)) and kind is not np.float64
}
_NATIVE = frozenset({type(None), bool, float})
_WRITERS: dict[type, Callable[[_Writer, Any, str, int], Any]] = {
    int: _write_int,
    complex: _write_complex,
    str: _write_str,
    bytes: _write_bytes,
    list: _write_list,
    tuple: _write_tuple,
    dict: _write_pairs(_DICT),
    np.ndarray: _write_array,
    np.ma.MaskedArray: _write_masked,
    np.float64: _write_float64,
    np.str_: _write_numpy_str,
    np.bytes_: _write_numpy_bytes,
    RichResult: _write_pairs(_RICH),
    OptimizeResult: _write_pairs(_RESULT),
    RootResults: _write_pairs(_ROOT_RESULTS),
    LbfgsInvHessProduct: _write_lbfgs,
    Bounds: _write_bounds,
    **dict.fromkeys(_SCALARS, _write_scalar),
    **dict.fromkeys(_SPARSE_ARRAYS | _SPARSE_MATRICES, _write_sparse),
}


def decode_payload(
    tree: Any, table: list[int], body: memoryview, *, max_bytes: int = MAX_DECODED
) -> Any:
    """Decode what `encode_payload` made.

    Parameters
    ----------
    tree, table : object, list of int
        As they came out of msgpack; nothing is believed of them.
    body : memoryview
        The buffers.
    max_bytes : int
        Bytes that all arrays together may have.

    Returns
    -------
    object
        The payload; its arrays are fresh and writeable, and own their memory.

    Raises
    ------
    CodecError
        For anything that `encode_payload` would not have written; no other exception is raised.

    Notes
    -----
    At most `max_bytes` and 1,024 times the size of `body` are allocated for arrays, and sizes
    are compared before that. Safe in threads.
    """
    reader = _Reader(table, body, max_bytes)
    try:
        value = reader.value(tree, 0)
    except CodecError:
        raise
    except Exception as error:
        # Forged parts reach numpy and scipy, which raise what they like (MaskError, a warning
        # that is an error, MemoryError); whatever it is, the bytes are no payload.
        raise CodecError(f"the payload is damaged: {error!r:.200}") from error
    if reader.next * 4 != len(table) or reader.end != len(body):
        raise CodecError("the payload has buffers that it does not name")
    return value


class _Reader:
    __slots__ = ("body", "end", "left", "left_nodes", "next", "table")

    def __init__(self, table: list[int], body: memoryview, max_bytes: int) -> None:
        self.table = table
        self.body = body
        self.left = max_bytes
        self.left_nodes = 2 * _MAX_NODES  # keys count too
        self.next = 0
        self.end = 0

    def value(self, node: Any, depth: int) -> Any:
        kind = type(node)
        if kind is not list:
            if kind in _LEAVES:
                return node
            raise CodecError(f"the payload has a {kind.__name__} where a node should be")
        tag = node[0]
        decode = _READERS.get(tag) if type(tag) is int else None
        if decode is None:
            raise CodecError(f"the payload has a node of an unknown tag, {tag!r:.40}")
        if depth > _MAX_DEPTH:
            raise CodecError(f"the payload is nested more than {_MAX_DEPTH} deep")
        return decode(self, node, depth + 1)

    def values(self, nodes: list[Any], depth: int) -> list[Any]:
        self.left_nodes -= len(nodes)
        if self.left_nodes < 0:
            raise CodecError(f"the payload has more than {_MAX_NODES} single values")
        value = self.value
        return [node if type(node) in _LEAVES else value(node, depth) for node in nodes]

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise CodecError(
                f"the payload declares more than may be decoded, by {-self.left} bytes: refused"
            )

    def buffer(self, number: Any) -> tuple[Any, int, int]:
        """Return a buffer, where it begins, and its length, checked before it is unpacked."""
        if number != self.next:
            raise CodecError("the payload names its buffers out of order, or one of them twice")
        offset, stored, length, how = self.table[4 * number : 4 * number + 4]
        end = offset + stored
        if offset != self.end or stored < 0 or end > len(self.body):
            raise CodecError("a buffer of the payload lies elsewhere than it says")
        self.next += 1
        self.end = end + -end % ALIGNMENT
        if length < 0 or length > _MAX_RATIO * stored:
            raise CodecError(f"a buffer of {stored} bytes declares {length}: refused")
        self.spend(length)
        if how == _RAW:
            if stored != length:
                raise CodecError("a raw buffer declares another length than it has")
            return self.body, offset, length
        if how not in (_ZSTD, _SHUFFLED):
            raise CodecError(f"a buffer has an unknown filter, {how}")
        return _unpack(self.body[offset:end], length, how), 0, length


def _unpack(stored: memoryview, length: int, how: int) -> Any:
    # zstandard allocates what the frame itself declares, whatever max_output_size says.
    if zstandard.get_frame_parameters(stored).content_size != length:
        raise CodecError("a compressed buffer declares two lengths")
    found = getattr(_thread, "decompressor", None)
    if found is None:
        found = _thread.decompressor = zstandard.ZstdDecompressor()
    raw = found.decompress(stored)
    if len(raw) != length:
        raise CodecError("a compressed buffer has another length than it declares")
    if how == _ZSTD:
        return raw
    return np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(8, -1).T)


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CodecError(f"the payload has a {type(value).__name__} for a {kind.__name__}")
    return value


def _shape(shape: Any) -> tuple[int, ...]:
    for n in _of(shape, list):
        if type(n) is not int or n < 0:
            raise CodecError(f"{shape!r:.40} is not the shape of an array")
    return tuple(shape)


def _order(fortran: Any) -> Any:
    if type(fortran) is not int or fortran not in (0, 1):
        raise CodecError(f"{fortran!r:.40} is not the order of an array")
    return "F" if fortran else "C"


def _read_list(r: _Reader, node: list[Any], depth: int) -> Any:
    return r.values(node[1:], depth)


def _read_tuple(r: _Reader, node: list[Any], depth: int) -> Any:
    return tuple(r.values(node[1:], depth))


def _read_dict(r: _Reader, node: list[Any], depth: int) -> Any:
    values = r.values(node[1:], depth)
    made = dict(zip(values[::2], values[1::2], strict=True))
    if 2 * len(made) != len(values):
        raise CodecError("a dict of the payload has one key twice")
    return made


def _read_result(r: _Reader, node: list[Any], depth: int) -> Any:
    return OptimizeResult(_read_dict(r, node, depth))


def _read_rich_result(r: _Reader, node: list[Any], depth: int) -> Any:
    return RichResult(_read_dict(r, node, depth))


def _read_root_results(r: _Reader, node: list[Any], depth: int) -> Any:
    result = RootResults.__new__(RootResults)  # its constructor translates flags
    result.update(_read_dict(r, node, depth))
    return result


def _read_buffer(r: _Reader, node: list[Any], _depth: int) -> Any:
    _, number = node
    source, offset, length = r.buffer(number)
    return bytes(source[offset : offset + length])


def _read_array(r: _Reader, node: list[Any], _depth: int) -> Any:
    _, name, fortran, shape, number = node
    form = _format_named(name)
    shape = _shape(shape)
    source, offset, length = r.buffer(number)
    if math.prod(shape) * form.dtype.itemsize != length:
        raise CodecError("an array's shape and its buffer disagree")
    order = _order(fortran)
    if not length:
        return np.empty(shape, form.dtype, order)
    view: np.ndarray[Any, Any] = np.ndarray(shape, form.little, source, offset, None, order)
    if form.dtype.kind in "bU":
        _check_items(view, form)
    return view.copy(order) if form.plain else view.astype(form.dtype, order)


def _check_items(view: np.ndarray[Any, Any], form: _Format) -> None:
    """Refuse items that numpy would only stumble over when they are read."""
    kind, highest = (np.uint8, 1) if form.dtype.kind == "b" else (np.dtype("<u4"), 0x10FFFF)
    if view.reshape(-1, order="A").view(kind).max() > highest:
        raise CodecError(f"an array of the payload has items that are no {form.dtype}")


def _read_objects(r: _Reader, node: list[Any], depth: int) -> Any:
    _, fortran, shape, *nodes = node
    shape = _shape(shape)
    if math.prod(shape) != len(nodes):
        raise CodecError("an array of objects has another number of items than its shape")
    flat = np.empty(len(nodes), dtype=object)
    for i, value in enumerate(r.values(nodes, depth)):
        flat[i] = value
    return flat.reshape(shape).copy(_order(fortran))


def _read_scalar(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, name, raw = node
    form = _format_named(name)
    if form.dtype.kind in "SU" or len(_of(raw, bytes)) != form.dtype.itemsize:
        raise CodecError("a scalar of the payload has another size than its dtype")
    scalar: np.ndarray[Any, Any] = np.ndarray((), form.little, raw)
    if form.dtype.kind == "b":
        _check_items(scalar, form)
    return scalar[()]


def _read_float64(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, value = node
    return np.float64(_of(value, float))


def _read_big_int(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, raw = node
    return int.from_bytes(_of(raw, bytes), "little", signed=True)


def _read_complex(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, real, imaginary = node
    return complex(_of(real, float), _of(imaginary, float))


def _read_text(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, raw = node
    return _of(raw, bytes).decode("utf-8", "surrogatepass")


def _read_numpy_str(r: _Reader, node: list[Any], depth: int) -> Any:
    return np.str_(_read_text(r, node, depth))


def _read_numpy_bytes(_r: _Reader, node: list[Any], _depth: int) -> Any:
    _, raw = node
    return np.bytes_(_of(raw, bytes))


def _read_masked(r: _Reader, node: list[Any], depth: int) -> Any:
    data, mask, fill, hard = r.values(node[1:], depth)
    _of(data, np.ndarray)
    if mask is not None and (_of(mask, np.ndarray).dtype != bool or mask.shape != data.shape):
        raise CodecError("the mask of an array does not fit it")
    if _of(fill, np.ndarray).dtype != data.dtype or fill.shape:
        raise CodecError("the fill value of an array does not fit it")
    made = np.ma.MaskedArray(
        data, np.ma.nomask if mask is None else mask, hard_mask=_of(hard, bool)
    )
    made.fill_value = fill
    return made


def _read_lbfgs(r: _Reader, node: list[Any], depth: int) -> Any:
    parts = r.values(node[1:], depth)
    sk, yk, rho = parts
    if not all(_of(part, np.ndarray).dtype.kind == "f" for part in parts) or rho.shape != (
        len(sk),
    ):
        raise CodecError("an inverse Hessian of the payload has parts that do not fit")
    with np.errstate(all="ignore"):
        made = LbfgsInvHessProduct(sk, yk)
    made.rho = rho  # as it was: summed over another memory layout, its last bit may differ
    return made


def _read_bounds(r: _Reader, node: list[Any], depth: int) -> Any:
    lb, ub, keep = r.values(node[1:], depth)
    if not _of(lb, np.ndarray).shape == _of(ub, np.ndarray).shape == _of(keep, np.ndarray).shape:
        raise CodecError("bounds of the payload do not fit each other")
    made = Bounds()
    made.lb, made.ub, made.keep_feasible = lb, ub, keep  # the constructor makes views of them
    return made


def _read_sparse(r: _Reader, node: list[Any], depth: int) -> Any:
    _, form, is_array, shape, *nodes = node
    shape = _shape(shape)
    names = _SPARSE_PARTS[form]
    parts = r.values(nodes, depth)
    data, *places = parts
    _of(data, np.ndarray)
    for place in places[0] if names[-1] == "coords" else places:
        if _of(place, np.ndarray).dtype.kind != "i" or place.ndim != 1:
            raise CodecError("a sparse array of the payload has indices that are none")
    kind = "array" if _of(is_array, bool) else "matrix"
    base = {"dok": "coo", "lil": "csr"}.get(form, form)
    made = getattr(scipy.sparse, f"{base}_{kind}")(tuple(parts), shape=shape)
    if names is _COMPRESSED:
        made.check_format(full_check=True)  # scipy's C++ follows the indices without looking
    if base != form:
        r.spend(_LIL_ROW * shape[0] if form == "lil" else 0)
        return made.asformat(form)
    for name, part in zip(names, parts, strict=True):
        setattr(made, name, part)  # the constructor may have made the indices narrower
    return made


_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
_READERS: dict[int, Callable[[_Reader, list[Any], int], Any]] = {
    _LIST: _read_list,
    _TUPLE: _read_tuple,
    _DICT: _read_dict,
    _BUFFER: _read_buffer,
    _ARRAY: _read_array,
    _SCALAR: _read_scalar,
    _BIG_INT: _read_big_int,
    _COMPLEX: _read_complex,
    _RICH: _read_rich_result,
    _RESULT: _read_result,
    _ROOT_RESULTS: _read_root_results,
    _LBFGS: _read_lbfgs,
    _SPARSE: _read_sparse,
    _MASKED: _read_masked,
    _OBJECTS: _read_objects,
    _BOUNDS: _read_bounds,
    _TEXT: _read_text,
    _FLOAT64: _read_float64,
    _STR_: _read_numpy_str,
    _BYTES_: _read_numpy_bytes,
}
