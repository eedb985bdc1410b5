"""Copies of payloads that are returned again and again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import LbfgsInvHessProduct

from warmstart.codec import RichResult

__all__ = ["copier"]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, np.float64})


def copier(value: Any) -> Callable[[], Any] | None:
    """Return what makes copies of a payload that share no memory with it or each other.

    It is worked out once what there is to copy: the result of a small fit takes 1.6 us, to walk
    through it each time 3.7, to decode it again, digest and all, 15 (2026-11).

    Returns
    -------
    callable or None
        None for a payload that holds what cannot be copied, which has to be decoded again.
    """
    try:
        made = _copier(value) or (lambda: value)
        made()
    except Exception:  # noqa: BLE001 (whatever it is, decoding does without it)
        return None
    return made


def _copier(value: Any) -> Callable[[], Any] | None:
    """Return what copies a value; None if it cannot change."""
    kind = type(value)
    if kind in _ATOMS:
        return None
    if kind is np.ndarray:
        made = value.__copy__  # in the order of its memory, twice as fast as copy(order="K")
        return (lambda: copy.deepcopy(value)) if value.dtype.hasobject else made
    if kind is dict or issubclass(kind, RichResult):
        return _dict_copier(kind, value)
    if kind is list or kind is tuple:
        items = [_copier(item) for item in value]
        if not any(items):
            return None if kind is tuple else value.copy
        pairs = list(zip(value, items, strict=True))
        return lambda: kind([item if make is None else make() for item, make in pairs])
    if kind is LbfgsInvHessProduct:
        arrays = {k: v for k, v in vars(value).items() if type(v) is np.ndarray}
        attributes = _dict_copier(dict, vars(value), among=arrays)

        def product() -> Any:  # its constructor computes rho again
            made = object.__new__(kind)
            made.__dict__ = attributes()
            return made

        return product
    return None if isinstance(value, np.generic) else lambda: copy.deepcopy(value)


def _dict_copier(
    kind: Any, value: Mapping[Any, Any], among: Mapping[Any, Any] | None = None
) -> Callable[[], Any]:
    """Return what copies a dict, and of its items those `among` which something may change."""
    items = value if among is None else among
    parts = [(key, make) for key, item in items.items() if (make := _copier(item)) is not None]
    begun = kind if kind.__init__ is dict.__init__ else functools.partial(_filled, kind)

    def made() -> Any:
        copied = begun(value)
        for key, make in parts:
            copied[key] = make()
        return copied

    return made


def _filled(kind: Any, value: Mapping[Any, Any]) -> Any:
    """Return a dict of a kind whose constructor takes something else, as that of RootResults."""
    made = kind.__new__(kind)
    made.update(value)
    return made
