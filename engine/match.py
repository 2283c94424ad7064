"""The matching kernel: one sequenced command in, its numbered events out.

`execute` takes a batch of commands in sequence order and writes the events each one causes. Price
then time priority; a trade is at the resting price; a market never ends a command crossed; every
command ends in exactly one terminal event. It reads nothing but the state and the commands, so
the same commands give the same state everywhere. Called by `pipeline`, `replay` and benchmarks.

`reference.py` says the same rules slowly and plainly; model tests hold the two together.
"""

from typing import Any, Final

import numpy as np

from engine.book import (
    BUY,
    CLOSED,
    NO_ORDERS,
    SELL,
    TRADING,
    UNKNOWN,
    dequeue,
    drop_level,
    enqueue,
    free_slot,
    has_room,
    leaf_for,
    order_id,
    rank_of,
    take_slot,
)
from engine.kernel import (
    highest_bit,
    inlined,
    int64,
    kernel,
    prefetch,
    uint8,
    uint16,
    uint32,
    uint64,
)
from engine.records import (
    ACCOUNTS_MAX,
    ALL_INSTRUMENTS,
    AMOUNT_USDC6_MAX,
    EFFECTS_MAX,
    EVENT,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    TOTAL_USDC6_MAX,
    CancelReason,
    CommandKind,
    EventKind,
    Flag,
    MarketStatus,
    Purse,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    BOND_FREE,
    BOND_LOCKED,
    ESCROW,
    FREE,
    LEAVING,
    PENDING,
    capacity_home,
    fill_free,
    fill_held,
    find_capacity,
    free_capacity,
    hold,
    make_capacity,
    purse_of,
    undo_fill,
    unit_of,
)

# Room a command needs beyond its fills: its terminal event, a remainder, a self-trade's pair.
EFFECTS_SPARE: Final = 8
# The outbox must have this much room left before a command starts.
EVENTS_PER_COMMAND_MAX: Final = EFFECTS_MAX + EFFECTS_SPARE
# How many commands ahead their cache lines are asked for; the second look needs the first's answer.
AHEAD: Final = 12
SOON: Final = 6
OUTBOX_EVENTS: Final = EVENTS_PER_COMMAND_MAX * 4
OUTBOX: Final = np.dtype(
    [("count", "<u8"), ("unused", "u1", (56,)), ("events", EVENT, (OUTBOX_EVENTS,))]
)

# --- events -------------------------------------------------------------------------------------


@inlined
def _next(out: Any, c: Any, kind: Any) -> Any:
    """A new event of this command; the caller sets every field but these three."""
    e = out.events[out.count]
    out.count += uint64(1)
    e.sequence = c.sequence
    e.time_ns = c.time_ns
    e.kind = uint8(kind)
    return e


@inlined
def _emit(out: Any, c: Any, kind: Any) -> Any:
    """A new event with what most kinds take from their command; the caller changes the rest."""
    e = _next(out, c, kind)
    e.order_id = uint64(0)
    e.counter_order_id = c.client_id
    e.price_ticks = c.price_ticks
    e.qty_lots = c.qty_lots
    e.account = c.account
    e.counter_account = uint32(0)
    e.instrument = c.instrument
    e.side = c.side
    e.reason = uint16(0)
    return e


@kernel
def _reject(out: Any, c: Any, reason: Any) -> None:
    e = _emit(out, c, EventKind.REJECTED)
    e.order_id = c.order_id
    e.reason = uint16(reason)


@inlined
def _cancelled(s: Any, out: Any, c: Any, slot: Any, reason: Any) -> Any:
    """The CANCELLED event of a resting order; the caller takes it off the book."""
    order = s.orders[slot]
    leaf = s.leaves[order.level >> uint32(6)]
    e = _next(out, c, EventKind.CANCELLED)
    e.order_id = uint64(order_id(s, slot))
    e.client_id = order.client_id
    e.price_ticks = int64(order.price_ticks)
    e.qty_lots = int64(order.qty_lots)
    e.account = order.account
    e.counter_account = uint32(0)
    e.instrument = leaf.instrument
    e.side = uint8(leaf.side)
    e.reason = uint16(reason)


@inlined
def _remainder(out: Any, c: Any, taker_id: Any, left: Any, reason: Any) -> Any:
    """The CANCELLED event of what is left of a taker that may not rest."""
    e = _emit(out, c, EventKind.CANCELLED)
    e.order_id = taker_id
    e.qty_lots = left
    e.reason = uint16(reason)


# --- new order ----------------------------------------------------------------------------------


@inlined
def _release(s: Any, book: Any, side: Any, slot: Any, lots: Any) -> None:
    """Give back what a resting order holds for this much of it."""
    order = s.orders[slot]
    amount = unit_of(book, side, int64(order.price_ticks)) * lots
    hold(s, order.account, side, -amount, order.capacity, -lots)


@inlined
def _known_account(s: Any, account: Any) -> Any:
    return 0 < account < ACCOUNTS_MAX and s.identities[account].opened != UNKNOWN


@kernel
def _why_not_trading(s: Any, account: Any) -> Any:
    return Reject.ACCOUNT_CLOSED if _known_account(s, account) else Reject.UNKNOWN_ACCOUNT


@inlined
def _check_order(s: Any, c: Any) -> Any:
    """The first reason to refuse a new order that needs no look at the book's depth, or 0."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return Reject.UNKNOWN_INSTRUMENT
    book = s.books[c.instrument]
    if book.status != MarketStatus.OPEN:
        return Reject.MARKET_HALTED
    if c.account == 0 or c.account >= ACCOUNTS_MAX or s.identities[c.account].opened != TRADING:
        return _why_not_trading(s, c.account)
    if c.price_ticks <= 0 or c.price_ticks > PRICE_TICKS_MAX:
        return Reject.PRICE_OUT_OF_RANGE
    if c.qty_lots <= 0 or c.qty_lots > QTY_LOTS_MAX:
        return Reject.QTY_OUT_OF_RANGE
    if book.lot_multiple > 1 and uint32(c.qty_lots) % book.lot_multiple != 0:
        return Reject.QTY_NOT_A_MULTIPLE
    if (
        c.side > SELL
        or c.time_in_force > TimeInForce.FOK
        or c.self_trade > SelfTrade.DECREMENT
        or c.flags > Flag.POST_ONLY
    ):
        return Reject.UNKNOWN_COMMAND
    if c.flags == Flag.POST_ONLY and c.time_in_force != TimeInForce.GTC:
        return Reject.CONFLICTING_FLAGS
    if s.open_orders >= OPEN_ORDERS_MAX:
        return Reject.TOO_MANY_OPEN_ORDERS
    if not has_room(s):
        return Reject.BOOK_FULL
    return 0


@inlined
def _check_reserve(s: Any, book: Any, c: Any, capacity: Any) -> Any:
    """Whether the account has what the order must hold."""
    if free_capacity(s, capacity) < c.qty_lots:
        return Reject.INSUFFICIENT_CAPACITY
    need = unit_of(book, c.side, c.price_ticks) * c.qty_lots
    if need > s.balances[c.account, purse_of(c.side)]:
        return Reject.INSUFFICIENT_BALANCE if c.side == BUY else Reject.INSUFFICIENT_BOND
    return 0


@inlined
def _crosses(book: Any, side: Any, limit: Any) -> Any:
    """Whether an order of this side and limit would meet the best price of the other side."""
    other = uint32(SELL) - uint32(side)
    return book.best[other] >= rank_of(other, limit)


@kernel
def _next_rank(s: Any, book: Any, side: Any, rank: Any) -> Any:
    """The next occupied rank of a side below `rank`; 0 past the last."""
    key = rank >> uint32(6)
    place = book.root[side]
    height = uint32(book.height[side])
    # Down along the key, remembering the last place where a worse branch leaves the path.
    turn = uint32(0)
    turn_height = uint32(0)
    turn_bits = uint64(0)
    while height > 0:
        height -= uint32(1)
        slot = (key >> (uint32(6) * height)) & uint32(63)
        bits = _below(s.nodes[place].occupied, slot)
        if bits != 0:
            turn = place
            turn_height = height
            turn_bits = bits
        place = s.nodes[place].children[slot]
    bits = _below(s.leaves[place].occupied, rank & uint32(63))
    if bits == 0:
        if turn == 0:
            return uint32(NO_ORDERS)
        place = s.nodes[turn].children[highest_bit(turn_bits)]
        height = turn_height
        while height > 0:
            height -= uint32(1)
            place = s.nodes[place].children[highest_bit(s.nodes[place].occupied)]
        bits = s.leaves[place].occupied
    return (s.leaves[place].key << uint32(6)) | uint32(highest_bit(bits))


@inlined
def _below(bits: Any, slot: Any) -> Any:
    return bits & ((uint64(1) << uint64(slot)) - uint64(1))


@kernel
def _fillable(s: Any, book: Any, c: Any) -> Any:
    """Whether a fill-or-kill order fills whole within the limit on effects. O(orders it meets).

    Orders of the same account fill nothing: under CANCEL_MAKER they are passed over (they will be
    cancelled), under the other modes they end the order before it is filled.
    """
    side = uint32(SELL - c.side)
    need = c.qty_lots
    effects = 0
    rank = book.best[side]
    limit = rank_of(side, uint32(c.price_ticks))
    while rank >= limit:
        leaf = leaf_for(s, book, c.instrument, side, rank)
        slot = s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head
        while slot != 0:
            effects += 1
            if effects > EFFECTS_MAX:
                return False
            order = s.orders[slot]
            if order.account != c.account:
                need -= int64(order.qty_lots)
                if need <= 0:
                    return True
            elif c.self_trade != SelfTrade.CANCEL_MAKER:
                return False
            slot = order.next
        rank = _next_rank(s, book, side, rank)
    return False


@kernel
def _self_trade(s: Any, book: Any, out: Any, c: Any, taker_id: Any, slot: Any, left: Any) -> Any:
    """Apply the taker's mode where it meets its own order: (events, what the taker has left).

    A taker that must end comes back with its remainder cancelled and 0 left.
    """
    side = uint32(SELL - c.side)
    maker_qty = int64(s.orders[slot].qty_lots)
    if c.self_trade == SelfTrade.DECREMENT:
        both = min(left, maker_qty)
        e = _emit(out, c, EventKind.DECREMENTED)
        e.order_id = taker_id
        e.counter_order_id = uint64(order_id(s, slot))
        e.price_ticks = int64(s.orders[slot].price_ticks)
        e.qty_lots = both
        e.counter_account = c.account
        _release(s, book, side, slot, both)
        if both == maker_qty:
            dequeue(s, book, side, slot)
        else:
            s.orders[slot].qty_lots = uint32(maker_qty - both)
        return left - both
    if c.self_trade in (SelfTrade.CANCEL_MAKER, SelfTrade.CANCEL_BOTH):
        _cancelled(s, out, c, slot, CancelReason.SELF_TRADE)
        _release(s, book, side, slot, maker_qty)
        dequeue(s, book, side, slot)
    if c.self_trade != SelfTrade.CANCEL_MAKER:
        _remainder(out, c, taker_id, left, CancelReason.SELF_TRADE)
        left = int64(0)
    return left


@inlined
def _fill(s: Any, book: Any, out: Any, c: Any, taker_id: Any, slot: Any, qty: Any) -> None:
    """One trade at the maker's price; the maker's reserve moves, the taker's is the caller's."""
    order = s.orders[slot]
    e = _next(out, c, EventKind.FILL)
    e.order_id = taker_id
    e.counter_order_id = (uint64(order.generation) << uint64(24)) | uint64(slot)
    e.price_ticks = int64(order.price_ticks)
    e.qty_lots = qty
    e.account = c.account
    e.counter_account = order.account
    e.instrument = c.instrument
    e.side = c.side
    e.reason = uint16(0)
    book.last_ticks = order.price_ticks
    side = SELL - c.side
    amount = unit_of(book, side, int64(order.price_ticks)) * qty
    fill_held(s, order.account, side, amount, order.capacity, qty)


@kernel
def _trade(s: Any, book: Any, out: Any, c: Any, taker_id: Any) -> Any:
    """Match against the other side: (lots left, lots filled, cost in µUSDC)."""
    first = out.count
    side = uint32(SELL - c.side)
    limit = uint32(c.price_ticks)
    left = c.qty_lots
    filled = int64(0)
    cost = int64(0)
    while left > 0 and _crosses(book, c.side, limit):
        rank = book.best[side]
        price = rank_of(side, rank)
        level = (book.best_leaf[side] << uint32(6)) | (rank & uint32(63))
        slot = s.levels[level].head
        while slot != 0 and left > 0:
            if out.count - first >= uint64(EFFECTS_MAX):
                _remainder(out, c, taker_id, left, CancelReason.EFFECTS_LIMIT)
                return int64(0), filled, cost
            order = s.orders[slot]
            if order.account == c.account:
                # May drop the level, so look up the best price afresh.
                left = _self_trade(s, book, out, c, taker_id, slot, left)
                break
            maker_qty = int64(order.qty_lots)
            qty = min(left, maker_qty)
            _fill(s, book, out, c, taker_id, slot, qty)
            left -= qty
            filled += qty
            cost += int64(price) * qty
            if qty < maker_qty:
                order.qty_lots = uint32(maker_qty - qty)
                break
            behind = order.next
            s.levels[level].head = behind
            free_slot(s, slot)
            book.open_orders -= uint32(1)
            if behind != 0:
                s.orders[behind].prev = uint32(0)
            else:
                s.levels[level].tail = uint32(0)
                drop_level(s, book, side, level)
            slot = behind
    return left, filled, cost


@inlined
def _rest(s: Any, book: Any, c: Any, slot: Any, qty: Any, capacity: Any) -> None:
    order = s.orders[slot]
    order.qty_lots = uint32(qty)
    order.price_ticks = uint32(c.price_ticks)
    order.account = c.account
    order.capacity = capacity
    order.client_id = c.client_id
    order.sequence = c.sequence
    side = uint32(c.side)
    rank = rank_of(side, order.price_ticks)
    enqueue(s, book, side, slot, rank, leaf_for(s, book, c.instrument, side, rank))
    hold(s, c.account, side, unit_of(book, side, c.price_ticks) * qty, capacity, qty)


@inlined
def _new_order(s: Any, c: Any, out: Any) -> Any:
    reason = _check_order(s, c)
    if reason != 0:
        return _reject(out, c, reason)
    book = s.books[c.instrument]
    capacity = find_capacity(s, c.account, c.instrument, c.side)
    reason = _check_reserve(s, book, c, capacity)
    crossing = _crosses(book, c.side, uint32(c.price_ticks))
    if reason == 0 and c.flags == Flag.POST_ONLY and crossing:
        reason = Reject.POST_ONLY_WOULD_TRADE
    if reason == 0 and c.time_in_force == TimeInForce.FOK and not _fillable(s, book, c):
        reason = Reject.FOK_NOT_FILLABLE
    if reason != 0:
        return _reject(out, c, reason)

    # Taken before matching, so that makers leaving the book cannot change the taker's id.
    slot = take_slot(s)
    taker_id = uint64(order_id(s, slot))
    e = _emit(out, c, EventKind.ACCEPTED)
    e.order_id = taker_id
    left = c.qty_lots
    if crossing:
        left, filled, cost = _trade(s, book, out, c, taker_id)
        if filled > 0:
            paid = cost if c.side == BUY else book.bond_usdc6_per_lot * filled
            fill_free(s, c.account, c.side, paid, capacity, filled)
    if left > 0 and c.time_in_force == TimeInForce.GTC:
        _rest(s, book, c, slot, left, capacity)
        return None
    free_slot(s, slot)
    if left > 0:
        _remainder(out, c, taker_id, left, CancelReason.IOC_REMAINDER)


# --- cancel -------------------------------------------------------------------------------------


@inlined
def _remove(s: Any, out: Any, c: Any, slot: Any, reason: Any) -> Any:
    """Take a resting order off its book, with its event and its reserve given back."""
    leaf = s.leaves[s.orders[slot].level >> uint32(6)]
    side = leaf.side
    book = s.books[leaf.instrument]
    _cancelled(s, out, c, slot, reason)
    _release(s, book, side, slot, int64(s.orders[slot].qty_lots))
    dequeue(s, book, side, slot)


@inlined
def _cancel(s: Any, c: Any, out: Any) -> Any:
    """O(1); O(trie height) when it empties a price."""
    slot = uint32(c.order_id & uint64(0xFFFFFF))
    if slot == 0 or slot > s.order_high:
        return _reject(out, c, Reject.UNKNOWN_ORDER)
    order = s.orders[slot]
    known = order.qty_lots != 0 and order.account == c.account
    if not known or uint64(order.generation) != c.order_id >> uint64(24):
        return _reject(out, c, Reject.UNKNOWN_ORDER)
    return _remove(s, out, c, slot, CancelReason.BY_REQUEST)


@kernel
def _cancel_all(s: Any, c: Any, out: Any) -> Any:
    """Every open order of the account, in one market or in all. O(slots ever used), in slot order.

    Stops at EFFECTS_MAX orders; the terminal event then carries EFFECTS_LIMIT and the client asks
    again.
    """
    every = c.instrument == ALL_INSTRUMENTS
    if not every and (c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0):
        return _reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    return _clear(s, c, out, every, CancelReason.CANCEL_ALL, EventKind.CANCEL_ALL_DONE)


@kernel
def _clear(s: Any, c: Any, out: Any, every: Any, why: Any, done: Any) -> None:
    """Cancel the account's orders, for `why`; the terminal event, of kind `done`, counts them."""
    first = out.count
    reason = uint16(0)
    for slot in range(uint32(1), s.order_high + uint32(1)):
        order = s.orders[slot]
        if order.qty_lots == 0 or order.account != c.account:
            continue
        if not every and s.leaves[order.level >> uint32(6)].instrument != c.instrument:
            continue
        if out.count - first >= uint64(EFFECTS_MAX):
            reason = uint16(CancelReason.EFFECTS_LIMIT)
            break
        _remove(s, out, c, uint32(slot), why)
    count = int64(out.count - first)
    e = _emit(out, c, done)
    e.qty_lots = count
    e.reason = reason


# --- money and capacity -------------------------------------------------------------------------


@kernel
def _declare_capacity(s: Any, c: Any, out: Any) -> Any:
    """Set how many lots an operator has in all for a market; never below what it has promised."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return _reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    if not _known_account(s, c.account) or s.identities[c.account].opened != TRADING:
        return _reject(out, c, _why_not_trading(s, c.account))
    if c.qty_lots < 0 or c.qty_lots > QTY_LOTS_MAX:
        return _reject(out, c, Reject.QTY_OUT_OF_RANGE)
    capacity = make_capacity(s, c.account, c.instrument)
    if capacity == 0:
        return _reject(out, c, Reject.TOO_MANY_CAPACITIES)
    row = s.capacities[capacity]
    if c.qty_lots < row.held_lots + row.sold_lots:
        return _reject(out, c, Reject.CAPACITY_IN_USE)
    row.declared_lots = c.qty_lots
    _emit(out, c, EventKind.CAPACITY_DECLARED)


@kernel
def _withdraw(s: Any, c: Any, out: Any) -> Any:
    """Free balance leaves; the command's own sequence is the withdrawal's id."""
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0 or c.amount_usdc6 > AMOUNT_USDC6_MAX:
        return _reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.amount_usdc6 > s.balances[c.account, FREE]:
        return _reject(out, c, Reject.INSUFFICIENT_BALANCE)
    s.balances[c.account, FREE] -= c.amount_usdc6
    s.balances[c.account, LEAVING] += c.amount_usdc6
    e = _emit(out, c, EventKind.WITHDRAWAL_RESERVED)
    e.reference = c.sequence


@kernel
def _open_account(s: Any, c: Any, out: Any) -> Any:
    if c.account == 0 or c.account >= ACCOUNTS_MAX:
        return _reject(out, c, Reject.TOO_MANY_ACCOUNTS)
    identity = s.identities[c.account]
    if identity.opened != UNKNOWN:
        return _reject(out, c, Reject.ACCOUNT_EXISTS)
    identity.opened = uint16(TRADING)
    e = _emit(out, c, EventKind.ACCOUNT_OPENED)
    for i in range(20):
        identity.owner[i] = c.owner[i]
        e.owner[i] = c.owner[i]
    s.account_high = max(s.account_high, c.account)


@kernel
def _close_account(s: Any, c: Any, out: Any) -> Any:
    """No new orders or capacity from now on; open orders are cancelled. Harmless when repeated,
    and repeated by the caller while the terminal event carries EFFECTS_LIMIT."""
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    s.identities[c.account].opened = uint16(CLOSED)
    return _clear(s, c, out, True, CancelReason.ACCOUNT_CLOSED, EventKind.ACCOUNT_CLOSED)


@kernel
def _reopen_account(s: Any, c: Any, out: Any) -> Any:
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    s.identities[c.account].opened = uint16(TRADING)
    _emit(out, c, EventKind.ACCOUNT_REOPENED)


@kernel
def _deposit(s: Any, c: Any, out: Any) -> Any:
    """Credit the vault's next deposit; any other number is refused, so redelivery is harmless."""
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    amount = c.amount_usdc6
    if amount <= 0 or amount > AMOUNT_USDC6_MAX or s.total_usdc6 + amount > TOTAL_USDC6_MAX:
        return _reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.reference != s.last_deposit + uint64(1):
        return _reject(out, c, Reject.DEPOSIT_OUT_OF_ORDER)
    s.last_deposit = c.reference
    s.total_usdc6 += amount
    if c.side == Purse.BOND:
        s.balances[c.account, BOND_FREE] += amount
    else:
        s.balances[c.account, FREE] += amount
    _emit(out, c, EventKind.DEPOSITED)


@kernel
def _confirm_escrow(s: Any, c: Any, out: Any) -> Any:
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return _reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    identity = s.identities[c.account]
    if c.reference <= identity.last_batch:
        return _reject(out, c, Reject.ESCROW_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, PENDING]:
        return _reject(out, c, Reject.ESCROW_EXCEEDS_PENDING)
    identity.last_batch = c.reference
    s.balances[c.account, PENDING] -= c.amount_usdc6
    s.balances[c.account, ESCROW] += c.amount_usdc6
    _emit(out, c, EventKind.ESCROW_CONFIRMED)


@kernel
def _answer_withdrawal(s: Any, c: Any, out: Any) -> Any:
    """A withdrawal was paid, or will not be and is free again: one of the two, once, in order."""
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return _reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.reference <= s.last_withdrawal:
        return _reject(out, c, Reject.WITHDRAWAL_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, LEAVING]:
        return _reject(out, c, Reject.WITHDRAWAL_EXCEEDS_LEAVING)
    s.last_withdrawal = c.reference
    s.balances[c.account, LEAVING] -= c.amount_usdc6
    if c.kind == CommandKind.CANCEL_WITHDRAWAL:
        s.balances[c.account, FREE] += c.amount_usdc6
        _emit(out, c, EventKind.WITHDRAWAL_CANCELLED)
        return
    s.total_usdc6 -= c.amount_usdc6
    _emit(out, c, EventKind.WITHDRAWAL_CONFIRMED)


@kernel
def _void_fill(s: Any, c: Any, out: Any) -> Any:
    """Undo a fill that was never settled: the buyer's money is free again, and so are the
    seller's bond and capacity."""
    seller = c.counter_account
    if not _known_account(s, c.account) or not _known_account(s, seller):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return _reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    if c.price_ticks <= 0 or c.price_ticks > PRICE_TICKS_MAX:
        return _reject(out, c, Reject.PRICE_OUT_OF_RANGE)
    if c.qty_lots <= 0 or c.qty_lots > QTY_LOTS_MAX:
        return _reject(out, c, Reject.QTY_OUT_OF_RANGE)
    if c.void_number <= s.last_void:
        return _reject(out, c, Reject.VOID_OUT_OF_ORDER)
    amount = c.price_ticks * c.qty_lots
    bond = s.books[c.instrument].bond_usdc6_per_lot * c.qty_lots
    capacity = find_capacity(s, seller, c.instrument, uint8(SELL))
    if (
        amount > s.balances[c.account, PENDING]
        or bond > s.balances[seller, BOND_LOCKED]
        or c.qty_lots > s.capacities[capacity].sold_lots
    ):
        return _reject(out, c, Reject.VOID_EXCEEDS_FILLS)
    s.last_void = c.void_number
    undo_fill(s, c.account, amount, seller, capacity, c.qty_lots, bond)
    e = _emit(out, c, EventKind.FILL_VOIDED)
    e.counter_account = seller


@kernel
def _confirm_exit(s: Any, c: Any, out: Any) -> Any:
    """The owner took free money out of the vault without us; `reference` counts the account's
    exits from 1."""
    if not _known_account(s, c.account):
        return _reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return _reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    identity = s.identities[c.account]
    if c.reference != uint64(identity.exits) + uint64(1):
        return _reject(out, c, Reject.EXIT_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, FREE]:
        return _reject(out, c, Reject.EXIT_EXCEEDS_FREE)
    identity.exits = uint16(c.reference)
    s.total_usdc6 -= c.amount_usdc6
    s.balances[c.account, FREE] -= c.amount_usdc6
    _emit(out, c, EventKind.EXIT_CONFIRMED)


# --- markets ------------------------------------------------------------------------------------


@kernel
def _list_market(s: Any, c: Any, out: Any) -> Any:
    if c.instrument >= INSTRUMENTS_MAX:
        return _reject(out, c, Reject.TOO_MANY_INSTRUMENTS)
    book = s.books[c.instrument]
    if book.status != MarketStatus.UNLISTED:
        return _reject(out, c, Reject.ALREADY_LISTED)
    lot_fits = 0 < c.lot_multiple <= QTY_LOTS_MAX
    bond_fits = 0 < c.bond_usdc6_per_lot <= PRICE_TICKS_MAX
    if c.product == 0 or not lot_fits or not bond_fits:
        return _reject(out, c, Reject.INVALID_LISTING)
    book.status = uint8(MarketStatus.OPEN)
    book.product = c.product
    book.lot_multiple = uint32(c.lot_multiple)
    book.bond_usdc6_per_lot = c.bond_usdc6_per_lot
    s.instrument_high = max(s.instrument_high, c.instrument + uint32(1))
    e = _emit(out, c, EventKind.MARKET_LISTED)
    e.product = c.product


@kernel
def _set_status(s: Any, c: Any, out: Any) -> Any:
    """Halt an open market, or resume a halted one. Resting orders stay and may be cancelled."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return _reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    book = s.books[c.instrument]
    if c.kind == CommandKind.HALT_MARKET:
        if book.status != MarketStatus.OPEN:
            return _reject(out, c, Reject.NOT_OPEN)
        book.status = uint8(MarketStatus.HALTED)
        _emit(out, c, EventKind.MARKET_HALTED)
        return
    if book.status != MarketStatus.HALTED:
        return _reject(out, c, Reject.NOT_HALTED)
    book.status = uint8(MarketStatus.OPEN)
    _emit(out, c, EventKind.MARKET_RESUMED)


# --- the door -----------------------------------------------------------------------------------


@kernel
def _apply_rare(s: Any, c: Any, out: Any) -> Any:
    """The commands that are few; apart from the hot ones so that those stay small."""
    if c.kind == CommandKind.CANCEL_ALL:
        return _cancel_all(s, c, out)
    if c.kind == CommandKind.DECLARE_CAPACITY:
        return _declare_capacity(s, c, out)
    if c.kind == CommandKind.WITHDRAW:
        return _withdraw(s, c, out)
    if c.kind == CommandKind.OPEN_ACCOUNT:
        return _open_account(s, c, out)
    if c.kind == CommandKind.DEPOSIT:
        return _deposit(s, c, out)
    if c.kind == CommandKind.CONFIRM_ESCROW:
        return _confirm_escrow(s, c, out)
    if c.kind in (CommandKind.CONFIRM_WITHDRAWAL, CommandKind.CANCEL_WITHDRAWAL):
        return _answer_withdrawal(s, c, out)
    if c.kind == CommandKind.CLOSE_ACCOUNT:
        return _close_account(s, c, out)
    if c.kind == CommandKind.REOPEN_ACCOUNT:
        return _reopen_account(s, c, out)
    if c.kind == CommandKind.VOID_FILL:
        return _void_fill(s, c, out)
    if c.kind == CommandKind.CONFIRM_EXIT:
        return _confirm_exit(s, c, out)
    if c.kind == CommandKind.LIST_MARKET:
        return _list_market(s, c, out)
    if c.kind in (CommandKind.HALT_MARKET, CommandKind.RESUME_MARKET):
        return _set_status(s, c, out)
    return _reject(out, c, Reject.UNKNOWN_COMMAND)


@inlined
def apply(s: Any, c: Any, out: Any) -> None:
    """One command against the state; its events go behind those in the outbox.

    s: the STATE record; c: a COMMAND record; out: an OUTBOX record with room for
    EVENTS_PER_COMMAND_MAX more events.
    """
    s.sequence = c.sequence
    s.time_ns = c.time_ns
    if c.kind == CommandKind.NEW_ORDER:
        _new_order(s, c, out)
    elif c.kind == CommandKind.CANCEL:
        _cancel(s, c, out)
    else:
        _apply_rare(s, c, out)


@inlined
def expect(s: Any, c: Any) -> None:
    """Ask for the first cache lines that a later command will need. Changes nothing.

    The same for every kind of command: a branch here would be mispredicted once more.
    """
    instrument = c.instrument & uint32(INSTRUMENTS_MAX - 1)
    prefetch(s.orders[c.order_id & uint64(OPEN_ORDERS_MAX)])
    prefetch(s.books[instrument])
    prefetch(s.capacities[capacity_home(c.account, instrument) * uint32(c.side & uint8(1))])


@inlined
def expect_soon(s: Any, c: Any) -> None:
    """Ask for the lines that lie behind those `expect` asked for. Changes nothing."""
    order = s.orders[c.order_id & uint64(OPEN_ORDERS_MAX)]
    prefetch(s.levels[order.level])
    prefetch(s.leaves[order.level >> uint32(6)])
    prefetch(s.orders[order.prev])
    prefetch(s.orders[order.next])
    prefetch(s.capacities[order.capacity])
    book = s.books[c.instrument & uint32(INSTRUMENTS_MAX - 1)]
    side = uint32(c.side & uint8(1))
    rank = rank_of(side, uint32(c.price_ticks)) & uint32(63)
    prefetch(s.levels[(book.best_leaf[side] << uint32(6)) | rank])
    prefetch(s.leaves[book.best_leaf[side]])


@kernel
def execute(state: Any, commands: Any, start: Any, outbox: Any) -> Any:
    """Apply commands[start:] in order while the outbox has room for one more.

    state: shape (1,), dtype STATE; commands: shape (k,), dtype COMMAND, sequences consecutive from
    state's + 1; outbox: shape (1,), dtype OUTBOX, overwritten from its start.
    Returns the index of the first command not applied.
    """
    s = state[0]
    out = outbox[0]
    out.count = uint64(0)
    i = start
    while i < len(commands) and out.count <= uint64(OUTBOX_EVENTS - EVENTS_PER_COMMAND_MAX):
        if i + AHEAD < len(commands):
            expect(s, commands[i + AHEAD])
            expect_soon(s, commands[i + SOON])
        apply(s, commands[i], out)
        i += 1
    return i
