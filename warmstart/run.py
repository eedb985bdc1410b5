"""Experiments and runs: what ran, when, on what, how it went, and how it converged.

Every wrapped fit is a run of its own accord. ``store.run()`` makes one of any piece of work; fits
and runs inside it are its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from warmstart import artifacts, host, series, steps
from warmstart.artifacts import Artifact
from warmstart.backends import Batch, Durability
from warmstart.errors import (
    ArgumentError,
    RunLookupError,
    StatusError,
)
from warmstart.experiment import Experiment, find_or_create, get_experiment
from warmstart.pulse import Pulse
from warmstart.rows import RunInfo, info_row, pages, read_info, read_small, small
from warmstart.series import Series
from warmstart.session import (
    around,
    beat,
    inside_of,
    new_run_id,
    process_row,
    tell_process,
    within,
)
from warmstart.steps import Policy, State
from warmstart.store import Store

if TYPE_CHECKING:
    from warmstart.search import Runs

__all__ = [
    "STATUSES",
    "Document",
    "Run",
    "checked",
    "create_run",
    "dead",
    "document_row",
    "get_run",
    "rows_of_run",
]

STATUSES = ("pending", "running", "completed", "failed", "cancelled")
_TERMINAL = STATUSES[2:]
_NEXT = {"pending": ("running",), "running": _TERMINAL, **dict.fromkeys(_TERMINAL, ())}
_VERSION = 1
_PULSE = 30.0
"""Seconds between two signs of life of runs that are open."""
_SILENT = 300.0
"""Seconds without one after which a run of another machine is taken for dead."""
_KINDS = (bool, int, float, str, list, tuple, dict, type(None))


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """What people, and their programs, say of a run; unset fields are left out of its JSON.

    Parameters
    ----------
    name, note, log_uri : str
        For people.
    params : dict
        Text, numbers, booleans, lists and dicts; types survive.
    tags : dict of str to str
        To search by.
    extra : dict
        Whatever JSON can say.
    span : tuple of (str, str) or None
        Trace and span id, 32 and 16 hexadecimal digits.
    recipe : tuple of (str, str) or None
        Name and version of what was followed.
    version : int
        Of this document.
    """

    name: str = ""
    params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    note: str = ""
    extra: dict[str, Any] = {}
    log_uri: str = ""
    span: tuple[str, str] | None = None
    recipe: tuple[str, str] | None = None
    version: int = _VERSION


def document_row(run: str) -> bytes:
    """Return the row of what is said of a run."""
    return b"d" + bytes.fromhex(run)


class Run:
    """One piece of work: a wrapped fit, or what ``store.run()`` was opened for.

    Attributes
    ----------
    id : str
        32 hexadecimal digits that sort by time; the first 14 tell the runs of a process apart.
    store : Store
        Where it is kept.

    Notes
    -----
    Methods may be called from several threads, and on runs of other processes. Each reads or
    writes the store (some 10 us), but `log_metric`, whose points are written some thousands at
    a time, at the latest when the run or the process ends. Used as a context manager a run is
    started, fits and runs inside become its children, and it ends as completed, as failed with
    the exception's message, or as cancelled by Ctrl-C.

    A store that cannot be written fails no work: there is one warning, and what is logged
    from then on is not kept. Reading raises `StoreError`.

    Examples
    --------
    >>> from warmstart import Store
    >>> store = Store(":memory:")
    >>> with store.run(experiment="decay", name="first", params={"rate": 0.5}) as run:
    ...     for step in range(3):
    ...         run.log_metric("loss", 1.0 / (step + 1))
    >>> run.status, run.latest("loss"), run.params
    ('completed', 0.3333333333333333, {'rate': 0.5})
    """

    def __init__(self, store: Store, run: str, *, unwritten: RunInfo | None = None) -> None:
        self.store = store
        self.id = run
        self._unwritten = unwritten
        """How it goes, where that could not be written when it was made."""
        self._backend = store.backend
        self._buffer = series.Buffer(run, self._write)
        self._next: dict[str, int] = {}
        self._open: list[contextlib.ExitStack] = []
        self._last: dict[str, tuple[int, Any, Policy]] = {}
        """States that are written if they are the newest when the run ends."""

    def __repr__(self) -> str:
        return f"<Run {self.id[:14]} {self.info.what or self.document.name}: {self.state}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Run):
            return NotImplemented
        return (self.id, self.store.address) == (other.id, other.store.address)

    def __hash__(self) -> int:
        return hash(self.id)

    def _write(self, rows: Mapping[bytes, bytes]) -> None:
        self._attempt(lambda: self._backend.apply(Batch(dict(rows))))

    def _attempt(self, operation: Callable[[], object]) -> bool:
        """Write, if the store can be written (law 2); whether it was."""
        if self._unwritten is not None:
            return False
        return self.store.attempt(lambda: (operation(), True)[1], False, writes=True)

    # What is known of it

    @property
    def info(self) -> RunInfo:
        """How it went, as it stands in the store now."""
        if self._unwritten is not None:
            return self._unwritten
        self._buffer.flush()
        found = read_info(self._backend.get(info_row(self.id)))
        if found is None:
            raise RunLookupError(f"there is no run {self.id} in {self.store.address}")
        return found

    @property
    def document(self) -> Document:
        """What is said of it."""
        found = read_small(self._backend.get(document_row(self.id)), Document)
        return found or Document()

    @property
    def status(self) -> str:
        """``"pending"``, ``"running"``, ``"completed"``, ``"failed"`` or ``"cancelled"``."""
        return self.info.status

    @property
    def state(self) -> str:
        """The status, or ``"dead"`` for a run whose process is no more."""
        info = self.info
        return "dead" if dead(info, self.store.clock()) else info.status

    @property
    def is_dead(self) -> bool:
        """Whether it was running, and its process is gone.

        On this machine the process is looked for; one of another machine has not given a sign of
        life for five minutes.
        """
        return dead(self.info, self.store.clock())

    @property
    def is_finished(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.info.status in _TERMINAL

    @property
    def duration(self) -> float | None:
        """Seconds from start to end; None until it has ended."""
        info = self.info
        return None if info.ended is None else info.ended - info.started

    @property
    def name(self) -> str:
        """The name it was given, or what it is a fit of."""
        return self.document.name or self.info.what

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters, of the types that they were logged with."""
        return self.document.params

    @property
    def tags(self) -> dict[str, str]:
        """Its tags."""
        return self.document.tags

    @property
    def experiment(self) -> Experiment | None:
        """What it belongs to."""
        found = self.info.experiment
        return None if found is None else get_experiment(self.store, found)

    @property
    def parent(self) -> Run | None:
        """The run of which it is a part."""
        found = self.info.parent
        return None if found is None else Run(self.store, found)

    @property
    def children(self) -> Runs:
        """The runs that are parts of it, the newest first."""
        from warmstart.search import find_runs  # noqa: PLC0415 (it stands above)

        return find_runs(self.store, parent=self.id)

    @property
    def process(self) -> dict[str, Any]:
        """Machine, code and versions of the process that did it, see `warmstart.host.describe`."""
        told = tell_process(self.store)
        if told is not None:
            told.join(timeout=10.0)
        found = read_small(self._backend.get(process_row(self.info.process or "00" * 8)), dict)
        return found or {}

    # Its course

    def start(self) -> Run:
        """Begin; `started` is now.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        StatusError
            If it is not pending.
        """
        now = self.store.clock()
        return self._go("running", started=now, ended=None, error=None, **_here(now))

    def complete(self) -> Run:
        """End well.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        StatusError
            If it is not running.
        """
        return self._go("completed", ended=self.store.clock())

    def fail(self, message: str) -> Run:
        """End with an error.

        Parameters
        ----------
        message : str
            What went wrong; the first 500 characters are kept.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        StatusError
            If it is not running.
        """
        return self._go("failed", ended=self.store.clock(), error=str(message)[:500])

    def cancel(self, message: str | None = None) -> Run:
        """End before the end.

        Parameters
        ----------
        message : str, optional
            Why.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        StatusError
            If it is not running.
        """
        return self._go("cancelled", ended=self.store.clock(), error=message)

    def resume(self) -> Run:
        """Go on with a run that is dead, failed or cancelled; its steps and series go on, too.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        StatusError
            If it is completed, or its process is alive.
        """
        now = self.store.clock()
        return self._go("running", "resume", ended=None, error=None, **_here(now))

    def _go(self, status: str, how: str = "", **changes: Any) -> Run:
        self._buffer.flush()
        if status in _TERMINAL:
            for namespace, (step, state, policy) in self._last.items():
                self._save(step, state, namespace=namespace, policy=policy)
            self._last = {}
        if self._unwritten is not None:
            self._unwritten = self._moved(self._unwritten, status, how, changes)
        self._attempt(lambda: self._move(status, how, changes))
        return self

    def _move(self, status: str, how: str, changes: dict[str, Any]) -> None:
        row = info_row(self.id)
        while True:
            item = self._backend.get(row)
            made = self._moved(self.info, status, how, changes)
            condition = {row: None if item is None else item.sequence}
            if self._backend.apply(Batch({row: small(made)}, conditions=condition)) is not None:
                return

    def _moved(self, info: RunInfo, status: str, how: str, changes: dict[str, Any]) -> RunInfo:
        """Return how it goes from here, if it may."""
        allowed = status in _NEXT[info.status]
        if how == "resume":
            allowed = info.status in {"failed", "cancelled"} or dead(info, self.store.clock())
        if not allowed:
            raise StatusError(
                f"run {self.id[:14]} is {info.status}, and does not become {status}: "
                f"{_advice(info.status, how)}"
            )
        return msgspec.structs.replace(info, status=status, **changes)

    def __enter__(self) -> Self:
        info = self._unwritten or self.store.attempt(lambda: self.info, None)
        if info is None:  # its store has gone
            info = self._unwritten = _new(self.store, self.id)
        if info.status == "pending":
            self.start()
        with contextlib.ExitStack() as stack:
            stack.enter_context(within(inside_of(self.store, info.experiment, self.id)))
            stack.enter_context(Pulse(weakref.WeakMethod(self.beat), _PULSE))
            self._open.append(stack.pop_all())
        tell_process(self.store)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.pop().close()
        info = self._unwritten or self.store.attempt(lambda: self.info, None)
        if info is None or info.status != "running":
            return  # ended inside, or its store has gone
        if error is None:
            self.complete()
        elif isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            self.cancel(f"{type(error).__name__}: {error}")
        else:
            self.fail(f"{type(error).__name__}: {error}")

    def beat(self) -> None:
        """Give a sign of life."""
        self._attempt(lambda: beat(self.store, self.id))

    # What is said of it

    def update(self, **changes: Any) -> Run:
        """Change what is said of it: ``name``, ``note``, ``log_uri``, ``recipe``, ``extra``.

        Parameters
        ----------
        **changes
            Fields of `Document`, each of which takes the place of what was there.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        ArgumentError
            For a field that there is not, or of the wrong type.

        Examples
        --------
        >>> from warmstart import Store
        >>> Store(":memory:").run(name="a").update(note="see the lab book").document.note
        'see the lab book'
        """
        unknown = changes.keys() - set(Document.__struct_fields__) - {"version"}
        if unknown:
            raise ArgumentError(
                f"a run has no {' and no '.join(sorted(unknown))}: "
                f"it has {', '.join(Document.__struct_fields__[:-1])}"
            )
        return self._edit(lambda known: msgspec.structs.replace(known, **changes))

    def _edit(self, change: Callable[[Document], Document]) -> Run:
        checked(change(Document()))  # before anything is done

        def edit() -> None:
            row = document_row(self.id)
            while True:
                item = self._backend.get(row)
                made = checked(change(read_small(item, Document) or Document()))
                conditions = {row: None if item is None else item.sequence}
                batch = Batch({row: small(made)}, conditions=conditions)
                if self._backend.apply(batch) is not None:
                    return

        self._attempt(edit)
        return self

    def log_param(self, name: str, value: Any) -> Run:
        """Note a parameter.

        Parameters
        ----------
        name : str
            Of the parameter; a value that it had goes.
        value : str, number, bool, list or dict
            Its type is kept; arrays become lists.

        Returns
        -------
        Run
            Itself.
        """
        return self.log_params({name: value})

    def log_params(self, params: Mapping[str, Any]) -> Run:
        """Note parameters: text, numbers, booleans, lists and dicts.

        Parameters
        ----------
        params : mapping of str to object
            Names and values; parameters that are not named stay.

        Returns
        -------
        Run
            Itself.
        """
        given = _plain(params, "params")
        return self._edit(
            lambda known: msgspec.structs.replace(known, params={**known.params, **given})
        )

    def set_tags(self, tags: Mapping[str, str | None]) -> Run:
        """Set tags; None takes one away.

        Parameters
        ----------
        tags : mapping of str to (str or None)
            Names and values; tags that are not named stay.

        Returns
        -------
        Run
            Itself.
        """
        _check_tags(tags, none=True)

        def change(known: Document) -> Document:
            merged = {**known.tags, **tags}
            kept = {name: value for name, value in merged.items() if value is not None}
            return msgspec.structs.replace(known, tags=kept)

        return self._edit(change)

    def set_span(self, trace: str, span: str) -> Run:
        """Note the ids of a trace and a span, as OpenTelemetry writes them.

        Parameters
        ----------
        trace : str
            32 hexadecimal digits.
        span : str
            16 hexadecimal digits.

        Returns
        -------
        Run
            Itself.
        """
        return self._edit(lambda known: msgspec.structs.replace(known, span=(trace, span)))

    @property
    def span(self) -> tuple[str, str] | None:
        """Trace and span id, or None."""
        return self.document.span

    # Series

    def log_metric(
        self, name: str, value: float, step: int | None = None, time: float | None = None
    ) -> None:
        """Note a point of a series.

        Parameters
        ----------
        name : str
            Of the series, up to 200 bytes.
        value : float
            NaN and infinities are kept.
        step : int, optional
            By default one more than the highest that was logged here.
        time : float, optional
            UTC seconds since the epoch, by default now.

        Notes
        -----
        Takes some microseconds: points are written by the thousand, and when the run ends.
        """
        series.check_name(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"a metric is a number, not {type(value).__name__}: {name}={value!r:.60}"
            ) from None
        if step is None:
            step = self._next.get(name)
            if step is None:
                nothing = np.empty(0, np.int64)
                steps_before = self.store.attempt(lambda: self.metrics(name).steps, nothing)
                step = int(steps_before[-1]) + 1 if len(steps_before) else 0
        elif not isinstance(step, (int, np.integer)) or not -(1 << 63) <= step < 1 << 63:
            raise ArgumentError(f"a step is a whole number, not {step!r:.60}")
        if step >= self._next.get(name, step):
            self._next[name] = step + 1
        self._buffer.add(name, number, int(step), self.store.clock() if time is None else time)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Note a point of several series.

        Parameters
        ----------
        values : mapping of str to float
            A value a series.
        step : int, optional
            The same for all; by default, for each, one more than its highest.
        """
        for name, value in values.items():
            self.log_metric(name, value, step)

    def metrics(self, name: str) -> Series:
        """Return a series in the order of its steps; an empty one if there is none.

        Parameters
        ----------
        name : str
            Of the series, as in `metric_names`.

        Returns
        -------
        Series
            Steps, values and times.
        """
        series.check_name(name)
        self._buffer.flush()
        return series.read_series(self._backend, self.id, name)

    @property
    def metric_names(self) -> list[str]:
        """Names of all series.

        Fits have ``objective``, ``best``, ``step length``, ``gradient norm`` and ``constraint
        violation`` over evaluations, where these are known and the fit took ten milliseconds.
        """
        self._buffer.flush()
        return series.names(self._backend, self.id)

    def latest(self, name: str) -> float | None:
        """Return the value at the highest step, the last logged of several; None without one.

        Parameters
        ----------
        name : str
            Of the series.

        Returns
        -------
        float or None
            Its value.
        """
        return self.metrics(name).latest

    # Artifacts

    def log_artifact(
        self, name: str, data: bytes | str | os.PathLike[str], kind: str | None = None
    ) -> Artifact:
        """Keep bytes, or those of a file, under a name.

        Parameters
        ----------
        name : str
            What was under it before goes.
        data : bytes or path-like
            A path names a file.
        kind : str, optional
            A media type, or whatever you call it; by default guessed from the name.

        Returns
        -------
        Artifact
            With the hash of the bytes, which are kept once for all runs.
        """
        if isinstance(data, (str, os.PathLike)):
            data = Path(data).read_bytes()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ArgumentError(
                f"an artifact is bytes or the path of a file, not {data.__class__.__name__}"
            )
        raw = bytes(data)
        if len(raw) > self.store.entry_budget:
            raise ArgumentError(
                f"{name!r:.60} has {len(raw):,} bytes, more than one record may have "
                f"({self.store.entry_budget:,}): open the store with a larger entry_budget, or "
                "keep the file elsewhere and log its place as a tag"
            )
        return artifacts.put(self._backend, self.id, name, raw, kind=kind, now=self.store.clock())

    @property
    def artifacts(self) -> list[Artifact]:
        """Its artifacts, in the order of their names."""
        return artifacts.listed(self._backend, self.id)

    def load_artifact(self, name: str) -> bytes:
        """Return the bytes under a name, whose hash is checked.

        Parameters
        ----------
        name : str
            Under which it was logged.

        Returns
        -------
        bytes
            All of it.

        Raises
        ------
        RunLookupError
            If there is none of that name.
        RecordError
            If they are damaged.
        """
        for found in self.artifacts:
            if found.name == name:
                return artifacts.load(self._backend, found.hash)
        raise RunLookupError(f"run {self.id[:14]} has no artifact {name!r:.60}")

    def delete_artifact(self, name: str) -> bool:
        """Delete an artifact, and its bytes when the last one goes; whether it was there.

        Parameters
        ----------
        name : str
            Under which it was logged.

        Returns
        -------
        bool
            False if there was none.
        """
        return bool(artifacts.delete(self._backend, self.id, name))

    # States

    def save_state(
        self,
        step: int,
        state: Any,
        active: Mapping[str, Any] | None = None,
        *,
        namespace: str = "",
        policy: Policy = Policy(),  # noqa: B008 (immutable)
        durable: bool = False,
    ) -> bool:
        """Keep a state, and the tasks that are under way, together.

        Parameters
        ----------
        step : int
            Which one; a state of it that is there is replaced.
        state : tree of arrays and scalars
            What is needed to go on.
        active : mapping of str to object, optional
            Tasks that are not done, and what each needs.
        namespace : str
            Of a part of the work: a fold, a start.
        policy : Policy
            Which steps are written, and which are kept.
        durable : bool
            Wait until a power cut cannot undo it (some ms).

        Returns
        -------
        bool
            Whether it was written, as the policy has it. If so, SIGKILL cannot undo it.
        """
        steps.check(step, namespace, policy)
        if step % policy.every and active is None:
            if policy.on_exit:
                self._last[namespace] = step, state, policy
            return False
        self._last.pop(namespace, None)
        durability = Durability.POWER if durable else Durability.PROCESS
        return self._save(
            step, state, active=active, namespace=namespace, policy=policy, durability=durability
        )

    def _save(self, step: int, state: Any, **options: Any) -> bool:
        return self._attempt(lambda: steps.save(self._backend, self.id, step, state, **options))

    def load_state(self, step: int | None = None, *, namespace: str = "") -> State | None:
        """Return a state, by default that of the highest step; None if there is none.

        Parameters
        ----------
        step : int, optional
            Which one.
        namespace : str
            Of a part of the work, as for `save_state`.

        Returns
        -------
        State or None
            Step, state, and the tasks that were under way.
        """
        return steps.load(self._backend, self.id, step, namespace)

    def steps(self, *, namespace: str = "") -> list[int]:
        """Return the steps of which there are states, rising.

        Parameters
        ----------
        namespace : str
            Of a part of the work, as for `save_state`.

        Returns
        -------
        list of int
            Empty if there is none.
        """
        return steps.steps(self._backend, self.id, namespace)

    # Lineage

    @property
    def started_from(self) -> Run | None:
        """The run whose journal, checkpoint or solution this one began with."""
        found = self.info.start_run
        return None if found is None else Run(self.store, found)

    # For people and programs

    def to_dict(self) -> dict[str, Any]:
        """Return all but series, artifacts and states; unset fields are left out.

        Returns
        -------
        dict of str to object
            The fields of `RunInfo` and `Document`.
        """
        found = msgspec.to_builtins(self.info) | msgspec.to_builtins(self.document)
        return {**found, "run": self.id}

    def to_json(self) -> str:
        """Return `to_dict` as JSON; NaN and infinities are written as JavaScript names them.

        Returns
        -------
        str
            One JSON object.
        """
        return json.dumps(self.to_dict())

    def plot(self, name: str | None = None, *, ax: Any = None) -> Any:
        """Draw a series over its steps (matplotlib); by default the objective's best.

        Parameters
        ----------
        name : str, optional
            Of the series; by default ``"best"``, or the first there is.
        ax : matplotlib Axes, optional
            Where to.

        Returns
        -------
        matplotlib Axes
            With a logarithmic axis where the values span more than two decades above zero.

        Raises
        ------
        ArgumentError
            If there is no such series.
        """
        from warmstart.plots import plot_run  # noqa: PLC0415 (optional)

        return plot_run(self, name, ax=ax)

    def _repr_html_(self) -> str:
        from warmstart.html import run_html  # noqa: PLC0415 (only notebooks need it)

        return run_html(self)

    def delete(self) -> None:
        """Forget the run: series, artifacts, states and all that is said of it; not its entries."""
        for found in self.artifacts:
            self.delete_artifact(found.name)
        self._backend.apply(Batch(deletes=rows_of_run(self.store, self.id)))


def rows_of_run(store: Store, run: str) -> list[bytes]:
    """Return the rows of a run besides its entries and artifacts."""
    raw = bytes.fromhex(run)
    found = [info_row(run), document_row(run)]
    for letter in (b"m", b"i"):
        found += [item.key for item in pages(store.backend, letter + raw, head=1)]
    return found


def dead(info: RunInfo, now: float) -> bool:
    """Whether a run was running and its process is no more."""
    if info.status != "running" or not info.owner:
        return False
    alive = host.is_alive(info.owner)
    if alive is not None:
        return not alive
    return now - (info.beat or info.started) > _SILENT


def _advice(status: str, how: str) -> str:
    if how == "resume":
        return (
            "only a failed, cancelled or dead run goes on"
            if status != "running"
            else "its process is alive"
        )
    if status in _TERMINAL:
        return "resume() goes on with it" if status != "completed" else "make another run"
    return "start() it first" if status == "pending" else "it runs already"


def _here(now: float) -> dict[str, Any]:
    return {"process": host.process_id(), "owner": host.owner(), "beat": now}


def _plain(values: Any, what: str) -> dict[str, Any]:
    """Return a mapping of text to what survives as it is."""
    if not isinstance(values, Mapping):
        raise ArgumentError(f"{what} map names to values, not {type(values).__name__}")
    made = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"{what} have names of text, not {name!r:.60}")
        made[name] = _plain_value(value, f"{what}[{name!r}]")
    return made


def _plain_value(value: Any, where: str) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, _KINDS) or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise ArgumentError(
            f"{where} is text, a number, True, False, None, a list or a dict, not "
            f"{type(value).__name__}"
        )
    if isinstance(value, (list, tuple)):
        return [_plain_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return _plain(value, where)
    return value


def _check_tags(tags: Any, *, none: bool = False) -> None:
    kinds = (str, type(None)) if none else (str,)
    if not isinstance(tags, Mapping) or not all(
        isinstance(name, str) and isinstance(value, kinds) for name, value in tags.items()
    ):
        raise ArgumentError(f"tags map text to text{' or None' * none}, not {tags!r:.60}")


def _is_span(given: Any) -> bool:
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    lengths = (32, 16)
    return pair and all(
        re.fullmatch(f"[0-9a-f]{{{length}}}", str(part)) is not None
        for part, length in zip(given, lengths, strict=True)
    )


def checked(document: Document) -> Document:
    """Return a document whose parts are of the right types.

    Raises
    ------
    ArgumentError
        With the one that is not.
    """
    params = _plain(document.params, "params")
    extra = _plain(document.extra, "extra")
    recipe = document.recipe
    if recipe is not None:
        pair = isinstance(recipe, (tuple, list)) and len(recipe) == 2
        if not pair or not all(isinstance(part, str) and part for part in recipe):
            raise ArgumentError(f"recipe is a name and a version, not {recipe!r:.60}")
        recipe = (recipe[0], recipe[1])
    _check_tags(document.tags)
    if document.span is not None and not _is_span(document.span):
        raise ArgumentError(
            f"a trace has 32 and a span 16 hexadecimal digits, not {document.span!r:.80}"
        )
    for name in ("name", "note", "log_uri"):
        if not isinstance(getattr(document, name), str):
            raise ArgumentError(f"{name} is text, not {getattr(document, name)!r:.60}")
    return msgspec.structs.replace(document, params=params, extra=extra, recipe=recipe)


# Making and finding them


def create_run(
    store: Store,
    *,
    experiment: str | Experiment | None = None,
    name: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    parent: str | Run | None = None,
    recipe: tuple[str, str] | None = None,
    key: str = "",
    what: str = "",
) -> Run:
    """Make a run; see `Store.run`."""
    document = checked(
        Document(
            name=name,
            params={} if params is None else params,  # type: ignore[arg-type]
            tags={} if tags is None else tags,  # type: ignore[arg-type]
            span=_current_span(),
            recipe=recipe,
        )
    )
    made = _new(store, new_run_id(), key=key, what=what)

    def write() -> RunInfo:
        inside = around(store)
        name_above = parent.id if isinstance(parent, Run) else parent
        if name_above is None and inside is not None:
            name_above = inside.run
        above = None if name_above is None else get_run(store, name_above)
        info = msgspec.structs.replace(
            made,
            experiment=_belongs(store, experiment, above),
            parent=None if above is None else above.id,
        )
        rows = {info_row(info.run): small(info), document_row(info.run): small(document)}
        store.backend.apply(Batch(rows))
        return info

    written = store.attempt(write, None, writes=True)
    return Run(store, made.run, unwritten=made if written is None else None)


def _new(store: Store, run: str, *, key: str = "", what: str = "") -> RunInfo:
    return RunInfo(
        run=run,
        key=key,
        status="pending",
        started=store.clock(),
        what=what,
        process=host.process_id(),
        owner=host.owner(),
    )


def _belongs(store: Store, experiment: str | Experiment | None, above: Run | None) -> str:
    """Return the id of the experiment of a new run."""
    if experiment is None:
        found = above.info.experiment if above is not None else None
        return found or find_or_create(store, "default").id
    if isinstance(experiment, Experiment):
        return get_experiment(store, experiment.id).id
    if isinstance(experiment, str) and not re.fullmatch("[0-9a-f]{32}", experiment):
        return find_or_create(store, experiment).id
    return get_experiment(store, experiment).id


def _current_span() -> tuple[str, str] | None:
    """Return the ids of OpenTelemetry's current span, if it is in use."""
    tracing = sys.modules.get("opentelemetry.trace")
    if tracing is None:
        return None
    context = tracing.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


def get_run(store: Store, run: str) -> Run:
    """Return a run by its id, or the first digits of it, at least six.

    Raises
    ------
    RunLookupError
        If there is none, or more than one.
    """
    digits = run.lower() if isinstance(run, str) else ""
    if not 6 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise ArgumentError(f"a run is named by 6 to 32 hexadecimal digits, not {run!r:.60}")
    start = b"r" + bytes.fromhex(digits[: len(digits) // 2 * 2])
    found = [
        item.key[1:].hex()
        for item in pages(store.backend, start, head=1)
        if item.key[1:].hex().startswith(digits)
    ]
    if not found:
        raise RunLookupError(f"no run in {store.address} begins with {run!r}")
    if len(found) > 1:
        raise RunLookupError(f"{run!r} is short for {len(found)} runs: give more digits")
    return Run(store, found[0])
