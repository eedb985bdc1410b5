"""Two ways to two durabilities: why the store has a hot LMDB environment and no log.

Both survive SIGKILL at once and a power cut after a moment. The *hot* candidate is the store's
backend: a commit into an LMDB environment without sync, promoted to a synced one in the
background. The *log* candidate is a prototype: a frame appended to a file of the writer's own
with one ``os.write`` (to be committed to one synced environment in the background, which is left
out here, in its favor), and readers that follow the files of all writers.

Measured: what a put of 1 KB costs the caller, what a look-up costs in another process right
after a put, by the number of writers, and what opening costs after 100,000 puts and a SIGKILL.
Medians and tails in microseconds; a writer's time is not the only time that counts.
"""

from __future__ import annotations

import argparse
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from warmstart.backends import Batch
from warmstart.backends.lmdb import LmdbBackend

VALUE = bytes(range(256)) * 4
FRAME = struct.Struct("<IIQ")


class Log:
    """The log candidate: one file a writer, an index of all files in each process."""

    def __init__(self, folder: str, name: str = "") -> None:
        """Open a folder, to write too if `name` is given."""
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.index: dict[bytes, bytes] = {}
        self.read_to: dict[Path, int] = {}
        self.sequence = 0
        if name:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self.file = os.open(self.folder / f"{name}.log", flags, 0o600)

    def put(self, key: bytes, value: bytes) -> None:
        """Append a frame."""
        self.sequence += 1
        body = struct.pack("<H", len(key)) + key + value
        os.write(self.file, FRAME.pack(len(body), zlib.crc32(body), self.sequence) + body)

    def get(self, key: bytes) -> bytes | None:
        """Follow all logs to their ends, then look up."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                size, at = entry.stat().st_size, self.read_to.get(Path(entry.path), 0)
                if size > at:
                    self._follow(Path(entry.path), at)
        return self.index.get(key)

    def _follow(self, path: Path, at: int) -> None:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read()
        place = 0
        while place + FRAME.size <= len(data):
            length, crc, _ = FRAME.unpack_from(data, place)
            body = data[place + FRAME.size : place + FRAME.size + length]
            if len(body) < length or zlib.crc32(body) != crc:
                break
            (size,) = struct.unpack_from("<H", body)
            self.index[body[2 : 2 + size]] = body[2 + size :]
            place += FRAME.size + length
        self.read_to[path] = at + place


def hot(folder: str, _name: str = "") -> LmdbBackend:
    """Open the store's backend."""
    return LmdbBackend(folder)


def put(store: LmdbBackend | Log, key: bytes, value: bytes) -> None:
    """Put through either candidate."""
    if isinstance(store, Log):
        store.put(key, value)
    else:
        store.apply(Batch({key: value}))


CANDIDATES = {"hot": hot, "log": Log}


def timed(call, number: int) -> list[float]:
    """Return the microseconds of each of `number` calls."""
    times = []
    for n in range(number):
        start = time.perf_counter_ns()
        call(n)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def percentiles(times: list[float]) -> list[str]:
    """Return median, p90, p99 and maximum as text."""
    return [f"{value:,.1f}" for value in np.percentile(times, [50, 90, 99, 100])]


def writer(candidate: str, folder: str, name: str) -> None:
    """Put one key whenever told to on standard input, and say so."""
    store = CANDIDATES[candidate](folder, name)
    for line in sys.stdin:
        put(store, b"k" + name.encode() + line.strip().encode(), VALUE)
        sys.stdout.write("x\n")
        sys.stdout.flush()


def filler(candidate: str, folder: str, number: int) -> None:
    """Put many, then die."""
    store = CANDIDATES[candidate](folder, "filler")
    for n in range(number):
        put(store, b"k%d" % (n % 5000), VALUE)
    os.kill(os.getpid(), signal.SIGKILL)


def child(*arguments: str) -> subprocess.Popen[str]:
    """Start this file in another process."""
    return subprocess.Popen(
        [sys.executable, __file__, "--child", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lookups(candidate: str, writers: int, rounds: int) -> list[float]:
    """Time look-ups here, each right after each of the writers has put something new."""
    with tempfile.TemporaryDirectory() as folder:
        children = [child("writer", candidate, folder, str(n)) for n in range(writers)]
        reader = CANDIDATES[candidate](folder)
        times = []
        for n in range(rounds):
            for process in children:
                process.stdin.write(f"{n}\n")
                process.stdin.flush()
            for process in children:
                process.stdout.readline()
            start = time.perf_counter_ns()
            found = reader.get(b"k0%d" % n)
            times.append((time.perf_counter_ns() - start) / 1e3)
            assert found is not None
        for process in children:
            process.stdin.close()
            process.wait()
            process.stdout.close()
        if isinstance(reader, LmdbBackend):
            reader.close()
        return times[rounds // 10 :]


def main() -> None:
    """Measure both, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        role, candidate, folder, last = options.child
        if role == "writer":
            writer(candidate, folder, last)
        else:
            filler(candidate, folder, int(last))
        return
    puts, rounds, fill = (2000, 100, 5000) if options.quick else (20_000, 500, 100_000)
    table = Table("", "candidate", "median us", "p90", "p99", "max")
    for candidate, make in CANDIDATES.items():
        with tempfile.TemporaryDirectory() as folder:
            store = make(folder, "me")
            times = timed(lambda n, s=store: put(s, b"k%d" % (n % 1000), VALUE), puts)
            table.add_row("put 1 KB", candidate, *percentiles(times[100:]))
            if isinstance(store, LmdbBackend):
                store.close()
    for writers in (1, 4, 8):
        for candidate in CANDIDATES:
            label = f"look-up after a put by each of {writers} other processes"
            table.add_row(label, candidate, *percentiles(lookups(candidate, writers, rounds)))
    for candidate, make in CANDIDATES.items():
        with tempfile.TemporaryDirectory() as folder:
            process = child("filler", candidate, folder, str(fill))
            process.wait()
            process.stdin.close()
            process.stdout.close()
            start = time.perf_counter_ns()
            store = make(folder)
            assert store.get(b"k7") is not None
            taken = (time.perf_counter_ns() - start) / 1e3
            label = f"open and look up after {fill:,} puts and SIGKILL"
            table.add_row(label, candidate, f"{taken:,.0f}", "", "", "")
            if isinstance(store, LmdbBackend):
                store.close()
    Console().print(table)


if __name__ == "__main__":
    main()
