"""The rules of the exchange, said slowly and plainly: the executable specification.

One class, sorted dictionaries, ordinary integers; written for reading, not for speed. Invariant: on
any sequence of commands it gives the same events, number for number, as the kernel in `match`.
Nothing in the product calls it; model tests drive it beside the kernel.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sortedcontainers import SortedDict

from engine.records import (
    ACCOUNT_ORDERS_MAX,
    ACCOUNTS_MAX,
    ALL_INSTRUMENTS,
    AMOUNT_USDC6_MAX,
    EFFECTS_MAX,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    TOTAL_USDC6_MAX,
    Balances,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    MarketStatus,
    OneSide,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.rejects import Reject

GENERATIONS: Final = 1 << 29


@dataclass(slots=True)
class Order:
    order_id: int
    client_id: int
    account: int
    instrument: int
    side: Side
    price_ticks: int
    qty_lots: int  # what is left and shown
    hidden_lots: int = 0  # of an iceberg: what is left and not shown
    display_lots: int = 0  # ... and how much is shown at a time
    expiry_s: int = 0  # 0: never

    @property
    def left(self) -> int:
        return self.qty_lots + self.hidden_lots

    def is_expired(self, time_ns: int) -> bool:
        return self.expiry_s != 0 and self.expiry_s * SECOND_NS <= time_ns


@dataclass(slots=True)
class Account:
    owner: bytes
    closed: bool = False
    exits: int = 0
    last_batch: int = 0
    free: int = 0
    held: int = 0
    pending: int = 0
    escrow: int = 0
    leaving: int = 0
    bond_free: int = 0
    bond_held: int = 0
    bond_locked: int = 0


@dataclass(slots=True)
class Capacity:
    declared: int = 0
    held: int = 0
    sold: int = 0


@dataclass(slots=True)
class Book:
    product: int
    lot_multiple: int
    bond_per_lot: int
    status: MarketStatus = MarketStatus.OPEN
    sides: tuple["SortedDict[int, deque[Order]]", "SortedDict[int, deque[Order]]"] = field(
        default_factory=lambda: (SortedDict(), SortedDict())
    )

    def best(self, side: Side) -> int | None:
        """The highest bid or the lowest ask."""
        levels = self.sides[side]
        if not levels:
            return None
        return levels.peekitem(-1 if side is Side.BUY else 0)[0]

    def prices(self, side: Side) -> Iterator[int]:
        """Best first."""
        levels = self.sides[side]
        return reversed(levels) if side is Side.BUY else iter(levels)


class OrderIds:
    """Slots taken last freed, first taken; the id is the slot and how often it was reused."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._generations = [0]

    def take(self) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._generations)
            self._generations.append(0)
        return self._generations[slot] << 24 | slot

    def give_back(self, order_id: int) -> None:
        slot = order_id & 0xFFFFFF
        self._generations[slot] = (self._generations[slot] + 1) % GENERATIONS
        self._free.append(slot)


class _RejectedError(Exception):
    def __init__(self, reject: Reject) -> None:
        self.reject = reject


class Reference:
    """One shard. `apply` takes commands in sequence order and returns each one's events."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.books: dict[int, Book] = {}
        self.capacities: dict[tuple[int, int], Capacity] = {}
        self.orders: dict[int, Order] = {}
        self.ids = OrderIds()
        self.last_deposit = 0
        self.last_withdrawal = 0
        self.last_void = 0
        self.total = 0

    def apply(self, command: Command) -> list[Event]:
        self._meant = command  # changed where an order means another than it says
        self._events: list[Event] = []
        rules = {
            CommandKind.NEW_ORDER: self._new_order,
            CommandKind.CANCEL: self._cancel,
            CommandKind.CANCEL_ALL: self._cancel_all,
            CommandKind.DECLARE_CAPACITY: self._declare_capacity,
            CommandKind.WITHDRAW: self._withdraw,
            CommandKind.AMEND: self._amend,
            CommandKind.EXPIRE: self._expire,
            CommandKind.OPEN_ACCOUNT: self._open_account,
            CommandKind.DEPOSIT: self._deposit,
            CommandKind.CONFIRM_ESCROW: self._confirm_escrow,
            CommandKind.CONFIRM_WITHDRAWAL: self._confirm_withdrawal,
            CommandKind.CLOSE_ACCOUNT: self._close_account,
            CommandKind.REOPEN_ACCOUNT: self._reopen_account,
            CommandKind.CANCEL_WITHDRAWAL: self._cancel_withdrawal,
            CommandKind.VOID_FILL: self._void_fill,
            CommandKind.CONFIRM_EXIT: self._confirm_exit,
            CommandKind.LIST_MARKET: self._list_market,
            CommandKind.HALT_MARKET: self._halt_market,
            CommandKind.RESUME_MARKET: self._resume_market,
        }
        try:
            if command.kind not in rules:
                raise _RejectedError(Reject.UNKNOWN_COMMAND)
            rules[CommandKind(command.kind)](command)
        except _RejectedError as error:
            self._meant = command
            self._emit(EventKind.REJECTED, order_id=command.order_id, reason=error.reject)
        return self._events

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
            raise _RejectedError(reject)

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
        if not plain or c.order_id or c.expiry_s:
            c = self._as_limit(c, self._check_access(c), display, minimum)
        book = self._check_order(c)
        self._check_reserve(c, book)
        crossing = self._crosses(book, Side(c.side), c.price_ticks)
        self._require(not (c.flags & Flag.POST_ONLY and crossing), Reject.POST_ONLY_WOULD_TRADE)
        if c.time_in_force == TimeInForce.FOK:
            self._require(self._fillable(c, book, c.qty_lots), Reject.FOK_NOT_FILLABLE)
        if minimum:
            self._require(self._fillable(c, book, minimum), Reject.MINIMUM_NOT_FILLABLE)

        self._meant = c
        order_id = self.ids.take()
        self._emit(EventKind.ACCEPTED, order_id=order_id)
        self._work(order_id, c, book, display, c.expiry_s)

    def _work(self, order_id: int, c: Command, book: Book, display: int, expiry_s: int) -> None:
        """Trade with what is there, then rest what is left or end it."""
        side = Side(c.side)
        taker = Order(
            order_id, c.client_id, c.account, c.instrument, side, c.price_ticks, c.qty_lots
        )
        self._hold(taker, taker.qty_lots)
        self._trade(c, book, taker)
        if taker.qty_lots and c.time_in_force == TimeInForce.GTC:
            book.sides[side].setdefault(taker.price_ticks, deque()).append(taker)
            self.orders[order_id] = taker
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
        known = c.side in tuple(Side) and c.self_trade in tuple(SelfTrade)
        self._require(known and c.time_in_force in tuple(TimeInForce), Reject.UNKNOWN_COMMAND)
        till_time = c.time_in_force == TimeInForce.GTT
        rests = till_time or c.time_in_force == TimeInForce.GTC
        market = c.flags == Flag.MARKET
        self._require(c.flags <= Flag.MARKET, Reject.CONFLICTING_FLAGS)
        self._require(not (market and rests), Reject.CONFLICTING_FLAGS)
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
            raise _RejectedError(Reject.NOTHING_TO_TRADE_WITH)
        if c.side == Side.BUY:
            return min(best + c.price_ticks, PRICE_TICKS_MAX)
        return max(best - c.price_ticks, 1)

    def _check_access(self, c: Command) -> Book:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.OPEN, Reject.MARKET_HALTED)
        self._trading_account(c.account)
        return book

    def _check_order(self, c: Command) -> Book:
        book = self._check_access(c)
        self._require(0 < c.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        self._require(0 < c.qty_lots <= QTY_LOTS_MAX, Reject.QTY_OUT_OF_RANGE)
        self._require(c.qty_lots % book.lot_multiple == 0, Reject.QTY_NOT_A_MULTIPLE)
        self._require(
            c.side in tuple(Side)
            and c.time_in_force <= TimeInForce.FOK
            and c.self_trade in tuple(SelfTrade)
            and c.flags in {0, Flag.POST_ONLY},
            Reject.UNKNOWN_COMMAND,
        )
        may_rest = c.time_in_force == TimeInForce.GTC
        self._require(may_rest or c.flags != Flag.POST_ONLY, Reject.CONFLICTING_FLAGS)
        mine = sum(order.account == c.account for order in self.orders.values())
        self._require(mine < ACCOUNT_ORDERS_MAX, Reject.ACCOUNT_ORDERS_FULL)
        self._require(len(self.orders) < OPEN_ORDERS_MAX, Reject.TOO_MANY_OPEN_ORDERS)
        return book

    def _check_reserve(self, c: Command, book: Book, old: Order | None = None) -> None:
        """Whether the account has what the order must hold, counting what `old` holds already."""
        account = self.accounts[c.account]
        old_left = old.left if old else 0
        if c.side == Side.BUY:
            held = old.price_ticks * old_left if old else 0
            enough = c.price_ticks * c.qty_lots <= account.free + held
            self._require(enough, Reject.INSUFFICIENT_BALANCE)
            return
        capacity = self.capacities.get((c.account, c.instrument), Capacity())
        offered = capacity.held - old_left + capacity.sold + c.qty_lots
        self._require(offered <= capacity.declared, Reject.INSUFFICIENT_CAPACITY)
        bond = book.bond_per_lot * (c.qty_lots - old_left)
        self._require(bond <= account.bond_free, Reject.INSUFFICIENT_BOND)

    def _crosses(self, book: Book, side: Side, limit: int) -> bool:
        if side is Side.BUY:
            best_ask = book.best(Side.SELL)
            return best_ask is not None and best_ask <= limit
        best_bid = book.best(Side.BUY)
        return best_bid is not None and best_bid >= limit

    def _fillable(self, c: Command, book: Book, need: int) -> bool:
        """Whether so many lots fill at once, with a bounded number of events.

        Own orders fill nothing: passed over under CANCEL_MAKER, else they end the order.
        """
        other = Side(1 - c.side)
        met = 0
        for price in book.prices(other):
            if (price > c.price_ticks) if c.side == Side.BUY else (price < c.price_ticks):
                return False
            for maker in book.sides[other][price]:
                met += 1
                if maker.hidden_lots:
                    met += 2 * (maker.hidden_lots // maker.display_lots + 1)
                if met > EFFECTS_MAX:
                    return False
                if maker.is_expired(c.time_ns):
                    continue
                if maker.account != c.account:
                    need -= maker.left
                    if need <= 0:
                        return True
                elif c.self_trade != SelfTrade.CANCEL_MAKER:
                    return False
        return False

    def _trade(self, c: Command, book: Book, taker: Order) -> None:
        other = Side(1 - taker.side)
        first = len(self._events)
        while taker.qty_lots and self._crosses(book, taker.side, taker.price_ticks):
            if len(self._events) - first >= EFFECTS_MAX:
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
            )
            self._settle_fill(taker, qty, maker.price_ticks)
            self._settle_fill(maker, qty, maker.price_ticks)
            taker.qty_lots -= qty
            self._reduce(maker, qty)

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
        self._emit_of(EventKind.REFRESHED, maker, maker.qty_lots, 0)

    def _unlink(self, order: Order) -> None:
        self._off_the_book(order)
        self.ids.give_back(order.order_id)

    def _off_the_book(self, order: Order) -> None:
        levels = self.books[order.instrument].sides[order.side]
        levels[order.price_ticks].remove(order)
        if not levels[order.price_ticks]:
            del levels[order.price_ticks]
        del self.orders[order.order_id]

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
            raise _RejectedError(Reject.UNKNOWN_ORDER)
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
        book = self.books[order.instrument]
        c = c._replace(
            instrument=order.instrument,
            side=order.side,
            client_id=order.client_id,
            price_ticks=c.price_ticks or order.price_ticks,
            qty_lots=c.qty_lots or order.left,
            time_in_force=TimeInForce.GTC,
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

    def _hold(self, order: Order, qty: int) -> None:
        account = self.accounts[order.account]
        if order.side is Side.BUY:
            account.free -= order.price_ticks * qty
            account.held += order.price_ticks * qty
            return
        bond = self.books[order.instrument].bond_per_lot * qty
        account.bond_free -= bond
        account.bond_held += bond
        self.capacities[order.account, order.instrument].held += qty

    def _release(self, order: Order, qty: int) -> None:
        self._hold(order, -qty)

    def _settle_fill(self, order: Order, qty: int, price: int) -> None:
        """What was held becomes pending or locked; a buyer's improvement is free again."""
        self._release(order, qty)
        account = self.accounts[order.account]
        if order.side is Side.BUY:
            account.free -= price * qty
            account.pending += price * qty
            return
        bond = self.books[order.instrument].bond_per_lot * qty
        account.bond_free -= bond
        account.bond_locked += bond
        self.capacities[order.account, order.instrument].sold += qty

    # --- money and capacity ---------------------------------------------------------------------

    def _declare_capacity(self, c: Command) -> None:
        self._book(c.instrument)
        self._trading_account(c.account)
        self._require(0 <= c.qty_lots <= QTY_LOTS_MAX, Reject.QTY_OUT_OF_RANGE)
        capacity = self.capacities.setdefault((c.account, c.instrument), Capacity())
        promised = capacity.held + capacity.sold
        self._require(c.qty_lots >= promised, Reject.CAPACITY_IN_USE)
        capacity.declared = c.qty_lots
        self._emit(EventKind.CAPACITY_DECLARED)

    def _withdraw(self, c: Command) -> None:
        account = self._account(c.account)
        amount = c.price_ticks
        self._require(0 < amount <= AMOUNT_USDC6_MAX, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(amount <= account.free, Reject.INSUFFICIENT_BALANCE)
        account.free -= amount
        account.leaving += amount
        self._emit(EventKind.WITHDRAWAL_RESERVED, counter_order_id=c.sequence)

    def _open_account(self, c: Command) -> None:
        self._require(0 < c.account < ACCOUNTS_MAX, Reject.TOO_MANY_ACCOUNTS)
        self._require(c.account not in self.accounts, Reject.ACCOUNT_EXISTS)
        owner = c.pack()[24:44]
        self.accounts[c.account] = Account(owner)
        self._emit(EventKind.ACCOUNT_OPENED)
        raw = bytearray(self._events[-1].pack())
        raw[16:36] = owner
        self._events[-1] = Event.unpack(bytes(raw))

    def _deposit(self, c: Command) -> None:
        account = self._account(c.account)
        amount = c.price_ticks
        fits = 0 < amount <= AMOUNT_USDC6_MAX and self.total + amount <= TOTAL_USDC6_MAX
        self._require(fits, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(c.client_id == self.last_deposit + 1, Reject.DEPOSIT_OUT_OF_ORDER)
        self.last_deposit = c.client_id
        self.total += amount
        if c.side == Purse.BOND:
            account.bond_free += amount
        else:
            account.free += amount
        self._emit(EventKind.DEPOSITED)

    def _confirm_escrow(self, c: Command) -> None:
        account = self._account(c.account)
        amount, batch = c.price_ticks, c.client_id
        self._require(amount > 0, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(batch > account.last_batch, Reject.ESCROW_OUT_OF_ORDER)
        self._require(amount <= account.pending, Reject.ESCROW_EXCEEDS_PENDING)
        account.last_batch = batch
        account.pending -= amount
        account.escrow += amount
        self._emit(EventKind.ESCROW_CONFIRMED)

    def _close_account(self, c: Command) -> None:
        self._account(c.account).closed = True
        self._clear(c, ALL_INSTRUMENTS, CancelReason.ACCOUNT_CLOSED, EventKind.ACCOUNT_CLOSED)

    def _reopen_account(self, c: Command) -> None:
        self._account(c.account).closed = False
        self._emit(EventKind.ACCOUNT_REOPENED)

    def _confirm_withdrawal(self, c: Command) -> None:
        account = self._answer_withdrawal(c)
        self.total -= c.price_ticks
        account.leaving -= c.price_ticks
        self._emit(EventKind.WITHDRAWAL_CONFIRMED)

    def _cancel_withdrawal(self, c: Command) -> None:
        account = self._answer_withdrawal(c)
        account.leaving -= c.price_ticks
        account.free += c.price_ticks
        self._emit(EventKind.WITHDRAWAL_CANCELLED)

    def _answer_withdrawal(self, c: Command) -> Account:
        account = self._account(c.account)
        amount, withdrawal = c.price_ticks, c.client_id
        self._require(amount > 0, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(withdrawal > self.last_withdrawal, Reject.WITHDRAWAL_OUT_OF_ORDER)
        self._require(amount <= account.leaving, Reject.WITHDRAWAL_EXCEEDS_LEAVING)
        self.last_withdrawal = withdrawal
        return account

    def _void_fill(self, c: Command) -> None:
        seller_number, void_number = c.order_id & 0xFFFFFFFF, c.order_id >> 32
        buyer, seller = self._account(c.account), self._account(seller_number)
        book = self._book(c.instrument)
        self._require(0 < c.price_ticks <= PRICE_TICKS_MAX, Reject.PRICE_OUT_OF_RANGE)
        self._require(0 < c.qty_lots <= QTY_LOTS_MAX, Reject.QTY_OUT_OF_RANGE)
        self._require(void_number > self.last_void, Reject.VOID_OUT_OF_ORDER)
        amount, bond = c.price_ticks * c.qty_lots, book.bond_per_lot * c.qty_lots
        capacity = self.capacities.get((seller_number, c.instrument), Capacity())
        filled = amount <= buyer.pending and bond <= seller.bond_locked
        self._require(filled and c.qty_lots <= capacity.sold, Reject.VOID_EXCEEDS_FILLS)
        self.last_void = void_number
        buyer.pending -= amount
        buyer.free += amount
        seller.bond_locked -= bond
        seller.bond_free += bond
        capacity.sold -= c.qty_lots
        self._emit(EventKind.FILL_VOIDED, counter_account=seller_number)

    def _confirm_exit(self, c: Command) -> None:
        account = self._account(c.account)
        amount, number = c.price_ticks, c.client_id
        self._require(amount > 0, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(number == account.exits + 1, Reject.EXIT_OUT_OF_ORDER)
        self._require(amount <= account.free, Reject.EXIT_EXCEEDS_FREE)
        account.exits = number
        self.total -= amount
        account.free -= amount
        self._emit(EventKind.EXIT_CONFIRMED)

    # --- markets --------------------------------------------------------------------------------

    def _list_market(self, c: Command) -> None:
        self._require(c.instrument < INSTRUMENTS_MAX, Reject.TOO_MANY_INSTRUMENTS)
        self._require(c.instrument not in self.books, Reject.ALREADY_LISTED)
        product, lot_multiple, bond = c.order_id, c.qty_lots, c.price_ticks
        lot_fits = 0 < lot_multiple <= QTY_LOTS_MAX
        bond_fits = 0 < bond <= PRICE_TICKS_MAX
        self._require(product > 0 and lot_fits and bond_fits, Reject.INVALID_LISTING)
        self.books[c.instrument] = Book(product, lot_multiple, bond)
        self._emit(EventKind.MARKET_LISTED, order_id=product)

    def _halt_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.OPEN, Reject.NOT_OPEN)
        book.status = MarketStatus.HALTED
        self._emit(EventKind.MARKET_HALTED)

    def _resume_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.HALTED, Reject.NOT_HALTED)
        book.status = MarketStatus.OPEN
        self._emit(EventKind.MARKET_RESUMED)
