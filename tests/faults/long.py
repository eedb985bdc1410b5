"""Hours of mixed load by eight processes on one store that has to make room all the time.

Fits that are remembered, recorded, stopped and resumed, started near; checkpoints, runs with
series, artifacts and states, searches, reads, sweeps, checks, commands; threads, forks, stores
opened and closed. Each worker says every second what it holds: memory, descriptors, threads,
reader slots. Wrong are an answer that is not plain scipy's, an error, a worker that hangs, memory,
descriptors, threads or slots that grow from the first quarter of the time to the end, and files
that grow beyond what the budget allows. The amount is in seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.optimize
from fits import differences
from processes import in_child

from faults.campaign import Outcome, Say
from faults.crew import Book, Crew, read_book
from warmstart import Store, optimize, using
from warmstart.cli import main
from warmstart.errors import RunLookupError, WarmstartWarning
from warmstart.fingerprint import FitSpec

__all__ = ["run"]

_WORKERS = 8
_BUDGET = 2 << 20
"""Bytes that entries, and journals, may have."""
_FILES = 6 * _BUDGET
"""Bytes that the files of the store may have: LMDB's keep the size that they once needed."""
_MEMORY = 24 << 20
"""Bytes by which a worker may grow after the first quarter."""
_MODELS = 100
_T = np.linspace(0.0, 3.0, 20)


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Work for `amount` seconds."""
    outcome = Outcome()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        place = folder / "store"
        begin = time.monotonic()
        end = begin + amount
        # Nobody is killed here: `kills` does that.
        crew = Crew(
            folder,
            lambda: "worker",
            lambda _, book, number: _work(place, book, number, end),
            number=_WORKERS,
            rng=rng,
            fused=False,
        )
        crew.fill()
        files: list[int] = []
        commands = 0
        while crew.workers:
            now = time.monotonic()
            say(min(int(now - begin), amount))
            if now < end and not crew.trouble:
                commands += 1
                crew.trouble += _command(place, commands)
            elif crew.trouble:
                crew.kill(_WORKERS)
                break
            files.append(_bytes_of(place))
            crew.watch()
            crew.reap()
            time.sleep(1.0)
        samples = [[line for line in read_book(path) if "memory" in line] for path in crew.books]
        troubles = crew.trouble
        outcome.tried = sum(lines[-1]["deeds"] for lines in samples if lines)
        if not troubles:
            troubles += _leaks(samples, files)
            status, more = in_child(lambda: _check(place))
            troubles += more if status == 0 else [f"the check ended with {status}"]
            outcome.figures = _figures(samples, files, commands)
    outcome.survived = outcome.tried - len(troubles)
    outcome.wrong = len(troubles)
    outcome.tell("load", *troubles)
    return outcome


def _bytes_of(place: Path) -> int:
    total = 0
    for folder, _, names in os.walk(place):  # others make and delete folders meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(folder, name).stat().st_size if name != "lock.mdb" else 0
    return total


def _command(place: Path, number: int) -> list[str]:
    """Run one of the commands as people do, in a process of its own."""
    if number % 5 != 1:
        return []
    words = [["stats"], ["fits"], ["ls"], ["gc"], ["families"]][number // 5 % 5]
    done = subprocess.run(
        [sys.executable, "-m", "warmstart", *words, "--store", os.fspath(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [] if done.returncode == 0 else [f"warmstart {words}: {done.stderr[-500:]}"]


# What is held


def _settled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples after the first quarter of the time."""
    first, last = lines[0]["at"], lines[-1]["at"]
    return [line for line in lines if line["at"] >= first + 0.25 * (last - first)]


def _drift(lines: list[dict[str, Any]], name: str) -> float:
    """Return by how much something grew: the median of the last quarter less that before."""
    values = [line[name] for line in _settled(lines)]
    third = max(len(values) // 3, 1)
    return float(np.median(values[-third:]) - np.median(values[:third]))


def _leaks(samples: list[list[dict[str, Any]]], files: list[int]) -> list[str]:
    found = []
    for lines in samples:
        for name, allowed in (("memory", _MEMORY), ("descriptors", 6), ("threads", 4)):
            if len(lines) > 8 and _drift(lines, name) > allowed:
                found.append(f"{name} grew by {_drift(lines, name):,.0f}")
        if max(line["slots"] for line in lines) > 40 * _WORKERS:
            found.append(f"{max(line['slots'] for line in lines)} reader slots are taken")
    if max(files) > _FILES:
        found.append(f"the files had {max(files):,} bytes")
    return found


def _check(place: Path) -> list[str]:
    """Look at what is left when all have gone."""
    found = []
    with Store(place, size_budget=_BUDGET, journal_budget=_BUDGET, strict=True) as store:
        store.gc()
        if store.backend.size() > _BUDGET:
            found.append(f"after a sweep {store.backend.size():,} bytes are left: {_rows(store)}")
        if not store.verify().sound:
            found.append(f"damaged: {store.verify()}")
        for half in (store.backend._environment.hot, store.backend._environment.durable):
            if half.env.reader_check() or len(half.env.readers().splitlines()) > 2:
                found.append(f"reader slots are left: {half.env.readers()}")
    return found


def _rows(store: Store) -> dict[str, tuple[int, int]]:
    """Return how many rows of each kind there are, and their bytes."""
    found: dict[str, tuple[int, int]] = {}
    for item in store.backend.scan(b"", head=1):
        number, size = found.get(chr(item.key[0]), (0, 0))
        found[chr(item.key[0])] = number + 1, size + item.size + len(item.key)
    return found


def _figures(
    samples: list[list[dict[str, Any]]], files: list[int], commands: int
) -> dict[str, object]:
    def most(name: str) -> int:
        return max(line[name] for lines in samples for line in lines)

    drifts = [_drift(lines, "memory") / 1e6 for lines in samples]
    return {
        "commands": -(-commands // 5),
        "memory MB": f"{most('memory') / 1e6:.0f}",
        "drift MB": f"{min(drifts):+.1f} to {max(drifts):+.1f}",
        "store MB": f"{most('size') / 1e6:.1f} of {_BUDGET / 1e6:.1f}",
        "files MB": f"{max(files) / 1e6:.1f}",
        "descriptors": most("descriptors"),
        "threads": most("threads"),
        "slots": most("slots"),
    }


# The load


def _work(place: Path, book: Book, seed: int, end: float) -> None:
    os.chdir(place.parent)
    rng = random.Random(seed)
    store = _open(place)
    deeds = {}
    process, due, done = psutil.Process(), 0.0, 0
    while time.monotonic() < end:
        deed, _ = rng.choices(_DEEDS, [weight for _, weight in _DEEDS])[0]
        deeds[deed.__name__] = deeds.get(deed.__name__, 0) + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's
            warnings.simplefilter("error", WarmstartWarning)
            warnings.filterwarnings("ignore", "this fit was ended", WarmstartWarning)  # by us
            store = deed(store, rng) or store
        done += 1
        if time.monotonic() >= due:
            due = time.monotonic() + 1.0
            environment = store.backend._environment
            book.note(
                at=time.monotonic(),
                deeds=done,
                memory=process.memory_info().rss,
                descriptors=process.num_fds(),
                threads=process.num_threads(),
                slots=max(len(h.env.readers().splitlines()) for h in (environment.hot, environment.durable)),
                size=store.backend.size(),
            )  # fmt: skip
    store.close()
    book.note(done=deeds)


def _open(place: Path) -> Store:
    return Store(place, size_budget=_BUDGET, journal_budget=_BUDGET, strict=True)


class Decay:
    """The loss of a decay curve, which may stop at one of its calls."""

    def __init__(self, at: int = 0) -> None:
        self.count, self.at = 0, at

    def __reduce__(self) -> tuple[Any, ...]:
        return Decay, ()

    def __call__(self, x: Any, y: Any) -> float:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        left = y - x[0] * np.exp(-x[1] * _T) - x[2]
        return float(left @ left)


_METHODS = ("BFGS", "Nelder-Mead", "L-BFGS-B", "Powell")
_PLAIN: dict[tuple[int, str], Any] = {}


def _one(rng: random.Random) -> tuple[int, str, Callable[..., Any]]:
    """Draw a fit."""
    number, method = rng.randrange(_MODELS), rng.choice(_METHODS)
    y = np.exp(-1.1 * _T) + 0.01 * np.sin(number + 7.0 * _T)

    def call(module: Any, at: int = 0) -> Any:
        return module.minimize(Decay(at), [1.0, 0.5, 0.0], args=(y,), method=method)

    return number, method, call


def _same(result: Any, number: int, method: str, call: Callable[..., Any]) -> None:
    """See that a result is plain scipy's."""
    if len(_PLAIN) > 400:
        _PLAIN.clear()
    if (number, method) not in _PLAIN:
        _PLAIN[number, method] = call(scipy.optimize)
    found = list(differences(_PLAIN[number, method], result))
    assert not found, (number, method, str(result.warm), found)


def _fit(store: Store, rng: random.Random) -> None:
    number, method, call = _one(rng)
    with using(store=store, journal=rng.choice([None, True])):
        result = call(optimize)
    _same(result, number, method, call)


def _resume(store: Store, rng: random.Random) -> None:
    number, method, call = _one(rng)
    with using(store=store, journal=True):
        with contextlib.suppress(KeyboardInterrupt):
            call(optimize, rng.randint(1, 60))
        result = call(optimize)
    _same(result, number, method, call)


def _near(store: Store, rng: random.Random) -> None:
    _, _, call = _one(rng)
    with using(store=store, near=True):
        assert np.isfinite(call(optimize).fun)


def _checkpoints(store: Store, rng: random.Random) -> None:
    spec = FitSpec(model=f"driven {rng.randrange(_MODELS)}")
    with store.session(spec, interval=0.0) as session:
        session.try_load()
        for _ in range(rng.randint(1, 10)):
            session.checkpoint(np.zeros(rng.randrange(4000)), rng.random())
        if rng.random() < 0.7:
            session.finalize(np.zeros(rng.randrange(4000)), rng.random())


def _run(store: Store, rng: random.Random) -> None:
    with store.run(f"experiment {rng.randrange(5)}", params={"rate": rng.random()}) as made:
        for step in range(rng.randint(1, 300)):
            made.log_metric("loss", rng.random(), step)
        made.log_artifact("notes", rng.randbytes(rng.randrange(20_000)))
        made.save_state(1, {"x": np.zeros(100)})
        _fit(store, rng)


def _read(store: Store, rng: random.Random) -> None:
    key = FitSpec(model=f"driven {rng.randrange(_MODELS)}").key
    store.best(key)
    store.latest(key)
    store.entries(key)
    for found in store.runs("params.rate >= 0.5", limit=5):
        with contextlib.suppress(RunLookupError):  # swept meanwhile
            found.metrics("loss")


def _sweep(store: Store, rng: random.Random) -> None:
    store.gc()


def _verify(store: Store, rng: random.Random) -> None:
    report = store.verify()
    assert report.sound, report


def _cli(store: Store, rng: random.Random) -> None:
    words = rng.choice([["stats"], ["fits"], ["ls"], ["families"]])
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main([*words, "--store", store.address])
    assert code == 0, told.getvalue()


def _reopen(store: Store, rng: random.Random) -> Store:
    if rng.random() < 0.5:
        store.close()
    return _open(Path(store.address))


def _threads(store: Store, rng: random.Random) -> None:
    troubles: list[BaseException] = []

    def work(number: int) -> None:
        try:
            _fit(store, random.Random(number))
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(rng.getrandbits(32),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]


def _fork(store: Store, rng: random.Random) -> None:
    number = rng.getrandbits(32)
    status, _ = in_child(lambda: _fit(store, random.Random(number)))
    assert status == 0


_DEEDS: list[tuple[Callable[[Store, random.Random], Store | None], int]] = [
    (_fit, 200),
    (_resume, 60),
    (_near, 40),
    (_checkpoints, 60),
    (_run, 30),
    (_read, 30),
    (_reopen, 10),
    (_threads, 10),
    (_fork, 10),
    (_sweep, 2),
    (_cli, 2),
    (_verify, 1),
]
