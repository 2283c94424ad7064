"""Accounts, money and capacity: what settlement and the account itself may change.

Invariant: money enters by deposits and leaves by confirmed withdrawals, exits and ends of leases,
each once and in order; everything else moves it between the columns of one account. Called by
`match`.
"""

from typing import Any

from engine.book import CLOSED, LEASE, RULE_WINDOW, SELL, TRADING, UNKNOWN
from engine.kernel import int64, kernel, uint8, uint16, uint32, uint64
from engine.outbox import emit, reject
from engine.records import (
    ACCOUNTS_MAX,
    AMOUNT_USDC6_MAX,
    FEE_PPM_MAX,
    FEE_TIERS,
    INSTRUMENTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    TOTAL_USDC6_MAX,
    CancelReason,
    CommandKind,
    EventKind,
    Purse,
)
from engine.rejects import Reject
from engine.reserve import (
    BOND_FREE,
    BOND_LOCKED,
    ESCROW,
    FREE,
    LEAVING,
    PENDING,
    fee_of,
    find_capacity,
    free_capacity,
    make_capacity,
    undo_fill,
    unit_of,
)
from engine.trade import MAKER, TAKER, clear, known_account, why_not_trading


@kernel
def declare_capacity(s: Any, c: Any, out: Any) -> Any:
    """Set how many lots an operator has in all for a market; never below what it has promised."""
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    if not known_account(s, c.account) or s.identities[c.account].opened != TRADING:
        return reject(out, c, why_not_trading(s, c.account))
    if c.qty_lots < 0 or c.qty_lots > QTY_LOTS_MAX:
        return reject(out, c, Reject.QTY_OUT_OF_RANGE)
    capacity = make_capacity(s, c.account, c.instrument)
    if capacity == 0:
        return reject(out, c, Reject.TOO_MANY_CAPACITIES)
    row = s.capacities[capacity]
    if c.qty_lots < row.held_lots + row.sold_lots:
        return reject(out, c, Reject.CAPACITY_IN_USE)
    row.declared_lots = c.qty_lots
    emit(out, c, EventKind.CAPACITY_DECLARED)


@kernel
def withdraw(s: Any, c: Any, out: Any) -> Any:
    """Free balance leaves; the command's own sequence is the withdrawal's id."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0 or c.amount_usdc6 > AMOUNT_USDC6_MAX:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.amount_usdc6 > s.balances[c.account, FREE]:
        return reject(out, c, Reject.INSUFFICIENT_BALANCE)
    s.balances[c.account, FREE] -= c.amount_usdc6
    s.balances[c.account, LEAVING] += c.amount_usdc6
    e = emit(out, c, EventKind.WITHDRAWAL_RESERVED)
    e.reference = c.sequence


@kernel
def open_account(s: Any, c: Any, out: Any) -> Any:
    if c.account == 0 or c.account >= ACCOUNTS_MAX:
        return reject(out, c, Reject.TOO_MANY_ACCOUNTS)
    identity = s.identities[c.account]
    if identity.opened != UNKNOWN:
        return reject(out, c, Reject.ACCOUNT_EXISTS)
    identity.opened = uint8(TRADING)
    e = emit(out, c, EventKind.ACCOUNT_OPENED)
    for i in range(20):
        identity.owner[i] = c.owner[i]
        e.owner[i] = c.owner[i]
    s.account_high = max(s.account_high, c.account)


@kernel
def close_account(s: Any, c: Any, out: Any) -> Any:
    """No new orders or capacity from now on; open orders are cancelled. Harmless when repeated,
    and repeated by the caller while the terminal event carries EFFECTS_LIMIT."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    s.identities[c.account].opened = uint8(CLOSED)
    return clear(s, c, out, True, CancelReason.ACCOUNT_CLOSED, EventKind.ACCOUNT_CLOSED)


@kernel
def reopen_account(s: Any, c: Any, out: Any) -> Any:
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    s.identities[c.account].opened = uint8(TRADING)
    emit(out, c, EventKind.ACCOUNT_REOPENED)


@kernel
def deposit(s: Any, c: Any, out: Any) -> Any:
    """Credit the vault's next deposit; any other number is refused, so redelivery is harmless."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    amount = c.amount_usdc6
    if amount <= 0 or amount > AMOUNT_USDC6_MAX or s.total_usdc6 + amount > TOTAL_USDC6_MAX:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.reference != s.last_deposit + uint64(1):
        return reject(out, c, Reject.DEPOSIT_OUT_OF_ORDER)
    s.last_deposit = c.reference
    s.total_usdc6 += amount
    if c.side == Purse.BOND:
        s.balances[c.account, BOND_FREE] += amount
    else:
        s.balances[c.account, FREE] += amount
    emit(out, c, EventKind.DEPOSITED)


@kernel
def confirm_escrow(s: Any, c: Any, out: Any) -> Any:
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    identity = s.identities[c.account]
    if c.reference <= identity.last_batch:
        return reject(out, c, Reject.ESCROW_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, PENDING]:
        return reject(out, c, Reject.ESCROW_EXCEEDS_PENDING)
    identity.last_batch = c.reference
    s.balances[c.account, PENDING] -= c.amount_usdc6
    s.balances[c.account, ESCROW] += c.amount_usdc6
    emit(out, c, EventKind.ESCROW_CONFIRMED)


@kernel
def answer_withdrawal(s: Any, c: Any, out: Any) -> Any:
    """A withdrawal was paid, or will not be and is free again: one of the two, once, in order."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.reference <= s.last_withdrawal:
        return reject(out, c, Reject.WITHDRAWAL_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, LEAVING]:
        return reject(out, c, Reject.WITHDRAWAL_EXCEEDS_LEAVING)
    s.last_withdrawal = c.reference
    s.balances[c.account, LEAVING] -= c.amount_usdc6
    if c.kind == CommandKind.CANCEL_WITHDRAWAL:
        s.balances[c.account, FREE] += c.amount_usdc6
        emit(out, c, EventKind.WITHDRAWAL_CANCELLED)
        return
    s.total_usdc6 -= c.amount_usdc6
    emit(out, c, EventKind.WITHDRAWAL_CONFIRMED)


@kernel
def void_fill(s: Any, c: Any, out: Any) -> Any:
    """Undo a fill that was never settled: the buyer's money is free again, and so are the
    seller's bond and capacity. Hours that the buyer has offered or sold again stay sold."""
    seller = c.counter_account
    if not known_account(s, c.account) or not known_account(s, seller):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.instrument >= INSTRUMENTS_MAX or s.books[c.instrument].status == 0:
        return reject(out, c, Reject.UNKNOWN_INSTRUMENT)
    if c.price_ticks <= 0 or c.price_ticks > PRICE_TICKS_MAX:
        return reject(out, c, Reject.PRICE_OUT_OF_RANGE)
    if c.qty_lots <= 0 or c.qty_lots > QTY_LOTS_MAX:
        return reject(out, c, Reject.QTY_OUT_OF_RANGE)
    if c.buyer_fee_ppm > FEE_PPM_MAX:
        return reject(out, c, Reject.INVALID_FEES)
    if c.void_number <= s.last_void:
        return reject(out, c, Reject.VOID_OUT_OF_ORDER)
    amount = c.price_ticks * c.qty_lots
    amount += fee_of(amount, c.buyer_fee_ppm)
    if c.resale > 1:
        return reject(out, c, Reject.UNKNOWN_COMMAND)
    book = s.books[c.instrument]
    bond = unit_of(book, SELL, int64(0), c.resale) * c.qty_lots
    sold_by = seller | uint32(c.resale) << uint32(31)
    capacity = find_capacity(s, sold_by, c.instrument, uint8(SELL))
    bought = book.rules & uint8(RULE_WINDOW) != 0
    lease = find_capacity(s, c.account | uint32(LEASE), c.instrument, uint8(SELL))
    if (bought and c.qty_lots > free_capacity(s, lease)) or (
        amount > s.balances[c.account, PENDING]
        or bond > s.balances[seller, BOND_LOCKED]
        or c.qty_lots > s.capacities[capacity].sold_lots
    ):
        return reject(out, c, Reject.VOID_EXCEEDS_FILLS)
    s.last_void = c.void_number
    undo_fill(s, c.account, amount, seller, capacity, c.qty_lots, bond)
    if bought:
        s.capacities[lease].declared_lots -= c.qty_lots
    e = emit(out, c, EventKind.FILL_VOIDED)
    e.counter_account = seller
    e.taker_fee_ppm = c.buyer_fee_ppm
    e.reason = uint16(c.resale) << uint16(1)  # RESOLD, as in the fill


@kernel
def confirm_exit(s: Any, c: Any, out: Any) -> Any:
    """The owner took free money out of the vault without us; `reference` counts the account's
    exits from 1."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 <= 0:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    identity = s.identities[c.account]
    if c.reference != uint64(identity.exits) + uint64(1):
        return reject(out, c, Reject.EXIT_OUT_OF_ORDER)
    if c.amount_usdc6 > s.balances[c.account, FREE]:
        return reject(out, c, Reject.EXIT_EXCEEDS_FREE)
    identity.exits = uint16(c.reference)
    s.total_usdc6 -= c.amount_usdc6
    s.balances[c.account, FREE] -= c.amount_usdc6
    emit(out, c, EventKind.EXIT_CONFIRMED)


@kernel
def end_leases(s: Any, c: Any, out: Any) -> Any:
    """The vault has paid leases out, or given them back, for good: what they cost is nobody's
    escrow any more and has left, and the bond behind them is free. `reference` counts all of
    these, of all accounts, from 1."""
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.amount_usdc6 < 0 or c.bond_usdc6 < 0 or c.amount_usdc6 | c.bond_usdc6 == 0:
        return reject(out, c, Reject.AMOUNT_OUT_OF_RANGE)
    if c.reference != s.last_end + uint64(1):
        return reject(out, c, Reject.END_OUT_OF_ORDER)
    if (
        c.amount_usdc6 > s.balances[c.account, ESCROW]
        or c.bond_usdc6 > s.balances[c.account, BOND_LOCKED]
    ):
        return reject(out, c, Reject.END_EXCEEDS_LEASES)
    s.last_end = c.reference
    s.total_usdc6 -= c.amount_usdc6
    s.balances[c.account, ESCROW] -= c.amount_usdc6
    s.balances[c.account, BOND_LOCKED] -= c.bond_usdc6
    s.balances[c.account, BOND_FREE] += c.bond_usdc6
    e = emit(out, c, EventKind.LEASES_ENDED)
    e.bond_usdc6 = c.bond_usdc6


# --- fees ---------------------------------------------------------------------------------------


@kernel
def set_fees(s: Any, c: Any, out: Any) -> Any:
    """The rates of a tier, for orders that come from now on: a resting one keeps its own."""
    if c.fee_tier >= FEE_TIERS or not c.maker_fee_ppm <= c.taker_fee_ppm <= FEE_PPM_MAX:
        return reject(out, c, Reject.INVALID_FEES)
    s.fees[c.fee_tier, MAKER] = c.maker_fee_ppm
    s.fees[c.fee_tier, TAKER] = c.taker_fee_ppm
    e = emit(out, c, EventKind.FEES_SET)
    e.maker_fee_ppm = c.maker_fee_ppm
    e.taker_fee_ppm = c.taker_fee_ppm


@kernel
def set_fee_tier(s: Any, c: Any, out: Any) -> Any:
    if not known_account(s, c.account):
        return reject(out, c, Reject.UNKNOWN_ACCOUNT)
    if c.fee_tier >= FEE_TIERS:
        return reject(out, c, Reject.INVALID_FEES)
    s.identities[c.account].fee_tier = c.fee_tier
    emit(out, c, EventKind.FEE_TIER_SET)
