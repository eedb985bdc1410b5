"""The campaign of `histories`, in short."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from faults.histories import Histories

TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
