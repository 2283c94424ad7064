"""Each account's own stream: its orders, fills, leases, transfers and money, numbered.

Invariant: `aseq` of an account goes up by one with each message of its history, whoever listens,
and is the same after a restart; every message is put into the history. What a listener is sent
after a snapshot, or after the history from a number on, applied to that, is the mirror. The feed
tells it what happened; sessions ask it, through the feed, how things are.
"""

from collections.abc import Callable
from typing import Final

from compex_client import messages as m
from compex_client.units import qty_text
from compex_client.wallet import address_text

from engine.port import Source
from engine.records import Balances, Command, Event, FillNote, Side, cost_usdc6
from engine.rejects import Reject
from gateway import facts, translate
from gateway.history import History, Reader, Resume
from gateway.hub import EVERY_MARKET, Hub, Listener, Topic
from gateway.leases import Bought, Leases
from gateway.mirror import Mirror, OpenOrder
from gateway.wire import BadRequest


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
        self._money_told: dict[int, Balances] = {}  # to the accounts' listeners
        if history is not None:
            history.ticker = self._ticker

    # --- what happened -------------------------------------------------------------------------
    def _ticker(self, instrument: int) -> str:
        return self._mirror.markets[instrument].ticker

    def _number(self, account: int) -> int:
        """Of the account's next message."""
        state = self._mirror.account(account)
        state.aseq += 1
        self._touched.add(account)
        return state.aseq

    def _tell(self, account: int, record: bytes, kind: int = 0) -> None:
        """Keep a message, by its kind as well if one is given; build it if somebody listens."""
        history = self._history
        if history is not None and self.event_number > history.begin:
            history.put(account, record)
            if kind:
                history.put_of_kind(kind, account, record)
        if self._hub.has("account"):
            self._say(account, record)

    def _say(self, account: int, record: bytes) -> None:
        self._hub.tell_now(topic_of(account), lambda: facts.message(record, self._ticker))

    def order(self, order: OpenOrder, event: Event, reason: int = 0) -> None:
        account = order.account
        self._tell(account, facts.of_order(self._number(account), order, event, reason))

    def changed(self, order: OpenOrder, event: Event) -> None:
        """The reason is what kind of event it is."""
        self.order(order, event, facts.BY_KIND + event.kind)

    def fill(self, maker: OpenOrder, taker: OpenOrder, event: Event) -> None:
        """A fill to both sides, and the lease that it is."""
        number = self.event_number
        for order, fee_ppm in ((maker, event.maker_fee_ppm), (taker, event.taker_fee_ppm)):
            account = order.account
            record = facts.of_fill(
                self._number(account), order, event, number, fee_ppm, order is maker
            )
            self._tell(account, record, facts.FILL)
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
            aseq = self._number(account)
            record = facts.of_lease(aseq, account, lease, event, role, state, batch, assumed)
            self._tell(account, record, facts.LEASE)

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
        account = event.account
        if command.kind in facts.REQUESTS and account in self._mirror.accounts:
            self._tell(account, facts.of_rejected(self._number(account), event, command))

    def cancelled_all(self, event: Event, command: Command) -> None:
        account = event.account
        if account in self._mirror.accounts:
            self._tell(account, facts.of_cancelled_all(self._number(account), event, command))

    def transfer(self, event: Event, kind: m.TransferKind, account: int, amount_usdc6: int) -> None:
        aseq = self._number(account)
        self._tell(account, facts.of_transfer(aseq, account, event, kind, amount_usdc6))

    def settle_balances(self, now_us: int) -> None:
        """Tell who listens what money the accounts touched have, as it was published."""
        if self._hub.has("account"):
            for account in self._touched:
                self._settle(account, now_us)
        self._touched.clear()

    def _settle(self, account: int, now_us: int) -> None:
        topic = topic_of(account)
        if not self._hub.wants(topic):
            return
        before, now = self._money_told.get(account), self._tell_money(account)
        if now != before:
            aseq = self._mirror.account(account).aseq
            self._hub.tell_now(topic, lambda: m.Balance(aseq, translate.balances_of(now), now_us))

    def _tell_money(self, account: int) -> Balances:
        """What listeners know from now on."""
        balances = self._money_told[account] = self._source.balances(account)
        return balances

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
            balances = translate.balances_of(self._tell_money(account))
            caught_up = m.CaughtUp(state.aseq, balances, now_us())
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
            balances=translate.balances_of(self._tell_money(account)),
            orders=self.open_orders(account),
            capacities=[
                (self._mirror.markets[instrument].ticker, qty_text(lots))
                for instrument, lots in state.capacities.items()
            ],
            time_us=now_us,
        )

    def balances_of(self, account: int) -> m.Balances:
        """As last published: never what is matched but not yet durable."""
        return translate.balances_of(self._source.balances(account))

    def open_orders(self, account: int, instrument: int = EVERY_MARKET) -> list[m.OrderInfo]:
        """Oldest first, of one market or of all."""
        return [
            self._mirror.order_info(order)
            for order in self._mirror.account(account).orders.values()
            if instrument in {EVERY_MARKET, order.instrument}
        ]


def topic_of(account: int) -> Topic:
    """Raises BadRequest unless there is one."""
    if not account:
        raise BadRequest(Reject.NO_ACCOUNT)
    return Topic("account", account)
