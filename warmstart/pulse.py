"""Doing something every so often, on a thread, for as long as something else lasts."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Pulse"]


class Pulse:
    """Calls a function every so often, from `start` to `stop` or within a ``with`` block.

    Parameters
    ----------
    beat : callable or weakref.WeakMethod
        What it raises is nobody's business. With a weak method the pulse ends with its object.
    every : float
        Seconds.

    Notes
    -----
    A child process that is forked meanwhile has no pulse.
    """

    def __init__(
        self, beat: Callable[[], object] | weakref.WeakMethod[Callable[[], object]], every: float
    ) -> None:
        self._beat, self._every = beat, every
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin; the first call is one interval away."""
        arguments = (self._beat, self._every, self._ended, os.getpid())
        self._thread = threading.Thread(
            target=_run, args=arguments, name="warmstart-pulse", daemon=True
        )
        self._thread.start()
        return self

    @property
    def is_alive(self) -> bool:
        """Whether it was started, by this process, and goes on."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End, after a call that is under way."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _run(
    given: Callable[[], object] | weakref.WeakMethod[Callable[[], object]],
    every: float,
    ended: threading.Event,
    process: int,
) -> None:
    # A function of its own: the thread must not keep the object alive whose method it calls.
    while not ended.wait(every) and os.getpid() == process:
        beat = given() if isinstance(given, weakref.WeakMethod) else given
        if beat is None:
            return
        with contextlib.suppress(Exception):
            beat()
        del beat
