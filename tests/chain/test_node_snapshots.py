"""A node has snapshots made beside it, and goes on from one with its ledger and its vault."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from engine import snapshot
from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.records import Command, CommandKind, Side
from engine.replay import verify
from gateway.node import Funding, Node
from gateway.settings import (
    ChainSettings,
    DatabaseSettings,
    GatewaySettings,
    JournalSettings,
    MarketSettings,
    Settings,
    SettlementSettings,
)
from settlement.chain import address_of
from settlement.orders import separator
from settlement.signatures import Signatures
from tests.passable import passable_directory
from tests.signed import Placed, sign_all

SYMBOL: Final = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
DOLLAR: Final = 1_000_000  # µUSDC
PRICE_TICKS: Final = 25_000
LOTS: Final = 200
WAIT_SECONDS_MAX: Final = 120
KEYS: Final = [number.to_bytes(32, "big") for number in (101, 102)]


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


def settings(url: str, snapshot_commands: int) -> Settings:
    return Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=(SYMBOL,)),
        journal=JournalSettings(snapshot_commands=snapshot_commands),
        database=DatabaseSettings(url=url),
        chain=ChainSettings(embedded_rpc_port=-1),
        settlement=SettlementSettings(turn_seconds=0.1, batch_wait_seconds=1),
    )


async def trade(node: Node, times: int) -> None:
    buyer, seller = (node.engine.account_of(address_of(key)) for key in KEYS)
    capacity = Command(
        kind=CommandKind.DECLARE_CAPACITY, account=seller, instrument=1, qty_lots=10**6
    )
    node.engine.submit(capacity)
    order = Command(kind=CommandKind.NEW_ORDER, instrument=1)
    order = order._replace(price_ticks=PRICE_TICKS, qty_lots=LOTS)
    for _ in range(times):
        node.engine.submit(order._replace(account=seller, side=Side.SELL))
        node.engine.submit(order._replace(account=buyer, side=Side.BUY))
        await node.engine.settled()


async def sign(node: Node, url: str) -> None:
    """What was filled and is not signed for yet."""
    keys = {node.engine.account_of(address_of(key)): key for key in KEYS}
    domain = separator(node.chain.chain_id, node.chain.vault)
    kept = Signatures(url, domain, node.engine.owner_of, SystemClock().now_ns)
    placed = [
        Placed(x.account, x.order_id, x.is_buy, x.instrument, load_catalog().parse(SYMBOL))
        for x in await kept.unsigned(0)
    ]
    await kept.close()
    await sign_all(url, domain, keys, placed)


@pytest.mark.timeout(300)
async def test_a_node_goes_on_from_a_snapshot_that_was_made_beside_it(
    directory: Path, database_url: str
) -> None:
    journal = directory / "journal"
    node = await Node.open(directory, settings(database_url, 30), SystemClock())
    await node.fund([Funding(key, 10_000 * DOLLAR, 10_000 * DOLLAR) for key in KEYS])
    await node.turn()
    await trade(node, 10)
    await node.turn()  # the ledger has booked what the snapshot will hold
    await trade(node, 10)
    running = asyncio.create_task(node.run())
    for _ in range(WAIT_SECONDS_MAX * 20):
        if snapshot.paths(journal):
            break
        await asyncio.sleep(0.05)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    [taken] = snapshot.paths(journal)
    before = node.engine.state_hash(), node.index.save(), node.engine.markets()
    await node.close()

    assert verify(journal).snapshots == 1
    node = await Node.open(directory, settings(database_url, 0), SystemClock())
    try:
        assert node.engine.ready().started_from == snapshot.sequence_of(taken)
        assert (node.engine.state_hash(), node.index.save(), node.engine.markets()) == before
        await trade(node, 5)
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while (await node.settlement.summary()).fills_settled < 25:
                await node.turn()
                await sign(node, database_url)
                await asyncio.sleep(0.1)
        report = await node.settlement.reconcile()
        assert not report.gaps
    finally:
        await node.close()
