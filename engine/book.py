"""The whole state of one shard as one flat record, and the price levels inside it.

`STATE` is a single record of fixed arrays: accounts, capacities, books, price levels, orders. The
kernel gets one pointer, a snapshot is a memory image, and pages nobody touched cost nothing.

Each side of each book is a 64-way trie over rank: the price for bids and its complement for asks,
so that on both sides the highest rank is the best price and no code asks which side it is on. A
leaf covers 64 consecutive ranks: a bitmap of the occupied ones and, per rank, a queue of orders
linked through the shared order array. Inner nodes hold a bitmap and 64 children; the root covers
only the prefix that all its ranks share, so a book with a tight range is one leaf and an empty book
is nothing. An order remembers its level, so that cancelling walks nothing.

Invariant, verified by `invariants`: bitmaps say exactly which levels and children exist, queues are
linked both ways, best prices are the extremes, no book is crossed but in a call, and what accounts
and capacities hold reserved is the sum over open orders. Only `match` and `reserve` write here.

Cost: insert O(height <= 3), cancel O(1) or O(height) when a level empties, best price O(1).
"""

import contextlib
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.kernel import highest_bit, inlined, int64, kernel, uint32, uint64
from engine.records import (
    ACCOUNTS_MAX,
    BALANCES,
    CAPACITIES_MAX,
    COMMAND,
    FEE_TIERS,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    ORDER_GENERATION_BITS,
    QUOTES_MAX,
    Side,
)

_LAST_GENERATION: Final = (1 << ORDER_GENERATION_BITS) - 1
LEAVES_MAX: Final = 1 << 20
NODES_MAX: Final = 1 << 18
SHEETS_MAX: Final = 1 << 16  # (account, market) pairs that quote
CAPACITY_SLOTS: Final = CAPACITIES_MAX * 2  # open addressing stays at most half full
# What an account may do. One that is closed keeps its money and takes no orders or capacity.
UNKNOWN: Final = 0
TRADING: Final = 1
CLOSED: Final = 2
NO_ORDERS: Final = 0  # the best rank of an empty side; every real one is above it
LEASE: Final = 1 << 31  # with an account: what it bought and may sell again, by instrument
BUYS_KEY: Final = (1 << 64) - 1  # of capacity slot 0, which buys use and which never runs out
RANK_MASK: Final = (1 << 24) - 1

ORDER: Final = np.dtype(
    [
        ("next", "<u4"),
        ("prev", "<u4"),
        ("qty_lots", "<u4"),  # what still rests; 0: this slot is free
        ("price_ticks", "<u4"),
        ("account", "<u4"),
        ("level", "<u4"),  # leaf << 6 | rank within the leaf
        ("capacity", "<u4"),  # of an ask: where its capacity is held
        ("generation", "<u4"),  # counts the slot's reuses; the upper part of the order id
        ("client_id", "<u8"),
        ("sequence", "<u8"),  # of its command: first come, first served
        ("hidden_lots", "<u4"),  # of an iceberg: what is not shown
        ("display_lots", "<u4"),  # ... and how much is shown at a time
        ("expiry_s", "<u4"),  # 0: never
        ("fee_ppm", "<u2"),  # the rate its fills are charged: a maker's; a taker's while it waits
        ("session", "u1"),
        ("traits", "u1"),  # TRAIT_... below
    ]
)
# What an order is besides a price and a quantity; the lowest two bits are its SelfTrade mode, which
# one that waits needs when it is triggered.
TRAIT_SELF_TRADE: Final = 3
TRAIT_ALL_OR_NONE: Final = 4
TRAIT_ENDS: Final = 8  # once triggered, what is left does not rest
TRAIT_QUOTE: Final = 16  # placed by a mass quote, and replaced by the next one
TRAIT_RESALE_BIT: Final = 7  # its own bit, so that it can be shifted into a factor
LEVEL: Final = np.dtype([("head", "<u4"), ("tail", "<u4")])
LEAF: Final = np.dtype(
    [
        ("occupied", "<u8"),
        ("key", "<u4"),  # rank >> 6
        ("parent", "<u4"),  # 0: this leaf is the root
        ("instrument", "<u4"),
        ("side", "<u4"),
        ("free_next", "<u4"),
        ("unused", "<u4"),
    ]
)
NODE: Final = np.dtype(
    [
        ("occupied", "<u8"),
        ("key", "<u4"),  # rank >> 6 * (height + 1)
        ("parent", "<u4"),
        ("children", "<u4", (64,)),
    ]
)
BOOK: Final = np.dtype(
    [
        ("best", "<u4", (2,)),  # rank, by side; 0 when empty
        ("best_leaf", "<u4", (2,)),
        ("root", "<u4", (2,)),  # a leaf if height is 0, else a node; 0: empty
        ("prefix", "<u4", (2,)),  # rank >> 6 * (height + 1) of everything below the root
        ("height", "u1", (2,)),
        ("status", "u1"),
        ("rules", "u1"),  # RULE_...: what makes its orders take the longer way; 0: nothing
        ("lot_multiple", "<u4"),
        ("bond_usdc6_per_lot", "<i8"),
        ("product", "<u8"),
        ("last_ticks", "<u4"),
        ("open_orders", "<u4"),
    ]
)
RULE_GATE: Final = 1  # it closes at a time
RULE_WAITING: Final = 2  # orders wait for a condition
RULE_CALL: Final = 4  # in a call, halted in one or closed in one: it may be crossed
RULE_BANDS: Final = 8  # prices are held within bands
# Of these a trade takes notice.
RULES_OF_TRADING: Final = RULE_WAITING | RULE_CALL | RULE_BANDS
RULE_WINDOW: Final = 128  # hours of a window, which who bought them may sell again
# What few markets need, apart from BOOK, so that books stay small: no page of it is touched until
# one of its rules is. Its tries have the fields that a book's have, and lie where its `SIDES` say.
MARKET: Final = np.dtype(
    [
        ("best", "<u4", (6,)),
        ("best_leaf", "<u4", (6,)),
        ("root", "<u4", (6,)),
        ("prefix", "<u4", (6,)),
        ("height", "u1", (6,)),
        ("unused", "<u2"),
        ("open_orders", "<u4"),  # that wait
        ("closes_s", "<u4"),  # RULE_GATE: Unix seconds
        ("auction_ticks", "<u4"),  # while it is being uncrossed: at this price; else 0
        ("uncross_s", "<u4"),  # in a call: when it is to end, Unix seconds; 0: by hand
        ("reference_ticks", "<u4"),  # of the static band: as set, then of the last auction; 0: none
        ("static_ppm", "<u4"),
        ("dynamic_ppm", "<u4"),
        ("call_seconds", "<u4"),  # of a volatility call
        ("auction_lots", "<u8"),  # traded so far while it is being uncrossed
        ("spare", "u1", (48,)),
    ]
)
# Orders that wait stand in tries of their own. A sell stop triggers when trades fall to it: the
# highest first, as with bids; a buy stop the other way round. So the lowest bit of a trie's number
# says which way its ranks run, and for stops it is the opposite of the order's own side.
SELL_STOPS: Final = 2
BUY_STOPS: Final = 3
WHOLE_BUYS: Final = 4  # all-or-none orders, by their limits
WHOLE_SELLS: Final = 5
CAPACITY: Final = np.dtype(
    [
        ("key", "<u8"),  # account << 32 | instrument; 0: free; with LEASE: what was bought
        ("declared_lots", "<i8"),
        ("held_lots", "<i8"),  # offered by open asks
        ("sold_lots", "<i8"),
    ]
)
# One account's quotes in one market. Who fills or cancels one does not look here: an order id that
# no longer names an open order is passed over.
SHEET: Final = np.dtype(
    [
        ("account", "<u4"),
        ("instrument", "<u4"),
        ("next", "<u4"),  # of the same account; 0: the last
        ("count", "<u4"),
        ("order_ids", "<u8", (QUOTES_MAX,)),  # in the order in which they were placed
    ]
)
IDENTITY: Final = np.dtype(
    [
        ("owner", "u1", (20,)),
        ("opened", "u1"),  # UNKNOWN, TRADING or CLOSED
        ("fee_tier", "u1"),
        ("exits", "<u2"),  # confirmed ones: a week each at least, so this lasts 1,250 years
        ("last_batch", "<u8"),
    ]
)
STATE: Final = np.dtype(
    [
        ("order_high", "<u4"),  # slots 1..order_high were ever used
        ("order_free", "<u4"),
        ("leaf_high", "<u4"),
        ("leaf_free", "<u4"),
        ("node_high", "<u4"),
        ("node_free", "<u4"),
        ("open_orders", "<u4"),
        ("capacities_used", "<u4"),
        ("account_high", "<u4"),
        ("instrument_high", "<u4"),  # one past the highest listed
        ("nodes_used", "<u4"),
        ("sheet_high", "<u4"),  # sheets 1..sheet_high were ever used
        ("last_deposit", "<u8"),
        ("last_withdrawal", "<u8"),
        ("total_usdc6", "<i8"),  # deposited and not withdrawn
        ("sequence", "<u8"),
        ("time_ns", "<i8"),
        ("last_void", "<u4"),
        ("orders_retired", "<u4"),  # slots whose ids are used up
        ("header_unused", "u1", (24,)),
        ("last_end", "<u8"),
        ("fees", "<u2", (FEE_TIERS, 2)),  # maker's and taker's rate by tier, parts per million
        ("books", BOOK, (INSTRUMENTS_MAX,)),
        ("markets", MARKET, (INSTRUMENTS_MAX,)),
        ("balances", "<i8", (ACCOUNTS_MAX, len(BALANCES.names or ()))),  # columns of BALANCES
        ("identities", IDENTITY, (ACCOUNTS_MAX,)),
        ("resting", "<u4", (ACCOUNTS_MAX,)),  # open orders by account
        ("capacities", CAPACITY, (CAPACITY_SLOTS,)),
        ("nodes", NODE, (NODES_MAX,)),
        ("leaves", LEAF, (LEAVES_MAX,)),
        ("levels", LEVEL, (LEAVES_MAX * 64,)),
        ("orders", ORDER, (OPEN_ORDERS_MAX + 1,)),
        ("quoting", "<u4", (ACCOUNTS_MAX,)),  # each account's first sheet
        ("sheets", SHEET, (SHEETS_MAX,)),
        # No state: an order as it is meant where that differs from its command, and one triggered.
        ("scratch", COMMAND, (2,)),
    ]
)
assert LEAF.itemsize == CAPACITY.itemsize == IDENTITY.itemsize == 32
assert BOOK.itemsize == ORDER.itemsize == 64, "one cache line"
assert MARKET.itemsize == 192
assert STATE.fields is not None
assert STATE.fields["books"][1] == 192, "books start on a cache line"
assert LEAVES_MAX * 64 < 1 << 32, "a level's number fits an order"

StateArray = NDArray[np.void]  # shape (1,), dtype STATE, 64-byte aligned

BUY: Final = Side.BUY.value
SELL: Final = Side.SELL.value


def new_state() -> StateArray:
    """An empty shard: shape (1,), dtype STATE. The pages are reserved, not touched."""
    pages = mmap.mmap(-1, STATE.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A million orders lie on more small pages than a processor remembers the addresses of. Where
    # there are no huge ones, small ones do.
    state = np.frombuffer(pages, STATE)
    for part in (state["levels"], state["orders"]):
        offset = part.ctypes.data - state.ctypes.data
        skip = offset % mmap.PAGESIZE
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE, offset - skip, part.nbytes + skip)
    state["capacities"][0, 0] = (BUYS_KEY, 1 << 62, 0, 0)
    return state


@inlined
def rank_of(side: Any, price: Any) -> Any:
    """The place of a price on a side: higher is better. Its own inverse."""
    return price ^ ((uint32(side) & uint32(1)) * uint32(RANK_MASK))


@inlined
def side_of(trie: Any) -> Any:
    """The side of the orders in a trie: that of its ranks, or for stops the other one."""
    return (uint32(trie) ^ (uint32(trie) >> uint32(1))) & uint32(1)


# --- the trie -----------------------------------------------------------------------------------


@kernel
def _take_leaf(s: Any, instrument: Any, side: Any, key: Any) -> Any:
    """A free leaf with no occupied level; `has_room` was asked before."""
    leaf = s.leaf_free
    if leaf != 0:
        s.leaf_free = s.leaves[leaf].free_next
    else:
        s.leaf_high += uint32(1)
        leaf = s.leaf_high
    record = s.leaves[leaf]
    record.key = key
    record.parent = uint32(0)
    record.instrument = instrument
    record.side = uint32(side)
    return leaf


@kernel
def _take_node(s: Any, key: Any) -> Any:
    node = s.node_free
    if node != 0:
        s.node_free = s.nodes[node].parent
    else:
        s.node_high += uint32(1)
        node = s.node_high
    s.nodes_used += uint32(1)
    s.nodes[node].key = key
    s.nodes[node].parent = uint32(0)
    return node


@kernel
def _attach(s: Any, node: Any, child: Any, child_key: Any, child_is_leaf: Any) -> None:
    slot = child_key & uint32(63)
    s.nodes[node].children[slot] = child
    s.nodes[node].occupied |= uint64(1) << uint64(slot)
    if child_is_leaf:
        s.leaves[child].parent = node
    else:
        s.nodes[child].parent = node


@kernel
def _grow(s: Any, book: Any, side: Any) -> None:
    """Put a node above the root, which then covers 64 times the range."""
    prefix = book.prefix[side]
    node = _take_node(s, prefix >> uint32(6))
    _attach(s, node, book.root[side], prefix, book.height[side] == 0)
    book.root[side] = node
    book.prefix[side] = prefix >> uint32(6)
    book.height[side] += np.uint8(1)


@inlined
def has_room(s: Any) -> Any:
    """Whether the pools can take one more price: a leaf and the seven nodes it needs at most."""
    if s.leaf_free == 0 and s.leaf_high + 1 >= LEAVES_MAX:
        return False
    return s.nodes_used + 7 < NODES_MAX - 1


@inlined
def find_leaf(s: Any, book: Any, side: Any, key: Any) -> Any:
    """The leaf with this key; 0 if there is none.

    Always all the way down: whether a price is near the best one no processor could predict. Node
    and leaf 0 stand for what is not there; node 0 has no children but itself.
    """
    height = uint32(book.height[side])
    place = book.root[side] * uint32(key >> (uint32(6) * height) == book.prefix[side])
    while height > 0:
        height -= uint32(1)
        place = s.nodes[place].children[(key >> (uint32(6) * height)) & uint32(63)]
    return place


@inlined
def leaf_for(s: Any, book: Any, instrument: Any, side: Any, rank: Any) -> Any:
    """The leaf that holds this rank, made if need be; `has_room` was asked before."""
    key = rank >> uint32(6)
    leaf = find_leaf(s, book, side, key)
    return leaf if leaf != 0 else _walk_to_leaf(s, book, instrument, side, key)


@kernel
def _walk_to_leaf(s: Any, book: Any, instrument: Any, side: Any, key: Any) -> Any:
    if book.root[side] == 0:
        leaf = _take_leaf(s, instrument, side, key)
        book.root[side] = leaf
        book.prefix[side] = key
        book.height[side] = np.uint8(0)
        return leaf
    while key >> (uint32(6) * uint32(book.height[side])) != book.prefix[side]:
        _grow(s, book, side)
    place = book.root[side]
    height = uint32(book.height[side])
    while height > 0:
        height -= uint32(1)
        child_key = key >> (uint32(6) * height)
        child = s.nodes[place].children[child_key & uint32(63)]
        if child == 0:
            if height == 0:
                child = _take_leaf(s, instrument, side, key)
            else:
                child = _take_node(s, child_key)
            _attach(s, place, child, child_key, height == 0)
        place = child
    return place


@kernel
def _find_best(s: Any, book: Any, side: Any) -> None:
    """Set the best rank of a side from its root: the highest bit of each bitmap on the way."""
    place = book.root[side]
    book.best_leaf[side] = uint32(0)
    book.best[side] = uint32(NO_ORDERS)
    if place == 0:
        return
    height = uint32(book.height[side])
    while height > 0:
        height -= uint32(1)
        place = s.nodes[place].children[highest_bit(s.nodes[place].occupied)]
    tick = uint32(highest_bit(s.leaves[place].occupied))
    book.best_leaf[side] = place
    book.best[side] = (s.leaves[place].key << uint32(6)) | tick


@kernel
def _drop_leaf(s: Any, book: Any, side: Any, leaf: Any) -> None:
    """Free an empty leaf and every node above it that it leaves empty."""
    key = s.leaves[leaf].key
    node = s.leaves[leaf].parent
    s.leaves[leaf].free_next = s.leaf_free
    s.leaf_free = leaf
    while node != 0:
        slot = key & uint32(63)
        s.nodes[node].children[slot] = uint32(0)
        s.nodes[node].occupied &= ~(uint64(1) << uint64(slot))
        if s.nodes[node].occupied != 0:
            return
        key = s.nodes[node].key
        above = s.nodes[node].parent
        s.nodes[node].parent = s.node_free
        s.node_free = node
        s.nodes_used -= uint32(1)
        node = above
    book.root[side] = uint32(0)


@inlined
def drop_level(s: Any, book: Any, side: Any, level: Any) -> None:
    """The level's queue is empty: take it off the bitmap and move the best rank if it was best."""
    leaf = level >> uint32(6)
    record = s.leaves[leaf]
    record.occupied &= ~(uint64(1) << uint64(level & uint32(63)))
    if record.occupied == 0:
        _drop_leaf(s, book, side, leaf)
        if book.best_leaf[side] == leaf:
            _find_best(s, book, side)
    elif book.best_leaf[side] == leaf:
        # Of this leaf the best was the highest; so it is now, whether or not it was the one gone.
        highest = uint32(highest_bit(record.occupied))
        book.best[side] = (record.key << uint32(6)) | highest


# --- orders -------------------------------------------------------------------------------------


@inlined
def take_slot(s: Any) -> Any:
    """A free order slot; `open_orders` was asked before. Last freed, first taken."""
    slot = s.order_free
    if slot != 0:
        s.order_free = s.orders[slot].next
    else:
        s.order_high += uint32(1)
        slot = s.order_high
    s.open_orders += uint32(1)
    return slot


@inlined
def free_slot(s: Any, slot: Any) -> None:
    """Let it be taken again under a new id, unless it has had all: no order's id comes back."""
    order = s.orders[slot]
    order.qty_lots = uint32(0)
    s.open_orders -= uint32(1)
    if order.generation == uint32(_LAST_GENERATION):
        s.orders_retired += uint32(1)
        return
    order.generation += uint32(1)
    order.next = s.order_free
    s.order_free = slot


@inlined
def enqueue(s: Any, book: Any, side: Any, slot: Any, rank: Any, leaf: Any) -> None:
    """Put an order behind all others of its rank."""
    order = s.orders[slot]
    level = (leaf << uint32(6)) | (rank & uint32(63))
    queue = s.levels[level]
    tail = queue.tail
    order.level = level
    order.next = uint32(0)
    order.prev = tail
    queue.tail = slot
    book.open_orders += uint32(1)
    s.resting[order.account] += uint32(1)
    if tail != 0:
        s.orders[tail].next = slot
        return
    queue.head = slot
    s.leaves[leaf].occupied |= uint64(1) << uint64(rank & uint32(63))
    if rank > book.best[side]:
        book.best[side] = rank
        book.best_leaf[side] = leaf


@inlined
def unlink(s: Any, book: Any, side: Any, slot: Any) -> None:
    """Take an order off its level; it keeps its slot."""
    order = s.orders[slot]
    level = order.level
    queue = s.levels[level]
    if order.prev != 0:
        s.orders[order.prev].next = order.next
    else:
        queue.head = order.next
    if order.next != 0:
        s.orders[order.next].prev = order.prev
    else:
        queue.tail = order.prev
    book.open_orders -= uint32(1)
    s.resting[order.account] -= uint32(1)
    if queue.head == 0:
        drop_level(s, book, side, level)


@inlined
def dequeue(s: Any, book: Any, side: Any, slot: Any) -> None:
    """Take an order off its level and free its slot."""
    unlink(s, book, side, slot)
    free_slot(s, slot)


@kernel
def move_to_back(s: Any, slot: Any) -> None:
    """Put an order behind all others of its level."""
    order = s.orders[slot]
    queue = s.levels[order.level]
    if queue.tail == slot:
        return
    if order.prev != 0:
        s.orders[order.prev].next = order.next
    else:
        queue.head = order.next
    s.orders[order.next].prev = order.prev
    s.orders[queue.tail].next = slot
    order.prev = queue.tail
    order.next = uint32(0)
    queue.tail = slot


@inlined
def order_id(s: Any, slot: Any) -> Any:
    return (int64(s.orders[slot].generation) << 24) | int64(slot)
