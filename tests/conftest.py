"""One PostgreSQL for the test process, and a database of its own for every test."""

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import Any, cast

import asyncpg
import pytest

from settlement import database as db

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[db.Server]:
    directory = tmp_path_factory.mktemp("pg")
    server = asyncio.run(db.serve(directory, durable=False))
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def database_url(postgres: db.Server) -> str:
    """The URL of an empty database."""
    name = f"test_{next(_numbers)}"
    connection = await cast("Any", asyncpg.connect)(postgres.url_of("postgres"))
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return postgres.url_of(name)
