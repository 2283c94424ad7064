"""Fees: what they are, who holds them, and where the rounding goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.records import (
    FEE_PPM_MAX,
    PPM,
    CommandKind,
    Event,
    EventKind,
    Flag,
    Side,
    TimeInForce,
    fee_usdc6,
)
from tests.shard import ALICE, BOB, CAROL, CASH_USDC6, MARKET, Shard

BUY, SELL = Side.BUY, Side.SELL
MAKER_PPM, TAKER_PPM = 200, 500


@pytest.fixture
def shard() -> Shard:
    """Tier 0 pays 2 and 5 basis points, tier 1 nothing."""
    shard = Shard()
    set_fees(shard, 0, MAKER_PPM, TAKER_PPM)
    return shard


def set_fees(shard: Shard, tier: int, maker_ppm: int, taker_ppm: int) -> None:
    [event] = shard.do(CommandKind.SET_FEES, side=tier, order_id=maker_ppm | taker_ppm << 16)
    assert (event.kind, event.side) == (EventKind.FEES_SET, tier)
    assert (event.maker_fee_ppm, event.taker_fee_ppm) == (maker_ppm, taker_ppm)


def fills(events: list[Event]) -> list[Event]:
    return [e for e in events if e.kind == EventKind.FILL]


def test_a_fee_is_rounded_down_in_favour_of_who_pays() -> None:
    assert fee_usdc6(1_999, 500) == 0
    assert fee_usdc6(2_000, 500) == 1
    assert fee_usdc6(16_777_214 * 10**9, FEE_PPM_MAX) == 16_777_214 * 10**9 // 20


@given(st.lists(st.integers(1, 10**16), min_size=1, max_size=9), st.integers(0, FEE_PPM_MAX))
def test_the_fees_of_the_parts_are_never_more_than_that_of_the_whole(
    parts: list[int], ppm: int
) -> None:
    whole = fee_usdc6(sum(parts), ppm)
    assert whole - len(parts) < sum(fee_usdc6(part, ppm) for part in parts) <= whole
    assert whole <= sum(parts) * ppm / PPM * 1.0000001


def test_a_buyer_who_takes_pays_the_takers_rate_beyond_the_price(shard: Shard) -> None:
    shard.rest(BOB, SELL, 10_000, 100)
    [fill] = fills(shard.buy(ALICE, 12_000, 100))
    assert (fill.maker_fee_ppm, fill.taker_fee_ppm) == (MAKER_PPM, TAKER_PPM)
    money = shard.money(ALICE)
    assert money["pending_usdc6"] == 1_000_000 + 500
    assert money["free_usdc6"] == CASH_USDC6 - 1_000_500
    assert money["held_usdc6"] == 0
    shard.check()


def test_a_buyer_who_rests_holds_the_makers_rate_and_pays_it(shard: Shard) -> None:
    shard.rest(ALICE, BUY, 10_000, 100)
    assert shard.money(ALICE)["held_usdc6"] == 1_000_200
    [fill] = fills(shard.sell(BOB, 10_000, 50))
    assert (fill.maker_fee_ppm, fill.taker_fee_ppm) == (MAKER_PPM, TAKER_PPM)
    money = shard.money(ALICE)
    assert (money["held_usdc6"], money["pending_usdc6"]) == (500_100, 500_100)
    shard.check()


def test_what_the_rounding_of_partial_fills_leaves_over_is_free_again(shard: Shard) -> None:
    """Three fills of 2,499 at 200 parts per million are 0 each; the whole would have been 1."""
    shard.rest(ALICE, BUY, 2_499, 3)
    assert shard.money(ALICE)["held_usdc6"] == 7_497 + 1
    for _ in range(3):
        shard.sell(BOB, 2_499, 1)
        shard.check()
    money = shard.money(ALICE)
    assert (money["held_usdc6"], money["pending_usdc6"]) == (0, 7_497)
    assert money["free_usdc6"] == CASH_USDC6 - 7_497


def test_an_order_must_be_covered_with_its_fee(shard: Shard) -> None:
    lots = CASH_USDC6 // 1_000_000
    assert shard.buy(ALICE, 1_000_000, lots)[0].kind == EventKind.REJECTED
    set_fees(shard, 0, 0, 0)
    assert shard.buy(ALICE, 1_000_000, lots)[0].kind == EventKind.ACCEPTED


def test_a_resting_order_keeps_the_rate_of_its_entry(shard: Shard) -> None:
    order = shard.rest(ALICE, BUY, 10_000, 100)
    set_fees(shard, 0, 5_000, 9_000)
    [fill] = fills(shard.sell(BOB, 10_000, 50))
    assert (fill.maker_fee_ppm, fill.taker_fee_ppm) == (MAKER_PPM, 9_000)
    shard.cancel(ALICE, order)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6 - 500_100
    shard.check()


def test_an_amended_order_takes_the_rate_of_its_amendment_if_it_loses_its_place(
    shard: Shard,
) -> None:
    order = shard.rest(ALICE, BUY, 10_000, 100)
    set_fees(shard, 0, 1_000, 2_000)
    shard.do(CommandKind.AMEND, account=ALICE, order_id=order, qty_lots=50)
    assert shard.money(ALICE)["held_usdc6"] == 500_100
    shard.do(CommandKind.AMEND, account=ALICE, order_id=order, price_ticks=20_000)
    assert shard.money(ALICE)["held_usdc6"] == 1_001_000
    shard.check()


def test_each_account_pays_by_its_tier(shard: Shard) -> None:
    [event] = shard.do(CommandKind.SET_FEE_TIER, account=CAROL, side=1)
    assert (event.kind, event.account, event.side) == (EventKind.FEE_TIER_SET, CAROL, 1)
    shard.rest(BOB, SELL, 10_000, 100)
    [fill] = fills(shard.buy(CAROL, 10_000, 100))
    assert (fill.maker_fee_ppm, fill.taker_fee_ppm) == (MAKER_PPM, 0)
    assert shard.money(CAROL)["pending_usdc6"] == 1_000_000


def test_an_order_that_waits_holds_a_takers_rate_and_pays_it(shard: Shard) -> None:
    shard.buy(ALICE, 10_000, 100, flags=Flag.ALL_OR_NONE)
    assert shard.money(ALICE)["held_usdc6"] == 1_000_500
    set_fees(shard, 0, 0, 40_000)
    [fill] = fills(shard.sell(BOB, 10_000, 100))
    assert (fill.maker_fee_ppm, fill.taker_fee_ppm) == (0, TAKER_PPM)
    assert shard.money(ALICE)["pending_usdc6"] == 1_000_500
    shard.check()


def test_self_trade_prevention_gives_back_the_fee_of_what_it_takes_off(shard: Shard) -> None:
    shard.rest(ALICE, BUY, 10_000, 100)
    shard.sell(ALICE, 10_000, 40, self_trade=3)
    assert shard.money(ALICE)["held_usdc6"] == 600_120
    shard.check()


def test_a_voided_fill_gives_back_the_fee(shard: Shard) -> None:
    shard.rest(BOB, SELL, 10_000, 100)
    shard.buy(ALICE, 10_000, 100, time_in_force=TimeInForce.IOC)
    void = {"instrument": MARKET, "price_ticks": 10_000, "qty_lots": 100, "expiry_s": TAKER_PPM}
    shard.do(CommandKind.VOID_FILL, account=ALICE, order_id=BOB | 1 << 32, **void)
    assert shard.money(ALICE)["free_usdc6"] == CASH_USDC6
    shard.check()
