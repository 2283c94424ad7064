"""The spot index: equal to a slow, obvious second version, and never fresher than it says."""

import hashlib
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import load_catalog
from engine.index import (
    HOUR_PARTITION_NS,
    PRINT_LOTS_MIN,
    IndexValue,
    Print,
    SpotIndex,
    merkle_root,
    weighted_median,
)
from engine.records import Event, EventKind, Side

CATALOG = load_catalog()
SPOT = CATALOG.parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
OTHER_SPOT = CATALOG.parse("nv.rtx4090-24g.x1|eu-n|C|SPOT")
HOURLY = CATALOG.parse("nv.h100-sxm-80g.x8.ib|us-e|B|H|2026-12-01T14")
HOUR_NS = 12 * HOUR_PARTITION_NS
DAY_NS = 24 * HOUR_NS
START_NS = 1_795_219_200 * 1_000_000_000  # 2026-11-21T00:00 UTC
assert START_NS % DAY_NS == 0


def listed(instrument: int, product: int) -> Event:
    return Event(
        1, START_NS, product, 0, 0, 8, 0, 0, 0, 0, instrument, EventKind.MARKET_LISTED, 0, 0
    )


def fill(
    time_ns: int,
    price_ticks: int,
    qty_lots: int = 1000,
    buyer: int = 1,
    seller: int = 2,
    instrument: int = 1,
    taker: Side = Side.BUY,
) -> Event:
    account, counter = (buyer, seller) if taker == Side.BUY else (seller, buyer)
    return Event(
        9, time_ns, 5, 6, price_ticks, qty_lots, 0, 0, account, counter, instrument,
        EventKind.FILL, taker, 0,
    )  # fmt: skip


def index_of(*fills: Event) -> SpotIndex:
    index = SpotIndex(CATALOG)
    index.apply([listed(1, SPOT), listed(2, HOURLY), listed(3, OTHER_SPOT), *fills], 1)
    return index


def one(index: SpotIndex, now_ns: int) -> IndexValue:
    (value,) = index.values(now_ns)
    return value


def broad_hour(price_ticks: int = 20_000) -> list[Event]:
    """Six partitions, three buyers, three sellers: just enough for A."""
    return [
        fill(START_NS + i * HOUR_PARTITION_NS, price_ticks + i, buyer=1 + i % 3, seller=4 + i % 3)
        for i in range(6)
    ]


# --- a second version, from the words, with exact fractions -------------------------------------
def brute_side_caps(volume_by_owner: dict[int, int]) -> dict[int, Fraction]:
    """Each owner's counted volume: cut the largest to a quarter until none is above it."""
    counted = {owner: Fraction(volume) for owner, volume in volume_by_owner.items()}
    if len(counted) < 4:
        return dict.fromkeys(counted, min(counted.values()))
    for capped in range(4):
        order = sorted(counted, key=lambda o: volume_by_owner[o], reverse=True)
        rest = sum((Fraction(volume_by_owner[o]) for o in order[capped:]), Fraction(0))
        cap = rest / (4 - capped)
        result = {o: min(Fraction(volume_by_owner[o]), cap) for o in order}
        if all(volume <= sum(result.values()) / 4 for volume in result.values()):
            return result
    raise AssertionError("four equal owners always satisfy it")


def brute_median(prints: list[Print]) -> int:
    bought: dict[int, int] = {}
    sold: dict[int, int] = {}
    for p in prints:
        bought[p.buyer] = bought.get(p.buyer, 0) + p.qty_lots
        sold[p.seller] = sold.get(p.seller, 0) + p.qty_lots
    buyers, sellers = brute_side_caps(bought), brute_side_caps(sold)
    weights = [
        p.qty_lots * min(buyers[p.buyer] / bought[p.buyer], sellers[p.seller] / sold[p.seller])
        for p in prints
    ]
    for price in sorted({p.price_ticks for p in prints}):
        below = sum(w for p, w in zip(prints, weights, strict=True) if p.price_ticks <= price)
        if below * 2 >= sum(weights):
            return price
    raise AssertionError


def brute_value(prints: list[Print], now_ns: int) -> tuple[str, int, int] | None:
    """(quality, value, prints) of one series."""
    end = now_ns // HOUR_PARTITION_NS * HOUR_PARTITION_NS
    past = [p for p in prints if p.time_ns < end]
    if not past:
        return None
    hour = [p for p in past if p.time_ns >= end - HOUR_NS]
    day = [p for p in past if p.time_ns >= end - DAY_NS]
    full = {p.time_ns // HOUR_PARTITION_NS for p in hour}
    owners = ({p.seller for p in hour}, {p.buyer for p in hour})
    quality, used, width = "A", hour, HOUR_PARTITION_NS
    if len(hour) < 5 or len(full) < 6 or min(map(len, owners)) < 3:
        quality, used, width = "B", day, HOUR_PARTITION_NS * 24
    if not used:
        end = (past[-1].time_ns // HOUR_PARTITION_NS + 1) * HOUR_PARTITION_NS
        quality, used = "C", [p for p in past if p.time_ns >= end - DAY_NS]
    medians: list[int] = []
    for i in range(12):
        low, high = end - (i + 1) * width, end - i * width
        if inside := [p for p in used if low <= p.time_ns < high]:
            medians.append(brute_median(inside))
    mean = Fraction(sum(medians), len(medians))
    floor = mean.numerator // mean.denominator
    return quality, floor + (mean - floor > Fraction(1, 2)), len(used)


@st.composite
def fills(draw: st.DrawFn) -> list[Event]:
    gap_ns = draw(st.sampled_from([20 * 10**9, 200 * 10**9, 4000 * 10**9, 40_000 * 10**9]))
    time_ns = START_NS
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 40))):
        time_ns += draw(st.integers(0, gap_ns))
        buyer = draw(st.integers(1, 7))
        seller = draw(st.integers(1, 7))
        lots = draw(st.sampled_from([50, 99, 100, 101, 800, 12_345, 1_000_000]))
        price = draw(st.integers(1, 60)) * 1000 + draw(st.integers(0, 1))
        taker = draw(st.sampled_from(Side))
        events.append(fill(time_ns, price, lots, buyer, seller, taker=taker))
    return events


@given(fills(), st.integers(0, 40))
def test_the_index_equals_the_slow_version(events: list[Event], partitions_later: int) -> None:
    index = index_of(*events)
    now_ns = (events[-1].time_ns if events else START_NS) + partitions_later * HOUR_PARTITION_NS
    prints = [
        Print(
            number,
            e.time_ns,
            e.price_ticks,
            e.qty_lots,
            e.account if e.side == Side.BUY else e.counter_account,
            e.counter_account if e.side == Side.BUY else e.account,
            SPOT,
        )
        for number, e in enumerate(events, start=4)
        if e.qty_lots >= 100 and e.account != e.counter_account
    ]
    expected = brute_value(prints, now_ns)
    values = index.values(now_ns)
    assert len(values) == (expected is not None)
    for value in values:
        assert (value.quality, value.value_ticks, value.prints) == expected
        inputs = index.inputs(value)
        assert set(inputs) <= set(prints) and len(inputs) == value.prints
        assert value.volume_lots == sum(p.qty_lots for p in inputs)
        assert value.inputs_root == merkle_root([p.leaf() for p in inputs])
        assert min(p.price_ticks for p in inputs) <= value.value_ticks
        assert value.value_ticks <= max(p.price_ticks for p in inputs)


@given(fills(), st.data())
def test_the_events_may_come_in_any_batches(events: list[Event], data: st.DataObject) -> None:
    whole = index_of(*events)
    parts = index_of()
    number = 4
    while events:
        cut = data.draw(st.integers(1, len(events)))
        parts.apply(events[:cut], number)
        parts.values(events[0].time_ns)  # asking in between changes nothing
        number += cut
        events = events[cut:]
    now_ns = START_NS + 3 * DAY_NS
    assert parts.values(now_ns) == whole.values(now_ns)


# --- the rules by name ----------------------------------------------------------------------------
def test_nothing_traded_means_no_value() -> None:
    assert index_of().values(START_NS + HOUR_NS) == []


def test_a_print_counts_once_its_five_minutes_are_over() -> None:
    index = index_of(fill(START_NS + 1, 20_000))
    assert index.values(START_NS + HOUR_PARTITION_NS - 1) == []
    value = one(index, START_NS + HOUR_PARTITION_NS)
    assert (value.value_ticks, value.quality) == (20_000, "B")
    assert value.window_end_ns == START_NS + HOUR_PARTITION_NS


def test_a_broad_hour_is_quality_a_and_each_lack_makes_it_b() -> None:
    hour = broad_hour()
    now_ns = START_NS + HOUR_NS
    value = one(index_of(*hour), now_ns)
    assert (value.quality, value.prints, value.volume_lots) == ("A", 6, 6000)
    assert value.value_ticks == 20_002  # the mean 20_002.5, halves down
    assert (value.series, value.product) == ("nv.h100-sxm-80g.x8.ib|us-e|B", SPOT)
    for lacking in (
        hour[:5],  # five partitions only
        [e._replace(account=1 + i % 2) for i, e in enumerate(hour)],  # two buyers
        [e._replace(counter_account=4 + i % 2) for i, e in enumerate(hour)],  # two operators
    ):
        assert one(index_of(*lacking), now_ns).quality == "B"
    crowded = [e._replace(time_ns=START_NS + i) for i, e in enumerate(hour)]
    assert one(index_of(*crowded), now_ns).quality == "B"  # one partition


def test_an_hour_later_the_value_is_of_the_day_and_after_a_day_it_is_stale() -> None:
    index = index_of(*broad_hour())
    day_later = one(index, START_NS + DAY_NS)
    assert (day_later.quality, day_later.window_end_ns) == ("B", START_NS + DAY_NS)
    stale = one(index, START_NS + 9 * DAY_NS)
    assert stale.quality == "C"
    assert stale.window_end_ns == START_NS + 6 * HOUR_PARTITION_NS  # it says how old it is
    assert stale.prints == 6


def test_a_trade_with_oneself_and_dust_set_no_price() -> None:
    wash = fill(START_NS, 99_000, buyer=7, seller=7)
    dust = fill(START_NS, 99_000, qty_lots=PRINT_LOTS_MIN - 1)
    assert index_of(wash, dust).values(START_NS + HOUR_NS) == []
    assert one(index_of(wash, fill(START_NS, 20_000), dust), START_NS + HOUR_NS).prints == 1


def test_only_spot_markets_feed_it_and_each_its_own_series() -> None:
    index = index_of(
        fill(START_NS, 50_000, instrument=2),
        fill(START_NS, 3_500, instrument=3),
        fill(START_NS, 20_000, instrument=1),
        fill(START_NS, 77_000, instrument=4),
    )
    values = index.values(START_NS + HOUR_NS)
    assert [(v.series, v.value_ticks) for v in values] == [
        ("nv.h100-sxm-80g.x8.ib|us-e|B", 20_000),
        ("nv.rtx4090-24g.x1|eu-n|C", 3_500),
    ]


def prints_of(*rows: tuple[int, int, int, int]) -> list[Print]:
    """(price, lots, buyer, seller) each."""
    return [Print(i, START_NS, *row, SPOT) for i, row in enumerate(rows)]


def test_one_seller_of_most_volume_cannot_set_the_price() -> None:
    honest = [(20_000 + i, 1000, 10 + i, 20 + i) for i in range(4)]
    flood = [(90_000, 1_000_000, 30 + i, 99) for i in range(8)]
    assert weighted_median(prints_of(*honest, *flood)) <= 20_003
    uncapped = [(90_000, 1_000_000, 30 + i, 40 + i) for i in range(8)]
    assert weighted_median(prints_of(*honest, *uncapped)) == 90_000


def test_one_buyer_of_most_volume_cannot_set_the_price() -> None:
    honest = [(20_000 + i, 1000, 10 + i, 20 + i) for i in range(4)]
    flood = [(90_000, 1_000_000, 99, 30 + i) for i in range(8)]
    assert weighted_median(prints_of(*honest, *flood)) <= 20_003


def test_with_few_owners_each_has_an_equal_share() -> None:
    # two sellers: half each whatever they sold, and the lower median is the lower price
    assert weighted_median(prints_of((30_000, 9000, 1, 8), (20_000, 100, 1, 9))) == 20_000
    # three sellers: the middle one
    three = prints_of((30_000, 9000, 1, 7), (20_000, 100, 1, 8), (25_000, 100, 1, 9))
    assert weighted_median(three) == 25_000
    # one seller: its own volumes decide
    assert weighted_median(prints_of((30_000, 9000, 1, 8), (20_000, 100, 1, 8))) == 30_000


def test_the_root_commits_to_every_print_and_is_recomputed_from_bytes() -> None:
    index = index_of(*broad_hour())
    value = one(index, START_NS + HOUR_NS)
    leaves: list[bytes] = []
    for i, event in enumerate(broad_hour()):
        body = struct.pack(
            "<QqqqIIQ", 4 + i, event.time_ns, event.price_ticks, event.qty_lots,
            event.account, event.counter_account, SPOT,
        )  # fmt: skip
        leaves.append(hashlib.sha256(b"\x00" + body).digest())

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\x01" + left + right).digest()

    a, b, c = (node(leaves[i], leaves[i + 1]) for i in (0, 2, 4))
    assert value.inputs_root == node(node(a, b), c)
    moved = broad_hour()
    moved[3] = moved[3]._replace(qty_lots=moved[3].qty_lots + 8)
    assert one(index_of(*moved), START_NS + HOUR_NS).inputs_root != value.inputs_root


def test_a_missing_or_repeated_event_is_a_broken_invariant() -> None:
    index = index_of()
    with pytest.raises(AssertionError, match="event 4 expected, not 5"):
        index.apply([fill(START_NS, 20_000)], 5)
    with pytest.raises(AssertionError, match="event 4 expected, not 3"):
        index.apply([fill(START_NS, 20_000)], 3)


def test_a_print_that_comes_after_the_question_is_in_the_next_answer() -> None:
    index = index_of(fill(START_NS, 20_000))
    now_ns = START_NS + HOUR_NS
    assert one(index, now_ns).prints == 1
    index.apply([fill(START_NS + 1, 20_000)], 5)
    assert one(index, now_ns).prints == 2


def test_shorter_partitions_make_the_same_index_of_a_shorter_hour() -> None:
    index = SpotIndex(CATALOG, partition_ns=10**9)
    index.apply([listed(1, SPOT)], 1)
    index.apply([e._replace(time_ns=START_NS + i * 10**9) for i, e in enumerate(broad_hour())], 2)
    value = one(index, START_NS + 6 * 10**9)
    assert (value.quality, value.value_ticks) == ("A", 20_002)
