"""Servers that run as long as the tests do, and stores on every backend."""

from __future__ import annotations

import os

import pytest
from servers import fresh, postgres_binaries, postgres_server, redis_binary, redis_server

BACKENDS = ("memory", "lmdb", "directory", "redis", "postgres")


def missing(what):
    assert not os.environ.get("CI"), f"no {what} to test against"
    pytest.skip(f"no {what} is installed")


@pytest.fixture(scope="session")
def redis_url():
    if redis_binary() is None and "WARMSTART_TEST_REDIS" not in os.environ:
        missing("Redis or Valkey")
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url():
    if postgres_binaries() is None and "WARMSTART_TEST_POSTGRES" not in os.environ:
        missing("PostgreSQL")
    with postgres_server() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def anywhere(request, tmp_path):
    """Where a new store is, on each backend; it is forgotten afterwards."""
    kind = request.param
    if kind in {"redis", "postgres"}:
        from warmstart import Store

        address = fresh(request.getfixturevalue(f"{kind}_url"))
        yield address
        Store(address).backend.clear()
    else:
        yield {
            "memory": ":memory:",
            "lmdb": str(tmp_path / "store"),
            "directory": f"dir://{tmp_path}/store",
        }[kind]


@pytest.fixture(params=["redis", "postgres", "directory"])
def address(request, tmp_path):
    """The address of a new store that several machines may share; it is forgotten afterwards."""
    if request.param == "directory":
        yield f"dir://{tmp_path}/store"
        return
    from warmstart import Store

    address = fresh(request.getfixturevalue(f"{request.param}_url"))
    yield address
    Store(address).backend.clear()
