"""What people see in a terminal: tables of fits, keys, differences and counts."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import compress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

__all__ = ["Out", "age", "ago", "counted", "size", "table"]

_WHOLE = {"key", "run", "kind", "status", "from", "start", "age"}
"""Columns that are shown whole, as those of numbers are, at the cost of the others."""
_CUT = {"name", "what"}
"""Columns that are cut rather than wrapped where they are too long."""
_WIDE = 100
"""Characters a line has where all columns are shown."""
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


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command what to do: rich would end with an exit code of its own."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Out:
    """Writes for people or, with --json, one JSON document for machines."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _Console()
        self.errors = _Console(stderr=True)

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
        """Show a bar on a terminal; yields what moves it."""
        silent = self.as_json or not self.errors.is_terminal
        with Progress(console=self.errors, transient=True, disable=silent) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    wide: Collection[str] = (),
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
    wide : collection of str
        Columns that are left out on a narrow line.
    """
    sheet = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown = [console.width >= _WIDE or column not in wide for column in columns]
    for column in compress(columns, shown):
        is_number = column.endswith(" ")
        sheet.add_column(
            column.strip(),
            justify="right" if is_number else "left",
            no_wrap=is_number or column in _WHOLE,
        )
    for row in rows:
        cells = compress(zip(columns, row, strict=True), shown)
        sheet.add_row(*(_cell(value, cut=column in _CUT) for column, value in cells))
    if title:
        console.print(title, style="bold", markup=False, highlight=False)
    console.print(sheet)
    console.print()


def _cell(value: Any, *, cut: bool = False) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, int):
        return Text(f"{value:,}")
    # As Text, not markup: names come from users' code.
    text = Text(str(value), style=_COLORS.get(str(value), ""))
    text.no_wrap, text.overflow = cut or None, "ellipsis" if cut else None
    return text


def counted(number: int, noun: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> counted(1, "fit"), counted(3395, "record")
    ('1 fit', '3,395 records')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def age(written: float, now: float) -> str:
    """Return the time between two in the largest unit that fits."""
    seconds = max(now - written, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(written: float, now: float) -> str:
    """Return how long before `now` something was."""
    if written <= now:
        return f"{age(written, now)} ago"
    try:
        return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):  # no time of any calendar
        return f"{written:g}"


def size(number: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
