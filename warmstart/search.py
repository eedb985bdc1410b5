"""Runs that meet conditions, as a list, a table or JSON."""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from warmstart.backends import Batch
from warmstart.errors import ArgumentError, RunLookupError
from warmstart.experiment import Experiment, default, experiments, get_experiment
from warmstart.rows import RunInfo, info_row, pages, read_info, small
from warmstart.run import STATUSES, Document, Run, checked, dead, document_row, get_run
from warmstart.store import Store

__all__ = ["Runs", "condition", "find_runs", "import_runs", "infos", "told"]

_T = TypeVar("_T")
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "contains": lambda have, want: want in have,
    "startswith": lambda have, want: have.startswith(want),
}
_ORDERED = {"gt", "lt", "ge", "le"}
_SIGNS = {"!=": "ne", ">=": "ge", "<=": "le", "~": "contains", "^=": "startswith"}
_SIGNS |= {"=": "eq", ">": "gt", "<": "lt"}
Condition = tuple[str, str, Any]


def condition(text: str) -> Condition:
    """Return a condition that is written as text.

    Examples
    --------
    >>> condition("params.rate >= 0.5")
    ('params.rate', 'ge', 0.5)
    >>> condition("what ~ curve_fit")
    ('what', 'contains', 'curve_fit')
    """
    match = re.fullmatch(r"\s*([\w. -]+?)\s*(!=|>=|<=|\^=|~|=|>|<)\s*([^=<>~].*?|)\s*", text)
    if match is None:
        raise ArgumentError(
            f"a condition is written as params.rate>=0.5 (=, !=, <, <=, >, >=, ~ for contains, "
            f"^= for begins with), not {text!r:.60}"
        )
    field, sign, value = match.groups()
    try:
        wanted = json.loads(value)
    except ValueError:
        wanted = value
    test = _SIGNS[sign]
    if test in _ORDERED and _kind(wanted) != "number":
        raise ArgumentError(f"{field}{sign} is followed by a number such as 0.5, not {value!r:.60}")
    if test in {"contains", "startswith"} and not isinstance(wanted, str):
        wanted = value
    return field, test, wanted


def _check_condition(given: Any) -> Condition:
    if isinstance(given, str):
        given = condition(given)
    if not isinstance(given, (tuple, list)) or len(given) != 3 or given[1] not in _TESTS:
        raise ArgumentError(
            f'a condition is (field, test, value) such as ("params.rate", "ge", 0.5) with one of '
            f"{', '.join(_TESTS)}, or text, not {given!r:.60}"
        )
    field, test, value = given
    top = field.partition(".")[0] if isinstance(field, str) else ""
    if top not in {"params", "metrics", "tags", "extra"} and field not in _FIELDS:
        raise ArgumentError(
            f"there is no field {field!r:.60}: params.NAME, metrics.NAME, tags.NAME, or one of "
            f"{', '.join(sorted(_FIELDS))}"
        )
    if field in {"status", "state"} and test in {"eq", "ne"} and value not in (*STATUSES, "dead"):
        raise ArgumentError(f"{field} is one of {', '.join(STATUSES)} or dead, not {value!r:.60}")
    return field, test, value


_FIELDS = {"status", "state", "name", "note", "experiment"} | set(RunInfo.__struct_fields__)


def _meets(have: Any, test: str, want: Any) -> bool:
    """Whether a value meets a condition; values of other types never do, even for ``ne``."""
    kinds = [_kind(have), _kind(want)]
    if test in {"contains", "startswith"}:
        return kinds == ["text", "text"] and _TESTS[test](have, want)
    if kinds[0] != kinds[1] or kinds[0] in {"none", "other"}:
        return False
    if test in _ORDERED and kinds[0] != "number":
        return False
    return bool(_TESTS[test](have, want))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else "none" if value is None else "other"


def _value(run: Run, info: RunInfo, field: str, names: Mapping[str, str]) -> Any:
    part, _, name = field.partition(".")
    if part == "metrics":
        return run.latest(name)
    if part in {"params", "tags", "extra"}:
        return getattr(run.document, part).get(name)
    if field == "name":
        return run.document.name or info.what
    if field == "note":
        return run.document.note
    if field == "experiment":
        return names.get(info.experiment or "", info.experiment)
    if field in {"status", "state"}:
        return "dead" if dead(info, run.store.clock()) else info.status
    return getattr(info, field)


def infos(store: Store) -> Iterator[RunInfo]:
    """Iterate over how all runs went, the oldest first."""
    for item in pages(store.backend, b"r", head=None):
        found = read_info(item)
        if found is not None:
            yield found


def find_runs(
    store: Store,
    where: str | Sequence[Any] = (),
    *,
    experiment: str | Experiment | None = None,
    parent: str | Run | None = None,
    status: str | None = None,
    recipe: str | tuple[str, str] | None = None,
    limit: int | None = None,
) -> Runs:
    """Return the runs that meet all conditions, the newest first; see `Store.runs`."""
    if not isinstance(where, (str, tuple, list)):
        raise ArgumentError(f"where is a condition or a list of them, not {where!r:.60}")
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise ArgumentError(f"limit is a number from 0 up or None, not {limit!r:.60}")
    single = isinstance(where, str) or (isinstance(where, tuple) and len(where) == 3)
    given = [where] if single and where and isinstance(where[0], str) else where
    conditions = [_check_condition(one) for one in given]
    if status is not None and status not in (*STATUSES, "dead"):
        raise ArgumentError(f"status is one of {', '.join(STATUSES)} or dead, not {status!r:.60}")
    wanted = None
    if experiment is not None:
        known = experiment.id if isinstance(experiment, Experiment) else experiment
        wanted = get_experiment(store, known).id
    above = parent.id if isinstance(parent, Run) else parent and get_run(store, parent).id
    names = {one.id: one.name for one in experiments(store)} if conditions else {}
    now = store.clock()
    found: list[Run] = []
    listed = list(infos(store))
    for info in reversed(listed):
        if limit is not None and len(found) >= limit:
            break
        if wanted is not None and (info.experiment or default(store)) != wanted:
            continue
        if above is not None and info.parent != above:
            continue
        if status is not None and status != ("dead" if dead(info, now) else info.status):
            continue
        run = Run(store, info.run)
        if recipe is not None:
            theirs = run.document.recipe
            named = (recipe,) if isinstance(recipe, str) else tuple(recipe)
            if theirs is None or theirs[: len(named)] != named:
                continue
        if all(_meets(_value(run, info, field, names), *rest) for field, *rest in conditions):
            found.append(run)
    return Runs(found)


def told(runs: Iterable[Run], tell: Callable[[Run], _T]) -> list[_T]:
    """Return what `tell` says of each run; one that was swept meanwhile is left out."""
    found = []
    for run in runs:
        with contextlib.suppress(RunLookupError):
            found.append(tell(run))
    return found


def _with_metrics(run: Run) -> dict[str, Any]:
    return {**run.to_dict(), "metrics": {name: run.latest(name) for name in run.metric_names}}


class Runs(list[Run]):
    """Runs that were found: a list, a table, JSON."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return `Run.to_dict` of each; one that was swept meanwhile is left out.

        Returns
        -------
        list of dict
            A dict a run.
        """
        return told(self, Run.to_dict)

    def to_json(self) -> str:
        """Return all as a JSON list.

        Returns
        -------
        str
            Which `warmstart.search.import_runs` reads.
        """
        return json.dumps(self.to_dicts())

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row a run.

        Returns
        -------
        pandas.DataFrame
            The fields of `RunInfo` and `Document`, with ``started``, ``ended`` and ``beat`` as
            UTC Timestamps; parameters, tags and extras as ``params.NAME``, ``tags.NAME`` and
            ``extra.NAME``; the latest value of each series as ``metrics.NAME``.

        Raises
        ------
        ArgumentError
            Without pandas.

        Notes
        -----
        The series are read for it, some 50 us each.
        """
        try:
            import pandas as pd  # noqa: PLC0415 (optional)
        except ImportError:
            raise ArgumentError("a DataFrame needs pandas: pip install pandas") from None
        flat = []
        for found in told(self, _with_metrics):
            parts = {part: found.pop(part, {}) for part in ("params", "tags", "extra", "metrics")}
            for part, values in parts.items():
                found |= {f"{part}.{name}": value for name, value in values.items()}
            flat.append(found)
        frame = pd.DataFrame(flat)
        for name in {"started", "ended", "beat"} & set(frame):
            frame[name] = pd.to_datetime(frame[name].astype(float), unit="s", utc=True)
        return frame

    def _repr_html_(self) -> str:
        from warmstart.html import runs_html  # noqa: PLC0415 (only notebooks need it)

        return runs_html(self)


def import_runs(store: Store, text: str) -> int:
    """Add runs that `Runs.to_json` wrote; returns how many were not there."""
    added = 0
    try:
        documents = json.loads(text)
        parts = [
            (
                msgspec.convert(one, RunInfo, strict=False),
                msgspec.convert(one, Document, strict=False),
            )
            for one in documents
        ]
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise ArgumentError(f"this is not what Runs.to_json writes: {error}") from None
    for info, document in parts:
        row = info_row(info.run)
        rows = {row: small(info), document_row(info.run): small(checked(document))}
        added += store.backend.apply(Batch(rows, conditions={row: None})) is not None
    return added
