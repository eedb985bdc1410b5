"""Journals that travel: what a fit has recorded, sent to a store that several machines share.

A journal is a file of the machine that writes it. Every so often its new bytes go to the store, as
rows named by the fit, the file and the place of the bytes in it. Whoever begins the fit elsewhere
writes them to a file of its own, and goes on as if it had been there all the time; a torn end is
cut off as that of any journal is.
"""

from __future__ import annotations

import os
import struct

from warmstart.backends import Backend, Batch
from warmstart.errors import RecordError
from warmstart.fingerprint import Fingerprint
from warmstart.journal import Journal, Shelf
from warmstart.record import seal, unseal
from warmstart.rows import pages

__all__ = ["Carrier", "carried_row", "written_at"]

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
        files: dict[str, bytearray] = {}
        start = len(carried_row(self._fit))
        for item in pages(self._backend, carried_row(self._fit), head=None):
            name = item.key[start:-9].decode("ascii", "replace")
            whole = files.setdefault(name, bytearray())
            try:
                piece = unseal(item.value)[8:]
            except RecordError:
                continue
            if int.from_bytes(item.key[-8:], "big") == len(whole):
                whole += piece
        written = 0
        for name, whole in files.items():
            self._sent[name] = len(whole)
            written += shelf.replace(self._fit, name, bytes(whole))
        return written

    def send(self, journal: Journal, now: float) -> None:
        """Send what a journal has that was not sent yet."""
        name = journal.path.name
        while not self._stopped:
            offset = self._sent.get(name, 0)
            with journal.path.open("rb") as file:
                piece = os.pread(file.fileno(), _MOST, offset)
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
