"""The gateway's sockets: one port for the websocket (`/ws`), the page, health and market list.

The only module of the gateway that touches the network. Invariant: a peer that is slow, silent
or gone harms only itself: nothing here waits for one while serving another. The node starts it.
"""

import asyncio
import re
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Final

from compex_client.messages import CloseCode
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from gateway import wire
from gateway.health import Health
from gateway.limits import Outbox
from gateway.session import Desk, Session

CONNECTIONS_MAX: Final = 12_000
PING_INTERVAL_S: Final = 15.0
HEARTBEAT_S: Final = 5.0
CLOSE_REASON_CHARS_MAX: Final = 120  # a close frame holds 123 bytes of reason
CLOSE_TIMEOUT_S: Final = 2.0  # for a peer to answer a close frame
FRAMES_AHEAD_MAX: Final = 16  # read and not yet handled; then the peer's socket is not read
WRITE_BUFFER_BYTES: Final = 64 << 10  # in the transport; the rest waits in the outbox
SOCKET_BUFFER_BYTES: Final = 256 << 10  # else the system lets megabytes pile up for a slow reader
STATIC_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_STATIC_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_./-]*")
WEB_ROOT: Final = Path(__file__).parent / "web"


class GatewayServer:
    """`port` 0 takes any free one; `address` tells which after `start`."""

    def __init__(
        self,
        desk: Desk,
        health: Health,
        host: str = "127.0.0.1",
        port: int = 0,
        web_root: Path = WEB_ROOT,
    ) -> None:
        self._desk = desk
        self._health = health
        self._host = host
        self._port = port
        self._web_root = web_root.resolve()
        self._server: Server | None = None
        self._heart: asyncio.Task[None] | None = None
        self._sessions: set[Session] = set()
        self._evictions: set[asyncio.Task[None]] = set()
        self.slow_readers_closed = 0

    async def start(self) -> None:
        self._server = await serve(
            self._converse,
            self._host,
            self._port,
            process_request=self._http,
            compression=None,
            server_header="compex",
            max_size=self._desk.limits.frame_bytes,
            max_queue=FRAMES_AHEAD_MAX,
            ping_interval=PING_INTERVAL_S,
            close_timeout=CLOSE_TIMEOUT_S,
            write_limit=WRITE_BUFFER_BYTES,
        )
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        self._desk.port.when_stopped(self._abandon)

    def _abandon(self, reason: str) -> None:
        """The engine stopped by itself. What became of requests in flight nobody knows, so they
        are not answered; the connections end, and a client asks again after the restart."""
        if self._server is not None:
            why = f"the exchange has stopped: {reason}"[:CLOSE_REASON_CHARS_MAX]
            for connection in list(self._server.connections):
                task = asyncio.create_task(connection.close(CloseCode.INTERNAL_ERROR, why))
                self._evictions.add(task)
                task.add_done_callback(self._evictions.discard)

    @property
    def address(self) -> tuple[str, int]:
        assert self._server is not None, "started"
        host, port = next(iter(self._server.sockets)).getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        """Close every connection with GOING_AWAY, then the port."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        if self._server is not None:
            self._server.close(code=CloseCode.GOING_AWAY, reason="the node is shutting down")
            await self._server.wait_closed()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for session in list(self._sessions):
                session.heartbeat()

    # --- websocket -----------------------------------------------------------------------------
    async def _converse(self, connection: ServerConnection) -> None:
        if len(self._sessions) >= CONNECTIONS_MAX:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "as many connections as we hold")
            return
        peer: socket.socket = connection.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        waiting = asyncio.Event()
        outbox = Outbox(
            self._desk.limits.outbound_bytes,
            wake=waiting.set,
            overflow=lambda: self._evict(connection),
        )
        session = Session(self._desk, outbox)
        self._sessions.add(session)
        writer = asyncio.create_task(_write(connection, outbox, waiting))
        try:
            session.open()
            while True:
                frame = await connection.recv()
                if not isinstance(frame, str):
                    await connection.close(CloseCode.BINARY_FRAME, "text frames only")
                    break
                session.receive(frame)
        except ConnectionClosed:
            pass
        finally:
            session.close()
            self._sessions.discard(session)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _evict(self, connection: ServerConnection) -> None:
        self.slow_readers_closed += 1
        task = asyncio.create_task(_close_slow(connection))
        self._evictions.add(task)
        task.add_done_callback(self._evictions.discard)

    # --- HTTP ----------------------------------------------------------------------------------
    def _http(self, _connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        match path:
            case "/ws":
                return None
            case "/live":
                return _json(*self._health.live())
            case "/ready":
                return _json(*self._health.ready())
            case "/markets":
                return _json(200, wire.encode(self._desk.feed.market_infos()))
            case "/":
                return self._static("index.html")
            case _ if path.startswith("/static/"):
                return self._static(path.removeprefix("/static/"))
            case _:
                return _not_found()

    def _static(self, name: str) -> Response:
        if not _STATIC_NAME.fullmatch(name):
            return _not_found()
        path = (self._web_root / name).resolve()
        kind = STATIC_TYPES.get(path.suffix)
        # The resolved path must still lie under the root: "..", links and absolute names do not.
        if kind is None or not path.is_relative_to(self._web_root) or not path.is_file():
            return _not_found()
        return _response(HTTPStatus.OK, kind, path.read_bytes())


async def _write(connection: ServerConnection, outbox: Outbox, waiting: asyncio.Event) -> None:
    try:
        while True:
            await waiting.wait()
            waiting.clear()
            for frames in outbox.take():
                connection.transport.write(frames)
                await connection.drain()
                outbox.sent(frames)
    except (ConnectionClosed, RuntimeError, ConnectionError):
        outbox.close()


async def _close_slow(connection: ServerConnection) -> None:
    # The close frame waits behind what the peer does not read; it is given this long to read it.
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close(CloseCode.SLOW_READER, "too many unread bytes")
    except TimeoutError:
        connection.transport.abort()


def _response(status: HTTPStatus, kind: str, body: bytes) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)


def _json(status: int, body: bytes) -> Response:
    return _response(HTTPStatus(status), "application/json", body)


def _not_found() -> Response:
    return _response(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")
