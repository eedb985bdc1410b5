"""States of a run, one a step, each with the tasks that were under way when it was taken.

State and tasks are one row: they are written together, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from warmstart.backends import Backend, Batch, Durability
from warmstart.errors import ArgumentError, CodecError
from warmstart.packing import dumps, loads
from warmstart.rows import pages, read_small, small

__all__ = ["Policy", "State", "check", "delete", "load", "save", "steps"]

_LONGEST = 200
_HIGHEST = (1 << 63) - 1


class State(NamedTuple):
    """A state that was saved.

    Parameters
    ----------
    step : int
        Which one.
    state : object
        As it was given, a tree of arrays and scalars.
    active : dict of str to object
        Tasks that were not done, and what they need.
    """

    step: int
    state: Any
    active: dict[str, Any]


class Policy(NamedTuple):
    """Which steps are written, and which are kept.

    Parameters
    ----------
    every : int
        Write every so many steps; the first one, always.
    last : int or None
        Keep so many, the newest; None for all.
    geometric : bool
        Besides, keep some of the older ones, ever further apart: about four for each doubling of
        the distance to the newest.
    on_exit : bool
        Write the newest state, too, when the run ends.
    """

    every: int = 1
    last: int | None = None
    geometric: bool = False
    on_exit: bool = False

    def surplus(self, kept: list[int]) -> list[int]:
        """Return which of the steps that are kept may go."""
        if self.last is None:
            return []
        old = kept[: -self.last] if self.last else kept
        if not self.geometric:
            return old
        # A step lives four times as long as the power of two that divides it.
        newest = kept[-1]
        return [step for step in old if step and newest - step > 4 * (step & -step)]


def check(step: int, namespace: str, policy: Policy) -> None:
    """Refuse what names no step, no namespace or no policy."""
    _row("", namespace, step)
    if not isinstance(policy, Policy):
        raise ArgumentError(f"policy is a Policy, not {type(policy).__name__}")
    numbers = policy.every, 1 if policy.last is None else policy.last
    if not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ArgumentError(f"every and last are numbers from 1 up, not {policy!r:.80}")


def _prefix(run: str, namespace: str) -> bytes:
    raw = namespace.encode() if isinstance(namespace, str) else b"\0"
    if len(raw) > _LONGEST or b"\0" in raw:
        raise ArgumentError(f"a namespace is up to {_LONGEST} bytes of text, not {namespace!r:.60}")
    return b"i" + bytes.fromhex(run) + raw + b"\0"


def _row(run: str, namespace: str, step: int) -> bytes:
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= _HIGHEST:
        raise ArgumentError(f"a step is a number from 0 up, not {step!r:.60}")
    return _prefix(run, namespace) + step.to_bytes(8, "big")


def save(
    backend: Backend,
    run: str,
    step: int,
    state: Any,
    *,
    active: Mapping[str, Any] | None = None,
    namespace: str = "",
    policy: Policy = Policy(),  # noqa: B008 (immutable)
    durability: Durability = Durability.PROCESS,
) -> None:
    """Write a state in place of the one of its step, and delete what the policy has no use for."""
    if active is not None and not isinstance(active, Mapping):
        raise ArgumentError(
            f"active is a mapping of tasks to what they need, not {type(active).__name__}"
        )
    key = _row(run, namespace, step)
    value = small((dumps(state), dumps(dict(active or {}))))
    kept = sorted({*steps(backend, run, namespace), step})
    gone = [_row(run, namespace, old) for old in policy.surplus(kept) if old != step]
    backend.apply(Batch({key: value}, gone), durability)


def load(backend: Backend, run: str, step: int | None = None, namespace: str = "") -> State | None:
    """Return the state of a step, by default of the highest that can be read; None without one."""
    wanted = reversed(steps(backend, run, namespace)) if step is None else [step]
    for number in wanted:
        body = read_small(backend.get(_row(run, namespace, number)), tuple[bytes, bytes])
        if body is None:
            continue
        try:
            return State(number, loads(body[0]), loads(body[1]))
        except CodecError:
            continue
    return None


def steps(backend: Backend, run: str, namespace: str = "") -> list[int]:
    """Return the steps of which there are states, rising."""
    start = _prefix(run, namespace)
    return [
        int.from_bytes(item.key[-8:], "big")
        for item in pages(backend, start, head=1)
        if len(item.key) == len(start) + 8
    ]


def delete(backend: Backend, run: str, step: int, namespace: str = "") -> None:
    """Forget a state."""
    backend.apply(Batch(deletes=[_row(run, namespace, step)]))
