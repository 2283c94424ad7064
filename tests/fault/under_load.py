"""A pipeline under load in a process of its own, to be killed: it writes down, through a pipe that
outlives it, what it was answered, one record per acknowledgement."""

import asyncio
import os
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Final

from engine.clock import SystemClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Command, CommandKind, EventKind, Purse, Side
from engine.replay import warm_up

ACKNOWLEDGED: Final = struct.Struct("<QQQ")  # client id, sequence, order id
STARTED: Final = ACKNOWLEDGED.pack(0, 0, 0)
SEGMENT_BYTES: Final = 1 << 16  # small, so that kills meet rotations too
IN_FLIGHT_MAX: Final = 256
ACCOUNT: Final = 1
QUOTE_LEVELS: Final = 3
HEAD_BIT: Final = 1 << 31  # in the client id of a command of several records

warm_up()  # once, in the server that the processes to be killed are forked from


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


async def _trade(directory: Path, run: int, tell: Callable[[bytes], object]) -> None:
    pipeline = Pipeline(Journal(directory, SystemDisk(), SEGMENT_BYTES), SystemClock())
    answered = 0
    progress = asyncio.Event()

    def hear(batch: Batch) -> None:
        nonlocal answered
        for event in batch.events:
            if not batch.replayed and event.kind == EventKind.ACCEPTED:
                answered += 1
                progress.set()
                tell(ACKNOWLEDGED.pack(event.client_id, event.sequence, event.order_id))

    pipeline.subscribe(hear)
    tell(STARTED)
    await pipeline.start()
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


def trade_until_killed(directory: Path, run: int, pipe: Connection) -> None:
    asyncio.run(_trade(directory, run, lambda record: os.write(pipe.fileno(), record)))
