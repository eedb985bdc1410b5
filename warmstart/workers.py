"""``workers=``: an ordered map of ours, so that results are recorded as they arrive.

With a number of workers scipy lets a pool call the user's function, and this process sees
nothing of it. Here the pool is asked for one result after the other, and each is in the journal
before the next; a resumed run asks only for what is missing, from however many workers.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

import warmstart.journal as files
from warmstart.errors import ArgumentError
from warmstart.packing import pack_value
from warmstart.recorded import Recorded, own, pack_head
from warmstart.recording import Recorder

__all__ = ["OrderedMap"]

_DEPTH = 4


class OrderedMap:
    """What scipy calls instead of ``workers``.

    Parameters
    ----------
    recorder : Recorder
        The fit's.
    workers : int or callable
        As the caller gave it: a number of processes (-1 for all processors), or a map.
    """

    def __init__(self, recorder: Recorder, workers: Any) -> None:
        if not callable(workers):
            try:
                workers = int(workers)
            except (TypeError, ValueError):
                workers = 0
            if workers < 1 and workers != -1:
                raise ArgumentError("workers is a map, a positive number, or -1 for all processors")
        self._recorder = recorder
        self._workers = workers
        self._pool: Any = None
        self._seconds = 0.0
        """Of one evaluation, as the last batch took."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Return the results for all items in order, from the journal as far as it goes."""
        recorder = self._recorder
        points = list(items)
        inside = _recorded_in(function)
        raws = [_bytes_of(point) for point in points]
        if not inside or None in raws:
            return list(self._map(function, points))
        label = f"workers.{_name(function)}({', '.join(part.label for part in inside)})"
        channel = recorder.channel(label)
        results: list[Any] = [None] * len(points)
        missing = []
        for place, raw in enumerate(raws):
            assert raw is not None
            digest = xxh3_64_intdigest(raw)
            answer = recorder.recall_mapped(
                channel, digest, raw, functools.partial(self._alone, function, points[place])
            )
            if answer is None:
                missing.append((place, digest, raw))
            else:
                results[place] = answer[0]
        if missing:
            self._evaluate(function, points, missing, channel, results)
        if len(inside) == 1 and inside[0].is_primary:
            for raw, point, value in zip(raws, points, results, strict=True):
                if inside[0].see(point):
                    inside[0].rank(raw, value)  # type: ignore[arg-type]
        if time.perf_counter() >= recorder.due:
            recorder.settle()
        return results

    def _evaluate(
        self,
        function: Callable[[Any], Any],
        points: list[Any],
        missing: list[tuple[int, int, bytes]],
        channel: int,
        results: list[Any],
    ) -> None:
        recorder = self._recorder
        began = time.perf_counter()
        with recorder.apart():
            values = self._map(function, [points[place] for place, _, _ in missing])
            for place, digest, raw in missing:
                try:
                    value = own(next(values))
                except StopIteration:
                    raise RuntimeError("workers is no map: it gave too few results") from None
                form, payload = pack_value(value)
                recorder.keep(pack_head(channel, form, digest) + payload, raw)
                results[place] = value
                if time.perf_counter() >= recorder.due:
                    recorder.settle()
        self._seconds = (time.perf_counter() - began) / len(missing)

    def _alone(self, function: Callable[[Any], Any], point: Any) -> Any:
        """Evaluate one point in this process."""
        with self._recorder.apart():
            return function(point)

    def _map(self, function: Callable[[Any], Any], points: list[Any]) -> Iterator[Any]:
        if callable(self._workers):
            return iter(self._workers(function, points))
        if self._pool is None:
            self._pool = _pool(self._workers)
        # A batch of cheap evaluations travels together, for as long as a kill may cost.
        together = files.BUFFER_SECONDS / self._seconds if self._seconds else 1.0
        fair = len(points) // (4 * self._pool._processes) or 1  # noqa: SLF001
        return iter(self._pool.imap(function, points, max(1, min(int(together), fair))))

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


def _pool(number: int) -> Any:
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None and sys.version_info < (3, 14):
        method = "forkserver"  # as scipy does: a fork of a process with threads may hang
    context = multiprocessing.get_context(method)
    return context.Pool() if number == -1 else context.Pool(number)


def _bytes_of(point: Any) -> bytes | None:
    try:
        array = np.asarray(point)
    except (TypeError, ValueError):
        return None
    return None if array.dtype.hasobject else array.tobytes()


def _recorded_in(function: Any) -> list[Recorded]:
    """Return the functions of the user's that scipy has wrapped into what it maps."""
    found: list[Recorded] = []
    seen: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if isinstance(value, Recorded):
            if value not in found:
                found.append(value)
        elif depth and id(value) not in seen:
            seen.add(id(value))
            bound_to = getattr(value, "__self__", None)
            if bound_to is not None and type(value).__name__ == "method":
                look(bound_to, depth)
                return
            for part in vars(value).values() if hasattr(value, "__dict__") else ():
                for item in part if isinstance(part, (list, tuple)) else (part,):
                    if callable(item):
                        look(item, depth - 1)

    look(function, _DEPTH)
    return found


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__
