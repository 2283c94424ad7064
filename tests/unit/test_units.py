"""Decimal strings and integers are each other's exact image."""

from decimal import Decimal

import pytest
from compex_client.errors import NotADecimal, TooFine
from compex_client.units import (
    parse_price,
    parse_qty,
    parse_scaled,
    parse_usdc,
    price_text,
    qty_text,
    usdc_text,
)
from hypothesis import given
from hypothesis import strategies as st

from engine.records import PRICE_TICKS_MAX, QTY_LOTS_MAX, TOTAL_USDC6_MAX


@given(st.integers(0, PRICE_TICKS_MAX))
def test_every_price_survives_the_wire(ticks: int) -> None:
    assert parse_price(price_text(ticks)) == ticks
    assert Decimal(price_text(ticks)) == Decimal(ticks) / 10_000


@given(st.integers(0, QTY_LOTS_MAX))
def test_every_quantity_survives_the_wire(lots: int) -> None:
    assert parse_qty(qty_text(lots)) == lots
    assert Decimal(qty_text(lots)) == Decimal(lots) / 100


@given(st.integers(0, TOTAL_USDC6_MAX))
def test_every_amount_survives_the_wire(amount: int) -> None:
    assert parse_usdc(usdc_text(amount)) == amount
    assert Decimal(usdc_text(amount)) == Decimal(amount) / 1_000_000


@pytest.mark.parametrize(
    ("ticks", "text"), [(0, "0.0000"), (1, "0.0001"), (24150, "2.4150"), (16777215, "1677.7215")]
)
def test_a_price_has_four_decimals(ticks: int, text: str) -> None:
    assert price_text(ticks) == text


@pytest.mark.parametrize(
    ("lots", "text"), [(0, "0"), (1, "0.01"), (10, "0.1"), (100, "1"), (1000, "10"), (1650, "16.5")]
)
def test_a_quantity_has_no_trailing_zeros(lots: int, text: str) -> None:
    assert qty_text(lots) == text


@given(st.decimals(min_value=-(10**6), max_value=10**6, places=6))
def test_parsing_agrees_with_decimal_arithmetic(number: Decimal) -> None:
    scaled = number * 10_000
    if scaled == scaled.to_integral_value():
        assert parse_scaled(format(number, "f"), 4) == int(scaled)
    else:
        with pytest.raises(TooFine):
            parse_scaled(format(number, "f"), 4)


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".5", "+1", " 1", "1 ", "1e3", "0x10", "1_000", "1,5", "--1", "NaN", "inf",
     "1.2.3", "١", "1\n", "9" * 25],
)  # fmt: skip
def test_what_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(NotADecimal):
        parse_price(text)


def test_a_price_between_two_ticks_is_refused_and_zeros_behind_a_tick_are_not() -> None:
    with pytest.raises(TooFine):
        parse_price("2.41505")
    assert parse_price("2.41500000") == 24150


def test_a_negative_number_is_told_from_a_wrong_one() -> None:
    assert parse_price("-2.5") == -25_000
