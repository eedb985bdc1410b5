"""How much two data sets share: sketches of their rows, and buckets in which to look.

Rows are hashed in one vectorised pass over all arrays that have them (a matrix, its targets, its
weights: the first axis in common). The sketch keeps the smallest hashes, from which the overlap
of two sets is estimated (bottom-k, Cohen and Kaplan 2007), and all of them if they are few. One
hash from each of 32 ranges (one-permutation MinHash, Li, Owen and Zhang 2012), joined in bands of
1, 4 and 16, names the buckets: sets that share much meet in the long bands, which few others
enter, sets that share little in the short ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["RowSketch", "row_hashes", "rows_of"]

SMALLEST = 1024
"""Hashes kept: the overlap of larger sets is known to +- 3 % (two standard errors)."""
_RANGES = 32
_BANDS = ((16, 2), (4, 8), (1, 8))
"""Hashes joined in a band, and how many bands of them there are."""


class RowSketch(msgspec.Struct, frozen=True):
    """The rows of a data set, as far as they tell it from others.

    Parameters
    ----------
    count : int
        How many rows there are, repeated ones counted as often as they are there.
    smallest : bytes
        The smallest of their hashes, sorted, 8 bytes each: all if there are no more than 1024.
    ranges : bytes
        The smallest hash in each of 32 ranges, 8 bytes each.
    """

    count: int
    smallest: bytes
    ranges: bytes

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> RowSketch:
        """Return the sketch of rows by their hashes, as `row_hashes` returns them."""
        ordered = np.unique(_numbered(hashes))
        edges = np.arange(_RANGES, dtype=np.uint64) << np.uint64(64 - 5)
        first = np.searchsorted(ordered, edges)
        # An empty range takes the next one's: equal sets still agree, which is all that counts.
        ranges = ordered[np.minimum(first, max(len(ordered) - 1, 0))] if len(ordered) else edges
        return cls(len(ordered), ordered[:SMALLEST].tobytes(), ranges.tobytes())

    def shares(self, other: RowSketch) -> float:
        """Return the estimated part of all rows of either set that are in both, 0 to 1."""
        mine, theirs = (np.frombuffer(s.smallest, np.uint64) for s in (self, other))
        if not len(mine) or not len(theirs):
            return 0.0
        whole = max(self.count, other.count) <= SMALLEST
        union = np.union1d(mine, theirs)
        if not whole:
            union = union[:SMALLEST]  # beyond these, either sketch may lack what its set has
        both = np.intersect1d(np.intersect1d(union, mine), theirs)
        return len(both) / len(union)

    def buckets(self) -> list[bytes]:
        """Return the names of the buckets that a set with these rows is in, narrow ones first."""
        ranges = [self.ranges[i : i + 8] for i in range(0, len(self.ranges), 8)]
        return [
            bytes((size,)) + _short(b"".join(ranges[i * size : (i + 1) * size]))
            for size, number in _BANDS
            for i in range(number)
        ]


def _short(raw: bytes) -> bytes:
    words = np.frombuffer(raw, np.uint64)
    mixed = _mix(words * _odd(len(words)))
    return bytes(mixed.sum(dtype=np.uint64).tobytes())


def rows_of(values: Iterable[Any]) -> list[NDArray[Any]]:
    """Return the arrays of a data set that have rows in common: the longest first axis shared.

    Parameters
    ----------
    values : iterable of object
        Arguments of a fit, in an order that is the same for all fits that are compared.
    """
    arrays = []
    for value in values:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            continue
        if array.ndim and len(array) > 1 and array.dtype.kind in "biufcSU":
            arrays.append(array)
    if not arrays:
        return []
    lengths = [len(array) for array in arrays]
    # Most arrays count, then the longer ones: (X, y, weights) beside a grid of something else.
    common = max(set(lengths), key=lambda length: (lengths.count(length), length))
    return [array for array in arrays if len(array) == common]


def row_hashes(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Return one 64-bit hash for each row of arrays with a common first axis.

    Rows whose values are equal, bit for bit and array by array, have equal hashes. One pass.
    """
    total = np.zeros(len(arrays[0]), np.uint64)
    with np.errstate(over="ignore"):
        for array in arrays:
            columns = np.ascontiguousarray(array).reshape(len(array), -1)
            width = columns.shape[1] * columns.itemsize
            raw = columns.view(np.uint8).reshape(len(columns), width)
            if width % 8:
                raw = np.pad(raw, ((0, 0), (0, -width % 8)))
            words = np.ascontiguousarray(raw).view(np.uint64)
            mixed = np.zeros(len(words), np.uint64)
            for column, odd in zip(words.T, _odd(words.shape[1]), strict=True):
                mixed += _mix(column ^ odd) * odd
            total = _mix(total + mixed)
    return total


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64-bit words scrambled (the finalizer of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))


def _odd(count: int) -> NDArray[np.uint64]:
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(steps) | np.uint64(1)


def _numbered(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes in which the n-th of several equal rows differs from the first.

    So that a bootstrap replicate shares with another what both drew as often.
    """
    ordered = np.sort(hashes)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    if len(starts) == len(ordered):
        return ordered
    nth = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    again = nth > 0
    ordered[again] = _mix(ordered[again] + nth[again].astype(np.uint64))
    return ordered
