"""What near starts have cost and saved in a family of fits, and what follows from it.

One small row for each family, written with a condition so that no fit of another process is
lost. A way is ``"cold"``, or a level and a predictor.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from warmstart.backends import Backend, Batch, Item
from warmstart.rows import pages, read_small, small

__all__ = ["COLD", "Ledger", "Way", "load", "note", "orphans"]

COLD = "cold"
_LAST = 20
_ENOUGH = 4
"""Fits of one way before it is judged."""


class Way(msgspec.Struct):
    """The fits that began in one way.

    Parameters
    ----------
    count : int
        How many there were.
    mean, spread : float
        Of their evaluations; `spread` is the sum of squared deviations (Welford 1962).
    seconds : float
        That all of them took.
    last : list of int
        Evaluations of the last twenty, for quantiles.
    """

    count: int = 0
    mean: float = 0.0
    spread: float = 0.0
    seconds: float = 0.0
    last: list[int] = []

    def add(self, evaluations: int, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        apart = evaluations - self.mean
        self.mean += apart / self.count
        self.spread += apart * (evaluations - self.mean)
        self.seconds += seconds
        self.last = [*self.last[-_LAST + 1 :], evaluations]

    @property
    def deviation(self) -> float:
        """Standard deviation of the evaluations."""
        return math.sqrt(self.spread / (self.count - 1)) if self.count > 1 else 0.0

    def quantiles(self, *at: float) -> list[float]:
        """Return quantiles of the evaluations of the last fits."""
        return [float(q) for q in np.quantile(self.last, at)] if self.last else []


class Ledger(msgspec.Struct):
    """All that is known of a family.

    Parameters
    ----------
    ways : dict of str to Way
        By way.
    near : int
        Near fits since the last challenger.
    every : int or None
        How many there may be until the next; None for as many as the caller says.
    lost : int
        Challengers that found a better minimum.
    """

    ways: dict[str, Way] = {}
    near: int = 0
    every: int | None = None
    lost: int = 0

    def loses(self, way: str) -> bool:
        """Whether a way has been tried often enough, and takes more than a cold fit.

        By the medians of the last fits: one that went astray is not the rule.
        """
        cold, warm = self.ways.get(COLD), self.ways.get(way)
        if cold is None or warm is None or warm.count < _ENOUGH:
            return False
        return warm.quantiles(0.5) >= cold.quantiles(0.5)

    def is_due(self, challenge: int) -> bool:
        """Whether the next near fit is to be challenged by a cold one."""
        every = challenge if self.every is None else min(self.every, challenge)
        return challenge > 0 and self.near + 1 >= every

    def saved(self, evaluations: int) -> int:
        """Return how many evaluations fewer than a cold fit's that is; 0 if none was run."""
        cold = self.ways.get(COLD)
        return max(0, round(cold.mean - evaluations)) if cold is not None else 0


def _row(family: bytes) -> bytes:
    return b"l" + family


def load(backend: Backend, family: bytes) -> Ledger:
    """Return the ledger of a family, an empty one if there is none."""
    return read_small(backend.get(_row(family)), Ledger) or Ledger()


def orphans(backend: Backend) -> list[Item]:
    """Return the ledgers of families of which no fit is left."""
    found = pages(backend, b"l", head=1)
    return [item for item in found if not backend.scan(b"n" + item.key[1:], limit=1, head=1)]


def note(
    backend: Backend,
    family: bytes,
    way: str,
    *,
    evaluations: int,
    seconds: float,
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
    challenger : int, optional
        Evaluations that a cold challenger took, if there was one.
    lost : bool
        Whether that found a better minimum.
    regular : bool
        Whether it was run because it was its turn.
    """
    for _ in range(10):
        item = backend.get(_row(family))
        ledger = read_small(item, Ledger) or Ledger()
        ledger.ways.setdefault(way, Way()).add(evaluations, seconds)
        if way != COLD:
            ledger.near += 1
        if challenger is not None:
            ledger.ways.setdefault(COLD, Way()).add(challenger, 0.0)
            ledger.lost += lost
        if challenger is not None and regular:
            ledger.near = 0
            # After a better minimum was missed, every fit is challenged until they agree again.
            ledger.every = 1 if lost else None if ledger.every is None else 2 * ledger.every
        condition = {_row(family): None if item is None else item.sequence}
        if backend.apply(Batch({_row(family): small(ledger)}, conditions=condition)) is not None:
            return
