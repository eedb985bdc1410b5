"""What a code object does, and who wrote it: the facts that make a function's identity.

A function is known by its instructions, not by its text, so that comments, docstrings, blank
lines and the file's path are no part of it, and so that functions without a source (Jupyter
cells, ``exec``) have an identity too. The alternative, hashing ``inspect.getsource``, costs
100 to 5,500 us a function, fails in consoles and changes with every comment.
Instructions differ between minor versions of Python: so do the keys of functions.
"""

from __future__ import annotations

import dis
import functools
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

__all__ = ["Reference", "installed_package", "instructions", "references", "resolve"]

# Stored by a class body about itself; where the class stands in the file is not what it does.
_CLASS_NOTES = frozenset(
    {"__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__"}
)
_HAS_DOCSTRING = 0x4000000  # a flag of code objects since Python 3.14
_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_READS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


def instructions(code: CodeType) -> tuple[Any, ...]:
    """Return what `code` does as a tree of strings, numbers, constants and nested code objects.

    Constants and names are spelled out where they are used, and jumps point to instructions
    instead of offsets, so that an unused constant (a docstring) cannot shift anything.

    Notes
    -----
    About 5 us an instruction; callers keep the result, since code objects are immutable.
    """
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    index = {step.offset: i for i, step in enumerate(steps)}
    jumps = {*dis.hasjrel, *dis.hasjabs}
    body: list[tuple[str, Any]] = []
    for i, step in enumerate(steps):
        argument = step.argval
        if step.opcode in jumps:
            argument = index.get(argument, -1) - i
        elif (
            step.opname == "LOAD_CONST"
            and i + 1 < len(steps)
            and steps[i + 1].opname == "STORE_NAME"
            and steps[i + 1].argval in _CLASS_NOTES
        ):
            argument = None
        body.append((step.opname, argument))
    return (
        tuple(body),
        code.co_exceptiontable,
        code.co_flags & ~_HAS_DOCSTRING,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_varnames, code.co_cellvars, code.co_freevars),
    )


@dataclass(frozen=True, slots=True)
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


def references(code: CodeType) -> tuple[Reference, ...]:
    """Return what `code` and the code nested in it read from outside, sorted, each once."""
    found = set(_references(code))
    return tuple(sorted(found, key=lambda r: (r.name, r.attributes, r.imported, r.level)))


def _references(code: CodeType) -> Iterator[Reference]:
    steps = [
        step
        for step in dis.get_instructions(code)
        if step.opname not in {"EXTENDED_ARG", "PUSH_NULL"}
    ]
    for i, step in enumerate(steps):
        if step.opname in _READS_GLOBAL:
            attributes = []
            for after in steps[i + 1 :]:
                if after.opname not in _READS_ATTRIBUTE:
                    break
                attributes.append(after.argval)
            yield Reference(step.argval, tuple(attributes))
        elif step.opname == "IMPORT_NAME":
            yield from _imports(steps, i)
        elif isinstance(step.argval, CodeType):
            yield from _references(step.argval)


def _imports(steps: list[dis.Instruction], i: int) -> Iterator[Reference]:
    name, level = steps[i].argval, _constant(steps[i - 2]) or 0
    # ``from m import a, b`` stands as IMPORT_NAME, then IMPORT_FROM and a store for each name.
    taken = []
    for after in steps[i + 1 :]:
        if after.opname == "IMPORT_FROM":
            taken.append(after.argval)
        elif not after.opname.startswith("STORE_"):
            break
    if not taken:
        yield Reference(name, (), imported=True, level=level)
    for attribute in taken:
        yield Reference(name, (attribute,), imported=True, level=level)


def _constant(step: dis.Instruction) -> int | None:
    return step.argval if isinstance(step.argval, int) else None


def resolve(module: str | None, qualname: str) -> Any:
    """Return what ``module.qualname`` names in this process, or None; imports nothing."""
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        if found is None:
            return None
        found = getattr(found, part, None)
    return found


@functools.cache
def _installed_places() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Folders of installed packages, and folders of the standard library."""
    paths = sysconfig.get_paths()
    packages = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    packages.add(site.getusersitepackages())
    packages.update(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
    standard = {paths["stdlib"], paths["platstdlib"]}
    return tuple(p + "/" for p in packages), tuple(p + "/" for p in standard)


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@functools.cache
def _version(top: str) -> str:
    # The metadata first: it says the same whether or not the package is imported yet.
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        for distribution in _distributions().get(top, ()):
            return importlib.metadata.version(distribution)
    return str(getattr(sys.modules.get(top), "__version__", "unknown"))


_package_of_module: dict[str, str | None] = {}


def installed_package(module: str | None) -> str | None:
    """Return the installed package that `module` belongs to, or None for the user's own code.

    Returns
    -------
    str or None
        ``"python"`` for the standard library, ``"numpy"`` and ``"scipy"`` without a version,
        since theirs stands in the producer of each entry (an upgrade turns finals into starts
        instead of hiding them), otherwise ``"lmfit 1.3.4"``. Modules that run from anywhere
        but the installation's folders (scripts, notebooks, editable installs) are the user's.
    """
    if module is None:
        return None
    try:
        return _package_of_module[module]
    except KeyError:
        package = _find_package(module)
        if module != "__main__":
            _package_of_module[module] = package
        return package


def _find_package(module: str) -> str | None:
    if module == "__main__":
        return None
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str):
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec else None
    if file in {"built-in", "frozen"}:
        return "python"
    if not isinstance(file, str):
        return None
    packages, standard = _installed_places()
    if file.startswith(packages):
        return top if top in {"numpy", "scipy"} else f"{top} {_version(top)}"
    return "python" if file.startswith(standard) else None
