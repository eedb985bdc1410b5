"""Every backend keeps the contract, and agrees with a dict in any history."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import lmdb
import numpy as np
import pytest
from backend_contract import BackendContract, machine_over, write_one, write_shared
from hypothesis import settings
from processes import SIGKILLED
from processes import in_child as in_fork

from warmstart import StoreError, StoreFullError
from warmstart.backends import Batch, Durability, halves
from warmstart.backends import halves as halves_module
from warmstart.backends import lmdb as lmdb_module
from warmstart.backends import place as place_module
from warmstart.backends.lmdb import LmdbBackend
from warmstart.backends.memory import MemoryBackend


class TestMemory(BackendContract):
    """The contract, in memory."""

    @pytest.fixture
    def backend(self):
        return MemoryBackend()


class TestLmdb(BackendContract):
    """The contract, over a folder, with a map that has to grow."""

    @pytest.fixture
    def backend(self, tmp_path):
        backend = LmdbBackend(tmp_path / "store", map_size=1 << 16)
        yield backend
        backend.close()


def memory():
    return MemoryBackend(), lambda backend: backend, lambda _backend: None


def folder():
    place = tempfile.mkdtemp()

    def reopen(backend):
        backend.close()
        return LmdbBackend(place, map_size=1 << 16)

    def discard(backend):
        backend.close()
        shutil.rmtree(place)

    return LmdbBackend(place, map_size=1 << 16), reopen, discard


TestMemoryMachine = machine_over(memory).TestCase
TestMemoryMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestLmdbMachine = machine_over(folder).TestCase
TestLmdbMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, derandomize=True
)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def backend(place):
    backend = LmdbBackend(place, map_size=1 << 20)
    yield backend
    backend.close()


def in_child(code, *args, check=True):
    """Run code in a fresh interpreter; returns the finished process."""
    prelude = "import os, signal, sys\nfrom warmstart.backends import Batch, Durability\n"
    prelude += "from warmstart.backends.lmdb import LmdbBackend\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code, *map(str, args)],
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


class TestPlace:
    """The folder: created late, owned, private, recognized."""

    def test_nothing_is_created_before_use(self, place):
        """Making a backend touches nothing."""
        LmdbBackend(place)
        assert not place.exists()

    def test_private_whatever_the_umask(self, place):
        """Folders are 0700 and files 0600 even under a permissive umask."""
        before = os.umask(0)
        try:
            backend = LmdbBackend(place)
            backend.apply(Batch({b"k": b"v"}), Durability.POWER)
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in [place, *place.rglob("*")]}
            backend.close()
        finally:
            os.umask(before)
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}

    def test_a_file_is_no_place(self, place):
        """A path to a file is refused by name."""
        place.write_text("text")
        with pytest.raises(StoreError, match="is a file"):
            LmdbBackend(place).apply(Batch({b"k": b"v"}))
        assert place.read_text() == "text"

    def test_a_foreign_folder_is_refused_and_left_alone(self, place):
        """A folder with other files in it is not a store."""
        place.mkdir()
        (place / "thesis.tex").write_text("text")
        with pytest.raises(StoreError, match=r"not empty, it contains thesis\.tex"):
            LmdbBackend(place).get(b"k")
        assert [p.name for p in place.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("warmstart store 2\n", "upgrade"),
            ("something else", "is not a store"),
            ("warmstart store x", "is not a store"),
        ],
    )
    def test_other_formats_are_refused(self, place, text, message):
        """A newer store, or the marker of something else, is refused with what to do."""
        place.mkdir(mode=0o700)
        (place / "FORMAT").write_text(text)
        with pytest.raises(StoreError, match=message):
            LmdbBackend(place).get(b"k")

    def test_a_folder_that_others_write_is_refused(self, place):
        """A group- or world-writable folder is refused, with the command that mends it."""
        place.mkdir()
        place.chmod(0o777)
        with pytest.raises(StoreError, match="chmod go-w"):
            LmdbBackend(place).get(b"k")

    def test_a_folder_of_another_user_is_refused(self, place, monkeypatch):
        """A store belongs to one user."""
        place.mkdir(mode=0o700)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(StoreError, match="belongs to user"):
            LmdbBackend(place).get(b"k")

    @pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs", "cifs", "9p"])
    def test_network_file_systems_are_refused(self, place, monkeypatch, kind):
        """On a file system of other machines the error names it and three ways out."""
        monkeypatch.setattr(place_module, "file_system", lambda _path: kind)
        with pytest.raises(StoreError, match=kind) as caught:
            LmdbBackend(place).get(b"k")
        for way in ("TMPDIR", f"dir://{place}", "allow_network"):
            assert way in str(caught.value)
        assert not place.exists()
        allowed = LmdbBackend(place, allow_network=True)
        allowed.apply(Batch({b"k": b"v"}))
        allowed.close()

    def test_the_longest_mount_decides(self, monkeypatch):
        """The file system of a path is that of the deepest mount above it."""
        import psutil

        parts = [("/", "ext4"), ("/home", "nfs4"), ("/home/me/scratch", "xfs"), ("/homes", "9p")]
        mounts = [type("Part", (), {"mountpoint": m, "fstype": f}) for m, f in parts]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_options: mounts)
        for path, kind in (("/home/me/x", "nfs4"), ("/home/me/scratch/s", "xfs"), ("/var", "ext4")):
            assert place_module.file_system(Path(path)) == kind

    def test_reading_only_writes_nothing(self, backend, place):
        """A read-only backend serves what is there, refuses to write, leaves no trace."""
        backend.apply(Batch({b"k": b"v"}))
        backend.close()
        before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
        reader = LmdbBackend(place, read_only=True)
        assert reader.get(b"k").value == b"v"
        with pytest.raises(StoreError, match="read only"):
            reader.apply(Batch({b"k": b"w"}))
        reader.close()
        after = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.name != "lock.mdb"}
        assert after.items() <= before.items()

    def test_a_missing_store_cannot_be_read(self, place):
        """Reading where there is no store says so and creates none."""
        with pytest.raises(StoreError, match="no store"):
            LmdbBackend(place, read_only=True).get(b"k")
        assert not place.exists()

    def test_a_read_only_mount_still_serves(self, backend, place, tmp_path):
        """On a file system that is mounted read-only hits are served without locks."""
        backend.apply(Batch({b"k": b"v"}))
        backend.close()
        target = tmp_path / "mount"
        target.mkdir()
        mounted = subprocess.run(["mount", "--bind", place, target], check=False)
        if mounted.returncode:
            pytest.skip("mounting is not permitted here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
            reader = LmdbBackend(target, read_only=True)
            assert reader.get(b"k").value == b"v"
            reader.close()
        finally:
            subprocess.run(["umount", target], check=True)

    def test_it_travels_as_its_arguments(self, backend):
        """Pickling reaches the same pairs."""
        backend.apply(Batch({b"k": b"v"}))
        copy = pickle.loads(pickle.dumps(backend))
        assert copy.get(b"k").value == b"v"

    def test_one_environment_a_folder(self, backend, place, tmp_path):
        """Objects on one folder, also by a link, share one environment; it closes with the last."""
        link = tmp_path / "link"
        link.symlink_to(place, target_is_directory=True)
        backend.apply(Batch({b"k": b"v"}))
        other = LmdbBackend(link)
        assert other.get(b"k").value == b"v"
        assert len([p for p, _ in lmdb_module._registry if p == str(place)]) == 1
        backend.close()
        assert other.get(b"k").value == b"v"
        other.close()
        assert not [p for p, _ in lmdb_module._registry if p == str(place)]


class TestInterrupts:
    """Ctrl-C at any instant, exceptions in an opening, closings amid work: it goes on after it."""

    def test_in_an_opening_and_in_a_closing(self, place, monkeypatch):
        """What was interrupted is let go of, so that the next call opens it."""
        with monkeypatch.context() as patched:
            patched.setattr(lmdb_module, "settle_base", interrupt)
            with pytest.raises(KeyboardInterrupt) as kept:
                LmdbBackend(place).get(b"a")
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}))
        with monkeypatch.context() as patched:
            patched.setattr(lmdb_module._Promoter, "stop", interrupt)
            with pytest.raises(KeyboardInterrupt):
                backend.close()
        assert backend.get(b"a").value == b"1"
        backend.close()
        assert list((place / "locks" / "holders").iterdir()) == []
        del kept

    def test_an_error_at_the_first_promotion(self, place, monkeypatch):
        """A store that cannot be opened can be opened later, by others too, whoever keeps the error."""
        status, _ = in_fork(lambda: leave_in_hot(place))
        assert status == SIGKILLED
        with monkeypatch.context() as patched:
            patched.setattr(lmdb_module, "settle", damaged)
            with pytest.raises(StoreError) as kept:
                LmdbBackend(place).get(b"hot")
        backend = LmdbBackend(place)
        assert backend.get(b"hot").value == b"1"
        backend.close()
        del kept

    def test_while_another_process_writes(self, place):
        """One that waits for its turn gives up waiting, and the lock of its threads."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}))
        with open(place / "hot" / "turn.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with at_random(0.05, 0.05), pytest.raises(KeyboardInterrupt):
                backend.apply(Batch({b"a": b"2"}))
        backend.apply(Batch({b"a": b"3"}))
        assert backend.get(b"a").value == b"3"
        backend.close()

    @pytest.mark.parametrize("what", ["use", "flush", "close"])
    def test_at_any_instant(self, place, what):
        """Some hundred times, wherever it hits; what it hits ends, or is as if it had not begun."""
        others = promoters()
        backend, rng = LmdbBackend(place), random.Random(7)
        backend.apply(Batch({b"a": b"0"}))
        last = 0
        for number in range(1, 300 if what == "use" else 60):
            with contextlib.suppress(KeyboardInterrupt), at_random(1e-5, 3e-3, rng):
                for _ in range(50):
                    backend.apply(Batch({b"a": b"%d" % number}))
                    backend.scan(b"a")
                    if what != "use":
                        getattr(backend, what)()
            found = int(backend.get(b"a").value)
            assert found in {last, number}
            last = found
            assert backend.apply(Batch({b"b": b"%d" % number})) is not None
            backend.flush()
        assert backend.verify() == []
        backend.close()
        assert promoters() <= others

    def test_closed_by_one_thread_used_by_others(self, place):
        """Those go on with the store opened anew; no thread is left over."""
        others = promoters()
        backend, errors, ended = LmdbBackend(place), [], threading.Event()

        def use(name):
            try:
                number = 0
                while not ended.is_set():
                    number += 1
                    backend.apply(Batch({name: b"%d" % number}))
                    assert int(backend.get(name).value) == number
                    assert backend.scan(name, limit=1)
                    backend.version(), backend.size()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use, args=(name,), daemon=True) for name in (b"a", b"b")]
        for thread in threads:
            thread.start()
        for _ in range(40):
            backend.apply(Batch({b"c": b"1"}))
            backend.close()
        ended.set()
        for thread in threads:
            thread.join(30)
        assert errors == []
        assert not any(thread.is_alive() for thread in threads)
        backend.close()
        assert promoters() <= others

    def test_one_that_is_dropped_is_closed(self, tmp_path):
        """Whoever forgets `close` leaves at most one store open: the next opening closes it."""
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(12):
            LmdbBackend(tmp_path / str(number)).apply(Batch({b"a": b"1"}))
        gc.collect()
        LmdbBackend(tmp_path / "0").close()
        backend = LmdbBackend(tmp_path / "last")
        assert backend.get(b"a") is None
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 30
        backend.close()

    def test_the_folder_is_deleted(self, place):
        """Whoever cleans up takes what was remembered; what comes then is kept in a new folder."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}))
        first = backend._environment
        shutil.rmtree(place)
        with pytest.warns(UserWarning, match="deleted"):
            backend.apply(Batch({b"a": b"2"}))
            end = time.monotonic() + 30
            while not first.gone and time.monotonic() < end:
                os.sched_yield()
        backend.apply(Batch({b"b": b"1"}), Durability.POWER)
        backend.close()
        assert LmdbBackend(place).get(b"b").value == b"1"
        LmdbBackend(place).close()

    def test_no_descriptors_left(self, place):
        """Locks of files that cannot be had are the store's trouble, as an error of its own."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}))
        limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
        number = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 2
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            with pytest.raises(StoreError):
                backend.flush()
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        backend.flush()
        backend.close()


def promoters():
    threads = threading.enumerate()
    return {t.ident for t in threads if t.name == "warmstart-promoter" and t.is_alive()}


def interrupt(*_given, **_named):
    raise KeyboardInterrupt


def damaged(*_given, **_named):
    raise lmdb.CorruptedError("for a test")


def leave_in_hot(place):
    """Write what nobody promotes, and die."""
    backend = LmdbBackend(place)
    backend.apply(Batch({b"hot": b"1"}))
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def at_random(least, most, rng=random):
    """Have KeyboardInterrupt raised after some seconds, if the block lasts so long."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(least, most))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


class TestDurability:
    """What survives what."""

    def test_flush_moves_everything_to_the_synced_part(self, backend):
        """After `flush`, and after a batch with POWER, nothing is left in hot."""
        backend.apply(Batch({b"a": b"1"}))
        backend.flush()
        environment = backend._environment
        assert environment.hot.env.stat()["entries"] == 1  # its base
        assert environment.durable.read(lambda txn: bytes(txn.get(b"a"))[12:]) == b"1"
        backend.apply(Batch({b"b": b"2"}), Durability.POWER)
        assert environment.durable.read(lambda txn: bytes(txn.get(b"b"))[12:]) == b"2"

    def test_the_promoter_does_it_by_itself(self, backend):
        """A moment after a write it is in the durable part without any further call."""
        backend.apply(Batch({b"a": b"1"}))
        environment = backend._environment
        deadline = time.monotonic() + 20
        while environment.durable.read(lambda txn: txn.get(b"a") is None):
            assert time.monotonic() < deadline
            os.sched_yield()
        assert backend.get(b"a").value == b"1"

    def test_losing_hot_costs_only_what_was_not_promoted(self, backend, place):
        """With hot deleted, as a power cut may leave it, the durable part is whole and goes on."""
        first = backend.apply(Batch({b"a": b"1"}), Durability.POWER)
        backend.close()
        shutil.rmtree(place / "hot")
        again = LmdbBackend(place)
        assert again.get(b"a").value == b"1"
        assert again.apply(Batch({b"b": b"2"})) > first
        again.close()

    def test_an_old_hot_file_never_hides_newer_pairs(self, backend, place, tmp_path):
        """A hot file set back to an earlier state loses against what durable has."""
        backend.apply(Batch({b"a": b"old"}))
        backend.close()
        backend.apply(Batch({b"warm": b"up"}))
        environment = backend._environment
        environment.hot.env.copy(str(tmp_path / "hotcopy")) if (
            tmp_path / "hotcopy"
        ).mkdir() else None
        frame = lmdb_module.make_frame(b"a", 1, b"stale")
        backend.apply(Batch({b"a": b"new"}), Durability.POWER)
        environment.hot.write(lambda txn: txn.put(b"a", frame))
        backend.flush()
        assert backend.get(b"a").value == b"new"

    @pytest.fixture
    def set_back(self, backend, place, monkeypatch):
        """Return the place after a power cut that undid what was written to hot."""
        for n in range(50):
            backend.apply(Batch({b"k%d" % n: b"older", b"deleted": b"1"}))
        copy = place.with_name("copy")
        copy.mkdir()
        backend._environment.hot.env.copy(str(copy))
        backend.apply(Batch(deletes=[b"deleted"]))
        for n in range(50):
            backend.apply(Batch({b"k%d" % n: b"newer"}))
        backend.close()
        shutil.copy(copy / "data.mdb", place / "hot" / "data.mdb")
        monkeypatch.setattr(place_module, "_boot", lambda: "another")
        return place

    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_power_cut_brings_nothing_back(self, set_back, read_only):
        """What was deleted, or replaced, for good is not there again with an older hot file."""
        backend = LmdbBackend(set_back, read_only=read_only)
        assert backend.get(b"deleted") is None
        assert {item.value for item in backend.scan(b"k")} == {b"newer"}
        assert len(backend.scan(b"k")) == 50
        assert backend.verify() == []
        backend.close()

    def test_what_is_written_after_a_power_cut_is_newer(self, set_back):
        """Numbers go on increasing over an older hot file, so that what is written is kept."""
        backend = LmdbBackend(set_back)
        last = max(item.sequence for item in backend.scan(b""))
        assert backend.apply(Batch({b"k7": b"newest"})) > last
        backend.close()
        assert backend.get(b"k7").value == b"newest"
        backend.close()

    def test_after_a_power_cut_hot_is_checked(self, backend, place, monkeypatch):
        """A hot file of the right size with anything in it, closed well or not, is moved aside."""
        backend.apply(Batch({b"a": b"1"}), Durability.POWER)
        backend.close()
        data = place / "hot" / "data.mdb"
        data.write_bytes(np.random.default_rng(0).bytes(data.stat().st_size))
        monkeypatch.setattr(place_module, "_boot", lambda: "another")
        with pytest.warns(UserWarning, match="the last seconds"):
            assert backend.get(b"a").value == b"1"

    def test_a_damaged_hot_frame_is_not_promoted(self, backend):
        """A frame whose checksum disagrees stays out of the durable part."""
        backend.apply(Batch({b"a": b"good"}), Durability.POWER)
        environment = backend._environment
        bad = bytearray(lmdb_module.make_frame(b"a", 1 << 40, b"evil"))
        bad[-1] ^= 1
        environment.hot.write(lambda txn: txn.put(b"a", bytes(bad)))
        assert backend.verify()
        backend.flush()
        assert backend.get(b"a").value == b"good"

    def test_killed_half_way_through_a_promotion(self, place):
        """SIGKILL between the durable commit and the clearing of hot loses and repeats nothing."""
        code = """
import warmstart.backends.lmdb as m
backend = LmdbBackend(sys.argv[1])
backend.apply(Batch({b"a": b"1", b"b": b"1"}), Durability.POWER)
m.forget = lambda txn, group: os.kill(os.getpid(), signal.SIGKILL)
backend.apply(Batch({b"a": b"2"}, [b"b"]), Durability.POWER)
"""
        assert in_child(code, place, check=False).returncode == -signal.SIGKILL
        backend = LmdbBackend(place)
        assert [(i.key, i.value) for i in backend.scan(b"")] == [(b"a", b"2")]
        assert backend.verify() == []
        backend.close()

    def test_other_processes_see_at_once(self, backend, place):
        """What one process applied the next one reads, before any flush."""
        backend.apply(Batch({b"a": b"1"}))
        code = "print(LmdbBackend(sys.argv[1]).get(b'a').value.decode())"
        assert in_child(code, place).stdout == "1\n"


WRITER = """
backend = LmdbBackend(sys.argv[1], map_size=1 << 16)
name, n = sys.argv[2].encode(), 0
while True:
    n += 1
    value = (b"%d " % n) * (1 + n % 700)
    backend.apply(Batch({name + b"%d" % (n % 50): value, name + b"last": b"%d" % n}))
    os.write(1, b"%d\\n" % n)
"""


def start_writer(place, name):
    code = "import os, sys\nfrom warmstart.backends import Batch\n"
    code += "from warmstart.backends.lmdb import LmdbBackend\n" + WRITER
    return subprocess.Popen([sys.executable, "-c", code, str(place), name], stdout=subprocess.PIPE)


class TestKills:
    """SIGKILL at any instant."""

    def test_what_was_acknowledged_is_kept(self, place):
        """Thirty writers, four at a time, are killed at random: all they acknowledged is there."""
        rng = np.random.default_rng(11)
        for generation in range(8):
            writers = {}
            for number in range(4):
                name = f"{generation}-{number}-"
                writers[name] = start_writer(place, name)
            acknowledged = {}
            for name, writer in writers.items():
                for _ in range(int(rng.integers(1, 60))):
                    line = writer.stdout.readline()
                writer.kill()
                rest = writer.stdout.read().split()
                acknowledged[name] = int(rest[-1] if rest else line)
                writer.wait()
                writer.stdout.close()
            backend = LmdbBackend(place, map_size=1 << 16)
            for name, last in acknowledged.items():
                assert int(backend.get(name.encode() + b"last").value) >= last
            assert backend.verify() == []
            backend.close()

    def test_a_map_that_grows_under_eight_processes(self, place):
        """Eight processes write through a map of 64 KiB that all of them must grow: none lost."""
        code = """
backend = LmdbBackend(sys.argv[1], map_size=1 << 16)
name = sys.argv[2].encode()
for n in range(60):
    backend.apply(Batch({name + b"-%d" % n: bytes([n]) * 3000}))
backend.close()
"""
        prelude = "import sys\nfrom warmstart.backends import Batch\n"
        prelude += "from warmstart.backends.lmdb import LmdbBackend\n"
        children = [
            subprocess.Popen([sys.executable, "-c", prelude + code, str(place), str(number)])
            for number in range(8)
        ]
        assert [child.wait(timeout=120) for child in children] == [0] * 8
        backend = LmdbBackend(place)
        found = {i.key: i.value for i in backend.scan(b"")}
        assert found == {
            b"%d-%d" % (number, n): bytes([n]) * 3000 for number in range(8) for n in range(60)
        }
        assert backend.verify() == []
        backend.close()

    def test_a_killed_reader_does_not_make_files_grow(self, backend, place):
        """A process that writes on and on frees the pages that a killed reader holds."""
        backend.apply(Batch({b"k": b"v"}), Durability.POWER)
        code = """
backend = LmdbBackend(sys.argv[1])
environment = backend._environment
work = lambda txn: environment.durable.read(lambda _: os.kill(os.getpid(), signal.SIGKILL))
environment.hot.read(work)
"""
        assert in_child(code, place, check=False).returncode == -signal.SIGKILL
        for n in range(300):
            backend.apply(Batch({b"k%d" % (n % 10): bytes(20_000)}))
            if n % 10 == 0:
                backend.flush()
        for half in ("hot", "durable"):
            assert (place / half / "data.mdb").stat().st_size < 2_000_000

    def test_a_map_that_others_outgrow_while_it_is_opened(self, backend, place):
        """A half that has grown since its file was measured is opened all the same."""
        for n in range(20):
            backend.apply(Batch({b"k%d" % n: bytes(100_000)}), Durability.POWER)
        backend.close()
        environment = halves._opened(place / "durable", 1 << 16, readonly=True)
        assert environment.stat()["entries"] > 20
        environment.close()

    def test_files_that_are_written_to_are_sound(self, place):
        """`verify` finds nothing wrong with files to which another process writes meanwhile."""
        writer = start_writer(place, "busy")
        for _ in range(5):
            writer.stdout.readline()
        backend, reader = LmdbBackend(place), LmdbBackend(place, read_only=True)
        try:
            for _ in range(20):
                assert backend.verify() == []
            backend.close()
            for _ in range(20):
                assert reader.verify() == []
        finally:
            writer.kill()
            writer.communicate()
            reader.close()
            backend.close()

    def test_stale_readers_do_not_accumulate(self, place):
        """Readers killed in the middle of a transaction leave the table at the next opening."""
        code = """
backend = LmdbBackend(sys.argv[1])
backend.apply(Batch({b"k": b"v"}))
backend._environment.hot.read(lambda txn: os.kill(os.getpid(), signal.SIGKILL))
"""
        for _ in range(5):
            in_child(code, place, check=False)
        backend = LmdbBackend(place)
        assert backend.get(b"k").value == b"v"
        assert backend._environment.hot.env.reader_check() == 0
        backend.close()


class TestProcesses:
    """fork, spawn, forkserver, with threads and in between."""

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_parent_and_children_go_on(self, backend, place, method):
        """Children of every kind read and write what the parent has open, and so does it."""
        backend.apply(Batch({b"parent": b"parent"}))
        context = multiprocessing.get_context(method)
        for n in range(3):
            for target, argument in ((write_one, str(place)), (write_shared, backend)):
                key = b"%s-%d" % (target.__name__.encode(), n)
                child = context.Process(target=target, args=(argument, key))
                child.start()
                backend.apply(Batch({b"other": b"%d" % n}))
                child.join(60)
                assert child.exitcode == 0
                assert backend.get(key).value == b"child"

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_fork_while_threads_write(self, backend):
        """Forks in the middle of writing threads hang nobody and lose nothing."""
        backend.apply(Batch({b"parent": b"parent"}))
        stop, counts = threading.Event(), [0] * 4

        def work(number):
            while not stop.is_set():
                counts[number] += 1
                backend.apply(Batch({b"t%d" % number: b"%d" % counts[number]}))
                backend.get(b"parent")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for n in range(10):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        write_shared(backend, b"fork-%d" % n)
                        backend.close()
                        status = 0
                    finally:
                        os._exit(status)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len(backend.scan(b"fork-")) == 10
        for number, count in enumerate(counts):
            assert int(backend.get(b"t%d" % number).value) == count

    def test_two_hundred_threads_read(self, backend):
        """More threads than LMDB's default number of readers read at once."""
        backend.apply(Batch({b"k": b"v"}))
        barrier, found = threading.Barrier(200), []

        def work():
            barrier.wait()
            found.append(backend.get(b"k").value)

        threads = [threading.Thread(target=work) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [b"v"] * 200

    def test_a_container_beside_is_refused(self, backend, place, monkeypatch):
        """A place that a process of another PID namespace holds open is refused."""
        backend.apply(Batch({b"k": b"v"}))
        code = """
import warmstart.backends.place as p
p._namespace = lambda: "another"
LmdbBackend(sys.argv[1]).get(b"k")
"""
        done = in_child(code, place, check=False)
        assert "another container" in done.stderr


class TestDamage:
    """Files that something else has changed."""

    def fill(self, place):
        backend = LmdbBackend(place)
        for n in range(200):
            backend.apply(Batch({b"k%d" % n: bytes([n]) * 3000}))
        backend.close()

    @pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
    @pytest.mark.parametrize("half", ["hot", "durable"])
    def test_cut_files_are_quarantined(self, place, half, part):
        """A truncated data file neither kills the process nor stays: it is kept as evidence."""
        self.fill(place)
        data = place / half / "data.mdb"
        os.truncate(data, int(part * data.stat().st_size))
        code = """
import warnings
warnings.simplefilter("always")
backend = LmdbBackend(sys.argv[1])
backend.apply(Batch({b"new": b"1"}), Durability.POWER)
print(len(backend.scan(b"k")), backend.get(b"new").value.decode(), backend.verify())
"""
        done = in_child(code, place)
        count, new, *problems = done.stdout.split()
        assert (new, "".join(problems)) == ("1", "[]")
        if half == "hot" or not done.stderr:
            assert int(count) == 200 or part < 0.02
        else:
            assert "quarantine" in done.stderr
            assert list((place / "quarantine").glob("*-durable/data.mdb"))

    @pytest.mark.parametrize("damage", ["grown", "gone", "a longer one", *range(12)])
    @pytest.mark.parametrize(
        ("half", "row"), [("durable", b"\0mark"), ("durable", b"\0done"), ("hot", b"\0base")]
    )
    def test_damaged_counts_of_writes(self, place, half, row, damage):
        """Whatever says how many writes there were: all is kept, and what is written next, too."""
        backend = LmdbBackend(place)
        last = backend.apply(Batch({b"a": b"1", b"b": b"1"}), Durability.POWER)
        backend.close()
        with lmdb.open(str(place / half)) as engine, engine.begin(write=True) as txn:
            raw = bytearray(txn.get(row))
            if damage == "gone":
                txn.delete(row)
            elif damage == "a longer one":
                txn.put(row, bytes(raw) * 2)
            elif damage == "grown":
                txn.put(row, b"\xff" * len(raw))
            else:
                raw[damage] ^= 0x41
                txn.put(row, bytes(raw))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backend.get(b"a").value == b"1"
            assert backend.apply(Batch({b"a": b"2", b"c": b"2"})) > last
            backend.close()
            found = [(item.key, item.value) for item in backend.scan(b"")]
        assert found == [(b"a", b"2"), (b"b", b"1"), (b"c", b"2")]
        assert backend.verify() == []
        backend.close()

    def test_a_damaged_number_of_a_row(self, place):
        """What was written or deleted later counts, whatever number the damage has left."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1", b"b": b"1"}), Durability.POWER)
        backend.close()
        with lmdb.open(str(place / "durable")) as engine, engine.begin(write=True) as txn:
            for key in (b"a", b"b"):
                raw = bytearray(txn.get(key))
                raw[6] ^= 0x40
                txn.put(key, bytes(raw))
        backend.apply(Batch({b"a": b"2"}, [b"b"]))
        for _ in range(2):
            assert [(item.key, item.value) for item in backend.scan(b"")] == [(b"a", b"2")]
            assert backend.get(b"b") is None
            backend.flush()
        assert backend.verify() == []
        backend.close()

    def test_a_damaged_base_while_others_write(self, place):
        """Others count from what it was: nobody joins them until they have ended."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}), Durability.POWER)

        def damage():
            engine = lmdb.open(str(place / "hot"), max_spare_txns=0)
            with engine, engine.begin(write=True) as txn:
                txn.put(b"\0base", b"\xff" * 12)

        def join():
            with pytest.raises(StoreError, match="damaged"):
                LmdbBackend(place).get(b"a")

        for work in (damage, join):
            assert in_fork(work)[0] == 0
        backend.apply(Batch({b"a": b"2"}))
        backend.flush()
        backend.close()
        assert backend.get(b"a").value == b"2"
        backend.close()

    def test_nothing_is_read_of_files_that_are_known_to_be_damaged(self, place, monkeypatch):
        """To follow pages that contradict each other may end in a signal; the next opening looks."""
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}), Durability.POWER)
        with monkeypatch.context() as patched:
            patched.setattr(halves_module, "problems_of", lambda _folder: ["page 7: odd"])
            assert "durable: page 7: odd" in backend.verify()
        for use in (
            lambda: backend.scan(b"a"),
            lambda: backend.get(b"a"),
            lambda: backend.apply(Batch({b"a": b"2"})),
        ):
            with pytest.raises(StoreError, match=r"page 7: odd; it is checked and repaired"):
                use()
        backend.close()
        assert backend.get(b"a").value == b"1"
        backend.close()

    def test_a_file_of_another_program_is_quarantined(self, place):
        """Garbage in place of a data file is moved aside with one warning."""
        self.fill(place)
        (place / "durable" / "data.mdb").write_bytes(b"SQLite format 3\0" * 4096)
        backend = LmdbBackend(place)
        with pytest.warns(UserWarning, match="quarantine"):
            assert backend.scan(b"k") == []
        backend.apply(Batch({b"k": b"v"}))
        assert backend.get(b"k").value == b"v"
        backend.close()

    def test_flipped_bits_never_crash(self, place):
        """Random bits flipped anywhere in both files: opening, reading and writing go on or raise."""
        self.fill(place)
        code = """
import random, warnings
warnings.simplefilter("ignore")
from warmstart.errors import StoreError
random.seed(int(sys.argv[2]))
for half in ("hot", "durable"):
    with open(os.path.join(sys.argv[1], half, "data.mdb"), "r+b") as file:
        data = bytearray(file.read())
        for _ in range(20):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        file.seek(0)
        file.write(data)
os.remove(os.path.join(sys.argv[1], "closed"))
try:
    backend = LmdbBackend(sys.argv[1])
    backend.scan(b"")
    backend.apply(Batch({b"k": b"v"}), Durability.POWER)
    assert backend.get(b"k").value == b"v"
except StoreError:
    pass
"""
        for seed in range(6):
            copy = place.with_name(f"copy{seed}")
            shutil.copytree(place, copy)
            assert in_child(code, copy, seed).returncode == 0

    def test_an_unclean_end_is_noticed_and_checked(self, place, monkeypatch):
        """After SIGKILL the next opening checks the files, after a clean close it does not."""
        checks = []
        plain = lmdb_module.problems_of
        monkeypatch.setattr(lmdb_module, "problems_of", lambda f: checks.append(f) or plain(f))
        self.fill(place)
        checks.clear()
        backend = LmdbBackend(place)
        backend.get(b"k1")
        backend.close()
        assert checks == []
        in_child("LmdbBackend(sys.argv[1]).get(b'k1'); os.kill(os.getpid(), 9)", place, check=False)
        backend = LmdbBackend(place)
        backend.get(b"k1")
        backend.close()
        assert len(checks) == 2


class TestFullDisk:
    """No room."""

    @pytest.fixture
    def small(self, tmp_path):
        """A file system of 24 MiB."""
        target = tmp_path / "small"
        target.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", target], check=False
        )
        if mounted.returncode:
            pytest.skip("mounting is not permitted here")
        yield target / "store"
        subprocess.run(["umount", "-l", target], check=True)

    def fill(self, backend):
        written = []
        with pytest.raises(StoreFullError):
            for n in range(100_000):
                backend.apply(Batch({b"k%d" % n: bytes([n % 256]) * 20_000}))
                written.append(n)
                if n % 16 == 0:
                    backend.flush()
        return written

    def test_a_full_disk_is_an_error_and_deleting_makes_room(self, small):
        """Writing stops with `StoreFullError`, reading goes on, deleting works, then writing too."""
        backend = LmdbBackend(small)
        written = self.fill(backend)
        assert len(written) > 100
        for n in written[:50]:
            assert backend.get(b"k%d" % n).value == bytes([n % 256]) * 20_000
        backend.apply(Batch(deletes=[b"k%d" % n for n in written[10:]]))
        backend.flush()
        assert len(backend.scan(b"k", head=1)) == 10
        backend.close()

    def test_with_the_floor_gone_it_is_still_an_error(self, small, monkeypatch):
        """Even at the last byte nothing dies of a signal and nothing written before is lost."""
        monkeypatch.setattr(lmdb_module, "_FLOOR", 0)
        backend = LmdbBackend(small)
        backend.apply(Batch({b"first": b"1"}), Durability.POWER)
        self.fill(backend)
        assert backend.get(b"first").value == b"1"

    def test_somebody_else_takes_the_last_byte(self, small, monkeypatch):
        """What was set aside for it is enough to delete, and is set aside again."""
        monkeypatch.setattr(lmdb_module, "_FLOOR", 0)
        backend = LmdbBackend(small)
        for n in range(200):
            backend.apply(Batch({b"k%d" % n: bytes([n]) * 20_000}))
        backend.flush()
        with (
            pytest.raises(OSError, match="No space left"),
            open(small.parent / "other", "wb", 0) as file,
        ):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(small).free == 0
        for n in range(150):
            backend.apply(Batch(deletes=[b"k%d" % n]))
        backend.flush()
        assert not (small / "reserve").exists()
        for n in range(150, 200):
            assert backend.get(b"k%d" % n).value == bytes([n]) * 20_000
        for n in range(70):
            backend.apply(Batch({b"new%d" % n: bytes(20_000)}))
        backend.flush()
        assert len(backend.scan(b"k", head=1)) == 50
        assert len(backend.scan(b"new", head=1)) == 70
        (small.parent / "other").unlink()
        for n in range(64):
            backend.apply(Batch({b"more": bytes([n])}))
        assert (small / "reserve").stat().st_size == 256 << 10
        backend.close()

    def test_an_opening_that_fails_leaves_nothing_open(self, place, monkeypatch):
        """Whoever keeps the error does not keep the engine, which opens nothing twice."""
        opened = lmdb_module.Half

        def full(folder, **options):
            if folder.name == "hot":
                raise OSError(errno.ENOSPC, "No space left on device")
            return opened(folder, **options)

        with monkeypatch.context() as patched:
            patched.setattr(lmdb_module, "Half", full)
            with pytest.raises(StoreFullError) as kept:
                LmdbBackend(place).get(b"a")
        backend = LmdbBackend(place)
        backend.apply(Batch({b"a": b"1"}))
        assert backend.get(b"a").value == b"1"
        backend.close()
        del kept


def test_lmdb_is_recent_enough():
    """The engine is at least py-lmdb 2.1.1, the release with the hardened reader."""
    assert lmdb.version(subpatch=False) >= (0, 9)
    from importlib.metadata import version

    assert tuple(map(int, version("lmdb").split(".")[:3])) >= (2, 1, 1)


def test_a_fork_waits_for_an_import():
    """A child that is forked while another thread imports psutil can import it as well."""
    code = """
import importlib, os, sys, threading
from warmstart import host
plain, inside = importlib.import_module, threading.Event()
def slow(name, *rest):
    if name == "psutil" and not inside.is_set():
        inside.set()
        threading.Event().wait(0.5)  # as if the disk were slow
    return plain(name, *rest)
importlib.import_module = slow
threading.Thread(target=host.the_psutil).start()
inside.wait()
pid = os.fork()
if not pid:
    assert "psutil" in sys.modules
    os._exit(0 if host.owner() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_a_fork_while_a_thread_opens_a_store(tmp_path):
    """However late filelock was imported, a fork and a thread that opens a store do not wait for each other."""
    code = """
import os, sys, threading
from warmstart.backends.lmdb import LmdbBackend
LmdbBackend(sys.argv[1] + "/first").get(b"k")
held, stop = threading.Event(), threading.Event()
def work():
    n = 0
    while not stop.is_set():
        n += 1
        held.set()
        LmdbBackend(sys.argv[1] + f"/{n % 5}").get(b"k")
thread = threading.Thread(target=work)
thread.start()
held.wait()
for _ in range(100):
    pid = os.fork()
    if not pid:
        LmdbBackend(sys.argv[1] + "/first").get(b"k")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
thread.join()
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    assert subprocess.run(words, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("slow", ["filelock", "lmdb.open"])
def test_a_fork_during_the_very_first_opening(tmp_path, slow):
    """Before anything is known of forks, a child finds the registry of environments free."""
    code = """
import importlib, os, sys, threading
import lmdb
from warmstart.backends.lmdb import LmdbBackend
inside, go = threading.Event(), threading.Event()
def slowly(plain):
    def call(*arguments, **options):
        if threading.current_thread() is not threading.main_thread() and not inside.is_set():
            inside.set()
            go.wait(0.3)
        return plain(*arguments, **options)
    return call
if sys.argv[2] == "filelock":
    importlib.import_module = slowly(importlib.import_module)
else:
    lmdb.open = slowly(lmdb.open)
thread = threading.Thread(target=lambda: LmdbBackend(sys.argv[1] + "/a").get(b"k"))
thread.start()
inside.wait()
pid = os.fork()
if not pid:
    LmdbBackend(sys.argv[1] + "/b").get(b"k")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
thread.join()
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), slow]
    assert subprocess.run(words, timeout=30, check=False).returncode == 0
