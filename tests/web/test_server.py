"""The real server on loopback: two clients trade, and nobody can spoil it for another."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from compex_client import Client, Disconnected, Rejected, connect
from compex_client import messages as m
from compex_client.book import Book
from compex_client.messages import CloseCode
from compex_client.reads import Settling
from compex_client.streams import BookStream
from compex_client.units import parse_qty, qty_text
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed

from engine.records import Command, CommandKind
from engine.rejects import Reject
from gateway.health import Health
from gateway.limits import DEFAULT_LIMITS
from gateway.server import GatewayServer
from tests.disks import FailingDisk
from tests.exchange import (
    DOMAIN,
    START_NS,
    SYMBOL,
    TICKER,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)

SELLER, BUYER = wallet(101), wallet(102)
TOLD_S = 10.0
HALTED = "nv.h100-sxm-80g.x8.ib|us-w|B|SPOT"


class Node(NamedTuple):
    exchange: Exchange
    server: GatewayServer
    url: str


@pytest.fixture
async def node(tmp_path: Path) -> AsyncGenerator[Node]:
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (server, url):
        await exchange.list_market()
        await exchange.open_account(1, bond_usdc6=10**9)
        await exchange.open_account(2, cash_usdc6=10**9)
        yield Node(exchange, server, url)


async def get(node: Node, path: str, raw: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one plain HTTP request."""
    reader, writer = await asyncio.open_connection(*node.server.address)
    writer.write(raw or f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


async def hello_of(connection: ClientConnection) -> m.Hello:
    return msgspec.json.decode(await connection.recv(), type=m.Hello)


async def say(connection: ClientConnection, frame: str | dict[str, Any]) -> dict[str, Any]:
    await connection.send(frame if isinstance(frame, str) else json.dumps(frame))
    return json.loads(await connection.recv())


async def test_two_clients_trade_and_each_hears_its_part(node: Node) -> None:
    async with await connect(node.url, SELLER) as seller, await connect(node.url, BUYER) as buyer:
        assert (seller.account, buyer.account) == (1, 2)
        book, trades = await buyer.book(SYMBOL), await buyer.trades(SYMBOL)
        sold, bought = await seller.fills(), await buyer.fills()
        money = await buyer.balance_updates()
        await seller.declare_capacity(TICKER, 100)
        ask = await seller.place(TICKER, "sell", "2.4150", "16", client_id=5)
        assert (await anext(book)).market == TICKER
        while not book.book.asks:
            await anext(book)
        assert book.book.asks == [(24_150, 1_600)]
        await buyer.place(TICKER, "buy", "2.5", "4", tif="ioc")
        assert (await anext(trades)).price == "2.4150"
        mine, theirs = await anext(sold), await anext(bought)
        assert (mine.order_id, mine.client_id, mine.left) == (ask.order_id, 5, "12")
        assert (mine.liquidity, theirs.liquidity, theirs.left) == ("maker", "taker", "0")
        assert mine.trade_id == theirs.trade_id
        assert (await anext(money)).balances.pending == "9.66"
        assert [x.left for x in await seller.open_orders()] == ["12"]
        assert (await seller.cancel_all()).count == 1
        assert (await buyer.balances()).free == "990.34"
        assert [x.symbol for x in await buyer.markets()] == [SYMBOL]
        assert (await buyer.withdraw("0.34")).withdrawal_id
        assert (await buyer.order(theirs.order_id)).state == "filled"
        assert (await buyer.ping()).time_us > 0
        assert book.resyncs == 0


@pytest.mark.parametrize(
    ("terms", "fills", "state"),
    [
        ({"price": "2.5"}, ["4", "4"], "open"),
        ({"price": "2.5", "tif": "ioc"}, ["4", "4"], "cancelled"),
        ({"price": "2.6", "tif": "fok"}, ["4", "4", "4"], "filled"),
        ({"price": "2.5", "expires_s": START_NS // 10**9 + 60}, ["4", "4"], "open"),
        ({"type": "market", "protection": "0"}, ["4"], "cancelled"),
        ({"type": "market", "protection": "0.1"}, ["4", "4"], "cancelled"),
        ({"type": "market", "protection": "0.2", "tif": "fok"}, ["4", "4", "4"], "filled"),
        ({"price": "2.5", "min_qty": "8"}, ["4", "4"], "open"),
        ({"price": "2.5", "display_qty": "1"}, ["4", "4"], "open"),
    ],
    ids=str,
)
async def test_an_order_of_each_type_trades(
    node: Node, terms: dict[str, Any], fills: list[str], state: m.OrderState
) -> None:
    async with await connect(node.url, SELLER) as seller, await connect(node.url, BUYER) as buyer:
        await seller.declare_capacity(TICKER, 100)
        for price in ("2.4", "2.5", "2.6"):
            await seller.place(TICKER, "sell", price, "4", display_qty="3")
        bought = await buyer.fills()
        ack = await buyer.place(TICKER, "buy", qty="12", **terms)
        order = await buyer.order(ack.order_id)
        assert (order.state, ack.price) == (state, order.price)
        heard: list[m.Fill] = []
        while sum(parse_qty(x.qty) for x in heard) < sum(map(parse_qty, fills)):
            heard.append(await anext(bought))
        prices = [x.price for x in heard]
        assert prices == sorted(prices) and len(set(prices)) == len(fills)
        assert heard[-1].left == qty_text(1_200 - sum(map(parse_qty, fills)))


async def shows(book: BookStream[Book], bids: list[tuple[int, int]]) -> None:
    async with asyncio.timeout(TOLD_S):
        while book.book.bids != bids:
            await anext(book)


async def test_an_order_is_amended_refilled_and_expires(node: Node) -> None:
    async with await connect(node.url, SELLER) as seller, await connect(node.url, BUYER) as buyer:
        await seller.declare_capacity(TICKER, 100)
        updates, book = await buyer.order_updates(), await buyer.book(TICKER)
        expires_s = START_NS // 10**9 + 60
        placed = await buyer.place(
            TICKER, "buy", "2.4", "12", client_id=7, expires_s=expires_s, display_qty="4"
        )
        await shows(book, [(24_000, 400)])
        amended = await buyer.amend(client_id=7, price="2.5", qty="10")
        assert (amended.order_id, amended.lost_place) == (placed.order_id, True)
        await seller.place(TICKER, "sell", "2.5", "5", tif="ioc")
        assert [x.shown for x in await buyer.open_orders()] == ["3"]
        await shows(book, [(25_000, 300)])
        node.exchange.clock.advance_to(expires_s * 10**9)
        with pytest.raises(Rejected) as caught:
            await seller.place(TICKER, "sell", "2.5", "1", tif="fok")
        assert caught.value.code == Reject.FOK_NOT_FILLABLE
        told = [await anext(updates) for _ in range(6)]
        assert [x.reason for x in told] == [
            "", "CONCEALED", "AMENDED", "CONCEALED", "REFRESHED", "EXPIRED",
        ]  # fmt: skip
        await shows(book, [])
        assert book.resyncs == 0


async def test_one_side_is_cancelled_and_the_other_stands(node: Node) -> None:
    async with await connect(node.url, SELLER) as seller:
        await seller.declare_capacity(TICKER, 100)
        await seller.place(TICKER, "sell", "2.5", "4")
        assert (await seller.cancel_all(TICKER, "buy")).count == 0
        assert (await seller.cancel_all(side="sell")).count == 1


async def test_a_thousand_orders_at_once_get_a_reply_each(node: Node) -> None:
    async with await connect(node.url, BUYER) as buyer:
        acks = await asyncio.gather(
            *(buyer.place(TICKER, "buy", "0.0001", "0.01", client_id=n) for n in range(1, 1_001))
        )
        assert [ack.client_id for ack in acks] == list(range(1, 1_001))
        assert len({ack.order_id for ack in acks}) == 1_000
        assert len(await buyer.open_orders()) == 1_000


async def test_an_order_survives_its_connection_and_is_found_by_its_client_id(node: Node) -> None:
    async with await connect(node.url, BUYER) as buyer:
        ack = await buyer.place(TICKER, "buy", "1", "1", client_id=7)
    async with await connect(node.url, BUYER) as buyer:
        assert (await buyer.order(client_id=7)).order_id == ack.order_id
        again = await buyer.place(TICKER, "buy", "1", "1", client_id=7)
        assert again.dup and again.order_id == ack.order_id


async def test_a_peer_that_vanishes_in_mid_commit_stalls_nobody(node: Node) -> None:
    async with await connect(node.url, SELLER) as other:
        for number in range(20):
            connection = await connect_socket(node.url, compression=None)
            hello = await hello_of(connection)
            signature = BUYER.sign_login(DOMAIN, bytes.fromhex(hello.nonce[2:]))
            login = m.Login(1, BUYER.address, hello.nonce, signature.hex())
            await connection.send(msgspec.json.encode(login), text=True)
            await connection.recv()
            order = m.New(2, TICKER, "buy", "1", "1", client_id=100 + number)
            await connection.send(msgspec.json.encode(order), text=True)
            connection.transport.abort()
        assert (await other.ping()).time_us > 0
        await other.declare_capacity(TICKER, "1")
    async with await connect(node.url, BUYER) as buyer:
        for order in await buyer.open_orders():
            assert order.qty == "1"


async def test_a_wrong_signature_is_refused_with_what_was_checked(node: Node) -> None:
    async with connect_socket(node.url, compression=None) as connection:
        hello = await hello_of(connection)
        signature = SELLER.sign_login(DOMAIN, bytes.fromhex(hello.nonce[2:])).hex()
        login = {"t": "login", "id": 1, "wallet": BUYER.address, "nonce": hello.nonce}
        reject = await say(connection, {**login, "signature": signature})
        assert (reject["code"], reject["reason"]) == (1008, "WRONG_WALLET")
        # The digest binds the claimed wallet, so the signer of another claim is nobody we know.
        assert len(reject["recovered"]) == 42 and len(reject["digest"]) == 66
        replayed = await say(connection, {**login, "id": 2, "signature": signature})
        assert (replayed["code"], replayed["reason"]) == (1007, "NONCE_REPLAYED")
        garbage = {**login, "id": 3, "nonce": replayed["nonce"], "signature": "00"}
        assert (await say(connection, garbage))["code"] == 1006
        orders = {"t": "query", "id": 4, "what": "orders"}
        assert (await say(connection, orders))["code"] == 1004


ORDER: dict[str, Any] = {"t": "new", "market": TICKER, "side": "buy", "price": "1", "qty": "1"}
MARKET_ORDER: dict[str, Any] = {
    "t": "new", "market": TICKER, "side": "buy", "qty": "1", "type": "market",
    "protection": "0.05", "tif": "ioc",
}  # fmt: skip
BAD_INPUT: list[tuple[str | dict[str, Any], Reject]] = [
    ("{", Reject.MALFORMED_FRAME),
    ("", Reject.MALFORMED_FRAME),
    ("[1,2]", Reject.MALFORMED_FRAME),
    ({"t": "shout"}, Reject.UNKNOWN_MESSAGE),
    ({**ORDER, "market": "NOSUCH"}, Reject.UNKNOWN_INSTRUMENT),
    ({**ORDER, "price": "0"}, Reject.PRICE_OUT_OF_RANGE),
    ({**ORDER, "price": "-2"}, Reject.PRICE_OUT_OF_RANGE),
    ({**ORDER, "price": "1677.7216"}, Reject.PRICE_OUT_OF_RANGE),
    ({**ORDER, "price": "1.00005"}, Reject.PRICE_NOT_ON_TICK),
    ({**ORDER, "price": 1.5}, Reject.INVALID_FIELD),
    ({**ORDER, "qty": "0"}, Reject.QTY_OUT_OF_RANGE),
    ({**ORDER, "qty": "-1"}, Reject.QTY_OUT_OF_RANGE),
    ({**ORDER, "qty": "10000000.01"}, Reject.QTY_OUT_OF_RANGE),
    ({**ORDER, "qty": "1.005"}, Reject.QTY_NOT_A_MULTIPLE),
    ({**ORDER, "price": "2", "client_id": 9}, Reject.CLIENT_ID_REUSED),
    ({**ORDER, "qty": "9999"}, Reject.INSUFFICIENT_BALANCE),
    ({**ORDER, "side": "sell"}, Reject.INSUFFICIENT_CAPACITY),
    ({**ORDER, "post_only": True, "tif": "ioc"}, Reject.CONFLICTING_FLAGS),
    ({**ORDER, "type": "market"}, Reject.INVALID_FIELD),
    ({**ORDER, "protection": "1"}, Reject.INVALID_FIELD),
    ({**ORDER, "tif": "gtt"}, Reject.INVALID_TERMS),
    ({**ORDER, "tif": "gtt", "expires_s": 1}, Reject.INVALID_TERMS),
    ({**ORDER, "min_qty": "2"}, Reject.INVALID_TERMS),
    ({**ORDER, "min_qty": "1"}, Reject.MINIMUM_NOT_FILLABLE),
    ({**ORDER, "display_qty": "0"}, Reject.QTY_OUT_OF_RANGE),
    ({**MARKET_ORDER, "tif": "gtc"}, Reject.CONFLICTING_FLAGS),
    (MARKET_ORDER, Reject.NOTHING_TO_TRADE_WITH),
    ({"t": "amend", "order_id": 424242, "qty": "1"}, Reject.UNKNOWN_ORDER),
    ({"t": "amend", "client_id": 9}, Reject.INVALID_FIELD),
    ({"t": "amend", "client_id": 9, "qty": "9999"}, Reject.INSUFFICIENT_BALANCE),
    ({"t": "amend", "client_id": 9, "price": "1677.7215"}, Reject.PRICE_OUT_OF_RANGE),
    ({"t": "cancel_all", "side": "both"}, Reject.INVALID_FIELD),
    ({**ORDER, "market": HALTED}, Reject.MARKET_HALTED),
    ({"t": "cancel", "order_id": 424242}, Reject.UNKNOWN_ORDER),
    ({"t": "withdraw", "amount": "1000000"}, Reject.INSUFFICIENT_BALANCE),
    ({"t": "subscribe", "channel": "gossip"}, Reject.UNKNOWN_CHANNEL),
    ({"t": "market", "action": "halt", "market": TICKER}, Reject.NOT_ADMINISTRATOR),
]


async def test_bad_input_is_refused_by_number_and_the_connection_kept(node: Node) -> None:
    halted = await node.exchange.list_market(HALTED)
    node.exchange.port.submit(Command(kind=CommandKind.HALT_MARKET, instrument=halted))
    async with connect_socket(node.url, compression=None) as connection:
        hello = await hello_of(connection)
        signature = BUYER.sign_login(DOMAIN, bytes.fromhex(hello.nonce[2:])).hex()
        login = m.Login(1, BUYER.address, hello.nonce, signature)
        assert (await say(connection, msgspec.json.encode(login).decode()))["account"] == 2
        assert (await say(connection, {**ORDER, "id": 2, "client_id": 9}))["t"] == "ack"
        before = node.exchange.port.balances(2), node.exchange.desk.feed.open_orders(2)
        for number, (bad, expected) in enumerate(BAD_INPUT, 10):
            frame = {**bad, "id": number} if isinstance(bad, dict) else bad
            reply = await say(connection, frame)
            assert (reply["t"], reply["code"]) == ("reject", expected.value), frame
            assert reply["reason"] == expected.name and reply["message"]
            assert reply["id"] == (number if isinstance(frame, dict) else 0)
            after = node.exchange.port.balances(2), node.exchange.desk.feed.open_orders(2)
            assert after == before
        assert (await say(connection, {"t": "ping", "id": 99}))["t"] == "pong"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("x" * (DEFAULT_LIMITS.frame_bytes + 1), CloseCode.FRAME_TOO_LARGE),
        (b"binary", CloseCode.BINARY_FRAME),
    ],
    ids=["oversized", "binary"],
)
async def test_a_broken_protocol_is_closed_with_a_documented_code(
    node: Node, frame: str | bytes, code: CloseCode
) -> None:
    async with connect_socket(node.url, compression=None) as connection:
        await hello_of(connection)
        await connection.send(frame)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == code and connection.close_reason


async def test_invalid_utf8_is_closed_with_1007(node: Node) -> None:
    async with connect_socket(node.url, compression=None) as connection:
        await hello_of(connection)
        await connection.send(b'{"t":"p\xff"}', text=True)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == CloseCode.INVALID_UTF8


async def test_a_slow_reader_is_closed_with_the_reason_and_others_are_not(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS, outbound_bytes=100_000, requests_per_s=100_000, requests_burst=100_000
    )
    async with (
        running_exchange(tmp_path, limits) as exchange,
        running_server(exchange) as (server, url),
    ):
        await exchange.list_market()
        await exchange.open_account(2, cash_usdc6=10**9)
        slow = await _stalled(url)
        async with await connect(url, BUYER) as buyer:
            book = await buyer.book(TICKER)
            for number in range(100):
                if server.traffic().slow_readers_closed:
                    break
                await asyncio.gather(
                    *(
                        buyer.place(TICKER, "buy", f"0.{1 + (number * 100 + n) % 5000:04d}", "1")
                        for n in range(100)
                    )
                )
                await buyer.cancel_all()
            assert server.traffic().slow_readers_closed == 1
            slow.transport.resume_reading()
            assert book.resyncs == 0
            assert (await buyer.ping()).time_us > 0
        with pytest.raises(ConnectionClosed):  # what waited is delivered, then the reason
            await _read_to_the_end(slow)
        assert (slow.close_code, slow.close_reason) == (4001, "too many unread bytes")


async def _read_to_the_end(connection: ClientConnection) -> None:
    while True:
        await connection.recv()


async def _stalled(url: str) -> ClientConnection:
    """A subscriber that shakes hands and then reads nothing more."""
    host, port = url.removeprefix("ws://").removesuffix("/ws").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.setblocking(False)
    connection = await connect_socket(url, sock=raw, compression=None, max_queue=1)
    await hello_of(connection)
    await say(connection, {"t": "subscribe", "id": 1, "channel": "book", "market": TICKER})
    connection.transport.pause_reading()
    return connection


async def test_live_and_ready_say_how_the_node_is(node: Node) -> None:
    status, headers, body = await get(node, "/live")
    assert (status, json.loads(body)) == (200, {"live": True})
    assert headers["content-type"] == "application/json"
    status, _, body = await get(node, "/ready")
    ready = json.loads(body)
    assert status == 200 and ready["ready"] and ready["stopped"] == ""
    assert ready["last_sequence"] == ready["durable_sequence"] > 0
    assert ready["role"] == "standalone"


async def test_a_stopped_engine_is_alive_and_not_ready(node: Node) -> None:
    await node.exchange.stop()
    assert (await get(node, "/live"))[0] == 200
    status, _, body = await get(node, "/ready")
    assert status == 503 and json.loads(body)["stopped"] == "closed"


async def test_what_was_in_flight_when_the_disk_failed_ends_with_its_connection(
    tmp_path: Path,
) -> None:
    """Nobody knows what became of it, so it is neither acked nor refused."""
    disk = FailingDisk()
    async with running_exchange(tmp_path, disk=disk) as exchange, running_server(exchange) as at:
        await exchange.list_market()
        buyer = await exchange.open_account(1, cash_usdc6=10**9)
        client = await connect(at[1], buyer)
        disk.fail_at = ("sync", 0)
        with pytest.raises(Disconnected) as ended:
            async with asyncio.timeout(20):
                await client.place(TICKER, "buy", "1", "1")
        assert ended.value.code == CloseCode.INTERNAL_ERROR
        assert "the exchange has stopped" in ended.value.reason
        await client.close()


async def test_ready_is_false_while_only_cancels_are_taken(node: Node) -> None:
    node.exchange.port.subscribe(lambda batch: None, has_room=lambda: False)
    status, _, body = await get(node, "/ready")
    assert (status, json.loads(body)["has_room"]) == (503, False)


async def test_what_settlement_says_is_part_of_ready(node: Node) -> None:
    health = Health(node.exchange.port, lambda: Settling(waiting="a fee"), role="primary")
    ready = health.ready()
    assert (ready.settlement, ready.role) == (Settling(waiting="a fee"), "primary")


async def test_the_market_list_is_served(node: Node) -> None:
    status, _, body = await get(node, "/markets")
    [market] = json.loads(body)
    assert (status, market["market"], market["symbol"]) == (200, TICKER, SYMBOL)


async def test_static_files_come_from_the_web_root_and_nowhere_else(tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "index.html").write_text("<p>page")
    (web / "app.js").write_text("1")
    (web / "notes.txt").write_text("not a web file")
    (tmp_path / "secret.js").write_text("secret")
    (web / "link.js").symlink_to(tmp_path / "secret.js")
    async with running_exchange(tmp_path / "data") as exchange:
        server = GatewayServer(exchange.desk, Health(exchange.port), web_root=web)
        await server.start()
        node = Node(exchange, server, "")
        status, headers, body = await get(node, "/")
        assert (status, body) == (200, b"<p>page")
        assert headers["content-type"].startswith("text/html")
        assert (await get(node, "/static/app.js?v=1"))[2] == b"1"
        for path in ("/static/../secret.js", "/static//etc/passwd", "/static/link.js", "/x",
                     "/static/notes.txt", "/static/", "/static/%2e%2e/secret.js",
                     "/static/\0.js"):  # fmt: skip
            status, _, body = await get(node, path)
            assert status in {400, 404} and b"secret" not in body, path
        await server.stop()


@pytest.mark.parametrize(
    "raw",
    [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /ws HTTP/1.1\r\nHost: x\r\n\r\n",
     b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", b"G" * 100_000],
)  # fmt: skip
async def test_bytes_that_are_no_request_end_their_connection_only(node: Node, raw: bytes) -> None:
    async with await connect(node.url) as other:
        reader, writer = await asyncio.open_connection(*node.server.address)
        writer.write(raw)
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or answer.split()[1].startswith(b"4")
        writer.close()
        assert (await other.ping()).time_us > 0


async def test_stopping_closes_connections_with_going_away(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        async with running_server(exchange) as (_, url):
            client = await connect(url)
            trades = await client.trades()
        with pytest.raises(Disconnected) as caught:
            await anext(trades)
        assert caught.value.code == CloseCode.GOING_AWAY
        await client.close()


async def test_the_client_raises_the_number_it_is_refused_with(node: Node) -> None:
    async with await connect(node.url, BUYER) as buyer:
        with pytest.raises(Rejected) as caught:
            await buyer.place(TICKER, "buy", "1", "1000000")
        assert (caught.value.code, caught.value.reason) == (3002, "INSUFFICIENT_BALANCE")
        with pytest.raises(Rejected) as caught:
            await buyer.place(TICKER, "buy", "0", "1")
        assert (caught.value.code, caught.value.field) == (2001, "price")


async def test_a_public_reader_needs_no_wallet(node: Node) -> None:
    client: Client = await connect(node.url)
    async with client:
        assert client.account == 0 and len(await client.markets()) == 1
        assert (await client.book(TICKER)).book.bids == []
        with pytest.raises(Rejected) as caught:
            await client.balances()
        assert caught.value.code == Reject.NOT_LOGGED_IN
