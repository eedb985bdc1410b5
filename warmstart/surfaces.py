"""The table of optimizers that remember: which argument is which part of a fit.

An optimizer is one row; `wrapping` does the rest for all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize

__all__ = ["SURFACES", "Surface"]

_PLAIN = (bool, int, float, str, tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One function of scipy.optimize.

    Parameters
    ----------
    name : str
        Its name there.
    function : str
        The argument that is the user's function.
    kind : {"objective", "residuals", "curve"}
        What that function returns: a number (or a pair with the gradient), residuals, or a
        model's values at ``xdata`` given the parameters one by one.
    start : str
        The argument that is the initial guess.
    model, data : tuple of str
        Arguments that say what is fitted, and to which arrays. All others are settings.
    hidden : tuple of str
        Settings that cannot change the result.
    random : bool
        Whether it takes ``rng`` or, from before scipy 1.15, ``seed``.
    """

    name: str
    function: str
    kind: str
    start: str
    model: tuple[str, ...]
    data: tuple[str, ...] = ("args",)
    hidden: tuple[str, ...] = ()
    random: bool = False
    scipy: Callable[..., Any] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        function = getattr(scipy.optimize, self.name)
        parameters = inspect.signature(function).parameters.values()
        positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        object.__setattr__(self, "scipy", function)
        object.__setattr__(self, "names", positional)
        object.__setattr__(self, "defaults", {p.name: p.default for p in parameters})

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments by name, without those that repeat a default.

        Returns
        -------
        dict or None
            None for a call that scipy itself will refuse.
        """
        if len(args) > len(self.names):
            return None
        bound = dict(zip(self.names, args, strict=False))
        if not bound.keys().isdisjoint(kwargs):
            return None
        bound.update(kwargs)
        if self.function not in bound or not callable(bound[self.function]):
            return None
        defaults = self.defaults
        return {
            name: value
            for name, value in bound.items()
            if name not in defaults or not _same(value, defaults[name])
        }

    def substitute(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the call with some arguments replaced where they stood.

        By position where they were by position: ``rng`` means different things in scipy by
        position and by name.
        """
        positional, named = list(args), dict(kwargs)
        for name, value in changes.items():
            place = self.names.index(name) if name in self.names else len(positional)
            if place < len(positional):
                positional[place] = value
            else:
                named[name] = value
        return positional, named

    def limits(self, bound: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the lower and upper bounds on the parameters."""
        bounds = bound.get("bounds")
        if bounds is None:
            return -np.inf, np.inf
        if isinstance(bounds, scipy.optimize.Bounds):
            return bounds.lb, bounds.ub
        if self.kind != "objective":  # a pair of vectors or numbers
            lower, upper = bounds
            return lower, upper
        pairs = np.array([[np.nan if v is None else v for v in pair] for pair in bounds], float)
        return (
            np.where(np.isnan(pairs[:, 0]), -np.inf, pairs[:, 0]),
            np.where(np.isnan(pairs[:, 1]), np.inf, pairs[:, 1]),
        )

    def parts(self, bound: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Sort the arguments into model, data and settings."""
        model: dict[str, Any] = {"kind": self.kind}
        data: dict[str, Any] = {}
        settings: dict[str, Any] = {"method": self.name}
        for name, value in bound.items():
            if name in self.model:
                model[name] = value
            elif name in self.data:
                data[name] = value
            elif name == self.start:
                settings["x0"] = _initial_guess(value)
            elif name == "method":
                settings["method"] = (self.name, value)
            elif name == "workers":
                if self.random and value != 1:  # changes how differential evolution updates
                    settings["workers"] = "many"
            elif name not in self.hidden:
                settings[name] = value
        if self.random:
            settings["rng"] = _randomness(settings, bound)
        return model, data, settings


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and isinstance(value, _PLAIN) and value == default
    )


def _initial_guess(value: Any) -> Any:
    """Return x0 as scipy takes it, so that a list and an array of the same numbers agree."""
    array = np.asarray(value)
    return array.astype(float) if array.dtype.kind in "biu" else array


def global_state() -> np.random.RandomState:
    """Return numpy's global generator, which scipy draws from where no other is given."""
    return np.random.mtrand._rand  # noqa: SLF001


def _randomness(settings: dict[str, Any], bound: Mapping[str, Any]) -> Any:
    """Return what decides the random numbers of a fit.

    Without ``rng`` scipy draws from numpy's global generator. If that was seeded, its state
    decides; if not, any draw is as good as another and the remembered one stands for all.
    """
    name = "seed" if "seed" in bound else "rng"
    value = settings.pop(name, None)
    if value is None and (name == "seed" or "rng" not in bound):
        state = global_state()
        seeded = getattr(state._bit_generator, "_seed_seq", None) is None  # noqa: SLF001
        return ("global", state) if seeded else "unseeded"
    return (name, value)


SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        Surface(
            name="minimize",
            function="fun",
            kind="objective",
            start="x0",
            model=("fun", "jac", "hess", "hessp", "constraints"),
        ),
        Surface(
            name="least_squares",
            function="fun",
            kind="residuals",
            start="x0",
            model=("fun", "jac"),
            data=("args", "kwargs"),
            hidden=("verbose",),
        ),
        Surface(
            name="curve_fit",
            function="f",
            kind="curve",
            start="p0",
            model=("f", "jac"),
            data=("xdata", "ydata", "sigma"),
        ),
        Surface(
            name="leastsq",
            function="func",
            kind="residuals",
            start="x0",
            model=("func", "Dfun"),
        ),
        Surface(
            name="differential_evolution",
            function="func",
            kind="objective",
            start="x0",
            model=("func", "constraints"),
            hidden=("disp",),
            random=True,
        ),
    )
}
