"""The compute spot index (CXI): one price per class, region and grade, from numbered events alone.

Invariant: a value is a pure function of the FILL and MARKET_LISTED events up to a number, so
whoever has the event log recomputes it; from the public trades, which name no accounts, nobody can.
Its Merkle root commits to the prints it came from, and is published nowhere yet. A fill that is
undone later stays a print. Settlement publishes the values; the engine itself never reads them.

Method, after the CME CF Bitcoin Reference Rate (12 partitions, volume-weighted median of each,
equal-weighted mean of those that are not empty; see cfbenchmarks.com), with three changes against
thin or one-sided markets:
- a print counts only between different accounts and from one GPU-hour up;
- within a partition no seller and no buyer has more than a quarter of the weight (`_weights`);
- every value has a quality: A, from the last hour and broad enough; B, from the last 24 hours;
  C, stale: nothing was traded for 24 hours and this is the last B value. Do not lend on a C.

The window ends with the last full partition, so a value moves every five minutes and at each full
hour is that hour's. Its end says nothing of how old the prints in it are: those of a B may all be
from 24 hours before. Where nothing was ever traded there is no value.
"""

import hashlib
import struct
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from math import lcm
from typing import ClassVar, Final, NamedTuple

import msgspec

from engine.catalog import Catalog
from engine.port import Batch
from engine.records import Event, EventKind, Side

PARTITIONS: Final = 12
HOUR_PARTITION_NS: Final = 300 * 1_000_000_000
DAY_HOURS: Final = 24
PRINT_LOTS_MIN: Final = 100  # one GPU-hour: dust sets no price
PRINTS_PER_SERIES_MAX: Final = 1 << 17  # beyond it the oldest of the day no longer count
OWNERS_FULL: Final = 4  # an owner has at most 1/4 of a partition's weight

# What the last hour needs for quality A.
PRINTS_FOR_A: Final = 5
OPERATORS_FOR_A: Final = 3
BUYERS_FOR_A: Final = 3
PARTITIONS_FOR_A: Final = 6

_LEAF: Final = struct.Struct("<QqqqIIQ")


class Print(NamedTuple):
    """One trade as the index sees it; `number` is its event's."""

    number: int
    time_ns: int
    price_ticks: int
    qty_lots: int
    buyer: int
    seller: int
    product: int

    def leaf(self) -> bytes:
        """The 32-byte Merkle leaf: SHA-256 over 0x00 and the fields, little endian."""
        return hashlib.sha256(b"\0" + _LEAF.pack(*self)).digest()


class IndexValue(NamedTuple):
    """One series' value.

    `series` is `class|region|grade`, `product` its SPOT market's key. `prints` and `volume_lots`
    are those of the window that the quality names, which ends before `window_end_ns`;
    `inputs_root` is `merkle_root` of their leaves in the order of their numbers.
    """

    series: str
    product: int
    value_ticks: int
    window_end_ns: int
    prints: int
    volume_lots: int
    quality: str
    inputs_root: bytes


class _Saved(msgspec.Struct, array_like=True):
    next_number: int | None
    products: dict[int, int]
    prints: dict[int, list[Print]]


class SpotIndex:
    """Feed it every event in order with `apply`; ask `values` at any time.

    `partition_ns` is five minutes; a demonstration that cannot wait makes it shorter.
    """

    name: ClassVar[str] = "index/1"  # of what a snapshot keeps for it
    former: ClassVar[tuple[str, ...]] = ()

    def __init__(self, catalog: Catalog, partition_ns: int = HOUR_PARTITION_NS) -> None:
        assert partition_ns > 0
        self._catalog = catalog
        self._partition_ns = partition_ns
        self._product_by_instrument: dict[int, int] = {}
        self._prints: dict[int, deque[Print]] = {}
        self._next_number: int | None = None
        self._answer_end_ns = -1
        self._answer: list[IndexValue] = []

    def on_batch(self, batch: Batch) -> None:
        """The engine's subscriber."""
        self.apply(batch.events, batch.first_number)

    def save(self) -> bytes:
        """For a snapshot."""
        prints = {product: list(found) for product, found in self._prints.items()}
        return msgspec.msgpack.encode(
            _Saved(self._next_number, self._product_by_instrument, prints)
        )  # fmt: skip

    def load(self, saved: bytes) -> None:
        """What `save` gave, into a new index. Raises msgspec.MsgspecError."""
        found = msgspec.msgpack.decode(saved, type=_Saved)
        self._next_number = found.next_number
        self._product_by_instrument = found.products
        for product, prints in found.prints.items():
            self._prints[product] = deque(prints, maxlen=PRINTS_PER_SERIES_MAX)

    def apply(self, events: list[Event], first_number: int) -> None:
        """Take in consecutive events; the first one has the number `first_number`."""
        expected = first_number if self._next_number is None else self._next_number
        assert first_number == expected, f"event {expected} expected, not {first_number}"
        self._next_number = first_number + len(events)
        for number, event in enumerate(events, start=first_number):
            if event.kind == EventKind.FILL:
                self._fill(number, event)
            elif event.kind == EventKind.MARKET_LISTED:
                self._listed(event)

    def values(self, now_ns: int) -> list[IndexValue]:
        """Every series that has ever had an eligible print in a full partition, in the order of
        their product keys. `now_ns` must not lie a day before the newest event."""
        end_ns = now_ns - now_ns % self._partition_ns
        if end_ns != self._answer_end_ns:
            found = (self._value(product, end_ns) for product in sorted(self._prints))
            self._answer = [value for value in found if value is not None]
            self._answer_end_ns = end_ns
        return list(self._answer)

    def inputs(self, value: IndexValue) -> list[Print]:
        """The prints behind a value of the newest window, in the order of their numbers."""
        hours = 1 if value.quality == "A" else DAY_HOURS
        return self._window(value.product, value.window_end_ns, hours)

    def _listed(self, event: Event) -> None:
        if self._catalog.parts(event.product).window.name == "SPOT":
            self._product_by_instrument[event.instrument] = event.product

    def _fill(self, number: int, event: Event) -> None:
        product = self._product_by_instrument.get(event.instrument)
        if (
            product is None
            or event.qty_lots < PRINT_LOTS_MIN
            or event.account == event.counter_account
        ):
            return
        buyer, seller = event.account, event.counter_account
        if event.side == Side.SELL:
            buyer, seller = seller, buyer
        prints = self._prints.setdefault(product, deque(maxlen=PRINTS_PER_SERIES_MAX))
        prints.append(
            Print(number, event.time_ns, event.price_ticks, event.qty_lots, buyer, seller, product)
        )
        # a stale value needs the day before the last print, whenever that was
        day_ns = (DAY_HOURS * PARTITIONS + 1) * self._partition_ns
        while prints[0].time_ns < event.time_ns - day_ns:
            prints.popleft()
        if event.time_ns < self._answer_end_ns:
            self._answer_end_ns = -1

    def _window(self, product: int, end_ns: int, hours: int) -> list[Print]:
        prints = list(self._prints[product])
        times = [p.time_ns for p in prints]
        start_ns = end_ns - hours * PARTITIONS * self._partition_ns
        return prints[bisect_left(times, start_ns) : bisect_left(times, end_ns)]

    def _value(self, product: int, end_ns: int) -> IndexValue | None:
        hour = self._window(product, end_ns, 1)
        partitions = partition(hour, end_ns, self._partition_ns)
        quality, used = "A", hour
        if not _is_broad(hour, partitions):
            quality, used = "B", self._window(product, end_ns, DAY_HOURS)
        if not used:
            last = next((p for p in reversed(self._prints[product]) if p.time_ns < end_ns), None)
            if last is None:
                return None
            end_ns = last.time_ns - last.time_ns % self._partition_ns + self._partition_ns
            quality, used = "C", self._window(product, end_ns, DAY_HOURS)
        if quality != "A":
            partitions = partition(used, end_ns, self._partition_ns * DAY_HOURS)
        return IndexValue(
            self._catalog.series(product),
            product,
            estimate(partitions),
            end_ns,
            len(used),
            sum(p.qty_lots for p in used),
            quality,
            merkle_root([p.leaf() for p in used]),
        )


def partition(prints: Iterable[Print], end_ns: int, partition_ns: int) -> list[list[Print]]:
    """The prints by partition counted back from `end_ns`, latest first; only non-empty ones."""
    by_age: dict[int, list[Print]] = defaultdict(list)
    for p in prints:
        by_age[(end_ns - 1 - p.time_ns) // partition_ns].append(p)
    return [by_age[age] for age in sorted(by_age)]


def estimate(partitions: Sequence[Sequence[Print]]) -> int:
    """The mean of the partitions' medians, in ticks, to the nearest tick, halves down.

    Down, as the median is the lower one: a half tick more would be to the gain of whoever is paid
    by the index (a buyer's cover), against the operator who pays it.
    """
    medians = [weighted_median(prints) for prints in partitions]
    return -((len(medians) - 2 * sum(medians)) // (2 * len(medians)))


def weighted_median(prints: Sequence[Print]) -> int:
    """The lowest price at which half of the capped weight has traded."""
    weights = _weights(prints)
    half = sum(weights)
    reached = 0
    for price_ticks, weight in sorted(
        (p.price_ticks, weight) for p, weight in zip(prints, weights, strict=True)
    ):
        reached += 2 * weight
        if reached >= half:
            return price_ticks
    raise AssertionError("a partition has a print, and a print has weight")


def _weights(prints: Sequence[Print]) -> list[int]:
    """Each print's lots, scaled down where one owner would have too much of a partition.

    All volume of a seller above the sellers' cap is scaled down to it, all of a buyer's above the
    buyers'; a print keeps the smaller of the two results. The cap is such that it is a quarter of
    the side's weight with the caps applied. With fewer than four owners on a side a quarter
    cannot be held and the nearest to it, equal shares, is taken: the cap is the smallest owner's
    volume. Exact: the weights are whole numbers of one common fraction of a lot.
    """
    bought: dict[int, int] = defaultdict(int)
    sold: dict[int, int] = defaultdict(int)
    for p in prints:
        bought[p.buyer] += p.qty_lots
        sold[p.seller] += p.qty_lots
    kept_bought, kept_sold = _kept(bought), _kept(sold)
    # At most three owners of a side are above its cap, so this stays a few hundred bits.
    unit = lcm(*(part for _, part in [*kept_bought.values(), *kept_sold.values()]))
    buyers = {owner: kept * unit // part for owner, (kept, part) in kept_bought.items()}
    sellers = {owner: kept * unit // part for owner, (kept, part) in kept_sold.items()}
    return [p.qty_lots * min(buyers[p.buyer], sellers[p.seller]) for p in prints]


def _kept(volumes: dict[int, int]) -> dict[int, tuple[int, int]]:
    """How much of each owner's volume counts, as a fraction: (numerator, denominator)."""
    cap, divisor = _cap(volumes.values())
    return {
        owner: (cap, divisor * volume) if volume * divisor > cap else (1, 1)
        for owner, volume in volumes.items()
    }


def _cap(volumes: Iterable[int]) -> tuple[int, int]:
    """The largest volume of one owner that counts, as a fraction: (numerator, denominator).

    With k owners above it, cap = (the others' sum + k * cap) / 4, so cap = others / (4 - k).
    """
    descending = sorted(volumes, reverse=True)
    if len(descending) < OWNERS_FULL:
        return descending[-1], 1
    others = sum(descending)
    for above, volume in enumerate(descending[:OWNERS_FULL]):
        if volume * (OWNERS_FULL - above) <= others:
            return others, OWNERS_FULL - above
        others -= volume
    raise AssertionError("the fourth owner is at most the sum of those from the fourth on")


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """SHA-256 tree: a node is the hash of 0x01 and its two children; a last one without a sister
    moves up as it is. The root of one leaf is that leaf."""
    level = list(leaves)
    assert level, "no print, no value"
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\1" + left + right).digest() for left, right in pairs] + odd
    return level[0]


def _is_broad(prints: Sequence[Print], partitions: Sequence[Sequence[Print]]) -> bool:
    return (
        len(prints) >= PRINTS_FOR_A
        and len({p.seller for p in prints}) >= OPERATORS_FOR_A
        and len({p.buyer for p in prints}) >= BUYERS_FOR_A
        and len(partitions) >= PARTITIONS_FOR_A
    )
