"""What a hit, a first fit and a checkpoint cost, beside the peers and beside fitting again.

Run ``python bench/hits.py`` (a minute), or with ``--quick`` (under 20 s, for CI: fails only
if a result differs from plain scipy's or a remembered fit is run again, never on a time).
``--json FILE`` writes all figures, ``--folder`` chooses the disk.

Measured are

- hits of a small ``minimize`` (10 parameters, L-BFGS-B; the same call again and again), of one
  whose objective reads a global array, of 300 different ones in turn, of one with 10 MB of data
  in ``args`` (a new array object each time, and the same one), and of a ``curve_fit`` (200
  points, 3 parameters): what it takes to say that this fit is known and to return its result;
- a miss: the small fit with a new start each time, so that it is fitted and stored;
- a session's operations, and look-ups in a store with many entries.

How to read it: microseconds; "vs ours" is that contender's median over warmstart's, so above
1 warmstart is faster, and what is faster than warmstart is red and listed again at the end. Each
peer wraps a module-level function that calls scipy, stores in a fresh folder of its own on the
same disk, and returned the same result as plain scipy before it was timed. What a peer's key does
not cover (helpers and globals of the objective; joblib sees the function's own source, diskcache
and cachier only its name) makes it faster, not better.
"""

from __future__ import annotations

# isort: off
from timing import Case, Contender, Goal, as_json, goal_table, installed, losers, machine
from timing import race, show
# isort: on

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from rich.console import Console

from warmstart import FitSpec, Session, Store, optimize, using
from warmstart.backends import Batch
from warmstart.record import Entry, EntryKind

TARGET = np.linspace(-1.0, 1.0, 10)
FITS = [0]
"""How many fits the peers' functions have run; a hit runs none."""


# The fits


def bowl(x, weight):
    return float(np.sum(weight * (x - 0.7) ** 2 + 0.1 * (x + 0.2) ** 4))


def bowl_around(x, weight):
    return float(np.sum(weight * (x - TARGET) ** 2 + 0.1 * (x - TARGET) ** 4))


def logistic(w, rows):
    z = rows @ w
    p = 1.0 / (1.0 + np.exp(-z))
    value = float(np.mean(np.logaddexp(0.0, z)) - z[: z.size // 2].sum() / z.size)
    gradient = p @ rows - rows[: z.size // 2].sum(axis=0)
    return value + 0.5e-2 * float(w @ w), gradient / z.size + 1e-2 * w


def decay(t, a, b, c):
    return a * np.exp(-b * t) + c


def fit_small(x0, weight):
    FITS[0] += 1
    return scipy.optimize.minimize(bowl, x0, args=(weight,), method="L-BFGS-B")


def fit_around(x0, weight):
    FITS[0] += 1
    return scipy.optimize.minimize(bowl_around, x0, args=(weight,), method="L-BFGS-B")


def fit_large(x0, rows):
    FITS[0] += 1
    return scipy.optimize.minimize(logistic, x0, args=(rows,), method="L-BFGS-B", jac=True)


def fit_curve(t, y, p0):
    FITS[0] += 1
    return scipy.optimize.curve_fit(decay, t, y, p0=p0)


def warm_small(x0, weight):
    return optimize.minimize(bowl, x0, args=(weight,), method="L-BFGS-B")


def warm_around(x0, weight):
    return optimize.minimize(bowl_around, x0, args=(weight,), method="L-BFGS-B")


def warm_large(x0, rows):
    return optimize.minimize(logistic, x0, args=(rows,), method="L-BFGS-B", jac=True)


def warm_curve(t, y, p0):
    return optimize.curve_fit(decay, t, y, p0=p0)


# The peers


def peers(fit: Callable[..., Any], folder: Path, stack: ExitStack) -> dict[str, Callable[..., Any]]:
    """Return a function as each installed peer remembers it."""
    wrapped: dict[str, Callable[..., Any]] = {}
    if installed("joblib"):
        import joblib  # noqa: PLC0415

        wrapped["joblib.Memory"] = joblib.Memory(folder / "joblib", verbose=0).cache(fit)
    if installed("diskcache"):
        import diskcache  # noqa: PLC0415

        cache = stack.enter_context(diskcache.Cache(str(folder / "diskcache")))
        fanout = stack.enter_context(diskcache.FanoutCache(str(folder / "fanout")))
        wrapped["diskcache.memoize"] = cache.memoize()(fit)
        wrapped["diskcache.Fanout"] = fanout.memoize()(fit)
    if installed("cachier"):
        from cachier import cachier  # noqa: PLC0415

        # One file an entry: with its default, one file in all, a store grows ever slower.
        wrapped["cachier"] = cachier(cache_dir=str(folder / "cachier"), separate_files=True)(fit)
    return wrapped


class DifferentError(Exception):
    """A remembered result is not what scipy returns, or was not remembered."""


def agree(name: str, ours: Any, plain: Any) -> None:
    """Raise unless two results are equal to the last bit."""
    if isinstance(plain, tuple):
        pairs = list(zip(ours, plain, strict=True))
    else:
        fields = ("x", "fun", "jac", "nit", "nfev", "status", "success", "message")
        pairs = [(ours[field], plain[field]) for field in fields]
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise DifferentError(f"{name} returns another result than scipy")


def hits(
    name: str,
    *,
    plain: Callable[..., Any],
    warm: Callable[..., Any],
    arguments: Callable[[], tuple[Any, ...]],
    goals: list[Goal],
    rounds: int,
    folder: Path,
    fits: int = 1,
) -> Case:
    """Time hits of one fit, or of so many in turn, once it is shown that they are hits."""
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        reports = stack.enter_context(using(store=store))
        others = peers(plain, folder, stack)
        known = [arguments() for _ in range(fits)]
        expected = [plain(*given) for given in known]
        for who, fit in {"warmstart": warm, **others}.items():
            for given in known:
                fit(*given)
            before = FITS[0], len(reports)
            for given, result in zip(known, expected, strict=True):
                agree(who, fit(*given), result)
            hit = all(report.source == "final" for report in reports[before[1] :])
            if FITS[0] > before[0] or not hit:
                raise DifferentError(f"{who} ran a fit again that it should remember")
        contenders = [
            Contender(who, fit, arguments if fits == 1 else itertools.cycle(known).__next__)
            for who, fit in {"warmstart": warm, **others, "fit again": plain}.items()
        ]
        case = Case(name, contenders, goals)
        race(case, rounds=rounds)
    return case


def misses(rounds: int, folder: Path) -> Case:
    """Time fits from a start that is new each time: fitted, and stored."""
    weight = np.linspace(1.0, 2.0, 10)

    def fresh() -> Callable[[], tuple[Any, ...]]:
        number = itertools.count()
        return lambda: (np.full(10, 0.5 + 1e-7 * next(number)), weight)

    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        stack.enter_context(using(store=store))
        ways = {"warmstart": warm_small, **peers(fit_small, folder, stack), "plain": fit_small}
        case = Case(
            "miss + store, small minimize",
            [Contender(who, fit, fresh()) for who, fit in ways.items()],
            baseline="plain",
        )
        race(case, rounds=rounds)
    return case


# Sessions and stores


def _file_writer(folder: Path) -> Callable[[bytes], None]:
    folder.mkdir()

    def write(data: bytes) -> None:
        (folder / "new").write_bytes(data)
        (folder / "new").rename(folder / "state")

    return write


def _disk_cache(folder: Path, stack: ExitStack) -> Any:
    if not installed("diskcache"):
        return None
    import diskcache  # noqa: PLC0415

    return stack.enter_context(diskcache.Cache(str(folder)))


def operations(folder: Path) -> Iterator[Case]:
    """Time what a session and its backend do with 1 KB."""
    data = os.urandom(1024)
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        cache = _disk_cache(folder / "diskcache", stack)
        numbers = itertools.count()

        def session() -> Session:
            return store.session(FitSpec(model="bench", hyper={"number": next(numbers)}))

        def setting(arguments: Callable[[], tuple[Any, ...]]) -> list[Contender]:
            return [] if cache is None else [Contender("diskcache.set", cache.set, arguments)]

        skipping = store.session(FitSpec(model="bench"), interval=3600.0)
        skipping.checkpoint(data, objective=1.0)
        skip = Contender("warmstart", skipping.checkpoint, lambda: (data, 2.0, 7), inner=1000)
        yield Case("checkpoint skipped", [skip], [Goal("", 1.0)])

        backend = store.backend
        keys = (b"x%08d" % number for number in itertools.count())
        yield Case(
            "backend: put 1 KB, a new key",
            [
                Contender("warmstart", backend.apply, lambda: (Batch({next(keys): data}),)),
                *setting(lambda: (next(keys), data)),
                Contender("file + rename", _file_writer(folder / "file"), lambda: (data,)),
            ],
            [Goal("", 15.0)],
        )

        writing, falling = session(), itertools.count(0, -1)
        yield Case(
            "checkpoint written, 1 KB",
            [
                Contender("warmstart", writing.checkpoint, lambda: (data, next(falling), 7)),
                *setting(lambda: ("state", data)),
                Contender("file + rename", _file_writer(folder / "file2"), lambda: (data,)),
            ],
        )

        yield Case(
            "finalize, 1 KB, a new fit",
            [
                Contender("warmstart", Session.finalize, lambda: (session(), data, 1.0)),
                *setting(lambda: (next(keys), data)),
            ],
        )

        loading = session()
        loading.finalize(data, objective=1.0)
        reading = []
        if cache is not None:
            cache["known"] = data
            reading = [Contender("diskcache.get", cache.get, lambda: ("known",))]
        (folder / "known").write_bytes(data)
        yield Case(
            "try_load, 1 KB",
            [
                Contender("warmstart", loading.try_load),
                *reading,
                Contender("file", (folder / "known").read_bytes),
            ],
        )


def lookups(entries: int, folder: Path) -> Iterator[Case]:
    """Time `Store.best` among many entries, as a hit calls it."""
    data = os.urandom(256)
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        cache = _disk_cache(folder / "diskcache", stack)
        specs = [FitSpec(model="bench", hyper={"number": n}).key for n in range(entries)]
        for key in specs:
            store.put(Entry(key=key, run=os.urandom(16).hex(), kind=EntryKind.FINAL, payload=data))
        names = [key.digest for key in specs]
        if cache is not None:
            with cache.transact():
                for name in names:
                    cache[name] = data
        pick = np.random.default_rng(1)
        contenders = [
            Contender("warmstart", store.best, lambda: (specs[pick.integers(entries)],)),
        ]
        if cache is not None:
            contenders.append(
                Contender("diskcache.get", cache.get, lambda: (names[pick.integers(entries)],))
            )
        yield Case(f"Store.best among {entries:,} entries", contenders)


def all_cases(folder: Path, *, quick: bool) -> Iterator[Case]:
    """Measure everything, case by case."""
    rounds = 5 if quick else 40
    rng = np.random.default_rng(0)
    place = (folder / str(number) for number in itertools.count())

    def fresh() -> Path:
        path = next(place)
        path.mkdir()
        return path

    x0, weight = np.full(10, 0.5), np.linspace(1.0, 2.0, 10)
    beat = [Goal("joblib.Memory", 10), Goal("diskcache.memoize", 2)]
    small = {"plain": fit_small, "warm": warm_small, "goals": beat, "rounds": rounds}
    yield hits("hit, small minimize", arguments=lambda: (x0, weight), folder=fresh(), **small)
    around = small | {"plain": fit_around, "warm": warm_around}
    yield hits(
        "hit, minimize, global array",
        arguments=lambda: (x0, weight),
        folder=fresh(),
        **around,
    )
    starts = (np.full(10, 0.5 + 1e-3 * number) for number in itertools.count())
    fits = 30 if quick else 300
    yield hits(
        f"hit, {fits} minimize in turn",
        arguments=lambda: (next(starts), weight),
        folder=fresh(),
        fits=fits,
        **small,
    )

    rows = rng.normal(size=(131072, 10))
    rows[: len(rows) // 2] += 0.3
    beat = [Goal("joblib.Memory", 7), Goal("diskcache.memoize", 7)]
    for name, make in (
        ("hit, 10 MB, a new array", lambda: (np.zeros(10), rows.copy())),
        ("hit, 10 MB, the same array", lambda: (np.zeros(10), rows)),
    ):
        yield hits(
            name,
            plain=fit_large,
            warm=warm_large,
            arguments=make,
            goals=beat,
            rounds=rounds,
            folder=fresh(),
        )

    t = np.linspace(0.0, 4.0, 200)
    y = decay(t, 2.5, 1.3, 0.5) + 0.05 * rng.normal(size=t.size)
    curve = (t, y, np.ones(3))
    yield hits(
        "hit, curve_fit of 200 points",
        plain=fit_curve,
        warm=warm_curve,
        arguments=lambda: curve,
        goals=[],
        rounds=rounds,
        folder=fresh(),
    )

    yield misses(rounds, fresh())
    for case in itertools.chain(
        operations(fresh()),
        *(lookups(10**n, fresh()) for n in ((3, 4) if quick else (3, 5))),
    ):
        race(case, rounds=rounds)
        yield case


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 20 s, for CI")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--folder", type=Path, help="on which disk to store, by default /tmp")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 100)
    about = machine()
    console.print(
        ", ".join(f"{name} {value or 'no'}" for name, value in about.items()), soft_wrap=True
    )
    if about["load"] > 0.5:
        console.print("[yellow]the machine is busy: trust the ratios more than the times")
    cases = []
    try:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for case in all_cases(Path(folder), quick=given.quick):
                show(case, console)
                cases.append(case)
    except DifferentError as error:
        console.print(f"[red]{error}")
        return 1
    console.print(goal_table(cases))
    lost = losers(cases)
    console.print("Faster than warmstart:" if lost else "Nothing was faster than warmstart.")
    for line in lost:
        console.print(f"  [red]{line}", soft_wrap=True)
    if given.json:
        given.json.write_text(json.dumps(as_json(cases), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
