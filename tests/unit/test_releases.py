"""Releases as pure functions: what is paid adds up, and only what was sealed unpacks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.vault import Fill as Plain
from benchmarks.vault import Record, Release, record
from engine.records import FEE_PPM_MAX, PRICE_TICKS_MAX, QTY_LOTS_MAX
from settlement.batch import FILL, FILLS_MAX
from settlement.releases import (
    ACCOUNTS_MAX,
    RECORD_BYTES,
    Records,
    commitment,
    records_of,
    releasable,
    seal,
    unpack,
)

FILLED = Plain(1, 2, 20_000, 100, 1, 0, 1, 1, 500, 200)


def records(fills: list[Plain], paid: list[int] | None = None, first: int = 0) -> Records:
    indices = np.arange(first, first + len(fills))
    due = [fill.notional for fill in fills] if paid is None else paid
    return records_of(indices, np.array([tuple(f) for f in fills], FILL), np.array(due, np.int64))


fee = st.integers(0, FEE_PPM_MAX)
QTY_MAX = 600_000  # so that both fees, at their highest, fit a record at any price
leases = st.lists(
    st.builds(
        Plain, st.integers(1, 9), st.integers(10, 2**20 - 1), st.integers(1, PRICE_TICKS_MAX),
        st.integers(1, QTY_MAX), st.just(1), st.just(0), st.just(1), st.just(1), fee, fee,
    ),
    min_size=1,
    max_size=80,
)  # fmt: skip


@settings(deadline=None)
@given(leases, st.data())
def test_a_release_is_the_documented_one_whatever_is_paid(
    fills: list[Plain], data: st.DataObject
) -> None:
    paid = [data.draw(st.integers(0, fill.notional)) for fill in fills]
    found = records(fills, paid)
    parts = ("to_seller_usdc6", "to_buyer_usdc6", "to_exchange_usdc6")
    for made, fill, part in zip(found, fills, paid, strict=True):
        assert tuple(made[name] for name in parts) == fill.divide(part)
        assert sum(fill.divide(part)) == fill.cost
    sealed = seal(7, found)
    plain = Release(1, 7, [record(i, f, p) for i, (f, p) in enumerate(zip(fills, paid))])  # noqa: B905
    assert (sealed.accounts, sealed.packed) == (plain.accounts, plain.records)
    assert np.array_equal(unpack(sealed.accounts, sealed.packed), found)


def test_what_does_not_fit_a_record_is_told_apart() -> None:
    dear = FILLED._replace(price=PRICE_TICKS_MAX, qty=QTY_LOTS_MAX)
    least = FILLED._replace(price=2**24 - 2, qty=2**24, buyer_fee=0, seller_fee=0)
    assert releasable(records([FILLED, dear, least])).tolist() == [True, False, True]
    assert releasable(records([least._replace(qty=2**24 + 3)])).tolist() == [False]
    charged = FILLED._replace(price=2**24 - 2, buyer_fee=FEE_PPM_MAX, seller_fee=FEE_PPM_MAX)
    charged = [charged._replace(qty=qty) for qty in (QTY_MAX, 700_000)]
    assert releasable(records(charged)).tolist() == [True, False], "there is less room for fees"
    assert releasable(records([dear], [0])).tolist() == [False], "so does what would come back"


def test_a_release_ends_before_one_account_too_many() -> None:
    fills = [FILLED._replace(seller=2 + i) for i in range(ACCOUNTS_MAX + 20)]
    found = records(fills)
    sealed = seal(1, found)
    count = len(sealed.packed) // RECORD_BYTES
    assert count == ACCOUNTS_MAX - 1 and len(sealed.accounts) == 3 * ACCOUNTS_MAX
    assert len(seal(1, found[count:]).packed) // RECORD_BYTES == 21
    both = [FILLED._replace(buyer=10 + 2 * i, seller=11 + 2 * i) for i in range(200)]
    assert len(seal(1, records(both)).packed) // RECORD_BYTES == ACCOUNTS_MAX // 2


def test_a_whole_batch_of_few_accounts_is_one_release() -> None:
    sealed = seal(1, records([FILLED] * FILLS_MAX))
    assert len(sealed.packed) == FILLS_MAX * RECORD_BYTES < 128 * 1024
    assert len(unpack(sealed.accounts, sealed.packed)) == FILLS_MAX


def plainly(*made: Record) -> tuple[bytes, bytes]:
    release = Release(1, 1, made)
    return release.accounts, release.records


ONE, TWO = record(0, FILLED), record(1, FILLED)
ACCOUNTS, PACKED = plainly(ONE, TWO)


@pytest.mark.parametrize(
    ("accounts", "packed", "why"),
    [
        (ACCOUNTS, b"", "0 bytes"),
        (ACCOUNTS, PACKED[:-1], "41 bytes"),
        (ACCOUNTS, PACKED * FILLS_MAX, "release's records"),
        (ACCOUNTS[:-1], PACKED, "list of accounts"),
        (ACCOUNTS * 200, PACKED, "list of accounts"),
        (*plainly(TWO, ONE), "each once"),
        (*plainly(ONE, ONE), "each once"),
        (ACCOUNTS[:3] * 2, PACKED, "ascending"),
        (ACCOUNTS[3:] + ACCOUNTS[:3], PACKED, "ascending"),
        (bytes(3) + ACCOUNTS[3:], PACKED, "ascending"),
        (ACCOUNTS[:3], PACKED, "those of the records"),
        (ACCOUNTS + b"\0\0\x09", PACKED, "those of the records"),
    ],
)
def test_bytes_that_were_never_sealed_are_refused(accounts: bytes, packed: bytes, why: str) -> None:
    assert len(unpack(ACCOUNTS, PACKED)) == 2
    with pytest.raises(ValueError, match=why):
        unpack(accounts, packed)


@settings(deadline=None)
@given(leases, st.data())
def test_one_changed_bit_changes_the_commitment(fills: list[Plain], data: st.DataObject) -> None:
    sealed = seal(3, records(fills))
    assert sealed.commitment == commitment(3, sealed.accounts, sealed.packed)
    assert sealed.commitment != commitment(4, sealed.accounts, sealed.packed)
    changed = bytearray(sealed.packed)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert sealed.commitment != commitment(3, sealed.accounts, bytes(changed))
