"""Random and mutated frames against the real session, server and engine: only numbered rejects
come back, only documented closes happen, and nothing ever breaks. On a failure hypothesis prints
the case and how to run it again; the socket test prints its seed."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from compex_client import connect
from compex_client import messages as m
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.rejects import Reject
from gateway import wire
from gateway.wire import CODEC_OF, BadRequest
from tests.exchange import (
    ADMINISTRATOR,
    SYMBOL,
    TICKER,
    Exchange,
    running_exchange,
    running_server,
    wallet,
)
from tests.fuzz.hostile import LEGAL_CLOSES, cuts, stream

FRAMES_PER_CASE = 40
BUDGET = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
DECODER_REJECTS = {Reject.MALFORMED_FRAME, Reject.UNKNOWN_MESSAGE, Reject.INVALID_FIELD}
REJECTS = {reject.value for reject in Reject}
REPLIES = (m.Ack, m.Reject, m.Pong, m.ReplaceAck, m.BatchAck)

# --- frames ------------------------------------------------------------------------------------
ids = st.integers(-2, 4) | st.sampled_from([2**53 - 1, 2**53, 2**63, 2**64, 10**400, 1.5, "1"])
texts = st.text(max_size=12) | st.sampled_from(
    [
        TICKER,
        SYMBOL,
        TICKER.lower(),
        "|",
        "book",
        "trades",
        "account",
        "status",
        "index",
        "sequenced",
        "\0",
    ]
)
decimals = st.sampled_from(
    ["0", "1", "2.4150", "-1", "0.0001", "0.00001", "1677.7215", "1677.7216", "9" * 24, "9" * 33,
     "1e9", "NaN", "١", "", ".", "-", "-0", "00", "0.01"]
) | st.decimals(-10, 2000, places=4).map(str)  # fmt: skip
anything = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts)
values = ids | texts | decimals | anything
FIELDS = sorted({name for kind in get_args(m.ClientMessage) for name in kind.__struct_fields__})
TAGS = [kind.__struct_config__.tag for kind in get_args(m.ClientMessage)]
choices = st.sampled_from(
    ["buy", "sell", "gtc", "ioc", "fok", "orders", "order", "balances", "markets", "list", "halt",
     "resume", "cancel_maker", "cancel_both", "decrement", "gtt", "limit", "market"]
)  # fmt: skip


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


objects = st.fixed_dictionaries(
    {"t": st.sampled_from(TAGS) | texts, "id": ids},
    optional={name: choices | values for name in FIELDS if name != "id"},
).map(_dump)


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A request with every field of its kind, mostly well formed: it often reaches the engine."""
    kind = draw(st.sampled_from(get_args(m.ClientMessage)))
    return _dump(_body(draw, kind))


ITEMS = (m.New, m.Cancel, m.Amend, m.Replace, m.Quote)


def _body(draw: st.DrawFn, kind: Any) -> dict[str, Any]:
    good: dict[str, st.SearchStrategy[Any]] = {
        "id": st.integers(1, 2**53 - 1),
        "market": st.sampled_from([TICKER, SYMBOL, "NOSUCH"]),
        "side": st.sampled_from(["buy", "sell"]),
        "price": decimals,
        "qty": decimals,
        "amount": decimals,
        "bond": decimals,
        "lot": decimals,
        "client_id": st.integers(0, 5),
        "order_id": st.integers(0, 40) | st.integers(0, 2**53 - 1),
        "old_client_id": st.integers(0, 5),
        "old_order_id": st.sampled_from([0, 0, 0, 1, 2**53 - 1]),
        "stop": st.sampled_from(["", "", "", "1"]),
        "all_or_none": st.booleans(),
        "resale": st.sampled_from([False, False, True]),
        "bids": st.lists(st.tuples(decimals, decimals), max_size=3),
        "asks": st.lists(st.tuples(decimals, decimals), max_size=3),
        "sent_us": st.integers(0, 2**53 - 1),
        "tif": st.sampled_from(["gtc", "gtt", "ioc", "fok"]),
        "type": st.sampled_from(["limit", "limit", "market"]),
        "protection": st.sampled_from(["", "", "0", "0.05"]),
        "expires_s": st.sampled_from([0, 0, 1, 1_900_000_000, 2**32]),
        "min_qty": st.sampled_from(["", "", "0.01", "1"]),
        "display_qty": st.sampled_from(["", "", "0.01", "0"]),
        "post_only": st.booleans(),
        "self_trade": st.sampled_from(["cancel_taker", "cancel_maker", "cancel_both", "decrement"]),
        "what": st.sampled_from(["orders", "order", "balances", "markets", "keys", "accounts"]),
        "wallet": st.sampled_from([wallet(n).address for n in (101, 102, 7)]),
        "key": st.sampled_from(["", *(wallet(n).address for n in (101, 7, 8))]),
        "signature": st.binary(min_size=65, max_size=65).map(bytes.hex) | texts,
        "nonce": st.integers(0, 5) | texts,
        "scopes": st.integers(0, 8),
        "markets": st.lists(st.sampled_from([TICKER, "*|*|*|*", "*"]), max_size=2),
        "valid_from_s": st.just(0),
        "valid_until_s": st.sampled_from([1, 1_900_000_000]),
        "action": st.sampled_from(["list", "halt", "resume"]),
        "channel": st.sampled_from(["book", "trades", "account", "status", "index", "x"]),
    }
    if kind is m.Batch:
        kinds = draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=5))
        good["items"] = st.just([_body(draw, item) for item in kinds])
    body = {name: draw(good.get(name, texts)) for name in kind.__struct_fields__}
    return {"t": kind.__struct_config__.tag, **body}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A plausible frame with bytes changed, cut, doubled or put in."""
    frame = bytearray(draw(plausible()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["change", "cut", "put", "double"])):
            case "change" if at < len(frame):
                frame[at] = draw(st.integers(0, 255))
            case "cut":
                del frame[at : at + draw(st.integers(1, 20))]
            case "put":
                frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                frame[at:at] = frame[:at]
    return bytes(frame)


def _in_msgpack(frame: bytes) -> bytes:
    """The same said in the other codec, or cut off where it cannot be."""
    try:
        return msgspec.msgpack.encode(json.loads(frame))
    except (ValueError, OverflowError, RecursionError):
        return frame


frames = st.binary(max_size=200) | objects | plausible() | mutated()


# --- claims ------------------------------------------------------------------------------------
def _decodes_or_is_refused(codec: wire.Codec, spelling: Any, frame: bytes) -> None:
    refused: BadRequest | None = None
    request: m.ClientMessage | None = None
    try:
        request = codec.decode(frame)
    except BadRequest as bad:
        refused = bad
    if refused is None:
        assert codec.decode(spelling.encode(request)) == request
        return
    assert refused.reject in DECODER_REJECTS
    assert 0 <= codec.request_id(frame) <= m.ID_MAX
    codec.encode(wire.reject_message(0, refused.reject, refused.field, refused.detail))


@settings(BUDGET, max_examples=600)
@given(frames)
def test_any_bytes_decode_to_a_request_or_a_numbered_refusal(frame: bytes) -> None:
    _decodes_or_is_refused(wire.JSON, msgspec.json, frame)


@settings(BUDGET, max_examples=300)
@given(frames.map(_in_msgpack) | st.binary(max_size=200))
def test_so_do_any_bytes_in_msgpack(frame: bytes) -> None:
    _decodes_or_is_refused(wire.MSGPACK, msgspec.msgpack, frame)


async def _converse(exchange: Exchange, batch: list[tuple[int, bytes]]) -> None:
    who = [wallet(101), wallet(102), ADMINISTRATOR, None]
    speakers = [exchange.converse(trader) for trader in who]
    asked = [0] * len(speakers)
    for speaker, frame in batch:
        speakers[speaker].session.receive(frame)
        asked[speaker] += 1
    for _ in range(4):  # a change that waits for its order is submitted when that is answered
        await exchange.port.settled()
    for count, speaker in zip(asked, speakers, strict=True):
        answers = [x for x in speaker.heard() if isinstance(x, REPLIES)]
        speaker.session.close()
        assert len(answers) == count, "every request has exactly one reply"
        for answer in answers:
            if isinstance(answer, m.Reject):
                assert answer.code in REJECTS and answer.reason == Reject(answer.code).name
    assert len(exchange.desk.pending) == 0
    exchange.desk.feed.mirror.check_invariants()
    assert exchange.port.ready().stopped == ""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Exchange], Coroutine[Any, Any, None]]], None]:
    """Run a claim on an exchange with a market and two rich traders, new for each case."""
    cases = 0

    def on_new_exchange(claim: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        nonlocal cases
        cases += 1

        async def case() -> None:
            async with running_exchange(tmp_path / str(cases)) as exchange:
                instrument = await exchange.list_market()
                for account in (1, 2):
                    await exchange.open_account(account, cash_usdc6=10**9, bond_usdc6=10**9)
                    await exchange.declare(account, instrument, 10**6)
                await claim(exchange)

        asyncio.run(case())

    return on_new_exchange


@BUDGET
@given(batch=st.lists(st.tuples(st.integers(0, 3), frames), min_size=1, max_size=FRAMES_PER_CASE))
def test_whatever_is_sent_every_frame_gets_one_reply_and_the_books_stay_true(
    run: Callable[[Callable[[Exchange], Coroutine[Any, Any, None]]], None],
    batch: list[tuple[int, bytes]],
) -> None:
    run(lambda exchange: _converse(exchange, batch))


# --- below the frames: bytes on the socket -----------------------------------------------------
CONNECTIONS = 150
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: %b\r\n\r\n"
)
# And its own code is what a peer hears that closes with one itself.
CLOSE_CODES = {code.value for code in m.CloseCode} | set(LEGAL_CLOSES)


def close_code_in(frames: bytes) -> int:
    """The code of the close frame among the server's frames; 0 if it sent none."""
    at = 0
    while at + 2 <= len(frames):
        opcode, size, at = frames[at] & 15, frames[at + 1], at + 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(frames[at : at + wide], "big"), at + wide
        if opcode == 8:
            return int.from_bytes(frames[at : at + 2], "big")
        assert opcode in {1, 2, 9, 10}, f"the server sent a frame of kind {opcode}"
        at += size
    return 0


async def test_hostile_bytes_on_the_socket_end_in_a_documented_close(tmp_path: Path) -> None:
    seed = 20261121
    rng = random.Random(seed)
    codes: dict[int, int] = {}
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (server, url):
        for number in range(CONNECTIONS):
            codec = rng.choice(list(CODEC_OF.values()))
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(UPGRADE % codec.subprotocol.encode())
            await reader.readuntil(b"\r\n\r\n")
            for part in cuts(rng, b"".join(stream(rng, codec.opcode))):
                writer.write(part)
            writer.write_eof()
            code = close_code_in(await reader.read())
            codes[code] = codes.get(code, 0) + 1
            assert code == 0 or code in CLOSE_CODES, f"seed {seed}, connection {number}: {code}"
            writer.close()
            await writer.wait_closed()
        async with await connect(url) as client:
            assert (await client.ping()).time_us > 0
    assert codes.keys() >= {1002, 1003, 1007}, f"seed {seed} is too tame: {codes}"


async def test_hostile_heads_on_the_socket_get_a_status_or_the_end(tmp_path: Path) -> None:
    seed = 20261122
    rng = random.Random(seed)
    statuses: dict[bytes, int] = {}
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (server, url):
        for number in range(CONNECTIONS):
            head = bytearray(UPGRADE % b"compex.v1.json")
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(head))
                head[at : at + rng.choice((0, 1, 30))] = rng.randbytes(rng.choice((0, 1, 40)))
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(bytes(head) * rng.choice((1, 1, 3)))
            writer.write_eof()
            status = (await reader.read())[9:12]
            statuses[status] = statuses.get(status, 0) + 1
            assert status in {b"", b"101", b"426"} or status[:1] == b"4", (
                f"seed {seed}, connection {number}: {status!r} to {bytes(head)!r}"
            )
            writer.close()
            await writer.wait_closed()
        async with await connect(url) as client:
            assert (await client.ping()).time_us > 0
    assert statuses.keys() >= {b"", b"101", b"400"}, f"seed {seed} is too tame: {statuses}"
