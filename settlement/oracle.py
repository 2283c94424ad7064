"""The engine's index on chain: one feed per product, read back as its consumers read it.

Owns which index values become price points. Invariant: a point is published only for a window
later than the feed's last one, and what the feed then answers through AggregatorV3Interface is
exactly what was computed; a price that contract or node refuses holds up no money. Only
settlement's service calls it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from engine.index import IndexValue
from settlement.chain import PRICE_E8_PER_TICK, PRICES_PER_ROUND_MAX, Chain, PricePoint
from settlement.errors import (
    ChainUnavailable,
    ContractRejected,
    NoData,
    NotNow,
    RoundOutOfOrder,
    SettlementHalted,
    TransactionRefused,
    TransactionReverted,
)

RETRY_NS: Final = 60_000_000_000  # after a refusal: each try may cost gas

log = logging.getLogger("compex.settlement")


class Published(NamedTuple):
    """What a feed answers."""

    product: int  # of the SPOT market, catalog.pack_product
    feed: bytes  # 20-byte address
    description: str  # such as "nv.h100-sxm-80g.x8.ib|us-e|B / USD"
    answer_e8: int  # 1e-8 dollars per GPU-hour
    updated_at_s: int


class Oracle:
    """`clock` gives time_ns."""

    def __init__(self, chain: Chain, clock: Callable[[], int]) -> None:
        self._chain = chain
        self._clock = clock
        self._warning = ""
        self._refused_ns = 0
        self._feeds: dict[int, bytes] = {}
        self._descriptions: dict[int, str] = {}
        self._updated_at_s: dict[int, int] = {}

    @property
    def warning(self) -> str:
        """Why prices are not published though they could be, in words; it is tried again."""
        return self._warning

    async def publish(self, values: Sequence[IndexValue]) -> int:
        """Publish those that are newer than their feeds; returns how many points went out.

        What contract or node refuse a later call tries again, and `warning` says so. Raises
        ChainUnavailable, TransactionNotMined.
        """
        now_ns = self._clock()
        # Below zero: the time of day was set back since; nobody waits until it has come again.
        if self._warning and 0 <= now_ns - self._refused_ns < RETRY_NS:
            return 0
        before, self._warning = self._warning, ""
        try:
            return await self._publish(values)
        except NotNow:
            return 0
        except (ContractRejected, TransactionRefused, TransactionReverted) as error:
            self._refused_ns = now_ns
            is_nodes = isinstance(error, TransactionRefused)  # the publisher has no ether, say
            who = "the node refuses" if is_nodes else "the price feeds refuse"
            self._warning = f"{who} what is published: {error}"
            if self._warning != before:
                log.warning(self._warning)
            return 0

    async def _publish(self, values: Sequence[IndexValue]) -> int:
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
        if answer.updated_at_s < point.window_end_s:
            raise ChainUnavailable("the node asked for a price lags behind the one that has it")
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
