"""A folder of immutable files as an ordered map: ``dir:///path``, for shared file systems.

No maps in memory and no locks that a network file system might only pretend to have. A batch is one
file, written beside, synced, and then linked to the next number: two machines that want the same
number cannot both have it, and the one that comes too late reads what the other has written,
checks its conditions again, and takes the next. Readers replay the files that they have not seen.

::

    FORMAT                      "warmstart dir 1"
    log/GROUP/NUMBER            a batch; 1,024 to a group
    log/GROUP/sealed            its batches are in a snapshot, and gone
    snap/NUMBER                 all pairs after that batch
    tmp/, locks/                what a crash leaves here is harmless

A file is a magic word, the length of a head in MessagePack (keys, places and sizes of values, keys
that are deleted), the values, and a BLAKE3 digest of all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from blake3 import blake3

from warmstart.backends import FULL, Batch, Durability, Item, check
from warmstart.backends.place import make_folder, read_file, sync_folder
from warmstart.errors import ArgumentError, StoreError, StoreFullError
from warmstart.locks import free_in_children
from warmstart.pulse import Pulse

__all__ = ["DirectoryBackend"]

_FORMAT = "warmstart dir 1\n"
_MAGIC = b"WSD1"
_GROUP = 1024
_KEPT = 2
"""Groups before the newest batch that a compaction leaves."""
_INLINE = 2048
"""Bytes of a value that is kept in memory; larger ones are read when they are asked for."""
_OVERHEAD = 64
_DIGEST = 16
_LEASE = 60.0
"""Seconds after which a lock that nobody renews is free."""


class _Held(NamedTuple):
    """Where a value is."""

    file: str
    offset: int
    size: int
    sequence: int
    value: bytes | None


class _Damaged(Exception):  # noqa: N818 (it is counted, not raised to anybody)
    """A file is not what was written."""


class DirectoryBackend:
    """The backend protocol over a folder that several machines may share.

    Parameters
    ----------
    url : str
        ``dir:///path``, or a path.
    read_only : bool
        Look, create nothing.

    Notes
    -----
    Each process reads all files once, and holds all keys and small values in memory. A write takes
    two syncs of the disk, some milliseconds, and survives a power cut at either durability. Needs
    links that fail if the name exists, which NFS 3 and later, Lustre and GPFS give.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        parts = urlsplit(url) if url.startswith("dir:") else None
        path = url if parts is None else parts.path
        more = parts is not None and (parts.netloc or parts.query or parts.fragment)
        if not path or not Path(path).is_absolute() or more:
            raise ArgumentError(f"a directory is written dir:///absolute/path, not {url!r:.80}")
        self.path = Path(path)
        self._read_only = read_only
        self._gate = threading.RLock()
        self._pairs: dict[bytes, _Held] = {}
        self._keys: list[bytes] = []
        self._sequence = 0
        self._size = 0
        self._damaged: dict[str, None] = {}
        # A child reads everything anew: a thread of the parent may have been at it.
        free_in_children(self, "_gate", threading.RLock)
        for name, make in (("_pairs", dict), ("_keys", list), ("_sequence", int), ("_size", int)):
            free_in_children(self, name, make)
        free_in_children(self, "_damaged", dict)
        self._ready = False

    @property
    def address(self) -> str:
        """Where it is."""
        return f"dir://{self.path}"

    # Files

    def _prepare(self) -> None:
        if self._ready:
            return
        try:
            format_file = self.path / "FORMAT"
            if not self._read_only:
                for name in ("log", "snap", "tmp", "locks"):
                    make_folder(self.path / name)
                if not format_file.exists():
                    scratch = self._scratch(_FORMAT.encode())
                    with contextlib.suppress(FileExistsError):
                        os.link(scratch, format_file)
                    scratch.unlink()
                    sync_folder(self.path)
            text = read_file(format_file).decode("ascii")
        except FileNotFoundError as error:
            what = "there is no store at" if self._read_only else "no store can be made at"
            raise StoreError(f"{what} {self.address}") from error
        except (OSError, UnicodeDecodeError) as error:
            full = isinstance(error, OSError) and error.errno in FULL
            kind = StoreFullError if full else StoreError
            raise kind(f"{self.address} cannot be used as a store: {error}") from error
        if text != _FORMAT:
            raise StoreError(f"{self.address} is not a store of this version: FORMAT is {text!r}")
        self._ready = True

    def _scratch(self, data: bytes) -> Path:
        """Write a file of no name that counts, and sync it."""
        scratch = self.path / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except BaseException:
            scratch.unlink()  # on a disk that is full it would only be in the way
            raise
        finally:
            os.close(descriptor)
        return scratch

    def _log(self, sequence: int) -> Path:
        return self.path / "log" / f"{sequence // _GROUP:08x}" / f"{sequence:016x}"

    def _is_sealed(self, sequence: int) -> bool:
        return (self._log(sequence).parent / "sealed").exists()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            kind = StoreFullError if error.errno in FULL else StoreError
            raise kind(f"{self.address} cannot be used: {error}") from error

    # Reading what there is

    def _refresh(self) -> None:
        """Replay the batches that others have written."""
        self._prepare()
        while True:
            path = self._log(self._sequence + 1)
            try:
                self._replay(path, self._sequence + 1)
            except FileNotFoundError:
                if not self._is_sealed(self._sequence + 1):
                    return
                self._load_snapshot()
            except _Damaged:
                self._damaged[os.fspath(path)] = None
                self._sequence += 1

    def _replay(self, path: Path, sequence: int) -> None:
        puts, deletes = _decode(_read(path))
        for key in deletes:
            self._remove(key)
        for key, offset, size, number, value in puts:
            self._put(key, _Held(os.fspath(path), offset, size, number or sequence, _small(value)))
        self._sequence = sequence

    def _load_snapshot(self) -> None:
        """Begin from the newest snapshot that can be read."""
        for _ in range(10):
            names = sorted((self.path / "snap").iterdir(), reverse=True)
            for path in names:
                try:
                    puts, _ = _decode(_read(path))
                except FileNotFoundError:
                    break  # a newer one has come: look again
                except _Damaged:
                    self._damaged[os.fspath(path)] = None
                    continue
                self._pairs, self._keys, self._size = {}, [], 0
                for key, offset, size, number, value in puts:
                    held = _Held(os.fspath(path), offset, size, number, _small(value))
                    self._pairs[key] = held
                    self._size += len(key) + size + _OVERHEAD
                self._keys = sorted(self._pairs)
                self._sequence = int(path.name, 16)
                return
            else:
                break
        self._begin_without()

    def _begin_without(self) -> None:
        """Begin from the oldest batches that are left, where no snapshot can be read."""
        groups = sorted(path.name for path in (self.path / "log").iterdir())
        left = [name for name in groups if not (self.path / "log" / name / "sealed").exists()]
        first = int(left[0], 16) * _GROUP if left else 0
        if first <= self._sequence:
            raise StoreError(f"{self.address} has lost its snapshots: its batches are gone")
        self._pairs, self._keys, self._size = {}, [], 0
        self._sequence = first - 1

    def _put(self, key: bytes, held: _Held) -> None:
        self._remove(key)
        insort(self._keys, key)
        self._pairs[key] = held
        self._size += len(key) + held.size + _OVERHEAD

    def _remove(self, key: bytes) -> None:
        held = self._pairs.pop(key, None)
        if held is not None:
            del self._keys[bisect_left(self._keys, key)]
            self._size -= len(key) + held.size + _OVERHEAD

    def _value(self, key: bytes, head: int | None) -> Item | None:
        """Return a pair, its value read from its file if need be."""
        for _ in range(10):
            held = self._pairs.get(key)
            if held is None:
                return None
            if held.value is not None:
                return Item(key, held.value[:head], held.sequence, held.size)
            wanted = held.size if head is None else min(head, held.size)
            try:
                with open(held.file, "rb") as file:  # noqa: PTH123 (a path of text)
                    value = os.pread(file.fileno(), wanted, held.offset)
                return Item(key, value, held.sequence, held.size)
            except FileNotFoundError:  # it was compacted
                self._load_snapshot()
                self._refresh()
        raise StoreError(f"{self.address} changes faster than it can be read")

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None."""
        with self._gate, self._trouble():
            self._refresh()
            return self._value(key, None)

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in order."""
        with self._gate, self._trouble():
            self._refresh()
            start = bisect_left(self._keys, prefix)
            if after >= prefix and after:
                start = max(start, bisect_right(self._keys, after))
            names: list[bytes] = []
            for place in range(start, len(self._keys)):
                key = self._keys[place]
                if not key.startswith(prefix) or (limit is not None and len(names) >= limit):
                    break
                names.append(key)
            found = (self._value(key, head) for key in names)
            return [item for item in found if item is not None]

    # Writing

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch and return its number, or None if a condition failed."""
        check(batch, durability)
        if self._read_only:
            raise StoreError(f"{self.address} was opened read only")
        with self._gate, self._trouble():
            self._prepare()
            puts = {key: bytes(value) for key, value in batch.puts.items()}
            scratch = self._scratch(_encode({k: (v, 0) for k, v in puts.items()}, batch.deletes))
            try:
                sequence = self._claim(scratch, batch)
            finally:
                scratch.unlink(missing_ok=True)
            if sequence is not None and sequence % _GROUP == 0:
                with contextlib.suppress(OSError):  # the batch is there; the next group tries again
                    self._compact()
            return sequence

    def _claim(self, scratch: Path, batch: Batch) -> int | None:
        while True:
            self._refresh()
            for key, sequence in batch.conditions.items():
                held = self._pairs.get(key)
                if (held.sequence if held else None) != sequence:
                    return None
            number = self._sequence + 1
            path = self._log(number)
            if make_folder(path.parent):
                # What stands before a batch must not be lost while the batch is not.
                with contextlib.suppress(FileNotFoundError):
                    sync_folder(self._log(number - 1).parent)
            try:
                os.link(scratch, path)
            except FileExistsError:
                continue  # another machine was faster
            if self._is_sealed(number):  # we were a thousand batches behind
                path.unlink()
                continue
            sync_folder(path.parent)
            self._replay(path, number)
            return number

    def _compact(self) -> None:
        """Write a snapshot, and delete the batches that are in it; one process at a time."""
        with self.lock("compact", timeout=0) as got:
            if not got:
                return
            pairs = {}
            for key in self._keys:
                item = self._value(key, None)
                assert item is not None
                pairs[key] = item.value, item.sequence
            scratch = self._scratch(_encode(pairs, ()))
            with contextlib.suppress(FileExistsError):
                os.link(scratch, self.path / "snap" / f"{self._sequence:016x}")
            scratch.unlink()
            sync_folder(self.path / "snap")
            newest = self._sequence // _GROUP - _KEPT
            for group in sorted((self.path / "log").iterdir()):
                if int(group.name, 16) > newest or (group / "sealed").exists():
                    continue
                (group / "sealed").touch(mode=0o600)
                sync_folder(group)
                for path in group.iterdir():
                    if path.name != "sealed":
                        path.unlink(missing_ok=True)
            for path in sorted((self.path / "snap").iterdir())[:-2]:
                path.unlink(missing_ok=True)
            self._sweep_scratch()

    def _sweep_scratch(self) -> None:
        """Delete what crashes have left."""
        for path in (self.path / "tmp").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 86_400.0:
                    path.unlink()

    def version(self) -> object:
        """Return the number of the last batch."""
        with self._gate, self._trouble():
            self._refresh()
            return self._sequence

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a named lock; it is free a minute after its owner has died.

        Ages are told by the file system's own clock, so that machines may disagree about the time.
        """
        self._prepare()
        path = self.path / "locks" / name
        deadline = time.monotonic() + timeout
        with self._trouble():
            mine = self._scratch(f"{os.getpid()} {secrets.token_hex(8)}".encode())
        got = False
        while True:
            with self._trouble():
                try:
                    os.link(mine, path)
                    got = True
                except FileExistsError:
                    self._break_stale(path, mine)
            if got or (timeout >= 0.0 and time.monotonic() >= deadline):
                break
            time.sleep(0.02)
        try:
            if got:  # the lock and this file are one: it is renewed by a touch
                with Pulse(lambda: os.utime(mine), _LEASE / 4.0):
                    yield True
            else:
                yield False
        finally:
            with contextlib.suppress(OSError):
                if got and path.samefile(mine):
                    path.unlink()
            mine.unlink(missing_ok=True)

    def _break_stale(self, path: Path, mine: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(mine)
            found = path.stat()
            if mine.stat().st_mtime - found.st_mtime > _LEASE:
                gone = mine.with_suffix(".broken")
                path.rename(gone)  # only one of those who wait can do it
                # Another one of them may have done it before, and have the lock now.
                if gone.stat().st_ino != found.st_ino:
                    with contextlib.suppress(FileExistsError):
                        os.link(gone, path)
                gone.unlink()

    def flush(self) -> None:
        """Do nothing: every batch was synced when it was acknowledged."""

    def size(self) -> int:
        """Return the bytes of keys and values, and 64 a pair."""
        with self._gate, self._trouble():
            self._refresh()
            return self._size

    def now(self) -> float:
        """Return the time of the file system, which stamps a file that is written."""
        if self._read_only:
            return time.time()
        with self._gate, self._trouble():
            self._prepare()
            scratch = self._scratch(b"\n")
            try:
                return scratch.stat().st_mtime
            finally:
                scratch.unlink()

    def verify(self) -> list[str]:
        """Return the files that are damaged."""
        with self._gate, self._trouble():
            self._refresh()
            found = dict(self._damaged)
            for folder in ("log", "snap"):
                for path in (self.path / folder).rglob("*"):
                    if path.is_file() and path.name != "sealed":
                        try:
                            _decode(_read(path))
                        except _Damaged:
                            found[os.fspath(path)] = None
                        except FileNotFoundError:
                            pass  # compacted meanwhile
        return [f"{path} is damaged" for path in found]

    def close(self) -> None:
        """Forget what was read; it is read again when it is needed."""
        with self._gate:
            self._pairs, self._keys, self._sequence, self._size = {}, [], 0, 0
            self._ready = False


def _small(value: bytes) -> bytes | None:
    return value if len(value) <= _INLINE else None


def _read(path: Path) -> bytes:
    """Return what is in a file; what is none, or cannot be read any more, is damaged."""
    try:
        return read_file(path)
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114 (quick)
            raise _Damaged from None
        raise
    except OSError as error:
        if error.errno in {errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EIO}:
            raise _Damaged from error
        raise


def _encode(pairs: dict[bytes, tuple[bytes, int]], deletes: object) -> bytes:
    """Return the bytes of a file; numbers of 0 are that of the file itself."""
    listed, values, offset = [], [], 0
    for key, (value, number) in pairs.items():
        listed.append((key, offset, len(value), number))
        values.append(value)
        offset += len(value)
    head = msgspec.msgpack.encode((listed, deletes))
    body = b"".join((_MAGIC, struct.pack("<I", len(head)), head, *values))
    return body + blake3(body).digest(_DIGEST)


_Put = tuple[bytes, int, int, int, bytes]
_HEAD = msgspec.msgpack.Decoder(tuple[list[tuple[bytes, int, int, int]], list[bytes]])


def _decode(data: bytes) -> tuple[list[_Put], list[bytes]]:
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if len(data) < _DIGEST + 8 or blake3(body).digest(_DIGEST) != digest or body[:4] != _MAGIC:
        raise _Damaged
    (length,) = struct.unpack_from("<I", body, 4)
    start = 8 + length
    try:
        listed, deletes = _HEAD.decode(body[8:start])
    except msgspec.MsgspecError as error:
        raise _Damaged from error
    puts = []
    for key, offset, size, number in listed:
        begin = start + offset
        if offset < 0 or size < 0 or begin + size > len(body):
            raise _Damaged
        puts.append((key, begin, size, number, body[begin : begin + size]))
    return puts, deletes
