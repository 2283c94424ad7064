"""kill -9 at random points: every acknowledged order is there afterwards, and none is there twice.

The processes work on one journal, one after the other, so that each also recovers what the ones
before it left. A failure prints its seed; `SEED` below reproduces the points in time, as far as a
machine repeats itself.
"""

import asyncio
import multiprocessing
import os
import threading
import time
from pathlib import Path
from random import Random
from typing import Final

import pytest

from engine.clock import SystemClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Event, EventKind
from engine.replay import verify
from tests.fault.under_load import (
    ACKNOWLEDGED,
    QUOTE_LEVELS,
    SEGMENT_BYTES,
    STARTED,
    trade_until_killed,
)

SEED: Final = 20_261_121
SECONDS_MAX: Final = 0.25
START_SECONDS_MAX: Final = 60


def _run_and_kill(directory: Path, run: int, random: Random) -> list[tuple[int, int, int]]:
    """(client id, sequence, order id) of what a process was answered before it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fault.under_load"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=trade_until_killed, args=(directory, run, writer))
    process.start()
    writer.close()  # or the end of the process would not be the end of the pipe
    heard = bytearray()

    def listen() -> None:
        while data := os.read(reader.fileno(), 1 << 16):
            heard.extend(data)

    listener = threading.Thread(target=listen)
    listener.start()
    begin = time.monotonic()
    # Every other one is killed while it recovers or soon after, the others while they trade.
    enough = len(STARTED) if run % 2 else len(STARTED) + 1
    while len(heard) < enough:
        assert time.monotonic() < begin + START_SECONDS_MAX and process.is_alive()
        time.sleep(0.001)
    time.sleep(random.random() * SECONDS_MAX)
    process.kill()
    process.join()
    listener.join()
    reader.close()
    assert process.exitcode == -9, "it was killed, it did not fail by itself"
    assert heard[: len(STARTED)] == STARTED
    whole = len(heard) // ACKNOWLEDGED.size * ACKNOWLEDGED.size
    return [ACKNOWLEDGED.unpack_from(heard, i) for i in range(len(STARTED), whole, len(STARTED))]


async def _recover(directory: Path) -> tuple[list[Event], str]:
    pipeline = Pipeline(Journal(directory, SystemDisk(), SEGMENT_BYTES), SystemClock())
    events: list[Event] = []

    def hear(batch: Batch) -> None:
        events.extend(batch.events)

    pipeline.subscribe(hear)
    await pipeline.start()
    state = pipeline.state_hash()
    await pipeline.close()
    return events, state


def _kill_many_times(directory: Path, kills: int) -> None:
    random = Random(SEED)
    acknowledged: list[tuple[int, int, int]] = []
    for run in range(1, kills + 1):
        acknowledged += _run_and_kill(directory, run, random)
    events, state = asyncio.run(_recover(directory))
    assert verify(directory).state_hash == state
    accepted = [
        (e.client_id, e.sequence, e.order_id) for e in events if e.kind == EventKind.ACCEPTED
    ]
    placed = set(accepted)
    assert len({client_id for client_id, _, _ in accepted}) == len(accepted), "none twice"
    quoted = [e for e in events if e.kind == EventKind.QUOTED]
    sequences = {sequence for _, sequence, _ in accepted}
    for head in quoted:
        levels = {head.sequence + n for n in range(1, QUOTE_LEVELS + 1)}
        assert levels <= sequences, "a command of several records is there whole or not at all"
    assert quoted, "they did quote"
    lost = [ack for ack in acknowledged if ack not in placed]
    assert not lost, f"seed {SEED}: {len(lost)} of {len(acknowledged)} lost, first {lost[0]}"
    assert len(acknowledged) > kills, "the processes did trade"
    runs = {client_id >> 32 for client_id, _, _ in acknowledged}
    print(f"{kills} kills: {len(acknowledged)} acknowledged in {len(runs)} runs, 0 lost, 0 twice")
    assert len(list(directory.glob("*.cxj"))) > 1, "segments were rotated under the kills"


def test_every_acknowledged_order_survives_twenty_kills(tmp_path: Path) -> None:
    _kill_many_times(tmp_path, 20)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_acknowledged_order_survives_a_thousand_kills(tmp_path: Path) -> None:
    """In rounds, so that the last recovery does not replay an hour of trading."""
    for part in range(20):
        _kill_many_times(tmp_path / str(part), 50)
