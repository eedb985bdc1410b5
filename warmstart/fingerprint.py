"""Keys: what a fit is, as 32 bytes, and what two fits have in common.

A fit has four parts, each with a digest of its own (model, data, hyper, settings), and the
ladder of keys is made of them: the fewer parts two fits share, the less one may do for the
other. ``Level`` lists the rungs, `FitSpec` computes them.
"""

from __future__ import annotations

import enum
import functools
import platform
import re
import reprlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec
import numpy as np
import scipy
from blake3 import blake3
from xxhash import xxh3_64_digest

import warmstart.objects  # noqa: F401 (registers the writers of functions and objects)
from warmstart.errors import ArgumentError, FingerprintError
from warmstart.values import Encoder, text_frame

__all__ = [
    "Difference",
    "Fingerprint",
    "Fingerprinter",
    "FitSpec",
    "Level",
    "SpecSummary",
    "code_fingerprint",
    "environment",
]

_HEX_DIGITS = frozenset("0123456789abcdef")
_u64 = struct.Struct("<Q").pack


class Fingerprint(msgspec.Struct, frozen=True, order=True):
    """The identity of a value: 32 bytes of BLAKE3, compared and ordered as bytes.

    Parameters
    ----------
    digest : bytes
        Exactly 32 bytes.

    Raises
    ------
    ArgumentError
        If `digest` is anything else.

    Examples
    --------
    >>> key = Fingerprint(bytes(range(32)))
    >>> str(key)[:8]
    '00010203'
    >>> Fingerprint.parse(str(key)) == key
    True
    """

    digest: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.digest, bytes) or len(self.digest) != 32:
            raise ArgumentError(f"a fingerprint is 32 bytes, not {self.digest!r:.80}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fingerprint that `text` spells, 64 lowercase hexadecimal digits.

        Raises
        ------
        ArgumentError
            On anything else: other lengths, capitals, spaces, a prefix. What ``str`` writes
            is the only spelling, so equal keys have equal texts.
        """
        if not isinstance(text, str) or len(text) != 64 or not _HEX_DIGITS.issuperset(text):
            raise ArgumentError(
                f"a fingerprint is written as 64 lowercase hexadecimal digits, not {text!r:.80}"
            )
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.digest.hex()

    def __bytes__(self) -> bytes:
        return self.digest


class Fingerprinter:
    """Digests a sequence of named values, so that no two different sequences agree.

    Each `absorb` adds one frame: the length and bytes of the tag, the length and bytes of the
    typed value. Frames can be read back in one way only, so the order, the tags, the types and
    the borders between values all count.

    Examples
    --------
    >>> key = Fingerprinter().absorb("x0", [1.0, 2.0]).absorb("method", "BFGS").digest()
    >>> key == Fingerprinter().absorb("x0", [1.0, 2.0]).absorb("method", "BFGS").digest()
    True
    >>> key == Fingerprinter().absorb("x0", [1.0]).absorb("method", "BFGS").digest()
    False

    Notes
    -----
    About 1 us for a small value; arrays at the speed of memory (BLAKE3, threads above 32 MiB)
    without a copy where they are C-contiguous, else about 1 MiB at a time. An instance belongs
    to one thread.
    """

    def __init__(self) -> None:
        self._frames: list[bytes] = []

    def absorb(self, tag: str, value: Any) -> Self:
        """Add a named value.

        Parameters
        ----------
        tag : str
            The value's name.
        value : object
            None, numbers, strings, bytes, containers, enums, dataclasses, numpy arrays and
            scalars, random generators, scipy.sparse, pandas and polars objects, functions,
            methods, classes, and instances of any class that can say what it is made of.

        Returns
        -------
        Fingerprinter
            Itself.

        Raises
        ------
        FingerprintError
            If some part of `value` cannot be identified; nothing has been added.
        """
        if not isinstance(tag, str):
            raise ArgumentError(f"a tag is a str, not {type(tag).__name__}")
        self._frames.append(_frame(tag, _encode(tag, value)))
        return self

    def digest(self) -> Fingerprint:
        """Return the fingerprint of all that was absorbed so far; more may follow.

        Returns
        -------
        Fingerprint
            Of the names and values, in their order.
        """
        return Fingerprint(blake3(b"".join(self._frames)).digest())


def _encode(tag: str, value: Any, capture: Callable[..., None] | None = None) -> bytes:
    try:
        return Encoder(capture, tag).encode(value)
    except FingerprintError as error:
        raise error.inside(tag) from error.__cause__


def _frame(tag: str, content: bytes) -> bytes:
    return text_frame(tag) + _u64(len(content)) + content


def code_fingerprint(function: Any) -> Fingerprint:
    """Return the identity of what a callable does, and of all that it holds or reads.

    Raises
    ------
    FingerprintError
        If some of it cannot be identified.
    """
    return Fingerprinter().absorb("", function).digest()


def environment() -> str:
    """Return the libraries whose change makes a stored final a start instead of an answer."""
    return _ENVIRONMENT


_ENVIRONMENT = f"numpy {np.__version__} scipy {scipy.__version__} python " + ".".join(
    platform.python_version_tuple()[:2]
)


class Level(enum.Enum):
    """How much two fits share, from everything to the model alone.

    Attributes
    ----------
    EXACT
        All: a final is the answer, a checkpoint is resumed.
    JOURNAL
        Model, data, hyper, method, x0, bounds, nan_policy and rng: recorded evaluations hold.
    PROBLEM
        Model, data, hyper and bounds: the same function, so objectives compare.
    SIBLING_DATA
        Model and hyper: folds, replicates, windows.
    SIBLING_HYPER
        Model and data: paths, scans, profiles.
    FAMILY
        The model.
    """

    EXACT = "exact"
    JOURNAL = "journal"
    PROBLEM = "problem"
    SIBLING_DATA = "sibling-data"
    SIBLING_HYPER = "sibling-hyper"
    FAMILY = "family"


_PARTS = ("model", "data", "hyper", "settings")
_LEVEL_PARTS = {
    Level.EXACT: _PARTS,
    Level.JOURNAL: ("model", "data", "hyper"),
    Level.PROBLEM: ("model", "data", "hyper"),
    Level.SIBLING_DATA: ("model", "hyper"),
    Level.SIBLING_HYPER: ("model", "data"),
    Level.FAMILY: ("model",),
}
_LEVEL_SETTINGS = {
    Level.JOURNAL: ("bounds", "method", "nan_policy", "near", "rng", "x0"),
    Level.PROBLEM: ("bounds",),
}


class Difference(msgspec.Struct, frozen=True):
    """One named argument in which two fits differ.

    Parameters
    ----------
    part : str
        ``"model"``, ``"data"``, ``"hyper"`` or ``"settings"``.
    name : str
        The argument.
    ours, theirs : str or None
        A short description of either value; None where the argument is missing.
    """

    part: str
    name: str
    ours: str | None
    theirs: str | None

    def __str__(self) -> str:
        if self.ours == self.theirs:
            held = ", in its code or what it holds" if self.part == "model" else ""
            return f"{self.part}: {self.name} differs ({self.ours}{held})"
        ours, theirs = (v if v is not None else "absent" for v in (self.ours, self.theirs))
        return f"{self.part}: {self.name} is {ours} here and {theirs} there"


class SpecSummary(msgspec.Struct, frozen=True):
    """What a store keeps of a `FitSpec`: enough to say how two keys differ.

    Parameters
    ----------
    arguments : dict of str to dict of str to (bytes, str)
        For each part and named argument an XXH3 digest and a short description; under ``inside``
        the first numbers that the model's functions hold, and digests of their code.
    """

    arguments: dict[str, dict[str, tuple[bytes, str]]]

    def explain(self, other: SpecSummary) -> list[Difference]:
        """Return the arguments that differ, in the order of the parts; empty for equal fits."""
        found = []
        for part in _PARTS:
            ours, theirs = self.arguments.get(part, {}), other.arguments.get(part, {})
            for name in sorted(ours.keys() | theirs.keys()):
                a, b = ours.get(name), theirs.get(name)
                if (a and a[0]) == (b and b[0]):
                    continue
                inside = self._inside(other, name) if part == "model" and a and b else []
                found += inside or [Difference(part, name, a and a[1], b and b[1])]
        return found

    def _inside(self, other: SpecSummary, name: str) -> list[Difference]:
        """Return in what a callable of the model differs, as far as that is known."""
        ours, theirs = self.arguments.get("inside", {}), other.arguments.get("inside", {})
        return [
            Difference("model", path, ours[path][1], theirs[path][1])
            for path in ours
            if path in theirs
            and ours[path] != theirs[path]
            and (path == name or path.startswith(f"{name}."))
        ]


class FitSpec:
    """A fit as four parts, each with a digest, and the keys made of them.

    Parameters
    ----------
    model : object
        What is fitted: a callable, a mapping of named callables, or a name of your own
        (``"decay-v2"``) where the code cannot be identified or should not matter.
    data : object or mapping of str to object, optional
        The arrays it is fitted to. Arrays that the model's callables hold in a closure, in an
        instance or read from globals are counted here too, as they are at this moment.
    hyper : mapping of str to (number, str, bool or None), optional
        Named hyperparameters that change the problem.
    settings : mapping of str to object, optional
        How it is solved. ``method``, ``x0``, ``bounds`` and ``rng`` have a meaning of their
        own for the ladder; any other names (tolerances, options) only count for `key`.
    parameters : int or sequence of str, optional
        How many parameters are fitted, or their names; by default the size of
        ``settings["x0"]`` if given. It is part of the model.

    Raises
    ------
    FingerprintError
        If something cannot be identified; the message names where it stands.
    ArgumentError
        If a part is of the wrong type.

    Examples
    --------
    >>> spec = FitSpec(model="decay-v2", data=[1.0, 0.5], settings={"method": "BFGS"})
    >>> other = FitSpec(model="decay-v2", data=[1.0, 0.4], settings={"method": "BFGS"})
    >>> for difference in spec.explain(other):
    ...     print(difference)
    data: data is [1.0, 0.5] here and [1.0, 0.4] there
    >>> spec.level_key(Level.FAMILY) == other.level_key(Level.FAMILY)
    True

    Notes
    -----
    Everything is digested when the object is made; what a fit changes later (a generator's
    state, an array overwritten in place) changes nothing here. Immutable in effect; safe to
    share between threads.
    """

    def __init__(
        self,
        *,
        model: Any,
        data: Any = None,
        hyper: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        parameters: int | Sequence[str] | None = None,
    ) -> None:
        if model is None or isinstance(model, (bool, int, float, complex)):
            raise ArgumentError(
                "model is what is fitted: a function, a mapping of named ones, or a name such as "
                f'"decay-v2", not {model!r:.60}'
            )
        self._values = {
            "model": _named("model", model),
            "data": _named("data", data),
            "hyper": _mapping("hyper", hyper),
            "settings": _mapping("settings", settings),
        }
        if "parameters" in self._values["model"]:
            raise ArgumentError(
                'no part of the model can be named "parameters": that is an argument of FitSpec'
            )
        self._values["model"]["parameters"] = _parameters(parameters, self._values["settings"])
        self._captured: dict[str, tuple[list[Any], list[bytes]]] = {}
        self._inside: list[tuple[str, Any]] = []
        self._frames: dict[str, dict[str, bytes]] = {}
        self._streams: dict[str, bytes] = {}
        for part, named in self._values.items():
            frames = self._frames[part] = {}
            capture = self._capture if part == "model" else None
            for name in sorted(named):
                value = named[name]
                if type(value) is str:
                    frames[name] = text_frame(value)
                else:
                    frames[name] = _encode(name, value, capture)
            self._streams[part] = _stream(part, frames)
        if self._captured:  # in the order in which they were met, which the model decides
            held = {name: b"".join(frames) for name, (_, frames) in self._captured.items()}
            self._frames["held"] = held
            self._streams["data"] += _stream("held", held)
        self.key = self.level_key(Level.EXACT)
        """Fingerprint of the whole fit."""

    def _capture(self, path: str, value: Any, frame: bytes) -> None:
        """Note what was met inside a callable of the model: an array, or something small."""
        if not frame:
            self._inside.append((path, value))
            return
        values, frames = self._captured.setdefault(path, ([], []))
        values.append(value)
        frames.append(frame)

    def data_values(self) -> Iterator[tuple[str, Any]]:
        """Yield the arguments that are the data, and the arrays that the callables hold.

        Returns
        -------
        iterator of (str, object)
            Names and values.
        """
        yield from self._values["data"].items()
        for name, (values, _) in self._captured.items():
            for number, value in enumerate(values):
                yield f"{name}[{number}]", value

    def hyper_values(self) -> dict[str, Any]:
        """Return the hyperparameters.

        Returns
        -------
        dict of str to object
            Names and values.
        """
        return dict(self._values["hyper"])

    def part(self, name: str) -> Fingerprint:
        """Return the digest of one part: model, data, hyper or settings.

        Parameters
        ----------
        name : {"model", "data", "hyper", "settings"}
            Which one.

        Returns
        -------
        Fingerprint
            Equal for all fits that agree in it.

        Raises
        ------
        ArgumentError
            For any other name.
        """
        if name not in _PARTS:
            raise ArgumentError(f"a fit has the parts {', '.join(_PARTS)}, not {name!r}")
        return Fingerprint(blake3(self._streams[name]).digest())

    def level_key(self, level: Level) -> Fingerprint:
        """Return the key that all fits share which agree up to `level`.

        Parameters
        ----------
        level : Level
            How much is shared.

        Returns
        -------
        Fingerprint
            The same as ``key`` for ``Level.EXACT``.
        """
        streams = [text_frame(level.value), *(self._streams[part] for part in _LEVEL_PARTS[level])]
        if level in _LEVEL_SETTINGS:
            settings = self._frames["settings"]
            shared = {name: settings[name] for name in _LEVEL_SETTINGS[level] if name in settings}
            streams.append(_stream("settings", shared))
        return Fingerprint(blake3(b"".join(streams)).digest())

    def model_without_parameters(self) -> Fingerprint:
        """Return the digest of the model, however many parameters it has.

        Returns
        -------
        Fingerprint
            Equal for models that differ in that alone.
        """
        frames = {name: f for name, f in self._frames["model"].items() if name != "parameters"}
        return Fingerprint(blake3(_stream("model", frames)).digest())

    def key_without(self, setting: str) -> Fingerprint:
        """Return the key of the same fit without one of its settings.

        Parameters
        ----------
        setting : str
            Its name.

        Returns
        -------
        Fingerprint
            The own key of a fit that has no such setting.
        """
        frames = {name: f for name, f in self._frames["settings"].items() if name != setting}
        streams = [self._streams[part] for part in _PARTS if part != "settings"]
        exact = [text_frame(Level.EXACT.value), *streams, _stream("settings", frames)]
        return Fingerprint(blake3(b"".join(exact)).digest())

    def summary(self) -> SpecSummary:
        """Return the digests and short descriptions of all named arguments.

        Returns
        -------
        SpecSummary
            Some hundred bytes.
        """
        arguments: dict[str, dict[str, tuple[bytes, str]]] = {}
        for part, frames in self._frames.items():
            known = arguments.setdefault("data" if part == "held" else part, {})
            for name, frame in frames.items():
                known[name] = xxh3_64_digest(frame), self._describe(part, name)
        arguments["inside"] = self._describe_inside()
        return SpecSummary({part: known for part, known in arguments.items() if known})

    def _describe_inside(self) -> dict[str, tuple[bytes, str]]:
        """Return what tells the callables of the model apart: 0.5 us each, at most eight."""
        found: dict[str, tuple[bytes, str]] = {}
        room = _INSIDE
        for path, value in self._inside:
            name = path.replace("__globals__['", "").replace("__closure__['", "").replace("']", "")
            label = f"code {value[:3].hex()}" if type(value) is bytes else _describe(value)
            room -= len(name) + len(label)
            if room < 0:
                break
            found[name] = b"", label
        return found

    def _describe(self, part: str, name: str) -> str:
        if part != "held":
            return _describe(self._values[part][name])
        values, _ = self._captured[name]
        return _describe(values[0]) if len(values) == 1 else f"{len(values)} arrays"

    def explain(self, other: FitSpec) -> list[Difference]:
        """Return which parts and which named arguments differ; empty for equal fits.

        Parameters
        ----------
        other : FitSpec
            What to compare with.

        Returns
        -------
        list of Difference
            In the order of the parts.
        """
        if not isinstance(other, FitSpec):
            raise ArgumentError(f"explain compares with a FitSpec, not {type(other).__name__}")
        return self.summary().explain(other.summary())

    def __repr__(self) -> str:
        return f"<FitSpec {str(self.key)[:12]}>"


_INSIDE = 100
"""Bytes by which a summary tells the functions of a model apart, at most."""


_STREAM_HEADS = {part: text_frame(part) for part in (*_PARTS, "held")}


def _stream(part: str, frames: Mapping[str, bytes]) -> bytes:
    """Return one part: its name, how many arguments, and the name and frame of each."""
    pieces = [_STREAM_HEADS[part], _u64(len(frames))]
    for name, frame in frames.items():
        pieces += (text_frame(name), frame)
    return b"".join(pieces)


def _parameters(given: int | Sequence[str] | None, settings: dict[str, Any]) -> Any:
    if given is not None:
        if isinstance(given, int) and not isinstance(given, bool):
            return given
        if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
            return tuple(given)
        raise ArgumentError(
            "parameters is how many there are, or a list of their names such as "
            f'["rate", "scale"], not {given!r:.60}'
        )
    x0 = settings.get("x0")
    if x0 is None:
        return None
    try:
        return x0.size if type(x0) is np.ndarray else int(np.size(x0))
    except Exception:  # noqa: BLE001 (ragged lists: the optimizer will say what is wrong)
        return None


def _named(part: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, (dict, Mapping)) and _STR.issuperset(map(type, value)):
        return dict(value)
    return {part: value}


def _mapping(part: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, (dict, Mapping)) or not _STR.issuperset(map(type, value)):
        raise ArgumentError(
            f"{part} is a mapping of names to values, not {value!r:.80}: "
            f'write {part}={{"name": value}}'
        )
    return dict(value)


_STR = frozenset({str})
_short = reprlib.Repr()  # bounded work: a list of a million numbers is not spelled out first
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 8
_short.maxstring = _short.maxother = _short.maxlong = 60
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _describe(value: Any) -> str:
    """Return at most 60 characters that tell a person which value this is; never raises."""
    try:
        return _describe_any(value)
    except Exception:  # noqa: BLE001 (a user's attributes may raise anything; this is only a label)
        return _cut(type(value).__name__)


def _describe_any(value: Any) -> str:
    kind = type(value)
    if kind is str:
        text = repr(value) if len(value) <= 60 else _short.repr(value)
    elif kind in _PLAIN or (kind is int and value.bit_length() < 200):
        text = repr(value)
    elif isinstance(value, np.ndarray) and (value.size > 4 or not _is_numbers(value)):
        return f"{_name_of(value.dtype)}{list(value.shape)}"
    elif isinstance(value, np.ndarray):
        text = f"array({value.tolist()})"  # numpy's own text takes 50 us
    elif kind is tuple and len(value) <= 8:
        text = ", ".join(["(...)" if type(item) is tuple else _describe(item) for item in value])
        text = f"({text},)" if len(value) == 1 else f"({text})"
    else:
        return _describe_other(value)
    return _cut(text)


@functools.lru_cache(maxsize=64)
def _name_of(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # 2.3 us (numpy 2.4, 2026-11)


def _describe_other(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"[-60:]
    shape = getattr(value, "shape", None)
    if type(shape) is tuple and type(value).__module__.partition(".")[0] != "numpy":
        return _cut(f"{type(value).__name__}{list(shape)}")
    return _cut(_ADDRESS.sub("", " ".join(_short.repr(value).split())))


_PLAIN = frozenset({type(None), bool, float, complex})


def _is_numbers(value: np.ndarray[Any, Any]) -> bool:
    return value.dtype.kind in "biufc"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
