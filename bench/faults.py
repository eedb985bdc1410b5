"""Campaigns of faults, each with what it tried, survived, lost and got wrong.

Run ``python bench/faults.py`` for all of them at full length (hours), ``--quick`` for the short
forms (minutes, for CI), or name some: ``python bench/faults.py kills flips``. The campaigns are
the modules of ``tests/faults``, which say what each does. It fails, exit code 1, if anything was
wrong or a durable record was lost, never on a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.campaign import CAMPAIGNS, Outcome
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def main() -> int:
    """Run the campaigns and show what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--quick", action="store_true", help="the short forms")
    parser.add_argument("--amount", type=int, help="how many faults, instead of either")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to a file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CAMPAIGNS):
        parser.error(f"no campaign {', '.join(sorted(unknown))}: there are {', '.join(CAMPAIGNS)}")
    console = Console(stderr=True)
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        for name in options.names or CAMPAIGNS:
            amount = options.amount or CAMPAIGNS[name][options.quick]
            task = bar.add_task(name, total=amount)
            begun = time.perf_counter()
            outcomes[name] = importlib.import_module(f"faults.{name}").run(
                amount, options.seed, lambda done, task=task: bar.update(task, completed=done)
            )
            seconds[name] = time.perf_counter() - begun
    table = Table(title="Faults", title_justify="left", title_style="bold")
    table.add_column("campaign", no_wrap=True)
    for column in ("tried", "survived", "lost", "wrong", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("figures")
    for name, o in outcomes.items():
        figures = ", ".join(f"{key} {value}" for key, value in o.figures.items())
        figures = "\n".join([figures, *o.troubles])
        table.add_row(
            name,
            *(f"{n:,}" for n in (o.tried, o.survived, o.lost, o.wrong)),
            f"{seconds[name]:.0f}",
            figures,
            style=None if o.passed else "red",
        )
    Console().print(table)
    if options.json:
        found = {name: vars(o) | {"seconds": seconds[name]} for name, o in outcomes.items()}
        options.json.write_text(json.dumps(found, indent=1, default=str))
    return 0 if all(o.passed for o in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
