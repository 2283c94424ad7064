"""The rules of orders that wait: stops, and all-or-none orders that could not be filled whole.

A buy stop triggers when a trade is at its stop price or above, a sell stop at or below. After each
command the stops that its trades reached go first, one by one, the nearest of a side before the
others and the one that waits longer before one of the other side; then all-or-none orders that can
be filled whole, buys before sells. The trades of those that woke count as the command's own.
"""

from engine.records import (
    EFFECTS_MAX,
    PRICE_TICKS_MAX,
    SECOND_NS,
    WHOLE_LOOKS_MAX,
    WHOLE_MET_MAX,
    CancelReason,
    Command,
    CommandKind,
    EventKind,
    FillNote,
    Flag,
    MarketStatus,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.reference.orders import Orders, Rule
from engine.reference.state import Book, Order
from engine.rejects import Reject


class Waiting(Orders):
    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {CommandKind.NEW_STOP: self._new_stop}

    def _new_stop(self, c: Command) -> None:
        stop = c.order_id & 0xFFFFFFFF
        book = self._check_access(c)
        self._check_stop(c, stop)
        if c.flags == Flag.MARKET:
            worse = c.price_ticks if c.side == Side.BUY else -c.price_ticks
            limit = min(max(stop + worse, 1), PRICE_TICKS_MAX)
            c = c._replace(price_ticks=limit, flags=0)
        if c.time_in_force == TimeInForce.GTT:
            c = c._replace(time_in_force=TimeInForce.GTC)
        self._check_order(c)
        self._check_reserve(c, book)
        self._meant = c
        order_id = self._accept(c)
        last = book.last_ticks
        reached = last and (last >= stop if c.side == Side.BUY else last <= stop)
        if reached and book.status is MarketStatus.OPEN:
            self._work(order_id, c, book, expiry_s=c.expiry_s)
        else:
            self._wait(order_id, c, stop)

    def _check_stop(self, c: Command, stop: int) -> None:
        known = c.side in tuple(Side) and c.self_trade in tuple(SelfTrade) and c.resale <= c.side
        self._require(known, Reject.UNKNOWN_COMMAND)
        ends, till_time = c.time_in_force == TimeInForce.IOC, c.time_in_force == TimeInForce.GTT
        fits = c.flags == 0 or (c.flags == Flag.MARKET and ends)
        self._require(fits, Reject.CONFLICTING_FLAGS)
        fits = ends or till_time or c.time_in_force == TimeInForce.GTC
        self._require(fits, Reject.CONFLICTING_FLAGS)
        self._require(till_time == (c.expiry_s != 0), Reject.INVALID_TERMS)
        over = c.expiry_s * SECOND_NS <= c.time_ns
        self._require(not (till_time and over), Reject.INVALID_TERMS)
        self._require(0 < stop <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        protects = c.flags != Flag.MARKET or 0 <= c.price_ticks <= PRICE_TICKS_MAX
        self._require(protects, Reject.PRICE_OUT_OF_RANGE)

    def _wake(self, c: Command, book: Book) -> None:
        looks = met = 0
        while book.waiting and len(self._events) + 2 <= EFFECTS_MAX:
            if book.status is not MarketStatus.OPEN:
                return
            order = self._triggered(book)
            if order is None:
                order, looks, met = self._fillable_whole(c, book, looks, met)
            if order is None:
                return
            self._trigger(c, book, order)

    def _triggered(self, book: Book) -> Order | None:
        """The stop that comes first of those that the command's trades reached."""
        auctions = [
            e for e in self._events if e.kind == EventKind.MARKET_UNCROSSED and e.price_ticks
        ]
        fills = [e for e in self._events if e.kind == EventKind.FILL]
        fills = [e for e in fills if not e.reason & FillNote.OFF_QUEUE]
        prices = [e.price_ticks for e in fills + auctions if self.books[e.instrument] is book]
        if not prices:
            return None
        falling = [o for o in book.stops(Side.SELL)[:1] if o.stop_ticks >= min(prices)]
        rising = [o for o in book.stops(Side.BUY)[:1] if o.stop_ticks <= max(prices)]
        return min(rising + falling, key=lambda order: order.sequence, default=None)

    def _fillable_whole(
        self, c: Command, book: Book, looks: int, met: int
    ) -> tuple[Order | None, int, int]:
        """The first all-or-none order that the book can fill, if it is among the first few and
        those do not meet too many orders together."""
        for side in Side:
            for order in book.wholes(side):
                if not self._crosses(book, side, order.price_ticks):
                    break
                if looks == WHOLE_LOOKS_MAX or met >= WHOLE_MET_MAX:
                    return None, looks, met
                looks += 1
                if order.is_expired(c.time_ns):
                    return order, looks, met
                meant = self._as_command(c, order)
                fits, more = self._survey(meant, book, order.qty_lots, WHOLE_MET_MAX - met)
                met += more
                if fits:
                    return order, looks, met
        return None, looks, met

    def _as_command(self, c: Command, order: Order) -> Command:
        """A waiting order as the limit order it is when it wakes, in the midst of command `c`."""
        return Command(
            sequence=c.sequence,
            time_ns=c.time_ns,
            client_id=order.client_id,
            price_ticks=order.price_ticks,
            qty_lots=order.qty_lots,
            account=order.account,
            instrument=order.instrument,
            kind=CommandKind.NEW_ORDER,
            side=order.side,
            time_in_force=TimeInForce.IOC if order.ends else TimeInForce.GTC,
            self_trade=order.self_trade,
            session=order.session,
            resale=int(order.resale),
        )

    def _trigger(self, c: Command, book: Book, order: Order) -> None:
        self._meant = c
        if order.is_expired(c.time_ns):
            self._remove(order, CancelReason.EXPIRED)
            return
        self._meant = self._as_command(c, order)
        self._release(order, order.qty_lots)
        self._off_the_book(order)
        self._emit(EventKind.TRIGGERED, order_id=order.order_id)
        self._work(
            order.order_id,
            self._meant,
            book,
            expiry_s=order.expiry_s,
            taker_ppm=order.fee_ppm,
        )
