"""The matching kernel's door: one sequenced command in, its numbered events out.

`execute` takes a batch of commands in sequence order; each goes to the module that knows its kind
(`trade`, `money`, `markets`), and every one, of one record or of several, ends in exactly one
terminal event; a head without its parts, and a part without a head, are refused. The kernel reads
nothing but the state and the commands, so the same commands give the same state everywhere. Called
by `pipeline`, `replay` and benchmarks.
"""

from typing import Any, Final

from engine.auction import call_market, indicate_market, uncross_market
from engine.bands import set_bands
from engine.book import find_leaf, rank_of
from engine.compound import basket, block, exclusive
from engine.kernel import inlined, int64, kernel, prefetch, spliced, uint8, uint32, uint64
from engine.markets import close_market, list_market, set_status
from engine.money import (
    answer_withdrawal,
    close_account,
    confirm_escrow,
    confirm_exit,
    declare_capacity,
    deposit,
    end_leases,
    open_account,
    reopen_account,
    set_fee_tier,
    set_fees,
    void_fill,
    withdraw,
)
from engine.outbox import EVENTS_PER_COMMAND_MAX, OUTBOX_EVENTS, reject
from engine.quotes import mass_quote
from engine.records import (
    COMMAND,
    INSTRUMENTS_MAX,
    OPEN_ORDERS_MAX,
    PARTS_MAX,
    CommandKind,
    Flag,
    SelfTrade,
    Side,
    TimeInForce,
)
from engine.rejects import Reject
from engine.reserve import capacity_home
from engine.terms import amend, expire, new_order_with_terms, stop_order
from engine.trade import cancel, cancel_all, new_order
from engine.waiting import wake

# How many commands ahead their cache lines are asked for; the second look needs the first's answer.
AHEAD: Final = 12
SOON: Final = 6
NEXT: Final = 3
# Up to so many orders and books the next levels of cache answer as fast as asking ahead costs.
NEAR_ORDERS: Final = 1 << 14
NEAR_BOOKS: Final = 1 << 7


# What a plain order may say in its `form` besides its kind: one bit of side, two of time in force,
# two of self-trade mode, the lowest flag, any session. All that these can spell exists.
_MAY_SAY: Final = 0x00_00_FF_01_03_03_01_00
_MUST_BE: Final = ~_MAY_SAY & (1 << 64) - 1
assert max(Side) == 1 and max(TimeInForce) == max(SelfTrade) == 3 and min(Flag) == 1
assert COMMAND.fields is not None and COMMAND.fields["form"][1] == COMMAND.fields["kind"][1] == 56


@inlined
def is_plain(c: Any) -> Any:
    """Whether a command is a new order that says no more than side, price, quantity and what to do
    with the rest, each a value that there is."""
    plain = c.form & uint64(_MUST_BE) == uint64(CommandKind.NEW_ORDER)
    return plain and c.time_in_force <= TimeInForce.FOK and c.order_id == 0 and c.expiry_s == 0


@kernel
def _apply_rare(s: Any, c: Any, out: Any) -> Any:
    """The commands that are few; apart from the hot ones so that those stay small."""
    if c.kind == CommandKind.NEW_ORDER:
        return new_order_with_terms(s, c, out)
    if c.kind == CommandKind.NEW_STOP:
        return stop_order(s, c, out)
    if c.kind == CommandKind.AMEND:
        return amend(s, c, out)
    if c.kind == CommandKind.EXPIRE:
        return expire(s, c, out)
    if c.kind == CommandKind.CANCEL_ALL:
        return cancel_all(s, c, out)
    if c.kind == CommandKind.DECLARE_CAPACITY:
        return declare_capacity(s, c, out)
    if c.kind == CommandKind.WITHDRAW:
        return withdraw(s, c, out)
    if c.kind == CommandKind.OPEN_ACCOUNT:
        return open_account(s, c, out)
    if c.kind == CommandKind.DEPOSIT:
        return deposit(s, c, out)
    if c.kind == CommandKind.CONFIRM_ESCROW:
        return confirm_escrow(s, c, out)
    if c.kind in (CommandKind.CONFIRM_WITHDRAWAL, CommandKind.CANCEL_WITHDRAWAL):
        return answer_withdrawal(s, c, out)
    if c.kind == CommandKind.CLOSE_ACCOUNT:
        return close_account(s, c, out)
    if c.kind == CommandKind.REOPEN_ACCOUNT:
        return reopen_account(s, c, out)
    if c.kind == CommandKind.VOID_FILL:
        return void_fill(s, c, out)
    if c.kind == CommandKind.CONFIRM_EXIT:
        return confirm_exit(s, c, out)
    if c.kind == CommandKind.END_LEASES:
        return end_leases(s, c, out)
    if c.kind == CommandKind.LIST_MARKET:
        return list_market(s, c, out)
    if c.kind in (CommandKind.HALT_MARKET, CommandKind.RESUME_MARKET):
        return set_status(s, c, out)
    if c.kind == CommandKind.CLOSE_MARKET:
        return close_market(s, c, out)
    if c.kind == CommandKind.CALL_MARKET:
        return call_market(s, c, out)
    if c.kind == CommandKind.UNCROSS_MARKET:
        return uncross_market(s, c, out)
    if c.kind == CommandKind.INDICATE_MARKET:
        return indicate_market(s, c, out)
    if c.kind == CommandKind.SET_BANDS:
        return set_bands(s, c, out)
    if c.kind == CommandKind.SET_FEES:
        return set_fees(s, c, out)
    if c.kind == CommandKind.SET_FEE_TIER:
        return set_fee_tier(s, c, out)
    return reject(out, c, Reject.UNKNOWN_COMMAND)


@kernel
def _are_parts(commands: Any, start: Any, end: Any) -> Any:
    """Whether commands[start:end] are all there, and parts."""
    if end > len(commands) or end - start > PARTS_MAX:
        return False
    parts = True
    for i in range(start, end):
        parts &= commands[i].kind == CommandKind.PART
    return parts


@kernel
def _apply_several(s: Any, commands: Any, i: Any, out: Any) -> Any:
    """The commands that may be of several records: how many of those behind the head it took."""
    head = commands[i]
    if head.kind < CommandKind.MASS_QUOTE or head.kind > CommandKind.BASKET:
        _apply_rare(s, head, out)
        return 0
    count = int64(head.parts)
    if not _are_parts(commands, i + 1, i + 1 + count):
        reject(out, head, Reject.UNKNOWN_COMMAND)
        return 0
    s.sequence = commands[i + count].sequence
    if head.kind == CommandKind.MASS_QUOTE:
        mass_quote(s, commands, i, out)
    elif head.kind == CommandKind.BLOCK:
        block(s, commands, i, out)
    elif head.kind == CommandKind.EXCLUSIVE:
        exclusive(s, commands, i, out)
    else:
        basket(s, commands, i, out)
    out.stirred = uint32(0)  # they have woken what they stirred, market by market
    return count


@spliced
def apply(s: Any, commands: Any, i: Any, out: Any) -> Any:
    """One command against the state; its events go behind those in the outbox.

    s: the STATE record; commands: shape (k,), dtype COMMAND, i the command's place there; out: an
    OUTBOX record with room for EVENTS_PER_COMMAND_MAX more events. Returns the number of its parts,
    which stand behind it.
    """
    c = commands[i]
    parts = 0
    s.sequence = c.sequence
    s.time_ns = c.time_ns
    out.first = out.count
    if is_plain(c):
        new_order(s, c, out)
    elif c.kind == CommandKind.CANCEL:
        cancel(s, c, out)
    else:
        parts = _apply_several(s, commands, i, out)
    if out.stirred != 0:
        wake(s, out.stirred - uint32(1), out, c)
        out.stirred = uint32(0)
    return parts


@inlined
def is_large(s: Any) -> Any:
    """Whether the state has outgrown the nearest caches, so that looking ahead pays."""
    return s.order_high > NEAR_ORDERS or s.instrument_high > NEAR_BOOKS


@inlined
def _level_of(s: Any, c: Any) -> Any:
    """Where an order of this side and price would rest, if its leaf exists."""
    book = s.books[c.instrument & uint32(INSTRUMENTS_MAX - 1)]
    side = uint32(c.side & uint8(1))
    rank = rank_of(side, uint32(c.price_ticks))
    return (find_leaf(s, book, side, rank >> uint32(6)) << uint32(6)) | (rank & uint32(63))


@inlined
def look_ahead(s: Any, far: Any, near: Any, next_: Any, large: Any) -> None:
    """Ask for the cache lines that three later commands will need. Changes nothing.

    `near` was `far` some commands ago: what lies behind its first lines can be asked for now, and
    of `next_` what lies behind those. The same for every kind of command: a branch on the kind
    would be mispredicted once more.
    """
    prefetch(s.orders[far.order_id & uint64(OPEN_ORDERS_MAX)])
    instrument = far.instrument & uint32(INSTRUMENTS_MAX - 1)
    prefetch(s.capacities[capacity_home(far.account, instrument) * uint32(far.side & uint8(1))])
    if not large:
        return
    prefetch(s.books[instrument])

    order = s.orders[near.order_id & uint64(OPEN_ORDERS_MAX)]
    prefetch(s.levels[order.level])
    prefetch(s.leaves[order.level >> uint32(6)])
    prefetch(s.orders[order.prev])
    prefetch(s.orders[order.next])
    prefetch(s.capacities[order.capacity])
    level = _level_of(s, near)
    prefetch(s.levels[level])
    prefetch(s.leaves[level >> uint32(6)])

    prefetch(s.orders[s.levels[_level_of(s, next_)].tail])


@kernel
def execute(state: Any, commands: Any, start: Any, outbox: Any) -> Any:
    """Apply commands[start:] in order while the outbox has room for one more.

    state: shape (1,), dtype STATE; commands: shape (k,), dtype COMMAND, sequences consecutive from
    state's + 1; outbox: shape (1,), dtype OUTBOX, overwritten from its start.
    Returns the index of the first command not applied.
    """
    s = state[0]
    out = outbox[0]
    out.count = uint64(0)
    i = start
    large = is_large(s)
    while i < len(commands) and out.count <= uint64(OUTBOX_EVENTS - EVENTS_PER_COMMAND_MAX):
        if i + AHEAD < len(commands):
            look_ahead(s, commands[i + AHEAD], commands[i + SOON], commands[i + NEXT], large)
        i += 1 + apply(s, commands, i, out)
    return i
