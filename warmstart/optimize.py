"""``scipy.optimize`` that remembers: use it in place of ``from scipy import optimize``.

Every name of scipy.optimize is here. The functions listed in `surfaces.SURFACES` take one
keyword more, ``warm=``, and remember what they fitted; all others are scipy's own.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import scipy.optimize as _scipy
import scipy.optimize.elementwise as _elementwise

from warmstart.surfaces import SURFACES
from warmstart.wrapping import remembered

__all__ = list(_scipy.__all__)


def _module(name: str, plain: types.ModuleType) -> types.ModuleType:
    """Return a module like another of scipy's, for functions of ours to be put into."""
    made = types.ModuleType(name, plain.__doc__)
    made.__dict__.update({key: value for key, value in vars(plain).items() if key[:2] != "__"})
    sys.modules[name] = made
    return made


elementwise = _module(f"{__name__}.elementwise", _elementwise)

for _name, _surface in SURFACES.items():
    _module_name, _, _function = _name.rpartition(".")
    _where = elementwise.__dict__ if _module_name else globals()
    _where[_function] = remembered(_surface)


def __getattr__(name: str) -> Any:
    return getattr(_scipy, name)


def __dir__() -> list[str]:
    return dir(_scipy)
