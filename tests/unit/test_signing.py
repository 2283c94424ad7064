"""Who has to sign its orders, as sessions hear of it; settlement is played here. What it takes in
and covers is tested in `tests/chain`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from compex_client import Rejected, Terms, connect
from compex_client import messages as m
from compex_client.client import Client
from compex_client.messages import Scope

from engine.rejects import Reject
from gateway import signing
from gateway.signing import Authorised, Body, Handed, Outcome, Unsigned
from gateway.wire import BadRequest
from tests.exchange import (
    TICKER,
    Conversation,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)
from tests.unit.test_absence import Now

BUYER, OTHER = 1, 2
WITHIN_MS = 1_000
SIGNATURE = "0x" + "00" * 65


class Kept:
    """Settlement takes every signature, while it `answers`."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.signed: list[int] = []  # order ids
        self.out: list[int] = []  # accounts

    def settled(self, product: int) -> tuple[int, int]:
        return 1, 0

    async def hand_in(
        self, account: int, handed: Sequence[Handed], signature: bytes, key: Authorised | None
    ) -> Outcome:
        await self.answers.wait()
        self.signed += [x.order_id for x in handed]
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
        return self.out

    async def taken_back(self) -> Sequence[tuple[int, int]]:
        return []


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def exchange(tmp_path: Path, kept: Kept, now: Now) -> AsyncGenerator[Exchange]:
    async with running_exchange(
        tmp_path, now_ns=now, signatures=kept, sign_within_ms=WITHIN_MS
    ) as running:
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


def signed_row(ack: m.Ack) -> m.SignedOrder:
    return (ack.order_id, 1, TICKER, "buy", "1", "1", 500, 2**31)


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
    assert buyer.say(m.SignOrders(3, [signed_row(ack)], SIGNATURE)) == []
    kept.answers.set()
    [signed] = await replies(buyer)
    assert isinstance(signed, m.Ack) and signed.count == 1
    await replies(other, signing.REQUESTS_MAX)
    assert other.say(m.Query(999, "unsigned")) == []
    await replies(other)


async def connect_by_key(exchange: Exchange, url: str, scopes: Scope) -> Client:
    """As a sub-account's master does, or whoever watches it."""
    key, owner = wallet(10 + scopes), wallet(100 + BUYER)
    async with await connect(url, owner) as client:
        await client.authorise(key.address, scopes=scopes)
    terms = Terms(every_s=0.01, now_ns=exchange.clock.now_ns)
    return await connect(url, owner.address, key=key, signing=terms)


@pytest.mark.parametrize("scopes", [Scope.TRADE, Scope.TRADE | Scope.READ], ids=str)
async def test_who_may_only_trade_for_another_signs_what_it_trades(
    exchange: Exchange, kept: Kept, scopes: Scope
) -> None:
    async with (
        running_server(exchange) as (_, url),
        await connect_by_key(exchange, url, scopes) as client,
    ):
        ack = await client.place(TICKER, "buy", "1", "1")
        await client.signed()
    assert kept.signed == [ack.order_id]


async def test_who_may_only_read_sees_what_is_unsigned(exchange: Exchange) -> None:
    buyer = trader(exchange)
    buyer.say(m.New(2, TICKER, "buy", "1", "1"))
    [ack] = await replies(buyer)
    async with running_server(exchange) as (_, url):
        async with await connect_by_key(exchange, url, Scope.READ) as client:
            listed = (await client.unsigned()).unsigned or []
        async with await connect_by_key(exchange, url, Scope.WITHDRAW) as client:
            with pytest.raises(Rejected) as caught:
                await client.unsigned()
    assert isinstance(ack, m.Ack) and [x.order_id for x in listed] == [ack.order_id]
    assert caught.value.code == Reject.OUT_OF_SCOPE


async def test_who_is_suspended_is_told_so_and_may_still_cancel(
    exchange: Exchange, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "TICK_SECONDS", 0.001)
    buyer = trader(exchange)
    buyer.say(m.New(2, TICKER, "buy", "1", "1", 77))
    await replies(buyer)
    kept.out = [BUYER]
    codes: list[int] = []
    async with asyncio.timeout(10):
        while Reject.ACCOUNT_SUSPENDED not in codes:
            await asyncio.sleep(0.01)
            codes += [x.code for x in buyer.say(m.Withdraw(3, "1")) if isinstance(x, m.Reject)]
    assert codes == [Reject.ACCOUNT_SUSPENDED]
    await exchange.port.settled()
    buyer.heard()
    [refused] = buyer.say(m.New(4, TICKER, "buy", "1", "1"))
    assert isinstance(refused, m.Reject) and refused.code == Reject.ACCOUNT_SUSPENDED
    buyer.say(m.Cancel(5, client_id=77))
    [ack] = await replies(buyer)
    assert isinstance(ack, m.Ack)
    other = trader(exchange, OTHER)
    other.say(m.New(2, TICKER, "buy", "1", "1"))
    [ack] = await replies(other)
    assert isinstance(ack, m.Ack)


@pytest.mark.parametrize("code", [Reject.ORDERS_UNSIGNED, Reject.BAD_SIGNATURE])
async def test_a_client_that_is_to_sign_first_does_so_and_asks_again(
    exchange: Exchange,
    kept: Kept,
    now: Now,
    monkeypatch: pytest.MonkeyPatch,
    code: Reject,
) -> None:
    """Whether it is told so by this build's number or by the one of those before."""
    objection = signing.Signing.objection

    def said(desk: signing.Signing, account: int, kind: int) -> BadRequest | None:
        return BadRequest(code) if objection(desk, account, kind) is not None else None

    monkeypatch.setattr(signing.Signing, "objection", said)
    terms = Terms(every_s=600, now_ns=exchange.clock.now_ns)
    async with (
        running_server(exchange) as (_, url),
        await connect(url, wallet(100 + BUYER), signing=terms) as client,
    ):
        first = await client.place(TICKER, "buy", "1", "1")
        now.forward(WITHIN_MS + 1)
        assert (await client.place(TICKER, "buy", "1", "1")).order_id
        assert kept.signed == [first.order_id]


async def test_a_replacement_that_has_to_wait_for_signatures_cancels_nothing(
    exchange: Exchange, now: Now
) -> None:
    buyer = trader(exchange)
    buyer.say(m.New(2, TICKER, "buy", "1", "1", 77))
    [ack] = await replies(buyer)
    assert isinstance(ack, m.Ack)
    now.forward(WITHIN_MS + 1)
    replace = m.Replace(3, TICKER, "buy", "2", "1", 78, old_order_id=ack.order_id)
    for request in (replace, m.Batch(4, [replace])):
        [refused] = buyer.say(request)
        if isinstance(refused, m.BatchAck):
            [refused] = refused.results
        assert isinstance(refused, m.Reject) and refused.code == Reject.ORDERS_UNSIGNED
    assert len(exchange.desk.feed.open_orders(BUYER)) == 1
    buyer.say(m.SignOrders(5, [signed_row(ack)], SIGNATURE))
    await replies(buyer)
    buyer.say(replace)
    [replaced] = await replies(buyer)
    assert isinstance(replaced, m.ReplaceAck) and isinstance(replaced.order, m.Ack)
    now.forward(WITHIN_MS + 1)
    [again] = buyer.say(replace)  # it was accepted once: that is only told again
    assert isinstance(again, m.ReplaceAck) and isinstance(again.order, m.Ack) and again.order.dup


async def test_what_settlement_was_asked_is_answered_before_the_end(
    exchange: Exchange, kept: Kept
) -> None:
    buyer = trader(exchange)
    async with running_server(exchange) as (server, _):
        kept.answers.clear()
        buyer.say(m.Query(2, "unsigned"))
        ending = asyncio.create_task(server.stop())
        await asyncio.sleep(0.1)
        assert not ending.done() and buyer.heard() == []
        kept.answers.set()
        await ending
    [ack] = buyer.heard()
    assert isinstance(ack, m.Ack) and ack.unsigned == []
