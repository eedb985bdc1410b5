"""The store: what ranks first, what is kept, what goes, over every backend."""

from __future__ import annotations

import math
import pickle
import threading
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import (
    ArgumentError,
    Entry,
    EntryKind,
    Fingerprint,
    Fingerprinter,
    FitSpec,
    KeyLookupError,
    Store,
    StoreError,
    host,
    optimize,
    using,
)
from warmstart.backends import Batch
from warmstart.fingerprint import environment
from warmstart.rows import RunInfo, entry_row, info_row, small
from warmstart.session import new_run_id, process_row

DAY = 86_400.0


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self, now: float = 1.8e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key_of(name: object) -> Fingerprint:
    return Fingerprinter().absorb("name", name).digest()


KEY = key_of("a fit")


def entry(
    objective: float | None = None,
    *,
    kind: EntryKind = EntryKind.CHECKPOINT,
    key: Fingerprint = KEY,
    run: str | None = None,
    payload: object = b"x",
    producer: str | None = None,
    written: float = 1.8e9,
) -> Entry:
    return Entry(
        key=key,
        run=run or new_run_id(),
        kind=kind,
        payload=payload,
        objective=objective,
        producer=environment() if producer is None else producer,
        written=written,
    )


def final(objective: float | None = None, **options: object) -> Entry:
    return entry(objective, kind=EntryKind.FINAL, **options)


@pytest.fixture(params=["memory", "lmdb"])
def where(request, tmp_path):
    return ":memory:" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(where, clock):
    with Store(where, clock=clock) as store:
        yield store


def damage(store: Store, victim: Entry, slot: bytes) -> None:
    """Flip a bit in the middle of a record, below everything that could notice."""
    row = entry_row(victim.key, victim.run, slot)
    value = bytearray(store.backend.get(row).value)
    value[-40] ^= 1
    store.backend.apply(Batch({row: bytes(value)}))


class TestRank:
    """Which entry is the best."""

    def test_an_unknown_key_is_a_miss(self, store):
        """A key without entries gives None, for best and latest."""
        assert store.best(KEY) is None
        assert store.latest(KEY) is None

    def test_a_final_outranks_a_better_checkpoint(self, store):
        """A final is the answer even if another run's checkpoint has a lower objective."""
        store.put(final(2.0))
        store.put(entry(1.0))
        assert store.best(KEY).kind is EntryKind.FINAL

    def test_the_newest_of_finals_wins(self, store):
        """Of two finals the one written last is returned, even with a higher objective."""
        store.put(final(1.0, payload=b"old"))
        store.put(final(2.0, payload=b"new"))
        assert store.best(KEY).payload == b"new"

    def test_the_lowest_objective_among_checkpoints_wins(self, store):
        """Among checkpoints the lowest objective is best, and unknown objectives come last."""
        for objective in (3.0, 1.0, None, 2.0):
            store.put(entry(objective))
        assert store.best(KEY).objective == 1.0

    def test_equal_objectives_go_to_the_newest(self, store):
        """Equal objectives are ordered by writing."""
        store.put(entry(1.0, payload=b"old"))
        store.put(entry(1.0, payload=b"new"))
        assert store.best(KEY).payload == b"new"

    def test_latest_ignores_objectives(self, store):
        """`latest` returns the last checkpoint written, however bad."""
        store.put(entry(1.0))
        store.put(entry(9.0, payload=b"late"))
        assert store.latest(KEY).payload == b"late"

    def test_latest_prefers_a_final(self, store):
        """A sibling's early checkpoint does not hide a final."""
        store.put(final(1.0, payload=b"answer"))
        store.put(entry(0.5))
        assert store.latest(KEY).payload == b"answer"

    def test_a_foreign_final_ranks_as_a_checkpoint(self, store):
        """The final of another producer is a start, never an answer, and keeps its objective."""
        store.put(final(1.0, producer="numpy 1.0", payload=b"foreign"))
        found = store.best(KEY)
        assert (found.kind, found.payload) == (EntryKind.CHECKPOINT, b"foreign")
        store.put(entry(0.5, payload=b"better"))
        assert store.best(KEY).payload == b"better"
        assert store.best(KEY, producer="numpy 1.0").kind is EntryKind.FINAL

    def test_sequence_orders_writes_not_the_clock(self, store, clock):
        """A clock that steps back does not make an older final the newest."""
        store.put(final(payload=b"first", written=clock.now))
        store.put(final(payload=b"second", written=clock.now - DAY))
        assert store.best(KEY).payload == b"second"

    def test_reading_moves_no_order(self, store):
        """An entry that was read does not become the newest, and a read writes nothing."""
        store.put(final(payload=b"old"))
        store.put(final(payload=b"new"))
        rows = store.backend.scan(b"")
        for _ in range(5):
            store.best(KEY)
            store.entries(KEY)
        assert store.backend.scan(b"") == rows

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["checkpoint", "final", "foreign"]),
                st.none() | st.sampled_from([-1.0, 0.0, 1.0, 1e-300]),
            ),
            max_size=7,
        )
    )
    def test_best_agrees_with_the_rule_written_out(self, writes):
        """For any history of one entry a run, best is what the documentation's rule picks."""
        store = Store(":memory:")
        history = []
        for number, (kind, objective) in enumerate(writes):
            made = entry(
                objective,
                kind=EntryKind.CHECKPOINT if kind == "checkpoint" else EntryKind.FINAL,
                producer="foreign" if kind == "foreign" else None,
                payload=number.to_bytes(2, "big"),
            )
            store.put(made)
            history.append((kind, objective, made.payload))
        finals = [payload for kind, _, payload in history if kind == "final"]
        if finals:
            expected = finals[-1]
        elif history:
            known = [h for h in history if h[1] is not None]
            lowest = min((h[1] for h in known), default=None)
            expected = [h for h in history if h[1] == lowest][-1][2]
        found = store.best(KEY)
        assert (found.payload if found else None) == (expected if history else None)


class TestKept:
    """What a process remembers of a store that others write to is never out of date."""

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["put", "put", "final", "else", "delete", "ours"]),
                st.integers(0, 2),
                st.integers(-3, 3),
            ),
            max_size=25,
        )
    )
    def test_it_is_what_a_fresh_look_would_find(self, steps):
        """Whatever is written in between, by whom, the kept answer is that of the rows."""
        ours, theirs = Store(":memory:"), Store(":memory:")
        theirs.backend = ours.backend
        runs = [new_run_id() for _ in range(3)]
        for number, (what, run, objective) in enumerate(steps):
            if what in {"put", "final", "ours"}:
                kind = EntryKind.FINAL if what == "final" else EntryKind.CHECKPOINT
                made = entry(float(objective), kind=kind, run=runs[run], payload=number)
                (ours if what == "ours" else theirs).put(made)
            elif what == "else":
                theirs.put(final(key=key_of(number)))
            else:
                theirs.delete(KEY)
            kept = ours.best(KEY)
            fresh = Store(":memory:")
            fresh.backend = ours.backend
            assert kept == fresh.best(KEY)

    def test_a_write_elsewhere_does_not_cost_the_record(self, store, monkeypatch):
        """After another fit was stored the entry is not read again; after its own change it is."""
        store.put(entry(1.0, run="a" * 32))
        assert store.best(KEY) == store.best(KEY)  # the second time it is kept
        reads = []
        read = store._read
        monkeypatch.setattr(store, "_read", lambda *given: reads.append(given) or read(*given))
        store.put(final(key=key_of("another")))
        assert store.best(KEY).objective == 1.0
        assert not reads
        store.put(entry(0.5, run="a" * 32))
        assert store.best(KEY).objective == 0.5
        assert len(reads) == 1

    def test_a_run_written_to_by_two_keeps_its_best(self, where):
        """Two who write checkpoints of one run, each knowing its own, never lose the best."""
        with Store(where) as ours, Store(where) as theirs:
            theirs.backend = ours.backend
            for store, objective in ((ours, 3.0), (theirs, 1.0), (ours, 2.0), (theirs, 4.0)):
                assert store.put(entry(objective, run="a" * 32))
            assert ours.best(KEY).objective == 1.0
            assert ours.latest(KEY).objective == 4.0
            assert theirs.put(final(9.0, run="a" * 32))
            assert not ours.put(entry(0.0, run="a" * 32))


class TestSlots:
    """A run has its best and its latest, then its final."""

    def test_a_worse_later_checkpoint_never_hides_the_best(self, store):
        """Best and latest of one run are both kept, in two slots."""
        run = new_run_id()
        for objective in (3.0, 1.0, 2.0, 5.0):
            store.put(entry(objective, run=run))
        assert store.best(KEY).objective == 1.0
        assert store.latest(KEY).objective == 5.0
        assert len(store.entries(KEY)) == 2

    def test_a_better_checkpoint_takes_both_places(self, store):
        """After an improvement the best is also the latest."""
        run = new_run_id()
        for objective in (3.0, 4.0, 1.0):
            store.put(entry(objective, run=run))
        assert [e.objective for e in store.entries(KEY)] == [1.0]

    def test_a_final_replaces_the_runs_checkpoints(self, store):
        """A run that finished leaves one entry."""
        run = new_run_id()
        store.put(entry(3.0, run=run))
        store.put(entry(4.0, run=run))
        store.put(final(1.0, run=run))
        assert [e.kind for e in store.entries(KEY)] == [EntryKind.FINAL]

    def test_a_late_checkpoint_never_demotes_a_final(self, store):
        """A checkpoint after the run's final is refused."""
        run = new_run_id()
        store.put(final(1.0, run=run))
        assert not store.put(entry(0.1, run=run))
        assert store.best(KEY).kind is EntryKind.FINAL

    def test_a_key_keeps_a_bounded_number_of_runs(self, store):
        """A fit killed a hundred times leaves eight runs, the best among them."""
        for number in range(100):
            store.put(entry(abs(number - 40.0), payload=b"%d" % number))
        entries = store.entries(KEY)
        assert len(entries) == 8
        assert entries[0].payload == b"40"
        assert store.latest(KEY).payload == b"99"

    def test_a_run_that_becomes_the_best_does_not_make_room(self, store, monkeypatch):
        """The worst of eight runs improves while a ninth is about to take its place: it stays."""
        runs = [new_run_id() for _ in range(8)]
        for objective, run in enumerate(runs):
            store.put(entry(float(objective), run=run))
        plain, late = store.backend.scan, [entry(-1.0, run=runs[-1])]

        def scan(*arguments, **options):
            found = plain(*arguments, **options)
            if late:
                store.put(late.pop())
            return found

        monkeypatch.setattr(store.backend, "scan", scan)
        assert store.put(entry(5.5))
        assert store.best(KEY).objective == -1.0


class TestDamage:
    """Bytes are never trusted."""

    def test_a_row_that_tells_of_another_run(self, store):
        """It is no run's: passed over where runs are listed, and unknown where it is asked for."""
        info = RunInfo(run="ab" * 16, status="completed", key="", started=1.0)
        store.backend.apply(Batch({info_row("cd" * 16): small(info)}))
        assert list(store.runs()) == []
        assert store.run_info("cd" * 16) is None
        store.gc()

    @pytest.mark.parametrize("told", ["x", None, [1.0], {}, math.inf])
    def test_a_process_that_tells_nonsense(self, store, told):
        """Rows of processes under a right checksum, of any content: a sweep goes on."""
        store.put(entry(1.0))
        store.backend.apply(Batch({process_row("ab" * 8): small({"told": told})}))
        store.gc()
        assert store.best(KEY).objective == 1.0

    def test_a_damaged_winner_is_skipped_for_the_next_best(self, store):
        """One damaged record does not become a miss while another is whole."""
        good, bad = entry(2.0), entry(1.0)
        store.put(good)
        store.put(bad)
        damage(store, bad, b"b")
        assert store.best(KEY).objective == 2.0
        assert store.stats().counters["damaged"] == 1

    def test_a_damaged_record_is_swept(self, store):
        """What was met damaged is deleted by the next flush, and by no read."""
        bad = entry(1.0)
        store.put(bad)
        damage(store, bad, b"b")
        assert store.best(KEY) is None
        assert len(store.backend.scan(b"e")) == 1
        store.flush()
        assert store.backend.scan(b"e") == []

    def test_a_record_in_another_row_is_no_entry_of_it(self, store):
        """A record copied under another key is refused: it echoes its own."""
        store.put(final(1.0))
        (item,) = store.backend.scan(b"e")
        other = key_of("another fit")
        store.backend.apply(Batch({entry_row(other) + item.key[33:]: item.value}))
        assert store.best(other) is None
        assert store.stats().counters["damaged"] == 1

    def test_verify_finds_and_repairs(self, store):
        """`verify` names each damaged record; with repair it is gone and the store is sound."""
        good, bad = final(2.0), entry(1.0, key=key_of("other"))
        store.put(good)
        store.put(bad)
        assert store.verify().sound
        damage(store, bad, b"b")
        report = store.verify()
        assert not report.sound
        assert len(report.damaged) == 1
        assert store.verify(repair=True).repaired == 1
        assert store.verify().sound
        assert store.best(KEY) is not None

    def test_a_newer_record_is_left_alone(self, store):
        """A record of a format to come is a miss, and neither sweep nor repair deletes it."""
        made = final(1.0)
        store.put(made)
        row = entry_row(KEY, made.run, b"f")
        value = bytearray(store.backend.get(row).value)
        value[4:6] = (9999).to_bytes(2, "little")
        store.backend.apply(Batch({row: bytes(value)}))
        assert store.best(KEY) is None
        store.gc()
        report = store.verify(repair=True)
        assert report.newer == 1
        assert report.sound
        assert store.backend.get(row) is not None


class TestBounds:
    """Everything is bounded: bytes and age."""

    def test_an_entry_over_its_budget_is_refused(self, where):
        """A record larger than `entry_budget` is refused with False and counted."""
        with Store(where, entry_budget=10_000) as store:
            assert not store.put(final(payload=np.random.default_rng(0).bytes(20_000)))
            assert store.best(KEY) is None
            assert store.stats().counters["refused"] == 1

    def test_a_thousand_saves_end_within_the_budget(self, where):
        """Writing four times the budget stays within it, and the last entry survives."""
        rng = np.random.default_rng(1)
        with Store(where, size_budget=1 << 20) as store:
            for number in range(1000):
                assert store.put(final(key=key_of(number), payload=rng.bytes(4000)))
            assert store.backend.size() <= 1 << 20
            assert store.best(key_of(999)) is not None
            assert store.stats().counters["evicted"] > 500

    def test_never_used_entries_go_first_then_the_least_recently_used(self, where, clock):
        """Eviction takes the unused in order of writing, then the used in order of use."""
        rng = np.random.default_rng(2)
        with Store(where, clock=clock) as store:
            for number in range(60):
                store.put(final(key=key_of(number), payload=rng.bytes(20_000)))
            for number in (3, 1, 2):
                clock.now += 60.0
                store.best(key_of(number))
            store.size_budget = store.backend.size() // 12
            store.gc()
            left = {n for n in range(60) if store.entries(key_of(n))}
            assert left
            assert left <= {1, 2, 3} or {1, 2, 3} <= left
            assert not left & set(range(4, 30))

    def test_what_is_pinned_during_a_sweep_stays(self, where, monkeypatch):
        """A fit that is pinned after a sweep has looked at it is not swept."""
        with Store(where, size_budget=1, entry_budget=10_000) as store:
            store.put(final(key=key_of("pinned")))
            plain = store.backend.scan

            def scan(prefix, **options):
                found = plain(prefix, **options)
                if prefix == b"e":
                    store.pin(key_of("pinned"))
                return found

            monkeypatch.setattr(store.backend, "scan", scan)
            store.gc()
            assert store.best(key_of("pinned")) is not None

    def test_pinned_entries_stay(self, where):
        """A pinned fit survives any budget, and goes when it is unpinned."""
        rng = np.random.default_rng(3)
        with Store(where) as store:
            for number in range(40):
                store.put(final(key=key_of(number), payload=rng.bytes(20_000)))
            store.pin(key_of(0))
            assert store.pinned(key_of(0))
            store.size_budget = 300_000
            store.gc()
            assert store.entries(key_of(0))
            store.pin(key_of(0), pinned=False)
            assert not store.pinned(key_of(0))

    def test_an_entry_expires_after_its_last_use(self, store, clock):
        """An entry lives for `ttl` from the last use, not from the writing."""
        store.put(final(written=clock.now))
        clock.now += 20 * DAY
        assert store.best(KEY) is not None
        clock.now += 20 * DAY
        assert store.best(KEY) is not None
        store.flush()
        clock.now += 31 * DAY
        assert store.best(KEY) is None

    def test_gc_sweeps_what_is_expired(self, store, clock):
        """`gc` deletes expired entries and all that was told about them."""
        store.put(final(written=clock.now))
        store.put(final(key=key_of("pinned"), written=clock.now))
        store.pin(key_of("pinned"))
        clock.now += 31 * DAY
        assert store.gc() == {"expired": 1}
        assert store.entries(KEY) == []
        assert store.best(key_of("pinned")) is not None

    def test_no_ttl_means_for_ever(self, where, clock):
        """With ``ttl=None`` nothing expires."""
        with Store(where, ttl=None, clock=clock) as store:
            store.put(final(written=clock.now))
            clock.now += 10_000 * DAY
            assert store.best(KEY) is not None


class TestKeys:
    """Names of fits for people."""

    def test_an_abbreviated_key_is_resolved(self, store):
        """Four digits or more stand for the one key that begins with them."""
        store.put(final())
        text = str(KEY)
        assert store.resolve(text[:5]) == KEY
        assert store.resolve(text) == KEY
        assert store.resolve(text[:8].upper()) == KEY

    def test_an_ambiguous_or_unknown_key_is_refused(self, store):
        """Digits that begin several keys, or none, raise an error that says so."""
        for tail in (b"\x01", b"\x02"):
            store.put(final(key=Fingerprint(b"\xab\xcd" + tail * 30)))
        with pytest.raises(KeyLookupError, match="several keys"):
            store.resolve("abcd")
        with pytest.raises(KeyLookupError, match="no key"):
            store.resolve("0123")
        for wrong in ("abc", "xyzw", "", "a" * 65, 7):
            with pytest.raises(ArgumentError, match="hexadecimal"):
                store.resolve(wrong)

    def test_explain_names_the_arguments_that_differ(self, store):
        """Two remembered fits are told apart by argument name."""
        specs = [FitSpec(model="m", settings={"method": "BFGS", "tol": tol}) for tol in (0.1, 0.2)]
        for spec in specs:
            with store.session(spec) as session:
                session.finalize(b"x")
        (difference,) = store.explain(specs[0].key, specs[1].key)
        assert (difference.part, difference.name) == ("settings", "tol")
        with pytest.raises(KeyLookupError, match="does not say"):
            store.explain(specs[0].key, KEY)

    def test_keys_lists_each_key_once(self, store):
        """All keys with entries are listed in order, however many entries they have."""
        for number in range(30):
            store.put(entry(1.0, key=key_of(number)))
            store.put(entry(2.0, key=key_of(number)))
        assert list(store.keys()) == sorted(key_of(number) for number in range(30))

    def test_delete_forgets_everything_about_a_key(self, store):
        """After `delete` no row mentions the key."""
        spec = FitSpec(model="m")
        with store.session(spec) as session:
            session.finalize(b"x")
        store.best(spec.key)
        store.flush()
        store.pin(spec.key)
        assert store.delete(spec.key) == 1
        assert not [i for i in store.backend.scan(b"") if spec.key.digest in i.key]
        assert store.best(spec.key) is None
        assert store.delete(spec.key) == 0

    def test_stats_count(self, store):
        """`stats` counts keys, entries by kind, pins and bytes."""
        store.put(final())
        store.put(entry(1.0, key=key_of(1)))
        store.pin(KEY)
        stats = store.stats()
        assert (stats.keys, stats.entries, stats.finals, stats.checkpoints) == (2, 2, 1, 1)
        assert stats.pinned == 1
        assert 0 < stats.bytes < stats.budget
        assert stats.counters["written"] == 2


class TestPlace:
    """Where a store is, and how it travels."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (7, "folder"),
            (b"bytes", "folder"),
            ("", "folder"),
            ("a\0b", "folder"),
            ("mysql://host", "not a kind of store that is known"),
            ("s3://bucket", "not a kind of store that is known"),
            ("redis:/host", "'redis:/host' lacks slashes .*'redis://...'"),
            (Path("dir:///shared/fits"), "lacks slashes"),
        ],
    )
    def test_a_wrong_place_is_refused_at_once(self, wrong, message):
        """Places of the wrong type and unknown URLs raise when the store is made."""
        with pytest.raises(ArgumentError, match=message):
            Store(wrong)

    @pytest.mark.parametrize(
        "options",
        [
            {"size_budget": 0},
            {"size_budget": "1 GiB"},
            {"size_budget": True},
            {"entry_budget": -1},
            {"ttl": 0},
            {"ttl": -1.0},
            {"ttl": "30 days"},
            {"ttl": timedelta(0)},
            {"read_only": 1},
            {"strict": "yes"},
            {"clock": 7},
        ],
    )
    def test_wrong_options_are_refused_at_once(self, options):
        """Each option says what it expects."""
        with pytest.raises(ArgumentError, match=next(iter(options))):
            Store(":memory:", **options)

    def test_nothing_is_created_before_use(self, tmp_path):
        """A store that is made, asked for its text and dropped leaves no trace."""
        place = tmp_path / "deep" / "store"
        repr(Store(place))
        assert not place.parent.exists()

    def test_the_environment_names_the_default_place(self, tmp_path, monkeypatch):
        """``$WARMSTART_STORE`` goes before the platform's cache folder."""
        monkeypatch.setenv("WARMSTART_STORE", str(tmp_path / "env"))
        assert Store().address == str(tmp_path / "env")
        monkeypatch.delenv("WARMSTART_STORE")
        assert "warmstart" in Store().address

    def test_two_places_never_share_entries(self, tmp_path):
        """What one folder has, another has not."""
        with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
            a.put(final())
            assert b.best(KEY) is None

    def test_two_stores_on_one_folder_share_at_once(self, tmp_path):
        """An entry written through one object is read through another, also by a relative path."""
        with Store(tmp_path / "a") as a, Store(f"{tmp_path}/b/../a") as b:
            a.put(final(payload=b"shared"))
            assert b.best(KEY).payload == b"shared"

    def test_a_store_travels_as_its_address(self, tmp_path):
        """Pickling keeps the options and reaches the same entries."""
        with Store(tmp_path / "s", size_budget=12345678, ttl=5.5, strict=True) as store:
            store.put(final(payload=b"there", written=store.clock()))
            copy = pickle.loads(pickle.dumps(store))
            assert (copy.size_budget, copy.ttl, copy.strict) == (12345678, 5.5, True)
            assert copy.best(KEY).payload == b"there"

    def test_a_memory_store_does_not_travel(self):
        """Pickling a store in memory says that it needs a folder."""
        with pytest.raises(TypeError, match="folder"):
            pickle.dumps(Store(":memory:"))

    def test_a_read_only_store_goes_on_answering(self, tmp_path):
        """What it cannot keep is no trouble: no warning, and the next hit is one."""

        def bowl(x, at):
            return float(((x - at) ** 2).sum())

        with Store(tmp_path / "s") as store, using(store=store):
            optimize.minimize(bowl, [0.0, 0.0], args=(1.0,))
        with Store(tmp_path / "s", read_only=True) as store, using(store=store) as fits:
            for at in (1.0, 2.0, 1.0):
                optimize.minimize(bowl, [0.0, 0.0], args=(at,))
        assert [fit.source for fit in fits] == ["final", "cold", "final"]
        assert fits[1].why == "the store is read only"

    def test_a_read_only_store_serves_hits_and_writes_nothing(self, tmp_path):
        """Reading through ``read_only=True`` works, writing raises."""
        with Store(tmp_path / "s") as store:
            store.put(final(payload=b"there"))
        with Store(tmp_path / "s", read_only=True) as store:
            assert store.best(KEY).payload == b"there"
            store.flush()
            with pytest.raises(StoreError, match="read"):
                store.put(final())

    def test_a_closed_store_is_not_opened_by_its_own_thread(self, tmp_path, monkeypatch):
        """A process that takes long to say what it is finds the store closed, and lets it be."""
        goes_on = threading.Event()
        monkeypatch.setattr(host, "describe", lambda: goes_on.wait(60.0) and {})
        store = Store(tmp_path / "store")
        with store.session(KEY) as session:
            session.finalize(b"x")
        thread = store.told[1]
        monkeypatch.setattr(thread, "join", lambda timeout: None)
        store.close()
        goes_on.set()
        monkeypatch.undo()
        thread.join()
        assert store.backend._shared is None

    def test_a_closed_store_opens_again(self, where):
        """Using a store after `close` works; a folder still has its entries."""
        store = Store(where)
        store.put(final())
        store.close()
        assert (store.best(KEY) is not None) or where == ":memory:"
        store.put(final())
        assert store.best(KEY) is not None
        store.close()


class TestLaw2:
    """The store never fails a fit."""

    @pytest.fixture
    def broken(self, tmp_path):
        file = tmp_path / "file"
        file.write_text("not a folder")
        return file

    def test_trouble_is_one_warning(self, broken):
        """A place that cannot be used costs one warning; after it every operation is quiet."""
        store = Store(broken)
        with pytest.warns(UserWarning, match="fits go on without it"):
            assert store.attempt(lambda: store.best(KEY), None) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.attempt(lambda: store.best(KEY), None) is None

    def test_strict_raises(self, broken):
        """With ``strict=True`` the same trouble is an error."""
        store = Store(broken, strict=True)
        with pytest.raises(StoreError):
            store.attempt(lambda: store.best(KEY), None)

    def test_a_full_disk_stops_only_writing(self, monkeypatch):
        """After a write found no room, hits are still served and writes are not tried again."""
        from warmstart import StoreFullError

        store = Store(":memory:")
        store.put(final(payload=b"there"))
        tries = []

        def full(*_args, **_options):
            tries.append(1)
            raise StoreFullError("no room")

        monkeypatch.setattr(store.backend, "apply", full)
        with pytest.warns(UserWarning, match="no room"):
            store.attempt(lambda: store.put(final()), otherwise=False, writes=True)
        assert store.attempt(lambda: store.best(KEY), None).payload == b"there"
        assert not store.attempt(lambda: store.put(final()), otherwise=False, writes=True)
        assert len(tries) == 1

    def test_wrong_arguments_are_always_raised(self, store):
        """A wrong argument is the caller's mistake, whatever the state of the store."""
        with pytest.raises(ArgumentError, match="Fingerprint"):
            store.attempt(lambda: store.best("not a key"), None)
