"""The demonstration on stage: real wallets, real websockets, one actor after the other.

`play_once` performs a whole script by a scripted clock, settling after each round what everybody
signed, and compares everything at the end; `Stage` is what it and the endless demonstration share.
Invariant: actors touch the exchange only as anybody could, through the client, which signs their
orders, and their own transactions.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from compex_client import Client, Disconnected, Rejected, Stream, Terms, Wallet, connect
from compex_client import messages as m
from compex_client.units import price_text, qty_text

from engine.clock import ScriptedClock
from engine.records import SECOND_NS
from engine.rejects import Reject
from gateway.demo.prices import Skipped, load_quotes
from gateway.demo.script import (
    HOUR_NS,
    MAKER_FEE_PPM,
    ROUNDS,
    START_NS,
    TAKER_FEE_PPM,
    Actor,
    Script,
    Step,
    write_script,
)
from gateway.node import Funding, Node, Progress
from gateway.settings import (
    ChainSettings,
    FeeSettings,
    GatewaySettings,
    MarketSettings,
    Settings,
    SettlementSettings,
)

STEPS_PER_PROGRESS: Final = 50
FEES: Final = FeeSettings(maker_ppm=(MAKER_FEE_PPM,), taker_ppm=(TAKER_FEE_PPM,))
TURNS_MAX: Final = 8  # of settlement after one round; two do, a third finds nothing to do
# What a step may be answered when it was performed before the run was cut off.
Advance = Callable[[int, int], None]  # steps done, steps in all


class IndexPoint(msgspec.Struct):
    """A series' value, and what its feed contract answers for it."""

    price: str
    quality: str
    prints: int
    feed_answer_e8: int
    feed_updated_at_s: int


class Outcome(msgspec.Struct):
    """What a run came to; `--json` writes it. Amounts are µUSDC, `seconds` by part of the run."""

    fills: int
    volume_lots: int
    notional_usdc6: int
    buyer_fees_usdc6: int  # in escrow
    seller_fees_usdc6: int  # due when the proceeds are released
    batches: int
    gas_per_fill: int
    operators: int
    buyers: int
    markets: int
    trades_heard: int
    index: dict[str, IndexPoint]
    state_hash: str
    reconciled: bool
    gaps: list[str]
    seconds: dict[str, float]
    quotes: int = 0
    skipped: dict[str, int] = {}
    resumed: bool = False


class Stopwatch:
    """Seconds by name; `clock` gives seconds and only its differences matter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        begin = self._clock()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + self._clock() - begin, 3)


class Stage:
    """A node and one logged-in client for each actor. `resumed`: an earlier run was cut off."""

    def __init__(
        self, node: Node, actors: list[Actor], clients: list[Client], *, resumed: bool
    ) -> None:
        self.node = node
        self.actors = actors
        self.clients = clients
        self._resumed = resumed

    async def perform(self, step: Step) -> m.Ack | None:
        """One request. None if it was done before, by this script's earlier run."""
        client = self.clients[step.actor]
        try:
            match step.kind:
                case "capacity":
                    return await client.declare_capacity(step.market, qty_text(step.qty_lots))
                case "amend":
                    price = price_text(step.price_ticks)
                    return await client.amend(client_id=step.client_id, price=price)
                case "place":
                    return await client.place(
                        step.market,
                        step.side,
                        price_text(step.price_ticks),
                        qty_text(step.qty_lots),
                        client_id=step.client_id,
                        tif=step.tif,
                        post_only=step.post_only,
                    )
        except Rejected as rejected:
            if step.kind == "amend" and rejected.code == Reject.UNKNOWN_ORDER:
                return None  # it is sold
            if rejected.code in {Reject.POST_ONLY_WOULD_TRADE, Reject.FOK_NOT_FILLABLE}:
                return None  # the market said no, which is an answer
            raise

    async def signed(self) -> None:
        """Return when everybody has signed what they placed: then all fills can be settled. Who
        amends an order of an earlier run that was cut off knows of it from the exchange alone."""
        await asyncio.gather(*(client.signed() for client in self.clients))
        if self._resumed:
            await self.node.turn()  # fills are listed as unsigned when they are booked
            for client in self.clients:
                await client.sign_all()

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self.clients))


async def open_stage(node: Node, actors: list[Actor], *, resumed: bool = False) -> Stage:
    """Everybody deposits on chain, is credited by settlement, logs in, and signs what they placed
    in an earlier run that was cut off before they had: of it they know from the exchange alone."""
    await node.fund([Funding(a.key, a.cash_usdc6, a.bond_usdc6) for a in actors])
    await node.turn()
    stage = Stage(node, actors, [], resumed=resumed)
    terms = Terms(now_ns=node.clock.now_ns)  # a scripted node takes no orders of another time
    try:
        for actor in actors:
            client = await connect(node.websocket_url, Wallet(actor.key), signing=terms)
            stage.clients.append(client)
            await client.sign_all()
    except BaseException:
        await stage.close()
        raise
    return stage


def once_settings(markets: list[str]) -> Settings:
    return Settings(
        gateway=GatewaySettings(port=0),
        markets=MarketSettings(listed=tuple(markets)),
        fees=FEES,
        chain=ChainSettings(embedded_rpc_port=-1),
        # Signatures are waited for, however long: the script's hour is over in seconds.
        settlement=SettlementSettings(batch_wait_seconds=0, sign_within_seconds=0),
    )


def count_skipped(skipped: list[Skipped]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in skipped:
        counts[row.reason.name] = counts.get(row.reason.name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


class Run(NamedTuple):
    """One run of the script, and who is told of its progress."""

    node: Node
    clock: ScriptedClock
    script: Script
    watch: Stopwatch
    progress: Progress
    advance: Advance
    resumed: bool


async def play_once(
    directory: Path, seed: int, *, progress: Progress, advance: Advance, resumed: bool
) -> Outcome:
    """Play the script of this seed to its end in `directory`, going on where it was cut off.

    Raises whatever a part raises; an outcome that does not reconcile is returned, not raised.
    """
    watch = Stopwatch()
    with watch.part("total"):
        quotes, skipped = load_quotes()
        script = write_script(seed, quotes)
        clock = ScriptedClock(START_NS)
        with watch.part("start"):
            settings = once_settings(script.markets)
            node = await Node.open(directory, settings, clock, progress=progress)
        try:
            run = Run(node, clock, script, watch, progress, advance, resumed)
            trades_heard = await _perform_all(run)
            outcome = await _compare(run, trades_heard)
        finally:
            await node.close()
    outcome.quotes, outcome.skipped = len(quotes), count_skipped(skipped)
    outcome.resumed = resumed
    return outcome


async def _perform_all(run: Run) -> int:
    """Every step in order, settlement after each round; how many trades an onlooker heard."""
    node, script, watch = run.node, run.script, run.watch
    with watch.part("fund"), run.progress("funding the actors' wallets on chain"):
        stage = await open_stage(node, script.actors, resumed=run.resumed)
    onlooker = await connect(node.websocket_url)
    trades = await onlooker.trades()
    heard = asyncio.create_task(_count(trades))
    try:
        end_of_round_ns = START_NS + HOUR_NS // ROUNDS
        for done, step in enumerate(script.steps):
            while step.at_ns >= end_of_round_ns:
                run.clock.advance_to(end_of_round_ns)
                await _settle(run, stage)
                end_of_round_ns += HOUR_NS // ROUNDS
            run.clock.advance_to(step.at_ns)
            with watch.part("trade"):
                await stage.perform(step)
            if done % STEPS_PER_PROGRESS == 0:
                run.advance(done, len(script.steps))
        run.advance(len(script.steps), len(script.steps))
        run.clock.advance_to(START_NS + HOUR_NS + SECOND_NS)
        await _settle(run, stage)
        await onlooker.ping()  # what the exchange told before has been heard when this is answered
    finally:
        await onlooker.close()
        await stage.close()
    return await heard


async def _count(trades: Stream[m.Trade]) -> int:
    count = 0
    with suppress(Disconnected):
        async for _ in trades:
            count += 1
    return count


async def _settle(run: Run, stage: Stage) -> None:
    """Turns until there is nothing left to do. What is not signed by then would wait for the next
    round, and how fast that goes is not the script's."""
    with run.watch.part("sign"):
        await stage.signed()
    with run.watch.part("settle"):
        for _ in range(TURNS_MAX):
            if (await run.node.turn()).idle:
                return


async def _compare(run: Run, trades_heard: int) -> Outcome:
    """Engine, ledger and vault to the last µUSDC; the index and what its feeds answer."""
    node = run.node
    with run.watch.part("reconcile"):
        report = await node.settlement.reconcile()
        summary = await node.settlement.summary()
        published = await node.settlement.published()
    answers = {feed.product: feed for feed in published}
    index: dict[str, IndexPoint] = {}
    for value in node.index.values(run.clock.now_ns()):
        feed = answers.get(value.product)
        index[value.series] = IndexPoint(
            price=price_text(value.value_ticks),
            quality=value.quality,
            prints=value.prints,
            feed_answer_e8=feed.answer_e8 if feed else 0,
            feed_updated_at_s=feed.updated_at_s if feed else 0,
        )
    roles = [actor.role for actor in run.script.actors]
    return Outcome(
        fills=summary.fills,
        volume_lots=summary.volume_lots,
        notional_usdc6=summary.notional_usdc6,
        buyer_fees_usdc6=summary.buyer_fees_usdc6,
        seller_fees_usdc6=summary.seller_fees_usdc6,
        batches=summary.batches,
        gas_per_fill=summary.gas_per_fill,
        operators=roles.count("operator"),
        buyers=roles.count("buyer"),
        markets=len(node.engine.markets()),
        trades_heard=trades_heard,
        index=index,
        state_hash=node.engine.state_hash(),
        reconciled=report.reconciled and summary.fills == summary.fills_settled,
        gaps=[str(gap) for gap in report.gaps],
        seconds=run.watch.seconds,
    )
