"""Signs the orders of one connection, behind their acks: nothing waits for it.

Owns which orders were asked for here and are not signed yet. Invariant: only what this program
asked for is signed, at its own limits; an order that the exchange tells of and that nobody here
asked for is left alone. Every `every_s` all that has gathered is signed by one signature over
their root. `Client` makes a `Signer` at login, where the exchange settles what is signed alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from compex_client import messages as m
from compex_client.errors import Disconnected, ProtocolViolation, Rejected, WalletError
from compex_client.orders import Order, orders_digest, window_of
from compex_client.units import parse_price, parse_qty, price_text, qty_text
from compex_client.wallet import Domain, Wallet

HOUR_S: Final = 3_600
NUMBER_USED: Final = 2005  # the exchange's number for: another connection was quicker
RENUMBERED_MAX: Final = 1  # then the order is signed by another connection
EXPECTED_S: Final = 10  # that an order of several legs may take to be listed as unsigned
ASKED_KEPT: Final = 1 << 16  # orders that may still be amended

log = logging.getLogger("compex_client.signing")


class Terms(NamedTuple):
    """What orders are signed for, besides what they say themselves."""

    fee_ppm_max: int = 50_000  # in parts per million; no exchange charges more than five per cent
    resting_s: int = 30 * 24 * HOUR_S  # from its signing on, an order that may rest can be filled
    at_once_s: int = HOUR_S  # ... and one that may not
    every_s: float = 0.5
    now_ns: Callable[[], int] = time.time_ns


class Exchange(Protocol):
    """The connection, as a signer needs it."""

    @property
    def domain(self) -> Domain: ...
    @property
    def hello(self) -> m.Hello: ...
    def markets(self) -> Awaitable[list[m.MarketInfo]]: ...
    def unsigned(self) -> Awaitable[m.Ack]: ...
    def sign_orders(
        self, orders: Sequence[m.SignedOrder], signature: bytes, key: str
    ) -> Awaitable[m.Ack]: ...


@dataclass
class _Asked:
    """An order that was asked for here, as far as it may be signed."""

    order_id: int
    market: str
    is_buy: bool
    price_ticks: int
    qty_lots: int
    valid_until_s: int
    number: int = 0  # 0: not signed yet
    renumbered: int = 0  # how often that was another's, or the order had another

    def widen(self, price_ticks: int, qty_lots: int, valid_until_s: int) -> None:
        """What is signed once stays covered: its fills were made under it."""
        worse = max if self.is_buy else min
        self.price_ticks = worse(self.price_ticks, price_ticks)
        self.qty_lots = max(self.qty_lots, qty_lots)
        self.valid_until_s = max(self.valid_until_s, valid_until_s)


@dataclass
class Expected:
    """Orders whose ids no ack tells: levels of a quote, legs. `budget_ticks` is for all prices
    together; what is listed as unsigned is matched with it, each order once."""

    is_buy: bool
    price_ticks: int
    qty_lots: int
    markets: frozenset[str] = frozenset()  # tickers; none: any
    left: int = 1
    budget_ticks: int = 0  # 0: none but the price
    since_ns: int = 0

    def takes(self, order: m.UnsignedOrder) -> bool:
        price_ticks, qty_lots = parse_price(order.price), parse_qty(order.qty)
        if self.markets and order.market not in self.markets:
            return False
        if (order.side == "buy") != self.is_buy or qty_lots > self.qty_lots:
            return False
        if self.budget_ticks:
            within = price_ticks <= self.budget_ticks
        elif self.is_buy:
            within = price_ticks <= self.price_ticks
        else:
            within = price_ticks >= self.price_ticks
        if within:
            self.left -= 1
            if self.budget_ticks:
                self.budget_ticks -= price_ticks
        return within


class Signer:
    """`key` is the wallet, or a key that it has authorised to trade."""

    def __init__(self, exchange: Exchange, key: Wallet, terms: Terms) -> None:
        self._exchange = exchange
        self._key = key
        self._terms = terms
        self._account = 0
        self._last_number = -1  # not asked yet
        self._names: dict[str, tuple[int, int]] = {}  # (series, window) of a market, by ticker
        self._asked: dict[int, _Asked] = {}  # by order id; signed ones, too, for amendments
        self._queue: dict[int, _Asked] = {}  # to be signed
        self._expected: list[Expected] = []
        self._amended: dict[int, tuple[int, int]] = {}  # price_ticks, at most so many lots in all
        self._wake = asyncio.Event()
        self._signing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- what was asked for --------------------------------------------------------------------
    def placed(self, order: m.New, ack: m.Ack) -> None:
        """An order was accepted. Of one that has no price of its own, the ack says the limit."""
        if not ack.order_id or ack.dup:
            self.expect([self._of_new(order, ack)])
            return
        expected = self._of_new(order, ack)
        rests = order.tif in {"gtc", "gtt"}
        valid_until_s = max(self._until_s(rests=rests), order.expires_s)
        self._keep(
            _Asked(
                ack.order_id, ack.market or order.market, expected.is_buy, expected.price_ticks,
                expected.qty_lots, valid_until_s,
            )
        )  # fmt: skip
        self._start()

    def _of_new(self, order: m.New, ack: m.Ack) -> Expected:
        has_limit = order.type in {"limit", "stop_limit"} and order.price
        price = order.price if has_limit else ack.price
        markets = frozenset({ack.market} - {""})
        return Expected(order.side == "buy", parse_price(price), parse_qty(order.qty), markets)

    def amended(self, ack: m.Ack) -> None:
        """An order's price or quantity is another now. What was filled of it the ack does not tell:
        the total is taken from what the exchange lists, as far as it can be."""
        known = self._asked.get(ack.order_id)
        if known is not None:
            qty_lots = known.qty_lots + parse_qty(ack.qty)
            self._amended[ack.order_id] = (parse_price(ack.price), qty_lots)
            self._start()

    def expect(self, orders: Iterable[Expected]) -> None:
        """They are signed when the exchange lists them."""
        now_ns = self._terms.now_ns()
        for order in orders:
            order.since_ns = now_ns
            self._expected.append(order)
        self._start()

    def _keep(self, order: _Asked) -> None:
        self._asked[order.order_id] = self._queue[order.order_id] = order
        if len(self._asked) > ASKED_KEPT:
            del self._asked[next(iter(self._asked))]

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._wake.set()

    def _until_s(self, *, rests: bool) -> int:
        valid_s = self._terms.resting_s if rests else self._terms.at_once_s
        return self._terms.now_ns() // 1_000_000_000 + valid_s

    # --- signing -------------------------------------------------------------------------------
    async def _run(self) -> None:
        with suppress(Disconnected, ProtocolViolation):  # whoever uses the connection hears of it
            while True:
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(self._terms.every_s)
                try:
                    await self.flush()
                except (Rejected, WalletError) as error:
                    log.error("orders stay unsigned: %s", error)
                except ProtocolViolation as error:
                    log.error("orders stay unsigned from now on: %s", error)
                    raise
                if self._expected or self._amended or self._queue:
                    self._wake.set()

    async def flush(self) -> None:
        """Sign and hand in all that is known by now. Raises Rejected, Disconnected."""
        async with self._signing:
            if self._expected or self._amended or self._last_number < 0:
                await self._list()
            await self._hand_in_all()

    async def sign_all(self) -> int:
        """Sign whatever the exchange lists as unsigned, on its word: for a program that has
        forgotten what it asked for. How many orders that were."""
        async with self._signing:
            listed = await self._list()
            for order in listed:
                self._take(order)
            count = len(self._queue)
            await self._hand_in_all()
        return count

    async def _hand_in_all(self) -> None:
        """Raises Rejected, of the first that is, behind the last."""
        refused: Rejected | None = None
        while self._queue:
            try:
                await self._hand_in([*self._queue.values()][: self._signs_at_once()])
            except Rejected as rejected:
                refused = refused or rejected
        if refused is not None:
            raise refused

    def _signs_at_once(self) -> int:
        signing = self._exchange.hello.signing
        return signing.orders if signing is not None else m.SIGNED_ORDERS_MAX

    async def _list(self) -> list[m.UnsignedOrder]:
        ack = await self._exchange.unsigned()
        self._account = ack.account
        self._last_number = max(self._last_number, ack.last_number)
        listed = ack.unsigned or []
        for order in listed:
            if order.order_id in self._amended:
                self._take_amended(order, *self._amended[order.order_id])
            if order.order_id in self._queue:
                continue
            for expected in self._expected:
                if expected.takes(order):
                    self._take(order)
                    break
            self._expected = [x for x in self._expected if x.left]
        self._amended.clear()  # what is not listed is covered
        oldest_ns = self._terms.now_ns() - EXPECTED_S * 1_000_000_000
        self._expected = [x for x in self._expected if x.since_ns > oldest_ns]
        return listed

    def _take_amended(self, order: m.UnsignedOrder, price_ticks: int, most_lots: int) -> None:
        known = self._asked[order.order_id]
        listed_ticks = parse_price(order.price)
        if known.is_buy:
            within = listed_ticks <= max(price_ticks, known.price_ticks)
        else:
            within = listed_ticks >= min(price_ticks, known.price_ticks)
        if within and parse_qty(order.qty) <= most_lots:
            self._take(order)

    def _take(self, order: m.UnsignedOrder) -> None:
        price_ticks, qty_lots = parse_price(order.price), parse_qty(order.qty)
        known = self._asked.get(order.order_id)
        if known is None:
            known = _Asked(
                order.order_id, order.market, order.side == "buy", price_ticks, qty_lots,
                self._until_s(rests=True), order.number,
            )  # fmt: skip
        known.widen(price_ticks, qty_lots, self._until_s(rests=True))
        self._keep(known)

    async def _hand_in(self, several: Sequence[_Asked]) -> None:
        """Once; what is to be tried again stays in the queue. Raises Rejected if it never will be
        taken; then the one at fault is given up, or all where none is named."""
        orders = [await self._order(order) for order in several]
        signature = self._key.sign_digest(orders_digest(self._exchange.domain, orders))
        rows = [_row(asked, order) for asked, order in zip(several, orders, strict=True)]
        try:
            await self._exchange.sign_orders(rows, signature, self._key.address)
        except Rejected as rejected:
            if rejected.retry_ms:
                await asyncio.sleep(rejected.retry_ms / 1_000)
            elif rejected.code == NUMBER_USED:
                await self._renumber(several, _place(rejected))
            else:
                self._forget([several[_place(rejected)]] if _names_one(rejected) else several)
                raise
        else:
            self._forget(several)

    def _forget(self, several: Sequence[_Asked]) -> None:
        for order in several:
            self._queue.pop(order.order_id, None)

    async def _renumber(self, several: Sequence[_Asked], place: int) -> None:
        """Somebody else signs for the account, too, and maybe has signed for the one at fault."""
        ack = await self._exchange.unsigned()
        self._last_number = ack.last_number
        numbers = {x.order_id: x.number for x in ack.unsigned or ()}
        for order in several:
            order.number = numbers.get(order.order_id, 0)
        several[place].renumbered += 1
        if several[place].renumbered > RENUMBERED_MAX:
            self._forget([several[place]])

    async def _order(self, asked: _Asked) -> Order:
        if asked.market not in self._names:
            await self._learn_names()
        if asked.market not in self._names:
            raise ProtocolViolation(f"nobody says what {asked.market} is called in an order")
        series, window = self._names[asked.market]
        if not asked.number:
            self._last_number += 1
            asked.number = self._last_number
        return Order(
            self._account, asked.is_buy, series, window, asked.price_ticks, asked.qty_lots,
            asked.number, self._terms.fee_ppm_max, asked.valid_until_s,
        )  # fmt: skip

    async def _learn_names(self) -> None:
        """Of every market; what was learnt once stays, whatever the exchange says later. Hours are
        read from the symbol, not believed."""
        for info in await self._exchange.markets():
            window = window_of(info.symbol)
            if info.series and window != info.window:
                raise ProtocolViolation(f"{info.symbol} is not window {info.window}")
            for name in (info.market, info.symbol):
                self._names.setdefault(name, (info.series, window))


def _names_one(rejected: Rejected) -> bool:
    return (rejected.field or "").startswith("orders[")


def _place(rejected: Rejected) -> int:
    """Which of the orders is at fault: `field` is "orders[3]"."""
    number = (rejected.field or "").removeprefix("orders[").removesuffix("]")
    return int(number) if number.isdecimal() else 0


def _row(asked: _Asked, order: Order) -> m.SignedOrder:
    return (
        asked.order_id, order.number, asked.market, "buy" if order.is_buy else "sell",
        price_text(order.price_ticks), qty_text(order.qty_lots), order.fee_ppm_max,
        order.valid_until_s,
    )  # fmt: skip
