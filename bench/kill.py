"""Fits that are killed and run again: the same bits, and what was done twice.

Run ``python bench/kill.py`` (300 kills, about ten minutes), or with ``--quick`` (20 kills in half
a minute, for CI). It fails, exit code 1, if a fit that was killed and resumed differs by one bit
from plain scipy's, or if a kill cost more than the law allows: one finished evaluation, or 20 ms
of work. It never fails on a time.

Each fit runs in a child process, which says when its imports are done. From then on it is killed
(SIGKILL) at an instant drawn uniformly from the time that is still left of it, and run again in a
new process, at most three times; then it is let run to its end. Its result, every field of it,
the state of its random generator and what its callback saw are compared with those of a child
that ran plain scipy and was not disturbed. ``execution_time`` is the only field left out.

The functions keep the books themselves: each call that comes to its end appends its name and a
digest of its point to a file, with one ``os.write``, which SIGKILL does not undo. So the trace of
a fit is known call by call, whatever the library says about itself. Calls beyond those of plain
scipy are *redone*. Some of those are *probes*, by which a resume finds out whether the function
is still the same; the rest is *lost*. The one call that a kill interrupts is not counted: it had
not come to its end, and nothing could have kept it.

``--edges`` draws the instants from where most can go wrong instead: the first 30 ms of a run, in
which its journal is opened, and those after its last evaluation, when the result is remembered.

How many probes a run makes it says in its report. A run that was killed reports nothing: it is
taken to have made as many as the last run of the same fit, where it redid so many.
"""

from __future__ import annotations

# isort: off
from timing import machine
# isort: on

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.optimize import OptimizeResult, rosen, rosen_der, rosen_hess

import warmstart.optimize
from warmstart import using
from warmstart.errors import WarmstartWarning

MARK = 9
"""Bytes that a finished call leaves: the name of its function and eight of its point's digest."""

NOTE = MARK + 8
"""The same, and when that was, in nanoseconds."""

LAW = 0.020
"""Seconds of finished work that a kill may cost, where that is more than one evaluation."""

UNRECORDED = 0.200
"""Seconds that a fit runs before it is journalled by default."""


class Work:
    """The cost of an evaluation, and the book in which its end is noted.

    It reduces to its cost, so that the book is no part of what is fitted.
    """

    def __init__(self, loops: int, book: int | None = None) -> None:
        """Take the number of rounds and, where calls are counted, a file descriptor."""
        self.loops = loops
        self.book = book

    def __reduce__(self) -> tuple[Any, ...]:
        return Work, (self.loops,)

    def __call__(self, name: bytes, point: tuple[Any, ...], share: float) -> None:
        """Work, then note a call of function `name` at `point`."""
        row = np.linspace(0.0, 1.0, 64)
        for _ in range(round(share * self.loops)):
            row = np.sin(row)
        if self.book is not None:
            digest = hashlib.blake2b(digest_size=MARK - 1)
            for part in point:
                digest.update(np.asarray(part).tobytes())
            now = time.monotonic_ns().to_bytes(8, "little")
            os.write(self.book, name + digest.digest() + now)


class History:
    """A callback that keeps what it saw, and reduces to nothing."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.seen: list[bytes] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return History, ()

    def __call__(self, xk: Any, convergence: float = 0.0) -> None:
        """See a point."""
        self.seen.append(np.asarray(xk).tobytes() + float(convergence).hex().encode())


def counted(
    work: Work, function: Callable[..., Any], name: bytes = b"f", share: float = 1.0
) -> Callable[..., Any]:
    """Return a function that costs something and whose calls are counted when they end."""

    def call(*args: Any) -> Any:
        value = function(*args)
        work(name, args, share)
        return value

    return call


# The fits


def rastrigin(x):
    return float(10.0 * x.size + np.sum(x * x - 10.0 * np.cos(2.0 * np.pi * x)))


def mgh09(x, a, b, c, d):
    return a * (x * x + b * x) / (x * x + c * x + d)


MGH09 = np.array(
    [
        [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
        [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
    ]
)
"""NIST's problem, which takes Levenberg-Marquardt many steps from its far start."""
FAR = np.array([25.0, 39.0, 41.5, 39.0])


def far_residuals(p):
    return mgh09(MGH09[0], *p) - MGH09[1]


def chain(x):
    """Return the residuals of a discretised boundary value problem."""
    padded = np.concatenate(([0.0], x, [1.0]))
    return padded[:-2] - 2.0 * x + padded[2:] + 0.02 * np.exp(x) * (1.0 + x * x)


def start(n: int) -> np.ndarray[Any, Any]:
    """Return a start that is far from the minimum, another number in each coordinate."""
    return -1.2 + 0.13 * np.arange(n) % 1.7


Fit = Callable[[Any, Work, History], Any]
FITS: dict[str, tuple[float, Fit]] = {}
"""By name: the cost of an evaluation in units of ``--work``, and a function that runs the fit."""


def fit(name: str, cost: float = 1.0) -> Callable[[Fit], Fit]:
    """Add a fit to the table."""

    def add(run: Fit) -> Fit:
        FITS[name] = cost, run
        return run

    return add


@fit("L-BFGS-B, differences")
def _(optimize, work, seen):
    return optimize.minimize(counted(work, rosen), start(20), method="L-BFGS-B", callback=seen)


@fit("BFGS, jac", 2.0)
def _(optimize, work, seen):
    jac = counted(work, rosen_der, b"g")
    return optimize.minimize(counted(work, rosen), start(60), jac=jac, method="BFGS", callback=seen)


@fit("CG, value and jac", 2.0)
def _(optimize, work, seen):
    both = counted(work, lambda x: (rosen(x), rosen_der(x)))
    return optimize.minimize(both, start(30), jac=True, method="CG", callback=seen)


@fit("Nelder-Mead")
def _(optimize, work, seen):
    options = {"maxiter": 5000, "maxfev": 5000}
    given = {"method": "Nelder-Mead", "options": options, "callback": seen}
    return optimize.minimize(counted(work, rosen), start(8), **given)


@fit("Powell")
def _(optimize, work, seen):
    return optimize.minimize(counted(work, rosen), start(5), method="Powell", callback=seen)


@fit("SLSQP, constraints", 2.0)
def _(optimize, work, seen):
    inside = {"type": "ineq", "fun": counted(work, lambda x: 15.0 - x @ x, b"c", 0.0)}
    across = {"type": "eq", "fun": counted(work, lambda x: np.array([x[0] - x[-1]]), b"e", 0.0)}
    given = {"method": "SLSQP", "constraints": [inside, across], "options": {"maxiter": 300}}
    return optimize.minimize(counted(work, rosen), start(20), callback=seen, **given)


@fit("trust-constr")
def _(optimize, work, _seen):
    ball = scipy.optimize.NonlinearConstraint(
        counted(work, lambda x: x @ x, b"c", 0.0), 0.0, 5.0, jac=lambda x: 2.0 * x
    )
    given = {"method": "trust-constr", "constraints": [ball], "bounds": [(-2.0, 2.0)] * 6}
    return optimize.minimize(counted(work, rosen), start(6), options={"maxiter": 150}, **given)


@fit("COBYQA")
def _(optimize, work, seen):
    options = {"maxfev": 700}
    given = {"method": "COBYQA", "options": options, "callback": seen}
    return optimize.minimize(counted(work, rosen), start(8), **given)


@fit("COBYLA, constraints")
def _(optimize, work, _seen):
    inside = {"type": "ineq", "fun": counted(work, lambda x: 4.0 - x @ x, b"c", 0.0)}
    given = {"method": "COBYLA", "constraints": [inside], "options": {"maxiter": 1200}}
    return optimize.minimize(counted(work, rosen), start(5), **given)


@fit("TNC")
def _(optimize, work, seen):
    given = {"method": "TNC", "options": {"maxfun": 300}, "callback": seen}
    return optimize.minimize(counted(work, rosen), start(10), **given)


@fit("Newton-CG, hess", 4.0)
def _(optimize, work, seen):
    jac, hess = counted(work, rosen_der, b"g"), counted(work, rosen_hess, b"h")
    given = {"jac": jac, "hess": hess, "method": "Newton-CG", "callback": seen}
    return optimize.minimize(counted(work, rosen), start(30), **given)


@fit("trust-ncg, hess", 4.0)
def _(optimize, work, seen):
    jac, hess = counted(work, rosen_der, b"g"), counted(work, rosen_hess, b"h")
    given = {"jac": jac, "hess": hess, "method": "trust-ncg", "callback": seen}
    return optimize.minimize(counted(work, rosen), start(30), **given)


@fit("DE")
def _(optimize, work, seen):
    given = {"maxiter": 40, "popsize": 10, "rng": 7, "callback": seen}
    return optimize.differential_evolution(counted(work, rastrigin), [(-5, 5)] * 5, **given)


@fit("DE, rng object")
def _(optimize, work, _seen):
    rng = np.random.default_rng(3)
    rng.normal(size=5)  # a generator is seldom fresh
    given = {"maxiter": 40, "popsize": 8, "rng": rng, "updating": "deferred", "polish": False}
    result = optimize.differential_evolution(counted(work, rastrigin), [(-5, 5)] * 5, **given)
    return result, rng.bit_generator.state


@fit("dual annealing")
def _(optimize, work, _seen):
    given = {"maxiter": 250, "rng": 11}
    return optimize.dual_annealing(counted(work, rastrigin), [(-5, 5)] * 4, **given)


@fit("basinhopping")
def _(optimize, work, _seen):
    given = {"niter": 12, "rng": 5, "minimizer_kwargs": {"method": "L-BFGS-B"}}
    return optimize.basinhopping(counted(work, rosen), start(6), **given)


@fit("shgo")
def _(optimize, work, _seen):
    given = {"n": 128, "iters": 2, "sampling_method": "sobol"}
    return optimize.shgo(counted(work, rastrigin), [(-5, 5)] * 3, **given)


@fit("direct")
def _(optimize, work, _seen):
    given = {"maxfun": 2000, "maxiter": 2000, "locally_biased": False}
    return optimize.direct(counted(work, rastrigin), [(-4, 5)] * 4, **given)


@fit("least_squares, robust", 2.0)
def _(optimize, work, _seen):
    given = {"loss": "soft_l1", "f_scale": 0.01, "max_nfev": 100, "xtol": None, "ftol": 1e-12}
    return optimize.least_squares(counted(work, far_residuals), FAR, **given)


@fit("leastsq")
def _(optimize, work, _seen):
    given = {"full_output": True, "maxfev": 4000}
    return optimize.leastsq(counted(work, far_residuals), FAR, **given)


@fit("curve_fit")
def _(optimize, work, _seen):
    given = {"p0": FAR, "maxfev": 4000, "full_output": True}
    return optimize.curve_fit(counted(work, mgh09), MGH09[0], MGH09[1], **given)


@fit("root, krylov", 2.0)
def _(optimize, work, _seen):
    given = {"method": "krylov", "options": {"fatol": 1e-10, "maxiter": 60}}
    return optimize.root(counted(work, chain), np.linspace(0, 1, 40), **given)


@fit("root, broyden1")
def _(optimize, work, _seen):
    given = {"method": "broyden1", "options": {"fatol": 1e-9, "maxiter": 800}}
    return optimize.root(counted(work, chain), np.linspace(0, 1, 20), **given)


# The child: one run of one fit


def canonical(value: Any) -> Iterator[bytes]:
    """Yield bytes that are equal for equal values and types only, to the last bit."""
    yield type(value).__name__.encode()
    if isinstance(value, np.ndarray) and value.dtype != object:
        fortran = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
        yield f"{value.dtype.str}{value.shape}{fortran}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, np.generic):
        yield value.dtype.str.encode() + value.tobytes()
    elif isinstance(value, float):
        yield value.hex().encode() if value == value else b"nan"  # noqa: PLR0124
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            if name != "execution_time":
                yield str(name).encode()
                yield from canonical(value[name])
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield str(len(value)).encode()
        for part in value:
            yield from canonical(part)
    elif value is None or isinstance(value, (bool, int, str, bytes, complex)):
        yield repr(value).encode()
    elif isinstance(value, np.dtype):
        yield value.str.encode()
    elif hasattr(value, "tocsr"):
        yield from canonical(value.toarray())
    else:  # such as L-BFGS-B's inverse Hessian
        yield from canonical({k: v for k, v in vars(value).items() if not callable(v)})


def digest_of(value: Any) -> str:
    """Return a short digest of a value's canonical bytes."""
    hashed = hashlib.blake2b(digest_size=12)
    for part in canonical(value):
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


def fields_of(result: Any, seen: History) -> dict[str, list[str]]:
    """Return the digest, and something to read, of each field of a result."""
    fields: dict[str, Any] = {"the callback's calls": seen.seen}
    if isinstance(result, OptimizeResult):
        fields |= result
    else:
        for number, part in enumerate(result):
            inner = part if isinstance(part, OptimizeResult) else {"": part}
            fields |= {f"[{number}] {name}".strip(): inner[name] for name in inner}
    fields.pop("execution_time", None)
    return {
        name: [digest_of(value), f"{type(value).__name__} {str(value)[:60]}"]
        for name, value in fields.items()
    }


def child(order: dict[str, Any]) -> None:
    """Run one fit as ordered and print what came of it."""
    cost, run = FITS[order["fit"]]
    seen = History()
    warnings.simplefilter("ignore")  # scipy's, such as of too few iterations
    warnings.simplefilter("always", WarmstartWarning)
    if order["mode"] == "cost":
        print(json.dumps(cost_of(run, order)))
        return
    book = os.open(order["book"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    work = Work(round(cost * order["loops"]), book)
    options: dict[str, Any] = {"enabled": False}
    if order["mode"] == "journal":
        options = {"store": order["store"], "journal": order["journal"]}
    sys.stdout.write("!")
    sys.stdout.flush()
    begin = time.perf_counter()
    with using(**options) as reports:
        result = run(warmstart.optimize, work, seen)
    seconds = time.perf_counter() - begin
    report = {}
    if reports:
        names = ("source", "evaluations", "evaluations_saved", "probes", "replay")
        names += ("replay_seconds", "why")
        report = {name: getattr(reports[-1], name, None) for name in names}
    print(json.dumps({"fields": fields_of(result, seen), "seconds": seconds, "report": report}))


def cost_of(run: Fit, order: dict[str, Any]) -> dict[str, Any]:
    """Return what journalling adds to an evaluation: fits with and without, in turn."""
    plain, ours, same = [], [], True
    work = Work(0, os.open(order["book"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    run(scipy.optimize, work, History())
    calls = Path(order["book"]).stat().st_size // NOTE
    work = Work(0)
    for number in range(order["repeats"] + 1):
        seen, seen_too = History(), History()
        begin = time.perf_counter()
        first = run(scipy.optimize, work, seen)
        middle = time.perf_counter()
        with using(store=order["store"], hyper={"repeat": number}, journal=True):
            begin_ours = time.perf_counter()
            second = run(warmstart.optimize, work, seen_too)
            end = time.perf_counter()
        same = same and fields_of(first, seen) == fields_of(second, seen_too)
        if number:  # the first pair opens the store
            plain.append(middle - begin)
            ours.append(end - begin_ours)
    # The least of each: an optimizer that works for a millisecond a call varies by more than a
    # journal costs. `recorder.py` has medians.
    least, least_ours = 1e6 * min(plain) / calls, 1e6 * min(ours) / calls
    return {"calls": calls, "plain_us": least, "added_us": least_ours - least, "same": same}


# The parent: who kills


@dataclass
class Reference:
    """What plain scipy did, undisturbed."""

    trace: list[bytes]
    fields: dict[str, list[str]]
    seconds: float
    ends: np.ndarray[Any, Any]
    steady: bool = True

    def allowed(self, seconds: float) -> int:
        """Return how many finished evaluations a kill may cost: as many as ever end in that time.

        Some optimizers ask for their evaluations in bursts, with much work of their own between.
        """
        return int(
            np.max(np.searchsorted(self.ends, self.ends + seconds) - np.arange(len(self.ends)))
        )


@dataclass
class Outcome:
    """One fit: killed, resumed, ended."""

    fit: str
    number: int
    planned: int
    kills: list[float] = field(default_factory=list)
    runs: list[dict[str, int]] = field(default_factory=list)
    different: dict[str, list[str]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    allowed: int = 1

    @property
    def lost(self) -> list[int]:
        """Finished evaluations that were done again because of each kill."""
        return [run["lost"] for run in self.runs[1:]]

    @property
    def identical(self) -> bool:
        """Whether the result is plain scipy's, after no call that plain scipy would not make."""
        strange = any(run["strange"] for run in self.runs)
        return not self.error and not self.different and not strange

    @property
    def lawful(self) -> bool:
        """Whether no kill cost more than allowed."""
        return all(lost <= self.allowed for lost in self.lost)


def marks(book: Path, start: int = 0) -> list[bytes]:
    """Return the calls noted in a book, from byte `start` on."""
    data = book.read_bytes()[start:] if book.exists() else b""
    return [data[i : i + MARK] for i in range(0, len(data), NOTE)]


def times(book: Path) -> np.ndarray[Any, Any]:
    """Return when the calls noted in a book ended, in seconds."""
    data = book.read_bytes()
    ends = [data[i + MARK : i + NOTE] for i in range(0, len(data), NOTE)]
    return np.frombuffer(b"".join(ends), "<i8") / 1e9


class Ledger:
    """Where a fit's runs stand on the way that plain scipy goes."""

    def __init__(self, trace: list[bytes]) -> None:
        """Take the calls of plain scipy, in order."""
        self.trace = trace
        self.reached = 0
        self.known: set[bytes] = set()

    def enter(self, calls: list[bytes]) -> dict[str, Any]:
        """Sort a run's calls: new ones, those done before, and those that do not belong.

        A call that plain scipy repeats, and the library answers from what it knows, is saved.
        """
        new = saved = strange = 0
        redone: Counter[str] = Counter()
        for call in calls:
            ahead = self.reached
            if call not in self.known:
                while ahead < len(self.trace) and self.trace[ahead] in self.known:
                    ahead += 1
            if ahead < len(self.trace) and self.trace[ahead] == call:
                new += 1
                saved += ahead - self.reached
                self.reached = ahead + 1
                self.known.add(call)
            elif call in self.known:
                redone[call[:1].decode()] += 1
            else:
                strange += 1
        total = sum(redone.values())
        by = dict(redone)
        return {"new": new, "saved": saved, "strange": strange, "redone": total, "by": by}


class Campaign:
    """The fits, where they run, and what is known of them."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        """Take the folder to work in and the command's options."""
        self.folder = folder
        self.given = given
        self.loops = calibrate(given.work)
        self.references: dict[str, Reference] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.names = [name for name in FITS if given.only in name]
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.killed = 0
        self.law = LAW + (UNRECORDED if given.journal == "default" else 0.0)
        self.most = 1 if given.quick else 3  # kills a fit: nearly all optimizers have a turn

    def launch(self, name: str, mode: str, **order: Any) -> subprocess.Popen[bytes]:
        """Start a child."""
        order |= {"fit": name, "mode": mode, "loops": self.loops, "journal": True}
        if self.given.journal == "default":
            order["journal"] = None
        command = [sys.executable, __file__, "--child", json.dumps(order)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def place(self) -> Path:
        """Return a new folder."""
        with self.lock:
            path = self.folder / str(next(self.numbers))
        path.mkdir()
        return path

    def refer(self, name: str) -> None:
        """Run plain scipy, and once more to see that it does the same again."""
        for _ in range(1 if self.given.quick else 2):
            book = self.place() / "book"
            said, complaint = self.launch(name, "plain", book=str(book)).communicate()
            if not said.endswith(b"\n"):
                raise RuntimeError(f"{name} fails undisturbed: {complaint.decode()[-2000:]}")
            told = json.loads(said[1:])
            found = Reference(marks(book), told["fields"], told["seconds"], times(book))
            known = self.references.setdefault(name, found)
            known.steady = known.trace == found.trace and not differences(known, found.fields)

    def price(self, name: str) -> None:
        """Find what journalling costs a fit that nobody kills."""
        place = self.place()
        repeats = 3 if self.given.quick else 9
        order = {"book": str(place / "book"), "store": str(place / "store"), "repeats": repeats}
        said, complaint = self.launch(name, "cost", **order).communicate()
        found = {"error": complaint.decode()[-2000:], "same": False}
        with contextlib.suppress(ValueError):
            found = json.loads(said)
        self.costs[name] = found

    def fits(self) -> Iterator[tuple[str, int]]:
        """Yield fits, each as often as the others, until there were kills enough."""
        order = random.Random(self.given.seed)
        for number in itertools.count():
            place = number % len(self.names)
            if place == 0:
                shuffled = order.sample(self.names, len(self.names))
            if self.killed >= self.given.kills:
                return
            yield shuffled[place], number

    def torment(self, name: str, number: int, tick: Callable[[], None]) -> Outcome:
        """Kill a fit, run it on, and compare."""
        rng = random.Random(f"{self.given.seed} {number}")
        reference = self.references[name]
        allowed = reference.allowed(self.law)
        outcome = Outcome(name, number, rng.randint(1, self.most), allowed=allowed)
        place, ledger, read = self.place(), Ledger(reference.trace), 0
        book = place / "book"
        while True:
            left = 1.0 - ledger.reached / len(reference.trace)
            delay, size = rng.uniform(0.0, left * reference.seconds + 0.02), 0
            if self.given.edges:
                delay = rng.uniform(0.0, 0.03)
                size = rng.choice((0, NOTE * len(reference.trace)))
            kill = len(outcome.kills) < outcome.planned
            process = self.launch(name, "journal", book=str(book), store=str(place / "store"))
            said, complaint, killed = watch(process, delay if kill else None, book, size)
            calls = marks(book, read)
            read += NOTE * len(calls)
            outcome.runs.append(ledger.enter(calls))
            if not killed:
                break
            outcome.kills.append(round(delay, 4))
            with self.lock:
                self.killed += 1
            tick()
        try:
            told = json.loads(said)
        except ValueError:
            outcome.error = complaint.decode()[-2000:] or f"exit {process.returncode}, no result"
            told = {"fields": {}, "report": {}}
        else:
            outcome.different = differences(reference, told["fields"])
        if complaint and not outcome.error:
            outcome.report["stderr"] = complaint.decode()[-500:]
        outcome.report |= told["report"]
        settle(outcome)
        return outcome


def settle(outcome: Outcome) -> None:
    """Tell probes from losses, in runs that reported and in those that could not."""
    probes = outcome.report.get("probes") or 0
    for run in outcome.runs[:1]:
        run |= {"probes": 0, "lost": run["redone"]}  # the first run has nothing to resume
    for run in outcome.runs[1:]:
        made = min(probes, run["redone"])
        run |= {"probes": made, "lost": run["redone"] - made}


def watch(
    process: subprocess.Popen[bytes], delay: float | None, book: Path, size: int
) -> tuple[bytes, bytes, bool]:
    """Kill a child so long after it was ready and the book had a size, if it is still there."""
    assert process.stdout is not None
    if process.stdout.read(1) and delay is not None:
        while size and process.poll() is None and (not book.exists() or book.stat().st_size < size):
            time.sleep(0.0005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    said, complaint = process.communicate()
    return said, complaint, process.returncode == -signal.SIGKILL


def differences(reference: Reference, fields: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the fields that are not plain scipy's, with both values."""
    absent = ["", "absent"]
    return {
        name: [reference.fields.get(name, absent)[1], fields.get(name, absent)[1]]
        for name in reference.fields.keys() | fields.keys()
        if reference.fields.get(name, absent)[0] != fields.get(name, absent)[0]
    }


def calibrate(milliseconds: float) -> int:
    """Return the rounds of work that take so long on this machine."""
    best = math.inf
    for _ in range(20):
        begin = time.perf_counter()
        Work(1000)(b"f", (), 1.0)
        best = min(best, time.perf_counter() - begin)
    return max(1, round(milliseconds / best))


# The tables


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as it is shown, or nothing."""
    return "" if value is None else f"{value:,.{digits}f}"


def summary(name: str, campaign: Campaign, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the figures of one optimiser."""
    mine = [outcome for outcome in outcomes if outcome.fit == name]
    lost = [lost for outcome in mine for lost in outcome.lost]
    reference, cost = campaign.references[name], campaign.costs.get(name, {})
    replayed = [
        1e6 * outcome.report["replay_seconds"] / outcome.report["evaluations_saved"]
        for outcome in mine
        if outcome.report.get("source") == "journal"
        and outcome.report.get("replay_seconds")
        and outcome.report.get("evaluations_saved")
    ]
    return {
        "fit": name,
        "evaluations": len(reference.trace),
        "seconds": reference.seconds,
        "steady": reference.steady,
        "fits": len(mine),
        "kills": sum(len(outcome.kills) for outcome in mine),
        "identical": sum(outcome.identical for outcome in mine),
        "lost": sum(lost),
        "lost_per_kill": sum(lost) / len(lost) if lost else None,
        "lost_most": max(lost, default=None),
        "allowed": reference.allowed(campaign.law),
        "probes": sum(run["probes"] for outcome in mine for run in outcome.runs),
        "saved": sum(run["saved"] for outcome in mine for run in outcome.runs),
        "sources": dict(Counter(outcome.report.get("source") for outcome in mine)),
        "replay_us": float(np.median(replayed)) if replayed else None,
        "journal_us": cost.get("added_us"),
        "journalled_same": cost.get("same"),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all optimisers."""
    table = Table(
        title="Killed and resumed; microseconds a call of replay and of journalling",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("fit", no_wrap=True)
    for name in ("calls", "plain s", "fits", "kills", "same", "lost/kill", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("probes", "replay", "journal"):
        table.add_column(name, justify="right", no_wrap=True)
    total = {
        name: sum(row[name] for row in rows)
        for name in ("fits", "kills", "identical", "lost", "probes")
    }
    total |= {"fit": "all", "evaluations": sum(row["evaluations"] for row in rows)}
    total["lost_per_kill"] = total["lost"] / total["kills"] if total["kills"] else None
    total["lost_most"] = max((row["lost_most"] or 0 for row in rows), default=None)
    for row in [*rows, total]:
        if row is total:
            table.add_section()
        bad = row["identical"] < row["fits"] or (row["lost_most"] or 0) > row.get("allowed", 1e9)
        table.add_row(
            row["fit"],
            f"{row['evaluations']:,}",
            number(row.get("seconds")),
            str(row["fits"]),
            str(row["kills"]),
            str(row["identical"]),
            number(row["lost_per_kill"]),
            "" if row["lost_most"] is None else str(row["lost_most"]),
            str(row["probes"]),
            number(row.get("replay_us"), 1),
            number(row.get("journal_us"), 1),
            style="red" if bad else None,
        )
    return table


def complaints(campaign: Campaign, outcomes: list[Outcome]) -> Iterator[str]:
    """Yield a line for everything that should not be."""
    for name, reference in campaign.references.items():
        if not reference.steady:
            yield f"{name}: plain scipy itself differs between two runs"
    for name, cost in campaign.costs.items():
        if not cost["same"]:
            why = cost.get("error", "journalled, it is another result than scipy's")
            yield f"{name}, undisturbed: {why}"
    for outcome in outcomes:
        who = f"{outcome.fit} (fit {outcome.number}, killed at {outcome.kills} s)"
        if outcome.error:
            yield f"{who}: {outcome.error}"
        for name, (plain, ours) in sorted(outcome.different.items()):
            yield f"{who}: {name} is {ours}, not {plain}"
        for place, run in enumerate(outcome.runs):
            if run["strange"]:
                yield f"{who}: run {place + 1} made {run['strange']} calls that are not scipy's"
            if place and run["lost"] > outcome.allowed:
                yield f"{who}: run {place + 1} redid {run['lost']} calls, by function {run['by']}"
        if outcome.report.get("stderr"):
            yield f"{who} said: {outcome.report['stderr'].strip()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, help="how many, by default 300, or 20 with --quick")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and the order")
    parser.add_argument("--quick", action="store_true", help="half a minute, for CI")
    parser.add_argument("--only", default="", help="only fits whose name contains this")
    parser.add_argument("--work", type=float, help="ms of an evaluation, by default 0.5")
    parser.add_argument("--journal", choices=("always", "default"), default="always")
    parser.add_argument(
        "--edges", action="store_true", help="kill within 30 ms of the first or the last call only"
    )
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--folder", type=Path, help="on which disk to store, by default /tmp")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
        return 0
    given.kills = given.kills or (20 if given.quick else 300)
    given.work = given.work or (0.15 if given.quick else 0.5)
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = machine()
    console.print(", ".join(f"{name} {value or 'no'}" for name, value in about.items()))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        ThreadPoolExecutor(given.jobs) as pool,
        Progress(
            *columns,
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        campaign = Campaign(Path(folder), given)
        if not campaign.names:
            parser.error(f"no fit's name contains {given.only!r}")
        task = bar.add_task("plain scipy", total=len(campaign.names))
        for _ in pool.map(campaign.refer, campaign.names):
            bar.advance(task)
        # One after the other: what one costs must not depend on who runs beside it.
        task = bar.add_task("journalling", total=len(campaign.names))
        for name in campaign.names[:: 3 if given.quick else 1]:
            campaign.price(name)
            bar.advance(task)
        task = bar.add_task("kills", total=given.kills)
        coming, turn, outcomes = campaign.fits(), threading.Lock(), []

        def work() -> None:
            while True:
                with turn:
                    following = next(coming, None)
                if following is None:
                    return
                outcomes.append(campaign.torment(*following, lambda: bar.advance(task)))

        for running in [pool.submit(work) for _ in range(given.jobs)]:
            running.result()
    outcomes.sort(key=lambda outcome: outcome.number)
    rows = [summary(name, campaign, outcomes) for name in campaign.names]
    console.print(table_of(rows))
    wrong = list(complaints(campaign, outcomes))
    for line in wrong:
        console.print(line, style="red", soft_wrap=True, highlight=False, markup=False)
    bad = [o for o in outcomes if not o.identical or not o.lawful]
    console.print(
        f"{len(outcomes)} fits, {campaign.killed} kills, {len(bad)} fits not as promised."
    )
    if given.json:
        figures = {"machine": about, "seed": given.seed, "work_ms": given.work, "rows": rows}
        figures["fits"] = [
            dataclasses.asdict(o) | {"identical": o.identical, "lawful": o.lawful} for o in outcomes
        ]
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    steady = all(row["steady"] and row["journalled_same"] is not False for row in rows)
    return 1 if bad or not steady else 0


if __name__ == "__main__":
    sys.exit(main())
