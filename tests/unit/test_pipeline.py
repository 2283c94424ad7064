"""The pipeline on a real journal: nobody hears of what is not durable, everybody hears the same."""

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.workload import opening, order_flow
from engine import journal
from engine.clock import ScriptedClock
from engine.journal import FRAME_COMMANDS_MAX, HEADER_BYTES, Disk, Journal, SystemDisk
from engine.pipeline import QUEUE_COMMANDS_MAX, QUICK_NS, SMALL_COMMANDS, Pipeline
from engine.port import Batch, Market
from engine.records import (
    COMMAND,
    Balances,
    Command,
    CommandKind,
    Event,
    EventKind,
    MarketStatus,
    Side,
    decode_commands,
)
from engine.rejects import DiskFailed, EngineBroken, JournalError, Refused, Reject
from engine.replay import verify
from tests.disks import FailingDisk, FillingDisk, HeldDisk, TimedDisk, patience

START_NS = 1_795_219_200_000_000_000
TICK_SECONDS = 0.02


class Heard:
    """A subscriber that keeps what it was told, and what the port said at that moment."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.batches: list[Batch] = []
        self.balances: list[Balances] = []

    def __call__(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.balances.append(self._pipeline.balances(1))

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]


def a_pipeline(directory: Path, disk: Disk) -> tuple[Pipeline, Heard]:
    journal = Journal(directory, disk, 1 << 20)
    pipeline = Pipeline(journal, ScriptedClock(START_NS), quick_ns=patience(disk))
    heard = Heard(pipeline)
    pipeline.subscribe(heard)
    return pipeline, heard


@asynccontextmanager
async def running(
    directory: Path, disk: Disk | None = None
) -> AsyncGenerator[tuple[Pipeline, Heard]]:
    pipeline, heard = a_pipeline(directory, disk or SystemDisk())
    await pipeline.start()
    try:
        yield pipeline, heard
    finally:
        await pipeline.close()


def buy(account: int = 1, price_ticks: int = 100, qty_lots: int = 5, **fields: int) -> Command:
    order = Command(
        kind=CommandKind.NEW_ORDER, account=account, price_ticks=price_ticks, qty_lots=qty_lots
    )
    return order._replace(**fields)


async def opened(pipeline: Pipeline) -> None:
    for command in opening():
        pipeline.submit(command)
    await pipeline.settled()


def refused(act: Callable[[], object]) -> Reject:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value.reject


# --- durable before heard -----------------------------------------------------------------------


async def test_nobody_hears_of_a_command_before_it_is_durable(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, heard):
        await opened(pipeline)
        before = (len(heard.events), pipeline.balances(1), pipeline.markets(), pipeline.ready())
        disk.hold()
        for command in (
            buy(client_id=9),
            Command(kind=CommandKind.HALT_MARKET, instrument=1),
            Command(kind=CommandKind.OPEN_ACCOUNT, account=500, order_id=5 << 40),
        ):
            pipeline.submit(command)
        await asyncio.sleep(TICK_SECONDS)
        assert len(heard.events) == before[0]
        assert pipeline.balances(1) == before[1]
        assert pipeline.markets() == before[2]
        assert pipeline.owner_of(500) == bytes(20)
        ready = pipeline.ready()
        assert ready.durable_sequence == before[3].durable_sequence == ready.last_sequence - 3
        assert pipeline.submit(buy(client_id=9)).answer is None, "in flight, not unknown"
        disk.let_go()
        await pipeline.settled()
        assert [e.kind for e in heard.events[before[0] :]] == [
            EventKind.ACCEPTED,
            EventKind.MARKET_HALTED,
            EventKind.ACCOUNT_OPENED,
        ]
        assert pipeline.balances(1).held_usdc6 == 500
        assert pipeline.markets()[1].status == MarketStatus.HALTED
        assert pipeline.account_of(pipeline.owner_of(500)) == 500


async def test_commands_gather_into_one_sync_while_the_disk_is_busy(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, _):
        await opened(pipeline)
        disk.hold()
        pipeline.submit(buy())
        await asyncio.sleep(TICK_SECONDS)
        for _ in range(500):
            pipeline.submit(buy())
        before = disk.syncs
        disk.let_go()
        await pipeline.settled()
        assert disk.syncs == before + 2
    assert [len(f.commands) for f in journal.read(tmp_path)][-2:] == [1, 500]


async def test_a_group_is_no_larger_than_a_frame(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, heard):
        await opened(pipeline)
        before = len(heard.events)
        disk.hold()
        for _ in range(FRAME_COMMANDS_MAX + 10):
            pipeline.submit(buy(price_ticks=1, qty_lots=1))
        disk.let_go()
        await pipeline.settled()
        assert len(heard.events) == before + FRAME_COMMANDS_MAX + 10
    sizes = [len(f.commands) for f in journal.read(tmp_path)]
    assert max(sizes) == FRAME_COMMANDS_MAX


async def test_the_loop_waits_for_small_groups_on_a_quick_disk_alone(tmp_path: Path) -> None:
    clock = ScriptedClock(START_NS)
    disk = TimedDisk(clock)
    pipeline = Pipeline(Journal(tmp_path, disk, 1 << 14), clock)
    await pipeline.start()

    async def written_here(commands: int) -> list[bool]:
        disk.here.clear()
        for _ in range(commands):
            pipeline.submit(Command(kind=CommandKind.OPEN_ACCOUNT))
        await pipeline.settled()
        return disk.here

    assert await written_here(1) == [False], "how quick it is must show first"
    assert await written_here(SMALL_COMMANDS) == [True]
    assert await written_here(SMALL_COMMANDS + 1) == [False]
    disk.takes_ns = QUICK_NS
    assert await written_here(1) == [True], "nobody knew"
    assert await written_here(1) == [False]
    disk.takes_ns = QUICK_NS - 1
    assert await written_here(1) == [False]
    assert await written_here(1) == [True]
    fits = ((1 << 14) - HEADER_BYTES) // COMMAND.itemsize
    while len(here := await written_here(SMALL_COMMANDS)) == 1:
        assert here == [True] and (fits := fits - SMALL_COMMANDS) > 0
    assert here == [False, False], "a new segment is the thread's"
    await pipeline.close()


# --- a failing disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_a_failing_disk_stops_the_engine_and_nothing_after_it_is_heard(
    tmp_path: Path, call: str, error: int
) -> None:
    disk = FailingDisk(error)
    async with running(tmp_path, disk) as (pipeline, heard):
        await opened(pipeline)
        pipeline.submit(buy())
        await pipeline.settled()
        before = (list(heard.events), pipeline.balances(1))
        disk.fail_at = (call, 0)
        pipeline.submit(buy(client_id=3))
        with pytest.raises(DiskFailed, match="disk failed"):
            await pipeline.settled()
        assert isinstance(pipeline.failure, DiskFailed)
        disk.fail_at = ("", 0)
        assert "disk failed, nothing more is taken" in pipeline.ready().stopped
        assert refused(lambda: pipeline.submit(buy())) == Reject.STOPPED
        with pytest.raises(JournalError):
            await pipeline.settled()
        await asyncio.sleep(TICK_SECONDS)
        assert (heard.events, pipeline.balances(1)) == before
    assert "disk failed" in pipeline.ready().stopped, "closing does not forget why"
    async with running(tmp_path) as (_, again):
        # What was never acknowledged may have been lost or not; what was is all there.
        assert again.events[: len(before[0])] == before[0]


async def test_a_disk_that_fails_while_closing_does_not_keep_the_lock(tmp_path: Path) -> None:
    disk = FailingDisk()
    pipeline, _ = a_pipeline(tmp_path, disk)
    await pipeline.start()
    disk.fail_at = ("sync", 0)
    pipeline.submit(opening()[0])
    await pipeline.close()
    await pipeline.close()
    assert "disk failed" in pipeline.ready().stopped
    async with running(tmp_path):
        pass


async def test_a_damaged_journal_does_not_start(tmp_path: Path) -> None:
    async with running(tmp_path) as (pipeline, _):
        await opened(pipeline)
        pipeline.submit(buy())
        await pipeline.settled()
    [path], _ = journal.segments(tmp_path)
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    pipeline, heard = a_pipeline(tmp_path, SystemDisk())
    with pytest.raises(JournalError, match="damaged at offset"):
        await pipeline.start()
    assert heard.events == []
    assert refused(lambda: pipeline.submit(buy())) == Reject.STOPPED
    await pipeline.close()


# --- room ---------------------------------------------------------------------------------------


async def test_commands_are_refused_while_a_subscriber_has_no_room(tmp_path: Path) -> None:
    pipeline, heard = a_pipeline(tmp_path, SystemDisk())
    room = True
    pipeline.subscribe(lambda batch: None, has_room=lambda: room)
    await pipeline.start()
    await opened(pipeline)
    last = pipeline.ready().last_sequence
    room = False
    assert refused(lambda: pipeline.submit(buy(client_id=4))) == Reject.BUSY
    assert pipeline.ready().last_sequence == last
    assert not pipeline.ready().has_room
    pipeline.submit(Command(kind=CommandKind.CANCEL_ALL, account=1))  # it lessens what is at risk
    last += 1
    pull = Command(kind=CommandKind.MASS_QUOTE, account=1)
    level = Command(kind=CommandKind.PART, price_ticks=5, qty_lots=5)
    assert refused(lambda: pipeline.submit(pull, [level])) == Reject.BUSY
    pipeline.submit(pull)
    last += 1
    room = True
    assert pipeline.submit(buy(client_id=4)) == (last + 1, False, None)
    await pipeline.close()
    assert heard.events[-1].client_id == 4


async def test_a_full_queue_refuses_and_takes_again_when_the_disk_goes_on(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, heard):
        disk.hold()
        cancel = Command(kind=CommandKind.CANCEL, account=1, order_id=1)
        for _ in range(QUEUE_COMMANDS_MAX):
            pipeline.submit(cancel)
        assert refused(lambda: pipeline.submit(cancel)) == Reject.BUSY
        disk.let_go()
        await pipeline.settled()
        assert len(heard.events) == QUEUE_COMMANDS_MAX
        pipeline.submit(cancel)


async def test_a_subscriber_that_raises_stops_the_engine_and_is_named(tmp_path: Path) -> None:
    pipeline, _ = a_pipeline(tmp_path, SystemDisk())

    def broken(batch: Batch) -> None:
        raise ValueError("a subscriber must not raise")

    pipeline.subscribe(broken)
    await pipeline.start()
    pipeline.submit(opening()[0])
    with pytest.raises(EngineBroken, match="must not raise"):
        await pipeline.settled()
    assert isinstance(pipeline.failure, EngineBroken)
    await pipeline.close()
    assert "ValueError" in pipeline.ready().stopped


# --- order and balances -------------------------------------------------------------------------


async def test_events_are_numbered_without_gaps_and_in_sequence(tmp_path: Path) -> None:
    flow = list(decode_commands(order_flow(11, 3000)))
    async with running(tmp_path) as (pipeline, heard):
        for i, command in enumerate(flow):
            pipeline.submit(command)
            if i % 100 == 0:
                await asyncio.sleep(0)
        await pipeline.settled()
    expected = 1
    for batch in heard.batches:
        assert batch.first_number == expected
        assert len(batch.array) == len(batch.events)
        assert not batch.replayed
        expected += len(batch.events)
    sequences = [event.sequence for event in heard.events]
    assert all(a <= b for a, b in pairwise(sequences))
    assert set(sequences) == set(range(1, len(flow) + 1)), "each command is answered"
    assert pipeline.ready().event_number == len(sequences)


async def test_balances_are_those_of_the_last_event_that_was_published(tmp_path: Path) -> None:
    """A subscriber that adds up the events agrees with the port at each batch."""
    async with running(tmp_path) as (pipeline, heard):
        await opened(pipeline)
        free, held = pipeline.balances(1)[:2]
        for i in range(300):
            pipeline.submit(buy(price_ticks=1 + i))
            await asyncio.sleep(0)
        await pipeline.settled()
    for batch, balances in zip(heard.batches, heard.balances, strict=True):
        if batch.events[0].kind != EventKind.ACCEPTED:
            continue
        spent = sum(e.price_ticks * e.qty_lots for e in batch.events)
        free, held = free - spent, held + spent
        assert balances[:2] == (free, held)


async def test_accounts_may_open_in_any_order(tmp_path: Path) -> None:
    async with running(tmp_path) as (pipeline, _):
        for account in (5, 3, 9):
            pipeline.submit(
                Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account)
            )
            await pipeline.settled()
        for account in (5, 3, 9):
            owner = bytes([account]) + bytes(19)
            assert pipeline.owner_of(account) == owner
            assert pipeline.account_of(owner) == account
        assert pipeline.account_of(bytes(20)) == 0, "nobody's address has no account"
        assert pipeline.owner_of(4) == bytes(20)
        assert pipeline.balances(-1) == pipeline.balances(1 << 40) == Balances(*[0] * 8)


# --- restart ------------------------------------------------------------------------------------


async def test_a_restart_replays_to_the_same_state_and_the_same_answers(tmp_path: Path) -> None:
    disk = FillingDisk(1 << 40)  # says the same at both times
    flow = list(decode_commands(order_flow(12, 3000)))
    ids = [c for c in flow if c.kind == CommandKind.NEW_ORDER and c.client_id]
    async with running(tmp_path, disk) as (pipeline, heard):
        for command in flow:
            pipeline.submit(command)
        await pipeline.settled()
        state = pipeline.state_hash()
        answers = {c: pipeline.submit(c) for c in ids}
        markets: list[Market] = pipeline.markets()
        money = [pipeline.balances(account) for account in range(70)]
        ready = pipeline.ready()
    assert all(a.duplicate and a.answer is not None for a in answers.values())
    async with running(tmp_path, disk) as (pipeline, again):
        assert pipeline.state_hash() == state
        assert again.events == heard.events
        assert all(batch.replayed for batch in again.batches)
        assert {c: pipeline.submit(c) for c in ids} == answers
        assert pipeline.markets() == markets
        assert [pipeline.balances(account) for account in range(70)] == money
        assert pipeline.ready() == ready
        changed = ids[0]._replace(price_ticks=ids[0].price_ticks + 1)
        assert refused(lambda: pipeline.submit(changed)) == Reject.CLIENT_ID_REUSED
        sequenced = pipeline.submit(buy(client_id=1 << 40))
        assert sequenced == (len(flow) + 1, False, None)
    assert verify(tmp_path).sequence == len(flow) + 1


async def test_time_does_not_run_back_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as (pipeline, _):
        await opened(pipeline)
    pipeline = Pipeline(Journal(tmp_path, SystemDisk()), ScriptedClock(START_NS - 10**12))
    heard = Heard(pipeline)
    pipeline.subscribe(heard)
    await pipeline.start()
    pipeline.submit(buy())
    await pipeline.close()
    assert heard.events[-1].time_ns == START_NS


async def test_a_number_no_field_holds_is_refused_and_the_journal_has_no_gap(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (pipeline, _):
        await opened(pipeline)
        assert refused(lambda: pipeline.submit(buy(account=1 << 32))) == Reject.INVALID_FIELD
        assert refused(lambda: pipeline.submit(buy(price_ticks=1 << 63))) == Reject.INVALID_FIELD
        pipeline.submit(buy())
        await pipeline.settled()
        state = pipeline.state_hash()
    async with running(tmp_path) as (pipeline, _):
        assert pipeline.state_hash() == state


async def test_closing_publishes_what_was_taken_and_takes_nothing_more(tmp_path: Path) -> None:
    disk = HeldDisk()
    pipeline, heard = a_pipeline(tmp_path, disk)
    await pipeline.start()
    await opened(pipeline)
    disk.hold()
    pipeline.submit(buy(side=Side.SELL, client_id=8))
    closing = asyncio.create_task(pipeline.close())
    await asyncio.sleep(TICK_SECONDS)
    assert refused(lambda: pipeline.submit(buy())) == Reject.STOPPED
    assert heard.events[-1].client_id != 8
    disk.let_go()
    await closing
    assert (heard.events[-1].kind, heard.events[-1].client_id) == (EventKind.ACCEPTED, 8)


async def test_before_the_start_nothing_is_taken(tmp_path: Path) -> None:
    pipeline, _ = a_pipeline(tmp_path, SystemDisk())
    assert pipeline.ready().stopped == "not started"
    assert refused(lambda: pipeline.submit(buy())) == Reject.STOPPED
    await pipeline.close()


# --- commands of several records -----------------------------------------------------------------


def basket(**fields: int) -> tuple[Command, list[Command]]:
    """Two lots in each of two markets."""
    parts = [
        Command(kind=CommandKind.PART, instrument=i, price_ticks=100, qty_lots=2) for i in (0, 1)
    ]
    return Command(kind=CommandKind.BASKET, account=1)._replace(**fields), parts


async def offered(pipeline: Pipeline) -> None:
    await opened(pipeline)
    for instrument in (0, 1):
        pipeline.submit(buy(account=2, side=Side.SELL, instrument=instrument, qty_lots=10**5))
    await pipeline.settled()


async def test_a_command_of_several_records_is_answered_once_and_again_after_a_restart(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (pipeline, heard):
        await offered(pipeline)
        before = len(heard.events)
        place = pipeline.submit(*basket(client_id=5))
        assert pipeline.ready().last_sequence == place.sequence + 2
        await pipeline.settled()
        [answer, *rest] = heard.events[before:]
        assert (answer.kind, answer.sequence) == (EventKind.LEGS_FILLED, place.sequence)
        assert [e.sequence - place.sequence for e in rest] == [1, 1, 2, 2]
        assert pipeline.submit(*basket(client_id=5)) == (place.sequence, True, answer)
        head, parts = basket(client_id=5)
        assert refused(lambda: pipeline.submit(head, parts[:1])) == Reject.CLIENT_ID_REUSED
        assert refused(lambda: pipeline.submit(parts[0])) == Reject.UNKNOWN_COMMAND
        assert pipeline.ready().last_sequence == place.sequence + 2
        state = pipeline.state_hash()
    async with running(tmp_path) as (pipeline, again):
        assert pipeline.state_hash() == state
        assert again.events == heard.events
        assert pipeline.submit(*basket(client_id=5)) == (place.sequence, True, answer)
        assert pipeline.submit(*basket(client_id=6)) == (place.sequence + 3, False, None)
    assert verify(tmp_path).sequence == place.sequence + 5


async def test_a_frame_never_splits_a_command_of_several_records(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, heard):
        await offered(pipeline)
        before = len(heard.events)
        disk.hold()
        for _ in range(FRAME_COMMANDS_MAX):
            pipeline.submit(*basket())
        disk.let_go()
        await pipeline.settled()
        answers = [e for e in heard.events[before:] if e.kind == EventKind.LEGS_FILLED]
        assert len(answers) == FRAME_COMMANDS_MAX
    frames = [f.commands for f in journal.read(tmp_path)]
    assert max(len(f) for f in frames) == FRAME_COMMANDS_MAX // 3 * 3
    for commands in frames:
        assert commands["kind"][0] != CommandKind.PART
        assert commands["kind"][-1] != CommandKind.BASKET
    assert verify(tmp_path).sequence == pipeline.ready().last_sequence


async def test_a_torn_frame_loses_a_command_of_several_records_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as (pipeline, _):
        await offered(pipeline)
        before, sequence = pipeline.state_hash(), pipeline.ready().last_sequence
        pipeline.submit(*basket(client_id=5))
        await pipeline.settled()
        after = pipeline.state_hash()
    [path], _ = journal.segments(tmp_path)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for cut in range(end - 1, data.rfind(journal.FRAME_MAGIC), -32):
        path.write_bytes(data[:cut] + bytes(len(data) - cut))
        async with running(tmp_path) as (pipeline, _):
            assert pipeline.state_hash() == before
            assert pipeline.submit(*basket(client_id=5)) == (sequence + 1, False, None)
            await pipeline.settled()
            assert pipeline.state_hash() == after


async def test_the_queue_counts_records(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as (pipeline, _):
        disk.hold()
        head, parts = basket()
        for _ in range(QUEUE_COMMANDS_MAX // 3 + 1):
            pipeline.submit(head, parts)
        assert refused(lambda: pipeline.submit(head, parts)) == Reject.BUSY
        disk.let_go()
        await pipeline.settled()
        pipeline.submit(head, parts)
