"""What is kept of a private message: its facts as integers, 96 bytes, and the message of them.

Invariant: `message` of a record is the message, whoever asks and whenever: what a listener is told
now is made of the record, as is what it is told again later. The words for names and reasons are
this build's; the numbers never change their meaning. The private stream packs, the history takes
records to messages.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from compex_client import messages as m
from compex_client.units import price_text, qty_text, usdc_text

from engine.records import CancelReason, Command, CommandKind, Event, EventKind, fee_usdc6
from engine.rejects import WORDS, Reject
from gateway.leases import Bought
from gateway.mirror import OpenOrder
from gateway.translate import SIDE_NAMES, time_us

Ticker = Callable[[int], str]  # of an instrument

# Files have these numbers: each table is append-only.
KIND_OF: Final = {kind: number for number, kind in enumerate(m.NUMBERED, 1)}
ORDER, FILL, TRANSFER, REJECTED, CANCELLED_ALL, LEASE = KIND_OF.values()
STATES: Final[tuple[m.OrderState, ...]] = ("open", "filled", "cancelled")
LEASE_STATES: Final[tuple[m.LeaseState, ...]] = ("pending", "escrowed", "voided")
ROLES: Final[tuple[m.LeaseRole, ...]] = ("buyer", "operator", "reseller")
CAUSES: Final[tuple[m.CancelCause, ...]] = ("request", "disconnect", "dead_man")
TRANSFERS: Final[tuple[m.TransferKind, ...]] = (
    "deposit", "bond_deposit", "escrow", "withdrawal_reserved", "withdrawal_done",
    "withdrawal_cancelled", "exit", "fill_voided", "lease_ended", "bond_freed",
)  # fmt: skip
BY_KIND: Final = 256  # an order's reason is a CancelReason or, from here on, an EventKind
# What a client asks for, by the command it becomes; settlement's and the engine's own are not here.
REQUESTS: Final[dict[int, str]] = {
    CommandKind.NEW_ORDER: "new",
    CommandKind.NEW_STOP: "new",
    CommandKind.CANCEL: "cancel",
    CommandKind.CANCEL_ALL: "cancel_all",
    CommandKind.DECLARE_CAPACITY: "capacity",
    CommandKind.WITHDRAW: "withdraw",
    CommandKind.AMEND: "amend",
    CommandKind.MASS_QUOTE: "quote",
    CommandKind.BLOCK: "block",
    CommandKind.EXCLUSIVE: "exclusive",
    CommandKind.BASKET: "basket",
}
_NAME_AN_ORDER: Final = (CommandKind.CANCEL, CommandKind.AMEND)
_REASONS: Final = {
    0: "",
    **{reason.value: reason.name for reason in CancelReason},
    **{BY_KIND + kind: kind.name for kind in EventKind},
}
_STATE_OF: Final = {name: number for number, name in enumerate(STATES)}
_LEASE_STATE_OF: Final = {name: number for number, name in enumerate(LEASE_STATES)}
_ROLE_OF: Final = {name: number for number, name in enumerate(ROLES)}
_TRANSFER_OF: Final = {name: number for number, name in enumerate(TRANSFERS)}


class Fact(NamedTuple):
    """One record, decoded, in the order of its bytes. What a kind has no use for is 0."""

    sequence: int = 0
    time_ns: int = 0
    aseq: int = 0
    order_id: int = 0  # lease: its id; transfer: the amount in µUSDC
    client_id: int = 0
    reference: int = 0  # fill: its trade id; lease: the batch; transfer: as in its message
    placed_us: int = 0  # order, fill: when the order was accepted
    account: int = 0
    price_ticks: int = 0  # order, fill: the order's limit
    qty_lots: int = 0  # order, fill: of the whole order; cancelled all: how many orders
    left_lots: int = 0
    moved_lots: int = 0  # order: of what is left, what is not shown; fill: what traded
    other_ticks: int = 0  # order: its stop; fill: the price at which it traded
    expires_s: int = 0
    instrument: int = 0
    reason: int = 0  # rejected: the Reject; lease: 1 if assumed; cancelled all: 1 if partial
    fee_ppm: int = 0
    session: int = 0
    kind: int = 0  # KIND_OF the message
    side: int = 0  # lease: the role; cancelled all: the cause
    state: int = 0  # of the order, of the lease; transfer: its kind; rejected: the CommandKind
    mark: int = 0  # order: 1 while it waits; fill: 1 for the maker's

    def pack(self) -> bytes:
        return _pack(*self)


_FORM: Final = "QqQQQQqIIIIIIIHHHHBBBB"
_DTYPES: Final = {"Q": "<u8", "q": "<i8", "I": "<u4", "H": "<u2", "B": "u1"}
FACT: Final = np.dtype(
    [(name, _DTYPES[form]) for name, form in zip(Fact._fields, _FORM, strict=True)]
)
FACT_BYTES: Final = 96
_STRUCT: Final = struct.Struct("<" + _FORM)
_pack: Final = _STRUCT.pack
_unpack: Final = _STRUCT.unpack
assert FACT.itemsize == _STRUCT.size == FACT_BYTES, "no padding"


def _part(name: str) -> tuple[struct.Struct, int]:
    """How to read one field alone, and where it is."""
    place = Fact._fields.index(name)
    return struct.Struct("<" + _FORM[place]), struct.calcsize("<" + _FORM[:place])


_ASEQ, _ASEQ_AT = _part("aseq")
_TIME_NS, _TIME_NS_AT = _part("time_ns")


def aseq_of(record: bytes) -> int:
    return _ASEQ.unpack_from(record, _ASEQ_AT)[0]


def time_ns_of(record: bytes) -> int:
    return _TIME_NS.unpack_from(record, _TIME_NS_AT)[0]


# --- what happened, as a record; by position, as these are the most frequent ----------
def of_order(aseq: int, order: OpenOrder, event: Event, reason: int) -> bytes:
    return _pack(
        event.sequence, event.time_ns, aseq, order.order_id, order.client_id, 0, order.time_us,
        order.account, order.price_ticks, order.qty_lots, order.left_lots, order.hidden_lots,
        order.stop_ticks, order.expires_s, order.instrument, reason, 0, order.session,
        ORDER, order.side, _STATE_OF[order.state], order.waits,
    )  # fmt: skip


def of_fill(
    aseq: int, order: OpenOrder, event: Event, trade_id: int, fee_ppm: int, is_maker: bool
) -> bytes:
    return _pack(
        event.sequence, event.time_ns, aseq, order.order_id, order.client_id, trade_id,
        order.time_us, order.account, order.price_ticks, order.qty_lots, order.left_lots,
        event.qty_lots, event.price_ticks, order.expires_s, order.instrument, 0, fee_ppm,
        order.session, FILL, order.side, _STATE_OF[order.state], is_maker,
    )  # fmt: skip


def of_lease(
    aseq: int,
    account: int,
    lease: Bought,
    event: Event,
    role: m.LeaseRole,
    state: m.LeaseState,
    batch: int,
    assumed: bool,
) -> bytes:
    return _pack(
        event.sequence, event.time_ns, aseq, lease.lease_id, 0, batch, 0, account,
        lease.price_ticks, lease.qty_lots, 0, 0, 0, 0, lease.instrument, assumed, 0, 0,
        LEASE, _ROLE_OF[role], _LEASE_STATE_OF[state], 0,
    )  # fmt: skip


def of_transfer(
    aseq: int, account: int, event: Event, kind: m.TransferKind, amount_usdc6: int
) -> bytes:
    return Fact(
        sequence=event.sequence,
        time_ns=event.time_ns,
        aseq=aseq,
        order_id=amount_usdc6,
        reference=event.reference,
        account=account,
        kind=TRANSFER,
        state=_TRANSFER_OF[kind],
    ).pack()


def of_rejected(aseq: int, event: Event, command: Command) -> bytes:
    return Fact(
        sequence=event.sequence,
        time_ns=event.time_ns,
        aseq=aseq,
        order_id=command.order_id if command.kind in _NAME_AN_ORDER else 0,
        client_id=command.client_id,
        account=event.account,
        reason=event.reason,
        kind=REJECTED,
        state=command.kind,
    ).pack()


def of_cancelled_all(aseq: int, event: Event, command: Command) -> bytes:
    """Why it was sequenced is in its `price_ticks`, of which it makes no other use."""
    cause = command.price_ticks
    return Fact(
        sequence=event.sequence,
        time_ns=event.time_ns,
        aseq=aseq,
        account=event.account,
        qty_lots=event.qty_lots,
        reason=event.reason == CancelReason.EFFECTS_LIMIT,
        session=command.session,
        kind=CANCELLED_ALL,
        side=cause if 0 <= cause < len(CAUSES) else 0,
    ).pack()


# --- and the message of it ----------------------------------------------------------------------
def message(record: bytes, ticker: Ticker) -> m.Numbered:
    fact = Fact._make(_unpack(record))
    return _MESSAGES[fact.kind](fact, ticker)


def _order(fact: Fact, ticker: Ticker) -> m.Order:
    return m.Order(
        fact.aseq,
        fact.order_id,
        ticker(fact.instrument),
        SIDE_NAMES[fact.side],
        price_text(fact.price_ticks),
        qty_text(fact.qty_lots),
        qty_text(fact.left_lots),
        STATES[fact.state],
        fact.sequence,
        time_us(fact.time_ns),
        fact.client_id,
        _REASONS[fact.reason],
        _shown(fact),
        price_text(fact.other_ticks) if fact.other_ticks else "",
        bool(fact.mark),
        fact.expires_s,
        fact.session,
    )


def _shown(fact: Fact) -> str:
    """As the wire has it: empty where all is shown."""
    return qty_text(fact.left_lots - fact.moved_lots) if fact.moved_lots else ""


def _fill(fact: Fact, ticker: Ticker) -> m.Fill:
    fee = fee_usdc6(fact.other_ticks * fact.moved_lots, fact.fee_ppm)
    return m.Fill(
        fact.aseq,
        fact.reference,
        fact.order_id,
        ticker(fact.instrument),
        SIDE_NAMES[fact.side],
        price_text(fact.other_ticks),
        qty_text(fact.moved_lots),
        qty_text(fact.left_lots),
        "maker" if fact.mark else "taker",
        fact.sequence,
        time_us(fact.time_ns),
        fact.client_id,
        usdc_text(fee) if fact.fee_ppm else "",
    )


def _transfer(fact: Fact, _: Ticker) -> m.Transfer:
    return m.Transfer(
        fact.aseq,
        TRANSFERS[fact.state],
        usdc_text(fact.order_id),
        fact.reference,
        fact.sequence,
        time_us(fact.time_ns),
    )


def _rejected(fact: Fact, _: Ticker) -> m.OrderRejected:
    reject = Reject(fact.reason)
    return m.OrderRejected(
        fact.aseq,
        REQUESTS[fact.state],
        reject.value,
        reject.name,
        WORDS[reject],
        fact.sequence,
        time_us(fact.time_ns),
        fact.client_id,
        fact.order_id,
    )


def _cancelled_all(fact: Fact, _: Ticker) -> m.CancelledAll:
    return m.CancelledAll(
        fact.aseq,
        CAUSES[fact.side],
        fact.qty_lots,
        fact.sequence,
        time_us(fact.time_ns),
        fact.session,
        bool(fact.reason),
    )


def _lease(fact: Fact, ticker: Ticker) -> m.Lease:
    return m.Lease(
        fact.aseq,
        fact.order_id,
        ticker(fact.instrument),
        ROLES[fact.side],
        qty_text(fact.qty_lots),
        price_text(fact.price_ticks),
        LEASE_STATES[fact.state],
        fact.sequence,
        time_us(fact.time_ns),
        fact.reference,
        bool(fact.reason),
    )


_MESSAGES: Final[dict[int, Callable[[Fact, Ticker], m.Numbered]]] = {
    ORDER: _order,
    FILL: _fill,
    TRANSFER: _transfer,
    REJECTED: _rejected,
    CANCELLED_ALL: _cancelled_all,
    LEASE: _lease,
}


# --- an order's fate ----------------------------------------------------------------------------
def last_of_client(records: bytes, client_id: int) -> bytes | None:
    """The last of these records that is about the order of a client id, if there is one."""
    facts = np.frombuffer(records, FACT)
    about = np.flatnonzero(facts["client_id"] == client_id)
    for place in about[::-1].tolist():
        if facts["kind"][place] in (ORDER, FILL):
            return records[place * FACT_BYTES : (place + 1) * FACT_BYTES]
    return None


def first_since(records: bytes, time_ns: int) -> int:
    """The number of the first of these records that is not older; 0 if all are."""
    facts = np.frombuffer(records, FACT)
    late = np.flatnonzero(facts["time_ns"] >= time_ns)
    return int(facts["aseq"][late[0]]) if len(late) else 0


def order_info(record: bytes, ticker: Ticker) -> m.OrderInfo:
    """An order as its last record leaves it."""
    fact = Fact._make(_unpack(record))
    is_fill = fact.kind == FILL
    return m.OrderInfo(
        order_id=fact.order_id,
        client_id=fact.client_id,
        market=ticker(fact.instrument),
        side=SIDE_NAMES[fact.side],
        price=price_text(fact.price_ticks),
        qty=qty_text(fact.qty_lots),
        left=qty_text(fact.left_lots),
        state=STATES[fact.state],
        time_us=fact.placed_us,
        shown="" if is_fill else _shown(fact),
        stop=price_text(fact.other_ticks) if fact.other_ticks and not is_fill else "",
        waiting=bool(fact.mark) and not is_fill,
        expires_s=fact.expires_s,
        session=fact.session,
    )
