"""Orders of several legs, for what no plain order can say: a block of hours from one seller, the
best of several alternatives, a basket of which nothing is worth anything without the rest.

The head is one record and each leg one more. Invariant: either every leg that is meant to fill
fills whole, at once, within its limits and with money that was there before, or nothing changes. A
leg works as a taker and never rests. Called by `match`.

Cost: at most COMPOUND_LOOKS_MAX resting orders are looked at before anything changes, so that what
was found can also be traded within EFFECTS_MAX events; beyond it the command is refused.
"""

from typing import Any, Final

from engine.bands import reach
from engine.book import (
    BUY,
    NO_ORDERS,
    SELL,
    dequeue,
    free_slot,
    leaf_for,
    order_id,
    rank_of,
    take_slot,
)
from engine.kernel import inlined, int32, int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import OFF_QUEUE, OPERATOR_SLOTS, emit, reject
from engine.records import (
    BASKET_LEGS_MAX,
    BLOCK_OPERATORS_MAX,
    CAPACITIES_MAX,
    COMPOUND_LOOKS_MAX,
    EXCLUSIVE_LEGS_MAX,
    PRICE_TICKS_MAX,
    CommandKind,
    EventKind,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    FREE,
    capacity_of,
    fee_of,
    fill_free,
    free_capacity,
    held_for,
    purse_of,
    resale_of,
    unit_for,
    unit_of,
)
from engine.trade import (
    accept,
    check_order,
    check_reserve,
    fill,
    is_expired,
    next_rank,
    refresh,
    taker_ppm_of,
    trade,
)
from engine.waiting import wake

HOUR_WINDOW: Final = 2  # the window kind H in a product, whose start it counts in hours
_NOT_FILLABLE: Final = -1  # instead of a cost


@kernel
def leg_of(s: Any, head: Any, part: Any) -> Any:
    """A leg as the order it is, in the scratch."""
    leg = s.scratch[0]
    leg.sequence = part.sequence
    leg.time_ns = head.time_ns
    leg.client_id = part.client_id
    leg.order_id = uint64(0)
    leg.price_ticks = part.price_ticks
    leg.qty_lots = part.qty_lots
    leg.expiry_s = uint32(0)
    leg.account = head.account
    leg.instrument = part.instrument
    leg.kind = uint8(CommandKind.NEW_ORDER)
    leg.side = part.side
    leg.time_in_force = uint8(TimeInForce.IOC)
    leg.self_trade = head.self_trade
    leg.flags = uint8(0)
    leg.session = head.session
    leg.resale = part.resale
    return leg


@inlined
def _have_room_for_leases(s: Any, count: Any) -> Any:
    """Whether so many hours that are bought can be noted, be they bought for the first time."""
    return int64(s.capacities_used) + count <= CAPACITIES_MAX


@kernel
def _say_filled(out: Any, head: Any) -> Any:
    """The head's terminal event; what its legs cost is known when they have traded."""
    said = out.count
    e = emit(out, head, EventKind.LEGS_FILLED)
    e.amount_usdc6 = int64(0)
    e.qty_lots = int32(0)
    return said


@inlined
def _head_of(s: Any, book: Any, instrument: Any, side: Any, rank: Any) -> Any:
    """The first order of an occupied rank."""
    leaf = leaf_for(s, book, instrument, side, rank)
    return s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head


# --- legs that meet the book like any order ------------------------------------------------------


@kernel
def _survey_leg(s: Any, leg: Any, looks: Any) -> Any:
    """What a leg's lots trade for now, without fees: (µUSDC or _NOT_FILLABLE, looks so far).

    Orders of the same account are passed over under CANCEL_MAKER, as they will be cancelled, and
    end the leg under the other modes; what is concealed comes behind them. A look is an event that
    trading it may cause.
    """
    book = s.books[leg.instrument]
    side = uint32(SELL) - uint32(leg.side)
    left = int64(leg.qty_lots)
    cost = int64(0)
    limit = rank_of(side, reach(s, leg))
    rank = book.best[side]
    while rank >= limit:
        price = int64(rank_of(side, rank))
        slot = _head_of(s, book, leg.instrument, side, rank)
        concealed = int64(0)
        while slot != 0:
            order = s.orders[slot]
            looks += int64(1)
            if order.hidden_lots != 0:
                looks += int64(2) * (int64(order.hidden_lots) // int64(order.display_lots) + 1)
            if looks > COMPOUND_LOOKS_MAX:
                return int64(_NOT_FILLABLE), looks
            if is_expired(order, leg.time_ns):
                pass
            elif order.account != leg.account:
                concealed += int64(order.hidden_lots)
                lots = min(left, int64(order.qty_lots))
                cost += price * lots
                left -= lots
                if left == 0:
                    return cost, looks
            elif leg.self_trade != SelfTrade.CANCEL_MAKER:
                return int64(_NOT_FILLABLE), looks
            slot = order.next
        lots = min(left, concealed)
        cost += price * lots
        left -= lots
        if left == 0:
            return cost, looks
        rank = next_rank(s, book, side, rank)
    return int64(_NOT_FILLABLE), looks


@kernel
def _fill_leg(s: Any, leg: Any, out: Any) -> Any:
    """Trade a leg that fills whole: what it cost a buyer, with fees."""
    book = s.books[leg.instrument]
    slot = take_slot(s)
    taker_id = uint64(order_id(s, slot))
    accept(s, leg, out, slot)
    capacity = capacity_of(s, leg)
    taker_ppm = taker_ppm_of(s, leg.account)
    _left, filled, cost = trade(s, book, out, leg, taker_id, taker_ppm, reach(s, leg))
    free_slot(s, slot)
    if leg.side == BUY:
        fill_free(s, leg.account, BUY, cost, capacity, filled)
        return cost
    bond = unit_of(book, SELL, int64(0), leg.resale) * filled
    fill_free(s, leg.account, SELL, bond, capacity, filled)
    return int64(0)


@kernel
def _check_alternative(s: Any, leg: Any) -> Any:
    """Whether this leg could be the one: 0, or why not."""
    reason = check_order(s, leg)
    if reason != 0:
        return reason
    if leg.side != BUY:
        return Reject.INVALID_LEGS
    return check_reserve(s, leg, uint32(0), unit_for(s.books[leg.instrument], leg))


@kernel
def exclusive(s: Any, commands: Any, i: Any, out: Any) -> None:
    """Exactly one of up to EXCLUSIVE_LEGS_MAX buys fills whole, by price and time.

    It is the one with the most buyer's surplus, price_ticks * qty_lots less what its lots trade
    for, both without fees, whose rate is the same on every leg; the earliest of those that are
    equal. The free balance must cover each leg alone. O(legs + orders they meet).
    """
    head = commands[i]
    count = int64(head.parts)
    reason = 0
    if count == 0:
        reason = Reject.INVALID_LEGS
    elif count > EXCLUSIVE_LEGS_MAX:
        reason = Reject.TOO_MANY_LEGS
    for k in range(1, count + 1):
        if reason == 0:
            reason = _check_alternative(s, leg_of(s, head, commands[i + k]))
    best = int64(0)
    most_usdc6 = int64(-1)
    looks = int64(0)
    for k in range(1, count + 1):
        if reason == 0:
            leg = leg_of(s, head, commands[i + k])
            cost, looks = _survey_leg(s, leg, looks)
            surplus = leg.price_ticks * int64(leg.qty_lots) - cost
            if looks > COMPOUND_LOOKS_MAX:
                reason = Reject.TOO_DEEP
            elif cost != _NOT_FILLABLE and surplus > most_usdc6:
                best = int64(k)
                most_usdc6 = surplus
    if reason == 0 and best == 0:
        reason = Reject.LEGS_NOT_FILLABLE
    if reason != 0:
        return reject(out, head, reason)
    said = _say_filled(out, head)
    leg = leg_of(s, head, commands[i + best])
    e = out.events[said]
    e.amount_usdc6 = _fill_leg(s, leg, out)
    e.qty_lots = int32(1)
    e.reason = uint16(best)
    wake(s, commands[i + best].instrument, out, commands[i + count])
    return None


@kernel
def _check_basket(s: Any, commands: Any, i: Any) -> Any:
    """The first reason to refuse a basket that needs no look at the books' depth, or 0."""
    head = commands[i]
    count = int64(head.parts)
    if count == 0:
        return Reject.INVALID_LEGS
    if count > BASKET_LEGS_MAX:
        return Reject.TOO_MANY_LEGS
    cash = int64(0)
    bond = int64(0)
    for k in range(1, count + 1):
        leg = leg_of(s, head, commands[i + k])
        reason = check_order(s, leg)
        if reason != 0:
            return reason
        for j in range(1, k):
            if commands[i + j].instrument == leg.instrument:
                return Reject.INVALID_LEGS
        lots = int64(leg.qty_lots)
        if free_capacity(s, capacity_of(s, leg)) < lots:
            return Reject.INSUFFICIENT_CAPACITY
        book = s.books[leg.instrument]
        taker_ppm = taker_ppm_of(s, leg.account)
        held = held_for(unit_for(book, leg), leg.side, lots, taker_ppm)
        if leg.side == BUY:
            cash += held
        else:
            bond += held
    if cash > s.balances[head.account, purse_of(BUY)]:
        return Reject.INSUFFICIENT_BALANCE
    if bond > s.balances[head.account, purse_of(SELL)]:
        return Reject.INSUFFICIENT_BOND
    if not _have_room_for_leases(s, count):
        return Reject.TOO_MANY_CAPACITIES
    return 0


@kernel
def basket(s: Any, commands: Any, i: Any, out: Any) -> None:
    """Up to BASKET_LEGS_MAX orders in different markets: all fill whole, by price and time, or
    none does. O(legs^2 + orders they meet)."""
    head = commands[i]
    count = int64(head.parts)
    reason = _check_basket(s, commands, i)
    looks = int64(0)
    for k in range(1, count + 1):
        if reason == 0:
            cost, looks = _survey_leg(s, leg_of(s, head, commands[i + k]), looks)
            if looks > COMPOUND_LOOKS_MAX:
                reason = Reject.TOO_DEEP
            elif cost == _NOT_FILLABLE:
                reason = Reject.LEGS_NOT_FILLABLE
    if reason != 0:
        return reject(out, head, reason)
    said = _say_filled(out, head)
    cost = int64(0)
    for k in range(1, count + 1):
        cost += _fill_leg(s, leg_of(s, head, commands[i + k]), out)
    e = out.events[said]
    e.amount_usdc6 = cost
    e.qty_lots = int32(count)
    for k in range(1, count + 1):
        wake(s, commands[i + k].instrument, out, commands[i + count])
    return None


# --- a block: one seller throughout --------------------------------------------------------------


@kernel
def _window_of(s: Any, head: Any, part: Any) -> Any:
    """A block's hour as the order it is: its lots, at the limit of the whole."""
    leg = leg_of(s, head, part)
    leg.price_ticks = head.price_ticks
    leg.qty_lots = head.qty_lots
    leg.side = uint8(BUY)
    return leg


@kernel
def _check_block(s: Any, commands: Any, i: Any) -> Any:
    """The first reason to refuse a block that needs no look at the books' depth, or 0."""
    head = commands[i]
    count = int64(head.parts)
    if count == 0 or head.side != BUY:
        return Reject.INVALID_LEGS
    for k in range(1, count + 1):
        part = commands[i + k]
        reason = check_order(s, _window_of(s, head, part))
        if reason != 0:
            return reason
        if part.price_ticks < 0 or part.price_ticks > PRICE_TICKS_MAX:
            return Reject.PRICE_OUT_OF_RANGE
        product = s.books[part.instrument].product
        first = s.books[commands[i + 1].instrument].product
        hourly = (product >> uint64(24)) & uint64(0xFF) == uint64(HOUR_WINDOW)
        if not hourly or product != first + uint64(k - 1):
            return Reject.INVALID_LEGS
    limit_usdc6 = head.price_ticks * int64(head.qty_lots) * count
    need = limit_usdc6 + fee_of(limit_usdc6, taker_ppm_of(s, head.account))
    if need > s.balances[head.account, FREE]:
        return Reject.INSUFFICIENT_BALANCE
    if not _have_room_for_leases(s, count):
        return Reject.TOO_MANY_CAPACITIES
    return 0


@kernel
def _place_of(out: Any, account: Any) -> Any:
    """The place of a seller in the table, or the free one where it would go. Expected O(1)."""
    place = uint32((uint64(account) * uint64(0x9E3779B97F4A7C15)) >> uint64(40))
    place &= uint32(OPERATOR_SLOTS - 1)
    while out.operators[place].account != 0 and out.operators[place].account != account:
        place = (place + uint32(1)) & uint32(OPERATOR_SLOTS - 1)
    return place


@inlined
def _worst_rank(part: Any) -> Any:
    """The rank of the dearest ask that counts in a window."""
    price = int64(PRICE_TICKS_MAX) if part.price_ticks == 0 else part.price_ticks
    return rank_of(SELL, uint32(price))


@inlined
def _may_deliver(order: Any, c: Any) -> Any:
    """Whether an ask is in force and its seller the one who delivers; hours that are sold again
    are delivered by others, and a job does not move."""
    return resale_of(order) == 0 and not is_expired(order, c.time_ns)


@kernel
def _survey_window(s: Any, head: Any, part: Any, window: Any, out: Any, looks: Any) -> Any:
    """Add one window's asks to what each seller could deliver: the looks so far, or one too many.

    A seller who could not deliver an earlier window whole is out.
    """
    book = s.books[part.instrument]
    worst = _worst_rank(part)
    sellers = 0
    rank = book.best[SELL]
    while rank != NO_ORDERS and rank >= worst:
        price = int64(rank_of(SELL, rank))
        slot = _head_of(s, book, part.instrument, uint32(SELL), rank)
        while slot != 0:
            order = s.orders[slot]
            slot = order.next
            looks += int64(1)
            if looks > COMPOUND_LOOKS_MAX:
                return looks
            if order.account == head.account or not _may_deliver(order, head):
                continue
            row = out.operators[_place_of(out, order.account)]
            if row.account == 0:
                if window != 0:
                    continue
                sellers += 1
                if sellers > BLOCK_OPERATORS_MAX:
                    return int64(COMPOUND_LOOKS_MAX + 1)
                row.account = order.account
                row.windows = uint32(0)
                row.left_lots = int64(head.qty_lots)
                row.cost_usdc6 = int64(0)
                row.sequence = order.sequence
            if row.windows != uint32(window):
                continue
            lots = min(row.left_lots, int64(order.qty_lots))
            row.cost_usdc6 += price * lots
            row.left_lots -= lots
            row.sequence = min(row.sequence, order.sequence)
            if row.left_lots == 0:
                row.windows += uint32(1)
                row.left_lots = int64(head.qty_lots)
        rank = next_rank(s, book, uint32(SELL), rank)
    return looks


@kernel
def _cheapest(out: Any, count: Any, limit_usdc6: Any) -> Any:
    """The seller who delivers every window for the least, within the limit; 0 if none does.

    Of equals the one whose earliest ask came first, then the lower account.
    """
    best = uint32(0)
    least = limit_usdc6
    earliest = uint64(0)
    for place in range(OPERATOR_SLOTS):
        row = out.operators[place]
        if row.account == 0 or int64(row.windows) != count or row.cost_usdc6 > least:
            continue
        if best != 0 and row.cost_usdc6 == least:
            if row.sequence > earliest:
                continue
            if row.sequence == earliest and row.account > best:
                continue
        best = row.account
        least = row.cost_usdc6
        earliest = row.sequence
    return best


@inlined
def _take_ask(s: Any, book: Any, leg: Any, out: Any, taker_id: Any, slot: Any, left: Any) -> Any:
    """Trade with one ask past those before it: the lots left. It moves no last price."""
    last_ticks = book.last_ticks
    order = s.orders[slot]
    shown = int64(order.qty_lots)
    lots = min(left, shown)
    fill(s, book, out, leg, taker_id, taker_ppm_of(s, leg.account), slot, lots)
    out.events[out.count - uint64(1)].reason |= uint16(OFF_QUEUE)
    book.last_ticks = last_ticks
    if lots < shown:
        order.qty_lots = uint32(shown - lots)
    elif order.hidden_lots != 0:
        refresh(s, out, leg, slot)
    else:
        dequeue(s, book, uint32(SELL), slot)
    return left - lots


@kernel
def _take_window(s: Any, leg: Any, operator: Any, out: Any) -> Any:
    """Buy a window's lots from one seller, in the order of price and time: µUSDC, with fees."""
    book = s.books[leg.instrument]
    taker = take_slot(s)
    taker_id = uint64(order_id(s, taker))
    accept(s, leg, out, taker)
    left = int64(leg.qty_lots)
    cost = int64(0)
    rank = book.best[SELL]
    while left > 0:
        assert rank != NO_ORDERS, "the seller was seen to have enough"
        price = int64(rank_of(SELL, rank))
        behind = next_rank(s, book, uint32(SELL), rank)
        slot = _head_of(s, book, leg.instrument, uint32(SELL), rank)
        # What an iceberg shows next goes behind this one, and was not counted.
        last = s.levels[s.orders[slot].level].tail
        while slot != 0 and left > 0:
            following = uint32(0) if slot == last else s.orders[slot].next
            order = s.orders[slot]
            if order.account == operator and _may_deliver(order, leg):
                before = left
                left = _take_ask(s, book, leg, out, taker_id, slot, left)
                paid = price * (before - left)
                cost += paid + fee_of(paid, taker_ppm_of(s, leg.account))
            slot = following
        rank = behind
    free_slot(s, taker)
    fill_free(s, leg.account, BUY, cost, uint32(0), int64(leg.qty_lots))
    return cost


@kernel
def block(s: Any, commands: Any, i: Any, out: Any) -> None:
    """The same lots of consecutive hours, all from one seller or nothing at all.

    The head says how many lots of each window and the limit on their average price, which is one
    on the total: price_ticks * qty_lots * windows. The parts name the markets, in the order of
    time, each with the dearest price that counts there or 0. What counts is what others' asks of
    hours they deliver themselves show. Of the sellers who can deliver every window the cheapest in
    total is taken (`_cheapest`), each ask at its own price; asks of others are passed over, so
    these trades move no last price and trigger no stop. O(asks of all windows), for at most
    BLOCK_OPERATORS_MAX sellers.
    """
    head = commands[i]
    count = int64(head.parts)
    reason = _check_block(s, commands, i)
    operator = uint32(0)
    if reason == 0:
        for place in range(OPERATOR_SLOTS):
            out.operators[place].account = uint32(0)
        looks = int64(0)
        for k in range(count):
            if looks <= COMPOUND_LOOKS_MAX:
                looks = _survey_window(s, head, commands[i + 1 + k], k, out, looks)
        limit_usdc6 = head.price_ticks * int64(head.qty_lots) * count
        operator = _cheapest(out, count, limit_usdc6)
        if looks > COMPOUND_LOOKS_MAX:
            reason = Reject.TOO_DEEP
        elif operator == 0:
            reason = Reject.LEGS_NOT_FILLABLE
    if reason != 0:
        return reject(out, head, reason)
    said = _say_filled(out, head)
    cost = int64(0)
    for k in range(1, count + 1):
        cost += _take_window(s, _window_of(s, head, commands[i + k]), operator, out)
    e = out.events[said]
    e.amount_usdc6 = cost
    e.qty_lots = int32(count)
    for k in range(1, count + 1):
        wake(s, commands[i + k].instrument, out, commands[i + count])
    return None
