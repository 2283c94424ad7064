"""What a symbol stands for when its region is one at large or better grades will do."""

import pytest

from engine.catalog import Catalog, load_catalog
from engine.rejects import CatalogError

CATALOG = load_catalog()
FLAGSHIP = "nv.h100-sxm-80g.x8.ib"


def symbols(name: str, *, or_better: bool = False) -> list[str]:
    return [CATALOG.symbol(p) for p in CATALOG.alternatives(name, or_better=or_better)]


def test_a_region_stands_for_itself() -> None:
    assert symbols(f"{FLAGSHIP}|us-e|B|SPOT") == [f"{FLAGSHIP}|us-e|B|SPOT"]
    assert symbols("H100SXM8IBUSEB") == [f"{FLAGSHIP}|us-e|B|SPOT"]


def test_a_region_at_large_stands_for_its_members() -> None:
    assert symbols(f"{FLAGSHIP}|us.any|B|SPOT") == [
        f"{FLAGSHIP}|{region}|B|SPOT" for region in ("us-e", "us-c", "us-w")
    ]
    assert len(symbols(f"{FLAGSHIP}|any|C|H|2026-12-01T14")) == 11


def test_better_grades_deliver_into_worse_ones_and_never_the_other_way() -> None:
    def grades(grade: str) -> list[str]:
        found = symbols(f"{FLAGSHIP}|us-e|{grade}|SPOT", or_better=True)
        return [symbol.split("|")[2] for symbol in found]

    assert (grades("A"), grades("B"), grades("C")) == (["A"], ["B", "A"], ["C", "B", "A"])


def test_a_name_is_read_once_whatever_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read, parse = list[str](), Catalog.parse

    def counted(catalog: Catalog, name: str) -> int:
        read.append(name)
        return parse(catalog, name)

    monkeypatch.setattr(Catalog, "parse", counted)
    assert len(symbols(f"{FLAGSHIP}|any|C|H|2026-12-01T14", or_better=True)) == 33
    assert len(read) == 1


@pytest.mark.parametrize("name", ["nothing", f"{FLAGSHIP}|moon|B|SPOT", f"{FLAGSHIP}|us.any|B"])
def test_what_the_catalog_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(CatalogError):
        CATALOG.alternatives(name)


def test_hours_follow_each_other_over_midnight_and_the_month() -> None:
    first = CATALOG.parse(f"{FLAGSHIP}|us-e|B|H|2026-11-30T23")
    assert [CATALOG.symbol(p)[-13:] for p in CATALOG.hours_from(first, 3)] == [
        "2026-11-30T23", "2026-12-01T00", "2026-12-01T01",
    ]  # fmt: skip


def test_only_hours_follow_each_other() -> None:
    for symbol in (f"{FLAGSHIP}|us-e|B|SPOT", f"{FLAGSHIP}|us-e|B|D|2026-12-01"):
        with pytest.raises(CatalogError):
            CATALOG.hours_from(CATALOG.parse(symbol), 2)
