"""One fit's dealings with near fits: find them, begin there, leave something, keep the books."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from warmstart import learned
from warmstart.errors import ArgumentError
from warmstart.fingerprint import Fingerprint, FitSpec
from warmstart.following import Follower
from warmstart.locks import lazily
from warmstart.nearby import Place, index, rows_in
from warmstart.recording import Recorder
from warmstart.sketch import row_hashes
from warmstart.starts import LARGEST, Plan, place_for, propose
from warmstart.store import Store
from warmstart.surfaces import ONE, Function, Surface
from warmstart.warm import Near, Warm

__all__ = ["Approach", "check_near"]

_ODD = (ArithmeticError, LookupError, TypeError, ValueError)
"""What may come of predicting from arguments that nobody has checked."""


def check_near(surface: Surface, bound: Mapping[str, Any], options: Warm) -> None:
    """Refuse options of near starts that do not fit the call.

    Raises
    ------
    ArgumentError
        With what was given, and what is expected.
    """
    if not options.near:
        if options.required:
            raise ArgumentError("required=True asks for a near start: write near=True as well")
        return
    start = bound.get(str(surface.start))
    if options.parameters is not None and start is not None:
        named, size = len(options.parameters), int(np.size(start))
        if named != size:
            raise ArgumentError(
                f"parameters names {named} of them, and {surface.start} has {size}: "
                "give one name for each"
            )


class Approach:
    """A fit for which near starts were asked.

    Parameters
    ----------
    store : Store
        Where near fits are looked for, and what is left for others.
    surface : Surface
        The function of scipy.optimize.
    bound : mapping of str to object
        The call's arguments.
    options : Warm
        The call's options.
    spec : FitSpec
        The fit.
    """

    def __init__(
        self,
        store: Store,
        surface: Surface,
        bound: Mapping[str, Any],
        options: Warm,
        spec: FitSpec,
    ) -> None:
        self._store, self._surface, self._bound = store, surface, bound
        self._options, self._spec = options, spec
        self._follower: Follower | None = None
        self._hint: str | None = None
        self.plan: Plan | None = None
        """Where to begin; from `find`, or from the journal of a run that goes on."""
        self.saved = 0
        """Evaluations fewer than a cold fit's, on the average."""

    @lazily
    def _place(self) -> Place:
        return place_for(self._surface, self._spec, self._options.names)

    @lazily
    def _rows(self) -> NDArray[np.uint64] | None:
        """A hash for each row of the data, where their scores are given."""
        if self._options.scores is None:
            return None
        rows = rows_in(self._spec)
        return row_hashes(rows) if rows and len(rows[0]) <= LARGEST else None

    def find(self) -> str:
        """Look for near fits, and make a plan of them; returns why there is none."""
        nothing: tuple[Plan | None, str] = None, "the store could not be read"
        self.plan, why = self._store.attempt(self._find, nothing)
        return why

    def _find(self) -> tuple[Plan | None, str]:
        options, backend = self._options, self._store.backend
        try:
            with np.errstate(all="ignore"):  # what is no number is no start
                plan, why = propose(
                    self._store,
                    self._surface,
                    self._place,
                    self._bound,
                    names=options.names,
                    rows=self._rows,
                    averaged=options.averaged,
                )
        except _ODD as error:  # scipy may still make sense of it
            return None, f"no start could be predicted: {error}"
        if plan is None:
            return None, why
        known = learned.load(backend, self._place.family)
        if known.mode == "suggest" and plan.way in known.plan.off:
            self._hint = f"starts by {plan.predictor} have not paid in this family"
        if known.loses(plan.way):
            return None, f"starts by {plan.predictor} have not paid in this family"
        due = known.is_due(options.challenge)
        return msgspec.structs.replace(plan, challenge=due), why

    def follow(
        self,
        bound: Mapping[str, Any],
        run: Callable[[Mapping[str, Any]], Any],
        recorder: Recorder,
    ) -> Any:
        """Do the fit by the plan, or gather what others may use.

        Parameters
        ----------
        bound : mapping of str to object
            The call's arguments, all functions under watch.
        run : callable
            Calls scipy with some arguments replaced.
        recorder : Recorder
            That watches them.
        """
        scores, watched = self._options.scores, None
        if scores is not None:
            watched = recorder.wrap(Function("scores", scores, ONE, primary=False))
        self._follower = Follower(
            self._surface,
            bound,
            self.plan,
            recorder.counted,
            expect=self._options.expect,
            scores=watched,
            rows=self._rows,
        )
        return self._follower.run(run)

    def leave(self, key: Fingerprint, result: Any) -> tuple[dict[str, Any], dict[bytes, bytes]]:
        """Return what near fits may use, and the rows of the index by which they find it."""
        try:
            asset = self._follower.asset(result) if self._follower is not None else None
            if asset is None:
                return {}, {}
            names = self._options.names
            if names is not None and len(names) == asset["x"].size:
                asset["names"] = names
            return {"near": asset}, index(key, self._place)
        except _ODD:
            return {}, {}

    def estimate(self, evaluations: int) -> int:
        """Return how many evaluations fewer a fit took than a cold one does, on the average."""
        if self._follower is not None and self._follower.challenger is not None:
            evaluations -= self._follower.challenger.evaluations
        backend, nothing = self._store.backend, learned.Family()
        try:
            known = self._store.attempt(lambda: learned.load(backend, self._place.family), nothing)
        except _ODD:
            known = nothing
        self.saved = known.saved(evaluations)
        return self.saved

    def enter(self, evaluations: int, seconds: float, what: str) -> None:
        """Enter the fit in the ledger, and the cold one that it was compared with."""
        follower, backend = self._follower, self._store.backend
        if follower is None or not evaluations:
            return
        try:
            family = self._place.family
        except _ODD:
            return
        extra = follower.challenger
        evaluations -= extra.evaluations if extra is not None else 0
        self.saved = self._store.attempt(
            lambda: learned.load(backend, family).saved(evaluations), 0
        )
        entry = functools.partial(
            learned.note,
            backend,
            family,
            self.plan.way if self.plan is not None else learned.COLD,
            evaluations=evaluations,
            seconds=seconds,
            what=what,
            challenger=extra.evaluations if extra is not None else None,
            lost=extra is not None and extra.lost,
            regular=extra is not None and extra.regular,
        )
        self._store.attempt(entry, None, writes=True)

    @property
    def given_up(self) -> str | None:
        """Why a start that was found was not used to the end."""
        return self._follower.spent.why if self._follower is not None else None

    @property
    def why(self) -> str | None:
        """Why it was not, or what else there is to say of it."""
        return self.given_up or self._hint

    def report(self) -> Near | None:
        """Return what happened."""
        plan, follower = self.plan, self._follower
        if plan is None or follower is None:
            return None
        return Near(
            level=plan.level,
            shared=plan.shared,
            distance=plan.distance,
            predictor=plan.predictor,
            curvature=plan.metric is not None,
            candidates=plan.candidates,
            used=follower.spent.used,
            challenged=follower.challenger is not None,
        )
