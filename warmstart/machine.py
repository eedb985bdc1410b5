"""The linear algebra libraries of this process: how many threads, which kernels.

Another number of threads, or another kernel, computes other bits (SLSQP at n = 4, BFGS at
n = 650), so a journal notes both and a replay restores the first.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

__all__ = ["Blas"]


class Blas:
    """The BLAS libraries while one fit runs."""

    def __init__(self) -> None:
        self._limits = contextlib.ExitStack()
        self._as_found: list[tuple[str, int, str]] | None = None

    def describe(self) -> list[tuple[str, int, str]]:
        """Return name, threads and kernel of each library, as the fit began."""
        if self._as_found is None:
            self._as_found = _libraries()
        return self._as_found

    def impose(self, recorded: list[tuple[str, int, str]]) -> bool:
        """Set the recorded numbers of threads until `release`.

        Returns
        -------
        bool
            Whether the same libraries now run with the same kernels and threads.
        """
        found = self.describe()
        wanted = {name: threads for name, threads, _ in recorded}
        changed = {n: wanted[n] for n, threads, _ in found if wanted.get(n, threads) != threads}
        if changed:
            self._limits.enter_context(_controller(_loaded()).limit(limits=changed))
            self._as_found = _libraries()
        return dict(_kernels(recorded)) == dict(_kernels(self._as_found or []))

    def release(self) -> None:
        """Give back the threads."""
        self._limits.close()


def _kernels(libraries: list[tuple[str, int, str]]) -> list[tuple[str, tuple[int, str]]]:
    return [(name, (threads, kernel)) for name, threads, kernel in libraries]


def _libraries() -> list[tuple[str, int, str]]:
    found = {
        (str(info["prefix"]), int(info["num_threads"]), str(info.get("architecture", "")))
        for info in _controller(_loaded()).info()
        if info["user_api"] == "blas"
    }
    return sorted(found)


def _loaded() -> int:
    return len(sys.modules)


@functools.lru_cache(maxsize=1)
def _controller(_loaded: int) -> Any:
    """Find the libraries, which takes some 3 ms; again when something has been imported."""
    import threadpoolctl  # noqa: PLC0415 (a hit needs none, and it takes 5 ms)

    return threadpoolctl.ThreadpoolController()
