"""The rules of orders of several legs: blocks, exclusives and baskets.

Invariant: every leg that is meant to fill fills whole, or nothing changes. Each rule first finds
what would trade, without changing anything, and then trades it.
"""

from collections.abc import Iterator
from typing import Final

from engine.records import (
    BASKET_LEGS_MAX,
    BLOCK_OPERATORS_MAX,
    COMPOUND_LOOKS_MAX,
    EXCLUSIVE_LEGS_MAX,
    PRICE_TICKS_MAX,
    Command,
    CommandKind,
    EventKind,
    FillNote,
    SelfTrade,
    Side,
    TimeInForce,
    fee_usdc6,
)
from engine.reference.orders import Orders, Rule
from engine.reference.state import Book, Capacity, Order
from engine.rejects import Reject

HOUR_WINDOW: Final = 2  # the window kind H in a product, whose start it counts in hours


class Compound(Orders):
    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {
            CommandKind.EXCLUSIVE: self._exclusive,
            CommandKind.BASKET: self._basket,
            CommandKind.BLOCK: self._block,
        }

    def _legs(self, c: Command) -> list[Command]:
        """Each part as the order it is, under its own sequence."""
        return [
            part._replace(
                time_ns=c.time_ns,
                order_id=0,
                expiry_s=0,
                account=c.account,
                kind=CommandKind.NEW_ORDER,
                time_in_force=TimeInForce.IOC,
                self_trade=c.self_trade,
                flags=0,
                session=c.session,
            )
            for part in self._parts
        ]

    # --- legs that meet the book like any order ---------------------------------------------------

    def _exclusive(self, c: Command) -> None:
        legs = self._legs(c)
        self._require(len(legs) > 0, Reject.INVALID_LEGS)
        self._require(len(legs) <= EXCLUSIVE_LEGS_MAX, Reject.TOO_MANY_LEGS)
        for leg in legs:
            book = self._check_order(leg)
            self._require(leg.side == Side.BUY, Reject.INVALID_LEGS)
            self._check_reserve(leg, book)
        surpluses: list[tuple[int, int]] = []
        self._looks = 0
        for number, leg in enumerate(legs):
            cost = self._cost_now(leg)
            if cost is not None:
                surpluses.append((leg.price_ticks * leg.qty_lots - cost, -number))
        self._require(len(surpluses) > 0, Reject.LEGS_NOT_FILLABLE)
        chosen = -max(surpluses)[1]
        self._fill_legs([legs[chosen]], number=chosen + 1)

    def _basket(self, c: Command) -> None:
        legs = self._legs(c)
        self._require(len(legs) > 0, Reject.INVALID_LEGS)
        self._require(len(legs) <= BASKET_LEGS_MAX, Reject.TOO_MANY_LEGS)
        cash = bond = 0
        for number, leg in enumerate(legs):
            book = self._check_order(leg)
            others = {other.instrument for other in legs[:number]}
            self._require(leg.instrument not in others, Reject.INVALID_LEGS)
            if leg.side == Side.BUY:
                notional = leg.price_ticks * leg.qty_lots
                cash += notional + fee_usdc6(notional, self._taker_ppm(c.account))
                continue
            table = self.leases if leg.resale else self.capacities
            capacity = table.get((c.account, leg.instrument), Capacity())
            needed = capacity.held + capacity.sold + leg.qty_lots
            self._require(needed <= capacity.declared, Reject.INSUFFICIENT_CAPACITY)
            bond += 0 if leg.resale else book.bond_per_lot * leg.qty_lots
        account = self.accounts[c.account]
        self._require(cash <= account.free, Reject.INSUFFICIENT_BALANCE)
        self._require(bond <= account.bond_free, Reject.INSUFFICIENT_BOND)
        self._looks = 0
        for leg in legs:
            self._require(self._cost_now(leg) is not None, Reject.LEGS_NOT_FILLABLE)
        self._fill_legs(legs)

    def _cost_now(self, leg: Command) -> int | None:
        """What the lots of a leg trade for now, without fees; None if they cannot all trade."""
        book = self.books[leg.instrument]
        other = Side(1 - leg.side)
        left, cost = leg.qty_lots, 0
        limit = self._reach(leg, book)
        for price in book.prices(other):
            if limit is None or (price > limit if leg.side == Side.BUY else price < limit):
                return None
            concealed = 0
            for maker in book.sides[other][price]:
                self._look(1)
                if maker.hidden_lots:
                    self._look(2 * (maker.hidden_lots // maker.display_lots + 1))
                if maker.is_expired(leg.time_ns):
                    continue
                if maker.account == leg.account:
                    if leg.self_trade != SelfTrade.CANCEL_MAKER:
                        return None
                    continue
                concealed += maker.hidden_lots
                lots = min(left, maker.qty_lots)
                cost += price * lots
                left -= lots
                if not left:
                    return cost
            lots = min(left, concealed)
            cost += price * lots
            left -= lots
            if not left:
                return cost
        return None

    def _look(self, looks: int) -> None:
        self._looks += looks
        self._require(self._looks <= COMPOUND_LOOKS_MAX, Reject.TOO_DEEP)

    def _fill_legs(self, legs: list[Command], number: int = 0) -> None:
        self._emit(EventKind.LEGS_FILLED, price_ticks=0, qty_lots=len(legs), reason=number)
        for leg in legs:
            self._meant = leg
            self._work(self._accept(leg), leg, self.books[leg.instrument])
        self._say_cost()

    def _say_cost(self) -> None:
        """The terminal event comes first, but tells what the buys behind it cost."""
        cost = sum(
            e.price_ticks * e.qty_lots + fee_usdc6(e.price_ticks * e.qty_lots, e.taker_fee_ppm)
            for e in self._events
            if e.kind == EventKind.FILL and e.side == Side.BUY
        )
        self._events[0] = self._events[0]._replace(price_ticks=cost)

    # --- a block: one seller throughout -----------------------------------------------------------

    def _block(self, c: Command) -> None:
        windows = [
            leg._replace(price_ticks=c.price_ticks, qty_lots=c.qty_lots, side=Side.BUY)
            for leg in self._legs(c)
        ]
        self._check_block(c, windows)
        sellers = {ask.account for ask in self._asks(windows[0], self._parts[0])}
        shown = sum(
            1
            for window, part in zip(windows, self._parts, strict=True)
            for price in self.books[window.instrument].prices(Side.SELL)
            if not part.price_ticks or price <= part.price_ticks
            for _ in self.books[window.instrument].sides[Side.SELL][price]
        )
        fits = shown <= COMPOUND_LOOKS_MAX and len(sellers) <= BLOCK_OPERATORS_MAX
        self._require(fits, Reject.TOO_DEEP)
        offers: list[tuple[int, int, int]] = []
        for seller in sellers:
            taken = [
                self._taken_from(seller, window, part)
                for window, part in zip(windows, self._parts, strict=True)
            ]
            cost = sum(ask.price_ticks * lots for asks in taken for ask, lots in asks)
            whole = all(sum(lots for _, lots in asks) == c.qty_lots for asks in taken)
            if whole and cost <= c.price_ticks * c.qty_lots * len(windows):
                earliest = min(ask.sequence for asks in taken for ask, _ in asks)
                offers.append((cost, earliest, seller))
        self._require(len(offers) > 0, Reject.LEGS_NOT_FILLABLE)
        _, _, seller = min(offers)
        self._emit(EventKind.LEGS_FILLED, price_ticks=0, qty_lots=len(windows))
        for window, part in zip(windows, self._parts, strict=True):
            self._buy_from(seller, window, part)
        self._say_cost()

    def _check_block(self, c: Command, windows: list[Command]) -> None:
        self._require(len(windows) > 0 and c.side == Side.BUY, Reject.INVALID_LEGS)
        for number, (window, part) in enumerate(zip(windows, self._parts, strict=True)):
            product = self._check_order(window).product
            self._require(0 <= part.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
            hourly = product >> 24 & 0xFF == HOUR_WINDOW
            follows = product == self.books[windows[0].instrument].product + number
            self._require(hourly and follows, Reject.INVALID_LEGS)
        limit = c.price_ticks * c.qty_lots * len(windows)
        need = limit + fee_usdc6(limit, self._taker_ppm(c.account))
        self._require(need <= self.accounts[c.account].free, Reject.INSUFFICIENT_BALANCE)

    def _asks(self, window: Command, part: Command) -> Iterator[Order]:
        """Others' asks of hours they deliver themselves, in the order of price and time, as dear as
        the part allows."""
        book: Book = self.books[window.instrument]
        for price in book.prices(Side.SELL):
            if part.price_ticks and price > part.price_ticks:
                return
            for ask in book.sides[Side.SELL][price]:
                others = ask.account != window.account and not ask.resale
                if others and not ask.is_expired(window.time_ns):
                    yield ask

    def _taken_from(self, seller: int, window: Command, part: Command) -> list[tuple[Order, int]]:
        """What a window would take of what one seller's asks show, each with its lots."""
        taken: list[tuple[Order, int]] = []
        left = window.qty_lots
        for ask in self._asks(window, part):
            if ask.account == seller and left:
                lots = min(left, ask.qty_lots)
                taken.append((ask, lots))
                left -= lots
        return taken

    def _buy_from(self, seller: int, window: Command, part: Command) -> None:
        self._meant = window
        order_id = self._accept(window)
        taker_ppm = self._taker_ppm(window.account)
        account = self.accounts[window.account]
        for ask, lots in self._taken_from(seller, window, part):
            self._emit(
                EventKind.FILL,
                order_id=order_id,
                counter_order_id=ask.order_id,
                price_ticks=ask.price_ticks,
                qty_lots=lots,
                counter_account=seller,
                maker_fee_ppm=ask.fee_ppm,
                taker_fee_ppm=taker_ppm,
                reason=FillNote.OFF_QUEUE,
            )
            self.leases[window.account, window.instrument].declared += lots
            notional = ask.price_ticks * lots
            account.free -= notional + fee_usdc6(notional, taker_ppm)
            account.pending += notional + fee_usdc6(notional, taker_ppm)
            self._settle_fill(ask, lots, ask.price_ticks)
            self._reduce(ask, lots)
        self._stirred.append(self.books[window.instrument])
        self.ids.give_back(order_id)
