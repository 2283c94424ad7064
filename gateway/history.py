"""Private streams as they were told, kept in a file, and told again from any number on.

    feed ─▶ put ─▶ rows that wait ─▶ one writer ─▶ file        (in groups, off the event loop)
                        └────────────┬──────────────┘
                                  Resume ─▶ a listener that was away, then the hub

Invariant: nothing blocks the event loop but the short reads of `fills` and `leases`; a row stays in
memory until the group after its own is in the file, so who has read the file to its end finds what
follows here. The file may be behind the engine, never ahead: a start hears again what it has not.
The feed puts, sessions resume and ask, through the feed; the node opens and closes it.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
from compex_client import messages as m

from engine.port import Batch
from gateway import wire
from gateway.history_file import FILL, KIND_OF, LEASE, ArmedRow, HistoryError, HistoryFile, Row
from gateway.hub import Listener

ROWS_WAITING_MAX: Final = 1 << 16  # before the writer; while there are as many, no order is taken
GROUP_ROWS: Final = 4_096  # at a start, when nobody is kept waiting, so many are written at once
LINGER_SECONDS: Final = 0.02  # rows gather so long: the journal has what they say
RETRY_SECONDS: Final = 1.0  # after the file failed
CHECKPOINT_ROWS: Final = 50_000
PAGE_ROWS: Final = 512  # read at once for who resumes
ROOM_SECONDS: Final = 0.01  # between two looks whether a slow one has taken what it has
ASKED_MAX: Final = 1_024  # questions before the reader; further ones are refused
TRIM_ROWS: Final = 4_096  # deleted in one transaction
SWEEP_SECONDS: Final = 600.0  # between two looks at what is too old
DAY_US: Final = 86_400 * 1_000_000
ANY_EVENT: Final = 1 << 62

T = TypeVar("T")
log = logging.getLogger("compex.history")
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(m.ServerMessage).decode


class _Aseq(msgspec.Struct):
    aseq: int


_numbered: Final = msgspec.msgpack.Decoder(_Aseq).decode


class Reader(Listener, Protocol):
    """A listener who may be told more, for now."""

    @property
    def has_room(self) -> bool: ...


class Keep(NamedTuple):
    """How much is kept of each account, at least; `days` 0: whatever its age."""

    messages: int = 100_000
    days: int = 0


class Resume:
    """One reader on its way from a number to the present, whose number `present` says; `arrived`
    is called there, once."""

    def __init__(
        self,
        reader: Reader,
        account: int,
        from_aseq: int,
        present: Callable[[], int],
        arrived: Callable[[], None],
    ) -> None:
        self.reader: Final = reader
        self.account: Final = account
        self.next = from_aseq
        self.present: Final = present
        self.arrived: Final = arrived
        self.page: deque[tuple[int, bytes]] = deque()  # read and not yet told
        self.is_over = False

    def tell(self, aseq: int, message: bytes) -> None:
        assert aseq == self.next, "a kept stream has no gap"
        codec = self.reader.codec
        is_same = codec is wire.MSGPACK
        self.reader.send(codec.frame(message) if is_same else codec.encode(_unpack(message)))
        self.next += 1


class History:
    """`path` None keeps it in memory, for as long as the process lives.

    With `from_anywhere` a file that is new begins wherever the engine's start does: what was before
    is gone. Raises HistoryError.
    """

    def __init__(
        self,
        path: Path | None = None,
        keep: Keep | None = None,
        *,
        time_ns: Callable[[], int] | None = None,
        from_anywhere: bool = False,
    ) -> None:
        self._path = path
        self._keep = keep or Keep()
        self._time_ns = time_ns
        self._file = HistoryFile(path)
        self._begin, self._begin_raw = self._file.covered()
        self._safe = self._begin
        self._is_anywhere = self._begin == 0 and (from_anywhere or path is None)
        self._oldest = self._file.oldest()
        self._rows: list[Row] = []  # no group of the writer has them
        self._in_hand: list[Row] = []  # the group on its way, and
        self._last: list[Row] = []  # the one before it, which is in the file
        self._tails: dict[int, deque[Row]] = {}  # all of those, by account
        self._heard = (self._begin, self._begin_raw)  # the last event heard
        self._since_checkpoint = 0
        self._over: dict[int, int] = {}  # accounts that have more than is kept: their last number
        self._resumes: list[Resume] = []
        self._asked: deque[tuple[Callable[[HistoryFile], Any], Callable[[Any], None]]] = deque()
        self._has_rows = asyncio.Event()
        self._has_work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reader: HistoryFile | None = None
        self._executor = None if path is None else ThreadPoolExecutor(1, "history")
        self._is_closed = False
        self.failure = ""  # why what is kept cannot be this journal's

    @property
    def messages_kept(self) -> int:
        """Of each account, at least."""
        return self._keep.messages

    def start(self) -> None:
        """Write and answer from now on, within the running loop. Again is harmless."""
        if not self._tasks and not self._is_closed:
            for work in (self._keep_writing(), self._keep_serving(), self._keep_sweeping()):
                task = asyncio.create_task(work, name="history")
                task.add_done_callback(_report)
                self._tasks.append(task)

    # --- from the engine -----------------------------------------------------------------------
    def lacks(self, event_number: int) -> bool:
        """Whether what follows from this event is still to be put."""
        return event_number > self._begin

    def put(self, account: int, event_number: int, message: m.Numbered, client_id: int) -> None:
        row = Row(
            account, message.aseq, event_number, KIND_OF[type(message)], client_id,
            message.time_us, _pack(message),
        )  # fmt: skip
        self._rows.append(row)
        tail = self._tails.get(account)
        if tail is None:
            tail = self._tails[account] = deque()
            self._oldest.setdefault(account, row.aseq)
        tail.append(row)

    def on_batch(self, batch: Batch) -> None:
        """The engine's subscriber, behind the feed: all that the events made is put."""
        last = batch.first_number + len(batch.events) - 1
        if batch.first_number <= self._begin <= last:
            same = batch.events[self._begin - batch.first_number].pack() == self._begin_raw
            if not same:
                self.failure = f"event {self._begin} of the journal is another one"
        if last <= self._heard[0] or self.failure:
            return
        self._heard = (last, batch.events[-1].pack())
        if not batch.replayed:
            self.start()
            self._has_rows.set()
        elif len(self._rows) >= GROUP_ROWS and not self._tasks:
            self._take_group()
            self._file.write(self._in_hand, *self._heard)
            self._written()

    @property
    def is_written(self) -> bool:
        """Whether the file has all that was heard."""
        return not self._rows and not self._in_hand

    def has_room(self) -> bool:
        return len(self._rows) + len(self._in_hand) < ROWS_WAITING_MAX

    def heard(self) -> int:
        """The last event that need not come again; the one it ends with is compared."""
        return ANY_EVENT if self._is_anywhere else max(0, self._safe - 1)

    def check(self, last_event: int) -> None:
        """After a start: raises HistoryError if the file is not of the journal that was heard."""
        if self._begin > last_event:
            self.failure = f"the journal ends with event {last_event}, before {self._begin}"
        if self.failure:
            raise HistoryError(f"{self._path} is of another journal, move it away: {self.failure}")

    # --- the writer ----------------------------------------------------------------------------
    async def _off(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._executor is None:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def _keep_writing(self) -> None:
        while True:
            await self._has_rows.wait()
            await asyncio.sleep(LINGER_SECONDS)
            self._has_rows.clear()
            try:
                await self._write_group()
                await self._trim()
            except sqlite3.Error as error:  # the rows stay where they are
                log.error("private streams are not kept for now: %s", error)
                self._has_rows.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _write_group(self) -> None:
        self._take_group()
        await self._off(self._file.write, self._in_hand, *self._heard)
        self._since_checkpoint += len(self._in_hand)
        self._written()
        if self._since_checkpoint >= CHECKPOINT_ROWS:
            self._since_checkpoint = 0
            self._safe = max(self._safe, await self._off(self._file.checkpoint))

    def _take_group(self) -> None:
        """All rows there are, behind those of a group that failed."""
        self._in_hand += self._rows
        self._rows = []

    def _written(self) -> None:
        """The group in hand is in the file: the one before it can be forgotten here."""
        for row in self._last:
            tail = self._tails[row.account]
            assert tail.popleft() is row
            if not tail:
                del self._tails[row.account]
        for row in self._in_hand:
            if row.aseq - self._oldest[row.account] >= self._kept_and_slack:
                self._over[row.account] = row.aseq
        self._last, self._in_hand = self._in_hand, []

    # --- what is not kept any more -------------------------------------------------------------
    @property
    def _kept_and_slack(self) -> int:
        return self._keep.messages + min(self._keep.messages // 16, TRIM_ROWS)

    async def _trim(self) -> None:
        """Of each account a part, so that the writer's rows do not wait long."""
        for account, newest in list(self._over.items()):
            below = newest - self._keep.messages + 1
            await self._forget(account, below)
            if self._oldest[account] >= below:
                del self._over[account]

    async def _forget(self, account: int, below: int) -> None:
        """Messages before that number, but for what somebody is being told."""
        oldest = self._oldest[account]
        needed = [x.next for x in self._resumes if x.account == account and not x.is_over]
        to = min([below, oldest + TRIM_ROWS, *needed])
        if to > oldest:
            self._oldest[account] = to  # first: whoever asks now must not begin before it
            await self._off(self._file.trim, account, to)

    async def _keep_sweeping(self) -> None:
        """What is older than the days kept."""
        while self._keep.days and self._time_ns is not None:
            since_us = self._time_ns() // 1_000 - self._keep.days * DAY_US
            for account in list(self._oldest):
                first = await self._off(self._file.first_since, account, since_us)
                while first and self._oldest[account] < first:
                    before = self._oldest[account]
                    await self._forget(account, first)
                    if self._oldest[account] == before:
                        break  # somebody is being told it
            await asyncio.sleep(SWEEP_SECONDS)

    # --- told again ----------------------------------------------------------------------------
    def oldest_of(self, account: int, otherwise: int) -> int:
        return self._oldest.get(account, otherwise)

    def resume(self, resume: Resume) -> None:
        """Tell the reader everything from its number on; it is not to be in the hub meanwhile."""
        self._resumes.append(resume)
        self.start()
        self._has_work.set()

    def ask(self, read: Callable[[HistoryFile], T], answer: Callable[[T], None]) -> bool:
        """Have something read or written in the file; False while too many wait for that."""
        if len(self._asked) >= ASKED_MAX:
            return False
        self._asked.append((read, answer))
        self.start()
        self._has_work.set()
        return True

    def ask_order(
        self, account: int, client_id: int, answer: Callable[[list[m.Order | m.Fill]], None]
    ) -> bool:
        """What is kept about the order of a client id: its first message, its last `order` and the
        last one of all, or fewer."""

        def merge(found: list[bytes]) -> None:
            last = _aseq_of(found[-1]) if found else 0
            here = [x.message for x in self._tail(account, last) if x.client_id == client_id]
            answer([x for x in map(_unpack, found + here) if isinstance(x, m.Order | m.Fill)])

        return self.ask(lambda file: file.of_order(account, client_id), merge)

    def ask_kept(
        self,
        kind: int,
        account: int,
        after: int,
        limit: int,
        answer: Callable[[list[m.ServerMessage]], None],
    ) -> bool:
        """As `fills` and `leases`, off the event loop."""

        def merge(found: list[bytes]) -> None:
            answer(self._with_tail(found, kind, account, after, limit))

        return self.ask(lambda file: file.of_kind(kind, account, after + 1, limit), merge)

    async def _keep_serving(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            try:
                await self._answer_all()
                await self._tell_all()
            except sqlite3.Error as error:
                log.error("what is kept cannot be read for now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._has_work.set()
            if self._resumes:
                await asyncio.sleep(ROOM_SECONDS)
                self._has_work.set()

    async def _answer_all(self) -> None:
        while self._asked:
            read, answer = self._asked[0]
            found = await self._off(read, self._file)
            self._asked.popleft()
            answer(found)

    async def _tell_all(self) -> None:
        """Each of those who resume as much as it has room for."""
        for resume in list(self._resumes):
            while not resume.is_over and resume.reader.has_room:
                if not resume.page and not self._is_here(resume):
                    resume.page.extend(
                        await self._off(self._file.page, resume.account, resume.next, PAGE_ROWS)
                    )
                    assert resume.page or self._is_here(resume), "a kept stream has no gap"
                self._tell(resume)
            if resume.is_over:
                self._resumes.remove(resume)

    def _is_here(self, resume: Resume) -> bool:
        """Whether all that is left to tell is in memory."""
        tail = self._tails.get(resume.account)
        return resume.next > resume.present() or bool(tail and tail[0].aseq <= resume.next)

    def _tell(self, resume: Resume) -> None:
        """What was read, then what is here: when there is no more, that is the present."""
        while resume.page:
            if resume.is_over or not resume.reader.has_room:
                return
            resume.tell(*resume.page.popleft())
        if resume.is_over or not self._is_here(resume):
            return
        for row in self._tail(resume.account, resume.next - 1):
            if not resume.reader.has_room:
                return
            resume.tell(row.aseq, row.message)
        assert resume.next == resume.present() + 1, "a kept stream has no gap"
        resume.is_over = True
        resume.arrived()

    def _tail(self, account: int, after: int) -> list[Row]:
        """What is in memory of an account, with numbers above that."""
        return [row for row in self._tails.get(account, ()) if row.aseq > after]

    # --- read here and now ---------------------------------------------------------------------
    def fills(self, account: int, after: int, limit: int) -> list[m.Fill]:
        """At most so many fills, oldest first, with numbers above `after`. A short read of the
        file, at once. Raises sqlite3.Error."""
        return [x for x in self._kept(FILL, account, after, limit) if isinstance(x, m.Fill)]

    def leases(self, account: int, after: int, limit: int) -> list[m.Lease]:
        """As `fills`: each state that a lease has been in."""
        return [x for x in self._kept(LEASE, account, after, limit) if isinstance(x, m.Lease)]

    def _kept(self, kind: int, account: int, after: int, limit: int) -> list[m.ServerMessage]:
        if self._reader is None:
            alone = self._path is None
            self._reader = self._file if alone else HistoryFile(self._path, reads_only=True)
        found = self._reader.of_kind(kind, account, after + 1, limit)
        return self._with_tail(found, kind, account, after, limit)

    def _with_tail(
        self, found: list[bytes], kind: int, account: int, after: int, limit: int
    ) -> list[m.ServerMessage]:
        last = _aseq_of(found[-1]) if found else after
        more = [row.message for row in self._tail(account, last) if row.kind == kind]
        return [_unpack(message) for message in (found + more)[:limit]]

    def armed(self) -> list[ArmedRow]:
        """As a start finds it."""
        return self._file.armed()

    # --- the end -------------------------------------------------------------------------------
    async def close(self) -> None:
        """Write what there is. Idempotent."""
        if self._is_closed:
            return
        await self._stop()
        try:
            self._take_group()
            if not self.failure:
                self._file.write(self._in_hand, *self._heard)
            self._file.checkpoint()
        except sqlite3.Error as error:
            log.error("the last of the private streams is left to the next start: %s", error)
        self._let_go()

    async def abandon(self) -> None:
        """As a crash leaves it."""
        if not self._is_closed:
            await self._stop()
            self._let_go()

    async def _stop(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._executor is not None:
            self._executor.shutdown()

    def _let_go(self) -> None:
        self._file.close()
        if self._reader is not None:
            self._reader.close()


def _aseq_of(message: bytes) -> int:
    return _numbered(message).aseq


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("private streams are not kept any more", exc_info=error)
