"""Stops and all-or-none orders: what wakes them, in which order, and what they hold meanwhile."""

import pytest

from engine.book import NODES_MAX
from engine.invariants import check_invariants
from engine.records import (
    EFFECTS_MAX,
    SECOND_NS,
    WHOLE_LOOKS_MAX,
    WHOLE_MET_MAX,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.rejects import Reject
from tests.shard import ALICE, BOB, BOND_USDC6, CAROL, CASH_USDC6, MARKET, Shard

BUY, SELL = Side.BUY, Side.SELL
IOC, GTC = TimeInForce.IOC, TimeInForce.GTC
POOR = 9


@pytest.fixture
def shard() -> Shard:
    return Shard()


def stop(
    shard: Shard, account: int, side: Side, at: int, limit: int, lots: int, **fields: int
) -> list[Event]:
    return shard.do(
        CommandKind.NEW_STOP,
        account=account,
        side=side,
        order_id=at,
        price_ticks=limit,
        qty_lots=lots,
        **fields,
    )


def waits(
    shard: Shard, account: int, side: Side, at: int, limit: int, lots: int, **fields: int
) -> int:
    """The id of a stop that waits."""
    accepted, waiting = stop(shard, account, side, at, limit, lots, **fields)
    assert (accepted.kind, waiting.kind) == (EventKind.ACCEPTED, EventKind.WAITING)
    assert (waiting.order_id, waiting.stop_ticks) == (accepted.order_id, at)
    return accepted.order_id


def whole(
    shard: Shard, account: int, side: Side, limit: int, lots: int, **fields: int
) -> list[Event]:
    return shard.order(account, side, limit, lots, flags=Flag.ALL_OR_NONE, **fields)


def triggered(events: list[Event]) -> list[int]:
    return [e.order_id for e in events if e.kind == EventKind.TRIGGERED]


def trade_at(shard: Shard, price_ticks: int) -> list[Event]:
    """One lot changes hands between Carol and Bob."""
    shard.rest(CAROL, SELL, price_ticks, 1)
    return shard.buy(BOB, price_ticks, 1, time_in_force=IOC)


# --- stops --------------------------------------------------------------------------------------


def test_a_buy_stop_waits_unseen_until_a_trade_is_at_its_stop(shard: Shard) -> None:
    order = waits(shard, ALICE, BUY, 105, 110, 4)
    assert shard.best(BUY) is None
    assert triggered(trade_at(shard, 104)) == []
    events = trade_at(shard, 105)
    assert triggered(events) == [order]
    assert shard.best(BUY) == 110, "with nobody to trade with it rests at its limit"
    shard.check()


def test_a_sell_stop_waits_for_a_trade_at_its_stop_or_below(shard: Shard) -> None:
    order = waits(shard, ALICE, SELL, 95, 90, 4)
    assert triggered(trade_at(shard, 96)) == []
    assert triggered(trade_at(shard, 94)) == [order]
    shard.check()


def test_a_stop_holds_its_limit_while_it_waits_and_gives_it_back(shard: Shard) -> None:
    bid = waits(shard, ALICE, BUY, 105, 110, 4)
    ask = waits(shard, ALICE, SELL, 95, 90, 4)
    money = shard.money(ALICE)
    assert (money["held_usdc6"], money["bond_held_usdc6"]) == (440, 40)
    for order in (bid, ask):
        [cancelled] = shard.cancel(ALICE, order)
        assert (cancelled.kind, cancelled.qty_lots) == (EventKind.CANCELLED, 4)
    money = shard.money(ALICE)
    assert (money["free_usdc6"], money["bond_free_usdc6"]) == (CASH_USDC6, BOND_USDC6)
    shard.check()


def test_a_market_stop_trades_within_its_protection_and_never_rests(shard: Shard) -> None:
    accepted, _ = stop(shard, ALICE, BUY, 105, 3, 5, flags=Flag.MARKET, time_in_force=IOC)
    assert accepted.price_ticks == 108, "its stop made worse by its protection"
    near, far = shard.rest(CAROL, SELL, 106, 2), shard.rest(CAROL, SELL, 109, 9)
    shard.rest(CAROL, SELL, 105, 1)
    events = shard.buy(BOB, 105, 1)
    made = [e for e in events if e.kind == EventKind.FILL and e.account == ALICE]
    assert [(e.counter_order_id, e.qty_lots) for e in made] == [(near, 2)]
    assert (events[-1].kind, events[-1].reason) == (
        EventKind.CANCELLED, CancelReason.IOC_REMAINDER,
    )  # fmt: skip
    assert shard.cancel(CAROL, far)[0].qty_lots == 9


def test_a_stop_that_the_last_trade_has_reached_works_at_once(shard: Shard) -> None:
    trade_at(shard, 105)
    shard.rest(CAROL, SELL, 106, 2)
    events = stop(shard, ALICE, BUY, 105, 106, 2)
    assert [e.kind for e in events] == [EventKind.ACCEPTED, EventKind.FILL]


def test_a_cascade_runs_in_a_fixed_order_inside_one_command(shard: Shard) -> None:
    """Each stop's own trade is what wakes the next one."""
    for price, lots in ((99, 1), (98, 2), (97, 3), (96, 9)):
        shard.rest(CAROL, BUY, price, lots)
    third = waits(shard, ALICE, SELL, 97, 90, 3)
    first = waits(shard, ALICE, SELL, 99, 90, 2)
    second = waits(shard, ALICE, SELL, 98, 90, 3)
    far = waits(shard, ALICE, SELL, 95, 90, 1)
    events = shard.sell(BOB, 99, 1)
    assert triggered(events) == [first, second, third]
    assert {e.sequence for e in events} == {events[0].sequence}
    takers = [e.order_id for e in events if e.kind == EventKind.FILL][1:]
    assert takers == [first, second, third]
    assert shard.cancel(ALICE, far)[0].kind == EventKind.CANCELLED
    shard.check()


def test_of_one_stop_price_the_oldest_goes_first_and_of_two_sides_too(shard: Shard) -> None:
    fall = waits(shard, ALICE, SELL, 100, 100, 1)
    rise_first = waits(shard, ALICE, BUY, 100, 100, 1, self_trade=SelfTrade.CANCEL_BOTH)
    rise_second = waits(shard, BOB, BUY, 100, 100, 1)
    assert triggered(trade_at(shard, 100)) == [fall, rise_first, rise_second]
    shard.check()


def test_every_price_that_a_sweep_touches_counts(shard: Shard) -> None:
    """From 90 to 110 in one order: the sell stop at 95 saw 90, though the last trade is at 110."""
    shard.rest(CAROL, SELL, 90, 1)
    shard.rest(CAROL, SELL, 110, 1)
    order = waits(shard, ALICE, SELL, 95, 90, 1)
    events = shard.buy(BOB, 110, 2)
    assert triggered(events) == [order]


def test_a_cascade_ends_at_the_limit_and_the_rest_wait_for_the_next_trade(shard: Shard) -> None:
    many = EFFECTS_MAX // 2 + 10
    shard.do_all(
        Command(
            kind=CommandKind.NEW_STOP,
            account=ALICE,
            side=BUY,
            order_id=100,
            price_ticks=100,
            qty_lots=1,
            time_in_force=IOC,
        )
        for _ in range(many)
    )
    events = trade_at(shard, 100)
    assert EFFECTS_MAX - 2 <= len(events) <= EFFECTS_MAX
    done = len(triggered(events))
    assert 0 < done < many
    assert len(triggered(trade_at(shard, 100))) == many - done
    shard.check()


def test_a_stop_for_which_the_books_have_no_room_waits_for_the_next_trade(shard: Shard) -> None:
    for number in range(3):  # each at a price for which a trie needs another node
        waits(shard, ALICE, BUY, 50, 100 + 4096 * number, 1)
    shard.rest(BOB, SELL, 50, 1)
    used = int(shard.state["nodes_used"][0])
    shard.state["nodes_used"] = NODES_MAX - 9  # room for one more price
    events = shard.matcher_only(
        CommandKind.NEW_ORDER, account=CAROL, side=BUY, price_ticks=50, qty_lots=1
    )
    assert [e.price_ticks for e in events if e.kind == EventKind.TRIGGERED] == [100, 4196]
    shard.state["nodes_used"] -= NODES_MAX - 9 - used
    check_invariants(shard.state)


def test_a_stop_that_rests_nowhere_needs_no_room(shard: Shard) -> None:
    for number, lives in enumerate((GTC, GTC, IOC, GTC)):
        waits(shard, ALICE, BUY, 50, 100 + 4096 * number, 1, time_in_force=lives)
    shard.rest(BOB, SELL, 50, 1)
    used = int(shard.state["nodes_used"][0])
    shard.state["nodes_used"] = NODES_MAX - 9
    events = shard.matcher_only(
        CommandKind.NEW_ORDER, account=CAROL, side=BUY, price_ticks=50, qty_lots=1
    )
    assert [e.price_ticks for e in events if e.kind == EventKind.TRIGGERED] == [100, 4196, 8292]
    shard.state["nodes_used"] -= NODES_MAX - 9 - used
    check_invariants(shard.state)


def test_a_stop_that_rests_after_fees_were_raised_holds_no_more_than_it_did(shard: Shard) -> None:
    shard.do(CommandKind.OPEN_ACCOUNT, account=POOR, order_id=POOR << 40)
    shard.deposit(POOR, 100_000)
    waits(shard, POOR, BUY, 50, 100, 1_000)
    assert shard.money(POOR)["free_usdc6"] == 0
    shard.do(CommandKind.SET_FEES, order_id=40_000 | 50_000 << 16)
    shard.rest(ALICE, SELL, 60, 1)
    assert shard.buy(BOB, 60, 1)[-1].kind == EventKind.TRIGGERED
    assert (shard.money(POOR)["free_usdc6"], shard.money(POOR)["held_usdc6"]) == (0, 100_000)
    shard.check()


def test_a_stop_good_till_a_time_expires_while_it_waits(shard: Shard) -> None:
    order = waits(shard, ALICE, BUY, 105, 110, 4, time_in_force=TimeInForce.GTT, expiry_s=1)
    assert shard.refuses(lambda: shard.do(CommandKind.EXPIRE, account=ALICE, order_id=order))
    shard.later_ns = SECOND_NS  # a second passes
    [expired] = shard.do(CommandKind.EXPIRE, account=ALICE, order_id=order)
    assert (expired.kind, expired.reason) == (EventKind.CANCELLED, CancelReason.EXPIRED)
    shard.check()


def test_an_expired_stop_is_cancelled_where_it_would_have_been_triggered(shard: Shard) -> None:
    order = waits(shard, ALICE, BUY, 105, 110, 4, time_in_force=TimeInForce.GTT, expiry_s=1)
    shard.later_ns = SECOND_NS
    events = trade_at(shard, 105)
    assert (events[-1].order_id, events[-1].reason) == (order, CancelReason.EXPIRED)
    assert shard.money(ALICE)["held_usdc6"] == 0


def test_a_triggered_stop_keeps_its_time_and_its_session(shard: Shard) -> None:
    waits(shard, ALICE, BUY, 105, 110, 4, time_in_force=TimeInForce.GTT, expiry_s=9, session=7)
    trade_at(shard, 105)
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=MARKET, session=7)
    assert events[-1].qty_lots == 1


def test_an_order_that_waits_is_not_amended(shard: Shard) -> None:
    order = waits(shard, ALICE, BUY, 105, 110, 4)
    refused = shard.refuses(
        lambda: shard.do(CommandKind.AMEND, account=ALICE, order_id=order, qty_lots=1)
    )
    assert refused == Reject.WAITING_NOT_AMENDABLE


@pytest.mark.parametrize(
    ("fields", "reject"),
    [
        ({"order_id": 0}, Reject.PRICE_OUT_OF_RANGE),
        ({"order_id": 1 << 24}, Reject.PRICE_OUT_OF_RANGE),
        (
            {"price_ticks": -1, "flags": Flag.MARKET, "time_in_force": IOC},
            Reject.PRICE_OUT_OF_RANGE,
        ),
        ({"flags": Flag.MARKET}, Reject.CONFLICTING_FLAGS),
        ({"flags": Flag.POST_ONLY}, Reject.CONFLICTING_FLAGS),
        ({"time_in_force": TimeInForce.FOK}, Reject.CONFLICTING_FLAGS),
        ({"time_in_force": TimeInForce.GTT}, Reject.INVALID_TERMS),
        ({"expiry_s": 7}, Reject.INVALID_TERMS),
        ({"side": 2}, Reject.UNKNOWN_COMMAND),
        ({"self_trade": 4}, Reject.UNKNOWN_COMMAND),
        ({"price_ticks": 1 << 23, "qty_lots": 10**6}, Reject.INSUFFICIENT_BALANCE),
    ],
)
def test_a_contradictory_stop_is_refused(
    shard: Shard, fields: dict[str, int], reject: Reject
) -> None:
    plain = {"account": ALICE, "order_id": 105, "price_ticks": 110, "qty_lots": 4}
    assert shard.refuses(lambda: shard.do(CommandKind.NEW_STOP, **(plain | fields))) == reject


# --- all or none --------------------------------------------------------------------------------


def test_an_all_or_none_order_trades_whole_at_once_if_it_can(shard: Shard) -> None:
    shard.rest(CAROL, SELL, 100, 3)
    shard.rest(CAROL, SELL, 101, 3)
    events = whole(shard, ALICE, BUY, 101, 5)
    assert [e.kind for e in events] == [EventKind.ACCEPTED, EventKind.FILL, EventKind.FILL]


def test_else_it_waits_unseen_until_the_book_can_fill_it_whole(shard: Shard) -> None:
    shard.rest(CAROL, SELL, 100, 3)
    accepted, waiting = whole(shard, ALICE, BUY, 101, 5)
    assert (waiting.kind, waiting.stop_ticks) == (EventKind.WAITING, 0)
    assert (shard.best(BUY), shard.best(SELL)) == (None, 100)
    assert triggered(shard.sell(CAROL, 101, 1)) == []
    events = shard.sell(BOB, 101, 4)
    assert triggered(events) == [accepted.order_id]
    filled = [(e.price_ticks, e.qty_lots) for e in events if e.kind == EventKind.FILL]
    assert filled == [(100, 3), (101, 1), (101, 1)]
    money = shard.money(ALICE)
    assert (money["held_usdc6"], money["pending_usdc6"]) == (0, 502)
    shard.check()


def test_buyers_who_wait_go_before_sellers_and_the_best_limit_first(shard: Shard) -> None:
    low = whole(shard, ALICE, BUY, 100, 5)[0].order_id
    high = whole(shard, BOB, BUY, 101, 5)[0].order_id
    events = shard.sell(CAROL, 100, 11)
    assert triggered(events) == [high, low]
    assert shard.best(SELL) == 100


def test_two_that_wait_do_not_trade_with_each_other(shard: Shard) -> None:
    whole(shard, ALICE, BUY, 101, 5)
    assert [e.kind for e in whole(shard, BOB, SELL, 99, 5)] == [
        EventKind.ACCEPTED, EventKind.WAITING,
    ]  # fmt: skip


def test_one_that_cannot_be_filled_does_not_keep_the_next_from_it(shard: Shard) -> None:
    whole(shard, ALICE, BUY, 101, 50)
    small = whole(shard, BOB, BUY, 100, 2)[0].order_id
    assert triggered(shard.sell(CAROL, 100, 3)) == [small]


def test_only_so_many_are_looked_at_after_one_command(shard: Shard) -> None:
    for _ in range(WHOLE_LOOKS_MAX):
        whole(shard, ALICE, BUY, 101, 50)
    last = whole(shard, BOB, BUY, 100, 2)[0].order_id
    assert triggered(shard.sell(CAROL, 100, 3)) == []
    shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=MARKET)
    assert triggered(shard.sell(CAROL, 100, 1)) == [last]


def test_those_that_wait_look_at_so_many_orders_and_no_more(shard: Shard) -> None:
    bid = Command(kind=CommandKind.NEW_ORDER, account=ALICE, price_ticks=1, qty_lots=1)
    shard.do_all([bid] * WHOLE_MET_MAX)
    for lots in (2 * WHOLE_MET_MAX, WHOLE_MET_MAX + 1):
        shard.sell(BOB, 1, lots, flags=Flag.ALL_OR_NONE)
    [accepted] = shard.buy(CAROL, 1, 1)
    assert accepted.kind == EventKind.ACCEPTED, "the first has looked at all it may"
    shard.check()


@pytest.mark.parametrize(
    ("fields", "reject"),
    [
        ({"time_in_force": IOC}, Reject.CONFLICTING_FLAGS),
        ({"order_id": 1}, Reject.INVALID_TERMS),
        ({"order_id": 1 << 32}, Reject.INVALID_TERMS),
        ({"flags": Flag.ALL_OR_NONE | Flag.POST_ONLY}, Reject.CONFLICTING_FLAGS),
    ],
)
def test_contradictory_terms_are_refused(
    shard: Shard, fields: dict[str, int], reject: Reject
) -> None:
    asked = {"flags": int(Flag.ALL_OR_NONE)} | fields
    assert shard.refuses(lambda: shard.buy(ALICE, 100, 5, **asked)) == reject
