"""Timing that is fair to all competitors: one run, interleaved, the median and the tail.

Import this module before numpy: it holds BLAS to one thread, since threads that contend for two
cores measure each other.

A *case* is one piece of work, a *contender* one way of doing it. `race` goes through a case in
rounds; in each round every contender has a turn of some milliseconds, in a new random (seeded)
order, so that a slow phase of the machine hits all of them. The first call of a turn is not
counted: it pays for what the one before left in the processor's caches. The garbage collector
stays on, as in a program.
"""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from time import perf_counter_ns
from typing import Any

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402 (reads the above)
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

__all__ = [
    "Case",
    "Contender",
    "Fact",
    "Goal",
    "as_json",
    "goal_table",
    "installed",
    "losers",
    "machine",
    "race",
    "show",
]

TURN = 10e6
"""Nanoseconds that a contender's turn should take."""


def _nothing() -> tuple[Any, ...]:
    return ()


@dataclass
class Contender:
    """One way of doing the work of a case.

    Parameters
    ----------
    name : str
        As it is shown.
    call : callable
        What is timed.
    arguments : callable
        Makes the arguments of one sample, untimed.
    inner : int
        Calls in one sample; more than one where a call is not long against the clock's 50 ns.
        The tail is then that of their means.
    """

    name: str
    call: Callable[..., Any]
    arguments: Callable[[], tuple[Any, ...]] = _nothing
    inner: int = 1
    samples: list[float] = field(default_factory=list)

    def sample(self) -> float:
        """Return the nanoseconds of one call."""
        call, arguments = self.call, self.arguments()
        if self.inner == 1:
            start = perf_counter_ns()
            call(*arguments)
            return perf_counter_ns() - start
        turns = repeat(None, self.inner)
        start = perf_counter_ns()
        for _ in turns:
            call(*arguments)
        return (perf_counter_ns() - start) / self.inner

    def at(self, percentile: float) -> float:
        """Return a percentile of the samples, in microseconds."""
        return float(np.percentile(self.samples, percentile)) / 1000


@dataclass
class Goal:
    """What a case has to reach.

    Parameters
    ----------
    than : str
        A contender that the case's first one is compared with; empty for a time of its own.
    limit : float
        Microseconds, or how many times the other's.
    how : {"faster", "within", "added"}
        Whether ours has to be so many times faster than the other, may take so many times as
        long, or may take so many microseconds more.
    who : str
        The contender that has to reach it, by default the first.
    """

    than: str
    limit: float
    how: str = "faster"
    who: str = ""

    def text(self) -> str:
        """Return the goal as it is shown."""
        if not self.than:
            return f"<= {self.limit:g} us"
        if self.how == "added":
            return f"<= {self.limit:g} us over {self.than}"
        return f"{'>=' if self.how == 'faster' else '<='} {self.limit:g}x {self.than}"

    def judge(self, ours: float, theirs: float | None) -> tuple[float | None, bool]:
        """Return what is measured against the limit, and whether it is reached."""
        if not self.than:
            return ours, ours <= self.limit
        if theirs is None:
            return None, False
        if self.how == "added":
            return ours - theirs, ours - theirs <= self.limit
        if self.how == "within":
            return ours / theirs, ours / theirs <= self.limit
        return theirs / ours, theirs / ours >= self.limit


@dataclass
class Fact:
    """One figure that is no race, and its goal.

    Parameters
    ----------
    name, unit : str
        As they are shown.
    value, limit : float
        Measured, and what is to be reached.
    at_least : bool
        Whether more is better.
    """

    name: str
    value: float
    unit: str
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Case:
    """Contenders for one piece of work; the first is warmstart's.

    Parameters
    ----------
    name : str
        As it is shown.
    contenders : list of Contender
        The first is ours, the others are compared with it.
    goals : list of Goal
        What ours has to reach.
    baseline : str
        A contender whose median is subtracted from all others in one more column.
    """

    name: str
    contenders: list[Contender]
    goals: Sequence[Goal] = ()
    baseline: str = ""

    def median(self, name: str) -> float | None:
        """Return a contender's median in microseconds, or None if it does not run."""
        return next((c.at(50) for c in self.contenders if c.name == name), None)

    def ratio(self, contender: Contender) -> float:
        """Return how many times longer a contender takes than ours."""
        return contender.at(50) / self.contenders[0].at(50)


def race(case: Case, *, rounds: int, seed: int = 0) -> None:
    """Fill the samples of all contenders of a case.

    Parameters
    ----------
    case : Case
        What to measure.
    rounds : int
        How often each contender has its turn.
    seed : int
        Of the order.
    """
    order = random.Random(seed)
    calls = {}
    for contender in case.contenders:
        contender.sample()  # imports, connections
        took = min(contender.sample() for _ in range(3)) * contender.inner
        calls[contender.name] = int(min(max(TURN / took, 3), 200))
    # The bar is drawn between turns only: by itself it would draw from a thread, into the timing.
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(console=console, auto_refresh=False, transient=True, disable=quiet) as bar:
        task = bar.add_task(case.name, total=rounds)
        for _ in range(rounds):
            for contender in order.sample(case.contenders, len(case.contenders)):
                contender.sample()
                contender.samples += [contender.sample() for _ in range(calls[contender.name])]
            bar.update(task, advance=1, refresh=True)


def show(case: Case, console: Console) -> None:
    """Print a case as a table, what is faster than ours in red."""
    table = Table(title=case.name, title_justify="left", title_style="bold")
    table.add_column("contender", no_wrap=True)
    for name in ("median us", "p90", "p99", "vs ours", "samples"):
        table.add_column(name, justify="right")
    base = case.median(case.baseline)
    if base is not None:
        table.add_column(f"over {case.baseline}", justify="right")
    for contender in case.contenders:
        ratio = case.ratio(contender)
        cells = [_number(contender.at(p)) for p in (50, 90, 99)]
        cells += [f"{ratio:.2f}x", str(len(contender.samples))]
        if base is not None:
            cells.append(_number(contender.at(50) - base))
        table.add_row(contender.name, *cells, style="red" if ratio < 1 else None)
    console.print(table)


def goal_table(cases: Sequence[Case], facts: Sequence[Fact] = ()) -> Table:
    """Return the table of goals, met and missed."""
    table = Table(title="Goals", title_justify="left", title_style="bold")
    for name in ("case", "goal", "measured", ""):
        table.add_column(name, no_wrap=True)
    verdicts = {True: "[green]met", False: "[red]missed"}
    for case, goal, measured, met in _judged(cases):
        unit = "x" if goal.than and goal.how != "added" else " us"
        name = f"{case.name}, {goal.who}" if goal.who else case.name
        shown = "not installed" if measured is None else f"{_number(measured)}{unit}"
        table.add_row(name, goal.text(), shown, "" if measured is None else verdicts[met])
    for fact in facts:
        sign = ">=" if fact.at_least else "<="
        goal_text, shown = (
            f"{sign} {fact.limit:g} {fact.unit}",
            f"{_number(fact.value)} {fact.unit}",
        )
        table.add_row(fact.name, goal_text, shown, verdicts[fact.met])
    return table


def losers(cases: Sequence[Case]) -> list[str]:
    """Return a line for everything that is faster than ours."""
    return [
        f"{case.name}: {c.name} takes {_number(c.at(50))} us, ours "
        f"{_number(case.contenders[0].at(50))} us ({1 / case.ratio(c):.2f}x)"
        for case in cases
        for c in case.contenders[1:]
        if case.ratio(c) < 1
    ]


def as_json(cases: Sequence[Case], facts: Sequence[Fact] = ()) -> dict[str, Any]:
    """Return all figures, in microseconds, and the machine."""
    rows = [
        {"case": case.name, "contender": c.name, "samples": len(c.samples)}
        | {f"p{p}": round(c.at(p), 4) for p in (50, 90, 99)}
        | {"vs_ours": round(case.ratio(c), 3)}
        for case in cases
        for c in case.contenders
    ]
    goals = [
        {"case": case.name, "goal": goal.text(), "measured": measured, "met": met}
        for case, goal, measured, met in _judged(cases)
    ]
    others = [asdict(fact) | {"met": fact.met} for fact in facts]
    return {"machine": machine(), "unit": "us", "rows": rows, "goals": goals, "facts": others}


def _judged(cases: Sequence[Case]):
    for case in cases:
        for goal in case.goals:
            ours = case.median(goal.who or case.contenders[0].name)
            yield case, goal, *goal.judge(ours, case.median(goal.than))


def _number(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    names = ("warmstart", "numpy", "scipy", "lmdb", "joblib", "diskcache", "cachier")
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
    }
