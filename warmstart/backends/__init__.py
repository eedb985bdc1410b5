"""What a backend is: an ordered map of bytes with atomic, conditional batches.

The store's logic is written once above this protocol; whatever passes
``tests/backend_contract.py`` is a backend.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from warmstart.errors import ArgumentError

__all__ = ["FULL", "MAX_KEY", "Backend", "Batch", "Durability", "Item", "check"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system calls a disk that is full, or may not be used further."""

MAX_KEY = 480
"""Longest key in bytes: LMDB 0.9 allows 511, the rest is left to backends for prefixes."""


class Durability(enum.Enum):
    """What a batch survives once ``apply`` has returned.

    Attributes
    ----------
    PROCESS
        SIGKILL of this process at once; a power cut may undo up to the last two seconds.
    POWER
        A power cut as well, and everything that was applied before it with it.
    """

    PROCESS = "process"
    POWER = "power"


class Item(NamedTuple):
    """One pair of the map, as it was when it was read."""

    key: bytes
    value: bytes
    """The value, or its first ``head`` bytes when the scan asked for no more."""
    sequence: int
    """Store-wide number of the batch that wrote it; a later batch has a higher one."""
    size: int
    """Bytes in the whole value."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Puts, deletes and conditions that happen together or not at all.

    Parameters
    ----------
    puts : mapping of bytes to bytes
        Keys of 1 to `MAX_KEY` bytes that do not begin with a NUL, values of at least one byte.
    deletes : sequence of bytes
        Keys to remove; one that is not there is not an error. A key may not be in `puts` too.
    conditions : mapping of bytes to (int or None)
        The sequence number that each key must still have (None: must not exist) for the batch
        to apply. This is optimistic concurrency: read, decide, write if nothing has moved.
    """

    puts: Mapping[bytes, bytes] = field(default_factory=dict)
    deletes: Sequence[bytes] = ()
    conditions: Mapping[bytes, int | None] = field(default_factory=dict)


@runtime_checkable
class Backend(Protocol):
    """An ordered map of bytes, shared by threads and processes.

    Every method may raise `StoreError` (place unusable, damaged beyond repair) and, where it
    writes, `StoreFullError`. Nothing is created before the first call that needs it. No
    transaction outlives a call, and no returned bytes alias the engine's memory.
    """

    @property
    def address(self) -> str:
        """What ``Store(address)`` needs to reach the same map, and what people are shown."""
        ...

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None."""
        ...

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in the order of their bytes.

        Parameters
        ----------
        prefix : bytes
            Empty for the whole map.
        after : bytes
            Only keys greater than this one: the last key of the page before.
        limit : int, optional
            At most so many pairs.
        head : int, optional
            Only so many bytes of each value (``Item.size`` tells the whole size), so that a
            sweep over large records reads little.
        """
        ...

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch and return its sequence number, or None if a condition failed."""
        ...

    def version(self) -> object:
        """Return something that is equal only as long as nobody has applied a batch. O(1).

        It may change without one.
        """
        ...

    def lock(self, name: str, timeout: float = -1.0) -> AbstractContextManager[bool]:
        """Hold a named lock across threads and processes; yields whether it was got in time.

        Parameters
        ----------
        name : str
            Letters, digits and dashes.
        timeout : float
            Seconds to wait; 0 tries once, negative waits without end. The lock of a process
            that died is free.
        """
        ...

    def flush(self) -> None:
        """Return when everything applied before this call would survive a power cut."""
        ...

    def size(self) -> int:
        """Return the bytes that live pairs occupy, the engine's overhead included. O(1)."""
        ...

    def verify(self) -> list[str]:
        """Return what is structurally wrong with the engine's own files; empty when sound."""
        ...

    def now(self) -> float:
        """Return UTC seconds since the epoch, by one clock for all who use the map."""
        ...

    def close(self) -> None:
        """Flush, and let go of files and threads. A closed backend opens again when used."""
        ...


def check(batch: Batch, durability: Durability) -> None:
    """Refuse a batch that no backend can apply; every backend calls it first.

    Raises
    ------
    ArgumentError
        With what is wrong.
    """
    if not isinstance(durability, Durability):
        raise ArgumentError(f"durability is a Durability, not {durability!r:.60}")
    for key in (*batch.puts, *batch.deletes, *batch.conditions):
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY or key[0] == 0:
            raise ArgumentError(
                f"a key is 1 to {MAX_KEY} bytes that do not begin with NUL, not {key!r:.60}"
            )
    for value in batch.puts.values():
        if not isinstance(value, bytes) or not value:
            raise ArgumentError(f"a value is at least one byte, not {value!r:.60}")
    if batch.deletes and not batch.puts.keys().isdisjoint(batch.deletes):
        raise ArgumentError("a batch puts and deletes the same key")
