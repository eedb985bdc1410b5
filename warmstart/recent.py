"""Calls that this process has made before: their keys without encoding everything again.

A key costs some 10 us to make, most of it for a function and its helpers that have not
changed. What a call was given is compared here in full (types, every bit of numbers and small
arrays, the digests of larger ones); of functions it is checked that all they stand on are the
same objects still. Only what cannot change without becoming another object counts as checked:
numbers, strings, code, what packages offer; arrays are compared. One list or instance of the
user's, and the key is made anew.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from warmstart.arrays import digest_here
from warmstart.code import Absent, offered_by, package_of_namespace, references
from warmstart.dataset import Dataset
from warmstart.objects import package_of

__all__ = ["Recent", "signature"]

_FIXED = frozenset({type(None), bool, int, float, complex, str, bytes})
_SMALL, _FEW = 1024, 64
"""Bytes of an array or a text, items of a container: larger ones are not copied."""
_MANY = 1 << 14
"""Parts of a signature; more has a list that holds itself, or another many times over."""
_CAPACITY = 1024
_MOST = 64 << 20
"""Bytes of arrays that functions hold, which are kept alive with them."""
_MAX_HELPERS = 64


class _Unsteady(Exception):  # noqa: N818 (an answer, not an error)
    """A function stands on something that may change in place."""


class _Steady:
    """All that a function stands on, as it was, by identity."""

    def __init__(self, function: types.FunctionType) -> None:
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.arrays: list[tuple[np.ndarray[Any, Any], tuple[Any, ...]]] = []
        self.functions: list[tuple[types.FunctionType, types.CodeType, Any]] = []
        todo, seen = [function], {function}
        while todo:
            for value in self._note(todo.pop()):
                if value not in seen:
                    seen.add(value)
                    todo.append(value)
            if len(seen) > _MAX_HELPERS:
                raise _Unsteady

    def _note(self, function: types.FunctionType) -> list[types.FunctionType]:
        """Note what one function stands on; returns the functions of the user's among it."""
        if offered_by(function):
            return []
        held: list[Any] = list(function.__defaults__ or ())
        if function.__kwdefaults__ or function.__dict__:
            raise _Unsteady
        self.functions.append((function, function.__code__, function.__defaults__))
        for cell in function.__closure__ or ():
            content = _content(cell)
            self.cells.append((cell, content))
            held.append(content)
        for reference in references(function.__code__):
            value = function.__globals__.get(reference.name, Absent)
            if reference.imported:
                raise _Unsteady
            self.names.append((function.__globals__, reference.name, value))
            if value is Absent:  # then it is a builtin, which may be replaced too
                scope: dict[str, Any] = function.__builtins__  # type: ignore[attr-defined,unused-ignore]
                value = scope.get(reference.name, Absent)
                self.names.append((scope, reference.name, value))
            held.append(value)
        return [value for value in held if self._check(value)]

    def _check(self, value: Any) -> bool:
        """Return whether a value is a function to look into; refuse what may change unseen."""
        kind = type(value)
        if kind is types.FunctionType:
            return True
        if kind in _FIXED or value is Absent or kind is np.ufunc or kind is Dataset:
            return False
        if kind is np.ndarray and _is_numbers(value):
            self.arrays.append((value, _bits_of(value)))
            return False
        if kind is types.ModuleType and package_of_namespace(vars(value)):
            return False
        if kind is types.BuiltinFunctionType and isinstance(value.__self__, types.ModuleType):
            return False
        if isinstance(value, type) and package_of(value):
            return False
        raise _Unsteady

    def holds(self) -> bool:
        """Return whether all of it is in its place still."""
        for namespace, name, value in self.names:
            if namespace.get(name, Absent) is not value:
                return False
        for function, code, defaults in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__
                or function.__dict__
            ):
                return False
        # Loops, since a hit comes by: two generators that yield nothing took 0.3 us (2026-11).
        for cell, value in self.cells:
            if _content(cell) is not value:
                return False
        for array, bits in self.arrays:  # noqa: SIM110 (as above)
            if _bits_of(array) != bits:
                return False
        return True


def _is_numbers(value: np.ndarray[Any, Any]) -> bool:
    return value.dtype.kind in "biufc"


def _bits_of(value: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    # A dtype compares by content, byte order included; its name costs 0.3 us.
    if value.nbytes <= _SMALL:
        return value.dtype, value.shape, value.tobytes()
    return value.dtype, value.shape, digest_here(value)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Absent


def signature(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what a call was given as something that can be looked up, or None.

    Two calls with equal signatures were given the same types and bits, and the same functions, by
    position or by name as well.
    """
    parts: list[Any] = [name, len(args)]
    try:
        for value in args:
            _sign(value, parts)
        for argument, value in named.items():
            parts.append(argument)
            _sign(value, parts)
    except (_Unsteady, RecursionError):
        return None
    return tuple(parts)


def _sign(value: Any, parts: list[Any]) -> None:
    kind = type(value)
    if kind is np.ndarray and _is_numbers(value):
        parts.append(_bits_of(value))
    elif kind is float:
        parts += (kind, _bits(value))  # -0.0 is not 0.0
    elif kind in _FIXED and kind is not complex and (kind not in _TEXTS or len(value) <= _SMALL):
        parts += (kind, value)
    elif kind is types.FunctionType:
        parts.append(value)
    elif kind is Dataset:
        parts += (kind, value.frame)
    elif (
        (kind is list or kind is tuple or kind is dict)
        and len(value) <= _FEW
        and len(parts) <= _MANY
    ):
        parts += (kind, len(value))
        for item in value.items() if kind is dict else value:
            _sign(item, parts)
    else:
        raise _Unsteady


_TEXTS = frozenset({str, bytes})
_bits = struct.Struct("<d").pack


_T = TypeVar("_T")


class Recent(Generic[_T]):
    """What is known of recent calls, by signature; a bounded number."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[list[_Steady], _T]] = {}
        self._held = 0

    def get(self, signed: tuple[Any, ...]) -> _T | None:
        """Return what is known of a call with this signature, if its functions are as they were."""
        known = self._known.get(signed)
        if known is None:
            return None
        for steady in known[0]:
            if not steady.holds():
                self._known.pop(signed, None)
                return None
        return known[1]

    def add(self, signed: tuple[Any, ...], known: _T) -> None:
        """Remember a call, if its functions stand on nothing that may change unseen."""
        try:
            steady = [_Steady(part) for part in signed if type(part) is types.FunctionType]
        except _Unsteady:
            return
        held = sum(array.nbytes for one in steady for array, _ in one.arrays)
        if len(self._known) >= _CAPACITY or self._held + held > _MOST:
            self._known.clear()
            self._held = 0
        self._held += held
        self._known[signed] = (steady, known)
