"""Work on damaged things, done where it may crash: in forked children, a batch to each."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Answer", "in_children"]


class Answer(NamedTuple):
    """What came of one piece of work."""

    item: Any
    value: Any
    """What the work returned, by way of JSON; None if it did not return."""
    failure: str
    """Empty; or a traceback, ``"hung"``, how the child ended, or the signal that ended it."""


def in_children(
    items: Sequence[Any],
    work: Callable[[Any], Any],
    *,
    batch: int = 50,
    timeout: float = 60.0,
    memory: int | None = None,
) -> Iterator[Answer]:
    """Do `work` on each item in turn, in forked children.

    Parameters
    ----------
    items : sequence
        Handed to `work` one by one.
    work : callable
        Returns something that JSON knows.
    batch : int
        Items to a child; after a death the next item begins in a new one.
    timeout : float
        Seconds for one item, after which its child is killed.
    memory : int, optional
        Bytes of address space that an item may take beyond what the child began with.
    """
    start = 0
    while start < len(items):
        part = items[start : start + batch]
        child, pipe = _begin(part, work, memory)
        done = 0
        for answer in _answers(pipe, timeout):
            value, failure = json.loads(answer)
            yield Answer(part[done], value, failure)
            done += 1
        if done < len(part):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        start += done
        if done < len(part):
            if code in {0, -signal.SIGKILL}:
                failure = "hung"
            else:
                failure = signal.Signals(-code).name if code < 0 else "ended without an answer"
            yield Answer(part[done], None, failure)
            start += 1


def _begin(part: Sequence[Any], work: Callable[[Any], Any], memory: int | None) -> tuple[int, int]:
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of BLAS hold no lock here
        child = os.fork()
    if child:
        os.close(write)
        return child, read
    status = 1
    try:  # whatever happens, even no memory to say so: the child must not go on as its parent
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
        for item in part:
            try:
                answer = work(item), ""
            except BaseException:
                answer = None, traceback.format_exc()
            os.write(write, json.dumps(answer).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _answers(pipe: int, timeout: float) -> Iterator[bytes]:
    """Yield the lines that come through a pipe, until it ends or none comes in time."""
    waiting = b""
    deadline = time.monotonic() + timeout
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while select.select([file], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            read = file.read(1 << 16)
            if not read:
                return
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                yield line
                deadline = time.monotonic() + timeout
