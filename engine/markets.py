"""Markets: listed, halted and resumed by sequenced commands.

Invariant: a market's terms never change once it is listed; a halted one takes only cancels. Called
by `match`.
"""

from typing import Any

from engine.kernel import kernel, uint8, uint32
from engine.outbox import emit, reject
from engine.records import (
    INSTRUMENTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    CommandKind,
    EventKind,
    MarketStatus,
)
from engine.rejects import Reject


@kernel
def list_market(s: Any, c: Any, out: Any) -> Any:
    if c.instrument >= INSTRUMENTS_MAX:
        return reject(out, c, Reject.TOO_MANY_INSTRUMENTS)
    book = s.books[c.instrument]
    if book.status != MarketStatus.UNLISTED:
        return reject(out, c, Reject.ALREADY_LISTED)
    lot_fits = 0 < c.lot_multiple <= QTY_LOTS_MAX
    bond_fits = 0 < c.bond_usdc6_per_lot <= PRICE_TICKS_MAX
    if c.product == 0 or not lot_fits or not bond_fits:
        return reject(out, c, Reject.INVALID_LISTING)
    book.status = uint8(MarketStatus.OPEN)
    book.product = c.product
    book.lot_multiple = uint32(c.lot_multiple)
    book.bond_usdc6_per_lot = c.bond_usdc6_per_lot
    s.instrument_high = max(s.instrument_high, c.instrument + uint32(1))
    e = emit(out, c, EventKind.MARKET_LISTED)
    e.product = c.product


@kernel
def set_status(s: Any, c: Any, out: Any) -> Any:
    """Halt an open market, or resume a halted one. Resting orders stay and may be cancelled."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    book = s.books[c.instrument]
    if c.kind == CommandKind.HALT_MARKET:
        if book.status != MarketStatus.OPEN:
            return reject(out, c, Reject.NOT_OPEN)
        book.status = uint8(MarketStatus.HALTED)
        emit(out, c, EventKind.MARKET_HALTED)
        return
    if book.status != MarketStatus.HALTED:
        return reject(out, c, Reject.NOT_HALTED)
    book.status = uint8(MarketStatus.OPEN)
    emit(out, c, EventKind.MARKET_RESUMED)
