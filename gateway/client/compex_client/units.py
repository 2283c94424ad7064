"""Decimal strings of the wire ↔ the exchange's integers, exactly; no float anywhere.

1 tick is $0.0001 per GPU-hour, 1 lot is 0.01 GPU-hour, 1 usdc6 is 0.000001 USDC, so that
price_ticks * qty_lots is the cost in usdc6. Both ends import this module. Range is not checked
here: whoever takes the number knows what may be.
"""

import re
from functools import lru_cache
from typing import Final

from compex_client.errors import NotADecimal, TooFine

PRICE_DECIMALS: Final = 4
QTY_DECIMALS: Final = 2
USDC_DECIMALS: Final = 6
CACHED: Final = 1 << 14  # of the texts made of prices and quantities, which come again and again
PRICE_TICK: Final = "0.0001"
QTY_LOT: Final = "0.01"

# ASCII digits only: str.isdigit would let other scripts' digits pass.
_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,24})(?:\.([0-9]{1,24}))?")


def parse_scaled(text: str, decimals: int) -> int:
    """`text` times 10**decimals, exactly.

    A sign, an exponent, spaces, or digits missing on either side of the point are not accepted,
    but for a leading minus, so that the caller can say "negative" and not "not a number".
    Raises NotADecimal, or TooFine if a non-zero digit lies beyond `decimals`.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise NotADecimal(f"{text!r} is not a plain decimal number")
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if fraction[decimals:].strip("0"):
        raise TooFine(f"{text!r} has more than {decimals} decimals")
    scaled = int(whole + fraction[:decimals].ljust(decimals, "0"))
    return -scaled if sign else scaled


def parse_price(text: str) -> int:
    """Dollars per GPU-hour → price_ticks."""
    return parse_scaled(text, PRICE_DECIMALS)


def parse_qty(text: str) -> int:
    """GPU-hours → qty_lots."""
    return parse_scaled(text, QTY_DECIMALS)


def parse_usdc(text: str) -> int:
    """USDC → amount_usdc6."""
    return parse_scaled(text, USDC_DECIMALS)


@lru_cache(CACHED)
def price_text(price_ticks: int) -> str:
    """24150 → "2.4150": always four decimals."""
    assert price_ticks >= 0
    return f"{price_ticks // 10_000}.{price_ticks % 10_000:04d}"


@lru_cache(CACHED)
def qty_text(qty_lots: int) -> str:
    """1600 → "16", 50 → "0.5": no trailing zeros."""
    assert qty_lots >= 0
    whole, rest = divmod(qty_lots, 100)
    return f"{whole}.{rest:02d}".rstrip("0") if rest else str(whole)


def usdc_text(amount_usdc6: int) -> str:
    """1500000 → "1.5": no trailing zeros."""
    assert amount_usdc6 >= 0
    whole, rest = divmod(amount_usdc6, 1_000_000)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)
