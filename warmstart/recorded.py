"""A function of the user's under watch, and how its calls are written down."""

from __future__ import annotations

import contextlib
import functools
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from warmstart.packing import HEAD, OPAQUE, pack_number, pack_numbers, pack_value
from warmstart.surfaces import COLUMNS, ONE, REST, TWO, Function, first

if TYPE_CHECKING:
    from warmstart.recording import Recorder

__all__ = [
    "NOTHING",
    "Recorded",
    "are_numbers",
    "bytes_of",
    "is_one",
    "own",
    "pack_calls",
    "pack_head",
]

_NUMBERS: dict[Any, int] = {float: 0, np.float64: 1}
"""Forms of outputs that are packed many at a time."""
_FLOATS = frozenset(_NUMBERS)
pack_head = HEAD.pack
_DOUBLE = np.dtype(float)
NOTHING: Any = object()
"""What a call that raised has returned."""


class Recorded:
    """A function of the user's under watch; pickles as the function itself.

    Parameters
    ----------
    recorder : Recorder
        The fit's.
    function : Function
        What is watched.
    channel : int
        What stands for it in the journal.
    target : callable or None
        Computes the number to rank points by from the function's value.
    """

    def __init__(
        self,
        recorder: Recorder,
        function: Function,
        channel: int,
        target: Callable[[Any], Any] | None,
    ) -> None:
        with contextlib.suppress(Exception):  # a user's __getattr__ may raise anything
            functools.update_wrapper(self, function.call, updated=())
        self.__wrapped__ = function.call
        self.function = function.call
        self.label = function.label
        self.channel = channel
        self._recorder = recorder
        self.takes = function.takes
        self.is_primary = function.primary
        self.shape: tuple[int, ...] | None = None
        """Of the point, if it is an array; known from the first call."""
        self.dtype = _DOUBLE
        self.is_number = target is first
        """Whether what it returns is what points are ranked by, if it is a number."""
        self._target = target
        self.between = function.between
        self.is_gradient = function.label in {"jac", "fprime"}
        self._is_plain = False

    def __getattr__(self, name: str) -> Any:
        """Have the attributes of the function, which a method of the user's may ask for."""
        if name == "function":  # not there yet
            raise AttributeError(name)
        return getattr(self.function, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.function,)

    def __copy__(self) -> Recorded:
        return self

    def __deepcopy__(self, _memo: Any) -> Recorded:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, or answer from the journal."""
        recorder = self._recorder
        x = args[0] if args else None
        if not (recorder.is_plain and self._is_plain and type(x) is np.ndarray) or (
            x.dtype is not _DOUBLE
        ):
            if self.takes is REST and recorder.is_plain:
                return self._follow(args, kwargs)
            return self._watched(args, kwargs)
        # The way of nearly all evaluations, half a microsecond long: what the point and the
        # value are worth is found out when many of them are packed together.
        raw = x.tobytes()
        try:
            value = self.function(*args, **kwargs)
        except Exception:
            self._note(raw, x, NOTHING)
            raise
        kind = type(value)
        if (kind is float or kind is np.float64) and x.tobytes() == raw:
            recorder.items.extend((self, raw, value))
        elif kind is np.ndarray and self._may_wait(value) and x.tobytes() == raw:
            value = self._put_off(raw, value)
        else:
            value = own(value)
            self._note(raw, x, value)
            if self.is_primary:
                self.rank(raw, value)
            elif self.is_gradient:
                recorder.trace.gradient = value
            elif self.between is not None:
                recorder.trace.constraints[self.label] = value, self.between
        if time.perf_counter() >= recorder.due:
            recorder.settle()
        return value

    def _may_wait(self, value: NDArray[Any]) -> bool:
        """Return whether an array can be packed and ranked later."""
        return self._recorder.recording and self.between is None and value.dtype is _DOUBLE

    def _put_off(self, raw: bytes, value: NDArray[Any]) -> NDArray[Any]:
        """Note an array that is packed and ranked later; returns a copy of it.

        And keeps another: MINPACK, for one, overwrites what it is given. Packing and ranking
        take four times as long, and most fits are over before the record is needed.
        """
        recorder, value = self._recorder, value.copy("K")
        recorder.items.extend((self, raw, value.copy("K")))
        recorder.grown(value.nbytes + len(raw))
        return value

    def packed(self, raw: bytes, value: Any) -> bytes:
        """Return the record of an evaluation that did nothing but return a value."""
        form, payload = pack_value(value)
        return pack_head(self.channel, form, xxh3_64_intdigest(raw)) + payload

    def _watched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do a call that needs more than being noted."""
        recorder = self._recorder
        raw = None if recorder.passing else bytes_of(self.takes, args)
        if raw is None:
            return self.function(*args, **kwargs)
        seen = self._is_plain
        is_point = self.takes is not ONE or self.see(args[0])
        if self._is_plain and not seen and recorder.is_plain:
            return self(*args, **kwargs)
        if recorder.replay is not None or recorder.memo is not None:
            value = recorder.answer(self, raw, args, kwargs)
        else:
            value = self.live(raw, args, kwargs)
        if self.is_primary and is_point:
            self.rank(raw, value)
        elif self.between is not None:
            recorder.trace.constraints[self.label] = value, self.between
        if time.perf_counter() >= recorder.due:
            recorder.settle()
        return value

    def _follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate a curve for real: nothing but its values can be of interest."""
        recorder, raw = self._recorder, bytes_of(REST, args)
        if raw is None:
            return self.function(*args, **kwargs)
        try:
            value = self.function(*args, **kwargs)
        except Exception:
            self._note(raw, None, NOTHING)
            raise
        if type(value) is np.ndarray and self._may_wait(value):
            if self.is_primary:  # scipy subtracts the data from it, and overwrites nothing
                recorder.items.extend((self, raw, value.copy("K")))
                recorder.grown(value.nbytes + len(raw))
            else:
                value = self._put_off(raw, value)
        else:
            value = own(value)
            self._note(raw, None, value)
            if self.is_primary:
                self.rank(raw, value)
        if time.perf_counter() >= recorder.due:
            recorder.settle()
        return value

    def see(self, x: Any) -> bool:
        """Note how a point is given; returns whether it is one, and not a complex step."""
        if type(x) is not np.ndarray:
            return True
        if x.dtype.kind == "c":
            return False
        self.shape, self.dtype = x.shape, x.dtype
        self._is_plain = x.dtype is _DOUBLE
        return True

    def live(self, raw: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate for real, and record."""
        x = args[0] if self.takes is ONE else None
        try:
            value = own(self.function(*args, **kwargs))
        except Exception:
            self._note(raw, x, NOTHING)
            raise
        self._note(raw, x, value)
        return value

    def _note(self, raw: bytes, x: Any, value: Any) -> None:
        """Record an evaluation with all that it did; NOTHING for one that raised."""
        if not self._recorder.recording:
            self._recorder.items.extend((b"", b"", True))  # it counts
            return
        form, payload = (OPAQUE, b"") if value is NOTHING else pack_value(value)
        head = pack_head(self.channel, form, xxh3_64_intdigest(raw))
        self._recorder.keep(self._recorder.with_extras(head + payload, x, raw), raw)

    def numbers(self, values: list[Any]) -> list[float] | None:
        """Return what many of its values are ranked by, or None if that is not simply a number.

        Without the bookkeeping of `rank`, 1.6 of 2.5 us each in a fit of 20 (2026-11).
        """
        target = self._target
        if not self.is_primary or target is None or set(map(type, values)) != {np.ndarray}:
            return None
        try:
            numbers = np.array([target(value) for value in values])
        except (TypeError, ValueError, IndexError):
            return None  # `rank` passes over the values that are wrong
        return numbers.tolist() if numbers.dtype is _DOUBLE and numbers.ndim == 1 else None

    def rank(self, raw: bytes, value: Any) -> None:
        """Note a point, if it is the best so far."""
        recorder, target = self._recorder, self._target
        if target is None:
            recorder.point = (self, raw, own(value))
            number = value[0] if type(value) is tuple else value
            if isinstance(number, (int, float)):
                recorder.trace.is_ranked = False
                recorder.ranked.append(number)
                recorder.ranked_at.append(raw)
            return
        try:
            if self.takes is COLUMNS:
                place = int(np.argmin(value))
                raw = np.frombuffer(raw).reshape(-1, len(value))[:, place].tobytes()
                value = value[place]
            number = target(value)
            recorder.ranked.append(number)
            recorder.ranked_at.append(raw)
            if type(value) is tuple:
                recorder.trace.gradient = value[-1]
            if number < recorder.best:
                recorder.best = float(number)
                recorder.point = (self, raw, own(value))
                recorder.better = True
        except (TypeError, ValueError, IndexError):
            return  # scipy will say what is wrong with it


def are_numbers(functions: list[Any], values: list[Any]) -> bool:
    """Return whether values are numbers of one type that one function returned."""
    kinds = set(map(type, values))
    return len(kinds) == 1 and kinds <= _NUMBERS.keys() and is_one(functions)


def is_one(functions: list[Any]) -> bool:
    """Return whether evaluations are of one function, none of them packed already."""
    one = functions[0]
    return type(one) is Recorded and functions.count(one) == len(functions)


def _pack(function: Recorded, raw: bytes, value: Any) -> bytes:
    form = _NUMBERS.get(type(value))
    if form is None:
        return function.packed(raw, value)
    return pack_number(function.channel, form, xxh3_64_intdigest(raw), value)


def pack_calls(functions: list[Any], raws: list[bytes], values: list[Any], *, alike: bool) -> bytes:
    """Return the records of many evaluations; one whose function is bytes is packed already.

    `alike` is what `are_numbers` says of them.
    """
    if alike:
        form, digests = _NUMBERS[type(values[0])], list(map(xxh3_64_intdigest, raws))
        return pack_numbers(functions[0].channel, form, digests, values)
    return b"".join(
        [
            function if type(function) is bytes else _pack(function, raw, value)
            for function, raw, value in zip(functions, raws, values, strict=True)
        ]
    )


def bytes_of(takes: str, args: tuple[Any, ...]) -> bytes | None:
    """Return the bytes of the point, or None if the call is not one that scipy makes."""
    if takes is REST and (point := args[1:]) and _FLOATS.issuperset(map(type, point)):
        return _packer(len(point))(*point)
    try:
        points = args[1:] if takes is REST else args[:2] if takes is TWO else args[:1]
        arrays = [np.asarray(point) for point in points]
    except (TypeError, ValueError):
        return None
    if not arrays or any(array.dtype.hasobject for array in arrays):
        return None
    return b"".join([array.tobytes() for array in arrays])


@functools.lru_cache(maxsize=64)
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"={count}d").pack


def _itself(function: Any) -> Any:
    return function


def own(value: Any) -> Any:
    """Return an output that shares no memory with what the user's function may overwrite."""
    kind = type(value)
    if kind is np.ndarray:
        return value.copy("K")
    if kind is tuple:
        return tuple([own(item) for item in value])
    return value
