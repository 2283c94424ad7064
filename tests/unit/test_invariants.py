"""Each invariant of the state can be seen to be broken: one wrong number in a sound state each."""

from typing import Any, Final

import numpy as np
import pytest

from engine.book import BUY_STOPS, RULE_CALL, RULE_WAITING, TRAIT_ALL_OR_NONE, TRAIT_QUOTE
from engine.invariants import BOND_HELD, Invariant, check_invariants
from engine.records import (
    ACCOUNTS_MAX,
    INSTRUMENTS_MAX,
    QTY_LOTS_MAX,
    CommandKind,
    EventKind,
    Flag,
    MarketStatus,
    Side,
    order_terms,
)
from engine.reserve import BOND_FREE, FREE, HELD, LEAVING
from tests.shard import ALICE, BOB, CAROL, COARSE_MARKET, MARKET, Shard

ANOTHER_MARKET: Final = MARKET + 1
NOWHERE: Final = 1 << 25  # past every slot of every pool
BUY, SELL = Side.BUY, Side.SELL


class Crowd:
    """A shard with orders of each kind at several prices, and places in every pool given back.

    Its properties are the records that a test may spoil.
    """

    def __init__(self) -> None:
        self.shard = shard = Shard()
        rest = shard.rest
        far = [rest(CAROL, BUY, price, 1) for price in (1, 4_096, 262_144)]
        self.slots = [rest(who, BUY, 300_100, n) & 0xFFFFFF for who, n in ((1, 5), (2, 7), (1, 2))]
        rest(BOB, BUY, 300_000, 3)
        self.ask_slot = rest(ALICE, SELL, 300_200, 4) & 0xFFFFFF
        concealed = shard.sell(BOB, 300_300, 9, order_id=order_terms(display_lots=2))[-1]
        self.iceberg_slot = concealed.order_id & 0xFFFFFF
        rest(CAROL, SELL, 8_000_000, 8, instrument=COARSE_MARKET)
        shard.sell(CAROL, 300_100, 1)
        shard.do(CommandKind.SET_FEES, order_id=1_000 | 2_000 << 16)
        waiting = [
            self.wait(CommandKind.NEW_STOP, BUY, 300_400, order_id=300_350),
            self.wait(CommandKind.NEW_STOP, SELL, 299_000, order_id=299_500),
            self.wait(CommandKind.NEW_ORDER, BUY, 300_250, flags=Flag.ALL_OR_NONE),
            self.wait(CommandKind.NEW_ORDER, SELL, 300_050, flags=Flag.ALL_OR_NONE),
        ]
        for order_id in far[1:]:
            shard.cancel(CAROL, order_id)
        self.state = shard.state[0]
        self.orders = self.state["orders"]
        self.money = self.state["balances"][ALICE]
        self.book = self.state["books"][MARKET]
        self.market = self.state["markets"][MARKET]
        self.stop, _, self.whole, _ = (self.orders[slot] for slot in waiting)
        self.first, self.second, self.third = (self.orders[slot] for slot in self.slots)
        self.ask, self.iceberg = self.orders[self.ask_slot], self.orders[self.iceberg_slot]
        self.queue = self.state["levels"][self.first["level"]]
        self.leaf = self.state["leaves"][self.first["level"] >> 6]
        self.above = self.state["nodes"][self.leaf["parent"]]
        self.root = self.state["nodes"][self.book["root"][BUY]]
        self.free_order = self.orders[self.state["order_free"]]
        self.free_leaf = self.state["leaves"][self.state["leaf_free"]]
        self.free_node = self.state["nodes"][self.state["node_free"]]
        self.capacity = self.capacity_of(ALICE)
        self.bought = self.state["capacities"][0]

    def wait(self, kind: int, side: Side, limit_ticks: int, **fields: int) -> int:
        """The slot of an order that waits for its condition."""
        accepted, waiting = self.shard.do(
            kind, account=ALICE, side=side, price_ticks=limit_ticks, qty_lots=90, **fields
        )
        assert waiting.kind == EventKind.WAITING
        return accepted.order_id & 0xFFFFFF

    def capacity_of(self, account: int) -> Any:
        capacities = self.state["capacities"]
        [slot] = np.flatnonzero(capacities["key"] == account << 32 | MARKET)
        return capacities[slot]

    def check(self) -> None:
        check_invariants(self.shard.state)


def one_more(number: Any) -> Any:
    return number + 1


def one_less(number: Any) -> Any:
    return number - 1


def no_lowest_bit(number: Any) -> Any:
    return number & (number - np.uint64(1))


def and_lowest_gap(number: Any) -> Any:
    return number | (number + np.uint64(1))


# What is broken, the record that is spoiled, its field, and the number put there or made of it.
Is = Invariant
SPOILT: Final[list[tuple[Invariant, str, Any, Any]]] = [
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "queue", "head", NOWHERE),
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "first", "next", NOWHERE),
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "state", "leaf_high", one_less),
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "state", "order_high", 3),
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "book.root", BUY, NOWHERE),
    (Is.A_LINK_LEADS_TO_WHAT_IS_IN_USE, "book.height", BUY, 4),
    (Is.A_PLACE_KNOWS_ITS_KEY, "leaf", "key", one_more),
    (Is.A_PLACE_KNOWS_ITS_KEY, "above", "key", one_more),
    (Is.A_PLACE_KNOWS_ITS_KEY, "book.prefix", BUY, one_more),
    (Is.A_PLACE_KNOWS_ITS_PARENT, "leaf", "parent", one_more),
    (Is.A_PLACE_KNOWS_ITS_PARENT, "root", "parent", 1),
    (Is.NO_EMPTY_PLACE_STAYS, "leaf", "occupied", 0),
    (Is.NO_EMPTY_PLACE_STAYS, "root", "occupied", 0),
    (Is.THE_BITMAP_SAYS_WHICH_LEVELS_HAVE_ORDERS, "queue", "head", 0),
    (Is.THE_BITMAP_SAYS_WHICH_LEVELS_HAVE_ORDERS, "leaf", "occupied", and_lowest_gap),
    (Is.THE_BITMAP_SAYS_WHICH_CHILDREN_EXIST, "root", "occupied", no_lowest_bit),
    (Is.THE_BITMAP_SAYS_WHICH_CHILDREN_EXIST, "root", "occupied", and_lowest_gap),
    (Is.A_LEAF_KNOWS_ITS_MARKET_AND_SIDE, "leaf", "instrument", ANOTHER_MARKET),
    (Is.A_LEAF_KNOWS_ITS_MARKET_AND_SIDE, "leaf", "side", SELL),
    (Is.LINKED_BOTH_WAYS, "second", "prev", 0),
    (Is.LINKED_BOTH_WAYS, "first", "prev", one_more),
    (Is.THE_TAIL_IS_THE_LAST, "queue", "tail", one_less),
    (Is.AN_ORDER_KNOWS_ITS_LEVEL, "second", "level", one_more),
    (Is.AN_ORDER_STANDS_AT_ITS_PRICE, "second", "price_ticks", one_more),
    (Is.AN_ORDER_STANDS_AT_ITS_PRICE, "whole", "price_ticks", one_more),
    (Is.NOTHING_EMPTY_RESTS, "first", "qty_lots", 0),
    (Is.FIRST_COME_FIRST_SERVED, "first", "sequence", 1 << 40),
    (Is.AN_ICEBERG_SHOWS_AT_MOST_A_CLIP, "iceberg", "qty_lots", 3),
    (Is.AN_ORDER_HAS_AN_ACCOUNT, "first", "account", 0),
    (Is.AN_ORDER_HAS_AN_ACCOUNT, "first", "account", 4),
    (Is.A_QUOTE_IS_ON_ITS_SHEET, "first", "traits", TRAIT_QUOTE),
    (Is.AN_ORDER_KNOWS_ITS_CAPACITY, "first", "capacity", 1),
    (Is.AN_ORDER_KNOWS_ITS_CAPACITY, "ask", "capacity", one_more),
    (Is.AN_ORDER_KNOWS_ITS_CAPACITY, "capacity", "key", one_more),
    (Is.THE_BEST_PRICE_IS_THE_EXTREME, "book.best", BUY, one_less),
    (Is.THE_BEST_PRICE_IS_THE_EXTREME, "book.best", SELL, 0),
    (Is.THE_BEST_PRICE_IS_THE_EXTREME, "market.best", BUY_STOPS, one_less),
    (Is.THE_BEST_LEAF_HOLDS_THE_BEST, "book.best_leaf", BUY, one_more),
    (Is.THE_BEST_LEAF_HOLDS_THE_BEST, "book.best_leaf", BUY, NOWHERE),
    (Is.A_BOOK_COUNTS_ITS_ORDERS, "book", "open_orders", one_less),
    (Is.AN_UNLISTED_MARKET_HAS_NO_ORDERS, "book", "status", 0),
    (Is.A_MARKET_COUNTS_WHO_WAITS, "market", "open_orders", one_more),
    (Is.A_BOOK_KNOWS_WHETHER_SOME_WAIT, "book", "rules", 0),
    (Is.A_BOOK_KNOWS_WHETHER_IT_HAS_A_GATE, "market", "closes_s", 1),
    (Is.A_BOOK_KNOWS_WHETHER_IT_HAS_BANDS, "market", "dynamic_ppm", 1),
    (Is.A_BOOK_KNOWS_WHETHER_IT_WAS_CALLED, "book", "status", MarketStatus.CALL),
    (Is.A_BOOK_KNOWS_WHETHER_IT_WAS_CALLED, "book", "rules", RULE_WAITING | RULE_CALL),
    (Is.ONLY_A_CALL_IS_UNCROSSED, "market", "auction_ticks", 1),
    (Is.ONLY_A_CALL_IS_UNCROSSED, "market", "auction_lots", 1),
    (Is.WHOLE_ORDERS_STAND_APART, "whole", "traits", 0),
    (Is.WHOLE_ORDERS_STAND_APART, "first", "traits", TRAIT_ALL_OR_NONE),
    (Is.WHO_WAITS_CONCEALS_NOTHING, "stop", "hidden_lots", 1),
    (Is.ALL_OPEN_ORDERS_ARE_ON_BOOKS, "state", "open_orders", one_more),
    (Is.A_SLOT_IS_OPEN_OR_FREE, "free_order", "qty_lots", 1),
    (Is.A_SLOT_IS_OPEN_OR_FREE, "free_order", "next", NOWHERE),
    (Is.A_SLOT_IS_OPEN_OR_FREE, "state", "order_high", one_more),
    (Is.A_SLOT_IS_OPEN_OR_FREE, "state", "order_free", 0),
    (Is.A_LEAF_IS_USED_OR_FREE, "free_leaf", "occupied", 1),
    (Is.A_LEAF_IS_USED_OR_FREE, "free_leaf", "free_next", NOWHERE),
    (Is.A_LEAF_IS_USED_OR_FREE, "state", "leaf_high", one_more),
    (Is.A_NODE_IS_USED_OR_FREE, "free_node", "occupied", 1),
    (Is.A_NODE_IS_USED_OR_FREE, "free_node", "parent", NOWHERE),
    (Is.A_NODE_IS_USED_OR_FREE, "state", "nodes_used", one_more),
    (Is.A_NODE_IS_USED_OR_FREE, "state", "node_free", 0),
    (Is.AN_ACCOUNT_COUNTS_ITS_ORDERS, "state.resting", BOB, one_more),
    (Is.NO_MONEY_IS_BELOW_ZERO, "money", LEAVING, -1),
    (Is.ONLY_KNOWN_ACCOUNTS_HAVE_MONEY, "state.balances", (0, FREE), 1),
    (Is.HELD_IS_WHAT_OPEN_BUYS_NEED, "money", FREE + HELD, one_more),
    (Is.HELD_IS_WHAT_OPEN_BUYS_NEED, "second", "qty_lots", one_more),
    (Is.HELD_IS_WHAT_OPEN_BUYS_NEED, "stop", "fee_ppm", one_more),
    (Is.HELD_IS_WHAT_OPEN_BUYS_NEED, "stop", "price_ticks", one_more),
    (Is.BOND_HELD_IS_WHAT_OPEN_ASKS_NEED, "money", BOND_HELD, one_less),
    (Is.BOND_HELD_IS_WHAT_OPEN_ASKS_NEED, "iceberg", "hidden_lots", one_more),
    (Is.MONEY_IS_CONSERVED, "money", BOND_FREE, one_more),
    (Is.MONEY_IS_CONSERVED, "state", "total_usdc6", one_less),
    (Is.CAPACITY_HELD_IS_WHAT_OPEN_ASKS_OFFER, "capacity", "held_lots", one_less),
    (Is.CAPACITY_HELD_IS_WHAT_OPEN_ASKS_OFFER, "bought", "held_lots", one_more),
    (Is.NEVER_OVERSOLD, "capacity", "declared_lots", 3),
    (Is.NEVER_OVERSOLD, "capacity", "sold_lots", -1),
    (Is.EVERY_CAPACITY_IS_FOUND, "state", "capacities_used", one_more),
]  # fmt: skip


def place_of(crowd: Crowd, name: str) -> Any:
    """The record of a crowd with this name, or after a dot one of its arrays."""
    record, _, array = name.partition(".")
    place = getattr(crowd, record)
    return place[array] if array else place


@pytest.mark.parametrize(
    ("broken", "name", "field", "value"), SPOILT, ids=[f"{s[0].name}-{s[1]}" for s in SPOILT]
)
def test_a_spoilt_number_is_found_and_named(
    broken: Invariant, name: str, field: Any, value: Any
) -> None:
    crowd = Crowd()
    crowd.check()
    place = place_of(crowd, name)
    place[field] = value(place[field]) if callable(value) else value
    with pytest.raises(AssertionError, match=broken.name.lower().replace("_", " ")):
        crowd.check()


def test_a_crossed_book_is_found() -> None:
    """Two markets' asks change places: each side is whole, and one book's sides cross."""
    shard = Shard()
    for instrument, bid, ask in ((MARKET, 100, 110), (COARSE_MARKET, 200, 210)):
        shard.rest(ALICE, BUY, bid, 8, instrument=instrument)
        shard.rest(BOB, SELL, ask, 8, instrument=instrument)
    shard.check()
    books, leaves, orders = (shard.state[name][0] for name in ("books", "leaves", "orders"))
    for name in ("best", "best_leaf", "root", "prefix", "height"):
        sides = books[name][:, SELL]
        sides[[MARKET, COARSE_MARKET]] = sides[[COARSE_MARKET, MARKET]]
    for instrument in (MARKET, COARSE_MARKET):
        leaf = leaves[books["root"][instrument, SELL]]
        leaf["instrument"] = instrument
    asks = np.flatnonzero(orders["price_ticks"] % 100 == 10)
    orders["capacity"][asks] = orders["capacity"][asks[::-1]]
    with pytest.raises(AssertionError, match="never crossed: not so at 3"):
        check_invariants(shard.state)


def test_every_invariant_is_one_that_a_test_has_seen_broken() -> None:
    seen = {spoilt[0] for spoilt in SPOILT} | {Is.ALL_HOLD, Is.NEVER_CROSSED}
    assert seen == set(Invariant)


def test_a_ring_of_orders_is_found_and_traps_nobody() -> None:
    crowd = Crowd()
    crowd.third["next"] = crowd.slots[1]
    with pytest.raises(AssertionError, match="linked both ways"):
        crowd.check()
    crowd = Crowd()
    crowd.free_order["next"] = int(crowd.state["order_free"])
    with pytest.raises(AssertionError, match="a slot is open or free"):
        crowd.check()


def test_with_the_highest_account_and_market_the_whole_table_of_capacities_is_read() -> None:
    crowd = Crowd()
    last_account, last_market = ACCOUNTS_MAX - 1, INSTRUMENTS_MAX - 1
    crowd.shard.list_market(last_market)
    crowd.shard.do(CommandKind.OPEN_ACCOUNT, account=last_account)
    crowd.shard.declare(last_account, last_market, QTY_LOTS_MAX)
    crowd.check()
    crowd.capacity["held_lots"] += 1
    with pytest.raises(AssertionError, match="capacity held is what open asks offer"):
        crowd.check()
    crowd.capacity["held_lots"] -= 1
    capacities = crowd.state["capacities"]
    crowd.check()
    [slot] = np.flatnonzero(capacities["key"] == last_account << 32 | last_market)
    capacities[slot + 1], capacities[slot] = capacities[slot], capacities[slot + 1]
    with pytest.raises(AssertionError, match="every capacity is found"):
        crowd.check()
