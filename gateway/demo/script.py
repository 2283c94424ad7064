"""What the demonstration's actors do: a pure function of a seed and of published prices.

Every provider in the price list is an operator that posts its capacity as a ladder of asks; seeded
buyers bid around the same prices. Invariant: nothing depends on what happens while it is played,
so a run that was cut off can play it again from the top: client ids make what was done before
harmless. `play` performs it; tests read it.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from engine.catalog import Catalog, load_catalog
from engine.records import cost_usdc6
from gateway.demo.prices import Quote

GRADE: Final = "C"  # what providers say of themselves
BUYERS: Final = 48
ORDERS_PER_BUYER: Final = 18
MARKETS_PER_BUYER: Final = 6
WINDOW_PAIRS: Final = 6  # the most quoted classes and regions also trade by the hour
WINDOWS_PER_PAIR: Final = 4
HOUR_NS: Final = 3_600_000_000_000
START_NS: Final = 1_796_083_200_000_000_000  # 2026-12-01T00:00:00Z
OPENING_NS: Final = 60_000_000_000  # asks are posted in the first minute
ROUNDS: Final = 12  # of five minutes each: the index's partitions of one hour
DOLLAR: Final = 1_000_000
MAKER_FEE_PPM: Final = 200  # two and five basis points, as a liquid venue's first tier
TAKER_FEE_PPM: Final = 500


class Actor(NamedTuple):
    """A wallet with a role; amounts are deposits in µUSDC."""

    name: str
    role: Literal["operator", "buyer"]
    key: bytes
    cash_usdc6: int
    bond_usdc6: int


class Step(NamedTuple):
    """One request of one actor. `client_id` counts the actor's orders from 1."""

    at_ns: int
    actor: int
    kind: Literal["capacity", "place", "amend"]  # to another price, what is left of the order
    market: str
    side: Literal["buy", "sell"] = "sell"
    price_ticks: int = 0
    qty_lots: int = 0
    tif: Literal["gtc", "ioc", "fok"] = "gtc"
    post_only: bool = False
    client_id: int = 0


class Script(NamedTuple):
    actors: list[Actor]
    markets: list[str]  # symbols, in listing order
    steps: list[Step]  # in order of time


class Ladder(NamedTuple):
    """One provider's asks in one market: (price_ticks, qty_lots) from the cheapest up."""

    provider: str
    market: str
    rungs: list[tuple[int, int]]


def actor_key(seed: int, name: str) -> bytes:
    """A wallet for the demonstration; anybody who knows the seed has it."""
    return hashlib.blake2b(f"compex demo {seed} {name}".encode(), digest_size=32).digest()


def write_script(seed: int, quotes: Sequence[Quote], start_ns: int = START_NS) -> Script:
    """All actors, all markets, all steps."""
    catalog = load_catalog()
    chance = random.Random(seed)
    ladders = _ladders(chance, catalog, quotes, start_ns)
    markets = list(dict.fromkeys(ladder.market for ladder in ladders))
    operators, asks = _operators(chance, seed, catalog, ladders, start_ns)
    buyers, bids = _buyers(chance, seed, catalog, ladders, start_ns, len(operators))
    steps = sorted(asks + bids, key=lambda step: (step.at_ns, step.actor, step.client_id))
    return Script(operators + buyers, markets, steps)


def _ladders(
    chance: random.Random, catalog: Catalog, quotes: Sequence[Quote], start_ns: int
) -> list[Ladder]:
    ladders: list[Ladder] = []
    by_pair: dict[tuple[str, str], list[Quote]] = defaultdict(list)
    for quote in quotes:
        by_pair[quote.class_id, quote.region].append(quote)
        symbol = f"{quote.class_id}|{quote.region}|{GRADE}|SPOT"
        lots = _capacity_lots(chance, catalog, symbol)
        ladders.append(Ladder(quote.provider, symbol, _rungs(quote, lots)))
    busiest = sorted(by_pair, key=lambda pair: (-len(by_pair[pair]), pair))[:WINDOW_PAIRS]
    first_hour = start_ns // HOUR_NS + 2
    for class_id, region in busiest:
        for hour in range(first_hour, first_hour + WINDOWS_PER_PAIR):
            product = catalog.product(class_id, region, GRADE, "H", hour)
            for quote in by_pair[class_id, region]:
                if quote.on_demand_ticks is None:
                    continue
                symbol = catalog.symbol(product)
                lots = catalog.lot_multiple(product) * chance.randrange(2, 9)
                ladders.append(Ladder(quote.provider, symbol, [(quote.on_demand_ticks, lots)]))
    return ladders


def _capacity_lots(chance: random.Random, catalog: Catalog, symbol: str) -> int:
    """Lots per rung: a few nodes for a working day, whole nodes of course."""
    gpus = catalog.parts(catalog.parse(symbol)).hardware.node_gpus
    return 100 * gpus * chance.randrange(4, 25)


def _rungs(quote: Quote, lots: int) -> list[tuple[int, int]]:
    """From the spot price up to the on-demand price, or a little above the only one there is."""
    low = quote.spot_ticks or quote.on_demand_ticks
    high = quote.on_demand_ticks or quote.spot_ticks
    assert low is not None
    assert high is not None
    low, high = min(low, high), max(low, high)
    if high == low:
        return [(low, lots), (low * 102 // 100 + 1, lots), (low * 105 // 100 + 2, lots)]
    return [(low, lots), ((low + high) // 2, lots), (high, lots)]


def _operators(
    chance: random.Random,
    seed: int,
    catalog: Catalog,
    ladders: list[Ladder],
    start_ns: int,
) -> tuple[list[Actor], list[Step]]:
    names = sorted({ladder.provider for ladder in ladders})
    capacity: dict[tuple[str, str], int] = defaultdict(int)
    for ladder in ladders:
        capacity[ladder.provider, ladder.market] += sum(lots for _, lots in ladder.rungs)
    steps: list[Step] = []
    actors: list[Actor] = []
    for number, name in enumerate(names):
        mine = [ladder for ladder in ladders if ladder.provider == name]
        markets = list(dict.fromkeys(ladder.market for ladder in mine))
        bond = sum(
            capacity[name, market] * catalog.bond_usdc6_per_lot(catalog.parse(market))
            for market in markets
        )
        whole_dollars = (bond // DOLLAR + 1) * DOLLAR
        actors.append(Actor(name, "operator", actor_key(seed, name), 0, whole_dollars))
        steps += [
            Step(start_ns, number, "capacity", market, qty_lots=capacity[name, market])
            for market in markets
        ]
        steps += _post(chance, number, mine, start_ns)
    return actors, steps


def _post(chance: random.Random, number: int, ladders: list[Ladder], start_ns: int) -> list[Step]:
    """Every rung in the first minute; later some top rungs are offered lower."""
    steps: list[Step] = []
    client_id = 0
    for ladder in ladders:
        for price, lots in ladder.rungs:
            client_id += 1
            at_ns = start_ns + 1 + client_id * 1_000_000
            steps.append(
                Step(at_ns, number, "place", ladder.market, "sell", price, lots,
                     client_id=client_id)
            )  # fmt: skip
        if len(ladder.rungs) > 1 and chance.randrange(5) == 0:
            at_ns = start_ns + OPENING_NS + chance.randrange(HOUR_NS // 2)
            lower = max(1, ladder.rungs[-1][0] * 98 // 100)
            steps.append(
                Step(at_ns, number, "amend", ladder.market, "sell", lower, client_id=client_id)
            )
    return steps


def _buyers(
    chance: random.Random,
    seed: int,
    catalog: Catalog,
    ladders: list[Ladder],
    start_ns: int,
    first_actor: int,
) -> tuple[list[Actor], list[Step]]:
    cheapest: dict[str, int] = {}
    for ladder in ladders:
        price = ladder.rungs[0][0]
        cheapest[ladder.market] = min(price, cheapest.get(ladder.market, price))
    weighted = [ladder.market for ladder in ladders]  # a market once for each provider in it
    actors: list[Actor] = []
    steps: list[Step] = []
    for number in range(BUYERS):
        name = f"buyer-{number + 1:02d}"
        markets = [chance.choice(weighted) for _ in range(MARKETS_PER_BUYER)]
        spent = 0
        for client_id in range(1, ORDERS_PER_BUYER + 1):
            market = chance.choice(markets)
            step = _bid(
                chance, catalog, first_actor + number, market, cheapest[market], client_id, start_ns
            )
            spent += cost_usdc6(step.price_ticks, step.qty_lots, TAKER_FEE_PPM)
            steps.append(step)
        cash = (spent // DOLLAR + 100) * DOLLAR
        actors.append(Actor(name, "buyer", actor_key(seed, name), cash, 0))
    return actors, steps


def _bid(
    chance: random.Random,
    catalog: Catalog,
    actor: int,
    market: str,
    cheapest_ticks: int,
    client_id: int,
    start_ns: int,
) -> Step:
    """Four of five bids reach the cheapest published price; the others wait below it."""
    span_ns = HOUR_NS - OPENING_NS - 1_000_000_000
    at_ns = start_ns + OPENING_NS + chance.randrange(span_ns)
    lots = catalog.lot_multiple(catalog.parse(market))
    qty = lots * chance.randrange(1, 4)
    if lots < 100:  # by the second: ask for some hours
        qty = lots * 100 * chance.randrange(1, 9)
    kind = chance.randrange(20)
    if kind < 4:
        price = max(1, cheapest_ticks * (85 + chance.randrange(12)) // 100)
        return Step(at_ns, actor, "place", market, "buy", price, qty, "gtc", True, client_id)
    price = cheapest_ticks * (100 + chance.randrange(9)) // 100 + 1
    tif = "fok" if kind == 4 else "ioc" if kind < 8 else "gtc"
    return Step(at_ns, actor, "place", market, "buy", price, qty, tif, client_id=client_id)
