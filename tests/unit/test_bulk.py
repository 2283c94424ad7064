"""Several requests in one frame, an order in another's stead, and who pays for what, with the real
engine and without a socket."""

import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from compex_client import messages as m

from engine.rejects import Reject
from gateway.limits import (
    DEFAULT_LIMITS,
    NS_PER_MS,
    Budgets,
    Tariff,
    TokenBucket,
    records_in,
    whose,
)
from gateway.wire import JSON, MSGPACK, Codec
from tests.exchange import SYMBOL, TICKER, Conversation, Exchange, running_exchange, wallet

SELLER, BUYER = 1, 2
HERE, ELSEWHERE = "203.0.113.7", "198.51.100.7"


@pytest.fixture(params=[JSON, MSGPACK], ids=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


@pytest.fixture
async def exchange(tmp_path: Path, codec: Codec) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path) as running:
        running.codec = codec
        instrument = await running.list_market()
        await running.open_account(SELLER, bond_usdc6=10**9)
        await running.open_account(BUYER, cash_usdc6=10**9)
        await running.declare(SELLER, instrument, 100_000)
        yield running


def trader(exchange: Exchange, account: int, address: str = "") -> Conversation:
    return exchange.converse(wallet(100 + account), address=address)


async def ask(
    exchange: Exchange, conversation: Conversation, request: m.ClientMessage
) -> m.ServerMessage:
    """The one reply, however many commands it takes."""
    replies = conversation.say(request)
    for _ in range(3):
        await exchange.port.settled()
    [reply] = replies or conversation.heard()
    return reply


async def ask_batch(
    exchange: Exchange, conversation: Conversation, items: list[Any]
) -> list[m.Ack | m.Reject | m.ReplaceAck]:
    reply = await ask(exchange, conversation, m.Batch(1000, items))
    assert isinstance(reply, m.BatchAck), reply
    assert reply.id == 1000 and [x.id for x in reply.results] == [x.id for x in items]
    assert reply.budget is not None
    return reply.results


def acked(reply: m.ServerMessage) -> m.Ack:
    assert isinstance(reply, m.Ack), reply
    return reply


def refused(reply: m.ServerMessage) -> m.Reject:
    assert isinstance(reply, m.Reject), reply
    return reply


def buy(number: int, price: str = "2.4150", qty: str = "4", **more: Any) -> m.New:
    return m.New(number, TICKER, "buy", price, qty, **more)


def sell(number: int, price: str = "2.4150", qty: str = "4", **more: Any) -> m.New:
    return m.New(number, TICKER, "sell", price, qty, **more)


def instead(number: int, price: str = "2.4200", qty: str = "8", **more: Any) -> m.Replace:
    return m.Replace(number, TICKER, "buy", price, qty, **more)


# --- batch -------------------------------------------------------------------------------------
async def test_each_item_of_a_batch_gets_its_own_result_in_order(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    rests = acked(await ask(exchange, buyer, buy(2))).order_id
    amends = acked(await ask(exchange, buyer, buy(3, client_id=3))).order_id
    goes = acked(await ask(exchange, buyer, buy(4))).order_id
    results = await ask_batch(
        exchange,
        buyer,
        [
            m.Cancel(11, rests),
            buy(12, "2.3", client_id=5),
            buy(13, "0"),
            m.Amend(14, client_id=3, qty="1"),
            m.Cancel(15, 999),
            instead(16, old_order_id=goes, client_id=6),
            m.Quote(17, TICKER, [("2.1", "1"), ("2.0", "1")]),
            buy(18, qty="1000000"),
        ],
    )
    cancelled, placed, bad, amended, unknown, replaced, quoted, poor = results
    assert (acked(cancelled).order_id, acked(cancelled).qty) == (rests, "4")
    assert acked(placed).client_id == 5 and acked(placed).level == "durable"
    assert (refused(bad).code, refused(bad).field) == (Reject.PRICE_OUT_OF_RANGE, "price")
    assert (acked(amended).order_id, acked(amended).qty) == (amends, "1")
    assert refused(unknown).code == Reject.UNKNOWN_ORDER
    assert isinstance(replaced, m.ReplaceAck) and replaced.cancelled is not None
    assert (replaced.cancelled.order_id, replaced.cancelled.qty) == (goes, "4")
    assert acked(quoted).count == 2
    assert refused(poor).code == Reject.INSUFFICIENT_BALANCE
    left = {order.client_id: order.left for order in exchange.desk.feed.open_orders(BUYER)}
    assert left == {3: "1", 5: "4", 6: "8", 0: "1"}
    assert len(exchange.desk.pending) == 0


async def test_the_items_of_a_batch_follow_each_other_in_the_total_order(
    exchange: Exchange,
) -> None:
    buyer, other = trader(exchange, BUYER), trader(exchange, SELLER)
    before = exchange.port.ready().last_sequence
    assert buyer.say(m.Batch(9, [buy(10 + i) for i in range(m.BATCH_ITEMS_MAX)])) == []
    assert other.say(sell(3)) == []
    await exchange.port.settled()
    [reply] = buyer.heard()
    assert isinstance(reply, m.BatchAck)
    sequences = [acked(x).sequence for x in reply.results]
    assert sequences == list(range(before + 1, before + 1 + m.BATCH_ITEMS_MAX))
    assert acked(other.heard()[0]).sequence == sequences[-1] + 1


async def test_an_item_may_change_an_order_that_an_item_before_it_places(
    exchange: Exchange,
) -> None:
    results = await ask_batch(
        exchange,
        trader(exchange, BUYER),
        [buy(2, client_id=5), buy(3, client_id=6), m.Cancel(4, client_id=5),
         m.Amend(5, client_id=6, qty="1"), m.Cancel(6, client_id=7)],
    )  # fmt: skip
    assert [type(x) for x in results] == [m.Ack, m.Ack, m.Ack, m.Ack, m.Reject]
    [left] = exchange.desk.feed.open_orders(BUYER)
    assert (left.client_id, left.left) == (6, "1")


async def test_a_batch_sent_again_places_nothing_twice(exchange: Exchange) -> None:
    buyer, items = trader(exchange, BUYER), [buy(2, client_id=5), buy(3, client_id=6)]
    first = [acked(x) for x in await ask_batch(exchange, buyer, items)]
    again = [acked(x) for x in await ask_batch(exchange, trader(exchange, BUYER), items)]
    assert [x.order_id for x in again] == [x.order_id for x in first]
    assert [x.dup for x in first + again] == [False, False, True, True]


async def test_several_markets_are_quoted_in_one_frame(exchange: Exchange) -> None:
    elsewhere = SYMBOL.replace("us-e", "eu-n")
    await exchange.list_market(elsewhere)
    levels = [("1.0", "1")] * (m.QUOTE_LEVELS_MAX // 2)
    buyer = trader(exchange, BUYER)
    items = [m.Quote(2, TICKER, levels), m.Quote(3, elsewhere, levels)]
    results = [acked(x) for x in await ask_batch(exchange, buyer, items)]
    assert [x.count for x in results] == [len(levels)] * 2
    before = exchange.port.ready().last_sequence
    [reply] = buyer.say(m.Batch(4, [*items, m.Quote(5, TICKER, [("1.0", "1")])]))
    assert (refused(reply).code, refused(reply).field) == (Reject.TOO_MANY_LEGS, "items")
    assert exchange.port.ready().last_sequence == before


async def test_nothing_of_a_batch_is_done_without_a_login(exchange: Exchange) -> None:
    before = exchange.port.ready().last_sequence
    results = await ask_batch(exchange, exchange.converse(), [buy(2), m.Cancel(3, 1)])
    assert {refused(x).code for x in results} == {Reject.NOT_LOGGED_IN}
    assert exchange.port.ready().last_sequence == before


async def test_behind_an_item_that_the_engine_has_no_room_for_nothing_is_sequenced(
    exchange: Exchange,
) -> None:
    """Not even a cancel, which it would take: it was meant to come after."""
    buyer = trader(exchange, BUYER)
    rests = acked(await ask(exchange, buyer, buy(2))).order_id
    taken = exchange.port.ready().last_sequence + 2
    asked = itertools.count()
    exchange.port.subscribe(lambda batch: None, has_room=lambda: next(asked) < 2)
    results = await ask_batch(exchange, buyer, [buy(3), buy(4), buy(5), m.Cancel(6, rests), buy(7)])
    assert [type(x) for x in results] == [m.Ack, m.Ack, m.Reject, m.Reject, m.Reject]
    assert {(refused(x).code, refused(x).retry_ms > 0) for x in results[2:]} == {
        (Reject.BUSY, True)
    }
    assert exchange.port.ready().last_sequence == taken


async def test_fills_of_a_batch_are_in_the_accounts_stream(exchange: Exchange) -> None:
    await ask(exchange, trader(exchange, SELLER), sell(2))
    buyer = trader(exchange, BUYER)
    buyer.say(m.Subscribe(2, "account"))
    buyer.say(m.Batch(3, [buy(4, qty="1"), buy(5, qty="2")]))
    await exchange.port.settled()
    heard = buyer.heard()
    assert [type(x) for x in heard].count(m.Fill) == 2
    [reply] = [x for x in heard if isinstance(x, m.BatchAck)]
    fills = {x.order_id: x.qty for x in heard if isinstance(x, m.Fill)}
    assert fills == {acked(reply.results[0]).order_id: "1", acked(reply.results[1]).order_id: "2"}


# --- replace -----------------------------------------------------------------------------------
async def test_an_order_takes_the_place_of_another_with_other_terms(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    old = acked(await ask(exchange, buyer, buy(2, client_id=5)))
    reply = await ask(
        exchange, buyer, instead(3, client_id=6, old_client_id=5, display_qty="2", post_only=True)
    )
    assert isinstance(reply, m.ReplaceAck) and reply.id == 3
    assert reply.cancelled is not None
    assert (reply.cancelled.order_id, reply.cancelled.qty) == (old.order_id, "4")
    assert acked(reply.order).client_id == 6 and acked(reply.order).order_id != old.order_id
    [order] = exchange.desk.feed.open_orders(BUYER)
    assert (order.client_id, order.price, order.shown) == (6, "2.4200", "2")


async def test_an_order_that_is_not_open_any_more_is_not_replaced(exchange: Exchange) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    old = acked(await ask(exchange, buyer, buy(2, client_id=5)))
    await ask(exchange, seller, sell(2))
    for request in (
        instead(3, client_id=6, old_client_id=5),
        instead(4, client_id=6, old_order_id=old.order_id),
        instead(5, client_id=6, old_order_id=99),
        instead(6, client_id=6, old_client_id=99),
    ):
        reject = refused(await ask(exchange, buyer, request))
        assert (reject.id, reject.code) == (request.id, Reject.UNKNOWN_ORDER)
    assert exchange.desk.feed.open_orders(BUYER) == []


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"price": "0"}, Reject.PRICE_OUT_OF_RANGE, "price"),
        ({"market": "NOSUCH"}, Reject.UNKNOWN_INSTRUMENT, "market"),
        ({"old_order_id": 0}, Reject.INVALID_FIELD, "old_order_id"),
        ({"old_client_id": 7}, Reject.INVALID_FIELD, "old_order_id"),
    ],
)
async def test_terms_that_are_wrong_cancel_nothing(
    exchange: Exchange, change: dict[str, Any], code: Reject, field: str
) -> None:
    buyer = trader(exchange, BUYER)
    old = acked(await ask(exchange, buyer, buy(2))).order_id
    request = msgspec.structs.replace(instead(3, old_order_id=old), **change)
    reject = refused(await ask(exchange, buyer, request))
    assert (reject.code, reject.field) == (code, field)
    assert [x.order_id for x in exchange.desk.feed.open_orders(BUYER)] == [old]


async def test_a_new_order_that_is_rejected_is_told_beside_what_was_cancelled(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    old = acked(await ask(exchange, buyer, buy(2))).order_id
    reply = await ask(exchange, buyer, instead(3, qty="1000000", old_order_id=old))
    assert isinstance(reply, m.ReplaceAck) and reply.cancelled is not None
    assert reply.cancelled.qty == "4"
    assert refused(reply.order).code == Reject.INSUFFICIENT_BALANCE
    assert exchange.desk.feed.open_orders(BUYER) == []


async def test_a_replace_sent_again_is_answered_with_the_first_ones_order(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    await ask(exchange, buyer, buy(2, client_id=5))
    request = instead(3, client_id=6, old_client_id=5)
    first = await ask(exchange, buyer, request)
    again = await ask(exchange, trader(exchange, BUYER), request)
    assert isinstance(first, m.ReplaceAck) and isinstance(again, m.ReplaceAck)
    assert again.cancelled is None and acked(again.order).dup
    assert acked(again.order).order_id == acked(first.order).order_id
    assert len(exchange.desk.feed.open_orders(BUYER)) == 1


async def test_a_client_id_that_is_anothers_cancels_nothing(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    await ask(exchange, buyer, buy(2, client_id=5))
    await ask(exchange, buyer, buy(3, client_id=6))
    reject = refused(await ask(exchange, buyer, instead(4, client_id=6, old_client_id=5)))
    assert reject.code == Reject.CLIENT_ID_REUSED
    assert len(exchange.desk.feed.open_orders(BUYER)) == 2


async def test_an_order_still_on_its_way_is_replaced_when_it_is_there(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    assert buyer.say(buy(2, client_id=5)) == []
    assert buyer.say(instead(3, client_id=6, old_client_id=5)) == []
    for _ in range(3):
        await exchange.port.settled()
    placed, replaced = buyer.heard()
    assert acked(placed).client_id == 5
    assert isinstance(replaced, m.ReplaceAck) and acked(replaced.order).client_id == 6


async def test_who_is_cut_off_between_the_two_has_no_order_placed_afterwards(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    old = acked(await ask(exchange, buyer, buy(2))).order_id
    buyer.say(instead(3, old_order_id=old))
    buyer.session.close()
    for _ in range(3):
        await exchange.port.settled()
    assert exchange.desk.feed.open_orders(BUYER) == []
    assert len(exchange.desk.pending) == 0


async def test_a_change_without_terms_of_an_order_on_its_way_is_refused_and_breaks_nothing(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(buy(2, client_id=5))
    assert buyer.say(m.Amend(3, client_id=5, price="nothing")) == []
    for _ in range(2):
        await exchange.port.settled()
    placed, bad = buyer.heard()
    assert acked(placed).id == 2
    assert (refused(bad).id, refused(bad).field) == (3, "price")
    assert exchange.port.ready().stopped == ""


# --- budgets -----------------------------------------------------------------------------------
class Watch:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def limited(**more: int) -> m.Limits:
    return msgspec.structs.replace(DEFAULT_LIMITS, **more)


async def test_a_batch_costs_what_its_items_would_and_is_refused_whole(tmp_path: Path) -> None:
    limits = limited(requests_per_s=10, requests_burst=20, cancels_per_s=10, cancels_burst=5)
    watch = Watch()
    async with running_exchange(tmp_path, limits, watch) as exchange:
        await exchange.list_market()
        await exchange.open_account(BUYER, cash_usdc6=10**9)
        buyer = trader(exchange, BUYER)  # the login: 19 and 5 are left
        before = exchange.port.ready().last_sequence
        cases: list[tuple[list[Any], int]] = [
            ([buy(n) for n in range(2, 22)], 100),
            ([instead(n, old_order_id=1) for n in range(2, 12)], 100),
            ([m.Cancel(n, 1) for n in range(2, 9)], 200),
            ([*[m.Cancel(n, 1) for n in range(2, 9)], buy(20)], 200),
            ([*[buy(n) for n in range(2, 23)], m.Cancel(30, 1)], 200),
        ]
        for items, retry_ms in cases:
            [reply] = buyer.say(m.Batch(9, items))
            reject = refused(reply)
            assert (reject.id, reject.code) == (9, Reject.RATE_LIMITED)
            assert (reject.retry_ms, reject.scope) == (retry_ms, "connection")
        assert exchange.port.ready().last_sequence == before
        reply = await ask(exchange, buyer, m.Batch(9, [buy(2), buy(3), m.Cancel(4, 99)]))
        assert isinstance(reply, m.BatchAck) and reply.budget == (17, 4)


async def test_one_account_on_many_connections_has_one_budget(tmp_path: Path) -> None:
    limits = limited(account_requests_per_s=10, account_requests_burst=6)
    async with running_exchange(tmp_path, limits, Watch()) as exchange:
        for account in (SELLER, BUYER):
            await exchange.open_account(account, cash_usdc6=10**9)
        buyers = [trader(exchange, BUYER) for _ in range(4)]
        answers = [buyer.say(m.Query(9, "balances"))[0] for _ in range(2) for buyer in buyers]
        assert [type(x) for x in answers] == [m.Ack] * 6 + [m.Reject] * 2
        assert acked(answers[1]).account_budget is None, "more than half is left"
        assert acked(answers[4]).account_budget == (1, limits.account_cancels_burst)
        for reject in map(refused, answers[6:]):
            assert (reject.code, reject.scope) == (Reject.RATE_LIMITED, "account")
            assert reject.retry_ms == 100
        assert acked(trader(exchange, SELLER).say(m.Query(9, "balances"))[0])
        stranger = exchange.converse()
        assert isinstance(stranger.say(m.Ping(1))[0], m.Pong)
        fifth = trader(exchange, BUYER)
        assert refused(fifth.say(m.Query(9, "balances"))[0]).scope == "account"


async def test_two_accounts_on_one_address_share_its_budget_and_harm_nobody_elsewhere(
    tmp_path: Path,
) -> None:
    limits = limited(address_requests_per_s=10, address_requests_burst=8)
    watch = Watch()
    async with running_exchange(tmp_path, limits, watch) as exchange:
        for account in (SELLER, BUYER):
            await exchange.open_account(account, cash_usdc6=10**9)
        first, second = (trader(exchange, x, HERE) for x in (SELLER, BUYER))
        third = trader(exchange, BUYER, ELSEWHERE)
        asking = m.Query(9, "balances")
        answers = [x.say(asking)[0] for _ in range(4) for x in (first, second)]
        assert [type(x) for x in answers] == [m.Ack] * 6 + [m.Reject] * 2
        assert acked(answers[5]).address_budget == (0, limits.address_cancels_burst)
        for reject in map(refused, answers[6:]):
            assert (reject.scope, reject.retry_ms) == ("address", 100)
        assert acked(third.say(asking)[0])
        assert acked(trader(exchange, SELLER, "127.0.0.1").say(asking)[0])
        watch.ns += 100 * NS_PER_MS
        assert acked(second.say(asking)[0])
        assert refused(first.say(asking)[0]).scope == "address"


async def test_what_one_budget_refuses_costs_nothing_in_the_others(tmp_path: Path) -> None:
    limits = limited(account_requests_per_s=1, account_requests_burst=3)
    async with running_exchange(tmp_path, limits, Watch()) as exchange:
        await exchange.open_account(BUYER, cash_usdc6=10**9)
        buyer = trader(exchange, BUYER, HERE)
        for _ in range(3):
            acked(buyer.say(m.Query(9, "balances"))[0])
        for _ in range(5):
            assert refused(buyer.say(m.Query(9, "balances"))[0]).scope == "account"
        again = await ask(exchange, buyer, m.CancelAll(3))
        left = limits.requests_burst - 1 - 3  # the login was one, before there was an account
        assert acked(again).budget == (left, limits.cancels_burst - 1)


def test_budgets_that_are_full_again_are_forgotten() -> None:
    watch = Watch()
    budgets = Budgets(limited(address_requests_per_s=10, address_requests_burst=10), watch)
    stays = budgets.of_address(HERE)
    assert stays is not None and budgets.of_address(HERE) is stays
    for number in range(250):
        left = budgets.of_address(f"198.51.100.{number}")
        assert left is not None and left.take(5, 0, watch.ns) == 0
        budgets.leave(left)
    assert len(budgets) == 251, "to come again would gain nothing"
    again = budgets.of_address("198.51.100.7")
    assert again is not None and again.take(6, 0, watch.ns) == 100
    budgets.leave(again)
    watch.ns += 500 * NS_PER_MS
    account = budgets.of_account(b"w" * 20)
    assert account is not None and len(budgets) == 2
    budgets.leave(account)
    assert len(budgets) == 1
    budgets.leave(stays)
    budgets.leave(stays)
    assert len(budgets) == 0


def test_what_is_owed_has_to_come_before_anything_is_taken() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=5)
    bucket.owe(8, 0)
    assert (bucket.left(0), bucket.take(1, 0)) == (0, 400)
    assert bucket.take(1, 400 * NS_PER_MS) == 0
    assert bucket.left(2_000 * NS_PER_MS) == 5


def test_what_is_told_counts_by_what_it_lists() -> None:
    level = ("1", "1")
    assert records_in(m.BookSnapshot("X", 1, [level] * 3, [level] * 2, 0)) == 5
    assert records_in(m.Ack(1, markets=[])) == records_in(m.Ack(1)) == 1
    assert records_in(m.Index("X", "1", "A", 1, 1)) == 1
    assert [Tariff(DEFAULT_LIMITS).of_told(x) for x in (1, 7, 8, 1_000)] == [0, 0, 1, 125]


async def test_what_a_subscription_begins_with_and_an_answer_lists_is_paid_for(
    tmp_path: Path,
) -> None:
    limits = limited(requests_per_s=10, requests_burst=20)
    watch = Watch()
    async with running_exchange(tmp_path, limits, watch) as exchange:
        for hour in range(8):
            await exchange.list_market(SYMBOL.replace("SPOT", f"H|2026-12-01T{hour:02}"))
        for round_ in range(1, 81):
            exchange.desk.feed.publish_index(m.Index("X", "2.5", "A", round_, round_))
        reader = exchange.converse()

        def left(request: m.ClientMessage) -> int:
            budget = acked(reader.say(request)[0]).budget
            assert budget is not None
            return budget[0]

        assert left(m.Query(1, "markets")) == 20 - 1 - 1
        assert left(m.Unsubscribe(2, "status")) == 17
        every = m.Subscribe(3, "index", limit=80)
        assert len(reader.say(every)) == 1 + 80
        assert left(m.Unsubscribe(4, "status")) == 17 - 1 - 10 - 1
        assert len(reader.say(every)) == 1 + 80, "there was a token"
        reject = refused(reader.say(every)[0])
        assert (reject.code, reject.scope) == (Reject.RATE_LIMITED, "connection")
        assert reject.retry_ms == (1 + 10 - 5 + 1) * 100
        watch.ns += reject.retry_ms * NS_PER_MS
        assert left(m.Unsubscribe(5, "status")) == 0


def test_an_address_is_who_has_it() -> None:
    assert whose(HERE) == whose("::ffff:" + HERE) == HERE
    assert whose("2001:db8:1:2::3") == whose("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert whose("2001:db8:1:3::3") != whose("2001:db8:1:2::3")
    assert [whose(x) for x in ("", "127.0.0.1", "::1", "::ffff:127.0.0.1", "x", "/run/s")] == (
        [""] * 6
    )


def test_a_request_takes_as_many_tokens_as_hello_says() -> None:
    tariff = Tariff(DEFAULT_LIMITS)
    levels = [("1", "1")] * 20
    assert tariff.of(buy(1)) == tariff.of(m.Amend(1, 2)) == tariff.of(m.Quote(1, "X")) == (1, 0)
    assert tariff.of(m.Cancel(1, 2)) == tariff.of(m.CancelAll(1)) == (0, 1)
    assert tariff.of(instead(1)) == (2, 0)
    assert tariff.of(m.Quote(1, "X", levels, levels)) == (1 + 5, 0)
    assert tariff.of(m.Block(1, "X", 168, "1", "1")) == (8 + 21, 0)
    assert tariff.of(m.Basket(1, [m.Leg("X", "1", "1")] * 8)) == (4 + 1, 0)
    batch = m.Batch(1, [buy(2), m.Cancel(3, 1), instead(4), m.Quote(5, "X", levels)])
    assert tariff.of(batch) == (1 + 2 + 3, 1)


# --- time and greeting -------------------------------------------------------------------------
async def test_a_pong_has_the_pings_time_again_and_the_servers_between(exchange: Exchange) -> None:
    [pong] = exchange.converse().say(m.Ping(3, 77))
    assert isinstance(pong, m.Pong) and (pong.id, pong.sent_us) == (3, 77)
    assert 0 < pong.received_us <= pong.time_us


async def test_hello_says_how_to_speak_and_what_is_taken(exchange: Exchange, codec: Codec) -> None:
    hello = exchange.converse().hello
    assert hello.subprotocol == codec.subprotocol
    assert hello.limits.weights["replace"] == 2 and hello.limits.batch_items == m.BATCH_ITEMS_MAX
    assert (hello.taking, hello.stopped) == ("everything", "")
    reader = exchange.converse()
    for number, channel in enumerate(hello.channels, 1):
        [reply, *_] = reader.say(m.Subscribe(number, channel, TICKER))
        private = isinstance(reply, m.Reject) and reply.code == Reject.NOT_LOGGED_IN
        assert private == (channel == "account")
    room = False
    exchange.port.subscribe(lambda batch: None, has_room=lambda: room)
    assert exchange.converse().hello.taking == "cancels"
    await exchange.stop()
    gone = exchange.converse().hello
    assert gone.taking == "nothing" and gone.stopped
