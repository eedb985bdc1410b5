"""Full disks, the short form."""

from __future__ import annotations

import os

import pytest

from faults.campaign import CAMPAIGNS
from faults.full import can_mount, run


def test_a_full_disk_harms_no_fit_and_no_record():
    """To the last byte: fits end as plain scipy's do, what was written stays, nothing dies."""
    if not can_mount() and not os.environ.get("CI"):
        pytest.skip("mounting is not permitted here")
    _, short = CAMPAIGNS["full"]
    outcome = run(short, 0, lambda _done: None)
    assert outcome.tried == short
    assert outcome.passed, outcome
