"""Whoever called this package: warnings point there, and not into it."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from warmstart.errors import WarmstartWarning

__all__ = ["complain", "is_here", "outside", "undisturbed", "warn_at"]

_T = TypeVar("_T")
_on_behalf: contextvars.ContextVar[types.FrameType | None] = contextvars.ContextVar(
    "on_behalf", default=None
)
"""The caller for whom a thread of this package works."""

_HERE = os.path.dirname(__file__) + os.sep  # noqa: PTH120


def is_here(filename: str) -> bool:
    """Return whether a file is one of this package's."""
    return filename.startswith(_HERE)


def outside(frame: types.FrameType | None = None) -> types.FrameType:
    """Return the first frame out of this package, from one of its own upwards.

    Counting frames for ``stacklevel=`` goes wrong with each function that is put between.
    """
    if frame is None and (asked := _on_behalf.get()) is not None:
        return asked
    found = sys._getframe(1) if frame is None else frame  # noqa: SLF001 (what `inspect` does, slower)
    while is_here(found.f_code.co_filename) and found.f_back is not None:
        found = found.f_back
    return found


def warn_at(frame: types.FrameType, text: str, category: type[Warning]) -> None:
    """Warn as if the line that a frame is at did."""
    warnings.warn_explicit(
        text,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def complain(text: str) -> None:
    """Tell the caller of this package, by a `WarmstartWarning`, what it cannot do."""
    warn_at(outside(), text, WarmstartWarning)


def undisturbed(work: Callable[[], _T]) -> _T:
    """Do something that Ctrl-C must not end half way: on a thread, which no signal reaches.

    Python raises what signals raise in the main thread, between any two instructions; to take a
    lock of a file is many. If the caller is interrupted, the work goes on to its end. 0.1 ms.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    answer: list[tuple[Any, BaseException | None]] = []
    running = threading.Lock()  # ``join`` takes a thread for ended if it is interrupted (3.11)
    running.acquire()

    def run() -> None:
        try:
            answer.append((work(), None))
        except BaseException as error:  # noqa: BLE001 (it is handed on)
            answer.append((None, error))
        finally:
            running.release()

    context = contextvars.copy_context()
    context.run(_on_behalf.set, outside())
    thread = threading.Thread(
        target=context.run, args=(run,), name="warmstart-undisturbed", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # at the end of the interpreter there are no new threads
        return work()
    running.acquire()
    result, error = answer.pop()
    try:
        if error is not None:
            raise error
    finally:
        del error  # or it would stand in a frame that stands in it
    return result  # type: ignore[no-any-return]
