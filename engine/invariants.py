"""Everything that must hold of a shard's state between two commands, checked by one pass over it.

Compiled like the kernel, so that a test can ask after each step, but apart from it: no command
needs this, and no node loads it. It only reads, and it trusts nothing it reads: a link is followed
after it is known to lead to a slot in use. Invariant: what `Invariant` names is all that `book`,
`reserve` and `trade` promise, and an AssertionError says which promise is broken and where. Called
by `replay.verify`, which auditors run, and by tests.

Cost: O(state in use): slots ever used, accounts up to the highest, markets up to the highest, and
either accounts * markets or the table of capacities, whichever is less.
"""

from enum import IntEnum, auto
from typing import Any, Final, NamedTuple

import numpy as np

from engine.book import (
    BUY,
    CAPACITY_SLOTS,
    LEASE,
    NO_ORDERS,
    RULE_BANDS,
    RULE_CALL,
    RULE_GATE,
    RULE_WAITING,
    SELL,
    SELL_STOPS,
    TRAIT_ALL_OR_NONE,
    TRAIT_QUOTE,
    UNKNOWN,
    WHOLE_BUYS,
    WHOLE_SELLS,
    StateArray,
    order_id,
    rank_of,
    side_of,
)
from engine.kernel import allocating, int64, kernel, uint8, uint32, uint64
from engine.quotes import find_sheet
from engine.records import BALANCES, PPM, MarketStatus
from engine.reserve import FREE, HELD, find_capacity, resale_of
from engine.trade import left_of

COLUMNS: Final = len(BALANCES.names or ())
BOND_HELD: Final = (BALANCES.names or ()).index("bond_held_usdc6")
TRIE_HEIGHT_MAX: Final = 3  # 24 bits of rank, 6 of them in a leaf
# What `_Sums.seen` counts while the books are walked.
ORDERS: Final = 0
LEAVES: Final = 1
NODES: Final = 2
ON_THIS_BOOK: Final = 3
WAITING_HERE: Final = 4


class Invariant(IntEnum):
    """Each name says what holds; 0 is what a check answers when it does."""

    ALL_HOLD = 0
    A_LINK_LEADS_TO_WHAT_IS_IN_USE = auto()
    A_PLACE_KNOWS_ITS_KEY = auto()
    A_PLACE_KNOWS_ITS_PARENT = auto()
    NO_EMPTY_PLACE_STAYS = auto()
    THE_BITMAP_SAYS_WHICH_LEVELS_HAVE_ORDERS = auto()
    THE_BITMAP_SAYS_WHICH_CHILDREN_EXIST = auto()
    A_LEAF_KNOWS_ITS_MARKET_AND_SIDE = auto()
    LINKED_BOTH_WAYS = auto()
    THE_TAIL_IS_THE_LAST = auto()
    AN_ORDER_KNOWS_ITS_LEVEL = auto()
    AN_ORDER_STANDS_AT_ITS_PRICE = auto()
    NOTHING_EMPTY_RESTS = auto()
    FIRST_COME_FIRST_SERVED = auto()
    AN_ICEBERG_SHOWS_AT_MOST_A_CLIP = auto()
    AN_ORDER_HAS_AN_ACCOUNT = auto()
    AN_ORDER_KNOWS_ITS_CAPACITY = auto()
    A_QUOTE_IS_ON_ITS_SHEET = auto()
    THE_BEST_PRICE_IS_THE_EXTREME = auto()
    THE_BEST_LEAF_HOLDS_THE_BEST = auto()
    NEVER_CROSSED = auto()  # but in a call
    A_BOOK_COUNTS_ITS_ORDERS = auto()
    A_MARKET_COUNTS_WHO_WAITS = auto()
    A_BOOK_KNOWS_WHETHER_SOME_WAIT = auto()
    A_BOOK_KNOWS_WHETHER_IT_HAS_A_GATE = auto()
    A_BOOK_KNOWS_WHETHER_IT_HAS_BANDS = auto()
    A_BOOK_KNOWS_WHETHER_IT_WAS_CALLED = auto()
    ONLY_A_CALL_IS_UNCROSSED = auto()
    WHOLE_ORDERS_STAND_APART = auto()
    WHO_WAITS_CONCEALS_NOTHING = auto()
    AN_UNLISTED_MARKET_HAS_NO_ORDERS = auto()
    ALL_OPEN_ORDERS_ARE_ON_BOOKS = auto()
    A_SLOT_IS_OPEN_OR_FREE = auto()
    A_LEAF_IS_USED_OR_FREE = auto()
    A_NODE_IS_USED_OR_FREE = auto()
    AN_ACCOUNT_COUNTS_ITS_ORDERS = auto()
    NO_MONEY_IS_BELOW_ZERO = auto()
    ONLY_KNOWN_ACCOUNTS_HAVE_MONEY = auto()
    HELD_IS_WHAT_OPEN_BUYS_NEED = auto()
    BOND_HELD_IS_WHAT_OPEN_ASKS_NEED = auto()
    MONEY_IS_CONSERVED = auto()
    CAPACITY_HELD_IS_WHAT_OPEN_ASKS_OFFER = auto()
    NEVER_OVERSOLD = auto()
    EVERY_CAPACITY_IS_FOUND = auto()


class _Sums(NamedTuple):
    """What the orders on the books add up to."""

    held: Any  # shape (accounts,), int64, µUSDC that open buys need
    bond_held: Any  # ... and open asks
    resting: Any  # open orders
    offered: Any  # shape (CAPACITY_SLOTS,), int64, lots; set only where a capacity is
    seen: Any  # shape (5,), int64: ORDERS to WAITING_HERE


def check_invariants(state: StateArray) -> None:
    """Verify every invariant of a state: shape (1,), dtype STATE.

    Raises AssertionError naming the first that does not hold, and the market, the account or the
    slot where it does not.
    """
    broken, where = _first_broken(state)
    if broken:
        words = Invariant(broken).name.lower().replace("_", " ")
        raise AssertionError(f"{words}: not so at {where}")


@allocating
def _first_broken(state: Any) -> Any:
    """(Invariant, market or account or slot)"""
    s = state[0]
    accounts = int64(s.account_high) + 1
    sums = _Sums(
        np.zeros(accounts, np.int64),
        np.zeros(accounts, np.int64),
        np.zeros(accounts, np.int64),
        np.empty(CAPACITY_SLOTS, np.int64),
        np.zeros(5, np.int64),
    )
    _for_each_capacity(s, sums, False)
    for instrument in range(int64(s.instrument_high)):
        broken = _check_book(s, uint32(instrument), sums)
        if broken != 0:
            return broken, int64(instrument)
    broken = _check_slots(s, sums)
    if broken != 0:
        return broken, int64(0)
    for account in range(accounts):
        broken = _check_account(s, account, sums)
        if broken != 0:
            return broken, int64(account)
    total = int64(0)
    for account in range(accounts):
        for column in range(COLUMNS):
            total += s.balances[account, column]
    if total != s.total_usdc6:
        return Invariant.MONEY_IS_CONSERVED, int64(0)
    return _for_each_capacity(s, sums, True)


# --- books --------------------------------------------------------------------------------------


@kernel
def _check_book(s: Any, instrument: Any, sums: Any) -> Any:
    """A market: its book, and the orders that wait beside it."""
    book = s.books[instrument]
    market = s.markets[instrument]
    sums.seen[ON_THIS_BOOK] = 0
    sums.seen[WAITING_HERE] = 0
    for side in (BUY, SELL):
        broken = _check_trie(s, book, instrument, uint32(side), sums)
        if broken != 0:
            return broken
    for trie in range(uint32(SELL_STOPS), uint32(WHOLE_SELLS + 1)):
        broken = _check_trie(s, market, instrument, uint32(trie), sums)
        if broken != 0:
            return broken
    if book.best[BUY] != NO_ORDERS and book.best[SELL] != NO_ORDERS:
        best_bid = rank_of(BUY, book.best[BUY])
        called = book.rules & uint8(RULE_CALL) != 0
        if best_bid >= rank_of(SELL, book.best[SELL]) and not called:
            return Invariant.NEVER_CROSSED
    on_book, waiting = sums.seen[ON_THIS_BOOK], sums.seen[WAITING_HERE]
    if on_book != int64(book.open_orders):
        return Invariant.A_BOOK_COUNTS_ITS_ORDERS
    if waiting != int64(market.open_orders):
        return Invariant.A_MARKET_COUNTS_WHO_WAITS
    if (waiting != 0) != (book.rules & uint8(RULE_WAITING) != 0):
        return Invariant.A_BOOK_KNOWS_WHETHER_SOME_WAIT
    if (market.closes_s != 0) != (book.rules & uint8(RULE_GATE) != 0):
        return Invariant.A_BOOK_KNOWS_WHETHER_IT_HAS_A_GATE
    broken = _check_auction(book, market)
    if broken != 0:
        return broken
    if book.status == 0 and on_book + waiting != 0:
        return Invariant.AN_UNLISTED_MARKET_HAS_NO_ORDERS
    sums.seen[ORDERS] += on_book + waiting
    return Invariant.ALL_HOLD


@kernel
def _check_auction(book: Any, market: Any) -> Any:
    """A market's rules say whether it has bands and whether it is in a call."""
    if (market.static_ppm | market.dynamic_ppm != 0) != (book.rules & uint8(RULE_BANDS) != 0):
        return Invariant.A_BOOK_KNOWS_WHETHER_IT_HAS_BANDS
    called = book.rules & uint8(RULE_CALL) != 0
    if (book.status == MarketStatus.CALL and not called) or (
        book.status == MarketStatus.OPEN and called
    ):
        return Invariant.A_BOOK_KNOWS_WHETHER_IT_WAS_CALLED
    if not called and (market.auction_ticks != 0 or market.auction_lots != 0):
        return Invariant.ONLY_A_CALL_IS_UNCROSSED
    return Invariant.ALL_HOLD


@allocating
def _check_trie(s: Any, book: Any, instrument: Any, trie: Any, sums: Any) -> Any:
    """Walk one trie, depth first; `book` is the BOOK or the MARKET that has its root."""
    best = int64(NO_ORDERS)
    if book.root[trie] == 0:
        return _check_best(s, book, trie, best)
    top = int64(book.height[trie])
    if top > TRIE_HEIGHT_MAX:
        return Invariant.A_LINK_LEADS_TO_WHAT_IS_IN_USE
    # By height: the place on the way down, and which child of it comes next.
    places = np.zeros(TRIE_HEIGHT_MAX + 1, np.uint32)
    slots = np.zeros(TRIE_HEIGHT_MAX + 1, np.int64)
    height = top
    places[top] = book.root[trie]
    broken = _check_place(s, places[top], top, int64(book.prefix[trie]), uint32(0), sums)
    if broken != 0:
        return broken
    while height <= top:
        place = places[height]
        if height == 0:
            broken = _check_leaf(s, place, instrument, trie, sums)
            if broken != 0:
                return broken
            best = max(best, _highest_of(s.leaves[place]))
        if height == 0 or slots[height] == 64:
            height += 1
            continue
        slot = slots[height]
        slots[height] += 1
        node = s.nodes[place]
        child = node.children[slot]
        if (child != 0) != _has_bit(node.occupied, slot):
            return Invariant.THE_BITMAP_SAYS_WHICH_CHILDREN_EXIST
        if child != 0:
            height -= 1
            places[height] = child
            slots[height] = 0
            key = int64(node.key) << 6 | slot
            broken = _check_place(s, child, height, key, place, sums)
            if broken != 0:
                return broken
    return _check_best(s, book, trie, best)


@kernel
def _check_best(s: Any, book: Any, trie: Any, best: Any) -> Any:
    if int64(book.best[trie]) != best:
        return Invariant.THE_BEST_PRICE_IS_THE_EXTREME
    leaf = book.best_leaf[trie]
    if best != NO_ORDERS and (leaf > s.leaf_high or int64(s.leaves[leaf].key) != best >> 6):
        return Invariant.THE_BEST_LEAF_HOLDS_THE_BEST
    return Invariant.ALL_HOLD


@kernel
def _has_bit(bits: Any, slot: Any) -> Any:
    return (bits >> uint64(slot)) & uint64(1) != uint64(0)


@kernel
def _highest_of(leaf: Any) -> Any:
    """The best rank of a leaf, found without what the kernel uses to find it."""
    highest = int64(0)
    for slot in range(64):
        if _has_bit(leaf.occupied, slot):
            highest = int64(leaf.key) << 6 | slot
    return highest


@kernel
def _check_place(s: Any, place: Any, height: Any, key: Any, parent: Any, sums: Any) -> Any:
    """What leaves and inner nodes have alike; every place is counted once it is reached."""
    if place > (s.leaf_high if height == 0 else s.node_high):
        return Invariant.A_LINK_LEADS_TO_WHAT_IS_IN_USE
    if height == 0:
        sums.seen[LEAVES] += 1
        its_key, its_parent = s.leaves[place].key, s.leaves[place].parent
        occupied = s.leaves[place].occupied
    else:
        sums.seen[NODES] += 1
        its_key, its_parent = s.nodes[place].key, s.nodes[place].parent
        occupied = s.nodes[place].occupied
    if int64(its_key) != key:
        return Invariant.A_PLACE_KNOWS_ITS_KEY
    if its_parent != parent:
        return Invariant.A_PLACE_KNOWS_ITS_PARENT
    if occupied == uint64(0):
        return Invariant.NO_EMPTY_PLACE_STAYS
    return Invariant.ALL_HOLD


@kernel
def _check_leaf(s: Any, place: Any, instrument: Any, trie: Any, sums: Any) -> Any:
    leaf = s.leaves[place]
    if leaf.instrument != instrument or leaf.side != trie:
        return Invariant.A_LEAF_KNOWS_ITS_MARKET_AND_SIDE
    for slot in range(64):
        level = place << uint32(6) | uint32(slot)
        if (s.levels[level].head != 0) != _has_bit(leaf.occupied, slot):
            return Invariant.THE_BITMAP_SAYS_WHICH_LEVELS_HAVE_ORDERS
        price = rank_of(trie, leaf.key << uint32(6) | uint32(slot))
        broken = _check_queue(s, level, instrument, trie, price, sums)
        if broken != 0:
            return broken
    return Invariant.ALL_HOLD


@kernel
def _check_queue(s: Any, level: Any, instrument: Any, trie: Any, price: Any, sums: Any) -> Any:
    """The orders of one level, first in time first.

    A ring cannot trap this: whoever is met again has another one before it.
    """
    before = uint32(0)
    sequence = uint64(0)
    slot = s.levels[level].head
    while slot != 0:
        if slot > s.order_high:
            return Invariant.A_LINK_LEADS_TO_WHAT_IS_IN_USE
        order = s.orders[slot]
        if order.prev != before:
            return Invariant.LINKED_BOTH_WAYS
        if order.level != level:
            return Invariant.AN_ORDER_KNOWS_ITS_LEVEL
        is_stop = uint32(SELL) < trie < uint32(WHOLE_BUYS)  # stands at its stop, not at its limit
        if order.price_ticks != price and not is_stop:
            return Invariant.AN_ORDER_STANDS_AT_ITS_PRICE
        if order.sequence < sequence:
            return Invariant.FIRST_COME_FIRST_SERVED
        broken = _check_order(s, order, instrument, trie, sums)
        if broken != 0:
            return broken
        if order.traits & uint8(TRAIT_QUOTE) != 0 and not _is_on_its_sheet(s, slot, instrument):
            return Invariant.A_QUOTE_IS_ON_ITS_SHEET
        sequence = order.sequence
        before = slot
        slot = order.next
    return Invariant.ALL_HOLD if s.levels[level].tail == before else Invariant.THE_TAIL_IS_THE_LAST


@kernel
def _is_on_its_sheet(s: Any, slot: Any, instrument: Any) -> Any:
    order = s.orders[slot]
    row = s.sheets[find_sheet(s, order.account, instrument)]
    found = False
    for place in range(row.count):
        found |= row.order_ids[place] == uint64(order_id(s, slot))
    return found and row.account == order.account and row.instrument == instrument


@kernel
def _check_order(s: Any, order: Any, instrument: Any, trie: Any, sums: Any) -> Any:
    """One open order by itself; what it holds is added to the sums."""
    side = side_of(trie)
    waits = trie > uint32(SELL)
    if order.qty_lots == 0:
        return Invariant.NOTHING_EMPTY_RESTS
    if waits and order.hidden_lots != 0:
        return Invariant.WHO_WAITS_CONCEALS_NOTHING
    if order.hidden_lots != 0 and order.qty_lots > order.display_lots:
        return Invariant.AN_ICEBERG_SHOWS_AT_MOST_A_CLIP
    if (order.traits & uint8(TRAIT_ALL_OR_NONE) != 0) != (trie >= uint32(WHOLE_BUYS)):
        return Invariant.WHOLE_ORDERS_STAND_APART
    if order.account == 0 or order.account > s.account_high:
        return Invariant.AN_ORDER_HAS_AN_ACCOUNT
    resale = resale_of(order)
    owner = order.account | uint32(LEASE) * uint32(resale)
    if order.capacity != find_capacity(s, owner, instrument, uint8(side)):
        return Invariant.AN_ORDER_KNOWS_ITS_CAPACITY
    lots = left_of(order)
    sums.seen[WAITING_HERE if waits else ON_THIS_BOOK] += 1
    sums.resting[order.account] += 1
    sums.offered[order.capacity] += lots
    if side == BUY:
        notional = int64(order.price_ticks) * lots
        # Of the rest apart, as the product of both may leave 64 bits.
        fee = notional // PPM * int64(order.fee_ppm)
        fee += notional % PPM * int64(order.fee_ppm) // PPM
        sums.held[order.account] += notional + fee
    else:
        bond = s.books[instrument].bond_usdc6_per_lot * lots
        sums.bond_held[order.account] += bond * (int64(1) - int64(resale))
    return Invariant.ALL_HOLD


# --- pools --------------------------------------------------------------------------------------


@kernel
def _check_slots(s: Any, sums: Any) -> Any:
    """Whatever was ever taken from a pool is in use or on its list of free ones, once."""
    if sums.seen[ORDERS] != int64(s.open_orders):
        return Invariant.ALL_OPEN_ORDERS_ARE_ON_BOOKS
    open_slots = int64(0)
    for slot in range(1, int64(s.order_high) + 1):
        open_slots += int64(s.orders[slot].qty_lots != 0)
    free = int64(0)
    slot = s.order_free
    while slot != 0:
        free += 1
        if slot > s.order_high or s.orders[slot].qty_lots != 0 or free > int64(s.order_high):
            return Invariant.A_SLOT_IS_OPEN_OR_FREE
        slot = s.orders[slot].next
    free += int64(s.orders_retired)
    if open_slots != sums.seen[ORDERS] or open_slots + free != int64(s.order_high):
        return Invariant.A_SLOT_IS_OPEN_OR_FREE
    free = int64(0)
    leaf = s.leaf_free
    while leaf != 0:
        free += 1
        if leaf > s.leaf_high or s.leaves[leaf].occupied != 0 or free > int64(s.leaf_high):
            return Invariant.A_LEAF_IS_USED_OR_FREE
        leaf = s.leaves[leaf].free_next
    if sums.seen[LEAVES] + free != int64(s.leaf_high):
        return Invariant.A_LEAF_IS_USED_OR_FREE
    free = int64(0)
    node = s.node_free
    while node != 0:
        free += 1
        if node > s.node_high or s.nodes[node].occupied != 0 or free > int64(s.node_high):
            return Invariant.A_NODE_IS_USED_OR_FREE
        node = s.nodes[node].parent
    nodes = sums.seen[NODES]
    if nodes != int64(s.nodes_used) or nodes + free != int64(s.node_high):
        return Invariant.A_NODE_IS_USED_OR_FREE
    return Invariant.ALL_HOLD


# --- money and capacity -------------------------------------------------------------------------


@kernel
def _check_account(s: Any, account: Any, sums: Any) -> Any:
    money = int64(0)
    for column in range(COLUMNS):
        if s.balances[account, column] < 0:
            return Invariant.NO_MONEY_IS_BELOW_ZERO
        money |= s.balances[account, column]
    if money != 0 and s.identities[account].opened == UNKNOWN:
        return Invariant.ONLY_KNOWN_ACCOUNTS_HAVE_MONEY
    if int64(s.resting[account]) != sums.resting[account]:
        return Invariant.AN_ACCOUNT_COUNTS_ITS_ORDERS
    if s.balances[account, FREE + HELD] != sums.held[account]:
        return Invariant.HELD_IS_WHAT_OPEN_BUYS_NEED
    if s.balances[account, BOND_HELD] != sums.bond_held[account]:
        return Invariant.BOND_HELD_IS_WHAT_OPEN_ASKS_NEED
    return Invariant.ALL_HOLD


@kernel
def _for_each_capacity(s: Any, sums: Any, check: Any) -> Any:
    """Set what is offered of each capacity to none, or check it: (Invariant, slot).

    Few accounts and markets are looked up one by one, as the table is a million slots.
    """
    accounts = int64(s.account_high) + 1
    markets = int64(s.instrument_high)
    names = accounts * markets * 2  # what each has declared in each, and what it has bought
    by_name = names < CAPACITY_SLOTS
    found = int64(0)
    for i in range(names if by_name else CAPACITY_SLOTS):
        slot = uint32(i)
        if by_name:
            market, owner = uint32(i // 2 // accounts), uint32(i // 2 % accounts)
            if s.books[market].status == 0:
                continue
            owner |= uint32(LEASE) * uint32(i % 2)
            slot = find_capacity(s, owner, market, uint8(SELL))
        row = s.capacities[slot]
        if slot == 0 or row.key == 0:
            continue
        found += 1
        if not check:
            sums.offered[slot] = 0
        elif row.held_lots != sums.offered[slot]:
            return Invariant.CAPACITY_HELD_IS_WHAT_OPEN_ASKS_OFFER, int64(slot)
        elif row.sold_lots < 0 or row.held_lots + row.sold_lots > row.declared_lots:
            return Invariant.NEVER_OVERSOLD, int64(slot)
        elif slot != _home_of(s, row.key):
            return Invariant.EVERY_CAPACITY_IS_FOUND, int64(slot)
    if not check:
        sums.offered[0] = 0  # of the slot that every buy uses
    elif s.capacities[0].held_lots != sums.offered[0]:
        return Invariant.CAPACITY_HELD_IS_WHAT_OPEN_ASKS_OFFER, int64(0)
    elif found != int64(s.capacities_used):
        return Invariant.EVERY_CAPACITY_IS_FOUND, int64(0)
    return Invariant.ALL_HOLD, int64(0)


@kernel
def _home_of(s: Any, key: Any) -> Any:
    """Where the kernel would look for the capacity of this key."""
    account, instrument = uint32(key >> uint64(32)), uint32(key & uint64(0xFFFFFFFF))
    return find_capacity(s, account, instrument, uint8(SELL))
