"""Which orders wait for their owners' signatures, and what becomes of those that wait too long.

Owns no signature: they go to settlement through `Signatures`, a protocol of this module that the
node connects, and are answered when they are kept; nothing here is on an order's way into the book.
Invariant: an account with an order that waits longer than it may adds no risk until it has signed,
and no order that nobody is bound by stays in a book; what is known here is no more than what the
engine has told and settlement has kept, so a restart takes stock of both. The desk tells of events
and of sessions' requests.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from compex_client import messages as m
from compex_client.units import price_text, qty_text

from engine.port import Port
from engine.records import CommandKind, Event, EventKind, Side
from engine.rejects import Refused, Reject
from gateway import translate
from gateway.mirror import Mirror, OpenOrder
from gateway.wire import BadRequest

TICK_SECONDS: Final = 0.25  # how late an order may be seen to have waited too long
TICKS_PER_LOOK: Final = 8  # at who is suspended, and what was taken back
CANCEL_AFTER: Final = 2  # times what an order may wait: it is cancelled
ASKING_MAX: Final = 256  # accounts with requests before settlement; those of more are refused
REQUESTS_MAX: Final = 16  # of one account, likewise
NS_PER_MS: Final = 1_000_000
# Commands that may come to trades which somebody has to sign for.
_ADDS: Final = frozenset({
    CommandKind.NEW_ORDER, CommandKind.NEW_STOP, CommandKind.AMEND, CommandKind.MASS_QUOTE,
    CommandKind.BLOCK, CommandKind.EXCLUSIVE, CommandKind.BASKET,
})  # fmt: skip
_FOLLOWED: Final = frozenset({
    EventKind.ACCEPTED, EventKind.FILL, EventKind.CANCELLED, EventKind.DECREMENTED,
    EventKind.AMENDED,
})  # fmt: skip

log = logging.getLogger("compex.signing")


class Handed(NamedTuple):
    """One order that is handed in signed."""

    order_id: int
    number: int
    product: int
    instrument: int
    is_buy: bool
    price_ticks: int
    qty_lots: int
    fee_ppm_max: int
    valid_until_s: int


class Authorised(NamedTuple):
    """A session key as its wallet has signed for it; `gateway.keys` keeps them."""

    key: bytes
    scopes: int
    markets: Sequence[str]
    valid_from_s: int
    valid_until_s: int
    nonce: int
    signature: bytes


class Outcome(NamedTuple):
    """All of it is kept, or none: then why, and which order is at fault, -1 for none of them."""

    reject: Reject | None
    place: int
    last_number: int


class Body(NamedTuple):
    """What an order is signed for."""

    order_id: int
    number: int
    price_ticks: int
    qty_lots: int


class Unsigned(NamedTuple):
    """An order with fills that no signature covers: `price_ticks` is the worst of them and of what
    is signed."""

    account: int
    order_id: int
    instrument: int
    is_buy: bool
    price_ticks: int
    qty_lots: int
    number: int


class Unreachable(Exception):
    """Settlement's database does not answer: nobody knows what is kept; ask again."""


class Signatures(Protocol):
    """Settlement, as sessions know it. Everything awaited raises Unreachable."""

    def settled(self, product: int) -> tuple[int, int]:
        """What orders call its (series, window); zeros if they have no name for it."""
        ...

    def hand_in(
        self, account: int, handed: Sequence[Handed], signature: bytes, key: Authorised | None
    ) -> Awaitable[Outcome]:
        """Of the wallet's own key if there is no other."""
        ...

    def bodies(self, order_ids: Sequence[int]) -> Awaitable[Sequence[Body]]: ...

    def unsigned(self, account: int) -> Awaitable[Sequence[Unsigned]]:
        """Oldest first; of every account if that is 0."""
        ...

    def last_number(self, account: int) -> Awaitable[int]: ...

    def suspended(self) -> Awaitable[Sequence[int]]:
        """Accounts that trade nothing for now, because they did not sign what they traded."""
        ...

    def taken_back(self) -> Awaitable[Sequence[tuple[int, int]]]:
        """(account, order id) of the signed orders that their owners have cancelled on chain, or
        whose key they have revoked there."""
        ...


class Listed(NamedTuple):
    """The answer to who asks for what is not signed."""

    orders: list[m.UnsignedOrder]  # closed ones from when their fills are booked
    last_number: int


class Signing:
    """`within_ms` is how long an order may wait; 0: for ever. `now_ns` is a steady clock."""

    def __init__(
        self,
        kept: Signatures,
        port: Port,
        mirror: Mirror,
        within_ms: int,
        now_ns: Callable[[], int],
    ) -> None:
        self._kept = kept
        self._port = port
        self._mirror = mirror
        self._within_ns = within_ms * NS_PER_MS
        self._now_ns = now_ns
        self._is_live = False
        self._happened: list[Event] = []  # in the running command
        self._waiting: dict[int, dict[int, int]] = {}  # {account: {order id: since, ns}}
        self._filled: set[int] = set()  # of those
        self._cancelling: set[int] = set()  # orders of any account, on their way out
        self._bodies: dict[int, Body] = {}  # of open orders, by id
        self._suspended: frozenset[int] = frozenset()
        self._requests: Counter[int] = Counter()  # before settlement, by account
        self._tasks: set[asyncio.Task[None]] = set()
        self.terms: Final = m.Signing(within_ms)
        mirror.settled = kept.settled

    def start(self) -> None:
        """The journal's events are in the mirror: what waits, waits from now on."""
        if self._is_live:
            return
        self._is_live = True
        now_ns = self._now_ns()
        for account, state in self._mirror.accounts.items():
            for order_id in state.orders:
                self._waits(account, order_id, now_ns)
        self._spawn(self._watch())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def owes_replies(self) -> bool:
        """Whether somebody waits for settlement."""
        return bool(self._requests)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what happens --------------------------------------------------------------------------
    def hear(self, event: Event) -> None:
        """Of every event, before it is in the mirror."""
        if self._is_live and event.kind in _FOLLOWED:
            self._happened.append(event)

    def command_done(self) -> None:
        """It is in the mirror now."""
        if not self._happened:
            return
        happened, self._happened = self._happened, []
        now_ns = self._now_ns()
        for event in happened:
            match event.kind:
                case EventKind.ACCEPTED:
                    self._waits(event.account, event.order_id, now_ns)
                case EventKind.FILL:
                    self._fills(event.account, event.order_id)
                    self._fills(event.counter_account, event.counter_order_id)
                case EventKind.AMENDED:
                    self._amended(event, now_ns)
                case EventKind.DECREMENTED:
                    self._may_be_gone(event.account, event.order_id)
                    self._may_be_gone(event.account, event.counter_order_id)
                case _:
                    self._may_be_gone(event.account, event.order_id)

    def _waits(self, account: int, order_id: int, now_ns: int) -> None:
        self._waiting.setdefault(account, {}).setdefault(order_id, now_ns)

    def _fills(self, account: int, order_id: int) -> None:
        if order_id in self._waiting.get(account, ()):
            self._filled.add(order_id)
        elif order_id not in self._mirror.account(account).orders:
            self._bodies.pop(order_id, None)
            self._cancelling.discard(order_id)

    def _may_be_gone(self, account: int, order_id: int) -> None:
        """An order that has left without a fill binds nobody."""
        if order_id in self._mirror.account(account).orders:
            return
        self._bodies.pop(order_id, None)
        if order_id not in self._filled:
            self._no_more(account, order_id)

    def _amended(self, event: Event, now_ns: int) -> None:
        order = self._mirror.account(event.account).orders.get(event.order_id)
        body = self._bodies.get(event.order_id)
        if order is not None and body is not None and not _covers(body, order):
            self._waits(event.account, event.order_id, now_ns)

    def _no_more(self, account: int, order_id: int) -> None:
        of_account = self._waiting.get(account)
        if of_account is not None:
            of_account.pop(order_id, None)
            if not of_account:
                del self._waiting[account]
        self._filled.discard(order_id)
        self._cancelling.discard(order_id)

    def _signed(self, account: int, body: Body) -> None:
        order = self._mirror.account(account).orders.get(body.order_id)
        if order is not None:
            self._bodies[body.order_id] = body
            if not _covers(body, order):
                return
        self._no_more(account, body.order_id)

    # --- sessions ------------------------------------------------------------------------------
    def objection(self, account: int, kind: int) -> BadRequest | None:
        """Why the account may not do this kind of command now; None if it may. Money that could be
        taken out at once, and come back as another account's, would make a suspension idle."""
        if not self._within_ns:
            return None
        if account in self._suspended and (kind in _ADDS or kind == CommandKind.WITHDRAW):
            return BadRequest(Reject.ACCOUNT_SUSPENDED)
        if kind not in _ADDS:
            return None
        waiting = self._waiting.get(account)
        if waiting is None:
            return None
        since_ns = next(iter(waiting.values()))  # the oldest is the first
        if self._now_ns() - since_ns <= self._within_ns:
            return None
        return BadRequest(Reject.ORDERS_UNSIGNED, detail=f"{len(waiting)} in all")

    def hand_in(
        self,
        account: int,
        handed: Sequence[Handed],
        signature: bytes,
        key: Authorised | None,
        told: Callable[[Outcome | None], None],
    ) -> None:
        """`told` what came of it, or None if nobody knows. Raises BadRequest: BUSY, and
        UNKNOWN_ORDER or INVALID_FIELD for an order that is known to be another."""
        orders = self._mirror.account(account)
        for place, x in enumerate(handed):
            order = orders.orders.get(x.order_id)
            if order is not None and (order.instrument, order.side == Side.BUY) != (
                x.instrument, x.is_buy,
            ):  # fmt: skip
                words = "the order is of another market or side"
                raise BadRequest(Reject.INVALID_FIELD, f"orders[{place}]", words)
        self._check_room(account)

        async def work() -> None:
            outcome = await self._kept.hand_in(account, handed, signature, key)
            if outcome.reject is None:
                for x in handed:
                    self._signed(account, Body(x.order_id, x.number, x.price_ticks, x.qty_lots))
            told(outcome)

        self._request(account, work(), lambda: told(None))

    def ask_unsigned(self, account: int, told: Callable[[Listed | None], None]) -> None:
        """`told` them, or None if settlement cannot be reached. Raises BadRequest: BUSY."""
        self._check_room(account)

        async def work() -> None:
            filled = await self._kept.unsigned(account)
            last_number = await self._kept.last_number(account)
            told(Listed(self._listed(account, filled), last_number))

        self._request(account, work(), lambda: told(None))

    def _request(self, account: int, work: Awaitable[None], failed: Callable[[], None]) -> None:
        self._requests[account] += 1
        self._spawn(self._answered(account, work, failed))

    async def _answered(
        self, account: int, work: Awaitable[None], failed: Callable[[], None]
    ) -> None:
        """Every request has its one reply, whatever breaks behind it."""
        try:
            await work
        except Unreachable as error:
            log.warning("settlement's database: %s", error)
            failed()
        except Exception:
            log.exception("a request about signatures has failed")
            failed()
        finally:
            self._requests[account] -= 1
            if not self._requests[account]:
                del self._requests[account]

    def _check_room(self, account: int) -> None:
        waiting = self._requests[account]
        if waiting >= REQUESTS_MAX or (not waiting and len(self._requests) >= ASKING_MAX):
            raise BadRequest(Reject.BUSY)

    def _listed(self, account: int, filled: Sequence[Unsigned]) -> list[m.UnsignedOrder]:
        """Open orders as they stand; closed ones by their fills. None for less than is signed of
        it already, which nobody needs to remember: what is kept is only ever widened."""
        waiting = self._waiting.get(account, ())
        open_orders = self._mirror.account(account).orders
        listed = {x.order_id: self._by_fills(x) for x in filled}
        by_id = {x.order_id: x for x in filled}
        for order_id in waiting:
            order = open_orders.get(order_id)
            if order is not None:  # else its fills are told of when they are booked
                listed[order_id] = self._as_it_stands(order, by_id.get(order_id))
        return list(listed.values())

    def _by_fills(self, x: Unsigned) -> m.UnsignedOrder:
        return m.UnsignedOrder(
            order_id=x.order_id,
            market=self._mirror.markets[x.instrument].ticker,
            side="buy" if x.is_buy else "sell",
            price=price_text(x.price_ticks),
            qty=qty_text(x.qty_lots),
            number=x.number,
        )

    def _as_it_stands(self, order: OpenOrder, filled: Unsigned | None) -> m.UnsignedOrder:
        price_ticks, qty_lots, number = order.price_ticks, order.qty_lots, 0
        worse = max if order.side == Side.BUY else min
        for known in (self._bodies.get(order.order_id), filled):
            if known is not None:
                price_ticks = worse(price_ticks, known.price_ticks)
                qty_lots = max(qty_lots, known.qty_lots)
                number = max(number, known.number)
        info = self._mirror.order_info(order)
        return m.UnsignedOrder(
            order.order_id, info.market, info.side, price_text(price_ticks), qty_text(qty_lots),
            number, info.client_id,
        )  # fmt: skip

    # --- time ----------------------------------------------------------------------------------
    async def _watch(self) -> None:
        await self._take_stock()
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._within_ns:
                self._cancel_the_late()
            ticks += 1
            if ticks % TICKS_PER_LOOK == 0:
                try:
                    self._suspended = frozenset(await self._kept.suspended())
                    self._cancel(await self._kept.taken_back())
                except Unreachable as error:
                    log.warning("who is suspended, what was taken back: %s", error)

    async def _take_stock(self) -> None:
        """What of the open orders is signed, and which filled ones are not."""
        while True:
            try:
                ids = [x for waiting in self._waiting.values() for x in waiting]
                bodies = await self._kept.bodies(ids)
                unsigned = await self._kept.unsigned(0)
                self._suspended = frozenset(await self._kept.suspended())
                break
            except Unreachable as error:
                log.warning("what is signed: %s; asking again", error)
                await asyncio.sleep(TICK_SECONDS)
        account_of = {x: account for account, ids in self._waiting.items() for x in ids}
        for body in bodies:
            if body.order_id in account_of:
                self._signed(account_of[body.order_id], body)
        for x in unsigned:
            self._waits(x.account, x.order_id, self._now_ns())
            self._filled.add(x.order_id)

    def _cancel_the_late(self) -> None:
        late_ns = self._now_ns() - CANCEL_AFTER * self._within_ns
        late: list[tuple[int, int]] = []
        for account, waiting in self._waiting.items():
            for order_id, since_ns in waiting.items():
                if since_ns > late_ns:
                    break
                late.append((account, order_id))
        self._cancel(late)

    def _cancel(self, orders: Sequence[tuple[int, int]]) -> None:
        """Those that are open, and not yet on their way out: of what was filled of them the fills
        wait in settlement."""
        for account, order_id in orders:
            open_orders = self._mirror.account(account).orders
            if order_id not in open_orders or order_id in self._cancelling:
                continue
            try:
                self._port.submit(translate.cancel(account, order_id))
            except Refused as refused:
                log.warning("order %d should be cancelled: %s", order_id, refused)
                return
            self._cancelling.add(order_id)


def _covers(body: Body, order: OpenOrder) -> bool:
    if order.side == Side.BUY:
        within = order.price_ticks <= body.price_ticks
    else:
        within = order.price_ticks >= body.price_ticks
    return within and order.qty_lots <= body.qty_lots
