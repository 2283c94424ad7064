"""The byte layout: what is packed is what is read, by struct, by numpy and by name."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.records import (
    BALANCES,
    COMMAND,
    COMMAND_STRUCT,
    EVENT,
    EVENT_STRUCT,
    Command,
    CommandKind,
    Event,
    EventKind,
    command_array,
    decode_commands,
    decode_events,
)

U8, U16, U32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 32) - 1)
U64, I64 = st.integers(0, (1 << 64) - 1), st.integers(-(1 << 63), (1 << 63) - 1)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
COMMANDS = st.builds(
    Command, U64, I64, U64, U64, I64, I32, U32, U32, U32, U8, U8, U8, U8, U8, U8, U8, U8
)  # fmt: skip
EVENTS = st.builds(
    Event, U64, I64, U64, U64, I64, I32, U16, U16, U32, U32, U32, U8, U8, U16
)  # fmt: skip


def test_records_are_one_cache_line_each() -> None:
    assert COMMAND.itemsize == EVENT.itemsize == BALANCES.itemsize == 64
    assert COMMAND_STRUCT.size == EVENT_STRUCT.size == 64


def test_the_layout_is_the_one_that_journals_are_written_in() -> None:
    """Moving a field is a new LAYOUT_VERSION; these bytes must not change under the old one."""
    command = Command(
        sequence=0x0102030405060708,
        time_ns=0x1112131415161718,
        client_id=0x2122232425262728,
        order_id=0x3132333435363738,
        price_ticks=0x4142434445464748,
        qty_lots=0x51525354,
        expiry_s=0x55565758,
        account=0x61626364,
        instrument=0x71727374,
        kind=0x81,
        side=0x82,
        time_in_force=0x83,
        self_trade=0x84,
        flags=0x85,
        session=0x86,
        parts=0x87,
        resale=0x88,
    )
    assert command.pack().hex(" ", -8) == (
        "0807060504030201 1817161514131211 2827262524232221 3837363534333231 "
        "4847464544434241 5453525158575655 6463626174737271 8182838485868788"
    )
    event = Event(*range(1, 15))
    assert event.pack().hex(" ", -8) == (
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000 "
        "0500000000000000 0600000007000800 090000000a000000 0b0000000c0d0e00"
    )


@given(COMMANDS)
def test_a_command_reads_back_by_every_way(command: Command) -> None:
    array = command_array([command])
    assert list(decode_commands(array)) == [command]
    for name in Command._fields:
        assert array[0][name] == getattr(command, name), name


@given(EVENTS)
def test_an_event_reads_back_by_every_way(event: Event) -> None:
    assert Event.unpack(event.pack()) == event
    array = np.frombuffer(event.pack(), EVENT)
    assert decode_events(array) == [event]
    for name in Event._fields:
        assert array[0][name] == getattr(event, name), name


@given(EVENTS)
def test_the_names_that_share_bytes_read_the_same_from_tuple_and_array(event: Event) -> None:
    row: Any = np.frombuffer(event.pack(), EVENT)[0]
    shared = ("client_id", "reference", "product", "amount_usdc6", "lot_multiple", "stop_ticks")
    calls = ("opens_s", "closing_call_s", "volume_lots", "surplus_lots", "call_seconds")
    bands = ("static_ppm", "dynamic_ppm")
    for name in (*shared, *calls, *bands, "expiry_s", "closes_s", "session"):
        assert row[name] == getattr(event, name), name
    assert row["bond_usdc6_per_lot"] == event.bond_usdc6_per_lot
    assert row["owner"].tobytes() == event.owner


def test_plain_fields_cover_every_byte_once() -> None:
    layouts: tuple[tuple[np.dtype[np.void], tuple[str, ...]], ...] = (
        (COMMAND, Command._fields),
        (EVENT, Event._fields),
    )
    for dtype, names in layouts:
        covered = bytearray(dtype.itemsize)
        fields: Any = dtype.fields
        for name in names:
            form, offset = fields[name][:2]
            for i in range(offset, offset + form.itemsize):
                covered[i] += 1
        assert covered == bytes([1]) * dtype.itemsize


def test_many_events_decode_in_order() -> None:
    events = [Event(i, *range(13)) for i in range(1000)]
    array = np.frombuffer(b"".join(e.pack() for e in events), EVENT)
    assert decode_events(array) == events
    assert decode_events(array[:0]) == []


def test_each_command_of_settlement_and_markets_ends_with_the_event_of_its_number() -> None:
    ends = {k.value for k in CommandKind if k >= CommandKind.OPEN_ACCOUNT}
    assert ends == {
        k.value for k in EventKind if EventKind.ACCOUNT_OPENED <= k < EventKind.VOLATILITY_CALL
    }
