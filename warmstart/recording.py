"""Watching the user's function while a fit runs: counts, the best point, checkpoints."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.session import Session

__all__ = ["Recorder"]

_FIRST = 0.1
"""Seconds before the first checkpoint: shorter fits are quicker done again than kept."""
_SHARE = 50.0
"""A checkpoint is followed by so many times its own duration without one: 2 % at most."""


class Recorder:
    """Wraps the user's function, and keeps the best point it has seen.

    Parameters
    ----------
    session : Session
        Where checkpoints go.
    kind : {"objective", "residuals", "curve"}
        What the function returns.
    ranked : bool
        Whether a lower value of the function means a better point. It does not where
        constraints or a loss decide as well: then the latest point is kept.

    Notes
    -----
    Costs about 0.3 us an evaluation. Returns what the function returns, raises what it raises.
    """

    def __init__(self, session: Session, kind: str, *, ranked: bool) -> None:
        self.evaluations = 0
        self.started = time.perf_counter()
        self._session = session
        self._kind = kind
        self._ranked = ranked
        self._best = np.inf
        self._x: NDArray[np.float64] | None = None
        self._due = self.started + _FIRST

    def wrap(self, function: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` under watch.

        Parameters
        ----------
        function : callable
            The user's.
        target : callable
            Computes the number to rank by from the function's value, or None.
        """
        if self._kind == "curve":

            @functools.wraps(function)
            def recorded_curve(xdata: Any, *parameters: Any) -> Any:
                value = function(xdata, *parameters)
                self._seen(np.array(parameters, dtype=float), value, target)
                return value

            return recorded_curve

        @functools.wraps(function, updated=())
        def recorded(x: Any, *args: Any, **kwargs: Any) -> Any:
            before = np.array(x)  # the function may overwrite what it is given
            value = function(x, *args, **kwargs)
            self._seen(before, value, target)
            return value

        return recorded

    def _seen(self, x: NDArray[Any], value: Any, target: Callable[..., Any]) -> None:
        self.evaluations += 1
        if x.dtype.kind == "c":  # a complex step, which is no point
            return
        now = time.perf_counter()
        if self._ranked:
            try:
                number = target(value)
                number = float(number.item() if isinstance(number, np.ndarray) else number)
            except (TypeError, ValueError, IndexError):  # scipy will say what is wrong with it
                return
            if number < self._best:
                self._best, self._x = number, x
        else:
            self._x = x
        if now >= self._due and self._x is not None:
            self._keep(now)

    def _keep(self, now: float) -> None:
        payload = {
            "x": self._x,
            "evaluations": self.evaluations,
            "seconds": now - self.started,
        }
        objective = self._best if self._ranked else None
        self._session.checkpoint(payload, objective=objective, iteration=self.evaluations)
        self._x = None
        end = time.perf_counter()
        self._due = end + max(_SHARE * (end - now), 0.001)

    @property
    def best(self) -> float | None:
        """The lowest number seen, where the function can be ranked."""
        return float(self._best) if np.isfinite(self._best) else None

    @property
    def seconds(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self.started
