"""Plots of runs and savings, with matplotlib."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from warmstart.errors import ArgumentError
from warmstart.learned import savings
from warmstart.run import Run
from warmstart.search import infos
from warmstart.store import Store

__all__ = ["daily", "plot_run", "plot_savings"]

_DAY = 86_400
_END = 253_402_300_800.0
"""The last second of the year 9999, which no calendar here goes beyond."""


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 (optional)
    except ImportError:
        raise ArgumentError("plots need matplotlib: pip install matplotlib") from None
    return plt.subplots()[1]


def plot_run(run: Run, name: str | None = None, *, ax: Any = None) -> Any:
    """Draw a series over its steps.

    Parameters
    ----------
    run : Run
        Whose.
    name : str, optional
        Of the series, by default ``"best"`` or the first there is.
    ax : matplotlib Axes, optional
        Where to.

    Returns
    -------
    matplotlib Axes
        With a logarithmic axis where the values span more than two decades above zero.
    """
    names = run.metric_names
    if not names:
        raise ArgumentError(
            f"run {run.id[:14]} has no series to plot: a fit of 10 ms or more has them, or what "
            "run.log_metric(name, value) notes"
        )
    if name is None:
        name = "best" if "best" in names else names[0]
    if name not in names:
        raise ArgumentError(f"run {run.id[:14]} has no series {name!r}: it has {', '.join(names)}")
    ax, found = _axes(ax), run.metrics(name)
    step = "post" if name == "best" else "default"
    ax.plot(found.steps, found.values, drawstyle=f"steps-{step}" if step == "post" else step)
    finite = found.values[np.isfinite(found.values)]
    if len(finite) and finite.min() > 0.0 and finite.max() > 100.0 * finite.min():
        ax.set_yscale("log")
    ax.set(xlabel="evaluations" if run.info.key else "step", ylabel=name, title=run.name)
    return ax


def daily(store: Store) -> dict[int, tuple[int, int, int, int]]:
    """Return fits run, fits returned, evaluations made and evaluations saved, by day since 1970."""
    found: dict[int, list[int]] = {}
    for info in infos(store):
        if info.key and 0.0 <= info.started < _END:
            day = found.setdefault(int(info.started // _DAY), [0, 0, 0, 0])
            for place, number in ((0, 1), (2, info.evaluations), (3, info.saved)):
                day[place] += number
    for number, saved in savings(store.backend).items():
        day = found.setdefault(number, [0, 0, 0, 0])
        day[1] += saved.hits
        day[3] += saved.evaluations
    return {number: (*day,) for number, day in sorted(found.items())}  # type: ignore[misc]


def plot_savings(store: Store, *, ax: Any = None) -> Any:
    """Draw evaluations made and saved, by day."""
    ax, days = _axes(ax), daily(store)
    dates = [datetime.fromtimestamp(day * _DAY, UTC).date() for day in days]
    made, saved = (np.array([day[i] for day in days.values()], float) for i in (2, 3))
    ax.bar(dates, made, label="made")
    ax.bar(dates, saved, bottom=made, label="saved")
    ax.set(ylabel="evaluations", title=f"{store.address}")
    ax.legend()
    return ax
