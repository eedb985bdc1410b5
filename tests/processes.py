"""Real processes for tests: work done in a forked child, which may be killed."""

from __future__ import annotations

import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["SIGKILLED", "in_child"]

SIGKILLED = -signal.SIGKILL


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do some work in a forked child process.

    Returns
    -------
    status : int
        0, or minus the signal that ended it.
    answer : object
        What `work` returned, by way of JSON; None if it was killed.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Threads of the test process (of BLAS, of hypothesis) hold no lock that is used here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:  # whatever happens, the child must not go on with the tests of its parent
            os.close(read)
            try:
                answer = json.dumps(work())
                status = 0
            except BaseException:
                answer = traceback.format_exc()
            with os.fdopen(write, "w") as pipe:
                pipe.write(answer)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, answer
    return code, json.loads(answer) if code == 0 else None
