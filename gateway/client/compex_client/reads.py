"""What plain HTTP requests under /api/v1 take and answer: JSON bodies.

What the websocket tells as well (books, trades, orders, money, spot prices) is spelt as it spells
it, with the same units. A refused read is answered with a `reject` whose `id` is 0.

Invariant: changed only by addition; the types of `compex_client.messages` are used wherever they
fit. Both ends import this module.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from compex_client import messages as m

INSTRUMENTS_MAX: Final = 5_000
LEVELS_MAX: Final = 5_000
TRADES_MAX: Final = 50  # as many as are kept
ROUNDS_MAX: Final = 300  # as many as are kept
ORDERS_MAX: Final = 5_000


# --- what may stand after the "?" ---------------------------------------------------------------
class Nothing(Struct, forbid_unknown_fields=True):
    """No parameters."""


class InstrumentsQuery(Struct, forbid_unknown_fields=True):
    """`class`, `region`, `grade` and `tenor` choose by name; `after` goes on behind a ticker."""

    hardware: m.Text = field(default="", name="class")
    region: m.Text = ""
    grade: m.Text = ""
    tenor: m.Text = ""
    after: m.Text = ""
    limit: Annotated[int, Meta(ge=1, le=INSTRUMENTS_MAX)] = 1_000


class BookQuery(Struct, forbid_unknown_fields=True):
    """`depth`: so many levels of each side, the best ones."""

    depth: Annotated[int, Meta(ge=1, le=LEVELS_MAX)] = 50


class TradesQuery(Struct, forbid_unknown_fields=True):
    """`limit`: so many, the latest ones."""

    limit: Annotated[int, Meta(ge=1, le=TRADES_MAX)] = TRADES_MAX


class CandlesQuery(Struct, forbid_unknown_fields=True):
    """Of `interval_s`; at most `limit`, the latest ones or, with `from_s`, those that begin then or
    later."""

    interval_s: Literal[60, 300, 900, 3600, 14400, 86400] = 60
    from_s: m.UnixSeconds = 0
    limit: Annotated[int, Meta(ge=1, le=m.FIRST_MAX)] = 100


class KeptQuery(Struct, forbid_unknown_fields=True):
    """`after`: those with higher numbers (`aseq`); `limit`: so many, the oldest ones."""

    after: m.OptionalId = 0
    limit: Annotated[int, Meta(ge=1, le=m.KEPT_MAX)] = 100


class RoundsQuery(Struct, forbid_unknown_fields=True):
    """`limit`: so many rounds, the latest ones."""

    limit: Annotated[int, Meta(ge=1, le=ROUNDS_MAX)] = ROUNDS_MAX


class OrdersQuery(Struct, forbid_unknown_fields=True):
    """Of one `market` or, without one, of all; `after` goes on behind an order's id."""

    market: m.Text = ""
    after: m.OptionalId = 0
    limit: Annotated[int, Meta(ge=1, le=ORDERS_MAX)] = 1_000


# --- answers ------------------------------------------------------------------------------------
class Instrument(m.MarketInfo):
    """One listed market, taken apart: hardware class, region, grade and delivery window."""

    hardware: str = field(default="", name="class")
    title: str = ""  # of the hardware class, for people
    region: str = ""
    grade: str = ""
    tenor: str = ""  # the window's kind: SPOT, or H, D, W, M for an hour, day, week, month
    starts_s: int = 0  # the window's first second, Unix time; 0 of SPOT
    hours: int = 0  # how long the window is; 0 of SPOT
    tick: str = ""  # prices are multiples of this, dollars per GPU-hour


class Instruments(Struct):
    """In the order they were listed; `more` are behind the last one."""

    instruments: list[Instrument]
    more: bool


class Trades(Struct):
    """Oldest first."""

    trades: list[m.Trade]


class Candles(Struct):
    """Oldest first; the last one may be running still, as its `closed` says."""

    candles: list[m.Candle]


class Fills(Struct):
    """As far as they are kept, oldest first; ask again behind the last one's `aseq`."""

    fills: list[m.Fill]


class Leases(Struct):
    """Hours bought and sold, in every state each has been in, oldest first; ask again behind the
    last one's `aseq`."""

    leases: list[m.Lease]


class Indexes(Struct):
    """The latest round of every spot price."""

    indexes: list[m.Index]


class Rounds(Struct):
    """One spot price, round after round, oldest first."""

    rounds: list[m.Index]


class Time(Struct):
    """The server's clock."""

    time_us: int


class Terms(Struct):
    """What `hello` says, but for its nonce."""

    version: int
    chain_id: int  # with `vault`, the EIP-712 domain of a login
    vault: str
    price_tick: str
    qty_lot: str
    build: str
    limits: m.Limits


class Orders(Struct):
    """Open orders, oldest first; `more` are behind the last one."""

    orders: list[m.OrderInfo]
    more: bool


# --- health ---------------------------------------------------------------------------------------
class Live(Struct):
    live: bool = True


class Settling(Struct):
    """What becomes of fills. `halted` is why nothing more is booked or settled until a person
    helps, `waiting` why nothing is sent to the vault though it could be, which passes by itself;
    each is empty while all is well. Once too many events are unbooked, only cancels are taken."""

    halted: str = ""
    waiting: str = ""
    unbooked_events: int = 0


class Ready(Struct):
    """`ready` is whether an order sent now would be taken; `stopped`, `has_room`, `journal_space`
    and `warning` are why not."""

    ready: bool
    role: str  # this node's part in the deployment
    last_sequence: int
    durable_sequence: int  # last one told to anybody
    event_number: int
    started_from: int  # last sequence in the snapshot that the start began with; 0: none
    stopped: str  # why nothing is taken any more; empty while it is
    has_room: bool
    journal_bytes_free: int
    journal_space: Literal["enough", "low", "too_low"]
    warning: str
    settlement: Settling
