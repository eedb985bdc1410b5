"""Experiments: names under which runs stand together."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from blake3 import blake3

from warmstart.backends import Batch
from warmstart.errors import ArgumentError, ExperimentLookupError
from warmstart.rows import pages, read_small, small
from warmstart.session import new_run_id
from warmstart.store import Store

__all__ = [
    "Experiment",
    "create_experiment",
    "default",
    "experiments",
    "find_or_create",
    "get_experiment",
]

_VERSION = 1


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """What runs belong to.

    Parameters
    ----------
    id : str
        32 hexadecimal digits.
    name : str
        One of a kind in its store.
    description : str
        For people.
    tags : dict of str to str
        For people, and to search by.
    config : object
        JSON: what all its runs have in common.
    created : float
        UTC seconds since the epoch.
    version : int
        Of this document.
    """

    id: str
    name: str
    description: str = ""
    tags: dict[str, str] = {}
    config: Any = None
    created: float = 0.0
    version: int = _VERSION


def _experiment_row(name: str) -> bytes:
    return b"x" + bytes.fromhex(name)


def _name_row(name: str) -> bytes:
    return b"y" + blake3(name.encode()).digest(16)


def create_experiment(
    store: Store,
    name: str,
    *,
    description: str = "",
    tags: Mapping[str, str] | None = None,
    config: Any = None,
) -> Experiment:
    """Make an experiment; see `Store.create_experiment`."""
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"an experiment has a name of text, not {name!r:.60}")
    if re.fullmatch("[0-9a-f]{32}", name):
        raise ArgumentError("32 hexadecimal digits are an experiment's id: give it another name")
    if not isinstance(description, str):
        raise ArgumentError(f"description is text, not {description!r:.60}")
    named = dict(tags) if isinstance(tags, Mapping) else {} if tags is None else {"": tags}
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in named.items()):
        raise ArgumentError(f"tags map text to text, not {tags!r:.60}")
    try:
        config = json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"config is what JSON can say: {error}") from None
    made = Experiment(
        id=new_run_id(),
        name=name,
        description=description,
        tags=named,
        config=config,
        created=store.clock(),
    )
    rows = {_experiment_row(made.id): small(made), _name_row(name): small(made.id)}
    if store.backend.apply(Batch(rows, conditions={_name_row(name): None})) is None:
        raise ExperimentLookupError(
            f"there is an experiment {name!r:.60} already: store.experiment({name!r:.60})"
        )
    return made


def get_experiment(store: Store, name: str) -> Experiment:
    """Return an experiment by its name or id; see `Store.experiment`."""
    if not isinstance(name, str):
        raise ArgumentError(f"an experiment is known by name or id, not {name!r:.60}")
    number = name
    if not re.fullmatch("[0-9a-f]{32}", name):
        number = read_small(store.backend.get(_name_row(name)), str) or ""
    row = store.backend.get(_experiment_row(number)) if number else None
    found = read_small(row, Experiment)
    if found is None:
        raise ExperimentLookupError(
            f"there is no experiment {name!r:.60} in {store.address}: "
            "store.create_experiment(name) makes one"
        )
    return found


def find_or_create(store: Store, name: str) -> Experiment:
    """Return the experiment of a name, made if there is none."""
    with contextlib.suppress(ExperimentLookupError):
        return get_experiment(store, name)
    try:
        return create_experiment(store, name)
    except ExperimentLookupError:  # another process was faster
        return get_experiment(store, name)


def experiments(store: Store) -> list[Experiment]:
    """Return all experiments, the oldest first."""
    found = (read_small(item, Experiment) for item in pages(store.backend, b"x", head=None))
    return [one for one in found if one is not None]


def default(store: Store) -> str:
    """Return the id of the experiment to which runs belong that nobody has put elsewhere."""
    return read_small(store.backend.get(_name_row("default")), str) or ""
