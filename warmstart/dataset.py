"""Data that cannot change: digested once for all fits, its folds keyed by their rows.

A fit's key takes a pass over its data: a thousand fits to the same 100 MB read 100 GB to find
out each time that nothing has changed. A data set owns its values in memory that numpy itself
refuses to make writable, so that it need not be looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from warmstart.arrays import content_of, digest_buffer, head_of, immutable, write_array
from warmstart.errors import ArgumentError
from warmstart.locks import lazily
from warmstart.values import Encoder, writes

__all__ = ["Dataset", "dataset", "plain"]

_ROW = 16
"""Bytes of a row's digest: no two of 10^12 different rows have the same by chance (10^-14)."""


def dataset(array: Any) -> Dataset:
    """Return data that fits recognize without reading them again.

    Parameters
    ----------
    array : array_like
        Of numbers, booleans, dates or text of fixed length, with at least one axis; its rows
        are along the first. A data set is returned as it is.

    Returns
    -------
    Dataset
        With a copy of the values, unless they are in immutable memory already.

    Raises
    ------
    ArgumentError
        If it has no axis for rows, a mask, or holds objects.

    Examples
    --------
    >>> import numpy as np
    >>> from warmstart import Fingerprinter, dataset
    >>> data = dataset(np.arange(12.0).reshape(4, 3))
    >>> np.mean(data, axis=0)
    array([4.5, 5.5, 6.5])
    >>> data[[0, 3]]
    <Dataset float64[2, 3]>

    The key of a whole data set is that of the array:

    >>> def key(value):
    ...     return Fingerprinter().absorb("x", value).digest()
    >>> key(data) == key(np.arange(12.0).reshape(4, 3))
    True

    The key of some of its rows is made of their digests, wherever they come from:

    >>> key(data[1:3]) == key(dataset(np.arange(15.0).reshape(5, 3))[[1, 2]])
    True
    >>> key(data[1:3]) == key(np.arange(3.0, 9.0).reshape(2, 3))
    False
    """
    if isinstance(array, Dataset):
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise ArgumentError(
            "a data set has no mask: fill it (array.filled(...)), or leave the masked rows out"
        )
    try:
        values = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"a data set is made of an array: {error}") from error
    if not values.ndim or values.dtype.kind not in "biufcmMSU":
        raise ArgumentError(
            "a data set is made of an array of numbers, dates or text of fixed length with at "
            f"least one axis, not of {type(array).__name__} as {values.dtype}{list(values.shape)}"
        )
    return Dataset(values)


class _Chosen(NamedTuple):
    """Rows of a data set that is whole, by their numbers."""

    whole: Dataset
    numbers: NDArray[np.intp]


class Dataset(NDArrayOperatorsMixin):
    """Values that cannot change, or some rows of them; made by `dataset`.

    Wherever numpy takes an array it takes this; results are arrays. In ``args`` and among the
    data of a call to `warmstart.optimize` the user's functions get the array itself. Rows are
    chosen by a slice, a mask or whole numbers, ``data[rows]`` or ``data.take(rows)``, which
    copies nothing until somebody asks for the values: a hit on a fold does not. Other indices
    return what they return for an array.

    Parameters
    ----------
    values : array or None
        All values, which are copied unless they are in immutable memory; None where `chosen` says
        which they are.
    chosen : pair of (Dataset, array), optional
        A whole data set, and the numbers of its rows.
    by_rows : bool
        Whether the key is made of the digest of each row, as for rows that were chosen.

    Notes
    -----
    The key of the whole is that of an equal array. The key of rows that were chosen is made of
    the digest of each row, in order: rows of equal values have equal keys, whichever data set
    and whatever indices they were chosen by, but other ones than an array of these values has.

    Making one costs a copy, its first key a pass over it, the first key of a fold 0.6 us a row
    of the whole (2026-11). Safe across threads and forks. Pickles as its values.
    """

    def __init__(
        self, values: NDArray[Any] | None, chosen: _Chosen | None = None, *, by_rows: bool = False
    ) -> None:
        self._chosen = chosen
        self._by_rows = by_rows
        if chosen is not None:
            self.shape: tuple[int, ...] = (len(chosen.numbers), *chosen.whole.shape[1:])
            self.dtype: np.dtype[Any] = chosen.whole.dtype
        elif values is not None:
            self._values = immutable(values)
            self.shape, self.dtype = values.shape, values.dtype

    @lazily
    def _values(self) -> NDArray[Any]:
        assert self._chosen is not None
        return immutable(self._chosen.whole.array[self._chosen.numbers])

    @property
    def array(self) -> NDArray[Any]:
        """The values, in memory that cannot be written to; a view that may be reshaped."""
        return self._values.view()

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)

    def __repr__(self) -> str:
        return f"<Dataset {self.dtype}{list(self.shape)}>"

    # Rows

    def take(self, rows: Any) -> Dataset:
        """Return some of the rows.

        Returns
        -------
        Dataset
            Of those rows.

        Parameters
        ----------
        rows : slice, (n,) array of bool, or array_like of int
            Which; negative numbers count from the end, and rows may come again.

        Raises
        ------
        ArgumentError
            If it is anything else.
        IndexError
            If there is no such row.
        """
        chosen = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(chosen, slice):
            if not chosen.size and chosen.dtype.kind == "f":
                chosen = chosen.astype(np.intp)  # an empty list
            if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
                raise ArgumentError(
                    "rows are chosen by a slice, a mask or a list of whole numbers, "
                    f"not by {rows!r:.60}"
                )
        if self._chosen is None:
            whole, numbers = self, self._numbers
        else:
            whole, numbers = self._chosen
        return Dataset(None, _Chosen(whole, numbers[chosen]), by_rows=True)

    @lazily
    def _numbers(self) -> NDArray[np.intp]:
        return np.arange(len(self))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or (
            isinstance(index, (list, np.ndarray)) and np.ndim(index) == 1
        ):
            return self.take(index)
        return self.array[index]

    @lazily
    def row_digests(self) -> NDArray[np.complex128]:
        """16 bytes of each row's BLAKE3; of rows that were chosen without reading them.

        As complex numbers, which numpy gathers as fast as any items of 16 bytes.
        """
        if self._chosen is not None:
            return self._chosen.whole.row_digests.take(self._chosen.numbers)
        raw, count = content_of(self.array).tobytes(), len(self)
        width = len(raw) // max(count, 1)
        rows = (raw[i * width : (i + 1) * width] for i in range(count))
        digests = b"".join([blake3(row).digest(_ROW) for row in rows])
        return np.frombuffer(digests, np.complex128)

    @lazily
    def frame(self) -> bytes:
        """What stands for it in a key."""
        if not self._by_rows:
            encoder = Encoder()
            write_array(encoder, self.array)
            return b"".join(encoder.out)
        digest = digest_buffer(self.row_digests.view(np.uint8))
        return b"H" + head_of(self.dtype, self.shape) + digest

    # As an array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
        if any(type(made) is Dataset for made in named.get("out", ())):
            raise ArgumentError("a data set cannot be written to")
        return getattr(ufunc, method)(*map(plain, inputs), **named)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise ArgumentError(
            "a data set cannot be written to: change the array it was made of, and make another"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.array, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.array, self._by_rows)

    def __deepcopy__(self, _memo: Any) -> Dataset:
        return self  # there is nothing that could change

    __copy__ = __deepcopy__


def _rebuild(values: NDArray[Any], by_rows: bool) -> Dataset:
    return Dataset(values, by_rows=by_rows)


@writes(Dataset)
def _write(encoder: Encoder, value: Dataset) -> None:
    encoder.data(lambda encoder, value: encoder.out.append(value.frame), value)


def plain(value: Any) -> Any:
    """Return a value with the array of a data set in its place, in a tuple of arguments too."""
    if type(value) is Dataset:
        return value.array
    if type(value) is tuple and any(type(item) is Dataset for item in value):
        return tuple([plain(item) for item in value])
    return value
