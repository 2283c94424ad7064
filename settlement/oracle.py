"""The engine's index on chain: one feed per product, read back as its consumers read it.

Owns which index values become price points. Invariant: a point is published only for a window
later than the feed's last one, and what the feed then answers through AggregatorV3Interface is
exactly what was computed. Only settlement's service calls it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from settlement.chain import PRICE_E8_PER_TICK, Chain, PricePoint
from settlement.errors import NoData, RoundOutOfOrder, SettlementHalted

POINTS_PER_TURN_MAX: Final = 100  # in one transaction: a first point of a product costs most


class Quote(NamedTuple):
    """One value of the index, as it goes to a feed."""

    product: int  # catalog.pack_product
    description: str  # of its feed, such as the symbol
    value_ticks: int  # above zero
    window_end_ns: int


class Published(NamedTuple):
    """What a feed answers."""

    feed: bytes  # 20-byte address
    description: str
    answer_e8: int  # 1e-8 dollars per GPU-hour
    updated_at_s: int


class Oracle:
    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._feeds: dict[int, bytes] = {}
        self._descriptions: dict[int, str] = {}
        self._updated_at_s: dict[int, int] = {}

    async def publish(self, quotes: Sequence[Quote]) -> int:
        """Publish those that are newer than their feeds; returns how many points went out.

        Of several for one product the latest window counts. Raises ChainError; a later call
        tries again.
        """
        latest: dict[int, Quote] = {}
        for quote in sorted(quotes, key=lambda q: q.window_end_ns):
            latest[quote.product] = quote
        await self._know(latest)
        fresh = [q for q in latest.values() if _seconds(q) > self._updated_at_s[q.product]]
        points = [
            PricePoint(q.product, q.value_ticks * PRICE_E8_PER_TICK, _seconds(q))
            for q in sorted(fresh)[:POINTS_PER_TURN_MAX]
        ]
        if not points:
            return 0
        try:
            await self._chain.publish(points)
        except RoundOutOfOrder:
            # An earlier process was cut off between sending and hearing of it: look again.
            for point in points:
                self._feeds.pop(point.product, None)
            return 0
        for point in points:
            await self._check(point)
        return len(points)

    async def _know(self, latest: dict[int, Quote]) -> None:
        """Deploy missing feeds and see how far each of them is."""
        unknown = {p: q.description for p, q in latest.items() if p not in self._feeds}
        if not unknown:
            return
        for product, feed in (await self._chain.ensure_feeds(unknown)).items():
            if product not in unknown:
                continue
            try:
                self._updated_at_s[product] = (await self._chain.read_feed(feed)).updated_at_s
            except NoData:
                self._updated_at_s[product] = 0
            self._feeds[product] = feed
            self._descriptions[product] = unknown[product]

    async def _check(self, point: PricePoint) -> None:
        """Read a point back the way a consumer does."""
        answer = await self._chain.read_feed(self._feeds[point.product])
        if (answer.answer, answer.updated_at_s) != (point.price_e8, point.window_end_s):
            raise SettlementHalted(
                f"the feed of product {point.product} answers {answer.answer} as of"
                f" {answer.updated_at_s}, published were {point.price_e8} as of"
                f" {point.window_end_s}"
            )
        self._updated_at_s[point.product] = point.window_end_s

    async def published(self) -> list[Published]:
        """The latest answer of every feed this process has published to."""
        found: list[Published] = []
        for product, feed in sorted(self._feeds.items()):
            if self._updated_at_s[product]:
                answer = await self._chain.read_feed(feed)
                found.append(
                    Published(feed, self._descriptions[product], answer.answer, answer.updated_at_s)
                )
        return found


def _seconds(quote: Quote) -> int:
    return quote.window_end_ns // 1_000_000_000  # a window ends on a whole second
