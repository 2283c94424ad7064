"""From a journal back to the state it made, identical to the last byte.

Invariant: replaying calls the very function that matched the commands the first time, on the same
bytes, so the events and the state hash come out the same. `pipeline` starts with it; auditors run
it alone with `verify`, and `adopt` takes a journal over from another build.
"""

import contextlib
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import journal, snapshot
from engine.book import StateArray, new_state
from engine.journal import BEGINNING, BUILD, FRAME_BYTES_MAX, Disk, Frame, Journal, Mark
from engine.match import execute
from engine.outbox import OUTBOX
from engine.records import COMMAND, EVENT, CommandArray, EventArray
from engine.rejects import JournalError, SnapshotError
from engine.snapshot import Snapshot, state_hash


class Matcher:
    """A state, the kernel, and a buffer for its events.

    Commands come as read-only arrays everywhere: numba compiles a kernel once per kind of array.
    """

    def __init__(self) -> None:
        self.state: StateArray = new_state()
        self._outbox = np.zeros(1, OUTBOX)

    def warm_up(self) -> None:
        """Compile the kernel (a minute, once per machine and build) or load it."""
        execute(self.state, np.frombuffer(b"", COMMAND), 0, self._outbox)

    def match(self, commands: CommandArray) -> Iterator[EventArray]:
        """The events of the commands, in order, in parts. Each part is a copy.

        commands: shape (n,), dtype COMMAND, sequences consecutive from the state's + 1.
        """
        for count in self._execute(commands):
            # As bytes: numpy copies records whose fields share bytes one field after the other.
            yield np.frombuffer(self._outbox["events"][0, :count].tobytes(), EVENT)

    def pass_over(self, commands: CommandArray) -> int:
        """The same for who wants the state alone; how many events there were."""
        return sum(self._execute(commands))

    def _execute(self, commands: CommandArray) -> Iterator[int]:
        """The number of events in the outbox, each time it is full and at the end."""
        assert len(commands) == 0 or commands["sequence"][0] == self.state["sequence"][0] + 1
        done = 0
        while done < len(commands):
            done = execute(self.state, commands, done, self._outbox)
            yield int(self._outbox["count"][0])


def warm_up() -> None:
    """Compile the kernel, or load it, before the first command has to wait for it."""
    Matcher().warm_up()


class Replayed(NamedTuple):
    sequence: int
    events: int  # from the journal's beginning, or from the snapshot that stands for it
    state_hash: str
    seconds: float
    snapshots: int  # on the way, whose states were the replay's


def replay(directory: Path) -> Replayed:
    """Replay a journal directory without changing it. Raises JournalError."""
    return _replay(Matcher(), directory)


def verify(directory: Path) -> Replayed:
    """The same, and check the state. Raises AssertionError if it breaks an invariant."""
    from engine.invariants import check_invariants  # compiled for this alone; no node waits for it

    matcher = Matcher()
    replayed = _replay(matcher, directory)
    check_invariants(matcher.state)
    return replayed


class Adopted(NamedTuple):
    replayed: Replayed
    old_build: str
    new_build: str


def adopt(directory: Path, disk: Disk, build: str = BUILD) -> Adopted:
    """Make a journal this build's, which makes a state of it that keeps every invariant.

    Raises JournalError; then it is as before, or its torn tail is cut, or it is adopted already.
    """
    with closing(Journal(directory, disk, build=build)) as writer:  # nobody else writes meanwhile
        try:
            replayed = verify(directory)
        except AssertionError as error:
            raise JournalError(
                f"{directory}: build {build} makes a state of it that breaks an invariant, so "
                f"nothing was written: {error}"
            ) from error
        for _ in writer.recover(adopting=True):
            pass
        return Adopted(replayed, writer.adopt(), build)


def _groups(frames: Iterable[Frame], stops: Container[Mark]) -> Iterator[tuple[CommandArray, Mark]]:
    """The commands of all frames, and the mark behind them: of small frames many at once, up to
    each stop. One call into the kernel costs as much as ten commands."""
    bodies: list[memoryview] = []
    size = 0
    mark = BEGINNING
    for frame in frames:
        if size + len(frame.body) > FRAME_BYTES_MAX or mark in stops:
            yield np.frombuffer(b"".join(bodies), COMMAND), mark
            bodies, size = [], 0
        bodies.append(frame.body)
        size += len(frame.body)
        mark = frame.end
    yield np.frombuffer(b"".join(bodies), COMMAND), mark


def _replay(matcher: Matcher, directory: Path) -> Replayed:
    """Raises JournalError also where a snapshot of this build has another state."""
    matcher.warm_up()
    begin = time.perf_counter()
    snapshots = _snapshots(directory)
    after = _beginning(matcher, directory, snapshots)
    events = agreeing = 0
    for commands, mark in _groups(journal.read(directory, after), snapshots):
        events += matcher.pass_over(commands)
        kept = snapshots.get(mark)
        if kept is not None and kept.build == BUILD:
            if state_hash(matcher.state) != kept.state_hash:
                raise JournalError(
                    f"{kept.path}: has state {kept.state_hash}, the journal makes "
                    f"{state_hash(matcher.state)} of the same commands: move the snapshot away"
                )
            agreeing += 1
    sequence = int(matcher.state["sequence"][0])
    seconds = time.perf_counter() - begin
    return Replayed(sequence, events, state_hash(matcher.state), seconds, agreeing)


def _snapshots(directory: Path) -> dict[Mark, Snapshot]:
    """Those that can be read, the oldest first."""
    return {kept.mark: kept for kept in reversed(list(snapshot.readable(directory)))}


def _beginning(matcher: Matcher, directory: Path, snapshots: dict[Mark, Snapshot]) -> Mark:
    """Where the replay begins: where the journal does or, if that is gone, at the oldest snapshot
    that fits. Raises JournalError."""
    oldest = journal.oldest(directory)
    if oldest == BEGINNING:
        return BEGINNING
    for kept in snapshots.values():
        with contextlib.suppress(SnapshotError):
            if kept.mark.sequence >= oldest.sequence:
                snapshot.load(kept, matcher.state)
                return kept.mark
    raise JournalError(
        f"{directory}: the journal begins at sequence {oldest.sequence + 1}, and there is no "
        "snapshot that can be read to begin with"
    )
