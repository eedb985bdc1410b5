"""What people see in a terminal: tables of fits, keys, differences and counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["ago", "size", "table"]

_WHOLE = {"key", "run", "kind", "status", "written", "nfev "}
"""Columns that are shown whole, at the cost of the others."""
_COLORS = {
    "final": "green",
    "completed": "green",
    "hit": "green",
    "checkpoint": "yellow",
    "resumed": "yellow",
    "running": "yellow",
    "cold": "cyan",
    "fitted": "cyan",
    "killed": "red",
    "dead": "red",
    "pending": "dim",
    "near": "magenta",
    "journal": "yellow",
    "failed": "red",
    "cancelled": "red",
    "damaged": "red",
}


def table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = ""
) -> None:
    """Print rows under headings; numbers to the right, known words in their color.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    columns : sequence of str
        Headings; one that ends in a space is a column of numbers.
    rows : iterable of sequences
        Floats are shown with four digits, None as nothing.
    title : str
        Above the table.
    """
    sheet = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        sheet.add_column(
            column.strip(),
            justify="right" if column.endswith(" ") else "left",
            no_wrap=column in _WHOLE,
        )
    for row in rows:
        sheet.add_row(*map(_cell, row))
    console.print(sheet)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, int):
        return Text(f"{value:,}")
    # As Text, not markup: names come from users' code.
    return Text(str(value), style=_COLORS.get(str(value), ""))


def ago(written: float, now: float) -> str:
    """Return how long before `now` something was, in the largest unit that fits."""
    seconds = now - written
    if seconds < 0:
        return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(number: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
