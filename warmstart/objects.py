"""Functions, classes, modules and instances by what they do; importing it teaches `Encoder`."""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import inspect
import struct
import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np

from warmstart.arrays import digest_buffer
from warmstart.code import (
    Absent,
    Library,
    Reference,
    attributes,
    installed_package,
    instructions,
    offered_by,
    once,
    package_of_namespace,
    references,
    resolve,
)
from warmstart.errors import FingerprintError
from warmstart.randomness import state_of
from warmstart.values import NUMBERS, Encoder, writes

__all__: list[str] = []

# What these read or do depends on text or on the caller: code that holds them has no identity.
_BY_TEXT: tuple[Any, ...] = (eval, exec, globals, __import__, importlib.import_module)
_BY_TEXT += (importlib.__import__, sys._getframe, inspect.currentframe, inspect.stack)  # noqa: SLF001
_UNFORESEEABLE = {id(value): f"calls {value.__name__}()" for value in _BY_TEXT} | {
    id(sys.modules): "reads sys.modules"
}
_UNFORESEEABLE_NAMES = frozenset({*(value.__name__ for value in _BY_TEXT), "modules"})

_ONLY_RUNNING = "{}, and only running it would tell what that is"
_UNREADABLE = "{!r:.80} is compiled code whose content cannot be read"


@writes(types.FunctionType)
def _write_function(encoder: Encoder, function: types.FunctionType) -> None:
    if encoder.met(function):
        return
    package = package_of_namespace(function.__globals__)
    if package and (offered := offered_by(function)):
        _refuse_unforeseeable(function)
        encoder.name(b"g", offered, function.__module__, function.__qualname__)
        return
    encoder.note(function)
    code = function.__code__
    digest, names, by_text = _code_facts(code)
    encoder.out.append(b"F" + digest)
    encoder.tell("", digest)
    if function.__defaults__ and NUMBERS.issuperset(map(type, function.__defaults__)):
        encoder.tell(".__defaults__", function.__defaults__)
    encoder.part(".__defaults__", function.__defaults__)
    encoder.part(".__kwdefaults__", function.__kwdefaults__)
    if function.__closure__:
        for name, cell in zip(code.co_freevars, function.__closure__, strict=True):
            encoder.part(f".__closure__[{name!r}]", _content(cell))
    if package:  # made by a function of a package, whose version says what its globals are
        encoder.name(b"g", package)
    else:
        for step, reference in names:
            encoder.part(step, reference.value(function))
        if by_text:
            _check_attributes(function, by_text)
    encoder.attributes(function.__dict__)


def _refuse_unforeseeable(value: Any) -> None:
    known = _UNFORESEEABLE.get(id(value))
    if known is not None:
        raise FingerprintError(_ONLY_RUNNING.format(known))


def _check_attributes(function: types.FunctionType, names: frozenset[str]) -> None:
    """Refuse a function that stands on a module and reads from it what depends on text."""
    held = [reference.value(function) for reference in references(function.__code__)]
    held += function.__defaults__ or ()
    held += (function.__kwdefaults__ or {}).values()
    held += map(_content, function.__closure__ or ())
    for value in held:
        module = sys.modules.get(value.name) if type(value) is Library else value
        if isinstance(module, types.ModuleType):
            for name in names:
                _refuse_unforeseeable(vars(module).get(name))


_Facts = tuple[bytes, tuple[tuple[str, Reference], ...], frozenset[str]]


@once
def _code_facts(code: types.CodeType) -> _Facts:
    """Return a digest, the names read with their steps in a path, and attributes to look into."""
    names = references(code)
    if any(name.name == "__builtins__" for name in names):
        raise FingerprintError(_ONLY_RUNNING.format("reads __builtins__"))
    steps = [".".join((f".__globals__[{name.name!r}]", *name.attributes)) for name in names]
    read = attributes(code).union(*(name.attributes for name in names))
    digest = digest_buffer(Encoder().encode(instructions(code)))
    return digest, tuple(zip(steps, names, strict=True)), _UNFORESEEABLE_NAMES & read


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Absent("")


@writes(Absent)
def _write_absent(encoder: Encoder, value: Absent) -> None:
    encoder.name(b"?", value.name)


@writes(Library)
def _write_library(encoder: Encoder, value: Library) -> None:
    encoder.name(b"M", value.package, value.name)


@writes(types.CodeType)
def _write_code(encoder: Encoder, code: types.CodeType) -> None:
    encoder.out.append(b"O" + _code_facts(code)[0])


@writes(types.ModuleType, derived=True)
def _write_module(encoder: Encoder, module: types.ModuleType) -> None:
    package = package_of_namespace(vars(module))
    if package:
        encoder.name(b"M", package, module.__name__)
    elif not encoder.met(module):
        # The user's own module, handed on as a whole: all that stands in it counts.
        encoder.note(module)
        encoder.out.append(b"m")
        encoder.attributes({k: v for k, v in vars(module).items() if k[:2] != "__"})


@writes(types.MethodType)
def _write_method(encoder: Encoder, method: types.MethodType) -> None:
    encoder.out.append(b"h")
    encoder.part(".__func__", method.__func__)
    encoder.part(".__self__", method.__self__)


@writes(functools.partial)
def _write_partial(encoder: Encoder, value: functools.partial[Any]) -> None:
    encoder.out.append(b"p")
    encoder.part(".func", value.func)
    encoder.part(".args", value.args)
    encoder.part(".keywords", value.keywords)


@writes(types.BuiltinFunctionType, types.MethodWrapperType)
def _write_builtin(encoder: Encoder, value: Any) -> None:
    _refuse_unforeseeable(value)
    owner = getattr(value, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        _write_named(encoder, value)
    else:
        encoder.out.append(b"k")
        encoder.write(value.__name__)
        encoder.part(".__self__", owner)


@writes(
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    np.ufunc,
)
def _write_named(encoder: Encoder, value: Any) -> None:
    """Write something compiled by the name under which its installed package offers it."""
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    owner = getattr(value, "__objclass__", None)
    home = getattr(value, "__module__", None) or getattr(owner, "__module__", None)
    homes = [str(home), "numpy", "scipy.special"] if isinstance(value, np.ufunc) else [str(home)]
    for module in homes:
        package = installed_package(module)
        if package and resolve(module, name) is value:
            encoder.name(b"g", package, module, name)
            return
    inner = getattr(value, "__wrapped__", None)
    if not callable(inner):
        raise FingerprintError(_UNREADABLE.format(value))
    # functools.cache, numba, jax.jit: the kind of wrapper, its options, what it wraps
    encoder.out.append(b"w")
    _write_type(encoder, type(value))
    encoder.part(".targetoptions", getattr(value, "targetoptions", None))  # numba's, as fastmath
    encoder.part(".__wrapped__", inner)


@writes(np.random.Generator)
def _write_generator(encoder: Encoder, value: np.random.Generator) -> None:
    encoder.out.append(b"R")
    encoder.write(state_of(value))


@writes(np.random.RandomState)
def _write_random_state(encoder: Encoder, value: np.random.RandomState) -> None:
    # numpy's global one hangs on many library objects (every scipy.stats distribution);
    # there it is a name, not a state that each draw anywhere would change.
    if encoder.inside and value is np.random.mtrand._rand:  # noqa: SLF001
        encoder.name(b"g", "numpy", "numpy.random.mtrand", "_rand")
    else:
        encoder.out.append(b"W")
        encoder.write(dict(value.get_state(legacy=False)))


@writes(type(...), type(NotImplemented))
def _write_constant(encoder: Encoder, value: object) -> None:
    encoder.name(b"g", "python", "builtins", repr(value))


@writes(struct.Struct)
def _write_struct(encoder: Encoder, value: struct.Struct) -> None:
    encoder.name(b"g", "python", "struct", value.format)


@writes(enum.Enum, derived=True)
def _write_enum(encoder: Encoder, value: enum.Enum) -> None:
    encoder.out.append(b"E")
    _write_type(encoder, type(value))
    encoder.write(value.name)
    encoder.part(".value", value.value)


def package_of(cls: type) -> str | None:
    """Return the package that offers a class under its name, or None where content counts."""
    package = installed_package(cls.__module__)
    # Many classes made while a program runs (make_dataclass, exec) claim a module that does not
    # know them. Compiled classes (flag 1 << 8: immutable) may be hidden, as ``function`` is.
    if package and (cls.__flags__ & 1 << 8 or resolve(cls.__module__, cls.__qualname__) is cls):
        return package
    return None


@writes(type, derived=True)
def _write_type(encoder: Encoder, cls: type) -> None:
    if encoder.met(cls):
        return
    package = package_of(cls)
    if package:
        encoder.name(b"g", package, cls.__module__, cls.__qualname__)
        return
    encoder.note(cls)
    encoder.name(b"C", cls.__qualname__)
    encoder.part(".__class__", type(cls))
    encoder.part(".__bases__", cls.__bases__)
    encoder.attributes(_members(cls))


# What a class says of itself besides what it does, or lazily notes about itself.
_CLASS_NOISE = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


class _Plain(enum.Enum):
    A = 1


class _PlainFlag(enum.Flag):
    A = 1


# What the enum machinery makes of the members, whose names and values stand for it.
_ENUM_NOISE = _CLASS_NOISE.union(vars(_Plain), vars(_PlainFlag)) - {"A"}


def _members(cls: type) -> dict[str, Any]:
    noise, members = _CLASS_NOISE, {}
    if issubclass(cls, enum.Enum):
        members = {name: member.value for name, member in cls.__members__.items()}
        noise = _ENUM_NOISE.union(members)
    own = {name: _member(v) for name, v in vars(cls).items() if name not in noise}
    if "__dataclass_fields__" in own:  # the rest of it is in the generated methods
        fields = own["__dataclass_fields__"]
        own["__dataclass_fields__"] = {name: dict(fields[name].metadata) for name in fields}
    return own | members


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


@writes(object, derived=True)
def _write_object(encoder: Encoder, value: Any) -> None:
    """Write an instance by its class and by what it would take to build it again.

    ``__reduce_ex__`` is the one protocol by which any object of any library says that;
    nothing is pickled, the pieces are encoded like other values.
    """
    if encoder.met(value) or _write_of_library(encoder, value):
        return
    build, args, state, items, pairs = _reduce(value)
    if state is not None or items is not None or pairs is not None:
        encoder.note(value)  # not dates, fractions, paths: there equal is as good as the same
    encoder.out.append(b"o")
    encoder.part("", build)
    encoder.part("", args)
    # The default state of a class with __slots__ is a pair: attributes, and slots.
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    encoder.out.append(bytes([len(parts)]))
    for part in parts:
        if type(part) is dict and all(type(key) is str for key in part):
            passing = _passing(type(value))
            encoder.attributes({k: v for k, v in part.items() if k not in passing})
        else:
            encoder.part("", part)
    encoder.part("", None if items is None else list(items))
    if pairs is not None:
        pairs = list(pairs) if isinstance(value, OrderedDict) else dict(pairs)
    encoder.part("", pairs)


def _reduce(value: Any) -> tuple[Any, ...]:
    cls = type(value)
    try:
        reduce = copyreg.dispatch_table.get(cls)
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except RecursionError:
        raise
    except Exception as error:
        raise FingerprintError(
            f"a {cls.__module__}.{cls.__qualname__} has no content to identify it by ({error})"
        ) from error
    if isinstance(reduced, str) and callable(value):
        raise FingerprintError(_UNREADABLE.format(value))
    if isinstance(reduced, str):  # the name of a global of its class's module
        return (getattr, (cls, reduced), None, None, None)
    return (*reduced, None, None, None)[:5]


def _write_of_library(encoder: Encoder, value: Any) -> bool:
    """Write what an installed package's instance is known by better than by its content."""
    cls = type(value)
    package = package_of(cls)
    if callable(value) and (name := _name(value, "__qualname__")):
        home = _name(value, "__module__")
        if package or (installed_package(home) and resolve(home, name) is value):
            _write_named(encoder, value)  # the latter for Cython's functions
            return True
    if not package:
        return False
    module = sys.modules.get(cls.__module__)
    for name, other in list(vars(module).items()) if module else ():
        if other is value:  # a module's own instance, such as scipy.stats.norm
            encoder.name(b"g", package, cls.__module__, name)
            return True
    return False


def _name(value: Any, attribute: str) -> str | None:
    """Return what a function, or what looks like one, says of its name."""
    try:
        name = getattr(value, attribute, None)
    except Exception:  # noqa: BLE001 (a user's __getattr__ may raise anything)
        return None
    return name if isinstance(name, str) else None


_TEXTS = frozenset({"__doc__", "__module__"})  # functools.update_wrapper leaves them in instances
# A strategy is begun anew by every fit; a ufunc is made of the function when it is first called.
_QUASI_NEWTON = _TEXTS | {"first_iteration", "approx_type", "B", "H", "n"}
_VECTORIZED = _TEXTS | {"_doc", "_ufunc", "_in_and_out_core_dims"}


def _passing(cls: type) -> frozenset[str]:
    """Return the attributes of instances that must not count, such as what a last use left."""
    if issubclass(cls, np.vectorize):
        return _VECTORIZED
    optimize = sys.modules.get("scipy.optimize")
    if optimize and issubclass(cls, (optimize.BFGS, optimize.SR1)):
        return _QUASI_NEWTON
    return _TEXTS
