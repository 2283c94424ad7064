"""One market's book by price level, in integers: the mirror that snapshots and deltas keep.

Invariant: no level is empty or negative, and after a whole command the best bid is below the
best ask, unless the market is in an auction call. The client keeps its mirrors with it, the server
the books it publishes.
"""

import struct
import zlib
from collections.abc import Iterable
from itertools import islice
from operator import neg
from typing import Final

from sortedcontainers import SortedDict

from compex_client.errors import BookOutOfStep, NumberError
from compex_client.messages import CHECKSUM_LEVELS, BookDelta, BookSnapshot, Level
from compex_client.units import parse_price, parse_qty

_LEVEL: Final = struct.Struct("<qq")

Levels = list[tuple[int, int]]  # (price_ticks, qty_lots), best first


def checksum(bids: Iterable[tuple[int, int]], asks: Iterable[tuple[int, int]]) -> int:
    """CRC-32 (zlib's) over the top 10 levels of each side, bids first, best first.

    A level is two little-endian int64: price_ticks, then qty_lots, negative for an ask.
    """
    parts = [_LEVEL.pack(price, qty) for price, qty in islice(bids, CHECKSUM_LEVELS)]
    parts += [_LEVEL.pack(price, -qty) for price, qty in islice(asks, CHECKSUM_LEVELS)]
    return zlib.crc32(b"".join(parts))


class Book:
    """Levels of one market. A change costs O(log n), the best level O(1)."""

    def __init__(self, market: str) -> None:
        self.market: Final = market
        self.seq = 0  # of the last message applied; 0: no snapshot yet
        self._bids: SortedDict[int, int] = SortedDict(neg)
        self._asks: SortedDict[int, int] = SortedDict()

    def _side(self, side: str) -> "SortedDict[int, int]":
        return self._bids if side == "buy" else self._asks

    def set_level(self, side: str, price_ticks: int, qty_lots: int) -> None:
        """`side` is "buy" or "sell"; a quantity of 0 removes the level."""
        levels = self._side(side)
        assert qty_lots >= 0
        if qty_lots:
            levels[price_ticks] = qty_lots
        else:
            levels.pop(price_ticks, None)

    def add(self, side: str, price_ticks: int, qty_lots: int) -> int:
        """More at this price; how much there is then."""
        levels = self._side(side)
        total = levels.get(price_ticks, 0) + qty_lots
        levels[price_ticks] = total
        return total

    def qty_at(self, side: str, price_ticks: int) -> int:
        """Lots at exactly this price; 0 without a level."""
        return self._side(side).get(price_ticks, 0)

    def levels(self, side: str, count: int | None = None) -> Levels:
        """The best `count` levels, all by default, best first."""
        return list(islice(self._side(side).items(), count))

    @property
    def bids(self) -> Levels:
        return self.levels("buy")

    @property
    def asks(self) -> Levels:
        return self.levels("sell")

    def best(self, side: str) -> tuple[int, int] | None:
        """(price_ticks, qty_lots) of the best level; None if the side is empty."""
        return next(iter(self.levels(side, 1)), None)

    def checksum(self) -> int:
        return checksum(self.levels("buy", CHECKSUM_LEVELS), self.levels("sell", CHECKSUM_LEVELS))

    def apply_snapshot(self, snapshot: BookSnapshot) -> None:
        """Forget everything and take this. Raises BookOutOfStep if it contradicts itself."""
        self._bids.clear()
        self._asks.clear()
        self.seq = 0
        self._change(snapshot.bids, snapshot.asks)
        self._compare(snapshot.crc)
        self.seq = snapshot.seq

    def apply_delta(self, delta: BookDelta) -> None:
        """Take one numbered change.

        Raises BookOutOfStep if a message is missing or the checksum disagrees; the book is then
        worthless until the next snapshot.
        """
        if delta.prev != self.seq:
            raise BookOutOfStep(f"{self.market}: at {self.seq}, but {delta.prev} was before this")
        self._change(delta.bids, delta.asks)
        self._compare(delta.crc)
        self.seq = delta.seq

    def _change(self, bids: Iterable[Level], asks: Iterable[Level]) -> None:
        try:
            for side, levels in (("buy", bids), ("sell", asks)):
                for price, qty in levels:
                    qty_lots = parse_qty(qty)
                    if qty_lots < 0:
                        raise BookOutOfStep(f"{self.market}: {qty} at {price}")
                    self.set_level(side, parse_price(price), qty_lots)
        except NumberError as error:
            raise BookOutOfStep(f"{self.market}: {error}") from error

    def _compare(self, crc: int) -> None:
        if self.checksum() != crc:
            raise BookOutOfStep(f"{self.market}: the checksum disagrees")

    def check_invariants(self, may_cross: bool = False) -> None:
        bids, asks = self.bids, self.asks
        assert all(price > 0 and qty > 0 for price, qty in bids + asks)
        assert bids == sorted(bids, reverse=True) and asks == sorted(asks)
        crossed = bids and asks and bids[0][0] >= asks[0][0]
        assert may_cross or not crossed, "the book is crossed"
