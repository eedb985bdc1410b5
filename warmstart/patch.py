"""Redirecting scipy.optimize for code that does not know of warmstart."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable
from typing import Any, Self

import scipy.optimize

from warmstart import optimize
from warmstart.surfaces import SURFACES
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
    Replaces the functions in scipy.optimize, and in every loaded module outside scipy that
    imported them by name. Used as a context manager, a decorator, or with ``start`` and
    ``stop``. What a module imported while the patch was on keeps working after it.

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
        self._undo: list[tuple[types.ModuleType, str, Any]] = []
        self._deaf: Callable[[], None] | None = None
        self.fits: list[FitReport] = []

    def start(self) -> Self:
        """Redirect from now on."""
        if self._undo:
            raise RuntimeError("this patch is on already: call stop() first, or make another")
        self._deaf = listen(self.fits)
        for name, surface in SURFACES.items():
            original = getattr(scipy.optimize, name)
            redirected = _redirect(getattr(optimize, name), self._options, surface.scipy)
            for module, attribute in _places(original):
                self._undo.append((module, attribute, original))
                setattr(module, attribute, redirected)
        return self

    def stop(self) -> None:
        """Put back what was there."""
        while self._undo:
            module, attribute, original = self._undo.pop()
            setattr(module, attribute, original)
        if self._deaf is not None:
            self._deaf()
            self._deaf = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _redirect(fit: Callable[..., Any], options: Warm, plain: Callable[..., Any]) -> Any:
    def redirected(*args: Any, **kwargs: Any) -> Any:
        return fit(*args, warm=options, **kwargs)

    redirected.__dict__.update(plain.__dict__)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(redirected, name, getattr(plain, name))
    redirected.__wrapped__ = plain  # type: ignore[attr-defined]
    return redirected


def _places(original: Any) -> list[tuple[types.ModuleType, str]]:
    """Return where a function is held under a name: scipy.optimize, and outside scipy."""
    found: list[tuple[types.ModuleType, str]] = []
    for name, module in list(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or name.startswith("warmstart"):
            continue
        if name.startswith("scipy.") and name != "scipy.optimize":
            continue  # scipy's inner calls are part of the outer fit
        for attribute, value in list(vars(module).items()):
            if value is original:
                found.append((module, attribute))
    return found
