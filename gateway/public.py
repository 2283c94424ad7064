"""What everybody may hear of the markets: books, trades, statuses, auctions and spot prices.

Invariant: what a listener is sent after a snapshot, applied to it, is the mirror. The feed tells it
what happened; sessions ask it, through the feed, what a subscription begins with.
"""

from collections.abc import Callable, Iterable
from typing import Final

from compex_client import messages as m
from compex_client.units import price_text, qty_text

from engine.records import Event, FillNote
from engine.rejects import Reject
from gateway import translate
from gateway.hub import EVERY_MARKET, Hub, Topic
from gateway.mirror import Change, MarketState, Mirror
from gateway.translate import SIDE_NAMES
from gateway.wire import BadRequest

OF_ONE_MARKET: Final = frozenset({"book"})
OF_ANY_MARKETS: Final = frozenset({"trades", "status", "index", "auction"})


class Public:
    def __init__(self, hub: Hub, mirror: Mirror) -> None:
        self._hub = hub
        self._mirror = mirror
        self._indexes: dict[str, m.Index] = {}

    # --- what happened -------------------------------------------------------------------------
    def trade(self, event: Event, number: int) -> None:
        """A fill, which is event `number`."""
        market = self._mirror.markets[event.instrument]
        trade = m.Trade(
            market=market.ticker,
            trade_id=number,
            price=price_text(event.price_ticks),
            qty=qty_text(event.qty_lots),
            side=SIDE_NAMES[event.side],
            time_us=translate.time_us(event.time_ns),
            block=bool(event.reason & FillNote.OFF_QUEUE),
        )
        market.trades.append(trade)
        self._tell("trades", event.instrument, lambda: trade)

    def status(self, market: MarketState) -> None:
        self._tell("status", market.instrument, market.status_message)

    def auction(self, market: MarketState, event: Event) -> None:
        market.auction = told = translate.auction(event, market.ticker)
        self._tell("auction", market.instrument, lambda: told)

    def book(self, change: Change, time_us: int) -> None:
        """What one command did to one book."""

        def delta() -> m.BookDelta:
            return m.BookDelta(
                market=change.market.ticker,
                prev=change.prev,
                seq=change.seq,
                bids=[translate.level(*x) for x in change.bids.items()],
                asks=[translate.level(*x) for x in change.asks.items()],
                crc=change.market.book.checksum(),
                time_us=time_us,
            )

        self._tell("book", change.market.instrument, delta)

    def index(self, index: m.Index) -> None:
        """A spot price; its SPOT market may not be listed."""
        self._indexes[index.market] = index
        market = self._mirror.market_named(index.market)
        self._tell("index", market.instrument if market else EVERY_MARKET, lambda: index)

    def _tell(self, channel: str, instrument: int, make: Callable[[], m.ServerMessage]) -> None:
        self._hub.gather(Topic(channel, instrument), make)

    # --- subscriptions -------------------------------------------------------------------------
    def topic(self, channel: str, market: str) -> Topic:
        """Raises BadRequest."""
        if channel in OF_ONE_MARKET or (market and channel in OF_ANY_MARKETS):
            return Topic(channel, self.market(market).instrument)
        if channel in OF_ANY_MARKETS:
            return Topic(channel, EVERY_MARKET)
        raise BadRequest(Reject.UNKNOWN_CHANNEL, "channel")

    def market(self, name: str) -> MarketState:
        """A listed market by ticker or symbol. Raises BadRequest."""
        market = self._mirror.market_named(name)
        if market is None:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market")
        return market

    def first(self, topic: Topic) -> Iterable[m.ServerMessage]:
        """What a new listener is sent first: how things are."""
        every = self._mirror.markets
        chosen = list(every.values()) if topic.of == EVERY_MARKET else [every[topic.of]]
        match topic.channel:
            case "book":
                return [market.snapshot() for market in chosen]
            case "trades":
                return [] if topic.of == EVERY_MARKET else list(every[topic.of].trades)
            case "status":
                return [market.status_message() for market in chosen]
            case "auction":
                return [market.auction for market in chosen if market.auction is not None]
            case _:
                if topic.of == EVERY_MARKET:
                    return list(self._indexes.values())
                found = self._indexes.get(every[topic.of].ticker)
                return [found] if found else []
