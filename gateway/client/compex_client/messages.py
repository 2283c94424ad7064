"""Every message on the wire, both ways, as msgspec tagged unions, tag `t`: JSON text frames or,
under the subprotocol "compex.v1.msgpack", the same as msgpack maps in binary frames.

Invariant: changed only by addition; a field never changes its meaning. Both ends import this
module and nothing else spells a message.

Units and forms
- `price` is a decimal string in US dollars per GPU-hour, a multiple of 0.0001: "2.4150".
- `qty` (and `left`) is a decimal string in GPU-hours, a multiple of 0.01: "16".
- money (`amount`, `free`, `held`, ...) is a decimal string in USDC with up to 6 decimals.
- `time_us` is microseconds since the Unix epoch, UTC, as the engine sequenced it.
- `sequence` is the place of a command in the exchange's total order.
- ids are whole numbers from 1 to 2^53 - 1, exact in every JSON reader; 0 means none.
- `market` is a ticker ("H100SXM8IBUSEB"); requests take the long symbol as well.
- A field that has a default is left out of a frame when it holds the default.

Every request carries `id`, chosen by the client, and gets exactly one reply with the same `id`:
an `ack`, a `reject` (or, to a ping, a `pong`; to a `replace` that has cancelled, a `replace_ack`;
to a `batch`, a `batch_ack`). An order's ack precedes its fills. What the engine
did is acked when it is on the exchange's disk, which the ack's `level` says: "durable". Who
subscribes to `sequenced` is also told, before that, when a command has its place in the order.
Unknown fields of a request are refused, so that a misspelt `post_only` cannot trade; unknown
fields of a reply are to be ignored, so that new ones can be added. So are messages whose `t` is
unknown; one that has an `aseq` above the last one's by one is numbered and counts.

What happens to an account is numbered by `aseq`, from 1 without a gap: `order`, `fill`, `lease`,
`transfer`, `order_rejected`, `cancelled_all`. The numbers follow from the exchange's journal alone,
so they are the same after every restart, and the messages are kept: who was cut off subscribes to
`account` with `from_aseq` and hears each of them again, exactly as it was. An exchange that is
upgraded to number more of what happens numbers its whole journal anew; its `build` in `hello` says
so, and a number noted under another build is to be followed by a snapshot.
"""

from enum import IntEnum, IntFlag
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

PROTOCOL_VERSION: Final = 1
ID_MAX: Final = (1 << 53) - 1
EXPIRES_S_MAX: Final = (1 << 32) - 1
SESSION_MAX: Final = 255
BLOCK_HOURS_MAX: Final = 168  # a week
QUOTE_LEVELS_MAX: Final = 168  # of both sides together
LEGS_MAX: Final = 32
BATCH_ITEMS_MAX: Final = 64
KEPT_MAX: Final = 1_000  # fills or leases in one answer
GRACE_MS_MAX: Final = 600_000
DEAD_MAN_MS_MAX: Final = 3_600_000
FEE_TIER_MAX: Final = 15
TEXT_CHARS_MAX: Final = 128  # a symbol, a channel, a nonce
SIGNATURE_CHARS_MAX: Final = 132
DECIMAL_CHARS_MAX: Final = 32
TOKEN_SECONDS_MAX: Final = 86_400  # a day
CHECKSUM_LEVELS: Final = 10  # of each side
KEY_MARKETS_MAX: Final = 32
SIGNED_ORDERS_MAX: Final = 512  # in one request; the longest fit into a frame
ORDER_NUMBER_MAX: Final = (1 << 32) - 1
FEE_PPM_LIMIT: Final = (1 << 16) - 1  # that an order can be signed for
FIRST_MAX: Final = 1000  # candles or index rounds that a subscription may begin with
FIRST_OF_SEVERAL_MAX: Final = 2000  # likewise, of all its markets together
assert FIRST_OF_SEVERAL_MAX >= FIRST_MAX

Id: TypeAlias = Annotated[int, Meta(ge=1, le=ID_MAX)]
OptionalId: TypeAlias = Annotated[int, Meta(ge=0, le=ID_MAX)]
UnixSeconds: TypeAlias = Annotated[int, Meta(ge=0, le=EXPIRES_S_MAX)]
Ppm: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
FeeTierNumber: TypeAlias = Annotated[int, Meta(ge=0, le=FEE_TIER_MAX)]
GraceMs: TypeAlias = Annotated[int, Meta(ge=0, le=GRACE_MS_MAX)]
DeadManMs: TypeAlias = Annotated[int, Meta(ge=0, le=DEAD_MAN_MS_MAX)]
KeptCount: TypeAlias = Annotated[int, Meta(ge=1, le=KEPT_MAX)]
SessionNumber: TypeAlias = Annotated[int, Meta(ge=0, le=SESSION_MAX)]
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]
Decimal: TypeAlias = Annotated[str, Meta(max_length=DECIMAL_CHARS_MAX)]
Side: TypeAlias = Literal["buy", "sell"]
OrderNumber: TypeAlias = Annotated[int, Meta(ge=1, le=ORDER_NUMBER_MAX)]
FeePpm: TypeAlias = Annotated[int, Meta(ge=0, le=FEE_PPM_LIMIT)]
OrderType: TypeAlias = Literal["limit", "market", "stop", "stop_limit"]
TimeInForce: TypeAlias = Literal["gtc", "ioc", "fok", "gtt"]
SelfTrade: TypeAlias = Literal["cancel_taker", "cancel_maker", "cancel_both", "decrement"]
Level: TypeAlias = tuple[str, str]  # (price, qty): absolute quantity, "0" removes the level
OrderState: TypeAlias = Literal["open", "filled", "cancelled"]
Status: TypeAlias = Literal["open", "halted", "closed", "call"]
AckLevel: TypeAlias = Literal["", "durable"]
BudgetScope: TypeAlias = Literal["", "connection", "account", "address"]  # whose
Taking: TypeAlias = Literal["everything", "cancels", "nothing"]
What: TypeAlias = Literal[
    "orders", "order", "balances", "markets", "keys", "accounts", "fills", "leases", "unsigned"
]
ArmedWhat: TypeAlias = Literal["cancel_on_disconnect", "dead_man"]
CancelScope: TypeAlias = Literal["session", "account"]
CancelCause: TypeAlias = Literal["request", "disconnect", "dead_man"]
LeaseRole: TypeAlias = Literal["buyer", "operator", "reseller"]
LeaseState: TypeAlias = Literal["pending", "escrowed", "voided"]
MarketAction: TypeAlias = Literal["list", "halt", "resume", "close", "call", "uncross", "bands"]
Scopes: TypeAlias = Annotated[int, Meta(ge=1, le=7)]  # a sum of `Scope`s
Depth: TypeAlias = Literal[0, 1, 5, 10, 20, 50, 100]  # levels of each side; 0: all
EveryMs: TypeAlias = Literal[0, 100, 250, 1000]  # 0: as often as the channel says
IntervalS: TypeAlias = Literal[0, 60, 300, 900, 3600, 14400, 86400]
FirstCount: TypeAlias = Annotated[int, Meta(ge=0, le=FIRST_MAX)]
OrderAction: TypeAlias = Literal["add", "change", "remove", "trade"]
OrderChange: TypeAlias = tuple[OrderAction, int, Side, str, str]  # order_id, side, price, qty
TransferKind: TypeAlias = Literal[
    "deposit",
    "bond_deposit",
    "escrow",
    "withdrawal_reserved",
    "withdrawal_done",
    "withdrawal_cancelled",  # it could not be paid; the money is free again
    "exit",  # taken out of the vault by its owner, without the exchange
    "fill_voided",  # undone, its buyer having left the vault: the money or the bond is free again
    "lease_ended",  # paid out of escrow in the vault, or back, for good
    "bond_freed",  # which was behind hours that are delivered
]


# Of one order: order_id, number, market, side, price, qty, fee_ppm_max, valid_until_s.
SignedOrder: TypeAlias = tuple[Id, OrderNumber, Text, Side, Decimal, Decimal, FeePpm, UnixSeconds]


class CloseCode(IntEnum):
    """Why the server closes a connection; anything less grave is a numbered reject."""

    GOING_AWAY = 1001  # the node is shutting down; connect again
    PROTOCOL_ERROR = 1002  # not the websocket protocol
    BINARY_FRAME = 1003  # text frames only; with msgpack, binary frames only
    INVALID_UTF8 = 1007
    FRAME_TOO_LARGE = 1009  # over `hello.limits.frame_bytes`
    INTERNAL_ERROR = 1011  # the server failed, or its websocket pings were not answered
    TRY_AGAIN_LATER = 1013  # as many connections as the server holds, or takes of one address
    SLOW_READER = 4001  # more than `hello.limits.outbound_bytes` wait for this reader
    KEY_REVOKED = 4002  # the session key was revoked, or authorised anew for less
    KEY_EXPIRED = 4003  # the session key's time is over


class Scope(IntFlag):
    """What a session key may do. Public data needs none, and none includes another."""

    READ = 1  # the account's stream and questions about the account: a drop copy
    TRADE = 2  # orders, quotes, amendments, cancels, declared capacity
    WITHDRAW = 4  # to the wallet itself: the vault pays to no other address


# --- client to server --------------------------------------------------------------------------
class Request(Struct, tag_field="t", forbid_unknown_fields=True, omit_defaults=True):
    """What every request has."""

    id: Id


class Login(Request, tag="login"):
    """Prove the ownership of a wallet, once per connection.

    `signature` is the 65 bytes r | s | v, in hex, of the EIP-712 digest that
    `wallet.login_digest` defines, over `hello.nonce`, which is good for one attempt; a refused
    login's reject carries the next nonce. Answered by an ack with `account` (0: no deposit yet).
    `session` is a number of the client's own choice: orders of this connection belong to it, over
    every reconnection, and `cancel_all` can mean just those.

    With a `key` it is that key that signs, for the wallet that authorised it: a session key, or the
    wallet of another account, whose sub-account this one then is. The connection may do what the
    authorisation in force says, and is closed when that ends; the ack has it under `keys`.
    """

    wallet: Text
    nonce: Text
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARS_MAX)]
    session: SessionNumber = 0
    key: Text = ""


class Authorise(Request, tag="authorise"):
    """Let a key act for a wallet. The wallet's signature speaks, so anybody may send it.

    `signature` is of the EIP-712 digest that `wallet.session_key_digest` defines over the other
    fields: typed data `SessionKey`, in the domain of a login. `key` is an address: that of a key
    which a bot made for itself, or of a wallet that shall have this one as a sub-account. `scopes`
    is a sum of `Scope`s. `markets` says where the key may trade, as tickers, symbols, or symbols
    with `*` for a whole field ("nv.h100-sxm-80g.x8.ib|*|*|SPOT", and "H|*" for any hour); none
    means everywhere. What is read is of the whole account. The key is good from `valid_from_s` on
    and before `valid_until_s`. `nonce` must be greater than any that this wallet used for this key
    before, in an authorisation or a revocation: so an old authorisation never comes back.

    It replaces the key's former authorisation, on open connections, too. Acked when it is on the
    exchange's disk. The wallet needs an account, and may have 64 keys at a time.
    """

    wallet: Text
    key: Text
    scopes: Scopes
    valid_until_s: UnixSeconds
    nonce: Id
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARS_MAX)]
    valid_from_s: UnixSeconds = 0
    markets: Annotated[list[Text], Meta(max_length=KEY_MARKETS_MAX)] = []


class Revoke(Request, tag="revoke"):
    """Revoke a wallet's authorisations: of one `key` or, without one, of all its keys.

    By the wallet itself where it is logged in; or signed by it (typed data `Revocation`, the digest
    is `wallet.revocation_digest`), then from any connection, with `wallet` and `nonce`. Revoked are
    all with this `nonce` or a lower one, also those that the exchange has not seen yet; without a
    signature it may be left out, and all that were seen are revoked in any case. A signed one is
    refused if one with a higher nonce would stay in force. Connections of the keys are closed at
    once; the ack, with the `count` of keys revoked, comes when it is on the exchange's disk.
    """

    key: Text = ""
    wallet: Text = ""
    nonce: OptionalId = 0
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARS_MAX)] = ""


class Subscribe(Request, tag="subscribe"):
    """Ask for a channel. The ack comes first, then the snapshot where there is one. Asked again,
    the snapshot comes again: that is how a gap is mended.

    - `book`: one `book_snapshot`, then `book_delta`s: of the best `depth` levels of each side, or
      of all; after every change, or one with the net change, `every_ms` at most.
    - `orders`: the book order by order: one `orders_snapshot`, then `orders_delta`s.
    - `trades`: of one market, its latest ones first, or of several, from now on.
    - `ticker`: last and best prices and the last 24 hours, now and when they change, `every_ms`
      (100 by default).
    - `candles` of `interval_s` (60 by default): the last `limit` that are closed (100 by default)
      and the running one, then each change of it, `every_ms` (1000 by default), and its end.
    - `status`, `index`, `auction`: the present state first; of an index the last `limit` rounds (1
      by default, 300 are kept).
    - A subscription to several markets begins with at most 2000 closed candles or index rounds in
      all: where `limit` of each would be more, with as many of each market as make 2000, the last
      ones, but at least one. Ask for one market to have more of it.
    - `account`, after login: one `account_snapshot`, then the numbered private stream. With
      `from_aseq` there is no snapshot: every message from that number on comes as it was sent or
      would have been, then one `caught_up`, then the stream goes on. HISTORY_GONE, with the oldest
      number there is, if so old ones are not kept any more.
    - `sequenced`: from now on a `sequenced` for each command of this connection.

    `market` is one market or several, those listed later among them: a symbol with `*` for whole
    fields, such as "nv.h100-sxm-80g.x8.ib|*|*|SPOT", "*|us-e|*|*" or "*|*|*|H|*". "" means all, for
    `trades`, `ticker`, `status`, `index` and `auction`; a wildcard for `book`, `orders` or
    `candles` may cover 1000 markets when it is asked for. Who asks for a market twice, by itself
    and by a wildcard, hears each message once; with other choices (`depth`, `every_ms`,
    `interval_s`) it is another subscription, whose messages say the choice that they belong to.

    What to do when a message seems to be missing: in `book` and `orders`, `prev` is not the last
    `seq`, or `crc` disagrees: subscribe again, with the same choices, and leave out deltas until
    the snapshot. `trades`, `candles`: subscribe again; what `trade_id` or `start_s` has told before
    is told again. `ticker`, `status`, `index`, `auction`: every message is the whole state, the
    next one mends it. `account`: `aseq` + 1 is missing: subscribe again.
    """

    channel: Text
    market: Text = ""
    depth: Depth = 0
    every_ms: EveryMs = 0
    interval_s: IntervalS = 0
    limit: FirstCount = 0
    from_aseq: OptionalId = 0  # of `account`; at most one above the last there is


class Unsubscribe(Request, tag="unsubscribe"):
    """End a subscription, named as it was asked for. One that there is not is no error."""

    channel: Text
    market: Text = ""
    depth: Depth = 0
    every_ms: EveryMs = 0
    interval_s: IntervalS = 0


class New(Request, tag="new"):
    """Place an order. `client_id` makes it idempotent for good: the same body again is answered
    with the first one's ack and `dup`, another body is refused; a rejected order uses none up.

    - `type` "limit", the default, needs a `price`; `tif` says what becomes of what does not trade
      at once: it rests until cancelled ("gtc") or until `expires_s` ("gtt"), or it ends ("ioc");
      "fok" trades whole or not at all.
    - `type` "market" has no `price` but a `protection`: how far beyond the best price of the other
      side, as it is when the order's turn comes, it may trade. It is "ioc" or "fok".
    - `type` "stop_limit" waits off the book until a trade is at its `stop` or beyond it (a buy: at
      or above, a sell: at or below), then is the limit order that `price` and `tif` say; a stop
      that the last trade has reached already works at once. `type` "stop" has no `price` but a
      `protection`, how far beyond its `stop` it may trade, and is "ioc".
    - `all_or_none` trades whole, or waits off the book, unseen, until it can.
    - `resale`: a sale of hours of a window that this account has bought, instead of its capacity;
      it needs no bond. Who is to deliver them stays the same.
    - `min_qty`: at least so much trades at once, or the order is rejected.
    - `display_qty` makes what rests an iceberg: the book shows so much of it at a time; each time
      that is filled the next part is shown, behind all others of its price.
    """

    market: Text
    side: Side
    price: Decimal = ""
    qty: Decimal = ""  # needed always
    client_id: OptionalId = 0
    tif: TimeInForce = "gtc"
    post_only: bool = False
    self_trade: SelfTrade = "cancel_taker"
    type: OrderType = "limit"
    protection: Decimal = ""  # in dollars per GPU-hour, like a price; "0": the best price only
    expires_s: UnixSeconds = 0  # of a "gtt"
    min_qty: Decimal = ""
    display_qty: Decimal = ""
    stop: Decimal = ""
    all_or_none: bool = False
    resale: bool = False


class Quote(Request, tag="quote"):
    """Replace every level that this account quoted before in a market, at once or not at all.

    `bids` and `asks` are new orders that rest until they are cancelled or replaced; none takes all
    quotes off. A level that crosses trades, or with `post_only` the whole quote is rejected. The
    account's other orders stay. The ack has the `count` of levels; each has an order id of its
    own, told in the account's stream. `client_id` is as in `new`.
    """

    market: Text
    bids: Annotated[list[Level], Meta(max_length=QUOTE_LEVELS_MAX)] = []
    asks: Annotated[list[Level], Meta(max_length=QUOTE_LEVELS_MAX)] = []
    client_id: OptionalId = 0
    post_only: bool = False
    self_trade: SelfTrade = "cancel_taker"


class Leg(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One part of an `exclusive` or a `basket`: a limit order that trades whole."""

    market: Text
    price: Decimal
    qty: Decimal
    side: Side = "buy"


class Block(Request, tag="block"):
    """Buy the same GPU-hours in each of so many consecutive hours from one seller throughout.

    `market` is that of the first hour; `qty` is for each hour, and `price` is a limit on the
    average price. All or nothing, at once: among the sellers who offer enough in every hour the
    cheapest total wins, of two the one whose offer stands longer. What others offer at better
    prices is passed by, so these trades are marked `block` and set no price of the market. The ack
    has the `count` of hours and the `amount` paid, fees included.
    """

    market: Text
    hours: Annotated[int, Meta(ge=1, le=BLOCK_HOURS_MAX)]
    qty: Decimal
    price: Decimal
    client_id: OptionalId = 0


class Exclusive(Request, tag="exclusive"):
    """Buy just one of several alternatives: the one that leaves most below its limit, of two the
    one that stands first. It trades whole and at once, or nothing does.

    A leg's market may name a region at large, `us.any`, `eu.any` or `any`: then every listed market
    there is an alternative at this price. With `or_better` so is every better grade.
    """

    legs: Annotated[list[Leg], Meta(min_length=1, max_length=LEGS_MAX)]
    client_id: OptionalId = 0
    or_better: bool = False


class Basket(Request, tag="basket"):
    """Trade in several markets at once, every leg whole and within its limit, or in none."""

    legs: Annotated[list[Leg], Meta(min_length=1, max_length=LEGS_MAX)]
    client_id: OptionalId = 0


class Amend(Request, tag="amend"):
    """Change the price of an open order, what is left of it, or both; what is not given stays.

    The order is named by exactly one of its ids, and keeps both. Less at the same price keeps its
    place in the queue; anything else goes behind the others, and trades if it crosses: for that
    case `post_only` and `self_trade` are as in `new`. If the amendment is rejected the order
    stands as it was.
    """

    order_id: OptionalId = 0
    client_id: OptionalId = 0
    price: Decimal = ""
    qty: Decimal = ""  # what shall be left open, not counting what was filled
    post_only: bool = False
    self_trade: SelfTrade = "cancel_taker"


class Cancel(Request, tag="cancel"):
    """Cancel one open order, by exactly one of its two ids."""

    order_id: OptionalId = 0
    client_id: OptionalId = 0


class Replace(New, tag="replace"):
    """Cancel an open order and, if it was still open, place another in its stead.

    The order to go is named by exactly one of `old_order_id` and `old_client_id`; everything else
    is as in `new`, and anything may differ: market, side, terms, `client_id`. That is what it is
    for: `amend` changes price and quantity in one step, keeps both ids and the terms, and, for less
    at the same price, the place in the queue. A replace is two commands. The new order is
    sequenced as soon as the cancel is known to have taken something off the book, so what the old
    one traded until then is never traded twice; but the commands of others may come between, the
    new order stands behind all others of its price, and it may be rejected when the old one is
    gone, which `replace_ack` says. If the old one was not open any more (filled, cancelled,
    unknown), the reply is a reject and nothing has changed. Terms that the gateway refuses are
    refused before anything is cancelled. Where the connection ends between the two, the new order
    is not placed.

    `client_id` makes it safe to repeat: if that order was placed, by this or another request, its
    ack comes again as `dup`, and nothing is cancelled.
    """

    old_order_id: OptionalId = 0
    old_client_id: OptionalId = 0


class CancelAll(Request, tag="cancel_all"):
    """Cancel every open order of the account, in one market or, without one, in all; of one
    side or, without one, of both; of one `session` or, without one, of all. A session key that is
    for some markets only has to name one of them."""

    market: Text = ""
    side: Literal["", "buy", "sell"] = ""
    session: SessionNumber = 0


class Batch(Request, tag="batch"):
    """Several requests in one frame, sequenced in this order with nobody's command between them.

    Each item is the request that it would be alone, with its own `id`, and does what it would do
    alone: one that is refused stops none of the others. So a bot builds, logs and reads them as it
    does single ones; the one reply, a `batch_ack`, has the reply of each, in the same order, once
    the last of them is known. (The account's stream may tell of the first ones before that.) Of
    the items only a change of an order that is still on its way, and the second half of a
    `replace`, are sequenced later.

    The items cost what they would cost alone, all or nothing: a batch beyond a budget is refused
    whole, as is one of quotes with more than QUOTE_LEVELS_MAX levels together. There is no "all
    or none": that an order will be accepted shows only when its turn comes. Where the exchange is
    busy, the item that it does not take and all items behind it are rejected with BUSY.
    """

    items: Annotated[
        list[New | Cancel | Amend | Replace | Quote],
        Meta(min_length=1, max_length=BATCH_ITEMS_MAX),
    ]


class Capacity(Request, tag="capacity"):
    """Declare the total GPU-hours this operator can deliver under a market; asks need it."""

    market: Text
    qty: Decimal


class Withdraw(Request, tag="withdraw"):
    """Send free USDC back to the account's own wallet, on chain. `client_id` makes it safe to
    repeat, as for an order; orders and withdrawals draw on the same client ids."""

    amount: Decimal
    client_id: OptionalId = 0


class Query(Request, tag="query"):
    """Read state: `orders` (open, optionally of one market), `order` (by one of its ids; by
    `client_id` also long after it closed), `balances`, `markets`; `keys`, those that may act for
    this wallet now or later; `accounts`, the wallets for which the signer of this login may act.
    The answer is in the ack's field of the same name. `fills` and `leases` give at most `limit` of
    the account's kept messages, oldest first, from the number `from_aseq` on; of a lease they give
    every state it has been in. `unsigned` gives the orders, open or filled, that the account's
    signatures do not cover, and its `last_number`.
    """

    what: What
    market: Text = ""
    order_id: OptionalId = 0
    client_id: OptionalId = 0
    from_aseq: OptionalId = 0
    limit: KeptCount = 100


class SignOrders(Request, tag="sign_orders"):
    """Hand in the account's signature for orders that it has placed, and amended; only what both
    sides have signed goes into escrow. `hello.signing` says how soon it is due.

    Each order is signed as the typed data `Order`: `account`, whether it `is_buy`, `series` and
    `window` of its market (`markets` has them), the price as its limit, the quantity as all that
    may be filled of it, a `number` of the signer's own, the highest fee in parts per million, and
    until when, in Unix seconds, it may be filled. The price and quantity must cover what the order
    is now; `unsigned` says which are not covered. One order: `signature` is of its digest. Several:
    of the typed data `OrderRoot` with the root of the tree whose leaves are the struct hashes of
    these orders, in this order: each pair of neighbours is hashed in ascending order, a lone last
    one goes up as it is. The `key` that signs is the connection's own, or another that the wallet
    has authorised and that may trade.

    A number belongs to one order for good, and an order to one number: choose the next above
    `last_number`. The same again changes nothing. An order that was amended is signed again under
    its number, for at least as much as before in every respect (price, quantity, fee, time); less
    needs no signature. Answered by an ack with `count` and `last_number` when all of it is checked
    and kept; nothing of it is if one order is refused.
    """

    orders: Annotated[list[SignedOrder], Meta(min_length=1, max_length=SIGNED_ORDERS_MAX)]
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARS_MAX)]
    key: Text = ""


class CancelOnDisconnect(Request, tag="cancel_on_disconnect"):
    """Cancel the open orders of this connection's `session`, or of the whole account, when the
    connection is lost and no other one of the same account and session number has sent this
    request `grace_ms` later. A crash of the exchange loses every connection.

    A connection that the client itself closes, with 1000, cancels nothing, unless `on_close` asks
    for that, too; and then nothing is armed any more. Of several connections the one that sent this
    last decides so. A session number of 0 is no session: it can only mean the account. `off`
    disarms. The ack says what is `armed` now, and that outlives the exchange's own crashes.
    """

    grace_ms: GraceMs = 0
    scope: CancelScope = "session"
    on_close: bool = False
    off: bool = False


class DeadMan(Request, tag="dead_man"):
    """Cancel the open orders of this connection's `session`, or of the whole account, unless this
    request is sent again within `timeout_ms`; 0 disarms. It happens once: then it is disarmed.

    It does not depend on the connection, and after a restart of the exchange the whole time runs
    again. The ack says what is `armed` now; a `cancelled_all` tells when it has happened.
    """

    timeout_ms: DeadManMs
    scope: CancelScope = "session"


class Market(Request, tag="market"):
    """Administrator only. `list` takes `bond` (USDC per lot of 0.01 GPU-hour) and `lot` (a
    quantity is a multiple of it, in GPU-hours); what is left out is as the catalog has it. A
    market whose `closes_s` has come takes no order any more, and those it has are cancelled;
    `close` does so now. Both are for good.

    `call` gathers orders without matching until `until_s` or, without it, until `uncross`, which
    trades them at one price. `list` may start in a call (`opening_call`, until `opens_s`), and call
    the market again so many seconds before its gate (`closing_call_s`). `bands` refuses limits
    further than `static_ppm` (parts per million) beyond the `reference` price, and calls the
    market for `call_s` seconds where it would trade further than `dynamic_ppm` from its last
    trade; without a `reference` the one it has stays."""

    action: MarketAction
    market: Text
    bond: Decimal = ""
    lot: Decimal = ""
    closes_s: UnixSeconds = 0  # 0: when its window begins; SPOT stays open
    opening_call: bool = False
    opens_s: UnixSeconds = 0
    closing_call_s: UnixSeconds = 0
    until_s: UnixSeconds = 0
    static_ppm: Ppm = 0
    dynamic_ppm: Ppm = 0
    call_s: UnixSeconds = 0
    reference: Decimal = ""


class FeeTier(Request, tag="fee_tier"):
    """Administrator only. From now on the orders of a wallet that has an account are charged the
    rates of this tier; those in the book keep the rates they came with."""

    wallet: Text
    tier: FeeTierNumber


class Ping(Request, tag="ping"):
    """Answered by a pong at once: keeps the way open and tells the server's time.

    `sent_us` is the client's own time, any number; the pong has it again, so that the client can
    tell how far its clock is off and how long the way takes."""

    sent_us: OptionalId = 0


class Token(Request, tag="token"):
    """Ask for a bearer with which plain HTTP requests may read this account, and nothing else:
    `Authorization: Bearer ...` at /api/v1/account. The ack has the `token` and `valid_until_s`.

    It is told this once. It ends by itself after so many `seconds`, when the node restarts, and
    when this wallet has asked for more newer ones than it may have at a time.
    """

    seconds: Annotated[int, Meta(ge=1, le=TOKEN_SECONDS_MAX)] = 3_600


ClientMessage: TypeAlias = (
    Login
    | Authorise
    | Revoke
    | Subscribe
    | Unsubscribe
    | New
    | Quote
    | Block
    | Exclusive
    | Basket
    | Amend
    | Replace
    | Cancel
    | CancelAll
    | Batch
    | Capacity
    | Withdraw
    | Query
    | SignOrders
    | CancelOnDisconnect
    | DeadMan
    | Market
    | FeeTier
    | Ping
    | Token
)


# --- server to client --------------------------------------------------------------------------
class Reply(Struct, tag_field="t", omit_defaults=True):
    """What every message of the server has: only the tag."""


class Limits(Struct):
    """What one connection may do. A bucket of `*_burst` tokens refills at `*_per_s`.

    A request takes as many tokens as `weights` says for its type (1 where it says nothing), and
    one more for every `records_per_token` levels, hours or legs; a batch as many as its items. The
    connection, the account with all its connections, and the peer's address with all of its
    connections each have such a pair of buckets, and a request needs room in every one of them. A
    rate of 0: there is no such bucket.

    What a subscription begins with and what the answer to a query lists takes one more for every
    `records_per_token` entries, once it is told: whoever had too few left has none, but for
    cancels, until as many have come.
    """

    requests_per_s: int
    requests_burst: int
    cancels_per_s: int  # cancel and cancel_all draw on a bucket of their own
    cancels_burst: int
    frame_bytes: int  # larger frames close the connection
    outbound_bytes: int  # a reader further behind than this is closed
    subscriptions: int
    account_requests_per_s: int = 0
    account_requests_burst: int = 0
    account_cancels_per_s: int = 0
    account_cancels_burst: int = 0
    address_requests_per_s: int = 0  # not of a peer on the exchange's own machine
    address_requests_burst: int = 0
    address_cancels_per_s: int = 0
    address_cancels_burst: int = 0
    batch_items: int = BATCH_ITEMS_MAX
    weights: dict[str, int] = {}
    records_per_token: int = 8
    # For each address, whoever is there: logins, authorisations and revocations, but for those that
    # an account's own wallet makes without a signature.
    logins_per_s: int = 100
    logins_burst: int = 1_000


class Signing(Struct):
    """How orders are to be signed, where only what is signed is settled."""

    # An order, or what an amendment added to it, is to be signed so soon after its ack; then no
    # order is taken until it is. After twice that it is cancelled, unless it was filled; after six
    # times, its fills are undone and the account is suspended: for ten minutes, longer each time,
    # it trades nothing and withdraws nothing. 0: nothing happens but that unsigned fills are not
    # settled.
    within_ms: int
    orders: int = SIGNED_ORDERS_MAX  # in one request


class Hello(Reply, tag="hello"):
    """The first message of a connection."""

    version: int
    nonce: str  # 0x and 64 hex digits, for one login attempt
    time_us: int
    chain_id: int  # with `vault`, the EIP-712 domain of a login
    vault: str  # 0x and 40 hex digits
    price_tick: str
    qty_lot: str
    build: str  # its version, "+" and a digest of all that numbers what happens
    limits: Limits
    subprotocol: str = ""  # in which the two sides speak: "compex.v1.json", "compex.v1.msgpack"
    channels: list[str] = []  # that can be subscribed to
    resume_messages: int = 0  # so many of an account's stream are kept to be sent again; 0: none
    taking: Taking = "everything"  # "cancels": the exchange is far behind or its disk nearly full
    stopped: str = ""  # why it takes "nothing"
    signing: Signing | None = None  # none: orders are not signed here


class OrderInfo(Struct, omit_defaults=True):
    """One order as it stands: `qty` as accepted or last amended, `left` still open."""

    order_id: int
    market: str
    side: Side
    price: str
    qty: str
    left: str
    state: OrderState
    time_us: int  # when it was accepted
    client_id: int = 0
    shown: str = ""  # of `left`, if the book shows less: an iceberg, or "0" of one that waits
    stop: str = ""  # a stop's price, while it waits for it
    waiting: bool = False  # for its stop, or to be filled whole: off the book
    expires_s: int = 0  # Unix seconds; 0: never
    session: int = 0


class Balances(Struct):
    """An account's money in USDC. A buy moves free, held, pending, escrow; an ask's bond moves
    bond_free, bond_held, bond_locked."""

    free: str  # may be spent or withdrawn
    held: str  # reserved by open bids
    pending: str  # filled, not yet final on chain
    escrow: str  # locked in the vault for bought hours
    leaving: str  # a withdrawal on its way
    bond_free: str
    bond_held: str  # reserved by open asks
    bond_locked: str  # behind sold, undelivered hours


class MarketInfo(Struct):
    """One listed market."""

    market: str  # ticker
    symbol: str
    status: Status
    lot: str  # quantities are multiples of this, GPU-hours
    bond: str  # an ask reserves this much USDC per lot of 0.01 GPU-hour
    closes_s: int = 0  # when it closes, Unix seconds; 0: it stays open
    until_s: int = 0  # of a call, as in MarketStatus
    series: int = 0  # what signed orders call its class, region and grade; 0: they are not signed
    window: int = 0  # ... and its hours: kind << 21 | first hour since 1970


class UnsignedOrder(Struct, omit_defaults=True):
    """An order that its account has not signed for, or for less: sign at least this, which is no
    less than what is signed already."""

    order_id: int
    market: str
    side: Side
    price: str  # its limit or, if it is closed, the worst price at which it was filled
    qty: str  # all that is or may be filled
    number: int = 0  # under which it is signed, not far enough; 0: choose one
    client_id: int = 0  # of an open one


class KeyInfo(Struct, omit_defaults=True):
    """An authorisation as it stands: `key` may do this for `wallet`."""

    wallet: str
    key: str
    scopes: int  # a sum of `Scope`s
    markets: list[str]  # none: everywhere
    valid_from_s: int
    valid_until_s: int
    nonce: int
    account: int = 0  # of the wallet


class Armed(Struct, omit_defaults=True):
    """What cancels open orders by itself: after so long without a connection, or a request."""

    what: ArmedWhat
    scope: CancelScope
    ms: int
    on_close: bool = False


class Ack(Reply, tag="ack"):
    """The request was done; what it did is in the fields that apply to its kind.

    `level` is how sure that is. "durable": the command is on the exchange's disk and matched, and
    no crash undoes it. It is empty where nothing was to be kept: logins, subscriptions, queries.
    """

    id: int
    sequence: int = 0  # of the command it became
    time_us: int = 0
    order_id: int = 0  # new, amend, cancel
    client_id: int = 0
    dup: bool = False  # new: this client id was accepted before; this is that order's answer
    qty: str = ""  # cancel: removed from the book; amend: left open; capacity: as declared
    # cancel_all: orders cancelled; quote: levels; block, ...: legs filled; revoke: keys revoked
    count: int = 0
    partial: bool = False  # cancel_all: there are more; ask again
    account: int = 0  # login, unsigned
    wallet: str = ""  # login
    withdrawal_id: int = 0
    market: str = ""  # the ticker of the market concerned
    orders: list[OrderInfo] | None = None
    order: OrderInfo | None = None
    balances: Balances | None = None
    markets: list[MarketInfo] | None = None
    budget: tuple[int, int] | None = None  # requests and cancels left in the buckets
    price: str = ""  # new: the limit, also of a market order; amend: the price now
    amount: str = ""  # block, exclusive, basket: what its purchases cost, fees included
    lost_place: bool = False  # amend: it stands behind the others of its price now
    level: AckLevel = ""
    token: str = ""  # token: what stands behind "Bearer " in the header
    valid_until_s: int = 0  # token: when it ends, Unix seconds
    # Likewise of the account, of the address: where less than half of one of them is left.
    account_budget: tuple[int, int] | None = None
    address_budget: tuple[int, int] | None = None
    keys: list[KeyInfo] | None = None  # query; login with a key: its own
    accounts: list[KeyInfo] | None = None
    fills: "list[Fill] | None" = None
    leases: "list[Lease] | None" = None
    armed: list[Armed] | None = None  # of this connection's account and session
    unsigned: list[UnsignedOrder] | None = None
    last_number: int = 0  # sign_orders, unsigned: the highest number the account has used


class Reject(Reply, tag="reject"):
    """The request was not done and nothing changed. `code` never changes its meaning.

    A refused login also carries what was checked: the EIP-712 `digest`, the wallet that the
    signature `recovered` (if any), and the `nonce` for the next attempt. A refused authorisation
    or revocation carries digest and wallet, too.
    """

    id: int  # 0 when the frame was too broken to tell
    code: int
    reason: str
    message: str
    field: str | None
    retry_ms: int = 0  # RATE_LIMITED, BUSY and DISK_NEARLY_FULL: when to try again
    recovered: str = ""
    digest: str = ""
    nonce: str = ""
    scope: BudgetScope = ""  # RATE_LIMITED: whose budget has too little


class ReplaceAck(Reply, tag="replace_ack"):
    """A `replace` was done: `cancelled` is the old order's end, with the `qty` taken off the book
    (none if `order` is a `dup`); `order` the new one's ack, or the reject that it came to."""

    id: int
    order: Ack | Reject
    cancelled: Ack | None = None


class BatchAck(Reply, tag="batch_ack"):
    """What each item of a `batch` came to, in order. The budgets are as in an ack, of all."""

    id: int
    results: list[Ack | Reject | ReplaceAck]
    budget: tuple[int, int] | None = None
    account_budget: tuple[int, int] | None = None
    address_budget: tuple[int, int] | None = None


class Sequenced(Reply, tag="sequenced"):
    """A request's command has its place in the exchange's total order. Only on subscription.

    It is no reply: the request's ack or reject follows. It promises nothing: the command is not
    yet on the disk, and what it does is not yet known; a crash now may lose it, and then it never
    was. `client_id` is the request's, for those that are named by one.
    """

    id: int
    sequence: int
    client_id: int = 0


class Pong(Reply, tag="pong"):
    """The answer to a ping, with the server's time.

    With `sent_us` from the ping, and t when this came, both by the client's clock, the server's
    clock is ahead by ((received_us - sent_us) + (time_us - t)) / 2, to within half of what the way
    took, which is (t - sent_us) - (time_us - received_us)."""

    id: int
    time_us: int  # when this was sent
    sent_us: int = 0  # of the ping
    received_us: int = 0  # when the ping came


class Closing(Reply, tag="closing"):
    """The server is about to close every connection. Requests it has taken are still answered, any
    other is refused with DRAINING; connect again after `retry_ms`."""

    retry_ms: int
    reason: str


class Heartbeat(Reply, tag="heartbeat"):
    """Sent every few seconds: a subscriber that has all up to these numbers has everything."""

    time_us: int
    sequence: int  # last one published
    aseq: int = 0  # of the logged-in account


class BookSnapshot(Reply, tag="book_snapshot"):
    """The whole book, or its best `depth` levels of each side, best levels first, as of `seq`;
    `crc` as in `book.checksum`. `depth` and `every_ms` are those of the subscription."""

    market: str
    seq: int
    bids: list[Level]
    asks: list[Level]
    crc: int
    depth: Depth = 0
    every_ms: EveryMs = 0


class BookDelta(Reply, tag="book_delta"):
    """What one command changed, or with `every_ms` all since the last message. `prev` is the `seq`
    of this subscription's message before: if it is not the last one applied, a message is missing;
    subscribe again. `seq` is the sequence of the last command that changed the book. With a
    `depth`, a level that comes into view is told, and one that leaves it is removed. `crc` is of
    what is held after this delta: CRC-32 over the top 10 levels of each side, bids first, best
    first, each level as two little-endian int64: price in ticks of 0.0001, and quantity in lots of
    0.01, negative for an ask.
    """

    market: str
    prev: int
    seq: int
    bids: list[Level]
    asks: list[Level]
    crc: int
    time_us: int
    depth: Depth = 0
    every_ms: EveryMs = 0


class OrdersSnapshot(Reply, tag="orders_snapshot"):
    """Every resting order of a market that the book shows, as of `seq`, in the order in which they
    would trade: (order_id, price, qty). Of an iceberg only the part that is shown; orders that wait
    for a condition are not in it. `crc` as in `order_book.OrderBook.checksum`."""

    market: str
    seq: int
    bids: list[tuple[int, str, str]]
    asks: list[tuple[int, str, str]]
    crc: int


class OrdersDelta(Reply, tag="orders_delta"):
    """What one command did to the orders of a market: (action, order_id, side, price, qty) each, to
    be applied in this order. `prev`, `seq` as in BookDelta.

    "add": behind all others of its price; so comes again what has lost its place, an amended order
    or an iceberg's next part, after its "remove". "change": it shows so much now, where it stands.
    "remove": it is gone, or not shown any more. "trade": so much of this resting order was traded
    at this price; told for what it is, and to be left out when the queues are put together, as the
    "change" or "remove" that follows from it comes, too. `crc` is of the first 10 orders of each
    side after this: three little-endian int64 each, order_id, ticks, lots, negative for an ask.
    """

    market: str
    prev: int
    seq: int
    changes: list[OrderChange]
    crc: int
    time_us: int


class Ticker(Reply, tag="ticker"):
    """One market at a glance. What there is not is "": no trade, nobody on a side, no index.

    `volume`, `high`, `low` and `open` are of the last 24 hours, by the time of the commands, in
    whole minutes. Block trades count as volume and set no price.
    """

    market: str
    status: Status
    volume: str
    time_us: int
    last: str = ""
    last_qty: str = ""
    bid: str = ""
    bid_qty: str = ""
    ask: str = ""
    ask_qty: str = ""
    open: str = ""
    high: str = ""
    low: str = ""
    index: str = ""  # the last published spot price
    every_ms: EveryMs = 0


class Candle(Reply, tag="candle"):
    """The trades of one interval, aligned to UTC, by the time of the commands.

    An interval without a trade has no candle. Block trades count in `volume`, `notional` (USDC) and
    `trades` and set no price; of a candle with nothing else the prices are "0". Without `closed` it
    is the running one, and each of its messages stands for those before; it is closed when the
    first command after its end is sequenced, in any market.
    """

    market: str
    interval_s: IntervalS
    start_s: int  # Unix seconds
    open: str
    high: str
    low: str
    close: str
    volume: str
    notional: str
    trades: int
    closed: bool = False
    every_ms: EveryMs = 0


class Trade(Reply, tag="trade"):
    """A public trade; `side` is the taker's, `trade_id` the number of its event."""

    market: str
    trade_id: int
    price: str
    qty: str
    side: Side
    time_us: int
    block: bool = False  # between two parties of a block order: no price of the market


class Index(Reply, tag="index"):
    """A published spot price. `quality` A is best; `market` is the ticker of its SPOT market."""

    market: str
    price: str
    quality: str
    round: int  # the end of its window, Unix seconds: not the roundId of its feed contract
    time_us: int  # the same in microseconds


class MarketStatus(Reply, tag="market_status"):
    """A market opened, was halted, called or closed; or, on subscription, how it stands."""

    market: str
    symbol: str
    status: Status
    sequence: int
    time_us: int
    until_s: int = 0  # of a call: when it is uncrossed, Unix seconds; 0: by hand


class Auction(Reply, tag="auction"):
    """What a call would come to now, told about once a second while it changes; at its end, with
    `final`, what it came to. `qty` trades at `price`, and of `side` `surplus` is left over."""

    market: str
    price: str  # "0" while nothing would trade
    qty: str
    surplus: str
    side: Side
    time_us: int
    final: bool = False


class Order(Reply, tag="order"):
    """Private: an order was accepted or amended (`open`), or left the book unfilled
    (`cancelled`), or was made smaller by self-trade prevention, or an iceberg shows another part
    of itself. Numbered by `aseq`."""

    aseq: int
    order_id: int
    market: str
    side: Side
    price: str
    qty: str  # as accepted or last amended
    left: str  # still open after this
    state: OrderState
    sequence: int
    time_us: int
    client_id: int = 0
    # cancelled: BY_REQUEST, CANCEL_ALL, IOC_REMAINDER, SELF_TRADE, ACCOUNT_CLOSED, EXPIRED, ...
    # open: AMENDED, CONCEALED, REFRESHED (the last two: `shown` has changed), WAITING, TRIGGERED
    reason: str = ""
    shown: str = ""  # as in OrderInfo; a fill takes from what is shown
    stop: str = ""
    waiting: bool = False
    expires_s: int = 0
    session: int = 0


class Fill(Reply, tag="fill"):
    """Private: part of an order traded; `left` of "0" means it is filled. Numbered by `aseq`."""

    aseq: int
    trade_id: int
    order_id: int
    market: str
    side: Side  # of this account's order
    price: str
    qty: str
    left: str
    liquidity: Literal["maker", "taker"]
    sequence: int
    time_us: int
    client_id: int = 0
    # USDC. A buyer's is paid with the fill; a seller's comes off what the hours earn.
    fee: str = ""


class Transfer(Reply, tag="transfer"):
    """Private: money came, went on chain, left, or came back. Numbered by `aseq`.

    `reference` is the deposit number, the escrow batch, the withdrawal id, the trade id of a fill
    that is void, which of the account's exits it was, or the number of an end of leases.
    """

    aseq: int
    kind: TransferKind
    amount: str
    reference: int
    sequence: int
    time_us: int


class OrderRejected(Reply, tag="order_rejected"):
    """Private: a request of this account, on whichever connection, was refused by the exchange
    after it had its place in the order; `request` is its `t`. Numbered by `aseq`. What the
    exchange refuses at once, for its form or a limit, has no place in the order and is not here."""

    aseq: int
    request: str
    code: int
    reason: str
    message: str
    sequence: int
    time_us: int
    client_id: int = 0
    order_id: int = 0  # amend, cancel


class CancelledAll(Reply, tag="cancelled_all"):
    """Private: a cancel-all is done, whoever's: asked for ("request"), a lost connection's or a
    dead man's switch's. The `count` orders it cancelled were told before. Numbered by `aseq`."""

    aseq: int
    cause: CancelCause
    count: int
    sequence: int
    time_us: int
    session: int = 0  # just its orders; 0: all sessions'
    partial: bool = False  # there are more; of a lost connection or a dead man, more follow


class Lease(Reply, tag="lease"):
    """Private: hours were bought or sold, or the state of that has changed. Numbered by `aseq`.

    "pending": traded, and not yet known to be in escrow. "escrowed": the vault holds its money, in
    the settled `batch`. Escrow is confirmed by amount, for all that a buyer has in one batch; which
    leases those are is known for sure where that is all that was pending. Otherwise the oldest are
    meant whose costs make just that amount, and `assumed` says that others could make it as well;
    where none do, nothing is said until the amounts fit again. "voided": undone, also after an
    assumption that was wrong, which is then made anew of another lease.
    """

    aseq: int
    lease_id: int  # the `trade_id` of the fill
    market: str
    role: LeaseRole  # a "reseller" had bought these hours; who delivers them stays the same
    qty: str
    price: str
    state: LeaseState
    sequence: int
    time_us: int
    batch: int = 0
    assumed: bool = False


class Balance(Reply, tag="balance"):
    """Private: the money as of `aseq`, sent after the messages that changed it. It is state,
    not history, so it takes no number of its own."""

    aseq: int
    balances: Balances
    time_us: int


class AccountSnapshot(Reply, tag="account_snapshot"):
    """Private: everything as of `aseq`; the next numbered message is `aseq` + 1."""

    aseq: int
    account: int
    wallet: str
    balances: Balances
    orders: list[OrderInfo]
    capacities: list[tuple[str, str]]  # (market, declared total qty)
    time_us: int


class CaughtUp(Reply, tag="caught_up"):
    """Private: a subscription `from_aseq` has sent everything up to `aseq`; what follows is new.
    Takes no number of its own."""

    aseq: int
    balances: Balances
    time_us: int


ServerMessage: TypeAlias = (
    Hello
    | Ack
    | Reject
    | ReplaceAck
    | BatchAck
    | Sequenced
    | Pong
    | Closing
    | Heartbeat
    | BookSnapshot
    | BookDelta
    | OrdersSnapshot
    | OrdersDelta
    | Ticker
    | Candle
    | Trade
    | Index
    | MarketStatus
    | Auction
    | Order
    | Fill
    | Transfer
    | OrderRejected
    | CancelledAll
    | Lease
    | Balance
    | AccountSnapshot
    | CaughtUp
)
Numbered: TypeAlias = Order | Fill | Transfer | OrderRejected | CancelledAll | Lease
NUMBERED: Final = (Order, Fill, Transfer, OrderRejected, CancelledAll, Lease)
