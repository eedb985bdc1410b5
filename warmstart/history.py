"""What a store tells of the work around it: runs, experiments, models, families, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from warmstart import learned
from warmstart.errors import KeyLookupError
from warmstart.learned import Family, Plan

if TYPE_CHECKING:
    from warmstart.experiment import Experiment
    from warmstart.lineage import Lineage
    from warmstart.models import Model
    from warmstart.run import Run
    from warmstart.search import Runs
    from warmstart.store import Store

__all__ = ["History"]


class History:
    """The part of a `Store` that is about runs; the rooms of which it is the door stand above."""

    @property
    def _store(self) -> Store:
        return cast("Store", self)

    def run(
        self,
        experiment: str | Experiment | None = None,
        *,
        name: str = "",
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: str | Run | None = None,
        recipe: tuple[str, str] | None = None,
        resume: str | None = None,
    ) -> Run:
        """Make a run of any piece of work, or go on with one.

        Parameters
        ----------
        experiment : str or Experiment, optional
            By name, which is made if there is none, or by id. By default that of the parent,
            else ``"default"``.
        name : str
            For people.
        params : mapping of str to object
            Text, numbers, booleans, lists and dicts.
        tags : mapping of str to str
            To search by.
        parent : str or Run, optional
            By default the run inside whose ``with`` block this is called.
        recipe : tuple of (str, str), optional
            Name and version of what is followed; `params` are what is done otherwise.
        resume : str, optional
            The id, or its first digits, of a run to go on with that is dead, failed or
            cancelled.

        Returns
        -------
        Run
            Pending; ``with`` starts it, and ends it.

        Raises
        ------
        RunLookupError, ExperimentLookupError
            If the parent, the run to resume, or the experiment of an id is not there.
        StatusError
            If the run to resume is completed or alive.
        """
        from warmstart.run import create_run, get_run  # noqa: PLC0415 (they stand above)

        if resume is not None:
            return get_run(self._store, resume).resume()
        return create_run(
            self._store,
            experiment=experiment,
            name=name,
            params=params,
            tags=tags,
            parent=parent,
            recipe=recipe,
        )

    def get_run(self, run: str) -> Run:
        """Return a run by its id, or the first digits of it, at least six.

        Parameters
        ----------
        run : str
            The id, 32 hexadecimal digits, or the first of them.

        Returns
        -------
        Run
            As it stands in the store.

        Raises
        ------
        RunLookupError
            If there is none, or more than one.
        """
        from warmstart.run import get_run  # noqa: PLC0415 (they stand above)

        return get_run(self._store, run)

    def runs(
        self,
        where: str | Sequence[Any] = (),
        *,
        experiment: str | Experiment | None = None,
        parent: str | Run | None = None,
        status: str | None = None,
        recipe: str | tuple[str, str] | None = None,
        limit: int | None = None,
    ) -> Runs:
        """Return the runs that meet all conditions, the newest first.

        Returns
        -------
        Runs
            A list, which ``to_frame()`` makes a table of.

        Parameters
        ----------
        where : str, or sequence of str or of (field, test, value)
            Such as ``"params.rate >= 0.5"`` or ``("params.rate", "ge", 0.5)``. Fields are
            ``params.NAME``, ``metrics.NAME`` (the latest value), ``tags.NAME``, ``extra.NAME``,
            ``name``, ``note``, ``state``, ``experiment`` and those of `RunInfo`; tests are
            ``eq``, ``ne``, ``gt``, ``lt``, ``ge``, ``le``, ``contains`` and ``startswith``. A
            value of another type, or none, never meets a condition.
        experiment : str or Experiment, optional
            Whose runs.
        parent : str or Run, optional
            Whose parts.
        status : str, optional
            One of the five, or ``"dead"``.
        recipe : str or tuple of (str, str), optional
            A name, or a name and a version.
        limit : int, optional
            At most so many.

        Notes
        -----
        Reads all runs: some 5 us each, and as much again for each condition on what people say.
        """
        from warmstart.search import find_runs  # noqa: PLC0415 (they stand above)

        return find_runs(
            self._store,
            where,
            experiment=experiment,
            parent=parent,
            status=status,
            recipe=recipe,
            limit=limit,
        )

    def create_experiment(
        self,
        name: str,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        config: Any = None,
    ) -> Experiment:
        """Make an experiment.

        Returns
        -------
        Experiment
            The new one.

        Parameters
        ----------
        name : str
            One of a kind in the store.
        description : str
            For people.
        tags : mapping of str to str
            For people.
        config : object
            What JSON can say.

        Raises
        ------
        ExperimentLookupError
            If the name is taken.
        """
        from warmstart.experiment import create_experiment  # noqa: PLC0415 (they stand above)

        return create_experiment(
            self._store, name, description=description, tags=tags, config=config
        )

    def experiment(self, name: str) -> Experiment:
        """Return an experiment by its name or id.

        Parameters
        ----------
        name : str
            Or id.

        Returns
        -------
        Experiment
            As it stands in the store.

        Raises
        ------
        ExperimentLookupError
            If there is none.
        """
        from warmstart.experiment import get_experiment  # noqa: PLC0415 (they stand above)

        return get_experiment(self._store, name)

    def experiments(self) -> list[Experiment]:
        """Return all experiments, the oldest first.

        Returns
        -------
        list of Experiment
            Empty if there is none.
        """
        from warmstart.experiment import experiments  # noqa: PLC0415 (they stand above)

        return experiments(self._store)

    def models(self) -> list[Model]:
        """Return the models that are fitted, and which of their arguments change; see `Model`.

        Returns
        -------
        list of Model
            Those with the most fits first.
        """
        from warmstart.models import models  # noqa: PLC0415 (they stand above)

        return models(self._store)

    def families(self) -> dict[str, Family]:
        """Return what near starts have cost and saved, by family (32 hexadecimal digits).

        Returns
        -------
        dict of str to Family
            What the books have.
        """
        return {
            name.hex(): family for name, family in learned.families(self._store.backend).items()
        }

    def override(
        self,
        family: str,
        *,
        mode: str | None = None,
        ways: Mapping[str, bool | None] | None = None,
        every: int | None = None,
        reset: bool = False,
    ) -> Plan:
        """Change by hand what is done in a family of near fits; returns the plan in force then.

        Returns
        -------
        Plan
            What is done from now on.

        Parameters
        ----------
        family : str
            Its digits, or the first of them, as `families` has them.
        mode : {"act", "suggest", "observe"}, optional
            Whether what follows from the books is done, only told in the reports, or not even
            that.
        ways : mapping of str to bool or None, optional
            Ways to begin that are to be taken or not, whatever the books say; None to go by them
            again.
        every : int, optional
            A cold challenger after so many near fits.
        reset : bool
            Forget what was learned and changed before.

        Raises
        ------
        KeyLookupError
            If there is no such family, or more than one.
        """
        found = [
            name for name in learned.families(self._store.backend) if name.hex().startswith(family)
        ]
        if len(found) != 1:
            raise KeyLookupError(f"{len(found)} families begin with {family!r:.60}")
        if reset:
            learned.reset(self._store.backend, found[0])
        return learned.override(self._store.backend, found[0], mode=mode, ways=ways, every=every)

    def lineage(self, run: Run | str | None = None) -> Lineage:
        """Return which run began where which other ended, of all or of one run's relatives.

        Parameters
        ----------
        run : Run or str, optional
            Only of this one, what it goes back to, and what goes back to it.

        Returns
        -------
        Lineage
            A graph of runs.
        """
        from warmstart.lineage import lineage  # noqa: PLC0415 (they stand above)

        return lineage(self._store, run)

    def plot_savings(self, *, ax: Any = None) -> Any:
        """Draw evaluations made and saved, by day (matplotlib).

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to.

        Returns
        -------
        matplotlib Axes
            With a bar a day.
        """
        from warmstart.plots import plot_savings  # noqa: PLC0415 (optional)

        return plot_savings(self._store, ax=ax)
