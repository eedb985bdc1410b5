"""Outputs of evaluations, payloads and points as bytes that stand by themselves.

::

    output by form   float, float64: 8 bytes; None, and what has no bytes: none; a vector of
                     float64: its size u32, then its bytes; any other array: size u32, letters of
                     its dtype u8, Fortran order u8, dimensions u8, so many u64, dtype, bytes; a
                     pair: form u8 and output, twice; anything else: size u32, then a payload
    payload          size u32 of a tree in msgpack, the tree, the arrays (see `codec`)

All integers are little-endian.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from warmstart.codec import MAX_DECODED, decode_payload, encode_payload
from warmstart.errors import CodecError

__all__ = [
    "FORM",
    "HEAD",
    "MUTATED",
    "OPAQUE",
    "SKETCH",
    "TRACKED",
    "are_near",
    "dumps",
    "loads",
    "pack_number",
    "pack_numbers",
    "pack_value",
    "sketches",
    "skip",
    "unpack_value",
]

HEAD = struct.Struct("<BBQ")
"""Of an evaluation in a journal: its channel, the form of its output, the digest of its input."""
_NUMBER = np.dtype([("channel", "u1"), ("form", "u1"), ("digest", "<u8"), ("value", "<f8")])
_MANY = 512
"""Numbers that numpy packs faster, though it may have to come into the caches first."""
_u32 = struct.Struct("<I")
pack_number = struct.Struct("<BBQd").pack
"""Return the record of an evaluation that returned a float: channel, form, digest, value."""

# Forms of an output.
_FLOAT, _FLOAT64, _VECTOR, _ARRAY, _NONE, _PAIR, _TREE, OPAQUE = range(8)
MUTATED, TRACKED = 0x40, 0x80
"""Flags of a form: the function overwrote its input; states of generators are kept with it."""
FORM = 0x3F


# Outputs as bytes: type, dtype, shape and memory order come back as they were, since an
# optimizer computes other bits with a Fortran-ordered Jacobian or a float32 objective.


def pack_value(value: Any) -> tuple[int, bytes]:
    """Return the form and the bytes of an output; OPAQUE for what has no bytes."""
    kind = type(value)
    if kind is float:
        return _FLOAT, struct.pack("<d", value)
    if kind is np.float64:
        return _FLOAT64, value.tobytes()
    if kind is np.ndarray and value.dtype.kind in "biufc":
        if value.ndim == 1 and value.dtype == np.float64 and value.dtype.isnative:
            raw = value.tobytes()
            return _VECTOR, _u32.pack(len(raw)) + raw
        return _ARRAY, _pack_array(value)
    if value is None:
        return _NONE, b""
    if kind is tuple and len(value) == 2:
        (form, raw), (form2, raw2) = pack_value(value[0]), pack_value(value[1])
        if OPAQUE in (form, form2):
            return OPAQUE, b""
        return _PAIR, b"".join((bytes((form,)), raw, bytes((form2,)), raw2))
    try:
        raw = dumps(value)
    except CodecError:
        return OPAQUE, b""
    return _TREE, _u32.pack(len(raw)) + raw


def pack_numbers(channel: int, form: int, digests: Sequence[int], values: Sequence[float]) -> bytes:
    """Return the records of many evaluations of one function that returned numbers."""
    if len(values) < _MANY:
        return b"".join(map(pack_number, repeat(channel), repeat(form), digests, values))
    records = np.empty(len(values), _NUMBER)
    records["channel"], records["form"] = channel, form
    records["digest"], records["value"] = digests, values
    return records.tobytes()


def _pack_array(value: NDArray[Any]) -> bytes:
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    name = value.dtype.str.encode()
    raw = value.tobytes("F" if fortran else "C")
    head = struct.pack(f"<BBB{value.ndim}Q", len(name), fortran, value.ndim, *value.shape)
    return b"".join((_u32.pack(len(head) + len(name) + len(raw)), head, name, raw))


def unpack_value(buffer: Any, form: int, offset: int) -> tuple[Any, int]:
    """Return an output and where it ends; arrays are fresh and own their memory."""
    form &= FORM
    if form == _FLOAT:
        return _f64(buffer, offset)[0], offset + 8
    if form == _FLOAT64:
        return np.float64(_f64(buffer, offset)[0]), offset + 8
    if form in {_NONE, OPAQUE}:
        return None, offset
    if form == _PAIR:
        first, offset = unpack_value(buffer, buffer[offset], offset + 1)
        second, offset = unpack_value(buffer, buffer[offset], offset + 1)
        return (first, second), offset
    (size,) = _u32.unpack_from(buffer, offset)
    start, end = offset + 4, offset + 4 + size
    if form == _VECTOR:
        return np.frombuffer(buffer, np.float64, size // 8, start).copy(), end
    if form == _ARRAY:
        letters, fortran, dimensions = buffer[start], buffer[start + 1], buffer[start + 2]
        shape = struct.unpack_from(f"<{dimensions}Q", buffer, start + 3)
        start += 3 + 8 * dimensions
        dtype = np.dtype(bytes(buffer[start : start + letters]).decode())
        raw = np.frombuffer(buffer, dtype, offset=start + letters, count=int(np.prod(shape)))
        order = "F" if fortran else "C"
        return raw.reshape(shape, order=order).copy(order=order), end  # type: ignore[call-overload]
    return loads(buffer[start:end]), end


_f64 = struct.Struct("<d").unpack_from


def skip(buffer: Any, form: int, offset: int) -> int:
    """Return where an output ends, without reading it."""
    form &= FORM
    if form <= _FLOAT64:
        return offset + 8
    if form in {_NONE, OPAQUE}:
        return offset
    if form == _PAIR:
        offset = skip(buffer, buffer[offset], offset + 1)
        return skip(buffer, buffer[offset], offset + 1)
    return int(offset + 4 + _u32.unpack_from(buffer, offset)[0])


def dumps(value: Any) -> bytes:
    """Return a payload as bytes of its own.

    Raises
    ------
    CodecError
        If it, or a part of it, is of a type that is not kept.
    """
    tree, table, body, dropped = encode_payload(value)
    if dropped:
        raise CodecError(f"cannot be kept: {', '.join(dropped)}")
    head: bytes = msgspec.msgpack.encode((tree, table))
    return b"".join((_u32.pack(len(head)), head, *body))


_payload_head = msgspec.msgpack.Decoder(tuple[Any, list[int]])


def loads(raw: bytes) -> Any:
    """Return what `dumps` was given.

    Raises
    ------
    CodecError
        For bytes that it did not write.
    """
    try:
        (size,) = _u32.unpack_from(raw)
        tree, table = _payload_head.decode(raw[4 : 4 + size])
    except (struct.error, msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"not a payload: {error}") from error
    return decode_payload(tree, table, memoryview(raw)[4 + size :], max_bytes=MAX_DECODED)


# Sketches tell whether two inputs are nearly equal without either being kept: by three random
# projections. Weights of one size would not tell a step along one parameter from the same step
# along another.

SKETCH = 3
"""Numbers of a sketch."""
_BLOCK = 4096


@functools.lru_cache(maxsize=8)
def _weights(rows: int, key: int) -> NDArray[np.float64]:
    raw = np.random.PCG64(key).random_raw(rows * SKETCH)  # a stream that numpy keeps
    between = raw.reshape(rows, SKETCH) * 2.0**-63 - 1.0
    halves: NDArray[np.float64] = (between + np.copysign(1.0, between)) / 2.0
    return halves  # none of them is small


def sketches(inputs: Sequence[bytes]) -> NDArray[np.float64]:
    """Return (m, 3) sketches of m inputs; NaN for one that is not made of float64."""
    sizes = list(map(len, inputs))
    if sizes and sizes[0] and sizes.count(sizes[0]) == len(sizes):
        return _sketches(inputs) if sizes[0] % 8 == 0 else _no_sketches(len(inputs))
    made = _no_sketches(len(inputs))
    for size in set(sizes) - {0}:
        if size % 8 == 0:
            rows = [row for row, other in enumerate(sizes) if other == size]
            made[rows] = _sketches([inputs[row] for row in rows])
    return made


def _no_sketches(count: int) -> NDArray[np.float64]:
    return np.full((count, SKETCH), np.nan)


def _sketches(inputs: Sequence[bytes]) -> NDArray[np.float64]:
    # Between slow evaluations nothing of numpy is in the caches: each call more of it takes some
    # 15 us instead of 1 (2026-11), of which there is one for points of up to 4096 parameters.
    x = np.frombuffer(b"".join(inputs)).reshape(len(inputs), -1)
    n = x.shape[1]
    if n <= _BLOCK:
        return np.asarray(x.dot(_weights(n, 1)))
    blocks = -(-n // _BLOCK)
    total = np.zeros((len(x), SKETCH))
    with np.errstate(all="ignore"):
        for block in range(blocks):
            part = x[:, block * _BLOCK : (block + 1) * _BLOCK]
            total += part.dot(_weights(_BLOCK, 1)[: part.shape[1]]) * _weights(blocks, 2)[block]
    return total


def are_near(one: NDArray[np.float64], other: NDArray[np.float64], tolerance: float) -> bool:
    """Whether two sketches are of inputs that are equal to a part of their size."""
    with np.errstate(all="ignore"):
        return bool(np.abs(one - other).max() <= tolerance * np.abs(one).max())
