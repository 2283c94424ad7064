"""Blocks, exclusives and baskets: what they take, from whom, at what cost, and when not.

The two checks by brute force write every lot of a small book down by itself and know nothing of
how kernel or specification search.
"""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.catalog import load_catalog, unpack_product
from engine.compound import HOUR_WINDOW
from engine.records import (
    BASKET_LEGS_MAX,
    BLOCK_OPERATORS_MAX,
    COMPOUND_LOOKS_MAX,
    EXCLUSIVE_LEGS_MAX,
    PARTS_MAX,
    PRICE_TICKS_MAX,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Flag,
    Purse,
    SelfTrade,
    Side,
    fee_usdc6,
    order_terms,
)
from engine.reference import compound as reference_compound
from engine.rejects import Reject
from tests.shard import ALICE, BOB, BOND_USDC6_PER_LOT, CAROL, CASH_USDC6, MARKET, Shard

NINE_OCLOCK: Final = load_catalog().product("nv.h100-sxm-80g.x8.ib", "us-e", "B", "H", 500_001)
HOURS: Final = (10, 11, 12, 13)  # their markets
LOTS: Final = 10**5
DAVE: Final = 4
TAKER_PPM: Final = 1_000

Leg = dict[str, int]


class HourShard(Shard):
    """Four hours in a row, and a fourth account; takers pay a fee."""

    def __init__(self) -> None:
        super().__init__()
        self.open_account(DAVE)
        for number, hour in enumerate(HOURS):
            self.list_market(hour, order_id=NINE_OCLOCK + number)
            for account in (ALICE, BOB, CAROL, DAVE):
                self.declare(account, hour, LOTS)
        self.do(CommandKind.SET_FEES, side=0, order_id=TAKER_PPM << 16)

    def open_account(self, account: int, cash_usdc6: int = CASH_USDC6) -> None:
        self.do(CommandKind.OPEN_ACCOUNT, account=account, order_id=account << 40)
        self.deposit(account, cash_usdc6)
        self.deposit(account, 10**9, Purse.BOND)

    def block(
        self,
        price_ticks: int,
        qty_lots: int,
        hours: tuple[int, ...] = HOURS[:2],
        dearest: int = 0,
        **fields: int,
    ) -> list[Event]:
        legs = [{"instrument": hour, "price_ticks": dearest} for hour in hours]
        head: dict[str, int] = {
            "account": ALICE,
            "price_ticks": price_ticks,
            "qty_lots": qty_lots,
        }
        return self.do_several(CommandKind.BLOCK, legs, **(head | fields))

    def exclusive(self, *legs: Leg, **fields: Any) -> list[Event]:
        return self.do_several(CommandKind.EXCLUSIVE, legs, **({"account": ALICE} | fields))

    def basket(self, *legs: Leg, **fields: Any) -> list[Event]:
        return self.do_several(CommandKind.BASKET, legs, **({"account": ALICE} | fields))


def leg(instrument: int, price_ticks: int, qty_lots: int, side: Side = Side.BUY) -> Leg:
    return {
        "instrument": instrument,
        "price_ticks": price_ticks,
        "qty_lots": qty_lots,
        "side": side,
    }


def prints(events: list[Event]) -> list[tuple[int, int, int, int]]:
    """(market, seller, price, lots) of each trade."""
    return [
        (e.instrument, e.counter_account, e.price_ticks, e.qty_lots)
        for e in events
        if e.kind == EventKind.FILL
    ]


def kinds(events: list[Event]) -> list[EventKind]:
    return [EventKind(e.kind) for e in events]


@pytest.fixture
def shard() -> HourShard:
    return HourShard()


# --- records that belong together ---------------------------------------------------------------


def test_the_answer_comes_first_and_each_part_speaks_under_its_own_sequence(
    shard: HourShard,
) -> None:
    for hour in HOURS[:2]:
        shard.sell(BOB, 100, 5, instrument=hour)
    head = shard.sequence + 1
    events = shard.block(100, 5, client_id=77)
    assert kinds(events) == [
        EventKind.LEGS_FILLED,
        EventKind.ACCEPTED,
        EventKind.FILL,
        EventKind.ACCEPTED,
        EventKind.FILL,
    ]
    assert [e.sequence for e in events] == [head, head + 1, head + 1, head + 2, head + 2]
    assert (events[0].client_id, events[0].qty_lots) == (77, 2)
    assert events[1].order_id == events[2].order_id
    shard.check()


def test_a_part_without_a_head_is_refused_and_harmless(shard: HourShard) -> None:
    before = shard.rules_hash()
    [event] = shard.do(CommandKind.PART, account=ALICE, instrument=MARKET, qty_lots=5)
    assert (event.kind, event.reason) == (EventKind.REJECTED, Reject.UNKNOWN_COMMAND)
    assert shard.rules_hash() == before


@pytest.mark.parametrize("parts", [1, 3, PARTS_MAX, 255])
@pytest.mark.parametrize("there", [0, 1])
def test_a_head_without_all_its_parts_is_refused_and_each_of_them_alone(
    shard: HourShard, parts: int, there: int
) -> None:
    if there >= parts:
        parts = there + 1
    records = [Command(kind=CommandKind.BASKET, parts=parts, account=ALICE)]
    records += [Command(kind=CommandKind.PART, instrument=MARKET)] * there
    events = shard.do_all(records)
    assert [e.reason for e in events] == [Reject.UNKNOWN_COMMAND] * (1 + there)


def test_a_head_does_not_swallow_the_commands_behind_it(shard: HourShard) -> None:
    order = Command(kind=CommandKind.NEW_ORDER, account=ALICE, price_ticks=5, qty_lots=1)
    part = Command(kind=CommandKind.PART, instrument=MARKET)
    head = Command(kind=CommandKind.BASKET, parts=3, account=ALICE)
    events = shard.do_all([head, part, order, part])
    assert kinds(events) == [
        EventKind.REJECTED,
        EventKind.REJECTED,
        EventKind.ACCEPTED,
        EventKind.REJECTED,
    ]


def test_parts_said_by_a_plain_order_mean_nothing(shard: HourShard) -> None:
    part = Command(kind=CommandKind.PART, instrument=MARKET)
    order = Command(kind=CommandKind.NEW_ORDER, parts=1, account=ALICE, price_ticks=5, qty_lots=1)
    events = shard.do_all([order, part])
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.REJECTED]


def test_commands_of_several_records_may_stand_among_others_in_one_batch(shard: HourShard) -> None:
    sells = [
        Command(kind=CommandKind.NEW_ORDER, account=BOB, side=Side.SELL, price_ticks=7, qty_lots=9,
                instrument=hour)
        for hour in HOURS[:2]
    ]  # fmt: skip
    parts = [
        Command(kind=CommandKind.PART, instrument=hour, price_ticks=7, qty_lots=4)
        for hour in HOURS[:2]
    ]
    head = Command(kind=CommandKind.BASKET, parts=2, account=ALICE)
    events = shard.do_all([*sells, head, *parts, head, *parts, head, *parts, sells[0]])
    assert [e.kind for e in events if e.kind in {EventKind.LEGS_FILLED, EventKind.REJECTED}] == [
        EventKind.LEGS_FILLED,
        EventKind.LEGS_FILLED,
        EventKind.REJECTED,
    ]
    shard.check()


# --- block --------------------------------------------------------------------------------------


def test_the_window_kind_of_a_block_is_the_catalogs_hour() -> None:
    assert load_catalog().window("H").number == HOUR_WINDOW == reference_compound.HOUR_WINDOW
    assert unpack_product(NINE_OCLOCK).window_kind == HOUR_WINDOW


def test_a_block_takes_the_seller_who_is_cheapest_in_total_and_no_other(shard: HourShard) -> None:
    nine, ten = HOURS[:2]
    shard.sell(BOB, 80, 5, instrument=nine)
    shard.sell(BOB, 130, 5, instrument=ten)
    shard.sell(CAROL, 100, 5, instrument=nine)
    shard.sell(CAROL, 105, 5, instrument=ten)
    shard.sell(DAVE, 1, 5, instrument=nine)  # has no second hour
    before = shard.money(ALICE)
    events = shard.block(110, 5)
    assert prints(events) == [(nine, CAROL, 100, 5), (ten, CAROL, 105, 5)]
    cost = 5 * 205 + fee_usdc6(500, TAKER_PPM) + fee_usdc6(525, TAKER_PPM)
    assert events[0].amount_usdc6 == cost
    after = shard.money(ALICE)
    assert after["pending_usdc6"] - before["pending_usdc6"] == cost
    assert before["free_usdc6"] - after["free_usdc6"] == cost
    assert shard.money(CAROL)["bond_locked_usdc6"] == 10 * BOND_USDC6_PER_LOT
    assert shard.best(Side.SELL, nine) == 1
    shard.check()


def test_the_average_may_not_exceed_the_limit_by_a_tick(shard: HourShard) -> None:
    shard.sell(BOB, 80, 5, instrument=HOURS[0])
    shard.sell(BOB, 121, 5, instrument=HOURS[1])
    assert shard.refuses(lambda: shard.block(100, 5)) == Reject.LEGS_NOT_FILLABLE
    assert shard.block(101, 5)[0].kind == EventKind.LEGS_FILLED


def test_of_equal_totals_the_seller_who_came_first_wins(shard: HourShard) -> None:
    shard.sell(CAROL, 100, 5, instrument=HOURS[1])  # the earliest of all
    shard.sell(BOB, 90, 5, instrument=HOURS[0])
    shard.sell(BOB, 110, 5, instrument=HOURS[1])
    shard.sell(CAROL, 100, 5, instrument=HOURS[0])
    assert {seller for _, seller, _, _ in prints(shard.block(100, 5))} == {CAROL}


def test_of_one_sellers_asks_the_cheapest_and_then_the_earliest_go_first(shard: HourShard) -> None:
    nine = HOURS[0]
    first = shard.rest(BOB, Side.SELL, 100, 5, instrument=nine)
    shard.rest(CAROL, Side.SELL, 100, 50, instrument=nine)
    second = shard.rest(BOB, Side.SELL, 100, 5, instrument=nine)
    cheap = shard.rest(BOB, Side.SELL, 95, 5, instrument=nine)
    fills = [e for e in shard.block(200, 12, (nine,)) if e.kind == EventKind.FILL]
    assert [(e.counter_order_id, e.qty_lots) for e in fills] == [
        (cheap, 5),
        (first, 5),
        (second, 2),
    ]
    shard.check()


def test_a_blocks_trades_are_marked_and_move_neither_the_last_price_nor_a_stop(
    shard: HourShard,
) -> None:
    nine = HOURS[0]
    shard.sell(CAROL, 50, 1, instrument=nine)
    shard.buy(ALICE, 50, 1, instrument=nine)
    shard.do(CommandKind.NEW_STOP, account=DAVE, instrument=nine, side=Side.BUY, price_ticks=500,
             qty_lots=1, order_id=90)  # fmt: skip
    shard.sell(BOB, 100, 50, instrument=nine)
    events = shard.block(100, 5, (nine,))
    assert [e.reason for e in events if e.kind == EventKind.FILL] == [FillNote.OFF_QUEUE]
    assert shard.reference.books[nine].last_ticks == 50
    assert EventKind.TRIGGERED not in kinds(events)
    taken = shard.buy(ALICE, 100, 1, instrument=nine)
    assert next(e.reason for e in taken if e.kind == EventKind.FILL) == 0
    assert EventKind.TRIGGERED in kinds(taken)
    shard.check()


def test_only_what_an_iceberg_shows_counts_and_its_next_clip_is_shown(shard: HourShard) -> None:
    nine = HOURS[0]
    shard.sell(BOB, 100, 9, instrument=nine, order_id=order_terms(display_lots=4))
    shard.sell(BOB, 101, 1, instrument=nine)
    assert shard.refuses(lambda: shard.block(200, 6, (nine,))) == Reject.LEGS_NOT_FILLABLE
    events = shard.block(200, 5, (nine,))
    assert prints(events) == [(nine, BOB, 100, 4), (nine, BOB, 101, 1)]
    assert EventKind.REFRESHED in kinds(events)
    assert shard.best(Side.SELL, nine) == 100
    shard.check()


def test_own_and_expired_asks_do_not_count(shard: HourShard) -> None:
    nine = HOURS[0]
    shard.sell(ALICE, 90, 5, instrument=nine)
    shard.sell(BOB, 90, 5, instrument=nine, time_in_force=3, expiry_s=1)
    shard.later_ns = 2 * 10**9
    assert shard.refuses(lambda: shard.block(200, 5, (nine,))) == Reject.LEGS_NOT_FILLABLE
    shard.sell(CAROL, 150, 5, instrument=nine)
    assert prints(shard.block(200, 5, (nine,))) == [(nine, CAROL, 150, 5)]
    shard.check()


def test_hours_that_are_sold_again_are_no_sellers_to_deliver(shard: HourShard) -> None:
    nine = HOURS[0]
    shard.sell(CAROL, 10, 5, instrument=nine)
    shard.buy(BOB, 10, 5, instrument=nine)
    shard.sell(BOB, 20, 5, instrument=nine, resale=1)
    assert shard.refuses(lambda: shard.block(200, 5, (nine,))) == Reject.LEGS_NOT_FILLABLE
    shard.sell(BOB, 30, 5, instrument=nine)
    assert prints(shard.block(200, 5, (nine,))) == [(nine, BOB, 30, 5)]
    shard.sell(ALICE, 40, 5, instrument=nine, resale=1)  # what the block bought
    assert prints(shard.basket(leg(nine, 40, 5), account=DAVE)) == [(nine, BOB, 20, 5)]
    shard.check()


def test_bought_hours_may_be_sold_again_by_a_basket(shard: HourShard) -> None:
    shard.sell(CAROL, 10, 5, instrument=HOURS[1])
    assert shard.block(10, 5, HOURS[1:2])[0].kind == EventKind.LEGS_FILLED
    bid = shard.buy(DAVE, 12, 5, instrument=HOURS[1])
    assert bid[0].kind == EventKind.ACCEPTED
    again = {**leg(HOURS[1], 12, 5, Side.SELL), "resale": 1}
    [said, _, fill] = shard.basket(again)
    assert (said.kind, fill.reason) == (EventKind.LEGS_FILLED, FillNote.RESOLD)
    assert shard.money(ALICE)["bond_locked_usdc6"] == 0
    shard.check()


def test_a_window_may_have_a_dearest_price_of_its_own(shard: HourShard) -> None:
    for hour, price in zip(HOURS[:2], (10, 120), strict=True):
        shard.sell(BOB, price, 5, instrument=hour)
    assert shard.refuses(lambda: shard.block(100, 5, dearest=119)) == Reject.LEGS_NOT_FILLABLE
    assert shard.block(100, 5, dearest=120)[0].qty_lots == 2


@pytest.mark.parametrize(
    "hours",
    [
        (10, 12),  # a gap
        (11, 10),  # backwards
        (10, 10),  # twice the same
        (MARKET,),  # no hour
        (),
    ],
)
def test_the_windows_of_a_block_are_hours_one_after_the_other(
    shard: HourShard, hours: tuple[int, ...]
) -> None:
    for hour in HOURS:
        shard.sell(BOB, 1, 5, instrument=hour)
    assert shard.refuses(lambda: shard.block(100, 5, hours)) == Reject.INVALID_LEGS


def test_the_windows_of_a_block_are_of_one_class_region_and_grade(shard: HourShard) -> None:
    for number, step in enumerate((1 << 32, 1 << 40, 1 << 48)):
        shard.list_market(20 + number, order_id=NINE_OCLOCK + 1 + step)
        hours = (HOURS[0], 20 + number)
        assert shard.refuses(lambda h=hours: shard.block(9, 5, h)) == Reject.INVALID_LEGS


def test_a_block_needs_money_for_its_limit_and_the_fee(shard: HourShard) -> None:
    for hour in HOURS[:2]:
        shard.sell(BOB, 1, 1000, instrument=hour)
    cost = 2 * 1000 * 100
    shard.open_account(5, cost + fee_usdc6(cost, TAKER_PPM) - 1)
    assert shard.refuses(lambda: shard.block(100, 1000, account=5)) == Reject.INSUFFICIENT_BALANCE
    shard.deposit(5, 1)
    assert shard.block(100, 1000, account=5)[0].kind == EventKind.LEGS_FILLED
    shard.check()


@pytest.mark.parametrize(
    ("fields", "reject"),
    [
        ({"price_ticks": 0}, Reject.PRICE_OUT_OF_RANGE),
        ({"price_ticks": PRICE_TICKS_MAX + 1}, Reject.PRICE_OUT_OF_RANGE),
        ({"qty_lots": 0}, Reject.QTY_OUT_OF_RANGE),
        ({"account": 9}, Reject.UNKNOWN_ACCOUNT),
        ({"hours": (10, 99)}, Reject.UNKNOWN_INSTRUMENT),
        ({"dearest": -1}, Reject.PRICE_OUT_OF_RANGE),
        ({"side": Side.SELL}, Reject.INVALID_LEGS),
        ({"self_trade": 9}, Reject.UNKNOWN_COMMAND),
    ],
)
def test_a_block_is_refused_for_what_any_order_is_refused_for(
    shard: HourShard, fields: dict[str, Any], reject: Reject
) -> None:
    terms: dict[str, Any] = {"price_ticks": 100, "qty_lots": 5} | fields
    assert shard.refuses(lambda: shard.block(**terms)) == reject


def test_a_halted_hour_refuses_the_whole_block(shard: HourShard) -> None:
    for hour in HOURS[:2]:
        shard.sell(BOB, 1, 5, instrument=hour)
    shard.do(CommandKind.HALT_MARKET, instrument=HOURS[1])
    assert shard.refuses(lambda: shard.block(100, 5)) == Reject.MARKET_HALTED


def test_a_block_looks_at_so_many_asks_and_no_more(shard: HourShard) -> None:
    nine, ten = HOURS[:2]
    shard.do_all(
        Command(kind=CommandKind.NEW_ORDER, account=BOB, side=Side.SELL, qty_lots=1,
                price_ticks=100 + n // 100, instrument=nine)
        for n in range(COMPOUND_LOOKS_MAX - 1)
    )  # fmt: skip
    shard.sell(BOB, 1, COMPOUND_LOOKS_MAX, instrument=ten)
    events = shard.block(500, 7_500)
    assert len(events) == 1 + 2 + 7_501, "all it needed, in one command"
    shard.sell(BOB, 100, 1, instrument=ten)
    shard.do_all(
        Command(kind=CommandKind.NEW_ORDER, account=BOB, side=Side.SELL, qty_lots=1,
                price_ticks=300, instrument=nine)
        for _ in range(7_500)
    )  # fmt: skip
    assert shard.refuses(lambda: shard.block(500, 5)) == Reject.TOO_DEEP
    assert shard.block(500, 5, dearest=299)[0].kind == EventKind.LEGS_FILLED
    shard.check()


def test_a_block_compares_so_many_sellers_and_no_more(shard: HourShard) -> None:
    nine = HOURS[0]
    for account in range(100, 100 + BLOCK_OPERATORS_MAX):
        shard.open_account(account)
        shard.declare(account, nine, 10)
        shard.sell(account, account, 1, instrument=nine)
    last = 100 + BLOCK_OPERATORS_MAX - 1
    shard.sell(last, last, 1, instrument=nine)
    assert prints(shard.block(last, 2, (nine,))) == [(nine, last, last, 1)] * 2
    for account in (last, 99):
        if account == 99:
            shard.open_account(account)
            shard.declare(account, nine, 10)
        shard.sell(account, 700, 1, instrument=nine)
    assert shard.refuses(lambda: shard.block(900, 1, (nine,))) == Reject.TOO_DEEP
    assert shard.block(900, 1, (nine,), dearest=699)[0].kind == EventKind.LEGS_FILLED


# --- exclusive ----------------------------------------------------------------------------------


def test_an_exclusive_fills_the_leg_with_the_most_surplus_and_no_other(shard: HourShard) -> None:
    for hour, price in zip(HOURS[:3], (100, 90, 95), strict=True):
        shard.sell(BOB, price, 5, instrument=hour)
    events = shard.exclusive(leg(10, 110, 5), leg(11, 110, 5), leg(12, 110, 5), client_id=9)
    assert prints(events) == [(11, BOB, 90, 5)]
    assert kinds(events) == [EventKind.LEGS_FILLED, EventKind.ACCEPTED, EventKind.FILL]
    answer = events[0]
    assert (answer.reason, answer.qty_lots, answer.client_id) == (2, 1, 9)
    assert answer.amount_usdc6 == 450 + fee_usdc6(450, TAKER_PPM)
    assert events[1].sequence == answer.sequence + 2
    shard.check()


def test_of_equal_surpluses_the_earliest_leg_fills(shard: HourShard) -> None:
    for hour in HOURS[:3]:
        shard.sell(BOB, 100, 5, instrument=hour)
    assert prints(shard.exclusive(leg(12, 110, 5), leg(10, 110, 5))) == [(12, BOB, 100, 5)]


def test_surplus_counts_lots_and_not_only_the_price(shard: HourShard) -> None:
    shard.sell(BOB, 100, 5, instrument=10)
    shard.sell(BOB, 105, 50, instrument=11)
    events = shard.exclusive(leg(10, 110, 5), leg(11, 110, 50))
    assert prints(events) == [(11, BOB, 105, 50)]


def test_a_leg_that_cannot_fill_whole_is_no_alternative(shard: HourShard) -> None:
    shard.sell(BOB, 10, 4, instrument=10)
    shard.sell(BOB, 111, 5, instrument=11)
    legs = (leg(10, 110, 5), leg(11, 110, 5))
    assert shard.refuses(lambda: shard.exclusive(*legs)) == Reject.LEGS_NOT_FILLABLE
    shard.sell(CAROL, 110, 5, instrument=12)
    assert prints(shard.exclusive(*legs, leg(12, 110, 5))) == [(12, CAROL, 110, 5)]


@pytest.mark.parametrize(
    ("legs", "reject"),
    [
        ([], Reject.INVALID_LEGS),
        ([leg(10, 110, 5), leg(11, 1, 5, Side.SELL)], Reject.INVALID_LEGS),
        ([leg(10, 110, 5), leg(11, 0, 5)], Reject.PRICE_OUT_OF_RANGE),
        ([leg(10, 110, 5), leg(11, 110, 0)], Reject.QTY_OUT_OF_RANGE),
        ([leg(10, 110, 5), leg(99, 110, 5)], Reject.UNKNOWN_INSTRUMENT),
        ([leg(10, 110, 5), leg(11, PRICE_TICKS_MAX, 10**6)], Reject.INSUFFICIENT_BALANCE),
        ([leg(10, 110, 5)] * (EXCLUSIVE_LEGS_MAX + 1), Reject.TOO_MANY_LEGS),
    ],
)
def test_an_exclusive_is_refused_if_any_leg_is_not_right_in_itself(
    shard: HourShard, legs: list[Leg], reject: Reject
) -> None:
    shard.sell(BOB, 100, 500, instrument=10)
    assert shard.refuses(lambda: shard.exclusive(*legs)) == reject


def test_as_many_legs_as_there_may_be_are_weighed(shard: HourShard) -> None:
    shard.sell(BOB, 100, 5, instrument=10)
    legs = [leg(10, 100 + n, 5) for n in range(EXCLUSIVE_LEGS_MAX)]
    assert shard.exclusive(*legs)[0].reason == EXCLUSIVE_LEGS_MAX


def test_own_orders_are_passed_over_or_end_the_leg_as_the_mode_says(shard: HourShard) -> None:
    own = shard.rest(ALICE, Side.SELL, 90, 5, instrument=10)
    shard.sell(BOB, 100, 5, instrument=10)
    refused = shard.refuses(lambda: shard.exclusive(leg(10, 110, 5)))
    assert refused == Reject.LEGS_NOT_FILLABLE
    events = shard.exclusive(leg(10, 110, 5), self_trade=SelfTrade.CANCEL_MAKER)
    assert prints(events) == [(10, BOB, 100, 5)]
    [cancelled] = [e for e in events if e.kind == EventKind.CANCELLED]
    assert (cancelled.order_id, cancelled.reason) == (own, CancelReason.SELF_TRADE)
    shard.check()


def test_legs_look_at_so_many_orders_and_no_more(shard: HourShard) -> None:
    shard.do_all(
        Command(kind=CommandKind.NEW_ORDER, account=BOB, side=Side.SELL, qty_lots=1,
                price_ticks=100, instrument=10)
        for _ in range(COMPOUND_LOOKS_MAX)
    )  # fmt: skip
    shard.sell(BOB, 100, 5, instrument=11)
    legs = (leg(10, 100, COMPOUND_LOOKS_MAX), leg(11, 100, 5))
    assert shard.refuses(lambda: shard.exclusive(*legs)) == Reject.TOO_DEEP
    assert shard.refuses(lambda: shard.basket(*legs)) == Reject.TOO_DEEP
    assert len(shard.basket(legs[0])) == 2 + COMPOUND_LOOKS_MAX
    shard.check()


def test_the_trades_of_a_leg_trigger_what_waits_for_them_last(shard: HourShard) -> None:
    for hour in HOURS[:2]:
        shard.do(CommandKind.NEW_STOP, account=DAVE, instrument=hour, side=Side.BUY,
                 price_ticks=120, qty_lots=1, order_id=100)  # fmt: skip
        shard.sell(BOB, 100, 5, instrument=hour)
        shard.sell(BOB, 115, 5, instrument=hour)
    head = shard.sequence + 1
    events = shard.basket(leg(10, 110, 5), leg(11, 110, 5))
    assert kinds(events) == [
        EventKind.LEGS_FILLED,
        *(EventKind.ACCEPTED, EventKind.FILL) * 2,
        *(EventKind.TRIGGERED, EventKind.FILL) * 2,
    ]
    assert [e.sequence - head for e in events] == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [e.instrument for e in events[5:]] == [10, 10, 11, 11]
    shard.check()


# --- basket -------------------------------------------------------------------------------------


def test_a_basket_fills_every_leg_on_both_sides(shard: HourShard) -> None:
    shard.sell(BOB, 100, 5, instrument=10)
    shard.sell(CAROL, 101, 5, instrument=10)
    shard.buy(DAVE, 70, 8, instrument=11)
    events = shard.basket(leg(10, 101, 7), leg(11, 70, 8, Side.SELL))
    assert prints(events) == [(10, BOB, 100, 5), (10, CAROL, 101, 2), (11, DAVE, 70, 8)]
    cost = 702 + fee_usdc6(500, TAKER_PPM) + fee_usdc6(202, TAKER_PPM)
    assert (events[0].qty_lots, events[0].amount_usdc6) == (2, cost)
    assert shard.money(ALICE)["pending_usdc6"] == cost
    assert shard.money(ALICE)["bond_locked_usdc6"] == 8 * BOND_USDC6_PER_LOT
    shard.check()


def test_a_basket_of_which_one_leg_cannot_fill_changes_nothing(shard: HourShard) -> None:
    shard.sell(BOB, 100, 5, instrument=10)
    shard.sell(BOB, 100, 4, instrument=11)
    legs = (leg(10, 100, 5), leg(11, 100, 5))
    assert shard.refuses(lambda: shard.basket(*legs)) == Reject.LEGS_NOT_FILLABLE


@pytest.mark.parametrize(
    ("legs", "reject"),
    [
        ([], Reject.INVALID_LEGS),
        ([leg(10, 110, 5), leg(10, 110, 5)], Reject.INVALID_LEGS),
        ([leg(10, 110, 5)] * (BASKET_LEGS_MAX + 1), Reject.TOO_MANY_LEGS),
        ([leg(10, 110, 5), leg(11, 0, 5)], Reject.PRICE_OUT_OF_RANGE),
        ([leg(10, 110, 5), {**leg(11, 5, 5), "side": 2}], Reject.UNKNOWN_COMMAND),
        ([leg(10, 110, 5), leg(11, 5, LOTS + 1, Side.SELL)], Reject.INSUFFICIENT_CAPACITY),
    ],
)
def test_a_basket_is_refused_if_its_legs_are_not_right(
    shard: HourShard, legs: list[Leg], reject: Reject
) -> None:
    shard.sell(BOB, 100, 500, instrument=10)
    assert shard.refuses(lambda: shard.basket(*legs)) == reject


def test_a_basket_needs_money_for_all_its_limits_together(shard: HourShard) -> None:
    for hour in HOURS[:2]:
        shard.sell(BOB, 1, 1000, instrument=hour)
    need = 2 * (100_000 + fee_usdc6(100_000, TAKER_PPM))
    shard.open_account(5, need - 1)
    legs = (leg(10, 100, 1000), leg(11, 100, 1000))
    refused = shard.refuses(lambda: shard.basket(*legs, account=5))
    assert refused == Reject.INSUFFICIENT_BALANCE
    shard.deposit(5, 1)
    assert shard.basket(*legs, account=5)[0].kind == EventKind.LEGS_FILLED
    shard.check()


def test_a_basket_needs_bond_for_all_its_asks_together(shard: HourShard) -> None:
    for hour in HOURS[:2]:
        shard.buy(BOB, 10, 1000, instrument=hour)
    legs = (leg(10, 10, 1000, Side.SELL), leg(11, 10, 1000, Side.SELL))
    for hour in HOURS[2:]:
        shard.sell(ALICE, 500, 49_250, instrument=hour)
    free = shard.money(ALICE)["bond_free_usdc6"]
    spare = free // BOND_USDC6_PER_LOT - 1_999
    shard.declare(ALICE, MARKET, 10**9)
    shard.sell(ALICE, 900, spare, instrument=MARKET)
    assert shard.refuses(lambda: shard.basket(*legs)) == Reject.INSUFFICIENT_BOND
    shard.deposit(ALICE, BOND_USDC6_PER_LOT, Purse.BOND)
    assert len(prints(shard.basket(*legs))) == 2
    shard.check()


def test_a_post_only_ask_is_a_basket_legs_maker_like_any_other(shard: HourShard) -> None:
    shard.sell(BOB, 100, 5, instrument=10, flags=Flag.POST_ONLY)
    assert prints(shard.basket(leg(10, 100, 5))) == [(10, BOB, 100, 5)]


# --- by brute force -----------------------------------------------------------------------------

ASK = st.tuples(
    st.sampled_from(HOURS[:3]),
    st.sampled_from((BOB, CAROL, DAVE)),
    st.integers(1, 4),  # price
    st.integers(1, 4),  # lots
)


def lots_one_by_one(
    asks: list[tuple[int, int, int, int]], hour: int, seller: int = 0
) -> list[tuple[int, int]]:
    """(price, number of its ask) of each single lot in a market, the best first."""
    return sorted(
        (price, number)
        for number, (where, who, price, lots) in enumerate(asks)
        if where == hour and seller in {0, who}
        for _ in range(lots)
    )


def sold(asks: list[tuple[int, int, int, int]]) -> HourShard:
    shard = HourShard()
    for hour, seller, price, lots in asks:
        shard.sell(seller, price, lots, instrument=hour)
    return shard


@given(
    asks=st.lists(ASK, max_size=14),
    lots=st.integers(1, 6),
    limit=st.integers(1, 4),
    windows=st.sampled_from((HOURS[:1], HOURS[:2], HOURS[:3], HOURS[1:3])),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_block_is_what_trying_every_seller_finds(
    asks: list[tuple[int, int, int, int]], lots: int, limit: int, windows: tuple[int, ...]
) -> None:
    shard = sold(asks)
    found: list[tuple[int, int, int]] = []
    for seller in (BOB, CAROL, DAVE):
        taken = [lots_one_by_one(asks, hour, seller)[:lots] for hour in windows]
        single = [lot for hour in taken for lot in hour]
        total = sum(price for price, _ in single)
        if len(single) == lots * len(windows) and total <= limit * lots * len(windows):
            found.append((total, min(number for _, number in single), seller))
    events = shard.block(limit, lots, windows)
    if not found:
        assert [e.reason for e in events] == [Reject.LEGS_NOT_FILLABLE]
        return
    total, _, seller = min(found)
    assert {e.counter_account for e in events if e.kind == EventKind.FILL} == {seller}
    assert sum(price * count for _, _, price, count in prints(events)) == total
    shard.check()


@given(
    asks=st.lists(ASK, max_size=14),
    legs=st.lists(
        st.builds(leg, st.sampled_from(HOURS[:3]), st.integers(1, 5), st.integers(1, 6)),
        min_size=1,
        max_size=5,
    ),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_exclusive_is_what_trying_every_leg_finds(
    asks: list[tuple[int, int, int, int]], legs: list[Leg]
) -> None:
    shard = sold(asks)
    surpluses: list[int] = []
    for each in legs:
        best = lots_one_by_one(asks, each["instrument"])[: each["qty_lots"]]
        fits = len(best) == each["qty_lots"] and best[-1][0] <= each["price_ticks"]
        surpluses.append(sum(each["price_ticks"] - price for price, _ in best) if fits else -1)
    events = shard.exclusive(*legs)
    if max(surpluses) < 0:
        assert [e.reason for e in events] == [Reject.LEGS_NOT_FILLABLE]
        return
    chosen = surpluses.index(max(surpluses))
    assert events[0].reason == chosen + 1
    spent = sum(price * count for _, _, price, count in prints(events))
    assert legs[chosen]["price_ticks"] * legs[chosen]["qty_lots"] - spent == max(surpluses)
    shard.check()
