"""A connection's conversation with the real engine, without a socket."""

import asyncio
import re
import shutil
import tomllib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from compex_client import messages as m
from compex_client.wallet import keccak256, login_digest

from engine.records import FEE_TIERS, PARTS_MAX, Command, CommandKind, Purse
from engine.rejects import WORDS, Reject
from gateway import session, translate
from gateway.build import NUMBERING, build_name
from gateway.limits import DEFAULT_LIMITS, NS_PER_MS, Outbox, TokenBucket
from gateway.wire import JSON, MSGPACK, Codec
from tests.disks import HeldDisk
from tests.exchange import (
    ADMINISTRATOR,
    DOMAIN,
    SYMBOL,
    TICKER,
    Conversation,
    Exchange,
    running_exchange,
    wallet,
)

ROOT = Path(__file__).parents[2]
SELLER, BUYER = 1, 2


@pytest.fixture
def disk() -> HeldDisk:
    return HeldDisk()


@pytest.fixture(params=[JSON, MSGPACK], ids=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


@pytest.fixture
async def exchange(tmp_path: Path, disk: HeldDisk, codec: Codec) -> AsyncGenerator[Exchange]:
    """One market, a seller with bond and capacity, a buyer with 1,000 USDC; all who converse with
    it do so in the same codec."""
    async with running_exchange(tmp_path, disk=disk) as running:
        running.codec = codec
        instrument = await running.list_market()
        await running.open_account(SELLER, bond_usdc6=10**9)
        await running.open_account(BUYER, cash_usdc6=10**9)
        await running.declare(SELLER, instrument, 100_000)
        yield running


def trader(exchange: Exchange, account: int) -> Conversation:
    return exchange.converse(wallet(100 + account))


async def ask(
    exchange: Exchange, conversation: Conversation, request: m.ClientMessage
) -> m.ServerMessage:
    """The one reply to a request that the engine answers."""
    assert conversation.say(request) == []
    await exchange.port.settled()
    [reply] = conversation.heard()
    return reply


async def ask_among(
    exchange: Exchange, conversation: Conversation, request: m.ClientMessage
) -> m.ServerMessage:
    """As `ask`, of one who hears its account's stream as well."""
    conversation.heard()
    assert conversation.say(request) == []
    await exchange.port.settled()
    [reply] = [x for x in conversation.heard() if isinstance(x, m.Ack | m.Reject)]
    return reply


def refused(replies: list[m.ServerMessage] | m.ServerMessage) -> m.Reject:
    [reply] = replies if isinstance(replies, list) else [replies]
    assert isinstance(reply, m.Reject), reply
    assert reply.code == Reject[reply.reason].value and reply.message
    return reply


def acked(replies: list[m.ServerMessage] | m.ServerMessage) -> m.Ack:
    [reply] = replies if isinstance(replies, list) else [replies]
    assert isinstance(reply, m.Ack), reply
    return reply


def buy(number: int, price: str = "2.4150", qty: str = "4", **more: Any) -> m.New:
    return m.New(number, TICKER, "buy", price, qty, **more)


def market(number: int, side: m.Side = "buy", qty: str = "4", **more: Any) -> m.New:
    more = {"tif": "ioc", "protection": "0.05", **more}
    return m.New(number, TICKER, side, qty=qty, type="market", **more)


def sell(number: int, price: str = "2.4150", qty: str = "4", **more: Any) -> m.New:
    return m.New(number, TICKER, "sell", price, qty, **more)


# --- login -------------------------------------------------------------------------------------
async def test_hello_tells_the_limits_the_units_and_what_to_sign(exchange: Exchange) -> None:
    hello = exchange.converse().hello
    assert hello.limits == DEFAULT_LIMITS
    assert (hello.price_tick, hello.qty_lot, hello.version) == ("0.0001", "0.01", 1)
    assert (hello.chain_id, hello.vault.lower()) == (31337, "0x" + "c0" * 20)
    assert len(bytes.fromhex(hello.nonce[2:])) == 32
    assert exchange.converse().hello.nonce != hello.nonce


async def test_hello_names_a_build_that_every_change_of_the_numbering_renames(
    exchange: Exchange, tmp_path: Path
) -> None:
    build = exchange.converse().hello.build
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert re.fullmatch(re.escape(project["version"]) + r"\+[0-9a-f]{16}", build)
    for package in ("engine", "gateway"):
        (tmp_path / package).mkdir()
        for path in (ROOT / package).glob("*.py"):
            shutil.copy(path, tmp_path / package)
    assert build_name(tmp_path) == build
    names = {build}
    changed = ["engine/trade.py", *(f"gateway/{name}" for name in NUMBERING)]
    for name in changed:
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        names.add(build_name(tmp_path))
    assert len(names) == 1 + len(changed)


async def test_a_login_names_the_account_of_the_wallet(exchange: Exchange) -> None:
    ack = exchange.converse().login(wallet(100 + BUYER))
    assert (ack.account, ack.wallet) == (BUYER, wallet(100 + BUYER).address)


async def test_a_wallet_may_log_in_before_its_first_deposit(exchange: Exchange) -> None:
    early = exchange.converse(wallet(100 + 3))
    assert refused(early.say(buy(2))).code == Reject.NO_ACCOUNT
    await exchange.open_account(3, cash_usdc6=10**9)
    assert acked(await ask(exchange, early, buy(3))).order_id


def login_request(
    conversation: Conversation, signer: int, claimed: int, nonce: str | None = None
) -> m.Login:
    nonce = nonce or conversation.hello.nonce
    digest = login_digest(
        DOMAIN, wallet(claimed).address_bytes, bytes.fromhex(nonce.removeprefix("0x"))
    )
    signature = wallet(signer).sign_digest(digest).hex()
    return m.Login(9, wallet(claimed).address, nonce, signature)


async def test_a_wrong_signature_is_answered_with_the_recovered_wallet_and_the_digest(
    exchange: Exchange,
) -> None:
    conversation = exchange.converse()
    reject = refused(conversation.say(login_request(conversation, signer=7, claimed=8)))
    assert (reject.id, reject.code, reject.field) == (9, Reject.WRONG_WALLET, "signature")
    assert reject.recovered == wallet(7).address
    nonce = bytes.fromhex(conversation.hello.nonce[2:])
    assert reject.digest == "0x" + login_digest(DOMAIN, wallet(8).address_bytes, nonce).hex()
    assert refused(conversation.say(buy(10))).code == Reject.NOT_LOGGED_IN


@pytest.mark.parametrize("signature", ["", "0x", "00" * 65, "ff" * 64 + "1b", "zz" * 65, "é" * 65])
async def test_what_is_no_signature_is_refused_with_the_digest(
    exchange: Exchange, signature: str
) -> None:
    conversation = exchange.converse()
    request = m.Login(1, wallet(8).address, conversation.hello.nonce, signature)
    reject = refused(conversation.say(request))
    assert reject.code == Reject.BAD_SIGNATURE and reject.digest and not reject.recovered


async def test_a_replayed_nonce_is_refused(exchange: Exchange) -> None:
    first, second = exchange.converse(), exchange.converse()
    request = login_request(first, signer=7, claimed=7)
    acked(first.say(request))
    assert refused(second.say(request)).code == Reject.NONCE_REPLAYED
    assert refused(first.say(request)).code == Reject.ALREADY_LOGGED_IN


async def test_a_refused_login_uses_up_its_nonce_and_gives_the_next(exchange: Exchange) -> None:
    conversation = exchange.converse()
    reject = refused(conversation.say(login_request(conversation, signer=7, claimed=8)))
    stale = refused(conversation.say(login_request(conversation, signer=8, claimed=8)))
    assert stale.code == Reject.NONCE_REPLAYED
    assert stale.nonce == reject.nonce != conversation.hello.nonce
    fresh = login_request(conversation, signer=8, claimed=8, nonce=reject.nonce)
    assert acked(conversation.say(fresh)).wallet == wallet(8).address


@pytest.mark.parametrize("field", ["wallet", "nonce"])
async def test_a_login_field_that_is_not_hex_is_named(exchange: Exchange, field: str) -> None:
    conversation = exchange.converse()
    request = login_request(conversation, signer=7, claimed=7)
    setattr(request, field, "0x123")
    reject = refused(conversation.say(request))
    assert (reject.code, reject.field) == (Reject.INVALID_FIELD, field)


@pytest.mark.parametrize(
    "request_",
    [buy(5), m.Cancel(5, 1), m.Amend(5, 1, qty="1"), m.CancelAll(5),
     m.Capacity(5, TICKER, "1"), m.Withdraw(5, "1"), m.Query(5, "orders"),
     m.Query(5, "balances"), m.Subscribe(5, "account")],
    ids=lambda r: type(r).__name__,
)  # fmt: skip
async def test_nothing_of_an_account_is_done_without_a_login(
    exchange: Exchange, request_: m.ClientMessage
) -> None:
    assert refused(exchange.converse().say(request_)).code == Reject.NOT_LOGGED_IN


# --- orders ------------------------------------------------------------------------------------
async def test_an_order_is_acked_with_its_number(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    ack = acked(await ask(exchange, buyer, buy(4, client_id=77)))
    assert (ack.id, ack.client_id, ack.market, ack.dup) == (4, 77, TICKER, False)
    assert ack.order_id and ack.sequence and ack.time_us


async def test_the_long_symbol_names_the_same_market(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    request = m.New(4, SYMBOL, "buy", "1", "1")
    assert acked(await ask(exchange, buyer, request)).market == TICKER


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (buy(3, price="0"), 2001),
        (buy(3, price="-1"), 2001),
        (buy(3, price="1677.7216"), 2001),
        (buy(3, price="1.00001"), 2002),
        (buy(3, price="one"), 1003),
        (buy(3, qty="0"), 2003),
        (buy(3, qty="-1"), 2003),
        (buy(3, qty="10000000.01"), 2003),
        (buy(3, qty="0.001"), 2004),
        (m.New(3, "NOSUCH", "buy", "1", "1"), 4001),
        (m.New(3, "nv.h100-sxm-80g.x8.ib|us-e|A|SPOT", "buy", "1", "1"), 4001),
        (m.CancelAll(3, "NOSUCH"), 4001),
        (m.Capacity(3, "NOSUCH", "1"), 4001),
        (m.Capacity(3, TICKER, "-1"), 2003),
        (m.Withdraw(3, "0"), 3005),
        (m.Withdraw(3, "-1"), 3005),
        (m.Withdraw(3, "0.0000001"), 1003),
        (m.Cancel(3), 1003),
        (m.Cancel(3, 1, 2), 1003),
        (m.Cancel(3, client_id=99), 2006),
        (buy(3, type="market", tif="ioc", protection="0.05"), 1003),
        (buy(3, price="", type="market", tif="ioc"), 1003),
        (buy(3, protection="0.05"), 1003),
        (buy(3, min_qty="-1"), 2003),
        (buy(3, display_qty="0.001"), 2004),
        (m.Amend(3, price="1"), 1003),
        (m.Amend(3, 1, 2, price="1"), 1003),
        (m.Amend(3, 1), 1003),
        (m.Amend(3, client_id=99, price="1"), 2006),
        (m.CancelAll(3, "NOSUCH", "buy"), 4001),
        (m.Query(3, "order"), 1003),
        (m.Query(3, "order", order_id=99), 2006),
        (m.Subscribe(3, "gossip"), 1013),
        (m.Subscribe(3, "book", "NOSUCH"), 4001),
        (m.Subscribe(3, "book"), 4001),
        (m.Market(3, "halt", TICKER), 1010),
    ],
    ids=lambda x: str(x) if isinstance(x, int) else type(x).__name__,
)
async def test_what_the_gateway_refuses_changes_nothing(
    exchange: Exchange, request_: m.ClientMessage, code: int
) -> None:
    before = exchange.port.state_hash(), exchange.port.ready().last_sequence
    buyer = trader(exchange, BUYER)
    reject = refused(buyer.say(request_))
    assert (reject.id, reject.code) == (3, code)
    assert (exchange.port.state_hash(), exchange.port.ready().last_sequence) == before


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (buy(3, qty="1000"), 3002),
        (sell(3), 3004),
        (m.Withdraw(3, "1000.000001"), 3002),
        (m.Cancel(3, 99), 2006),
        (buy(3, tif="ioc", post_only=True), 2010),
        (buy(3, tif="fok"), 2008),
        (market(3, tif="gtc"), 2010),
        (market(3, tif="ioc", post_only=True), 2010),
        (market(3), 2013),
        (buy(3, tif="gtt"), 2012),
        (buy(3, tif="gtt", expires_s=1), 2012),
        (buy(3, expires_s=2_000_000_000), 2012),
        (buy(3, min_qty="4.01"), 2012),
        (buy(3, min_qty="1"), 2014),
        (buy(3, min_qty="1", post_only=True), 2010),
        (buy(3, display_qty="1", tif="ioc"), 2012),
        (m.Amend(3, 99, price="1"), 2006),
    ],
    ids=lambda x: str(x) if isinstance(x, int) else type(x).__name__,
)
async def test_what_the_engine_refuses_is_told_by_its_number(
    exchange: Exchange, request_: m.ClientMessage, code: int
) -> None:
    before = exchange.port.balances(BUYER)
    reject = refused(await ask(exchange, trader(exchange, BUYER), request_))
    assert (reject.id, reject.code) == (3, code)
    assert exchange.port.balances(BUYER) == before


async def test_an_ask_beyond_the_declared_capacity_is_refused(exchange: Exchange) -> None:
    seller = trader(exchange, SELLER)
    reject = refused(await ask(exchange, seller, sell(3, qty="1000.01")))
    assert reject.code == Reject.INSUFFICIENT_CAPACITY


async def test_an_ask_without_a_bond_is_refused(exchange: Exchange) -> None:
    await exchange.open_account(3)
    seller = trader(exchange, 3)
    acked(await ask(exchange, seller, m.Capacity(2, TICKER, "4")))
    assert refused(await ask(exchange, seller, sell(3))).code == Reject.INSUFFICIENT_BOND


async def test_a_quantity_must_be_a_multiple_of_the_markets_lot(exchange: Exchange) -> None:
    coarse = "nv.h100-sxm-80g.x8.ib|us-w|B|SPOT"
    await exchange.list_market(coarse, lot_multiple=800)
    reject = refused(
        await ask(exchange, trader(exchange, BUYER), m.New(3, coarse, "buy", "1", "4"))
    )
    assert reject.code == Reject.QTY_NOT_A_MULTIPLE


async def test_the_same_client_id_and_body_gets_the_first_ack_marked_dup(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    first = acked(await ask(exchange, buyer, buy(3, client_id=5)))
    again = acked(buyer.say(buy(4, client_id=5)))
    assert again.dup and not first.dup
    assert (again.id, again.order_id, again.sequence) == (4, first.order_id, first.sequence)


async def test_a_repeat_in_flight_is_answered_when_the_first_one_is(exchange: Exchange) -> None:
    buyer, other = trader(exchange, BUYER), trader(exchange, BUYER)
    assert buyer.say(buy(3, client_id=5)) == other.say(buy(8, client_id=5)) == []
    await exchange.port.settled()
    first, again = acked(buyer.heard()), acked(other.heard())
    assert (first.dup, again.dup, again.id) == (False, True, 8)
    assert first.order_id == again.order_id
    assert len(exchange.desk.pending) == 0


async def test_another_body_under_a_used_client_id_is_refused(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    await ask(exchange, buyer, buy(3, client_id=5))
    assert refused(buyer.say(buy(4, "2.4151", client_id=5))).code == Reject.CLIENT_ID_REUSED


async def test_a_rejected_order_does_not_use_up_its_client_id(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    refused(await ask(exchange, buyer, buy(3, qty="1000", client_id=5)))
    assert not acked(await ask(exchange, buyer, buy(4, client_id=5))).dup


async def test_a_withdrawal_repeated_with_its_client_id_is_made_once(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    first = acked(await ask(exchange, buyer, m.Withdraw(3, "10.5", 6)))
    again = acked(buyer.say(m.Withdraw(4, "10.5", 6)))
    assert again.dup and again.withdrawal_id == first.withdrawal_id == first.sequence
    assert exchange.port.balances(BUYER).leaving_usdc6 == 10_500_000


async def test_an_order_is_cancelled_by_either_id(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    order_id = acked(await ask(exchange, buyer, buy(3))).order_id
    ack = acked(await ask(exchange, buyer, m.Cancel(4, order_id)))
    assert (ack.order_id, ack.qty, ack.market) == (order_id, "4", TICKER)
    order_id = acked(await ask(exchange, buyer, buy(5, client_id=8))).order_id
    ack = acked(await ask(exchange, buyer, m.Cancel(6, client_id=8)))
    assert (ack.order_id, ack.client_id, ack.qty) == (order_id, 8, "4")
    assert exchange.port.balances(BUYER).held_usdc6 == 0


async def test_a_cancel_by_client_id_waits_for_its_order_in_flight(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    assert buyer.say(buy(3, client_id=5)) == buyer.say(m.Cancel(4, client_id=5)) == []
    await exchange.port.settled()
    await exchange.port.settled()
    placed, cancelled = [acked(x) for x in buyer.heard()]
    assert (placed.id, cancelled.id, cancelled.qty) == (3, 4, "4")
    assert placed.order_id == cancelled.order_id


async def test_a_query_for_an_order_in_flight_is_answered_with_the_order(
    exchange: Exchange,
) -> None:
    """Who was cut off before the ack asks at once: unknown is not yet the truth. And is told what
    became of it at once, too."""
    await ask(exchange, trader(exchange, SELLER), sell(3, qty="1"))
    trader(exchange, BUYER).say(buy(3, client_id=5))
    again = trader(exchange, BUYER)
    assert again.say(m.Query(4, "order", client_id=5)) == []
    await exchange.port.settled()
    told = acked(again.heard()).order
    assert told is not None and (told.client_id, told.qty, told.left) == (5, "4", "3")


async def test_a_query_for_an_order_that_is_rejected_in_flight_finds_none(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, qty="1000", client_id=5))
    assert buyer.say(m.Query(4, "order", client_id=5)) == []
    await exchange.port.settled()
    placed, told = [refused(x) for x in buyer.heard()]
    assert placed.code == Reject.INSUFFICIENT_BALANCE
    assert (told.id, told.code) == (4, Reject.UNKNOWN_ORDER)


async def test_a_cancel_waiting_for_an_order_that_is_rejected_finds_no_order(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, qty="1000", client_id=5))
    buyer.say(m.Cancel(4, client_id=5))
    await exchange.port.settled()
    placed, cancelled = [refused(x) for x in buyer.heard()]
    assert placed.code == Reject.INSUFFICIENT_BALANCE
    assert (cancelled.id, cancelled.code) == (4, Reject.UNKNOWN_ORDER)


async def test_a_question_about_an_order_in_flight_waits_for_it(exchange: Exchange) -> None:
    """Its sender's connection broke; on the next one "unknown" would mean "never happened"."""
    lost = trader(exchange, BUYER)
    lost.say(buy(3, client_id=5))
    lost.say(buy(4, "2.4", client_id=6))
    lost.session.close()
    buyer = trader(exchange, BUYER)
    assert buyer.say(m.Query(8, "order", client_id=5)) == []
    assert buyer.say(m.Query(9, "order", client_id=6)) == []
    await exchange.port.settled()
    told = [acked(message).order for message in buyer.heard()]
    assert [order and (order.client_id, order.state, order.left) for order in told] == [
        (5, "open", "4"),
        (6, "open", "4"),
    ]


async def test_a_question_about_an_order_that_is_rejected_finds_none(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, qty="1000", client_id=5))
    buyer.say(m.Query(4, "order", client_id=5))
    await exchange.port.settled()
    placed, asked = [refused(x) for x in buyer.heard()]
    assert placed.code == Reject.INSUFFICIENT_BALANCE
    assert (asked.id, asked.code) == (4, Reject.UNKNOWN_ORDER)


async def test_a_late_cancel_is_told_what_became_of_the_order(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    order_id = acked(await ask(exchange, buyer, buy(3, client_id=8))).order_id
    await ask(exchange, seller, sell(3))
    by_id = refused(await ask(exchange, buyer, m.Cancel(4, order_id)))
    by_client_id = refused(buyer.say(m.Cancel(5, client_id=8)))
    for reject in (by_id, by_client_id):
        assert reject.code == Reject.UNKNOWN_ORDER and "it is filled" in reject.message


async def test_nobody_cancels_the_order_of_another(exchange: Exchange) -> None:
    order_id = acked(await ask(exchange, trader(exchange, BUYER), buy(3))).order_id
    reject = refused(await ask(exchange, trader(exchange, SELLER), m.Cancel(3, order_id)))
    assert (reject.code, reject.message) == (Reject.UNKNOWN_ORDER, WORDS[Reject.UNKNOWN_ORDER])
    assert len(exchange.desk.feed.open_orders(BUYER)) == 1


async def test_cancel_all_counts_the_orders_of_one_market_or_of_all(exchange: Exchange) -> None:
    other = "nv.h100-sxm-80g.x8.ib|us-w|B|SPOT"
    await exchange.list_market(other)
    buyer = trader(exchange, BUYER)
    for number in range(3, 6):
        await ask(exchange, buyer, buy(number))
    await ask(exchange, buyer, m.New(6, other, "buy", "1", "1"))
    assert acked(await ask(exchange, buyer, m.CancelAll(7, TICKER))).count == 3
    assert acked(await ask(exchange, buyer, m.CancelAll(8))).count == 1
    assert acked(await ask(exchange, buyer, m.CancelAll(9))).count == 0


async def test_cancel_all_may_mean_one_side(exchange: Exchange) -> None:
    await exchange.open_account(3, cash_usdc6=10**9, bond_usdc6=10**9)
    await exchange.declare(3, 1, 100_000)
    maker = trader(exchange, 3)
    for number in range(3, 5):
        await ask(exchange, maker, buy(number, "1"))
        await ask(exchange, maker, sell(number, "2"))
    await ask(exchange, maker, sell(5, "2"))
    assert acked(await ask(exchange, maker, m.CancelAll(6, TICKER, "buy"))).count == 2
    assert acked(await ask(exchange, maker, m.CancelAll(7, "", "sell"))).count == 3


async def test_a_change_waiting_for_a_withdrawal_finds_no_order(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(m.Withdraw(3, "1", client_id=5))
    buyer.say(m.Cancel(4, client_id=5))
    buyer.say(m.Amend(5, client_id=5, qty="1"))
    await exchange.port.settled()
    withdrawn, *changed = buyer.heard()
    assert acked(withdrawn).withdrawal_id
    assert [(x.id, x.code) for x in map(refused, changed)] == [(4, 2006), (5, 2006)]


# --- orders with terms -------------------------------------------------------------------------
async def test_an_order_is_amended_by_either_id_and_keeps_both(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    placed = acked(await ask(exchange, buyer, buy(3, client_id=8)))
    ack = acked(await ask(exchange, buyer, m.Amend(4, placed.order_id, qty="3")))
    assert (ack.order_id, ack.client_id, ack.market) == (placed.order_id, 8, TICKER)
    assert (ack.price, ack.qty, ack.lost_place) == ("2.4150", "3", False)
    ack = acked(await ask(exchange, buyer, m.Amend(5, client_id=8, price="2.4")))
    assert (ack.order_id, ack.price, ack.qty, ack.lost_place) == (
        placed.order_id, "2.4000", "3", True,
    )  # fmt: skip
    [order] = exchange.desk.feed.open_orders(BUYER)
    assert (order.client_id, order.price, order.qty, order.left) == (8, "2.4000", "3", "3")
    assert exchange.desk.feed.market(TICKER).book.bids == [(24_000, 300)]
    assert exchange.port.balances(BUYER).held_usdc6 == 24_000 * 300


async def test_what_was_filled_is_not_part_of_what_is_amended(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    order_id = acked(await ask(exchange, buyer, buy(3))).order_id
    await ask(exchange, seller, sell(3, qty="1"))
    await ask(exchange, buyer, m.Amend(4, order_id, qty="5"))
    [order] = exchange.desk.feed.open_orders(BUYER)
    assert (order.qty, order.left) == ("6", "5")


async def test_less_at_the_same_price_keeps_its_place(exchange: Exchange) -> None:
    await exchange.open_account(3, cash_usdc6=10**9)
    first, second, seller = (trader(exchange, x) for x in (BUYER, 3, SELLER))
    one = acked(await ask(exchange, first, buy(3))).order_id
    two = acked(await ask(exchange, second, buy(3))).order_id
    await ask(exchange, first, m.Amend(4, one, qty="3"))
    await ask(exchange, seller, sell(3, qty="3"))
    assert acked(first.say(m.Query(5, "order", order_id=one))).order is not None
    assert exchange.desk.feed.open_orders(BUYER) == []
    assert [x.order_id for x in exchange.desk.feed.open_orders(3)] == [two]


async def test_an_amendment_waits_for_its_order_in_flight(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    assert buyer.say(buy(3, client_id=5)) == []
    assert buyer.say(m.Amend(4, client_id=5, price="2.5", qty="2")) == []
    await exchange.port.settled()
    await exchange.port.settled()
    placed, amended = [acked(x) for x in buyer.heard()]
    assert (placed.id, amended.id, placed.order_id) == (3, 4, amended.order_id)
    assert (amended.price, amended.qty) == ("2.5000", "2")


async def test_an_amendment_of_a_rejected_order_finds_no_order(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, qty="1000", client_id=5))
    buyer.say(m.Amend(4, client_id=5, qty="1"))
    await exchange.port.settled()
    placed, amended = [refused(x) for x in buyer.heard()]
    assert placed.code == Reject.INSUFFICIENT_BALANCE
    assert (amended.id, amended.code) == (4, Reject.UNKNOWN_ORDER)


async def test_a_late_amendment_is_told_what_became_of_the_order(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    order_id = acked(await ask(exchange, buyer, buy(3, client_id=8))).order_id
    await ask(exchange, seller, sell(3))
    by_id = refused(await ask(exchange, buyer, m.Amend(4, order_id, qty="1")))
    by_client_id = refused(buyer.say(m.Amend(5, client_id=8, qty="1")))
    for reject in (by_id, by_client_id):
        assert reject.code == Reject.UNKNOWN_ORDER and "it is filled" in reject.message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"price": "2.5", "post_only": True}, Reject.POST_ONLY_WOULD_TRADE),
        ({"qty": "1000"}, Reject.INSUFFICIENT_BALANCE),
    ],
)
async def test_a_rejected_amendment_leaves_the_order_as_it_was(
    exchange: Exchange, change: dict[str, Any], code: Reject
) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    await ask(exchange, seller, sell(3, "2.5"))
    order_id = acked(await ask(exchange, buyer, buy(3))).order_id
    before = exchange.desk.feed.open_orders(BUYER), exchange.port.balances(BUYER)
    assert refused(await ask(exchange, buyer, m.Amend(4, order_id, **change))).code == code
    assert (exchange.desk.feed.open_orders(BUYER), exchange.port.balances(BUYER)) == before


async def test_an_amendment_that_crosses_trades_after_its_ack(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    await ask(exchange, seller, sell(3, "2.5", "1"))
    order_id = acked(await ask(exchange, buyer, buy(3))).order_id
    buyer.say(m.Subscribe(4, "account"))
    buyer.say(m.Amend(5, order_id, price="2.5"))
    await exchange.port.settled()
    heard = buyer.heard()
    assert [type(x) for x in heard] == [m.Ack, m.Order, m.Fill, m.Lease, m.Balance]
    _, order, fill, _, _ = heard
    assert isinstance(order, m.Order) and isinstance(fill, m.Fill)
    assert (order.state, order.reason, order.price, order.left) == (
        "open",
        "AMENDED",
        "2.5000",
        "4",
    )
    assert (fill.order_id, fill.left, fill.liquidity) == (order_id, "3", "taker")


async def test_a_market_order_trades_as_far_as_its_protection(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    for number, price in enumerate(("2.4", "2.45", "2.4501"), 3):
        await ask(exchange, seller, sell(number, price, "1"))
    ack = acked(await ask(exchange, buyer, market(3)))
    assert ack.price == "2.4500"
    order = acked(buyer.say(m.Query(4, "order", order_id=ack.order_id))).order
    assert order is not None and (order.state, order.price) == ("cancelled", "2.4500")
    assert exchange.port.balances(BUYER).pending_usdc6 == (24_000 + 24_500) * 100
    assert exchange.desk.feed.market(TICKER).book.asks == [(24_501, 100)]


async def test_an_order_till_a_time_is_told_when_it_expires(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    expires_s = exchange.clock.now_ns() // 10**9 + 60
    await ask(exchange, buyer, buy(3, tif="gtt", expires_s=expires_s))
    buyer.say(m.Subscribe(4, "account"))
    exchange.clock.advance_to(expires_s * 10**9)
    await ask(exchange, seller, sell(3))
    [order, balance] = buyer.heard()
    assert isinstance(order, m.Order) and isinstance(balance, m.Balance)
    assert (order.state, order.reason, order.left) == ("cancelled", "EXPIRED", "0")
    assert (balance.balances.held, balance.balances.pending) == ("0", "0")


async def test_an_iceberg_is_shown_part_by_part_and_its_owner_told(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    buyer.say(m.Subscribe(2, "account"))
    order_id = acked(await ask_among(exchange, buyer, buy(3, qty="4", display_qty="1.5"))).order_id
    book = exchange.desk.feed.market(TICKER).book
    told: list[tuple[str, str]] = []
    for sold, shown in (("0.5", 100), ("1", 150), ("1.5", 100)):
        await ask(exchange, seller, sell(3, qty=sold))
        assert book.bids == [(24_150, shown)]
        [order] = exchange.desk.feed.open_orders(BUYER)
        told.append((order.left, order.shown))
    assert told == [("3.5", "1"), ("2.5", "1.5"), ("1", "")]
    reasons = [(x.reason, x.shown) for x in buyer.heard() if isinstance(x, m.Order)]
    assert reasons == [("REFRESHED", "1.5"), ("REFRESHED", "")]
    assert acked(await ask_among(exchange, buyer, m.Cancel(4, order_id))).qty == "1"
    assert book.bids == []


async def test_cancelling_an_iceberg_takes_all_of_it(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    order_id = acked(await ask(exchange, buyer, buy(3, display_qty="1"))).order_id
    assert exchange.desk.feed.market(TICKER).book.bids == [(24_150, 100)]
    assert acked(await ask(exchange, buyer, m.Amend(4, order_id, qty="3"))).lost_place is False
    [order] = exchange.desk.feed.open_orders(BUYER)
    assert (order.left, order.shown) == ("3", "1")
    assert acked(await ask(exchange, buyer, m.Cancel(5, order_id))).qty == "3"
    assert exchange.desk.feed.market(TICKER).book.bids == []
    assert exchange.port.balances(BUYER).held_usdc6 == 0


async def test_a_minimum_quantity_is_filled_at_once_or_nothing_is(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    await ask(exchange, seller, sell(3, qty="2"))
    reject = refused(await ask(exchange, buyer, buy(3, min_qty="2.01")))
    assert reject.code == Reject.MINIMUM_NOT_FILLABLE
    acked(await ask(exchange, buyer, buy(4, min_qty="2")))
    assert [x.left for x in exchange.desk.feed.open_orders(BUYER)] == ["2"]


async def test_an_ack_precedes_the_fills_of_its_order(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    buyer.say(m.Subscribe(2, "account"))
    await ask(exchange, seller, sell(3, qty="1"))
    await ask(exchange, seller, sell(4, qty="1"))
    buyer.heard()
    buyer.say(buy(3, qty="4", tif="ioc"))
    await exchange.port.settled()
    heard = buyer.heard()
    fills = [m.Fill, m.Lease] * 2
    assert [type(x) for x in heard] == [m.Ack, m.Order, *fills, m.Order, m.Balance]
    last = heard[-2]
    assert isinstance(last, m.Order)
    assert (last.state, last.reason, last.left) == ("cancelled", "IOC_REMAINDER", "0")


async def test_the_state_of_an_order_is_told_open_or_closed(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    order_id = acked(await ask(exchange, buyer, buy(3, client_id=8))).order_id
    for state, left in (("open", "4"), ("filled", "0")):
        for query in (m.Query(4, "order", client_id=8), m.Query(5, "order", order_id=order_id)):
            order = acked(buyer.say(query)).order
            assert order is not None and (order.state, order.left) == (state, left)
        await ask(exchange, seller, sell(6))


async def test_balances_are_told_as_published_and_never_before(
    exchange: Exchange, disk: HeldDisk
) -> None:
    buyer = trader(exchange, BUYER)
    disk.hold()
    buyer.say(buy(3))
    await asyncio.sleep(0)  # the engine has matched it; the journal has not synced it
    before = acked(buyer.say(m.Query(4, "balances"))).balances
    disk.let_go()
    await exchange.port.settled()
    buyer.heard()
    after = acked(buyer.say(m.Query(5, "balances"))).balances
    assert before is not None and (before.free, before.held) == ("1000", "0")
    assert after is not None and (after.free, after.held) == ("990.34", "9.66")


# --- administration ----------------------------------------------------------------------------
async def test_only_the_administrator_lists_halts_and_resumes(exchange: Exchange) -> None:
    symbol = "nv.h100-sxm-80g.x8.ib|us-w|B|SPOT"
    chief, buyer = exchange.converse(ADMINISTRATOR), trader(exchange, BUYER)
    for request in (m.Market(3, "list", symbol), m.Market(3, "halt", TICKER)):
        assert refused(buyer.say(request)).code == Reject.NOT_ADMINISTRATOR
        assert refused(exchange.converse().say(request)).code == Reject.NOT_ADMINISTRATOR
    ticker = acked(await ask(exchange, chief, m.Market(4, "list", symbol))).market
    assert acked(await ask(exchange, buyer, m.New(4, symbol, "buy", "1", "8"))).market == ticker
    acked(await ask(exchange, chief, m.Market(5, "halt", ticker)))
    reject = refused(await ask(exchange, buyer, m.New(5, ticker, "buy", "1", "8")))
    assert reject.code == Reject.MARKET_HALTED
    acked(await ask(exchange, chief, m.Market(6, "resume", ticker)))
    acked(await ask(exchange, buyer, m.New(6, ticker, "buy", "1", "8")))


async def test_only_the_administrator_puts_a_wallet_into_another_tier_of_fees(
    exchange: Exchange,
) -> None:
    chief, buyer = exchange.converse(ADMINISTRATOR), trader(exchange, BUYER)
    seller, whose = trader(exchange, SELLER), wallet(100 + BUYER).address
    assert m.FEE_TIER_MAX == FEE_TIERS - 1
    for tier, (maker_ppm, taker_ppm) in enumerate([(200, 500), (100, 300)]):
        exchange.port.submit(translate.set_fees(tier, maker_ppm, taker_ppm))
    assert refused(buyer.say(m.FeeTier(3, whose, 1))).code == Reject.NOT_ADMINISTRATOR
    nobody = refused(chief.say(m.FeeTier(3, wallet(99).address, 1)))
    assert (nobody.code, nobody.field) == (Reject.NO_ACCOUNT, "wallet")
    torn = refused(chief.say(m.FeeTier(3, whose[:-1], 1)))
    assert (torn.code, torn.field) == (Reject.INVALID_FIELD, "wallet")
    assert refused(chief.say(m.FeeTier(3, whose, FEE_TIERS))).code == Reject.INVALID_FIELD
    buyer.say(m.Subscribe(4, "account"))

    async def fee(number: int) -> str:
        acked(await ask(exchange, seller, sell(number)))
        buyer.heard()
        buyer.say(buy(number))
        await exchange.port.settled()
        [fill] = [x for x in buyer.heard() if isinstance(x, m.Fill)]
        return fill.fee

    assert await fee(10) == "0.00483", "500 ppm of 9.66"
    acked(await ask(exchange, chief, m.FeeTier(11, whose, 1)))
    assert await fee(12) == "0.002898", "300 ppm of 9.66"


async def test_a_listing_takes_the_catalogs_terms_unless_given(exchange: Exchange) -> None:
    chief, catalog = exchange.converse(ADMINISTRATOR), exchange.desk.catalog
    plain, given = [f"nv.h100-sxm-80g.x8.ib|{r}|B|SPOT" for r in ("us-w", "us-c")]
    await ask(exchange, chief, m.Market(3, "list", plain))
    await ask(exchange, chief, m.Market(4, "list", given, "0.25", "2"))
    product = catalog.parse(plain)
    by_symbol = {x.symbol: x for x in exchange.desk.feed.market_infos()}
    listed = exchange.desk.feed.market(plain)
    assert listed.lot_multiple == catalog.lot_multiple(product)
    assert listed.bond_usdc6_per_lot == catalog.bond_usdc6_per_lot(product)
    assert (by_symbol[given].bond, by_symbol[given].lot) == ("0.25", "2")


async def test_a_market_is_listed_once_even_if_asked_twice_at_once(exchange: Exchange) -> None:
    symbol = "nv.h100-sxm-80g.x8.ib|us-w|B|SPOT"
    chief = exchange.converse(ADMINISTRATOR)
    assert chief.say(m.Market(3, "list", symbol)) == []
    assert refused(chief.say(m.Market(4, "list", symbol))).code == Reject.ALREADY_LISTED
    await exchange.port.settled()
    acked(chief.heard())
    assert refused(chief.say(m.Market(5, "list", symbol))).code == Reject.ALREADY_LISTED
    assert refused(chief.say(m.Market(6, "list", "x|y"))).code == Reject.UNKNOWN_INSTRUMENT
    assert refused(chief.say(m.Market(7, "halt", "x|y"))).code == Reject.UNKNOWN_INSTRUMENT


async def test_a_windows_market_closes_at_the_latest_when_its_hours_begin(
    exchange: Exchange,
) -> None:
    chief, now_s = exchange.converse(ADMINISTRATOR), exchange.clock.now_ns() // 10**9
    exchange.desk.listed_ahead_s = 31 * 86_400  # from the morning of 21 November on
    grade = "nv.h100-sxm-80g.x8.ib|us-e|B"
    early, plain, late = [f"{grade}|H|2026-11-21T0{hour}" for hour in (1, 2, 3)]
    acked(await ask(exchange, chief, m.Market(3, "list", plain)))
    acked(await ask(exchange, chief, m.Market(4, "list", early, closes_s=now_s + 1_800)))
    gates = {x.symbol: x.closes_s - now_s for x in exchange.desk.feed.market_infos()}
    assert (gates[plain], gates[early], gates[SYMBOL]) == (7_200, 1_800, -now_s)

    after = refused(chief.say(m.Market(5, "list", late, closes_s=now_s + 3 * 3_600 + 1)))
    assert (after.code, after.field) == (Reject.INVALID_LISTING, "closes_s")
    for window in ("H|2026-11-21T00", "D|2026-11-21", "W|2026-W52", "M|2026-12", "M|2027-02"):
        gone = refused(chief.say(m.Market(6, "list", f"{grade}|{window}")))
        assert (gone.code, gone.field) == (Reject.INVALID_LISTING, "market"), window
    acked(await ask(exchange, chief, m.Market(7, "list", f"{grade}|W|2026-W51")))


# --- limits ------------------------------------------------------------------------------------
class Watch:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def test_a_bucket_refills_at_its_rate_and_says_when() -> None:
    bucket = TokenBucket(rate_per_s=100, burst=2)
    assert [bucket.take(1, 0) for _ in range(3)] == [0, 0, 10]
    assert bucket.take(1, 9 * NS_PER_MS) == 1
    assert bucket.take(1, 10 * NS_PER_MS) == 0 and bucket.left(10 * NS_PER_MS) == 0
    assert bucket.left(10_000 * NS_PER_MS) == 2
    assert [bucket.take(n, 10_000 * NS_PER_MS) for n in (3, 2, 2)] == [10, 0, 20]
    bucket.give_back(2)
    assert bucket.is_full(10_000 * NS_PER_MS)


async def test_a_request_over_the_limit_is_told_when_to_retry_and_cancels_still_pass(
    tmp_path: Path,
) -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, requests_per_s=1, requests_burst=2)
    watch = Watch()
    async with running_exchange(tmp_path, limits, watch) as exchange:
        await exchange.open_account(BUYER, cash_usdc6=10**9)
        buyer = trader(exchange, BUYER)
        acked(buyer.say(m.Query(2, "balances")))
        for frame in (msgspec.json.encode(m.Ping(3)), b"{"):
            reject = refused(buyer.say_raw(frame))
            assert (reject.code, reject.retry_ms) == (Reject.RATE_LIMITED, 1000)
        ack = acked(await ask(exchange, buyer, m.CancelAll(4)))
        assert ack.budget == (0, limits.cancels_burst - 1)
        stranger = exchange.converse()
        assert isinstance(stranger.say(m.Ping(1))[0], m.Pong)
        watch.ns += 1_000 * NS_PER_MS
        assert isinstance(buyer.say(m.Ping(5))[0], m.Pong)


async def test_subscriptions_are_counted_and_limited(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, subscriptions=2)
    async with running_exchange(tmp_path, limits) as exchange:
        await exchange.list_market()
        reader = exchange.converse()
        acked(reader.say(m.Subscribe(1, "trades"))[:1])
        acked(reader.say(m.Subscribe(2, "book", TICKER))[:1])
        reject = refused(reader.say(m.Subscribe(3, "status")))
        assert reject.code == Reject.TOO_MANY_SUBSCRIPTIONS
        acked(reader.say(m.Subscribe(4, "book", TICKER))[:1])
        acked(reader.say(m.Unsubscribe(5, "trades")))
        acked(reader.say(m.Subscribe(6, "status"))[:1])


async def test_the_alternatives_of_an_exclusive_are_gathered_no_further_than_a_command_goes(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, gathered = exchange.desk.catalog, list[str]()
    alternatives, regions = catalog.alternatives, catalog.regions
    for region in regions[1:]:
        await exchange.list_market(SYMBOL.replace("us-e", region.name))

    def counted(name: str, *, or_better: bool) -> list[int]:
        gathered.append(name)
        return alternatives(name, or_better=or_better)

    monkeypatch.setattr(catalog, "alternatives", counted)
    anywhere = m.Leg(SYMBOL.replace("us-e", "any"), "2.5", "1")
    buyer = trader(exchange, BUYER)
    for legs in (PARTS_MAX // len(regions) + 1, m.LEGS_MAX):
        gathered.clear()
        reject = refused(buyer.say(m.Exclusive(5, [anywhere] * legs)))
        assert (reject.code, reject.field) == (Reject.TOO_MANY_LEGS, "legs")
        assert len(gathered) == PARTS_MAX // len(regions) + 1


async def test_to_who_is_too_far_behind_nothing_more_is_made_and_nothing_done(
    tmp_path: Path,
) -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, outbound_bytes=1_024)
    async with running_exchange(tmp_path, limits) as exchange:
        regions = [region.name for region in exchange.desk.catalog.regions]
        for region in regions:
            for grade in ("B", "C"):
                await exchange.list_market(f"nv.h100-sxm-80g.x8.ib|{region}|{grade}|SPOT")
        reader, counts = exchange.converse(), exchange.desk.counts
        assert reader.say(m.Subscribe(1, "ticker")) == [] and reader.overflowed
        assert 0 < counts.sent[m.Ticker] < 2 * len(regions), "it stopped in the middle"
        assert reader.say(m.Ping(2)) == [] and not counts.received[m.Ping]
        assert isinstance(exchange.converse().say(m.Ping(1))[0], m.Pong)


def test_an_outbox_overflows_once_and_then_drops() -> None:
    calls: list[str] = []
    outbox = Outbox(10, lambda: calls.append("wake"), lambda: calls.append("overflow"))
    outbox.push(b"12345")
    [frame] = outbox.take()
    outbox.push(b"12345")
    outbox.push(b"1")  # the first five bytes are taken, but not sent: they still count
    outbox.push(b"1")
    assert calls == ["wake", "wake", "overflow"] and outbox.take() == []
    outbox.sent(frame)


def test_one_large_frame_is_let_out_and_a_second_is_not() -> None:
    calls: list[str] = []
    outbox = Outbox(10, lambda: calls.append("wake"), lambda: calls.append("overflow"))
    large = b"x" * 100
    outbox.push(large)
    outbox.push(b"12345")
    [first, _] = outbox.take()
    outbox.sent(first)
    outbox.push(large)
    outbox.push(large)
    assert calls == ["wake", "wake", "overflow"], "woken where there was nothing"


async def test_who_asks_is_told_when_a_command_is_sequenced_and_once_more_when_it_is_done(
    exchange: Exchange,
) -> None:
    buyer, other = trader(exchange, BUYER), trader(exchange, BUYER)
    assert acked(buyer.say(m.Subscribe(2, "sequenced"))).level == ""
    place = buy(3, client_id=5)
    [notice] = buyer.say(place)
    assert isinstance(notice, m.Sequenced)
    assert notice == m.Sequenced(3, exchange.port.ready().last_sequence, 5)
    [again] = buyer.say(buy(4, client_id=5))
    assert again == m.Sequenced(4, notice.sequence, 5), "the place that it has already"
    assert other.say(m.Ping(9)) and other.say(buy(5, client_id=6)) == []
    assert buyer.say(m.Cancel(6, client_id=5)) == [], "it waits, and has no place yet"
    await exchange.port.settled()
    await exchange.port.settled()
    placed, dup, late, cancelled = buyer.heard()
    for reply, request in ((placed, 3), (dup, 4)):
        ack = acked(reply)
        assert (ack.id, ack.level, ack.sequence) == (request, "durable", notice.sequence)
    assert isinstance(late, m.Sequenced) and (late.id, late.client_id) == (6, 0)
    assert (acked(cancelled).id, acked(cancelled).sequence) == (6, late.sequence)
    assert [type(x) for x in other.heard()] == [m.Ack]
    assert acked(buyer.say(buy(7, client_id=5))).dup, "it is done, so there is nothing to notice"


async def test_a_command_that_has_no_place_has_no_notice_and_one_that_is_rejected_has(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(m.Subscribe(2, "sequenced"))
    assert refused(buyer.say(buy(3, price="0"))).id == 3
    [notice] = buyer.say(buy(4, price="1677", qty="10000000"))
    assert isinstance(notice, m.Sequenced)
    await exchange.port.settled()
    assert refused(buyer.heard()).code == Reject.INSUFFICIENT_BALANCE
    acked(buyer.say(m.Unsubscribe(5, "sequenced")))
    assert buyer.say(buy(6)) == []


async def test_requests_that_wait_for_the_command_of_another_are_counted(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PENDING_REPEATS_MAX", 2)
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, client_id=5))
    last = exchange.port.ready().last_sequence
    assert buyer.say(buy(4, client_id=5)) == buyer.say(m.Cancel(5, client_id=5)) == []
    for more in (
        buy(6, client_id=5),
        m.Cancel(7, client_id=5),
        m.Amend(8, client_id=5, qty="1"),
        m.Query(8, "order", client_id=5),
    ):
        busy = refused(buyer.say(more))
        assert (busy.id, busy.code) == (more.id, Reject.BUSY) and busy.retry_ms > 0
    assert buyer.say(buy(9, client_id=6)) == [], "a command of its own is the engine's to count"
    assert exchange.port.ready().last_sequence == last + 1
    await exchange.port.settled()
    await exchange.port.settled()
    assert [acked(reply).id for reply in buyer.heard()] == [3, 4, 9, 5]
    assert acked(buyer.say(buy(10, client_id=5))).dup, "there is room again"


async def test_a_full_engine_is_answered_busy_with_a_time_to_retry(exchange: Exchange) -> None:
    exchange.port.subscribe(lambda batch: None, has_room=lambda: False)
    reject = refused(trader(exchange, BUYER).say(buy(3)))
    assert reject.code == Reject.BUSY and reject.retry_ms > 0


async def test_a_cancel_that_waited_is_taken_even_by_a_full_engine(
    exchange: Exchange,
) -> None:
    room = True
    exchange.port.subscribe(lambda batch: None, has_room=lambda: room)
    buyer = trader(exchange, BUYER)
    buyer.say(buy(3, client_id=5))
    buyer.say(m.Cancel(4, client_id=5))
    room = False
    await exchange.port.settled()
    await exchange.port.settled()
    placed, cancelled = buyer.heard()
    assert acked(placed).order_id
    assert (acked(cancelled).id, acked(cancelled).qty) == (4, acked(cancelled).qty)
    assert acked(cancelled).order_id == acked(placed).order_id


async def test_a_stopped_engine_is_answered_stopped(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    await exchange.stop()
    assert refused(buyer.say(buy(3))).code == Reject.STOPPED


async def test_a_closed_session_leaves_its_orders_and_no_subscription(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(m.Subscribe(2, "account"))
    buyer.heard()
    buyer.say(buy(3))
    buyer.session.close()
    await exchange.port.settled()
    assert buyer.heard() == []
    assert len(exchange.desk.feed.open_orders(BUYER)) == 1
    assert len(exchange.desk.pending) == 0


async def test_money_that_moves_is_told_in_the_accounts_stream(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(m.Subscribe(2, "account"))
    exchange.deposit(BUYER, 5_000_000)
    exchange.deposit(BUYER, 7_000_000, Purse.BOND)
    exchange.port.submit(Command(kind=CommandKind.WITHDRAW, account=BUYER, price_ticks=10**6))
    await exchange.port.settled()
    transfers = [x for x in buyer.heard() if isinstance(x, m.Transfer)]
    assert [(x.kind, x.amount) for x in transfers] == [
        ("deposit", "5"), ("bond_deposit", "7"), ("withdrawal_reserved", "1")
    ]  # fmt: skip
    assert [x.aseq for x in transfers] == [2, 3, 4]


async def test_a_wallet_that_leaves_the_vault_hears_why_its_orders_go_and_may_not_trade(
    exchange: Exchange,
) -> None:
    buyer, watcher = trader(exchange, BUYER), exchange.converse()
    buyer.say(m.Subscribe(2, "account"))
    acked(await ask_among(exchange, buyer, buy(3)))
    watcher.say(m.Subscribe(2, "book", TICKER))
    exchange.port.submit(Command(kind=CommandKind.CLOSE_ACCOUNT, account=BUYER))
    await exchange.port.settled()
    [order] = [x for x in buyer.heard() if isinstance(x, m.Order)]
    assert (order.state, order.reason, order.left) == ("cancelled", "ACCOUNT_CLOSED", "0")
    [delta] = [x for x in watcher.heard() if isinstance(x, m.BookDelta)]
    assert delta.bids == [("2.4150", "0")]
    assert refused(await ask_among(exchange, buyer, buy(4))).code == Reject.ACCOUNT_CLOSED
    reply = await ask_among(exchange, buyer, m.Capacity(5, TICKER, "1"))
    assert refused(reply).code == Reject.ACCOUNT_CLOSED
    acked(await ask_among(exchange, buyer, m.Withdraw(6, "1000")))
    exchange.port.submit(Command(kind=CommandKind.REOPEN_ACCOUNT, account=BUYER))
    exchange.deposit(BUYER, 10**9)
    await exchange.port.settled()
    acked(await ask_among(exchange, buyer, buy(7)))


async def test_money_that_comes_back_or_was_taken_is_told_in_the_accounts_stream(
    exchange: Exchange,
) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    exchange.port.submit(Command(kind=CommandKind.SET_FEES, order_id=200 | 500 << 16))
    acked(await ask(exchange, seller, sell(2)))
    acked(await ask(exchange, buyer, buy(3)))
    for conversation in (buyer, seller):
        conversation.say(m.Subscribe(4, "account"))
    withdrawal = acked(await ask_among(exchange, buyer, m.Withdraw(5, "1"))).withdrawal_id
    instrument = exchange.desk.feed.market(TICKER).instrument
    trade_id = 99
    for command in (
        Command(
            kind=CommandKind.CANCEL_WITHDRAWAL,
            account=BUYER,
            price_ticks=10**6,
            client_id=withdrawal,
        ),
        Command(
            kind=CommandKind.VOID_FILL,
            account=BUYER,
            order_id=SELLER | 1 << 32,
            client_id=trade_id,
            instrument=instrument,
            price_ticks=24_150,
            qty_lots=400,
            expiry_s=500,  # the bytes of buyer_fee_ppm
        ),
        Command(kind=CommandKind.CONFIRM_EXIT, account=BUYER, price_ticks=10**9, client_id=1),
    ):
        exchange.port.submit(command)
    await exchange.port.settled()
    told = buyer.heard()
    assert [(x.kind, x.amount, x.reference) for x in told if isinstance(x, m.Transfer)] == [
        ("withdrawal_cancelled", "1", withdrawal),
        ("fill_voided", "9.66483", trade_id),  # its price and its fee
        ("exit", "1000", 1),
    ]
    assert [x.balances.free for x in told if isinstance(x, m.Balance)][-1] == "0"
    [freed] = [x for x in seller.heard() if isinstance(x, m.Transfer)]
    assert (freed.kind, freed.amount, freed.reference) == ("fill_voided", "0.04", trade_id)
    exchange.desk.feed.mirror.check_invariants()


def test_the_digest_is_of_the_domain_and_of_nothing_else() -> None:
    nonce = keccak256(b"nonce")
    other = DOMAIN._replace(chain_id=1)
    assert login_digest(DOMAIN, bytes(20), nonce) != login_digest(other, bytes(20), nonce)
