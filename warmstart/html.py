"""What notebooks show of runs, stores and results: small tables, every name escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from warmstart.report import ago, size

if TYPE_CHECKING:
    from warmstart.run import Run
    from warmstart.store import Store
    from warmstart.warm import FitReport

__all__ = ["report_html", "run_html", "runs_html", "store_html"]

_SHOWN = 20


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(f"{value:,}" if type(value) is int else str(value))


def _table(rows: Iterable[Sequence[Any]], columns: Sequence[str] = (), *, caption: str = "") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    if head:
        title += f"<thead><tr>{head}</tr></thead>"
    return f"<table>{title}<tbody>{body}</tbody></table>"


def run_html(run: Run) -> str:
    """Return a run as a table of two columns."""
    info, document = run.info, run.document
    rows: list[tuple[str, Any]] = [
        ("run", run.id),
        ("status", run.state),
        ("what", info.what),
        ("started", ago(info.started, run.store.clock())),
        ("seconds", run.duration),
        ("began", " ".join(filter(None, (info.source, info.level, (info.start_run or "")[:14])))),
        ("evaluations", info.evaluations),
        ("saved", info.saved),
        ("objective", info.objective),
        ("error", info.error),
    ]
    rows += [(f"params.{name}", value) for name, value in document.params.items()]
    rows += [(f"tags.{name}", value) for name, value in document.tags.items()]
    shown = [(name, value) for name, value in rows if value not in (None, "", 0)]
    return _table(shown, caption=document.name or info.what or "run")


def runs_html(runs: Sequence[Run]) -> str:
    """Return the first of some runs as a table, and the number of all."""
    columns = ("run", "name", "state", "evaluations", "saved", "objective", "started")
    rows = []
    for run in runs[:_SHOWN]:
        info = run.info
        when = ago(info.started, run.store.clock())
        rows.append(
            (run.id[:14], run.name, run.state, info.evaluations, info.saved, info.objective, when)
        )
    more = f", {_SHOWN} shown" if len(runs) > _SHOWN else ""
    return _table(rows, columns, caption=f"{len(runs):,} runs{more}")


def store_html(store: Store) -> str:
    """Return what is in a store."""
    stats = store.stats()
    rows = [
        ("fits", stats.keys),
        ("results", stats.finals),
        ("checkpoints", stats.checkpoints),
        ("runs", stats.runs),
        ("used", f"{size(stats.bytes)} of {size(stats.budget)}"),
        ("journals", f"{stats.journals}, {size(stats.journal_bytes)}"),
    ]
    return _table(rows, caption=f"store {store.address}")


def report_html(report: FitReport) -> str:
    """Return how a fit came about."""
    rows = [
        ("from", report.source),
        ("evaluations", report.evaluations),
        ("saved", report.evaluations_saved),
        ("near by", report.near and f"{report.near.predictor}, {report.near.level}"),
        ("why", report.why),
        ("run", report.run),
    ]
    return _table([row for row in rows if row[1] not in (None, "", 0)], caption="warmstart")
