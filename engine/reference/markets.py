"""The rules of markets: listed, halted, resumed, closed.

Invariant: a market that is closed holds no order any more once its command is done.
"""

from engine.records import (
    BY_TIME,
    CALL_SECONDS_MAX,
    EFFECTS_MAX,
    INSTRUMENTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    SPOT_WINDOW,
    CancelReason,
    Command,
    CommandKind,
    EventKind,
    ListingFlag,
    MarketStatus,
    Side,
)
from engine.reference.auctions import Auctions
from engine.reference.orders import Rule, halves
from engine.reference.state import Book
from engine.rejects import Reject


class Markets(Auctions):
    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {
            CommandKind.LIST_MARKET: self._list_market,
            CommandKind.HALT_MARKET: self._halt_market,
            CommandKind.RESUME_MARKET: self._resume_market,
            CommandKind.CLOSE_MARKET: self._close_market,
        }

    def _list_market(self, c: Command) -> None:
        self._require(c.instrument < INSTRUMENTS_MAX, Reject.TOO_MANY_INSTRUMENTS)
        self._require(c.instrument not in self.books, Reject.ALREADY_LISTED)
        product, lot_multiple, bond = c.order_id, c.qty_lots, c.price_ticks
        lot_fits = 0 < lot_multiple <= QTY_LOTS_MAX
        bond_fits = 0 < bond <= PRICE_TICKS_MAX
        gate_fits = c.expiry_s == 0 or c.expiry_s * SECOND_NS > c.time_ns
        fits = product > 0 and lot_fits and bond_fits and gate_fits
        self._require(fits, Reject.INVALID_LISTING)
        opens_s, closing_call_s = c.client_id & 0xFFFFFFFF, c.client_id >> 32
        opening = c.flags == ListingFlag.OPENING_CALL
        self._require(opening or c.flags == 0, Reject.INVALID_LISTING)
        timed = opening and opens_s * SECOND_NS > c.time_ns
        before_gate = c.expiry_s == 0 or opens_s <= c.expiry_s
        self._require(not opens_s or (timed and before_gate), Reject.INVALID_LISTING)
        gated = closing_call_s <= CALL_SECONDS_MAX and c.expiry_s != 0
        self._require(not closing_call_s or gated, Reject.INVALID_LISTING)
        self.books[c.instrument] = Book(
            product,
            lot_multiple,
            bond,
            closes_s=c.expiry_s,
            is_window=product >> 24 & 255 > SPOT_WINDOW,
        )
        if opening:
            self._begin_call(self.books[c.instrument], opens_s)
        self._emit(EventKind.MARKET_LISTED, order_id=product, reason=c.flags, **halves(c.expiry_s))

    def _halt_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        takes = book.status in {MarketStatus.OPEN, MarketStatus.CALL}
        self._require(takes, Reject.NOT_OPEN)
        book.status = MarketStatus.HALTED
        self._emit(EventKind.MARKET_HALTED)

    def _resume_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.HALTED, Reject.NOT_HALTED)
        book.status = MarketStatus.CALL if book.called else MarketStatus.OPEN
        self._emit(EventKind.MARKET_RESUMED, reason=int(book.called))

    def _close_market(self, c: Command) -> None:
        """For good: every order is cancelled, from the best on, then those that wait."""
        book = self._book(c.instrument)
        gathers = book.status is MarketStatus.CALL and book.uncross_s and self._heads(book)
        self._require(not gathers or c.flags != BY_TIME, Reject.UNCROSSING)
        book.status = MarketStatus.CLOSED
        orders = [
            *book.queued(),
            *book.stops(Side.SELL),
            *book.stops(Side.BUY),
            *book.wholes(Side.BUY),
            *book.wholes(Side.SELL),
        ]
        for order in orders[:EFFECTS_MAX]:
            self._remove(order, CancelReason.MARKET_CLOSED)
        more = len(orders) > EFFECTS_MAX
        self._emit(
            EventKind.MARKET_CLOSED,
            qty_lots=len(orders[:EFFECTS_MAX]),
            reason=CancelReason.EFFECTS_LIMIT if more else 0,
        )
