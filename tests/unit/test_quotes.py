"""Mass quotes: every level of an account in a market replaced by one command, or none."""

from typing import Any, Final

import pytest

from engine.book import SHEETS_MAX
from engine.invariants import check_invariants
from engine.records import (
    ACCOUNT_ORDERS_MAX,
    EFFECTS_MAX,
    OPEN_ORDERS_MAX,
    PARTS_MAX,
    PRICE_TICKS_MAX,
    QUOTED_MARKETS_MAX,
    QUOTES_MAX,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    Purse,
    SelfTrade,
    Side,
    command_array,
    decode_events,
    fee_usdc6,
    order_terms,
)
from engine.rejects import Reject
from tests.shard import (
    ALICE,
    BOB,
    BOND_USDC6_PER_LOT,
    CAPACITY_LOTS,
    CAROL,
    COARSE_MARKET,
    MARKET,
    Shard,
)

BUY, SELL = Side.BUY, Side.SELL
DAVE: Final = 4
Level = dict[str, int]


def bid(price_ticks: int, qty_lots: int = 5, **fields: int) -> Level:
    return {"side": BUY, "price_ticks": price_ticks, "qty_lots": qty_lots} | fields


def ask(price_ticks: int, qty_lots: int = 5, **fields: int) -> Level:
    return {"side": SELL, "price_ticks": price_ticks, "qty_lots": qty_lots} | fields


def quote(shard: Shard, *levels: Level, **fields: Any) -> list[Event]:
    head: dict[str, Any] = {"account": ALICE, "instrument": MARKET} | fields
    return shard.do_several(CommandKind.MASS_QUOTE, levels, **head)


def kinds(events: list[Event]) -> list[EventKind]:
    return [EventKind(e.kind) for e in events]


def ids(events: list[Event]) -> list[int]:
    return [e.order_id for e in events if e.kind == EventKind.ACCEPTED]


def standing(shard: Shard, account: int = ALICE) -> list[tuple[int, int, int]]:
    """(side, price, lots) of each open order of an account, in the order of their placing."""
    mine = [order for order in shard.reference.orders.values() if order.account == account]
    return [(order.side, order.price_ticks, order.left) for order in mine]


@pytest.fixture
def shard() -> Shard:
    return Shard()


# --- what it does -------------------------------------------------------------------------------


def test_the_next_quote_replaces_the_last_one_under_one_answer(shard: Shard) -> None:
    first = quote(shard, bid(99), ask(101, client_id=7), client_id=1)
    assert kinds(first) == [EventKind.QUOTED, EventKind.ACCEPTED, EventKind.ACCEPTED]
    assert (first[0].qty_lots, first[0].client_id, first[2].client_id) == (2, 1, 7)
    head = shard.sequence + 1
    second = quote(shard, bid(98), bid(97), ask(102), client_id=2)
    assert kinds(second) == [
        EventKind.QUOTED,
        *(EventKind.CANCELLED,) * 2,
        *(EventKind.ACCEPTED,) * 3,
    ]
    assert [e.sequence - head for e in second] == [0, 0, 0, 1, 2, 3]
    assert [e.order_id for e in second[1:3]] == ids(first)
    assert {e.reason for e in second[1:3]} == {CancelReason.REPLACED}
    assert standing(shard) == [(BUY, 98, 5), (BUY, 97, 5), (SELL, 102, 5)]
    shard.check()


def test_a_quote_without_levels_pulls_all(shard: Shard) -> None:
    before = shard.money(ALICE)
    quote(shard, bid(99), ask(101))
    kept = shard.rest(ALICE, BUY, 50, 1)
    assert kinds(quote(shard)) == [EventKind.QUOTED, EventKind.CANCELLED, EventKind.CANCELLED]
    assert kinds(quote(shard)) == [EventKind.QUOTED]
    shard.cancel(ALICE, kept)
    assert shard.money(ALICE) == before
    shard.check()


def test_other_orders_markets_and_accounts_keep_their_own(shard: Shard) -> None:
    shard.rest(ALICE, BUY, 90, 1)
    quote(shard, bid(91), account=BOB)
    quote(shard, bid(92, 8), instrument=COARSE_MARKET)
    quote(shard, bid(93))
    assert kinds(quote(shard)) == [EventKind.QUOTED, EventKind.CANCELLED]
    assert standing(shard) == [(BUY, 90, 1), (BUY, 92, 8)]
    assert standing(shard, BOB) == [(BUY, 91, 5)]
    shard.check()


def test_a_quote_that_was_filled_or_cancelled_is_passed_over(shard: Shard) -> None:
    events = quote(shard, bid(99), bid(98), ask(101), ask(102))
    shard.sell(BOB, 99, 5)
    shard.cancel(ALICE, ids(events)[3])
    taken = [shard.rest(CAROL, BUY, 10 + n, 1) for n in range(3)]  # their slots are used again
    assert {order_id & 0xFFFFFF for order_id in taken} & {o & 0xFFFFFF for o in ids(events)}
    replaced = [e for e in quote(shard, bid(97)) if e.kind == EventKind.CANCELLED]
    assert [e.order_id for e in replaced] == ids(events)[1:3]
    assert standing(shard, CAROL) == [(BUY, 10, 1), (BUY, 11, 1), (BUY, 12, 1)]
    shard.check()


def test_an_amended_quote_stays_one(shard: Shard) -> None:
    events = quote(shard, bid(99), ask(101))
    shard.do(CommandKind.AMEND, account=ALICE, order_id=ids(events)[0], price_ticks=98)
    assert standing(shard)[-1] == (BUY, 98, 5)
    replaced = [e.order_id for e in quote(shard) if e.kind == EventKind.CANCELLED]
    assert replaced == ids(events)
    shard.check()


def test_levels_may_trade_and_what_is_left_rests_as_a_quote(shard: Shard) -> None:
    shard.sell(BOB, 100, 3)
    events = quote(shard, bid(100, 5), bid(99, 2))
    assert kinds(events) == [
        EventKind.QUOTED,
        EventKind.ACCEPTED,
        EventKind.FILL,
        EventKind.ACCEPTED,
    ]
    assert standing(shard) == [(BUY, 100, 2), (BUY, 99, 2)]
    assert len(quote(shard)) == 3
    shard.check()


def test_a_level_of_a_session_carries_it_and_is_cancelled_with_it(shard: Shard) -> None:
    quote(shard, bid(99), bid(98), session=9)
    shard.rest(ALICE, BUY, 90, 1)
    events = shard.do(CommandKind.CANCEL_ALL, account=ALICE, instrument=MARKET, session=9)
    assert events[-1].qty_lots == 2
    shard.check()


def test_own_other_orders_meet_a_level_as_its_mode_says(shard: Shard) -> None:
    shard.rest(ALICE, SELL, 100, 4)
    kept = quote(shard, bid(100, 5), self_trade=SelfTrade.CANCEL_MAKER)
    assert EventKind.CANCELLED in kinds(kept) and standing(shard) == [(BUY, 100, 5)]
    shard.check()


def test_as_many_levels_as_there_may_be_are_quoted_twice(shard: Shard) -> None:
    assert QUOTES_MAX == PARTS_MAX
    levels = [bid(1 + 64 * n, 1) for n in range(PARTS_MAX)]
    assert len(quote(shard, *levels)) == 1 + PARTS_MAX
    assert len(quote(shard, *levels)) == 1 + 2 * PARTS_MAX
    shard.check()


def test_what_levels_trigger_comes_last(shard: Shard) -> None:
    shard.do(CommandKind.NEW_STOP, account=CAROL, side=BUY, price_ticks=120, qty_lots=1,
             order_id=100)  # fmt: skip
    shard.sell(BOB, 100, 2)
    shard.sell(BOB, 110, 2)
    head = shard.sequence + 1
    events = quote(shard, bid(100, 2), bid(90, 2))
    assert [e.kind for e in events[-2:]] == [EventKind.TRIGGERED, EventKind.FILL]
    assert events[-1].sequence == head + 2
    shard.check()


def test_a_quote_stays_within_the_effects_of_one_command(shard: Shard) -> None:
    shard.sell(BOB, 100, 9_000, order_id=order_terms(display_lots=1))
    events = quote(shard, bid(100, 8_500), bid(99, 1), ask(150, 1))
    assert len(events) <= EFFECTS_MAX + 8
    [cancelled] = [e for e in events if e.kind == EventKind.CANCELLED]
    assert cancelled.reason == CancelReason.EFFECTS_LIMIT
    assert standing(shard) == [(BUY, 99, 1), (SELL, 150, 1)]
    shard.check()


def test_in_a_call_levels_gather_and_may_be_replaced(shard: Shard) -> None:
    shard.rest(BOB, SELL, 100, 5)
    shard.do(CommandKind.CALL_MARKET, instrument=MARKET)
    assert kinds(quote(shard, bid(105), ask(110))) == [
        EventKind.QUOTED,
        EventKind.ACCEPTED,
        EventKind.ACCEPTED,
    ]
    assert len(quote(shard, bid(104))) == 4
    refused = shard.refuses(lambda: quote(shard, bid(90), flags=Flag.POST_ONLY))
    assert refused == Reject.NOT_IN_A_CALL
    traded = shard.do(CommandKind.UNCROSS_MARKET, instrument=MARKET)
    assert EventKind.FILL in kinds(traded)
    shard.check()


def test_quotes_of_a_halted_market_may_be_pulled_and_not_replaced(shard: Shard) -> None:
    quote(shard, bid(99))
    shard.do(CommandKind.HALT_MARKET, instrument=MARKET)
    assert shard.refuses(lambda: quote(shard, bid(98))) == Reject.MARKET_HALTED
    assert len(quote(shard)) == 2
    shard.check()


# --- all or none --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "fields", "reject"),
    [
        ([bid(99), ask(0)], {}, Reject.PRICE_OUT_OF_RANGE),
        ([bid(99), ask(PRICE_TICKS_MAX + 1)], {}, Reject.PRICE_OUT_OF_RANGE),
        ([bid(99), ask(101, 0)], {}, Reject.QTY_OUT_OF_RANGE),
        ([bid(99, 8), ask(101, 9)], {"instrument": COARSE_MARKET}, Reject.QTY_NOT_A_MULTIPLE),
        ([bid(99), bid(101, side=2)], {}, Reject.UNKNOWN_COMMAND),
        ([bid(99), ask(99)], {}, Reject.INVALID_LEGS),
        ([ask(98), bid(90), bid(99)], {}, Reject.INVALID_LEGS),
        ([bid(99), ask(101, resale=1)], {}, Reject.INVALID_LEGS),
        ([bid(99)], {"instrument": 77}, Reject.UNKNOWN_INSTRUMENT),
        ([], {"instrument": 77}, Reject.UNKNOWN_INSTRUMENT),
        ([], {"account": 77}, Reject.UNKNOWN_ACCOUNT),
        ([bid(99)], {"account": 0}, Reject.UNKNOWN_ACCOUNT),
        ([bid(99)], {"flags": Flag.MARKET}, Reject.UNKNOWN_COMMAND),
        ([bid(99)], {"self_trade": 4}, Reject.UNKNOWN_COMMAND),
        ([ask(101, CAPACITY_LOTS), ask(102, 1)], {}, Reject.INSUFFICIENT_CAPACITY),
        ([bid(99, 10**9), bid(98, 10**9), bid(PRICE_TICKS_MAX - 1, 10**5)], {},
         Reject.INSUFFICIENT_BALANCE),
    ],
)  # fmt: skip
def test_a_quote_with_one_thing_wrong_leaves_the_old_one_as_it_was(
    shard: Shard, levels: list[Level], fields: dict[str, int], reject: Reject
) -> None:
    quote(shard, bid(90), ask(200))
    assert shard.refuses(lambda: quote(shard, *levels, **fields)) == reject
    shard.check()


def test_post_only_refuses_the_whole_quote_if_one_level_would_trade(shard: Shard) -> None:
    shard.sell(BOB, 100, 5)
    post_only = {"flags": Flag.POST_ONLY}
    crossing = (bid(99), bid(100), ask(110))
    refused = shard.refuses(lambda: quote(shard, *crossing, **post_only))
    assert refused == Reject.POST_ONLY_WOULD_TRADE
    assert len(quote(shard, bid(99), ask(110), **post_only)) == 3
    shard.check()


def test_post_only_does_not_count_the_quotes_that_it_replaces(shard: Shard) -> None:
    post_only = {"flags": Flag.POST_ONLY}
    quote(shard, bid(99), ask(101), **post_only)
    assert len(quote(shard, bid(105), ask(106), **post_only)) == 5
    assert len(quote(shard, bid(90), ask(91), **post_only)) == 5
    shard.rest(ALICE, SELL, 95, 1)  # no quote
    refused = shard.refuses(lambda: quote(shard, bid(95), **post_only))
    assert refused == Reject.POST_ONLY_WOULD_TRADE
    shard.check()


def test_what_the_old_quote_holds_pays_for_the_new_one_to_the_last_unit(shard: Shard) -> None:
    shard.do(CommandKind.SET_FEES, side=0, order_id=1_000 << 16)
    shard.do(CommandKind.OPEN_ACCOUNT, account=DAVE, order_id=DAVE << 40)
    one, two = 100_000, 50_000
    need = one + fee_usdc6(one, 1_000) + two + fee_usdc6(two, 1_000)
    shard.deposit(DAVE, need - 1)
    levels = (bid(100, 1_000), bid(50, 1_000))
    refused = shard.refuses(lambda: quote(shard, *levels, account=DAVE))
    assert refused == Reject.INSUFFICIENT_BALANCE
    shard.deposit(DAVE, 1)
    assert len(quote(shard, *levels, account=DAVE)) == 3
    assert len(quote(shard, *levels, account=DAVE)) == 5
    shard.check()


def test_capacity_and_bond_of_old_asks_back_the_new_ones(shard: Shard) -> None:
    shard.do(CommandKind.OPEN_ACCOUNT, account=DAVE, order_id=DAVE << 40)
    shard.deposit(DAVE, 100 * BOND_USDC6_PER_LOT - 1, Purse.BOND)
    shard.declare(DAVE, MARKET, 100)
    levels = (ask(101, 60), ask(102, 40))
    refused = shard.refuses(lambda: quote(shard, *levels, account=DAVE))
    assert refused == Reject.INSUFFICIENT_BOND
    shard.deposit(DAVE, 1, Purse.BOND)
    assert len(quote(shard, *levels, account=DAVE)) == 3
    assert len(quote(shard, ask(99, 1), ask(103, 99), account=DAVE)) == 5
    refused = shard.refuses(lambda: quote(shard, ask(99, 101), account=DAVE))
    assert refused == Reject.INSUFFICIENT_CAPACITY
    shard.check()


def test_an_account_full_of_orders_may_still_replace_its_quotes(shard: Shard) -> None:
    state = shard.state[0]
    quote(shard, bid(99), bid(98))
    state["resting"][ALICE] = ACCOUNT_ORDERS_MAX  # set by hand: as many would take a minute
    more = [Command(kind=CommandKind.PART, **bid(90 + n)) for n in range(3)]
    head: dict[str, int] = {"account": ALICE, "instrument": MARKET}
    events = _kernel_only(shard, Command(kind=CommandKind.MASS_QUOTE, parts=3, **head), *more)
    assert [e.reason for e in events] == [Reject.ACCOUNT_ORDERS_FULL]
    events = _kernel_only(shard, Command(kind=CommandKind.MASS_QUOTE, parts=2, **head), *more[:2])
    assert kinds(events)[0] == EventKind.QUOTED
    state["resting"][ALICE] = 2
    check_invariants(shard.state)


def test_quotes_take_no_slots_where_the_ids_of_all_others_are_used_up(shard: Shard) -> None:
    state = shard.state[0]
    level = Command(kind=CommandKind.PART, **bid(90))
    head = Command(kind=CommandKind.MASS_QUOTE, parts=1, account=ALICE, instrument=MARKET)
    state["orders_retired"] = OPEN_ORDERS_MAX  # set by hand
    events = _kernel_only(shard, head, level)
    assert [e.reason for e in events] == [Reject.TOO_MANY_OPEN_ORDERS]
    state["orders_retired"] = 0
    assert kinds(_kernel_only(shard, head, level))[0] == EventKind.QUOTED


def _kernel_only(shard: Shard, *records: Command) -> list[Event]:
    """Past the specification, which has no such limits."""
    stamped = [r._replace(sequence=shard.sequence + 1 + n) for n, r in enumerate(records)]
    shard.sequence += len(records)
    parts = shard.matcher.match(command_array(stamped))
    return [event for part in parts for event in decode_events(part)]


# --- sheets -------------------------------------------------------------------------------------


def test_an_account_quotes_in_so_many_markets_and_a_pulled_one_makes_room(shard: Shard) -> None:
    markets = range(100, 100 + QUOTED_MARKETS_MAX)
    for market in (*markets, 99):
        shard.list_market(market)
    for market in markets:
        quote(shard, bid(99), instrument=market)
    head = Command(kind=CommandKind.MASS_QUOTE, parts=1, account=ALICE, instrument=99)
    level = Command(kind=CommandKind.PART, **bid(99))
    [refused] = _kernel_only(shard, head, level)
    assert refused.reason == Reject.QUOTED_MARKETS_FULL
    before = int(shard.state["sheet_high"][0])
    _kernel_only(shard, Command(kind=CommandKind.MASS_QUOTE, account=ALICE, instrument=300))
    assert len(_kernel_only(shard, head, level)) == 2
    _kernel_only(shard, Command(kind=CommandKind.CLOSE_MARKET, instrument=301))
    assert len(_kernel_only(shard, head._replace(instrument=MARKET), level)) == 2
    assert shard.state["sheet_high"][0] == before, "sheets are used again"
    check_invariants(shard.state)


def test_the_exchange_has_so_many_sheets(shard: Shard) -> None:
    shard.state["sheet_high"] = SHEETS_MAX - 2
    level = Command(kind=CommandKind.PART, **bid(99))
    head = Command(kind=CommandKind.MASS_QUOTE, parts=1, account=ALICE, instrument=MARKET)
    assert len(_kernel_only(shard, head, level)) == 2
    [refused] = _kernel_only(shard, head._replace(account=BOB), level)
    assert refused.reason == Reject.TOO_MANY_QUOTERS
