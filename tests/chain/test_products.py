"""A product's series and window: what they mean is what the vault's Fills.sol reads in them."""

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.machine import Machine
from benchmarks.vault import ARBITER, DAY_S, DOLLAR, HOUR_S, WATCHER, Fill, Vault, wallet
from engine.catalog import load_catalog, pack_product, window_hours
from engine.rejects import CatalogError
from settlement.products import product_of, settled
from tests.chain.test_vault_v2 import refused

CATALOG = load_catalog()
START_S = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
CLAIM_DELAY_S = 7 * DAY_S
CLASS, REGION, GRADE = "nv.h100-sxm-80g.x8.ib", "us-e", "B"
# Every kind, every length of a month, and both ends of what can be written.
WINDOWS = [
    ("H", "2027-01-02T05"), ("H", "2027-12-31T23"), ("D", "2027-02-28"), ("W", "2027-W09"),
    ("W", "2026-W53"), ("M", "2027-02"), ("M", "2028-02"), ("M", "2027-04"), ("M", "2027-12"),
    ("H", "2209-03-30T07"), ("D", "2100-03-01"), ("M", "2100-02"),
]  # fmt: skip


@pytest.fixture(scope="module")
def vault() -> Vault:
    vault = Vault(Machine(START_S - 30 * DAY_S))
    vault.fund(1, 1_000 * DOLLAR)
    vault.fund(2, DOLLAR, 100 * DOLLAR)
    return vault


def product(kind: str, start: str) -> int:
    return CATALOG.parse(f"{CLASS}|{REGION}|{GRADE}|{kind}|{start}")


@pytest.mark.parametrize(("kind", "start"), WINDOWS)
def test_the_vault_reads_the_catalogs_hours(vault: Vault, kind: str, start: str) -> None:
    """It says when a window begins to whoever reports too early, and when it ends to whoever
    claims too early."""
    parts = CATALOG.parts(product(kind, start))
    first_s = parts.start_hours * HOUR_S
    last_s = first_s + window_hours(kind, parts.start_hours) * HOUR_S
    series, window = settled(product(kind, start))
    mark, head = vault.machine.mark(), vault.head
    batch = vault.settle([Fill(1, 2, 24_150, 160, series, window)])
    assert batch.fills[0].span() == (first_s, last_s)
    with refused("TooEarly", first_s):
        vault.do(wallet(1), "reportNonDelivery", batch.place(0))
    with refused("TooEarly", last_s + CLAIM_DELAY_S):
        vault.do(WATCHER, "claim", batch.place(0))
    vault.machine.reset(mark)
    vault.head = head


def test_spot_hours_begin_when_they_are_posted_and_last_as_long_as_a_single_gpu_takes(
    vault: Vault,
) -> None:
    series, window = settled(CATALOG.product(CLASS, REGION, GRADE))
    assert window == 0
    mark, head = vault.machine.mark(), vault.head
    fill = Fill(1, 2, 20_000, 1_000, series, window)
    many = fill._replace(price=1, qty=60_000_000)  # 68 years of a single GPU
    batch = vault.settle([fill, fill, many])
    posted_s = vault.machine.now_s
    with refused("TooEarly", posted_s + 36 * 1_000 + CLAIM_DELAY_S):
        vault.do(WATCHER, "claim", batch.place(0))
    with refused("TooEarly", posted_s + 60 * DAY_S + CLAIM_DELAY_S):
        vault.do(WATCHER, "claim", batch.place(2))
    with refused("NothingWrong"):  # so many are not too far off
        vault.do(WATCHER, "voidFlawed", batch.place(2))
    vault.machine.wait(36 * 1_000)
    with refused("WindowOver", posted_s + 36 * 1_000):
        vault.do(wallet(1), "stop", batch.place(0))
    vault.do(wallet(1), "stop", batch.place(2))
    vault.machine.reset(mark)
    vault.head = head


def test_of_spot_hours_only_what_was_due_before_their_buyers_report_is_claimed(
    vault: Vault,
) -> None:
    series, window = settled(CATALOG.product(CLASS, REGION, GRADE))
    mark, head = vault.machine.mark(), vault.head
    batch = vault.settle([Fill(1, 2, 20_000, 1_000, series, window)])
    posted_s = vault.machine.now_s
    vault.machine.wait(36 * 250 - 1)
    vault.do(wallet(1), "reportNonDelivery", batch.place(0))
    part = 20_000 * 1_000 * (vault.machine.now_s - posted_s) // (36 * 1_000)
    assert 0 < part < 20_000 * 1_000 // 3
    with refused("SlashTooHigh", 2 * (20_000 * 1_000 - part)):
        vault.do(ARBITER, "slash", batch.place(0), 2 * 20_000 * 1_000)
    vault.do(ARBITER, "slash", batch.place(0), 1)
    vault.machine.wait(36 * 1_000 + CLAIM_DELAY_S)
    done = vault.do(WATCHER, "claim", batch.place(0))
    [claimed] = vault.logged(done.logs, "Claimed")
    assert (claimed["toSeller"], claimed["toBuyer"]) == (part, 20_000 * 1_000 - part)
    vault.machine.reset(mark)
    vault.head = head


def test_every_series_of_the_catalog_has_its_own_number_which_names_it_again() -> None:
    seen: set[int] = set()
    for hardware, region, grade in itertools.product(
        CATALOG.classes, CATALOG.regions, CATALOG.grades
    ):
        spot = CATALOG.product(hardware.id, region.name, grade.name)
        series, window = settled(spot)
        assert 0 < series < 1 << 16 and series not in seen
        assert product_of(series, window) == spot
        seen.add(series)


def test_numbers_once_signed_stay() -> None:
    """Whoever changes one of these breaks every order that was signed."""
    assert settled(CATALOG.product(CLASS, REGION, GRADE)) == (
        CATALOG.hardware(CLASS).number << 6 | 1 << 2 | 2,
        0,
    )
    assert settled(CATALOG.parse("nv.rtx4090-24g.x1|eu-n|C|M|2027-02")) == (
        CATALOG.hardware("nv.rtx4090-24g.x1").number << 6 | CATALOG.region("eu-n").number << 2 | 3,
        4 << 21 | 500_400,
    )


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**24 - 1))
def test_a_pair_names_one_product_or_none(series: int, window: int) -> None:
    try:
        found = product_of(series, window)
    except CatalogError:
        return
    assert settled(found) == (series, window)


@given(st.sampled_from([c.id for c in CATALOG.classes]), st.integers(1, 2**21 - 1))
def test_every_hour_comes_back(hardware: str, hour: int) -> None:
    of_hour = CATALOG.product(hardware, REGION, GRADE, "H", hour)
    series, window = settled(of_hour)
    assert window == 1 << 21 | hour and product_of(series, window) == of_hour


def test_what_the_vault_cannot_name_is_refused() -> None:
    hour = CATALOG.product(CLASS, REGION, GRADE, "H", 2**21)
    with pytest.raises(CatalogError, match="hour 2097152"):
        settled(hour)
    with pytest.raises(CatalogError):
        settled(pack_product(1_024, 1, 1, 1))
    series, window = settled(product("M", "2027-02"))
    with pytest.raises(CatalogError, match="no product"):
        product_of(series, window + (1 << 21))  # February with 29 days
    with pytest.raises(CatalogError):
        product_of(series, 8 << 21)
