"""The campaign of `kills`, in short."""

from __future__ import annotations

from faults import kills


def test_kills():
    """Sixty SIGKILLs over eight processes: nothing acknowledged is lost, nobody hangs."""
    outcome = kills.run(60, 1, lambda done: None)
    assert outcome.tried >= 60
    assert outcome.passed, outcome
    assert outcome.figures["acknowledged"] > 100
