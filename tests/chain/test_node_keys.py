"""A real node's session keys and audit log outlive it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from compex_client import Rejected, Wallet, connect

from engine.clock import SystemClock
from engine.rejects import Reject
from gateway.audit import AUDIT_FILE, verify
from gateway.node import Node
from gateway.settings import (
    ChainSettings,
    DatabaseSettings,
    GatewaySettings,
    MarketSettings,
    Settings,
)
from settlement.chain import Funding
from tests.passable import passable_directory

OWNER_SECRET = b"\x11" * 32
OWNER, BOT, GONE = Wallet(OWNER_SECRET), Wallet(b"\x22" * 32), Wallet(b"\x33" * 32)


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


async def test_keys_and_the_audit_log_outlive_the_node(directory: Path, database_url: str) -> None:
    settings = Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=()),
        database=DatabaseSettings(url=database_url),
        chain=ChainSettings(embedded_rpc_port=-1),
    )
    node = await Node.open(directory, settings, SystemClock())
    try:
        await node.fund([Funding(OWNER_SECRET, 10**9, 0)])
        await node.turn()
        async with await connect(node.websocket_url, OWNER) as owner:
            for key in (BOT, GONE):
                assert (await owner.authorise(key.address)).level == "durable"
            assert (await owner.revoke(GONE.address)).count == 1
    finally:
        await node.close()
    first = verify(directory / AUDIT_FILE)
    assert first.lines == 4
    node = await Node.open(directory, settings, SystemClock())
    try:
        async with await connect(node.websocket_url, OWNER.address, key=BOT) as bot:
            assert bot.account == 1
            assert [key.key for key in await bot.keys()] == [BOT.address]
        with pytest.raises(Rejected) as caught:
            await connect(node.websocket_url, OWNER.address, key=GONE)
        assert caught.value.code == Reject.KEY_REVOKED
    finally:
        await node.close()
    assert verify(directory / AUDIT_FILE).lines == first.lines + 2
