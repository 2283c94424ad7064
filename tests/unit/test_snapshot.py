"""Snapshots: a start from one is a start from the first command, whatever was traded; one that is
damaged, foreign or ahead of its journal is left aside; nothing a start needs is removed."""

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import numpy as np
import pytest

from benchmarks.workload import order_flow
from engine import journal, snapshot
from engine.book import LEASE, new_state
from engine.clock import ScriptedClock
from engine.invariants import check_invariants
from engine.journal import BEGINNING, Journal, SystemDisk
from engine.kernel import kernel
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Command, CommandKind
from engine.reference import Reference
from engine.rejects import JournalError, SnapshotError
from engine.replay import Matcher, verify
from engine.replica import Replica, retain, take_snapshot
from engine.reserve import make_capacity
from engine.snapshot import NAMES_MAX, state_hash, used_parts
from tests.disks import FailingDisk
from tests.model.flow import Flow
from tests.promises import Trial, tries

START_NS: Final = 1_795_219_200_000_000_000
SEGMENT_BYTES: Final = 1 << 14
STEPS: Final = 1_500
SEED: Final = 3
SNAPSHOT_COMMANDS: Final = 2_000  # between two snapshots
FRAMES: Final = 60


class Memory:
    """A keeper: how many events there were, and the sum of their sequences."""

    name: ClassVar[str] = "memory/1"
    former: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.events = 0
        self.checksum = 0
        self.heard: list[int] = []  # numbers of what was really told

    def on_batch(self, batch: Batch) -> None:
        self.heard += range(batch.first_number, batch.first_number + len(batch.events))
        self.events += len(batch.events)
        self.checksum += sum(event.sequence for event in batch.events)

    def save(self) -> bytes:
        return f"{self.events} {self.checksum}".encode()

    def load(self, saved: bytes) -> None:
        self.events, self.checksum = map(int, saved.split())


def a_replica() -> tuple[Replica, Memory]:
    replica, memory = Replica(ScriptedClock(START_NS)), Memory()
    replica.subscribe(memory.on_batch, keeper=memory)
    return replica, memory


def drawn(seed: int, steps: int = STEPS) -> list[bytes]:
    """Commands of every kind, each whole: one record or several."""
    reference = Reference()
    flow = Flow(Random(seed), reference)
    commands: list[bytes] = []
    sequence = 0
    for _ in range(steps):
        first, *more = flow.next()
        if first.client_id and first.kind < CommandKind.OPEN_ACCOUNT:
            first = first._replace(client_id=sequence + 1)  # the sequencer takes each only once
        step = [
            record._replace(sequence=number)
            for number, record in enumerate([first, *more], sequence + 1)
        ]
        sequence += len(step)
        flow.observe(reference.apply_all(step))
        commands.append(b"".join(record.pack() for record in step))
    return commands


def write_journal(directory: Path, commands: list[bytes], frames: int = FRAMES) -> None:
    """Goes on with what is there; the commands in so many groups."""
    writer = Journal(directory, SystemDisk(), SEGMENT_BYTES)
    for _ in writer.recover(journal.oldest(directory)):
        pass
    size = -(-len(commands) // frames)
    for start in range(0, len(commands), size):
        writer.append(b"".join(commands[start : start + size]))
    writer.close()


def followed(directory: Path) -> tuple[Replica, Memory]:
    """From the first command on, whatever snapshots there are."""
    replica, memory = a_replica()
    for frame in journal.read(directory):
        replica.follow(frame)
    return replica, memory


def restored(directory: Path) -> tuple[Replica, Memory]:
    replica, memory = a_replica()
    for frame in journal.read(directory, replica.restore(directory)):
        replica.follow(frame)
    return replica, memory


def take(directory: Path) -> snapshot.Snapshot:
    taken = take_snapshot(directory, SystemDisk(), a_replica()[0])
    assert taken is not None
    return taken


def assert_same(one: tuple[Replica, Memory], other: tuple[Replica, Memory]) -> None:
    (a, memory_a), (b, memory_b) = one, other
    assert state_hash(a.matcher.state) == state_hash(b.matcher.state)
    assert a.event_number == b.event_number
    assert memory_a.save() == memory_b.save()
    assert a.sequencer.save() == b.sequencer.save()
    assert a.expiries.save() == b.expiries.save()
    assert a.timetable.save() == b.timetable.save()
    assert a.published.save() == b.published.save()
    accounts = range(1, int(a.matcher.state["account_high"][0]) + 1)
    assert [a.balances(n) for n in accounts] == [b.balances(n) for n in accounts]
    check_invariants(b.matcher.state)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_snapshot_and_the_rest_are_the_whole(tmp_path: Path, seed: int) -> None:
    commands = drawn(seed)
    cuts = sorted(Random(seed).sample(range(50, STEPS - 50), 4))
    begin = 0
    for cut in [*cuts, STEPS]:
        write_journal(tmp_path, commands[begin:cut], 12)
        begin = cut
        whole, part = followed(tmp_path), restored(tmp_path)
        assert_same(whole, part)
        taken = take(tmp_path)
        assert 0 < taken.mark.sequence < whole[0].sequencer.last_sequence, "the last frame is not"
        assert_same(whole, restored(tmp_path))
    _, memory = restored(tmp_path)
    assert len(memory.heard) < memory.events // 10, "the rest alone was told"
    found = verify(tmp_path)
    assert found.snapshots == len(cuts) + 1
    assert found.state_hash == state_hash(followed(tmp_path)[0].matcher.state)


@tries("snapshots")
def test_a_run_of_starts_from_snapshots_is_one_run(tmp_path: Path, trial: Trial) -> None:
    """Each start has the snapshot made by the one before it, and what was traded since; older
    history is removed behind them."""
    flow = order_flow(SEED, trial.budget * SNAPSHOT_COMMANDS)
    uninterrupted, events = Matcher(), 0
    begin, states, told = 0, set[str](), 0
    for cut in trial.each(np.linspace(0, len(flow), trial.budget + 1, dtype=int)[1:].tolist()):
        part = flow[begin:cut]
        begin = cut
        write_journal(tmp_path, [record.tobytes() for record in part], 20)
        events += uninterrupted.pass_over(part)
        replica, memory = restored(tmp_path)
        told += len(memory.heard)
        assert state_hash(replica.matcher.state) == state_hash(uninterrupted.state)
        assert replica.sequencer.last_sequence == cut
        states.add(take(tmp_path).state_hash)
        retain(tmp_path, 2, replica.event_number, history=False)
    assert len(states) == trial.budget, "each of another state"
    assert told < 2 * events, "each start was told the rest alone"
    assert len(snapshot.paths(tmp_path)) == 2 and journal.oldest(tmp_path) != BEGINNING
    trial.note = f"starts, {SNAPSHOT_COMMANDS:,} commands apart"


@kernel
def _declare(state: Any, account: Any, market: Any) -> Any:
    return make_capacity(state[0], account, market)


@pytest.mark.parametrize(
    ("accounts", "markets"),
    [(1, 1), (9, 2), (100, NAMES_MAX // 200), (101, NAMES_MAX // 200), (5_000, 40)],
)
def test_every_capacity_is_kept_in_the_table_s_order(accounts: int, markets: int) -> None:
    random = Random(accounts)
    state = new_state()
    state["account_high"], state["instrument_high"] = accounts, markets
    names = [(random.randint(1, accounts), random.randrange(markets)) for _ in range(4 * accounts)]
    for account, market in [*names, (1, 0), (accounts, markets - 1)]:
        assert _declare(state, account | random.choice((0, LEASE)), market)
    table = state["capacities"][0]
    kept = used_parts(state)["capacities"]
    assert len(kept) == state["capacities_used"][0] + 1
    assert kept.tobytes() == table[table["key"] != 0].tobytes()


def test_nothing_new_is_no_snapshot(tmp_path: Path) -> None:
    write_journal(tmp_path, drawn(5, 100), 1)
    assert take_snapshot(tmp_path, SystemDisk(), a_replica()[0]) is None, "one frame is not enough"
    write_journal(tmp_path, [Command(sequence=last_sequence(tmp_path) + 1, kind=99).pack()])
    taken = take(tmp_path)
    assert take_snapshot(tmp_path, SystemDisk(), a_replica()[0]) is None
    assert snapshot.paths(tmp_path) == [taken.path]


def last_sequence(directory: Path) -> int:
    *_, last = journal.read(directory)
    return last.end.sequence


def test_every_byte_of_a_snapshot_counts(tmp_path: Path) -> None:
    """Damage anywhere is noticed, and then the one before it, or the journal alone, does."""
    commands = drawn(6, 400)
    write_journal(tmp_path, commands[:200], 4)
    first = take(tmp_path)
    write_journal(tmp_path, commands[200:], 4)
    second = take(tmp_path)
    whole = followed(tmp_path)
    good = second.path.read_bytes()
    chance = Random(7)
    edges = [
        at
        for s in second.sections.values()
        if s.length
        for at in (s.offset, s.offset + s.length - 1)
    ]
    places = [*range(snapshot.HEADER_BYTES), *edges, *chance.sample(range(len(good)), 40)]
    noticed = 0
    for at in places:
        damaged = bytearray(good)
        damaged[at] ^= 1 << chance.randrange(8)
        second.path.write_bytes(damaged)
        replica, _ = a_replica()
        mark = replica.restore(tmp_path)
        padding = not any(
            s.offset <= at < s.offset + s.length for s in second.sections.values()
        ) and at >= min(s.offset for s in second.sections.values())
        assert mark == (second.mark if padding else first.mark), f"byte {at}"
        noticed += not padding
    assert noticed > snapshot.HEADER_BYTES
    for length in (0, 1, snapshot.HEADER_BYTES, len(good) // 2, len(good) - 1):
        second.path.write_bytes(good[:length])
        assert a_replica()[0].restore(tmp_path) == first.mark
    assert_same(whole, restored(tmp_path))
    first.path.unlink()
    assert a_replica()[0].restore(tmp_path) == BEGINNING
    assert_same(whole, restored(tmp_path))


def test_a_snapshot_ahead_of_its_journal_is_left_aside(tmp_path: Path) -> None:
    """As when a disk lost what it said it had."""
    commands = drawn(8, 200)
    write_journal(tmp_path / "long", commands, 8)
    write_journal(tmp_path / "short", commands[:50], 2)
    taken = take(tmp_path / "long")
    (tmp_path / "short" / taken.path.name).write_bytes(taken.path.read_bytes())
    assert a_replica()[0].restore(tmp_path / "short") == BEGINNING


def test_a_snapshot_of_another_journal_is_left_aside(tmp_path: Path) -> None:
    write_journal(tmp_path / "one", drawn(9, 200), 8)
    write_journal(tmp_path / "other", drawn(10, 400), 8)
    taken = take(tmp_path / "one")
    (tmp_path / "other" / taken.path.name).write_bytes(taken.path.read_bytes())
    assert a_replica()[0].restore(tmp_path / "other") == BEGINNING


def test_a_replay_tells_of_a_snapshot_that_has_another_state(tmp_path: Path) -> None:
    """Whole by its digests, and yet not what the journal makes."""
    write_journal(tmp_path, drawn(11, 300), 8)
    replica, _ = a_replica()
    frames = list(journal.read(tmp_path))
    for frame in frames[:5]:
        replica.follow(frame)
    replica.matcher.state["balances"][0, 1, 0] += 1
    replica.save(tmp_path, SystemDisk(), frames[4].end)
    with pytest.raises(JournalError, match="move the snapshot away"):
        verify(tmp_path)


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename"])
def test_a_disk_that_fails_leaves_no_snapshot_and_the_next_one_works(
    tmp_path: Path, call: str
) -> None:
    write_journal(tmp_path, drawn(12, 200), 4)
    for place in range(3 if call == "write" else 1):
        disk = FailingDisk(errno.ENOSPC)
        disk.fail_at = (call, place)
        with pytest.raises(SnapshotError, match=r"cannot be written: .*No space left"):
            take_snapshot(tmp_path, disk, a_replica()[0])
        assert snapshot.paths(tmp_path) == []
    taken = take(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} <= {".cxj", ".cxs", ""}
    assert a_replica()[0].restore(tmp_path) == taken.mark


def test_who_needs_older_events_is_told_them(tmp_path: Path) -> None:
    commands = drawn(13, 400)
    write_journal(tmp_path, commands[:200], 4)
    first = take(tmp_path)
    write_journal(tmp_path, commands[200:], 4)
    second = take(tmp_path)
    for heard, mark in (
        (0, BEGINNING),
        (first.event_number - 1, BEGINNING),
        (first.event_number, first.mark),
        (second.event_number - 1, first.mark),
        (second.event_number, second.mark),
    ):
        replica, _ = a_replica()
        replica.subscribe(lambda _batch: None, heard=lambda heard=heard: heard)
        assert replica.restore(tmp_path) == mark
        assert replica.heard() == heard
    replica, _ = a_replica()
    replica.subscribe(lambda _batch: None)
    assert replica.restore(tmp_path) == BEGINNING, "who says nothing is told everything"


def test_a_part_that_was_not_kept_makes_a_snapshot_useless(tmp_path: Path) -> None:
    write_journal(tmp_path, drawn(14, 100), 4)
    bare = take_snapshot(tmp_path, SystemDisk(), Replica(ScriptedClock(START_NS)))
    assert bare is not None
    assert a_replica()[0].restore(tmp_path) == BEGINNING


class MemoryOfNow(Memory):
    """Reads what the version before it saved, which has not counted something."""

    name: ClassVar[str] = "memory/2"
    former: ClassVar[tuple[str, ...]] = ("memory/1",)


def test_a_former_version_serves_only_where_the_commands_before_it_are_gone(
    tmp_path: Path,
) -> None:
    def now() -> tuple[Replica, Memory]:
        replica, memory = Replica(ScriptedClock(START_NS)), MemoryOfNow()
        replica.subscribe(memory.on_batch, keeper=memory)
        return replica, memory

    write_journal(tmp_path, drawn(16, 400), 8)
    taken = take(tmp_path)
    assert now()[0].restore(tmp_path) == BEGINNING, "with every command, nothing need be missing"
    retain(tmp_path, 1, taken.event_number, history=False)
    assert journal.oldest(tmp_path) != BEGINNING
    replica, memory = now()
    assert replica.restore(tmp_path) == taken.mark
    assert memory.events == taken.event_number
    end = taken.mark
    for frame in journal.read(tmp_path, taken.mark):
        replica.follow(frame)
        end = frame.end
    assert_same((replica, memory), restored(tmp_path))
    saved = replica.save(tmp_path, SystemDisk(), end)
    assert now()[0].restore(tmp_path) == saved.mark and "memory/2" in saved.names


def test_history_is_removed_behind_what_stays(tmp_path: Path) -> None:
    commands = drawn(15, 600)
    taken: list[snapshot.Snapshot] = []
    for start in range(0, 600, 100):
        write_journal(tmp_path, commands[start : start + 100], 3)
        taken.append(take(tmp_path))
    whole = followed(tmp_path)
    assert retain(tmp_path, 100, 1 << 60, history=True) == []
    retain(tmp_path, 2, taken[1].event_number, history=True)
    assert snapshot.paths(tmp_path) == [taken[n].path for n in (5, 4, 1)], "one is still needed"
    assert retain(tmp_path, 2, taken[0].event_number, history=False) == [taken[1].path]
    assert journal.oldest(tmp_path) == BEGINNING, "none is left for who is far behind"
    removed = retain(tmp_path, 2, taken[4].event_number, history=False)
    assert removed and all(path.suffix == ".cxj" for path in removed)
    assert 0 < journal.oldest(tmp_path).sequence <= taken[4].mark.sequence
    assert_same(whole, restored(tmp_path))
    found = verify(tmp_path)
    assert found.state_hash == state_hash(whole[0].matcher.state)
    write_journal_after(tmp_path, restored)
    snapshot.paths(tmp_path)[0].write_bytes(b"")
    assert a_replica()[0].restore(tmp_path) == taken[4].mark
    taken[4].path.unlink()
    with pytest.raises(JournalError, match="no snapshot to go on from"):
        a_replica()[0].restore(tmp_path)
    with pytest.raises(JournalError, match="no snapshot that can be read"):
        verify(tmp_path)


def write_journal_after(directory: Path, restore: Callable[[Path], tuple[Replica, Memory]]) -> None:
    """A writer recovers a journal without its beginning, and goes on."""
    replica, _ = a_replica()
    writer = Journal(directory, SystemDisk(), SEGMENT_BYTES)
    for frame in writer.recover(replica.restore(directory)):
        replica.follow(frame)
    sequence = replica.sequencer.last_sequence + 1
    writer.append(Command(sequence=sequence, kind=99).pack())
    writer.close()
    assert restore(directory)[0].sequencer.last_sequence == sequence


async def test_an_engine_that_starts_from_a_snapshot_keeps_every_promise(tmp_path: Path) -> None:
    """The same client id is the same command, and who was kept hears only of the rest."""
    order = Command(kind=CommandKind.NEW_ORDER, account=1, client_id=77, price_ticks=5, qty_lots=3)

    async def an_engine() -> tuple[Pipeline, Memory]:
        engine = Pipeline(Journal(tmp_path, SystemDisk(), SEGMENT_BYTES), ScriptedClock(START_NS))
        memory = Memory()
        engine.subscribe(memory.on_batch, keeper=memory)
        await engine.start()
        return engine, memory

    engine, memory = await an_engine()
    engine.submit(Command(kind=CommandKind.LIST_MARKET, order_id=1, price_ticks=1, qty_lots=1))
    engine.submit(Command(kind=CommandKind.OPEN_ACCOUNT, account=1, order_id=9))
    engine.submit(Command(kind=CommandKind.DEPOSIT, account=1, client_id=1, price_ticks=10**6))
    first = engine.submit(order)
    await engine.settled()
    engine.submit(order._replace(client_id=78))
    await engine.settled()
    engine.submit(order._replace(client_id=79))
    await engine.settled()
    take(tmp_path)
    before = engine.state_hash(), engine.balances(1), engine.ready().event_number, memory.save()
    await engine.close()

    engine, memory = await an_engine()
    ready = engine.ready()
    found = engine.state_hash(), engine.balances(1), ready.event_number, memory.save()
    assert found == before and ready.started_from == 5
    assert memory.heard == [ready.event_number], "one frame was left to tell"
    again = engine.submit(order)
    assert again.duplicate and again.sequence == first.sequence
    assert again.answer is not None and again.answer.client_id == 77
    assert engine.submit(order._replace(client_id=80)).sequence == ready.last_sequence + 1
    await engine.settled()
    await engine.close()
