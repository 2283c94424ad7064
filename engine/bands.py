"""Price bands, and how a market goes into a call.

The static band lies around a reference price: a buy whose limit is above it or a sell whose limit
is below it is refused; the other way no limit can do harm. The dynamic band lies around the last
trade before an order: where the order's next trade would be outside, the market goes into a call
instead. Invariant: no trade between auctions is outside the dynamic band, but for those off the
queue, which are no price of the market, and a market in a call says so in its rules. A band's width
is the price times its parts per million, rounded down: never wider than it was said to be. Called
by `trade`, `markets` and `auction`. O(1) each.
"""

from typing import Any

from engine.book import BUY, RANK_MASK, RULE_BANDS, RULE_CALL
from engine.kernel import inlined, int32, int64, kernel, uint8, uint32, uint64
from engine.outbox import emit, reject
from engine.records import (
    BAND_PPM_MAX,
    CALL_SECONDS_MAX,
    INSTRUMENTS_MAX,
    PPM,
    PRICE_TICKS_MAX,
    EventKind,
    MarketStatus,
)
from engine.rejects import Reject


@inlined
def _width(ticks: Any, ppm: Any) -> Any:
    return int64(ticks) * int64(ppm) // int64(PPM)


@kernel
def is_outside_band(s: Any, c: Any) -> Any:
    """Whether a limit is worse, for who asks it, than the static band of a market of bands."""
    market = s.markets[c.instrument]
    reference = int64(market.reference_ticks)
    if market.static_ppm == 0 or reference == 0:
        return False
    width = _width(reference, market.static_ppm)
    if c.side == BUY:
        return c.price_ticks > reference + width
    return c.price_ticks < reference - width


@kernel
def reach(s: Any, c: Any) -> Any:
    """The worst price at which an order may trade now: its limit, or the dynamic band's end. In a
    call it is one at which nobody trades."""
    book = s.books[c.instrument]
    if book.status != MarketStatus.OPEN:
        return uint32(0) if c.side == BUY else uint32(RANK_MASK)
    if book.rules & uint8(RULE_BANDS) == 0:
        return uint32(c.price_ticks)
    market = s.markets[c.instrument]
    anchor = int64(book.last_ticks) if book.last_ticks != 0 else int64(market.reference_ticks)
    if anchor == 0 or market.dynamic_ppm == 0:
        return uint32(c.price_ticks)
    width = _width(anchor, market.dynamic_ppm)
    if c.side == BUY:
        return uint32(min(int64(c.price_ticks), anchor + width))
    return uint32(max(int64(c.price_ticks), anchor - width))


@kernel
def begin_call(s: Any, instrument: Any, until_s: Any) -> None:
    """From now on orders gather, until that time (0: by hand), or the gate's if that is sooner."""
    book = s.books[instrument]
    market = s.markets[instrument]
    closes_s = market.closes_s
    if closes_s != 0 and (until_s == 0 or until_s > closes_s):
        until_s = closes_s
    book.status = uint8(MarketStatus.CALL)
    book.rules |= uint8(RULE_CALL)
    market.uncross_s = uint32(until_s)


@kernel
def set_bands(s: Any, c: Any, out: Any) -> Any:
    """Both bands anew; without a new reference price the old one stays, or else the last trade."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    book = s.books[c.instrument]
    if book.status == MarketStatus.CLOSED:
        return reject(out, c, Reject.MARKET_CLOSED)
    widths_fit = c.static_ppm <= BAND_PPM_MAX and c.dynamic_ppm <= BAND_PPM_MAX
    price_fits = 0 <= c.price_ticks <= PRICE_TICKS_MAX
    call_fits = c.call_seconds <= CALL_SECONDS_MAX and (c.dynamic_ppm == 0 or c.call_seconds != 0)
    if not (widths_fit and price_fits and call_fits):
        return reject(out, c, Reject.INVALID_BANDS)
    market = s.markets[c.instrument]
    market.static_ppm = c.static_ppm
    market.dynamic_ppm = c.dynamic_ppm
    market.call_seconds = c.call_seconds
    if c.price_ticks != 0:
        market.reference_ticks = uint32(c.price_ticks)
    elif market.reference_ticks == 0:
        market.reference_ticks = book.last_ticks
    if c.static_ppm != 0 or c.dynamic_ppm != 0:
        book.rules |= uint8(RULE_BANDS)
    else:
        book.rules &= ~uint8(RULE_BANDS)
    e = emit(out, c, EventKind.BANDS_SET)
    e.order_id = uint64(c.static_ppm) | (uint64(c.dynamic_ppm) << uint64(32))
    e.price_ticks = int64(market.reference_ticks)
    e.qty_lots = int32(0)
    e.call_seconds = c.call_seconds
    return None
