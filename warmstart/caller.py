"""Whoever called this package: warnings point there, and not into it."""

from __future__ import annotations

import os
import sys
import types
import warnings

from warmstart.errors import WarmstartWarning

__all__ = ["complain", "is_here", "outside", "warn_at"]

_HERE = os.path.dirname(__file__) + os.sep  # noqa: PTH120


def is_here(filename: str) -> bool:
    """Return whether a file is one of this package's."""
    return filename.startswith(_HERE)


def outside(frame: types.FrameType | None = None) -> types.FrameType:
    """Return the first frame out of this package, from one of its own upwards.

    Counting frames for ``stacklevel=`` goes wrong with each function that is put between.
    """
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
