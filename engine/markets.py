"""Markets: listed, halted, resumed and closed by sequenced commands.

Invariant: a market's terms never change once it is listed; a halted one takes only cancels, and a
closed one nothing any more. Called by `match`.
"""

from typing import Any

from engine.auction import is_crossed
from engine.bands import begin_call
from engine.book import RULE_CALL, RULE_GATE, RULE_WINDOW, SELL, SELL_STOPS, WHOLE_SELLS
from engine.kernel import inlined, int32, int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import emit, is_spent, reject
from engine.records import (
    BY_TIME,
    CALL_SECONDS_MAX,
    INSTRUMENTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    SPOT_WINDOW,
    CancelReason,
    CommandKind,
    EventKind,
    ListingFlag,
    MarketStatus,
)
from engine.rejects import Reject
from engine.trade import remove


@kernel
def list_market(s: Any, c: Any, out: Any) -> Any:
    if c.instrument >= INSTRUMENTS_MAX:
        return reject(out, c, Reject.TOO_MANY_INSTRUMENTS)
    book = s.books[c.instrument]
    if book.status != MarketStatus.UNLISTED:
        return reject(out, c, Reject.ALREADY_LISTED)
    lot_fits = 0 < c.lot_multiple <= QTY_LOTS_MAX
    bond_fits = 0 < c.bond_usdc6_per_lot <= PRICE_TICKS_MAX
    gate_fits = c.closes_s == 0 or int64(c.closes_s) * SECOND_NS > c.time_ns
    if c.product == 0 or not lot_fits or not bond_fits or not gate_fits or not _calls_fit(c):
        return reject(out, c, Reject.INVALID_LISTING)
    book.status = uint8(MarketStatus.OPEN)
    book.product = c.product
    book.lot_multiple = uint32(c.lot_multiple)
    book.bond_usdc6_per_lot = c.bond_usdc6_per_lot
    if (c.product >> uint64(24)) & uint64(255) > SPOT_WINDOW:
        book.rules |= uint8(RULE_WINDOW)
    if c.closes_s != 0:
        book.rules |= uint8(RULE_GATE)
        s.markets[c.instrument].closes_s = c.closes_s
    if c.flags & ListingFlag.OPENING_CALL != 0:
        begin_call(s, c.instrument, c.opens_s)
    s.instrument_high = max(s.instrument_high, c.instrument + uint32(1))
    e = emit(out, c, EventKind.MARKET_LISTED)
    e.product = c.product
    e.closes_s = c.closes_s
    e.reason = uint16(c.flags)


@kernel
def _calls_fit(c: Any) -> Any:
    """Whether a listing's opening and closing calls are possible."""
    opening = c.flags == ListingFlag.OPENING_CALL
    timed = int64(c.opens_s) * SECOND_NS > c.time_ns
    before_gate = c.closes_s == 0 or c.opens_s <= c.closes_s
    opens_fit = c.opens_s == 0 or (opening and timed and before_gate)
    gated = c.closing_call_s == 0 or c.closes_s != 0
    return (
        (opening or c.flags == 0) and opens_fit and gated and c.closing_call_s <= CALL_SECONDS_MAX
    )


@kernel
def set_status(s: Any, c: Any, out: Any) -> Any:
    """Halt an open market or one in a call, or resume a halted one, as it was. Resting orders stay
    and may be cancelled."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    book = s.books[c.instrument]
    if c.kind == CommandKind.HALT_MARKET:
        if book.status not in (MarketStatus.OPEN, MarketStatus.CALL):
            return reject(out, c, Reject.NOT_OPEN)
        book.status = uint8(MarketStatus.HALTED)
        emit(out, c, EventKind.MARKET_HALTED)
        return
    if book.status != MarketStatus.HALTED:
        return reject(out, c, Reject.NOT_HALTED)
    called = book.rules & uint8(RULE_CALL) != 0
    book.status = uint8(MarketStatus.CALL) if called else uint8(MarketStatus.OPEN)
    e = emit(out, c, EventKind.MARKET_RESUMED)
    e.reason = uint16(called)


@inlined
def _clear_trie(s: Any, c: Any, out: Any, book: Any, trie: Any) -> None:
    """Cancel a trie's orders from the best on, as many as one command may."""
    while book.root[trie] != 0 and not is_spent(out):
        level = (book.best_leaf[trie] << uint32(6)) | (book.best[trie] & uint32(63))
        remove(s, out, c, s.levels[level].head, CancelReason.MARKET_CLOSED)


@kernel
def close_market(s: Any, c: Any, out: Any) -> Any:
    """Close a market for good and cancel every order in it: on the book, then those that wait.

    Stops at EFFECTS_MAX orders; the terminal event then carries EFFECTS_LIMIT and the command is
    given again. Harmless when repeated. O(orders cancelled).
    """
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    book = s.books[c.instrument]
    market = s.markets[c.instrument]
    gathers = book.status == MarketStatus.CALL and market.uncross_s != 0
    if c.flags == BY_TIME and gathers and is_crossed(book):
        return reject(out, c, Reject.UNCROSSING)  # a call came just before the gate: it ends first
    book.status = uint8(MarketStatus.CLOSED)
    for side in range(uint32(SELL + 1)):
        _clear_trie(s, c, out, book, side)
    for trie in range(uint32(SELL_STOPS), uint32(WHOLE_SELLS + 1)):
        _clear_trie(s, c, out, market, trie)
    count = int32(out.count - out.first)
    more = book.open_orders != 0 or market.open_orders != 0
    e = emit(out, c, EventKind.MARKET_CLOSED)
    e.qty_lots = count
    e.reason = uint16(CancelReason.EFFECTS_LIMIT) if more else uint16(0)
