"""How long an order waits until the world may hear of it: the whole engine beside the bare disk.

Both take the same commands at the same times (`arrivals`) and gather what came while the disk was
busy into the next group. The engine sequences, journals, matches and publishes; the bare disk gets
as many bytes, in a file made like a segment, and nothing else is done: no engine that waits for
this disk can be faster. A delay is from when a command was sent to when its events are published,
or its bytes are synced. `durability` calls.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.arrivals import arrivals, received
from engine.clock import SystemClock
from engine.journal import (
    FRAME_COMMANDS_MAX,
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    Journal,
    SystemDisk,
)
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import COMMAND, CommandArray, decode_commands


class Delays(NamedTuple):
    """Of one round, in ns, ascending."""

    acks: list[int]
    syncs: list[int]  # of the bare disk: each write with its sync; else empty
    groups: int


def bare(path: Path, gap_ns: int, count: int, seed: int) -> Delays:
    """Write and sync what has come, again and again."""
    disk = SystemDisk()
    fd = disk.create(path, SEGMENT_BYTES)
    data = os.urandom(FRAME_HEADER_BYTES + FRAME_COMMANDS_MAX * COMMAND.itemsize)
    acks: list[int] = []
    syncs: list[int] = []
    offset = HEADER_BYTES
    with arrivals(gap_ns, count, seed) as pipe:
        while len(acks) < count:
            sent_ns = received(pipe)
            assert sent_ns, "the sender lives until all is sent"
            size = FRAME_HEADER_BYTES + len(sent_ns) * COMMAND.itemsize
            if offset + size > SEGMENT_BYTES:
                offset = HEADER_BYTES
            begin_ns = time.monotonic_ns()
            disk.write(fd, data[:size], offset)
            disk.sync(fd)
            now_ns = time.monotonic_ns()
            syncs.append(now_ns - begin_ns)
            acks += [now_ns - sent for sent in sent_ns]
            offset += size
    disk.close(fd)
    path.unlink()
    return Delays(sorted(acks), sorted(syncs), len(syncs))


class Engine:
    """A pipeline on a fresh journal, on the node's event loop, that takes one flow piece by piece.

    Nothing but the flow is sequenced in it: no order of the flow ends by time, no market is called.
    """

    def __init__(self, directory: Path, flow: CommandArray) -> None:
        self._flow = flow
        self._submitted = 0
        self._published = 0
        self._first = 0  # of this round, in the flow
        self._sent_ns: list[int] = []  # of this round
        self._acks: list[int] = []
        self._batches = 0
        self._pipe = -1
        self._all_came = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.pipeline = self._runner.run(self._start(directory))

    async def _start(self, directory: Path) -> Pipeline:
        pipeline = Pipeline(Journal(directory, SystemDisk()), SystemClock())
        pipeline.subscribe(self._hear)
        await pipeline.start()
        return pipeline

    def _submit(self, count: int) -> None:
        for command in decode_commands(self._flow[self._submitted : self._submitted + count]):
            self.pipeline.submit(command)
        self._submitted += count

    def _read(self) -> None:
        sent_ns = received(self._pipe)
        self._sent_ns += sent_ns
        self._submit(len(sent_ns))
        if not sent_ns:
            self._all_came.set()

    def _hear(self, batch: Batch) -> None:
        now_ns = time.monotonic_ns()
        last = batch.events[-1].sequence  # as many of the flow, whose sequences are from 1
        sent_ns = self._sent_ns[self._published - self._first : last - self._first]
        self._acks += [now_ns - sent for sent in sent_ns]
        self._published = last
        self._batches += 1

    def open(self, count: int) -> None:
        """The first commands, as fast as they are taken: nothing is measured."""

        async def all_at_once() -> None:
            self._submit(count)
            await self.pipeline.settled()

        self._runner.run(all_at_once())

    def round(self, gap_ns: int, count: int, seed: int) -> Delays:
        """The flow's next `count` commands as they come."""
        self._first = self._published
        self._sent_ns, self._acks, self._batches = [], [], 0
        self._all_came.clear()

        async def as_they_come() -> None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._pipe, self._read)
            await self._all_came.wait()
            loop.remove_reader(self._pipe)
            await self.pipeline.settled()

        with arrivals(gap_ns, count, seed) as self._pipe:
            self._runner.run(as_they_come())
        assert len(self._acks) == count, "each is heard of once"
        return Delays(sorted(self._acks), [], self._batches)

    def close(self) -> None:
        self._runner.run(self.pipeline.close())
        self._runner.close()
