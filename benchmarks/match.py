"""Replay a binary order stream through the real matching core and time it.

    python -m benchmarks.match --stream FILE --preload N [--runs R] [--json]

A stream is 32-byte records (id, price, quantity, instrument, op, side), little endian; the first
`preload` are replayed untimed. Each order goes through `engine.match.apply`, the function the
pipeline calls, with everything on: accounts, reserve, declared capacity, self-trade prevention and
a 64-byte event for every outcome. Translating a record into a command, and noting the order id the
engine gave so that a later cancel can name it, is inside the timed loop. Fills are verified in a
replay of their own: an order-sensitive hash over maker, taker, quantity and price.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.book import StateArray, new_state
from engine.kernel import inlined, int64, kernel, prefetch, uint8, uint32, uint64
from engine.match import AHEAD, NEXT, SOON, apply, execute, is_large, look_ahead
from engine.outbox import EVENTS_PER_COMMAND_MAX, OUTBOX, OUTBOX_EVENTS
from engine.records import (
    AMOUNT_USDC6_MAX,
    COMMAND,
    QTY_LOTS_MAX,
    Command,
    CommandKind,
    EventKind,
    Purse,
    TimeInForce,
    command_array,
)

RECORD: Final = np.dtype(
    [
        ("id", "<u8"),
        ("price_ticks", "<i8"),
        ("qty_lots", "<u4"),
        ("instrument", "<u4"),
        ("op", "u1"),  # 0 limit GTC, 1 cancel, 2 limit IOC
        ("side", "u1"),
        ("zero", "u1", (6,)),
    ]
)
BUYERS: Final = 512  # accounts 1..BUYERS
SELLERS: Final = 512  # accounts BUYERS + 1 .. BUYERS + SELLERS
# Events kept before the buffer starts over: what one group commit publishes stays in the cache.
FLUSH_EVENTS: Final = 1024
ORDER_ID: Final = np.dtype([("order_id", "<u8")])
BLOCK: Final = 64
assert BUYERS == SELLERS and SELLERS & (SELLERS - 1) == 0
assert CommandKind.CANCEL == CommandKind.NEW_ORDER + 1
assert (TimeInForce.GTC, TimeInForce.IOC) == (0, 1), "an op's upper bit"
FILL_HASH_START: Final = 1469598103934665603


class Result(NamedTuple):
    ops: int
    ns_per_op: float
    fills: int
    volume: int
    notional: int
    fill_hash: str
    ns_per_fill: float


def sellers_per_instrument(instruments: int) -> int:
    return SELLERS if instruments == 1 else 4


def _prologue(instruments: int) -> list[Command]:
    """Accounts with money and bond, and every market with capacity at its sellers."""
    commands = [
        Command(
            kind=CommandKind.LIST_MARKET, instrument=k, order_id=k + 1, qty_lots=1, price_ticks=1
        )
        for k in range(instruments)
    ]
    for account in range(1, BUYERS + SELLERS + 1):
        purse = Purse.CASH if account <= BUYERS else Purse.BOND
        commands += [
            Command(kind=CommandKind.OPEN_ACCOUNT, account=account),
            Command(
                kind=CommandKind.DEPOSIT,
                account=account,
                client_id=account,
                price_ticks=AMOUNT_USDC6_MAX,
                side=purse,
            ),
        ]
    per = sellers_per_instrument(instruments)
    commands += [
        Command(
            kind=CommandKind.DECLARE_CAPACITY,
            account=BUYERS + 1 + (k * 7 + i) % SELLERS,
            instrument=k,
            qty_lots=QTY_LOTS_MAX,
        )
        for k in range(instruments)
        for i in range(per)
    ]
    return [c._replace(sequence=i) for i, c in enumerate(commands, 1)]


def prepared_state(instruments: int) -> StateArray:
    """A shard whose markets are listed and whose accounts can trade; no order yet."""
    state = new_state()
    commands = command_array(_prologue(instruments))
    outbox = np.zeros(1, OUTBOX)
    done = 0
    while done < len(commands):
        done = execute(state, commands, done, outbox)
        kinds = outbox["events"]["kind"][0, : int(outbox["count"][0])]
        assert not (kinds == EventKind.REJECTED).any()
    return state


@inlined
def _translate(record: Any, command: Any, order_ids: Any, per: Any) -> None:
    """A record as a command, without a branch on its kind or side: no processor could predict it.

    per: sellers per instrument, a power of two, as BUYERS and SELLERS are.
    """
    side = uint32(record.side)
    number = uint32(record.id)
    seller = record.instrument * uint32(7) + (number & uint32(per - 1))
    who = number + (seller - number) * side
    command.instrument = record.instrument
    command.side = record.side
    command.kind = uint8(CommandKind.NEW_ORDER) + (record.op & uint8(1))
    command.time_in_force = record.op >> uint8(1)
    command.account = uint32(1) + side * uint32(BUYERS) + (who & uint32(SELLERS - 1))
    command.client_id = record.id
    command.order_id = order_ids[record.id].order_id  # of a new one, none is known yet
    command.price_ticks = record.price_ticks
    command.qty_lots = int64(record.qty_lots)


@kernel
def drive(
    state: Any,
    records: Any,
    start: Any,
    block: Any,
    order_ids: Any,
    per: Any,
    outbox: Any,
    keep: Any,
) -> Any:
    """Replay records[start:]. With `keep`, stop when the events no longer fit; else start over.

    Returns the next record. block: shape (BLOCK + AHEAD,), dtype COMMAND; of what stands behind
    the block only the addresses are used.
    """
    s = state[0]
    out = outbox[0]
    out.count = uint64(0)
    room = uint64(OUTBOX_EVENTS - EVENTS_PER_COMMAND_MAX) if keep else uint64(FLUSH_EVENTS)
    i = uint64(start)
    end = uint64(len(records))
    while i < end:
        size = min(uint64(BLOCK), end - i)
        large = is_large(s)
        # Where the client is a block and two blocks later, if there is as much left.
        later = i + uint64(BLOCK) if i + uint64(3 * BLOCK) <= end else i
        beyond = i + uint64(2 * BLOCK) if i + uint64(3 * BLOCK) <= end else i
        for j in range(size):
            _translate(records[i + j], block[j], order_ids, per)
            block[j].sequence = s.sequence + uint64(j + 1)
        for j in range(size):
            if out.count > room:
                if keep:
                    return i + j
                out.count = uint64(0)
            far, near = block[j + uint64(AHEAD)], block[j + uint64(SOON)]
            look_ahead(s, far, near, block[j + uint64(NEXT)], large)
            prefetch(order_ids[records[later + j].id])
            prefetch(records[beyond + j])
            # Of an order of the same block it is known only now.
            known = order_ids[block[j].client_id]
            block[j].order_id = known.order_id
            first = out.count
            apply(s, block, j, out)
            known.order_id = out.events[first].order_id
        i += size
    return i


@inlined
def fold_fill(h: Any, maker: Any, taker: Any, qty: Any, price: Any) -> Any:
    """The fill hash with one more fill, mod 2^64; maker and taker are the stream's ids."""
    mixed = (
        maker * uint64(0x9E3779B97F4A7C15)
        + taker * uint64(0xC2B2AE3D27D4EB4F)
        + qty * uint64(0x165667B19E3779F9)
        + price
    )
    return (h ^ mixed) * uint64(1099511628211)


@kernel
def _hash_fills(events: Any, n: Any, takers: Any, makers: Any, totals: Any) -> None:
    """Fold the FILL events into totals = [fills, volume, notional, hash], all mod 2^64.

    `takers` and `makers` are the stream's ids of the two orders of each event.
    """
    h = totals[3]
    for i in range(n):
        e = events[i]
        if e.kind != EventKind.FILL:
            continue
        qty = uint64(e.qty_lots)
        price = uint64(e.price_ticks)
        totals[0] += uint64(1)
        totals[1] += qty
        totals[2] += qty * price
        h = fold_fill(h, makers[i], takers[i], qty, price)
    totals[3] = h


@kernel
def _name_orders(events: Any, n: Any, names: Any, takers: Any, makers: Any) -> None:
    """The stream's ids behind the engine's: ACCEPTED tells a slot's newest, by client id."""
    for i in range(n):
        e = events[i]
        if e.kind == EventKind.ACCEPTED:
            names[e.order_id & uint64(0xFFFFFF)] = e.client_id
        elif e.kind == EventKind.FILL:
            takers[i] = names[e.order_id & uint64(0xFFFFFF)]
            makers[i] = names[e.counter_order_id & uint64(0xFFFFFF)]


class Replay:
    """One pass over a stream: a fresh shard, the next command, the ids the engine gave."""

    def __init__(self, records: NDArray[np.void]) -> None:
        instruments = int(records["instrument"].max()) + 1
        self.records = records
        self.state = prepared_state(instruments)
        self.block = np.zeros(BLOCK + AHEAD, COMMAND)
        self.order_ids = np.empty(int(records["id"].max()) + 1, ORDER_ID)
        self.order_ids[:] = 0  # its pages are the client's, who has them already
        self.per = sellers_per_instrument(instruments)
        self.outbox = np.zeros(1, OUTBOX)

    def run(self, start: int, stop: int, keep: bool) -> int:
        return drive(
            self.state,
            self.records[:stop],
            start,
            self.block,
            self.order_ids,
            self.per,
            self.outbox,
            keep,
        )


def verify(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """[fills, volume, notional, hash] of the whole stream."""
    replay = Replay(records)
    totals = np.array([0, 0, 0, FILL_HASH_START], np.uint64)
    names = np.zeros(1 << 24, np.uint64)
    takers = np.zeros(OUTBOX_EVENTS, np.uint64)
    makers = np.zeros(OUTBOX_EVENTS, np.uint64)
    done = 0
    while done < len(records):
        done = replay.run(done, len(records), keep=True)
        events, count = replay.outbox["events"][0], int(replay.outbox["count"][0])
        _name_orders(events, count, names, takers, makers)
        _hash_fills(events, count, takers, makers, totals)
    return totals


def timed(records: NDArray[np.void], preload: int) -> float:
    """Seconds for records[preload:] on a fresh shard that has replayed the preload."""
    replay = Replay(records)
    replay.run(0, preload, keep=False)
    begin = time.perf_counter()
    replay.run(preload, len(records), keep=False)
    return time.perf_counter() - begin


def measure(path: Path, preload: int, runs: int) -> Result:
    """Verify once, time `runs` times, report the median."""
    records = np.fromfile(path, RECORD)
    fills, volume, notional, fold = (int(x) for x in verify(records))
    seconds = statistics.median(timed(records, preload) for _ in range(runs))
    ops = len(records) - preload
    return Result(
        ops=ops,
        ns_per_op=round(seconds * 1e9 / ops, 2),
        fills=fills,
        volume=volume,
        notional=notional,
        fill_hash=f"{fold:016x}",
        ns_per_fill=round(seconds * 1e9 / max(fills, 1), 2),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.match", description=__doc__)
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--preload", type=int, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = measure(options.stream, options.preload, options.runs)
    if options.json:
        print(json.dumps(result._asdict()))
    else:
        for name, value in result._asdict().items():
            print(f"{name:>12}  {value}")


if __name__ == "__main__":
    sys.exit(main())
