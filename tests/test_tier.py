"""A folder of this machine in front of a server: `Store(address, local=...)`."""

from __future__ import annotations

import os
import signal
import warnings

import numpy as np
import pytest
import scipy.optimize
from calls import Calls
from processes import SIGKILLED, in_child
from servers import redis_binary, redis_server

from warmstart import (
    ArgumentError,
    FitSpec,
    Store,
    StoreError,
    WarmstartWarning,
    optimize,
    using,
)
from warmstart.backends import Batch
from warmstart.record import EntryKind
from warmstart.rows import entry_row

X0 = np.array([-1.2, 1.0])


def watched(store):
    """Put a counter between a store and its server."""
    calls = Calls(store.backend)
    store.backend = store._tier._remote = calls
    return calls


class TestNear:
    def test_a_hit_asks_nobody(self, address, tmp_path):
        """Read through: once from the server, then from the folder, also in the next process."""
        with using(store=Store(address, local=tmp_path / "a")):
            first = optimize.minimize(scipy.optimize.rosen, X0)
        with using(store=Store(address, local=tmp_path / "b")):
            again = optimize.minimize(scipy.optimize.rosen, X0)
        assert again.warm.source == "final"
        for where in "ab":
            store = Store(address, local=tmp_path / where)
            calls = watched(store)
            with using(store=store):
                found = optimize.minimize(scipy.optimize.rosen, X0)
            assert found.warm.source == "final"
            assert calls.count == 0
            assert found.x.tobytes() == first.x.tobytes()

    def test_writes_are_sent_behind(self, address, tmp_path):
        """Checkpoints wait and are sent together; a final is sent at once."""
        store = Store(address, local=tmp_path)
        calls = watched(store)
        spec = FitSpec(model="slow")
        session = store.session(spec, interval=0.0)
        for i in range(100):
            assert session.checkpoint(np.array([float(i)]), objective=100.0 - i)
        assert store._tier.waiting() == 1
        assert calls.sent <= 1  # by the pulse
        assert calls.count <= 50  # a look at the store's size and age in 16 writes
        assert store.best(spec.key).objective == 1.0
        other = Store(address)
        store.flush()
        assert store._tier.waiting() == 0
        assert other.best(spec.key).objective == 1.0
        assert len(other.entries(spec.key)) == 1
        assert session.finalize(np.array([7.0]), objective=0.5)
        assert other.best(spec.key).kind is EntryKind.FINAL
        assert len(other.entries(spec.key)) == 1
        assert other.run_info(session.run_id).status == "completed"
        store.close()

    def test_the_better_of_two(self, address, tmp_path):
        """Checkpoints of here and there rank together; a final there is the answer."""
        store, other = Store(address, local=tmp_path), Store(address)
        spec = FitSpec(model="both")
        ours, theirs = store.session(spec, interval=0.0), other.session(spec, interval=0.0)
        ours.checkpoint(1.0, objective=5.0)
        theirs.checkpoint(2.0, objective=3.0)
        assert store.best(spec.key).payload == 2.0
        ours.checkpoint(3.0, objective=1.0)
        assert store.best(spec.key).payload == 3.0
        assert store.latest(spec.key).payload == 3.0
        theirs.finalize(4.0, objective=2.0)
        assert store.best(spec.key).payload == 4.0
        assert store.delete(spec.key)
        assert store.best(spec.key) is None
        store.close()

    def test_damage_here_is_read_there(self, address, tmp_path):
        store = Store(address, local=tmp_path)
        spec = FitSpec(model="damaged")
        session = store.session(spec)
        session.finalize(1.0, objective=1.0)
        row = entry_row(spec.key, session.run_id, b"f")
        store._tier.near.apply(Batch({row: b"damaged"}))
        assert store.best(spec.key).payload == 1.0
        store.close()

    def test_the_folder_is_bounded(self, address, tmp_path):
        """By what the server has; the last ones stay."""
        store = Store(address, local=tmp_path, size_budget=1 << 20)
        specs = [FitSpec(model=f"fit {i}") for i in range(96)]
        for i, spec in enumerate(specs):
            store.session(spec).finalize(np.random.default_rng(i).random(4000))
        near = store._tier.near
        near.flush()
        assert near.size() <= 1.6 * (1 << 20)  # it looks once in sixteen writes
        assert near.scan(entry_row(specs[-1].key))
        assert not near.scan(entry_row(specs[0].key))
        store.close()

    def test_damage_is_not_sent(self, address, tmp_path):
        store = Store(address, local=tmp_path)
        session = store.session(FitSpec(model="damaged"))
        session.checkpoint(1.0, objective=1.0)
        row = entry_row(session.key, session.run_id, b"b")
        store._tier.near.apply(Batch({row: b"damaged"}))
        store.flush()
        assert Store(address).backend.get(row) is None
        assert store.best(session.key) is None
        store._settle(now=True)
        assert store._tier.near.get(row) is None
        store.close()


class TestWithoutServer:
    def test_fits_go_on_and_are_sent_later(self, address, tmp_path):
        """One warning; what was written is kept, told, and sent by the next process."""
        store = Store(address, local=tmp_path)
        watched(store).dead = True
        plain = scipy.optimize.minimize(scipy.optimize.rosen, X0)
        with using(store=store), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for start in (X0, X0 + 1.0, X0):
                found = optimize.minimize(scipy.optimize.rosen, start)
            store.close()
        assert found.warm.source == "final"  # from the folder
        assert found.x.tobytes() == plain.x.tobytes()
        told = [str(one.message) for one in heard if one.category is WarmstartWarning]
        assert len(told) == 2
        assert "does not answer" in told[0]
        assert told[1].startswith("2 runs are not at")
        assert Store(address).stats().finals == 0
        again = Store(address, local=tmp_path)
        assert again.stats().waiting == 2
        again.flush()
        assert again.stats().waiting == 0
        assert Store(address).stats().finals == 2
        again.close()

    def test_what_waits_is_not_evicted(self, address, tmp_path):
        """Law 5: whatever the budget, until the server has it."""
        store = Store(address, local=tmp_path, size_budget=1 << 20)
        calls = watched(store)
        calls.dead = True
        specs = [FitSpec(model=f"fit {i}") for i in range(64)]
        with pytest.warns(WarmstartWarning, match="does not answer"):
            for i, spec in enumerate(specs):
                assert store.session(spec).finalize(np.random.default_rng(i).random(4000))
        assert store._tier.waiting() == 64
        before = calls.count
        assert store._tier.deliver() == 64  # nobody is asked while it is known to be dead
        assert calls.count == before
        calls.dead = False
        store._trouble = None  # a minute later
        store.flush()
        there = Store(address, size_budget=1 << 30)
        assert all(there.best(spec.key) is not None for spec in specs)
        store.close()

    def test_flush_says_what_was_not_sent(self, address, tmp_path):
        store = Store(address, local=tmp_path)
        calls = watched(store)
        calls.dead = True
        with pytest.warns(WarmstartWarning, match="does not answer"):
            store.session(FitSpec(model="waits")).finalize(1.0)
        with pytest.raises(StoreError, match="1 runs are not at"):
            store.flush()
        calls.dead = False
        store._trouble = None  # a minute later
        store.flush()
        assert Store(address).stats().finals == 1
        store.close()

    def test_killed_before_it_was_sent(self, address, tmp_path):
        """What was acknowledged is kept, and sent by the next process."""
        spec = FitSpec(model="killed")

        def work():
            store = Store(address, local=tmp_path)
            session = store.session(spec, interval=0.0)
            assert session.checkpoint(np.array([1.0]), objective=2.0)
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(work)[0] == SIGKILLED
        assert Store(address).best(spec.key) is None
        store = Store(address, local=tmp_path)
        assert store.best(spec.key).objective == 2.0
        store.flush()
        assert Store(address).best(spec.key).objective == 2.0
        store.close()

    def test_a_server_that_is_killed_and_comes_back(self, tmp_path):
        """A real one, by SIGKILL."""
        if redis_binary() is None:
            pytest.skip("no Redis or Valkey is installed")
        with redis_server("--maxmemory", "0") as url:  # one of our own
            store = Store(f"{url}?store=killed", local=tmp_path)
            with using(store=store):
                optimize.minimize(scipy.optimize.rosen, X0)
        with using(store=store):
            assert optimize.minimize(scipy.optimize.rosen, X0).warm.source == "final"
            with pytest.warns(WarmstartWarning, match="does not answer"):
                found = optimize.minimize(scipy.optimize.rosen, X0 + 1.0)
        plain = scipy.optimize.minimize(scipy.optimize.rosen, X0 + 1.0)
        assert found.x.tobytes() == plain.x.tobytes()
        with pytest.warns(WarmstartWarning, match="1 runs are not at"):
            store.close()


class TestWrongUse:
    def test_where_it_makes_no_sense(self, address, tmp_path):
        for wrong in (tmp_path / "folder", ":memory:"):
            with pytest.raises(ArgumentError, match="several machines"):
                Store(wrong, local=True)
        with pytest.raises(ArgumentError, match="several machines"):
            Store(address, local=True, read_only=True)
        with pytest.raises(ArgumentError, match="local is True, False or a folder"):
            Store(address, local=3)
        for wrong in ("", "redis://x", ":memory:"):
            with pytest.raises(ArgumentError, match="local is True, False or a folder"):
                Store(address, local=wrong)

    def test_a_folder_that_cannot_be_used(self, address, tmp_path):
        """One warning; the server is used without it."""
        (tmp_path / "file").write_text("")
        store = Store(address, local=tmp_path / "file")
        with pytest.warns(WarmstartWarning, match="without the folder in front") as heard:
            for _ in range(2):
                with using(store=store):
                    found = optimize.minimize(scipy.optimize.rosen, X0)
        assert len(heard) == 1
        assert found.warm.source == "final"
        assert Store(address).stats().finals == 1
        store.close()

    def test_by_the_environment(self, address, tmp_path, monkeypatch):
        """For all stores on servers, not for folders, and not to read only."""
        monkeypatch.setenv("WARMSTART_LOCAL", str(tmp_path / "near"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        store = Store(address)
        assert store.local.startswith(str(tmp_path / "near"))
        watched(store).dead = True
        with pytest.warns(WarmstartWarning, match="does not answer"):
            store.session(FitSpec(model="waits")).finalize(1.0)
        with pytest.warns(WarmstartWarning, match="not at"):
            store.close()
        again = Store(address)
        assert again.stats().waiting == 1
        again.close()
        assert Store(address, read_only=True).local is None
        assert Store(tmp_path / "folder").local is None
        assert Store(address, local=False).local is None
        monkeypatch.setenv("WARMSTART_LOCAL", "1")
        assert Store(address).local.startswith(str(tmp_path / "cache"))

    def test_it_travels(self, address, tmp_path):
        """To other processes, with its folder."""
        import pickle

        store = Store(address, local=tmp_path)
        assert pickle.loads(pickle.dumps(store)).local == store.local
        assert store.local.startswith(str(tmp_path))

    def test_children(self, address, tmp_path):
        """Forked ones send what they write."""
        store = Store(address, local=tmp_path)
        store.session(FitSpec(model="parent")).checkpoint(1.0)

        def work():
            store.session(FitSpec(model="child")).checkpoint(1.0)
            store.flush()

        assert in_child(work)[0] == 0
        assert Store(address).stats().checkpoints == 2
        store.close()
