"""The demonstration that goes on, watched in a real browser: everything real, in real time.

With COMPEX_PICTURES=DIR it trades for longer and leaves DIR/market.png, the picture of the README.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from gateway.demo.live import Opened, open_market
from gateway.mirror import MarketState
from tests.passable import passable_directory
from tests.web.browser import chromium, open_page

SEED = 7
CROWDS = 8  # times the demonstration's own pace
PICTURES = os.environ.get("COMPEX_PICTURES")
TRADES_WANTED = 24 if PICTURES else 4  # in the busiest market
WAIT_S = 120.0
PICTURE_BYTES_MAX = 200_000


def text(selector: str) -> str:
    return f"document.querySelector({selector!r}).textContent"


@asynccontextmanager
async def live_market() -> AsyncGenerator[Opened]:
    with passable_directory() as directory:
        opened = await open_market(
            directory / "demo", SEED, 0, _quietly, lambda _done, _total: None, rpc_port=0
        )
        crowd = [opened.crowd.bid_forever() for _ in range(CROWDS)]
        parts = (opened.node.run(), opened.crowd.offer_forever(), *crowd)
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            yield opened
            for task in tasks:
                assert not task.done(), task.result()
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await asyncio.gather(*tasks)
            await opened.stage.close()
            await opened.node.close()


@contextmanager
def _quietly(_what: str) -> Generator[None]:
    yield


def busiest(opened: Opened) -> MarketState:
    markets = opened.node.desk.feed.mirror.markets.values()
    return max(markets, key=lambda market: len(market.trades))


async def test_the_page_follows_the_demonstration(tmp_path: Path) -> None:
    chromium()  # skips at once where there is none
    async with live_market() as opened:
        node = opened.node
        async with asyncio.timeout(WAIT_S):
            while len(busiest(opened).trades) < TRADES_WANTED:  # noqa: ASYNC110 nobody tells
                await asyncio.sleep(0.1)
        market = busiest(opened)
        (tmp_path / "browser").mkdir()
        async with open_page(tmp_path / "browser", f"{node.url}/#{market.ticker}") as page:
            markets = len(node.engine.markets())
            await page.until(f"document.querySelectorAll('#markets tbody tr').length === {markets}")
            await page.until(f"{text('#connection')} === 'live'")
            await page.until(f"/^[0-9]/.test({text('#stat-last')})")
            index = "[...document.querySelectorAll('#markets .quality')]"
            await page.until(f"{index}.filter((q) => /[ABC]/.test(q.textContent)).length > 0", 30)
            before = len(market.trades)
            shown = "document.querySelectorAll('#trades tbody tr').length"
            await page.until(f"{shown} >= {min(before, 10)}")
            picture = await page.picture()
            assert page.problems == []
        if PICTURES:
            assert len(picture) <= PICTURE_BYTES_MAX
            (Path(PICTURES) / "market.png").write_bytes(picture)
        async with asyncio.timeout(WAIT_S):
            while (await node.settlement.summary()).fills_settled == 0:  # noqa: ASYNC110 the same
                await asyncio.sleep(0.1)
