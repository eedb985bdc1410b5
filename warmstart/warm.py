"""What a caller may ask of a remembered fit, and what is told about it afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from warmstart.errors import ArgumentError
from warmstart.randomness import check_tracked
from warmstart.store import Store, positive

__all__ = [
    "FitReport",
    "Near",
    "Warm",
    "defaults",
    "listen",
    "merge",
    "options_of",
    "store_of",
    "tell",
    "using",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Options of a remembered fit; each may also be given to `using` for a block of code.

    Parameters
    ----------
    store : Store or path-like, optional
        Where to remember. By default the store at ``$WARMSTART_STORE``, else in the
        platform's cache folder.
    enabled : bool
        False calls scipy untouched.
    model : str, optional
        A name of your own for what is fitted, where the code cannot be identified or should
        not be part of the key. If the code can be identified all the same, editing it turns
        remembered results into starts.
    data : object or mapping of str to object, optional
        More of what it is fitted to, where the call does not show it.
    hyper : mapping of str to (number, str, bool or None), optional
        Named hyperparameters that change the problem.
    refit : bool
        Run the fit even if it is remembered, and remember the new result.
    resume : bool
        Go on where a fit that was killed or stopped had got to: exactly, by its journal, or
        from the best point, where there is none.
    journal : bool, optional
        Whether evaluations are recorded. By default they are, unless the fit ends within
        200 ms or writing them would cost more than it protects (1 % of the fit's time); True
        records from the first evaluation on, False never.
    journal_budget : int
        Bytes one journal may have. A fit that goes past it has its best and latest points
        kept, and is resumed from there.
    strict : bool
        Raise `ReplayError` where a journal turns out to be of another function, instead of a
        warning and a fit from its best point.
    track : list of numpy Generators or RandomStates
        Those that the user's functions draw from; their states are recorded, so that a
        resumed fit draws what it would have drawn.
    dedup : bool
        Answer a point that comes again within one fit without calling the function. Results
        and counts stay as scipy reports them.
    callbacks : {"run", "skip"}
        ``"run"`` calls callbacks whenever the fit is run or replayed, and so runs (or replays)
        a remembered fit that has one; ``"skip"`` returns the remembered result, and calls none
        during a replay.
    time_limit : float, optional
        Seconds of new work, replay not counted, after which the fit is ended with the best
        point so far; the next call goes on. It ends with an evaluation, so it needs one.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does: raise KeyboardInterrupt, or end the fit as `time_limit` does.
    busy : {"run", "wait", "raise"}
        What to do if another process is at the same fit: do it as well, wait for its result (and
        go on with the fit if that process dies, or after an hour), or raise `BusyError`. The
        last two announce each fit in the store before it begins, which costs two writes.
    near : bool
        Start a fit that was never done from what near fits have left: folds, replicates,
        windows, other hyperparameters. It may change which minimum a problem with several ends
        in, and the last digits of any: see "Near starts" in the README.
    parameters : sequence of str, optional
        Names of the parameters, in the order of x: near fits with other ones, or in another
        order, are then near too; one that they lack begins at x0.
    challenge : int
        Every so many near fits of a family one is run cold as well, and the better result
        returned; 0 for never. After a better one was found, all are, until they agree.
    scores : callable, optional
        ``scores(x, *args)`` returns the gradient of each row's loss, an (m, n) array; it is asked
        for once at each solution. From the scores of a fit to all of the data, fits to parts of
        them (folds, replicates) are predicted without an evaluation. For methods of `minimize`
        that take gradients, and objectives that are a sum or a mean over rows, with or without
        a penalty.
    averaged : bool
        Whether the objective is a mean over rows, and not a sum.
    expect : int
        Near fits that are to follow, if that is known: second derivatives of a curve, for which
        so many of them pay, are taken at once, and not only when some have shown that it pays.
    required : bool
        Raise `NearError` if no near start was found, or it was not used to the end; what was
        fitted is remembered all the same.
    progress : bool
        Show evaluations, best objective and rate on standard error.
    interval : float
        Seconds between checkpoints that do not improve on the best, and between waits for the
        disk.
    """

    store: Store | str | os.PathLike[str] | None = None
    enabled: bool = True
    model: str | None = None
    data: Any = None
    hyper: Mapping[str, Any] | None = None
    refit: bool = False
    resume: bool = True
    journal: bool | None = None
    journal_budget: int = 256 << 20
    strict: bool = False
    track: Any = ()
    dedup: bool = False
    callbacks: str = "run"
    time_limit: float | None = None
    on_interrupt: str = "raise"
    busy: str = "run"
    near: bool = False
    parameters: Sequence[str] | None = None
    challenge: int = 50
    scores: Callable[..., Any] | None = None
    averaged: bool = False
    expect: int = 0
    required: bool = False
    progress: bool = False
    interval: float = 2.0

    def __post_init__(self) -> None:
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ArgumentError(f'model is a name such as "decay-v2", not {self.model!r:.60}')
        hyper = self.hyper
        if hyper is not None and not (
            isinstance(hyper, Mapping) and all(isinstance(name, str) for name in hyper)
        ):
            raise ArgumentError(
                f'hyper is a mapping of names to values such as {{"alpha": 0.1}}, not {hyper!r:.60}'
            )
        for name, words in _WORDS.items():
            given = getattr(self, name)
            if not isinstance(given, str) or given not in words:
                choice = " or ".join(f'"{word}"' for word in words)
                raise ArgumentError(f"{name} is {choice}, not {given!r:.60}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name} is True or False, not {getattr(self, name)!r:.60}")
        if self.journal is not None and not isinstance(self.journal, bool):
            raise ArgumentError(f"journal is True, False or None, not {self.journal!r:.60}")
        if not _is_seconds(self.interval):
            raise ArgumentError(
                f"interval is a number of seconds from 0 up, not {self.interval!r:.60}"
            )
        if self.time_limit is not None and not _is_seconds(self.time_limit):
            raise ArgumentError(
                f"time_limit is a number of seconds from 0 up, or None, not {self.time_limit!r:.60}"
            )
        positive("journal_budget", self.journal_budget)
        names = self.parameters
        if names is not None:
            listed = isinstance(names, (list, tuple))
            if not listed or not all(isinstance(name, str) for name in names):
                raise ArgumentError(
                    f'parameters is a list of names such as ["rate", "scale"], not {names!r:.60}'
                )
            object.__setattr__(self, "parameters", tuple(names))
            if len(set(names)) != len(names):
                raise ArgumentError(f"two parameters have the same name: {names!r:.60}")
        if self.scores is not None and not callable(self.scores):
            raise ArgumentError(
                f"scores is a function of x and args, not {type(self.scores).__name__}"
            )
        for name in ("challenge", "expect"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ArgumentError(f"{name} is a number of fits from 0 up, not {number!r:.60}")
        object.__setattr__(self, "track", check_tracked(self.track))
        if self.store is not None and not isinstance(self.store, Store):
            object.__setattr__(self, "store", _store_at(self.store))

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the parameters."""
        return None if self.parameters is None else tuple(self.parameters)


_SWITCHES = (
    "enabled",
    "refit",
    "resume",
    "strict",
    "dedup",
    "near",
    "averaged",
    "required",
    "progress",
)
_WORDS = {
    "busy": ("run", "wait", "raise"),
    "callbacks": ("run", "skip"),
    "on_interrupt": ("raise", "return"),
}


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < float("inf")


class Near(msgspec.Struct, frozen=True, kw_only=True):
    """A near start: ``result.warm.near``.

    Parameters
    ----------
    level : str
        What the near fit shares: ``"problem"`` (all but the settings), ``"sibling-data"``,
        ``"sibling-hyper"`` or ``"family"`` (the model alone).
    shared : float
        The part of all rows of data that both have, 0 to 1.
    distance : float
        Of the hyperparameters: the norm of the differences of their logarithms.
    predictor : str
        What made the start of it.
    curvature : bool
        Whether the near fit's curvature came with it.
    candidates : int
        Near fits that were found.
    used : bool
        Whether the start was kept to the end. If not, the fit went on from the better one of
        the caller's own start and what had been reached.
    challenged : bool
        Whether a cold fit was run as well, to see that it finds no better minimum.
    """

    level: str
    shared: float
    distance: float
    predictor: str
    curvature: bool
    candidates: int
    used: bool
    challenged: bool = False


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened: ``result.warm``.

    Parameters
    ----------
    source : {"final", "journal", "checkpoint", "near", "cold", "off"}
        Where the result came from: returned from the store, run on exactly from a journal, run
        on from a checkpoint, started from a near fit, run from the caller's own start, or run
        by scipy alone.
    key : str or None
        The fit's key in the store, 64 hexadecimal digits.
    run : str or None
        The run that made the result.
    start_run : str or None
        The run whose journal or checkpoint this one went on from.
    evaluations : int or None
        Calls of the user's functions in this call, or what scipy says of them if it ran alone;
        None where nobody counted.
    evaluations_saved : int
        Calls that an earlier run made and this one did not have to; after a near start, those
        that cold fits of the family took more on the average.
    seconds_saved : float
        Seconds that those took.
    replay : {None, "exact", "tolerant", "partial"}
        How a journal was used: every recorded evaluation was asked for, bit for bit; was asked
        for nearly, since linear algebra rounded otherwise (another environment, or arrays that
        lie elsewhere in memory): points to 1e-9, what was computed again to 1e-10; or not all
        were, since other options led another way.
    replay_seconds : float
        What the replay took.
    probes : int
        Recorded evaluations that were done again to compare, counted in `evaluations`.
    near : Near or None
        The start that a near fit gave.
    why : str or None
        Why nothing was remembered or found, when that is not plain.
    dropped : tuple of str
        Parts of the result that the store could not keep.
    """

    source: str
    key: str | None = None
    run: str | None = None
    start_run: str | None = None
    evaluations: int | None = None
    evaluations_saved: int = 0
    seconds_saved: float = 0.0
    replay: str | None = None
    replay_seconds: float = 0.0
    probes: int = 0
    near: Near | None = None
    why: str | None = None
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        key = f" {self.key[:12]}" if self.key else ""
        if self.near is not None:
            key += f" by {self.near.predictor} from {self.near.level}"
        facts = (
            "" if self.evaluations is None else f"{self.evaluations:,} evaluations",
            f"{self.evaluations_saved:,} saved" if self.evaluations_saved else "",
            f"{self.replay} replay of {self.replay_seconds:.2g} s" if self.replay else "",
        )
        told = ", ".join(filter(None, facts))
        why = f" ({self.why})" if self.why else ""
        return f"{self.source}{key}{': ' * bool(told)}{told}{why}"

    def _repr_html_(self) -> str:
        from warmstart.html import report_html  # noqa: PLC0415 (only notebooks need it)

        return report_html(self)


_DEFAULTS = Warm()
_FIELDS = tuple(field.name for field in dataclasses.fields(Warm))
_everybodys = _DEFAULTS
"""What holds where no block says otherwise; see `defaults`."""
_current: ContextVar[Warm] = ContextVar("warm")
_reports: ContextVar[list[FitReport] | None] = ContextVar("reports", default=None)
_everywhere: list[list[FitReport]] = []
_stores: dict[str, Store] = {}
_default_stores: dict[str, Store] = {}
"""By the value of the environment variable, which may change: asking it costs 1 us a hit."""


@contextlib.contextmanager
def using(*misplaced: Any, **options: Any) -> Iterator[list[FitReport]]:
    """Set options of `Warm` for all wrapped calls inside a ``with`` block.

    Parameters
    ----------
    *misplaced
        Nothing: all options have names.
    **options
        Those of `Warm`. What a call's own ``warm=`` says goes before.

    Yields
    ------
    list of FitReport
        Grows by one report a fit, also for functions whose results carry none.

    Raises
    ------
    ArgumentError
        For an option without a name, or an unknown one, with the one that may have been meant.

    Notes
    -----
    A context variable: threads and tasks started inside do not disturb each other, and a new
    thread starts with the defaults.

    Examples
    --------
    >>> from warmstart import Store, optimize, using
    >>> with using(store=Store(":memory:")) as fits:
    ...     for _ in range(2):
    ...         result = optimize.minimize(optimize.rosen, [1.3, 0.7], method="BFGS")
    >>> [fit.source for fit in fits]
    ['cold', 'final']
    """
    if misplaced:
        raise ArgumentError(
            f"using takes options by name, not a {type(misplaced[0]).__name__}: "
            "write using(store=...)"
        )
    merged = merge(_current.get(_everybodys), options)
    reports: list[FitReport] = []
    outer = _reports.get()
    current, listening = _current.set(merged), _reports.set(reports)
    try:
        yield reports
    finally:
        _current.reset(current)
        _reports.reset(listening)
        if outer is not None:
            outer.extend(reports)


@contextlib.contextmanager
def defaults(**options: Any) -> Iterator[None]:
    """Set what holds for all threads, where neither a block nor a call says otherwise."""
    global _everybodys  # noqa: PLW0603 (the process has one)
    before = _everybodys
    _everybodys = merge(before, options)
    try:
        yield
    finally:
        _everybodys = before


def merge(base: Warm, options: Mapping[str, Any]) -> Warm:
    """Return `base` with some options replaced; unknown ones are refused by name."""
    for name in options:
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f": {', '.join(_FIELDS)}"
            raise ArgumentError(f"Warm has no option {name!r}{hint}")
    return dataclasses.replace(base, **options)


def options_of(warm: Warm | None) -> Warm:
    """Return the options in force for a call: its own, over the block's, over the defaults."""
    current = _current.get(_everybodys)
    if warm is None:
        return current
    if not isinstance(warm, Warm):
        raise ArgumentError(
            f"warm is a Warm(...) of options or None, not {type(warm).__name__}: "
            "write warm=Warm(store=...)"
        )
    if current is _DEFAULTS:
        return warm
    own = {
        name: value
        for name in _FIELDS
        if (value := getattr(warm, name)) is not getattr(_DEFAULTS, name)
    }
    return dataclasses.replace(current, **own)


def store_of(options: Warm) -> Store:
    """Return the store of a call, the same object for the same place."""
    if isinstance(options.store, Store):
        return options.store
    place = os.environ.get("WARMSTART_STORE", "")
    if place not in _default_stores:
        _default_stores[place] = _store_at(None)
    return _default_stores[place]


def _store_at(where: str | os.PathLike[str] | None) -> Store:
    made = Store(where)  # touches nothing, and refuses what is no place
    return made if made.address == ":memory:" else _stores.setdefault(made.address, made)


def tell(report: FitReport) -> None:
    """Hand a report to whoever listens."""
    for reports in (_reports.get(), *_everywhere):
        if reports is not None:
            reports.append(report)


def listen(reports: list[FitReport]) -> Callable[[], None]:
    """Add reports of all threads to a list, until the returned function is called."""
    _everywhere.append(reports)
    return lambda: _everywhere.remove(reports)
