"""``scipy.optimize`` that remembers: use it in place of ``from scipy import optimize``.

Every name of scipy.optimize is here. The functions listed in `surfaces.SURFACES` take one
keyword more, ``warm=``, and remember what they fitted; all others are scipy's own.
"""

from __future__ import annotations

from typing import Any

import scipy.optimize as _scipy

from warmstart.surfaces import SURFACES
from warmstart.wrapping import remembered

__all__ = list(_scipy.__all__)

minimize = remembered(SURFACES["minimize"])
least_squares = remembered(SURFACES["least_squares"])
leastsq = remembered(SURFACES["leastsq"])
curve_fit = remembered(SURFACES["curve_fit"])
differential_evolution = remembered(SURFACES["differential_evolution"])


def __getattr__(name: str) -> Any:
    return getattr(_scipy, name)


def __dir__() -> list[str]:
    return dir(_scipy)
