"""Each account's own stream: its orders, fills, leases, transfers and money, numbered.

Invariant: `aseq` of an account goes up by one with each message of its history, whoever listens,
and is the same after a restart; every message is put into the history. What a listener is sent
after a snapshot, or after the history from a number on, applied to that, is the mirror. The feed
tells it what happened; sessions ask it, through the feed, how things are.
"""

from collections.abc import Callable
from typing import Final

from compex_client import messages as m
from compex_client.units import price_text, qty_text, usdc_text
from compex_client.wallet import address_text

from engine.port import Source
from engine.records import (
    Balances,
    CancelReason,
    Command,
    CommandKind,
    Event,
    FillNote,
    Side,
    cost_usdc6,
    fee_usdc6,
)
from engine.rejects import WORDS, Reject
from gateway import translate
from gateway.history import History, Reader, Resume
from gateway.hub import EVERY_MARKET, Hub, Listener, Topic
from gateway.leases import Bought, Leases
from gateway.mirror import Mirror, OpenOrder
from gateway.translate import SIDE_NAMES, time_us
from gateway.wire import BadRequest

_NO_BALANCES: Final = Balances(*(0,) * 8)
# What a client asks for, by the command it becomes; settlement's and the engine's own are not here.
_REQUESTS: Final[dict[int, str]] = {
    CommandKind.NEW_ORDER: "new",
    CommandKind.NEW_STOP: "new",
    CommandKind.CANCEL: "cancel",
    CommandKind.CANCEL_ALL: "cancel_all",
    CommandKind.DECLARE_CAPACITY: "capacity",
    CommandKind.WITHDRAW: "withdraw",
    CommandKind.AMEND: "amend",
    CommandKind.MASS_QUOTE: "quote",
    CommandKind.BLOCK: "block",
    CommandKind.EXCLUSIVE: "exclusive",
    CommandKind.BASKET: "basket",
}
_NAME_AN_ORDER: Final = (CommandKind.CANCEL, CommandKind.AMEND)
# Why a CANCEL_ALL was sequenced, in the bytes of its `price_ticks`, of which it makes no other use.
CAUSES: Final[tuple[m.CancelCause, ...]] = ("request", "disconnect", "dead_man")

_CAUSES: Final = range(len(CAUSES))


class Private:
    """Without a history nothing is kept: so for who only wants to know where the numbers are."""

    def __init__(self, hub: Hub, mirror: Mirror, source: Source, history: History | None) -> None:
        self._hub = hub
        self._mirror = mirror
        self._source = source
        self._history = history
        self._resumes: dict[Listener, Resume] = {}
        self.leases: Final = Leases()
        self.event_number = 0  # of the event that is being told
        self._touched: set[int] = set()  # accounts whose money may have changed in this batch
        self.balances: dict[int, Balances] = {}  # as last told

    # --- what happened -------------------------------------------------------------------------
    def _tell(self, account: int, make: Callable[[int], m.Numbered], client_id: int = 0) -> None:
        """Number a message; it is built only if it is kept or somebody listens."""
        state = self._mirror.account(account)
        state.aseq += 1
        self._touched.add(account)
        topic, history = Topic("account", account), self._history
        lacks = history is not None and history.lacks(self.event_number)
        has_listeners = self._hub.wants(topic)
        if not (lacks or has_listeners):
            return
        message = make(state.aseq)
        if history is not None and lacks:
            history.put(account, self.event_number, message, client_id)
        if has_listeners:
            self._hub.tell_now(topic, lambda: message)

    def order(self, order: OpenOrder, event: Event, reason: str = "") -> None:
        def make(aseq: int) -> m.Order:
            return m.Order(
                aseq=aseq,
                order_id=order.order_id,
                client_id=order.client_id,
                market=self._mirror.markets[order.instrument].ticker,
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
                time_us=time_us(event.time_ns),
                expires_s=order.expires_s,
                session=order.session,
            )

        self._tell(order.account, make, order.client_id)

    def fill(self, maker: OpenOrder, taker: OpenOrder, event: Event) -> None:
        """A fill to both sides, and the lease that it is."""
        notional_usdc6 = event.price_ticks * event.qty_lots
        for order, fee_ppm in ((maker, event.maker_fee_ppm), (taker, event.taker_fee_ppm)):
            fee = usdc_text(fee_usdc6(notional_usdc6, fee_ppm)) if fee_ppm else ""

            def make(aseq: int, order: OpenOrder = order, fee: str = fee) -> m.Fill:
                return m.Fill(
                    aseq=aseq,
                    trade_id=self.event_number,
                    order_id=order.order_id,
                    client_id=order.client_id,
                    market=self._mirror.markets[event.instrument].ticker,
                    side=SIDE_NAMES[order.side],
                    price=price_text(event.price_ticks),
                    qty=qty_text(event.qty_lots),
                    left=qty_text(order.left_lots),
                    liquidity="maker" if order is maker else "taker",
                    sequence=event.sequence,
                    time_us=time_us(event.time_ns),
                    fee=fee,
                )

            self._tell(order.account, make, order.client_id)
        buyer, seller = (taker, maker) if event.side == Side.BUY else (maker, taker)
        buyer_fee_ppm = event.taker_fee_ppm if buyer is taker else event.maker_fee_ppm
        lease = Bought(
            lease_id=self.event_number,
            seller=seller.account,
            instrument=event.instrument,
            price_ticks=event.price_ticks,
            qty_lots=event.qty_lots,
            cost_usdc6=cost_usdc6(event.price_ticks, event.qty_lots, buyer_fee_ppm),
            is_resold=bool(event.reason & FillNote.RESOLD),
        )
        self.leases.bought(buyer.account, lease)
        self._lease(buyer.account, lease, event, "pending")

    def _lease(
        self,
        buyer: int,
        lease: Bought,
        event: Event,
        state: m.LeaseState,
        batch: int = 0,
        assumed: bool = False,
    ) -> None:
        """The state of a lease, to both sides."""
        seller: m.LeaseRole = "reseller" if lease.is_resold else "operator"
        sides: tuple[tuple[int, m.LeaseRole], ...] = ((buyer, "buyer"), (lease.seller, seller))
        for account, role in sides:

            def make(aseq: int, role: m.LeaseRole = role) -> m.Lease:
                return m.Lease(
                    aseq=aseq,
                    lease_id=lease.lease_id,
                    market=self._mirror.markets[lease.instrument].ticker,
                    role=role,
                    qty=qty_text(lease.qty_lots),
                    price=price_text(lease.price_ticks),
                    state=state,
                    sequence=event.sequence,
                    time_us=time_us(event.time_ns),
                    batch=batch,
                    assumed=assumed,
                )

            self._tell(account, make)

    def escrowed(self, event: Event) -> None:
        """So much of a buyer's pending money is in escrow."""
        self.transfer(event, "escrow", event.account, event.amount_usdc6)
        meant, assumed = self.leases.confirmed(event.account, event.amount_usdc6)
        for lease in meant:
            self._lease(event.account, lease, event, "escrowed", event.reference, assumed)

    def voided(self, event: Event) -> None:
        """A fill is undone: the buyer's money is free again, and the seller's bond."""
        bond_usdc6 = self._mirror.markets[event.instrument].bond_usdc6_per_lot * event.qty_lots
        paid_usdc6 = cost_usdc6(event.price_ticks, event.qty_lots, event.taker_fee_ppm)
        is_resold = bool(event.reason & FillNote.RESOLD)
        self.transfer(event, "fill_voided", event.account, paid_usdc6)
        if not is_resold:
            self.transfer(event, "fill_voided", event.counter_account, bond_usdc6)
        lease = Bought(
            event.reference, event.counter_account, event.instrument, event.price_ticks,
            event.qty_lots, paid_usdc6, is_resold,
        )  # fmt: skip
        self._lease(event.account, lease, event, "voided")
        meant, assumed = self.leases.voided(event.account, lease.lease_id, paid_usdc6)
        for other in meant:
            self._lease(event.account, other, event, "escrowed", assumed=assumed)

    def rejected(self, event: Event, command: Command) -> None:
        """What a client asked for was refused; other commands are nobody's."""
        request = _REQUESTS.get(command.kind)
        if request is None or event.account not in self._mirror.accounts:
            return
        reject = Reject(event.reason)
        self._tell(
            event.account,
            lambda aseq: m.OrderRejected(
                aseq=aseq,
                request=request,
                code=reject.value,
                reason=reject.name,
                message=WORDS[reject],
                sequence=event.sequence,
                time_us=time_us(event.time_ns),
                client_id=command.client_id,
                order_id=command.order_id if command.kind in _NAME_AN_ORDER else 0,
            ),
        )

    def cancelled_all(self, event: Event, command: Command) -> None:
        if event.account not in self._mirror.accounts:
            return
        self._tell(
            event.account,
            lambda aseq: m.CancelledAll(
                aseq=aseq,
                cause=CAUSES[command.price_ticks] if command.price_ticks in _CAUSES else "request",
                count=event.qty_lots,
                sequence=event.sequence,
                time_us=time_us(event.time_ns),
                session=command.session,
                partial=event.reason == CancelReason.EFFECTS_LIMIT,
            ),
        )

    def transfer(self, event: Event, kind: m.TransferKind, account: int, amount_usdc6: int) -> None:
        self._tell(
            account,
            lambda aseq: m.Transfer(
                aseq=aseq,
                kind=kind,
                amount=usdc_text(amount_usdc6),
                reference=event.reference,
                sequence=event.sequence,
                time_us=time_us(event.time_ns),
            ),
        )

    def settle_balances(self, now_us: int) -> None:
        """Read the money of the accounts touched; only what was published is ever told."""
        for account in self._touched:
            balances = self._source.balances(account)
            if balances == self.balances.get(account):
                continue
            self.balances[account] = balances
            aseq, told = self._mirror.account(account).aseq, translate.balances_of(balances)
            self._hub.tell_now(topic_of(account), lambda a=aseq, b=told: m.Balance(a, b, now_us))
        self._touched.clear()

    # --- again, from a number on ---------------------------------------------------------------
    def resume(
        self, reader: Reader, account: int, from_aseq: int, now_us: Callable[[], int]
    ) -> None:
        """Tell it all from that number on, then what comes. `check_resume` has said yes."""
        assert self._history is not None, "sessions have one"
        topic, state = topic_of(account), self._mirror.account(account)
        self.leave(reader, topic)

        def arrived() -> None:
            del self._resumes[reader]
            caught_up = m.CaughtUp(state.aseq, self.balances_of(account), now_us())
            reader.send(reader.codec.encode(caught_up))
            self._hub.add(reader, topic)

        resume = Resume(reader, account, from_aseq, lambda: state.aseq, arrived)
        self._resumes[reader] = resume
        self._history.resume(resume)

    def check_resume(self, account: int, from_aseq: int) -> None:
        """Raises BadRequest unless the stream can be told from that number on."""
        assert self._history is not None
        next_aseq = self._mirror.account(account).aseq + 1
        oldest = self._history.oldest_of(account, next_aseq)
        if from_aseq > next_aseq:
            raise BadRequest(Reject.INVALID_FIELD, "from_aseq", f"the next number is {next_aseq}")
        if from_aseq < oldest:
            raise BadRequest(Reject.HISTORY_GONE, "from_aseq", f"the oldest kept is {oldest}")

    def leave(self, listener: Listener, topic: Topic) -> None:
        """Tell it nothing more, whether it was on its way or there."""
        resume = self._resumes.pop(listener, None)
        if resume is not None:
            resume.is_over = True
        self._hub.remove(listener, topic)

    # --- how things are ------------------------------------------------------------------------
    def snapshot(self, account: int, now_us: int) -> m.AccountSnapshot:
        state = self._mirror.account(account)
        return m.AccountSnapshot(
            aseq=state.aseq,
            account=account,
            wallet=address_text(state.wallet),
            balances=self.balances_of(account),
            orders=self.open_orders(account),
            capacities=[
                (self._mirror.markets[instrument].ticker, qty_text(lots))
                for instrument, lots in state.capacities.items()
            ],
            time_us=now_us,
        )

    def balances_of(self, account: int) -> m.Balances:
        """As last published: never what is matched but not yet durable."""
        return translate.balances_of(self.balances.get(account, _NO_BALANCES))

    def open_orders(self, account: int, instrument: int = EVERY_MARKET) -> list[m.OrderInfo]:
        """Oldest first, of one market or of all."""
        return [
            self._mirror.order_info(order)
            for order in self._mirror.account(account).orders.values()
            if instrument in {EVERY_MARKET, order.instrument}
        ]


def order_told(told: list[m.Order | m.Fill]) -> m.OrderInfo | None:
    """An order as its kept messages, oldest first, leave it: the first one, the last `order` and
    the last of all. None if it is not in them."""
    orders = [message for message in told if isinstance(message, m.Order)]
    if not orders:
        return None
    last, end = orders[-1], told[-1]
    state = end.state if isinstance(end, m.Order) else "filled" if end.left == "0" else "open"
    return m.OrderInfo(
        order_id=last.order_id,
        market=last.market,
        side=last.side,
        price=last.price,
        qty=last.qty,
        left=end.left,
        state=state,
        time_us=told[0].time_us,
        client_id=last.client_id,
        expires_s=last.expires_s,
        session=last.session,
    )


def topic_of(account: int) -> Topic:
    """Raises BadRequest unless there is one."""
    if not account:
        raise BadRequest(Reject.NO_ACCOUNT)
    return Topic("account", account)
