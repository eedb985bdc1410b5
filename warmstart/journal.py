"""Journals: the evaluations of a run, in order, in one append-only file.

::

    file      magic, then frames
    frame     length u32, crc32 u32, body
    body      kind u8, then by kind
      E       count u32, then so many evaluations
      S       the sketches of the evaluations before it, 3 float64 each
      H L     header; a life of the run begins (msgpack)
      B       the best point so far (msgpack)
      C       a callback stopped the fit (msgpack)
      Z       the run came to its end, or to an exception of its own; how often each callback was
              called, if it is known (msgpack)
    evaluation  channel u8, form u8, digest of the input u64, output (see `packing`)

All integers are little-endian. A frame is written by one system call; one that is torn or
damaged ends the journal, and is cut off before anything is appended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import mmap
import os
import re
import secrets
import struct
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from warmstart.backends.place import sync_folder
from warmstart.caller import undisturbed
from warmstart.errors import RecordError
from warmstart.fingerprint import Fingerprint
from warmstart.locks import free_in_children
from warmstart.packing import HEAD, MUTATED, SKETCH, TRACKED, dumps, loads, skip
from warmstart.pulse import Pulse

__all__ = [
    "NONE",
    "Evaluation",
    "Found",
    "Header",
    "Journal",
    "Life",
    "Shelf",
]

MAGIC = b"warmstart journal 1\n"
BUFFER_SECONDS = 0.018
"""Where evaluations are fast they are written together this often. A kill may cost 20 ms of work:
packing and writing take time, too."""

_FRAME = struct.Struct("<II")
_u32 = struct.Struct("<I")
_MAX_FRAME = 1 << 30
_RUN_DIGITS = 32
NAME = re.compile(r"[0-9a-f]+-[0-9a-f]+\.journal")
"""What the file of a journal is called."""
_ATTEMPTS = 3
SYNC = 0.5
"""Seconds between two waits for the disk: a power cut costs no more than two."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal is of; written before the first evaluation.

    Parameters
    ----------
    surface : str
        The function of scipy.optimize.
    parts : dict of str to bytes
        Digests of the parts of the key, for people who ask why a journal was not used.
    method : str
        The method of the call, as it was given.
    x0 : bytes or None
        The start that was used (a payload), where the function takes one, and it has bytes.
    chosen : bool
        Whether that start is the library's choice, and not the caller's.
    random : bytes or None
        The state of the generator that the run draws from (a payload).
    track : bytes or None
        The states of the generators that the user's functions draw from (a payload).
    plan : bytes or None
        Where a near fit begins, and with which curvature (a `Plan`).
    """

    surface: str
    parts: dict[str, bytes]
    method: str = ""
    x0: bytes | None = None
    chosen: bool = False
    random: bytes | None = None
    track: bytes | None = None
    plan: bytes | None = None


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """One process' part of a run, noted when it begins.

    Parameters
    ----------
    run : str
        The id under which the store knows it.
    began : float
        UTC seconds since the epoch.
    environment : str
        Versions of numpy, scipy and Python.
    blas : list of (str, int, str)
        Name, number of threads and kind of kernel of each library for linear algebra.
    channels : list of str
        What each channel's number stands for.
    """

    run: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    began: float
    environment: str
    blas: list[tuple[str, int, str]]
    channels: list[str]


class Evaluation(NamedTuple):
    """One recorded call; `unpack_value` reads its output."""

    channel: int
    form: int
    digest: int
    offset: int
    """Where its output begins."""
    end: int


def _frame(kind: bytes, body: bytes) -> bytes:
    body = kind + body
    return _FRAME.pack(len(body), crc32(body)) + body


class Journal:
    """One journal, open and locked by this process.

    Notes
    -----
    Made by a `Shelf`. What `write` returned from survives SIGKILL; `sync` waits for the disk.
    Safe in threads as far as `write` goes. A child process that inherits it writes nothing.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.header: Header | None = None
        self.lives: list[Life] = []
        self.best: dict[str, Any] | None = None
        self.stops: dict[str, int] = {}
        """Callbacks that stopped the fit, and at which of their calls."""
        self.count = 0
        self.fruitless = 0
        """Lives at the end that recorded nothing, and did not end by themselves: killed before
        their replay was over."""
        self.finished = False
        self.called: dict[str, int] = {}
        """How often each callback was called, if the run came to its end."""
        self.size = 0
        self._spans: list[tuple[int, int]] = []
        self._sketch_spans: list[tuple[int, int]] = []
        self._fd = descriptor
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._named: Path | None = None
        self._syncing = threading.Lock()
        self._unsynced = False
        self._pulse: Pulse | None = None
        self._trouble: OSError | None = None

    # Reading

    def load(self) -> None:
        """Read what is there, and cut off a torn end.

        Raises
        ------
        RecordError
            If it is no journal of this version, or not even its header is whole.
        """
        size = os.fstat(self._fd).st_size
        if size < len(MAGIC):
            raise RecordError(f"{self.path.name} is not a journal")
        self._map = mmap.mmap(self._fd, size, prot=mmap.PROT_READ)
        if self._map[: len(MAGIC)] != MAGIC:
            raise RecordError(f"{self.path.name} is not a journal of this version")
        end = len(MAGIC)
        try:
            for start, stop in self._frames(end, size):
                self._take(self._map[start], start + 1, stop)
                end = stop
        except (msgspec.MsgspecError, struct.error, RecursionError, ValueError) as error:
            raise RecordError(f"{self.path.name} is damaged: {error}") from error
        if self.header is None or not self.lives:
            raise RecordError(f"{self.path.name} has no whole header")
        self.size = end
        if end < size:
            os.ftruncate(self._fd, end)

    def _frames(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        assert self._map is not None
        while offset + _FRAME.size <= size:
            length, check = _FRAME.unpack_from(self._map, offset)
            start = offset + _FRAME.size
            if not 0 < length <= min(size - start, _MAX_FRAME):
                return
            with memoryview(self._map) as view, view[start : start + length] as body:
                if crc32(body) != check:
                    return
            offset = start + length
            yield start, offset

    def _take(self, kind: int, start: int, stop: int) -> None:
        assert self._map is not None
        if kind == ord("E"):
            self.count += _u32.unpack_from(self._map, start)[0]
            self.fruitless = 0
            self._spans.append((start + 4, stop))
        elif kind == ord("S"):
            if (stop - start) % (8 * SKETCH):
                raise ValueError(f"sketches of {stop - start} bytes")
            self._sketch_spans.append((start, stop))
        elif kind == ord("L"):
            self.lives.append(msgspec.msgpack.decode(self._map[start:stop], type=Life))
            self.fruitless += 1
            self.finished, self.called = False, {}
        elif kind == ord("H"):
            self.header = msgspec.msgpack.decode(self._map[start:stop], type=Header)
        elif kind == ord("B"):
            self.best = loads(self._map[start:stop])
        elif kind == ord("C"):
            self.stops.update(msgspec.msgpack.decode(self._map[start:stop], type=dict[str, int]))
        elif kind == ord("Z"):
            self.finished = True
            self.fruitless = 0
            self.called = msgspec.msgpack.decode(self._map[start:stop], type=dict[str, int])

    def knows(self, callback: str) -> int:
        """Return how many calls of a callback are known to have been made."""
        return max(self.called.get(callback, 0), abs(self.stops.get(callback, 0)))

    def is_of(self, key: Fingerprint) -> bool:
        """Whether the options are those of a key, too."""
        return self.path.name.startswith(_prefix(key))

    @property
    def buffer(self) -> Any:
        """The bytes in which evaluations have their offsets."""
        return self._map

    def evaluations(self) -> Iterator[Evaluation]:
        """Yield what was recorded when the journal was loaded, in order."""
        buffer = self.buffer
        for start, stop in self._spans:
            offset = start
            while offset < stop:
                channel, form, digest = HEAD.unpack_from(buffer, offset)
                offset += HEAD.size
                end = skip(buffer, form, offset)
                for flag in (MUTATED, TRACKED):
                    if form & flag:
                        end += 4 + _u32.unpack_from(buffer, end)[0]
                yield Evaluation(channel, form, digest, offset, end)
                offset = end

    def sketches(self) -> NDArray[np.float64]:
        """Return the sketches of all recorded inputs, (count, 3); a torn end may lack some."""
        parts = [
            np.frombuffer(self._map[a:b]).reshape(-1, SKETCH)  # type: ignore[index]
            for a, b in self._sketch_spans
        ]
        return np.concatenate(parts) if parts else np.empty((0, SKETCH))

    def extras(self, evaluation: Evaluation) -> tuple[bytes | None, Any]:
        """Return the input as the function left it, and the states of tracked generators."""
        offset = skip(self._map, evaluation.form, evaluation.offset)
        found: list[bytes | None] = []
        for flag in (MUTATED, TRACKED):
            if evaluation.form & flag:
                (size,) = _u32.unpack_from(self._map, offset)  # type: ignore[arg-type]
                found.append(self._map[offset + 4 : offset + 4 + size])  # type: ignore[index]
                offset += 4 + size
            else:
                found.append(None)
        return found[0], None if found[1] is None else loads(found[1])

    # Writing

    def piece(self, offset: int, size: int) -> bytes:
        """Return so many bytes of the file, or what there is of them."""
        return os.pread(self._fd, size, offset)

    def write(self, *frames: bytes) -> None:
        """Append frames; when this returns, SIGKILL cannot undo it.

        Within half a second, and the time that the disk takes, a power cut cannot either: a thread
        waits for the disk, however long the next evaluation takes.
        """
        raw = b"".join(frames)
        if not raw or os.getpid() != self._pid:
            return
        if self._trouble is not None:
            raise self._trouble
        with self._lock:
            done = 0
            while done < len(raw):
                try:
                    done += os.write(self._fd, memoryview(raw)[done:])
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, self.size)  # half a frame would hide the next
                    raise
            self.size += len(raw)
        self._unsynced = True
        if self._pulse is None:
            self._pulse = Pulse(weakref.WeakMethod(self._keep_up), SYNC).start()

    def _keep_up(self) -> None:
        try:
            if self._unsynced:
                self.sync()
        except OSError as error:  # for whoever writes next
            self._trouble = error

    def sync(self) -> None:
        """Return when what was written would survive a power cut."""
        if os.getpid() == self._pid:
            with self._syncing:  # whoever comes second returns when all of it is done
                self._unsynced, path = False, self.path
                os.fdatasync(self._fd)
                if path != self._named:  # a file without a name is lost all the same
                    for folder in path.parents:
                        with contextlib.suppress(OSError):  # one that may not be listed
                            sync_folder(folder)
                    self._named = path

    def delete(self) -> None:
        """Give back the disk space, when it is closed."""
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def close(self, *, delete: bool = False) -> None:
        """Let go of the file."""
        if self._fd < 0:
            return
        mine = os.getpid() == self._pid
        if mine and self._pulse is not None:
            self._pulse.stop()  # it needs the file
        if delete:
            self.delete()
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
        with _guard:
            self._let_go()

    def __del__(self) -> None:
        # Of a caller that was interrupted. Nothing that waits: this may be called anywhere.
        while self._fd >= 0:
            with contextlib.suppress(KeyboardInterrupt):
                self._let_go()

    def _let_go(self) -> None:
        if os.getpid() == self._pid:
            _held.pop(str(self.path), None)
        descriptor, self._fd = self._fd, -1
        os.close(descriptor)

    def rename(self, key: Fingerprint) -> None:
        """Go on under the key of the same fit with other options."""
        path = self.path.with_name(_file_name(key, self.path.stem[-_RUN_DIGITS:]))
        if path != self.path:
            self.path.rename(path)
            with _guard:
                _held[str(path)] = _held.pop(str(self.path))
                self.path = path

    def copy_of(self, records: int) -> bytes:
        """Return the frames of the first evaluations, for a journal that goes another way."""
        frames = []
        digests = self.sketches()[:records]
        for number, evaluation in enumerate(self.evaluations()):
            if number == records:
                break
            frames.append(self._map[evaluation.offset - HEAD.size : evaluation.end])  # type: ignore[index]
        return evaluation_frames(b"".join(frames), len(frames), digests) if frames else b""


def evaluation_frames(records: bytes, count: int, made: NDArray[np.float64]) -> bytes:
    """Return evaluations and the sketches of their inputs as frames."""
    return _frame(b"E", _u32.pack(count) + records) + _frame(b"S", made.tobytes())


def header_frame(header: Header) -> bytes:
    """Return a header as the beginning of a file."""
    return MAGIC + _frame(b"H", msgspec.msgpack.encode(header))


def life_frame(life: Life) -> bytes:
    """Return the beginning of a life as a frame."""
    return _frame(b"L", msgspec.msgpack.encode(life))


def best_frame(best: dict[str, Any]) -> bytes:
    """Return the best point as a frame."""
    return _frame(b"B", dumps(best))


def stop_frame(callback: str, call: int) -> bytes:
    """Return that a callback stopped the fit as a frame."""
    return _frame(b"C", msgspec.msgpack.encode({callback: call}))


def end_frame(called: dict[str, int]) -> bytes:
    """Return the end of a run, and how often each callback was called, if known, as a frame."""
    return _frame(b"Z", msgspec.msgpack.encode(called))


# Locks belong to the process (``lockf``), not to the open file (``flock``): the workers of a
# killed parent would hold the latter on. They do not part threads, so this register does. They are
# gone as soon as the process closes any descriptor of the file: what is held is read by its own.
_held: dict[str, int] = {}
"""Paths, and descriptors, of journals that are open."""
_guard = threading.Lock()
free_in_children(sys.modules[__name__], "_guard")


class Found(NamedTuple):
    """What there is of a fit."""

    journal: Journal | None
    busy: bool
    """Whether there is one, but another process or thread is writing to it."""


NONE = Found(None, busy=False)
_NOT_MINE = {
    *(errno.EACCES, errno.EAGAIN, errno.ENOENT, errno.EEXIST),  # somebody else's, or there is none
    *(errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL),  # no file at all
}


class Shelf:
    """The journals of a store: a folder for each fit whatever its options, a file for each run.

    Parameters
    ----------
    folder : path
        Made when the first journal is.
    budget : int
        Bytes that all journals together may have.
    ttl : float or None
        Seconds after which a journal nobody wrote to is forgotten.
    """

    def __init__(self, folder: Path, *, budget: int, ttl: float | None) -> None:
        self.folder = folder
        self.budget = budget
        self.ttl = ttl

    def find(self, fit: Fingerprint, key: Fingerprint) -> Found:
        """Open the journal to go on with: of the same options if there is one, else the longest.

        Parameters
        ----------
        fit : Fingerprint
            The key at `Level.JOURNAL`.
        key : Fingerprint
            The fit's own key.

        Returns
        -------
        Found
            The journal locked. One that is damaged is deleted.
        """
        for attempt in range(2):
            names = self._names(fit, key)
            for name in names:
                journal = self._load(fit, name)
                if journal is not None:
                    return Found(journal, busy=False)
            if attempt or not any(f"{self.folder}/{fit}/{name}" in _held for name in names):
                break
            # It is this process' own: another thread's, or of a fit that Ctrl-C has ended at an
            # instant at which it could not be closed, and that nobody refers to any more.
            gc.collect()
        return Found(None, busy=bool(names) and bool(self._names(fit, key)))

    def others(self, fit: Fingerprint, key: Fingerprint) -> Iterator[Journal]:
        """Open the journals of a fit one after the other, those in use left out.

        Whoever asks for the next closes the last.
        """
        for name in self._names(fit, key):
            journal = self._load(fit, name)
            if journal is not None:
                yield journal

    def _names(self, fit: Fingerprint, key: Fingerprint) -> list[str]:
        folder = f"{self.folder}/{fit}"  # a Path costs more than the look into the folder
        if not os.access(folder, os.F_OK):  # most fits have none: 0.7 us instead of 2 (2026-11)
            return []
        mine = _prefix(key)
        names = [name for name in _names_in(folder) if name.endswith(".journal")]
        if len(names) > 1:
            names.sort(
                key=lambda name: (name.startswith(mine), _size(f"{folder}/{name}")), reverse=True
            )
        return names

    def _load(self, fit: Fingerprint, name: str) -> Journal | None:
        """Open and read one; None if it is in use, or was damaged and has been deleted."""
        journal = self._open(self.folder / str(fit) / name, os.O_RDWR)
        if journal is not None:
            try:
                journal.load()
            except RecordError:
                journal.close(delete=True)
                return None
        return journal

    def create(self, fit: Fingerprint, key: Fingerprint, run: str, first: bytes) -> Journal:
        """Make a journal that begins with `first`."""
        path = self.folder / str(fit) / _file_name(key, run)
        journal = None
        for _ in range(_ATTEMPTS):  # a sweep may take the empty folder away in between
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir(mode=0o700, parents=True)
            journal = self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if journal is not None:
                break
        else:
            raise OSError(errno.EEXIST, "the journal of this run exists", str(path))
        try:
            journal.write(first)
        except BaseException:
            journal.close(delete=True)
            raise
        return journal

    def replace(self, fit: Fingerprint, name: str, content: bytes) -> bool:
        """Put a journal that came from elsewhere in place of a shorter one; whether it was.

        Not while somebody is writing to that, and not under a name that was not made here.
        """
        path = self.folder / str(fit) / name
        if not NAME.fullmatch(name) or _size(str(path)) >= len(content):
            return False
        for _ in range(_ATTEMPTS):  # a sweep may take the empty folder away in between
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir(mode=0o700, parents=True)
            journal = self._open(path, os.O_RDWR | os.O_CREAT)
            if journal is not None:
                break
        else:
            return False
        try:
            # Under another name first: a torn one would hide what the shorter one has.
            scratch = path.with_suffix(f".{secrets.token_hex(8)}")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            scratch.replace(path)
        finally:
            journal.close()
        return True

    def _open(self, path: Path, flags: int) -> Journal | None:
        """Open and lock one; None if it is in use, or is no file."""
        return undisturbed(lambda: _opened(path, flags))

    def content(self, path: Path) -> bytes:
        """Return the bytes of a journal, whoever holds it."""
        with _guard:
            descriptor = _held.get(str(path))
            if descriptor is None:
                return path.read_bytes()
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def paths(self) -> list[Path]:
        """Return all journals, whoever holds them."""
        paths = [path for folder in _listed(self.folder) for path in _listed(folder)]
        return sorted(path for path in paths if path.suffix == ".journal")

    def usage(self) -> tuple[int, int]:
        """Return how many journals there are and their bytes."""
        sizes = [size for _, size, _ in self._census()]
        return len(sizes), sum(sizes)

    def _census(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.paths():
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def sweep(self, now: float | None = None) -> int:
        """Delete what is too old, then the oldest until the budget is kept; returns how many."""
        now = time.time() if now is None else now
        census = self._census()
        excess = sum(size for _, size, _ in census) - self.budget
        gone = 0
        for written, size, path in census:
            if excess <= 0 and (self.ttl is None or written >= now - self.ttl):
                break
            if self._delete(path):
                gone += 1
                excess -= size
        return gone

    def forget(self, key: Fingerprint, *, but: Path | None = None) -> int:
        """Delete the journals of one fit that nobody is writing, all or but one."""
        mine = _prefix(key)
        folders = _listed(self.folder) if but is None else [but.parent]
        paths = [path for folder in folders for path in _listed(folder)]
        mine_too = [path for path in paths if path.name.startswith(f"{mine}-") and path != but]
        return sum(map(self._delete, mine_too))

    def _delete(self, path: Path) -> bool:
        try:
            journal = self._open(path, os.O_RDWR)
        except OSError:
            return False
        if journal is None:
            return False  # somebody is writing to it
        journal.close(delete=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
        return True


def _opened(path: Path, flags: int) -> Journal | None:
    with _guard:
        if str(path) in _held:
            return None
        descriptor = -1
        try:
            descriptor = os.open(path, flags | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            if error.errno in _NOT_MINE:
                return None
            raise
        _held[str(path)] = descriptor
        return Journal(path, descriptor)


def _names_in(folder: str | Path) -> list[str]:
    """Return what is in a folder; nothing for one that is not there, or no more.

    Others make and delete them meanwhile, at which ``Path.glob`` breaks off (Python 3.11).
    """
    try:
        return os.listdir(folder)  # noqa: PTH208 (faster by far)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listed(folder: Path) -> list[Path]:
    return [folder / name for name in _names_in(folder)]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (likewise)
    except OSError:
        return 0


def _prefix(key: Fingerprint) -> str:
    return str(key)[:16]


def _file_name(key: Fingerprint, run: str) -> str:
    return f"{_prefix(key)}-{run}.journal"
