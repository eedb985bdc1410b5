"""What it costs that every fit is a run: whole tiny fits, slow fits, and points of series.

Each is measured with tracking and with its parts taken out, in turn, in one process. ``--quick``
is the short form; it fails only if something that was tracked is not read back.
"""

from __future__ import annotations

# isort: off
from timing import machine
# isort: on

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from warmstart import RunInfo, Store, optimize, using
from warmstart.recording import Recorder
from warmstart.session import Session
from warmstart.trace import Trace


def bare(session: Session, status: str, error: str | None = None) -> RunInfo:
    """Return what was known of a run before there was tracking."""
    ended = None if status == "running" else session.store.clock()
    return RunInfo(session.run_id, str(session.key), status, 0.0, ended, error)


def _nothing(*_: object) -> dict[bytes, bytes]:
    return {}


@contextmanager
def untracked() -> Iterator[None]:
    """Take the parts out."""
    with (
        mock.patch.object(Trace, "add", _nothing),
        mock.patch.object(Recorder, "traced", _nothing),
        mock.patch.object(Store, "learn", _nothing),
        mock.patch.object(Session, "_info", bare),
    ):
        yield


@contextmanager
def tracked() -> Iterator[None]:
    """Leave everything as it is."""
    yield


def decay(t, a, b):
    """Return an exponential decay."""
    return a * np.exp(-b * t)


RNG = np.random.default_rng(0)


def tiny(store: Store, number: int) -> list[float]:
    """Return the seconds of so many fits of some 300 us each, all of them misses."""
    t, rng = np.linspace(0.0, 3.0, 50), RNG
    base = decay(t, 2.0, 1.3)
    took = []
    with using(store=store):
        for _ in range(number):
            y = base + 0.05 * rng.normal(size=50)
            begin = time.perf_counter()
            optimize.curve_fit(decay, t, y)
            took.append(time.perf_counter() - begin)
    return took


def slow(store: Store, evaluations: int) -> float:
    """Return the seconds of a fit with evaluations of one millisecond each."""

    def function(x):
        until = time.perf_counter() + 1e-3
        while time.perf_counter() < until:
            pass
        return float(np.sum((x - 1.0) ** 2))

    options = {"maxfev": evaluations, "xatol": 0.0, "fatol": 0.0, "maxiter": 10**6}
    begin = time.perf_counter()
    with using(store=store, refit=True):
        optimize.minimize(function, np.zeros(6), method="Nelder-Mead", options=options)
    return time.perf_counter() - begin


def main() -> int:
    """Print the table; 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short form")
    quick = parser.parse_args().quick
    rounds, number, evaluations, points = (2, 60, 200, 20_000) if quick else (8, 300, 2000, 500_000)
    console = Console()
    console.print(machine())
    table = Table(title="Tracking", title_justify="left")
    for name in ("what", "with", "without", "added", "goal"):
        table.add_column(name, justify="left" if name == "what" else "right")
    with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        tiny(store, 20)
        times: dict[str, list[float]] = {"with": [], "without": []}
        whole: dict[str, list[float]] = {"with": [], "without": []}
        ways = (("with", tracked), ("without", untracked))
        for _ in range(rounds):
            for _ in range(number // 5):  # in short turns: a slow phase of the machine hits both
                for name, way in ways:
                    with way():
                        times[name] += tiny(store, 5)
            for name, way in ways:
                with way():
                    whole[name].append(slow(store, evaluations))
        a, b = np.median(times["with"]) * 1e6, np.median(times["without"]) * 1e6
        table.add_row("tiny fit, a miss (us)", f"{a:.0f}", f"{b:.0f}", f"{a - b:.0f}", "60")
        a, b = np.median(whole["with"]), np.median(whole["without"])
        table.add_row(
            "1,000 evaluations/s (s)", f"{a:.3f}", f"{b:.3f}", f"{100 * (a / b - 1):.2f} %", "2 %"
        )
        run = store.run().start()
        begin = time.perf_counter()
        for step in range(points):
            run.log_metric("loss", 1.0 / (step + 1), step=step)
        run.complete()
        rate = points / (time.perf_counter() - begin)
        table.add_row("log_metric (1/s)", f"{rate:,.0f}", "", "", "100,000")
        lost = len(run.metrics("loss").values) != points
        lost |= len(store.runs()) < 20 + rounds * number
        begin = time.perf_counter()
        found = store.runs("evaluations >= 1")
        table.add_row(f"search of {len(found):,} runs (s)", f"{time.perf_counter() - begin:.3f}")
        console.print(table)
        lost |= not found
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
