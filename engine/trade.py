"""Price-time matching of one order, and how an order rests, shrinks and leaves.

Price then time priority; a trade is at the resting price; a book never ends a command crossed.
Invariant: an order that rests holds exactly what its remainder needs, and what it holds is given
back or moves on with every lot that leaves it. Called by the kernel's other modules.

`reference.py` says the same rules slowly and plainly; model tests hold the two together.
"""

from typing import Any, Final

from engine.bands import begin_call, is_outside_band, reach
from engine.book import (
    BUY,
    LEASE,
    NO_ORDERS,
    RULE_BANDS,
    RULE_GATE,
    RULE_WAITING,
    RULE_WINDOW,
    RULES_OF_TRADING,
    SELL,
    TRADING,
    TRAIT_RESALE_BIT,
    UNKNOWN,
    dequeue,
    drop_level,
    enqueue,
    free_slot,
    has_room,
    leaf_for,
    move_to_back,
    order_id,
    rank_of,
    side_of,
    take_slot,
    unlink,
)
from engine.kernel import (
    highest_bit,
    inlined,
    int32,
    int64,
    kernel,
    prefetch,
    uint8,
    uint16,
    uint32,
    uint64,
)
from engine.outbox import emit, is_spent, next_event, reject
from engine.records import (
    ACCOUNT_ORDERS_MAX,
    ACCOUNTS_MAX,
    ALL_INSTRUMENTS,
    CAPACITIES_MAX,
    EFFECTS_MAX,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    CancelReason,
    CommandKind,
    EventKind,
    Flag,
    MarketStatus,
    OneSide,
    SelfTrade,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import (
    capacity_of,
    fee_of,
    fill_charged,
    fill_free,
    fill_held,
    find_capacity,
    free_capacity,
    held_by,
    held_for,
    hold,
    note_bought,
    purse_of,
    resale_of,
    unit_for,
    unit_of,
)

MAKER: Final = 0  # columns of the fee schedule
TAKER: Final = 1


@inlined
def left_of(order: Any) -> Any:
    """All that is left of a resting order, shown or not."""
    return int64(order.qty_lots) + int64(order.hidden_lots)


@inlined
def is_expired(order: Any, time_ns: Any) -> Any:
    return order.expiry_s != 0 and int64(order.expiry_s) * SECOND_NS <= time_ns


@inlined
def event_of(s: Any, out: Any, c: Any, slot: Any, kind: Any, lots: Any, reason: Any) -> None:
    """An event about a resting order."""
    order = s.orders[slot]
    leaf = s.leaves[order.level >> uint32(6)]
    # Read before anything is written: the compiler does not know that events are no orders.
    known_as = uint64(order_id(s, slot))
    instrument = leaf.instrument
    side = uint8(side_of(leaf.side))
    e = next_event(out, c, kind)
    e.order_id = known_as
    e.client_id = order.client_id
    e.price_ticks = int64(order.price_ticks)
    e.qty_lots = int32(lots)
    e.expiry_s = uint32(0)
    e.account = order.account
    e.counter_account = uint32(0)
    e.instrument = instrument
    e.side = side
    e.reason = uint16(reason)


@inlined
def remainder(out: Any, c: Any, taker_id: Any, left: Any, reason: Any) -> Any:
    """The CANCELLED event of what is left of a taker that may not rest."""
    e = emit(out, c, EventKind.CANCELLED)
    e.order_id = taker_id
    e.qty_lots = int32(left)
    e.reason = uint16(reason)


# --- reasons to refuse ---------------------------------------------------------------------------


@inlined
def release(s: Any, book: Any, side: Any, slot: Any, lots: Any) -> None:
    """Give back what a resting order holds for this much of it."""
    order = s.orders[slot]
    left = left_of(order)
    amount = held_by(book, side, order, left) - held_by(book, side, order, left - lots)
    hold(s, order.account, side, -amount, order.capacity, -lots)


@inlined
def taker_ppm_of(s: Any, account: Any) -> Any:
    return s.fees[s.identities[account].fee_tier, TAKER]


@inlined
def known_account(s: Any, account: Any) -> Any:
    return 0 < account < ACCOUNTS_MAX and s.identities[account].opened != UNKNOWN


@kernel
def why_not_trading(s: Any, account: Any) -> Any:
    return Reject.ACCOUNT_CLOSED if known_account(s, account) else Reject.UNKNOWN_ACCOUNT


@kernel
def is_gate_shut(s: Any, c: Any) -> Any:
    """Whether the market's time to close has come, be it closed already or about to be."""
    book = s.books[c.instrument]
    closes_s = s.markets[c.instrument].closes_s
    return book.rules & RULE_GATE != 0 and int64(closes_s) * SECOND_NS <= c.time_ns


@kernel
def _has_room_for_lease(s: Any, c: Any) -> Any:
    """Whether what a buyer of hours buys can be noted."""
    lease = find_capacity(s, c.account | uint32(LEASE), c.instrument, uint8(SELL))
    return c.side != BUY or s.capacities_used < CAPACITIES_MAX or s.capacities[lease].key != 0


@kernel
def _why_not_open(s: Any, c: Any) -> Any:
    """Why a market that is not open takes no such order; 0 if it gathers them in a call."""
    book = s.books[c.instrument]
    if book.status == MarketStatus.CLOSED:
        return Reject.MARKET_CLOSED
    if book.status != MarketStatus.CALL:
        return Reject.MARKET_HALTED
    if s.markets[c.instrument].auction_ticks != 0:
        return Reject.UNCROSSING
    if c.kind == CommandKind.NEW_STOP:
        return 0
    # What must trade at once, or must not when it is met, has no place where all trade together.
    at_once = c.time_in_force in (TimeInForce.IOC, TimeInForce.FOK) or c.flags == Flag.MARKET
    gathers = not at_once and c.flags != Flag.POST_ONLY
    if c.kind == CommandKind.NEW_ORDER and gathers and c.min_lots == 0:
        return 0
    return 0 if c.kind == CommandKind.AMEND and gathers else Reject.NOT_IN_A_CALL


@kernel
def _check_market(s: Any, c: Any) -> Any:
    """Whether a market that is not simply open takes such an order from this account; 0 if so."""
    book = s.books[c.instrument]
    if book.status == MarketStatus.UNLISTED:
        return Reject.UNKNOWN_INSTRUMENT
    if book.status != MarketStatus.OPEN:
        reason = _why_not_open(s, c)
        if reason != 0:
            return reason
    if is_gate_shut(s, c):
        return Reject.MARKET_CLOSED
    if book.rules & uint8(RULE_WINDOW) != 0 and not _has_room_for_lease(s, c):
        return Reject.TOO_MANY_CAPACITIES
    return 0


@inlined
def check_access(s: Any, c: Any) -> Any:
    """Whether this account may trade in this market now; 0 if it may."""
    if c.instrument >= INSTRUMENTS_MAX:
        return Reject.UNKNOWN_INSTRUMENT
    book = s.books[c.instrument]
    if book.status != MarketStatus.OPEN or book.rules != 0:
        reason = _check_market(s, c)
        if reason != 0:
            return reason
    if c.account == 0 or c.account >= ACCOUNTS_MAX or s.identities[c.account].opened != TRADING:
        return why_not_trading(s, c.account)
    return 0


@inlined
def _check_numbers(s: Any, c: Any) -> Any:
    """The first reason to refuse a new order for where it is and its price and quantity, or 0."""
    reason = check_access(s, c)
    if reason != 0:
        return reason
    if c.price_ticks <= 0 or c.price_ticks > PRICE_TICKS_MAX:
        return Reject.PRICE_OUT_OF_RANGE
    if c.qty_lots <= 0 or c.qty_lots > QTY_LOTS_MAX:
        return Reject.QTY_OUT_OF_RANGE
    lot_multiple = s.books[c.instrument].lot_multiple
    if lot_multiple > 1 and uint32(c.qty_lots) % lot_multiple != 0:
        return Reject.QTY_NOT_A_MULTIPLE
    return 0


@inlined
def _check_contradictions(s: Any, c: Any) -> Any:
    """The first reason to refuse a new order whose price, quantity and words are right, or 0."""
    if c.flags == Flag.POST_ONLY and c.time_in_force != TimeInForce.GTC:
        return Reject.CONFLICTING_FLAGS
    if s.books[c.instrument].rules & uint8(RULE_BANDS) != 0 and is_outside_band(s, c):
        return Reject.OUTSIDE_BAND
    return 0


@inlined
def check_form(s: Any, c: Any) -> Any:
    """The first reason to refuse a new order for what it says, where and when, or 0."""
    reason = _check_numbers(s, c)
    if reason != 0:
        return reason
    if (
        c.side > SELL
        or c.resale > c.side
        or c.time_in_force > TimeInForce.FOK
        or c.self_trade > SelfTrade.DECREMENT
        or c.flags > Flag.POST_ONLY
    ):
        return Reject.UNKNOWN_COMMAND
    return _check_contradictions(s, c)


@inlined
def _check_room(s: Any, c: Any) -> Any:
    """Whether the account and the shard have room for one more order; 0 if they have."""
    if s.resting[c.account] >= ACCOUNT_ORDERS_MAX:
        return Reject.ACCOUNT_ORDERS_FULL
    if s.open_orders + s.orders_retired >= OPEN_ORDERS_MAX:
        return Reject.TOO_MANY_OPEN_ORDERS
    if not has_room(s):
        return Reject.BOOK_FULL
    return 0


@kernel
def check_order(s: Any, c: Any) -> Any:
    """The first reason to refuse a new order that needs no look at the book's depth, or 0."""
    reason = check_form(s, c)
    return reason if reason != 0 else _check_room(s, c)


@inlined
def _check_plain_order(s: Any, c: Any) -> Any:
    """`check_order`, for one of which `match.is_plain` knows that its words are right."""
    reason = _check_numbers(s, c)
    if reason == 0:
        reason = _check_contradictions(s, c)
    return reason if reason != 0 else _check_room(s, c)


@inlined
def check_reserve(s: Any, c: Any, capacity: Any, unit: Any) -> Any:
    """Whether the account has what the order must hold: `unit` for each lot, and the fee."""
    if free_capacity(s, capacity) < c.qty_lots:
        return Reject.INSUFFICIENT_CAPACITY
    lots = int64(c.qty_lots)
    need = held_for(unit, c.side, lots, taker_ppm_of(s, c.account))
    if need > s.balances[c.account, purse_of(c.side)]:
        return Reject.INSUFFICIENT_BALANCE if c.side == BUY else Reject.INSUFFICIENT_BOND
    return 0


@inlined
def crosses(book: Any, side: Any, limit: Any) -> Any:
    """Whether an order of this side and limit would meet the best price of the other side."""
    other = uint32(SELL) - uint32(side)
    return book.best[other] >= rank_of(other, limit)


@kernel
def next_rank(s: Any, book: Any, side: Any, rank: Any) -> Any:
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


@inlined
def room_for_fills(out: Any) -> Any:
    """How many effects an order may have that has not yet been said to be accepted."""
    return int64(EFFECTS_MAX) - int64(1) - int64(out.count - out.first)


@inlined
def fillable(s: Any, book: Any, c: Any, need: Any, room: Any) -> Any:
    """Whether an order fills so many lots at once, with `room` effects."""
    return survey(s, book, c, need, room, int64(EFFECTS_MAX))[0]


@kernel
def survey(s: Any, book: Any, c: Any, need: Any, room: Any, met_max: Any) -> Any:
    """Whether an order fills so many lots at once, with `room` effects and `met_max` orders looked
    at, and how many were. O(orders it meets).

    Orders of the same account fill nothing: under CANCEL_MAKER they are passed over (they will be
    cancelled), under the other modes they end the order before it is filled. What an iceberg
    conceals comes behind all others of its price, also behind those.
    """
    side = uint32(SELL - c.side)
    met = int64(0)
    effects = int64(0)
    rank = book.best[side]
    limit = rank_of(side, uint32(c.price_ticks) if book.rules == 0 else reach(s, c))
    while rank >= limit:
        leaf = leaf_for(s, book, c.instrument, side, rank)
        slot = s.levels[(leaf << uint32(6)) | (rank & uint32(63))].head
        concealed = int64(0)
        while slot != 0:
            order = s.orders[slot]
            met += int64(1)
            effects += int64(1)
            if order.hidden_lots != 0:
                # Each further clip is shown, then filled.
                effects += int64(2) * (int64(order.hidden_lots) // int64(order.display_lots) + 1)
            if effects > room or met > met_max:
                return False, met
            if is_expired(order, c.time_ns):
                pass
            elif order.account != c.account:
                need -= int64(order.qty_lots)
                concealed += int64(order.hidden_lots)
                if need <= 0:
                    return True, met
            elif c.self_trade != SelfTrade.CANCEL_MAKER:
                return False, met
            slot = order.next
        need -= concealed
        if need <= 0:
            return True, met
        rank = next_rank(s, book, side, rank)
    return False, met


@kernel
def _self_trade(s: Any, book: Any, out: Any, c: Any, taker_id: Any, slot: Any, left: Any) -> Any:
    """Apply the taker's mode where it meets its own order: (events, what the taker has left).

    A taker that must end comes back with its remainder cancelled and 0 left.
    """
    side = uint32(SELL - c.side)
    maker_qty = int64(s.orders[slot].qty_lots)
    if c.self_trade == SelfTrade.DECREMENT:
        both = min(left, maker_qty)
        e = emit(out, c, EventKind.DECREMENTED)
        e.order_id = taker_id
        e.counter_order_id = uint64(order_id(s, slot))
        e.price_ticks = int64(s.orders[slot].price_ticks)
        e.qty_lots = int32(both)
        e.counter_account = c.account
        release(s, book, side, slot, both)
        if both < maker_qty:
            s.orders[slot].qty_lots = uint32(maker_qty - both)
        elif s.orders[slot].hidden_lots != 0:
            refresh(s, out, c, slot)
        else:
            dequeue(s, book, side, slot)
        return left - both
    if c.self_trade in (SelfTrade.CANCEL_MAKER, SelfTrade.CANCEL_BOTH):
        remove(s, out, c, slot, CancelReason.SELF_TRADE)
    if c.self_trade != SelfTrade.CANCEL_MAKER:
        remainder(out, c, taker_id, left, CancelReason.SELF_TRADE)
        left = int64(0)
    return left


@kernel
def refresh(s: Any, out: Any, c: Any, slot: Any) -> None:
    """Show an iceberg's next clip; it stands behind all others of its price again."""
    order = s.orders[slot]
    clip = min(order.hidden_lots, order.display_lots)
    order.qty_lots = clip
    order.hidden_lots -= clip
    order.sequence = c.sequence
    move_to_back(s, slot)
    event_of(s, out, c, slot, EventKind.REFRESHED, int64(clip), 0)


@inlined
def fill(
    s: Any, book: Any, out: Any, c: Any, taker_id: Any, taker_ppm: Any, slot: Any, qty: Any
) -> None:
    """One trade at the maker's price; the maker's reserve moves, the taker's is the caller's."""
    order = s.orders[slot]
    e = next_event(out, c, EventKind.FILL)
    e.order_id = taker_id
    e.counter_order_id = (uint64(order.generation) << uint64(24)) | uint64(slot)
    e.price_ticks = int64(order.price_ticks)
    e.qty_lots = int32(qty)
    e.maker_fee_ppm = order.fee_ppm
    e.taker_fee_ppm = taker_ppm
    e.account = c.account
    e.counter_account = order.account
    e.instrument = c.instrument
    e.side = c.side
    # Of a buyer neither is ever set.
    e.reason = uint16(resale_of(order) | c.resale) << uint16(1)
    book.last_ticks = order.price_ticks
    side = SELL - c.side
    if book.rules & uint8(RULE_WINDOW) != 0:
        buyer = order.account if side == BUY else c.account
        note_bought(s, buyer, c.instrument, int64(qty))
    if order.fee_ppm != 0:
        fill_charged(s, book, side, order, int64(order.price_ticks), qty)
        return
    amount = unit_of(book, side, int64(order.price_ticks), resale_of(order)) * qty
    fill_held(s, order.account, side, amount, order.capacity, qty)


@kernel
def trade(s: Any, book: Any, out: Any, c: Any, taker_id: Any, taker_ppm: Any, limit: Any) -> Any:
    """Match against the other side: (lots left, lots filled, cost with fees in µUSDC)."""
    side = uint32(SELL - c.side)
    left = int64(c.qty_lots)
    filled = int64(0)
    cost = int64(0)
    while left > 0 and crosses(book, c.side, limit):
        rank = book.best[side]
        price = rank_of(side, rank)
        level = (book.best_leaf[side] << uint32(6)) | (rank & uint32(63))
        slot = s.levels[level].head
        while slot != 0 and left > 0:
            if is_spent(out):
                remainder(out, c, taker_id, left, CancelReason.EFFECTS_LIMIT)
                return int64(0), filled, cost
            order = s.orders[slot]
            prefetch(s.orders[order.next])
            # These may drop the level, so look up the best price afresh.
            if is_expired(order, c.time_ns):
                remove(s, out, c, slot, CancelReason.EXPIRED)
                break
            if order.account == c.account:
                left = _self_trade(s, book, out, c, taker_id, slot, left)
                break
            maker_qty = int64(order.qty_lots)
            qty = min(left, maker_qty)
            fill(s, book, out, c, taker_id, taker_ppm, slot, qty)
            left -= qty
            filled += qty
            cost += int64(price) * qty
            if taker_ppm != 0:
                cost += fee_of(int64(price) * qty, taker_ppm)
            if qty < maker_qty:
                order.qty_lots = uint32(maker_qty - qty)
                break
            if order.hidden_lots != 0:
                refresh(s, out, c, slot)
                slot = s.levels[level].head
                continue
            behind = order.next
            s.levels[level].head = behind
            s.resting[order.account] -= uint32(1)
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
def rest(
    s: Any, book: Any, c: Any, slot: Any, qty: Any, capacity: Any, unit: Any, taker_ppm: Any
) -> None:
    """Put an order, or what is left of it, on the book. Fees that were raised while it waited do
    not make it hold more than it did."""
    order = s.orders[slot]
    order.qty_lots = uint32(qty)
    order.price_ticks = uint32(c.price_ticks)
    order.account = c.account
    order.capacity = capacity
    order.client_id = c.client_id
    order.sequence = c.sequence
    order.hidden_lots = uint32(0)
    order.display_lots = uint32(0)
    order.expiry_s = uint32(0)
    order.fee_ppm = min(s.fees[s.identities[c.account].fee_tier, MAKER], taker_ppm)
    order.session = c.session
    order.traits = c.resale << uint8(TRAIT_RESALE_BIT)
    side = uint32(c.side)
    rank = rank_of(side, order.price_ticks)
    enqueue(s, book, side, slot, rank, leaf_for(s, book, c.instrument, side, rank))
    amount = held_for(unit, side, qty, order.fee_ppm)
    hold(s, c.account, side, amount, capacity, qty)


@kernel
def new_order(s: Any, c: Any, out: Any) -> Any:
    """A plain one; `terms` has those that say more."""
    reason = _check_plain_order(s, c)
    if reason != 0:
        return reject(out, c, reason)
    book = s.books[c.instrument]
    capacity = capacity_of(s, c)
    crossing = crosses(book, c.side, uint32(c.price_ticks))
    unit = unit_of(book, c.side, c.price_ticks, uint8(0))
    reason = check_placing(s, book, c, out, capacity, unit, crossing)
    if reason != 0:
        return reject(out, c, reason)
    place(s, book, c, out, capacity, unit, crossing)
    return None


@inlined
def check_placing(
    s: Any, book: Any, c: Any, out: Any, capacity: Any, unit: Any, crossing: Any
) -> Any:
    """The first reason to refuse an order that is right in itself: money, or the book; or 0."""
    reason = check_reserve(s, c, capacity, unit)
    if reason == 0 and c.flags == Flag.POST_ONLY and crossing:
        reason = Reject.POST_ONLY_WOULD_TRADE
    fok = c.time_in_force == TimeInForce.FOK
    if reason == 0 and fok and not fillable(s, book, c, int64(c.qty_lots), room_for_fills(out)):
        reason = Reject.FOK_NOT_FILLABLE
    return reason


@inlined
def accept(s: Any, c: Any, out: Any, slot: Any) -> Any:
    """The order's ACCEPTED event: its id."""
    known_as = uint64(order_id(s, slot))
    e = next_event(out, c, EventKind.ACCEPTED)
    e.order_id = known_as
    e.client_id = c.client_id
    e.price_ticks = c.price_ticks
    e.qty_lots = int32(c.qty_lots)
    e.expiry_s = c.expiry_s
    e.account = c.account
    e.counter_account = uint32(0)
    e.instrument = c.instrument
    e.side = c.side
    e.session = uint16(c.session)
    if s.books[c.instrument].rules & uint8(RULE_WINDOW) != 0 and c.side == BUY:
        note_bought(s, c.account, c.instrument, int64(0))
    return known_as


@inlined
def place(s: Any, book: Any, c: Any, out: Any, capacity: Any, unit: Any, crossing: Any) -> Any:
    """Accept an order that passed every check: trade, then rest or end. The slot if it rests."""
    # Taken before matching, so that makers leaving the book cannot change the taker's id.
    slot = take_slot(s)
    taker_ppm = taker_ppm_of(s, c.account)
    taker_id = accept(s, c, out, slot)
    return work(s, book, c, out, slot, taker_id, capacity, unit, crossing, taker_ppm)


@inlined
def work(
    s: Any,
    book: Any,
    c: Any,
    out: Any,
    slot: Any,
    taker_id: Any,
    capacity: Any,
    unit: Any,
    crossing: Any,
    taker_ppm: Any,
) -> Any:
    """Trade with what is there, then rest what is left or end it. The slot if it rests, or 0."""
    left = int64(c.qty_lots)
    limit = uint32(c.price_ticks)
    if book.rules & uint8(RULES_OF_TRADING) != 0:
        out.stirred = c.instrument + uint32(1)
        limit = reach(s, c)
        crossing = crosses(book, c.side, limit)
    if crossing:
        left, filled, cost = trade(s, book, out, c, taker_id, taker_ppm, limit)
        if filled > 0:
            # A buyer pays the cost, a seller puts up a bond for every lot.
            paid = cost + (unit * filled - cost) * int64(c.side)
            fill_free(s, c.account, c.side, paid, capacity, filled)
    if book.rules & uint8(RULE_BANDS) != 0 and left > 0:
        left = _call_beyond_band(s, book, c, out, taker_id, left, limit)
    if left > 0 and c.time_in_force == TimeInForce.GTC:
        rest(s, book, c, slot, left, capacity, unit, taker_ppm)
        return slot
    free_slot(s, slot)
    if left > 0:
        remainder(out, c, taker_id, left, CancelReason.IOC_REMAINDER)
    return uint32(0)


@kernel
def work_apart(
    s: Any, book: Any, c: Any, out: Any, slot: Any, capacity: Any, crossing: Any, taker_ppm: Any
) -> Any:
    """`work`, compiled once for all who are not on the hot path."""
    taker_id = uint64(order_id(s, slot))
    unit = unit_for(book, c)
    return work(s, book, c, out, slot, taker_id, capacity, unit, crossing, taker_ppm)


@kernel
def _call_beyond_band(
    s: Any, book: Any, c: Any, out: Any, taker_id: Any, left: Any, reached: Any
) -> Any:
    """If only the dynamic band keeps what is left of an order from trading, the market goes into a
    call: (lots left). They join it, or are cancelled if they may not rest."""
    open_still = book.status == MarketStatus.OPEN
    if not open_still or not crosses(book, c.side, uint32(c.price_ticks)):
        return left
    market = s.markets[c.instrument]
    # To the next full second, so that no call is shorter than it was said to be.
    now_s = (c.time_ns + int64(SECOND_NS - 1)) // int64(SECOND_NS)
    begin_call(s, c.instrument, uint32(now_s + int64(market.call_seconds)))
    e = emit(out, c, EventKind.VOLATILITY_CALL)
    e.order_id = taker_id
    e.price_ticks = int64(reached)
    e.qty_lots = int32(left)
    e.expiry_s = market.uncross_s
    if c.time_in_force == TimeInForce.GTC:
        return left
    remainder(out, c, taker_id, left, CancelReason.VOLATILITY)
    return int64(0)


# --- cancel -------------------------------------------------------------------------------------


@inlined
def remove(s: Any, out: Any, c: Any, slot: Any, reason: Any) -> Any:
    """Take a resting order off its book, with its event and its reserve given back."""
    leaf = s.leaves[s.orders[slot].level >> uint32(6)]
    trie = leaf.side
    book = s.books[leaf.instrument]
    left = left_of(s.orders[slot])
    event_of(s, out, c, slot, EventKind.CANCELLED, left, reason)
    release(s, book, side_of(trie), slot, left)
    if trie <= SELL:
        dequeue(s, book, trie, slot)
    else:
        leave(s, leaf.instrument, trie, slot)
        free_slot(s, slot)


@kernel
def leave(s: Any, instrument: Any, trie: Any, slot: Any) -> None:
    """Take an order that waits for its condition off its trie; it keeps its slot."""
    market = s.markets[instrument]
    unlink(s, market, trie, slot)
    if market.open_orders == 0:
        s.books[instrument].rules &= ~uint8(RULE_WAITING)


@inlined
def find_order(s: Any, c: Any) -> Any:
    """The slot of the account's open order that the command names; 0 if there is none."""
    slot = uint32(c.order_id & uint64(0xFFFFFF))
    if slot > s.order_high:
        return uint32(0)
    order = s.orders[slot]
    known = order.qty_lots != 0 and order.account == c.account
    return slot if known and uint64(order.generation) == c.order_id >> uint64(24) else uint32(0)


@kernel
def cancel(s: Any, c: Any, out: Any) -> Any:
    """O(1); O(trie height) when it empties a price."""
    slot = find_order(s, c)
    if slot == 0:
        return reject(out, c, Reject.UNKNOWN_ORDER)
    return remove(s, out, c, slot, CancelReason.BY_REQUEST)


@kernel
def cancel_all(s: Any, c: Any, out: Any) -> Any:
    """Every open order of the account: in one market or all, of one side or both, of one session
    or (0) all.

    O(slots ever used) at most, in slot order; O(1) for an account
    that has none.

    Stops at EFFECTS_MAX orders; the terminal event then carries EFFECTS_LIMIT and the client asks
    again.
    """
    every = c.instrument == ALL_INSTRUMENTS
    if not every and (c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0):
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    if c.flags > OneSide.SELLS:
        return reject(out, c, Reject.UNKNOWN_COMMAND)
    return clear(s, c, out, every, CancelReason.CANCEL_ALL, EventKind.CANCEL_ALL_DONE)


@kernel
def clear(s: Any, c: Any, out: Any, every: Any, why: Any, done: Any) -> None:
    """Cancel the account's orders, for `why`; the terminal event, of kind `done`, counts them."""
    first = out.count
    reason = uint16(0)
    every_session = c.session == 0
    resting = s.resting[c.account] if c.account < ACCOUNTS_MAX else uint32(0)
    for slot in range(uint32(1), s.order_high + uint32(1)):
        if resting == 0:
            break  # all have been seen
        order = s.orders[slot]
        if order.qty_lots == 0 or order.account != c.account:
            continue
        resting -= uint32(1)
        leaf = s.leaves[order.level >> uint32(6)]
        if not every and leaf.instrument != c.instrument:
            continue
        if c.flags != OneSide.BOTH and side_of(leaf.side) != c.flags - uint8(OneSide.BUYS):
            continue
        if not every_session and order.session != c.session:
            continue
        if is_spent(out):
            reason = uint16(CancelReason.EFFECTS_LIMIT)
            break
        remove(s, out, c, uint32(slot), why)
    count = int32(out.count - first)
    e = emit(out, c, done)
    e.qty_lots = count
    e.reason = reason
