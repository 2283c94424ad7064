"""The one byte layout: commands in, events out, and the limits both obey.

Wire, journal, snapshot and replication derive from the dtypes here; nothing else in the project
spells an offset. All integers are little endian. Some fields share bytes (a deposit's amount lies
where an order's price does): the kind of the record says which name applies. Anybody may import
this module; it imports nothing of ours.

Units, at the end of every name: `price_ticks` is $0.0001 per GPU-hour, `qty_lots` is 0.01
GPU-hour (36 GPU-seconds), `amount_usdc6` is 1 µUSDC, `time_ns` is ns since the Unix epoch, UTC.
price_ticks * qty_lots is exactly µUSDC, so a match never rounds.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

PriceTicks = NewType("PriceTicks", int)
QtyLots = NewType("QtyLots", int)
AmountUsdc6 = NewType("AmountUsdc6", int)

# A layout change raises this number; the journal header carries it and a mismatch refuses.
LAYOUT_VERSION: Final = 4
# Older layouts whose records mean the same in this one: their journals are read as they are.
READABLE_LAYOUTS: Final = (1, 2, 3, 4)

SECOND_NS: Final = 1_000_000_000

# --- limits ------------------------------------------------------------------------------------
PRICE_TICKS_MAX: Final = (1 << 24) - 2  # $1,677.7214 per GPU-hour: four 64-way trie levels
QTY_LOTS_MAX: Final = 1_000_000_000  # ten million GPU-hours in one order
AMOUNT_USDC6_MAX: Final = 10**15  # one deposit or withdrawal: a billion USDC
TOTAL_USDC6_MAX: Final = 1 << 60  # everything in the exchange; keeps every int64 sum exact
ACCOUNTS_MAX: Final = 1 << 20
INSTRUMENTS_MAX: Final = 1 << 16
ORDER_SLOT_BITS: Final = 24
ORDER_GENERATION_BITS: Final = 29
OPEN_ORDERS_MAX: Final = (1 << 22) - 1
ACCOUNT_ORDERS_MAX: Final = 1 << 16  # open orders of one account; the rest are for the others
CAPACITIES_MAX: Final = 1 << 19  # (account, instrument) pairs with declared capacity
CLIENT_ID_MAX: Final = (1 << 53) - 1  # exact in every JSON reader
WHOLE_LOOKS_MAX: Final = 64  # all-or-none orders looked at after a command, best prices first
WHOLE_MET_MAX: Final = 4_096  # orders that those would trade with, all together
EFFECTS_MAX: Final = 16_384  # events one command may cause; bounds the work between two commands
ALL_INSTRUMENTS: Final = (1 << 32) - 1  # cancel-all over every market of the account
PARTS_MAX: Final = 168  # records that may follow a command of several: a block of a week's hours
COMPOUND_LOOKS_MAX: Final = 8000  # resting orders one command of several legs may look at
BLOCK_OPERATORS_MAX: Final = 512  # sellers that one block compares
EXCLUSIVE_LEGS_MAX: Final = 32
BASKET_LEGS_MAX: Final = 32
QUOTED_MARKETS_MAX: Final = 512  # in which one account may have quotes
QUOTES_MAX: Final = PARTS_MAX  # live quotes of one account in one market
FEE_TIERS: Final = 16
SPOT_WINDOW: Final = 1  # of the kinds of window in a packed product (catalog.pack_product)
PPM: Final = 1_000_000  # rates are in parts per million of the notional
BAND_PPM_MAX: Final = PPM  # a price band may be as wide as the price itself
CALL_SECONDS_MAX: Final = (
    86_400  # what a market's terms may set for a call; by hand it may be longer
)
AUCTION_ROUNDS_MAX: Final = 16  # prices found in one command that uncrosses a book
FEE_PPM_MAX: Final = 50_000  # five per cent

assert PRICE_TICKS_MAX * QTY_LOTS_MAX < TOTAL_USDC6_MAX < 1 << 62
assert OPEN_ORDERS_MAX < 1 << ORDER_SLOT_BITS
assert 2 * COMPOUND_LOOKS_MAX + PARTS_MAX < EFFECTS_MAX, "what was looked at can also be traded"
assert PARTS_MAX <= 255, "the number of parts is one byte"
assert ORDER_SLOT_BITS + ORDER_GENERATION_BITS <= 53, "order ids are exact in every JSON reader"
assert QTY_LOTS_MAX < 1 << 32 and PRICE_TICKS_MAX < 1 << 24, "the kernel stores both in 32 bits"


class Side(IntEnum):
    BUY = 0
    SELL = 1


class TimeInForce(IntEnum):
    GTC = 0
    IOC = 1
    FOK = 2
    GTT = 3  # until `expiry_s`


class SelfTrade(IntEnum):
    """What happens when an order would match one of the same account."""

    CANCEL_TAKER = 0
    CANCEL_MAKER = 1
    CANCEL_BOTH = 2
    DECREMENT = 3


class Flag(IntEnum):
    """What else an order says; one at most."""

    POST_ONLY = 1
    MARKET = 2  # `price_ticks` is how far from the best, or the stop price, it may trade
    ALL_OR_NONE = 4  # trades whole or waits, unseen


class Purse(IntEnum):
    """Where a deposit goes (in the field `side` of a DEPOSIT)."""

    CASH = 0
    BOND = 1


class CommandKind(IntEnum):
    NEW_ORDER = 1
    CANCEL = 2
    CANCEL_ALL = 3
    DECLARE_CAPACITY = 4
    WITHDRAW = 5
    AMEND = 6
    EXPIRE = 7  # sequenced by the engine itself, when an order's time has come
    NEW_STOP = 8  # an order that waits until a trade reaches `stop_ticks`
    # Of several records: this one, the head, and `parts` more of kind PART, one after the other.
    MASS_QUOTE = 9  # these levels instead of the account's earlier ones in the market; 0: none
    BLOCK = 10  # the same lots of consecutive hours from one seller, at a limit on the average
    EXCLUSIVE = 11  # the best of several buys
    BASKET = 12  # several orders, all at once or none
    PART = 15
    # below: sequenced by settlement or an administrator, never by a trading session
    OPEN_ACCOUNT = 16
    DEPOSIT = 17
    CONFIRM_ESCROW = 18
    CONFIRM_WITHDRAWAL = 19
    CLOSE_ACCOUNT = 20
    REOPEN_ACCOUNT = 21
    CANCEL_WITHDRAWAL = 22
    VOID_FILL = 23
    CONFIRM_EXIT = 24
    END_LEASES = 25  # what an account has in leases that are over in the vault
    LIST_MARKET = 32
    HALT_MARKET = 33
    RESUME_MARKET = 34
    CLOSE_MARKET = 35  # for good; sequenced by the engine itself, too, when the gate closes
    CALL_MARKET = 36  # gather orders without matching; `expiry_s`: when to uncross, 0: by hand
    UNCROSS_MARKET = 37  # sequenced by the engine itself, when the time has come
    INDICATE_MARKET = 38  # sequenced by the engine itself, about once a second
    SET_BANDS = 39
    SET_FEES = 40
    SET_FEE_TIER = 41


class EventKind(IntEnum):
    """What happened. Each command causes exactly one event with a terminal kind.

    FILL, DECREMENTED, CONCEALED, REFRESHED, WAITING, TRIGGERED and VOLATILITY_CALL are never
    terminal; CANCELLED is terminal only for a CANCEL or an EXPIRE command.

    A command of several records has one terminal event, which comes first and carries the head's
    sequence: QUOTED, LEGS_FILLED, or REJECTED, and nothing has changed. What a mass quote replaces
    is CANCELLED next, under the head's sequence. Then each part that takes effect says ACCEPTED,
    with an order id of its own, and what follows from it, under the part's own sequence; a part
    that takes no effect says nothing. What their trades trigger comes last, under the sequence of
    the last part.
    """

    ACCEPTED = 1
    REJECTED = 2
    FILL = 3
    CANCELLED = 4
    DECREMENTED = 5
    CANCEL_ALL_DONE = 6
    CAPACITY_DECLARED = 7
    WITHDRAWAL_RESERVED = 8
    AMENDED = 9  # the order's new price and what is left of it; `reason` 1: it lost its place
    CONCEALED = 10  # so many lots of a resting iceberg are not shown
    REFRESHED = 11  # so many concealed lots are shown now, behind all others of their price
    WAITING = 12  # an order just accepted is off the book until its condition holds
    TRIGGERED = 13  # it holds: the order is at work now, its limit and what is left of it
    QUOTED = 14  # so many levels (`qty_lots`) stand for what the account quoted before
    LEGS_FILLED = 15  # so many legs (`qty_lots`); `amount_usdc6`: what its buys cost, with fees
    ACCOUNT_OPENED = 16
    DEPOSITED = 17
    ESCROW_CONFIRMED = 18
    WITHDRAWAL_CONFIRMED = 19
    ACCOUNT_CLOSED = 20
    ACCOUNT_REOPENED = 21
    WITHDRAWAL_CANCELLED = 22
    FILL_VOIDED = 23
    EXIT_CONFIRMED = 24
    LEASES_ENDED = 25  # `amount_usdc6` is no escrow any more, `bond_usdc6` is free again
    MARKET_LISTED = 32  # `reason`: its ListingFlag
    MARKET_HALTED = 33
    MARKET_RESUMED = 34  # `reason` 1: in the call in which it was halted
    MARKET_CLOSED = 35
    MARKET_CALLED = 36
    MARKET_UNCROSSED = 37  # open again; `reason` EFFECTS_LIMIT: there is more to do
    INDICATED = 38  # what an uncross would do now
    BANDS_SET = 39
    FEES_SET = 40
    FEE_TIER_SET = 41
    # from 48 on: what happens in the midst of a command
    VOLATILITY_CALL = 48  # a market went into a call by itself, until `expiry_s`


class CancelReason(IntEnum):
    """Why an order left the book unfilled (in the field `reason` of a CANCELLED event)."""

    BY_REQUEST = 1
    CANCEL_ALL = 2
    IOC_REMAINDER = 3
    SELF_TRADE = 4
    EFFECTS_LIMIT = 5
    ACCOUNT_CLOSED = 6
    EXPIRED = 7
    MARKET_CLOSED = 8
    VOLATILITY = 9  # it may not rest, and its next trade would have been outside the dynamic band
    REPLACED = 10  # by the account's next mass quote


class FillNote(IntFlag):
    """What is special about a trade (in the field `reason` of a FILL or FILL_VOIDED event)."""

    OFF_QUEUE = 1  # the maker was chosen for its account: no price of the market
    RESOLD = 2  # the seller had bought these hours itself


class OneSide(IntEnum):
    """Which orders a CANCEL_ALL means (in its field `flags`)."""

    BOTH = 0
    BUYS = 1
    SELLS = 2


class MarketStatus(IntEnum):
    UNLISTED = 0
    OPEN = 1
    HALTED = 2
    CLOSED = 3  # for good
    CALL = 4  # orders gather and do not match until the market is uncrossed


class ListingFlag(IntEnum):
    """How a market starts (in the field `flags` of a LIST_MARKET)."""

    OPENING_CALL = 1  # in a call, until `opens_s` or, if that is 0, until somebody uncrosses it


# `flags` of a market's command that its timetable gives: it leaves the market as it is if what was
# on its way before has made it untimely. The engine asks again once it has heard of that.
BY_TIME: Final = 1


def _overlaid(size: int, fields: list[tuple[str, Any, int]]) -> np.dtype[np.void]:
    """A dtype whose fields may share bytes: (name, format, offset) each."""
    names, formats, offsets = zip(*fields, strict=True)
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return np.dtype(layout)  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownVariableType]


# Plain fields first, in byte order and without gaps; the struct formats below mirror just these.
_COMMAND_PLAIN: Final[list[tuple[str, Any, int]]] = [
    ("sequence", "<u8", 0),
    ("time_ns", "<i8", 8),
    ("client_id", "<u8", 16),  # client order id, unique per account; 0: none
    ("order_id", "<u8", 24),
    ("price_ticks", "<i8", 32),
    ("qty_lots", "<i4", 40),
    ("expiry_s", "<u4", 44),  # GTT: Unix seconds
    ("account", "<u4", 48),
    ("instrument", "<u4", 52),
    ("kind", "u1", 56),
    ("side", "u1", 57),
    ("time_in_force", "u1", 58),
    ("self_trade", "u1", 59),
    ("flags", "u1", 60),
    ("session", "u1", 61),  # which of its account's sessions an order belongs to
    ("parts", "u1", 62),  # so many records after this one belong to it
    ("resale", "u1", 63),  # 1: an ask of hours bought here, not of capacity
]
COMMAND: Final = _overlaid(
    64,
    [
        *_COMMAND_PLAIN,
        ("form", "<u8", 56),  # all from `kind` on, to be looked at as one
        ("display_lots", "<u4", 24),  # NEW_ORDER: an iceberg shows so much at a time; 0: all
        ("min_lots", "<u4", 28),  # NEW_ORDER: at least so much at once, or not at all
        ("reference", "<u8", 16),  # deposit number, batch id, withdrawal id; see each command
        ("product", "<u8", 24),  # LIST_MARKET: the packed product (catalog.pack_product)
        ("amount_usdc6", "<i8", 32),
        ("bond_usdc6_per_lot", "<i8", 32),  # LIST_MARKET
        ("lot_multiple", "<i4", 40),  # LIST_MARKET: quantities are multiples of this
        ("closes_s", "<u4", 44),  # LIST_MARKET: when the gate closes, Unix seconds; 0: never
        ("opens_s", "<u4", 16),  # LIST_MARKET: when an opening call is uncrossed, Unix seconds
        ("closing_call_s", "<u4", 20),  # LIST_MARKET: so long before the gate it is called; 0: not
        ("static_ppm", "<u4", 24),  # SET_BANDS: around the reference, `price_ticks`; 0: none
        ("dynamic_ppm", "<u4", 28),  # SET_BANDS: around the last trade; 0: none
        ("call_seconds", "<u4", 44),  # SET_BANDS: how long a volatility call is
        ("stop_ticks", "<u4", 24),  # NEW_STOP
        ("owner", ("u1", 20), 24),  # OPEN_ACCOUNT: the wallet's address
        ("counter_account", "<u4", 24),  # VOID_FILL: the seller; `reference` is the fill's number
        ("void_number", "<u4", 28),  # VOID_FILL: above every one used before
        ("bond_usdc6", "<i8", 24),  # END_LEASES: behind what the account sold
        ("buyer_fee_ppm", "<u2", 44),  # VOID_FILL: the rate the buyer was charged
        ("maker_fee_ppm", "<u2", 24),  # SET_FEES, of the tier `fee_tier`
        ("taker_fee_ppm", "<u2", 26),  # SET_FEES
        ("fee_tier", "u1", 57),  # SET_FEES, SET_FEE_TIER
    ],
)
COMMAND_STRUCT: Final = struct.Struct("<QqQQqiIIIBBBBBBBB")

_EVENT_PLAIN: Final[list[tuple[str, Any, int]]] = [
    ("sequence", "<u8", 0),  # of the command that caused it
    ("time_ns", "<i8", 8),
    ("order_id", "<u8", 16),  # FILL: the taker's
    ("counter_order_id", "<u8", 24),  # FILL and DECREMENTED: the maker's
    ("price_ticks", "<i8", 32),  # FILL: the maker's price; else the order's limit
    ("qty_lots", "<i4", 40),
    ("maker_fee_ppm", "<u2", 44),  # FILL: each side's rate; `fee_usdc6` makes it an amount
    ("taker_fee_ppm", "<u2", 46),
    ("account", "<u4", 48),  # FILL: the taker's
    ("counter_account", "<u4", 52),
    ("instrument", "<u4", 56),
    ("kind", "u1", 60),
    ("side", "u1", 61),  # FILL: the taker's
    ("reason", "<u2", 62),  # REJECTED: rejects.Reject; CANCELLED: CancelReason
]
EVENT: Final = _overlaid(
    64,
    [
        *_EVENT_PLAIN,
        ("client_id", "<u8", 24),  # ACCEPTED, REJECTED, CANCELLED: the order's client id
        ("reference", "<u8", 24),  # deposit number, batch id or withdrawal id
        ("product", "<u8", 16),
        ("amount_usdc6", "<i8", 32),
        ("bond_usdc6_per_lot", "<i8", 32),
        ("lot_multiple", "<i4", 40),
        ("closes_s", "<u4", 44),  # MARKET_LISTED
        ("expiry_s", "<u4", 44),  # ACCEPTED; MARKET_CALLED, VOLATILITY_CALL: when it is uncrossed
        ("opens_s", "<u4", 24),  # MARKET_LISTED
        ("closing_call_s", "<u4", 28),  # MARKET_LISTED
        ("volume_lots", "<u8", 16),  # INDICATED, MARKET_UNCROSSED: so much trades at `price_ticks`
        ("surplus_lots", "<u8", 24),  # INDICATED, MARKET_UNCROSSED: so much of `side` does not
        ("bond_usdc6", "<i8", 16),  # LEASES_ENDED
        ("static_ppm", "<u4", 16),  # BANDS_SET
        ("dynamic_ppm", "<u4", 20),  # BANDS_SET
        ("call_seconds", "<u4", 44),  # BANDS_SET
        ("session", "<u2", 62),  # ACCEPTED
        ("stop_ticks", "<u4", 52),  # WAITING: 0 if it does not wait for a price
        ("owner", ("u1", 20), 16),
    ],
)
EVENT_STRUCT: Final = struct.Struct("<QqQQqiHHIIIBBH")

# --- engine state that others may read ----------------------------------------------------------
BALANCES: Final = np.dtype(
    [
        ("free_usdc6", "<i8"),  # may be spent or withdrawn
        ("held_usdc6", "<i8"),  # reserved by open buy orders
        ("pending_usdc6", "<i8"),  # filled, not yet final in escrow
        ("escrow_usdc6", "<i8"),  # locked in the vault for leases
        ("leaving_usdc6", "<i8"),  # withdrawal on its way
        ("bond_free_usdc6", "<i8"),
        ("bond_held_usdc6", "<i8"),  # reserved by open asks
        ("bond_locked_usdc6", "<i8"),  # behind sold, undelivered hours
    ]
)

# Commands whose head says how many parts follow it.
OF_SEVERAL: Final = (
    CommandKind.MASS_QUOTE,
    CommandKind.BLOCK,
    CommandKind.EXCLUSIVE,
    CommandKind.BASKET,
)

CommandArray = NDArray[np.void]  # shape (n,), dtype COMMAND
EventArray = NDArray[np.void]  # shape (n,), dtype EVENT


class Balances(NamedTuple):
    """One account's money, µUSDC; the same fields as `BALANCES`."""

    free_usdc6: int
    held_usdc6: int
    pending_usdc6: int
    escrow_usdc6: int
    leaving_usdc6: int
    bond_free_usdc6: int
    bond_held_usdc6: int
    bond_locked_usdc6: int


class Command(NamedTuple):
    """One command, decoded; `pack()` gives its 64 bytes. Unused fields are 0."""

    sequence: int = 0
    time_ns: int = 0
    client_id: int = 0
    order_id: int = 0
    price_ticks: int = 0
    qty_lots: int = 0
    expiry_s: int = 0
    account: int = 0
    instrument: int = 0
    kind: int = 0
    side: int = 0
    time_in_force: int = 0
    self_trade: int = 0
    flags: int = 0
    session: int = 0
    parts: int = 0
    resale: int = 0

    def pack(self) -> bytes:
        return COMMAND_STRUCT.pack(*self)


def fee_usdc6(notional_usdc6: int, fee_ppm: int) -> int:
    """What a fill of this notional costs beyond it: rounded down, in favour of who pays."""
    return notional_usdc6 * fee_ppm // PPM


def cost_usdc6(price_ticks: int, qty_lots: int, fee_ppm: int) -> int:
    """What a fill takes from its buyer, and into escrow: price times quantity, and the fee."""
    notional_usdc6 = price_ticks * qty_lots
    return notional_usdc6 + fee_usdc6(notional_usdc6, fee_ppm)


def order_terms(*, display_lots: int = 0, min_lots: int = 0) -> int:
    """What a NEW_ORDER carries in the bytes of its `order_id`."""
    return display_lots | min_lots << 32


class Event(NamedTuple):
    """One event, decoded. The properties name the bytes that some kinds share."""

    sequence: int
    time_ns: int
    order_id: int
    counter_order_id: int
    price_ticks: int
    qty_lots: int
    maker_fee_ppm: int
    taker_fee_ppm: int
    account: int
    counter_account: int
    instrument: int
    kind: int
    side: int
    reason: int

    @property
    def client_id(self) -> int:
        return self.counter_order_id

    @property
    def reference(self) -> int:
        return self.counter_order_id

    @property
    def product(self) -> int:
        return self.order_id

    @property
    def amount_usdc6(self) -> int:
        return self.price_ticks

    @property
    def bond_usdc6_per_lot(self) -> int:
        return self.price_ticks

    @property
    def bond_usdc6(self) -> int:
        return self.order_id

    @property
    def lot_multiple(self) -> int:
        return self.qty_lots

    @property
    def expiry_s(self) -> int:
        return self.maker_fee_ppm | self.taker_fee_ppm << 16

    @property
    def closes_s(self) -> int:
        return self.expiry_s

    @property
    def session(self) -> int:
        return self.reason

    @property
    def opens_s(self) -> int:
        return self.counter_order_id & 0xFFFFFFFF

    @property
    def closing_call_s(self) -> int:
        return self.counter_order_id >> 32

    @property
    def volume_lots(self) -> int:
        return self.order_id

    @property
    def surplus_lots(self) -> int:
        return self.counter_order_id

    @property
    def static_ppm(self) -> int:
        return self.order_id & 0xFFFFFFFF

    @property
    def dynamic_ppm(self) -> int:
        return self.order_id >> 32

    @property
    def call_seconds(self) -> int:
        return self.expiry_s

    @property
    def stop_ticks(self) -> int:
        return self.counter_account

    @property
    def owner(self) -> bytes:
        return self.pack()[16:36]

    def pack(self) -> bytes:
        return EVENT_STRUCT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "Event":
        return cls._make(EVENT_STRUCT.unpack(data))


def decode_events(events: EventArray) -> list[Event]:
    """Events as tuples; a tenth of the cost of reading fields off numpy records one by one."""
    return list(map(Event._make, EVENT_STRUCT.iter_unpack(events.tobytes())))


def decode_commands(commands: CommandArray) -> Iterator[Command]:
    return map(Command._make, COMMAND_STRUCT.iter_unpack(commands.tobytes()))


def command_array(commands: Iterable[Command]) -> CommandArray:
    """Shape (n,), dtype COMMAND, read-only."""
    return np.frombuffer(b"".join(c.pack() for c in commands), COMMAND)


def _assert_layout(dtype: np.dtype[np.void], plain: list[tuple[str, Any, int]], form: str) -> None:
    end = 0
    for _, fmt, offset in plain:
        assert offset == end, "plain fields leave no gap"
        end += np.dtype(fmt).itemsize
    assert end == dtype.itemsize == struct.calcsize(form) == 64


_assert_layout(COMMAND, _COMMAND_PLAIN, COMMAND_STRUCT.format)
_assert_layout(EVENT, _EVENT_PLAIN, EVENT_STRUCT.format)
assert BALANCES.itemsize == 64 and BALANCES.names == Balances._fields
assert tuple(n for n, _, _ in _COMMAND_PLAIN) == Command._fields
assert tuple(n for n, _, _ in _EVENT_PLAIN) == Event._fields
