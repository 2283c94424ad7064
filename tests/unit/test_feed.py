"""What listeners are told, put together again, is what the engine holds."""

import random
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from compex_client import messages as m
from compex_client.book import Book
from compex_client.units import parse_qty, price_text, qty_text

from engine.journal import read as read_journal
from engine.records import EventKind, Purse, decode_commands
from engine.reference import Reference
from gateway.feed import Topic
from gateway.mirror import CLOSED_ORDERS_KEPT, TRADES_KEPT
from gateway.snapshots import take as take_snapshot
from tests.exchange import ADMINISTRATOR, TICKER, Conversation, Exchange, running_exchange, wallet

TRADERS = (1, 2, 3)
STEPS = 400
SECOND_NS = 1_000_000_000
SELF_TRADES: tuple[m.SelfTrade, ...] = (
    "cancel_taker", "cancel_maker", "cancel_both", "decrement",
)  # fmt: skip


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncGenerator[Exchange]:
    """One market; three traders that may both buy and sell."""
    async with running_exchange(tmp_path) as running:
        instrument = await running.list_market()
        for account in TRADERS:
            await running.open_account(account, cash_usdc6=10**12, bond_usdc6=10**12)
            await running.declare(account, instrument, 10**8)
        yield running


class Mirrored:
    """What a careful client keeps from its frames alone."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.book = Book(TICKER)
        self.aseq = 0
        self.left: dict[int, str] = {}
        self.hidden_lots: dict[int, int] = {}
        self.reasons: set[str] = set()
        self.balances: m.Balances | None = None
        self.trades: list[m.Trade] = []
        self.acks: list[m.Ack] = []

    def listen(self) -> None:
        for message in self.conversation.heard():
            match message:
                case m.BookSnapshot():
                    self.book.apply_snapshot(message)
                case m.BookDelta():
                    self.book.apply_delta(message)
                    self.book.check_invariants()
                case m.AccountSnapshot():
                    self.aseq, self.balances = message.aseq, message.balances
                    self.left = {x.order_id: x.left for x in message.orders}
                case m.Order() | m.Fill():
                    assert message.aseq == self.aseq + 1
                    self.aseq = message.aseq
                    self.left[message.order_id] = message.left
                    if isinstance(message, m.Order):
                        self.reasons.add(message.reason)
                        shown = message.shown or message.left
                        hidden_lots = parse_qty(message.left) - parse_qty(shown)
                        self.hidden_lots[message.order_id] = hidden_lots
                case m.Lease() | m.OrderRejected() | m.CancelledAll():
                    assert message.aseq == self.aseq + 1
                    self.aseq = message.aseq
                case m.Balance():
                    assert message.aseq == self.aseq
                    self.balances = message.balances
                case m.Trade():
                    self.trades.append(message)
                case m.Ack():
                    self.acks.append(message)
                case m.Reject():
                    assert 2000 < message.code < 3000, message
                case _:
                    raise AssertionError(message)

    @property
    def open(self) -> dict[int, str]:
        return {order_id: left for order_id, left in self.left.items() if left != "0"}

    @property
    def shown(self) -> dict[int, str]:
        """What the book shows of each open order, as an `OrderInfo` has it."""
        return {
            order_id: qty_text(parse_qty(left) - hidden) if hidden else ""
            for order_id, left in self.open.items()
            for hidden in [self.hidden_lots[order_id]]
        }


def random_request(rng: random.Random, number: int, mine: Mirrored, now_s: int) -> m.ClientMessage:
    """Mostly orders near one price, of every kind, so that they trade, meet themselves, are
    amended, expire and are cancelled."""
    draw = rng.random()
    price = f"2.{rng.randrange(4140, 4160)}"
    lots = rng.randrange(1, 500)
    self_trade = rng.choice(SELF_TRADES)
    if draw < 0.15 and mine.open:
        return m.Cancel(number, rng.choice(list(mine.open)))
    if draw < 0.35 and mine.open:
        return m.Amend(
            number,
            rng.choice(list(mine.open)),
            price=price if rng.random() < 0.5 else "",
            qty=qty_text(lots),
            post_only=rng.random() < 0.2,
            self_trade=self_trade,
        )
    if draw < 0.36:
        return m.CancelAll(number, TICKER, rng.choice(["", "buy", "sell"]))
    order = m.New(
        number,
        TICKER,
        rng.choice(["buy", "sell"]),
        price,
        qty_text(lots),
        client_id=number if rng.random() < 0.3 else 0,
        tif=rng.choice(["gtc", "gtc", "gtt", "gtt", "ioc", "fok"]),
        self_trade=self_trade,
    )
    if order.tif == "gtt":
        order.expires_s = now_s + rng.randrange(30)
    if order.tif in {"gtc", "gtt"} and rng.random() < 0.5:
        order.display_qty = qty_text(rng.randrange(1, lots + 1))
    if order.tif in {"ioc", "fok"} and rng.random() < 0.5:
        order.type, order.price, order.protection = "market", "", f"0.{rng.randrange(20):04d}"
    if rng.random() < 0.1:
        order.min_qty = qty_text(rng.randrange(1, lots + 1))
    return order


async def trade_at_random(exchange: Exchange, seed: int) -> list[Mirrored]:
    rng = random.Random(seed)
    traders = [Mirrored(exchange.converse(wallet(100 + n))) for n in TRADERS]
    for number, trader in enumerate(traders, 1):
        for channel in ("book", "trades", "account"):
            market = "" if channel == "account" else TICKER
            trader.conversation.session.receive(
                f'{{"t":"subscribe","id":{number},"channel":"{channel}","market":"{market}"}}'
            )
    for number in range(10, 10 + STEPS):
        trader = rng.choice(traders)
        heard = trader.conversation
        now_ns = exchange.clock.now_ns()
        request = random_request(rng, number, trader, now_ns // SECOND_NS)
        heard.session.receive(msgspec.json.encode(request))
        if rng.random() < 0.4:  # otherwise the engine takes several commands in one group
            await exchange.port.settled()
            for each in traders:
                each.listen()
            # Only here: what is due then is known to the engine, and leaves at the next request.
            if number < STEPS:
                exchange.clock.advance_to(now_ns + SECOND_NS)
    await exchange.port.settled()
    for each in traders:
        each.listen()
    return traders


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_listeners_put_together_is_what_the_engine_holds(
    exchange: Exchange, seed: int
) -> None:
    traders = await trade_at_random(exchange, seed)
    feed = exchange.desk.feed
    feed.mirror.check_invariants()
    book = feed.market(TICKER).book
    assert traders[0].trades and all(x.trades == traders[0].trades for x in traders)
    for account, trader in zip(TRADERS, traders, strict=True):
        assert (trader.book.bids, trader.book.asks) == (book.bids, book.asks), f"seed {seed}"
        assert trader.book.seq == book.seq
        assert trader.open == {x.order_id: x.left for x in feed.open_orders(account)}
        assert trader.shown == {x.order_id: x.shown for x in feed.open_orders(account)}
        assert trader.balances == feed.balances(account)
        held = sum(
            order.left_lots * order.price_ticks
            for order in feed.account(account).orders.values()
            if order.side == 0
        )
        assert exchange.port.balances(account).held_usdc6 == held


def by_the_rules(directory: Path) -> tuple[Reference, set[EventKind]]:
    """What the specification makes of the journal, and which kinds of event that took."""
    rules, kinds = Reference(), set[EventKind]()
    for frame in read_journal(directory / "journal"):
        for command in decode_commands(frame.commands):
            kinds.update(EventKind(event.kind) for event in rules.apply(command))
    return rules, kinds


def shown_by(rules: Reference) -> list[dict[int, int]]:
    """Lots by price of the one market's sides."""
    [listed] = rules.books.values()
    return [
        {price: sum(x.qty_lots for x in queue) for price, queue in levels.items()}
        for levels in listed.sides
    ]


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_the_public_book_shows_what_the_rules_say_and_no_more(
    exchange: Exchange, tmp_path: Path, seed: int
) -> None:
    traders = await trade_at_random(exchange, seed)
    await exchange.stop()
    rules, kinds = by_the_rules(tmp_path)
    shown = shown_by(rules)
    for trader in traders:
        assert [dict(trader.book.bids), dict(trader.book.asks)] == shown, f"seed {seed}"
    for account, trader in zip(TRADERS, traders, strict=True):
        mine = {x.order_id: x for x in rules.orders.values() if x.account == account}
        assert trader.open == {k: qty_text(x.left) for k, x in mine.items()}
        assert trader.shown == {
            k: qty_text(x.qty_lots) if x.hidden_lots else "" for k, x in mine.items()
        }
        infos = {x.order_id: x for x in exchange.desk.feed.open_orders(account)}
        assert {k: (x.client_id, x.price) for k, x in infos.items()} == {
            k: (x.client_id, price_text(x.price_ticks)) for k, x in mine.items()
        }
    assert kinds >= {EventKind.AMENDED, EventKind.CONCEALED, EventKind.REFRESHED}
    assert {"EXPIRED", "AMENDED", "IOC_REMAINDER", "SELF_TRADE"} <= traders[0].reasons


async def test_the_engine_cancels_exactly_the_orders_the_mirror_shows(exchange: Exchange) -> None:
    traders = await trade_at_random(exchange, seed=4)
    shown = [len(exchange.desk.feed.open_orders(account)) for account in TRADERS]
    assert sum(shown) > 0
    for trader in traders:
        trader.acks.clear()
        trader.conversation.session.receive('{"t":"cancel_all","id":9999}')
    await exchange.port.settled()
    for trader in traders:
        trader.listen()
    assert [trader.acks[-1].count for trader in traders] == shown
    assert traders[0].book.bids == traders[0].book.asks == []
    assert all(trader.open == {} for trader in traders)
    exchange.desk.feed.mirror.check_invariants()


@pytest.mark.parametrize("with_snapshot", [False, True])
async def test_after_a_restart_books_orders_and_numbers_are_the_same(
    tmp_path: Path, with_snapshot: bool
) -> None:
    async with running_exchange(tmp_path) as first:
        instrument = await first.list_market()
        for account in TRADERS:
            await first.open_account(account, cash_usdc6=10**12, bond_usdc6=10**12)
            await first.declare(account, instrument, 10**8)
        await trade_at_random(first, seed=5)
        feed = first.desk.feed
        before = feed.market(TICKER).snapshot(), [feed.account(x) for x in TRADERS]
        money = [feed.balances(x) for x in TRADERS]
        trades = list(feed.market(TICKER).trades)
    if with_snapshot:
        assert take_snapshot(tmp_path / "journal") is not None
    async with running_exchange(tmp_path) as second:
        feed = second.desk.feed
        assert (second.port.ready().started_from > 0) == with_snapshot
        assert (feed.market(TICKER).snapshot(), [feed.account(x) for x in TRADERS]) == before
        assert [feed.balances(x) for x in TRADERS] == money
        assert list(feed.market(TICKER).trades) == trades
        assert feed.account_of(wallet(101).address_bytes) == 1
        await trade_at_random(second, seed=6)
        feed.mirror.check_invariants()
        book = feed.market(TICKER).book
        rules, _ = by_the_rules(tmp_path)
        assert [dict(book.bids), dict(book.asks)] == shown_by(rules)


async def test_an_order_that_never_rests_leaves_the_book_silent(exchange: Exchange) -> None:
    reader = Mirrored(exchange.converse())
    reader.conversation.say(m.Subscribe(1, "book", TICKER))
    buyer = exchange.converse(wallet(101))
    buyer.say(m.New(2, TICKER, "buy", "1", "1", tif="ioc"))
    await exchange.port.settled()
    assert reader.conversation.heard() == []


async def test_a_delta_says_what_came_before_it(exchange: Exchange) -> None:
    reader, buyer = exchange.converse(), exchange.converse(wallet(101))
    _, snapshot = reader.say(m.Subscribe(1, "book", TICKER))
    for number in (2, 3):
        buyer.say(m.New(number, TICKER, "buy", "2.5", "1"))
        await exchange.port.settled()
    first, second = reader.heard()
    assert isinstance(snapshot, m.BookSnapshot)
    assert isinstance(first, m.BookDelta) and isinstance(second, m.BookDelta)
    assert (first.prev, second.prev) == (snapshot.seq, first.seq)
    assert (first.bids, second.bids) == ([("2.5000", "1")], [("2.5000", "2")])


async def test_a_frame_is_encoded_once_for_all_who_want_it(exchange: Exchange) -> None:
    readers = [exchange.converse() for _ in range(3)]
    for reader in readers:
        reader.say(m.Subscribe(1, "book", TICKER))
    exchange.converse(wallet(101)).say(m.New(2, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    frames = [reader.outbox.take() for reader in readers]
    assert [len(x) for x in frames] == [1, 1, 1]
    assert frames[0][0] is frames[1][0] is frames[2][0]


async def test_a_listener_of_one_market_and_of_all_hears_a_trade_once(exchange: Exchange) -> None:
    reader = exchange.converse()
    reader.say(m.Subscribe(1, "trades"))
    reader.say(m.Subscribe(2, "trades", TICKER))
    exchange.converse(wallet(101)).say(m.New(2, TICKER, "sell", "1", "1"))
    exchange.converse(wallet(102)).say(m.New(2, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    [trade] = reader.heard()
    assert isinstance(trade, m.Trade) and (trade.price, trade.side) == ("1.0000", "buy")
    _, latest = exchange.converse().say(m.Subscribe(1, "trades", TICKER))
    assert latest == trade


async def test_what_is_kept_of_the_past_is_bounded(exchange: Exchange) -> None:
    seller, buyer = exchange.converse(wallet(101)), exchange.converse(wallet(102))
    for number in range(2, 2 + CLOSED_ORDERS_KEPT + 20):
        seller.say(m.New(number, TICKER, "sell", "1", "0.01"))
        buyer.say(m.New(number, TICKER, "buy", "1", "0.01"))
    await exchange.port.settled()
    feed = exchange.desk.feed
    assert len(feed.account(1).closed) == CLOSED_ORDERS_KEPT
    assert len(feed.market(TICKER).trades) == TRADES_KEPT
    assert feed.account(1).orders == {}


async def test_a_private_stream_is_told_to_its_account_alone(exchange: Exchange) -> None:
    mine, other = exchange.converse(wallet(101)), exchange.converse(wallet(102))
    for conversation in (mine, other):
        conversation.say(m.Subscribe(1, "account"))
    mine.say(m.New(2, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    assert [type(x) for x in mine.heard()] == [m.Ack, m.Order, m.Balance]
    assert other.heard() == []


async def test_two_connections_of_an_account_hear_the_same(exchange: Exchange) -> None:
    one, two = exchange.converse(wallet(101)), exchange.converse(wallet(101))
    for conversation in (one, two):
        conversation.say(m.Subscribe(1, "account"))
    exchange.deposit(1, 5, Purse.BOND)
    await exchange.port.settled()
    heard = one.heard()
    assert heard == two.heard() and [type(x) for x in heard] == [m.Transfer, m.Balance]


async def test_statuses_are_told_now_and_at_each_change(exchange: Exchange) -> None:
    reader, chief = exchange.converse(), exchange.converse(ADMINISTRATOR)
    _, now = reader.say(m.Subscribe(1, "status"))
    assert isinstance(now, m.MarketStatus) and now.status == "open"
    chief.say(m.Market(1, "halt", TICKER))
    await exchange.port.settled()
    [then] = reader.heard()
    assert isinstance(then, m.MarketStatus) and then.status == "halted"


async def test_an_index_is_told_to_those_who_wait_and_to_those_who_come(
    exchange: Exchange,
) -> None:
    early = exchange.converse()
    early.say(m.Subscribe(1, "index"))
    index = m.Index(market=TICKER, price="2.4150", quality="A", round=1, time_us=1)
    exchange.desk.feed.publish_index(index)
    assert early.heard() == [index]
    for market in ("", TICKER):
        _, told = exchange.converse().say(m.Subscribe(1, "index", market))
        assert told == index


async def test_unsubscribing_ends_the_messages_and_the_topic(exchange: Exchange) -> None:
    reader, buyer = exchange.converse(), exchange.converse(wallet(101))
    reader.say(m.Subscribe(1, "book", TICKER))
    reader.say(m.Unsubscribe(2, "book", TICKER))
    buyer.say(m.New(2, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    assert reader.heard() == []
    exchange.desk.feed.unsubscribe(reader.session, Topic("book", 1))  # again is harmless


async def test_a_heartbeat_tells_the_last_numbers(exchange: Exchange) -> None:
    buyer = exchange.converse(wallet(101))
    buyer.say(m.New(2, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    buyer.heard()
    buyer.session.heartbeat()
    [beat] = buyer.heard()
    assert isinstance(beat, m.Heartbeat)
    assert beat.sequence == exchange.port.ready().durable_sequence
    assert beat.aseq == exchange.desk.feed.account(1).aseq > 0


async def test_capacities_are_in_the_account_snapshot(exchange: Exchange) -> None:
    _, snapshot = exchange.converse(wallet(101)).say(m.Subscribe(1, "account"))
    assert isinstance(snapshot, m.AccountSnapshot)
    assert [(market, parse_qty(qty)) for market, qty in snapshot.capacities] == [(TICKER, 10**8)]
    assert snapshot.wallet == wallet(101).address
