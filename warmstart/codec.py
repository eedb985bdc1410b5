"""Payloads: trees of arrays and scalars to bytes, and back bit for bit.

A payload becomes a *tree* of what msgpack has by itself (None, bool, 64-bit int, float, str,
bytes) and of *nodes*, arrays whose first item is a tag from `_Tag`; and *buffers*, the raw bytes
of arrays, which the tree refers to by number. Nothing is ever looked up by a stored name: a tag
that is not in the table is an error.
"""

# ruff: noqa: SLF001 (the tables of this module name its own methods)

from __future__ import annotations

import enum
import functools
import math
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import zstandard
from scipy.optimize import Bounds, LbfgsInvHessProduct, OptimizeResult, RootResults

from warmstart.errors import CodecError

__all__ = ["ALIGNMENT", "MAX_DECODED", "Encoded", "decode_payload", "encode_payload"]

ALIGNMENT = 16
"""Buffers begin at multiples of so many bytes."""
MAX_DECODED = 1 << 34
"""Bytes that the arrays of one payload may have."""
_MAX_DEPTH = 64
_MAX_RATIO = 1024
"""More than so many times its stored size no buffer may have: the encoder does not compress
what would, so that a small record cannot make a reader allocate a large array."""
_COMPRESS_FROM = 4096
_SAMPLE = 65536
_WORTH = 0.9
_DTYPE = re.compile(
    r"[<>|](?:[biufc]\d{1,2}|[SU]\d{1,8}|[mM]8(?:\[\d{0,6}[A-Za-z]{1,2}(?:/\d{1,4})?\])?)"
)
_KEYS = (str, bytes, int, float, complex, bool, tuple, type(None), np.generic)
_ONLY_STR = frozenset({str})
_LIBRARY = threading.local()


class _Tag(enum.IntEnum):
    """The first item of a node; the numbers are part of the format."""

    LIST = 0
    TUPLE = 1
    DICT = 2
    BUFFER = 3
    ARRAY = 4
    SCALAR = 5
    BIG_INT = 6
    COMPLEX = 7
    RESULT = 8
    ROOT_RESULTS = 9
    LBFGS = 10
    SPARSE = 11
    MASKED = 12
    OBJECTS = 13
    BOUNDS = 14
    TEXT = 15


class _Filter(enum.IntEnum):
    """How a buffer is stored."""

    RAW = 0
    ZSTD = 1
    SHUFFLED = 2
    """Bytes of 8-byte items sorted by their place in the item, then zstd."""


class Encoded(NamedTuple):
    """An encoded payload.

    Parameters
    ----------
    tree : object
        For msgpack.
    table : list of int
        For each buffer its offset, stored length, length and filter.
    body : list of bytes-like
        The buffers with the padding between them.
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
        is named in ``dropped``.

    Raises
    ------
    CodecError
        If the payload itself is of another type, contains itself, or is nested more than 64
        deep.

    Notes
    -----
    Contiguous arrays are not copied. Buffers of 4 KiB and more are compressed where a sample
    of 64 KiB shrinks by a tenth or more.
    """
    writer = _Writer()
    try:
        tree = writer.node(payload, "", 0)
    except _UnknownError as error:
        raise CodecError(
            f"a payload is bytes or a tree of arrays and scalars, not {error}: convert it first"
        ) from None
    return Encoded(tree, writer.table, writer.body, tuple(writer.dropped))


class _Writer:
    def __init__(self) -> None:
        self.table: list[int] = []
        self.body: list[Any] = []
        self.dropped: list[str] = []
        self._end = 0

    def node(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind in _NATIVE:
            return value
        if depth > _MAX_DEPTH:
            raise CodecError(f"{path[:80]}... is nested more than {_MAX_DEPTH} deep, or in itself")
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(self, value, path, depth + 1)
        if isinstance(value, np.generic) and value.dtype.kind != "V":
            return self._scalar(value)
        if isinstance(value, (scipy.sparse.sparray, scipy.sparse.spmatrix)):
            return self._sparse(value, path, depth + 1)
        raise _UnknownError(f"{kind.__module__}.{kind.__qualname__}")

    def child(self, value: Any, path: str, depth: int) -> Any:
        """Encode a part; where that cannot be, note it and put None in its place."""
        try:
            return self.node(value, path, depth)
        except _UnknownError:
            self.dropped.append(path.removeprefix("."))
            return None

    def buffer(self, raw: Any, itemsize: int) -> int:
        """Add a buffer of bytes; returns its number."""
        view = memoryview(raw)
        stored, how = _pack(view, itemsize)
        self.body.append(stored)
        self.table.extend((self._end, len(stored), view.nbytes, int(how)))
        self._end += len(stored)
        padding = -self._end % ALIGNMENT
        if padding:
            self.body.append(bytes(padding))
            self._end += padding
        return len(self.table) // 4 - 1

    def _int(self, value: int, _path: str, _depth: int) -> Any:
        if -(1 << 63) <= value < 1 << 63:
            return value
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return [_Tag.BIG_INT, raw]

    def _complex(self, value: complex, _path: str, _depth: int) -> Any:
        return [_Tag.COMPLEX, value.real, value.imag]

    def _str(self, value: str, _path: str, _depth: int) -> Any:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates, as in names of undecodable files
            return [_Tag.TEXT, value.encode("utf-8", "surrogatepass")]
        return value

    def _bytes(self, value: bytes, _path: str, _depth: int) -> Any:
        return value if len(value) <= 256 else [_Tag.BUFFER, self.buffer(value, 1)]

    def _list(self, value: list[Any], path: str, depth: int) -> Any:
        return [_Tag.LIST, *(self.child(v, f"{path}[{i}]", depth) for i, v in enumerate(value))]

    def _tuple(self, value: tuple[Any, ...], path: str, depth: int) -> Any:
        return [_Tag.TUPLE, *(self.child(v, f"{path}[{i}]", depth) for i, v in enumerate(value))]

    def _dict(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        return self._pairs(_Tag.DICT, value, path, depth)

    def _result(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        return self._pairs(_Tag.RESULT, value, path, depth)

    def _root_results(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        return self._pairs(_Tag.ROOT_RESULTS, value, path, depth)

    def _pairs(self, tag: _Tag, value: dict[Any, Any], path: str, depth: int) -> Any:
        node: list[Any] = [tag]
        for key, item in value.items():
            place = f"{path}.{key}" if type(key) is str else f"{path}[{key!r:.40}]"
            try:
                pair = (self.node(key, place, depth), self.node(item, place, depth))
            except _UnknownError:
                self.dropped.append(place.removeprefix("."))
            else:
                node.extend(pair)
        return node

    def _array(self, value: np.ndarray[Any, Any], path: str, depth: int) -> Any:
        dtype = value.dtype
        if dtype.hasobject:
            if dtype.kind != "O":
                raise _UnknownError("a structured array of objects")
            items = value.ravel(order="C").tolist()
            nodes = (self.child(v, f"{path}[{i}]", depth) for i, v in enumerate(items))
            return [_Tag.OBJECTS, list(value.shape), *nodes]
        name = _name_of(dtype)
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        flat = np.ascontiguousarray(value.T if fortran else value)
        if not _is_little(dtype):
            flat = flat.astype(dtype.newbyteorder("<"))
        raw = flat.reshape(-1).view(np.uint8) if flat.nbytes else b""
        number = self.buffer(raw, dtype.itemsize)
        return [_Tag.ARRAY, name, int(fortran), list(value.shape), number]

    def _masked(self, value: np.ma.MaskedArray[Any, Any], path: str, depth: int) -> Any:
        mask = None if value.mask is np.ma.nomask else np.ma.getmaskarray(value)
        parts = (np.asarray(value.data), mask, np.asarray(value.fill_value))
        return [_Tag.MASKED, *(self.node(part, path, depth) for part in parts)]

    def _scalar(self, value: Any) -> Any:
        dtype = value.dtype
        if _is_little(dtype):
            return [_Tag.SCALAR, _name_of(dtype), value.tobytes()]
        little = np.asarray(value).astype(dtype.newbyteorder("<"))
        return [_Tag.SCALAR, _name_of(dtype), little.tobytes()]

    def _lbfgs(self, value: Any, path: str, depth: int) -> Any:
        return [_Tag.LBFGS, self.node(value.sk, path, depth), self.node(value.yk, path, depth)]

    def _bounds(self, value: Any, path: str, depth: int) -> Any:
        parts = (value.lb, value.ub, value.keep_feasible)
        return [_Tag.BOUNDS, *(self.node(part, path, depth) for part in parts)]

    def _sparse(self, value: Any, path: str, depth: int) -> Any:
        form = value.format
        if type(value).__module__.partition(".")[0] != "scipy":
            raise _UnknownError(f"{type(value).__qualname__}, a sparse array of another library")
        if form in _SPARSE_PARTS:
            parts = [getattr(value, name) for name in _SPARSE_PARTS[form]]
        else:  # a dict or lists of items: their coordinates, in their order
            coo = value.tocoo()
            parts = [coo.data, *coo.coords]
        is_array = isinstance(value, scipy.sparse.sparray)
        nodes = (self.node(part, path, depth) for part in parts)
        return [_Tag.SPARSE, form, is_array, list(value.shape), *nodes]


_SPARSE_PARTS = {
    "bsr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "csr": ("data", "indices", "indptr"),
    "dia": ("data", "offsets"),
}

_NATIVE = frozenset({type(None), bool, float})
_ENCODERS: dict[type, Callable[[_Writer, Any, str, int], Any]] = {
    int: _Writer._int,
    complex: _Writer._complex,
    str: _Writer._str,
    bytes: _Writer._bytes,
    list: _Writer._list,
    tuple: _Writer._tuple,
    dict: _Writer._dict,
    np.ndarray: _Writer._array,
    np.ma.MaskedArray: _Writer._masked,
    OptimizeResult: _Writer._result,
    RootResults: _Writer._root_results,
    LbfgsInvHessProduct: _Writer._lbfgs,
    Bounds: _Writer._bounds,
}


@functools.lru_cache(maxsize=256)
def _name_of(dtype: np.dtype[Any]) -> str:
    if not _DTYPE.fullmatch(dtype.str):
        raise _UnknownError(f"an array of dtype {dtype}")
    return dtype.str


@functools.lru_cache(maxsize=256)
def _is_little(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("<") == dtype


def _compressor() -> Any:
    """Return this thread's compressor: contexts must not be shared between threads."""
    found = getattr(_LIBRARY, "compressor", None)
    if found is None:
        found = _LIBRARY.compressor = zstandard.ZstdCompressor(level=1)
    return found


def _pack(raw: memoryview, itemsize: int) -> tuple[Any, _Filter]:
    """Compress a buffer if a sample of it says that it pays.

    Small and hot records are not worth it: x of 10 floats grows, and reading takes 17 to 34
    times as long at 100,000 floats (2026-11); level 3 gains 2 % over level 1 at half the speed.
    """
    if raw.nbytes < _COMPRESS_FROM:
        return raw, _Filter.RAW
    sample = raw[: _SAMPLE - _SAMPLE % 8]
    sizes = {_Filter.ZSTD: len(_compressor().compress(sample))}
    if itemsize == 8 and raw.nbytes % 8 == 0:
        shuffled = _shuffle(sample[: len(sample) // 8 * 8])
        sizes[_Filter.SHUFFLED] = len(_compressor().compress(shuffled))
    how = min(sizes, key=lambda name: sizes[name])
    if sizes[how] > _WORTH * len(sample):
        return raw, _Filter.RAW
    packed = _compressor().compress(_shuffle(raw) if how is _Filter.SHUFFLED else raw)
    if raw.nbytes > _MAX_RATIO * len(packed) or len(packed) > _WORTH * raw.nbytes:
        return raw, _Filter.RAW
    return packed, how


def _shuffle(raw: memoryview) -> bytes:
    return np.frombuffer(raw, np.uint8).reshape(-1, 8).T.tobytes()


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
        The payload; its arrays own their memory and are writeable.

    Raises
    ------
    CodecError
        For anything that `encode_payload` would not have written.
    """
    try:
        return _Reader(table, body, max_bytes).value(tree, 0)
    except CodecError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RecursionError) as error:
        raise CodecError(f"the payload is damaged: {error!r:.200}") from error
    except (TypeError, ValueError, AttributeError, zstandard.ZstdError) as error:
        raise CodecError(f"the payload is damaged: {error!r:.200}") from error


class _Reader:
    def __init__(self, table: list[int], body: memoryview, max_bytes: int) -> None:
        if len(table) % 4:
            raise CodecError("the table of buffers is not whole")
        self._table = table
        self._body = body
        self._left = max_bytes

    def value(self, node: Any, depth: int) -> Any:
        if type(node) is not list:
            return node
        if depth > _MAX_DEPTH:
            raise CodecError(f"the payload is nested more than {_MAX_DEPTH} deep")
        tag, *parts = node
        if type(tag) is not int or not 0 <= tag < len(_DECODERS):
            raise CodecError(f"the payload has a node of unknown tag {tag!r:.40}")
        return _DECODERS[tag](self, parts, depth + 1)

    def _values(self, parts: list[Any], depth: int) -> list[Any]:
        return [self.value(part, depth) if type(part) is list else part for part in parts]

    def _buffer(self, number: Any) -> tuple[Any, int]:
        """Return a buffer's bytes, checked before anything is allocated for them."""
        if type(number) is not int or not 0 <= number < len(self._table) // 4:
            raise CodecError(f"the payload has no buffer {number!r:.40}")
        offset, stored, length, how = self._table[4 * number : 4 * number + 4]
        if not (0 <= offset <= offset + stored <= len(self._body)) or length < 0:
            raise CodecError("a buffer lies outside of the record")
        if how == _Filter.RAW and stored != length:
            raise CodecError("a raw buffer declares another length than it has")
        if length > self._left or length > _MAX_RATIO * stored:
            raise CodecError(f"a buffer of {stored} bytes declares {length}: refused")
        self._left -= length
        raw = self._body[offset : offset + stored]
        if how == _Filter.RAW:
            return raw, length
        if how not in {_Filter.ZSTD, _Filter.SHUFFLED}:
            raise CodecError(f"a buffer has an unknown filter {how}")
        # The frame's own declaration is what zstandard allocates by, whatever max_output_size.
        if zstandard.get_frame_parameters(raw).content_size != length:
            raise CodecError("a compressed buffer declares two lengths")
        unpacked = zstandard.ZstdDecompressor().decompress(raw)
        if len(unpacked) != length:
            raise CodecError("a compressed buffer has another length than it declares")
        if how == _Filter.SHUFFLED:
            unpacked = np.frombuffer(unpacked, np.uint8).reshape(8, -1).T.tobytes()
        return unpacked, length

    def _list(self, parts: list[Any], depth: int) -> Any:
        return self._values(parts, depth)

    def _tuple(self, parts: list[Any], depth: int) -> Any:
        return tuple(self._values(parts, depth))

    def _dict(self, parts: list[Any], depth: int) -> Any:
        if len(parts) % 2:
            raise CodecError("a dict has a key without a value")
        values = self._values(parts, depth)
        keys = values[::2]
        if not _ONLY_STR.issuperset(map(type, keys)) and not all(map(_is_key, keys)):
            raise CodecError("a dict has a key that is no key")
        return dict(zip(keys, values[1::2], strict=True))

    def _bytes(self, parts: list[Any], _depth: int) -> Any:
        (number,) = parts
        return bytes(self._buffer(number)[0])

    def _array(self, parts: list[Any], _depth: int) -> Any:
        name, fortran, shape, number = parts
        dtype = _dtype(name)
        shape = _shape(shape)
        count = shape[0] if len(shape) == 1 else math.prod(shape)
        raw, length = self._buffer(number)
        if count * dtype.itemsize != length:
            raise CodecError("an array's shape and its buffer disagree")
        if not length:
            flat = np.empty(count, dtype)
        else:  # a copy: writeable, aligned, ours
            flat = np.frombuffer(raw, _little(dtype)).astype(dtype)
        if len(shape) == 1:
            return flat
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)

    def _scalar(self, parts: list[Any], _depth: int) -> Any:
        name, raw = parts
        dtype = _dtype(name)
        if raw == b"" and dtype.kind in "SU":
            return dtype.type()  # an empty string, whose dtype numpy gives one character
        if type(raw) is not bytes or len(raw) != dtype.itemsize:
            raise CodecError("a scalar has another size than its dtype")
        return np.frombuffer(raw, _little(dtype)).astype(dtype, copy=False)[0]

    def _big_int(self, parts: list[Any], _depth: int) -> Any:
        (raw,) = parts
        return int.from_bytes(_of(raw, bytes), "little", signed=True)

    def _complex(self, parts: list[Any], _depth: int) -> Any:
        real, imaginary = parts
        return complex(_of(real, float), _of(imaginary, float))

    def _result(self, parts: list[Any], depth: int) -> Any:
        return OptimizeResult(_of_names(self._dict(parts, depth)))

    def _root_results(self, parts: list[Any], depth: int) -> Any:
        result = RootResults.__new__(RootResults)  # its constructor translates flags
        result.update(_of_names(self._dict(parts, depth)))
        return result

    def _lbfgs(self, parts: list[Any], depth: int) -> Any:
        return LbfgsInvHessProduct(*self._values(parts, depth))

    def _sparse(self, parts: list[Any], depth: int) -> Any:
        form, is_array, shape, *nodes = parts
        shape = _shape(shape)
        arrays = [_of(array, np.ndarray) for array in self._values(nodes, depth)]
        kind = "array" if _of(is_array, bool) else "matrix"
        if form not in {"bsr", "coo", "csc", "csr", "dia", "dok", "lil"}:
            raise CodecError(f"there is no sparse format {form!r:.40}")
        if form in _SPARSE_PARTS:
            made = getattr(scipy.sparse, f"{form}_{kind}")(tuple(arrays), shape=shape)
        else:
            data, *coords = arrays
            made = getattr(scipy.sparse, f"coo_{kind}")((data, tuple(coords)), shape=shape)
            made = made.asformat(form)
        if hasattr(made, "check_format"):
            made.check_format(full_check=True)
        return made

    def _masked(self, parts: list[Any], depth: int) -> Any:
        data, mask, fill = self._values(parts, depth)
        made = np.ma.MaskedArray(_of(data, np.ndarray), np.ma.nomask if mask is None else mask)
        made.fill_value = fill
        return made

    def _objects(self, parts: list[Any], depth: int) -> Any:
        shape, *nodes = parts
        shape = _shape(shape)
        if math.prod(shape) != len(nodes):
            raise CodecError("an array of objects has another number of items than its shape")
        flat = np.empty(len(nodes), dtype=object)
        for i, node in enumerate(nodes):
            flat[i] = self.value(node, depth)
        return flat.reshape(shape)

    def _bounds(self, parts: list[Any], depth: int) -> Any:
        return Bounds(*self._values(parts, depth))

    def _text(self, parts: list[Any], _depth: int) -> Any:
        (raw,) = parts
        return _of(raw, bytes).decode("utf-8", "surrogatepass")


def _is_key(value: Any) -> bool:
    return isinstance(value, _KEYS)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CodecError(f"the payload has a {type(value).__name__} for a {kind.__name__}")
    return value


def _of_names(attributes: dict[Any, Any]) -> dict[str, Any]:
    if not _ONLY_STR.issuperset(map(type, attributes)):
        raise CodecError("a result has an attribute that is no name")
    return attributes


@functools.lru_cache(maxsize=256)
def _dtype(name: Any) -> np.dtype[Any]:
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise CodecError(f"there is no dtype {name!r:.40}")
    return np.dtype(name)


@functools.lru_cache(maxsize=256)
def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is list and len(shape) <= 32:
        for length in shape:
            if type(length) is not int or not 0 <= length < 1 << 62:
                break
        else:
            return tuple(shape)
    raise CodecError(f"{shape!r:.40} is not the shape of an array")


_DECODERS: tuple[Callable[[_Reader, list[Any], int], Any], ...] = (
    _Reader._list,
    _Reader._tuple,
    _Reader._dict,
    _Reader._bytes,
    _Reader._array,
    _Reader._scalar,
    _Reader._big_int,
    _Reader._complex,
    _Reader._result,
    _Reader._root_results,
    _Reader._lbfgs,
    _Reader._sparse,
    _Reader._masked,
    _Reader._objects,
    _Reader._bounds,
    _Reader._text,
)
