"""Portable bundles: all that a store knows in one zip file.

===========================  ==================================================
``warmstart.json``            ``{"format": 1, "records": n}``
``entries/KEY/RUN.SLOT``      a record, as the store has it; KEY 64 hex, RUN 32 hex digits
``keys/KEY``                  what the key means
``journals/FIT/FILE``         a journal of evaluations
``blobs/HASH``                the bytes of an artifact
``rows/ROW``                  any other row: of runs, experiments, series, the near index; its key
===========================  ==================================================

Leases, sweeps and counts of a store are its own. Records carry their own digests and no path or
host, so a bundle means the same anywhere. They stand in the order in which they were written, and
get new sequence numbers in that order.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from warmstart import artifacts
from warmstart.backends import Backend, Batch, Item
from warmstart.errors import ArgumentError, BundleError, RecordError
from warmstart.fingerprint import Fingerprint
from warmstart.record import unseal
from warmstart.rows import pages, read, read_small

__all__ = ["OWN", "read_bundle", "write_bundle"]

_FORMAT = 1
_MANIFEST = "warmstart.json"
_UNREADABLE = (
    *(RecordError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError),
    RuntimeError,  # encrypted, or of a kind that zipfile does not know
)
_ENTRY = re.compile(r"entries/([0-9a-f]{64})/([0-9a-f]{32})\.([bfl])")
_KEY = re.compile(r"keys/([0-9a-f]{64})")
_JOURNAL = re.compile(r"journals/([0-9a-f]{64})/([0-9a-f]+-[0-9a-f]+\.journal)")
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_ROW = re.compile(r"rows/((?:[0-9a-f]{2}){2,480})")
OWN = frozenset(b"abjqsz")
"""Rows that a store does not give away as they are: blobs come with their artifacts."""
_OTHERS = frozenset(b"cdhilmnoprtuwxy")


def write_bundle(
    backend: Backend,
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None],
    *,
    journals: Iterable[tuple[Fingerprint, str, bytes]],
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
    listed = sorted(pages(backend, b"", head=1), key=lambda item: item.sequence)
    rows = [item.key for item in listed if item.key[0] in _OTHERS | frozenset(b"ek")]
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as bundle:
            count, blobs = 0, set()
            for done, row in enumerate(rows):
                progress(done, len(rows))
                item = backend.get(row)
                if item is None:
                    continue
                key = row[1:33].hex()
                if row[:1] == b"e":
                    name = f"entries/{key}/{row[33:49].hex()}.{row[49:].decode('latin-1')}"
                    bundle.writestr(name, item.value)
                    count += 1
                    continue
                bundle.writestr(
                    f"keys/{key}" if row[:1] == b"k" else f"rows/{row.hex()}", item.value
                )
                made = read_small(item, artifacts.Artifact) if row[:1] == b"c" else None
                if made is not None and made.hash not in blobs:
                    blobs.add(made.hash)
                    with contextlib.suppress(RecordError):  # damaged: the artifact is left out
                        bundle.writestr(f"blobs/{made.hash}", artifacts.load(backend, made.hash))
            for fit, name, content in journals:
                bundle.writestr(f"journals/{fit}/{name}", content)
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
    journal_budget: int,
    keep_journal: Callable[[Fingerprint, str, bytes], object],
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
        with _no_bad_seek(), zipfile.ZipFile(path) as bundle:
            members = _members(bundle, path)
            blobs = {
                m[1]: info for info in bundle.infolist() if (m := _BLOB.fullmatch(info.filename))
            }
            for info in bundle.infolist():
                if named := _JOURNAL.fullmatch(info.filename):
                    with contextlib.suppress(*_UNREADABLE):
                        content = _bounded(bundle, info, journal_budget)
                        keep_journal(Fingerprint(bytes.fromhex(named[1])), named[2], content)
            for done, (row, member) in enumerate(members):
                progress(done, len(members))
                value = _content(bundle, member, row, entry_budget)
                if value is not None and row[:1] == b"c":
                    _add_artifact(backend, bundle, blobs, Item(row, value, 0, len(value)))
                elif value is None or not _add(backend, row, value):
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
        elif (other := _ROW.fullmatch(member.filename)) and bytes.fromhex(other[1])[0] in _OTHERS:
            yield bytes.fromhex(other[1]), member


@contextlib.contextmanager
def _no_bad_seek() -> Iterator[None]:
    """Take an offset to before the beginning of the file as the nonsense that it is."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("an offset points out of the file") from error


def _bounded(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """Read a member without trusting the size that it declares."""
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{member.filename} is packed in a way that takes what memory it likes")
    if member.file_size > limit:
        raise ValueError(f"{member.filename} has more than {limit} bytes")
    with _no_bad_seek(), bundle.open(member) as file:
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


def _add_artifact(
    backend: Backend, bundle: zipfile.ZipFile, blobs: dict[str, zipfile.ZipInfo], item: Item
) -> None:
    """Keep an artifact whose bytes are in the bundle, unless there is one of its name."""
    made = read_small(item, artifacts.Artifact)
    run, name = item.key[1:17].hex(), item.key[17:].decode("utf-8", "replace")
    blob = None if made is None else blobs.get(made.hash)
    if (
        made is None
        or blob is None
        or not name
        or backend.get(artifacts.row(run, name)) is not None
    ):
        return
    try:
        data = _bounded(bundle, blob, made.size)
    except _UNREADABLE:
        return
    if blake3(data).hexdigest() == made.hash:
        with contextlib.suppress(ArgumentError):  # a name that is none
            artifacts.put(backend, run, name, data, kind=made.type, now=made.written)


def _add(backend: Backend, row: bytes, value: bytes) -> bool:
    """Write a row unless the store has one there: what it knows itself is never replaced."""
    return backend.apply(Batch({row: value}, conditions={row: None})) is not None
