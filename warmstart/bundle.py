"""Portable bundles: a store's records in one zip file.

===========================  ==================================================
``warmstart.json``            ``{"format": 1, "records": n}``
``entries/KEY/RUN.SLOT``      a record, as the store has it; KEY 64 hex, RUN 32 hex digits
``keys/KEY``                  what the key means
===========================  ==================================================

Records carry their own digests and no path or host, so a bundle means the same anywhere. They
stand in the order in which they were written, and get new sequence numbers in that order.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from warmstart.backends import Backend, Batch, Item
from warmstart.errors import ArgumentError, BundleError, RecordError
from warmstart.record import unseal
from warmstart.rows import pages, read

__all__ = ["read_bundle", "write_bundle"]

_FORMAT = 1
_MANIFEST = "warmstart.json"
_UNREADABLE = (
    *(RecordError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError),
    RuntimeError,  # encrypted, or of a kind that zipfile does not know
)
_ENTRY = re.compile(r"entries/([0-9a-f]{64})/([0-9a-f]{32})\.([bfl])")
_KEY = re.compile(r"keys/([0-9a-f]{64})")


def write_bundle(
    backend: Backend, path: str | os.PathLike[str], progress: Callable[[int, int], None]
) -> int:
    """Write all records to a new file, which appears under its name when it is whole.

    Returns
    -------
    int
        Records written.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise ArgumentError(f"a bundle is written to a file in an existing folder, not {target}")
    entries = sorted(pages(backend, b"e", head=1), key=lambda item: item.sequence)
    rows = [item.key for item in (*pages(backend, b"k", head=1), *entries)]
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as bundle:
            count = 0
            for done, row in enumerate(rows):
                progress(done, len(rows))
                item = backend.get(row)
                if item is None:
                    continue
                key = row[1:33].hex()
                if row[:1] == b"k":
                    bundle.writestr(f"keys/{key}", item.value)
                else:
                    name = f"entries/{key}/{row[33:49].hex()}.{row[49:].decode('latin-1')}"
                    bundle.writestr(name, item.value)
                    count += 1
            bundle.writestr(_MANIFEST, json.dumps({"format": _FORMAT, "records": count}))
        os.replace(scratch, target)  # noqa: PTH105 (atomic, and over an existing file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return count


def read_bundle(
    backend: Backend,
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None],
    *,
    entry_budget: int,
) -> tuple[int, int]:
    """Add the records of a bundle to a store.

    Returns
    -------
    tuple of (int, int)
        Records added, and records that were damaged, too large or already there.

    Raises
    ------
    BundleError
        If the file is not a bundle; nothing has been added.
    """
    added = skipped = 0
    try:
        with zipfile.ZipFile(path) as bundle:
            members = _members(bundle, path)
            for done, (row, member) in enumerate(members):
                progress(done, len(members))
                value = _content(bundle, member, row, entry_budget)
                if value is None or not _add(backend, row, value):
                    skipped += row[:1] == b"e"
                else:
                    added += row[:1] == b"e"
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise BundleError(f"{os.fspath(path)} is not a bundle: {error}") from error
    return added, skipped


def _members(
    bundle: zipfile.ZipFile, path: str | os.PathLike[str]
) -> list[tuple[bytes, zipfile.ZipInfo]]:
    try:
        manifest = json.loads(_bounded(bundle, bundle.getinfo(_MANIFEST), 1000))
        version = manifest["format"]
    except (KeyError, TypeError, ValueError, zlib.error, RecursionError) as error:
        raise BundleError(
            f"{os.fspath(path)} is a zip file, but not a bundle: it has no valid {_MANIFEST}"
        ) from error
    if version != _FORMAT:
        raise BundleError(
            f"{os.fspath(path)} is a bundle of format {version!r}, this version reads {_FORMAT}: "
            "upgrade warmstart"
        )
    return list(_rows(bundle.infolist()))


def _rows(members: Iterable[zipfile.ZipInfo]) -> Iterator[tuple[bytes, zipfile.ZipInfo]]:
    for member in members:
        if entry := _ENTRY.fullmatch(member.filename):
            key, run, slot = entry.groups()
            yield b"e" + bytes.fromhex(key) + bytes.fromhex(run) + slot.encode(), member
        elif name := _KEY.fullmatch(member.filename):
            yield b"k" + bytes.fromhex(name[1]), member


def _bounded(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """Read a member without trusting the size that it declares."""
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{member.filename} is packed in a way that takes what memory it likes")
    if member.file_size > limit:
        raise ValueError(f"{member.filename} has more than {limit} bytes")
    with bundle.open(member) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{member.filename} has more than {limit} bytes")
    return content


def _content(
    bundle: zipfile.ZipFile, member: zipfile.ZipInfo, row: bytes, limit: int
) -> bytes | None:
    """Return a member that is what it says, or None."""
    try:
        value = _bounded(bundle, member, limit)
        if row[:1] == b"e":
            read(Item(row, value, 0, len(value)))
        else:
            unseal(value)
    except _UNREADABLE:
        return None
    return value


def _add(backend: Backend, row: bytes, value: bytes) -> bool:
    """Write a row unless the store has one there: what it knows itself is never replaced."""
    return backend.apply(Batch({row: value}, conditions={row: None})) is not None
