"""Servers under load, each in a process of its own: started, told what to do, ended.

A server prints one line of JSON with its `port` when it listens, then answers each line
`[order, argument]` with a line of JSON, and ends when its standard input does: with whoever
started it, however that ends. It has the first core for itself, the load generator the last.
`Target` is the side that starts it, `obey` the server's. Invariant: one port on the loopback.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psutil
import uvloop

ROOT: Final = Path(__file__).parent.parent
LINE_BYTES_MAX: Final = 1 << 24
END_SECONDS_MAX: Final = 30
HOST: Final = "127.0.0.1"

Orders = Mapping[str, Callable[[Any], Awaitable[Any]]]


def cores() -> tuple[int, int] | None:
    """The server's and the generator's; None where they would be the same, or are not ours to
    choose."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[-1]) if len(found) > 1 else None


class Target:
    """Raises AssertionError if it does not come to listen."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        chosen = cores()
        if chosen is not None:
            os.sched_setaffinity(self._process.pid, {chosen[0]})
        self.pid: Final = self._process.pid
        self.port: Final[int] = self._heard()["port"]

    @classmethod
    def module(cls, name: str, *words: str) -> Self:
        return cls([sys.executable, "-m", name, *words])

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args} ended early"
        return json.loads(line)

    def tell(self, order: str, argument: Any = None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, argument]) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def resident_bytes(self) -> int:
        return psutil.Process(self.pid).memory_info().rss

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


async def obey(port: int, orders: Orders) -> None:
    """Say the port, then do as told until there is nobody left to tell."""
    reader = asyncio.StreamReader(LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"port": port}), flush=True)
    while line := await reader.readline():
        order, argument = json.loads(line)
        print(json.dumps(await orders[order](argument)), flush=True)


def run_server(serve: Awaitable[None]) -> None:
    """On the event loop that all are measured on, with as many files as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_awaited(serve))


async def _awaited(serve: Awaitable[None]) -> None:
    await serve
