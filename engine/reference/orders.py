"""The rules of orders and of what they hold: how they trade, rest, change and leave.

Invariant: an order holds what its remainder needs, to the µUSDC. The other rules build on this.
"""

from collections import deque
from collections.abc import Callable, Sequence

from engine.records import (
    ACCOUNT_ORDERS_MAX,
    ALL_INSTRUMENTS,
    EFFECTS_MAX,
    FEE_TIERS,
    OF_SEVERAL,
    OPEN_ORDERS_MAX,
    PARTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    Balances,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Flag,
    MarketStatus,
    OneSide,
    SelfTrade,
    Side,
    TimeInForce,
    fee_usdc6,
)
from engine.reference.state import Account, Book, Capacity, Order, OrderIds, RejectedError
from engine.rejects import Reject

Rule = Callable[[Command], None]


def halves(expiry_s: int) -> dict[str, int]:
    """An event's time lies where a fill's rates do."""
    return {"maker_fee_ppm": expiry_s & 0xFFFF, "taker_fee_ppm": expiry_s >> 16}


class Orders:
    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.books: dict[int, Book] = {}
        self.capacities: dict[tuple[int, int], Capacity] = {}
        self.leases: dict[tuple[int, int], Capacity] = {}  # `declared`: what was bought
        self.orders: dict[int, Order] = {}
        self.ids = OrderIds()
        self.fees = [(0, 0)] * FEE_TIERS  # maker's and taker's rate, parts per million
        self.last_deposit = 0
        self.last_withdrawal = 0
        self.last_void = 0
        self.last_end = 0
        self.total = 0

    def apply_all(self, records: Sequence[Command]) -> list[Event]:
        """Commands one after the other; a head that has not all its parts is on its own."""
        events: list[Event] = []
        at = 0
        while at < len(records):
            head = records[at]
            parts = records[at + 1 : at + 1 + head.parts] if head.kind in OF_SEVERAL else ()
            if any(part.kind != CommandKind.PART for part in parts):
                parts = ()
            if head.kind in OF_SEVERAL and len(parts) != head.parts:
                parts = ()
            events += self.apply(head, parts)
            at += 1 + len(parts)
        return events

    def apply(self, command: Command, parts: Sequence[Command] = ()) -> list[Event]:
        self._meant = command  # changed where an order means another than it says
        self._parts = parts
        self._events: list[Event] = []
        rules = self._rules()
        self._stirred: list[Book] = []
        try:
            if command.kind not in rules:
                raise RejectedError(Reject.UNKNOWN_COMMAND)
            if command.kind in OF_SEVERAL:
                whole = len(parts) == command.parts <= PARTS_MAX
                self._require(whole, Reject.UNKNOWN_COMMAND)
            rules[CommandKind(command.kind)](command)
            for book in self._stirred:
                self._wake(parts[-1] if parts else command, book)
        except RejectedError as error:
            self._meant = command
            self._emit(EventKind.REJECTED, order_id=command.order_id, reason=error.reject)
        return self._events

    def _rules(self) -> dict[CommandKind, Rule]:
        """What each kind of command does."""
        return {
            CommandKind.NEW_ORDER: self._new_order,
            CommandKind.CANCEL: self._cancel,
            CommandKind.CANCEL_ALL: self._cancel_all,
            CommandKind.AMEND: self._amend,
            CommandKind.EXPIRE: self._expire,
        }

    def _wake(self, c: Command, book: Book) -> None:
        """After a command's own effects in a market: what waited for them (`waiting`)."""

    # What `auctions` says of an order.

    def _require_gathered(self, c: Command, book: Book) -> None:
        """That an order may be entered in a call."""

    def _check_band(self, c: Command, book: Book) -> None:
        """That a limit is not beyond the static band."""

    def _reach(self, c: Command, book: Book) -> int | None:
        """The worst price at which an order may trade now; None if at none."""
        return c.price_ticks if book.status is MarketStatus.OPEN else None

    def _call_beyond_band(self, c: Command, book: Book, taker: Order, reached: int | None) -> None:
        """Call the market if only the dynamic band kept what is left from trading."""

    def balances(self, account: int) -> Balances:
        a = self.accounts[account]
        return Balances(
            a.free, a.held, a.pending, a.escrow, a.leaving, a.bond_free, a.bond_held, a.bond_locked
        )

    # --- what every rule uses -------------------------------------------------------------------

    def _emit(self, kind: EventKind, **changes: int) -> None:
        """An event with what most kinds take from their command, and these fields changed."""
        c = self._meant
        event = Event(
            sequence=c.sequence,
            time_ns=c.time_ns,
            order_id=0,
            counter_order_id=c.client_id,
            price_ticks=c.price_ticks,
            qty_lots=c.qty_lots,
            maker_fee_ppm=0,
            taker_fee_ppm=0,
            account=c.account,
            counter_account=0,
            instrument=c.instrument,
            kind=kind,
            side=c.side,
            reason=0,
        )
        self._events.append(event._replace(**changes))

    def _require(self, condition: bool, reject: Reject) -> None:
        if not condition:
            raise RejectedError(reject)

    def _account(self, account: int) -> Account:
        self._require(account in self.accounts, Reject.UNKNOWN_ACCOUNT)
        return self.accounts[account]

    def _trading_account(self, account: int) -> Account:
        known = self._account(account)
        self._require(not known.closed, Reject.ACCOUNT_CLOSED)
        return known

    def _book(self, instrument: int) -> Book:
        self._require(instrument in self.books, Reject.UNKNOWN_INSTRUMENT)
        return self.books[instrument]

    # --- orders ---------------------------------------------------------------------------------

    def _new_order(self, c: Command) -> None:
        display, minimum = c.order_id & 0xFFFFFFFF, c.order_id >> 32
        plain = c.flags <= Flag.POST_ONLY and c.time_in_force <= TimeInForce.FOK
        if not plain or c.order_id or c.expiry_s or c.resale:
            c = self._as_limit(c, self._check_access(c), display, minimum)
        book = self._check_order(c)
        self._check_reserve(c, book)
        crossing = self._crosses(book, Side(c.side), c.price_ticks)
        self._require(not (c.flags & Flag.POST_ONLY and crossing), Reject.POST_ONLY_WOULD_TRADE)
        if c.time_in_force == TimeInForce.FOK:
            self._require(self._fillable(c, book, c.qty_lots), Reject.FOK_NOT_FILLABLE)
        if minimum:
            self._require(self._fillable(c, book, minimum), Reject.MINIMUM_NOT_FILLABLE)

        self._meant = c._replace(flags=0)
        if c.flags == Flag.ALL_OR_NONE and not self._fillable(c, book, c.qty_lots):
            self._wait(self._accept(c), c, stop_ticks=0)
            return
        self._work(self._accept(c), c, book, display, c.expiry_s)

    def _accept(self, c: Command) -> int:
        order_id = self.ids.take()
        if self.books[c.instrument].is_window and c.side == Side.BUY:
            self.leases.setdefault((c.account, c.instrument), Capacity())
        time = halves(c.expiry_s)
        self._emit(EventKind.ACCEPTED, order_id=order_id, reason=c.session, **time)
        return order_id

    def _wait(self, order_id: int, c: Command, stop_ticks: int) -> None:
        """Off the book, until its condition holds."""
        order = Order(
            order_id,
            c.client_id,
            c.account,
            c.instrument,
            Side(c.side),
            c.price_ticks,
            c.qty_lots,
            expiry_s=c.expiry_s,
            fee_ppm=self._taker_ppm(c.account),
            session=c.session,
            resale=bool(c.resale),
            sequence=c.sequence,
            waits=True,
            stop_ticks=stop_ticks,
            self_trade=SelfTrade(c.self_trade),
            ends=c.time_in_force == TimeInForce.IOC,
        )
        self.orders[order_id] = order
        self.books[c.instrument].waiting.append(order)
        self._hold(order, order.qty_lots)
        self._emit(EventKind.WAITING, order_id=order_id, counter_account=stop_ticks)

    def _work(
        self,
        order_id: int,
        c: Command,
        book: Book,
        display: int = 0,
        expiry_s: int = 0,
        taker_ppm: int | None = None,
    ) -> None:
        """Trade with what is there, then rest what is left or end it."""
        side = Side(c.side)
        taker = Order(
            order_id,
            c.client_id,
            c.account,
            c.instrument,
            side,
            c.price_ticks,
            c.qty_lots,
            fee_ppm=self._taker_ppm(c.account) if taker_ppm is None else taker_ppm,
            session=c.session,
            resale=bool(c.resale),
            sequence=c.sequence,
        )
        if all(known is not book for known in self._stirred):
            self._stirred.append(book)
        self._hold(taker, taker.qty_lots)
        self._trade(c, book, taker)
        if taker.qty_lots and c.time_in_force == TimeInForce.GTC:
            book.sides[side].setdefault(taker.price_ticks, deque()).append(taker)
            self.orders[order_id] = taker
            self._release(taker, taker.qty_lots)
            taker.fee_ppm = min(self._maker_ppm(c.account), taker.fee_ppm)
            self._hold(taker, taker.qty_lots)
            taker.expiry_s, taker.display_lots = expiry_s, display
            if display and taker.qty_lots > display:
                taker.hidden_lots = taker.qty_lots - display
                taker.qty_lots = display
                self._emit(EventKind.CONCEALED, order_id=order_id, qty_lots=taker.hidden_lots)
            return
        if taker.qty_lots:
            self._end_taker(taker, CancelReason.IOC_REMAINDER)
        self.ids.give_back(order_id)

    def _as_limit(self, c: Command, book: Book, display: int, minimum: int) -> Command:
        """The plain limit order that an order with terms means."""
        known = c.side in tuple(Side) and c.self_trade in tuple(SelfTrade) and c.resale <= c.side
        self._require(known and c.time_in_force in tuple(TimeInForce), Reject.UNKNOWN_COMMAND)
        till_time = c.time_in_force == TimeInForce.GTT
        rests = till_time or c.time_in_force == TimeInForce.GTC
        market = c.flags == Flag.MARKET
        whole = c.flags == Flag.ALL_OR_NONE
        self._require(c.flags <= Flag.MARKET or whole, Reject.CONFLICTING_FLAGS)
        self._require(not (market and rests), Reject.CONFLICTING_FLAGS)
        self._require(rests or not whole, Reject.CONFLICTING_FLAGS)
        self._require(not whole or not (display or minimum), Reject.INVALID_TERMS)
        over = c.expiry_s * SECOND_NS <= c.time_ns
        self._require(till_time == (c.expiry_s != 0), Reject.INVALID_TERMS)
        self._require(not (till_time and over), Reject.INVALID_TERMS)
        self._require(max(display, minimum) <= c.qty_lots, Reject.INVALID_TERMS)
        self._require(rests or not display, Reject.INVALID_TERMS)
        self._require(not minimum or c.flags != Flag.POST_ONLY, Reject.CONFLICTING_FLAGS)
        multiple = book.lot_multiple
        self._require(display % multiple == 0 == minimum % multiple, Reject.QTY_NOT_A_MULTIPLE)
        if market:
            c = c._replace(price_ticks=self._market_price(c, book), flags=0)
        if till_time:
            c = c._replace(time_in_force=TimeInForce.GTC)
        return c

    def _market_price(self, c: Command, book: Book) -> int:
        """The best price of the other side, made worse by the order's protection."""
        self._require(0 <= c.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        best = book.best(Side(1 - c.side))
        if best is None:
            raise RejectedError(Reject.NOTHING_TO_TRADE_WITH)
        if c.side == Side.BUY:
            return min(best + c.price_ticks, PRICE_TICKS_MAX)
        return max(best - c.price_ticks, 1)

    def _check_access(self, c: Command) -> Book:
        book = self._book(c.instrument)
        self._require(book.status is not MarketStatus.CLOSED, Reject.MARKET_CLOSED)
        self._require(book.status is not MarketStatus.HALTED, Reject.MARKET_HALTED)
        if book.status is MarketStatus.CALL:
            self._require_gathered(c, book)
        shut = book.closes_s and book.closes_s * SECOND_NS <= c.time_ns
        self._require(not shut, Reject.MARKET_CLOSED)
        self._trading_account(c.account)
        return book

    def _check_order(self, c: Command) -> Book:
        book = self._check_form(c)
        mine = sum(order.account == c.account for order in self.orders.values())
        self._require(mine < ACCOUNT_ORDERS_MAX, Reject.ACCOUNT_ORDERS_FULL)
        self._require(len(self.orders) < OPEN_ORDERS_MAX, Reject.TOO_MANY_OPEN_ORDERS)
        return book

    def _check_form(self, c: Command) -> Book:
        """What an order says, where and when."""
        book = self._check_access(c)
        self._require(0 < c.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        self._require(0 < c.qty_lots <= QTY_LOTS_MAX, Reject.QTY_OUT_OF_RANGE)
        self._require(c.qty_lots % book.lot_multiple == 0, Reject.QTY_NOT_A_MULTIPLE)
        self._require(
            c.side in tuple(Side)
            and c.resale <= c.side
            and c.time_in_force <= TimeInForce.FOK
            and c.self_trade in tuple(SelfTrade)
            and c.flags in {0, Flag.POST_ONLY, Flag.ALL_OR_NONE}
            and not (c.kind == CommandKind.AMEND and c.flags == Flag.ALL_OR_NONE),
            Reject.UNKNOWN_COMMAND,
        )
        may_rest = c.time_in_force == TimeInForce.GTC
        self._require(may_rest or c.flags != Flag.POST_ONLY, Reject.CONFLICTING_FLAGS)
        self._check_band(c, book)
        return book

    def _check_reserve(self, c: Command, book: Book, old: Order | None = None) -> None:
        """Whether the account has what the order must hold, counting what `old` holds already."""
        account = self.accounts[c.account]
        old_left = old.left if old else 0
        if c.side == Side.BUY:
            held = self._cost(old, old_left) if old else 0
            notional = c.price_ticks * c.qty_lots
            need = notional + fee_usdc6(notional, self._taker_ppm(c.account))
            enough = need <= account.free + held
            self._require(enough, Reject.INSUFFICIENT_BALANCE)
            return
        table = self.leases if c.resale else self.capacities
        capacity = table.get((c.account, c.instrument), Capacity())
        offered = capacity.held - old_left + capacity.sold + c.qty_lots
        self._require(offered <= capacity.declared, Reject.INSUFFICIENT_CAPACITY)
        bond = 0 if c.resale else book.bond_per_lot * (c.qty_lots - old_left)
        self._require(bond <= account.bond_free, Reject.INSUFFICIENT_BOND)

    def _crosses(self, book: Book, side: Side, limit: int) -> bool:
        if side is Side.BUY:
            best_ask = book.best(Side.SELL)
            return best_ask is not None and best_ask <= limit
        best_bid = book.best(Side.BUY)
        return best_bid is not None and best_bid >= limit

    def _fillable(self, c: Command, book: Book, need: int) -> bool:
        """Whether so many lots fill at once, with a bounded number of events."""
        return self._survey(c, book, need, EFFECTS_MAX)[0]

    def _survey(self, c: Command, book: Book, need: int, met_max: int) -> tuple[bool, int]:
        """Whether so many lots fill at once, and how many orders were looked at.

        Own orders fill nothing: passed over under CANCEL_MAKER, else they end the order. What is
        concealed comes behind all that is shown at its price.
        """
        other = Side(1 - c.side)
        room = EFFECTS_MAX - 1 - len(self._events)  # one says that the order is accepted
        met = effects = 0
        limit = self._reach(c, book)
        for price in book.prices(other):
            if limit is None or ((price > limit) if c.side == Side.BUY else (price < limit)):
                return False, met
            concealed = 0
            for maker in book.sides[other][price]:
                met += 1
                effects += 1
                if maker.hidden_lots:
                    effects += 2 * (maker.hidden_lots // maker.display_lots + 1)
                if effects > room or met > met_max:
                    return False, met
                if maker.is_expired(c.time_ns):
                    continue
                if maker.account != c.account:
                    need -= maker.qty_lots
                    concealed += maker.hidden_lots
                    if need <= 0:
                        return True, met
                elif c.self_trade != SelfTrade.CANCEL_MAKER:
                    return False, met
            need -= concealed
            if need <= 0:
                return True, met
        return False, met

    def _trade(self, c: Command, book: Book, taker: Order) -> None:
        other = Side(1 - taker.side)
        limit = self._reach(c, book)
        while taker.qty_lots and limit is not None and self._crosses(book, taker.side, limit):
            if len(self._events) >= EFFECTS_MAX:
                self._end_taker(taker, CancelReason.EFFECTS_LIMIT)
                return
            best = book.best(other)
            assert best is not None
            maker = book.sides[other][best][0]
            if maker.is_expired(c.time_ns):
                self._remove(maker, CancelReason.EXPIRED)
                continue
            if maker.account == taker.account:
                self._self_trade(SelfTrade(c.self_trade), taker, maker)
                continue
            qty = min(taker.qty_lots, maker.qty_lots)
            self._emit(
                EventKind.FILL,
                order_id=taker.order_id,
                counter_order_id=maker.order_id,
                price_ticks=maker.price_ticks,
                qty_lots=qty,
                counter_account=maker.account,
                maker_fee_ppm=maker.fee_ppm,
                taker_fee_ppm=taker.fee_ppm,
                reason=FillNote.RESOLD if taker.resale or maker.resale else 0,
            )
            if book.is_window:
                buyer = taker if taker.side is Side.BUY else maker
                self.leases[buyer.account, buyer.instrument].declared += qty
            book.last_ticks = maker.price_ticks
            self._settle_fill(taker, qty, maker.price_ticks)
            self._settle_fill(maker, qty, maker.price_ticks)
            taker.qty_lots -= qty
            self._reduce(maker, qty)
        self._call_beyond_band(c, book, taker, limit)

    def _self_trade(self, mode: SelfTrade, taker: Order, maker: Order) -> None:
        if mode is SelfTrade.DECREMENT:
            both = min(taker.qty_lots, maker.qty_lots)
            self._emit(
                EventKind.DECREMENTED,
                order_id=taker.order_id,
                counter_order_id=maker.order_id,
                price_ticks=maker.price_ticks,
                qty_lots=both,
                counter_account=taker.account,
            )
            self._release(taker, both)
            self._release(maker, both)
            taker.qty_lots -= both
            self._reduce(maker, both)
            return
        if mode in {SelfTrade.CANCEL_MAKER, SelfTrade.CANCEL_BOTH}:
            self._remove(maker, CancelReason.SELF_TRADE)
        if mode in {SelfTrade.CANCEL_TAKER, SelfTrade.CANCEL_BOTH}:
            self._end_taker(taker, CancelReason.SELF_TRADE)

    def _end_taker(self, taker: Order, reason: CancelReason) -> None:
        """What is left of an order that is not on the book is cancelled."""
        self._emit(
            EventKind.CANCELLED, order_id=taker.order_id, qty_lots=taker.qty_lots, reason=reason
        )
        self._release(taker, taker.qty_lots)
        taker.qty_lots = 0

    def _reduce(self, maker: Order, qty: int) -> None:
        """What is shown shrinks where it stands; then the next clip is shown, behind all others
        of its price, or the order leaves the book."""
        maker.qty_lots -= qty
        if maker.qty_lots:
            return
        if not maker.hidden_lots:
            self._unlink(maker)
            return
        maker.qty_lots = min(maker.hidden_lots, maker.display_lots)
        maker.hidden_lots -= maker.qty_lots
        queue = self.books[maker.instrument].sides[maker.side][maker.price_ticks]
        queue.remove(maker)
        queue.append(maker)
        maker.sequence = self._meant.sequence
        self._emit_of(EventKind.REFRESHED, maker, maker.qty_lots, 0)

    def _unlink(self, order: Order) -> None:
        self._off_the_book(order)
        self.ids.give_back(order.order_id)

    def _off_the_book(self, order: Order) -> None:
        del self.orders[order.order_id]
        if order.waits:
            self.books[order.instrument].waiting.remove(order)
            return
        levels = self.books[order.instrument].sides[order.side]
        levels[order.price_ticks].remove(order)
        if not levels[order.price_ticks]:
            del levels[order.price_ticks]

    def _remove(self, order: Order, reason: CancelReason) -> None:
        self._emit_of(EventKind.CANCELLED, order, order.left, reason)
        self._release(order, order.left)
        self._unlink(order)

    def _emit_of(self, kind: EventKind, order: Order, qty: int, reason: int) -> None:
        """An event about a resting order."""
        self._emit(
            kind,
            order_id=order.order_id,
            counter_order_id=order.client_id,
            price_ticks=order.price_ticks,
            qty_lots=qty,
            account=order.account,
            instrument=order.instrument,
            side=order.side,
            reason=reason,
        )

    def _own_order(self, c: Command) -> Order:
        order = self.orders.get(c.order_id)
        if order is None or order.account != c.account:
            raise RejectedError(Reject.UNKNOWN_ORDER)
        return order

    def _cancel(self, c: Command) -> None:
        self._remove(self._own_order(c), CancelReason.BY_REQUEST)

    def _expire(self, c: Command) -> None:
        order = self._own_order(c)
        self._require(order.is_expired(c.time_ns), Reject.UNKNOWN_ORDER)
        self._remove(order, CancelReason.EXPIRED)

    def _amend(self, c: Command) -> None:
        """Less at the same price keeps its place; all else is cancelled and placed again."""
        order = self._own_order(c)
        self._require(not order.is_expired(c.time_ns), Reject.UNKNOWN_ORDER)
        self._require(not order.waits, Reject.WAITING_NOT_AMENDABLE)
        book = self.books[order.instrument]
        c = c._replace(
            instrument=order.instrument,
            side=order.side,
            client_id=order.client_id,
            price_ticks=c.price_ticks or order.price_ticks,
            qty_lots=c.qty_lots or order.left,
            time_in_force=TimeInForce.GTC,
            session=order.session,
            resale=int(order.resale),
        )
        self._require(0 < c.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        self._require(0 < c.qty_lots <= QTY_LOTS_MAX, Reject.QTY_OUT_OF_RANGE)
        self._require(c.qty_lots % book.lot_multiple == 0, Reject.QTY_NOT_A_MULTIPLE)
        if c.price_ticks == order.price_ticks and c.qty_lots <= order.left:
            cut = order.left - c.qty_lots
            self._release(order, cut)
            concealed = min(cut, order.hidden_lots)
            order.hidden_lots -= concealed
            order.qty_lots -= cut - concealed
            self._meant = c
            self._emit(EventKind.AMENDED, order_id=order.order_id)
            return
        self._check_order(c)
        self._check_reserve(c, book, order)
        crossing = self._crosses(book, Side(c.side), c.price_ticks)
        self._require(not (c.flags & Flag.POST_ONLY and crossing), Reject.POST_ONLY_WOULD_TRADE)
        self._release(order, order.left)
        self._off_the_book(order)
        self._meant = c
        self._emit(EventKind.AMENDED, order_id=order.order_id, reason=1)
        self._work(order.order_id, c, book, order.display_lots, order.expiry_s)
        if order.order_id in self.orders:
            self.orders[order.order_id].quote = order.quote

    def _cancel_all(self, c: Command) -> None:
        if c.instrument != ALL_INSTRUMENTS:
            self._book(c.instrument)
        self._require(c.flags in tuple(OneSide), Reject.UNKNOWN_COMMAND)
        self._clear(c, c.instrument, CancelReason.CANCEL_ALL, EventKind.CANCEL_ALL_DONE)

    def _clear(self, c: Command, instrument: int, why: CancelReason, done: EventKind) -> None:
        mine = [
            order
            for order in self.orders.values()
            if order.account == c.account
            and instrument in {ALL_INSTRUMENTS, order.instrument}
            and (c.flags == OneSide.BOTH or order.side == c.flags - OneSide.BUYS)
            and c.session in {0, order.session}
        ]
        mine.sort(key=lambda order: order.order_id & 0xFFFFFF)
        for order in mine[:EFFECTS_MAX]:
            self._remove(order, why)
        self._emit(
            done,
            qty_lots=len(mine[:EFFECTS_MAX]),
            reason=CancelReason.EFFECTS_LIMIT if len(mine) > EFFECTS_MAX else 0,
        )

    # --- reserve --------------------------------------------------------------------------------

    def _maker_ppm(self, account: int) -> int:
        return self.fees[self.accounts[account].fee_tier][0]

    def _taker_ppm(self, account: int) -> int:
        return self.fees[self.accounts[account].fee_tier][1]

    def _cost(self, order: Order, qty: int) -> int:
        """What a buy pays for so many lots at its limit: their price and the fee."""
        notional = order.price_ticks * qty
        return notional + fee_usdc6(notional, order.fee_ppm)

    def _hold(self, order: Order, qty: int) -> None:
        """What an order of so many lots needs, from free to held."""
        self._change_held(order, 0, qty)

    def _change_held(self, order: Order, before: int, after: int) -> None:
        """An order has so many lots left now: it holds what these need, no more."""
        account = self.accounts[order.account]
        qty = after - before
        if order.side is Side.BUY:
            change = self._cost(order, after) - self._cost(order, before)
            account.free -= change
            account.held += change
            return
        bond = self._bond(order, qty)
        account.bond_free -= bond
        account.bond_held += bond
        self._capacity(order).held += qty

    def _bond(self, order: Order, qty: int) -> int:
        """Hours sold again need none: that of who delivers them stays behind them."""
        return 0 if order.resale else self.books[order.instrument].bond_per_lot * qty

    def _capacity(self, order: Order) -> Capacity:
        table = self.leases if order.resale else self.capacities
        return table[order.account, order.instrument]

    def _release(self, order: Order, qty: int) -> None:
        """So many of the lots that are left no longer need anything."""
        self._change_held(order, order.left, order.left - qty)

    def _settle_fill(self, order: Order, qty: int, price: int) -> None:
        """What was held becomes pending or locked; a buyer's improvement is free again."""
        self._release(order, qty)
        account = self.accounts[order.account]
        if order.side is Side.BUY:
            paid = price * qty + fee_usdc6(price * qty, order.fee_ppm)
            account.free -= paid
            account.pending += paid
            return
        bond = self._bond(order, qty)
        account.bond_free -= bond
        account.bond_locked += bond
        self._capacity(order).sold += qty
