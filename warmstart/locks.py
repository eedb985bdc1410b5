"""Locks that a forked child finds free, whoever held them in its parent, and how to need none."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

# What is done before a fork is done in the reverse order of registration. filelock closes its
# doors, at which a thread may wait that holds a lock of ours: ours have to be taken first, so it is
# imported here, and not when it is needed (6 ms).
import filelock  # noqa: F401

__all__ = ["free_in_children", "held_over_forks", "imported", "lazily"]

_T = TypeVar("_T")

_makers: weakref.WeakKeyDictionary[Any, dict[str, Callable[[], Any]]] = weakref.WeakKeyDictionary()


def free_in_children(owner: object, name: str, make: Callable[[], Any] = threading.Lock) -> None:
    """Make a lock of an object, or of a module, anew in each child that is forked from now on.

    A thread of the parent that holds it does not exist in the child, which would wait for it
    for ever. What the lock protects may be half changed there, so it must stand that.

    Parameters
    ----------
    owner : object
        Kept by a weak reference.
    name : str
        The attribute.
    make : callable
        Makes one.
    """
    _makers.setdefault(owner, {})[name] = make


def held_over_forks(owner: Any, name: str) -> None:
    """Hold a lock of an object whenever the process forks, so that the child finds all in order.

    Parameters
    ----------
    owner : object
        Kept by a weak reference.
    name : str
        The attribute. Whoever holds it must not wait for another lock, nor for long.
    """
    _held[owner] = name


def imported(name: str) -> Any:
    """Import a module, but not while the process forks.

    A child that is forked while another thread is at the import would wait for that thread for
    ever when it needs the module itself.
    """
    with _importing:
        return importlib.import_module(name)


class lazily(Generic[_T]):  # noqa: N801 (a decorator)
    """A property that is worked out once, twice if two threads begin at the same time.

    ``functools.cached_property`` had a lock for all objects of a class up to Python 3.11, which a
    forked child may find held.
    """

    def __init__(self, make: Callable[[Any], _T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> _T:
        if instance is None:
            return self  # type: ignore[return-value]
        made: _T = vars(instance).setdefault(self._name, self._make(instance))
        return made


_held: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_taken: list[Any] = []
_forking = threading.Lock()
"""Held around a fork: `_taken` is of one thread."""


def _take() -> None:
    _forking.acquire()
    _taken[:] = [getattr(owner, name) for owner, name in list(_held.items())]
    for lock in _taken:
        lock.acquire()


def _leave() -> None:
    while _taken:
        _taken.pop().release()
    _forking.release()


def _renew() -> None:
    for owner, made in list(_makers.items()):
        for name, make in made.items():
            setattr(owner, name, make())


_importing = threading.Lock()
held_over_forks(sys.modules[__name__], "_importing")
os.register_at_fork(before=_take, after_in_parent=_leave, after_in_child=_leave)
os.register_at_fork(after_in_child=_renew)
