"""Call auctions: what gathers, the one price at which it trades, and how a call ends."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.records import (
    ALL_INSTRUMENTS,
    AUCTION_ROUNDS_MAX,
    CALL_SECONDS_MAX,
    EFFECTS_MAX,
    INSTRUMENTS_MAX,
    SECOND_NS,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Flag,
    ListingFlag,
    MarketStatus,
    Side,
    TimeInForce,
    order_terms,
)
from engine.rejects import Reject
from tests.shard import ALICE, BOB, BOND_USDC6_PER_LOT, CAROL, CASH_USDC6, MARKET, Shard

BUY, SELL = Side.BUY, Side.SELL
NOBODY = 77
HOURLY = 9


@pytest.fixture
def shard() -> Shard:
    return Shard()


@pytest.fixture
def called(shard: Shard) -> Shard:
    shard.do(CommandKind.CALL_MARKET)
    return shard


def uncross(shard: Shard, instrument: int = MARKET) -> list[Event]:
    events = shard.do(CommandKind.UNCROSS_MARKET, instrument=instrument)
    shard.check()
    return events


def kinds(events: list[Event]) -> list[int]:
    return [event.kind for event in events]


def fills(events: list[Event]) -> list[tuple[int, int, int]]:
    """(taker, price, lots) of each trade."""
    return [(e.order_id, e.price_ticks, e.qty_lots) for e in events if e.kind == EventKind.FILL]


# --- what gathers -------------------------------------------------------------------------------


def test_orders_gather_in_a_call_and_may_cross(called: Shard) -> None:
    bid = called.rest(ALICE, BUY, 110, 5)
    called.rest(BOB, SELL, 100, 5)
    assert (called.best(BUY), called.best(SELL)) == (110, 100)
    called.check()
    [amended] = called.do(CommandKind.AMEND, account=ALICE, order_id=bid, price_ticks=120)
    assert (amended.kind, amended.reason) == (EventKind.AMENDED, 1)
    called.check()
    assert kinds(called.cancel(ALICE, bid)) == [EventKind.CANCELLED]
    assert called.money(ALICE)["free_usdc6"] == CASH_USDC6


AT_ONCE: list[dict[str, int]] = [
    {"time_in_force": TimeInForce.IOC},
    {"time_in_force": TimeInForce.FOK},
    {"flags": Flag.POST_ONLY},
    {"flags": Flag.MARKET, "time_in_force": TimeInForce.IOC},
    {"order_id": order_terms(min_lots=1)},
]


@pytest.mark.parametrize("terms", AT_ONCE, ids=str)
def test_what_must_or_must_not_trade_at_once_is_refused_in_a_call(
    called: Shard, terms: dict[str, int]
) -> None:
    called.sell(BOB, 100, 5)
    refused = called.refuses(lambda: called.buy(ALICE, 100, 5, **terms))
    assert refused == Reject.NOT_IN_A_CALL


def test_an_order_cannot_be_made_post_only_in_a_call(called: Shard) -> None:
    amend = {"account": ALICE, "order_id": called.rest(ALICE, BUY, 100, 5), "price_ticks": 101}
    refused = called.refuses(lambda: called.do(CommandKind.AMEND, flags=Flag.POST_ONLY, **amend))
    assert refused == Reject.NOT_IN_A_CALL


def test_a_stop_waits_through_a_call_and_sees_its_trades(shard: Shard) -> None:
    shard.sell(BOB, 100, 1)
    shard.buy(ALICE, 100, 1)
    shard.do(CommandKind.CALL_MARKET)
    # The last trade has reached its price already, and yet it waits.
    stop = {"account": CAROL, "side": BUY, "price_ticks": 130, "qty_lots": 3}
    assert kinds(shard.do(CommandKind.NEW_STOP, order_id=90, **stop)) == [
        EventKind.ACCEPTED,
        EventKind.WAITING,
    ]
    shard.do(CommandKind.NEW_STOP, order_id=121, **stop)
    shard.buy(ALICE, 120, 5)
    shard.sell(BOB, 110, 5)
    shard.sell(BOB, 125, 9)
    events = uncross(shard)
    assert kinds(events) == [
        EventKind.FILL,
        EventKind.MARKET_UNCROSSED,
        EventKind.TRIGGERED,
        EventKind.FILL,
        EventKind.TRIGGERED,
        EventKind.FILL,
    ]
    assert [price for _, price, _ in fills(events)] == [110, 125, 125]


def test_an_all_or_none_order_waits_through_a_call_and_then_trades_whole(called: Shard) -> None:
    called.sell(BOB, 100, 5)
    events = called.buy(ALICE, 100, 5, flags=Flag.ALL_OR_NONE)
    assert kinds(events) == [EventKind.ACCEPTED, EventKind.WAITING]
    called.buy(CAROL, 99, 1)
    assert called.do(CommandKind.INDICATE_MARKET)[0].volume_lots == 0
    events = uncross(called)
    assert kinds(events) == [EventKind.MARKET_UNCROSSED, EventKind.TRIGGERED, EventKind.FILL]
    assert events[0].price_ticks == 0, "nothing traded in the auction itself"


# --- the price ----------------------------------------------------------------------------------

Levels = list[tuple[int, int]]
HIGHEST = 24
LEVELS = st.lists(st.tuples(st.integers(1, HIGHEST), st.integers(1, 9)), max_size=8)


def tried_one_by_one(bids: Levels, asks: Levels, reference: int) -> tuple[int, int, int]:
    """(price, volume, left over) by trying every price there is."""
    best: list[tuple[int, int, int]] = []
    for price in range(1, HIGHEST + 1):
        wanted = sum(lots for limit, lots in bids if limit >= price)
        offered = sum(lots for limit, lots in asks if limit <= price)
        best.append((-min(wanted, offered), abs(wanted - offered), price))
    volume, left, _ = min(best)
    if volume == 0:
        return 0, 0, 0
    good = [price for v, imbalance, price in best if (v, imbalance) == (volume, left)]
    middle = (good[0] + good[-1]) // 2
    price = min(good, key=lambda price: abs(price - (reference or middle)))
    assert good == list(range(good[0], good[-1] + 1)), "no tie is left after the distance"
    return price, -volume, left


instruments = count(10)
shared: list[Shard] = []


@settings(max_examples=400, deadline=None, derandomize=True)
@given(bids=LEVELS, asks=LEVELS, reference=st.integers(0, HIGHEST), concealed=st.integers(0, 3))
def test_the_price_is_the_one_that_trying_every_price_finds(
    bids: Levels, asks: Levels, reference: int, concealed: int
) -> None:
    if not shared:
        shared.append(Shard())
    shard, instrument = shared[0], next(instruments)
    shard.list_market(instrument)
    for account in (BOB, CAROL):
        shard.declare(account, instrument, 1000)
    shard.do(CommandKind.CALL_MARKET, instrument=instrument)
    shard.do(CommandKind.SET_BANDS, instrument=instrument, price_ticks=reference)
    terms = {"instrument": instrument, "order_id": order_terms(display_lots=concealed)}
    for i in range(max(len(bids), len(asks))):
        for price, lots in bids[i : i + 1]:
            shard.buy(
                ALICE, price, lots, **terms if lots > concealed else {"instrument": instrument}
            )
        for price, lots in asks[i : i + 1]:
            account = (BOB, CAROL)[i % 2]
            shard.sell(
                account, price, lots, **terms if lots > concealed else {"instrument": instrument}
            )
    [indicated] = shard.do(CommandKind.INDICATE_MARKET, instrument=instrument)
    price, volume, left = tried_one_by_one(bids, asks, reference)
    told = (indicated.price_ticks, indicated.volume_lots, indicated.surplus_lots)
    assert told == (price, volume, left)
    events = shard.do(CommandKind.UNCROSS_MARKET, instrument=instrument)
    assert {price for _, price, _ in fills(events)} == ({price} if volume else set[int]())
    assert sum(lots for _, _, lots in fills(events)) == volume
    [done] = [event for event in events if event.kind == EventKind.MARKET_UNCROSSED]
    assert (done.price_ticks, done.volume_lots, done.reason) == (price, volume, 0)
    bid, ask = shard.best(BUY, instrument), shard.best(SELL, instrument)
    assert bid is None or ask is None or bid < ask


def indicate(shard: Shard, bids: Levels, asks: Levels) -> tuple[int, int, int, int]:
    for price, lots in bids:
        shard.buy(ALICE, price, lots)
    for price, lots in asks:
        shard.sell(BOB, price, lots)
    [e] = shard.do(CommandKind.INDICATE_MARKET)
    return e.price_ticks, e.volume_lots, e.surplus_lots, e.side


def test_most_lots_trade(called: Shard) -> None:
    told = indicate(called, [(105, 10), (100, 10)], [(95, 5), (100, 15)])
    assert told == (100, 20, 0, BUY)


def test_of_equal_volumes_the_least_is_left_over(called: Shard) -> None:
    told = indicate(called, [(110, 10), (105, 5)], [(100, 10)])
    assert told == (108, 10, 0, BUY), "in the middle of 106 to 110"


def test_what_is_left_over_has_a_side(called: Shard) -> None:
    assert indicate(called, [(100, 3)], [(100, 10)]) == (100, 3, 7, SELL)


def test_of_equally_good_prices_the_nearest_to_the_last_trade_is_taken(shard: Shard) -> None:
    shard.sell(BOB, 102, 1)
    shard.buy(ALICE, 102, 1)
    shard.do(CommandKind.SET_BANDS, price_ticks=50)
    shard.do(CommandKind.CALL_MARKET)
    assert indicate(shard, [(110, 10)], [(100, 10)])[0] == 102


def test_without_a_trade_the_reference_price_is_the_one_to_be_near(called: Shard) -> None:
    called.do(CommandKind.SET_BANDS, price_ticks=50)
    assert indicate(called, [(110, 10)], [(101, 10)])[0] == 101


def test_without_either_the_middle_is_taken_rounded_down(called: Shard) -> None:
    assert indicate(called, [(110, 10)], [(101, 10)])[0] == 105


def test_an_expired_order_does_not_count_and_is_cancelled_when_it_is_met(called: Shard) -> None:
    gtt = TimeInForce.GTT
    called.buy(ALICE, 110, 7, time_in_force=gtt, expiry_s=1)
    called.sell(BOB, 90, 7, time_in_force=gtt, expiry_s=1)
    called.buy(ALICE, 105, 2)
    called.sell(BOB, 105, 2)
    called.later_ns = SECOND_NS
    [indicated] = called.do(CommandKind.INDICATE_MARKET)
    assert (indicated.price_ticks, indicated.volume_lots) == (105, 2)
    events = uncross(called)
    assert [e.reason for e in events[:2]] == [CancelReason.EXPIRED] * 2
    assert fills(events[2:]) == [(events[2].order_id, 105, 2)]


def test_expired_orders_alone_do_not_keep_a_book_crossed(called: Shard) -> None:
    gtt = TimeInForce.GTT
    called.buy(ALICE, 110, 7, time_in_force=gtt, expiry_s=1)
    called.sell(BOB, 90, 7)
    called.later_ns = SECOND_NS
    events = uncross(called)
    assert kinds(events) == [EventKind.CANCELLED, EventKind.MARKET_UNCROSSED]
    assert events[1].price_ticks == 0


# --- the trades ---------------------------------------------------------------------------------


def test_price_then_time_decides_who_trades_and_the_younger_takes(called: Shard) -> None:
    old_ask = called.rest(BOB, SELL, 100, 4)
    first = called.rest(ALICE, BUY, 100, 3)
    second = called.rest(CAROL, BUY, 100, 3)
    better = called.rest(CAROL, BUY, 101, 2)
    young_ask = called.rest(BOB, SELL, 99, 2)
    events = uncross(called)
    trades = [e for e in events if e.kind == EventKind.FILL]
    # Ties over 99 to 100 cannot be: six lots trade at 100 alone.
    assert [(e.order_id, e.counter_order_id, e.qty_lots) for e in trades] == [
        (young_ask, better, 2),
        (first, old_ask, 3),
        (second, old_ask, 1),
    ]
    assert {e.price_ticks for e in trades} == {100}
    assert [e.side for e in trades] == [SELL, BUY, BUY]
    assert called.best(BUY) == 100


def test_both_sides_pay_what_a_maker_pays_and_what_is_held_beyond_comes_back(
    shard: Shard,
) -> None:
    shard.do(CommandKind.SET_FEES, order_id=333 | 50_000 << 16)
    shard.do(CommandKind.CALL_MARKET)
    shard.buy(ALICE, 1000, 7)
    shard.sell(BOB, 900, 7)
    shard.do(CommandKind.SET_BANDS, price_ticks=903)
    events = uncross(shard)
    [fill] = [e for e in events if e.kind == EventKind.FILL]
    assert (fill.price_ticks, fill.maker_fee_ppm, fill.taker_fee_ppm) == (903, 333, 333)
    paid = 903 * 7 + 903 * 7 * 333 // 10**6
    money = shard.money(ALICE)
    assert (money["pending_usdc6"], money["held_usdc6"]) == (paid, 0)
    assert money["free_usdc6"] == CASH_USDC6 - paid
    assert shard.money(BOB)["bond_locked_usdc6"] == 7 * BOND_USDC6_PER_LOT


def test_an_iceberg_trades_all_it_has_in_its_turn(called: Shard) -> None:
    berg = called.order(BOB, SELL, 100, 50, order_id=order_terms(display_lots=3))[0].order_id
    behind = called.rest(CAROL, SELL, 100, 5)
    called.buy(ALICE, 100, 30)
    called.buy(ALICE, 100, 22)
    events = uncross(called)
    assert kinds(events) == [
        EventKind.REFRESHED,  # it shows the other 27 it is about to trade
        EventKind.FILL,
        EventKind.REFRESHED,  # and then its next clip
        EventKind.FILL,  # it goes whole
        EventKind.FILL,
        EventKind.MARKET_UNCROSSED,
    ]
    assert [e.qty_lots for e in events[:-1]] == [27, 30, 3, 20, 2]
    makers = [e.counter_order_id for e in events if e.kind == EventKind.FILL]
    assert makers == [berg, berg, behind]


def test_hours_bought_in_an_auction_may_be_sold_again_in_another(shard: Shard) -> None:
    week = {"instrument": HOURLY}
    shard.list_market(HOURLY, order_id=2 << 24)
    shard.declare(BOB, HOURLY, 10)
    for seller, buyer, resale in ((BOB, ALICE, 0), (ALICE, CAROL, 1)):
        shard.do(CommandKind.CALL_MARKET, **week)
        shard.buy(buyer, 100, 5, **week)
        shard.sell(seller, 100, 5, resale=resale, **week)
        fill, _ = uncross(shard, HOURLY)
        assert fill.reason == (FillNote.RESOLD if resale else 0)
    assert shard.money(ALICE)["bond_locked_usdc6"] == 0
    refused = shard.refuses(lambda: shard.sell(ALICE, 100, 1, resale=1, **week))
    assert refused == Reject.INSUFFICIENT_CAPACITY, "all are sold"


def test_where_an_account_meets_itself_its_younger_order_is_cancelled(called: Shard) -> None:
    mine = called.rest(ALICE, SELL, 100, 5)
    younger = called.rest(ALICE, BUY, 101, 5)
    called.buy(BOB, 100, 5)
    events = uncross(called)
    assert kinds(events) == [EventKind.CANCELLED, EventKind.FILL, EventKind.MARKET_UNCROSSED]
    assert (events[0].order_id, events[0].reason) == (younger, CancelReason.SELF_TRADE)
    assert events[1].counter_order_id == mine


def test_what_cancelled_orders_leave_crossed_trades_at_another_price(called: Shard) -> None:
    called.sell(ALICE, 80, 10)
    called.buy(ALICE, 100, 10)  # leaves nothing over from 91 to 100, but trades with nobody
    called.buy(BOB, 90, 5)
    called.buy(BOB, 70, 5)
    events = uncross(called)
    assert kinds(events) == [EventKind.CANCELLED, EventKind.FILL, EventKind.MARKET_UNCROSSED]
    assert (events[1].price_ticks, events[2].price_ticks, events[2].volume_lots) == (85, 85, 5)
    assert (called.best(BUY), called.best(SELL)) == (70, 80)


# --- how a call ends ----------------------------------------------------------------------------


def test_after_the_uncross_the_market_is_open_at_the_auction_s_price(called: Shard) -> None:
    called.buy(ALICE, 110, 5)
    called.sell(BOB, 100, 3)
    done = uncross(called)[-1]
    assert (done.kind, done.price_ticks, done.volume_lots) == (EventKind.MARKET_UNCROSSED, 105, 3)
    assert called.reference.books[MARKET].status is MarketStatus.OPEN
    assert called.state["books"][0, MARKET]["last_ticks"] == 105
    assert kinds(called.sell(BOB, 110, 2)) == [EventKind.ACCEPTED, EventKind.FILL]


# An iceberg shows what it is about to trade, trades, and shows its next clip: three events a trade.
TRADES_OF_A_COMMAND = EFFECTS_MAX // 3 + 1


def crowd(shard: Shard, more: int) -> None:
    """A bid for more asks, of two lots each, than one command can let trade."""
    asks = TRADES_OF_A_COMMAND + more
    shard.buy(ALICE, 101, 2 * asks, order_id=order_terms(display_lots=1))
    shard.do_all(
        Command(kind=CommandKind.NEW_ORDER, account=BOB, side=SELL, price_ticks=100, qty_lots=2)
        for _ in range(asks)
    )


def test_an_uncross_of_many_trades_takes_only_cancels_until_it_is_done(called: Shard) -> None:
    crowd(called, 5)
    first = uncross(called)
    volume = 2 * TRADES_OF_A_COMMAND
    assert EFFECTS_MAX < len(first) < EFFECTS_MAX + 4
    assert (first[-1].reason, first[-1].volume_lots) == (CancelReason.EFFECTS_LIMIT, volume)
    refusals: list[Callable[[], list[Event]]] = [
        lambda: called.buy(ALICE, 300, 1),
        lambda: called.do(CommandKind.NEW_STOP, account=ALICE, order_id=9, price_ticks=9),
        lambda: called.do(CommandKind.CALL_MARKET),
    ]
    for act in refusals:
        assert called.refuses(act) == Reject.UNCROSSING
    everything = {"account": BOB, "instrument": ALL_INSTRUMENTS}
    assert called.do(CommandKind.CANCEL_ALL, **everything)[-1].qty_lots == 5
    called.check()
    second = uncross(called)
    assert kinds(second) == [EventKind.MARKET_UNCROSSED], "who cancelled meanwhile is gone"
    assert (second[0].reason, second[0].volume_lots) == (0, volume)


def test_the_second_part_of_an_uncross_keeps_the_price_and_wakes_stops(called: Shard) -> None:
    crowd(called, 5)
    stop = {"account": CAROL, "side": SELL, "price_ticks": 50, "qty_lots": 1, "order_id": 100}
    called.do(CommandKind.NEW_STOP, **stop)
    first, second = uncross(called), uncross(called)
    assert {price for _, price, _ in fills(first + second)} == {100}
    assert kinds(second[-2:]) == [EventKind.MARKET_UNCROSSED, EventKind.TRIGGERED]
    assert second[-2].volume_lots == 2 * TRADES_OF_A_COMMAND + 10


def test_one_command_finds_so_many_prices_and_no_more(called: Shard) -> None:
    """The best bid is cancelled each time, and the next one makes another price."""
    called.sell(ALICE, 1, 10)
    for i in range(AUCTION_ROUNDS_MAX + 2):
        called.buy(ALICE, 100 + 10 * i, 10)
    first, second = uncross(called), uncross(called)
    assert kinds(first[:-1]) == [EventKind.CANCELLED] * AUCTION_ROUNDS_MAX
    assert first[-1].reason == CancelReason.EFFECTS_LIMIT
    assert kinds(second) == [EventKind.CANCELLED] * 2 + [EventKind.MARKET_UNCROSSED]
    assert (second[-1].reason, second[-1].volume_lots) == (0, 0)


def test_a_market_halted_in_a_call_is_in_it_again_when_resumed(called: Shard) -> None:
    called.buy(ALICE, 110, 5)
    called.sell(BOB, 100, 5)
    called.do(CommandKind.HALT_MARKET)
    called.check()
    assert called.refuses(lambda: called.buy(ALICE, 110, 5)) == Reject.MARKET_HALTED
    assert called.refuses(lambda: called.do(CommandKind.UNCROSS_MARKET)) == Reject.NO_CALL
    [resumed] = called.do(CommandKind.RESUME_MARKET)
    assert resumed.reason == 1
    assert len(fills(uncross(called))) == 1


def test_a_halted_market_opens_again_by_an_auction(shard: Shard) -> None:
    shard.do(CommandKind.HALT_MARKET)
    [event] = shard.do(CommandKind.CALL_MARKET, expiry_s=77)
    assert (event.kind, event.expiry_s) == (EventKind.MARKET_CALLED, 77)
    [event] = shard.do(CommandKind.CALL_MARKET, expiry_s=99)
    assert event.expiry_s == 99, "a call may be given another end"
    assert kinds(uncross(shard)) == [EventKind.MARKET_UNCROSSED]


def test_closing_a_market_in_a_call_cancels_what_gathered(called: Shard) -> None:
    called.buy(ALICE, 110, 5)
    called.sell(BOB, 100, 5)
    assert called.do(CommandKind.CLOSE_MARKET)[-1].qty_lots == 2
    called.check()
    for kind in (CommandKind.CALL_MARKET, CommandKind.SET_BANDS):
        assert called.refuses(lambda kind=kind: called.do(kind)) == Reject.MARKET_CLOSED


@pytest.mark.parametrize("kind", [CommandKind.UNCROSS_MARKET, CommandKind.INDICATE_MARKET])
def test_what_is_not_in_a_call_is_not_uncrossed(shard: Shard, kind: CommandKind) -> None:
    assert shard.refuses(lambda: shard.do(kind)) == Reject.NO_CALL


@pytest.mark.parametrize("instrument", [NOBODY, INSTRUMENTS_MAX, (1 << 32) - 1])
def test_a_market_that_does_not_exist_is_not_called(shard: Shard, instrument: int) -> None:
    for kind in (
        CommandKind.CALL_MARKET,
        CommandKind.UNCROSS_MARKET,
        CommandKind.INDICATE_MARKET,
        CommandKind.SET_BANDS,
    ):
        refused = shard.refuses(lambda kind=kind: shard.do(kind, instrument=instrument))
        assert refused == Reject.UNKNOWN_INSTRUMENT


# --- opening and closing ------------------------------------------------------------------------


def opens(opens_s: int, closing_call_s: int = 0) -> int:
    """The bytes of `opens_s` and `closing_call_s`."""
    return opens_s | closing_call_s << 32


def test_a_market_may_be_listed_into_its_opening_call(shard: Shard) -> None:
    [listed] = shard.list_market(
        HOURLY, flags=ListingFlag.OPENING_CALL, client_id=opens(5, 2), expiry_s=9
    )
    assert (listed.opens_s, listed.closing_call_s, listed.closes_s, listed.reason) == (5, 2, 9, 1)
    shard.declare(BOB, HOURLY, 10)
    shard.buy(ALICE, 100, 5, instrument=HOURLY)
    shard.sell(BOB, 100, 5, instrument=HOURLY)
    assert len(fills(uncross(shard, HOURLY))) == 1


IMPOSSIBLE: list[dict[str, int]] = [
    {"flags": 2},
    {"client_id": opens(5)},  # without an opening call
    {"flags": ListingFlag.OPENING_CALL, "client_id": opens(1)},  # in the past
    {"flags": ListingFlag.OPENING_CALL, "client_id": opens(9), "expiry_s": 8},  # after the gate
    {"client_id": opens(0, 5)},  # without a gate
    {"client_id": opens(0, CALL_SECONDS_MAX + 1), "expiry_s": 1 << 20},
]


@pytest.mark.parametrize("listing", IMPOSSIBLE, ids=str)
def test_calls_that_cannot_be_are_not_listed(shard: Shard, listing: dict[str, int]) -> None:
    shard.later_ns = SECOND_NS
    refused = shard.refuses(lambda: shard.list_market(HOURLY, **listing))
    assert refused == Reject.INVALID_LISTING


@pytest.mark.parametrize("until_s", [0, 7, 100])
def test_no_call_is_longer_than_until_the_gate(shard: Shard, until_s: int) -> None:
    shard.list_market(HOURLY, expiry_s=9)
    [event] = shard.do(CommandKind.CALL_MARKET, instrument=HOURLY, expiry_s=until_s)
    assert event.expiry_s == (7 if until_s == 7 else 9)


def test_the_uncross_at_the_gate_is_the_last_that_trades(shard: Shard) -> None:
    shard.list_market(HOURLY, expiry_s=9)
    shard.declare(BOB, HOURLY, 10)
    shard.do(CommandKind.CALL_MARKET, instrument=HOURLY)
    shard.buy(ALICE, 100, 5, instrument=HOURLY)
    stop = {"account": ALICE, "side": BUY, "price_ticks": 130, "qty_lots": 1, "order_id": 90}
    shard.do(CommandKind.NEW_STOP, instrument=HOURLY, **stop)
    shard.sell(BOB, 100, 6, instrument=HOURLY)
    shard.later_ns = 9 * SECOND_NS
    refused = shard.refuses(lambda: shard.do(CommandKind.CALL_MARKET, instrument=HOURLY))
    assert refused == Reject.MARKET_CLOSED
    assert kinds(uncross(shard, HOURLY)) == [EventKind.FILL, EventKind.MARKET_UNCROSSED]
