"""What a code object does, what its names stand for, and which package offers a module.

A function is known by its instructions, not by its text, so that comments, docstrings, blank
lines and the file's path are no part of it, and so that functions without a source (Jupyter
cells, ``exec``) have an identity too. The alternative, hashing ``inspect.getsource``, costs
100 to 5,500 us a function, fails in consoles and changes with every comment.
Instructions differ between minor versions of Python: so do the keys of functions.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from blake3 import blake3

from warmstart.errors import FingerprintError

__all__ = [
    "Absent",
    "Library",
    "Reference",
    "attributes",
    "installed_package",
    "instructions",
    "offered_by",
    "once",
    "package_of_namespace",
    "references",
    "resolve",
]

_T = TypeVar("_T")

# Left out everywhere: they carry no meaning, or only a wider argument or a line number.
_SILENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})
# What a class body stores about itself; its place in the file and its text are not what it does.
_CLASS_NOTES = frozenset(
    {"__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__"}
)
_LOADS_NOTE = frozenset({"LOAD_CONST", "LOAD_NAME", "LOAD_SMALL_INT"})
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_UNKNOWN = getattr(dis, "UNKNOWN", object())
_HAS_DOCSTRING = 0x4000000  # a flag of code objects since Python 3.14
_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_READS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_QUERIES = frozenset({"eval", "query"})
_AFTER_AT = re.compile(r"@([^\W\d]\w*)")


def instructions(code: CodeType) -> tuple[Any, ...]:
    """Return what `code` does as a tree of strings, numbers, constants and nested code objects.

    Constants and names are spelled out where they are used, and jumps point to instructions
    instead of offsets, so that an unused constant (a docstring) cannot shift anything.

    Notes
    -----
    About 5 us an instruction: see `once`.
    """
    steps, place = _steps(code)
    body: list[tuple[str, Any]] = []
    for i, step in enumerate(steps):
        argument = _argument(step, code)
        if step.opcode in _JUMPS:
            argument = place.get(argument, len(steps)) - i
        body.append((step.opname, argument))
    entries: Any = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined,unused-ignore]
    handlers = [
        (place.get(e.start), place.get(e.end), place.get(e.target), e.depth, e.lasti)
        for e in entries
    ]
    return (
        tuple(body),
        tuple(handlers),
        code.co_flags & ~_HAS_DOCSTRING,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_varnames, code.co_cellvars, code.co_freevars),
    )


def _argument(step: dis.Instruction, code: CodeType) -> Any:
    """Return what an instruction works with, spelled out.

    Before Python 3.12 ``dis`` looks up the constants of ``LOAD_CONST`` alone, and has a sentinel
    for those of ``KW_NAMES``, the names in ``f(x, shift=1)``.
    """
    argument = step.argval
    if argument is _UNKNOWN and step.opcode in dis.hasconst and step.arg is not None:
        return code.co_consts[step.arg]
    if argument is _UNKNOWN:
        raise FingerprintError(f"has an instruction that cannot be read: {step.opname}")
    return argument


def _steps(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    """Return the instructions that count, and for every offset the next of them."""
    every = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    steps: list[dis.Instruction] = []
    place: dict[int, int] = {}
    for i, step in enumerate(every):
        place[step.offset] = len(steps)
        note = i + 1 < len(every) and _is_note(step, every[i + 1])
        if not note and not (i and _is_note(every[i - 1], step)):
            steps.append(step)
    # A silent instruction can be a target too (a jump to EXTENDED_ARG): so it stands for its next.
    following = len(steps)
    for step in reversed(list(dis.get_instructions(code))):
        following = place.setdefault(step.offset, following)
    return steps, place


def _is_note(load: dis.Instruction, store: dis.Instruction) -> bool:
    return (
        store.opname == "STORE_NAME" and store.argval in _CLASS_NOTES and load.opname in _LOADS_NOTE
    )


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A name that code takes from outside, and the attributes read from it right away.

    Parameters
    ----------
    name : str
        A global, or for an import inside the function the module's name.
    attributes : tuple of str
        ``("stats", "norm")`` for ``scipy.stats.norm``; empty when the object itself is used.
    imported : bool
        Whether `name` is a module that the code imports itself.
    level : int
        Dots of a relative import.
    """

    name: str
    attributes: tuple[str, ...] = ()
    imported: bool = False
    level: int = 0

    def value(self, function: FunctionType) -> Any:
        """Return what the name stands for in `function` at this moment.

        Attributes are followed through the user's own modules only: a library stands for all
        that it offers, and what an object offers is part of the object.
        """
        if self.imported:
            value = self._import(function.__globals__.get("__package__") or "")
        else:
            value = function.__globals__.get(self.name, self)
            if value is self:
                scope: dict[str, Any] = function.__builtins__  # type: ignore[attr-defined,unused-ignore]
                value = scope[self.name] if self.name in scope else Absent(self.name)
        for attribute in self.attributes:
            if type(value) is not ModuleType or package_of_namespace(vars(value)):
                break
            value = _attribute(value, attribute)
        return value

    def _import(self, package: str) -> Any:
        try:
            name = importlib.util.resolve_name("." * self.level + self.name, package)
        except ImportError:
            return Absent(self.name)
        installed = installed_package(name)
        # Not worth importing for a key; and once it is, nothing must have changed.
        return Library(installed, name) if installed else _module(name)


@dataclass(frozen=True, slots=True)
class Library:
    """A module of an installed package, imported already or not."""

    package: str
    name: str


class Absent:
    """A name that stands for nothing yet: an empty cell, a global that is not defined."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001 (the module is the user's and may raise anything)
        return Absent(name)


def _attribute(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except Exception:  # noqa: BLE001 (nor is a module's own __getattr__ ours)
        submodule = f"{module.__name__}.{name}"
        return _module(submodule) if hasattr(module, "__path__") else Absent(submodule)


def once(compute: Callable[[CodeType], _T]) -> Callable[[CodeType], _T]:
    """Compute something about a code object once, since code objects are immutable.

    By identity, not by equality: equal code hashes its constants anew each time (1 us), and to
    read the instructions again would cost 200 us on every call (CPython 3.11, 2026-11).
    """
    results: dict[int, tuple[weakref.ref[CodeType], _T]] = {}

    @functools.wraps(compute)
    def recall(code: CodeType) -> _T:
        known = results.get(id(code))
        if known is not None and known[0]() is code:
            return known[1]
        result = compute(code)
        if len(results) > 10_000:  # code made by exec in a loop
            results.clear()
        results[id(code)] = (weakref.ref(code), result)
        return result

    return recall


@once
def references(code: CodeType) -> tuple[Reference, ...]:
    """Return what `code` and the code nested in it read from outside, sorted, each once."""
    return tuple(sorted(set(_references(code))))


def _references(code: CodeType) -> Iterator[Reference]:
    steps = [step for step in _steps(code)[0] if step.opname != "PUSH_NULL"]
    for i, step in enumerate(steps):
        if step.opname in _READS_GLOBAL:
            attributes = []
            for after in steps[i + 1 :]:
                if after.opname not in _READS_ATTRIBUTE:
                    break
                attributes.append(after.argval)
            yield Reference(step.argval, tuple(attributes))
        elif step.opname == "IMPORT_NAME":
            level, taken = steps[i - 2].argval, steps[i - 1].argval
            if taken:  # from name import taken
                for attribute in taken:
                    yield Reference(step.argval, (attribute,), imported=True, level=level)
                continue
            yield Reference(step.argval, imported=True)
            if steps[i + 1].opname != "IMPORT_FROM":  # import a.b binds a; import a.b as c does not
                yield Reference(step.argval.partition(".")[0], imported=True)
        elif isinstance(step.argval, CodeType):
            yield from _references(step.argval)
        elif isinstance(step.argval, str) and step.opcode in dis.hasconst and "@" in step.argval:
            yield from _references_in_text(step.argval, code)


def _references_in_text(text: str, code: CodeType) -> Iterator[Reference]:
    """Yield the globals that a text names in the way of pandas: ``frame.query("a >= @cut")``."""
    if not _QUERIES.isdisjoint(code.co_names):
        inside = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        yield from (Reference(name) for name in _AFTER_AT.findall(text) if name not in inside)


def attributes(code: CodeType) -> frozenset[str]:
    """Return the names of all attributes that `code` and the code nested in it read."""
    inner = [attributes(nested) for nested in code.co_consts if isinstance(nested, CodeType)]
    steps = dis.get_instructions(code)
    return frozenset(s.argval for s in steps if s.opname in _READS_ATTRIBUTE).union(*inner)


def resolve(module: str | None, qualname: str) -> Any:
    """Return what ``module.qualname`` names in this process, or None; imports nothing."""
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        if found is None:
            return None
        found = getattr(found, part, None)
    return found


_NOTHING: dict[str, Any] = {}
_package_of_module: dict[tuple[str, Any], str | None] = {}


def installed_package(module: str | None, file: Any = None) -> str | None:
    """Return the installed package that `module` belongs to, or None for the user's own code.

    Parameters
    ----------
    module : str or None
        Its name.
    file : str, optional
        Where it is; by default where the module of this name is in this process.

    Returns
    -------
    str or None
        ``"python"`` for the standard library, ``"numpy"`` and ``"scipy"`` without a version,
        since theirs stands in the producer of each entry (an upgrade turns finals into starts
        instead of hiding them), otherwise ``"lmfit 1.3.4"``. A package is installed if it lies in
        the installation's folders, or beside the records of its distribution, as ``pip install
        --target`` puts it. Other modules (scripts, notebooks, editable installs) are the user's.
    """
    if not isinstance(module, str) or module == "__main__":
        return None
    if file is None:
        # Not the attribute, whose absence takes 0.8 us to tell (builtins; 2026-11).
        file = getattr(sys.modules.get(module), "__dict__", _NOTHING).get("__file__")
    try:
        return _package_of_module[module, file]
    except KeyError:
        package = _package_of_module[module, file] = _find_package(module, file)
        return package


def package_of_namespace(names: Mapping[str, Any]) -> str | None:
    """Return the installed package in whose module these are the globals, or None.

    A function's own ``__module__`` does not tell: `functools.wraps` copies it from another. Nor
    does a module's name: the user's ``profile.py``, loaded by its path, is not Python's.
    """
    place = name, file = names.get("__name__"), names.get("__file__")
    if name == "__main__":
        return None
    if place in _package_of_module and file is not None:  # each name that a function reads is here
        return _package_of_module[place]
    if isinstance(file, str):
        return installed_package(name, file)
    module = sys.modules.get(name) if isinstance(name, str) else None
    return installed_package(name) if module is not None and vars(module) is names else None


def offered_by(function: FunctionType) -> str | None:
    """Return the installed package that offers a function of a library by its name, or None."""
    if not package_of_namespace(function.__globals__):
        return None
    package = installed_package(function.__module__)
    found = package and resolve(function.__module__, function.__qualname__) is function
    return package if found else None


def _find_package(module: str, file: Any) -> str | None:
    top = module.partition(".")[0]
    if top in {"numpy", "scipy", "warmstart"}:  # wherever they lie
        return top
    if not isinstance(file, str):
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError, AttributeError):
            return None
        places = (spec.submodule_search_locations or ()) if spec else ()
        file = (spec.origin if spec else None) or next(iter(places), "")
    if "/site-packages/" in file or "/dist-packages/" in file:
        return f"{top} {_version(top)}"
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if file in {"built-in", "frozen"} or any(file.startswith(f"{path}/") for path in standard):
        return "python"
    folders = [path for path in sys.path if file.startswith(f"{Path(path).absolute()}/{top}")]
    return f"{top} {_version(top)}" if any(_is_recorded(top, at) for at in folders) else None


@functools.cache
def _is_recorded(top: str, folder: str) -> bool:
    """Whether a distribution in a folder provides what has an import name there."""
    found = importlib.metadata.distributions(path=[folder])
    return any(_provides(distribution, top) for distribution in found)


@functools.cache
def _version(top: str) -> str:
    """Return the version of what is installed under the import name `top`."""
    names = [top] if _is_distribution_of(top) else _distributions().get(top, [])
    if not names:
        return str(getattr(sys.modules.get(top), "__version__", "unknown"))
    # A namespace package is shared by several, and any of them may have changed.
    return " ".join(_release(importlib.metadata.distribution(name)) for name in sorted(set(names)))


def _is_distribution_of(top: str) -> bool:
    """Whether the distribution that is named like an import name is what provides it."""
    try:
        found = importlib.metadata.distribution(top)
    except importlib.metadata.PackageNotFoundError:
        return False
    return found.read_text("RECORD") is None or _provides(found, top)


def _provides(distribution: importlib.metadata.Distribution, top: str) -> bool:
    files = distribution.read_text("RECORD") or ""
    return re.search(rf"^{re.escape(top)}[/.]", files, re.MULTILINE) is not None


@functools.cache
def _distributions() -> dict[str, list[str]]:
    # All metadata are read for it: 0.1 to 1 s, so it is the second choice.
    return dict(importlib.metadata.packages_distributions())


def _release(distribution: importlib.metadata.Distribution) -> str:
    if distribution.read_text("direct_url.json") is None:
        return distribution.version
    # Built from a folder or a commit, where the version is the same from edit to edit: the
    # digests of its files in RECORD are not.
    files = (distribution.read_text("RECORD") or "").splitlines()
    content = sorted(line for line in files if ",sha256=" in line and ".dist-info/" not in line)
    digest = blake3("\n".join(content).encode()).hexdigest()
    return f"{distribution.version}+{digest[:16]}"
