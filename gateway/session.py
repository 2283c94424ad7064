"""One connection's conversation, without I/O: payloads go in by `receive`, whole frames come out
of the outbox.

Invariant: every request gets exactly one reply with its id, now or when the engine answers; a
refused one changed nothing. The server makes a session for each connection; the engine's answers
come through `Pending`, which the feed drives.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, get_args

import msgspec
from compex_client import messages as m
from compex_client.units import PRICE_TICK, QTY_LOT
from compex_client.wallet import (
    ADDRESS_BYTES,
    SIGNATURE_BYTES,
    Domain,
    SessionKey,
    address_text,
)

from engine.catalog import Catalog
from engine.port import Port
from engine.records import ALL_INSTRUMENTS, PARTS_MAX, Command, CommandKind, Event, EventKind
from engine.rejects import WORDS, CatalogError, Refused, Reject
from gateway import listing, translate, wire
from gateway.absence import DEAD_MAN, DISCONNECT, Absence, Place
from gateway.audit import Audit
from gateway.auth import Identity, LoginRefused, SignatureRefused, bytes_of
from gateway.build import build_name
from gateway.bulk import Gathering, ItemReply, Told, levels_in
from gateway.counts import Counts
from gateway.facts import FILL, LEASE
from gateway.feed import OWN_COMMANDS, Feed
from gateway.history import History
from gateway.history_file import ArmedRow
from gateway.hub import EVERY_MARKET, Topic
from gateway.keys import Keys
from gateway.limits import (
    DEFAULT_LIMITS,
    NS_PER_S,
    PENDING_REPEATS_MAX,
    RETRY_MS,
    AddressBuckets,
    Budgets,
    Outbox,
    Tariff,
    owe,
    records_in,
    spend,
)
from gateway.mirror import CLOSED_ORDERS_KEPT
from gateway.signing import Authorised, Handed, Listed, Outcome, Signatures, Signing
from gateway.tokens import Tokens
from gateway.wire import BadRequest, Codec

BUILD: Final = build_name()  # of what runs, as it says in `hello`
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

log = logging.getLogger("compex.session")
_CLOSE_OF: Final = {
    Reject.KEY_NOT_AUTHORISED: m.CloseCode.KEY_REVOKED,
    Reject.KEY_REVOKED: m.CloseCode.KEY_REVOKED,
    Reject.KEY_EXPIRED: m.CloseCode.KEY_EXPIRED,
}
CLEAN_CLOSE: Final = 1000  # what a client says that leaves of its own accord
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
    keys: Keys
    audit: Audit | None  # None: nothing is kept
    logins: AddressBuckets
    tokens: Tokens
    counts: Counts
    tariff: Tariff
    budgets: Budgets
    history: History
    absence: Absence
    signing: Signing | None  # None: orders are settled without signatures
    listed_ahead_s: int  # as in `listing`
    listing: set[int] = field(default_factory=set[int])  # products being listed right now
    closing: m.Closing | None = None  # told to everybody: no request is taken any more
    last_listed: int = 0  # the highest instrument number ever given out

    def begin(self) -> None:
        """Sessions may come: what was armed before the start runs from now on."""
        self.history.start()
        self.absence.start()
        if self.signing is not None:
            self.signing.start()

    @property
    def owes_replies(self) -> bool:
        """Whether requests that were taken wait for something else than the engine."""
        owed = (self.history, self.keys, self.signing)
        return any(each.owes_replies for each in owed if each is not None)

    async def close(self) -> None:
        """After the port: what it published last is kept, too."""
        await self.absence.close()
        if self.signing is not None:
            await self.signing.close()
        await self.history.close()

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
    build: str = BUILD,
    now_ns: Callable[[], int] = time.monotonic_ns,
    time_ns: Callable[[], int] = time.time_ns,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    keys: Keys | None = None,
    audit: Audit | None = None,
    history: History | None = None,
    signatures: Signatures | None = None,
    sign_within_ms: int = 0,
    listed_ahead_s: int = 0,
) -> Desk:
    """Put pending answers, feed, history and port together. Before the port starts, so that they
    hear the journal's events first. Without `keys` they are kept in memory alone; so are private
    streams without a history. `sign_within_ms` is as in `messages.Signing`, `listed_ahead_s` as in
    `listing.list_market`."""
    pending = Pending()
    history = History() if history is None else history
    keys = Keys() if keys is None else keys
    absence = Absence(port, history, now_ns)

    def answer(event: Event) -> None:
        pending.answer(event)
        absence.answer(event)
        if signing is not None:
            signing.hear(event)

    def command_done() -> None:
        if signing is not None:
            signing.command_done()
        pending.command_done()

    feed = Feed(port, catalog, answer, command_done, history)
    signing = None
    if signatures is not None:
        signing = Signing(signatures, port, feed.mirror, sign_within_ms, now_ns)
    port.subscribe(history.on_batch, history.has_room, heard=history.heard)  # behind the feed
    counts = Counts(now_ns, feed.sent)
    port.when_committed(counts.group)
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
        keys=keys,
        audit=audit,
        logins=AddressBuckets(limits.logins_per_s, limits.logins_burst, now_ns),
        tokens=Tokens(time_ns, random_bytes, keys),
        counts=counts,
        tariff=Tariff(limits),
        budgets=Budgets(limits, now_ns),
        history=history,
        absence=absence,
        signing=signing,
        listed_ahead_s=listed_ahead_s,
    )


class Session:
    """Give it every frame's payload in order; `send` is the hub's way in. `address` is the peer's
    IP address, if there is one; `hang_up` closes the connection behind what it was told last."""

    def __init__(
        self,
        desk: Desk,
        outbox: Outbox,
        codec: Codec = wire.JSON,
        address: str = "",
        hang_up: Callable[[m.CloseCode, str], None] = lambda _code, _why: None,
    ) -> None:
        self.codec: Final = codec
        self._desk = desk
        self._outbox = outbox
        self._address = address
        self._hang_up = hang_up
        self._who = Identity(desk.domain, desk.keys, desk.random_bytes, desk.time_ns)
        self._ended = False  # by its session key's end: nothing more is done
        self._audited: dict[int, m.ClientMessage] = {}  # whose outcome is to be logged
        self._has_tried = False  # to administer, without being the administrator
        self._budget = desk.budgets.of_connection()
        of_address = desk.budgets.of_address(address)
        self._shared = [of_address] if of_address else []
        self._budgets = [self._budget, *self._shared]
        self._directly: Final[Told] = self._say  # one object, to be known again
        self._told = self._directly  # to whom the reply to the running request goes
        self._is_open = True
        self._topics: set[Topic] = set()
        self.number = 0  # which of its account's sessions; the client's own choice

    @property
    def wallet(self) -> bytes:
        """Whose account this is: 20 bytes once logged in."""
        return self._who.wallet

    # --- the server's side ---------------------------------------------------------------------
    def open(self) -> None:
        desk = self._desk
        ready = desk.port.ready()
        all_taken = ready.has_room and ready.journal_space != "too_low"
        self._say(
            m.Hello(
                version=m.PROTOCOL_VERSION,
                nonce=self._who.challenge.nonce,
                time_us=translate.time_us(desk.time_ns()),
                chain_id=desk.domain.chain_id,
                vault=address_text(desk.domain.vault),
                price_tick=PRICE_TICK,
                qty_lot=QTY_LOT,
                build=desk.build,
                limits=desk.limits,
                subprotocol=self.codec.subprotocol,
                channels=desk.feed.channels,
                resume_messages=desk.history.messages_kept,
                taking="nothing" if ready.stopped else "everything" if all_taken else "cancels",
                stopped=ready.stopped,
                signing=desk.signing.terms if desk.signing is not None else None,
            )
        )

    def receive(self, frame: bytes | str) -> None:
        """One frame's payload; never raises, whatever is in it. Of what came behind the frame whose
        answer was too much for the outbox, nothing is done."""
        if self._ended or not self._outbox.is_open:
            return
        counts = self._desk.counts
        begin_ns = counts.begins()
        try:
            request = self.codec.decode(frame)
        except BadRequest as bad:
            request_id = self.codec.request_id(frame)
            if not self._is_limited(request_id, 1, 0):
                self._refuse(request_id, bad)
            return
        counts.received[type(request)] += 1
        decoded_ns = counts.now_ns() if begin_ns else 0
        if closing := self._desk.closing:
            self._say(wire.reject_message(request.id, Reject.DRAINING, retry_ms=closing.retry_ms))
            return
        requests, cancels = self._desk.tariff.of(request)
        if self._is_limited(request.id, requests, cancels):
            return
        self._attempt(request)
        if begin_ns:
            counts.decode.took(decoded_ns - begin_ns)
            counts.sequence.took(counts.now_ns() - decoded_ns)

    def send(self, frames: bytes) -> None:
        self._outbox.push(frames)

    @property
    def has_room(self) -> bool:
        return self._outbox.has_room

    def heartbeat(self) -> None:
        try:
            self._who.terms()
        except BadRequest as over:
            self.key_ended(_CLOSE_OF[over.reject])
            return
        now_us = translate.time_us(self._desk.time_ns())
        self._say(self._desk.feed.heartbeat(now_us, self._account()))

    def close(self, code: int = 0) -> None:
        """The connection is gone; `code` is the client's, if it has closed it itself. Commands in
        flight go on; their replies are dropped."""
        self._desk.absence.left(self, clean=code == CLEAN_CLOSE)
        self._outbox.close()
        self._leave()
        if self._is_open:
            for budget in self._shared:
                self._desk.budgets.leave(budget)
        self._is_open = False

    def key_ended(self, code: m.CloseCode) -> None:
        """The session key that logged in is not in force any more: nothing more is done or told."""
        if not self._ended:
            self._ended = True
            self._leave()
            self._hang_up(code, WORDS[Reject[code.name]])

    def _leave(self) -> None:
        for topic in self._topics:
            self._desk.feed.unsubscribe(self, topic)
        self._topics.clear()
        if self._who.key:
            self._desk.keys.let_go(self._who.wallet, self._who.key, self)

    # --- replies -------------------------------------------------------------------------------
    def _say(self, message: m.ServerMessage) -> None:
        """A frame of its own, now."""
        if self._audited and isinstance(message, m.Ack | m.Reject):
            request = self._audited.pop(message.id, None)
            if request is not None:
                done = isinstance(message, m.Ack)
                self._audit(request, "done" if done else f"{message.code} {message.reason}")
        counts = self._desk.counts
        counts.sent[type(message)] += 1
        begin_ns = counts.begins()
        frame = self.codec.encode(message)
        if begin_ns:
            counts.encode.took(counts.now_ns() - begin_ns)
        self._outbox.push(frame)
        if type(message) is m.Reject:
            counts.rejects[message.code] += 1

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
        retry_ms = RETRY_MS.get(bad.reject, 0)
        reject = wire.reject_message(request_id, bad.reject, bad.field, bad.detail, retry_ms)
        if isinstance(bad, SignatureRefused):
            reject.digest, reject.recovered = bad.digest, bad.recovered
        if isinstance(bad, LoginRefused) or bad.reject is Reject.NONCE_REPLAYED:
            reject.nonce = self._who.challenge.nonce
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

    def _owe(self, records: int) -> None:
        """For so many that a request is told at once."""
        tokens = self._desk.tariff.of_told(records)
        if tokens:
            owe(self._budgets, tokens, self._desk.now_ns())

    def _audit(self, request: m.ClientMessage, outcome: str) -> bool:
        """Put a line into the audit log; False if that failed."""
        if self._desk.audit is None:
            return True
        now_us, who = translate.time_us(self._desk.time_ns()), self._who
        try:
            self._desk.audit.write(now_us, who.wallet, who.key, self._address, request, outcome)
        except OSError as error:
            log.error("the audit log lacks a line: %s", error)
            return False
        return True

    # --- requests ------------------------------------------------------------------------------
    def _handle(self, request: m.ClientMessage) -> None:
        """Every request comes through here, and so does every item of a batch."""
        if self._who.key:
            self._who.permit(request)
        self._HANDLERS[type(request)](self, request)

    def _attempt(self, request: m.ClientMessage) -> None:
        try:
            self._handle(request)
        except BadRequest as bad:
            self._refuse(request.id, bad)
            if bad.reject in _CLOSE_OF and self._who.key:
                self.key_ended(_CLOSE_OF[bad.reject])

    def _do(self, request: m.ClientMessage, told: Told) -> None:
        """Part of a request: its reply goes there, now or when it is known."""
        before, self._told = self._told, told
        try:
            self._attempt(request)
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
        for result in results:
            if type(result) is m.Reject:
                self._desk.counts.rejects[result.code] += 1

    def _replace(self, request: m.Replace) -> None:
        account = self._trader()
        if bool(request.old_order_id) == bool(request.old_client_id):
            raise BadRequest(Reject.INVALID_FIELD, "old_order_id", "give exactly one of the ids")
        market = self._desk.feed.market(request.market)
        # All that may be wrong with it is to be said before anything is cancelled.
        command = translate.new_order(request, account, market.instrument, self.number)
        if self._who.key:
            self._permit_command(command, (), 0)
        place = partial(self._place, request, command, market.ticker, self._told)
        if request.client_id and self._desk.port.is_used(account, request.client_id):
            place(None)  # it is there already, or its id is another's: nothing is to be cancelled
            return
        if self._desk.signing is not None:
            self._check_signed(command)
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
        if not self._is_open or self._ended:
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

    def _token(self, request: m.Token) -> None:
        self._trader()  # only who has an account, or tokens would be without bound
        token, until_s = self._desk.tokens.issue(self.wallet, self._who.key, request.seconds)
        self._ack(m.Ack(request.id, token=token, valid_until_s=until_s))

    def _sign(self, request: m.Login | m.Authorise | m.Revoke) -> None:
        """What a signature says. Checking one costs as much as many orders do, and each outcome is
        kept for good, so each address has only so many, signed or not; but whoever is logged in as
        itself, with an account, can always revoke its keys."""
        is_by_owner = not self._who.key and self._account()
        is_free = isinstance(request, m.Revoke) and not request.signature and is_by_owner
        retry_ms = 0 if is_free else self._desk.logins.take(self._address)
        if retry_ms:
            self._reply(wire.reject_message(request.id, Reject.RATE_LIMITED, retry_ms=retry_ms))
            return
        self._audited[request.id] = request
        match request:
            case m.Login():
                self._login(request)
            case m.Authorise():
                self._authorise(request)
            case m.Revoke():
                self._revoke(request)

    def _login(self, request: m.Login) -> None:
        who = self._who
        who.login(request)
        self.number = request.session
        of_account = self._desk.budgets.of_account(who.wallet)
        if of_account:
            self._shared.append(of_account)
            self._budgets.append(of_account)
        ack = m.Ack(request.id, account=self._account(), wallet=address_text(who.wallet))
        terms = who.terms()
        if terms is not None:
            self._desk.keys.hold(who.wallet, who.key, self)
            ack.keys = [self._key_info(terms)]
        self._ack(ack)

    def _authorise(self, request: m.Authorise) -> None:
        terms, signature = self._who.authorisation(request)
        self._check_account(terms.wallet)

        def kept(failure: Reject | None) -> None:
            self._kept(m.Ack(request.id), failure)

        self._desk.keys.authorise(terms, signature, self._desk.time_ns(), kept)

    def _revoke(self, request: m.Revoke) -> None:
        revocation = self._who.revocation(request)
        self._check_account(revocation.wallet)

        def kept(failure: Reject | None, keys: int) -> None:
            self._kept(m.Ack(request.id, count=keys), failure)

        self._desk.keys.revoke(revocation, self._desk.time_ns(), kept)

    def _check_account(self, wallet: bytes) -> None:
        """What is kept for good is kept for those who have deposited something."""
        if not self._desk.feed.account_of(wallet):
            raise BadRequest(Reject.NO_ACCOUNT, "wallet")

    def _kept(self, ack: m.Ack, failure: Reject | None) -> None:
        """An authorisation or a revocation is on the disk, or its disk failed."""
        if failure is None:
            ack.level = "durable"
            self._ack(ack)
        else:
            words = "it could not be written; a revocation holds until the node starts again"
            self._reply(wire.reject_message(ack.id, failure, detail=words))

    def _key_info(self, terms: SessionKey) -> m.KeyInfo:
        return m.KeyInfo(
            wallet=address_text(terms.wallet),
            key=address_text(terms.key),
            scopes=terms.scopes,
            markets=list(terms.markets),
            valid_from_s=terms.valid_from_s,
            valid_until_s=terms.valid_until_s,
            nonce=terms.nonce,
            account=self._desk.feed.account_of(terms.wallet),
        )

    def _account(self) -> int:
        # Looked up each time: the first deposit may come after the login.
        return self._desk.feed.account_of(self.wallet) if self.wallet else 0

    def _check_login(self) -> None:
        if not self.wallet:
            raise BadRequest(Reject.NOT_LOGGED_IN)

    def _trader(self) -> int:
        self._check_login()
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
        of_order: int = 0,
    ) -> bool:
        """Sequence a command; its answer comes later. False if it was refused, which is told.
        `of_order` is the instrument of the order that a command names, if it names one."""
        try:
            if self._who.key:
                self._permit_command(command, parts, of_order)
            if self._desk.signing is not None:
                self._check_signed(command)
            sequenced = self._desk.port.submit(command, parts)
        except BadRequest as bad:  # told, not raised: an engine's answer may have brought us here
            self._refuse(request.id, bad)
            return False
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

    def _permit_command(self, command: Command, parts: Sequence[Command], of_order: int) -> None:
        self._who.permit_command(command, parts, of_order, self._desk.feed.mirror.markets)

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
                self._change_now(request, event.account, event.order_id, event.instrument)
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
                chosen = self._alternatives(request)
                kind = CommandKind.EXCLUSIVE
                several = translate.legs(kind, chosen, account, request.client_id, self.number)
            case m.Basket():
                chosen = [(feed.market(leg.market).instrument, leg) for leg in request.legs]
                kind = CommandKind.BASKET
                several = translate.legs(kind, chosen, account, request.client_id, self.number)
        self._submit(request, several.head, ticker, several.parts)

    def _alternatives(self, request: m.Exclusive) -> list[tuple[int, m.Leg]]:
        """What its legs stand for. Raises BadRequest, as soon as that is more than a command takes:
        a leg costs the same whether it means one market or a region at large."""
        chosen: list[tuple[int, m.Leg]] = []
        for leg in request.legs:
            found = self._desk.feed.alternatives(leg.market, request.or_better)
            chosen += [(instrument, leg) for instrument in found]
            if len(chosen) > PARTS_MAX:
                raise BadRequest(Reject.TOO_MANY_LEGS, "legs")
        return chosen

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

    def _change_now(
        self, request: m.Cancel | m.Amend, account: int, order_id: int, instrument: int = 0
    ) -> None:
        """`instrument` is the order's, where it has only just been accepted."""
        order = self._desk.feed.account(account).orders.get(order_id)
        instrument = order.instrument if order else instrument
        market = self._desk.feed.mirror.markets[instrument].ticker if instrument else ""
        if isinstance(request, m.Cancel):
            command = translate.cancel(account, order_id)
        else:
            command = translate.amend(request, account, order_id)
        self._submit(request, command, market, of_order=instrument)

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
        state = self._desk.feed.account(account)
        found = state.find(order_id, client_id)
        if found is not None:
            self._ack(m.Ack(request_id, order=self._desk.feed.mirror.order_info(found)))
        elif (
            client_id
            and len(state.closed) == CLOSED_ORDERS_KEPT  # some may be forgotten
            and self._desk.port.is_used(account, client_id)
        ):
            self._tell_kept_order(request_id, account, client_id)
        else:
            self._reply(wire.reject_message(request_id, Reject.UNKNOWN_ORDER))

    def _tell_kept_order(self, request_id: int, account: int, client_id: int) -> None:
        def answer(order: m.OrderInfo | None) -> None:
            if order is None:
                self._reply(wire.reject_message(request_id, Reject.UNKNOWN_ORDER))
            else:
                self._ack(m.Ack(request_id, order=order))

        if not self._desk.history.ask_order(account, client_id, answer):
            raise BadRequest(Reject.BUSY)

    def _query_kept(self, request: m.Query) -> None:
        """Fills or leases, from the account's kept stream."""
        account, kind = self._trader(), FILL if request.what == "fills" else LEASE

        def answer(found: list[m.Numbered]) -> None:
            ack = m.Ack(request.id)
            if kind == FILL:
                ack.fills = [x for x in found if isinstance(x, m.Fill)]
            else:
                ack.leases = [x for x in found if isinstance(x, m.Lease)]
            self._owe(len(found))
            self._ack(ack)

        after = max(0, request.from_aseq - 1)
        if not self._desk.history.ask_kept(kind, account, after, request.limit, answer):
            raise BadRequest(Reject.BUSY)

    # --- signed orders -------------------------------------------------------------------------
    def _sign_orders(self, request: m.SignOrders) -> None:
        account, signing = self._trader(), self._signing()
        handed = [self._handed(x, place) for place, x in enumerate(request.orders)]
        signature = bytes_of(request.signature, SIGNATURE_BYTES, "signature")
        proof = self._who.trading_key(request.key)
        key = None
        if proof is not None:
            terms, authorised = proof
            key = Authorised(*terms[1:], authorised)

        def told(outcome: Outcome | None) -> None:
            if outcome is None:
                self._reply(_busy(request))
            elif outcome.reject is not None:
                field = "signature" if outcome.place < 0 else f"orders[{outcome.place}]"
                self._refuse(request.id, BadRequest(outcome.reject, field))
            else:
                number = outcome.last_number
                ack = m.Ack(request.id, count=len(handed), last_number=number, level="durable")
                self._ack(ack)

        signing.hand_in(account, handed, signature, key, told)

    def _check_signed(self, command: Command) -> None:
        """Raises BadRequest where the account has to sign first. Not for what was accepted once:
        that is only told again."""
        objection = self._signing().objection(command.account, command.kind)
        if objection is None:
            return
        if not self._desk.port.is_used(command.account, command.client_id):
            raise objection

    def _handed(self, x: m.SignedOrder, place: int) -> Handed:
        order_id, number, market, side, price, qty, fee_ppm_max, valid_until_s = x
        try:
            found = self._desk.feed.market(market)
            if self._who.key:
                self._who.permit_market(found)
            price_ticks, qty_lots = translate.price_ticks(price), translate.qty_lots(qty)
        except BadRequest as bad:
            raise BadRequest(bad.reject, f"orders[{place}]", bad.detail) from bad
        return Handed(
            order_id, number, found.product, found.instrument, side == "buy", price_ticks,
            qty_lots, fee_ppm_max, valid_until_s,
        )  # fmt: skip

    def _query_unsigned(self, request: m.Query) -> None:
        account = self._trader()

        def told(found: Listed | None) -> None:
            if found is None:
                self._reply(_busy(request))
            else:
                orders, number = found
                ack = m.Ack(request.id, account=account, unsigned=orders, last_number=number)
                self._ack(ack)

        self._signing().ask_unsigned(account, told)

    def _signing(self) -> Signing:
        if self._desk.signing is None:
            words = "orders are settled without signatures here"
            raise BadRequest(Reject.UNKNOWN_MESSAGE, detail=words)
        return self._desk.signing

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
            case "keys":
                self._check_login()
                found = self._desk.keys.of_wallet(self.wallet, self._who.now_s())
                ack.keys = [self._key_info(terms) for terms in found]
            case "accounts":
                self._check_login()
                found = self._desk.keys.of_signer(self._who.signer, self._who.now_s())
                ack.accounts = [self._key_info(terms) for terms in found]
            case "fills" | "leases":
                self._query_kept(request)
                return
            case "unsigned":
                self._query_unsigned(request)
                return
        self._owe(records_in(ack))
        self._ack(ack)

    def _topic(self, request: m.Subscribe | m.Unsubscribe) -> Topic:
        account = self._trader() if request.channel == "account" else 0
        return self._desk.feed.topic(request, account)

    def _subscribe(self, request: m.Subscribe) -> None:
        topic = self._topic(request)
        full = len(self._topics) >= self._desk.limits.subscriptions
        if full and topic not in self._topics:
            raise BadRequest(Reject.TOO_MANY_SUBSCRIPTIONS)
        if request.from_aseq:
            self._desk.feed.check_resume(topic, request.from_aseq)
            self._topics.add(topic)
            self._ack(m.Ack(request.id, market=request.market))
            self._desk.feed.resume(self, topic, request.from_aseq)
            return
        first: Iterable[m.ServerMessage] = self._desk.feed.subscribe(self, topic, request.limit)
        self._topics.add(topic)
        self._ack(m.Ack(request.id, market=request.market))
        records = 0
        for message in first:  # made one by one, as they are told
            if not self._outbox.is_open:
                break
            records += records_in(message)
            self._say(message)
        self._owe(records)

    def _unsubscribe(self, request: m.Unsubscribe) -> None:
        topic = self._topic(request)
        self._desk.feed.unsubscribe(self, topic)
        self._topics.discard(topic)
        self._ack(m.Ack(request.id, market=request.market))

    # --- what happens when it goes silent ------------------------------------------------------
    def _arm(self, request: m.CancelOnDisconnect | m.DeadMan) -> None:
        account, number, absence = self._trader(), self.number, self._desk.absence
        if request.scope == "session" and not number:
            words = "log in with a session number, or mean the account"
            raise BadRequest(Reject.INVALID_FIELD, "scope", words)
        self._who.permit_every_market()  # it cancels in all of them, and the number is anybody's

        def done() -> None:
            self._ack(m.Ack(request.id, armed=absence.armed(account, number)))

        if isinstance(request, m.DeadMan):
            what, ms, on_close = DEAD_MAN, request.timeout_ms, False
            off = not ms
        else:
            what, ms, on_close, off = DISCONNECT, request.grace_ms, request.on_close, request.off
        row = ArmedRow(account, number, what, request.scope, ms, int(on_close))
        place = Place(account, number, what)
        if not (absence.disarm(place, done) if off else absence.arm(self, row, done)):
            raise BadRequest(Reject.BUSY)

    # --- administration ------------------------------------------------------------------------
    def _require_administrator(self, request: m.Market | m.FeeTier) -> None:
        """Raises BadRequest, also where the audit log does not take what is to be done."""
        if not self._desk.administrator or self._who.signer != self._desk.administrator:
            if self.wallet and not self._has_tried:  # once a connection, or it would fill the disk
                self._has_tried = True
                self._audited[request.id] = request
            raise BadRequest(Reject.NOT_ADMINISTRATOR)
        if not self._audit(request, "asked"):
            raise BadRequest(Reject.STOPPED, detail="the audit log cannot be written")
        self._audited[request.id] = request

    def _set_fee_tier(self, request: m.FeeTier) -> None:
        self._require_administrator(request)
        account = self._desk.feed.account_of(bytes_of(request.wallet, ADDRESS_BYTES, "wallet"))
        if not account:
            raise BadRequest(Reject.NO_ACCOUNT, "wallet")
        self._submit(request, translate.set_fee_tier(account, request.tier))

    def _administer(self, request: m.Market) -> None:
        self._require_administrator(request)
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
        now_s, ahead_s = desk.time_ns() // NS_PER_S, desk.listed_ahead_s
        instrument = desk.next_instrument()
        command = listing.list_market(desk.catalog, request, product, instrument, now_s, ahead_s)
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
        m.SignOrders: _sign_orders,
        m.CancelOnDisconnect: _arm,
        m.DeadMan: _arm,
        m.Subscribe: _subscribe,
        m.Unsubscribe: _unsubscribe,
        m.Login: _sign,
        m.Authorise: _sign,
        m.Revoke: _sign,
        m.Market: _administer,
        m.FeeTier: _set_fee_tier,
        m.Token: _token,
        m.Ping: _ping,
    }
    assert set(_HANDLERS) == set(get_args(m.ClientMessage)), "every request is handled"


def _check_names_one(request: m.Cancel | m.Amend | m.Query) -> None:
    """Raises BadRequest unless the order is named by exactly one of its ids."""
    if bool(request.order_id) == bool(request.client_id):
        raise BadRequest(Reject.INVALID_FIELD, "order_id", "give exactly one of the ids")


def _busy(request: m.ClientMessage) -> m.Reject:
    return wire.reject_message(request.id, Reject.BUSY, retry_ms=RETRY_MS[Reject.BUSY])
