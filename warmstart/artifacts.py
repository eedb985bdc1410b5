"""Bytes that belong to runs, kept once however often they are logged.

A blob stands under the BLAKE3 hash of its bytes, beside the number of artifacts that are made of
it. Both change together with the artifact that is added or deleted, under the condition that
nobody else has changed the number meanwhile.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from typing import Annotated

import msgspec
from blake3 import blake3

from warmstart.backends import Backend, Batch
from warmstart.errors import ArgumentError, RecordError
from warmstart.record import seal, unseal
from warmstart.rows import pages, read_small, small

__all__ = ["LONGEST_NAME", "Artifact", "blobs", "delete", "exists", "listed", "load", "put", "row"]

LONGEST_NAME = 300
"""Bytes that the name of an artifact may have."""


class Artifact(msgspec.Struct, frozen=True):
    """Bytes under a name.

    Parameters
    ----------
    name : str
        Of a file, or like one.
    type : str
        What it is: ``"image/png"``, or whatever the caller calls it.
    size : int
        Bytes.
    hash : str
        BLAKE3 of the bytes, 64 hexadecimal digits.
    written : float
        UTC seconds since the epoch.
    """

    name: str
    type: str
    size: int
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    written: float


def row(run: str, name: str = "") -> bytes:
    """Return the row of an artifact, or the prefix of all of a run."""
    return b"c" + bytes.fromhex(run) + name.encode()


def _blob(digest: bytes) -> bytes:
    return b"a" + digest


def _count(digest: bytes) -> bytes:
    return b"b" + digest


def put(
    backend: Backend, run: str, name: str, data: bytes, *, kind: str | None, now: float
) -> Artifact:
    """Keep bytes under a name; what was there under it goes."""
    if not isinstance(name, str) or not 0 < len(name.encode()) <= LONGEST_NAME or "\0" in name:
        raise ArgumentError(
            f"an artifact's name is 1 to {LONGEST_NAME} bytes of text, not {name!r:.60}"
        )
    digest = blake3(data).digest()
    guessed = kind or mimetypes.guess_type(name)[0] or "application/octet-stream"
    made = Artifact(name, guessed, len(data), digest.hex(), now)
    place = row(run, name)
    while True:
        before = backend.get(place)
        old = read_small(before, Artifact)
        change = _Change(backend)
        change.puts[place] = small(made)
        change.conditions[place] = None if before is None else before.sequence
        if old is None or old.hash != made.hash:
            change.count(digest, 1)
            if backend.get(_blob(digest)) is None:
                change.puts[_blob(digest)] = seal(data)
            if old is not None:
                change.count(bytes.fromhex(old.hash), -1)
        if change.apply():
            return made


class _Change:
    """A batch that changes artifacts and the numbers of those that are made of a blob."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.puts: dict[bytes, bytes] = {}
        self.deletes: list[bytes] = []
        self.conditions: dict[bytes, int | None] = {}

    def count(self, digest: bytes, by: int) -> None:
        """Note that one artifact more, or less, is made of a blob."""
        item = self._backend.get(_count(digest))
        number = (read_small(item, int) or 0) + by
        self.conditions[_count(digest)] = None if item is None else item.sequence
        if number > 0:
            self.puts[_count(digest)] = small(number)
        else:
            self.deletes += [_count(digest), _blob(digest)]

    def apply(self) -> bool:
        """Write it, if nothing has moved."""
        batch = Batch(self.puts, self.deletes, self.conditions)
        return self._backend.apply(batch) is not None


def delete(backend: Backend, run: str, name: str) -> int:
    """Delete an artifact, and its bytes if nothing else is made of them; returns its size."""
    while True:
        item = backend.get(row(run, name))
        known = read_small(item, Artifact)
        if item is None:
            return 0
        change = _Change(backend)
        change.deletes.append(item.key)
        change.conditions[item.key] = item.sequence
        if known is not None:
            change.count(bytes.fromhex(known.hash), -1)
        if change.apply():
            return known.size if known is not None and change.deletes[1:] else 1


def listed(backend: Backend, run: str) -> list[Artifact]:
    """Return a run's artifacts, in the order of their names."""
    found = (read_small(item, Artifact) for item in pages(backend, row(run), head=None))
    return [one for one in found if one is not None]


def load(backend: Backend, digest: str) -> bytes:
    """Return the bytes with a hash, which is checked.

    Raises
    ------
    RecordError
        If they are missing or damaged.
    """
    item = backend.get(_blob(bytes.fromhex(digest)))
    if item is None:
        raise RecordError(f"the bytes of artifact {digest[:12]} are not in the store")
    data = unseal(item.value)
    if blake3(data).hexdigest() != digest:
        raise RecordError(f"the bytes of artifact {digest[:12]} are others than were written")
    return data


def exists(backend: Backend, digest: str) -> bool:
    """Whether there are bytes with a hash."""
    return backend.get(_blob(bytes.fromhex(digest))) is not None


def blobs(backend: Backend) -> Iterator[tuple[str, int, int]]:
    """Iterate over hash, bytes and number of artifacts of all blobs."""
    for item in pages(backend, b"a", head=1):
        number = read_small(backend.get(_count(item.key[1:])), int) or 0
        yield item.key[1:].hex(), item.size, number
