"""The folder of an LMDB store: whose it is, who holds it open, whether it was closed well.

::

    FORMAT                  "warmstart store 1"
    hot/, durable/          the two environments
    locks/                  file locks; locks/holders/ has one file a process that writes
    closed                  sizes of the data files, left by the last process that closed
    quarantine/             damaged environments, moved aside with the time of finding
"""

from __future__ import annotations

import os
import secrets
import stat
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from warmstart.errors import StoreError, WarmstartWarning
from warmstart.host import the_psutil

__all__ = ["HALVES", "Attendance", "Place"]

HALVES = ("hot", "durable")
_FORMAT = "warmstart store "
_VERSION = 1
# Memory maps and byte-range locks are not to be relied on here: py-lmdb#100, diskcache#345.
_NETWORK = frozenset(
    """9p afs autofs beegfs ceph cephfs cifs coda drvfs dvs glusterfs gpfs lustre ncpfs nfs nfs4
    orangefs panfs pvfs2 smb3 smbfs vboxsf virtiofs wekafs""".split()  # noqa: SIM905 (a list to read)
)


def file_lock(path: Path, timeout: float = -1.0) -> FileLock:
    """Return a lock that really is one: never a file that only looks like it."""
    return FileLock(path, timeout=timeout, mode=0o600, fallback_to_soft=False, poll_interval=0.005)


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who else has a place open, as found while it was locked.

    Parameters
    ----------
    alive : bool
        Whether some other process holds it open for writing.
    unclean : bool
        Whether the last one did not close it: it died, or the machine did.
    """

    alive: bool
    unclean: bool


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
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            if not (self.path / "FORMAT").exists():
                self._create()
            self._check_format()
            for folder in (*HALVES, "locks", "locks/holders"):
                (self.path / folder).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path} cannot be used as a store: {error}") from error

    def _create(self) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".FORMAT"))
        if strangers and not set(strangers) <= {*HALVES, "locks", "journals", "FORMAT"}:
            raise StoreError(
                f"{self.path} is not a store and not empty, it contains "
                f"{', '.join(strangers[:3])}: choose an empty or a new folder"
            )
        scratch = self.path / f".FORMAT.{secrets.token_hex(8)}"
        scratch.write_text(f"{_FORMAT}{_VERSION}\n", "ascii")
        scratch.chmod(0o600)
        scratch.replace(self.path / "FORMAT")

    def _check_format(self) -> None:
        try:
            text = (self.path / "FORMAT").read_text("ascii").strip()
        except FileNotFoundError as error:
            raise StoreError(f"there is no store at {self.path}") from error
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

    def lock(self, name: str, timeout: float = -1.0) -> FileLock:
        """Return a lock of the whole store by name."""
        return file_lock(self.path / "locks" / f"{name}.lock", timeout)

    def attend(self) -> Attendance:
        """Find out who is there, and become one of them. Call with the lock ``open``."""
        alive = died = False
        own = _namespace()
        for other in sorted((self.path / "locks" / "holders").iterdir()):
            probe = file_lock(other, timeout=0)
            try:
                probe.acquire()
            except Timeout:
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
        (self.path / "closed").unlink(missing_ok=True)
        name = f"{own}-{os.getpid()}-{secrets.token_hex(6)}"
        self._holder = file_lock(self.path / "locks" / "holders" / name)
        self._holder.acquire()
        return Attendance(alive, unclean)

    def leave(self) -> None:
        """Stop being there; the last one notes that all was closed well. Call with the lock."""
        if self._holder is None:
            return
        holder, self._holder = self._holder, None
        holder.release()
        Path(holder.lock_file).unlink(missing_ok=True)
        if not any((self.path / "locks" / "holders").iterdir()):
            scratch = self.path / ".closed"
            scratch.write_text(self._sizes(), "ascii")
            scratch.replace(self.path / "closed")

    def _sizes(self) -> str:
        sizes = []
        for name in HALVES:
            data = self.half(name) / "data.mdb"
            sizes.append(str(data.stat().st_size) if data.exists() else "none")
        return " ".join(sizes)

    def _closed_sizes(self) -> str:
        try:
            return (self.path / "closed").read_text("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return "none none"  # right for a new store, unclean for an old one

    def quarantine(self, name: str, problem: str) -> None:
        """Move an environment aside, keep it as evidence, and say so once."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.path / "quarantine" / f"{stamp}-{secrets.token_hex(3)}-{name}"
        target.parent.mkdir(mode=0o700, exist_ok=True)
        self.half(name).rename(target)
        self.half(name).mkdir(mode=0o700)
        what = "the last seconds" if name == "hot" else "what was remembered"
        warnings.warn(
            f"the store {self.path} was damaged ({problem:.200}); {what} may be lost, the files "
            f"are kept in {target}, a fresh store goes on",
            WarmstartWarning,
            stacklevel=2,
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
