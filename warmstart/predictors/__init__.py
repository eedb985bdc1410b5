"""Predictors: from what is known of near fits to where this one should begin.

Each has its own module and one function, ``predict(problem, known) -> x or None``; none of them
calls the user's functions. `ORDER` is the order in which they are asked; the first that has an
answer is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.nearby import Neighbour, Place

__all__ = ["Curve", "Linearized", "Predictor", "Problem", "Solved"]

Vector = NDArray[np.float64]


class Curve(NamedTuple):
    """The data of a curve that is fitted: what its residuals are made of.

    Parameters
    ----------
    rows : (m,) array of uint64
        Hashes of the rows of ``xdata``.
    y : (m,) array
        What the model is fitted to.
    weights : (m,) array
        One over the standard deviations, up to a factor.
    """

    rows: NDArray[np.uint64]
    y: Vector
    weights: Vector


class Linearized(NamedTuple):
    """A model about a point: ``values + jacobian @ (x - at)``.

    Parameters
    ----------
    rows : (m,) array of uint64
        Hashes of the rows of ``xdata``.
    at : (n,) array
        The point.
    values : (m,) array
        The model there.
    jacobian : (m, n) array
        Its derivatives there.
    """

    rows: NDArray[np.uint64]
    at: Vector
    values: Vector
    jacobian: Vector


class Problem(NamedTuple):
    """What is to be fitted."""

    place: Place
    size: int
    """Number of parameters."""
    curve: Curve | None = None


class Solved(NamedTuple):
    """A near fit, and what it left."""

    neighbour: Neighbour
    x: Vector
    metric: Vector | None = None
    """Its inverse Hessian."""
    linearized: Linearized | None = None


Predictor = Callable[[Problem, Sequence[Solved]], Vector | None]
