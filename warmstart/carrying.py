"""Journals that travel: what a fit has recorded, sent to a store that several machines share.

A journal is a file of the machine that writes it. Every so often its new bytes go to the store, as
rows named by the fit, the file and the place of the bytes in it. Whoever begins the fit elsewhere
writes them to a file of its own, and goes on as if it had been there all the time; a torn end is
cut off as that of any journal is.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterable, Iterator

from warmstart.backends import Backend, Batch, Item
from warmstart.errors import RecordError
from warmstart.fingerprint import Fingerprint
from warmstart.journal import NAME, Journal, Shelf
from warmstart.record import seal, unseal
from warmstart.rows import pages

__all__ = ["Carrier", "carried_row", "gather", "keep", "written_at"]

_MOST = 1 << 20
"""Bytes in a row."""
_time = struct.Struct(">d")


def carried_row(fit: Fingerprint, name: str = "", offset: int | None = None) -> bytes:
    """Return the row of a piece of a journal, or the prefix of all of a file's or a fit's."""
    whole = b"j" + fit.digest
    if name:
        whole += name.encode() + b"\0"
    return whole if offset is None else whole + offset.to_bytes(8, "big")


def written_at(head: bytes) -> float:
    """Return when a piece was written, from the first eight bytes of its row."""
    return float(_time.unpack(head[:8])[0]) if len(head) >= 8 else 0.0


def gather(backend: Backend, shelf: Shelf) -> Iterator[tuple[Fingerprint, str, bytes]]:
    """Iterate over fit, name and bytes of all journals, in files and in rows."""
    for path in shelf.paths():
        with contextlib.suppress(OSError, ValueError):
            yield Fingerprint(bytes.fromhex(path.parent.name)), path.name, shelf.content(path)
    for key, pieces in itertools.groupby(
        pages(backend, b"j", head=None), key=lambda item: item.key[:-9]
    ):
        if len(key) > 33:
            yield Fingerprint(key[1:33]), key[33:].decode("ascii", "replace"), _joined(pieces)


def keep(backend: Backend, fit: Fingerprint, name: str, content: bytes, now: float) -> bool:
    """Put a journal into rows, unless the first of them is there; whether it was put."""
    if not NAME.fullmatch(name):
        return False
    for offset in range(0, len(content), _MOST):
        row = carried_row(fit, name, offset)
        piece = seal(_time.pack(now) + content[offset : offset + _MOST])
        if backend.apply(Batch({row: piece}, conditions={row: None})) is None:
            return False
    return True


def _joined(pieces: Iterable[Item]) -> bytes:
    """Return the bytes of a journal as far as they are there without a gap."""
    whole = bytearray()
    for item in pieces:
        with contextlib.suppress(RecordError):
            if int.from_bytes(item.key[-8:], "big") == len(whole):
                whole += unseal(item.value)[8:]
    return bytes(whole)


class Carrier:
    """Carries the journals of one fit to and from a store.

    Parameters
    ----------
    backend : Backend
        The store's.
    fit : Fingerprint
        The key at `Level.JOURNAL`.
    """

    def __init__(self, backend: Backend, fit: Fingerprint) -> None:
        self._backend, self._fit = backend, fit
        self._sent: dict[str, int] = {}
        self._stopped = False

    def fetch(self, shelf: Shelf) -> int:
        """Write the journals that are longer in the store than here; returns how many."""
        rows = pages(self._backend, carried_row(self._fit), head=None)
        written = 0
        for key, pieces in itertools.groupby(rows, key=lambda item: item.key[:-9]):
            name, whole = key[33:].decode("ascii", "replace"), _joined(pieces)
            self._sent[name] = len(whole)
            written += shelf.replace(self._fit, name, whole)
        return written

    def send(self, journal: Journal, now: float) -> None:
        """Send what a journal has that was not sent yet."""
        name = journal.path.name
        while not self._stopped:
            offset = self._sent.get(name, 0)
            piece = journal.piece(offset, _MOST)
            if not piece:
                return
            row = carried_row(self._fit, name, offset)
            batch = Batch({row: seal(_time.pack(now) + piece)}, conditions={row: None})
            if self._backend.apply(batch) is None:
                self._stopped = True  # another machine has gone on with it
                return
            self._sent[name] = offset + len(piece)

    def forget(self) -> None:
        """Delete what was carried: the fit is over."""
        rows = [item.key for item in pages(self._backend, carried_row(self._fit), head=1)]
        if rows:
            self._backend.apply(Batch(deletes=rows))
