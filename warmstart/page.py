"""A page to look at: runs, convergence, savings, lineage, families and the store's health.

One file that needs no network: Jinja fills the template, which carries Plotly's JavaScript and
the data as JSON. ``warmstart ui`` serves the same page on the loopback interface, where it asks for
new data every few seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import math
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from warmstart import learned
from warmstart.errors import ArgumentError
from warmstart.experiment import experiments
from warmstart.plots import daily
from warmstart.run import Run, dead
from warmstart.search import infos
from warmstart.store import Store

__all__ = ["Served", "page_data", "render", "serve"]

_RUNS = 10_000
"""Runs on the page, the newest."""
_CURVES = 300
"""Of which the convergence is on it."""
_DAY = 86_400


def page_data(store: Store) -> dict[str, Any]:
    """Return what the page shows, as JSON has it: NaN and infinities are null.

    Notes
    -----
    Reads all runs, and the series of the newest three hundred that have any: 0.5 s for ten
    thousand.
    """
    now = store.clock()
    every = list(infos(store))
    newest = every[: -_RUNS - 1 : -1]
    names = {one.id: one.name for one in experiments(store)}
    runs: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for info in newest:
        run = Run(store, info.run)
        document = run.document
        # Fits that were quicker have kept no curve.
        if len(curves) < _CURVES and (info.seconds >= 0.01 or not info.key):
            found = _curves(run)
            if found:
                curves[info.run] = found
        runs.append(
            {
                "id": info.run,
                "name": document.name or info.what,
                "what": info.what,
                "state": "dead" if dead(info, now) else info.status,
                "experiment": names.get(info.experiment or "", "default"),
                "parent": info.parent,
                "start": info.start_run,
                "source": info.source,
                "level": info.level,
                "started": info.started,
                "seconds": info.seconds or (info.ended or now) - info.started,
                "evaluations": info.evaluations,
                "saved": info.saved,
                "objective": _number(info.objective),
                "error": info.error,
                "params": {name: _shown(value) for name, value in document.params.items()},
                "tags": document.tags,
                "note": document.note,
            }
        )
    return {
        "store": store.address,
        "now": now,
        "more": len(every) - len(newest),
        "runs": runs,
        "curves": curves,
        "days": [
            {"day": day * _DAY, "fits": f, "hits": h, "made": m, "saved": s}
            for day, (f, h, m, s) in daily(store).items()
        ],
        "families": [_family(family) for family in learned.families(store.backend).values()],
        "models": [dataclasses.asdict(model) for model in store.models()],
        "health": {
            name: value
            for name, value in dataclasses.asdict(store.stats()).items()
            if isinstance(value, (int, str))
        },
    }


def _curves(run: Run) -> dict[str, Any]:
    found = {}
    for name in run.metric_names:
        series = run.metrics(name)
        found[name] = {
            "steps": series.steps.tolist(),
            "values": [_number(value) for value in series.values.tolist()],
        }
    return found


def _family(family: learned.Family) -> dict[str, Any]:
    plan = family.plan
    return {
        "what": family.what,
        "mode": plan.mode,
        "every": plan.every,
        "why": plan.why,
        "ways": [
            {
                "way": way,
                "fits": of.evaluations.count,
                "median": of.recent,
                "p90": of.evaluations.quantile(0.9),
                "seconds": of.seconds.mean,
                "off": way in plan.off,
            }
            for way, of in sorted(family.ways.items())
        ],
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _shown(value: Any) -> Any:
    plain = isinstance(value, (str, bool, int)) or value is None
    return value if plain else str(value) if not isinstance(value, float) else _number(value)


def render(data: dict[str, Any], *, live: str | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    data : dict
        From `page_data`.
    live : str, optional
        Where the page gets new data from; without it it asks nobody for anything.

    Raises
    ------
    ArgumentError
        If Jinja or Plotly are not installed.
    """
    try:
        from jinja2 import Environment  # noqa: PLC0415 (optional)
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 (optional)
    except ImportError:
        raise ArgumentError("the page needs Jinja and Plotly: pip install jinja2 plotly") from None
    folder = files("warmstart") / "templates"
    template = Environment(autoescape=True).from_string((folder / "page.html").read_text())
    return template.render(
        data=data,
        live=live,
        plotly=get_plotlyjs(),
        script=(folder / "page.js").read_text(),
        style=(folder / "page.css").read_text(),
    )


@dataclasses.dataclass(frozen=True)
class Served:
    """A page that is being served.

    Parameters
    ----------
    url : str
        With the token without which nothing is told.
    stop : callable
        Ends it.
    """

    url: str
    stop: Callable[[], None]


def serve(store: Store, port: int = 0) -> Served:
    """Serve the page on the loopback interface, from a thread.

    Parameters
    ----------
    store : Store
        Which is read for every request.
    port : int
        0 for a free one.

    Returns
    -------
    Served
        Where it is, and what ends it.

    Raises
    ------
    ArgumentError
        If the port is in use, or not for this user.

    Notes
    -----
    Requests without the token, or for another host name (as a page from elsewhere would make by
    way of DNS), are refused.
    """
    token = secrets.token_urlsafe(24)

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the browser has left
                super().handle()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            given = parse_qs(parts.query).get("token", [""])[0]
            name = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if name not in {"127.0.0.1", "localhost"} or not hmac.compare_digest(given, token):
                self._answer(403, "text/plain", "the address that was printed has a token")
            elif parts.path == "/":
                body = render(page_data(store), live=f"data.json?token={token}")
                self._answer(200, "text/html", body)
            elif parts.path == "/data.json":
                self._answer(200, "application/json", json.dumps(page_data(store)))
            else:
                self._answer(404, "text/plain", "there is / and /data.json")

        def _answer(self, status: int, kind: str, body: str) -> None:
            raw = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Say nothing on standard error."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ArgumentError(
            f"port {port} cannot be served at ({error.strerror}): give another one, or 0 for "
            "one that is free"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="warmstart-ui", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return Served(f"http://127.0.0.1:{server.server_port}/?token={token}", stop)
