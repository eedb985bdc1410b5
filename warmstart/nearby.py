"""Which remembered fits are near: where a fit stands among those of its model, and an index.

A fit's place is made of the rows of its data (a sketch) and of its numbers: hyperparameters, and
scalars among its arguments. The index has, for each final,

====================================  =====================================================
``n`` family ``+`` data code age      the same data, by rising numbers
``n`` family ``-`` data ~code age     the same data, by falling numbers
``n`` family ``=`` bucket age         rows in common (18 buckets, `RowSketch.buckets`)
``n`` family ``*`` age                any
``o`` key                             the place, and which rows of the index are its own
====================================  =====================================================

where the code of several numbers is their Z-order (Morton 1966), and the newest come first among
equals. A look-up is a fixed number of short scans, whatever the size of the store.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3

from warmstart.backends import MAX_KEY, Backend, Batch, Item
from warmstart.errors import RecordError
from warmstart.fingerprint import Fingerprint, FitSpec, Level
from warmstart.record import UNREADABLE, seal, unseal
from warmstart.rows import pages
from warmstart.sketch import RowSketch, row_hashes, rows_of

__all__ = [
    "Neighbour",
    "Place",
    "distance",
    "forget",
    "index",
    "neighbour",
    "neighbours",
    "place_of",
    "rows_in",
    "sweep",
]

_CODE_BITS = 128
_LOOKED_AT = 12
"""Places read in a look-up; each is a row of some KB."""
_u64 = struct.Struct(">Q").pack


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fit stands among those of its model.

    Parameters
    ----------
    family : bytes
        What all comparable fits share: the model, and what is neither rows nor numbers.
    rows : RowSketch or None
        The rows of its data, if there are any.
    numbers : dict of str to float
        Its hyperparameters, and the scalars among its arguments.
    same : bytes
        Digest of the data, to the last bit.
    """

    family: bytes
    rows: RowSketch | None
    numbers: dict[str, float]
    same: bytes

    @property
    def data(self) -> bytes:
        """What fits to the same data share."""
        return blake3(msgspec.msgpack.encode(self.rows)).digest(8)


class Neighbour(NamedTuple):
    """A final that is near.

    Parameters
    ----------
    key : Fingerprint
        Under which it is remembered.
    place : Place
        Where it stands.
    level : Level
        What it shares.
    shared : float
        The part of all rows that both have, 0 to 1; 1 for the same data.
    distance : float
        Of the numbers, see `distance`.
    """

    key: Fingerprint
    place: Place
    level: Level
    shared: float
    distance: float

    @property
    def apart(self) -> float:
        """How far it is, all in all: 0 for the same rows and numbers."""
        return 1.0 - self.shared + self.distance


def place_of(spec: FitSpec, rows_in: str | None = None, *, named: bool = False) -> Place:
    """Return where a fit stands. One pass over its data.

    Parameters
    ----------
    spec : FitSpec
        The fit.
    rows_in : str, optional
        The only argument whose rows count: where a curve is fitted its values may all be others.
    named : bool
        Whether parameters are known by name: fits of other numbers of them are near then, too.
    """
    rows, numbers, labels = _parts(spec, rows_in)
    shapes = [f"{a.dtype.str}{a.shape[1:]}" for a in rows]
    key = spec.model_without_parameters() if named else spec.level_key(Level.FAMILY)
    model = key.digest + bytes((named,))
    family = blake3(model + msgspec.msgpack.encode([labels, sorted(numbers), shapes])).digest(16)
    sketch = RowSketch.of(row_hashes(rows)) if rows else None
    same = spec.part("data").digest[:8]
    return Place(family=family, rows=sketch, numbers=numbers, same=same)


def rows_in(spec: FitSpec, name: str | None = None) -> list[np.ndarray[Any, Any]]:
    """Return the arrays that have a fit's rows, as `place_of` finds them."""
    return _parts(spec, name)[0]


def _parts(
    spec: FitSpec, rows_in: str | None
) -> tuple[list[np.ndarray[Any, Any]], dict[str, float], list[str]]:
    arrays: list[Any] = []
    numbers: dict[str, float] = {}
    labels: list[str] = []
    for name, value in spec.data_values():
        if rows_in is None or name == rows_in:
            _sort(name, value, arrays, numbers, labels)
    for name, value in spec.hyper_values().items():
        _sort(f"hyper {name}", value, arrays, numbers, labels)
    return rows_of(arrays), numbers, labels


def _sort(
    name: str, value: Any, arrays: list[Any], numbers: dict[str, float], labels: list[str]
) -> None:
    """Sort one argument into rows, numbers, and what must be the same."""
    if isinstance(value, (bool, str, bytes, type(None))):
        labels.append(f"{name}={value!r}")
    elif isinstance(value, (int, float, np.number)) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"
    ):
        numbers[name] = float(np.real(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _sort(f"{name}[{key!r}]", item, arrays, numbers, labels)
    elif isinstance(value, (tuple, list)) and (
        len(value) <= 16 or not isinstance(value[0], (int, float))
    ):
        for number, item in enumerate(value):
            _sort(f"{name}[{number}]", item, arrays, numbers, labels)
    else:
        arrays.append(value)


def distance(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Return how far two sets of numbers are apart: the norm of the differences of their logs.

    For numbers of different signs, and zeros, the difference over the larger one stands for that
    of the logs.
    """
    total = 0.0
    for name, a in ours.items():
        b = theirs.get(name, math.nan)
        if a == b:
            continue
        if (a > 0.0 and b > 0.0) or (a < 0.0 and b < 0.0):
            total += (math.log(abs(a)) - math.log(abs(b))) ** 2
        else:
            total += (abs(a - b) / max(abs(a), abs(b)) + 1.0) ** 2
    return math.sqrt(total) if not math.isnan(total) else math.inf


def _code(numbers: Mapping[str, float]) -> int:
    """Return the Z-order of numbers: the bits of all of them, in turn."""
    if not numbers:
        return 0
    ordered = []
    for name in sorted(numbers):
        (bits,) = struct.unpack(">Q", struct.pack(">d", numbers[name]))
        ordered.append(bits ^ ((1 << 64) - 1) if bits >> 63 else bits | 1 << 63)
    code, taken = 0, 0
    for bit in range(63, -1, -1):
        for bits in ordered:
            if taken < _CODE_BITS:
                code = code << 1 | (bits >> bit & 1)
                taken += 1
    return code << (_CODE_BITS - taken)


def _coded(place: Place, sign: bytes) -> tuple[bytes, bytes]:
    """Return the prefix of all with the same data, and the row of a place without its age."""
    code = _code(place.numbers)
    if sign == b"-":
        code ^= (1 << _CODE_BITS) - 1
    prefix = b"n" + place.family + sign + place.data
    return prefix, prefix + code.to_bytes(_CODE_BITS // 8, "big")


def _bucket_rows(place: Place) -> list[bytes]:
    buckets = [] if place.rows is None else place.rows.buckets()
    rows = [b"n" + place.family + b"=" + bucket for bucket in buckets]
    return [*rows, b"n" + place.family + b"*"]


class _Listed(msgspec.Struct, frozen=True):
    """What the index has of one final."""

    place: Place
    rows: list[bytes]


def index(key: Fingerprint, place: Place) -> dict[bytes, bytes]:
    """Return the rows by which a final is found; for the batch that writes it."""
    age = _u64((1 << 64) - 1 - time.time_ns())
    rows = [_coded(place, sign)[1] + age for sign in (b"+", b"-")]
    rows += [row + age for row in _bucket_rows(place)]
    value = seal(key.digest)
    listed = _Listed(place, rows)
    return dict.fromkeys(rows, value) | {
        b"o" + key.digest: seal(msgspec.msgpack.encode(listed)),
    }


def _listed(backend: Backend, key: bytes) -> _Listed | None:
    item = backend.get(b"o" + key)
    if item is None:
        return None
    try:
        return msgspec.msgpack.decode(unseal(item.value), type=_Listed)
    except UNREADABLE:
        return None


def forget(backend: Backend, key: bytes) -> None:
    """Take a key out of the index."""
    listed = _listed(backend, key)
    if listed is not None:
        rows = [row for row in listed.rows if row[:1] == b"n" and len(row) <= MAX_KEY]
        backend.apply(Batch(deletes=[*rows, b"o" + key]))


def sweep(backend: Backend, keys: Container[bytes]) -> None:
    """Take all but some keys out of the index.

    Reads one row a key; all rows of the index only if a list of them is damaged.
    """
    damaged = False
    for item in pages(backend, b"o", head=1):
        key = item.key[1:]
        listed = _listed(backend, key)
        damaged |= listed is None
        if listed is None or key not in keys:
            rows = [] if listed is None else listed.rows
            backend.apply(Batch(deletes=[*rows, item.key]))
    if damaged:
        strays = [
            item.key
            for item in pages(backend, b"n", head=None)
            if backend.get(b"o" + _key_in(item)) is None
        ]
        for start in range(0, len(strays), 1000):
            backend.apply(Batch(deletes=strays[start : start + 1000]))


def _key_in(item: Item) -> bytes:
    try:
        return unseal(item.value)
    except RecordError:
        return b""


def neighbours(backend: Backend, place: Place, limit: int = 8) -> list[Neighbour]:
    """Return the nearest finals of the same family, the nearest first.

    Notes
    -----
    At most 20 scans of a few rows and a dozen reads; reading writes nothing.
    """
    keys: dict[bytes, None] = {}

    def take(prefix: bytes, after: bytes, count: int) -> None:
        for item in backend.scan(prefix, after=after, limit=count):
            keys[_key_in(item)] = None

    for sign in (b"+", b"-"):
        take(*_coded(place, sign), limit)
    for row in _bucket_rows(place):
        if len(keys) >= _LOOKED_AT:
            break
        take(row, b"", 4)
    found = []
    for key in list(keys)[: 2 * limit + _LOOKED_AT]:
        listed = _listed(backend, key)
        if listed is not None:
            found.append(_compare(Fingerprint(key), listed.place, place))
    found.sort(key=lambda neighbour: neighbour.apart)
    return found[:limit]


def neighbour(backend: Backend, key: Fingerprint, place: Place) -> Neighbour | None:
    """Return a final of the same family by its key, if it is in the index."""
    listed = _listed(backend, key.digest)
    if listed is None or listed.place.family != place.family:
        return None
    return _compare(key, listed.place, place)


def _compare(key: Fingerprint, theirs: Place, ours: Place) -> Neighbour:
    if theirs.rows == ours.rows:
        shared = 1.0
    elif theirs.rows is None or ours.rows is None:
        shared = 0.0
    else:
        shared = ours.rows.shares(theirs.rows)
    apart = distance(ours.numbers, theirs.numbers)
    if theirs.same == ours.same and apart == 0.0:
        level = Level.PROBLEM
    elif shared == 1.0 and apart > 0.0:
        level = Level.SIBLING_HYPER
    else:
        level = Level.SIBLING_DATA if apart == 0.0 else Level.FAMILY
    return Neighbour(key, theirs, level, shared, apart)
