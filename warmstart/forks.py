"""Locks in forked children: one that another thread of the parent held would never be free."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renew_in_children"]


class Forked(Protocol):
    """What has locks, or a state that a thread may have been changing."""

    def after_fork(self) -> None:
        """Begin anew in a child, with locks of its own."""
        ...


_known: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_in_children(one: Forked) -> None:
    """Call ``one.after_fork()`` in every child that is forked while it lives."""
    _known.add(one)


def _renew() -> None:
    for one in list(_known):
        one.after_fork()


os.register_at_fork(after_in_child=_renew)
