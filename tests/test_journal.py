"""The file of a run's evaluations: what is written is read, and nothing else ever is."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from fits import differences
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec import structs
from processes import SIGKILLED, in_child
from scipy.sparse.linalg import LinearOperator

from warmstart import Store, Warm, journal, optimize, using
from warmstart.backends.memory import MemoryBackend
from warmstart.carrying import Carrier, gather
from warmstart.errors import RecordError
from warmstart.fingerprint import Fingerprint
from warmstart.journal import Header, Journal, Life, Shelf
from warmstart.packing import (
    MUTATED,
    OPAQUE,
    TRACKED,
    are_near,
    dumps,
    pack_value,
    sketches,
    unpack_value,
)
from warmstart.replay import Replay, difference

FIT, KEY, OTHER = (Fingerprint(bytes([n]) * 32) for n in (1, 2, 3))
RUN = "0123456789abcdef" * 2
LIFE = Life(run=RUN, began=0.0, environment="here", blas=[("mkl", 2, "x")], channels=["fun"])
HEADER = Header(surface="minimize", parts={"model": b"12345678"}, method="BFGS")


def record(digest, value, channel=0):
    form, payload = pack_value(value)
    return struct.pack("<BBQ", channel, form, digest) + payload


def frames(*values, first=0):
    """Return frames of evaluations whose digests count up."""
    records = [record(first + n, value) for n, value in enumerate(values)]
    points = [np.full(3, float(first + n)).tobytes() for n in range(len(values))]
    return journal.evaluation_frames(b"".join(records), len(records), sketches(points))


def start():
    return journal.header_frame(HEADER) + journal.life_frame(LIFE)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "journals", budget=1 << 20, ttl=None)


def values_of(found):
    return [unpack_value(found.buffer, e.form, e.offset)[0] for e in found.evaluations()]


class TestValues:
    """Outputs come back with their type, dtype, shape, memory order and bits."""

    @settings(max_examples=300, deadline=None)
    @given(
        st.one_of(
            st.floats(),
            st.floats().map(np.float64),
            st.floats(width=32).map(np.float32),
            st.integers(),
            st.booleans(),
            st.complex_numbers(),
            st.none(),
            hnp.arrays(
                st.sampled_from(["<f8", ">f8", "f4", "i4", "u1", "?", "c16", "f2"]),
                hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            ),
            st.lists(st.floats()),
            st.tuples(st.floats(), hnp.arrays(float, 3)),
            st.tuples(st.tuples(st.floats(), st.floats()), st.none()),
            st.tuples(st.floats(), st.floats(), st.floats()),
        ),
        st.sampled_from(["C", "F", "strided"]),
    )
    def test_round_trip(self, value, order):
        if isinstance(value, np.ndarray):
            strided = order == "strided" and value.ndim
            value = value.repeat(2, 0)[::2] if strided else value.copy("F" if order == "F" else "C")
        form, raw = pack_value(value)
        again, end = unpack_value(b"#" + raw + b"#", form, 1)
        assert end == len(raw) + 1
        assert type(again) is type(value)
        assert list(differences(value, again)) == [] or value != value
        assert difference(value, again) == 0.0
        if isinstance(value, np.ndarray) and value.ndim > 1 and 1 not in value.shape and value.size:
            assert again.flags.f_contiguous == value.flags.f_contiguous
            assert again.flags.writeable
            assert again.flags.owndata

    def test_sparse(self):
        matrix = scipy.sparse.csr_array(np.eye(3))
        form, raw = pack_value(matrix)
        again, _ = unpack_value(raw, form, 0)
        assert type(again) is type(matrix)
        assert difference(matrix, again) == 0.0

    @pytest.mark.parametrize(
        "value",
        [
            object(),
            lambda: 0,
            LinearOperator((2, 2), matvec=lambda v: v),
            (1.0, object()),
            [1.0, object()],
            np.array([object()]),
        ],
    )
    def test_what_has_no_bytes_is_opaque(self, value):
        assert pack_value(value) == (OPAQUE, b"")

    def test_difference(self):
        """0 for equal bits, NaN included; relative; infinite where nothing can be compared."""
        assert difference(np.nan, np.nan) == 0.0
        assert difference(1.0, 1.0 + 2e-16) == pytest.approx(2.2e-16, rel=0.1)
        assert difference(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0.0
        assert difference((1.0, np.ones(2)), (1.0, np.ones(2) * 1.5)) == pytest.approx(1 / 3)
        assert 0.0 < difference(0.0, -0.0) < 1e-300
        for one, other in (
            (1.0, np.float64(1.0)),
            (np.ones(2), np.ones(3)),
            (np.nan, 1.0),
            (np.ones(2), np.ones(2, "f4")),
            ("a", "b"),
            ((1.0,), (1.0, 2.0)),
            (None, 1.0),
        ):
            assert difference(one, other) == np.inf

    @pytest.mark.parametrize("n", [1, 3, 4096, 5000])
    def test_sketches(self, n):
        """Many at a time or one: the same to the last bits; small changes are seen."""
        x = np.random.default_rng(n).normal(size=(5, n))
        made = sketches([row.tobytes() for row in x])
        assert made.shape == (5, 3)
        for row, sketch in zip(x, made, strict=True):
            alone = sketches([row.tobytes()])[0]
            scale = np.linalg.norm(row)
            assert np.abs(alone - sketch).max() <= 1e-12 * scale
            assert are_near(sketch, alone, 1e-9)
            moved = row.copy()
            moved[0] += 1e-8 * scale
            assert not are_near(sketch, sketches([moved.tobytes()])[0], 1e-9)
        assert np.isnan(sketches([b"123", b""])).all()

    def test_sketches_tell_one_parameter_from_another(self):
        """The same step along each of many, from one point: no two are nearly equal."""
        made = sketches([row.tobytes() for row in np.eye(200)])
        apart = np.abs(made[:, None] - made[None, :]).max(axis=2) + np.eye(200)
        assert apart.min() > 1e-4

    @pytest.mark.parametrize(
        "x0", [np.array([np.inf, np.nan]), np.ones(3), np.ones((2, 1)), "x", None, [1.0, 2.0]]
    )
    def test_lies_about_the_start(self, tmp_path, x0):
        """A start that the library is said to have chosen, and cannot have: begun anew."""

        def fit():
            return optimize.minimize(
                scipy.optimize.rosen, [1.5, 2.0], method="Nelder-Mead", options={"maxfev": 60}
            )

        with Store(tmp_path) as store, using(store=store, journal=True):
            expected = fit()
            (path,) = store.journals.paths()
            header, *others = bodies(path.read_bytes())
            told = msgspec.msgpack.decode(header[1:], type=Header)
            lie = structs.replace(told, chosen=True, x0=dumps(x0))
            raw = journal.header_frame(lie)
            for body in others:
                if body[:1] != b"Z":
                    raw += struct.pack("<II", len(body), crc32(body)) + body
            store.delete(store.resolve(expected.warm.key))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(raw)
            found = fit()
        assert found.warm.source == "cold"
        assert found.x.tobytes() == expected.x.tobytes()

    @pytest.mark.parametrize("flag", [MUTATED, TRACKED])
    def test_lies_about_what_a_call_did_besides(self, tmp_path, flag):
        """An input left with another size, the state of no generator: noticed, and begun from the best."""
        generator = np.random.default_rng(1)

        def fun(x):
            x *= 2.0
            return float(x @ x) + 1e-3 * generator.random()

        def fit(**options):
            generator.bit_generator.state = np.random.default_rng(1).bit_generator.state
            return optimize.minimize(
                fun, [1.0, 2.0], method="Nelder-Mead", options={"maxfev": 60}, warm=Warm(**options)
            )

        common = {"journal": True, "track": [generator], "model": "besides"}
        with Store(tmp_path) as store, using(store=store):
            expected = fit(**common)
            (path,) = store.journals.paths()
            raw = path.read_bytes()
            lied = bytearray()
            for body in bodies(raw):
                if body[:1] == b"E":
                    body = body[:5] + with_lies(body[5:], flag)
                if body[:1] != b"Z":
                    lied += struct.pack("<II", len(body), crc32(body)) + body
            store.delete(store.resolve(expected.warm.key))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(journal.MAGIC + lied)
            with pytest.warns(UserWarning, match="it is damaged"):
                found = fit(**common)
        assert found.warm.source == "checkpoint"
        assert found.fun <= 1.1 * expected.fun


def bodies(raw):
    """Yield the bodies of a journal's frames."""
    place = len(journal.MAGIC)
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        yield raw[place + 8 : place + 8 + length]
        place += 8 + length


def with_lies(records, flag):
    """Return evaluations of numbers, each of which did something besides that it cannot have."""
    made, place = b"", 0
    while place < len(records):
        head, place = records[place : place + 18], place + 18
        extras = {}
        for known in (MUTATED, TRACKED):
            (size,) = struct.unpack_from("<I", records, place)
            extras[known] = records[place + 4 : place + 4 + size]
            place += 4 + size
        extras[flag] = bytes(24) if flag == MUTATED else dumps([{"seeds": None, "bits": 7}])
        made += head + b"".join(struct.pack("<I", len(e)) + e for e in extras.values())
    return made


class TestFile:
    """What is written is read back; what is torn, flipped or a lie is not."""

    def test_everything_is_read_back(self, shelf):
        written = shelf.create(FIT, KEY, RUN, start())
        written.write(frames(1.5, np.float64(2.5)), journal.best_frame({"x": np.ones(2)}))
        written.write(journal.stop_frame("callback", 3), frames(np.arange(3.0), first=2))
        written.write(journal.end_frame({"callback": 3}))
        written.close()
        found = shelf.find(FIT, KEY).journal
        assert (found.header, found.lives) == (HEADER, [LIFE])
        assert found.best["x"].tolist() == [1.0, 1.0]
        assert found.stops == {"callback": 3}
        assert found.finished
        assert (found.count, found.fruitless) == (3, 0)
        assert [e.digest for e in found.evaluations()] == [0, 1, 2]
        one, two, three = values_of(found)
        assert (type(one), one, type(two), two) == (float, 1.5, np.float64, 2.5)
        assert found.sketches().shape == (3, 3)
        found.close()
        assert three.tolist() == [0.0, 1.0, 2.0]  # it outlives the file's map

    def test_a_torn_end_is_cut_off_at_every_byte(self, shelf):
        """What is left is a whole number of frames, and can be gone on with."""
        written = shelf.create(FIT, KEY, RUN, start())
        for number in range(3):
            written.write(frames(float(number), first=number))
        written.close()
        whole = written.path.read_bytes()
        counts = set()
        for size in range(len(whole)):
            written.path.write_bytes(whole[:size])
            found = shelf.find(FIT, KEY).journal
            if size < len(start()):
                assert found is None
                continue
            counts.add(found.count)
            assert values_of(found) == [0.0, 1.0, 2.0][: found.count]
            found.write(frames(7.0, first=9))
            found.close()
            again = shelf.find(FIT, KEY).journal
            assert values_of(again) == [*[0.0, 1.0, 2.0][: found.count], 7.0]
            again.close()
        assert counts == {0, 1, 2, 3}

    def test_no_flipped_bit_is_believed(self, shelf):
        """Each byte damaged in turn: a prefix of what was written, or nothing at all."""
        written = shelf.create(FIT, KEY, RUN, start())
        written.write(frames(1.0, np.ones(2)), frames(3.0, first=2))
        written.close()
        whole = written.path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            written.path.write_bytes(damaged)
            found = shelf.find(FIT, KEY).journal
            if found is not None:
                assert [str(v) for v in values_of(found)] == ["1.0", "[1. 1.]", "3.0"][
                    : found.count
                ]
                assert place >= len(start())
                found.close()

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            bytes(500),
            b"PK\x03\x04" * 100,
            journal.MAGIC,
            journal.MAGIC.replace(b"1", b"9") + bytes(100),
            journal.MAGIC + struct.pack("<II", 0xFFFFFFFF, 0) + bytes(50),
            journal.header_frame(HEADER),
        ],
    )
    def test_other_files_are_removed(self, shelf, raw):
        shelf.create(FIT, KEY, RUN, start()).close()
        (path,) = shelf.paths()
        path.write_bytes(raw)
        assert shelf.find(FIT, KEY) == journal.NONE
        assert shelf.paths() == []

    @pytest.mark.parametrize(
        "body",
        [
            b"H\xc1",
            b"L\x80",
            journal.life_frame(structs.replace(LIFE, run="x" * 32))[8:],
            journal.life_frame(structs.replace(LIFE, run=RUN + "\n"))[8:],
            b"B" + bytes(20),
            b"C\x93\x01\x02\x03",
            b"S" + bytes(7),
            b"S" + bytes(32),
            b"E" + struct.pack("<I", 5),
            b"E" + struct.pack("<IBBQ", 1, 0, 0, 5),
            b"E" + struct.pack("<IBBQI", 1, 0, 2, 5, 1 << 31) + bytes(8),
            b"E" + struct.pack("<IBBQIBBB", 1, 0, 3, 5, 3, 3, 0, 255),
            b"E" + struct.pack("<IBBQIBBBQ3s", 1, 0, 3, 5, 14, 3, 0, 1, 1 << 62, b"<f8") + bytes(8),
            b"E" + struct.pack("<IBBQIBBBQ2s", 1, 0, 3, 5, 13, 2, 0, 1, 1, b"|O") + bytes(8),
            b"E" + struct.pack("<IBBQ", 1, 0, 5, 5) + b"\x05" * 20_000,
            b"E" + struct.pack("<IBBQI", 1, 0, 6, 5, 4) + b"\xff\xff\xff\xff",
            b"E" + struct.pack("<IBBQ", 1, 0, 0x3F, 5) + bytes(30),
            b"E" + struct.pack("<IBBQdI", 1, 0, 0xC0, 5, 1.0, 3) + b"abc",
            b"?" + bytes(9),
        ],
        ids=lambda body: f"{body[:1].decode()}{len(body)}-{crc32(body):08x}",
    )
    def test_lies_under_a_right_checksum_do_not_fail_a_fit(self, tmp_path, body):
        """A frame that is whole and makes no sense: the fit ends as scipy's all the same."""
        plain = scipy.optimize.minimize(scipy.optimize.rosen, [0.0, 0.5, 0.5], method="Powell")
        with Store(tmp_path) as store, using(store=store, journal=True, refit=False):
            key = optimize.minimize(scipy.optimize.rosen, [0.0, 0.5, 0.5], method="Powell").warm.key
            (path,) = store.journals.paths()
            whole = path.read_bytes()
            place = whole.index(b"E", len(whole) // 4)  # somewhere within
            starts = [n for n in range(len(whole) - 9) if _is_frame(whole, n)]
            for place in (starts[1], starts[2], starts[-1]):
                lie = struct.pack("<II", len(body), crc32(body)) + body
                store.delete(store.resolve(key)) if list(store.keys()) else None
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(whole[:place] + lie)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = optimize.minimize(
                        scipy.optimize.rosen, [0.0, 0.5, 0.5], method="Powell"
                    )
                if result.warm.source != "checkpoint":
                    assert list(differences(plain, result)) == []
                assert result.success


def _is_frame(raw, place):
    length, check = struct.unpack_from("<II", raw, place)
    return 0 < length < len(raw) - place and crc32(raw[place + 8 : place + 8 + length]) == check


class TestLocks:
    """One writer at a time, and what is left of a dead one is free."""

    def test_not_twice(self, shelf):
        """Neither another thread, nor a child, nor another process gets an open journal."""
        held = shelf.create(FIT, KEY, RUN, start())
        found = []
        thread = threading.Thread(target=lambda: found.append(shelf.find(FIT, KEY)))
        thread.start()
        thread.join()
        assert found == [journal.Found(None, busy=True)]
        child = in_child(lambda: [shelf.find(FIT, KEY).journal is None, shelf.find(FIT, KEY).busy])
        assert child == (0, [True, True])
        code = (
            "import sys; from pathlib import Path; from warmstart.journal import Shelf;"
            "from warmstart.fingerprint import Fingerprint as F;"
            "shelf = Shelf(Path(sys.argv[1]), budget=9, ttl=None);"
            "print(shelf.find(F(bytes([1]) * 32), F(bytes([2]) * 32)), shelf.sweep())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(shelf.folder)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "Found(journal=None, busy=True) 0\n"
        held.close()
        assert shelf.find(FIT, KEY).journal.count == 0

    def test_a_child_writes_nothing(self, shelf):
        """A forked child that inherits a journal cannot write to it, and its end frees nothing."""
        held = shelf.create(FIT, KEY, RUN, start())

        def child():
            held.write(frames(6.0))
            held.delete()
            held.close(delete=True)

        assert in_child(child)[0] == 0
        held.write(frames(5.0))
        assert in_child(lambda: shelf.find(FIT, KEY).busy) == (0, True)
        held.close()
        assert values_of(shelf.find(FIT, KEY).journal) == [5.0]

    def test_reading_it_does_not_free_it(self, shelf):
        """What is sent to a server or put into a bundle is read while it is written, and locked."""
        held, memory = shelf.create(FIT, KEY, RUN, start()), MemoryBackend()
        held.write(frames(5.0))
        Carrier(memory, FIT).send(held, 1.0)
        ((fit, name, sent),) = gather(memory, Shelf(shelf.folder / "none", budget=9, ttl=None))
        ((*there, content),) = gather(MemoryBackend(), shelf)
        assert there == [fit, name] == [FIT, held.path.name]
        assert content == sent
        assert len(sent) == held.size
        assert not is_free(held.path)
        held.close()
        assert is_free(shelf.paths()[0])

    def test_what_is_dropped_is_free(self, shelf):
        """A caller that was interrupted before it could close it has not locked it for ever."""
        held = shelf.create(FIT, KEY, RUN, start())
        held.write(frames(5.0))
        del held
        gc.collect()
        assert values_of(shelf.find(FIT, KEY).journal) == [5.0]

    @pytest.mark.parametrize("kind", ["folder", "link to itself", "pipe"])
    def test_something_else_in_its_place(self, tmp_path, kind):
        """The fit runs, and is remembered."""
        with using(store=Store(tmp_path)), warnings.catch_warnings():
            warnings.simplefilter("error")
            optimize.minimize(bowl, np.ones(2), method="BFGS", warm=Warm(journal=True))
            (path,) = (tmp_path / "journals").rglob("*.journal")
            path.unlink()
            make = {"folder": Path.mkdir, "link to itself": link_to_itself, "pipe": os.mkfifo}
            make[kind](path)
            again = Warm(journal=True, refit=True)
            for warm in (again, Warm(journal=True)):
                result = optimize.minimize(bowl, np.ones(2), method="BFGS", warm=warm)
        assert result.warm.source == "final"

    def test_a_killed_writer_leaves_it_free(self, shelf):
        def child():
            shelf.create(FIT, KEY, RUN, start()).write(frames(5.0))
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(child)[0] == SIGKILLED
        assert values_of(shelf.find(FIT, KEY).journal) == [5.0]

    def test_a_full_disk_leaves_whole_frames(self, shelf):
        """A write that fails in the middle is undone, and what was written before is read."""

        def child():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            written = shelf.create(FIT, KEY, RUN, start())
            written.write(frames(1.0))
            limit = written.size + 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                written.write(frames(np.ones(1000), first=1))
            except OSError:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )
                written.write(frames(3.0, first=2))
                return "refused"

        assert in_child(child) == (0, "refused")
        assert values_of(shelf.find(FIT, KEY).journal) == [1.0, 3.0]


def bowl(x):
    return float(x @ x)


def link_to_itself(path):
    path.symlink_to(path.name)


def is_free(path):
    """Return whether another process could lock a file."""

    def locked():
        with path.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    return in_child(locked)[1]


class TestShelf:
    """Which journal goes on, and which goes."""

    def make(self, shelf, key, run, count, age=0.0):
        made = shelf.create(FIT, key, run, start())
        made.write(frames(*map(float, range(count))))
        made.close()
        os.utime(made.path, (1e9 - age, 1e9 - age))
        return made.path

    def test_the_same_options_then_the_longest(self, shelf):
        short = self.make(shelf, KEY, "a" * 32, 1)
        self.make(shelf, OTHER, "b" * 32, 5)
        longest = self.make(shelf, OTHER, "c" * 32, 50)
        found = shelf.find(FIT, KEY).journal
        assert found.path == short
        others = list(shelf.others(FIT, KEY))
        assert others[0].path == longest
        for other in others:
            other.close()
        found.close()
        assert shelf.find(FIT, Fingerprint(bytes([9]) * 32)).journal.path == longest

    def test_rename(self, shelf):
        path = self.make(shelf, OTHER, RUN, 2)
        found = shelf.find(FIT, KEY).journal
        found.rename(KEY)
        assert found.path != path
        assert found.path.exists()
        assert not path.exists()
        assert shelf.find(FIT, KEY).busy
        found.close()
        assert shelf.find(FIT, KEY).journal.path == found.path

    def test_forget(self, shelf):
        kept = self.make(shelf, KEY, "a" * 32, 1)
        self.make(shelf, KEY, "b" * 32, 1)
        other = self.make(shelf, OTHER, "c" * 32, 1)
        assert shelf.forget(KEY, but=kept) == 1
        assert shelf.paths() == sorted([kept, other])
        assert shelf.forget(KEY) == 1
        assert shelf.forget(OTHER) == 1
        assert not list(shelf.folder.iterdir())

    def test_old_ones_and_those_over_the_budget_go(self, tmp_path):
        shelf = Shelf(tmp_path, budget=1 << 20, ttl=100.0)
        paths = [self.make(shelf, KEY, f"{n:032x}", 10, age=60.0 * n) for n in range(4)]
        assert shelf.usage() == (4, sum(path.stat().st_size for path in paths))
        assert shelf.sweep(now=1e9) == 2
        assert shelf.paths() == sorted(paths[:2])
        shelf.budget = paths[0].stat().st_size
        assert shelf.sweep(now=1e9) == 1
        assert shelf.paths() == paths[:1]
        held = shelf.find(FIT, KEY).journal
        assert shelf.sweep(now=2e9) == 0  # somebody is writing to it
        held.close()
        assert shelf.sweep(now=2e9) == 1
        assert not list(tmp_path.iterdir())

    def test_a_sweep_at_the_wrong_moment(self, shelf):
        """An empty folder may be removed between two steps of `create`."""
        stop = time.monotonic() + 0.5
        shelf.budget = 1

        def sweep():
            while time.monotonic() < stop:
                shelf.sweep()

        thread = threading.Thread(target=sweep)
        thread.start()
        made = 0
        while time.monotonic() < stop:
            try:
                shelf.create(FIT, KEY, f"{made:032x}", start()).close()
            except FileNotFoundError:  # three times in a row: the fit would go on without
                continue
            made += 1
        thread.join()
        assert made > 20

    def test_copy_of(self, shelf):
        written = shelf.create(FIT, KEY, RUN, start())
        written.write(frames(1.0, np.ones(2)), frames(3.0, first=2))
        written.close()
        found = shelf.find(FIT, KEY).journal
        other = shelf.create(FIT, OTHER, RUN, start())
        other.write(found.copy_of(2))
        other.close()
        found.close()
        copied = shelf.find(FIT, OTHER).journal
        assert [str(v) for v in values_of(copied)] == ["1.0", "[1. 1.]"]
        assert copied.sketches().tolist() == [[*row] for row in _expected(2)]


def _expected(count):
    return sketches([np.full(3, float(n)).tobytes() for n in range(count)])


class TestReplay:
    """Which record answers a call."""

    @pytest.fixture
    def recorded(self, shelf):
        written = shelf.create(FIT, KEY, RUN, start())
        written.write(frames(*(10.0 * n for n in range(5))), frames(70.0, first=3))
        written.close()
        found = shelf.find(FIT, KEY).journal
        yield found
        found.close()

    def ask(self, replay, digest, x=None):
        found = replay.find(0, digest, b"" if x is None else x.tobytes())
        if found is None:
            return None
        return unpack_value(replay.journal.buffer, found.form, found.offset)[0]

    def test_in_order(self, recorded):
        replay = Replay(recorded, foreign=False, same_options=False)
        assert [self.ask(replay, n) for n in (0, 1, 2, 3, 4, 3)] == [
            0.0,
            10.0,
            20.0,
            30.0,
            40.0,
            70.0,
        ]
        assert replay.is_over
        assert (replay.answered, replay.strayed, replay.tolerant) == (6, None, False)

    def test_out_of_order(self, recorded):
        """By digest; the n-th time that a point is asked for gets its n-th value."""
        replay = Replay(recorded, foreign=False, same_options=False)
        assert [self.ask(replay, n) for n in (0, 3, 8, 1, 3, 3)] == [
            0.0,
            30.0,
            None,
            10.0,
            70.0,
            None,
        ]
        assert (replay.answered, replay.strayed) == (4, 1)
        assert not replay.is_over

    def test_another_function_is_not_answered(self, recorded):
        assert Replay(recorded, foreign=False, same_options=False).find(1, 0, b"") is None

    def test_nearly_the_same_points(self, recorded):
        """One part in a thousand million is forgiven, unless the options are others."""
        for apart, foreign, same, answer in (
            (1e-12, True, False, 10.0),
            (1e-12, False, True, 10.0),
            (1e-12, False, False, None),
            (1e-6, True, True, None),
        ):
            replay = Replay(recorded, foreign=foreign, same_options=same)
            assert self.ask(replay, 0) == 0.0
            assert self.ask(replay, 99, np.full(3, 1.0 + apart)) == answer
            assert replay.tolerant == (answer is not None)


def test_a_journal_that_is_none_is_refused(tmp_path):
    """`load` says what is wrong with a file."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(RecordError, match="is not a journal"):
        Journal(path, os.open(path, os.O_RDWR)).load()


class TestSyncing:
    def until(self, condition):
        for _ in range(3000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError("it did not come")

    def test_a_thread_waits_for_the_disk(self, shelf, monkeypatch):
        """Whether or not anything is written again; only where there is something to wait for."""
        monkeypatch.setattr(journal, "SYNC", 0.01)
        plain, synced = os.fdatasync, []
        monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), plain(fd)))
        made = shelf.create(FIT, KEY, RUN, start())
        self.until(lambda: len(synced) == 1 and not made._unsynced)
        made.write(b"more")
        self.until(lambda: len(synced) == 2)
        thread = made._pulse._thread
        made.close()
        assert not thread.is_alive()
        assert len(synced) == 2

    def test_a_disk_that_fails_is_told_to_who_writes_next(self, shelf, monkeypatch):
        monkeypatch.setattr(journal, "SYNC", 0.01)

        def fail(_):
            raise OSError(errno.EIO, "the disk has failed")

        monkeypatch.setattr(os, "fdatasync", fail)
        made = shelf.create(FIT, KEY, RUN, start())
        self.until(lambda: made._trouble is not None)
        with pytest.raises(OSError, match="the disk has failed"):
            made.write(b"more")
        made.close()
