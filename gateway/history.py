"""Private streams as they were told, kept in a file, and told again from any number on.

    feed ─▶ put ─▶ records that wait ─▶ one writer ─▶ file     (in groups, off the event loop)
                          └────────────┬──────────────┘
                                    Resume ─▶ a listener that was away, then the hub

Invariant: nothing blocks the event loop but the short reads of `fills` and `leases`; a record stays
in memory until the group after its own is in the file, so who has read the file to its end finds
what follows here. The file may be behind the engine, never ahead: a start hears again what it has
not. The feed puts, sessions resume and ask, through the feed; the node opens and closes it.
"""

import asyncio
import contextlib
import logging
import sqlite3
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from compex_client import messages as m

from engine.port import Batch
from engine.records import SECOND_NS
from gateway import facts
from gateway.facts import FILL, LEASE, Ticker, aseq_of, last_of_client
from gateway.history_file import (
    ASEQ_MAX,
    EVERY,
    ArmedRow,
    Found,
    Group,
    HistoryError,
    HistoryFile,
    Kept,
)
from gateway.hub import Listener

WAITING_MAX: Final = 1 << 16  # records before the writer; as long as they are, no order is taken
GROUP_RECORDS: Final = 4_096  # as soon as there are as many they are written
LINGER_SECONDS: Final = 0.2  # others gather so long: the journal has what they say
RETRY_SECONDS: Final = 1.0  # after the file failed
CHECKPOINT_RECORDS: Final = 50_000
READ_RECORDS: Final = 512  # at once, for who resumes
ROOM_SECONDS: Final = 0.01  # between two looks whether a slow one has taken what it has
ASKED_MAX: Final = 1_024  # accounts with questions before the reader; those of more are refused
QUESTIONS_MAX: Final = 64  # of one account, for fills and leases; further ones are refused
SEARCHES_MAX: Final = 64  # of one account, for orders by client id; further ones are refused
SEARCHED_RECORDS: Final = 8_192  # looked at between two pauses of ROOM_SECONDS, for all accounts
TRIM_RECORDS: Final = 4_096  # deleted in one transaction
SWEEP_SECONDS: Final = 600.0  # between two looks at what is too old
DAY_NS: Final = 86_400 * SECOND_NS
ANY_EVENT: Final = 1 << 62

T = TypeVar("T")
_Work: TypeAlias = tuple[Callable[[HistoryFile], Any], Callable[[Any], None]]
log = logging.getLogger("compex.history")


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
        self.page: deque[Kept] = deque()  # read and not yet told
        self.is_over = False

    def tell(self, message: m.Numbered) -> None:
        assert message.aseq == self.next, "a kept stream has no gap"
        self.reader.send(self.reader.codec.encode(message))
        self.next += 1


class Search(NamedTuple):
    """For what became of an order, from the newest record of its account back to the oldest."""

    client_id: int
    answer: Callable[[m.OrderInfo | None], None]
    below: int = 0  # which number is next; 0: none was looked at, the newest are in memory


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
        self.ticker: Ticker = str  # of an instrument; the private stream says how
        self._path = path
        self._keep = keep or Keep()
        self._time_ns = time_ns
        self._file = HistoryFile(path)
        self.begin, self._begin_raw = self._file.covered()  # what events up to there made is kept
        self._safe = self.begin
        self._is_anywhere = self.begin == 0 and (from_anywhere or path is None)
        self._oldest = self._file.oldest()
        self._waiting = Group()  # what the writer does not have yet,
        self._in_hand = Group()  # what is on its way,
        self._last = Group()  # and what was before it, which is in the file
        self._heard = (self.begin, self._begin_raw)  # the last event heard
        self._since_checkpoint = 0
        self._over: dict[int, int] = {}  # accounts that have more than is kept: their last number
        self._resumes: list[Resume] = []
        self._notes: deque[_Work] = deque()
        self._asked: deque[_Work] = deque()
        self._asked_by: Counter[int] = Counter()  # how many of those are an account's
        self._searches: dict[int, deque[Search]] = {}  # by account, whose turn it is first
        self._has_records = asyncio.Event()
        self._has_many = asyncio.Event()
        self._has_notes = asyncio.Event()
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
            for work in (
                self._keep_writing(),
                self._keep_noting(),
                self._keep_serving(),
                self._keep_sweeping(),
            ):
                task = asyncio.create_task(work, name="history")
                task.add_done_callback(_report)
                self._tasks.append(task)

    # --- from the engine -----------------------------------------------------------------------
    def put(self, account: int, record: bytes) -> None:
        """The next of an account's messages, of an event behind `begin`."""
        group = self._waiting
        records = group.streams[EVERY].get(account)
        if records is None:
            self._begin_stream(account, record)
        else:
            records.append(record)
        group.count += 1

    def put_of_kind(self, kind: int, account: int, record: bytes) -> None:
        """Behind `put`: a fill or a lease, which is asked for by its kind as well."""
        self._waiting.streams[kind].setdefault(account, []).append(record)

    def _begin_stream(self, account: int, record: bytes) -> None:
        self._waiting.streams[EVERY][account] = [record]
        if account not in self._oldest:
            self._oldest[account] = self._waiting.begun[account] = aseq_of(record)

    def on_batch(self, batch: Batch) -> None:
        """The engine's subscriber, behind the feed: all that the events made is put."""
        last = batch.first_number + len(batch.events) - 1
        if batch.first_number <= self.begin <= last:
            same = batch.events[self.begin - batch.first_number].pack() == self._begin_raw
            if not same:
                self.failure = f"event {self.begin} of the journal is another one"
        if last <= self._heard[0] or self.failure:
            return
        self._heard = (last, batch.events[-1].pack())
        is_large = self._waiting.count >= GROUP_RECORDS
        if not batch.replayed:
            self.start()
            self._has_records.set()
            if is_large:
                self._has_many.set()
        elif is_large and not self._tasks:  # nobody is kept waiting
            self._take_group()
            self._file.write(self._in_hand)
            self._written()

    @property
    def is_written(self) -> bool:
        """Whether the file has all that was heard."""
        return not self._waiting.count and not self._in_hand.count

    @property
    def owes_replies(self) -> bool:
        """Whether somebody waits to hear what is in the file, or that something is."""
        return bool(self._notes or self._asked or self._searches)

    def has_room(self) -> bool:
        return self._waiting.count + self._in_hand.count < WAITING_MAX

    def heard(self) -> int:
        """The last event that need not come again; the one it ends with is compared."""
        return ANY_EVENT if self._is_anywhere else max(0, self._safe - 1)

    def check(self, last_event: int) -> None:
        """After a start: raises HistoryError if the file is not of the journal that was heard."""
        if self.begin > last_event:
            self.failure = f"the journal ends with event {last_event}, before {self.begin}"
        if self.failure:
            raise HistoryError(f"{self._path} is of another journal, move it away: {self.failure}")

    # --- the writer ----------------------------------------------------------------------------
    async def _off(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._executor is None:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def _keep_writing(self) -> None:
        while True:
            await self._has_records.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._has_many.wait()
            self._has_records.clear()
            self._has_many.clear()
            try:
                await self._write_group()
                await self._trim()
            except sqlite3.Error as error:  # the group stays in hand
                log.error("private streams are not kept for now: %s", error)
                self._has_records.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _write_group(self) -> None:
        if not self._in_hand.event:
            self._take_group()
        await self._off(self._file.write, self._in_hand)
        self._since_checkpoint += self._in_hand.count
        self._written()
        if self._since_checkpoint >= CHECKPOINT_RECORDS:
            self._since_checkpoint = 0
            self._safe = max(self._safe, await self._off(self._file.checkpoint))

    def _take_group(self) -> None:
        """All there is. One that failed is written again just as it was, before any other."""
        assert not self._in_hand.event, "one group at a time"
        self._in_hand, self._waiting = self._waiting, Group()
        self._in_hand.event, self._in_hand.raw = self._heard

    def _written(self) -> None:
        """The group in hand is in the file: the one before it can be forgotten here."""
        for account, records in self._in_hand.streams[EVERY].items():
            last = aseq_of(records[-1])
            if last - self._oldest[account] >= self._kept_and_slack:
                self._over[account] = last
        self._last, self._in_hand = self._in_hand, Group()
        if self._waiting.count:
            self._has_records.set()

    # --- what is not kept any more -------------------------------------------------------------
    @property
    def _kept_and_slack(self) -> int:
        return self._keep.messages + min(self._keep.messages // 16, TRIM_RECORDS)

    async def _trim(self) -> None:
        """Of each account a part, so that the writer's records do not wait long."""
        for account, newest in list(self._over.items()):
            below = newest - self._keep.messages + 1
            await self._forget(account, below)
            if self._oldest[account] >= below:
                del self._over[account]

    async def _forget(self, account: int, below: int) -> None:
        """Messages before that number, but for what somebody is being told."""
        oldest = self._oldest[account]
        needed = [x.next for x in self._resumes if x.account == account and not x.is_over]
        to = min([below, oldest + TRIM_RECORDS, *needed])
        if to > oldest:
            self._oldest[account] = to  # first: whoever asks now must not begin before it
            await self._off(self._file.trim, account, to)

    async def _keep_sweeping(self) -> None:
        """What is older than the days kept."""
        while self._keep.days and self._time_ns is not None:
            since_ns = self._time_ns() - self._keep.days * DAY_NS
            for account in list(self._oldest):
                first = await self._off(self._file.first_since, account, since_ns)
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

    def note(self, write: Callable[[HistoryFile], None], done: Callable[[None], None]) -> None:
        """Have something written in the file, ahead of all questions that wait. It is tried until
        it succeeds, so nobody is refused here: who calls it sees to it that few wait."""
        self._notes.append((write, done))
        self.start()
        self._has_notes.set()

    def ask(
        self, account: int, read: Callable[[HistoryFile], T], answer: Callable[[T], None]
    ) -> bool:
        """Have something read in the file; False while too many wait for that."""
        waiting = self._asked_by[account]
        if waiting >= QUESTIONS_MAX or (not waiting and len(self._asked_by) >= ASKED_MAX):
            return False
        self._asked_by[account] = waiting + 1

        def answered(found: T) -> None:
            self._asked_by[account] -= 1
            if not self._asked_by[account]:
                del self._asked_by[account]
            answer(found)

        self._asked.append((read, answered))
        self.start()
        self._has_work.set()
        return True

    def ask_order(
        self, account: int, client_id: int, answer: Callable[[m.OrderInfo | None], None]
    ) -> bool:
        """What became of the order of a client id, of one that is closed, as far as it is kept;
        False while too many such questions wait. They are rare, and each order would pay for an
        index: so the account's records are looked through, the newest first, a part at a time."""
        if len(self._searches) >= ASKED_MAX:
            return False
        searches = self._searches.setdefault(account, deque())
        if len(searches) >= SEARCHES_MAX:
            return False
        searches.append(Search(client_id, answer))
        self.start()
        self._has_work.set()
        return True

    def ask_kept(
        self,
        kind: int,
        account: int,
        after: int,
        limit: int,
        answer: Callable[[list[m.Numbered]], None],
    ) -> bool:
        """As `fills` and `leases`, off the event loop."""

        def merge(found: Sequence[Kept]) -> None:
            answer(self._with_tail(found, kind, account, after, limit))

        return self.ask(account, lambda file: file.read(kind, account, after + 1, limit), merge)

    async def _keep_noting(self) -> None:
        """Beside what is read: a file that takes nothing may still be asked."""
        while True:
            await self._has_notes.wait()
            self._has_notes.clear()
            try:
                await self._do_all(self._notes)
            except sqlite3.Error as error:
                log.error("what is armed is not noted for now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._has_notes.set()

    async def _keep_serving(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            try:
                await self._do_all(self._asked)
                await self._tell_all()
                await self._search_some()
            except sqlite3.Error as error:
                log.error("what is kept cannot be read for now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._has_work.set()
            if self._resumes or self._searches:
                await asyncio.sleep(ROOM_SECONDS)
                self._has_work.set()

    async def _do_all(self, waiting: deque[_Work]) -> None:
        while waiting:
            work, answer = waiting[0]
            found = await self._off(work, self._file)
            waiting.popleft()
            answer(found)

    async def _search_some(self) -> None:
        """A part of what is asked, account after account: however many or long one's searches are,
        the reader is not kept from others for longer than a part takes."""
        left = SEARCHED_RECORDS
        while self._searches and left > 0:
            account, searches = next(iter(self._searches.items()))
            search = searches[0]
            fate, below, looked = await self._look(account, search, left)
            left -= looked
            del self._searches[account]  # to stand behind the others
            if below:
                searches[0] = search._replace(below=below)
            else:
                searches.popleft()
            if searches:
                self._searches[account] = searches
            if not below:
                search.answer(self._order_info(fate))

    async def _look(self, account: int, search: Search, most: int) -> Found:
        if search.below:
            return await self._off(self._file.search, account, search.client_id, search.below, most)
        records = self._tail(EVERY, account, 0)
        if not records:
            return Found(None, ASEQ_MAX, 0)
        fate = await self._off(lambda: last_of_client(b"".join(records), search.client_id))
        return Found(fate, 0 if fate else aseq_of(records[0]), len(records))

    async def _tell_all(self) -> None:
        """Each of those who resume as much as it has room for."""
        for resume in list(self._resumes):
            while not resume.is_over and resume.reader.has_room:
                if not resume.page and not self._is_here(resume):
                    resume.page.extend(
                        await self._off(
                            self._file.read, EVERY, resume.account, resume.next, READ_RECORDS
                        )
                    )
                    assert resume.page or self._is_here(resume), "a kept stream has no gap"
                self._tell(resume)
            if resume.is_over:
                self._resumes.remove(resume)

    def _is_here(self, resume: Resume) -> bool:
        """Whether all that is left to tell is in memory."""
        if resume.next > resume.present():
            return True
        for group in self._groups:
            records = group.streams[EVERY].get(resume.account)
            if records:
                return aseq_of(records[0]) <= resume.next
        return False

    def _tell(self, resume: Resume) -> None:
        """What was read, then what is here: when there is no more, that is the present."""
        while resume.page:
            if resume.is_over or not resume.reader.has_room:
                return
            resume.tell(self._message(resume.page.popleft()))
        if resume.is_over or not self._is_here(resume):
            return
        for record in self._tail(EVERY, resume.account, resume.next - 1):
            if not resume.reader.has_room:
                return
            resume.tell(self._message(record))
        assert resume.next == resume.present() + 1, "a kept stream has no gap"
        resume.is_over = True
        resume.arrived()

    @property
    def _groups(self) -> tuple[Group, Group, Group]:
        """All that is in memory, the oldest first."""
        return self._last, self._in_hand, self._waiting

    def _tail(self, stream: int, account: int, after: int) -> list[bytes]:
        """What is in memory of an account's stream, with numbers above that."""
        found: list[bytes] = []
        for group in self._groups:
            found += group.streams[stream].get(account, ())
        return found[bisect_right(found, after, key=aseq_of) :]

    def _message(self, kept: Kept) -> m.Numbered:
        return facts.message(kept, self.ticker) if isinstance(kept, bytes) else kept

    def _order_info(self, fate: bytes | m.OrderInfo | None) -> m.OrderInfo | None:
        return facts.order_info(fate, self.ticker) if isinstance(fate, bytes) else fate

    # --- read here and now ---------------------------------------------------------------------
    def fills(self, account: int, after: int, limit: int) -> list[m.Fill]:
        """At most so many fills, oldest first, with numbers above `after`. A short read of the
        file, at once. Raises sqlite3.Error."""
        return [x for x in self._kept(FILL, account, after, limit) if isinstance(x, m.Fill)]

    def leases(self, account: int, after: int, limit: int) -> list[m.Lease]:
        """As `fills`: each state that a lease has been in."""
        return [x for x in self._kept(LEASE, account, after, limit) if isinstance(x, m.Lease)]

    def _kept(self, kind: int, account: int, after: int, limit: int) -> list[m.Numbered]:
        if self._reader is None:
            alone = self._path is None
            self._reader = self._file if alone else HistoryFile(self._path, reads_only=True)
        found = self._reader.read(kind, account, after + 1, limit)
        return self._with_tail(found, kind, account, after, limit)

    def _with_tail(
        self, found: Sequence[Kept], kind: int, account: int, after: int, limit: int
    ) -> list[m.Numbered]:
        told = [self._message(kept) for kept in found]
        last = told[-1].aseq if told else after
        tail = self._tail(kind, account, last)[: limit - len(told)]
        return told + [self._message(record) for record in tail]

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
            if not self.failure:
                self._write_all()
            self._file.checkpoint()
        except sqlite3.Error as error:
            log.error("the last of the private streams is left to the next start: %s", error)
        self._let_go()

    def _write_all(self) -> None:
        for write, _ in self._notes:  # first: the journal does not have what they say
            write(self._file)
        if self._in_hand.event:  # whether that was written or not
            self._file.write(self._in_hand)
            self._written()
        self._take_group()
        self._file.write(self._in_hand)

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


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("private streams are not kept any more", exc_info=error)
