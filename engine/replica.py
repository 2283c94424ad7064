"""All that follows from the journal's commands: the state, and what everybody made of its events.

A pure function of the commands in their order. The live engine has one and matches in it what it
sequences; a start follows the journal with it, from a snapshot or from the first command; who makes
snapshots reads the journal into one of its own, beside the running node. Invariant: after the same
commands two replicas hold the same, and one that was restored goes on as if it had heard every
event. `pipeline` calls, and whoever makes a snapshot.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from engine import journal, snapshot
from engine.clock import Clock
from engine.expiry import Expiries
from engine.journal import BEGINNING, BUILD, Disk, Frame, Mark
from engine.port import Batch, Keeper, Subscriber
from engine.publish import Published
from engine.records import (
    COMMAND,
    Balances,
    CommandArray,
    CommandKind,
    EventArray,
    TimeInForce,
    decode_commands,
    decode_events,
)
from engine.rejects import DamagedJournal, JournalError, SnapshotError
from engine.replay import Matcher
from engine.sequence import Sequencer
from engine.snapshot import Snapshot
from engine.timetable import Timetable

SEQUENCER: Final = "sequencer/1"
EXPIRIES: Final = "expiries/1"
TIMETABLE: Final = "timetable/1"
PUBLISHED: Final = "published/1"

log = logging.getLogger("compex.engine")


class _Listener(NamedTuple):
    subscriber: Subscriber
    keeper: Keeper | None
    heard: Callable[[], int] | None

    def may_miss(self, event_number: int) -> bool:
        """Whether a start may leave out the events up to this number."""
        if self.keeper is not None:
            return True
        return self.heard is not None and event_number <= self.heard()


class Replica:
    """A `port.Source`. Parts that are public here are `pipeline`'s to use."""

    def __init__(self, clock: Clock) -> None:
        self.matcher = Matcher()
        self.sequencer = Sequencer(clock)
        self.expiries = Expiries()
        self.timetable = Timetable()
        self.published = Published()
        self.event_number = 0
        self._commands: CommandArray = np.empty(0, COMMAND)
        self._listeners: list[_Listener] = []
        self._rooms: list[Callable[[], bool]] = []

    def subscribe(
        self,
        subscriber: Subscriber,
        has_room: Callable[[], bool] | None = None,
        *,
        keeper: Keeper | None = None,
        heard: Callable[[], int] | None = None,
    ) -> None:
        self._listeners.append(_Listener(subscriber, keeper, heard))
        if has_room is not None:
            self._rooms.append(has_room)

    def has_room(self) -> bool:
        return False not in [room() for room in self._rooms]  # a generator costs more than they do

    def balances(self, account: int) -> Balances:
        return self.published.balances(account)

    # --- forward ---------------------------------------------------------------------------------
    def follow(self, frame: Frame) -> None:
        """What the journal has next: sequenced already, matched and published again."""
        self.sequencer.resume(frame.commands)
        kinds, lives = frame.commands["kind"], frame.commands["time_in_force"]
        for command in decode_commands(frame.commands[kinds == CommandKind.EXPIRE]):
            self.expiries.asked(command)
        for command in decode_commands(frame.commands[lives == TimeInForce.GTT]):
            self.expiries.sequenced(command, command.sequence)
        for part in self.match(frame.commands):
            self.publish(part, replayed=True)

    def match(self, commands: CommandArray) -> Iterator[EventArray]:
        """What is published next are their events, before others are matched."""
        self._commands = commands
        return self.matcher.match(commands)

    def publish(self, array: EventArray, *, replayed: bool) -> None:
        events = decode_events(array)
        batch = Batch(self.event_number + 1, array, events, replayed, self._commands)
        self.event_number += len(events)
        self.published.apply(self.matcher.state, events)
        self.sequencer.answered(events)
        self.expiries.published(events)
        self.timetable.published(events)
        for listener in self._listeners:
            listener.subscriber(batch)

    # --- snapshots -------------------------------------------------------------------------------
    def restore(self, directory: Path) -> Mark:
        """Take over the newest snapshot that everybody can go on from; the mark it was made at.

        BEGINNING if there is none. Raises JournalError if then the journal's beginning is missing,
        or if a part cannot read what it saved.
        """
        begin = journal.oldest(directory)
        for found in self._usable(directory, begin):
            try:
                self._load(found)
            except SnapshotError as error:
                log.warning("a snapshot is left aside: %s", error)
                self.matcher = Matcher()
                continue
            return found.mark
        if begin != BEGINNING:
            raise DamagedJournal(
                f"{directory}: the journal begins at sequence {begin.sequence + 1}, and there is "
                "no snapshot to go on from: restore a snapshot or the segments before it"
            )
        return BEGINNING

    def _usable(self, directory: Path, begin: Mark) -> Iterator[Snapshot]:
        """This build's, the newest first; where history is missing, then another build's, too, and
        those that keepers made in a former version."""
        others: list[Snapshot] = []
        for path in snapshot.paths(directory):
            try:
                found = snapshot.read(path)
                self._check(found)
                journal.check_mark(directory, found.mark)
            except (SnapshotError, JournalError) as error:
                log.warning("a snapshot is left aside: %s", error)
                continue
            if found.build == BUILD and found.names >= self._names:
                yield found
            elif begin != BEGINNING:
                others.append(found)
        yield from others

    @property
    def _keepers(self) -> list[Keeper]:
        return [listener.keeper for listener in self._listeners if listener.keeper is not None]

    @property
    def _names(self) -> set[str]:
        """What a snapshot made now would keep."""
        keepers = {keeper.name for keeper in self._keepers}
        return {SEQUENCER, EXPIRIES, TIMETABLE, PUBLISHED, *keepers}

    def _check(self, found: Snapshot) -> None:
        """Raises SnapshotError unless everybody can go on from it."""
        known = found.names | {keeper.name for keeper in self._keepers if _kept_as(keeper, found)}
        if missing := self._names - known:
            raise SnapshotError(f"{found.path}: nothing is kept in it for {sorted(missing)}")
        if not all(listener.may_miss(found.event_number) for listener in self._listeners):
            raise SnapshotError(f"{found.path}: somebody must still hear of events before it")

    def _load(self, found: Snapshot) -> None:
        kept = snapshot.load(found, self.matcher.state)
        try:
            self.sequencer.load(kept[SEQUENCER])
            self.expiries.load(kept[EXPIRIES])
            self.timetable.load(kept[TIMETABLE])
            self.published.load(kept[PUBLISHED], self.matcher.state)
            for keeper in self._keepers:
                keeper.load(kept[_kept_as(keeper, found)])
        except (ValueError, msgspec.MsgspecError) as error:
            # It is whole, so it was saved like this; what has taken over a part of it is of no use.
            raise JournalError(f"{found.path}: move it away, it cannot be read: {error}") from error
        self.event_number = found.event_number

    def save(self, directory: Path, disk: Disk, mark: Mark) -> Snapshot:
        """A snapshot of what was followed, which is all up to the mark. Raises SnapshotError."""
        assert mark.sequence == self.sequencer.last_sequence
        kept = {
            SEQUENCER: self.sequencer.save(),
            EXPIRIES: self.expiries.save(),
            TIMETABLE: self.timetable.save(),
            PUBLISHED: self.published.save(),
        }
        for listener in self._listeners:
            assert listener.keeper is not None, "what is not kept would be missing"
            kept[listener.keeper.name] = listener.keeper.save()
        return snapshot.write(directory, disk, mark, self.event_number, self.matcher.state, kept)

    def heard(self) -> int:
        """The last event that every listener can do without, beside a snapshot of it."""
        return min(
            (
                0 if listener.heard is None else listener.heard()
                for listener in self._listeners
                if listener.keeper is None
            ),
            default=self.event_number,
        )


def _kept_as(keeper: Keeper, found: Snapshot) -> str:
    """Under which of its names a snapshot has it, the newest one there is; "" if under none."""
    return next((name for name in (keeper.name, *keeper.former) if name in found.names), "")


def take_snapshot(directory: Path, disk: Disk, replica: Replica) -> Snapshot | None:
    """Follow a journal, also one that is being written, and keep what came of it.

    The replica is new. The last frame is left out: of the one before it, the writer has seen to it
    that it is durable. None if there is nothing new since the last snapshot. Raises JournalError,
    SnapshotError.
    """
    begin = mark = replica.restore(directory)
    last: Frame | None = None
    for frame in journal.read(directory, mark):
        if last is not None:
            replica.follow(last)
            mark = last.end
        last = frame
    return None if mark == begin else replica.save(directory, disk, mark)


def retain(directory: Path, keep: int, needed: int, *, history: bool) -> list[Path]:
    """Remove snapshots that are no longer wanted and, without `history`, the segments before all
    that are; what was removed.

    The newest `keep` stay, and one of at most event `needed`, which a start can go on from. One
    that cannot be read is left to be looked at. Raises JournalError, SnapshotError, OSError.
    """
    found = list(snapshot.readable(directory))
    wanted = found[:keep]
    if not any(old.event_number <= needed for old in wanted):
        wanted += [old for old in found[keep:] if old.event_number <= needed][:1]
    removed = [old.path for old in found if old not in wanted]
    for path in removed:
        path.unlink()
    # All of those a start can go on from must be lost before it needs what is older than they are.
    enough = [old for old in wanted if old.event_number <= needed]
    if not history and enough:
        for old in wanted:
            snapshot.check(old)
        removed += journal.retire(directory, min(old.mark.sequence for old in wanted) + 1)
    return removed
