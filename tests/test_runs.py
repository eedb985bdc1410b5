"""Runs, experiments and what belongs to them, on every backend.

Docstrings name the rows of the feature lists (E, P, C, N) that a test shows.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_child

import warmstart
from warmstart import (
    ArgumentError,
    ExperimentLookupError,
    FitSpec,
    Policy,
    RecordError,
    RunInfo,
    RunLookupError,
    StatusError,
    Store,
    StoreError,
    host,
    optimize,
    using,
)
from warmstart.backends import Batch
from warmstart.lineage import Lineage
from warmstart.multistart import multistart
from warmstart.rows import info_row, small
from warmstart.search import condition, import_runs


class Clock:
    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(anywhere):
    """E14, C14: one suite for every backend; a backend is an ordered map and knows of no run."""
    with Store(anywhere, clock=Clock()) as store:
        yield store


class TestExperiments:
    def test_created_with_config(self, store):
        """E1: name, JSON config, unique id; E18: description and tags."""
        made = store.create_experiment(
            "decay", description="of a chain", tags={"lab": "b"}, config={"n": [1, 2.5, None]}
        )
        assert store.experiment("decay") == store.experiment(made.id) == made
        assert (made.description, made.tags, made.config) == (
            "of a chain",
            {"lab": "b"},
            {"n": [1, 2.5, None]},
        )
        other = store.create_experiment("other")
        assert other.id != made.id
        assert [one.name for one in store.experiments()] == ["decay", "other"]
        assert made.created == store.clock.now

    def test_names_are_unique_and_ids_known(self, store):
        """E2: an unknown parent is a typed error; nothing is made."""
        store.create_experiment("decay")
        with pytest.raises(ExperimentLookupError, match="there is an experiment 'decay' already"):
            store.create_experiment("decay")
        with pytest.raises(ExperimentLookupError, match="there is no experiment 'growth'"):
            store.experiment("growth")
        with pytest.raises(ExperimentLookupError):
            store.run(experiment="0" * 32)
        with pytest.raises(RunLookupError):
            store.run(parent="f" * 32)
        assert len(store.runs()) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": ""}, "name of text"),
            ({"name": 3}, "name of text"),
            ({"name": "a" * 32}, "give it another name"),
            ({"name": "x", "config": {1j}}, "what JSON can say"),
        ],
    )
    def test_wrong_arguments(self, store, options, message):
        with pytest.raises(ArgumentError, match=message):
            store.create_experiment(**options)

    def test_fits_belong_to_the_default(self, store):
        """A wrapped fit is a run of its own accord, in the ambient experiment or "default"."""
        with using(store=store):
            optimize.minimize(lambda x: x @ x, np.ones(2))
            with store.run(experiment="mine") as run:
                optimize.minimize(lambda x: x @ x, np.ones(3))
        inner, outer, first = store.runs()
        assert (inner.parent, outer.id) == (run, run.id)
        assert inner.experiment.name == "mine"
        assert first.experiment is None
        assert len(store.runs(experiment="mine")) == 2


class TestStatus:
    def test_the_way_of_a_run(self, store):
        """E3, E4, E5, E12, P2, P7, P8, P10: pending, running, completed; times and duration."""
        run = store.run(name="one")
        assert (run.status, run.is_finished, run.duration) == ("pending", False, None)
        store.clock.now += 5.0
        run.start()
        assert run.info.started == store.clock.now
        store.clock.now += 2.0
        run.complete()
        assert (run.status, run.is_finished, run.duration) == ("completed", True, 2.0)

    @pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
    def test_illegal_transitions(self, store, end):
        """E4, E5: no end without a start, no second start, no second end; nothing changes."""
        run = store.run()
        arguments = ("why",) if end == "fail" else ()
        with pytest.raises(StatusError, match=r"is pending, .*start\(\) it first"):
            getattr(run, end)(*arguments)
        run.start()
        with pytest.raises(StatusError, match="it runs already"):
            run.start()
        getattr(run, end)(*arguments)
        before = run.info
        for again in (run.start, run.complete, run.cancel):
            with pytest.raises(StatusError):
                again()
        assert run.info == before

    def test_exceptions_fail_and_interrupts_cancel(self, store):
        """P8, P12: the message is kept; the exception passes."""
        with pytest.raises(ValueError, match="too hot"), store.run() as run:
            raise ValueError("too hot")
        assert (run.status, run.info.error) == ("failed", "ValueError: too hot")
        with pytest.raises(KeyboardInterrupt), store.run() as run:
            raise KeyboardInterrupt
        assert run.status == "cancelled"

    def test_failed_fits(self, store):
        """A fit whose function raises is a failed run."""

        def broken(x):
            time.sleep(0.3)
            raise OverflowError("too hot")

        with using(store=store), pytest.raises(OverflowError):
            optimize.minimize(broken, np.ones(2))
        (run,) = store.runs(status="failed")
        assert run.info.error == "OverflowError: too hot"
        assert run.info.what == "minimize broken"

    def test_unknown_runs(self, store):
        """E9: an unknown run is an error, with how runs are named."""
        with pytest.raises(RunLookupError, match="no run in"):
            store.get_run("0" * 32)
        with pytest.raises(ArgumentError, match="6 to 32 hexadecimal digits"):
            store.get_run("zz")
        run = store.run()
        assert store.get_run(run.id[:14]) == run
        run.delete()
        with pytest.raises(RunLookupError):
            _ = run.status

    def test_ids(self, store):
        """P1: random, in the order of time, and read back."""
        ids = [store.run().id for _ in range(20)]
        assert len(set(ids)) == 20
        assert [run.id for run in store.runs()][::-1] == sorted(ids)
        assert all(len(bytes.fromhex(one)) == 16 for one in ids)
        assert len({one[:14] for one in ids}) == 20  # as people are shown them

    def test_dead_runs_are_found_and_go_on(self, tmp_path):
        """C7: a run whose process was killed is shown as dead, and resumed under its id."""
        where = str(tmp_path / "store")

        def work():
            store = Store(where)
            run = store.run(name="long").__enter__()
            run.log_metric("loss", 1.0, step=0)
            run.save_state(3, {"x": np.arange(3.0)}, {"b": 1})
            _ = run.info
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(work)[0] == -signal.SIGKILL
        store = Store(where)
        (run,) = store.runs(status="dead")
        assert (run.status, run.state, run.is_dead) == ("running", "dead", True)
        again = store.run(resume=run.id)
        assert (again.id, again.state) == (run.id, "running")
        assert again.steps() == [3]
        with again:
            again.log_metric("loss", 0.5)
        assert again.metrics("loss").steps.tolist() == [0, 1]
        with pytest.raises(StatusError, match="only a failed, cancelled or dead run goes on"):
            store.run(resume=run.id)

    def test_runs_of_other_machines_are_dead_after_a_silence(self, store):
        run = store.run().start()
        row = info_row(run.id)
        told = {**{f: getattr(run.info, f) for f in RunInfo.__struct_fields__}}
        told |= {"owner": "elsewhere:1:1", "beat": store.clock.now}
        store.backend.apply(Batch({row: small(RunInfo(**told))}))
        assert not run.is_dead
        run.beat()
        store.clock.now += 400.0
        assert run.is_dead
        assert run.state == "dead"

    def test_is_alive(self):
        assert host.is_alive(host.owner()) is True
        name, pid, born = host.owner().rsplit(":", 2)
        assert host.is_alive(f"{name}:{pid}:1{born}") is False
        assert host.is_alive(f"{name}:{pid}:") is False
        assert host.is_alive(f"{name}:99999999:1") is False
        assert host.is_alive(f"{name}:x:1") is False
        assert host.is_alive("elsewhere:1:1") is None

    @pytest.mark.skipif(sys.platform != "linux", reason="there psutil is asked")
    def test_is_alive_after_the_clock_was_set(self, monkeypatch):
        """The time of day at which a process began moves with the clock; its name does not."""
        me = in_child(host.owner)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1.0)
        assert host.is_alive(host.owner()) is True
        assert host.is_alive(me[1]) is False


class TestTrouble:
    """Law 2: what a run cannot write fails no work."""

    def work(self, store):
        with store.run("mine", name="one", params={"a": 1}) as run:
            run.log_metric("m", 1.0)
            run.log_param("b", 2)
            run.log_metric("m", 2.0)
            assert not run.save_state(1, "s")
            run.set_tags({"a": "b"})
        return run

    def test_a_place_that_cannot_be_used(self, tmp_path):
        (tmp_path / "file").write_text("no folder")
        with pytest.warns(UserWarning, match="fits go on without it") as heard:
            run = self.work(Store(tmp_path / "file"))
        assert len(heard) == 1
        assert run.status == "completed"
        with pytest.raises(StatusError):
            run.start()

    def test_a_store_that_goes_away(self, tmp_path, monkeypatch):
        """The work ends; its own exception is the one that is seen."""
        store = Store(tmp_path / "store")

        def gone(*_args, **_options):
            raise StoreError("the disk has gone")

        with (
            pytest.warns(UserWarning, match="the disk has gone"),
            pytest.raises(OverflowError, match="mine"),
            store.run() as run,
        ):
            monkeypatch.setattr(store.backend, "apply", gone)
            monkeypatch.setattr(store.backend, "get", gone)
            run.log_metric("m", 1.0)
            run.complete()
            raise OverflowError("mine")

    def test_points_are_written_at_exit(self, tmp_path):
        """Those of a run that nobody ends; not twice where a child has a copy of them."""
        script = (
            "import os, sys\n"
            "from warmstart import Store\n"
            "run = Store(sys.argv[1]).run().start()\n"
            "for i in range(5):\n    run.log_metric('m', i)\n"
            "if (pid := os.fork()) == 0:\n    sys.exit()\n"
            "os.waitpid(pid, 0)\n"
        )
        where = str(tmp_path / "store")
        subprocess.run([sys.executable, "-c", script, where], check=True)
        (run,) = Store(where).runs()
        assert run.metrics("m").values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert run.is_dead

    def test_runs_of_other_stores_are_no_parents(self):
        one, other = Store(":memory:"), Store(":memory:")
        with one.run() as run, using(store=other):
            optimize.minimize(lambda x: x @ x, np.ones(2))
            inner = other.run()
        assert other.runs()[0].parent is None
        assert inner.parent is None
        assert run.children == []

    def test_signs_of_life(self, tmp_path, monkeypatch):
        """Long fits and open runs give them, so that other machines know."""
        monkeypatch.setattr("warmstart.session._BEAT", 0.05)
        monkeypatch.setattr("warmstart.run._PULSE", 0.05)
        store = Store(tmp_path / "store")
        beats = set()

        def slow(x):
            time.sleep(0.02)
            beats.update((run.info.what, run.info.beat) for run in store.runs(status="running"))
            return float(np.sum((x - 1.0) ** 2))

        with using(store=store, model="slow"), store.run() as run:
            optimize.minimize(slow, np.zeros(4), method="Nelder-Mead", options={"maxfev": 60})
        for what in ("", "minimize Nelder-Mead slow"):
            assert len({at for name, at in beats if name == what}) > 2
        assert run.info.status == "completed"

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda store: store.run(params=[1]), "params map names"),
            (lambda store: store.run(tags={"a": 1}), "tags map text to text"),
            (lambda store: store.run(recipe="x"), "a name and a version"),
            (lambda store: store.run().update(tags=3), "tags map text to text"),
            (lambda store: store.run().update(span=("a", "b")), "32 and a span 16"),
            (lambda store: store.run().save_state("one", 1), "a step is a number"),
            (lambda store: store.run().save_state(1, 1, policy=3), "policy is a Policy"),
            (lambda store: store.run().save_state(1, 1, policy=Policy(every=0)), "from 1 up"),
            (lambda store: store.run().metrics(3), "1 to 200 characters"),
            (lambda store: store.runs(3), "where is a condition"),
            (lambda store: store.runs(limit="x"), "limit is a number"),
            (lambda store: store.runs(parent="zz"), "6 to 32 hexadecimal"),
            (lambda store: store.create_experiment("a", tags=3), "tags map text to text"),
            (lambda store: store.create_experiment("a", description=3), "description is text"),
        ],
    )
    def test_wrong_arguments(self, wrong, message):
        """Refused with what is expected."""
        with pytest.raises(ArgumentError, match=message):
            wrong(Store(":memory:"))


class TestParams:
    VALUES = {
        "text": "a",
        "int": 3,
        "float": 3.0,
        "switch": True,
        "list": [1, 2.0, "c", None],
        "dict": {"a": {"b": 1}},
        "nothing": None,
        "large": 2**62,
        "nan": math.nan,
    }

    def test_types_survive(self, store):
        """E16, P6, P15: single and bulk; an int stays an int, a float a float."""
        run = store.run(params={"int": 3, "rate": 1})
        run.log_params(self.VALUES)
        run.log_param("one", np.float64(0.5))
        found = store.get_run(run.id).params
        assert {name: type(value) for name, value in found.items()} == {
            **{name: type(value) for name, value in self.VALUES.items()},
            "rate": int,
            "one": float,
        }
        assert {k: v for k, v in found.items() if k != "nan"} == {
            **{k: v for k, v in self.VALUES.items() if k != "nan"},
            "rate": 1,
            "one": 0.5,
        }

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"a": object()}, r"params\['a'\] is text, a number"),
            ({"a": [1, {2}]}, r"params\['a'\]\[1\]"),
            ({3: 1}, "names of text"),
            ([1], "map names to values"),
            ({"a": 2**70}, "not int"),
        ],
    )
    def test_wrong_values(self, store, wrong, message):
        run = store.run(params={"kept": 1})
        with pytest.raises(ArgumentError, match=message):
            run.log_params(wrong)
        assert run.params == {"kept": 1}

    def test_what_is_said_of_a_run(self, store):
        """P12, P13: tags, notes, log URI, free extras; edited from any process."""
        run = store.run(name="one", tags={"a": "1", "b": "2"})
        run.set_tags({"a": None, "c": "3"}).update(note="n", log_uri="file:///x", extra={"k": [1]})
        document = store.get_run(run.id).document
        assert document.tags == {"b": "2", "c": "3"}
        assert (document.note, document.log_uri, document.extra) == ("n", "file:///x", {"k": [1]})
        for wrong, message in (
            ({"color": 1}, "a run has no color"),
            ({"note": 3}, "note is text"),
            ({"recipe": ("a",)}, "a name and a version"),
        ):
            with pytest.raises(ArgumentError, match=message):
                run.update(**wrong)
        with pytest.raises(ArgumentError, match="tags map text to text"):
            run.set_tags({"a": 3})

    def test_edits_of_many_threads_are_all_kept(self, store):
        """E15: usable from several threads; no edit is lost."""
        run = store.run()
        threads = [threading.Thread(target=run.log_param, args=(f"p{i}", i)) for i in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert run.params == {f"p{i}": i for i in range(16)}

    def test_spans(self, store):
        """E13: unset is None; set and read; not lost by a start or an end."""
        run = store.run()
        assert run.span is None
        run.set_span("a" * 32, "b" * 16)
        run.start().complete()
        assert store.get_run(run.id).span == ("a" * 32, "b" * 16)
        with pytest.raises(ArgumentError, match="32 and a span 16 hexadecimal"):
            run.set_span("x", "y")

    def test_opentelemetry(self, store):
        """E13: taken from the current span where OpenTelemetry is in use."""
        trace = pytest.importorskip("opentelemetry.sdk.trace")
        tracer = trace.TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("outer") as span:
            context = span.get_span_context()
            run = store.run()
        assert run.span == (f"{context.trace_id:032x}", f"{context.span_id:016x}")

    def test_recipes(self, store):
        """P6, P17: reference and overrides; listed newest first."""
        runs = [
            store.run(recipe=("fit", version), params={"rate": i})
            for i, version in enumerate(["1.0", "1.1", "1.0"])
        ]
        assert store.runs(recipe=("fit", "1.0")) == [runs[2], runs[0]]
        assert store.runs(recipe="fit") == runs[::-1]
        assert store.runs(recipe="other") == []

    def test_what_ran_it(self, store, monkeypatch):
        """P3, P11: hardware, commit, versions, script, host, user; captured, each optional."""
        run = store.run()
        found = run.process
        assert found["cores"] >= 1
        assert found["memory"] > 1 << 28
        assert found["packages"]["numpy"] == np.__version__
        assert found["pid"] == os.getpid()
        assert {"host", "python", "system"} <= found.keys()
        monkeypatch.setattr(host, "_cpu", lambda: 1 / 0)
        assert "cpu" not in host.describe()

    def test_telling_it_leaves_the_filters_of_warnings(self, monkeypatch):
        """It is told on a thread of its own, where changed filters would be the user's, too."""
        changes = []
        monkeypatch.setattr(warnings, "_filters_mutated", lambda: changes.append(1))
        host.describe()
        assert changes == []

    def test_the_commit(self, tmp_path):
        """P11: commit and dirty flag of the folder in which the script lies."""
        script = tmp_path / "script.py"
        script.write_text("from warmstart import host\nprint(host.describe())\n")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)

        def described():
            raw = subprocess.run(
                [sys.executable, script], capture_output=True, text=True, check=True
            ).stdout
            return eval(raw)

        clean = described()
        assert len(clean["git_commit"]) == 40
        assert clean["git_dirty"] is False
        script.write_text(script.read_text() + "# more\n")
        assert described()["git_dirty"] is True


class TestMetrics:
    def test_in_the_order_of_steps(self, store):
        """E6, E7, E8, E9, P4, P9: out of order, duplicates kept, times, latest by step."""
        run = store.run()
        run.log_metric("loss", 3.0, step=5, time=10.0)
        run.log_metric("loss", 1.0, step=1)
        run.log_metric("loss", 2.0, step=5, time=20.0)
        found = run.metrics("loss")
        assert found.steps.tolist() == [1, 5, 5]
        assert found.values.tolist() == [1.0, 3.0, 2.0]
        assert found.times.tolist() == [store.clock.now, 10.0, 20.0]
        assert run.latest("loss") == 2.0
        assert run.latest("other") is None
        assert run.metrics("other").values.size == 0
        assert run.metric_names == ["loss"]

    @given(
        points=st.lists(st.tuples(st.integers(-(2**40), 2**40), st.floats(width=64)), max_size=40)
    )
    @settings(max_examples=25, deadline=None)
    def test_everything_is_kept(self, points):
        """E8: NaN and infinities survive; the order of equal steps too."""
        run = Store(":memory:").run()
        for step, value in points:
            run.log_metric("m", value, step=step)
        found = run.metrics("m")
        expected = sorted(points, key=lambda point: point[0])
        assert found.steps.tolist() == [step for step, _ in expected]
        np.testing.assert_array_equal(found.values, [value for _, value in expected])

    def test_steps_by_themselves(self, store):
        """One more than the highest, also from another handle."""
        run = store.run()
        run.log_metrics({"a": 1.0, "b": 2.0})
        run.log_metric("a", 1.5, step=7)
        run.log_metric("a", 1.6)
        again = store.get_run(run.id)
        _ = run.info
        again.log_metric("a", 1.7)
        assert again.metrics("a").steps.tolist() == [0, 7, 8, 9]

    def test_many_points_and_processes(self, tmp_path):
        """Pieces of several writers are one series."""
        where = str(tmp_path / "store")
        run = Store(where).run()

        def log(start):
            mine = Store(where).get_run(run.id)
            for step in range(start, start + 10_000):
                mine.log_metric("m", float(step), step=step)
            _ = mine.info

        for start in (10_000, 0):
            assert in_child(lambda s=start: log(s))[0] == 0
        np.testing.assert_array_equal(run.metrics("m").values, np.arange(20_000.0))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("", 1.0), "1 to 200 characters"),
            (("a\0b", 1.0), "1 to 200 characters"),
            (("a", "x"), "a metric is a number"),
            (("a", 1.0, 0.5), "a step is a whole number"),
        ],
    )
    def test_wrong_arguments(self, store, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            store.run().log_metric(*arguments)

    def test_fits_have_series(self, store):
        """Objective, best, step length and gradient norm, at a bounded rate that keeps the shape."""
        path = []

        def bowl(x):
            path.append(float(x @ x))
            if len(path) == 50_000:
                path[-1] = -1.0
            return path[-1]

        with using(store=store):
            optimize.minimize(
                bowl,
                np.ones(4),
                method="Nelder-Mead",
                options={"maxfev": 100_000, "maxiter": 100_000, "xatol": 0.0, "fatol": 0.0},
            )
        (run,) = store.runs()
        assert run.metric_names == ["best", "objective", "step length"]
        found, best = run.metrics("objective"), run.metrics("best")
        assert 50 < len(found.steps) < 300
        assert found.values.max() == max(path)
        assert best.latest == found.values.min() == min(path)
        assert found.steps[-1] == len(path)
        assert np.all(np.diff(best.values) < 0.0)
        assert np.all(np.diff(found.times) >= 0.0)

        assert found.steps[0] == 1
        assert run.info.evaluations == len(path)

        def sloped(x):
            time.sleep(0.01)
            return x @ x, 2.0 * x

        with using(store=store):
            optimize.minimize(sloped, np.ones(20), jac=True)
        assert "gradient norm" in store.runs()[0].metric_names

    @pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
    @pytest.mark.parametrize("method", ["SLSQP", "COBYLA", "trust-constr"])
    def test_constraints_have_a_series(self, store, method):
        """By how much the worst of them is missed, until none is."""

        def objective(x):
            time.sleep(0.003)
            return float(np.sum((x - 2.0) ** 2))

        limits = [
            {"type": "ineq", "fun": lambda x: 1.0 - x @ x},
            {"type": "eq", "fun": lambda x: x[0] - x[1]},
        ]
        if method == "COBYLA":
            limits = scipy.optimize.NonlinearConstraint(lambda x: x @ x, -np.inf, 1.0)
        with using(store=store):
            found = optimize.minimize(objective, [3.0, 1.0], method=method, constraints=limits)
        violation = store.runs()[0].metrics("constraint violation")
        assert violation.values[0] > 0.1
        assert violation.values[-1] < 0.1
        assert found.x @ found.x < 1.01

    def test_replayed_parts_are_in_the_series(self, tmp_path):
        """A fit that was killed and goes on has one curve, from its first evaluation on."""
        where = str(tmp_path / "store")
        calls = [0]

        def slow(x):
            time.sleep(0.002)
            calls[0] += 1
            if calls[0] == 200:
                os.kill(os.getpid(), signal.SIGKILL)
            return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))

        def fit():
            with using(store=where, model="slow"):
                return optimize.minimize(slow, np.full(3, 1.5), method="Nelder-Mead")

        assert in_child(lambda: fit().nfev)[0] == -signal.SIGKILL
        calls[0] = 1000
        whole = fit()
        assert whole.warm.replay == "exact"
        (run,) = Store(where).runs("source = journal")
        found = run.metrics("objective")
        assert (found.steps[0], found.steps[-1]) == (1, whole.nfev)
        assert run.latest("best") == whole.fun
        assert run.started_from.state == "dead"


class TestArtifacts:
    def test_one_blob_for_equal_bytes(self, store):
        """E10, E11, P5, P18, E22: by content, listed with name, type, size, hash and time."""
        one, other = store.run(), store.run()
        first = one.log_artifact("a.png", b"bytes" * 100)
        second = other.log_artifact("b.bin", b"bytes" * 100, kind="model")
        assert first.hash == second.hash
        assert len(first.hash) == 64
        assert (first.type, second.type, first.size) == ("image/png", "model", 500)
        assert store.stats().artifacts == 2
        assert len(store.backend.scan(b"a")) == 1
        assert one.artifacts == [first]
        assert one.load_artifact("a.png") == b"bytes" * 100
        assert one.delete_artifact("a.png")
        assert not one.delete_artifact("a.png")
        assert other.load_artifact("b.bin") == b"bytes" * 100
        other.log_artifact("b.bin", b"others")
        assert len(store.backend.scan(b"a")) == 1
        other.delete()
        assert store.backend.scan(b"a") == store.backend.scan(b"b") == []

    def test_files(self, store, tmp_path):
        (tmp_path / "log.txt").write_text("done")
        run = store.run()
        assert run.log_artifact("log.txt", tmp_path / "log.txt").type == "text/plain"
        assert run.load_artifact("log.txt") == b"done"

    def test_damage_is_seen(self, store):
        """E22: the hash is verified on every read."""
        run = store.run()
        made = run.log_artifact("a", b"bytes")
        row = b"a" + bytes.fromhex(made.hash)
        from warmstart.record import seal

        store.backend.apply(Batch({row: seal(b"other")}))
        with pytest.raises(RecordError, match="others than were written"):
            run.load_artifact("a")
        store.backend.apply(Batch(deletes=[row]))
        with pytest.raises(RecordError, match="not in the store"):
            run.load_artifact("a")
        with pytest.raises(RunLookupError, match="no artifact 'b'"):
            run.load_artifact("b")

    def test_many_at_once(self, tmp_path):
        """Counts of references are right whatever the order: eight threads, one blob."""
        store = Store(tmp_path / "store")
        runs = [store.run() for _ in range(8)]

        def work(run):
            for i in range(20):
                run.log_artifact("a", b"same" if i % 2 else b"other")
            run.delete_artifact("a")

        threads = [threading.Thread(target=work, args=(run,)) for run in runs]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert store.backend.scan(b"a") == store.backend.scan(b"b") == []

    def test_wrong_arguments(self, store):
        run = store.run()
        with pytest.raises(ArgumentError, match="bytes or the path of a file"):
            run.log_artifact("a", 3)
        with pytest.raises(ArgumentError, match="1 to 300 bytes"):
            run.log_artifact("", b"x")
        store.entry_budget = 10
        with pytest.raises(ArgumentError, match="larger entry_budget"):
            run.log_artifact("a", bytes(11))


class TestStates:
    STATE = {"x": np.arange(4.0), "k": 3}

    def test_steps(self, store):
        """C1, C2, C3, C12: exact step, the highest, re-save overwrites, steps rising, history."""
        run = store.run()
        assert run.load_state() is None
        for step in (10, 2, 7):
            run.save_state(step, {"at": step})
        run.save_state(7, {"at": 7.5})
        assert run.steps() == [2, 7, 10]
        assert run.load_state().state == {"at": 10}
        assert run.load_state(7).state == {"at": 7.5}
        assert run.load_state(3) is None
        assert [run.load_state(step).state["at"] for step in run.steps()] == [2, 7.5, 10]

    def test_active_tasks_are_written_with_it(self, store):
        """C4, C5, C6: names and payloads, in one row; none is an empty set."""
        run = store.run()
        run.save_state(1, self.STATE, {"a": np.ones(2), "b": None})
        run.save_state(2, self.STATE)
        found = run.load_state(1)
        np.testing.assert_array_equal(found.active["a"], np.ones(2))
        assert list(found.active) == ["a", "b"]
        assert run.load_state(2).active == {}
        np.testing.assert_array_equal(found.state["x"], np.arange(4.0))
        assert len(store.backend.scan(b"i")) == 2

    def test_namespaces(self, store):
        """C8: sub-fits do not see each other's steps."""
        run = store.run()
        run.save_state(1, "whole")
        run.save_state(5, "fold", namespace="fold 1")
        run.save_state(6, "other", namespace="fold 12")
        assert run.steps() == [1]
        assert run.steps(namespace="fold 1") == [5]
        assert run.load_state(namespace="fold 12").state == "other"

    def test_policies(self, store):
        """C9: every n-th, the last k, and older ones ever further apart; durable on demand."""
        run = store.run()
        wrote = [run.save_state(step, step, policy=Policy(every=5)) for step in range(12)]
        assert [step for step in range(12) if wrote[step]] == run.steps() == [0, 5, 10]
        for step in range(100):
            run.save_state(step, step, namespace="k", policy=Policy(last=3))
            run.save_state(step, step, namespace="g", policy=Policy(last=2, geometric=True))
        assert run.steps(namespace="k") == [97, 98, 99]
        kept = run.steps(namespace="g")
        assert kept[-2:] == [98, 99]
        assert kept[0] < 60
        assert len(kept) < 20
        assert run.save_state(1, "x", namespace="d", durable=True)
        late = Policy(every=10, on_exit=True)
        with store.run() as other:
            for step in range(25):
                other.save_state(step, step, policy=late)
        assert other.steps() == [0, 10, 20, 24]
        with store.run() as other:
            for step in range(21):
                other.save_state(step, step, policy=late)
        assert other.steps() == [0, 10, 20]

    def test_edit_and_go_on(self, store):
        """C13: a state is changed, and the work goes on from it."""
        run = store.run()
        run.save_state(4, {"x": 1.0}, {"a": 1})
        state = run.load_state()
        run.save_state(state.step, {**state.state, "x": 2.0}, state.active)
        assert run.load_state() == (4, {"x": 2.0}, {"a": 1})

    def test_damaged_states_are_passed_over(self, store):
        """The highest that can be read."""
        run = store.run()
        run.save_state(1, "one")
        run.save_state(2, "two")
        row = store.backend.scan(b"i")[-1].key
        store.backend.apply(Batch({row: b"garbage"}))
        assert run.load_state().state == "one"
        assert run.load_state(2) is None

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((-1, 0), {}, "a step is a number from 0 up"),
            ((True, 0), {}, "a step is a number from 0 up"),
            ((1, 0, [1]), {}, "active is a mapping"),
            ((1, 0), {"namespace": "a\0"}, "a namespace is"),
        ],
    )
    def test_wrong_arguments(self, store, arguments, options, message):
        with pytest.raises(ArgumentError, match=message):
            store.run().save_state(*arguments, **options)


class TestSearch:
    @pytest.fixture
    def runs(self, store):
        made = []
        for i in range(4):
            run = store.run(
                experiment="a" if i < 3 else "b",
                name=f"run {i}",
                params={"i": i, "half": i / 2, "text": f"t{i}", "even": i % 2 == 0},
                tags={"group": "xy"[i % 2]},
            )
            with run:
                run.log_metric("loss", 10.0 - i, step=1)
                run.log_metric("loss", 100.0, step=0)
            made.append(run)
        return made

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ([], [0, 1, 2, 3]),
            ([("params.i", "eq", 2)], [2]),
            ([("params.i", "eq", 2.0)], [2]),
            ([("params.i", "ne", 2)], [0, 1, 3]),
            ([("params.half", "gt", 0.5), ("params.i", "lt", 3)], [2]),
            ([("params.half", "ge", 0.5), ("params.i", "le", 2)], [1, 2]),
            ([("params.text", "contains", "3")], [3]),
            ([("params.text", "startswith", "t")], [0, 1, 2, 3]),
            ([("params.text", "gt", "t1")], []),
            ([("params.i", "ne", "2")], []),
            ([("params.even", "eq", True)], [0, 2]),
            ([("params.even", "eq", 1)], []),
            ([("params.none", "ne", 1)], []),
            ([("metrics.loss", "le", 8.0)], [2, 3]),
            ([("tags.group", "eq", "x")], [0, 2]),
            ([("status", "eq", "completed"), ("experiment", "eq", "b")], [3]),
            (["params.i >= 2", "tags.group = x"], [2]),
            ("name ^= run", [0, 1, 2, 3]),
        ],
    )
    def test_conditions(self, store, runs, where, expected):
        """E17: ANDed; no condition is all; values of other types never match, even for ne."""
        assert store.runs(where) == [runs[i] for i in reversed(expected)]

    def test_lists_and_counts(self, store, runs):
        """E18, E19, P20: runs of an experiment, limits, what is in the store."""
        assert store.runs(experiment="a") == runs[2::-1]
        assert store.runs(limit=2) == runs[:1:-1]
        stats = store.stats()
        assert (stats.experiments, stats.runs, stats.series) == (2, 4, 4)

    def test_tables_and_json(self, store, runs):
        """P14: unset fields are left out; JSON and back; a DataFrame, a row a run."""
        found = store.runs()
        frame = found.to_frame()
        assert frame["params.i"].tolist() == [3, 2, 1, 0]
        assert frame["run"].tolist() == [run.id for run in runs[::-1]]
        assert frame["metrics.loss"].tolist() == [7.0, 8.0, 9.0, 10.0]
        started = [run.info.started for run in runs[::-1]]
        assert [at.timestamp() for at in frame["started"]] == pytest.approx(started, abs=1e-6)
        assert str(frame["started"].dt.tz) == "UTC"
        text = found.to_json()
        assert "error" not in json.loads(text)[0]
        other = Store(":memory:")
        assert import_runs(other, text) == 4
        assert import_runs(other, text) == 0
        assert other.runs().to_dicts() == found.to_dicts()
        with pytest.raises(ArgumentError, match=r"not what Runs\.to_json writes"):
            import_runs(other, "[{}]")

    def test_old_documents_load(self, store):
        """P14: a run without the fields that came later."""
        run = store.run()
        import msgspec

        old = msgspec.msgpack.encode(
            {"run": run.id, "key": "", "status": "completed", "started": 1.0}
        )
        from warmstart.record import seal

        store.backend.apply(Batch({info_row(run.id): seal(old)}))
        assert run.info.evaluations == 0

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            (["what?"], "a condition is written as"),
            ([("params.a", "like", 1)], "one of eq, ne"),
            ([("color", "eq", 1)], "there is no field 'color'"),
            (["params.a >>= 1"], "a condition is written as"),
            (["status=compleet"], "status is one of"),
        ],
    )
    def test_wrong_conditions(self, store, where, message):
        with pytest.raises(ArgumentError, match=message):
            store.runs(where)
        with pytest.raises(ArgumentError, match="status is one of"):
            store.runs(status="done")

    def test_conditions_as_text(self):
        assert condition("metrics.loss<1e-3") == ("metrics.loss", "lt", 1e-3)
        assert condition('tags.a != "3"') == ("tags.a", "ne", "3")


class TestLineage:
    def info(self, run, parent=None, start=None, source=""):
        name = f"{run:032x}"
        return RunInfo(
            run=name,
            key="",
            status="completed",
            started=0.0,
            parent=None if parent is None else f"{parent:032x}",
            start_run=None if start is None else f"{start:032x}",
            source=source,
        )

    def test_the_graph(self):
        """P21: parents, children, closures, paths, roots, leaves, depth, order, typed edges."""
        tree = Lineage(
            [
                self.info(1),
                self.info(2, start=1, source="near"),
                self.info(3, start=2, source="journal"),
                self.info(4, parent=1, start=2, source="near"),
                self.info(5),
            ]
        )
        name = lambda i: f"{i:032x}"
        assert tree.parents(name(4)) == [name(1), name(2)]
        assert tree.children(name(2)) == [name(3), name(4)]
        assert tree.ancestors(name(3)) == [name(2), name(1)]
        assert set(tree.descendants(name(1))) == {name(2), name(3), name(4)}
        assert [edge.kind for edge in tree.path(name(1), name(3))] == ["near", "journal"]
        assert tree.path(name(3), name(1)) is None
        assert tree.roots == [name(1), name(5)]
        assert tree.leaves == [name(3), name(4), name(5)]
        assert [tree.depth(name(i)) for i in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 0]
        assert tree.sorted() == [name(i) for i in range(1, 6)]
        with pytest.raises(RunLookupError):
            tree.parents("unknown")

    @given(links=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=30))
    @settings(max_examples=50, deadline=None)
    def test_no_cycles_whatever_the_rows_say(self, links):
        """P21: an edge back in time is left out, so nothing is its own ancestor."""
        tree = Lineage([self.info(run, start=start, source="near") for run, start in links])
        for run in tree.runs:
            assert run not in tree.ancestors(run)
            assert tree.depth(run) <= 15

    def test_of_fits(self, store):
        """Which fit started from which, at which level."""

        def bowl(x, a):
            return float(np.sum((x - a) ** 2 + 0.1 * (x - a) ** 4)), 2.0 * (x - a) + 0.4 * (
                x - a
            ) ** 3

        with using(store=store, near=True):
            for a in (1.0, 1.1, 1.2):
                optimize.minimize(bowl, np.zeros(3), args=(a,), jac=True)
        newest, middle, first = store.runs()
        assert newest.started_from == middle
        assert newest.info.level == "sibling-hyper"
        tree = store.lineage(newest)
        assert tree.ancestors(newest.id) == [middle.id, first.id]
        assert tree.to_dict()["edges"][0]["kind"] == "near"


def wells(x, slow=0.0):
    time.sleep(slow)
    return float(np.sum((x**2 - 1.0) ** 2 + 0.1 * x))


class TestMultistart:
    BOUNDS = [(-2.0, 2.0)] * 2

    def test_all_minima(self, store):
        """Best first, with how many starts ended there; its fits are parts of its run."""
        with using(store=store):
            found = multistart(wells, 32, self.BOUNDS)
        assert len(found.minima) == 4
        assert [minimum.fun for minimum in found.minima] == sorted(m.fun for m in found.minima)
        assert sum(minimum.count for minimum in found.minima) == 32
        assert found.fun == found.minima[0].fun
        assert found.starts.shape == (32, 2)
        run = store.get_run(found.run)
        assert run.status == "completed"
        assert len(run.children) == 32
        assert run.load_state().active == {}
        head, columns, *rows = str(found).splitlines()
        assert head == "4 minima from 32 starts"
        assert columns.split() == ["fun", "starts", "x"]
        assert [int(row.split()[1]) for row in rows] == [one.count for one in found.minima]

    def test_given_starts_and_methods(self, store):
        with using(store=store):
            found = multistart(wells, [[1.0, 1.0], [-1.0, -1.0]], method="Powell")
        assert len(found.minima) == 2

    def test_killed_and_resumed(self, tmp_path):
        """C6, C7: exactly the pending starts are done, under the same run."""
        where = str(tmp_path / "store")

        def work():
            with using(store=where):
                import warmstart.run as runs

                saved = runs.Run.save_state

                def watched(self, step, *args, **kwargs):
                    done = saved(self, step, *args, **kwargs)
                    if step == 5:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return done

                runs.Run.save_state = watched
                # Writing seems to take no time, so that no step is left out for it.
                still = types.SimpleNamespace(perf_counter=lambda: 0.0)
                sys.modules["warmstart.multistart"].time = still
                multistart(slow_wells, 12, self.BOUNDS)

        assert in_child(work)[0] == -signal.SIGKILL
        store = Store(where)
        (run,) = store.runs(status="dead")
        assert store.runs("status=dead")[0].id == run.id
        assert len(store.runs("status=running")) == 0
        state = run.load_state()
        assert len(state.active) == 7
        assert len(state.state) == 5
        with using(store=store) as fits:
            found = multistart(slow_wells, 12, self.BOUNDS)
        assert found.run == run.id
        assert len(fits) == 7
        assert store.get_run(run.id).status == "completed"
        with using(store=Store(":memory:")):
            whole = multistart(slow_wells, 12, self.BOUNDS)
        assert [m.count for m in whole.minima] == [m.count for m in found.minima]
        assert all(
            a.x.tobytes() == b.x.tobytes()
            for a, b in zip(whole.results, found.results, strict=True)
        )

    def test_processes(self, tmp_path):
        """Parallel by joblib; the children are in the same store."""
        pytest.importorskip("joblib")
        script = tmp_path / "many.py"
        script.write_text(
            "from warmstart import using, Store\n"
            "from warmstart.multistart import multistart\n"
            "def bowl(x):\n    return float((x[0] ** 2 - 1.0) ** 2 + 0.1 * x[0])\n"
            "if __name__ == '__main__':\n"
            "    with using(store='fits'):\n"
            "        found = multistart(bowl, 8, [(-2.0, 2.0)], n_jobs=2)\n"
            "    print(len(found.minima), len(Store('fits').get_run(found.run).children))\n"
        )
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["2", "8"]

    def test_an_exception_fails_it(self, store):
        """And the same call goes on with the same run."""
        broken = [True]

        def fragile(x):
            if broken[0] and x[0] > 0.0:
                raise OverflowError("too far")
            return wells(x)

        with using(store=store, model="fragile"), pytest.raises(OverflowError):
            multistart(fragile, 8, self.BOUNDS)
        assert store.runs(status="failed")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((wells, 8), "starts are drawn between bounds.*: write bounds="),
            ((wells, 8, [(0.0, np.inf)]), r"between bounds.*, not \[\(0.0, inf\)\]"),
            ((wells, 8, [(1.0, 0.0)]), r"a higher upper one .*, not \[\(1.0, 0.0\)\]"),
            ((wells, 0, [(0.0, 1.0)]), "starts is a number from 1 up .*, not 0"),
            ((wells, -8, [(0.0, 1.0)]), "starts is a number from 1 up .*, not -8"),
            ((wells, [1.0, 2.0]), r"a \(k, n\) array"),
            ((wells, "many"), r"a \(k, n\) array"),
            ((3, [[1.0]]), "fun is a function"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            multistart(*arguments)

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"rng": "a"}, "rng is a number from 0 up, a Generator or None, not 'a'"),
            ({"rng": -1}, "rng is a number from 0 up"),
            ({"n_jobs": "a"}, "n_jobs is a number of processes or -1 for all, not 'a'"),
            ({"n_jobs": 0}, "n_jobs is a number of processes"),
        ],
    )
    def test_wrong_options(self, option, message):
        with pytest.raises(ArgumentError, match=message):
            multistart(wells, 8, self.BOUNDS, **option)


def slow_wells(x):
    return wells(x, 0.0002)


class TestKeeping:
    """Tracked rows stay within the store's bounds, and are sound."""

    def test_runs_are_forgotten_with_their_age(self, tmp_path):
        clock = Clock()
        store = Store(tmp_path / "store", ttl=86_400.0 * 2, clock=clock)
        with store.run(name="old") as run:
            run.log_metric("m", 1.0)
            run.log_artifact("a", b"x")
            run.save_state(1, "s")
        old_id = run.id
        clock.now += 86_400.0 * 5
        with store.run(name="new") as run:
            run.log_metric("m", 1.0)
            run.log_artifact("b", b"x")
        store.gc()
        assert [one.id for one in store.runs()] == [run.id]
        assert old_id != run.id
        stats = store.stats()
        assert (stats.series, stats.artifacts, stats.states) == (1, 1, 0)
        assert run.load_artifact("b") == b"x"

    def test_the_budget_holds_for_what_runs_leave(self, tmp_path):
        store = Store(tmp_path / "store", size_budget=4 << 20, entry_budget=1 << 20)
        for i in range(12):
            with store.run() as run:
                run.log_artifact("a", np.random.default_rng(i).bytes(500_000))
        store.gc()
        assert store.backend.size() <= 4 << 20
        assert store.runs()[0].load_artifact("a")

    def test_the_budget_holds_for_runs_alone(self, store):
        """The oldest go; what is running, and what has an entry, stays."""
        store.size_budget = 200_000
        first = store.run(name="running").start()
        with store.session(FitSpec(model="kept")) as session:
            session.finalize(1.0)
        for i in range(600):
            with store.run(name=f"run {i}", params={"text": "x" * 400}):
                pass
        store.gc()
        names = [run.name for run in store.runs() if not run.info.key]
        assert store.backend.size() <= 200_000
        assert 10 < len(names) < 600
        assert names[0] == "run 599"
        assert names[-1] == first.name
        assert store.run_info(session.run_id).status == "completed"
        first.complete()

    def test_runs_that_are_swept_while_they_are_listed_are_left_out(self, store):
        with store.run(name="swept"):
            pass
        with store.run(name="kept") as kept:
            pass
        found = store.runs()
        store.backend.apply(Batch(deletes=[info_row(found[-1].id)]))
        assert [row["run"] for row in found.to_dicts()] == [kept.id]

    def test_the_history_of_fits_leaves_room_for_entries(self, tmp_path):
        """However many fits there were, a sweep leaves entries of many, and rows of the last."""
        with Store(tmp_path / "store", size_budget=300_000) as store:
            with store.run(name="made by hand"):
                pass
            for number in range(1500):
                with store.session(FitSpec(model=f"fit {number}")) as session:
                    session.finalize(np.zeros(10), float(number))
            store.gc()
            assert store.backend.size() <= 300_000
            stats = store.stats()
            assert stats.entries > 50
            assert 50 < stats.runs < 600
            assert len(store.runs([("name", "eq", "made by hand")])) == 1

    def test_verify_reads_all_of_it(self, store):
        """E21: every row is sealed and checked."""
        with store.run(params={"a": 1}) as run:
            run.log_metric("m", 1.0)
            run.log_artifact("a", b"x")
            run.save_state(1, "s")
        report = store.verify()
        assert report.sound
        assert report.records >= 8

    def test_everything_is_public(self):
        for name in ("Run", "Runs", "Experiment", "Artifact", "State", "Policy", "Series"):
            assert name in warmstart.__all__


def test_every_row_is_shown():
    """Each row of the feature lists has a test that names it, or is left out with a reason."""
    named = set()
    for file in ("test_runs.py", "test_learned.py", "test_page.py"):
        text = Path(__file__).with_name(file).read_text()
        named |= set(re.findall(r"\b([EPCN]\d+)\b", text))
    wanted = {f"E{i}" for i in (*range(1, 20), 21, 22)}
    wanted |= {f"P{i}" for i in (*range(1, 16), 18, 20, 21)}
    wanted |= {f"C{i}" for i in (*range(1, 10), 12, 13, 14)}
    wanted |= {f"N{i}" for i in range(1, 27)}
    assert wanted - named == LEFT_OUT


LEFT_OUT = {
    "N" + "17",  # a score of how much a call matters: nothing here chooses by one
    "N" + "25",  # a detector of convergence: plans follow from the books, nothing has to converge
}
