"""One connection's conversation, without I/O: payloads go in by `receive`, whole frames come out
of the outbox.

Invariant: every request gets exactly one reply with its id, now or when the engine answers; a
refused one changed nothing. The server makes a session for each connection; the engine's answers
come through `Pending`, which the feed drives.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, get_args

import msgspec
from compex_client import messages as m
from compex_client.units import PRICE_TICK, QTY_LOT
from compex_client.wallet import ADDRESS_BYTES, Domain, address_text

from engine.catalog import Catalog
from engine.port import Port
from engine.records import ALL_INSTRUMENTS, Command, CommandKind, Event, EventKind
from engine.rejects import CatalogError, Refused, Reject
from gateway import translate, wire
from gateway.auth import Challenge, LoginRefused, bytes_of
from gateway.bulk import Gathering, ItemReply, Told, levels_in
from gateway.feed import OWN_COMMANDS, Feed
from gateway.hub import EVERY_MARKET, Topic
from gateway.limits import (
    DEFAULT_LIMITS,
    PENDING_REPEATS_MAX,
    RETRY_MS,
    Budgets,
    Outbox,
    Tariff,
    spend,
)
from gateway.wire import BadRequest, Codec

_NEVER_TERMINAL: Final = frozenset({
    EventKind.FILL,
    EventKind.DECREMENTED,
    EventKind.CONCEALED,
    EventKind.REFRESHED,
    EventKind.WAITING,
    EventKind.TRIGGERED,
    EventKind.VOLATILITY_CALL,
})  # fmt: skip
# Members of an IntEnum cost a look-up each time they are named; events come by the million.
_CANCELLED: Final = int(EventKind.CANCELLED)
_REJECTED: Final = int(EventKind.REJECTED)

# Requests that a client id makes safe to repeat.
_NAMED: Final = frozenset({m.New, m.Replace, m.Withdraw, m.Quote, m.Block, m.Exclusive, m.Basket})


class Asked(msgspec.Struct, frozen=True):  # made in a third of a tuple's time
    """A request waiting for the engine's terminal event: of the command it became or, if it is
    about an order that has no number yet, of that order's."""

    session: "Session"
    request: m.ClientMessage
    told: Told
    market: str = ""  # ticker, for the ack
    dup: bool = False
    awaits_order: bool = False
    client_id: int = 0  # which names the command


class Pending:
    """Who waits for which command: {sequence: requests, the one that caused it first}.

    Those that caused one are as many as the engine takes before it says BUSY; the others are
    counted here, and none may wait while there is no room.
    """

    def __init__(self) -> None:
        self._repeats = 0
        self._first: dict[int, Asked] = {}
        self._others: dict[int, list[Asked]] = {}
        self._sequence_of: dict[tuple[int, int], int] = {}  # (account, client id) in flight
        self._asking: list[tuple[Asked, Event]] = []  # for an order, in the running command

    def __len__(self) -> int:
        return len(self._first)

    @property
    def has_room(self) -> bool:
        """For a request that waits for a command which another one caused."""
        return self._repeats < PENDING_REPEATS_MAX

    def wait(self, sequence: int, asked: Asked, account: int = 0) -> None:
        if sequence in self._first:
            self._repeats += 1
            self._others.setdefault(sequence, []).append(asked)
        else:
            self._first[sequence] = asked
        if asked.client_id:
            self._sequence_of[account, asked.client_id] = sequence

    def sequence_of(self, account: int, client_id: int) -> int:
        """The command in flight that has this client id; 0 if there is none."""
        return self._sequence_of.get((account, client_id), 0)

    def answer(self, event: Event) -> None:
        """Reply to whoever waits for the command, if the event is its terminal one."""
        first = self._first.get(event.sequence)
        if first is None or event.kind in _NEVER_TERMINAL:
            return
        if event.kind == _CANCELLED and not isinstance(first.request, m.Cancel):
            return
        del self._first[event.sequence]
        if first.client_id:
            self._sequence_of.pop((event.account, first.client_id), None)
        if not self._others or event.sequence not in self._others:
            first.session.answered(first, event)
            return
        others = self._others.pop(event.sequence)
        self._repeats -= len(others)
        for asked in (first, *others):
            if isinstance(asked.request, m.Query):
                self._asking.append((asked, event))
            else:
                asked.session.answered(asked, event)

    def command_done(self) -> None:
        """All that a command did is known: tell it to who asked for its order meanwhile."""
        while self._asking:
            asked, event = self._asking.pop(0)
            asked.session.answered(asked, event)


@dataclass
class Desk:
    """What all sessions of a node share. `now_ns` is a steady clock for the buckets, `time_ns`
    tells the time of day; `administrator` is a 20-byte wallet address, or empty for nobody."""

    port: Port
    catalog: Catalog
    feed: Feed
    pending: Pending
    domain: Domain
    administrator: bytes
    limits: m.Limits
    build: str
    now_ns: Callable[[], int]
    time_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    tariff: Tariff
    budgets: Budgets
    resume_messages: int = 0  # so many of an account's stream can be sent again
    listing: set[int] = field(default_factory=set[int])  # products being listed right now
    last_listed: int = 0  # the highest instrument number ever given out

    def next_instrument(self) -> int:
        """A number no market has; one refused listing leaves a gap, which is harmless."""
        self.last_listed = max([self.last_listed, *self.feed.mirror.markets]) + 1
        return self.last_listed


def open_desk(
    port: Port,
    catalog: Catalog,
    domain: Domain,
    *,
    administrator: bytes = b"",
    limits: m.Limits = DEFAULT_LIMITS,
    build: str = "0.1.0",
    now_ns: Callable[[], int] = time.monotonic_ns,
    time_ns: Callable[[], int] = time.time_ns,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> Desk:
    """Put pending answers, feed and port together. Before the port starts, so that the feed
    hears the journal's events first."""
    pending = Pending()
    feed = Feed(port, catalog, pending.answer, pending.command_done)
    return Desk(
        port=port,
        catalog=catalog,
        feed=feed,
        pending=pending,
        domain=domain,
        administrator=administrator,
        limits=limits,
        build=build,
        now_ns=now_ns,
        time_ns=time_ns,
        random_bytes=random_bytes,
        tariff=Tariff(limits),
        budgets=Budgets(limits, now_ns),
    )


class Session:
    """Give it every frame's payload in order; `send` is the hub's way in. `address` is the peer's
    IP address, if there is one."""

    def __init__(
        self, desk: Desk, outbox: Outbox, codec: Codec = wire.JSON, address: str = ""
    ) -> None:
        self.codec: Final = codec
        self._desk = desk
        self._outbox = outbox
        self._challenge = Challenge(desk.domain, desk.random_bytes)
        self._budget = desk.budgets.of_connection()
        of_address = desk.budgets.of_address(address)
        self._shared = [of_address] if of_address else []
        self._budgets = [self._budget, *self._shared]
        self._directly: Final[Told] = self._say  # one object, to be known again
        self._told = self._directly  # to whom the reply to the running request goes
        self._is_open = True
        self._topics: set[Topic] = set()
        self.wallet = b""  # 20 bytes once logged in
        self.number = 0  # which of its account's sessions; the client's own choice

    # --- the server's side ---------------------------------------------------------------------
    def open(self) -> None:
        desk = self._desk
        ready = desk.port.ready()
        all_taken = ready.has_room and ready.journal_space != "too_low"
        self._say(
            m.Hello(
                version=m.PROTOCOL_VERSION,
                nonce=self._challenge.nonce,
                time_us=translate.time_us(desk.time_ns()),
                chain_id=desk.domain.chain_id,
                vault=address_text(desk.domain.vault),
                price_tick=PRICE_TICK,
                qty_lot=QTY_LOT,
                build=desk.build,
                limits=desk.limits,
                subprotocol=self.codec.subprotocol,
                channels=desk.feed.channels,
                resume_messages=desk.resume_messages,
                taking="nothing" if ready.stopped else "everything" if all_taken else "cancels",
                stopped=ready.stopped,
            )
        )

    def receive(self, frame: bytes | str) -> None:
        """One frame's payload; never raises, whatever is in it."""
        try:
            request = self.codec.decode(frame)
        except BadRequest as bad:
            request_id = self.codec.request_id(frame)
            if not self._is_limited(request_id, 1, 0):
                self._refuse(request_id, bad)
            return
        requests, cancels = self._desk.tariff.of(request)
        if self._is_limited(request.id, requests, cancels):
            return
        try:
            self._handle(request)
        except BadRequest as bad:
            self._refuse(request.id, bad)

    def send(self, frames: bytes) -> None:
        self._outbox.push(frames)

    def heartbeat(self) -> None:
        now_us = translate.time_us(self._desk.time_ns())
        self._say(self._desk.feed.heartbeat(now_us, self._account()))

    def close(self) -> None:
        """The connection is gone. Commands in flight go on; their replies are dropped."""
        self._outbox.close()
        for topic in self._topics:
            self._desk.feed.unsubscribe(self, topic)
        self._topics.clear()
        if self._is_open:
            for budget in self._shared:
                self._desk.budgets.leave(budget)
        self._is_open = False

    # --- replies -------------------------------------------------------------------------------
    def _say(self, message: m.ServerMessage) -> None:
        """A frame of its own, now."""
        self._outbox.push(self.codec.encode(message))

    def _reply(self, message: m.ServerMessage) -> None:
        """The running request's one reply."""
        self._told(message)

    def _ack(self, ack: m.Ack) -> None:
        if self._told is self._directly:
            self._tell_budgets(ack)
        self._told(ack)

    def _tell_budgets(self, ack: m.Ack | m.BatchAck) -> None:
        now_ns = self._desk.now_ns()
        ack.budget = self._budget.left(now_ns)
        for budget in self._shared:
            if not budget.is_scarce(now_ns):
                continue
            if budget.scope == "account":
                ack.account_budget = budget.left(now_ns)
            else:
                ack.address_budget = budget.left(now_ns)

    def _refuse(self, request_id: int, bad: BadRequest) -> None:
        reject = wire.reject_message(request_id, bad.reject, bad.field, bad.detail)
        if isinstance(bad, LoginRefused):
            reject.digest, reject.recovered = bad.digest, bad.recovered
        if isinstance(bad, LoginRefused) or bad.reject is Reject.NONCE_REPLAYED:
            reject.nonce = self._challenge.nonce
        self._reply(reject)

    def _is_limited(self, request_id: int, requests: int, cancels: int) -> bool:
        short = spend(self._budgets, requests, cancels, self._desk.now_ns())
        if short is None:
            return False
        limited = Reject.RATE_LIMITED
        self._say(
            wire.reject_message(request_id, limited, retry_ms=short.retry_ms, scope=short.scope)
        )
        return True

    # --- requests ------------------------------------------------------------------------------
    def _handle(self, request: m.ClientMessage) -> None:
        """Every request comes through here, and so does every item of a batch: whether it may is
        to be asked here."""
        self._HANDLERS[type(request)](self, request)

    def _do(self, request: m.ClientMessage, told: Told) -> None:
        """Part of a request: its reply goes there, now or when it is known."""
        before, self._told = self._told, told
        try:
            self._handle(request)
        except BadRequest as bad:
            self._refuse(request.id, bad)
        finally:
            self._told = before

    def _batch(self, request: m.Batch) -> None:
        if levels_in(request.items) > m.QUOTE_LEVELS_MAX:
            raise BadRequest(Reject.TOO_MANY_LEGS, "items")
        gathering = Gathering(len(request.items), partial(self._tell_batch, request.id))
        for index, item in enumerate(request.items):
            told = gathering.part(index)
            if gathering.is_busy:
                told(_busy(item))
            else:
                self._do(item, told)

    def _tell_batch(self, request_id: int, results: list[ItemReply]) -> None:
        ack = m.BatchAck(request_id, results)
        self._tell_budgets(ack)
        self._say(ack)

    def _replace(self, request: m.Replace) -> None:
        account = self._trader()
        if bool(request.old_order_id) == bool(request.old_client_id):
            raise BadRequest(Reject.INVALID_FIELD, "old_order_id", "give exactly one of the ids")
        market = self._desk.feed.market(request.market)
        # All that may be wrong with it is to be said before anything is cancelled.
        command = translate.new_order(request, account, market.instrument, self.number)
        place = partial(self._place, request, command, market.ticker, self._told)
        if request.client_id and self._desk.port.is_used(account, request.client_id):
            place(None)  # it is there already, or its id is another's: nothing is to be cancelled
            return
        cancel = m.Cancel(request.id, request.old_order_id, request.old_client_id)
        self._do(cancel, place)

    def _place(
        self,
        request: m.Replace,
        command: Command,
        market: str,
        told: Told,
        cancelled: m.ServerMessage | None,
    ) -> None:
        """The second half of a replace: what became of the order that was to go is known."""
        if isinstance(cancelled, m.Reject):
            told(cancelled)
            return
        assert cancelled is None or isinstance(cancelled, m.Ack)
        if not self._is_open:
            return  # who is cut off must not have an order placed afterwards

        def replaced(order: m.ServerMessage) -> None:
            assert isinstance(order, m.Ack | m.Reject)
            refused = cancelled is None and isinstance(order, m.Reject)
            told(order if refused else m.ReplaceAck(request.id, order, cancelled))

        before, self._told = self._told, replaced
        self._submit(request, command, market)
        self._told = before

    def _ping(self, request: m.Ping) -> None:
        received_us = translate.time_us(self._desk.time_ns())
        now_us = translate.time_us(self._desk.time_ns())
        self._reply(m.Pong(request.id, now_us, request.sent_us, received_us))

    def _capacity(self, request: m.Capacity) -> None:
        market = self._desk.feed.market(request.market)
        command = translate.capacity(request, self._trader(), market.instrument)
        self._submit(request, command, market.ticker)

    def _withdraw(self, request: m.Withdraw) -> None:
        self._submit(request, translate.withdraw(request, self._trader()))

    def _login(self, request: m.Login) -> None:
        if self.wallet:
            raise BadRequest(Reject.ALREADY_LOGGED_IN)
        self.wallet = self._challenge.verify(request)
        self.number = request.session
        of_account = self._desk.budgets.of_account(self.wallet)
        if of_account:
            self._shared.append(of_account)
            self._budgets.append(of_account)
        self._ack(m.Ack(request.id, account=self._account(), wallet=address_text(self.wallet)))

    def _account(self) -> int:
        # Looked up each time: the first deposit may come after the login.
        return self._desk.feed.account_of(self.wallet) if self.wallet else 0

    def _trader(self) -> int:
        if not self.wallet:
            raise BadRequest(Reject.NOT_LOGGED_IN)
        account = self._desk.feed.mirror.account_of.get(self.wallet, 0)
        if not account:
            raise BadRequest(Reject.NO_ACCOUNT)
        return account

    def _submit(
        self,
        request: m.ClientMessage,
        command: Command,
        market: str = "",
        parts: Sequence[Command] = (),
    ) -> bool:
        """Sequence a command; its answer comes later. False if it was refused, which is told."""
        try:
            sequenced = self._desk.port.submit(command, parts)
        except Refused as refused:
            retry_ms = RETRY_MS.get(refused.reject, 0)
            self._reply(wire.reject_message(request.id, refused.reject, retry_ms=retry_ms))
            return False
        if sequenced.duplicate and sequenced.answer is None and not self._desk.pending.has_room:
            self._reply(_busy(request))  # of the repeated request nothing was sequenced
            return False
        client_id = command.client_id if type(request) in _NAMED else 0
        asked = Asked(self, request, self._told, market, sequenced.duplicate, False, client_id)
        if sequenced.answer is not None:
            self.answered(asked, sequenced.answer)
        else:
            if OWN_COMMANDS in self._topics:
                self._say(m.Sequenced(request.id, sequenced.sequence, client_id))
            self._desk.pending.wait(sequenced.sequence, asked, command.account)
        return True

    def answered(self, asked: Asked, event: Event) -> None:
        """The terminal event of a request's command is here. Called by `Pending`."""
        if asked.awaits_order:
            self._order_known(asked, event)
            return
        request, told = asked.request, asked.told
        if event.kind == _REJECTED:
            reject, detail = Reject(event.reason), ""
            if reject is Reject.UNKNOWN_ORDER and isinstance(request, m.Cancel | m.Amend):
                detail = self._fate(request)
            told(wire.reject_message(request.id, reject, detail=detail))
        else:
            ack = translate.ack_of(request.id, event, asked.market)
            if asked.dup:
                ack.dup = True
            if told is self._directly:
                self._tell_budgets(ack)
            told(ack)
        if isinstance(request, m.Market) and request.action == "list":
            self._desk.listing.discard(self._desk.catalog.parse(request.market))

    def _order_known(self, asked: Asked, event: Event) -> None:
        """The order that a request is about has its number now, or never will."""
        request = asked.request
        assert isinstance(request, m.Cancel | m.Amend | m.Query)
        before, self._told = self._told, asked.told
        try:
            if event.kind != EventKind.ACCEPTED:
                self._reply(wire.reject_message(request.id, Reject.UNKNOWN_ORDER))
            elif isinstance(request, m.Query):
                self._tell_order(request.id, event.account, event.order_id)
            else:
                self._change_now(request, event.account, event.order_id)
        except BadRequest as bad:
            self._refuse(request.id, bad)
        finally:
            self._told = before

    # --- orders --------------------------------------------------------------------------------
    def _new(self, request: m.New) -> None:
        account = self._trader()
        feed = self._desk.feed
        market = feed.mirror.market_named(request.market) or feed.market(request.market)
        command = translate.new_order(request, account, market.instrument, self.number)
        self._submit(request, command, market.ticker)

    def _several(self, request: m.Quote | m.Block | m.Exclusive | m.Basket) -> None:
        """An order of several records."""
        account, feed, ticker = self._trader(), self._desk.feed, ""
        match request:
            case m.Quote():
                market = feed.market(request.market)
                ticker = market.ticker
                several = translate.quote(request, account, market.instrument, self.number)
            case m.Block():
                hours = feed.hours_from(request.market, request.hours)
                several = translate.block(request, account, hours, self.number)
            case m.Exclusive():
                chosen = [
                    (instrument, leg)
                    for leg in request.legs
                    for instrument in feed.alternatives(leg.market, request.or_better)
                ]
                kind = CommandKind.EXCLUSIVE
                several = translate.legs(kind, chosen, account, request.client_id, self.number)
            case m.Basket():
                chosen = [(feed.market(leg.market).instrument, leg) for leg in request.legs]
                kind = CommandKind.BASKET
                several = translate.legs(kind, chosen, account, request.client_id, self.number)
        self._submit(request, several.head, ticker, several.parts)

    def _change(self, request: m.Cancel | m.Amend) -> None:
        """Cancel or amend an order, which may still be on its way to the engine."""
        account = self._trader()
        order_id = request.order_id
        _check_names_one(request)
        if not order_id:
            sequence = self._desk.pending.sequence_of(account, request.client_id)
            if sequence:
                self._wait_for_order(request, sequence)
                return
            found = self._desk.feed.account(account).by_client_id.get(request.client_id)
            if found is None:
                raise BadRequest(Reject.UNKNOWN_ORDER, "client_id", self._fate(request))
            order_id = found.order_id
        self._change_now(request, account, order_id)

    def _wait_for_order(self, request: m.Cancel | m.Amend | m.Query, sequence: int) -> None:
        """Its order has no id yet. Saying "unknown" now would be false a moment later."""
        if self._desk.pending.has_room:
            asked = Asked(self, request, self._told, awaits_order=True)
            self._desk.pending.wait(sequence, asked)
        else:
            self._reply(_busy(request))

    def _change_now(self, request: m.Cancel | m.Amend, account: int, order_id: int) -> None:
        order = self._desk.feed.account(account).orders.get(order_id)
        market = self._desk.feed.mirror.markets[order.instrument].ticker if order else ""
        if isinstance(request, m.Cancel):
            command = translate.cancel(account, order_id)
        else:
            command = translate.amend(request, account, order_id)
        self._submit(request, command, market)

    def _fate(self, request: m.Cancel | m.Amend) -> str:
        """What became of an order that cannot be changed any more, in words."""
        account = self._desk.feed.account(self._account())
        order = account.find(request.order_id, request.client_id)
        return "" if order is None or order.state == "open" else f"it is {order.state}"

    def _cancel_all(self, request: m.CancelAll) -> None:
        account = self._trader()
        instrument, ticker = ALL_INSTRUMENTS, ""
        if request.market:
            market = self._desk.feed.market(request.market)
            instrument, ticker = market.instrument, market.ticker
        command = translate.cancel_all(account, instrument, request.side, request.session)
        self._submit(request, command, ticker)

    # --- reading -------------------------------------------------------------------------------
    def _query_order(self, request: m.Query) -> None:
        account = self._trader()
        _check_names_one(request)
        sequence = self._desk.pending.sequence_of(account, request.client_id)
        if sequence:
            self._wait_for_order(request, sequence)
        else:
            self._tell_order(request.id, account, request.order_id, request.client_id)

    def _tell_order(self, request_id: int, account: int, order_id: int, client_id: int = 0) -> None:
        found = self._desk.feed.account(account).find(order_id, client_id)
        if found is None:
            self._reply(wire.reject_message(request_id, Reject.UNKNOWN_ORDER))
        else:
            self._ack(m.Ack(request_id, order=self._desk.feed.mirror.order_info(found)))

    def _query(self, request: m.Query) -> None:
        feed = self._desk.feed
        ack = m.Ack(request.id)
        match request.what:
            case "markets":
                ack.markets = feed.market_infos()
            case "balances":
                ack.balances = feed.balances(self._trader())
            case "orders":
                account = self._trader()
                named = feed.market(request.market).instrument if request.market else EVERY_MARKET
                ack.orders = feed.open_orders(account, named)
            case "order":
                self._query_order(request)
                return
        self._ack(ack)

    def _topic(self, request: m.Subscribe | m.Unsubscribe) -> Topic:
        account = self._trader() if request.channel == "account" else 0
        return self._desk.feed.topic(request.channel, request.market, account)

    def _subscribe(self, request: m.Subscribe) -> None:
        topic = self._topic(request)
        full = len(self._topics) >= self._desk.limits.subscriptions
        if full and topic not in self._topics:
            raise BadRequest(Reject.TOO_MANY_SUBSCRIPTIONS)
        self._topics.add(topic)
        first: Iterable[m.ServerMessage] = self._desk.feed.subscribe(self, topic)
        self._ack(m.Ack(request.id, market=request.market))
        for message in first:
            self._say(message)

    def _unsubscribe(self, request: m.Unsubscribe) -> None:
        topic = self._topic(request)
        self._desk.feed.unsubscribe(self, topic)
        self._topics.discard(topic)
        self._ack(m.Ack(request.id, market=request.market))

    # --- administration ------------------------------------------------------------------------
    def _require_administrator(self) -> None:
        if not self._desk.administrator or self.wallet != self._desk.administrator:
            raise BadRequest(Reject.NOT_ADMINISTRATOR)

    def _set_fee_tier(self, request: m.FeeTier) -> None:
        self._require_administrator()
        account = self._desk.feed.account_of(bytes_of(request.wallet, ADDRESS_BYTES, "wallet"))
        if not account:
            raise BadRequest(Reject.NO_ACCOUNT, "wallet")
        self._submit(request, translate.set_fee_tier(account, request.tier))

    def _administer(self, request: m.Market) -> None:
        self._require_administrator()
        desk = self._desk
        if request.action != "list":
            market = desk.feed.market(request.market)
            command = translate.change_market(request, market.instrument)
            self._submit(request, command, market.ticker)
            return
        try:
            product = desk.catalog.parse(request.market)
        except CatalogError as error:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market", str(error)) from error
        if product in desk.listing or desk.feed.mirror.market_named(request.market):
            raise BadRequest(Reject.ALREADY_LISTED, "market")
        bond, lot = desk.catalog.bond_usdc6_per_lot(product), desk.catalog.lot_multiple(product)
        command = translate.list_market(request, desk.next_instrument(), product, bond, lot)
        if self._submit(request, command, desk.catalog.ticker(product)):
            desk.listing.add(product)

    # By the message's own type, so that the many orders do not wait behind questions for others.
    _HANDLERS: ClassVar[dict[type[m.ClientMessage], Callable[["Session", Any], None]]] = {
        m.New: _new,
        m.Cancel: _change,
        m.Amend: _change,
        m.Replace: _replace,
        m.Batch: _batch,
        m.Quote: _several,
        m.Block: _several,
        m.Exclusive: _several,
        m.Basket: _several,
        m.CancelAll: _cancel_all,
        m.Capacity: _capacity,
        m.Withdraw: _withdraw,
        m.Query: _query,
        m.Subscribe: _subscribe,
        m.Unsubscribe: _unsubscribe,
        m.Login: _login,
        m.Market: _administer,
        m.FeeTier: _set_fee_tier,
        m.Ping: _ping,
    }
    assert set(_HANDLERS) == set(get_args(m.ClientMessage)), "every request is handled"


def _check_names_one(request: m.Cancel | m.Amend | m.Query) -> None:
    """Raises BadRequest unless the order is named by exactly one of its ids."""
    if bool(request.order_id) == bool(request.client_id):
        raise BadRequest(Reject.INVALID_FIELD, "order_id", "give exactly one of the ids")


def _busy(request: m.ClientMessage) -> m.Reject:
    return wire.reject_message(request.id, Reject.BUSY, retry_ms=RETRY_MS[Reject.BUSY])
