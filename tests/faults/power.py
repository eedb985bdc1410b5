"""Power cuts: whatever part of the unsynced writes reached the disk, what was promised is there.

A store in a folder, one in a ``dir://`` folder, and the journals of both are written to by a real
process under ``strace``; from its system calls the images are made that a cut could have left (see
`cuts`), and each is opened by a process that reads all, writes, checks, sweeps and resumes a fit.

*Wrong* is a process that dies of a signal or hangs, an entry that nobody wrote or that a deletion
that was made durable had removed, a store that is not sound after it was opened or does not keep
what is written then, and a resumed fit that ends elsewhere than plain scipy. *Lost* is an
entry that a flush, a synced write, or the two seconds of law 5 had made durable.
"""

from __future__ import annotations

import os
import random
import shutil
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
from faults.cuts import Image, can_record, images, record
from warmstart import FitSpec, Store, Warm
from warmstart.backends import Durability, directory, place
from warmstart.fingerprint import Fingerprint
from warmstart.record import Entry, EntryKind

__all__ = ["can_record", "run", "write"]

_KEYS = 10
_STEPS = 90
_RECORDED = 100
"""Images that are made of one recording."""
_PACE = 0.02
_GRACE = 2.0
"""Seconds of law 5."""
_LATE = 0.1
"""Seconds that an evaluation may wait in a buffer, and its ``fdatasync`` may take."""
_KINDS = ("folder", "dir", "folder", "folder")
_CODE = "import sys; from faults.power import write; write(*sys.argv[1:])"


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Cut the power `amount` times."""
    outcome = Outcome()
    counts: Counter[str] = Counter()
    plain = _bits(scipy.optimize)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(dir=memory) as disk:
        for number, start in enumerate(range(0, amount, _RECORDED)):
            kind = _KINDS[number % len(_KINDS)]
            folder = Path(scratch, f"run{number}")
            folder.mkdir()
            acts = record(_CODE, folder, kind, seed + number)
            shutil.rmtree(folder)
            counts["acts"] += len(acts)
            wanted = min(_RECORDED, amount - start)
            folder = Path(disk, f"run{number}")
            folder.mkdir()
            made = list(images(acts, wanted, seed + number, folder))
            work = _Check(kind, plain)
            for answer in in_children(made, work, batch=25):
                outcome.tried += 1
                if answer.failure:
                    outcome.wrong += 1
                    outcome.tell("/".join(answer.item.path.parts[-2:]), answer.failure)
                else:
                    lost, wrong = answer.value["lost"], answer.value["wrong"]
                    counts.update(answer.value["counts"])
                    outcome.lost += len(lost)
                    outcome.wrong += len(wrong)
                    outcome.survived += not lost and not wrong
                    outcome.tell("/".join(answer.item.path.parts[-2:]), *lost, *wrong)
                say(outcome.tried)
            shutil.rmtree(folder)
    outcome.allowed = not outcome.lost
    outcome.figures |= counts
    return outcome


# What is recorded


def _key(number: int) -> Fingerprint:
    return FitSpec(model=f"power {number}").key


def _entry(number: int, version: int) -> Entry:
    """Return the only entry that may be there under these numbers."""
    rng = random.Random(f"{number} {version}")
    size = rng.choice((3, 3, 30, 700, 5000))
    values = np.random.default_rng(version).standard_normal(size)
    return Entry(
        key=_key(number),
        run=f"{number:016x}{version // 3:016x}",
        kind=EntryKind.FINAL if version % 7 == 6 else EntryKind.CHECKPOINT,
        payload={"x": values, "version": version},
        objective=1e9 - version,
        iteration=version,
        producer="power",
        written=time.time(),
    )


def _address(folder: Path | str, kind: str) -> str:
    path = str(Path(folder, "store"))
    return f"dir://{path}" if kind == "dir" else path


def valley(x):
    """Return Rosenbrock's function, slowly where it is recorded."""
    value = float(100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2)
    if "FAULTS_SAYS" in os.environ:
        time.sleep(0.025)
        os.write(int(os.environ["FAULTS_SAYS"]), b"evaluated\n")
    return value


def _bits(module: Any, **more: Any) -> tuple[Any, ...]:
    found = module.minimize(valley, np.array([-1.2, 1.0]), method="Nelder-Mead", **more)
    return found.x.tobytes().hex(), float(found.fun).hex(), found.nfev, found.nit, found.message


def write(folder: str, kind: str, seed: str) -> None:
    """Use a store for some seconds, and say what was begun and what was acknowledged."""
    rng = random.Random(int(seed))
    directory._GROUP = 16
    says = open(Path(folder, "acts"), "w", buffering=1)
    os.environ["FAULTS_SAYS"] = str(says.fileno())
    store = Store(_address(folder, kind))
    for version in range(1, _STEPS + 1):
        time.sleep(_PACE)
        number = rng.randrange(_KEYS)
        chance = rng.random()
        if version == _STEPS // 2:
            _bits(warmstart.optimize, warm=Warm(store=store, journal=True))
        elif chance < 0.66:
            power = chance < 0.1
            print("tries put", number, version, file=says)
            durability = Durability.POWER if power else Durability.PROCESS
            if store.put(_entry(number, version), durability=durability):
                print("synced" if power else "did", "put", number, version, file=says)
        elif chance < 0.76:
            print("tries delete", number, version, file=says)
            store.delete(_key(number))
            print("did delete", number, version, file=says)
        elif chance < 0.9:
            print("flush begins", file=says)
            store.flush()
            print("flush ended", file=says)
        elif chance < 0.94:
            store.gc()
        else:
            print("flush begins", file=says)
            store.close()
            print("flush ended", file=says)
    store.close()


# What is promised


class _Promise:
    """What has to be there under each key, and what may be."""

    def __init__(self, image: Image, *, synced: bool) -> None:
        self.tried: dict[int, list[tuple[int, str]]] = {n: [] for n in range(_KEYS)}
        self.durable: dict[int, tuple[int, str]] = {}
        self.evaluations = 0
        waiting: list[tuple[float, int, int, str]] = []
        flushed = 0
        for at, line in image.said:
            does, *rest = line.split()
            if does == "evaluated":
                self.evaluations += at < image.time - _GRACE - _LATE
                continue
            if does == "flush":
                if rest == ["begins"]:
                    flushed = len(waiting)
                else:
                    for _, number, version, what in waiting[:flushed]:
                        self.durable[number] = (version, what)
                continue
            what, number, version = rest[0], int(rest[1]), int(rest[2])
            if does == "tries":
                self.tried[number].append((version, what))
                continue
            waiting.append((at, number, version, what))
            if does == "synced" or synced:
                self._all(waiting)
        self._all([row for row in waiting if row[0] < image.time - _GRACE])

    def _all(self, rows: list[tuple[float, int, int, str]]) -> None:
        for _, number, version, what in rows:
            if version > self.durable.get(number, (0, ""))[0]:
                self.durable[number] = (version, what)

    def judge(self, number: int, versions: list[int]) -> tuple[str, str]:
        """Return what is lost and what is wrong about the versions that are there."""
        last, what = self.durable.get(number, (0, "delete"))
        tried = {version for version, done in self.tried[number] if done == "put"}
        removed = {version for version, done in self.tried[number] if done == "delete"}
        lost = wrong = ""
        if not set(versions) <= tried:
            wrong = f"key {number} has {versions}, of {sorted(tried)} that were tried"
        elif what == "delete" and any(version < last for version in versions):
            wrong = f"key {number} has {versions} again, deleted at {last}"
        newest = max(versions, default=0)
        gone = newest < last and not any(version > last for version in removed)
        if what == "put" and gone:
            lost = f"key {number} has {versions}, {last} was durable"
        return lost, wrong


class _Check:
    """Opens an image and compares it with what was promised."""

    def __init__(self, kind: str, plain: tuple[Any, ...]) -> None:
        self.kind = kind
        self.plain = plain

    def __call__(self, image: Image) -> dict[str, Any]:
        directory._GROUP = 16
        place._boot = lambda: image.path.name  # the machine has started again since
        os.environ["XDG_CACHE_HOME"] = str(image.path / "cache")
        promise = _Promise(image, synced=self.kind == "dir")
        address = _address(image.path, self.kind)
        counts: Counter[str] = Counter()
        lost: list[str] = []
        wrong: list[str] = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if random.Random(image.path.name).random() < 0.5:
                self.look(address, promise, lost, wrong)
            for what in self.use(Store(address), promise):
                (lost if what.startswith("lost") else wrong).append(what)
            for what in self.resume(address, counts, promise):
                (lost if what.startswith("lost") else wrong).append(what)
        for warning in told:
            if "quarantine" in str(warning.message):
                half = "durable" if "-durable" in str(warning.message) else "hot"
                counts[f"quarantined {half}"] += 1
                if half == "durable" and promise.durable:
                    wrong.append(str(warning.message))
        return {"lost": lost, "wrong": wrong, "counts": counts}

    def look(self, address: str, promise: _Promise, lost: list[str], wrong: list[str]) -> None:
        """Read before anybody has repaired anything."""
        store = Store(address, read_only=True)
        try:
            found = {number: self.read(store, number) for number in range(_KEYS)}
        except warmstart.StoreError as error:
            if promise.durable:
                lost.append(f"lost to readers: {error}")
            return
        finally:
            store.close()
        for number, versions in found.items():
            gone, bad = promise.judge(number, versions)
            lost += [f"lost to readers: {gone}"] * bool(gone)
            wrong += [f"read only: {bad}"] * bool(bad)

    def read(self, store: Store, number: int) -> list[int]:
        versions = []
        for entry in store.entries(_key(number)):
            version = int(entry.payload["version"])
            wanted = _entry(number, version)
            same = entry.payload["x"].tobytes() == wanted.payload["x"].tobytes()
            assert same, f"key {number} has something else as version {version}"
            assert (entry.run, entry.objective) == (wanted.run, wanted.objective)
            versions.append(version)
        return versions

    def use(self, store: Store, promise: _Promise) -> Iterator[str]:
        for number in range(_KEYS):
            gone, bad = promise.judge(number, self.read(store, number))
            if gone:
                yield f"lost: {gone}"
            if bad:
                yield bad
        report = store.verify()
        # What was damaged and not promised may still stand in a dir:// file, never as a pair.
        if report.damaged or (report.structure and self.kind == "folder"):
            yield f"not sound: {report.damaged} {report.structure}"
        newest = {}
        for number in range(_KEYS):
            version = 10_000 + number
            if store.delete(_key(number)) and number % 3 == 0:
                newest[number] = []
                continue
            if not store.put(_entry(number, version)):
                yield f"key {number} was not written"
            newest[number] = [version]
        store.close()
        for number, versions in newest.items():
            found = self.read(store, number)
            if found != versions:
                yield f"after the cut key {number} has {found}, not {versions}"
        store.gc()
        if not store.verify().sound:
            yield "not sound after all"
        store.close()

    def resume(self, address: str, counts: Counter[str], promise: _Promise) -> Iterator[str]:
        with Store(address) as store, warmstart.using(store=store, journal=True) as fits:
            bits = _bits(warmstart.optimize)
        counts[f"fits: {fits[-1].source}"] += 1
        # A checkpoint may have reached the disk before its journal did, and says that it is one.
        began = fits[-1].source == "checkpoint"
        if bits != self.plain and not (began and float.fromhex(bits[1]) < 1e-8):
            yield "a resumed fit ends elsewhere"
        kept = 0 if began else self.plain[2] - (fits[-1].evaluations - fits[-1].probes)
        if kept < promise.evaluations:
            yield f"lost: {promise.evaluations} evaluations were durable, {kept} were kept"
