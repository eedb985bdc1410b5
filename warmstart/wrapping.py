"""A fit's way through the house: key, look-up, run under watch, remember, report."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult

from warmstart.errors import CodecError, FingerprintError, WarmstartWarning
from warmstart.fingerprint import FitSpec, Level, code_fingerprint, environment
from warmstart.recent import Recent, signature
from warmstart.record import Entry, EntryKind
from warmstart.recording import Recorder
from warmstart.rewarn import overhear, rewarn
from warmstart.session import LoadedEntry, LoadSource, Session
from warmstart.surfaces import Surface, global_state
from warmstart.warm import FitReport, Warm, options_of, store_of, tell

__all__ = ["remembered"]

_inside: ContextVar[bool] = ContextVar("inside", default=False)


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
        bound = surface.bind(args, kwargs) if options.enabled else None
        if bound is None or _inside.get():
            # Switched off, refused by scipy in a moment, or part of another fit: the outermost
            # call is the one that is remembered.
            return plain(*args, **kwargs)
        return _fit(_Call(surface, args, kwargs, bound, options))

    signature = inspect.signature(plain)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    extra = inspect.Parameter("warm", inspect.Parameter.KEYWORD_ONLY, default=None)
    fit.__signature__ = signature.replace(parameters=[*named, extra, *rest])  # type: ignore[attr-defined]
    fit.__module__ = "warmstart.optimize"
    fit.__doc__ = f"{plain.__doc__ or ''}\n\nwarm : warmstart.Warm, optional\n    {_DOC}\n"
    return fit


_DOC = "How to remember this fit; see `warmstart.Warm`. ``result.warm`` tells what happened."


def _fit(call: _Call) -> Any:
    store, options = store_of(call.options), call.options
    signed = _signature(call)
    key = _recent.get(signed) if signed is not None else None
    spec, producer = None, environment()
    try:
        if key is None:
            spec, producer = _identify(call)
            key = spec.key
            if signed is not None:
                _recent.add(signed, key)
        entry = None
        if not options.refit:
            entry = store.attempt(lambda: store.best(key, producer=producer), None)
        if entry is not None and _is_answer(call, entry):
            return _answer(call, entry)
        if spec is None:
            spec, producer = _identify(call)
    except FingerprintError as error:
        warnings.warn(f"this fit is not remembered: {error}", WarmstartWarning, stacklevel=3)
        result = call.surface.scipy(*call.args, **call.kwargs)
        return _with_report(result, FitReport(source="off", why=str(error)))
    session = Session(store, spec, producer=producer, interval=options.interval)
    if entry is None:
        return _run(call, session)
    if entry.kind is EntryKind.CHECKPOINT:
        return _resume(call, session, entry)
    why = None
    if _is_ours(entry):
        why = 'remembered, but run again for its callback; callbacks="skip" returns it'
    return _run(call, session, why=why)


def _is_answer(call: _Call, entry: Entry) -> bool:
    """Whether an entry may be returned instead of running the fit."""
    silent = "callback" not in call.bound or call.options.callbacks == "skip"
    return entry.kind is EntryKind.FINAL and silent and _is_ours(entry)


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
    return FitSpec(model=model, data=data, hyper=options.hyper, settings=settings), producer


def _signature(call: _Call) -> tuple[Any, ...] | None:
    """Return what the call was given, where that alone makes its key."""
    options = call.options
    named = options.model is not None or options.data is not None or options.hyper is not None
    return None if named or call.surface.random else signature(call.surface.name, call.bound)


_recent = Recent()


def _answer(call: _Call, entry: Entry) -> Any:
    """Return the remembered result without calling anything of the user's."""
    payload = entry.payload
    _restore(call.bound, payload["rng"])
    rewarn(payload["warnings"], stacklevel=4)
    report = FitReport(
        source="final",
        key=str(entry.key),
        run=entry.run,
        start_run=entry.start.run,
        evaluations_saved=payload["evaluations"],
        seconds_saved=payload["seconds"],
        dropped=entry.dropped,
    )
    return _with_report(payload["result"], report)


def _resume(call: _Call, session: Session, entry: Entry) -> Any:
    """Go on from the best point of a run that was killed, or of another producer's final."""
    if not call.options.resume:
        return _run(call, session, why="a checkpoint is there, but resume=False")
    if not _recordable(call):
        return _run(call, session, why="a checkpoint is there, but no start can be given")
    try:
        start = _point(call, entry.payload)
    except ValueError as error:
        return _run(call, session, why=str(error))
    session.start_from(LoadedEntry(entry, LoadSource.EXACT, Level.EXACT, 0.0))
    return _run(call, session, entry=entry, start=start)


def _run(
    call: _Call,
    session: Session,
    *,
    entry: Entry | None = None,
    start: np.ndarray[Any, Any] | None = None,
    why: str | None = None,
) -> Any:
    """Let scipy do the fit under watch, remember the result, and report."""
    surface = call.surface
    recorder = Recorder(session, surface.kind, ranked=_ranked(call))
    changes: dict[str, Any] = {} if start is None else {surface.start: start}
    if _recordable(call):
        function = call.bound[surface.function]
        changes[surface.function] = recorder.wrap(function, _target(call))
    args, kwargs = surface.substitute(call.args, call.kwargs, changes)
    token = _inside.set(True)
    try:
        with session, overhear() as heard:
            result = surface.scipy(*args, **kwargs)
    finally:
        _inside.reset(token)
    seconds, nfev = recorder.seconds, _count(result)
    evaluations = recorder.evaluations or nfev or 0
    payload = {
        "result": result,
        "evaluations": evaluations,
        "seconds": seconds,
        "warnings": heard,
        "rng": _state(call.bound) if surface.random else None,
    }
    try:
        kept = session.finalize(payload, objective=_objective(result, recorder), nfev=nfev)
    except CodecError as error:  # a result from a method of the user's own may hold anything
        kept, why = False, f"the result could not be kept: {error}"
    before = entry.payload if entry is not None else {}
    report = FitReport(
        source="cold" if entry is None else "checkpoint",
        key=str(session.key),
        run=session.run_id,
        start_run=session.start.run,
        evaluations=evaluations,
        evaluations_saved=before.get("evaluations", 0),
        seconds_saved=before.get("seconds", 0.0),
        why=why if kept else why or "the result could not be kept",
        dropped=session.dropped,
    )
    return _with_report(result, report)


def _point(call: _Call, payload: Any) -> np.ndarray[Any, Any]:
    """Return the point that another run had reached, as a start for this one.

    Raises
    ------
    ValueError
        With the reason, if there is none that fits.
    """
    payload = payload if isinstance(payload, dict) else {}
    x, result = payload.get("x"), payload.get("result")
    if isinstance(result, OptimizeResult):
        x = result.get("x")
    elif isinstance(result, tuple):
        x = result[0]
    if not isinstance(x, np.ndarray) or x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError("the checkpoint holds no usable point")
    given = call.bound.get(call.surface.start)
    if given is not None and np.size(given) != x.size:
        raise ValueError(f"the checkpoint has {x.size} parameters, this fit {np.size(given)}")
    lower, upper = call.surface.limits(call.bound)
    return np.asarray(np.clip(x, lower, upper))


def _recordable(call: _Call) -> bool:
    """Whether the function is called in this process, one point at a time."""
    options = call.bound.get("options")
    elsewhere = "workers" in call.bound or (isinstance(options, dict) and "workers" in options)
    return not elsewhere and not call.bound.get("vectorized")


def _ranked(call: _Call) -> bool:
    return not call.bound.get("constraints") and "loss" not in call.bound


def _target(call: _Call) -> Callable[[Any], Any]:
    """Return what computes the number to rank points by from the function's value."""
    if call.surface.kind == "residuals":
        return _half_squares
    if call.surface.kind == "curve":
        data, sigma = call.bound.get("ydata"), call.bound.get("sigma")
        weight = 1.0 if sigma is None or np.ndim(sigma) != 1 else np.asarray(sigma)
        return lambda value: _half_squares((np.asarray(value) - data) / weight)
    if call.bound.get("jac") is True:
        return lambda value: value[0]
    return lambda value: value


def _half_squares(residuals: Any) -> float:
    flat = np.ravel(residuals)
    return 0.5 * float(np.dot(flat, flat))


def _objective(result: Any, recorder: Recorder) -> float | None:
    """Return the objective at the result, in the same unit as that of the checkpoints."""
    if isinstance(result, OptimizeResult):
        value = result.get("cost", result.get("fun"))
        if np.size(value) == 1:
            return float(np.real(np.ravel(value)[0]))
    return recorder.best


def _count(result: Any) -> int | None:
    if isinstance(result, OptimizeResult) and isinstance(result.get("nfev"), (int, np.integer)):
        return int(result["nfev"])
    return None


def _with_report(result: Any, report: FitReport) -> Any:
    tell(report)
    if isinstance(result, OptimizeResult):
        # Beside the dict that the result is, so that its keys, its text and its equality with
        # another result stay scipy's.
        object.__setattr__(result, "warm", report)
        return result
    if type(result) is tuple:
        result = Fitted(result)
        result.warm = report
    return result


# A generator that a fit draws from ends in another state; a hit leaves it in that state too.


def _generator(bound: Mapping[str, Any]) -> Any:
    given = bound.get("rng", bound.get("seed"))
    return global_state() if given is None and "rng" not in bound else given


def _state(bound: Mapping[str, Any]) -> Any:
    generator = _generator(bound)
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return dict(generator.get_state(legacy=False))
    return None


def _restore(bound: Mapping[str, Any], state: Any) -> None:
    if state is None:
        return
    generator = _generator(bound)
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
