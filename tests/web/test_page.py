"""The market page in a real browser, on the real gateway and engine.

Pictures go to the directory COMPEX_PICTURES, or are thrown away with the test's directory.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from compex_client import messages as m
from compex_client.units import price_text

from engine.catalog import load_catalog
from gateway.server import GatewayServer
from tests.exchange import Conversation, Exchange, running_exchange, running_server
from tests.web.browser import Page, open_page

CATALOG = load_catalog()
SYMBOL = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
TICKER = CATALOG.ticker(CATALOG.parse(SYMBOL))
SELLER, BUYER = 1, 2
OTHER_MARKETS = 219


class Traders:
    """Two accounts who trade by frames, as sessions do."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.conversations: dict[int, Conversation] = {}
        self.requests = 10

    async def prepare(self) -> None:
        for account in (SELLER, BUYER):
            owner = await self.exchange.open_account(account, cash_usdc6=10**12, bond_usdc6=10**12)
            self.conversations[account] = self.exchange.converse(owner)

    async def order(self, account: int, side: m.Side, price: str, qty: str, **more: Any) -> None:
        self.requests += 1
        request = m.New(self.requests, more.pop("market", TICKER), side, price, qty, **more)
        self.conversations[account].say(request)
        await self.exchange.port.settled()
        clock = self.exchange.clock
        clock.advance_to(clock.now_ns() + 250_000_000)


async def fill_market(exchange: Exchange) -> Traders:
    """220 markets; one with a book of 20 levels a side and trades, some others with a few."""
    traders = Traders(exchange)
    await traders.prepare()
    instrument = await exchange.list_market(SYMBOL)
    await exchange.declare(SELLER, instrument, 10**8)
    names = [f"{c.id}|{r.name}|C|SPOT" for r in CATALOG.regions for c in CATALOG.classes]
    for i, symbol in enumerate(names[:OTHER_MARKETS]):
        other = await exchange.list_market(symbol)
        if i % 3 == 0:
            await exchange.declare(SELLER, other, 10**7)
            hardware = CATALOG.hardware(symbol.split("|")[0])
            ticks = hardware.reference_price_ticks
            ticker = CATALOG.ticker(CATALOG.parse(symbol))
            price = f"{ticks / 10_000:.4f}"
            await traders.order(SELLER, "sell", price, f"{40 + 16 * (i % 50)}", market=ticker)
            await traders.order(BUYER, "buy", price, f"{8 + i % 7}", market=ticker)
            low = f"{(ticks - 40 - i) / 10_000:.4f}"
            await traders.order(BUYER, "buy", low, f"{16 + i}", market=ticker)
    for i in range(20):
        await traders.order(SELLER, "sell", f"{2.42 + 0.0125 * i:.4f}", str(48 + 37 * i % 200))
        await traders.order(BUYER, "buy", f"{2.405 - 0.0100 * i:.4f}", str(32 + 53 * i % 180))
    for i in range(12):
        side: m.Side = "buy" if i % 3 else "sell"
        price = "2.5000" if side == "buy" else "2.3000"
        await traders.order(BUYER if side == "buy" else SELLER, side, price, str(8 + i), tif="ioc")
    return traders


@asynccontextmanager
async def market_page(
    tmp_path: Path,
) -> AsyncGenerator[tuple[Page, Traders, Exchange, GatewayServer]]:
    profile = tmp_path / "browser"
    profile.mkdir()
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (server, url):
        traders = await fill_market(exchange)
        address = url.replace("ws://", "http://").removesuffix("ws") + "#" + TICKER
        async with open_page(profile, address) as page:
            yield page, traders, exchange, server


def pictures(tmp_path: Path) -> Path:
    directory = Path(os.environ.get("COMPEX_PICTURES", tmp_path))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def keep(png: bytes, path: Path) -> bytes:
    path.write_bytes(png)
    return png


def text(selector: str) -> str:
    return f"document.querySelector({selector!r}).textContent"


async def test_the_page_shows_live_markets_and_follows_them(tmp_path: Path) -> None:
    async with market_page(tmp_path) as (page, traders, exchange, server):
        await page.until("document.querySelectorAll('#markets tbody tr').length === 220")
        market = exchange.desk.feed.market(TICKER)
        [(best_bid, _)] = market.book.levels("buy", 1)
        await page.until(f"{text('#stat-bid')} === '{price_text(best_bid)}'")
        assert await page.value(text("#one-title")) == "H100 SXM · US East · grade B"
        assert await page.value(text("#connection")) == "live"
        assert len(market.trades) > 12
        shown = "document.querySelectorAll('#trades tbody tr').length"
        await page.until(f"{shown} === {min(17, len(market.trades))}")
        priced = "[...document.querySelectorAll('#markets tbody td:nth-child(3) span')]"
        await page.until(f"{priced}.filter((s) => /^[0-9]/.test(s.textContent)).length >= 73")

        await traders.order(BUYER, "buy", "2.4100", "64")
        await page.until(f"{text('#stat-bid')} === '2.4100'")
        await traders.order(SELLER, "sell", "2.4100", "4", tif="ioc")
        await page.until(f"{text('#stat-last')} === '2.4100'")
        assert await page.value(text("#bids tr td:nth-child(2)")) == "60"

        exchange.desk.feed.publish_index(
            m.Index(market=TICKER, price="2.4125", quality="A", round=1, time_us=1)
        )
        await page.until(f"{text('#stat-index')} === '2.4125 A'")

        assert page.problems == []
        shots = pictures(tmp_path)
        light = keep(await page.picture(), shots / "market-light.png")
        await page.resize(1360, 860, "dark")
        dark = keep(await page.picture(), shots / "market-dark.png")
        assert light != dark and min(len(light), len(dark)) > 30_000
        await page.resize(390, 844)
        assert await page.value("document.documentElement.scrollWidth <= 390")
        keep(await page.picture(), shots / "market-phone.png")
        assert server.traffic().slow_readers_closed == 0


async def test_the_list_is_searched_sorted_and_walked_by_keyboard(tmp_path: Path) -> None:
    async with market_page(tmp_path) as (page, *_):
        await page.until("document.querySelectorAll('#markets tbody tr').length === 220")
        typed = "(find.value = {0!r}, find.dispatchEvent(new Event('input')), true)"
        await page.value("var find = document.querySelector('#find')")
        await page.value(typed.format("rtx 4090"))
        await page.until("document.querySelectorAll('#markets tbody tr').length === 4")
        await page.value(typed.format("nothing like it"))
        await page.until("!document.querySelector('#empty').hidden")
        await page.value(typed.format(""))
        await page.until("document.querySelectorAll('#markets tbody tr').length === 220")
        await page.until(
            "[...document.querySelectorAll('#markets tbody td:nth-child(3) span:first-child')]"
            ".filter((s) => /^[0-9]/.test(s.textContent)).length >= 73"
        )
        for descending in (False, True):
            await page.value("document.querySelector('[data-sort=ask]').click()")
            order = "descending" if descending else "ascending"
            await page.until(f"document.querySelector('th[aria-sort={order}]') !== null")
            await asyncio.sleep(0.1)
            asks: list[str] = await page.value(
                "[...document.querySelectorAll('#markets tbody td:nth-child(3) span:first-child')]"
                ".map((s) => s.textContent).filter((t) => /^[0-9]/.test(t))"
            )
            numbers = [float(ask) for ask in asks]
            assert numbers == sorted(numbers, reverse=descending) and len(numbers) >= 73
        await page.value("document.querySelector('.pick').focus()")
        for kind in ("keyDown", "keyUp"):
            await page.call(
                "Input.dispatchKeyEvent", type=kind, key="ArrowDown", windowsVirtualKeyCode=40
            )
        second = "document.querySelectorAll('#markets tbody tr')[1]"
        await page.until(f"{second}.getAttribute('aria-selected') === 'true'")
        assert await page.value(f"document.activeElement === {second}.querySelector('.pick')")
        assert page.problems == []


async def test_a_lost_server_is_shown_and_no_old_price_with_it(tmp_path: Path) -> None:
    async with market_page(tmp_path) as (page, _, _, server):
        await page.until(f"{text('#stat-bid')} !== '–'")
        await server.stop()
        await page.until("document.querySelector('#connection').dataset.state === 'waiting'")
        await page.until(f"{text('#stat-bid')} === '–'")
        assert "disconnected" in await page.value(text("#connection"))
