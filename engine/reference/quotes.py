"""The rules of mass quotes: all of an account's levels in a market, replaced by one command.

Invariant: either every old quote is cancelled and every new level placed, or nothing changes.
"""

from engine.records import (
    ACCOUNT_ORDERS_MAX,
    OPEN_ORDERS_MAX,
    CancelReason,
    Command,
    CommandKind,
    EventKind,
    Flag,
    SelfTrade,
    Side,
    TimeInForce,
    cost_usdc6,
)
from engine.reference.orders import Orders, Rule
from engine.reference.state import Book, Capacity, Order
from engine.rejects import Reject


class Quotes(Orders):
    def __init__(self) -> None:
        super().__init__()
        # By account and market: what was placed last, first to last, be it there still or not.
        self.sheets: dict[tuple[int, int], list[int]] = {}

    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {CommandKind.MASS_QUOTE: self._mass_quote}

    def _mass_quote(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._account(c.account)
        known = c.flags in {0, Flag.POST_ONLY} and c.self_trade in tuple(SelfTrade)
        self._require(known, Reject.UNKNOWN_COMMAND)
        sheet = self.sheets.get((c.account, c.instrument), [])
        old = [self.orders[order_id] for order_id in sheet if order_id in self.orders]
        levels = [
            part._replace(
                time_ns=c.time_ns,
                order_id=0,
                expiry_s=0,
                account=c.account,
                instrument=c.instrument,
                kind=CommandKind.NEW_ORDER,
                time_in_force=TimeInForce.GTC,
                self_trade=c.self_trade,
                flags=c.flags,
                session=c.session,
            )
            for part in self._parts
        ]
        if levels:
            self._check_levels(c, book, levels, old)
        self._emit(EventKind.QUOTED, qty_lots=len(levels))
        for order in old:
            self._remove(order, CancelReason.REPLACED)
        self.sheets[c.account, c.instrument] = [self._place(level, book) for level in levels]

    def _place(self, level: Command, book: Book) -> int:
        self._meant = level
        order_id = self._accept(level)
        self._work(order_id, level, book)
        if order_id in self.orders:
            self.orders[order_id].quote = True
        return order_id

    def _check_levels(
        self, c: Command, book: Book, levels: list[Command], old: list[Order]
    ) -> None:
        for level in levels:
            self._check_form(level)
            self._require(not level.resale, Reject.INVALID_LEGS)
        buys = [level for level in levels if level.side == Side.BUY]
        sells = [level for level in levels if level.side == Side.SELL]
        apart = all(b.price_ticks < s.price_ticks for b in buys for s in sells)
        self._require(apart, Reject.INVALID_LEGS)
        more = len(levels) - len(old)
        mine = sum(order.account == c.account for order in self.orders.values())
        self._require(mine + more <= ACCOUNT_ORDERS_MAX, Reject.ACCOUNT_ORDERS_FULL)
        self._require(len(self.orders) + more <= OPEN_ORDERS_MAX, Reject.TOO_MANY_OPEN_ORDERS)
        self._check_means(c, book, (buys, sells), old)
        if c.flags == Flag.POST_ONLY:
            trades = any(self._meets(level, book, old) for level in levels)
            self._require(not trades, Reject.POST_ONLY_WOULD_TRADE)

    def _check_means(
        self,
        c: Command,
        book: Book,
        sides: tuple[list[Command], list[Command]],
        old: list[Order],
    ) -> None:
        """Money, capacity and bond for all levels, counting what the old quotes hold."""
        buys, sells = sides
        taker_ppm = self._taker_ppm(c.account)
        cash = sum(cost_usdc6(level.price_ticks, level.qty_lots, taker_ppm) for level in buys)
        cash -= sum(self._cost(order, order.left) for order in old if order.side is Side.BUY)
        lots = sum(level.qty_lots for level in sells)
        lots -= sum(order.left for order in old if order.side is Side.SELL)
        account = self.accounts[c.account]
        capacity = self.capacities.get((c.account, c.instrument), Capacity())
        spare = capacity.declared - capacity.held - capacity.sold
        self._require(lots <= max(spare, 0), Reject.INSUFFICIENT_CAPACITY)
        self._require(cash <= account.free, Reject.INSUFFICIENT_BALANCE)
        self._require(book.bond_per_lot * lots <= account.bond_free, Reject.INSUFFICIENT_BOND)

    def _meets(self, level: Command, book: Book, old: list[Order]) -> bool:
        """Whether a level meets anybody once the old quotes are gone."""
        others = [o for o in book.on_side(Side(1 - level.side)) if o not in old]
        if level.side == Side.BUY:
            return any(order.price_ticks <= level.price_ticks for order in others)
        return any(order.price_ticks >= level.price_ticks for order in others)
