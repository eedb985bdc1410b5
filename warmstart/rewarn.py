"""Warnings are part of a result: those that scipy gives during a fit are given again on a hit.

What a fit warns is overheard at ``warnings.showwarning``, the one hook that changes neither
filters nor registries. ``warnings.catch_warnings`` does change them, for all threads, and
would show again what is shown once a process; a warning that the filters hide is not recorded.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import scipy
import scipy.optimize

from warmstart.locks import free_in_children

__all__ = ["overhear", "rewarn"]

_MAX = 20
_log: ContextVar[tuple[list[tuple[str, str]], str] | None] = ContextVar("log", default=None)
_lock = threading.Lock()
free_in_children(sys.modules[__name__], "_lock")
_listeners = 0
_shown: Any = None
_HERE = os.path.dirname(__file__)  # noqa: PTH120


@contextlib.contextmanager
def overhear(library: types.ModuleType = scipy) -> Iterator[list[tuple[str, str]]]:
    """Yield a list that gathers the (category, text) of what a library warns in this context."""
    global _listeners, _shown  # noqa: PLW0603 (the hook itself is one a process)
    heard: list[tuple[str, str]] = []
    with _lock:
        if warnings.showwarning is not _tell:
            _shown = warnings.showwarning
            warnings.showwarning = _tell
        _listeners += 1
    token = _log.set((heard, os.path.dirname(str(library.__file__))))  # noqa: PTH120
    try:
        yield heard
    finally:
        _log.reset(token)
        with _lock:
            _listeners -= 1
            # If somebody else has put a hook of their own on top, ours stays below it, where
            # it does nothing but pass on.
            if _listeners == 0 and warnings.showwarning is _tell:
                warnings.showwarning = _shown


def _tell(message: Any, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
    listener = _log.get()
    if listener is not None:
        heard, library = listener
        if len(heard) < _MAX and filename.startswith((library, _HERE)):
            heard.append((category.__name__, str(message)))
    _shown(message, category, filename, *rest, **named)


def rewarn(heard: Any, *, stacklevel: int, among: types.ModuleType = scipy.optimize) -> None:
    """Give recorded warnings again, as if from the caller `stacklevel` frames up.

    Their categories are Python's, or stand in the module `among`.
    """
    for name, text in heard:
        category = getattr(builtins, name, None) or getattr(among, name, None)
        if isinstance(category, type) and issubclass(category, Warning):
            warnings.warn(text, category, stacklevel=stacklevel + 1)
