"""A world for every test: opening one takes a tenth of a second."""

from collections.abc import AsyncIterator

import pytest

from tests.chain.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = await World.open()
    yield world
    await world.chain.close()
    await world.node.close()
