"""Full queues refuse before sequencing, by number; what was sequenced is never dropped.

The disk is held, so that everything behind it fills up; then it goes on, and the journal must hold
exactly the commands that were not refused, each with its one reply.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from compex_client import Disconnected, connect
from compex_client import messages as m

from engine import journal, pipeline
from engine.records import CommandKind, decode_commands
from engine.rejects import Reject
from gateway.transport import Access
from tests.disks import HeldDisk
from tests.exchange import TICKER, Conversation, Exchange, running_exchange, running_server, wallet

QUEUED_MAX: Final = 50
SENT: Final = 300
LEVELS: Final = 7
RUN_S: Final = 60.0


def in_the_journal(directory: Path) -> Iterator[int]:
    """The client ids of the orders and quotes in it."""
    for frame in journal.read(directory):
        for command in decode_commands(frame.commands):
            if command.kind in (CommandKind.NEW_ORDER, CommandKind.MASS_QUOTE):
                yield command.client_id


def mixed(number: int) -> m.ClientMessage:
    """Most commands are one record, every tenth is eight."""
    if number % 10:
        return m.New(number, TICKER, "buy", "1", "1", client_id=number)
    levels = [(f"1.{n}", "1") for n in range(LEVELS)]
    return m.Quote(number, TICKER, levels, client_id=number)


async def flooded(exchange: Exchange, disk: HeldDisk, talks: list[Conversation]) -> set[int]:
    """The numbers of the requests that were refused while the disk was held."""
    disk.hold()
    busy: set[int] = set()
    for number in range(1, SENT + 1):
        before = exchange.port.ready().last_sequence
        replies = talks[number % len(talks)].say(mixed(number))
        taken = exchange.port.ready().last_sequence - before
        if not replies:
            assert taken == (1 if number % 10 else 1 + LEVELS)
            continue
        [refusal] = replies
        assert isinstance(refusal, m.Reject), refusal
        assert (refusal.id, refusal.code, taken) == (number, Reject.BUSY, 0)
        assert refusal.retry_ms > 0
        busy.add(number)
    return busy


async def test_a_flood_is_refused_before_sequencing_and_nothing_after_it_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "QUEUE_COMMANDS_MAX", QUEUED_MAX)
    disk = HeldDisk()
    async with running_exchange(tmp_path, disk=disk) as exchange:
        await exchange.list_market()
        owners = [await exchange.open_account(n, cash_usdc6=10**9) for n in (1, 2, 3)]
        talks = [exchange.converse(owner) for owner in owners]
        busy = await flooded(exchange, disk, talks)
        taken = set(range(1, SENT + 1)) - busy
        assert 0 < len(taken) <= QUEUED_MAX and max(taken) < min(busy), "it filled up, once"
        assert not any(talk.heard() for talk in talks), "nobody hears of what is not durable"
        disk.let_go()
        await exchange.port.settled()
        acks = [reply for talk in talks for reply in talk.heard()]
        assert all(isinstance(ack, m.Ack) and ack.level == "durable" for ack in acks)
        assert Counter(ack.id for ack in acks if isinstance(ack, m.Ack)) == Counter(taken)
        again = min(busy)
        assert talks[again % len(talks)].say(mixed(again)) == []
        await exchange.port.settled()
        [ack] = talks[again % len(talks)].heard()
        assert isinstance(ack, m.Ack) and not ack.dup, "a refused request used up no client id"
    assert Counter(in_the_journal(tmp_path / "journal")) == Counter(taken | {again})


async def test_replies_to_a_connection_that_is_gone_are_all_that_is_dropped(
    tmp_path: Path,
) -> None:
    """Its orders were sequenced: they are done, and found again by their client ids."""
    disk = HeldDisk()
    async with running_exchange(tmp_path, disk=disk) as exchange:
        await exchange.list_market()
        owner = await exchange.open_account(1, cash_usdc6=10**9)
        gone, back = exchange.converse(owner), exchange.converse(owner)
        disk.hold()
        for number in range(1, 10):
            assert gone.say(mixed(number)) == []
        gone.session.close()
        disk.let_go()
        await exchange.port.settled()
        assert gone.heard() == []
        for number in range(1, 10):
            [ack] = back.say(mixed(number))
            assert isinstance(ack, m.Ack) and ack.dup and ack.level == "durable"
    assert sorted(in_the_journal(tmp_path / "journal")) == list(range(1, 10))


async def test_a_connection_over_the_limit_is_closed_before_it_is_heard(tmp_path: Path) -> None:
    async with (
        running_exchange(tmp_path) as exchange,
        running_server(exchange, Access(connections=1)) as (_, url),
        await connect(url) as first,
        asyncio.timeout(RUN_S),
    ):
        with pytest.raises(Disconnected) as refused:
            await connect(url, wallet(1))
        assert refused.value.code == m.CloseCode.TRY_AGAIN_LATER
        assert (await first.ping()).time_us
