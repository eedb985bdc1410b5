"""scipy's own tests of scipy.optimize, as its wheel ships them, with the patch installed.

Run ``python bench/scipy_tests.py`` (some ten minutes on two cores), or with ``--quick`` (a
selection of modules, for CI). It fails, exit code 1, if the outcome of one test differs from
that under plain scipy and the difference is not named in ``DIFFERENCES``.

Each module runs in a child process, three times:

- *plain*: scipy alone;
- *cold*: with ``warmstart.patch``, on an empty store, every fit recorded from its first
  evaluation;
- *warm*: every fit that comes to its end is answered twice more, from the store, and by a replay
  of its journal from end to end. Both must equal the first answer bit for bit, and the test goes
  on with the replayed one.

In *warm* the user's functions are called once, by the first answer, as in plain scipy: so tests
that count calls see what they expect. (A second run of all tests on the same store would return
results without calling the objectives that the tests count.) A test that differs is run again
under plain scipy, since some depend on the weather.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.optimize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PHASES = ("plain", "cold", "warm")
QUICK = r"test_(slsqp|cobyla|tnc|zeros|nonlin|minpack|nnls|lsq_linear|direct|chandrupatla|milp)"
NOT_OURS = re.compile(
    r"test_(cython_optimize|linesearch|trustregion_krylov|_numdiff|extending|_root_utils)"
)
"""Modules whose subject is not a function that remembers."""

DIFFERENCES = {
    r"TestLM::test_nfev": "fits twice, with max_nfev=1 and then 2, and counts its calls: the "
    "second fit takes the first one's evaluation from its journal",
    r"test_pass_accept_test": "its accept_test answers by the number of its own calls: done again "
    "in the same process, it is not the same",
    r"test_pass_takestep": "scipy changes the step size of the object that it is given: done again "
    "in the same process, it is not the same",
    r"TestCurveFit::test_gh4555$": "the last bits, and then the whole way, of plain scipy's fit "
    "depend on where in memory its arrays lie: in one process, 154 and 46 of 200 runs",
}
"""Tests whose outcome differs, as regular expressions, and the reason."""

ORDER = "WARMSTART_SCIPY_TESTS"
"""The variable of the environment by which a child is told what to do."""


class Plugin:
    """Runs in the child: installs the patch, and notes the outcome of every test."""

    def __init__(self, order: dict[str, str]) -> None:
        """Take the phase, the folder of the store, and the file for the outcomes."""
        self.order = order
        self.outcomes: dict[str, str] = {}
        self.messages: dict[str, str] = {}
        self.fits: Counter[str] = Counter()
        self.test = ""
        self.patch: Any = None
        self.apart = contextlib.ExitStack()

    def pytest_configure(self) -> None:
        """Install the patch, before the tests import what they test."""
        if self.order["phase"] != "plain":
            from warmstart import Store, patch  # noqa: PLC0415 (plain is to be plain)

            if self.order["phase"] == "warm":
                answer_twice(self)
            self.patch = patch(store=Store(self.order["store"]), journal=True).start()
            know_redirected()

    def pytest_unconfigure(self) -> None:
        """Write down what was seen."""
        if self.patch is not None:
            self.apart.close()
            self.patch.stop()
        found = {"outcomes": self.outcomes, "messages": self.messages, "fits": self.fits}
        Path(self.order["out"]).write_text(json.dumps(found), "utf-8")

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Note which test runs; nothing is remembered from one to the next."""
        self.test = item.nodeid
        if self.patch is not None:
            from warmstart import using  # noqa: PLC0415

            self.apart.close()
            self.apart.enter_context(using(hyper={"test": item.nodeid}))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note an outcome; one of setup or teardown only if it is not well."""
        if self.patch is not None and report.when == "call":
            self.fits.update(fit.source for fit in self.patch.fits)
            self.patch.fits.clear()
        if report.when != "call" and report.outcome == "passed":
            return
        xfail = hasattr(report, "wasxfail")
        outcome = {"skipped": "xfailed", "passed": "xpassed"}[report.outcome] if xfail else ""
        self.outcomes[report.nodeid] = outcome or report.outcome
        if report.outcome == "failed":
            self.messages[report.nodeid] = report.longreprtext[-2000:]


def know_redirected() -> None:
    """Enter the redirected functions where scipy's tests look up what theirs can do."""
    from scipy._lib import _array_api  # noqa: PLC0415

    table = getattr(_array_api, "xp_capabilities_table", {})
    for module in (scipy.optimize, scipy.optimize.elementwise):
        for function in vars(module).values():
            plain = getattr(function, "__wrapped__", None)
            if plain is not None and plain in table:
                table[function] = table[plain]


def answer_twice(plugin: Plugin) -> None:
    """Make every fit that comes to its end be answered from the store, and by a replay."""
    from warmstart import wrapping  # noqa: PLC0415
    from warmstart.journal import Journal  # noqa: PLC0415
    from warmstart.randomness import restore, states  # noqa: PLC0415
    from warmstart.recording import Recorder  # noqa: PLC0415

    first = wrapping._Run

    class Replayed(first):  # type: ignore[misc,valid-type]
        """A run that is answered by one journal, whatever its key is by now."""

        journal: Journal

        def _find_journal(self) -> Journal:
            return self.journal

    class Twice(first):  # type: ignore[misc,valid-type]
        """A run that is repeated in two ways."""

        def go(self) -> Any:
            bound = self._call.bound
            randoms = [v for v in bound.values() if states([v])] + [np.random.mtrand._rand]
            before = states(randoms)
            result = super().go()
            after = states(randoms)
            key, store = self._session.key, self._store
            entry = store.best(key, producer=self._session.producer)
            if entry is None or not wrapping._is_ours(entry) or entry.run != self._session.run_id:
                return result
            plugin.fits["answered from the store"] += 1
            self.compare(result, wrapping._unpack(entry.payload["result"]), entry.dropped)
            restore(randoms, before)
            again = self.replay() if self._call.surface.function else None
            restore(randoms, after)
            if again is None:
                return result
            plugin.fits["replayed"] += 1
            self.compare(result, again, ())
            return again

        def replay(self) -> Any:
            """Return what the journal leads to, without one real evaluation."""
            shelf, run = self._store.journals, self._session.run_id
            names = [path.name for path in shelf.paths() if run in path.name]
            if not names:
                return None  # the functions were never called, or not as recorded
            journal = shelf._load(self._fit, names[0])
            options = {"callbacks": "skip", "journal": True, "refit": False}
            call = self._call._replace(options=wrapping.Warm(store=self._store, **options))
            session = wrapping.Session(self._store, self._spec, producer=self._session.producer)
            run = Replayed(call, session, self._spec, None)
            run.journal = journal
            probe, Recorder._probe = Recorder._probe, lambda *_: None
            try:
                return run.go()
            finally:
                Recorder._probe = probe

        @staticmethod
        def compare(one: Any, other: Any, dropped: tuple[str, ...]) -> None:
            """Count an answer that is not the first one, bit for bit."""
            if not dropped and (found := list(different(one, other))):
                plugin.fits["not the same"] += 1
                plugin.messages.setdefault(plugin.test, f"not the same: {found[0]}")

    wrapping._Run = Twice


def different(one: Any, other: Any, where: str = "result") -> Iterator[str]:
    """Yield the places in which two results differ by a bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            yield f"{where}: {list(one)} and {list(other)}"
            return
        unset = type(one).__name__ == "RootResults" and one["function_calls"] <= 2
        for name in one:
            # The time it took; and memory that was never written (scipy#25955).
            if name != "execution_time" and not (unset and name == "iterations"):
                yield from different(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (tuple, list)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} items"
            return
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from different(a, b, f"{where}[{i}]")
    elif isinstance(one, (np.ndarray, np.generic, float, complex)):
        a, b = np.asarray(one), np.asarray(other)
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"{where}: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        elif not a.dtype.hasobject and a.tobytes() != b.tobytes():
            yield f"{where}: {one!r:.100} and {other!r:.100}"
    elif isinstance(one, (int, str, bool, type(None))) and one != other:
        yield f"{where}: {one!r:.100} and {other!r:.100}"


# The parent


def run_module(module: str, phase: str, folder: Path, tests: list[str] | None = None) -> Any:
    """Run one module's tests in a child; returns outcomes, messages, fits and seconds."""
    place = folder / f"{module}.{phase}{'.again' if tests else ''}"
    place.mkdir()
    order = {"phase": phase, "store": str(place / "store"), "out": str(place / "found.json")}
    path = Path(scipy.optimize.__file__).parent / "tests" / f"{module}.py"
    wanted = [f"{path}::{test.partition('::')[2]}" for test in tests] if tests else [str(path)]
    command = [sys.executable, __file__, *wanted]
    start = time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, ORDER: json.dumps(order), "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
    seconds = time.perf_counter() - start
    try:
        found = json.loads((place / "found.json").read_text("utf-8"))
    except FileNotFoundError:
        text = (done.stdout + done.stderr)[-2000:]
        found = {"outcomes": {module: "died"}, "messages": {module: text}, "fits": {}}
    return {"module": module, "phase": phase, "seconds": seconds, **found}


def child() -> int:
    """Run pytest with the plugin."""
    import pytest  # noqa: PLC0415

    plugin = Plugin(json.loads(os.environ[ORDER]))
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=short", "-o", "addopts="]
    arguments += ["--confcutdir", str(Path(scipy.__file__).parent)]  # its fixtures are there
    return int(pytest.main([*arguments, *sys.argv[1:]], plugins=[plugin]))


def judge(found: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the tests that differ from plain scipy, and how many were plain's own moods."""
    plain = {run["module"]: run for run in found if run["phase"] == "plain"}
    rows, moods = [], 0
    for run in found:
        if run["phase"] == "plain":
            continue
        expected = plain[run["module"]]["outcomes"]
        tests = expected.keys() | run["outcomes"].keys()
        differing = [t for t in sorted(tests) if expected.get(t) != run["outcomes"].get(t)]
        wrong = [t for t in run["messages"] if run["messages"][t].startswith("not the same")]
        again = {}
        if retried := [t for t in differing if "::" in t]:
            place = folder / f"again.{run['phase']}"
            place.mkdir(exist_ok=True)
            again = run_module(run["module"], "plain", place, retried)["outcomes"]
        for test in dict.fromkeys(differing + wrong):
            if test not in wrong and again.get(test, "?") == run["outcomes"].get(test):
                moods += 1
                continue
            reasons = [why for pattern, why in DIFFERENCES.items() if re.search(pattern, test)]
            rows.append(
                {
                    "phase": run["phase"],
                    "test": test,
                    "plain": expected.get(test),
                    "now": run["outcomes"].get(test),
                    "reason": reasons[0] if reasons else None,
                    "message": run["messages"].get(test, "")[-600:],
                }
            )
    return rows, moods


def main() -> int:
    """Run the phases, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a selection of modules")
    parser.add_argument("--modules", default="", help="those that match a regular expression")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="FILE", help="write all outcomes")
    options = parser.parse_args()
    wanted = re.compile(options.modules or (QUICK if options.quick else ""))
    tests = Path(scipy.optimize.__file__).parent / "tests"
    modules = [p.stem for p in sorted(tests.glob("test_*.py"))]
    modules = [m for m in modules if wanted.search(m) and not NOT_OURS.search(m)]
    console, found = Console(width=None if sys.stdout.isatty() else 110), []
    with (
        tempfile.TemporaryDirectory(prefix="warmstart-") as name,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as bar,
    ):
        task = bar.add_task("scipy's tests", total=len(modules) * len(PHASES))
        runs = [
            pool.submit(run_module, module, phase, Path(name))
            for phase in PHASES
            for module in modules
        ]
        for run in concurrent.futures.as_completed(runs):
            found.append(run.result())
            bar.advance(task)
        rows, moods = judge(found, Path(name))
    show(console, found, rows, moods, len(modules))
    if options.json:
        Path(options.json).write_text(json.dumps({"runs": found, "differences": rows}), "utf-8")
    unknown = [row for row in rows if row["reason"] is None]
    return 1 if unknown or any(run["outcomes"].get(run["module"]) for run in found) else 0


def show(
    console: Console,
    found: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    moods: int,
    modules: int,
) -> None:
    """Print a line a phase, then every test that differs."""
    table = Table(title=f"scipy {scipy.__version__}: its own tests, {modules} modules")
    for heading in ("phase", "passed", "failed", "skipped", "xfailed", "differ", "fits", "s"):
        table.add_column(heading, justify="left" if heading in {"phase", "fits"} else "right")
    for phase in PHASES:
        of_phase = [run for run in found if run["phase"] == phase]
        outcomes = Counter(o for run in of_phase for o in run["outcomes"].values())
        fits: Counter[str] = Counter()
        for run in of_phase:
            fits.update(run["fits"])
        table.add_row(
            phase,
            *(f"{outcomes[name]:,}" for name in ("passed", "failed", "skipped")),
            f"{outcomes['xfailed'] + outcomes['xpassed']:,}",
            "" if phase == "plain" else f"{sum(row['phase'] == phase for row in rows):,}",
            ", ".join(f"{count:,} {source}" for source, count in fits.most_common()),
            f"{sum(run['seconds'] for run in of_phase):.0f}",
        )
    console.print(table)
    if moods:
        console.print(f"{moods} more differ from one run of plain scipy to the next")
    for row in rows:
        why = row["reason"] or "NOT EXPLAINED"
        console.print(f"{row['phase']}: {row['test']}: {row['plain']}, now {row['now']}: {why}")
        if row["reason"] is None:
            console.print(row["message"], markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(child() if ORDER in os.environ else main())
