"""Fuzzing: the corpus without Atheris, and the short form with it."""

from __future__ import annotations

import os

import pytest

from faults.campaign import CAMPAIGNS
from faults.fuzz import CORPUS, TARGETS, can_fuzz, run

INPUTS = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_no_input_of_the_corpus_does_harm(path):
    """What once reached a branch of its own is refused, or read, and nothing else."""
    TARGETS[path.parent.name](path.read_bytes())


def test_fuzzing_finds_nothing():
    """Some seconds of new inputs break nothing."""
    if can_fuzz() and not os.environ.get("CI"):
        pytest.skip(can_fuzz())
    _, short = CAMPAIGNS["fuzz"]
    outcome = run(short, 0, lambda _done: None)
    assert outcome.tried
    assert outcome.passed, outcome
