"""From what leases pay to the records that VaultV2 releases, and back. Pure.

Owns the Python side of Releases.sol's layout and of what `Fills.divide` gives each party.
Invariant: per record seller, buyer and exchange together get what was locked for the lease, fees
are due on what is paid alone, and every division favours who pays; a release is the longest prefix
of the given records that fits one list of accounts, and `unpack` of its bytes
gives back exactly those. Settlement calls it, and anybody who checks a release from its calldata.
"""

from typing import Final, NamedTuple, TypeAlias

import numpy as np
from eth_utils.crypto import keccak as hash_of
from numpy.typing import NDArray

from settlement import keccak
from settlement.batch import (
    ENVELOPE_BYTES_MAX,
    FILLS_MAX,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_GAS_MAX,
    Amounts,
    Fills,
    costs_usdc6,
    fees_usdc6,
    notionals_usdc6,
)

RECORD: Final = np.dtype([
    ("index", "<i8"),  # of the lease in its batch
    ("buyer", "<i8"),
    ("seller", "<i8"),
    ("to_seller_usdc6", "<i8"),
    ("to_buyer_usdc6", "<i8"),
    ("to_exchange_usdc6", "<i8"),
])  # fmt: skip
Records: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]  # of RECORD
# As in Releases.sol, big endian; buyer and seller are places in the list of accounts.
_LAYOUT: Final = (
    ("index", 2), ("buyer", 1), ("seller", 1), ("to_seller_usdc6", 6), ("to_buyer_usdc6", 6),
    ("to_exchange_usdc6", 5),
)  # fmt: skip
RECORD_BYTES: Final = sum(size for _, size in _LAYOUT)
ACCOUNT_BYTES: Final = 3
ACCOUNTS_MAX: Final = 256
CHUNK_RECORDS: Final = 32

# An upper bound of VaultV2.release, measured like that of settle, and as if no slot had been used
# before: calldata apart, per record, per account, per page of 256 leases' bits.
_CALL_GAS: Final = 120_000
_RECORD_GAS: Final = 260 + 16 * RECORD_BYTES
_ACCOUNT_GAS: Final = 33_000 + 16 * ACCOUNT_BYTES
_PAGE_GAS: Final = 23_000
_PAGE: Final = 256

assert RECORD_BYTES == 21
# A release is of one batch, so its list of accounts alone bounds it: not its bytes, not its gas.
assert FILLS_MAX * RECORD_BYTES + ACCOUNTS_MAX * ACCOUNT_BYTES + ENVELOPE_BYTES_MAX < (
    TRANSACTION_BYTES_MAX
)
assert (
    _CALL_GAS + FILLS_MAX * (_RECORD_GAS + _PAGE_GAS // _PAGE) + _PAGE_GAS
    + ACCOUNTS_MAX * _ACCOUNT_GAS < TRANSACTION_GAS_MAX
)  # fmt: skip


class Release(NamedTuple):
    """Arguments of VaultV2.release but for its number, and what the vault keeps of it."""

    batch_id: int
    accounts: bytes
    packed: bytes
    commitment: bytes  # 32 bytes; the vault keeps the first 27
    gas: int  # suffices to release it


def records_of(indices: Amounts, fills: Fills, paid_usdc6: Amounts) -> Records:
    """What each lease gives to whom when so much of its notional is paid, as `Fills.divide`."""
    assert (paid_usdc6 >= 0).all() and (paid_usdc6 <= notionals_usdc6(fills)).all()
    buyers_fees = fees_usdc6(paid_usdc6, fills["buyer_fee_ppm"])
    sellers_fees = fees_usdc6(paid_usdc6, fills["seller_fee_ppm"])
    records = np.empty(len(fills), RECORD)
    records["index"] = indices
    records["buyer"], records["seller"] = fills["buyer"], fills["seller"]
    records["to_seller_usdc6"] = paid_usdc6 - sellers_fees
    records["to_buyer_usdc6"] = costs_usdc6(fills) - paid_usdc6 - buyers_fees
    records["to_exchange_usdc6"] = buyers_fees + sellers_fees
    return records


def releasable(records: Records) -> NDArray[np.bool_]:
    """Which fit a record: a lease of more than 281 million dollars, or with fees of more than
    1.09 million, is closed by claim."""
    fits = np.ones(len(records), np.bool_)
    for name, size in _LAYOUT[3:]:
        fits &= records[name] < 1 << 8 * size
    return fits


def seal(batch_id: int, records: Records) -> Release:
    """The longest prefix of `records` (releasable, ascending by index, at least one) that fits."""
    assert len(records) and (np.diff(records["index"]) > 0).all() and releasable(records).all()
    assert records["index"][-1] < FILLS_MAX
    taken = records
    both = np.stack([taken["buyer"], taken["seller"]], axis=1).reshape(-1)
    firsts = np.sort(np.unique(both, return_index=True)[1])
    if len(firsts) > ACCOUNTS_MAX:  # up to the record in which one too many first occurs
        taken = taken[: firsts[ACCOUNTS_MAX] // 2]
    known = np.unique(np.concatenate([taken["buyer"], taken["seller"]]))
    rows = np.empty((len(taken), RECORD_BYTES), np.uint8)
    at = 0
    for name, size in _LAYOUT:
        column = taken[name]
        if name in ("buyer", "seller"):
            column = np.searchsorted(known, column)
        rows[:, at : at + size] = column.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - size :]
        at += size
    accounts = known.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - ACCOUNT_BYTES :].tobytes()
    packed = rows.tobytes()
    return Release(
        batch_id, accounts, packed, commitment(batch_id, accounts, packed), _gas(taken, len(known))
    )


def commitment(batch_id: int, accounts: bytes, packed: bytes) -> bytes:
    """What the vault computes of a release: the batch, the accounts, the root over its chunks."""
    step = CHUNK_RECORDS * RECORD_BYTES
    chunks = [hash_of(packed[at : at + step]) for at in range(0, len(packed), step)]
    leaves = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, keccak.WORD)
    root = keccak.levels(leaves)[-1].tobytes()
    return hash_of(batch_id.to_bytes(keccak.WORD, "big") + hash_of(accounts) + root)


def unpack(accounts: bytes, packed: bytes) -> Records:
    """The records of a sealed release.

    Raises ValueError when the bytes are not those of one: a torn record, a lease twice or out of
    order, an account twice, unused or not in the list.
    """
    if not packed or len(packed) % RECORD_BYTES or len(packed) > FILLS_MAX * RECORD_BYTES:
        raise ValueError(f"{len(packed)} bytes are not those of a release's records")
    if len(accounts) % ACCOUNT_BYTES or len(accounts) > ACCOUNTS_MAX * ACCOUNT_BYTES:
        raise ValueError(f"{len(accounts)} bytes are not those of a list of accounts")
    known = _numbers(np.frombuffer(accounts, np.uint8).reshape(-1, ACCOUNT_BYTES))
    rows = np.frombuffer(packed, np.uint8).reshape(-1, RECORD_BYTES)
    records = np.empty(len(rows), RECORD)
    at = 0
    for name, size in _LAYOUT:
        records[name] = _numbers(rows[:, at : at + size])
        at += size
    if (np.diff(records["index"]) <= 0).any():
        raise ValueError("leases are not in the order of their batch, each once")
    if (known == 0).any() or (np.diff(known) <= 0).any():
        raise ValueError("accounts are not ascending, each once")
    places = np.concatenate([records["buyer"], records["seller"]])
    if not np.array_equal(np.unique(places), np.arange(len(known))):
        raise ValueError("the accounts are not those of the records")
    records["buyer"], records["seller"] = known[records["buyer"]], known[records["seller"]]
    return records


def _numbers(columns: keccak.Bytes) -> Amounts:
    """(n, size) bytes, big endian, to integers."""
    wide = np.zeros((len(columns), 8), np.uint8)
    wide[:, 8 - columns.shape[1] :] = columns
    return wide.view(">u8").reshape(-1).astype(np.int64)


def _gas(records: Records, accounts: int) -> int:
    pages = len(np.unique(records["index"] // _PAGE))
    return (
        _CALL_GAS + len(records) * _RECORD_GAS + accounts * _ACCOUNT_GAS + pages * _PAGE_GAS
    )  # fmt: skip
