"""A bot that is cut off again and again, and resumes by number, has heard everything once.

One bot listens to its account over a real socket and is cut off abruptly, at any moment: before its
login, in the midst of what it is told again, while it trades. Three accounts trade all the while.
Now and then the node itself ends, cleanly or not, and starts again: from a snapshot or from the
first command, its history file as it was or as a power cut leaves it, without its last groups. At
the end the bot's history is, message for message, that of a listener that never was away while the
node ran, and that of a replay of the journal.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from compex_client import Disconnected
from compex_client import messages as m
from compex_client.client import Client
from compex_client.units import price_text, qty_text
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import WebSocketException

from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.journal import read
from engine.replica import Replica
from gateway import facts
from gateway.feed import Feed
from gateway.history import History
from gateway.history_file import EVERY, HistoryFile
from gateway.snapshots import take
from tests.exchange import (
    TICKER,
    Conversation,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)
from tests.promises import Trial, tries

SEED: Final = 20
BOT: Final = 2
TRADERS: Final = (1, BOT, 3)
CUTS_PER_LIFE: Final = 8  # of the node, on average
LONGEST_SECONDS: Final = 0.06  # a connection lives at most about so long
CATCH_UP_SECONDS_MAX: Final = 60.0


class Story:
    """What outlives every connection and every life of the node."""

    def __init__(self, random: Random, directory: Path) -> None:
        self.random = random
        self.directory = directory
        self.bot: list[m.Numbered] = []
        self.undisturbed: list[m.Numbered] = []
        self.caught_up: m.CaughtUp | None = None
        self.client_id = 0
        self.lives = self.snapshots = self.tails_lost = self.caught_ups = 0

    @property
    def file(self) -> Path:
        return self.directory / "history.sqlite3"

    def hear(self, message: object) -> None:
        match message:
            case m.CaughtUp():
                self.caught_up = message
                self.caught_ups += 1
                assert message.aseq == len(self.bot)
            case m.Balance():
                assert message.aseq == len(self.bot)
            case _:
                assert isinstance(message, m.NUMBERED), message
                assert message.aseq == len(self.bot) + 1, "no gap, and nothing twice"
                self.bot.append(message)


def request(story: Story) -> m.ClientMessage:
    """Orders of every fate, near one price: they rest, trade, end, are refused."""
    random = story.random
    story.client_id += 1
    number = story.client_id
    if random.random() < 0.05:
        return m.CancelAll(number)
    if random.random() < 0.2:
        return m.Cancel(number, client_id=random.randrange(max(1, number - 20), number + 1))
    return m.New(
        number,
        TICKER,
        random.choice(("buy", "sell")),
        price_text(24_000 + random.randrange(20)),
        qty_text(random.randrange(1, 300)),
        client_id=number,
        tif=random.choice(("gtc", "gtc", "ioc", "fok")),
        post_only=random.random() < 0.1 and number % 2 == 0,
    )


async def trade(exchange: Exchange, story: Story, live: Conversation) -> None:
    """Until cancelled."""
    traders = [exchange.converse(wallet(100 + account)) for account in TRADERS]
    while True:
        for _ in range(story.random.randrange(1, 16)):
            asked = request(story)
            story.random.choice(traders).session.receive(msgspec.json.encode(asked))
        await exchange.port.settled()
        for trader in traders:
            trader.heard()
        listen(story, live)
        await asyncio.sleep(story.random.random() * 0.004)


def listen(story: Story, live: Conversation) -> None:
    heard = live.heard()
    story.undisturbed += [x for x in heard if isinstance(x, m.NUMBERED)]


async def one_connection(url: str, story: Story, seconds_max: float = LONGEST_SECONDS) -> None:
    """Connect, resume, listen; cut off after a random while, wherever that is."""
    sockets: list[ClientConnection] = []

    async def live() -> None:
        socket = await connect_socket(url, compression=None, max_size=None)
        sockets.append(socket)
        client = Client(socket)
        await client.start()
        await client.login(wallet(100 + BOT), session=1)
        stream = await client.private(from_aseq=len(story.bot) + 1)
        async for message in stream:
            story.hear(message)

    living = asyncio.create_task(live())
    await asyncio.wait([living], timeout=story.random.random() * seconds_max)
    for socket in sockets:
        socket.transport.abort()
    if not living.done():
        living.cancel()
    with contextlib.suppress(asyncio.CancelledError, Disconnected, WebSocketException, OSError):
        await living
    for socket in sockets:
        await socket.wait_closed()


@asynccontextmanager
async def one_life(
    story: Story, *, is_last: bool = False
) -> AsyncGenerator[tuple[Exchange, str, Conversation]]:
    """Of the node, with a listener from its first moment on; at the end it may be a crash. In the
    last one nobody trades any more."""
    story.lives += 1
    async with running_exchange(story.directory) as exchange:
        if not exchange.port.markets():
            await set_up(exchange)
        live = exchange.converse(wallet(100 + BOT))
        _, begin = live.say(m.Subscribe(1 << 40, "account"))
        assert isinstance(begin, m.AccountSnapshot)
        before = begin.aseq - len(story.undisturbed)
        assert story.lives == 1 or before == 0, "what was told once is there after a start"
        if before:  # what the set-up made
            story.undisturbed += await replayed(story.directory, story.directory / "begin")
        async with running_server(exchange) as (_, url):
            trading = asyncio.create_task(trade(exchange, story, live))
            if is_last:
                trading.cancel()
            yield exchange, url, live
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
        while (ready := exchange.port.ready()).durable_sequence < ready.last_sequence:
            await exchange.port.settled()
        listen(story, live)
        if story.random.random() < 0.5:
            await exchange.desk.absence.close()
            await exchange.desk.history.abandon()
    assert not live.overflowed


async def set_up(exchange: Exchange) -> None:
    instrument = await exchange.list_market()
    for account in TRADERS:
        await exchange.open_account(account, cash_usdc6=10**12, bond_usdc6=10**12)
        await exchange.declare(account, instrument, 10**8)


async def between(story: Story) -> None:
    """While no node runs: a snapshot, and what a power cut leaves of the history's file."""
    random, older = story.random, story.directory / "older.sqlite3"
    if random.random() < 0.5:
        story.snapshots += take(story.directory / "journal") is not None
    if older.exists() and random.random() < 0.5:
        for path in story.directory.glob("history.sqlite3*"):
            path.unlink()
        shutil.copy(older, story.file)
        story.tails_lost += 1


def keep_older(story: Story) -> None:
    """The file as it is now, which a power cut may bring back."""
    now, older = sqlite3.connect(story.file), sqlite3.connect(story.directory / "older.sqlite3")
    now.backup(older)
    now.close()
    older.close()


async def replayed(directory: Path, path: Path) -> list[m.Numbered]:
    """What a replay of the journal's commands tells the bot's account."""
    history, replica = History(path), Replica(SystemClock())
    feed = Feed(replica, load_catalog(), lambda _: None, lambda: None, history)
    replica.subscribe(history.on_batch)
    for frame in read(directory / "journal"):
        replica.follow(frame)
    await history.close()
    markets = feed.mirror.markets
    file = HistoryFile(path)
    told = [
        facts.message(kept, lambda instrument: markets[instrument].ticker)
        for kept in file.read(EVERY, BOT, 1, 1 << 40)
        if isinstance(kept, bytes)
    ]
    file.close()
    return told


async def all_lives(story: Story, trial: Trial) -> None:
    cuts = iter(trial.each(range(trial.budget)))
    is_over = False
    while not is_over:
        async with one_life(story) as (_, url, _):
            while not is_over and story.random.random() > 1 / CUTS_PER_LIFE:
                if next(cuts, None) is None:
                    is_over = True
                    break
                await one_connection(url, story)
                if story.random.random() < 0.2:
                    keep_older(story)
        await between(story)
    async with one_life(story, is_last=True) as (exchange, url, live):
        async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
            await to_the_end(exchange, url, live, story)


async def to_the_end(exchange: Exchange, url: str, live: Conversation, story: Story) -> None:
    """The last connections, when everybody has come to rest."""
    for account in TRADERS:
        exchange.converse(wallet(100 + account)).session.receive('{"t":"cancel_all","id":1}')
    await exchange.port.settled()
    listen(story, live)
    story.caught_up = None
    seconds_max = LONGEST_SECONDS
    while story.caught_up is None or len(story.bot) < len(story.undisturbed):
        await one_connection(url, story, seconds_max)
        seconds_max *= 1.5  # on a busy machine it may take longer than that to log in
        listen(story, live)


@tries("resumed")
def test_cut_off_and_resumed_a_bot_has_its_history_message_for_message(
    tmp_path: Path, trial: Trial
) -> None:
    story = Story(Random(SEED), tmp_path)
    asyncio.run(all_lives(story, trial))
    there = asyncio.run(replayed(tmp_path, tmp_path / "replayed.sqlite3"))
    least = min(len(story.bot), len(there))
    assert least > trial.budget, f"seed {SEED}: too little happened"
    assert there == story.undisturbed, f"seed {SEED}"
    assert story.bot == there, f"seed {SEED}"
    kinds = {type(x) for x in there}
    assert kinds >= {m.Order, m.Fill, m.Lease, m.OrderRejected, m.CancelledAll, m.Transfer}
    trial.note = (
        f"{len(there):,} messages, {story.lives} lives of the node, {story.snapshots} snapshots,"
        f" {story.tails_lost} times without the file's tail, {story.caught_ups} times caught up"
    )
