"""The rules of a market by name. Kernel and executable specification answer each of them alike."""

from collections.abc import Callable
from itertools import permutations

import pytest

from engine.book import LEAVES_MAX, NODES_MAX
from engine.invariants import check_invariants
from engine.records import (
    ACCOUNT_ORDERS_MAX,
    ALL_INSTRUMENTS,
    AMOUNT_USDC6_MAX,
    CAPACITIES_MAX,
    CLIENT_ID_MAX,
    EFFECTS_MAX,
    FEE_PPM_MAX,
    FEE_TIERS,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    TOTAL_USDC6_MAX,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    OneSide,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
    order_terms,
)
from engine.rejects import Reject
from tests.exchange import unpack_command
from tests.shard import (
    ALICE,
    BOB,
    BOND_USDC6,
    BOND_USDC6_PER_LOT,
    CAPACITY_LOTS,
    CAROL,
    CASH_USDC6,
    COARSE_MARKET,
    MARKET,
    Shard,
)

BUY, SELL = Side.BUY, Side.SELL
IOC, FOK = TimeInForce.IOC, TimeInForce.FOK


@pytest.fixture
def shard() -> Shard:
    return Shard()


def kinds(events: list[Event]) -> list[EventKind]:
    return [EventKind(e.kind) for e in events]


def fills(events: list[Event]) -> list[tuple[int, int, int]]:
    """(maker's id, price, lots) of each fill."""
    return [
        (e.counter_order_id, e.price_ticks, e.qty_lots) for e in events if e.kind == EventKind.FILL
    ]


def rest_many(shard: Shard, account: int, side: Side, price_ticks: int, count: int) -> None:
    shard.do_all(
        Command(
            kind=CommandKind.NEW_ORDER,
            account=account,
            side=side,
            price_ticks=price_ticks,
            qty_lots=1,
        )
        for _ in range(count)
    )


# --- priority, price, money ---------------------------------------------------------------------


def test_the_best_price_trades_first_and_at_one_price_the_oldest(shard: Shard) -> None:
    worse = shard.rest(BOB, SELL, 101, 5)
    first = shard.rest(CAROL, SELL, 100, 5)
    second = shard.rest(BOB, SELL, 100, 5)
    events = shard.buy(ALICE, 102, 12)
    assert fills(events) == [(first, 100, 5), (second, 100, 5), (worse, 101, 2)]
    shard.check()


def test_bids_trade_from_the_highest_down(shard: Shard) -> None:
    low = shard.rest(BOB, BUY, 99, 5)
    high = shard.rest(CAROL, BUY, 101, 5)
    assert fills(shard.sell(ALICE, 99, 7)) == [(high, 101, 5), (low, 99, 2)]


def test_a_maker_filled_in_part_keeps_its_place(shard: Shard) -> None:
    first = shard.rest(BOB, SELL, 100, 5)
    shard.rest(CAROL, SELL, 100, 5)
    assert fills(shard.buy(ALICE, 100, 2)) == [(first, 100, 2)]
    assert fills(shard.buy(ALICE, 100, 1)) == [(first, 100, 1)]


def test_a_trade_is_at_the_resting_price_and_the_improvement_is_refunded(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    shard.buy(ALICE, 150, 5)
    money = shard.money(ALICE)
    assert (money["pending_usdc6"], money["held_usdc6"]) == (500, 0)
    assert money["free_usdc6"] == CASH_USDC6 - 500
    sold = shard.money(BOB)
    assert (sold["bond_held_usdc6"], sold["bond_locked_usdc6"]) == (0, 5 * BOND_USDC6_PER_LOT)


def test_a_remainder_rests_and_holds_its_own_price(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    events = shard.buy(ALICE, 150, 8)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.FILL]
    assert shard.best(BUY) == 150
    money = shard.money(ALICE)
    assert (money["pending_usdc6"], money["held_usdc6"]) == (500, 3 * 150)
    shard.cancel(ALICE, events[0].order_id)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6 - 500


def test_an_order_that_does_not_cross_holds_and_cancelling_gives_back(shard: Shard) -> None:
    bid = shard.rest(ALICE, BUY, 90, 7)
    ask = shard.rest(BOB, SELL, 110, 7)
    assert shard.money(ALICE)["held_usdc6"] == 630
    assert shard.money(BOB)["bond_held_usdc6"] == 7 * BOND_USDC6_PER_LOT
    [cancelled] = shard.cancel(ALICE, bid)
    assert (cancelled.qty_lots, cancelled.reason) == (7, CancelReason.BY_REQUEST)
    shard.cancel(BOB, ask)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6
    assert shard.money(BOB)["bond_free_usdc6"] == BOND_USDC6
    shard.check()


def test_an_order_must_be_covered_at_its_limit_even_if_it_would_trade_lower(shard: Shard) -> None:
    shard.rest(BOB, SELL, 1, 1)
    lots = CASH_USDC6 // 1_000_000
    assert kinds(shard.buy(ALICE, 1_000_000, lots))[0] == EventKind.ACCEPTED
    assert shard.money(ALICE)["free_usdc6"] == 999_999  # the first lot cost 1, not 1,000,000


# --- time in force ------------------------------------------------------------------------------


def test_an_ioc_trades_what_it_can_and_the_rest_is_cancelled(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    events = shard.buy(ALICE, 100, 8, time_in_force=IOC)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.FILL, EventKind.CANCELLED]
    assert (events[2].qty_lots, events[2].reason) == (3, CancelReason.IOC_REMAINDER)
    assert shard.best(BUY) is None
    assert shard.money(ALICE)["held_usdc6"] == 0


def test_an_ioc_that_meets_nobody_is_accepted_and_cancelled(shard: Shard) -> None:
    events = shard.buy(ALICE, 100, 8, time_in_force=IOC)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.CANCELLED]


def test_a_fok_fills_whole_or_is_refused(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    shard.rest(CAROL, SELL, 4097, 5)
    refused = shard.refuses(lambda: shard.buy(ALICE, 4096, 6, time_in_force=FOK))
    assert refused == Reject.FOK_NOT_FILLABLE
    assert len(fills(shard.buy(ALICE, 4097, 6, time_in_force=FOK))) == 2
    assert shard.refuses(lambda: shard.buy(ALICE, 4097, 5, time_in_force=FOK))
    assert len(fills(shard.buy(ALICE, 4097, 4, time_in_force=FOK))) == 1


def test_a_fok_sell_looks_down_the_bids(shard: Shard) -> None:
    for price in (PRICE_TICKS_MAX, 4096, 64, 63):
        shard.rest(BOB, BUY, price, 1)
    assert shard.refuses(lambda: shard.sell(ALICE, 64, 4, time_in_force=FOK))
    assert len(fills(shard.sell(ALICE, 63, 4, time_in_force=FOK))) == 4


def test_a_fok_does_not_count_on_its_own_orders(shard: Shard) -> None:
    shard.rest(ALICE, SELL, 99, 5)
    shard.rest(BOB, SELL, 100, 5)
    for mode in (SelfTrade.CANCEL_TAKER, SelfTrade.CANCEL_BOTH, SelfTrade.DECREMENT):
        refused = shard.refuses(
            lambda m=mode: shard.buy(ALICE, 100, 5, time_in_force=FOK, self_trade=m)
        )
        assert refused == Reject.FOK_NOT_FILLABLE
    passed = shard.buy(ALICE, 100, 5, time_in_force=FOK, self_trade=SelfTrade.CANCEL_MAKER)
    assert kinds(passed) == [EventKind.ACCEPTED, EventKind.CANCELLED, EventKind.FILL]


def test_a_post_only_order_never_takes(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    refused = shard.refuses(lambda: shard.buy(ALICE, 100, 5, flags=Flag.POST_ONLY))
    assert refused == Reject.POST_ONLY_WOULD_TRADE
    shard.rest(ALICE, BUY, 99, 5, flags=Flag.POST_ONLY)
    assert shard.best(BUY) == 99


# --- self-trade ---------------------------------------------------------------------------------


def test_cancel_taker_ends_the_new_order_and_leaves_the_old(shard: Shard) -> None:
    first = shard.rest(BOB, SELL, 99, 2)
    own = shard.rest(ALICE, SELL, 100, 5)
    events = shard.buy(ALICE, 100, 8, self_trade=SelfTrade.CANCEL_TAKER)
    assert fills(events) == [(first, 99, 2)]
    assert (events[2].kind, events[2].qty_lots) == (EventKind.CANCELLED, 6)
    assert (events[2].order_id, events[2].reason) == (events[0].order_id, CancelReason.SELF_TRADE)
    assert shard.cancel(ALICE, own)[0].qty_lots == 5
    shard.check()


def test_cancel_maker_removes_the_old_order_and_goes_on(shard: Shard) -> None:
    own = shard.rest(ALICE, SELL, 100, 5, client_id=77)
    other = shard.rest(BOB, SELL, 100, 5)
    events = shard.buy(ALICE, 100, 8, self_trade=SelfTrade.CANCEL_MAKER)
    assert (events[1].order_id, events[1].client_id, events[1].side) == (own, 77, SELL)
    assert (events[1].qty_lots, events[1].reason) == (5, CancelReason.SELF_TRADE)
    assert fills(events) == [(other, 100, 5)]
    assert shard.best(BUY) == 100
    assert shard.money(ALICE)["bond_held_usdc6"] == 0
    shard.check()


def test_cancel_both_removes_both(shard: Shard) -> None:
    own = shard.rest(ALICE, SELL, 100, 5)
    events = shard.buy(ALICE, 100, 8, self_trade=SelfTrade.CANCEL_BOTH)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.CANCELLED, EventKind.CANCELLED]
    assert [e.order_id for e in events[1:]] == [own, events[0].order_id]
    assert (shard.best(BUY), shard.best(SELL)) == (None, None)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6
    shard.check()


@pytest.mark.parametrize(("maker", "taker", "left"), [(5, 8, 3), (8, 5, 3), (5, 5, 0)])
def test_decrement_takes_the_smaller_from_both(
    shard: Shard, maker: int, taker: int, left: int
) -> None:
    shard.rest(ALICE, SELL, 100, maker)
    events = shard.buy(ALICE, 100, taker, self_trade=SelfTrade.DECREMENT)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.DECREMENTED]
    assert events[1].qty_lots == min(maker, taker)
    assert shard.best(BUY) == (100 if taker > maker else None)
    assert shard.best(SELL) == (100 if maker > taker else None)
    bought = left * 100 if taker > maker else 0
    offered = left * BOND_USDC6_PER_LOT if maker > taker else 0
    money = shard.money(ALICE)
    assert (money["held_usdc6"], money["bond_held_usdc6"]) == (bought, offered)
    shard.check()


# --- the limit on effects -----------------------------------------------------------------------


def test_an_order_that_meets_more_than_the_limit_has_its_remainder_cancelled(shard: Shard) -> None:
    rest_many(shard, BOB, SELL, 100, EFFECTS_MAX + 1)
    events = shard.buy(ALICE, 100, EFFECTS_MAX + 9)
    assert len(fills(events)) == EFFECTS_MAX - 1, "that it is accepted is an effect, too"
    assert kinds(events[:1] + events[-1:]) == [EventKind.ACCEPTED, EventKind.CANCELLED]
    assert (events[-1].qty_lots, events[-1].reason) == (10, CancelReason.EFFECTS_LIMIT)
    assert len(events) == EFFECTS_MAX + 1
    assert (shard.best(BUY), shard.best(SELL)) == (None, 100)
    shard.check()


def test_an_order_that_meets_just_the_limit_is_filled_whole(shard: Shard) -> None:
    rest_many(shard, BOB, SELL, 100, EFFECTS_MAX - 1)
    refused = shard.refuses(lambda: shard.buy(ALICE, 100, EFFECTS_MAX, time_in_force=FOK))
    assert refused == Reject.FOK_NOT_FILLABLE
    assert len(fills(shard.buy(ALICE, 100, EFFECTS_MAX))) == EFFECTS_MAX - 1
    assert shard.best(BUY) == 100, "the remainder rests: nothing is left to meet"
    shard.check()


def test_a_fok_is_held_to_the_limit_before_it_trades(shard: Shard) -> None:
    rest_many(shard, BOB, SELL, 100, EFFECTS_MAX)
    refused = shard.refuses(lambda: shard.buy(ALICE, 100, EFFECTS_MAX, time_in_force=FOK))
    assert refused == Reject.FOK_NOT_FILLABLE
    filled = fills(shard.buy(ALICE, 100, EFFECTS_MAX - 1, time_in_force=FOK))
    assert len(filled) == EFFECTS_MAX - 1


def test_cancel_all_beyond_the_limit_says_so_and_is_asked_again(shard: Shard) -> None:
    rest_many(shard, BOB, SELL, 100, EFFECTS_MAX + 2)
    events = shard.do(CommandKind.CANCEL_ALL, account=BOB, instrument=MARKET)
    assert (events[-1].qty_lots, events[-1].reason) == (EFFECTS_MAX, CancelReason.EFFECTS_LIMIT)
    events = shard.do(CommandKind.CANCEL_ALL, account=BOB, instrument=MARKET)
    assert (events[-1].qty_lots, events[-1].reason) == (2, 0)
    shard.check()


# --- cancelling ---------------------------------------------------------------------------------


def test_a_stale_order_id_never_cancels_the_slots_next_order(shard: Shard) -> None:
    stale = shard.rest(ALICE, BUY, 100, 5)
    shard.cancel(ALICE, stale)
    now = shard.rest(ALICE, BUY, 100, 5)
    assert now & 0xFFFFFF == stale & 0xFFFFFF, "the slot is used again"
    assert shard.refuses(lambda: shard.cancel(ALICE, stale)) == Reject.UNKNOWN_ORDER
    assert shard.cancel(ALICE, now)[0].kind == EventKind.CANCELLED


def test_an_id_of_a_future_reuse_cancels_nothing(shard: Shard) -> None:
    now = shard.rest(ALICE, BUY, 100, 5)
    for guess in (now + (1 << 24), now | 1 << 53, now | 1 << 63):
        refused = shard.refuses(lambda g=guess: shard.cancel(ALICE, g))
        assert refused == Reject.UNKNOWN_ORDER


def test_a_slot_whose_ids_are_used_up_is_never_taken_again(shard: Shard) -> None:
    order_id = shard.rest(ALICE, BUY, 100, 5)
    slot = order_id & 0xFFFFFF
    last = (1 << 29) - 1
    shard.state["orders"][0, slot]["generation"] = last
    [cancelled] = shard.matcher_only(CommandKind.CANCEL, account=ALICE, order_id=last << 24 | slot)
    assert cancelled.kind == EventKind.CANCELLED
    assert cancelled.order_id <= CLIENT_ID_MAX, "exact for every reader"
    [accepted] = shard.matcher_only(CommandKind.NEW_ORDER, account=ALICE, price_ticks=1, qty_lots=1)
    assert accepted.order_id == slot + 1
    assert (shard.state["orders_retired"][0], shard.state["open_orders"][0]) == (1, 1)
    check_invariants(shard.state)


def test_nobody_cancels_an_order_of_somebody_else(shard: Shard) -> None:
    order_id = shard.rest(ALICE, BUY, 100, 5)
    assert shard.refuses(lambda: shard.cancel(BOB, order_id)) == Reject.UNKNOWN_ORDER


def test_a_filled_order_cannot_be_cancelled(shard: Shard) -> None:
    order_id = shard.rest(ALICE, BUY, 100, 5)
    shard.sell(BOB, 100, 5)
    assert shard.refuses(lambda: shard.cancel(ALICE, order_id)) == Reject.UNKNOWN_ORDER


def test_cancel_all_takes_one_market_or_every_and_only_ones_own(shard: Shard) -> None:
    here = shard.rest(ALICE, BUY, 100, 8)
    there = shard.rest(ALICE, BUY, 100, 8, instrument=COARSE_MARKET)
    shard.rest(BOB, BUY, 100, 8)
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=COARSE_MARKET)
    assert [e.order_id for e in events[:-1]] == [there]
    again = shard.rest(ALICE, BUY, 100, 8, instrument=COARSE_MARKET)
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=ALL_INSTRUMENTS)
    assert {e.order_id for e in events[:-1]} == {here, again}
    assert (events[-1].kind, events[-1].qty_lots) == (EventKind.CANCEL_ALL_DONE, 2)
    assert shard.best(BUY) == 100


def test_cancel_all_goes_by_slot_whichever_order_came_first(shard: Shard) -> None:
    first, second = (shard.rest(ALICE, BUY, 100, 1) for _ in range(2))
    shard.cancel(ALICE, first)
    reused = shard.rest(ALICE, BUY, 100, 1)
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=MARKET)
    assert [e.order_id for e in events[:-1]] == [reused, second]


# --- filled whole or not at all --------------------------------------------------------------


@pytest.mark.parametrize("mode", SelfTrade)
def test_an_iceberg_shows_its_next_part_behind_an_own_order_which_ends_what_must_fill_whole(
    shard: Shard, mode: SelfTrade
) -> None:
    shard.sell(BOB, 100, 10, order_id=order_terms(display_lots=1))
    own = shard.rest(ALICE, SELL, 100, 5)
    whole = {"qty_lots": 5, "self_trade": mode}
    if mode is SelfTrade.CANCEL_MAKER:  # the own order makes way
        events = shard.buy(ALICE, 100, time_in_force=FOK, **whole)
        assert sum(e.qty_lots for e in events if e.kind == EventKind.FILL) == 5
        assert own in [e.order_id for e in events if e.kind == EventKind.CANCELLED]
        return
    fok = shard.refuses(lambda: shard.buy(ALICE, 100, time_in_force=FOK, **whole))
    assert fok == Reject.FOK_NOT_FILLABLE
    minimum = order_terms(min_lots=5)
    least = shard.refuses(lambda: shard.buy(ALICE, 100, order_id=minimum, **whole))
    assert least == Reject.MINIMUM_NOT_FILLABLE
    for kind in (CommandKind.BASKET, CommandKind.EXCLUSIVE):
        leg = {"account": ALICE, "side": BUY, "price_ticks": 100} | whole
        legs = shard.refuses(lambda k=kind, x=leg: shard.do_several(k, [x], account=ALICE))
        assert legs == Reject.LEGS_NOT_FILLABLE
    waiting = shard.buy(ALICE, 100, flags=Flag.ALL_OR_NONE, **whole)
    assert kinds(waiting) == [EventKind.ACCEPTED, EventKind.WAITING]
    shard.check()


# --- halted -------------------------------------------------------------------------------------


def test_a_halted_market_takes_cancels_only(shard: Shard) -> None:
    first = shard.rest(ALICE, BUY, 100, 5)
    shard.rest(ALICE, BUY, 100, 5)
    shard.do(CommandKind.HALT_MARKET, instrument=MARKET)
    assert shard.refuses(lambda: shard.sell(BOB, 100, 5)) == Reject.MARKET_HALTED
    assert shard.refuses(lambda: shard.buy(BOB, 1, 5)) == Reject.MARKET_HALTED
    shard.rest(BOB, BUY, 100, 8, instrument=COARSE_MARKET)
    assert shard.cancel(ALICE, first)[0].kind == EventKind.CANCELLED
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=MARKET)
    assert events[-1].qty_lots == 1
    shard.do(CommandKind.RESUME_MARKET, instrument=MARKET)
    shard.rest(BOB, SELL, 100, 5)


# --- the book's shape ---------------------------------------------------------------------------

FAR = (1, 63, 64, 4095, 4096, 262_144, PRICE_TICKS_MAX)


@pytest.mark.parametrize("side", list(Side))
def test_a_book_grows_over_far_prices_and_shrinks_to_nothing(shard: Shard, side: Side) -> None:
    for order in list(permutations(FAR))[:: 5040 // 8]:
        ids = {price: shard.rest(ALICE, side, price, 1) for price in order}
        shard.check()
        assert shard.best(side) == (max(FAR) if side is BUY else min(FAR))
        for price in reversed(order):
            shard.cancel(ALICE, ids[price])
        shard.check()
        assert shard.state["nodes_used"][0] == 0
        assert shard.state["books"][0, MARKET]["root"][side] == 0


def test_a_sweep_walks_far_prices_in_order(shard: Shard) -> None:
    for price in (4096, 1, PRICE_TICKS_MAX, 64, 262_144, 63, 4095):
        shard.rest(BOB, SELL, price, 1)
    prices = [price for _, price, _ in fills(shard.buy(ALICE, PRICE_TICKS_MAX, 7))]
    assert prices == sorted(FAR)
    assert shard.best(SELL) is None
    shard.check()


# --- capacity and bond --------------------------------------------------------------------------


def test_capacity_is_held_by_asks_spent_by_sales_and_given_back_by_cancels(shard: Shard) -> None:
    shard.declare(BOB, MARKET, 10)
    order_id = shard.rest(BOB, SELL, 100, 6)
    assert shard.refuses(lambda: shard.sell(BOB, 100, 5)) == Reject.INSUFFICIENT_CAPACITY
    shard.buy(ALICE, 100, 4)
    assert shard.refuses(lambda: shard.declare(BOB, MARKET, 5)) == Reject.CAPACITY_IN_USE
    shard.cancel(BOB, order_id)
    assert shard.declare(BOB, MARKET, 4)[0].kind == EventKind.CAPACITY_DECLARED
    assert shard.refuses(lambda: shard.declare(BOB, MARKET, 3)) == Reject.CAPACITY_IN_USE
    assert shard.refuses(lambda: shard.sell(BOB, 100, 1)) == Reject.INSUFFICIENT_CAPACITY
    shard.check()


def test_a_sell_that_trades_at_once_spends_capacity_and_locks_bond(shard: Shard) -> None:
    shard.rest(ALICE, BUY, 100, 4)
    shard.declare(BOB, MARKET, 4)
    shard.sell(BOB, 90, 4)
    assert shard.refuses(lambda: shard.sell(BOB, 100, 1)) == Reject.INSUFFICIENT_CAPACITY
    assert shard.money(BOB)["bond_locked_usdc6"] == 4 * BOND_USDC6_PER_LOT
    assert shard.money(ALICE)["pending_usdc6"] == 400, "at the resting price"
    shard.check()


def test_bond_runs_out_before_capacity(shard: Shard) -> None:
    shard.declare(BOB, MARKET, QTY_LOTS_MAX)
    most = BOND_USDC6 // BOND_USDC6_PER_LOT
    assert shard.refuses(lambda: shard.sell(BOB, 100, most + 1)) == Reject.INSUFFICIENT_BOND
    shard.rest(BOB, SELL, 100, most)
    assert shard.refuses(lambda: shard.sell(BOB, 100, 1)) == Reject.INSUFFICIENT_BOND


# --- money in and out ---------------------------------------------------------------------------


def _bought(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    shard.buy(ALICE, 100, 5)


def test_what_was_filled_goes_to_escrow_once_per_batch(shard: Shard) -> None:
    _bought(shard)
    confirm = {"account": ALICE, "client_id": 4, "price_ticks": 200}
    shard.do(CommandKind.CONFIRM_ESCROW, **confirm)
    refused = shard.refuses(lambda: shard.do(CommandKind.CONFIRM_ESCROW, **confirm))
    assert refused == Reject.ESCROW_OUT_OF_ORDER
    money = shard.money(ALICE)
    assert (money["pending_usdc6"], money["escrow_usdc6"]) == (300, 200)
    shard.check()


def test_a_lease_that_is_over_is_no_escrow_and_its_bond_is_free(shard: Shard) -> None:
    _bought(shard)
    shard.do(CommandKind.CONFIRM_ESCROW, account=ALICE, client_id=4, price_ticks=500)
    total, bond = int(shard.state["total_usdc6"][0]), shard.money(BOB)["bond_locked_usdc6"]
    assert bond > 0
    paid = {"account": ALICE, "client_id": 1, "price_ticks": 400}
    [ended] = shard.do(CommandKind.END_LEASES, **paid)
    assert (ended.kind, ended.amount_usdc6, ended.bond_usdc6) == (EventKind.LEASES_ENDED, 400, 0)
    assert shard.money(ALICE)["escrow_usdc6"] == 100
    assert shard.state["total_usdc6"][0] == total - 400, "the vault pays it out, not the exchange"
    again = shard.refuses(lambda: shard.do(CommandKind.END_LEASES, **paid))
    assert again == Reject.END_OUT_OF_ORDER
    before = shard.money(BOB)["bond_free_usdc6"]
    shard.do(CommandKind.END_LEASES, account=BOB, client_id=2, order_id=bond - 1)
    money = shard.money(BOB)
    assert (money["bond_free_usdc6"], money["bond_locked_usdc6"]) == (before + bond - 1, 1)
    shard.check()


def test_a_withdrawal_leaves_once_it_is_confirmed(shard: Shard) -> None:
    [reserved] = shard.do(CommandKind.WITHDRAW, account=ALICE, price_ticks=700)
    assert reserved.reference == shard.sequence
    assert shard.money(ALICE)["leaving_usdc6"] == 700
    total = int(shard.state["total_usdc6"][0])
    confirm = {"account": ALICE, "client_id": reserved.reference, "price_ticks": 700}
    shard.do(CommandKind.CONFIRM_WITHDRAWAL, **confirm)
    assert shard.state["total_usdc6"][0] == total - 700
    assert shard.money(ALICE)["leaving_usdc6"] == 0
    shard.check()


def test_an_account_keeps_the_address_it_was_opened_with(shard: Shard) -> None:
    record = bytearray(Command(kind=CommandKind.OPEN_ACCOUNT, account=9).pack())
    owner = bytes(range(200, 220))
    record[24:44] = owner
    [opened] = shard.do_all([unpack_command(bytes(record))])
    assert opened.owner == owner
    assert shard.state["identities"][0, 9]["owner"].tobytes() == owner


def test_a_deposit_into_no_known_purse_is_cash(shard: Shard) -> None:
    shard.do(
        CommandKind.DEPOSIT, account=ALICE, client_id=shard.deposits + 1, price_ticks=5, side=2
    )
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6 + 5
    shard.check()


def test_all_of_a_free_balance_may_be_withdrawn(shard: Shard) -> None:
    [reserved] = shard.do(CommandKind.WITHDRAW, account=ALICE, price_ticks=CASH_USDC6)
    assert reserved.kind == EventKind.WITHDRAWAL_RESERVED
    assert shard.money(ALICE)["free_usdc6"] == 0


def test_the_largest_and_dearest_order_is_taken(shard: Shard) -> None:
    assert shard.rest(ALICE, BUY, 1, QTY_LOTS_MAX)
    assert shard.rest(ALICE, BUY, PRICE_TICKS_MAX, 1)
    shard.check()


@pytest.mark.parametrize(
    ("counter", "full", "kind", "reject"),
    [
        ("open_orders", OPEN_ORDERS_MAX, CommandKind.NEW_ORDER, Reject.TOO_MANY_OPEN_ORDERS),
        ("leaf_high", LEAVES_MAX - 1, CommandKind.NEW_ORDER, Reject.BOOK_FULL),
        ("nodes_used", NODES_MAX - 8, CommandKind.NEW_ORDER, Reject.BOOK_FULL),
        (
            "capacities_used",
            CAPACITIES_MAX,
            CommandKind.DECLARE_CAPACITY,
            Reject.TOO_MANY_CAPACITIES,
        ),
    ],
)
def test_a_full_exchange_refuses_and_takes_again_when_there_is_room(
    shard: Shard, counter: str, full: int, kind: CommandKind, reject: Reject
) -> None:
    """Put full by hand: four million orders in the specification would take minutes."""
    shard.list_market(9)
    usual = int(shard.state[counter][0])
    command = {"account": ALICE, "instrument": 9, "price_ticks": 5, "qty_lots": 1}
    shard.state[counter] = full
    [refused] = shard.matcher_only(kind, **command)
    assert (refused.kind, refused.reason) == (EventKind.REJECTED, reject)
    shard.state[counter] = usual
    [taken] = shard.matcher_only(kind, **command)
    assert taken.kind != EventKind.REJECTED


def test_one_account_cannot_take_all_the_room(shard: Shard) -> None:
    """Put full by hand; the others trade on, and one place less lets it rest again."""
    order = {"account": ALICE, "instrument": MARKET, "price_ticks": 5, "qty_lots": 1}
    shard.state["resting"][0, ALICE] = ACCOUNT_ORDERS_MAX
    [refused] = shard.matcher_only(CommandKind.NEW_ORDER, **order)
    assert refused.reason == Reject.ACCOUNT_ORDERS_FULL
    [taken] = shard.matcher_only(CommandKind.NEW_ORDER, **(order | {"account": BOB}))
    assert taken.kind == EventKind.ACCEPTED
    shard.state["resting"][0, ALICE] -= 1
    [taken] = shard.matcher_only(CommandKind.NEW_ORDER, **order)
    assert taken.kind == EventKind.ACCEPTED


# --- every refusal ------------------------------------------------------------------------------

Act = Callable[[Shard], list[Event]]


@pytest.fixture(scope="module")
def busy() -> Shard:
    """Account 1 bought for 500 and asked for 700 back; account 2 offers at 100; 4 is closed.

    One for all refusals, because they change nothing.
    """
    shard = Shard()
    shard.rest(BOB, SELL, 100, 10)
    shard.buy(ALICE, 100, 5)
    shard.do(CommandKind.WITHDRAW, account=ALICE, price_ticks=700)
    shard.do(CommandKind.OPEN_ACCOUNT, account=CLOSED)
    shard.do(CommandKind.CLOSE_ACCOUNT, account=CLOSED)
    return shard


CLOSED = 4


def _void(**fields: int) -> Act:
    fill = {"account": ALICE, "order_id": BOB | 1 << 32, "price_ticks": 100, "qty_lots": 5}
    return _any(CommandKind.VOID_FILL, **(fill | fields))


def _of_alice(kind: CommandKind, **fields: int) -> Act:
    return _any(kind, account=ALICE, **fields)


def _new(**fields: int) -> Act:
    order = {"account": ALICE, "price_ticks": 100, "qty_lots": 8}
    return lambda shard: shard.do(CommandKind.NEW_ORDER, **(order | fields))


def _any(kind: int, **fields: int) -> Act:
    return lambda shard: shard.do(kind, **fields)


def _full_exchange(shard: Shard) -> list[Event]:
    room = TOTAL_USDC6_MAX - int(shard.state["total_usdc6"][0])
    for _ in range(room // AMOUNT_USDC6_MAX):
        shard.deposit(ALICE, AMOUNT_USDC6_MAX)
    return shard.deposit(ALICE, room % AMOUNT_USDC6_MAX + 1)


U32_MAX = (1 << 32) - 1
I64_MAX = (1 << 63) - 1
I32_MAX = (1 << 31) - 1
REFUSALS: list[tuple[Reject, Act]] = [
    (Reject.PRICE_OUT_OF_RANGE, _new(price_ticks=0)),
    (Reject.PRICE_OUT_OF_RANGE, _new(price_ticks=-1)),
    (Reject.PRICE_OUT_OF_RANGE, _new(price_ticks=PRICE_TICKS_MAX + 1)),
    (Reject.PRICE_OUT_OF_RANGE, _new(price_ticks=I64_MAX)),
    (Reject.PRICE_OUT_OF_RANGE, _void(price_ticks=0)),
    (Reject.PRICE_OUT_OF_RANGE, _void(price_ticks=PRICE_TICKS_MAX + 1)),
    (Reject.QTY_OUT_OF_RANGE, _new(qty_lots=0)),
    (Reject.QTY_OUT_OF_RANGE, _new(qty_lots=-8)),
    (Reject.QTY_OUT_OF_RANGE, _new(qty_lots=QTY_LOTS_MAX + 1)),
    (Reject.QTY_OUT_OF_RANGE, _new(qty_lots=I32_MAX)),
    (Reject.QTY_OUT_OF_RANGE, lambda s: s.declare(ALICE, MARKET, -1)),
    (Reject.QTY_OUT_OF_RANGE, lambda s: s.declare(ALICE, MARKET, QTY_LOTS_MAX + 1)),
    (Reject.QTY_OUT_OF_RANGE, _void(qty_lots=0)),
    (Reject.QTY_OUT_OF_RANGE, _void(qty_lots=QTY_LOTS_MAX + 1)),
    (Reject.QTY_NOT_A_MULTIPLE, _new(instrument=COARSE_MARKET, qty_lots=12)),
    (Reject.UNKNOWN_ORDER, lambda s: s.cancel(ALICE, 0)),
    (Reject.UNKNOWN_ORDER, lambda s: s.cancel(ALICE, 1 << 24)),
    (Reject.UNKNOWN_ORDER, lambda s: s.cancel(ALICE, (1 << 64) - 1)),
    (Reject.UNKNOWN_COMMAND, _any(0)),
    (Reject.UNKNOWN_COMMAND, _any(255)),
    (Reject.UNKNOWN_COMMAND, _new(side=2)),
    (Reject.UNKNOWN_COMMAND, _new(time_in_force=4)),
    (Reject.UNKNOWN_COMMAND, _new(self_trade=4)),
    (Reject.UNKNOWN_COMMAND, _new(flags=Flag.MARKET, side=2, time_in_force=IOC)),
    (Reject.UNKNOWN_COMMAND, _any(CommandKind.CANCEL_ALL, account=ALICE, flags=3)),
    (Reject.CONFLICTING_FLAGS, _new(flags=3)),
    (Reject.CONFLICTING_FLAGS, _new(flags=Flag.MARKET)),
    (Reject.CONFLICTING_FLAGS, _new(flags=Flag.POST_ONLY, order_id=order_terms(min_lots=1))),
    (Reject.INVALID_TERMS, _new(time_in_force=TimeInForce.GTT)),
    (Reject.INVALID_TERMS, _new(expiry_s=9)),
    (Reject.INVALID_TERMS, _new(order_id=order_terms(display_lots=9))),
    (Reject.INVALID_TERMS, _new(order_id=order_terms(min_lots=9))),
    (Reject.INVALID_TERMS, _new(order_id=order_terms(display_lots=1), time_in_force=IOC)),
    (
        Reject.NOTHING_TO_TRADE_WITH,
        _new(flags=Flag.MARKET, time_in_force=IOC, instrument=COARSE_MARKET),
    ),
    (
        Reject.MINIMUM_NOT_FILLABLE,
        _new(order_id=order_terms(min_lots=8), instrument=COARSE_MARKET),
    ),
    (Reject.UNKNOWN_ORDER, _any(CommandKind.AMEND, account=ALICE, order_id=1 << 24)),
    (Reject.UNKNOWN_ORDER, _any(CommandKind.EXPIRE, account=ALICE, order_id=1)),
    (Reject.CONFLICTING_FLAGS, _new(flags=Flag.POST_ONLY, time_in_force=IOC)),
    (Reject.CONFLICTING_FLAGS, _new(flags=Flag.POST_ONLY, time_in_force=FOK)),
    (Reject.POST_ONLY_WOULD_TRADE, _new(flags=Flag.POST_ONLY)),
    (Reject.FOK_NOT_FILLABLE, _new(qty_lots=6, time_in_force=FOK)),
    (Reject.UNKNOWN_ACCOUNT, _new(account=0)),
    (Reject.UNKNOWN_ACCOUNT, _new(account=8)),
    (Reject.UNKNOWN_ACCOUNT, _new(account=U32_MAX)),
    (Reject.UNKNOWN_ACCOUNT, lambda s: s.deposit(8, 1)),
    (Reject.UNKNOWN_ACCOUNT, lambda s: s.declare(8, MARKET, 1)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.WITHDRAW, account=U32_MAX, price_ticks=1)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.CONFIRM_ESCROW, price_ticks=1, client_id=1)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.CONFIRM_WITHDRAWAL, account=8, price_ticks=1)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.CLOSE_ACCOUNT, account=8)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.REOPEN_ACCOUNT, account=8)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.CONFIRM_EXIT, account=8, price_ticks=1)),
    (Reject.UNKNOWN_ACCOUNT, _void(order_id=8 | 1 << 32)),
    (Reject.ACCOUNT_CLOSED, _new(account=CLOSED)),
    (Reject.ACCOUNT_CLOSED, lambda s: s.declare(CLOSED, MARKET, 1)),
    (Reject.INSUFFICIENT_BALANCE, lambda s: s.buy(ALICE, 1_000_000, CASH_USDC6 // 10**6 + 1)),
    (
        Reject.INSUFFICIENT_BALANCE,
        _any(CommandKind.WITHDRAW, account=ALICE, price_ticks=CASH_USDC6 + 1),
    ),
    (Reject.INSUFFICIENT_CAPACITY, lambda s: s.sell(ALICE, 100, CAPACITY_LOTS + 1)),
    (Reject.AMOUNT_OUT_OF_RANGE, lambda s: s.deposit(ALICE, 0)),
    (Reject.AMOUNT_OUT_OF_RANGE, lambda s: s.deposit(ALICE, AMOUNT_USDC6_MAX + 1)),
    (Reject.AMOUNT_OUT_OF_RANGE, _any(CommandKind.WITHDRAW, account=ALICE)),
    (
        Reject.AMOUNT_OUT_OF_RANGE,
        _any(CommandKind.WITHDRAW, account=ALICE, price_ticks=AMOUNT_USDC6_MAX + 1),
    ),
    (Reject.AMOUNT_OUT_OF_RANGE, _any(CommandKind.CONFIRM_ESCROW, account=ALICE, client_id=1)),
    (Reject.AMOUNT_OUT_OF_RANGE, _any(CommandKind.CONFIRM_WITHDRAWAL, account=ALICE, client_id=9)),
    (Reject.AMOUNT_OUT_OF_RANGE, _any(CommandKind.CONFIRM_EXIT, account=ALICE, client_id=1)),
    (Reject.UNKNOWN_INSTRUMENT, _new(instrument=1)),
    (Reject.UNKNOWN_INSTRUMENT, _new(instrument=U32_MAX)),
    (Reject.UNKNOWN_INSTRUMENT, lambda s: s.declare(ALICE, 1, 1)),
    (Reject.UNKNOWN_INSTRUMENT, _any(CommandKind.HALT_MARKET, instrument=1)),
    (Reject.UNKNOWN_INSTRUMENT, _any(CommandKind.RESUME_MARKET, instrument=INSTRUMENTS_MAX)),
    (Reject.UNKNOWN_INSTRUMENT, _any(CommandKind.CANCEL_ALL, account=ALICE, instrument=1)),
    (Reject.UNKNOWN_INSTRUMENT, _any(CommandKind.CLOSE_MARKET, instrument=1)),
    (Reject.UNKNOWN_INSTRUMENT, _void(instrument=1)),
    (Reject.ALREADY_LISTED, lambda s: s.list_market(MARKET)),
    (Reject.NOT_HALTED, _any(CommandKind.RESUME_MARKET, instrument=MARKET)),
    (Reject.INVALID_LISTING, lambda s: s.list_market(5, order_id=0)),
    (Reject.INVALID_LISTING, lambda s: s.list_market(5, lot_multiple=0)),
    (Reject.INVALID_LISTING, lambda s: s.list_market(5, lot_multiple=QTY_LOTS_MAX + 1)),
    (Reject.INVALID_LISTING, lambda s: s.list_market(5, price_ticks=0)),
    (Reject.INVALID_LISTING, lambda s: s.list_market(5, price_ticks=PRICE_TICKS_MAX + 1)),
    (Reject.ACCOUNT_EXISTS, _any(CommandKind.OPEN_ACCOUNT, account=ALICE, order_id=5)),
    (Reject.DEPOSIT_OUT_OF_ORDER, _any(CommandKind.DEPOSIT, account=ALICE, price_ticks=1)),
    (
        Reject.DEPOSIT_OUT_OF_ORDER,
        _any(CommandKind.DEPOSIT, account=ALICE, price_ticks=1, client_id=8, side=Purse.BOND),
    ),
    (Reject.ESCROW_OUT_OF_ORDER, _of_alice(CommandKind.CONFIRM_ESCROW, price_ticks=1)),
    (
        Reject.ESCROW_EXCEEDS_PENDING,
        _of_alice(CommandKind.CONFIRM_ESCROW, price_ticks=501, client_id=1),
    ),
    (Reject.WITHDRAWAL_OUT_OF_ORDER, _of_alice(CommandKind.CONFIRM_WITHDRAWAL, price_ticks=1)),
    (Reject.WITHDRAWAL_OUT_OF_ORDER, _of_alice(CommandKind.CANCEL_WITHDRAWAL, price_ticks=1)),
    (
        Reject.WITHDRAWAL_EXCEEDS_LEAVING,
        _of_alice(CommandKind.CONFIRM_WITHDRAWAL, price_ticks=701, client_id=99),
    ),
    (Reject.VOID_OUT_OF_ORDER, _void(order_id=BOB)),
    (Reject.VOID_EXCEEDS_FILLS, _void(qty_lots=6)),
    (Reject.VOID_EXCEEDS_FILLS, _void(price_ticks=101)),
    (Reject.VOID_EXCEEDS_FILLS, _void(order_id=CAROL | 1 << 32)),
    (Reject.EXIT_OUT_OF_ORDER, _of_alice(CommandKind.CONFIRM_EXIT, price_ticks=1, client_id=2)),
    (
        Reject.EXIT_EXCEEDS_FREE,
        _of_alice(CommandKind.CONFIRM_EXIT, price_ticks=CASH_USDC6, client_id=1),
    ),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.END_LEASES, account=8, price_ticks=1, client_id=1)),
    (Reject.AMOUNT_OUT_OF_RANGE, _of_alice(CommandKind.END_LEASES, client_id=1)),
    (Reject.AMOUNT_OUT_OF_RANGE, _of_alice(CommandKind.END_LEASES, price_ticks=-1, client_id=1)),
    (
        Reject.AMOUNT_OUT_OF_RANGE,
        _of_alice(CommandKind.END_LEASES, price_ticks=1, order_id=1 << 63, client_id=1),
    ),
    (Reject.END_OUT_OF_ORDER, _of_alice(CommandKind.END_LEASES, price_ticks=1, client_id=2)),
    (Reject.END_OUT_OF_ORDER, _of_alice(CommandKind.END_LEASES, price_ticks=1)),
    (Reject.END_EXCEEDS_LEASES, _of_alice(CommandKind.END_LEASES, price_ticks=1, client_id=1)),
    (Reject.END_EXCEEDS_LEASES, _of_alice(CommandKind.END_LEASES, order_id=1, client_id=1)),
    (Reject.INVALID_FEES, _any(CommandKind.SET_FEES, order_id=2 | 1 << 16)),
    (Reject.INVALID_FEES, _any(CommandKind.SET_FEES, order_id=(FEE_PPM_MAX + 1) << 16)),
    (Reject.INVALID_FEES, _any(CommandKind.SET_FEES, side=FEE_TIERS)),
    (Reject.INVALID_FEES, _any(CommandKind.SET_FEE_TIER, account=ALICE, side=FEE_TIERS)),
    (Reject.INVALID_FEES, _void(expiry_s=FEE_PPM_MAX + 1)),
    (Reject.UNKNOWN_ACCOUNT, _any(CommandKind.SET_FEE_TIER, account=8)),
    (Reject.TOO_MANY_ACCOUNTS, _any(CommandKind.OPEN_ACCOUNT)),
    (Reject.TOO_MANY_ACCOUNTS, _any(CommandKind.OPEN_ACCOUNT, account=1 << 20)),
    (Reject.TOO_MANY_INSTRUMENTS, lambda s: s.list_market(INSTRUMENTS_MAX)),
]
# Shown by a scenario of their own above or below; the three before the legs' are said before
# sequencing.
SHOWN_ELSEWHERE = {
    Reject.ACCOUNT_ORDERS_FULL,
    Reject.INSUFFICIENT_BOND,
    Reject.MARKET_CLOSED,
    Reject.WAITING_NOT_AMENDABLE,
    Reject.CAPACITY_IN_USE,
    Reject.MARKET_HALTED,
    Reject.NOT_OPEN,
    Reject.NOT_IN_A_CALL,
    Reject.OUTSIDE_BAND,
    Reject.NO_CALL,
    Reject.UNCROSSING,
    Reject.INVALID_BANDS,
    Reject.PRICE_NOT_ON_TICK,
    Reject.CLIENT_ID_REUSED,
    Reject.CLIENT_ID_OUT_OF_RANGE,
    # of several legs, in test_compound
    Reject.TOO_MANY_LEGS,
    Reject.INVALID_LEGS,
    Reject.LEGS_NOT_FILLABLE,
    Reject.TOO_DEEP,
    # ... and in test_quotes
    Reject.QUOTED_MARKETS_FULL,
}


@pytest.mark.parametrize(
    ("reject", "act"), REFUSALS, ids=[f"{r.name}-{i}" for i, (r, _) in enumerate(REFUSALS)]
)
def test_a_refusal_has_its_number_and_changes_nothing(
    busy: Shard, reject: Reject, act: Act
) -> None:
    assert busy.refuses(lambda: act(busy)) == reject


def test_every_number_the_kernel_says_has_its_scenario() -> None:
    said_by_matching = {r for r in Reject if 2000 <= r < 6000}
    shown = {reject for reject, _ in REFUSALS} | SHOWN_ELSEWHERE
    assert said_by_matching <= shown


def test_a_market_is_halted_once(shard: Shard) -> None:
    shard.do(CommandKind.HALT_MARKET, instrument=MARKET)
    refused = shard.refuses(lambda: shard.do(CommandKind.HALT_MARKET, instrument=MARKET))
    assert refused == Reject.NOT_OPEN


def test_the_exchange_takes_no_more_than_its_arithmetic_holds(shard: Shard) -> None:
    [refused] = _full_exchange(shard)
    assert refused.reason == Reject.AMOUNT_OUT_OF_RANGE
    shard.check()


# --- orders with terms ----------------------------------------------------------------------------


def _ids(events: list[Event], kind: EventKind = EventKind.ACCEPTED) -> list[int]:
    return [event.order_id for event in events if event.kind == kind]


def test_a_market_order_trades_up_to_its_protection_and_no_further(shard: Shard) -> None:
    for price in (100, 103, 104):
        shard.sell(BOB, price, 10)
    events = shard.do(
        CommandKind.NEW_ORDER,
        account=ALICE,
        side=Side.BUY,
        price_ticks=3,
        qty_lots=30,
        time_in_force=IOC,
        flags=Flag.MARKET,
    )
    assert [e.price_ticks for e in events if e.kind == EventKind.FILL] == [100, 103]
    assert events[0].price_ticks == 103, "the limit it came to"
    assert events[-1].reason == CancelReason.IOC_REMAINDER


def test_an_iceberg_shows_one_clip_which_stands_last_when_it_is_shown_anew(shard: Shard) -> None:
    terms = order_terms(display_lots=4)
    [iceberg] = _ids(
        shard.do(
            CommandKind.NEW_ORDER,
            account=BOB,
            side=Side.SELL,
            price_ticks=100,
            qty_lots=10,
            order_id=terms,
        )
    )
    [other] = _ids(shard.sell(CAROL, 100, 3))
    events = shard.buy(ALICE, 100, 9)
    fills = [(e.counter_order_id, e.qty_lots) for e in events if e.kind == EventKind.FILL]
    assert fills == [(iceberg, 4), (other, 3), (iceberg, 2)]
    assert [e.qty_lots for e in events if e.kind == EventKind.REFRESHED] == [4]


def test_a_minimum_quantity_is_filled_at_once_or_the_order_is_refused(shard: Shard) -> None:
    shard.sell(BOB, 100, 5)
    order = {"account": ALICE, "side": Side.BUY, "price_ticks": 100, "qty_lots": 9}
    refused = shard.do(CommandKind.NEW_ORDER, **order, order_id=order_terms(min_lots=6))
    assert refused[0].reason == Reject.MINIMUM_NOT_FILLABLE
    filled = shard.do(CommandKind.NEW_ORDER, **order, order_id=order_terms(min_lots=5))
    assert [e.qty_lots for e in filled if e.kind == EventKind.FILL] == [5]


def test_less_at_the_same_price_keeps_the_place_and_anything_else_loses_it(shard: Shard) -> None:
    [first] = _ids(shard.sell(BOB, 100, 5))
    [second] = _ids(shard.sell(CAROL, 100, 5))
    shard.do(CommandKind.AMEND, account=BOB, order_id=first, qty_lots=4)
    events = shard.buy(ALICE, 100, 1)
    assert events[-1].counter_order_id == first
    shard.do(CommandKind.AMEND, account=BOB, order_id=first, qty_lots=6)
    events = shard.buy(ALICE, 100, 1)
    assert events[-1].counter_order_id == second


def test_an_amended_price_that_crosses_trades_under_the_same_id(shard: Shard) -> None:
    [bid] = _ids(shard.buy(ALICE, 90, 5))
    shard.sell(BOB, 100, 3)
    events = shard.do(CommandKind.AMEND, account=ALICE, order_id=bid, price_ticks=100)
    assert [EventKind(e.kind) for e in events] == [EventKind.AMENDED, EventKind.FILL]
    assert events[1].order_id == bid
    assert shard.do(CommandKind.CANCEL, account=ALICE, order_id=bid)[0].qty_lots == 2


def test_a_refused_amendment_leaves_the_order_as_it_stood(shard: Shard) -> None:
    [bid] = _ids(shard.buy(ALICE, 90, 5))
    held = shard.reference.balances(ALICE).held_usdc6
    for changes, number in (
        ({"qty_lots": QTY_LOTS_MAX, "price_ticks": 10_000}, Reject.INSUFFICIENT_BALANCE),
        ({"price_ticks": PRICE_TICKS_MAX + 1}, Reject.PRICE_OUT_OF_RANGE),
        ({"qty_lots": -1}, Reject.QTY_OUT_OF_RANGE),
    ):
        [refused] = shard.do(CommandKind.AMEND, account=ALICE, order_id=bid, **changes)
        assert refused.reason == number
    assert shard.reference.balances(ALICE).held_usdc6 == held
    assert shard.do(CommandKind.CANCEL, account=ALICE, order_id=bid)[0].qty_lots == 5


def test_cancel_all_of_one_side_leaves_the_other(shard: Shard) -> None:
    [bid] = _ids(shard.buy(ALICE, 90, 5))
    [ask] = _ids(shard.sell(ALICE, 110, 5))
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, flags=OneSide.SELLS)
    assert _ids(events, EventKind.CANCELLED) == [ask]
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, flags=OneSide.BUYS)
    assert _ids(events, EventKind.CANCELLED) == [bid]
