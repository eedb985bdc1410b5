"""Processes that work until they are killed, the books they keep, and a watch over them.

A worker is forked, so that a life costs milliseconds. What it was promised it writes into its
book with one ``os.write`` a line, which SIGKILL does not undo; the parent reads the books of the
dead, and sees from their growth that the living go on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmstart.errors import WarmstartWarning

__all__ = ["DEADLINE", "Book", "Crew", "Worker", "forked", "read_book"]

DEADLINE = 60.0
"""Seconds without a line in its book after which a worker counts as hanging."""
_PROFILED = f"{os.sep}warmstart{os.sep}"


class Book:
    """What one process keeps, a line of JSON at a time; an empty line is a sign of life."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, **facts: Any) -> None:
        """Write a line."""
        os.write(self._file, json.dumps(facts).encode() + b"\n")

    def breathe(self) -> None:
        """Give a sign of life."""
        os.write(self._file, b"\n")


def read_book(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a book."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def forked(work: Callable[[], object]) -> int:
    """Run something in a forked child, and return its number at once."""
    with warnings.catch_warnings():
        # Threads of this process (a progress bar, BLAS) hold no lock that is used in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


@dataclass
class Worker:
    """A process at work, as its parent sees it."""

    pid: int
    role: str
    path: Path
    size: int = 0
    since: float = field(default_factory=time.monotonic)
    """When its book was last seen to have grown."""

    def look(self) -> float:
        """Return the seconds since it last gave a sign of life, as far as was looked."""
        with contextlib.suppress(FileNotFoundError):
            size = self.path.stat().st_size
            if size != self.size:
                self.size, self.since = size, time.monotonic()
        return time.monotonic() - self.since


class Crew:
    """So many workers at a time; whoever dies is replaced.

    Parameters
    ----------
    folder : Path
        Where books are kept.
    hire : callable
        Returns a role, by which `work` knows what to do.
    work : callable
        ``work(role, book, seed)``, in the child; it need not return.
    number : int
        Workers at a time.
    rng : random.Random
        Draws roles, instants and victims.
    fused : bool
        Whether one in three kills itself at some call or return of a function of the library:
        that finds gaps that are too short for the clock.
    """

    def __init__(
        self,
        folder: Path,
        hire: Callable[[], str],
        work: Callable[[str, Book, int], object],
        *,
        number: int,
        rng: random.Random,
        fused: bool = True,
    ) -> None:
        self._fused = fused
        self._folder, self._hire, self._work, self._rng = folder, hire, work, rng
        self.number = number
        self.workers: dict[int, Worker] = {}
        self.books: list[Path] = []
        self.killed = 0
        self.trouble: list[str] = []

    def fill(self) -> None:
        """Hire until all places are taken."""
        while len(self.workers) < self.number:
            self._start(self._hire())

    def _start(self, role: str) -> None:
        path = self._folder / f"{len(self.books)}-{role}.book"
        seed = self._rng.getrandbits(32)
        fuse = int(10 ** self._rng.uniform(0, 4.3)) if self._rng.random() < 1 / 3 else 0
        fuse *= self._fused
        worker = Worker(forked(lambda: self._live(role, path, seed, fuse)), role, path)
        self.workers[worker.pid] = worker
        self.books.append(path)

    def _live(self, role: str, path: Path, seed: int, fuse: int) -> None:
        book = Book(path)
        with open(path.with_suffix(".stacks"), "w") as stacks:
            faulthandler.register(signal.SIGUSR1, stacks)
            warnings.simplefilter("error", WarmstartWarning)
            try:
                if fuse:
                    _burn(fuse)
                self._work(role, book, seed)
            except BaseException:
                book.note(wrong=f"{role}: {traceback.format_exc()}")
                raise

    def reap(self) -> None:
        """Count those who have died, and note who was not killed."""
        for pid, worker in list(self.workers.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: Worker, code: int) -> None:
        del self.workers[worker.pid]
        if code == -signal.SIGKILL:
            self.killed += 1
        elif code:
            notes = [line["wrong"] for line in read_book(worker.path) if "wrong" in line]
            self.trouble.append(f"{worker.role} ended with {code}: {notes[-1:]}")

    def kill(self, number: int) -> None:
        """Kill some at one instant."""
        victims = self._rng.sample(sorted(self.workers), min(number, len(self.workers)))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            _, status = os.waitpid(pid, 0)
            self._bury(self.workers[pid], os.waitstatus_to_exitcode(status))

    def watch(self) -> None:
        """Note who hangs, with where its threads stand, and kill it."""
        for worker in list(self.workers.values()):
            if worker.look() > DEADLINE:
                self.trouble.append(f"{worker.role} hangs: {_stacks(worker)}")
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
                del self.workers[worker.pid]

    def all_go_on(self) -> None:
        """Return when each worker has given a sign of life from now on, or was noted to hang."""
        before = {pid: worker.path.stat().st_size if worker.path.exists() else 0
                  for pid, worker in self.workers.items()}  # fmt: skip
        for worker in self.workers.values():
            worker.since = time.monotonic()
        while before:
            self.reap()
            self.watch()
            for pid in list(before):
                worker = self.workers.get(pid)
                if worker is None or worker.size > before[pid]:
                    del before[pid]
            time.sleep(0.002)


def _stacks(worker: Worker) -> str:
    """Return where the threads of a worker stand."""
    path = worker.path.with_suffix(".stacks")
    os.kill(worker.pid, signal.SIGUSR1)
    end = time.monotonic() + 5.0
    while not path.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    return path.read_text()[:2000]


def _burn(fuse: int) -> None:
    """Kill this process at the so-manieth call or return in the library, on whatever thread."""
    left = [fuse]

    def hook(frame: Any, event: str, argument: Any) -> None:
        if _PROFILED in frame.f_code.co_filename:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(hook)
    sys.setprofile(hook)
