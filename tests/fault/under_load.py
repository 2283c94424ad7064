"""A pipeline under load in a process of its own, to be killed: it writes down, through a pipe that
outlives it, what it was answered and what it is at, one record each."""

import asyncio
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Final

from engine.clock import SystemClock
from engine.invariants import check_invariants
from engine.journal import Journal, SystemDisk, scan
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Command, CommandKind, EventKind, Purse, Side
from engine.replay import Matcher, adopt

RECORD: Final = struct.Struct("<QQQ")  # client id, sequence, order id; or 0, a moment, 0
SEGMENT_BYTES: Final = 1 << 14  # small, so that kills meet rotations too
IN_FLIGHT_MAX: Final = 256
ACCOUNT: Final = 1
QUOTE_LEVELS: Final = 3
HEAD_BIT: Final = 1 << 31  # in the client id of a command of several records


class Moment(IntEnum):
    """What a process is at, from when it says so."""

    RECOVERING = 1
    ADOPTING = 2
    TRADING = 3
    CHANGING_SEGMENT = 4


def _warm_up() -> None:
    matcher = Matcher()
    matcher.warm_up()
    check_invariants(matcher.state)


_warm_up()  # once, in the server that the processes to be killed are forked from


class TellingDisk(SystemDisk):
    """Says when a segment is being made, and when it has its first bytes."""

    def __init__(self, tell: Callable[[Moment], None]) -> None:
        self._tell = tell
        self._is_new = False

    def create(self, path: Path, size: int) -> int:
        self._tell(Moment.CHANGING_SEGMENT)
        self._is_new = True
        return super().create(path, size)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        if self._is_new:
            self._is_new = False
            self._tell(Moment.TRADING)


def opening() -> list[Command]:
    """Harmless when repeated: each process sends it again."""
    market = Command(kind=CommandKind.LIST_MARKET, order_id=1, price_ticks=1, qty_lots=1)
    account = Command(kind=CommandKind.OPEN_ACCOUNT, account=ACCOUNT, order_id=1 << 40)
    deposit = Command(
        kind=CommandKind.DEPOSIT, account=ACCOUNT, client_id=1, price_ticks=10**15, side=Purse.CASH
    )
    return [market, account, deposit]


def order(client_id: int, random: Random) -> Command:
    return Command(
        kind=CommandKind.NEW_ORDER,
        account=ACCOUNT,
        client_id=client_id,
        side=Side.BUY,
        price_ticks=1 + random.randrange(1000),
        qty_lots=1,
    )


def quote(client_id: int, random: Random) -> tuple[Command, list[Command]]:
    """Levels instead of those before; each is acknowledged like an order."""
    levels = [
        order(client_id + n, random)._replace(kind=CommandKind.PART) for n in range(QUOTE_LEVELS)
    ]
    head = Command(kind=CommandKind.MASS_QUOTE, account=ACCOUNT, client_id=client_id | HEAD_BIT)
    return head, levels


async def _trade(pipeline: Pipeline, run: int, tell: Callable[[bytes], object]) -> None:
    answered = 0
    progress = asyncio.Event()

    def hear(batch: Batch) -> None:
        nonlocal answered
        for event in batch.events:
            if not batch.replayed and event.kind == EventKind.ACCEPTED:
                answered += 1
                progress.set()
                tell(RECORD.pack(event.client_id, event.sequence, event.order_id))

    pipeline.subscribe(hear)
    await pipeline.start()
    tell(RECORD.pack(0, Moment.TRADING, 0))
    for command in opening():
        pipeline.submit(command)
    random = Random(run)
    sent = 0
    while True:
        for _ in range(random.randrange(1, 40)):
            if random.randrange(4) == 0:
                pipeline.submit(*quote(run << 32 | (sent + 1), random))
                sent += QUOTE_LEVELS
                continue
            sent += 1
            pipeline.submit(order(run << 32 | sent, random))
        while sent - answered > IN_FLIGHT_MAX:
            progress.clear()
            await progress.wait()
        await asyncio.sleep(0)


def _is_of(build: str, directory: Path) -> bool:
    builds = [segment.header.build for segment in scan(directory)]
    return not builds or builds[-1] == build


def trade_until_killed(directory: Path, run: int, build: str, pipe: Connection) -> None:
    """Adopt the journal, if it is another build's, and trade on it."""

    def tell(record: bytes) -> None:
        os.write(pipe.fileno(), record)

    def at(moment: Moment) -> None:
        tell(RECORD.pack(0, moment, 0))

    if not _is_of(build, directory):
        at(Moment.ADOPTING)
        adopt(directory, SystemDisk(), build)
    at(Moment.RECOVERING)
    journal = Journal(directory, TellingDisk(at), SEGMENT_BYTES, build)
    asyncio.run(_trade(Pipeline(journal, SystemClock()), run, tell))
