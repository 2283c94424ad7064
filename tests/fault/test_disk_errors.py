"""A disk that fails at every one of its calls in turn, through a whole session of an engine.

The session recovers what an earlier one left, trades in groups and changes segments. Whatever call
fails, and however: after it nobody hears of anything, orders are refused by number, `ready` says
why; and a start on a good disk finds the commands up to some place, none missing before it, and
everything that was acknowledged.
"""

import asyncio
import errno
import os
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from benchmarks.workload import Shape, opening, order_flow
from engine.clock import ScriptedClock
from engine.journal import Disk, Journal, SystemDisk, read, segments
from engine.pipeline import QUICK_NS, Pipeline
from engine.port import Batch
from engine.records import COMMAND, Command, decode_commands
from engine.rejects import JournalError, Refused, Reject
from engine.replay import verify
from tests.disks import FailingDisk
from tests.promises import Trial, tries

START_NS: Final = 1_795_219_200_000_000_000
SEED: Final = 31
SHAPE: Final = Shape(instruments=2, accounts=3)
SEGMENT_BYTES: Final = 2048
EARLIER: Final = 4  # groups before the session
GROUP_COMMANDS: Final = 9
RECORD: Final = COMMAND.itemsize


def flow(trading: int) -> list[list[Command]]:
    """The groups of the earlier session and of one that trades so many."""
    count = (EARLIER + trading) * GROUP_COMMANDS
    assert len(opening(SHAPE)) < EARLIER * GROUP_COMMANDS, "the session itself trades"
    commands = list(decode_commands(order_flow(SEED, count, SHAPE)))
    return [commands[i : i + GROUP_COMMANDS] for i in range(0, count, GROUP_COMMANDS)]


class Heard(NamedTuple):
    pipeline: Pipeline
    sequences: list[int]  # of everything that was published live


def an_engine(directory: Path, disk: Disk, quick_ns: int = QUICK_NS) -> Heard:
    journal = Journal(directory, disk, SEGMENT_BYTES)
    pipeline = Pipeline(journal, ScriptedClock(START_NS), quick_ns=quick_ns)
    sequences: list[int] = []

    def hear(batch: Batch) -> None:
        if not batch.replayed:
            assert not (isinstance(disk, FailingDisk) and disk.failed), "told after the failure"
            sequences.extend(event.sequence for event in batch.events)

    pipeline.subscribe(hear)
    return Heard(pipeline, sequences)


async def trade(pipeline: Pipeline, groups: list[list[Command]]) -> None:
    """Each group is one frame."""
    for group in groups:
        for command in group:
            pipeline.submit(command)
        await pipeline.settled()


async def start_and_trade(pipeline: Pipeline, groups: list[list[Command]]) -> None:
    await pipeline.start()
    await trade(pipeline, groups)


async def earlier_session(directory: Path, groups: list[list[Command]]) -> None:
    pipeline, _ = an_engine(directory, SystemDisk())
    await start_and_trade(pipeline, groups[:EARLIER])
    await pipeline.close()


def commands_of(directory: Path) -> bytes:
    return b"".join(frame.commands.tobytes() for frame in read(directory))


async def whole_session(directory: Path, groups: list[list[Command]]) -> FailingDisk:
    """Without a failure: the disk counts its calls."""
    disk = FailingDisk()
    await earlier_session(directory, groups)
    pipeline, heard = an_engine(directory, disk)
    await start_and_trade(pipeline, groups[EARLIER:])
    await pipeline.close()
    assert max(heard) == len(groups) * GROUP_COMMANDS
    return disk


async def failing_session(
    directory: Path,
    groups: list[list[Command]],
    disk: FailingDisk,
    whole: bytes,
    quick_ns: int = QUICK_NS,
) -> None:
    await earlier_session(directory, groups)
    pipeline, heard = an_engine(directory, disk, quick_ns)
    with pytest.raises(JournalError, match=os.strerror(disk.error)):
        await start_and_trade(pipeline, groups[EARLIER:])
    assert disk.failed
    said = pipeline.ready()
    assert os.strerror(disk.error) in said.stopped
    for command in groups[-1]:
        with pytest.raises(Refused) as refused:
            pipeline.submit(command)
        assert refused.value.reject == Reject.STOPPED
    acknowledged = max(heard, default=EARLIER * GROUP_COMMANDS)
    await asyncio.sleep(0)
    await pipeline.close()
    assert max(heard, default=EARLIER * GROUP_COMMANDS) == acknowledged
    assert disk.calls_after_failure == [], "a failed disk is not asked again"
    await found_again(directory, groups, whole, acknowledged)


async def found_again(
    directory: Path, groups: list[list[Command]], whole: bytes, acknowledged: int
) -> None:
    """On a good disk: a prefix with all that was acknowledged; and then the rest can follow."""
    pipeline, _ = an_engine(directory, SystemDisk())
    await pipeline.start()
    found = commands_of(directory)
    assert whole.startswith(found)
    count = len(found) // RECORD
    assert count >= acknowledged, f"{acknowledged} acknowledged, {count} found"
    assert count in (acknowledged, acknowledged + GROUP_COMMANDS), "of whole groups, one in doubt"
    assert pipeline.ready().last_sequence == count
    await trade(pipeline, groups[count // GROUP_COMMANDS :])
    state = pipeline.state_hash()
    await pipeline.close()
    assert commands_of(directory) == whole
    assert verify(directory).state_hash == state


FRAME_BYTES: Final = 64 + GROUP_COMMANDS * RECORD


@pytest.mark.parametrize(
    ("call", "error", "short_bytes", "loses"),
    [
        ("open", errno.EIO, 0, False),
        ("create", errno.EIO, 0, False),
        ("create", errno.ENOSPC, 0, False),
        ("write", errno.EIO, 0, False),
        ("write", errno.ENOSPC, 0, False),
        ("write", errno.ENOSPC, 1, False),
        ("write", errno.EIO, 63, False),
        ("write", errno.EIO, 64 + 5 * RECORD, False),
        ("write", errno.ENOSPC, FRAME_BYTES - 1, False),
        ("write", errno.EIO, FRAME_BYTES, False),
        ("sync", errno.EIO, 0, False),
        ("sync", errno.ENOSPC, 0, False),
        ("sync", errno.EIO, 0, True),
    ],
)
@tries("disk-errors")
async def test_whichever_call_of_a_session_fails_nothing_acknowledged_is_lost(
    tmp_path: Path,
    call: str,
    error: int,
    short_bytes: int,
    loses: bool,
    trial: Trial,
) -> None:
    """The budget is how many groups the session trades; each of its calls fails once where the
    event loop makes it, and once in the writer's thread."""
    groups = flow(trial.budget)
    calls = (await whole_session(tmp_path / "whole", groups)).calls[call]
    whole = commands_of(tmp_path / "whole")
    assert len(segments(tmp_path / "whole")[0]) > 4, "segments are changed on the way"
    assert calls >= {"open": 1, "create": 4}.get(call, trial.budget)
    for quick_ns, place in trial.each(product((0, QUICK_NS), range(calls))):
        disk = FailingDisk(error, short_bytes, loses)
        disk.fail_at = (call, place)
        directory = tmp_path / f"{quick_ns}-{place}"
        await failing_session(directory, groups, disk, whole, quick_ns)
