"""One LMDB environment: its transactions, its growth, the frames in it.

Each value stands in a frame: the sequence number of its batch (8 bytes), CRC-32 of key, number
and value (4 bytes), the value, all little-endian. A frame with no value is a tombstone: deleted
in hot, still to be deleted in durable. Keys that begin with NUL are the backend's own.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from warmstart.backends import Item
from warmstart.backends.place import sync_folder

__all__ = [
    "FRAME",
    "GROUP",
    "HEADER",
    "Closed",
    "Half",
    "Row",
    "copied",
    "forget",
    "group_after",
    "is_whole",
    "item_of",
    "make_frame",
    "problems_of",
    "read_mark",
    "sequence_of",
    "settle",
    "settle_base",
    "walk",
    "walk_through",
]

_T = TypeVar("_T")
FRAME = struct.Struct("<QI")
HEADER = FRAME.size
BASE = b"\0base"
MARK = b"\0mark"
DONE = b"\0done"
"""Rows of counts of writes, as frames without a value: one that is damaged must not count."""
_READERS = 1024
_LOCK_SIZE = 128 + 64 * _READERS
GROUP = 32 << 20
"""Bytes that are promoted in one transaction, about."""


_LOOKS = 10
"""How often a reader looks for an instant at which nobody writes, before it says nothing."""


class Closed(Exception):  # noqa: N818 (no error: whoever meets it opens anew)
    """Another thread has closed the environment meanwhile."""


class Gate:
    """Lets transactions in together, and growth of the map in alone.

    ``set_mapsize`` invalidates all live transactions of the process; so does closing.

    Each thread goes in by a lock of its own, and whoever is to be alone takes them all. Every call
    of the engine passes here, and Ctrl-C may come at any instant but one: between a plain lock and
    its ``with`` block. A count of who is inside would stay wrong for ever.
    """

    __slots__ = ("_all", "_locks", "_own", "_taken")

    def __init__(self) -> None:
        self._all = threading.Lock()
        self._own = threading.local()
        self._locks: weakref.WeakSet[Any] = weakref.WeakSet()
        self._taken: list[Any] = []

    def mine(self) -> threading.Lock:
        """Return the lock that this thread holds while it is inside."""
        try:
            found: threading.Lock = self._own.lock
        except AttributeError:
            found = threading.Lock()
            with self._all:
                self._locks.add(found)
            self._own.lock = found
        return found

    def alone(self, work: Callable[[], _T]) -> _T:
        """Do something when nobody is inside."""
        with self._all:
            return _holding(list(self._locks), work)

    def close(self) -> None:
        """Wait until nobody is inside, and keep everybody out."""
        self._all.acquire()
        for lock in list(self._locks):
            lock.acquire()
            self._taken.append(lock)

    def open(self) -> None:
        """Let everybody in again."""
        while self._taken:
            self._taken.pop().release()
        self._all.release()


def _holding(locks: list[Any], work: Callable[[], _T]) -> _T:
    if not locks:
        return work()
    with locks[0]:
        return _holding(locks[1:], work)


class Turn(NamedTuple):
    """Lets one writer at a time, of all threads and processes, get as far as LMDB's own mutex.

    That mutex is a robust futex. When its owner dies the kernel wakes one waiter; if that one is
    killed before it has the mutex, the others sleep on although it is free, until somebody
    unlocks it again (seen twice in ten campaigns of 32 kills, lmdb 3.0.0, Linux, 2026-11). With
    ``flock`` the kernel itself hands on, and LMDB's mutex never has a waiter. Two calls of
    0.5 us a write; filelock would poll.
    """

    thread: threading.Lock
    file: int


class Half:
    """One LMDB environment, its gate and its growth."""

    def __init__(self, folder: Path, *, sync: bool, map_size: int, read_only: bool) -> None:
        self.gate = Gate()
        self._folder = folder
        self._closed = False
        data = folder / "data.mdb"
        new = not data.exists()
        if not new and not data.is_file():
            raise lmdb.InvalidError(f"{data.name} is not a file")
        size = max(map_size, 0 if new else 2 * data.stat().st_size)
        locks = not read_only or os.access(folder, os.W_OK)
        if locks:
            _allot(folder / "lock.mdb")
        self.env = _opened(
            folder,
            size,
            sync=sync,
            metasync=sync,
            readonly=read_only,
            create=not read_only,
            lock=locks,
            mode=0o600,
            max_readers=_READERS,
            readahead=False,
            max_spare_txns=0,  # a child that closes would free the slots of spare readers
        )
        if new and sync:
            sync_folder(folder)  # what is written to a file without a name is lost in a power cut
        self.turn = None
        if not read_only:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self.turn = Turn(threading.Lock(), os.open(folder / "turn.lock", flags, 0o600))
        if locks:
            self.env.reader_check()

    def read(self, work: Callable[[lmdb.Transaction], _T]) -> _T:
        """Do `work` in a read transaction."""
        while True:
            with self.gate.mine():
                if self._closed:
                    raise Closed
                try:
                    with self.env.begin(buffers=True) as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    pass
                except lmdb.ReadersFullError:
                    if not self.env.reader_check():
                        raise
                    continue
            self._adopt()

    def write(self, work: Callable[[lmdb.Transaction], _T]) -> _T:
        """Do `work` in a write transaction; again from the start if the map has to grow."""
        turn = self.turn
        assert turn is not None
        while True:
            # The gate around all of it: a child that is forked inside a call waits for ever.
            with self.gate.mine(), turn.thread:
                if self._closed:
                    raise Closed
                try:
                    fcntl.flock(turn.file, fcntl.LOCK_EX)
                    with self.env.begin(write=True) as txn:
                        return work(txn)
                except lmdb.MapFullError:
                    grow, size = True, self.env.info()["map_size"]
                except lmdb.MapResizedError:
                    grow, size = False, 0
                finally:  # in place, since Ctrl-C may come as a function begins
                    fcntl.flock(turn.file, fcntl.LOCK_UN)
            if grow:
                self._grow(size)
            else:
                self._adopt()

    def _grow(self, size: int) -> None:
        # Doubling: by a fixed step, six processes ran into the limit 60 to 110 times each.
        def grow() -> None:
            if not self._closed and self.env.info()["map_size"] <= size:
                self.env.set_mapsize(2 * size)

        self.gate.alone(grow)

    def _adopt(self) -> None:
        """Take over the size to which another process has grown the map."""
        self.gate.alone(lambda: None if self._closed else self.env.set_mapsize(0))

    def close(self) -> None:
        """Let go of the environment, once nobody is inside."""
        self.gate.alone(self.drop)

    def drop(self) -> None:
        """Let go of the environment; in a forked child this leaves the parent's locks alone."""
        if not self._closed:
            self._closed = True
            self.env.close()
            if self.turn is not None:
                os.close(self.turn.file)

    def _look(self, at: Callable[[lmdb.Environment], _T]) -> _T:
        with self.gate.mine():
            if self._closed:
                raise Closed
            return at(self.env)

    def release_dead_readers(self) -> None:
        """Free the slots of readers that were killed: they keep pages from being used again.

        Without it the files of a process that writes on and on grow without end.
        """
        self._look(lambda env: env.reader_check())

    def last(self) -> int:
        """Return the number of the last transaction."""
        with self.gate.mine():  # each hit comes by
            if self._closed:
                raise Closed
            return int(self.env.info()["last_txnid"])

    def size(self) -> int:
        """Return the bytes of the pages in use."""
        stat = self._look(lambda env: env.stat())
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages * stat["psize"])

    def spare(self) -> int:
        """Return the bytes of the pages that are free inside the file, about."""
        info, stat = self._look(lambda env: (env.info(), env.stat()))
        return int((info["last_pgno"] + 1) * stat["psize"]) - self.size()

    def problems(self) -> list[str]:
        """Return what is structurally wrong with the data file, which others may be writing to.

        A file that is written to while it is read looks damaged. What is found is looked for
        again with the writers held up; a reader looks for an instant at which nobody wrote.
        """
        found = problems_of(self._folder)
        if found and self.turn is not None:
            return self.write(lambda _: problems_of(self._folder))
        for _ in range(_LOOKS):
            before = self.last()
            found = found and problems_of(self._folder)
            if not found or self.last() == before:
                return found
        return []  # nobody can say; each frame has a checksum of its own


def _allot(path: Path) -> None:
    """Give LMDB's lock file its blocks: it is written to through a map, which is fatal without."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(descriptor)
        if min(status.st_size, 512 * status.st_blocks) < _LOCK_SIZE:
            os.posix_fallocate(descriptor, 0, _LOCK_SIZE)
    finally:
        os.close(descriptor)


def _opened(folder: Path, map_size: int, **options: Any) -> lmdb.Environment:
    """Return an environment, with a larger map if others have outgrown the one that was meant."""
    while True:
        try:
            return lmdb.open(str(folder), map_size=map_size, **options)
        except lmdb.MapResizedError:
            map_size *= 2


def _checksum(key: Any, sequence: int, value: Any) -> int:
    return zlib.crc32(value, zlib.crc32(sequence.to_bytes(8, "little"), zlib.crc32(key)))


def make_frame(key: bytes, sequence: int, value: bytes) -> bytes:
    """Return a value's frame."""
    return FRAME.pack(sequence, _checksum(key, sequence, value)) + value


def is_whole(key: Any, frame: Any) -> bool:
    """Return whether a frame's checksum agrees."""
    if len(frame) < HEADER:
        return False
    sequence, checksum = FRAME.unpack_from(frame)
    return bool(_checksum(key, sequence, memoryview(frame)[HEADER:]) == checksum)


def sequence_of(txn: lmdb.Transaction, key: bytes) -> int | None:
    """Return the sequence number of a frame, or None if there is none."""
    frame = txn.get(key)
    return None if frame is None or len(frame) < HEADER else FRAME.unpack_from(frame)[0]


def read_mark(txn: lmdb.Transaction) -> int:
    """Return the highest sequence number that durable has seen, or still has if that is damaged."""
    mark = _count_at(txn, MARK)
    if mark is None:
        whole = (FRAME.unpack_from(frame)[0] for key, frame in txn.cursor() if is_whole(key, frame))
        mark = max(whole, default=0)
    return int(mark)


def _count_at(txn: lmdb.Transaction, row: bytes) -> int | None:
    """Return a count of writes; None if there is none, or it is damaged."""
    frame = txn.get(row)
    return sequence_of(txn, row) if frame is not None and is_whole(row, frame) else None


def _put_count(txn: lmdb.Transaction, row: bytes, count: int) -> None:
    txn.put(row, make_frame(row, count, b""))


def settle_base(txn: lmdb.Transaction, mark: int, *, shared: bool) -> int:
    """Return what hot's transaction numbers are counted from, so that they go on increasing.

    If other processes have it open it is there, and they count from it: it is not replaced.
    """
    found = _count_at(txn, BASE)
    if found is None and shared:
        raise lmdb.CorruptedError("what its transactions are counted from is damaged")
    if found is None or found + txn.id() <= mark:
        # It is new or damaged, or a power cut has set it back.
        found = mark
        _put_count(txn, BASE, found)
    return found


def copied(buffer: Any) -> bytes | None:
    """Return a copy of a buffer that ends with its transaction."""
    return None if buffer is None else bytes(buffer)


def item_of(key: bytes, frame: bytes, size: int, head: int | None) -> Item | None:
    """Return a frame as a pair, None for a tombstone or less than a frame."""
    if size <= HEADER:
        return None
    value = frame[HEADER:] if head is None else frame[HEADER : HEADER + head]
    return Item(key, value, FRAME.unpack_from(frame)[0], size - HEADER)


Row = tuple[bytes, bytes, int]
"""A key, its frame or the first bytes of it, and the size of the frame."""


def walk(
    prefix: bytes, start: bytes, stop: int | None, limit: int | None, txn: lmdb.Transaction
) -> list[Row]:
    """Return the frames from `start` on, at most `limit`."""
    rows: list[Row] = []
    cursor = txn.cursor()
    found = cursor.set_range(start)
    while found and len(rows) != limit:
        key = bytes(cursor.key())
        if key < start:
            raise lmdb.CorruptedError("keys out of order")  # whoever pages would go in a circle
        if not key.startswith(prefix):
            break
        start = key
        frame = cursor.value()
        rows.append((key, bytes(frame[:stop]), len(frame)))
        found = cursor.next()
    return rows


class Group(NamedTuple):
    """A transaction's worth of frames."""

    rows: list[tuple[bytes, bytes]]
    whole: bool
    """Whether there are no more behind them."""
    number: int
    """Of the last transaction before they were read."""


def group_after(txn: lmdb.Transaction, last: bytes) -> Group:
    """Return the frames after `last`, up to a transaction's worth."""
    group: list[tuple[bytes, bytes]] = []
    size = 0
    cursor = txn.cursor()
    found = cursor.set_range(last + b"\0" if last else b"\1")
    while found and size < GROUP:
        key = bytes(cursor.key())
        if key <= last:
            raise lmdb.CorruptedError("keys out of order")
        last = key
        group.append((key, bytes(cursor.value())))
        size += len(group[-1][1]) + 64
        found = cursor.next()
    return Group(group, not found, txn.id())


def settle(txn: lmdb.Transaction, group: list[tuple[bytes, bytes]], done: int | None) -> None:
    """Put a group into durable; what is damaged, or was there before, stays out.

    Parameters
    ----------
    txn : lmdb.Transaction
        Of durable.
    group : list of (bytes, bytes)
        Keys and frames.
    done : int or None
        The number up to which all is there with this group. What hot has of those numbers later
        was brought back by a power cut: older than what is here, or deleted since.
    """
    mark, floor = read_mark(txn), _count_at(txn, DONE) or 0
    for key, frame in group:
        if not is_whole(key, frame):
            continue
        sequence, below = FRAME.unpack_from(frame)[0], txn.get(key)
        if sequence <= floor:
            continue
        if below is not None and FRAME.unpack_from(below)[0] > sequence and is_whole(key, below):
            continue
        if len(frame) == HEADER:
            txn.delete(key)
        else:
            txn.put(key, frame)
        mark = max(mark, sequence)
    if done is not None:
        mark = max(mark, done)
        _put_count(txn, DONE, max(floor, done))
    _put_count(txn, MARK, mark)


def forget(txn: lmdb.Transaction, group: list[tuple[bytes, bytes]]) -> None:
    """Delete from hot what has been promoted, unless it was written again meanwhile."""
    for key, frame in group:
        found = txn.get(key)
        if found is not None and bytes(found[:HEADER]) == frame[:HEADER]:
            txn.delete(key)


def walk_through(txn: lmdb.Transaction) -> None:
    """Raise `lmdb.CorruptedError` if a key is not where it is looked for.

    Whether the pages agree about their order is the one thing that `problems_of` does not ask.
    """
    keys, again = txn.cursor(), txn.cursor()
    last = b""
    for key in keys.iternext(keys=True, values=False):
        found = bytes(key)
        if found <= last or not again.set_key(found):
            raise lmdb.CorruptedError("keys out of order")
        last = found


def problems_of(folder: Path) -> list[str]:
    """Return what is structurally wrong with a data file that nobody writes to.

    A truncated file ends the process with SIGBUS when it is mapped, so this reads it as a
    file. It came with lmdb 3; older versions cannot tell.
    """
    data = folder / "data.mdb"
    if not data.exists():
        return []
    if not data.is_file():
        return [f"{data.name} is not a file"]
    if data.stat().st_size == 0:
        return []
    try:
        from lmdb import verify  # noqa: PLC0415 (not in lmdb 2)
    except ImportError:
        return []
    try:
        return [str(problem) for problem in verify.verify(str(folder))]  # type: ignore[no-untyped-call]
    except (verify.VerifyError, OSError) as error:
        return [str(error)]
