"""Orders with terms of their own: market, good till time, minimum quantity, all-or-none, iceberg,
amended.

Each is turned into a plain limit order, checked and worked by `trade`; what is left to do is here.
Invariant: an order with contradictory terms is refused before anything changes. Called by `match`.

Cost: that of the plain order, and for a minimum quantity one look at the orders it would meet.
"""

from typing import Any

from engine.book import BUY, NO_ORDERS, SELL, TRAIT_QUOTE, order_id, rank_of, take_slot, unlink
from engine.kernel import inlined, int32, int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import emit, reject
from engine.records import (
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    CancelReason,
    EventKind,
    Flag,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    capacity_of,
    free_capacity,
    held_by,
    held_for,
    purse_of,
    resale_of,
    unit_for,
)
from engine.trade import (
    accept,
    check_access,
    check_order,
    check_placing,
    crosses,
    fillable,
    find_order,
    is_expired,
    left_of,
    release,
    remove,
    room_for_fills,
    taker_ppm_of,
    work_apart,
)
from engine.waiting import new_stop, place_whole


@inlined
def meant(s: Any, c: Any) -> Any:
    """A copy of the command that may be changed into the plain order it means."""
    copy = s.scratch[0]
    copy.sequence = c.sequence
    copy.time_ns = c.time_ns
    copy.client_id = c.client_id
    copy.order_id = c.order_id
    copy.price_ticks = c.price_ticks
    copy.qty_lots = c.qty_lots
    copy.expiry_s = c.expiry_s
    copy.account = c.account
    copy.instrument = c.instrument
    copy.kind = c.kind
    copy.side = c.side
    copy.time_in_force = c.time_in_force
    copy.self_trade = c.self_trade
    copy.flags = c.flags
    copy.session = c.session
    copy.resale = c.resale
    return copy


@kernel
def _says_more(c: Any) -> Any:
    """Whether an order has terms at all; one that has none may still say what there is not."""
    words = c.flags > Flag.POST_ONLY or c.time_in_force > TimeInForce.FOK or c.resale != 0
    return words or c.order_id != 0 or c.expiry_s != 0


@kernel
def _check_terms(s: Any, c: Any) -> Any:
    """Whether the terms agree with each other and with the quantity; 0 if they do."""
    sided = c.side <= SELL and c.resale <= c.side and c.self_trade <= SelfTrade.DECREMENT
    if not sided or c.time_in_force > TimeInForce.GTT:
        return Reject.UNKNOWN_COMMAND
    market = c.flags == Flag.MARKET
    till_time = c.time_in_force == TimeInForce.GTT
    rests = till_time or c.time_in_force == TimeInForce.GTC
    whole = c.flags == Flag.ALL_OR_NONE
    if c.flags > Flag.MARKET and not whole:
        return Reject.CONFLICTING_FLAGS
    if (market and rests) or (whole and not rests):
        return Reject.CONFLICTING_FLAGS
    if whole and (c.display_lots != 0 or c.min_lots != 0):
        return Reject.INVALID_TERMS
    if till_time != (c.expiry_s != 0) or (till_time and is_expired(c, c.time_ns)):
        return Reject.INVALID_TERMS
    if int64(c.display_lots) > c.qty_lots or int64(c.min_lots) > c.qty_lots:
        return Reject.INVALID_TERMS
    if c.display_lots != 0 and not rests:
        return Reject.INVALID_TERMS
    if c.min_lots != 0 and c.flags == Flag.POST_ONLY:
        return Reject.CONFLICTING_FLAGS
    multiple = s.books[c.instrument].lot_multiple
    if multiple > 1 and (c.display_lots % multiple != 0 or c.min_lots % multiple != 0):
        return Reject.QTY_NOT_A_MULTIPLE
    return 0


@kernel
def _market_price(book: Any, c: Any) -> Any:
    """The limit of a market order: the best price made worse by its protection; 0 if no best.

    `c.price_ticks` is the protection, which may be nothing but not below it.
    """
    other = uint32(SELL) - uint32(c.side)
    if book.best[other] == NO_ORDERS:
        return int64(0)
    best = int64(rank_of(other, book.best[other]))
    if c.side == BUY:
        return min(best + c.price_ticks, int64(PRICE_TICKS_MAX))
    return max(best - c.price_ticks, int64(1))


@kernel
def _to_limit(s: Any, c: Any) -> Any:
    """Turn `c`, a copy, into the plain order it means: (reason to refuse or 0)."""
    if c.flags == Flag.MARKET:
        if c.price_ticks < 0 or c.price_ticks > PRICE_TICKS_MAX:
            return Reject.PRICE_OUT_OF_RANGE
        price = _market_price(s.books[c.instrument], c)
        if price == 0:
            return Reject.NOTHING_TO_TRADE_WITH
        c.price_ticks = price
    if c.flags != Flag.POST_ONLY:
        c.flags = uint8(0)
    if c.time_in_force == TimeInForce.GTT:
        c.time_in_force = uint8(TimeInForce.GTC)
    return 0


@kernel
def stop_order(s: Any, command: Any, out: Any) -> Any:
    return new_stop(s, command, meant(s, command), out)


@kernel
def new_order_with_terms(s: Any, command: Any, out: Any) -> Any:
    """A new order that says more than side, price, quantity and what to do with the rest."""
    c = meant(s, command)
    reason = check_access(s, c)
    if _says_more(c):
        if reason == 0:
            reason = _check_terms(s, c)
        if reason == 0:
            reason = _to_limit(s, c)
    if reason == 0:
        reason = check_order(s, c)
    if reason != 0:
        return reject(out, command, reason)
    book = s.books[c.instrument]
    capacity = capacity_of(s, c)
    crossing = crosses(book, c.side, uint32(c.price_ticks))
    reason = check_placing(s, book, c, out, capacity, unit_for(book, c), crossing)
    room = room_for_fills(out)
    if reason == 0 and c.min_lots != 0 and not fillable(s, book, c, int64(c.min_lots), room):
        reason = Reject.MINIMUM_NOT_FILLABLE
    if reason != 0:
        return reject(out, command, reason)
    whole = command.flags == Flag.ALL_OR_NONE
    if whole and not fillable(s, book, c, int64(c.qty_lots), room):
        return place_whole(s, c, out, capacity)
    slot = take_slot(s)
    accept(s, c, out, slot)
    slot = work_apart(s, book, c, out, slot, capacity, crossing, taker_ppm_of(s, c.account))
    if slot != 0:
        s.orders[slot].expiry_s = c.expiry_s
        if c.display_lots != 0:
            _conceal(s, out, c, slot, c.display_lots)
    return None


@kernel
def _conceal(s: Any, out: Any, c: Any, slot: Any, display_lots: Any) -> None:
    """Show only a clip of an order that has just come to rest."""
    order = s.orders[slot]
    order.display_lots = display_lots
    if order.qty_lots <= display_lots:
        return
    order.hidden_lots = order.qty_lots - display_lots
    order.qty_lots = display_lots
    e = emit(out, c, EventKind.CONCEALED)
    e.order_id = uint64(order_id(s, slot))
    e.qty_lots = int32(order.hidden_lots)


# --- changed and ended --------------------------------------------------------------------------


@kernel
def amend(s: Any, command: Any, out: Any) -> Any:
    """Change the price or what is left of an open order; 0 keeps either.

    Less at the same price keeps its place in the queue. Anything else is as if it were cancelled
    and placed again under the same id, but that nothing changes if the new one is refused.
    """
    slot = find_order(s, command)
    if slot == 0 or is_expired(s.orders[slot], command.time_ns):
        return reject(out, command, Reject.UNKNOWN_ORDER)
    order = s.orders[slot]
    leaf = s.leaves[order.level >> uint32(6)]
    if leaf.side > SELL:
        return reject(out, command, Reject.WAITING_NOT_AMENDABLE)
    c = meant(s, command)
    c.session = order.session
    c.resale = resale_of(order)
    c.instrument = leaf.instrument
    c.side = uint8(leaf.side)
    c.client_id = order.client_id
    if c.price_ticks == 0:
        c.price_ticks = int64(order.price_ticks)
    if c.qty_lots == 0:
        c.qty_lots = left_of(order)
    book = s.books[c.instrument]
    c.time_in_force = uint8(TimeInForce.GTC)
    reason = _check_amended(book, c)
    if reason != 0:
        return reject(out, command, reason)
    if c.price_ticks == int64(order.price_ticks) and c.qty_lots <= left_of(order):
        return _reduce(s, book, c, out, slot)
    reason = check_order(s, c)
    if reason == 0:
        reason = _check_new_reserve(s, book, c, order)
    crossing = crosses(book, c.side, uint32(c.price_ticks))
    if reason == 0 and c.flags == Flag.POST_ONLY and crossing:
        reason = Reject.POST_ONLY_WOULD_TRADE
    if reason != 0:
        return reject(out, command, reason)
    return _replace(s, book, c, out, slot, crossing)


@kernel
def _check_amended(book: Any, c: Any) -> Any:
    if c.price_ticks <= 0 or c.price_ticks > PRICE_TICKS_MAX:
        return Reject.PRICE_OUT_OF_RANGE
    if c.qty_lots <= 0 or c.qty_lots > QTY_LOTS_MAX:
        return Reject.QTY_OUT_OF_RANGE
    if uint32(c.qty_lots) % book.lot_multiple != 0:
        return Reject.QTY_NOT_A_MULTIPLE
    return 0


@kernel
def _check_new_reserve(s: Any, book: Any, c: Any, order: Any) -> Any:
    """Whether the account has what the order must hold, counting what it holds already."""
    left = left_of(order)
    if free_capacity(s, order.capacity) + left < c.qty_lots:
        return Reject.INSUFFICIENT_CAPACITY
    held = held_by(book, c.side, order, left)
    lots = int64(c.qty_lots)
    need = held_for(unit_for(book, c), c.side, lots, taker_ppm_of(s, c.account))
    if need > s.balances[c.account, purse_of(c.side)] + held:
        return Reject.INSUFFICIENT_BALANCE if c.side == BUY else Reject.INSUFFICIENT_BOND
    return 0


@inlined
def _amended(out: Any, c: Any, lost_its_place: Any) -> None:
    e = emit(out, c, EventKind.AMENDED)
    e.order_id = c.order_id
    e.reason = uint16(lost_its_place)


@kernel
def _reduce(s: Any, book: Any, c: Any, out: Any, slot: Any) -> None:
    """Take lots off where the order stands: those that are not shown first."""
    order = s.orders[slot]
    cut = left_of(order) - c.qty_lots
    release(s, book, uint32(c.side), slot, cut)
    concealed = min(cut, int64(order.hidden_lots))
    order.hidden_lots -= uint32(concealed)
    order.qty_lots -= uint32(cut - concealed)
    _amended(out, c, 0)


@kernel
def _replace(s: Any, book: Any, c: Any, out: Any, slot: Any, crossing: Any) -> None:
    order = s.orders[slot]
    display_lots = order.display_lots
    expiry_s = order.expiry_s
    capacity = order.capacity
    quote = order.traits & uint8(TRAIT_QUOTE)
    side = uint32(c.side)
    release(s, book, side, slot, left_of(order))
    unlink(s, book, side, slot)
    order.qty_lots = uint32(0)
    _amended(out, c, 1)
    if work_apart(s, book, c, out, slot, capacity, crossing, taker_ppm_of(s, c.account)) != 0:
        order.expiry_s = expiry_s
        order.traits |= quote
        if display_lots != 0:
            _conceal(s, out, c, slot, display_lots)


@kernel
def expire(s: Any, c: Any, out: Any) -> Any:
    """Cancel an order whose time has come."""
    slot = find_order(s, c)
    if slot == 0 or not is_expired(s.orders[slot], c.time_ns):
        return reject(out, c, Reject.UNKNOWN_ORDER)
    return remove(s, out, c, slot, CancelReason.EXPIRED)
