"""What the store learns: exact merges, plans, the cost to come, what changes between fits.

Docstrings name the rows of the feature list (N) that a test shows.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_child

from warmstart import ArgumentError, KeyLookupError, Store, Warm, learned, optimize, using
from warmstart.backends import Batch
from warmstart.learned import COLD, Cost, Family, Plan, Tally
from warmstart.rows import small

FAMILY = b"f" * 16
NUMBERS = st.lists(st.floats(0.0, 1e12), max_size=40)


def tally(values):
    made = Tally()
    for value in values:
        made.add(value)
    return made


@pytest.fixture
def store(anywhere):
    """N8, N9: learning asks nothing of a backend but the map, so that all have it."""
    with Store(anywhere) as store:
        yield store


class TestTallies:
    @given(first=NUMBERS, second=NUMBERS)
    @settings(max_examples=60, deadline=None)
    def test_merged_in_any_order(self, first, second):
        """N12: counts and quantiles of a merge are exactly those of all; means to rounding."""
        whole, one, other = tally(first + second), tally(first), tally(second)
        one.merge(other)
        assert (one.count, one.bins) == (whole.count, whole.bins)
        assert (one.least, one.most) == (whole.least, whole.most)
        assert one.mean == pytest.approx(whole.mean, rel=1e-9)
        assert one.deviation == pytest.approx(whole.deviation, rel=1e-6, abs=1e-9)
        assert one.quantile(0.5) == whole.quantile(0.5)

    def test_quantiles(self):
        """N12, N15: p50, p90, p95 to 3 % in fixed memory."""
        values = np.random.default_rng(0).lognormal(3.0, 2.0, 20_000)
        found = tally(values)
        for at in (0.5, 0.9, 0.95):
            assert found.quantile(at) == pytest.approx(np.quantile(values, at), rel=0.05)
        assert len(found.bins) < 400
        assert found.mean == pytest.approx(values.mean())
        assert found.deviation == pytest.approx(values.std(ddof=1))

    def test_empty_and_nonsense(self):
        """N13: empty statistics are zeros and serialise; NaN, infinities and negatives do not count."""
        empty = Tally()
        for value in (math.nan, math.inf, -1.0):
            empty.add(value)
        assert (empty.count, empty.mean, empty.deviation, empty.quantile(0.5)) == (0, 0.0, 0.0, 0.0)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(empty), type=Tally)
        assert again == empty
        again.merge(empty)
        assert again.count == 0


class TestCosts:
    def test_the_deepest_group_that_is_known(self, store):
        """N14, N16, N18: by path from root to leaf, with fallbacks; None where nothing is known."""
        backend = store.backend
        one = learned.path("minimize", "BFGS", b"model one")
        other = learned.path("minimize", "BFGS", b"model two")
        third = learned.path("curve_fit", "", b"model one")
        assert learned.predict(backend, one) is None
        cost = Cost()
        cost.add(100, 2.0)
        learned.merge_costs(backend, dict.fromkeys(one, cost))
        assert learned.predict(backend, one).depth == 2
        assert learned.predict(backend, other).depth == 1
        assert learned.predict(backend, third).depth == 0
        found = learned.predict(backend, other)
        assert found.fits == 1
        assert found.evaluations == (100.0, 100.0, 100.0)
        assert found.seconds == (2.0, 2.0, 2.0)

    def test_fits_teach(self, store):
        """N1, N19, N20: after each fit, off the hot path; read again after a restart."""

        def bowl(x):
            return float(x @ x)

        with using(store=store):
            for n in (2, 3, 4):
                optimize.minimize(bowl, np.ones(n), method="Powell")
        assert store.backend.scan(b"w") == []  # nothing was written on the way
        store.flush()
        rows = store.backend.scan(b"w")
        assert len(rows) == 5  # all, minimize Powell, and a model for each number of parameters
        groups = [row.key[1:] for row in rows]
        assert learned.predict(store.backend, [groups[0]]).fits == 3

    def test_a_failure_touches_nothing(self, store, monkeypatch):
        """N19: the fit is done, the result is kept."""
        monkeypatch.setattr("warmstart.learned._change", lambda *_: 1 / 0)
        with using(store=store):
            fits = [optimize.minimize(lambda x: x @ x, np.ones(2)).warm.source for _ in range(2)]
        assert fits == ["cold", "final"]
        monkeypatch.undo()
        store.flush()

    def test_no_process_is_lost(self, tmp_path):
        """N11, N12: merged under a condition."""
        where = str(tmp_path / "store")
        Store(where).flush()

        def work():
            backend = Store(where).backend
            for _ in range(50):
                cost = Cost()
                cost.add(3, 0.1)
                learned.merge_costs(backend, {b"": cost})

        assert [in_child(work)[0] for _ in range(3)] == [0, 0, 0]
        assert learned.predict(Store(where).backend, [b""]).fits == 150

    def test_versions_are_checked(self, store):
        """N4: a document of another version is not read; nor are they damaged by it."""
        row = b"w"
        store.backend.apply(Batch({row: small(Cost(version=99))}))
        assert learned.predict(store.backend, [b""]) is None
        store.backend.apply(Batch({b"l" + FAMILY: small(Family(near=7, version=99))}))
        assert learned.load(store.backend, FAMILY) == Family()

    def test_savings_by_day(self, store):
        """What hits have saved, for people."""
        with using(store=store):
            for _ in range(4):
                optimize.minimize(lambda x: x @ x, np.ones(2), method="Powell")
        store.flush()
        ((day, saved),) = learned.savings(store.backend).items()
        assert day == int(store.clock() // 86_400)
        assert saved.hits == 3
        assert saved.evaluations > 30


class TestPlans:
    def note(self, store, way, evaluations, count=1, **more):
        for _ in range(count):
            learned.note(store.backend, FAMILY, way, evaluations=evaluations, seconds=0.1, **more)

    def test_missing_is_empty(self, store):
        """N2, N3, N5: no books, no families; a plan that leaves everything as it is."""
        assert learned.load(store.backend, FAMILY) == Family()
        assert learned.families(store.backend) == {}
        assert Family().plan == Plan()

    def test_losers_are_switched_off(self, store):
        """N3, N21: the plan follows from the books alone, in whatever process."""
        self.note(store, COLD, 10, 5)
        self.note(store, "near a", 20, 5)
        self.note(store, "near b", 3, 5)
        found = learned.load(store.backend, FAMILY)
        assert found.plan.off == ("near a",)
        assert "near a takes no fewer evaluations" in found.plan.why
        assert found.loses("near a")
        assert not found.loses("near b")
        assert learned.load(store.backend, FAMILY).plan == found.plan

    def test_modes_and_overrides(self, store):
        """N26: act, suggest, observe; what people decide goes before; reset."""
        self.note(store, COLD, 10, 5)
        self.note(store, "near a", 20, 5)
        assert learned.override(store.backend, FAMILY, mode="suggest").mode == "suggest"
        assert not learned.load(store.backend, FAMILY).loses("near a")
        plan = learned.override(
            store.backend, FAMILY, mode="act", ways={"near a": True, "near b": False}, every=3
        )
        assert plan.off == ()
        assert plan.every == 3
        assert [learned.load(store.backend, FAMILY).is_due(n) for n in (50, 0)] == [True, False]
        plan = learned.override(store.backend, FAMILY, ways={"near a": None})
        assert plan.off == ("near a",)
        learned.reset(store.backend, FAMILY)
        assert learned.load(store.backend, FAMILY) == Family()
        for wrong in ({"mode": "guess"}, {"every": 0}):
            with pytest.raises(ArgumentError):
                learned.override(store.backend, FAMILY, **wrong)

    def test_by_the_store(self, store):
        """N26: families are named by their first digits."""
        self.note(store, COLD, 10, 5)
        self.note(store, "near a", 20, 5)
        ((name, family),) = store.families().items()
        assert family.plan.off == ("near a",)
        assert store.override(name[:6], ways={"near a": True}).off == ()
        assert store.override(name[:6], mode="observe").mode == "observe"
        assert store.override(name, reset=True) == Plan()
        with pytest.raises(KeyLookupError, match="0 families begin with 'zz'"):
            store.override("zz")

    def test_suggestions_are_told(self, store):
        """N26: in suggest a losing way is taken, and the report says so."""

        def bowl(x, a):
            return float(np.sum((x - a) ** 2)), 2.0 * (x - a)

        def fit(a):
            return optimize.minimize(bowl, np.zeros(2), args=(a,), jac=True)

        with using(store=store, near=True, challenge=0):
            for a in (1.0, 2.0, 3.0):
                fit(a)
            ((family, books),) = learned.families(store.backend).items()
            for way in books.ways:
                for _ in range(5):
                    count = 2 if way == COLD else 99
                    learned.note(store.backend, family, way, evaluations=count, seconds=0.1)
            learned.override(store.backend, family, mode="suggest")
            told = fit(3.5).warm
            hinted = optimize.minimize(
                bowl, np.zeros(2), args=(3.6,), jac=True, warm=Warm(required=True)
            ).warm
        assert told.source == hinted.source == "near"
        assert "have not paid in this family" in told.why
        assert books.what == "minimize bowl"

    def test_costs_are_bounded(self, store, monkeypatch):
        """The groups that were written last are kept."""
        monkeypatch.setattr(learned, "_MOST_COSTS", 5)
        for i in range(9):
            store.learn((bytes([i]) * 8,), 10, 0.1)
            store._settle(now=True)
        store.gc()
        kept = [item.key for item in store.backend.scan(b"w")]
        assert kept == [b"w" + bytes([i]) * 8 for i in range(4, 9)]

    def test_drift(self, store):
        """N22: when fits become many times dearer the books begin anew."""
        self.note(store, COLD, 10, 60)
        self.note(store, "near a", 20, 5)
        self.note(store, COLD, 12, 20)
        assert learned.load(store.backend, FAMILY).plan.off == ("near a",)
        self.note(store, COLD, 400, 20)
        found = learned.load(store.backend, FAMILY)
        assert found.plan.off == ()
        assert "near a" not in found.ways

    def test_overwriting_keeps_the_second(self, store):
        """N10, N11: literal keys; one row, written whole."""
        self.note(store, COLD, 10)
        self.note(store, COLD, 12)
        assert [item.key for item in store.backend.scan(b"l")] == [b"l" + FAMILY]
        assert learned.load(store.backend, FAMILY).ways[COLD].evaluations.count == 2


class TestStability:
    def test_classes_and_confidence(self):
        """N6, N7, N23, N24: part of the window that agrees; bounded, deterministic."""
        fits = [
            {"x0": i, "data": i // 60, "method": "BFGS", "tol": i % 10 == 0} for i in range(300)
        ]
        found = learned.stability(fits)
        assert list(found) == ["data", "method", "tol", "x0"]
        assert found["method"] == ("stable", 1.0, 1.0)
        assert found["x0"] == ("variable", 0.01, 1.0)
        assert found["tol"][0] == "semi-stable"
        assert found["data"] == ("semi-stable", 0.6, 1.0)
        assert learned.stability(fits[:5])["method"] == ("stable", 1.0, 0.25)
        assert learned.stability([]) == {}

    def test_of_a_models_fits(self, store):
        """Which arguments change from fit to fit: why nothing is found again."""
        with using(store=store):
            for seed in range(4):
                x0 = np.random.default_rng(seed).normal(size=2)
                optimize.minimize(lambda x: x @ x, x0, method="Powell")
        (model,) = store.models()
        assert model.fits == 4
        assert model.stability["settings.x0"][0] == "variable"
        assert model.stability["settings.method"][0] == "stable"
        assert "Powell" in model.what
