"""Where fits are remembered: entries and their rank, over any backend."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import msgspec

from warmstart.addresses import MEMORY, address_of, backend_at, is_remote, own_folder
from warmstart.backends import Backend, Batch, Durability, Item
from warmstart.books import Books
from warmstart.bundle import read_bundle, write_bundle
from warmstart.caller import complain
from warmstart.carrying import gather, keep
from warmstart.copies import copier
from warmstart.errors import (
    ArgumentError,
    CodecError,
    KeyLookupError,
    RecordError,
    RecordVersionError,
    StatusError,
    StoreError,
    StoreFullError,
)
from warmstart.fingerprint import Difference, Fingerprint, FitSpec, SpecSummary, environment
from warmstart.history import History
from warmstart.journal import Shelf
from warmstart.locks import free_in_children, lazily
from warmstart.nearby import forget
from warmstart.record import (
    HEAD_SIZE,
    Entry,
    EntryKind,
    encode_record,
    producer_tag,
    read_head,
)
from warmstart.rows import (
    BEST,
    FINAL,
    LATEST,
    SWEPT,
    RunInfo,
    Slot,
    entry_row,
    heads,
    info_row,
    pages,
    pin_row,
    rank,
    rank_by_age,
    read,
    read_info,
    read_small,
    slot_for,
    small,
    stamp_row,
    summary_row,
)
from warmstart.tier import Tier
from warmstart.upkeep import StoreStats, VerifyReport, stats, sweep, verify

if TYPE_CHECKING:
    from warmstart.session import Session

__all__ = ["RunInfo", "Store", "StoreStats", "VerifyReport", "positive"]

_T = TypeVar("_T")
_Order = Callable[[Slot, bytes], Any]
_RECENT, _SMALL = 1024, 1 << 13
"""So many entries are kept decoded, if their records have no more bytes than that."""
_RUNNING = 64
"""Runs whose last checkpoints are remembered."""
_MAX_RUNS = 8
"""Runs whose entries are kept under one key: a fit killed a thousand times leaves eight."""
_RETRY_AFTER = 60.0
"""Seconds for which a store that failed is left alone before one fit tries it again."""
_SWEEP_EVERY = 1024
"""Writes of a process between two looks at whether expired entries are due to be swept."""
_SIZED_EVERY = 16
"""Writes of a process between two looks at the store's size, where they are small."""
_ROW_SPACE = 4096
"""Bytes that a write takes besides its record, at most about: index rows, half empty pages."""
_ASK_EVERY = 600.0
"""Seconds between two questions after a server's time."""
_AGREES = 1.0
"""Seconds by which two clocks may differ without a correction."""


class _Kept(NamedTuple):
    """A decoded entry, the version of the backend at which it was read, and what copies it."""

    version: object
    entry: Entry
    copied: Callable[[], Any]


def _silent(done: int, total: int) -> None:
    """Show no progress."""


class Store(History):
    """A cache of fits at one place, shared by threads and processes.

    Parameters
    ----------
    where : str or path-like, optional
        A folder, or ``":memory:"`` for a store that ends with the object; or the address of one
        that several machines share: ``redis://``, ``postgresql://``, or ``dir:///path`` on a
        shared file system. By default ``$WARMSTART_STORE``, else ``warmstart`` in the platform's
        cache folder. Nothing is created before the first use.
    size_budget : int
        Bytes that live entries may occupy; beyond, entries that were never used go first,
        then the least recently used.
    ttl : float, timedelta or None
        Seconds after which an entry that is not used is forgotten; None keeps it.
    entry_budget : int, optional
        Bytes that one record may have, by default a quarter of `size_budget`.
    journal_budget : int, optional
        Bytes that all journals of evaluations may have, by default as many as `size_budget`;
        beyond, those that were not written to for the longest time go. They are files of
        their own in the folder, and go by `ttl` as well.
    read_only : bool
        Serve what is there, write nothing, not even locks or stamps of use.
    local : bool, str or path-like, optional
        For a store of several machines: keep results in a folder of this one too, a path or one
        in the platform's cache folder, which must not be on a network file system. Fits that it
        has are answered without the server. Writes are acknowledged when they are in it, and sent
        on every two seconds, with each final, and by `flush` and `close`. By default
        ``$WARMSTART_LOCAL``, a path or ``1``, where that is set.
    strict : bool
        Raise what would otherwise be one warning and a fit without the store.
    clock : callable, optional
        Returns UTC seconds since the epoch; by default this machine's clock, and for a store of
        several machines that of the server or file system, so that it does not matter if theirs
        differ.

    Raises
    ------
    ArgumentError
        At once, if an argument is of the wrong type or value or the URL is unknown.
    StoreError
        On first use, if the place cannot be used.

    Notes
    -----
    All `Store` objects on one folder share one environment in a process. A store travels to
    other processes (fork, spawn, joblib) as its address. Methods are safe across threads and
    processes; each costs one look-up or one write (some 5 to 20 us on LMDB) unless it says
    otherwise. What `put` acknowledged survives SIGKILL at once, and a power cut within two
    seconds.

    Examples
    --------
    >>> store = Store(":memory:")
    >>> with store.session(FitSpec(model="my fit")) as session:
    ...     session.finalize({"x": [1.0, 2.0]}, objective=0.5)
    True
    >>> store.best(session.key).objective
    0.5
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | None = None,
        *,
        size_budget: int = 1 << 30,
        ttl: float | timedelta | None = timedelta(days=30),
        entry_budget: int | None = None,
        journal_budget: int | None = None,
        read_only: bool = False,
        local: bool | str | os.PathLike[str] | None = None,
        strict: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._where = address_of(where)
        self.size_budget = positive("size_budget", size_budget)
        self.entry_budget = positive(
            "entry_budget", size_budget // 4 or 1 if entry_budget is None else entry_budget
        )
        self.journal_budget = positive(
            "journal_budget", size_budget if journal_budget is None else journal_budget
        )
        self.ttl = _seconds(ttl)
        for name, value in (("read_only", read_only), ("strict", strict)):
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} is True or False, not {value!r:.60}")
        if clock is not None and not callable(clock):
            raise ArgumentError(f"clock is a function that returns seconds, not {clock!r:.60}")
        self.read_only = read_only
        self.strict = strict
        self._clock = clock
        if clock is None:
            clock = self._common_time if is_remote(self._where) else time.time
        self.clock = clock
        """Returns UTC seconds since the epoch, by one clock for all who use the store."""
        self.backend = backend_at(self._where, read_only=read_only)
        self.address = self.backend.address
        """Where it is, without passwords."""
        self._start()
        self.local = self._checked_local(local)
        self._before: Tier | None = None
        if self.local is not None:
            self._before = Tier(
                self.local, self.backend, budget=size_budget, ttl=self.ttl, guard=self.attempt
            )

    def _checked_local(self, local: Any) -> str | None:
        """Return the folder in front of the server, if there is to be one."""
        if local is None and self.is_shared:
            given = os.environ.get("WARMSTART_LOCAL", "")
            local = {"": False, "0": False, "1": True}.get(given, given)
        if local is None or local is False:
            return None
        folder = os.fspath(local) if isinstance(local, (str, os.PathLike)) else ""
        if local is not True and (not folder or "://" in folder or folder == MEMORY):
            raise ArgumentError(f"local is True, False or a folder, not {local!r:.60}")
        if not self.is_shared:
            raise ArgumentError(
                "local= is for a store of several machines that is written to, redis://, "
                f"postgresql:// or dir://; {self.address} needs no folder in front of it"
            )
        return own_folder(None if local is True else local, "near", self.address)

    def _start(self) -> None:
        self._discard: Callable[[], Any] | None = None
        self._books = Books()
        self._lock = threading.Lock()
        free_in_children(self, "_lock")
        self._recent: dict[Any, _Kept | None] = {}
        self._own: dict[bytes, dict[bytes, Slot]] = {}
        self._absent: tuple[bytes, object] | None = None
        """The key that was looked up in vain last, and the version of the backend."""
        self._room = 0
        """Bytes that may be written before the size is looked at again."""
        self._asked, self._ahead = -math.inf, 0.0
        # Whether the disk was full, and since when; not the error, which would keep a fit's data.
        self._trouble: tuple[bool, float] | None = None
        self.told: tuple[str, threading.Thread] | None = None
        """The process that has told this store what it is, and the thread that does so."""
        _open_stores.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.address == MEMORY:
            raise TypeError(
                'Store(":memory:") cannot travel to another process: give the store a folder'
            )
        options = {
            "size_budget": self.size_budget,
            "ttl": self.ttl,
            "entry_budget": self.entry_budget,
            "journal_budget": self.journal_budget,
            "read_only": self.read_only,
            "local": str(Path(self.local).parent) if self.local is not None else False,
            "strict": self.strict,
            "clock": self._clock,
        }
        return _rebuild, (self._where, options)

    def __deepcopy__(self, _memo: Any) -> Store:
        # The place is not copied with what refers to it: clones of an estimator share theirs.
        return self

    def __repr__(self) -> str:
        return f"Store({self.address!r}{', read_only=True' if self.read_only else ''})"

    def _repr_html_(self) -> str:
        from warmstart.html import store_html  # noqa: PLC0415 (only notebooks need it)

        return store_html(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_shared(self) -> bool:
        """Whether it is one that other machines may use, to which journals have to be sent."""
        return is_remote(self._where) and not self.read_only

    @property
    def journals(self) -> Shelf | None:
        """The journals of evaluations beside the entries; None for a store that is read only.

        Those of a store in memory are in a temporary folder.
        """
        return None if self.read_only else self._shelf

    @lazily
    def _shelf(self) -> Shelf:
        if self.address == MEMORY:
            folder = Path(tempfile.gettempdir(), f"warmstart-{secrets.token_hex(8)}")
            self._discard = weakref.finalize(self, _discard, folder, os.getpid())
        elif is_remote(self._where):
            # Files of this machine's own: they are written to thousands of times a second.
            folder = Path(own_folder(None, "journals", self.address))
        else:
            self.backend.size()  # opens it, which checks the folder
            folder = Path(self.address, "journals")
        return Shelf(folder, budget=self.journal_budget, ttl=self.ttl)

    @property
    def _front(self) -> Backend:
        """What is asked first, and written to first."""
        tier = self._tier
        return self.backend if tier is None else tier.near

    @property
    def _tier(self) -> Tier | None:
        """The folder in front of the server, if there is one that can be used."""
        tier = self._before
        if tier is not None and not tier.is_open:
            try:
                tier.open()
            except StoreError as error:
                self._before = None
                told = f"{self.address} is used without the folder in front of it: {error}"
                complain(told)
        return self._before

    def _common_time(self) -> float:
        """Return UTC seconds since the epoch by the server's clock."""
        if time.monotonic() >= self._asked + _ASK_EVERY:
            self._asked = time.monotonic()
            begin = time.time()
            there = self.attempt(self.backend.now, None)
            ahead = 0.0 if there is None else there - (begin + time.time()) / 2.0
            self._ahead = ahead if abs(ahead) > _AGREES else 0.0
        return time.time() + self._ahead

    def all_journals(self) -> Iterator[tuple[Fingerprint, str, bytes]]:
        """Iterate over fit, name and bytes of all journals, those of this machine among them.

        Returns
        -------
        iterator of (Fingerprint, str, bytes)
            One a journal.
        """
        return gather(self.backend, self._shelf)

    def keep_journal(self, fit: Fingerprint, name: str, content: bytes) -> bool:
        """Keep a journal that comes from another store, unless one as long is there.

        Parameters
        ----------
        fit : Fingerprint
            The key at the level of journals.
        name : str
            Its file's name.
        content : bytes
            All of the file.

        Returns
        -------
        bool
            Whether it was written.
        """
        if self.is_shared:
            return keep(self.backend, fit, name, content, self.clock())
        return self._shelf.replace(fit, name, content)

    def _about_now(self) -> float:
        """Return the time for a look-up: a hit in the folder before a server asks nobody for it."""
        asks = self._before is None or self._clock is not None
        return self.clock() if asks else time.time() + self._ahead

    # One fit

    def session(self, key: Fingerprint | FitSpec, **options: Any) -> Session:
        """Return a `Session` for one fit; see there for `options`.

        Parameters
        ----------
        key : Fingerprint or FitSpec
            Which fit it is.
        **options
            ``interval``, ``producer`` and the other arguments of `Session`.

        Returns
        -------
        Session
            To be used in a ``with`` block.
        """
        from warmstart.session import Session  # noqa: PLC0415 (sessions stand above the store)

        return Session(self, key, **options)

    # Entries

    def put(
        self,
        entry: Entry,
        *,
        summary: SpecSummary | None = None,
        info: RunInfo | None = None,
        durability: Durability = Durability.PROCESS,
    ) -> bool:
        """Write an entry into its run's slots.

        Parameters
        ----------
        entry : Entry
            A final takes the place of the run's checkpoints. A checkpoint takes the place of
            the run's best if its objective is lower, else of its latest.
        summary : SpecSummary, optional
            What the key means, kept once a key.
        info : RunInfo, optional
            How the run stands.
        durability : Durability
            ``POWER`` waits for the disk (some ms).

        Returns
        -------
        bool
            False if the record is over `entry_budget` or the run has a final already.

        Raises
        ------
        CodecError
            If the payload is of a type that cannot be stored.
        StoreError
            If the place cannot be written.
        """
        return self.write(
            entry, encode_record(entry)[0], summary=summary, info=info, durability=durability
        )

    def write(
        self,
        entry: Entry,
        record: bytes,
        *,
        summary: SpecSummary | None = None,
        info: RunInfo | None = None,
        rows: Mapping[bytes, bytes] | None = None,
        durability: Durability = Durability.PROCESS,
    ) -> bool:
        """Do what `put` does, with an entry that is encoded already, and rows of an index.

        Parameters
        ----------
        entry : Entry
            As for `put`.
        record : bytes
            The same entry, encoded.
        summary, info, durability
            As for `put`.
        rows : mapping of bytes to bytes, optional
            Rows of the index of near fits, written with it.

        Returns
        -------
        bool
            As `put` does.
        """
        if len(record) > self.entry_budget:
            self._books.count("refused")
            return False
        prefix = entry_row(entry.key, entry.run)
        extra = dict(rows or {})
        tier = self._tier
        front = self._front
        if rows and tier is None:
            forget(self.backend, entry.key.digest)  # of an earlier run of the same fit
        if summary is not None:
            extra[summary_row(entry.key.digest)] = small(summary)
        if info is not None:
            extra[info_row(entry.run)] = small(info)
        with self._lock:
            own = self._own.pop(prefix, None)
        while True:
            held: list[Slot] = []
            if own is None and self._is_absent(entry.key):
                own = {}
            if own is None:
                held = list(heads(front.scan(entry_row(entry.key), head=HEAD_SIZE)))
                own = {slot.name: slot for slot in held if slot.run == entry.run}
            place, stale = slot_for(entry, own)
            if place is None:
                return False
            # Slots of the run, and of those that make room, must not have moved since they were
            # read: what was the worst run may have become the best.
            conditions = {
                prefix + name: own[name].item.sequence if name in own else None
                for name in (BEST, FINAL, LATEST)
            }
            for slot in [] if own else _surplus(held):
                stale += [slot.item.key, info_row(slot.run)]
                conditions[slot.item.key] = slot.item.sequence
            row = prefix + place
            batch = Batch({row: record, **extra}, stale, conditions)
            if tier is None:
                sequence = self.backend.apply(batch, durability)
            else:
                indexed = entry.key.digest if rows else None
                now = self._about_now()
                sequence = tier.apply(
                    entry.run, batch, now=now, indexed=indexed, durability=durability
                )
            if sequence is not None:
                break
            own = None
        if entry.kind is EntryKind.CHECKPOINT:
            left = {name: slot for name, slot in own.items() if slot.item.key not in stale}
            slot = Slot(Item(row, b"", sequence, len(record)), read_head(record))
            self._keep_own(prefix, left | {place: slot})
        self._books.count("written")
        if tier is None:
            self._settle()
            self._keep_bounds(prefix, size=len(record))
            return True
        if entry.kind is EntryKind.FINAL:
            tier.deliver()
        self.attempt(self._settle, None, writes=True)
        self.attempt(lambda: self._keep_bounds(prefix, size=len(record)), None, writes=True)
        return True

    def _is_absent(self, key: Fingerprint) -> bool:
        """Whether it is known that a key has no entries: looked up before, and no write since."""
        absent, self._absent = self._absent, None
        return absent is not None and absent == (key.digest, self.backend.version())

    def _keep_own(self, prefix: bytes, own: dict[bytes, Slot]) -> None:
        """Remember what a run has, so that its next write need not look (10 us of 45).

        It is checked as what was read would be, by the conditions of that write.
        """
        with self._lock:
            if len(self._own) >= _RUNNING:
                self._own.clear()
            self._own[prefix] = own

    def _keep_bounds(self, written: bytes, *, size: int | None = None) -> None:
        """Sweep if the budget is exceeded, or if none has looked for expired entries lately.

        After a write of so many bytes, look only if the sixteenth of the budget that this
        process may have used since the last look is used up, or it is some time ago: others
        write too. Asking LMDB takes 6 us, a server a round trip.
        """
        number = self._books.counters["written"]
        self._room -= self.size_budget if size is None else size + _ROW_SPACE
        if number % _SIZED_EVERY and (self.is_shared or self._room > 0):
            return
        turn = self.is_shared or number == 1 or number % _SWEEP_EVERY == 0
        due = turn and self._sweep_is_due()
        used = self.backend.size()
        self._room = min(self.size_budget // 16, self.size_budget - used)
        if not due and used <= self.size_budget:
            return
        with self.backend.lock("sweep", timeout=0) as got:
            if got:  # else somebody is at it
                self._sweep(written)

    def _sweep_is_due(self) -> bool:
        last = read_small(self.backend.get(SWEPT), float) or 0.0
        return self.ttl is not None and not 0.0 <= self.clock() - last < self.ttl / 10

    def _sweep(self, written: bytes = b"") -> Counter[str]:
        now = self.clock()
        with contextlib.suppress(StoreFullError):  # sweeping is what helps
            self.backend.apply(Batch({SWEPT: small(now)}))
        gone = sweep(self.backend, now=now, ttl=self.ttl, budget=self.size_budget, keep=written)
        for reason, number in gone.items():
            self._books.count(reason, number)
        return gone

    def best(self, key: Fingerprint, *, producer: str | None = None) -> Entry | None:
        """Return the best entry of a fit, or None.

        Parameters
        ----------
        key : Fingerprint
            The whole fit's.
        producer : str, optional
            Whose finals are answers; by default this process' numpy, scipy and Python. The
            final of another producer ranks, and is returned, as a checkpoint.

        Returns
        -------
        Entry or None
            The newest final; else the checkpoint with the lowest objective, the newest among
            equals; one without an objective last. Damaged records are skipped, counted, and
            swept at the next write.

        Notes
        -----
        Writes nothing: stamps of use are gathered and written with a later batch.
        """
        return self._first(key, producer or environment(), rank)

    def latest(self, key: Fingerprint, *, producer: str | None = None) -> Entry | None:
        """Return the entry written last, whatever its objective, finals before checkpoints.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.
        producer : str, optional
            Whose finals are answers, as for `best`.

        Returns
        -------
        Entry or None
            None if there is none that can be read.
        """
        return self._first(key, producer or environment(), rank_by_age)

    def _first(self, key: Fingerprint, producer: str, order: _Order) -> Entry | None:
        digest = _checked(key).digest
        name = (digest, producer, order)
        kept = self._recent.get(name)
        front = self.backend if self._before is None else self._front
        now, version, copied = self._about_now(), front.version(), None
        if (
            kept is not None
            and (kept.version == version or self._is_unchanged(key, kept.entry))
            and not self._expired(digest, kept.entry.written, front, now)
        ):
            entry: Entry | None = kept.entry
            copied = kept.copied
            if kept.version != version:
                self._recent[name] = kept._replace(version=version)
        else:
            entry, size = self._look_up(key, producer, order)
            if size < 0 and not self.is_shared:  # where asking for the version costs nothing
                self._absent = digest, version
            # A checkpoint of here may have been overtaken at the server.
            lasts = self._tier is None or (entry is not None and entry.kind is EntryKind.FINAL)
            if entry is not None and size <= _SMALL and lasts:
                copied = self._keep_recent(name, version, entry)
        if entry is None:
            self._books.count("misses")
            return None
        self._books.note_use(digest, now)
        return entry if copied is None else msgspec.structs.replace(entry, payload=copied())

    def _look_up(self, key: Fingerprint, producer: str, order: _Order) -> tuple[Entry | None, int]:
        """Return the first readable entry and the size of its record; -1 if there is no row."""
        if self._tier is None:
            return self._look_into(self.backend, key, producer, order)
        near = self._look_into(self._tier.near, key, producer, order)
        if near[0] is not None and near[0].kind is EntryKind.FINAL:
            return near  # nobody can have a better one
        nothing: tuple[Entry | None, int] = None, 0
        far = self.attempt(lambda: self._look_into(self.backend, key, producer, order), nothing)
        if far[0] is not None and far[0].kind is EntryKind.FINAL:
            row = entry_row(key, far[0].run, FINAL)
            self._tier.keep({row: encode_record(far[0])[0]})
            return far
        by_age = order is rank_by_age
        return max(near, far, key=lambda found: _goodness(found[0], by_age=by_age))

    def _look_into(
        self, backend: Backend, key: Fingerprint, producer: str, order: _Order
    ) -> tuple[Entry | None, int]:
        items = backend.scan(entry_row(key), limit=2)
        if len(items) == 1:  # the usual one, read whole at once
            candidates: Iterable[Item] = items
        else:
            candidates = (slot.item for slot in self._sorted(key, producer, order, backend))
        for item in candidates:
            entry = self._read(item, producer, backend)
            if entry is not None and not self._expired(
                key.digest, entry.written, backend, self._about_now()
            ):
                return entry, item.size
        return None, 0 if items else -1

    def _is_unchanged(self, key: Fingerprint, entry: Entry) -> bool:
        """Whether an entry still is the only one of its key, since others have written.

        Its number tells, without a look at the record: 8 us instead of the 25 of reading it.
        """
        rows = self._front.scan(entry_row(key), limit=2, head=1)
        return len(rows) == 1 and rows[0].sequence == entry.sequence

    def _keep_recent(self, name: Any, version: object, entry: Entry) -> Callable[[], Any] | None:
        """Keep a small decoded entry that is asked for again; returns what copies it.

        Its bytes have been checked, and the version of the backend says that they are the
        store's still; a look-up from here costs 4 us instead of 20 (LMDB, 2026-11). The first
        time it is only noted: most entries are looked up once a process, without a copy.
        """
        if name not in self._recent:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[name] = None
            return None
        copied = copier(entry.payload)
        if copied is not None:
            self._recent[name] = _Kept(version, entry, copied)
        return copied

    def _sorted(
        self, key: Fingerprint, producer: str, order: _Order, backend: Backend
    ) -> list[Slot]:
        """Return the readable slots of a key, best first, and note those that are damaged."""
        items = backend.scan(entry_row(_checked(key)), head=HEAD_SIZE)
        readable = []
        for slot in heads(items):
            if slot.head is not None:
                readable.append(slot)
            else:
                self._unreadable(slot, backend)
        if len(readable) > 1:
            tag = producer_tag(producer)
            readable.sort(key=lambda slot: order(slot, tag))
        return readable

    def _read(self, item: Item, producer: str, backend: Backend) -> Entry | None:
        """Return an item's entry, reading the rest of it if need be; None if it is damaged."""
        if len(item.value) < item.size:
            whole = backend.get(item.key)
            if whole is None:
                return None
            item = whole
        try:
            entry = read(item)
        except RecordError as error:
            newer = isinstance(error, RecordVersionError)
            self._unreadable(Slot(item, None, newer=newer), backend)
            return None
        if entry.kind is EntryKind.FINAL and entry.producer != producer:
            return msgspec.structs.replace(entry, kind=EntryKind.CHECKPOINT)
        return entry

    def _unreadable(self, slot: Slot, backend: Backend) -> None:
        """Count a record that cannot be read; one that is damaged goes with the next write."""
        self._books.count("newer" if slot.newer else "damaged")
        if not slot.newer:
            self._books.note_damaged(slot.item.key, backend, slot.item.sequence)

    def _expired(self, key: bytes, written: float, backend: Backend, now: float) -> bool:
        if self.ttl is None:
            return False
        edge = now - self.ttl
        if written >= edge or self._books.used_at(key) >= edge:
            return False
        if (read_small(backend.get(stamp_row(key)), float) or 0.0) >= edge:
            return False
        return backend.get(pin_row(key)) is None

    # Keys

    def entries(self, key: Fingerprint, *, producer: str | None = None) -> list[Entry]:
        """Return all readable entries of a fit, best first, without a trace of use.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.
        producer : str, optional
            Whose finals are answers, as for `best`.

        Returns
        -------
        list of Entry
            Of all runs; empty for a fit that is not known.
        """
        producer = producer or environment()
        slots = self._sorted(key, producer, rank, self.backend)
        found = (self._read(slot.item, producer, self.backend) for slot in slots)
        return [entry for entry in found if entry is not None]

    def keys(self) -> Iterator[Fingerprint]:
        """Iterate over all keys that have entries, in their order. Reads every head.

        Returns
        -------
        iterator of Fingerprint
            Each once.
        """
        last = b""
        for item in pages(self.backend, b"e", head=1):
            key = item.key[1:33]
            if key != last:
                last = key
                yield Fingerprint(key)

    def resolve(self, text: str) -> Fingerprint:
        """Return the one key that begins with `text`, at least four hexadecimal digits.

        Parameters
        ----------
        text : str
            The first digits of the key, or all 64.

        Returns
        -------
        Fingerprint
            The whole key.

        Raises
        ------
        KeyLookupError
            If no key begins so, or more than one.
        """
        digits = text.lower() if isinstance(text, str) else ""
        if not 4 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
            raise ArgumentError(f"a key is written as 4 to 64 hexadecimal digits, not {text!r}")
        whole = bytes.fromhex(digits[: len(digits) // 2 * 2])
        found: dict[bytes, None] = {}
        for item in pages(self.backend, b"e" + whole, head=1):
            if item.key[1:33].hex().startswith(digits):
                found[item.key[1:33]] = None
            if len(found) > 1:
                raise KeyLookupError(
                    f"{text!r} is short for several keys, such as "
                    + " and ".join(key.hex()[: len(digits) + 4] for key in found)
                    + ": give more digits"
                )
        if not found:
            raise KeyLookupError(f"no key in {self.address} begins with {text!r}")
        return Fingerprint(next(iter(found)))

    def summary(self, key: Fingerprint) -> SpecSummary | None:
        """Return what a key means, if the fit that wrote it said so.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.

        Returns
        -------
        SpecSummary or None
            None if no fit with a `FitSpec` was kept under the key.
        """
        return read_small(self.backend.get(summary_row(_checked(key).digest)), SpecSummary)

    def explain(self, key: Fingerprint, other: Fingerprint) -> list[Difference]:
        """Return the named arguments in which two remembered fits differ.

        Parameters
        ----------
        key, other : Fingerprint
            Of two fits.

        Returns
        -------
        list of Difference
            Empty if nothing that is known of them differs.

        Raises
        ------
        KeyLookupError
            If the store does not know what one of the keys means.
        """
        ours, theirs = self.summary(key), self.summary(other)
        for missing, found in ((key, ours), (other, theirs)):
            if found is None:
                raise KeyLookupError(f"the store does not say what {str(missing)[:12]} means")
        assert ours is not None
        assert theirs is not None
        return ours.explain(theirs)

    def run_info(self, run: str) -> RunInfo | None:
        """Return how a run went, given its 32 hexadecimal digits.

        Parameters
        ----------
        run : str
            The run's id.

        Returns
        -------
        RunInfo or None
            None if there is no such run.
        """
        return read_info(self.backend.get(info_row(run)))

    def set_run_info(self, info: RunInfo) -> None:
        """Write how a run went.

        Parameters
        ----------
        info : RunInfo
            It takes the place of what is known of the run ``info.run``.
        """
        rows = {info_row(info.run): small(info)}
        if self._tier is None:
            self.backend.apply(Batch(rows))
        else:
            self._tier.apply(info.run, Batch(rows), now=self._about_now())

    def pin(self, key: Fingerprint, *, pinned: bool = True) -> None:
        """Keep a key's entries whatever the budget and their age, or no longer.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.
        pinned : bool
            False takes the pin away.
        """
        row = pin_row(_checked(key).digest)
        self.backend.apply(Batch({row: small(True)}) if pinned else Batch(deletes=[row]))

    def pinned(self, key: Fingerprint) -> bool:
        """Return whether a key is pinned.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.

        Returns
        -------
        bool
            Whether it is.
        """
        return self.backend.get(pin_row(_checked(key).digest)) is not None

    def delete(self, key: Fingerprint) -> int:
        """Forget a fit; returns how many entries it had. A pin goes too, and its journals.

        Parameters
        ----------
        key : Fingerprint
            Of the fit.

        Returns
        -------
        int
            Entries that went; 0 for a fit that is not known.
        """
        digest = _checked(key).digest
        rows = [item.key for item in self.backend.scan(entry_row(key), head=1)]
        runs = {info_row(row[33:49].hex()) for row in rows}
        own = [summary_row(digest), pin_row(digest), stamp_row(digest)]
        self.backend.apply(Batch(deletes=[*rows, *runs, *own]))
        forget(self.backend, digest)
        if self._tier is not None:
            self._tier.forget(key)
        if self.journals is not None:
            self.journals.forget(key)
        self._books.forget(digest)
        return len(rows)

    # The whole store

    def gc(self) -> dict[str, int]:
        """Sweep now: damaged, expired, then whatever is over the budget.

        Returns
        -------
        dict of str to int
            Entries that went, by reason, and journals.
        """
        with contextlib.suppress(StoreFullError):
            self._settle(now=True)
        with self.backend.lock("sweep"):
            gone = self._sweep()
        if self.journals is not None:
            gone["journals"] += self.journals.sweep(self.clock())
        return dict(+gone)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every record and check every byte; with `repair` delete what is damaged.

        Parameters
        ----------
        repair : bool
            Delete what is damaged.

        Returns
        -------
        VerifyReport
            How many records were read, and which are damaged.
        """
        return verify(self.backend, repair=repair)

    def stats(self) -> StoreStats:
        """Count what is there. Reads every head.

        Returns
        -------
        StoreStats
            Numbers of fits, entries, runs and bytes.
        """
        number, used = self._shelf.usage()
        return stats(
            self.backend,
            budget=self.size_budget,
            counters=dict(self._books.counters),
            journals=number,
            journal_bytes=used,
            waiting=0 if self._tier is None else self._tier.waiting(),
        )

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] = _silent,
    ) -> int:
        """Write all records to a portable bundle (a zip file); returns how many.

        Parameters
        ----------
        path : str or path-like
            A file in a folder that exists; it appears when it is whole.
        progress : callable, optional
            Called as ``progress(done, total)``.

        Returns
        -------
        int
            Records written.
        """
        return write_bundle(self.backend, path, progress, journals=self.all_journals())

    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] = _silent,
    ) -> tuple[int, int]:
        """Add the records of a bundle; returns how many were added and how many skipped.

        What is there already stays. Every record is checked. May be repeated.

        Parameters
        ----------
        path : str or path-like
            A file that `export` wrote.
        progress : callable, optional
            Called as ``progress(done, total)``.

        Returns
        -------
        tuple of (int, int)
            Records added, and those that were there already, damaged or too large.

        Raises
        ------
        BundleError
            If the file is not a bundle.
        """
        counts = read_bundle(
            self.backend,
            path,
            progress,
            entry_budget=self.entry_budget,
            journal_budget=self.journal_budget,
            keep_journal=self.keep_journal,
        )
        self._keep_bounds(b"")
        return counts

    def flush(self) -> None:
        """Return when everything written so far would survive a power cut.

        With ``local``, when it has been sent to the server as well.

        Raises
        ------
        StoreError
            If that does not take it.
        """
        self._settle(now=True)
        if self._tier is not None:
            self._tier.near.flush()
            if waiting := self._tier.deliver():
                raise StoreError(self._not_sent(waiting))
        self.backend.flush()

    def _not_sent(self, waiting: int) -> str:
        return (
            f"{waiting} runs are not at {self.address} yet: they stand in {self.local}, and "
            "whoever uses the store with that folder sends them"
        )

    def close(self) -> None:
        """Write what is pending and let go of files; using the store again opens it again.

        What is pending are books: unless the store is `strict`, they are given up where they cannot
        be written, since a ``with`` block is not to end in an exception that its work has not had.
        """
        try:
            self._settle(now=True)
        except StoreError:
            if self.strict:
                raise
        if self.told is not None:
            self.told[1].join(timeout=5.0)  # it writes, too
            self.told = None
        self._send_at_exit()
        self.backend.close()
        self.__dict__.pop("_shelf", None)
        if self._discard is not None:
            self._discard()

    def learn(self, groups: tuple[bytes, ...], evaluations: int, seconds: float) -> None:
        """Note what a fit has cost, in all groups that it is in; written some seconds later.

        Parameters
        ----------
        groups : tuple of bytes
            See `warmstart.learned.path`.
        evaluations : int
            Calls of the user's functions.
        seconds : float
            That the fit took.
        """
        self._books.note_fit(groups, evaluations, seconds)

    def note_hit(self, evaluations: int, seconds: float) -> None:
        """Note what a hit has saved; written some seconds later.

        Parameters
        ----------
        evaluations : int
            Calls that were not needed.
        seconds : float
            That they once took.
        """
        self._books.note_hit(evaluations, seconds)

    def _settle(self, *, now: bool = False) -> None:
        """Write what was gathered, if it is time."""
        if not self.read_only and (now or self._books.is_due()):
            tier = self._before
            near = [tier.near] if tier is not None and tier.is_open else []
            self._books.settle([*near, self.backend], self.clock)

    def _send_at_exit(self) -> None:
        if self._before is not None and (waiting := self._before.close()):
            complain(self._not_sent(waiting))

    # Law 2: the store never fails a fit

    def attempt(
        self,
        operation: Callable[[], _T],
        otherwise: _T,
        *,
        writes: bool = False,
        local: bool = False,
    ) -> _T:
        """Do something for a fit that must go on even if the store cannot.

        Parameters
        ----------
        operation : callable
            What to do with the store.
        otherwise : object
            What to return if that fails, or has failed within the last minute.
        writes : bool
            Whether it writes; a full disk only stops these.
        local : bool
            Whether a folder in front of a server can do it alone.

        Returns
        -------
        object
            The result of `operation`, or `otherwise`.

        Raises
        ------
        ArgumentError, CodecError, KeyLookupError, StatusError
            A wrong argument is the caller's, not the store's.
        StoreError
            If the store is `strict`.
        """
        if writes and self.read_only:
            return otherwise
        alone = local and self._before is not None
        if self._trouble is not None and not alone and self._still_out(writes=writes):
            return otherwise
        try:
            return operation()
        except (ArgumentError, CodecError, KeyLookupError, StatusError):
            raise
        except Exception as error:
            if self.strict:
                raise
            self._give_up(error)
            return otherwise

    def _still_out(self, *, writes: bool) -> bool:
        assert self._trouble is not None
        is_full, since = self._trouble
        if time.monotonic() - since > _RETRY_AFTER:
            self._trouble = None  # one fit tries again, and warns again if nothing has changed
            return False
        return writes or not is_full

    def _give_up(self, error: Exception) -> None:
        is_full = isinstance(error, StoreFullError)
        known, self._trouble = self._trouble, (is_full, time.monotonic())
        if known is None:
            rest = "without it" if self._before is None else f"with {self.local} alone"
            complain(f"{self.address} is not used for now, fits go on {rest}: {error}")


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _settle_all() -> None:
    for store in list(_open_stores):
        with contextlib.suppress(Exception):  # at exit there is nobody left to tell
            store._settle(now=True)  # noqa: SLF001
        with contextlib.suppress(Exception):
            store._send_at_exit()  # noqa: SLF001
            if store.told is not None:
                store.told[1].join(timeout=1.0)


def _goodness(entry: Entry | None, *, by_age: bool) -> tuple[bool, float, float]:
    """Return how good a checkpoint is beside one of another backend."""
    if entry is None:
        return (False, 0.0, 0.0)
    objective = math.inf if entry.objective is None else entry.objective
    return (True, 0.0 if by_age else -objective, entry.written)


def _rebuild(address: str, options: Mapping[str, Any]) -> Store:
    return Store(address, **options)


def _discard(folder: Path, owner: int) -> None:
    """Remove the journals of a store in memory, unless this is a child of its process."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def positive(name: str, value: int) -> int:
    """Return a number of bytes, or refuse it."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ArgumentError(f"{name} is a positive number of bytes, not {value!r}")
    return value


def _seconds(ttl: float | timedelta | None) -> float | None:
    if isinstance(ttl, timedelta):
        ttl = ttl.total_seconds()
    if ttl is None:
        return None
    if not isinstance(ttl, (int, float)) or isinstance(ttl, bool) or not ttl > 0:
        raise ArgumentError(
            f"ttl is a positive number of seconds, a timedelta or None, not {ttl!r}"
        )
    return float(ttl)


def _checked(key: Fingerprint) -> Fingerprint:
    if not isinstance(key, Fingerprint):
        raise ArgumentError(
            f"a key is a Fingerprint, not {type(key).__name__}: use store.resolve(text) or spec.key"
        )
    return key


def _surplus(held: list[Slot]) -> list[Slot]:
    """Return the slots of the worst runs of a key that has no room for another run."""
    if len(held) < _MAX_RUNS:
        return []
    tag = producer_tag(environment())
    ranked = sorted((slot for slot in held if slot.head is not None), key=lambda s: rank(s, tag))
    worst = set(list(dict.fromkeys(slot.run for slot in ranked))[_MAX_RUNS - 1 :])
    return [slot for slot in ranked if slot.run in worst]
