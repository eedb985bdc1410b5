"""Keeping a store within its bounds: the census of its rows, what goes first, what is damaged.

Works on a backend alone, so that it serves every backend and needs no open `Store`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from warmstart import artifacts, learned, nearby
from warmstart.backends import Backend, Batch, Item
from warmstart.carrying import written_at
from warmstart.errors import RecordError, RecordVersionError, StoreError
from warmstart.record import EntryKind, unseal
from warmstart.rows import (
    Lease,
    Slot,
    heads,
    info_row,
    is_row,
    pages,
    pin_row,
    read,
    read_info,
    read_small,
    stamp_row,
    summary_row,
)

__all__ = ["StoreStats", "VerifyReport", "stats", "sweep", "verify"]

_FILL = 0.9
"""Part of the budget to which a sweep goes down, so that the next one is some time away."""
_ORPHAN_AGE = 86_400.0
"""Seconds for which the row of a run without entries is kept: it may still write one."""
_BATCH = 2000
_SHARES = (0.1, 0.5)
"""Parts of the budget that the history of fits keeps, and what people made runs of, whatever
room entries need: an entry can be made again, what people have logged can not.

The history is in the order of time, so that pages become free where it ends, while what is
deleted here and there among entries leaves pages half empty: so it goes first.
"""
_TOLD = 600
"""Bytes, about, of the rows that tell of a key and of a run."""
_LEFT = {b"m": 1, b"i": 1, b"c": None}
"""Rows that runs leave besides entries (series, states, artifacts), and the bytes to read."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a store, and what this process did with it.

    Parameters
    ----------
    address : str
        Where it is.
    keys, entries, finals, checkpoints, pinned, unreadable : int
        Counts; `unreadable` are entries with a damaged or newer head.
    bytes, budget : int
        What live pairs occupy, the engine's overhead included, and what they may.
    experiments, runs, series, artifacts, states : int
        Counts of what was tracked; `series` are the pieces in which they are kept.
    journals, journal_bytes : int
        Recorded runs that can be gone on with, and what their files occupy.
    waiting : int
        Runs that are in the folder in front of a server, and not there yet.
    counters : dict of str to int
        Events in this process: hits, misses, written, refused, damaged, evicted, expired.
    """

    address: str
    keys: int
    entries: int
    finals: int
    checkpoints: int
    pinned: int
    unreadable: int
    bytes: int
    budget: int
    experiments: int
    runs: int
    series: int
    artifacts: int
    states: int
    journals: int
    journal_bytes: int
    waiting: int
    counters: dict[str, int]


@dataclass(slots=True)
class VerifyReport:
    """What a full check found.

    Parameters
    ----------
    records : int
        Records read.
    damaged : list of str
        ``key/run.slot: reason`` for each record that is not what was written.
    newer : int
        Records of a newer format, left alone.
    structure : list of str
        What is wrong with the engine's own files.
    repaired : int
        Damaged records that were deleted.
    mended : list of str
        What was wrong with the engine's own files: frames that were written again, files that were
        set aside (in the store's folder ``quarantine``) for new ones.
    """

    records: int = 0
    damaged: list[str] = field(default_factory=list)
    newer: int = 0
    structure: list[str] = field(default_factory=list)
    repaired: int = 0
    mended: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged, or all of it has been removed."""
        return len(self.damaged) == self.repaired and not self.structure


def _cost(size: int) -> int:
    """Return the bytes on disk of a value, about: above 2 KB it gets pages of its own in LMDB."""
    return size + 96 if size < 2000 else -(-(size + 16) // 4096) * 4096


def sweep(
    backend: Backend,
    *,
    now: float,
    ttl: float | None,
    budget: int,
    keep: bytes = b"",
    runs: Container[bytes] = (),
) -> Counter[str]:
    """Delete what is damaged, then what is expired, then what the budget has no room for.

    Parameters
    ----------
    backend : Backend
        Must be writable.
    now : float
        UTC seconds since the epoch.
    ttl : float or None
        Seconds after the last use or writing, whichever is later.
    budget : int
        Bytes; if exceeded, entries go until a tenth of it is free.
    keep : bytes
        Prefix of rows that stay whatever happens: what was just written.
    runs : container of bytes
        Ids of runs (16 bytes) of which everything stays.

    Returns
    -------
    Counter
        Entries deleted, by ``"damaged"``, ``"expired"`` and ``"evicted"``.

    Notes
    -----
    Reads every head once: 2 s for a million entries (LMDB, 2026-11). Every deletion holds only
    if the row has not moved since, nor its key been pinned, so a writer that is faster wins.
    """
    gone: Counter[str] = Counter()
    stamps = {
        item.key[1:]: read_small(item, float) or 0.0
        for item in pages(backend, stamp_row(b""), head=None)
    }
    pins = {item.key[1:] for item in pages(backend, pin_row(b""))}
    live: list[Slot] = []
    doomed: list[tuple[Item, str]] = []
    for slot in heads(pages(backend, b"e")):
        spared = slot.newer or slot.key in pins or slot.item.key[33:49] in runs
        spared = spared or (keep != b"" and slot.item.key.startswith(keep))
        if slot.head is None and not slot.newer:
            doomed.append((slot.item, "damaged"))
        elif slot.head is not None and not spared:
            used = max(slot.head.written, stamps.get(slot.key, 0.0))
            if ttl is not None and used < now - ttl:
                doomed.append((slot.item, "expired"))
            else:
                live.append(slot)
    _delete(backend, doomed, gone)
    if backend.size() > budget:
        live.sort(key=lambda s: (s.key in stamps, stamps.get(s.key, 0.0), s.item.sequence))
        victims = [slot.item for slot in live]
        _shorten_runs(backend, budget, _SHARES, now, runs)
        while victims and backend.size() > int(_FILL * budget):
            victims = _make_room(backend, victims, budget, gone)
            _delete_orphans(backend, now, ttl)
            _shorten_runs(backend, budget, _SHARES, now, runs)
    _delete_orphans(backend, now, ttl)
    if backend.size() > budget:
        _shorten_runs(backend, budget, (0.0, 0.0), now, runs)
    return gone


def _shorten_runs(
    backend: Backend,
    budget: int,
    shares: tuple[float, float],
    now: float,
    spared: Container[bytes],
) -> None:
    """Delete what runs have left besides entries, the oldest first, until there is room.

    The newest of it stays, up to these parts of the budget for fits and for other runs.
    """
    backend.flush()
    if backend.size() <= int(_FILL * budget):
        return
    victims: list[Item] = []
    for share, left in zip(shares, _left_by_runs(backend, now, spared), strict=True):
        newest = np.cumsum([_occupied(item) for item in left])
        victims[:0] = left[int(np.searchsorted(newest, share * budget, side="right")) :]
    while victims and (excess := backend.size() - int(_FILL * budget)) > 0:
        doomed = []
        while victims and excess > 0:
            doomed.append(victims.pop())
            excess -= _occupied(doomed[-1])
        _delete_left(backend, doomed)
        backend.flush()  # only what has reached the durable part shows in its size


def _delete_left(backend: Backend, items: list[Item]) -> None:
    """Delete what runs have left."""
    for item in items:
        if item.key[:1] == b"c":
            artifacts.delete(backend, item.key[1:17].hex(), item.key[17:].decode())
    plain = [(item, "left") for item in items if item.key[:1] != b"c"]
    _delete(backend, plain, Counter())


def _occupied(item: Item) -> int:
    """Return the bytes that go with a row."""
    made = read_small(item, artifacts.Artifact) if item.key[:1] == b"c" else None
    return _cost(item.size) + (0 if made is None else _cost(made.size))


def _left_by_runs(
    backend: Backend, now: float, spared: Container[bytes]
) -> tuple[list[Item], list[Item]]:
    """Return what runs have left that are over: those of fits, and those that have a document.

    What goes first stands last: the oldest; what tells of a run goes after all else that it has
    left, and not while it has an entry. A run that was killed is over when it has given no sign
    of life for a day.
    """
    kept = {item.key[33:49] for item in pages(backend, b"e", head=1)}
    told = list(pages(backend, b"d", head=1))
    people = {item.key[1:17] for item in told}
    running, ended = set(), []
    for item in pages(backend, info_row(""), head=None):
        info = read_info(item)
        runs = info is not None and info.status == "running"
        if info is not None and runs and (info.beat or info.started) > now - _ORPHAN_AGE:
            running.add(item.key[1:])
        else:
            ended.append(item)
    found = [item for letter, head in _LEFT.items() for item in pages(backend, letter, head=head)]
    found += [item for item in (*told, *ended) if item.key[1:] not in kept]
    aged = [
        (run in people, _started(run), run, "rd".find(chr(item.key[0])), item)
        for item in found
        if (run := item.key[1:17]) not in running and run not in spared
    ]
    journals = pages(backend, b"j", head=8)
    aged += [(False, written_at(item.value), b"", -1, item) for item in journals]
    aged.sort(key=lambda one: (one[0], one[1], one[2], -one[3]), reverse=True)
    others = sum(one[0] for one in aged)
    items = [item for *_, item in aged]
    return items[others:], items[:others]


def _make_room(
    backend: Backend, victims: list[Item], budget: int, gone: Counter[str]
) -> list[Item]:
    """Delete from the front of `victims` about what there is too much; return the others.

    With each goes what is told of its key and its run, which is counted too: else all entries
    of a store of small ones would go before the rest of their rows has made any room.
    """
    # Never a few at a time: each step is followed by a look at all rows.
    excess, stop = max(backend.size() - _FILL * budget, (1.0 - _FILL) * budget / 4.0), 0
    while stop < len(victims) and excess > 0:
        excess -= _cost(victims[stop].size) + _TOLD
        stop += 1
    _delete(backend, [(item, "evicted") for item in victims[:stop]], gone)
    return victims[stop:]


def _delete(backend: Backend, doomed: list[tuple[Item, str]], gone: Counter[str]) -> None:
    for start in range(0, len(doomed), _BATCH):
        part = doomed[start : start + _BATCH]
        conditions = {row: held for item, why in part for row, held in _if_doomed(item, why)}
        deletes = [item.key for item, _ in part]
        if backend.apply(Batch(deletes=deletes, conditions=conditions)) is not None:
            gone.update(reason for _, reason in part)
            continue
        for item, reason in part:  # one of them has moved, or was pinned: each by itself
            batch = Batch(deletes=[item.key], conditions=dict(_if_doomed(item, reason)))
            gone[reason] += backend.apply(batch) is not None


def _if_doomed(item: Item, reason: str) -> Iterator[tuple[bytes, int | None]]:
    """Yield on what conditions a record goes: it has not moved, nor been pinned meanwhile."""
    yield item.key, item.sequence
    if reason != "damaged":
        yield pin_row(item.key[1:33]), None


def _delete_if_unmoved(backend: Backend, item: Item) -> bool:
    batch = Batch(deletes=[item.key], conditions={item.key: item.sequence})
    return backend.apply(batch) is not None


def _delete_orphans(backend: Backend, now: float, ttl: float | None) -> None:
    """Delete what is told about keys that have no entry any more, and about forgotten runs.

    A run is remembered as long as it has an entry, and as long as an entry of its age would be.
    """
    keys, runs = set(), set()
    for item in pages(backend, b"e", head=1):
        keys.add(item.key[1:33])
        runs.add(item.key[33:49])
    orphans = [
        item
        for prefix in (summary_row(b""), stamp_row(b""))
        for item in pages(backend, prefix, head=1)
        if item.key[1:] not in keys
    ]
    oldest = now - max(_ORPHAN_AGE, np.inf if ttl is None else ttl)
    processes = set()
    for item in pages(backend, info_row(""), head=None):
        info = read_info(item)
        ended = _started(item.key[1:]) if info is None else info.ended or info.beat or info.started
        if item.key[1:] not in runs and ended < oldest:
            orphans.append(item)
        else:
            runs.add(item.key[1:])
            processes.add("" if info is None else info.process)
    left = [item for letter in _LEFT for item in pages(backend, letter, head=1)]
    left += list(pages(backend, b"d", head=1))
    lost = [item for item in left if item.key[1:17] not in runs]
    orphans += [
        item
        for item in pages(backend, b"h", head=None)
        if item.key[1:].hex() not in processes
        and (read_small(item, _Process) or _Process()).told < now - _ORPHAN_AGE
    ]
    orphans += [
        item
        for item in pages(backend, b"z", head=None)
        if (read_small(item, Lease) or Lease("", "", 0.0)).until < now - _ORPHAN_AGE
    ]
    orphans += [item for item in pages(backend, b"j", head=8) if written_at(item.value) < oldest]
    _delete_left(backend, orphans + lost)
    nearby.sweep(backend, keys)
    for item in learned.orphans(backend):
        _delete_if_unmoved(backend, item)


class _Process(msgspec.Struct):
    """What is read here of the row that tells of a process."""

    told: float = 0.0


def _started(run: bytes) -> float:
    """Return when a run began: its id starts with 48 bits of milliseconds, as a UUID 7 does."""
    (milliseconds,) = struct.unpack(">Q", b"\0\0" + run[:6])
    return float(milliseconds) / 1000.0


def verify(backend: Backend, *, repair: bool = False) -> VerifyReport:
    """Decode every record, check every other row, and the engine's files."""
    report = VerifyReport(structure=backend.verify())
    if repair and report.structure:
        backend.close()  # if nobody else uses it, it is checked and repaired as it is opened again
    try:
        _verify_rows(backend, report, repair=repair)
        if repair and report.structure:
            backend.flush()
            found, report.structure = report.structure, backend.verify()
            report.mended = [line for line in found if line not in report.structure]
    except StoreError:
        if not report.structure:
            raise  # else it is known why nothing more is read
    return report


def _verify_rows(backend: Backend, report: VerifyReport, *, repair: bool) -> None:
    last = b""
    while page := backend.scan(b"", after=last, limit=16):
        last = page[-1].key
        for item in page:
            report.records += 1
            try:
                _check(item)
            except RecordVersionError:
                report.newer += 1
            except RecordError as error:
                report.damaged.append(f"{_name(item.key)}: {error}")
                report.repaired += repair and _delete_if_unmoved(backend, item)
            else:
                if repair and report.structure:  # the engine's frame around it may be damaged
                    same: dict[bytes, int | None] = {item.key: item.sequence}
                    backend.apply(Batch({item.key: item.value}, conditions=same))


def _check(item: Item) -> None:
    if not is_row(item.key):
        raise RecordError("stands in a row that no record has")
    if item.key[:1] == b"e":
        read(item)
    else:
        unseal(item.value)


def _name(row: bytes) -> str:
    """Return a row for people: the kind of row, then the digits that name it."""
    if row[:1] != b"e":
        return f"{row[:1]!r} {row[1:].hex()[:12]}"
    return f"{row[1:33].hex()[:12]}/{row[33:49].hex()[:12]}.{row[49:].decode('ascii', 'replace')}"


_TRACKED = {
    "experiments": b"x",
    "runs": b"r",
    "series": b"m",
    "artifacts": b"c",
    "states": b"i",
}


def _number(backend: Backend, letter: bytes) -> int:
    return sum(1 for _ in pages(backend, letter, head=1))


def stats(
    backend: Backend,
    *,
    budget: int,
    journals: int,
    journal_bytes: int,
    waiting: int,
    counters: dict[str, int],
) -> StoreStats:
    """Count what is there; the numbers of journals are their owner's."""
    kinds: Counter[EntryKind | None] = Counter()
    keys = set()
    for slot in heads(pages(backend, b"e")):
        kinds[slot.head.kind if slot.head else None] += 1
        keys.add(slot.key)
    return StoreStats(
        address=backend.address,
        keys=len(keys),
        entries=kinds.total(),
        finals=kinds[EntryKind.FINAL],
        checkpoints=kinds[EntryKind.CHECKPOINT],
        pinned=sum(1 for _ in pages(backend, pin_row(b""), head=1)),
        unreadable=kinds[None],
        bytes=backend.size(),
        budget=budget,
        **{name: _number(backend, letter) for name, letter in _TRACKED.items()},
        journals=journals,
        journal_bytes=journal_bytes,
        waiting=waiting,
        counters=counters,
    )
