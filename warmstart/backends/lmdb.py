"""LMDB, for one machine: a hot environment over a durable one.

Two durabilities from one engine that knows one each:

* ``hot/`` is opened without sync. A commit is a few writes into the page cache: 10 us, there
  for every process at once, and SIGKILL cannot undo it. A power cut may damage the file, since
  pages may reach the disk in any order; nothing depends on it.
* ``durable/`` is opened with full sync. A thread promotes what is in hot to it in groups,
  within a second; `flush` and batches with ``Durability.POWER`` wait for that. A power cut
  costs what was not promoted yet and never touches what was.

Readers lay hot over durable. The alternative is a log: appended to at once, committed to one
synced environment in the background. `bench/durability.py` measures both (two cores, ext4,
lmdb 3.0.0, 2026-11, medians). The log costs the writer 2 us for 1 KB, hot 8. But every reader
must follow the logs of all writers: a look-up right after a put by each of 1, 4 or 8 other
processes takes 22, 74 or 148 us with logs, and 4, 13 or 16 with hot. Opening after 100,000 puts
and SIGKILL takes the same, and the log would still need a compactor and a second index. A fit
looks up as often as it writes, so hot it is. One environment without sync, synced now and then,
is no alternative: a cut between two syncs may damage all of it, since LMDB reuses pages that
the last sync still needs.

Where this is weaker than it sounds: a process that is killed within a second of a write leaves
the promotion to the next process that opens the store; a power cut before that loses the write.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import heapq
import itertools
import os
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Concatenate, ParamSpec, TypeVar

import lmdb

from warmstart.backends import FULL, Batch, Durability, Item, check
from warmstart.backends.halves import (
    FRAME,
    HEADER,
    Closed,
    Half,
    copied,
    forget,
    group_after,
    is_whole,
    item_of,
    make_frame,
    problems_of,
    read_mark,
    sequence_of,
    settle,
    settle_base,
    walk,
    walk_through,
)
from warmstart.backends.place import HALVES, Place
from warmstart.caller import complain, undisturbed
from warmstart.errors import ArgumentError, StoreError, StoreFullError
from warmstart.locks import free_in_children, imported

__all__ = ["LmdbBackend"]

_PAUSE = 0.25
"""Seconds for which the promoter lets writes gather."""
_FLOOR = 8 << 20
"""Bytes of room below which nothing is put: deleting needs pages too (lmdb 0.9.36)."""
_CHECK_EVERY = 64
_FEW = 4
"""Rows that are moved at a time on a full disk."""
_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)
_openings = itertools.count()
_P = ParamSpec("_P")
_T = TypeVar("_T")


class LmdbBackend:
    """The backend protocol over a folder on this machine.

    Parameters
    ----------
    path : str or path-like
        Nothing is created before the first call that needs it.
    read_only : bool
        Never write, not even lock files where the place cannot be written.
    map_size : int
        Bytes of address space to begin with; doubled when full.
    allow_network : bool
        Do not refuse network file systems.

    Notes
    -----
    All objects on one folder share one environment in a process. Safe across threads, forks
    and processes. Pickles as its arguments. 256 KiB of the disk are set aside: once it is full
    they are given back, since to delete takes pages, too. Measured on two cores (lmdb 3.0.0, ext4,
    2026-11) in `bench/durability.py`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        map_size: int = 64 << 20,
        allow_network: bool = False,
    ) -> None:
        self._path = os.fspath(path)
        self._read_only = read_only
        self._map_size = map_size
        self._allow_network = allow_network
        self._shared: _Environment | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._path, self._read_only, self._map_size, self._allow_network)
        return _rebuild, arguments

    @property
    def address(self) -> str:
        """The folder."""
        return self._path

    @property
    def _environment(self) -> _Environment:
        shared = self._shared
        if shared is None or shared.gone:
            path = os.path.realpath(self._path)
            options = self._read_only, self._map_size, self._allow_network
            shared = self._shared = undisturbed(lambda: _open(self, path, *options))
        return shared

    def _ask(
        self,
        operation: Callable[Concatenate[_Environment, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        while True:
            try:
                return operation(self._environment, *args, **kwargs)
            except Closed:
                continue

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None."""
        return self._ask(_Environment.get, key)

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in order."""
        return self._ask(_Environment.scan, prefix, after, limit, head)

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch, or nothing if a condition does not hold."""
        check(batch, durability)
        if self._read_only:
            raise StoreError(f"{self._path} was opened to be read only")
        sequence = self._ask(_Environment.apply, batch)
        if sequence is not None and durability is Durability.POWER:
            self.flush()
        return sequence

    def version(self) -> object:
        """Return the numbers of the last transaction and of the opening."""
        while True:  # as `_ask` does, but each hit comes by
            try:
                return self._environment.version()
            except Closed:
                continue

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a named lock across threads and processes; yields whether it was got in time."""
        if not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise ArgumentError(f"a lock is named by letters, digits and dashes, not {name!r:.60}")
        with self._environment.place.holding(f"user-{name}", timeout) as got:
            yield got

    def flush(self) -> None:
        """Return when everything applied before would survive a power cut."""
        if not self._read_only and self._shared is not None:
            undisturbed(lambda: self._ask(_Environment.promote))

    def size(self) -> int:
        """Return the bytes of the pages in use. O(1)."""
        return self._ask(_Environment.size)

    def now(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def verify(self) -> list[str]:
        """Return what is structurally wrong with the files, and frames that are damaged."""
        return self._ask(_Environment.verify)

    def close(self) -> None:
        """Flush and close; the environment itself closes with its last user."""
        shared, self._shared = self._shared, None
        if shared is not None:
            undisturbed(lambda: _leave(shared, self))


def _rebuild(path: str, read_only: bool, map_size: int, allow_network: bool) -> LmdbBackend:
    return LmdbBackend(path, read_only=read_only, map_size=map_size, allow_network=allow_network)


class _Environment:
    """What a process shares of one folder: both halves, the promoter, the place."""

    def __init__(self, path: str, *, read_only: bool, map_size: int, allow_network: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.users: weakref.WeakSet[LmdbBackend] = weakref.WeakSet()
        self.gone = False
        self.place = Place(path, read_only=read_only, allow_network=allow_network)
        self._promoter: _Promoter | None = None
        self._writes = 0
        self._full = False
        self._opening = next(_openings)
        self._trouble = _Trouble(path)
        self._starting = threading.Lock()
        self.place.prepare()
        try:
            if read_only:
                self._open_to_read(map_size)
            else:
                with self.place.holding("open"):
                    self._open(map_size)
                if self.hot.env.stat()["entries"] > 1:
                    with contextlib.suppress(StoreFullError):  # it can be read where it is
                        self.promote()  # what a process that died could not
        except BaseException as error:
            # Whoever keeps the error keeps what it stands in: the engine opens nothing twice.
            self._let_go()
            if isinstance(error, StoreError) or not isinstance(error, (lmdb.Error, OSError)):
                raise
            kind = StoreFullError if _says_full(error) else StoreError
            raise kind(f"the store {path} cannot be opened: {error}") from error

    def _let_go(self, *, well: bool = False) -> None:
        """Close what is open."""
        for name in HALVES:
            if name in vars(self):
                vars(self)[name].close()
        if not self.read_only:
            with contextlib.suppress(OSError), self.place.holding("open"):
                self.place.leave(well=well)

    def _open(self, map_size: int) -> None:
        attendance = self.place.attend()
        suspects: tuple[str, ...] = ()
        if not attendance.alive:
            suspects = HALVES if attendance.unclean else HALVES[: attendance.rebooted]
        for name in suspects:
            problems = problems_of(self.place.half(name))
            if problems:
                self.place.quarantine(name, problems[0])
        try:
            self._open_halves(map_size, shared=attendance.alive)
        except _DAMAGED as error:
            if attendance.alive:
                raise
            for name in vars(self).keys() & set(HALVES):
                vars(self).pop(name).close()
            self.place.quarantine(self._at, str(error))
            self._open_halves(map_size)
        for name in suspects:
            try:
                self.halves[name].read(walk_through)
            except _DAMAGED as error:
                for half in self.halves.values():
                    half.close()
                self.place.quarantine(name, str(error))
                self._open_halves(map_size)

    def _open_halves(self, map_size: int, *, shared: bool = False) -> None:
        self._base, self._at = 0, "durable"
        self.durable = Half(
            self.place.half("durable"), sync=True, map_size=map_size, read_only=self.read_only
        )
        mark = 0 if self.read_only else self.durable.read(read_mark)
        self._at = "hot"
        self.hot = Half(
            self.place.half("hot"), sync=False, map_size=map_size, read_only=self.read_only
        )
        if not self.read_only:
            self._base = self.hot.write(lambda txn: settle_base(txn, mark, shared=shared))

    def _open_to_read(self, map_size: int) -> None:
        """Open without a repair: hot is passed over if a power cut may have damaged it."""
        found = self.place.look()
        if found.unclean and (problems := self._problems("durable")):
            raise StoreError(
                f"the store {self.path} is damaged ({problems[0]:.200}): it is repaired when it is "
                "opened to be written"
            )
        if found.rebooted or (found.unclean and self._problems("hot")):
            self.durable = self.hot = Half(
                self.place.half("durable"), sync=True, map_size=map_size, read_only=True
            )
        else:
            self._open_halves(map_size)

    def _problems(self, name: str) -> list[str]:
        problems = problems_of(self.place.half(name))
        # Somebody may have begun to write meanwhile.
        return [] if problems and self.place.look().alive else problems

    @property
    def halves(self) -> dict[str, Half]:
        """Those that are open, by name."""
        both = {"hot": self.hot, "durable": self.durable}
        return {"durable": self.durable} if self.hot is self.durable else both

    # Reading

    def get(self, key: bytes) -> Item | None:
        with self._trouble:
            for half in (self.hot, self.durable):
                frame = half.read(lambda txn: copied(txn.get(key)))
                if frame is not None:
                    return item_of(key, frame, len(frame), None)
        return None

    def scan(self, prefix: bytes, after: bytes, limit: int | None, head: int | None) -> list[Item]:
        start = max(prefix, after + b"\0" if after else b"", b"\1")
        stop = HEADER + head if head is not None else None

        found: list[Item] = []
        with self._trouble:
            while True:
                # The snapshot of hot first: what leaves it is in durable before that.
                page = functools.partial(walk, prefix, start, stop, limit)
                above, below = self.hot.read(page), self.durable.read(page)
                if not above and (limit is None or len(below) < limit):  # as a rule
                    found += [item for row in below if (item := item_of(*row, head)) is not None]
                    return found[:limit]
                # Beyond the end of a list that was cut short, the other one says nothing.
                ends = [rows[-1][0] for rows in (above, below) if rows and len(rows) == limit]
                edge = min(ends, default=None)
                both = heapq.merge(above, below, key=itemgetter(0))
                for key, same in groupby(both, itemgetter(0)):
                    if edge is not None and key > edge:
                        break
                    item = item_of(*next(same), head)  # hot's, if it has one
                    if item is not None:
                        found.append(item)
                if edge is None or (limit is not None and len(found) >= limit):
                    return found[:limit]
                start = edge + b"\0"

    # Writing

    def apply(self, batch: Batch) -> int | None:
        if batch.puts:
            self._refuse_when_full()

        def work(txn: lmdb.Transaction) -> int | None:
            if not self._hold(batch.conditions, txn):
                return None
            sequence = self._base + txn.id()
            for key, value in batch.puts.items():
                txn.put(key, make_frame(key, sequence, value))
            for key in batch.deletes:
                # A tombstone even if durable has nothing: a promotion of an older value may
                # be on its way there.
                txn.put(key, make_frame(key, sequence, b""))
            return int(sequence)

        with self._trouble:
            try:
                sequence = self.hot.write(work)
            except (lmdb.Error, OSError) as error:
                if batch.puts or not _says_full(error) or not self.place.spend_reserve():
                    raise
                sequence = self.hot.write(work)
        with self._starting:
            if not self.gone and (self._promoter is None or not self._promoter.is_alive()):
                self._promoter = _Promoter(weakref.ref(self))
                self._promoter.start()
            promoter = self._promoter
        if promoter is not None:
            promoter.wake()
        return sequence

    def _hold(self, conditions: Mapping[bytes, int | None], txn: lmdb.Transaction) -> bool:
        """Return whether all conditions hold, asking hot first and durable once for the rest."""
        below = {}
        for key, expected in conditions.items():
            frame = txn.get(key)
            if frame is None:
                below[key] = expected
            elif expected != (None if len(frame) == HEADER else FRAME.unpack_from(frame)[0]):
                return False
        return not below or self.durable.read(
            lambda txn: all(sequence_of(txn, key) == below[key] for key in below)
        )

    def _refuse_when_full(self) -> None:
        """Stop putting while there is still room to delete."""
        self._writes += 1
        if self._full or self._writes % _CHECK_EVERY == 1:
            free = shutil.disk_usage(self.path).free
            # Pages that are free inside are room, too: deleting makes some on a full disk. Hot
            # needs little, for it is emptied again and again.
            self._full = free < _FLOOR and (
                free + self.durable.spare() < _FLOOR or free + self.hot.spare() < _FLOOR // 8
            )
            if self._full:
                raise StoreFullError(
                    f"the disk of {self.path} has {free >> 20} MiB left: make room, or lower "
                    "size_budget and run `warmstart gc`"
                )
            self.place.keep_reserve()

    # Promotion

    def promote(self, *, wait: bool = True) -> bool:
        """Move everything from hot to durable; returns whether it was this process' turn."""
        with self.place.holding("promote", -1.0 if wait else 0.0) as got, self._trouble:
            if got:
                self._promote()
        return got

    def _promote(self) -> None:
        self.hot.release_dead_readers()
        self.durable.release_dead_readers()
        group = self.hot.read(functools.partial(group_after, last=b""))
        done = self._base + group.number
        while group.rows:
            reached = done if group.whole else None
            try:
                self._move(group.rows, reached)
            except (lmdb.Error, OSError) as error:
                if not _says_full(error):
                    raise
                # Deletions first, a few at a time: each makes room for the next.
                rows = sorted(group.rows, key=lambda row: len(row[1]))
                if len(rows[0][1]) == HEADER:
                    self.place.spend_reserve()
                for start in range(0, len(rows), _FEW):
                    self._move(rows[start : start + _FEW], None)
            if group.whole:
                break
            last = group.rows[-1][0]
            group = self.hot.read(functools.partial(group_after, last=last))

    def _move(self, rows: list[tuple[bytes, bytes]], done: int | None) -> None:
        self.durable.write(functools.partial(settle, group=rows, done=done))
        self.hot.write(functools.partial(forget, group=rows))

    # The rest

    def version(self) -> object:
        # Of hot alone: whatever is applied is written there first. Every hit asks this.
        try:
            return self.hot.last(), self._opening
        except (lmdb.Error, OSError):
            with self._trouble:
                raise

    def size(self) -> int:
        with self._trouble:
            return sum(half.size() for half in self.halves.values())

    def verify(self) -> list[str]:
        found = []
        for name, half in self.halves.items():
            problems = half.problems()
            last = b"\1"
            # Pages that contradict each other are not walked through: SIGBUS may be at the end.
            while not problems:
                try:
                    if last == b"\1":
                        half.read(walk_through)
                    page = half.read(functools.partial(group_after, last=last)).rows
                except _DAMAGED as error:
                    problems.append(str(error))
                    break
                if not page:
                    break
                found += [
                    f"{name}: the frame of {key[:1]!r} {key[1:7].hex()} is damaged"
                    for key, frame in page
                    if not is_whole(key, frame)
                ]
                last = page[-1][0]
            found += [f"{name}: {problem}" for problem in problems]
            if problems and not self._trouble.damaged:
                self._trouble.damaged = problems[0]
        return found

    def close(self) -> None:
        """Promote and let go; call under the registry's lock."""
        self.gone = True
        try:
            with self._starting:
                promoter, self._promoter = self._promoter, None
            if promoter is not None:
                promoter.stop()
            if not self.read_only:
                with contextlib.suppress(StoreError):  # it stays in hot, for the next opener
                    self.promote()
        finally:
            well = not (self._trouble.damaged or self._trouble.was_met)
            self._let_go(well=well)


def _says_full(error: Exception) -> bool:
    """Return whether an error of the engine, or of the system, is that of a full disk."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # The engine tells other errors of the system by their text, and a write that was cut short by
    # a quota as an input/output error.
    texts = [os.strerror(number) for number in (*FULL, errno.EIO)]
    return isinstance(error, lmdb.DiskError) or any(text in str(error) for text in texts)


class _Trouble:
    """Raises what the engine raises as the protocol's errors."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.was_met = False
        """The engine has met damage, after which the next opening checks the files."""
        self.damaged = ""
        """What a check of the files has found. Nothing is read any more: to follow pages that
        contradict each other may end in SIGBUS."""

    def __enter__(self) -> None:
        if self.damaged:
            raise self._error(self.damaged)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGED):
            self.was_met = True
            raise self._error(error) from error
        if isinstance(error, (lmdb.Error, OSError)) and not isinstance(error, StoreError):
            made = StoreFullError if _says_full(error) else StoreError
            raise made(f"the store {self._path} failed: {error}") from error

    def _error(self, why: object) -> StoreError:
        return StoreError(
            f"the store {self._path} is damaged: {why}; it is checked and repaired when all "
            "processes that use it have ended and one opens it again"
        )


class _Promoter(threading.Thread):
    """Promotes a moment after writes; at most one a process and environment."""

    def __init__(self, environment: weakref.ref[_Environment]) -> None:
        super().__init__(name="warmstart-promoter", daemon=True)
        self._environment = environment
        self._work = threading.Event()
        self._ended = threading.Event()

    def wake(self) -> None:
        if not self._work.is_set():
            self._work.set()

    def stop(self) -> None:
        self._ended.set()
        self._work.set()
        if threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        while True:
            self._work.wait()
            if self._ended.wait(_PAUSE):
                return
            self._work.clear()
            environment = self._environment()
            if environment is None or environment.gone:
                return
            if not environment.place.is_there():
                complain(
                    f"the folder of the store {environment.path} was deleted: another is begun"
                )
                with _registry_lock:
                    _close(environment)
                return
            # Trouble here is nobody's call; the next flush meets it again and raises it.
            with contextlib.suppress(StoreError, lmdb.Error, Closed):
                if not environment.promote(wait=False):
                    self._work.set()
            del environment


# One environment a folder and process


_registry: dict[tuple[str, bool], _Environment] = {}
_registry_lock = threading.RLock()
free_in_children(sys.modules[__name__], "_registry_lock", threading.RLock)


def _open(
    user: LmdbBackend, path: str, read_only: bool, map_size: int, allow_network: bool
) -> _Environment:
    with _registry_lock:
        _watch_forks()
        for unused in [e for e in _registry.values() if not e.users and e.path != path]:
            with contextlib.suppress(StoreError):  # of a backend that was not closed, but dropped
                _close(unused)
        # A process that writes reads through the same environment: LMDB must not be opened twice.
        for mode in (False, True):
            found = _registry.get((path, mode))
            if found is not None and not found.gone and (mode == read_only or read_only):
                break
        else:
            reader = _registry.pop((path, True), None)
            if reader is not None:  # opened to be read, now to be written
                reader.close()
            found = _registry[path, read_only] = _Environment(
                path, read_only=read_only, map_size=map_size, allow_network=allow_network
            )
        found.users.add(user)
        return found


def _leave(environment: _Environment, user: LmdbBackend) -> None:
    with _registry_lock:
        environment.users.discard(user)
        if not environment.users and not environment.gone:
            _close(environment)


def _close(environment: _Environment) -> None:
    """Close one; with the registry locked."""
    _registry.pop((environment.path, environment.read_only), None)
    environment.close()


@atexit.register
def _close_all() -> None:
    with _registry_lock:
        for environment in list(_registry.values()):
            with contextlib.suppress(Exception):  # at exit there is nobody left to tell
                _close(environment)


# Fork: no transaction may be running while the memory is copied. The child lets go of what it
# inherited and opens anew when it needs to: a reader of an inherited environment stands in the
# table under its parent's number, and pins pages for ever.


#
# filelock closes its own doors before a fork. A thread that opens a store holds the registry and
# waits at these, so the registry has to be taken first: hooks run in the reverse order in which
# they are registered, and these are registered when filelock is there.

_watching = False
_stopped = False


def _watch_forks() -> None:
    """Register what is done around forks; call with the registry locked."""
    global _watching  # noqa: PLW0603 (once a process)
    if _watching or not hasattr(os, "register_at_fork"):
        return
    imported("filelock")
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
    _watching = True


def _before_fork() -> None:
    global _stopped  # noqa: PLW0603 (the registry is locked)
    _registry_lock.acquire()
    for environment in _registry.values():
        for half in environment.halves.values():
            half.gate.close()
    _stopped = True


def _after_fork_in_parent() -> None:
    global _stopped  # noqa: PLW0603 (the registry is locked)
    if not _stopped:
        return  # registered while the fork was under way
    _stopped = False
    for environment in _registry.values():
        for half in environment.halves.values():
            half.gate.open()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _stopped  # noqa: PLW0603 (the only thread)
    _stopped = False
    for environment in _registry.values():
        environment.gone = True
        for half in environment.halves.values():
            half.drop()
    _registry.clear()
