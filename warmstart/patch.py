"""Redirecting scipy.optimize for code that does not know of warmstart."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable
from typing import Any, Self

from warmstart import optimize
from warmstart.surfaces import SURFACES, Surface, lookup
from warmstart.warm import FitReport, Warm, listen, merge

__all__ = ["patch"]


class patch(contextlib.ContextDecorator):  # noqa: N801 (used as unittest.mock.patch is)
    """Make scipy.optimize remember, for all code of this process.

    Parameters
    ----------
    **options
        Those of `Warm`.

    Attributes
    ----------
    fits : list of FitReport
        Grows by one report a fit, in whatever thread.

    Notes
    -----
    Replaces the functions in scipy.optimize, in the modules of scipy that define them, and in
    every loaded module outside scipy that imported them by name. Used as a context manager, a
    decorator, or with ``start`` and ``stop``. What a module imported while the patch was on is
    found by ``stop`` too. References in other places (a class attribute, a default argument)
    stay scipy's own. Where scipy's own code finds roots, it is left alone.

    Examples
    --------
    >>> import scipy.optimize
    >>> from warmstart import Store, patch
    >>> with patch(store=Store(":memory:")) as patched:
    ...     for _ in range(2):
    ...         result = scipy.optimize.minimize(scipy.optimize.rosen, [1.3, 0.7])
    >>> [fit.source for fit in patched.fits]
    ['cold', 'final']
    """

    def __init__(self, **options: Any) -> None:
        self._options = merge(Warm(), options)
        self._undo: list[tuple[Any, Any]] = []
        self._deaf: Callable[[], None] | None = None
        self.fits: list[FitReport] = []

    def start(self) -> Self:
        """Redirect from now on."""
        if self._undo:
            raise RuntimeError("this patch is on already: call stop() first, or make another")
        self._deaf = listen(self.fits)
        for name, surface in SURFACES.items():
            redirected = _redirect(lookup(optimize, name), self._options, surface)
            self._swap(surface.scipy, redirected)
            self._undo.append((redirected, surface.scipy))
        return self

    def stop(self) -> None:
        """Put back what was there."""
        while self._undo:
            self._swap(*self._undo.pop())
        if self._deaf is not None:
            self._deaf()
            self._deaf = None

    @staticmethod
    def _swap(old: Any, new: Any) -> None:
        for module, attribute in _places(old):
            setattr(module, attribute, new)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _redirect(fit: Callable[..., Any], options: Warm, surface: Surface) -> Any:
    plain, quick = surface.scipy, surface.quick

    def redirected(*args: Any, **kwargs: Any) -> Any:
        # scipy.stats asks for roots by the thousand, each in less time than a look-up.
        if quick and _is_inside_scipy(sys._getframe(1).f_globals.get("__name__", "")):  # noqa: SLF001
            return plain(*args, **kwargs)
        return fit(*args, warm=options, **kwargs)

    redirected.__dict__.update(getattr(plain, "__dict__", {}))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(redirected, name, getattr(plain, name))
    redirected.__wrapped__ = plain  # type: ignore[attr-defined]
    return redirected


def _is_inside_scipy(module: str) -> bool:
    """Whether a module is scipy's own code, its tests not counted."""
    return module.startswith("scipy.") and ".tests" not in module


def _places(function: Any) -> list[tuple[types.ModuleType, str]]:
    """Return the modules and the names under which a function is to be replaced."""
    public = {"scipy.optimize", "scipy.optimize.elementwise", function.__module__}
    found: list[tuple[types.ModuleType, str]] = []
    for name, module in list(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or name.startswith("warmstart"):
            continue
        if _is_inside_scipy(name) and name not in public:
            continue  # scipy's inner calls are part of the outer fit
        found += [(module, key) for key, value in list(vars(module).items()) if value is function]
    return found
