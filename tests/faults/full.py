"""A full disk and a quota: fits are unharmed, what was written stays, and room is used again.

A file system in memory of a few MB is filled by somebody else, before the store is made, after
that, or while it is written to; or files may not grow beyond a limit, as under a quota. Meanwhile
a process fits, writes until it is refused, reads all, deletes, and writes again.

*Wrong* is a process that dies of a signal or hangs, a fit that ends elsewhere than plain scipy or
raises or warns twice, an exception other than that the store is full, a store that is not
sound, and one that does not take records again when there is room. *Lost* is an acknowledged
record.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

import warmstart
from faults.campaign import Outcome, Say
from faults.children import in_children
from warmstart import FitSpec, Store
from warmstart.backends import directory
from warmstart.backends import lmdb as lmdb_module
from warmstart.errors import StoreFullError
from warmstart.record import Entry, EntryKind

__all__ = ["can_mount", "run"]

_MB = 1 << 20
_RECORDS = 400


def can_mount() -> bool:
    """Return whether a file system in memory can be mounted here."""
    with tempfile.TemporaryDirectory() as folder, _mounted(Path(folder), 1) as done:
        return done


@contextlib.contextmanager
def _mounted(folder: Path, megabytes: int) -> Iterator[bool]:
    options = f"size={megabytes}m,mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "-l", folder], check=True)


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Fill `amount` disks; without the right to mount all of them are quotas."""
    outcome = Outcome()
    counts: Counter[str] = Counter()
    mounts = can_mount()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(amount):
            folder = Path(scratch, str(number))
            folder.mkdir()
            rng = random.Random(seed * 100_003 + number)
            quota = not mounts or rng.random() < 0.3
            with contextlib.nullcontext() if quota else _mounted(folder, rng.choice((3, 12, 40))):
                (answer,) = in_children([(folder, quota, rng.random())], _use, timeout=120.0)
            shutil.rmtree(folder)
            outcome.tried += 1
            found = answer.value or {"wrong": [answer.failure], "lost": 0, "counts": {}}
            counts.update(found["counts"])
            outcome.lost += found["lost"]
            outcome.wrong += bool(found["wrong"])
            outcome.survived += not found["wrong"] and not found["lost"]
            outcome.tell(number, *found["wrong"])
            say(outcome.tried)
    outcome.allowed = not outcome.lost
    outcome.figures |= counts
    return outcome


def valley(x, lift):
    """Return Rosenbrock's function, lifted."""
    return float(100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2 + lift)


def _bits(module: Any, lift: float) -> tuple[Any, ...]:
    found = module.minimize(valley, np.array([-1.2, 1.0]), (lift,), method="Nelder-Mead")
    return found.x.tobytes().hex(), float(found.fun).hex(), found.nfev, found.nit, found.message


def _entry(number: int) -> Entry:
    rng = np.random.default_rng(number)
    return Entry(
        key=FitSpec(model=f"full {number}").key,
        run=f"{number:032x}",
        kind=EntryKind.CHECKPOINT,
        payload={"x": rng.standard_normal(rng.choice((3, 300, 6000, 20_000)))},
        objective=1.0,
        written=time.time(),
    )


class _Disk:
    """The disk that somebody else fills."""

    def __init__(self, folder: Path, *, quota: bool) -> None:
        self.filler = folder / "filler"
        self.quota = quota

    def fill(self, leave: int) -> None:
        if self.quota:
            limit = 64 << 10 if leave < _MB else 2 * _MB
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return
        free = shutil.disk_usage(self.filler.parent).free
        with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as file:
            file.write(bytes(max(free - leave, 0)))
            while not leave:
                file.write(bytes(4096))

    def free(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        self.filler.unlink(missing_ok=True)


def _use(item: tuple[Path, bool, float]) -> dict[str, Any]:
    folder, quota, number = item
    rng = random.Random(number)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    directory._GROUP = 16
    shared = rng.random() < 0.35
    if rng.random() < 0.4:
        lmdb_module._FLOOR = 0  # the last byte is used
    disk = _Disk(folder, quota=quota)
    store = Store(f"dir://{folder}/store" if shared else folder / "store", size_budget=64 * _MB)
    counts: Counter[str] = Counter({"dir" if shared else "folder": 1, "quota": int(quota)})
    wrong: list[str] = []
    stage = rng.choice(("before", "early", "late"))
    leave = rng.choice((0, 0, 4096, 100_000, 2 * _MB))
    kept: dict[int, Entry] = {}
    if stage == "before":
        disk.fill(leave)
    wrong += _fit(store, 0, counts)
    if stage != "before":
        _write(store, range(10), kept)
        store.flush()
    if stage == "early":
        disk.fill(leave)
    wrong += _fit(store, 1, counts)
    counts["refused"] += _write(store, range(10, _RECORDS // 2), kept)
    if stage == "late":
        disk.fill(leave)
    wrong += _fit(store, 2, counts)
    counts["refused"] += _write(store, range(_RECORDS // 2, _RECORDS), kept)
    wrong += _fit(store, 3, counts)
    lost = _missing(store, kept)
    if kept and not shared:
        wrong += _evict(store, kept, counts, quota=quota)
    with contextlib.suppress(StoreFullError):
        store.close()
    disk.free()
    refused = _write(store, range(_RECORDS, _RECORDS + 5), kept)
    floor = 0 if shared else lmdb_module._FLOOR
    if refused and shutil.disk_usage(folder).free > floor + _MB:
        wrong.append("with room again it takes nothing")
    lost += _missing(store, kept)
    report = store.verify()
    if not report.sound:
        wrong.append(f"not sound: {report}")
    with contextlib.suppress(StoreFullError):  # a small disk may be full of its own records
        store.gc()
    store.close()
    return {"wrong": wrong, "lost": lost, "counts": +counts}


def _fit(store: Store, lift: float, counts: Counter[str]) -> Iterator[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with warmstart.using(store=store, journal=True):
                found = _bits(warmstart.optimize, lift)
        except Exception as error:
            yield f"a fit raised {error!r}"
            return
    counts["fits"] += 1
    counts["fits that warned"] += bool(told)
    if found != _bits(scipy.optimize, lift):
        yield "a fit ended elsewhere"
    if len(told) > 1:
        yield f"{len(told)} warnings: {[str(w.message) for w in told]}"


def _write(store: Store, numbers: Any, kept: dict[int, Entry]) -> int:
    """Put records; returns how many were refused for want of room."""
    refused = 0
    for number in numbers:
        try:
            entry = _entry(number)
            if store.put(entry):
                kept[number] = entry
            if number % 16 == 0:
                store.flush()
        except StoreFullError:
            refused += 1
    return refused


def _missing(store: Store, kept: dict[int, Entry]) -> int:
    missing = 0
    for entry in kept.values():
        found = store.entries(entry.key)
        missing += not any(f.payload["x"].tobytes() == entry.payload["x"].tobytes() for f in found)
    return missing


def _evict(
    store: Store, kept: dict[int, Entry], counts: Counter[str], *, quota: bool
) -> Iterator[str]:
    """Delete most of what is there, and see whether that makes room on a disk that is full."""
    left = shutil.disk_usage(store.address).free
    try:
        for number in list(kept)[: len(kept) * 3 // 4]:
            store.delete(kept[number].key)
            del kept[number]
        store.flush()
    except StoreFullError:
        # A deletion needs a few pages, too: there are some set aside, but not under a quota.
        counts["not evicted under a quota" if quota else "not evicted"] += 1
        if left > _MB and not quota:
            yield f"nothing can be deleted with {left} bytes left"
        return
    counts["evicted"] += 1
    room = store.backend._environment.durable.spare() + left
    if room > lmdb_module._FLOOR + 2 * _MB:
        counts["room again"] += 1
        if _write(store, range(2 * _RECORDS, 2 * _RECORDS + 3), kept) and not quota:
            yield f"nothing is taken with room for {room} bytes"
