"""The campaign of `long`, in short."""

from __future__ import annotations

import os

from faults import long


def test_long():
    """Two minutes of mixed load under eviction (twenty seconds where it is not CI): all is flat."""
    outcome = long.run(120 if os.environ.get("CI") else 20, 1, lambda done: None)
    assert outcome.passed, outcome
    assert outcome.tried > 50
