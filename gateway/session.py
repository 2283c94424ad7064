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
from typing import Final, NamedTuple

from compex_client import messages as m
from compex_client.units import PRICE_TICK, QTY_LOT
from compex_client.wallet import ADDRESS_BYTES, Domain, address_text

from engine.catalog import Catalog
from engine.port import Port
from engine.records import ALL_INSTRUMENTS, Command, CommandKind, Event, EventKind
from engine.rejects import CatalogError, Refused, Reject
from gateway import translate, wire
from gateway.auth import Challenge, LoginRefused, bytes_of
from gateway.feed import OWN_COMMANDS, Feed
from gateway.hub import EVERY_MARKET, Topic
from gateway.limits import (
    DEFAULT_LIMITS,
    PENDING_REPEATS_MAX,
    RETRY_MS,
    Outbox,
    TokenBucket,
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


# Requests that a client id makes safe to repeat.
_NAMED: Final = (m.New, m.Withdraw, m.Quote, m.Block, m.Exclusive, m.Basket)


class Asked(NamedTuple):
    """A request waiting for the engine's terminal event: of the command it became or, if it is
    about an order that has no number yet, of that order's."""

    session: "Session"
    request: m.ClientMessage
    market: str = ""  # ticker, for the ack
    dup: bool = False
    awaits_order: bool = False


class Pending:
    """Who waits for which command: {sequence: requests, the one that caused it first}.

    Those that caused one are as many as the engine takes before it says BUSY; the others are
    counted here, and none may wait while there is no room.
    """

    def __init__(self) -> None:
        self._repeats = 0
        self._asked: dict[int, list[Asked]] = {}
        self._sequence_of: dict[tuple[int, int], int] = {}  # (account, client id) in flight
        self._asking: list[tuple[Asked, Event]] = []  # for an order, in the running command

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def has_room(self) -> bool:
        """For a request that waits for a command which another one caused."""
        return self._repeats < PENDING_REPEATS_MAX

    def wait(self, sequence: int, asked: Asked, account: int = 0, client_id: int = 0) -> None:
        waiting = self._asked.setdefault(sequence, [])
        self._repeats += bool(waiting)
        waiting.append(asked)
        if client_id:
            self._sequence_of[account, client_id] = sequence

    def sequence_of(self, account: int, client_id: int) -> int:
        """The command in flight that has this client id; 0 if there is none."""
        return self._sequence_of.get((account, client_id), 0)

    def answer(self, event: Event) -> None:
        """Reply to whoever waits for the command, if the event is its terminal one."""
        waiting = self._asked.get(event.sequence)
        if waiting is None or event.kind in _NEVER_TERMINAL:
            return
        first = waiting[0].request
        if event.kind == EventKind.CANCELLED and not isinstance(first, m.Cancel):
            return
        del self._asked[event.sequence]
        self._repeats -= len(waiting) - 1
        if isinstance(first, _NAMED):
            self._sequence_of.pop((event.account, first.client_id), None)
        for asked in waiting:
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
    )


class Session:
    """Give it every frame's payload in order; `send` is the hub's way in."""

    def __init__(self, desk: Desk, outbox: Outbox, codec: Codec = wire.JSON) -> None:
        limits = desk.limits
        self.codec: Final = codec
        self._desk = desk
        self._outbox = outbox
        self._challenge = Challenge(desk.domain, desk.random_bytes)
        self._requests = TokenBucket(limits.requests_per_s, limits.requests_burst, desk.now_ns)
        self._cancels = TokenBucket(limits.cancels_per_s, limits.cancels_burst, desk.now_ns)
        self._topics: set[Topic] = set()
        self.wallet = b""  # 20 bytes once logged in
        self.number = 0  # which of its account's sessions; the client's own choice

    # --- the server's side ---------------------------------------------------------------------
    def open(self) -> None:
        desk = self._desk
        self._reply(
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
            )
        )

    def receive(self, frame: bytes | str) -> None:
        """One frame's payload; never raises, whatever is in it."""
        try:
            request = self.codec.decode(frame)
        except BadRequest as bad:
            request_id = self.codec.request_id(frame)
            if not self._is_limited(request_id, self._requests):
                self._refuse(request_id, bad)
            return
        cancels = isinstance(request, m.Cancel | m.CancelAll)
        if self._is_limited(request.id, self._cancels if cancels else self._requests):
            return
        try:
            self._handle(request)
        except BadRequest as bad:
            self._refuse(request.id, bad)

    def send(self, frames: bytes) -> None:
        self._outbox.push(frames)

    def heartbeat(self) -> None:
        now_us = translate.time_us(self._desk.time_ns())
        self._reply(self._desk.feed.heartbeat(now_us, self._account()))

    def close(self) -> None:
        """The connection is gone. Commands in flight go on; their replies are dropped."""
        self._outbox.close()
        for topic in self._topics:
            self._desk.feed.unsubscribe(self, topic)
        self._topics.clear()

    # --- replies -------------------------------------------------------------------------------
    def _reply(self, message: m.ServerMessage) -> None:
        self._outbox.push(self.codec.encode(message))

    def _ack(self, ack: m.Ack) -> None:
        ack.budget = (self._requests.left, self._cancels.left)
        self._reply(ack)

    def _refuse(self, request_id: int, bad: BadRequest) -> None:
        reject = wire.reject_message(request_id, bad.reject, bad.field, bad.detail)
        if isinstance(bad, LoginRefused):
            reject.digest, reject.recovered = bad.digest, bad.recovered
        if isinstance(bad, LoginRefused) or bad.reject is Reject.NONCE_REPLAYED:
            reject.nonce = self._challenge.nonce
        self._reply(reject)

    def _is_limited(self, request_id: int, bucket: TokenBucket) -> bool:
        retry_ms = bucket.take()
        if retry_ms:
            self._reply(wire.reject_message(request_id, Reject.RATE_LIMITED, retry_ms=retry_ms))
        return retry_ms > 0

    # --- requests ------------------------------------------------------------------------------
    def _handle(self, request: m.ClientMessage) -> None:
        match request:
            case m.New():
                self._new(request)
            case m.Cancel() | m.Amend():
                self._change(request)
            case m.Quote() | m.Block() | m.Exclusive() | m.Basket():
                self._several(request)
            case m.CancelAll():
                self._cancel_all(request)
            case m.Capacity():
                market = self._desk.feed.market(request.market)
                command = translate.capacity(request, self._trader(), market.instrument)
                self._submit(request, command, market.ticker)
            case m.Withdraw():
                self._submit(request, translate.withdraw(request, self._trader()))
            case m.Query():
                self._query(request)
            case m.Subscribe():
                self._subscribe(request)
            case m.Unsubscribe():
                self._unsubscribe(request)
            case m.Login():
                self._login(request)
            case m.Market():
                self._administer(request)
            case m.FeeTier():
                self._set_fee_tier(request)
            case m.Ping():
                self._reply(m.Pong(request.id, translate.time_us(self._desk.time_ns())))

    def _login(self, request: m.Login) -> None:
        if self.wallet:
            raise BadRequest(Reject.ALREADY_LOGGED_IN)
        self.wallet = self._challenge.verify(request)
        self.number = request.session
        self._ack(m.Ack(request.id, account=self._account(), wallet=address_text(self.wallet)))

    def _account(self) -> int:
        # Looked up each time: the first deposit may come after the login.
        return self._desk.feed.account_of(self.wallet) if self.wallet else 0

    def _trader(self) -> int:
        if not self.wallet:
            raise BadRequest(Reject.NOT_LOGGED_IN)
        account = self._account()
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
            self._busy(request)  # of the repeated request nothing was sequenced
            return False
        asked = Asked(self, request, market, sequenced.duplicate)
        if sequenced.answer is not None:
            self.answered(asked, sequenced.answer)
        else:
            client_id = command.client_id if isinstance(request, _NAMED) else 0
            if OWN_COMMANDS in self._topics:
                self._reply(m.Sequenced(request.id, sequenced.sequence, client_id))
            self._desk.pending.wait(sequenced.sequence, asked, command.account, client_id)
        return True

    def _busy(self, request: m.ClientMessage) -> None:
        retry_ms = RETRY_MS[Reject.BUSY]
        self._reply(wire.reject_message(request.id, Reject.BUSY, retry_ms=retry_ms))

    def answered(self, asked: Asked, event: Event) -> None:
        """The terminal event of a request's command is here. Called by `Pending`."""
        request = asked.request
        if asked.awaits_order:
            assert isinstance(request, m.Cancel | m.Amend | m.Query)
            if event.kind != EventKind.ACCEPTED:
                self._reply(wire.reject_message(request.id, Reject.UNKNOWN_ORDER))
            elif isinstance(request, m.Query):
                self._tell_order(request.id, event.account, event.order_id)
            else:
                self._change_now(request, event.account, event.order_id)
        elif event.kind == EventKind.REJECTED:
            reject, detail = Reject(event.reason), ""
            if reject is Reject.UNKNOWN_ORDER and isinstance(request, m.Cancel | m.Amend):
                detail = self._fate(request)
            self._reply(wire.reject_message(request.id, reject, detail=detail))
        else:
            ack = translate.ack_of(request.id, event, asked.market)
            ack.dup = asked.dup
            self._ack(ack)
        if isinstance(request, m.Market) and request.action == "list":
            self._desk.listing.discard(self._desk.catalog.parse(request.market))

    # --- orders --------------------------------------------------------------------------------
    def _new(self, request: m.New) -> None:
        account = self._trader()
        market = self._desk.feed.market(request.market)
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
            self._desk.pending.wait(sequence, Asked(self, request, awaits_order=True))
        else:
            self._busy(request)

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
            self._reply(message)

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


def _check_names_one(request: m.Cancel | m.Amend | m.Query) -> None:
    """Raises BadRequest unless the order is named by exactly one of its ids."""
    if bool(request.order_id) == bool(request.client_id):
        raise BadRequest(Reject.INVALID_FIELD, "order_id", "give exactly one of the ids")
