"""The process that fits run in: what machine, what code, which versions; told once a process."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warmstart.locks import imported

__all__ = ["boot", "describe", "is_alive", "owner", "process_id", "the_psutil"]

_GIT_SECONDS = 5.0


@functools.cache
def process_id() -> str:
    """Return the name of this process in the stores it writes to: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


os.register_at_fork(after_in_child=process_id.cache_clear)


def the_psutil() -> Any:
    """Return the module, imported when it is first asked for: 10 ms that only writers need."""
    return imported("psutil")


@functools.cache
def _host() -> str:
    return socket.gethostname()


def boot() -> str:
    """Return what is another text after each start of the machine; empty where nothing says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Return when a process began; empty if there is none.

    By a clock that nobody sets, where there is one: when psutil says that a process began moves
    with the time of day.
    """
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        # Its 22nd field, https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html; the second
        # is a name in parentheses.
        return f"{text.rpartition(')')[2].split()[19]}-{boot()[:8]}"
    psutil = the_psutil()
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


@functools.cache
def owner() -> str:
    """Return host, number and birth of this process, by which others see if it lives."""
    return f"{_host()}:{os.getpid()}:{_born(os.getpid())}"


os.register_at_fork(after_in_child=owner.cache_clear)


def is_alive(whose: str) -> bool | None:
    """Whether a process is there still; None if it is one of another host."""
    name, *rest = whose.rsplit(":", 2)
    if name != _host() or len(rest) != 2:
        return None
    try:
        return _born(int(rest[0])) == rest[1] != ""
    except ValueError:
        return False
    except OSError:
        return True  # it cannot be seen


def describe() -> dict[str, Any]:
    """Return what is known of this process; takes some 10 ms, most of them git's.

    Returns
    -------
    dict
        Of what could be found out: ``host``, ``user``, ``pid``, ``script``, ``folder``,
        ``python``, ``system``, ``cpu``, ``cores``, ``memory`` (bytes), ``gpus`` (names),
        ``git_commit``, ``git_dirty``, ``packages`` (versions of what is imported).
    """
    psutil = the_psutil()
    found: dict[str, Any] = {
        "pid": os.getpid(),
        "script": _script(),
        "folder": os.fspath(Path.cwd()),
        "python": platform.python_version(),
    }
    parts: dict[str, Callable[[], Any]] = {
        "host": _host,
        "user": getpass.getuser,
        "system": lambda: "-".join(os.uname()[i] for i in (0, 2, 4)),
        "cpu": _cpu,
        "cores": lambda: psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory": lambda: psutil.virtual_memory().total,
        "gpus": _gpus,
        "packages": _packages,
    }
    for name, part in parts.items():
        with contextlib.suppress(Exception):  # none of it is worth failing for
            found[name] = part()
    with contextlib.suppress(Exception):
        found |= _git()
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def _script() -> str:
    return sys.argv[0] if sys.argv and sys.argv[0] not in {"", "-c"} else ""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _gpus() -> list[str]:
    """Return the names of NVIDIA's cards, as their driver tells them."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = file.read_text().splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found


def _git() -> dict[str, Any]:
    """Return the commit of the folder in which the script lies, and whether files differ."""
    script = _script()
    folder = Path(script).resolve().parent if script and Path(script).exists() else Path.cwd()

    # Given no path, `subprocess` looks for the program with warnings' filters changed for all
    # threads, and this is one beside the user's.
    program = shutil.which("git")
    if program is None:
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            [program, "-C", os.fspath(folder), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": bool(changed)}


def _packages() -> dict[str, str]:
    """Return the versions of the packages that are imported, as they tell them."""
    found = {}
    for name, module in list(sys.modules.items()):
        # Not by getattr, which some modules answer with a warning.
        version = getattr(module, "__dict__", {}).get("__version__")
        if "." not in name and isinstance(version, str) and name not in sys.stdlib_module_names:
            found[name] = version
    return dict(sorted(found.items()))
