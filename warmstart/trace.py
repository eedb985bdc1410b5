"""How a fit converged: its objective, steps and gradients, in a few hundred points.

Evaluations come in batches. When there are too many points, neighbours are joined: of each group
the lowest and the highest stay, so that a million evaluations keep their shape, their best point
and their outliers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST", "Trace", "thinned"]

LONGEST = 128
"""Points that are kept of a fit that is over."""
_MOST = 4096
"""Points in memory."""
_OF_BATCH = 2 * LONGEST
"""Points of one batch: more would cost, and be joined in the end (0.5 us of 1.7 an evaluation)."""
_BYTES = 4 << 20
"""That points of one batch may have for the lengths of steps to be known."""
Vector = NDArray[np.float64]


def thinned(steps: Vector, values: Vector, most: int) -> NDArray[np.intp]:
    """Return which points to keep, in their order: of each group the lowest and the highest.

    Parameters
    ----------
    steps, values : (n,) arrays
        In rising order of the steps; values that are not finite count as highest.
    most : int
        Points to keep, about; the first and the last are among them.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    groups = max(1, most // 2 - 1)
    span = steps[-1] - steps[0]
    where = np.minimum((steps - steps[0]) / (span or 1.0) * groups, groups - 1).astype(int)
    order = np.lexsort((values, where))  # NaN sorts last
    edges = np.flatnonzero(np.diff(where[order], prepend=-1))
    ends = np.append(edges[1:], count) - 1
    return np.unique(np.r_[0, order[edges], order[ends], count - 1])


class Trace:
    """What is kept of a fit's way while it runs.

    Not safe in threads: the recorder calls it under its lock.
    """

    def __init__(self) -> None:
        self.evaluations = 0
        self.is_ranked = True
        """Whether the lowest objective is the best; not so under constraints."""
        self._waiting: list[tuple[Any, list[bytes], float, Any, dict[str, Any]]] = []
        self._size = 0
        self._steps: list[Any] = []
        self._values: list[Any] = []
        self._moved: list[Any] = []
        self._kept = 0
        self._last: bytes = b""
        self.gradient: Any = None
        """The last one that was seen; its norm is noted with the next batch."""
        self.constraints: dict[str, Any] = {}
        """The last values of each, and between what they have to be; as for the gradient."""
        self._violations: list[tuple[int, float]] = []
        self._gradients: list[tuple[int, float]] = []
        self._seconds: list[tuple[int, float]] = []

    def add(self, values: Any, raws: list[bytes], seconds: float) -> None:
        """Note a batch of objectives and the points they are of.

        It is looked at later: most fits are over before their curve is worth a microsecond.
        """
        self._waiting.append((values, raws, seconds, self.gradient, self.constraints))
        self.gradient, self.constraints = None, {}
        self._size += len(raws) * (len(raws[0]) + 64)
        if self._size > _BYTES:
            self._digest()

    def _digest(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        for batch in waiting:
            self._take(*batch)

    def _take(
        self,
        numbers: Any,
        raws: list[bytes],
        seconds: float,
        gradient: Any,
        constraints: dict[str, Any],
    ) -> None:
        values = np.asarray(numbers, float)
        count = len(values)
        steps = np.arange(self.evaluations + 1.0, self.evaluations + count + 1.0)
        self.evaluations += count
        chosen = thinned(steps, values, _OF_BATCH)
        self._steps.append(steps[chosen])
        self._values.append(values[chosen])
        self._moved.append(self._lengths(raws, chosen))
        self._kept += len(chosen)
        self._seconds.append((self.evaluations, seconds))
        if type(gradient) is np.ndarray and gradient.ndim == 1 and gradient.dtype.kind == "f":
            norm = float(np.abs(gradient).max(initial=0.0))
            self._gradients.append((self.evaluations, norm))
        if constraints:
            worst = max(_violation(*one) for one in constraints.values())
            self._violations.append((self.evaluations, worst))
        if self._kept > _MOST:
            self._reduce(_MOST // 2)

    def _lengths(self, raws: list[bytes], chosen: NDArray[np.intp]) -> Vector:
        """Return how far each chosen point is from the one evaluated before it."""
        if len(raws[0]) * len(chosen) > _BYTES:
            return np.full(len(chosen), np.nan)
        before = [raws[i - 1] if i else self._last for i in chosen]
        here = [raws[i] for i in chosen]
        self._last = raws[-1]
        sizes = {len(raw) for raw in (*before, *here)} - {0}
        if len(sizes) != 1 or sizes.pop() % 8:
            return np.full(len(chosen), np.nan)
        if not before[0]:
            before[0] = here[0]
        apart = [np.frombuffer(b"".join(part)).reshape(len(chosen), -1) for part in (here, before)]
        with np.errstate(all="ignore"):
            return np.asarray(np.linalg.norm(apart[0] - apart[1], axis=1))

    def _reduce(self, most: int) -> tuple[Vector, Vector, Vector]:
        steps, values, moved = (
            np.concatenate(part) for part in (self._steps, self._values, self._moved)
        )
        chosen = thinned(steps, values, most)
        parts = steps[chosen], values[chosen], moved[chosen]
        self._steps, self._values, self._moved = ([part] for part in parts)
        self._kept = len(chosen)
        for pairs in (self._gradients, self._violations, self._seconds):
            if len(pairs) > most:
                del pairs[1:-1:2]
        return parts

    def seconds(self, steps: Vector) -> Vector:
        """Return when evaluations were made, in seconds since the fit began."""
        known = np.array([(0.0, 0.0), *self._seconds])
        return np.asarray(np.interp(steps, known[:, 0], known[:, 1]))

    def series(self) -> dict[str, tuple[Vector, Vector]]:
        """Return the series by name, each as evaluations and values.

        ``objective``, ``best`` (the lowest so far), ``step length`` (from the point evaluated
        before), ``gradient norm`` (the largest component) and ``constraint violation`` (by how
        much the worst one was missed).
        """
        self._digest()
        if not self._steps:
            return {}
        steps, values, moved = self._reduce(LONGEST)
        finite = np.where(np.isfinite(values), values, np.inf)
        best = np.minimum.accumulate(finite)
        falls = np.flatnonzero(np.diff(best, prepend=np.inf) < 0.0)
        found = {"objective": (steps, values)}
        if len(falls) and self.is_ranked:
            found["best"] = steps[falls], best[falls]
        if np.isfinite(moved).any():
            found["step length"] = steps, moved
        for name, pairs in (
            ("gradient norm", self._gradients),
            ("constraint violation", self._violations),
        ):
            if pairs:
                at = np.array(pairs)
                at = at[thinned(at[:, 0], at[:, 1], LONGEST)]
                found[name] = at[:, 0], at[:, 1]
        return found


def _violation(value: Any, between: tuple[Any, Any]) -> float:
    """Return by how much a constraint is missed; NaN for what is no number."""
    try:
        numbers = np.asarray(value, float)
        missed = np.maximum(np.subtract(between[0], numbers), np.subtract(numbers, between[1]))
        return float(np.maximum(missed, 0.0).max(initial=0.0))
    except (TypeError, ValueError):
        return float("nan")
