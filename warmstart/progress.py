"""Showing how a fit gets on: a line in the terminal or the notebook, on standard error."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Progress"]

_EVERY = 0.1


class Progress:
    """One fit's line.

    Parameters
    ----------
    wanted : bool
        Whether new work is shown. A long replay is shown on a terminal anyway.
    """

    def __init__(self, wanted: bool) -> None:
        self.expected: float | None = None
        """Seconds that such fits take."""
        self._wanted = wanted
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0
        self._new = 0
        self._began = time.perf_counter()

    def _open(self, description: str, total: int | None) -> bool:
        from rich.console import Console  # noqa: PLC0415 (0.1 s that few fits need)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bar  # noqa: PLC0415

        if self._bar is None:
            console = Console(stderr=True)
            if not (self._wanted or console.is_terminal):
                return False
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=not self._wanted,
            )
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(description, total=total, note="")
        return True

    def replay(self, done: int, total: int) -> None:
        """Show how much of a journal has been replayed."""
        if self._is_due() and self._open("warmstart: replay", total):
            self._bar.update(self._task, completed=done, total=total)

    def end_replay(self) -> None:
        """Leave the replay's bar as it is; what comes is new work."""
        if self._task is not None:
            task = self._bar.tasks[-1]
            self._bar.update(self._task, completed=task.total)
            self._task = None
        self._began = time.perf_counter()

    def update(self, replayed: int, new: int, best: float) -> None:
        """Show evaluations, the best objective and the rate."""
        if not (self._is_due() and self._open("warmstart: fit", None)):
            return
        self._new = new
        seconds = max(time.perf_counter() - self._began, 1e-9)
        objective = f"best {best:.8g}, " if math.isfinite(best) else ""
        before = f", {replayed} replayed" if replayed else ""
        note = f"{objective}{new / seconds:,.0f} evaluations/s{before}{self._left(seconds)}"
        self._bar.update(self._task, completed=new, note=note)

    def follow(self, evaluations: int, best: float | None) -> None:
        """Show how far another process has come with the fit that is waited for."""
        if self._is_due() and self._open("warmstart: another process is at this fit", None):
            note = "" if best is None else f"best {best:.8g}"
            self._bar.update(self._task, completed=evaluations, note=note)

    def _left(self, seconds: float) -> str:
        """Return how long the fit is likely to go on, if others like it were longer."""
        if self.expected is None or self.expected - seconds < 1.0:
            return ""
        return f", about {self.expected - seconds:,.0f} s left"

    def _is_due(self) -> bool:
        now = time.perf_counter()
        if now - self._last < _EVERY:
            return False
        self._last = now
        return True

    def close(self) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._task = None
