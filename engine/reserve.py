"""Hold before match, release after: nobody trades what they do not have.

A buy holds price_ticks * qty_lots of free balance; an ask holds the market's bond per lot and the
operator's declared capacity. Invariant: every µUSDC deposited and not withdrawn lies in exactly one
field of exactly one account, and held amounts are the sum over open orders. Only `match` calls.
"""

from typing import Any

from engine.book import CAPACITY_SLOTS
from engine.kernel import int64, kernel, uint32, uint64
from engine.records import CAPACITIES_MAX


@kernel
def _probe(s: Any, key: Any) -> Any:
    """The key's slot, or the free one where it would go; slot 0 is never used.

    Multiplicative (Fibonacci) hashing, Knuth TAOCP 6.4: the top 20 bits of the product. Expected
    O(1), as the table is at most half full.
    """
    slot = uint32((key * uint64(0x9E3779B97F4A7C15)) >> uint64(64 - 20))
    while slot == 0 or (s.capacities[slot].key != 0 and s.capacities[slot].key != key):
        slot = (slot + uint32(1)) & uint32(CAPACITY_SLOTS - 1)
    return slot


@kernel
def find_capacity(s: Any, account: Any, instrument: Any) -> Any:
    """The slot of a declared capacity, 0 if none."""
    slot = _probe(s, (uint64(account) << uint64(32)) | uint64(instrument))
    return slot if s.capacities[slot].key != 0 else uint32(0)


@kernel
def make_capacity(s: Any, account: Any, instrument: Any) -> Any:
    """The slot of this capacity, made if need be; 0 when the table is full."""
    key = (uint64(account) << uint64(32)) | uint64(instrument)
    slot = _probe(s, key)
    if s.capacities[slot].key == 0:
        if s.capacities_used >= CAPACITIES_MAX:
            return uint32(0)
        s.capacities[slot].key = key
        s.capacities_used += uint32(1)
    return slot


@kernel
def hold_buy(s: Any, account: Any, amount_usdc6: Any) -> None:
    money = s.balances[account]
    money.free_usdc6 -= amount_usdc6
    money.held_usdc6 += amount_usdc6


@kernel
def release_buy(s: Any, account: Any, amount_usdc6: Any) -> None:
    money = s.balances[account]
    money.held_usdc6 -= amount_usdc6
    money.free_usdc6 += amount_usdc6


@kernel
def hold_ask(s: Any, account: Any, capacity: Any, qty_lots: Any, bond_usdc6: Any) -> None:
    money = s.balances[account]
    money.bond_free_usdc6 -= bond_usdc6
    money.bond_held_usdc6 += bond_usdc6
    s.capacities[capacity].held_lots += qty_lots


@kernel
def release_ask(s: Any, account: Any, capacity: Any, qty_lots: Any, bond_usdc6: Any) -> None:
    money = s.balances[account]
    money.bond_held_usdc6 -= bond_usdc6
    money.bond_free_usdc6 += bond_usdc6
    s.capacities[capacity].held_lots -= qty_lots


@kernel
def fill_resting_buy(s: Any, account: Any, amount_usdc6: Any) -> None:
    money = s.balances[account]
    money.held_usdc6 -= amount_usdc6
    money.pending_usdc6 += amount_usdc6


@kernel
def fill_resting_ask(s: Any, account: Any, capacity: Any, qty_lots: Any, bond_usdc6: Any) -> None:
    money = s.balances[account]
    money.bond_held_usdc6 -= bond_usdc6
    money.bond_locked_usdc6 += bond_usdc6
    s.capacities[capacity].held_lots -= qty_lots
    s.capacities[capacity].sold_lots += qty_lots


@kernel
def buy_now(s: Any, account: Any, cost_usdc6: Any) -> None:
    """A taker's fills at the makers' prices, straight from the free balance."""
    money = s.balances[account]
    money.free_usdc6 -= cost_usdc6
    money.pending_usdc6 += cost_usdc6


@kernel
def sell_now(s: Any, account: Any, capacity: Any, qty_lots: Any, bond_usdc6: Any) -> None:
    money = s.balances[account]
    money.bond_free_usdc6 -= bond_usdc6
    money.bond_locked_usdc6 += bond_usdc6
    s.capacities[capacity].sold_lots += qty_lots


@kernel
def undo_fill(
    s: Any,
    buyer: Any,
    amount_usdc6: Any,
    seller: Any,
    capacity: Any,
    qty_lots: Any,
    bond_usdc6: Any,
) -> None:
    s.balances[buyer].pending_usdc6 -= amount_usdc6
    s.balances[buyer].free_usdc6 += amount_usdc6
    s.balances[seller].bond_locked_usdc6 -= bond_usdc6
    s.balances[seller].bond_free_usdc6 += bond_usdc6
    s.capacities[capacity].sold_lots -= qty_lots


@kernel
def free_capacity(s: Any, capacity: Any) -> Any:
    """Lots that may still be offered."""
    row = s.capacities[capacity]
    return int64(row.declared_lots - row.held_lots - row.sold_lots)
