"""From a value to bytes that no other value shares.

Every value becomes one self-delimiting frame: a type byte, then either a fixed number of bytes,
or a size and so many bytes, or a fixed number of frames. A stream of such frames can be read in
one way only, so two different streams mean two different values (a property test reads them
back). Whatever exceeds `INLINE` bytes stands by its BLAKE3 digest.

What counts: type, and every bit of the content (``-0.0`` is not ``0.0``, ``1`` is not ``1.0``).
What does not: memory layout of arrays, insertion order of dicts and sets, where in memory or on
disk things are, and whether equal containers are one object or two.
"""

from __future__ import annotations

import builtins
import struct
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from warmstart.arrays import INLINE, digest_buffer, write_array, writer_of_data
from warmstart.errors import FingerprintError

__all__ = ["NUMBERS", "Encoder", "text_frame", "writes"]

_MAX_CONTAINERS = 2_000_000  # 2 to 10 s (2026-11)
_TOLD = 8
"""Numbers and codes of a callable that are told of, at most."""

_BUILTINS = vars(builtins)
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


NUMBERS = frozenset({bool, int, float, complex})
_SCALARS = NUMBERS | {type(None), str}
_ONLY_STR = frozenset({str})
_frame_of_text: dict[str, bytes] = {}


def _frame(code: bytes, content: bytes) -> bytes:
    size = len(content)
    return _sized(code, size) + (content if size <= INLINE else digest_buffer(content))


def text_frame(text: str) -> bytes:
    """Return the frame of a string; names come back in every key (0.1 us, not 0.5)."""
    frame = _frame_of_text.get(text)
    if frame is None:
        frame = _frame(b"s", text.encode("utf-8", "surrogatepass"))
        if len(frame) <= 50:
            if len(_frame_of_text) > 10_000:
                _frame_of_text.clear()
            _frame_of_text[text] = frame
    return frame


_NO_ATTRIBUTES = _frame(b"d", b"")


class Encoder:
    """Encodes one argument, whatever it is made of.

    Parameters
    ----------
    capture : callable, optional
        Called as ``capture(path, value, frame)`` for each array, series or frame of data that
        is met inside a function or an object; its place in the stream then only says that data
        stands there. Without it, such data is part of the stream. Also called, without a frame,
        for the first numbers that are met there, and for the digests of code.
    name : str, optional
        The argument's name, with which the path begins.

    Notes
    -----
    Functions, classes and instances are encoded where they are first met and referred to by
    number after that, so that recursion ends and shared helpers cost once. One encoder serves
    one value: the numbers must not depend on what was encoded before.
    """

    __slots__ = (
        "_capture",
        "_containers",
        "_digested",
        "_marks",
        "_met",
        "_name",
        "_open",
        "_told",
        "_trail",
        "out",
    )

    def __init__(
        self, capture: Callable[[str, Any, bytes], None] | None = None, name: str = ""
    ) -> None:
        self.out: list[bytes] = []
        self._capture = capture
        self._name = name
        self._trail: list[str] = []
        # Ids are unique only while the objects live: both tables keep what they number.
        self._met: dict[int, tuple[int, object]] = {}
        self._digested: dict[int, tuple[bytes, object]] = {}
        self._open: dict[int, int] = {}
        self._containers = 0
        self._told = 0
        self._marks = 0  # how often something was written that holds at its place only

    def encode(self, value: Any) -> bytes:
        """Return the frame of `value`.

        Raises
        ------
        FingerprintError
            If some part of it cannot be identified; its ``path`` says which.
        """
        try:
            self.write(value)
        except FingerprintError:
            raise
        except RecursionError as error:
            raise FingerprintError("is nested too deeply to be identified") from error
        except Exception as error:  # what a value's own methods and properties may raise
            said = traceback.format_exception_only(error)[-1].strip()  # its own text may raise too
            raise FingerprintError(f"cannot be looked into ({said:.80})") from error
        return b"".join(self.out)

    def write(self, value: Any) -> None:
        """Append the frame of `value` to ``out``."""
        (_by_class.get(type(value)) or _choose_writer(type(value)))(self, value)

    def name(self, code: bytes, *names: str) -> None:
        """Write a type byte and so many names."""
        frames = [_frame_of_text.get(name) or text_frame(name) for name in names]
        self.out.append(code + b"".join(frames))

    def part(self, step: str, value: Any) -> None:
        """Write what a function or object holds: arrays in it are data, errors tell the step."""
        if type(value) in _SCALARS:
            if type(value) in NUMBERS:
                self.tell(step, value)
            self.write(value)
            return
        self._trail.append(step)
        try:
            self.write(value)
        except FingerprintError as error:
            raise error.inside(step) from error.__cause__
        self._trail.pop()

    def tell(self, step: str, value: Any) -> None:
        """Let `capture` know of numbers or code that a callable holds; texts may be secret."""
        if self._capture is not None and self._told < _TOLD:
            self._told += 1
            self._capture(f"{self._name}{''.join(self._trail)}{step}", value, b"")

    def attributes(self, attributes: Mapping[str, Any]) -> None:
        """Write named parts of a function or object, in the order of their names."""
        if not attributes:
            self.out.append(_NO_ATTRIBUTES)
            return
        outer, self.out = self.out, []
        for name in sorted(attributes):
            self._write_str(name)
            self.part(f".{name}", attributes[name])
        outer.append(_frame(b"d", b"".join(self.out)))
        self.out = outer

    def met(self, value: object) -> bool:
        """Whether a function, class or instance was noted before: if so, refer to it."""
        known = self._met.get(id(value))
        if known is None:
            return False
        self.out.append(b"@" + _u64(known[0]))
        return True

    def note(self, value: object) -> None:
        """Give a number to a function, class or instance that is about to be written."""
        self._met[id(value)] = (len(self._met), value)
        self._marks += 1

    def _separate(self, value: Any) -> bytes:
        """Encode a dict's key or a set's item: their frames are sorted before they are joined.

        So nothing in it may depend on the order in which they come: numbers given inside are
        taken back, and its arrays are content.
        """
        outer, self.out = self.out, []
        capture, self._capture = self._capture, None
        noted = len(self._met)
        self.write(value)
        if len(self._met) > noted:
            self._take_back(noted)
        frame = b"".join(self.out)
        self.out, self._capture = outer, capture
        return frame

    def _take_back(self, noted: int) -> None:
        while len(self._met) > noted:
            self._met.popitem()
        self._digested.clear()  # some of it may refer to the numbers taken back

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
            size = value.bit_length() // 8 + 1
            self.out.append(_frame(b"I", value.to_bytes(size, "little", signed=True)))

    @writes(float)
    def _write_float(self, value: float) -> None:
        self.out.append(_float(b"f", value))

    @writes(complex)
    def _write_complex(self, value: complex) -> None:
        self.out.append(_complex(b"c", value.real, value.imag))

    @writes(str)
    def _write_str(self, value: str) -> None:
        self.out.append(_frame_of_text.get(value) or text_frame(value))

    @writes(bytes)
    def _write_bytes(self, value: bytes) -> None:
        self.out.append(_frame(b"b", value))

    @writes(bytearray)
    def _write_bytearray(self, value: bytearray) -> None:
        self.out.append(_frame(b"B", bytes(value)))

    @writes(range)
    def _write_range(self, value: range) -> None:
        self.out.append(b"r")
        self._write_int(value.start)
        self._write_int(value.stop)
        self._write_int(value.step)

    @writes(slice)
    def _write_slice(self, value: slice) -> None:
        self.out.append(b"/")
        self.write(value.start)
        self.write(value.stop)
        self.write(value.step)

    # Containers

    def _enter(self, value: object) -> bool:
        """Note that a container is being written; False where it stands inside itself."""
        depth = self._open.get(id(value))
        if depth is None:
            self._open[id(value)] = len(self._open)
            return True
        self.out.append(b"^" + _u64(len(self._open) - depth))
        self._marks += 1
        return False

    def _again(self, value: object) -> bool:
        """Whether a long container or array was written before: if so, write it from memory.

        Without it ``a = [a, a]``, done a hundred times, would never end.
        """
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise FingerprintError("holds more than 2 million containers")
        known = self._digested.get(id(value))
        if known is None:
            return False
        self.out.append(known[0])
        return True

    def _close(self, code: bytes, outer: list[bytes], marks: int, value: object) -> None:
        content = b"".join(self.out)
        frame = _frame(code, content)
        self.out = outer
        outer.append(frame)
        if len(content) > INLINE and marks == self._marks:
            self._digested[id(value)] = (frame, value)

    def _write_items(self, code: bytes, items: Sequence[Any]) -> None:
        if self._again(items):
            return
        outer, self.out = self.out, []
        marks = self._marks
        i = 0
        try:
            for i, item in enumerate(items):  # noqa: B007 (i names the item at fault)
                (_by_class.get(type(item)) or _choose_writer(type(item)))(self, item)
        except FingerprintError as error:
            raise error.inside(f"[{i}]") from error.__cause__
        self._close(code, outer, marks, items)

    @writes(tuple)
    def _write_tuple(self, value: tuple[Any, ...]) -> None:
        self._write_items(b"t", value)

    @writes(list)
    def _write_list(self, value: list[Any]) -> None:
        if self._enter(value):
            self._write_items(b"l", value)
            del self._open[id(value)]

    @writes(dict)
    def _write_dict(self, value: Mapping[Any, Any]) -> None:
        if value is _BUILTINS:  # left by exec in the namespace that it was given
            self.name(b"M", "python", "builtins")
        elif self._enter(value):
            self._write_pairs(b"d", value)
            del self._open[id(value)]

    @writes(types.MappingProxyType)
    def _write_view(self, value: Mapping[Any, Any]) -> None:
        self.out.append(b"v")
        self._write_dict(dict(value))

    def _write_pairs(self, code: bytes, value: Mapping[Any, Any]) -> None:
        if self._again(value):
            return
        outer, self.out = self.out, []
        marks = self._marks
        key: Any = ...
        try:
            if _ONLY_STR.issuperset(map(type, value)):
                for key in sorted(value):
                    self._write_str(key)
                    item = value[key]
                    (_by_class.get(type(item)) or _choose_writer(type(item)))(self, item)
            else:
                for frame, key in self._in_order(value):
                    self.out.append(frame)
                    self.write(value[key])
        except FingerprintError as error:
            step = "" if key is ... else f"[{key!r:.40}]"
            raise error.inside(step) from error.__cause__
        self._close(code, outer, marks, value)

    def _in_order(self, keys: Mapping[Any, Any]) -> list[tuple[bytes, Any]]:
        pairs = [(self._separate(key), key) for key in keys]
        pairs.sort(key=itemgetter(0))
        if len({frame for frame, _ in pairs}) < len(pairs):
            raise FingerprintError("has two keys that cannot be told apart")
        return pairs

    @writes(set, frozenset)
    def _write_set(self, value: set[Any] | frozenset[Any]) -> None:
        if self._again(value):
            return
        outer, self.out = self.out, []
        marks = self._marks
        try:
            self.out = sorted(map(self._separate, value))
        except FingerprintError as error:
            raise error.inside("{...}") from error.__cause__
        self._close(b"S" if type(value) is set else b"Z", outer, marks, value)

    # Data

    def data(self, write: Callable[[Encoder, Any], None], value: Any) -> None:
        """Write data, or hand it to `capture` where it stands inside a function or object."""
        outer, self.out = self.out, []
        marks, noted = self._marks, len(self._met)
        if not self._again(value):
            write(self, value)
        frame = b"".join(self.out)
        self.out = outer
        if marks == self._marks:
            self._digested[id(value)] = (frame, value)
        if self._capture is None or not self._trail:
            outer.append(frame)
            return
        if len(self._met) > noted:
            self._take_back(noted)  # the model must not refer to what only the data say
        self._capture(self._name + "".join(self._trail), value, frame)
        self._marks += 1
        outer.append(b"*")

    @writes(np.ndarray)
    def _write_array(self, value: np.ndarray[Any, Any]) -> None:
        if self._trail or value.nbytes > INLINE:
            self.data(write_array, value)
        else:
            write_array(self, value)

    @writes(np.generic, derived=True)
    def _write_scalar(self, value: np.generic) -> None:
        self.out.append(b"n")
        write_array(self, np.asarray(value))

    @writes(np.dtype, derived=True)
    def _write_dtype(self, value: np.dtype[Any]) -> None:
        self.out.append(b"y")
        self._write_items(b"t", value.__reduce__()[1:])

    @property
    def inside(self) -> bool:
        """Whether what is being written is held by a function or an object."""
        return bool(self._trail)
