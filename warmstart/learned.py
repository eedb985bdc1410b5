"""What fits have cost, and what follows from it: the books, the plan in force, the cost to come.

Two kinds of row, each merged under a condition, so that no process's fits are lost:

* a *family* of near fits has its ways to begin (cold, or a level and a predictor), and from them
  its plan: which predictors are switched off, how often a cold challenger is run;
* a *path* of ever narrower groups (all fits, those of one function and method, those of one
  model) has what its fits have cost; the deepest one that is known predicts the next.

Counts of both are kept in fixed memory: mean and variance exactly (Chan, Golub and LeVeque 1979),
quantiles by counts in bins whose edges rise by a twelfth of an octave, right to 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from warmstart.backends import Backend, Batch, Item
from warmstart.errors import ArgumentError
from warmstart.rows import pages, read_small, small

__all__ = [
    "COLD",
    "MODES",
    "Cost",
    "Expected",
    "Family",
    "Plan",
    "Saved",
    "Tally",
    "Way",
    "families",
    "load",
    "merge_costs",
    "merge_saved",
    "note",
    "orphans",
    "override",
    "path",
    "predict",
    "reset",
    "savings",
    "stability",
]

COLD = "cold"
MODES = ("act", "suggest", "observe")
_VERSION = 1
_LAST = 20
"""Fits of a way that are remembered one by one."""
_MOST_COSTS = 10_000
"""Groups of fits whose costs are kept."""
_ENOUGH = 4
"""Fits of one way before it is judged."""
_BINS = 12
"""Per octave."""
_MOST_BINS = 512
_DRIFT = 8.0
"""Times that fits have become dearer or cheaper, beyond which the problem is another one."""
_T = TypeVar("_T")


class Tally(msgspec.Struct):
    """Count, mean, variance and quantiles of positive numbers, in fixed memory.

    Parameters
    ----------
    count : int
        How many there were; NaN and negative ones are not counted.
    mean, spread : float
        `spread` is the sum of squared deviations.
    least, most : float
        The extremes.
    bins : dict of int to int
        Counts by twelfths of octaves.
    """

    count: int = 0
    mean: float = 0.0
    spread: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    bins: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Count one more."""
        if not 0.0 <= value < math.inf:
            return
        self.count += 1
        apart = value - self.mean
        self.mean += apart / self.count
        self.spread += apart * (value - self.mean)
        self.least, self.most = min(self.least, value), max(self.most, value)
        place = round(_BINS * math.log2(value)) if value > 1e-12 else -_MOST_BINS
        place = max(-_MOST_BINS, min(place, _MOST_BINS))
        self.bins[place] = self.bins.get(place, 0) + 1

    def merge(self, other: Tally) -> None:
        """Count all that another has; the same in whatever order tallies are merged."""
        count = self.count + other.count
        if not other.count:
            return
        apart = other.mean - self.mean
        self.spread += other.spread + apart**2 * self.count * other.count / count
        self.mean = (self.mean * self.count + other.mean * other.count) / count
        self.count = count
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        for place, number in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + number

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.spread / (self.count - 1)) if self.count > 1 else 0.0

    def quantile(self, at: float) -> float:
        """Return a quantile, right to 3 %; 0 if nothing was counted."""
        left = at * self.count
        for place in sorted(self.bins):
            left -= self.bins[place]
            if left <= 0.0:
                value = 0.0 if place <= -_MOST_BINS else 2.0 ** (place / _BINS)
                return min(max(value, self.least), self.most)
        return self.most if self.count else 0.0


class Way(msgspec.Struct):
    """The fits that began in one way.

    Parameters
    ----------
    evaluations, seconds : Tally
        That they took.
    last : list of int
        Evaluations of the last twenty.
    """

    evaluations: Tally = msgspec.field(default_factory=Tally)
    seconds: Tally = msgspec.field(default_factory=Tally)
    last: list[int] = []

    def add(self, evaluations: int, seconds: float) -> None:
        """Count one more."""
        self.evaluations.add(evaluations)
        self.seconds.add(seconds)
        self.last = [*self.last[-_LAST + 1 :], evaluations]

    @property
    def recent(self) -> float:
        """The median of the last fits' evaluations: one that went astray is not the rule."""
        ordered = sorted(self.last)
        half = len(ordered) // 2
        if not ordered:
            return 0.0
        return (ordered[half] + ordered[~half]) / 2.0


class Plan(msgspec.Struct, frozen=True):
    """What is done in a family, and why.

    Parameters
    ----------
    mode : {"act", "suggest", "observe"}
        Whether it is done, only told in the reports, or not even thought of.
    off : tuple of str
        Ways that do not pay, or that were switched off by hand.
    every : int or None
        A challenger after so many near fits; None for as many as the caller says.
    why : str
        For people.
    version : int
        Of this document.
    """

    mode: str = "act"
    off: tuple[str, ...] = ()
    every: int | None = None
    why: str = ""
    version: int = _VERSION


class Family(msgspec.Struct):
    """All that is known of fits that are near each other.

    Parameters
    ----------
    ways : dict of str to Way
        By way.
    near : int
        Near fits since the last challenger.
    every : int or None
        How many there may be until the next, after one has found a better minimum.
    lost : int
        Challengers that did.
    what : str
        What is fitted, for people.
    mode : str
        See `Plan`.
    forced : dict of str to bool
        Ways that people have switched on or off.
    forced_every : int or None
        How often people want challengers.
    version : int
        Of this document; one of another version is not read.
    """

    ways: dict[str, Way] = {}
    near: int = 0
    every: int | None = None
    lost: int = 0
    what: str = ""
    mode: str = "act"
    forced: dict[str, bool] = {}
    forced_every: int | None = None
    version: int = _VERSION

    @property
    def plan(self) -> Plan:
        """The plan in force: the same for the same books, in whatever process."""
        off = [
            way
            for way in sorted(self.ways)
            if way != COLD and not self.forced.get(way, not self._loses(way))
        ]
        every = self.forced_every if self.forced_every is not None else self.every
        reasons = [f"{way} takes no fewer evaluations than a cold fit" for way in off]
        if self.every is not None:
            reasons.append(f"{self.lost} challengers found a better minimum")
        return Plan(self.mode, tuple(off), every, "; ".join(reasons))

    def _loses(self, way: str) -> bool:
        """Whether a way has been tried often enough, and takes no less than a cold fit."""
        cold, warm = self.ways.get(COLD), self.ways.get(way)
        if cold is None or warm is None or warm.evaluations.count < _ENOUGH:
            return False
        return warm.recent >= cold.recent

    def loses(self, way: str) -> bool:
        """Whether a way is not to be taken."""
        return self.mode == "act" and way in self.plan.off

    def is_due(self, challenge: int) -> bool:
        """Whether the next near fit is to be challenged by a cold one."""
        every = self.plan.every if self.mode == "act" else None
        every = challenge if every is None else min(every, challenge)
        return challenge > 0 and self.near + 1 >= every

    def saved(self, evaluations: int) -> int:
        """Return how many evaluations fewer than a cold fit's that is; 0 if none was run."""
        cold = self.ways.get(COLD)
        return 0 if cold is None else max(0, round(cold.evaluations.mean - evaluations))

    def forget_if_drifted(self) -> bool:
        """Begin anew if cold fits have become many times dearer or cheaper; whether it did."""
        cold = self.ways.get(COLD)
        if cold is None or len(cold.last) < _LAST or not cold.recent:
            return False
        usual = cold.evaluations.quantile(0.5)
        if max(cold.recent / max(usual, 1.0), usual / cold.recent) < _DRIFT:
            return False
        self.ways, self.near, self.every, self.lost = {}, 0, None, 0
        return True


def _row(family: bytes) -> bytes:
    return b"l" + family


def _read(item: Item | None, kind: type[_T]) -> _T | None:
    """Return a document, if it is of this version."""
    found = read_small(item, kind)
    return found if getattr(found, "version", _VERSION) == _VERSION else None


def load(backend: Backend, family: bytes) -> Family:
    """Return the books of a family, empty ones if there are none."""
    return _read(backend.get(_row(family)), Family) or Family()


def families(backend: Backend) -> dict[bytes, Family]:
    """Return the books of all families."""
    found = {item.key[1:]: _read(item, Family) for item in pages(backend, b"l", head=None)}
    return {name: family for name, family in found.items() if family is not None}


def orphans(backend: Backend) -> list[Item]:
    """Return the books of families of which no fit is left, and the oldest of too many costs."""
    found = pages(backend, b"l", head=1)
    gone = [item for item in found if not backend.scan(b"n" + item.key[1:], limit=1, head=1)]
    costs = sorted(pages(backend, b"w", head=1), key=lambda item: item.sequence)
    return gone + costs[: max(0, len(costs) - _MOST_COSTS)]


def _change(backend: Backend, row: bytes, kind: type[_T], change: Callable[[_T], None]) -> _T:
    """Read, change and write a document, until nobody else has written it meanwhile."""
    while True:
        item = backend.get(row)
        document = _read(item, kind) or kind()
        change(document)
        condition = {row: None if item is None else item.sequence}
        if backend.apply(Batch({row: small(document)}, conditions=condition)) is not None:
            return document


def note(
    backend: Backend,
    family: bytes,
    way: str,
    *,
    evaluations: int,
    seconds: float,
    what: str = "",
    challenger: int | None = None,
    lost: bool = False,
    regular: bool = True,
) -> None:
    """Enter a fit.

    Parameters
    ----------
    backend : Backend
        Whose.
    family : bytes
        Of the fit's place.
    way : str
        How it began.
    evaluations : int
        That it took, without the challenger's.
    seconds : float
        That it took.
    what : str
        What is fitted, for people.
    challenger : int, optional
        Evaluations that a cold challenger took, if there was one.
    lost : bool
        Whether that found a better minimum.
    regular : bool
        Whether it was run because it was its turn.
    """

    def enter(known: Family) -> None:
        known.what = what or known.what
        known.ways.setdefault(way, Way()).add(evaluations, seconds)
        if way != COLD:
            known.near += 1
        if challenger is not None:
            known.ways.setdefault(COLD, Way()).add(challenger, math.nan)
            known.lost += lost
        if challenger is not None and regular:
            known.near = 0
            # After a better minimum was missed, every fit is challenged until they agree again.
            known.every = 1 if lost else None if known.every is None else 2 * known.every
        known.forget_if_drifted()

    _change(backend, _row(family), Family, enter)


def override(
    backend: Backend,
    family: bytes,
    *,
    mode: str | None = None,
    ways: Mapping[str, bool | None] | None = None,
    every: int | None = None,
) -> Plan:
    """Change the plan of a family by hand; returns the one that is in force then."""
    if mode is not None and mode not in MODES:
        raise ArgumentError(f"mode is one of {', '.join(MODES)}, not {mode!r:.60}")
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ArgumentError(f"every is a number of fits from 1 up, not {every!r:.60}")

    def change(known: Family) -> None:
        known.mode = mode or known.mode
        known.forced_every = every if every is not None else known.forced_every
        forced = {**known.forced, **(ways or {})}
        known.forced = {way: bool(on) for way, on in forced.items() if on is not None}

    return _change(backend, _row(family), Family, change).plan


def reset(backend: Backend, family: bytes) -> None:
    """Forget what was learned, and what was changed by hand."""
    backend.apply(Batch(deletes=[_row(family)]))


# The cost to come


class Cost(msgspec.Struct):
    """What the fits of a group have cost.

    Parameters
    ----------
    evaluations, seconds : Tally
        That cold fits took.
    version : int
        Of this document; one of another version is not read.
    """

    evaluations: Tally = msgspec.field(default_factory=Tally)
    seconds: Tally = msgspec.field(default_factory=Tally)
    version: int = _VERSION

    def add(self, evaluations: int, seconds: float) -> None:
        """Count one more."""
        self.evaluations.add(evaluations)
        self.seconds.add(seconds)

    def merge(self, other: Cost) -> None:
        """Count all that another has."""
        self.evaluations.merge(other.evaluations)
        self.seconds.merge(other.seconds)


class Expected(NamedTuple):
    """What a fit is likely to cost.

    Parameters
    ----------
    depth : int
        0 for all fits, 1 for those of its function and method, 2 for those of its model.
    fits : int
        Of which this is known.
    evaluations, seconds : tuple of (float, float, float)
        Median and quantiles at 0.9 and 0.95.
    """

    depth: int
    fits: int
    evaluations: tuple[float, float, float]
    seconds: tuple[float, float, float]


def path(function: str, method: str, model: bytes) -> tuple[bytes, ...]:
    """Return the groups in which a fit is, all fits first."""
    kind = f"{function} {method}".encode()[:100]
    return b"", kind, kind + b"\0" + model[:8]


def _cost_row(group: bytes) -> bytes:
    return b"w" + group


def merge_costs(backend: Backend, costs: Mapping[bytes, Cost]) -> None:
    """Add what a process has seen to what is known."""
    for group, cost in costs.items():
        _change(backend, _cost_row(group), Cost, lambda known, c=cost: known.merge(c))  # type: ignore[misc]


def predict(backend: Backend, groups: Iterable[bytes]) -> Expected | None:
    """Return the cost of a fit by the deepest of its groups that is known; None without any."""
    found = None
    for depth, group in enumerate(groups):
        cost = _read(backend.get(_cost_row(group)), Cost)
        if cost is not None and cost.evaluations.count:
            found = Expected(
                depth,
                cost.evaluations.count,
                _quantiles(cost.evaluations),
                _quantiles(cost.seconds),
            )
    return found


def _quantiles(tally: Tally) -> tuple[float, float, float]:
    return tally.quantile(0.5), tally.quantile(0.9), tally.quantile(0.95)


class Saved(msgspec.Struct):
    """What hits have saved on one day.

    Parameters
    ----------
    hits : int
        Fits that were returned.
    evaluations : int
        Calls of the users' functions that they would have taken.
    seconds : float
        That they would have taken.
    """

    hits: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    def add(self, evaluations: int, seconds: float) -> None:
        """Count a hit."""
        self.hits += 1
        self.evaluations += evaluations
        self.seconds += seconds

    def merge(self, other: Saved) -> None:
        """Add another's."""
        self.hits += other.hits
        self.evaluations += other.evaluations
        self.seconds += other.seconds


def _day_row(day: int) -> bytes:
    return b"t" + day.to_bytes(4, "big")


def merge_saved(backend: Backend, day: int, saved: Saved) -> None:
    """Add what hits of a process have saved on a day, counted from 1970."""
    _change(backend, _day_row(day), Saved, lambda known: known.merge(saved))


def savings(backend: Backend) -> dict[int, Saved]:
    """Return what hits have saved, by day."""
    found = {
        int.from_bytes(item.key[1:], "big"): read_small(item, Saved)
        for item in pages(backend, b"t", head=None)
    }
    return {day: saved for day, saved in found.items() if saved is not None}


def stability(arguments: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, float, float]]:
    """Return which arguments of a model's fits change.

    Parameters
    ----------
    arguments : iterable of mapping
        Of each fit, the newest first, digests by argument; 100 are looked at.

    Returns
    -------
    dict of str to (str, float, float)
        By argument, in the order of their names: ``"stable"`` where 95 % of the fits have the
        same one, ``"semi-stable"`` where half of them do, else ``"variable"``; that part; and
        the confidence, which rises to 1 with 20 fits.
    """
    window = list(arguments)[:100]
    counts: dict[str, dict[Any, int]] = {}
    for one in window:
        for name, digest in one.items():
            known = counts.setdefault(name, {})
            known[digest] = known.get(digest, 0) + 1
    found = {}
    for name in sorted(counts):
        part = max(counts[name].values()) / len(window)
        word = "stable" if part >= 0.95 else "semi-stable" if part >= 0.5 else "variable"
        found[name] = word, part, min(1.0, len(window) / 20.0)
    return found
