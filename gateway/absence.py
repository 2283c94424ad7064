"""What becomes of the orders of who has gone silent: cancel on disconnect, dead man's switches.

A session arms; when its time is over, a CANCEL_ALL goes through the engine's door, like any other.
Invariant: what an ack said is armed is in the history's file, so that a crash of the
node only makes the time run again; and it stays armed until the last order is cancelled. All times
share one task. Sessions arm, renew and leave; the desk tells what the engine answered.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from compex_client import messages as m

from engine.port import Port
from engine.records import ALL_INSTRUMENTS, CancelReason, Event, EventKind
from engine.rejects import Refused, Reject
from gateway import translate
from gateway.facts import CAUSES
from gateway.history import History
from gateway.history_file import ArmedRow, HistoryFile

TICK_SECONDS: Final = 0.05  # how late a time may be seen to be over
NOTES_MAX: Final = 64  # changes of one switch before the file; further requests are refused
NS_PER_MS: Final = 1_000_000
DISCONNECT: Final = "cancel_on_disconnect"
DEAD_MAN: Final = "dead_man"
_CAUSE: Final = {DISCONNECT: CAUSES.index("disconnect"), DEAD_MAN: CAUSES.index("dead_man")}

log = logging.getLogger("compex.absence")


class Place(NamedTuple):
    """Whose switch it is, and which."""

    account: int
    session: int
    what: str


class _Switch:
    """`due_ns` None: the time does not run, as somebody is connected."""

    def __init__(self, row: ArmedRow) -> None:
        self.row: Final = row
        self.due_ns: int | None = None
        self.holders: dict[object, None] = {}  # connections that have it armed, the last one last
        self.is_noted = False  # in the file


class Absence:
    """`now_ns` is a steady clock."""

    def __init__(self, port: Port, history: History, now_ns: Callable[[], int]) -> None:
        self._port = port
        self._history = history
        self._now_ns = now_ns
        self._switches: dict[Place, _Switch] = {}
        self._held: dict[object, set[Place]] = {}  # by connection
        self._cancelling: dict[int, tuple[Place, _Switch]] = {}  # by sequence
        self._noting: Counter[Place] = Counter()  # changes on their way to the file
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The node can be reached from now on: the time of what was armed before runs."""
        if self._task is None:
            for row in self._history.armed():
                place = Place(row.account, row.session, row.what)
                if place not in self._switches:
                    self._switches[place] = switch = _Switch(row)
                    switch.is_noted = True
                    self._run(switch)
            self._task = asyncio.create_task(self._watch(), name="absence")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def armed(self, account: int, session: int) -> list[m.Armed]:
        return [
            m.Armed(
                cast("m.ArmedWhat", place.what),
                cast("m.CancelScope", switch.row.scope),
                switch.row.ms,
                bool(switch.row.on_close),
            )
            for place, switch in self._switches.items()
            if (place.account, place.session) == (account, session)
        ]  # fmt: skip

    # --- sessions ------------------------------------------------------------------------------
    def arm(self, holder: object, row: ArmedRow, done: Callable[[], None]) -> bool:
        """Arm it, or arm it again; `done` when a crash would not undo that. False while too many
        changes of it are on their way to the file."""
        place = Place(row.account, row.session, row.what)
        known = self._switches.get(place)
        switch = _Switch(row)
        if known is not None:
            switch.holders = known.holders
            switch.is_noted = known.is_noted and known.row == row

        def noted() -> None:
            switch.is_noted = True
            done()

        if not switch.is_noted:
            if self._noting[place] >= NOTES_MAX:
                return False
            self._note(place, lambda file: file.arm(row), noted)
        self._switches[place] = switch
        if row.what == DEAD_MAN:
            self._run(switch)
        else:
            switch.holders.pop(holder, None)
            switch.holders[holder] = None
            self._held.setdefault(holder, set()).add(place)
        if switch.is_noted:
            done()
        return True

    def disarm(self, place: Place, done: Callable[[], None]) -> bool:
        """`done` when a crash would not undo that. False as in `arm`."""
        if self._noting[place] >= NOTES_MAX:
            return False
        self._forget(place, done)
        return True

    def _forget(self, place: Place, done: Callable[[], None] = lambda: None) -> None:
        """It is over, whenever the file hears of it: it must not cancel what is placed since."""
        self._switches.pop(place, None)
        self._note(place, lambda file: file.disarm(*place), done)

    def _note(
        self, place: Place, write: Callable[[HistoryFile], None], done: Callable[[], None]
    ) -> None:
        """At most one more of a place than requests may cause: what is armed is over once."""
        self._noting[place] += 1

        def noted(_: None) -> None:
            self._noting[place] -= 1
            if not self._noting[place]:
                del self._noting[place]
            done()

        self._history.note(write, noted)

    def left(self, holder: object, *, clean: bool) -> None:
        """A connection has ended. A clean end of the one that armed last decides, as another that
        still has it may be gone, too, and nobody here knows yet."""
        for place in self._held.pop(holder, ()):
            switch = self._switches.get(place)
            if switch is None or holder not in switch.holders:
                continue  # or armed anew since
            decides = clean and holder == next(reversed(switch.holders))
            del switch.holders[holder]
            if switch.holders and not decides:
                continue  # another one is there
            if not clean:
                self._run(switch)
            elif switch.row.on_close:
                self._run(switch, ms=0)
            else:
                self._forget(place)

    # --- time ----------------------------------------------------------------------------------
    def _run(self, switch: _Switch, ms: int | None = None) -> None:
        switch.due_ns = self._now_ns() + (switch.row.ms if ms is None else ms) * NS_PER_MS
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            now_ns = self._now_ns()
            running = [(p, s) for p, s in self._switches.items() if s.due_ns is not None]
            for place, switch in running:
                if switch.due_ns is not None and switch.due_ns <= now_ns:
                    self._cancel(place, switch)
            if running:
                await asyncio.sleep(TICK_SECONDS)
            else:
                await self._changed.wait()
            self._changed.clear()

    def _cancel(self, place: Place, switch: _Switch) -> None:
        """Its time is over. What the engine cannot take now, it is asked again for."""
        session = place.session if switch.row.scope == "session" else 0
        command = translate.cancel_all(place.account, ALL_INSTRUMENTS, "", session)
        command = command._replace(price_ticks=_CAUSE[place.what])
        try:
            sequence = self._port.submit(command).sequence
        except Refused as refused:
            if refused.reject is not Reject.BUSY:
                log.warning("%s of account %d waits: %s", place.what, place.account, refused)
            return
        switch.due_ns = None
        self._cancelling[sequence] = (place, switch)

    def answer(self, event: Event) -> None:
        """What the engine says, of which its terminal events for these commands count."""
        if not self._cancelling or event.kind not in _ENDS:
            return
        place, switch = self._cancelling.pop(event.sequence, (None, None))
        if place is None or switch is None or self._switches.get(place) is not switch:
            return  # or armed anew meanwhile
        if event.kind == EventKind.CANCEL_ALL_DONE and event.reason == CancelReason.EFFECTS_LIMIT:
            self._run(switch, ms=0)  # there are more
        elif switch.due_ns is None:
            self._forget(place)


_ENDS: Final = (EventKind.CANCEL_ALL_DONE, EventKind.REJECTED)
