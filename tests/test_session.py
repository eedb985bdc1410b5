"""One fit's dealings with the store."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from test_store import KEY, Clock, entry, final

from warmstart import ArgumentError, EntryKind, FitSpec, Level, LoadSource, Session, Store
from warmstart.session import new_run_id


@pytest.fixture(params=["memory", "lmdb"])
def store(request, tmp_path):
    where = ":memory:" if request.param == "memory" else tmp_path / "store"
    with Store(where) as store:
        yield store


@pytest.fixture
def clock():
    return Clock(0.0)


class TestLimiter:
    """When `checkpoint` writes."""

    def test_the_first_is_written(self, store, clock):
        """A first checkpoint is written whatever its objective, known or not."""
        for objective in (None, 1.0, math.nan, math.inf, -math.inf):
            with Session(store, KEY, clock=clock) as session:
                assert session.checkpoint(b"x", objective)

    def test_without_improvement_it_waits_for_the_interval(self, store, clock):
        """Within two seconds only an improvement is written; after that anything is."""
        with Session(store, KEY, clock=clock) as session:
            assert session.checkpoint(b"a", 1.0)
            clock.now = 1.9
            assert not session.checkpoint(b"b", 1.0)
            assert not session.checkpoint(b"b", 5.0)
            assert not session.checkpoint(b"b")
            clock.now = 2.0
            assert session.checkpoint(b"c", 5.0)
            assert not session.checkpoint(b"d", 5.0)

    def test_the_interval_can_be_set(self, store, clock):
        """With an interval of 0 everything is written."""
        with Session(store, KEY, clock=clock, interval=0.0) as session:
            assert all(session.checkpoint(b"a", 1.0) for _ in range(5))

    @pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20, 1e300])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_improvement_is_relative(self, store, clock, scale, sign):
        """At any scale a thousandth less is an improvement and a rounding error is not."""
        with Session(store, KEY, clock=clock) as session:
            assert session.checkpoint(b"a", sign * scale)
            assert not session.checkpoint(b"b", sign * scale - 1e-15 * scale)
            assert session.checkpoint(b"c", sign * scale - 1e-3 * scale)

    def test_not_a_number_is_never_the_best_and_blocks_nothing(self, store, clock):
        """NaN and infinities first or in between leave the improvement rule intact."""
        with Session(store, KEY, clock=clock) as session:
            assert session.checkpoint(b"nan", math.nan)
            assert session.checkpoint(b"first", 5.0)
            for bad in (math.nan, math.inf, -math.inf):
                assert not session.checkpoint(b"bad", bad)
            assert session.checkpoint(b"better", 4.0)
            clock.now = 10.0
            assert session.checkpoint(b"late", -math.inf)
        assert store.best(KEY).payload == b"better"
        assert store.latest(KEY).payload == b"late"

    def test_numpy_objectives_count(self, store, clock):
        """Numpy scalars and arrays of one element are numbers."""
        with Session(store, KEY, clock=clock) as session:
            assert session.checkpoint(b"a", np.float32(2.0))
            assert session.checkpoint(b"b", np.array([1.0]))
        assert store.best(KEY).objective == 1.0

    def test_a_refused_entry_is_not_tried_again_at_once(self, clock):
        """A payload over the budget is refused with False, and not encoded at each improvement."""
        store = Store(":memory:", entry_budget=1000)
        with Session(store, KEY, clock=clock) as session:
            large = np.random.default_rng(0).bytes(4000)
            assert not session.checkpoint(large, 1.0)
            assert not session.checkpoint(large, 1.0)
        assert store.stats().counters["refused"] == 1


class TestLoading:
    """What `try_load` and `peek` give."""

    def test_an_exact_final_is_an_answer(self, store):
        """The store's own final for this key need not be fitted again."""
        store.put(final(1.0, payload=b"answer"))
        loaded = Session(store, KEY).try_load()
        assert loaded.is_answer
        assert (loaded.source, loaded.level, loaded.distance) == (
            LoadSource.EXACT,
            Level.EXACT,
            0.0,
        )

    def test_preloading_is_consumed_once(self, store):
        """A preloaded entry comes first, once, and then the store's own."""
        store.put(final(1.0, payload=b"own"))
        session = Session(store, KEY)
        session.preload(entry(2.0, payload=b"near"), level=Level.SIBLING_DATA, distance=0.3)
        assert session.peek().entry.payload == b"near"
        assert session.peek().entry.payload == b"near"
        loaded = session.try_load()
        assert (loaded.entry.payload, loaded.source) == (b"near", LoadSource.PRELOADED)
        assert (loaded.level, loaded.distance) == (Level.SIBLING_DATA, 0.3)
        assert session.try_load().entry.payload == b"own"

    def test_a_preloaded_final_is_no_answer(self, store):
        """What was preloaded is a start, whatever its kind."""
        session = Session(store, KEY)
        session.preload(final(1.0))
        assert not session.try_load().is_answer

    def test_preloading_writes_nothing_under_the_key(self, store):
        """The exact key stays empty after a preload was loaded."""
        session = Session(store, KEY)
        session.preload(entry(1.0))
        session.try_load()
        assert store.entries(KEY) == []

    def test_the_start_is_part_of_the_record(self, store):
        """Where a run began stands in what it writes."""
        first = entry(2.0)
        session = Session(store, KEY)
        session.preload(first, level=Level.FAMILY, distance=0.5)
        session.try_load()
        session.finalize(b"x")
        start = store.best(KEY).start
        assert (start.source, start.run, start.level, start.distance) == (
            "near",
            first.run,
            "family",
            0.5,
        )

    def test_a_miss_is_none(self, store):
        """Nothing stored, nothing loaded, and the run starts cold."""
        session = Session(store, KEY)
        assert session.try_load() is None
        assert session.start.source == "cold"


class TestFinalizing:
    """The end of a fit."""

    def test_finalize_bypasses_the_limiter(self, store, clock):
        """A final is written at once, worse or not, and replaces the run's checkpoints."""
        with Session(store, KEY, clock=clock) as session:
            session.checkpoint(b"a", 1.0)
            assert session.finalize(b"end", 2.0, 7, nfev=9)
        found = store.best(KEY)
        assert (found.kind, found.payload) == (EntryKind.FINAL, b"end")
        assert (found.objective, found.iteration, found.nfev) == (2.0, 7, 9)
        assert len(store.entries(KEY)) == 1

    def test_a_checkpoint_after_the_end_is_refused(self, store, clock):
        """Nothing demotes a final, not even an improvement."""
        with Session(store, KEY, clock=clock) as session:
            session.finalize(b"end", 2.0)
            clock.now = 100.0
            assert not session.checkpoint(b"late", 1.0)
        assert store.best(KEY).payload == b"end"

    @pytest.mark.parametrize(
        ("error", "status"),
        [(ValueError("no"), "failed"), (KeyboardInterrupt(), "cancelled")],
    )
    def test_an_exception_leaves_the_best_and_marks_the_run(self, store, clock, error, status):
        """An error or Ctrl-C inside the block keeps the checkpoint and says how the run ended."""
        session = Session(store, KEY, clock=clock)
        with pytest.raises(type(error)), session:
            session.checkpoint(b"best", 1.0)
            raise error
        assert store.best(KEY).payload == b"best"
        info = store.run_info(session.run_id)
        assert info.status == status
        assert type(error).__name__ in info.error

    def test_status_follows_the_run(self, store, clock):
        """A run is running, then completed; one that just stops is cancelled."""
        with Session(store, KEY, clock=clock) as session:
            session.checkpoint(b"a", 1.0)
            assert store.run_info(session.run_id).status == "running"
            session.finalize(b"b")
            assert store.run_info(session.run_id).status == "completed"
        with Session(store, KEY, clock=clock) as session:
            session.checkpoint(b"a", 1.0)
        assert store.run_info(session.run_id).status == "cancelled"

    def test_what_cannot_be_kept_is_told(self, store):
        """Parts of a payload that cannot be stored are named, in the session and the entry."""
        session = Session(store, KEY)
        assert session.finalize({"x": np.ones(3), "lock": threading.Lock()})
        assert session.dropped == ("lock",)
        assert store.best(KEY).dropped == ("lock",)


class TestRobustness:
    """Trouble and wrong use."""

    def test_trouble_with_the_store_never_raises(self, tmp_path):
        """On a place that cannot be used every operation says no, after one warning."""
        place = tmp_path / "file"
        place.write_text("not a folder")
        session = Session(Store(place), KEY)
        with pytest.warns(UserWarning, match="without it"), session:
            assert session.try_load() is None
            assert not session.checkpoint(b"x", 1.0)
            assert not session.finalize(b"x", 1.0)

    def test_wrong_arguments_raise(self, store):
        """Each wrong argument is named with what was expected."""
        with pytest.raises(ArgumentError, match="store is a Store"):
            Session("store", KEY)
        with pytest.raises(ArgumentError, match="FitSpec"):
            Session(store, "a name")
        with pytest.raises(ArgumentError, match="interval"):
            Session(store, KEY, interval=-1.0)
        with pytest.raises(ArgumentError, match="improvement"):
            Session(store, KEY, improvement=math.nan)
        session = Session(store, KEY)
        with pytest.raises(ArgumentError, match="objective"):
            session.checkpoint(b"x", "small")
        with pytest.raises(ArgumentError, match="objective"):
            session.finalize(b"x", object())
        with pytest.raises(ArgumentError, match="preload"):
            session.preload(b"x")

    def test_threads_may_share_a_session(self, store):
        """Eight threads checkpoint at once: the lowest objective is kept, no error."""
        session = Session(store, KEY, interval=0.0)
        rng = np.random.default_rng(5)
        values = rng.permutation(200).astype(float)

        def work(part):
            for value in part:
                session.checkpoint(b"%d" % value, float(value))

        threads = [threading.Thread(target=work, args=(part,)) for part in values.reshape(8, -1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.best(KEY).objective == 0.0
        assert len(store.entries(KEY)) <= 2

    def test_run_ids_sort_by_time_and_do_not_repeat(self):
        """Ten thousand ids are all different, and their first twelve digits do not go back."""
        ids = [new_run_id() for _ in range(10_000)]
        assert len(set(ids)) == 10_000
        assert [i[:12] for i in ids] == sorted(i[:12] for i in ids)

    def test_a_spec_is_explained_by_the_store(self, store):
        """A session made from a spec leaves what the key means."""
        spec = FitSpec(model="m", settings={"tol": 0.1})
        with store.session(spec) as session:
            session.finalize(b"x")
        assert store.summary(spec.key).arguments["settings"]["tol"][1] == "0.1"
