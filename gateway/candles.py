"""What the trades of each market came to: candles, the last price, the last 24 hours.

A pure function of the journal: time is that of the commands, so after a restart, from a snapshot or
from the first command, everything is as it was. Invariant: a candle is the sum of the smaller ones
in it, so a trade touches the running minute alone; it is closed by the first command after its end,
in any market. The public feed drives it.

A block trade counts as volume, notional and trade but sets no price, as exchanges have it for
trades that were not made against the book's best. An interval without a trade has no candle.

What is kept is bounded: of each market 64 bytes a candle, at most 1,441 minutes (24 hours and one)
and 1,000 of each longer interval: 412,224 bytes for one that has traded for three years on end,
nothing for one that never has.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

INTERVALS_S: Final = (60, 300, 900, 3_600, 14_400, 86_400)
MINUTE_S: Final = 60
DAY_S: Final = 86_400
KEPT: Final = 1_000  # closed ones of each interval
MINUTES_KEPT: Final = DAY_S // MINUTE_S + 1
FIELDS: Final = 8  # int64 of a candle in the arrays
_LARGER: Final[dict[int, int]] = dict(pairwise(INTERVALS_S))

assert all(larger % smaller == 0 for smaller, larger in _LARGER.items())
assert MINUTES_KEPT >= KEPT


class Candle(NamedTuple):
    """Prices of 0: nothing in it has set one."""

    start_s: int
    open_ticks: int
    high_ticks: int
    low_ticks: int
    close_ticks: int
    volume_lots: int
    notional_usdc6: int
    trades: int

    def then(self, later: "Candle | None") -> "Candle":
        """Both as one that starts where this does."""
        if later is None:
            return self
        start_s, open_, high, low, close, volume_lots, notional_usdc6, trades = self
        _, opens, higher, lower, closes, more_lots, more_usdc6, more = later
        return Candle(
            start_s,
            open_ or opens,
            higher if higher > high else high,
            lower if lower and (lower < low or not low) else low,
            closes or close,
            volume_lots + more_lots,
            notional_usdc6 + more_usdc6,
            trades + more,
        )


NOTHING: Final = Candle(*(0,) * FIELDS)


class SavedTape(msgspec.Struct, array_like=True):
    instrument: int
    last_ticks: int
    last_lots: int
    running: dict[int, tuple[int, ...]]
    closed: dict[int, list[int]]


class Tape:
    """The trades of one market."""

    def __init__(self) -> None:
        self.last_ticks = 0  # of the last trade that set a price; 0: none
        self.last_lots = 0
        # Of each interval the sum of the smaller ones that are closed in it; of the minute, all.
        self._running: dict[int, Candle] = {}
        self._closed: dict[int, array[int]] = {}
        self._day = (-1, NOTHING)  # the closed minutes of 24 hours, as of which minute

    def trade(self, time_s: int, price_ticks: int, qty_lots: int, *, block: bool) -> None:
        price = 0 if block else price_ticks
        if price:
            self.last_ticks, self.last_lots = price, qty_lots
        start_s = time_s - time_s % MINUTE_S
        one = Candle(start_s, price, price, price, price, qty_lots, price_ticks * qty_lots, 1)
        running = self._running.get(MINUTE_S)
        self._running[MINUTE_S] = one if running is None else running.then(one)

    def running(self, interval_s: int) -> Candle | None:
        """The one that is not closed yet; None if nothing was traded in it."""
        found: Candle | None = None
        for interval in reversed(INTERVALS_S[: INTERVALS_S.index(interval_s) + 1]):
            part = self._running.get(interval)
            if part is not None:
                found = part if found is None else found.then(part)
        return found and found._replace(start_s=found.start_s - found.start_s % interval_s)

    def close(self, interval_s: int) -> Candle:
        """The running one is over, and part of the next larger one. The smaller ones are closed."""
        candle = self._running.pop(interval_s)
        larger = _LARGER.get(interval_s)
        if larger is not None:
            start_s = candle.start_s - candle.start_s % larger
            so_far = self._running.get(larger, NOTHING._replace(start_s=start_s))
            self._running[larger] = so_far.then(candle)
        kept = self._closed.setdefault(interval_s, array("q"))
        kept.extend(candle)
        most = MINUTES_KEPT if interval_s == MINUTE_S else KEPT
        del kept[: max(len(kept) - most * FIELDS, 0)]
        return candle

    def closed(self, interval_s: int, count: int) -> list[Candle]:
        """The last so many, oldest first."""
        kept = self._closed.get(interval_s, array("q"))
        first = max(len(kept) - min(count, KEPT) * FIELDS, 0)
        return [Candle(*kept[at : at + FIELDS]) for at in range(first, len(kept), FIELDS)]

    def closed_since(self, interval_s: int, start_s: int) -> int:
        """How many of those begin then or later."""
        kept = self._closed.get(interval_s, array("q"))
        count = len(kept) // FIELDS
        return count - bisect_left(range(count), start_s, key=lambda at: kept[at * FIELDS])

    def day(self, now_s: int) -> Candle:
        """The last 24 hours, in whole minutes: those that began within them, and the running one.

        `open_ticks` is the first price in them. O(1), but O(minutes) once in each minute.
        """
        minute = now_s // MINUTE_S
        if self._day[0] != minute:
            total, kept = NOTHING, self._closed.get(MINUTE_S, array("q"))
            first = self._first_since(minute * MINUTE_S - DAY_S)
            for at in range(first * FIELDS, len(kept), FIELDS):
                total = total.then(Candle(*kept[at : at + FIELDS]))
            self._day = minute, total
        return self._day[1].then(self._running.get(MINUTE_S))

    def day_changes(self, before_s: int, now_s: int) -> bool:
        """Whether a minute falls out of the last 24 hours between these two times."""
        first, then = (self._first_since(x - x % MINUTE_S - DAY_S) for x in (before_s, now_s))
        return then > first

    def _first_since(self, start_s: int) -> int:
        """Which closed minute is the first after that one began."""
        kept = self._closed.get(MINUTE_S, array("q"))
        count = len(kept) // FIELDS
        return bisect_left(range(count), True, key=lambda at: kept[at * FIELDS] > start_s)

    # --- snapshots -----------------------------------------------------------------------------
    def save(self, instrument: int) -> SavedTape:
        closed = {interval: list(kept) for interval, kept in self._closed.items()}
        running: dict[int, tuple[int, ...]] = {**self._running}
        return SavedTape(instrument, self.last_ticks, self.last_lots, running, closed)

    def load(self, saved: SavedTape) -> None:
        self.last_ticks, self.last_lots = saved.last_ticks, saved.last_lots
        self._running = {interval: Candle(*fields) for interval, fields in saved.running.items()}
        self._closed = {interval: array("q", kept) for interval, kept in saved.closed.items()}


class SavedTapes(msgspec.Struct, array_like=True):
    """All tapes in a snapshot."""

    now_s: int = 0
    tapes: list[SavedTape] = []


class Tapes:
    """The tape of each market that has traded."""

    def __init__(self) -> None:
        self._tapes: dict[int, Tape] = {}
        self._now_s = 0
        # Which markets have a running candle of each interval: whom a boundary concerns.
        self._running: dict[int, dict[int, Tape]] = {interval: {} for interval in INTERVALS_S}

    def trade(
        self, instrument: int, time_s: int, price_ticks: int, qty_lots: int, *, block: bool
    ) -> Tape:
        tape = self._tapes.get(instrument)
        if tape is None:
            tape = self._tapes[instrument] = Tape()
        tape.trade(time_s, price_ticks, qty_lots, block=block)
        self._running[MINUTE_S][instrument] = tape
        return tape

    def of(self, instrument: int) -> Tape | None:
        """None before its first trade."""
        return self._tapes.get(instrument)

    def roll(self, now_s: int) -> Iterator[tuple[int, int, Candle]]:
        """It is so late: (instrument, interval, candle) of each that is over, smaller ones first.

        A day ends with an hour, an hour with a minute: the first interval that is not over ends
        the search.
        """
        before_s, self._now_s = self._now_s, now_s - now_s % MINUTE_S
        for interval in INTERVALS_S:
            if now_s // interval == before_s // interval:
                return
            over, self._running[interval] = self._running[interval], {}
            larger = _LARGER.get(interval)
            for instrument, tape in over.items():
                yield instrument, interval, tape.close(interval)
                if larger is not None:
                    self._running[larger][instrument] = tape

    def day_changes(self, before_s: int, now_s: int) -> Iterator[int]:
        """The markets that have a minute less in the last 24 hours. O(markets * log minutes)."""
        for instrument, tape in self._tapes.items():
            if tape.day_changes(before_s, now_s):
                yield instrument

    @property
    def now_s(self) -> int:
        """The minute of the last `roll`."""
        return self._now_s

    def save(self) -> SavedTapes:
        return SavedTapes(self._now_s, [tape.save(x) for x, tape in self._tapes.items()])

    def load(self, saved: SavedTapes) -> None:
        self._now_s = saved.now_s
        for found in saved.tapes:
            tape = self._tapes[found.instrument] = Tape()
            tape.load(found)
            for interval in found.running:
                self._running[interval][found.instrument] = tape
