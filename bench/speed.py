"""How fast it is: one table of all goals, beside the peers, and a chart.

Run ``python bench/speed.py`` (a quarter of an hour), or with ``--quick`` (one minute, for CI:
fails only if a result differs from plain scipy's, a remembered fit is run again or a write is
lost, never on a time). ``--json FILE`` writes all figures, ``--plot FILE`` the chart (SVG or
PNG, needs matplotlib), ``--folder`` chooses the disk, ``--only WORD`` runs the parts whose name
begins so.

How to read it: microseconds; "vs ours" is that contender's median over warmstart's, so above
1 warmstart is faster, and what is faster than warmstart is red and listed again at the end.
The parts are ``fits`` (see `hits.py`), ``hashing``, ``lookups``, ``recorder`` (two rows of
`recorder.py`), ``processes`` (that write at the same time), ``import`` and ``disk``.
"""

from __future__ import annotations

# isort: off
from timing import Case, Contender, Fact, Goal, as_json, goal_table, losers, machine, race, show
import hits
import recorder
# isort: on

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from warmstart import FitSpec, Store, arrays

Part = Callable[[Path, bool], Iterator[Case | Fact]]


# Hashing


def _alone(value: Any) -> bytes:
    before, arrays._THREADS = arrays._THREADS, 1
    try:
        return arrays._digest(value)
    finally:
        arrays._THREADS = before


def hashing(_folder: Path, quick: bool) -> Iterator[Case]:
    """Time the digest of arrays that were not seen before, against reading them once."""
    rounds = 2 if quick else 10
    wide = np.random.default_rng(1).random((2500, 10000))
    flat, strided = wide[:, :5000].copy(), wide[:, ::2]
    fortran = np.asfortranarray(flat)
    case = Case(
        "digest of 100 MB, one thread",
        [
            Contender("C", _alone, lambda: (flat,)),
            Contender("np.sum", flat.sum),
            Contender("Fortran", _alone, lambda: (fortran,)),
            Contender("strided", _alone, lambda: (strided,)),
            Contender("seen before", arrays.digest_array, lambda: (flat,)),
        ],
        [
            Goal("np.sum", 3, "within"),
            Goal("C", 1.1, "within", "Fortran"),
            Goal("C", 1.5, "within", "strided"),
        ],
    )
    race(case, rounds=rounds)
    yield case
    large = np.ones((1 << 27) // (4 if quick else 1))
    case = Case(
        f"digest of {large.nbytes >> 20:,} MiB, {arrays._THREADS} threads",
        [
            Contender("warmstart", arrays._digest, lambda: (large,)),
            Contender("np.sum", large.sum),
        ],
        [Goal("np.sum", 1.8, "within")],
    )
    race(case, rounds=rounds)
    yield case


# Look-ups


def lookups(folder: Path, quick: bool) -> Iterator[Case | Fact]:
    """Time a look-up in stores of more and more entries."""
    found = []
    for number in (3, 4) if quick else (3, 5, 6):
        case, depth = hits.lookups(10**number, folder / f"lookups{number}")
        found.append((case.contenders[0].at(50), depth))
        yield case
    (first, shallow), (last, deep) = found[0], found[-1]
    yield Fact("look-up, last store over the first", last / first, "x", deep / shallow)


# The recorder


def recording(folder: Path, quick: bool) -> Iterator[Fact]:
    """Measure what watching adds to an evaluation, and what a journal weighs."""
    order = random.Random(0)
    wanted = {case.name: case for case in recorder.cases(quick=quick)}
    cheap, slow = wanted["cheap, Nelder-Mead"], wanted["100 us, Nelder-Mead"]
    with Store(folder / "recorder") as store:
        for case in (cheap, slow):
            for _ in recorder.compare(case, store, 3 if quick else 11, order):
                pass
        for _ in recorder.interrupt(cheap, store, folder / "recorder", 1):
            pass
    yield Fact("recorder, cheap evaluation", float(np.median(cheap.added_us("default"))), "us", 1.5)
    added = float(np.median(slow.added_percent("default")))
    yield Fact("recorder, evaluation of 100 us", added, "%", 2.0)
    raw = 8 * 11  # the point and the value
    yield Fact("journal, of the bytes of x and f", 100.0 * cheap.weight / raw, "%", 60.0)


# Processes


def _write(folder: str, seconds: float, number: int, begin: Any, said: Any) -> None:
    store, data = Store(folder), b"x" * 1024
    store.backend.size()
    begin.wait()
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        spec = FitSpec(model="bench", hyper={"process": number, "fit": done})
        done += store.session(spec).finalize(data, objective=1.0)
    said.put(done)


class LostError(Exception):
    """An acknowledged write is not there."""


def processes(folder: Path, quick: bool) -> Iterator[Fact]:
    """Count what several processes write to one store at the same time."""
    context = multiprocessing.get_context("spawn")
    rates = {}
    for number in (1, 4, 8):
        place = str(folder / f"processes{number}")
        said, begin = context.Queue(), context.Barrier(number)
        seconds = 0.5 if quick else 4.0
        workers = [
            context.Process(target=_write, args=(place, seconds, n, begin, said))
            for n in range(number)
        ]
        for worker in workers:
            worker.start()
        done = [said.get() for _ in workers]
        for worker in workers:
            worker.join()
        rates[number] = sum(done) / seconds
        with Store(place) as store:
            kept = len(list(store.keys()))
        if kept != sum(done):
            raise LostError(f"{number} processes wrote {sum(done)} finals, {kept} are there")
        if number == 1:
            yield Fact("finals of one process", rates[1], "a second", 0.0, at_least=True)
        else:
            share = 100.0 * rates[number] / rates[1]
            yield Fact(f"{number} processes, of one's rate", share, "%", 90.0, at_least=True)
            fair = min(done) / max(done)
            yield Fact(f"{number} processes, slowest/fastest", fair, "", 0.7, at_least=True)


# The rest


_IMPORT = """
import time
import scipy.optimize
begin = time.process_time()
import warmstart
print(time.process_time() - begin)
"""


def importing(_folder: Path, quick: bool) -> Iterator[Fact]:
    """Measure the processor time that importing warmstart adds to importing scipy.optimize."""
    command = [sys.executable, "-c", _IMPORT]
    with tempfile.TemporaryDirectory() as kept:  # bytecode, as an installed package has it
        place = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        place["PYTHONPYCACHEPREFIX"] = kept
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True, env=place)
            for _ in range(4 if quick else 16)
        ]
    took = median(float(run.stdout) for run in runs[1:])
    yield Fact("import warmstart after scipy.optimize", 1e3 * took, "ms", 60.0)


def disk(folder: Path, quick: bool) -> Iterator[Fact]:
    """Measure the bytes that a small fit leaves."""
    number = 300 if quick else 3000
    weight = np.linspace(1.0, 2.0, 10)
    with Store(folder / "disk") as store, hits.using(store=store):
        store.flush()
        before = store.backend.size()
        for n in range(number):
            hits.warm_small(np.full(10, 0.5 + 1e-7 * n), weight)
        store.flush()
        each = (store.backend.size() - before) / number
    yield Fact("disk, each small final", each / 1000.0, "KB", 1.2)


def _fits(folder: Path, quick: bool) -> Iterator[Case]:
    yield from hits.all_cases(folder, quick=quick)


PARTS: dict[str, Part] = {
    "fits": _fits,
    "hashing": hashing,
    "lookups": lookups,
    "recorder": recording,
    "processes": processes,
    "import": importing,
    "disk": disk,
}


def plot(cases: list[Case], path: Path) -> None:
    """Draw the medians and 99th percentiles of all cases that have peers."""
    import matplotlib as mpl  # noqa: PLC0415 (only this needs it)

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    shown = [case for case in cases if any(c.name == "joblib.Memory" for c in case.contenders)]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.85 * len(shown)), layout="constrained")
    names = dict.fromkeys(c.name for case in shown for c in case.contenders)
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    for row, case in enumerate(shown):
        for i, contender in enumerate(case.contenders):
            height = row + 0.8 * i / len(case.contenders)
            axes.plot(
                [contender.at(50), contender.at(99)], [height, height], color=colors[contender.name]
            )
            axes.plot(contender.at(50), height, "o", markersize=5, color=colors[contender.name])
    for name, color in colors.items():
        axes.plot([], [], "o-", color=color, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds: the median, and a line to the 99th percentile")
    axes.set_yticks([row + 0.3 for row in range(len(shown))], [case.name for case in shown])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.savefig(path)


def main() -> int:
    """Run all parts; 1 if a result was wrong or a write lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute, for CI")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them")
    parser.add_argument("--folder", type=Path, help="on which disk to store, by default /tmp")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    about = machine()
    console.print(
        ", ".join(f"{name} {value or 'no'}" for name, value in about.items()), soft_wrap=True
    )
    if about["load"] > 0.5:
        console.print("[yellow]the machine is busy: trust the ratios more than the times")
    cases: list[Case] = []
    facts: list[Fact] = []
    try:
        with tempfile.TemporaryDirectory(dir=given.folder, ignore_cleanup_errors=True) as folder:
            for name, part in PARTS.items():
                if given.only not in {None, name}:
                    continue
                for found in part(Path(folder), given.quick):
                    if isinstance(found, Fact):
                        facts.append(found)
                    else:
                        show(found, console)
                        cases.append(found)
    except (hits.DifferentError, recorder.DifferentError, LostError) as error:
        console.print(f"[red]{error}")
        return 1
    console.print(goal_table(cases, facts))
    lost = losers(cases)
    console.print("Faster than warmstart:" if lost else "Nothing was faster than warmstart.")
    for line in lost:
        console.print(f"  [red]{line}", soft_wrap=True)
    if given.json:
        figures = json.dumps(as_json(cases, facts), indent=2)
        given.json.write_text(figures + "\n", encoding="utf-8")
    if given.plot:
        plot(cases, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
