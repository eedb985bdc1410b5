"""The command ``warmstart``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import warmstart
from warmstart import cli_runs
from warmstart.copying import copy
from warmstart.demo import run_demo
from warmstart.errors import KeyLookupError, WarmstartError
from warmstart.fingerprint import Fingerprint
from warmstart.patch import patch
from warmstart.record import Entry
from warmstart.report import Out, ago, size, table
from warmstart.store import Store
from warmstart.warm import FitReport

__all__ = ["main"]

_EPILOG = """\
KEY is a key or its first digits, at least four, as `warmstart fits` shows them; RUN a run's, at
least six, as `warmstart ls` does.

Exit codes: 0 all well; 1 the store or a file is damaged or cannot be used; 2 wrong arguments
or an unknown key. `warmstart run` ends as the script does.

The store is the one given by --store, else $WARMSTART_STORE, else a folder in the platform's
cache directory. `warmstart stats` says where.
"""

_LINES = 50
_Handler = Callable[[argparse.Namespace, "Out"], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.
    """
    parsed = _parser().parse_args(arguments)
    out = Out(as_json=parsed.json)
    handler: _Handler = parsed.handler
    try:
        return handler(parsed, out)
    except KeyLookupError as error:
        out.errors.print(f"warmstart: {error}", markup=False, highlight=False)
        return 2
    except (WarmstartError, OSError) as error:
        out.errors.print(f"warmstart: {error}", markup=False, highlight=False)
        return 2 if isinstance(error, ValueError) and isinstance(error, TypeError) else 1
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", metavar="FOLDER", help="which store")
    common.add_argument("--json", action="store_true", help="write JSON for machines")
    parser = argparse.ArgumentParser(
        prog="warmstart",
        description="Numerical fits remembered, resumable and quick to start.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=warmstart.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, handler: _Handler, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[common], help=text, description=text[:1].upper() + text[1:] + "."
        )
        sub.set_defaults(handler=handler)
        return sub

    command("demo", _demo, "fit real data, fit it again, kill a fit and resume it")
    sub = command("run", _run, "run a Python script with scipy.optimize remembering its fits")
    sub.add_argument("--refit", action="store_true", help="run every fit, remember it anew")
    sub.add_argument(
        "--callbacks",
        choices=("skip", "run"),
        default="skip",
        help="what to do with a remembered fit that has a callback: return it without calling "
        "that (skip, as many libraries pass callbacks of their own), or run it again",
    )
    sub.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="end each fit after so many seconds of new work, with the best point so far",
    )
    sub.add_argument("--progress", action="store_true", help="show how each fit gets on")
    sub.add_argument("script", help="a Python file")
    sub.add_argument("args", nargs=argparse.REMAINDER, help="what the script gets as arguments")
    cli_runs.add(command)
    sub = command("fits", _ls, "list the fits in the store, newest first")
    sub.add_argument("-n", "--limit", type=cli_runs.count, default=30, help="at most so many (30)")
    sub = command("show", _show, "show a run, or all entries of one fit")
    sub.add_argument("key", metavar="RUN or KEY")
    sub.add_argument("--lineage", action="store_true", help="and which runs it goes back to")
    sub = command("explain", _explain, "say in which arguments two fits differ")
    sub.add_argument("key", metavar="KEY")
    sub.add_argument("other", metavar="KEY")
    sub = command("report", _report, "write a page to look at: runs, savings, lineage, plans")
    sub.add_argument("-o", "--output", default="report.html", metavar="FILE", help="report.html")
    sub = command("ui", _ui, "serve that page on this machine, with what is new as it comes")
    sub.add_argument("--port", type=int, default=0, help="by default a free one")
    sub.add_argument("--open", action="store_true", help="open it in the browser")
    command("stats", _stats, "count what is in the store, and say where it is")
    sub = command("verify", _verify, "read every record and check every byte")
    sub.add_argument("--repair", action="store_true", help="delete what is damaged")
    command("gc", _gc, "sweep damaged and expired entries, and what is over the budget")
    sub = command("export", _export, "write all fits to a portable file")
    sub.add_argument("file")
    sub = command("import", _import, "add the fits of a file written by export")
    sub.add_argument("file")
    sub = command("copy", _copy, "copy a store to another one; may be repeated, and goes on")
    sub.add_argument("source", metavar="FROM")
    sub.add_argument("target", metavar="TO")
    return parser


def _store(parsed: argparse.Namespace, *, writes: bool = False) -> Store:
    return Store(parsed.store, read_only=not writes)


def _demo(parsed: argparse.Namespace, out: Out) -> int:
    store = Store(parsed.store) if parsed.store else None
    rows = run_demo(store, out.note)
    if out.as_json:
        out.json(rows)
        return 0
    table(
        out.console,
        ("fit", "", "source", "evaluations ", "saved ", "seconds ", "digits "),
        [
            (
                row.fit,
                row.what,
                row.source,
                row.evaluations,
                row.saved,
                row.seconds,
                None if row.digits is None else round(row.digits, 1),
            )
            for row in rows
        ],
        title="digits: agreement of the worst parameter with the published value",
    )
    return 0


def _run(parsed: argparse.Namespace, out: Out) -> int:
    script = Path(parsed.script)
    if not script.is_file():
        out.errors.print(f"warmstart: there is no script {script}", markup=False)
        return 2
    sys.argv = [parsed.script, *parsed.args]
    sys.path[0] = os.fspath(script.resolve().parent)
    start = time.perf_counter()
    options = {
        "refit": parsed.refit,
        "callbacks": parsed.callbacks,
        "time_limit": parsed.time_limit,
        "progress": parsed.progress,
    }
    # What schedulers send before they kill: SIGTERM, or whatever they are asked to send.
    before = {one: signal.signal(one, _terminated) for one in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with patch(store=Store(parsed.store), **options) as patched:
            try:
                runpy.run_path(parsed.script, run_name="__main__")
            finally:
                _summarize(patched.fits, time.perf_counter() - start, out)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _terminated(number: int, _frame: Any) -> None:
    """End as Ctrl-C does, so that the fit that runs is written down; it goes on next time."""
    raise SystemExit(128 + number)


_WORDS = {
    "final": "hit",
    "journal": "resumed",
    "checkpoint": "resumed",
    "cold": "fitted",
    "off": "not remembered",
}


def _summarize(fits: list[FitReport], seconds: float, out: Out) -> None:
    counts = Counter(_WORDS.get(fit.source, fit.source) for fit in fits)
    evaluations = Counter[str]()
    saved = Counter[str]()
    for fit in fits:
        word = _WORDS.get(fit.source, fit.source)
        evaluations[word] += fit.evaluations or 0
        saved[word] += fit.evaluations_saved
    saved_seconds = sum(fit.seconds_saved for fit in fits)
    if out.as_json:
        # On standard error: standard output is the script's own.
        document = {
            "fits": dict(counts),
            "evaluations": evaluations.total(),
            "evaluations_saved": saved.total(),
            "seconds": seconds,
            "seconds_saved": saved_seconds,
            "why": sorted({fit.why for fit in fits if fit.why}),
        }
        sys.stderr.write(json.dumps(document) + "\n")
        return
    rows = [(word, counts[word], evaluations[word], saved[word]) for word in counts]
    title = f"warmstart: {len(fits)} fits in {seconds:.1f} s, about {saved_seconds:.1f} s saved"
    if not rows:
        out.errors.print("warmstart: no call of a function that remembers has come to its end")
        return
    table(out.errors, ("", "fits ", "evaluations ", "saved "), rows, title=title)
    for why in sorted({fit.why for fit in fits if fit.why}):
        out.errors.print(f"  {why}", markup=False, highlight=False)


def _ls(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store:
        fits = [(key, store.entries(key)) for key in list(store.keys())]
        fits = [(key, entries) for key, entries in fits if entries]
        fits.sort(key=lambda fit: -max(entry.sequence for entry in fit[1]))
        shown = fits[: parsed.limit]
        rows = [_line(store, key, entries) for key, entries in shown]
        now = store.clock()
    if out.as_json:
        out.json(rows)
        return 0
    table(
        out.console,
        ("key", "what", "kind", "objective ", "nfev ", "runs ", "written"),
        [
            (
                row["key"][:12],
                row["what"],
                row["kind"],
                row["objective"],
                row["nfev"],
                row["runs"],
                ago(row["written"], now),
            )
            for row in rows
        ],
    )
    if len(fits) > len(shown):
        out.console.print(f"and {len(fits) - len(shown)} more: --limit shows them")
    return 0


def _line(store: Store, key: Fingerprint, entries: list[Entry]) -> dict[str, Any]:
    best = entries[0]
    summary = store.summary(key)
    arguments = summary.arguments if summary else {}
    model = arguments.get("model", {})
    name = next((model[n][1] for n in ("fun", "f", "func", "name", "model") if n in model), "")
    method = arguments.get("settings", {}).get("method", (b"", ""))[1]
    method = " ".join(re.findall(r"[\w-]+", method))  # ('minimize', 'BFGS') as people say it
    return {
        "key": str(key),
        "what": f"{name} {method}".strip(),
        "kind": best.kind.value,
        "objective": best.objective,
        "nfev": best.nfev if best.nfev is not None else best.iteration,
        "runs": len({entry.run for entry in entries}),
        "written": max(entry.written for entry in entries),
    }


def _show(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store:
        if (code := cli_runs.show(store, parsed, out)) is not None:
            return code
        key = store.resolve(parsed.key)
        entries = store.entries(key)
        summary = store.summary(key)
        infos = {entry.run: store.run_info(entry.run) for entry in entries}
        now, pinned = store.clock(), store.pinned(key)
    arguments = summary.arguments if summary else {}
    named = [
        {"part": part, "argument": name, "value": text}
        for part, values in arguments.items()
        for name, (_, text) in values.items()
    ]
    rows: list[dict[str, Any]] = [
        {
            "run": entry.run,
            "kind": entry.kind.value,
            "status": info.status if (info := infos[entry.run]) else None,
            "objective": entry.objective,
            "nfev": entry.nfev if entry.nfev is not None else entry.iteration,
            "start": entry.start.source,
            "start_run": entry.start.run,
            "producer": entry.producer,
            "dropped": list(entry.dropped),
            "written": entry.written,
            "error": info.error if info else None,
        }
        for entry in entries
    ]
    if out.as_json:
        out.json({"key": str(key), "pinned": pinned, "arguments": named, "entries": rows})
        return 0
    out.console.print(f"key {key}{' (pinned)' if pinned else ''}", highlight=False)
    table(out.console, ("part", "argument", "value"), [tuple(item.values()) for item in named])
    table(
        out.console,
        ("run", "kind", "status", "objective ", "nfev ", "start", "producer", "written"),
        [
            (
                row["run"][:14],
                row["kind"],
                row["status"],
                row["objective"],
                row["nfev"],
                row["start"],
                row["producer"],
                ago(row["written"], now),
            )
            for row in rows
        ],
    )
    return 0


def _explain(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store:
        key, other = store.resolve(parsed.key), store.resolve(parsed.other)
        differences = store.explain(key, other)
    if out.as_json:
        out.json(
            [
                {"part": d.part, "name": d.name, "ours": d.ours, "theirs": d.theirs}
                for d in differences
            ]
        )
    elif not differences:
        out.console.print("the same fit")
    else:
        table(
            out.console,
            ("part", "argument", str(key)[:12], str(other)[:12]),
            [(d.part, d.name, d.ours or "absent", d.theirs or "absent") for d in differences],
        )
    return 0


def _report(parsed: argparse.Namespace, out: Out) -> int:
    from warmstart.page import page_data, render  # noqa: PLC0415 (optional parts)

    with _store(parsed) as store:
        data = page_data(store)
    file = Path(parsed.output)
    file.write_text(render(data), encoding="utf-8")
    if out.as_json:
        out.json({"file": str(file), "runs": len(data["runs"])})
    else:
        out.console.print(f"{file}: {len(data['runs']):,} runs", markup=False, highlight=False)
    return 0


def _ui(parsed: argparse.Namespace, out: Out) -> int:
    from warmstart.page import render, serve  # noqa: PLC0415 (optional parts)

    with _store(parsed) as store:
        store.stats()  # before anybody is told an address
        render({})
        served = serve(store, parsed.port)
        if parsed.open:
            webbrowser.open(served.url)
        out.console.print(f"{served.url}  (Ctrl-C ends it)", markup=False, highlight=False)
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        served.stop()
    return 0


def _stats(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store:
        stats = store.stats()
    if out.as_json:
        out.json(stats)
        return 0
    rows = [(name, value) for name, value in dataclasses.asdict(stats).items()]
    shown = [
        (name, size(value) if name in {"bytes", "budget", "journal_bytes"} else value)
        for name, value in rows
        if name != "counters"
    ]
    table(out.console, ("", " "), shown)
    return 0


def _verify(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed, writes=parsed.repair) as store:
        report = store.verify(repair=parsed.repair)
    if out.as_json:
        out.json(report)
    else:
        state = "sound" if report.sound else "damaged"
        out.console.print(
            f"{report.records} records, {len(report.damaged)} damaged, {report.newer} newer, "
            f"{report.repaired} removed: {state}",
            highlight=False,
        )
        lines = [*report.structure, *report.damaged]
        for line in lines[:_LINES]:
            out.console.print(f"  {line}", markup=False, highlight=False)
        if len(lines) > _LINES:
            out.console.print(f"  and {len(lines) - _LINES} more: --json shows them")
        if report.damaged and not parsed.repair:
            out.console.print("`warmstart verify --repair` removes what is damaged")
    return 0 if report.sound else 1


def _gc(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed, writes=True) as store:
        gone = store.gc()
    if out.as_json:
        out.json(gone)
    else:
        what = ", ".join(f"{number} {reason}" for reason, number in gone.items())
        out.console.print(what or "nothing to sweep", highlight=False)
    return 0


def _export(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store, out.progress("export") as progress:
        count = store.export(parsed.file, progress=progress)
    if out.as_json:
        out.json({"exported": count})
    else:
        out.console.print(f"{count} records written to {parsed.file}", highlight=False)
    return 0


def _copy(parsed: argparse.Namespace, out: Out) -> int:
    with Store(parsed.source, read_only=True) as source, Store(parsed.target) as target:
        source.stats()
        with out.progress("copy") as progress:
            done = copy(source, target, progress)
    if out.as_json:
        out.json(done._asdict())
    else:
        out.console.print(
            f"{done.copied:,} rows copied, {done.present:,} were there, {done.damaged:,} damaged "
            "ones left out"
        )
    return 0


def _import(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed, writes=True) as store, out.progress("import") as progress:
        added, skipped = store.import_(parsed.file, progress=progress)
    if out.as_json:
        out.json({"added": added, "skipped": skipped})
    else:
        out.console.print(f"{added} records added, {skipped} skipped", highlight=False)
    return 0
