"""Locks that a forked child finds free, whoever held them in its parent."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["free_in_children", "held_over_forks"]

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


_held: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_taken: list[Any] = []


def _take() -> None:
    _taken[:] = [getattr(owner, name) for owner, name in list(_held.items())]
    for lock in _taken:
        lock.acquire()


def _leave() -> None:
    while _taken:
        _taken.pop().release()


def _renew() -> None:
    for owner, made in list(_makers.items()):
        for name, make in made.items():
            setattr(owner, name, make())


os.register_at_fork(before=_take, after_in_parent=_leave, after_in_child=_leave)
os.register_at_fork(after_in_child=_renew)
