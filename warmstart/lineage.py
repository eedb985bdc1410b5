"""Which run began where another ended, and which is part of which."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from warmstart.errors import RunLookupError
from warmstart.rows import RunInfo
from warmstart.run import Run
from warmstart.search import infos
from warmstart.store import Store

__all__ = ["Edge", "Lineage", "lineage"]


class Edge(NamedTuple):
    """One step of a lineage.

    Parameters
    ----------
    run, begins : str
        Ids: the one that was there, and the one that began with it.
    kind : str
        ``"part"`` of it, or started from its ``"journal"``, ``"checkpoint"``, or ``"near"``.
    level : str or None
        What the two have in common, where the start was near.
    """

    run: str
    begins: str
    kind: str
    level: str | None


class Lineage:
    """A directed graph without cycles: a run begins after the one that it begins with.

    Parameters
    ----------
    runs : iterable of RunInfo
        In any order. An edge that would go back in time (ids sort by it) is left out, as only a
        damaged or a made-up row can have one.
    """

    def __init__(self, runs: Iterable[RunInfo]) -> None:
        self.edges: list[Edge] = []
        self._up: dict[str, list[Edge]] = {}
        self._down: dict[str, list[Edge]] = {}
        self.runs = {info.run: info for info in runs}
        for info in self.runs.values():
            for other, kind in ((info.parent, "part"), (info.start_run, info.source or "near")):
                if other is not None and other < info.run:
                    edge = Edge(other, info.run, kind, info.level if kind != "part" else None)
                    self.edges.append(edge)
                    self._up.setdefault(info.run, []).append(edge)
                    self._down.setdefault(other, []).append(edge)

    def __repr__(self) -> str:
        return f"<Lineage of {len(self.runs)} runs, {len(self.edges)} began where others ended>"

    def parents(self, run: str) -> list[str]:
        """Return the runs that one began with, or is part of.

        Parameters
        ----------
        run : str
            Its id.

        Returns
        -------
        list of str
            Ids; empty if there are none.

        Raises
        ------
        RunLookupError
            If the lineage has no such run.
        """
        return [edge.run for edge in self._up.get(self._known(run), [])]

    def children(self, run: str) -> list[str]:
        """Return the runs that began with one, or are parts of it.

        Parameters
        ----------
        run : str
            Its id.

        Returns
        -------
        list of str
            Ids; empty if there are none.

        Raises
        ------
        RunLookupError
            If the lineage has no such run.
        """
        return [edge.begins for edge in self._down.get(self._known(run), [])]

    def ancestors(self, run: str) -> list[str]:
        """Return all runs that one goes back to, the nearest first.

        Parameters
        ----------
        run : str
            Its id.

        Returns
        -------
        list of str
            Ids; empty if there are none.

        Raises
        ------
        RunLookupError
            If the lineage has no such run.
        """
        return self._reach(run, self.parents)

    def descendants(self, run: str) -> list[str]:
        """Return all runs that go back to one, the nearest first.

        Parameters
        ----------
        run : str
            Its id.

        Returns
        -------
        list of str
            Ids; empty if there are none.

        Raises
        ------
        RunLookupError
            If the lineage has no such run.
        """
        return self._reach(run, self.children)

    def _reach(self, run: str, step: Callable[[str], list[str]]) -> list[str]:
        found: dict[str, None] = {}
        waiting = deque([self._known(run)])
        while waiting:
            for other in step(waiting.popleft()):
                if other not in found:
                    found[other] = None
                    if other in self.runs:
                        waiting.append(other)
        return list(found)

    def path(self, start: str, end: str) -> list[Edge] | None:
        """Return the shortest way from a run to one that goes back to it; None without one.

        Parameters
        ----------
        start, end : str
            Ids.

        Returns
        -------
        list of Edge or None
            From `start` on; empty if `end` is `start`.

        Raises
        ------
        RunLookupError
            If the lineage has no run `start`.
        """
        came: dict[str, Edge] = {}
        waiting = deque([self._known(start)])
        while waiting:
            here = waiting.popleft()
            if here == end:
                steps = []
                while here != start:
                    steps.append(came[here])
                    here = came[here].run
                return steps[::-1]
            for edge in self._down.get(here, []):
                if edge.begins not in came and edge.begins != start:
                    came[edge.begins] = edge
                    waiting.append(edge.begins)
        return None

    @property
    def roots(self) -> list[str]:
        """Runs that began with no other, the oldest first."""
        return sorted(run for run in self.runs if run not in self._up)

    @property
    def leaves(self) -> list[str]:
        """Runs with which no other began, the oldest first."""
        return sorted(run for run in self.runs if run not in self._down)

    def depth(self, run: str) -> int:
        """Return the length of the longest way from a root to a run.

        Parameters
        ----------
        run : str
            Its id.

        Returns
        -------
        int
            0 for a root.

        Raises
        ------
        RunLookupError
            If the lineage has no such run.
        """
        deepest: dict[str, int] = {}
        for name in sorted({self._known(run), *self.ancestors(run)}):  # parents come first
            above = [deepest.get(edge.run, 0) + 1 for edge in self._up.get(name, [])]
            deepest[name] = max(above, default=0)
        return deepest[run]

    def sorted(self) -> list[str]:
        """Return all runs, each after those that it goes back to.

        Returns
        -------
        list of str
            Ids.
        """
        return sorted(self.runs)

    def _known(self, run: str) -> str:
        if run not in self.runs and run not in self._down:
            raise RunLookupError(f"the lineage has no run {run!r:.60}")
        return run

    def to_dict(self) -> Mapping[str, object]:
        """Return runs and edges, for JSON.

        Returns
        -------
        mapping of str to object
            ``runs``, and ``edges`` as mappings.
        """
        return {"runs": self.sorted(), "edges": [edge._asdict() for edge in self.edges]}


def lineage(store: Store, run: Run | str | None = None) -> Lineage:
    """Return the lineage of all runs of a store, or of one and all that it is related to."""
    whole = Lineage(infos(store))
    if run is None:
        return whole
    name = run.id if isinstance(run, Run) else run
    related = {name, *whole.ancestors(name), *whole.descendants(name)}
    return Lineage(info for info in whole.runs.values() if info.run in related)
