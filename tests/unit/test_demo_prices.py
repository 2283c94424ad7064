"""Published prices become quotes exactly, or are reported; each known quirk has its case."""

import ast
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import load_catalog
from engine.rejects import CatalogError
from gateway.demo import prices
from gateway.demo.prices import (
    Mapping,
    Quote,
    Row,
    Skipped,
    SkipReason,
    load_mapping,
    load_quotes,
    load_rows,
    load_sources,
    parse_rows,
    ticks_per_gpu,
)

QUOTES, SKIPPED = load_quotes()
CATALOG = load_catalog()
MAPPING_TEXT = resources.files("gateway.demo").joinpath("mapping.toml").read_text("utf-8")


def quoted(provider: str, instance_type: str, region: str) -> Quote:
    wanted = (provider, instance_type, region)
    (found,) = (q for q in QUOTES if (q.provider, q.row.instance_type, q.row.region) == wanted)
    return found


def reasons(provider: str, instance_prefix: str = "", region: str | None = None) -> set[SkipReason]:
    """Of every row of the provider that begins so; a quote among them fails the caller."""
    assert not [
        q
        for q in QUOTES
        if q.provider == provider
        and q.row.instance_type.startswith(instance_prefix)
        and region in (None, q.row.region)
    ]
    found = {
        s.reason
        for s in SKIPPED
        if s.row.provider == provider
        and s.row.instance_type.startswith(instance_prefix)
        and region in (None, s.row.region)
    }
    assert found, "no such row"
    return found


def test_every_row_is_a_quote_or_is_reported() -> None:
    rows = load_rows()
    assert len(rows) == 799
    assert len(QUOTES) + len(SKIPPED) == 799
    assert sorted([q.row for q in QUOTES] + [s.row for s in SKIPPED]) == rows


def test_the_counts_are_those_the_readme_tells() -> None:
    readme = resources.files("gateway.demo").joinpath("README.md").read_text("utf-8")
    for reason, rows in Counter(s.reason for s in SKIPPED).items():
        assert f"| `{reason.name}` | {rows} |" in readme
    providers = {q.provider for q in QUOTES}
    markets = {(q.class_id, q.region) for q in QUOTES}
    assert (
        f"{len(QUOTES)} are quotes of {len(providers)} providers in {len(markets)} (class, region)"
        in readme
    )
    assert len(providers) >= 19 and len(markets) >= 190


def test_no_row_falls_through_the_tables() -> None:
    fallen = {SkipReason.HARDWARE_UNKNOWN, SkipReason.REGION_UNKNOWN, SkipReason.COUNT_NOT_SOLD}
    assert not [s for s in SKIPPED if s.reason in fallen]


def test_every_quote_is_of_a_listed_class_and_region_and_has_a_price() -> None:
    for quote in QUOTES:
        assert CATALOG.product(quote.class_id, quote.region, "C")
        for ticks in (quote.on_demand_ticks, quote.spot_ticks):
            assert ticks is None or 100 <= ticks <= 120_000, quote
        assert quote.on_demand_ticks or quote.spot_ticks


def test_every_provider_has_its_source() -> None:
    sources = load_sources()
    assert set(sources) == {row.provider for row in load_rows()}
    assert all(len(s.commit) == 40 and s.path.endswith("/vms.csv") for s in sources.values())


# --- the quirks ----------------------------------------------------------------------------------
def test_an_accelerator_listed_without_its_machine_is_no_quote() -> None:
    assert reasons("gcp") == {SkipReason.PRICE_WITHOUT_HOST}


def test_a_spot_price_of_zero_is_none_and_not_free() -> None:
    vast = [q for q in QUOTES if q.provider == "vast"]
    assert vast and all(q.row.spot_usd == "0.00" and q.spot_ticks is None for q in vast)


def test_a_machine_listed_with_twelve_gpus_that_has_eight_is_reported() -> None:
    assert reasons("azure", "Standard_ND96isr_H100_v5") == {SkipReason.WRONG_COUNT}
    assert reasons("azure", "Standard_ND96is_H100_v5") == {SkipReason.WRONG_COUNT}


def test_a_slice_of_a_gpu_is_reported_whether_its_count_says_so_or_not() -> None:
    assert reasons("azure", "Standard_NV12ads_A10_v5") == {SkipReason.PARTIAL_GPU}
    assert reasons("azure", "Standard_NV16as_v4") == {SkipReason.PARTIAL_GPU}
    assert reasons("aws", "g6f.") == {SkipReason.FRACTIONAL_COUNT}


def test_an_old_discount_is_reported() -> None:
    assert reasons("azure", "Standard_NC6_Promo") == {SkipReason.PROMOTION}


def test_a_floor_is_not_a_price() -> None:
    assert reasons("mithril") == {SkipReason.NOT_A_MARKET_PRICE}


def test_a_resold_machine_of_an_owner_in_the_file_is_reported_and_others_are_not() -> None:
    assert reasons("primeintellect", "lambdalabs__", "AU") == {SkipReason.RESOLD}
    assert reasons("shadeform", "paperspace_H100") == {SkipReason.RESOLD}
    assert reasons("spheron", "n3-H100x8-NVLink__CANADA-1") == {SkipReason.RESOLD}
    assert quoted("shadeform", "massedcompute_L40S", "desmoines-usa-1").region == "us-c"


def test_sellers_who_label_a_machine_differently_are_reported() -> None:
    assert reasons("primeintellect", "latitude__8xL40_48GB") == {SkipReason.LABELS_DISAGREE}
    assert reasons("spheron", "A100_sxm4x8_66b9") == {SkipReason.LABELS_DISAGREE}


def test_a_name_that_several_cards_share_is_reported() -> None:
    assert reasons("do") == {SkipReason.FORM_UNKNOWN}
    assert reasons("fluidstack", "H100_NVLINK_80GB::8") == {SkipReason.FORM_UNKNOWN}
    assert reasons("paperspace", "H100") == {SkipReason.FORM_UNKNOWN}


def test_a_form_told_by_the_instance_type_is_used() -> None:
    assert quoted("vast", "1x-H100_NVL-32-65536", "Bulgaria, BG, EU").class_id == (
        "nv.h100-nvl-94g.x1"
    )
    assert quoted("fluidstack", "H100_PCIE_80GB::4", "CANADA").class_id == "nv.h100-pcie-80g.x1"
    assert quoted("hyperstack", "n3-H100-SXM5x8", "CANADA-1").class_id == "nv.h100-sxm-80g.x8"


def test_a_place_that_is_missing_coarse_ambiguous_or_far_is_reported() -> None:
    missing = [s for s in SKIPPED if not s.row.region]
    assert len(missing) == 15 and {s.reason for s in missing} == {SkipReason.REGION_MISSING}
    assert reasons("runpod", region="US") == {SkipReason.REGION_TOO_COARSE}
    assert reasons("vast", region=", US, NA") == {SkipReason.REGION_TOO_COARSE}
    assert reasons("lium", region="RU") == {SkipReason.REGION_NOT_COVERED}
    assert reasons("lambda", region="me-west-1") == {SkipReason.REGION_NOT_COVERED}
    assert reasons("oci") == {SkipReason.REGION_NOT_COVERED}
    assert reasons("spheron", region="newark-usa-1") == {SkipReason.REGION_AMBIGUOUS}


def test_figures_that_may_be_euro_are_reported() -> None:
    assert reasons("scaleway") == {SkipReason.CURRENCY_UNSURE}
    assert reasons("seeweb", region="it-fr2") == {SkipReason.CURRENCY_UNSURE}


def test_the_same_spelling_is_another_place_at_another_provider() -> None:
    assert quoted("aws", "p5.48xlarge", "us-east-1").region == "us-e"
    assert quoted("lambda", "gpu_1x_gh200", "us-south-1").region == "us-c"
    assert quoted("aws", "p5.4xlarge", "ap-southeast-2").region == "oc"
    assert quoted("aws", "p5.4xlarge", "ap-southeast-3").region == "ap-se"


def test_a_place_with_commas_and_accents_is_read() -> None:
    assert {q.region for q in QUOTES if "Hafnarfjarðarkaupstaður" in q.row.region} == {"eu-n"}


def test_a_price_is_of_one_gpu_and_noise_of_the_source_is_rounded_away() -> None:
    b300 = quoted("verda", "4B300.120V", "FIN-03")
    assert (b300.on_demand_ticks, b300.spot_ticks) == (69_900, 24_465)
    noisy = [q for q in QUOTES if len(q.row.on_demand_usd) > 12]
    assert noisy and {q.row.on_demand_usd for q in noisy} >= {"0.36979999999999996"}
    assert {q.on_demand_ticks for q in noisy if q.row.on_demand_usd.startswith("0.36979")} == {3698}


def test_a_row_with_a_spot_price_only_quotes_just_that() -> None:
    b200 = quoted("verda", "2B200.60V", "FIN-03")
    assert (b200.on_demand_ticks, b200.spot_ticks) == (None, 17_115)


# --- the arithmetic ------------------------------------------------------------------------------
@given(
    st.decimals("0.0001", "5000", places=9),
    st.integers(1, 16),
)
def test_a_price_is_rounded_to_the_nearest_tick(usd: Decimal, gpus: int) -> None:
    try:
        ticks = ticks_per_gpu(str(usd), gpus)
    except ValueError:
        assert usd * 20_000 < gpus or usd * 10_000 / gpus > 16_777_215
        return
    assert ticks is not None
    assert abs(ticks * gpus * 2 - usd * 20_000) <= gpus
    if gpus in (1, 2, 4, 8, 16):  # their quotients are exact decimals
        exact = usd * 10_000 / gpus
        assert ticks == int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def test_no_price_and_free_are_both_no_price() -> None:
    assert ticks_per_gpu("", 8) is None
    assert ticks_per_gpu("0.00", 8) is None
    assert ticks_per_gpu("0.00005", 1) == 1  # half a tick goes up
    with pytest.raises(ValueError, match="no price of ours"):
        ticks_per_gpu("0.00004", 1)
    with pytest.raises(ValueError, match="no price of ours"):
        ticks_per_gpu("1677.72155", 1)


def row(**fields: str) -> Row:
    base = Row(1, "verda", "1L40S.20V", "L40S", "1.0", "FIN-01", "0.91", "")
    return base._replace(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"accelerator": "QUBIT"}, SkipReason.HARDWARE_UNKNOWN),
        ({"region": "FIN-99"}, SkipReason.REGION_UNKNOWN),
        ({"provider": "nobody"}, SkipReason.REGION_UNKNOWN),
        ({"region": ""}, SkipReason.REGION_MISSING),
        ({"accelerator": "GB200", "gpus": "3"}, SkipReason.COUNT_NOT_SOLD),
        ({"gpus": "0.5"}, SkipReason.FRACTIONAL_COUNT),
        ({"on_demand_usd": "0"}, SkipReason.NO_PRICE),
        ({"on_demand_usd": "20000"}, SkipReason.PRICE_OUT_OF_RANGE),
    ],
)
def test_an_unforeseen_row_is_reported_and_not_guessed(
    fields: dict[str, str], reason: SkipReason
) -> None:
    assert isinstance(load_mapping().quote(row()), Quote)
    skipped = load_mapping().quote(row(**fields))
    assert isinstance(skipped, Skipped) and skipped.reason is reason


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"nv.gb200-186g.x4.nvl72"', '"nv.gb200-186g.x8"'),
        ('node = { 4 = "nv.gb200', 'node = { 8 = "nv.gb200'),
        ('single = "nv.l40-pcie-48g.x1"', 'single = "am.mi300x-192g.x8"'),
        ('single = "nv.l40-pcie-48g.x1"', 'single = "nv.l40-pcie-48g.x1"\nreason = "RESOLD"'),
        ('reason = "PROMOTION"', 'reason = "OLD"'),
        ("REGION_NOT_COVERED = [", "REGION_FAR = ["),
        ('ap-s = ["IN1", "IN2"]', 'ap-x = ["IN1", "IN2"]'),
        ('ap-s = ["IN1", "IN2"]', 'ap-s = ["IN1", "IN2"]\noc = ["IN1"]'),
    ],
)
def test_a_wrong_table_is_refused_at_once(old: str, new: str) -> None:
    assert old in MAPPING_TEXT
    with pytest.raises((ValueError, CatalogError)):
        Mapping(MAPPING_TEXT.replace(old, new, 1), CATALOG)


def test_columns_that_moved_are_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        parse_rows("provider,region\nlambda,us-east-1\n")


def test_no_float_is_in_the_mapping() -> None:
    tree = ast.parse(Path(prices.__file__).read_text("utf-8"))
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert constants and not [n for n in constants if isinstance(n.value, float)]
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert "Fraction" in names and "float" not in names
    assert all(a.row.number < b.row.number for a, b in pairwise(QUOTES))
