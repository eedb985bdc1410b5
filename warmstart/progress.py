"""Showing how a fit gets on: a line in the terminal or the notebook, on standard error."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Progress"]

_EVERY = 0.1
_BEFORE = len("0:00:00 warmstart: ")


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
        self._began = time.perf_counter()

    def _show(self, *parts: str) -> None:
        """Show as many of the parts, the more important first, as the line has room for."""
        if not (self._is_due() and self._open()):
            return
        room, shown = self._bar.console.width - _BEFORE, list(parts)
        while len(", ".join(shown)) > room and len(shown) > 1:
            del shown[-1]
        self._bar.update(self._task, description=", ".join(shown))

    def _open(self) -> bool:
        from rich.console import Console  # noqa: PLC0415 (0.1 s that few fits need)
        from rich.progress import Progress as Bar  # noqa: PLC0415
        from rich.progress import TextColumn, TimeElapsedColumn  # noqa: PLC0415

        if self._bar is None:
            console = Console(stderr=True)
            if not (self._wanted or console.is_terminal):
                return False
            self._bar = Bar(
                TimeElapsedColumn(),
                TextColumn("warmstart: {task.description}", markup=False),
                console=console,
                transient=not self._wanted,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return True

    def replay(self, done: int, total: int) -> None:
        """Show how much of a journal has been replayed."""
        self._show(f"replayed {done:,} of {total:,}")

    def end_replay(self) -> None:
        """Begin the clock of new work."""
        self._began = time.perf_counter()

    def update(self, replayed: int, new: int, best: float) -> None:
        """Show evaluations, the best objective and the rate."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        parts = [f"{new:,} evaluations"]
        if math.isfinite(best):
            parts.append(f"best {best:.6g}")
        # How long the fit is likely to go on, if others like it were longer.
        if self.expected is not None and self.expected - seconds >= 1.0:
            parts.append(f"{self.expected - seconds:,.0f} s left")
        parts.append(f"{new / seconds:,.0f}/s")
        if replayed:
            parts.append(f"{replayed:,} replayed")
        self._show(*parts)

    def follow(self, evaluations: int, best: float | None) -> None:
        """Show how far another process has come with the fit that is waited for."""
        said = [] if best is None else [f"best {best:.6g}"]
        self._show("another process is at this fit", f"{evaluations:,} evaluations", *said)

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
