"""A folder of this machine in front of a store that several machines share.

Results that it has are answered without asking the server, and what a fit writes is acknowledged
once it is here; it goes on to the server behind the fit's back, the last state of each run only.
A row ``q`` for each run says what is still to be sent, so that whoever uses the folder next
sends what a process has left that was killed, or had no server.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from warmstart.backends import Backend, Batch, Durability, Item
from warmstart.backends.lmdb import LmdbBackend
from warmstart.fingerprint import Fingerprint
from warmstart.nearby import forget
from warmstart.pulse import Pulse
from warmstart.rows import entry_row, is_sound, pages, read_small, small, summary_row
from warmstart.upkeep import sweep

__all__ = ["Tier"]

_EVERY = 2.0
"""Seconds between two deliveries of what waits."""
_DEADLINE = 2.0
"""Seconds after which a delivery makes a pause, whatever still waits."""
_SWEEP_EVERY = 1024
"""Writes of a process between two looks for what has expired."""
_SIZED_EVERY = 16
"""Writes of a process between two looks at the size of the folder."""


class _Waiting(msgspec.Struct, frozen=True):
    """What is to be sent of a run: rows as they stand here, and rows to delete there."""

    puts: tuple[bytes, ...]
    deletes: tuple[bytes, ...]
    indexed: bytes | None = None
    """The key of a fit of which earlier rows of the near index are to go."""


class Tier:
    """The near part of a store of two.

    Parameters
    ----------
    folder : str
        On a disk of this machine.
    remote : Backend
        Where everything goes in the end.
    budget : int
        Bytes that may be kept here.
    ttl : float or None
        Seconds for which what is not used is kept here.
    guard : callable
        Does something with the server, or returns what it was told to if that is out of order;
        `Store.attempt`.

    Notes
    -----
    Safe across threads, processes and forks, as the folder is.
    """

    def __init__(
        self,
        folder: str,
        remote: Backend,
        *,
        budget: int,
        ttl: float | None,
        guard: Callable[..., Any],
    ) -> None:
        self.near = LmdbBackend(folder)
        """The backend in front."""
        self._remote, self._guard = remote, weakref.WeakMethod(guard)
        self._budget, self._ttl = budget, ttl
        self._pulse: Pulse | None = None
        self._writes = 0
        self.is_open = False

    def open(self) -> None:
        """Open the folder.

        Raises
        ------
        StoreError
            If it cannot be used.
        """
        self.near.size()
        self.is_open = True

    def apply(
        self,
        run: str,
        batch: Batch,
        *,
        now: float,
        indexed: bytes | None = None,
        durability: Durability = Durability.PROCESS,
    ) -> int | None:
        """Write rows of a run here, and note that they are to be sent; no round trip.

        Parameters
        ----------
        run : str
            Its id.
        batch : Batch
            Rows, and conditions on what is here.
        now : float
            By the clock of the store.
        indexed : bytes, optional
            The key of a fit whose earlier rows in the near index are to go.
        durability : Durability
            Of the folder.

        Returns
        -------
        int or None
            The number of the batch; None if one of its conditions, on rows here, failed.
        """
        puts, deletes = batch.puts, batch.deletes
        row = b"q" + bytes.fromhex(run)
        while True:
            item = self.near.get(row)
            known = read_small(item, _Waiting) or _Waiting((), ())
            gone = [key for key in (*known.deletes, *deletes) if key not in puts]
            waiting = _Waiting(
                tuple(dict.fromkeys(k for k in (*known.puts, *puts) if k not in deletes)),
                tuple(dict.fromkeys(gone)),
                indexed or known.indexed,
            )
            unmoved = {row: None if item is None else item.sequence}
            whole = Batch({**puts, row: small(waiting)}, deletes, {**batch.conditions, **unmoved})
            sequence = self.near.apply(whole, durability)
            if sequence is not None:
                break
            moved = self.near.get(row)
            if (None if moved is None else moved.sequence) == unmoved[row]:
                return None
        self._keep_bounds(now)
        if self._pulse is None or not self._pulse.is_alive:  # or this is a forked child
            self._pulse = Pulse(weakref.WeakMethod(self.deliver), _EVERY).start()
        return sequence

    def _keep_bounds(self, now: float) -> None:
        """Make room if need be; not by what the server does not have yet."""
        due = self._writes % _SWEEP_EVERY == _SWEEP_EVERY - 1
        full = self._writes % _SIZED_EVERY == 0 and self.near.size() > self._budget
        self._writes += 1
        if due or full:
            with self.near.lock("sweep", timeout=0.0) as got:
                if got:  # else somebody is at it
                    waiting = {item.key[1:] for item in pages(self.near, b"q", head=1)}
                    sweep(self.near, now=now, ttl=self._ttl, budget=self._budget, runs=waiting)

    def keep(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep rows of the server here, to be answered without it."""
        with contextlib.suppress(Exception):  # they stand there all the same
            self.near.apply(Batch(rows, conditions=dict.fromkeys(rows)))

    def waiting(self) -> int:
        """Return how many runs have rows that were not sent yet."""
        return sum(1 for _ in pages(self.near, b"q", head=1))

    def deliver(self) -> int:
        """Send what waits, oldest first, for two seconds at most; returns how many runs still do.

        One round trip a run.
        """
        guard = self._guard()
        if guard is None or not guard(lambda: True, False, writes=True):
            return self.waiting()  # it is known to be out of order
        deadline = time.monotonic() + _DEADLINE
        items = sorted(pages(self.near, b"q", head=None), key=lambda item: item.sequence)
        if not items:
            return 0
        with self.near.lock("deliver", timeout=_DEADLINE) as got:
            for sent, item in enumerate(items):
                late = time.monotonic() > deadline
                if not got or late or not guard(lambda i=item: self._send(i), False, writes=True):
                    return len(items) - sent
        return 0

    def _send(self, item: Item) -> bool:
        """Send the rows of a run; what has been written meanwhile waits for the next time."""
        waiting = read_small(item, _Waiting)
        if waiting is not None:
            found = [self.near.get(key) for key in waiting.puts]
            puts = {one.key: one.value for one in found if one is not None and is_sound(one)}
            if waiting.indexed is not None:
                forget(self._remote, waiting.indexed)
            self._remote.apply(Batch(puts, [key for key in waiting.deletes if key not in puts]))
        self.near.apply(Batch(deletes=[item.key], conditions={item.key: item.sequence}))
        return True

    def forget(self, fit: Fingerprint) -> None:
        """Delete the entries of a fit here."""
        rows = [item.key for item in self.near.scan(entry_row(fit), head=1)]
        self.near.apply(Batch(deletes=[*rows, summary_row(fit.digest)]))

    def close(self) -> int:
        """Let go of the folder, after a last delivery; returns how many runs it has not sent."""
        pulse, self._pulse = self._pulse, None
        if pulse is None and not Path(self.near.address).exists():
            return 0  # it was never used
        if pulse is not None:
            pulse.stop()
        waiting = self.deliver()
        self.near.close()
        return waiting
