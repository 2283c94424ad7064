"""One market's book order by order, in integers: the queue at every price, as it will be filled.

Invariant: no order is empty, each stands at one price, and of each price's orders the first is the
one that trades first; added up they are the levels of `book.Book`, at every number. The client
keeps its mirrors with it, the server the checksums it publishes.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import neg
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from compex_client.book import Levels
from compex_client.errors import BookOutOfStep, NumberError
from compex_client.messages import CHECKSUM_LEVELS, OrderChange, OrdersDelta, OrdersSnapshot, Side
from compex_client.units import parse_price, parse_qty

_ORDER: Final = struct.Struct("<qqq")


class Resting(NamedTuple):
    """One order as the book shows it: of an iceberg only the part that is shown."""

    order_id: int
    side: Side
    price_ticks: int
    qty_lots: int


class OrderBook:
    """Orders of one market. A change costs O(log levels), the checksum O(1)."""

    def __init__(self, market: str) -> None:
        self.market: Final = market
        self.seq = 0  # of the last message applied; 0: no snapshot yet
        self._orders: dict[int, Resting] = {}
        # The queues by price: a dict keeps its order, and a lost place is a deletion and an entry.
        self._bids: SortedDict[int, dict[int, Resting]] = SortedDict(neg)
        self._asks: SortedDict[int, dict[int, Resting]] = SortedDict()

    def _side(self, side: str) -> "SortedDict[int, dict[int, Resting]]":
        return self._bids if side == "buy" else self._asks

    # --- reading -------------------------------------------------------------------------------
    def find(self, order_id: int) -> Resting | None:
        return self._orders.get(order_id)

    def orders(self, side: str) -> Iterator[Resting]:
        """Of "buy" or "sell", in the order in which they would trade."""
        for queue in self._side(side).values():
            yield from queue.values()

    def levels(self, side: str) -> Levels:
        """What they add up to: (price_ticks, qty_lots), best first."""
        return [
            (price, sum(order.qty_lots for order in queue.values()))
            for price, queue in self._side(side).items()
        ]

    def checksum(self) -> int:
        """CRC-32 (zlib's) over the first 10 orders of each side, bids first, in the order in which
        they would trade: three little-endian int64 each, order_id, price_ticks, and qty_lots,
        negative for an ask."""
        bids, asks = (islice(self.orders(side), CHECKSUM_LEVELS) for side in ("buy", "sell"))
        parts = [_ORDER.pack(x.order_id, x.price_ticks, x.qty_lots) for x in bids]
        parts += [_ORDER.pack(x.order_id, x.price_ticks, -x.qty_lots) for x in asks]
        return zlib.crc32(b"".join(parts))

    # --- changing ------------------------------------------------------------------------------
    def add(self, order: Resting) -> None:
        """Behind all others of its price."""
        assert order.order_id not in self._orders and order.qty_lots > 0
        self._orders[order.order_id] = order
        self._side(order.side).setdefault(order.price_ticks, {})[order.order_id] = order

    def change(self, order_id: int, qty_lots: int) -> None:
        """It shows so much now, where it stands."""
        order = self._orders[order_id]._replace(qty_lots=qty_lots)
        self._orders[order_id] = order
        self._side(order.side)[order.price_ticks][order_id] = order

    def remove(self, order_id: int) -> None:
        order = self._orders.pop(order_id)
        queues = self._side(order.side)
        del queues[order.price_ticks][order_id]
        if not queues[order.price_ticks]:
            del queues[order.price_ticks]

    def apply_snapshot(self, snapshot: OrdersSnapshot) -> None:
        """Forget everything and take this. Raises BookOutOfStep if it contradicts itself."""
        self._orders.clear()
        self._bids.clear()
        self._asks.clear()
        self.seq = 0
        self._apply(("add", order_id, "buy", price, qty) for order_id, price, qty in snapshot.bids)
        self._apply(("add", order_id, "sell", price, qty) for order_id, price, qty in snapshot.asks)
        self._compare(snapshot.crc)
        self.seq = snapshot.seq

    def apply_delta(self, delta: OrdersDelta) -> None:
        """Take one numbered change. Raises BookOutOfStep as `Book.apply_delta` does."""
        if delta.prev != self.seq:
            raise BookOutOfStep(f"{self.market}: at {self.seq}, but {delta.prev} was before this")
        self._apply(delta.changes)
        self._compare(delta.crc)
        self.seq = delta.seq

    def _apply(self, changes: Iterable[OrderChange]) -> None:
        try:
            for action, order_id, side, price, qty in changes:
                known = order_id in self._orders
                if action == "trade":
                    continue  # it is told; what it changes follows
                if known == (action == "add"):
                    raise BookOutOfStep(f"{self.market}: {action} of order {order_id}")
                if action == "add":
                    self.add(Resting(order_id, side, parse_price(price), parse_qty(qty)))
                elif action == "change":
                    self.change(order_id, parse_qty(qty))
                else:
                    self.remove(order_id)
        except NumberError as error:
            raise BookOutOfStep(f"{self.market}: {error}") from error

    def _compare(self, crc: int) -> None:
        if self.checksum() != crc:
            raise BookOutOfStep(f"{self.market}: the checksum disagrees")
