"""What a key costs: warmstart and ``joblib.hash`` in one run, taken in turn.

Run as ``python bench/fingerprint.py``; needs joblib. Times are medians and 90th percentiles.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import joblib
import numpy as np
from rich.console import Console
from rich.table import Table

from warmstart.fingerprint import Fingerprinter, FitSpec

SCALE = 2.0


def leaf(x):
    return x * SCALE


def helper(x):
    return leaf(x) + np.exp(-x)


def objective(x):
    return float(np.sum(helper(x) ** 2 + leaf(x)))


def key(value: Any) -> bytes:
    """Return the key of one value."""
    return bytes(Fingerprinter().absorb("value", value).digest())


def spec(x0: Any) -> FitSpec:
    """Return what a small ``minimize(objective, x0, method="BFGS")`` is."""
    return FitSpec(
        model={"fun": objective},
        data={"args": ()},
        settings={"method": "BFGS", "x0": x0, "bounds": None, "options": {"maxiter": 100}},
    )


def in_turn(calls: list[Callable[[], Any]], seconds: float = 1.0) -> list[tuple[float, float]]:
    """Time calls one after another, again and again: median and 90th percentile in seconds."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[0]) < 5:
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [(median(taken), quantiles(taken, n=10)[-1]) for taken in times]


def peak(call: Callable[[], Any]) -> float:
    """Return the most memory that a call took at once, in MiB."""
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def main() -> None:
    """Print the tables."""
    rng = np.random.default_rng(1)
    settings = {"method": "L-BFGS-B", "tol": 1e-8, "maxiter": 100, "a": 1, "b": 2.0, "c": "x",
                "d": None, "e": True, "f": (0, 1), "g": 3}  # fmt: skip
    x0 = rng.random(10)
    large = rng.random((2500, 5000))
    cases: dict[str, Any] = {
        "10 floats + 10 settings": (x0, settings),
        "1 KB": rng.random(128),
        "1 MB": rng.random(131072),
        "100 MB, C": large,
        "100 MB, Fortran": np.asfortranarray(large),
        "100 MB, 2-D, every second column": rng.random((2500, 10000))[:, ::2],
        "function with 2 helpers": objective,
    }
    console = Console()
    table = Table(
        title="Key of a value", caption="goals: 4 times at the top, 10 times at 100 MB, C"
    )
    for column in ("value", "warmstart", "p90", "joblib.hash", "p90", "times faster"):
        table.add_column(column, justify="left" if column == "value" else "right")
    for name, value in cases.items():
        ours, theirs = in_turn([lambda v=value: key(v), lambda v=value: joblib.hash(v)])
        table.add_row(name, *map(_time, (*ours, *theirs)), f"{theirs[0] / ours[0]:.1f}")
    [ours] = in_turn([lambda: spec(x0)])
    table.add_row("FitSpec of a small minimize", *map(_time, ours), "", "", "")
    console.print(table)
    console.print(
        "joblib.hash knows a function by its name and text alone: helpers do not count there."
    )
    table = Table(title="Most memory at once while hashing 200 MB")
    table.add_column("layout")
    table.add_column("MiB", justify="right")
    table.add_column("joblib.hash", justify="right")
    array = rng.random((5000, 5000))
    for name, value in {
        "C": array,
        "Fortran": array.T,
        "strided": rng.random((5000, 10000))[:, ::2],
    }.items():
        table.add_row(name, *(f"{peak(lambda f=f, v=value: f(v)):.1f}" for f in (key, joblib.hash)))
    console.print(table)


if __name__ == "__main__":
    main()
