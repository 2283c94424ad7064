"""Who has to sign its orders, as sessions hear of it; settlement is played here. What it takes in
and covers is tested in `tests/chain`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from compex_client import messages as m

from engine.rejects import Reject
from gateway import signing
from gateway.signing import Authorised, Body, Handed, Outcome, Unsigned
from tests.exchange import TICKER, Conversation, Exchange, running_exchange, wallet

BUYER, OTHER = 1, 2
WITHIN_MS = 1_000
SIGNATURE = "0x" + "00" * 65


class Kept:
    """Settlement takes every signature, while it `answers`."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()

    def settled(self, product: int) -> tuple[int, int]:
        return product, 0

    async def hand_in(
        self, account: int, handed: Sequence[Handed], signature: bytes, key: Authorised | None
    ) -> Outcome:
        await self.answers.wait()
        return Outcome(None, -1, len(handed))

    async def bodies(self, order_ids: Sequence[int]) -> Sequence[Body]:
        return []

    async def unsigned(self, account: int) -> Sequence[Unsigned]:
        if account:
            await self.answers.wait()
        return []

    async def last_number(self, account: int) -> int:
        return 0

    async def suspended(self) -> Sequence[int]:
        return []

    async def taken_back(self) -> Sequence[tuple[int, int]]:
        return []


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def exchange(tmp_path: Path, kept: Kept) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path, signatures=kept, sign_within_ms=WITHIN_MS) as running:
        await running.list_market()
        for account in (BUYER, OTHER):
            await running.open_account(account, cash_usdc6=10**9)
        yield running


def trader(exchange: Exchange, account: int = BUYER) -> Conversation:
    return exchange.converse(wallet(100 + account))


async def replies(conversation: Conversation, count: int = 1) -> list[m.ServerMessage]:
    heard: list[m.ServerMessage] = []
    async with asyncio.timeout(10):
        while len(heard) < count:
            await asyncio.sleep(0.002)
            heard += conversation.heard()
    assert len(heard) == count
    return heard


async def test_somebody_elses_questions_keep_nobody_from_signing(
    exchange: Exchange, kept: Kept
) -> None:
    buyer, other = trader(exchange), trader(exchange, OTHER)
    buyer.say(m.New(2, TICKER, "buy", "1", "1"))
    [ack] = await replies(buyer)
    assert isinstance(ack, m.Ack)
    kept.answers.clear()
    for number in range(300):
        other.session.receive(b'{"t":"query","id":%d,"what":"unsigned"}' % (number + 2))
    refused = [x for x in other.heard() if isinstance(x, m.Reject)]
    assert {(x.code, x.retry_ms) for x in refused} == {(Reject.BUSY, 50)}
    assert len(refused) == 300 - signing.REQUESTS_MAX
    row = (ack.order_id, 1, TICKER, "buy", "1", "1", 500, 2**31)
    assert buyer.say(m.SignOrders(3, [row], SIGNATURE)) == []
    kept.answers.set()
    [signed] = await replies(buyer)
    assert isinstance(signed, m.Ack) and signed.count == 1
    await replies(other, signing.REQUESTS_MAX)
    assert other.say(m.Query(999, "unsigned")) == []
    await replies(other)
