"""One fit at a time: real processes that begin the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.optimize
from processes import in_child

from warmstart import ArgumentError, BusyError, Store, Warm, flight, host, optimize, using
from warmstart.backends import Batch
from warmstart.rows import Lease, read_small, small

SCRIPT = """
import os, sys, time
import numpy as np
from warmstart import optimize, using

def slow(x):
    time.sleep(0.002)
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
        while len(sys.argv) > 4 and log.tell() > 2000 and not os.path.exists(sys.argv[4]):
            time.sleep(0.01)
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))

shown = len(sys.argv) > 3
with using(store=sys.argv[1], model="slow", busy="wait", interval=0.3, progress=shown):
    result = optimize.minimize(slow, np.zeros(5), method="Nelder-Mead")
print(result.warm.source, result.fun)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text(SCRIPT)
    return [sys.executable, str(file), str(tmp_path / "store"), str(tmp_path / "log")]


def started(script):
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


def at_it(tmp_path, number=20):
    """Wait until so many evaluations were made."""
    log = tmp_path / "log"
    for _ in range(2000):
        if log.exists() and len(log.read_text().split()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError("nobody began")


class TestWaiting:
    def test_done_once(self, script, tmp_path):
        """Four processes begin the same fit; one does it, the others return its result."""
        children = [started(script) for _ in range(4)]
        answers = [child.communicate()[0].split() for child in children]
        assert sorted(answer[0] for answer in answers) == ["cold", "final", "final", "final"]
        assert len({answer[1] for answer in answers}) == 1
        assert len(set((tmp_path / "log").read_text().split())) == 1
        assert Store(tmp_path / "store").backend.scan(b"z") == []

    def test_the_owner_is_killed(self, script, tmp_path):
        """The one that waits goes on from its journal; nothing is done twice but its last instant."""
        owner = started(script)
        at_it(tmp_path, 150)
        waiting = started(script)
        time.sleep(0.5)
        assert waiting.poll() is None
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
        source, _ = waiting.communicate()[0].split()
        assert source == "journal"
        pids = (tmp_path / "log").read_text().split()
        whole = len(pids)
        cold = scipy.optimize.minimize(
            lambda x: float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)),
            np.zeros(5),
            method="Nelder-Mead",
        )
        assert whole <= cold.nfev + 25

    def test_progress_of_the_other_is_shown(self, script, tmp_path):
        """Evaluations and objective of whom is waited for."""
        gate, seen = tmp_path / "gate", tmp_path / "seen"
        owner = started([*script, "shown", str(gate)])
        at_it(tmp_path, 150)
        store = Store(tmp_path / "store")
        for _ in range(2000):
            if store.stats().checkpoints:
                break
            time.sleep(0.01)
        with seen.open("w") as errors:
            terminal = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
            waiting = subprocess.Popen(
                [*script, "shown"], stdout=subprocess.PIPE, stderr=errors, text=True, env=terminal
            )
        for _ in range(6000):
            if "another process is at this fit" in seen.read_text():
                break
            time.sleep(0.01)
        gate.touch()
        owner.communicate()
        assert waiting.communicate()[0].split()[0] == "final"
        assert "another process is at this fit" in seen.read_text()
        assert "best " in seen.read_text()


class TestLeases:
    def fit(self, store, **options):
        def bowl(x):
            return float(x @ x)

        with using(store=store, **options):
            return optimize.minimize(bowl, np.ones(2))

    def hold(self, store, owner, **options):
        """Announce the fit as somebody else's."""
        key = bytes.fromhex(self.fit(Store(":memory:")).warm.key)
        lease = Lease("0" * 32, owner, store.clock() + 15.0)
        store.backend.apply(Batch({b"z" + key: small(lease)}))

    def test_raise(self, tmp_path):
        """Nothing is done; the message says what to write."""
        store = Store(tmp_path / "store")
        self.hold(store, "elsewhere:1:1")
        with pytest.raises(BusyError, match=r'another process .* busy="wait"'):
            self.fit(store, busy="raise")
        assert self.fit(store).warm.source == "cold"  # busy="run"
        assert self.fit(store, busy="raise").warm.source == "final"
        with pytest.raises(ArgumentError, match="busy is"):
            Warm(busy="maybe")

    def test_of_the_dead(self, tmp_path):
        """On this machine they are seen at once."""
        store = Store(tmp_path / "store")
        name = host.owner().rsplit(":", 2)[0]
        self.hold(store, f"{name}:99999999:1")
        assert self.fit(store, busy="raise").warm.source == "cold"

    def test_of_other_machines(self, tmp_path, monkeypatch):
        """Waited for until they have not been renewed for a while, whatever their clock says."""
        monkeypatch.setattr(flight, "LEASE", 0.3)
        store = Store(tmp_path / "store", clock=lambda: time.time() - 3600.0)
        self.hold(store, "elsewhere:1:1")
        begin = time.monotonic()
        assert self.fit(store, busy="wait").warm.source == "cold"
        assert time.monotonic() - begin >= 0.3

    def test_renewed_while_it_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(flight, "LEASE", 0.3)
        store = Store(tmp_path / "store")
        seen = []

        def slow(x):
            time.sleep(0.1)
            seen.append(store.backend.scan(b"z")[0].sequence)
            return float(x @ x)

        with using(store=store, busy="wait", model="slow"):
            optimize.minimize(slow, np.ones(2))
        assert len(set(seen)) > 2
        assert store.backend.scan(b"z") == []

    def test_an_exception_gives_it_back(self, tmp_path):
        store = Store(tmp_path / "store")

        def broken(x):
            raise OverflowError

        with using(store=store, busy="wait"), pytest.raises(OverflowError):
            optimize.minimize(broken, np.ones(2))
        assert store.backend.scan(b"z") == []

    def test_the_store_never_fails_a_fit(self, tmp_path, monkeypatch):
        store = Store(tmp_path / "store")
        monkeypatch.setattr(flight, "_claim", lambda *_: 1 / 0)
        with pytest.warns(Warning, match="fits go on without it"):
            assert self.fit(store, busy="wait").success

    def test_what_the_killed_leave_is_swept(self, tmp_path):
        place = str(tmp_path / "store")

        def work():
            store = Store(place)
            with using(store=store):
                key = self.fit(store).warm.key
            lease = Lease("0" * 32, host.owner(), 0.0)
            store.backend.apply(Batch({b"z" + bytes.fromhex(key): small(lease)}))
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(work)[0] == -signal.SIGKILL
        store = Store(place)
        assert read_small(store.backend.scan(b"z")[0], Lease) is not None
        store.gc()
        assert store.backend.scan(b"z") == []
