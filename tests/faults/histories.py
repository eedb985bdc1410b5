"""Whole fits of random histories, against a model that remembers everything.

A state machine draws what happens to a store: fits by many of scipy's optimizers, of several
objectives and data, with other limits than before; children that are killed (SIGKILL) at one of
their evaluations; exceptions and Ctrl-C amid a fit; near fits, fits that are forced; everything
evicted, expired, deleted; the store closed. With default settings each fit must come to what
plain scipy comes to: every field of the result, or the exception, the warnings, the state of the
generator that was passed, bit for bit. What the model knows to be remembered must be answered
without an evaluation, and what is known to be on record must not be done again.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from fits import differences
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from processes import in_child

import warmstart
from faults.campaign import Outcome, Say
from warmstart import Store, WarmstartWarning, journal, using

__all__ = ["Histories", "run"]

_OURS = (WarmstartWarning, ResourceWarning)
"""Warnings that plain scipy has nothing to do with."""
X0 = np.array([1.0, 0.7, 0.1])
_TIMES = np.linspace(0.0, 3.0, 12)
_MONTH = 31 * 86_400.0


class Decay:
    """Residuals of an exponential decay, or a robust sum of them; something may happen at a call."""

    def __init__(self, bend: float, kind: str = "sum") -> None:
        self.bend, self.kind = bend, kind
        self.count, self.at, self.deed = 0, 0, None

    def __reduce__(self) -> tuple[Any, ...]:
        return Decay, (self.bend, self.kind)  # what happens to it is no part of what is fitted

    def __call__(self, x: Any, data: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            self.deed()
        left = data - x[0] * np.exp(-x[1] * _TIMES) - x[2]
        if self.kind == "residuals":
            return left
        if self.kind == "roots":
            return left[:3] + self.bend * left[3:6] ** 3
        return float(np.sum(np.log1p(self.bend * left * left)))


class Curve(Decay):
    """The same as a curve, for `curve_fit`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Curve, (self.bend, self.kind)

    def __call__(self, t: Any, a: float, b: float, c: float) -> Any:
        self.count += 1
        if self.count == self.at:
            self.deed()
        return a * np.exp(-b * t) + self.bend * c


class Line(Decay):
    """Its section along the second parameter, for functions of one variable."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Line, (self.bend, self.kind)

    def __call__(self, rate: float, data: Any) -> float:
        return super().__call__((1.0, rate, 0.1), data)


def data_set(number: int) -> Any:
    """Return one of several, which have most of their rows in common."""
    values = np.exp(-_TIMES) + 0.1 * np.sin(17.0 * _TIMES)
    values[-1] += 0.05 * number
    return values


def _minimizer(method: str) -> Any:
    def call(optimize: Any, bend: float, data: Any, limit: int) -> Any:
        function = Decay(bend)
        options = {"maxfun" if method == "TNC" else "maxiter": limit}
        return function, lambda: optimize.minimize(
            function, X0, args=(data,), method=method, options=options
        )

    return call


def _least_squares(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend, "residuals")
    return function, lambda: optimize.least_squares(function, X0, args=(data,), max_nfev=limit)


def _leastsq(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend, "residuals")
    return function, lambda: optimize.leastsq(
        function, X0, args=(data,), maxfev=limit, full_output=True
    )


def _curve_fit(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Curve(bend)
    return function, lambda: optimize.curve_fit(function, _TIMES, data, p0=X0, maxfev=limit)


def _root(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend, "roots")
    return function, lambda: optimize.root(function, X0, args=(data,), options={"maxfev": limit})


def _scalar(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Line(bend)
    return function, lambda: optimize.minimize_scalar(
        function, args=(data,), bounds=(0.0, 4.0), options={"maxiter": limit}
    )


def _evolution(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend)
    function.rng = np.random.default_rng(5)
    return function, lambda: optimize.differential_evolution(
        function, [(0, 2)] * 3, args=(data,), rng=function.rng, popsize=3, maxiter=limit // 8
    )


def _annealing(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend)
    return function, lambda: optimize.dual_annealing(
        function, [(0, 2)] * 3, args=(data,), rng=6, maxiter=limit // 4, maxfun=4 * limit
    )


def _hopping(optimize: Any, bend: float, data: Any, limit: int) -> Any:
    function = Decay(bend)
    rest = {"args": (data,), "method": "L-BFGS-B"}
    return function, lambda: optimize.basinhopping(
        function, X0, niter=limit // 16, minimizer_kwargs=rest, rng=7
    )


CALLS = {
    **{
        method: _minimizer(method)
        for method in (
            *("Nelder-Mead", "Powell", "CG", "BFGS", "L-BFGS-B"),
            *("TNC", "SLSQP", "COBYLA", "trust-constr"),
        )
    },
    "least_squares": _least_squares,
    "leastsq": _leastsq,
    "curve_fit": _curve_fit,
    "root": _root,
    "minimize_scalar": _scalar,
    "differential_evolution": _evolution,
    "dual_annealing": _annealing,
    "basinhopping": _hopping,
}


@dataclass(frozen=True)
class Task:
    """A fit that can be asked for again."""

    call: str
    bend: float
    data: int
    limit: int

    @property
    def way(self) -> tuple[str, float, int]:
        """All but the limit: fits of one way go on from each other."""
        return self.call, self.bend, self.data


@dataclass
class Ending:
    """What a call came to."""

    result: Any
    error: BaseException | None
    warned: list[tuple[type, str]]
    rng: Any
    calls: int

    def differs(self, plain: Ending) -> list[str]:
        """Return in what this is not as plain scipy's."""
        found = [
            f"{text} (its error)" for text in differences(_told(self.error), _told(plain.error))
        ]
        if self.error is None and plain.error is None:
            found += differences(plain.result, self.result)
        if self.warned != plain.warned:
            found.append(f"warned {self.warned}, plain {plain.warned}")
        if self.rng != plain.rng:
            found.append("its generator is in another state")
        return found


def _told(error: BaseException | None) -> tuple[str, str]:
    return type(error).__name__, str(error)


def come_to_its_end(optimize: Any, task: Task, at: int = 0, deed: Any = None) -> Ending:
    """Make a call, whatever it comes to."""
    function, call = CALLS[task.call](optimize, task.bend, data_set(task.data), task.limit)
    function.at, function.deed = at, deed
    result = error = None
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        try:
            result = call()
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
    rng = getattr(function, "rng", None)
    return Ending(
        result,
        error,
        [(w.category, str(w.message)) for w in log if not issubclass(w.category, _OURS)],
        None if rng is None else str(rng.bit_generator.state),
        function.count,
    )


_PLAIN: dict[Task, Ending] = {}


def plain_of(task: Task) -> Ending:
    """Return what plain scipy comes to."""
    if task not in _PLAIN:
        _PLAIN[task] = come_to_its_end(scipy.optimize, task)
    return _PLAIN[task]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Broken(OSError):
    """What an objective raises."""


def _break() -> None:
    raise Broken("the disk of the simulator is full")


def _interrupt() -> None:
    raise KeyboardInterrupt


TASKS = st.builds(
    Task,
    call=st.sampled_from(sorted(CALLS)),
    bend=st.sampled_from([0.5, 3.0]),
    data=st.integers(0, 2),
    limit=st.sampled_from([8, 30, 300]),
)
COUNTS: Counter[str] = Counter()
"""What was done by all machines of this process."""


class Histories(RuleBasedStateMachine):
    """One store, and all that happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        self._buffer, journal.BUFFER_SECONDS = journal.BUFFER_SECONDS, 0.0
        self._ahead = 0.0
        self.done: set[Task] = set()
        self.recorded: Counter[tuple[str, float, int]] = Counter()
        self.raised: Counter[tuple[str, float, int]] = Counter()
        """Calls on record that raised: they are made again in each replay, and raise or not."""
        self.last: Task | None = None

    @initialize(budget=st.sampled_from([1 << 30, 1 << 30, 150_000]))
    def open(self, budget: int) -> None:
        self.bounded = budget < 1 << 30
        self.store = Store(
            Path(self._scratch.name, "store"),
            size_budget=budget,
            strict=True,
            clock=lambda: time.time() + self._ahead,
        )

    # Fits

    def _fit(self, task: Task, *, always: bool, **options: Any) -> None:
        """Do a fit here, and compare it with plain scipy's."""
        plain = plain_of(task)
        with using(store=self.store, journal=True if always else None, **options):
            found = come_to_its_end(warmstart.optimize, task)
        COUNTS["fits"] += 1
        differing = found.differs(plain)
        assert not differing, (task, options, differing)
        if found.error is not None:
            return
        report = found.result.warm
        COUNTS[report.source] += 1
        assert report.evaluations == found.calls, (task, report)
        if options:
            pass
        elif task in self.done:
            assert (report.source, found.calls) == ("final", 0), (task, report)
        elif report.replay == "exact":
            known = min(self.recorded[task.way], plain.calls)
            again = report.probes + self.raised[task.way]
            assert found.calls <= plain.calls - known + again, (task, report, known)
        if always and not self.bounded:
            self.done.add(task)
            # What is done anew by force takes the place of what was recorded under its key, which
            # may have come from a longer fit.
            before = 0 if options.get("refit") else self.recorded[task.way]
            self.recorded[task.way] = max(before, plain.calls)

    @rule(task=TASKS, always=st.booleans())
    def fit(self, task: Task, always: bool) -> None:
        self.last = task
        self._fit(task, always=always)

    @rule()
    def again(self) -> None:
        if self.last is not None:
            self._fit(self.last, always=True)

    @rule(limit=st.sampled_from([8, 30, 300]))
    def with_another_limit(self, limit: int) -> None:
        if self.last is not None:
            self.last = Task(*self.last.way, limit)
            self._fit(self.last, always=True)

    @rule(data=st.integers(0, 2))
    def with_other_data(self, data: int) -> None:
        if self.last is not None:
            self.last = Task(self.last.call, self.last.bend, data, self.last.limit)
            self._fit(self.last, always=True)

    @rule()
    def by_force(self) -> None:
        if self.last is not None:
            self._fit(self.last, always=True, refit=True)

    @rule(task=TASKS)
    def near(self, task: Task) -> None:
        """Its answer may be another one, and must not answer the calls that come after."""
        with using(store=self.store, near=True, journal=True):
            come_to_its_end(warmstart.optimize, task)
        COUNTS["near fits"] += 1

    # Ends before the end

    @rule(task=TASKS, at=st.integers(1, 60))
    def killed(self, task: Task, at: int) -> None:
        """A child is killed at one of its evaluations."""
        self.last = task

        def live() -> bool:
            with using(store=self.store, journal=True):
                come_to_its_end(warmstart.optimize, task, at, _die)
            return True

        status, _ = in_child(live)
        COUNTS["kills" if status else "came before their killer"] += 1
        assert status in {0, -signal.SIGKILL}
        if status and not self.bounded:
            # What a life does again to compare is not new, and its last one may be lost.
            known = self.recorded[task.way]
            self.recorded[task.way] = max(known, known + at - 4 if known else at - 2)

    @rule(task=TASKS, at=st.integers(1, 60), deed=st.sampled_from([_break, _interrupt]))
    def stopped(self, task: Task, at: int, deed: Any) -> None:
        """The function raises at one of its evaluations: so does the call, or it needed fewer."""
        self.last = task
        with using(store=self.store, journal=True):
            found = come_to_its_end(warmstart.optimize, task, at, deed)
        COUNTS["stopped"] += isinstance(found.error, (Broken, KeyboardInterrupt))
        if found.calls < at:
            differing = found.differs(plain_of(task))
            assert not differing, (task, differing)
            return
        self.raised[task.way] += 1
        plain = come_to_its_end(scipy.optimize, task, at, deed)
        assert _told(found.error) == _told(plain.error), task
        if not self.bounded:
            self.recorded[task.way] = max(self.recorded[task.way], at - 1)

    # What happens to the store

    @rule()
    def evict(self) -> None:
        """Nothing but journals is left."""
        budget, self.store.size_budget = self.store.size_budget, 1
        self.store.gc()
        self.store.size_budget = budget
        assert not list(self.store.keys())
        self.done.clear()

    @rule()
    def forget_journals(self) -> None:
        """Nothing but results is left."""
        self.store.journals.budget, budget = 1, self.store.journals.budget
        self.store.gc()
        self.store.journals.budget = budget
        self.recorded.clear()

    @rule()
    def expire(self) -> None:
        """A month goes by."""
        self._ahead += _MONTH
        self.store.gc()
        assert not list(self.store.keys())
        self.done.clear()
        self.recorded.clear()

    @rule()
    def close(self) -> None:
        self.store.close()

    @rule()
    def delete(self) -> None:
        """The last fit is forgotten, with its journal."""
        if self.last is None:
            return
        with using(
            store=self.store, journal=True
        ):  # without, what takes no millisecond is not kept
            found = come_to_its_end(warmstart.optimize, self.last)
        if found.error is None and found.result.warm.key is not None:
            self.store.delete(self.store.resolve(found.result.warm.key))
            self.done.discard(self.last)
            del self.recorded[self.last.way]

    def teardown(self) -> None:
        """What the model remembers is remembered."""
        try:
            if hasattr(self, "store"):
                for task in sorted(self.done, key=str):
                    self._fit(task, always=True)
                assert self.store.verify().sound
                self.store.close()
        finally:
            journal.BUFFER_SECONDS = self._buffer
            self._scratch.cleanup()
            COUNTS["histories"] += 1
            _tell()


def _tell() -> None:
    """Say how far it is; `run` puts its own here."""


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Live through `amount` histories."""
    global _tell
    COUNTS.clear()
    plain, _tell = _tell, lambda: say(min(COUNTS["histories"], amount))
    outcome = Outcome()
    try:
        run_state_machine_as_test(
            seeded(seed)(Histories),
            settings=settings(
                max_examples=amount,
                stateful_step_count=25,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    except AssertionError as error:
        outcome.wrong = 1
        outcome.figures["trouble"] = "\n".join([str(error), *getattr(error, "__notes__", [])])[
            :4000
        ]
    finally:
        _tell = plain
    outcome.tried = COUNTS["kills"] + COUNTS["stopped"]
    outcome.survived = outcome.tried - outcome.wrong
    outcome.figures |= dict(COUNTS)
    return outcome
