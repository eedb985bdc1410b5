"""Backends beyond one machine: the contract, against real servers and a folder of files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from backend_contract import BackendContract, machine_over
from calls import Calls
from hypothesis import settings
from processes import in_child
from servers import free_port, fresh, redis_binary, redis_server

from warmstart import (
    ArgumentError,
    FitSpec,
    Store,
    StoreError,
    WarmstartWarning,
    cli,
    host,
    optimize,
    using,
)
from warmstart.backends import Batch, Durability
from warmstart.backends import directory as directory_module
from warmstart.backends.directory import DirectoryBackend
from warmstart.backends.postgres import PostgresBackend
from warmstart.backends.redis import RedisBackend


def told(node):
    """Return how a node of a cluster is."""
    state = node.execute_command("CLUSTER", "INFO")
    return state if isinstance(state, bytes) else repr(state).encode()


def until(condition):
    """Wait for something, half a minute at most."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


class TestRedis(BackendContract):
    """The contract, on Redis or Valkey."""

    @pytest.fixture
    def backend(self, redis_url):
        backend = RedisBackend(fresh(redis_url))
        yield backend
        backend.clear()
        backend.close()


class TestPostgres(BackendContract):
    """The contract, on PostgreSQL."""

    @pytest.fixture
    def backend(self, postgres_url):
        backend = PostgresBackend(fresh(postgres_url))
        yield backend
        backend.clear()


class TestDirectory(BackendContract):
    """The contract, on a folder of immutable files."""

    @pytest.fixture
    def backend(self, tmp_path):
        return DirectoryBackend(f"dir://{tmp_path}/store")

    def test_a_stale_lock_is_broken_by_one(self, backend, tmp_path, monkeypatch):
        """Two have seen that its owner is dead: the slower one leaves the quicker one's alone."""
        lock = tmp_path / "store" / "locks" / "sweep"
        with backend.lock("sweep"):
            pass
        lock.write_text("dead")
        os.utime(lock, (1, 1))
        rename, seen, taken, left = Path.rename, *(threading.Event() for _ in range(3))

        def slowly(path, target):
            if path == lock and threading.current_thread() is late:
                seen.set()
                assert taken.wait(30)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", slowly)
        other, got = DirectoryBackend(f"dir://{tmp_path}/store"), []

        def wait():
            with other.lock("sweep", timeout=0.5) as mine:
                got.append(mine)
                left.set()

        late = threading.Thread(target=wait)
        late.start()
        assert seen.wait(30)
        with backend.lock("sweep", timeout=5) as mine:
            assert mine
            taken.set()
            assert left.wait(30)
        late.join()
        assert got == [False]


class TestCompactedDirectory(BackendContract):
    """The same, where a group has three batches, so that it is compacted all the time."""

    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        monkeypatch.setattr(directory_module, "_GROUP", 3)
        monkeypatch.setattr(directory_module, "_KEPT", 1)
        monkeypatch.setattr(directory_module, "_INLINE", 4)
        return DirectoryBackend(f"dir://{tmp_path}/store")


def machine(make_backend, discard):
    def make():
        backend = make_backend()

        def reopen(held):
            held.close()
            return held

        return backend, reopen, discard

    found = machine_over(make).TestCase
    found.settings = settings(
        max_examples=12, stateful_step_count=20, deadline=None, derandomize=True
    )
    return found


def test_redis_in_any_history(redis_url):
    machine(lambda: RedisBackend(fresh(redis_url)), lambda held: held.clear())().runTest()


def test_postgres_in_any_history(postgres_url):
    machine(lambda: PostgresBackend(fresh(postgres_url)), lambda held: held.clear())().runTest()


def test_a_directory_in_any_history(monkeypatch):
    monkeypatch.setattr(directory_module, "_GROUP", 4)
    machine(
        lambda: DirectoryBackend(tempfile.mkdtemp() + "/store"),
        lambda held: shutil.rmtree(held.path.parent),
    )().runTest()


def bowl(x, at):
    return float(np.sum((x - at) ** 2) + 0.1 * np.sum((x - at) ** 4))


class TestStores:
    """Everything above a backend is the same."""

    def test_fits(self, address):
        """Hits, near starts, runs, series, artifacts, states, sweeps, in another process too."""
        with Store(address) as store, using(store=store, near=True):
            first = optimize.minimize(bowl, np.zeros(4), args=(1.0,), method="BFGS")
            near = optimize.minimize(bowl, np.zeros(4), args=(1.1,), method="BFGS")
            assert (first.warm.source, near.warm.source) == ("cold", "near")
            with store.run("mine", params={"a": 1}) as run:
                run.log_metric("m", float("nan"))
                run.log_artifact("a", bytes(50_000))
                run.save_state(1, {"x": np.ones(3)}, {"todo": 1})
            store.gc()
            assert store.verify().sound

        def elsewhere():
            with Store(address) as store, using(store=store, near=True):
                again = optimize.minimize(bowl, np.zeros(4), args=(1.0,), method="BFGS")
                run = store.runs(experiment="mine")[0]
                return [again.warm.source, len(run.load_artifact("a")), run.load_state().active]

        assert in_child(elsewhere) == (0, ["final", 50_000, {"todo": 1}])

    def test_many_writers(self, address):
        """Four processes, none of whose writes is lost."""
        Store(address).flush()
        script = (
            "import sys, numpy as np\n"
            "from warmstart import Store, optimize, using\n"
            "def bowl(x, at):\n    return float(np.sum((x - at) ** 2))\n"
            "with using(store=Store(sys.argv[1])):\n"
            "    for i in range(10):\n"
            "        optimize.minimize(bowl, np.zeros(2), args=(int(sys.argv[2]) * 100 + i,))\n"
        )
        children = [
            subprocess.Popen([sys.executable, "-c", script, address, str(i)]) for i in range(4)
        ]
        assert [child.wait() for child in children] == [0, 0, 0, 0]
        stats = Store(address).stats()
        assert (stats.finals, stats.runs) == (40, 40)

    def test_it_travels_as_its_address(self, address):
        import pickle

        store = Store(address)
        store.run(name="one")
        again = pickle.loads(pickle.dumps(store))
        assert again.runs()[0].name == "one"

    def test_clocks_that_differ(self, address, monkeypatch):
        """A machine whose clock is an hour off takes nobody for dead, and nothing for old."""
        here = Store(address)
        run = here.run(name="alive").start()
        real = time.time
        monkeypatch.setattr(host, "is_alive", lambda _: None)  # on another machine
        for hours in (-1.0, 1.0):
            monkeypatch.setattr(time, "time", lambda h=hours: real() + 3600.0 * h)
            there = Store(address, ttl=1800.0)
            if address.startswith("dir"):  # the file system has the right time
                monkeypatch.setattr(there.backend, "now", real)
            assert abs(there.clock() - real()) < 5.0
            assert not there.get_run(run.id).is_dead
            with using(store=there):
                result = optimize.minimize(bowl, np.zeros(2), args=(hours,))
            there.gc()
            assert there.best(there.resolve(result.warm.key)) is not None
            assert abs(there.run_info(result.warm.run).started - real()) < 5.0
            there.close()
        monkeypatch.undo()
        assert here.stats().finals == 2
        run.complete()

    def test_round_trips(self, address):
        """One for a hit that was asked for before, one for a checkpoint; a look at the size in 16."""
        store = Store(address)
        session = store.session(FitSpec(model="counted"), interval=0.0)
        for i in range(3):
            session.checkpoint(np.zeros(10), objective=10.0 - i)
        calls = store.backend = Calls(store.backend)
        asked = []
        for i in range(32):
            before = calls.count
            assert session.checkpoint(np.zeros(10), objective=5.0 - 0.1 * i)
            asked.append(calls.count - before)
        assert sorted(asked)[:28] == [1] * 28
        session.finalize(np.zeros(10), objective=0.0)
        for _ in range(3):
            before = calls.count
            assert store.best(session.key).objective == 0.0
        assert calls.count - before == 1

    def test_read_only(self, address):
        with pytest.raises(StoreError) if address.startswith("dir:") else warnings.catch_warnings():
            assert Store(address, read_only=True).runs() == []
        Store(address).run(name="one")
        store = Store(address, read_only=True)
        assert len(store.runs()) == 1
        with pytest.raises(StoreError, match="read only"):
            store.backend.apply(Batch({b"a": b"b"}))


SLOW = """
import sys, time
import numpy as np
from warmstart import optimize, using

def slow(x):
    time.sleep(0.004)
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))

with using(store=sys.argv[1], model="slow", interval=0.3):
    found = optimize.minimize(slow, np.zeros(5), method="Nelder-Mead")
print(found.warm.source, found.warm.replay, found.warm.evaluations, found.nfev, found.x.tobytes().hex())
"""


class TestJournals:
    """A fit begun on one machine goes on bit for bit on another."""

    def run(self, tmp_path, home, address, wait=True):
        script = tmp_path / "slow.py"
        script.write_text(SLOW)
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / home)}
        child = subprocess.Popen(
            [sys.executable, script, address], env=environment, stdout=subprocess.PIPE, text=True
        )
        return child.communicate()[0].split() if wait else child

    def test_they_travel(self, address, tmp_path):
        child = self.run(tmp_path, "one", address, wait=False)
        backend = Store(address).backend
        for _ in range(600):
            if sum(item.size for item in backend.scan(b"j", head=1)) > 3000:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        source, replay, made, nfev, x = self.run(tmp_path, "two", address)
        assert (source, replay) == ("journal", "exact")
        assert int(made) < int(nfev)
        plain = scipy.optimize.minimize(
            lambda x: float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)),
            np.zeros(5),
            method="Nelder-Mead",
        )
        assert (int(nfev), x) == (plain.nfev, plain.x.tobytes().hex())
        assert backend.scan(b"j") == []  # it is over

    def test_nonsense_is_not_written(self, tmp_path):
        """Names that were not made here, damaged pieces and gaps."""
        from warmstart.carrying import Carrier, carried_row
        from warmstart.fingerprint import Fingerprint
        from warmstart.journal import Shelf
        from warmstart.record import seal

        backend, fit = DirectoryBackend(str(tmp_path / "store")), Fingerprint(bytes(32))
        shelf = Shelf(tmp_path / "journals", budget=1 << 20, ttl=None)
        piece = seal(bytes(8) + b"x" * 100)
        rows = {
            carried_row(fit, "../../evil.journal", 0): piece,
            carried_row(fit, "a-b.journal", 0): piece,
            carried_row(fit, "a-b.journal", 100): b"damaged",
            carried_row(fit, "a-b.journal", 200): piece,
            carried_row(fit, "c-d.journal", 5): piece,
        }
        backend.apply(Batch(rows))
        Carrier(backend, fit).fetch(shelf)
        found = {path.name: path.read_bytes() for path in tmp_path.rglob("*.journal")}
        assert found == {"a-b.journal": b"x" * 100}
        assert shelf.find(fit, fit).journal is None  # it is no journal: deleted
        Carrier(backend, fit).forget()
        assert backend.scan(b"j") == []

    def test_one_in_use_stays(self, tmp_path):
        """A longer journal from elsewhere does not replace one that somebody is writing to."""
        from warmstart.fingerprint import Fingerprint
        from warmstart.journal import Shelf

        fit = Fingerprint(bytes(32))
        shelf = Shelf(tmp_path / "journals", budget=1 << 20, ttl=None)
        journal = shelf.create(fit, fit, "0" * 32, b"short")
        name = journal.path.name
        assert not shelf.replace(fit, name, b"a longer one")
        assert journal.path.read_bytes() == b"short"
        journal.close()
        assert shelf.replace(fit, name, b"a longer one")
        assert not shelf.replace(fit, name, b"a longer")
        assert [path.read_bytes() for path in tmp_path.rglob("*.*")] == [b"a longer one"]


class TestCopies:
    """From one backend to any other, and back."""

    def test_there_and_back(self, address, tmp_path, monkeypatch, capsys):
        """Fits are hits, runs have their artifacts, near starts are found; a second copy is short."""
        first = Store(tmp_path / "first")
        with using(store=first, near=True):
            for at in (1.0, 1.1):
                optimize.minimize(bowl, np.zeros(4), args=(at,), method="BFGS")
        with first.run("mine") as run:
            run.log_artifact("a", b"x" * 10_000)
            run.log_artifact("b", b"x" * 10_000)
            run.log_metric("m", 1.0)
        assert run.process  # which a thread writes
        first.close()
        last = str(tmp_path / "last")
        for source, target in ((first.address, address), (address, last)):
            assert cli.main(["copy", source, target, "--json"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert told["copied"] > 10
            assert told["damaged"] == 0
        assert cli.main(["copy", first.address, address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["copied"] == 0
        store = Store(last)
        assert store.verify().sound
        with using(store=store, near=True):
            again = optimize.minimize(bowl, np.zeros(4), args=(1.1,), method="BFGS")
            near = optimize.minimize(bowl, np.zeros(4), args=(1.2,), method="BFGS")
        assert (again.warm.source, near.warm.source) == ("final", "near")
        (found,) = store.runs(experiment="mine")
        assert found.load_artifact("a") == b"x" * 10_000
        assert len(store.backend.scan(b"a")) == 1
        found.delete()
        assert store.backend.scan(b"a") == []

    def test_damage_is_left_out(self, tmp_path, capsys):
        store = Store(tmp_path / "one")
        with using(store=store):
            for at in (1.0, 2.0):
                optimize.minimize(bowl, np.zeros(2), args=(at,))
        row = store.backend.scan(b"e")[0]
        store.backend.apply(Batch({row.key: row.value[:-1] + b"?"}))
        store.close()
        assert cli.main(["copy", store.address, str(tmp_path / "two"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["damaged"] == 1
        assert Store(tmp_path / "two").stats().finals == 1


DASK = """
import sys
import joblib, numpy as np
from dask.distributed import Client, LocalCluster
from warmstart import Store, optimize, using
from warmstart.multistart import multistart
from warmstart.recipes import fit_path

def bowl(x, penalty):
    return float(np.sum((x - 1.0) ** 2) + penalty * np.sum(x**2))

def fit(penalty):
    return optimize.minimize(bowl, np.zeros(3), args=(penalty,))

if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster):
        with joblib.parallel_config("dask"), using(store=sys.argv[1]):
            path = fit_path(fit, np.geomspace(0.1, 10.0, 8), n_jobs=2)
            starts = np.random.default_rng(0).normal(size=(6, 3))
            found = multistart(bowl, starts, args=(1.0,), n_jobs=2)
    print(np.abs(path.x[:, 0] - 1.0 / (1.0 + path.index)).max() < 1e-4)
    print(len(Store(sys.argv[1]).get_run(found.run).children))
"""


def test_a_dask_cluster(tmp_path):
    """Recipes and multistart on a cluster of processes that share a store."""
    script = tmp_path / "many.py"
    script.write_text(DASK)
    command = [sys.executable, script, f"dir://{tmp_path}/store"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "6"], done.stderr


RAY = """
import sys
import numpy as np
import ray
from warmstart import Store, optimize, using
from warmstart.recipes import fit_path

def bowl(x, penalty):
    return float(np.sum((x - 1.0) ** 2) + penalty * np.sum(x**2))

def fit(penalty):
    return optimize.minimize(bowl, np.zeros(3), args=(penalty,))

@ray.remote
def work(store, penalty):
    with using(store=store):
        result = fit(penalty)
        return result.x[0], result.warm.source

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    store = Store(sys.argv[1])
    penalties = np.geomspace(0.1, 10.0, 6).tolist()
    for expected in ("cold", "final"):
        found = ray.get([work.remote(store, penalty) for penalty in penalties])
        assert {source for _, source in found} == {expected}, found
    with using(store=store):
        path = fit_path(fit, penalties)
    assert [report.source for report in path.reports] == ["final"] * 6
    assert [x for x, _ in found] == path.x[:, 0].tolist()
    ray.shutdown()
    print("done")
"""


def test_ray(tmp_path):
    """Remote functions take a store as its address, and see each other's results."""
    pytest.importorskip("ray")
    script = tmp_path / "many.py"
    script.write_text(RAY)
    command = [sys.executable, script, f"dir://{tmp_path}/store"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split()[-1:] == ["done"], done.stderr


class TestTrouble:
    """Law 2, against servers that are not there, not right, or not well."""

    def fit(self, address):
        store = Store(address)
        with using(store=store), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = [optimize.minimize(bowl, np.zeros(2), args=(1.0,)) for _ in range(2)]
        told = [one for one in heard if issubclass(one.category, WarmstartWarning)]
        return found, [str(one.message) for one in told]

    @pytest.mark.parametrize(
        "address",
        ["redis://127.0.0.1:1/0", "postgresql://nobody@127.0.0.1:1/none", "dir:///proc/nowhere"],
    )
    def test_nobody_there(self, address):
        """One warning, and the fits go on."""
        found, told = self.fit(address)
        assert all(result.success for result in found)
        assert len(told) == 1
        assert "is not used for now, fits go on without it" in told[0]

    def test_many_openers(self, postgres_url):
        """Threads that all make the tables of a new store do not lock each other."""
        for _ in range(5):
            backend = PostgresBackend(fresh(postgres_url))
            with ThreadPoolExecutor(8) as pool:
                made = list(pool.map(lambda i: backend.apply(Batch({b"x%d" % i: b"1"})), range(8)))
            assert sorted(made) == list(range(1, 9))
            backend.clear()
            backend.close()

    def test_passwords(self, redis_url):
        """A wrong one is told; neither appears in a message."""
        address = redis_url.replace("redis://", "redis://user:hunter2@")
        found, told = self.fit(address)
        assert found[0].success
        assert "hunter2" not in "".join(told) + repr(Store(address))

    def test_another_kind_of_server(self, postgres_url):
        """An HTTP-like stranger at the address of Redis."""
        port = postgres_url.rpartition(":")[2].partition("/")[0]
        found, told = self.fit(f"redis://127.0.0.1:{port}/0")
        assert found[0].success
        assert len(told) == 1

    def test_a_newer_schema(self, redis_url, postgres_url, tmp_path):
        one = RedisBackend(fresh(redis_url))
        one.apply(Batch({b"a": b"1"}))
        one._client.set(one._key("schema"), b"99")
        one._checked = False
        with pytest.raises(StoreError, match="newer version"):
            one.get(b"a")
        other = PostgresBackend(fresh(postgres_url))
        other.apply(Batch({b"a": b"1"}))
        other._rows(f"UPDATE {other._table}_state SET schema = 99 RETURNING schema")
        other.close()
        with pytest.raises(StoreError, match="newer version"):
            other.get(b"a")
        folder = DirectoryBackend(str(tmp_path / "store"))
        folder.apply(Batch({b"a": b"1"}))
        (tmp_path / "store" / "FORMAT").write_text("warmstart dir 99\n")
        folder.close()
        with pytest.raises(StoreError, match="not a store of this version"):
            folder.get(b"a")

    def test_eviction_and_no_file(self):
        """A server that loses keys of its own accord is refused; one without a file warned of."""
        if "WARMSTART_TEST_REDIS" in os.environ or redis_binary() is None:
            pytest.skip("needs servers of its own")
        options = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
        with redis_server(*options) as url, pytest.raises(StoreError, match="set noeviction"):
            RedisBackend(url).get(b"a")
        with redis_server("--appendonly", "no") as url:
            backend = RedisBackend(url)
            with pytest.warns(WarmstartWarning, match="no append-only file"):
                backend.apply(Batch({b"a": b"1"}))
            backend.apply(Batch({b"a": b"2"}), Durability.POWER)

    def test_a_cluster(self, tmp_path):
        """A store lives on the node that has its slot, whichever is asked; and moves with it."""
        if redis_binary() is None:
            pytest.skip("no Redis or Valkey is installed")
        import redis

        def node():
            bus = str(free_port())  # 10,000 above that of the clients may be none
            return redis_server("--cluster-enabled", "yes", "--cluster-port", bus)

        with node() as one, node() as two:
            nodes = [redis.Redis.from_url(url) for url in (one, two)]
            for node, first, last in zip(nodes, (0, 8192), (8191, 16383), strict=True):
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            port = nodes[1].connection_pool.connection_kwargs["port"]
            bus = nodes[1].config_get("cluster-port")["cluster-port"]
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
            until(lambda: all(b"cluster_state:ok" in told(node) for node in nodes))
            for url in (one, two):
                store = Store(f"{url}?store=a")
                with using(store=store):
                    found = optimize.minimize(scipy.optimize.rosen, [0.0, 1.0])
                assert store._trouble is None
                store.close()
            assert found.warm.source == "final"
            sizes = [node.dbsize() for node in nodes]
            assert min(sizes) == 0 < max(sizes)
            for node in nodes:
                node.close()

    def test_killed_and_started_again(self):
        """What was acknowledged is there when the server comes back; the store finds it."""
        if "WARMSTART_TEST_REDIS" in os.environ or redis_binary() is None:
            pytest.skip("needs a server of its own")
        from servers import free_port, wait_for

        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            command = [redis_binary(), "--port", str(port), "--dir", folder]
            command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
            quiet = {"stdout": subprocess.DEVNULL}
            server = subprocess.Popen(command, **quiet)
            wait_for(port, server)
            backend = RedisBackend(f"redis://127.0.0.1:{port}/0")
            for i in range(50):
                backend.apply(Batch({b"k%d" % i: b"x"}))
            server.send_signal(signal.SIGKILL)
            server.wait()
            with pytest.raises(StoreError, match="does not answer"):
                backend.get(b"k1")
            server = subprocess.Popen(command, **quiet)
            try:
                wait_for(port, server)
                for _ in range(100):
                    try:
                        found = backend.scan(b"k")
                        break
                    except StoreError:  # it loads its file
                        time.sleep(0.1)
                assert len(found) == 50
                assert backend.verify() == []
            finally:
                server.kill()
                server.wait()

    def test_a_reply_that_is_lost(self, redis_url, monkeypatch):
        """The script has run, the connection breaks: sent again, it happens once."""
        import redis

        backend = RedisBackend(fresh(redis_url))
        backend.apply(Batch({b"n": b"0"}))
        once = [True]
        run = backend._apply

        def lossy(*args, **kwargs):
            answer = run(*args, **kwargs)
            if once.pop() if once else False:
                raise redis.exceptions.ConnectionError("reset after the effect")
            return answer

        monkeypatch.setattr(backend, "_apply", lossy)
        held = backend.get(b"n").sequence
        sequence = backend.apply(Batch({b"n": b"1"}, conditions={b"n": held}))
        assert sequence == held + 1
        assert backend.get(b"n") == (b"n", b"1", sequence, 1)
        assert backend.verify() == []

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("redis://localhost/0?store=a b", "store= is letters"),
            ("postgresql://localhost/x?store=a-b", "store= is letters"),
            ("dir://relative/path", "not a kind|dir:///absolute"),
            ("mysql://x", "not a kind of store"),
            ("dir:///shared/folder?x=1", "dir:///absolute"),
            ("redis://localhost/abc", "number of a database, not 'abc'"),
            ("redis://localhost/0?stroe=x", "redis-py does not take 'stroe=x'"),
            ("redis://localhost:port/0", "not an address of Redis"),
            ("postgresql://localhost/x?stroe=x", 'not an address of PostgreSQL.*"stroe"'),
            ("postgresql://localhost:port/x", "not an address of PostgreSQL"),
        ],
    )
    def test_wrong_addresses(self, address, message):
        with pytest.raises(ArgumentError, match=message):
            Store(address)


class TestDirectories:
    """What shared file systems and crashes do."""

    def test_two_machines_want_one_number(self, tmp_path):
        """Two backends with views of their own: every batch of both is there once, in one order."""
        one, other = (DirectoryBackend(str(tmp_path / "store")) for _ in range(2))
        numbers = []

        def work(backend, name):
            for i in range(60):
                numbers.append(backend.apply(Batch({b"%s%d" % (name, i): b"x"})))

        threads = [
            threading.Thread(target=work, args=pair) for pair in ((one, b"a"), (other, b"b"))
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(numbers) == list(range(1, 121))
        assert one.scan(b"") == other.scan(b"")
        assert len(one.scan(b"")) == 120

    def test_one_that_was_asleep(self, tmp_path, monkeypatch):
        """A machine that missed several compactions goes on from the snapshot; nothing is forked."""
        monkeypatch.setattr(directory_module, "_GROUP", 4)
        monkeypatch.setattr(directory_module, "_KEPT", 1)
        asleep, awake = (DirectoryBackend(str(tmp_path / "store")) for _ in range(2))
        asleep.apply(Batch({b"first": b"1"}))
        for i in range(50):
            awake.apply(Batch({b"k%d" % (i % 7): b"%d" % i}))
        assert len(list((tmp_path / "store" / "log").rglob("0*/0*"))) < 20
        assert asleep.apply(Batch({b"late": b"1"})) == 52
        assert asleep.scan(b"") == awake.scan(b"")
        assert DirectoryBackend(str(tmp_path / "store")).scan(b"") == awake.scan(b"")

    def test_crashes_leave_nothing_that_counts(self, tmp_path):
        """A writer killed at any instant: what it acknowledged is there, and all is sound."""
        place = str(tmp_path / "store")
        DirectoryBackend(place).apply(Batch({b"begin": b"1"}))
        for delay in (0.02, 0.05, 0.09):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                backend = DirectoryBackend(place)
                for i in range(10_000):
                    os.write(write, b"%d\n" % backend.apply(Batch({b"k": b"%d" % i})))
                os._exit(0)
            os.close(write)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with os.fdopen(read) as told:
                lines = told.read().split()
            backend = DirectoryBackend(place)
            assert backend.version() >= int(lines[-1] if lines else 1)
            assert backend.verify() == []

    def test_damage_is_told_and_passed_over(self, tmp_path):
        backend = DirectoryBackend(str(tmp_path / "store"))
        for i in range(3):
            backend.apply(Batch({b"k%d" % i: b"x" * 10}))
        broken = sorted((tmp_path / "store" / "log").rglob("0*/0*"))[1]
        raw = bytearray(broken.read_bytes())
        raw[20] ^= 1
        broken.chmod(0o600)
        broken.write_bytes(raw)
        again = DirectoryBackend(str(tmp_path / "store"))
        assert [item.key for item in again.scan(b"")] == [b"k0", b"k2"]
        assert len(again.verify()) == 1

    def test_locks_of_the_dead(self, tmp_path, monkeypatch):
        """Free after a lease, by the file system's clock."""
        place = str(tmp_path / "store")

        def hold():
            backend = DirectoryBackend(place)
            with backend.lock("a"):
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(hold)[0] == -signal.SIGKILL
        backend = DirectoryBackend(place)
        with backend.lock("a", timeout=0) as got:
            assert not got
        lock = Path(place, "locks", "a")
        os.utime(lock, (time.time() - 120.0,) * 2)
        with backend.lock("a", timeout=1.0) as got:
            assert got
