"""Arrays and what is made of them, as frames: numpy, scipy.sparse, pandas, polars, rng state.

Content counts, layout does not: C, Fortran, strided and read-only arrays of the same values
give the same frame. pandas, polars and scipy.sparse are recognized, never imported.
"""

from __future__ import annotations

import os
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from blake3 import blake3
from xxhash import xxh3_128_digest

from warmstart.errors import FingerprintError

__all__ = [
    "content_of",
    "digest_array",
    "digest_buffer",
    "digest_here",
    "head_of",
    "immutable",
    "write_array",
    "writer_of_data",
]

INLINE = 1024
"""Bytes up to which a value stands in the stream itself; beyond, its digest does."""
_CHUNK = 1 << 20
_THREADED = 32 << 20  # below some 32 MiB a second thread costs more than it brings (2026-11)
# BLAKE3's AUTO thread count hangs in a forked child of a process that used it; a number is safe.
_THREADS = min(4, os.cpu_count() or 1)
# x87 extended precision: 10 bytes of value, then padding with whatever was there. Elsewhere
# (aarch64, POWER, Windows) every byte of a longdouble is value.
_PADDED = frozenset("gG" if np.finfo(np.longdouble).nmant == 63 else "")
_PADDED_SIZE = np.dtype("g").itemsize


class Writer(Protocol):
    """What an encoder offers to those who write frames."""

    out: list[bytes]

    def write(self, value: Any) -> None:
        """Append the frame of any value."""


def digest_buffer(data: Any) -> bytes:
    """Return the BLAKE3 digest of a contiguous buffer, which is not copied."""
    size = memoryview(data).nbytes
    return blake3(data, max_threads=_THREADS if size >= _THREADED else 1).digest()


def write_array(writer: Writer, value: np.ndarray[Any, Any]) -> None:
    """Write class, dtype, shape and content of an array."""
    cls = type(value)
    if cls is np.ndarray or cls is np.memmap:
        _write_plain(writer, value)
        return
    writer.out.append(b"A")
    writer.write(cls)
    if value is np.ma.masked:
        return  # the only one of its class
    if isinstance(value, np.ma.MaskedArray):
        _write_plain(writer, np.ma.getmaskarray(value))
        _write_plain(writer, np.asarray(value.fill_value))
    _write_attributes(writer, value, _MASKED_OWN)
    _write_plain(writer, value.view(np.ndarray))  # also what is hidden: scipy drops the mask


_MASKED_OWN = frozenset({"_basedict", "_fill_value", "_isfield", "_mask", "_sharedmask"})


def _write_attributes(writer: Writer, value: Any, own: frozenset[str]) -> None:
    """Write what an instance holds beside its content: a unit, what a subclass adds."""
    state: Any = object.__getstate__(value)  # type: ignore[attr-defined,unused-ignore]
    held, slots = state if type(state) is tuple else (state, None)
    named = {**(held or {}), **(slots or {})}
    writer.write({name: item for name, item in named.items() if name not in own})


_head_of_dtype: dict[np.dtype[Any], tuple[bytes, bool]] = {}
_pack_shape = [struct.Struct(f"<B{ndim}Q").pack for ndim in range(65)]


def _write_plain(writer: Writer, value: np.ndarray[Any, Any]) -> None:
    dtype = value.dtype
    head, simple = _head_of_dtype.get(dtype) or _remember_head(dtype)
    writer.out.append(head + _pack_shape[value.ndim](value.ndim, *value.shape))
    if value.nbytes > INLINE and not (dtype.hasobject or dtype.fields or dtype.kind == "T"):
        writer.out.append(digest_array(value))
    elif simple:
        writer.out.append(value.tobytes())  # in C order, whatever the layout
    elif dtype.fields is not None:  # field by field: the padding between them is not content
        names = dtype.names or ()
        writer.write([(name, dtype.fields[name][0].str) for name in names])
        for name in names:
            _write_plain(writer, value[name])
    elif dtype.char in _PADDED:
        writer.out.append(content_of(value).tobytes())
    else:  # objects, and strings of any length
        writer.write(value.ravel(order="C").tolist())


def head_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return dtype and shape as they stand in an array's frame."""
    head, _ = _head_of_dtype.get(dtype) or _remember_head(dtype)
    return head + _pack_shape[len(shape)](len(shape), *shape)


def _remember_head(dtype: np.dtype[Any]) -> tuple[bytes, bool]:
    named = dtype.fields is None and dtype.kind != "T"
    name = (dtype.str if named else "|" + dtype.kind).encode()
    simple = named and not dtype.hasobject and dtype.char not in _PADDED
    if len(_head_of_dtype) > 1000:  # string and structured dtypes made in a loop
        _head_of_dtype.clear()
    return _head_of_dtype.setdefault(dtype, (b"a" + bytes([len(name)]) + name, simple))


def content_of(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the C-ordered content without the padding of extended precision.

    Its first axis is that of `value` unless there is padding.
    """
    value = np.ascontiguousarray(value)
    if value.dtype.char not in _PADDED:
        return value
    if not value.dtype.isnative:
        value = value.byteswap()
    parts = value.reshape(-1).view(np.uint8).reshape(-1, _PADDED_SIZE)
    return np.ascontiguousarray(parts[:, :10])


def immutable(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the same values in memory that numpy refuses to make writable.

    A read-only flag can be set back; not so where the memory is that of a ``bytes`` object.
    """
    return value if _is_immutable(value) else np.ndarray(value.shape, value.dtype, value.tobytes())


def _is_immutable(value: Any) -> bool:
    while type(value) is np.ndarray:
        value = value.base
    return type(value) is bytes


class _Seen(NamedTuple):
    """An array whose digest was asked for before."""

    array: weakref.ref[np.ndarray[Any, Any]]
    guard: tuple[Any, ...] | None
    digest: bytes


# The same array comes in fit after fit: 10 MB take 1.1 ms by BLAKE3, 0.16 by XXH3-128 (one
# thread, 2026-11). So the digest of an array object is kept beside an XXH3 of its bytes, all of
# which are read each time: numpy tells nobody that an array was written to, and a read-only one
# may be made writable again. Only the memory of a ``bytes`` object need not be read. XXH3 does
# not resist somebody who makes collisions on purpose; but its seed is drawn anew in each process,
# and whoever could find one out and change an array in place to match is in the process already.
# By chance a change goes unseen once in 2^128. Keys are made of BLAKE3 alone, kept or not.
_seen: dict[int, _Seen] = {}
_MOST_SEEN = 512
_GUARDED = 1 << 14  # below 16 KiB the second look-up costs what it saves
_SEED = int.from_bytes(os.urandom(8), "little")


def digest_array(value: np.ndarray[Any, Any]) -> bytes:
    """Return the BLAKE3 digest of an array's values in C order, without its dtype and shape.

    Parameters
    ----------
    value : ndarray
        Of anything but objects, fields and strings of any length.

    Notes
    -----
    The third time that it meets a contiguous array object of 16 KiB and more it only checks
    that the bytes are the same still. Safe across threads and forks; it refers to the array weakly.
    """
    if value.dtype.char in _PADDED:
        return _digest(value)
    if value.nbytes < _GUARDED:  # a copy costs less than two views of it (2 of 5 us, 2026-11)
        return blake3(value.tobytes()).digest()
    flags = value.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        return _digest(value)
    # Without a lock, which a fork could leave taken: what is kept is replaced as a whole.
    known = _seen.get(id(value))
    if known is None or known.array() is not value:
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        _seen[id(value)] = _Seen(weakref.ref(value), None, b"")
        return _digest(value)
    guard = _guard_of(value)
    if known.guard == guard:
        return known.digest
    digest = _digest(value)
    if _guard_of(value) == guard:  # else another thread is writing to it
        _seen[id(value)] = known._replace(guard=guard, digest=digest)
    return digest


def digest_here(value: np.ndarray[Any, Any]) -> bytes:
    """Return a digest of an array's values in C order that means something in this process only.

    Of what is too small to be met again by identity: XXH3, as the guard has it, with a seed that
    nobody knows; 0.4 us for 200 numbers instead of 2.8 (2026-11).
    """
    if value.nbytes < _GUARDED:
        return xxh3_128_digest(value.tobytes(), _SEED)
    return digest_array(value)


def _guard_of(value: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    ordered = value.flags.c_contiguous
    if _is_immutable(value):  # its memory; the array itself may be pointed elsewhere
        return value.__array_interface__["data"], value.dtype, value.shape, ordered
    flat = (value if ordered else value.T).reshape(-1).view(np.uint8)
    return xxh3_128_digest(flat.data, _SEED), value.dtype, value.shape, ordered


def _digest(value: np.ndarray[Any, Any]) -> bytes:
    if value.flags.c_contiguous and value.dtype.char not in _PADDED:
        # As bytes, since datetimes and float16 have no buffer format of their own.
        return digest_buffer(value.reshape(-1).view(np.uint8))
    hasher = blake3()
    _update(hasher, value)
    return hasher.digest()


def _update(hasher: Any, value: np.ndarray[Any, Any]) -> None:
    """Hash in C order, about `_CHUNK` bytes copied at a time."""
    if value.ndim == 0 or value.nbytes <= _CHUNK:
        hasher.update(content_of(value).reshape(-1).view(np.uint8))
        return
    rows = max(1, _CHUNK * len(value) // value.nbytes)
    for start in range(0, len(value), rows):
        part = value[start : start + rows]
        if part.nbytes <= 2 * _CHUNK:
            hasher.update(content_of(part).reshape(-1).view(np.uint8))
        else:
            _update(hasher, part[0])


def writer_of_data(cls: type) -> Callable[[Any, Any], None] | None:
    """Return the function that writes instances of `cls`, or None if they are no data."""
    if issubclass(cls, np.ndarray):
        return write_array
    tops = {str(base.__module__).partition(".")[0] for base in cls.__mro__}
    if "scipy" in tops and (sparse := sys.modules.get("scipy.sparse")):
        if issubclass(cls, (sparse.sparray, sparse.spmatrix)):
            return _write_sparse
    elif "pandas" in tops and (pandas := sys.modules.get("pandas")):
        if issubclass(cls, pandas.DataFrame):
            return _write_dataframe
        if issubclass(cls, (pandas.Series, pandas.Index)):
            return _write_series
    elif "polars" in tops and (polars := sys.modules.get("polars")):
        if issubclass(cls, polars.DataFrame):
            return _write_polars_dataframe
        if issubclass(cls, polars.Series):
            return _write_polars_series
        if issubclass(cls, polars.LazyFrame):
            return _refuse_lazy_frame
    return None


def _refuse_lazy_frame(_: Writer, value: Any) -> None:
    raise FingerprintError(f"a {type(value).__name__} has no content yet: collect() it first")


def _write_class(writer: Writer, value: Any) -> None:
    """Write a frame's class: by name alone if a library's, so that data outlive its versions."""
    cls = type(value)
    top = cls.__module__.partition(".")[0]
    writer.write(cls.__name__ if top in {"pandas", "polars", "scipy"} else cls)


_SPARSE_PARTS = {
    "bsr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "csr": ("data", "indices", "indptr"),
    "dia": ("data", "offsets"),
}


_SPARSE_OWN = frozenset(
    {
        *("_dict", "_has_canonical_format", "_has_sorted_indices", "_shape", "coords", "data"),
        *("dtype", "has_canonical_format", "indices", "indptr", "maxprint", "offsets", "rows"),
    }
)


def _write_sparse(writer: Writer, value: Any) -> None:
    writer.out.append(b"x")
    _write_class(writer, value)
    writer.write((value.format, value.shape, value.dtype.str))
    _write_attributes(writer, value, _SPARSE_OWN)
    parts = _SPARSE_PARTS.get(value.format)
    if parts is None:  # lists and dicts of items, in whatever order they were set
        coo = value.tocoo()
        order = np.lexsort(coo.coords[::-1])
        for axis in coo.coords:
            write_array(writer, axis[order])
        write_array(writer, coo.data[order])
        return
    for part in parts:
        write_array(writer, getattr(value, part))


def _write_dataframe(writer: Writer, value: Any) -> None:
    writer.out.append(b"D")
    _write_class(writer, value)
    _write_metadata(writer, value)
    writer.write(value.shape)
    _write_series(writer, value.columns)
    _write_series(writer, value.index)
    for i in range(value.shape[1]):
        _write_column(writer, value.iloc[:, i].array)


def _write_metadata(writer: Writer, value: Any) -> None:
    """Write ``attrs``, and what else a frame of pandas or of a subclass of it holds by name."""
    cls = type(value)
    base = next(base for base in cls.__mro__ if base.__module__.partition(".")[0] == "pandas")
    # What pandas itself leaves in an instance: accessors, such as ``str``, once they were used.
    held = {k: v for k, v in vars(value).items() if k[0] != "_" and not hasattr(base, k)}
    named = held | {name: getattr(value, name, None) for name in getattr(cls, "_metadata", ())}
    writer.write((dict(getattr(value, "attrs", ())), named))


def _write_series(writer: Writer, value: Any) -> None:
    """Write a Series or an Index, which is a column with a name, and a Series' own index."""
    writer.out.append(b"e")
    _write_class(writer, value)
    _write_metadata(writer, value)
    # By class: a Series has its labels as attributes, "names" and "nlevels" maybe among them.
    is_index = isinstance(value, sys.modules["pandas"].Index)
    writer.write(list(value.names) if is_index else [value.name])
    if is_index and value.nlevels > 1:
        for i in range(value.nlevels):
            _write_column(writer, value.get_level_values(i).array)
        return
    _write_column(writer, value.array)
    if not is_index:
        _write_series(writer, value.index)


def _write_column(writer: Writer, column: Any) -> None:
    dtype = column.dtype
    writer.write(str(dtype))
    if isinstance(dtype, np.dtype):
        write_array(writer, np.asarray(column))
    elif hasattr(column, "codes"):  # categorical
        write_array(writer, np.asarray(column.codes))
        _write_series(writer, column.categories)
        writer.write(bool(column.ordered))
    else:
        missing = np.asarray(column.isna())
        write_array(writer, missing)
        if dtype.kind in "iufb":
            zero = np.zeros(
                (), dtype.type if not hasattr(dtype, "numpy_dtype") else dtype.numpy_dtype
            )
            write_array(writer, column.to_numpy(dtype=zero.dtype, na_value=zero[()]))
        elif dtype.kind in "mM" and not missing.any() and hasattr(column, "asi8"):
            write_array(writer, column.asi8)
        else:
            for item, gone in zip(column, missing, strict=True):
                writer.write(None if gone else item)


def _write_polars_dataframe(writer: Writer, value: Any) -> None:
    writer.out.append(b"P")
    writer.write(list(value.columns))
    for name in value.columns:
        _write_polars_series(writer, value.get_column(name))


def _write_polars_series(writer: Writer, value: Any) -> None:
    writer.out.append(b"Q")
    writer.write((value.name, str(value.dtype), len(value)))
    if value.dtype.is_numeric() and value.null_count() == 0 and not value.dtype.is_decimal():
        write_array(writer, value.to_numpy())
    else:
        writer.write(value.to_list())
