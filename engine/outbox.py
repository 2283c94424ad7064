"""Where a command's events are written: one flat record, so that the kernel takes one pointer.

Invariant: events stand in the order in which they happened, and before a command starts there is
room for all it may cause. The scratch a command needs beside them lies here, too; it says nothing
once the command is done. Only the kernel's modules call.
"""

from typing import Any, Final

import numpy as np

from engine.kernel import inlined, int32, kernel, uint8, uint16, uint32, uint64
from engine.records import BLOCK_OPERATORS_MAX, EFFECTS_MAX, EVENT, PARTS_MAX, EventKind, FillNote

# Room a command needs beyond its effects: its terminal event, a remainder and a self-trade's pair,
# and for each of its parts as much.
EFFECTS_SPARE: Final = 8 + 4 * PARTS_MAX
# The outbox must have this much room left before a command starts.
EVENTS_PER_COMMAND_MAX: Final = EFFECTS_MAX + EFFECTS_SPARE
OUTBOX_EVENTS: Final = EVENTS_PER_COMMAND_MAX * 4
OFF_QUEUE: Final = FillNote.OFF_QUEUE.value  # numba knows no flags
OPERATOR_SLOTS: Final = BLOCK_OPERATORS_MAX * 2  # open addressing stays at most half full
# What one seller could deliver to a block.
OPERATOR: Final = np.dtype(
    [
        ("account", "<u4"),  # 0: free
        ("windows", "<u4"),  # so many of the first ones, whole
        ("left_lots", "<i8"),  # missing in the window after those
        ("cost_usdc6", "<i8"),  # without fees
        ("sequence", "<u8"),  # the earliest of the asks it would take
    ]
)
OUTBOX: Final = np.dtype(
    [
        ("count", "<u8"),
        ("first", "<u8"),  # of the running command
        ("stirred", "<u4"),  # one more than the market in which it may have woken waiting orders
        ("unused", "u1", (44,)),
        ("operators", OPERATOR, (OPERATOR_SLOTS,)),
        ("events", EVENT, (OUTBOX_EVENTS,)),
    ]
)
assert OPERATOR.itemsize == 32


@inlined
def next_event(out: Any, c: Any, kind: Any) -> Any:
    """A new event of this command; the caller sets every field but these three."""
    e = out.events[out.count]
    out.count += uint64(1)
    e.sequence = c.sequence
    e.time_ns = c.time_ns
    e.kind = uint8(kind)
    return e


@inlined
def is_spent(out: Any) -> Any:
    """Whether the running command has had as many effects as it may."""
    return out.count - out.first >= uint64(EFFECTS_MAX)


@inlined
def emit(out: Any, c: Any, kind: Any) -> Any:
    """A new event with what most kinds take from their command; the caller changes the rest."""
    e = next_event(out, c, kind)
    e.order_id = uint64(0)
    e.counter_order_id = c.client_id
    e.price_ticks = c.price_ticks
    e.qty_lots = int32(c.qty_lots)
    e.expiry_s = uint32(0)
    e.account = c.account
    e.counter_account = uint32(0)
    e.instrument = c.instrument
    e.side = c.side
    e.reason = uint16(0)
    return e


@kernel
def reject(out: Any, c: Any, reason: Any) -> None:
    e = emit(out, c, EventKind.REJECTED)
    e.order_id = c.order_id
    e.reason = uint16(reason)
