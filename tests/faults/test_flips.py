"""Damaged files, the short form."""

from __future__ import annotations

from faults.campaign import CAMPAIGNS
from faults.flips import run


def test_damaged_files_cost_what_they_held_and_nothing_else():
    """Flipped bytes, cut files and strangers' files: no process dies, nothing false is returned."""
    _, short = CAMPAIGNS["flips"]
    outcome = run(short, 0, lambda _done: None)
    assert outcome.tried >= short
    assert outcome.passed, outcome
