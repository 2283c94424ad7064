"""Which bought hours wait for escrow, and which are in it, as far as the engine's events say.

The engine confirms escrow by amount, for all that a buyer has in one settled batch. Invariant: what
a buyer's followed leases cost, and those too many to follow, less what was confirmed and fits none
of them yet, is the buyer's pending money. Private streams ask; nobody else calls.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

LEASES_FOLLOWED_MAX: Final = 16_384  # of one buyer; older ones count by what they cost


class Bought(NamedTuple):
    """One fill whose money is not known to be in escrow."""

    lease_id: int
    seller: int
    instrument: int
    price_ticks: int
    qty_lots: int
    cost_usdc6: int  # with the buyer's fee
    is_resold: bool


class _Buyer(msgspec.Struct, array_like=True):
    pending: dict[int, Bought] = {}  # oldest first
    pending_usdc6: int = 0  # their cost
    unfollowed_usdc6: int = 0  # the cost of older ones
    unplaced_usdc6: int = 0  # confirmed, and the cost of no first few of those


SavedLeases = dict[int, _Buyer]


class Leases:
    def __init__(self) -> None:
        self.buyers: SavedLeases = {}

    def bought(self, buyer: int, lease: Bought) -> None:
        state = self.buyers.setdefault(buyer, _Buyer())
        state.pending[lease.lease_id] = lease
        state.pending_usdc6 += lease.cost_usdc6
        if len(state.pending) > LEASES_FOLLOWED_MAX:
            oldest = state.pending[next(iter(state.pending))]
            self._leaves(state, oldest)
            state.unfollowed_usdc6 += oldest.cost_usdc6

    def confirmed(self, buyer: int, amount_usdc6: int) -> tuple[list[Bought], bool]:
        """So much more is in escrow: the leases that are meant, and whether that is assumed."""
        state = self.buyers.setdefault(buyer, _Buyer())
        unfollowed_usdc6 = min(amount_usdc6, state.unfollowed_usdc6)
        state.unfollowed_usdc6 -= unfollowed_usdc6
        state.unplaced_usdc6 += amount_usdc6 - unfollowed_usdc6
        assumed = state.unfollowed_usdc6 > 0 or state.unplaced_usdc6 != state.pending_usdc6
        meant = list(_oldest_of(state))
        for lease in meant:
            self._leaves(state, lease)
            state.unplaced_usdc6 -= lease.cost_usdc6
        return meant, assumed

    def voided(self, buyer: int, lease_id: int, cost_usdc6: int) -> tuple[list[Bought], bool]:
        """A fill is undone. If it was thought to be in escrow, others are: as `confirmed`."""
        state = self.buyers.setdefault(buyer, _Buyer())
        lease = state.pending.get(lease_id)
        if lease is not None:
            self._leaves(state, lease)
            return self.confirmed(buyer, 0)
        if state.unfollowed_usdc6 >= cost_usdc6:
            state.unfollowed_usdc6 -= cost_usdc6
            return [], False
        return self.confirmed(buyer, cost_usdc6)

    @staticmethod
    def _leaves(state: _Buyer, lease: Bought) -> None:
        del state.pending[lease.lease_id]
        state.pending_usdc6 -= lease.cost_usdc6


def _oldest_of(state: _Buyer) -> Iterator[Bought]:
    """The first leases whose costs make just what is confirmed; none if no first ones do."""
    left_usdc6, count = state.unplaced_usdc6, 0
    for lease in state.pending.values():
        if left_usdc6 <= 0:
            break
        left_usdc6 -= lease.cost_usdc6
        count += 1
    if left_usdc6 == 0:
        yield from list(state.pending.values())[:count]
