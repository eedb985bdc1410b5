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

__all__ = ["Curve", "Curved", "Linearized", "Predictor", "Problem", "Scored", "Solved"]

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


class Curved(NamedTuple):
    """A model about a point, to second order; see `warmstart.predictors.quadratic`.

    Parameters
    ----------
    linear : Linearized
        To first order.
    basis : (n, n) array
        The directions, as columns, along which the second derivatives were taken.
    second : (m, n, n) array
        Those derivatives.
    """

    linear: Linearized
    basis: Vector
    second: Vector


class Scored(NamedTuple):
    """The gradient at a solution, and the part that each row has in it.

    Parameters
    ----------
    rows : (m,) array of uint64
        Hashes of the rows of data.
    gradient : (n,) array
        Of the objective.
    scores : (m, n) array
        Of each row's loss.
    """

    rows: NDArray[np.uint64]
    gradient: Vector
    scores: Vector


class Problem(NamedTuple):
    """What is to be fitted."""

    place: Place
    size: int
    """Number of parameters."""
    curve: Curve | None = None
    rows: NDArray[np.uint64] | None = None
    """Hashes of the rows of its data, where the caller gives their scores."""
    averaged: bool = False
    """Whether the objective is a mean over them."""


class Solved(NamedTuple):
    """A near fit, and what it left."""

    neighbour: Neighbour
    x: Vector
    metric: Vector | None = None
    """Its inverse Hessian."""
    linearized: Linearized | None = None
    curved: Curved | None = None
    scored: Scored | None = None


Predictor = Callable[[Problem, Sequence[Solved]], Vector | None]
