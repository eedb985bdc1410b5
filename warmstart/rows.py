"""The rows of a store: their keys, how records are read out of them, and how they rank.

All rows are keyed by bytes so that one prefix is one question:

=============================  ===================================================
``a`` hash (32)                the bytes of an artifact
``b`` hash                     how many artifacts are made of them
``c`` run (16) name            an artifact (`Artifact`)
``d`` run                      what people say of a run (`Document`)
``e`` key (32) run (16) slot   a record: one slot of one run of one fit
``h`` process (8)              machine, code and versions (`warmstart.host`)
``i`` run namespace NUL step   a state, and its active tasks
``j`` fit file NUL place       a piece of a journal, see `warmstart.carrying`
``k`` key                      what the key means (`SpecSummary`), to explain it
``m`` run name NUL time        a piece of a series
``p`` key                      pinned: never evicted, never expires
``q`` run                      what is still to be sent, see `warmstart.tier`
``r`` run (16)                 how the run went (`RunInfo`)
``s``                          when the store was last swept
``t`` day                      what hits have saved (`Saved`)
``u`` key                      when the key was last used
``w`` path                     what fits have cost, see `warmstart.learned`
``x`` id (16)                  an experiment
``y`` hash of a name           the id of the experiment of that name
``z`` key                      who is at the fit, see `warmstart.flight`
=============================  ===================================================

A run has at most two slots: its best checkpoint (``b``) and a later, worse one (``l``); or its
final (``f``), which takes the place of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from warmstart.backends import Backend, Item
from warmstart.errors import RecordError, RecordVersionError
from warmstart.fingerprint import Fingerprint
from warmstart.record import (
    HEAD_SIZE,
    UNREADABLE,
    Entry,
    EntryKind,
    Head,
    decode_record,
    read_head,
    seal,
    unseal,
)

__all__ = [
    "BEST",
    "FINAL",
    "LATEST",
    "SWEPT",
    "Digits",
    "Lease",
    "RunInfo",
    "Slot",
    "entry_row",
    "heads",
    "info_row",
    "is_row",
    "is_sound",
    "pages",
    "pin_row",
    "rank",
    "rank_by_age",
    "read",
    "read_info",
    "read_small",
    "slot_for",
    "small",
    "stamp_row",
    "summary_row",
]

BEST, FINAL, LATEST = b"b", b"f", b"l"
SWEPT = b"s"
_PAGE = 1000
_SHAPES = {b"e": 50, b"m": 0, b"c": 0} | dict.fromkeys((b"a", b"b", b"k", b"p", b"u"), 33)
_SHAPES |= dict.fromkeys((b"d", b"r", b"x"), 17)
"""Bytes in the keys of rows; 0 for those that end with a name."""
Digits = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""The id of a run or of an experiment."""
_T = TypeVar("_T")


class RunInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one attempt at a fit, or another piece of work, went.

    Parameters
    ----------
    run : str
        Its id, 32 hexadecimal digits that sort by time.
    key : str
        Of the fit, 64 digits; empty for work that is none.
    status : str
        ``"pending"``, ``"running"``, ``"completed"``, ``"failed"`` (by an exception) or
        ``"cancelled"`` (Ctrl-C, or ended without a result). A run that was killed stays
        ``"running"``; see `Run.is_dead`.
    started, ended : float or None
        UTC seconds since the epoch.
    error : str or None
        Type and message of the exception.
    experiment, parent : str or None
        Ids of the experiment, and of the run of which it is a part.
    what : str
        The function that was called, and the method.
    process : str
        Which process did it, see `warmstart.host`.
    owner : str
        By which others see whether that lives.
    beat : float or None
        When it was last known to.
    source, level, start_run, distance
        Where it began, as `Start` has it.
    evaluations, saved : int
        Calls of the user's functions, and those that were not needed.
    seconds, seconds_saved : float
        That they took, or did not.
    objective : float or None
        At the result.
    """

    run: Digits
    key: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    status: str
    started: float
    ended: float | None = None
    error: str | None = None
    experiment: Digits | None = None
    parent: Digits | None = None
    what: str = ""
    process: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    owner: str = ""
    beat: float | None = None
    source: str = ""
    level: str | None = None
    start_run: Digits | None = None
    distance: float | None = None
    evaluations: int = 0
    saved: int = 0
    seconds: float = 0.0
    seconds_saved: float = 0.0
    objective: float | None = None


class Lease(msgspec.Struct, frozen=True):
    """Who is at a fit.

    Parameters
    ----------
    run : str
        The run's id.
    owner : str
        Its process, see `warmstart.host.owner`.
    until : float
        UTC seconds since the epoch, by the owner's clock.
    """

    run: str
    owner: str
    until: float


def entry_row(key: Fingerprint, run: str = "", slot: bytes = b"") -> bytes:
    """Return the row of a slot, or the prefix of a run's or a key's slots."""
    return b"e" + key.digest + bytes.fromhex(run) + slot


def summary_row(key: bytes) -> bytes:
    """Return the row that says what a key means."""
    return b"k" + key


def pin_row(key: bytes) -> bytes:
    """Return the row that pins a key."""
    return b"p" + key


def info_row(run: str) -> bytes:
    """Return the row that says how a run went."""
    return b"r" + bytes.fromhex(run)


def stamp_row(key: bytes) -> bytes:
    """Return the row that says when a key was last used."""
    return b"u" + key


class Slot(NamedTuple):
    """A record's row, and what its head says: None if it is damaged or of a newer format."""

    item: Item
    head: Head | None
    newer: bool = False

    @property
    def key(self) -> bytes:
        """32 bytes."""
        return self.item.key[1:33]

    @property
    def run(self) -> str:
        """32 hexadecimal digits."""
        return self.item.key[33:49].hex()

    @property
    def name(self) -> bytes:
        """``b"b"``, ``b"f"`` or ``b"l"``."""
        return self.item.key[49:]


def heads(items: Iterable[Item]) -> Iterator[Slot]:
    """Read the heads of records."""
    for item in items:
        try:
            yield Slot(item, read_head(item.value))
        except RecordVersionError:
            yield Slot(item, None, newer=True)
        except RecordError:
            yield Slot(item, None)


def pages(
    backend: Backend, prefix: bytes, *, limit: int = _PAGE, head: int | None = HEAD_SIZE
) -> Iterator[Item]:
    """Iterate over all rows with a prefix, a page at a time: nothing stays open in between.

    Rows whose keys were not made here are passed over.
    """
    last = b""
    while page := backend.scan(prefix, after=last, limit=limit, head=head):
        yield from (item for item in page if is_row(item.key))
        last = page[-1].key


def is_row(key: bytes) -> bool:
    """Return whether a key is as long as those of its kind are, and ends with a name if they do."""
    size = _SHAPES.get(key[:1], len(key))
    if size:
        return len(key) == size
    name = key[17:]
    if key[:1] == b"m":  # NUL and ten bytes that part the pieces
        name, mark = name[:-11], name[-11:-10]
        if mark != b"\0":
            return False
    try:
        return bool(name.decode())
    except UnicodeDecodeError:
        return False


def read(item: Item) -> Entry:
    """Return the entry of a whole row.

    Raises
    ------
    RecordError
        If it is damaged, or was not written for the row in which it stands.
    """
    entry = decode_record(item.value, sequence=item.sequence)
    if not item.key.startswith(entry_row(entry.key, entry.run)):
        raise RecordError("stands in a row that is not its own")
    return entry


def is_sound(item: Item) -> bool:
    """Whether a whole row is as it was written."""
    try:
        if item.key[:1] == b"e":
            read(item)
        else:
            unseal(item.value)
    except RecordError:
        return False
    return True


def rank(slot: Slot, tag: bytes) -> tuple[bool, float, int]:
    """Return the sort key of a slot: the best comes first.

    The newest final of the producer with this tag; else the lowest objective, the newest
    among equals; unknown objectives last.
    """
    assert slot.head is not None
    head, age = slot.head, -slot.item.sequence
    if head.kind is EntryKind.FINAL and head.producer_tag == tag:
        return (False, 0.0, age)
    return (True, float("inf") if head.objective is None else head.objective, age)


def rank_by_age(slot: Slot, tag: bytes) -> tuple[bool, float, int]:
    """Return the sort key of a slot: finals of the producer first, then the newest."""
    final, _, age = rank(slot, tag)
    return (final, 0.0, age)


def slot_for(entry: Entry, own: Mapping[bytes, Slot]) -> tuple[bytes | None, list[bytes]]:
    """Return the slot for an entry of a run that has the slots `own`, and the rows it ousts.

    Returns
    -------
    tuple of (bytes or None, list of bytes)
        None if the run has a final, which no checkpoint may demote.
    """
    if entry.kind is EntryKind.FINAL:
        return FINAL, [slot.item.key for name, slot in own.items() if name != FINAL]
    if FINAL in own:
        return None, []
    best = own[BEST].head if BEST in own else None
    if (
        best is not None
        and best.objective is not None
        and (entry.objective is None or entry.objective > best.objective)
    ):
        return LATEST, []
    return BEST, [own[LATEST].item.key] if LATEST in own else []


def small(value: object) -> bytes:
    """Return the sealed bytes of one of the store's own small rows."""
    return seal(msgspec.msgpack.encode(value))


def read_small(item: Item | None, kind: type[_T]) -> _T | None:
    """Return the content of one of the store's own rows; a damaged one is a missing one."""
    if item is None:
        return None
    try:
        return msgspec.msgpack.decode(unseal(item.value), type=kind)
    except UNREADABLE:
        return None


def read_info(item: Item | None) -> RunInfo | None:
    """Return how a run went; a row that tells of another run than its own is a damaged one."""
    found = read_small(item, RunInfo)
    mine = found is not None and item is not None and item.key == info_row(found.run)
    return found if mine else None
