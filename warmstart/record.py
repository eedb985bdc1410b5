"""Records: one entry of the store as bytes.

All numbers are little-endian.

==========  ========  =====================================================================
offset      size      what
==========  ========  =====================================================================
0           4         ``WSrc``
4           2         format version, 1
6           1         kind: 1 checkpoint, 2 final
7           1         flags: bit 0, the objective is known
8           8         objective, float64
16          8         written, float64, UTC seconds since the epoch
24          8         tag of the producer: the first bytes of BLAKE3 of its text
32          4         h, length of the header
36          4         reserved, 0
40          8         b, length of the body
48          h         header: msgpack array, see `_Header`; its payload's tree and table are
                      those of `warmstart.codec`
48+h        p         zeros up to a multiple of 16
48+h+p      b         body: the buffers of the payload, each at a multiple of 16
48+h+p+b    32        BLAKE3 of everything before
==========  ========  =====================================================================

The first 48 bytes rank a record without decoding it. The store's small rows are a body and
16 bytes of its BLAKE3 (`seal`).

References
----------
msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md; BLAKE3:
https://github.com/BLAKE3-team/BLAKE3-specs; Zstandard: RFC 8878.
"""

from __future__ import annotations

import enum
import functools
import math
import re
import struct
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3

from warmstart.codec import ALIGNMENT, MAX_DECODED, decode_payload, encode_payload
from warmstart.errors import ArgumentError, CodecError, RecordError, RecordVersionError
from warmstart.fingerprint import Fingerprint

__all__ = [
    "HEAD_SIZE",
    "UNREADABLE",
    "Entry",
    "EntryKind",
    "Head",
    "Start",
    "decode_record",
    "encode_record",
    "producer_tag",
    "read_head",
    "seal",
    "unseal",
]

UNREADABLE = (RecordError, msgspec.MsgspecError, RecursionError, UnicodeError)
"""What opening and decoding a row can raise, whatever is in it."""
_MAGIC = b"WSrc"
_VERSION = 1
_PREFIX = struct.Struct("<4sHBBdd8sIIQ")
HEAD_SIZE = _PREFIX.size
_DIGEST = 32
_SEAL = 16
_MAX_HEADER = 1 << 25
_RUN = re.compile(r"[0-9a-f]{32}")
_MAX_COUNT = (1 << 63) - 1
_SOURCES = ("cold", "checkpoint", "journal", "near", "user")


class EntryKind(enum.Enum):
    """What an entry is to the fit that left it.

    Attributes
    ----------
    CHECKPOINT
        A state on the way.
    FINAL
        The result.
    """

    CHECKPOINT = "checkpoint"
    FINAL = "final"


class Start(msgspec.Struct, frozen=True):
    """Where the run that wrote an entry began.

    Parameters
    ----------
    source : {"cold", "checkpoint", "journal", "near", "user"}
        The caller's own x0, an earlier run of the same fit, or another fit.
    run : str or None
        The run that it started from, 32 hexadecimal digits.
    level : str or None
        The rung of the ladder of keys on which that was found.
    distance : float or None
        How far it was on that rung.
    """

    source: str = "cold"
    run: str | None = None
    level: str | None = None
    distance: float | None = None

    def __post_init__(self) -> None:
        if self.source not in _SOURCES:
            raise ArgumentError(f"source is one of {', '.join(_SOURCES)}, not {self.source!r:.60}")


_COLD = Start()
_FROM_COLD = ("cold", None, None, None)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What one run left under one key.

    Parameters
    ----------
    key : Fingerprint
        The fit.
    run : str
        The attempt: 32 lowercase hexadecimal digits.
    kind : EntryKind
        ``CHECKPOINT`` or ``FINAL``.
    payload : object
        Bytes, or a tree of arrays and scalars.
    objective : float or None
        The objective at the payload's point; NaN and infinities are unknown.
    iteration, nfev : int or None
        Iterations and evaluations so far.
    producer : str
        The libraries, and if need be the code, that made it.
    start : Start
        Where the run began.
    written : float
        UTC seconds since the epoch.
    sequence : int
        The store's number of the write; 0 before it.
    dropped : tuple of str
        Paths of what was in the payload and could not be kept.

    Notes
    -----
    Making one checks nothing (a look-up makes one); `encode_record` does.
    """

    key: Fingerprint
    run: str
    kind: EntryKind
    payload: Any
    objective: float | None = None
    iteration: int | None = None
    nfev: int | None = None
    producer: str = ""
    start: Start = _COLD
    written: float = 0.0
    sequence: int = 0
    dropped: tuple[str, ...] = ()


class Head(NamedTuple):
    """What the first bytes of a record say."""

    kind: EntryKind
    objective: float | None
    written: float
    producer_tag: bytes
    version: int


_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Run = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class _Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The rest of an entry, in this order; the schema is closed."""

    key: _Digest
    run: _Run
    iteration: _Count | None
    nfev: _Count | None
    producer: str
    start: tuple[str, _Run | None, str | None, float | None]
    dropped: list[str]
    table: list[int]
    tree: Any


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)
_KINDS = {1: EntryKind.CHECKPOINT, 2: EntryKind.FINAL}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}


@functools.lru_cache(maxsize=64)
def producer_tag(producer: str) -> bytes:
    """Return the eight bytes by which a head names its producer.

    Examples
    --------
    >>> producer_tag("numpy 2.4.6 scipy 1.17.1").hex()
    '7333eeec3ddf8c9b'
    """
    return blake3(producer.encode("utf-8", "surrogatepass")).digest(8)


def encode_record(entry: Entry) -> tuple[bytes, tuple[str, ...]]:
    """Return an entry's bytes, and the paths of what they leave out.

    Parameters
    ----------
    entry : Entry
        Its sequence is not in the bytes: the store numbers its writes.

    Returns
    -------
    tuple of (bytes, tuple of str)
        Equal entries give equal bytes. The paths are in the bytes too, behind those that the
        entry has already.

    Raises
    ------
    ArgumentError
        If an attribute of the entry is of the wrong type or value.
    CodecError
        If the payload is of a type that cannot be kept at all.

    Notes
    -----
    Some 8 us for an OptimizeResult of 10 parameters. The bytes are complete before they are
    digested, so that an array that changes meanwhile cannot make a record that is no record.

    Examples
    --------
    >>> entry = Entry(
    ...     key=Fingerprint(bytes(32)),
    ...     run="0" * 32,
    ...     kind=EntryKind.CHECKPOINT,
    ...     payload={"x": [1.0, 2.0], "callback": print},
    ... )
    >>> record, dropped = encode_record(entry)
    >>> dropped
    ('callback',)
    >>> decode_record(record).payload
    {'x': [1.0, 2.0]}
    """
    _check(entry)
    payload = encode_payload(entry.payload)
    start = entry.start
    objective = _finite(entry.objective)
    header = _encoder.encode(
        (  # as a `_Header`, which is an array too
            entry.key.digest,
            bytes.fromhex(entry.run),
            None if entry.iteration is None else int(entry.iteration),
            None if entry.nfev is None else int(entry.nfev),
            entry.producer,
            _FROM_COLD
            if start is _COLD
            else (
                start.source,
                None if start.run is None else bytes.fromhex(start.run),
                start.level,
                None if start.distance is None else float(start.distance),
            ),
            [*entry.dropped, *payload.dropped],
            payload.table,
            payload.tree,
        )
    )
    if len(header) > _MAX_HEADER:
        raise CodecError(
            f"a payload of so many single values takes {len(header)} bytes: use arrays"
        )
    size = sum(len(part) for part in payload.body)
    prefix = _PREFIX.pack(
        _MAGIC,
        _VERSION,
        _NUMBERS[entry.kind],
        objective is not None,
        0.0 if objective is None else objective,  # -0.0 stays what it is
        entry.written,
        producer_tag(entry.producer),
        len(header),
        0,
        size,
    )
    padding = bytes(-(HEAD_SIZE + len(header)) % ALIGNMENT)
    record = b"".join((prefix, header, padding, *payload.body))
    return record + blake3(record).digest(), payload.dropped


def _finite(objective: float | None) -> float | None:
    try:
        return objective if objective is not None and math.isfinite(objective) else None
    except OverflowError:  # an int beyond all floats
        return None


def _check(entry: Entry) -> None:
    # Types that have passed once pass again: a look instead of nine (1.2 of 1.6 us, 2026-11).
    types = (
        *(type(entry.key), type(entry.kind), type(entry.objective), type(entry.iteration)),
        *(type(entry.nfev), type(entry.producer), type(entry.start), type(entry.written)),
        type(entry.dropped),
    )
    if types not in _passed:
        _check_types(entry)
        if len(_passed) > 1000:  # classes made in a loop
            _passed.clear()
        _passed.add(types)
    start = entry.start
    _check_run("run", entry.run)
    for name, count in (("iteration", entry.iteration), ("nfev", entry.nfev)):
        if count is not None and not 0 <= count <= _MAX_COUNT:
            raise ArgumentError(f"{name} is a count from 0 up, not {count!r:.60}")
    if not math.isfinite(entry.written):
        raise ArgumentError(f"written is in seconds since the epoch, not {entry.written!r}")
    if not entry.producer.isascii():
        _check_text("producer", entry.producer)
    for path in entry.dropped:
        _check_text("a path in dropped", path)
    if start is not _COLD:
        _check_start(start)


_passed: set[tuple[type, ...]] = set()


def _check_types(entry: Entry) -> None:
    for name, kinds in _ATTRIBUTES:
        value = getattr(entry, name)
        if not isinstance(value, kinds) or type(value) is bool:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ArgumentError(f"{name} of an Entry is {wanted}, not {value!r:.60}")


def _check_run(name: str, run: str) -> None:
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise ArgumentError(f"{name} is 32 lowercase hexadecimal digits, not {run!r:.60}")


def _check_start(start: Start) -> None:
    if start.run is not None:
        _check_run("start.run", start.run)
    if start.level is not None:
        _check_text("start.level", start.level)
    distance = start.distance
    if distance is not None and not (
        isinstance(distance, (*_INTEGER, *_REAL)) and math.isfinite(distance)
    ):
        raise ArgumentError(f"start.distance is a finite number or None, not {distance!r:.60}")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise ArgumentError(f"{name} is text that UTF-8 can hold, not {text!r:.60}") from error


_NONE = type(None)
_INTEGER = (int, np.integer)
_REAL = (float, np.floating)
_ATTRIBUTES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("key", (Fingerprint,)),
    ("kind", (EntryKind,)),
    ("objective", (*_REAL, *_INTEGER, _NONE)),
    ("iteration", (*_INTEGER, _NONE)),
    ("nfev", (*_INTEGER, _NONE)),
    ("producer", (str,)),
    ("start", (Start,)),
    ("written", (*_REAL, *_INTEGER)),
    ("dropped", (tuple,)),
)


def read_head(data: bytes) -> Head:
    """Return what ranks a record, from its first `HEAD_SIZE` bytes.

    Parameters
    ----------
    data : bytes
        A record, or so many bytes of it; the rest is not looked at.

    Returns
    -------
    Head
        What the record says of itself. The digest, which covers it, is not checked here.

    Raises
    ------
    RecordVersionError
        If the record is of a newer format.
    RecordError
        If it is no record.
    """
    kind, flags, objective, written, tag, _, _ = _read_prefix(data)
    return Head(kind, objective if flags else None, written, tag, _VERSION)


def _read_prefix(data: bytes) -> tuple[EntryKind, int, float, float, bytes, int, int]:
    if len(data) < HEAD_SIZE:
        raise RecordError(f"a record has at least {HEAD_SIZE} bytes, not {len(data)}")
    magic, version, kind, flags, objective, written, tag, header, zero, body = _PREFIX.unpack_from(
        data
    )
    if magic != _MAGIC:
        raise RecordError("these bytes do not begin as a record does")
    if version > _VERSION:
        raise RecordVersionError(
            f"the record is of format {version}, this version reads {_VERSION}: upgrade warmstart"
        )
    if version != _VERSION or kind not in _KINDS or flags > 1 or zero:
        raise RecordError("the head of the record is damaged")
    if not math.isfinite(objective) or not math.isfinite(written) or (objective and not flags):
        raise RecordError("the head of the record has a number that is none")
    return _KINDS[kind], flags, objective, written, tag, header, body


def decode_record(data: bytes, *, sequence: int = 0, max_bytes: int = MAX_DECODED) -> Entry:
    """Return the entry that `encode_record` made into bytes.

    Parameters
    ----------
    data : bytes
        Any bytes.
    sequence : int
        The store's number of the write.
    max_bytes : int
        Bytes that the payload's arrays may have.

    Returns
    -------
    Entry
        Its arrays are fresh: nothing refers to `data` any more.

    Raises
    ------
    RecordVersionError
        If the record is of a newer format.
    RecordError
        If it is anything but a whole, undamaged record; no other exception is raised.
    """
    kind, flags, objective, written, tag, header_size, body_size = _read_prefix(data)
    start = HEAD_SIZE + header_size
    start += -start % ALIGNMENT
    if header_size > _MAX_HEADER or start + body_size + _DIGEST != len(data):
        raise RecordError("the record is not as long as it says")
    view = memoryview(data)
    if blake3(view[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise RecordError("the record is damaged: its digest disagrees")
    try:
        header = _decoder.decode(view[HEAD_SIZE : HEAD_SIZE + header_size])
        source, run, level, distance = header.start
        if producer_tag(header.producer) != tag:
            raise RecordError("the record's head and its header name different producers")
        return Entry(
            key=Fingerprint(header.key),
            run=header.run.hex(),
            kind=kind,
            payload=decode_payload(
                header.tree, header.table, view[start : start + body_size], max_bytes=max_bytes
            ),
            objective=objective if flags else None,
            iteration=header.iteration,
            nfev=header.nfev,
            producer=header.producer,
            start=_COLD
            if header.start == _FROM_COLD
            else Start(source, None if run is None else run.hex(), level, distance),
            written=written,
            sequence=sequence,
            dropped=tuple(header.dropped),
        )
    except (msgspec.MsgspecError, CodecError, ArgumentError, RecursionError) as error:
        raise RecordError(f"the record cannot be read: {error}") from error
    except (UnicodeError, MemoryError, OverflowError) as error:
        raise RecordError(f"the record cannot be read: {error!r}") from error


def seal(body: bytes) -> bytes:
    """Return `body` with a digest behind it.

    Examples
    --------
    >>> unseal(seal(b"a small row"))
    b'a small row'
    """
    return body + blake3(body).digest(_SEAL)


def unseal(data: bytes) -> bytes:
    """Return what `seal` was given.

    Raises
    ------
    RecordError
        If the digest disagrees.
    """
    body, digest = data[:-_SEAL], data[-_SEAL:]
    if len(data) < _SEAL or blake3(body).digest(_SEAL) != digest:
        raise RecordError("a row of the store is damaged: its digest disagrees")
    return body
