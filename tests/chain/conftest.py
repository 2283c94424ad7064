"""A world and a database for every test: opening a world takes a tenth of a second; and an anvil
for some."""

from collections.abc import AsyncIterator

import pytest

from settlement import database as db
from tests.chain.anvil import Anvil, find_anvil, running_anvil
from tests.chain.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = await World.open()
    yield world
    await world.chain.close()
    await world.node.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[db.Database]:
    database = await db.connect(database_url)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def anvil_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return find_anvil(tmp_path_factory.mktemp("anvil"))


@pytest.fixture
async def anvil(anvil_program: str) -> AsyncIterator[Anvil]:
    """Mines each transaction at once until told otherwise."""
    async with running_anvil(anvil_program) as anvil:
        yield anvil
