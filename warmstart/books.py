"""What a store gathers in memory while it is used, and writes down with a later batch.

A look-up writes nothing: that an entry was used, what a hit has saved, what a fit has cost and
which records are damaged is noted here, and written some seconds later.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from warmstart.backends import Backend, Batch
from warmstart.learned import Cost, Saved, merge_costs, merge_saved
from warmstart.locks import free_in_children
from warmstart.rows import small, stamp_row

__all__ = ["Books"]

_SETTLE_AFTER = 10.0
"""Seconds for which notes gather in memory before a write takes them along."""


_MANY = 100_000
"""Notes of a kind that are held, where none can be written."""


class Books:
    """The notes of one store in one process. Safe in threads, and in forked children.

    Attributes
    ----------
    counters : Counter of str
        What has happened in this process: hits, misses, written, damaged, ...
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._lock = threading.Lock()
        free_in_children(self, "_lock")
        self._used: dict[bytes, float] = {}
        self._damaged: dict[bytes, tuple[Backend, int]] = {}
        self._fits: list[tuple[tuple[bytes, ...], int, float]] = []
        self._saved = Saved()
        self._settled = time.monotonic()

    def count(self, event: str, by: int = 1) -> None:
        """Count what has happened."""
        with self._lock:
            self.counters[event] += by

    def note_use(self, key: bytes, at: float) -> None:
        """Note that an entry was returned."""
        with self._lock:
            self.counters["hits"] += 1
            if len(self._used) < _MANY or key in self._used:
                self._used[key] = at

    def used_at(self, key: bytes) -> float:
        """Return when a key was used last, if that was here and is not written yet; else 0."""
        return self._used.get(key, 0.0)

    def forget(self, key: bytes) -> None:
        """Take back that a key was used: it is deleted."""
        with self._lock:
            self._used.pop(key, None)

    def note_damaged(self, row: bytes, backend: Backend, sequence: int) -> None:
        """Note a record to be deleted, unless it has been written again by then."""
        with self._lock:
            self._damaged[row] = backend, sequence

    def note_fit(self, groups: tuple[bytes, ...], evaluations: int, seconds: float) -> None:
        """Note what a fit has cost, in all groups that it is in."""
        with self._lock:
            if len(self._fits) < _MANY:
                self._fits.append((groups, evaluations, seconds))

    def note_hit(self, evaluations: int, seconds: float) -> None:
        """Note what a hit has saved."""
        with self._lock:
            self._saved.add(evaluations, seconds)

    def is_due(self) -> bool:
        """Whether there are notes that have waited long enough."""
        return self._waiting() and time.monotonic() - self._settled >= _SETTLE_AFTER

    def _waiting(self) -> bool:
        return bool(self._used or self._damaged or self._fits or self._saved.hits)

    def settle(self, backends: Sequence[Backend], clock: Callable[[], float]) -> None:
        """Write all notes down.

        Parameters
        ----------
        backends : sequence of Backend
            The store's own last; stamps of use go to all of them, since each makes room by them.
        clock : callable
            Returns UTC seconds since the epoch.

        Raises
        ------
        StoreError
            If a backend cannot be written. The notes are given up.
        """
        if not self._waiting():
            return
        with self._lock:
            used, self._used = self._used, {}
            damaged, self._damaged = self._damaged, {}
            fits, self._fits = self._fits, []
            saved, self._saved = self._saved, Saved()
            self._settled = time.monotonic()
        costs: dict[bytes, Cost] = {}
        for groups, evaluations, seconds in fits:
            for group in groups:
                costs.setdefault(group, Cost()).add(evaluations, seconds)
        with contextlib.suppress(Exception):  # what is learned is worth no fit
            merge_costs(backends[-1], costs)
            if saved.hits:
                merge_saved(backends[-1], int(clock() // 86_400), saved)
        stamps = Batch({stamp_row(key): small(at) for key, at in used.items()})
        for backend in backends:
            backend.apply(stamps)
        for row, (backend, sequence) in damaged.items():
            backend.apply(Batch(deletes=[row], conditions={row: sequence}))
