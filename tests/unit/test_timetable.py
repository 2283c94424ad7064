"""What markets do by themselves when a time comes, in a quiet exchange and after a restart."""

import asyncio
from pathlib import Path

import pytest

from engine import pipeline as pipeline_module
from engine.clock import ScriptedClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import (
    EFFECTS_MAX,
    SECOND_NS,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    ListingFlag,
    MarketStatus,
    Side,
)

START_S = 1_800_000_000
GATE_S = START_S + 100
HALTED, RESUMED = EventKind.MARKET_HALTED, EventKind.MARKET_RESUMED
CALLED, UNCROSSED = EventKind.MARKET_CALLED, EventKind.MARKET_UNCROSSED
CLOSED, INDICATED = EventKind.MARKET_CLOSED, EventKind.INDICATED


class World:
    """A pipeline with a buyer (1) and a seller (2); it looks at the clock when told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ScriptedClock(START_S * SECOND_NS)
        self.events: list[Event] = []

    async def start(self) -> None:
        self.pipeline = Pipeline(Journal(self.directory, SystemDisk()), self.clock)
        self.pipeline.subscribe(self._hear)
        await self.pipeline.start()
        await self.pipeline.settled()

    def _hear(self, batch: Batch) -> None:
        self.events.extend(batch.events)

    async def restart(self) -> None:
        await self.pipeline.close()
        self.events.clear()
        await self.start()

    async def prepare(self) -> None:
        await self.start()
        for account in (1, 2):
            self.pipeline.submit(
                Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account)
            )
        for number, (account, purse) in enumerate(((1, 0), (2, 1)), 1):
            deposit = Command(kind=CommandKind.DEPOSIT, account=account, client_id=number)
            self.pipeline.submit(deposit._replace(price_ticks=10**12, side=purse))

    async def list_market(
        self, *, gate_s: int = 0, opens_s: int = 0, closing_call_s: int = 0, flags: int = 0
    ) -> None:
        listing = Command(
            kind=CommandKind.LIST_MARKET, order_id=1, qty_lots=1, price_ticks=1, flags=flags
        )
        times = opens_s | closing_call_s << 32
        self.pipeline.submit(listing._replace(expiry_s=gate_s, client_id=times))
        declaring = Command(kind=CommandKind.DECLARE_CAPACITY, account=2, qty_lots=10**6)
        self.pipeline.submit(declaring)
        await self.pipeline.settled()
        self.events.clear()

    async def do(self, kind: CommandKind, **fields: int) -> None:
        self.pipeline.submit(Command(kind=kind, **fields))
        await self.pipeline.settled()

    async def order(self, account: int, side: Side, price: int, lots: int = 1) -> None:
        await self.do(
            CommandKind.NEW_ORDER, account=account, side=side, price_ticks=price, qty_lots=lots
        )

    async def at(self, time_s: int) -> list[int]:
        """What happened when this time came."""
        self.events.clear()
        self.clock.advance_to(time_s * SECOND_NS)
        await self.look()
        return self.kinds()

    async def look(self) -> None:
        """As the pipeline does by itself now and then, until nothing more follows."""
        before = -1
        while before != len(self.events):
            before = len(self.events)
            await asyncio.sleep(3 * pipeline_module.EXPIRY_SECONDS)
            await self.pipeline.settled()

    def kinds(self) -> list[int]:
        return [event.kind for event in self.events]

    @property
    def status(self) -> int:
        return self.pipeline.markets()[0].status


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(pipeline_module, "EXPIRY_SECONDS", 0.001)
    world = World(tmp_path)
    await world.prepare()
    return world


# --- gates --------------------------------------------------------------------------------------


async def test_a_market_closes_when_its_gate_comes(world: World) -> None:
    await world.list_market(gate_s=GATE_S)
    await world.order(1, Side.BUY, 100)
    assert await world.at(GATE_S - 1) == []
    assert await world.at(GATE_S) == [EventKind.CANCELLED, CLOSED]
    assert world.status == MarketStatus.CLOSED
    assert await world.at(GATE_S + 100) == []
    await world.pipeline.close()


async def test_the_gate_comes_before_the_first_command_at_its_time(world: World) -> None:
    await world.list_market(gate_s=GATE_S)
    world.clock.advance_to(GATE_S * SECOND_NS)
    world.pipeline.submit(Command(kind=CommandKind.HALT_MARKET))
    await world.pipeline.settled()
    assert world.kinds() == [CLOSED, EventKind.REJECTED]
    await world.pipeline.close()


async def test_a_market_of_many_orders_closes_in_as_many_commands_as_it_must(
    world: World,
) -> None:
    await world.list_market(gate_s=GATE_S)
    order = Command(kind=CommandKind.NEW_ORDER, account=1, price_ticks=9, qty_lots=1)
    for _ in range(EFFECTS_MAX + 1):
        world.pipeline.submit(order)
    await world.pipeline.settled()
    await world.at(GATE_S)
    closed = [event for event in world.events if event.kind == CLOSED]
    assert [event.qty_lots for event in closed] == [EFFECTS_MAX, 1]
    await world.pipeline.close()


async def test_a_gate_that_came_while_nobody_ran_shuts_at_the_start(world: World) -> None:
    await world.list_market(gate_s=GATE_S)
    await world.pipeline.close()
    world.clock.advance_to((GATE_S + 9) * SECOND_NS)
    await world.restart()
    await world.look()
    assert world.kinds()[-1] == CLOSED
    await world.restart()
    await world.look()
    assert world.kinds().count(CLOSED) == 1, "the journal has it now"
    await world.pipeline.close()


async def test_a_market_closed_by_hand_is_not_closed_again(world: World) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    await world.do(CommandKind.CLOSE_MARKET)
    assert await world.at(GATE_S) == []
    await world.pipeline.close()


# --- calls --------------------------------------------------------------------------------------


async def test_a_call_ends_when_its_time_comes(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    assert world.status == MarketStatus.CALL
    await world.order(1, Side.BUY, 110)
    await world.order(2, Side.SELL, 100)
    assert UNCROSSED not in await world.at(START_S + 4)
    assert await world.at(START_S + 5) == [EventKind.FILL, UNCROSSED]
    assert world.status == MarketStatus.OPEN
    assert await world.at(START_S + 99) == []
    await world.pipeline.close()


async def test_a_call_without_a_time_ends_by_hand(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET)
    assert await world.at(START_S + 10**6) == []
    await world.do(CommandKind.UNCROSS_MARKET)
    assert world.status == MarketStatus.OPEN
    await world.pipeline.close()


async def test_an_opening_call_ends_at_the_time_listed(world: World) -> None:
    await world.list_market(opens_s=START_S + 7, flags=ListingFlag.OPENING_CALL)
    assert world.status == MarketStatus.CALL
    assert await world.at(START_S + 7) == [UNCROSSED]
    await world.pipeline.close()


async def test_a_closing_call_ends_at_the_gate_and_then_the_market_closes(world: World) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    assert await world.at(GATE_S - 11) == []
    assert await world.at(GATE_S - 10) == [CALLED]
    await world.order(1, Side.BUY, 110, 2)
    await world.order(2, Side.SELL, 100)
    events = await world.at(GATE_S)
    assert [kind for kind in events if kind != INDICATED] == [
        EventKind.FILL,
        UNCROSSED,
        EventKind.CANCELLED,
        CLOSED,
    ]
    await world.pipeline.close()


async def test_a_closing_call_does_not_wake_a_halted_market_until_it_is_resumed(
    world: World,
) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    await world.do(CommandKind.HALT_MARKET)
    assert await world.at(GATE_S - 8) == []
    await world.do(CommandKind.RESUME_MARKET)
    await world.look()
    assert world.kinds() == [RESUMED, CALLED]
    await world.pipeline.close()


async def test_a_call_that_is_halted_ends_after_it_is_resumed(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    await world.do(CommandKind.HALT_MARKET)
    assert world.status == MarketStatus.HALTED
    assert await world.at(START_S + 5) == []
    await world.do(CommandKind.RESUME_MARKET)
    await world.look()
    assert world.kinds() == [RESUMED, UNCROSSED]
    await world.pipeline.close()


async def test_a_market_that_called_itself_opens_again_by_itself(world: World) -> None:
    await world.list_market()
    bands = {"order_id": 10_000 << 32, "price_ticks": 1000, "expiry_s": 30}
    await world.do(CommandKind.SET_BANDS, **bands)
    await world.order(2, Side.SELL, 1011)
    await world.order(1, Side.BUY, 1011)
    assert world.kinds()[-1] == EventKind.VOLATILITY_CALL
    assert world.status == MarketStatus.CALL
    assert UNCROSSED not in await world.at(START_S + 29)
    assert await world.at(START_S + 30) == [EventKind.FILL, UNCROSSED]
    await world.pipeline.close()


async def test_a_restart_remembers_the_calls_that_go_on(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    await world.restart()
    assert world.status == MarketStatus.CALL
    assert await world.at(START_S + 5) == [UNCROSSED]
    await world.pipeline.close()


async def many_that_cross(world: World) -> int:
    """Orders in a call that more than one command uncrosses; how many lots of each side."""
    asks = EFFECTS_MAX // 3 + 5
    iceberg: dict[str, int] = {"account": 1, "price_ticks": 101, "order_id": 1}
    await world.do(CommandKind.NEW_ORDER, qty_lots=2 * asks, **iceberg)
    ask = Command(kind=CommandKind.NEW_ORDER, account=2, side=1, price_ticks=100, qty_lots=2)
    for _ in range(asks):
        world.pipeline.submit(ask)
    await world.pipeline.settled()
    return 2 * asks


async def test_an_uncross_of_many_trades_is_asked_for_until_it_is_done(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    lots = await many_that_cross(world)
    await world.at(START_S + 5)
    done = [event for event in world.events if event.kind == UNCROSSED]
    assert [event.reason for event in done] == [CancelReason.EFFECTS_LIMIT, 0]
    assert done[-1].volume_lots == lots
    await world.pipeline.close()


async def test_the_gate_shuts_on_what_the_closing_auction_has_left_however_large(
    world: World,
) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    await world.at(GATE_S - 10)
    lots = await many_that_cross(world)
    await world.order(1, Side.BUY, 90)
    await world.at(GATE_S)
    ends = [event for event in world.events if event.kind in {UNCROSSED, CLOSED}]
    assert [(event.kind, event.reason) for event in ends] == [
        (UNCROSSED, CancelReason.EFFECTS_LIMIT), (UNCROSSED, 0), (CLOSED, 0)
    ]  # fmt: skip
    assert ends[1].volume_lots == lots
    assert world.kinds().count(EventKind.CANCELLED) == 1, "the bid that crossed nothing"
    await world.pipeline.close()


@pytest.mark.parametrize("by_listing", [False, True])
async def test_a_call_that_ends_when_the_closing_call_begins_goes_on_till_the_gate(
    world: World, by_listing: bool
) -> None:
    begins_s = GATE_S - 10
    if by_listing:
        opening = {"opens_s": begins_s, "flags": ListingFlag.OPENING_CALL}
        await world.list_market(gate_s=GATE_S, closing_call_s=10, **opening)
    else:
        await world.list_market(gate_s=GATE_S, closing_call_s=10)
        await world.do(CommandKind.CALL_MARKET, expiry_s=begins_s)
    assert await world.at(begins_s) == [CALLED]
    assert world.status == MarketStatus.CALL
    assert await world.at(GATE_S) == [UNCROSSED, CLOSED]
    await world.pipeline.close()


async def test_a_start_after_both_an_opening_and_a_closing_call_does_one_after_the_other(
    world: World,
) -> None:
    opening = {"opens_s": START_S + 5, "flags": ListingFlag.OPENING_CALL}
    await world.list_market(gate_s=GATE_S, closing_call_s=10, **opening)
    await world.pipeline.close()
    world.clock.advance_to((GATE_S - 3) * SECOND_NS)
    await world.restart()
    await world.look()
    assert world.kinds()[-2:] == [UNCROSSED, CALLED]
    assert await world.at(GATE_S) == [UNCROSSED, CLOSED]
    await world.pipeline.close()


async def test_a_closing_call_ended_by_hand_does_not_begin_again(world: World) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    assert await world.at(GATE_S - 10) == [CALLED]
    await world.do(CommandKind.UNCROSS_MARKET)
    await world.restart()
    assert await world.at(GATE_S - 1) == []
    assert world.status == MarketStatus.OPEN
    await world.pipeline.close()


async def test_a_halt_on_its_way_stands_when_a_closing_call_falls_due(world: World) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    world.pipeline.submit(Command(kind=CommandKind.HALT_MARKET))
    world.clock.advance_to((GATE_S - 10) * SECOND_NS)
    await world.order(1, Side.BUY, 100)
    assert world.kinds() == [HALTED, EventKind.REJECTED, EventKind.REJECTED]
    await world.do(CommandKind.RESUME_MARKET)
    await world.look()
    assert world.kinds()[3:] == [RESUMED, CALLED]
    await world.pipeline.close()


# What is on its way when a time comes; the market is in a call that ends at the gate.
ON_ITS_WAY = [
    pytest.param({}, CommandKind.UNCROSS_MARKET, id="uncrossed by hand"),
    pytest.param({"closing_call_s": 10}, CommandKind.UNCROSS_MARKET, id="closing call uncrossed"),
    pytest.param({}, CommandKind.HALT_MARKET, id="halted"),
]


@pytest.mark.parametrize(("listing", "kind"), ON_ITS_WAY)
async def test_a_gate_shuts_whatever_was_on_its_way_when_it_came(
    world: World, listing: dict[str, int], kind: CommandKind
) -> None:
    await world.list_market(gate_s=GATE_S, **listing)
    await world.do(CommandKind.CALL_MARKET)
    await world.at(GATE_S - 1)
    world.pipeline.submit(Command(kind=kind))
    world.clock.advance_to(GATE_S * SECOND_NS)
    await world.order(1, Side.BUY, 100)  # the gate's time comes while the other is unpublished
    await world.look()
    assert world.status == MarketStatus.CLOSED
    await world.pipeline.close()


async def test_a_volatility_call_that_ends_just_before_the_gate_keeps_nothing_open(
    world: World,
) -> None:
    await world.list_market(gate_s=GATE_S)
    await world.do(CommandKind.CALL_MARKET, expiry_s=GATE_S - 1)
    world.clock.advance_to((GATE_S - 1) * SECOND_NS)
    world.pipeline.submit(Command(kind=CommandKind.NEW_ORDER, account=1, price_ticks=9, qty_lots=1))
    world.clock.advance_to(GATE_S * SECOND_NS)  # the disk was as slow
    await world.order(1, Side.BUY, 100)
    await world.look()
    assert world.status == MarketStatus.CLOSED
    await world.pipeline.close()


@pytest.mark.parametrize("kind", [CommandKind.RESUME_MARKET, CommandKind.UNCROSS_MARKET])
async def test_a_closing_call_begins_whatever_was_on_its_way_when_it_fell_due(
    world: World, kind: CommandKind
) -> None:
    await world.list_market(gate_s=GATE_S, closing_call_s=10)
    if kind == CommandKind.RESUME_MARKET:
        await world.do(CommandKind.HALT_MARKET)
    else:
        await world.do(CommandKind.CALL_MARKET, expiry_s=GATE_S - 10)
    world.clock.advance_to((GATE_S - 11) * SECOND_NS)
    world.pipeline.submit(Command(kind=kind))
    world.clock.advance_to((GATE_S - 10) * SECOND_NS)
    await world.order(1, Side.BUY, 100)
    await world.look()
    assert world.status == MarketStatus.CALL
    assert await world.at(GATE_S - 1) in ([], [INDICATED])
    assert (await world.at(GATE_S))[-1] == CLOSED
    await world.pipeline.close()


async def test_a_call_that_is_given_a_later_end_just_before_its_end_goes_on_until_then(
    world: World,
) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    world.clock.advance_to((START_S + 5) * SECOND_NS - 1)
    world.pipeline.submit(Command(kind=CommandKind.CALL_MARKET, expiry_s=START_S + 60))
    world.clock.advance_to((START_S + 5) * SECOND_NS)
    await world.order(1, Side.BUY, 100)
    await world.look()
    assert world.status == MarketStatus.CALL
    assert UNCROSSED not in await world.at(START_S + 59)
    assert UNCROSSED in await world.at(START_S + 60)
    await world.pipeline.close()


async def test_a_call_begun_anew_while_halted_lasts_as_long_as_it_says(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 5)
    world.pipeline.submit(Command(kind=CommandKind.HALT_MARKET))
    world.clock.advance_to((START_S + 5) * SECOND_NS)
    await world.order(1, Side.BUY, 100)  # the end came, and met a halted market
    await world.do(CommandKind.CALL_MARKET, expiry_s=START_S + 3600)
    await world.do(CommandKind.HALT_MARKET)
    await world.do(CommandKind.RESUME_MARKET)
    await world.look()
    assert world.status == MarketStatus.CALL
    assert UNCROSSED in await world.at(START_S + 3600)
    await world.pipeline.close()


async def test_a_call_set_off_just_before_the_gate_is_uncrossed_before_it_shuts(
    world: World,
) -> None:
    await world.list_market(gate_s=GATE_S)
    await world.do(CommandKind.SET_BANDS, order_id=10_000 << 32, price_ticks=1000, expiry_s=30)
    await world.order(2, Side.SELL, 1011)
    world.clock.advance_to(GATE_S * SECOND_NS - 1)
    bid = Command(kind=CommandKind.NEW_ORDER, account=1, price_ticks=1011, qty_lots=1)
    world.events.clear()
    world.pipeline.submit(bid)
    world.clock.advance_to(GATE_S * SECOND_NS)
    await world.look()
    kinds = [kind for kind in world.kinds() if kind != EventKind.REJECTED]
    assert kinds == [
        EventKind.ACCEPTED, EventKind.VOLATILITY_CALL, EventKind.FILL, UNCROSSED, CLOSED
    ]  # fmt: skip
    await world.pipeline.close()


async def test_an_uncross_halted_in_the_middle_goes_on_when_resumed(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET)  # without a time
    await many_that_cross(world)
    world.events.clear()
    world.pipeline.submit(Command(kind=CommandKind.UNCROSS_MARKET))
    world.pipeline.submit(Command(kind=CommandKind.HALT_MARKET))
    await world.look()
    assert world.kinds()[-2:] == [UNCROSSED, HALTED]
    await world.restart()
    await world.do(CommandKind.RESUME_MARKET)
    await world.look()
    assert world.kinds()[-1] == UNCROSSED
    assert (world.events[-1].reason, world.status) == (0, MarketStatus.OPEN)
    await world.pipeline.close()


# --- indications --------------------------------------------------------------------------------


async def test_a_book_that_changes_in_a_call_is_indicated_once_a_second(world: World) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET)
    await world.order(1, Side.BUY, 110)
    await world.order(2, Side.SELL, 100)
    assert INDICATED not in world.kinds()
    assert await world.at(START_S + 1) == [INDICATED]
    assert (world.events[0].price_ticks, world.events[0].volume_lots) == (105, 1)
    assert await world.at(START_S + 9) == [], "nothing has changed"
    await world.order(1, Side.BUY, 111)
    await world.look()
    assert world.kinds().count(INDICATED) == 1, "the last was more than a second ago"
    await world.order(1, Side.BUY, 112)
    await world.do(CommandKind.HALT_MARKET)
    assert await world.at(START_S + 20) == []
    await world.pipeline.close()


@pytest.mark.parametrize("end", [CommandKind.UNCROSS_MARKET, CommandKind.CLOSE_MARKET])
async def test_nothing_is_indicated_after_a_call(world: World, end: CommandKind) -> None:
    await world.list_market()
    await world.do(CommandKind.CALL_MARKET)
    await world.order(1, Side.BUY, 110)
    await world.do(end)
    assert await world.at(START_S + 20) == []
    await world.pipeline.close()
