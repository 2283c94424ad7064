"""Batches as pure functions: what is sealed is what was filled, and only that unpacks."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from eth_utils.crypto import keccak as hash_of
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.vault import Batch
from benchmarks.vault import Fill as Plain
from benchmarks.vault import pack as plainly
from engine.catalog import load_catalog
from engine.records import ACCOUNTS_MAX, FEE_PPM_MAX, PPM, PRICE_TICKS_MAX, QTY_LOTS_MAX
from settlement import keccak
from settlement.batch import (
    ENVELOPE_BYTES_MAX,
    FILL,
    FILL_BYTES,
    FILLS_MAX,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_GAS_MAX,
    Fills,
    Sealed,
    costs_usdc6,
    pack,
    path_of,
    root_of,
    seal,
    settle_gas,
    totals_usdc6,
    unpack,
)
from settlement.products import settled

CATALOG = load_catalog()
SPOT = settled(CATALOG.parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"))
MONTH = settled(CATALOG.parse("nv.rtx4090-24g.x1|eu-n|C|M|2027-02"))
GOOD = Plain(1, 2, 5, 7, *SPOT, 3, 4, 500, 200)


def array(fills: list[Plain]) -> Fills:
    return np.array([tuple(fill) for fill in fills], FILL)


def sealed(fills: list[Plain], *limit: int) -> Sealed:
    return seal(array(fills), np.arange(1, len(fills) + 1), *limit)


@st.composite
def fills_in_order(draw: st.DrawFn) -> list[Plain]:
    account, number, fee = st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, FEE_PPM_MAX)
    one = st.builds(
        Plain,
        st.sampled_from([1, 2, 3, 2**16, ACCOUNTS_MAX - 1]),
        account.map(lambda n: n + 10),
        st.integers(1, PRICE_TICKS_MAX),
        st.integers(1, QTY_LOTS_MAX),
        st.just(SPOT.series),
        st.just(SPOT.window),
        number,
        number,
        fee,
        fee,
    )
    return draw(st.lists(one, min_size=1, max_size=40))


@settings(deadline=None)
@given(fills_in_order())
def test_unpacking_gives_back_exactly_the_sealed_fills(fills: list[Plain]) -> None:
    found = sealed(fills)
    in_order = sorted(fills, key=lambda fill: fill.buyer)
    assert found.packed == plainly(in_order)
    assert unpack(found.packed).tolist() == [tuple(fill) for fill in in_order]
    assert found.event_numbers == tuple(range(1, len(fills) + 1))


@settings(deadline=None)
@given(fills_in_order())
def test_the_root_and_every_path_are_those_of_the_layout_said_slowly(fills: list[Plain]) -> None:
    found = sealed(fills)
    plain = Batch(1, sorted(fills, key=lambda fill: fill.buyer))
    assert found.root == root_of(found.packed) == plain.root
    for index in range(len(fills)):
        assert path_of(found.packed, index) == plain.place(index)[3]


@settings(deadline=None)
@given(fills_in_order())
def test_what_buyers_pay_is_what_the_fills_cost(fills: list[Plain]) -> None:
    found = sealed(fills)
    assert costs_usdc6(array(fills)).tolist() == [fill.cost for fill in fills]
    totals = totals_usdc6(found.packed)
    assert list(totals) == sorted({fill.buyer for fill in fills})
    for buyer, amount in totals.items():
        assert amount == sum(fill.cost for fill in fills if fill.buyer == buyer)
    assert sum(totals.values()) == found.amount_usdc6


@settings(deadline=None)
@given(fills_in_order(), st.integers(1, 40))
def test_a_batch_takes_the_earliest_fills_up_to_its_limit(fills: list[Plain], limit: int) -> None:
    assert sealed(fills, limit) == sealed(fills[:limit])


@settings(deadline=None)
@given(fills_in_order(), st.data())
def test_one_changed_bit_changes_the_root(fills: list[Plain], data: st.DataObject) -> None:
    found = sealed(fills)
    changed = bytearray(found.packed)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert root_of(bytes(changed)) != found.root


# --- how much fits ------------------------------------------------------------------------------


@cache
def many(buyers: int, count: int = FILLS_MAX + 9) -> list[Plain]:
    return [GOOD._replace(buyer=10 + i % buyers, buyer_order=i) for i in range(count)]


def test_a_full_batch_is_bounded_by_its_bytes_where_buyers_are_few() -> None:
    found = sealed(many(100))
    assert len(found.event_numbers) == FILLS_MAX == 4_334
    assert len(found.packed) + ENVELOPE_BYTES_MAX <= TRANSACTION_BYTES_MAX
    assert len(found.packed) + ENVELOPE_BYTES_MAX + FILL_BYTES > TRANSACTION_BYTES_MAX
    assert found.gas < TRANSACTION_GAS_MAX


def test_and_by_its_gas_where_every_fill_has_another_buyer() -> None:
    fills = many(2**17)
    found = sealed(fills)
    count = len(found.event_numbers)
    assert 2_000 < count < FILLS_MAX
    assert found.gas == settle_gas(found.packed) <= TRANSACTION_GAS_MAX
    assert settle_gas(plainly(fills[: count + 1])) > TRANSACTION_GAS_MAX
    assert sealed(fills[:count]) == found


# --- what is no batch ---------------------------------------------------------------------------


def bad(**changed: Any) -> bytes:
    return plainly([GOOD, GOOD._replace(**changed)])


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (b"", "0 bytes"),
        (plainly([GOOD])[:-1], "29 bytes"),
        (plainly([GOOD] * (FILLS_MAX + 1)), "bytes are not"),
        (plainly([GOOD._replace(buyer=3), GOOD]), "order of buyers"),
        (bad(buyer=ACCOUNTS_MAX), "buyer"),
        (plainly([GOOD._replace(buyer=0)]), "buyer"),
        (bad(seller=0), "seller"),
        (bad(seller=ACCOUNTS_MAX), "seller"),
        (bad(seller=1), "buyer is its seller"),
        (bad(price=0), "price_ticks"),
        (bad(price=PRICE_TICKS_MAX + 1), "price_ticks"),
        (bad(qty=0), "qty_lots"),
        (bad(qty=QTY_LOTS_MAX + 1), "qty_lots"),
        (bad(buyer_fee=FEE_PPM_MAX + 1), "buyer_fee_ppm"),
        (bad(seller_fee=FEE_PPM_MAX + 1), "seller_fee_ppm"),
        (bad(series=0), "nothing that is traded"),
        (bad(series=2**16 - 1), "nothing that is traded"),
        (bad(window=1), "nothing that is traded"),
        (bad(window=MONTH.window + (1 << 21)), "nothing that is traded"),
        (plainly(many(2**17)[:FILLS_MAX]), "more than one transaction"),
    ],
)
def test_bytes_that_were_never_sealed_are_refused(packed: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack(packed)


def test_the_limits_themselves_are_accepted() -> None:
    most = Plain(
        ACCOUNTS_MAX - 1, 1, PRICE_TICKS_MAX, QTY_LOTS_MAX, *MONTH, 2**32 - 1, 0,
        FEE_PPM_MAX, FEE_PPM_MAX,
    )  # fmt: skip
    assert unpack(plainly([GOOD, most])).tolist() == [tuple(GOOD), tuple(most)]
    notional = PRICE_TICKS_MAX * QTY_LOTS_MAX
    assert costs_usdc6(array([most])).tolist() == [notional + notional * FEE_PPM_MAX // PPM]
    assert pack(array([most])).tobytes() == plainly([most])


# --- the hash itself ----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, keccak.MESSAGE_BYTES_MAX), st.integers(1, 20), st.randoms())
def test_many_hashes_at_once_are_keccaks(length: int, count: int, chance: Any) -> None:
    messages = [bytes(chance.randbytes(length)) for _ in range(count)]
    rows = np.frombuffer(b"".join(messages), np.uint8).reshape(count, length)
    assert [row.tobytes() for row in keccak.digests(rows)] == [hash_of(m) for m in messages]
