"""Warnings are part of a result: those that scipy gives during a fit are given again on a hit.

What a fit warns is overheard at ``warnings.showwarning``, the one hook that changes neither
filters nor registries. ``warnings.catch_warnings`` does change them, for all threads, and
would show again what is shown once a process; a warning that the filters hide is not recorded,
only that they hide all (`hides`).
Either time they point to the line that called this package, as they do without it.
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

from warmstart.caller import is_here, outside, warn_at
from warmstart.locks import free_in_children

__all__ = ["hides", "overhear", "rewarn"]

_MAX = 20
_log: ContextVar[tuple[list[tuple[str, str]], str] | None] = ContextVar("log", default=None)
_lock = threading.Lock()
free_in_children(sys.modules[__name__], "_lock")
_listeners = 0
_shown: Any = None


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


def _tell(
    message: Any,
    category: type[Warning],
    filename: str,
    lineno: int,
    *rest: Any,
    **named: Any,
) -> None:
    listener = _log.get()
    if listener is not None:
        heard, library = listener
        if len(heard) < _MAX and (filename.startswith(library) or is_here(filename)):
            heard.append((category.__name__, str(message)))
        if is_here(filename):
            frame = _frame_in(filename)
            if _is_shown(frame, str(message), category, lineno):
                return
            filename, lineno = outside(frame).f_code.co_filename, outside(frame).f_lineno
    _shown(message, category, filename, lineno, *rest, **named)


def _frame_in(filename: str) -> types.FrameType:
    frame = sys._getframe(1)  # noqa: SLF001 (what `inspect` does, slower)
    while frame.f_code.co_filename != filename and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_shown(frame: types.FrameType, text: str, category: type[Warning], lineno: int) -> bool:
    """Return whether a warning that points into this package was shown at its caller's before.

    scipy counts frames to the caller of its functions, which is here. Where the filters show a
    warning once a place, they have noted this place; what counts is the caller's.
    """
    here, caller = frame.f_globals.get("__warningregistry__", {}), outside(frame)
    # The line's own; where a filter says "module", the module's (as Python or C writes it).
    wide = [(text, category, 0), (text, category)]
    noted = [here.pop(key, False) for key in ((text, category, lineno), *wide)]
    if not any(noted):
        return False
    there = caller.f_globals.setdefault("__warningregistry__", {})
    if there.get("version") != here.get("version"):  # the filters have changed: all anew
        there.clear()
        there["version"] = here.get("version")
    keys = ((text, category, caller.f_lineno), *wide)
    note = {key: True for key, own in zip(keys, noted, strict=True) if own}
    if there.keys() & note:
        return True
    there.update(note)
    return False


def hides() -> bool:
    """Return whether the filters in force ignore what scipy.optimize warns of, whatever it is."""
    return any(_action_on(category) == "ignore" for category in _SCIPYS)


_SCIPYS = (scipy.optimize.OptimizeWarning, RuntimeWarning)


def _action_on(given: type[Warning]) -> str | None:
    """Return what is done with warnings of a category, whatever their text and place."""
    for action, message, category, module, line in warnings.filters:
        if message is None and module is None and not line and issubclass(given, category):
            return action
    return None


def rewarn(heard: Any, *, among: types.ModuleType = scipy.optimize) -> None:
    """Give recorded warnings again, as if from the caller of this package.

    Their categories are Python's, or stand in the module `among`.
    """
    for name, text in heard:
        category = getattr(builtins, name, None) or getattr(among, name, None)
        if isinstance(category, type) and issubclass(category, Warning):
            warn_at(outside(), text, category)
