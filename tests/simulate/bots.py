"""Traders with the real client, who keep what they asked, what they were told and what follows.

Owns everything a bot knows: its errands by client id and its view of its own account. Invariant: an
errand without an answer is unknown, neither done nor failed, until the exchange has said what
became of it, after a reconnection, to a question by its client id or to the same request again.
`World` lets them trade, and `truth` compares what they know.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from compex_client import messages as m
from compex_client.book import Book
from compex_client.client import Client, PrivateMessage
from compex_client.errors import Disconnected, Rejected
from compex_client.signing import Terms
from compex_client.streams import BookStream, Stream
from compex_client.units import price_text, qty_text
from compex_client.wallet import Wallet

from engine.rejects import Reject
from tests.simulate.faults import Chance, Faults
from tests.simulate.network import Link
from tests.simulate.node import ADMINISTRATOR, START_NS, TICKERS

THINKS_SECONDS: Final = (0.02, 0.4)
AWAY_SECONDS: Final = (0.001, 1.0)
ACTING_MAX: Final = 8
SIGNED_FOR_S: Final = 60 * 86_400  # days go by
SIGNS_AGAIN: Final = 0.1  # of its turns, when it rests
MID_TICKS: Final = 20_000
SPREAD_TICKS: Final = 12
# What says nothing of an earlier attempt.
UNSAID: Final = frozenset({Reject.BUSY, Reject.STOPPED, Reject.RATE_LIMITED})


@dataclass
class Errand:
    """Something asked for under one client id, as often as it takes."""

    client_id: int
    method: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    acks: list[m.Ack] = field(default_factory=list[m.Ack])
    rejects: list[int] = field(default_factory=list[int])
    unanswered: int = 0
    denied: bool = False  # the exchange has said that it never had it
    seen: list[m.OrderInfo] = field(default_factory=list[m.OrderInfo])  # answers by client id

    @property
    def is_unknown(self) -> bool:
        return self.unanswered > 0

    async def ask(self, client: Client) -> None:
        """Once; raises Disconnected with the errand unknown."""
        self.unanswered += 1
        try:
            ack = await getattr(client, self.method)(
                *self.arguments, client_id=self.client_id, **self.named
            )
        except Rejected as rejected:
            if rejected.code == Reject.CLIENT_ID_REUSED:
                raise AssertionError("the same was asked before") from rejected
            self.rejects.append(rejected.code)
        else:
            self.acks.append(ack)
        self.unanswered -= 1

    async def clear_up(self, client: Client, by_query: bool) -> None:
        """On a new connection: what became of it?"""
        if by_query and self.method == "place":
            try:
                self.seen.append(await client.order(client_id=self.client_id))
            except Rejected as rejected:
                if rejected.code != Reject.UNKNOWN_ORDER:
                    raise
                self.denied = not self.acks
            self.unanswered = 0
            return
        rejects = len(self.rejects)
        await self.ask(client)
        if not UNSAID.intersection(self.rejects[rejects:]):
            self.unanswered = 0  # and so were all before it


class View:
    """One account as its private stream tells it, over all connections."""

    def __init__(self) -> None:
        self.aseq = 0
        self.orders: dict[int, str] = {}  # what is left of the open ones
        self.balances: m.Balances | None = None
        self.snapshots = 0

    def apply(self, message: PrivateMessage) -> None:
        match message:
            case m.AccountSnapshot():
                assert message.aseq >= self.aseq, "what was numbered once is not numbered again"
                self.snapshots += 1
                self.orders = {order.order_id: order.left for order in message.orders}
                self.balances = message.balances
            case m.Balance() | m.CaughtUp():
                assert message.aseq == self.aseq
                self.balances = message.balances
                return
            case _:
                assert message.aseq == self.aseq + 1, "the private stream has no gap"
                if isinstance(message, m.Order | m.Fill):
                    self._order(message)
        self.aseq = message.aseq

    def _order(self, message: m.Order | m.Fill) -> None:
        if message.left == "0" or (isinstance(message, m.Order) and message.state != "open"):
            self.orders.pop(message.order_id, None)
        else:
            self.orders[message.order_id] = message.left


class Bot:
    """One wallet with one connection at a time."""

    def __init__(
        self,
        name: str,
        wallet: Wallet,
        chance: Chance,
        faults: Faults,
        door: Callable[[], Link | None],
        say: Callable[[str, str], None],
        now_ns: Callable[[], int],
    ) -> None:
        self.name = name
        self.wallet = wallet
        self.errands: dict[int, Errand] = {}
        self.cancelled: set[int] = set()  # order ids whose cancellation was acknowledged
        self.view = View()
        self.books: list[BookStream[Book]] = []
        self.resting = False  # start nothing new
        self.account = 0
        self._chance = chance
        self._random = chance.random
        self._faults = faults
        self._door = door
        self._say: Callable[[str], None] = lambda what: say(name, what)
        self._terms = Terms(at_once_s=SIGNED_FOR_S, resting_s=SIGNED_FOR_S, now_ns=now_ns)
        self._orders: list[int] = []  # client ids of orders, to be cancelled or amended
        self._acting: list[asyncio.Task[None]] = []
        self._is_caught_up = False

    @property
    def is_settled(self) -> bool:
        """Connected, with every book and nothing unknown."""
        unknown = any(errand.is_unknown for errand in self.errands.values())
        return self._is_caught_up and not unknown and not self._acting

    # --- connections ---------------------------------------------------------------------------
    async def live(self) -> None:
        """Until cancelled."""
        while True:
            link = self._door()
            if link is not None:
                client = Client(cast("Any", link))
                try:
                    await self._session(client)
                except Disconnected:
                    self._say("is disconnected")
                finally:
                    self._is_caught_up = False
                    await asyncio.gather(*self._acting)
                    self._acting = []
                    await client.close()
            await asyncio.sleep(self._chance.seconds(*AWAY_SECONDS))

    async def _session(self, client: Client) -> None:
        await client.start()
        ack = await client.login(self.wallet, session=1, signing=self._terms)
        self.account = ack.account
        if not self.account:
            return
        for errand in list(self.errands.values()):
            if errand.is_unknown or self._is_curious(errand):
                await errand.clear_up(client, self._random.random() < 0.5)
                self._say(f"errand {errand.client_id}: {_outcome(errand)}")
        await self._sign(client)
        resumes = self.view.snapshots > 0 and self._random.random() < 0.5
        from_aseq = self.view.aseq + 1 if resumes else 0
        stream = await client.private(from_aseq=from_aseq)
        listener = asyncio.ensure_future(self._listen(stream))
        try:
            self.books = [await client.book(ticker) for ticker in TICKERS]
            await self._declare(client)
            await self._trade(client, listener)
        finally:
            listener.cancel()
            with contextlib.suppress(Disconnected, asyncio.CancelledError):
                await listener

    async def _sign(self, client: Client) -> None:
        """What was traded on connections that were cut, and what the client does not match."""
        try:
            signed = await client.sign_all()
        except Rejected as rejected:
            self._say(f"cannot sign: {rejected.code}")
        else:
            if signed:
                self._say(f"signs {signed} orders")

    def _is_curious(self, errand: Errand) -> bool:
        """Asks again, now and then, for what it knows."""
        return bool(errand.acks) and self._random.random() < 0.05

    async def _listen(self, stream: Stream[PrivateMessage]) -> None:
        async for message in stream:
            self.view.apply(message)

    async def _declare(self, client: Client) -> None:
        for ticker in TICKERS:
            try:
                await client.declare_capacity(ticker, "100000")
            except Rejected as rejected:
                self._say(f"declares {ticker}: {rejected.code}")

    async def _trade(self, client: Client, listener: "asyncio.Future[None]") -> None:
        self._is_caught_up = True
        while not listener.done():
            await asyncio.sleep(self._chance.seconds(*THINKS_SECONDS))
            self._acting = [task for task in self._acting if not task.done()]
            unknown = [errand for errand in self.errands.values() if errand.is_unknown]
            if self.resting:
                for errand in unknown if not self._acting else ():
                    await errand.clear_up(client, by_query=False)
                if self._random.random() < SIGNS_AGAIN:
                    await self._sign(client)
            elif len(self._acting) < ACTING_MAX:
                self._start(self._act(client))

    def _start(self, work: Any) -> None:
        self._acting.append(asyncio.ensure_future(self._until_cut(work)))

    async def _until_cut(self, work: Any) -> None:
        with contextlib.suppress(Disconnected):
            await work

    # --- acting --------------------------------------------------------------------------------
    async def _act(self, client: Client) -> None:
        drawn = self._random.random()
        if drawn < 0.6:
            await self._errand(client, "place", *self._an_order())
        elif drawn < 0.7:
            await self._errand(client, "quote", *self._a_quote())
        elif drawn < 0.74:
            await self._errand(client, "block", (TICKERS[1], 2, self._qty(), self._price(20)), {})
        elif drawn < 0.78:
            legs = [m.Leg(ticker, self._price(20), self._qty()) for ticker in TICKERS[:2]]
            method = self._random.choice(("exclusive", "basket"))
            await self._errand(client, method, (legs,), {})
        elif drawn < 0.81:
            amount = str(self._random.randrange(1, 50))
            await self._errand(client, "withdraw", (amount,), {})
        else:
            await self._change(client)

    async def _errand(
        self, client: Client, method: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        errand = Errand(len(self.errands) + 1, method, arguments, named)
        self.errands[errand.client_id] = errand
        if method == "place":
            self._orders.append(errand.client_id)
        self._say(f"errand {errand.client_id}: {method} {arguments} {named}")
        again = self._chance.happens(self._faults.repeat_ppm)
        await asyncio.gather(*(errand.ask(client) for _ in range(1 + again)))
        self._say(f"errand {errand.client_id}: {_outcome(errand)}")

    def _price(self, beyond_ticks: int = 0) -> str:
        ticks = self._random.randrange(-SPREAD_TICKS, SPREAD_TICKS + 1)
        return price_text(MID_TICKS + ticks + beyond_ticks)

    def _qty(self) -> str:
        return qty_text(self._random.randrange(1, 400))

    def _an_order(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        side = self._random.choice(("buy", "sell"))
        ticker = self._random.choice(TICKERS)
        drawn = self._random.random()
        terms: dict[str, Any] = {}
        if drawn < 0.2:
            terms["tif"] = self._random.choice(("ioc", "fok"))
        elif drawn < 0.3:
            soon = START_NS // 1_000_000_000 + self._random.randrange(1, 7200)
            terms |= {"tif": "gtt", "expires_s": soon}
        elif drawn < 0.4:
            terms["post_only"] = True
        elif drawn < 0.48:
            terms["display_qty"] = "0.05"
        elif drawn < 0.56:
            terms |= {"type": "stop_limit", "stop": self._price()}
        elif drawn < 0.62:
            terms["all_or_none"] = True
        elif drawn < 0.66:
            terms |= {"type": "market", "protection": "0.0010"}
            return (ticker, side, "", self._qty()), terms
        elif drawn < 0.7:
            terms |= {"resale": True}
            side = "sell"
        return (ticker, side, self._price(), self._qty()), terms

    def _a_quote(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        levels = self._random.randrange(1, 5)
        bids = [(price_text(MID_TICKS - 3 - i), self._qty()) for i in range(levels)]
        asks = [(price_text(MID_TICKS + 3 + i), self._qty()) for i in range(levels)]
        return (self._random.choice(TICKERS), bids, asks), {}

    async def _change(self, client: Client) -> None:
        if not self._orders:
            return
        client_id = self._random.choice(self._orders[-20:])
        drawn = self._random.random()
        try:
            if drawn < 0.6:
                ack = await client.cancel(client_id=client_id)
                self.cancelled.add(ack.order_id)
            elif drawn < 0.95:
                await client.amend(client_id=client_id, price=self._price(), qty=self._qty())
            else:
                await client.cancel_all(self._random.choice(TICKERS))
        except Rejected as rejected:
            self._say(f"cannot change {client_id}: {rejected.code}")


class Administrator:
    """Halts and resumes markets, calls and uncrosses them, and sets bands."""

    def __init__(
        self, chance: Chance, door: Callable[[], Link | None], say: Callable[[str, str], None]
    ) -> None:
        self.resting = False
        self._chance = chance
        self._door = door
        self._say: Callable[[str], None] = lambda what: say("administrator", what)

    async def live(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._chance.seconds(0.2, 3.0))
            link = self._door()
            if link is None or self.resting:
                continue
            client = Client(cast("Any", link))
            with contextlib.suppress(Disconnected):
                await client.start()
                await client.login(ADMINISTRATOR)
                await self._act(client, self._chance.random.choice(TICKERS))
            await client.close()

    async def _act(self, client: Client, ticker: str) -> None:
        what = self._chance.random.choice(("halt", "call", "bands"))
        self._say(f"{what} {ticker}")
        with contextlib.suppress(Rejected):
            if what == "bands":
                await client.set_bands(ticker, static_ppm=2_000, dynamic_ppm=400, call_s=1)
            elif what == "halt":
                await client.halt_market(ticker)
                await asyncio.sleep(self._chance.seconds(0.1, 0.5))
            else:
                await client.call_market(ticker)
                await asyncio.sleep(self._chance.seconds(0.1, 0.5))
        for end in (client.resume_market, client.uncross_market):
            with contextlib.suppress(Rejected):
                await end(ticker)


def _outcome(errand: Errand) -> str:
    acks = [(ack.sequence, ack.order_id, ack.dup) for ack in errand.acks]
    denied = ", never had" if errand.denied else ""
    return f"acks {acks}, rejects {errand.rejects}, unanswered {errand.unanswered}{denied}"
