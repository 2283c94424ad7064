"""The one port on real sockets and uvloop, as a node runs it: HTTP, the upgrade, limits, the end.

What a peer may do to others is tried here by peers that do it. Ticks of the one timer are made
short where a time must run out; none is asserted.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import sqlite3
import ssl
import subprocess
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from compex_client import connect
from compex_client import messages as m
from compex_client.messages import CloseCode
from compex_client.wallet import SessionKey
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from engine.rejects import Reject
from gateway.counts import Counts
from gateway.framing import FRAMES_AT_ONCE
from gateway.health import Health
from gateway.http1 import HEAD_BYTES_MAX, PIPELINED_MAX, TARGET_BYTES_MAX
from gateway.keys import Keys
from gateway.limits import DEFAULT_LIMITS
from gateway.server import GatewayServer
from gateway.transport import (
    ADMISSIONS_SHARE,
    OPEN_ACCESS,
    TICK_S,
    Access,
    Connection,
    Listener,
)
from tests.exchange import (
    DOMAIN,
    START_NS,
    TICKER,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)
from tests.fuzz.hostile import FIN, PING, PONG, TEXT, frame

BUYER = wallet(102)
PATIENCE_S = 30.0
FAST_TICK_S = 0.02
HOST = b"Host: x\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
LIVE = b"GET /live HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
Case = Callable[[], Coroutine[Any, Any, None]]


def on_uvloop(case: Case) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await case()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(in_time())


@asynccontextmanager
async def serving(
    directory: Path,
    access: Access = OPEN_ACCESS,
    limits: m.Limits = DEFAULT_LIMITS,
    tick_s: float = TICK_S,
) -> AsyncGenerator[tuple[Exchange, GatewayServer, str]]:
    async with running_exchange(directory, limits) as exchange:
        await exchange.list_market()
        await exchange.open_account(2, cash_usdc6=10**12)
        server = GatewayServer(exchange.desk, Health(exchange.port), access=access, tick_s=tick_s)
        await server.start()
        host, port = server.address
        try:
            yield exchange, server, f"ws://{host}:{port}/ws"
        finally:
            await server.stop()


async def exchanged(server: GatewayServer, sent: bytes) -> bytes:
    """All that the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def trickled(server: GatewayServer, sent: bytes) -> bytes:
    """All that the server says to these bytes and then, one by one, to more of them, until it
    closes."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(sent)
    answer = asyncio.create_task(reader.read())
    while not answer.done():
        writer.write(b"x")
        await asyncio.sleep(FAST_TICK_S)
    writer.close()
    return await answer


async def upgraded(server: GatewayServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A websocket of bare bytes, greeted."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    await frame_of(reader)
    return reader, writer


async def frame_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(opcode, payload) of the server's next frame."""
    first, size = await reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return first & 15, await reader.readexactly(size)


async def message_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The server's next message that was asked for."""
    while True:
        opcode, payload = await frame_of(reader)
        if opcode == TEXT and b'"heartbeat"' not in payload:
            return json.loads(payload)


def masked(message: m.ClientMessage) -> bytes:
    return frame(FIN | TEXT, msgspec.json.encode(message), b"abcd")


async def logged_in(server: GatewayServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    hello = msgspec.json.decode((await frame_of(reader))[1], type=m.Hello)
    signature = BUYER.sign_login(DOMAIN, bytes.fromhex(hello.nonce[2:]))
    writer.write(masked(m.Login(1, BUYER.address, hello.nonce, signature.hex())))
    assert (await message_of(reader))["account"] == 2
    return reader, writer


async def end_of(connection: ClientConnection) -> tuple[int | None, str | None]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()
    return connection.close_code, connection.close_reason


# --- plain HTTP ----------------------------------------------------------------------------------
def test_requests_that_come_together_are_answered_in_turn_on_one_connection(tmp_path: Path) -> None:
    async def case() -> None:
        async with serving(tmp_path) as (_, server, _url):
            live, gone = b"GET /live HTTP/1.1\r\n" + HOST, b"GET /gone HTTP/1.1\r\n" + HOST
            last = b"HEAD /markets HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
            answer = await exchanged(server, live + b"\r\n" + gone + b"\r\n" + last)
            heads = answer.split(b"HTTP/1.1 ")[1:]
            assert [head[:3] for head in heads] == [b"200", b"404", b"200"]
            assert [b"Connection: keep-alive" in head for head in heads] == [True, True, False]
            assert heads[0].endswith(b'{"live":true}')
            assert heads[2].endswith(b"\r\n\r\n"), "of a HEAD no body"
            many = await exchanged(server, (live + b"\r\n") * (PIPELINED_MAX + 5))
            assert many.count(b"HTTP/1.1 200 OK") == PIPELINED_MAX

    on_uvloop(case)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /markets HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", 405),
        (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET /" + b"a" * TARGET_BYTES_MAX + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * HEAD_BYTES_MAX, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS, where there is none
        (b"GET /ws HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 426),
        (UPGRADE.replace(b"/ws", b"/else"), 404),
        (UPGRADE.replace(b"Version: 13", b"Version: 12"), 400),
        (UPGRADE.replace(b"Key: AAAA", b"Key: A"), 400),
    ],
)  # fmt: skip
def test_what_is_no_request_here_is_refused_with_a_status(
    tmp_path: Path, sent: bytes, status: int
) -> None:
    async def case() -> None:
        async with serving(tmp_path) as (_, server, _url):
            answer = await exchanged(server, sent)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status and b"Connection: close" in head
            assert body and answer.count(b"HTTP/1.1 4") == 1

    on_uvloop(case)


def test_a_request_that_trickles_in_is_ended_and_so_is_an_idle_connection(tmp_path: Path) -> None:
    async def case() -> None:
        async with serving(tmp_path, tick_s=FAST_TICK_S) as (_, server, _url):
            begun = await exchanged(server, b"GET / HTTP/1.1\r\nA: b")
            assert begun.split()[1] == b"408"
            whole = b"GET /live HTTP/1.1\r\n" + HOST + b"\r\n"
            for before in (b"", whole):
                told = await trickled(server, before + b"GET / HTTP/1.1\r\nA: ")
                assert told.startswith(b"HTTP/1.1 200") == bool(before)
                assert told.split(b"HTTP/1.1 ")[-1].startswith(b"408")
            assert await exchanged(server, b"") == b""
            idle = await exchanged(server, b"GET /live HTTP/1.1\r\n" + HOST + b"\r\n")
            assert idle.endswith(b"}"), "answered, and after a while closed"

    on_uvloop(case)


# --- the upgrade ---------------------------------------------------------------------------------
def test_pages_of_other_hosts_may_not_open_the_websocket(tmp_path: Path) -> None:
    async def case() -> None:
        async with serving(tmp_path) as (_, server, url):
            host, port = server.address
            own, other = Origin(f"http://{host}:{port}"), Origin("http://elsewhere")
            for origin in (None, own):
                async with connect_socket(url, origin=origin) as connection:
                    assert await connection.recv()
            for origin in (other, Origin("null"), Origin(f"http://{host}")):
                with pytest.raises(InvalidStatus) as refused:
                    await connect_socket(url, origin=origin)
                assert refused.value.response.status_code == 403
        access = Access(origins=(other,))
        async with serving(tmp_path / "named", access) as (_, server, url):
            async with connect_socket(url, origin=other) as connection:
                assert await connection.recv()
            with pytest.raises(InvalidStatus):
                await connect_socket(url, origin=own)

    on_uvloop(case)


def test_the_subprotocol_says_how_messages_are_spelt_and_in_which_frames(tmp_path: Path) -> None:
    packed, plain = Subprotocol("compex.v1.msgpack"), Subprotocol("compex.v1.json")

    async def case() -> None:
        async with serving(tmp_path) as (_, _server, url):
            async with connect_socket(url, subprotocols=[Subprotocol("x"), packed]) as connection:
                hello = await connection.recv()
                assert connection.subprotocol == packed and isinstance(hello, bytes)
                assert msgspec.msgpack.decode(hello, type=m.Hello).version == m.PROTOCOL_VERSION
                await connection.send(msgspec.msgpack.encode(m.Ping(7)))
                pong = await connection.recv()
                assert isinstance(pong, bytes)
                assert msgspec.msgpack.decode(pong, type=m.Pong).id == 7
                await connection.send('{"t":"ping","id":1}')
                assert (await end_of(connection))[0] == CloseCode.BINARY_FRAME
            async with connect_socket(url, subprotocols=[plain, packed]) as connection:
                assert connection.subprotocol == plain
                assert isinstance(await connection.recv(), str)
            with pytest.raises(InvalidStatus) as refused:
                await connect_socket(url, subprotocols=[Subprotocol("compex.v2.json")])
            assert refused.value.response.status_code == 400

    on_uvloop(case)


def test_frames_right_behind_the_handshake_are_heard(tmp_path: Path) -> None:
    async def case() -> None:
        async with serving(tmp_path) as (_, server, _url):
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(UPGRADE + masked(m.Ping(5)))
            await reader.readuntil(b"\r\n\r\n")
            hello, pong = await message_of(reader), await message_of(reader)
            assert hello["t"] == "hello" and pong["id"] == 5
            writer.close()

    on_uvloop(case)


def test_one_connection_too_many_is_closed_with_1013(tmp_path: Path) -> None:
    async def case() -> None:
        words = "as many connections as we hold"
        for access, why in (
            (Access(connections=2), words),
            (Access(connections_per_address=2), "as many connections as one address may have"),
        ):
            async with (
                serving(tmp_path / why, access) as (_, _server, url),
                connect_socket(url) as first,
            ):
                assert await first.recv()
                async with connect_socket(url) as second, connect_socket(url) as third:
                    assert await end_of(third) == (CloseCode.TRY_AGAIN_LATER, why)
                    assert await second.recv()
                async with connect_socket(url) as another:
                    assert await another.recv(), "the place of one that went is free"

    on_uvloop(case)


def test_one_address_holds_no_more_plain_connections_than_websockets(tmp_path: Path) -> None:
    async def case() -> None:
        access = Access(connections_per_address=1)
        async with (
            serving(tmp_path, access) as (_, server, url),
            connect_socket(url) as first,
        ):
            assert await first.recv()
            _, idle = await asyncio.open_connection(*server.address)
            while server.traffic().plain_connections < 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
            with contextlib.suppress(ConnectionError):
                assert await exchanged(server, LIVE) == b"", "cut off, unanswered"
            idle.close()
            while server.traffic().plain_connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert (await exchanged(server, LIVE)).startswith(b"HTTP/1.1 200")

    on_uvloop(case)


def test_a_herd_is_let_in_at_a_bounded_rate(tmp_path: Path) -> None:
    async def case() -> None:
        access = Access(admissions_per_s=1, admissions_burst=5)
        async with serving(tmp_path, access) as (_, _server, url):
            herd = await asyncio.gather(
                *(connect_socket(url) for _ in range(20)), return_exceptions=True
            )
            refused = [x for x in herd if isinstance(x, InvalidStatus)]
            let_in = [x for x in herd if isinstance(x, ClientConnection)]
            assert len(refused) + len(let_in) == 20 and 5 <= len(let_in) < 20
            for one in refused:
                assert one.response.status_code == 503
                assert int(one.response.headers["Retry-After"]) >= 1
            for connection in let_in:
                assert await connection.recv()
                await connection.close()

    on_uvloop(case)


def test_handshakes_that_are_wrong_keep_nobody_out(tmp_path: Path) -> None:
    async def case() -> None:
        access = Access(admissions_per_s=1, admissions_burst=5)
        async with serving(tmp_path, access) as (_, server, url):
            wrong = UPGRADE.replace(b"Version: 13", b"Version: 12")
            for _ in range(20):
                assert (await exchanged(server, wrong)).startswith(b"HTTP/1.1 400")
            async with connect_socket(url) as connection:
                assert await connection.recv()

    on_uvloop(case)


class Remote(asyncio.Transport):
    """Of a peer elsewhere, which says nothing."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 4_711)})
        self.is_cut_off = False

    def abort(self) -> None:
        self.is_cut_off = True


def listener(access: Access) -> Listener:
    """One that nobody can reach, at a standstill."""

    def unused(*_args: Any) -> Any:
        raise AssertionError

    return Listener(unused, unused, DEFAULT_LIMITS, Counts(lambda: 0, defaultdict(int)), access)


def test_one_address_is_let_in_at_most_at_its_share_of_the_rate() -> None:
    here = listener(Access(admissions_per_s=20, admissions_burst=40))

    def let_in(address: str) -> int:
        return [here.admits(address) for _ in range(100)].count(0)

    share = 40 // ADMISSIONS_SHARE
    assert let_in("192.0.2.1") == let_in("2001:db8::1") == share
    assert let_in("::ffff:192.0.2.1") == let_in("2001:db8::2") == 0, "the same ones"
    assert let_in("127.0.0.1") == 40 - 2 * share, "all that is left: a proxy speaks for many"
    assert here.admits("192.0.2.2")
    here.gives_back()
    assert not here.admits("192.0.2.2")


def test_connections_of_ipv6_are_counted_by_their_network() -> None:
    here = listener(Access(connections_per_address=1))
    peers = [Remote(x) for x in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1")]
    connections = [Connection(here) for _ in peers]
    for connection, peer in zip(connections, peers, strict=True):
        connection.connection_made(peer)
    assert [peer.is_cut_off for peer in peers] == [False, False, True, False]
    assert connections[1].address == "2001:db8::2"
    assert not here.joins(connections[0]) and here.joins(connections[1])
    here.leaves(connections[0])
    connections[0].connection_lost(None)
    assert not here.joins(connections[1]) and not here.joins(connections[3])
    late = Remote("2001:db8::4")
    Connection(here).connection_made(late)
    assert not late.is_cut_off


# --- peers that do harm --------------------------------------------------------------------------
def test_more_frames_at_once_than_are_heard_in_one_go_are_all_answered(tmp_path: Path) -> None:
    async def case() -> None:
        count = 4 * FRAMES_AT_ONCE + 1
        async with serving(tmp_path) as (_, server, url), await connect(url) as other:
            reader, writer = await upgraded(server)
            writer.write(b"".join(masked(m.Ping(n)) for n in range(1, count + 1)))
            told = [await message_of(reader) for _ in range(count)]
            assert [pong["id"] for pong in told] == list(range(1, count + 1))
            assert (await other.ping()).time_us > 0
            writer.close()

    on_uvloop(case)


def test_peers_that_vanish_in_mid_commit_under_load_stall_nobody(tmp_path: Path) -> None:
    """On uvloop a write to a socket that is gone raises; it must not reach who releases acks."""

    async def trade(server: GatewayServer, number: int) -> None:
        _, writer = await logged_in(server)
        for order in range(20):
            client_id = 1 + 20 * number + order
            writer.write(masked(m.New(2 + order, TICKER, "buy", "1", "1", client_id=client_id)))
        await asyncio.sleep(0)
        writer.transport.abort()

    async def case() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        async with serving(tmp_path) as (exchange, server, url):
            async with await connect(url, BUYER) as steady:
                acks = asyncio.gather(
                    *(steady.place(TICKER, "buy", "1", "1", client_id=10_000 + n)
                      for n in range(300))
                )  # fmt: skip
                for _ in range(5):
                    await asyncio.gather(*(trade(server, number) for number in range(40)))
                assert len({ack.order_id for ack in await acks}) == 300
                assert (await steady.ping()).time_us > 0
            await exchange.port.settled()
            assert len(exchange.desk.pending) == 0 and exchange.port.ready().stopped == ""
        assert failures == []

    on_uvloop(case)


def test_a_peer_that_does_not_answer_pings_is_closed_and_one_that_does_is_not(
    tmp_path: Path,
) -> None:
    async def case() -> None:
        async with serving(tmp_path, tick_s=FAST_TICK_S) as (_, server, _url):
            silent, silent_writer = await upgraded(server)
            reader, writer = await upgraded(server)
            pings = 0
            while pings < 4:
                opcode, _ = await frame_of(reader)
                if opcode == PING:
                    pings += 1
                    writer.write(frame(FIN | PONG, b"", b"abcd"))
            ended: list[tuple[int, bytes]] = []
            while not silent.at_eof():
                ended.append(await frame_of(silent))
            assert int.from_bytes(ended[-1][1][:2], "big") == CloseCode.INTERNAL_ERROR
            assert ended[-1][1][2:] == b"no answer to a ping"
            silent_writer.close()
            writer.close()

    on_uvloop(case)


def test_a_reader_too_far_behind_is_told_so_or_cut_off_if_it_never_reads(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS, outbound_bytes=100_000, requests_per_s=10**9, requests_burst=10**9
    )
    question = masked(m.Query(1, "markets"))

    async def behind(
        server: GatewayServer,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that asks without reading what it is told, until it is closed."""
        closed = server.traffic().slow_readers_closed
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(server.address)
        raw.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=raw, limit=1)
        writer.write(UPGRADE)
        while server.traffic().slow_readers_closed == closed:
            writer.write(question * 20)
            await asyncio.sleep(0)
        return reader, writer

    async def case() -> None:
        async with (
            serving(tmp_path, limits=limits) as (_, server, url),
            await connect(url) as other,
        ):
            reader, writer = await behind(server)
            assert (await other.ping()).time_us > 0
            told = await reader.read()  # what was written before, whole frames, then the reason
            assert told.endswith(b"\x88\x17\x0f\xa1too many unread bytes")
            writer.close()
        async with (
            serving(tmp_path / "cut", limits=limits, tick_s=FAST_TICK_S) as (_, server, url),
            await connect(url) as other,
        ):
            _, writer = await behind(server)
            while server.traffic().websockets + server.traffic().plain_connections > 1:
                assert (await other.ping()).time_us > 0
            writer.close()

    on_uvloop(case)


# --- the end -------------------------------------------------------------------------------------
def test_a_node_that_ends_says_so_answers_what_it_took_and_refuses_the_rest(
    tmp_path: Path,
) -> None:
    async def case() -> None:
        async with serving(tmp_path) as (exchange, server, _url):
            reader, writer = await logged_in(server)
            taken = [masked(m.New(n, TICKER, "buy", "1", "1")) for n in range(2, 102)]
            writer.write(b"".join(taken))
            while len(exchange.desk.pending) < 10:  # noqa: ASYNC110
                await asyncio.sleep(0)
            ending = asyncio.create_task(server.stop())
            told: list[tuple[int, bytes]] = []
            while not told or told[-1][0] != 8:
                told.append(await frame_of(reader))
                if b'"closing"' in told[-1][1]:
                    writer.write(masked(m.Ping(500)))
            writer.close()
            await ending
            assert int.from_bytes(told[-1][1][:2], "big") == CloseCode.GOING_AWAY
            messages = [json.loads(payload) for opcode, payload in told if opcode == TEXT]
            [closing] = [x for x in messages if x["t"] == "closing"]
            assert closing["retry_ms"] > 0 and closing["reason"]
            replies = {x["id"]: x for x in messages if x["t"] in {"ack", "reject"}}
            acked = {number for number, x in replies.items() if x["t"] == "ack"}
            refused = {x["code"] for x in replies.values() if x["t"] == "reject"}
            assert len(acked) >= 10 and refused <= {Reject.DRAINING}
            assert replies.keys() >= set(range(2, 102)), "what was read has its one answer"

    on_uvloop(case)


def test_what_waits_for_a_file_is_answered_before_the_end(tmp_path: Path) -> None:
    async def case() -> None:
        keys = Keys(tmp_path / "keys.sqlite3")
        async with (
            running_exchange(tmp_path, keys=keys) as exchange,
            running_server(exchange) as (server, url),
        ):
            await exchange.open_account(2, cash_usdc6=10**12)
            client = await connect(url, BUYER, session=1)
            terms = SessionKey(
                BUYER.address_bytes, wallet(9).address_bytes, 1, (), 0, START_NS // 10**9 + 9, 1
            )
            proof = BUYER.sign_session_key(DOMAIN, terms)
            files = [sqlite3.connect(tmp_path / f"{x}.sqlite3") for x in ("history", "keys")]
            for file in files:
                file.execute("BEGIN IMMEDIATE")  # somebody makes a copy of it
            asked = asyncio.gather(
                client.cancel_on_disconnect(1_000),
                client.kept_fills(),
                client.send_authorisation(terms, proof),
            )
            while not exchange.desk.counts.received[m.Authorise]:  # noqa: ASYNC110
                await asyncio.sleep(0)
            ending = asyncio.create_task(server.stop())
            await asyncio.sleep(0.1)
            for file in files:
                file.rollback()
                file.close()
            armed, fills, authorised = await asked
            assert armed.armed and fills == [] and authorised.level == "durable"
            await ending
            await client.close()
        await keys.close()

    on_uvloop(case)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this host, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("NO OPENSSL: nothing makes a certificate, TLS is not tried")
    directory = tmp_path_factory.mktemp("certified")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_with_a_certificate_the_port_speaks_tls(
    tmp_path: Path, certified: tuple[Path, Path]
) -> None:
    certificate, key = certified

    async def case() -> None:
        access = Access(tls_certificate=str(certificate), tls_key=str(key))
        trusting = ssl.create_default_context(cafile=certificate)
        async with serving(tmp_path, access) as (_, server, url):
            secure = url.replace("ws://", "wss://")
            async with connect_socket(secure, ssl=trusting) as connection:
                assert await connection.recv()
                await connection.send('{"t":"ping","id":3}')
                assert json.loads(await connection.recv())["id"] == 3
            reader, writer = await asyncio.open_connection(*server.address, ssl=trusting)
            writer.write(LIVE)
            assert (await reader.read()).endswith(b'{"live":true}')
            writer.close()
            assert await hello_and_request_at_once(server, trusting)
            assert not (await exchanged(server, LIVE)).startswith(b"HTTP"), "in the clear nothing"

    on_uvloop(case)


async def hello_and_request_at_once(server: GatewayServer, trusting: ssl.SSLContext) -> bool:
    """A request in one write with the end of the handshake is answered."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.address)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(1 << 16))
    tls.write(LIVE)
    writer.write(outgoing.read())
    answer = b""
    while not answer.endswith(b'{"live":true}'):
        incoming.write(await reader.read(1 << 16))
        with contextlib.suppress(ssl.SSLWantReadError):
            answer += tls.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def test_who_has_not_shaken_hands_for_tls_is_counted_and_not_waited_for(
    tmp_path: Path, certified: tuple[Path, Path]
) -> None:
    certificate, key = certified
    access = Access(tls_certificate=str(certificate), tls_key=str(key), connections_per_address=2)

    async def counted(server: GatewayServer, connections: int) -> None:
        while server.traffic().plain_connections != connections:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def case() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        async with serving(tmp_path, access) as (_, server, _url):
            silent = [await asyncio.open_connection(*server.address) for _ in range(4)]
            try:
                await counted(server, 4)
                with contextlib.suppress(ConnectionError):
                    assert await exchanged(server, b"") == b"", "cut off: one too many"
                silent[0][1].close()
                await counted(server, 3)
                silent[1][1].write(b"GET / HTTP/1.1\r\n\r\n")
                await counted(server, 2)
                silent[2][1].transport.abort()
                await counted(server, 1)
            finally:  # uvloop does not end with a handshake that nobody counts
                for _, writer in silent:
                    writer.close()
        async with serving(tmp_path / "slow", access, tick_s=FAST_TICK_S) as (_, server, _url):
            slow = asyncio.create_task(exchanged(server, b"\x16\x03\x01"))
            await counted(server, 1)
            await counted(server, 0)
            with contextlib.suppress(ConnectionError):
                assert await slow == b""
        async with serving(tmp_path / "end", access) as (_, server, _url):
            reader, writer = await asyncio.open_connection(*server.address)
            await counted(server, 1)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b"", "the end of the node is its end as well"
        writer.close()
        assert failures == []

    on_uvloop(case)


def test_a_node_ends_just_as_somebody_comes_by_tls(
    tmp_path: Path, certified: tuple[Path, Path]
) -> None:
    certificate, key = certified

    async def case() -> None:
        here = listener(Access(tls_certificate=str(certificate), tls_key=str(key)))
        await here.start("127.0.0.1", 0)
        ours, theirs = socket.socketpair()
        here.secure(ours, "192.0.2.1")  # its handshake has not begun when all are to end
        assert here.traffic().plain_connections == 1
        here.stop_listening()
        async with asyncio.timeout(PATIENCE_S / 3):
            await here.close(CloseCode.GOING_AWAY, "the end")
        assert not here.traffic().plain_connections
        assert theirs.recv(1) == b"", "and its socket is closed"
        theirs.close()

    on_uvloop(case)


def test_a_certificate_that_is_none_is_named_at_the_start(tmp_path: Path) -> None:
    async def case() -> None:
        access = Access(tls_certificate=str(tmp_path / "none.pem"))
        with pytest.raises(OSError, match=r"none\.pem"):
            async with serving(tmp_path, access):
                pass

    on_uvloop(case)
