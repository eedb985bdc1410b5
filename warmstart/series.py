"""Series of numbers of a run: written in pieces off the hot path, read back in the order of steps.

A piece is a row with a few thousand points. NaN and infinities are numbers like others, and
a step that comes twice is kept twice.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.backends import Backend, Item
from warmstart.errors import ArgumentError, CodecError, RecordError
from warmstart.packing import dumps, loads
from warmstart.record import seal, unseal
from warmstart.rows import pages

__all__ = ["Buffer", "Series", "check_name", "names", "piece", "prefix", "read_series"]

_MOST = 4096
"""Points that wait in memory at most."""
_SECONDS = 1.0
"""For which they wait, at most, while others come."""
LONGEST_NAME = 200


class Series(NamedTuple):
    """The points of a series, in the order of their steps; equal steps as they were logged.

    Parameters
    ----------
    steps : (n,) array of int64
        Iterations, evaluations, whatever counts.
    values : (n,) array of float64
        What was measured.
    times : (n,) array of float64
        When, in UTC seconds since the epoch.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    times: NDArray[np.float64]

    @property
    def latest(self) -> float | None:
        """The value at the highest step, the last logged of several; None if there is none."""
        return float(self.values[-1]) if len(self.values) else None


def check_name(name: str) -> None:
    """Refuse what is no name of a series."""
    if type(name) is not str or not name or "\0" in name or len(name) > LONGEST_NAME:
        raise ArgumentError(
            f"a series has a name of 1 to {LONGEST_NAME} characters, not {name!r:.60}"
        )


def prefix(run: str, name: str = "") -> bytes:
    """Return the prefix of all pieces of a run, or of one series."""
    whole = b"m" + bytes.fromhex(run)
    return whole + name.encode() + b"\0" if name else whole


def piece(
    run: str,
    name: str,
    steps: NDArray[Any],
    values: NDArray[np.float64],
    times: NDArray[np.float64],
) -> tuple[bytes, bytes]:
    """Return the row of a piece, key and value."""
    stamp = time.time_ns().to_bytes(8, "big") + secrets.token_bytes(2)
    body = (
        np.asarray(steps, np.int64),
        np.asarray(values, np.float64),
        np.asarray(times, np.float64),
    )
    return prefix(run, name) + stamp, seal(dumps(body))


def names(backend: Backend, run: str) -> list[str]:
    """Return the names of a run's series."""
    start = len(prefix(run))
    found = {item.key[start:-11].decode() for item in pages(backend, prefix(run), head=1)}
    return sorted(found)


def read_series(backend: Backend, run: str, name: str) -> Series:
    """Return a series; an empty one if there is none. Damaged pieces are left out."""
    parts = [part for item in pages(backend, prefix(run, name), head=None) if (part := _read(item))]
    if not parts:
        return Series(np.empty(0, np.int64), np.empty(0), np.empty(0))
    steps, values, times = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], values[order], times[order])


def _read(item: Item) -> Series | None:
    try:
        steps, values, times = loads(unseal(item.value))
        made = Series(
            np.asarray(steps, np.int64),
            np.asarray(values, np.float64),
            np.asarray(times, np.float64),
        )
    except (RecordError, CodecError, TypeError, ValueError):
        return None
    return made if made.steps.ndim == 1 and len({part.shape for part in made}) == 1 else None


class Buffer:
    """Points of a run that are not written yet. Safe in threads.

    Parameters
    ----------
    run : str
        Whose.
    write : callable
        Writes rows.
    """

    def __init__(self, run: str, write: Callable[[Mapping[bytes, bytes]], object]) -> None:
        self._run, self._write = run, write
        self._lock = threading.Lock()
        self._points: dict[str, list[tuple[int, float, float]]] = {}
        self._count = 0
        self._due = 0.0

    def add(self, name: str, value: float, step: int, at: float) -> None:
        """Note a point; every so often all are written."""
        with self._lock:
            self._points.setdefault(name, []).append((step, value, at))
            self._count += 1
            if self._count == 1:
                self._due = at + _SECONDS
            _unwritten.add(self)
            full = self._count >= _MOST or not self._due - _SECONDS <= at < self._due
        if full:
            self.flush()

    def drop(self) -> None:
        """Forget what waits."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._points, self._count = {}, 0
        _unwritten.discard(self)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            points, self._points, self._count = self._points, {}, 0
            _unwritten.discard(self)
        rows = {}
        for name, listed in points.items():
            columns = zip(*listed, strict=True)
            steps, values, times = (list(column) for column in columns)
            key, value = piece(
                self._run, name, np.array(steps, np.int64), np.array(values), np.array(times)
            )
            rows[key] = value
        if rows:
            self._write(rows)


_unwritten: set[Buffer] = set()
"""Those with points that are not written yet, however long their runs are kept."""


@atexit.register
def _write_all() -> None:
    for buffer in list(_unwritten):
        with contextlib.suppress(Exception):  # at exit there is nobody left to tell
            buffer.flush()


def _leave_to_parent() -> None:
    """Drop, in a forked child, the points that its parent is going to write."""
    for buffer in list(_unwritten):
        buffer.drop()


os.register_at_fork(after_in_child=_leave_to_parent)
