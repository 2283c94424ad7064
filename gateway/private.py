"""Each account's own stream: its orders, fills, transfers and money, numbered.

Invariant: `aseq` of an account goes up by one with each message of its history, whoever listens,
and is the same after a restart; what a listener is sent after a snapshot, applied to it, is the
mirror. The feed tells it what happened; sessions ask it, through the feed, how things are.
"""

from collections.abc import Callable
from typing import Final

from compex_client import messages as m
from compex_client.units import price_text, qty_text, usdc_text
from compex_client.wallet import address_text

from engine.port import Source
from engine.records import Balances, Event, fee_usdc6
from engine.rejects import Reject
from gateway import translate
from gateway.hub import EVERY_MARKET, Hub, Topic
from gateway.mirror import Mirror, OpenOrder
from gateway.translate import SIDE_NAMES, time_us
from gateway.wire import BadRequest

_NO_BALANCES: Final = Balances(*(0,) * 8)


class Private:
    def __init__(self, hub: Hub, mirror: Mirror, source: Source) -> None:
        self._hub = hub
        self._mirror = mirror
        self._source = source
        self._touched: set[int] = set()  # accounts whose money may have changed in this batch
        self.balances: dict[int, Balances] = {}  # as last told

    # --- what happened -------------------------------------------------------------------------
    def _tell(self, account: int, make: Callable[[int], m.Order | m.Fill | m.Transfer]) -> None:
        """Number a message; it is built only if somebody listens."""
        state = self._mirror.account(account)
        state.aseq += 1
        self._touched.add(account)
        self._hub.tell_now(topic_of(account), lambda: make(state.aseq))

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
            )

        self._tell(order.account, make)

    def fill(self, maker: OpenOrder, taker: OpenOrder, event: Event, number: int) -> None:
        """A fill, which is event `number`, to both sides."""
        notional_usdc6 = event.price_ticks * event.qty_lots
        for order, fee_ppm in ((maker, event.maker_fee_ppm), (taker, event.taker_fee_ppm)):
            fee = usdc_text(fee_usdc6(notional_usdc6, fee_ppm)) if fee_ppm else ""

            def make(aseq: int, order: OpenOrder = order, fee: str = fee) -> m.Fill:
                return m.Fill(
                    aseq=aseq,
                    trade_id=number,
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

            self._tell(order.account, make)

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


def topic_of(account: int) -> Topic:
    """Raises BadRequest unless there is one."""
    if not account:
        raise BadRequest(Reject.NO_ACCOUNT)
    return Topic("account", account)
