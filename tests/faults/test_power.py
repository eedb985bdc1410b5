"""Power cuts, the short form."""

from __future__ import annotations

import os

import pytest

from faults.campaign import CAMPAIGNS
from faults.cuts import can_record
from faults.power import run


def test_power_cuts_cost_two_seconds_and_damage_nothing():
    """Of images that cuts could leave, each opens, has all that was durable, and goes on."""
    reason = can_record()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    _, short = CAMPAIGNS["power"]
    outcome = run(short, 0, lambda _done: None)
    assert outcome.tried == short
    assert outcome.passed, outcome
