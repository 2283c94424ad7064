"""From fills to the bytes the first vault settles, and back. Pure: no clock, no disk, no network.

Owns which fills go into one batch and in which order. Invariant: a batch is the longest prefix of
the given fills that fits one transaction, sorted by buyer and then event number (neighbours are
cheap on chain), and `unpack` of its bytes gives back exactly those fills. Settlement's service
calls it, and anybody who checks a batch from its calldata.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from settlement.chain import (
    FILL_BYTES,
    FILLS_PER_BATCH_MAX,
    Fill,
    fills_hash,
    pack_fills,
    unpack_fills,
)

TRANSACTION_BYTES_MAX: Final = 128 * 1024  # what a public pool takes
ENVELOPE_BYTES_MAX: Final = 1_024  # signature, nonce, fees, selector, padding

assert FILLS_PER_BATCH_MAX * FILL_BYTES + ENVELOPE_BYTES_MAX <= TRANSACTION_BYTES_MAX


class Sealed(NamedTuple):
    """A batch that will not change any more."""

    packed: bytes  # calldata of Vault.settle: FILL_BYTES per fill
    hash: bytes  # 32 bytes; the vault computes the same
    event_numbers: tuple[int, ...]  # of its fills, ascending
    amount_usdc6: int  # all buyers together


def seal(fills: Sequence[Fill], fills_max: int = FILLS_PER_BATCH_MAX) -> Sealed:
    """The longest prefix of `fills` (ascending by event number, at least one) that fits.

    `fills_max` may lower the limit, not raise it. O(n log n).
    """
    assert fills and 0 < fills_max <= FILLS_PER_BATCH_MAX
    taken = fills[:fills_max]
    numbers = tuple(f.event_number for f in taken)
    assert all(a < b for a, b in pairwise(numbers)), "fills come in event order"
    chosen = sorted(taken, key=lambda f: (f.buyer, f.event_number))
    packed = pack_fills(chosen)
    assert len(packed) == len(taken) * FILL_BYTES
    return Sealed(packed, fills_hash(packed), numbers, sum(f.amount_usdc6 for f in taken))


def unpack(packed: bytes) -> list[Fill]:
    """The fills of a sealed batch, in its order.

    Raises ValueError when the bytes are not those of a sealed batch: a torn record, a zero, or
    another order than the sealed one.
    """
    if not packed or len(packed) % FILL_BYTES:
        raise ValueError(f"{len(packed)} bytes are not a whole number of fills")
    fills = unpack_fills(packed)
    keys = [(f.buyer, f.event_number) for f in fills]
    if any(later <= earlier for earlier, later in pairwise(keys)):
        raise ValueError("fills are not in the order of buyer and event number")
    if len({f.event_number for f in fills}) != len(fills):
        raise ValueError("a fill occurs twice")
    if any(f.amount_usdc6 == 0 or f.buyer == 0 or f.seller == 0 for f in fills):
        raise ValueError("a fill has no amount, no buyer or no seller")
    return fills


def totals_usdc6(packed: bytes) -> Mapping[int, int]:
    """What each buyer pays, µUSDC, ascending by account. Raises ValueError as `unpack` does."""
    totals: Counter[int] = Counter()
    for fill in unpack(packed):
        totals[fill.buyer] += fill.amount_usdc6
    return dict(sorted(totals.items()))
