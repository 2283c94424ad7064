"""A headless Chromium over its DevTools protocol: open a page, ask it things, take its picture."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect

START_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.05
FRAME_BYTES_MAX: Final = 32 << 20  # a screenshot comes in one
FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("NO CHROMIUM: the page is not tested in a browser (apt-get install chromium)")


class Page:
    """One tab. `problems` collects uncaught errors and everything on the console's error log."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = count(1)
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message: dict[str, Any] = json.loads(await self._connection.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(json.dumps(params["entry"]))
            case _:
                pass

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 15.0) -> Any:
        """Wait until the expression is true; returns its value."""
        seen: Any = None
        for _ in range(round(timeout_s / POLL_S)):
            if seen := await self.value(expression):
                return seen
            await asyncio.sleep(POLL_S)
        pytest.fail(f"{expression} stayed {seen!r}; {self.problems}")

    async def resize(self, width: int, height: int, scheme: str = "light") -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self) -> bytes:
        """A PNG of what is on the screen."""
        result = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(result["data"])


async def _devtools(profile: Path) -> list[str]:
    """Port and path of the DevTools, which the browser writes down once it listens."""
    for _ in range(round(START_TIMEOUT_S / POLL_S)):
        if len(written := _lines(profile / "DevToolsActivePort")) == 2:
            return written
        await asyncio.sleep(POLL_S)
    pytest.fail("the browser did not start")


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@asynccontextmanager
async def open_page(profile: Path, url: str) -> AsyncGenerator[Page]:
    """`profile` is an empty directory for the browser's own files."""
    process = await asyncio.create_subprocess_exec(
        chromium(),
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port, browser_path = await _devtools(profile)
        async with connect(f"ws://127.0.0.1:{port}{browser_path}", proxy=None) as browser:
            target = await Page(browser).call("Target.createTarget", url="about:blank")
        page_url = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
        async with connect(page_url, max_size=FRAME_BYTES_MAX, proxy=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            await page.resize(1360, 860)
            await page.call("Page.navigate", url=url)
            await page.until("location.protocol !== 'about:' && document.readyState === 'complete'")
            yield page
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
