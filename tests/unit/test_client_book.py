"""The client's mirror of a book: exact, or mended at once."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from struct import pack
from typing import Any

import msgspec
import numpy as np
import pytest
from compex_client import (
    Disconnected,
    Rejected,
    Resuming,
    StreamOverflow,
    Terms,
    Wallet,
    connect,
    errors,
)
from compex_client import messages as m
from compex_client.book import Book, checksum
from compex_client.client import REQUESTS_IN_FLIGHT_MAX
from compex_client.errors import BookOutOfStep, CompexClientError, ProtocolViolation
from compex_client.order_book import OrderBook
from compex_client.streams import Stream
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.limits import DEFAULT_LIMITS

BALANCES = m.Balances(*["0"] * 8)
SOON_S = 10.0  # what hangs has failed
levels = st.dictionaries(st.integers(1, 60), st.integers(0, 5), max_size=40)


def text(side: dict[int, int]) -> list[m.Level]:
    return [(f"0.{price:04d}", str(lots)) for price, lots in side.items()]


@given(levels, levels, levels, levels)
def test_a_book_is_what_its_messages_say(
    bids: dict[int, int], asks: dict[int, int], more_bids: dict[int, int], more_asks: dict[int, int]
) -> None:
    """Asks lie above all bids; the expectation is a plain dict sorted anew each time."""
    book = Book("X")
    expected: list[dict[int, int]] = [{}, {}]
    for seq, (some_bids, some_asks) in enumerate([(bids, asks), (more_bids, more_asks)]):
        changes = [some_bids, {price + 100: lots for price, lots in some_asks.items()}]
        for side, change in zip(expected, changes, strict=True):
            side.update({price: lots * 100 for price, lots in change.items()})
            for price in [p for p, lots in side.items() if lots == 0]:
                del side[price]
        want_bids = sorted(expected[0].items(), reverse=True)
        want_asks = sorted(expected[1].items())
        crc = checksum(want_bids, want_asks)
        if seq == 0:
            whole = [text({p: q // 100 for p, q in side.items()}) for side in expected]
            book.apply_snapshot(m.BookSnapshot("X", 5, whole[0], whole[1], crc))
        else:
            deltas = [text(change) for change in changes]
            book.apply_delta(m.BookDelta("X", 5, 9, deltas[0], deltas[1], crc, 0))
        assert (book.bids, book.asks) == (want_bids, want_asks)
        assert book.best("buy") == (want_bids[0] if want_bids else None)
        book.check_invariants()
    assert book.seq == 9


def test_an_order_book_keeps_its_queues_and_refuses_what_contradicts_it() -> None:
    def packed(*orders: tuple[int, int, int]) -> int:
        return zlib.crc32(b"".join(pack("<qqq", *order) for order in orders))

    def fresh() -> OrderBook:
        book = OrderBook("X")
        crc = packed((1, 24_150, 100), (2, 24_150, 200), (3, 24_200, -300))
        bids, asks = [(1, "2.415", "1"), (2, "2.415", "2")], [(3, "2.42", "3")]
        book.apply_snapshot(m.OrdersSnapshot("X", 5, bids, asks, crc))
        return book

    book = fresh()
    changes: list[m.OrderChange] = [
        ("trade", 1, "buy", "2.415", "0.4"),
        ("change", 2, "buy", "2.415", "1.5"),
        ("remove", 1, "buy", "2.415", "1"),
        ("add", 1, "buy", "2.415", "0.6"),
    ]
    crc = packed((2, 24_150, 150), (1, 24_150, 60), (3, 24_200, -300))
    book.apply_delta(m.OrdersDelta("X", 5, 7, changes, crc, 0))
    assert [(x.order_id, x.qty_lots) for x in book.orders("buy")] == [(2, 150), (1, 60)]
    assert book.levels("buy") == [(24_150, 210)] and book.seq == 7
    broken: list[tuple[int, m.OrderChange, bool]] = [
        (4, ("change", 1, "buy", "2.415", "1"), True),
        (5, ("add", 1, "buy", "2.415", "1"), True),
        (5, ("remove", 9, "buy", "2.415", "1"), True),
        (5, ("change", 1, "buy", "2.415", "0.00001"), True),
        (5, ("change", 1, "buy", "2.415", "1"), False),
    ]
    for prev, change, right in broken:
        book = fresh()
        crc = book.checksum() if right else 0
        with pytest.raises(BookOutOfStep):
            book.apply_delta(m.OrdersDelta("X", prev, 7, [change], crc, 0))


def test_the_checksum_is_over_the_bytes_the_protocol_says() -> None:
    data = pack("<qq", 24_150, 1_600) + pack("<qq", 24_100, 50) + pack("<qq", 24_200, -300)
    assert checksum([(24_150, 1_600), (24_100, 50)], [(24_200, 300)]) == zlib.crc32(data)
    assert checksum([], []) == 0


def test_the_checksum_is_over_ten_levels_of_each_side() -> None:
    ten = [(100 - i, 1) for i in range(10)]
    assert checksum([*ten, (1, 1)], []) == checksum(ten, [])
    assert checksum(ten[:9], []) != checksum(ten, [])


def test_a_gap_a_wrong_checksum_and_a_wrong_number_are_noticed() -> None:
    book = Book("X")
    crc = checksum([(10_000, 100)], [])
    snapshot = m.BookSnapshot("X", 5, [("1.0000", "1")], [], crc)
    book.apply_snapshot(snapshot)
    for delta in (
        m.BookDelta("X", 6, 7, [("1.0000", "1")], [], crc, 0),
        m.BookDelta("X", 5, 7, [("1.0000", "2")], [], crc, 0),
        m.BookDelta("X", 5, 7, [("1.00001", "1")], [], crc, 0),
        m.BookDelta("X", 5, 7, [("1.0000", "-1")], [], crc, 0),
    ):
        book.apply_snapshot(snapshot)
        with pytest.raises(BookOutOfStep):
            book.apply_delta(delta)
    with pytest.raises(BookOutOfStep):
        book.apply_snapshot(msgspec.structs.replace(snapshot, crc=crc ^ 1))


# --- the client against a server that misbehaves -----------------------------------------------
Script = Callable[[ServerConnection], Awaitable[None]]
HELLO = m.Hello(1, "0x" + "11" * 32, 1, 1, "0x" + "22" * 20, "0.0001", "0.01", "t", DEFAULT_LIMITS)
CRC = checksum([(10_000, 100)], [])


def snapshot(seq: int) -> m.BookSnapshot:
    return m.BookSnapshot("X", seq, [("1.0000", "1")], [], CRC)


def delta(prev: int, seq: int, crc: int = CRC) -> m.BookDelta:
    return m.BookDelta("X", prev, seq, [("1.0000", "1")], [], crc, 0)


async def say(connection: ServerConnection, *messages: m.ServerMessage) -> None:
    for message in messages:
        await connection.send(msgspec.json.encode(message), text=True)


async def hear(connection: ServerConnection) -> m.ClientMessage:
    return msgspec.json.decode(await connection.recv(), type=m.ClientMessage)


@asynccontextmanager
async def scripted(script: Script, hello: m.Hello = HELLO) -> AsyncGenerator[str]:
    """A server that greets, plays the script, then waits for the client to leave."""

    async def converse(connection: ServerConnection) -> None:
        await say(connection, hello)
        await script(connection)
        await connection.wait_closed()

    async with serve(converse, "127.0.0.1", 0, compression=None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        yield f"ws://{host}:{port}/ws"


@pytest.mark.parametrize("broken", [delta(6, 7), delta(5, 7, crc=CRC ^ 1)], ids=["gap", "crc"])
async def test_a_gap_or_a_wrong_checksum_is_mended_by_subscribing_again(
    broken: m.BookDelta,
) -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        await say(connection, m.Ack(first.id), snapshot(5), broken, delta(7, 8))
        again = await hear(connection)
        assert isinstance(again, m.Subscribe) and (again.channel, again.market) == ("book", "X")
        await say(connection, m.Ack(again.id), snapshot(9), delta(9, 12))

    async with scripted(script) as url, await connect(url) as client:
        stream = await client.book("X")
        while stream.book.seq != 12:
            await anext(stream)
        assert stream.resyncs == 1 and stream.synced
        assert stream.book.bids == [(10_000, 100)]


async def test_a_gap_is_mended_with_the_choice_that_it_is_in_and_no_other_book_is_touched() -> None:
    def chosen(message: m.BookSnapshot | m.BookDelta) -> m.BookSnapshot | m.BookDelta:
        return msgspec.structs.replace(message, depth=5, every_ms=250)

    async def script(connection: ServerConnection) -> None:
        whole, cut = await hear(connection), await hear(connection)
        await say(connection, m.Ack(whole.id), snapshot(5), m.Ack(cut.id), chosen(snapshot(5)))
        await say(connection, delta(5, 6), chosen(delta(4, 6)))
        again = await hear(connection)
        assert again == m.Subscribe(again.id, "book", "X", 5, 250)
        await say(connection, m.Ack(again.id), chosen(snapshot(9)), chosen(delta(9, 12)))

    async with scripted(script) as url, await connect(url) as client:
        opening = client.book("X"), client.book("X", depth=5, every_ms=250)
        whole, cut = await asyncio.gather(*opening)
        while cut.book.seq != 12:
            await anext(cut)
        assert (cut.resyncs, whole.resyncs, whole.book.seq) == (1, 0, 6)


async def test_a_market_that_never_traded_is_mirrored_from_number_0() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        empty = m.BookSnapshot("X", 0, [], [], 0)
        await say(connection, m.Ack(first.id), empty, delta(0, 3))

    async with scripted(script) as url, await connect(url) as client:
        stream = await client.book("X")
        while stream.book.seq != 3:
            await anext(stream)
        assert stream.resyncs == 0


async def test_a_book_that_cannot_be_mended_yet_is_mended_later_or_ends_with_the_reason() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        await say(connection, m.Ack(first.id), snapshot(5), delta(6, 7))
        again = await hear(connection)
        await say(connection, m.Reject(again.id, 1011, "RATE_LIMITED", "later", None, 5))
        third = await hear(connection)
        await say(connection, m.Ack(third.id), snapshot(9), delta(10, 11))
        last = await hear(connection)
        await say(connection, m.Reject(last.id, 4001, "UNKNOWN_INSTRUMENT", "gone", "market"))

    async with scripted(script) as url, await connect(url) as client:
        stream = await client.book("X")
        with pytest.raises(Rejected) as caught:
            async for _ in stream:
                pass
        assert (caught.value.code, stream.resyncs) == (4001, 2)


async def test_whatever_stops_the_reader_nobody_waits_for_it() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        await say(connection, m.Ack(first.id), m.OrdersSnapshot("X", 5, [(1, "1", "0")], [], 0))
        await hear(connection)

    async with scripted(script) as url, await connect(url) as client, asyncio.timeout(SOON_S):
        with pytest.raises(ProtocolViolation):
            await client.orders("X")
        with pytest.raises(ProtocolViolation):
            await client.ping()


async def test_a_request_in_flight_when_the_connection_ends_is_not_said_to_have_failed() -> None:
    async def script(connection: ServerConnection) -> None:
        await hear(connection)
        await connection.close(4001, "too many unread bytes")

    async with scripted(script) as url, await connect(url) as client:
        with pytest.raises(Disconnected) as caught:
            await client.place("X", "buy", "1", "1", client_id=3)
        assert (caught.value.code, caught.value.reason) == (4001, "too many unread bytes")
        with pytest.raises(Disconnected):
            await client.balances()


async def test_a_request_that_cannot_be_encoded_takes_nothing_from_those_behind_it() -> None:
    async def script(connection: ServerConnection) -> None:
        await say(connection, m.Pong((await hear(connection)).id, 5))

    async with scripted(script) as url, await connect(url) as client:
        number: Any = np.int64(7)
        async with asyncio.timeout(SOON_S):
            for _ in range(REQUESTS_IN_FLIGHT_MAX + 1):
                with pytest.raises(TypeError):
                    await client.place("X", "buy", "1", "1", client_id=number)
            assert (await client.ping()).time_us == 5


@pytest.mark.parametrize("frame", ["{", "[]", '{"t":5}', '{"t":"ack"}'])
async def test_what_is_no_message_of_a_server_ends_the_connection(frame: str) -> None:
    async def script(connection: ServerConnection) -> None:
        await hear(connection)
        await connection.send(frame)

    async with scripted(script) as url, await connect(url) as client:
        with pytest.raises(ProtocolViolation):
            await client.markets()


async def test_a_missing_private_message_ends_the_connection() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        transfer = m.Transfer(4, "deposit", "1", 1, 1, 1)
        start = m.AccountSnapshot(2, 1, "0x", BALANCES, [], [], 1)
        await say(connection, m.Ack(first.id), start, transfer)

    async with scripted(script) as url, await connect(url) as client:
        private = await client.private()
        assert isinstance(await anext(private), m.AccountSnapshot)
        with pytest.raises(ProtocolViolation):
            await anext(private)


async def test_a_new_kind_of_message_field_does_not_disturb_an_old_client() -> None:
    async def script(connection: ServerConnection) -> None:
        request = await hear(connection)
        await connection.send(f'{{"t":"ack","id":{request.id},"mood":"fine","markets":[]}}')

    async with scripted(script) as url, await connect(url) as client:
        assert await client.markets() == []


async def test_a_new_kind_of_message_is_passed_over_and_counts_if_it_is_numbered() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        start = m.AccountSnapshot(2, 1, "0x", BALANCES, [], [], 1)
        await say(connection, m.Ack(first.id), start)
        for more in ("", ',"aseq":2', ',"aseq":3', ',"aseq":3'):
            await connection.send(f'{{"t":"news","mood":"fine"{more}}}')
        await say(connection, m.Transfer(4, "deposit", "1", 1, 1, 1), m.Balance(4, BALANCES, 1))

    async with scripted(script) as url, await connect(url) as client:
        private = await client.private()
        heard = [await anext(private) for _ in range(3)]
        assert [type(x) for x in heard] == [m.AccountSnapshot, m.Transfer, m.Balance]
        assert client.aseq == 4


async def test_who_resumes_counts_from_the_number_it_named() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        assert isinstance(first, m.Subscribe) and first.from_aseq == 7
        transfer = m.Transfer(7, "deposit", "1", 1, 1, 1)
        await say(connection, m.Ack(first.id), transfer, m.CaughtUp(7, BALANCES, 1))
        again = await hear(connection)
        await say(connection, m.Reject(again.id, 1020, "HISTORY_GONE", "gone", "from_aseq"))

    async with scripted(script) as url, await connect(url) as client:
        private = await client.private(from_aseq=7)
        heard = [await anext(private) for _ in range(2)]
        assert [type(x) for x in heard] == [m.Transfer, m.CaughtUp]
        with pytest.raises(Rejected, match="1020"):
            await client.private(from_aseq=1)
        assert client.aseq == 7


def transfer(aseq: int) -> m.Transfer:
    return m.Transfer(aseq, "deposit", "1", 1, 1, 1)


class Signed:
    """An exchange that takes an order only when those before it are signed."""

    def __init__(self) -> None:
        self.heard: list[m.ClientMessage] = []
        self.unsigned = 0  # orders that wait for their signature

    async def __call__(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                request = await hear(connection)
                self.heard.append(request)
                await say(connection, self.answer(request))

    def answer(self, request: m.ClientMessage) -> m.ServerMessage:
        match request:
            case m.Query(what="unsigned"):
                return m.Ack(request.id, account=1, unsigned=[])
            case m.Query():
                symbol = "nv.rtx4090-24g.x1|us-e|B|SPOT"
                market = m.MarketInfo("X", symbol, "open", "1", "0", series=1)
                return m.Ack(request.id, markets=[market])
            case m.Ping():
                return m.Pong(request.id, 1)
            case m.Batch():
                acks = [m.Ack(x.id, order_id=x.id, market="X") for x in request.items]
                return m.BatchAck(request.id, [*acks])
            case m.SignOrders():
                self.unsigned -= len(request.orders)
                for place, row in enumerate(request.orders):
                    if row[4] == "9.0000":
                        field = f"orders[{place}]"
                        return m.Reject(request.id, 2012, "INVALID_TERMS", "taken back", field)
            case m.New() if self.unsigned:  # or a replace
                return m.Reject(request.id, 1021, "ORDERS_UNSIGNED", "sign first", None)
            case m.New():
                self.unsigned += 1
                ack = m.Ack(request.id, order_id=request.id, market="X", price=request.price)
                return m.ReplaceAck(request.id, ack) if isinstance(request, m.Replace) else ack
            case _:
                pass
        return m.Ack(request.id, account=1)


SLOWLY = Terms(every_s=600)  # signs when it is told to
SIGNED_HELLO = msgspec.structs.replace(HELLO, signing=m.Signing(5_000))


async def test_a_replace_is_sent_again_when_what_it_waits_for_is_signed() -> None:
    exchange = Signed()
    async with (
        asyncio.timeout(SOON_S),
        scripted(exchange, SIGNED_HELLO) as url,
        await connect(url, Wallet.create(), signing=SLOWLY) as client,
    ):
        placed = await client.place("X", "buy", "1", "1")
        new = m.New(0, "X", "buy", "2", "1")
        replaced = await client.replace(new, old_order_id=placed.order_id)
        assert isinstance(replaced.order, m.Ack) and replaced.order.order_id
    kinds = [type(x) for x in exchange.heard if not isinstance(x, m.Query)]
    signed = [m.New, m.Replace, m.SignOrders, m.Replace, m.SignOrders]
    assert kinds == [m.Login, *signed], "the last ones when it closes"


async def test_an_order_is_signed_though_its_caller_did_not_wait_for_the_ack() -> None:
    exchange = Signed()
    async with (
        asyncio.timeout(SOON_S),
        scripted(exchange, SIGNED_HELLO) as url,
        await connect(url, Wallet.create(), signing=SLOWLY) as client,
    ):
        placing = asyncio.ensure_future(client.place("X", "buy", "1", "1"))
        await asyncio.sleep(0)  # it is sent
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        await client.ping()  # the ack came before this
        await client.signed()
        assert isinstance(exchange.heard[-1], m.SignOrders)
        assert exchange.unsigned == 0


async def test_an_order_whose_signature_is_refused_keeps_no_other_from_being_signed() -> None:
    exchange = Signed()
    async with (
        asyncio.timeout(SOON_S),
        scripted(exchange, SIGNED_HELLO) as url,
        await connect(url, Wallet.create(), signing=SLOWLY) as client,
    ):
        await client.batch([m.New(0, "X", "buy", price, "1") for price in ("1", "9", "2")])
        with pytest.raises(Rejected, match="2012"):
            await client.signed()
        last = exchange.heard[-1]
        assert isinstance(last, m.SignOrders)
        assert [row[4] for row in last.orders] == ["1.0000", "2.0000"]
        await client.signed()
        assert exchange.heard[-1] is last, "the one at fault is given up"


async def test_an_order_is_asked_for_again_though_anothers_signature_is_refused() -> None:
    exchange = Signed()
    async with (
        asyncio.timeout(SOON_S),
        scripted(exchange, SIGNED_HELLO) as url,
        await connect(url, Wallet.create(), signing=SLOWLY) as client,
    ):
        await client.place("X", "buy", "9", "1")
        assert (await client.place("X", "buy", "1", "1")).order_id, "it goes on without"
        exchange.unsigned += 1
        with pytest.raises(Rejected, match="1021"):
            await client.place("X", "buy", "2", "1")


async def test_what_another_subscription_cuts_short_is_resumed_where_it_was_left() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        assert isinstance(first, m.Subscribe)
        asked.append(first.from_aseq)
        await say(connection, m.Ack(first.id))
        if first.from_aseq == 1:
            await say(connection, transfer(1))
            other = await hear(connection)
            start = m.AccountSnapshot(4, 1, "0x", BALANCES, [], [], 1)
            await say(connection, m.Ack(other.id), start, transfer(5))
        else:
            await say(connection, *(transfer(aseq) for aseq in range(2, 6)))

    asked: list[int] = []
    async with scripted(script) as url, asyncio.timeout(SOON_S):
        resuming = Resuming(lambda: connect(url))
        told = [await anext(resuming)]
        assert resuming.client is not None
        fills = await resuming.client.fills()
        told += [await anext(resuming) for _ in range(4)]
        assert [x.aseq for x in told] == [1, 2, 3, 4, 5]
        assert (asked, resuming.next_aseq) == ([1, 2], 6)
        with pytest.raises(Disconnected):
            await anext(fills)
        await resuming.close()


async def test_a_second_resumption_on_the_connection_tells_nothing_twice() -> None:
    async def script(connection: ServerConnection) -> None:
        for _ in range(2):
            await say(connection, m.Ack((await hear(connection)).id), transfer(1), transfer(2))
        await say(connection, m.CaughtUp(2, BALANCES, 1), transfer(3))

    async with scripted(script) as url, asyncio.timeout(SOON_S):
        resuming = Resuming(lambda: connect(url))
        told = [await anext(resuming)]
        assert resuming.client is not None
        await resuming.client.private(from_aseq=1)
        told += [await anext(resuming) for _ in range(2)]
        assert [x.aseq for x in told] == [1, 2, 3]
        assert (resuming.connections, resuming.balances) == (1, BALANCES)
        await resuming.close()


async def test_a_number_of_a_later_protocol_is_no_reason_to_connect_again() -> None:
    async def script(connection: ServerConnection) -> None:
        await say(connection, m.Ack((await hear(connection)).id), transfer(1))
        await connection.send('{"t":"news","aseq":2}')
        await say(connection, m.Balance(2, BALANCES, 1), transfer(3))

    async with scripted(script) as url, asyncio.timeout(SOON_S):
        resuming = Resuming(lambda: connect(url))
        assert [(await anext(resuming)).aseq for _ in range(2)] == [1, 3]
        assert resuming.connections == 1
        await resuming.close()


async def test_who_goes_on_after_a_broken_protocol_has_a_new_connection() -> None:
    async def script(connection: ServerConnection) -> None:
        first = await hear(connection)
        assert isinstance(first, m.Subscribe)
        begin = first.from_aseq
        await say(connection, m.Ack(first.id), transfer(begin), transfer(begin + 2))

    async with scripted(script) as url, asyncio.timeout(SOON_S):
        resuming = Resuming(lambda: connect(url))
        for aseq in (1, 2):
            assert (await anext(resuming)).aseq == aseq
            with pytest.raises(ProtocolViolation):
                await anext(resuming)
            assert resuming.client is None
        assert resuming.connections == 2


async def test_who_waits_no_longer_for_a_history_leaves_no_connection_behind() -> None:
    async def script(connection: ServerConnection) -> None:
        connections.append(connection)
        first = await hear(connection)
        asked.set()
        if len(connections) > 1:
            await say(connection, m.Ack(first.id), transfer(1))

    connections: list[ServerConnection] = []
    asked = asyncio.Event()
    async with scripted(script) as url, asyncio.timeout(SOON_S):
        resuming = Resuming(lambda: connect(url))
        waiting = asyncio.ensure_future(anext(resuming))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await connections[0].wait_closed()
        assert (await anext(resuming)).aseq == 1
        await resuming.close()
        await connections[1].wait_closed()


async def test_a_stream_read_too_slowly_ends_and_says_so() -> None:
    stream = Stream[int](items_max=2)
    for item in range(4):
        stream.push(item)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(StreamOverflow):
        await anext(stream)


async def test_a_closed_stream_ends_its_loop() -> None:
    stream = Stream[int]()
    stream.push(1)
    asyncio.get_running_loop().call_soon(stream.close)
    assert [item async for item in stream] == [1]


async def test_no_server_is_a_documented_error() -> None:
    for url in ("ws://127.0.0.1:9/ws", "http://127.0.0.1:9/ws", "nonsense"):
        with pytest.raises(Disconnected):
            await connect(url)


async def test_a_float_is_no_price() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with scripted(script) as url, await connect(url) as client:
        for price in (2.5, float("nan")):
            with pytest.raises(TypeError):
                await client.place("X", "buy", price, "1")  # pyright: ignore[reportArgumentType]


def test_every_error_of_the_client_is_in_its_documented_tree() -> None:
    own = [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, Exception)]
    assert len(own) >= 9
    for error in own:
        assert issubclass(error, CompexClientError)
        assert error.__name__ in (errors.__doc__ or "")
