"""What listeners of every public choice put together is the mirror, cut to what they chose: over
random commands of every kind, at each message, and after a restart."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
from compex_client import messages as m
from compex_client.book import Book
from compex_client.order_book import OrderBook
from compex_client.units import parse_price, parse_qty, parse_usdc, price_text, qty_text

from engine.catalog import load_catalog, pack_product
from engine.clock import ScriptedClock
from engine.port import Batch
from engine.records import (
    SPOT_WINDOW,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    command_array,
)
from engine.reference import Reference
from engine.rejects import CatalogError, Reject
from engine.replica import Replica
from gateway import wildcards
from gateway.candles import DAY_S, KEPT, MINUTE_S, MINUTES_KEPT, Candle, Tapes
from gateway.feed import Feed
from gateway.wire import JSON, MSGPACK, BadRequest, Codec
from tests.exchange import ADMINISTRATOR, TICKER, running_exchange, wallet
from tests.frames import frames_in
from tests.model.flow import LATE_MARKETS, Flow
from tests.simulate.loop import VirtualLoop

STEPS: Final = 1_200
DEPTHS: Final = (0, 1, 5, 10, 20, 50, 100)
PACES: Final = (0, 100, 250, 1000)
EVERYTHING: Final = wildcards.ALL
INTERVALS_S: Final[tuple[m.IntervalS, ...]] = (60, 300, 900)
SECOND_NS: Final = 1_000_000_000
_decode: Final[dict[Codec, Callable[[bytes], m.ServerMessage]]] = {
    JSON: msgspec.json.Decoder(m.ServerMessage).decode,
    MSGPACK: msgspec.msgpack.Decoder(m.ServerMessage).decode,
}


def run(story: Coroutine[Any, Any, None]) -> None:
    """In virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story)
        assert not loop.failures
    finally:
        loop.close()


def real_product(instrument: int) -> int:
    """Of the catalog: odd ones are the hours of one series, even ones SPOT of many."""
    if instrument % 2:
        return pack_product(1, 1, 1, 2, (instrument + 1) // 2)
    return pack_product(2 + instrument // 22, 1 + instrument // 2 % 11, 1, SPOT_WINDOW)


class Market:
    """A whole exchange but for the disk: random commands, matched, published, fed."""

    def __init__(self, seed: int) -> None:
        self.rules = Reference()
        self._flow = Flow(Random(seed), self.rules)
        self.replica = Replica(ScriptedClock(0))
        self.fills: list[Event] = []
        self.replica.subscribe(self._keep_fills)
        self.feed = self.another_feed()
        self._sequence = 0

    def another_feed(self) -> Feed:
        return Feed(self.replica, load_catalog(), lambda _event: None, lambda: None)

    def _keep_fills(self, batch: Batch) -> None:
        self.fills += [event for event in batch.events if event.kind == EventKind.FILL]

    def step(self, commands: int = 1) -> None:
        """So many commands, published as one batch."""
        records: list[Command] = []
        for _ in range(commands):
            step = [self._listed_for_real(record) for record in self._flow.next()]
            numbered = [
                record._replace(sequence=number)
                for number, record in enumerate(step, self._sequence + 1)
            ]
            self._sequence += len(step)
            self._flow.observe(self.rules.apply_all(numbered))
            records += numbered
        for events in self.replica.match(command_array(records)):
            self.replica.publish(events, replayed=False)

    def _listed_for_real(self, record: Command) -> Command:
        if record.kind != CommandKind.LIST_MARKET or record.instrument > LATE_MARKETS[-1]:
            return record
        return record._replace(order_id=real_product(record.instrument))


class Reader:
    """Puts together what it is sent, and compares it with the mirror whenever it is sent more."""

    def __init__(self, feed: Feed, codec: Codec, rules: Reference | None = None) -> None:
        self.codec: Final = codec
        self._feed = feed
        self._rules = rules
        self.books: dict[tuple[str, m.Depth, m.EveryMs], Book] = {}
        self.orders: dict[str, OrderBook] = {}
        self.tickers: dict[str, m.Ticker] = {}
        self.candles: dict[tuple[str, int], list[m.Candle]] = {}
        self.actions: set[str] = set()
        self.messages = 0

    def subscribe(self, **fields: Any) -> None:
        request = m.Subscribe(1, **fields)
        topic = self._feed.topic(request, 0)
        for message in self._feed.subscribe(self, topic, request.limit):
            self.send(self.codec.encode(message))

    def send(self, frames: bytes) -> None:
        told: set[tuple[str, m.Depth, m.EveryMs]] = set()
        reordered: set[str] = set()
        for opcode, payload in frames_in(frames):
            assert opcode == self.codec.opcode
            self.messages += 1
            match message := _decode[self.codec](payload):
                case m.BookSnapshot() | m.BookDelta():
                    choice = message.market, message.depth, message.every_ms
                    book = self.books.setdefault(choice, Book(message.market))
                    if isinstance(message, m.BookSnapshot):
                        book.apply_snapshot(message)
                        if message.every_ms:
                            continue  # what the batch that lists a market does to it comes later
                    else:
                        assert message.bids or message.asks
                        book.apply_delta(message)
                    told.add(choice)
                case m.OrdersSnapshot() | m.OrdersDelta():
                    reordered.add(message.market)
                    orders = self.orders.setdefault(message.market, OrderBook(message.market))
                    if isinstance(message, m.OrdersSnapshot):
                        orders.apply_snapshot(message)
                    else:
                        self.actions.update(change[0] for change in message.changes)
                        orders.apply_delta(message)
                case m.Ticker():
                    self.tickers[message.market] = message
                case m.Candle():
                    self._candle(message)
                case m.MarketStatus() | m.Trade() | m.Auction():
                    pass
                case _:
                    raise AssertionError(message)
        for choice in told:
            self.check_book(*choice)
        for market in reordered:
            self.check_orders(market)

    def _candle(self, candle: m.Candle) -> None:
        held = self.candles.setdefault((candle.market, candle.interval_s), [])
        if held and not held[-1].closed:
            assert candle.start_s == held[-1].start_s, "the running one is closed before the next"
            held.pop()
        assert not held or candle.start_s > held[-1].start_s
        assert candle.start_s % candle.interval_s == 0
        held.append(candle)

    def check_book(self, market: str, depth: m.Depth, every_ms: m.EveryMs) -> None:
        mirror, mine = self._feed.market(market).book, self.books[market, depth, every_ms]
        for side in ("buy", "sell"):
            assert mine.levels(side) == mirror.levels(side, depth or None), (market, depth)

    def check_orders(self, market: str) -> None:
        """They add up to the mirror's levels; at rest they are in the order of the rules."""
        mine, state = self.orders[market], self._feed.market(market)
        for side in ("buy", "sell"):
            assert mine.levels(side) == state.book.levels(side)
        if self._rules is not None:
            by_rules = self._rules.books[state.instrument].sides
            for side, levels in zip(("buy", "sell"), by_rules, strict=True):
                best_first = sorted(levels, reverse=side == "buy")
                queue = [(x.order_id, x.qty_lots) for p in best_first for x in levels[p]]
                assert [(x.order_id, x.qty_lots) for x in mine.orders(side)] == queue

    def check_all(self) -> None:
        for choice in self.books:
            self.check_book(*choice)
        for market in self.orders:
            self.check_orders(market)


def all_choices(feed: Feed, rules: Reference) -> list[Reader]:
    """A reader of every book and order there is or will be, for each codec."""
    readers = [Reader(feed, codec, rules) for codec in (JSON, MSGPACK)]
    for reader in readers:
        for depth, every_ms in product(DEPTHS, PACES):
            reader.subscribe(channel="book", market=EVERYTHING, depth=depth, every_ms=every_ms)
        reader.subscribe(channel="orders", market=EVERYTHING)
    return readers


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_put_together_by_any_choice_is_the_mirror(seed: int) -> None:
    async def story() -> None:
        market, chance = Market(seed), Random(seed)
        readers = all_choices(market.feed, market.rules)
        for step in range(STEPS):
            market.step(chance.choice((1, 1, 1, 5)))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.choice((0.05, 0.3, 1.1)))
            if step == STEPS // 2:
                await asyncio.sleep(1.1)
                readers += await restarted(market)
        await asyncio.sleep(1.1)
        for reader in readers:
            reader.check_all()
            assert len(reader.books) == len(market.feed.mirror.markets) * len(DEPTHS) * len(PACES)
            assert reader.actions == {"add", "change", "remove", "trade"}
        print(f"seed {seed}: {sum(reader.messages for reader in readers)} messages")

    run(story())


async def restarted(market: Market) -> list[Reader]:
    """Readers of a feed that goes on from what this one saved."""
    second = market.another_feed()
    second.load(market.feed.save())
    assert second.save() == market.feed.save()
    second.mirror.check_invariants()
    readers = all_choices(second, market.rules)
    for reader in readers:
        reader.check_all()
    return readers


Print = tuple[int, int, int, bool]  # time_s, price_ticks, qty_lots, block


def candles_of(prints: list[Print], interval_s: int) -> list[Candle]:
    """By the definition: the trades of each interval, looked at together."""
    candles: list[Candle] = []
    for start_s in sorted({time_s - time_s % interval_s for time_s, _, _, _ in prints}):
        inside = [x for x in prints if start_s <= x[0] < start_s + interval_s]
        prices = [price for _, price, _, block in inside if not block]
        first, last = (prices[0], prices[-1]) if prices else (0, 0)
        volume = sum(lots for _, _, lots, _ in inside)
        notional_usdc6 = sum(price * lots for _, price, lots, _ in inside)
        high, low = max(prices, default=0), min(prices, default=0)
        candles.append(Candle(start_s, first, high, low, last, volume, notional_usdc6, len(inside)))
    return candles


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_candles_and_the_last_day_are_what_the_trades_say(seed: int) -> None:
    chance, tapes, prints, now_s = Random(seed), Tapes(), list[Print](), 1_795_219_200
    told: dict[int, list[Candle]] = {
        interval: [] for interval in (60, 300, 900, 3600, 14400, 86400)
    }
    for step in range(1_500):
        now_s += chance.choice((0, 1, 20, 90, 400, 4_000, 30_000 if step % 50 == 0 else 7))
        for instrument, interval_s, candle in tapes.roll(now_s):
            assert instrument == 7
            told[interval_s].append(candle)
        if step == 700:
            saved, tapes = tapes.save(), Tapes()
            tapes.load(msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=type(saved)))
        if chance.random() < 0.7:
            price, lots, block = chance.randint(1, 50), chance.randint(1, 9), step % 5 == 0
            prints.append((now_s, price, lots, block))
            tapes.trade(7, now_s, price, lots, block=block)
    tape = tapes.of(7)
    assert tape is not None
    for interval_s, closed in told.items():
        by_definition = candles_of(prints, interval_s)
        running = tape.running(interval_s)
        assert closed + ([running] if running else []) == by_definition, f"seed {seed}"
        assert tape.closed(interval_s, KEPT) == closed[-KEPT:]
    minute_s = now_s - now_s % MINUTE_S
    [*_, last] = [x for x in prints if not x[3]]
    assert (tape.last_ticks, tape.last_lots) == last[1:3]
    inside = [x for x in prints if x[0] - x[0] % MINUTE_S > minute_s - DAY_S]
    [day] = candles_of([(0, *x[1:]) for x in inside], DAY_S)
    assert tape.day(now_s)[1:] == day[1:]


def test_what_is_kept_of_candles_is_bounded() -> None:
    tapes = Tapes()
    for minute in range(2 * MINUTES_KEPT):
        list(tapes.roll(minute * MINUTE_S))
        tapes.trade(1, minute * MINUTE_S, 5, 1, block=False)
    [saved] = tapes.save().tapes
    assert len(saved.closed[MINUTE_S]) == 8 * MINUTES_KEPT
    tape = tapes.of(1)
    assert tape is not None
    assert tape.day((2 * MINUTES_KEPT - 1) * MINUTE_S).trades == DAY_S // MINUTE_S


def as_told(candle: m.Candle) -> Candle:
    open_, high, low, close = map(parse_price, (candle.open, candle.high, candle.low, candle.close))
    volume_lots, notional_usdc6 = parse_qty(candle.volume), parse_usdc(candle.notional)
    return Candle(
        candle.start_s, open_, high, low, close, volume_lots, notional_usdc6, candle.trades
    )


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_candles_and_tickers_are_told_as_they_are_and_again_after_a_restart(codec: Codec) -> None:
    async def story() -> None:
        market, chance = Market(11), Random(11)
        early = Reader(market.feed, codec)
        for interval_s in INTERVALS_S:
            early.subscribe(channel="candles", market=EVERYTHING, interval_s=interval_s)
        early.subscribe(channel="ticker")
        for _ in range(STEPS):
            market.step()
            if chance.random() < 0.1:
                await asyncio.sleep(chance.choice((0.05, 1.1)))
        await asyncio.sleep(1.1)
        second = market.another_feed()
        second.load(market.feed.save())
        late = Reader(second, codec)
        for interval_s in INTERVALS_S:
            late.subscribe(channel="candles", market=EVERYTHING, interval_s=interval_s, limit=1000)
        late.subscribe(channel="ticker")
        assert late.candles == early.candles
        assert late.tickers.keys() == early.tickers.keys()
        for ticker, told in early.tickers.items():
            now = late.tickers[ticker]
            assert msgspec.structs.replace(now, time_us=told.time_us) == told
        for instrument, state in market.feed.mirror.markets.items():
            fills = [x for x in market.fills if x.instrument == instrument]
            prints = [
                (
                    x.time_ns // SECOND_NS,
                    x.price_ticks,
                    x.qty_lots,
                    bool(x.reason & FillNote.OFF_QUEUE),
                )
                for x in fills
            ]
            for interval_s in INTERVALS_S:
                mine = early.candles.get((state.ticker, interval_s), [])
                assert [as_told(x) for x in mine] == candles_of(prints, interval_s)
            check_ticker(early.tickers[state.ticker], prints, state.book)
        assert any(candle.closed for candles in early.candles.values() for candle in candles)

    run(story())


def test_several_markets_begin_with_so_many_candles_and_rounds_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        market = Market(11)
        for _ in range(STEPS):
            market.step()
        feed = market.feed
        tickers = [state.ticker for state in feed.mirror.markets.values()]
        for round_ in range(1, 5):
            for ticker in tickers:
                feed.publish_index(m.Index(ticker, "2.5", "A", round_, round_))

        def told(channel: str, name: str, limit: int) -> dict[str, list[Any]]:
            request = m.Subscribe(1, channel, name, limit=limit)
            found: dict[str, list[Any]] = {}
            for one in feed.first(feed.topic(request, 0), limit):
                if isinstance(one, m.Index) or (isinstance(one, m.Candle) and one.closed):
                    found.setdefault(one.market, []).append(one)
            return found

        candles, rounds = told("candles", EVERYTHING, 1_000), told("index", "", 300)
        assert len(candles) > 2 and len(rounds) == len(tickers)
        # Also one that has traded in the running minute alone: of it no candle is closed.
        of_each = [m.Subscribe(1, "candles", ticker, limit=1) for ticker in tickers]
        traded = sum(any(feed.first(feed.topic(x, 0), 1)) for x in of_each)
        for each in (2, 1, 0):
            most = max(1, each)
            monkeypatch.setattr(m, "FIRST_OF_SEVERAL_MAX", max(1, each * len(tickers)))
            for index in (told("index", "", 300), told("index", EVERYTHING, 300)):
                assert index == {x: found[-most:] for x, found in rounds.items()}
            monkeypatch.setattr(m, "FIRST_OF_SEVERAL_MAX", max(1, each * traded))
            cut = {x: found[-most:] for x, found in candles.items()}
            for limit in (0, 1_000):
                assert told("candles", EVERYTHING, limit) == cut
        for ticker, found in candles.items():
            assert told("candles", ticker, 1_000) == {ticker: found}, "of one market all"

    run(story())


def check_ticker(ticker: m.Ticker, prints: list[Print], book: Book) -> None:
    """Of a market that has traded for less than 24 hours."""
    bid, ask = book.best("buy"), book.best("sell")
    assert (ticker.bid, ticker.bid_qty) == (_level(bid) if bid else ("", ""))
    assert (ticker.ask, ticker.ask_qty) == (_level(ask) if ask else ("", ""))
    assert ticker.volume == qty_text(sum(lots for _, _, lots, _ in prints))
    priced = [(price, lots) for _, price, lots, block in prints if not block]
    assert (ticker.last, ticker.last_qty) == (_level(priced[-1]) if priced else ("", ""))
    prices = [price for price, _ in priced]
    expected = (
        tuple(map(price_text, (prices[0], max(prices), min(prices)))) if prices else ("",) * 3
    )
    assert (ticker.open, ticker.high, ticker.low) == expected


def _level(level: tuple[int, int]) -> tuple[str, str]:
    return price_text(level[0]), qty_text(level[1])


def test_a_ticker_is_told_once_a_beat_and_only_when_it_changes() -> None:
    async def story() -> None:
        market = Market(11)
        for _ in range(100):
            market.step()
        reader = Reader(market.feed, JSON)
        reader.subscribe(channel="ticker", every_ms=250)
        listed = len(market.feed.mirror.markets)
        assert reader.messages == len(reader.tickers) == listed
        for _ in range(200):
            market.step()
        assert reader.messages == listed, "the beat has not come"
        await asyncio.sleep(0.3)
        told = reader.messages
        assert listed < told <= 2 * len(market.feed.mirror.markets)
        market.feed.publish_index(m.Index(next(iter(reader.tickers)), "2.5", "A", 1, 1))
        await asyncio.sleep(0.3)
        market.feed.publish_index(m.Index(next(iter(reader.tickers)), "2.5", "A", 2, 2))
        await asyncio.sleep(0.3)
        assert reader.messages == told + 1, "the second round has the same price"

    run(story())


def test_who_comes_within_the_beat_of_a_book_that_all_had_left_is_told_what_follows() -> None:
    async def story() -> None:
        market = Market(11)
        market.step(200)
        gone = Reader(market.feed, JSON)
        gone.subscribe(channel="book", market=EVERYTHING, every_ms=1000)
        market.step(200)
        topic = market.feed.topic(m.Subscribe(1, "book", EVERYTHING, every_ms=1000), 0)
        market.feed.unsubscribe(gone, topic)
        market.step(200)
        reader = Reader(market.feed, JSON)
        reader.subscribe(channel="book", market=EVERYTHING, every_ms=1000)
        for _ in range(3):
            await asyncio.sleep(1.1)  # a delta that does not follow upon what was told is refused
            reader.check_all()
            market.step(200)

    run(story())


def test_wildcards_cover_what_their_fields_say_and_nothing_else() -> None:
    catalog = load_catalog()
    spot = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
    hour = "nv.h100-sxm-80g.x8.ib|us-e|B|H|2026-12-01T14"
    assert len(wildcards.covering(spot)) == 14 and len(wildcards.covering(hour)) == 22
    for name, covers_spot, covers_hour in (
        ("nv.h100-sxm-80g.x8.ib|*|*|SPOT", True, False),
        ("*|us-e|*|*", True, True),
        ("*|eu-n|*|*", False, False),
        ("*|*|*|H|*", False, True),
        ("*|us-e|B|H|2026-12-01T14", False, True),
    ):
        assert wildcards.parse(name, catalog) == name
        assert (name in wildcards.covering(spot)) == covers_spot
        assert (name in wildcards.covering(hour)) == covers_hour
    assert wildcards.parse(EVERYTHING, catalog) == ""
    for name in ("*", "*|*|*", "*|moon|*|*", "*|*|*|H", "*|*|*|*|*", "*|*|*|SPOT|*", "*|*|*|H|14"):
        with pytest.raises(CatalogError):
            wildcards.parse(name, catalog)


def test_who_asks_twice_for_a_market_hears_each_message_once_unless_the_choices_differ() -> None:
    async def story() -> None:
        market = Market(11)
        for _ in range(60):
            market.step()
        some = next(iter(market.feed.mirror.markets.values()))
        series = some.symbol.split("|")[0]
        once, twice = Reader(market.feed, JSON), Reader(market.feed, JSON)
        once.subscribe(channel="book", market=some.ticker)
        for name in (some.ticker, f"{series}|*|*|*", EVERYTHING):
            twice.subscribe(channel="book", market=name)
        twice.subscribe(channel="book", market=some.ticker, depth=1)
        for _ in range(300):
            market.step()  # each number is told once, or the chain would break
        assert set(twice.books) > {(some.ticker, 0, 0), (some.ticker, 1, 0)}
        assert twice.books[some.ticker, 0, 0].seq == once.books[some.ticker, 0, 0].seq
        assert not [x for x in once.books if x[0] != some.ticker]

    run(story())


@pytest.mark.parametrize(
    ("fields", "reject", "field"),
    [
        ({"channel": "gossip"}, Reject.UNKNOWN_CHANNEL, "channel"),
        ({"channel": "trades", "depth": 5}, Reject.INVALID_FIELD, "depth"),
        (
            {"channel": "orders", "market": EVERYTHING, "every_ms": 100},
            Reject.INVALID_FIELD,
            "every_ms",
        ),
        ({"channel": "book", "market": EVERYTHING, "limit": 5}, Reject.INVALID_FIELD, "limit"),
        ({"channel": "ticker", "interval_s": 60}, Reject.INVALID_FIELD, "interval_s"),
        ({"channel": "candles"}, Reject.UNKNOWN_INSTRUMENT, "market"),
        ({"channel": "book", "market": "*|moon|*|*"}, Reject.UNKNOWN_INSTRUMENT, "market"),
    ],
)
def test_a_choice_that_a_channel_has_not_is_refused(
    fields: dict[str, Any], reject: Reject, field: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        Reader(Market(1).feed, JSON).subscribe(**fields)
    assert (refused.value.reject, refused.value.field) == (reject, field)


def test_who_leaves_is_told_nothing_more_and_nothing_is_made_for_nobody() -> None:
    async def story() -> None:
        market = Market(11)
        for _ in range(60):
            market.step()
        reader = Reader(market.feed, JSON)
        choices: list[dict[str, Any]] = [
            {"channel": "book", "depth": 5},
            {"channel": "book", "every_ms": 100},
            {"channel": "orders"},
            {"channel": "candles"},
            {"channel": "ticker"},
        ]
        for choice in choices:
            reader.subscribe(market=EVERYTHING, **choice)
        for choice in choices:
            topic = market.feed.topic(m.Unsubscribe(1, market=EVERYTHING, **choice), 0)
            market.feed.unsubscribe(reader, topic)
        heard = reader.messages
        for _ in range(200):
            market.step()
        await asyncio.sleep(1.1)
        assert reader.messages == heard and not market.feed.mirror.watched
        again = Reader(market.feed, JSON, market.rules)
        for choice in choices:
            again.subscribe(market=EVERYTHING, **choice)
        again.check_all()

    run(story())


def test_what_the_version_before_saved_is_read_with_the_queues_as_the_orders_came() -> None:
    market = Market(11)
    for _ in range(STEPS // 2):
        market.step()
    sequence, time_us, balances, mirror, _tapes, _leases = msgspec.msgpack.decode(
        market.feed.save(), strict=False, type=tuple[int, int, dict[int, Any], list[Any], Any, Any]
    )
    mirror[0] = [saved[:-1] for saved in mirror[0]]  # of each market, all but its queue
    second = market.another_feed()
    second.load(msgspec.msgpack.encode((sequence, time_us, balances, mirror)))
    second.mirror.check_invariants()
    reader = Reader(second, JSON)
    reader.subscribe(channel="orders", market=EVERYTHING)
    assert any(any(orders.orders("buy")) for orders in reader.orders.values())
    for orders in reader.orders.values():
        for side in ("buy", "sell"):
            assert orders.levels(side) == second.market(orders.market).book.levels(side)


@pytest.mark.parametrize(
    ("in_call", "queue"), [(False, [(2, 3_000), (1, 1_000)]), (True, [(1, 1_000), (2, 5_000)])]
)
async def test_an_icebergs_next_part_goes_to_the_back_but_in_an_auction_it_stays(
    tmp_path: Path, in_call: bool, queue: list[tuple[int, int]]
) -> None:
    """One offers 100 and shows 10, the other 50 behind it; somebody buys 30."""
    async with running_exchange(tmp_path) as exchange:
        instrument = await exchange.list_market()
        for account in (1, 2, 3):
            await exchange.open_account(account, cash_usdc6=10**12, bond_usdc6=10**12)
            await exchange.declare(account, instrument, 10**8)
        chief, first, second, buyer = (
            exchange.converse(who) for who in (ADMINISTRATOR, *map(wallet, (101, 102, 103)))
        )
        reader = Reader(exchange.desk.feed, JSON)
        reader.subscribe(channel="orders", market=TICKER)
        if in_call:
            chief.say(m.Market(2, "call", TICKER))
        first.say(m.New(2, TICKER, "sell", "2.5", "100", display_qty="10"))
        second.say(m.New(2, TICKER, "sell", "2.5", "50"))
        buyer.say(m.New(2, TICKER, "buy", "2.5", "30"))
        if in_call:
            chief.say(m.Market(3, "uncross", TICKER))
        await exchange.port.settled()
        [mine], [others] = (exchange.desk.feed.open_orders(account) for account in (1, 2))
        number = {mine.order_id: 1, others.order_id: 2}
        shown = [(number[x.order_id], x.qty_lots) for x in reader.orders[TICKER].orders("sell")]
        assert shown == queue
