"""Price bands: what is refused outside the static one, and the call where the dynamic one ends."""

import pytest

from engine.records import (
    BAND_PPM_MAX,
    CALL_SECONDS_MAX,
    PRICE_TICKS_MAX,
    SECOND_NS,
    CancelReason,
    CommandKind,
    Event,
    EventKind,
    Flag,
    MarketStatus,
    SelfTrade,
    Side,
    TimeInForce,
    order_terms,
)
from engine.rejects import Reject
from tests.shard import ALICE, BOB, CAROL, MARKET, Shard

BUY, SELL = Side.BUY, Side.SELL
CALL_SECONDS = 30


@pytest.fixture
def shard() -> Shard:
    return Shard()


def set_bands(
    shard: Shard, *, static_ppm: int = 0, dynamic_ppm: int = 0, reference: int = 0, seconds: int = 0
) -> list[Event]:
    return shard.do(
        CommandKind.SET_BANDS,
        order_id=static_ppm | dynamic_ppm << 32,
        price_ticks=reference,
        expiry_s=seconds or (CALL_SECONDS if dynamic_ppm else 0),
    )


def kinds(events: list[Event]) -> list[int]:
    return [event.kind for event in events]


def trade_at(shard: Shard, price: int) -> None:
    shard.sell(CAROL, price, 1)
    shard.buy(BOB, price, 1)


def status(shard: Shard) -> MarketStatus:
    shard.check()
    return shard.reference.books[MARKET].status


# --- the static band ----------------------------------------------------------------------------


def test_a_limit_worse_than_the_static_band_is_refused(shard: Shard) -> None:
    """1.9 % of 1,050 is 19.95: the band's width is 19 ticks, rounded down."""
    [event] = set_bands(shard, static_ppm=19_000, reference=1050)
    assert (event.static_ppm, event.dynamic_ppm, event.price_ticks) == (19_000, 0, 1050)
    assert shard.refuses(lambda: shard.buy(ALICE, 1070, 1)) == Reject.OUTSIDE_BAND
    assert shard.refuses(lambda: shard.sell(BOB, 1030, 1)) == Reject.OUTSIDE_BAND
    shard.rest(ALICE, BUY, 1031, 1)
    order = shard.rest(BOB, SELL, 1069, 1)
    amend = {"account": BOB, "order_id": order, "price_ticks": 1030}
    assert shard.refuses(lambda: shard.do(CommandKind.AMEND, **amend)) == Reject.OUTSIDE_BAND


def test_a_limit_better_than_the_static_band_is_taken(shard: Shard) -> None:
    set_bands(shard, static_ppm=10_000, reference=1000)
    shard.rest(ALICE, BUY, 1, 1)
    shard.rest(BOB, SELL, PRICE_TICKS_MAX, 1)


def test_without_a_reference_price_the_last_trade_is_taken_or_nothing(shard: Shard) -> None:
    assert set_bands(shard, static_ppm=10_000)[0].price_ticks == 0
    trade_at(shard, 5000)
    assert set_bands(shard, static_ppm=10_000)[0].price_ticks == 5000
    assert shard.refuses(lambda: shard.buy(ALICE, 5051, 1)) == Reject.OUTSIDE_BAND
    trade_at(shard, 5050)
    assert set_bands(shard, static_ppm=10_000)[0].price_ticks == 5000, "it stays as it was"


def test_an_auction_gives_the_static_band_its_reference_price(shard: Shard) -> None:
    set_bands(shard, static_ppm=10_000, reference=1000)
    shard.do(CommandKind.CALL_MARKET)
    assert shard.refuses(lambda: shard.buy(ALICE, 1011, 1)) == Reject.OUTSIDE_BAND
    trade_at(shard, 1010)
    shard.do(CommandKind.UNCROSS_MARKET)
    shard.rest(ALICE, BUY, 1020, 1)


def test_bands_that_are_taken_away_hold_nothing(shard: Shard) -> None:
    set_bands(shard, static_ppm=10_000, dynamic_ppm=10_000, reference=1000)
    set_bands(shard)
    assert shard.state["books"][0, MARKET]["rules"] == 0
    shard.sell(BOB, 2000, 1)
    assert kinds(shard.buy(ALICE, 2000, 1)) == [EventKind.ACCEPTED, EventKind.FILL]


IMPOSSIBLE: list[dict[str, int]] = [
    {"order_id": BAND_PPM_MAX + 1},
    {"order_id": (BAND_PPM_MAX + 1) << 32, "expiry_s": 1},
    {"order_id": 1 << 32},  # a dynamic band without a time for its calls
    {"order_id": 1, "expiry_s": CALL_SECONDS_MAX + 1},
    {"price_ticks": -1},
    {"price_ticks": PRICE_TICKS_MAX + 1},
]


@pytest.mark.parametrize("bands", IMPOSSIBLE, ids=str)
def test_bands_that_cannot_be_are_refused(shard: Shard, bands: dict[str, int]) -> None:
    refused = shard.refuses(lambda: shard.do(CommandKind.SET_BANDS, **bands))
    assert refused == Reject.INVALID_BANDS


# --- the dynamic band ---------------------------------------------------------------------------


@pytest.fixture
def banded(shard: Shard) -> Shard:
    """The last trade was at 1,000; two per cent around it may trade."""
    set_bands(shard, dynamic_ppm=20_999)  # 20.999 ticks: 20, rounded down
    trade_at(shard, 1000)
    return shard


def test_an_order_trades_to_the_end_of_the_band_and_what_is_left_joins_the_call(
    banded: Shard,
) -> None:
    for price in (1005, 1020, 1021):
        banded.sell(BOB, price, 2)
    banded.later_ns = 7 * SECOND_NS
    events = banded.buy(ALICE, 1030, 6)
    assert kinds(events) == [
        EventKind.ACCEPTED,
        EventKind.FILL,
        EventKind.FILL,
        EventKind.VOLATILITY_CALL,
    ]
    call = events[-1]
    assert (call.price_ticks, call.qty_lots) == (1020, 2)
    assert call.expiry_s == 8 + CALL_SECONDS, "from the next full second on"
    assert status(banded) is MarketStatus.CALL
    assert (banded.best(BUY), banded.best(SELL)) == (1030, 1021)
    events = banded.do(CommandKind.UNCROSS_MARKET)
    assert kinds(events) == [EventKind.FILL, EventKind.MARKET_UNCROSSED]
    assert events[0].price_ticks == 1021, "the nearest to the last trade, 1,020"
    assert status(banded) is MarketStatus.OPEN


def test_a_sell_calls_the_market_below_the_band(banded: Shard) -> None:
    banded.buy(ALICE, 979, 5)
    events = banded.sell(BOB, 970, 5)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.VOLATILITY_CALL]
    assert (events[1].price_ticks, events[1].side) == (980, SELL)


@pytest.mark.parametrize(
    ("price", "terms"),
    [
        (1030, {"time_in_force": TimeInForce.IOC}),
        (100, {"time_in_force": TimeInForce.IOC, "flags": Flag.MARKET}),
    ],
    ids=["ioc", "market"],
)
def test_what_may_not_rest_is_cancelled_where_the_band_ends(
    banded: Shard, price: int, terms: dict[str, int]
) -> None:
    banded.sell(BOB, 1020, 2)
    banded.sell(BOB, 1021, 2)
    events = banded.buy(ALICE, price, 3, **terms)
    assert kinds(events) == [
        EventKind.ACCEPTED,
        EventKind.FILL,
        EventKind.VOLATILITY_CALL,
        EventKind.CANCELLED,
    ]
    assert (events[-1].reason, events[-1].qty_lots) == (CancelReason.VOLATILITY, 1)
    assert status(banded) is MarketStatus.CALL


def test_what_must_fill_at_once_is_refused_and_calls_nothing(banded: Shard) -> None:
    banded.sell(BOB, 1020, 2)
    banded.sell(BOB, 1021, 2)
    refused = banded.refuses(lambda: banded.buy(ALICE, 1030, 4, time_in_force=TimeInForce.FOK))
    assert refused == Reject.FOK_NOT_FILLABLE
    least = {"order_id": order_terms(min_lots=3)}
    refused = banded.refuses(lambda: banded.buy(ALICE, 1030, 4, **least))
    assert refused == Reject.MINIMUM_NOT_FILLABLE
    events = banded.buy(ALICE, 1030, 4, flags=Flag.ALL_OR_NONE)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.WAITING]
    assert status(banded) is MarketStatus.OPEN


def test_an_order_that_fills_within_the_band_calls_nothing(banded: Shard) -> None:
    banded.sell(BOB, 1020, 2)
    banded.sell(BOB, 1021, 2)
    assert kinds(banded.buy(ALICE, 1030, 2)) == [EventKind.ACCEPTED, EventKind.FILL]
    assert kinds(banded.buy(ALICE, 1030, 2)) == [EventKind.ACCEPTED, EventKind.FILL], "around 1,020"
    assert kinds(banded.buy(ALICE, 1030, 2)) == [EventKind.ACCEPTED]


def test_an_order_that_ends_for_itself_calls_nothing(banded: Shard) -> None:
    banded.sell(ALICE, 1010, 2)
    banded.sell(BOB, 1030, 2)
    events = banded.buy(ALICE, 1040, 2, self_trade=SelfTrade.CANCEL_TAKER)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.CANCELLED]
    assert status(banded) is MarketStatus.OPEN


def test_before_the_first_trade_the_band_lies_around_the_reference_price(shard: Shard) -> None:
    set_bands(shard, dynamic_ppm=20_000, reference=1000)
    shard.sell(BOB, 1021, 1)
    assert kinds(shard.buy(ALICE, 1021, 1))[-1] == EventKind.VOLATILITY_CALL


def test_a_stop_that_wakes_may_call_the_market_and_then_no_other_wakes(banded: Shard) -> None:
    stop = {"account": ALICE, "side": BUY, "price_ticks": 1100, "qty_lots": 1}
    banded.do(CommandKind.NEW_STOP, order_id=1010, **stop)
    banded.do(CommandKind.NEW_STOP, order_id=1015, **stop)
    banded.sell(BOB, 1015, 1)
    banded.sell(BOB, 1050, 2)
    events = banded.buy(CAROL, 1015, 1)
    assert kinds(events) == [
        EventKind.ACCEPTED,
        EventKind.FILL,
        EventKind.TRIGGERED,
        EventKind.VOLATILITY_CALL,
    ]
    events = banded.do(CommandKind.UNCROSS_MARKET)
    assert kinds(events) == [
        EventKind.FILL,
        EventKind.MARKET_UNCROSSED,
        EventKind.TRIGGERED,
        EventKind.FILL,
    ]
    banded.check()


def test_a_call_of_a_market_that_closes_ends_at_the_gate(shard: Shard) -> None:
    hourly = {"instrument": 9}
    shard.list_market(9, expiry_s=20)
    shard.declare(BOB, 9, 10)
    shard.do(
        CommandKind.SET_BANDS, order_id=10 << 32, price_ticks=1000, expiry_s=CALL_SECONDS, **hourly
    )
    shard.sell(BOB, 1021, 1, **hourly)
    assert shard.buy(ALICE, 1021, 1, **hourly)[-1].expiry_s == 20
