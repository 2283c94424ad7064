"""What everybody is told: public books, trades and statuses, and each account's own stream.

Subscribed to the engine, it keeps the mirror, answers waiting requests, and encodes each message
once for all who want it, in the order of the events: answer, private messages, trades, and after
a command's last event its book deltas; after a batch, balances. Invariant: what a listener is
sent after a snapshot, applied to it, is the mirror. Sessions subscribe; nobody else calls it but
the node (`publish_index`).
"""

from collections.abc import Callable, Iterable
from typing import ClassVar, Final, NamedTuple, Protocol

import msgspec
from compex_client import messages as m
from compex_client.units import price_text, qty_text, usdc_text
from compex_client.wallet import address_text

from engine.catalog import Catalog
from engine.port import Batch, Source
from engine.records import (
    Balances,
    CancelReason,
    Event,
    EventKind,
    FillNote,
    MarketStatus,
    Purse,
    cost_usdc6,
    fee_usdc6,
)
from engine.rejects import CatalogError, Reject
from gateway import translate
from gateway.mirror import AccountState, Change, MarketState, Mirror, OpenOrder, SavedMirror
from gateway.translate import SIDE_NAMES
from gateway.wire import BadRequest, encode

EVERY_MARKET: Final = -1
_NO_BALANCES: Final = Balances(*(0,) * 8)
_TRANSFERS: Final[dict[int, m.TransferKind]] = {
    EventKind.ESCROW_CONFIRMED: "escrow",
    EventKind.WITHDRAWAL_RESERVED: "withdrawal_reserved",
    EventKind.WITHDRAWAL_CONFIRMED: "withdrawal_done",
    EventKind.WITHDRAWAL_CANCELLED: "withdrawal_cancelled",
    EventKind.EXIT_CONFIRMED: "exit",
}


class Listener(Protocol):
    """One subscriber; `send` queues a whole frame and never blocks."""

    def send(self, frame: bytes) -> None: ...


class Topic(NamedTuple):
    """A channel, and the instrument (or EVERY_MARKET) or the account it is about."""

    channel: str
    of: int


class _Saved(msgspec.Struct, array_like=True):
    sequence: int
    time_us: int
    balances: dict[int, Balances]
    mirror: SavedMirror


class Feed:
    """`answer` is called with every event that may be a request's answer, before it is told."""

    name: ClassVar[str] = "feed/1"  # of what a snapshot keeps for it

    def __init__(self, source: Source, catalog: Catalog, answer: Callable[[Event], None]) -> None:
        self._source = source
        self._answer = answer
        self._catalog = catalog
        self.mirror: Final = Mirror(catalog)
        self._listeners: dict[Topic, dict[Listener, None]] = {}
        self._sequence = 0  # of the command whose events are being applied
        self._time_us = 0
        self._touched: set[int] = set()  # accounts whose money may have changed in this batch
        self._balances: dict[int, Balances] = {}
        self._indexes: dict[str, m.Index] = {}
        self._afterwards: list[Callable[[], None]] = []
        source.subscribe(self.on_batch, keeper=self)

    # --- from the engine -----------------------------------------------------------------------
    def on_batch(self, batch: Batch) -> None:
        """The engine's subscriber: consecutive events; a command never spans two batches."""
        for number, event in enumerate(batch.events, batch.first_number):
            if event.sequence != self._sequence:
                self._end_command()
                self._sequence = event.sequence
                self._time_us = translate.time_us(event.time_ns)
            self._answer(event)
            self._apply(event, number)
        self._end_command()
        self._settle_balances()

    def _apply(self, event: Event, number: int) -> None:
        match event.kind:
            case EventKind.ACCEPTED:
                self._tell_order(self.mirror.add_order(event), event)
            case EventKind.FILL:
                self._fill(event, number)
            case EventKind.CANCELLED:
                order = self.mirror.take(event.account, event.order_id, event.qty_lots, "cancelled")
                self._tell_order(order, event, CancelReason(event.reason).name)
            case EventKind.AMENDED:
                self._tell_order(self.mirror.amend(event), event, EventKind.AMENDED.name)
            case EventKind.CONCEALED:
                order = self.mirror.hide(event, event.qty_lots)
                self._tell_order(order, event, EventKind.CONCEALED.name)
            case EventKind.REFRESHED:
                order = self.mirror.hide(event, -event.qty_lots)
                self._tell_order(order, event, EventKind.REFRESHED.name)
            case EventKind.WAITING:
                self._tell_order(self.mirror.wait(event), event, EventKind.WAITING.name)
            case EventKind.TRIGGERED:
                self._tell_order(self.mirror.trigger(event), event, EventKind.TRIGGERED.name)
            case EventKind.DECREMENTED:
                for order_id in (event.counter_order_id, event.order_id):
                    order = self.mirror.take(event.account, order_id, event.qty_lots, "cancelled")
                    self._tell_order(order, event, CancelReason.SELF_TRADE.name)
            case EventKind.CAPACITY_DECLARED:
                account = self.mirror.account(event.account)
                account.capacities[event.instrument] = event.qty_lots
            case EventKind.ACCOUNT_OPENED:
                self.mirror.open_account(event)
            case EventKind.DEPOSITED:
                bond = event.side == Purse.BOND
                kind = "bond_deposit" if bond else "deposit"
                self._transfer(event, kind, event.account, event.amount_usdc6)
            case (
                EventKind.ESCROW_CONFIRMED
                | EventKind.WITHDRAWAL_RESERVED
                | EventKind.WITHDRAWAL_CONFIRMED
                | EventKind.WITHDRAWAL_CANCELLED
                | EventKind.EXIT_CONFIRMED
            ):
                self._transfer(event, _TRANSFERS[event.kind], event.account, event.amount_usdc6)
            case EventKind.FILL_VOIDED:
                market = self.mirror.markets[event.instrument]
                bond_usdc6 = market.bond_usdc6_per_lot * event.qty_lots
                paid_usdc6 = cost_usdc6(event.price_ticks, event.qty_lots, event.taker_fee_ppm)
                self._transfer(event, "fill_voided", event.account, paid_usdc6)
                if not event.reason & FillNote.RESOLD:
                    self._transfer(event, "fill_voided", event.counter_account, bond_usdc6)
            case EventKind.MARKET_LISTED:
                self._tell_status(self.mirror.list_market(event))
            case EventKind.MARKET_HALTED:
                self._tell_status(self.mirror.set_status(event, MarketStatus.HALTED))
            case EventKind.MARKET_RESUMED:
                status = MarketStatus.CALL if event.reason else MarketStatus.OPEN
                self._tell_status(self.mirror.set_status(event, status))
            case EventKind.MARKET_CALLED | EventKind.VOLATILITY_CALL:
                called = self.mirror.set_status(event, MarketStatus.CALL, event.expiry_s)
                self._tell_status(called)
            case EventKind.INDICATED:
                self._tell_auction(self.mirror.markets[event.instrument], event)
            case EventKind.MARKET_UNCROSSED if not event.reason:
                market = self.mirror.set_status(event, MarketStatus.OPEN)
                self._tell_auction(market, event)
                market.auction = None
                self._tell_status(market)
            case EventKind.MARKET_CLOSED:
                self._tell_status(self.mirror.set_status(event, MarketStatus.CLOSED))
            case _:
                pass  # REJECTED changes nothing; CANCEL_ALL_DONE and ACCOUNT_CLOSED only count

    # --- snapshots -----------------------------------------------------------------------------
    def save(self) -> bytes:
        """All that events made of it, but no listeners."""
        found = _Saved(self._sequence, self._time_us, self._balances, self.mirror.save())
        return msgspec.msgpack.encode(found)

    def load(self, saved: bytes) -> None:
        found = msgspec.msgpack.decode(saved, type=_Saved)
        self._sequence, self._time_us = found.sequence, found.time_us
        self._balances = found.balances
        self.mirror.load(found.mirror)

    # --- private -------------------------------------------------------------------------------
    def _tell_account(
        self, account: int, make: Callable[[int], m.Order | m.Fill | m.Transfer]
    ) -> None:
        """Number a message of the account's stream; build it only if somebody listens."""
        state = self.mirror.account(account)
        state.aseq += 1
        self._touched.add(account)
        listeners = self._listeners.get(Topic("account", account))
        if listeners:
            _send(listeners, encode(make(state.aseq)))

    def _tell_order(self, order: OpenOrder, event: Event, reason: str = "") -> None:
        def make(aseq: int) -> m.Order:
            return m.Order(
                aseq=aseq,
                order_id=order.order_id,
                client_id=order.client_id,
                market=self.mirror.markets[order.instrument].ticker,
                side=SIDE_NAMES[order.side],
                price=price_text(order.price_ticks),
                qty=qty_text(order.qty_lots),
                left=qty_text(order.left_lots),
                state=order.state,
                reason=reason,
                shown=order.shown(),
                stop=order.stop(),
                waiting=order.waits,
                sequence=event.sequence,
                time_us=self._time_us,
            )

        self._tell_account(order.account, make)

    def _fill(self, event: Event, number: int) -> None:
        market = self.mirror.markets[event.instrument]
        maker = self.mirror.take(
            event.counter_account, event.counter_order_id, event.qty_lots, "filled"
        )
        taker = self.mirror.take(event.account, event.order_id, event.qty_lots, "filled")
        price, qty = price_text(event.price_ticks), qty_text(event.qty_lots)
        notional_usdc6 = event.price_ticks * event.qty_lots
        for order, fee_ppm in ((maker, event.maker_fee_ppm), (taker, event.taker_fee_ppm)):
            fee = usdc_text(fee_usdc6(notional_usdc6, fee_ppm)) if fee_ppm else ""

            def make(aseq: int, order: OpenOrder = order, fee: str = fee) -> m.Fill:
                return m.Fill(
                    aseq=aseq,
                    trade_id=number,
                    order_id=order.order_id,
                    client_id=order.client_id,
                    market=market.ticker,
                    side=SIDE_NAMES[order.side],
                    price=price,
                    qty=qty,
                    left=qty_text(order.left_lots),
                    liquidity="maker" if order is maker else "taker",
                    sequence=event.sequence,
                    time_us=self._time_us,
                    fee=fee,
                )

            self._tell_account(order.account, make)
        trade = m.Trade(
            market=market.ticker,
            trade_id=number,
            price=price,
            qty=qty,
            side=SIDE_NAMES[event.side],
            time_us=self._time_us,
            block=bool(event.reason & FillNote.OFF_QUEUE),
        )
        market.trades.append(trade)
        self._publish("trades", event.instrument, lambda: trade)

    def _transfer(
        self, event: Event, kind: m.TransferKind, account: int, amount_usdc6: int
    ) -> None:
        self._tell_account(
            account,
            lambda aseq: m.Transfer(
                aseq=aseq,
                kind=kind,
                amount=usdc_text(amount_usdc6),
                reference=event.reference,
                sequence=event.sequence,
                time_us=self._time_us,
            ),
        )

    def _settle_balances(self) -> None:
        """Read the money of the accounts touched; only what was published is ever told."""
        for account in self._touched:
            balances = self._source.balances(account)
            if balances == self._balances.get(account):
                continue
            self._balances[account] = balances
            listeners = self._listeners.get(Topic("account", account))
            if listeners:
                aseq = self.mirror.account(account).aseq
                told = translate.balances_of(balances)
                _send(listeners, encode(m.Balance(aseq, told, self._time_us)))
        self._touched.clear()

    # --- public --------------------------------------------------------------------------------
    def _publish(self, channel: str, instrument: int, make: Callable[[], m.ServerMessage]) -> None:
        one = self._listeners.get(Topic(channel, instrument))
        every = self._listeners.get(Topic(channel, EVERY_MARKET))
        if one or every:
            _send({**(one or {}), **(every or {})}, encode(make()))

    def _tell_status(self, market: MarketState) -> None:
        self._publish("status", market.instrument, market.status_message)

    def _tell_auction(self, market: MarketState, event: Event) -> None:
        market.auction = told = translate.auction(event, market.ticker)
        self._publish("auction", market.instrument, lambda: told)

    def after_command(self, tell: Callable[[], None]) -> None:
        """Call this once the mirror has everything of the command whose event is being answered."""
        self._afterwards.append(tell)

    def _end_command(self) -> None:
        afterwards, self._afterwards = self._afterwards, []
        for tell in afterwards:
            tell()
        for change in self.mirror.changes(self._sequence):
            self._publish("book", change.market.instrument, lambda c=change: self._delta(c))

    def _delta(self, change: Change) -> m.BookDelta:
        return m.BookDelta(
            market=change.market.ticker,
            prev=change.prev,
            seq=change.seq,
            bids=[translate.level(*x) for x in change.bids.items()],
            asks=[translate.level(*x) for x in change.asks.items()],
            crc=change.market.book.checksum(),
            time_us=self._time_us,
        )

    def publish_index(self, index: m.Index) -> None:
        """Tell a spot price. Called by the node when one is published on chain."""
        self._indexes[index.market] = index
        market = self.mirror.market_named(index.market)
        self._publish("index", market.instrument if market else EVERY_MARKET, lambda: index)

    # --- for sessions --------------------------------------------------------------------------
    def topic(self, channel: str, market: str, account: int) -> Topic:
        """The topic a subscription means. Raises BadRequest."""
        match channel:
            case "account":
                if not account:
                    raise BadRequest(Reject.NO_ACCOUNT)
                return Topic("account", account)
            case "book":
                return Topic("book", self.market(market).instrument)
            case "trades" | "status" | "index" | "auction":
                named = self.market(market).instrument if market else EVERY_MARKET
                return Topic(channel, named)
            case _:
                raise BadRequest(Reject.UNKNOWN_CHANNEL, "channel")

    def subscribe(self, listener: Listener, topic: Topic) -> list[bytes]:
        """Add the listener (again is harmless); the frames it must be sent first."""
        self._listeners.setdefault(topic, {})[listener] = None
        return [encode(message) for message in self._first_messages(topic)]

    def unsubscribe(self, listener: Listener, topic: Topic) -> None:
        listeners = self._listeners.get(topic, {})
        listeners.pop(listener, None)
        if not listeners:
            self._listeners.pop(topic, None)

    def _first_messages(self, topic: Topic) -> Iterable[m.ServerMessage]:
        every = self.mirror.markets
        match topic.channel:
            case "account":
                return [self._account_snapshot(topic.of)]
            case "book":
                return [every[topic.of].snapshot()]
            case "trades":
                return [] if topic.of == EVERY_MARKET else list(every[topic.of].trades)
            case "status":
                chosen = every.values() if topic.of == EVERY_MARKET else [every[topic.of]]
                return [market.status_message() for market in chosen]
            case "auction":
                chosen = every.values() if topic.of == EVERY_MARKET else [every[topic.of]]
                return [market.auction for market in chosen if market.auction is not None]
            case _:
                if topic.of == EVERY_MARKET:
                    return list(self._indexes.values())
                found = self._indexes.get(every[topic.of].ticker)
                return [found] if found else []

    def _account_snapshot(self, account: int) -> m.AccountSnapshot:
        state = self.mirror.account(account)
        return m.AccountSnapshot(
            aseq=state.aseq,
            account=account,
            wallet=address_text(state.wallet),
            balances=self.balances(account),
            orders=self.open_orders(account),
            capacities=[
                (self.mirror.markets[instrument].ticker, qty_text(lots))
                for instrument, lots in state.capacities.items()
            ],
            time_us=self._time_us,
        )

    def market(self, name: str) -> MarketState:
        """A listed market by ticker or symbol. Raises BadRequest."""
        market = self.mirror.market_named(name)
        if market is None:
            raise BadRequest(Reject.UNKNOWN_INSTRUMENT, "market")
        return market

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
        """As last published: never what is matched but not yet durable."""
        return translate.balances_of(self._balances.get(account, _NO_BALANCES))

    def open_orders(self, account: int, instrument: int = EVERY_MARKET) -> list[m.OrderInfo]:
        """Oldest first, of one market or of all."""
        return [
            self.mirror.order_info(order)
            for order in self.mirror.account(account).orders.values()
            if instrument in {EVERY_MARKET, order.instrument}
        ]

    def market_infos(self) -> list[m.MarketInfo]:
        return [market.info() for market in self.mirror.markets.values()]

    def heartbeat(self, now_us: int, account: int) -> bytes:
        aseq = self.mirror.account(account).aseq if account else 0
        return encode(m.Heartbeat(time_us=now_us, sequence=self._sequence, aseq=aseq))


def _send(listeners: Iterable[Listener], frame: bytes) -> None:
    # A listener that overflows leaves while we tell the others.
    for listener in list(listeners):
        listener.send(frame)
