"""What a transaction of the settler offers for its gas. Pure: the market and the clock come in.

Owns the policy. Invariant: an offer is never above the limit of the settings, and one that
replaces another is at least an eighth above it in both fees, which every pool takes; where the two
contradict each other nothing is offered, and it is waited. The outbox asks, chain signs.
"""

from typing import Final, NamedTuple

GWEI: Final = 1_000_000_000
REPLACEMENT: Final = (9, 8)  # pools want a tenth more; rounded up


class Market(NamedTuple):
    """What gas costs by the newest block, wei per gas."""

    base_fee_wei: int
    tip_wei: int  # what the node suggests


class Fees(NamedTuple):
    """EIP-1559's two, wei per gas: the most that is paid, and the validator's part of it."""

    cap_wei: int
    tip_wei: int


class FeePolicy(NamedTuple):
    """Base fee twice, which outlives six full blocks, and the tip; all within limits."""

    cap_max_wei: int = 500 * GWEI
    tip_min_wei: int = 0
    tip_max_wei: int = 10 * GWEI  # of a first offer; replacements are bounded by the cap alone
    stuck_ns: int = 60_000_000_000  # so long an offer stands before it is raised

    def first(self, market: Market) -> Fees | None:
        """For a new nonce; None while the market is above the limit."""
        tip = min(max(market.tip_wei, self.tip_min_wei), self.tip_max_wei)
        if market.base_fee_wei + tip > self.cap_max_wei:
            return None
        return Fees(min(2 * market.base_fee_wei + tip, self.cap_max_wei), tip)

    def raised(self, last: Fees, market: Market) -> Fees | None:
        """For the same nonce again; None if an eighth more would be above the limit."""
        tip = max(_outbid(last.tip_wei), min(market.tip_wei, self.tip_max_wei))
        wanted = min(2 * market.base_fee_wei + tip, self.cap_max_wei)
        cap = max(_outbid(last.cap_wei), wanted, tip)
        return Fees(cap, tip) if cap <= self.cap_max_wei else None

    def is_stuck(self, signed_ns: int, now_ns: int) -> bool:
        """Below zero: the time of day was set back; nobody waits until it has come again."""
        return not 0 <= now_ns - signed_ns < self.stuck_ns


def _outbid(fee_wei: int) -> int:
    more, than = REPLACEMENT
    return max(-(-fee_wei * more // than), fee_wei + 1)
