"""The catalog: names and keys are one to one, and what was published stays as it is."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import (
    CLASS_ID,
    HOUR_NS,
    Product,
    hourly_windows,
    load_catalog,
    pack_product,
    parse_catalog,
    unpack_product,
    window_hours,
)
from engine.records import QTY_LOTS_MAX
from engine.rejects import CatalogError

CATALOG = load_catalog()
TEXT = resources.files("engine").joinpath("catalog.toml").read_text("utf-8")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FLAGSHIP = "nv.h100-sxm-80g.x8.ib|us-e|B"

# Class numbers, ids and codes are inside journals, products and tickers. When this fails, the
# catalog broke its promise: add a class with the next number instead of changing one.
PUBLISHED_CLASSES = 64
PUBLISHED_DIGEST = "c38d4fdf89cdc620c77175ff9a2b4f1e94eee295708ed8bbf1f10a02850bf6d8"


REFERENCE_TABLE = """
nv.gb200-186g.x4.nvl72 nv.b300-sxm-288g.x8.ib nv.b200-sxm-180g.x8.ib nv.h200-sxm-141g.x8.ib
nv.h200-nvl-141g.x1 nv.h100-sxm-80g.x8.ib nv.h100-sxm-80g.x1 nv.h100-pcie-80g.x1
nv.h100-nvl-94g.x1 nv.gh200-96g.x1 nv.a100-sxm-80g.x8.ib nv.a100-pcie-80g.x1
nv.a100-sxm-40g.x8 nv.l40s-pcie-48g.x1 nv.l4-pcie-24g.x1 nv.a10g-pcie-24g.x1
nv.rtxpro6000se-96g.x1 nv.rtx6000ada-48g.x1 nv.rtx5090-32g.x1 nv.rtx4090-24g.x1
am.mi300x-192g.x8 am.mi355x-288g.x8
"""


def hours_since_epoch(*when: int) -> int:
    return (datetime(*when, tzinfo=UTC) - EPOCH) // timedelta(hours=1)  # pyright: ignore[reportArgumentType]


def published_digest() -> str:
    promises = "".join(
        f"{c.number} {c.id} {c.code} {c.memory_gib} {c.node_gpus} {c.fabric_gbps} "
        f"{c.bf16_tflops} {c.memory_gbs} {c.interconnect} {c.nvlink_gbs}\n"
        for c in sorted(CATALOG.classes, key=lambda c: c.number)
        if c.number <= PUBLISHED_CLASSES
    )
    promises += "".join(f"{r.number} {r.name} {r.code}\n" for r in CATALOG.regions)
    promises += "".join(f"{g.number} {g.name} {g.slo_permille}\n" for g in CATALOG.grades)
    promises += "".join(f"{w.number} {w.name}\n" for w in CATALOG.window_kinds)
    return hashlib.sha256(promises.encode()).hexdigest()


@st.composite
def products(draw: st.DrawFn) -> int:
    kind = draw(st.sampled_from(CATALOG.window_kinds))
    day = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=draw(st.integers(0, 50_000)))
    if kind.name == "W":
        day -= timedelta(days=day.weekday())
    if kind.name == "M":
        day = day.replace(day=1)
    start_hours = (day - EPOCH) // timedelta(hours=1)
    if kind.name == "H":
        start_hours += draw(st.integers(0, 23))
    return pack_product(
        draw(st.sampled_from(CATALOG.classes)).number,
        draw(st.sampled_from(CATALOG.regions)).number,
        draw(st.sampled_from(CATALOG.grades)).number,
        kind.number,
        0 if kind.name == "SPOT" else start_hours,
    )


@given(products())
def test_a_product_its_symbol_and_its_ticker_name_each_other(product: int) -> None:
    symbol, ticker = CATALOG.symbol(product), CATALOG.ticker(product)
    assert CATALOG.parse(symbol) == product
    assert CATALOG.parse(ticker) == product
    assert re.fullmatch(r"[A-Z0-9]+", ticker)
    assert symbol.startswith(CATALOG.series(product) + "|")
    assert pack_product(*unpack_product(product)) == product


@given(products(), products())
def test_two_products_never_share_a_name(one: int, other: int) -> None:
    same = one == other
    assert (CATALOG.symbol(one) == CATALOG.symbol(other)) == same
    assert (CATALOG.ticker(one) == CATALOG.ticker(other)) == same


@given(
    st.integers(1, 2**16 - 1),
    st.integers(1, 255),
    st.integers(1, 255),
    st.integers(1, 255),
    st.integers(0, 2**24 - 1),
)
def test_packing_a_product_loses_nothing(a: int, b: int, c: int, d: int, e: int) -> None:
    product = pack_product(a, b, c, d, e)
    assert 0 < product < 1 << 64
    assert unpack_product(product) == Product(a, b, c, d, e)


@given(st.text(max_size=60) | st.from_regex(r"[A-Z0-9|.:x-]{0,60}", fullmatch=True))
def test_a_name_is_a_product_or_a_catalog_error(name: str) -> None:
    try:
        product = CATALOG.parse(name)
    except CatalogError:
        return
    assert name in (CATALOG.symbol(product), CATALOG.ticker(product))


def test_every_spot_ticker_is_unique() -> None:
    tickers = [
        CATALOG.ticker(CATALOG.product(c.id, r.name, g.name))
        for c in CATALOG.classes
        for r in CATALOG.regions
        for g in CATALOG.grades
    ]
    assert len(set(tickers)) == len(tickers) == 64 * 11 * 3


def test_the_catalog_holds_the_whole_reference_table() -> None:
    ids = {c.id for c in CATALOG.classes}
    table = set(REFERENCE_TABLE.split())
    assert len(table) == 22 and table <= ids
    assert all(CLASS_ID.fullmatch(i) for i in ids)


def test_what_was_published_is_unchanged() -> None:
    assert len(CATALOG.classes) >= PUBLISHED_CLASSES
    assert published_digest() == PUBLISHED_DIGEST


def test_the_flagship_has_the_names_bots_know() -> None:
    spot = CATALOG.parse(FLAGSHIP + "|SPOT")
    assert CATALOG.ticker(spot) == "H100SXM8IBUSEB"
    hour = CATALOG.parse(FLAGSHIP + "|H|2026-12-01T14")
    assert CATALOG.ticker(hour) == "H100SXM8IBUSEBH2026120114"
    assert unpack_product(hour).start_hours == hours_since_epoch(2026, 12, 1, 14)
    assert CATALOG.product("nv.h100-sxm-80g.x8.ib", "us-e", "B") == spot


def test_an_iso_week_keeps_its_year_at_the_turn_of_the_year() -> None:
    week = CATALOG.parse(FLAGSHIP + "|W|2026-W53")
    assert unpack_product(week).start_hours == hours_since_epoch(2026, 12, 28)
    assert CATALOG.ticker(week).endswith("W202653")
    with pytest.raises(CatalogError):
        CATALOG.parse(FLAGSHIP + "|W|2025-W53")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "|",
        FLAGSHIP,
        FLAGSHIP + "|spot",
        FLAGSHIP + "|SPOT|2026-12-01T14",
        FLAGSHIP + "|H",
        FLAGSHIP + "|H|2026-12-01",
        FLAGSHIP + "|H|2026-12-01T24",
        FLAGSHIP + "|H|2026-12-1T14",
        FLAGSHIP + "|D|2026-02-29",
        FLAGSHIP + "|M|2026-13",
        FLAGSHIP + "|Q|2026-12",
        "nv.h100-sxm-80g.x8.ib|us.any|B|SPOT",
        "nv.h100-sxm-80g.x9|us-e|B|SPOT",
        "nv.h100-sxm-80g.x8.ib|us-e|D|SPOT",
        "H100SXM8IBUSE",
        "h100sxm8ibuseb",
        "H100SXM8IBUSEBH20261201",
        "H100SXM8IBUSEBD20260229",
    ],
)
def test_a_name_that_is_not_spelled_exactly_is_refused(name: str) -> None:
    with pytest.raises(CatalogError):
        CATALOG.parse(name)


def test_a_key_outside_the_catalog_is_refused() -> None:
    for product in (0, -1, 1 << 64, 1 << 63, 65_000 << 48 | 1 << 40 | 1 << 32 | 1 << 24):
        with pytest.raises(CatalogError):
            CATALOG.symbol(product)
    with pytest.raises(CatalogError, match="region number"):
        pack_product(1, 256, 1, 1)
    friday = hours_since_epoch(2026, 11, 20)
    for kind, start in (("W", friday), ("M", friday), ("D", friday + 1), ("SPOT", 1), ("H", 0)):
        with pytest.raises(CatalogError):
            window_hours(kind, start)


def test_a_window_is_sold_whole_and_spot_by_36_seconds_of_a_node() -> None:
    lots = {
        s: CATALOG.lot_multiple(CATALOG.parse(f"{FLAGSHIP}|{s}"))
        for s in ("SPOT", "H|2026-12-01T14", "D|2026-12-01", "W|2026-W49", "M|2026-12", "M|2027-02")
    }
    assert list(lots.values()) == [8, 800, 19_200, 134_400, 595_200, 537_600]
    assert CATALOG.lot_multiple(CATALOG.parse("nv.rtx4090-24g.x1|eu-n|C|SPOT")) == 1
    assert CATALOG.lot_multiple(CATALOG.parse("nv.rtx4090-24g.x1|eu-n|C|H|2026-12-01T14")) == 100
    assert max(lots.values()) <= QTY_LOTS_MAX


def test_the_bond_is_never_under_its_per_cent() -> None:
    for hardware in CATALOG.classes:
        for grade in CATALOG.grades:
            bond = CATALOG.bond_usdc6_per_lot(CATALOG.product(hardware.id, "ca", grade.name))
            exact_hundredths = hardware.reference_price_ticks * grade.bond_percent
            assert exact_hundredths <= bond * 100 < exact_hundredths + 100
            assert bond > 0
    assert CATALOG.bond_usdc6_per_lot(CATALOG.parse(FLAGSHIP + "|SPOT")) == 5_000


def test_the_hour_under_way_is_not_listed() -> None:
    noon = hours_since_epoch(2026, 11, 21, 12)
    assert hourly_windows(noon * HOUR_NS, 2) == [noon + 1, noon + 2]
    assert hourly_windows((noon + 1) * HOUR_NS - 1, 1) == [noon + 1]
    assert len(hourly_windows(noon * HOUR_NS)) == 48


def test_a_basket_stands_for_its_regions_and_a_region_for_itself() -> None:
    assert CATALOG.regions_of("us.any") == ("us-e", "us-c", "us-w")
    assert CATALOG.regions_of("oc") == ("oc",)
    assert set(CATALOG.regions_of("any")) == {r.name for r in CATALOG.regions}
    with pytest.raises(CatalogError, match="'us-x'"):
        CATALOG.regions_of("us-x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 1", "version = 2", "version 2"),
        ('number = 2\nname = "us-c"', 'number = 1\nname = "us-c"', "two regions numbered 1"),
        ('code = "USC"', 'code = "APUSE"', "ends with"),
        ('code = "H100SXM1"', 'code = "H100-SXM1"', "code 'H100-SXM1'"),
        ('code = "H100SXM1"', 'code = "H100NVL1"', "two classes with the code"),
        ("number = 7\nid", "number = 6\nid", "two classes numbered 6"),
        ('id = "nv.h100-sxm-80g.x1"', 'id = "nv.H100-sxm-80g.x1"', "the id is not"),
        ('id = "nv.h100-sxm-80g.x1"', 'id = "nv.h100-sxm-96g.x1"', "memory_gib"),
        ('id = "nv.h100-sxm-80g.x1"', 'id = "nv.h100-sxm-80g.x4"', "node_gpus"),
        ("fabric_gbps = 6400", "fabric_gbps = 0", "fabric_gbps"),
        ("reference_price_ticks = 25000", "reference_price_ticks = 0", "reference_price"),
        ("reference_price_ticks = 25000", "reference_price_ticks = 2.5", "Expected `int`"),
        ("node_gpus = 8", "node_gpus = 8\nlease_days = 1", "unknown field `lease_days`"),
        ("bond_percent = 50", "bond_percent = 0", "bond"),
        ('regions = ["us-e", "us-c", "us-w"]', 'regions = ["us-x"]', "no region 'us-x'"),
        ('"US-WY"]', '"US-WY", "CA"]', "two regions cover 'CA'"),
        ('"aws:g5"', '"g5"', "market:spelling"),
        ("version = 1", "version =", "cannot be read"),
    ],
)
def test_a_wrong_catalog_is_refused_in_words(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(CatalogError, match=re.escape(words)):
        parse_catalog(TEXT.replace(old, new, 1))


def test_adding_a_class_is_one_table() -> None:
    table = """
[[classes]]
number = 900
id = "am.mi250-128g.x8"
code = "MI2508"
title = "AMD Instinct MI250, 8-GPU node"
memory_gib = 128
node_gpus = 8
interconnect = "infinity-fabric"
reference_price_ticks = 9000
"""
    catalog = parse_catalog(TEXT + table)
    product = catalog.parse("am.mi250-128g.x8|eu-n|A|SPOT")
    assert catalog.ticker(product) == "MI2508EUNA"
    assert catalog.bond_usdc6_per_lot(product) == 900
