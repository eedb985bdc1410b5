"""Hostile records, the short form."""

from __future__ import annotations

from faults.campaign import CAMPAIGNS
from faults.hostile import run


def test_hostile_records_are_passed_over():
    """Forgeries under right checksums raise nothing, take no memory, and harm no fit."""
    _, short = CAMPAIGNS["hostile"]
    outcome = run(short, 0, lambda _done: None)
    assert outcome.tried == short
    assert outcome.passed, outcome
