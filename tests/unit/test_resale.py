"""Hours that were bought and not yet delivered, sold again by their holder."""

import pytest

from engine.records import CancelReason, CommandKind, EventKind, FillNote, Side, TimeInForce
from engine.rejects import Reject
from tests.shard import ALICE, BOB, BOND_USDC6, BOND_USDC6_PER_LOT, CAROL, CASH_USDC6, Shard

BUY, SELL = Side.BUY, Side.SELL
HOUR = 9
HOURLY_PRODUCT = 2 << 24 | 7


@pytest.fixture
def shard() -> Shard:
    """Bob has sold Alice 100 lots of an hour at 50."""
    shard = Shard()
    shard.list_market(HOUR, order_id=HOURLY_PRODUCT)
    for account in (BOB, CAROL):
        shard.declare(account, HOUR, 1_000)
    shard.sell(BOB, 50, 100, instrument=HOUR)
    shard.buy(ALICE, 50, 100, instrument=HOUR)
    return shard


def again(shard: Shard, price_ticks: int, lots: int, **fields: int) -> list[int]:
    events = shard.sell(ALICE, price_ticks, lots, instrument=HOUR, resale=1, **fields)
    return [e.order_id if e.kind == EventKind.ACCEPTED else e.kind for e in events]


def test_a_holder_offers_what_it_bought_without_capacity_or_bond_of_its_own(shard: Shard) -> None:
    again(shard, 70, 60)
    money = shard.money(ALICE)
    assert (money["bond_held_usdc6"], money["bond_free_usdc6"]) == (0, BOND_USDC6)
    events = shard.buy(CAROL, 70, 60, instrument=HOUR)
    fill = events[1]
    assert (fill.kind, fill.counter_account, fill.reason) == (
        EventKind.FILL, ALICE, FillNote.RESOLD,
    )  # fmt: skip
    assert shard.money(CAROL)["pending_usdc6"] == 60 * 70
    shard.check()


def test_the_bond_of_who_delivers_stays_behind_the_hours(shard: Shard) -> None:
    again(shard, 70, 60)
    shard.buy(CAROL, 70, 60, instrument=HOUR)
    assert shard.money(BOB)["bond_locked_usdc6"] == 100 * BOND_USDC6_PER_LOT
    assert shard.money(ALICE)["bond_locked_usdc6"] == 0
    assert shard.money(ALICE)["pending_usdc6"] == 100 * 50, "what she owes is still hers"


def test_nobody_sells_again_more_than_was_bought(shard: Shard) -> None:
    again(shard, 70, 60)
    for lots, expected in ((41, [EventKind.REJECTED]), (40, None)):
        said = again(shard, 71, lots)
        assert expected is None or said == expected
    refused = shard.refuses(lambda: shard.sell(ALICE, 72, 1, instrument=HOUR, resale=1))
    assert refused == Reject.INSUFFICIENT_CAPACITY
    shard.check()


def test_who_buys_hours_that_were_sold_again_may_sell_them_once_more(shard: Shard) -> None:
    again(shard, 70, 60)
    shard.buy(CAROL, 70, 60, instrument=HOUR)
    events = shard.sell(CAROL, 80, 60, instrument=HOUR, resale=1)
    assert events[0].kind == EventKind.ACCEPTED
    refused = shard.refuses(lambda: shard.sell(CAROL, 80, 1, instrument=HOUR, resale=1))
    assert refused == Reject.INSUFFICIENT_CAPACITY


def test_a_cancelled_offer_may_be_made_again(shard: Shard) -> None:
    [order] = again(shard, 70, 100)
    [cancelled] = shard.cancel(ALICE, order)
    assert cancelled.reason == CancelReason.BY_REQUEST
    assert len(again(shard, 70, 100)) == 1
    shard.check()


def test_an_amended_offer_is_still_of_hours_bought(shard: Shard) -> None:
    [order] = again(shard, 70, 50)
    [amended] = shard.do(CommandKind.AMEND, account=ALICE, order_id=order, qty_lots=100)
    assert amended.kind == EventKind.AMENDED
    refused = shard.refuses(
        lambda: shard.do(CommandKind.AMEND, account=ALICE, order_id=order, qty_lots=101)
    )
    assert refused == Reject.INSUFFICIENT_CAPACITY
    assert shard.money(ALICE)["bond_held_usdc6"] == 0
    shard.check()


def test_spot_hours_are_not_sold_again(shard: Shard) -> None:
    shard.sell(BOB, 50, 10)
    shard.buy(ALICE, 50, 10)
    refused = shard.refuses(lambda: shard.sell(ALICE, 70, 1, resale=1))
    assert refused == Reject.INSUFFICIENT_CAPACITY


def test_a_purchase_is_not_a_resale(shard: Shard) -> None:
    refused = shard.refuses(lambda: shard.buy(ALICE, 70, 1, instrument=HOUR, resale=1))
    assert refused == Reject.UNKNOWN_COMMAND


def test_an_offer_that_trades_at_once_pays_no_bond_either(shard: Shard) -> None:
    shard.buy(CAROL, 60, 30, instrument=HOUR)
    said = again(shard, 60, 30, time_in_force=TimeInForce.IOC)
    assert said[1:] == [EventKind.FILL]
    assert shard.money(ALICE)["bond_free_usdc6"] == BOND_USDC6
    shard.check()


def test_a_purchase_whose_hours_are_offered_again_is_not_voided(shard: Shard) -> None:
    void = {"account": ALICE, "instrument": HOUR, "price_ticks": 50, "qty_lots": 100}
    [order] = again(shard, 70, 1)
    refused = shard.refuses(lambda: shard.do(CommandKind.VOID_FILL, order_id=BOB | 1 << 32, **void))
    assert refused == Reject.VOID_EXCEEDS_FILLS
    shard.cancel(ALICE, order)
    [voided] = shard.do(CommandKind.VOID_FILL, order_id=BOB | 1 << 32, **void)
    assert voided.kind == EventKind.FILL_VOIDED
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6
    refused = shard.refuses(lambda: shard.sell(ALICE, 70, 1, instrument=HOUR, resale=1))
    assert refused == Reject.INSUFFICIENT_CAPACITY
    shard.check()


def test_a_voided_resale_gives_the_hours_back_to_who_sold_them(shard: Shard) -> None:
    again(shard, 70, 60)
    shard.buy(CAROL, 70, 60, instrument=HOUR)
    void = {"account": CAROL, "instrument": HOUR, "price_ticks": 70, "qty_lots": 60}
    [voided] = shard.do(CommandKind.VOID_FILL, order_id=ALICE | 1 << 32, resale=1, **void)
    assert voided.kind == EventKind.FILL_VOIDED
    assert len(again(shard, 70, 100)) == 1
    shard.check()
