"""Snapshots: how long one takes to be written and loaded, and what the running engine feels of it.

The state is one of so many resting orders, in the launch markets. Written and loaded is the state
as the engine has it; beside it the same bytes written with their sync, and read. While a process
makes a snapshot of a journal, the engine that writes this journal takes an order every hundredth of
a second, and its loop is asked every millisecond how late it is. `durability` calls.
"""

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from engine import snapshot
from engine.book import StateArray, new_state
from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.journal import FRAME_COMMANDS_MAX, Journal, Mark, SystemDisk
from engine.pipeline import Pipeline
from engine.records import COMMAND, Command, CommandArray, CommandKind, Purse, Side, command_array
from engine.replay import Matcher
from engine.snapshot import state_hash
from gateway.settings import LAUNCH_MARKETS

ACCOUNTS: Final = 64
USDC6: Final = 10**13  # of each account, in cash and as bond
CAPACITY_LOTS: Final = 10**9
MIDDLE_TICKS: Final = 25_000
LEVELS: Final = 2_000  # on each side
START_NS: Final = 1_795_219_200_000_000_000
TICK_SECONDS: Final = 0.001
ORDER_TICKS: Final = 10  # between two orders


class Times(NamedTuple):
    """Seconds of one round."""

    written: float
    bare_written: float
    loaded: float
    bare_loaded: float


def opening() -> list[Command]:
    """The markets, and accounts with money and capacity in all of them."""
    catalog = load_catalog()
    commands = [
        Command(
            kind=CommandKind.LIST_MARKET,
            instrument=number,
            order_id=catalog.parse(symbol),
            price_ticks=1,
            qty_lots=1,
        )
        for number, symbol in enumerate(LAUNCH_MARKETS)
    ]
    for account in range(1, ACCOUNTS + 1):
        commands.append(Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account))
        for purse in (Purse.CASH, Purse.BOND):
            number = 2 * account - (purse == Purse.CASH)
            deposit = Command(kind=CommandKind.DEPOSIT, account=account, client_id=number)
            commands.append(deposit._replace(price_ticks=USDC6, side=purse))
        for market in range(len(LAUNCH_MARKETS)):
            capacity = Command(kind=CommandKind.DECLARE_CAPACITY, account=account)
            commands.append(capacity._replace(instrument=market, qty_lots=CAPACITY_LOTS))
    return commands


def resting(orders: int) -> CommandArray:
    """The opening and so many orders that rest, each with a client id; sequenced from 1."""
    first = command_array(opening())
    commands = np.zeros(len(first) + orders, COMMAND)
    commands[: len(first)] = first
    rest = commands[len(first) :]
    number = np.arange(orders)
    is_sell = number % 2
    depth = number // 2 % LEVELS
    rest["kind"] = CommandKind.NEW_ORDER
    rest["account"] = 1 + number % ACCOUNTS
    rest["instrument"] = number // ACCOUNTS % len(LAUNCH_MARKETS)
    rest["client_id"] = number + 1
    rest["side"] = np.where(is_sell, Side.SELL.value, Side.BUY.value)
    rest["price_ticks"] = np.where(is_sell, MIDDLE_TICKS + depth, MIDDLE_TICKS - 1 - depth)
    rest["qty_lots"] = 10
    commands["sequence"] = np.arange(1, len(commands) + 1)
    commands["time_ns"] = START_NS + commands["sequence"].astype(np.int64)
    return np.frombuffer(commands.tobytes(), COMMAND)


def state_of(commands: CommandArray) -> StateArray:
    matcher = Matcher()
    matcher.pass_over(commands)
    return matcher.state


def write_journal(directory: Path, commands: CommandArray) -> None:
    journal = Journal(directory, SystemDisk())
    assert list(journal.recover()) == []
    for start in range(0, len(commands), FRAME_COMMANDS_MAX):
        journal.append(commands[start : start + FRAME_COMMANDS_MAX].tobytes())
    journal.close()


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def timed(directory: Path, state: StateArray, number: int) -> Times:
    """Write and load once, with the bare disk first in every other round."""
    disk = SystemDisk()
    mark = Mark(int(state["sequence"][0]), bytes(16))
    bare, loaded = directory / "bare", new_state()

    def write() -> None:
        snapshot.write(directory, disk, mark, 0, state, {})

    def load() -> None:
        snapshot.load(snapshot.read(snapshot.paths(directory)[0]), loaded)

    write()
    size = snapshot.paths(directory)[0].stat().st_size
    data = os.urandom(size)

    def write_bare() -> None:
        fd = disk.create(bare, size)
        disk.write(fd, data, 0)
        disk.sync(fd)
        disk.close(fd)

    def read_bare() -> None:
        with bare.open("rb", buffering=0) as file:
            assert file.readinto(bytearray(size)) == size

    found: dict[str, float] = {}
    runs = [("written", write), ("bare_written", write_bare)]
    for name, run in runs if number % 2 else runs[::-1]:
        found[name] = _seconds(run)
    runs = [("loaded", load), ("bare_loaded", read_bare)]
    for name, run in runs if number % 2 else runs[::-1]:
        found[name] = _seconds(run)
    bare.unlink()
    assert state_hash(loaded) == state_hash(state)
    return Times(**found)


class Pauses(NamedTuple):
    """How late the engine's loop was at most, in milliseconds."""

    beside: float  # while a process made a snapshot
    alone: float  # for as long a time without one


async def _latest(
    engine: Pipeline, ids: "itertools.count[int]", until: Callable[[], bool]
) -> float:
    """The worst of all ticks, in seconds, with an order every few."""
    loop, worst = asyncio.get_running_loop(), 0.0
    order = Command(
        kind=CommandKind.NEW_ORDER, account=1, price_ticks=MIDDLE_TICKS // 2, qty_lots=10
    )
    due = loop.time() + TICK_SECONDS
    for tick in itertools.count():
        await asyncio.sleep(due - loop.time())
        worst = max(worst, loop.time() - due)
        due = max(due, loop.time()) + TICK_SECONDS
        if tick % ORDER_TICKS == 0:
            engine.submit(order._replace(client_id=next(ids)))
        if until():
            break
    await engine.settled()
    return worst


async def pauses(directory: Path) -> Pauses:
    """Of an engine on this journal, while `compex snapshot` works on it from its beginning."""
    for path in snapshot.paths(directory):
        path.unlink()
    engine = Pipeline(Journal(directory, SystemDisk()), SystemClock())
    await engine.start()
    gc.collect()
    gc.freeze()  # as a node does
    ids = itertools.count(1 << 40 | time.time_ns() >> 20 & 0xFFFFFFFF)
    words = [sys.executable, "-m", "gateway.cli", "snapshot", "--background", str(directory)]
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 before the ticks
    beside = await _latest(engine, ids, lambda: process.poll() is not None)
    assert process.returncode == 0
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    alone = await _latest(engine, ids, lambda: time.perf_counter() - begin > seconds)
    await engine.close()
    gc.unfreeze()
    return Pauses(beside * 1000, alone * 1000)
