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
from types import TracebackType
from typing import Any

import warmstart
from warmstart import cli_runs, host
from warmstart.copying import copy
from warmstart.demo import run_demo
from warmstart.errors import ArgumentError, KeyLookupError, WarmstartError
from warmstart.fingerprint import Fingerprint
from warmstart.models import name_of
from warmstart.patch import patch
from warmstart.record import Entry
from warmstart.report import Out, age, counted, size, table
from warmstart.search import infos
from warmstart.store import Store
from warmstart.warm import FitReport, defaults, options_of, store_of

__all__ = ["main"]

_EPILOG = """\
KEY is a key or its first digits, at least four, as `warmstart fits` shows them;
RUN a run's, at least six, as `warmstart ls` does.

Exit codes: 0 all well; 1 the store or a file is damaged or cannot be used;
2 wrong arguments or an unknown key. `warmstart run` ends as the script does.

The store is the one given by --store, else $WARMSTART_STORE, else a folder in
the platform's cache directory. `warmstart stats` says where.
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
    parsed = _parser().parse_args(arguments, argparse.Namespace(store=None, json=False))
    out = Out(as_json=parsed.json)
    handler: _Handler = parsed.handler
    try:
        code = handler(parsed, out)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough. What is still buffered must go somewhere at the exit:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (WarmstartError, OSError) as error:
        out.errors.print(f"warmstart: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, (ArgumentError, KeyLookupError)) else 1
    return code


def _parser() -> argparse.ArgumentParser:
    # Before the command and after it: what is not given after it says nothing.
    place = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    place.add_argument(
        "--store", metavar="PLACE", help="which store: a folder, or an address such as redis://host"
    )
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="write JSON for machines")
    parser = argparse.ArgumentParser(
        prog="warmstart",
        description="Numerical fits remembered, resumable and quick to start.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[place, common],
    )
    parser.add_argument("--version", action="version", version=warmstart.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, handler: _Handler, text: str, *, has_store: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            parents=[place, common] if has_store else [common],
            help=text,
            description=text[:1].upper() + text[1:] + ".",
        )
        sub.set_defaults(handler=handler)
        return sub

    command("demo", _demo, "fit real data, fit it again, kill a fit and resume it")
    sub = command("run", _run, "run a Python script with scipy.optimize remembering its fits")
    # What is not given stays None: it is for the script to say.
    switch: dict[str, Any] = {"action": "store_true", "default": None}
    sub.add_argument("--refit", **switch, help="run every fit, remember it anew")
    sub.add_argument(
        "--callbacks",
        choices=("skip", "run"),
        help="what to do with a remembered fit that has a callback: return it without calling "
        "that, or run it again; by default calls of scipy.optimize skip, as many libraries pass "
        "callbacks of their own",
    )
    sub.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="end each fit after so many seconds of new work, with the best point so far",
    )
    sub.add_argument("--progress", **switch, help="show how each fit gets on")
    sub.add_argument("script", help="a Python file")
    rest = sub.add_argument("args", nargs=argparse.REMAINDER, help="the script's own arguments")
    rest.required = False  # as argparse says itself, but for its message without a script
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
    sub.add_argument(
        "-o",
        "--output",
        default="report.html",
        metavar="FILE",
        help="where to (report.html); what is there is replaced",
    )
    sub = command("ui", _ui, "serve that page on this machine, with what is new as it comes")
    sub.add_argument("--port", type=_port, default=0, help="by default a free one")
    sub.add_argument("--open", action="store_true", help="open it in the browser")
    command("stats", _stats, "count what is in the store, and say where it is")
    sub = command("verify", _verify, "read every record and check every byte")
    sub.add_argument("--repair", action="store_true", help="delete what is damaged")
    command("gc", _gc, "sweep damaged and expired entries, and what is over the budget")
    sub = command("export", _export, "write all fits to a portable file")
    sub.add_argument("file")
    sub = command("import", _import, "add the fits of a file written by export")
    sub.add_argument("file")
    text = "copy a store to another one; may be repeated, and goes on"
    sub = command("copy", _copy, text, has_store=False)
    sub.add_argument("source", metavar="FROM")
    sub.add_argument("target", metavar="TO")
    return parser


def _port(text: str) -> int:
    """Return the number of a port."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return number


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
        ("fit", "", "from", "nfev ", "saved ", "seconds ", "digits "),
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
    out.console.print("The resumed fit is the same as plain scipy's, bit for bit: x and nfev.")
    return 0


_OPTIONS = ("store", "refit", "callbacks", "time_limit", "progress")


def _run(parsed: argparse.Namespace, out: Out) -> int:
    script = Path(parsed.script)
    if not script.is_file():
        raise ArgumentError(f"there is no script {script}")
    if script.suffix == ".ipynb":
        raise ArgumentError(
            f"{script} is a notebook, and a Python file is run: say `from warmstart import "
            "optimize` in the notebook, or write it as a script (jupyter nbconvert --to script)"
        )
    sys.argv = [parsed.script, *parsed.args]
    sys.path[0] = os.fspath(script.resolve().parent)
    start = time.perf_counter()
    options = {name: v for name in _OPTIONS if (v := getattr(parsed, name)) is not None}
    ended: BaseException | None = None
    # What schedulers send before they kill: SIGTERM, or whatever they are asked to send.
    before = {one: signal.signal(one, _terminated) for one in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with defaults(**options), patch(callbacks=parsed.callbacks or "skip") as patched:
            try:
                runpy.run_path(parsed.script, run_name="__main__")
            except BaseException as error:  # noqa: BLE001 (told of, and passed on, below)
                ended = error
                if not isinstance(error, SystemExit):
                    trace = _own_frames(error.__traceback__)
                    sys.excepthook(type(error), error.with_traceback(trace), trace)
            _summarize(patched.fits, time.perf_counter() - start, ended, out)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if isinstance(ended, KeyboardInterrupt):
        sys.excepthook = lambda *_: None  # it was shown; python ends by the signal itself
    if isinstance(ended, (KeyboardInterrupt, SystemExit)):
        raise ended
    return 0 if ended is None else 1


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback of a script as python shows it: from the script on."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in {__name__, "runpy"}:
        trace = trace.tb_next
    return trace


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


def _summarize(
    fits: list[FitReport], seconds: float, ended: BaseException | None, out: Out
) -> None:
    """Tell on standard error, since standard output is the script's own."""
    counts = Counter(_WORDS.get(fit.source, fit.source) for fit in fits)
    evaluations = Counter[str]()
    saved = Counter[str]()
    for fit in fits:
        word = _WORDS.get(fit.source, fit.source)
        evaluations[word] += fit.evaluations or 0
        saved[word] += fit.evaluations_saved
    saved_seconds = sum(fit.seconds_saved for fit in fits)
    cut = [] if ended is None else _cut_short()
    if out.as_json:
        document = {
            "fits": dict(counts),
            "evaluations": evaluations.total(),
            "evaluations_saved": saved.total(),
            "seconds": seconds,
            "seconds_saved": saved_seconds,
            "interrupted": len(cut),
            "recorded": sum(cut),
            "why": sorted({fit.why for fit in fits if fit.why}),
        }
        sys.stderr.write(json.dumps(document) + "\n")
        return
    lines = sorted({f"  {fit.why}" for fit in fits if fit.why})
    if fits:
        title = f"warmstart: {counted(len(fits), 'fit')} in {seconds:.1f} s, "
        title += f"about {saved_seconds:.1f} s saved"
        rows = [(word, counts[word], evaluations[word], saved[word]) for word in counts]
        table(out.errors, ("", "fits ", "evaluations ", "saved "), rows, title=title)
    elif ended is None:
        lines.append("warmstart: the script has done no fit that could be remembered")
        # Child processes of all kinds, joblib's too, are begun by a module of such a name.
        if any(name.rpartition(".")[2].startswith("popen_") for name in sys.modules):
            lines.append(
                "  fits of its child processes are not counted here; where these are not forked, "
                "the code that runs there remembers with `from warmstart import optimize`"
            )
    if cut:
        lines.append(
            f"warmstart: {counted(len(cut), 'fit')} interrupted, "
            f"{counted(sum(cut), 'evaluation')} recorded; the same command goes on"
        )
    for line in lines:
        out.errors.print(line, markup=False, highlight=False, soft_wrap=True)


def _cut_short() -> list[int]:
    """Return how many evaluations are recorded of each fit that this process did not finish."""
    store = store_of(options_of(None))
    if store.told is None:  # no fit of this process has ended there
        return []

    def find() -> list[int]:
        mine = [one for one in infos(store) if one.key and one.process == host.process_id()]
        last = {info.key: info.status for info in mine}
        shelf, found = store.journals, []
        paths = [] if shelf is None else shelf.paths()
        for key in (key for key, status in last.items() if status in {"cancelled", "failed"}):
            fit = next((path.parent.name for path in paths if path.name.startswith(key[:16])), None)
            if shelf is not None and fit is not None:
                journal = shelf.find(Fingerprint.parse(fit), Fingerprint.parse(key)).journal
                if journal is not None:
                    found.append(journal.count)
                    journal.close()
        return found

    return store.attempt(find, [])


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
        ("key", "what", "kind", "objective ", "nfev ", "runs ", "age"),
        [
            (
                row["key"][:12],
                row["what"],
                row["kind"],
                row["objective"],
                row["nfev"],
                row["runs"],
                age(row["written"], now),
            )
            for row in rows
        ],
    )
    if len(fits) > len(shown):
        out.console.print(f"and {len(fits) - len(shown):,} more: --limit shows them")
    return 0


def _line(store: Store, key: Fingerprint, entries: list[Entry]) -> dict[str, Any]:
    best = entries[0]
    summary = store.summary(key)
    arguments = summary.arguments if summary else {}
    name = name_of(summary) if summary else ""
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
        ("run", "kind", "status", "objective ", "nfev ", "start", "producer", "age"),
        [
            (
                row["run"][:14],
                row["kind"],
                row["status"],
                row["objective"],
                row["nfev"],
                row["start"],
                row["producer"],
                age(row["written"], now),
            )
            for row in rows
        ],
        wide={"producer"},
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
        said = f"{file}: {counted(len(data['runs']), 'run')}, {size(file.stat().st_size)}"
        out.console.print(said, markup=False, highlight=False)
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
        state = f"{len(report.mended)} mended, {state}" if report.mended else state
        out.console.print(
            f"{counted(report.records, 'record')}, {len(report.damaged):,} damaged, "
            f"{report.newer:,} newer, {report.repaired:,} removed: {state}",
            highlight=False,
        )
        lines = [*report.mended, *report.structure, *report.damaged]
        for line in lines[:_LINES]:
            out.console.print(f"  {line}", markup=False, highlight=False)
        if len(lines) > _LINES:
            out.console.print(f"  and {len(lines) - _LINES:,} more: --json shows them")
        if not report.sound and not parsed.repair:
            out.console.print("`warmstart verify --repair` removes what is damaged")
    return 0 if report.sound else 1


def _gc(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed, writes=True) as store:
        gone = store.gc()
    if out.as_json:
        out.json(gone)
    else:
        what = ", ".join(f"{number:,} {reason}" for reason, number in gone.items())
        out.console.print(what or "nothing to sweep", highlight=False)
    return 0


def _export(parsed: argparse.Namespace, out: Out) -> int:
    with _store(parsed) as store, out.progress("export") as progress:
        count = store.export(parsed.file, progress=progress)
    if out.as_json:
        out.json({"exported": count})
    else:
        said = f"{counted(count, 'record')} written to {parsed.file}"
        out.console.print(said, markup=False, highlight=False)
    return 0


def _copy(parsed: argparse.Namespace, out: Out) -> int:
    if parsed.store is not None:
        raise ArgumentError("copy is told both stores as FROM and TO, and takes no --store")
    with Store(parsed.source, read_only=True) as source, Store(parsed.target) as target:
        if source.address == target.address:
            raise ArgumentError(f"FROM and TO are the same store, {source.address}: name another")
        source.stats()
        with out.progress("copy") as progress:
            done = copy(source, target, progress)
    if out.as_json:
        out.json(done._asdict())
    else:
        out.console.print(
            f"{counted(done.copied, 'row')} copied, {done.present:,} were there, "
            f"{done.damaged:,} damaged ones left out"
        )
    return 0


def _import(parsed: argparse.Namespace, out: Out) -> int:
    if not Path(parsed.file).is_file():
        raise ArgumentError(
            f"{parsed.file} is no file: give one that `warmstart export FILE` has written"
        )
    with _store(parsed, writes=True) as store, out.progress("import") as progress:
        added, skipped = store.import_(parsed.file, progress=progress)
    if out.as_json:
        out.json({"added": added, "skipped": skipped})
    else:
        said = f"{counted(added, 'record')} added, {skipped:,} skipped"
        out.console.print(said, highlight=False)
    return 0
