"""A disk that fills up is announced before it is full, and keeps room for cancels."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from compex_client import messages as m

from engine.clock import ScriptedClock
from engine.journal import Journal, SystemDisk
from engine.pipeline import SPACE_SECONDS, Pipeline
from engine.port import JournalSpace, SpaceMarks
from engine.records import Command, CommandKind
from engine.rejects import Refused, Reject
from engine.space import Space
from gateway.health import Health
from tests.disks import FillingDisk
from tests.exchange import START_NS, TICKER, Exchange, running_exchange

MARKS: Final = SpaceMarks()
LOOK_SECONDS_MAX: Final = 40 * SPACE_SECONDS


async def seen(pipeline: Pipeline, disk: FillingDisk, free: int | None) -> JournalSpace:
    """What the engine says once it has looked at the disk as it is now."""
    disk.free = free
    async with asyncio.timeout(LOOK_SECONDS_MAX):
        while pipeline.ready().journal_bytes_free != (free or 0):  # noqa: ASYNC110 - it looks by itself
            await asyncio.sleep(SPACE_SECONDS / 10)
    return pipeline.ready().journal_space


@asynccontextmanager
async def exchange_on(disk: FillingDisk, directory: Path) -> AsyncGenerator[Exchange]:
    async with running_exchange(directory, disk=disk) as exchange:
        await exchange.list_market()
        yield exchange


@pytest.mark.parametrize(
    ("free", "state"),
    [
        (MARKS.low_bytes, "enough"),
        (MARKS.low_bytes - 1, "low"),
        (MARKS.too_low_bytes, "low"),
        (MARKS.too_low_bytes - 1, "too_low"),
        (0, "too_low"),
        (None, "too_low"),
    ],
)
async def test_ready_tells_the_free_bytes_and_on_which_side_of_the_marks_they_are(
    tmp_path: Path, free: int | None, state: JournalSpace
) -> None:
    disk = FillingDisk(1 << 40)
    async with exchange_on(disk, tmp_path) as exchange:
        assert await seen(exchange.port, disk, free) == state
        said = Health(exchange.port).ready()
        assert (said.journal_space, said.journal_bytes_free) == (state, free or 0)
        assert said.ready == (state != "too_low")
        assert bool(said.warning) == (state != "enough")
        assert said.stopped == ""


async def test_below_the_low_mark_trading_goes_on(tmp_path: Path) -> None:
    disk = FillingDisk(MARKS.low_bytes - 1)
    async with exchange_on(disk, tmp_path) as exchange:
        buyer = exchange.converse(await exchange.open_account(3, cash_usdc6=10**9))
        buyer.say(m.New(2, TICKER, "buy", "1", "1"))
        await exchange.port.settled()
        [ack] = buyer.heard()
        assert isinstance(ack, m.Ack) and ack.order_id


async def test_below_the_second_mark_orders_are_refused_by_number_and_cancels_taken(
    tmp_path: Path,
) -> None:
    disk = FillingDisk(1 << 40)
    async with exchange_on(disk, tmp_path) as exchange:
        buyer = exchange.converse(await exchange.open_account(3, cash_usdc6=10**9))
        for request in (2, 3, 4):
            buyer.say(m.New(request, TICKER, "buy", "1", "1", client_id=request))
        await exchange.port.settled()
        buyer.heard()
        await seen(exchange.port, disk, MARKS.too_low_bytes - 1)
        last = exchange.port.ready().last_sequence

        [refused] = buyer.say(m.New(5, TICKER, "buy", "1", "1", client_id=5))
        assert isinstance(refused, m.Reject)
        assert (refused.id, refused.code) == (5, Reject.DISK_NEARLY_FULL)
        assert "disk is nearly full" in refused.message and refused.retry_ms > 0
        [refused] = buyer.say(m.Quote(6, TICKER, [("1", "1")]))
        assert isinstance(refused, m.Reject)
        assert refused.code == Reject.DISK_NEARLY_FULL
        assert exchange.port.ready().last_sequence == last, "refused before sequencing"

        buyer.say(m.Cancel(7, client_id=2))
        buyer.say(m.Quote(8, TICKER))  # takes quotes off
        buyer.say(m.CancelAll(9))
        await exchange.port.settled()
        one, pulled, rest = buyer.heard()
        assert isinstance(one, m.Ack) and one.client_id == 2
        assert isinstance(pulled, m.Ack) and pulled.id == 8
        assert isinstance(rest, m.Ack) and rest.count == 2

        await seen(exchange.port, disk, MARKS.too_low_bytes)
        buyer.say(m.New(10, TICKER, "buy", "1", "1", client_id=5))
        await exchange.port.settled()
        [ack] = buyer.heard()
        assert isinstance(ack, m.Ack) and not ack.dup, "the refused one used up no client id"


async def test_a_start_on_a_disk_that_is_nearly_full_refuses_from_the_first_order(
    tmp_path: Path,
) -> None:
    disk = FillingDisk(MARKS.too_low_bytes - 1)
    pipeline = Pipeline(Journal(tmp_path, disk), ScriptedClock(START_NS))
    await pipeline.start()
    with pytest.raises(Refused) as refused:
        pipeline.submit(Command(kind=CommandKind.OPEN_ACCOUNT, account=1, order_id=1 << 40))
    assert refused.value.reject == Reject.DISK_NEARLY_FULL
    pipeline.submit(Command(kind=CommandKind.CANCEL_ALL, account=1))
    await pipeline.settled()
    await pipeline.close()


def test_each_crossing_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    disk = FillingDisk(MARKS.low_bytes)
    space = Space(lambda: disk.free_bytes(Path()), MARKS)
    with caplog.at_level(logging.WARNING):
        for free in (10**10, 900, 800, None, 10**9, 10**9 - 1, 10**10, 10**10):
            disk.free = free
            space.look()
    assert [record.getMessage() for record in caplog.records] == [
        "the journal's space is too low: 900 bytes are free",
        "the journal's space is low: 1000000000 bytes are free",
        "the journal's space is enough: 10000000000 bytes are free",
    ]


def test_the_system_says_how_much_is_free_where_the_journal_is(tmp_path: Path) -> None:
    before = SystemDisk().free_bytes(tmp_path)
    assert 0 < before < 1 << 60
    with pytest.raises(OSError, match="No such file"):
        SystemDisk().free_bytes(tmp_path / "nowhere")
