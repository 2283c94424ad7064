"""The rules of accounts, money, capacity and fees.

Invariant: money enters by deposits and leaves by withdrawals, exits and ends of leases; the rest
moves it about.
"""

from engine.records import (
    ACCOUNTS_MAX,
    ALL_INSTRUMENTS,
    AMOUNT_USDC6_MAX,
    FEE_PPM_MAX,
    FEE_TIERS,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    TOTAL_USDC6_MAX,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Purse,
    fee_usdc6,
)
from engine.reference.orders import Orders, Rule
from engine.reference.state import Account, Capacity
from engine.rejects import Reject


class Money(Orders):
    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {
            CommandKind.DECLARE_CAPACITY: self._declare_capacity,
            CommandKind.WITHDRAW: self._withdraw,
            CommandKind.OPEN_ACCOUNT: self._open_account,
            CommandKind.DEPOSIT: self._deposit,
            CommandKind.CONFIRM_ESCROW: self._confirm_escrow,
            CommandKind.CONFIRM_WITHDRAWAL: self._confirm_withdrawal,
            CommandKind.CLOSE_ACCOUNT: self._close_account,
            CommandKind.REOPEN_ACCOUNT: self._reopen_account,
            CommandKind.CANCEL_WITHDRAWAL: self._cancel_withdrawal,
            CommandKind.VOID_FILL: self._void_fill,
            CommandKind.CONFIRM_EXIT: self._confirm_exit,
            CommandKind.END_LEASES: self._end_leases,
            CommandKind.SET_FEES: self._set_fees,
            CommandKind.SET_FEE_TIER: self._set_fee_tier,
        }

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
        fee_ppm = c.expiry_s & 0xFFFF
        self._require(fee_ppm <= FEE_PPM_MAX, Reject.INVALID_FEES)
        self._require(void_number > self.last_void, Reject.VOID_OUT_OF_ORDER)
        notional = c.price_ticks * c.qty_lots
        self._require(c.resale <= 1, Reject.UNKNOWN_COMMAND)
        amount = notional + fee_usdc6(notional, fee_ppm)
        bond = 0 if c.resale else book.bond_per_lot * c.qty_lots
        table = self.leases if c.resale else self.capacities
        capacity = table.get((seller_number, c.instrument), Capacity())
        lease = self.leases.get((c.account, c.instrument), Capacity())
        still_there = lease.declared - lease.held - lease.sold
        unsold = not book.is_window or c.qty_lots <= still_there
        self._require(unsold, Reject.VOID_EXCEEDS_FILLS)
        filled = amount <= buyer.pending and bond <= seller.bond_locked
        self._require(filled and c.qty_lots <= capacity.sold, Reject.VOID_EXCEEDS_FILLS)
        self.last_void = void_number
        buyer.pending -= amount
        buyer.free += amount
        seller.bond_locked -= bond
        seller.bond_free += bond
        capacity.sold -= c.qty_lots
        if book.is_window:
            lease.declared -= c.qty_lots
        self._emit(
            EventKind.FILL_VOIDED,
            counter_account=seller_number,
            taker_fee_ppm=fee_ppm,
            reason=FillNote.RESOLD if c.resale else 0,
        )

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

    def _end_leases(self, c: Command) -> None:
        account = self._account(c.account)
        amount, bond, number = c.price_ticks, c.order_id, c.client_id
        fits = amount >= 0 and bond < 1 << 63 and (amount > 0 or bond > 0)
        self._require(fits, Reject.AMOUNT_OUT_OF_RANGE)
        self._require(number == self.last_end + 1, Reject.END_OUT_OF_ORDER)
        there = amount <= account.escrow and bond <= account.bond_locked
        self._require(there, Reject.END_EXCEEDS_LEASES)
        self.last_end = number
        self.total -= amount
        account.escrow -= amount
        account.bond_locked -= bond
        account.bond_free += bond
        self._emit(EventKind.LEASES_ENDED, order_id=bond)

    def _set_fees(self, c: Command) -> None:
        """For orders that come from now on: a resting one keeps its rate."""
        tier, maker, taker = c.side, c.order_id & 0xFFFF, c.order_id >> 16 & 0xFFFF
        fits = tier < FEE_TIERS and maker <= taker <= FEE_PPM_MAX
        self._require(fits, Reject.INVALID_FEES)
        self.fees[tier] = (maker, taker)
        self._emit(EventKind.FEES_SET, maker_fee_ppm=maker, taker_fee_ppm=taker)

    def _set_fee_tier(self, c: Command) -> None:
        account = self._account(c.account)
        self._require(c.side < FEE_TIERS, Reject.INVALID_FEES)
        account.fee_tier = c.side
        self._emit(EventKind.FEE_TIER_SET)
