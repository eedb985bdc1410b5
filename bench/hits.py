"""Cases of `speed.py`: hits, first fits, sessions and look-ups, beside the peers.

- hits of a small ``minimize`` (10 parameters, L-BFGS-B; the same call again and again), of one
  whose objective reads a global array, of 300 different ones in turn, of one with 10 MB of data
  in ``args`` (a new array object each time, the same one, a data set), of a fold of such a data
  set, and of a ``curve_fit`` (200 points, 3 parameters): what it takes to say that this fit is
  known and to return its result;
- misses: the small fits, new each time, so that they are fitted and stored;
- a session's operations, and look-ups in a store with many entries.

Each peer wraps a module-level function that calls scipy, stores in a fresh folder of its own on
the same disk, and returned the same result as plain scipy before it was timed. What a peer's key
does not cover (helpers and globals of the objective; joblib sees the function's own source,
diskcache and cachier only its name) makes it faster, not better.
"""

from __future__ import annotations

# isort: off
from timing import Case, Contender, Goal, installed, race
# isort: on

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from tracking import untracked

from warmstart import FitSpec, Session, Store, dataset, optimize, using
from warmstart.backends import Batch
from warmstart.record import Entry, EntryKind, encode_record
from warmstart.rows import entry_row

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
    also: dict[str, Callable[[], tuple[Any, ...]]] | None = None,
    others_write: bool = False,
) -> Case:
    """Time hits of one fit, or of so many in turn, once it is shown that they are hits.

    `also` has other arguments for warmstart, by the name of what is done; before each of its
    calls somebody else may write to the store.
    """
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
        also = dict(also or {})
        if others_write:
            rows = itertools.count()

            def written() -> tuple[Any, ...]:
                store.backend.apply(Batch({b"x%d" % (next(rows) % 100): b"another's"}))
                return arguments()

            also["warmstart, after a write"] = written
        for who, given in also.items():
            warm(*given())
            contenders.append(Contender(who, warm, given))
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


def curve_misses(rounds: int, folder: Path) -> Case:
    """Time fits of new data by a ``curve_fit`` of some hundred microseconds."""
    t = np.linspace(0.0, 4.0, 200)
    rng = np.random.default_rng(3)

    def fresh() -> tuple[Any, ...]:
        return t, decay(t, 2.5, 1.3, 0.5) + 0.05 * rng.normal(size=t.size), np.ones(3)

    def bare(*given: Any) -> Any:
        with untracked():
            return warm_curve(*given)

    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        stack.enter_context(using(store=store))
        ways = {"warmstart": warm_curve, "without tracking": bare, "plain": fit_curve}
        ways |= peers(fit_curve, folder, stack)
        case = Case(
            "miss + store, curve_fit of 200 points",
            [Contender(who, fit, fresh) for who, fit in ways.items()],
            [Goal("plain", 100, "added"), Goal("plain", 60, "added", "without tracking")],
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
        yield Case("checkpoint skipped", [skip], [Goal("", 0.2)])

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
            [Goal("", 10)],
        )

        yield Case(
            "finalize, 1 KB, a new fit",
            [
                Contender("warmstart", Session.finalize, lambda: (session(), data, 1.0)),
                *setting(lambda: (next(keys), data)),
            ],
            [Goal("", 12)],
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
            [Goal("", 12)],
        )


def lookups(entries: int, folder: Path) -> tuple[Case, int]:
    """Return `Store.best` among many entries, as a hit calls it, to time; and the tree's depth."""
    data = os.urandom(256)
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "warmstart"))
        cache = _disk_cache(folder / "diskcache", stack)
        specs = [FitSpec(model="bench", hyper={"number": n}).key for n in range(entries)]
        for first in range(0, entries, 1000):
            part = specs[first : first + 1000]
            made = (
                Entry(key=key, run=os.urandom(16).hex(), kind=EntryKind.FINAL, payload=data)
                for key in part
            )
            rows = {entry_row(e.key, e.run, b"f"): encode_record(e)[0] for e in made}
            store.backend.apply(Batch(rows))
        store.flush()
        if cache is not None:
            with cache.transact():
                for key in specs:
                    cache[key.digest] = data
        pick = np.random.default_rng(1)

        def one() -> Any:
            return specs[pick.integers(entries)]

        contenders = [Contender("warmstart", store.best, lambda: (one(),))]
        if cache is not None:
            contenders.append(Contender("diskcache.get", cache.get, lambda: (one().digest,)))
        case = Case(f"Store.best among {entries:,} entries", contenders)
        race(case, rounds=20)
        environment = store.backend._environment
        return case, environment.durable.env.stat()["depth"]


def all_cases(folder: Path, *, quick: bool) -> Iterator[Case]:
    """Measure everything but look-ups, case by case."""
    rounds = 5 if quick else 40
    rng = np.random.default_rng(0)
    place = (folder / str(number) for number in itertools.count())

    def fresh() -> Path:
        path = next(place)
        path.mkdir()
        return path

    x0, weight = np.full(10, 0.5), np.linspace(1.0, 2.0, 10)
    beat = [Goal("joblib.Memory", 25), Goal("diskcache.memoize", 6), Goal("cachier", 12)]
    small = {"plain": fit_small, "warm": warm_small, "goals": beat, "rounds": rounds}
    yield hits(
        "hit, small minimize",
        arguments=lambda: (x0, weight),
        folder=fresh(),
        others_write=True,
        **small,
    )
    around = small | {"plain": fit_around, "warm": warm_around, "goals": []}
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
        **small | {"goals": []},
    )

    rows = rng.normal(size=(131072, 10))
    rows[: len(rows) // 2] += 0.3
    data, start = dataset(rows), np.zeros(10)
    large = {"plain": fit_large, "warm": warm_large, "rounds": rounds}
    yield hits(
        "hit, 10 MB, a new array",
        arguments=lambda: (start, rows.copy()),
        goals=[Goal("joblib.Memory", 8)],
        folder=fresh(),
        **large,
    )
    yield hits(
        "hit, 10 MB, the same array",
        arguments=lambda: (start, rows),
        goals=[Goal("joblib.Memory", 60), Goal("", 20, who="warmstart, a data set")],
        folder=fresh(),
        also={"warmstart, a data set": lambda: (start, data)},
        **large,
    )
    most = np.arange(len(rows)) % 10 > 0
    yield hits(
        "hit, nine tenths of 10 MB",
        arguments=lambda: (start, rows[most]),
        goals=[],
        folder=fresh(),
        also={"warmstart, a data set": lambda: (start, data[most])},
        **large,
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
    yield curve_misses(rounds, fresh())
    for case in operations(fresh()):
        race(case, rounds=rounds)
        yield case
