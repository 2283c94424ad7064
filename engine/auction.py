"""Call auctions: orders gather without matching, then all trade at one price.

The price is the one at which most trades; of several the one that leaves the least over; of those
the nearest to the last trade, or to the reference price where nothing was traded, or else the
middle one, rounded down. At that price orders trade by price, then by sequence, icebergs with all
they have. The younger of two orders that meet is the taker in the event; both came to rest before,
so both pay their maker's rate. Where an account would meet itself, its younger order is cancelled
(of two equally young, the ask). Invariant: an auction that is done leaves no crossed book; one that
needs more events than a command may cause goes on in further commands at the same price, and
meanwhile the market takes only cancels. Where cancelled orders leave the rest crossed, another
price is found for them, in the same way. Called by `match`.
"""

from typing import Any, Final

from engine.bands import begin_call
from engine.book import (
    BUY,
    NO_ORDERS,
    RULE_CALL,
    RULE_WINDOW,
    SELL,
    dequeue,
    leaf_for,
    order_id,
    rank_of,
)
from engine.kernel import inlined, int32, int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import emit, is_spent, next_event, reject
from engine.records import (
    AUCTION_ROUNDS_MAX,
    BY_TIME,
    INSTRUMENTS_MAX,
    SECOND_NS,
    CancelReason,
    EventKind,
    FillNote,
    MarketStatus,
)
from engine.rejects import Reject
from engine.reserve import fill_charged, note_bought, resale_of
from engine.trade import event_of, is_expired, is_gate_shut, left_of, next_rank, remove

_RESOLD: Final = FillNote.RESOLD.value

# --- the price ----------------------------------------------------------------------------------


@inlined
def _meet_at(book: Any, bid_ticks: Any, ask_ticks: Any) -> Any:
    """Whether there is a bid of at least the one price and an ask of at most the other."""
    bid = book.best[BUY] != NO_ORDERS and int64(rank_of(BUY, book.best[BUY])) >= bid_ticks
    ask = book.best[SELL] != NO_ORDERS and int64(rank_of(SELL, book.best[SELL])) <= ask_ticks
    return bid and ask


@inlined
def is_crossed(book: Any) -> Any:
    return _meet_at(book, int64(rank_of(SELL, book.best[SELL])), int64(rank_of(SELL, uint32(0))))


@kernel
def _lots_from(s: Any, book: Any, instrument: Any, side: Any, rank: Any, time_ns: Any) -> Any:
    """The first rank from this one on where anything is for sale or wanted: (its price, as if one
    beyond the last if there is none; lots; rank). O(orders it looks at)."""
    while rank != NO_ORDERS:
        leaf = leaf_for(s, book, instrument, side, rank)
        slot = s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head
        lots = int64(0)
        while slot != 0:
            order = s.orders[slot]
            if not is_expired(order, time_ns):
                lots += left_of(order)
            slot = order.next
        if lots != 0:
            return int64(rank_of(side, rank)), lots, rank
        rank = next_rank(s, book, side, rank)
    return int64(rank_of(side, uint32(NO_ORDERS))), int64(0), uint32(NO_ORDERS)


@kernel
def _lots_below(s: Any, book: Any, instrument: Any, side: Any, rank: Any, time_ns: Any) -> Any:
    if rank != NO_ORDERS:
        rank = next_rank(s, book, side, rank)
    return _lots_from(s, book, instrument, side, rank, time_ns)


@kernel
def _nearest(book: Any, market: Any, first: Any, last: Any) -> Any:
    """Of equally good prices from `first` to `last` the one to take."""
    wanted = int64(book.last_ticks)
    if wanted == 0:
        wanted = int64(market.reference_ticks)
    if wanted == 0:
        wanted = (first + last) // int64(2)
    return min(max(wanted, first), last)


@kernel
def find_price(s: Any, instrument: Any, time_ns: Any) -> Any:
    """What an uncross would do: (price, lots that trade, lots left over: of sells if negative).

    Bids and asks are paired off from the best on until they no longer meet: that is the volume,
    and the last pair's limits are the ends of the prices that reach it. What is left over at such a
    price are the best unpaired orders that would trade there. O(orders paired, and of at most four
    prices more), each looked at once: bounded by the book's open orders.
    """
    book = s.books[instrument]
    bid, bids, bid_rank = _lots_from(s, book, instrument, uint32(BUY), book.best[BUY], time_ns)
    ask, asks, ask_rank = _lots_from(s, book, instrument, uint32(SELL), book.best[SELL], time_ns)
    volume = int64(0)
    low = int64(0)
    high = int64(0)
    while bids != 0 and asks != 0 and bid >= ask:
        low = ask
        high = bid
        lots = min(bids, asks)
        volume += lots
        bids -= lots
        asks -= lots
        if bids == 0:
            bid, bids, bid_rank = _lots_below(s, book, instrument, uint32(BUY), bid_rank, time_ns)
        if asks == 0:
            ask, asks, ask_rank = _lots_below(s, book, instrument, uint32(SELL), ask_rank, time_ns)
    if volume == 0:
        return int64(0), int64(0), int64(0)
    first = max(low, bid + int64(1))
    last = min(high, ask - int64(1))
    if first > last:  # something is left over at every price: as little as can be
        of_bids = bid >= low and (ask > high or bids <= asks)
        of_asks = ask <= high and (bid < low or asks <= bids)
        first = ask
        last = bid
        if of_bids:
            next_bid, _, _ = _lots_below(s, book, instrument, uint32(BUY), bid_rank, time_ns)
            first = max(low, next_bid + int64(1))
        if of_asks:
            next_ask, _, _ = _lots_below(s, book, instrument, uint32(SELL), ask_rank, time_ns)
            last = min(high, next_ask - int64(1))
    price = _nearest(book, s.markets[instrument], first, last)
    if price <= bid:
        return price, volume, bids
    return price, volume, -asks if price >= ask else int64(0)


# --- the trades ---------------------------------------------------------------------------------


@inlined
def _head(s: Any, book: Any, side: Any) -> Any:
    level = (book.best_leaf[side] << uint32(6)) | (book.best[side] & uint32(63))
    return s.levels[level].head


@inlined
def _bid_is_younger(s: Any, buy: Any, sell: Any) -> Any:
    return s.orders[buy].sequence > s.orders[sell].sequence


@kernel
def _tell_shown(s: Any, out: Any, c: Any, slot: Any, lots: Any) -> None:
    event_of(s, out, c, slot, EventKind.REFRESHED, lots, 0)


@kernel
def _show(s: Any, out: Any, c: Any, slot: Any, lots: Any) -> None:
    """An iceberg shows what it is about to trade, unless it trades whole; it keeps its place."""
    order = s.orders[slot]
    more = lots - int64(order.qty_lots)
    if more <= 0 or lots == left_of(order):
        return
    order.qty_lots = uint32(lots)
    order.hidden_lots -= uint32(more)
    _tell_shown(s, out, c, slot, more)


@kernel
def _take(s: Any, book: Any, out: Any, c: Any, side: Any, slot: Any, lots: Any) -> None:
    """So much of an order has traded; it leaves, or shows its next clip where it stands."""
    order = s.orders[slot]
    if lots == left_of(order):
        dequeue(s, book, side, slot)
        return
    order.qty_lots -= uint32(lots)
    if order.qty_lots == 0:
        clip = min(order.hidden_lots, order.display_lots)
        order.qty_lots = clip
        order.hidden_lots -= clip
        _tell_shown(s, out, c, slot, int64(clip))


@kernel
def _fill_both(s: Any, c: Any, out: Any, buy: Any, sell: Any, price: Any) -> None:
    """One trade between two resting orders at the auction's price."""
    book = s.books[c.instrument]
    lots = min(left_of(s.orders[buy]), left_of(s.orders[sell]))
    _show(s, out, c, buy, lots)
    _show(s, out, c, sell, lots)
    bid_takes = _bid_is_younger(s, buy, sell)
    taker = s.orders[buy] if bid_takes else s.orders[sell]
    maker = s.orders[sell] if bid_takes else s.orders[buy]
    e = next_event(out, c, EventKind.FILL)
    e.order_id = uint64(order_id(s, buy if bid_takes else sell))
    e.counter_order_id = uint64(order_id(s, sell if bid_takes else buy))
    e.price_ticks = price
    e.qty_lots = int32(lots)
    e.maker_fee_ppm = maker.fee_ppm
    e.taker_fee_ppm = taker.fee_ppm
    e.account = taker.account
    e.counter_account = maker.account
    e.instrument = c.instrument
    e.side = uint8(BUY) if bid_takes else uint8(SELL)
    e.reason = uint16(resale_of(s.orders[sell])) * uint16(_RESOLD)
    if book.rules & uint8(RULE_WINDOW) != 0:
        note_bought(s, s.orders[buy].account, c.instrument, lots)
    book.last_ticks = uint32(price)
    s.markets[c.instrument].auction_lots += uint64(lots)
    fill_charged(s, book, uint32(BUY), s.orders[buy], price, lots)
    fill_charged(s, book, uint32(SELL), s.orders[sell], price, lots)
    _take(s, book, out, c, uint32(BUY), buy, lots)
    _take(s, book, out, c, uint32(SELL), sell, lots)


@kernel
def _allocate(s: Any, c: Any, out: Any, price: Any) -> None:
    """Trade what meets at this price, the best and oldest first, as far as one command may."""
    book = s.books[c.instrument]
    while not is_spent(out) and _meet_at(book, price, price):
        buy = _head(s, book, uint32(BUY))
        sell = _head(s, book, uint32(SELL))
        bid_expired = is_expired(s.orders[buy], c.time_ns)
        expired = bid_expired or is_expired(s.orders[sell], c.time_ns)
        if not expired and s.orders[buy].account != s.orders[sell].account:
            _fill_both(s, c, out, buy, sell, price)
            continue
        goes = buy if bid_expired or (not expired and _bid_is_younger(s, buy, sell)) else sell
        why = uint16(CancelReason.EXPIRED) if expired else uint16(CancelReason.SELF_TRADE)
        remove(s, out, c, goes, why)


# --- the commands -------------------------------------------------------------------------------


@kernel
def _why_not_listed(s: Any, c: Any) -> Any:
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return Reject.UNKNOWN_INSTRUMENT
    return 0


@kernel
def call_market(s: Any, c: Any, out: Any) -> Any:
    """Put an open or halted market into a call, or give the call it is in another end."""
    reason = _why_not_listed(s, c)
    if reason == 0:
        if s.books[c.instrument].status == MarketStatus.CLOSED or is_gate_shut(s, c):
            reason = Reject.MARKET_CLOSED
        elif s.markets[c.instrument].auction_ticks != 0:
            reason = Reject.UNCROSSING
        elif c.flags == BY_TIME and s.books[c.instrument].status == MarketStatus.HALTED:
            reason = Reject.MARKET_HALTED
    if reason != 0:
        return reject(out, c, reason)
    begin_call(s, c.instrument, c.expiry_s)
    e = emit(out, c, EventKind.MARKET_CALLED)
    e.expiry_s = s.markets[c.instrument].uncross_s
    return None


@kernel
def _tell_auction(e: Any, price: Any, volume: Any, surplus: Any) -> None:
    e.price_ticks = price
    e.qty_lots = int32(0)
    e.volume_lots = uint64(volume)
    e.surplus_lots = uint64(abs(surplus))
    e.side = uint8(SELL) if surplus < 0 else uint8(BUY)


@kernel
def indicate_market(s: Any, c: Any, out: Any) -> Any:
    """Say what an uncross would do now. Changes nothing."""
    reason = _why_not_listed(s, c)
    if reason == 0 and s.books[c.instrument].status != MarketStatus.CALL:
        reason = Reject.NO_CALL
    if reason != 0:
        return reject(out, c, reason)
    price, volume, surplus = find_price(s, c.instrument, c.time_ns)
    e = emit(out, c, EventKind.INDICATED)
    _tell_auction(e, price, volume, surplus)
    return None


@inlined
def _ends_by(market: Any, time_ns: Any) -> Any:
    """Whether the market's call is to end by then, or is being ended."""
    over = market.uncross_s != 0 and int64(market.uncross_s) * SECOND_NS <= time_ns
    return over or market.auction_ticks != 0


@kernel
def uncross_market(s: Any, c: Any, out: Any) -> Any:
    """End a call: trade what crosses, then open the market.

    Stops at EFFECTS_MAX events or AUCTION_ROUNDS_MAX prices; the terminal event then carries
    EFFECTS_LIMIT and the command is given again. O(orders that trade), and for each price found
    that of `find_price`.
    """
    reason = _why_not_listed(s, c)
    if reason == 0 and s.books[c.instrument].status != MarketStatus.CALL:
        reason = Reject.NO_CALL
    if reason == 0 and c.flags == BY_TIME and not _ends_by(s.markets[c.instrument], c.time_ns):
        reason = Reject.NO_CALL
    if reason != 0:
        return reject(out, c, reason)
    book = s.books[c.instrument]
    market = s.markets[c.instrument]
    rounds = 0
    while is_crossed(book) and not is_spent(out):
        price = int64(market.auction_ticks)
        if price == 0 or not _meet_at(book, price, price):
            if rounds == AUCTION_ROUNDS_MAX:
                break
            rounds += 1
            price, _, _ = find_price(s, c.instrument, c.time_ns)
            if price == 0:  # what is crossed has expired
                price = int64(rank_of(BUY, book.best[BUY]))
            market.auction_ticks = uint32(price)
        _allocate(s, c, out, price)
    more = is_crossed(book)
    traded = market.auction_lots
    price = int64(book.last_ticks) if traded != 0 else int64(0)
    if not more:
        _open(s, c, out, price)
    e = emit(out, c, EventKind.MARKET_UNCROSSED)
    _tell_auction(e, price, traded, int64(0))
    e.reason = uint16(CancelReason.EFFECTS_LIMIT) if more else uint16(0)
    return None


@kernel
def _open(s: Any, c: Any, out: Any, price: Any) -> None:
    """The auction is over; what waited for its trades may wake, unless the gate is shut."""
    book = s.books[c.instrument]
    market = s.markets[c.instrument]
    book.status = uint8(MarketStatus.OPEN)
    book.rules &= ~uint8(RULE_CALL)
    market.auction_ticks = uint32(0)
    market.auction_lots = uint64(0)
    market.uncross_s = uint32(0)
    if price != 0:
        market.reference_ticks = uint32(price)
    if not is_gate_shut(s, c):
        out.stirred = c.instrument + uint32(1)
