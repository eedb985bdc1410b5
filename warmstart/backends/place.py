"""The folder of an LMDB store: whose it is, who holds it open, whether it was closed well.

::

    FORMAT                  "warmstart store 1"
    hot/, durable/          the two environments
    locks/                  file locks; locks/holders/ has one file a process that writes
    closed                  sizes of the data files, left by the last process that closed
    boot                    since when the machine was up when it was last opened to be written
    quarantine/             damaged environments, moved aside with the time of finding
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from warmstart.backends import FULL
from warmstart.caller import complain
from warmstart.errors import StoreError, StoreFullError
from warmstart.host import boot as _boot
from warmstart.host import the_psutil

__all__ = ["HALVES", "Attendance", "Place", "make_folder", "read_file", "sync_folder"]

HALVES = ("hot", "durable")
_FORMAT = "warmstart store "
_VERSION = 1
_RESERVE = "reserve"
_SET_ASIDE = 256 << 10
"""Bytes that are given back to a full disk: to delete takes some pages, too."""
_OWN = frozenset({*HALVES, "locks", "journals", "FORMAT", "closed", "boot", "quarantine", _RESERVE})
# Memory maps and byte-range locks are not to be relied on here: py-lmdb#100, diskcache#345.
_NETWORK = frozenset(
    """9p afs autofs beegfs ceph cephfs cifs coda drvfs dvs glusterfs gpfs lustre ncpfs nfs nfs4
    orangefs panfs pvfs2 smb3 smbfs vboxsf virtiofs wekafs""".split()  # noqa: SIM905 (a list to read)
)


def file_lock(path: Path, timeout: float = -1.0) -> FileLock:
    """Return a lock that really is one: never a file that only looks like it."""
    return FileLock(
        path,
        timeout=timeout,
        mode=0o600,
        thread_local=False,  # what a store holds open is held by no thread in particular
        fallback_to_soft=False,
        poll_interval=0.005,
    )


def sync_folder(path: Path) -> None:
    """Return when the names in a folder would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Return what is in a file, and in nothing else: a pipe in its place would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a file", os.fspath(path))
        return file.read()


def make_folder(path: Path) -> bool:
    """Make a folder, and those above it, to survive a power cut; returns whether it was new."""
    if path.is_dir():
        return False
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):  # a folder that may be used, but not listed
        sync_folder(path.parent)
    return True


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who else has a place open, and how it was left.

    Parameters
    ----------
    alive : bool
        Whether some other process holds it open for writing.
    unclean : bool
        Whether the last one did not close it: it died, or the machine did.
    rebooted : bool
        Whether nobody has written to it since the machine was started: the power may have been
        cut, and of what was not synced any part may be there.
    """

    alive: bool
    unclean: bool
    rebooted: bool


class Place:
    """The folder of one store.

    Parameters
    ----------
    path : str
        An absolute path, links resolved.
    read_only : bool
        Look, create nothing.
    allow_network : bool
        Go on where the file system is one of other machines.
    """

    def __init__(self, path: str, *, read_only: bool, allow_network: bool) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._allow_network = allow_network
        self._holder: FileLock | None = None

    def keep_reserve(self) -> None:
        """Set some bytes of the disk aside, unless they are, or there are none."""
        with contextlib.suppress(OSError):
            path = self.path / _RESERVE
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if 512 * os.fstat(descriptor).st_blocks < _SET_ASIDE:
                    os.posix_fallocate(descriptor, 0, _SET_ASIDE)
            except OSError:
                path.unlink()
                raise
            finally:
                os.close(descriptor)

    def spend_reserve(self) -> bool:
        """Give back what was set aside; returns whether there was any."""
        try:
            (self.path / _RESERVE).unlink()
        except OSError:
            return False
        return True

    def is_there(self) -> bool:
        """Return whether the folder is, still."""
        return (self.path / "FORMAT").exists()

    def half(self, name: str) -> Path:
        """Return the folder of one environment."""
        return self.path / name

    def prepare(self) -> None:
        """Check the folder, and create what is missing.

        Raises
        ------
        StoreError
            If it is not a store, or cannot be one; the message says what to do.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise StoreError(f"{self.path} is a file: a store is a folder, choose another path")
            if not self._allow_network:
                self._refuse_network()
            if self._read_only:
                self._check_format()
                return
            make_folder(self.path)
            self._check_owner()
            if not (self.path / "FORMAT").exists():
                self._create()
            self._check_format()
            for folder in (*HALVES, "locks/holders"):
                make_folder(self.path / folder)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            kind = StoreFullError if error.errno in FULL else StoreError
            raise kind(f"{self.path} cannot be used as a store: {error}") from error

    def _create(self) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".FORMAT"))
        if not set(strangers) <= _OWN:
            raise StoreError(
                f"{self.path} is not a store and not empty, it contains "
                f"{', '.join(strangers[:3])}: choose an empty or a new folder"
            )
        scratch = self.path / f".FORMAT.{secrets.token_hex(8)}"
        with scratch.open("x", encoding="ascii") as file:
            scratch.chmod(0o600)
            file.write(f"{_FORMAT}{_VERSION}\n")
            file.flush()
            os.fsync(file.fileno())  # a FORMAT that came out empty would be no store for ever
        scratch.replace(self.path / "FORMAT")
        sync_folder(self.path)

    def _check_format(self) -> None:
        try:
            text = read_file(self.path / "FORMAT").decode("ascii").strip()
        except FileNotFoundError as error:
            raise StoreError(
                f"there is no store at {self.path}: check the path; the first fit that is kept "
                "there makes one"
            ) from error
        except UnicodeDecodeError as error:
            raise StoreError(f"{self.path} is not a store: its FORMAT is not text") from error
        version = text.removeprefix(_FORMAT)
        if not text.startswith(_FORMAT) or not version.isdigit():
            raise StoreError(f"{self.path} is not a store: its FORMAT says {text!r:.60}")
        if int(version) != _VERSION:
            raise StoreError(
                f"{self.path} is a store of format {version}, this version reads {_VERSION}: "
                "upgrade warmstart or choose another folder"
            )

    def _check_owner(self) -> None:
        found = self.path.stat()
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise StoreError(
                f"{self.path} belongs to user {found.st_uid}: choose a folder of your own"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(
                f"{self.path} can be written by other users: run chmod go-w {self.path}, "
                "or choose another folder"
            )

    def _refuse_network(self) -> None:
        kind = file_system(self.path)
        if kind in _NETWORK or kind.startswith("fuse."):
            raise StoreError(
                f"{self.path} is on {kind}, a file system of other machines, where LMDB is not "
                f"safe: write dir://{self.path} for a store that they share, choose a folder on "
                "this machine's disk ($TMPDIR, $SLURM_TMPDIR), or use LmdbBackend(path, "
                "allow_network=True) if only one machine ever uses it"
            )

    # Who holds it open

    @contextlib.contextmanager
    def holding(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a lock of the whole store by name; yields whether it was got in time."""
        lock, got = file_lock(self.path / "locks" / f"{name}.lock", timeout), True
        try:
            try:
                lock.acquire()
            except TimeoutError:
                got = False
            except OSError as error:
                kind = StoreFullError if error.errno in FULL else StoreError
                raise kind(f"the store {self.path} cannot be locked: {error}") from error
            yield got
        finally:
            lock.release(force=True)

    def attend(self) -> Attendance:
        """Find out who is there, and become one of them. Call with the lock ``open``."""
        alive = died = False
        own = _namespace()
        for other in sorted((self.path / "locks" / "holders").iterdir()):
            probe = file_lock(other, timeout=0)
            try:
                probe.acquire()
            except TimeoutError:
                alive = True
                if other.name.split("-")[0] != own:
                    raise StoreError(
                        f"{self.path} is open in another container: LMDB tells processes apart "
                        "by number, so give each container a store of its own"
                    ) from None
            else:
                died = True
                probe.release()
                other.unlink(missing_ok=True)
        unclean = died or (not alive and self._sizes() != self._closed_sizes())
        rebooted = self._is_rebooted()
        (self.path / "closed").unlink(missing_ok=True)
        if rebooted:
            with contextlib.suppress(OSError):  # a full disk: the next opening checks once more
                self._write("boot", _boot())
        name = f"{own}-{os.getpid()}-{secrets.token_hex(6)}"
        self._holder = file_lock(self.path / "locks" / "holders" / name)
        self._holder.acquire()
        return Attendance(alive, unclean, rebooted)

    def look(self) -> Attendance:
        """Find out who is there, and leave no trace."""
        alive = died = False
        for other in _listed(self.path / "locks" / "holders"):
            if _is_locked(other):
                alive = True
            else:
                died = True
        unclean = not alive and (died or self._sizes() != self._closed_sizes())
        return Attendance(alive, unclean, self._is_rebooted())

    def _is_rebooted(self) -> bool:
        # Not synced: what a cut leaves of this file can be of an earlier start, never of the next.
        try:
            known = read_file(self.path / "boot").decode("ascii")
        except (OSError, UnicodeDecodeError):
            known = ""
        return not known or known != _boot()

    def _write(self, name: str, text: str) -> None:
        scratch = self.path / f".{name}"
        scratch.touch(mode=0o600)
        scratch.write_text(text, "ascii")
        scratch.replace(self.path / name)

    def leave(self, *, well: bool = True) -> None:
        """Stop being there; the last one notes that all was closed well. Call with the lock."""
        if self._holder is None:
            return
        holder, self._holder = self._holder, None
        holder.release()
        Path(holder.lock_file).unlink(missing_ok=True)
        if well and not any((self.path / "locks" / "holders").iterdir()):
            self._write("closed", self._sizes())

    def _sizes(self) -> str:
        sizes = []
        for name in HALVES:
            data = self.half(name) / "data.mdb"
            sizes.append(str(data.stat().st_size) if data.exists() else "none")
        return " ".join(sizes)

    def _closed_sizes(self) -> str:
        try:
            return read_file(self.path / "closed").decode("ascii")
        except (OSError, UnicodeDecodeError):
            return "none none"  # right for a new store, unclean for an old one

    def quarantine(self, name: str, problem: str) -> None:
        """Move an environment aside, keep it as evidence, and say so once."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.path / "quarantine" / f"{stamp}-{secrets.token_hex(3)}-{name}"
        target.parent.mkdir(mode=0o700, exist_ok=True)
        self.half(name).rename(target)
        self.half(name).mkdir(mode=0o700)
        what = "the last seconds" if name == "hot" else "what was remembered"
        complain(
            f"the store {self.path} was damaged ({problem:.200}); {what} may be lost, the files "
            f"are kept in {target}, a fresh store goes on"
        )


def file_system(path: Path) -> str:
    """Return the type of the file system that `path` is or would be on, ``""`` if unknown."""
    real = os.path.realpath(path)
    best = ("", "")
    for part in the_psutil().disk_partitions(all=True):
        mount = part.mountpoint.rstrip("/") + "/"
        if (real + "/").startswith(mount) and len(mount) >= len(best[0]):
            best = (mount, part.fstype)
    return best[1]


def _namespace() -> str:
    """Return what tells process numbers of this container from those of another."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 (a magic link, not a path)
    except OSError:
        return "0"


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_locked(path: Path) -> bool:
    """Return whether a process holds a lock, which needs no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
