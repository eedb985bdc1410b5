"""One fit at a time: who is at it, as a row of the store that has to be renewed.

A lease is a hint, not a lock: what its owner writes is right whether or not it still has it, since
the same fit has the same result, and every run has rows of its own. An owner on this machine that
has died is seen at once; one on another machine is waited for until its lease has run out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from warmstart import host
from warmstart.backends import Batch
from warmstart.fingerprint import Fingerprint
from warmstart.pulse import Pulse
from warmstart.rows import Lease, read_small, small
from warmstart.store import Store

__all__ = ["LEASE", "flight"]

LEASE = 15.0
"""Seconds for which a lease outlives an owner of another machine."""
_LONGEST = 3600.0
"""Seconds for which anybody waits."""


def _row(key: Fingerprint) -> bytes:
    return b"z" + key.digest


class _Watch:
    """A lease of somebody else: whether it is renewed, whatever the clocks of machines say."""

    def __init__(self) -> None:
        self._sequence = -1
        self._since = 0.0

    def is_over(self, lease: Lease, sequence: int) -> bool:
        """Whether its owner is dead, or has not renewed it for as long as it lasts."""
        alive = host.is_alive(lease.owner)
        if alive is not None:
            return not alive
        now = time.monotonic()
        if sequence != self._sequence:
            self._sequence, self._since = sequence, now
        return now - self._since > LEASE


@contextlib.contextmanager
def flight(
    store: Store, key: Fingerprint, run: str, *, wait: bool, done: Callable[[], bool]
) -> Iterator[bool]:
    """Be the only one at a fit, for the length of a ``with`` block.

    Parameters
    ----------
    store : Store
        That all who may be at it share.
    key : Fingerprint
        Of the fit.
    run : str
        The id of this run.
    wait : bool
        Whether to wait for another; an hour at most.
    done : callable
        Asked while waiting: whether there is nothing left to be done.

    Yields
    ------
    bool
        Whether this run is the only one; False if another is at it, or has done it.
    """
    watch = _Watch()
    deadline, pause, held = time.monotonic() + _LONGEST, 0.01, False
    while True:
        item = store.backend.get(_row(key))
        lease = read_small(item, Lease)
        if item is None or lease is None or watch.is_over(lease, item.sequence):
            condition = {_row(key): None if item is None else item.sequence}
            held = store.backend.apply(_claim(store, key, run, condition)) is not None
            if held:
                break
            continue  # somebody was faster
        if not wait or time.monotonic() >= deadline or done():
            break
        time.sleep(pause)
        pause = min(2.0 * pause, 0.5)

    if not held:
        yield False
        return

    def ours() -> dict[bytes, int | None] | None:
        """Return the condition that the lease still is this run's; None if another has it."""
        item = store.backend.get(_row(key))
        lease = read_small(item, Lease)
        is_ours = item is not None and lease is not None and lease.run == run
        return {item.key: item.sequence} if item is not None and is_ours else None

    def renew() -> None:
        condition = ours()
        if condition is not None:
            store.backend.apply(_claim(store, key, run, condition))

    try:
        with Pulse(renew, LEASE / 3.0):
            yield True
    finally:
        with contextlib.suppress(Exception):  # it runs out, no more
            held_still = ours()
            if held_still is not None:
                store.backend.apply(Batch(deletes=[_row(key)], conditions=held_still))


def _claim(store: Store, key: Fingerprint, run: str, condition: dict[bytes, int | None]) -> Batch:
    lease = Lease(run, host.owner(), store.clock() + LEASE)
    return Batch({_row(key): small(lease)}, conditions=condition)
