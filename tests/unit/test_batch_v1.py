"""Batches as pure functions: what is sealed is what was filled, and only that unpacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settlement.batch_v1 import seal, totals_usdc6, unpack
from settlement.chain import FILL_BYTES, FILLS_PER_BATCH_MAX, Fill, fills_hash, pack_fills


@st.composite
def fills_in_order(draw: st.DrawFn) -> list[Fill]:
    numbers = sorted(draw(st.sets(st.integers(1, 2**53), min_size=1, max_size=60)))
    account = st.integers(1, 9)
    return [
        Fill(
            buyer=draw(account),
            seller=draw(account),
            price_ticks=draw(st.integers(1, 2**24 - 1)),
            qty_lots=draw(st.integers(1, 10**9)),
            instrument=draw(st.integers(0, 2**16)),
            event_number=number,
        )
        for number in numbers
    ]


@given(fills_in_order())
def test_unpacking_gives_back_exactly_the_sealed_fills(fills: list[Fill]) -> None:
    sealed = seal(fills)
    assert sorted(unpack(sealed.packed), key=lambda f: f.event_number) == fills
    assert sealed.event_numbers == tuple(f.event_number for f in fills)
    assert sealed.hash == fills_hash(sealed.packed)


@given(fills_in_order())
def test_what_buyers_pay_is_what_the_fills_cost(fills: list[Fill]) -> None:
    totals = totals_usdc6(seal(fills).packed)
    for buyer, amount in totals.items():
        assert amount == sum(f.price_ticks * f.qty_lots for f in fills if f.buyer == buyer)
    assert sum(totals.values()) == seal(fills).amount_usdc6
    assert set(totals) == {f.buyer for f in fills}


@given(fills_in_order())
def test_a_buyers_fills_are_neighbours(fills: list[Fill]) -> None:
    buyers = [f.buyer for f in unpack(seal(fills).packed)]
    assert buyers == sorted(buyers)


@given(fills_in_order(), st.integers(1, 60))
def test_a_batch_takes_the_earliest_fills_up_to_its_limit(fills: list[Fill], limit: int) -> None:
    sealed = seal(fills, limit)
    assert sealed.event_numbers == tuple(f.event_number for f in fills[:limit])
    assert len(sealed.packed) == FILL_BYTES * min(limit, len(fills))


@given(fills_in_order(), st.data())
def test_one_changed_byte_changes_the_hash(fills: list[Fill], data: st.DataObject) -> None:
    sealed = seal(fills)
    at = data.draw(st.integers(0, len(sealed.packed) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = bytearray(sealed.packed)
    changed[at] ^= bit
    assert fills_hash(bytes(changed)) != sealed.hash


def test_a_full_batch_fits_a_transaction() -> None:
    fills = [Fill(i, 1, 1, 1, 0, i) for i in range(1, FILLS_PER_BATCH_MAX + 100)]
    sealed = seal(fills)
    assert len(sealed.event_numbers) == FILLS_PER_BATCH_MAX
    assert len(sealed.packed) < 128 * 1024


GOOD = [Fill(1, 2, 5, 7, 0, 10), Fill(1, 2, 5, 7, 0, 11), Fill(3, 2, 5, 7, 0, 9)]


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        pack_fills(GOOD)[:-1],
        pack_fills(GOOD[::-1]),
        pack_fills([GOOD[0], GOOD[0]]),
        pack_fills([GOOD[0], GOOD[2]._replace(event_number=10)]),
        pack_fills([GOOD[0]._replace(price_ticks=0)]),
        pack_fills([GOOD[0]._replace(qty_lots=0)]),
        pack_fills([GOOD[0]._replace(buyer=0)]),
        pack_fills([GOOD[0]._replace(seller=0)]),
    ],
    ids=["empty", "torn", "unsorted", "twice", "reused", "free", "nothing", "nobody", "no seller"],
)
def test_bytes_that_were_never_sealed_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="fill"):
        unpack(packed)


def test_the_sealed_order_is_accepted() -> None:
    assert unpack(pack_fills(GOOD)) == GOOD
