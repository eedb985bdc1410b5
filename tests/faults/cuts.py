"""What a power cut may leave of a folder, computed from a record of a run's system calls.

`record` runs a program under ``strace`` and reads what it did to the files of one folder;
`images` goes through that and yields, at chosen instants, folders as a cut could have left them.

What is certain to be on the disk is what POSIX promises and nothing more: the bytes of a file
after ``fsync`` or ``fdatasync`` of it, or written through a descriptor with ``O_DSYNC``; a name in
a folder after ``fsync`` of the folder. Of all else any part may be there: each write and each
change of size wholly, not at all, or some of its sectors of 512 bytes; each new, changed or
deleted name or not; and where a file has grown over bytes that were not written, zeros or
whatever was on the disk. Shared writable maps leave no trace among system calls: one on any file
but LMDB's lock file ends the recording with an error.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Act", "Image", "can_record", "images", "record"]

_SECTOR = 512
_CALLS = """openat open creat close write pwrite64 pwritev pwritev2 writev fsync fdatasync
sync_file_range msync sync syncfs ftruncate truncate fallocate rename renameat renameat2 unlink
unlinkat link linkat mkdir mkdirat rmdir symlink symlinkat mmap copy_file_range sendfile
lseek""".split()  # noqa: SIM905 (a list to read)
_LINE = re.compile(r"(?P<thread>\d+) +(?P<time>\d+\.\d+) (?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|0x[0-9a-f]+|\?).*")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"(?:(\d+)|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_MARK = "acts"


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that happened to the folder, or one line that the program wrote to say where it is."""

    time: float
    kind: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""
    number: int = -1
    """Of a sync: how many acts had ended when it began."""


def can_record() -> str:
    """Return why nothing can be recorded here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], check=False)
    return "" if tried.returncode == 0 else "strace is not permitted here"


def record(code: str, folder: Path, *arguments: object) -> list[Act]:
    """Run some Python under ``strace`` and return what it did to `folder`, in order.

    The program says where it is by writing lines to the file ``acts`` in the folder.
    """
    trace = folder.with_suffix(".trace")
    path = os.pathsep.join(p for p in sys.path if p)
    subprocess.run(
        ["strace", "-f", "-y", "-ttt", "-xx", "-s", "100000000", "-o", trace]
        + ["-e", f"trace={','.join(_CALLS)}", sys.executable, "-c", code, folder]
        + [str(argument) for argument in arguments],
        check=True,
        env=os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    try:
        with trace.open(encoding="ascii") as lines:
            return _Reader(folder).read(lines)
    finally:
        trace.unlink()


def _text(quoted: str) -> bytes:
    return bytes.fromhex(quoted.replace("\\x", ""))


class _Reader:
    """Reads the lines of ``strace``."""

    def __init__(self, folder: Path) -> None:
        self.root = os.path.realpath(folder)
        self.acts: list[Act] = []
        self.begun: dict[str, tuple[str, int]] = {}
        self.places: dict[str, int] = {}
        """Where the next plain write of a descriptor goes; -1 at the end of the file."""
        self.synced: set[str] = set()

    def read(self, lines: Any) -> list[Act]:
        for line in lines:
            match = _LINE.match(line)
            assert match is not None, line[:200]
            thread, time, rest = match["thread"], float(match["time"]), match["rest"]
            number = len(self.acts)
            if rest.endswith("<unfinished ...>"):
                self.begun[thread] = rest.removesuffix("<unfinished ...>").rstrip(), number
                continue
            if rest.startswith("<..."):
                before, number = self.begun.pop(thread)
                rest = before + _RESUMED.sub("", rest)
            call = _CALL.match(rest)
            if call is not None and not call["result"].startswith(("-", "?")):
                self.take(time, call["name"], call["arguments"], int(call["result"], 0), number)
        return self.acts

    def inside(self, path: bytes | str) -> str | None:
        name = os.fsdecode(path)
        if name == self.root:
            return "."
        return name[len(self.root) + 1 :] if name.startswith(self.root + "/") else None

    def add(self, time: float, kind: str, path: str, **more: Any) -> None:
        self.acts.append(Act(time, kind, path, **more))

    def take(self, time: float, name: str, arguments: str, result: int, number: int) -> None:
        files = _FILE.findall(arguments)
        texts = [_text(found) for found in _TEXT.findall(arguments)]
        assert name not in {"sync_file_range", "msync", "sync", "syncfs", "copy_file_range"}
        if name in {"openat", "open", "creat"}:
            self.open(time, texts[0], arguments, result)
            return
        if name in {"mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"}:
            path = self.inside(texts[0])
            assert texts[0].startswith(b"/")
            if path is not None:
                self.add(time, "mkdir" if name.startswith("mkdir") else "unlink", path)
            return
        if name.startswith(("rename", "link")):
            path, other = self.inside(texts[0]), self.inside(texts[1])
            if path is not None:
                assert other is not None
                self.add(time, name[:6].rstrip("at"), path, other=other)
            return
        assert not name.startswith("symlink") or self.inside(texts[1]) is None
        if not files:
            return
        descriptor, quoted, deleted = files[0]
        path = self.inside(_text(quoted))
        if name == "close":
            self.synced.discard(descriptor)
            return
        if path is None or deleted:
            return
        if name in {"write", "pwrite64", "pwritev", "pwritev2", "writev"}:
            self.write(time, name, descriptor, path, arguments, b"".join(texts)[:result], number)
        elif name in {"fsync", "fdatasync"}:
            self.add(time, "sync", path, number=number)
        elif name in {"ftruncate", "truncate"}:
            self.add(time, "size", path, offset=int(arguments.rsplit(",", 1)[1]))
        elif name == "fallocate":
            _, mode, offset, length = arguments.rsplit(",", 3)
            assert mode.strip() == "0", arguments
            self.add(time, "grow", path, offset=int(offset) + int(length))
        elif name == "lseek":
            self.places[descriptor] = result
        elif name == "mmap":
            shared = "MAP_SHARED" in arguments and "PROT_WRITE" in arguments
            assert not shared or path.endswith("/lock.mdb"), f"{path} is mapped to be written"
        else:
            raise AssertionError(f"{name} of {path} is not understood")

    def open(self, time: float, path: bytes, arguments: str, descriptor: int) -> None:
        self.synced.discard(str(descriptor))
        if (name := self.inside(path)) is None:
            return
        if "O_CREAT" in arguments:
            self.add(time, "create", name)
        if "O_TRUNC" in arguments:
            self.add(time, "size", name, offset=0)
        self.places[str(descriptor)] = -1 if "O_APPEND" in arguments else 0
        if "O_DSYNC" in arguments or "O_SYNC" in arguments:
            self.synced.add(str(descriptor))

    def write(
        self,
        time: float,
        name: str,
        descriptor: str,
        path: str,
        arguments: str,
        data: bytes,
        number: int,
    ) -> None:
        if path == _MARK:
            for line in data.decode().splitlines():
                self.add(time, "says", line)
            return
        if name in {"write", "writev"}:
            offset = self.places.get(descriptor, 0)
            if offset >= 0:
                self.places[descriptor] = offset + len(data)
        else:
            offset = int(re.sub(r", RWF_\w+$", "", arguments).rsplit(",", 1)[1])
        kind = "through" if descriptor in self.synced else "write"
        self.add(time, kind, path, offset=offset, data=data, number=number)


# The folder, as it is and as it certainly is on the disk


@dataclass(eq=False)
class _File:
    size: int = 0
    certain: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, int, bytes | None, bool]] = field(default_factory=list)
    """Number of the act, offset, data, whether it is certain; no data where the size changed."""


@dataclass(eq=False)
class _Folder:
    now: dict[str, Any] = field(default_factory=dict)
    certain: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[int, str, Any]] = field(default_factory=list)
    """Number of the act, name, what it names; None where it was deleted."""


@dataclass(frozen=True)
class Image:
    """What a cut left.

    Parameters
    ----------
    path : path
        The folder.
    time : float
        When the power went.
    said : list of (float, str)
        The lines that the program had written by then, and when.
    """

    path: Path
    time: float
    said: list[tuple[float, str]]


class _Disk:
    def __init__(self) -> None:
        self.root = _Folder()

    def folder_of(self, path: str) -> tuple[_Folder, str]:
        found: Any = self.root
        *folders, name = path.split("/")
        for part in folders:
            found = found.now[part]
        return found, name

    def find(self, path: str) -> Any:
        folder, name = self.folder_of(path)
        return self.root if path == "." else folder.now.get(name)

    def name(self, number: int, path: str, what: Any) -> None:
        folder, name = self.folder_of(path)
        folder.pending.append((number, name, what))
        if what is None:
            folder.now.pop(name, None)
        else:
            folder.now[name] = what

    def do(self, number: int, act: Act) -> None:
        kind, path = act.kind, act.path
        found = self.find(path) if kind != "says" else None
        if kind == "create" and found is None:
            self.name(number, path, _File())
        elif kind == "mkdir":
            self.name(number, path, _Folder())
        elif kind == "unlink":
            self.name(number, path, None)
        elif kind in {"rename", "link"}:
            self.name(number, act.other, found)
            if kind == "rename":
                self.name(number, path, None)
        elif kind in {"write", "through"}:
            offset = found.size if act.offset < 0 else act.offset
            found.size = max(found.size, offset + len(act.data))
            found.pending.append((number, offset, act.data, kind == "through"))
        elif kind == "size" or (kind == "grow" and act.offset > found.size):
            found.size = act.offset
            found.pending.append((number, act.offset, None, False))
        elif kind == "sync" and isinstance(found, _File):
            for n, offset, data, _ in found.pending:
                if n < act.number:
                    _settle(found.certain, offset, data)
            found.pending = [change for change in found.pending if change[0] >= act.number]
        elif kind == "sync":
            for n, name, what in found.pending:
                if n < act.number:
                    _rename(found.certain, name, what)
            found.pending = [change for change in found.pending if change[0] >= act.number]


def _settle(content: bytearray, offset: int, data: bytes | None) -> None:
    end = offset if data is None else offset + len(data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:end] = data


def _rename(names: dict[str, Any], name: str, what: Any) -> None:
    if what is None:
        names.pop(name, None)
    else:
        names[name] = what


class _Cut:
    """One outcome of a cut: which of what was pending has reached the disk."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        # Most of it, little of it, all or nothing: each brings out other faults.
        self.part = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        self.torn = rng.choice((0.0, 0.3, 1.0))
        self.in_order = rng.random() < 0.5
        self.junk = rng.random() < 0.1

    def write(self, folder: _Folder, path: Path) -> None:
        path.mkdir(mode=0o700)
        names = dict(folder.certain)
        pending = folder.pending
        if self.in_order:  # as a file system with a journal does it
            pending = pending[: self.rng.randint(0, len(pending))]
        for _, name, what in pending:
            if self.in_order or self.rng.random() < self.part:
                _rename(names, name, what)
        for name, what in names.items():
            if isinstance(what, _Folder):
                self.write(what, path / name)
            elif name == "lock.mdb":  # a map: nobody knows what is in it
                (path / name).write_bytes(self.rng.randbytes(self.rng.choice((0, 8192, 65664))))
            else:
                (path / name).write_bytes(self.content(what))
            if not isinstance(what, _Folder):
                (path / name).chmod(0o600)

    def content(self, file: _File) -> bytes:
        made = bytearray(file.certain)
        covered = len(made)
        part = self.rng.choice((self.part, self.part, self.rng.random()))
        for _, offset, data, certain in file.pending:
            if not certain and self.rng.random() >= part:
                continue
            if self.junk and data is not None and offset + len(data) > len(made):
                made.extend(self.rng.randbytes(offset + len(data) - len(made)))
            if data is None or certain or self.rng.random() >= self.torn:
                _settle(made, offset, data)
                continue
            start = offset
            while start < offset + len(data):
                stop = min(start - start % _SECTOR + _SECTOR, offset + len(data))
                if self.rng.random() < 0.5:
                    _settle(made, start, data[start - offset : stop - offset])
                start = stop
        if len(made) > covered and self.rng.random() < 0.1:  # the size of it came first, or alone
            made.extend(bytes(max(file.size - len(made), 0)))
        return bytes(made)


def images(acts: list[Act], number: int, seed: int, target: Path) -> Iterator[Image]:
    """Yield folders as `number` cuts at random instants could have left them, in order of time.

    Whoever takes one removes it.
    """
    rng = random.Random(seed)
    cuts = sorted(rng.randint(1, len(acts)) for _ in range(number))
    disk = _Disk()
    said: list[tuple[float, str]] = []
    done = 0
    for count, cut in enumerate(cuts):
        while done < cut:
            disk.do(done, acts[done])
            if acts[done].kind == "says":
                said.append((acts[done].time, acts[done].path))
            done += 1
        path = target / f"{count:05d}"
        _Cut(rng).write(disk.root, path)
        yield Image(path, acts[done - 1].time, list(said))
