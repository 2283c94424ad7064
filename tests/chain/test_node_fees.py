"""What a node's settings say of fees is what trading costs, from its start on and not twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.clock import ScriptedClock
from engine.port import Rates
from gateway.node import Node
from gateway.settings import (
    ChainSettings,
    DatabaseSettings,
    FeeSettings,
    GatewaySettings,
    MarketSettings,
    Settings,
)
from tests.passable import passable_directory

START_NS = 1_795_219_200_000_000_000


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


async def started(directory: Path, url: str, *rates: Rates) -> tuple[int, list[Rates]]:
    """Open a node with these rates, tier by tier, and close it: (last sequence, rates then)."""
    settings = Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=()),
        fees=FeeSettings(*zip(*rates, strict=True)),
        database=DatabaseSettings(url=url),
        chain=ChainSettings(embedded_rpc_port=-1),
    )
    node = await Node.open(directory, settings, ScriptedClock(START_NS))
    try:
        found = [node.engine.rates(tier) for tier in range(3)]
        return node.engine.ready().last_sequence, found
    finally:
        await node.close()


async def test_rates_are_set_at_start_when_they_differ_and_are_kept(
    directory: Path, database_url: str
) -> None:
    free, first, second = Rates(0, 0), Rates(200, 500), Rates(100, 300)
    assert await started(directory, database_url, free) == (0, [free] * 3)
    assert await started(directory, database_url, first, second) == (2, [first, second, free])
    assert await started(directory, database_url, first, second) == (2, [first, second, free])
    dearer = Rates(200, 501)
    assert await started(directory, database_url, dearer) == (3, [dearer, second, free])
    assert await started(directory, database_url, free) == (4, [free, second, free])
