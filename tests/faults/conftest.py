"""Campaigns change settings of the library and of the process: not for the tests after them."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from warmstart.backends import directory, lmdb, place


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    for module, name in ((directory, "_GROUP"), (lmdb, "_FLOOR"), (place, "_boot")):
        monkeypatch.setattr(module, name, getattr(module, name))
    with mock.patch.dict(os.environ):
        yield
