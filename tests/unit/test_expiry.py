"""Orders with a time: out of the book before anything later happens, in a quiet market too."""

import asyncio
from pathlib import Path

import pytest

from engine import pipeline as pipeline_module
from engine.clock import ScriptedClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import (
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Side,
    TimeInForce,
)

SECOND_NS = 1_000_000_000
START_S = 1_800_000_000
LOTS = 100


class World:
    """A pipeline with one market, a buyer (1) and a seller (2)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ScriptedClock(START_S * SECOND_NS)
        self.events: list[Event] = []
        self.cancelled = asyncio.Event()

    async def start(self) -> None:
        self.pipeline = Pipeline(Journal(self.directory, SystemDisk()), self.clock)
        self.pipeline.subscribe(self.hear)
        await self.pipeline.start()

    def hear(self, batch: Batch) -> None:
        self.events.extend(batch.events)
        if EventKind.CANCELLED in self.kinds():
            self.cancelled.set()

    async def prepare(self) -> None:
        await self.start()
        for command in (
            Command(kind=CommandKind.LIST_MARKET, order_id=1, qty_lots=1, price_ticks=1),
            Command(kind=CommandKind.OPEN_ACCOUNT, account=1, order_id=1),
            Command(kind=CommandKind.OPEN_ACCOUNT, account=2, order_id=2),
            Command(kind=CommandKind.DEPOSIT, account=1, client_id=1, price_ticks=10**9),
            Command(kind=CommandKind.DEPOSIT, account=2, client_id=2, price_ticks=10**9, side=1),
            Command(kind=CommandKind.DECLARE_CAPACITY, account=2, qty_lots=10**6),
        ):
            self.pipeline.submit(command)
        await self.pipeline.settled()
        self.events.clear()

    def order(self, account: int, side: Side, expiry_s: int = 0) -> None:
        self.pipeline.submit(
            Command(
                kind=CommandKind.NEW_ORDER,
                account=account,
                side=side,
                price_ticks=100,
                qty_lots=LOTS,
                time_in_force=TimeInForce.GTT if expiry_s else TimeInForce.GTC,
                expiry_s=expiry_s,
            )
        )

    def kinds(self) -> list[EventKind]:
        return [EventKind(event.kind) for event in self.events]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.prepare()
    return world


async def test_an_order_is_gone_before_the_first_command_at_its_time(world: World) -> None:
    world.order(2, Side.SELL, expiry_s=START_S + 5)
    await world.pipeline.settled()
    world.clock.advance_to((START_S + 5) * SECOND_NS)
    world.order(1, Side.BUY)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert world.kinds() == [EventKind.ACCEPTED, EventKind.CANCELLED, EventKind.ACCEPTED]
    assert world.events[1].reason == CancelReason.EXPIRED


async def test_an_order_trades_until_the_nanosecond_before_its_time(world: World) -> None:
    world.order(2, Side.SELL, expiry_s=START_S + 5)
    world.clock.advance_to((START_S + 5) * SECOND_NS - 1)
    world.order(1, Side.BUY)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert world.kinds() == [EventKind.ACCEPTED, EventKind.ACCEPTED, EventKind.FILL]


async def test_an_order_still_in_flight_at_its_time_does_not_trade(world: World) -> None:
    world.order(2, Side.SELL, expiry_s=START_S + 5)
    # Not published yet, so the schedule does not know it; the kernel sees its time.
    world.clock.advance_to((START_S + 6) * SECOND_NS)
    world.order(1, Side.BUY)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert EventKind.FILL not in world.kinds()
    assert world.pipeline.balances(1).held_usdc6 == 100 * LOTS


async def test_orders_expire_in_a_quiet_market(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "EXPIRY_SECONDS", 0.001)
    world.order(1, Side.BUY, expiry_s=START_S + 5)
    await world.pipeline.settled()
    world.clock.advance_to((START_S + 5) * SECOND_NS)
    async with asyncio.timeout(10):
        await world.cancelled.wait()
    await world.pipeline.close()
    assert world.pipeline.balances(1).held_usdc6 == 0


async def test_a_restart_remembers_whose_time_is_to_come(world: World) -> None:
    world.order(1, Side.BUY, expiry_s=START_S + 5)
    await world.pipeline.settled()
    await world.pipeline.close()
    world.events.clear()
    world.clock.advance_to((START_S + 9) * SECOND_NS)
    await world.start()
    world.order(2, Side.SELL)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert world.kinds()[-2:] == [EventKind.CANCELLED, EventKind.ACCEPTED]


async def test_a_cancelled_order_is_not_expired_again(world: World) -> None:
    world.order(1, Side.BUY, expiry_s=START_S + 5)
    await world.pipeline.settled()
    order_id = world.events[0].order_id
    world.pipeline.submit(Command(kind=CommandKind.CANCEL, account=1, order_id=order_id))
    await world.pipeline.settled()
    world.clock.advance_to((START_S + 9) * SECOND_NS)
    world.order(1, Side.BUY)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert world.kinds() == [EventKind.ACCEPTED, EventKind.CANCELLED, EventKind.ACCEPTED]


async def test_an_order_whose_time_has_come_is_asked_about_once_whatever_starts_follow(
    world: World,
) -> None:
    world.order(2, Side.SELL, expiry_s=START_S + 5)
    world.order(1, Side.BUY)  # takes all of it
    await world.pipeline.settled()
    world.clock.advance_to((START_S + 9) * SECOND_NS)
    for _ in range(3):
        world.order(1, Side.BUY)
        await world.pipeline.settled()
        await world.pipeline.close()
        world.events.clear()
        await world.start()
    await world.pipeline.close()
    assert world.kinds().count(EventKind.REJECTED) == 1, "it is filled"


class SetBackClock:
    """One that somebody sets back."""

    def __init__(self) -> None:
        self.time_s = START_S

    def now_ns(self) -> int:
        return self.time_s * SECOND_NS


async def test_a_clock_that_is_set_back_puts_off_no_order_whose_time_came(tmp_path: Path) -> None:
    """The order was in flight when its time came, and heard of when the clock was back: its end is
    by the time of the commands, or it would stand in the book for an hour and trade with nobody."""
    world = World(tmp_path)
    await world.prepare()
    clock = SetBackClock()
    await world.pipeline.close()
    world.pipeline = Pipeline(Journal(tmp_path, SystemDisk()), clock)
    await world.pipeline.start()
    world.pipeline.subscribe(world.hear)
    world.order(2, Side.SELL, expiry_s=START_S + 5)
    clock.time_s = START_S + 6
    world.order(2, Side.SELL)
    clock.time_s = START_S + 6 - 3600
    await world.pipeline.settled()
    world.order(2, Side.SELL)
    await world.pipeline.settled()
    await world.pipeline.close()
    assert EventKind.CANCELLED in world.kinds()
