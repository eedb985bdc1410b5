"""From a value to bytes that no other value shares.

Every value becomes one self-delimiting frame: a type byte, then either a fixed number of bytes
or a length and so many bytes, or a count and so many frames. A stream of such frames can be
read in one way only, so two different streams mean two different values (a property test
reads them back). Whatever exceeds `INLINE` bytes stands by its BLAKE3 digest.

What counts: type, and every bit of the content (``-0.0`` is not ``0.0``, ``1`` is not ``1.0``).
What does not: memory layout of arrays, insertion order of dicts and sets, where in memory or on
disk things are, and whether equal containers are one object or two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from warmstart.arrays import INLINE, digest_buffer, write_array, writer_of_data
from warmstart.errors import FingerprintError

__all__ = ["Encoder", "text_frame", "writes"]

_MAX_CONTAINERS = 20_000_000

_u64 = struct.Struct("<Q").pack
_int = struct.Struct("<cq").pack
_float = struct.Struct("<cd").pack
_complex = struct.Struct("<cdd").pack
_sized = struct.Struct("<cQ").pack

Write = Callable[["Encoder", Any], None]
_Writer = TypeVar("_Writer", bound=Write)

_by_class: dict[type, Write] = {}
_by_base: list[tuple[type, Write]] = []
_chosen: dict[type, Write] = {}


def writes(*classes: type, derived: bool = False) -> Callable[[_Writer], _Writer]:
    """Register a function as the writer of exactly these classes, or of all derived from them.

    Parameters
    ----------
    *classes : type
        Each has one writer.
    derived : bool
        Where several bases fit, the one registered first wins: ``object`` comes last.
    """

    def register(writer: _Writer) -> _Writer:
        if derived:
            _by_base.extend((cls, writer) for cls in classes)
        else:
            _by_class.update(dict.fromkeys(classes, writer))
        return writer

    return register


def _choose_writer(cls: type) -> Write:
    """Return the writer for a class without one of its own, choosing it once a class."""
    writer = _chosen.get(cls)
    if writer is None:
        write_data = writer_of_data(cls)
        if write_data is not None:
            writer = lambda encoder, value: encoder.data(write_data, value)  # noqa: E731
        else:
            writer = next(writer for base, writer in _by_base if issubclass(cls, base))
        if len(_chosen) > 10_000:  # classes made in a loop
            _chosen.clear()
        _chosen[cls] = writer
    return writer


_ONLY_STR = frozenset({str})
_frame_of_text: dict[str, bytes] = {}


def text_frame(text: str) -> bytes:
    """Return the frame of a string; names come back in every key (0.1 us, not 0.5)."""
    frame = _frame_of_text.get(text)
    if frame is None:
        raw = text.encode("utf-8", "surrogatepass")
        frame = _sized(b"s", len(raw)) + (raw if len(raw) <= INLINE else digest_buffer(raw))
        if len(raw) <= 40:
            if len(_frame_of_text) > 10_000:
                _frame_of_text.clear()
            _frame_of_text[text] = frame
    return frame


class Encoder:
    """Encodes one argument, whatever it is made of.

    Parameters
    ----------
    capture : callable, optional
        Called as ``capture(path, frame)`` for each array, series or frame that is met inside
        a function or an object; its place in the stream then only says that data stands there.
        Without it, such data is part of the stream.

    Notes
    -----
    Functions, classes and instances are encoded where they are first met and referred to by
    number after that, so that recursion ends and shared helpers cost once. One encoder serves
    one value: the numbers must not depend on what was encoded before.
    """

    __slots__ = ("_capture", "_containers", "_kept", "_met", "_open", "_trail", "out", "steady")

    def __init__(self, capture: Callable[[str, bytes], None] | None = None) -> None:
        self.out: list[bytes] = []
        self.steady: Any = None
        self._capture = capture
        self._trail: list[str] = []
        self._met: dict[int, int] = {}
        self._kept: list[object] = []  # ids are unique only while the objects live
        self._open: dict[int, int] = {}
        self._containers = 0

    def encode(self, value: Any) -> bytes:
        """Return the frame of `value`.

        Raises
        ------
        FingerprintError
            If some part of it cannot be identified; its ``path`` says which.
        """
        try:
            self.write(value)
        except RecursionError as error:
            raise FingerprintError("is nested too deeply to be identified") from error
        return b"".join(self.out)

    def write(self, value: Any) -> None:
        """Append the frame of `value` to ``out``."""
        (_by_class.get(type(value)) or _choose_writer(type(value)))(self, value)

    def _separate(self, value: Any) -> bytes:
        """Encode on its own, as must be done where frames are sorted before they are joined."""
        out, self.out = self.out, []
        met, self._met = self._met, {}
        try:
            self.write(value)
            return b"".join(self.out)
        finally:
            self.out, self._met = out, met

    def step(self, step: str, value: Any) -> None:
        """Write a part of a value; an error in it is told with the step that leads there."""
        try:
            self.write(value)
        except FingerprintError as error:
            raise error.inside(step) from None

    def name(self, code: bytes, *names: str) -> None:
        """Write a type byte and so many names."""
        self.out.append(code)
        self.out.extend(map(text_frame, names))

    def _enter(self, value: object) -> bool:
        """Note that a container is being written; False where it stands inside itself."""
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise FingerprintError("holds more than 20 million containers")
        depth = self._open.get(id(value))
        if depth is None:
            self._open[id(value)] = len(self._open)
            return True
        self.out.append(b"^" + _u64(len(self._open) - depth))
        return False

    def first_time(self, value: object) -> bool:
        """Note a function, class or instance; False (and a reference) where it was met before."""
        number = self._met.get(id(value))
        if number is None:
            self._met[id(value)] = len(self._met)
            self._kept.append(value)
            return True
        self.out.append(b"@" + _u64(number))
        return False

    def captured(self, step: str, value: Any) -> None:
        """Write what a function or object holds; arrays in it are data."""
        self._trail.append(step)
        try:
            self.write(value)
        except FingerprintError as error:
            raise error.inside(step) from None
        finally:
            self._trail.pop()

    def attributes(self, attributes: Mapping[str, Any]) -> None:
        """Write named parts of a function or object, in the order of their names."""
        self.out.append(_sized(b"d", len(attributes)))
        for name in sorted(attributes):
            self._write_str(name)
            self.captured(f".{name}", attributes[name])

    # Scalars

    @writes(type(None))
    def _write_none(self, _: None) -> None:
        self.out.append(b"N")

    @writes(bool)
    def _write_bool(self, value: bool) -> None:
        self.out.append(b"1" if value else b"0")

    @writes(int)
    def _write_int(self, value: int) -> None:
        if -(1 << 63) <= value < 1 << 63:
            self.out.append(_int(b"i", value))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out.append(_sized(b"I", len(raw)) + raw)

    @writes(float)
    def _write_float(self, value: float) -> None:
        self.out.append(_float(b"f", value))

    @writes(complex)
    def _write_complex(self, value: complex) -> None:
        self.out.append(_complex(b"c", value.real, value.imag))

    def _write_raw(self, code: bytes, raw: Any) -> None:
        size = len(raw)
        self.out.append(_sized(code, size))
        self.out.append(bytes(raw) if size <= INLINE else digest_buffer(raw))

    @writes(str)
    def _write_str(self, value: str) -> None:
        self.out.append(_frame_of_text.get(value) or text_frame(value))

    @writes(bytes)
    def _write_bytes(self, value: bytes) -> None:
        self._write_raw(b"b", value)

    @writes(bytearray)
    def _write_bytearray(self, value: bytearray) -> None:
        self._write_raw(b"B", value)

    @writes(type(...), type(NotImplemented))
    def _write_constant(self, value: object) -> None:
        self.name(b"g", "python", "builtins", repr(value))

    @writes(range)
    def _write_range(self, value: range) -> None:
        self.out.append(b"r")
        for part in (value.start, value.stop, value.step):
            self._write_int(part)

    @writes(slice)
    def _write_slice(self, value: slice) -> None:
        self.out.append(b"/")
        for part in (value.start, value.stop, value.step):
            self.write(part)

    # Containers

    @writes(tuple)
    def _write_tuple(self, value: tuple[Any, ...]) -> None:
        self._write_items(b"t", value)

    @writes(list)
    def _write_list(self, value: list[Any]) -> None:
        if self._enter(value):
            self._write_items(b"l", value)
            del self._open[id(value)]

    def _write_items(self, code: bytes, items: tuple[Any, ...] | list[Any]) -> None:
        self.out.append(_sized(code, len(items)))
        i = 0
        try:
            for i, item in enumerate(items):  # noqa: B007 (i names the item at fault)
                (_by_class.get(type(item)) or _choose_writer(type(item)))(self, item)
        except FingerprintError as error:
            raise error.inside(f"[{i}]") from None

    @writes(dict)
    def _write_dict(self, value: Mapping[Any, Any]) -> None:
        if self._enter(value):
            self._write_pairs(value)
            del self._open[id(value)]

    def _write_pairs(self, value: Mapping[Any, Any]) -> None:
        self.out.append(_sized(b"d", len(value)))
        key = None
        try:
            if _ONLY_STR.issuperset(map(type, value)):
                for key in sorted(value):
                    self._write_str(key)
                    item = value[key]
                    (_by_class.get(type(item)) or _choose_writer(type(item)))(self, item)
                return
            frames = [(self._separate(key), key) for key in value]
            for frame, key in sorted(frames, key=itemgetter(0)):
                self.out.append(frame)
                self.write(value[key])
        except FingerprintError as error:
            raise error.inside(f"[{key!r:.40}]") from None

    @writes(set, frozenset)
    def _write_set(self, value: set[Any] | frozenset[Any]) -> None:
        code = b"S" if type(value) is set else b"Z"
        self.out.append(_sized(code, len(value)))
        self.out.extend(sorted(self._separate(item) for item in value))

    # Data

    def data(self, write: Callable[[Encoder, Any], None], value: Any) -> None:
        """Write data, or hand it to `capture` where it stands inside a function or object."""
        if self._capture is None or not self._trail:
            write(self, value)
            return
        out, self.out = self.out, []
        try:
            write(self, value)
            self._capture("".join(self._trail), b"".join(self.out))
        finally:
            self.out = out
        self.out.append(b"*")

    @writes(np.ndarray)
    def _write_array(self, value: np.ndarray[Any, Any]) -> None:
        self.data(write_array, value)

    @writes(np.generic, derived=True)
    def _write_scalar(self, value: np.generic) -> None:
        self.out.append(b"n")
        write_array(self, np.asarray(value))

    @writes(np.random.Generator)
    def _write_generator(self, value: np.random.Generator) -> None:
        self.out.append(b"R")
        self._write_dict(dict(value.bit_generator.state))

    @writes(np.random.RandomState)
    def _write_random_state(self, value: np.random.RandomState) -> None:
        # numpy's global one hangs on many library objects (every scipy.stats distribution);
        # there it is a name, not a state that each draw anywhere would change.
        if self._trail and value is np.random.mtrand._rand:  # noqa: SLF001
            self.name(b"g", "numpy", "numpy.random.mtrand", "_rand")
            return
        self.out.append(b"W")
        self._write_dict(dict(value.get_state(legacy=False)))
