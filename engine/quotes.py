"""Mass quotes: the levels of one account in one market, all replaced by one command.

The head names the market; each part is a level, placed as a limit order that rests, in the order
given. Invariant: either every old quote is cancelled and every new level placed, or nothing
changes; a quote that is on a book is on its account's sheet for the market, where the next mass
quote finds it. Amended it stays a quote. Called by `match`.

Cost: O(markets the account quotes in + its quotes there + new levels) and what each level trades;
nothing is paid by orders that are no quotes, nor when a quote is filled or cancelled.
"""

from typing import Any

from engine.book import (
    BUY,
    LEAVES_MAX,
    NO_ORDERS,
    NODES_MAX,
    SELL,
    SHEETS_MAX,
    TRAIT_QUOTE,
    leaf_for,
    order_id,
    rank_of,
    take_slot,
)
from engine.compound import leg_of
from engine.kernel import int32, int64, kernel, uint8, uint32, uint64
from engine.outbox import emit, reject
from engine.records import (
    ACCOUNT_ORDERS_MAX,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PRICE_TICKS_MAX,
    QUOTED_MARKETS_MAX,
    CancelReason,
    EventKind,
    Flag,
    MarketStatus,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    capacity_of,
    find_capacity,
    free_capacity,
    held_by,
    held_for,
    purse_of,
    unit_for,
)
from engine.trade import (
    accept,
    check_form,
    crosses,
    known_account,
    left_of,
    next_rank,
    remove,
    taker_ppm_of,
    work_apart,
)
from engine.waiting import wake

# --- sheets -------------------------------------------------------------------------------------


@kernel
def find_sheet(s: Any, account: Any, instrument: Any) -> Any:
    """The account's sheet for a market; 0 if there is none. O(sheets of the account)."""
    sheet = s.quoting[account]
    while sheet != 0 and s.sheets[sheet].instrument != instrument:
        sheet = s.sheets[sheet].next
    return sheet


@kernel
def _spare_sheet(s: Any, account: Any) -> Any:
    """A sheet of the account with nothing on it, or of a market that is no more: (sheet or 0, how
    many the account has)."""
    spare = uint32(0)
    count = 0
    sheet = s.quoting[account]
    while sheet != 0:
        count += 1
        row = s.sheets[sheet]
        book = s.books[row.instrument]
        over = book.status == MarketStatus.CLOSED and book.open_orders == 0
        if spare == 0 and (row.count == 0 or over):
            spare = sheet
        sheet = row.next
    return spare, count


@kernel
def _check_sheet(s: Any, head: Any, sheet: Any) -> Any:
    if sheet != 0:
        return 0
    spare, count = _spare_sheet(s, head.account)
    if spare != 0:
        return 0
    if count >= QUOTED_MARKETS_MAX:
        return Reject.QUOTED_MARKETS_FULL
    return Reject.TOO_MANY_QUOTERS if s.sheet_high + 1 >= SHEETS_MAX else 0


@kernel
def _make_sheet(s: Any, head: Any) -> Any:
    """A sheet for a market that the account has not quoted in; `_check_sheet` was asked before."""
    sheet, _count = _spare_sheet(s, head.account)
    if sheet == 0:
        s.sheet_high += uint32(1)
        sheet = s.sheet_high
        s.sheets[sheet].account = head.account
        s.sheets[sheet].next = s.quoting[head.account]
        s.quoting[head.account] = sheet
    s.sheets[sheet].instrument = head.instrument
    return sheet


@kernel
def _live_quote(s: Any, sheet: Any, place: Any) -> Any:
    """The slot of a quote on a sheet; 0 if it is no longer on the book."""
    named = s.sheets[sheet].order_ids[place]
    slot = uint32(named & uint64(0xFFFFFF))
    order = s.orders[slot]
    live = order.qty_lots != 0 and uint64(order.generation) == named >> uint64(24)
    return slot if live else uint32(0)


# --- reasons to refuse --------------------------------------------------------------------------


@kernel
def _level_of(s: Any, head: Any, part: Any) -> Any:
    """A level as the order it is, in the scratch."""
    level = leg_of(s, head, part)
    level.instrument = head.instrument
    level.time_in_force = uint8(TimeInForce.GTC)
    level.flags = head.flags
    return level


@kernel
def _check_levels(s: Any, commands: Any, i: Any) -> Any:
    """Whether each level is a limit order that may be placed, and none meets another."""
    head = commands[i]
    bid = int64(0)
    ask = int64(PRICE_TICKS_MAX + 1)
    for k in range(1, int64(head.parts) + 1):
        level = _level_of(s, head, commands[i + k])
        reason = check_form(s, level)
        if reason != 0:
            return reason
        if level.resale != 0:
            return Reject.INVALID_LEGS
        if level.side == BUY:
            bid = max(bid, level.price_ticks)
        else:
            ask = min(ask, level.price_ticks)
    return Reject.INVALID_LEGS if bid >= ask else 0


@kernel
def _check_room(s: Any, head: Any, old: Any) -> Any:
    """Whether so many levels more, and the old ones less, can stand on the books."""
    count = int64(head.parts)
    if int64(s.resting[head.account]) - old + count > ACCOUNT_ORDERS_MAX:
        return Reject.ACCOUNT_ORDERS_FULL
    if int64(s.open_orders) + int64(s.orders_retired) - old + count > OPEN_ORDERS_MAX:
        return Reject.TOO_MANY_OPEN_ORDERS
    # A leaf and seven nodes at most for each; those that the old levels leave come on top.
    leaves = int64(LEAVES_MAX) - int64(1) - int64(s.leaf_high)
    leaf = s.leaf_free
    while leaf != 0 and leaves < count:
        leaves += 1
        leaf = s.leaves[leaf].free_next
    if leaves < count or int64(s.nodes_used) + 7 * count >= NODES_MAX - 1:
        return Reject.BOOK_FULL
    return 0


@kernel
def _check_money(s: Any, commands: Any, i: Any, sheet: Any) -> Any:
    """Whether the account has what all levels must hold, counting what its quotes hold already."""
    head = commands[i]
    book = s.books[head.instrument]
    taker_ppm = taker_ppm_of(s, head.account)
    cash = int64(0)
    bond = int64(0)
    lots = int64(0)
    for k in range(1, int64(head.parts) + 1):
        part = commands[i + k]
        size = int64(part.qty_lots)
        held = held_for(unit_for(book, part), part.side, size, taker_ppm)
        if part.side == BUY:
            cash += held
        else:
            bond += held
            lots += size
    for place in range(s.sheets[sheet].count):
        slot = _live_quote(s, sheet, place)
        if slot == 0:
            continue
        order = s.orders[slot]
        side = s.leaves[order.level >> uint32(6)].side
        if side == BUY:
            cash -= held_by(book, side, order, left_of(order))
        else:
            bond -= held_by(book, side, order, left_of(order))
            lots -= left_of(order)
    capacity = find_capacity(s, head.account, head.instrument, uint8(SELL))
    if lots > 0 and lots > free_capacity(s, capacity):
        return Reject.INSUFFICIENT_CAPACITY
    if cash > s.balances[head.account, purse_of(BUY)]:
        return Reject.INSUFFICIENT_BALANCE
    return Reject.INSUFFICIENT_BOND if bond > s.balances[head.account, purse_of(SELL)] else 0


@kernel
def _best_of_others(s: Any, head: Any, side: Any) -> Any:
    """The best rank of a side once this account's quotes are gone. O(its quotes before that)."""
    book = s.books[head.instrument]
    rank = book.best[side]
    while rank != NO_ORDERS:
        leaf = leaf_for(s, book, head.instrument, side, rank)
        slot = s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head
        while slot != 0:
            order = s.orders[slot]
            if order.account != head.account or order.traits & uint8(TRAIT_QUOTE) == 0:
                return rank
            slot = order.next
        rank = next_rank(s, book, side, rank)
    return uint32(NO_ORDERS)


@kernel
def _would_trade(s: Any, commands: Any, i: Any) -> Any:
    head = commands[i]
    asks = _best_of_others(s, head, uint32(SELL))
    bids = _best_of_others(s, head, uint32(BUY))
    for k in range(1, int64(head.parts) + 1):
        part = commands[i + k]
        others = asks if part.side == BUY else bids
        other = uint32(SELL) - uint32(part.side)
        if others != NO_ORDERS and others >= rank_of(other, uint32(part.price_ticks)):
            return True
    return False


@kernel
def _check_quote(s: Any, commands: Any, i: Any, sheet: Any, old: Any) -> Any:
    head = commands[i]
    if head.flags > Flag.POST_ONLY or head.self_trade > SelfTrade.DECREMENT:
        return Reject.UNKNOWN_COMMAND
    if head.parts == 0:
        return 0
    reason = _check_levels(s, commands, i)
    if reason == 0:
        reason = _check_room(s, head, old)
    if reason == 0:
        reason = _check_sheet(s, head, sheet)
    if reason == 0:
        reason = _check_money(s, commands, i, sheet)
    if reason == 0 and head.flags == Flag.POST_ONLY and _would_trade(s, commands, i):
        reason = Reject.POST_ONLY_WOULD_TRADE
    return reason


# --- to quote -----------------------------------------------------------------------------------


@kernel
def _place_level(s: Any, level: Any, out: Any) -> Any:
    """Trade and rest; the slot if it rests, or 0."""
    book = s.books[level.instrument]
    capacity = capacity_of(s, level)
    crossing = crosses(book, level.side, uint32(level.price_ticks))
    slot = take_slot(s)
    accept(s, level, out, slot)
    taker_ppm = taker_ppm_of(s, level.account)
    slot = work_apart(s, book, level, out, slot, capacity, crossing, taker_ppm)
    if slot != 0:
        s.orders[slot].traits |= uint8(TRAIT_QUOTE)
    return slot


@kernel
def mass_quote(s: Any, commands: Any, i: Any, out: Any) -> None:
    """Cancel the account's quotes in the market and place these; without parts, only cancel them.

    Levels may trade as they are placed; with the flag POST_ONLY the whole quote is refused if one
    would. What is said of cost stands above.
    """
    head = commands[i]
    if head.instrument >= INSTRUMENTS_MAX or s.books[head.instrument].status == 0:
        return reject(out, head, Reject.UNKNOWN_INSTRUMENT)
    if not known_account(s, head.account):
        return reject(out, head, Reject.UNKNOWN_ACCOUNT)
    sheet = find_sheet(s, head.account, head.instrument)
    old = int64(0)
    for place in range(s.sheets[sheet].count):
        old += int64(_live_quote(s, sheet, place) != 0)
    reason = _check_quote(s, commands, i, sheet, old)
    if reason != 0:
        return reject(out, head, reason)
    count = int64(head.parts)
    e = emit(out, head, EventKind.QUOTED)
    e.qty_lots = int32(count)
    if sheet != 0:
        for place in range(s.sheets[sheet].count):
            slot = _live_quote(s, sheet, place)
            if slot != 0:
                remove(s, out, head, slot, CancelReason.REPLACED)
        s.sheets[sheet].count = uint32(0)
    elif count != 0:
        sheet = _make_sheet(s, head)
        s.sheets[sheet].count = uint32(0)
    for k in range(1, count + 1):
        slot = _place_level(s, _level_of(s, head, commands[i + k]), out)
        if slot != 0:
            row = s.sheets[sheet]
            row.order_ids[row.count] = uint64(order_id(s, slot))
            row.count += uint32(1)
    if count != 0:
        wake(s, head.instrument, out, commands[i + count])
    return None
