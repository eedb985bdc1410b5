"""What keeping a journal costs a fit, what a replay costs, and what a journal weighs.

Run ``python bench/recorder.py`` (some minutes), or with ``--quick`` (half a minute: too few
repeats to judge a per cent). ``--json FILE`` writes all figures, ``--folder`` chooses the disk.
It fails only if a journalled or a resumed fit is not plain scipy's, never on a time.

Measured are

- cheap evaluations (sums of squares, 2 to 3 us) by the ten thousand, where the recorder is all
  the cost there is: microseconds added to each;
- evaluations of 100 us, 1 ms and 10 ms, and some that return 8 KB of gradient: per cent added
  to the time of the fit;
- replay: a fit interrupted at its last evaluation and run again, so that all of it but that is
  answered from the journal;
- bytes a call on disk, and the memory that a million calls take.

How to read it: a fit runs plain, with ``journal=None`` (as by default: recorded where that pays,
once the fit has run for 200 ms) and with ``journal=True``, in turn, in random (seeded) order, and
the differences are taken within each turn. The fits are real, and none is ever the same as one
before, so that none is remembered. An evaluation "of 1 ms" sweeps through 64 KB until that time
is over: it leaves the caches as a real one would, and its own jitter is not in the differences.
"""

from __future__ import annotations

# isort: off
from timing import machine
# isort: on

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import scipy.optimize
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import warmstart.optimize
from warmstart import Store, using

MODES = {"default": None, "always": True}
NUMBERS = itertools.count()
"""Of fits, so that none is the same as one before."""

SWEPT = np.linspace(0.0, 1.0, 8192)


class DifferentError(Exception):
    """A journalled fit is not plain scipy's."""


class Bomb:
    """Interrupts a fit at its so-many-th call; it reduces to nothing, since it is not fitted."""

    def __init__(self, calls: int = 0) -> None:
        """Take the number of the call that does not return, 0 for none."""
        self.left = calls

    def __reduce__(self) -> tuple[Any, ...]:
        return Bomb, ()

    def tick(self) -> None:
        """Count a call."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# The evaluations


def squares(x):
    return float(x @ x)


def springs(x):
    stretched = x[1:] - x[:-1]
    return float(stretched @ stretched + x[0] * x[0] + (x[-1] - 1.0) ** 2)


def rosen_both(x):
    return scipy.optimize.rosen(x), scipy.optimize.rosen_der(x)


def taking(microseconds: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes so long."""

    def slow(x):
        end = perf_counter_ns() + 1000 * microseconds
        value = function(x)
        while perf_counter_ns() < end:
            for place in range(0, 8192, 256):
                SWEPT[place : place + 256].sum()
                if perf_counter_ns() >= end:
                    break
        return value

    return slow


def bombed(function: Callable[..., Any], bomb: Bomb) -> Callable[..., Any]:
    """Return a function that a bomb may interrupt."""

    def ticking(x):
        bomb.tick()
        return function(x)

    return ticking


# The fits


def simplex(calls: int) -> Callable[..., Any]:
    """Return a fit by Nelder and Mead of so many calls."""
    options = {"maxfev": calls, "maxiter": calls, "xatol": 0.0, "fatol": 0.0}
    start = np.linspace(-1.0, 1.0, 10)

    def run(optimize, function):
        return optimize.minimize(function, start, method="Nelder-Mead", options=options)

    return run


def differences(calls: int) -> Callable[..., Any]:
    """Return a fit by L-BFGS-B with finite differences of about so many calls."""
    options = {"maxfun": calls, "maxiter": calls, "ftol": 0.0, "gtol": 0.0}

    def run(optimize, function):
        return optimize.minimize(function, np.zeros(150), method="L-BFGS-B", options=options)

    return run


def gradients(calls: int) -> Callable[..., Any]:
    """Return a fit by L-BFGS-B with gradients of 8 KB of so many calls."""
    options = {"maxfun": calls, "maxiter": calls, "ftol": 0.0, "gtol": 0.0}
    start = -1.2 + 0.13 * np.arange(1000) % 1.7

    def run(optimize, function):
        given = {"method": "L-BFGS-B", "jac": True, "options": options}
        return optimize.minimize(function, start, **given)

    return run


@dataclass
class Case:
    """A fit, and what was measured of it.

    Parameters
    ----------
    name : str
        As it is shown.
    run : callable
        Fits a function with a module like scipy.optimize.
    function : callable
        What is fitted.
    limit_us, limit_percent : float, optional
        What journalling may add to an evaluation, or to the fit.
    """

    name: str
    run: Callable[..., Any]
    function: Callable[..., Any]
    limit_us: float | None = None
    limit_percent: float | None = None
    calls: int = 0
    plain: list[float] = field(default_factory=list)
    ours: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    resumed: list[float] = field(default_factory=list)
    replay_us: list[float] = field(default_factory=list)
    answered: int = 0
    weight: float | None = None
    """Bytes on disk a call."""

    def added_us(self, mode: str) -> np.ndarray[Any, Any]:
        """Return the microseconds added to each evaluation, turn by turn."""
        return 1e6 * (np.array(self.ours[mode]) - self.plain) / self.calls

    def added_percent(self, mode: str) -> np.ndarray[Any, Any]:
        """Return what was added to the fit, turn by turn."""
        return 100.0 * (np.array(self.ours[mode]) / self.plain - 1.0)

    def met(self, mode: str) -> bool | None:
        """Whether the median is within the limit."""
        if self.limit_us is not None:
            return bool(np.median(self.added_us(mode)) <= self.limit_us)
        if self.limit_percent is not None:
            return bool(np.median(self.added_percent(mode)) <= self.limit_percent)
        return None


def cases(*, quick: bool) -> list[Case]:
    """Return all fits."""
    share = 3 if quick else 1
    found = [
        Case("cheap, Nelder-Mead", simplex(80_000 // share), squares, limit_us=1.5),
        Case("cheap, L-BFGS-B differences", differences(60_000 // share), springs, limit_us=1.5),
    ]
    found += [
        Case(f"{name}, Nelder-Mead", simplex(calls // share), taking(us, squares), None, 2.0)
        for name, us, calls in (("100 us", 100, 8000), ("1 ms", 1000, 1000), ("10 ms", 10000, 100))
    ]
    found += [
        Case(f"{name}, gradient 8 KB", gradients(calls // share), taking(us, rosen_both), None, 2.0)
        for name, us, calls in (("100 us", 100, 5000), ("1 ms", 1000, 1000))
    ]
    return found


# The measurements


def plainly(case: Case) -> tuple[float, Any]:
    """Return the seconds and the result of plain scipy."""
    begin = perf_counter()
    result = case.run(scipy.optimize, case.function)
    return perf_counter() - begin, result


def journalled(case: Case, store: Store, mode: str) -> tuple[float, Any]:
    """Return the seconds and the result of a fit that was never run before."""
    with using(store=store, hyper={"number": next(NUMBERS)}, journal=MODES[mode]):
        begin = perf_counter()
        result = case.run(warmstart.optimize, case.function)
        return perf_counter() - begin, result


def agree(case: Case, ours: Any, plain: Any) -> None:
    """Raise unless two results are equal to the last bit."""
    for name in ("x", "fun", "nit", "nfev", "status", "message"):
        if not np.array_equal(ours[name], plain[name]):
            raise DifferentError(f"{case.name}: {name} is {ours[name]}, not {plain[name]}")


def compare(case: Case, store: Store, repeats: int, order: random.Random) -> Iterator[None]:
    """Run a fit plain and journalled, in turn."""
    _, expected = plainly(case)
    case.calls = expected.nfev
    for mode in MODES:
        agree(case, journalled(case, store, mode)[1], expected)
    yield
    for _ in range(repeats):
        for way in order.sample(["plain", *MODES], 1 + len(MODES)):
            if way == "plain":
                case.plain.append(plainly(case)[0])
            else:
                seconds, result = journalled(case, store, way)
                case.ours[way].append(seconds)
                agree(case, result, expected)
        yield


def journals(folder: Path) -> dict[Path, int]:
    """Return the journals of a store and their bytes."""
    return {path: path.stat().st_size for path in folder.rglob("*.journal")}


def interrupt(case: Case, store: Store, folder: Path, repeats: int) -> Iterator[None]:
    """Interrupt a fit at its last evaluation, and run it again."""
    _, expected = plainly(case)
    for _ in range(repeats):
        bomb, before = Bomb(case.calls), journals(folder)
        function = bombed(case.function, bomb)
        number = {"number": next(NUMBERS)}
        with using(store=store, hyper=number, journal=True) as reports:
            try:
                case.run(warmstart.optimize, function)
            except KeyboardInterrupt:
                new = [size for path, size in journals(folder).items() if path not in before]
                case.weight = sum(new) / (case.calls - 1)
            begin = perf_counter()
            result = case.run(warmstart.optimize, function)
            case.resumed.append(perf_counter() - begin)
        agree(case, result, expected)
        report = reports[-1]
        case.answered = report.evaluations_saved
        if report.replay_seconds:
            case.replay_us.append(1e6 * report.replay_seconds / max(1, case.answered))
        yield


def hoard(calls: int, folder: str) -> None:
    """Fit with so many calls, and print the memory and the disk that it took."""
    run = simplex(calls)
    run(scipy.optimize, bombed(squares, Bomb()))
    if folder:
        with using(store=folder, journal=True):
            try:
                run(warmstart.optimize, bombed(squares, Bomb(calls)))
            except KeyboardInterrupt:
                weight = sum(journals(Path(folder)).values())
    else:
        weight = 0
        run(scipy.optimize, bombed(squares, Bomb()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak": peak * (1 if sys.platform == "darwin" else 1024), "weight": weight}))


def memory(calls: int, folder: Path) -> dict[str, float]:
    """Return the bytes of memory and of disk that so many calls take."""

    def of(place: str) -> dict[str, int]:
        command = [sys.executable, __file__, "--hoard", str(calls), "--folder", place]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(said)

    plain, ours = of(""), of(str(folder / "hoard"))
    return {
        "calls": calls,
        "memory": ours["peak"] - plain["peak"],
        "disk": ours["weight"],
    }


# The tables


def spread(values: Any, digits: int = 2) -> str:
    """Return the median and the 90th percentile as they are shown."""
    if not len(values):
        return ""
    return f"{np.median(values):,.{digits}f} ({np.percentile(values, 90):,.{digits}f})"


def cost_table(found: list[Case]) -> Table:
    """Return the table of what journalling adds."""
    table = Table(
        title="What journalling adds: median (p90)", title_justify="left", title_style="bold"
    )
    table.add_column("evaluation, optimizer", no_wrap=True)
    for name in ("calls", "plain s", "journal", "us a call", "%", "goal", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for case in found:
        goal = f"{case.limit_us:g} us" if case.limit_us else f"{case.limit_percent:g} %"
        for mode in MODES:
            first = mode == next(iter(MODES))
            table.add_row(
                case.name if first else "",
                f"{case.calls:,}" if first else "",
                f"{np.median(case.plain):.3f}" if first else "",
                mode,
                spread(case.added_us(mode)),
                spread(case.added_percent(mode)),
                goal,
                "[green]met" if case.met(mode) else "[red]missed",
            )
    return table


def replay_table(found: list[Case]) -> Table:
    """Return the table of what a replay takes."""
    table = Table(title="Replay: median (p90)", title_justify="left", title_style="bold")
    table.add_column("evaluation, optimizer", no_wrap=True)
    for name in ("answered", "us a call", "resumed s", "plain s", "of plain", "bytes a call"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in found:
        table.add_row(
            case.name,
            f"{case.answered:,}",
            spread(case.replay_us),
            spread(case.resumed, 3),
            f"{np.median(case.plain):.3f}",
            f"{100 * np.median(case.resumed) / np.median(case.plain):.0f} %",
            "" if case.weight is None else f"{case.weight:,.1f}",
        )
    return table


def row_of(case: Case) -> dict[str, Any]:
    """Return the figures of a case."""
    row: dict[str, Any] = {"case": case.name, "calls": case.calls, "repeats": len(case.plain)}
    row["plain_s"] = float(np.median(case.plain))
    for mode in MODES:
        for name, values in (("us", case.added_us(mode)), ("percent", case.added_percent(mode))):
            row[f"{mode}_added_{name}"] = [float(np.percentile(values, p)) for p in (10, 50, 90)]
        row[f"{mode}_met"] = case.met(mode)
    row["answered"], row["bytes_a_call"] = case.answered, case.weight
    row["resumed_s"] = float(np.median(case.resumed))
    row["replay_us"] = float(np.median(case.replay_us)) if case.replay_us else None
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--repeats", type=int, help="by default 15, or 3 with --quick")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--folder", help="on which disk to store, by default /tmp")
    parser.add_argument("--hoard", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hoard:
        hoard(given.hoard, given.folder)
        return 0
    repeats = given.repeats or (3 if given.quick else 15)
    console = Console(width=None if sys.stdout.isatty() else 110)
    about = machine()
    console.print(", ".join(f"{name} {value or 'no'}" for name, value in about.items()))
    if about["load"] > 0.5:
        console.print("[yellow]the machine is busy: trust the medians, not the tails")
    found = [case for case in cases(quick=given.quick) if given.only in case.name]
    order, again = random.Random(given.seed), max(2, repeats // 3)
    # The bar is drawn between fits only: by itself it would draw from a thread, into the timing.
    quiet = not sys.stderr.isatty()
    showing = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as name,
        Progress(console=showing, auto_refresh=False, transient=True, disable=quiet) as bar,
    ):
        folder = Path(name)
        task = bar.add_task("fits", total=len(found) * (1 + repeats + again))
        with Store(folder / "store") as store:
            try:
                for case in found:
                    for _ in itertools.chain(
                        compare(case, store, repeats, order),
                        interrupt(case, store, folder / "store", again),
                    ):
                        bar.update(task, advance=1, refresh=True)
            except DifferentError as error:
                console.print(f"[red]{error}")
                return 1
        hoarded = memory(100_000 if given.quick else 1_000_000, folder)
    console.print(cost_table(found))
    console.print(replay_table(found))
    console.print(
        f"{hoarded['calls']:,} calls recorded in one fit: {hoarded['memory'] / 1e6:,.1f} MB more "
        f"memory than plain scipy at the peak, {hoarded['disk'] / 1e6:,.1f} MB on disk"
    )
    if given.json:
        figures = {"machine": about, "rows": [row_of(case) for case in found], "hoard": hoarded}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
