"""Cut off before an answer, at it or after it, a client finds out what became of its request.

One trader in its wallet's name sends orders and withdrawals through real sessions and is cut off at
each: before the engine has the request, while it is at it, or once it has answered; or the engine's
disk fails under it, and the engine is started again on the same journal. Then the trader logs in
anew, asks by client id, sends the same request again, and must get the one answer there is. At the
end the journal holds each request once, and the money says so, too.
"""

import asyncio
import errno
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

from compex_client import messages as m
from compex_client.wallet import Wallet

from engine.journal import read
from engine.records import EventKind, decode_events
from engine.rejects import Reject
from engine.replay import Matcher
from tests.disks import FailingDisk
from tests.exchange import TICKER, Conversation, Exchange, running_exchange, wallet
from tests.promises import Trial, tries

SEED: Final = 9
TRADER, MAKER = 1, 2
CUTS_PER_JOURNAL: Final = 250  # so that no start replays a whole afternoon
CENT_USDC6: Final = 10_000


class Story:
    """What the trader sent, and what it was ever answered; it outlives every connection."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sent: dict[int, m.New | m.Withdraw] = {}
        self.acks: dict[int, m.Ack] = {}
        self.duplicates = 0
        self.starts = 0

    def next(self) -> m.New | m.Withdraw:
        number = len(self.sent) + 1
        draw = self.random.randrange
        request: m.New | m.Withdraw
        if draw(4) == 0:
            request = m.Withdraw(number, "0.01", client_id=number)
        else:
            price, tif = f"2.{draw(40, 60)}", self.random.choice(("gtc", "ioc"))
            request = m.New(number, TICKER, "buy", price, "0.01", client_id=number, tif=tif)
        self.sent[number] = request
        return request

    def heard(self, messages: list[m.ServerMessage]) -> None:
        """Take what comes while nobody waits for it; whatever is told again must be the same."""
        for ack in messages:
            if isinstance(ack, m.Ack) and ack.id in self.sent:
                known = self.acks.setdefault(ack.id, ack)
                told = (ack.sequence, ack.order_id, ack.withdrawal_id, ack.qty)
                assert told == (known.sequence, known.order_id, known.withdrawal_id, known.qty)
                self.duplicates += ack.dup


@contextmanager
def connected(exchange: Exchange, owner: Wallet, story: Story) -> Generator[Conversation]:
    conversation = exchange.converse(owner)
    yield conversation
    story.heard(conversation.heard())
    conversation.session.close()


async def quiet(exchange: Exchange) -> None:
    while (ready := exchange.port.ready()).durable_sequence < ready.last_sequence:
        await exchange.port.settled()


async def find_out(exchange: Exchange, owner: Wallet, story: Story, number: int) -> None:
    """Ask what became of a request, send it again, and be answered."""
    request = story.sent[number]
    with connected(exchange, owner, story) as conversation:
        if isinstance(request, m.New):
            replies = conversation.say(m.Query(1 << 40, "order", client_id=number))
            await quiet(exchange)
            [told] = replies or conversation.heard()
        else:
            told = None
        story.heard(conversation.say(request))
        await quiet(exchange)
        story.heard(conversation.heard())
    ack = story.acks[number]
    if isinstance(told, m.Reject):
        assert told.code == Reject.UNKNOWN_ORDER and not ack.dup, "it was there, and was denied"
    elif told is not None:
        assert isinstance(told, m.Ack) and told.order is not None
        assert told.order.order_id == ack.order_id


async def cut_off(exchange: Exchange, owner: Wallet, story: Story, disk: FailingDisk) -> None:
    """Send one request and lose the connection, and now and then the engine, around its answer."""
    random = story.random
    fate = random.choice(("before", "during", "after", "engine"))
    if fate == "engine" and random.random() < 0.8:
        fate = "during"  # as starting again takes its time
    if fate == "engine":
        disk.error = random.choice((errno.EIO, errno.ENOSPC))
        disk.short_bytes, disk.loses = random.randrange(200), random.random() < 0.5
        disk.fail_at = (random.choice(("write", "sync")), random.randrange(2))
    with connected(exchange, owner, story) as conversation:
        story.heard(conversation.say(story.next()))
        for _ in range(random.randrange(4) if fate == "during" else 0):
            await asyncio.sleep(0)
        if fate == "after":
            await quiet(exchange)
    while fate == "engine" and not disk.failed:
        with connected(exchange, owner, story) as conversation:
            story.heard(conversation.say(story.next()))
            await asyncio.sleep(0.001)


async def one_journal(directory: Path, story: Story, cuts: Iterator[int]) -> None:
    """One engine after the other, each until its disk fails, until the cuts are done."""
    is_over = False
    while not is_over:
        disk = FailingDisk()
        async with running_exchange(directory, disk=disk) as exchange:
            story.starts += 1
            owner = await opened(exchange)
            for number in sorted(set(story.sent) - set(story.acks)):
                await find_out(exchange, owner, story, number)
            is_over = True
            for _ in cuts:
                await cut_off(exchange, owner, story, disk)
                if disk.failed:
                    is_over = False
                    break
                for number in sorted(set(story.sent) - set(story.acks)):
                    await find_out(exchange, owner, story, number)


async def opened(exchange: Exchange) -> Wallet:
    """The market and both accounts, unless the journal has them."""
    if not exchange.port.markets():
        instrument = await exchange.list_market()
        await exchange.open_account(MAKER, bond_usdc6=10**9)
        await exchange.declare(MAKER, instrument, 10**6)
        await exchange.open_account(TRADER, cash_usdc6=10**9)
        maker = exchange.converse(wallet(100 + MAKER))
        maker.say(m.New(1, TICKER, "sell", "2.5", "100"))
        await quiet(exchange)
    return wallet(100 + TRADER)


def check(directory: Path, story: Story) -> None:
    """The journal has each request once, and what it says is what was answered."""
    assert set(story.acks) == set(story.sent), "everything was answered in the end"
    matcher = Matcher()
    orders: dict[int, int] = {}
    withdrawn_usdc6 = 0
    for frame in read(directory / "journal"):
        for part in matcher.match(frame.commands):
            for event in decode_events(part):
                if event.kind == EventKind.ACCEPTED and event.account == TRADER:
                    assert event.client_id not in orders, f"{event.client_id} was placed twice"
                    orders[event.client_id] = event.order_id
                elif event.kind == EventKind.WITHDRAWAL_RESERVED:
                    withdrawn_usdc6 += event.amount_usdc6
    placed = {
        n: story.acks[n].order_id for n, sent in story.sent.items() if isinstance(sent, m.New)
    }
    assert orders == placed
    withdrawals = len(story.sent) - len(placed)
    assert withdrawn_usdc6 == withdrawals * CENT_USDC6


@tries("cut-off")
def test_whenever_it_is_cut_off_a_request_has_one_effect(tmp_path: Path, trial: Trial) -> None:
    random = Random(SEED)
    cuts = trial.each(range(trial.budget))
    starts = duplicates = 0
    for number in range(-(-trial.budget // CUTS_PER_JOURNAL)):
        story = Story(random)
        directory = tmp_path / str(number)
        asyncio.run(one_journal(directory, story, islice(cuts, CUTS_PER_JOURNAL)))
        check(directory, story)
        starts += story.starts
        duplicates += story.duplicates
    assert next(cuts, None) is None
    assert duplicates and starts > -(-trial.budget // CUTS_PER_JOURNAL), "engines did fail"
    trial.note = f"{starts:,} starts of the engine, {duplicates:,} requests answered again"
