"""A real `compex up` in a process of its own, on a directory that a test gives it."""

import asyncio
import json
import os
import re
import resource
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from compex_client import Wallet

from engine import journal

ROOT: Final = Path(__file__).parent.parent
ENVIRONMENT: Final = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gateway' / 'client'}",
    "COLUMNS": "200",
}
COMPEX: Final = (sys.executable, "-m", "gateway.cli")
SYMBOL: Final = "nv.h100-sxm-80g.x8.ib|us-e|B|SPOT"
SOON: Final = datetime.now(UTC) + timedelta(days=2)  # no window of it begins meanwhile
START_SECONDS_MAX: Final = 120
END_SECONDS_MAX: Final = 60
HTTP_SECONDS_MAX: Final = 10


def write_settings(path: Path, port: int = 0, more: str = "") -> None:
    """Every market of one class and grade, so that the journal is soon larger than what else a
    node writes: a limit on files then cuts it off first."""
    hours = [f"{SYMBOL[: -len('SPOT')]}H|{SOON:%Y-%m-%d}T{hour:02}" for hour in range(24)]
    path.write_text(
        f"[gateway]\nport = {port}\n[markets]\nlisted = {json.dumps([SYMBOL, *hours])}\n"
        f"[chain]\nembedded_rpc_port = -1\n[settlement]\nturn_seconds = 0.2\n{more}",
        "utf-8",
    )


class Running:
    """One node's process, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self._lines: list[str] = []
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self._lines.append(line.decode())

    def said(self) -> str:
        return "".join(self._lines)

    async def started(self) -> bool:
        """True once it takes orders, false if it ended instead."""
        async with asyncio.timeout(START_SECONDS_MAX):
            while not self._url():
                if self._listening.done():
                    return False
                await asyncio.sleep(0.05)
        return True

    def _url(self) -> str:
        found = re.search(r"page, health +(http://\S+)", self.said())
        return found[1] if found else ""

    async def url(self) -> str:
        """Of the page, once the node takes orders."""
        assert await self.started(), self.said()
        return self._url()

    async def websocket(self) -> str:
        return (await self.url()).replace("http", "ws", 1) + "/ws"

    async def ready(self) -> tuple[int, dict[str, Any]]:
        status, body = await asyncio.to_thread(_get, await self.url() + "/ready")
        return status, json.loads(body)

    def administrator(self) -> Wallet:
        return Wallet((self.directory / "administrator.key").read_text("ascii").strip())

    def cut_off(self, bytes_left: int) -> None:
        """The file system takes so many bytes more of the journal's segment, and then no more."""
        *_, last = journal.scan(self.directory / "journal")
        limit = last.end + bytes_left
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, limit))

    def close(self) -> None:
        self._listening.cancel()

    async def ended(self) -> int:
        """Its exit status, once it ends by itself."""
        async with asyncio.timeout(END_SECONDS_MAX):
            await self._listening
            return await self.process.wait()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS_MAX) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


@asynccontextmanager
async def running_node(directory: Path, *arguments: str) -> AsyncGenerator[Running]:
    """`compex up --dir directory` with what more is given; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *COMPEX, "up", "--dir", str(directory), *arguments, cwd=directory.parent, env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    node = Running(process, directory)
    try:
        yield node
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        node.close()
