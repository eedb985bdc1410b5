"""Answering an optimizer from a journal: which recorded evaluation is the one that it asks for.

By position first. Where the order is not the optimizer's own (a pool of threads), or the options
have changed its way, by the digest of the input and its n-th occurrence. Where the options are
the same, or the environment is another, also by a sketch, to one part in a thousand million: what
linear algebra returns depends, in its last bits, on the processor and even on where in memory an
array lies, so that scipy itself, called twice, may take two ways.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart.journal import Evaluation, Journal
from warmstart.packing import are_near, pack_value, sketches

__all__ = ["Replay", "difference"]

TOLERANCE = 1e-9
"""Of an input, relative to its norm, where another environment computed it."""
_LOST = 1000
"""Calls in a row that were not recorded, after which nothing recorded is expected any more."""
NEARLY = 1e-10
"""Of an output that was computed again: more, and the function is not the same."""


class Replay:
    """The recorded evaluations of a run, given out in the order in which they are asked for.

    Parameters
    ----------
    journal : Journal
        Loaded.
    foreign : bool
        Whether another environment wrote it.
    same_options : bool
        Whether it is of a call with the very options of this one.

    Attributes
    ----------
    answered : int
        Evaluations given out.
    strayed : int or None
        How many were given out by position before the optimizer asked for another.
    tolerant : bool
        Whether any was given out for an input that was only nearly the same.
    is_exact : bool
        Whether the last one was given out for the very input.
    """

    def __init__(self, journal: Journal, *, foreign: bool, same_options: bool) -> None:
        self.journal = journal
        self.count = journal.count
        self.answered = 0
        self.strayed: int | None = None
        self.tolerant = False
        self.is_exact = True
        self._foreign = foreign
        self._takes_near = foreign or same_options
        self._position = 0
        self._misses = 0
        self._records = journal.evaluations()
        self._next = next(self._records, None)
        self._sketches: NDArray[np.float64] | None = None
        self._index: _Index | None = None

    @property
    def is_over(self) -> bool:
        """Whether all has been given out, or the optimizer has long asked for none of it."""
        if self._index is not None:
            return self.answered == self.count or self._misses > _LOST
        return self._next is None

    @property
    def is_last(self) -> bool:
        """Whether the evaluation given out last was the last one recorded."""
        return self._next is None

    def find(self, channel: int, digest: int, raw: bytes) -> Evaluation | None:
        """Return the evaluation that answers a call, and go on to the next."""
        found = self._next
        if self._index is None and found is not None:
            mine = found.channel == channel
            if mine and (found.digest == digest or self._is_near(raw)):
                self.is_exact = found.digest == digest
                self.tolerant |= not self.is_exact
                self._position += 1
                self._next = next(self._records, None)
                self.answered += 1
                return found
            if self._foreign and not mine:
                return None
            self.strayed = self._position
            self._index = _Index(self)
        if self._index is not None:
            found, self.is_exact = self._index.find(channel, digest), True
            self.answered += found is not None
            self._misses = 0 if found is not None else self._misses + 1
            return found
        return None

    def _is_near(self, raw: bytes) -> bool:
        if not self._takes_near:
            return False
        if self._sketches is None:
            self._sketches = self.journal.sketches()
        if self._position >= len(self._sketches):
            return False
        recorded, asked = self._sketches[self._position], sketches([raw])[0]
        return are_near(recorded, asked, TOLERANCE)

    def elsewhere(self, other: Journal, channel: int, digest: int) -> Replay | None:
        """Return this replay, gone on in a journal that went the optimizer's way, or None.

        It must hold the same evaluations as far as this one was followed, then that which was
        asked for instead.
        """
        assert self.strayed is not None
        way = [(e.channel, e.digest) for e in islice(self.journal.evaluations(), self.strayed)]
        way.append((channel, digest))
        there = [(e.channel, e.digest) for e in islice(other.evaluations(), len(way))]
        if there != way:
            return None
        made = Replay(other, foreign=False, same_options=False)
        for _ in range(self.strayed):
            made._next = next(made._records, None)
        made.answered = made._position = self.strayed
        return made

    def rest(self) -> list[Evaluation]:
        """Return what has not been given out, in order, for the index."""
        return [] if self._next is None else [self._next, *self._records]


class _Index:
    """Evaluations by digest: n-th asked for, n-th given. Some 20 bytes each."""

    def __init__(self, replay: Replay) -> None:
        rest = replay.rest()
        self._rest = np.array([(e.offset, e.end) for e in rest], np.int64).reshape(-1, 2)
        self._forms = np.array([e.form for e in rest], np.uint8)
        self._channels = np.array([e.channel for e in rest], np.int64)
        self._digests = np.array([e.digest for e in rest], np.uint64)
        self._order = np.argsort(self._digests, kind="stable")
        self._sorted = self._digests[self._order]
        self._given: Counter[tuple[int, int]] = Counter()

    def _all(self, channel: int, digest: int) -> NDArray[np.int64]:
        value = np.uint64(digest)
        first = np.searchsorted(self._sorted, value, "left")
        last = np.searchsorted(self._sorted, value, "right")
        places = self._order[first:last]
        return np.asarray(places[self._channels[places] == channel])

    def find(self, channel: int, digest: int) -> Evaluation | None:
        places = self._all(channel, digest)
        given = self._given[channel, digest]
        if given >= len(places):
            return None
        self._given[channel, digest] += 1
        place = places[given]
        offset, end = self._rest[place].tolist()
        return Evaluation(channel, int(self._forms[place]), digest, offset, end)


def difference(recorded: Any, again: Any) -> float:
    """Return how far two outputs of one evaluation are apart: 0 for equal bits, else relative.

    Infinite where their types, shapes or the places of their NaNs differ.
    """
    if pack_value(recorded) == pack_value(again):
        return 0.0
    if type(recorded) is not type(again):
        return np.inf
    if isinstance(recorded, tuple):
        if len(recorded) != len(again):
            return np.inf
        return max(map(difference, recorded, again), default=np.inf)
    if sparse.issparse(recorded):
        if recorded.shape != again.shape:
            return np.inf
        return difference(recorded.toarray(), again.toarray())
    try:
        one, other = np.asarray(recorded), np.asarray(again)
        if one.shape != other.shape or one.dtype != other.dtype:
            return np.inf
        if not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return np.inf
        finite = np.isfinite(one)
        one, other = one[finite], other[finite]
        scale = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0))
        if scale == 0.0:  # zeros of another sign, or NaNs of other bits
            return float(np.finfo(float).tiny)
        return float(np.abs(one - other).max() / scale)
    except TypeError:
        return np.inf
