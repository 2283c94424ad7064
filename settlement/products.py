"""What is traded, as the vault writes it: the engine's product key to (series, window) and back.

A series (u16) is the place of (hardware class, region, grade) in a fixed order, a window (u24) is
its kind (3 bits) and its first hour since 1970 (21 bits), as Fills.sol reads them. Invariant: both
follow from the catalog's numbers alone, which are never changed nor used again, so what was once
signed and settled under a pair means the same product for good; two products never share a pair,
and no series is 0. Pure; whoever signs, seals or checks what the vault settles calls it.

    series = class << 6 | region << 2 | grade
    window = kind << 21 | first hour; kind 0 SPOT, 1 H, 2 D, 3 W, 4 to 7 M of 28 to 31 days
"""

from functools import lru_cache
from typing import Final, NamedTuple

from engine.catalog import Product, load_catalog, pack_product, unpack_product, window_hours
from engine.rejects import CatalogError

CLASS_BITS: Final = 10
REGION_BITS: Final = 4
GRADE_BITS: Final = 2
KIND_BITS: Final = 3
HOUR_BITS: Final = 21  # until 2209
MONTH_DAYS_MIN: Final = 28

assert CLASS_BITS + REGION_BITS + GRADE_BITS == 16 and KIND_BITS + HOUR_BITS == 24

_NAMES: Final = ("SPOT", "H", "D", "W", "M", "M", "M", "M")  # by kind
_MONTH: Final = _NAMES.index("M")
_PRODUCTS_KEPT: Final = 1 << 16  # as many as the engine lists


class Settled(NamedTuple):
    """A product in a fill or an order of the vault."""

    series: int  # u16, above zero
    window: int  # u24


@lru_cache(_PRODUCTS_KEPT)
def settled(product: int) -> Settled:
    """How the vault names this product. Raises CatalogError if it is none of the catalog, or beyond
    what fits: class 1023, region 15, grade 3, the year 2209."""
    window = load_catalog().parts(product).window.name
    numbers = unpack_product(product)
    for what, number, bits in (
        ("class", numbers.class_number, CLASS_BITS),
        ("region", numbers.region, REGION_BITS),
        ("grade", numbers.grade, GRADE_BITS),
        ("hour", numbers.start_hours, HOUR_BITS),
    ):
        if number >> bits:
            raise CatalogError(f"{what} {number} is beyond what the vault can name")
    kind = _NAMES.index(window)
    if kind == _MONTH:
        kind += window_hours(window, numbers.start_hours) // 24 - MONTH_DAYS_MIN
    return Settled(_series(numbers), kind << HOUR_BITS | numbers.start_hours)


def product_of(series: int, window: int) -> int:
    """The product that is settled as this pair. Raises CatalogError if there is none."""
    kind, start_hours = window >> HOUR_BITS, window & (1 << HOUR_BITS) - 1
    if kind not in range(len(_NAMES)):
        raise CatalogError(f"no window {window}")
    product = pack_product(
        series >> GRADE_BITS + REGION_BITS,
        series >> GRADE_BITS & (1 << REGION_BITS) - 1,
        series & (1 << GRADE_BITS) - 1,
        load_catalog().window(_NAMES[kind]).number,
        start_hours,
    )
    if settled(product) != (series, window):  # a month of another length
        raise CatalogError(f"no product is settled as series {series}, window {window}")
    return product


def _series(numbers: Product) -> int:
    place = numbers.class_number << REGION_BITS | numbers.region
    return place << GRADE_BITS | numbers.grade
