"""What the engine's events mean to those outside: the mirror follows, requests are answered, and
the public and private feeds are told.

The order of what one listener hears: of each event the answer, then its private messages; after a
batch, channel by channel, what is public, and then its balances. Invariant: all that is told of an
event is in the mirror by then. Sessions subscribe and ask; nobody else calls it but the node
(`publish_index`).
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

import msgspec
from compex_client import messages as m

from engine.catalog import Catalog
from engine.port import Batch, Source
from engine.records import (
    Balances,
    CancelReason,
    CommandArray,
    Event,
    EventKind,
    MarketStatus,
    Purse,
    decode_commands,
)
from engine.rejects import CatalogError, Reject
from gateway import translate
from gateway.history import History, Reader
from gateway.hub import EVERY_MARKET, Hub, Listener, Topic
from gateway.leases import SavedLeases
from gateway.mirror import AccountState, MarketState, Mirror, SavedMirror
from gateway.private import Private, topic_of
from gateway.public import CHANNELS, Public, SavedPublic
from gateway.wire import BadRequest

_TRANSFERS: Final[dict[int, m.TransferKind]] = {
    EventKind.WITHDRAWAL_RESERVED: "withdrawal_reserved",
    EventKind.WITHDRAWAL_CONFIRMED: "withdrawal_done",
    EventKind.WITHDRAWAL_CANCELLED: "withdrawal_cancelled",
    EventKind.EXIT_CONFIRMED: "exit",
}


OWN_COMMANDS: Final = Topic("sequenced", EVERY_MARKET)  # told by the session itself


_OF_COMMANDS: Final = frozenset({EventKind.REJECTED, EventKind.CANCEL_ALL_DONE})
# Members of an IntEnum cost a look-up each time they are named; events come by the million.
_ACCEPTED: Final = int(EventKind.ACCEPTED)


class _Saved(msgspec.Struct, array_like=True):
    sequence: int
    time_us: int
    balances: dict[int, Balances]  # of an earlier build; the engine has them
    mirror: SavedMirror
    public: SavedPublic = msgspec.field(default_factory=SavedPublic)
    leases: SavedLeases = msgspec.field(default_factory=SavedLeases)


class Feed:
    """`answer` is called with every event that may be a request's answer, before it is told;
    `done` when all events of a command are in the mirror."""

    name: ClassVar[str] = "feed/2"  # of what a snapshot keeps for it
    former: ClassVar[tuple[str, ...]] = ("feed/1",)  # has no candles and no queues

    def __init__(
        self,
        source: Source,
        catalog: Catalog,
        answer: Callable[[Event], None],
        done: Callable[[], None],
        history: History | None = None,
    ) -> None:
        self._answer = answer
        self._done = done
        self._catalog = catalog
        self.mirror: Final = Mirror(catalog)
        self._hub = Hub(self.mirror.wildcards_covering)
        self.sent: Final = self._hub.sent
        self._public = Public(self._hub, self.mirror, catalog)
        self._private = Private(self._hub, self.mirror, source, history)
        self.told = 0  # goes up when there is news: what was read before may be other now
        self._sequence = 0  # of the command whose events are being applied
        self._time_us = 0
        source.subscribe(self.on_batch, keeper=self)

    # --- from the engine -----------------------------------------------------------------------
    def on_batch(self, batch: Batch) -> None:
        """The engine's subscriber: consecutive events; a command never spans two batches."""
        self.told += 1
        events = batch.events
        sequences = [event.sequence for event in events]
        sequences.append(0)  # behind the last
        for place, event in enumerate(events):
            number = batch.first_number + place
            sequence = event.sequence
            is_first = sequence != self._sequence
            if is_first:
                self._end_command()
                self._sequence = sequence
                self._time_us = translate.time_us(event.time_ns)
                self._public.at(sequence, self._time_us)
            self._answer(event)
            self._private.event_number = number
            is_alone = is_first and sequences[place + 1] != sequence
            if is_alone and event.kind == _ACCEPTED and event.instrument not in self.mirror.watched:
                self._rest(event)
                continue
            self._apply(event, number)
            if event.kind in _OF_COMMANDS:
                self._tell_of_command(event, batch.commands)
        self._end_command()
        self._hub.flush()
        self._private.settle_balances(self._time_us)

    def _rest(self, event: Event) -> None:
        """What most commands come to, and no more: an order rests. As `_apply` does it, at half
        the price."""
        order, change = self.mirror.rest(event, self._public.has_followers)
        self._private.order(order, event)
        if change is not None:
            self._public.book(change)

    def _tell_of_command(self, event: Event, commands: CommandArray) -> None:
        """What says too little without the command behind it."""
        place = event.sequence - int(commands["sequence"][0])
        [command] = decode_commands(commands[place : place + 1])
        if event.kind == EventKind.REJECTED:
            self._private.rejected(event, command)
        else:
            self._private.cancelled_all(event, command)

    def _apply(self, event: Event, number: int) -> None:
        match event.kind:
            case EventKind.ACCEPTED:
                self._private.order(self.mirror.add_order(event), event)
            case EventKind.FILL:
                self._fill(event, number)
            case EventKind.CANCELLED:
                order = self.mirror.take(event.account, event.order_id, event.qty_lots, "cancelled")
                self._private.order(order, event, event.reason)
            case EventKind.AMENDED:
                self._private.changed(self.mirror.amend(event), event)
            case EventKind.CONCEALED:
                self._private.changed(self.mirror.hide(event, event.qty_lots), event)
            case EventKind.REFRESHED:
                self._private.changed(self.mirror.refresh(event), event)
            case EventKind.WAITING:
                self._private.changed(self.mirror.wait(event), event)
            case EventKind.TRIGGERED:
                self._private.changed(self.mirror.trigger(event), event)
            case EventKind.DECREMENTED:
                for order_id in (event.counter_order_id, event.order_id):
                    order = self.mirror.take(event.account, order_id, event.qty_lots, "cancelled")
                    self._private.order(order, event, CancelReason.SELF_TRADE)
            case _:
                self._apply_to_account(event)
                self._apply_to_market(event)

    def _apply_to_account(self, event: Event) -> None:
        match event.kind:
            case EventKind.CAPACITY_DECLARED:
                account = self.mirror.account(event.account)
                account.capacities[event.instrument] = event.qty_lots
            case EventKind.ACCOUNT_OPENED:
                self.mirror.open_account(event)
            case EventKind.DEPOSITED:
                bond = event.side == Purse.BOND
                kind = "bond_deposit" if bond else "deposit"
                self._private.transfer(event, kind, event.account, event.amount_usdc6)
            case EventKind.ESCROW_CONFIRMED:
                self._private.escrowed(event)
            case (
                EventKind.WITHDRAWAL_RESERVED
                | EventKind.WITHDRAWAL_CONFIRMED
                | EventKind.WITHDRAWAL_CANCELLED
                | EventKind.EXIT_CONFIRMED
            ):
                self._private.transfer(
                    event, _TRANSFERS[event.kind], event.account, event.amount_usdc6
                )
            case EventKind.FILL_VOIDED:
                self._private.voided(event)
            case EventKind.LEASES_ENDED:
                account, private = event.account, self._private
                if event.amount_usdc6:
                    private.transfer(event, "lease_ended", account, event.amount_usdc6)
                if event.bond_usdc6:
                    private.transfer(event, "bond_freed", account, event.bond_usdc6)
            case _:
                pass  # ACCOUNT_CLOSED only counts; see _OF_COMMANDS for what is not here

    def _apply_to_market(self, event: Event) -> None:
        match event.kind:
            case EventKind.MARKET_LISTED:
                self._public.listed(self.mirror.list_market(event))
            case EventKind.MARKET_HALTED:
                self._public.status(self.mirror.set_status(event, MarketStatus.HALTED))
            case EventKind.MARKET_RESUMED:
                status = MarketStatus.CALL if event.reason else MarketStatus.OPEN
                self._public.status(self.mirror.set_status(event, status))
            case EventKind.MARKET_CALLED | EventKind.VOLATILITY_CALL:
                called = self.mirror.set_status(event, MarketStatus.CALL, event.expiry_s)
                self._public.status(called)
            case EventKind.INDICATED:
                self._public.auction(self.mirror.markets[event.instrument], event)
            case EventKind.MARKET_UNCROSSED if not event.reason:
                market = self.mirror.set_status(event, MarketStatus.OPEN)
                self._public.auction(market, event)
                market.auction = None
                self._public.status(market)
            case EventKind.MARKET_CLOSED:
                self._public.status(self.mirror.set_status(event, MarketStatus.CLOSED))
            case _:
                pass

    # --- snapshots -----------------------------------------------------------------------------
    def save(self) -> bytes:
        """All that events made of it, but no listeners."""
        found = _Saved(
            self._sequence,
            self._time_us,
            {},
            self.mirror.save(),
            self._public.save(),
            self._private.leases.buyers,
        )
        return msgspec.msgpack.encode(found)

    def load(self, saved: bytes) -> None:
        found = msgspec.msgpack.decode(saved, type=_Saved)
        self._sequence, self._time_us = found.sequence, found.time_us
        self._private.leases.buyers = found.leases
        self.mirror.load(found.mirror)
        self._public.load(found.public)
        self._public.at(self._sequence, self._time_us)

    def _fill(self, event: Event, number: int) -> None:
        lots = event.qty_lots
        maker = self.mirror.take(event.counter_account, event.counter_order_id, lots, "filled")
        taker = self.mirror.take(event.account, event.order_id, lots, "filled")
        self._private.fill(maker, taker, event)
        self._public.trade(event, number)

    def _end_command(self) -> None:
        if self.mirror.is_changing:
            for change in self.mirror.changes(self._sequence):
                self._public.book(change)
            self._public.orders(self.mirror.moves())
        self._done()

    def publish_index(self, index: m.Index) -> None:
        """Tell a spot price. Called by the node when one is published on chain."""
        self.told += 1
        self._public.index(index)
        self._hub.flush()

    # --- for sessions --------------------------------------------------------------------------
    def topic(self, request: m.Subscribe | m.Unsubscribe, account: int) -> Topic:
        """The topic a subscription means. Raises BadRequest."""
        if request.channel == OWN_COMMANDS.channel:
            return OWN_COMMANDS
        if request.channel == "account":
            return topic_of(account)
        return self._public.topic(request)

    @property
    def channels(self) -> list[str]:
        """What `topic` knows."""
        return sorted({*CHANNELS, "account", OWN_COMMANDS.channel})

    def subscribe(
        self, listener: Listener, topic: Topic, limit: int = 0
    ) -> Iterable[m.ServerMessage]:
        """Add the listener (again is harmless); what it must be sent first. Raises BadRequest."""
        first = self.first(topic, limit)
        if topic.channel == "account":
            self._private.leave(listener, topic)
        self._hub.add(listener, topic)
        return first

    def first(self, topic: Topic, limit: int = 0) -> Iterable[m.ServerMessage]:
        """How things are: of candles and index rounds the last so many, 0 for as many as is usual;
        of several markets, no more than they may begin with together. To be told before anything
        else happens: it may be made only as it is taken. Raises BadRequest."""
        if topic == OWN_COMMANDS:
            return []
        if topic.channel == "account":
            return [self._private.snapshot(topic.of, self._time_us)]
        return self._public.first(topic, limit)

    def closed_since(self, topic: Topic, start_s: int) -> int:
        """How many candles of one market that are closed began then or later."""
        return self._public.closed_since(topic, start_s)

    def resume(self, reader: Reader, topic: Topic, from_aseq: int) -> None:
        """Tell the account's stream from that number on; `check_resume` comes first."""
        self._private.resume(reader, topic.of, from_aseq, lambda: self._time_us)

    def check_resume(self, topic: Topic, from_aseq: int) -> None:
        """Raises BadRequest unless the topic can be told from that number on."""
        if topic.channel != "account":
            raise BadRequest(Reject.INVALID_FIELD, "from_aseq", "only an account's stream is kept")
        self._private.check_resume(topic.of, from_aseq)

    def unsubscribe(self, listener: Listener, topic: Topic) -> None:
        if topic.channel == "account":
            self._private.leave(listener, topic)
        else:
            self._hub.remove(listener, topic)

    def market(self, name: str) -> MarketState:
        """A listed market by ticker or symbol. Raises BadRequest."""
        return self._public.market(name)

    def hours_from(self, name: str, hours: int) -> list[int]:
        """The markets of so many consecutive hours, the first named. Raises BadRequest."""
        try:
            products = self._catalog.hours_from(self.market(name).product, hours)
        except CatalogError as error:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market", str(error)) from error
        for product in products:
            if product not in self.mirror.instrument_of:
                words = f"{self._catalog.symbol(product)} is not listed"
                raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "hours", words)
        return [self.mirror.instrument_of[product] for product in products]

    def alternatives(self, name: str, or_better: bool) -> list[int]:
        """The listed markets that a name means which may say a region at large, and those of
        better grades if asked for. Raises BadRequest if there are none."""
        try:
            products = self._catalog.alternatives(name, or_better=or_better)
        except CatalogError as error:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "legs", str(error)) from error
        instrument_of = self.mirror.instrument_of
        listed = [instrument_of[product] for product in products if product in instrument_of]
        if not listed:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "legs", f"nothing is listed for {name}")
        return listed

    def account_of(self, wallet: bytes) -> int:
        """The account of a 20-byte wallet address; 0 before its first deposit."""
        return self.mirror.account_of.get(wallet, 0)

    def account(self, account: int) -> AccountState:
        return self.mirror.account(account)

    def balances(self, account: int) -> m.Balances:
        return self._private.balances_of(account)

    def open_orders(self, account: int, instrument: int = EVERY_MARKET) -> list[m.OrderInfo]:
        return self._private.open_orders(account, instrument)

    def market_infos(self) -> list[m.MarketInfo]:
        return [self.mirror.market_info(market) for market in self.mirror.markets.values()]

    def indexes(self) -> list[m.Index]:
        return self._public.indexes()

    def rounds(self, name: str) -> deque[m.Index]:
        return self._public.rounds(name)

    def heartbeat(self, now_us: int, account: int) -> m.Heartbeat:
        aseq = self.mirror.account(account).aseq if account else 0
        return m.Heartbeat(time_us=now_us, sequence=self._sequence, aseq=aseq)
