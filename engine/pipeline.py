"""order → sequence → journal ∥ match → publish: the page to read first.

    submit ──▶ sequence ──▶ ┬─ journal (group commit, fdatasync) ─┐
                            └─ match (reserve inside) ────────────┴─▶ publish ──▶ subscribers

One group of commands is on its way to the disk at a time. A large one is synced by a thread: then
the group before it is published meanwhile, the kernel matches it, and later commands gather into
the next. A small one, on a disk that has just been quick, is synced here and now: to wake a thread
and be woken by it takes longer than such a sync. Invariant: nobody hears of a command before it is
both durable and matched, everybody hears of all of them in one order, and balances read through
the port are those after the last published group. When the journal fails the engine stops for
good: what was matched but not durable is never published.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from engine.clock import Clock
from engine.journal import FRAME_COMMANDS_MAX, Journal
from engine.port import (
    GroupListener,
    Keeper,
    Market,
    Rates,
    Readiness,
    Sequenced,
    SpaceMarks,
    Subscriber,
)
from engine.records import COMMAND, Balances, Command, CommandArray, CommandKind, EventArray
from engine.rejects import EngineBroken, JournalError, Refused, Reject
from engine.replica import Replica
from engine.snapshot import state_hash
from engine.space import Space

QUEUE_COMMANDS_MAX: Final = 1 << 16
# Taken even while a subscriber is far behind or the disk is nearly full: they only lessen what is
# at risk.
LESSENING: Final = frozenset(map(int, (CommandKind.CANCEL, CommandKind.CANCEL_ALL)))
_MASS_QUOTE: Final = int(CommandKind.MASS_QUOTE)
_RECORD_BYTES: Final = COMMAND.itemsize
EXPIRY_SECONDS: Final = 0.1  # between two looks at whose time has come, when nothing is sent
QUICK_NS: Final = 500_000  # a write that took longer is not waited for here
SMALL_COMMANDS: Final = 64  # more than these take the kernel as long as the disk
SPACE_SECONDS: Final = 0.25  # between two looks at how full the journal's disk is


def _nobody(_commands: int, _commit_ns: int, _match_ns: int, _publish_ns: int, /) -> None:
    pass


class Pipeline:
    """One shard of the exchange. Implements `port.Port`."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        marks: SpaceMarks | None = None,
        quick_ns: int = QUICK_NS,
        steady_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """With `quick_ns` 0 the event loop never waits for the disk. `steady_ns` only measures."""
        self._journal = journal
        self._clock = clock
        self._quick_ns = quick_ns
        self._steady_ns = steady_ns
        self._group_listener: GroupListener = _nobody
        self._write_ns = quick_ns  # what the last one took: how quick the disk is must show first
        self._space = Space(journal.free_bytes, marks or SpaceMarks())
        self._replica = replica = Replica(clock)
        self._sequencer = replica.sequencer
        self._expiries = replica.expiries
        self._timetable = replica.timetable
        self._published = replica.published
        self._stop_listeners: list[Callable[[str], None]] = []
        self._queue: deque[bytes] = deque()  # whole commands, each of one record or several
        self._queued_bytes = 0
        self._oldest_ns = 0  # when the first of the queue came
        self._arrived = asyncio.Event()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._published_sequence = 0
        self._started_from = 0
        self._stopped = "not started"
        self.failure: JournalError | None = None  # what stopped the engine, if it did by itself
        self._closed = False
        self._worker: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, "journal")

    # 1. start: what the journal holds is matched and published again, from a snapshot on

    async def start(self) -> None:
        """Replay the journal to every subscriber, then take commands.

        What a snapshot holds is left out where everybody can do without. Raises JournalError.
        """
        try:
            await self._recover()
        except JournalError as error:
            self._stopped = str(error)
            raise
        self._space.look()
        self._stopped = ""
        self._worker = asyncio.create_task(self._run(), name="pipeline")
        self._keeper = asyncio.create_task(self._keep_time(), name="expiry")
        self._watcher = asyncio.create_task(self._watch_space(), name="space")

    async def _recover(self) -> None:
        self._replica.matcher.warm_up()
        mark = self._replica.restore(self._journal.directory)
        self._published_sequence = self._started_from = mark.sequence
        for frame in self._journal.recover(mark):
            self._replica.follow(frame)
            self._published_sequence = self._sequencer.last_sequence
            await asyncio.sleep(0)  # subscribers with queues drain them meanwhile

    # 2. submit: a place in the order, or a refusal that changes nothing

    def submit(self, command: Command, parts: Sequence[Command] = ()) -> Sequenced:
        if self._stopped:
            raise Refused(Reject.STOPPED)
        if self._queued_bytes >= QUEUE_COMMANDS_MAX * _RECORD_BYTES:
            raise Refused(Reject.BUSY)
        pulls_quotes = command.kind == _MASS_QUOTE and not parts
        if not pulls_quotes and command.kind not in LESSENING:
            if not self._replica.has_room():
                raise Refused(Reject.BUSY)
            if self._space.state == "too_low":
                raise Refused(Reject.DISK_NEARLY_FULL)
        return self._sequence(command, parts, self._expire())

    def is_used(self, account: int, client_id: int) -> bool:
        return self._sequencer.is_used(account, client_id)

    def _sequence(
        self, command: Command, parts: Sequence[Command] = (), now_ns: int = 0
    ) -> Sequenced:
        sequenced, stamped = self._sequencer.sequence(command, parts, now_ns)
        if stamped:
            self._expiries.sequenced(command, sequenced.sequence)
            if not self._queue:  # else it is known that something has arrived
                self._oldest_ns = self._steady_ns()
                self._arrived.set()
            self._queue.append(stamped)
            self._queued_bytes += len(stamped)
        return sequenced

    def _expire(self) -> int:
        """Whose time has come leaves the book before anything else happens; then markets do what
        their time is for. The time that it is now."""
        now_ns = self._sequencer.now_ns()  # a clock that was set back puts nothing off
        for command in self._expiries.due(now_ns):
            self._sequence(command, (), now_ns)
        for command in self._timetable.due(now_ns):
            self._sequence(command, (), now_ns)
        return now_ns

    async def _keep_time(self) -> None:
        """Times come in a quiet market, too."""
        while not self._stopped:
            self._expire()
            await asyncio.sleep(EXPIRY_SECONDS)

    async def _watch_space(self) -> None:
        """Asked where a disk that hangs keeps nobody else waiting."""
        loop = asyncio.get_running_loop()
        while not self._stopped:
            await loop.run_in_executor(self._writer, self._space.look)
            await asyncio.sleep(SPACE_SECONDS)

    # 3. journal ∥ match → publish: one group after the other

    async def _run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                await self._commit_all()
                self._arrived.clear()
        except JournalError as error:
            self._fail(error)
        except Exception as error:
            self._fail(EngineBroken(f"broken: {error!r}"))
            raise

    async def _commit_all(self) -> None:
        """Group after group. A thread has the next one before the last one is published, so that
        the disk never waits for those who hear of them."""
        now_ns = self._steady_ns
        group, durable, since_ns = self._write_group()
        while group:
            commands = np.frombuffer(group, COMMAND)
            begin_ns = now_ns()
            parts = list(self._replica.match(commands))
            match_ns = now_ns() - begin_ns
            await durable
            took_ns = now_ns() - since_ns, match_ns
            if self._is_quick():
                self._publish(parts, commands, *took_ns)
                await asyncio.sleep(0)  # others have their turn
                group, durable, since_ns = self._write_group()
            else:
                group, durable, since_ns = self._write_group()
                self._publish(parts, commands, *took_ns)
            if not group:  # what one command could not finish goes on, or what came meanwhile
                group, durable, since_ns = self._write_group()

    def _is_quick(self) -> bool:
        """Whether what has gathered is better written here than by the thread."""
        return (
            self._queued_bytes <= SMALL_COMMANDS * COMMAND.itemsize
            and self._write_ns < self._quick_ns
            and self._journal.fits(self._queued_bytes)
        )

    def _write_group(self) -> tuple[bytes, "asyncio.Future[None]", int]:
        """Take what has gathered and give it to the disk; empty if there is nothing. The last is
        when the oldest of it came."""
        loop = asyncio.get_running_loop()
        is_quick, since_ns = self._is_quick(), self._oldest_ns
        group = self._take_group()
        if group and not is_quick:
            return group, loop.run_in_executor(self._writer, self._append, group), since_ns
        if group:
            self._append(group)
        durable: asyncio.Future[None] = loop.create_future()
        durable.set_result(None)
        return group, durable, since_ns

    def _append(self, group: bytes) -> None:
        begin_ns = self._clock.now_ns()
        self._journal.append(group)
        self._write_ns = self._clock.now_ns() - begin_ns

    def _take_group(self) -> bytes:
        """As many whole commands as fit into one frame."""
        group: list[bytes] = []
        left = FRAME_COMMANDS_MAX * COMMAND.itemsize
        while self._queue and len(self._queue[0]) <= left:
            stamped = self._queue.popleft()
            left -= len(stamped)
            group.append(stamped)
        taken = b"".join(group)
        self._queued_bytes -= len(taken)
        return taken

    def _publish(
        self, parts: list[EventArray], commands: CommandArray, commit_ns: int, match_ns: int
    ) -> None:
        begin_ns = self._steady_ns()
        for part in parts:
            self._replica.publish(part, replayed=False)
        if not self._stopped:
            self._expire()  # what one command could not finish goes on
        self._published_sequence = last_sequence = int(commands["sequence"][-1])
        publish_ns = self._steady_ns() - begin_ns
        self._group_listener(len(commands), commit_ns, match_ns, publish_ns)
        while self._waiting and self._waiting[0][0] <= last_sequence:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    # 4. when the journal fails, or the end comes

    def _fail(self, failure: JournalError) -> None:
        self.failure = failure
        self._stop(str(failure))
        for listener in self._stop_listeners:
            listener(str(failure))

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        self._queue.clear()
        self._queued_bytes = 0
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(self.failure or JournalError(reason))
        self._waiting.clear()

    async def close(self) -> None:
        """Take nothing more, publish what was taken, then end. Idempotent.

        If the journal fails meanwhile, what it did not take stays unpublished; `ready` says why.
        """
        if self._closed:
            return
        self._closed = True
        if not self._stopped:
            self._stopped = "closed"
            with contextlib.suppress(JournalError):
                await self.settled()
        tasks = [x for x in (self._worker, self._keeper, self._watcher) if x is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stop(self._stopped)
        self._writer.shutdown()
        self._journal.close()

    # the rest of the port

    def subscribe(
        self,
        subscriber: Subscriber,
        has_room: Callable[[], bool] | None = None,
        *,
        keeper: Keeper | None = None,
        heard: Callable[[], int] | None = None,
    ) -> None:
        self._replica.subscribe(subscriber, has_room, keeper=keeper, heard=heard)

    def heard(self) -> int:
        """The last event that no start will ask the journal for, if there is a snapshot of it."""
        return self._replica.heard()

    async def settled(self) -> None:
        last = self._sequencer.last_sequence
        if self._published_sequence >= last:
            return
        if self._worker is None or self._worker.done():
            raise self.failure or JournalError(self._stopped)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((last, waiter))
        await waiter

    def balances(self, account: int) -> Balances:
        return self._published.balances(account)

    def account_of(self, owner: bytes) -> int:
        return self._published.account_of(owner)

    def owner_of(self, account: int) -> bytes:
        return self._published.owner_of(account)

    def markets(self) -> list[Market]:
        return self._published.markets()

    def rates(self, fee_tier: int) -> Rates:
        return self._published.rates(fee_tier)

    def when_stopped(self, listener: Callable[[str], None]) -> None:
        self._stop_listeners.append(listener)

    def when_committed(self, listener: GroupListener) -> None:
        self._group_listener = listener

    def ready(self) -> Readiness:
        return Readiness(
            last_sequence=self._sequencer.last_sequence,
            durable_sequence=self._published_sequence,
            event_number=self._replica.event_number,
            stopped=self._stopped,
            has_room=self._replica.has_room(),
            started_from=self._started_from,
            journal_bytes_free=self._space.free_bytes,
            journal_space=self._space.state,
        )

    def state_hash(self) -> str:
        return state_hash(self._replica.matcher.state)
