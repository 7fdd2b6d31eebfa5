"""One PostgreSQL server for all tests of this package; every store gets a schema of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest
from lightning_store_postgres.testing import PostgresServer, find_fast_directory, find_server_binaries

_numbers = count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a database that the tests may fill."""
    given = os.environ.get("LIGHTNING_TEST_POSTGRES")
    if given:
        yield given
        return
    if find_server_binaries() is None:
        pytest.skip("no PostgreSQL server: install Debian's postgresql, or set LIGHTNING_TEST_POSTGRES=URL")
    with PostgresServer(directory=find_fast_directory()) as server:
        yield server.url


@pytest.fixture
def schema() -> str:
    """A name that no other test uses."""
    return f"test_{os.getpid()}_{next(_numbers)}"
