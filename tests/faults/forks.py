"""Processes of every kind around one store, and places that are not as they should be.

Each round breaks one thing, in the order of `ROUNDS`: forks amid threads that write, and children
of children; spawn, forkserver and pools of threads, mixed; a store by several names; containers
(PID namespaces); places that can only be read, or belong to another user; a clock that goes
backwards; readers that are killed by the hundred. What was acknowledged must be there, nobody may
hang, and a fit must come to what plain scipy comes to, wherever its store is.

Rounds that need root, or namespaces, are skipped and counted where there are none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from fits import differences
from processes import SIGKILLED, in_child

from faults.campaign import Outcome, Say
from faults.crew import DEADLINE, Book, forked, read_book
from warmstart import Store, StoreError, WarmstartWarning, optimize, using
from warmstart.backends import Batch
from warmstart.fingerprint import FitSpec
from warmstart.record import seal

__all__ = ["ROUNDS", "Skipped", "fits_are_right", "one_round", "run", "write"]

_TESTS = os.fspath(Path(__file__).parents[1])
_NOBODY = 65_534
_TOLD = 8000
"""Characters of stacks that are kept."""
_READERS = 500
"""Readers that are killed in one round."""
Round = Callable[[Path, random.Random], list[str]]


class Skipped(Exception):
    """What the machine does not permit."""


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Break `amount` things."""
    outcome = Outcome()
    rng = random.Random(seed)
    skipped = 0
    for number in range(amount):
        work = ROUNDS[number % len(ROUNDS)]
        try:
            found = one_round(work, rng.getrandbits(32))
        except Skipped:
            skipped += 1
            continue
        finally:
            say(number + 1)
        outcome.tried += 1
        outcome.survived += not found
        outcome.wrong += len(found)
        outcome.tell(work.__name__, *found)
    outcome.figures = {"skipped": skipped, "readers killed": _READERS * (amount // len(ROUNDS))}
    return outcome


def one_round(work: Round, seed: int) -> list[str]:
    """Do a round in a process of its own, which must not take for ever; return what is wrong.

    Raises
    ------
    Skipped
        If the machine does not permit it.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # for users who are somebody else
        status, told = _in_time(lambda book: _note(work, folder, seed, book), folder)
        notes = read_book(folder / "round.book")
    if any("skipped" in line for line in notes):
        raise Skipped
    return [line["wrong"] for line in notes] + ([] if status == 0 else [told])


def _note(work: Round, folder: Path, seed: int, book: Book) -> None:
    try:
        for text in work(folder, random.Random(seed)):
            book.note(wrong=text)
    except Skipped:
        book.note(skipped=True)
    except BaseException:
        book.note(wrong=traceback.format_exc())


def _in_time(work: Callable[[Book], None], folder: Path) -> tuple[int | None, str]:
    """Return how a child ended, None if it hung, and where it stood then."""
    stacks = folder / "round.stacks"

    def live() -> None:
        os.setpgid(0, 0)  # so that all that it starts can be asked, and ended
        faulthandler.register(signal.SIGUSR1, stacks.open("a"))
        work(Book(folder / "round.book"))

    pid = forked(live)
    end = time.monotonic() + 2 * DEADLINE
    while time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            return status, f"ended with {status}"
        time.sleep(0.005)
    os.killpg(pid, signal.SIGUSR1)
    time.sleep(1.0)  # there is nothing to see from outside when all have told
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, f"hung for {2 * DEADLINE:.0f} s: {stacks.read_text()[:_TOLD]}"


# What is written


def write(store: Store, name: str) -> None:
    """Keep the result of a fit."""
    with store.session(FitSpec(model=name)) as session:
        session.checkpoint(np.full(20, 2.0), 2.0)
        assert session.finalize({"name": name, "x": np.arange(30.0)}, 1.0)


def _missing(store: Store, names: list[str]) -> list[str]:
    """Return what is not there as it was written."""
    found = []
    for name in names:
        entry = store.best(FitSpec(model=name).key)
        if entry is None or entry.payload["name"] != name or entry.payload["x"].sum() != 435.0:
            found.append(f"{name} is gone")
    if not store.verify().sound:
        found.append(f"damaged: {store.verify()}")
    return found


def write_there(place: str, name: str) -> None:
    """Do it in another process, which has to open the store."""
    write(Store(place, strict=True), name)


def write_with(store: Store, name: str) -> None:
    """Do it with a store that was handed over."""
    write(store, name)


@contextlib.contextmanager
def _busy(store: Store, number: int, names: list[str]) -> Iterator[None]:
    """Let threads write, read and sweep meanwhile."""
    stop = threading.Event()

    def work(thread: int) -> None:
        count = 0
        while not stop.is_set():
            name = f"thread {thread} of {os.getpid()}, {count}"
            write(store, name)
            names.append(name)
            store.best(FitSpec(model=name).key)
            count += 1
            if count % 50 == 0:
                store.gc()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# Rounds


def forks(folder: Path, rng: random.Random) -> list[str]:
    """Fork amid writing threads; children use what they inherit, and fork again."""
    store = Store(folder / "store", strict=True)
    names: list[str] = []

    def child(name: str) -> bool:
        with _busy(store, rng.randrange(3), []):
            write(store, name)
            status, _ = in_child(lambda: write(store, f"{name} its child"))
            assert status == 0
        store.close()
        return True

    with _busy(store, 3, names):
        for number in range(12):
            name = f"fork {number}"
            status, _ = in_child(lambda name=name: child(name))
            assert status == 0
            names += [name, f"{name} its child"]
    return _missing(store, names)


def mixed(folder: Path, rng: random.Random) -> list[str]:
    """Start processes by every method at once, amid threads and forks."""
    # A server that the parent has started is not this process' child, and cannot be asked after.
    multiprocessing.forkserver._forkserver._forkserver_pid = None
    store = Store(folder / "store", strict=True)
    names: list[str] = []
    children: list[Any] = []
    with _busy(store, 2, names), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        methods = ["fork", "spawn", "forkserver", "fork"]
        rng.shuffle(methods)
        for number, method in enumerate(methods):
            name = f"{method} {number}"
            target, given = rng.choice([(write_there, store.address), (write_with, store)])
            context = multiprocessing.get_context(method)
            children.append(context.Process(target=target, args=(given, name)))
            children[-1].start()
            names.append(name)
        with ThreadPoolExecutor(8) as pool:
            pooled = [f"pool {number}" for number in range(40)]
            list(pool.map(lambda name: write(store, name), pooled))
            names += pooled
        for child in children:
            child.join(DEADLINE)
    ended = [child.exitcode for child in children]
    return ([] if ended == [0] * 4 else [f"children ended with {ended}"]) + _missing(store, names)


def names(folder: Path, rng: random.Random) -> list[str]:
    """Open a store by its name, by a link, and by a detour, here and in children."""
    (folder / "link").symlink_to(folder / "store", target_is_directory=True)
    (folder / "aside").mkdir()
    places = [folder / "store", folder / "link", folder / "aside" / ".." / "store"]
    stores = [Store(place, strict=True) for place in places]
    names = []
    for number in range(30):
        store, names = rng.choice(stores), [*names, f"name {number}"]
        if rng.random() < 0.3:
            status, _ = in_child(lambda store=store: write(store, names[-1]))
            assert status == 0
        else:
            write(store, names[-1])
        if rng.random() < 0.2:
            rng.choice(stores).close()
    return [text for store in stores for text in _missing(store, names)]


def container(folder: Path, rng: random.Random) -> list[str]:
    """Share a store with another PID namespace: beside it is refused, one after the other works."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from faults.forks import fits_are_right, write
from warmstart import Store
store, how = Store(sys.argv[1]), sys.argv[2]
if how == "beside":
    assert fits_are_right(store, told=1) == [], fits_are_right(store)
else:
    write(store, "contained")
    work = lambda txn: os.kill(os.getpid(), signal.SIGKILL)
    store.backend._environment.hot.read(work)
"""

    def contained(how: str) -> subprocess.CompletedProcess[str]:
        words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
        return subprocess.run(
            [*words, os.fspath(folder / "store"), how], capture_output=True, text=True, check=False
        )

    probe = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    if probe.returncode:
        raise Skipped
    found = []
    store = Store(folder / "store", strict=True)
    write(store, "before")
    if done := contained("beside").returncode:
        found.append(f"beside: {done} {contained('beside').stderr[-800:]}")
    store.close()
    contained("alone")  # ends amid a read
    write(store, "after")
    store.flush()
    for half in (store.backend._environment.hot, store.backend._environment.durable):
        if "\n" in half.env.readers().strip():
            found.append(f"its readers are still there: {half.env.readers()}")
    return found + _missing(store, ["before", "contained", "after"])


def fits_are_right(store: Store, *, told: int | None = None) -> list[str]:
    """Return in what fits with a store differ from plain scipy's, or in how often trouble is told."""
    found = []
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        for start in (0.5, 0.5, 1.5):
            with using(store=store, journal=True):
                result = optimize.minimize(_valley, [start, 1.0])
            found += differences(scipy.optimize.minimize(_valley, [start, 1.0]), result)
    troubles = [str(w.message) for w in log if issubclass(w.category, WarmstartWarning)]
    if told is not None and len(troubles) != told:
        found.append(f"told {troubles}")
    return found


def _valley(x: Any) -> float:
    return float((x[0] - 1.0) ** 2 + 10.0 * (x[1] - x[0] ** 2) ** 2)


def _as_nobody(work: Callable[[], list[str]]) -> list[str]:
    """Do something as a user without rights."""
    if os.getuid() != 0:
        raise Skipped

    def live() -> list[str]:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        os.chdir("/")
        return work()

    status, found = in_child(live)
    return list(found) if status == 0 else [f"ended with {status}"]


def read_only(folder: Path, rng: random.Random) -> list[str]:
    """Use a store whose files, or whose mount, can only be read."""
    place = folder / "store"
    with Store(place, strict=True) as store:
        write(store, "kept")
    target = folder / "mount"
    target.mkdir()
    if subprocess.run(
        ["mount", "--bind", place, target], capture_output=True, check=False
    ).returncode:
        raise Skipped
    found = []
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
        with Store(target, read_only=True, strict=True) as reader:
            found += _missing(reader, ["kept"])
        with Store(target, read_only=True) as reader:
            found += fits_are_right(reader)
        found += [f"on a mount: {text}" for text in fits_are_right(Store(target), told=1)]
    finally:
        subprocess.run(["umount", target], check=True)
    return found + _missing(Store(place), ["kept"])


def not_writable(folder: Path, rng: random.Random) -> list[str]:
    """Take all rights to write from one's own store."""
    place = folder / "store"
    if os.getuid() != 0:
        raise Skipped
    with Store(place, strict=True) as store:
        write(store, "kept")
    for path in [place, *place.rglob("*")]:
        os.chown(path, _NOBODY, _NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o444)

    def work() -> list[str]:
        reader = Store(place, read_only=True, strict=True)
        found = _missing(reader, ["kept"])
        reader.close()
        return found + fits_are_right(Store(place), told=1)

    return _as_nobody(work)


def foreign(folder: Path, rng: random.Random) -> list[str]:
    """Use the store of another user, which can be seen or not."""
    place = folder / "store"
    with Store(place, strict=True) as store:
        write(store, "kept")
    if rng.random() < 0.5:
        place.chmod(0o755)
    found = _as_nobody(lambda: fits_are_right(Store(place), told=1))
    place.chmod(0o700)
    return found + _missing(Store(place), ["kept"])


def clock(folder: Path, rng: random.Random) -> list[str]:
    """Let the clock go backwards: the newest result still answers, and nothing is swept."""
    now = [time.time()]
    store = Store(folder / "store", strict=True, ttl=3600.0, clock=lambda: now[0])
    found = []
    last = {}
    real = time.time_ns
    try:
        for number in range(60):
            now[0] -= rng.choice([0.0, 0.001, 5.0, 86_400.0, 3e7])
            time.time_ns = lambda: int(now[0] * 1e9)
            name = f"clock {rng.randrange(6)}"
            with store.session(FitSpec(model=name)) as session:
                assert session.finalize({"number": number}, rng.random())
            last[name] = number
            if rng.random() < 0.2:
                store.gc()
            if rng.random() < 0.1:
                store.close()
            for known, wanted in last.items():
                entry = store.best(FitSpec(model=known).key)
                if entry is None or entry.payload["number"] != wanted:
                    found.append(f"{known} is {entry and entry.payload}, not {wanted}")
    finally:
        time.time_ns = real
    return found


def readers(folder: Path, rng: random.Random) -> list[str]:
    """Kill readers by the hundred, amid their transactions; a writer goes on all the time."""
    store = Store(folder / "store", strict=True)
    write(store, "kept")
    store.flush()
    processes = 5

    def read() -> None:
        environment = Store(store.address).backend._environment
        held = []
        for _ in range(_READERS // processes // 2):
            for half in (environment.hot, environment.durable):
                held.append(half.env.begin())
                held[-1].get(b"k")
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(processes):
        assert in_child(read)[0] == SIGKILLED
        write(store, "kept")
    # No one opens it anew: the writer itself has to see to it.
    for number in range(200):
        store.backend.apply(Batch({b"q%d" % (number % 10): seal(bytes(20_000))}))
        if number % 20 == 0:
            store.flush()
    found = []
    for name in ("hot", "durable"):
        size = (folder / "store" / name / "data.mdb").stat().st_size
        if size > 4_000_000:
            found.append(f"{name} has grown to {size:,} bytes")
    return found + _missing(store, ["kept"])


def stranger(folder: Path, rng: random.Random) -> list[str]:
    """Point a store at a file, and at a folder that is full of something else."""
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("mine")
    found = []
    for place in (folder / "file", folder / "full"):
        found += fits_are_right(Store(place), told=1)
        with contextlib.suppress(StoreError):
            Store(place).backend.size()
            found.append(f"{place.name} was taken for a store")
    untouched = (folder / "full" / "thesis.tex").read_text() == "mine"
    return found + ([] if untouched else ["something else was overwritten"])


ROUNDS: list[Round] = [
    forks,
    mixed,
    names,
    container,
    read_only,
    not_writable,
    foreign,
    clock,
    readers,
    stranger,
]
