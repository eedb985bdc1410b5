"""Watching the user's functions while a fit runs: the journal, the best point, limits, checkpoints.

`Recorder` is one fit's. It wraps every function of the user's in a `Recorded`, which answers
from a journal as long as there is one to replay, and writes down what it evaluates.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

import warmstart.journal as files
from warmstart.caller import complain, undisturbed
from warmstart.carrying import Carrier
from warmstart.continuation import solver_state
from warmstart.fingerprint import environment
from warmstart.journal import Evaluation, Header, Journal, Life, Shelf
from warmstart.learned import Expected
from warmstart.machine import Blas
from warmstart.packing import (
    FORM,
    MUTATED,
    OPAQUE,
    TRACKED,
    dumps,
    pack_value,
    sketches,
    unpack_value,
)
from warmstart.progress import Progress
from warmstart.randomness import restore, states
from warmstart.recorded import (
    NOTHING,
    Recorded,
    are_numbers,
    is_one,
    own,
    pack_calls,
    pack_head,
)
from warmstart.replay import NEARLY, Replay, difference
from warmstart.series import piece
from warmstart.session import Session
from warmstart.surfaces import ONE, Function, Point
from warmstart.trace import Trace
from warmstart.warm import Warm

__all__ = ["Changed", "Recorder", "Stopped", "current", "replaying"]

FIRST = 0.2
"""Seconds before anything is written: shorter fits are quicker done again than kept."""
_SHARE = 100.0
"""A checkpoint is followed by so many times its own duration without one: 1 % at most."""
_WORTH, _WORTH_EACH, _SLACK = 0.01, 1e-6, 0.005
"""A journal may cost this part of a fit's time, or so many seconds an evaluation, and a little.
In processor time: other processes that take the processor away are not its fault. Where the
disk makes it wait, ten times as much."""
_PIECE = 256 << 10
"""Bytes that are written at once, whatever they cost."""
_PENDING = 8 << 20
"""Bytes that wait in memory for being written."""
_BEST = 0.05
"""Seconds between two best points in a journal; more for large ones."""
_MEMO = 64 << 20
_LONG_REPLAY = 2.0
_TRACED = 0.01
"""Seconds that a fit takes for its convergence to be kept: a curve is 1 to 5 KB."""

_pack_size = struct.Struct("<I").pack
_NONSENSE = (
    *(ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    struct.error,
)
"""What reading a journal may raise whose checksums are right and whose content is not."""

current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
"""The fit that runs here; the outermost, since a wrapped call inside another is part of it."""


def replaying() -> bool:
    """Return whether the fit that runs here is being answered from its journal.

    For callbacks, which are called again during a replay.
    """
    recorder = current.get()
    return recorder is not None and recorder.replay is not None and not recorder.fresh


# Not Exceptions: scipy, and users' functions, catch those in places and go on with something else.


class Stopped(BaseException):
    """The fit has used up its time."""


class Changed(BaseException):
    """A recorded evaluation, done again, gave something else."""


class Recorder:
    """One fit under watch.

    Parameters
    ----------
    session : Session
        Where checkpoints go.
    options : Warm
        What the caller asked for.
    header : callable
        Makes the header of a new journal.
    shelf : Shelf or None
        Where a journal can be made; None if there is none.
    fit : Fingerprint
        The key at `Level.JOURNAL`.
    target : callable or None
        Computes the number to rank points by from the primary function's value.
    tracked : sequence of generators
        Those that the user's functions draw from.

    Notes
    -----
    A small evaluation costs about a microsecond more. Safe in threads: any thread may evaluate.
    """

    def __init__(
        self,
        session: Session,
        options: Warm,
        *,
        header: Callable[[], Header],
        shelf: Shelf | None,
        fit: Any,
        target: Callable[[Any], Any] | None,
        tracked: Sequence[Any],
    ) -> None:
        self.started = time.perf_counter()
        self.recording = shelf is not None and options.journal is not False
        self.passing = False
        """Whether functions are called as they are: a map of ours does the recording."""
        self.is_plain = False
        """Whether evaluations need only be noted: no replay, nothing but the value to keep."""
        self.replay: Replay | None = None
        self.items: list[Any] = []
        """Evaluations, three items each: the function, the point, the number that it returned;
        or a record, the point, whether it was made now. Not in tuples, which the garbage
        collector would count and visit: that doubled the cost."""
        self.trace = Trace()
        self.ranked: list[Any] = []
        """Objectives that are not in the trace yet, and their points."""
        self.ranked_at: list[bytes] = []
        self.tracked = tracked
        self.memo: dict[tuple[int, int], tuple[Any, Any]] | None = {} if options.dedup else None
        self.due = self.started + files.BUFFER_SECONDS
        self.best = np.inf
        self.better = False
        self.point: tuple[Recorded, bytes, Any] | None = None
        """The best one, or else the latest: function, bytes, value."""
        self.evaluations = 0
        self.probes = 0
        self.opaque = 0
        self.deduplicated = 0
        self.fresh = False
        """Whether the last call, during a replay, was not among the recorded ones."""
        self.tolerant = False
        self.strayed: int | None = None
        self.replay_seconds = 0.0
        self.why: str | None = None
        self.journal: Journal | None = None
        self.carrier: Carrier | None = None
        """Takes the journal to a store that other machines share."""
        self._next_carried = self.started + options.interval
        self._answered = 0
        self._session = session
        self._options = options
        self._header = header
        self._shelf = shelf
        self._fit = fit
        self._target = target
        self._state: dict[str, Any] | None = None
        self._lock = threading.RLock()
        self._making = threading.Lock()
        self._channels: list[str] = []
        self._callbacks: dict[str, int] = {}
        self._source: Journal | None = None
        self._blas = Blas()
        self._waiting: list[bytes] = []
        """Frames that are not written yet, since the fit may end before that is worth while."""
        self._pending = 0
        self._memo_bytes = 0
        self._written = 0
        self._spent = self._waited = 0.0
        self._over_budget = False
        self._next_checkpoint = self.started + FIRST
        self._next_best = 0.0
        self._deadline = np.inf
        if options.time_limit is not None:
            self._deadline = self.started + options.time_limit
            self.due = min(self.due, self._deadline)
        self._progress = Progress(options.progress)
        self._maps: list[Any] = []

    def expect(self, cost: Expected | None) -> None:
        """Have the bar say how long such fits take."""
        if cost is not None:
            self._progress.expected = cost.seconds[0]

    # What scipy is given

    def wrap(self, function: Function) -> Recorded:
        """Return a function of the user's under watch."""
        target = self._target if function.primary else None
        return Recorded(self, function, self.channel(function.label), target)

    def channel(self, label: str) -> int:
        """Return the number that stands for a function in the journal."""
        if label not in self._channels:
            self._channels.append(label)
        return self._channels.index(label)

    def callback(self, label: str, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Return a callback whose stops are recorded, and that may sleep during a replay."""
        skips = self._options.callbacks == "skip"

        @functools.wraps(callback, assigned=(), updated=())  # scipy asks for its signature
        def called(*args: Any, **kwargs: Any) -> Any:
            call = self._callbacks[label] = self._callbacks.get(label, 0) + 1
            source = self._source if skips else None
            if source is not None and (self.replay is not None or call <= source.knows(label)):
                stopped = source.stops.get(label)
                if stopped == -call:
                    raise StopIteration
                return stopped == call or None
            try:
                answer = callback(*args, **kwargs)
            except StopIteration:
                self._note_stop(label, -call)
                raise
            if answer is True:
                self._note_stop(label, call)
            return answer

        return called

    def map(self, workers: Any) -> Any:
        """Return an ordered map that records what `workers` evaluate."""
        from warmstart.workers import OrderedMap  # noqa: PLC0415 (few fits have workers)

        made = OrderedMap(self, workers)
        self._maps.append(made)
        return made

    # Replay

    def adopt(self, journal: Journal) -> None:
        """Answer from a journal as far as it goes; before any function is wrapped."""
        here = environment()
        self._channels = list(journal.lives[-1].channels)
        foreign = any(life.environment != here for life in journal.lives)
        foreign |= not self._blas.impose(journal.lives[0].blas)
        self._source = self.journal = journal
        try:
            if journal.count:
                same = journal.is_of(self._session.key)
                self.replay = Replay(journal, foreign=foreign, same_options=same)
        except _NONSENSE as error:
            raise Changed(f"it is damaged ({error})") from error
        self._deadline = np.inf
        if journal.fruitless > 1 and journal.count:
            complain(
                f"this fit was ended {journal.fruitless} times in a row before it had replayed "
                f"its {journal.count} recorded evaluations: give it more time, or "
                "Warm(journal=False) to start from its best point instead"
            )

    def begin(self) -> None:
        """Note that this life begins, after all functions are wrapped."""
        self._settle_plain()
        journal = self.journal
        if journal is not None:
            self._attempt(lambda: journal.write(files.life_frame(self._life())))
            if self.replay is None:
                self._reach_frontier()
        elif self._options.journal and self.recording:
            self._attempt(self._begin_journal)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Call the user's functions as they are, while a map of ours does the recording."""
        self.passing = True
        self._settle_plain()
        try:
            yield
        finally:
            self.passing = False
            self._settle_plain()

    def _settle_plain(self) -> None:
        self.is_plain = not (self.replay or self.passing or self.tracked) and self.memo is None

    def answer(self, recorded: Recorded, raw: bytes, args: Any, kwargs: Any) -> Any:
        """Answer a call from the journal or the memo, or else for real."""
        digest = xxh3_64_intdigest(raw)
        value = self._recalled(recorded, digest, raw, args, kwargs)
        if value is NOTHING:
            known = None if self.memo is None else self.memo.get((recorded.channel, digest))
            if known is None:
                value = recorded.live(raw, args, kwargs)
            else:
                value, item = own(known[0]), known[1]
                self.deduplicated += 1
                self.keep(item, raw, real=False)
        if self.memo is not None:
            self._memorize(recorded.channel, digest, value)
        return value

    def _recalled(self, recorded: Recorded, digest: int, raw: bytes, args: Any, kwargs: Any) -> Any:
        """Return the recorded value, or NOTHING."""
        with self._lock:
            found = self._find(recorded.channel, digest, raw)
            if found is None:
                return NOTHING
            if found.form & FORM == OPAQUE:
                self.opaque += 1
                try:
                    return own(recorded.function(*args, **kwargs))
                finally:  # after it: what it draws now it drew then
                    self._give(found, raw)
            value, mutated = self._give(found, raw, lambda: recorded.function(*args, **kwargs))
            if mutated is not None and type(args[0]) is np.ndarray:
                args[0][...] = np.frombuffer(mutated, args[0].dtype).reshape(args[0].shape)
            return value

    def recall_mapped(
        self, channel: int, digest: int, raw: bytes, again: Callable[[], Any]
    ) -> tuple[Any] | None:
        """Return the recorded value of a call that a worker made, in a tuple, or None."""
        with self._lock:
            found = self._find(channel, digest, raw)
            if found is None or found.form & FORM == OPAQUE:
                return None
            return (self._give(found, raw, again)[0],)

    def _find(self, channel: int, digest: int, raw: bytes) -> Evaluation | None:
        """Return the recorded evaluation that answers a call."""
        if self.replay is None:
            return None
        try:
            found = self.replay.find(channel, digest, raw)
            if self.replay.strayed is not None and self.strayed is None:
                if self._change_over(self.replay, channel, digest):
                    found = self.replay.find(channel, digest, raw)
                else:
                    self.strayed = self.replay.strayed
                    self._leave(self.replay.strayed)
        except _NONSENSE as error:
            raise Changed(f"it is damaged ({error})") from error
        self._note_progress(self.replay, found)
        return found

    def _note_progress(self, replay: Replay, found: Evaluation | None) -> None:
        """Keep the clock of new work, and the bar."""
        self.fresh = found is None
        if found is None and self._deadline == np.inf and self._options.time_limit is not None:
            self._deadline = time.perf_counter() + self._options.time_limit
            self.due = 0.0
        if found is None and replay.is_over:
            self._reach_frontier()
        elif replay.answered % 256 == 0:
            self._show_replay()

    def _give(
        self, found: Evaluation, raw: bytes, again: Callable[[], Any] | None = None
    ) -> tuple[Any, bytes | None]:
        """Return what was recorded; the first and the last are evaluated again to compare."""
        replay = self.replay
        assert replay is not None
        buffer = replay.journal.buffer
        if replay.strayed is not None:
            head = pack_head(found.channel, found.form, found.digest)
            self.keep(head + buffer[found.offset : found.end], raw, real=False)
        try:
            mutated, tracked = replay.journal.extras(found)
            value, _ = unpack_value(buffer, found.form, found.offset)
            if mutated is not None and len(mutated) != len(raw):
                raise ValueError(f"an input of {len(raw)} bytes was left with {len(mutated)}")
        except _NONSENSE as error:
            raise Changed(f"it is damaged ({error})") from error
        due = self.probes == 0 or (replay.is_last and self.probes == 1)
        if again is not None and due and replay.is_exact:
            self._probe(value, again)
        if tracked is not None:
            try:
                restore(self.tracked, tracked)
            except _NONSENSE as error:
                raise Changed(f"it is damaged ({error})") from error
        if replay.is_over:
            self._reach_frontier()
        return value, mutated

    def _probe(self, value: Any, again: Callable[[], Any]) -> None:
        """Evaluate a recorded point for real, and compare.

        Raises
        ------
        Changed
            If the function is not the one that was recorded.
        """
        self.probes += 1
        apart = difference(value, own(again()))
        if apart == 0.0:
            return
        if apart <= NEARLY:
            self.tolerant = True
            return
        where = "first" if self.probes == 1 else "last"
        raise Changed(
            f"the {where} recorded evaluation, done again, differs by {apart:.1e} relative: the "
            "function has changed, or depends on more than its arguments"
        )

    def _change_over(self, replay: Replay, channel: int, digest: int) -> bool:
        """Go on with another journal of this fit, if one has gone the way that is asked for now.

        The fit has been run with several options, and the journal at hand was of others.
        """
        shelf, source = self._shelf, self._source
        if shelf is None or source is None:
            return False
        for journal in shelf.others(self._fit, self._session.key):
            here = {environment()} == {life.environment for life in journal.lives}
            alike = here and journal.lives[-1].channels == self._channels
            other = replay.elsewhere(journal, channel, digest) if alike else None
            if other is None:
                journal.close()
                continue
            source.close()
            self._source = self.journal = journal
            self.replay = other
            self._attempt(lambda: journal.write(files.life_frame(self._life())))  # noqa: B023
            return True
        return False

    def _leave(self, strayed: int) -> None:
        """Go on in a journal of its own, since the optimizer went another way than recorded."""
        source, journal = self._source, self.journal
        if source is None or journal is not source:
            return
        first = b"".join(
            (
                files.header_frame(self._header()),
                files.life_frame(self._life()),
                source.copy_of(strayed),
            )
        )
        self.journal = None
        self._attempt(lambda: self._make(first))

    def _reach_frontier(self) -> None:
        """Everything recorded has been answered: from now on it is new work."""
        if self.replay is not None:
            self._answered = self.replay.answered
            self.tolerant |= self.replay.tolerant
        self.replay = None
        self._settle_plain()
        now = time.perf_counter()
        self.replay_seconds = now - self.started
        if self._options.time_limit is not None:
            self._deadline = now + self._options.time_limit
        self.due = now
        self._progress.end_replay()

    def _show_replay(self) -> None:
        if self.replay is not None:
            elapsed = time.perf_counter() - self.started
            if elapsed > _LONG_REPLAY or self._options.progress:
                self._progress.replay(self.replay.answered, self.replay.count)

    def _memorize(self, channel: int, digest: int, value: Any) -> None:
        assert self.memo is not None
        if (channel, digest) in self.memo:
            return
        form, payload = pack_value(value)
        if form == OPAQUE:
            return
        item = pack_head(channel, form, digest) + payload
        self._memo_bytes += len(item) + 200
        if self._memo_bytes > _MEMO:  # the oldest go first
            oldest = next(iter(self.memo))
            self._memo_bytes -= len(self.memo.pop(oldest)[1]) + 200
        self.memo[channel, digest] = own(value), item

    # Recording

    def grown(self, size: int) -> None:
        """Count bytes that wait in memory."""
        self._pending += size
        if self._pending > _PENDING:
            self.due = 0.0

    def with_extras(self, item: bytes, x: Any, raw: bytes) -> bytes:
        """Add to a record what the evaluation did besides returning a value."""
        flags, extras = 0, []
        if type(x) is np.ndarray and (after := x.tobytes()) != raw:
            flags |= MUTATED
            extras += [_pack_size(len(after)), after]
        if self.tracked:
            flags |= TRACKED
            state = dumps(states(self.tracked))
            extras += [_pack_size(len(state)), state]
        if not flags:
            return item
        return b"".join((item[:1], bytes((item[1] | flags,)), item[2:], *extras))

    def keep(self, item: bytes, raw: bytes, *, real: bool = True) -> None:
        """Add an evaluation that is packed already; `real` if it was made now."""
        self.items.extend((item, raw, real))
        self.grown(len(item) + len(raw))

    @property
    def calls(self) -> int:
        """Calls of the user's functions, for real, in this process; up to the last `settle`."""
        return self.evaluations + self.probes + self.opaque

    def counted(self) -> int:
        """Return `total` as it is now."""
        with self._lock:
            self._absorb()
            return self.total

    @property
    def answered(self) -> int:
        """Calls that the journal answered."""
        return self._answered if self.replay is None else self.replay.answered

    @property
    def total(self) -> int:
        """Calls that the fit has taken so far, in all processes, nothing done twice counted."""
        return self.evaluations + self.answered

    @property
    def saved(self) -> int:
        """Calls that were answered without the user's functions."""
        return self.answered - self.opaque + self.deduplicated

    def settle(self) -> None:
        """Do what is due: rank, write, keep, show, stop."""
        if not self._lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            now = time.perf_counter()
            if self.items or self.ranked:
                self._absorb()
            if self._waiting and self._is_time(now):
                self._write(now)
            if self.replay is None or self.fresh:
                if now >= self._next_checkpoint:
                    self._checkpoint(now)
                if self.carrier is not None and now >= self._next_carried:
                    self._carry()
                if self._options.progress:
                    self._progress.update(self.answered, self.calls, self.best)
            if now >= self._deadline and self.evaluations and self.point is not None:
                raise Stopped  # with something done, so that the next call gets further
            self.due = min(self._deadline, time.perf_counter() + files.BUFFER_SECONDS)
        finally:
            self._lock.release()

    def _absorb(self) -> None:
        """Rank what was evaluated, and pack it into frames."""
        taken = self.items[:]
        functions, raws, values = taken[0::3], taken[1::3], taken[2::3]
        if functions:
            alike = are_numbers(functions, values)
            self._rank(functions, raws, values, alike=alike)
            if self.recording:
                body = pack_calls(functions, raws, values, alike=alike)
                self._waiting.append(files.evaluation_frames(body, len(raws), sketches(raws)))
                self._written += len(raws)
            del self.items[: len(taken)]  # last, since Ctrl-C may come at any time
        self._pending = sum(map(len, self._waiting))
        if self.ranked:
            self._trace()

    def _trace(self) -> None:
        """Note the objectives that were ranked one by one."""
        numbers, raws = self.ranked[:], self.ranked_at[:]
        self._forget_ranked()
        try:
            values = np.array(numbers, float)
        except (TypeError, ValueError):  # whatever the function returns, scipy will say
            return
        if values.ndim == 1 and len(values) == len(raws):
            self._note_curve(values, raws)

    def _note_curve(self, values: Any, raws: list[bytes]) -> None:
        with contextlib.suppress(Exception):  # a curve is worth no fit
            self.trace.add(values, raws, time.perf_counter() - self.started)

    def _forget_ranked(self) -> None:
        del self.ranked[:], self.ranked_at[:]

    def _rank(
        self, functions: list[Any], raws: list[bytes], values: list[Any], *, alike: bool
    ) -> None:
        """Find the best point of many."""
        if self.ranked:
            self._trace()
        one, numbers = functions[0], None
        if alike:
            numbers = values if one.is_number else None
        elif is_one(functions):
            numbers = one.numbers(values)
        if numbers is not None:
            lowest = min(numbers)
            if lowest != lowest:  # noqa: PLR0124 (NaN is the least of what comes after it)
                lowest = min((number for number in numbers if number == number), default=lowest)  # noqa: PLR0124
            if lowest < self.best:
                place = numbers.index(lowest)
                one.rank(raws[place], values[place])
                self._forget_ranked()
            self.evaluations += len(raws)
            self._note_curve(numbers, raws)
            return
        for function, raw, value in zip(functions, raws, values, strict=True):
            if type(function) is bytes:
                self.evaluations += value
            else:
                self.evaluations += 1
                if function.is_primary:
                    function.rank(raw, value)
                elif function.is_gradient:
                    self.trace.gradient = value
                elif function.between is not None:
                    self.trace.constraints[function.label] = value, function.between

    def _write(self, now: float) -> None:
        """Write the frames that wait, and the best point."""
        if self.journal is None:
            self._attempt(self._begin_journal)
        journal, frames = self.journal, self._waiting
        if journal is None:
            return
        if journal.size + sum(map(len, frames)) > self._options.journal_budget:
            self._stop_recording(
                f"the journal has reached its budget of {self._options.journal_budget} bytes: "
                "from here on only the best and the latest point are kept"
            )
            self._over_budget = True
            return
        self._waiting, self._pending = [], 0
        frames.append(self._best_frame(now))
        if sum(map(len, frames)) < _PIECE:  # else one at a time: there may be much to give up
            frames = [b"".join(frames)]
        for frame in frames:
            before, start = time.thread_time(), time.perf_counter()
            self._attempt(lambda: journal.write(frame))  # noqa: B023
            end = time.perf_counter()
            self._spent += time.thread_time() - before
            self._waited += end - start
            worth = max(_WORTH_EACH * self._written, _WORTH * (end - self.started)) + _SLACK
            if self._options.journal is None and max(self._spent, self._waited / 10.0) > worth:
                self._stop_recording("a journal would cost more than it protects")
            if not self.recording:
                return

    def _is_time(self, now: float) -> bool:
        asked = bool(self._options.journal)
        return asked or now >= self.started + FIRST or self._pending > _PENDING

    def _begin_journal(self) -> None:
        self._make(files.header_frame(self._header()) + files.life_frame(self._life()))

    def _make(self, first: bytes) -> None:
        shelf = self._shelf
        assert shelf is not None

        def make() -> None:
            with self._making:  # whoever was interrupted, and comes again, finds it made
                if self.journal is None:
                    names = self._session.key, self._session.run_id
                    self.journal = shelf.create(self._fit, *names, first)

        undisturbed(make)

    def _life(self) -> Life:
        return Life(
            run=self._session.run_id,
            began=time.time(),
            environment=environment(),
            blas=self._blas.describe(),
            channels=self._channels,
        )

    def _best_frame(self, now: float) -> bytes:
        if self.point is None or not (self.better or self._target is None):
            return b""
        if now < self._next_best:
            return b""
        x = self.x()
        if x is None:
            return b""
        self.better = False
        self._next_best = now + max(_BEST, np.size(x) * 1e-5)
        number = self.best if np.isfinite(self.best) else None
        return files.best_frame({"x": x, "objective": number})

    def _stop_recording(self, why: str) -> None:
        self.recording = False
        self._waiting = []
        self.why = why
        journal, self.journal = self.journal, None
        if journal is not None:
            journal.delete()
            if journal is not self._source:
                journal.close()

    def _note_stop(self, label: str, call: int) -> None:
        with self._lock:
            self._absorb()
            if self.recording:
                self._waiting.append(files.stop_frame(label, call))

    def _attempt(self, operation: Callable[[], Any]) -> None:
        """Law 2: a journal that cannot be written is one warning, and the fit goes on."""
        done = self._session.store.attempt(lambda: (operation(), True)[1], False, writes=True)
        if not done and self.recording:
            self.recording = False
            self._waiting = []
            self.why = "the journal could not be written"

    # The best point

    def x(self) -> NDArray[Any] | float | None:
        """Return the best point as the user's function took it."""
        if self.point is None:
            return None
        function, raw, _ = self.point
        x = np.frombuffer(raw, function.dtype)
        if function.takes is ONE and function.shape is None:
            return float(x[0])
        whole = function.shape is not None and x.size == np.prod(function.shape)
        return x.reshape(function.shape).copy() if whole else x.copy()

    def stopped_at(self, message: str) -> Point | None:
        """Return the best point, for a fit that is ended before its end."""
        x = self.x()
        if x is None or self.point is None:
            return None
        number = self.best if np.isfinite(self.best) else None
        return Point(x, self.point[2], number, self.total + self.deduplicated, message)

    def _checkpoint(self, now: float) -> None:
        payload: dict[str, Any] = {
            "x": self.x(),
            "evaluations": self.total,
            "seconds": now - self.started,
        }
        if payload["x"] is not None:
            if self._over_budget or not self.recording:
                self._state = solver_state() or self._state
                payload["state"] = self._state
            objective = self.best if np.isfinite(self.best) else None
            self._session.checkpoint(payload, objective=objective, iteration=self.calls)
        end = time.perf_counter()
        pause = 0.25 if self.recording else 0.001
        self._next_checkpoint = end + max(_SHARE * (end - now), pause)

    def _carry(self) -> None:
        carrier, journal, begin = self.carrier, self.journal, time.perf_counter()
        if carrier is not None and journal is not None and self.recording:
            self._attempt(lambda: carrier.send(journal, time.time()))
            end = time.perf_counter()
            self._next_carried = end + max(self._options.interval, _SHARE * (end - begin))

    # The end

    def note_failure(self) -> None:
        """Note that the fit has ended in an exception of its own: it was not killed.

        Its next life will replay all and record nothing again.
        """
        if self.journal is not None:
            with self._lock:
                self._absorb()
                self._waiting.append(files.end_frame({}))

    def traced(self) -> dict[bytes, bytes]:
        """Return the rows that tell how the fit converged; none for one of some milliseconds."""
        if time.perf_counter() - self.started < _TRACED:
            return {}
        with self._lock, contextlib.suppress(Exception):  # a curve is worth no fit
            self._absorb()
            found, began = self.trace.series(), time.time() + self.started - time.perf_counter()
            run = self._session.run_id
            return dict(
                piece(run, name, steps, values, began + self.trace.seconds(steps))
                for name, (steps, values) in found.items()
            )
        return {}

    def finish(self, *, completed: bool, keep: bool) -> None:
        """Write what is pending, and let go of the journal.

        Parameters
        ----------
        completed : bool
            Whether the fit came to its end.
        keep : bool
            Whether the journal of a fit that did not is begun however short it was.
        """
        self._progress.close()
        for made in self._maps:
            made.close()
        short = self.journal is None and not self._is_time(time.perf_counter())
        if short and (completed or not keep):
            self.recording = False
        work = functools.partial(self._finish, completed=completed)
        # Ctrl-C may have come as `settle` had just taken the lock, which then is this thread's.
        with contextlib.suppress(RuntimeError):
            self._lock.release()
        try:
            # A journal that were left half closed would stay locked by this process.
            undisturbed(work) if self.recording or self._source is not None else work()
        finally:
            self._blas.release()

    def _finish(self, *, completed: bool) -> None:
        with self._lock:
            if self.replay is not None:
                self._reach_frontier()
            self._absorb()
            if self.recording and self._waiting:
                self._write(time.perf_counter())
            journal = self.journal
            if journal is not None and self.recording:
                self._next_best = 0.0
                last = self._best_frame(time.perf_counter())
                end = files.end_frame(self._callbacks) if completed else b""
                self._attempt(lambda: journal.write(last, end))
                # The final of a short fit is in the store; its journal is not waited for.
                if not completed or time.perf_counter() - self.started > self._options.interval:
                    self._attempt(journal.sync)
                if journal is self._source:
                    self._attempt(lambda: journal.rename(self._session.key))
            carrier = self.carrier
            if carrier is not None and completed:
                self._attempt(carrier.forget)
            elif carrier is not None:
                self._carry()
            if journal is not None:
                journal.close()
            if self._source is not None and self._source is not journal:
                self._source.close()
        if journal is not None and self._shelf is not None:
            shelf = self._shelf
            if completed:
                self._attempt(lambda: shelf.forget(self._session.key, but=journal.path))
            self._attempt(shelf.sweep)

    def set_aside(self) -> None:
        """Delete the journal that was replayed; the fit is to begin anew."""
        for made in self._maps:
            made.close()
        self._progress.close()
        for journal in (self.journal, self._source):
            if journal is not None:
                journal.close(delete=True)
        self.journal = self._source = self.replay = None
        self.recording = False
        self._blas.release()
