"""The engine's index on chain: one feed per product, read back as its consumers read it.

Owns which index values become price points. Invariant: a point is published only for a window
later than the feed's last one, and what the feed then answers through AggregatorV3Interface is
exactly what was computed. Only settlement's service calls it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.index import IndexValue
from settlement.chain import PRICE_E8_PER_TICK, PRICES_PER_ROUND_MAX, Chain, PricePoint
from settlement.errors import NoData, RoundOutOfOrder, SettlementHalted


class Published(NamedTuple):
    """What a feed answers."""

    product: int  # of the SPOT market, catalog.pack_product
    feed: bytes  # 20-byte address
    description: str  # such as "nv.h100-sxm-80g.x8.ib|us-e|B / USD"
    answer_e8: int  # 1e-8 dollars per GPU-hour
    updated_at_s: int


class Oracle:
    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._feeds: dict[int, bytes] = {}
        self._descriptions: dict[int, str] = {}
        self._updated_at_s: dict[int, int] = {}

    async def publish(self, values: Sequence[IndexValue]) -> int:
        """Publish those that are newer than their feeds; returns how many points went out.

        Raises ChainError; a later call tries again.
        """
        await self._know(values)
        points = [
            PricePoint(v.product, v.value_ticks * PRICE_E8_PER_TICK, _seconds(v.window_end_ns))
            for v in values
            if _seconds(v.window_end_ns) > self._updated_at_s[v.product]
        ][:PRICES_PER_ROUND_MAX]
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

    async def _know(self, values: Sequence[IndexValue]) -> None:
        """Deploy missing feeds and see how far each of them is."""
        unknown = {v.product: f"{v.series} / USD" for v in values if v.product not in self._feeds}
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
                said = (answer.answer, answer.updated_at_s)
                found.append(Published(product, feed, self._descriptions[product], *said))
        return found


def _seconds(time_ns: int) -> int:
    return time_ns // 1_000_000_000  # down: a window is never said to be newer than it is
