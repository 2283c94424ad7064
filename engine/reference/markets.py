"""The rules of markets: listed, halted, resumed, closed.

Invariant: a market that is closed holds no order any more once its command is done.
"""

from engine.records import (
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
    MarketStatus,
    Side,
)
from engine.reference.orders import Orders, Rule
from engine.reference.state import Book
from engine.rejects import Reject


class Markets(Orders):
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
        self.books[c.instrument] = Book(
            product,
            lot_multiple,
            bond,
            closes_s=c.expiry_s,
            is_window=product >> 24 & 255 > SPOT_WINDOW,
        )
        halves = {"maker_fee_ppm": c.expiry_s & 0xFFFF, "taker_fee_ppm": c.expiry_s >> 16}
        self._emit(EventKind.MARKET_LISTED, order_id=product, **halves)

    def _halt_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.OPEN, Reject.NOT_OPEN)
        book.status = MarketStatus.HALTED
        self._emit(EventKind.MARKET_HALTED)

    def _resume_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.HALTED, Reject.NOT_HALTED)
        book.status = MarketStatus.OPEN
        self._emit(EventKind.MARKET_RESUMED)

    def _close_market(self, c: Command) -> None:
        """For good: every order is cancelled, from the best on, then those that wait."""
        book = self._book(c.instrument)
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
