"""What people see in a terminal: tables of fits, keys, differences and counts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

__all__ = ["Out", "ago", "size", "table"]

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


class Out:
    """Writes for people or, with --json, one JSON document for machines."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console()
        self.errors = Console(stderr=True)

    def json(self, document: Any) -> None:
        """Write a document for machines."""
        json.dump(document, sys.stdout, indent=2, default=_plain)
        sys.stdout.write("\n")

    def note(self, text: str) -> None:
        """Tell people something beside the result."""
        if not self.as_json:
            self.errors.print(text, style="dim", markup=False, highlight=False)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar; yields what moves it."""
        with Progress(console=self.errors, transient=True, disable=self.as_json) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


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
