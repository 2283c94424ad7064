"""Many markets by one name: a symbol with `*` for whole fields.

`class|region|grade|window`, as in "nv.h100-sxm-80g.x8.ib|*|*|SPOT" or "*|us-e|*|H|*"; a `*` for the
window covers every kind of one. Invariant: which wildcards cover a market follows from its symbol
alone, and they are at most 24, so nobody ever searches through the markets or the subscriptions.
The public feed reads wildcards with it, the hub finds who asked for a market.
"""

from functools import lru_cache
from itertools import product
from typing import Final

from engine.catalog import Catalog

ANY: Final = "*"
ALL: Final = "*|*|*|*"
MARKETS_CACHED: Final = 4_096


def is_wildcard(name: str) -> bool:
    return ANY in name


def parse(name: str, catalog: Catalog) -> str:
    """A wildcard as it is kept: "" for all markets. Raises CatalogError where a field names
    nothing there is: it would stay silent for ever."""
    series, window = name.split("|")[:3], name.split("|")[3:]
    some = catalog.classes[0].id, catalog.regions[0].name, catalog.grades[0].name
    fields = [one if field == ANY else field for field, one in zip(series, some, strict=False)]
    if window == [ANY]:
        window = ["SPOT"]
    elif len(window) == 2 and window[1] == ANY and window[0] not in {ANY, "SPOT"}:
        catalog.window(window[0])
        window = ["SPOT"]
    catalog.parse("|".join([*fields, *window]))
    return "" if name == ALL else name


@lru_cache(MARKETS_CACHED)
def covering(symbol: str) -> tuple[str, ...]:
    """Every wildcard that covers this market, but for all markets'."""
    *fields, window = symbol.split("|", 3)
    windows = [window, ANY]
    if "|" in window:
        windows.append(window.split("|")[0] + "|" + ANY)
    names = ("|".join(x) for x in product(*((field, ANY) for field in fields), windows))
    return tuple(name for name in names if name not in {symbol, ALL})
