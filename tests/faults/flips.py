"""Damaged files: every byte changed, every length cut, other programs' files in place of ours.

A small store, one in a ``dir://`` folder, and the journal of a fit that was interrupted are copied,
damaged in one place, and used by a process: it reads all entries, first read only, then writes,
checks, sweeps, and goes on with the fit. A larger store gets random flips, many at a time.
Half of the stores were closed well, so that nothing warns of the damage.

*Wrong* is a process that dies of a signal or hangs, an exception that is not the library's own,
an entry that is not what was written, a store that says it cannot be used though a process has
opened it to write, and a fit that ends elsewhere than plain scipy. *Lost* are entries that the
damage has cost, which is no fault.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import scipy.optimize

import warmstart
from faults.campaign import Outcome, Say
from faults.children import in_children
from warmstart import FitSpec, Store, StoreError, Warm
from warmstart.backends import directory
from warmstart.fingerprint import Fingerprint
from warmstart.record import Entry, EntryKind

__all__ = ["run"]

_KEYS = 5
_LARGE = 400
_STRANGERS = (
    "empty",
    "zeros",
    "sqlite",
    "zip",
    "other lmdb",
    "folder",
    "fifo",
    "loop",
    "dangling",
    "gone",
    "doubled",
)


class _Damage(NamedTuple):
    """What is done to one file of which store."""

    store: str
    file: str
    what: str
    place: int
    seed: int


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Damage `amount` stores, or in all ways there are if these are less."""
    outcome = Outcome()
    counts: Counter[str] = Counter()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        work = _Check(Path(scratch))
        for answer in in_children(work.damages(amount, seed), work, batch=500, timeout=10.0):
            outcome.tried += 1
            if answer.failure:
                outcome.wrong += 1
                outcome.tell(answer.item, answer.failure)
            else:
                wrong = answer.value["wrong"]
                outcome.lost += answer.value["lost"]
                outcome.wrong += bool(wrong)
                outcome.survived += not wrong
                counts.update(answer.value["counts"])
                outcome.tell(answer.item, *wrong)
            say(outcome.tried)
    outcome.figures |= counts
    return outcome


def _key(number: int) -> Fingerprint:
    return FitSpec(model=f"flips {number}").key


def _entry(number: int, version: int = 0, size: int = 3) -> Entry:
    return Entry(
        key=_key(number),
        run=f"{number:016x}{version:016x}",
        kind=EntryKind.FINAL if number % 2 else EntryKind.CHECKPOINT,
        payload={"x": np.random.default_rng(number).standard_normal(size), "version": version},
        objective=float(number - version),
        producer="flips",
        written=time.time(),
    )


def valley(x):
    """Return Rosenbrock's function, so many times before Ctrl-C as a variable says."""
    left = int(os.environ.get("FAULTS_LEFT", "1000000"))
    if not left:
        raise KeyboardInterrupt
    os.environ["FAULTS_LEFT"] = str(left - 1)
    return float(100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2)


def _bits(module: Any, **more: Any) -> tuple[Any, ...]:
    start = np.array([-1.2, 1.0])
    found = module.minimize(valley, start, method="BFGS", options={"maxiter": 15}, **more)
    return found.x.tobytes().hex(), float(found.fun).hex(), found.nfev, found.nit, found.message


class _Check:
    """Damages a copy of a store, and uses it."""

    def __init__(self, scratch: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        self.scratch = scratch
        self.sizes = {"small": 3, "dir": 3, "large": 700}
        self.plain = _bits(scipy.optimize)
        for kind in self.sizes:
            self.make(kind)

    def address(self, folder: Path, kind: str) -> str:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        directory._GROUP = 4
        return f"dir://{folder}/store" if kind == "dir" else str(folder / "store")

    def make(self, kind: str) -> None:
        address = self.address(self.scratch / kind, kind)
        keys = _LARGE if kind == "large" else _KEYS
        with Store(address) as store:
            for number in range(keys):
                store.put(_entry(number, size=self.sizes[kind]))
            store.pin(_key(0))
            with store.run(name="tracked", params={"rate": 0.5}) as run:
                run.log_metric("loss", 0.25)
            os.environ["FAULTS_LEFT"] = "40"
            try:
                _bits(warmstart.optimize, warm=Warm(store=store, journal=True))
            except KeyboardInterrupt:
                del os.environ["FAULTS_LEFT"]

    def files(self, kind: str) -> list[str]:
        root = self.scratch / kind
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return [
            str(p.relative_to(root))
            for p in found
            if p.suffix not in {".lock", ".leave"} and p.name != "reserve"
        ]

    def damages(self, amount: int, seed: int) -> list[_Damage]:
        """Return all there are, or so many of each sort in turn; always all strangers."""
        rng = random.Random(seed)
        flips, cuts, many, strange = [], [], [], []
        for kind in ("small", "dir"):
            for file in self.files(kind):
                size = (self.scratch / kind / file).stat().st_size
                flips += [_Damage(kind, file, "flip", at, at) for at in range(size)]
                cuts += [_Damage(kind, file, "cut", at, at) for at in range(size)]
                strange += [_Damage(kind, file, what, 0, n) for n, what in enumerate(_STRANGERS)]
        large = [name for name in self.files("large") if name.endswith(".mdb")]
        many = [_Damage("large", file, "flips", n, n) for n in range(2500) for file in large]
        rng.shuffle(flips)
        rng.shuffle(cuts)
        rest = max(amount - len(strange), 0)
        shares = (flips, rest // 2), (cuts, rest // 4), (many, rest - rest // 2 - rest // 4)
        chosen = strange + [damage for sort, share in shares for damage in sort[:share]]
        return chosen[: max(amount, len(strange))]

    def __call__(self, damage: _Damage) -> dict[str, Any]:
        os.environ.pop("FAULTS_LEFT", None)
        folder = Path(tempfile.mkdtemp(dir=self.scratch)) / "copy"
        shutil.copytree(self.scratch / damage.store, folder)
        rng = random.Random(damage.seed)
        if damage.seed % 2 and damage.file != "store/closed":
            (folder / "store" / "closed").unlink(missing_ok=True)
        self.spoil(folder / damage.file, damage, rng)
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        lost = 0
        address = self.address(folder, damage.store)
        numbers = range(_KEYS)
        if damage.store == "large":
            numbers = range(0, _LARGE, 1 + damage.seed % 7)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                if damage.seed % 4 < 2:
                    self.look(address, damage, numbers, wrong)
                kept = self.use(address, damage, numbers, wrong)
                lost = len(numbers) - kept
                counts["unusable"] += kept < 0
                self.fit(address, counts, wrong)
            finally:
                for store in (Store(address), Store(address, read_only=True)):
                    store.backend.close()
        counts["quarantined"] += sum("quarantine" in str(w.message) for w in told)
        shutil.rmtree(folder.parent, ignore_errors=True)
        return {"wrong": wrong, "lost": min(max(lost, 0), len(numbers)), "counts": +counts}

    def spoil(self, path: Path, damage: _Damage, rng: random.Random) -> None:
        what = damage.what
        if what in {"flip", "flips"}:
            data = bytearray(path.read_bytes())
            places = [damage.place]
            if what == "flips":
                number = rng.choice((1, 3, 30))
                start, span = 0, len(data)
                if rng.random() < 0.5:  # near each other, or in the first bytes of pages
                    start, span = rng.randrange(len(data) // 4096) * 4096, 64
                places = [start + rng.randrange(span) for _ in range(number)]
            for place in places:
                data[place] ^= rng.randrange(1, 256)
            path.write_bytes(data)
        elif what == "cut":
            os.truncate(path, damage.place)
        else:
            self.replace(path, what)

    def replace(self, path: Path, what: str) -> None:
        content = path.read_bytes()
        path.unlink()
        if what in {"empty", "zeros", "doubled"}:
            path.write_bytes(
                {"empty": b"", "zeros": bytes(len(content)), "doubled": content * 2}[what]
            )
        elif what == "sqlite":
            with sqlite3.connect(path) as base:
                base.execute("create table t (a, b)")
            base.close()
        elif what == "zip":
            with zipfile.ZipFile(path, "w") as bundle:
                bundle.writestr("a", "b")
        elif what == "other lmdb":
            with lmdb.open(str(path), subdir=False, lock=False, max_dbs=2) as other:
                other.open_db(b"named", dupsort=True)
                with other.begin(write=True) as txn:
                    txn.put(b"e" * 33, b"short")
        elif what == "folder":
            (path / "inside").mkdir(parents=True)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "loop":
            path.symlink_to(path.name)
        elif what == "dangling":
            path.symlink_to("nowhere")

    def read(self, store: Store, numbers: Any, damage: _Damage) -> Iterator[str]:
        """Yield what is wrong; an entry that is not there yields an empty text."""
        size = self.sizes[damage.store]
        for number in numbers:
            found = store.entries(_key(number), producer="flips")
            if not found:
                yield ""
            for entry in found:
                wanted = _entry(number, int(entry.payload["version"]), size)
                if entry.payload["x"].tobytes() != wanted.payload["x"].tobytes() or (
                    entry.run,
                    entry.objective,
                    entry.kind,
                ) != (wanted.run, wanted.objective, wanted.kind):
                    yield f"key {number} has {entry}"

    def look(self, address: str, damage: _Damage, numbers: Any, wrong: list[str]) -> None:
        store = Store(address, read_only=True)
        try:
            wrong += filter(None, self.read(store, numbers, damage))
            store.verify()
        except StoreError:
            pass
        finally:
            store.close()

    def use(self, address: str, damage: _Damage, numbers: Any, wrong: list[str]) -> int:
        """Return how many entries are kept, -1 if the store cannot be used."""
        kept = -1
        for attempt in range(3):  # the first may find the damage, the next repairs it
            store = Store(address)
            try:
                found = list(self.read(store, numbers, damage))
                wrong += filter(None, found)
                problems = [p for p in store.verify(repair=True).structure if " frame of " not in p]
                if problems and damage.store != "dir":
                    raise StoreError(problems[0])  # whoever is told opens it again
                store.put(_entry(1, 7))
                store.gc()
                store.close()
                back = [entry.payload["version"] for entry in store.entries(_key(1))]
                if 7 not in back:
                    wrong.append(f"what was written after the damage is not there: {back}")
                kept = len(numbers) - sum(not text for text in found)
                break
            except StoreError as error:
                if attempt == 2 and damage.what in {"flip", "flips", "cut"}:
                    name = Path(damage.file).name
                    if name != "FORMAT":
                        wrong.append(f"it cannot be used: {error}")
            finally:
                with contextlib.suppress(StoreError):
                    store.close()
        return kept

    def fit(self, address: str, counts: Counter[str], wrong: list[str]) -> None:
        with Store(address) as store, warmstart.using(store=store, journal=True) as fits:
            bits = _bits(warmstart.optimize)
        counts[f"fits: {fits[-1].source}"] += 1
        if bits != self.plain and fits[-1].source != "checkpoint":
            wrong.append(f"a fit ended elsewhere: {fits[-1]}")
