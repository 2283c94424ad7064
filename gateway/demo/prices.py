"""Published cloud prices as quotes in our markets: a pure mapping of prices.csv.

Invariant: every row becomes exactly one Quote or one Skipped with its reason; nothing is guessed,
and no float is involved. A quote is a list price, indicative: it becomes a firm ask only when an
operator with a bond places it. Read README.md beside this file for what the rows are worth.
The demonstration's actors call `load_quotes`; mapping.toml holds the tables.
"""

import csv
import re
import tomllib
from enum import StrEnum
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import msgspec

from engine.catalog import Catalog, load_catalog
from engine.records import PRICE_TICKS_MAX

TICKS_PER_DOLLAR: Final = 10_000


class SkipReason(StrEnum):
    """Why a row cannot be a quote; the value says it in words."""

    PRICE_WITHOUT_HOST = "the price is of the accelerators alone, without their machine"
    NOT_A_MARKET_PRICE = "the figure is a floor that every machine has, not a price"
    CURRENCY_UNSURE = "the seller lists euro and nothing says that the figure was converted"
    WRONG_COUNT = "the GPU count is known to be wrong"
    FRACTIONAL_COUNT = "a part of a GPU by its count"
    PARTIAL_GPU = "a part of a GPU, although its count says one"
    PROMOTION = "a discount that has ended"
    RESOLD = "another's machine; its owner's own price is in the file"
    LABELS_DISAGREE = "two sellers label this machine differently"
    FORM_UNKNOWN = "several cards of different speed share this name"
    HARDWARE_UNKNOWN = "no rule knows this accelerator"
    COUNT_NOT_SOLD = "no class has a node of this many GPUs"
    REGION_MISSING = "the region is empty"
    REGION_UNKNOWN = "no table knows this region"
    REGION_TOO_COARSE = "the region spans several of ours"
    REGION_AMBIGUOUS = "several places have this name"
    REGION_NOT_COVERED = "we have no region there"
    NO_PRICE = "neither price is given"
    PRICE_OUT_OF_RANGE = "the price is under half a tick or over the highest price"


class Source(NamedTuple):
    """Where a provider's rows were read: a file of github.com/skypilot-org/skypilot-catalog."""

    provider: str
    path: str
    commit: str


class Row(NamedTuple):
    """One line of prices.csv, as published; `number` counts data lines from 1.

    `gpus` may be a fraction. Prices are dollars per hour for the whole instance; empty: none.
    """

    number: int
    provider: str
    instance_type: str
    accelerator: str
    gpus: str
    region: str
    on_demand_usd: str
    spot_usd: str


class Quote(NamedTuple):
    """A row in our terms. Prices are per GPU-hour; at least one of the two is there."""

    provider: str
    class_id: str
    region: str
    on_demand_ticks: int | None
    spot_ticks: int | None
    row: Row


class Skipped(NamedTuple):
    row: Row
    reason: SkipReason


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See mapping.toml."""

    providers: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    instance: str = ""
    reason: str = ""
    node: dict[int, str] = {}
    single: str = ""

    def fits(self, row: Row) -> bool:
        return (
            (not self.providers or row.provider in self.providers)
            and (not self.accelerators or row.accelerator in self.accelerators)
            and re.search(self.instance, row.instance_type) is not None
        )


class _MappingFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]
    regions: dict[str, dict[str, tuple[str, ...]]]


class _Skip(Exception):
    def __init__(self, reason: SkipReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Mapping:
    """The tables of mapping.toml, checked against the catalog. Raises ValueError or CatalogError
    for a reason, class or region that does not exist, and for a spelling that has two."""

    def __init__(self, text: str, catalog: Catalog) -> None:
        file = msgspec.convert(tomllib.loads(text), _MappingFile, str_keys=True)
        self._rules = file.rules
        self._places: dict[tuple[str, str], str] = {}
        for rule in file.rules:
            _check_rule(rule, catalog)
        for provider, regions in file.regions.items():
            for region, spellings in regions.items():
                if region.isupper():
                    _reason(region)
                else:
                    catalog.region(region)
                for spelling in spellings:
                    if self._places.setdefault((provider, spelling), region) != region:
                        raise ValueError(f"{provider} {spelling!r} is in two regions")

    def quote(self, row: Row) -> Quote | Skipped:
        try:
            if not row.region:
                raise _Skip(SkipReason.REGION_MISSING)
            count, class_id = self._hardware(row)
            region = self._region(row)
        except _Skip as skip:
            return Skipped(row, skip.reason)
        try:
            on_demand_ticks = ticks_per_gpu(row.on_demand_usd, count)
            spot_ticks = ticks_per_gpu(row.spot_usd, count)
        except ValueError:
            return Skipped(row, SkipReason.PRICE_OUT_OF_RANGE)
        if on_demand_ticks is None and spot_ticks is None:
            return Skipped(row, SkipReason.NO_PRICE)
        return Quote(row.provider, class_id, region, on_demand_ticks, spot_ticks, row)

    def _hardware(self, row: Row) -> tuple[int, str]:
        """The GPU count and the class."""
        rule = next((rule for rule in self._rules if rule.fits(row)), None)
        if rule is None:
            raise _Skip(SkipReason.HARDWARE_UNKNOWN)
        if rule.reason:
            raise _Skip(_reason(rule.reason))
        count = Fraction(row.gpus)
        if count.denominator != 1:
            raise _Skip(SkipReason.FRACTIONAL_COUNT)
        class_id = rule.node.get(int(count), rule.single)
        if not class_id:
            raise _Skip(SkipReason.COUNT_NOT_SOLD)
        return int(count), class_id

    def _region(self, row: Row) -> str:
        region = self._places.get((row.provider, row.region), SkipReason.REGION_UNKNOWN.name)
        if region.isupper():
            raise _Skip(_reason(region))
        return region


def ticks_per_gpu(instance_usd: str, gpus: int) -> int | None:
    """A whole instance's dollars per hour as ticks per GPU-hour; None where there is no price.

    Empty and zero both mean that none is offered: nobody gives a GPU away. Exact, then to the
    nearest tick, halves up, which is to the seller's gain by at most half a tick. (Not always up:
    sources print 0.36979999999999996 for 0.3698, and just above as often as just below.)
    Raises ValueError for what no order may carry.
    """
    if not instance_usd:
        return None
    exact = Fraction(instance_usd) * TICKS_PER_DOLLAR / gpus
    if not exact:
        return None
    ticks = (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)
    if not 0 < ticks <= PRICE_TICKS_MAX:
        raise ValueError(f"{instance_usd} over {gpus} GPUs is no price of ours")
    return ticks


def parse_rows(text: str) -> list[Row]:
    """The rows of a prices.csv. Raises ValueError if its columns are others."""
    header, *lines = csv.reader(text.splitlines())
    expected = (
        "provider,instance_type,accelerator,accelerator_count,region,"
        "on_demand_usd_per_hour,spot_usd_per_hour"
    )
    if header != expected.split(",") or any(len(line) != len(header) for line in lines):
        raise ValueError("prices.csv does not have the columns it should")
    return [Row(number, *line) for number, line in enumerate(lines, start=1)]


@cache
def load_mapping() -> Mapping:
    return Mapping(_data("mapping.toml"), load_catalog())


def load_rows() -> list[Row]:
    """The rows this package carries."""
    return parse_rows(_data("prices.csv"))


def load_sources() -> dict[str, Source]:
    """Provider -> where its rows come from."""
    _, *lines = csv.reader(_data("sources.csv").splitlines())
    return {line[0]: Source(*line) for line in lines}


def load_quotes() -> tuple[list[Quote], list[Skipped]]:
    """Every row of the carried file, in its order: what could be mapped, and what could not."""
    quotes: list[Quote] = []
    skipped: list[Skipped] = []
    mapping = load_mapping()
    for row in load_rows():
        match mapping.quote(row):
            case Quote() as quote:
                quotes.append(quote)
            case Skipped() as skip:
                skipped.append(skip)
    return quotes, skipped


def _data(name: str) -> str:
    return resources.files("gateway.demo").joinpath(name).read_text("utf-8")


def _reason(name: str) -> SkipReason:
    try:
        return SkipReason[name]
    except KeyError:
        raise ValueError(f"no reason is named {name!r}") from None


def _check_rule(rule: Rule, catalog: Catalog) -> None:
    re.compile(rule.instance)
    if bool(rule.reason) == bool(rule.node or rule.single):
        raise ValueError(f"a rule gives a reason or a class: {rule}")
    if rule.reason:
        _reason(rule.reason)
    for gpus, class_id in rule.node.items():
        if catalog.hardware(class_id).node_gpus != gpus:
            raise ValueError(f"{class_id} is not a node of {gpus} GPUs")
    if rule.single and catalog.hardware(rule.single).node_gpus != 1:
        raise ValueError(f"{rule.single} is not a single GPU")
