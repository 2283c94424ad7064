"""Orders that wait for a condition: stops, until a trade reaches their price, and all-or-none
orders, until they can be filled whole.

They stand off the book, unseen, in tries of their own, and hold what they need from the start. When
a command has had its own effects, `wake` looks whose condition holds now; each of those works like
an order that has just come, and its trades may wake more. Invariant: the order in which they wake
follows from the state alone, and all they do stays within the command's limit on effects; whom it
stops short keeps waiting. Called by `match` and `terms`.
"""

from typing import Any, Final

from engine.book import (
    BUY,
    BUY_STOPS,
    NO_ORDERS,
    RULE_WAITING,
    SELL,
    SELL_STOPS,
    TRAIT_ALL_OR_NONE,
    TRAIT_ENDS,
    TRAIT_RESALE_BIT,
    TRAIT_SELF_TRADE,
    WHOLE_BUYS,
    WHOLE_SELLS,
    enqueue,
    has_room,
    leaf_for,
    order_id,
    rank_of,
    side_of,
    take_slot,
)
from engine.kernel import inlined, int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import OFF_QUEUE, emit, reject
from engine.records import (
    EFFECTS_MAX,
    PRICE_TICKS_MAX,
    WHOLE_LOOKS_MAX,
    WHOLE_MET_MAX,
    CancelReason,
    CommandKind,
    EventKind,
    Flag,
    MarketStatus,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    capacity_of,
    held_by,
    hold,
    resale_of,
    unit_for,
)
from engine.trade import (
    accept,
    check_access,
    check_order,
    check_reserve,
    crosses,
    is_expired,
    leave,
    left_of,
    next_rank,
    release,
    remove,
    room_for_fills,
    survey,
    taker_ppm_of,
    work_apart,
)

_LEAST_EFFECTS: Final = 2  # of an order that wakes: it is said, and something comes of it


# --- to wait ------------------------------------------------------------------------------------


@kernel
def _check_stop(c: Any) -> Any:
    """Whether a stop's terms agree with each other; 0 if they do."""
    if c.side > SELL or c.resale > c.side or c.self_trade > SelfTrade.DECREMENT:
        return Reject.UNKNOWN_COMMAND
    till_time = c.time_in_force == TimeInForce.GTT
    market = c.flags == Flag.MARKET
    ends = c.time_in_force == TimeInForce.IOC
    if not (c.flags == 0 or (market and ends)):
        return Reject.CONFLICTING_FLAGS
    if not (ends or till_time or c.time_in_force == TimeInForce.GTC):
        return Reject.CONFLICTING_FLAGS
    if till_time != (c.expiry_s != 0) or (till_time and is_expired(c, c.time_ns)):
        return Reject.INVALID_TERMS
    if c.stop_ticks == 0 or c.stop_ticks > PRICE_TICKS_MAX:
        return Reject.PRICE_OUT_OF_RANGE
    if market and (c.price_ticks < 0 or c.price_ticks > PRICE_TICKS_MAX):
        return Reject.PRICE_OUT_OF_RANGE
    return 0


@kernel
def _protected(side: Any, stop_ticks: Any, protection_ticks: Any) -> Any:
    """The limit of a stop without one: its stop price made worse by its protection."""
    if side == BUY:
        return min(int64(stop_ticks) + protection_ticks, int64(PRICE_TICKS_MAX))
    return max(int64(stop_ticks) - protection_ticks, int64(1))


@kernel
def new_stop(s: Any, command: Any, c: Any, out: Any) -> None:
    """A stop order; one whose price was reached by the last trade works at once.

    c: a copy of the command that may be changed into the limit order it will be.
    """
    reason = check_access(s, c)
    if reason == 0:
        reason = _check_stop(c)
    if reason == 0:
        if c.flags == Flag.MARKET:
            c.price_ticks = _protected(c.side, command.stop_ticks, c.price_ticks)
            c.flags = uint8(0)
        if c.time_in_force == TimeInForce.GTT:
            c.time_in_force = uint8(TimeInForce.GTC)
        reason = check_order(s, c)
    if reason != 0:
        return reject(out, command, reason)
    book = s.books[c.instrument]
    capacity = capacity_of(s, c)
    reason = check_reserve(s, c, capacity, unit_for(book, c))
    if reason != 0:
        return reject(out, command, reason)
    slot = take_slot(s)
    accept(s, c, out, slot)
    last = book.last_ticks
    stop = command.stop_ticks
    reached = last != 0 and (last >= stop if c.side == BUY else last <= stop)
    if reached and book.status == MarketStatus.OPEN:
        crossing = crosses(book, c.side, uint32(c.price_ticks))
        taker_ppm = taker_ppm_of(s, c.account)
        if work_apart(s, book, c, out, slot, capacity, crossing, taker_ppm) != 0:
            s.orders[slot].expiry_s = c.expiry_s
        return None
    trie = uint32(BUY_STOPS) if c.side == BUY else uint32(SELL_STOPS)
    ends = TRAIT_ENDS if c.time_in_force == TimeInForce.IOC else 0
    wait(s, c, out, slot, capacity, trie, stop, uint8(ends))
    return None


@kernel
def place_whole(s: Any, c: Any, out: Any, capacity: Any) -> None:
    """Let an all-or-none order wait that cannot be filled now; every other check is passed."""
    slot = take_slot(s)
    accept(s, c, out, slot)
    trie = uint32(WHOLE_BUYS) + uint32(c.side)
    wait(s, c, out, slot, capacity, trie, uint32(0), uint8(TRAIT_ALL_OR_NONE))


@kernel
def wait(
    s: Any, c: Any, out: Any, slot: Any, capacity: Any, trie: Any, stop_ticks: Any, traits: Any
) -> None:
    """Put an accepted order on one of the tries of those that wait, by its stop or its limit."""
    order = s.orders[slot]
    order.qty_lots = uint32(c.qty_lots)
    order.price_ticks = uint32(c.price_ticks)
    order.account = c.account
    order.capacity = capacity
    order.client_id = c.client_id
    order.sequence = c.sequence
    order.hidden_lots = uint32(0)
    order.display_lots = uint32(0)
    order.expiry_s = c.expiry_s
    # It will trade as a taker; a schedule that changes meanwhile does not change what it holds.
    order.fee_ppm = taker_ppm_of(s, c.account)
    order.session = c.session
    order.traits = traits | c.self_trade | c.resale << uint8(TRAIT_RESALE_BIT)
    book = s.books[c.instrument]
    market = s.markets[c.instrument]
    price = order.price_ticks if stop_ticks == 0 else uint32(stop_ticks)
    rank = rank_of(trie, price)
    enqueue(s, market, trie, slot, rank, leaf_for(s, market, c.instrument, trie, rank))
    book.rules |= uint8(RULE_WAITING)
    lots = int64(c.qty_lots)
    held = held_by(book, c.side, order, lots)
    hold(s, c.account, c.side, held, capacity, lots)
    e = emit(out, c, EventKind.WAITING)
    e.order_id = uint64(order_id(s, slot))
    e.stop_ticks = uint32(stop_ticks)


# --- to wake ------------------------------------------------------------------------------------


@inlined
def _head(s: Any, market: Any, trie: Any, rank: Any) -> Any:
    """The first order of an occupied rank."""
    leaf = leaf_for(s, market, uint32(0), trie, rank)
    return s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head


@kernel
def _next_triggered(s: Any, market: Any, low: Any, high: Any) -> Any:
    """The stop that trades from `low` to `high` reached first, 0 if none: the nearest sell stop or
    the nearest buy stop, and of both the one that waits longer."""
    sell = market.best[SELL_STOPS]
    buy = market.best[BUY_STOPS]
    falling = uint32(0)
    rising = uint32(0)
    if sell != NO_ORDERS and rank_of(SELL_STOPS, sell) >= low:
        falling = _head(s, market, uint32(SELL_STOPS), sell)
    if buy != NO_ORDERS and rank_of(BUY_STOPS, buy) <= high:
        rising = _head(s, market, uint32(BUY_STOPS), buy)
    if falling != 0 and rising != 0:
        return falling if s.orders[falling].sequence < s.orders[rising].sequence else rising
    return falling | rising


@kernel
def _as_command(s: Any, slot: Any, c: Any) -> Any:
    """A waiting order as the limit order it is when it wakes, in the midst of command `c`."""
    order = s.orders[slot]
    leaf = s.leaves[order.level >> uint32(6)]
    m = s.scratch[1]
    m.sequence = c.sequence
    m.time_ns = c.time_ns
    m.client_id = order.client_id
    m.price_ticks = int64(order.price_ticks)
    m.qty_lots = left_of(order)
    m.expiry_s = order.expiry_s
    m.account = order.account
    m.instrument = leaf.instrument
    m.kind = uint8(CommandKind.NEW_ORDER)
    m.side = uint8(side_of(leaf.side))
    ends = order.traits & uint8(TRAIT_ENDS) != 0
    m.time_in_force = uint8(TimeInForce.IOC) if ends else uint8(TimeInForce.GTC)
    m.self_trade = order.traits & uint8(TRAIT_SELF_TRADE)
    m.flags = uint8(0)
    m.session = order.session
    m.resale = resale_of(order)
    return m


@kernel
def _next_whole(s: Any, book: Any, market: Any, out: Any, c: Any, looks: Any, met: Any) -> Any:
    """The first all-or-none order that can be filled whole, buys before sells, best limit first:
    (slot or 0, how many were looked at so far, and how many orders they would meet)."""
    for trie in range(uint32(WHOLE_BUYS), uint32(WHOLE_SELLS + 1)):
        side = side_of(trie)
        rank = market.best[trie]
        while rank != NO_ORDERS and crosses(book, side, rank_of(trie, rank)):
            slot = _head(s, market, uint32(trie), rank)
            while slot != 0:
                if looks >= WHOLE_LOOKS_MAX or met >= WHOLE_MET_MAX:
                    return uint32(0), looks, met
                looks += 1
                m = _as_command(s, slot, c)
                if is_expired(m, c.time_ns):
                    return slot, looks, met
                lots, left = int64(m.qty_lots), int64(WHOLE_MET_MAX) - met
                fits, more = survey(s, book, m, lots, room_for_fills(out), left)
                met += more
                if fits:
                    return slot, looks, met
                slot = s.orders[slot].next
            rank = next_rank(s, market, uint32(trie), rank)
    return uint32(0), looks, met


@kernel
def _trigger(s: Any, book: Any, slot: Any, out: Any, c: Any) -> None:
    """A waiting order whose condition holds goes to work, as if it had just come."""
    m = _as_command(s, slot, c)
    order = s.orders[slot]
    if is_expired(order, c.time_ns):
        remove(s, out, c, slot, CancelReason.EXPIRED)
        return
    trie = s.leaves[order.level >> uint32(6)].side
    taker_ppm = order.fee_ppm
    release(s, book, side_of(trie), slot, left_of(order))
    leave(s, m.instrument, trie, slot)
    order.qty_lots = uint32(0)
    e = emit(out, m, EventKind.TRIGGERED)
    e.order_id = uint64(order_id(s, slot))
    crossing = crosses(book, m.side, uint32(m.price_ticks))
    if work_apart(s, book, m, out, slot, order.capacity, crossing, taker_ppm) != 0:
        order.expiry_s = m.expiry_s


@inlined
def _may_rest(order: Any, time_ns: Any) -> Any:
    """Whether it may need a price of its own on the book once it wakes."""
    ends = order.traits & uint8(TRAIT_ENDS | TRAIT_ALL_OR_NONE) != 0
    return not ends and not is_expired(order, time_ns)


@kernel
def wake(s: Any, instrument: Any, out: Any, c: Any) -> None:
    """After a command's own effects in a market: trigger what waits for them, one after another.

    Stops go before all-or-none orders. O(effects), and of all-or-none orders at most
    WHOLE_LOOKS_MAX looks, which meet WHOLE_MET_MAX orders together.
    """
    book = s.books[instrument]
    market = s.markets[instrument]
    low = uint32(PRICE_TICKS_MAX + 1)
    high = uint32(0)
    seen = out.first
    looks = 0
    met = int64(0)
    while book.rules & uint8(RULE_WAITING) != 0 and book.status == MarketStatus.OPEN:
        if out.count - out.first + uint64(_LEAST_EFFECTS) > uint64(EFFECTS_MAX):
            return
        while seen < out.count:
            e = out.events[seen]
            in_turn = e.kind == EventKind.FILL and e.reason & uint16(OFF_QUEUE) == 0
            # An auction in several commands ends with one that tells its price.
            auction = e.kind == EventKind.MARKET_UNCROSSED and e.price_ticks != 0
            if (in_turn or auction) and e.instrument == instrument:
                low = min(low, uint32(e.price_ticks))
                high = max(high, uint32(e.price_ticks))
            seen += uint64(1)
        slot = _next_triggered(s, market, low, high)
        if slot == 0:
            slot, looks, met = _next_whole(s, book, market, out, c, looks, met)
        if slot == 0 or (_may_rest(s.orders[slot], c.time_ns) and not has_room(s)):
            return
        _trigger(s, book, slot, out, c)
