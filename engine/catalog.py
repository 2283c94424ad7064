"""What can be traded, read from catalog.toml: classes, regions, grades, windows and their names.

Invariant: a product (one u64), its symbol and its ticker name each other one to one, for good;
numbers and codes are never reused, and what a class promises never changes (changed hardware is a
new class, which is one more table in the file). Anybody may import this module.

A product is `class << 48 | region << 40 | grade << 32 | window kind << 24 | start`, where start is
the window's first hour, counted from 1970-01-01T00 UTC (0 for SPOT). No valid product is 0.
"""

import calendar
import re
import tomllib
from collections.abc import Hashable, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Final, NamedTuple, TypeVar

import msgspec

from engine.records import PRICE_TICKS_MAX, QTY_LOTS_MAX
from engine.rejects import CatalogError

CLASSES_MAX: Final = (1 << 16) - 1
REGIONS_MAX: Final = (1 << 8) - 1
GRADES_MAX: Final = (1 << 8) - 1
START_HOURS_MAX: Final = (1 << 24) - 1  # the year 3883
CATALOG_VERSION: Final = 1
LOTS_PER_GPU_HOUR: Final = 100
HOUR_S: Final = 3_600
HOUR_NS: Final = HOUR_S * 1_000_000_000

CLASS_ID: Final = re.compile(
    r"[a-z]{2}\.[a-z0-9]+(-[a-z0-9]+)*-(?P<memory>\d+)g\.x(?P<gpus>\d+)"
    r"(\.(?P<fabric>ib|roce|nvl72))?"
)
_CODE: Final = re.compile(r"[A-Z0-9]+")
_TICKER: Final = re.compile(r"(?P<market>[A-Z0-9]+[A-Z])(?:(?P<kind>[HDWM])(?P<start>\d+))?")

# The window kinds the code knows how to count; the file gives their numbers.
_KINDS: Final = ("SPOT", "H", "D", "W", "M")
_SYMBOL_FORMS: Final = {"H": "%Y-%m-%dT%H", "D": "%Y-%m-%d", "W": "%G-W%V", "M": "%Y-%m"}
_TICKER_FORMS: Final = {"H": "%Y%m%d%H", "D": "%Y%m%d", "W": "%G%V", "M": "%Y%m"}
# strptime needs a weekday to read an ISO week
_DAY_OF_WEEK: Final = {"W": ("1", "%u")}


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Floors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the published peak a seller's GPU must reach, per cent."""

    compute_percent: int
    bandwidth_percent: int


class Grade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A is the best. `bond_percent` of the reference price is locked behind every sold lot."""

    number: int
    name: str
    meaning: str
    slo_permille: int
    bond_percent: int


class WindowKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    name: str
    meaning: str


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`covers`: ISO 3166 countries, and states of the US; no place lies in two regions."""

    number: int
    name: str
    code: str
    covers: tuple[str, ...]


class Basket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name for several regions, for orders only: nothing is listed in a basket."""

    name: str
    regions: tuple[str, ...]


class HardwareClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of node. Units as in catalog.toml; a figure of 0 is not promised.

    `aliases` are `market:spelling` pairs; the same spelling may stand in several classes.
    """

    number: int
    id: str
    code: str
    title: str
    memory_gib: int
    node_gpus: int
    interconnect: str
    reference_price_ticks: int
    nvlink_gbs: int = 0
    fabric_gbps: int = 0
    bf16_tflops: int = 0
    memory_gbs: int = 0
    aliases: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    floors: Floors
    grades: tuple[Grade, ...]
    window_kinds: tuple[WindowKind, ...]
    regions: tuple[Region, ...]
    baskets: tuple[Basket, ...]
    classes: tuple[HardwareClass, ...]


class Product(NamedTuple):
    """The numbers inside a product key. `start_hours`: hours since 1970-01-01T00 UTC."""

    class_number: int
    region: int
    grade: int
    window_kind: int
    start_hours: int


class ProductParts(NamedTuple):
    """A product key, looked up."""

    hardware: HardwareClass
    region: Region
    grade: Grade
    window: WindowKind
    start_hours: int


def pack_product(
    class_number: int, region: int, grade: int, window_kind: int, start_hours: int = 0
) -> int:
    """The u64 key of a product. Says nothing of whether the catalog has these numbers.

    Raises CatalogError when a number does not fit its bits.
    """
    for what, value, low, high in (
        ("class", class_number, 1, CLASSES_MAX),
        ("region", region, 1, REGIONS_MAX),
        ("grade", grade, 1, GRADES_MAX),
        ("window kind", window_kind, 1, 255),
        ("start hour", start_hours, 0, START_HOURS_MAX),
    ):
        if not low <= value <= high:
            raise CatalogError(f"a {what} number is from {low} to {high}, not {value}")
    return class_number << 48 | region << 40 | grade << 32 | window_kind << 24 | start_hours


def unpack_product(product: int) -> Product:
    """The inverse of `pack_product`. Raises CatalogError for what it cannot have made."""
    numbers = Product(
        product >> 48,
        product >> 40 & 0xFF,
        product >> 32 & 0xFF,
        product >> 24 & 0xFF,
        product & START_HOURS_MAX,
    )
    if product < 0 or pack_product(*numbers) != product:
        raise CatalogError(f"{product} is not a product")
    return numbers


def hourly_windows(now_ns: int, count: int = 48) -> list[int]:
    """The start hours (as in `pack_product`) of the next `count` UTC hours after `now_ns`.

    The hour under way is not among them, nor is one that starts at this very instant.
    """
    first = now_ns // HOUR_NS + 1
    return list(range(first, first + count))


def window_hours(kind: str, start_hours: int) -> int:
    """How many hours a window lasts; 0 for SPOT, which has no end.

    Raises CatalogError for a start that no window of this kind has: a day starts at midnight, a
    week on a Monday, a month on its first day.
    """
    if kind == "SPOT":
        if start_hours:
            raise CatalogError("a SPOT window has no start")
        return 0
    if not 0 < start_hours <= START_HOURS_MAX:
        raise CatalogError(f"a window cannot start at hour {start_hours}")
    start = _time_of(start_hours)
    if kind == "H":
        return 1
    if start.hour:
        raise CatalogError(f"a window {kind} starts at midnight UTC, not at {start:%H}:00")
    if kind == "D":
        return 24
    if kind == "W":
        if start.weekday():
            raise CatalogError(f"a week starts on a Monday, not on {start:%Y-%m-%d}")
        return 7 * 24
    if start.day != 1:
        raise CatalogError(f"a month starts on its first day, not on {start:%Y-%m-%d}")
    return calendar.monthrange(start.year, start.month)[1] * 24


def _time_of(start_hours: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=start_hours)


def _format_start(forms: dict[str, str], kind: str, start_hours: int) -> str:
    return _time_of(start_hours).strftime(forms[kind])


def _parse_start(forms: dict[str, str], kind: str, text: str) -> int:
    day, day_form = _DAY_OF_WEEK.get(kind, ("", ""))
    try:
        start = datetime.strptime(text + day, forms[kind] + day_form).replace(tzinfo=UTC)
        hours = (start.date() - date(1970, 1, 1)).days * 24 + start.hour
        window_hours(kind, hours)
    except (ValueError, KeyError, CatalogError):
        raise CatalogError(f"{text!r} is not the start of a window {kind}") from None
    # strptime is lenient about zeros; one window has one spelling
    if _format_start(forms, kind, hours) != text:
        raise CatalogError(f"{text!r} is not the start of a window {kind}")
    return hours


class Catalog:
    """The validated file, with the lookups. Immutable; get it from `load_catalog()`."""

    def __init__(self, file: _File) -> None:
        _check_file(file)
        self.floors = file.floors
        self.grades = file.grades
        self.window_kinds = file.window_kinds
        self.regions = file.regions
        self.baskets = file.baskets
        self.classes = file.classes
        self._class_by_number = {c.number: c for c in file.classes}
        self._class_by_id = {c.id: c for c in file.classes}
        self._region_by_number = {r.number: r for r in file.regions}
        self._region_by_name = {r.name: r for r in file.regions}
        self._grade_by_number = {g.number: g for g in file.grades}
        self._grade_by_name = {g.name: g for g in file.grades}
        self._window_by_number = {w.number: w for w in file.window_kinds}
        self._window_by_name = {w.name: w for w in file.window_kinds}
        self._basket_by_name = {b.name: b for b in file.baskets}
        self._market_by_ticker = {
            c.code + r.code + g.name: (c.number, r.number, g.number)
            for c in file.classes
            for r in file.regions
            for g in file.grades
        }
        expected = len(file.classes) * len(file.regions) * len(file.grades)
        if len(self._market_by_ticker) != expected:
            raise CatalogError("two markets would have one ticker")

    def hardware(self, class_id: str) -> HardwareClass:
        """Raises CatalogError if no class has this id; so do the three below."""
        return _found(self._class_by_id, class_id, "hardware class")

    def region(self, name: str) -> Region:
        return _found(self._region_by_name, name, "region")

    def grade(self, name: str) -> Grade:
        return _found(self._grade_by_name, name, "grade")

    def window(self, name: str) -> WindowKind:
        return _found(self._window_by_name, name, "window kind")

    def regions_of(self, name: str) -> tuple[str, ...]:
        """The regions an order's place stands for: itself, or the members of a basket."""
        if name in self._region_by_name:
            return (name,)
        return _found(self._basket_by_name, name, "region or basket").regions

    def product(
        self, class_id: str, region: str, grade: str, window: str = "SPOT", start_hours: int = 0
    ) -> int:
        """The product key of these names. Raises CatalogError for an unknown name or start."""
        window_hours(window, start_hours)
        return pack_product(
            self.hardware(class_id).number,
            self.region(region).number,
            self.grade(grade).number,
            self.window(window).number,
            start_hours,
        )

    def parts(self, product: int) -> ProductParts:
        """Raises CatalogError if the key is not of a product of this catalog."""
        numbers = unpack_product(product)
        parts = ProductParts(
            _found(self._class_by_number, numbers.class_number, "hardware class"),
            _found(self._region_by_number, numbers.region, "region"),
            _found(self._grade_by_number, numbers.grade, "grade"),
            _found(self._window_by_number, numbers.window_kind, "window kind"),
            numbers.start_hours,
        )
        window_hours(parts.window.name, parts.start_hours)
        return parts

    def window_s(self, product: int) -> tuple[int, int]:
        """When its delivery begins and ends, Unix seconds; zeros for SPOT. Raises CatalogError."""
        parts = self.parts(product)
        starts_s = parts.start_hours * HOUR_S
        return starts_s, starts_s + window_hours(parts.window.name, parts.start_hours) * HOUR_S

    def series(self, product: int) -> str:
        """`nv.h100-sxm-80g.x8.ib|us-e|B`: the symbol without the window."""
        parts = self.parts(product)
        return f"{parts.hardware.id}|{parts.region.name}|{parts.grade.name}"

    def symbol(self, product: int) -> str:
        """`nv.h100-sxm-80g.x8.ib|us-e|B|SPOT`, `...|H|2026-12-01T14`, `...|W|2026-W49`."""
        parts = self.parts(product)
        window = parts.window.name
        if window != "SPOT":
            window += "|" + _format_start(_SYMBOL_FORMS, window, parts.start_hours)
        return f"{self.series(product)}|{window}"

    def ticker(self, product: int) -> str:
        """`H100SXM8IBUSEB` for SPOT, `H100SXM8IBUSEBH2026120114` for a window; alphanumeric.

        A region code ends no other one and a grade is one letter, so reading from the right end
        finds the same parts again: tickers are unique.
        """
        parts = self.parts(product)
        ticker = parts.hardware.code + parts.region.code + parts.grade.name
        window = parts.window.name
        if window != "SPOT":
            ticker += window + _format_start(_TICKER_FORMS, window, parts.start_hours)
        return ticker

    def parse(self, name: str) -> int:
        """The product of a symbol or a ticker, exactly as `symbol` and `ticker` spell them.

        Raises CatalogError.
        """
        return self._parse_symbol(name) if "|" in name else self._parse_ticker(name)

    def alternatives(self, name: str, *, or_better: bool = False) -> list[int]:
        """The products that deliver what a symbol asks for, whose region may be one at large
        (`us.any`): region by region and, if better grades will do, from the one named upwards.

        A better grade delivers into a worse one, never the other way. Raises CatalogError.
        """
        numbers, regions = self._parse_at_large(name)
        class_number, _, worst, *window = numbers
        return [
            pack_product(class_number, region, grade, *window)
            for region in regions
            for grade in range(worst, 0 if or_better else worst - 1, -1)
        ]

    def _parse_at_large(self, name: str) -> tuple[Product, list[int]]:
        """What a name says, read once, and which regions it stands for."""
        if "|" not in name:
            numbers = unpack_product(self.parse(name))
            return numbers, [numbers.region]
        class_id, place, *rest = name.split("|")
        regions = self.regions_of(place)
        numbers = unpack_product(self.parse("|".join((class_id, regions[0], *rest))))
        return numbers, [self.region(region).number for region in regions]

    def hours_from(self, product: int, count: int) -> list[int]:
        """The products of so many consecutive hours, the first given. Raises CatalogError if that
        is no hour."""
        parts = self.parts(product)
        if parts.window.name != "H":
            raise CatalogError(f"{self.symbol(product)} is not one hour")
        hours = [product + i for i in range(count)]
        window_hours("H", unpack_product(hours[-1]).start_hours)
        return hours

    def _parse_symbol(self, symbol: str) -> int:
        match symbol.split("|"):
            case [class_id, region, grade, "SPOT"]:
                return self.product(class_id, region, grade)
            case [class_id, region, grade, kind, start] if kind in _SYMBOL_FORMS:
                start_hours = _parse_start(_SYMBOL_FORMS, kind, start)
                return self.product(class_id, region, grade, kind, start_hours)
            case _:
                raise CatalogError(f"{symbol!r} is not a symbol")

    def _parse_ticker(self, ticker: str) -> int:
        found = _TICKER.fullmatch(ticker)
        if found is None:
            raise CatalogError(f"{ticker!r} is not a ticker")
        numbers = _found(self._market_by_ticker, found["market"], "market")
        kind, start_hours = "SPOT", 0
        if found["kind"]:
            kind = found["kind"]
            start_hours = _parse_start(_TICKER_FORMS, kind, found["start"])
        return pack_product(*numbers, self.window(kind).number, start_hours)

    def lot_multiple(self, product: int) -> int:
        """An order's quantity in this market is a multiple of so many lots.

        A window is sold whole and by whole nodes: 100 lots * hours * GPUs per node. SPOT is paid
        as metered, so any time will do but a part of a node will not: one lot (36 GPU-seconds)
        for each GPU of the node, which is the whole node for 36 seconds.
        """
        parts = self.parts(product)
        hours = window_hours(parts.window.name, parts.start_hours)
        return (hours * LOTS_PER_GPU_HOUR or 1) * parts.hardware.node_gpus

    def bond_usdc6_per_lot(self, product: int) -> int:
        """The seller's bond behind one lot, µUSDC: the grade's per cent of the reference price.

        price_ticks is µUSDC per lot already. Rounded up, to the buyer's gain: a bond is never
        under its per cent; the other way a seller of many lots would save a part of each.
        """
        parts = self.parts(product)
        return -(-parts.hardware.reference_price_ticks * parts.grade.bond_percent // 100)


def parse_catalog(text: str) -> Catalog:
    """A catalog from the text of a TOML file. Raises CatalogError, saying what is wrong where."""
    try:
        return Catalog(msgspec.convert(tomllib.loads(text), _File))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CatalogError(f"the catalog cannot be read: {error}") from error


@cache
def load_catalog() -> Catalog:
    """The catalog this package carries, read once."""
    return parse_catalog(resources.files("engine").joinpath("catalog.toml").read_text("utf-8"))


def _found(table: dict[_Key, _Value], key: _Key, what: str) -> _Value:
    try:
        return table[key]
    except KeyError:
        raise CatalogError(f"no {what} {key!r}") from None


def _check_unique(what: str, values: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise CatalogError(f"two {what} {value!r}")
        seen.add(value)


def _check(true: bool, claim: str) -> None:
    if not true:
        raise CatalogError(claim)


def _check_file(file: _File) -> None:
    _check(file.version == CATALOG_VERSION, f"catalog version {file.version} is not known")
    for percent in (file.floors.compute_percent, file.floors.bandwidth_percent):
        _check(0 < percent <= 100, f"a floor of {percent} per cent")
    for what, rows, limit in (
        ("grades", file.grades, GRADES_MAX),
        ("window kinds", file.window_kinds, 255),
        ("regions", file.regions, REGIONS_MAX),
        ("classes", file.classes, CLASSES_MAX),
    ):
        _check_unique(f"{what} numbered", [row.number for row in rows])
        for row in rows:
            _check(1 <= row.number <= limit, f"{what}: the number {row.number}")
    _check_unique("grades named", [g.name for g in file.grades])
    for grade in file.grades:
        _check(len(grade.name) == 1 and "A" <= grade.name <= "Z", f"grade {grade.name!r}")
        _check(0 < grade.slo_permille < 1000, f"grade {grade.name}: service level")
        _check(0 < grade.bond_percent <= 100, f"grade {grade.name}: bond")
    names = sorted(w.name for w in file.window_kinds)
    _check(names == sorted(_KINDS), f"the window kinds are {', '.join(_KINDS)}")
    _check_regions(file)
    _check_unique("classes with the id", [c.id for c in file.classes])
    _check_unique("classes with the code", [c.code for c in file.classes])
    for hardware in file.classes:
        _check_class(hardware)


def _check_regions(file: _File) -> None:
    names = [r.name for r in file.regions]
    _check_unique("regions or baskets named", names + [b.name for b in file.baskets])
    _check_unique("regions cover", [place for r in file.regions for place in r.covers])
    for region in file.regions:
        _check(_CODE.fullmatch(region.code) is not None, f"region code {region.code!r}")
        for other in file.regions:
            clash = other is not region and other.code.endswith(region.code)
            _check(not clash, f"region code {other.code} ends with {region.code}")
    for basket in file.baskets:
        _check(bool(basket.regions), f"basket {basket.name} is empty")
        _check_unique(f"times in basket {basket.name}:", basket.regions)
        for name in basket.regions:
            _check(name in names, f"basket {basket.name}: no region {name!r}")


def _check_class(hardware: HardwareClass) -> None:
    at = f"class {hardware.id!r}: "
    form = CLASS_ID.fullmatch(hardware.id)
    if form is None:
        raise CatalogError(at + "the id is not vendor.model-memory.xN[.fabric]")
    _check(hardware.memory_gib == int(form["memory"]), at + "memory_gib is not what the id says")
    _check(hardware.node_gpus == int(form["gpus"]), at + "node_gpus is not what the id says")
    _check(1 <= hardware.node_gpus <= 1024, at + "node_gpus")
    _check((hardware.fabric_gbps > 0) == (form["fabric"] is not None), at + "fabric_gbps")
    _check(_CODE.fullmatch(hardware.code) is not None, at + f"code {hardware.code!r}")
    _check(0 < hardware.reference_price_ticks <= PRICE_TICKS_MAX, at + "reference_price_ticks")
    month_lots = hardware.node_gpus * LOTS_PER_GPU_HOUR * 31 * 24
    _check(month_lots <= QTY_LOTS_MAX, at + "a month of one node is more than one order may hold")
    for figure in (hardware.nvlink_gbs, hardware.bf16_tflops, hardware.memory_gbs):
        _check(figure >= 0, at + "a figure below zero")
    _check_unique(at + "aliases", hardware.aliases)
    for alias in hardware.aliases:
        market, _, spelling = alias.partition(":")
        _check(bool(market) and bool(spelling), at + f"alias {alias!r} is not market:spelling")
