"""What the executable specification keeps: ordinary objects, sorted dictionaries, plain integers.

Written for reading, not for speed. Invariant: nothing here knows a rule of the exchange but how
order ids are given. Only the specification's other modules use it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sortedcontainers import SortedDict

from engine.records import SECOND_NS, MarketStatus, SelfTrade, Side
from engine.rejects import Reject

GENERATIONS: Final = 1 << 29


@dataclass(slots=True)
class Order:
    order_id: int
    client_id: int
    account: int
    instrument: int
    side: Side
    price_ticks: int
    qty_lots: int  # what is left and shown
    hidden_lots: int = 0  # of an iceberg: what is left and not shown
    display_lots: int = 0  # ... and how much is shown at a time
    expiry_s: int = 0  # 0: never
    fee_ppm: int = 0  # a maker's rate; while it waits, a taker's
    session: int = 0
    quote: bool = False  # placed by a mass quote, and replaced by the next one
    resale: bool = False  # an ask of hours that the account bought itself
    sequence: int = 0  # of the command that gave it its place
    # While it waits for its condition, off the book:
    waits: bool = False
    stop_ticks: int = 0  # 0: it is all-or-none
    self_trade: SelfTrade = SelfTrade.CANCEL_TAKER
    ends: bool = False  # once triggered, what is left does not rest

    @property
    def left(self) -> int:
        return self.qty_lots + self.hidden_lots

    def is_expired(self, time_ns: int) -> bool:
        return self.expiry_s != 0 and self.expiry_s * SECOND_NS <= time_ns


@dataclass(slots=True)
class Account:
    owner: bytes
    closed: bool = False
    exits: int = 0
    fee_tier: int = 0
    last_batch: int = 0
    free: int = 0
    held: int = 0
    pending: int = 0
    escrow: int = 0
    leaving: int = 0
    bond_free: int = 0
    bond_held: int = 0
    bond_locked: int = 0


@dataclass(slots=True)
class Capacity:
    declared: int = 0
    held: int = 0
    sold: int = 0


@dataclass(slots=True)
class Book:
    product: int
    lot_multiple: int
    bond_per_lot: int
    closes_s: int = 0  # 0: never
    is_window: bool = False  # its hours may be sold again by who bought them
    last_ticks: int = 0  # of the last trade; 0: none yet
    called: bool = False  # in a call, halted in one or closed in one: it may be crossed
    uncross_s: int = 0  # when the call is to end; 0: by hand
    auction_ticks: int = 0  # while it is being uncrossed: at this price
    auction_lots: int = 0  # ... and so much has traded
    reference_ticks: int = 0  # of the static band; 0: none
    static_ppm: int = 0
    dynamic_ppm: int = 0
    call_seconds: int = 0
    waiting: list[Order] = field(default_factory=list["Order"])  # longest first
    status: MarketStatus = MarketStatus.OPEN
    sides: tuple["SortedDict[int, deque[Order]]", "SortedDict[int, deque[Order]]"] = field(
        default_factory=lambda: (SortedDict(), SortedDict())
    )

    def best(self, side: Side) -> int | None:
        """The highest bid or the lowest ask."""
        levels = self.sides[side]
        if not levels:
            return None
        return levels.peekitem(-1 if side is Side.BUY else 0)[0]

    def prices(self, side: Side) -> Iterator[int]:
        """Best first."""
        levels = self.sides[side]
        return reversed(levels) if side is Side.BUY else iter(levels)

    def queued(self) -> Iterator[Order]:
        """Every order on the book, bids first, best first."""
        for side in Side:
            yield from self.on_side(side)

    def on_side(self, side: Side) -> Iterator[Order]:
        """Best first."""
        for price in self.prices(side):
            yield from self.sides[side][price]

    def stops(self, side: Side) -> list[Order]:
        """The nearest to trigger first: sell stops from the highest, buy stops from the lowest."""
        mine = [order for order in self.waiting if order.stop_ticks and order.side is side]
        return sorted(mine, key=lambda o: -o.stop_ticks if side is Side.SELL else o.stop_ticks)

    def wholes(self, side: Side) -> list[Order]:
        """All-or-none orders, best limit first."""
        mine = [order for order in self.waiting if not order.stop_ticks and order.side is side]
        return sorted(mine, key=lambda o: -o.price_ticks if side is Side.BUY else o.price_ticks)


class OrderIds:
    """Slots taken last freed, first taken; the id is the slot and how often it was reused. One
    that was reused as often as an id can say is never taken again."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._generations = [0]

    def take(self) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._generations)
            self._generations.append(0)
        return self._generations[slot] << 24 | slot

    def give_back(self, order_id: int) -> None:
        slot = order_id & 0xFFFFFF
        if self._generations[slot] < GENERATIONS - 1:
            self._generations[slot] += 1
            self._free.append(slot)


class RejectedError(Exception):
    def __init__(self, reject: Reject) -> None:
        self.reject = reject
