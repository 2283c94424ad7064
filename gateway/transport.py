"""The gateway's sockets: one port, one protocol for plain HTTP and, after the upgrade, websocket.

The only module of the gateway that listens. `Listener` owns the port, who is let in, and the one
timer of all; a `Connection` owns one socket and drives `http1` and then `framing` with what comes.
Invariant: a peer that is slow, silent, hostile or gone harms only itself: nothing here waits for
one while serving another, no write raises into who caused it, and what is held for one peer is
bounded. The server makes the listener; sessions know nothing but their outbox.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, cast

from compex_client import messages as m
from compex_client.messages import CloseCode
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway import wire
from gateway.counts import Counts, Traffic
from gateway.framing import PING, Framing, Phase
from gateway.http import TEXT, HttpAnswer, HttpRequest
from gateway.http1 import Asked, HttpReader, answer_bytes
from gateway.limits import NS_PER_MS, NS_PER_S, AddressBuckets, Outbox, TokenBucket, whose
from gateway.wire import Codec

CONNECTIONS_MAX: Final = 12_000
PLAIN_CONNECTIONS_MAX: Final = 4_096  # besides those: not upgraded, or not yet
ADMISSIONS_PER_S: Final = 1_000  # upgrades; one costs a quarter of a millisecond
ADMISSIONS_BURST: Final = 2_000
ADMISSIONS_SHARE: Final = 4  # of those, one address has at most one in so many
BACKLOG: Final = 4_096  # connections that the system holds until they are taken
WRITE_BUFFER_BYTES: Final = 64 << 10  # in the transport; the rest waits in the outbox
SOCKET_BUFFER_BYTES: Final = 256 << 10  # else the system lets megabytes pile up for a slow reader
SPARE_DESCRIPTORS: Final = 256  # for everything but connections

TICK_S: Final = 1.0  # of the one timer; what follows is counted in its ticks
PING_TICKS: Final = 15  # a peer that lets a whole round go by in silence is gone
HEARTBEAT_TICKS: Final = 5
HEAD_TICKS: Final = 10  # for a request's head to arrive
IDLE_TICKS: Final = 60  # between two requests
CLOSE_TICKS: Final = 3  # for a peer to read our last words: two seconds at least
assert PING_TICKS % HEARTBEAT_TICKS == 0

WEBSOCKET_PATH: Final = "/ws"
HangUp = Callable[[CloseCode, str], None]

log = logging.getLogger("compex.transport")


class Access(NamedTuple):
    """Who is let in, and how. With no `origins`, pages of this very host may open the websocket;
    bots, which name no origin, always may. With a certificate the port speaks TLS."""

    connections: int = CONNECTIONS_MAX
    connections_per_address: int = CONNECTIONS_MAX
    origins: tuple[str, ...] = ()
    tls_certificate: str = ""
    tls_key: str = ""
    admissions_per_s: int = ADMISSIONS_PER_S
    admissions_burst: int = ADMISSIONS_BURST


OPEN_ACCESS: Final = Access()


class Conversation(Protocol):
    """What a websocket is about: frames come by `receive`, and go by the outbox it was given."""

    def open(self) -> None: ...
    @property
    def codec(self) -> Codec: ...
    def receive(self, frame: bytes | str) -> None: ...
    def heartbeat(self) -> None: ...
    def close(self, code: int, /) -> None: ...


class Listener:
    """`answer` is for plain requests; `converse` makes what a websocket is about. `tick_s` is how
    long a tick of the timer takes, and so everything that waits for a peer."""

    def __init__(
        self,
        answer: Callable[[HttpRequest, str], HttpAnswer],
        converse: Callable[[Outbox, Codec, str, HangUp], Conversation],
        limits: m.Limits,
        counts: Counts,
        access: Access = OPEN_ACCESS,
        tick_s: float = TICK_S,
    ) -> None:
        self.answer: Final = answer
        self.converse: Final = converse
        self.limits: Final = limits
        self.counts: Final = counts
        self.is_draining = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self._slow_readers_closed = 0
        self._access = access
        self._admissions = TokenBucket(access.admissions_per_s, access.admissions_burst)
        self._admissions_of = AddressBuckets(
            _share(access.admissions_per_s), _share(access.admissions_burst), counts.now_ns
        )
        self._tick_s = tick_s
        self.tick = 0
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._securing: set[asyncio.Task[None]] = set()  # handshakes of TLS
        self._connections: set[Connection] = set()
        self._rounds: tuple[set[Connection], ...] = tuple(set() for _ in range(PING_TICKS))
        self._sockets_of: Counter[str] = Counter()  # by `Connection.peer`, as the next one
        self._websockets_of: Counter[str] = Counter()
        self._upgrades = 0
        self._woken: list[Connection] = []
        self._empty = asyncio.Event()
        self._empty.set()

    # --- the port ------------------------------------------------------------------------------
    async def start(self, host: str, port: int) -> None:
        """`port` 0 takes any free one. Raises OSError if the port cannot be had, or the
        certificate cannot be used."""
        self._loop = asyncio.get_running_loop()
        wanted = self._access.connections + PLAIN_CONNECTIONS_MAX + SPARE_DESCRIPTORS
        _allow_descriptors(wanted)
        self._tls = self._tls_context()
        comes = Connection if self._tls is None else Arrival
        self._server = await self._loop.create_server(
            lambda: comes(self), host, port, backlog=BACKLOG
        )
        self._timer = self._loop.call_later(self._tick_s, self._turn)

    def _tls_context(self) -> ssl.SSLContext | None:
        certificate = self._access.tls_certificate
        if not certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, self._access.tls_key or None)
        except OSError as error:
            raise OSError(f"the certificate {certificate} or its key: {error}") from error
        return context

    @property
    def address(self) -> tuple[str, int]:
        assert self._server is not None, "started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def traffic(self) -> Traffic:
        return Traffic(
            self._upgrades,
            len(self._connections) - self._upgrades,
            self.bytes_received,
            self.bytes_sent,
            self._slow_readers_closed,
        )

    def stop_listening(self) -> None:
        """No new connections; those there are stay, and learn it from what they ask next."""
        self.is_draining = True
        if self._server is not None:
            self._server.close()

    async def close(self, code: CloseCode, reason: str) -> None:
        """End every connection; those that do not read their close frame are cut off."""
        self.end_all(code, reason)
        try:
            async with asyncio.timeout(CLOSE_TICKS * self._tick_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()
        if self._timer is not None:
            self._timer.cancel()

    def end_all(self, code: CloseCode, reason: str) -> None:
        for task in list(self._securing):
            task.cancel()
        for connection in list(self._connections):
            connection.end(code, reason)

    def tell_all(self, message: m.ServerMessage) -> None:
        for connection in list(self._connections):
            connection.tell(message)

    # --- connections ---------------------------------------------------------------------------
    def takes(self, connection: "Connection") -> bool:
        """Count it, if there is room for another one at all. Again is harmless."""
        if connection in self._connections:
            return True
        access, peer = self._access, connection.peer
        if len(self._connections) >= access.connections + PLAIN_CONNECTIONS_MAX:
            return False
        if self._sockets_of[peer] >= 2 * access.connections_per_address:
            return False  # as many plain ones as websockets
        self._sockets_of[peer] += 1
        self._connections.add(connection)
        self._empty.clear()
        return True

    def secure(self, peer: socket.socket, address: str) -> None:
        """Count who comes before it has shaken hands for TLS, as it may never do so."""
        connection = Connection(self, address)
        if not self.takes(connection):
            peer.close()
            return
        task = self._loop.create_task(self._shake_hands(connection, peer))

        def over(task: asyncio.Task[None]) -> None:
            # Not in the task itself: one that is cancelled before it begins does nothing at all.
            self._securing.discard(task)
            if not connection.is_made:
                self.forget(connection)
                peer.close()

        self._securing.add(task)
        task.add_done_callback(over)

    async def _shake_hands(self, connection: "Connection", peer: socket.socket) -> None:
        # It went, took too long, or speaks no TLS: nothing was promised to it.
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(
                lambda: connection,
                peer,
                ssl=self._tls,
                ssl_handshake_timeout=HEAD_TICKS * self._tick_s,
            )

    def forget(self, connection: "Connection") -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            _one_less(self._sockets_of, connection.peer)
        if not self._connections:
            self._empty.set()

    def admits(self, address: str) -> int:
        """0, or in how many seconds an upgrade may be tried again. No address but this machine's,
        where a proxy may speak for many, uses up what is there for all."""
        retry_ms = 1_000 if self.is_draining else self._admissions.take(1, self.counts.now_ns())
        if not retry_ms and whose(address):
            retry_ms = self._admissions_of.take(address)
            if retry_ms:
                self.gives_back()
        return -(-retry_ms * NS_PER_MS // NS_PER_S)

    def gives_back(self) -> None:
        """Whoever was just admitted is not let in; that counts for its own address alone."""
        self._admissions.give_back(1)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether the page that opens this websocket, if it is a page, may."""
        origin = headers.get("origin")
        if origin is None:
            return True
        if self._access.origins:
            return origin in self._access.origins
        return origin.partition("://")[2].lower() == headers.get("host", "").lower()

    def joins(self, connection: "Connection") -> str:
        """Count a websocket; or why it cannot stay, in words."""
        if self._upgrades >= self._access.connections:
            return "as many connections as we hold"
        if self._websockets_of[connection.peer] >= self._access.connections_per_address:
            return "as many connections as one address may have"
        self._websockets_of[connection.peer] += 1
        connection.round = self._upgrades % PING_TICKS
        self._upgrades += 1
        self._rounds[connection.round].add(connection)
        return ""

    def leaves(self, connection: "Connection") -> None:
        self._rounds[connection.round].discard(connection)
        self._upgrades -= 1
        _one_less(self._websockets_of, connection.peer)

    def evict(self, connection: "Connection") -> None:
        self._slow_readers_closed += 1
        self.soon(lambda: connection.end(CloseCode.SLOW_READER, "too many unread bytes"))

    # --- turns of the loop ---------------------------------------------------------------------
    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def wake(self, connection: "Connection") -> None:
        """It has something to write, which goes with all that comes until the loop turns."""
        if not self._woken:
            self._loop.call_soon(self._flush)
        self._woken.append(connection)

    def _flush(self) -> None:
        woken, self._woken = self._woken, []
        for connection in woken:
            connection.flush()

    def _turn(self) -> None:
        """Once a second: deadlines; a fifteenth of all gets a ping, a fifth a heartbeat."""
        self._timer = self._loop.call_later(self._tick_s, self._turn)
        self.tick += 1
        late = [c for c in self._connections if 0 < c.deadline <= self.tick]
        for connection in late:
            connection.expire()
        now = self.tick % PING_TICKS
        for connection in list(self._rounds[now]):
            connection.ping()
        for members in self._rounds[now % HEARTBEAT_TICKS :: HEARTBEAT_TICKS]:
            for connection in list(members):
                connection.heartbeat()


def _share(admissions: int) -> int:
    return max(1, admissions // ADMISSIONS_SHARE)


def _one_less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]  # or every address that ever came would stay


def _allow_descriptors(wanted: int) -> None:
    """Let this process have so many open files, or as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("%d open files allowed, %d wanted for every connection", allowed, wanted)


class Arrival(asyncio.Protocol):
    """A socket that is to speak TLS. The loop's own server tells of one only after the handshake,
    so its plain one takes it, reads nothing, and gives it away to be counted first."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer: socket.socket = transport.get_extra_info("socket").dup()
        cast("asyncio.Transport", transport).abort()  # its descriptor alone is closed
        self._listener.secure(peer, _address_of(transport))


class Connection(asyncio.Protocol):
    """One socket. Plain HTTP while `_http` is there, a websocket once `_framing` is; after either
    has said its last, what still comes is dropped until the peer closes or its time is over."""

    __slots__ = ("_framing", "_has_begun", "_http", "_is_behind", "_is_heard", "_is_over",
                 "_is_paused", "_listener", "_outbox", "_session", "_transport", "address",
                 "deadline", "peer", "round")  # fmt: skip

    def __init__(self, listener: Listener, address: str = "") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._http: HttpReader | None = HttpReader()
        self._framing: Framing | None = None
        self._outbox: Outbox | None = None
        self._session: Conversation | None = None
        self._has_begun = False  # a request's head, whose deadline is set
        self._is_paused = False  # what was written is not yet with the system
        self._is_heard = True  # since the last ping
        self._is_over = False  # all is said
        self._is_behind = False  # frames were read and are not yet heard
        self._meet(address)
        self.deadline = 0  # a tick; 0 for none
        self.round = 0

    def _meet(self, address: str) -> None:
        self.address = address
        # Who that is, for what one may have: an IPv6 address is all of its /64.
        self.peer = whose(address) or address

    @property
    def is_made(self) -> bool:
        """Whether it has a socket, or had one: then its loss is told."""
        return self._transport is not None or self._http is None

    # --- as asyncio calls it -------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self.address:
            self._meet(_address_of(transport))
        if self._listener.takes(self):
            self._expect(HEAD_TICKS)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        self._listener.bytes_received += len(data)
        if self._is_over:
            return
        if self._framing is not None:
            self._read_frames(data)
        elif self._http is not None:
            self._http.receive(data)
            self._answer_requests()

    def eof_received(self) -> None:
        """The peer sends no more: it is told what is there to tell, and the transport closes."""
        self.flush()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._outbox is not None:
            self._outbox.sent()
            self.flush()
        elif self._http is not None and self._transport is not None:
            self._transport.resume_reading()
            self._answer_requests()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._http = None
        self._leave()
        self._listener.forget(self)

    # --- writing -------------------------------------------------------------------------------
    def _wake(self) -> None:
        self._listener.wake(self)

    def _evict(self) -> None:
        self._listener.evict(self)

    def flush(self) -> None:
        """Write what the outbox has, at once, unless the peer is still busy with what it got."""
        if self._is_paused or self._outbox is None:
            return
        frames = self._outbox.take()
        if frames:
            self._write(frames[0] if len(frames) == 1 else b"".join(frames))
            if not self._is_paused:
                self._outbox.sent()

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        listener, counts = self._listener, self._listener.counts
        listener.bytes_sent += len(data)
        begin_ns = counts.begins()
        try:
            transport.write(data)
        except RuntimeError:  # uvloop's, for a socket that was just lost; `connection_lost` comes
            self._transport = None
        if begin_ns:
            counts.write.took(counts.now_ns() - begin_ns)

    def _finish(self) -> None:
        """All is said. What the peer still sends is read until it closes, too: a socket that is
        closed with bytes unread is reset by the system, and our last words with it."""
        self._http = None
        if self._is_over or self._transport is None or self._transport.is_closing():
            return
        self._is_over = True
        self._expect(IDLE_TICKS if self._is_paused else CLOSE_TICKS)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    # --- time ----------------------------------------------------------------------------------
    def _expect(self, ticks: int) -> None:
        self.deadline = self._listener.tick + ticks

    def expire(self) -> None:
        """What was expected has not come."""
        if self._http is not None and self._http.has_begun:
            self._refuse(408, "the request did not arrive in time")
        else:
            self.abort()

    def ping(self) -> None:
        if self._framing is None or self._framing.phase is not Phase.OPEN:
            return
        if not self._is_heard:
            self.end(CloseCode.INTERNAL_ERROR, "no answer to a ping")
        elif self._outbox is not None:
            self._is_heard = False
            self._outbox.push(PING)

    def heartbeat(self) -> None:
        if self._session is not None:
            self._session.heartbeat()

    def tell(self, message: m.ServerMessage) -> None:
        if self._session is not None and self._outbox is not None:
            self._outbox.push(self._session.codec.encode(message))

    # --- its end -------------------------------------------------------------------------------
    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def end(self, code: CloseCode, reason: str) -> None:
        """A websocket hears why and may answer; a plain connection just ends."""
        if self._framing is None:
            if self._transport is not None:
                self._transport.close()
        elif self._framing.phase is Phase.OPEN:
            self._framing.close(code, reason)
            self._expect(CLOSE_TICKS)

    def _hang_up(self, code: CloseCode, reason: str) -> None:
        """Said by the session, within what it does."""
        self._listener.soon(lambda: self.end(code, reason))

    def _leave(self) -> None:
        """No longer a websocket with a session."""
        session, self._session = self._session, None
        if session is not None:
            session.close(self._framing.peer_code if self._framing is not None else 0)
            self._listener.leaves(self)
        if self._outbox is not None:
            self._outbox.close()

    # --- HTTP ----------------------------------------------------------------------------------
    def _answer_requests(self) -> None:
        http = self._http
        if http is None:
            return
        while http.requests and not self._is_paused:
            asked = http.requests.popleft()
            self._has_begun = False
            keep_alive = asked.keep_alive and not self._listener.is_draining
            answer = self._answer(asked)
            with_body = asked.request.method != "HEAD"
            self._write(answer_bytes(answer, keep_alive=keep_alive, with_body=with_body))
            if not keep_alive:
                self._finish()
                return
        if http.requests and self._transport is not None:
            self._transport.pause_reading()
        elif http.refusal is not None:
            self._write(answer_bytes(http.refusal, keep_alive=False))
            self._finish()
        elif http.upgrade is not None:
            self._upgrade(http.upgrade, http.rest)
        elif not http.has_begun:
            self._expect(IDLE_TICKS)
        elif not self._has_begun:  # once a head: or each byte of it would renew its time
            self._has_begun = True
            self._expect(HEAD_TICKS)

    def _answer(self, asked: Asked) -> HttpAnswer:
        if asked.request.path == WEBSOCKET_PATH:
            return _as_answer(_handshake(asked))
        try:
            return self._listener.answer(asked.request, self.address)
        except Exception:
            log.exception("no answer to %s", asked.request.path)
            return HttpAnswer(500, TEXT, b"this failed, and is in the log\n")

    def _refuse(self, status: int, words: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        refusal = HttpAnswer(status, TEXT, f"{words}\n".encode(), tuple(headers))
        self._write(answer_bytes(refusal, keep_alive=False))
        self._finish()

    def _upgrade(self, asked: Asked, rest: bytes) -> None:
        listener = self._listener
        if asked.request.path != WEBSOCKET_PATH:
            self._refuse(404, f"the websocket is at {WEBSOCKET_PATH}")
        elif not listener.allows(asked.request.headers):
            self._refuse(403, "pages from there may not open the websocket")
        elif retry_s := listener.admits(self.address):
            retry = (("Retry-After", str(retry_s)),)
            self._refuse(503, "too many come at once, try again", retry)
        else:
            response = _handshake(asked)
            if response.status_code == 101:
                self._open(response, rest)
            else:
                listener.gives_back()
                self._write(answer_bytes(_as_answer(response), keep_alive=False))
                self._finish()

    # --- websocket -----------------------------------------------------------------------------
    def _open(self, response: Response, rest: bytes) -> None:
        """Shaken hands: from here on the session has the word."""
        assert self._transport is not None
        listener = self._listener
        codec = wire.CODEC_OF[response.headers.get("Sec-WebSocket-Protocol", wire.JSON.subprotocol)]
        peer: socket.socket = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        outbox = Outbox(
            listener.limits.outbound_bytes,
            wake=self._wake,
            overflow=self._evict,
        )
        full = listener.joins(self)
        session = None if full else listener.converse(outbox, codec, self.address, self._hang_up)
        hear = session.receive if session is not None else _unheard
        self._framing = Framing(codec.opcode, listener.limits.frame_bytes, hear, self._say)
        self._http, self._outbox, self._session, self.deadline = None, outbox, session, 0
        outbox.push(response.serialize())
        if session is None:
            self.end(CloseCode.TRY_AGAIN_LATER, full)
            return
        session.open()
        if rest:
            self._read_frames(rest)

    def _read_frames(self, data: bytes) -> None:
        framing = self._framing
        assert framing is not None
        try:
            self._is_behind = framing.receive(data)
        except Exception:
            log.exception("a session failed")
            self.end(CloseCode.INTERNAL_ERROR, "the server failed, which is in its log")
            self._is_behind = False
        if framing.phase is Phase.OVER:
            self._leave()
            self._finish()
        elif self._is_behind and self._transport is not None:
            self._transport.pause_reading()
            self._listener.soon(self._catch_up)

    def _catch_up(self) -> None:
        """More frames came at once than are heard in one go; others had their turn meanwhile."""
        transport = self._transport
        if transport is not None:
            self._read_frames(b"")
            if not self._is_behind:
                transport.resume_reading()

    def _say(self, frame: bytes) -> None:
        """A control frame: a pong, in its place among the messages, or the close frame, at once."""
        assert self._framing is not None and self._outbox is not None
        if self._framing.phase is Phase.OPEN:
            self._outbox.push(frame)
            return
        waiting = self._outbox.take()
        self._leave()
        self._write(b"".join([*waiting, frame]))


def _address_of(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _unheard(_message: bytes | str) -> None:
    """Of a websocket that is closed as soon as it is open."""


def _handshake(asked: Asked) -> Response:
    """websockets' answer to an opening handshake; 101 if it is accepted."""
    protocol = ServerProtocol(select_subprotocol=_subprotocol)
    request = asked.request
    return protocol.accept(
        Request(request.path, Headers(asked.fields), request.method, f"HTTP/{asked.version}")
    )


def _subprotocol(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first that we speak; none of ours among several is refused, and none at all is JSON."""
    for subprotocol in offered:
        if subprotocol in wire.CODEC_OF:
            return subprotocol
    if offered:
        raise NegotiationError(f"the subprotocols here are {', '.join(wire.CODEC_OF)}")
    return None


def _as_answer(response: Response) -> HttpAnswer:
    own = {"content-type", "content-length", "connection", "date"}
    headers = tuple((k, v) for k, v in response.headers.raw_items() if k.lower() not in own)
    return HttpAnswer(response.status_code, TEXT, bytes(response.body), headers)
