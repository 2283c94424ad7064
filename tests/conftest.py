"""One PostgreSQL for the test process, and as many empty databases in it as tests ask for; and what
long profiles say at the end."""

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import Any, cast

import asyncpg
import pytest

from settlement import database as db
from tests import described
from tests.passable import NewDatabase, passable_directory

pytest_plugins = ["tests.promises"]
_numbers = count(1)
described.watch()


@pytest.fixture(autouse=True)
def _as_described() -> Iterator[None]:
    """Whatever a test sends or is told is as the published documents say."""
    described.violations.clear()
    yield
    found = described.violations[:5]
    assert not found, "\n".join(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a profile recorded of itself: its seed, how much it did and how long it took."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, said in report.user_properties:
                if name == "profile":
                    terminalreporter.write_line(f"{report.nodeid}: {said}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[db.Server]:
    with passable_directory() as directory:
        server = asyncio.run(db.serve(directory, durable=False))
        yield server
        asyncio.run(server.stop())


@pytest.fixture
def new_database(postgres: db.Server) -> NewDatabase:
    """Creates an empty database and returns its URL."""

    async def create() -> str:
        name = f"test_{next(_numbers)}"
        connection = await cast("Any", asyncpg.connect)(postgres.url_of("postgres"))
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return postgres.url_of(name)

    return create


@pytest.fixture
async def database_url(new_database: NewDatabase) -> str:
    return await new_database()
