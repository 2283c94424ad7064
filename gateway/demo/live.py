"""The demonstration that goes on: the same operators and buyers, in real time, until stopped.

Operators post their ladders as in the script; then buyers keep bidding at random and operators
offer again what was bought. Invariant: a request that is refused changes nothing and is only
counted; an actor short of money deposits more on chain, as a real one would. The command calls it.
"""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from compex_client import Rejected, Wallet
from compex_client.units import price_text
from rich.console import Console
from rich.live import Live
from rich.text import Text

from engine.catalog import load_catalog
from engine.clock import SystemClock
from engine.rejects import Reject
from gateway.demo.play import FEES, Advance, Stage, open_stage
from gateway.demo.prices import load_quotes
from gateway.demo.script import DOLLAR, HOUR_NS, OPENING_NS, Actor, Step, actor_key, write_script
from gateway.node import Funding, Node, Progress
from gateway.settings import ChainSettings, GatewaySettings, MarketSettings, Settings

BIDS_PER_SECOND: Final = 5.0
OFFERS_PER_SECOND: Final = 2.0
PARTITION_NS: Final = 5_000_000_000  # the index's hour is a minute here
TOP_UP_DOLLARS: Final = 10_000
STATUS_SECONDS: Final = 2.0
REFUSED: Final = "refused"
SHORT_OF_MONEY: Final = (Reject.INSUFFICIENT_BALANCE, Reject.INSUFFICIENT_BOND)


def visitors(seed: int) -> list[Actor]:
    """Two funded accounts for whoever watches: one to buy with, one to sell with."""
    buyer, seller = "you-the-buyer", "you-the-operator"
    return [
        Actor(buyer, "buyer", actor_key(seed, buyer), 5_000 * DOLLAR, 0),
        Actor(seller, "operator", actor_key(seed, seller), 100 * DOLLAR, 2_000 * DOLLAR),
    ]


class Crowd:
    """The actors after the opening."""

    def __init__(self, node: Node, stage: Stage, steps: list[Step], chance: random.Random) -> None:
        self._node = node
        self._stage = stage
        self._bids = [step for step in steps if step.side == "buy"]
        self._offers = [step for step in steps if step.kind == "place" and step.side == "sell"]
        self._capacity = {(s.actor, s.market): s.qty_lots for s in steps if s.kind == "capacity"}
        self._last_client_id = len(steps)
        self._chance = chance
        self.refused = 0

    async def bid_forever(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(BIDS_PER_SECOND))
            await self._perform(self._chance.choice(self._bids)._replace(client_id=0))

    async def offer_forever(self) -> None:
        """Look at one ladder's rung after the other; offer again what is sold."""
        while True:
            await asyncio.sleep(self._chance.expovariate(OFFERS_PER_SECOND))
            place = self._chance.randrange(len(self._offers))
            offer = self._offers[place]
            state = await self._state_of(offer)
            if state == "open":
                continue
            where = (offer.actor, offer.market)
            if state != REFUSED:
                self._capacity[where] += offer.qty_lots
                self._last_client_id += 1
                offer = offer._replace(client_id=self._last_client_id)
            await self._perform(offer._replace(kind="capacity", qty_lots=self._capacity[where]))
            await self._perform(offer)
            self._offers[place] = offer

    async def _state_of(self, offer: Step) -> str:
        try:
            order = await self._stage.clients[offer.actor].order(client_id=offer.client_id)
        except Rejected as rejected:
            if rejected.code != Reject.UNKNOWN_ORDER:
                raise
            return REFUSED  # so it has no order, and its client id may be used
        return order.state

    async def _perform(self, step: Step) -> None:
        try:
            await self._stage.perform(step)
        except Rejected as rejected:
            self.refused += 1
            if rejected.code in SHORT_OF_MONEY:
                amount = TOP_UP_DOLLARS * DOLLAR
                actor = self._stage.actors[step.actor]
                cash, bond = (amount, 0) if step.side == "buy" else (0, amount)
                await self._node.chain.fund([Funding(actor.key, cash, bond)])


class Opened(NamedTuple):
    node: Node
    stage: Stage
    crowd: Crowd
    welcome: str  # how to join


async def open_market(
    directory: Path,
    seed: int,
    port: int,
    progress: Progress,
    advance: Advance,
    *,
    rpc_port: int = 8545,
) -> Opened:
    """Start the node, post the opening ladders; `trade_on` goes on from there.

    The ports are the gateway's and the embedded chain's; 0 takes any free one.
    """
    clock = SystemClock()
    quotes, _ = load_quotes()
    script = write_script(seed, quotes, clock.now_ns() // HOUR_NS * HOUR_NS)
    node = await Node.open(
        directory,
        Settings(
            gateway=GatewaySettings(port=port),
            markets=MarketSettings(listed=tuple(script.markets)),
            fees=FEES,
            chain=ChainSettings(embedded_rpc_port=rpc_port),
        ),
        clock,
        progress=progress,
        partition_ns=PARTITION_NS,
    )
    try:
        with progress("funding the actors' wallets on chain"):
            stage = await open_stage(node, script.actors + visitors(seed))
        first_ns = script.steps[0].at_ns
        opening = [step for step in script.steps if step.at_ns < first_ns + OPENING_NS]
        for done, step in enumerate(opening, 1):
            await stage.perform(step)
            advance(done, len(opening))
    except BaseException:
        await node.close()
        raise
    bids = [step for step in script.steps if step.side == "buy"]
    crowd = Crowd(node, stage, opening + bids, random.Random(seed))
    return Opened(node, stage, crowd, _welcome(node, seed, opening))


async def trade_on(opened: Opened, console: Console) -> int:
    """Trade and settle until SIGINT or SIGTERM; the exit status is 0 if all reconciles then."""
    node, stage, crowd, welcome = opened
    console.print(welcome, soft_wrap=True)
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    parts = (node.run(), crowd.bid_forever(), crowd.offer_forever(), _status(node, crowd, console))
    tasks = [asyncio.create_task(part) for part in parts]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                console.print(f"[red]{result!r}[/red]")
        if stopping not in done:
            return 1
        await stage.signed()
        await node.turn()
        await node.turn()
        report = await node.settlement.reconcile()
        console.print(f"engine = ledger = escrow: {'yes' if report.reconciled else 'NO'}")
        return 0 if report.reconciled else 1
    finally:
        stopping.cancel()
        await stage.close()
        await node.close()


async def _status(node: Node, crowd: Crowd, console: Console) -> None:
    """One line that is kept up to date; silent where nobody watches a terminal."""
    if not console.is_terminal:
        await asyncio.Event().wait()
    with contextlib.closing(_Line(console)) as line:
        while True:
            summary = await node.settlement.summary()
            line.show(
                f"{summary.fills:,} fills, {summary.volume_lots / 100:,.0f} GPU-hours, "
                f"{summary.notional_usdc6 / 1e6:,.2f} USDC; {summary.batches} batches in escrow, "
                f"fees {_dollars(summary.buyer_fees_usdc6)} there and "
                f"{_dollars(summary.seller_fees_usdc6)} due, "
                f"{summary.gas_per_fill:,} gas a fill; {crowd.refused} refused"
            )
            await asyncio.sleep(STATUS_SECONDS)


def _dollars(amount_usdc6: int) -> str:
    return f"{amount_usdc6 / 1e6:,.2f}"


class _Line:
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True)
        self._live.start()

    def show(self, text: str) -> None:
        self._live.update(Text(text))

    def close(self) -> None:
        self._live.stop()


def _welcome(node: Node, seed: int, opening: list[Step]) -> str:
    buyer, seller = (Wallet(actor.key) for actor in visitors(seed))
    asks = [step for step in opening if step.kind == "place" and step.market.endswith("|SPOT")]
    busiest, _ = Counter(step.market for step in asks if ".x1|" in step.market).most_common(1)[0]
    cheapest = min(step.price_ticks for step in asks if step.market == busiest)
    enough = price_text(cheapest * 11 // 10)
    ticker = load_catalog().ticker(load_catalog().parse(busiest))
    return f"""
market page    {node.url}
websocket      {node.websocket_url}
health         {node.url}/ready
chain          {node.rpc_url}  (JSON-RPC, chain id {node.chain.chain_id})
contracts      {node.directory / "contracts.json"}

your accounts, funded on chain:
  buyer        {buyer.address}  key {buyer.export_secret()}
  operator     {seller.address}  key {seller.export_secret()}

five lines to try (uv run python):

from compex_client import Wallet, connect; import asyncio
async def buy():
    async with await connect("{node.websocket_url}", Wallet("{buyer.export_secret()}")) as me:
        print(await me.place("{ticker}", "buy", "{enough}", "1"), await me.balances())

asyncio.run(buy())

stop with Ctrl-C
"""
