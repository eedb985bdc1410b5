"""A store that ends with the object: a dict and a sorted list of its keys."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from warmstart.backends import Batch, Durability, Item, check
from warmstart.locks import held_over_forks

__all__ = ["MemoryBackend"]

_OVERHEAD = 64
"""Bytes counted for each pair beside its key and value."""


class MemoryBackend:
    """The backend protocol in memory, for one process; safe across threads."""

    def __init__(self) -> None:
        self._pairs: dict[bytes, tuple[bytes, int]] = {}
        self._keys: list[bytes] = []
        self._sequence = 0
        self._size = 0
        self._gate = threading.RLock()
        held_over_forks(self, "_gate")
        self._locks: dict[str, threading.Lock] = {}

    @property
    def address(self) -> str:
        """Always ``":memory:"``, which reaches no other object's pairs."""
        return ":memory:"

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None."""
        found = self._pairs.get(key)
        return Item(key, found[0], found[1], len(found[0])) if found else None

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in order."""
        found: list[Item] = []
        with self._gate:
            start = bisect_left(self._keys, prefix)
            if after >= prefix and after:
                start = max(start, bisect_right(self._keys, after))
            for place in range(start, len(self._keys)):
                key = self._keys[place]
                if not key.startswith(prefix) or (limit is not None and len(found) >= limit):
                    break
                value, sequence = self._pairs[key]
                found.append(Item(key, value[:head], sequence, len(value)))
        return found

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch; both durabilities are the same here: none."""
        check(batch, durability)
        with self._gate:
            for key, sequence in batch.conditions.items():
                found = self._pairs.get(key)
                if (found[1] if found else None) != sequence:
                    return None
            self._sequence += 1
            for key in batch.deletes:
                self._remove(key)
            for key, value in batch.puts.items():
                self._remove(key)
                insort(self._keys, key)
                self._pairs[key] = (bytes(value), self._sequence)
                self._size += len(key) + len(value) + _OVERHEAD
            return self._sequence

    def _remove(self, key: bytes) -> None:
        found = self._pairs.pop(key, None)
        if found is not None:
            del self._keys[bisect_left(self._keys, key)]
            self._size -= len(key) + len(found[0]) + _OVERHEAD

    def version(self) -> object:
        """Return the number of the last batch."""
        return self._sequence

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a named lock across threads; yields whether it was got in time."""
        lock = self._locks.setdefault(name, threading.Lock())
        got = lock.acquire(blocking=timeout != 0, timeout=-1.0 if timeout <= 0 else timeout)
        try:
            yield got
        finally:
            if got:
                lock.release()

    def flush(self) -> None:
        """Do nothing: there is no disk."""

    def size(self) -> int:
        """Return the bytes of keys and values, and 64 a pair."""
        return self._size

    def now(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def verify(self) -> list[str]:
        """Return nothing: a dict is not damaged."""
        return []

    def close(self) -> None:
        """Do nothing: the pairs live as long as the object."""
