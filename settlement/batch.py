"""From fills to the bytes that VaultV2 settles, and back. Pure: no clock, no disk, no network.

Owns the Python side of Fills.sol's layout, which fills go into one batch, and their order.
Invariant: a batch is the longest prefix of the given fills that fits one transaction, sorted by
buyer and then event number (a run of one buyer's fills costs one read and one write of a slot);
its root is the one the vault computes, and `unpack` of its bytes gives back exactly those fills.
Whole arrays at a time: a full batch takes a hundredth of a second. The ledger gathers fills for
it; settlement's service calls it, and anybody who checks a batch from its calldata.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from engine.records import (
    ACCOUNTS_MAX,
    FEE_PPM_MAX,
    PPM,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
)
from engine.rejects import CatalogError
from settlement import keccak
from settlement.products import product_of

# As in Fills.sol, each field with its bytes there, big endian; here u32, so that sums are exact.
_LAYOUT: Final = (
    ("buyer", 3), ("seller", 3), ("price_ticks", 3), ("qty_lots", 4), ("series", 2), ("window", 3),
    ("buyer_number", 4), ("seller_number", 4), ("buyer_fee_ppm", 2), ("seller_fee_ppm", 2),
)  # fmt: skip
FILL: Final = np.dtype([(name, "<u4") for name, _ in _LAYOUT])
FILL_BYTES: Final = sum(size for _, size in _LAYOUT)
Fills: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]  # of FILL
Amounts: TypeAlias = NDArray[np.int64]

TRANSACTION_BYTES_MAX: Final = 128 * 1024  # what a public pool takes
ENVELOPE_BYTES_MAX: Final = 1_024  # signature, nonce, fees, selector, padding
TRANSACTION_GAS_MAX: Final = 1 << 24  # EIP-7825
FILLS_MAX: Final = (TRANSACTION_BYTES_MAX - ENVELOPE_BYTES_MAX) // FILL_BYTES

# An upper bound of VaultV2.settle, from what it took on an EVM of Prague's rules (the tests compare
# again): gas apart from calldata, per fill, per run of one buyer; memory grows with the square.
_CALL_GAS: Final = 37_000
_FILL_GAS: Final = 393
_RUN_GAS: Final = 5_620
_MEMORY_DIVISOR: Final = 512
_TRANSACTION_GAS: Final = 21_000
_ARGUMENT_ZEROS: Final = 4 * 32  # id, offset, length and padding: counted as if none were zero
_ZERO_GAS: Final = 4  # EIP-2028
_BYTE_GAS: Final = 16
_FLOOR_PER_TOKEN: Final = 10  # EIP-7623; a zero is one token, another byte four
_TOKENS_PER_BYTE: Final = 4

assert FILL_BYTES == 30 and FILLS_MAX <= 1 << 16


class Sealed(NamedTuple):
    """A batch that will not change any more."""

    packed: bytes  # argument of VaultV2.settle: FILL_BYTES per fill
    root: bytes  # 32 bytes; the vault keeps the first 27
    event_numbers: tuple[int, ...]  # of its fills, ascending
    amount_usdc6: int  # all buyers together
    gas: int  # suffices to settle it


def seal(fills: Fills, event_numbers: Amounts, fills_max: int = FILLS_MAX) -> Sealed:
    """The longest prefix of `fills` (ascending by event number, at least one) that fits.

    `fills_max` may lower the limit, not raise it. O(n log n).
    """
    assert len(fills) and 0 < fills_max <= FILLS_MAX
    assert (np.diff(event_numbers) > 0).all(), "fills come in event order"
    rows = pack(fills[:fills_max])
    bounds = _gas_of_prefixes(rows)
    count = int(np.searchsorted(bounds, TRANSACTION_GAS_MAX, side="right"))
    assert count > 0, "a single fill always fits"
    taken = fills[:count]
    order = np.argsort(taken["buyer"], kind="stable")
    packed = rows[order].tobytes()
    amount_usdc6 = int(costs_usdc6(taken).sum())
    numbers = tuple(event_numbers[:count].tolist())
    return Sealed(packed, root_of(packed), numbers, amount_usdc6, int(bounds[count - 1]))


def pack(fills: Fills) -> keccak.Bytes:
    """(n, FILL_BYTES): the bytes of each. A value that does not fit its field is cut off, so the
    caller sees to it that none is."""
    rows = np.empty((len(fills), FILL_BYTES), np.uint8)
    at = 0
    for name, size in _LAYOUT:
        column = fills[name].astype(">u4").view(np.uint8).reshape(-1, 4)
        rows[:, at : at + size] = column[:, 4 - size :]
        at += size
    return rows


def unpack(packed: bytes) -> Fills:
    """The fills of a sealed batch, in its order.

    Raises ValueError when the bytes are not those of a sealed batch: a torn or impossible record,
    another order than the sealed one, more than fits.
    """
    if not packed or len(packed) % FILL_BYTES or len(packed) > FILLS_MAX * FILL_BYTES:
        raise ValueError(f"{len(packed)} bytes are not those of a batch of fills")
    rows = np.frombuffer(packed, np.uint8).reshape(-1, FILL_BYTES)
    fills = np.empty(len(rows), FILL)
    at = 0
    for name, size in _LAYOUT:
        column = np.zeros((len(rows), 4), np.uint8)
        column[:, 4 - size :] = rows[:, at : at + size]
        fills[name] = column.view(">u4").reshape(-1)
        at += size
    _require_sealed(fills)
    if settle_gas(packed) > TRANSACTION_GAS_MAX:
        raise ValueError(f"{len(fills)} fills are more than one transaction settles")
    return fills


def _require_sealed(fills: Fills) -> None:
    if (np.diff(fills["buyer"].astype(np.int64)) < 0).any():
        raise ValueError("fills are not in the order of buyers")
    for name, least, most in (
        ("buyer", 1, ACCOUNTS_MAX - 1),
        ("seller", 1, ACCOUNTS_MAX - 1),
        ("price_ticks", 1, PRICE_TICKS_MAX),
        ("qty_lots", 1, QTY_LOTS_MAX),
        ("buyer_fee_ppm", 0, FEE_PPM_MAX),
        ("seller_fee_ppm", 0, FEE_PPM_MAX),
    ):
        if ((fills[name] < least) | (fills[name] > most)).any():
            raise ValueError(f"a fill's {name} is not from {least} to {most}")
    if (fills["buyer"] == fills["seller"]).any():
        raise ValueError("a fill's buyer is its seller")
    for series, window in np.unique(fills[["series", "window"]]).tolist():
        try:
            product_of(series, window)
        except CatalogError as error:
            raise ValueError(f"a fill of nothing that is traded: {error}") from error


# --- what a fill costs ----------------------------------------------------------------------------


def notionals_usdc6(fills: Fills) -> Amounts:
    """Price times quantity: below 2^54 each."""
    return fills["price_ticks"].astype(np.int64) * fills["qty_lots"]


def fees_usdc6(amounts_usdc6: Amounts, ppm: NDArray[Any]) -> Amounts:
    """Each rounded down by itself, in favour of who pays it. In two parts, because an amount times
    its rate leaves 64 bits."""
    whole, rest = np.divmod(amounts_usdc6, PPM)
    rates = ppm.astype(np.int64)
    return whole * rates + rest * rates // PPM


def costs_usdc6(fills: Fills) -> Amounts:
    """What each takes from its buyer and locks: price times quantity, and the buyer's fee."""
    notionals = notionals_usdc6(fills)
    return notionals + fees_usdc6(notionals, fills["buyer_fee_ppm"])


def totals_usdc6(packed: bytes) -> Mapping[int, int]:
    """What each buyer pays, µUSDC, ascending by account. Raises ValueError as `unpack` does."""
    fills = unpack(packed)
    buyers, firsts = np.unique(fills["buyer"], return_index=True)
    sums = np.add.reduceat(costs_usdc6(fills), firsts)
    return dict(zip(buyers.tolist(), sums.tolist(), strict=True))


# --- the root over them ---------------------------------------------------------------------------


def _levels(packed: bytes) -> list[keccak.Bytes]:
    rows = np.frombuffer(packed, np.uint8).reshape(-1, FILL_BYTES)
    words = np.empty((len(rows), keccak.WORD), np.uint8)
    words[:, :2] = np.arange(len(rows), dtype=">u2").view(np.uint8).reshape(-1, 2)
    words[:, 2:] = rows
    return keccak.levels(keccak.digests(words))


def root_of(packed: bytes) -> bytes:
    """What the vault computes of a batch's bytes: the hash of each index and fill, then of each two
    neighbours."""
    return _levels(packed)[-1].tobytes()


def path_of(packed: bytes, index: int) -> list[bytes]:
    """The siblings from the fill at this place up to the root: with them the vault knows it."""
    path: list[bytes] = []
    for row in _levels(packed)[:-1]:
        sibling = index ^ 1
        path.append(row[sibling].tobytes() if sibling < len(row) else bytes(keccak.WORD))
        index >>= 1
    return path


# --- what settling them takes ---------------------------------------------------------------------


def settle_gas(packed: bytes) -> int:
    """A gas limit that suffices to settle these bytes; at most a tenth too much in a full batch."""
    return int(_gas_of_prefixes(np.frombuffer(packed, np.uint8).reshape(-1, FILL_BYTES))[-1])


def _gas_of_prefixes(rows: keccak.Bytes) -> Amounts:
    """An upper bound for the first fill, the first two, ...; ascending."""
    counts = np.arange(1, len(rows) + 1)
    zeros = np.cumsum((rows == 0).sum(axis=1, dtype=np.int64))
    others = counts * FILL_BYTES - zeros + _ARGUMENT_ZEROS
    buyers = rows[:, 0].astype(np.uint32) << 16 | rows[:, 1].astype(np.uint32) << 8 | rows[:, 2]
    is_new = np.zeros(len(rows), np.int64)
    is_new[np.unique(buyers, return_index=True)[1]] = 1
    work = _CALL_GAS + _FILL_GAS * counts + _RUN_GAS * np.cumsum(is_new)
    work += counts * counts // _MEMORY_DIVISOR
    ordinary = _ZERO_GAS * zeros + _BYTE_GAS * others + work
    floor = _FLOOR_PER_TOKEN * (zeros + _TOKENS_PER_BYTE * others)
    return cast(Amounts, _TRANSACTION_GAS + np.maximum(ordinary, floor))
