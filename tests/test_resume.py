"""Going on where a fit was killed, stopped or interrupted, and every trap on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from fits import COUNTER, FITS, differences
from processes import SIGKILLED, in_child

from warmstart import (
    ArgumentError,
    ReplayError,
    Store,
    Warm,
    WarmstartWarning,
    journal,
    optimize,
    replaying,
    using,
)

X4 = [-1.2, 1.0, 0.8, 1.1]


@pytest.fixture(autouse=True)
def _every_evaluation_at_once(monkeypatch):
    monkeypatch.setattr(journal, "BUFFER_SECONDS", 0.0)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


def journals(store):
    return store.journals.paths()


class Rosen:
    """Rosenbrock's function, which may raise, kill, or do something else at one of its calls."""

    def __init__(self, at=None, deed=None):
        self.count, self.at, self.deed = 0, at, deed

    def __reduce__(self):
        return Rosen, ()  # what it does besides is no part of what is fitted

    def __call__(self, x):
        self.count += 1
        if self.count == self.at:
            self.deed()
        return scipy.optimize.rosen(x)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def break_down():
    raise OSError("the disk of the simulator is full")


def same(one, other):
    return list(differences(one, other)) == []


class TestStopping:
    """However a fit ends before its end, the same call goes on exactly."""

    @pytest.mark.parametrize("deed", [interrupt, break_down, lambda: sys.exit(3)])
    def test_exceptions_pass_and_the_fit_goes_on(self, store, deed):
        """Ctrl-C, an exception and an exit come out; the next call continues bit for bit."""
        plain = scipy.optimize.minimize(Rosen(), X4)
        with using(store=store, journal=True):
            with pytest.raises((KeyboardInterrupt, OSError, SystemExit)):
                optimize.minimize(Rosen(60, deed), X4)
            function = Rosen()
            result = optimize.minimize(function, X4)
        assert same(plain, result)
        assert result.warm.source == "journal"
        assert result.warm.evaluations_saved == (59 if deed is not break_down else 60) - (
            deed is break_down  # it is on record that this call gave nothing: it is done again
        )
        assert function.count == result.warm.evaluations

    def test_ctrl_c_at_any_instant(self, tmp_path):
        """Once, or again while the first one is dealt with: the fit goes on after it."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import gc, random, signal, sys, time, warnings
                import numpy as np, scipy.optimize
                from warmstart import Warm, journal, optimize
                warnings.simplefilter("ignore")  # that it does not get far
                def objective(x):
                    end = time.perf_counter() + 1e-4
                    while time.perf_counter() < end:
                        pass
                    return scipy.optimize.rosen(x)
                def interrupt(*_):
                    global left
                    if left:
                        left -= 1
                        raise KeyboardInterrupt
                left, rng, done = 0, random.Random(3), []
                signal.signal(signal.SIGALRM, interrupt)
                for number in range(90):
                    x0 = np.array([-1.2, 1.0, 0.8]) + len(done)
                    try:
                        left = 1 + number % 2
                        again = rng.uniform(1e-4, 3e-3)
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-3, 0.06), again)
                        warm = Warm(store=sys.argv[1], journal=True)
                        done.append(optimize.minimize(objective, x0, method="Powell", warm=warm))
                        left = 0
                    except KeyboardInterrupt:
                        left = 0
                    signal.setitimer(signal.ITIMER_REAL, 0.0)
                end = time.monotonic() + 30
                while journal._held and time.monotonic() < end:
                    gc.collect()  # for who goes on where the main thread was interrupted
                assert journal._held == {}
                for number, result in enumerate(done):
                    x0 = np.array([-1.2, 1.0, 0.8]) + number
                    plain = scipy.optimize.minimize(objective, x0, method="Powell")
                    assert (result.x == plain.x).all() and result.nfev == plain.nfev
                x0 = np.array([-1.2, 1.0, 0.8]) + len(done)
                for source in (("journal", "cold"), ("final",)):
                    warm = Warm(store=sys.argv[1], journal=True)
                    result = optimize.minimize(objective, x0, method="Powell", warm=warm)
                    assert result.warm.source in source, result.warm
                print(len(done))
                """
            )
        )
        ended = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "store")],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert int(ended.stdout) >= 1

    def test_ctrl_c_while_the_journal_is_closed(self, store, monkeypatch):
        """The second one, while the first is dealt with: the journal is free for the next call."""
        real, armed = os.fdatasync, [1]

        def sync(descriptor):
            if armed:
                armed.clear()
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return real(descriptor)

        monkeypatch.setattr(os, "fdatasync", sync)
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(60, interrupt), X4)
            end = time.monotonic() + 30
            while journal._held and time.monotonic() < end:
                os.sched_yield()  # to who goes on where the main thread was interrupted
            assert not armed
            result = optimize.minimize(Rosen(), X4)
        assert (result.warm.source, result.warm.why) == ("journal", None)

    def test_short_fits_leave_no_journal(self, store):
        """Below 200 ms nothing is written, unless asked, or the fit was stopped on purpose."""
        with using(store=store):
            optimize.minimize(Rosen(), X4)
            with pytest.raises(OSError, match="simulator"):
                optimize.minimize(Rosen(20, break_down), X4, method="CG")
            assert journals(store) == []
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(20, interrupt), X4, method="CG")
            assert len(journals(store)) == 1
            assert optimize.minimize(Rosen(), X4, method="CG").warm.source == "journal"

    def test_a_journal_is_begun_after_200_ms(self, store):
        """By default a fit that lasts is journalled, and its journal is kept."""

        def slow(x):
            end = time.perf_counter() + 0.004
            while time.perf_counter() < end:
                pass
            return scipy.optimize.rosen(x)

        with using(store=store):
            optimize.minimize(slow, X4, method="Nelder-Mead", options={"maxfev": 80})
        (path,) = journals(store)
        assert path.stat().st_size > 80 * 18

    @pytest.mark.parametrize("options", [{}, {"on_interrupt": "raise"}])
    def test_ctrl_c_raises_by_default(self, store, options):
        """KeyboardInterrupt comes out unless it is asked to be caught."""
        with using(store=store, **options), pytest.raises(KeyboardInterrupt):
            optimize.minimize(Rosen(9, interrupt), X4)

    def test_ctrl_c_may_return_the_best_point(self, store):
        """With on_interrupt="return" the best point comes back, with its objective."""
        seen = []

        def watched(x):
            seen.append((scipy.optimize.rosen(x), x.tolist()))
            if len(seen) == 33:
                raise KeyboardInterrupt
            return seen[-1][0]

        with using(store=store, on_interrupt="return"):
            result = optimize.minimize(watched, X4, method="Nelder-Mead")
        assert (result.fun, result.x.tolist()) == min(seen[:32])
        assert not result.success
        assert result.message.startswith("interrupted")
        assert result.nfev == 32
        assert result.warm.why == result.message

    @pytest.mark.parametrize("name", ["TNC jac", "COBYQA", "DE callback", "leastsq", "direct"])
    def test_a_time_limit_counts_new_work(self, store, name):
        """A fit given no time at all does a little each time, and ends as if undisturbed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = FITS[name].call(scipy.optimize)
        steps = 0
        with using(store=store, time_limit=0.0) as fits:
            while True:
                steps += 1
                COUNTER.reset()
                result = FITS[name].call(optimize)
                assert COUNTER.count == fits[-1].evaluations <= 3
                if not str(fits[-1].why).startswith("stopped"):
                    break
                if steps == 25:
                    fits.clear()
                    with using(time_limit=None):
                        result = FITS[name].call(optimize)
                    assert fits[-1].evaluations_saved >= 24
                    break
        assert same(plain, result)

    def test_a_result_of_every_shape(self, store):
        """A stopped fit returns what its function returns, of the same type and length."""
        done = set()
        for fit in FITS.values():
            if fit.function in done or fit.callback or fit.pool:
                continue
            done.add(fit.function)
            with warnings.catch_warnings(), using(store=store, time_limit=0.0) as fits:
                warnings.simplefilter("ignore")
                plain = fit.call(scipy.optimize)
                if fit.function.startswith("elementwise"):
                    with pytest.raises(TimeoutError, match=r"elementwise\.find_"):
                        fit.call(optimize)
                    continue
                result = fit.call(optimize)
            assert type(result).__mro__[-2:] == type(plain).__mro__[-2:], fit.function
            assert fits[-1].why.startswith("stopped after 0 s")
            if isinstance(plain, dict):
                assert not (result.success if "success" in result else result.converged)
            elif isinstance(plain, tuple):
                assert len(result) == len(plain)
            assert "stopped" in str(result) or not isinstance(plain, dict)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_run_that_is_terminated_goes_on(self, tmp_path, number):
        """What schedulers send ends ``warmstart run``, and the next run continues the fit."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import sys, time
                from scipy.optimize import minimize, rosen
                def slow(x):
                    time.sleep(0.005)
                    return rosen(x)
                print("begun", flush=True)
                result = minimize(slow, [-1.2, 1.0], method="Nelder-Mead", options={"maxfev": 150})
                print(result.nfev, result.warm.source, result.warm.evaluations_saved > 30)
                """
            )
        )
        command = [sys.executable, "-m", "warmstart", "run", "--store", str(tmp_path / "s")]
        with subprocess.Popen(
            [*command, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout.readline() == "begun\n"
            folder = tmp_path / "s" / "journals"
            while not (sizes := [p.stat().st_size for p in folder.glob("*/*")]) or sizes[0] < 3500:
                assert child.poll() is None
                time.sleep(0.01)
            child.send_signal(number)
            said = child.communicate()
            assert child.returncode == 128 + number, said
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=True)
        assert done.stdout == "begun\n150 journal True\n"

    def test_generators_are_left_for_the_next_call(self, store):
        """After Ctrl-C a passed generator is as it was, so that the same call is the same fit."""
        plain = scipy.optimize.differential_evolution(
            scipy.optimize.rosen, [(0, 2)] * 2, rng=np.random.default_rng(5), maxiter=4
        )
        rng = np.random.default_rng(5)
        box = [(0, 2)] * 2
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.differential_evolution(Rosen(70, interrupt), box, rng=rng, maxiter=4)
            result = optimize.differential_evolution(Rosen(), box, rng=rng, maxiter=4)
        assert same(plain, result)
        assert result.warm.evaluations_saved == 69


class TestKills:
    """SIGKILL where it hurts."""

    def test_many_kills(self, store):
        """Killed at every eleventh evaluation, again and again: nothing is done twice."""
        plain = scipy.optimize.minimize(Rosen(), X4, method="Powell", options={"maxfev": 200})
        lives, status = 0, SIGKILLED

        def live():
            function = Rosen(12, die)
            with using(store=Store(store.address), journal=True):
                result = optimize.minimize(function, X4, method="Powell", options={"maxfev": 200})
            return [function.count, result.warm.probes, same(plain, result)]

        while status == SIGKILLED:
            status, answer = in_child(live)
            lives += 1
        count, probes, equal = answer
        assert equal
        # Each life but the first does two of its eleven evaluations to compare.
        assert (lives - 1) * 9 + 2 <= plain.nfev <= (lives - 1) * 9 + 2 + count
        assert probes == 2

    def test_a_kill_inside_a_gradient(self, store):
        """The objective at a point is on record, its gradient is not: it goes on from there."""
        calls = []

        def gradient(x, at=None):
            calls.append(x)
            return scipy.optimize.rosen_der(x)

        plain = scipy.optimize.minimize(Rosen(), X4, jac=scipy.optimize.rosen_der)

        def work(at):
            objective, slope = Rosen(), Slope(at)
            with using(store=Store(store.address), journal=True):
                result = optimize.minimize(objective, X4, jac=slope)
            return [same(plain, result), objective.count, slope.count, result.warm.probes]

        status, _ = in_child(lambda: work(10))
        assert status == SIGKILLED
        _, (equal, values, slopes, probes) = in_child(lambda: work(None))
        assert equal
        assert values + slopes - probes == plain.nfev + plain.njev - 10 - 9

    def test_a_kill_during_a_replay(self, store):
        """A resumed fit that is killed while it replays loses nothing; two of them are told."""
        seen = []
        plain = scipy.optimize.minimize(Rosen(), X4, method="Nelder-Mead", callback=seen.append)
        iterations = len(seen)
        seen.clear()

        def work(at, deed=die):
            def callback(x):
                seen.append(x)
                if len(seen) == at:
                    deed()

            given = {"method": "Nelder-Mead", "callback": callback}
            with (
                using(store=Store(store.address), journal=True),
                warnings.catch_warnings(record=True) as log,
            ):
                warnings.simplefilter("always")
                result = optimize.minimize(Rosen(), X4, **given)
            texts = [str(item.message) for item in log]
            return [result.nfev, result.warm.evaluations_saved, len(seen), texts]

        assert in_child(lambda: work(40))[0] == SIGKILLED
        for _ in range(2):  # the lives end while they replay
            assert in_child(lambda: work(9))[0] == SIGKILLED
        _, (nfev, saved, called, texts) = in_child(lambda: work(None))
        assert nfev == plain.nfev
        assert saved > 60
        assert called == iterations
        assert len(texts) == 1
        assert "2 times in a row" in texts[0]


class Slope:
    """The gradient, which may kill."""

    def __init__(self, at=None):
        self.count, self.at = 0, at

    def __reduce__(self):
        return Slope, ()

    def __call__(self, x):
        self.count += 1
        if self.count == self.at:
            die()
        return scipy.optimize.rosen_der(x)


class TestTraps:
    """A journal that does not fit is noticed, and never followed."""

    def killed(self, store, call, at=40, **options):
        """Run a call on a function that stops at one of its calls."""
        with using(store=store, journal=True, **options), pytest.raises(KeyboardInterrupt):
            call(at)

    def test_changed_data_are_another_fit(self, store):
        """The first x is the same whatever the data: the key tells the fits apart."""
        t = np.linspace(0.0, 3.0, 20)

        def fit(y, at=None):
            stop = Stop(at)

            def model(t, a, b):
                stop()
                return a * np.exp(-b * t)

            return optimize.curve_fit(model, t, y, p0=[1.0, 1.0])

        y = 2.0 * np.exp(-1.1 * t)
        with using(store=store, journal=True) as fits:
            with pytest.raises(KeyboardInterrupt):
                fit(y, at=5)
            result = fit(y + 1e-6)
        assert fits[-1].source == "cold"
        plain = scipy.optimize.curve_fit(lambda t, a, b: a * np.exp(-b * t), t, y + 1e-6, p0=[1, 1])
        assert same(plain, tuple(result))

    @pytest.mark.parametrize("name", ["basinhopping", "shgo"])
    def test_changed_data_of_the_local_minimizer_are_another_fit(self, store, name):
        """What stands in `minimizer_kwargs` as ``args`` is data as much as ``args`` is."""

        def valley(x, center):
            return float(np.sum((x - center) ** 2 + np.cos(3.0 * x)))

        def fit(module, center):
            rest = {"method": "BFGS", "args": (center,)}
            if name == "shgo":
                box = [(-3.0, 3.0)] * 2
                return module.shgo(valley, box, args=(center,), minimizer_kwargs=rest)
            return module.basinhopping(valley, [0.5, 0.5], niter=5, rng=1, minimizer_kwargs=rest)

        with using(store=store, journal=True) as fits:
            fit(optimize, 1.0)
            result = fit(optimize, 1.5)
        assert fits[-1].source == "cold"
        assert same(fit(scipy.optimize, 1.5), result)

    def test_a_changed_function_under_a_name_is_probed(self, store):
        """Where a name stands for the model, a recorded point done again shows the change."""

        def fit(offset, at=None, **options):
            stop = Stop(at)

            def objective(x):
                stop()
                return scipy.optimize.rosen(x) * (1.0 + offset)

            with using(store=store, journal=True, model="rosen", **options):
                return optimize.minimize(objective, X4, method="Nelder-Mead")

        with pytest.raises(KeyboardInterrupt):
            fit(0.0, at=80)
        with pytest.raises(ReplayError, match=r"differs by 9\.1e-02"):
            fit(0.1, strict=True)
        with pytest.raises(KeyboardInterrupt):
            fit(0.0, at=80)
        with pytest.warns(WarmstartWarning, match="set aside: the first recorded evaluation"):
            result = fit(0.1)
        assert result.warm.source == "checkpoint"
        assert "set aside" not in result.warm.why
        assert "has changed" in result.warm.why
        assert result.warm.replay is None
        assert result.success

    def test_an_optimizer_that_depends_on_the_weather(self, store):
        """Linear algebra returns other last bits where its arrays lie elsewhere in memory."""

        class Descent:
            def __init__(self, weather):
                self.weather = weather

            def __reduce__(self):
                return Descent, (0.0,)

            def __call__(self, fun, x0, args, **_):
                x = np.array(x0)
                for step in range(60):
                    value = fun(x)
                    x = x * 0.97 * (1.0 + self.weather * (step > 20))
                return scipy.optimize.OptimizeResult(x=x, fun=value, nfev=60, success=True)

        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(41, interrupt), X4, method=Descent(0.0))
            function = Rosen()
            result = optimize.minimize(function, X4, method=Descent(1e-15))
        assert result.warm.replay == "tolerant"
        assert result.warm.evaluations_saved == 40
        assert function.count == 20 + result.warm.probes

    def test_an_objective_that_remembers_is_noticed(self, store):
        """A value that depends on earlier calls differs when done again at the frontier."""

        def fit(at=None):
            stop, previous = Stop(at), [0.0]

            def objective(x):
                stop()
                previous[0] = 0.5 * previous[0] + 1e-3 * float(x[0])
                return scipy.optimize.rosen(x) + previous[0]

            with using(store=store, journal=True, model="inner solver"):
                return optimize.minimize(objective, X4, method="Nelder-Mead")

        with pytest.raises(KeyboardInterrupt):
            fit(at=80)
        with pytest.warns(WarmstartWarning, match="last recorded evaluation.*depends on more"):
            result = fit()
        assert result.warm.source == "checkpoint"
        assert result.warm.why

    def test_another_number_of_blas_threads(self, tmp_path):
        """Recorded with two threads, resumed where one is set: those of the record are used."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import sys
                import numpy as np
                from scipy.optimize import rosen, rosen_der
                from warmstart import optimize, using
                class Objective:
                    def __init__(self, at=None):
                        self.left = at
                    def __reduce__(self):
                        return Objective, ()
                    def __call__(self, x):
                        self.left -= 1
                        if self.left == 0:
                            raise KeyboardInterrupt
                        return rosen(x)
                objective = Objective(int(sys.argv[2]))
                with using(store=sys.argv[1], journal=True):
                    try:
                        result = optimize.minimize(
                            objective, np.linspace(-1, 1, 30), jac=rosen_der, method="SLSQP"
                        )
                    except KeyboardInterrupt:
                        print("interrupted")
                    else:
                        print(result.x.tobytes().hex(), result.nfev, result.njev)
                        print(result.warm.source, result.warm.replay)
                """
            )
        )

        def run(folder, at, threads):
            done = subprocess.run(
                [sys.executable, str(script), str(tmp_path / folder), str(at)],
                env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout.splitlines()

        undisturbed = run("plain", 0, "2")
        assert run("store", 20, "2") == ["interrupted"]
        assert run("store", 0, "1") == [undisturbed[0], "journal exact"]

    def test_other_kernels_are_tolerated_and_said(self, tmp_path):
        """Where BLAS computes other last bits, the replay goes on tolerantly, not silently."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import sys
                import numpy as np
                from warmstart import optimize, using
                rng = np.random.default_rng(1)
                A, b = rng.normal(size=(300, 40)), rng.normal(size=300)
                class Objective:
                    def __init__(self, at=None):
                        self.left = at
                    def __reduce__(self):
                        return Objective, ()
                    def __call__(self, w):
                        self.left -= 1
                        if self.left == 0:
                            raise KeyboardInterrupt
                        m = b * (A @ w)
                        s = -1.0 / (1.0 + np.exp(m))
                        return np.logaddexp(0.0, -m).sum() + 0.5 * w @ w, A.T @ (s * b) + w
                with using(store=sys.argv[1], journal=True):
                    try:
                        result = optimize.minimize(
                            Objective(int(sys.argv[2])), np.zeros(40), jac=True
                        )
                    except KeyboardInterrupt:
                        print("interrupted")
                    else:
                        print(float(result.fun))
                        print(result.warm.source, result.warm.replay, result.warm.evaluations_saved)
                """
            )
        )

        def run(folder, at, kernel):
            done = subprocess.run(
                [sys.executable, str(script), str(tmp_path / folder), str(at)],
                env={**os.environ, "OPENBLAS_CORETYPE": kernel},
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout.splitlines()

        undisturbed = run("plain", 0, "Haswell")
        assert run("store", 12, "Haswell") == ["interrupted"]
        value, report = run("store", 0, "Nehalem")
        assert float(value) == pytest.approx(float(undisturbed[0]), rel=1e-10)
        source, replay, saved = report.split()
        assert (source, replay) == ("journal", "tolerant")
        assert int(saved) == 11

    def test_a_reused_buffer_is_repaired(self, store):
        """A gradient in one buffer misleads plain scipy; recorded or not, here it does not."""
        buffer = np.empty(4)

        class Gradient:
            def __reduce__(self):
                return Gradient, ()

            def __call__(self, x):
                buffer[:] = scipy.optimize.rosen_der(x)
                return buffer

        honest = scipy.optimize.minimize(Rosen(), X4, jac=scipy.optimize.rosen_der)
        for options in ({"journal": True}, {"journal": False}):
            with using(store=Store(":memory:"), **options):
                result = optimize.minimize(Rosen(), X4, jac=Gradient())
            assert same(honest, result)

    def test_a_curve_in_a_reused_buffer(self, store):
        """Each set of values is recorded, also if the next one is written over it."""
        t, buffer, calls = np.linspace(0.0, 4.0, 50), np.empty(50), []
        y = 2.5 * np.exp(-1.3 * t) + 0.1 * np.sin(9.0 * t)
        p0 = [1.0, 1.0]

        def curve(t, a, b):
            calls.append(a)
            if len(calls) == stop:
                raise KeyboardInterrupt
            buffer[:] = a * np.exp(-b * t)
            return buffer

        stop = 0
        honest = scipy.optimize.curve_fit(curve, t, y, p0)
        whole, stop = len(calls), 9
        calls.clear()
        with using(store=store, journal=True, model="decay"):
            with pytest.raises(KeyboardInterrupt):
                optimize.curve_fit(curve, t, y, p0)
            result = optimize.curve_fit(curve, t, y, p0)
        assert result.warm.replay == "exact"
        assert result.warm.evaluations_saved == stop - 1
        assert len(calls) == whole + 1 + result.warm.probes
        for ours, theirs in zip(result, honest, strict=True):
            assert ours.tobytes() == theirs.tobytes()

    def test_threads_of_the_caller(self, store):
        """Where a pool decides the order, recorded evaluations are found by their points."""

        class Batches:
            """A method of the user's: random search whose points are evaluated by threads."""

            def __reduce__(self):
                return Batches, ()

            def __call__(self, fun, x0, args=(), **_options):
                rng = np.random.default_rng(3)
                points = np.asarray(x0) + rng.normal(size=(60, len(x0)))
                with ThreadPoolExecutor(4) as pool:
                    values = list(pool.map(fun, points))
                place = int(np.argmin(values))
                return scipy.optimize.OptimizeResult(
                    x=points[place], fun=values[place], nfev=60, success=True
                )

        with using(store=store, journal=True):
            first = optimize.minimize(Rosen(), X4, method=Batches())
            function = Rosen()
            again = optimize.minimize(function, X4, method=Batches(), options={"other": 1})
        assert same(first, again)
        assert again.warm.evaluations_saved == 60
        assert function.count == again.warm.probes

    def test_another_process_at_the_same_fit(self, store):
        """While one process is at a fit, another does it on its own, and says why."""
        inside, release = threading.Event(), threading.Event()

        def wait():
            inside.set()
            release.wait(60)

        def first():
            with using(store=store, journal=True):
                optimize.minimize(Rosen(30, wait), X4)

        thread = threading.Thread(target=first)
        thread.start()
        assert inside.wait(60)
        try:
            with using(store=store, journal=True):
                result = optimize.minimize(Rosen(), X4)
        finally:
            release.set()
            thread.join()
        assert (result.warm.source, result.warm.why) == ("cold", "another process is at this fit")
        assert same(scipy.optimize.minimize(Rosen(), X4), result)

    @pytest.mark.parametrize("init", ["sobol", "halton", "latinhypercube"])
    def test_generators_that_are_spawned(self, store, init):
        """Quasi-random engines draw from children of the caller's generator."""

        def fit(module, rng, function):
            found = module.differential_evolution(
                function, [(-2, 2)] * 3, rng=rng, init=init, maxiter=8, polish=False
            )
            return found, rng.random(), rng.spawn(1)[0].random()

        expected, *drawn = fit(scipy.optimize, np.random.default_rng(3), Rosen())
        rng = np.random.default_rng(3)
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                fit(optimize, rng, Rosen(100, interrupt))
            result, *then = fit(optimize, rng, Rosen())
            again, *finally_ = fit(optimize, np.random.default_rng(3), Rosen())
            other, *_ = fit(optimize, rng, Rosen())
        assert result.warm.evaluations_saved == 99
        assert same(expected, result)
        assert then == drawn
        assert again.warm.source == "final"
        assert finally_ == drawn
        assert other.warm.source == "cold"


class Stop:
    """Raises KeyboardInterrupt at one of its calls; no part of any key."""

    def __init__(self, at=None):
        self.left = at or 0

    def __reduce__(self):
        return Stop, ()

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class TestOptions:
    """What a caller may ask for."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"journal": 1}, "journal is True, False or None, not 1"),
            ({"journal_budget": 0}, "journal_budget is a positive number of bytes, not 0"),
            ({"journal_budget": "1 GB"}, "journal_budget is a positive"),
            ({"strict": None}, "strict is True or False, not None"),
            ({"track": [3]}, r"track=\[rng\]"),
            ({"track": "rng"}, "not of str"),
            ({"dedup": 2}, "dedup is True or False"),
            ({"callbacks": "no"}, 'callbacks is "run" or "skip", not \'no\''),
            ({"time_limit": -1}, "time_limit is a number of seconds from 0 up"),
            ({"time_limit": "1 h"}, "time_limit is a number"),
            ({"time_limit": float("nan")}, "time_limit is a number"),
            ({"on_interrupt": "stop"}, 'on_interrupt is "raise" or "return"'),
            ({"progress": "yes"}, "progress is True or False"),
            ({"interval": True}, "interval is a number of seconds"),
            ({"timelimit": 3}, "did you mean 'time_limit'"),
        ],
    )
    def test_wrong_ones_are_refused_by_name(self, options, message):
        """Each wrong value says what was given and what was expected."""
        with pytest.raises(ArgumentError, match=message), using(**options):
            pass

    def test_more_iterations_go_on(self, store):
        """From maxiter=10 to 20, and a tighter tolerance: no evaluation is done twice."""
        for method in ("Nelder-Mead", "BFGS", "L-BFGS-B", "trust-constr", "COBYQA"):
            counts = []
            for options in ({"maxiter": 10}, {"maxiter": 20}, {"maxiter": 21}):
                plain = scipy.optimize.minimize(Rosen(), X4, method=method, options=options)
                function = Rosen()
                with using(store=store, journal=True):
                    result = optimize.minimize(function, X4, method=method, options=options)
                assert same(plain, result), method
                counts.append(function.count - result.warm.probes)
            assert sum(counts) == result.nfev
            assert result.warm.source == "journal"
            assert result.warm.replay == "exact"

    def test_an_option_that_leads_another_way(self, store):
        """Where the options lead elsewhere, what was recorded serves as far as it goes."""
        with using(store=store, journal=True):
            optimize.minimize(Rosen(), X4, method="Nelder-Mead")
            function = Rosen()
            adaptive = {"adaptive": True}
            result = optimize.minimize(function, X4, method="Nelder-Mead", options=adaptive)
            plain = scipy.optimize.minimize(Rosen(), X4, method="Nelder-Mead", options=adaptive)
            assert same(plain, result)
            assert result.warm.replay == "partial"
            assert function.count == result.warm.evaluations
            # The first journal is there still, and the second is whole: both can be extended.
            assert len(journals(store)) == 2
            for options in ({"maxiter": 300}, {"adaptive": True, "maxiter": 300}):
                again = optimize.minimize(Rosen(), X4, method="Nelder-Mead", options=options)
                assert again.warm.evaluations == again.warm.probes == 2

    def test_budget(self, store):
        """Past its budget a journal gives up its space, and the solver's state goes on."""
        cases = {
            "Nelder-Mead": {},
            "trust-ncg": {"jac": scipy.optimize.rosen_der, "hess": scipy.optimize.rosen_hess},
        }
        x0 = X4
        for method, derivatives in cases.items():
            plain = scipy.optimize.minimize(Rosen(), x0, method=method, **derivatives)
            most = 3 * plain.nfev // 4
            budget = {"journal": True, "journal_budget": 1000, "interval": 0.0}
            with using(store=store, **budget), pytest.raises(KeyboardInterrupt):
                optimize.minimize(Tired(most), x0, method=method, **derivatives)
            assert journals(store) == []
            function = Tired()
            with using(store=store, **budget):
                result = optimize.minimize(function, x0, method=method, **derivatives)
            assert result.warm.source == "checkpoint"
            assert "state of the solver" in result.warm.why
            assert result.x.tobytes() == plain.x.tobytes()
            assert function.count < plain.nfev - most + 30

    def test_journal_false(self, store):
        """Nothing is recorded, and a fit goes on from its best point, as reported."""
        with using(store=store, journal=False, interval=0.0):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Tired(40), X4)
            result = optimize.minimize(Tired(), X4)
        assert journals(store) == []
        assert result.warm.source == "checkpoint"
        assert result.warm.why == "from the best point, without a journal"
        assert result.warm.replay is None

    def test_resume_false(self, store):
        """A journal is left alone."""
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(40, interrupt), X4)
            with using(resume=False):
                function = Rosen()
                result = optimize.minimize(function, X4)
        assert result.warm.source == "cold"
        assert function.count == result.nfev

    def test_tracked_generators(self, store):
        """An objective that draws its noise draws the same after a resumption."""

        def fit(module, at=None):
            rng = np.random.default_rng(8)
            stop = Stop(at)

            def noisy(x):
                stop()
                return scipy.optimize.rosen(x) + 1e-3 * rng.normal()

            extra = {}
            if module is optimize:
                extra = {"warm": Warm(store=store, journal=True, track=[rng])}
            result = module.minimize(
                noisy, X4, method="Nelder-Mead", options={"maxfev": 150}, **extra
            )
            return result, rng.random()

        plain, after = fit(scipy.optimize)
        with pytest.raises(KeyboardInterrupt):
            fit(optimize, at=70)
        result, after_resumption = fit(optimize)
        assert result.warm.replay == "exact"
        assert result.warm.evaluations_saved == 69
        assert same(plain, result)
        assert after == after_resumption

    def test_generators_among_the_arguments(self, store):
        """A resumed fit draws from them what it would have drawn, and so do functions called again."""

        def fit(module, at=None, **extra):
            rng, stop = np.random.default_rng(8), Stop(at)

            def noisy(x, rng):
                stop()
                return np.array([x[0] - 1.0, x[0] * x[1] - 2.0]) + 1e-3 * rng.normal(size=2)

            def jacobian(x, rng):
                slope = np.array([[1.0, 0.0], [x[1], x[0]]]) + 1e-3 * rng.normal(size=(2, 2))
                return scipy.sparse.linalg.aslinearoperator(slope)

            result = module.least_squares(
                noisy, [3.0, 4.0], jac=jacobian, args=(rng,), max_nfev=12, **extra
            )
            return result, rng.random()

        plain, after = fit(scipy.optimize)
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                fit(optimize, at=6)
            result, after_resumption = fit(optimize)
        assert result.warm.replay == "exact"
        np.testing.assert_array_equal(result.x, plain.x)
        assert after == after_resumption

    def test_another_process_leaves_generators_where_the_fit_did(self, store):
        """A hit there advances the generators among the arguments, and those that are tracked."""

        def work():
            rng, tracked = np.random.default_rng(8), np.random.RandomState(3)

            def noisy(x, rng):
                return scipy.optimize.rosen(x) + 1e-3 * rng.normal() * tracked.uniform()

            with using(store=Store(store.address), track=[tracked]):
                result = optimize.minimize(noisy, X4, args=(rng,), method="Powell")
            return [result.warm.source, rng.random(), tracked.uniform()]

        (_, first), (_, second) = in_child(work), in_child(work)
        assert (first[0], second[0]) == ("cold", "final")
        assert first[1:] == second[1:]

    def test_any_start_has_a_journal(self, store):
        """A start that has no bytes, of Fractions, is given again; what scipy refuses it refuses."""
        start = np.array([Fraction(13, 10), Fraction(7, 10)])
        plain = scipy.optimize.minimize(Rosen(), start, method="Nelder-Mead")
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(40, interrupt), start, method="Nelder-Mead")
            result = optimize.minimize(Rosen(), start, method="Nelder-Mead")
            assert same(plain, result)
            assert result.warm.evaluations_saved == 39
            with pytest.raises(ValueError, match="could not convert string to float"):
                optimize.minimize(Rosen(), np.array(["a", "b"], object))

    def test_the_fits_own_end_is_no_kill(self, store):
        """However often a fit fails, or is replayed for its callback, nothing is told of kills."""

        def line(t, a, b):
            return a * np.exp(-b * t)

        t = np.linspace(0.0, 4.0, 30)
        with using(store=store, journal=True):
            for _ in range(5):
                with pytest.raises(RuntimeError, match="maxfev"):
                    optimize.curve_fit(line, t, line(t, 2.5, 1.3), maxfev=5)
            replays = [
                optimize.minimize(Rosen(), X4, callback=lambda _: None).warm.replay
                for _ in range(5)
            ]
        assert replays == [None, *["exact"] * 4]

    def test_left_out_values_make_other_journals(self, store):
        """Without its NaNs `curve_fit` calls the function with other data: nothing is replayed."""

        def line(t, a, b):
            return a * t + b

        t = np.linspace(0.0, 4.0, 30)
        y = line(t, 2.5, 1.3)
        y[3] = np.nan
        with using(store=store, journal=True):
            optimize.curve_fit(line, t, y, nan_policy="omit")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = optimize.curve_fit(line, t, y, check_finite=False).warm
        assert (report.source, report.why) == ("cold", None)

    @pytest.mark.parametrize("given", [{"rng": None}, {}])
    def test_unseeded_fits_go_on(self, store, given, monkeypatch):
        """rng=None, or nothing: the generator that was drawn from is recorded, and goes on."""
        fresh = np.random.RandomState(np.random.MT19937())  # as in a process that never seeded
        monkeypatch.setattr(np.random.mtrand, "_rand", fresh)

        def fit(at=None):
            function = Rosen(at, interrupt)
            with using(store=store, journal=True, refit=False):
                result = optimize.differential_evolution(function, [(0, 2)] * 3, maxiter=5, **given)
            return function, result

        with pytest.raises(KeyboardInterrupt):
            fit(120)
        (path,) = journals(store)
        copy = path.read_bytes()
        function, result = fit()
        assert result.warm.evaluations_saved == 119
        assert result.warm.replay == "exact"
        assert function.count - result.warm.probes == result.nfev - 119
        for key in list(store.keys()):
            store.delete(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(copy)
        assert same(result, fit()[1])

    def test_repeated_points_are_answered(self, store):
        """dedup=True: fewer calls, the same result and counts."""
        options = {"jac": scipy.optimize.rosen_der, "method": "Newton-CG"}
        plain = scipy.optimize.minimize(Rosen(), X4, **options)
        function = Rosen()
        with using(store=store, dedup=True):
            result = optimize.minimize(function, X4, **options)
        assert same(plain, result)
        report = result.warm
        assert report.evaluations + report.evaluations_saved == plain.nfev + plain.njev
        assert report.evaluations_saved > 0.2 * plain.nfev

    def test_repeated_points_are_recorded(self, store):
        """A fit with dedup=True that is stopped goes on, with or without it."""
        options = {"jac": scipy.optimize.rosen_der, "method": "Newton-CG"}
        plain = scipy.optimize.minimize(Rosen(), X4, **options)
        for dedup in (True, False):
            with using(store=store, journal=True):
                with using(dedup=True), pytest.raises(KeyboardInterrupt):
                    optimize.minimize(Rosen(30, interrupt), X4, **options)
                with using(dedup=dedup):
                    result = optimize.minimize(Rosen(), X4, **options)
            assert same(plain, result)
            assert result.warm.replay == "exact"
            store.delete(next(store.keys()))

    def test_progress(self, store, capsys):
        """A line on standard error says how it gets on; results do not change."""
        plain = scipy.optimize.minimize(Rosen(), X4, method="Nelder-Mead")

        def slow(x):
            end = time.perf_counter() + 0.002
            while time.perf_counter() < end:
                pass
            return scipy.optimize.rosen(x)

        with using(store=store, progress=True):
            result = optimize.minimize(slow, X4, method="Nelder-Mead")
        assert same(plain, result)
        text = capsys.readouterr().err
        assert "evaluations, best" in text
        assert "/s" in text

    def test_memory(self):
        """A store in memory has journals too; they end with it."""
        store = Store(":memory:")
        with using(store=store, journal=True):
            with pytest.raises(KeyboardInterrupt):
                optimize.minimize(Rosen(40, interrupt), X4)
            folder = store.journals.folder
            assert len(journals(store)) == 1
            assert optimize.minimize(Rosen(), X4).warm.evaluations_saved == 39
        store.close()
        assert not folder.exists()

    def test_deleting_a_fit_deletes_its_journals(self, store):
        """`delete` and `gc` know journals; `stats` counts them."""
        with using(store=store, journal=True):
            key = optimize.minimize(Rosen(), X4).warm.key
        stats = store.stats()
        assert (stats.journals, stats.journal_bytes) == (1, journals(store)[0].stat().st_size)
        store.delete(store.resolve(key))
        assert store.stats().journals == 0
        with Store(store.address, journal_budget=1) as small, using(store=small, journal=True):
            optimize.minimize(Rosen(), X4, method="CG")
            assert small.stats().journals == 0


class Tired(Rosen):
    """Takes some milliseconds, so that checkpoints have time to be due."""

    def __init__(self, at=None):
        super().__init__(at, interrupt)

    def __reduce__(self):
        return Tired, ()

    def __call__(self, x):
        end = time.perf_counter() + 0.012
        while time.perf_counter() < end:
            pass
        return super().__call__(x)


class TestCallbacks:
    """Callbacks are called again, told of it, and may sleep."""

    def fit(self, store, limit=None, settings=None, **options):
        history = []

        def callback(x):
            history.append((x.tobytes(), replaying()))
            if len(history) == limit:
                raise StopIteration

        with using(store=store, journal=True, **options):
            result = optimize.minimize(
                Rosen(), X4, method="BFGS", callback=callback, options=settings
            )
        return history, result

    def test_histories_are_rebuilt(self, store):
        """After Ctrl-C all iterations are seen, those of the replay as such."""
        whole, _ = self.fit(Store(":memory:"))
        with using(store=store, journal=True), pytest.raises(KeyboardInterrupt):
            optimize.minimize(
                Rosen(50, interrupt), X4, method="BFGS", callback=self.like_the_other(store)
            )
        history, result = self.fit(store)
        assert [x for x, _ in history] == [x for x, _ in whole]
        flags = [flag for _, flag in history]
        assert flags[0] is True
        assert flags[-1] is False
        assert flags == sorted(flags, reverse=True)
        assert result.warm.evaluations_saved == 49
        assert not replaying()

    def like_the_other(self, _store):
        history, limit = [], None

        def callback(x):
            history.append((x.tobytes(), replaying()))
            if len(history) == limit:
                raise StopIteration

        return callback

    def test_skipped_ones_are_not_called(self, store):
        """With callbacks="skip" a replay is silent, and a finished fit is a hit."""
        with using(store=store, journal=True), pytest.raises(KeyboardInterrupt):
            optimize.minimize(
                Rosen(50, interrupt), X4, method="BFGS", callback=self.like_the_other(store)
            )
        whole, _ = self.fit(Store(":memory:"))
        history, _ = self.fit(store, callbacks="skip")
        assert 0 < len(history) < len(whole)
        assert history[-1][0] == whole[-1][0]
        assert self.fit(store, callbacks="skip")[1].warm.source == "final"

    def test_one_that_stops_the_fit_stops_it_again(self, store):
        """At the same place, whether it is called in the replay or not."""
        whole, first = self.fit(store, limit=7)
        assert len(whole) == 7
        again, second = self.fit(store, limit=7)
        assert [x for x, _ in again] == [x for x, _ in whole]
        assert same(first, second)
        assert second.warm.evaluations == second.warm.probes
        silent, third = self.fit(store, limit=7, settings={"maxiter": 500}, callbacks="skip")
        assert silent == []
        assert third.warm.replay == "exact"
        assert same(first, third)

    def test_a_whole_replay_is_silent(self, store):
        """Callbacks after the last recorded evaluation have been called too."""
        whole, first = self.fit(store)
        silent, second = self.fit(store, settings={"maxiter": 500}, callbacks="skip")
        assert len(whole) == first.nit
        assert silent == []
        assert second.warm.evaluations == second.warm.probes
        assert same(first, second)


class TestWorkers:
    """``workers=``: recorded by the parent, from however many processes."""

    BOX = [(-3.0, 3.0)] * 2

    def fit(self, folder, workers, at=None, **options):
        """Run differential evolution with a pool; dies when so many results have arrived."""
        with using(store=Store(folder), journal=True):
            return optimize.differential_evolution(
                scipy.optimize.rosen,
                self.BOX,
                rng=3,
                workers=workers,
                updating="deferred",
                maxiter=6,
                popsize=6,
                polish=False,
                **options,
            )

    def test_killed_and_resumed_with_another_number(self, tmp_path):
        """Real SIGKILL of the parent of a pool: no orphan is left, and nothing is done twice."""
        plain = scipy.optimize.differential_evolution(
            scipy.optimize.rosen,
            self.BOX,
            rng=3,
            updating="deferred",
            maxiter=6,
            popsize=6,
            polish=False,
        )
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import os, sys, time
                import psutil
                from scipy.optimize import rosen
                from warmstart import optimize, using

                def slow(x):
                    time.sleep(0.004)
                    return rosen(x)

                if __name__ == "__main__":
                    def callback(x, convergence):
                        calls.append(x)
                        if len(calls) == int(sys.argv[3]):
                            print(*[p.pid for p in psutil.Process().children(True)], flush=True)
                            os.kill(os.getpid(), 9)
                    calls = []
                    with using(store=sys.argv[1], journal=True):
                        result = optimize.differential_evolution(
                            slow, [(-3.0, 3.0)] * 2, rng=3, workers=int(sys.argv[2]),
                            updating="deferred", maxiter=6, popsize=6, polish=False,
                            callback=callback,
                        )
                    report = result.warm
                    print(result.x.tobytes().hex(), result.nfev, report.source, report.replay,
                          report.evaluations_saved, report.evaluations - report.probes)
                """
            )
        )
        command = [sys.executable, str(script), str(tmp_path / "store")]
        killed = subprocess.run([*command, "2", "4"], capture_output=True, text=True, check=False)
        assert killed.returncode == SIGKILLED, killed.stderr
        children = [int(pid) for pid in killed.stdout.split()]
        assert len(children) >= 2
        done = subprocess.run(
            [*command, "3", "0"], capture_output=True, text=True, check=True, timeout=120
        )
        x, nfev, source, replay, saved, new = done.stdout.split()
        assert (x, int(nfev)) == (plain.x.tobytes().hex(), plain.nfev)
        assert (source, replay) == ("journal", "exact")
        assert int(saved) + int(new) == plain.nfev
        assert int(saved) >= 48
        import psutil

        for _ in range(200):  # they end when they notice that their parent is gone
            if not any(map(psutil.pid_exists, children)):
                break
            time.sleep(0.05)
        assert not any(map(psutil.pid_exists, children))

    @pytest.mark.parametrize("number", [0, -2, "two"])
    def test_wrong_numbers_are_refused(self, tmp_path, number):
        """A number of workers that is none is an error that says what is one."""
        with pytest.raises(ArgumentError, match="workers is a map, a positive number"):
            self.fit(tmp_path / "store", number)

    def test_a_map_of_the_callers(self, tmp_path):
        """Any map will do; what it evaluates is recorded and replayed in order."""
        with ThreadPoolExecutor(3) as pool:
            first = self.fit(tmp_path / "store", pool.map)
            again = self.fit(tmp_path / "store", pool.map, tol=0.02)
        assert again.warm.evaluations == again.warm.probes
        assert first.nfev == again.nfev
