"""Bytes become a typed request or a numbered refusal that names the field."""

from typing import Any, get_args

import msgspec
import pytest
from compex_client import messages as m

from engine.records import (
    ALL_INSTRUMENTS,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    Command,
    CommandKind,
    Flag,
    OneSide,
    Side,
    TimeInForce,
    command_array,
)
from engine.rejects import WORDS, Reject
from gateway import translate, wire
from gateway.wire import BadRequest
from tests.frames import frames_in

NEW: dict[str, Any] = {
    "t": "new", "id": 7, "market": "H100SXM8IBUSEB", "side": "buy", "price": "2.4150", "qty": "16",
}  # fmt: skip


def refusal_of(frame: bytes | str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        wire.JSON.decode(frame)
    return caught.value


def command_of(frame: bytes) -> Command:
    request = wire.JSON.decode(frame)
    assert isinstance(request, m.New)
    return translate.new_order(request, 1, 1)


def refusal_of_order(frame: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        command_of(frame)
    return caught.value


@pytest.mark.parametrize(
    ("change", "reject", "field"),
    [
        ({"t": "buy"}, Reject.UNKNOWN_MESSAGE, "t"),
        ({"t": 3}, Reject.INVALID_FIELD, "t"),
        ({"price": 2.415}, Reject.INVALID_FIELD, "price"),
        ({"price": None}, Reject.INVALID_FIELD, "price"),
        ({"price": "1" * 33}, Reject.INVALID_FIELD, "price"),
        ({"qty": 16}, Reject.INVALID_FIELD, "qty"),
        ({"side": "hold"}, Reject.INVALID_FIELD, "side"),
        ({"tif": "gtd"}, Reject.INVALID_FIELD, "tif"),
        ({"self_trade": "allow"}, Reject.INVALID_FIELD, "self_trade"),
        ({"client_id": -1}, Reject.INVALID_FIELD, "client_id"),
        ({"client_id": 1 << 53}, Reject.INVALID_FIELD, "client_id"),
        ({"client_id": "7"}, Reject.INVALID_FIELD, "client_id"),
        ({"post_only": 1}, Reject.INVALID_FIELD, "post_only"),
        ({"type": "trailing"}, Reject.INVALID_FIELD, "type"),
        ({"protection": 0.05}, Reject.INVALID_FIELD, "protection"),
        ({"expires_s": -1}, Reject.INVALID_FIELD, "expires_s"),
        ({"expires_s": 1 << 32}, Reject.INVALID_FIELD, "expires_s"),
        ({"expires_s": "1900000000"}, Reject.INVALID_FIELD, "expires_s"),
        ({"min_qty": 4}, Reject.INVALID_FIELD, "min_qty"),
        ({"display_qty": None}, Reject.INVALID_FIELD, "display_qty"),
        ({"postonly": True}, Reject.INVALID_FIELD, "postonly"),
        ({"market": "x" * 129}, Reject.INVALID_FIELD, "market"),
        ({"id": 0}, Reject.INVALID_FIELD, "id"),
        ({"id": 1 << 53}, Reject.INVALID_FIELD, "id"),
        ({"id": 1.5}, Reject.INVALID_FIELD, "id"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], reject: Reject, field: str) -> None:
    bad = refusal_of(msgspec.json.encode({**NEW, **change}))
    assert (bad.reject, bad.field) == (reject, field)


@pytest.mark.parametrize("field", ["t", "id", "market", "side", "price", "qty"])
def test_a_missing_field_is_named(field: str) -> None:
    bad = refusal_of_order(msgspec.json.encode({k: v for k, v in NEW.items() if k != field}))
    assert (bad.reject, bad.field) == (Reject.INVALID_FIELD, field)


@pytest.mark.parametrize(
    "frame",
    [b"", b"{", b"[]", b"null", b"7", b'"new"', b"\xff\xfe", b'{"t":"ping","id":1}x',
     b"[" * 10_000, b'{"t":"ping",' * 1000, b'{"t":"\\ud800","id":1}', b'{"t":"p\xffng","id":1}'],
)  # fmt: skip
def test_a_broken_frame_is_malformed(frame: bytes) -> None:
    assert refusal_of(frame).reject in {Reject.MALFORMED_FRAME, Reject.UNKNOWN_MESSAGE}


def test_the_request_id_is_found_even_if_the_rest_is_wrong() -> None:
    assert wire.JSON.request_id(b'{"t":"nonsense","id":41,"x":[1,2]}') == 41
    assert wire.JSON.request_id(b'{"t":"new","id":"41"}') == 0
    assert wire.JSON.request_id(b"not json") == 0
    assert wire.JSON.request_id(b"\xff") == 0


def test_a_refusal_quotes_no_more_than_its_limit() -> None:
    bad = refusal_of(msgspec.json.encode({**NEW, "t": "x" * 100_000}))
    assert len(bad.detail) <= wire.DETAIL_CHARS_MAX


def test_a_reject_has_the_number_the_name_and_the_words() -> None:
    reject = wire.reject_message(4, Reject.INSUFFICIENT_BALANCE)
    assert msgspec.json.decode(wire.encode(reject)) == {
        "t": "reject", "id": 4, "code": 3002, "reason": "INSUFFICIENT_BALANCE",
        "message": WORDS[Reject.INSUFFICIENT_BALANCE], "field": None,
    }  # fmt: skip


def test_every_request_survives_the_wire() -> None:
    samples: list[m.ClientMessage] = [
        m.Login(1, "0x12", "0x34", "0x56"), m.Subscribe(2, "book", "X"), m.Unsubscribe(3, "book"),
        m.New(4, "X", "sell", "1", "2", 9, "fok", True, "decrement"), m.Cancel(5, 6),
        m.CancelAll(7, "X", "sell"), m.Amend(13, 0, 6, "1", "2", True, "cancel_both"),
        m.New(14, "X", "buy", qty="2", tif="ioc", type="market", protection="0.5", min_qty="1"),
        m.New(15, "X", "buy", "1", "2", tif="gtt", expires_s=m.EXPIRES_S_MAX, display_qty="1"),
        m.Capacity(8, "X", "9"), m.Withdraw(9, "1.5", 3),
        m.Query(10, "order", client_id=4), m.Market(11, "list", "X", "0.01", "8"), m.Ping(12),
        m.FeeTier(16, "0x12", m.FEE_TIER_MAX), m.Block(17, "X", 3, "8", "2.5", 7),
        m.Quote(20, "X", [("1", "2")], [("3", "4")], 7, True, "cancel_both"),
        m.Replace(21, "X", "buy", "1", "2", 9, old_client_id=8), m.Ping(22, m.ID_MAX),
        m.Batch(23, [m.New(24, "X", "buy", "1", "2"), m.Cancel(25, 6), m.Amend(26, 7, qty="1"),
                     m.Replace(27, "X", "sell", "1", "2", old_order_id=8), m.Quote(28, "X")]),
        m.Token(21, 60), m.Exclusive(18, [m.Leg("X", "1", "2")], 7, True),
        m.Basket(19, [m.Leg("X", "1", "2", "sell"), m.Leg("Y", "1", "2")]),
        m.Authorise(21, "0x12", "0x34", 7, m.EXPIRES_S_MAX, m.ID_MAX, "0x56", 1, ["X", "*|*|*|*"]),
        m.Revoke(22, "0x12", "0x34", m.ID_MAX, "0x56"),
        m.SignOrders(20, [(5, 1, "X", "buy", "1", "2", 500, m.EXPIRES_S_MAX)], "0x56", "0x34"),
        m.CancelOnDisconnect(21, m.GRACE_MS_MAX, "account", True), m.DeadMan(22, 1_000),
        m.Subscribe(23, "account", from_aseq=7), m.Query(24, "fills", from_aseq=7, limit=9),
    ]  # fmt: skip
    assert {type(x) for x in samples} == set(get_args(m.ClientMessage))
    for sample in samples:
        assert wire.JSON.decode(msgspec.json.encode(sample)) == sample
        assert wire.MSGPACK.decode(msgspec.msgpack.encode(sample)) == sample


@pytest.mark.parametrize(
    ("item", "reject", "field"),
    [
        ({**NEW, "price": 2.5}, Reject.INVALID_FIELD, "items[1].price"),
        ({**NEW, "id": 0}, Reject.INVALID_FIELD, "items[1].id"),
        ({"t": "ping", "id": 3}, Reject.UNKNOWN_MESSAGE, "items[1].t"),
        ({"t": "batch", "id": 3, "items": [NEW]}, Reject.UNKNOWN_MESSAGE, "items[1].t"),
        ({**NEW, "postonly": True}, Reject.INVALID_FIELD, "postonly"),
        (7, Reject.INVALID_FIELD, "items"),
    ],
)
def test_a_wrong_item_of_a_batch_is_named(item: Any, reject: Reject, field: str) -> None:
    bad = refusal_of(msgspec.json.encode({"t": "batch", "id": 1, "items": [NEW, item]}))
    assert (bad.reject, bad.field) == (reject, field)


@pytest.mark.parametrize("count", [0, m.BATCH_ITEMS_MAX + 1])
def test_a_batch_has_a_number_of_items_that_is_told_beforehand(count: int) -> None:
    bad = refusal_of(msgspec.json.encode({"t": "batch", "id": 1, "items": [NEW] * count}))
    assert (bad.reject, bad.field) == (Reject.INVALID_FIELD, "items")


def test_the_longest_batch_fits_into_a_frame() -> None:
    longest = m.Replace(
        m.ID_MAX, "x" * m.TEXT_CHARS_MAX, "sell", "9" * 9 + ".0001", "9" * 9 + ".01", m.ID_MAX,
        "gtt", True, "cancel_taker", "stop_limit", "9" * 9, m.EXPIRES_S_MAX, "9" * 9, "9" * 9,
        "9" * 9, True, True, m.ID_MAX, m.ID_MAX,
    )  # fmt: skip
    frame = msgspec.json.encode(m.Batch(m.ID_MAX, [longest] * m.BATCH_ITEMS_MAX))
    assert len(frame) < wire.FRAME_BYTES_MAX


@pytest.mark.parametrize("codec", [wire.JSON, wire.MSGPACK])
def test_a_message_is_one_frame_of_any_length(codec: wire.Codec) -> None:
    for size in (0, 1, 125, 126, 127, 1_023, 1_024, 65_535, 65_536, 100_000):
        payload = bytes(size)
        framed = codec.frame(payload) + codec.frame(b"next")
        assert list(frames_in(framed)) == [(codec.opcode, payload), (codec.opcode, b"next")]


@pytest.mark.parametrize(
    ("price", "qty", "reject", "field"),
    [
        ("0", "1", Reject.PRICE_OUT_OF_RANGE, "price"),
        ("-1", "1", Reject.PRICE_OUT_OF_RANGE, "price"),
        ("1677.7216", "1", Reject.PRICE_OUT_OF_RANGE, "price"),
        ("9" * 24, "1", Reject.PRICE_OUT_OF_RANGE, "price"),
        ("0.00001", "1", Reject.PRICE_NOT_ON_TICK, "price"),
        ("two", "1", Reject.INVALID_FIELD, "price"),
        ("1", "0", Reject.QTY_OUT_OF_RANGE, "qty"),
        ("1", "-4", Reject.QTY_OUT_OF_RANGE, "qty"),
        ("1", "10000000.01", Reject.QTY_OUT_OF_RANGE, "qty"),
        ("1", "0.001", Reject.QTY_NOT_A_MULTIPLE, "qty"),
        ("1", "1e2", Reject.INVALID_FIELD, "qty"),
    ],
)
def test_a_wrong_number_is_refused_by_name(
    price: str, qty: str, reject: Reject, field: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        translate.new_order(m.New(1, "X", "buy", price, qty), 1, 1)
    assert (caught.value.reject, caught.value.field) == (reject, field)


def test_an_order_becomes_the_command_it_says() -> None:
    request = m.New(1, "X", "sell", "1677.7214", "10000000", 9, "gtc", True, "cancel_both")
    command = translate.new_order(request, account=3, instrument=5)
    assert command.kind == CommandKind.NEW_ORDER and command.side == Side.SELL
    assert (command.price_ticks, command.qty_lots) == (PRICE_TICKS_MAX, QTY_LOTS_MAX)
    assert (command.account, command.instrument, command.client_id) == (3, 5, 9)
    assert (command.flags, command.self_trade) == (1, 2)
    command.pack()


def test_a_market_order_carries_its_protection_for_a_price() -> None:
    request = m.New(1, "X", "buy", qty="2", tif="ioc", type="market", protection="0.05")
    command = translate.new_order(request, 3, 5)
    assert (command.flags, command.price_ticks, command.qty_lots) == (Flag.MARKET, 500, 200)
    assert command.time_in_force == TimeInForce.IOC


def test_the_terms_of_an_order_lie_where_the_engine_reads_them() -> None:
    request = m.New(
        1, "X", "buy", "1", "2", tif="gtt", expires_s=1_900_000_000, min_qty="0.5", display_qty="1"
    )
    command = translate.new_order(request, 3, 5)
    [record] = command_array([command])
    assert (record["display_lots"], record["min_lots"]) == (100, 50)
    assert (record["expiry_s"], record["time_in_force"]) == (1_900_000_000, TimeInForce.GTT)


@pytest.mark.parametrize(
    ("more", "reject", "field"),
    [
        ({"protection": "0.05"}, Reject.INVALID_FIELD, "protection"),
        ({"type": "market", "protection": "0.05"}, Reject.INVALID_FIELD, "price"),
        ({"type": "market", "price": ""}, Reject.INVALID_FIELD, "protection"),
        ({"type": "market", "price": "", "protection": "-1"}, 2001, "protection"),
        ({"type": "market", "price": "", "protection": "1677.7215"}, 2001, "protection"),
        ({"type": "market", "price": "", "protection": "0.00001"}, 2002, "protection"),
        ({"min_qty": "0"}, Reject.QTY_OUT_OF_RANGE, "min_qty"),
        ({"display_qty": "0.001"}, Reject.QTY_NOT_A_MULTIPLE, "display_qty"),
        ({"display_qty": "all"}, Reject.INVALID_FIELD, "display_qty"),
    ],
)
def test_a_wrong_term_is_refused_by_name(more: dict[str, Any], reject: int, field: str) -> None:
    bad = refusal_of_order(msgspec.json.encode({**NEW, **more}))
    assert (bad.reject, bad.field) == (reject, field)


@pytest.mark.parametrize(
    ("request_", "price_ticks", "qty_lots"),
    [
        (m.Amend(1, 7, price="2.5"), 25_000, 0),
        (m.Amend(1, 7, qty="4"), 0, 400),
        (m.Amend(1, 7, price="2.5", qty="4", post_only=True), 25_000, 400),
    ],
)
def test_an_amendment_keeps_what_it_does_not_give(
    request_: m.Amend, price_ticks: int, qty_lots: int
) -> None:
    command = translate.amend(request_, 3, 7)
    assert (command.kind, command.account, command.order_id) == (CommandKind.AMEND, 3, 7)
    assert (command.price_ticks, command.qty_lots) == (price_ticks, qty_lots)
    assert command.flags == (Flag.POST_ONLY if request_.post_only else 0)


@pytest.mark.parametrize(
    ("more", "reject", "field"),
    [
        ({}, Reject.INVALID_FIELD, "price"),
        ({"price": "0"}, Reject.PRICE_OUT_OF_RANGE, "price"),
        ({"qty": "0"}, Reject.QTY_OUT_OF_RANGE, "qty"),
    ],
)
def test_an_amendment_to_nothing_is_refused_by_name(
    more: dict[str, Any], reject: Reject, field: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        translate.amend(m.Amend(1, 7, **more), 3, 7)
    assert (caught.value.reject, caught.value.field) == (reject, field)


def test_cancel_all_without_a_market_means_every_market() -> None:
    assert translate.cancel_all(3, ALL_INSTRUMENTS).instrument == ALL_INSTRUMENTS


def test_cancel_all_means_one_side_or_both() -> None:
    sides = [translate.cancel_all(3, 1, side).flags for side in ("", "buy", "sell")]
    assert sides == [OneSide.BOTH, OneSide.BUYS, OneSide.SELLS]


@pytest.mark.parametrize("amount", ["0", "-5", "1000000000.000001"])
def test_an_amount_out_of_range_is_refused(amount: str) -> None:
    with pytest.raises(BadRequest) as caught:
        translate.withdraw(m.Withdraw(1, amount), 1)
    assert caught.value.reject is Reject.AMOUNT_OUT_OF_RANGE
