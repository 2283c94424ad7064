"""Hold before match, release after: nobody trades what they do not have.

A buy holds price_ticks * qty_lots and its fee of free balance; an ask holds the market's bond per
lot and the operator's declared capacity. Both are the same steps on other columns: a purse of
three, free, held and filled, and a capacity, which for buys is slot 0, where there is always
enough. So no code here asks for the side, which no processor could predict. Invariant: every µUSDC
deposited and not withdrawn lies in exactly one field of exactly one account, and held amounts are
the sum over open orders. Only `match` calls.
"""

from typing import Any, Final

from engine.book import CAPACITY_SLOTS, LEASE, TRAIT_RESALE_BIT
from engine.kernel import inlined, int64, kernel, uint8, uint32, uint64
from engine.records import BALANCES, CAPACITIES_MAX, PPM

_COLUMNS: Final = BALANCES.names or ()
FREE: Final = _COLUMNS.index("free_usdc6")
HELD: Final = _COLUMNS.index("held_usdc6")
PENDING: Final = _COLUMNS.index("pending_usdc6")
ESCROW: Final = _COLUMNS.index("escrow_usdc6")
LEAVING: Final = _COLUMNS.index("leaving_usdc6")
BOND_FREE: Final = _COLUMNS.index("bond_free_usdc6")
BOND_LOCKED: Final = _COLUMNS.index("bond_locked_usdc6")
FILLED: Final = PENDING
assert FREE == 0, "a purse is its first column"
assert _COLUMNS[BOND_FREE + HELD] == "bond_held_usdc6"
assert BOND_FREE + FILLED == BOND_LOCKED


@inlined
def capacity_home(account: Any, instrument: Any) -> Any:
    """Where a capacity is looked for first: the top 20 bits of a multiplicative (Fibonacci) hash,
    Knuth TAOCP 6.4."""
    key = (uint64(account) << uint64(32)) | uint64(instrument)
    return uint32((key * uint64(0x9E3779B97F4A7C15)) >> uint64(64 - 20))


@inlined
def _probe(s: Any, key: Any, slot: Any) -> Any:
    """The key's slot, or the free one where it would go, by linear probing from its home.

    Expected O(1), as the table is at most half full.
    """
    while s.capacities[slot].key != key and s.capacities[slot].key != 0:
        slot = (slot + uint32(1)) & uint32(CAPACITY_SLOTS - 1)
    return slot


@inlined
def find_capacity(s: Any, account: Any, instrument: Any, side: Any) -> Any:
    """Where an order of this side holds its capacity; an undeclared one has nothing free."""
    key = (uint64(account) << uint64(32)) | uint64(instrument)
    # A buy's key becomes BUYS_KEY, all ones, and its home 0.
    key |= uint64(side) - uint64(1)
    return _probe(s, key, capacity_home(account, instrument) * uint32(side))


@inlined
def capacity_of(s: Any, c: Any) -> Any:
    """Where an order holds its capacity, or what its account bought if it sells that again."""
    return find_capacity(s, c.account | uint32(c.resale) << uint32(31), c.instrument, c.side)


@kernel
def make_capacity(s: Any, account: Any, instrument: Any) -> Any:
    """The slot of this capacity, made if need be; 0 when the table is full."""
    key = (uint64(account) << uint64(32)) | uint64(instrument)
    slot = _probe(s, key, capacity_home(account, instrument))
    if s.capacities[slot].key == 0:
        if s.capacities_used >= CAPACITIES_MAX:
            return uint32(0)
        s.capacities[slot].key = key
        s.capacities_used += uint32(1)
    return slot


@inlined
def purse_of(side: Any) -> Any:
    """The column of what a side's orders are paid from: cash for buys, bond for asks."""
    return uint32(side) * uint32(BOND_FREE)


@inlined
def unit_of(book: Any, side: Any, price: Any, resale: Any) -> Any:
    """What one lot holds, µUSDC: its price for a buy, the market's bond for an ask.

    Hours that are sold again hold none: the bond of who delivers them stays behind them.
    """
    bond = book.bond_usdc6_per_lot * (int64(1) - int64(resale))
    return price + (bond - price) * int64(side)


@inlined
def fee_of(notional_usdc6: Any, fee_ppm: Any) -> Any:
    """`records.fee_usdc6`, in two steps so that no product leaves 64 bits."""
    whole = notional_usdc6 // int64(PPM)
    rest = notional_usdc6 - whole * int64(PPM)
    return whole * int64(fee_ppm) + rest * int64(fee_ppm) // int64(PPM)


@inlined
def unit_for(book: Any, c: Any) -> Any:
    """`unit_of` for a command's order."""
    return unit_of(book, c.side, c.price_ticks, c.resale)


@inlined
def held_for(unit: Any, side: Any, lots: Any, fee_ppm: Any) -> Any:
    """What an order holds for so many lots that hold `unit` each: with the fee, if it buys.

    Fees are rounded down for each fill, so that those of the parts are never more than that of the
    whole, which is held.
    """
    amount = unit * lots
    if fee_ppm != 0:
        amount += fee_of(amount, fee_ppm) * (int64(1) - int64(side))
    return amount


@inlined
def resale_of(order: Any) -> Any:
    """1 if a resting order offers hours that were bought here, else 0."""
    return order.traits >> uint8(TRAIT_RESALE_BIT)


@inlined
def held_by(book: Any, side: Any, order: Any, lots: Any) -> Any:
    """What a resting order holds for so many of its lots."""
    unit = unit_of(book, side, int64(order.price_ticks), resale_of(order))
    return held_for(unit, side, lots, order.fee_ppm)


@inlined
def hold(s: Any, account: Any, side: Any, amount_usdc6: Any, capacity: Any, lots: Any) -> None:
    """free -> held, when an order comes to rest; with negative amounts, back when it leaves."""
    purse = purse_of(side)
    s.balances[account, purse] -= amount_usdc6
    s.balances[account, purse + uint32(HELD)] += amount_usdc6
    s.capacities[capacity].held_lots += lots


@inlined
def fill_held(s: Any, account: Any, side: Any, amount_usdc6: Any, capacity: Any, lots: Any) -> None:
    """held -> pending or locked: a fill of a resting order, which trades at its own price."""
    purse = purse_of(side)
    s.balances[account, purse + uint32(HELD)] -= amount_usdc6
    s.balances[account, purse + uint32(FILLED)] += amount_usdc6
    row = s.capacities[capacity]
    row.held_lots -= lots
    row.sold_lots += lots


@kernel
def fill_charged(s: Any, book: Any, side: Any, order: Any, price: Any, lots: Any) -> None:
    """`fill_held` for an order that pays a fee, or another price than its own: what it held beyond
    that, and what the fee's rounding leaves over, is free again."""
    left = int64(order.qty_lots) + int64(order.hidden_lots)
    held = held_by(book, side, order, left) - held_by(book, side, order, left - lots)
    paid = held_for(unit_of(book, side, price, resale_of(order)), side, lots, order.fee_ppm)
    hold(s, order.account, side, paid - held, order.capacity, int64(0))
    fill_held(s, order.account, side, paid, order.capacity, lots)


@inlined
def fill_free(s: Any, account: Any, side: Any, amount_usdc6: Any, capacity: Any, lots: Any) -> None:
    """free -> pending or locked: a taker's fills, at the makers' prices, with its fees."""
    purse = purse_of(side)
    s.balances[account, purse] -= amount_usdc6
    s.balances[account, purse + uint32(FILLED)] += amount_usdc6
    s.capacities[capacity].sold_lots += lots


@kernel
def note_bought(s: Any, account: Any, instrument: Any, lots: Any) -> None:
    """So many lots more, or with a minus less, that the account may sell again."""
    lease = make_capacity(s, uint32(account) | uint32(LEASE), instrument)
    if lease != 0:
        s.capacities[lease].declared_lots += lots


@kernel
def undo_fill(
    s: Any,
    buyer: Any,
    amount_usdc6: Any,
    seller: Any,
    capacity: Any,
    lots: Any,
    bond_usdc6: Any,
) -> None:
    s.balances[buyer, PENDING] -= amount_usdc6
    s.balances[buyer, FREE] += amount_usdc6
    s.balances[seller, BOND_LOCKED] -= bond_usdc6
    s.balances[seller, BOND_FREE] += bond_usdc6
    s.capacities[capacity].sold_lots -= lots


@inlined
def free_capacity(s: Any, capacity: Any) -> Any:
    """Lots that may still be offered."""
    row = s.capacities[capacity]
    return row.declared_lots - row.held_lots - row.sold_lots
