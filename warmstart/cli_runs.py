"""The commands about runs: ``ls``, ``show``, ``compare``, ``plot`` and ``families``."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.text import Text
from rich.tree import Tree

from warmstart import learned
from warmstart.errors import ArgumentError, RunLookupError
from warmstart.fingerprint import Fingerprint
from warmstart.report import Out, age, ago, counted, size, table
from warmstart.run import Run
from warmstart.search import told
from warmstart.store import Store

__all__ = ["add", "count", "show"]

_SORTS = ("started", "evaluations", "saved", "objective", "seconds")
_SERIES_SHOWN = 12
_COLORS = ("green", "magenta", "cyan", "yellow", "red", "blue")


def count(text: str) -> int:
    """Return a number of lines."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    sub = command("ls", _ls, "list runs, the newest first, and what was saved")
    sub.add_argument(
        "where",
        nargs="*",
        metavar="CONDITION",
        help="only those that meet all of them: status=completed, 'params.rate>=0.5', "
        "what~curve_fit (contains), name^=fold (begins with)",
    )
    sub.add_argument("--experiment", help="only those of an experiment")
    sub.add_argument("--sort", choices=_SORTS, default="started", help="by what (started)")
    sub.add_argument("-n", "--limit", type=count, default=30, help="at most so many (30)")
    sub = command("compare", _compare, "show where runs differ: parameters, results, series")
    sub.add_argument("runs", nargs="+", metavar="RUN")
    sub = command("plot", _plot, "draw how runs converged")
    sub.add_argument("runs", nargs="+", metavar="RUN")
    sub.add_argument("--series", help="which one (best)")
    sub = command("families", _families, "show what near starts have cost, and the plans in force")
    sub.add_argument("--models", action="store_true", help="which arguments of models change")


def _open(parsed: argparse.Namespace) -> Store:
    return Store(parsed.store, read_only=True)


def _row(run: Run) -> dict[str, Any]:
    return {**run.to_dict(), "state": run.state, "name": run.name}


def _ls(parsed: argparse.Namespace, out: Out) -> int:
    with _open(parsed) as store:
        found = store.runs(parsed.where, experiment=parsed.experiment)
        rows = told(found, _row)
        if parsed.sort != "started":
            reverse = parsed.sort != "objective"
            rows.sort(
                key=lambda row: _order(row.get(parsed.sort), reverse=reverse), reverse=reverse
            )
        shown = rows[: parsed.limit]
        reached = [_reached(store, row) for row in shown]
        now = store.clock()
        hits = learned.savings(store.backend)
    if out.as_json:
        out.json(shown)
        return 0
    table(
        out.console,
        ("run", "name", "status", "from", "objective ", "nfev ", "saved ", "seconds ", "age"),
        [
            (
                row["run"][:14],
                row["name"],
                row["state"],
                " ".join(filter(None, (row.get("source"), row.get("level")))),
                row.get("objective", objective),
                row.get("evaluations", evaluations and f"{evaluations:,}+"),
                row.get("saved"),
                row.get("seconds"),
                age(row["started"], now),
            )
            for row, (objective, evaluations) in zip(shown, reached, strict=True)
        ],
        wide={"from", "seconds "},
    )
    if len(rows) > len(shown):
        out.console.print(f"and {len(rows) - len(shown):,} more: --limit shows them")
    made = sum(row.get("evaluations", 0) for row in rows)
    saved = sum(row.get("saved", 0) for row in rows)
    hit = sum(day.hits for day in hits.values())
    out.console.print(
        f"{counted(len(rows), 'run')} made {counted(made, 'evaluation')} and saved {saved:,}; "
        f"{counted(hit, 'hit')} saved {sum(day.evaluations for day in hits.values()):,} and "
        f"{sum(day.seconds for day in hits.values()):,.1f} s",
        highlight=False,
    )
    return 0


def _reached(store: Store, row: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """Return the objective and the evaluations to which a fit had come that has no end."""
    if row["state"] == "completed" or not row.get("key"):
        return None, None
    entries = store.entries(Fingerprint.parse(row["key"]))
    mine = [entry for entry in entries if entry.run == row["run"]]
    return (
        min((one.objective for one in mine if one.objective is not None), default=None),
        max((one.iteration for one in mine if one.iteration is not None), default=None),
    )


def _order(value: Any, *, reverse: bool) -> float:
    if value is None or value != value:  # noqa: PLR0124 (NaN)
        return -math.inf if reverse else math.inf
    return float(value)


def show(store: Store, parsed: argparse.Namespace, out: Out) -> int | None:
    """Show a run; None if there is none of that name."""
    try:
        run = store.get_run(parsed.key)
    except (RunLookupError, ArgumentError):
        return None
    series = {name: run.metrics(name) for name in run.metric_names}
    facts, process = _row(run), run.process
    kept = [{"name": a.name, "type": a.type, "size": a.size, "hash": a.hash} for a in run.artifacts]
    children = [child.id for child in run.children]
    document: dict[str, Any] = {
        **facts,
        "process": process,
        "series": {n: {"points": len(s.values), "latest": s.latest} for n, s in series.items()},
        "artifacts": kept,
        "steps": run.steps(),
        "children": children,
    }
    if parsed.lineage:
        tree = store.lineage(run)
        document["lineage"] = tree.to_dict()
    if out.as_json:
        out.json(document)
        return 0
    told = {**facts, "steps": run.steps()}
    told |= {name: value for name, value in process.items() if name not in told}
    for name in ("started", "ended", "beat", "told"):
        if isinstance(told.get(name), float):  # what a process tells may be anything
            told[name] = ago(told[name], store.clock())
    if isinstance(told.get("memory"), int):
        told["memory"] = size(told["memory"])
    if "pid" in told:
        told["pid"] = str(told["pid"])  # a name, not a number
    if (experiment := run.experiment) is not None:
        told["experiment"] = experiment.name
    hidden = {"packages", "params", "tags", "version", "extra"}
    rows = [
        (name, told[name]) for name in told if name not in hidden and told[name] not in ("", [])
    ]
    for part in ("params", "tags", "extra"):
        values: dict[str, Any] = getattr(run.document, part)
        rows += [(f"{part}.{name}", repr(value)) for name, value in values.items()]
    rows += [(f"artifact {one['name']}", f"{one['type']}, {one['size']:,} bytes") for one in kept]
    if children:
        rows.append(("parts", len(children)))
    table(out.console, ("", "value"), rows, title=f"run {run.id}")
    if series:
        table(
            out.console,
            ("series", "points ", "first ", "lowest ", "latest "),
            [
                (name, len(s.values), float(s.values[0]), float(np.nanmin(s.values)), s.latest)
                for name, s in series.items()
                if len(s.values)
            ],
        )
    if parsed.lineage:
        out.console.print(_tree(store, run))
    return 0


def _tree(store: Store, run: Run) -> Tree:
    """Return what a run goes back to, and what goes back to it."""
    whole = store.lineage(run)
    ancestors = whole.ancestors(run.id)
    top = [name for name in (*ancestors, run.id) if not whole.parents(name)]
    grown = Tree("lineage")

    def grow(branch: Tree, name: str, kind: str, depth: int) -> None:
        info = whole.runs.get(name)
        label = Text.assemble(
            (name[:14], "bold" if name == run.id else ""),
            f" {kind} {info.what if info else 'forgotten'}",
        )
        twig = branch.add(label)
        edges = [edge for edge in whole.edges if edge.run == name]
        for edge in edges[:_SERIES_SHOWN] if depth < _SERIES_SHOWN else []:
            grow(twig, edge.begins, f"{edge.kind} {edge.level or ''}".strip(), depth + 1)
        if len(edges) > _SERIES_SHOWN:
            twig.add(f"and {len(edges) - _SERIES_SHOWN} more")

    for name in top:
        grow(grown, name, "", 0)
    return grown


def _compare(parsed: argparse.Namespace, out: Out) -> int:
    with _open(parsed) as store:
        runs = [store.get_run(name) for name in parsed.runs]
        columns = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = {name: [column.get(name) for column in columns] for name in names}
    if out.as_json:
        out.json({"runs": [run.id for run in runs], "values": rows})
        return 0
    table(
        out.console,
        ("", "", *(f"{run.id[:14]}" for run in runs)),
        [
            (name, "" if len(set(map(repr, values))) == 1 else "differs", *values)
            for name, values in rows.items()
        ],
    )
    return 0


def _facts(run: Run) -> dict[str, Any]:
    info, document = run.info, run.document
    found: dict[str, Any] = {
        "name": run.name,
        "status": run.state,
        "from": info.source,
        "objective": info.objective,
        "evaluations": info.evaluations,
        "saved": info.saved,
        "seconds": run.duration,
    }
    found |= {f"params.{name}": value for name, value in document.params.items()}
    found |= {f"tags.{name}": value for name, value in document.tags.items()}
    return found | {f"metrics.{name}": run.latest(name) for name in run.metric_names}


def _plot(parsed: argparse.Namespace, out: Out) -> int:
    with _open(parsed) as store:
        runs = [store.get_run(name) for name in parsed.runs]
        found = []
        for run in runs:
            names = run.metric_names
            name = parsed.series or ("best" if "best" in names else next(iter(names), ""))
            if name not in names:
                raise ArgumentError(
                    f"run {run.id[:14]} has no series {name!r}: it has "
                    f"{', '.join(names) or 'none (fits of less than 10 ms keep none)'}"
                )
            found.append((run, name, run.metrics(name)))
    if out.as_json:
        out.json(
            [
                {
                    "run": run.id,
                    "series": name,
                    "steps": s.steps.tolist(),
                    "values": s.values.tolist(),
                }
                for run, name, s in found
            ]
        )
        return 0
    out.console.print(Text.from_ansi(_chart(found, out.console.width)))
    return 0


def _chart(found: Sequence[tuple[Run, str, Any]], width: int) -> str:
    import plotille  # noqa: PLC0415 (only charts need it)

    figure = plotille.Figure()
    figure.width, figure.height = max(20, min(width - 24, 100)), 18
    figure.color_mode = "names"
    finite = np.concatenate([s.values[np.isfinite(s.values)] for _, _, s in found])
    if not len(finite):
        return "no finite value"
    # The figure has no logarithmic axis.
    by_tens = finite.min() > 0.0 and finite.max() > 100.0 * finite.min()
    steps = np.concatenate([s.steps for _, _, s in found])
    figure.set_x_limits(float(steps.min()), float(max(steps.max(), steps.min() + 1)))
    figure.x_ticks_fkt = lambda low, _: f"{low:,.0f}"
    figure.y_ticks_fkt = lambda low, _: f"{low:.4g}"
    figure.x_label = "step"
    figure.y_label = "log10" if by_tens else "value"
    for (run, name, series), color in zip(found, itertools.cycle(_COLORS), strict=False):
        kept = np.isfinite(series.values)
        values = np.log10(series.values[kept]) if by_tens else series.values[kept]
        figure.plot(series.steps[kept], values, label=f"{run.id[:14]} {name}", lc=color)
    return str(figure.show(legend=True))


def _families(parsed: argparse.Namespace, out: Out) -> int:
    with _open(parsed) as store:
        books = learned.families(store.backend)
        models = store.models() if parsed.models else []
    columns = ("family", "what", "way", "fits ", "median ", "p90 ", "off", "mode")
    rows = [
        (
            name.hex()[:8],
            family.what,
            way,
            of.evaluations.count,
            of.recent,
            of.evaluations.quantile(0.9),
            way in family.plan.off,
            family.plan.mode,
        )
        for name, family in books.items()
        for way, of in sorted(family.ways.items())
    ]
    if out.as_json:
        names = [column.strip() for column in columns]
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        out.json({"families": listed, "models": models})
        return 0
    table(out.console, columns, rows, title="evaluations by how near fits began")
    for model in models:
        table(
            out.console,
            ("argument", "", "agrees ", "confidence "),
            [(name, *values) for name, values in model.stability.items()],
            title=f"{model.what}: {counted(model.fits, 'fit')}",
        )
    return 0
