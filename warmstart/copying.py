"""Moving a store: all rows from one backend to another, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from warmstart import artifacts
from warmstart.backends import Backend, Batch, Item
from warmstart.bundle import OWN
from warmstart.errors import RecordError
from warmstart.rows import is_sound, pages, read_small
from warmstart.store import Store

__all__ = ["Copied", "copy"]

_BATCH, _BYTES = 200, 4 << 20
"""Rows and bytes that are written at once."""


class Copied(NamedTuple):
    """What came of it.

    Parameters
    ----------
    copied, present : int
        Rows that were written and read back, and rows that were there already; journals too.
    damaged : int
        Rows that were left out, since they are not what was written.
    """

    copied: int
    present: int
    damaged: int


def copy(source: Store, target: Store, progress: Callable[[int, int], None]) -> Copied:
    """Copy what a store remembers to another one, which may have fits of its own.

    Parameters
    ----------
    source, target : Store
        At any addresses.
    progress : callable
        Is told the rows done, and all.

    Returns
    -------
    Copied
        Rows that the target has already stay as they are, so that a copy that was ended goes on
        where it was.

    Raises
    ------
    StoreError
        If either cannot be used, or a row reads otherwise than it was written.
    """
    listed = [
        (item.sequence, item.key)
        for item in pages(source.backend, b"", head=1)
        if item.key[0] not in OWN
    ]
    listed.sort()  # who was written later ranks before
    done = Copied(0, 0, 0)
    waiting: list[Item] = []
    for number, (_, key) in enumerate(listed):
        item = source.backend.get(key)
        if item is None:
            continue
        if not is_sound(item):
            done = done._replace(damaged=done.damaged + 1)
        elif key[:1] == b"c":
            done = _copy_artifact(source, target.backend, item, done)
        else:
            waiting.append(item)
        if len(waiting) >= _BATCH or sum(item.size for item in waiting) > _BYTES:
            done = _write(target.backend, waiting, done)
            waiting = []
            progress(number + 1, len(listed))
    done = _write(target.backend, waiting, done)
    for fit, name, content in source.all_journals():
        if target.keep_journal(fit, name, content):
            done = done._replace(copied=done.copied + 1)
        else:
            done = done._replace(present=done.present + 1)
    progress(len(listed), len(listed))
    target.flush()
    return done


def _write(backend: Backend, items: list[Item], done: Copied) -> Copied:
    """Write the rows that are not there, all at once if none is."""
    if not items:
        return done
    missing = {item.key: item.value for item in items if backend.get(item.key) is None}
    if missing and backend.apply(Batch(missing, conditions=dict.fromkeys(missing))) is None:
        for key, value in missing.items():  # somebody else writes there, too
            backend.apply(Batch({key: value}, conditions={key: None}))
    for key, value in missing.items():
        found = backend.get(key)
        if found is None or (key[:1] == b"e" and found.value != value):
            raise RecordError(f"a row reads otherwise than it was written to {backend.address}")
    copied, present = len(missing), len(items) - len(missing)
    return done._replace(copied=done.copied + copied, present=done.present + present)


def _copy_artifact(source: Store, backend: Backend, item: Item, done: Copied) -> Copied:
    known = read_small(item, artifacts.Artifact)
    if backend.get(item.key) is not None or known is None:
        return done._replace(present=done.present + 1)
    try:
        data = artifacts.load(source.backend, known.hash)
    except RecordError:
        return done._replace(damaged=done.damaged + 1)
    run, name = item.key[1:17].hex(), item.key[17:].decode()
    artifacts.put(backend, run, name, data, kind=known.type, now=known.written)
    return done._replace(copied=done.copied + 1)
