"""Markets that close for good, and orders that belong to a session."""

import pytest

from engine.records import (
    ALL_INSTRUMENTS,
    EFFECTS_MAX,
    SECOND_NS,
    CancelReason,
    Command,
    CommandKind,
    EventKind,
    Flag,
    Side,
)
from engine.rejects import Reject
from tests.shard import ALICE, BOB, CASH_USDC6, MARKET, Shard

BUY, SELL = Side.BUY, Side.SELL
HOURLY = 9


@pytest.fixture
def shard() -> Shard:
    return Shard()


def test_closing_cancels_what_rests_and_what_waits_and_nothing_comes_any_more(
    shard: Shard,
) -> None:
    shard.rest(ALICE, BUY, 99, 1)
    shard.rest(BOB, SELL, 101, 1)
    shard.do(
        CommandKind.NEW_STOP, account=ALICE, side=BUY, order_id=120, price_ticks=130, qty_lots=2
    )
    shard.buy(ALICE, 100, 3, flags=Flag.ALL_OR_NONE)
    events = shard.do(CommandKind.CLOSE_MARKET, instrument=MARKET)
    assert [e.qty_lots for e in events[:-1]] == [1, 1, 2, 3]
    assert {e.reason for e in events[:-1]} == {CancelReason.MARKET_CLOSED}
    assert (events[-1].kind, events[-1].qty_lots) == (EventKind.MARKET_CLOSED, 4)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6
    for act in (
        lambda: shard.buy(ALICE, 99, 1),
        lambda: shard.do(
            CommandKind.NEW_STOP, account=ALICE, order_id=9, price_ticks=9, qty_lots=1
        ),
    ):
        assert shard.refuses(act) == Reject.MARKET_CLOSED
    refused = shard.refuses(lambda: shard.do(CommandKind.RESUME_MARKET, instrument=MARKET))
    assert refused == Reject.NOT_HALTED
    [again] = shard.do(CommandKind.CLOSE_MARKET, instrument=MARKET)
    assert (again.kind, again.qty_lots, again.reason) == (EventKind.MARKET_CLOSED, 0, 0)
    shard.check()


def test_a_market_of_many_orders_closes_in_several_commands(shard: Shard) -> None:
    shard.do_all(
        Command(kind=CommandKind.NEW_ORDER, account=ALICE, side=BUY, price_ticks=9, qty_lots=1)
        for _ in range(EFFECTS_MAX + 1)
    )
    events = shard.do(CommandKind.CLOSE_MARKET, instrument=MARKET)
    assert (events[-1].qty_lots, events[-1].reason) == (EFFECTS_MAX, CancelReason.EFFECTS_LIMIT)
    events = shard.do(CommandKind.CLOSE_MARKET, instrument=MARKET)
    assert (events[-1].qty_lots, events[-1].reason) == (1, 0)


def test_no_order_comes_after_the_gate_even_before_the_market_is_closed(shard: Shard) -> None:
    [listed] = shard.list_market(HOURLY, expiry_s=1)
    assert listed.closes_s == 1
    order = shard.buy(ALICE, 9, 1, instrument=HOURLY)[0].order_id
    shard.later_ns = SECOND_NS
    refused = shard.refuses(lambda: shard.buy(ALICE, 9, 1, instrument=HOURLY))
    assert refused == Reject.MARKET_CLOSED
    assert shard.cancel(ALICE, order)[0].kind == EventKind.CANCELLED


def test_a_market_is_not_listed_with_a_gate_that_is_shut(shard: Shard) -> None:
    shard.later_ns = SECOND_NS
    refused = shard.refuses(lambda: shard.list_market(HOURLY, expiry_s=1))
    assert refused == Reject.INVALID_LISTING


def test_the_orders_of_a_session_are_cancelled_apart_from_others(shard: Shard) -> None:
    for session in (0, 3, 4, 3):
        [accepted] = shard.buy(ALICE, 9, 1, session=session)
        assert accepted.session == session
    shard.buy(BOB, 9, 1, session=3)
    of_three = {"account": ALICE, "instrument": ALL_INSTRUMENTS, "session": 3}
    assert shard.do(CommandKind.CANCEL_ALL, **of_three)[-1].qty_lots == 2
    every = {"account": ALICE, "instrument": ALL_INSTRUMENTS}
    assert shard.do(CommandKind.CANCEL_ALL, **every)[-1].qty_lots == 2
    shard.check()
