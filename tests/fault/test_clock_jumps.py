"""A clock that jumps by up to an hour, back and forth: the order's own time never does.

Each script is a seed: orders of every life, sent to a real pipeline while its clock jumps. Whatever
the clock said, sequences are consecutive and times never run backwards; nothing trades at its time
or later; and who hears all events of a command's time knows that every order whose time has come by
then is off the book, by the journal's time and not by the clock's. The journal says the same again.
"""

import asyncio
from pathlib import Path
from random import Random
from typing import Final

from engine.journal import Journal, SystemDisk, read
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import (
    SECOND_NS,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Purse,
    Side,
    TimeInForce,
)
from engine.replay import replay
from tests.promises import Trial, tries

START_S: Final = 1_800_000_000
HOUR_NS: Final = 3600 * SECOND_NS
ACCOUNTS: Final = (1, 2, 3)
STEPS: Final = 60
LIVES_S: Final = (1, 2, 5, 60, 1800, 3600, 7200)


class JumpingClock:
    """Time goes on, and now and then is set, as if by somebody's hand."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._now_ns = START_S * SECOND_NS

    def now_ns(self) -> int:
        self._now_ns += self._random.choice((0, 1, 1_000, SECOND_NS // 2))
        return self._now_ns

    def jump(self) -> None:
        self._now_ns += self._random.choice((
            HOUR_NS, -HOUR_NS, self._random.randint(-HOUR_NS, HOUR_NS),
            self._random.randint(-5, 5) * SECOND_NS,
        ))  # fmt: skip


class Hearer:
    """Holds what is heard to what an order's own time promises."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.expired = 0
        self._ends_ns: dict[int, int] = {}  # of orders that are open and mortal
        self._left_lots: dict[int, int] = {}

    def __call__(self, batch: Batch) -> None:
        for event in batch.events:
            assert event.time_ns >= self.time_ns, "time ran backwards"
            self.time_ns = event.time_ns
            self._hear(event)

    def _hear(self, event: Event) -> None:
        if event.kind == EventKind.ACCEPTED and event.expiry_s:
            assert event.expiry_s * SECOND_NS > event.time_ns, "it was over when it came"
            self._ends_ns[event.order_id] = event.expiry_s * SECOND_NS
            self._left_lots[event.order_id] = event.qty_lots
        elif event.kind == EventKind.FILL:
            for order_id in (event.order_id, event.counter_order_id):
                if order_id in self._ends_ns:
                    assert event.time_ns < self._ends_ns[order_id], "it traded after its time"
                    self._left_lots[order_id] -= event.qty_lots
                    if not self._left_lots[order_id]:
                        del self._ends_ns[order_id]
        elif event.kind == EventKind.CANCELLED:
            ends_ns = self._ends_ns.pop(event.order_id, None)
            if event.reason == CancelReason.EXPIRED:
                self.expired += 1
                assert ends_ns is not None and event.time_ns >= ends_ns, "before its time"

    def overdue(self) -> list[int]:
        """Orders that should be off the book by what has been heard."""
        return [order for order, ends_ns in self._ends_ns.items() if ends_ns <= self.time_ns]


def opening() -> list[Command]:
    commands = [Command(kind=CommandKind.LIST_MARKET, order_id=1, qty_lots=1, price_ticks=1)]
    for account in ACCOUNTS:
        commands.append(Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account))
        for purse in Purse:
            deposit = Command(
                kind=CommandKind.DEPOSIT,
                account=account,
                client_id=2 * account - 1 + purse,
                price_ticks=10**9,
                side=purse,
            )
            commands.append(deposit)
        declared = Command(kind=CommandKind.DECLARE_CAPACITY, account=account, qty_lots=10**6)
        commands.append(declared)
    return commands


def order(random: Random, now_ns: int) -> Command:
    side = Side(random.randrange(2))
    mortal = random.random() < 0.8
    expiry_s = now_ns // SECOND_NS + random.choice(LIVES_S)
    return Command(
        kind=CommandKind.NEW_ORDER,
        account=random.choice(ACCOUNTS),
        side=side,
        price_ticks=100 + (-1 if side is Side.BUY else 1) * random.randint(-1, 6),
        qty_lots=random.randint(1, 5),
        time_in_force=TimeInForce.GTT if mortal else TimeInForce.GTC,
        expiry_s=expiry_s if mortal else 0,
    )


async def quiet(pipeline: Pipeline) -> None:
    """Until everything is published, and what the engine itself sequenced meanwhile."""
    while (ready := pipeline.ready()).durable_sequence < ready.last_sequence:
        await pipeline.settled()


async def play(directory: Path, seed: int) -> int:
    """One script; how many orders came to their time."""
    random = Random(seed)
    clock = JumpingClock(random)
    hearer = Hearer()
    pipeline = Pipeline(Journal(directory, SystemDisk(), 1 << 16), clock)
    pipeline.subscribe(hearer)
    await pipeline.start()
    for command in opening():
        pipeline.submit(command)
    for _ in range(STEPS):
        for _ in range(random.randrange(4)):
            pipeline.submit(order(random, max(clock.now_ns(), hearer.time_ns)))
            if random.random() < 0.3:
                clock.jump()
        if random.random() < 0.7:
            await pipeline.settled()
            if random.random() < 0.3:
                clock.jump()
            pipeline.submit(order(random, hearer.time_ns))
            await quiet(pipeline)
            assert not hearer.overdue(), f"seed {seed}: on the book after their time"
    await pipeline.close()
    state = pipeline.state_hash()
    commands = [row for frame in read(directory) for row in frame.commands]
    assert [int(row["sequence"]) for row in commands] == list(range(1, len(commands) + 1))
    times = [int(row["time_ns"]) for row in commands]
    assert times == sorted(times), f"seed {seed}"
    assert replay(directory).state_hash == state
    return hearer.expired


@tries("jumps")
def test_time_never_runs_backwards_and_orders_end_by_the_journals_time(
    tmp_path: Path, trial: Trial
) -> None:
    expired = sum(
        asyncio.run(play(tmp_path / str(seed), seed)) for seed in trial.each(range(trial.budget))
    )
    assert expired > trial.budget, "orders did come to their time"
    trial.note = f"{expired:,} orders came to their time, none of them traded after it"
