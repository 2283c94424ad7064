"""A choice of one market's book: its best levels, as often as its subscribers want them.

Invariant: what a view has told, put together, is the book as of `seq`, cut to `depth` levels of
each side; whoever joins is given just that, so that one numbered chain of changes serves all. A
view is made when somebody chooses it and forgotten when nobody does. The public feed owns them.
"""

from typing import Final

from compex_client import messages as m
from compex_client.book import checksum
from compex_client.messages import CHECKSUM_LEVELS

from gateway import translate
from gateway.mirror import Change, MarketState
from gateway.translate import SIDE_NAMES


class View:
    """`depth` 0 is every level, of which only those that changed are looked at."""

    def __init__(self, market: MarketState, depth: m.Depth, every_ms: m.EveryMs) -> None:
        self._market: Final = market
        self._depth: Final = depth
        self._every_ms: Final = every_ms
        self._seq = market.book.seq
        self._time_us = 0
        self._told: Final = {
            side: dict(market.book.levels(side, depth or None)) for side in SIDE_NAMES
        }
        self._touched: Final = {side: set[int]() for side in SIDE_NAMES}

    def note(self, change: Change, time_us: int) -> None:
        """What a command did to the book."""
        self._time_us = time_us
        if not self._depth:
            self._touched["buy"].update(change.bids)
            self._touched["sell"].update(change.asks)

    def snapshot(self) -> m.BookSnapshot:
        bids = sorted(self._told["buy"].items(), reverse=True)
        asks = sorted(self._told["sell"].items())
        return m.BookSnapshot(
            market=self._market.ticker,
            seq=self._seq,
            bids=[translate.level(*x) for x in bids],
            asks=[translate.level(*x) for x in asks],
            crc=checksum(bids, asks),
            depth=self._depth,
            every_ms=self._every_ms,
        )

    def delta(self) -> m.BookDelta | None:
        """What is other than it was told, which is told now; None if nothing is."""
        bids, asks = self._net("buy"), self._net("sell")
        if not bids and not asks:
            return None
        book = self._market.book
        looked_at = min(self._depth or CHECKSUM_LEVELS, CHECKSUM_LEVELS)
        prev, self._seq = self._seq, book.seq
        return m.BookDelta(
            market=self._market.ticker,
            prev=prev,
            seq=self._seq,
            bids=bids,
            asks=asks,
            crc=checksum(book.levels("buy", looked_at), book.levels("sell", looked_at)),
            time_us=self._time_us,
            depth=self._depth,
            every_ms=self._every_ms,
        )

    def _net(self, side: str) -> list[m.Level]:
        told, book, touched = self._told[side], self._market.book, self._touched[side]
        if self._depth:
            now = dict(book.levels(side, self._depth))
            touched = told.keys() | now.keys() if now != told else ()
        else:
            now = {price: book.qty_at(side, price) for price in touched}
        net = {
            price: now.get(price, 0)
            for price in sorted(touched)
            if now.get(price, 0) != told.get(price, 0)
        }
        for price, lots in net.items():
            if lots:
                told[price] = lots
            else:
                del told[price]
        self._touched[side].clear()
        return [translate.level(*x) for x in net.items()]
