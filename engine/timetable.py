"""What markets do when a time comes: a call begins or ends, the gate closes, a price is indicated.

Built from published events alone, so that a restart knows what is still to come. Invariant: before
a command is sequenced, all that was to happen to markets by then is in the order before it; what a
command could not finish is asked for again at once, and a gate shuts only on what its auction has
left. What is asked for may meet a market that is not as it was last heard of: then the kernel
refuses it (BY_TIME), and it is planned again by what is heard next. To ask once more for what is
done is harmless. Only `pipeline` calls. Planning and taking are O(log n) in the times planned.
"""

from typing import Final

import msgspec
from sortedcontainers import SortedList

from engine.records import (
    BY_TIME,
    SECOND_NS,
    Command,
    CommandKind,
    Event,
    EventKind,
    ListingFlag,
)

INDICATION_NS: Final = SECOND_NS  # between two indicated prices of a market

# In this order where several are due at one time: a closing call ends before the gate shuts.
_STEPS: Final = (
    CommandKind.CALL_MARKET,
    CommandKind.UNCROSS_MARKET,
    CommandKind.CLOSE_MARKET,
    CommandKind.INDICATE_MARKET,
)
# After these a market in a call would uncross at another price.
_CHANGES: Final = (EventKind.ACCEPTED, EventKind.CANCELLED, EventKind.AMENDED)
_MARKETS: Final = int(EventKind.MARKET_LISTED)  # looking a member up costs more than comparing
_CALL, _UNCROSS, _CLOSE, _INDICATE = range(len(_STEPS))


class _Saved(msgspec.Struct, array_like=True):
    planned: list[tuple[int, int, int]]
    closes_s: dict[int, int]
    closing_call_s: dict[int, int]
    calls: dict[int, int]
    halted: set[int]
    indicated_ns: dict[int, int]
    uncrossing: set[int] = set()


class Timetable:
    def __init__(self) -> None:
        self._times: SortedList[tuple[int, int, int]] = SortedList()  # (at_ns, step, instrument)
        self._at_ns: dict[tuple[int, int], int] = {}  # (step, instrument) -> its time
        self._closes_s: dict[int, int] = {}
        self._closing_call_s: dict[int, int] = {}  # when a closing call is to begin, until it has
        self._calls: dict[int, int] = {}  # markets in a call -> when it ends; 0: by hand
        self._halted: set[int] = set()
        self._uncrossing: set[int] = set()  # asked for, or begun, and not at its end
        self._indicated_ns: dict[int, int] = {}  # by market in a call

    def _plan(self, step: int, instrument: int, at_ns: int) -> None:
        self._drop(step, instrument)
        self._times.add((at_ns, step, instrument))
        self._at_ns[step, instrument] = at_ns

    def _drop(self, step: int, instrument: int) -> None:
        at_ns = self._at_ns.pop((step, instrument), None)
        if at_ns is not None:
            self._times.discard((at_ns, step, instrument))

    def due(self, now_ns: int) -> list[Command]:
        """The commands whose time has come, earliest first."""
        commands: list[Command] = []
        if not self._at_ns:
            return commands
        while self._times and self._times[0][0] <= now_ns:
            _, step, instrument = self._times.pop(0)
            del self._at_ns[step, instrument]
            if step == _CALL:
                commands += self._closing_call(instrument, now_ns)
            elif step != _CLOSE or not self._is_uncrossed_first(instrument, now_ns):
                asked = Command(kind=_STEPS[step], instrument=instrument, flags=BY_TIME)
                commands.append(asked)
            if step == _UNCROSS:
                self._uncrossing.add(instrument)
        return commands

    def _closing_call(self, instrument: int, now_ns: int) -> list[Command]:
        """The gate is its end, and that of a call that it finds. A market that is halted stays so
        until it is resumed, and one that is being uncrossed is called once that is done."""
        closes_s = self._closes_s[instrument]
        waits = instrument in self._halted or instrument in self._uncrossing
        if waits or closes_s * SECOND_NS <= now_ns:
            return []
        self._drop(_UNCROSS, instrument)
        return [
            Command(
                kind=CommandKind.CALL_MARKET,
                instrument=instrument,
                expiry_s=closes_s,
                flags=BY_TIME,
            )
        ]

    def _is_uncrossed_first(self, instrument: int, now_ns: int) -> bool:
        """Whether the gate waits for the end of an auction; nobody comes in meanwhile."""
        if instrument in self._halted:
            return False
        at_ns = self._at_ns.get((_UNCROSS, instrument))
        return instrument in self._uncrossing or (at_ns is not None and at_ns <= now_ns)

    def published(self, events: list[Event]) -> None:
        """Consecutive events."""
        for event in events:
            if event.kind >= _MARKETS:
                self._market_event(event)
            elif self._calls and event.kind in _CHANGES and event.instrument in self._calls:
                self._changed(event)

    def _market_event(self, event: Event) -> None:
        instrument = event.instrument
        match event.kind:
            case EventKind.MARKET_LISTED:
                self._listed(event)
            case EventKind.MARKET_CALLED | EventKind.VOLATILITY_CALL:
                self._called(event)
            case EventKind.MARKET_UNCROSSED:
                if event.reason:
                    self._uncrossing.add(instrument)
                    self._plan(_UNCROSS, instrument, event.time_ns)
                else:
                    self._end(instrument)
                    self._plan_again(instrument)
            case EventKind.INDICATED:
                self._drop(_INDICATE, instrument)
                self._indicated_ns[instrument] = event.time_ns
            case EventKind.MARKET_HALTED:
                self._halted.add(instrument)
                for step in (_UNCROSS, _INDICATE):
                    self._drop(step, instrument)
                self._plan_again(instrument)
            case EventKind.MARKET_RESUMED:
                self._resumed(event)
            case EventKind.MARKET_CLOSED:
                self._closed(event)
            case _:
                pass

    def _listed(self, event: Event) -> None:
        instrument, closes_s = event.instrument, event.closes_s
        if closes_s:
            self._closes_s[instrument] = closes_s
        if event.closing_call_s:
            self._closing_call_s[instrument] = closes_s - event.closing_call_s
        self._plan_again(instrument)
        if event.reason == ListingFlag.OPENING_CALL:
            self._begin(instrument, event.opens_s or closes_s, event.time_ns)

    def _called(self, event: Event) -> None:
        instrument = event.instrument
        self._halted.discard(instrument)
        self._uncrossing.discard(instrument)  # else the kernel would have refused
        self._begin(instrument, event.expiry_s, event.time_ns)
        till_gate = event.expiry_s == self._closes_s.get(instrument)
        if till_gate and self._is_closing_call_due(instrument, event.time_ns):
            del self._closing_call_s[instrument]
            self._drop(_CALL, instrument)

    def _begin(self, instrument: int, until_s: int, now_ns: int) -> None:
        """A call that ends then; 0: by hand."""
        self._calls[instrument] = until_s
        self._indicated_ns.setdefault(instrument, now_ns)
        self._drop(_UNCROSS, instrument)
        if until_s:
            self._plan(_UNCROSS, instrument, until_s * SECOND_NS)

    def _is_closing_call_due(self, instrument: int, now_ns: int) -> bool:
        call_s = self._closing_call_s.get(instrument)
        return call_s is not None and call_s * SECOND_NS <= now_ns

    def _plan_again(self, instrument: int) -> None:
        """The gate and the closing call, each at its time: it may have come while they had to wait.

        By the time of the event it need not have: that was sequenced a while ago.
        """
        if closes_s := self._closes_s.get(instrument):
            self._plan(_CLOSE, instrument, closes_s * SECOND_NS)
        if call_s := self._closing_call_s.get(instrument):
            self._plan(_CALL, instrument, call_s * SECOND_NS)

    def _end(self, instrument: int) -> None:
        self._uncrossing.discard(instrument)
        self._calls.pop(instrument, None)
        self._indicated_ns.pop(instrument, None)
        for step in (_UNCROSS, _INDICATE):
            self._drop(step, instrument)

    def _resumed(self, event: Event) -> None:
        instrument = event.instrument
        self._halted.discard(instrument)
        if event.reason:
            self._begin(instrument, self._calls[instrument], event.time_ns)
            if instrument in self._uncrossing:
                self._plan(_UNCROSS, instrument, event.time_ns)
        self._plan_again(instrument)

    def _closed(self, event: Event) -> None:
        instrument = event.instrument
        self._end(instrument)
        self._halted.discard(instrument)
        for step in (_CALL, _CLOSE):
            self._drop(step, instrument)
        if event.reason:  # more orders than one command may cancel
            self._plan(_CLOSE, instrument, event.time_ns)

    def _changed(self, event: Event) -> None:
        """An order came, went or changed in a call: say soon what its price would be now."""
        instrument = event.instrument
        planned = (_INDICATE, instrument) in self._at_ns
        if not planned and instrument not in self._halted:
            next_ns = self._indicated_ns[instrument] + INDICATION_NS
            self._plan(_INDICATE, instrument, max(event.time_ns, next_ns))

    def save(self) -> bytes:
        """For a snapshot."""
        return msgspec.msgpack.encode(
            _Saved(
                list(self._times),
                self._closes_s,
                self._closing_call_s,
                self._calls,
                self._halted,
                self._indicated_ns,
                self._uncrossing,
            )
        )

    def load(self, saved: bytes) -> None:
        """What `save` gave, into a new timetable. Raises msgspec.MsgspecError."""
        found = msgspec.msgpack.decode(saved, type=_Saved)
        for at_ns, step, instrument in found.planned:
            self._plan(step, instrument, at_ns)
        self._closes_s, self._closing_call_s = found.closes_s, found.closing_call_s
        self._calls, self._halted = found.calls, found.halted
        self._indicated_ns, self._uncrossing = found.indicated_ns, found.uncrossing
