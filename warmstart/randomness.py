"""What decides the random numbers of a fit: its part in the key, its state kept and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.errors import ArgumentError

__all__ = ["Dice", "check_tracked", "draws_seeded", "identity", "restore", "state_of", "states"]


def global_state() -> np.random.RandomState:
    """Return numpy's global generator, which scipy draws from where no other is given."""
    return np.random.mtrand._rand  # noqa: SLF001


def _is_seeded() -> bool:
    """Whether somebody has called ``numpy.random.seed``; scipy asks in the same way."""
    return getattr(global_state()._bit_generator, "_seed_seq", None) is None  # noqa: SLF001


def draws_seeded(generator: Any) -> bool:
    """Whether scipy, given this as ``rng`` in an option, draws from a seeded global generator."""
    return (generator is None or generator is np.random) and _is_seeded()


def identity(bound: Mapping[str, Any]) -> Any:
    """Return what decides the random numbers of a fit, as a part of its key.

    Without ``rng`` scipy draws from numpy's global generator. If that was seeded, its state
    decides; if not, any draw is as good as another and the remembered one stands for all.
    """
    name, value = _given(bound)
    if value is not None:
        return (name, value)
    return ("global", global_state()) if name == "seed" and _is_seeded() else "unseeded"


def _given(bound: Mapping[str, Any]) -> tuple[str, Any]:
    """Return how the generator was given: by ``rng``, or in the way from before scipy 1.15."""
    if "rng" in bound:
        return "rng", bound["rng"]
    value = bound.get("seed")
    return "seed", None if value is np.random else value  # the module stands for its generator


class Dice:
    """The generator that one fit draws from.

    Parameters
    ----------
    bound : mapping of str to object
        The call's arguments.
    """

    def __init__(self, bound: Mapping[str, Any]) -> None:
        name, value = _given(bound)
        self.changes: dict[str, Any] = {}
        """Arguments to call scipy with instead of the caller's."""
        self._generator = value
        self._unseeded = False
        if value is None and name == "seed":
            self._generator = global_state()
            self._unseeded = not _is_seeded()
        elif value is None:  # rng=None: scipy would make one that nobody could ask afterwards
            self._generator = np.random.default_rng()
            self._unseeded = True
            self.changes["rng"] = self._generator

    def state(self) -> Any:
        """Return the state of the generator, or None if a number stands for it."""
        found = states([self._generator])
        return found[0] if found else None

    def begin(self, state: Any) -> None:
        """Begin where a recorded run began, if nothing that the caller gave says where."""
        if self._unseeded and state is not None:
            restore([self._generator], [state])

    def rewind(self, state: Any) -> None:
        """Go back to a state of this generator, or on to the one in which a fit left it."""
        if state is not None:
            restore([self._generator], [state])


def check_tracked(track: Any) -> tuple[Any, ...]:
    """Return generators as a tuple, or refuse what is none."""
    given = tuple(track) if isinstance(track, (list, tuple)) else (track,)
    for item in given:
        if not isinstance(item, (np.random.Generator, np.random.RandomState)):
            raise ArgumentError(
                f"track is a list of numpy Generators or RandomStates, not of "
                f"{type(item).__name__}: write track=[rng]"
            )
    return given


def state_of(generator: np.random.Generator) -> dict[str, Any]:
    """Return all that decides what a generator, and those that it spawns, will draw."""
    bits = generator.bit_generator
    seeds = getattr(bits, "seed_seq", None)
    # scipy's quasi-random engines draw from a spawned generator: which one, the seeds count.
    spawned = seeds.state if type(seeds) is np.random.SeedSequence else None
    return {"bits": dict(bits.state), "seeds": spawned}


def states(generators: Sequence[Any]) -> list[Any]:
    """Return the states of generators; of anything else, nothing."""
    found: list[Any] = []
    for generator in generators:
        if isinstance(generator, np.random.BitGenerator):
            found.append(state_of(np.random.Generator(generator)))
        elif isinstance(generator, np.random.Generator):
            found.append(state_of(generator))
        elif isinstance(generator, np.random.RandomState):
            found.append(dict(generator.get_state(legacy=False)))
    return found


def restore(generators: Sequence[Any], found: Sequence[Any]) -> None:
    """Put generators into states that were taken of them."""
    for generator, state in zip(generators, found, strict=False):
        if isinstance(generator, (np.random.Generator, np.random.BitGenerator)):
            bits: Any = getattr(generator, "bit_generator", generator)
            seeds = state["seeds"]
            if seeds is None:
                bits.state = state["bits"]
            else:
                bits.__setstate__((state["bits"], np.random.SeedSequence(**seeds)))
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
