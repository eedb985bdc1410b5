"""What every backend must do; a backend's test module subclasses these and makes backends.

``BackendContract`` is a suite of tests over a fixture ``backend``; `machine_over` makes a
hypothesis state machine that drives a backend and a plain dict side by side.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from warmstart.backends import MAX_KEY, Backend, Batch, Durability
from warmstart.backends.lmdb import LmdbBackend
from warmstart.errors import ArgumentError


class BackendContract:
    """Tests over a fixture ``backend`` that gives an empty backend."""

    def test_it_is_a_backend(self, backend):
        """The object offers what the protocol lists."""
        assert isinstance(backend, Backend)
        assert isinstance(backend.address, str)

    def test_it_tells_the_time(self, backend):
        """In seconds since the epoch; servers of tests are on this machine."""
        assert abs(backend.now() - time.time()) < 60.0

    def test_what_was_put_is_read(self, backend):
        """`get` returns key, value, size and the batch's sequence number; None if absent."""
        assert backend.get(b"a") is None
        sequence = backend.apply(Batch({b"a": b"1", b"b": b"22"}))
        assert tuple(backend.get(b"b")) == (b"b", b"22", sequence, 2)
        assert backend.get(b"c") is None

    def test_scans_are_in_the_order_of_bytes(self, backend):
        """A scan gives exactly the keys with the prefix, in order, after `after`."""
        keys = [b"a", b"a\0", b"a\0b", b"aa", b"ab", b"b", b"\1", b"\xff", b"\xff\xff"]
        backend.apply(Batch({key: key for key in keys}))
        assert [i.key for i in backend.scan(b"")] == sorted(keys)
        assert [i.key for i in backend.scan(b"a")] == [b"a", b"a\0", b"a\0b", b"aa", b"ab"]
        assert [i.key for i in backend.scan(b"a", after=b"a\0")] == [b"a\0b", b"aa", b"ab"]
        assert [i.key for i in backend.scan(b"a", after=b"a0")] == [b"aa", b"ab"]
        assert [i.key for i in backend.scan(b"a", after=b"b")] == []
        assert [i.key for i in backend.scan(b"", after=b"b")] == [b"\xff", b"\xff\xff"]
        assert backend.scan(b"zz") == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_pages_cover_everything_once(self, backend, limit):
        """Pages of any length, each after the last key, give every pair once."""
        backend.apply(Batch({b"k%03d" % n: b"old" for n in range(0, 30, 2)}))
        backend.flush()
        backend.apply(Batch({b"k%03d" % n: b"new" for n in range(0, 30, 3)}))
        backend.apply(Batch(deletes=[b"k%03d" % n for n in range(0, 30, 5)]))
        expected = {}
        for n in range(30):
            if n % 5 and not (n % 2 and n % 3):
                expected[b"k%03d" % n] = b"old" if n % 3 else b"new"
        seen, last = [], b""
        while page := backend.scan(b"k", after=last, limit=limit):
            assert len(page) <= limit
            seen += page
            last = page[-1].key
        assert {i.key: i.value for i in seen} == expected
        assert [i.key for i in seen] == sorted(expected)

    def test_heads_are_cut_and_sizes_whole(self, backend):
        """With `head` a scan returns the first bytes and tells the whole size."""
        backend.apply(Batch({b"a": b"0123456789", b"b": b"x"}))
        cut = backend.scan(b"", head=4)
        assert [(i.value, i.size) for i in cut] == [(b"0123", 10), (b"x", 1)]

    def test_a_batch_happens_together(self, backend):
        """Puts and deletes of a batch have one number; a failed condition leaves nothing."""
        first = backend.apply(Batch({b"a": b"1", b"b": b"1"}))
        second = backend.apply(Batch({b"c": b"2"}, deletes=[b"a", b"absent"]))
        assert second > first
        assert [(i.key, i.sequence) for i in backend.scan(b"")] == [(b"b", first), (b"c", second)]
        before = backend.scan(b"")
        assert backend.apply(Batch({b"d": b"3"}, [b"b"], {b"c": first})) is None
        assert backend.scan(b"") == before

    def test_conditions(self, backend):
        """A condition is the sequence number that a key still has, or None for no key."""
        assert backend.apply(Batch({b"a": b"1"}, conditions={b"a": None}))
        assert backend.apply(Batch({b"a": b"2"}, conditions={b"a": None})) is None
        sequence = backend.get(b"a").sequence
        backend.flush()
        assert backend.apply(Batch({b"a": b"3"}, conditions={b"a": sequence}))
        assert backend.apply(Batch({b"a": b"4"}, conditions={b"a": sequence})) is None
        backend.apply(Batch(deletes=[b"a"]))
        assert backend.apply(Batch({b"a": b"5"}, conditions={b"a": None}))

    def test_numbers_only_grow(self, backend):
        """Every batch has a higher number than all before, flushed, closed and opened again."""
        numbers = []
        for n in range(20):
            numbers.append(backend.apply(Batch({b"k": b"%d" % n})))
            if n % 3 == 0:
                backend.flush()
        assert numbers == sorted(set(numbers))

    def test_the_version_changes_with_every_batch(self, backend):
        """`version` is the same as long as nothing was applied, and new after each batch."""
        seen = []
        for n in range(5):
            backend.apply(Batch({b"k": b"%d" % n}))
            backend.flush()
            version = backend.version()
            backend.get(b"k")
            backend.scan(b"")
            assert backend.version() == version
            assert version not in seen
            seen.append(version)

    def test_both_durabilities_are_visible_at_once(self, backend):
        """What was applied is read by the next call, whatever it survives."""
        for n, durability in enumerate(Durability):
            backend.apply(Batch({b"k": b"%d" % n}), durability)
            assert backend.get(b"k").value == b"%d" % n

    def test_large_values(self, backend):
        """Megabytes come back as they were."""
        value = bytes(range(256)) * 20_000
        backend.apply(Batch({b"k": value}))
        assert backend.get(b"k").value == value
        backend.flush()
        assert backend.get(b"k").value == value

    @pytest.mark.parametrize(
        "batch",
        [
            Batch({b"": b"x"}),
            Batch({b"\0a": b"x"}),
            Batch({b"k" * (MAX_KEY + 1): b"x"}),
            Batch({"k": b"x"}),
            Batch({b"k": b""}),
            Batch({b"k": "x"}),
            Batch({b"k": None}),
            Batch(deletes=[b""]),
            Batch(conditions={b"": 1}),
            Batch({b"k": b"x"}, [b"k"]),
        ],
    )
    def test_wrong_batches_are_refused(self, backend, batch):
        """Keys and values that no engine could keep raise, and nothing happens."""
        with pytest.raises(ArgumentError):
            backend.apply(batch)
        assert backend.scan(b"") == []

    def test_wrong_durability_is_refused(self, backend):
        """Only a `Durability` is one."""
        with pytest.raises(ArgumentError, match="durability"):
            backend.apply(Batch({b"k": b"x"}), "power")

    def test_the_longest_key(self, backend):
        """A key of `MAX_KEY` bytes is kept."""
        key = b"k" * MAX_KEY
        backend.apply(Batch({key: b"x"}))
        backend.flush()
        assert backend.get(key).value == b"x"

    def test_pages_of_rows_old_and_new(self, backend):
        """Whatever was there before a flush, or is written or deleted since: pages are whole."""
        old, new, gone, expected = {}, {}, [], {}
        for number, states in enumerate(itertools.product(range(5), repeat=4)):
            prefix = b"p%03d" % number
            rows = expected[prefix] = []
            for place, state in enumerate(states):
                key = prefix + b"%d" % place
                if state in {1, 2, 3}:
                    old[key] = b"old"
                if state == 2:
                    gone.append(key)
                elif state in {3, 4}:
                    new[key] = b"new"
                if state in {1, 3, 4}:
                    rows.append((key, b"old" if state == 1 else b"new"))
        backend.apply(Batch(old))
        backend.flush()
        backend.apply(Batch(new, gone))
        for prefix, rows in expected.items():
            for limit in (1, 2, 3, None):
                found = backend.scan(prefix, limit=limit)
                assert [(item.key, item.value) for item in found] == rows[:limit]
            found = backend.scan(prefix, after=prefix + b"0", limit=2)
            assert [item.key for item in found] == [k for k, _ in rows if k > prefix + b"0"][:2]

    def test_locks_exclude(self, backend):
        """A named lock is held by one thread at a time; another name is another lock."""
        seen = []

        def other():
            with backend.lock("a", timeout=0) as got:
                seen.append(got)
            with backend.lock("b", timeout=0) as got:
                seen.append(got)

        with backend.lock("a") as got:
            assert got
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert seen == [False, True]
        with backend.lock("a", timeout=0.1) as got:
            assert got

    def test_size_follows_what_is_there(self, backend):
        """The size grows with what is put, and comes down when that is deleted."""
        empty = backend.size()
        backend.apply(Batch({b"k%d" % n: bytes([n]) * 10_000 for n in range(100)}))
        backend.flush()
        full = backend.size()
        assert full - empty >= 1_000_000
        backend.apply(Batch(deletes=[b"k%d" % n for n in range(100)]))
        backend.flush()
        assert backend.size() - empty < 0.1 * (full - empty)

    def test_a_sound_backend_verifies(self, backend):
        """`verify` finds nothing in files that are sound."""
        backend.apply(Batch({b"k%d" % n: bytes([n]) * 5000 for n in range(50)}))
        assert backend.verify() == []
        backend.flush()
        assert backend.verify() == []

    def test_threads(self, backend):
        """Eight threads adding to one counter under conditions lose nothing."""
        backend.apply(Batch({b"n": b"0"}))

        def work():
            for _ in range(50):
                while True:
                    item = backend.get(b"n")
                    batch = Batch({b"n": b"%d" % (int(item.value) + 1)}, (), {b"n": item.sequence})
                    if backend.apply(batch) is not None:
                        break

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backend.get(b"n").value == b"400"


def machine_over(make):
    """Return a state machine that drives a backend from `make` against a dict."""
    names = st.binary(min_size=1, max_size=3).filter(lambda key: key[0] != 0) | st.builds(
        bytes, st.lists(st.sampled_from(b"abc"), min_size=1, max_size=3)
    )

    class Machine(RuleBasedStateMachine):
        keys = Bundle("keys")

        def __init__(self):
            super().__init__()
            self.backend, self.reopen, self.discard = make()
            self.model = {}

        @rule(target=keys, key=names)
        def name(self, key):
            return key

        @rule(
            puts=st.dictionaries(keys, st.binary(min_size=1, max_size=20), max_size=3),
            deletes=st.lists(keys, max_size=2),
            durability=st.sampled_from(Durability),
        )
        def write(self, puts, deletes, durability):
            deletes = [key for key in deletes if key not in puts]
            sequence = self.backend.apply(Batch(puts, deletes), durability)
            for key in deletes:
                self.model.pop(key, None)
            self.model.update({key: (value, sequence) for key, value in puts.items()})

        @rule(key=keys, right=st.booleans())
        def write_if(self, key, right):
            held = self.model[key][1] if key in self.model else None
            claimed = held if right else (held or 0) + 1
            sequence = self.backend.apply(Batch({key: b"if"}, conditions={key: claimed}))
            assert (sequence is not None) == right
            if right:
                self.model[key] = (b"if", sequence)

        @rule(prefix=st.binary(max_size=1), after=st.binary(max_size=2), limit=st.integers(1, 4))
        def page(self, prefix, after, limit):
            found = self.backend.scan(prefix, after=after, limit=limit)
            expected = sorted(k for k in self.model if k.startswith(prefix) and k > after)[:limit]
            assert [(i.key, i.value, i.sequence) for i in found] == [
                (k, *self.model[k]) for k in expected
            ]

        @rule()
        def flush(self):
            self.backend.flush()

        @rule()
        def close_and_open(self):
            self.backend = self.reopen(self.backend)

        @invariant()
        def agrees(self):
            found = {i.key: (i.value, i.sequence) for i in self.backend.scan(b"")}
            assert found == self.model

        def teardown(self):
            self.discard(self.backend)

    return Machine


# What children of other processes do; here, since a spawned child must be able to import it.


def write_one(place, key):
    backend = LmdbBackend(place)
    backend.apply(Batch({key: b"child"}))
    assert backend.get(b"parent").value == b"parent"
    backend.close()


def write_shared(backend, key):
    backend.apply(Batch({key: b"child"}))
    assert backend.get(b"parent").value == b"parent"
