"""The models that are fitted: how often, and which of their arguments change from fit to fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from warmstart.fingerprint import SpecSummary
from warmstart.learned import stability
from warmstart.rows import RunInfo, read_small, summary_row
from warmstart.search import infos
from warmstart.store import Store

__all__ = ["Model", "models", "name_of"]

_NEWEST = 2000
"""Runs that are looked at."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What many fits have in common: the functions that are called.

    Parameters
    ----------
    what : str
        Name of the function, and the method, of the newest fit, or the name of the model.
    fits : int
        Among the newest 2000 runs.
    evaluations : int
        That they took.
    stability : dict of str to (str, float, float)
        By argument (``data.y``, ``settings.x0``): ``"stable"``, ``"semi-stable"`` or
        ``"variable"``, the part of the last hundred fits that had the same, and a confidence that
        rises to 1 with twenty. An ``x0`` that varies is why nothing is found again.
    """

    what: str
    fits: int
    evaluations: int
    stability: dict[str, tuple[str, float, float]]


def name_of(summary: SpecSummary) -> str:
    """Return the name of the function that is fitted, or of the model."""
    model = summary.arguments.get("model", {})
    names = (name for name in ("fun", "f", "func", "name", "model") if name in model)
    return next((model[name][1] for name in names), "")


def models(store: Store) -> list[Model]:
    """Return the models of the newest runs, those with the most fits first."""
    newest = [info for info in infos(store) if info.key][: -_NEWEST - 1 : -1]
    groups: dict[bytes, list[tuple[RunInfo, SpecSummary]]] = {}
    for info in newest:
        row = summary_row(bytes.fromhex(info.key))
        summary = read_small(store.backend.get(row), SpecSummary)
        if summary is not None:
            parts = summary.arguments.get("model", {})
            name = b"".join(digest for _, (digest, _) in sorted(parts.items()))
            groups.setdefault(name, []).append((info, summary))
    found = []
    for members in groups.values():
        flat: list[dict[str, Any]] = [
            {
                f"{part}.{name}": digest
                for part, values in summary.arguments.items()
                if part not in {"model", "inside"}
                for name, (digest, _) in values.items()
            }
            for _, summary in members
        ]
        evaluations = sum(info.evaluations for info, _ in members)
        info, summary = members[0]
        what = info.what or name_of(summary)
        found.append(Model(what, len(members), evaluations, stability(flat)))
    return sorted(found, key=lambda model: -model.fits)
