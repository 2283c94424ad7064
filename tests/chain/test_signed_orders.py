"""Orders are signed behind their acks, by clients that do nothing for it, on a real node: which
fills may be settled then, and what becomes of who does not sign."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from compex_client import Amend, Leg, New, Rejected, Terms, Wallet, connect
from compex_client import messages as m
from compex_client.client import Client
from compex_client.orders import Order, order_hash, orders_digest, root_of, window_of
from compex_client.units import parse_price, parse_qty

from engine.catalog import load_catalog
from engine.clock import ScriptedClock, SystemClock
from engine.rejects import Reject
from gateway.node import Node
from gateway.settings import (
    ChainSettings,
    DatabaseSettings,
    GatewaySettings,
    MarketSettings,
    Settings,
    SettlementSettings,
)
from settlement import database as db
from settlement import orders
from settlement.abi import Interface
from settlement.chain import Funding
from settlement.products import settled
from tests.passable import passable_directory
from tests.settled import transact

BUYER, SELLER, BOT = (Wallet(bytes([n]) * 32) for n in (0x11, 0x22, 0x33))
SPOT = "nv.rtx4090-24g.x1|us-e|B|SPOT"
OTHER = "nv.rtx4090-24g.x1|us-w|B|SPOT"
SOON = datetime.now(UTC) + timedelta(days=2)
HOURS = [f"nv.rtx4090-24g.x1|us-e|B|H|{SOON:%Y-%m-%d}T{hour:02}" for hour in (3, 4)]
TICKER = load_catalog().ticker(load_catalog().parse(SPOT))
SLOWLY = Terms(every_s=600)  # signs when it is told to


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


def settings(database_url: str, within_s: int = 0) -> Settings:
    """Nothing is sealed for a day, so that what may be can be counted."""
    return Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=(SPOT, OTHER, *HOURS)),
        database=DatabaseSettings(url=database_url),
        chain=ChainSettings(embedded_rpc_port=-1),
        settlement=SettlementSettings(sign_within_seconds=within_s, batch_wait_seconds=86_400),
    )


class Market:
    """A node with a funded buyer and a seller of everything."""

    def __init__(self, node: Node, database_url: str) -> None:
        self.node = node
        self._database_url = database_url
        self._stack = AsyncExitStack()
        self.buyer: Client
        self.seller: Client

    async def open(self) -> None:
        for wallet, cash, bond in ((BUYER, 10**9, 0), (SELLER, 10**9, 10**9)):
            secret = bytes.fromhex(wallet.export_secret()[2:])
            await self.node.fund([Funding(secret, cash, bond)])
        await self.node.turn()
        slowly = SLOWLY._replace(now_ns=self.node.clock.now_ns)
        self.buyer = await self.join(BUYER, slowly)
        self.seller = await self.join(SELLER, slowly)
        for market in (SPOT, OTHER, *HOURS):
            await self.seller.declare_capacity(market, "1000")

    async def join(
        self, wallet: Wallet, signing: Terms | None, key: Wallet | None = None
    ) -> Client:
        client = await connect(self.node.websocket_url, wallet, key=key, signing=signing)
        return await self._stack.enter_async_context(client)

    async def sealable(self) -> int:
        """Fills that may be settled, once all is booked."""
        await self.node.turn()
        database = await db.connect_beside(self._database_url)
        try:
            sql = "SELECT count(*) FROM sealable_fills($1)"
            return await database.value(sql, self.node.clock.now_ns() // 10**9)
        finally:
            await database.close()

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def market(directory: Path, database_url: str) -> AsyncIterator[Market]:
    node = await Node.open(directory, settings(database_url), SystemClock())
    market = Market(node, database_url)
    try:
        await market.open()
        yield market
    finally:
        await market.close()
        await node.close()


async def trade(market: Market, qty: str = "2") -> None:
    await market.seller.place(SPOT, "sell", "1.5", qty)
    await market.buyer.place(SPOT, "buy", "1.6", qty)


async def test_both_sign_behind_their_acks_and_the_fill_may_be_settled(market: Market) -> None:
    await trade(market)
    assert [x.market for x in (await market.buyer.unsigned()).unsigned or []] == []
    assert await market.sealable() == 0
    [listed] = (await market.buyer.unsigned()).unsigned or []
    assert (listed.side, listed.price, listed.qty) == ("buy", "1.5000", "2"), "as it was filled"
    await market.buyer.signed()
    assert await market.sealable() == 0
    await market.seller.signed()
    assert await market.sealable() == 1
    for client in (market.buyer, market.seller):
        ack = await client.unsigned()
        assert (ack.unsigned, ack.last_number) == ([], 1)


async def test_it_happens_by_itself(market: Market) -> None:
    by_itself = Terms(every_s=0.01)
    buyer, seller = await market.join(BUYER, by_itself), await market.join(SELLER, by_itself)
    await seller.place(SPOT, "sell", "1.5", "2")
    await buyer.place(SPOT, "buy", "1.6", "2")
    for _ in range(500):
        if await market.sealable():
            return
        await asyncio.sleep(0.02)
    pytest.fail("nobody has signed")


async def test_a_session_key_signs_for_its_wallet(market: Market) -> None:
    await market.buyer.authorise(BOT.address)
    bot = await market.join(BUYER, SLOWLY, BOT)
    await market.seller.place(SPOT, "sell", "1.5", "2")
    await bot.place(SPOT, "buy", "1.6", "2")
    await bot.signed()
    await market.seller.signed()
    assert await market.sealable() == 1
    reader = Wallet(b"\x44" * 32)
    await market.buyer.authorise(reader.address, scopes=m.Scope.READ)
    with pytest.raises(Rejected) as caught:
        await market.buyer.sign_orders([_row(9, 9)], bytes(65), reader.address)
    assert caught.value.code == Reject.OUT_OF_SCOPE


async def test_what_its_owner_takes_back_on_chain_leaves_the_book(market: Market) -> None:
    node, buyer = market.node, market.buyer
    await buyer.authorise(BOT.address)
    bot = await market.join(BUYER, SLOWLY, BOT)
    first = await buyer.place(SPOT, "buy", "1.1", "2")
    await buyer.signed()
    by_key = await bot.place(SPOT, "buy", "1.2", "2")
    await bot.signed()
    second = await buyer.place(SPOT, "buy", "1.3", "2")
    await buyer.signed()

    async def tell(function: str, *arguments: object) -> None:
        secret = bytes.fromhex(BUYER.export_secret()[2:])
        assert node.embedded is not None
        data = Interface("VaultV2").encode(function, *arguments)
        await transact(node.chain, node.embedded, secret, node.chain.vault, data)
        await node.turn()

    async def open_ids() -> list[int]:
        return sorted(order.order_id for order in await buyer.open_orders(SPOT))

    async def left(*expected: int) -> None:
        for _ in range(300):
            if await open_ids() == [*expected]:
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"the book has {await open_ids()}")

    await left(first.order_id, by_key.order_id, second.order_id)
    await tell("revokeKey", BOT.address)
    await left(first.order_id, second.order_id)
    await tell("cancelBelow", (await buyer.unsigned()).last_number)
    await left(second.order_id)
    await bot.place(SPOT, "buy", "1.2", "2", tif="ioc")
    with pytest.raises(Rejected) as caught:
        await bot.signed()
    assert caught.value.code == Reject.KEY_NOT_AUTHORISED
    assert await open_ids() == [second.order_id]


def _row(order_id: int, number: int, market: str = TICKER) -> m.SignedOrder:
    return order_id, number, market, "buy", "1.6", "2", 500, m.EXPIRES_S_MAX


async def test_every_way_to_place_an_order_is_signed(market: Market) -> None:
    buyer, seller = market.buyer, market.seller
    await seller.quote(SPOT, asks=[("1.5", "3"), ("1.6", "4")])
    for hour in HOURS:
        await seller.place(hour, "sell", "2", "5")
    await seller.place(OTHER, "sell", "1.9", "5")
    await buyer.place(SPOT, "buy", "", "1", type="market", protection="0.1")
    bid = await buyer.place(SPOT, "buy", "1.4", "3")
    await buyer.amend(bid.order_id, price="1.5")  # trades
    await buyer.block(HOURS[0], 2, "5", "2.1")
    await buyer.exclusive([Leg(SPOT, "1.1", "1"), Leg(OTHER, "2", "1")])
    await buyer.basket([Leg(SPOT, "1.7", "1"), Leg(OTHER, "2", "1")])
    order = New(1, SPOT, "buy", "1.3", "1")
    replaced = await buyer.place(SPOT, "buy", "1.2", "1")
    await buyer.replace(order, old_order_id=replaced.order_id)
    await buyer.batch([New(1, SPOT, "buy", "1.25", "1"), Amend(1, bid.order_id, qty="0.5")])
    await market.node.turn()
    for client in (buyer, seller):
        await client.signed()
        await client.signed()
        assert (await client.unsigned()).unsigned == []
    assert await market.sealable() == 7


async def test_an_amended_order_is_signed_again_under_its_number_and_no_wider(
    market: Market,
) -> None:
    buyer = market.buyer
    bid = await buyer.place(SPOT, "buy", "1.2", "10")
    await buyer.signed()
    await buyer.amend(bid.order_id, qty="4")
    assert (await buyer.unsigned()).unsigned == [], "less is covered"
    await market.seller.place(SPOT, "sell", "1.2", "3")
    await buyer.amend(bid.order_id, price="1.3", qty="8")
    [listed] = (await buyer.unsigned()).unsigned or []
    assert (listed.price, listed.qty) == ("1.3000", "11")
    await buyer.signed()
    ack = await buyer.unsigned()
    assert (ack.unsigned, ack.last_number) == ([], 1)


async def test_what_nobody_here_asked_for_is_not_signed_unless_the_program_says_so(
    market: Market,
) -> None:
    await market.buyer.place(SPOT, "buy", "1.2", "10")
    another = await market.join(BUYER, SLOWLY)
    await another.signed()
    assert len((await another.unsigned()).unsigned or []) == 1
    assert await another.sign_all() == 1
    assert (await another.unsigned()).unsigned == []
    await market.buyer.signed()  # its number is taken by the other's: it takes another
    late = await market.buyer.place(SPOT, "buy", "1.1", "1")
    await market.buyer.signed()
    assert late.order_id and (await another.unsigned()).last_number == 2


async def test_a_program_that_has_forgotten_what_it_signed_signs_no_less(market: Market) -> None:
    bid = await market.buyer.place(SPOT, "buy", "1.3", "4")
    await market.buyer.signed()
    await market.buyer.amend(bid.order_id, price="1.2", qty="8")
    another = await market.join(BUYER, SLOWLY)
    [listed] = (await another.unsigned()).unsigned or []
    assert (listed.price, listed.qty, listed.number) == ("1.3000", "8", 1)
    assert await another.sign_all() == 1
    ack = await another.unsigned()
    assert (ack.unsigned, ack.last_number) == ([], 1)


async def test_what_does_not_fit_is_refused_with_its_number(market: Market) -> None:
    buyer, account = market.buyer, market.buyer.account
    bid = await buyer.place(SPOT, "buy", "1.6", "2")
    info = next(x for x in await buyer.markets() if x.market == TICKER)
    assert (info.series, info.window) == settled(load_catalog().parse(SPOT))

    def signed(row: m.SignedOrder) -> bytes:
        order = Order(account, row[3] == "buy", info.series, info.window, parse_price(row[4]),
                      parse_qty(row[5]), row[1], row[6], row[7])  # fmt: skip
        return BUYER.sign_digest(orders_digest(buyer.domain, [order]))

    async def code(row: m.SignedOrder, signature: bytes | None = None) -> int:
        with pytest.raises(Rejected) as caught:
            await buyer.sign_orders([row], signed(row) if signature is None else signature)
        return caught.value.code

    good = _row(bid.order_id, 1)
    assert await code(good, bytes(65)) == Reject.BAD_SIGNATURE
    assert await code(good, SELLER.sign_digest(bytes(32))) == Reject.WRONG_WALLET
    assert await code((*good[:3], "sell", *good[4:])) == Reject.INVALID_FIELD
    assert await code(_row(bid.order_id, 1, "H100SXM8IBUSEB")) == Reject.UNKNOWN_INSTRUMENT
    assert (await buyer.sign_orders([good], signed(good))).last_number == 1
    assert (await buyer.sign_orders([good], signed(good))).count == 1, "the same again is fine"
    assert await code(_row(bid.order_id, 2)) == Reject.CLIENT_ID_REUSED
    assert await code(_row(bid.order_id + 1, 1)) == Reject.CLIENT_ID_REUSED
    assert await code((*good[:4], "1.5", "3", *good[6:])) == Reject.INVALID_TERMS


def test_client_and_vault_hash_the_same_orders() -> None:
    many = [Order(7, bool(i % 2), 3, 2**24 - 1, 20_000 + i, 5 + i, i, 500, 2**32 - 1)
            for i in range(1, 70)]  # fmt: skip
    leaves = orders.order_hashes([orders.Order(*order) for order in many])
    assert [order_hash(order) for order in many] == leaves
    for count in range(1, 70):
        assert root_of(leaves[:count]) == orders.tree(leaves[:count])[-1][0]


@pytest.mark.parametrize(
    "window",
    ["SPOT", "H|2026-12-01T14", "D|2027-02-28", "W|2026-W53", "M|2027-02", "M|2028-02", "M|2027-04",
     "M|2027-12"],
)  # fmt: skip
def test_a_client_reads_the_hours_from_the_symbol(window: str) -> None:
    symbol = f"nv.h100-sxm-80g.x8.ib|us-e|B|{window}"
    assert window_of(symbol) == settled(load_catalog().parse(symbol)).window


async def test_who_does_not_sign_places_no_more_and_what_rests_is_cancelled(
    directory: Path, database_url: str
) -> None:
    node = await Node.open(directory, settings(database_url, within_s=1), SystemClock())
    market = Market(node, database_url)
    try:
        await market.open()
        silent, updates = await market.join(BUYER, None), await market.buyer.order_updates()
        bid = await silent.place(SPOT, "buy", "1.2", "1")
        codes: list[int] = []
        while not codes:
            try:
                await silent.place(OTHER, "buy", "1.2", "1", tif="ioc")
            except Rejected as rejected:
                codes.append(rejected.code)
            await asyncio.sleep(0.1)
        assert codes == [Reject.ORDERS_UNSIGNED]
        async for update in updates:
            if update.order_id == bid.order_id and update.state == "cancelled":
                break
        # Nobody is bound by anything any more.
        await market.buyer.place(SPOT, "buy", "1.2", "1")
        await market.buyer.signed()
        await asyncio.sleep(2.5)
        assert len(await silent.open_orders(SPOT)) == 1, "what is signed rests"
        await silent.place(SPOT, "buy", "1.1", "1")
    finally:
        await market.close()
        await node.close()


async def test_a_client_that_is_slow_to_sign_signs_when_it_is_told_to(
    directory: Path, database_url: str
) -> None:
    node = await Node.open(directory, settings(database_url, within_s=1), SystemClock())
    market = Market(node, database_url)
    try:
        await market.open()
        buyer = market.buyer
        await buyer.place(SPOT, "buy", "1.2", "1")
        await asyncio.sleep(1.3)
        await buyer.place(OTHER, "buy", "1.2", "1")
        assert [order.market for order in (await buyer.unsigned()).unsigned or ()] == [
            (await buyer.open_orders(OTHER))[0].market
        ]
    finally:
        await market.close()
        await node.close()


async def test_what_somebody_does_not_sign_is_undone_and_the_account_suspended(
    directory: Path, database_url: str
) -> None:
    clock = ScriptedClock(time.time_ns())
    hour_s = 3_600
    node = await Node.open(directory, settings(database_url, hour_s), clock)
    market = Market(node, database_url)
    try:
        await market.open()
        buyer, seller = market.buyer, market.seller
        before = [await client.balances() for client in (buyer, seller)]
        await seller.place(HOURS[0], "sell", "2", "5")
        await buyer.place(HOURS[0], "buy", "2", "5")
        await buyer.place(HOURS[0], "sell", "3", "2", resale=True)  # stands in the way of undoing
        await trade(market)
        await seller.signed()
        clock.advance_to(clock.now_ns() + 6 * hour_s * 10**9)
        assert not (await node.turn()).exits, "nobody could sign before this node listened"
        assert (await buyer.balances()).pending == "13"
        clock.advance_to(clock.now_ns() + 10**9)
        await node.turn()
        assert [await client.balances() for client in (buyer, seller)] == before
        assert await buyer.open_orders(HOURS[0]) == [], "its account was closed for a moment"
        report = await node.settlement.reconcile()
        assert report.reconciled and not report.gaps
        database = await db.connect_beside(database_url)
        blamed = await database.rows("SELECT DISTINCT account FROM withheld")
        await database.close()
        assert [row["account"] for row in blamed] == [buyer.account]
        codes: list[int] = []
        for _ in range(100):
            try:
                await buyer.place(SPOT, "buy", "0.1", "1", tif="ioc")
            except Rejected as rejected:
                codes.append(rejected.code)
                break
            await asyncio.sleep(0.1)
        assert codes == [Reject.ACCOUNT_SUSPENDED], "it goes on trading"
        with pytest.raises(Rejected, match="1022 ACCOUNT_SUSPENDED"):
            await buyer.withdraw("1")  # and trade on as somebody else
        await seller.place(SPOT, "sell", "1.5", "1")
    finally:
        await market.close()
        await node.close()
