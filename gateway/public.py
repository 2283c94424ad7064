"""What everybody may hear of the markets: books, orders, trades, tickers, candles, statuses,
auctions and spot prices.

Invariant: what a listener is sent after a snapshot, applied to it, is the mirror, cut to what it
chose; and nothing is made for a choice that nobody listens to. The feed tells it what happened;
sessions ask it, through the feed, what a subscription begins with.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
from compex_client import messages as m
from compex_client.order_book import OrderBook, Resting
from compex_client.units import price_text, qty_text, usdc_text

from engine.catalog import Catalog
from engine.records import Event, FillNote
from engine.rejects import CatalogError, Reject
from gateway import translate, wildcards
from gateway.candles import KEPT, Candle, SavedTapes, Tapes
from gateway.hub import EVERY_MARKET, Hub, Topic
from gateway.mirror import Change, MarketState, Mirror, Moves, OpenOrder
from gateway.translate import SIDE_NAMES, STATUS_NAMES
from gateway.views import View
from gateway.wire import BadRequest

INDEX_ROUNDS_KEPT: Final = 300  # of each series; not kept over a restart
WILDCARD_MARKETS_MAX: Final = 1_000  # of a channel whose first messages are large
TICKER_EVERY_MS: Final[m.EveryMs] = 100
CANDLES_EVERY_MS: Final[m.EveryMs] = 1000
CANDLES_OF_S: Final[m.IntervalS] = 60
US_PER_S: Final = 1_000_000
US_PER_MINUTE: Final = 60 * US_PER_S


class _Channel(NamedTuple):
    """Whether "" means all markets, which fields of a subscription are for it, and with how many
    of a market it begins, unless its `limit` says so."""

    of_all: bool
    options: frozenset[str] = frozenset()
    usual: int = 1


CHANNELS: Final = {
    "book": _Channel(False, frozenset({"depth", "every_ms"})),
    "orders": _Channel(False),
    "candles": _Channel(False, frozenset({"every_ms", "interval_s", "limit"}), usual=100),
    "ticker": _Channel(True, frozenset({"every_ms"})),
    "trades": _Channel(True),
    "status": _Channel(True),
    "index": _Channel(True, frozenset({"limit"})),
    "auction": _Channel(True),
}
_OPTIONS: Final = ("depth", "every_ms", "interval_s", "limit")


class SavedPublic(msgspec.Struct, array_like=True):
    """What a snapshot keeps of it."""

    tapes: SavedTapes = msgspec.field(default_factory=SavedTapes)


class Public:
    def __init__(self, hub: Hub, mirror: Mirror, catalog: Catalog) -> None:
        self._hub = hub
        self._mirror = mirror
        self._catalog = catalog
        self._tapes = Tapes()
        self._indexes: dict[str, deque[m.Index]] = {}
        self._views: dict[int, dict[Topic, View]] = {}  # by instrument; the chosen ones only
        self._order_books: dict[int, OrderBook] = {}  # as listeners hold them; likewise
        self._printed: dict[int, list[m.OrderChange]] = {}  # trades of the running command
        self._tickers: dict[Topic, m.Ticker] = {}  # as last told
        self._sequence = 0
        self._time_us = 0
        self._minute_us = -US_PER_MINUTE  # when the one began that it is in

    # --- what happened -------------------------------------------------------------------------
    def at(self, sequence: int, time_us: int) -> None:
        """A command begins to be told."""
        self._sequence, self._time_us = sequence, time_us
        if not self._minute_us <= time_us < self._minute_us + US_PER_MINUTE:
            self._minute_us = time_us - time_us % US_PER_MINUTE
            self._begin_minute(time_us // US_PER_S)

    def _begin_minute(self, now_s: int) -> None:
        """Close the candles that are over; what is 24 hours old leaves the tickers."""
        before_s = self._tapes.now_s
        for instrument, interval_s, candle in self._tapes.roll(now_s):
            for topic in self._hub.topics("candles", instrument):
                if topic.interval_s == interval_s:
                    self._hub.gather(topic, lambda t=topic, c=candle: self._candle(t, c, True))
        if self._hub.has("ticker"):
            for instrument in self._tapes.day_changes(before_s, now_s):
                self._pace_ticker(instrument)

    def listed(self, market: MarketState) -> None:
        """A new market; who listens to it by a wildcard is sent how it begins."""
        self.status(market)
        for channel in ("book", "orders"):
            for topic in self._hub.topics(channel, market.instrument):
                for message in self._first_of(topic, market, 1):
                    self._hub.gather(topic, lambda message=message: message)

    def trade(self, event: Event, number: int) -> None:
        """A fill, which is event `number`."""
        instrument = event.instrument
        market = self._mirror.markets[instrument]
        block = bool(event.reason & FillNote.OFF_QUEUE)
        price, qty = price_text(event.price_ticks), qty_text(event.qty_lots)
        trade = m.Trade(
            market=market.ticker,
            trade_id=number,
            price=price,
            qty=qty,
            side=SIDE_NAMES[event.side],
            time_us=translate.time_us(event.time_ns),
            block=block,
        )
        market.trades.append(trade)
        time_s = self._time_us // US_PER_S
        self._tapes.trade(instrument, time_s, event.price_ticks, event.qty_lots, block=block)
        if self._hub.has("trades"):
            self._hub.gather(Topic("trades", instrument), lambda: trade)
        for topic in self._hub.topics("candles", instrument):
            self._hub.pace(topic, lambda t=topic: self._running_candle(t))
        self._pace_ticker(instrument)
        if instrument in self._mirror.watched:
            maker = event.counter_order_id, SIDE_NAMES[1 - event.side]
            self._printed.setdefault(instrument, []).append(("trade", *maker, price, qty))

    def status(self, market: MarketState) -> None:
        self._hub.gather(Topic("status", market.instrument), market.status_message)
        self._pace_ticker(market.instrument)

    def auction(self, market: MarketState, event: Event) -> None:
        market.auction = told = translate.auction(event, market.ticker)
        self._hub.gather(Topic("auction", market.instrument), lambda: told)

    @property
    def has_followers(self) -> bool:
        """Whether anybody wants to be told what becomes of a book."""
        return bool(self._views) or self._hub.has("book") or self._hub.has("ticker")

    def book(self, change: Change) -> None:
        """What one command did to one book."""
        instrument = change.market.instrument
        if self._hub.has("book"):
            self._hub.gather(Topic("book", instrument), lambda: _delta(change, self._time_us))
        views = self._views.get(instrument)
        if views:
            for topic, view in list(views.items()):
                self._look(views, topic, view, change)
        self._pace_ticker(instrument)

    def _look(self, views: dict[Topic, View], topic: Topic, view: View, change: Change) -> None:
        if not self._hub.wants(topic):
            del views[topic]
            self._hub.forget(topic)  # or its delta would follow upon the next view's snapshot
            return
        view.note(change, self._time_us)
        if topic.every_ms:
            self._hub.pace(topic, view.delta)
            return
        delta = view.delta()
        if delta is not None:
            self._hub.gather(topic, lambda: delta)

    def orders(self, moves: dict[int, Moves]) -> None:
        """What one command did to the orders of watched books."""
        if not moves:
            return
        for instrument, moved in moves.items():
            topic = Topic("orders", instrument)
            if not self._hub.wants(topic):
                del self._order_books[instrument]
                self._mirror.watched.discard(instrument)
                continue
            book = self._order_books[instrument]
            changes = [*self._printed.get(instrument, ()), *_net(book, moved)]
            if changes:
                prev, book.seq = book.seq, self._sequence
                told = m.OrdersDelta(
                    book.market, prev, book.seq, changes, book.checksum(), self._time_us
                )
                self._hub.gather(topic, lambda told=told: told)
        self._printed.clear()

    def index(self, index: m.Index) -> None:
        """A spot price; its SPOT market may not be listed."""
        rounds = self._indexes.setdefault(index.market, deque(maxlen=INDEX_ROUNDS_KEPT))
        if rounds and rounds[-1].round == index.round:
            rounds.pop()  # the round was told before, with another price
        rounds.append(index)
        market = self._mirror.market_named(index.market)
        self._hub.gather(
            Topic("index", market.instrument if market else EVERY_MARKET), lambda: index
        )
        if market:
            self._pace_ticker(market.instrument)

    def indexes(self) -> list[m.Index]:
        """The latest round of each spot price."""
        return [rounds[-1] for rounds in self._indexes.values()]

    def rounds(self, name: str) -> deque[m.Index]:
        """The rounds that are kept, oldest first, by the ticker they are told under or the symbol
        of a listed market. Raises BadRequest."""
        found = self._indexes.get(name)
        return self._indexes.get(self.market(name).ticker, deque()) if found is None else found

    # --- tickers and candles -------------------------------------------------------------------
    def _pace_ticker(self, instrument: int) -> None:
        for topic in self._hub.topics("ticker", instrument):
            self._hub.pace(topic, lambda t=topic: self._new_ticker(t))

    def _new_ticker(self, topic: Topic) -> m.Ticker | None:
        """None if it is as it was told, but for the time."""
        told, now = self._tickers.get(topic), self._ticker(topic)
        if told is not None and now == msgspec.structs.replace(told, time_us=now.time_us):
            return None
        self._tickers[topic] = now
        return now

    def _ticker(self, topic: Topic) -> m.Ticker:
        market = self._mirror.markets[topic.of]
        ticker = m.Ticker(
            market.ticker, STATUS_NAMES[market.status], "0", self._time_us, every_ms=topic.every_ms
        )  # fmt: skip
        bid, ask = market.book.best("buy"), market.book.best("sell")
        if bid is not None:
            ticker.bid, ticker.bid_qty = translate.level(*bid)
        if ask is not None:
            ticker.ask, ticker.ask_qty = translate.level(*ask)
        tape = self._tapes.of(topic.of)
        if tape is not None:
            if tape.last_ticks:
                ticker.last, ticker.last_qty = translate.level(tape.last_ticks, tape.last_lots)
            day = tape.day(self._time_us // US_PER_S)
            ticker.volume = qty_text(day.volume_lots)
            if day.open_ticks:
                ticker.open = price_text(day.open_ticks)
                ticker.high, ticker.low = price_text(day.high_ticks), price_text(day.low_ticks)
        rounds = self._indexes.get(market.ticker)
        if rounds:
            ticker.index = rounds[-1].price
        return ticker

    def _running_candle(self, topic: Topic) -> m.Candle | None:
        """None if it was closed meanwhile, which is told."""
        tape = self._tapes.of(topic.of)
        running = tape.running(topic.interval_s) if tape else None
        return running and self._candle(topic, running, False)

    def _candle(self, topic: Topic, candle: Candle, closed: bool) -> m.Candle:
        open_, high, low, close = (price_text(x) if x else "0" for x in candle[1:5])
        return m.Candle(
            market=self._mirror.markets[topic.of].ticker,
            interval_s=topic.interval_s,
            start_s=candle.start_s,
            open=open_,
            high=high,
            low=low,
            close=close,
            volume=qty_text(candle.volume_lots),
            notional=usdc_text(candle.notional_usdc6),
            trades=candle.trades,
            closed=closed,
            every_ms=topic.every_ms,
        )

    # --- subscriptions -------------------------------------------------------------------------
    def topic(self, request: m.Subscribe | m.Unsubscribe) -> Topic:
        """Raises BadRequest."""
        channel = CHANNELS.get(request.channel)
        if channel is None:
            raise BadRequest(Reject.UNKNOWN_CHANNEL, "channel")
        for option in _OPTIONS:
            if option not in channel.options and getattr(request, option, 0):
                raise BadRequest(Reject.INVALID_FIELD, option, f"{request.channel} has no {option}")
        of, wildcard = EVERY_MARKET, ""
        if wildcards.is_wildcard(request.market):
            try:
                wildcard = wildcards.parse(request.market, self._catalog)
            except CatalogError as error:
                raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market", str(error)) from error
        elif request.market or not channel.of_all:
            of = self.market(request.market).instrument
        every_ms, interval_s = request.every_ms, request.interval_s
        if request.channel == "ticker":
            every_ms = every_ms or TICKER_EVERY_MS
        if request.channel == "candles":
            every_ms, interval_s = every_ms or CANDLES_EVERY_MS, interval_s or CANDLES_OF_S
        return Topic(request.channel, of, wildcard, request.depth, every_ms, interval_s)

    def market(self, name: str) -> MarketState:
        """A listed market by ticker or symbol. Raises BadRequest."""
        market = self._mirror.market_named(name)
        if market is None:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market")
        return market

    def first(self, topic: Topic, limit: int) -> Iterable[m.ServerMessage]:
        """What a new listener is sent first: how things are, made as it is taken. Raises
        BadRequest, before anything is."""
        limit = limit or CHANNELS[topic.channel].usual
        if topic.channel == "index" and topic.of == EVERY_MARKET and not topic.wildcard:
            series = self._indexes.values()  # some have no market
            limit = _share(limit, len(series))
            return (index for rounds in series for index in list(rounds)[-limit:])
        chosen = self._chosen(topic)
        if len(chosen) > WILDCARD_MARKETS_MAX and not CHANNELS[topic.channel].of_all:
            words = f"it covers {len(chosen)} markets, more than {WILDCARD_MARKETS_MAX}"
            raise BadRequest(Reject.INVALID_FIELD, "market", words)
        if topic.of == EVERY_MARKET:
            limit = _share(limit, sum(self._has_past(topic.channel, x) for x in chosen))
        return (message for market in chosen for message in self._first_of(topic, market, limit))

    def _has_past(self, channel: str, market: MarketState) -> bool:
        """Whether a subscription begins with more than how the market is."""
        if channel == "candles":
            return self._tapes.of(market.instrument) is not None
        return channel == "index" and market.ticker in self._indexes

    def closed_since(self, topic: Topic, start_s: int) -> int:
        """How many candles of one market that are closed began then or later."""
        tape = self._tapes.of(topic.of)
        return tape.closed_since(topic.interval_s, start_s) if tape else 0

    def _chosen(self, topic: Topic) -> list[MarketState]:
        """The markets that a topic is about."""
        every = self._mirror.markets
        if topic.of != EVERY_MARKET:
            return [every[topic.of]]
        markets = every.values()
        if not topic.wildcard:
            return list(markets)
        return [x for x in markets if topic.wildcard in wildcards.covering(x.symbol)]

    def _first_of(self, topic: Topic, market: MarketState, limit: int) -> Iterable[m.ServerMessage]:
        """Of one market."""
        one = topic._replace(of=market.instrument, wildcard="")
        match topic.channel:
            case "book":
                return [self._snapshot(one, market)]
            case "orders":
                return [_orders_snapshot(self._order_book(market))]
            case "trades":
                return [] if topic.of == EVERY_MARKET else list(market.trades)
            case "ticker":
                self._tickers.pop(one, None)  # the next is news again to those who come now
                return [self._ticker(one)]
            case "candles":
                return self._first_candles(one, limit)
            case "status":
                return [market.status_message()]
            case "auction":
                return [] if market.auction is None else [market.auction]
            case _:
                return list(self._indexes.get(market.ticker, ()))[-limit:]

    def _snapshot(self, topic: Topic, market: MarketState) -> m.BookSnapshot:
        if not topic.depth and not topic.every_ms:
            return market.snapshot()
        views = self._views.setdefault(market.instrument, {})
        view = views.get(topic)
        if view is None:
            view = views[topic] = View(market, topic.depth, topic.every_ms)
        elif topic.every_ms:
            self._hub.pace(topic, view.delta)  # what is not told yet may have nobody else to wait
        return view.snapshot()

    def _order_book(self, market: MarketState) -> OrderBook:
        """As its listeners hold it; built for the first of them."""
        book = self._order_books.get(market.instrument)
        if book is None:
            book = self._order_books[market.instrument] = OrderBook(market.ticker)
            book.seq = self._sequence
            for order in market.queue.values():
                book.add(_resting(order))
            self._mirror.watched.add(market.instrument)
        return book

    def _first_candles(self, topic: Topic, limit: int) -> Iterator[m.Candle]:
        tape = self._tapes.of(topic.of)
        if tape is None:
            return
        for candle in tape.closed(topic.interval_s, min(limit, KEPT)):
            yield self._candle(topic, candle, True)
        running = self._running_candle(topic)
        if running is not None:
            yield running

    # --- snapshots -----------------------------------------------------------------------------
    def save(self) -> SavedPublic:
        return SavedPublic(self._tapes.save())

    def load(self, saved: SavedPublic) -> None:
        self._tapes.load(saved.tapes)


def _share(limit: int, markets: int) -> int:
    """How many of each of several markets are told first: of each as many, so the newest of all."""
    return min(limit, max(1, m.FIRST_OF_SEVERAL_MAX // max(1, markets)))


def _delta(change: Change, time_us: int) -> m.BookDelta:
    return m.BookDelta(
        market=change.market.ticker,
        prev=change.prev,
        seq=change.seq,
        bids=[translate.level(*x) for x in change.bids.items()],
        asks=[translate.level(*x) for x in change.asks.items()],
        crc=change.market.book.checksum(),
        time_us=time_us,
    )


def _resting(order: OpenOrder) -> Resting:
    return Resting(order.order_id, SIDE_NAMES[order.side], order.price_ticks, order.shown_lots)


def _net(book: OrderBook, moves: Moves) -> Iterator[m.OrderChange]:
    """What a command came to, order by order, applied to the book: what left or shrank first, then
    what queues up, in its order."""
    for order_id, order in moves.touched.items():
        held = book.find(order_id)
        if held is None:
            continue
        stays = order.is_on_book and order_id not in moves.queued
        if not stays:
            book.remove(order_id)
            yield _order_change("remove", held)
        elif order.shown_lots != held.qty_lots:
            book.change(order_id, order.shown_lots)
            yield _order_change("change", _resting(order))
    for order in moves.queued.values():
        if order.is_on_book:
            resting = _resting(order)
            book.add(resting)
            yield _order_change("add", resting)


def _order_change(action: m.OrderAction, order: Resting) -> m.OrderChange:
    price, qty = translate.level(order.price_ticks, order.qty_lots)
    return action, order.order_id, order.side, price, qty


def _orders_snapshot(book: OrderBook) -> m.OrdersSnapshot:
    bids, asks = (
        [(x.order_id, *translate.level(x.price_ticks, x.qty_lots)) for x in book.orders(side)]
        for side in SIDE_NAMES
    )
    return m.OrdersSnapshot(book.market, book.seq, bids, asks, book.checksum())
