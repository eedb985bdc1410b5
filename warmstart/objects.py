"""Functions, classes, modules and instances by what they do; importing it teaches `Encoder`."""

from __future__ import annotations

import builtins
import copyreg
import enum
import functools
import importlib
import importlib.util
import sys
import types
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from warmstart.arrays import digest_buffer
from warmstart.code import Reference, installed_package, instructions, references, resolve
from warmstart.errors import FingerprintError
from warmstart.values import Encoder, writes


class Absent:
    """A name that stands for nothing yet: an empty cell, a global that is not defined."""

    def __init__(self, name: str) -> None:
        self.name = name


@writes(types.FunctionType)
def _write_function(encoder: Encoder, function: types.FunctionType) -> None:
    if not encoder.first_time(function):
        return
    package = installed_package(function.__module__)
    if package and resolve(function.__module__, function.__qualname__) is function:
        encoder.name(b"g", package, function.__module__, function.__qualname__)
        return
    encoder.out.append(b"F")
    code = function.__code__
    digest, names = _code_facts(code)
    encoder.out.append(digest)
    encoder.step(".__defaults__", function.__defaults__)
    encoder.step(".__kwdefaults__", function.__kwdefaults__)
    steady = encoder.steady
    if steady is not None:
        steady.note_function(function)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        value = _content(cell)
        if steady is not None:
            steady.note_cell(cell, value)
        encoder.captured(f".__closure__[{name!r}]", value)
    for reference in names:
        value = _look_up(function, reference)
        if steady is not None:
            steady.note_global(function, reference, value)
        step = f".__globals__[{reference.name!r}]"
        encoder.captured(".".join((step, *reference.attributes)), value)
    encoder.attributes(function.__dict__)


class _Steady:
    """What has to be the same object still for the frame of a function to be the same.

    Only what cannot change without becoming another object is steady: numbers, strings, code,
    what packages offer. One list, array or instance of the user's makes the whole unsteady.
    """

    def __init__(self) -> None:
        self.holds = True
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any]] = []

    def note_function(self, function: types.FunctionType) -> None:
        defaults = function.__defaults__
        plain = all(type(value) in _FIXED for value in defaults or ())
        self.holds &= plain and not function.__kwdefaults__ and not function.__dict__
        self.functions.append((function, function.__code__, defaults))

    def note_cell(self, cell: types.CellType, value: Any) -> None:
        self.holds &= _is_fixed(value)
        self.cells.append((cell, value))

    def note_global(self, function: types.FunctionType, reference: Reference, value: Any) -> None:
        held = function.__globals__.get(reference.name, Absent)
        direct = held is value or (held is Absent and not reference.imported)
        self.holds &= direct and _is_fixed(value)
        self.names.append((function.__globals__, reference.name, held))

    def is_so(self) -> bool:
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
        return all(_content(cell) is value for cell, value in self.cells)


_FIXED = frozenset({type(None), bool, int, float, complex, str, bytes})


def _is_fixed(value: Any) -> bool:
    kind = type(value)
    if kind in _FIXED or kind is types.FunctionType or kind is np.ufunc or kind is Absent:
        return True  # functions are noted by themselves when they are written
    if kind is types.ModuleType:
        return installed_package(value.__name__) is not None
    if kind is types.BuiltinFunctionType:
        return isinstance(value.__self__, types.ModuleType)
    return isinstance(value, type) and installed_package(value.__module__) is not None


_steady_functions: dict[types.FunctionType, tuple[_Steady, bytes]] = {}


def function_frame(function: types.FunctionType) -> bytes | None:
    """Return the frame of a function without arrays, from memory where it must be the same.

    Encoding a function with a helper and a constant takes 5 us, checking that all it stands
    on is still in its place 0.5 us (2026-11); every hit pays one of them.
    """
    known = _steady_functions.get(function)
    if known is not None and known[0].is_so():
        return known[1]
    steady = _Steady()
    encoder = Encoder()
    encoder.steady = steady
    frame = encoder.encode(function)
    if not steady.holds:
        return None
    if len(_steady_functions) >= 1000:  # functions made in a loop
        _steady_functions.clear()
    _steady_functions[function] = (steady, frame)
    return frame


@writes(Absent)
def _write_absent(encoder: Encoder, value: Absent) -> None:
    encoder.name(b"?", value.name)


@writes(types.CodeType)
def _write_code(encoder: Encoder, code: types.CodeType) -> None:
    encoder.out.append(b"O" + _code_facts(code)[0])


@writes(types.ModuleType, derived=True)
def _write_module(encoder: Encoder, module: types.ModuleType) -> None:
    package = installed_package(module.__name__)
    if package:
        encoder.name(b"M", package, module.__name__)
    elif encoder.first_time(module):
        # The user's own module, handed on as a whole: all that stands in it counts.
        encoder.name(b"m", module.__name__)
        encoder.attributes({k: v for k, v in vars(module).items() if k[:2] != "__"})


@writes(types.MethodType)
def _write_method(encoder: Encoder, method: types.MethodType) -> None:
    encoder.out.append(b"h")
    encoder.write(method.__func__)
    encoder.captured(".__self__", method.__self__)


@writes(functools.partial)
def _write_partial(encoder: Encoder, value: functools.partial[Any]) -> None:
    encoder.out.append(b"p")
    encoder.step(".func", value.func)
    encoder.captured(".args", value.args)
    encoder.captured(".keywords", value.keywords)


@writes(types.BuiltinFunctionType, types.MethodWrapperType)
def _write_builtin(encoder: Encoder, value: Any) -> None:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        encoder.out.append(b"k")
        encoder.write(value.__name__)
        encoder.step(".__self__", owner)
        return
    _write_named(encoder, value)


@writes(
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    np.ufunc,
)
def _write_named(encoder: Encoder, value: Any) -> None:
    """Write something compiled by the name under which its installed package offers it."""
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    for module in _homes(value):
        package = installed_package(module)
        if package and resolve(module, name) is value:
            encoder.name(b"g", package, module, name)
            return
    inner = getattr(value, "__wrapped__", None)
    if callable(inner):  # functools.cache, numba, jax.jit: the wrapper's kind, what it wraps
        encoder.out.append(b"w")
        _write_type(encoder, type(value))
        encoder.step(".__wrapped__", inner)
        return
    raise FingerprintError(f"{value!r:.80} is compiled code whose content cannot be read")


@writes(enum.Enum, derived=True)
def _write_enum(encoder: Encoder, value: enum.Enum) -> None:
    encoder.out.append(b"E")
    _write_type(encoder, type(value))
    encoder.write(value.name)
    encoder.write(value.value)


@writes(type, derived=True)
def _write_type(encoder: Encoder, cls: type) -> None:
    package = installed_package(cls.__module__)
    if package and "<locals>" not in cls.__qualname__:
        encoder.name(b"g", package, cls.__module__, cls.__qualname__)
        return
    if encoder.first_time(cls):
        encoder.name(b"C", cls.__qualname__)
        encoder.write(cls.__bases__)
        encoder.attributes(_members(cls))


@writes(object, derived=True)
def _write_object(encoder: Encoder, value: Any) -> None:
    """Write an instance by its class and by what it would take to build it again.

    ``__reduce_ex__`` is the one protocol by which any object of any library says that;
    nothing is pickled, the pieces are encoded like other values.
    """
    if not encoder.first_time(value):
        return
    cls = type(value)
    package = installed_package(cls.__module__)
    if package and _write_of_library(encoder, value, package):
        return
    try:
        reduce = copyreg.dispatch_table.get(cls)
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception as error:
        raise FingerprintError(
            f"a {cls.__module__}.{cls.__qualname__} has no content to identify it by ({error})"
        ) from error
    encoder.out.append(b"o")
    if isinstance(reduced, str):
        encoder.name(b"q", cls.__module__, reduced)
        return
    build, args, state, items, pairs = (*reduced, None, None, None)[:5]
    encoder.write(build)
    encoder.captured("", args)
    plain, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    for part in (plain, slots):
        if type(part) is dict and all(type(key) is str for key in part):
            encoder.attributes(part)
        else:
            encoder.captured("", part)
    encoder.captured("", None if items is None else list(items))
    if pairs is not None:
        pairs = list(pairs) if isinstance(value, OrderedDict) else dict(pairs)
    encoder.captured("", pairs)


def _write_of_library(encoder: Encoder, value: Any, package: str) -> bool:
    """Write what an installed package's instance is known by better than by its content."""
    cls = type(value)
    home = sys.modules[cls.__module__]
    for name, other in vars(home).items():
        if other is value:  # a module's own instance, such as scipy.stats.norm
            encoder.name(b"g", package, home.__name__, name)
            return True
    if callable(value) and hasattr(value, "__qualname__"):
        _write_named(encoder, value)
        return True
    optimize = sys.modules.get("scipy.optimize")
    if optimize and cls in {optimize.BFGS, optimize.SR1}:
        # A quasi-Newton strategy is initialized again by every fit; what the last one left in
        # it is not what it is, and must not change the key of the next.
        encoder.out.append(b"H")
        _write_type(encoder, cls)
        encoder.attributes({k: v for k, v in vars(value).items() if k not in _FIT_STATE})
        return True
    return False


_FIT_STATE = frozenset({"first_iteration", "approx_type", "B", "H", "n"})

# What a class says of itself besides what it does.
_CLASS_NOISE = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__match_args__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


def _members(cls: type) -> dict[str, Any]:
    if issubclass(cls, enum.Enum):
        own = {k: v for k, v in vars(cls).items() if isinstance(v, types.FunctionType)}
        return own | {name: member.value for name, member in cls.__members__.items()}
    return {name: _member(v) for name, v in vars(cls).items() if name not in _CLASS_NOISE}


def _member(value: Any) -> Any:
    """Return what a descriptor in a class holds, so that it can be written as plain values."""
    if isinstance(value, (staticmethod, classmethod)):
        return (type(value).__name__, value.__func__)
    if isinstance(value, property):
        return ("property", value.fget, value.fset, value.fdel)
    if isinstance(value, functools.cached_property):
        return ("cached_property", value.func)
    if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
        return None
    return value


_facts_of_code: dict[int, tuple[weakref.ref[types.CodeType], bytes, tuple[Reference, ...]]] = {}


def _code_facts(code: types.CodeType) -> tuple[bytes, tuple[Reference, ...]]:
    """Return the digest of `code` and the names that it reads, computed once a code object.

    By identity, not by equality: equal code hashes its constants anew each time (1 us), and the
    whole digest would cost 200 us on every call (CPython 3.11, 2026-11).
    """
    known = _facts_of_code.get(id(code))
    if known is not None and known[0]() is code:
        return known[1], known[2]
    digest = digest_buffer(Encoder().encode(instructions(code)))
    names = references(code)
    if len(_facts_of_code) > 10_000:  # code made by exec in a loop
        _facts_of_code.clear()
    _facts_of_code[id(code)] = (weakref.ref(code), digest, names)
    return digest, names


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Absent("")


def _look_up(function: types.FunctionType, reference: Reference) -> Any:
    """Return what a name in a function stands for at this moment."""
    if reference.imported:
        value = _imported(function, reference)
    else:
        value = function.__globals__.get(reference.name, Absent)
        if value is Absent:
            scope = function.__globals__.get("__builtins__", builtins)
            scope = scope if isinstance(scope, dict) else vars(scope)
            value = scope.get(reference.name, Absent(reference.name))
    for attribute in reference.attributes:
        # Only through the user's own modules: a library stands for all that it offers, and
        # what an object offers is part of the object.
        if type(value) is not types.ModuleType or installed_package(value.__name__):
            break
        value = getattr(value, attribute, Absent(attribute))
    return value


def _imported(function: types.FunctionType, reference: Reference) -> Any:
    package = function.__globals__.get("__package__") or ""
    try:
        name = importlib.util.resolve_name("." * reference.level + reference.name, package)
        if installed_package(name) and name not in sys.modules:
            return Absent(f"{installed_package(name)}:{name}")  # not worth importing for a key
        return importlib.import_module(name)
    except ImportError:
        return Absent(reference.name)


def _homes(value: Any) -> tuple[str, ...]:
    """Return the modules that may offer something compiled under its own name."""
    owner = getattr(value, "__objclass__", None)
    module = getattr(value, "__module__", None) or getattr(owner, "__module__", None)
    if isinstance(value, np.ufunc):
        return (module or "numpy", "numpy", "scipy.special")
    return (module,) if module else ()
