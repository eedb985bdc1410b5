"""SIGKILL at random instants of eight processes that share a store.

Writers, promoters, sweepers, growers, importers, copiers, evictors and readers, in epochs of some
forty kills, each with a store of its own that all eight open at once. A third of the workers die
at a random call or return inside the library, the others by the clock, a fifth of these several
at one instant. At the end of an epoch some are killed and the others must go on, though nobody else comes; then
all eight are killed at once, and a fresh process opens what is left.

What `checkpoint`, `finalize`, `put` or an import acknowledged must be there, or a better one
under the same key, bit for bit what was written: every payload is made from the name of its fit,
its run and its number, so that it can be made again. In every third epoch an evictor is at work,
and only pinned fits must be there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from processes import in_child

from faults.campaign import Outcome, Say
from faults.crew import Book, Crew, read_book
from warmstart import Store
from warmstart.backends import Durability
from warmstart.backends.lmdb import LmdbBackend
from warmstart.cli import main
from warmstart.fingerprint import FitSpec, environment
from warmstart.record import Entry, EntryKind
from warmstart.session import new_run_id

__all__ = ["run"]

_WORKERS = 8
_EPOCH = 40
"""Kills that one store sees."""
_RUNS = 8
"""Runs that a store keeps under one key."""
_GIVEN = 60
"""Fits in the bundle that is imported, and in the store that is copied."""
_ROLES = ("writer", "promoter", "sweeper", "grower", "importer", "copier", "reader")
_EVICTING = ("writer", "promoter", "sweeper", "grower", "evictor", "evictor", "reader")


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Kill `amount` workers."""
    outcome = Outcome()
    rng = random.Random(seed)
    acknowledged = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        given = Path(scratch, "given")
        status, _ = in_child(lambda: _give(given))
        assert status == 0
        epoch = 0
        while outcome.tried < amount:
            folder = Path(scratch, f"epoch-{epoch}")
            folder.mkdir()
            evicting = epoch % 3 == 2
            crew = _epoch(
                folder, given, evicting, min(_EPOCH, amount - outcome.tried), rng,
                lambda killed, before=outcome.tried: say(min(before + killed, amount)),
            )  # fmt: skip
            check = functools.partial(_check, folder, crew.books, evicting)
            status, found = in_child(check)
            if status:
                found = [0, [], [f"the check itself ended with {status}"]]
            counted, lost, wrong = found
            wrong += crew.trouble
            acknowledged += counted
            outcome.tried += crew.killed
            outcome.survived += 0 if lost or wrong else crew.killed
            outcome.lost += len(lost)
            outcome.wrong += len(wrong)
            outcome.tell(f"epoch {epoch}", *lost, *wrong)
            say(min(outcome.tried, amount))
            epoch += 1
            if not (lost or wrong):
                shutil.rmtree(folder)
    outcome.allowed = not outcome.lost
    outcome.figures = {"acknowledged": acknowledged, "stores": epoch}
    return outcome


def _epoch(
    folder: Path, given: Path, evicting: bool, amount: int, rng: random.Random, say: Say
) -> Crew:
    """Let eight work on one store until `amount` are killed."""
    roles = _EVICTING if evicting else _ROLES
    place = folder / "store"
    crew = Crew(
        folder,
        lambda: rng.choice(roles),
        lambda role, book, number: _work(role, book, number, place, given, evicting=evicting),
        number=_WORKERS,
        rng=rng,
    )
    while crew.killed < amount - 2 * _WORKERS and not crew.trouble:
        crew.fill()
        time.sleep(10 ** rng.uniform(-3.0, -0.3))  # the random instant
        crew.reap()
        crew.watch()
        crew.kill(rng.randint(2, _WORKERS) if rng.random() < 0.2 else 1)
        say(crew.killed)
    # Nobody comes to wake those who are left.
    crew.kill(rng.randint(1, _WORKERS - 1))
    crew.all_go_on()
    crew.fill()
    crew.all_go_on()
    crew.kill(_WORKERS)
    return crew


# What is written, and can be made again


def _tag(name: str, run: str, number: int) -> str:
    return f"{name}|{run}|{number}"


def _values(tag: str, size: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(blake3(tag.encode()).digest(length=8 * size), np.uint64)


def _objective(tag: str) -> float:
    return int.from_bytes(blake3(tag.encode()).digest(length=6), "little") / 2.0**40


def _payload(tag: str, size: int) -> dict[str, Any]:
    return {"tag": tag, "x": _values(tag, size)}


def _spec(name: str) -> FitSpec:
    return FitSpec(model=name)


def _as_written(entry: Entry, name: str) -> bool:
    """Whether an entry is, bit for bit, one that was written for this fit and this run."""
    tag = entry.payload["tag"]
    x = entry.payload["x"]
    return (
        tag.startswith(f"{name}|{entry.run}|")
        and entry.objective == _objective(tag)
        and x.tobytes() == _values(tag, x.size).tobytes()
    )


def _number(entry: Entry) -> int:
    return int(entry.payload["tag"].rpartition("|")[2])


def _give(folder: Path) -> None:
    """Make the store that is copied, and the bundle that is imported."""
    folder.mkdir()
    with Store(folder / "store", strict=True) as store:
        for number in range(_GIVEN):
            name = f"given {number}"
            with store.session(_spec(name)) as session:
                tag = _tag(name, session.run_id, 0)
                session.finalize(_payload(tag, 10 + 7 * number), _objective(tag))
        store.export(folder / "bundle.zip")


# The workers


def _open(place: Path, **options: Any) -> Store:
    store = Store(place, strict=True, **options)
    store.backend = LmdbBackend(os.fspath(place), map_size=1 << 16)  # must grow
    return store


def _work(role: str, book: Book, seed: int, place: Path, given: Path, *, evicting: bool) -> None:
    os.chdir(place.parent)  # no repository: whoever asks git for its commit is answered soon
    rng = random.Random(seed)
    deeds = {
        "writer": _write,
        "promoter": _promote,
        "sweeper": _sweep,
        "grower": _grow,
        "evictor": _evict,
        "reader": _Reader(evicting=evicting),
    }
    if role == "importer":
        store = _open(place)
        while True:
            store.import_(given / "bundle.zip")
            book.note(given=True)
    if role == "copier":
        while True:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                code = main(["copy", os.fspath(given / "store"), os.fspath(place)])
            assert code == 0
            book.note(given=True)
    budget = 1 << 20 if role == "evictor" else 1 << 30
    store = _open(place, size_budget=budget, entry_budget=4 << 20, ttl=3600.0)
    for number in range(1_000_000):
        if number and rng.random() < 0.02:
            store.close()
        deeds[role](store, book, rng, f"{seed}-{number}")
        book.breathe()


def _fit(
    store: Store,
    book: Book,
    name: str,
    sizes: list[int],
    *,
    final: bool,
    pinned: bool = False,
    deed: Any = None,
) -> None:
    """Be a fit: checkpoints, and an end."""
    with store.session(_spec(name), interval=0.0) as session:
        if pinned:
            store.pin(session.key)
        about = {"key": name, "run": session.run_id, "pinned": pinned}
        book.note(begun=True, **about)
        for number, size in enumerate(sizes):
            last = final and number == len(sizes) - 1
            tag = _tag(name, session.run_id, number)
            keep = session.finalize if last else session.checkpoint
            begin = time.monotonic_ns()
            if keep(_payload(tag, size), _objective(tag)):
                end = time.monotonic_ns()
                book.note(number=number, final=last, begin=begin, end=end, **about)
            if deed is not None:
                deed()


def _name(rng: random.Random, own: str) -> str:
    """Return the name of a fit that is this worker's own, or that several are at."""
    kind = rng.choice(["own", "shared", "climb"])
    return f"own {own}" if kind == "own" else f"{kind} {rng.randrange(4)}"


def _write(store: Store, book: Book, rng: random.Random, own: str) -> None:
    name = _name(rng, own)
    sizes = [rng.choice([1, 40, 700, 3000]) for _ in range(rng.randint(1, 8))]
    pinned = name.startswith("own") and rng.random() < 0.5
    _fit(store, book, name, sizes, final=not name.startswith("climb") and rng.random() < 0.6,
         pinned=pinned)  # fmt: skip


def _promote(store: Store, book: Book, rng: random.Random, own: str) -> None:
    if rng.random() < 0.5:
        _fit(store, book, _name(rng, own), [50] * 3, final=False, deed=store.flush)
        return
    name = f"own {own}"
    key, run = _spec(name).key, new_run_id()
    tag = _tag(name, run, 0)
    about = {"key": name, "run": run, "pinned": False}
    book.note(begun=True, **about)
    entry = Entry(key=key, run=run, kind=EntryKind.FINAL, payload=_payload(tag, 300),
                  objective=_objective(tag), producer=environment(), written=time.time())  # fmt: skip
    begin = time.monotonic_ns()
    if store.put(entry, durability=Durability.POWER):
        book.note(number=0, final=True, begin=begin, end=time.monotonic_ns(), **about)


def _sweep(store: Store, book: Book, rng: random.Random, own: str) -> None:
    """Write what expired long ago, and sweep it."""
    store.clock, now = (lambda: time.time() - 1e6), store.clock
    for number in range(rng.randint(1, 20)):
        with store.session(_spec(f"old {own}-{number}")) as session:
            session.finalize(_payload("", 100), 0.0)
    store.clock = now
    store.gc()


def _grow(store: Store, book: Book, rng: random.Random, own: str) -> None:
    _fit(store, book, f"large {rng.randrange(3)}", [rng.randrange(10_000, 150_000)] * 2, final=True)


def _evict(store: Store, book: Book, rng: random.Random, own: str) -> None:
    pinned = rng.random() < 0.3
    _fit(store, book, f"own {own}", [rng.randrange(10, 5000)] * 2, final=True, pinned=pinned)


class _Reader:
    """Reads what others write, and sees that the best only ever gets better."""

    def __init__(self, *, evicting: bool) -> None:
        self._evicting = evicting
        self._best: dict[str, float] = {}
        self._newest: dict[str, int] = {}

    def __call__(self, store: Store, book: Book, rng: random.Random, own: str) -> None:
        name = f"{rng.choice(['shared', 'climb', 'given', 'large'])} {rng.randrange(4)}"
        key = _spec(name).key
        entry = store.best(key)
        if rng.random() < 0.02:
            report = store.verify()
            assert report.sound, report
        assert all(_as_written(found, name) for found in store.entries(key)), name
        if self._evicting:
            return
        if entry is None:
            assert name not in {*self._best, *self._newest}, f"{name} is gone"
            return
        assert _as_written(entry, name), name
        if entry.kind is EntryKind.FINAL:
            assert entry.sequence >= self._newest.get(name, 0), f"an older final of {name} is back"
            self._newest[name] = entry.sequence
        else:
            assert name not in self._newest, f"the final of {name} is gone"
            assert entry.objective is not None
            assert entry.objective <= self._best.get(name, np.inf), f"the best of {name} has risen"
            self._best[name] = entry.objective


# Afterwards


def _check(folder: Path, books: list[Path], evicting: bool) -> tuple[int, list[str], list[str]]:
    """Return how many records were acknowledged, which are lost, and what is wrong."""
    lost: list[str] = []
    wrong: list[str] = []
    begun: dict[str, set[str]] = defaultdict(set)
    kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
    given = 0
    for line in (line for path in books for line in read_book(path)):
        given += "given" in line
        if "begun" in line:
            begun[line["key"]].add(line["run"])
        elif "number" in line and (line["pinned"] or not evicting):
            kept[line["key"]].append(line)
    store = _open(folder / "store")
    for name in {*begun, *(f"given {n}" for n in range(_GIVEN) if given)}:
        found = store.entries(_spec(name).key)
        if not all(_as_written(entry, name) for entry in found):
            wrong.append(f"{name} has other bits than were written")
        elif name.startswith("given"):
            lost += [] if found else [name]
        elif name in kept:
            lost += _missing(name, found, kept[name], few=len(begun[name]) < _RUNS)
    report = store.verify()
    if not report.sound:
        wrong.append(f"verify: {report.damaged[:3]} {report.structure[:3]}")
    if (folder / "store" / "quarantine").exists():
        wrong.append("a half was put into quarantine")
    store.close()
    return sum(map(len, kept.values())) + given, lost, wrong


def _missing(
    name: str, found: list[Entry], kept: list[dict[str, Any]], *, few: bool
) -> Iterator[str]:
    """Yield what was acknowledged under a key and is not there, nor anything better."""
    if not found:
        yield f"{name}: nothing is left of {len(kept)}"
        return
    best = found[0]
    finals = [line for line in kept if line["final"]]
    if finals:
        ends = [line["end"] for line in finals if line["run"] == best.run]
        if best.kind is not EntryKind.FINAL:
            yield f"{name}: no final is left of {len(finals)}"
        elif ends and any(line["begin"] > ends[0] for line in finals):
            yield f"{name}: the newest final is gone"
    elif best.kind is not EntryKind.FINAL:
        lowest = min(_objective(_tag(name, line["run"], line["number"])) for line in kept)
        if best.objective is None or best.objective > lowest:
            yield f"{name}: the best was {lowest}, now it is {best.objective}"
    if not few:
        return  # the worst runs have made room for others
    for run in {line["run"] for line in kept}:
        own = [line["number"] for line in kept if line["run"] == run]
        there = [entry for entry in found if entry.run == run]
        if max(own) > max(map(_number, there), default=-1):
            yield f"{name}: the latest of run {run[:14]} is gone"
        lowest = min(_objective(_tag(name, run, number)) for number in own)
        if not any(e.kind is EntryKind.FINAL or e.objective <= lowest for e in there):
            yield f"{name}: the best of run {run[:14]} is gone"
