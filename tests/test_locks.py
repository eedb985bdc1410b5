"""Locks and forks."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from processes import in_child

from warmstart import FitSpec, Store
from warmstart.session import new_run_id


def hold(lock, then):
    """Do something while another thread holds a lock."""
    held, done = threading.Event(), threading.Event()

    def work():
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    try:
        return then()
    finally:
        done.set()
        thread.join()


@pytest.mark.timeout(60)
def test_a_child_finds_the_locks_of_a_store_free(tmp_path):
    """A child that is forked while another thread is amid a look-up looks up as well."""
    with Store(tmp_path / "store") as store:
        with store.session(FitSpec(model="a")) as session:
            session.finalize(b"x", 1.0)

        def look():
            return [store.best(session.key).objective, len(new_run_id())]

        assert hold(store._lock, lambda: in_child(look)) == (0, [1.0, 32])


@pytest.mark.timeout(60)
def test_a_fork_waits_for_a_batch_in_memory():
    """A child has all of a batch or nothing of it, though threads write while it is forked."""
    store = Store(":memory:")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            with store.session(FitSpec(model="a")) as session:
                session.finalize(b"x", 1.0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(50):
            assert in_child(lambda: len(store.entries(FitSpec(model="a").key)) <= 8) == (0, True)
    finally:
        stop.set()
        thread.join()


_FORK_IN_THREADS = """
import os, threading
from warmstart import FitSpec, Store

Store(":memory:").pin(FitSpec(model="a").key)  # no engine that has hooks of its own


def fork():
    for _ in range(150):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_fork_at_once():
    """Each holds what is held over its own fork, and gives that back."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK_IN_THREADS], check=True, timeout=60)
