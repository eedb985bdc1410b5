"""A fit's way through the house: key, look-up, replay or run under watch, remember, report."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
import types
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy.optimize import OptimizeResult

from warmstart import learned
from warmstart.approach import Approach, check_near
from warmstart.caller import complain
from warmstart.carrying import Carrier
from warmstart.codec import RichResult
from warmstart.dataset import plain
from warmstart.errors import (
    BusyError,
    CodecError,
    FingerprintError,
    NearError,
    ReplayError,
    StoreError,
)
from warmstart.fingerprint import Fingerprint, FitSpec, Level, code_fingerprint, environment
from warmstart.flight import flight
from warmstart.journal import NONE, Found, Header, Journal
from warmstart.packing import dumps, loads
from warmstart.progress import Progress
from warmstart.randomness import Dice, restore, states
from warmstart.recent import Recent, signature
from warmstart.record import Entry, EntryKind, Start
from warmstart.recording import Changed, Recorder, Stopped, current
from warmstart.rewarn import hides, overhear, rewarn
from warmstart.session import LoadedEntry, LoadSource, Session, new_run_id, run_info
from warmstart.starts import plan_of
from warmstart.store import Store
from warmstart.surfaces import BAGS, Surface
from warmstart.warm import FitReport, Warm, options_of, store_of, tell

__all__ = ["remembered"]

_QUICK = 1e-3
"""Seconds that a `quick` fit must have taken to be remembered."""


class Fitted(tuple[Any, ...]):  # noqa: SLOT001 (``warm`` stands in its __dict__)
    """A tuple that scipy returned, with ``warm`` beside it."""

    warm: FitReport


class _Call(NamedTuple):
    """One call of a wrapped function."""

    surface: Surface
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: dict[str, Any]
    options: Warm


class _Beginning(NamedTuple):
    """Where a run begins, if not at the caller's own start."""

    source: str
    changes: dict[str, Any]
    entry: Entry | None = None
    evaluations: int = 0
    seconds: float = 0.0
    why: str | None = None


_COLD = _Beginning("cold", {})


def remembered(surface: Surface) -> Callable[..., Any]:
    """Return a function of scipy.optimize that remembers what it fitted.

    Parameters
    ----------
    surface : Surface
        The row that describes it.

    Returns
    -------
    callable
        The same signature, and ``warm=``.
    """
    plain = surface.scipy

    @functools.wraps(plain)
    def fit(*args: Any, warm: Warm | None = None, **kwargs: Any) -> Any:
        options = options_of(warm)
        if current.get() is not None:  # part of another fit: the outermost is the one remembered
            return plain(*args, **kwargs)
        if not options.enabled:
            return _untouched(plain, args, kwargs)
        if surface.quick and _is_known_quick(surface, args, kwargs, options):
            return plain(*args, **kwargs)
        # A call that was made before is known by what it was given, as it was given: to name the
        # arguments and leave out defaults first took 2 of the 13 us of a hit (2026-11).
        signed = _signature(surface, args, kwargs, options) if surface.function else None
        known = None if signed is None else _recent.get(signed)
        if known is not None and known.is_silent and not options.refit:
            store = store_of(options)
            entry = store.attempt(lambda: store.best(known.key), None, local=True)
            if entry is not None and _is_answer(entry):
                return _answer(store, entry)
        bound = surface.bind(args, kwargs)
        if bound is None:  # scipy refuses it in a moment, or it is too small
            return _untouched(plain, args, kwargs)
        return _fit(_Call(surface, args, kwargs, bound, options), signed)

    try:
        signature = inspect.signature(plain)
    except ValueError:  # compiled
        pass
    else:
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        extra = inspect.Parameter("warm", inspect.Parameter.KEYWORD_ONLY, default=None)
        fit.__signature__ = signature.replace(parameters=[*named, extra, *rest])  # type: ignore[attr-defined]
    fit.__module__ = "warmstart.optimize"
    fit.__doc__ = f"{plain.__doc__ or ''}\n\nwarm : warmstart.Warm, optional\n    {_DOC}\n"
    return fit


def _untouched(plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let scipy do it; what it warns points to the caller."""
    with overhear():
        return plain(*args, **kwargs)


_DOC = "How to remember this fit; see `warmstart.Warm`. ``result.warm`` tells what happened."

# Root finders and the like are often called ten thousand times for ten microseconds each, less
# than it takes to look anything up. A function that was quick once goes straight to scipy.
_known_quick: dict[types.CodeType, None] = {}


def _is_known_quick(
    surface: Surface, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Warm
) -> bool:
    function = args[0] if args else kwargs.get(surface.names[0])
    return _attribute(function, "__code__") in _known_quick and not options.journal


class _Known(NamedTuple):
    """What is known of a call that was made before."""

    key: Fingerprint
    is_silent: bool
    """Whether it has no callback, which a hit would not call."""


_recent: Recent[_Known] = Recent()


def _fit(call: _Call, signed: tuple[Any, ...] | None) -> Any:
    check_near(call.surface, call.bound, call.options)
    store, options = store_of(call.options), call.options
    if signed is None and not call.surface.function:
        signed = _signature(call.surface, call.args, call.kwargs, options)
    known = None if signed is None else _recent.get(signed)
    key, is_silent = None if known is None else known.key, _is_silent(call)
    spec, producer = None, environment()
    try:
        if key is None:
            spec, producer = _identify(call)
            key = spec.key
            if signed is not None:
                _recent.add(signed, _Known(key, is_silent))
        entry = None
        if not options.refit:
            entry = store.attempt(lambda: store.best(key, producer=producer), None, local=True)
            # A fit on which many are to be built is done once more, for what it leaves them.
            if entry is None and options.near and not options.expect and spec is not None:
                cold = spec.key_without("near")
                entry = store.attempt(lambda: store.best(cold, producer=producer), None)
                if entry is not None and entry.kind is not EntryKind.FINAL:
                    entry = None
        if entry is not None and is_silent and _answers(call, entry):
            return _answer(store, entry, call)
        if spec is None:
            spec, producer = _identify(call)
    except FingerprintError as error:
        complain(f"this fit is not remembered: {error}")
        return _unkeyed(call, str(error))
    call = _plain(call)
    session = Session(store, spec, producer=producer, interval=options.interval)
    if options.busy == "run" or options.refit:
        return _Run(call, session, spec, entry).go()
    return _run_alone(call, session, spec, entry)


def _plain(call: _Call) -> _Call:
    """Return the call with arrays where it was given data sets."""
    changes = {
        name: made
        for name in call.surface.data
        if (made := plain(given := call.bound.get(name))) is not given
    }
    if not changes:
        return call
    args, kwargs = call.surface.substitute(call.args, call.kwargs, changes)
    return call._replace(args=tuple(args), kwargs=kwargs, bound={**call.bound, **changes})


def _run_alone(call: _Call, session: Session, spec: FitSpec, entry: Entry | None) -> Any:
    """Do a fit unless somebody else is at it, whose result is waited for."""
    store, options = session.store, call.options

    def best() -> Entry | None:
        return store.attempt(
            lambda: store.best(session.key, producer=session.producer), None, local=True
        )

    shown = Progress(options.progress)

    def done() -> bool:
        found = best()
        if found is not None and options.progress:
            payload = found.payload if isinstance(found.payload, dict) else {}
            shown.follow(payload.get("evaluations", 0), found.objective)
        return found is not None and is_silent and _answers(call, found)

    is_silent = _is_silent(call)
    wait = options.busy == "wait"
    with contextlib.ExitStack() as stack:
        turn = flight(store, session.key, session.run_id, wait=wait, done=done)
        try:
            alone = store.attempt(lambda: stack.enter_context(turn), True, writes=True)
        finally:
            shown.close()
        found = best()
        if found is not None and is_silent and _answers(call, found):
            return _answer(store, found, call)
        if not alone and options.busy == "raise":
            raise BusyError(
                f'another process is at this fit ({str(session.key)[:12]}): busy="wait" waits for '
                'its result, busy="run" does it as well'
            )
        return _Run(call, session, spec, found or entry).go()


def _drawn_from(call: _Call) -> list[Any]:
    """Return the generators that the user's functions draw from: among the arguments, tracked."""
    found: dict[int, Any] = {}

    def look(value: Any, depth: int) -> None:
        if isinstance(value, _GENERATORS):
            found[id(value)] = value
        elif depth and isinstance(value, _CONTAINERS):
            items = list(value.values() if isinstance(value, dict) else value)
            # A list of a million numbers is passed over in 20 ms, a tenth of its key's time.
            if any(issubclass(kind, _GENERATORS + _CONTAINERS) for kind in set(map(type, items))):
                for item in items:
                    look(item, depth - 1)

    for name, value in call.bound.items():
        if name not in _RNG:
            look(value, _DEPTH)
    look(call.options.track, 1)
    return list(found.values())


_GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)
_CONTAINERS = (tuple, list, dict)
_RNG = frozenset({"rng", "seed"})
"""Arguments for the optimizer's own."""
_DEPTH = 4


def _is_silent(call: _Call) -> bool:
    """Whether a call has nothing that a hit would not call."""
    return call.options.callbacks == "skip" or not _has_callback(call.bound)


def _has_callback(arguments: Mapping[str, Any]) -> bool:
    bags = (arguments.get(name) for name in BAGS)
    return arguments.get("callback") is not None or any(
        _has_callback(bag) for bag in bags if isinstance(bag, dict)
    )


def _is_answer(entry: Entry) -> bool:
    """Whether an entry may be returned instead of running a fit without a callback."""
    return entry.kind is EntryKind.FINAL and _is_ours(entry)


def _answers(call: _Call, entry: Entry) -> bool:
    """Whether an entry may be returned, and says how it left the generators of a call."""
    if not _is_answer(entry) or not call.options.track:
        return _is_answer(entry)
    return len(entry.payload.get("tracked", ())) >= len(_drawn_from(call))


def _is_ours(entry: Entry) -> bool:
    """Whether a final was left by a wrapped call, and not by a session of the same key."""
    return isinstance(entry.payload, dict) and entry.payload.keys() >= _PAYLOAD


_PAYLOAD = {"result", "evaluations", "seconds", "warnings", "rng"}


def _identify(call: _Call) -> tuple[FitSpec, str]:
    """Return what is fitted, and whose finals are answers to it."""
    options = call.options
    model, data, settings = call.surface.parts(call.bound)
    producer = environment()
    if options.model is not None:
        code = {name: model[name] for name in model if name != "kind"}
        model = {"name": options.model, "kind": model["kind"]}
        try:
            producer += f" code {str(code_fingerprint(code))[:16]}"
        except FingerprintError:
            producer += " code unknown"
    if options.data is not None:
        data["warm"] = options.data
    if options.near:
        settings["near"] = True  # what began near is no answer to who did not ask for it
    return FitSpec(model=model, data=data, hyper=options.hyper, settings=settings), producer


def _signature(
    surface: Surface, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Warm
) -> tuple[Any, ...] | None:
    """Return what a call was given, where that alone makes its key."""
    named = options.model is not None or options.data is not None
    if named or options.near or options.required or surface.random or options.track:
        return None
    if options.hyper is not None or options.callbacks != "run":
        kwargs = {**kwargs, "Warm": (options.hyper, options.callbacks)}
    return signature(surface.name, args, kwargs)


def _unkeyed(call: _Call, why: str) -> Any:
    """Let scipy do a fit that has no key; that it was done is remembered."""
    store, run, began = store_of(call.options), new_run_id(), time.perf_counter()

    def note(status: str, result: Any = None, error: str | None = None) -> None:
        seconds = time.perf_counter() - began
        if call.surface.quick and seconds < _QUICK:
            return
        info = run_info(
            store,
            run,
            status,
            error=error,
            started=store.clock() - seconds,
            what=_what(call),
            evaluations=_count(result) or 0,
            seconds=seconds,
            objective=_objective_of(result),
        )
        store.attempt(lambda: store.set_run_info(info), None, writes=True, local=True)

    token = current.set(_OFF)
    try:
        result = _untouched(call.surface.scipy, call.args, call.kwargs)
    except BaseException as raised:
        with contextlib.suppress(StoreError):  # what the caller has to hear of is the fit's own
            status = "failed" if isinstance(raised, Exception) else "cancelled"
            note(status, error=f"{type(raised).__name__}: {raised}"[:500])
        raise
    finally:
        current.reset(token)
    note("completed", result)
    return _with_report(
        result, FitReport(source="off", run=run, evaluations=_count(result), why=why)
    )


_OFF: Any = types.SimpleNamespace(replay=None, fresh=False)
"""Stands for a fit without a recorder, so that fits inside it are part of it too."""


def _answer(store: Store, entry: Entry, call: _Call | None = None) -> Any:
    """Return the remembered result without calling anything of the user's."""
    payload = entry.payload
    if call is not None and call.surface.random:
        Dice(call.bound).rewind(payload["rng"])
    if call is not None and "tracked" in payload:
        restore(_drawn_from(call), payload["tracked"])
    rewarn(payload["warnings"])
    store.note_hit(payload["evaluations"], payload["seconds"])
    report = FitReport(
        source="final",
        key=str(entry.key),
        run=entry.run,
        start_run=entry.start.run,
        evaluations=0,
        evaluations_saved=payload["evaluations"],
        seconds_saved=payload["seconds"],
        why=_HIDDEN if "hidden" in payload else None,
        dropped=entry.dropped,
    )
    return _with_report(_unpack(payload["result"]), report)


_HIDDEN = "warnings were ignored when it was done: what it warned of is not known"


class _Run:
    """One fit that has to be run, or replayed."""

    def __init__(self, call: _Call, session: Session, spec: FitSpec, entry: Entry | None) -> None:
        self._call = call
        self._session = session
        self._spec = spec
        self._entry = entry
        self._store = session.store
        self._fit = spec.level_key(Level.JOURNAL)
        self._dice = Dice(call.bound) if call.surface.random else None
        self._tracked = _drawn_from(call)
        self._track0 = states(self._tracked)
        self._dice0 = self._dice.state() if self._dice is not None else None
        self._beginning = _COLD
        self._busy = False
        self._hidden = hides()
        shared = self._store.is_shared and call.options.journal is not False
        self._carrier = Carrier(self._store.backend, self._fit) if shared else None
        self._near: Approach | None = None
        if call.options.near and call.surface.function is not None:
            self._near = Approach(self._store, call.surface, call.bound, call.options, spec)

    def go(self) -> Any:
        """Replay what is recorded, run the rest, and return what scipy returns."""
        journal = None
        if self._call.surface.function is not None:
            journal = self._find_journal()
        if journal is not None:
            try:
                self._beginning = self._as_recorded(journal)
            except (LookupError, TypeError, ValueError):  # its checksums are right, but it is not
                journal.close(delete=True)
                journal = None
        if journal is None:
            self._beginning = self._from_entry()
            if self._near is not None and self._beginning.source == "cold":
                self._beginning = self._from_near(self._near)
        try:
            return self._run(journal)
        except _Anew as anew:
            # The recorder has stopped scipy at the first sign that the function is another one.
            complain(
                f"the journal of this fit is set aside: {anew}. The fit starts anew from the best "
                "point that was reached"
            )
            self._beginning = self._from_best(anew.best, str(anew))
            if self._near is not None:
                self._near.plan = None
            self._session.start = Start()
            self._rewind()
        return self._run(None)

    def _find_journal(self) -> Journal | None:
        options = self._call.options
        if not options.resume or options.refit or options.journal is False:
            return None

        def find() -> Found:
            shelf = self._store.journals
            if shelf is not None and self._carrier is not None:
                self._carrier.fetch(shelf)
            return NONE if shelf is None else shelf.find(self._fit, self._spec.key)

        journal, self._busy = self._store.attempt(find, NONE)
        return journal

    def _as_recorded(self, journal: Journal) -> _Beginning:
        """Begin where the recorded run began."""
        header = journal.header
        assert header is not None
        changes = {}
        if header.chosen and header.x0 is not None and self._call.surface.start is not None:
            changes[self._call.surface.start] = self._checked_point(loads(header.x0))
        if self._dice is not None and header.random is not None:
            self._dice0 = loads(header.random)
            self._dice.begin(self._dice0)
        if self._tracked and header.track is not None:
            self._track0 = loads(header.track)
            restore(self._tracked, self._track0)
        if header.plan is not None and self._near is not None:
            self._near.plan = plan_of(header.plan)
        payload = self._entry.payload if self._entry is not None else None
        seconds = payload.get("seconds", 0.0) if isinstance(payload, dict) else 0.0
        self._session.start = Start(source="journal", run=journal.lives[-1].run)
        return _Beginning("journal", changes, seconds=seconds)

    def _from_entry(self) -> _Beginning:
        """Begin at what the store has of this fit besides a journal: a checkpoint, or nothing."""
        entry, call = self._entry, self._call
        if self._busy:
            return _COLD._replace(why="another process is at this fit")
        if entry is None:
            return _COLD
        if entry.kind is EntryKind.FINAL and _is_ours(entry):
            why = 'remembered, but run again for its callback; callbacks="skip" returns it'
            if _is_silent(call):
                why = "remembered, but not how it leaves the generators that are tracked"
            return _COLD._replace(why=why)
        if not call.options.resume:
            return _COLD._replace(why="a checkpoint is there, but resume=False")
        if call.surface.start is None:
            return _COLD._replace(why="a checkpoint is there, but no start can be given")
        payload = entry.payload if isinstance(entry.payload, dict) else {}
        return self._from_payload(payload, entry)

    def _from_near(self, near: Approach) -> _Beginning:
        """Begin at what near fits have left, if there are any."""
        why, plan = near.find(), near.plan
        if plan is None:
            if self._call.options.required:
                raise NearError(f"{why}; Warm(required=True) asks for a near start")
            return self._beginning._replace(why=self._beginning.why or why)
        self._session.start = Start("near", plan.run, plan.level, plan.distance)
        return _Beginning("near", {})

    def _from_payload(self, payload: dict[str, Any], entry: Entry) -> _Beginning:
        call = self._call
        state = payload.get("state")
        try:
            if isinstance(state, dict) and call.surface.name == "minimize":
                options = {**(call.bound.get("options") or {}), **state["options"]}
                changes = {"x0": state["x"], "options": options}
                why = "from the state of the solver, without a journal"
            else:
                changes = {str(call.surface.start): self._point(_x_of(payload))}
                why = "from the best point, without a journal"
        except ValueError as error:
            return _COLD._replace(why=str(error))
        self._session.start_from(LoadedEntry(entry, LoadSource.EXACT, Level.EXACT, 0.0))
        evaluations, seconds = payload.get("evaluations", 0), payload.get("seconds", 0.0)
        return _Beginning("checkpoint", changes, entry, evaluations, seconds, why)

    def _from_best(self, best: Any, why: str) -> _Beginning:
        """Begin at the best point of a journal that does not fit the function any more."""
        start = self._call.surface.start
        if start is None or not isinstance(best, dict):
            return _COLD._replace(why=why)
        try:
            return _Beginning("checkpoint", {start: self._point(best.get("x"))}, why=why)
        except ValueError:
            return _COLD._replace(why=why)

    def _point(self, x: Any) -> np.ndarray[Any, Any]:
        """Return a point that a run had reached, as a start for this one.

        Raises
        ------
        ValueError
            With the reason, if there is none that fits.
        """
        lower, upper = self._call.surface.limits(self._call.bound)
        return np.asarray(np.clip(self._checked_point(x), lower, upper))

    def _checked_point(self, x: Any) -> np.ndarray[Any, Any]:
        if not isinstance(x, np.ndarray) or x.ndim != 1 or not np.isfinite(x).all():
            raise ValueError("the checkpoint holds no usable point")
        given = self._call.bound.get(str(self._call.surface.start))
        if given is not None and np.size(given) != x.size:
            raise ValueError(f"the checkpoint has {x.size} parameters, this fit {np.size(given)}")
        return x

    def _header(self) -> Header:
        """Return what a new journal says of itself."""
        start, bound = str(self._call.surface.start), self._call.bound
        chosen = start in self._beginning.changes
        x0 = self._beginning.changes[start] if chosen else bound.get(start)
        plan = self._near.plan if self._near is not None else None
        kept = None
        with contextlib.suppress(CodecError):  # what the caller gives is given again
            kept = None if x0 is None else dumps(np.asarray(x0))
        return Header(
            surface=self._call.surface.name,
            parts={name: self._spec.part(name).digest[:8] for name in _PARTS},
            method=str(bound.get("method", "")),
            x0=kept,
            chosen=chosen,
            random=None if self._dice0 is None else dumps(self._dice0),
            track=dumps(self._track0) if self._track0 else None,
            plan=None if plan is None else msgspec.msgpack.encode(plan),
        )

    def _run(self, journal: Journal | None) -> Any:
        call, session, store = self._call, self._session, self._store
        surface, shelf = call.surface, None
        if surface.function is not None:
            shelf = store.attempt(lambda: store.journals, None)
        recorder = Recorder(
            session,
            call.options,
            header=self._header,
            shelf=shelf,
            fit=self._fit,
            target=surface.target(call.bound),
            tracked=self._tracked,
        )
        recorder.carrier = self._carrier
        result = heard = partial = None
        anew: _Anew | None = None
        session.facts["what"] = _what(call)
        if call.options.progress:
            backend, groups = store.backend, self._groups()
            recorder.expect(store.attempt(lambda: learned.predict(backend, groups), None))
        token = current.set(recorder)
        try:
            with session, overhear() as heard:
                try:
                    result = self._solve(recorder, self._prepare(recorder, journal))
                except Changed as error:
                    recorder.set_aside()
                    if call.options.strict:
                        raise ReplayError(str(error)) from None
                    anew = _Anew(str(error), journal.best if journal else None)
                except Stopped:
                    partial = f"stopped after {call.options.time_limit:g} s of work"
                except KeyboardInterrupt:
                    if call.options.on_interrupt == "raise" or surface.partial is None:
                        raise
                    partial = "interrupted"
        except BaseException as error:
            self._rewind()
            if isinstance(error, Exception):
                recorder.note_failure()
            recorder.finish(completed=False, keep=not isinstance(error, Exception))
            session.add_rows(recorder.traced())
            raise
        finally:
            current.reset(token)
        if anew is not None:
            raise anew
        recorder.finish(completed=partial is None, keep=True)
        if partial is None:
            return self._completed(recorder, result, heard)
        self._rewind()
        return self._partial(recorder, f"{partial}: the best point so far")

    def _solve(self, recorder: Recorder, changes: dict[str, Any]) -> Any:
        """Call scipy with some arguments replaced, or let a near fit take its way there."""
        call, scipy = self._call, self._call.surface.scipy

        def run(more: Mapping[str, Any]) -> Any:
            args, kwargs = call.surface.substitute(call.args, call.kwargs, {**changes, **more})
            try:
                return scipy(*args, **kwargs)
            except SystemError as error:
                # How scipy's direct (before 1.17) passes on what a function raised.
                if isinstance(error.__cause__, (Changed, Stopped, KeyboardInterrupt)):
                    raise error.__cause__ from None
                raise

        if self._near is None:
            return run({})
        return self._near.follow({**call.bound, **changes}, run, recorder)

    def _prepare(self, recorder: Recorder, journal: Journal | None) -> dict[str, Any]:
        """Return the arguments to replace: every function of the user's is under watch."""
        call = self._call
        if journal is not None:
            recorder.adopt(journal)
        changes = dict(self._beginning.changes)
        if self._dice is not None:
            changes.update(self._dice.changes)
        if call.surface.function is not None:
            wrapped = call.surface.instrument(
                {**call.bound, **changes},
                recorder.wrap,
                workers=recorder.map,
                callback=recorder.callback,
            )
            changes.update(wrapped)
        recorder.begin()
        return changes

    def _rewind(self) -> None:
        """Leave generators as they were found, so that the same call goes on with this fit."""
        if self._dice is not None:
            self._dice.rewind(self._dice0)
        restore(self._tracked, self._track0)

    def _completed(self, recorder: Recorder, result: Any, heard: Any) -> Any:
        call, session = self._call, self._session
        seconds = time.perf_counter() - recorder.started
        nfev = _count(result)
        payload = {
            "result": _pack(result),
            "evaluations": recorder.total or nfev or 0,
            "seconds": seconds,
            "warnings": heard,
            "rng": self._dice.state() if self._dice is not None else None,
        }
        if self._tracked:
            payload["tracked"] = states(self._tracked)
        if self._hidden:
            payload["hidden"] = True
        why = recorder.why
        kept = True
        if call.surface.quick and seconds < _QUICK and not call.options.journal:
            _note_quick(call)
        else:
            try:
                objective = _objective(result, recorder)
                rows = recorder.traced()
                fewer = 0 if self._near is None else self._near.estimate(recorder.total)
                session.facts |= {
                    "evaluations": recorder.calls,
                    "saved": recorder.saved + self._beginning.evaluations + fewer,
                    "seconds": seconds,
                    "objective": objective,
                }
                if self._near is not None:
                    left, index = self._near.leave(session.key, result)
                    payload |= left
                    rows |= index
                kept = session.finalize(
                    payload, objective=objective, nfev=nfev, rows=rows, whole="result"
                )
                if self._near is not None:
                    self._near.enter(recorder.total, seconds, session.facts["what"])
                if self._beginning.source == "cold" and recorder.total:
                    self._store.learn(self._groups(), recorder.total, seconds)
            except CodecError as error:  # a result of the user's own method may hold anything
                kept, why = False, f"the result could not be kept: {error}"
        if not kept:
            read_only = self._store.read_only
            why = why or ("the store is read only" if read_only else "the result could not be kept")
        missing = self._near.given_up if self._near is not None else None
        if call.options.required and missing is not None:
            raise NearError(
                f"{missing}; Warm(required=True) asks for a near start. The result is remembered: "
                "the same call returns it"
            )
        return _with_report(result, self._report(recorder, why))

    def _groups(self) -> tuple[bytes, ...]:
        """Return the groups in which the fit is, for what fits cost."""
        method = self._call.bound.get("method", "")
        method = method if isinstance(method, str) else ""
        return learned.path(self._call.surface.name, method, self._spec.part("model").digest)

    def _partial(self, recorder: Recorder, message: str) -> Any:
        """Return the best point of a fit that was ended, in the shape of its function."""
        surface = self._call.surface
        point = recorder.stopped_at(message)
        if surface.partial is None or point is None:
            raise TimeoutError(f"{surface.name} was {message}, but there is none")
        result = surface.partial(point, self._call.bound)
        return _with_report(result, self._report(recorder, message))

    def _report(self, recorder: Recorder, why: str | None) -> FitReport:
        beginning, session, near = self._beginning, self._session, self._near
        replay = None
        if beginning.source == "journal":
            replay = "tolerant" if recorder.tolerant else "exact"
            if recorder.strayed is not None and replay == "exact":
                replay = "partial"
        return FitReport(
            source="cold" if beginning.source == "journal" and not recorder.answered
            else beginning.source,
            key=str(session.key),
            run=session.run_id,
            start_run=session.start.run,
            evaluations=None if self._call.surface.function is None else recorder.calls,
            evaluations_saved=beginning.evaluations + recorder.saved + (near.saved if near else 0),
            seconds_saved=beginning.seconds,
            replay=replay if recorder.answered else None,
            replay_seconds=recorder.replay_seconds if recorder.answered else 0.0,
            probes=recorder.probes,
            near=near.report() if near is not None else None,
            why="; ".join(filter(None, (beginning.why, near.why if near else None, why))) or None,
            dropped=session.dropped,
        )  # fmt: skip


class _Anew(Exception):  # noqa: N818 (not an error: the fit begins anew)
    """The journal is of another function."""

    def __init__(self, why: str, best: Any) -> None:
        super().__init__(why)
        self.best = best


_PARTS = ("model", "data", "hyper", "settings")


def _what(call: _Call) -> str:
    """Return what is called, and by which method, for people."""
    bound, surface = call.bound, call.surface
    function, method = bound.get(surface.function or ""), bound.get("method")
    words = [surface.name, method if isinstance(method, str) else ""]
    if function is not None:
        name = _attribute(function, "__name__")  # which may be anything
        words.append(name if isinstance(name, str) else type(function).__name__)
    text = " ".join(word.strip("<>") for word in words if word)
    return text.encode("utf-8", "backslashreplace").decode()


def _attribute(function: Any, name: str) -> Any:
    """Return an attribute of a function of the user's, or None; a ``__getattr__`` may raise."""
    try:
        return getattr(function, name, None)
    except Exception:  # noqa: BLE001 (anything)
        return None


def _x_of(payload: dict[str, Any]) -> Any:
    """Return the point of a checkpoint, or of another producer's final."""
    result = payload.get("result")
    if isinstance(result, OptimizeResult):
        return result.get("x")
    if isinstance(result, tuple):
        return result[0]
    return payload.get("x") if result is None else result


def _note_quick(call: _Call) -> None:
    code = _attribute(call.bound[call.surface.function or ""], "__code__")
    if isinstance(code, types.CodeType):
        if len(_known_quick) > 10_000:
            _known_quick.clear()
        _known_quick[code] = None


def _objective(result: Any, recorder: Recorder) -> float | None:
    """Return the objective at the result, in the same unit as that of the checkpoints."""
    value = _objective_of(result)
    if value is not None:
        return value
    return recorder.best if np.isfinite(recorder.best) else None


def _objective_of(result: Any) -> float | None:
    if isinstance(result, OptimizeResult):
        value = result.get("cost", result.get("fun"))
        with contextlib.suppress(Exception):  # a method of the user's may leave anything there
            if value is not None and np.size(value) == 1:
                return float(np.real(np.ravel(value)[0]))
    return None


def _count(result: Any) -> int | None:
    if isinstance(result, OptimizeResult) and isinstance(result.get("nfev"), (int, np.integer)):
        return int(result["nfev"])
    return None


def _with_report(result: Any, report: FitReport) -> Any:
    tell(report)
    if isinstance(result, RichResult):
        # Beside the dict that the result is, so that its keys, its text and its equality with
        # another result stay scipy's.
        object.__setattr__(result, "warm", report)
        return result
    if type(result) is tuple:
        result = Fitted(result)
        result.warm = report
    return result


# scipy's newton() makes a class of named tuples anew in each call; so does a hit.


def _pack(result: Any) -> Any:
    fields = getattr(type(result), "_fields", None)
    if isinstance(result, tuple) and fields is not None:
        return {"namedtuple": type(result).__name__, "fields": fields, "values": tuple(result)}
    return result


def _unpack(result: Any) -> Any:
    if type(result) is dict and result.keys() == {"namedtuple", "fields", "values"}:
        return namedtuple(result["namedtuple"], result["fields"])(*result["values"])  # noqa: PYI024
    return result
