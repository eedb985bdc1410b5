"""One fit's dealings with the store: what may be loaded, what is kept while it runs."""

from __future__ import annotations

import contextlib
import enum
import math
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np

from warmstart import host
from warmstart.backends import Batch
from warmstart.errors import ArgumentError, CodecError
from warmstart.fingerprint import Fingerprint, FitSpec, Level, environment
from warmstart.locks import free_in_children
from warmstart.pulse import Pulse
from warmstart.record import Entry, EntryKind, Start, encode_record
from warmstart.rows import RunInfo, info_row, read_info, small
from warmstart.store import Store

__all__ = [
    "LoadSource",
    "LoadedEntry",
    "Session",
    "Within",
    "around",
    "beat",
    "here",
    "inside_of",
    "new_run_id",
    "process_row",
    "run_info",
    "tell_process",
    "within",
]


class Within(NamedTuple):
    """The run inside which others are made, its experiment, and the store that has them."""

    experiment: str | None
    run: str
    place: str


_within: ContextVar[Within | None] = ContextVar("within", default=None)
_BEAT = 30.0
"""Seconds between two signs of life of a run."""


def _place_of(store: Store) -> str:
    """Return what tells a store from others, those in memory too."""
    return store.address if store.address != ":memory:" else f":memory: {id(store)}"


def around(store: Store) -> Within | None:
    """Return the run inside which another one of a store is made."""
    found = _within.get()
    return found if found is not None and found.place == _place_of(store) else None


def inside_of(store: Store, experiment: str | None, run: str) -> Within:
    """Return what `within` takes for a run of a store."""
    return Within(experiment, run, _place_of(store))


def here() -> Within | None:
    """Return the run inside which others are made here, of whatever store."""
    return _within.get()


@contextlib.contextmanager
def within(run: Within | None) -> Iterator[None]:
    """Make the runs of a block parts of one."""
    token = _within.set(run)
    try:
        yield
    finally:
        _within.reset(token)


def beat(store: Store, run: str) -> None:
    """Give a sign of life for a run of this process, as long as it is running."""
    item = store.backend.get(info_row(run))
    info = read_info(item)
    if item is None or info is None or info.status != "running" or info.owner != host.owner():
        return
    made = msgspec.structs.replace(info, beat=store.clock())
    condition: dict[bytes, int | None] = {item.key: item.sequence}
    store.backend.apply(Batch({item.key: small(made)}, conditions=condition))


class LoadSource(enum.Enum):
    """Where a loaded entry came from.

    Attributes
    ----------
    EXACT
        The store has it under the session's own key; a final is the answer.
    PRELOADED
        The caller offered it: a start, whatever its kind.
    """

    EXACT = "exact"
    PRELOADED = "preloaded"


@dataclass(frozen=True, slots=True)
class LoadedEntry:
    """An entry to return or to start from, and what it is to this fit.

    Parameters
    ----------
    entry : Entry
        What was stored.
    source : LoadSource
        Only an ``EXACT`` final is an answer.
    level : Level or None
        How much the fit that left it shares with this one, if known.
    distance : float or None
        How far it is on that level, 0 for the same fit, if known.
    """

    entry: Entry
    source: LoadSource
    level: Level | None = None
    distance: float | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the fit need not be run at all."""
        return self.source is LoadSource.EXACT and self.entry.kind is EntryKind.FINAL


class Session:
    """One attempt at one fit, for whoever drives the optimizer.

    Parameters
    ----------
    store : Store
        Where entries are kept.
    key : Fingerprint or FitSpec
        Which fit it is. With a `FitSpec` the store can explain the key later.
    interval : float
        Seconds between two checkpoints that do not improve on the best.
    improvement : float
        Relative decrease of the objective that counts as better.
    producer : str, optional
        Whose finals are answers, by default this process' numpy, scipy and Python; add the
        version of what you fit if the key does not cover it.
    clock : callable
        Monotonic seconds.

    Notes
    -----
    Methods may be called from several threads. None of them fails a fit: trouble with the
    store is one warning, after which they return None or False (unless the store is
    ``strict``). A wrong argument raises `ArgumentError` at once.

    Used as a context manager, an exception or Ctrl-C inside leaves the checkpoints in place
    and marks the run.

    Examples
    --------
    >>> import numpy as np
    >>> from warmstart import FitSpec, Store
    >>> store = Store(":memory:")
    >>> spec = FitSpec(model="decay", data=np.arange(3.0), settings={"x0": [1.0, 1.0]})
    >>> with store.session(spec) as session:
    ...     session.checkpoint(np.array([0.5, 0.5]), objective=2.0)
    ...     session.finalize(np.array([0.25, 0.75]), objective=1.0)
    True
    True
    >>> with store.session(spec) as session:
    ...     loaded = session.try_load()
    >>> loaded.is_answer, loaded.entry.payload
    (True, array([0.25, 0.75]))
    """

    def __init__(
        self,
        store: Store,
        key: Fingerprint | FitSpec,
        *,
        interval: float = 2.0,
        improvement: float = 1e-9,
        producer: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(store, Store):
            raise ArgumentError(f"store is a Store, not {type(store).__name__}")
        if not isinstance(key, (Fingerprint, FitSpec)):
            raise ArgumentError(
                f"key is a Fingerprint or a FitSpec, not {type(key).__name__}: "
                'a fit known by a name is FitSpec(model="name")'
            )
        for name, value in (("interval", interval), ("improvement", improvement)):
            if not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
                raise ArgumentError(f"{name} is a number from 0 up, not {value!r}")
        self.store = store
        self.spec = key if isinstance(key, FitSpec) else None
        self.key = key.key if isinstance(key, FitSpec) else key
        self.run_id = new_run_id()
        self.producer = producer if producer is not None else environment()
        self.start = Start()
        """How this run began; set when an entry is loaded."""
        self.dropped: tuple[str, ...] = ()
        """Paths of what the last payload held and the store cannot keep."""
        self._interval = float(interval)
        self._improvement = float(improvement)
        self._clock = clock
        self._lock = threading.Lock()
        self._preloaded: LoadedEntry | None = None
        self._around = around(store)
        self._pulse: Pulse | None = None
        self.facts: dict[str, Any] = {}
        """More of the fields of `RunInfo`, for whoever drives the optimizer to fill in."""
        self._started = store.clock()
        self._written = False
        self._final = False
        # The limiter: `checkpoint` returns at once unless the objective is below `_below`, or
        # the clock has reached `_due`.
        self._below = math.inf
        self._due = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            cancelled = isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
            self._mark("cancelled" if cancelled else "failed", f"{type(error).__name__}: {error}")
        elif self._written and not self._final:
            self._mark("cancelled", "it ended without a result")

    # Loading

    def preload(
        self, entry: Entry, *, level: Level | None = None, distance: float | None = None
    ) -> None:
        """Offer an entry of another fit as the start; the next `try_load` returns it.

        Parameters
        ----------
        entry : Entry
            Never written under this session's key.
        level : Level, optional
            How much that fit shares with this one.
        distance : float, optional
            How far it is on that level.
        """
        if not isinstance(entry, Entry):
            raise ArgumentError(f"preload takes an Entry, not {type(entry).__name__}")
        with self._lock:
            self._preloaded = LoadedEntry(entry, LoadSource.PRELOADED, level, distance)

    def peek(self) -> LoadedEntry | None:
        """Return what `try_load` would, and leave it there.

        Returns
        -------
        LoadedEntry or None
            What `try_load` would return.
        """
        with self._lock:
            if self._preloaded is not None:
                return self._preloaded
        entry = self.store.attempt(
            lambda: self.store.best(self.key, producer=self.producer), None, local=True
        )
        return None if entry is None else LoadedEntry(entry, LoadSource.EXACT, Level.EXACT, 0.0)

    def try_load(self) -> LoadedEntry | None:
        """Return the preloaded entry once, else the store's best for this key, else None.

        Returns
        -------
        LoadedEntry or None
            What was loaded is this run's `start` from now on.
        """
        loaded = self.peek()
        if loaded is not None:
            with self._lock:
                if loaded is self._preloaded:
                    self._preloaded = None
            self.start_from(loaded)
        return loaded

    def start_from(self, loaded: LoadedEntry) -> None:
        """Note that this run begins where `loaded` was; `try_load` does it by itself.

        Parameters
        ----------
        loaded : LoadedEntry
            What it begins with.
        """
        near = loaded.source is LoadSource.PRELOADED
        self.start = Start(
            source="near" if near else "checkpoint",
            run=loaded.entry.run,
            level=loaded.level.value if loaded.level else None,
            distance=loaded.distance,
        )

    # Keeping

    def checkpoint(
        self, payload: Any, objective: float | None = None, iteration: int | None = None
    ) -> bool:
        """Keep a state of the fit, if it is better than the best or the last is some time ago.

        Parameters
        ----------
        payload : bytes or tree of arrays and scalars
            Copied before this returns.
        objective : float, optional
            Lower is better. NaN and infinities are stored as unknown and never are the best.
        iteration : int, optional
            Kept with it.

        Returns
        -------
        bool
            Whether it was written; if so, SIGKILL cannot undo it.

        Notes
        -----
        The best state and the latest are both kept. Skipping costs 0.2 us.
        """
        try:
            if not (
                (objective is not None and objective < self._below) or self._clock() >= self._due
            ):
                return False
        except TypeError:
            pass  # `_number` says what is wrong with it
        with self._lock:
            value = _number(objective)
            better = value is not None and value < self._below
            if self._final or not (better or self._clock() >= self._due):
                return False
            written = self._write(EntryKind.CHECKPOINT, payload, value, iteration, None)
            # A record that was refused is not tried again at once either.
            self._due = self._clock() + self._interval
            if better and value is not None:
                self._below = value - self._improvement * abs(value)
            return written

    def finalize(
        self,
        payload: Any,
        objective: float | None = None,
        iteration: int | None = None,
        *,
        nfev: int | None = None,
        rows: Mapping[bytes, bytes] | None = None,
        whole: str | None = None,
    ) -> bool:
        """Keep the result; from now on the same fit returns it.

        Parameters
        ----------
        payload : bytes or tree of arrays and scalars
            Copied before this returns.
        objective : float, optional
            The objective at the result.
        iteration, nfev : int, optional
            Iterations and evaluations that it took.
        rows : mapping of bytes to bytes, optional
            Rows of an index by which it is found, written with it.
        whole : str, optional
            The item of the payload that is kept whole, or not at all.

        Returns
        -------
        bool
            Whether it was written. It survives SIGKILL at once, a power cut within two
            seconds; ``store.flush()`` waits for that.

        Raises
        ------
        CodecError
            If the payload, or a part of what is to be `whole`, is of a type that is not kept.
        """
        with self._lock:
            value = _number(objective)
            try:
                written = self._write(
                    EntryKind.FINAL, payload, value, iteration, nfev, rows=rows, whole=whole
                )
            except CodecError:
                self._mark("completed")  # the fit did end, though its result is not here
                raise
            self._final = self._final or written
            return written

    def _write(
        self,
        kind: EntryKind,
        payload: Any,
        objective: float | None,
        iteration: int | None,
        nfev: int | None,
        *,
        rows: Mapping[bytes, bytes] | None = None,
        whole: str | None = None,
    ) -> bool:
        entry = Entry(
            key=self.key,
            run=self.run_id,
            kind=kind,
            payload=payload,
            objective=objective,
            iteration=iteration,
            nfev=nfev,
            producer=self.producer,
            start=self.start,
            written=self.store.clock(),
        )
        first = not self._written
        info = None
        if first or kind is EntryKind.FINAL:
            info = self._info("completed" if kind is EntryKind.FINAL else "running")
        summary = self.spec.summary() if first and self.spec else None
        record, self.dropped = encode_record(entry)
        lost = [path for path in self.dropped if whole and path.startswith(whole)]
        if lost:
            raise CodecError(f"there are no bytes for {', '.join(lost)}")
        written = self.store.attempt(
            lambda: self.store.write(entry, record, summary=summary, info=info, rows=rows),
            otherwise=False,
            writes=True,
            local=True,
        )
        self._written = self._written or written
        if first and written and kind is EntryKind.CHECKPOINT:
            self._pulse = Pulse(weakref.WeakMethod(self._beat), _BEAT).start()
        elif kind is EntryKind.FINAL and written:
            self._stop_pulse()
        return written

    def _beat(self) -> None:
        beat(self.store, self.run_id)

    def _stop_pulse(self) -> None:
        pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.stop()

    def _info(self, status: str, error: str | None = None) -> RunInfo:
        return run_info(
            self.store,
            self.run_id,
            status,
            inside=self._around,
            key=str(self.key),
            started=self._started,
            error=error,
            source=self.start.source,
            level=self.start.level,
            start_run=self.start.run,
            distance=self.start.distance,
            **self.facts,
        )

    def _mark(self, status: str, error: str | None = None) -> None:
        if self._final:
            return
        self._stop_pulse()
        info = self._info(status, error and error[:500])
        self.store.attempt(lambda: self.store.set_run_info(info), None, writes=True, local=True)

    def add_rows(self, rows: Mapping[bytes, bytes]) -> None:
        """Write rows that tell more of the run, if it has written anything.

        Parameters
        ----------
        rows : mapping of bytes to bytes
            Keys and values.
        """
        if rows and self._written:
            batch = Batch(dict(rows))
            self.store.attempt(lambda: self.store.backend.apply(batch), None, writes=True)


def _number(objective: float | None) -> float | None:
    """Return a finite objective, or None for one that says nothing."""
    if objective is None:
        return None
    try:
        # numpy no longer turns an array of one element into a float by itself (2.4).
        value = float(objective.item() if isinstance(objective, np.ndarray) else objective)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"objective is a number or None, not {type(objective).__name__}"
        ) from error
    return value if math.isfinite(value) else None


def run_info(
    store: Store, run: str, status: str, *, inside: Within | None = None, **facts: Any
) -> RunInfo:
    """Return how a run of this process stands now, a part of the run `inside` which it is made."""
    now, inside = store.clock(), inside or around(store)
    tell_process(store)
    return RunInfo(
        run=run,
        status=status,
        ended=None if status == "running" else now,
        experiment=None if inside is None else inside.experiment,
        parent=None if inside is None else inside.run,
        process=host.process_id(),
        owner=host.owner() if status == "running" else "",  # whose end is known has none
        beat=now if status == "running" else None,
        **{"key": "", **facts},
    )


def process_row(process: str) -> bytes:
    """Return the row that tells of a process."""
    return b"h" + bytes.fromhex(process)


def tell_process(store: Store) -> threading.Thread | None:
    """Write down what this process is, once a store, on a thread of its own; returns that."""
    process = host.process_id()
    if store.read_only or (store.told is not None and store.told[0] == process):
        return None if store.told is None else store.told[1]

    def tell() -> None:
        with contextlib.suppress(Exception):  # nothing to fail for
            told = host.describe() | {"told": store.clock()}
            if store.told is None:
                return  # closed meanwhile: writing would open it again
            store.backend.apply(Batch({process_row(process): small(told)}))

    thread = threading.Thread(target=tell, name="warmstart-host", daemon=True)
    store.told = process, thread
    thread.start()
    return thread


_last_tick = 0
_tick_lock = threading.Lock()
free_in_children(sys.modules[__name__], "_tick_lock")


def new_run_id() -> str:
    """Return a new run's name: 32 hexadecimal digits that sort by time.

    48 bits of milliseconds since the epoch, as a UUID 7 has them, and 8 of their parts; no two of
    one process have the same 56, so that the first 14 digits tell them apart. Then 72 random bits,
    so that containers in which every process has the same number cannot collide.
    """
    global _last_tick  # noqa: PLW0603 (the last one of this process)
    tick = time.time_ns() * 256 // 1_000_000
    with _tick_lock:
        tick = _last_tick = max(tick, _last_tick + 1)
    return f"{tick:014x}{secrets.token_hex(9)}"
